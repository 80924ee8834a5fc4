import numpy as np
import pytest

from dollar_jax.evaluate.distribution import detail, fit, frechet, gaussian_distance, pooled_deviation

SHAPE = (1, 2, 2, 3)  # 12 numbers a clip
DEVIATIONS = np.array([4.0, 3, 2, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5])
ROTATION = np.linalg.qr(np.random.default_rng(7).normal(size=(12, 12)))[0]


def latents(count, seed, deviations=DEVIATIONS, mean=0.0):
    """Gaussian clips with these deviations along the columns of ROTATION."""
    normal = np.random.default_rng(seed).normal(size=(count, 12))
    return ((normal * deviations + mean) @ ROTATION.T).reshape(count, *SHAPE).astype(np.float32)


@pytest.fixture(scope="module")
def data():
    return fit(latents(40_000, 0), components=3)


def test_gaussian_distance_of_commuting_covariances():
    # |m - m'|^2 + sum over axes of (s - s')^2
    distance = gaussian_distance(np.array([1.0, 2]), np.diag([4.0, 9]), np.array([4.0, 6]), np.diag([25.0, 1]))
    assert distance == pytest.approx(9 + 16 + (2 - 5) ** 2 + (3 - 1) ** 2)


def test_gaussian_distance_of_covariances_that_do_not_commute():
    # C = diag(4, 1), C' = [[2, 1], [1, 2]]: C C' has trace 10 and determinant 12, so that
    # tr (C C')^1/2 = sqrt(10 + 2 sqrt(12)).
    other = np.array([[2.0, 1], [1, 2]])
    distance = gaussian_distance(np.zeros(2), np.diag([4.0, 1]), np.zeros(2), other)
    assert distance == pytest.approx(5 + 4 - 2 * np.sqrt(10 + 2 * np.sqrt(12)))
    assert gaussian_distance(np.zeros(2), other, np.zeros(2), other) == pytest.approx(0, abs=1e-12)


def test_fit_finds_the_principal_space(data):
    overlap = np.linalg.svd(data.basis.T @ ROTATION[:, :3])[1]
    assert overlap == pytest.approx([1, 1, 1], abs=1e-3)
    assert np.diag(data.covariance) == pytest.approx([16, 9, 4], rel=0.03)
    assert data.residual == pytest.approx(9 * 0.25, rel=0.02)


def test_data_are_at_distance_zero_with_the_right_energy(data):
    assert frechet(latents(20_000, 1), data) < 0.05
    assert detail(latents(20_000, 1), data) == pytest.approx(1, abs=0.02)


def test_frechet_is_in_percent_of_the_variance(data):
    average = np.broadcast_to(data.origin.reshape(SHAPE).astype(np.float32), (10, *SHAPE))
    assert frechet(average, data) == pytest.approx(100, rel=0.01)
    shifted = latents(20_000, 1, mean=2.0 * np.eye(12)[0])
    assert frechet(shifted, data) == pytest.approx(100 * 4 / 29, abs=1)
    halved = latents(20_000, 1, DEVIATIONS * np.where(np.arange(12) == 0, 0.5, 1))
    assert frechet(halved, data) == pytest.approx(100 * 4 / 29, abs=1)


def test_frechet_is_blind_where_detail_sees(data):
    noisy = latents(20_000, 1, np.where(np.arange(12) < 3, DEVIATIONS, 1.0))
    smooth = latents(20_000, 1, np.where(np.arange(12) < 3, DEVIATIONS, 0.25))
    assert max(frechet(noisy, data), frechet(smooth, data)) < 0.1
    assert detail(noisy, data) == pytest.approx(4, rel=0.02)
    assert detail(smooth, data) == pytest.approx(0.25, rel=0.02)


def test_energy_is_relative_to_data_the_space_was_not_fitted_to():
    # With 100 clips in 12 dimensions the fitted half would make new data look noisy by a few percent.
    ratios = [detail(latents(2000, 1), fit(latents(64, seed), components=8)) for seed in range(40)]
    assert np.mean(ratios) == pytest.approx(1, abs=0.05)


def test_too_few_clips_are_refused():
    with pytest.raises(ValueError, match="11 clips are too few for 3 components: 12 or more"):
        fit(latents(11, 0), components=3)


def test_pooled_deviation_by_hand():
    # Within "a" 1, 3, 5 around 3: 4 + 0 + 4; within "b" 10, 10.2: .01 + .01; the groups' means do not matter.
    values = np.array([[1.0], [10], [3], [10.2], [5]])
    assert pooled_deviation(values, ["a", "b", "a", "b", "a"]) == pytest.approx(np.sqrt(8.02 / 3))


def test_pooled_deviation_pools_dimensions_and_ignores_the_lonely():
    values = np.array([[0.0, 0], [2, 4], [9, 9]])
    assert pooled_deviation(values, ["a", "a", "b"]) == pytest.approx(np.sqrt((2 + 8) / 2))
    assert np.isnan(pooled_deviation(values, ["a", "b", "c"]))
