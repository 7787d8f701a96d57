"""The dimension of a trajectory: dense singular values and closed forms for everything that is computed from inner products alone, laws of random subspaces by drawing them.

Letters: D parameters, T recorded points, n = T - 1 increments, k dimensions of a subspace.
"""

import json
import math
import tracemalloc

import numpy as np
import pytest
import scipy.linalg
import torch
from problems import EPS, close, planted, rotation
from torch import nn

from landscape import recordings, tasks, trajectories
from landscape.analysis import dimensions as home
from landscape.analysis.dimensions import (
    Components,
    Dimensions,
    chance,
    chosen,
    dimension,
    overlap_spread,
    random_cosines,
    walk,
)
from landscape.analysis.styles import rendered
from landscape.cli import measuring
from landscape.cli.app import main
from landscape.cli.options import Common, Subject
from landscape.errors import LandscapeError, UsageError
from landscape.objectives import Objective, Rows
from landscape.results import Result
from landscape.runs import Run, place
from landscape.trajectories import CENTRINGS, Entry, Layout, Row, Trajectory, TrajectoryWriter

D = 40


def stored(folder, points, steps=None, layout=None, buffers=None) -> Trajectory:
    """A trajectory of these points (T, D), by default at steps 0, 10, 20, ..."""
    points = np.asarray(points, dtype=float)
    writer = TrajectoryWriter(folder, layout or Layout((Entry("w", (points.shape[1],), 0, "float64", "parameter"),)))
    for t, point in enumerate(points):
        row = np.empty(0) if buffers is None else buffers[t]
        writer.append(Row(10 * t if steps is None else int(steps[t]), point, row, math.nan, 0.1))
    writer.commit()
    return Trajectory.open(folder)


def wandering(points: int = 9, dim: int = D, seed: int = 0) -> np.ndarray:
    """Points (T, D) with a drift, of steps that shrink: no two singular values are alike."""
    rng = np.random.default_rng(seed)
    moves = (0.3 * rng.normal(size=dim) + rng.normal(size=(points - 1, dim))) * 0.8 ** np.arange(points - 1)[:, None]
    return rng.normal(size=dim) + np.vstack([np.zeros(dim), np.cumsum(moves, axis=0)])


def made(points: np.ndarray, centring: str) -> np.ndarray:
    """What a convention decomposes, written out."""
    return {
        "centred": points - points.mean(axis=0),
        "uncentred": points[1:] - points[0],
        "increments": np.diff(points, axis=0),
    }[centring]


def frame(points: np.ndarray, centring: str) -> tuple[np.ndarray, np.ndarray]:
    """Singular values and orthonormal directions in rows, by a dense decomposition."""
    _, values, directions = np.linalg.svd(made(points, centring), full_matrices=False)
    keep = values > 1e-9 * values[0]
    return values[keep], directions[keep]


def bowl(spectrum: np.ndarray, centre: float = 0.3) -> tuple[Objective, np.ndarray]:
    """(w - c)^T A (w - c) / 2; returns f and A. The gradient is A (w - c)."""
    matrix = planted(spectrum)
    a = torch.from_numpy(matrix)
    return Objective.from_function(lambda w: (w - centre) @ a @ (w - centre) / 2, len(spectrum)), matrix


def flat(dim: int = D, direction: int = 0) -> Objective:
    """f(w) = w_i: the gradient is an axis, everywhere."""
    return Objective.from_function(lambda w: w[direction], dim)


# -- components by inner products ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("centring", CENTRINGS)
def test_components_are_those_of_the_singular_values(centring):
    points = wandering()
    moves = np.diff(points, axis=0)
    found = Components.of(moves @ moves.T, centring)
    values, directions = frame(points, centring)
    # a Gram matrix knows variances to eps of the first, some 1e3 above the last here, so that directions are good to 1e3 eps / (relative gap 0.01)
    close(found.variances / values**2, np.ones(len(values)), 1e-11)
    ours = found.weights.T @ moves
    close(ours @ ours.T, np.eye(len(values)), 1e-10)
    close(np.abs(np.sum(ours * directions, axis=1)), np.ones(len(values)), 1e-10)
    close(np.abs(found.reach), np.abs(directions @ (points[-1] - points[0])), 1e-10)
    close(found.shares, values**2 / np.sum(values**2), 1e-12)


