"""Planes: the grid against closed forms, the path against planted planes, filter normalisation against its laws."""

import itertools
import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure as Sheet
from torch import nn

from landscape.analysis import styles
from landscape.analysis.surfaces import Plane, Surface, random_plane, surface, surface_on, trajectory_plane
from landscape.errors import LandscapeError, UsageError
from landscape.objectives import Objective, Rows
from landscape.results import Result
from landscape.seeds import generator
from landscape.subspaces import span
from landscape.trajectories import Entry, Layout, Row, Trajectory, TrajectoryWriter

D = 12


@pytest.fixture
def bowl():
    """f(w) = 1 + w H w / 2 with H of eigenvalues 0.1 to 5 in a random basis."""
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(D, D)))
    hessian = q @ np.diag(np.linspace(0.1, 5, D)) @ q.T
    matrix = torch.from_numpy(hessian)
    return Objective.from_function(lambda w: 1 + w @ matrix @ w / 2, D), hessian


@pytest.fixture
def planted():
    """An orthonormal pair e (2, D), its plane's centre, and coordinates (7, 2) that turn and end in the centre."""
    rng = np.random.default_rng(1)
    e = np.linalg.qr(rng.normal(size=(D, 3)))[0].T
    coordinates = np.array([[4.0, 1.0], [3.0, -1.5], [2.0, -2.0], [1.0, -1.0], [0.5, 0.7], [0.2, 0.1], [0.0, 0.0]])
    return e, rng.normal(size=D), coordinates


def written(folder, points, buffers=None, layout=None):
    points = np.asarray(points)
    layout = layout or Layout((Entry("w", (points.shape[1],), 0, "float64", "parameter"),))
    writer = TrajectoryWriter(folder, layout)
    for step, point in enumerate(points):
        row = np.empty(0) if buffers is None else buffers[step]
        writer.append(Row(10 * step, point, row, math.nan, 0.1))
    writer.commit()
    return Trajectory.open(folder)


