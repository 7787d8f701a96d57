"""Numbers of a whole spectrum against dense eigenvalues: moments, traces, diagonals, determinants, quadratic forms, and whether the stated errors are honest."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from problems import F64, close, draw, planted, rotation
from scipy.linalg import expm
from threadpoolctl import threadpool_limits

from landscape.errors import LandscapeError, UsageError
from landscape.functionals import Measure, diagonal, measure, quadratic_form, trace
from landscape.operators import SearchSpace, SymmetricOperator
from landscape.seeds import generator


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Two threads on matrices this small cost ten times what they save, and more where another process has the second core."""
    with threadpool_limits(1):
        yield


ROUNDING = 1e-11  # of sums over at most 400 eigenvalues and as many products, |A| = O(1): 1e4 eps and room
METHODS = ("deflation", "hutchinson", "hutch++", "xtrace")


def operator(matrix):
    return SymmetricOperator.from_dense(torch.as_tensor(matrix, dtype=F64))


def spaced(matrix, count=5, **options):
    return SearchSpace(operator(matrix), count, generator=generator(0, "x"), **options)


def outliers(d=300):
    """What a network's spectrum looks like: a few large values over a bulk that is mostly positive."""
    return np.concatenate([[30.0, 20.0, 12.0, 8.0, 5.0], np.linspace(-0.5, 2, d - 5)])


def bulk(d=300):
    return np.linspace(-1, 2, d)


def decaying(d=300):
    return np.geomspace(1e-3, 10, d)


SPECTRA = {"outliers": outliers, "bulk": bulk, "decaying": decaying}


# -- the measure ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("counted", [0, 40])
def test_moments_and_averages_are_those_of_the_spectrum_within_their_errors(name, counted):
    """A normal error passes 4 of its standard errors once in 16,000; with 12 probes its deviation is known to a fifth, so 5 of those stated."""
    values = SPECTRA[name]()
    matrix = planted(values)
    found = measure(operator(matrix), space=spaced(matrix), counted=counted, probes=12, steps=20)
    assert len(found.values) == counted
    for power in range(1, 6):
        moment = found.moment(power)
        # the coupling that the counted space leaks is not in the error of a moment beyond the first: at most leak / d times the largest slope on the spectrum
        leaked = found.leak / 300 * power * np.abs(values).max() ** (power - 1) * (power > 1)
        assert abs(moment.value - (values**power).mean()) <= 5 * moment.error + leaked
        assert moment.error > 0
    assert found.moment(0).value == pytest.approx(1, abs=1e-12)
    assert found.trace().value == pytest.approx(300 * found.moment(1).value)
    for function in (np.tanh, np.abs, lambda x: np.exp(-x)):
        average = found.average(function)
        assert abs(average.value - function(values).mean()) <= 5 * average.error + 3 * found.leak / 300


def test_the_second_moment_lacks_what_one_coupling_leaks():
    """sum lambda^2 = |T|_F^2 + |P A P|_F^2 + 2 |B|_F^2; a front of one vector has 2 |B| = leak. The rest is summed exactly here, from the dense complement."""
    values = bulk(80)
    matrix = planted(values)
    space = spaced(matrix)
    space.grow(30)
    held = space.deflation()
    rest = np.linalg.svd(held.vectors.numpy())[2][30:]
    inner = np.linalg.eigvalsh(rest @ matrix @ rest.T)
    close((held.values**2).sum() + (inner**2).sum() + held.leak**2 / 2, (values**2).sum(), ROUNDING)


@pytest.mark.parametrize("steps", [2, 5, 12])
def test_the_rules_are_exact_to_degree_2m_minus_1(steps):
    """Against the moments of the same probes by powers of the dense matrix."""
    matrix = planted(bulk(100)) / 2
    found = measure(operator(matrix), counted=0, probes=3, steps=steps, seed=4)
    probes = np.stack([torch.randn(100, generator=generator(4, "probe", i), dtype=F64).numpy() for i in range(3)])
    probes /= np.linalg.norm(probes, axis=1, keepdims=True)
    for power in range(2 * steps):
        truth = np.einsum("pi,ij,pj->p", probes, np.linalg.matrix_power(matrix, power), probes).mean()
        close(found.moment(power).value, truth, ROUNDING)


