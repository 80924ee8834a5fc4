"""Cycles of a program for TPUs: lines as its compiler writes them, and where they come from."""

from dataclasses import replace

import pytest

from dollar_jax.plan import cycles, hlo
from dollar_jax.plan.chips import CHIPS
from dollar_jax.plan.flops import owner

# A loop of 30 blocks: a product of `Linear.__call__` in `Block.__call__`, through flax, and the attention's kernel.
PROGRAM = """HloModule jit_step, is_scheduled=true

FileNames
1 "/src/dollar_jax/models/dit.py"
2 "/lib/site-packages/flax/nnx/nn/linear.py"
3 "/src/dollar_jax/models/linear.py"

FunctionNames
1 "Block.__call__"
2 "Linear.__call__"
3 "Attention.__call__.<locals>.<genexpr>"

FileLocations
1 {file_name_id=1 function_name_id=1 line=70 end_line=70 column=12 end_column=79}
2 {file_name_id=3 function_name_id=2 line=20 end_line=20 column=12 end_column=79}
3 {file_name_id=2 function_name_id=2 line=80 end_line=80 column=12 end_column=79}
4 {file_name_id=1 function_name_id=3 line=75 end_line=75 column=12 end_column=79}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=3}
4 {file_location_id=4 parent_frame_id=2}

%condition (c: (s32[], bf16[128,256])) -> pred[] {
  %limit = s32[]{:T(128)} constant(30)
  %c = (s32[], bf16[128,256]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

%fused (p: bf16[128,256]) -> bf16[128,256] {
  %p = bf16[128,256]{1,0} parameter(0)
  ROOT %d = bf16[128,256]{1,0} convolution(%p, %p), backend_config={"window_config":{"estimated_cycles":"9"}}
}

%body (c: (s32[], bf16[128,256])) -> (s32[], bf16[128,256]) {
  %c = (s32[], bf16[128,256]{1,0}) parameter(0)
  %x = bf16[128,256]{1,0} get-tuple-element(%c), index=1
  %f = bf16[128,256]{1,0} fusion(%x), kind=kOutput, calls=%fused, metadata={op_name="jit(step)/student/while/body/dot_general" stack_frame_id=3}, backend_config={"window_config":{"estimated_cycles":"100"}}
  %b = bf16[128,256]{1,0} fusion(%x), kind=kOutput, calls=%fused, metadata={op_name="jit(step)/transpose(jvp(student))/while/body/dot_general" stack_frame_id=4}, backend_config={"window_config":{"estimated_cycles":"10"}}
  %splash_mha_fwd_residuals.2 = (f32[2,1024,128]{2,1,0}, bf16[2,3,2048,64]{3,2,1,0}) custom-call(%t, %t, %q, %k, %v), custom_call_target="tpu_custom_call", operand_layout_constraints={s8[1,10,4]{2,1,0}, s8[1,10,4]{2,1,0}, bf16[2,3,80,2048]{3,2,1,0}, bf16[2,3,80,1024]{3,2,1,0}, bf16[2,3,64,1024]{3,2,1,0}}, frontend_attributes={kernel_metadata={
"xprof_metadata":"{}"
}}, metadata={op_name="jit(step)/transpose(jvp(student))/checkpoint/rematted_computation/pallas_call" stack_frame_id=1}, backend_config={}
  ROOT %t = (s32[], bf16[128,256]{1,0}) tuple(%i, %x)
}

ENTRY %main (x: bf16[128,256]) -> (s32[], bf16[128,256]) {
  %x = bf16[128,256]{1,0} parameter(0)
  %copy = bf16[128,256]{0,1} copy(%x), backend_config={"window_config":{"estimated_cycles":"7"}}
  %t = (s32[], bf16[128,256]{1,0}) tuple(%i, %x)
  ROOT %w = (s32[], bf16[128,256]) while(%t), condition=%condition, body=%body
}
"""  # noqa: E501
LABEL = owner(("student",), ())


def test_cycles_by_place_and_pass():
    chip = replace(CHIPS["v5p"], cores=2, bundles={("fwd", 64): 4.0})
    kernel = 4.0 * (2 * 3 * 2048 * 1024 / 1024) / 2
    assert cycles.count(hlo.parse(PROGRAM), chip, LABEL) == {
        (("", "student"), "Linear in Block", "forward"): 30 * 100,  # not the instruction inside the fusion
        (("", "student"), "Attention.<genexpr> in Block", "backward"): 30 * 10,
        (("", "student"), "Block", "recomputed"): 30 * kernel,
        (("", "other"), "", "forward"): 7,
    }


@pytest.mark.parametrize("bundles", [{}, {("fwd", 128): 4.0}, {("dkv", 64): 4.0}])
def test_a_kernel_that_was_not_measured_is_unknown(bundles):
    chip = replace(CHIPS["v5p"], bundles=bundles)
    assert cycles.count(hlo.parse(PROGRAM), chip, LABEL)[None] == 30