@pytest.mark.parametrize("centring", CENTRINGS)
def test_what_is_captured_is_a_least_squares_residual(centring):
    points = wandering()
    moves = np.diff(points, axis=0)
    found = Components.of(moves @ moves.T, centring).residual(len(points))
    _, directions = frame(points, centring)
    way = points[-1] - points[0]
    for k in range(len(points)):
        fit = np.linalg.lstsq(directions[:k].T, way, rcond=None)[0] if k else np.empty(0)
        close(found[k], np.linalg.norm(way - directions[:k].T @ fit) / np.linalg.norm(way), 1e-8)
    assert found[0] == 1
    assert found[-1] == 0


# -- the random walk -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("points", [3, 4, 50])
def test_the_walk_has_its_closed_form(points):
    """B Y = X for the differences B (n, T) of T points and independent X: the nonzero variances of Y are those of the pseudo-inverse of B^T B, the Laplacian of a path, whose
    eigenvalues are 4 sin^2(pi j / 2T), and their inverses sum to (T^2 - 1) / 6. From the first point on, B is square, and the eigenvalues are 4 sin^2((2j - 1) pi / (2 (2n + 1)))."""
    steps, n = 7 * np.arange(points), points - 1
    j = np.arange(1, points)
    centred = 1 / (4 * np.sin(np.pi * j / (2 * points)) ** 2)
    close(walk(steps, "centred").shares, centred / ((points**2 - 1) / 6), 1e-12)
    first = 1 / (4 * np.sin((2 * j - 1) * np.pi / (2 * (2 * n + 1))) ** 2)
    close(walk(steps, "uncentred").shares, first / (n * (n + 1) / 2), 1e-12)
    close(walk(steps, "increments").shares, np.full(n, 1 / n), 1e-12)


def test_a_long_walk_has_the_limit_of_the_paper():
    """T18. The shares 6 / (4 (T^2 - 1) sin^2(pi k / 2T)) are 6 / (pi^2 k^2) up to the factor 1 + (pi k / 2T)^2 / 3 + 1 / T^2: at T = 1,000 and k <= 10 below 1 + 1e-4."""
    found = walk(np.arange(1000), "centred").shares[:10]
    assert (np.abs(found / (6 / (np.pi * np.arange(1, 11)) ** 2) - 1) < 1e-4).all()
    # sum 1/k^2 squared over sum 1/k^4: (pi^2/6)^2 / (pi^4/90)
    everything = walk(np.arange(1000), "centred").shares
    close(1 / np.sum(everything**2), 2.5, 1e-4)


def test_uneven_steps_make_uneven_increments():
    """The increments' variances are the gaps, largest first."""
    close(walk(np.array([0, 1, 11, 16]), "increments").shares, np.array([10, 5, 1]) / 16, 1e-12)


@pytest.mark.parametrize("centring", CENTRINGS)
@pytest.mark.parametrize(
    "steps", [np.arange(20), np.unique(np.geomspace(1, 3000, 20).astype(int))], ids=["even", "log"]
)
def test_a_simulated_walk_lies_on_its_null(tmp_path, centring, steps):
    """The Gram matrix of n Gaussian rows of length D, over D, has eigenvalues in (1 ± e)^2, e = (sqrt n + 4) / sqrt D, but with probability 2 exp(-8) (Davidson and Szarek 2001).
    Those of M G M^T then move by such factors at most (Ostrowski), and shares by the ratio of two."""
    n, dim = len(steps) - 1, 20_000
    moves = np.sqrt(np.diff(steps))[:, None] * np.random.default_rng(3).normal(size=(n, dim))
    trajectory = stored(tmp_path, np.vstack([np.zeros(dim), np.cumsum(moves, axis=0)]), steps)
    found = dimension(flat(dim), trajectory, centring=centring, hessian=0, top=2)
    e = (math.sqrt(n) + 4) / math.sqrt(dim)
    ratio = found.shares / found.walk
    assert ratio.max() < ((1 + e) / (1 - e)) ** 2
    assert ratio.min() > ((1 - e) / (1 + e)) ** 2
    if found.permuted.size and steps[-1] == n:  # even: the order of independent steps alike says nothing
        assert (np.abs(found.permuted / found.walk - 1) < ((1 + e) / (1 - e)) ** 2 - 1).all()


