"""Transformers that are told where a step ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_roles import DIT, WAN

from dollar_jax.errors import UserError
from dollar_jax.models import build
from dollar_jax.models.flow_map import told_of_targets, with_targets
from dollar_jax.types import Condition


@pytest.mark.parametrize(("architecture", "config"), [("cogvideox_dit", DIT), ("wan_dit", WAN)])
def test_a_flow_map_begins_as_its_teacher_where_a_step_leads_nowhere(architecture, config):
    teacher, student = build(architecture, config), build(architecture, told_of_targets(config))
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(teacher.init, jax.random.key(0))
    params = jax.tree.map(lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype), shapes)
    begun = with_targets(params)
    wanted = jax.eval_shape(student.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, begun) == jax.tree.map(jnp.shape, wanted)
    latents = jnp.asarray(rng.normal(size=(2, 3, 4, 6, 4)), jnp.float32)
    condition = Condition(jnp.asarray(rng.normal(size=(2, 5, 8)), jnp.float32), jnp.ones((2, 5), bool))
    times = jnp.array([300.0, 900.0])
    own = teacher.apply(params, latents, times, condition)
    np.testing.assert_allclose(student.apply(begun, latents, times, condition, times), own, rtol=1e-4, atol=1e-4)
    assert float(jnp.abs(student.apply(begun, latents, times, condition, times - 250) - own).max()) > 1e-2


def test_a_teacher_without_an_embedding_of_time_is_refused():
    with pytest.raises(UserError, match=r"generator\.flow_map copies .* it has no time_expand and time_project"):
        with_targets({"kernel": jnp.ones(3)})
