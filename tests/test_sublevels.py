"""Angles between random rays, random planes and sublevel sets, against closed forms on balls and the exact projection on ellipsoids.

Letters: D parameters, E draws, L levels, S radii, k dimensions of a plane, r radius of a ball, R distance of its centre.
"""

import math

import numpy as np
import pytest
import torch
from problems import F64, draw, rotation
from scipy import optimize

from landscape import sublevels, subspaces
from landscape.cones import expected_norm
from landscape.errors import UsageError
from landscape.objectives import Objective
from landscape.seeds import generator
from landscape.sublevels import Sight, nearest

CLOSE = 0.02  # of an angle: the search ends where |x|^2 / 2 changes by 2% or 0.2 dimensions a round, and aims 0.005 of log f inside


def well(matrix: np.ndarray, centre: torch.Tensor, floor: float = 0.0) -> Objective:
    """floor + (w - centre)^T H (w - centre) / 2."""
    h = torch.from_numpy(matrix)
    return Objective.from_function(lambda w: floor + (w - centre) @ h @ (w - centre) / 2, len(centre))


def rays(start: torch.Tensor, draws: int, seed: int = 0) -> np.ndarray:
    """The directions (E, D) of the draws."""
    spaces = [subspaces.random(start, 1, generator(seed, "width", e), "haar") for e in range(draws)]
    return torch.stack([space.push(torch.ones(1, dtype=F64)) for space in spaces]).numpy()


def ball_angles(directions: np.ndarray, towards: np.ndarray, ratio: float) -> np.ndarray:
    """Of rays (E, D) to a ball seen under the half-angle arcsin(ratio): what is left beyond its rim."""
    cosines = directions @ towards / np.linalg.norm(towards)
    return np.maximum(np.arccos(cosines) - math.asin(ratio), 0)


@pytest.mark.parametrize("ratio", [0.3, 0.7, 0.95])
def test_rays_to_a_ball_have_their_closed_form(ratio):
    dim, radius = 60, 3.0
    centre, start = draw(dim, seed=1), draw(dim, seed=2)
    distance = float((start - centre).norm())
    level = (ratio * distance) ** 2 / 2
    found = nearest(well(np.eye(dim), centre), start, [level], draws=5, radii=[radius], planes=False)
    exact = ball_angles(rays(start, len(found.angles)), (centre - start).numpy(), ratio)
    assert (found.angles[:, 0] >= exact - 1e-12).all()  # a point that was met is never nearer than the nearest
    np.testing.assert_allclose(found.angles[:, 0], exact, rtol=CLOSE, atol=CLOSE)
    np.testing.assert_allclose(found.polar().mean(), dim * (np.sin(exact) ** 2).mean(), rtol=2 * CLOSE)
    np.testing.assert_allclose(found.widths().mean(), expected_norm(dim) * np.cos(exact).mean(), rtol=2 * CLOSE)


def test_levels_follow_each_other_and_each_has_its_own_angle():
    dim = 40
    centre, start = draw(dim, seed=1), draw(dim, seed=2)
    ratios = np.array([0.9, 0.6, 0.3])
    levels = (ratios * float((start - centre).norm())) ** 2 / 2
    found = nearest(well(np.eye(dim), centre), start, levels[::-1], draws=4, radii=[3.0], planes=False)
    np.testing.assert_array_equal(found.levels, levels)
    exact = np.stack([ball_angles(rays(start, 4), (centre - start).numpy(), ratio) for ratio in ratios], axis=1)
    np.testing.assert_allclose(found.angles, exact, rtol=CLOSE, atol=CLOSE)
    assert found.progress.shape == (len(found.marks), 4, 3)
    assert (np.diff(found.marks) > 0).all()
    np.testing.assert_array_equal(found.progress[-1], found.angles)
    best = np.fmin.reduce(found.progress, axis=0)
    np.testing.assert_array_equal(best, found.angles)  # an angle once found stays