def test_permuted_increments_have_closed_forms():
    """Orthogonal increments of one length are a walk in every order; parallel ones of one length are a line in every order, and its only share is 1."""
    n = 12
    for centring in ("centred", "uncentred"):
        mean, spread, _ = home._permuted(4 * np.eye(n), centring, 0)
        close(mean, walk(np.arange(n + 1), centring).shares, 1e-12)
        assert spread.max() < 1e-12
        mean, spread, ratios = home._permuted(np.ones((n, n)), centring, 0)
        close(mean, np.eye(n)[0], 1e-12)
        close(ratios, np.array([1.0, 0.0]), 1e-12)
    assert not home._permuted(np.eye(n), "increments", 0)[0].size


def test_permuted_increments_are_seeded_and_differ_where_the_order_matters():
    gram = np.diag(0.5 ** np.arange(8.0))
    first, again, other = (home._permuted(gram, "centred", seed) for seed in (0, 0, 1))
    assert np.array_equal(first[0], again[0])
    assert not np.array_equal(first[0], other[0])
    assert first[1][0] > 0.01


# -- random subspaces ----------------------------------------------------------------------------------------------------


def test_the_share_in_a_random_subspace_has_the_beta_law():
    """T16, against drawn subspaces: the mean within 4 standard errors, and 5% ± 4 binomial standard errors outside the band."""
    k, dim, draws = 4, 30, 4000
    rng = np.random.default_rng(0)
    gradient = rng.normal(size=dim)
    drawn = np.array([np.sum((np.linalg.qr(rng.normal(size=(dim, k)))[0].T @ gradient) ** 2) for _ in range(draws)]) / (
        gradient @ gradient
    )
    low, mean, high = chance(k, dim)
    assert mean == k / dim
    assert abs(drawn.mean() - mean) < 4 * drawn.std() / math.sqrt(draws)
    for outside in (drawn < low, drawn > high):
        assert abs(outside.mean() - 0.025) < 4 * math.sqrt(0.025 * 0.975 / draws)
    assert np.array_equal(chance(5, 5), np.ones(3))


@pytest.mark.parametrize(("k", "dim"), [(3, 30), (4, 9), (4, 6)])
def test_cosines_of_random_subspaces_have_the_law_of_drawn_ones(k, dim):
    """Means of every squared cosine within 4 standard errors of the difference; where D - k < k, some subspaces meet."""
    draws = 2000
    rng = np.random.default_rng(1)
    pairs = (tuple(np.linalg.qr(rng.normal(size=(dim, k)))[0] for _ in range(2)) for _ in range(draws))
    truth = np.array([np.cos(scipy.linalg.subspace_angles(a, b))[::-1] for a, b in pairs]) ** 2
    found = random_cosines(k, dim, draws, np.random.default_rng(2)) ** 2
    error = np.sqrt((truth.var(axis=0) + found.var(axis=0)) / draws)
    assert (np.abs(truth.mean(axis=0) - found.mean(axis=0)) <= 4 * error + 1e-9).all()
    assert (np.diff(found, axis=1) <= 1e-12).all()
    meet = max(2 * k - dim, 0)
    close(found[:, :meet], np.ones((draws, meet)), 1e-12)
    # the overlap's mean k / D and standard deviation, which is known to 1 / sqrt(2 draws) of itself or somewhat worse
    overlaps = truth.mean(axis=1)
    spread = overlap_spread(k, dim)
    assert abs(overlaps.mean() - k / dim) < 4 * spread / math.sqrt(draws)
    assert abs(overlaps.std() / spread - 1) < 4 * 2 / math.sqrt(2 * draws)


# -- the whole answer against dense algebra --------------------------------------------------------------------------------