def test_the_error_of_a_trace_is_that_of_gaussian_probes():
    """A probe's quotient v^T A v / v^T v has variance 2 (|A|_F^2 / d - mean^2) / (d + 2); its estimate from 60 probes is good to 5 / sqrt(120)."""
    values = bulk()
    found = measure(operator(planted(values)), probes=60, steps=2).trace()
    assert abs(found.error / (300 * np.sqrt(2 * values.var() / 302 / 60)) - 1) < 5 / np.sqrt(120)


@pytest.mark.parametrize("name", SPECTRA)
def test_determinants_and_effective_dimensions_are_right_within_their_errors(name):
    values = SPECTRA[name]()
    matrix = planted(values)
    found = measure(operator(matrix), space=spaced(matrix), counted=40, probes=8, steps=25)
    shift = 1 - min(values.min(), 0)
    # leak: both functions have slopes of at most 1 / (lambda + shift)^(1, 2) * shift <= 1.5 here, since lambda + shift >= 1
    for got, truth in (
        (found.log_determinant(shift), np.linalg.slogdet(matrix + shift * np.eye(300))[1]),
        (found.effective_dimension(shift), np.trace(matrix @ np.linalg.inv(matrix + shift * np.eye(300)))),
    ):
        assert abs(got.value - truth) <= 5 * got.error + 1.5 * found.leak
        assert got.error < 0.13 * abs(truth)


def test_the_limits_of_the_effective_dimension():
    """N_eff counts the rank as the shift vanishes, and is trace / shift as it grows: to relative max(lambda) / shift."""
    values = np.concatenate([np.linspace(0.5, 2, 40), np.zeros(260)])
    matrix = planted(values)
    found = measure(operator(matrix), space=spaced(matrix), counted=60, probes=3, steps=20)
    assert found.effective_dimension(1e-9).value == pytest.approx(40, abs=1e-3)
    assert found.effective_dimension(1e9).value * 1e9 == pytest.approx(values.sum(), rel=1e-6)
    assert found.log_determinant(1e9).value == pytest.approx(300 * math.log(1e9) + values.sum() / 1e9, rel=1e-12)
    shifts = np.geomspace(1e-6, 1e9, 30)
    assert (np.diff([found.effective_dimension(shift).value for shift in shifts]) < 0).all()


@pytest.mark.parametrize("shift", [0.5, 0.0, -3.0, math.inf, math.nan])
def test_a_shift_that_leaves_negative_eigenvalues_is_refused(shift):
    found = measure(operator(planted(bulk(50))))
    for ask in (found.log_determinant, found.effective_dimension):
        with pytest.raises(UsageError, match=r"does not make the matrix positive: its lowest eigenvalue seen is -1"):
            ask(shift)


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("seed", range(3))
def test_shares_lie_within_the_bound_of_chebyshev_markov_and_stieltjes(name, seed):
    """The bound: the weight of the node at the end; 4 standard errors more for the probes, in all at most 4 of the stated errors. Half an eigenvalue a probe for each leaked direction."""
    values = SPECTRA[name]()
    matrix = planted(values)
    found = measure(operator(matrix), space=spaced(matrix), counted=30, probes=5, steps=15, seed=seed)
    for low, high in ((-math.inf, 0.0), (0.0, math.inf), (0.2, 1.1), (-0.3, 6.0)):
        got = found.share(low, high)
        # a coupling of rank one moves the count of eigenvalues below a number by at most one (interlacing)
        assert abs(got.value - ((values > low) & (values <= high)).mean()) <= 4 * got.error + 2 / 300
        assert got.error < 0.5
    assert found.share(-math.inf, math.inf).value == pytest.approx(1, abs=1e-12)
    below, above = found.share(-math.inf, 0.4), found.share(0.4, math.inf)
    assert below.value + above.value == pytest.approx(1, abs=1e-12)


CASES = [(name, seed, counted) for name in SPECTRA for seed in range(4) for counted in (0, 40)]


def test_the_estimated_distance_is_conservative_and_within_a_factor_of_four():
    """24 cases: never below a half of the true Wasserstein-1 distance, which is computed from quantiles, and in the middle at most four times it."""
    ratios = []
    for name, seed, counted in CASES:
        values = SPECTRA[name]()
        matrix = planted(values, seed)
        space = SearchSpace(operator(matrix), 5, generator=generator(seed, "x"))
        found = measure(operator(matrix), space=space, counted=counted, probes=4, steps=20, seed=seed)
        points, masses = found.all()
        order = np.argsort(points)
        # sum over the sorted eigenvalues of the mean |lambda_i - quantile| on [(i - 1)/d, i/d], on a fine grid of masses
        levels = (np.arange(300 * 50) + 0.5) / (300 * 50)
        quantiles = points[order][np.searchsorted(np.cumsum(masses[order]), levels).clip(max=len(points) - 1)]
        truth = np.abs(quantiles - np.repeat(np.sort(values), 50)).mean()
        # each jump of the quantiles is off by at most one cell of the grid
        assert found.distance(values) == pytest.approx(truth, rel=0.02, abs=3e-3)
        ratios.append(found.error() * found.average(np.abs).value / found.distance(values))
    assert min(ratios) >= 0.5, sorted(ratios)[:3]
    assert 1 <= np.median(ratios) <= 4
    assert max(ratios) <= 4


