"""Lanczos against dense linear algebra: its own identity, eigenpairs of every kind of spectrum, quadrature by its moments."""

import numpy as np
import pytest
import torch
from problems import F64, close, draw, planted, regression

from landscape.errors import LandscapeError, UsageError
from landscape.operators import SymmetricOperator, eigenpairs, lanczos, quadrature
from landscape.seeds import generator

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