def mlp(*widths, bias=True, seed=0):
    torch.manual_seed(seed)
    layers = [layer for i, o in itertools.pairwise(widths) for layer in (nn.Linear(i, o, bias=bias), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def classified(module, shape, dtype=torch.float64, n=20):
    rng = torch.Generator().manual_seed(3)
    rows = Rows(torch.randn(n, *shape, generator=rng), torch.randint(0, 3, (n,), generator=rng))
    return Objective.of(module, "cross-entropy", rows, dtype=dtype)


# -- the grid -----------------------------------------------------------------------------------------------------------


def test_grid_is_the_closed_form(bowl, planted):
    f, hessian = bowl
    _, centre, _ = planted
    u, v = np.random.default_rng(5).normal(size=(2, D))  # neither orthogonal nor of unit norm
    found = surface_on(
        f, Plane(torch.from_numpy(centre), torch.from_numpy(np.stack([u, v]))), extent=(-1, 2, 0.5, 3), side=8
    )
    assert found.loss.shape == (8, 8)
    for j, y in enumerate(found.y):
        for i, x in enumerate(found.x):
            w = centre + x * u + y * v
            # twelve terms of size 100 in float64: 1e-12 relative is a hundred roundings
            assert found.loss[j, i] == pytest.approx(1 + w @ hessian @ w / 2, rel=1e-12)
    assert found.centre_loss == pytest.approx(1 + centre @ hessian @ centre / 2, rel=1e-12)
    assert found.norms == pytest.approx([np.linalg.norm(u), np.linalg.norm(v)], rel=1e-12)
    angle = math.degrees(math.acos(u @ v / np.linalg.norm(u) / np.linalg.norm(v)))
    assert found.angle == pytest.approx(angle, rel=1e-10)
    assert np.isnan(found.accuracy).all()
    assert found.panels() == ("surface",)


@pytest.mark.parametrize("extent", [None, 0.7, (-1, 2, -3, 0.1), (0.3, 2, 0.4, 3)])
@pytest.mark.parametrize("side", [8, 9])
def test_grid_moves_by_half_a_cell_at_most_so_that_the_centre_is_a_node(bowl, extent, side):
    f, _ = bowl
    centre = torch.ones(D, dtype=torch.float64)
    found = surface_on(f, Plane(centre, torch.eye(D, dtype=torch.float64)[:2]), extent=extent, side=side)
    asked = extent if isinstance(extent, tuple) else (-(extent or 1), extent or 1) * 2
    for nodes, (low, high) in ((found.x, asked[:2]), (found.y, asked[2:])):
        cell = (high - low) / (side - 1)
        assert np.diff(nodes) == pytest.approx(cell)
        assert abs(nodes[0] - low) <= cell / 2 * (1 + 1e-9)
        if low <= 0 <= high:
            assert 0.0 in nodes
    if not isinstance(extent, tuple):
        rounding = D * np.finfo(float).eps  # in lockstep, the sum of D squares goes in another order
        assert [found.node_loss, found.centre_loss] == pytest.approx([float(f(centre))] * 2, rel=rounding)


def test_accuracy_and_loss_stand_at_the_same_node():
    f, point = classified(mlp(4, 5, 3), (4,))
    plane = random_plane(f, point, torch.Generator().manual_seed(0))
    found = surface_on(f, plane, side=5, extent=2.0)
    for j, i in ((0, 4), (3, 1)):
        value = f.value(point + found.x[i] * plane.directions[0] + found.y[j] * plane.directions[1])
        assert found.loss[j, i] == pytest.approx(float(value.loss), rel=1e-12)
        assert found.accuracy[j, i] == float(value.accuracy)
    assert found.provenance == {"rows": 20, "dtype": "float64", "device": "cpu", "D": point.numel(), "norm": "eval"}


# -- the path -----------------------------------------------------------------------------------------------------------


def test_trajectory_in_a_plane_lies_in_its_plane(bowl, planted, tmp_path):
    f, hessian = bowl
    e, centre, coordinates = planted
    points = centre + coordinates @ e[:2]
    trajectory = written(tmp_path / "t", points)
    plane = trajectory_plane(trajectory, torch.from_numpy(points[-1]))
    basis = plane.directions.numpy()
    # from a Gram matrix the small direction is good to eps * (ratio of the variances), here below 1e-13
    np.testing.assert_allclose(basis @ basis.T, np.eye(2), atol=1e-12)
    np.testing.assert_allclose(e[:2] - e[:2] @ basis.T @ basis, 0, atol=1e-12)
    found = surface_on(f, plane, trajectory=trajectory, side=9)
    np.testing.assert_allclose(found.out_of_plane, 0, atol=1e-12)
    assert found.explained.sum() == pytest.approx(1, abs=1e-12)
    assert found.held == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(found.path @ basis + points[-1], points, atol=1e-12)
    true = 1 + np.einsum("td,de,te->t", points, hessian, points) / 2
    np.testing.assert_allclose(found.true_loss, true, rtol=1e-12)
    np.testing.assert_allclose(found.projected_loss, true, rtol=1e-10)
    np.testing.assert_array_equal(found.steps, 10 * np.arange(7))
    np.testing.assert_array_equal(found.checked, np.arange(7))
    assert found.warnings == ()
    assert surface(f, torch.from_numpy(points[-1]), trajectory=trajectory, side=9).to_json() == found.to_json()


def test_directions_are_orthonormal_where_the_second_is_rounding(tmp_path):
    """A path straight but for 1e-13 of its variance: the Gram matrix gives the second direction to three digits."""
    rng = np.random.default_rng(0)
    start, step = rng.normal(size=(2, 500))
    points = start + np.linspace(0, 1, 9)[:, None] * step + 3e-7 * rng.normal(size=(9, 500))
    trajectory = written(tmp_path / "t", points)
    plane = trajectory_plane(trajectory, torch.from_numpy(points[-1]))
    np.testing.assert_allclose(plane.directions @ plane.directions.T, np.eye(2), atol=1e-14)
    raw, _ = trajectory.principal(2)
    assert (np.sum(raw * plane.directions.numpy(), axis=1) > 0.9).all()  # of the same sign


@pytest.mark.parametrize("skewed", [False, True])
def test_distance_from_the_plane_is_exact(bowl, planted, tmp_path, skewed):
    f, _ = bowl
    e, centre, coordinates = planted
    off = np.array([3.0, 0.0, 1e-7, 2.0, 0.0, 1.0, 0.0])
    trajectory = written(tmp_path / "t", centre + coordinates @ e[:2] + off[:, None] * e[2])
    mix = np.array([[2.0, 0.0], [1.0, 0.5]]) if skewed else np.eye(2)
    plane = Plane(torch.from_numpy(centre), torch.from_numpy(mix @ e[:2]))
    found = surface_on(f, plane, trajectory=trajectory, side=5)
    # 1e-7 would drown in a difference of squares, whose floor is sqrt(eps) * 4
    np.testing.assert_allclose(found.out_of_plane, off, atol=1e-13)
    np.testing.assert_allclose(found.path @ mix, coordinates, atol=1e-12)
    spread = coordinates.var(axis=0).sum() + off.var()
    assert found.held == pytest.approx(1 - off.var() / spread, abs=1e-12)
    along = (coordinates @ e[:2] @ (mix @ e[:2]).T / np.linalg.norm(mix, axis=1)[:, None].T).var(axis=0) / spread
    np.testing.assert_allclose(found.explained, along, atol=1e-12)


def test_box_widens_the_path_alike_on_all_sides(bowl, planted, tmp_path):
    f, _ = bowl
    e, centre, coordinates = planted
    trajectory = written(tmp_path / "t", centre + coordinates @ e[:2])
    plane = Plane(torch.from_numpy(centre), torch.from_numpy(e[:2]))
    found = surface_on(f, plane, trajectory=trajectory, side=41, margin=0.5)
    cell = 8.0 / 40
    np.testing.assert_allclose(found.x[[0, -1]], [-2, 6], atol=cell / 2 + 1e-9)  # the longer side is 4, half of it is 2
    np.testing.assert_allclose(found.y[[0, -1]], [-4, 3], atol=cell / 2 + 1e-9)


def test_sixty_points_are_checked_with_the_first_and_the_last(bowl, tmp_path):
    f, _ = bowl
    points = np.random.default_rng(0).normal(size=(200, D)).cumsum(axis=0)
    found = surface(f, torch.from_numpy(points[-1]), trajectory=written(tmp_path / "t", points), side=3)
    assert len(found.checked) == len(found.true_loss) == 60
    assert found.checked[0] == 0
    assert found.checked[-1] == 199
    assert set(np.diff(found.checked)) <= {3, 4}


def test_warns_where_contours_are_not_those_of_the_path(bowl, planted, tmp_path):
    f, _ = bowl
    e, centre, coordinates = planted
    off = 30.0 * np.array([1, -1, 1, -1, 1, -1, 0])
    trajectory = written(tmp_path / "t", centre + coordinates @ e[:2] + off[:, None] * e[2])
    plane = Plane(torch.from_numpy(centre), torch.from_numpy(e[:2]))
    found = surface_on(f, plane, trajectory=trajectory, side=5)
    assert found.held < 0.5
    text = " ".join(found.warnings)
    assert "less than half" in text
    assert "do not show the loss along the real path: at 6 of 7" in text
    worst = np.argmax(found.true_loss / found.projected_loss)
    assert f"at step {found.steps[worst]}" in text


@pytest.mark.parametrize(
    "points", [np.ones((1, D)), np.ones((5, D)), np.eye(D)[:2], np.arange(4.0)[:, None] * np.ones(D), np.empty((0, D))]
)
def test_points_on_a_line_span_no_plane(points, tmp_path):
    trajectory = written(tmp_path / "t", points)
    with pytest.raises(UsageError, match=r"span no plane\. Record more steps, or use a random plane"):
        trajectory_plane(trajectory, torch.zeros(D, dtype=torch.float64))


def test_a_path_of_one_point_can_be_drawn_on_a_given_plane(bowl, tmp_path):
    f, _ = bowl
    trajectory = written(tmp_path / "t", np.ones((1, D)))
    plane = Plane(torch.ones(D, dtype=torch.float64), torch.eye(D, dtype=torch.float64)[:2])
    found = surface_on(f, plane, trajectory=trajectory, side=3)
    assert found.held is None
    np.testing.assert_array_equal(found.x, [-1, 0, 1])
    drawn(found)


def test_points_that_are_not_finite_are_refused(bowl, tmp_path):
    f, _ = bowl
    points = np.random.default_rng(0).normal(size=(5, D))
    points[3, 2] = np.nan
    trajectory = written(tmp_path / "t", points)
    with pytest.raises(LandscapeError, match="NaN or infinite"):
        trajectory_plane(trajectory, torch.zeros(D, dtype=torch.float64))
    plane = Plane(torch.zeros(D, dtype=torch.float64), torch.eye(D, dtype=torch.float64)[:2])
    with pytest.raises(LandscapeError, match="1 of the 5"):
        surface_on(f, plane, trajectory=trajectory)


def test_true_loss_uses_the_recorded_buffers(tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))
    f, point = classified(module, (4,))
    layout = f.model.layout
    rng = np.random.default_rng(0)
    points = point.numpy() + rng.normal(size=(4, len(point)))
    buffers = rng.uniform(0.5, 2, size=(4, layout.buffer_size))
    buffers[:, -1] = 7  # the counter of batches
    trajectory = written(tmp_path / "t", points, buffers, layout)
    found = surface(f, torch.from_numpy(points[-1]), trajectory=trajectory, side=3)
    entries = {entry.name: entry for entry in layout.of("buffer")}
    with torch.no_grad():
        for t in range(4):
            nn.utils.vector_to_parameters(torch.from_numpy(points[t]), module.double().parameters())
            for name, buffer in module.named_buffers():
                entry = entries[name]
                buffer.copy_(
                    torch.from_numpy(buffers[t, entry.offset : entry.offset + entry.size]).reshape(entry.shape)
                )
            truth = nn.functional.cross_entropy(module.eval()(f.rows.inputs), f.rows.targets)
            assert found.true_loss[t] == pytest.approx(float(truth), rel=1e-12)
    assert found.statistics == "eval"
    assert any("BatchNorm" in warning for warning in found.warnings)
    still = f.with_buffers(f.buffers, "batch")
    assert surface(still, torch.from_numpy(points[-1]), trajectory=trajectory, side=3).statistics == "batch"


# -- random planes ------------------------------------------------------------------------------------------------------


def parts(f, vector):
    return {e.name: vector[e.offset : e.offset + e.size].reshape(e.shape) for e in f.model.layout.of("parameter")}


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (mlp(4, 6, 3), (4,)),
        (nn.Sequential(nn.Conv2d(2, 5, 3), nn.GroupNorm(1, 5), nn.ReLU(), nn.Flatten(), nn.Linear(20, 3)), (2, 4, 4)),
    ],
)
@pytest.mark.parametrize("normalise", ["filter", "layer", "none"])
@pytest.mark.parametrize("vectors", [False, True])
def test_directions_have_the_norms_of_the_point(module, shape, normalise, vectors):
    f, point = classified(module, shape)
    plane = random_plane(f, point, torch.Generator().manual_seed(0), normalise=normalise, vectors=vectors)
    for direction in plane.directions:
        for name, drawn_part in parts(f, direction).items():
            weight = parts(f, point)[name]
            if weight.ndim == 1 and not vectors:
                assert not drawn_part.any()
            elif normalise == "filter" and weight.ndim > 1:
                torch.testing.assert_close(drawn_part.flatten(1).norm(dim=1), weight.flatten(1).norm(dim=1))
            elif normalise != "none":
                torch.testing.assert_close(drawn_part.norm(), weight.norm())
    if normalise == "none":
        assert plane.norms == pytest.approx([float(point.norm())] * 2, rel=1e-12)
    assert abs(plane.angle - 90) < 60  # dependent directions would stand at 0; these few parameters leave some degrees