@pytest.mark.parametrize("centring", CENTRINGS)
@pytest.mark.parametrize("block", [None, 2000])
def test_everything_against_dense_algebra(tmp_path, monkeypatch, centring, block):
    if block:  # several blocks of columns
        monkeypatch.setattr(trajectories, "BLOCK_BYTES", block)
    f, matrix = bowl(np.append(np.linspace(0.1, 1, D - 3), [3.0, 4.0, 5.0]))
    points, others = wandering(9), wandering(13, seed=5)
    one, two = stored(tmp_path / "a" / "trajectory", points), stored(tmp_path / "b" / "trajectory", others)
    k = 3
    for first, second, their in ((one, two, others), (two, one, points)):
        mine = points if first is one else others
        found = dimension(f, first, against=second, centring=centring, top=k, points=50)
        values, own = frame(mine, centring)
        close(found.shares, values**2 / np.sum(values**2), 1e-12)
        gradients = (mine - 0.3) @ matrix
        squares = np.sum(gradients**2, axis=1)

        def share(directions, gradients=gradients, squares=squares):
            return np.sum((gradients @ directions[:k].T) ** 2, axis=1) / squares

        close(found.in_own, share(own), 1e-10)
        _, foreign = frame(their, centring)
        close(found.in_other, share(foreign), 1e-10)
        middle = (len(mine) - 1) // 2
        early, late = (frame(part, centring)[1] for part in (mine[: middle + 1], mine[middle:]))
        close(found.in_half, np.where(np.arange(len(mine)) < middle, share(late), share(early)), 1e-10)
        assert found.middle == 10 * middle
        eigenvectors = np.linalg.eigh(matrix)[1][:, ::-1].T
        # vectors are off by the residual over the gap, 1e-3 * 5 / 2 for the lowest of three, and shares by up to twice that of the gradient's other parts
        close(found.in_hessian, share(eigenvectors), 6e-3)
        assert (found.angles < 3e-3).all()
        close(found.cosines, np.cos(scipy.linalg.subspace_angles(own[:k].T, foreign[:k].T))[::-1], 1e-9)
        close(found.overlap, np.sum((own[:k] @ foreign[:k].T) ** 2) / k, 1e-9)
        close(found.hessian_cosines, np.ones(k), 1e-4)  # one and the same Hessian: 1 - angle^2
        close(found.gradient_norms, np.sqrt(squares), 1e-12)
        close(found.distance, np.linalg.norm(mine[-1] - mine[0]), 1e-12)
        assert np.array_equal(found.at, 10 * np.arange(len(mine)))
        assert not found.warnings


def test_a_plane_has_two_dimensions(tmp_path):
    """A sixth of a circle of radius 2, whose chord is 2 long: about their mean, the points vary along the chord, which is the whole way, and across it."""
    e = rotation(D)[:2]
    angles = np.linspace(0, math.pi / 3, 6)
    flatwise = 2 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    trajectory = stored(tmp_path / "trajectory", 1 + flatwise @ e)
    found = dimension(flat(), trajectory, hessian=0)
    assert len(found.shares) == found.top == 2
    across = np.array([math.sqrt(3) / 2, 0.5])  # half of the angle
    chord = np.array([-0.5, math.sqrt(3) / 2])
    parts = np.array([np.var(flatwise @ chord), np.var(flatwise @ across)])
    close(found.shares, parts / parts.sum(), 1e-12)
    close(found.captured[0], np.eye(6)[0], 1e-7)  # all but the first by sqrt(eps) of the distance
    close(found.distance, 2.0, 1e-12)
    assert "95% of the variance (centred) in 1 component, 4 for a random walk" in found.summary()
    with pytest.raises(
        UsageError, match=r"asked for 3 dimensions; the 6 recorded points of .* span 2 .*Ask for 1 to 2"
    ):
        dimension(flat(), trajectory, hessian=0, top=3)


def test_float32_rounding_is_no_dimension(tmp_path):
    """A line stored in float32 far from the origin: rounding of 6e-8 |w| scatters points about it, at 1e-14 |w|^2 / variance, below what counts as known."""
    line = (5 + np.linspace(0, 3, 30)[:, None] * rotation(D)[:1]).astype(np.float32)
    found = dimension(flat(), stored(tmp_path, line), hessian=0)
    assert len(found.shares) == 1
    assert np.array_equal(found.half_dims, [1, 1])


def test_the_other_half_holds_no_step_of_its_own(tmp_path):
    """Half of the way along axis 0, half along axis 1, and a gradient along axis 0: all of it lies in the whole's plane; the other half's line holds none of it early, and all of it late."""
    points = np.zeros((9, D))
    points[:5, 0] = [0, 1, 3, 4, 6]
    points[5:, 0] = 6
    points[5:, 1] = [1, 2, 4, 5]
    found = dimension(flat(), stored(tmp_path, points), hessian=0, points=50)
    close(found.in_own, np.ones(9), 1e-12)
    assert found.middle == 40
    close(found.in_half, np.array([0.0] * 4 + [1.0] * 5), 1e-12)
    assert np.array_equal(found.half_dims, [1, 1])
    assert "and has 1 and 1 dimensions" in found.caption()


