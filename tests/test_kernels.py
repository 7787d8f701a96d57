import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from landscape import kernels
from landscape.errors import UsageError
from landscape.kernels import Sites, _Groups


def points(count: int, dim: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, dim))


def direct(squared: np.ndarray, epsilon: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log S and its slope by the definition, one exponential a pair."""
    sums = np.array([np.exp(-squared / (4 * e)).mean() for e in epsilon])
    moved = np.array([(np.exp(-squared / (4 * e)) * squared / (4 * e)).mean() for e in epsilon])
    return np.log(sums), moved / sums


def test_curve_is_the_kernel_sum() -> None:
    squared = cdist(points(150, 3), points(150, 3), "sqeuclidean")
    curve = kernels.curve(squared)
    log_sum, slope = direct(squared, curve.epsilon)
    # a bin is at most 1/64 of its values wide: relative variance 1/(12 64^2) = 2e-5. Half of it times x^2 is what exp(-x) is off, 3.75 the mean of x^2 under the kernel in 3 dimensions.
    # x exp(-x) is off by half of it times x^2 (x - 2), a mean of x^3 of 13 at most; and the division adds the slope, 3/2, times the first
    assert np.abs(curve.log_sum - log_sum).max() < 4e-5
    assert np.abs(curve.slope - slope).max() < 2e-4
    assert np.allclose(np.diff(np.log2(curve.epsilon)), 0.25)
    assert curve.slope[0] < 0.05
    assert curve.slope[-1] < 0.05


def test_weights_of_a_curve_are_repeated_points() -> None:
    x, times = points(40, 2), np.arange(40) % 3 + 1
    repeated = np.repeat(x, times, axis=0)
    one = kernels.curve(cdist(repeated, repeated, "sqeuclidean"))
    two = kernels.curve(cdist(x, x, "sqeuclidean"), np.outer(times, times).astype(float))
    assert np.allclose(one.epsilon, two.epsilon, rtol=1e-12)
    assert np.allclose(one.log_sum, two.log_sum, atol=1e-12)


@given(st.floats(1e-6, 1e6))
def test_bandwidths_scale_with_the_distances(factor: float) -> None:
    squared = cdist(points(60, 3), points(60, 3), "sqeuclidean")
    for rule in ("bgh", "bgh-neighbours", "median", "neighbour:7"):
        one, other = kernels.bandwidth(squared, rule), kernels.bandwidth(factor * squared, rule)
        # the bins do not scale along: their part of 1e-5 in the geometric mean that ties the grid
        assert other.epsilon == pytest.approx(factor * one.epsilon, rel=1e-3)


def test_rules() -> None:
    squared = cdist(points(101, 2), points(101, 2), "sqeuclidean")
    above = squared[np.triu_indices(101, 1)]
    assert kernels.bandwidth(squared, "median").epsilon == pytest.approx(np.median(above) / 4)
    assert kernels.bandwidth(squared, "median:9").epsilon == pytest.approx(np.median(above) / 9)
    seventh = np.sort(squared, axis=1)[:, 7]
    assert kernels.bandwidth(squared, "neighbour:7").epsilon == pytest.approx(np.median(seventh) / 4)
    assert kernels.bandwidth(squared, 0.3).epsilon == kernels.bandwidth(squared, "0.3").epsilon == 0.3
    found = kernels.bandwidth(squared)
    slope = direct(squared, found.curve.epsilon)[1]
    assert found.epsilon == found.curve.epsilon[slope.argmax()]
    assert found.dimension == pytest.approx(2 * slope.max(), abs=2e-4)
    assert kernels.bandwidth(squared, "bgh-neighbours", neighbours=20).epsilon < found.epsilon


@pytest.mark.parametrize(
    ("dim", "sphere", "low", "high"), [(2, True, 1.0, 1.4), (3, True, 1.8, 2.1), (2, False, 1.75, 2.05)]
)
def test_dimensions(dim: int, sphere: bool, low: float, high: float) -> None:
    """Circle 1.21, sphere 1.98, Gaussian in the plane 1.90, as the reference measured at N = 1500; the ranges are what other draws of 700 points have."""
    x = points(700, dim, 1)
    if sphere:
        x /= np.linalg.norm(x, axis=1)[:, None]
    assert low < kernels.bandwidth(cdist(x, x, "sqeuclidean")).dimension < high


@pytest.mark.parametrize("rule", ["bhg", "bgh:3", "neighbour:0", "neighbour:2.5", "median:-1", 0.0, -1.0, "inf", "nan"])
def test_unknown_rules(rule: str | float) -> None:
    with pytest.raises(UsageError):
        kernels.bandwidth(np.ones((3, 3)) - np.eye(3), rule)


def test_no_distance_no_bandwidth() -> None:
    with pytest.raises(UsageError, match="all points are equal"):
        kernels.bandwidth(np.zeros((5, 5)))
    one = np.zeros((5, 5))
    one[0, 1:] = one[1:, 0] = 1
    with pytest.raises(UsageError, match="repeated"):
        kernels.bandwidth(one, "neighbour:2")
    assert kernels.bandwidth(one).epsilon > 0


@pytest.mark.parametrize("dim", [3, 40])
def test_squared_distances(dim: int) -> None:
    x = points(60, dim) + 1e3  # far from the origin, where an uncentred product has no digits
    x[7] = x[3]
    x[8] = x[4] + 1e-6
    truth = ((x[:, None].astype(np.longdouble) - x[None]) ** 2).sum(axis=-1)
    squared = kernels.squared_distances(x, x)
    assert (squared.diagonal() == 0).all()
    assert squared[3, 7] == 0
    # centring rounds coordinates of 1e3 by 1e-13, which a distance of 1e-6 feels as 1e-7 of itself; the others, of order 1, as 1e-12
    near = truth < 1e-9
    assert np.abs(squared - truth)[~near].max() < 1e-10
    assert np.abs(squared[near] - truth[near]).max() <= 1e-6 * truth[near].max()


@pytest.mark.parametrize("kind", ["surface", "walk", "pieces", "far", "repeated", "cloud", "huge"])
def test_neighbours_by_groups(kind: str) -> None:
    """Exact, and where points have structure without most distances."""
    random = np.random.default_rng(0)
    noise = random.standard_normal((1700, 60))
    x = {
        "surface": points(1700, 2) @ random.standard_normal((2, 60)) + 1e-3 * noise,
        "walk": np.cumsum(noise, axis=0),
        "pieces": noise + 100 * np.repeat(random.standard_normal((17, 60)), 100, axis=0),
        "far": 1e4 + 1e-2 * np.cumsum(noise, axis=0),
        "repeated": np.repeat(np.cumsum(noise[:100], axis=0), 17, axis=0),
        "cloud": noise,
        "huge": 1e40 * np.cumsum(noise, axis=0),
    }[kind]
    sites = Sites(x)
    groups = _Groups.of(*sites._centred[1:])
    assert np.array_equal(np.sort(groups.order), np.arange(1700))
    if kind in ("walk", "far", "cloud"):
        assert groups.spare(20) == (kind != "cloud")
    truth = cdist(x, x, "sqeuclidean")
    ranked = np.sort(truth, axis=1)[:, :20]
    # with the groups, whether they spare anything or not
    seen = np.zeros(1700, dtype=int)
    for own, others, squared in groups.near(20):
        seen[own] += 1
        assert np.abs(truth[np.ix_(own, others)] - squared).max() < 1e-11 * truth.max()
        assert np.abs(np.sort(squared, axis=1)[:, :20] - ranked[own]).max() < 1e-9 * ranked.max()
    assert (seen == 1).all()
    squared, places = sites.nearest(20)
    assert np.abs(np.sort(squared, axis=1) - ranked).max() < 1e-9 * ranked.max()
    assert np.abs(np.take_along_axis(truth, places, axis=1) - squared).max() < 1e-9 * ranked.max()


@pytest.mark.parametrize("dim", [2, 40])
def test_neighbours(dim: int) -> None:
    x = points(300, dim)
    truth = cdist(x, x, "sqeuclidean")
    for sites in (Sites(x), Sites(None, truth)):
        squared, places = sites.nearest(9)
        assert np.allclose(np.sort(squared, axis=1), np.sort(truth, axis=1)[:, :9], atol=1e-12)
        assert np.allclose(np.take_along_axis(truth, places, axis=1), squared, atol=1e-12)
        radii = np.quantile(truth, np.linspace(0.1, 0.3, 300), axis=1).diagonal()
        found = np.zeros((300, 300), dtype=bool)
        i, j, values = sites.within(radii)
        found[i, j] = True
        assert np.allclose(values, truth[i, j], atol=1e-12)
        assert (found == (truth <= radii[:, None])).all()