@pytest.mark.parametrize(("normalise", "invariant"), [("filter", True), ("layer", True), ("none", False)])
def test_surface_is_invariant_when_relu_layers_trade_their_scale(normalise, invariant):
    """relu(a W1) W2 / a is the same network (Li et al. 2018, section 3): normalised pictures of it must be the same."""
    f, point = classified(mlp(4, 8, 6, 3, bias=False), (4,))
    first, second, third = point.split([32, 48, 18])
    scaled = torch.cat([8.0 * first, second / 16.0, 2.0 * third])  # powers of two: exact
    assert float(f(scaled)) == float(f(point))
    a, b = (
        surface_on(f, random_plane(f, w, generator(0, "surface"), normalise=normalise), side=7) for w in (point, scaled)
    )
    assert np.allclose(a.loss, b.loss, rtol=1e-12) == invariant


def test_seed_gives_the_plane(bowl):
    f, point = classified(mlp(4, 6, 3), (4,))
    a, b, c = (surface(f, point, plane="random", side=5, seed=seed) for seed in (0, 0, 1))
    assert a.to_json() == b.to_json()
    assert not np.allclose(a.loss, c.loss)
    g, low = classified(mlp(4, 6, 3), (4,), torch.float32)
    np.testing.assert_allclose(surface(g, low, plane="random", side=5, seed=0).loss, a.loss, rtol=1e-4)  # one plane
    np.testing.assert_allclose(a.x, [-1, -0.5, 0, 0.5, 1])