def ellipsoid_angle(matrix: np.ndarray, away: np.ndarray, level: float, direction: np.ndarray) -> float:
    """The least angle of a direction to the points of {w : w^T H w / 2 <= level}, seen from `away`, by SLSQP over all of them from several starts."""

    def cosine(w: np.ndarray) -> float:
        v = w - away
        return float(-(v @ direction) / np.linalg.norm(v))

    inner = {"type": "ineq", "fun": lambda w: level - w @ matrix @ w / 2, "jac": lambda w: -matrix @ w}
    starts = [0 * away, 0.1 * away, 0.1 * direction]
    found = [
        optimize.minimize(cosine, start, constraints=[inner], method="SLSQP", options={"maxiter": 500, "ftol": 1e-12})
        for start in starts
    ]
    return math.acos(-min(one.fun for one in found if one.x @ matrix @ one.x / 2 <= level * (1 + 1e-6)))


def test_rays_to_an_ellipsoid_are_those_of_a_general_solver():
    dim = 12
    turn = rotation(dim)
    matrix = turn @ np.diag(np.geomspace(1e-2, 10, dim)) @ turn.T
    start = draw(dim, seed=3)
    level = 0.1 * float(start.numpy() @ matrix @ start.numpy()) / 2
    found = nearest(well(matrix, torch.zeros(dim, dtype=F64)), start, [level], planes=False, rounds=20)
    for angle, direction in zip(found.angles[:, 0], rays(start, 8), strict=True):
        exact = ellipsoid_angle(matrix, start.numpy(), level, direction)
        assert exact - 1e-4 <= angle <= exact + CLOSE


@pytest.mark.parametrize("ratio", [0.6, 0.9])
def test_planes_leave_the_angle_of_the_ball_and_give_its_threshold(ratio):
    """The angle between a plane and the ball's axis is arccos |A axis|; what is left is that less the half-angle; and d_k = D (1 - ratio^2), the ball's threshold, whatever k is."""
    dim = 120
    centre, start = draw(dim, seed=1), draw(dim, seed=2)
    axis = ((centre - start) / (centre - start).norm()).numpy()
    level = (ratio * float((start - centre).norm())) ** 2 / 2
    found = nearest(well(np.eye(dim), centre), start, [level], draws=12, radii=[4.0])
    k = int(found.plane_dims[0])
    assert k == math.floor(found.polar().mean() - 2 * math.sqrt(2 * found.polar().mean()))
    for e, angle in enumerate(found.plane_angles[:, 0]):
        rows = subspaces.random(start, k, generator(0, "width", e), "haar").push(torch.eye(k, dtype=F64)).numpy()
        exact = max(math.acos(np.linalg.norm(rows @ axis)) - math.asin(ratio), 0)
        assert exact - 1e-12 <= angle <= exact + CLOSE
    samples = found.planes()[:, 0]
    threshold = dim * (1 - ratio**2)
    assert abs(samples.mean() - threshold) < 4 * samples.std(ddof=1) / math.sqrt(len(samples)) + 0.03 * threshold


def test_planes_to_an_affine_manifold_leave_a_least_singular_value():
    """The cone of {w : N w = n} seen from w_0 is {v : N v = c e, c >= 0}, e along n - N w_0. A ray stands off it by |N g| without what it has along e, if ahead; a plane A by the least singular value of (1 - e e^T) N A^T. A tube about it is thin beside its distance."""
    dim, m = 100, 14
    normal = rotation(dim)[:m].copy()
    start, n = draw(dim, seed=1), torch.from_numpy(normal)
    f = Objective.from_function(lambda w: 1e-2 + (n @ w - 1).square().sum() / 2, dim)
    found = nearest(f, start, [1.5e-2], draws=8, radii=[4.0])
    e = 1 - normal @ start.numpy()
    e /= np.linalg.norm(e)
    across = rays(start, 8) @ normal.T
    squares = (across**2).sum(1) - np.maximum(across @ e, 0) ** 2
    np.testing.assert_allclose(np.sin(found.angles[:, 0]), np.sqrt(squares), atol=2 * CLOSE)
    k = int(found.plane_dims[0])
    assert 2 <= k < m - 1
    near = []
    for index, angle in enumerate(found.plane_angles[:, 0]):
        rows = subspaces.random(start, k, generator(0, "width", index), "haar").push(torch.eye(k, dtype=F64)).numpy()
        least = np.linalg.svd((np.eye(m) - np.outer(e, e)) @ normal @ rows.T, compute_uv=False)[-1]
        assert math.sin(angle) > least - CLOSE
        near.append(math.sin(angle) < least + 3 * CLOSE)
    # the least angle of a plane is no convex problem, and a search may end at another
    assert len(near) == 4 and sum(near) >= 3


