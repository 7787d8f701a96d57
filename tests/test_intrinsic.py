"""Intrinsic dimensions against sets whose dimension is known, laws of exact samples, and a jackknife done by hand."""

import math

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from landscape import intrinsic, kernels
from landscape.errors import UsageError
from landscape.intrinsic import ESTIMATORS, dimensions, theiler

LOCAL = ("correlation", "twonn", "mle")


def squares_of(points):
    return cdist(points, points, "sqeuclidean")


def sphere(d, count=600, seed=0):
    points = np.random.default_rng(seed).standard_normal((count, d + 1))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def gaussian(d, count=600, seed=0):
    return np.random.default_rng(seed).standard_normal((count, d))


def walk(count, dim, seed=0):
    return np.random.default_rng(seed).standard_normal((count, dim)).cumsum(0)


# -- sets of known dimension ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("kind", [sphere, gaussian])
def test_local_estimators_find_few_dimensions(kind, d):
    """Within 4 of their own standard errors and 3 percent for the curvature and the edge of the set at 600 points."""
    found = dimensions(squares_of(kind(d)), names=LOCAL)
    for estimate in found.values():
        assert abs(estimate.value - d) < 4 * estimate.error + 0.03 * d


@pytest.mark.parametrize(
    ("kind", "d", "bgh", "correlation", "twonn", "mle"),
    [
        # section 3.2 of the reference has BGH at 1,500 points 1.21, 1.98, 1.90, 3.9, 5.8 and 6.1
        (sphere, 1, 1.21, 1.0, 1.0, 1.0),
        (sphere, 2, 1.97, 2.0, 2.0, 2.0),
        (gaussian, 2, 1.85, 2.0, 2.0, 2.05),
        (gaussian, 5, 3.65, 4.7, 5.0, 4.9),
        (gaussian, 10, 5.1, 8.3, 9.3, 8.7),
        (sphere, 9, 5.4, 8.2, 8.3, 8.0),
    ],
)
def test_the_biases_are_those_in_words(kind, d, bgh, correlation, twonn, mle):
    """At 600 points; 4 standard errors, and 3 percent since the figures are rounded. BGH spreads by less than a hundredth."""
    found = dimensions(squares_of(kind(d)))
    assert found["bgh"].value == pytest.approx(bgh, rel=0.03)
    for name, value in zip(LOCAL, (correlation, twonn, mle), strict=True):
        assert abs(found[name].value - value) < 4 * found[name].error + 0.03 * value


def test_ratios_of_an_exact_pareto_law_give_its_exponent():
    """Points in pairs far apart would be needed to choose ratios freely; a matrix of distances may be written down instead: ratios mu with P(mu > x) = x^-d."""
    d, count = 7.0, 400
    ratios = np.random.default_rng(0).pareto(d, count) + 1
    squared = np.full((count, count), 1e12)
    np.fill_diagonal(squared, 0)
    rows = np.arange(count)
    squared[rows, (rows + 1) % count], squared[rows, (rows + 2) % count] = 1.0, ratios**2
    estimate = dimensions(squared, names=["twonn"])["twonn"]
    # independent ratios: 1 / sqrt(0.9 count) of d
    assert abs(estimate.value - d) < 4 * d / math.sqrt(0.9 * count)
    cut = np.sort(np.log(ratios))[359]
    # censored maximum likelihood, by its closed form with 359 degrees of freedom
    assert estimate.value == pytest.approx(359 / (np.minimum(np.log(ratios), cut).sum()), rel=1e-12)


def test_even_powers_give_the_correlation_slope_exactly():
    """Squared distances (k / K)^(2/d) for the k-th of K pairs: C(r) = r^d at every radius."""
    count, d = 150, 3.3
    squared = np.zeros((count, count))
    pairs = count * (count - 1) // 2
    places = np.random.default_rng(0).permutation(np.arange(1, pairs + 1)) / pairs
    squared[np.triu_indices(count, 1)] = places ** (2 / d)
    assert dimensions(squared + squared.T, names=["correlation"])["correlation"].value == pytest.approx(d, rel=1e-12)


@pytest.mark.parametrize("kind", [sphere, gaussian])
@pytest.mark.parametrize("d", [2, 6])
def test_standard_errors_are_the_spread_over_draws(kind, d):
    """60 draws of 200 points: the spread is known to a tenth; errors are 0.6 to 1.5 of it."""
    names = (*LOCAL, "participation")
    found = [dimensions(squares_of(kind(d, 200, seed)), names=names) for seed in range(60)]
    for name in names:
        spread = np.std([draw[name].value for draw in found], ddof=1)
        error = np.mean([draw[name].error for draw in found])
        assert 0.6 < spread / error < 1.5 or (name == "participation" and spread < error)


