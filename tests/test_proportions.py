"""Proportions against scipy's, transitions against the exact law of a ball and scipy's optimiser, bisection by simulation."""

import math

import numpy as np
import pytest
from scipy import optimize, special, stats

from landscape.proportions import (
    QUANTILES,
    STEPS,
    Transition,
    brackets,
    censored,
    clopper_pearson,
    next_dims,
    probit,
    wilson,
)

LOG_DIMS = np.array([2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256])

# -- one proportion ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
@pytest.mark.parametrize(("ours", "method"), [(wilson, "wilson"), (clopper_pearson, "exact")])
def test_intervals_are_those_of_scipy(ours, method, confidence):
    trials = np.array([1, 2, 5, 10, 37])[:, None]
    hits = np.minimum(np.arange(38), trials)
    low, high = ours(hits, trials, confidence)
    for (i, j), k in np.ndenumerate(hits):
        truth = stats.binomtest(int(k), int(trials[i, 0])).proportion_ci(confidence, method)
        # scipy finds the ends of the exact one by root search to 1e-8 at best
        np.testing.assert_allclose((low[i, j], high[i, j]), (truth.low, truth.high), atol=1e-7)


def test_the_figures_of_ten_trials_and_of_none():
    np.testing.assert_allclose(np.stack(clopper_pearson([9, 10], 10)).T, [[0.555, 0.997], [0.69, 1]], atol=2e-3)
    for interval in (wilson, clopper_pearson):
        assert [float(end) for end in interval(0, 0)] == [0, 1]


# -- the law of a ball ------------------------------------------------------------------------------------------------


def law(d, ambient, ratio):
    """P(hit) of a random subspace and a ball of (r/R)^2 = `ratio`: I_{r^2/R^2}((D - d) / 2, d / 2)."""
    return special.betainc((ambient - d) / 2, d / 2, ratio)


def quantile(p, ambient, ratio):
    return optimize.brentq(lambda d: law(d, ambient, ratio) - p, 1e-6, ambient - 1e-6)


def nested_thresholds(rng, seeds, ambient, ratio):
    """Smallest d whose subspace hits: that of the first d axes of a random frame does where a unit vector has at least 1 - r^2/R^2 in it."""
    squares = rng.standard_normal((seeds, ambient)) ** 2
    within = squares.cumsum(1) / squares.sum(1, keepdims=True)
    return (within < 1 - ratio).sum(1) + 1


def bracketed(dims, thresholds):
    place = np.searchsorted(dims, thresholds)
    return np.append(0, dims)[place], np.append(dims, np.inf)[place]


BALLS = {
    "D 6570, d50 91, log dims": (6570, 1 - 90 / 6570, LOG_DIMS),
    "D 6570, d50 7, log dims": (6570, 1 - 6 / 6570, np.array([1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128, 256])),
    "D 6570, d50 91, near dims": (6570, 1 - 90 / 6570, np.arange(64, 124, 5)),
    "D 1000, r/R .5": (1000, 0.25, np.linspace(660, 840, 12).astype(int)),
    "D 100, r/R .7": (100, 0.49, np.linspace(6, 94, 12).astype(int)),
}


@pytest.mark.parametrize("nested", [False, True], ids=["independent", "nested"])
@pytest.mark.parametrize("name", BALLS)
def test_d50_is_within_its_interval_in_95_percent_of_200_trials(name, nested):
    ambient, ratio, dims = BALLS[name]
    seeds, trials = 10, 200
    rng = np.random.default_rng(1)
    if nested:
        thresholds = np.stack([nested_thresholds(rng, seeds, ambient, ratio) for _ in range(trials)])
        found = censored(dims, *bracketed(dims, thresholds), ambient)
    else:
        found = probit(dims, rng.binomial(seeds, law(dims, ambient, ratio), (trials, len(dims))), seeds, ambient)
    truth = np.array([quantile(p, ambient, ratio) for p in QUANTILES])[:, None]
    coverage = ((found.lows <= truth) & (truth <= found.highs)).mean(1)
    message = f"{name}, nested {nested}: d10, d50, d90 covered in {coverage} of {trials} trials"
    # 0.9 is asked for d50; of 95% intervals fewer than 180 of 200 cover with probability 1e-3, so each of the three must
    assert (coverage >= 0.9).all(), message
    # an interval that always covers says nothing: where dimensions lie closer than the width, it is some widths long at most
    if np.diff(dims).max() < truth[2] - truth[0]:
        length = np.median(found.highs[1] - found.lows[1])
        assert length < 1.5 * float((truth[2] - truth[0])[0]), message


def test_the_width_of_a_ball_is_found_from_many_seeds():
    ambient, ratio, dims = BALLS["D 6570, d50 91, near dims"]
    d = quantile(0.5, ambient, ratio)
    ball = 2 * stats.norm.ppf(0.9) * math.sqrt(2 * d * (ambient - d) / ambient)
    found = probit(dims, np.rint(10**6 * law(dims, ambient, ratio)), 10**6, ambient)
    # counts without noise: what is left is the law's distance from a normal angle, of order 1/sqrt(d) of a standard deviation
    assert abs(float(found.width) / ball - 1) < 0.05
    np.testing.assert_allclose(found.dims, [quantile(p, ambient, ratio) for p in QUANTILES], rtol=0.01)


