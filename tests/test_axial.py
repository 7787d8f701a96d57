"""Pruning of quadratics against closed forms, inverses, and spectra turned at random; conjugate gradients against dense algebra."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import EPS, draw, planted, rotation

from landscape import axial
from landscape.errors import LandscapeError, UsageError
from landscape.functionals import Measure, measure
from landscape.operators import SymmetricOperator

SPECTRA = {"1/k": lambda d: 1 / np.arange(1.0, d + 1), "uniform": lambda d: np.linspace(0.01, 1, d)}


def density(values) -> Measure:
    """That of eigenvalues which are all known."""
    values = np.asarray(values, dtype=float)
    return Measure(len(values), values, np.empty((0, 0)), np.empty((0, 0)), 0.0, 0)


def random_mask(w):
    """Mean R(k)^2 of random masks."""
    return np.linspace(0, w @ w, len(w) + 1)


def magnitude(w):
    """The order, and its R(k)^2."""
    order = np.argsort(np.abs(w))
    return order, np.concatenate([[0], np.cumsum(w[order] ** 2)])


# -- (1), (2), (3) ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.05, 0.4, 0.9])
def test_isotropic_curvature_in_closed_form(share):
    # E_min = lambda R^2 / 2, so the exact limit is r^2 / |w|^2 = share; Gordon's r^2 / (|w|^2 + r^2); naive: alpha (1 + alpha / share) = 1
    d, lam = 500, 0.3
    w = draw(d).numpy()
    epsilon = share * lam * (w @ w) / 2
    found = {
        form: axial.most(density(np.full(d, lam)), random_mask(w), epsilon, form).value / d for form in axial.FORMS
    }
    assert found["free-probability"] == pytest.approx(share, rel=1e-9)
    assert found["gordon"] == pytest.approx(share / (1 + share), rel=1e-9)
    assert found["naive"] == pytest.approx((np.sqrt(1 + 4 / share) - 1) * share / 2, rel=1e-9)
    # R of any mask: E = lambda R^2 / 2 at every share
    assert axial.price(density(np.full(d, lam)), [0.1, 0.5, 1.0]) == pytest.approx(lam / 2, rel=1e-9)


def test_gordons_limit_of_random_masks_is_the_papers_sum():
    d = 400
    values = np.concatenate([1 / np.arange(1.0, d - 29), np.zeros(20), -np.linspace(0.001, 0.1, 10)])
    w = 3 * draw(d).numpy()
    for epsilon in (0.01, 0.3, 20.0):
        with np.errstate(divide="ignore", invalid="ignore"):
            axes = np.where(
                values > 0, 2 * epsilon / values, np.inf
            )  # r^2; directions that do not curve upwards: infinite, the term 1
            terms = np.where(values > 0, axes / (w @ w + axes), 1.0)
        found = axial.most(density(values), random_mask(w), epsilon, "gordon")
        assert found.value == pytest.approx(terms.sum(), rel=1e-9)
        assert found.error == 0
    # what does not curve is free: 30 coordinates at any epsilon
    assert axial.most(density(values), random_mask(w), 1e-12, "gordon").value == pytest.approx(30, abs=0.01)
    assert (axial.price(density(values), [29 / d]) == 0).all()


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.97])
def test_two_curvatures_by_their_quadratic_equation(alpha):
    a, b, p = 2.0, 0.05, 0.25
    # p / (1 + s a) + (1 - p) / (1 + s b) = alpha
    s = max(np.roots([alpha * a * b, alpha * (a + b) - p * b - (1 - p) * a, alpha - 1]))
    both = density(np.repeat([a, b], [25, 75]))
    assert axial.price(both, alpha, "free-probability") == pytest.approx((1 - alpha) / (2 * alpha * s), rel=1e-9)
    assert axial.price(both, alpha, "gordon") == pytest.approx(1 / (2 * alpha * s), rel=1e-9)
    assert axial.price(both, alpha, "naive") == pytest.approx(1 / (2 * s), rel=1e-9)


@pytest.mark.parametrize("name", SPECTRA)
def test_predictions_for_spectra_turned_at_random(name):
    # T19: at D = 1,000 (3) lies within 0.01 of the exact limit of magnitude masks, and (2) below it
    d = 1000
    values, w = SPECTRA[name](d), draw(d, seed=4).numpy()
    order, squares = magnitude(w)
    exact = axial.nested(planted(values), w, order)
    for part in (0.03, 0.1):
        epsilon = part * values.mean() * (w @ w) / 2
        truth = np.flatnonzero(exact.minima <= epsilon).max() / d
        found = {form: axial.most(density(values), squares, epsilon, form).value / d for form in axial.FORMS}
        assert found["free-probability"] == pytest.approx(truth, abs=0.01)
        assert found["gordon"] < truth
        # the same share at (1 - alpha) times the epsilon
        alpha = found["gordon"]
        milder = axial.most(density(values), squares, (1 - alpha) * epsilon, "free-probability").value / d
        assert milder == pytest.approx(alpha, rel=1e-9)


@given(
    st.floats(1e-3, 1e3),
    st.floats(1e-3, 1e2),
    st.floats(1.01, 10),
    st.sampled_from(axial.FORMS),
    st.sampled_from(sorted(SPECTRA)),
)
@settings(max_examples=30, deadline=None)
def test_laws_of_a_limit(scale, epsilon, more, form, name):
    values, w = SPECTRA[name](40), draw(40).numpy()
    _, squares = magnitude(w)
    one = axial.most(density(values), squares, epsilon, form).value
    # a curvature scaled by c is an epsilon divided by it
    assert axial.most(density(scale * values), squares, scale * epsilon, form).value == pytest.approx(
        one, rel=1e-8, abs=1e-8
    )
    # more loss allows more; less curvature, too
    assert axial.most(density(values), squares, more * epsilon, form).value >= one
    softened = np.concatenate([values[:-1], [-values[-1]]])
    assert axial.most(density(softened), squares, epsilon, form).value >= one - 1e-8


def test_a_density_by_lanczos_brings_its_error():
    d = 900
    values, w = SPECTRA["1/k"](d), draw(d, seed=2).numpy()
    diagonal = torch.from_numpy(values)
    operator = SymmetricOperator(d, lambda v: diagonal * v, torch.float64, torch.device("cpu"))
    sketched = measure(operator, counted=0, probes=6, steps=40)
    _, squares = magnitude(w)
    for form in axial.FORMS:
        found = axial.most(sketched, squares, 0.05, form)
        truth = axial.most(density(values), squares, 0.05, form).value
        assert 0 < found.error < 0.05 * d
        assert abs(found.value - truth) < 4 * found.error
        assert found.products == 240


# -- (4), (5) ---------------------------------------------------------------------------------------------------------


def test_every_prefix_of_an_order_against_the_inverse():
    d, n = 30, 22
    matrix, w = planted(SPECTRA["1/k"](d), seed=3), draw(d, seed=1).numpy()
    order = np.random.default_rng(0).permutation(d)[:n]
    found = axial.nested(matrix, w, order)
    inverse = np.linalg.inv(matrix)
    assert found.minima.shape == found.projections.shape == found.lengths.shape == (n + 1,)
    # algebra in float64 at condition number 30, through an inverse
    close = {"rel": 1e-9, "abs": 1e-12}
    assert found.minima[1] == pytest.approx(w[order[0]] ** 2 / (2 * inverse[order[0], order[0]]), **close)
    for k in (0, 1, 2, 9, n):
        gone = order[:k]
        kept = np.setdiff1d(np.arange(d), gone)
        least = w[gone] @ np.linalg.solve(inverse[np.ix_(gone, gone)], w[gone]) / 2
        assert found.minima[k] == pytest.approx(least, **close)
        step = np.where(np.isin(np.arange(d), gone), w, 0)
        assert found.projections[k] == pytest.approx(step @ matrix @ step / 2, **close)
        assert found.lengths[k] == pytest.approx(np.linalg.norm(step), **close)
        if k:
            assert found.curvatures[k - 1] == pytest.approx(step @ matrix @ step / (step @ step), **close)
        point = found.minimiser(k)
        assert (point[gone] == 0).all()
        assert np.abs((matrix @ (point - w))[kept]).max() < 1e-12  # its slope within the subspace
        assert (point - w) @ matrix @ (point - w) / 2 == pytest.approx(least, **close)


def test_axis_aligned_curvature_is_optimal_brain_damage():
    values, w = SPECTRA["1/k"](50), draw(50).numpy()
    order = np.random.default_rng(1).permutation(50)
    found = axial.nested(np.diag(values), w, order)
    damage = np.concatenate([[0], np.cumsum(values[order] * w[order] ** 2) / 2])
    assert found.minima == pytest.approx(damage, rel=1e-12)
    assert found.projections == pytest.approx(damage, rel=1e-12)
    assert axial.alignment(np.diag(values))[0] == pytest.approx(1, rel=1e-12)


def test_how_far_random_eigenvectors_lie_along_the_axes():
    values = np.concatenate([[5.0, 4.0, 3.0], np.full(27, 0.01)])
    found = np.array([axial.alignment(planted(values, seed=seed)) for seed in range(40)])
    # the expectation depends on the spectrum alone; observed means over 40 draws lie within 4 standard errors of it
    assert np.ptp(found[:, 1]) < 1e-12
    assert abs(found[:, 0].mean() - found[0, 1]) < 4 * found[:, 0].std() / np.sqrt(40)


def test_a_matrix_is_made_definite_by_its_floor():
    good = planted(np.array([1.0, 2.0, 3.0]))
    matrix, values = axial.definite(good)
    assert np.array_equal(matrix, good)
    assert values == pytest.approx([1, 2, 3], rel=1e-12)
    matrix, values = axial.definite(planted(np.array([-0.5, 0.0, 0.2, 4.0])))
    assert values == pytest.approx([-0.5, 0, 0.2, 4], abs=1e-12)
    # rounding of a product of 4 x 4 matrices of size 4
    assert np.linalg.eigvalsh(matrix) == pytest.approx([4e-8, 4e-8, 0.2, 4], abs=100 * EPS)
    with pytest.raises(LandscapeError, match="no positive eigenvalue"):
        axial.definite(-np.eye(3))
    with pytest.raises(LandscapeError, match="finite"):
        axial.definite(np.array([[1.0, np.nan], [np.nan, 1.0]]))


# -- conjugate gradients ----------------------------------------------------------------------------------------------


def test_conjugate_gradients_find_the_same_minimum():
    d = 80
    matrix, w = planted(np.geomspace(1e-3, 1, d), seed=5), draw(d, seed=2)
    operator = SymmetricOperator.from_dense(torch.from_numpy(matrix))
    order = np.random.default_rng(3).permutation(d)
    exact = axial.nested(matrix, w.numpy(), order)
    before = None
    for k in (10, 40, 79, 80):
        kept = torch.ones(d, dtype=torch.bool)
        kept[torch.from_numpy(order[:k].copy())] = False
        found = axial.least_on(operator, w, kept, start=before, tolerance=1e-7)
        assert found.converged
        # the loss errs by |residual|^2 / (2 least curvature) <= (1e-7 |b|)^2 / 2e-3, |b| <= 5
        assert found.loss == pytest.approx(exact.minima[k], abs=1e-8)
        # and the point by |residual| over it
        assert (found.point - torch.from_numpy(exact.minimiser(k))).norm() < 1e-7 * 5 / 1e-3
        assert (found.point[~kept] == 0).all()
        pull = matrix @ np.where(kept.numpy(), 0, w.numpy())
        rest = (matrix @ (found.point - w).numpy())[kept.numpy()]
        assert np.linalg.norm(rest) <= (found.residual + 1e-10) * np.linalg.norm(pull[kept.numpy()]) + 1e-14
        # begun at the answer there is nothing to do but to see it
        assert axial.least_on(operator, w, kept, start=found.point, tolerance=1e-6).products <= 3
        before = found.point


def test_a_solution_that_stops_short_says_so_and_bounds_from_above():
    d = 60
    matrix, w = planted(np.geomspace(1e-4, 1, d)), draw(d)
    operator = SymmetricOperator.from_dense(torch.from_numpy(matrix))
    kept = torch.arange(d) >= 30
    truth = axial.nested(matrix, w.numpy(), np.arange(30)).minima[30]
    losses = []
    for products in (4, 10, 25):
        found = axial.least_on(operator, w, kept, max_products=products)
        assert not found.converged
        assert found.products <= products + 1
        assert found.residual > axial.TOLERANCE
        losses.append(found.loss)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] > truth
    bent = SymmetricOperator.from_dense(torch.from_numpy(planted(np.linspace(-1, 1, d))))
    with pytest.raises(LandscapeError, match="Gauss-Newton"):
        axial.least_on(bent, w, kept)


# -- questions put wrongly --------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused():
    one, w = density([1.0, 2.0]), np.ones(2)
    for squares in ([0.0], [0.0, 1.0, 2.0, 3.0], [1.0, 2.0], [0.0, -1.0], [0.0, np.nan]):
        with pytest.raises(UsageError, match="squares"):
            axial.most(one, np.array(squares), 1.0)
    for epsilon in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(UsageError, match="positive and finite"):
            axial.most(one, np.array([0.0, 1.0]), epsilon)
    with pytest.raises(UsageError, match="Did you mean 'gordon'"):
        axial.price(one, 0.5, "gordn")
    for alpha in (0.0, 1.1):
        with pytest.raises(UsageError, match=r"\(0, 1\]"):
            axial.price(one, alpha)
    for order in ([], [0, 0], [2], [-1]):
        with pytest.raises(UsageError):
            axial.nested(np.eye(2), w, np.array(order, dtype=int))
    with pytest.raises(LandscapeError, match="not positive definite"):
        axial.nested(rotation(2) * [1, -1] @ rotation(2).T, w, np.array([0, 1]))
