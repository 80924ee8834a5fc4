import io
import json
import struct
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from dollar_jax import metrics
from dollar_jax.errors import UserError


def train(folder, start, stop, every=5, total=20):
    with metrics.Logger(folder, "teacher", total, start, every) as logger:
        for step in range(start, stop):
            logger.log(step, {"loss": jnp.float32(step), "examples": jnp.array([0.0, 1.0, 2.0, 7.0]), "rate": 0.5})


def events(folder):
    for path in sorted(folder.glob("events.out.tfevents*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def test_a_line_averages_the_steps_since_the_line_before(tmp_path):
    train(tmp_path, 0, 20)
    lines = metrics.read(tmp_path)
    assert [line["step"] for line in lines] == [4, 9, 14, 19]
    assert [line["loss"] for line in lines] == [2, 7, 12, 17]
    assert all(line["examples"] == 2.5 and line["rate"] == 0.5 for line in lines)
    assert all(line["seconds_per_step"] > 0 for line in lines)
    assert sorted(line["time"] for line in lines) == [line["time"] for line in lines]


def test_the_last_step_is_written_though_the_window_is_not_full(tmp_path):
    train(tmp_path, 0, 7, total=7)
    assert [(line["step"], line["loss"]) for line in metrics.read(tmp_path)] == [(4, 2), (6, 5.5)]


def test_a_metric_of_some_steps_is_averaged_over_those(tmp_path):
    with metrics.Logger(tmp_path, "student", 4, 0, 4) as logger:
        for step in range(4):
            logger.log(step, {"fake": 1.0} if step % 2 else {"fake": 3.0, "generator": float(step)})
    (line,) = metrics.read(tmp_path)
    assert (line["fake"], line["generator"]) == (2, 1)


@pytest.mark.parametrize(("interrupted", "resumed"), [(13, 10), (10, 10), (20, 5), (20, 0)])
def test_a_resumed_run_leaves_the_file_of_one_never_interrupted(tmp_path, interrupted, resumed):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(whole, 0, 20)
    train(parts, 0, interrupted)
    train(parts, resumed, 20)
    clocks = {"time", "seconds_per_step"}
    strip = [[{k: v for k, v in line.items() if k not in clocks} for line in metrics.read(f)] for f in (whole, parts)]
    assert strip[0] == strip[1]


def test_a_run_resumed_within_a_window_repeats_no_step(tmp_path):
    train(tmp_path, 0, 20)
    train(tmp_path, 14, 20)
    assert [(line["step"], line["loss"]) for line in metrics.read(tmp_path)] == [(4, 2), (9, 7), (14, 14), (19, 17)]


def test_a_line_cut_short_is_dropped(tmp_path):
    train(tmp_path, 0, 10)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 14, "lo')
    train(tmp_path, 10, 20)
    assert [line["step"] for line in metrics.read(tmp_path)] == [4, 9, 14, 19]


def test_what_is_not_finite_is_null_and_the_file_stays_json(tmp_path):
    with metrics.Logger(tmp_path, "teacher", 1, 0, 20) as logger:
        logger.log(0, {"loss": jnp.nan, "rate": 1.0})
    text = (tmp_path / "metrics.jsonl").read_text()
    line = json.loads(text, parse_constant=pytest.fail)
    assert line["loss"] is None
    assert line["rate"] == 1


def test_values_are_fetched_at_the_writes_only(tmp_path, monkeypatch):
    fetched = []
    fetch = metrics.jax.device_get
    monkeypatch.setattr(metrics.jax, "device_get", lambda tree: fetched.append(1) or fetch(tree))
    train(tmp_path, 0, 20)
    assert len(fetched) == 4


def test_seconds_per_step_leaves_the_compilation_out(tmp_path, monkeypatch):
    clock = iter([0.0, 60.0, 64.0, 65.0])  # made, first step done, writes at steps 4 and 9
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: next(clock))
    train(tmp_path, 0, 10)
    assert [line["seconds_per_step"] for line in metrics.read(tmp_path)] == [1.0, 0.2]


def test_without_a_terminal_a_line_every_ten_seconds(tmp_path, monkeypatch, capsys):
    clock = iter([0.0, 2.0, 6.0, 11.0, 17.0, 22.0])
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: next(clock))
    train(tmp_path, 0, 20)
    assert capsys.readouterr().out.splitlines() == [
        "teacher 5/20  loss 2  1 s a step, 15 s left",
        "teacher 15/20  loss 12  1.07 s a step, 5 s left",
        "teacher 20/20  loss 17  1.05 s a step, took 22 s",
    ]


