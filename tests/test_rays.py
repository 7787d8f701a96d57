"""Rays: entries, exits and intervals against the roots of closed forms; what is not finite; and directions against the law of the sphere."""

import itertools
import math

import numpy as np
import pytest
import torch
from problems import F64, close, draw, objective, quadratic, ring
from scipy import stats

from landscape.errors import LandscapeError, UsageError
from landscape.objectives import Objective
from landscape.rays import Rays, random_directions, rays

FINE = 1e-11  # tolerance of crossings: then the loss's own rounding, of the order of eps times its curvature, is below 1e-9
GRID = np.geomspace(1e-2, 20, 80)  # neighbours differ by a tenth


def along_line(function):
    """An objective of one parameter."""
    return Objective.from_function(lambda w: function(w[0]), 1)


def one(f, start, way, levels, radii=GRID, **options) -> Rays:
    """The ray along one direction, given in any length."""
    way = torch.as_tensor(way, dtype=F64)
    return rays(f, torch.as_tensor(start, dtype=F64), (way / way.norm())[None], radii, levels, **options)


# -- closed forms -----------------------------------------------------------------------------------------------------


def chords(problem, directions, levels):
    """Roots of a quadratic along each ray, (E, L, 2): where it enters and leaves, NaN where it misses. By its closed form in numpy."""
    w, found = problem.point.numpy(), np.full((len(directions), len(levels), 2), np.nan)
    for e, u in enumerate(directions.numpy()):
        # the loss on the ray is a r^2 / 2 + b r + c
        a, b, c = u @ problem.hessian(w) @ u, problem.gradient(w) @ u, problem.value(w)
        for i, level in enumerate(levels):
            square = b**2 - 2 * a * (c - level)
            if square > 0:
                found[e, i] = (-b + np.array([-1, 1]) * math.sqrt(square)) / a
    return found


@pytest.mark.parametrize("share", [3.0, 1.001, 0.7, 0.2])
def test_a_quadratic_is_crossed_where_its_parabola_is(share):
    problem = quadratic(np.linspace(0.2, 3, 4), seed=4)
    level = share * problem.value(problem.point.numpy())
    directions = random_directions(4, 200, 0)
    found = rays(problem.f, problem.point, directions, GRID, [level], tolerance=FINE)
    assert (found.error <= FINE * found.crossing * 1.01).all()
    low, high = chords(problem, directions, [level])[:, 0].T
    if share > 1:  # inside: each ray leaves once
        assert (found.intervals == 1).all()
        assert (found.entries == 0).all()
        close(found.exits[:, 0], high, 1e-9)
        return
    met = (low > 0) & (high < GRID[-1])  # of the line, the half ahead
    # one-sided: what is seen is there, and a chord longer than the widest gap between neighbours is seen
    seen = found.intervals[:, 0] == 1
    assert not (seen & ~met).any()
    grid = np.concatenate([[0], GRID])
    crossed = np.array([((grid > a) & (grid < b)).any() for a, b in zip(low, high, strict=True)])
    assert (seen == (met & crossed)).all()
    assert seen.sum() > 5
    close(found.entries[seen, 0], low[seen], 1e-9)
    close(found.exits[seen, 0], high[seen], 1e-9)
    assert np.isinf(found.entries[~seen]).all()
    assert np.isnan(found.exits[~seen]).all()
    assert found.stretches(int(np.flatnonzero(seen)[0]), 0) == pytest.approx(
        np.array([[low[seen][0], high[seen][0]]]), rel=1e-9
    )


def test_the_ring_is_entered_and_left_on_its_two_circles():
    # (|w|^2 - 1)^2 / 4 <= e: 1 - 2 sqrt(e) <= |w|^2 <= 1 + 2 sqrt(e), from the centre in every direction alike
    levels = np.array([0.2, 0.1, 0.01])
    found = rays(ring(3).f, torch.zeros(3, dtype=F64), random_directions(3, 9, 1), GRID, levels, tolerance=FINE)
    for place, level in enumerate(levels):
        close(found.entries[:, place], np.full(9, math.sqrt(1 - 2 * math.sqrt(level))), 1e-9)
        close(found.exits[:, place], np.full(9, math.sqrt(1 + 2 * math.sqrt(level))), 1e-9)
    assert (found.intervals == 1).all()


@pytest.mark.parametrize(
    ("angle", "intervals"), [(0.0, 1), (30.0, 1), (89.0, 1), (115.0, 1), (120.0, 2), (150.0, 2), (180.0, 2)]
)
def test_a_ring_is_not_star_shaped_about_a_point_in_it(angle, intervals):
    # from |w| = 1 at `angle` to the radius, |w + r u|^2 = 1 + 2 r cos + r^2; the hole, |w|^2 < 1 - 2 sqrt(e) = 0.8, is met where sin^2 < 0.8 behind
    level, c = 0.01, math.cos(math.radians(angle))
    bends = [[-c + s * math.sqrt(c**2 - 1 + b) for s in (-1, 1) if c**2 - 1 + b > 0] for b in (0.8, 1.2)]
    truth = np.array(sorted(r for r in itertools.chain(*bends) if r > 0))
    found = one(ring(2).f, [1.0, 0.0], [c, math.sqrt(max(1 - c**2, 0))], [level], tolerance=FINE)
    assert found.intervals.item() == intervals
    close(found.crossing, truth, 1e-8)
    assert found.entering.tolist() == [False, True, False][: len(truth)]
    close(found.stretches(0, 0).ravel(), np.array([0.0, *truth]), 1e-8)


