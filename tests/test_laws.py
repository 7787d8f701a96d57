"""Exact laws of random and trajectory subspaces, met by our objects: subspaces restrict an objective, and where it is quadratic its least value there is solved for.

Letters: D parameters, d subspace dimension, m codimension of a manifold, E draws, R distance from the start to the solution, r radius, P probability of a hit.

The laws are closed forms; what is drawn is E independent subspaces (seeds 0 to E - 1), all members of one ensemble. Counts of hits lie within 4 standard errors of
the law (a true law fails so once in 16,000 times), samples pass a Kolmogorov-Smirnov test at one in 1,000: the seeds are fixed, so these do not fail by chance.
The sizes are such that a dimension wrong by one or two would fail: `test_the_laws_tell_a_wrong_dimension` tries it.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import F64, close, draw, objective, planted, quadratic, rotation
from scipy import linalg, stats
from torch import Tensor

from landscape import descent, subspaces
from landscape.errors import UsageError
from landscape.objectives import Objective
from landscape.seeds import generator
from landscape.subspaces import BASES, Subspace
from landscape.trajectories import CENTRINGS, Centring, Entry, Layout, Row, Trajectory, TrajectoryWriter

# the span of their rows is uniform on the Grassmannian, exactly or (srht) nearly so for a target in general position
UNIFORM = ("gaussian", "haar", "srht")
ROUNDING = 1e-10  # algebra in float64 on matrices whose conditioning costs up to four digits
DRAWS = {"gaussian": 800, "haar": 800, "srht": 250, "sparse": 250}  # the first two are stored as one array, and faster


def ellipsoid(matrix: np.ndarray) -> Objective:
    """w^T A w / 2: least, 0, at the origin."""
    a = torch.from_numpy(matrix)
    return Objective.from_function(lambda w: w @ a @ w / 2, len(matrix))


def planes(start: Tensor, dims: list[int], basis: str) -> Subspace:
    """A random subspace of each dimension through one start (D,), each of a seed of its own."""
    return subspaces.ensemble(start.expand(len(dims), -1), dims, range(len(dims)), basis)


def least(f: Objective, s: Subspace) -> np.ndarray:
    """The least values (E,) of a quadratic objective on the E subspaces, from its gradients there: g(z) = b + M z is least where z = -M^+ b."""
    g = f.restrict(s)
    zero = torch.zeros(len(s.origin), s.dim, dtype=F64)
    slope = g.gradient(zero)
    matrix = torch.stack([g.gradient(zero + axis) - slope for axis in torch.eye(s.dim, dtype=F64)], dim=2)
    best = -(torch.linalg.pinv(matrix, rtol=1e-10, hermitian=True) @ slope.unsqueeze(2)).squeeze(2)
    return g(best).numpy()


def follows(sample: np.ndarray, law: stats.rv_continuous) -> bool:
    """Kolmogorov-Smirnov at one in 1,000."""
    return bool(stats.kstest(sample, law.cdf).pvalue > 1e-3)


def hits_agree(hits: np.ndarray, probability: float) -> bool:
    """Whether the share of hits is the probability, within 4 standard errors."""
    return bool(abs(hits.mean() - probability) <= 4 * math.sqrt(probability * (1 - probability) / len(hits)))


# -- random affine subspaces and what they meet -------------------------------------------------------------------------


@pytest.mark.parametrize("basis", UNIFORM)
def test_t5_a_random_subspace_hits_a_ball_by_the_beta_law(basis: str) -> None:
    """P = I_{r^2 / R^2}((D - d) / 2, d / 2) at three dimensions across the transition, for the ball of radius r at distance R from the start."""
    ambient, ratio = 40, 0.5  # r / R; half of all subspaces hit at about d = D (1 - r^2 / R^2) = 30
    centre, start = draw(ambient, seed=1), draw(ambient, seed=2)
    radius = ratio * float((start - centre).norm())
    dims = [26, 30, 34]
    s = planes(start, dims * (DRAWS[basis] // 2), basis)
    hits = (s.residual(centre.expand_as(s.origin)) <= radius).numpy().reshape(-1, 3)
    laws = [stats.beta.cdf(ratio**2, (ambient - d) / 2, d / 2) for d in dims]
    assert 0.05 < laws[0] < 0.3 < laws[1] < 0.7 < laws[2] < 0.95
    for own, law in zip(hits.T, laws, strict=True):
        assert hits_agree(own, law)


@pytest.mark.parametrize("ambient", [20, 45])
@pytest.mark.parametrize("basis", UNIFORM)
def test_t7_a_tube_about_a_manifold_is_hit_by_a_law_of_its_codimension_alone(basis: str, ambient: int) -> None:
    """P = I_{r^2 / R^2}((m - d) / 2, d / 2) for m = 12, whatever D is; the manifold itself (r = 0) is hit if and only if d >= m.

    The objective is half the squared distance from the affine manifold: least(f) <= r^2 / 2 is a hit.
    """
    m, d, ratio = 12, 6, 0.6
    normal = torch.from_numpy(rotation(ambient)[:m].copy())
    foot, start = draw(ambient, seed=1), draw(ambient, seed=2)
    f = Objective.from_function(lambda w: (normal @ (w - foot)).square().sum() / 2, ambient)
    height = float(f(start))
    found = least(f, planes(start, [d] * DRAWS[basis], basis)) / height
    assert hits_agree(found <= ratio**2, stats.beta.cdf(ratio**2, (m - d) / 2, d / 2))
    assert follows(found, stats.beta((m - d) / 2, d / 2))
    exact = least(f, planes(start, list(range(1, 19)), basis)) / height
    assert (exact[m - 1 :] < 1e-15).all()  # a square of relative rounding, with room for conditioning
    assert (exact[: m - 1] > 1e-6).all()


@pytest.mark.parametrize("basis", UNIFORM)
def test_t8_linear_subspaces_meet_where_their_dimensions_exceed_the_whole(basis: str) -> None:
    """Through 0, along a random d-dimensional subspace, half the squared distance from a linear subspace of dimension d_S = 9 in D = 24 has
    as many zero curvatures as the two have common directions: max(0, d + d_S - D)."""
    ambient, other = 24, 9
    away = torch.from_numpy(rotation(ambient)[: ambient - other].copy())
    f = Objective.from_function(lambda w: (away @ w).square().sum() / 2, ambient)
    for d in range(1, ambient + 1):
        s = subspaces.random(torch.zeros(ambient, dtype=F64), d, generator(d, "t8"), basis)
        curvatures = np.linalg.eigvalsh(f.restrict(s).hessian(torch.zeros(d, dtype=F64)).dense())
        assert (np.abs(curvatures) < ROUNDING).sum() == max(0, d + other - ambient)


@pytest.mark.parametrize("d", [3, 14])
@pytest.mark.parametrize("basis", UNIFORM)
def test_t9_what_is_left_of_an_isotropic_well_is_beta(basis: str, d: int) -> None:
    """L_min / L_0 ~ Beta((D - d) / 2, d / 2), of mean 1 - d / D."""
    ambient = 40
    f, start = ellipsoid(np.eye(ambient)), draw(ambient, seed=3)
    left = least(f, planes(start, [d] * DRAWS[basis], basis)) / float(f(start))
    law = stats.beta((ambient - d) / 2, d / 2)
    assert follows(left, law)
    assert abs(left.mean() - (1 - d / ambient)) < 4 * law.std() / math.sqrt(len(left))


def test_the_laws_tell_a_wrong_dimension() -> None:
    """The sample of one dimension less or more does not follow the law: the tests above can fail."""
    ambient = 40
    f, start = ellipsoid(np.eye(ambient)), draw(ambient, seed=3)
    for d in (13, 15):
        left = least(f, planes(start, [d] * DRAWS["gaussian"], "gaussian")) / float(f(start))
        assert not follows(left, stats.beta((ambient - 14) / 2, 14 / 2))


@pytest.mark.parametrize("basis", UNIFORM)
def test_t10_the_toy_of_li_et_al_has_intrinsic_dimension_10(basis: str) -> None:
    """D = 1,000 in ten groups whose sums are to be 1 (Li et al. 2018, section 2): the mean of L_min / L_0 is 1 - d / 10, and 0 from d = 10 on."""
    f = Objective.from_function(lambda w: (w.view(10, 100).sum(1) - 1).square().sum(), 1000)
    start = draw(1000, seed=4)
    dims = [2, 5, 9, 10, 12]
    left = (least(f, planes(start, dims * 40, basis)) / float(f(start))).reshape(-1, 5)
    for own, d in zip(left.T[:3], dims, strict=False):
        law = stats.beta((10 - d) / 2, d / 2)
        assert abs(own.mean() - (1 - d / 10)) < 4 * law.std() / math.sqrt(40)
    assert left[:, 2].min() > 1e-9  # 9 dimensions never do
    assert left[:, 3:].max() < 1e-15


@pytest.mark.parametrize("basis", UNIFORM)
def test_t16_the_share_of_a_gradient_in_a_random_subspace_is_beta(basis: str) -> None:
    """cos^2 of the angle between the gradient of a network and its random subspace ~ Beta(d / 2, (D - d) / 2)."""
    f, point = objective("mlp")
    gradient = f.gradient(point)
    d, ambient = 8, len(point)
    s = planes(torch.zeros_like(point), [d] * DRAWS[basis], basis)
    outside = s.residual(gradient.expand_as(s.origin)) / gradient.norm()
    assert follows((1 - outside.square()).numpy(), stats.beta(d / 2, (ambient - d) / 2))
    if basis == "haar":  # of orthonormal directions it is the gradient by the coordinates
        inside = f.restrict(s.at(point.expand_as(s.origin))).gradient(torch.zeros(len(s.origin), d, dtype=F64))
        close(inside.norm(dim=1).square() / gradient.norm() ** 2, 1 - outside.square(), ROUNDING)


@pytest.mark.parametrize("basis", BASES)
def test_t16_a_fixed_direction_lies_in_a_random_subspace_by_d_over_D_on_average(basis: str) -> None:
    """|B g|^2 / |g|^2 has mean d / D and standard deviation at most sqrt(2 d) / D, for an axis and for a ramp, sparse bases too.

    Gaussian rows are not orthogonal, but the mean over rows of (b . g)^2 is 1 / D for them too.
    """
    ramp, axis = torch.arange(64.0, dtype=F64), torch.eye(64, dtype=F64)[5]
    s = planes(torch.zeros(64, dtype=F64), [8] * DRAWS[basis], basis)
    for g in (ramp / ramp.norm(), axis):
        shares = s.project(g.expand_as(s.origin)).square().sum(1)
        assert abs(float(shares.mean()) - 8 / 64) < 4 * math.sqrt(2 * 8) / 64 / math.sqrt(len(shares))


def test_t20_gaussian_rows_have_unit_norm_and_singular_values_within_the_edges() -> None:
    """Singular values lie in 1 ± sqrt(d / D), beyond it by t with probability below 2 exp(-D t^2 / 2); t = 0.1 at D = 2,000 gives 1e-4."""
    s = subspaces.random(torch.zeros(2000, dtype=F64), 200, generator(0, "t20"))
    rows = s.push(torch.eye(200, dtype=F64))
    close(rows.norm(dim=1), np.ones(200), 1e-13)
    values = np.sqrt(np.linalg.eigvalsh((rows @ rows.T).numpy()))
    edge = math.sqrt(200 / 2000)
    assert 1 - edge - 0.1 < values.min() < 1 - edge + 0.1
    assert 1 + edge - 0.1 < values.max() < 1 + edge + 0.1


def test_t20_the_span_of_gaussian_rows_is_haar() -> None:
    """Entries of the projector on its diagonal are the shares of the axes: Beta(d / 2, (D - d) / 2), one axis a draw (those of one draw depend on each other)."""
    ambient, d = 30, 7
    s = planes(torch.zeros(ambient, dtype=F64), [d] * DRAWS["gaussian"], "gaussian")
    axes = torch.eye(ambient, dtype=F64)[torch.arange(len(s.origin)) % ambient]
    assert follows((1 - s.residual(axes).square()).numpy(), stats.beta(d / 2, (ambient - d) / 2))


@pytest.mark.parametrize("length", [2, 16, 256, 2048])
def test_t21_hadamard_is_scipy_s_and_its_own_inverse(length: int) -> None:
    x = draw(3, length)
    close(subspaces.hadamard(x), x.numpy() @ linalg.hadamard(length) / math.sqrt(length), 1e-13)
    close(subspaces.hadamard(subspaces.hadamard(x)), x, 1e-13)


def test_t21_srht_is_orthonormal_for_powers_of_two() -> None:
    s = subspaces.random(torch.zeros(1024, dtype=F64), 300, generator(0, "t21"), "srht")
    rows = s.push(torch.eye(300, dtype=F64))
    close(rows @ rows.T, np.eye(300), 1e-13)


@pytest.mark.parametrize("basis", BASES)
def test_t22_inside_the_set_every_subspace_hits(basis: str) -> None:
    """Where L(w_0) <= epsilon coordinate 0 is a hit: d* = 0, P = 1 for every d. The paper's bound does not know it."""
    truth = quadratic(np.linspace(0.1, 2, 30))
    level = truth.value(truth.point.numpy()) * (1 + 1e-12)
    s = planes(truth.point, list(range(1, 31)), basis)
    close(truth.f.restrict(s)(torch.zeros(30, 30, dtype=F64)), np.full(30, truth.value(truth.point.numpy())), 1e-12)
    assert (least(truth.f, s) <= level).all()