def test_a_space_that_is_counted_leaks_no_more_than_is_said():
    """With the complement's own eigenvalues in the place of the rules, the Wasserstein-1 distance to the truth is at most leak / d."""
    values = decaying(80)
    matrix = planted(values)
    for size in (3, 10, 30, 79):
        space = spaced(matrix, 1)
        space.grow(size)
        held = space.deflation()
        rest = np.linalg.svd(held.vectors.numpy())[2][size:]
        inner = np.linalg.eigvalsh(rest @ matrix @ rest.T)
        found = Measure(80, held.values, inner[None], np.full((1, 80 - size), 1 / (80 - size)), held.leak, 0)
        assert found.distance(values) <= held.leak / 80 + ROUNDING
        assert found.moment(1).value == pytest.approx(values.mean(), rel=1e-10)


@pytest.mark.parametrize(("nodes", "truth"), [([1.0, 3.0], 0.5), ([1.0, 3.0, 1.0, 3.0], 12**-0.5)])
def test_the_estimated_distance_holds_the_standard_error_over_probes(nodes, truth):
    """Rules of one node at 1 or 3: the distribution functions are 0 or 1 between, of standard error 1/2 for two and 1/sqrt(12) for four, over a length and a mean of 2."""
    rules = Measure(10, np.empty(0), np.array(nodes)[:, None], np.ones((len(nodes), 1)), 0.0, 0)
    assert rules.error() == pytest.approx(truth)


def test_the_leak_is_a_part_of_the_estimated_distance():
    """Two equal rules of one node have neither a spread nor a coarser rule: what is left is leak / d over the mean |eigenvalue|, here 3."""
    exact = Measure(10, np.full(4, 3.0), np.full((2, 1), 3.0), np.ones((2, 1)), 0.0, 0)
    leaking = replace(exact, leak=1.5)
    assert exact.error() == 0
    assert leaking.error() == pytest.approx(1.5 / 10 / 3)


@pytest.mark.parametrize("spectrum", [bulk(70), np.zeros(70), np.repeat([1.0, -2.0], 35), np.ones(1)])
def test_where_the_products_reach_d_everything_is_exact(spectrum):
    matrix = planted(spectrum) if len(spectrum) > 1 else np.diag(spectrum)
    found = measure(operator(matrix), accuracy=0.01)
    close(found.values, np.sort(spectrum)[::-1], ROUNDING)
    assert (found.rest, found.leak, found.error(), found.products) == (0, 0, 0, len(spectrum))
    for got, truth in (
        (found.trace(), spectrum.sum()),
        (found.moment(3), (spectrum**3).mean()),
        (found.average(np.cos), np.cos(spectrum).mean()),
        (found.log_determinant(3.0), np.log(spectrum + 3).sum()),
        (found.effective_dimension(3.0), (spectrum / (spectrum + 3)).sum()),
        (found.share(-5, 1e-10), (spectrum < 1e-10).mean()),
    ):
        close(got.value, truth, 1e-10)
        assert got.error == 0
    assert found.distance(spectrum) < ROUNDING


@pytest.mark.parametrize("name", SPECTRA)
def test_an_accuracy_is_reached_and_kept(name):
    values = SPECTRA[name](1500)
    draws = torch.from_numpy(values)
    matrix = SymmetricOperator(1500, lambda v: draws * v, F64, torch.device("cpu"))
    for accuracy in (0.2, 0.05):
        space = SearchSpace(matrix, 5, generator=generator(0, "x"))
        found = measure(matrix, space=space, accuracy=accuracy, max_products=1400)
        assert 0 < found.error() <= accuracy
        assert found.distance(values) <= 2 * accuracy * np.abs(values).mean()  # conservative to a half, as above
        assert found.products + space.products <= 1400


