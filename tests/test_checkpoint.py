import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dollar_jax import checkpoint, checksums
from dollar_jax.errors import UserError
from dollar_jax.models import build
from dollar_jax.stage_checkpoints import Checkpoints

SIZES = {"channels": 2}
PART = {"architecture": "latent_reward", "config": SIZES, "path": "checkpoints", "item": "ema"}


def batches():
    return iter(grain.MapDataset.range(10).batch(2).to_iter_dataset())


def open_checkpoints(folder):
    return Checkpoints(folder, keep=2, networks=["ema"])


@pytest.fixture
def saved(tmp_path):
    """A stage's folder with checkpoints 1 and 2, and the states in them."""
    network = build("latent_reward", SIZES)
    states = {step: {"ema": network.init(jax.random.key(step)), "step": jnp.array(step)} for step in (1, 2)}
    checkpoints, data = open_checkpoints(tmp_path), batches()
    for step, state in states.items():
        next(data)
        checkpoints.save(step, state, data, {})
    checkpoints.close()
    checkpoint.write_card(tmp_path, {"role": "student", "transformer": PART})
    return tmp_path, states


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def equal(one, other):
    return jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), one, other))


def test_restoring_gives_state_and_data_position(saved):
    folder, states = saved
    checkpoints, data = open_checkpoints(folder), batches()
    assert checkpoints.latest == 2
    step, state = checkpoints.restore(abstract(states[1]), data)
    assert step == 2
    assert equal(state, states[2])
    np.testing.assert_array_equal(next(data), [4, 5])
    checkpoints.close()


def damage(path, kind):
    content = bytearray(path.read_bytes())
    match kind:
        case "missing":
            path.unlink()
            return
        case "cut":
            content = content[: len(content) // 2]
        case "emptied":
            content = b""
        case "flipped":
            content[len(content) // 2] ^= 1
    path.write_bytes(content)


KINDS = "cut", "emptied", "missing", "flipped"


def files_of(folder):
    """Paths of the files of checkpoint 2: those with a checksum, and the others."""
    path = folder / "checkpoints/2"
    summed = [path / name for name in checksums.listed(path)]
    return summed, sorted({file for file in path.rglob("*") if file.is_file()} - set(summed))


@pytest.mark.parametrize("kind", KINDS)
def test_damage_to_any_file_is_noticed(saved, kind):
    path = saved[0] / "checkpoints/2"
    summed, others = files_of(saved[0])
    assert {file.name for file in others} <= checksums.LATER
    for file in [*summed, path / checksums.NAME]:
        whole = file.read_bytes()
        damage(file, kind)
        assert checksums.fault(path), file
        file.write_bytes(whole)
    assert not checksums.fault(path)


def restore_damaged(folder):
    """Damages a file of checkpoint 2 with a checksum, and each without one, in every way."""
    folder = Path(folder)
    states = {step: {"ema": load(folder, step), "step": jnp.array(step)} for step in (1, 2)}
    summed, others = files_of(folder)
    names = [file.relative_to(folder) for file in (max(summed, key=lambda file: file.stat().st_size), *others)]
    for kind in KINDS:
        needed = 0
        for number, name in enumerate(names):
            copy = folder.with_name(f"{folder.name}-{kind}-{number}")
            shutil.copytree(folder, copy)
            damage(copy / name, kind)
            checkpoints, data = open_checkpoints(copy), batches()
            step, state = checkpoints.restore(abstract(states[1]), data)
            assert equal(state, states[step]), (kind, name)
            np.testing.assert_array_equal(next(data), [2 * step, 2 * step + 1])
            if step == 1:
                needed += 1
                assert sorted(path.name for path in (copy / "checkpoints").iterdir()) == ["1", "2.damaged"]
                checkpoints.save(2, states[2], data, {})  # the run comes by again
            checkpoints.close()
        assert needed >= 2, kind  # what has a checksum, and the checksums


def load(folder, step):
    where = folder / f"checkpoints/{step}"
    return jax.tree.map(jnp.asarray, checkpoint.load_component(where, checkpoint.read_card(where)["transformer"])[1])


def in_another_process(function, folder):
    """When one read fails orbax leaves the others behind, and Python complains much later."""
    result = subprocess.run(
        [sys.executable, "-c", f"import test_checkpoint; test_checkpoint.{function}({str(folder)!r})"],
        cwd=Path(__file__).parent,
        text=True,
        capture_output=True,
        env=os.environ | {"PYTHONPATH": "..:helpers"},
    )
    assert result.returncode == 0, result.stderr
    return result


def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(saved):
    result = in_another_process("restore_damaged", saved[0])
    assert "checkpoints/2 is damaged" in result.stderr
    assert "going on from 1" in result.stderr


def lose_the_position(path):
    (path / "data/metadata").write_text('{"x": 1}')
    for folder in (path / "data", path):
        checksums.write(folder)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lose_the_position, "2 is damaged (KeyError: "),
        (lambda path: (path / "\x1b[2J").touch(), "2 is damaged ( [2J is not one of its files): going on from 1\n"),
    ],
)
def test_a_strangers_checkpoint_is_set_aside_too(saved, capfd, damage, words):
    """Of a position in the data that there is not, or with a name that would move the cursor."""
    damage(saved[0] / "checkpoints/2")
    checkpoints = open_checkpoints(saved[0])
    assert checkpoints.restore(abstract(saved[1][1]), batches())[0] == 1
    checkpoints.close()
    assert words in capfd.readouterr().err


