"""Lanczos against dense linear algebra: its own identity, eigenpairs of every kind of spectrum, quadrature by its moments."""

import numpy as np
import pytest
import torch
from problems import F64, close, draw, planted, regression
from threadpoolctl import threadpool_limits

from landscape.errors import LandscapeError, UsageError
from landscape.operators import SearchSpace, SymmetricOperator, eigenpairs, lanczos, quadrature
from landscape.seeds import generator


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Two threads on matrices this small cost ten times what they save, and more where another process has the second core."""
    with threadpool_limits(1):
        yield


# identities of the process hold to rounding: a few eps |A| a step, here at most 200 steps with |A| = 1, so 1e3 eps = 2e-13
ROUNDING = 1e-12


def operator(matrix, dtype=F64):
    return SymmetricOperator.from_dense(torch.as_tensor(matrix, dtype=dtype))


def diagonal(values, dtype=torch.float32):
    return SymmetricOperator(len(values), lambda v: values * v, dtype, torch.device("cpu"))


def clustered(d, seed=0, width=1e-6):
    """Eigenvalues in four tight clusters, two of them of both signs, and one outlier: what drives Lanczos to lose orthogonality."""
    centres = np.array([-0.4, 0.0, 0.3, 0.8])
    values = centres[np.arange(d) % 4] + width * draw(d, seed=seed).numpy()
    values[0] = 1.0
    return values


SPECTRA = {
    "random": draw(40).numpy(),
    "clustered": clustered(40, width=1e-3),
    "outliers": np.concatenate([[100.0, 30.0, 10.0], np.linspace(0, 1, 37)]),
    "positive": np.geomspace(1e-6, 1, 40),
    "triple top": np.concatenate([[3.0] * 3, np.linspace(-1, 2, 27)]),
    "every value five times": np.repeat(np.linspace(-1, 2, 8), 5),
    "two values": np.repeat([1.0, -2.0], [4, 26]),
    "rank one": np.concatenate([[5.0], np.zeros(29)]),
    "negative": -np.geomspace(1e-3, 10, 30),
    "zero": np.zeros(20),
    "identity": np.ones(20),
}


def wanted(values, count, which):
    """The truth, from a sorted list."""
    down = np.sort(values)[::-1]
    if which == "largest":
        return down[:count]
    if which == "smallest":
        return down[::-1][:count]
    if which == "magnitude":
        return down[np.argsort(-np.abs(down), kind="stable")][:count]
    high = (count + 1) // 2
    return np.concatenate([down[:high], down[::-1][: count - high]])


# -- the process ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spectrum",
    [clustered(300), np.linspace(-1, 1, 300), np.geomspace(1e-8, 1, 300)],
    ids=["clustered", "even", "decaying"],
)
def test_the_basis_stays_orthonormal_and_AQ_is_QT_over_200_steps(spectrum):
    matrix = planted(spectrum)
    states = list(lanczos(operator(matrix), draw(300, seed=1), 200))
    state = states[-1]
    q, m = state.basis.numpy(), len(state.alphas)
    t = np.diag(state.alphas) + np.diag(state.betas[:-1], 1) + np.diag(state.betas[:-1], -1)
    rest = matrix @ q.T - q.T @ t
    assert m == len(states)
    close(q @ q.T, np.eye(m), ROUNDING)
    close(rest[:, :-1], np.zeros((300, m - 1)), ROUNDING)  # all columns but the last, whose rest is beta_m q_{m+1}
    close(np.linalg.norm(rest[:, -1]), state.betas[-1], ROUNDING)
    close(q @ rest[:, -1], np.zeros(m), ROUNDING)
    assert m == 200 or state.betas[-1] == 0


@pytest.mark.parametrize("distinct", [1, 2, 5])
def test_the_process_ends_after_as_many_steps_as_there_are_distinct_eigenvalues(distinct):
    values = np.repeat(np.arange(1.0, distinct + 1), 6)
    *_, state = lanczos(operator(planted(values)), draw(len(values)), 100)
    assert len(state.alphas) == distinct
    assert state.betas[-1] == 0
    close(state.ritz()[0], np.arange(1.0, distinct + 1), ROUNDING)


def test_a_start_of_few_eigenvectors_sees_only_these():
    values = np.linspace(1, 2, 10)
    *_, state = lanczos(
        diagonal(torch.from_numpy(values), F64), torch.eye(10, dtype=F64)[2] + torch.eye(10, dtype=F64)[7], 10
    )
    close(state.ritz()[0], values[[2, 7]], ROUNDING)


def test_against_keeps_the_process_out_of_a_span():
    matrix, held = planted(np.linspace(-1, 1, 30)), torch.from_numpy(np.linalg.qr(draw(30, 4).numpy())[0].T.copy())
    *_, state = lanczos(operator(matrix), draw(30, seed=2), 100, against=held)
    close(state.basis @ held.T, np.zeros((26, 4)), ROUNDING)
    p = np.eye(30) - held.numpy().T @ held.numpy()
    close(
        state.ritz()[0], np.sort(np.linalg.eigvalsh(p @ matrix @ p + 9 * held.numpy().T @ held.numpy()))[:26], ROUNDING
    )  # the held ones moved to 9


def test_the_spread_of_a_large_float32_spectrum_is_not_taken_for_its_end():
    """Bulk of radius 1e-3 below outliers 1 and 0.5 in a million dimensions: beta is 5e-4 |A|, far above rounding and below sqrt(d) eps |A|."""
    bulk = 1e-3 * (2 * torch.rand(1_000_000, generator=generator(0, "bulk")) - 1)
    bulk[:2] = torch.tensor([1.0, 0.5])
    pairs = eigenpairs(diagonal(bulk), 2, generator=generator(0, "x"))
    # a product rounds by eps = 1.2e-7 an entry, and the sums of a million terms by some hundred of them
    close(pairs.values, [1.0, 0.5], 1e-4 * 0.1)
    rule = quadrature(diagonal(bulk), probes=1, steps=12, generators=[generator(0, "p")])
    assert np.isfinite(rule.nodes).sum() == 12


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_product_that_is_not_finite_is_an_error(bad):
    broken = diagonal(torch.tensor([1.0, bad, 3.0]))
    with pytest.raises(LandscapeError, match="not finite: the point has NaN or infinite curvature"):
        eigenpairs(broken, 1, generator=generator(0, "x"))


@pytest.mark.parametrize("start", [torch.zeros(3), torch.full((3,), float("nan"))])
def test_a_start_without_direction_is_refused(start):
    with pytest.raises(UsageError, match="positive, finite norm"):
        list(lanczos(diagonal(torch.ones(3)), start, 3))


def test_no_steps_give_no_states():
    assert list(lanczos(diagonal(torch.ones(3)), torch.ones(3), 0)) == []


# -- eigenpairs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["largest", "smallest", "both", "magnitude"])
@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("name", SPECTRA)
def test_eigenpairs_are_those_of_the_dense_matrix(name, count, which):
    matrix = planted(SPECTRA[name], seed=3)
    pairs = eigenpairs(operator(matrix), count, generator=generator(0, "x"), which=which, tolerance=1e-9)
    truth, size = wanted(np.linalg.eigvalsh(matrix), count, which), max(np.abs(matrix).max(), 1.0)
    vectors = pairs.vectors.numpy()
    assert pairs.converged.all()
    # the error of a value is at most its residual, 1e-9 |A|; |A| <= 100
    key = np.abs if which == "magnitude" else np.asarray  # values of one size and two signs may stand in either order
    close(key(pairs.values) / size, key(truth) / size, 1e-8)
    close(vectors @ vectors.T, np.eye(count), 1e-9)
    close(np.linalg.norm(matrix @ vectors.T - vectors.T * pairs.values, axis=0) / size, np.zeros(count), 1e-8)


@pytest.mark.parametrize("tolerance", [1e-1, 1e-2, 1e-4, 1e-8])
@pytest.mark.parametrize("seed", range(5))
def test_the_residual_is_true_and_bounds_the_error(tolerance, seed):
    matrix = planted(np.sort(draw(60, seed=seed).numpy()), seed)
    pairs = eigenpairs(operator(matrix), 3, generator=generator(seed, "x"), tolerance=tolerance)
    vectors = pairs.vectors.numpy()
    close(np.linalg.norm(matrix @ vectors.T - vectors.T * pairs.values, axis=0), pairs.residuals, 1e-11)
    distance = np.abs(np.linalg.eigvalsh(matrix)[:, None] - pairs.values).min(0)
    assert (distance <= pairs.residuals + 1e-12).all()
    assert pairs.converged.all()
    assert (pairs.residuals <= tolerance * np.linalg.norm(matrix, 2)).all()


@pytest.mark.parametrize("seed", range(50))
def test_clusters_give_no_ghosts_and_no_gaps(seed):
    values = clustered(80, seed, width=10.0 ** -(seed % 10))
    pairs = eigenpairs(operator(planted(values, seed)), 6, generator=generator(seed, "x"), tolerance=1e-10)
    close(pairs.values, wanted(values, 6, "largest"), 1e-9)
    close(pairs.vectors @ pairs.vectors.T, np.eye(6), 1e-9)


@pytest.mark.parametrize("tolerance", [1e-4, 1e-10])
def test_a_triple_top_is_given_three_times(tolerance):
    """One start vector sees one of the three, with the residual of a converged pair; 27 other values keep the Krylov space from ending."""
    pairs = eigenpairs(operator(planted(SPECTRA["triple top"])), 4, generator=generator(0, "x"), tolerance=tolerance)
    close(pairs.values, [3, 3, 3, 2], 3 * tolerance)


def test_the_hessian_of_a_linear_regression_repeats_every_value_once_an_output():
    p = regression("linear", n=40, features=20)
    truth = np.linalg.eigvalsh(p.hessian(p.point.numpy()))[::-1][:7]
    pairs = eigenpairs(p.f.hessian(p.point), 7, generator=generator(0, "x"), tolerance=1e-8)
    close(pairs.values, truth, 1e-7)
    close(truth[:3], [truth[0]] * 3)


def test_too_few_steps_say_so():
    matrix = planted(np.linspace(0, 1, 200))
    pairs = eigenpairs(operator(matrix), 4, generator=generator(0, "x"), max_products=12)
    assert pairs.products == 12
    assert not pairs.converged.any()
    distance = np.abs(np.linspace(0, 1, 200)[:, None] - pairs.values).min(0)
    assert (distance <= pairs.residuals).all()


def test_a_count_above_d_is_cut_and_all_eigenvalues_come():
    values = np.linspace(-1, 1, 6)
    pairs = eigenpairs(operator(planted(values)), 99, generator=generator(0, "x"))
    close(pairs.values, values[::-1], ROUNDING)


@pytest.mark.parametrize("value", [-2.5, 0.0, 7.0])
def test_one_dimension(value):
    pairs = eigenpairs(diagonal(torch.tensor([value], dtype=F64), F64), 3, generator=generator(0, "x"))
    close(pairs.values, [value], 0)
    assert pairs.converged.all()
    rule = quadrature(
        diagonal(torch.tensor([value], dtype=F64), F64),
        probes=2,
        steps=9,
        generators=[generator(0, "p", i) for i in range(2)],
    )
    close(rule.nodes, [[value]] * 2, ROUNDING)
    close(rule.weights, [[1.0]] * 2, ROUNDING)


def test_scaling_the_matrix_scales_the_values_however_small():
    matrix = planted(SPECTRA["random"])
    one, small = (eigenpairs(operator(c * matrix), 5, generator=generator(0, "x")) for c in (1.0, 1e-30))
    close(small.values * 1e30, one.values, ROUNDING)
    assert one.products == small.products


def test_an_equal_generator_gives_equal_pairs():
    draws = [eigenpairs(operator(planted(SPECTRA["random"])), 3, generator=generator(seed, "x")) for seed in (0, 0, 1)]
    assert np.array_equal(draws[0].values, draws[1].values)
    assert torch.equal(draws[0].vectors, draws[1].vectors)
    assert not np.array_equal(draws[0].values, draws[2].values)


@pytest.mark.parametrize(
    ("count", "steps", "message"), [(0, 500, "at least 1"), (5, 4, "4 products cannot give 5 eigenpairs")]
)
def test_counts_that_cannot_be_given_are_refused(count, steps, message):
    with pytest.raises(UsageError, match=message):
        eigenpairs(operator(np.eye(9)), count, generator=generator(0, "x"), max_products=steps)


# -- ghosts and gaps --------------------------------------------------------------------------------------------------


def crowded(kind, d, rng):
    """A spectrum (d,) of repeated and clustered values, |lambda| at most 1."""
    if kind == "few values":
        return rng.choice(rng.uniform(-1, 1, int(rng.integers(2, 9))), d)
    if kind == "clusters":
        return rng.choice(rng.uniform(-0.9, 0.9, int(rng.integers(2, 9))), d) + 10 ** rng.uniform(-10, -2) * rng.normal(
            size=d
        )
    if kind == "outliers on a null space":
        values = np.zeros(d)
        values[:12] = np.repeat(rng.uniform(-1, 1, 6), 2)
        return values
    if kind == "decay in pairs":
        return np.repeat(0.6 ** np.arange(d), 2)[:d]
    halves = np.sort(rng.uniform(0, 1, d - d // 2))  # both signs of every size
    return np.concatenate([halves, -halves[: d // 2]])


@pytest.mark.parametrize("which", ["largest", "smallest", "both", "magnitude"])
@pytest.mark.parametrize(
    "kind", ["few values", "clusters", "outliers on a null space", "decay in pairs", "both signs of every size"]
)
def test_ten_crowded_spectra_have_neither_ghosts_nor_gaps(kind, which):
    """200 in all. The check may miss a copy with a chance of 1e-6 each; a value is within its residual, 1e-8, of an eigenvalue."""
    for seed in range(10):
        rng = np.random.default_rng([seed, len(kind), len(which)])
        d = int(rng.integers(20, 121))
        matrix = planted(crowded(kind, d, rng), seed)
        count = int(rng.integers(1, 13))
        pairs = eigenpairs(
            operator(matrix), count, generator=generator(seed, "x"), which=which, tolerance=1e-8, missed=1e-6
        )
        key = np.abs if which == "magnitude" else np.asarray
        close(key(pairs.values), key(wanted(np.linalg.eigvalsh(matrix), count, which)), 1e-8 + ROUNDING)
        close(pairs.vectors @ pairs.vectors.T, np.eye(count), 1e-10)
        assert pairs.converged.all()
        assert pairs.missed <= 1e-6


@pytest.mark.parametrize("missed", [0.05, 0.5])
def test_a_second_copy_is_missed_no_more_often_than_stated(missed):
    """Christoffel's bound is one-sided: over 150 starts at most the mean of what is stated, and four deviations of a binomial."""
    values = torch.cat([torch.ones(2, dtype=F64), torch.linspace(-0.6, 0.6, 298, dtype=F64)])
    found = [eigenpairs(diagonal(values, F64), 2, generator=generator(seed, "x"), missed=missed) for seed in range(150)]
    lost = np.array([pairs.values[1] < 0.9 for pairs in found])
    stated = np.array([pairs.missed for pairs in found])
    assert (stated <= missed).all()
    assert lost.mean() <= stated.mean() + 4 * np.sqrt(stated.mean() / 150)