@pytest.mark.parametrize("centring", CENTRINGS)
def test_planted_angles_between_two_runs(tmp_path, centring):
    """Two planes whose directions pair up at 20 and 65 degrees."""
    e = rotation(D)
    cosine, sine = np.cos(np.radians([20, 65])), np.sin(np.radians([20, 65]))
    other = cosine[:, None] * e[:2] + sine[:, None] * e[2:4]
    turns = np.random.default_rng(0).normal(size=(2, 6, 2))
    one, two = (
        stored(tmp_path / name, turn @ plane) for name, turn, plane in zip("ab", turns, (e[:2], other), strict=True)
    )
    found = dimension(flat(), one, against=two, centring=centring, hessian=0)
    close(found.cosines, cosine, 1e-10)
    close(found.overlap, np.mean(cosine**2), 1e-10)
    assert found.panels() == ("variance", "gradient", "captured", "angles")
    same = dimension(flat(), one, against=one, centring=centring, hessian=0)
    close(same.cosines, np.ones(2), 1e-10)


def test_buffers_are_those_of_each_point(tmp_path):
    """A gradient through BatchNorm's recorded statistics: with y = (x - m) w and f = mean y^2 / 2, the gradient is w mean (x - m)^2, so that every point's m shows."""
    x = torch.linspace(-1, 1, 8, dtype=torch.float64)[:, None] + torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64)
    module = nn.Sequential(nn.BatchNorm1d(3, affine=False, eps=0.0), nn.Linear(3, 1, bias=False)).double()
    f, _ = Objective.of(
        module, lambda outputs, _: (outputs[:, 0] ** 2) / 2, Rows(x, torch.zeros(8)), dtype=torch.float64
    )
    points = np.random.default_rng(0).normal(size=(4, 3))
    means = np.random.default_rng(1).normal(size=(4, 3))
    names = [entry.name for entry in f.model.layout.of("buffer")]
    assert names == ["0.running_mean", "0.running_var", "0.num_batches_tracked"]
    buffers = [np.concatenate([mean, np.ones(3), [1.0]]) for mean in means]
    found = dimension(f, stored(tmp_path, points, layout=f.model.layout, buffers=buffers), top=1, points=9, hessian=1)
    for t in range(4):
        y = x.numpy() - means[t]
        gradient = y.T @ (y @ points[t]) / 8
        close(found.gradient_norms[t], np.linalg.norm(gradient), 1e-10)
        vector = np.linalg.eigh(y.T @ y)[1][:, -1]
        # residual 1e-3 over gaps of a tenth of the first value or more: twice that angle in the share
        close(found.in_hessian[t], (vector @ gradient) ** 2 / (gradient @ gradient), 2e-2)


# -- where it is measured --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [np.arange(0, 2001, 10), np.arange(501), np.append(0, 2 ** np.arange(12))])
def test_steps_are_chosen_evenly_on_a_logarithmic_axis(steps):
    rows = chosen(steps, 12)
    assert rows[0] == 0
    assert rows[-1] == len(steps) - 1
    assert (np.diff(rows) > 0).all()
    assert 12 <= len(rows) <= 14
    # the early half of the axis gets its share of the points, unless each of its steps is taken
    early = int(np.sum(steps + 1 < math.sqrt(steps[-1] + 1)))
    assert np.sum(steps[rows] + 1 < math.sqrt(steps[-1] + 1)) >= min(early, 4)


def test_few_points_are_all_taken_and_one_is_the_last():
    assert np.array_equal(chosen(np.array([3, 4, 9]), 12), [0, 1, 2])
    assert np.array_equal(chosen(np.arange(5), 1), [4])
    with pytest.raises(UsageError, match="1 step or more; got 0"):
        chosen(np.arange(5), 0)