# -- refusals -----------------------------------------------------------------------------------------------------------


def test_refusals(bowl, tmp_path):
    f, _ = bowl
    g, point = classified(mlp(4, 6, 3), (4,))
    eye, zero = torch.eye(D, dtype=torch.float64), torch.zeros(D, dtype=torch.float64)
    plane = Plane(zero, eye[:2])
    for wrong in (torch.stack([eye[0], 2 * eye[0]]), torch.stack([eye[0], zero]), eye[:3], eye[:2] * math.nan):
        with pytest.raises(UsageError):
            Plane(zero, wrong)
    for options in (
        {"side": 2},
        {"margin": -1.0},
        {"extent": 0.0},
        {"extent": (1.0, 0.0, 0.0, 1.0)},
        {"extent": math.inf},
    ):
        with pytest.raises(UsageError, match="got"):
            surface_on(f, plane, **options)
    with pytest.raises(UsageError, match="does not fit"):
        surface_on(g, plane)
    with pytest.raises(UsageError, match="does not fit"):
        surface_on(f, plane, trajectory=written(tmp_path / "t", np.ones((3, 2))))
    with pytest.raises(UsageError, match="Did you mean 'random'"):
        surface(g, point, plane="randon")
    with pytest.raises(UsageError, match="needs a trajectory"):
        surface(g, point)
    with pytest.raises(UsageError, match="Did you mean 'filter'"):
        random_plane(g, point, torch.Generator(), normalise="filters")
    with pytest.raises(UsageError, match="vectors=True"):
        random_plane(f, zero + 1, torch.Generator())
    with pytest.raises(UsageError, match="unrestricted"):
        random_plane(g.restrict(span(point, torch.eye(len(point), dtype=torch.float64))), point, torch.Generator())
    with pytest.raises(LandscapeError, match="centre"):
        surface_on(Objective.from_function(lambda w: w.sum() / 0, D), plane)