def test_without_the_check_one_start_sees_one_copy_and_a_block_of_three_sees_three():
    matrix = operator(planted(SPECTRA["triple top"]))
    one, three = (eigenpairs(matrix, 4, generator=generator(0, "x"), block=b, missed=1) for b in (1, 3))
    assert (one.values > 2.5).sum() == 1
    close(three.values, [3, 3, 3, 2], 1e-6)
    assert one.missed == three.missed == 1


# -- memory, warm starts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["largest", "smallest", "both", "magnitude"])
@pytest.mark.parametrize("block", [1, 2])
def test_a_small_basis_gives_the_same_values_for_more_products(which, block):
    values = np.concatenate([np.linspace(-1, 1, 146), [1.5, 1.2, -1.3, -1.6]])
    matrix = operator(planted(values))

    def solve(**options):
        draws = generator(1, "x")
        return eigenpairs(
            matrix, 5, generator=draws, which=which, tolerance=1e-9, block=block, max_products=3000, **options
        )

    # the check ends where the basis is full, and says so: compared without it
    whole, small, host = solve(missed=1), solve(basis=24, missed=1), solve(basis=24, missed=1, host=True)
    checked = solve(basis=24)
    assert 0 < checked.missed < 1
    truth = wanted(values, 5, which)
    key = np.abs if which == "magnitude" else np.asarray
    for found in (whole, small, host, checked):
        assert found.converged.all()
        close(key(found.values), key(truth), 1e-8)
    assert small.products > whole.products


