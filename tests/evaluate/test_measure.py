"""Metrics by name: how they are made, what they must declare and return, and what they may share."""

import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from dollar_jax.errors import UserError
from dollar_jax.evaluate.measure import Clips, Column, Metrics


def clips(*brightness):
    """A video for each number, of two frames of that grey, in 0..240, and its half."""
    pixels = np.array([[[[[grey] * 3]], [[[grey // 2] * 3]]] for grey in brightness], np.uint8)
    return Clips(pixels, np.zeros((len(pixels), 1, 1, 1, 1), np.float32), [""] * len(pixels))


def grey(clips: Clips, power=1) -> float:
    return float(np.mean(clips.frames[:, 0] ** power))


def lighter(clips: Clips, data: Clips) -> dict[str, float]:
    return {"lighter": clips.frames.mean() - data.frames.mean(), "data": data.frames.mean()}


class Change:
    """The first frame less the second, relative to data's, `scale` times."""

    columns = (Column("change", "Change", "", better="near", ideal=1.0),)
    least_clips = 3

    def __init__(self, scale=1):
        if scale <= 0:
            raise UserError(f"scale = {scale}: a positive number")
        self._scale = scale

    def fit(self, data):
        real = -np.diff(data.frames, axis=1).mean()
        return lambda clips: self._scale * -np.diff(clips.frames, axis=1).mean() / real


grey.columns = (Column("grey", "Grey", "", better="higher"),)
lighter.columns = (Column("lighter", "Lighter", ""), Column("data", "Data", "", shown=False))


def undeclared(clips: Clips) -> float:
    return 0.0


class Unfitted:
    columns = grey.columns


def names(clips: Clips) -> dict[str, float]:
    return {"grey": 1.0, "gray": 1.0}


def words(clips: Clips):
    return "grey"


def nothing(clips: Clips) -> dict[str, float | None]:
    return {"lighter": None, "data": 2}


names.columns = words.columns = grey.columns
nothing.columns = lighter.columns


def taken(clips: Clips) -> float:
    return 0.0


taken.columns = (Column("reward", "Reward", ""),)


def mine(*named, **options):
    return {f"test_measure:{name}": options for name in named}


def test_functions_and_classes_measure_by_hand():
    metrics = Metrics(mine("grey", power=2) | mine("lighter") | mine("Change", scale=10))
    assert [column.key for column in metrics.columns] == ["grey", "lighter", "data", "change"]
    assert list(metrics.least_clips.values()) == [0, 1, 3]
    values = metrics.fit(clips(120, 120, 120))(clips(60, 180))
    # Of 120 the mean of both frames is 90, and the change 60; of 60 and 180 both are the same. White is 255.
    wanted = {"grey": (60**2 + 180**2) / 2 / 255**2, "lighter": 0, "data": 90 / 255, "change": 10}
    assert values == pytest.approx(wanted)
    assert all(type(value) is float for value in values.values())


@pytest.mark.parametrize(
    ("named", "fault"),
    [
        ({"nothing": {}}, "nothing: there is no module 'dollar_jax.evaluate.metrics.nothing'"),
        (mine("missing"), "the module test_measure has no function 'missing'"),
        (mine("grey", exponent=2), "metric test_measure:grey: its options do not fit .*'exponent'"),
        (mine("lighter", data=3), "metric test_measure:lighter: its options do not fit"),
        (mine("Change", scale=-1), "metric test_measure:Change: scale = -1: a positive number"),
        (mine("Change", scale="x"), "metric test_measure:Change: '<=' not supported"),
        (mine("undeclared"), "metric test_measure:undeclared declares no columns"),
        (mine("Unfitted"), r"metric test_measure:Unfitted is a class without fit\(data\)"),
        (mine("grey", "words"), "metric test_measure:words: its key grey is that of metric test_measure:grey too"),
        (mine("taken"), "metric test_measure:taken: its key reward is taken"),
        ({"frechet": {"components": -1}}, "metric frechet: components = -1"),
        ({"vendi": {"key_frames": 1}}, "metric vendi: key_frames = 1"),
        ({"vendi": {"features": "inception"}}, "metric vendi: .*weights"),
    ],
)
def test_what_cannot_be_made_is_one_line(named, fault):
    with pytest.raises(UserError, match=fault) as refusal:
        Metrics(named)
    assert "\n" not in str(refusal.value)


def test_a_value_may_be_unknown():
    values = Metrics(mine("nothing")).fit(None)(clips(120))
    assert values == pytest.approx({"lighter": np.nan, "data": 2}, nan_ok=True)
    assert all(type(value) is float for value in values.values())


@pytest.mark.parametrize("name", ["names", "words"])
def test_what_was_not_declared_is_not_taken(name):
    measure = Metrics(mine(name)).fit(clips(120))
    with pytest.raises(UserError, match=f"test_measure:{name} returned .*wanted a number for each of grey"):
        measure(clips(120))


@pytest.mark.parametrize(("fields", "fault"), [({"key": "a b"}, "'a b'"), ({"better": "best"}, "'best'")])
def test_a_column_is_declared_in_terms_that_there_are(fields, fault):
    with pytest.raises(UserError, match=fault):
        Column(**{"key": "a", "label": "A", "meaning": ""} | fields)


@pytest.mark.parametrize(
    ("better", "ideal", "good"),
    [("higher", None, "higher is better"), ("near", None, "near data"), ("near", 0.5, "near 0.5"), ("", None, "")],
)
def test_the_direction_in_words(better, ideal, good):
    assert Column("a", "A", "", better=better, ideal=ideal).good == good


def test_what_metrics_share_is_made_once_for_the_same_clips():
    made = []

    def derive(clips, factor):
        made.append(factor)
        return factor * len(clips.captions)

    one, other = clips(120), clips(120, 120)
    assert [one.once(derive, 2), one.once(derive, 2), one.once(derive, 3), other.once(derive, 2)] == [2, 2, 3, 4]
    assert made == [2, 3, 2]


def test_the_metric_of_the_guide_by_hand(monkeypatch):
    guide = (Path(__file__).parents[2] / "docs/evaluate.md").read_text()
    (code,) = re.findall(r"^```python\n(import numpy.*?)^```", guide, re.M | re.S)
    module = ModuleType("my_metrics")
    exec(code, module.__dict__)
    monkeypatch.setitem(sys.modules, "my_metrics", module)
    # From 120 to 60 in data, from 240 to 120 here.
    assert Metrics({"my_metrics:Jumps": {"order": 1}}).fit(clips(120))(clips(240)) == pytest.approx({"jumps": 2})
    with pytest.raises(UserError, match="metric my_metrics:Jumps: order = 0: 1 or more"):
        Metrics({"my_metrics:Jumps": {"order": 0}})


def test_vendi_by_features_that_want_whole_numbers():
    """Thumbnails are made of 8-bit frames: of two opposite halves, one lit each, two videos that share nothing."""
    pixels = np.zeros((2, 2, 32, 32, 3), np.uint8)
    pixels[0, :, :16], pixels[1, :, 16:] = 255, 255
    video = Clips(pixels, np.zeros((2, 1, 1, 1, 1), np.float32), ["a", "a"])
    for features in ("pixels", "thumbnails"):
        values = Metrics({"vendi": {"key_frames": 2, "features": features}}).fit(video)(video)
        key = {"pixels": "vendi", "thumbnails": "vendi_thumbnails"}[features]
        assert values == pytest.approx({key: 2, f"{key}_std": 0})


def level(frames):
    """The grey of the left half, and of the right half."""
    return np.stack([frames[:, :, half].mean((1, 2, 3)) for half in (slice(2), slice(2, None))], axis=1)


def test_a_frechet_distance_of_features_by_hand():
    """Of one component: the features vary in the left half of the second frame alone, by the clips' numbers."""

    def video(numbers):
        pixels = np.zeros((len(numbers), 3, 2, 4, 3), np.uint8)
        pixels[:, 2, :, :2] = np.array(numbers)[:, None, None, None]
        pixels[:, 1] = np.random.default_rng(0).integers(256, size=pixels[:, 1].shape)  # no key frame
        return Clips(pixels, np.zeros((len(numbers), 1, 1, 1, 1), np.float32), [""] * len(numbers))

    numbers = [0, 10, 20, 30]
    options = {"components": 1, "features": "test_measure:level", "key_frames": 2}
    metrics = Metrics({"frechet": options, "dollar_jax.evaluate.metrics.frechet:Frechet": {}})
    assert [column.key for column in metrics.columns] == ["frechet_level", "frechet"]
    assert metrics.columns[0].label == "Fréchet distance (level)"
    # The statistics are of the second half, 20 and 30: mean 25 and variance 50.
    measure = Metrics({"frechet": options}).fit(video(numbers))
    assert measure(video([20, 30])) == pytest.approx({"frechet_level": 0}, abs=1e-9)
    assert measure(video([120, 130])) == pytest.approx({"frechet_level": 100 * 100**2 / 50})
    with pytest.raises(UserError, match="metric frechet: key_frames = 0"):
        Metrics({"frechet": options | {"key_frames": 0}})
