"""Names of machines, and what follows from their data sheets."""

import jax
import pytest

from dollar_jax.errors import UserError
from dollar_jax.plan.chips import CHIPS, GB
from dollar_jax.plan.topology import make_devices, parse


def test_parse():
    assert parse("v5p:2x2x2") == (CHIPS["v5p"], (2, 2, 2))
    assert parse("h200:8") == (CHIPS["h200"], (8,))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("v9:2x2", "no chip 'v9'; there are v5e, v5p"),
        ("v5p", "wanted a form like v5p:2x2x2"),
        ("v5p:8", "wanted a form like v5p:2x2x2"),
        ("v5p:2x0x2", "wanted a form like"),
        ("h200:2x4", "wanted a form like h200:8"),
        ("", "no chip ''"),
    ],
)
def test_what_is_no_machine(text, said):
    with pytest.raises(UserError, match=said):
        parse(text)


def test_slices_that_do_not_exist():
    pytest.importorskip("libtpu")
    with pytest.raises(UserError, match=r"--topology=v6e:3x5: .*not divisible"):
        make_devices("v6e:3x5")
    assert len(make_devices("v5e:1x1")) == 1
    assert len(make_devices("v5p:2x2x2")) == 8


def test_without_libtpu(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "jax\[tpu\]"'):
        make_devices("v5p:2x2x2")


def test_gpus_where_their_compiler_is_installed():
    pytest.importorskip("jax_cuda12_plugin")
    for chip in ("a100-80g", "h100", "h200", "b200"):
        devices = make_devices(f"{chip}:8")
        assert [device.platform for device in devices] == ["gpu"] * 8


def test_too_few_cpu_devices(monkeypatch):
    monkeypatch.setattr("dollar_jax.plan.gpus.PLUGINS", ())
    assert jax.device_count() == 1  # and now it cannot be changed
    with pytest.raises(UserError, match="jax runs with 1 CPU devices already, not 8"):
        make_devices("h200:8")


@pytest.mark.parametrize(
    ("topology", "links"),
    [
        ("v5p:2x2x2", 300 * GB),  # a mesh: one port each way along each side
        ("v5p:4x4x4", 600 * GB),  # a torus: 4800 Gbit/s, as in the data sheet
        ("v5p:2x2x4", 300 * GB),  # closes in whole cubes of 4 only
        ("v5p:2x2x1", 200 * GB),
        ("v5e:16x16", 200 * GB),  # 1600 Gbit/s
        ("v5e:8x16", 150 * GB),
        ("v6e:4x4", 200 * GB),
        ("h200:8", 450 * GB),
    ],
)
def test_links(topology, links):
    chip, sides = parse(topology)
    assert chip.link_bandwidth(sides) == links