def test_on_a_terminal_a_bar_that_starts_where_the_run_does(tmp_path, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", terminal)
    train(tmp_path, 10, 20)
    assert "teacher:  50%" in terminal.getvalue()
    assert "20/20" in terminal.getvalue()
    assert "loss=17" in terminal.getvalue()


def test_tensorboard_gets_the_scalars_and_hides_those_of_the_interrupted_run(tmp_path):
    train(tmp_path, 10, 20)
    found = list(events(tmp_path))
    scalars = [(e.step, v.tag, v.simple_value) for e in found for v in e.summary.value if v.tag == "loss"]
    assert scalars == [(14, "loss", 12.0), (19, "loss", 17.0)]
    assert [e.step for e in found if e.session_log.status == e.session_log.START] == [10]


def test_videos_are_animated_with_their_captions(tmp_path):
    frames = np.zeros((2, 9, 32, 32, 3), np.uint8)
    frames[0, :, :, :, 0] = 255
    frames[0, 3] = 255
    frames[1, range(9), range(9)] = 255
    with metrics.Logger(tmp_path, "student", 10, 0, 20) as logger:
        logger.videos(4, "samples", frames, ["a red ring", "a blue cross"])
    values = {value.tag: (event.step, value) for event in events(tmp_path) for value in event.summary.value}
    step, value = values["samples"]
    image = Image.open(io.BytesIO(value.image.encoded_image_string))
    assert (step, image.n_frames) == (4, 9)
    assert image.size == (value.image.width, value.image.height) == (2 * 130, 128)
    pixels = np.asarray(image.convert("RGB"))
    assert pixels[64, 64].tolist() == [255, 0, 0]
    assert pixels[64, 200].tolist() == [0, 0, 0]
    assert pixels[2, 200].tolist() == [255, 255, 255]
    image.seek(3)
    assert np.asarray(image.convert("RGB"))[64, 64].tolist() == [255, 255, 255]
    (text,) = [value for tag, (_, value) in values.items() if tag.startswith("samples/captions")]
    assert b"1. a red ring\n2. a blue cross" in text.tensor.string_val[0]


def test_neither_tensorflow_nor_pytorch_is_imported():
    """Each takes seconds of every command."""
    code = "import sys, dollar_jax.metrics; assert not {'tensorflow', 'torch'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("line", ["{", "[]", "3", '{"loss": 1}', "[" * 100_000])
def test_a_damaged_line_is_named(line, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 0}}\n{line}\n{{"step": 2}}\n')
    with pytest.raises(UserError, match=r"metrics.jsonl, line 2 is damaged") as refusal:
        metrics.read(tmp_path)
    assert "\n" not in str(refusal.value)


def test_what_was_measured_is_a_short_line(tmp_path, capsys):
    """Those to be shown, in their order; the file has all."""
    values = {
        f"held_out/{name}": 1.0 for name in ("colour", "clean_db", "frechet", "alignment", "vendi", "hf", "spread")
    }
    with metrics.Logger(tmp_path, "student", 10, 0, 20) as log:
        shown = [f"held_out/{name}" for name in ("reward", "alignment", "frechet", "hf")]
        log.measured(4, values | {"collapse/sharpness": 1.0}, 0.1, shown)
    (line,) = capsys.readouterr().out.splitlines()
    assert line == "student 5/10  held out: alignment 1 frechet 1 hf 1"
    assert metrics.read(tmp_path)[0].keys() >= values.keys()