def test_two_wells_have_two_intervals():
    # (w^2 - 1)^2 <= 1/4: sqrt(1/2) <= |w| <= sqrt(3/2)
    inner, outer = math.sqrt(0.5), math.sqrt(1.5)
    wells = along_line(lambda w: (w**2 - 1) ** 2)
    both = rays(wells, torch.tensor([-1.0], dtype=F64), torch.tensor([[1.0], [-1.0]], dtype=F64), GRID, [0.25, 2.0], tolerance=FINE)  # fmt: skip
    assert both.levels.tolist() == [2.0, 0.25]  # the easier set first
    assert both.intervals.tolist() == [[1, 2], [1, 1]]
    close(both.stretches(0, 1), np.array([[0, 1 - inner], [1 + inner, 1 + outer]]), 1e-9)
    close(both.exits[:, 1], np.array([1 - inner, outer - 1]), 1e-9)
    # from outside, and not as far as the second well's end
    short = one(wells, [-3.0], [1.0], [0.25], radii=np.linspace(0.1, 4, 40), tolerance=FINE)
    close(short.stretches(0, 0), np.array([[3 - outer, 3 - inner], [3 + inner, 4]]), 1e-9)
    assert [short.entries.item(), short.exits.item()] == pytest.approx([3 - outer, 3 - inner], rel=1e-9)


def test_each_ray_may_have_distances_of_its_own():
    bowl = Objective.from_function(lambda w: w @ w, 2)
    radii = np.stack([np.linspace(0.1, 0.8, 5), np.linspace(0.3, 3, 7)[:5]])
    found = rays(bowl, torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64), radii, [1.0], tolerance=FINE)
    assert found.distances[:, 1:] == pytest.approx(radii)
    assert np.isinf(found.exits[0, 0])  # 0.8 is inside
    close(found.exits[1], np.ones(1), 1e-9)
    close(found.losses, found.distances**2, 1e-14)


def test_the_default_tolerance_is_kept():
    bowl = Objective.from_function(lambda w: w @ w, 3)
    found = rays(bowl, torch.zeros(3, dtype=F64), torch.eye(3, dtype=F64), GRID, [4.0, 1.0, 1e-8])
    truth = np.sqrt([4.0, 1.0, 1e-8])
    assert (np.abs(found.exits - truth) <= found.error.reshape(3, 3) + 1e-12).all()
    # relative to the distance, before the first radius too
    assert (found.error.reshape(3, 3) <= 1e-3 * truth * 1.01).all()
    assert (np.abs(found.exits - truth) > 0).any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("first", [1e3, 1e28])
def test_a_first_radius_far_beyond_a_crossing_costs_no_accuracy(first, dtype):
    # |w|^2 = 4 and 1 from (0.6, 0), at -0.6 cos + sqrt(level - 0.36 sin^2); float32 squares 1e28 to infinity, which is outside
    bowl = Objective.from_function(lambda w: w @ w, 2, dtype=dtype)
    directions = random_directions(2, 6, 0)
    found = rays(bowl, torch.tensor([0.6, 0.0], dtype=F64), directions, [first, 2 * first], [4.0, 1.0])
    cosines = directions[:, 0].numpy()[:, None]
    truth = -0.6 * cosines + np.sqrt([4.0, 1.0] - 0.36 * (1 - cosines**2))
    # and some roundings of float32: of the loss, 1e-7 over its slope, 0.8 at the least
    assert np.abs(found.exits / truth - 1).max() < 1e-3 + 1e-6
    assert (found.error <= 1e-3 * found.crossing * 1.01).all()


def test_a_crossing_at_the_start_is_told_no_closer_than_its_rounding():
    # the level is the loss of the start, and every step along the first axis leaves the set
    slope = Objective.from_function(lambda w: w[0], 2)
    start = torch.tensor([3.0, 4.0], dtype=F64)
    found = rays(slope, start, torch.eye(2, dtype=F64)[:1], [1.0, 2.0], [3.0])
    rounding = 5 * np.finfo(float).eps
    assert 0 < found.crossing.item() + found.error.item() <= rounding
    # from the origin there is no such limit: |w|^2 = 1e-30
    bowl = Objective.from_function(lambda w: w @ w, 2)
    from_0 = rays(bowl, 0 * start, torch.eye(2, dtype=F64), [1.0, 2.0], [1e-30])
    assert from_0.exits.ravel() == pytest.approx([1e-15, 1e-15], rel=1e-3)


