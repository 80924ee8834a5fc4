import numpy as np
import pytest
from scipy.ndimage import uniform_filter

from dollar_jax.data.pairs import ATTRIBUTES, PairsWorld
from dollar_jax.data.shapes import ShapesWorld
from dollar_jax.errors import UserError
from dollar_jax.rewards.pairs import agreement, read


@pytest.fixture(scope="module")
def clips():
    examples = list(PairsWorld(48, seed=7))
    video = np.stack([clip["video"] for clip in examples]).astype(np.float32) / 255
    return video, [clip["caption"] for clip in examples]


@pytest.fixture(scope="module")
def reading(clips):
    return read(clips[0])


def noise(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def test_every_clip_is_read_right(clips, reading):
    assert all(right.all() for right in agreement(reading, clips[1]).values())


@pytest.mark.parametrize(
    "corrupt",
    [
        lambda video: video + 0.05 * noise(video.shape),
        lambda video: uniform_filter(video, (0, 0, 3, 3, 0)),
        lambda video: video + np.float32([0.05, -0.02, 0]),
    ],
    ids=["noise", "blur", "tint"],
)
def test_every_corrupted_clip_is_read_right(clips, corrupt):
    video, captions = (x[:24] for x in clips)
    assert all(right.all() for right in agreement(read(corrupt(video)), captions).values())


def test_only_a_valid_rendering_is_clean(clips, reading):
    video, _ = clips
    assert reading.clean_db.min() > 50
    assert read(video[:8] + 0.1 * noise(video[:8].shape)).clean_db.max() < 22
    turned = np.rot90(video[:8], axes=(2, 3))  # still a valid rendering, of another caption
    assert read(turned).clean_db.min() > 50


def test_each_attribute_is_scored_alone(clips, reading):
    _, captions = clips
    names = {indices: caption for caption, indices in ATTRIBUTES.items()}

    def changed(change):
        return [names[change(*ATTRIBUTES[caption])] for caption in captions]

    unused = {(c, d): next(x for x in range(4) if x not in (c, d)) for c in range(4) for d in range(4)}
    wrong = {
        "colour": changed(lambda c, s, d, t, r, m: (unused[c, d], s, d, t, r, m)),
        "shape": changed(lambda c, s, d, t, r, m: (c, (s + 1) % 3, d, t, r, m)),
        "relation": changed(lambda c, s, d, t, r, m: (c, s, d, t, 1 - r, m)),
        "motion": changed(lambda c, s, d, t, r, m: (c, s, d, t, r, (m + 1) % 3)),
    }
    spoilt = {name: {name, "all"} for name in wrong}
    spoilt["colour"] |= {"shape", "relation"}  # a shape and a side belong to a colour
    for name, others in wrong.items():
        agrees = agreement(reading, others)
        assert {other: right.mean() for other, right in agrees.items()} == {
            other: float(other not in spoilt[name]) for other in agrees
        }


def test_shapes_belong_to_their_colours(clips, reading):
    """A caption that swaps the shapes, or the sides, is another one."""
    _, captions = clips
    names = {indices: caption for caption, indices in ATTRIBUTES.items()}
    for index, caption in enumerate(captions):
        c, s, d, t, r, m = ATTRIBUTES[caption]
        one = type(reading)(*(x[index : index + 1] for x in reading))
        sides = agreement(one, [names[d, t, c, s, r, m]])
        assert sides["shape"].all()
        assert not sides["relation"].any()
        shapes = agreement(one, [names[c, t, d, s, r, m]])
        assert shapes["shape"].all() == (s == t)
        assert shapes["relation"].all()


def test_what_is_no_pair_is_not_found():
    one = np.stack([clip["video"] for clip in ShapesWorld(8, 1, 17, 48)]) / np.float32(255)
    blobs = 4 * uniform_filter(np.random.default_rng(0).uniform(size=(8, 17, 48, 48, 3)), (0, 3, 9, 9, 0)) - 1.5
    for video in (one, np.clip(blobs, 0, 1).astype(np.float32), 0.4 + 0.1 * noise((2, 17, 48, 48, 3))):
        assert not read(video).found.any()


def test_a_strange_caption_is_refused(reading):
    with pytest.raises(UserError, match="world of pairs"):
        agreement(reading, ["a red ring moving left"] * len(reading.found))
