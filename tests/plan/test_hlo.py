"""What is read from the text of compiled programs: real programs with known collectives, and lines from others."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dollar_jax.plan import hlo
from dollar_jax.plan.collectives import collectives, group_size, largest_gather, sent_by_kind
from dollar_jax.plan.traffic import memory_traffic

SHARE = 32 * 256 * 4  # bytes of a device's part in exchange.py
SENT = {
    "all-gather": SHARE * 3,
    "reduce-scatter": SHARE * 3 / 4,
    "all-reduce": SHARE * 2 * 3 / 4,
    "all-to-all": SHARE * 3 / 4,
    "collective-permute": SHARE,
}


def exchange(topology, *kinds):
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    program = [sys.executable, str(Path(__file__).parents[1] / "helpers" / "exchange.py"), topology, *kinds]
    return json.loads(subprocess.run(program, env=environment, check=True, capture_output=True, text=True).stdout)


def check(found, kinds):
    assert list(found) == list(kinds)
    for kind, one in found.items():
        assert one["kinds"] == {kind: {"instructions": 1, "runs": 5, "bytes": 5 * SENT[kind]}}
        assert one["groups"] == [2 if kind == "collective-permute" else 4]
        assert one["largest_gather"] == (4 * SHARE if kind == "all-gather" else 0)
        assert one["unknown_loops"] == 0


def test_collectives_of_a_program_on_8_cpus():
    found = exchange("cpu:8", *SENT)
    check(found, SENT)
    # 5 times: what is gathered is read and written at least once, the result likewise.
    assert 5 * 2 * 4 * SHARE < found["all-gather"]["traffic"] < 5 * 30 * SHARE


def test_collectives_of_a_program_for_tpus():
    pytest.importorskip("libtpu")
    kinds = "all-gather", "reduce-scatter"
    found = exchange("v5e:2x4", *kinds)
    check(found, kinds)
    # Everything stays in the chip's vector memory, but for the program's argument and result.
    assert found["all-gather"]["traffic"] == pytest.approx(2 * SHARE, rel=0.01)


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("replica_groups={{0,1,2},{3,4,5}}", 3),
        ("replica_groups={}", 16),
        ("replica_groups=[4,2]<=[8]", 2),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", 4),
        ("replica_groups=mesh['x'=2,'y'=4] {'y'}", 4),
        ("replica_groups=mesh['x'=2,'y'=4] {'x','y'}", 8),
        ("replica_groups=mesh['x'=2,'y'=8], device_ids=([2,2,4]T(1,0,2)) {'y':(2)4}", 4),
        ("source_target_pairs={{0,1},{1,0}}", 2),
        ("source_target_pairs={{0,0},{1,1}}", 1),
    ],
)
def test_groups(groups, size):
    module = hlo.parse(
        f"ENTRY %main (a: f32[2]) -> f32[2] {{\n  ROOT %b = f32[2]{{0}} all-reduce(%a), {groups}, x=1\n}}"
    )
    assert group_size(module.computations["main"]["b"], 16) == size


# As a TPU has it: one all-gather overlapped with two fusions, and an all-reduce of which a slice is kept.
OVERLAPPED = """
%async.1 (p: bf16[128,256]) -> (bf16[1024,256], u32[]) {
  %p = bf16[128,256]{1,0:T(8,128)(2,1)} parameter(0)
  %g = bf16[1024,256]{1,0} all-gather(%p), channel_id=2, replica_groups=[1,8]<=[8], attributes={chain_id="0"}
  ROOT %t = (bf16[1024,256]{1,0}, u32[]{:S(2)}) tuple(%g, %u)
}

%async.2 (p: bf16[128,256]) -> bf16[1024,256] {
  %p = bf16[128,256]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %g = bf16[1024,256]{1,0} all-gather(%p), channel_id=2, replica_groups=[1,8]<=[8], attributes={chain_id="0"}
}

%all-reduce-scatter.1 (p: f32[1024]) -> f32[128] {
  %p = f32[1024]{0} parameter(0)
  %r = f32[1024]{0} all-reduce(%p), channel_id=3, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  %i = u32[] constant(0)
  ROOT %s = f32[128]{0} dynamic-slice(%r, %i), dynamic_slice_sizes={128}
}

%condition (c: (s32[], bf16[128,256], f32[1024])) -> pred[] {
  %limit = s32[]{:T(128)} constant(30)
  %c = (s32[], bf16[128,256]{1,0}, f32[1024]{0}) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  ROOT %lt = pred[] compare(%i, %limit), direction=LT, metadata={op_name="while/cond/lt"}
}

