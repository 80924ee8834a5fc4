import numpy as np
import pytest

from dollar_jax.data.pairs import ATTRIBUTES, CAPTIONS, DISTANCE, SIZE, TRAVEL, PairsWorld, attributes, some_captions
from dollar_jax.errors import UserError
from dollar_jax.rewards.pairs import read


def test_captions_name_two_colours_two_shapes_a_relation_and_a_motion():
    assert len(set(CAPTIONS)) == len(CAPTIONS) == 4 * 3 * 3 * 3 * 2 * 3
    assert "a red ring left of a blue square moving apart" in CAPTIONS
    colours = attributes(CAPTIONS)[:, [0, 2]]
    assert (colours[:, 0] != colours[:, 1]).all()
    assert len(set(ATTRIBUTES.values())) == len(CAPTIONS)
    with pytest.raises(UserError, match="'a red ring' is not a caption of the world of pairs"):
        attributes(["a red ring"])


def test_a_clip_is_a_function_of_seed_and_number():
    world, again, other = PairsWorld(3, 1), PairsWorld(3, 1), PairsWorld(3, 2)
    assert world[0]["video"].shape == (17, 48, 48, 3)
    for clip, same, another in zip(world, again, other, strict=True):
        assert clip["caption"] == same["caption"]
        np.testing.assert_array_equal(clip["video"], same["video"])
        assert not np.array_equal(clip["video"], another["video"])


def test_the_captions_of_prompts_are_some_of_all():
    some = some_captions(72)
    assert len(set(some)) == 72
    assert set(some) < set(CAPTIONS)
    assert some == some_captions(648)[:72]
    told = attributes(some)
    assert np.bincount(told[:, 4]).tolist() == [36, 36]
    assert np.bincount(told[:, 5]).tolist() == [24, 24, 24]
    assert np.bincount(told[:, 0]).min() > 9
    assert {clip["caption"] for clip in PairsWorld(40, 0, captions=some[:3])} == set(some[:3])


@pytest.mark.parametrize(("frames", "size"), [(9, 48), (17, 32)])
def test_other_sizes_show_the_same_clip(frames, size):
    """The first and the last frame, in other pixels."""
    unit = size / 48
    one, other = (
        read(np.stack([clip["video"] for clip in PairsWorld(8, 3, *shape)]) / np.float32(255))
        for shape in ((), (frames, size))
    )
    for name in ("colour", "shape", "relation", "motion"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    np.testing.assert_allclose(other.position, one.position * unit, atol=0.1)
    np.testing.assert_allclose(other.distance, one.distance * unit, atol=0.1)


def test_shapes_never_touch_and_stay_inside():
    assert DISTANCE[0] - TRAVEL[1] / 2 > 1.1 * SIZE[1] * 2
    for clip in PairsWorld(100, 4):
        border = np.concatenate([clip["video"][:, side].reshape(17, -1, 3) for side in (0, -1)], 1)
        assert (border == border[:1, :1]).all()