def test_planes_that_hit_have_angle_0():
    """Beyond a half-space every other ray lies at once, and all planes: there is none to ask about; a thin slab in two directions is hit by planes of 2 dimensions or more."""
    dim = 30
    start = torch.zeros(dim, dtype=F64)
    f = Objective.from_function(lambda w: torch.nn.functional.softplus(1 - w[0]), dim)
    found = nearest(f, start, [0.5], draws=16)
    assert found.polar().mean() < 4 and found.plane_dims[0] == 0 and np.isnan(found.planes()).all()
    # 4 <= the polar estimate of codimension 5 or so: k = 2, and no plane hits; seen through `_planes` with k beyond it, all do
    normal = torch.from_numpy(rotation(dim)[:3].copy())
    tube = Objective.from_function(lambda w: 1 + (normal @ w - 1).square().sum() / 2, dim)
    gaze = sublevels._Gaze(tube, start, float(tube(start)), np.array([1.2]))
    angles, distances = sublevels._planes(gaze, 3.0, np.array([8]), 6, 20, 0)
    assert (angles == 0).all() and (distances > 0).all()


def test_a_low_level_alone_is_searched_through_those_above_it():
    dim = 40
    f, start = well(np.diag(np.geomspace(0.01, 1, dim)), torch.zeros(dim, dtype=F64)), draw(dim)
    initial = float(f(start))
    assert sublevels._ladder(initial, np.array([0.5 * initial, 0.02 * initial])).tolist() == pytest.approx(
        [
            0.5 * initial,
            0.5 * initial * 25 ** (-1 / 4),
            0.5 * initial / 5,
            0.5 * initial * 25 ** (-3 / 4),
            0.02 * initial,
        ]
    )
    alone = nearest(f, start, [0.02 * initial], draws=3, radii=[4.0], planes=False)
    among = nearest(f, start, [0.5 * initial, 0.02 * initial], draws=3, radii=[4.0], planes=False)
    assert alone.levels.tolist() == [0.02 * initial] and alone.angles.shape == (3, 1) and alone.progress.shape[2] == 1
    both = np.isfinite(alone.angles[:, 0])
    assert both.sum() >= 2
    np.testing.assert_allclose(alone.angles[both, 0], among.angles[both, 1], atol=CLOSE)


def test_a_loss_with_a_floor_is_searched_as_well():
    """Twenty thousand times the height above it: the margin and the penalty are in units of the way down."""
    dim = 30
    centre, start = draw(dim, seed=1), draw(dim, seed=2)
    ratio, height = 0.6, float((start - centre).square().sum()) / 2
    exact = ball_angles(rays(start, 8), (centre - start).numpy(), ratio)
    found = nearest(well(np.eye(dim), centre, floor=1000.0), start, [1000 + ratio**2 * height], planes=False)
    near = exact < 1.4  # beyond, tan^2 is thousands
    assert near.sum() >= 6 and np.isfinite(found.angles[near]).all()
    np.testing.assert_allclose(found.angles[near, 0], exact[near], atol=2 * CLOSE)


def test_only_levels_that_nothing_reaches():
    dim = 10
    found = nearest(well(np.eye(dim), torch.zeros(dim, dtype=F64), floor=1.0), draw(dim), [0.5], rounds=2)
    assert found.reached.tolist() == [0] and np.isnan(found.angles).all() and np.isnan(found.planes()).all()