# -- the fit ----------------------------------------------------------------------------------------------------------


def negative(parameters, angles, hits, trials):
    centre, scale = parameters[0], math.exp(parameters[1])
    x = (angles - centre) / scale
    return -(hits * stats.norm.logcdf(x) + (trials - hits) * stats.norm.logsf(x)).sum()


@pytest.mark.parametrize(
    "hits", [[0, 0, 0, 0, 1, 2, 4, 7, 9, 10, 10, 10], [0, 1, 0, 3, 2, 5, 4, 8, 9, 8, 10, 10], [0] * 9 + [1, 3, 6]]
)
def test_estimates_and_interval_ends_are_those_of_an_optimiser(hits):
    ambient, trials = 6570, 10
    hits = np.array(hits)
    angles = np.arcsin(np.sqrt(LOG_DIMS / ambient))
    arguments = (angles, hits, trials)
    start = [float(np.interp(5, hits, angles)), math.log(0.02)]
    best = optimize.minimize(negative, start, arguments, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12})
    found = probit(LOG_DIMS, hits, trials, ambient)
    t = stats.t.ppf(0.975, trials - 1)
    cut = trials / 2 * math.log1p(t * t / (trials - 1))
    gap = float(np.diff(angles).max())
    for i, p in enumerate(QUANTILES):
        z = stats.norm.ppf(p)
        truth = ambient * math.sin(best.x[0] + z * math.exp(best.x[1])) ** 2
        if truth > LOG_DIMS[-1]:
            assert (found.bounds[i], found.dims[i]) == (1, 256)
        else:
            assert found.bounds[i] == 0
            # the search ends at a 32nd of a place of the grid, in the centre and in the scale (steps of a tenth) both
            slope = 2 * math.sqrt(truth * ambient)  # of d over the angle
            tolerance = slope * (gap / STEPS / 32 + abs(z) * math.exp(best.x[1]) * 0.13 / 32)
            assert abs(found.dims[i] - truth) < tolerance

        def drop(d, z=z):
            """How far the log likelihood falls where the quantile is held at d."""
            phi = math.asin(math.sqrt(d / ambient))
            scales = np.linspace(-8, 0, 4001)
            return min(negative((phi - z * math.exp(s), s), *arguments) for s in scales[::20]) - best.fun

        for end, inward in ((found.lows[i], 1), (found.highs[i], -1)):
            if not 0 < end < np.inf:
                # the interval goes on where nothing was tried
                beyond = min(truth, LOG_DIMS[0]) if inward == 1 else max(truth, LOG_DIMS[-1])
                assert drop(beyond) < cut + 0.1
                continue
            # rounded outwards by a place of the grid at most; what a step of the scales adds is a tenth of the way
            further = math.asin(math.sqrt(end / ambient)) + inward * (2 * gap / STEPS + 0.1 * abs(z) * 0.02)
            assert drop(end) > cut - 0.1
            assert drop(ambient * math.sin(further) ** 2) < cut + 0.2


def test_perfect_separation_gives_the_bracket():
    found = probit(LOG_DIMS, 10 * (LOG_DIMS > 70), 10, 6570)
    assert 64 < found.dims[1] < 96
    # with the scale at 0 any centre between is as likely, and none outside
    np.testing.assert_allclose([found.lows[1], found.highs[1]], [64, 96], rtol=1e-3)
    assert found.bounds.tolist() == [0, 0, 0]
    # the smallest scale is a 24th of the smallest gap, here 1/24 of arcsin sqrt(32/D) - arcsin sqrt(24/D); 2.56 of it at d = 79, where d changes by 2 sqrt(79 D) an angle
    assert 0 <= found.width <= 1.01 * 2.564 * 0.0094 / STEPS * 2 * math.sqrt(79.2 * 6570)
    nested = censored(LOG_DIMS, [64] * 10, [96] * 10, 6570)
    np.testing.assert_allclose([nested.lows[1], nested.highs[1]], [64, 96], rtol=1e-3)


def test_what_no_dimension_reaches_is_a_bound():
    for found in (probit(LOG_DIMS, 0 * LOG_DIMS, 10, 6570), censored(LOG_DIMS, [256] * 10, [np.inf] * 10, 6570)):
        assert found.bounds.tolist() == [1, 1, 1]
        assert found.dims.tolist() == [256] * 3
        assert found.highs.tolist() == [np.inf] * 3
        assert found.lows[1] == pytest.approx(256, rel=1e-3)
        assert math.isnan(found.width)
    for found in (probit(LOG_DIMS, 0 * LOG_DIMS + 10, 10, 6570), censored(LOG_DIMS, [0] * 10, [2] * 10, 6570)):
        assert found.bounds.tolist() == [-1, -1, -1]
        assert found.dims.tolist() == [2] * 3
        assert found.lows.tolist() == [0] * 3
        assert found.highs[1] == pytest.approx(2, rel=0.01)


