"""The same numbers on every mesh."""

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import one_iteration
import pytest
from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from dollar_jax import sharding
from dollar_jax.errors import UserError

SCRIPT = Path(__file__).parent / "helpers" / "one_iteration.py"


def iterations(network, file, processes):
    """Everything after an iteration on one device, and on a mesh that splits videos, parameters and tokens, whose
    devices are in this number of processes.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={8 // processes}"
    with ExitStack() as stack:
        children = [
            subprocess.Popen(
                [sys.executable, SCRIPT, network, file, "2,2,2", address, str(processes), str(process)],
                # Both compile the same, and would share the folder.
                env=os.environ | {"XLA_FLAGS": flags, "JAX_COMPILATION_CACHE_DIR": ""},
                stderr=subprocess.PIPE,
                text=True,
            )
            for process in range(processes)
        ]
        for child in children:
            stack.enter_context(child)
        mesh = sharding.make_mesh(ConfigDict(dict.fromkeys(sharding.AXES, 1)), jax.devices()[:1])
        with jax.set_mesh(mesh):
            alone = one_iteration.iterate(network, mesh)
        for child in children:
            _, errors = child.communicate()
            assert child.returncode == 0, errors
    return alone, dict(np.load(file))


def differences(one, other):
    """The largest difference in each array, relative to its largest entry."""
    assert one.keys() == other.keys()
    return {name: np.abs(one[name] - other[name]).max() / (np.abs(one[name]).max() or 1) for name in one}


@pytest.mark.parametrize(("network", "processes", "tolerance"), [("dit", 1, 1e-5), ("toy", 2, 3e-5)])
def test_an_iteration_on_a_mesh_is_that_on_one_device(network, processes, tolerance, tmp_path):
    """A transformer takes half a minute to compile for a mesh; several processes run what one of them runs.

    The toy's latents have more channels, and the reward model's gradient more terms to round, by 2e-5 in its square.
    """
    found = differences(*iterations(network, tmp_path / "on_mesh.npz", processes))
    worst = max(found.items(), key=lambda item: item[1])
    assert worst[1] < tolerance, worst


@dataclass(frozen=True)
class Device:
    id: int
    process_index: int
    platform: str = "cpu"
    device_kind: str = "none"


def mesh_of(data, fsdp, context, processes=1):
    """A mesh of devices that do not exist, in the order of their processes."""
    count = data * fsdp * context
    devices = np.array([Device(i, i * processes // count) for i in range(count)], object)
    return Mesh(devices.reshape(data, fsdp, context), sharding.AXES)


@pytest.mark.parametrize(
    ("sizes", "processes", "shares"),
    [
        ((2, 4, 1), 2, [(0, 2), (1, 2)]),
        ((1, 2, 4), 2, [(0, 2), (1, 2)]),
        ((1, 1, 8), 2, [(0, 1), (0, 1)]),  # both hold the same videos
        ((1, 2, 4), 4, [(0, 2), (0, 2), (1, 2), (1, 2)]),
    ],
)
def test_processes_read_what_their_devices_need(sizes, processes, shares, monkeypatch):
    for process, share in enumerate(shares):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        assert sharding.data_share(mesh_of(*sizes, processes)) == share


def test_a_mesh_that_cuts_across_hosts(monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    with pytest.raises(UserError, match="splits the devices of a host unevenly"):
        sharding.data_share(mesh_of(1, 4, 3, processes=3))


@pytest.mark.parametrize("sizes", [(1, 2, 1), (3, -1, 1), (-1, -1, 1), (0, 1, 1), (1, 1, 2)])
def test_a_mesh_that_does_not_divide_the_devices(sizes):
    with pytest.raises(UserError, match="does not divide 4 devices"):
        sharding.make_mesh(ConfigDict(dict(zip(sharding.AXES, sizes, strict=True))), jax.devices() * 4)


def test_a_batch_that_does_not_divide():
    sharding.check_batch(24, mesh_of(2, 4, 2), pieces=3)
    with pytest.raises(
        UserError, match="batch_size 20 does not divide over data x fsdp = 8 devices: give a multiple of 8"
    ):
        sharding.check_batch(20, mesh_of(2, 4, 2))
    with pytest.raises(UserError, match="and accumulate = 3: give a multiple of 24"):
        sharding.check_batch(32, mesh_of(2, 4, 2), pieces=3)


def test_a_batch_for_all_devices():
    assert sharding.even_batch(4) == 4
    with jax.sharding.use_abstract_mesh(AbstractMesh((2, 4, 2), sharding.AXES)):
        assert [sharding.even_batch(size) for size in (1, 4, 8, 9)] == [8, 8, 8, 16]


def test_parameters_and_what_follows_them_are_split():
    mesh = mesh_of(2, 4, 2)
    params = {
        "blocks": {"expand": {"kernel": jnp.ones((3, 8, 5)), "bias": jnp.ones((3, 8))}},
        "both": {"kernel": jnp.ones((8, 4))},
        "odd": {"kernel": jnp.ones((6, 8))},
        "none": {"kernel": jnp.ones((6, 6))},
        "convolution": {"kernel": jnp.ones((3, 3, 8, 8))},
        "decoder": {"shortcut": {"kernel": jnp.ones((8, 8))}},
    }
    specs = {"params": params, "optimizer": (params,)}
    specs = jax.tree.map(lambda x: x.spec, sharding.shard(specs, mesh))
    for tree in (specs["params"], specs["optimizer"][0]):
        assert tree["blocks"]["expand"] == {"kernel": P(None, "fsdp", None), "bias": P()}
        assert tree["both"]["kernel"] == P("fsdp", None)  # the first of two that it divides
        assert tree["odd"]["kernel"] == P(None, "fsdp")  # 4 does not divide 6
        assert tree["none"]["kernel"] == P(None, None)
        assert tree["convolution"]["kernel"] == P()
        assert not any(tree["decoder"]["shortcut"]["kernel"])


def test_what_does_not_divide_stays_whole():
    mesh = mesh_of(2, 4, 2)
    assert sharding.fit((8, 6, 5), (sharding.BATCH, "context"), mesh) == P(sharding.BATCH, "context")
    assert sharding.fit((4, 5, 5), (sharding.BATCH, "context"), mesh) == P(None, None)
    assert sharding.fit((4, 5), (), mesh) == P()


def test_each_device_decodes_its_own_videos():
    """A VAE stays whole: were only its small matrices split, the compiler would gather videos."""
    script = SCRIPT.with_name("decode_on_mesh.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


def test_rows_one_by_one():
    seen = []

    def function(x):
        seen.append(x.shape)
        return x.sum(1)

    x = np.arange(24).reshape(4, 3, 2)
    np.testing.assert_array_equal(jax.jit(lambda x: sharding.one_by_one(function, x))(x), x.sum(1))
    assert set(seen) == {(1, 3, 2)}


def test_thinning_takes_from_every_share():
    np.testing.assert_array_equal(sharding.thin(np.arange(12), 3, 6), [0, 1, 4, 5, 8, 9])
    np.testing.assert_array_equal(sharding.thin(np.arange(12), 1, 5), np.arange(5))