def test_an_accuracy_out_of_reach_stops_at_the_most_products_and_counts_all_of_them():
    taken = 0
    values = torch.from_numpy(bulk(2000))

    def product(v):
        nonlocal taken
        taken += 1
        return values * v

    matrix = SymmetricOperator(2000, product, F64, torch.device("cpu"))
    for plain in (False, True):
        for most in (150, 600, 1500):
            taken = 0
            space = None if plain else SearchSpace(matrix, 5, generator=generator(0, "x"))
            found = measure(matrix, space=space, accuracy=1e-6, max_products=most)
            assert found.products + (0 if plain else space.products) == taken <= most
            assert found.error() > 1e-6
    # where a stage ends in the whole matrix, the stages before it were taken too
    taken = 0
    small = SymmetricOperator(300, lambda v: product(torch.cat([v, v.new_zeros(1700)]))[:300], F64, torch.device("cpu"))
    space = SearchSpace(small, 5, generator=generator(0, "x"))
    found = measure(small, space=space, accuracy=1e-6)
    assert found.error() == 0
    assert found.products + space.products == taken


def test_a_space_that_is_the_whole_leaves_nothing_to_sample():
    values = bulk(130)
    space = spaced(planted(values))
    space.grow(130)
    found = measure(operator(planted(values)), space=space, accuracy=0.05)
    close(np.sort(found.values), values, ROUNDING)
    assert (found.error(), found.leak, found.rest, found.trace().error) == (0, 0, 0, 0)


def test_marchenko_pastur_and_the_semicircle():
    """Moments of the limit laws: 1, 1 + c, 1 + 3c + c^2 (c = d / n), and Catalan's 1, 2 of the semicircle of radius 2; finite d is off by O(1/d) and fluctuates as much."""
    d, n = 400, 800
    x, g = draw(n, d), draw(d, d, seed=1)
    for matrix, moments in (
        (x.T @ x / n, (1, 1.5, 2.75)),
        ((g + g.T) / math.sqrt(2 * d), (0, 1, 0, 2)),
    ):
        found = measure(operator(matrix), probes=6, steps=30)
        for power, truth in enumerate(moments, 1):
            assert abs(found.moment(power).value - truth) <= 5 * found.moment(power).error + 20 / d


@pytest.mark.parametrize("scale", [1e-30, 1e6, -1.0])
def test_a_scaled_matrix_has_scaled_answers(scale):
    matrix = planted(outliers(200))
    one, other = (
        measure(operator(c * matrix), space=spaced(c * matrix), counted=20, probes=3, steps=12) for c in (1.0, scale)
    )
    if scale > 0:  # which end is wanted decides no step of the growth
        close(other.values / scale, one.values, 1e-9)
        close(other.nodes / scale, one.nodes, 1e-9)
    close(other.trace().value / scale, one.trace().value, 1e-9)
    close(other.error(), one.error(), 1e-7)
    for method in METHODS:
        a, b = (trace(operator(c * matrix), method=method, max_products=60, accuracy=0.3) for c in (1.0, scale))
        close(b.value / scale, a.value, 1e-9)
        close(b.error / abs(scale), a.error, 1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accuracy": 0.1, "probes": 3}, "either an accuracy, or numbers of probes and steps"),
        ({"accuracy": 0.0}, "positive and finite; got 0"),
        ({"accuracy": math.inf}, "positive and finite; got inf"),
        ({"probes": 1}, "at least 2 probes and 2 steps; got 1 and 60"),
        ({"steps": 1}, "got 4 and 1"),
        ({"counted": -1}, "with -1 counted"),
    ],
)
def test_densities_out_of_range_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        measure(operator(np.eye(400)), **options)


@pytest.mark.parametrize("d", [30, 600])
def test_products_that_are_not_finite_are_errors(d):
    broken = operator(np.full((d, d), np.nan))
    for ask in (lambda: measure(broken), lambda: quadratic_form(broken, draw(d), np.exp)):
        with pytest.raises(LandscapeError, match="not finite"):
            ask()
    for method in METHODS[1:]:
        with pytest.raises((LandscapeError, np.linalg.LinAlgError)):
            trace(broken, method=method)