def test_a_network_has_the_loss_of_its_points():
    f, point = objective("mlp")
    directions = random_directions(f.dim, 3, 2)
    found = rays(f, point, directions, [0.5, 2.0], [1.0])
    for e, k in itertools.product(range(3), range(3)):
        # lockstep sums in another order
        close(found.losses[e, k], float(f(point + [0.0, 0.5, 2.0][k] * directions[e])), 1e-12)


# -- what is not finite -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beyond", [math.nan, math.inf])
def test_the_edge_of_the_finite_is_an_exit(beyond):
    wall = Objective.from_function(lambda w: torch.where(w @ w > 4, torch.full((), beyond, dtype=F64), w @ w / 8), 3)
    found = rays(wall, torch.zeros(3, dtype=F64), random_directions(3, 5, 0), GRID, [10.0, 0.125], tolerance=FINE)
    close(found.exits[:, 0], np.full(5, 2.0), 1e-9)
    close(found.exits[:, 1], np.ones(5), 1e-9)
    bad = found.distances > 2
    assert (np.isfinite(found.losses) == ~bad).all()  # kept, and nowhere else
    assert not found.inside[bad[:, None].repeat(2, 1)].any()


def test_a_gap_of_nan_is_outside():
    gap = along_line(lambda w: torch.where((w > 1) & (w < 2), torch.nan, 0.0 * w))
    found = one(gap, [0.0], [1.0], [0.0], tolerance=FINE)
    close(found.stretches(0, 0), np.array([[0, 1], [2, GRID[-1]]]), 1e-9)


def test_a_start_without_a_loss_has_no_rays():
    with pytest.raises(LandscapeError, match="start"):
        one(along_line(torch.log), [-1.0], [1.0], [0.0])


# -- directions -------------------------------------------------------------------------------------------------------


def test_directions_are_uniform():
    # a coordinate of a uniform direction is that of the cap: in three dimensions itself uniform on [-1, 1]; in D its square has Beta(1/2, (D - 1)/2)
    three = random_directions(3, 4000, 0).numpy()
    assert np.linalg.norm(three, axis=1) == pytest.approx(1, abs=1e-12)
    assert stats.kstest(three[:, 0], stats.uniform(-1, 2).cdf).pvalue > 1e-3
    many = random_directions(50, 2000, 1).numpy()
    assert stats.kstest(many[:, 7] ** 2, stats.beta(0.5, 24.5).cdf).pvalue > 1e-3
    # and the sum of all: each of the D entries of the mean of 2,000 has a standard error of 1 / sqrt(50 * 2000)
    assert np.abs(many.mean(0)).max() < 4.5 / math.sqrt(50 * 2000)


def test_directions_of_few_are_the_first_of_many():
    assert torch.equal(random_directions(37, 5, 3), random_directions(37, 12, 3)[:5])
    assert not torch.equal(random_directions(37, 5, 3), random_directions(37, 5, 4))


def test_the_share_that_reaches_a_ball_is_its_solid_angle():
    # a ball of radius 3/5 at distance 1 in three dimensions: a cone of half-angle arcsin 3/5, of which (1 - cos) / 2 = 1/10 of all directions
    centre = torch.tensor([0.0, 0.0, 1.0], dtype=F64)
    ball = Objective.from_function(lambda w: (w - centre) @ (w - centre), 3)
    n = 2000
    # a chord of less than the gap at 0.8, 0.013, may be missed: half-angles closer than 2e-4 to the edge, a share of 1e-4
    found = rays(ball, torch.zeros(3, dtype=F64), random_directions(3, n, 5), np.linspace(0.1, 2, 150), [0.36])
    share = (found.intervals[:, 0] > 0).mean()
    assert abs(share - 0.1) < 4 * math.sqrt(0.1 * 0.9 / n) + 1e-4


# -- questions that are none ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"levels": []}, "levels"),
        ({"levels": [1.0, math.nan]}, "levels"),
        ({"levels": [math.inf]}, "levels"),
        ({"radii": []}, "radii"),
        ({"radii": [0.0, 1.0]}, "radii"),
        ({"radii": [1.0, 1.0]}, "radii"),
        ({"radii": [1.0, math.inf]}, "radii"),
        ({"radii": [[1.0, 2.0]] * 3}, r"\(2, K\)"),
        ({"radii": 1.0}, "radii"),
        ({"directions": 2 * torch.eye(2, 3, dtype=F64)}, "length 1"),
        ({"directions": torch.full((2, 3), math.nan, dtype=F64)}, "length 1"),
        ({"directions": torch.zeros(0, 3, dtype=F64)}, "directions"),
        ({"directions": torch.eye(2, dtype=F64)}, "directions"),
        ({"start": torch.zeros(2, dtype=F64)}, "start"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"tolerance": 1.0}, "tolerance"),
    ],
)
def test_rays_that_are_none_are_refused(change, says):
    asked = {"start": draw(3), "directions": torch.eye(2, 3, dtype=F64), "radii": [1.0, 2.0], "levels": [1.0], **change}
    with pytest.raises(UsageError, match=says):
        rays(ring(3).f, **asked)


def test_no_directions_are_refused():
    with pytest.raises(UsageError, match="at least 1"):
        random_directions(3, 0, 0)
