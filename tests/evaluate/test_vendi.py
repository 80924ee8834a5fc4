import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dollar_jax.data.video import read_video, write_video
from dollar_jax.errors import UserError
from dollar_jax.evaluate.features.pixels import pixels
from dollar_jax.evaluate.features.thumbnails import thumbnails
from dollar_jax.evaluate.vendi import diversity, diversity_of_folder, vendi


def test_identical_samples_count_once():
    assert vendi(np.full((5, 7), 3.0)) == pytest.approx(1)


def test_orthogonal_samples_count_each_whatever_their_length():
    assert vendi(np.diag([1.0, 2.0, 30.0, 4.0])) == pytest.approx(4)


def test_three_by_three_kernel_by_hand():
    # Two unit vectors with cosine 1/2 and one orthogonal to both: K / 3 has eigenvalues 1/2, 1/6 and 1/3.
    features = np.array([[1, 0, 0], [0.5, np.sqrt(3) / 2, 0], [0, 0, 1]])
    by_hand = np.exp(0.5 * np.log(2) + np.log(6) / 6 + np.log(3) / 3)
    assert by_hand == pytest.approx(2.7495, abs=1e-4)
    assert vendi(features) == pytest.approx(by_hand)


def test_two_samples_half_and_half():
    # Two of one kind and two of another are two kinds, each with probability 1/2.
    assert vendi(np.repeat(np.eye(2), 2, axis=0)) == pytest.approx(2)


def test_diversity_averages_over_key_frames():
    frames = np.ones((2, 3, 9, 4, 4, 3))
    for i in range(3):  # the second prompt's videos differ, by orthogonal pictures, in the middle key frame alone
        frames[1, i, 4] = 0
        frames[1, i, 4, i] = 1
    frames[1, :, 5] = np.random.default_rng(0).random((3, 4, 4, 3))  # not a key frame
    assert diversity(frames, 4, pixels) == pytest.approx([1, (1 + 3 + 1) / 3])


def test_diversity_uses_the_features_it_is_given():
    frames = np.random.default_rng(0).random((1, 5, 3, 4, 4, 3))
    assert diversity(frames, 1, embed=lambda frame: np.eye(len(frame))) == pytest.approx([5])


def test_black_frames_are_one_kind():
    assert vendi(np.zeros((4, 6))) == pytest.approx(1)
    assert vendi(np.array([[0.0, 0], [0, 0], [3, 0], [5, 0]])) == pytest.approx(2)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of SciPy's old names, which the package uses
@pytest.mark.parametrize(("shape", "seed"), [((5, 12), 0), ((7, 3), 1), ((2, 40), 2)])
def test_the_vendi_score_package_agrees(shape, seed):
    from vendi_score.vendi import score_X

    features = np.random.default_rng(seed).normal(size=shape) + 1
    assert vendi(features) == pytest.approx(score_X(features), rel=1e-9)


def test_thumbnails_are_the_package_s_pixels():
    frames = np.random.default_rng(0).integers(0, 256, (2, 48, 80, 3), dtype=np.uint8)
    theirs = [np.array(Image.fromarray(frame).resize((32, 32))).flatten() for frame in frames]
    assert (thumbnails(frames) == np.stack(theirs)).all()


def write(folder, names, frames=9, height=16, width=16):
    """Videos of one grey each; in the one numbered -1 a half is black from frame 4 on."""
    folder.mkdir(exist_ok=True)
    for name in names:
        video = np.full((frames, height, width, 3), 120, np.uint8)
        if name.endswith("-1"):
            video[4:, :, : width // 2] = 0
        write_video(folder / f"{name}.mp4", video, fps=8)
    return folder


def test_a_folder_by_hand(tmp_path):
    folder = write(tmp_path / "v", ["00000-0", "00000-2", "00001-0", "00001-1"])
    result, videos, key_frames = diversity_of_folder(folder, 4, pixels)
    # Frames 0, 4 and 8: alike, then twice a grey square and its half, whose cosine is 1 / sqrt 2.
    shares = np.array([1 + np.sqrt(0.5), 1 - np.sqrt(0.5)]) / 2
    halves = np.exp(-np.sum(shares * np.log(shares)))
    assert result == {0: pytest.approx(1, abs=1e-3), 1: pytest.approx((1 + 2 * halves) / 3, abs=0.02)}
    assert (videos, key_frames) == (2, 3)
    frames = np.stack([read_video(folder / f"00001-{i}.mp4")[0] for i in (0, 1)])
    assert result[1] == pytest.approx(np.mean([vendi(pixels(frames[:, k])) for k in (0, 4, 8)]))


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (["00000-0", "00000-1", "00003-0"], "at least 2; prompt 3 has 1"),
        (["00000-0"], "at least 2; prompt 0 has 1"),
        ([], "has no videos named"),
    ],
)
def test_prompts_with_too_few_videos_are_refused(tmp_path, names, line):
    with pytest.raises(UserError, match=line):
        diversity_of_folder(write(tmp_path / "v", names), 4, pixels)


def test_videos_of_one_prompt_that_differ_in_size_are_refused(tmp_path):
    folder = write(tmp_path / "v", ["00000-0"])
    write(folder, ["00000-1"], width=32)
    with pytest.raises(UserError, match=r"00000-0.mp4 and 00000-1.mp4 differ .*: 9 x 16 x 16 and 9 x 16 x 32"):
        diversity_of_folder(folder, 4, pixels)


def test_the_command_prints_and_writes(tmp_path):
    folder = write(tmp_path / "v", ["00000-0", "00000-1", "00007-0", "00007-1"])
    (tmp_path / "mine.py").write_text("import numpy as np\n\n\ndef embed(frames, weights):\n    return np.eye(2)\n")
    command = [sys.executable, "-m", "dollar_jax.evaluate", "vendi", f"--videos={folder}"]
    mine = ["--features=mine:embed", "--weights=w", "--spacing=4", f"--out={tmp_path / 'o.json'}"]
    environment = {"PYTHONPATH": str(tmp_path)}
    result = subprocess.run([*command, *mine], capture_output=True, text=True, env=environment)
    assert result.stdout == "Vendi (mine:embed): 2.000 ± 0.000 over 2 prompts, 2 videos each, 3 key frames\n"
    numbers = json.loads((tmp_path / "o.json").read_text())
    assert numbers["prompts"] == {"0": pytest.approx(2), "7": pytest.approx(2)}
    assert (numbers["mean"], numbers["key_frames"], numbers["features"]) == (pytest.approx(2), 3, "mine:embed")

    (tmp_path / "folder").mkdir()
    lost = subprocess.run([*command, f"--out={tmp_path / 'folder'}"], capture_output=True, text=True)
    assert lost.stdout.startswith("Vendi (pixels): ")  # hours of work are not lost with it
    assert (lost.returncode, lost.stderr.splitlines()[-1][:6]) == (2, "error:")

    refused = subprocess.run([*command, "--features=inception"], capture_output=True, text=True, env=environment)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: --features=inception needs --weights=FILE: torchvision's inception_v3")