# -- the trace --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("method", METHODS)
def test_traces_are_unbiased_and_their_errors_honest(name, method):
    """40 seeds at a fixed number of products. The rms of error / stated error is 1 to 5 / sqrt(80) = 0.56 and more for few samples: [0.6, 1.7]; the leave-one-out spread of XTrace is known to be low."""
    values = SPECTRA[name](150)
    matrix = operator(planted(values))
    found = [trace(matrix, method=method, accuracy=1e-12, max_products=60, seed=seed) for seed in range(40)]
    errors = np.array([estimate.value for estimate in found]) - values.sum()
    stated = np.array([estimate.error for estimate in found])
    assert abs(errors.mean()) <= 4 * errors.std(ddof=1) / math.sqrt(40)
    honest = math.sqrt(np.mean((errors / stated) ** 2))
    assert 0.6 <= honest <= (2.5 if method == "xtrace" else 1.7)
    assert all(estimate.products <= 60 for estimate in found)


def test_the_variance_of_random_signs():
    """2 (|H|_F^2 - sum H_ii^2): the stated error of 400 probes is good to 5 / sqrt(800)."""
    matrix = planted(bulk(500))
    found = trace(operator(matrix), method="hutchinson", accuracy=1e-12, max_products=400)
    truth = math.sqrt(2 * ((matrix**2).sum() - (np.diag(matrix) ** 2).sum()) / 400)
    assert abs(found.error / truth - 1) < 5 / math.sqrt(800)
    assert found.products == 400


def test_deflation_leaves_the_variance_of_the_complement_only():
    """2 (|PAP|_F^2 - sum (PAP)_ii^2) with P the projection off the space."""
    matrix = planted(outliers(500))
    space = spaced(matrix, 3)
    space.grow(20)
    basis = space.deflation().vectors.numpy()
    p = np.eye(500) - basis.T @ basis
    rest = p @ matrix @ p
    found = trace(operator(matrix), space=space, accuracy=1e-12, max_products=400)
    truth = math.sqrt(2 * ((rest**2).sum() - (np.diag(rest) ** 2).sum()) / 400)
    assert abs(found.error / truth - 1) < 5 / math.sqrt(800)
    assert abs(found.value - np.trace(matrix)) < 4 * found.error


def test_a_trace_that_takes_as_many_samples_as_dimensions_is_taken_from_the_matrix():
    matrix = planted(bulk(60))
    found = trace(operator(matrix), method="hutchinson", accuracy=1e-12, max_products=400)
    assert (found.error, found.products) == (0.0, 68)
    close(found.value, np.trace(matrix))


@pytest.mark.parametrize("method", METHODS)
def test_a_trace_stops_at_its_accuracy_or_its_products(method):
    matrix = operator(planted(outliers(200)))
    rough, fine = (trace(matrix, method=method, accuracy=accuracy) for accuracy in (0.1, 0.01))
    assert rough.error <= 0.1 * abs(rough.value)
    assert fine.error <= 0.01 * abs(fine.value)
    assert rough.products < fine.products
    for most in (6, 11, 25):
        assert 2 <= trace(matrix, method=method, accuracy=1e-12, max_products=most).products <= most


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("spectrum", [np.zeros(40), np.r_[5.0, np.zeros(39)], np.r_[3.0, -1.0, np.zeros(198)]])
def test_matrices_of_low_rank_have_their_trace(method, spectrum):
    found = trace(operator(planted(spectrum)), method=method, accuracy=0.02, max_products=600)
    assert abs(found.value - spectrum.sum()) <= 4 * found.error + 1e-10
    if method != "hutchinson":
        close(found.value, spectrum.sum(), 1e-10)


def test_a_small_matrix_has_its_trace_exactly():
    matrix = planted(bulk(16))
    for method in METHODS:
        found = trace(operator(matrix), method=method)
        close(found.value, np.trace(matrix), ROUNDING)
        assert (found.error, found.products) == (0, 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "hutch"}, "Did you mean 'hutch\\+\\+'"),
        ({"accuracy": 0.0}, "positive and finite; got 0"),
        ({"max_products": 1, "method": "hutchinson"}, "at least 2 products by hutchinson; got 1"),
        ({"max_products": 5, "method": "hutch++"}, "at least 6 products by hutch"),
        ({"method": "xtrace", "space": "any"}, "a search space serves the method deflation, not xtrace"),
    ],
)
def test_traces_out_of_range_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        trace(operator(np.eye(40)), **options)