def test_no_more_rows_are_held_than_the_basis_has():
    space = SearchSpace(operator(planted(np.linspace(0, 1, 200))), 5, generator=generator(0, "x"), basis=20)
    space.converge(tolerance=1e-8, max_products=2000)
    assert len(space.rows) == 20
    assert space.products > 60  # so there were restarts
    assert len(space.pairs().vectors) == 5


def test_a_basis_too_small_for_the_pairs_is_refused():
    with pytest.raises(UsageError, match="a basis of 11 vectors cannot give 5 eigenpairs: allow at least 12"):
        eigenpairs(operator(np.eye(50)), 5, generator=generator(0, "x"), basis=11)


def test_a_warm_start_from_the_eigenvectors_takes_a_product_each():
    matrix = operator(planted(np.concatenate([np.linspace(0, 1, 96), [2.0, 3.0, 4.0, 5.0]])))
    cold = eigenpairs(matrix, 4, generator=generator(0, "x"), tolerance=1e-10)
    warm = eigenpairs(matrix, 4, generator=generator(0, "y"), start=cold.vectors, tolerance=1e-6, missed=1)
    assert warm.products == 4
    close(warm.values, cold.values, 1e-10)
    checked = eigenpairs(matrix, 4, generator=generator(0, "y"), start=cold.vectors, tolerance=1e-6)
    assert checked.products <= 4 + 12
    assert checked.missed <= 0.05


