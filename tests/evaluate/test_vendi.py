import numpy as np
import pytest

from dollar_jax.evaluate.vendi import diversity, vendi


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
    assert diversity(frames, spacing=4) == pytest.approx([1, (1 + 3 + 1) / 3])


def test_diversity_uses_the_features_it_is_given():
    frames = np.random.default_rng(0).random((1, 5, 3, 4, 4, 3))
    assert diversity(frames, 1, embed=lambda frame: np.eye(len(frame))) == pytest.approx([5])
