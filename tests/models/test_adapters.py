"""Adapters: exact where they are zero, equal to merged weights elsewhere, refused where they do not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from merged import merge

from dollar_jax.config import lora as lora_config
from dollar_jax.errors import UserError
from dollar_jax.models import build, lora
from dollar_jax.models.network import count_parameters
from dollar_jax.types import Condition

TARGETS = lora_config().targets
WAN = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "ffn_dim": 20,
    "freq_dim": 8,
    "text_dim": 6,
    "text_length": 3,
}
NETWORKS = {
    "cogvideox_dit": {"num_attention_heads": 2, "attention_head_dim": 16, "time_embed_dim": 8, "text_embed_dim": 6},
    "wan_dit": WAN,
    "wan_experts": WAN | {"boundary": 500.0},
}
EXAMPLES = (
    np.random.default_rng(0).normal(size=(2, 1, 4, 4, 2)).astype(np.float32),
    np.array([900.0, 100.0], np.float32),
    Condition(np.random.default_rng(1).normal(size=(2, 3, 6)).astype(np.float32), np.ones((2, 3), bool)),
)


@pytest.fixture(scope="module", params=NETWORKS)
def adapted(request):
    """A network, its parameters, a fresh adapter, the same with random numbers, and `apply`, jitted."""
    sizes = {"in_channels": 2, "out_channels": 2, "num_layers": 2, **NETWORKS[request.param]}
    network = build(request.param, sizes)
    base = network.init(jax.random.key(0))
    fresh = lora.init(base, lora.adaptable(network, TARGETS), 3, jax.random.key(1))
    rng = np.random.default_rng(2)
    moved = jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape).astype(np.float32), fresh)
    return network, base, fresh, moved, jax.jit(network.apply)


def test_attention_and_mlp_of_every_block_get_an_adapter(adapted):
    network, base, fresh, *_ = adapted
    layers = {path.replace("high/", "").replace("low/", "") for path in lora.adaptable(network, TARGETS)}
    attentions = {path.split("/")[1] for path in layers if path.count("/") == 2}
    wanted = {f"blocks/{name}/{part}" for name in attentions for part in ("query", "key", "value", "project")}
    assert layers == wanted | {"blocks/expand", "blocks/contract"}
    assert attentions in ({"attention"}, {"self_attention", "cross_attention"})
    shapes = [_kernel(base, path).shape for path in lora.adaptable(network, TARGETS)]
    assert count_parameters(fresh) == sum(2 * 3 * (rows + columns) for _, rows, columns in shapes)


def _kernel(base, path):
    for name in path.split("/"):
        base = base[name]
    return base["kernel"]


def test_a_fresh_adapter_changes_no_bit(adapted):
    _, base, fresh, _, apply = adapted
    np.testing.assert_array_equal(apply(base, *EXAMPLES), apply(lora.attach(base, fresh), *EXAMPLES))


def test_the_first_matrix_has_the_variance_of_its_docstring():
    base = {"layer": {"kernel": jnp.zeros((2, 300, 40))}}
    adapter = lora.init(base, ["layer"], 20, jax.random.key(0))["layer"]
    assert adapter["lora_a"].shape == (2, 300, 20)
    assert adapter["lora_b"].shape == (2, 20, 40)
    assert float(adapter["lora_a"].var()) == pytest.approx(1 / 900, rel=0.05)


@pytest.mark.parametrize("alpha", [0.0, 7.0])
def test_merged_is_unmerged(adapted, alpha):
    _, base, _, moved, apply = adapted
    merged = apply(merge(base, moved, alpha), *EXAMPLES)
    np.testing.assert_allclose(apply(lora.attach(base, moved, alpha), *EXAMPLES), merged, atol=2e-6)
    assert np.abs(merged - apply(base, *EXAMPLES)).max() > 1e-2


def test_merging_is_w_plus_a_b_times_alpha_over_rank():
    rng = np.random.default_rng(3)
    w, a, b = (rng.normal(size=shape).astype(np.float32) for shape in ((5, 4), (5, 2), (2, 4)))
    base, adapter = {"layer": {"kernel": w, "bias": b[0]}}, {"layer": {"lora_a": a, "lora_b": b}}
    merged = merge(base, adapter, 6.0)["layer"]
    np.testing.assert_allclose(merged["kernel"], w + 3 * a @ b, rtol=1e-5)
    np.testing.assert_array_equal(merged["bias"], b[0])
    np.testing.assert_allclose(merge(base, adapter)["layer"]["kernel"], w + a @ b, rtol=1e-5)


def test_a_base_of_bfloat16_does_not_swallow_a_small_change():
    """Merged into a weight of 1, a change of 2^-10 would be lost."""
    network = build("wan_dit", {"in_channels": 2, "out_channels": 2, "num_layers": 1, **WAN}, dtype=jnp.bfloat16)
    assert "project" in network.linears
    base = jax.tree.map(lambda x: jnp.ones(x.shape, jnp.bfloat16), jax.eval_shape(network.init, jax.random.key(0)))
    adapter = lora.init(base, ["blocks/expand"], 1, jax.random.key(0))
    adapter = jax.tree.map(lambda x: jnp.full(x.shape, 2.0**-5), adapter)
    merged = merge(base, adapter)["blocks"]["expand"]["kernel"]
    np.testing.assert_array_equal(merged, jnp.ones_like(merged))
    attached = lora.attach(base, adapter)
    assert attached["blocks"]["expand"]["kernel"] is base["blocks"]["expand"]["kernel"]
    assert attached["blocks"]["expand"]["lora_a"].dtype == jnp.float32


def test_what_does_not_fit_is_refused():
    network = build("wan_dit", {"in_channels": 2, "out_channels": 2, "num_layers": 1, **WAN})
    base = jax.eval_shape(network.init, jax.random.key(0))
    with pytest.raises(UserError, match=r"'\*/wrong' matches no layer.*blocks/expand"):
        lora.adaptable(network, ("*/expand", "*/wrong"))
    with pytest.raises(UserError, match=r"lora.rank=21 does not fit blocks/expand, a matrix of 24 x 20"):
        lora.init(base, ["blocks/expand"], 21, jax.random.key(0))
    with pytest.raises(UserError, match=r"no dollar_jax.models.linear.Linear"):
        lora.adaptable(toy.TRANSFORMER, TARGETS)
    fits = lora.init(base, ["blocks/expand"], 2, jax.random.key(0))
    assert lora.fault(base, fits) == ""
    assert "is empty" in lora.fault(base, {})
    turned = {"blocks": {"expand": {"lora_a": fits["blocks"]["expand"]["lora_b"], "lora_b": jnp.zeros((1, 2, 20))}}}
    assert "blocks/expand has (1, 2, 20)" in lora.fault(base, turned)
    assert "no layer with an adapter" in lora.fault(base, {"blocks": {"strange": fits["blocks"]["expand"]}})