def test_steps_may_be_named(tmp_path):
    trajectory = stored(tmp_path, wandering())
    found = dimension(flat(), trajectory, at=[80, 0, 30], hessian=0)
    assert np.array_equal(found.at, [0, 30, 80])
    with pytest.raises(UsageError, match=r"step 7 was not recorded. Nearest: 0, 10, 20"):
        dimension(flat(), trajectory, at=[7], hessian=0)


def test_long_trajectories_are_thinned_and_that_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(home, "MOST", 5)
    points = wandering(9)
    found = dimension(flat(), stored(tmp_path, points), hessian=0)
    values, _ = frame(points[::2], "centred")
    close(found.shares, values**2 / np.sum(values**2), 1e-12)
    assert np.array_equal(found.steps, [0, 20, 40, 60, 80])
    assert found.recorded == 9
    assert "5 of 9 recorded points" in found.caption()


@pytest.mark.parametrize(("outputs", "loss", "expected"), [(4, "cross-entropy", 4), (4, "mse", 7)])
def test_by_default_there_are_as_many_dimensions_as_classes(tmp_path, outputs, loss, expected):
    x = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
    y = torch.arange(12) % outputs if loss == "cross-entropy" else torch.zeros(12, outputs)
    f, point = Objective.of(nn.Linear(6, outputs), loss, Rows(x, y), dtype=torch.float64)
    trajectory = stored(tmp_path, wandering(8, len(point)), layout=f.model.layout)
    found = dimension(f, trajectory, points=2)
    assert found.top == found.hessian_top == expected  # of no classes 10, but 8 points span 7


def test_blocks_fit_the_longer_of_two_runs(tmp_path, monkeypatch):
    """A pass holds a block as read and in float64, its differences, and as much of the other run at most: six blocks, where the longer run as a whole has 50."""
    block = 2**16
    monkeypatch.setattr(trajectories, "BLOCK_BYTES", block)
    one, two = (stored(tmp_path / str(count), wandering(count, 2000)) for count in (3, 205))
    slopes = torch.ones(1, 2000)
    for path in (one, two):
        path.points(0, 1)  # checksums are verified here
    for first, second in ((one, two), (two, one)):
        tracemalloc.start()
        home._products(first, list(range(len(first))), slopes, (second, list(range(len(second)))))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 6 * block + 2**16  # and what Python itself needs


# -- degenerate cases and refusals -----------------------------------------------------------------------------------------


def test_a_closed_way_captures_nothing(tmp_path):
    points = wandering(6)
    points[-1] = points[0]
    found = dimension(flat(), stored(tmp_path, points), hessian=0)
    # the ends differ by the rounding of inner products: its square root
    assert found.distance < 10 * math.sqrt(EPS) * np.linalg.norm(points)
    assert np.isnan(found.captured).all()
    assert any("the last point is the first one" in warning for warning in found.warnings)
    drawn(found)


def test_a_run_that_stops_halfway_is_measured(tmp_path):
    points = wandering(9)
    points[4:] = points[4]
    found = dimension(flat(), stored(tmp_path, points), hessian=0, points=50)
    assert np.array_equal(found.half_dims, [found.top, 0])
    assert found.top == 4
    assert not found.in_half[:4].any()
    drawn(found)


def test_a_gradient_of_zero_has_no_share(tmp_path):
    f = Objective.from_function(lambda w: (w**2).sum() / 2, 3)
    points = np.array([[2.0, 1, 0], [1, 0, 0], [0, 0, 0]])
    found = dimension(f, stored(tmp_path, points), hessian=1)
    for shares in (found.in_own, found.in_half, found.in_hessian):
        assert np.isnan(shares[2])
        assert np.isfinite(shares[:2]).all()
    drawn(found)


@pytest.mark.parametrize("hessian", [0, 1])
def test_a_gradient_that_is_not_finite_is_left_out_and_told(tmp_path, hessian):
    f = Objective.from_function(lambda w: w[0].sqrt() + w[1] ** 2 / 2, 3)
    found = dimension(f, stored(tmp_path, [[4.0, 1, 0], [1, 0, 1], [-1, 0, 0], [2, 2, 2]]), hessian=hessian)
    assert np.array_equal(np.isnan(found.in_own), [False, False, True, False])
    assert any("not finite" in warning and "step 20" in warning for warning in found.warnings)
    drawn(found)