@pytest.mark.parametrize("basis", BASES)
def test_t23_scaling_level_and_distance_together_changes_nothing(basis: str) -> None:
    """(epsilon, R) -> (c^2 epsilon, c R): the least value from c w_0 is c^2 times that from w_0 in each subspace, so each has the same threshold."""
    f, start, c = ellipsoid(planted(np.geomspace(1e-2, 1, 30))), draw(30, seed=5), 5.0
    dims = list(range(1, 31)) * 2
    near, far = (least(f, planes(scale * start, dims, basis)).reshape(2, 30) for scale in (1.0, c))
    close(far / c**2, near, 1e-12)
    for share in (0.3, 0.1, 0.03):
        level = share * float(f(start))
        np.testing.assert_array_equal((near <= level).argmax(1), (far <= c**2 * level).argmax(1))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(UNIFORM), st.floats(0, 3), st.integers(2, 24))
def test_the_least_value_never_grows_along_nested_subspaces(
    seed: int, basis: str, decades: float, ambient: int
) -> None:
    """Prefixes of one basis: L_min(d) falls with d to 0 at d = D. Rounding enters as the square of eps times the condition number of B A B^T, about 10^8 at worst."""
    f = ellipsoid(planted(10.0 ** np.linspace(-decades, 0, ambient), seed=seed))
    start = draw(ambient, seed=seed + 1)
    s = subspaces.ensemble(start.expand(ambient, -1), range(1, ambient + 1), [seed] * ambient, basis)
    values = np.array([float(f(start)), *least(f, s)])
    assert (np.diff(values) <= 1e-8 * values[0]).all()
    assert values[-1] <= 1e-8 * values[0]