%body (c: (s32[], bf16[128,256], f32[1024])) -> (s32[], bf16[128,256], f32[1024]) {
  %c = (s32[], bf16[128,256]{1,0}, /*index=2*/f32[1024]{0}) parameter(0)
  %x = bf16[128,256]{1,0} get-tuple-element(%c), index=1
  %y = f32[1024]{0} get-tuple-element(%c), index=2
  %f = (bf16[1024,256]{1,0}, u32[]{:S(2)}) fusion(%x), kind=kCustom, calls=%async.1
  %g = bf16[1024,256]{1,0} fusion(%x), kind=kCustom, calls=%async.2
  %h = f32[128]{0} fusion(%y), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %t = (s32[], bf16[128,256]{1,0}, f32[1024]{0}) tuple(%i, %x, %y)
}

ENTRY %main (x: bf16[128,256], y: f32[1024]) -> (s32[], bf16[128,256], f32[1024]) {
  %x = bf16[128,256]{1,0} parameter(0)
  %y = f32[1024]{0} parameter(1)
  %t = (s32[], bf16[128,256]{1,0}, f32[1024]{0}) tuple(%i, %x, %y)
  ROOT %w = (s32[], bf16[128,256]{1,0}, f32[1024]{0}) while(%t), condition=%condition, body=%body
}
"""


def test_overlapped_collectives():
    found = collectives(hlo.parse(OVERLAPPED), 8)
    assert sent_by_kind(found) == {
        "all-gather": {"instructions": 1, "runs": 30, "bytes": 30 * 1024 * 256 * 2 * 7 / 8},
        "reduce-scatter": {"instructions": 1, "runs": 30, "bytes": 30 * 1024 * 4 * 7 / 8},
    }
    assert largest_gather(found) == 1024 * 256 * 2


def test_loops_of_unknown_length():
    text = OVERLAPPED.replace("compare(%i, %limit), direction=LT", "compare(%i, %c), direction=LT")
    module = hlo.parse(text)
    assert module.unknown_loops() == 1
    assert {one.times for one in collectives(module, 8)} == {1}


SLICES = """
%slice (stack: f32[30,1000], i: s32[], x: f32[10]) -> f32[1000] {
  %stack = f32[30,1000]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %x = f32[10]{0} parameter(2)
  %flat = f32[30,1,1000]{2,1,0} bitcast(%stack)
  %d = f32[1,1,1000]{2,1,0} dynamic-slice(%flat, %i, %i, %i), dynamic_slice_sizes={1,1,1000}
  ROOT %y = f32[1000]{0} fusion(%d, %x), kind=kLoop, calls=%whatever
}

%whatever (d: f32[1000]) -> f32[1000] {
  ROOT %d = f32[1000]{0} parameter(0)
}

%update (stack: f32[30,1000], i: s32[], x: f32[1000]) -> f32[30,1000] {
  %stack = f32[30,1000]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %x = f32[1000]{0} parameter(2)
  %row = f32[1,1000]{1,0} bitcast(%x)
  ROOT %u = f32[30,1000]{1,0} dynamic-update-slice(%stack, %row, %i, %i)
}

ENTRY %main (stack: f32[30,1000], i: s32[], x: f32[10]) -> f32[30,1000] {
  %stack = f32[30,1000]{1,0} parameter(0)
  %i = s32[]{:S(2)} parameter(1)
  %x = f32[10]{0} parameter(2)
  %a = f32[1000]{0} fusion(%stack, %i, %x), kind=kLoop, calls=%slice
  %b = f32[1000]{0:T(1024)S(1)} negate(%a)
  %s = ((f32[30,1000]{1,0}), f32[2,1000]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%stack), slice={[0:2], [0:1000]}
  %d = f32[2,1000]{1,0:S(1)} slice-done(%s)
  %e = f32[1,1000]{1,0} dynamic-slice(%d, %i, %i), dynamic_slice_sizes={1,1000}
  ROOT %c = f32[30,1000]{1,0} fusion(%stack, %i, %b), kind=kLoop, calls=%update
}
"""


def test_traffic():
    slice_bytes = 4000 + 40 + 4000  # a row, x, and a
    negate_bytes = 4000  # b stays on the chip
    prefetch_bytes = 2 * 4000  # two rows are read onto the chip
    row_bytes = 4000  # one of them is written back
    update_bytes = 4000  # the row that is written
    expected = slice_bytes + negate_bytes + prefetch_bytes + row_bytes + update_bytes
    assert memory_traffic(hlo.parse(SLICES)) == expected