REFUSED = {
    "holds 2 recorded points: a dimension takes 3 or more": (wandering(2), {}),
    "all 4 points of .* are equal: nothing moved": (np.ones((4, D)), {}),
    "asked for 9 dimensions; the 9 recorded points of .* span 8": (wandering(9), {"top": 9}),
    "asked for 0 dimensions": (wandering(9), {"top": 0}),
    "unknown centring 'mean'": (wandering(9), {"centring": "mean"}),
    "a number of eigenvectors is 0 .none. or more; got -1": (wandering(9), {"hessian": -1}),
    "a trajectory of 7 parameters does not lie on a landscape of 40": (wandering(9, 7), {}),
    "at least one": (wandering(9), {"at": []}),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_answered_is_refused(tmp_path, message):
    points, options = REFUSED[message]
    with pytest.raises(UsageError, match=message):
        dimension(flat(), stored(tmp_path, points), **options)


def test_points_that_are_not_finite_are_refused(tmp_path):
    points = wandering(5)
    points[2, 3] = np.nan
    with pytest.raises(LandscapeError, match="NaN or infinite"):
        dimension(flat(), stored(tmp_path, points))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ((("w", (4, 10)), ("b", (2,))), r"'w' \(5, 8\) in .*a, 'w' \(4, 10\) in .*b"),
        ((("w", (5, 8)), ("c", (2,))), r"'b' \(2,\) in .*a, 'c' \(2,\) in"),
        ((("w", (5, 8)),), r"'b' \(2,\) in .*a, nothing in"),
        ((("w", (5, 8)), ("b", (2,)), ("v", (1,))), r"nothing in .*a, 'v' \(1,\) in"),
    ],
)
def test_runs_of_other_parameters_are_refused_by_the_first_that_differs(tmp_path, other, message):
    def layout(tensors):
        offsets = np.cumsum([0, *(math.prod(shape) for _, shape in tensors)])
        return Layout(tuple(Entry(name, shape, int(offset), "float64", "parameter") for (name, shape), offset in zip(tensors, offsets, strict=False)))  # fmt: skip

    layouts = [layout((("w", (5, 8)), ("b", (2,)))), layout(other)]
    one, two = (
        stored(tmp_path / name / "trajectory", wandering(5, laid.dim), layout=laid)
        for name, laid in zip("ab", layouts, strict=True)
    )
    with pytest.raises(UsageError, match=message):
        dimension(flat(42), one, against=two)


# -- the picture and the text ----------------------------------------------------------------------------------------------


def drawn(found: Dimensions) -> None:
    """All views of an answer, from its file alone."""
    back = Result.from_json(found.to_json())
    assert isinstance(back, Dimensions)
    assert back.to_json() == found.to_json()
    assert rendered(back, "svg")
    assert back.figure().data
    assert (back.summary(), back.caption(), back.table()) == (found.summary(), found.caption(), found.table())


@pytest.fixture(scope="module")
def answer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dimensions")
    f, _ = bowl(np.linspace(0.1, 3, D))
    one, two = (stored(folder / name, wandering(9, seed=seed)) for seed, name in enumerate("ab"))
    return dimension(f, one, against=two, top=2)


def test_the_answer_is_drawn_from_its_numbers(answer):
    drawn(answer)
    names = [trace.name.split(":")[0] for trace in answer.figure().data]
    assert names == ["random walk", "permuted increments", "trajectory"]
    np.testing.assert_array_equal(answer.figure().data[2].y, answer.shares)
    with pytest.raises(UsageError, match=r"unknown panel 'angels'\. Did you mean 'angles'"):
        answer.plot(None, "angels")


def test_the_text_tells_the_walk_beside_the_trajectory(answer):
    assert "95% of the variance in few components is no evidence of a low-dimensional landscape" in answer.caption()
    cumulative = np.cumsum(answer.shares)
    needed = {level: int(np.sum(cumulative < level)) + 1 for level in (0.9, 0.95, 0.99)}
    rows = {row[0]: row for row in answer.table()}
    for level, count in needed.items():
        assert rows[f"for {100 * level:g}%"][1] == str(count)
    assert float(rows["participation"][1]) == pytest.approx(1 / np.sum(answer.shares**2), rel=1e-3)
    assert float(rows["1"][5]) == pytest.approx(answer.shares[0] / answer.walk[0], rel=1e-2)
    assert f"in {needed[0.95]} components, " in answer.summary()