def test_no_checkpoint_that_can_be_read(saved):
    folder, states = saved
    for path in (folder / "checkpoints").glob("*/state"):
        shutil.rmtree(path)
    checkpoints = open_checkpoints(folder)
    with pytest.raises(UserError, match="no checkpoint can be read"):
        checkpoints.restore(abstract(states[1]), batches())
    checkpoints.close()


def test_a_checkpoint_of_another_network_is_refused_and_left_alone(saved):
    folder, states = saved
    checkpoints = open_checkpoints(folder)
    other = build("latent_reward", {"channels": 3})
    with pytest.raises(UserError, match=r"2 has another network: the shape of ema/.*\) there, .*\) here"):
        checkpoints.restore(abstract({**states[1], "ema": other.init(jax.random.key(0))}), batches())
    assert checkpoints.latest == 2
    checkpoints.close()


@pytest.mark.parametrize(("best", "kept"), [("", ["3", "4"]), ("psnr", ["2", "3", "4"]), ("-psnr", ["1", "3", "4"])])
def test_the_last_and_the_best_are_kept(tmp_path, best, kept):
    checkpoints = Checkpoints(tmp_path, keep=2, best=best)
    for step, value in enumerate((1.0, 5.0, 3.0, 4.0), 1):
        checkpoints.save(step, {"x": jnp.ones(2)}, batches(), {"psnr": value})
    checkpoints.close()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == kept


def test_a_metric_that_is_not_there(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, best="-loss")
    with pytest.raises(UserError, match="no metric 'loss'; there are psnr"):
        checkpoints.save(1, {"x": jnp.ones(2)}, batches(), {"psnr": 1.0})
    checkpoints.close()


def test_a_folder_loads_its_newest_checkpoint_and_a_numbered_one_itself(saved):
    folder, states = saved
    for where, step in ((folder, 2), (folder / "checkpoints/1", 1)):
        card = checkpoint.read_card(where)
        _, params = checkpoint.load_component(where, card["transformer"])
        assert equal(params, states[step]["ema"])


