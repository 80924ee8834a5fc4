import json
import shutil
from types import SimpleNamespace

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dollar_jax import checkpoint
from dollar_jax.importing import UserError
from dollar_jax.models import build

SIZES = {"channels": 2}
PART = {"architecture": "latent_reward", "config": SIZES, "path": "checkpoints", "item": "ema"}


def batches():
    return iter(grain.MapDataset.range(10).batch(2).to_iter_dataset())


@pytest.fixture
def saved(tmp_path):
    """A stage's folder with checkpoints 1 and 2, and the states in them."""
    network = build("latent_reward", SIZES)
    states = {step: {"ema": network.init(jax.random.key(step)), "step": jnp.array(step)} for step in (1, 2)}
    checkpoints, data = checkpoint.Checkpoints(tmp_path, keep=2), batches()
    for step, state in states.items():
        next(data)
        checkpoints.save(step, state, data)
    checkpoints.close()
    checkpoint.write_card(tmp_path, {"role": "student", "transformer": PART})
    return tmp_path, states


def equal(one, other):
    return jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), one, other))


def test_restoring_gives_state_and_data_position(saved):
    folder, states = saved
    checkpoints, data = checkpoint.Checkpoints(folder, keep=2), batches()
    assert checkpoints.latest == 2
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), states[1])
    assert equal(checkpoints.restore(target, data), states[2])
    np.testing.assert_array_equal(next(data), [4, 5])
    checkpoints.close()


def test_a_folder_loads_its_newest_checkpoint_and_a_numbered_one_itself(saved):
    folder, states = saved
    for where, step in ((folder, 2), (folder / "checkpoints/1", 1)):
        card = checkpoint.read_card(where)
        _, params = checkpoint.load_component(where, card["transformer"])
        assert equal(params, states[step]["ema"])


def test_cards_move_with_their_folder(tmp_path):
    card = {"role": "teacher", "vae": {"path": "../vae/checkpoints"}, "tokenizer": {"path": "words"}}
    moved = checkpoint.relocate(card, tmp_path / "a/teacher", tmp_path / "b")
    assert (moved["vae"]["path"], moved["tokenizer"]["path"]) == ("../a/vae/checkpoints", "../a/teacher/words")


def test_what_does_not_fit_is_refused(saved):
    folder, _ = saved
    with pytest.raises(UserError, match="another network"):
        checkpoint.load_component(folder, PART | {"config": {"channels": 3}})
    with pytest.raises(UserError, match="no checkpoint"):
        checkpoint.read_card(folder / "elsewhere")
    with pytest.raises(UserError, match="missing"):
        checkpoint.load_component(folder, PART | {"path": "elsewhere"})
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        checkpoint.read_card(folder)


def test_an_unfinished_checkpoint_is_not_the_newest(saved):
    folder, _ = saved
    (folder / "checkpoints/3.orbax-checkpoint-tmp/state").mkdir(parents=True)
    checkpoints = checkpoint.Checkpoints(folder, keep=2)
    assert checkpoints.latest == 2
    checkpoints.close()


def test_a_full_disk_is_refused_before_anything_is_written(saved, monkeypatch):
    folder, states = saved
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    checkpoints = checkpoint.Checkpoints(folder, keep=2)
    with pytest.raises(UserError, match="the disk is full"):
        checkpoints.save(3, states[2], batches())
    checkpoints.close()
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["1", "2"]


def test_cards_are_readable(tmp_path):
    checkpoint.write_card(tmp_path / "new", {"role": "vae"})
    assert json.loads((tmp_path / "new/config.json").read_text()) == {"role": "vae"}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["config.json"]