def test_without_another_run_there_are_no_angles(tmp_path):
    found = dimension(flat(), stored(tmp_path, wandering()), hessian=0)
    assert found.panels() == ("variance", "gradient", "captured")
    assert math.isnan(found.overlap)
    assert "other run" not in found.summary() + found.caption()
    assert not found.in_hessian.size
    assert "Hessian" not in found.summary()
    drawn(found)


# -- the command -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two seeds of a small network, one of another width, and one imported."""
    folder = tmp_path_factory.mktemp("runs")
    short = ["--steps", "30", "--record-every", "3", "--evaluations", "2"]
    for name, more in {"a": ("--seed", "0"), "b": ("--seed", "1"), "wide": ("--width", "2")}.items():
        assert main(["train", "digits-mlp", *short, *more, "--out", str(folder / name)]) == 0
    task, run = tasks.find("digits-mlp"), Run.open(folder / "a")
    module = task.make(0)
    for step in (0, 9, 18, 30):
        point = recordings.site(
            place(f"{run.folder}@{step}"), task, device=torch.device("cpu"), dtype=torch.float32
        ).point
        nn.utils.vector_to_parameters(point, module.parameters())
        torch.save(module.state_dict(), folder / f"checkpoint-{step}.pt")
    foreign = [str(folder / f"checkpoint-{step}.pt") for step in (0, 9, 18, 30)]
    assert main(["import", *foreign, "--task", "digits-mlp", "--out", str(folder / "foreign")]) == 0
    return folder


def ask(capsys, run, **options) -> Dimensions:
    capsys.readouterr()
    measuring.dimensions(str(run), common=Common(json=True), **options)
    found = Result.from_json(json.dumps(json.loads(capsys.readouterr().out)))
    assert isinstance(found, Dimensions)
    return found


def test_the_command_keeps_its_answer_and_finds_it_again(runs, capsys):
    options = {"against": str(runs / "b"), "points": 3}
    found = ask(capsys, runs / "a", **options)
    assert found.top == 10  # classes
    assert found.dim == Run.open(runs / "a").trajectory().dim
    points = Run.open(runs / "a").trajectory().points().astype(float)
    values, _ = frame(points, "centred")
    close(found.shares, (values**2 / np.sum(values**2))[: len(found.shares)], 1e-9)
    assert found.provenance["run"] == str(runs / "a")
    assert found.provenance["against"] == str(runs / "b")
    assert len(list((runs / "a" / "results").glob("dimensions*.json"))) == 1
    capsys.readouterr()
    measuring.dimensions(str(runs / "a"), **options)
    assert "answered before" in capsys.readouterr().err
    drawn(found)


def test_an_imported_run_is_measured_as_its_own(runs, capsys):
    """The same points, recorded at the same steps: the same variances as of these rows."""
    found = ask(capsys, runs / "foreign", hessian=0, at="0,30")
    points = np.stack([Run.open(runs / "a").trajectory().row(row).point for row in (0, 3, 6, 10)]).astype(float)
    values, _ = frame(points, "centred")
    close(found.shares, values**2 / np.sum(values**2), 1e-9)
    close(found.walk, walk(np.array([0, 9, 18, 30]), "centred").shares, 1e-12)
    assert np.array_equal(found.at, [0, 30])


def test_the_command_refuses(runs):
    for options, message in (
        ({"against": str(runs / "wide")}, "the two runs have other parameters"),
        ({"at": "0", "points": 3}, "--at and --points"),
        ({"at": "0,first"}, "--at takes recorded steps separated by commas"),
        ({"at": "1"}, "step 1 was not recorded"),
        ({"dims": 11}, "the 11 recorded points of .* span 10"),
        ({"against": str(runs / "b@step=3")}, "is one point, and every recorded one is asked for"),
    ):
        with pytest.raises(UsageError, match=message):
            measuring.dimensions(str(runs / "a"), **{"hessian": 0, **options})
    with pytest.raises(UsageError, match="is one point"):
        measuring.dimensions(f"{runs / 'a'}@init")


def test_rows_are_those_asked_for(runs, capsys):
    found = ask(capsys, runs / "a", hessian=0, points=2, options=Subject(rows=50))
    assert found.rows == 50
    assert "over all 50 rows" in found.caption()