def test_a_small_cone_has_the_width_of_its_part_of_the_ball():
    """Of a cap of half-angle asin(0.2) in three dimensions: E max(0, sup), a one-dimensional integral."""
    centre, start = torch.tensor([3.0, 0.0, 0.0], dtype=F64), torch.zeros(3, dtype=F64)
    found = nearest(well(np.eye(3), centre), start, [(0.2 * 3) ** 2 / 2], draws=16, radii=[2.0], planes=False, rounds=6)
    angle = np.linspace(0, np.pi, 200001)
    ahead = np.maximum(np.cos(np.maximum(angle - math.asin(0.2), 0)), 0)
    exact = expected_norm(3) * np.trapezoid(ahead * np.sin(angle) / 2, angle)
    samples = found.widths()[:, 0]
    assert abs(samples.mean() - exact) < 4 * samples.std(ddof=1) / math.sqrt(16)


def test_a_start_inside_sees_the_whole_sphere():
    dim = 10
    start = torch.full((dim,), 0.1, dtype=F64)
    found = nearest(well(np.eye(dim), torch.zeros(dim, dtype=F64)), start, [1.0, 0.01], draws=3, radii=[1.0])
    assert found.inside.tolist() == [True, False]
    assert (found.angles[:, 0] == 0).all() and (found.polar()[:, 0] == 0).all()
    np.testing.assert_allclose(found.widths()[:, 0], expected_norm(dim))
    assert found.plane_dims[0] == 0 and (found.planes()[:, 0] == 0).all()
    assert np.isfinite(found.angles[:, 1]).all() and (found.angles[:, 1] > 0).any()
    everywhere = nearest(well(np.eye(dim), torch.zeros(dim, dtype=F64)), start, [1.0])
    assert (everywhere.polar() == 0).all() and everywhere.evaluations == 0


def test_a_start_almost_inside_is_no_trap():
    """At log f 0.02 above the level the least loss on most rays is at the start itself: a search that goes back to it meets nothing."""
    dim = 60
    centre, start = draw(dim, seed=1), draw(dim, seed=2)
    ratio = 0.99
    level = (ratio * float((start - centre).norm())) ** 2 / 2
    found = nearest(well(np.eye(dim), centre), start, [level], planes=False)
    assert found.reached[0] == len(found.angles)
    exact = ball_angles(rays(start, 8), (centre - start).numpy(), ratio)
    np.testing.assert_allclose(found.angles[:, 0], exact, atol=3 * CLOSE)


def test_a_level_that_nothing_reaches_is_said_and_bounded():
    dim = 10
    found = nearest(
        well(np.eye(dim), torch.zeros(dim, dtype=F64), floor=1.0), draw(dim), [2.0, 0.5], draws=4, radii=[2.0], rounds=6
    )
    assert found.reached[0] >= 3 and found.reached[1] == 0
    assert np.isnan(found.angles[:, 1]).all() and np.isnan(found.planes()[:, 1]).all()
    assert (found.polar()[:, 1] == dim).all() and (np.abs(found.widths()[:, 1]) < 1e-12).all()
    assert found.plane_dims[1] == 0
    assert (found.losses >= 1).all()


def test_losses_that_are_not_finite_far_away_make_the_search_begin_nearer():
    dim = 20
    centre, start = draw(dim, seed=1), draw(dim, seed=2)

    def f(w):
        loss = (w - centre).square().sum() / 2
        return loss * torch.where((w - start).norm() > 30, math.inf, 1.0)

    level = 0.3 * float((start - centre).square().sum()) / 2
    found = nearest(Objective.from_function(f, dim), start, [level], radii=[4.0, 100.0], planes=False)
    assert not found.failed[0].any() and found.failed[1].all()
    assert found.reached[0] == 8 and np.isfinite(found.by_radius).all()