def test_few_or_no_seeds_claim_nothing():
    one = censored(LOG_DIMS, [64], [96], 6570)
    assert 64 < one.dims[1] < 96
    assert (one.lows.tolist(), one.highs.tolist()) == ([0] * 3, [np.inf] * 3)
    for none in (probit(LOG_DIMS, 0 * LOG_DIMS, 0, 6570), censored(LOG_DIMS, [0], [np.inf], 6570)):
        assert np.isnan(none.dims).all()
        assert (none.lows.tolist(), none.highs.tolist()) == ([0] * 3, [np.inf] * 3)
        assert not none.bounds.any()


def test_many_fits_at_once_are_each_alone():
    rng = np.random.default_rng(2)
    hits = np.sort(rng.integers(0, 11, (2, 3, 12)), axis=-1)
    together = probit(LOG_DIMS, hits, 10, 6570)
    assert together.dims.shape == (3, 2, 3)
    for i in np.ndindex(2, 3):
        alone = probit(LOG_DIMS, hits[i], 10, 6570)
        for name in ("dims", "lows", "highs", "bounds"):
            np.testing.assert_allclose(getattr(together, name)[(slice(None), *i)], getattr(alone, name), rtol=1e-9)
    # the brackets of a fit are counted whatever the others have
    thresholds = rng.integers(2, 300, (4, 10))
    together = censored(LOG_DIMS, *bracketed(LOG_DIMS, thresholds), 6570)
    for i in range(4):
        alone = censored(LOG_DIMS, *bracketed(LOG_DIMS, thresholds[i]), 6570)
        np.testing.assert_allclose(together.highs[:, i], alone.highs, rtol=1e-9)


def test_one_dimension_the_whole_space_and_order_of_seeds():
    assert isinstance(probit([8], [5], [10], 100), Transition)
    whole = censored([1, 10, 100], [1, 10, 10], [10, 100, 100], 100)
    assert 10 < whole.dims[1] < 100
    again = censored([1, 10, 100], [10, 1, 10], [100, 10, 100], 100)
    np.testing.assert_array_equal(whole.dims, again.dims)


@pytest.mark.parametrize("dims", [[], [0, 1], [4, 2], [2, 200]])
def test_dimensions_that_cannot_be_are_refused(dims):
    with pytest.raises(ValueError, match="dimensions increase"):
        probit(dims, np.zeros(len(dims)), 1, 100)


def test_counts_and_brackets_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="hits lie"):
        probit([1, 2], [3, 3], 2, 100)
    with pytest.raises(ValueError, match="brackets"):
        censored([1, 2], [1], [3], 100)
    with pytest.raises(ValueError, match="brackets"):
        censored([1, 2], [2], [1], 100)


# -- nested subspaces -------------------------------------------------------------------------------------------------


def test_the_smallest_hit_decides():
    x = math.nan
    dims = [1, 2, 4, 8]
    cases = {
        (0, 0, 1, 1): (2, 4, 0),
        (0, 0, 0, 0): (8, np.inf, 0),
        (1, 1, 1, 1): (0, 1, 0),
        (0, 1, 0, 1): (1, 2, 1),  # the miss at 4 is the solver's
        (1, 0, 0, 0): (0, 1, 3),
        (x, 0, x, 1): (2, 8, 0),
        (x, x, x, x): (0, np.inf, 0),
        (x, x, 1, x): (0, 4, 0),
        (x, x, 0, x): (4, np.inf, 0),
    }
    low, high, violations = brackets(dims, [list(hits) for hits in cases])
    assert list(zip(low, high, violations.sum(-1), strict=True)) == list(cases.values())
    assert violations[3].tolist() == [False, False, True, False]


@pytest.mark.parametrize("dims", [LOG_DIMS, np.append(LOG_DIMS, 384)], ids=["12 dims", "13 dims"])
def test_bisection_finds_the_threshold_dimension_of_the_full_grid_with_two_fifths_of_the_runs(dims):
    rng = np.random.default_rng(3)
    seeds, ambient = 10, 6570
    for target in (1, 5, 40, 90, 250, 600):
        thresholds = nested_thresholds(rng, seeds, ambient, 1 - target / ambient)
        full = (dims >= thresholds[:, None]).astype(float)
        hits = np.full((seeds, len(dims)), np.nan)
        while True:
            picks = next_dims(dims.tolist(), *brackets(dims, hits)[:2])
            if not any(picks):
                break
            for seed, d in enumerate(picks):
                if d is not None:
                    k = dims.tolist().index(d)
                    assert math.isnan(hits[seed, k])  # never a run twice
                    hits[seed, k] = full[seed, k]
        runs = int(np.isfinite(hits).sum())
        assert runs <= 0.4 * full.size
        np.testing.assert_array_equal(brackets(dims, hits)[:2], brackets(dims, full)[:2])
        known = (dims >= brackets(dims, hits)[1][:, None]).mean(0) >= 0.9
        np.testing.assert_array_equal(known, full.mean(0) >= 0.9)


def test_the_next_dimension_lies_between_and_the_cheaper_comes_first():
    assert next_dims([1, 2, 4, 8], [0, 1, 2, 0], [np.inf, 8, 4, 1]) == [2, 2, None, None]