def test_a_folder_gets_its_own_copy_of_what_it_shares(tmp_path):
    """Without room of its own; and a new one, when the other has changed."""
    teacher, student, card = tmp_path / "teacher", tmp_path / "student", {"vae": PART | {"path": "vae", "item": ""}}
    for seed in (0, 1):
        params = build("latent_reward", SIZES).init(jax.random.key(seed))
        checkpoint.save_params(teacher / "vae", params)
        assert checkpoint.bring(card, teacher, student, ("vae",)) == card
        assert equal(checkpoint.load_component(student, card["vae"])[1], params)
        file = next(path for path in (teacher / "vae").rglob("*") if path.is_file())
        assert file.samefile(student / file.relative_to(teacher))
    shutil.rmtree(teacher)
    assert equal(checkpoint.load_component(student, card["vae"])[1], params)


def test_of_what_is_in_training_one_item_is_shared(saved):
    folder, states = saved
    brought = checkpoint.bring({"vae": PART}, folder, folder / "new", ("vae",))
    assert brought["vae"] == PART | {"path": "vae", "item": ""}
    assert equal(checkpoint.load_component(folder / "new", brought["vae"])[1], states[max(states)][PART["item"]])
    assert not (folder / "new" / "vae" / "state").exists()


def load_network(folder):
    checkpoint.load_component(folder, PART)


def bring_network(folder):
    checkpoint.bring({"vae": PART}, folder, folder / "new", ("vae",))


def digest_network(folder):
    checkpoint.digest(folder, PART)


@pytest.mark.parametrize("command", [load_network, bring_network, digest_network])
@pytest.mark.parametrize("link", ["checkpoints/2", "checkpoints/2/ema"])
def test_a_numbered_checkpoint_and_its_item_do_not_lead_out(saved, command, link):
    folder, own = saved[0], saved[0].parent / f"{saved[0].name}-own"
    os.rename(folder / link, own)
    (folder / link).symlink_to(own)
    with pytest.raises(UserError, match="outside itself"):
        command(folder)
    assert not (folder / "new").exists()


def rewrite(file, change):
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


@pytest.mark.parametrize("size", [4, 5])
def test_checksums_tell_nothing_about_files_elsewhere(tmp_path, size):
    """Neither whether they exist, nor their sizes."""
    (tmp_path / "secret").write_text("mine.")
    (tmp_path / "C").mkdir()
    names = "../secret", "item/../../secret"
    (tmp_path / "C" / checksums.NAME).write_text(json.dumps({"files": {name: [size, "00"] for name in names}}))
    for item in ("", "item"):
        assert checksums.fault(tmp_path / "C", item).endswith("secret is missing")


def test_pipes_devices_and_huge_files_in_a_checkpoint_are_not_read(saved):
    path = saved[0] / "checkpoints/2"
    os.mkfifo(path / "ema/commit_success.txt.pipe")
    names = set(checksums.listed(path)) | {"ema/commit_success.txt.pipe"}
    assert checksums.strays(path, names) == "ema/commit_success.txt.pipe is no regular file"
    (path / checksums.NAME).unlink()
    (path / checksums.NAME).symlink_to("/dev/zero")
    with pytest.raises(UserError, match="outside itself"):
        checksums.listed(path)
    (path / checksums.NAME).unlink()
    os.mkfifo(path / checksums.NAME)
    with pytest.raises(UserError, match="missing"):
        checksums.listed(path)
    (saved[0] / "config.json").write_text("{}")
    os.truncate(saved[0] / "config.json", 20 * 2**30)  # takes no room on the disk
    with pytest.raises(UserError, match=r"config\.json has 21,475 MB"):
        checkpoint.read_card(saved[0])


DAMAGES = {
    "no description": lambda path: (path / "_METADATA").unlink(),
    "description": lambda path: (path / "_METADATA").write_text("[]"),
    "deep description": lambda path: (path / "_METADATA").write_text('{"tree_metadata":' + "[" * 99_999),
    "strings": lambda path: rewrite(
        path / "_METADATA", lambda x: json.loads(json.dumps(x).replace("np.ndarray", "string"))
    ),
    "array": lambda path: next(path.rglob(".zarray")).write_text("x"),
    "no numbers": lambda path: next(path.glob("*/0*")).unlink(),
    "cut off": lambda path: next(path.glob("*/0*")).write_bytes(b"x"),
    "bomb": lambda path: rewrite(
        next(path.rglob(".zarray")),
        lambda x: x | {"chunks": [10**12 for _ in x["chunks"]], "compressor": {"id": "zlib"}},
    ),
}


