"""The programs of an iteration and their arguments, for devices that need not exist."""

import jax
import pytest

from configs import shapes
from dollar_jax.config import lora
from dollar_jax.models import build
from dollar_jax.models.network import count_parameters, parameter_shapes
from dollar_jax.plan.programs import device_bytes, iteration
from dollar_jax.plan.teachers import teacher_card
from dollar_jax.sharding import make_mesh
from dollar_jax.stages.student import student_config


@pytest.fixture(scope="module")
def planned():
    """An iteration of adapters. Its devices may be a slice of TPUs that is not here: a key is traced, never made."""
    make_key = jax.random.key

    def traced_key(seed):
        key = make_key(seed)
        assert isinstance(key, jax.core.Tracer)
        return key

    config = shapes.get_config()
    config.dtype = "bfloat16"
    config.lora = lora(rank=16, fake_score_rank=4)
    config = student_config(config, "vsd_cd")
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    with pytest.MonkeyPatch.context() as patch, jax.set_mesh(mesh):
        patch.setattr(jax.random, "key", traced_key)
        return iteration(config, teacher_card(config, "2b"), mesh)


def test_nothing_runs_on_the_devices(planned):
    assert [(program.name, program.times) for program in planned.programs] == [("generator", 1), ("fake_score", 2)]


def test_bytes_of_adapters(planned):
    """The base once, its large matrices in bfloat16; 4 bytes for each number of the average, 12 for each of the student
    and of the fake score.
    """
    size = {name: device_bytes(tree) for name, tree in planned.resident.items()}
    # 4 blocks of width 128, each with four matrices of 128 x 128 and two of 128 x 512.
    student, fake_score = (4 * rank * (4 * 2 * 128 + 2 * 5 * 128) for rank in (16, 4))
    assert size["ema"] == 4 * student
    adam = size["Adam of generator"], size["Adam of fake_score"]
    assert size["student"] + adam[0] == pytest.approx(12 * student, abs=100)
    assert size["fake_score"] + adam[1] == pytest.approx(12 * fake_score, abs=100)
    teacher = parameter_shapes(build("cogvideox_dit", shapes.get_config().teacher.network.to_dict()))
    assert 2 <= size["teacher"] / count_parameters(teacher) < 2.2