# -- trajectories -------------------------------------------------------------------------------------------------------


def stored(folder: Path, points: np.ndarray) -> Trajectory:
    """A store of the points (T, D)."""
    writer = TrajectoryWriter(folder, Layout((Entry("w", (points.shape[1],), 0, "float64", "parameter"),)))
    for step, point in enumerate(points):
        writer.append(Row(step, point, np.empty(0), 0.0, 0.1))
    writer.commit()
    return Trajectory.open(folder)


@pytest.mark.parametrize("centring", CENTRINGS)
def test_t17_the_trajectory_of_a_quadratic_has_its_rank_and_leads_to_its_minimum(
    tmp_path: Path, centring: Centring
) -> None:
    """Gradient descent from w_0 stays in the span of the m = 5 parts of w_0 - c in the eigenspaces: m directions of its trajectory reach the minimum, m - 1 do not,
    and m + 1 there are not."""
    m = 5
    truth = quadratic(np.repeat([0.2, 0.5, 1.0, 1.5, 1.9], 6))
    recipe = descent.Recipe(steps=30, lr=1.0, momentum=0.0)
    path = stored(
        tmp_path, np.stack([state.point.numpy() for state in descent.descend(truth.f, truth.point, recipe, 0)])
    )
    height = truth.value(truth.point.numpy())
    assert truth.value(path.points(30)[0]) > 1e-6 * height  # descent itself is not there yet
    few, enough = (
        least(truth.f, subspaces.principal(truth.point.unsqueeze(0), path, d, centring=centring))[0] / height
        for d in (m - 1, m)
    )
    assert enough < 1e-20
    assert few > 1e-12
    with pytest.raises(UsageError, match=f"span {m}"):
        path.principal(m + 1, centring=centring)


def test_t18_a_random_walk_has_most_of_its_variance_in_few_directions(tmp_path: Path) -> None:
    """Shares 6 / (pi^2 k^2) of its principal directions, for long walks in many dimensions: 60.8%, 15.2%, 6.8% mean nothing about a landscape.

    Each share is a mean over D independent walks, with a relative error of sqrt(2 / D) = 2.6% (four of them are allowed) and a bias of order k^2 / T^2.
    """
    steps, ambient = 400, 3000
    walk = np.cumsum(np.random.default_rng(0).standard_normal((steps, ambient)), axis=0)
    _, variances = stored(tmp_path, walk).principal(1)
    shares = variances[:5] / variances.sum()
    law = 6 / (math.pi * np.arange(1, 6)) ** 2
    np.testing.assert_allclose(shares, law, rtol=4 * math.sqrt(2 / ambient))