# -- what is not finite, and pictures -----------------------------------------------------------------------------------


def drawn(result):
    """Every picture, from the round-tripped object."""
    back = Result.from_json(result.to_json())
    assert isinstance(back, Surface)
    assert back.to_json() == result.to_json()
    assert back.summary() == result.summary()
    assert back.caption()
    with styles.house():
        for panel in result.panels():
            sheet = Sheet()
            back.plot(sheet.subplots(), panel)
            sheet.canvas.draw()
    back.figure().to_json()
    return sheet


def log_region(w):
    """Finite left of w_0 = 0.5 only, NaN beyond."""
    return 1 + w @ w + 0 * torch.log(0.5 - w[0])


def test_nan_region_is_counted_masked_and_hatched(tmp_path):
    f = Objective.from_function(log_region, 3)
    plane = Plane(torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)[:2])
    found = surface_on(f, plane, side=9)
    beyond = found.x > 0.5
    at = found.x == 0.5  # log 0 is -inf, and 0 * inf is NaN
    assert np.array_equal(np.isnan(found.loss), np.tile(beyond | at, (9, 1)))
    assert found.nonfinite == 9 * int((beyond | at).sum()) == 27
    assert any("27 of 81" in warning for warning in found.warnings)
    assert "27 of 81" in found.caption()
    sheet = Sheet()
    ax = sheet.subplots()
    found.plot(ax)
    assert len(ax.patches) == 27
    assert np.isnan(np.array(found.figure().data[0].z)).sum() == 27
    drawn(found)