# -- the diagonal -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_space", [False, True])
def test_the_diagonal_is_right_within_its_errors(with_space):
    """Off-diagonal entries A_ij v_i v_j: an entry's variance is the sum of A_ij^2 over j != i, of the rest where a space is counted."""
    matrix = planted(outliers(120))
    space = None
    rest = matrix
    if with_space:
        space = spaced(matrix, 3, block=2)  # two couplings
        space.grow(20)
        basis = space.deflation().vectors.numpy()
        p = np.eye(120) - basis.T @ basis
        rest = p @ matrix @ p
    found = diagonal(operator(matrix), probes=100, space=space)
    errors = (found.values.numpy() - np.diag(matrix)) / found.errors.numpy()
    assert np.abs(errors).max() < 6
    assert 0.7 < math.sqrt((errors**2).mean()) < 1.4
    truth = np.sqrt(((rest**2).sum(1) - np.diag(rest) ** 2) / 100)
    assert abs(np.median(found.errors.numpy() / truth) - 1) < 5 / math.sqrt(200)
    assert found.products == 100


def test_a_space_that_is_invariant_leaves_the_diagonal_without_error():
    matrix = planted(np.r_[3.0, 2.0, -1.0, np.zeros(57)])
    space = spaced(matrix, 3)
    space.grow(8)
    found = diagonal(operator(matrix), probes=4, space=space)
    close(found.values, np.diag(matrix), ROUNDING)
    close(found.errors, np.zeros(60), ROUNDING)


def test_what_couples_a_space_to_its_front_is_counted():
    """A = u b^T + b u^T with u and b orthonormal and u counted: the rest and T are 0, and the diagonal 2 u b is all coupling."""
    u, b = np.linalg.qr(draw(40, 2).numpy())[0].T
    matrix = np.outer(u, b) + np.outer(b, u)
    space = spaced(matrix, 1, start=torch.from_numpy(u.copy())[None])
    space.grow(1)
    found = diagonal(operator(matrix), probes=3, space=space)
    close(found.values, 2 * u * b, ROUNDING)
    close(found.errors, np.zeros(40), ROUNDING)


def test_as_many_probes_as_dimensions_give_the_diagonal_exactly():
    matrix = planted(bulk(20))
    found = diagonal(operator(matrix), probes=32)
    close(found.values, np.diag(matrix), ROUNDING)
    assert not found.errors.any()
    assert found.products == 20
    with pytest.raises(UsageError, match="at least 2 probes; got 1"):
        diagonal(operator(matrix), probes=1)


# -- quadratic forms --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["inverse", "log", "exp", "cube", "square root"])
@pytest.mark.parametrize("accuracy", [1e-3, 1e-8])
def test_quadratic_forms_are_those_of_dense_functions(name, accuracy):
    q, values = rotation(120), np.geomspace(0.05, 3, 120)
    matrix, w = (q * values) @ q.T, 2 * draw(120)
    v = w.numpy()
    function, truth = {
        "inverse": (lambda x: 1 / x, v @ np.linalg.solve(matrix, v)),
        "log": (np.log, v @ (q * np.log(values)) @ q.T @ v),
        "exp": (np.exp, v @ expm(matrix) @ v),
        "cube": (lambda x: x**3, v @ matrix @ matrix @ matrix @ v),
        "square root": (np.sqrt, v @ (q * np.sqrt(values)) @ q.T @ v),
    }[name]
    found = quadratic_form(operator(matrix), w, function, accuracy=accuracy)
    # the last of three changes falls geometrically, here by less than 10 over three steps: the rest is at most 10 of it
    assert abs(found.value - truth) <= 10 * max(found.error, 1e-12 * abs(truth))
    assert found.error <= accuracy * abs(found.value)
    assert found.products < 120


def test_quadratic_forms_end_where_the_vector_sees_no_more():
    q, values = rotation(60), np.linspace(1, 2, 60)
    matrix = (q * values) @ q.T
    for seen in ([7], [3, 50], [1, 2, 30, 44, 59]):
        w = torch.from_numpy(q[:, seen].sum(1)) * 3
        found = quadratic_form(operator(matrix), w, np.log, accuracy=1e-30)
        close(found.value, 9 * np.log(values[seen]).sum(), ROUNDING)
        assert (found.products, found.error) == (len(seen), 0)


def test_quadratic_forms_without_an_answer_are_refused():
    matrix = operator(np.diag(np.linspace(-1, 1, 30)))
    with pytest.raises(LandscapeError, match="outside the domain of f"):
        quadratic_form(matrix, draw(30), np.log)
    with pytest.raises(UsageError, match="positive, finite norm"):
        quadratic_form(matrix, torch.zeros(30, dtype=F64), np.exp)
    with pytest.raises(UsageError, match="at least 1 product; got 0"):
        quadratic_form(matrix, draw(30), np.exp, max_products=0)