def test_participation_and_its_jackknife_by_hand():
    points = gaussian(4, 30) * [3, 2, 1, 0.1]

    def ratio(rows):
        values = np.linalg.eigvalsh(np.cov(rows.T))
        return values.sum() ** 2 / np.square(values).sum()

    without = np.array([ratio(np.delete(points, i, axis=0)) for i in range(30)])
    estimate = dimensions(squares_of(points), names=["participation"])["participation"]
    assert estimate.value == pytest.approx(ratio(points), rel=1e-12)
    assert estimate.error == pytest.approx(math.sqrt(29 / 30 * np.square(without - without.mean()).sum()), rel=1e-9)


# -- paths ------------------------------------------------------------------------------------------------------------


def test_a_walk_looks_two_dimensional_until_close_times_are_left_out():
    """BGH: distance^2 is proportional to time in any large space, a slope of 1. Time neighbours give the correlation and the MLE the same 2; without them nothing is near."""
    squared = squares_of(walk(600, 600))
    plain = dimensions(squared)
    assert plain["bgh"].value == pytest.approx(2, abs=0.1)
    assert plain["participation"].value == pytest.approx(2.5, abs=0.3)
    assert 2 < plain["mle"].value < 3
    window = theiler(squared)
    # d^2 of lag l is l, and (T + 1) / 3 on average over all pairs
    assert window == pytest.approx((1 - 1 / math.e) * 601 / 3, rel=0.05)
    apart = dimensions(squared, names=["mle", "correlation"], exclude=window)
    assert apart["mle"].value > 20
    assert apart["correlation"].value > 20


def test_a_path_on_a_surface_is_seen_without_its_time_neighbours():
    """A slow path that fills the flat torus in R^4 is locally a curve or a walk, and two-dimensional off its own time."""
    angles = np.random.default_rng(0).normal(0, 0.5, (1000, 2)).cumsum(0)
    points = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    squared = squares_of(points)
    window = theiler(squared)
    # the correlation falls by exp(-sigma^2 / 2) a step
    assert window == pytest.approx(2 / 0.5**2, abs=3)
    found = dimensions(squared, names=LOCAL, exclude=window)
    for estimate in found.values():
        assert estimate.value == pytest.approx(2, abs=4 * estimate.error + 0.1)


def test_excluded_pairs_are_not_looked_at():
    points = gaussian(3, 80)
    squared = squares_of(points)
    lag = np.abs(np.subtract.outer(np.arange(80), np.arange(80)))
    garbled = np.where((lag > 0) & (lag < 5), squared * 1e-3, squared)
    for name, estimate in dimensions(garbled, names=LOCAL, exclude=5).items():
        assert estimate == dimensions(squared, names=[name], exclude=5)[name]
        fewer = [dimensions(given, names=[name], exclude=4)[name].value for given in (garbled, squared)]
        assert fewer[0] != fewer[1]


# -- invariance and bad input -----------------------------------------------------------------------------------------


def test_units_order_and_repeats_change_nothing():
    points = gaussian(3, 120)
    plain = dimensions(squares_of(points))
    order = np.random.default_rng(1).permutation(120)
    scaled = dimensions(squares_of(1e-5 * points[order]))
    repeated = dimensions(squares_of(np.concatenate([points, points[:7]])))
    for name in ESTIMATORS:
        # BGH's grid is tied to the distances
        assert scaled[name].value == pytest.approx(plain[name].value, rel=1e-6)
        assert repeated[name].value == pytest.approx(plain[name].value, rel=1e-6)
        assert repeated[name].words == plain[name].words + "; 7 repeated points left out"


def test_a_known_curve_is_used():
    squared = squares_of(gaussian(2, 50))
    other = kernels.curve(squares_of(gaussian(5, 50)))
    assert dimensions(squared, curve=other, names=["bgh"])["bgh"].value == other.dimension


def test_too_few_points_give_no_estimate():
    for count in (1, 2, 5):
        assert all(math.isnan(estimate.value) for estimate in dimensions(squares_of(gaussian(2, count))).values())
    constant = dimensions(np.zeros((30, 30)))
    assert all(math.isnan(estimate.value) for estimate in constant.values())
    assert "29 repeated points" in constant["mle"].words
    squared = squares_of(gaussian(2, 40))
    assert all(math.isnan(dimensions(squared, names=[name], exclude=40)[name].value) for name in LOCAL)
    assert theiler(np.zeros((5, 5))) == 1
    # the fewest that give an estimate
    fewest = dimensions(squares_of(gaussian(2, intrinsic.LEAST)), names=["bgh", "twonn", "mle", "participation"])
    assert all(math.isfinite(estimate.value) for estimate in fewest.values())


def test_bad_input_is_named():
    with pytest.raises(UsageError, match="twonn"):
        dimensions(np.zeros((3, 3)), names=["towonn"])
    with pytest.raises(UsageError, match="NaN"):
        dimensions(np.full((3, 3), math.nan))