def test_true_losses_that_are_not_finite_are_counted(tmp_path):
    f = Objective.from_function(lambda w: 1 + w @ w + 0 * torch.log(0.5 - w[2]), 3)
    points = np.array([[2.0, 1, 3], [1, 1, -1], [1, 0, 0.2], [0, 0, 0]])
    plane = Plane(torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)[:2])
    found = surface_on(f, plane, trajectory=written(tmp_path / "t", points), side=5)
    assert np.isnan(found.true_loss).tolist() == [True, False, False, False]
    assert any("not finite at 1 of 4 recorded points" in warning for warning in found.warnings)
    drawn(found)


@pytest.mark.parametrize(
    "function",
    [
        lambda w: 1 + w @ w,
        lambda w: w @ w,  # zero at the centre: no logarithm
        lambda w: w[0] - w[1],
        lambda w: 3 + 0 * w.sum(),  # flat
        lambda w: 0 * w.sum(),
        lambda w: torch.exp(40 * w[0]),  # 50 decades
    ],
)
@pytest.mark.parametrize("pathless", [True, False])
def test_pictures_of_every_scale(function, pathless, tmp_path):
    f = Objective.from_function(function, 3)
    points = np.random.default_rng(0).normal(size=(9, 3))
    trajectory = None if pathless else written(tmp_path / "t", points)
    plane = Plane(torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)[:2])
    found = surface_on(f, plane, trajectory=trajectory, side=6)
    assert found.panels() == (("surface",) if pathless else ("surface", "path"))
    drawn(found)


def test_heights_are_clipped_at_the_stated_percentile(bowl):
    f, _ = bowl
    plane = Plane(torch.ones(D, dtype=torch.float64), torch.eye(D, dtype=torch.float64)[:2])
    found = surface_on(f, plane, side=11)
    figure = found.figure()
    cap = np.percentile(found.loss, 99)
    np.testing.assert_allclose(figure.data[0].z, np.log10(np.minimum(found.loss, cap)), rtol=1e-12)
    assert f"{cap:.3g} (99th percentile" in figure.layout.annotations[0].text
    with pytest.raises(UsageError, match="panel"):
        found.plot(Sheet().subplots(), "path")