def test_draws_do_not_depend_on_how_many_there_are_nor_radii_on_each_other():
    dim = 30
    f, start = well(np.diag(np.geomspace(0.1, 1, dim)), torch.zeros(dim, dtype=F64)), draw(dim)
    level = [0.2 * float(f(start))]
    few, many = (nearest(f, start, level, draws=n, radii=[2.0], planes=False) for n in (3, 6))
    np.testing.assert_allclose(few.angles, many.angles[:3], rtol=1e-6)
    both = nearest(f, start, level, draws=3, radii=[2.0, 5.0], planes=False)
    np.testing.assert_allclose(both.by_radius[0], few.angles, rtol=1e-6)
    np.testing.assert_array_equal(both.angles, np.fmin(*both.by_radius))
    other = nearest(f, start, level, draws=3, radii=[2.0], planes=False, seed=1)
    assert (np.abs(other.angles - few.angles) > 1e-3).all()


def test_groups_that_fit_in_memory_give_what_all_at_once_do(monkeypatch):
    dim = 30
    f, start = well(np.diag(np.geomspace(0.1, 1, dim)), torch.zeros(dim, dtype=F64)), draw(dim)
    level = [0.2 * float(f(start))]
    whole = nearest(f, start, level, draws=4, planes=False)
    monkeypatch.setattr("landscape.sublevels.BYTES", 2 * 12 * (dim + 1) * 8 * 3)
    parts = nearest(f, start, level, draws=4, planes=False)
    np.testing.assert_allclose(whole.angles, parts.angles, rtol=1e-9)


def test_two_parameters_are_enough():
    """A disc in the plane: of rays the exact angle; a plane is a line."""
    centre, start = torch.tensor([3.0, 0.0], dtype=F64), torch.zeros(2, dtype=F64)
    found = nearest(well(np.eye(2), centre), start, [0.5], draws=6, radii=[2.0], planes=False)
    exact = ball_angles(rays(start, 6), centre.numpy(), 1 / 3)
    seen = (
        exact < 1.5
    )  # tan^2 grows without bound up to a right angle, and a search takes as many more rounds; beyond, no point is met at a positive cosine
    np.testing.assert_allclose(found.angles[seen, 0], exact[seen], atol=CLOSE)
    assert (found.polar()[~seen, 0] > 1.9).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"levels": [0.0]}, "positive and finite"),
        ({"levels": []}, "positive and finite"),
        ({"levels": [float("nan")]}, "positive and finite"),
        ({"draws": 1}, "at least 2 draws"),
        ({"rounds": 0}, "1 round"),
        ({"radii": [-1.0]}, "radii are positive"),
        ({"radii": []}, "radii are positive"),
    ],
)
def test_bad_questions_are_refused(options, words):
    f = well(np.eye(3), torch.zeros(3, dtype=F64))
    with pytest.raises(UsageError, match=words):
        nearest(f, draw(3), **{"levels": [0.1], **options})


def test_a_start_without_a_loss_and_a_single_parameter_are_refused():
    f = Objective.from_function(lambda w: (w / 0).sum(), 3)
    with pytest.raises(UsageError, match="loss at the start"):
        nearest(f, draw(3), [0.1])
    with pytest.raises(UsageError, match="D = 1"):
        nearest(well(np.eye(1), torch.zeros(1, dtype=F64)), draw(1), [0.1])


def test_a_draw_that_meets_nothing_counts_as_the_worst():
    angles = np.array([[0.1], [np.nan]])
    none = np.zeros((0, 2, 1))
    sight = Sight(
        np.array([1.0]), np.array([False]), angles, angles, np.array([1.0]), angles[None], np.array([0]), angles, angles,
        np.zeros(0), none, np.zeros(2), np.zeros((1, 2), dtype=bool), 100, 0,
    )  # fmt: skip
    np.testing.assert_allclose(sight.polar()[:, 0], [100 * math.sin(0.1) ** 2, 100])
    np.testing.assert_allclose(sight.widths()[:, 0], [expected_norm(100) * math.cos(0.1), 0], atol=1e-12)
    assert sight.reached.tolist() == [1]