@pytest.mark.parametrize("size", [1e-3, 0.3])
def test_a_warm_start_from_elsewhere_gives_the_values_of_a_cold_one(size):
    values = np.concatenate([np.linspace(0, 1, 96), [2.0, 3.0, 4.0, 5.0]])
    matrix = operator(planted(values))
    cold = eigenpairs(matrix, 4, generator=generator(0, "x"), tolerance=1e-10)
    near = cold.vectors + size * draw(4, 100, seed=1)
    repeated = torch.cat([near, near[:2]])  # dependent rows are no harm
    for start in (near, near[:1], repeated):
        warm = eigenpairs(matrix, 4, generator=generator(0, "y"), start=start, tolerance=1e-10)
        close(warm.values, values[::-1][:4], 1e-9)
    if size < 0.01:  # so it is worth having
        assert eigenpairs(matrix, 4, generator=generator(0, "y"), start=near).products < cold.products


@pytest.mark.parametrize(
    ("start", "message"),
    [(torch.ones(2, 5), r"shape \(s, 9\); got \(2, 5\)"), (torch.full((1, 9), torch.nan), "NaN or infinite entries")],
)
def test_a_start_that_does_not_fit_is_refused(start, message):
    with pytest.raises(UsageError, match=message):
        eigenpairs(operator(np.eye(9)), 1, generator=generator(0, "x"), start=start)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": 0}, "a block of 0 start vectors"),
        ({"missed": 0.0}, r"must be in \(0, 1\]; got 0.0"),
        ({"missed": 1.5}, "got 1.5"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        eigenpairs(operator(np.eye(9)), 1, generator=generator(0, "x"), **options)


# -- bounds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tolerance", [1e-1, 1e-2, 1e-3])
def test_error_bounds_hold_where_the_values_are_apart(tolerance):
    """Of five values two apart over a bulk in [-1, 1] every Ritz value sees its neighbours: Temple and Kato's bound. It is quadratic in the residual, and no more than it."""
    values = np.concatenate([[10.0, 8.0, 6.0, 4.0, 2.5], np.linspace(-1, 1, 75)])
    ratios = []
    for seed in range(30):
        pairs = eigenpairs(operator(planted(values, seed)), 3, generator=generator(seed, "x"), tolerance=tolerance)
        errors = np.abs(pairs.values - values[:3])
        assert (errors <= pairs.bounds + ROUNDING).all()
        assert (pairs.bounds <= pairs.residuals).all()
        ratios.append(pairs.bounds / np.maximum(errors, ROUNDING))
    # Kato's bound is reached where the rest of the residual lies at the nearest value; that of a Krylov space lies mostly in the bulk, some gaps away
    assert np.median(ratios) < 30


def test_a_single_ritz_value_has_its_residual_as_its_bound():
    pairs = eigenpairs(operator(planted(np.linspace(0, 1, 30))), 1, generator=generator(0, "x"), max_products=1)
    assert pairs.bounds == pairs.residuals > 0.1


def test_no_value_is_claimed_better_than_products_round():
    pairs = eigenpairs(diagonal(torch.linspace(0, 1, 200)), 2, generator=generator(0, "x"), tolerance=1e-12)
    assert pairs.converged.all()
    assert (pairs.residuals >= np.finfo(np.float32).eps * 0.99).all()
    assert (pairs.bounds >= np.finfo(np.float32).eps * 0.99).all()
    assert np.abs(pairs.values - [1, 198 / 199]).max() < 1e-5


# -- the search space and its deflation -------------------------------------------------------------------------------


def grown(matrix, size, *, count=3, converge=False, **options):
    space = SearchSpace(operator(matrix), count, generator=generator(0, "x"), **options)
    if converge:
        space.converge(tolerance=1e-6, max_products=400)
    space.grow(size)
    return space


SPACES = {
    "lanczos": {},
    "block": {"block": 3},
    "warm": {"start": draw(4, 60, seed=8)},
    "restarted": {"basis": 16, "converge": True},
    "restarted block": {"basis": 20, "block": 3, "converge": True},
}


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("spectrum", ["random", "clustered", "every value five times", "two values", "rank one"])
def test_the_relation_of_a_search_space_and_its_deflation(name, spectrum):
    """A U^T = U^T diag + F^T B; the sorted eigenvalues of A and of diag with P A P differ by at most the leak in sum (Lidskii), and the traces not at all."""
    values = np.resize(SPECTRA[spectrum], 60)
    matrix = planted(values)
    space = grown(matrix, 25, **SPACES[name])
    deflation = space.deflation()
    u, front, b = deflation.vectors.numpy(), deflation.front.numpy(), deflation.coupling.numpy()
    n, size = len(u), max(np.abs(values).max(), 1)
    both = np.concatenate([u, front])
    close(both @ both.T, np.eye(len(both)), ROUNDING)
    close((matrix @ u.T - u.T * deflation.values - front.T @ b) / size, np.zeros((60, n)), ROUNDING)
    rest = np.linalg.svd(u)[2][n:]  # an orthonormal basis of the complement
    parts = np.sort(np.concatenate([deflation.values, np.linalg.eigvalsh(rest @ matrix @ rest.T)]))
    moved = np.abs(parts - np.linalg.eigvalsh(matrix)).sum()
    assert moved <= deflation.leak + 60 * ROUNDING * size
    close(deflation.leak / size, 2 * np.linalg.norm(rest @ matrix @ u.T, "nuc") / size, 60 * ROUNDING)
    close(parts.sum() / size, values.sum() / size, 60 * ROUNDING)


@pytest.mark.parametrize("size", [60, 61, 500])
def test_growing_beyond_d_ends_with_the_whole_matrix(size):
    values = np.repeat(np.linspace(-1, 1, 20), 3)
    space = grown(planted(values), size)
    deflation = space.deflation()
    assert (space.size, space.products, space.front) == (60, 60, 0)
    assert deflation.leak == 0
    close(np.sort(deflation.values), values, ROUNDING)


def test_growing_stops_where_the_basis_is_full():
    space = grown(planted(np.linspace(-1, 1, 60)), 50, basis=20)
    assert space.size + space.front <= 20


@pytest.mark.parametrize("which", ["largest", "both"])
@pytest.mark.parametrize("matrix", [np.zeros((9, 9)), np.eye(9), np.diag([4.0] + [0.0] * 8)])
def test_degenerate_matrices_give_all_their_copies(matrix, which):
    for count in (1, 4, 9, 12):
        pairs = eigenpairs(operator(matrix), count, generator=generator(0, "x"), which=which)
        close(pairs.values, wanted(np.diag(matrix), min(count, 9), which), ROUNDING)
        assert pairs.converged.all()
        assert pairs.products <= 2 * 9


def test_a_product_that_breaks_late_or_in_the_check_is_an_error():
    for good in range(25):
        calls = iter(range(100))

        def product(v, good=good, calls=calls):
            return torch.linspace(0, 1, 40, dtype=F64) * v if next(calls) < good else v * torch.nan

        broken = SymmetricOperator(40, product, F64, torch.device("cpu"))
        with pytest.raises(LandscapeError, match="not finite"):
            eigenpairs(broken, 3, generator=generator(0, "x"), missed=1e-9, tolerance=1e-9)


# -- quadrature -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["random", "clustered", "two values", "rank one", "zero"])
@pytest.mark.parametrize("m", [1, 2, 5, 9])
def test_the_rule_of_m_nodes_has_the_first_2m_moments_of_its_start(name, m):
    matrix = planted(SPECTRA[name])
    matrix = matrix / max(np.linalg.norm(matrix, 2), 1.0)  # |A| <= 1 keeps all moments at most 1
    start = draw(len(matrix), seed=4)
    *_, state = lanczos(operator(matrix), start, m)
    nodes, weights = state.quadrature()
    close(weights.sum(), 1.0, ROUNDING)
    v = start.numpy() / np.linalg.norm(start.numpy())
    for k in range(2 * m):
        close((weights * nodes**k).sum(), v @ np.linalg.matrix_power(matrix, k) @ v, ROUNDING)


def test_probes_that_end_early_are_padded_by_nan_of_weight_zero():
    rule = quadrature(
        operator(planted(SPECTRA["two values"])), probes=3, steps=6, generators=[generator(0, "p", i) for i in range(3)]
    )
    assert rule.nodes.shape == rule.weights.shape == (3, 6)
    close(rule.nodes[:, :2], [[-2.0, 1.0]] * 3, ROUNDING)
    assert np.isnan(rule.nodes[:, 2:]).all()
    assert not rule.weights[:, 2:].any()
    close(rule.weights.sum(1), np.ones(3), ROUNDING)
    assert rule.products == 6


def test_another_probe_changes_no_earlier_one():
    few, more = (
        quadrature(
            operator(planted(SPECTRA["random"])), probes=p, steps=5, generators=[generator(0, "p", i) for i in range(p)]
        )
        for p in (2, 4)
    )
    assert np.array_equal(few.nodes, more.nodes[:2])
    assert np.array_equal(few.weights, more.weights[:2])


# -- the operator -----------------------------------------------------------------------------------------------------


def test_products_with_vectors_blocks_and_nothing():
    matrix = draw(5, 5)
    a, block = operator(matrix + matrix.T), draw(5, 3, seed=1)
    close(a @ block, (matrix + matrix.T) @ block, ROUNDING)
    close(a @ block[:, 0], (matrix + matrix.T) @ block[:, 0], ROUNDING)
    close(a.dense(), matrix + matrix.T, ROUNDING)
    assert (a @ block[:, :0]).shape == (5, 0)
    for wrong in (draw(4), draw(4, 5), draw(5, 2, 2)):
        with pytest.raises(UsageError, match=r"a product takes \(5,\) or \(5, k\)"):
            _ = a @ wrong


def test_asymmetry_is_rounding_for_a_symmetric_matrix_and_of_order_one_for_another():
    matrix = draw(30, 30)
    assert operator(matrix + matrix.T).asymmetry(generator(0, "x")) < 1e-14
    assert operator(matrix).asymmetry(generator(0, "x")) > 1e-2
    assert operator(np.zeros((3, 3))).asymmetry(generator(0, "x")) == 0