def open_damaged(folder):
    part, path = PART | {"path": "network", "item": ""}, Path(folder, "network")
    for name, damage in DAMAGES.items():
        checkpoint.save_params(path, build("latent_reward", SIZES).init(jax.random.key(0)))
        damage(path)
        checksums.write(path)
        for opened in (checkpoint.load_component, checkpoint.open_component):
            with pytest.raises(UserError, match="is damaged") as refusal:
                jax.tree.map(lambda x: x.read(), opened(folder, part))
            assert "\n" not in str(refusal.value), name


def test_what_orbax_cannot_read_is_one_line(tmp_path):
    """The checksums are right: whoever can change a checkpoint can change them."""
    in_another_process("open_damaged", tmp_path)


def test_a_stage_does_not_go_on_from_chunks_larger_than_their_array(saved, monkeypatch):
    folder, states = saved
    checkpoints = open_checkpoints(folder)
    metadata = checkpoints._manager.item_metadata(2)
    swollen = metadata["ema"]
    storage = jax.tree.leaves(swollen)[0].storage
    object.__setattr__(storage, "chunk_shape", tuple(10**12 for _ in storage.chunk_shape))
    monkeypatch.setattr(checkpoints._manager, "item_metadata", lambda step: metadata)
    with pytest.raises(UserError, match="chunks larger than itself"):
        checkpoints.restore(abstract(states[1]), batches())
    checkpoints.close()


def test_only_plain_digits_number_a_checkpoint(saved):
    (saved[0] / "checkpoints/\N{SUPERSCRIPT TWO}").mkdir()
    load_network(saved[0])


def test_what_does_not_fit_is_refused(saved):
    folder, _ = saved
    with pytest.raises(UserError, match="another network"):
        checkpoint.load_component(folder, PART | {"config": {"channels": 3}})
    with pytest.raises(UserError, match="no checkpoint"):
        checkpoint.read_card(folder / "elsewhere")
    with pytest.raises(UserError, match="missing"):
        checkpoint.load_component(folder, PART | {"path": "elsewhere"})
    with pytest.raises(UserError, match="holds no 'student', but 'data', 'ema', 'state'"):
        checkpoint.load_component(folder, PART | {"item": "student"})
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        checkpoint.read_card(folder)


def test_an_unfinished_checkpoint_is_not_the_newest(saved):
    folder, _ = saved
    (folder / "checkpoints/3.orbax-checkpoint-tmp/state").mkdir(parents=True)
    checkpoints = open_checkpoints(folder)
    assert checkpoints.latest == 2
    checkpoints.close()


def test_a_full_disk_is_refused_before_anything_is_written(saved, monkeypatch):
    folder, states = saved
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    checkpoints = open_checkpoints(folder)
    with pytest.raises(UserError, match="the disk is full"):
        checkpoints.save(3, states[2], batches(), {})
    checkpoints.close()
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["1", "2"]


def test_a_slow_disk_has_time(tmp_path, monkeypatch):
    """Each time that Orbax looks at the clock while it writes, half an hour has passed."""
    clock = itertools.count(0, 1800)
    monkeypatch.setattr("orbax.checkpoint._src.futures.future.time", SimpleNamespace(time=lambda: next(clock)))
    checkpoints = open_checkpoints(tmp_path)
    checkpoints.save(1, {"ema": {"w": jnp.ones(2)}, "step": jnp.array(1)}, batches(), {})
    checkpoints.close()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]
    assert next(clock) > 1800


def test_cards_are_readable(tmp_path):
    checkpoint.write_card(tmp_path / "new", {"role": "vae"})
    assert json.loads((tmp_path / "new/config.json").read_text()) == {"role": "vae"}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["config.json"]
