"""Sharpness along a way: closed forms and dense matrices at every point, the edge by simulating descent, the picture from the stored numbers alone."""

import io
import math
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from problems import DIFFERENCES, F64, close, draw, objective, quadratic, rotation, slopes
from torch import nn

from landscape import recordings, tasks
from landscape.analysis import stability
from landscape.analysis.stability import Method, Sharpness, Station, chosen, sharpness, stations
from landscape.descent import Recipe
from landscape.errors import UsageError
from landscape.objectives import CURVATURES, Objective
from landscape.results import Result
from landscape.runs import Run, place

TIGHT = 1e-8  # an eigenvalue is within its residual, at most tolerance 1e-9 times |A|
PLAIN = Method("sgd")
D = 24


def bent(d: int = D) -> tuple[Objective, np.ndarray, np.ndarray]:
    """f = sum_i a_i x_i^2 / 2 + x_i^3 / 6 in rotated coordinates x = Q^T w: the Hessian at w is Q diag(a + x) Q^T. Returns f, a and Q."""
    a, q = np.linspace(-1, 3, d), rotation(d)
    turn, curvature = torch.from_numpy(q.T.copy()), torch.from_numpy(a)
    return Objective.from_function(lambda w: (curvature * (turn @ w) ** 2 / 2 + (turn @ w) ** 3 / 6).sum(), d), a, q


def way(q: np.ndarray, x: np.ndarray, rate: float = 0.1) -> list[Station]:
    """Stations at w = Q x for coordinates x (T, d)."""
    return [Station(10 * t, torch.from_numpy(q @ row), None, rate) for t, row in enumerate(x)]


def drifting(d: int = D, points: int = 13) -> np.ndarray:
    """Coordinates (T, d) that drift by a fifth of the spectrum's spacing a step, so that eigenvalues cross."""
    moves = 0.02 * np.random.default_rng(0).normal(size=(points, d))
    return np.cumsum(moves, axis=0)


def top_space(matrix: np.ndarray, k: int) -> np.ndarray:
    """Eigenvectors (k, d) of the largest eigenvalues, by dense linear algebra."""
    return np.linalg.eigh(matrix)[1][:, ::-1][:, :k].T


# -- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize("top", [1, 4])
def test_values_are_those_of_the_closed_form_at_every_point(top, warm):
    f, a, q = bent()
    x = drifting()
    found = sharpness(f, way(q, x), top=top, tolerance=1e-9, warm=warm)
    truth = np.sort(a + x, axis=1)[:, ::-1]
    close(found.values, truth[:, :top], TIGHT)
    close(found.sharpness, truth[:, 0], TIGHT)
    assert found.converged.all()
    assert not found.warnings
    w = x @ q.T
    close(found.losses, (a * x**2 / 2 + x**3 / 6).sum(1), 1e-12)
    gradients = a * x + x**2 / 2  # in the eigenvectors' own coordinates
    order = np.argsort(-(a + x), axis=1)[:, :top]
    held = np.take_along_axis(gradients, order, axis=1)
    # an eigenvector is off by residual / gap: 3e-9 / 1e-3 at the closest crossing of these ways
    close(found.shares, (held**2).sum(1) / (gradients**2).sum(1), 1e-5)
    close(found.gradient_norms, np.linalg.norm(gradients, axis=1), 1e-12)
    assert np.array_equal(found.steps, 10 * np.arange(len(w)))


def test_the_default_tolerance_bounds_the_error_of_every_value():
    f, a, q = bent()
    x = drifting()
    found = sharpness(f, way(q, x), top=3)
    error = np.abs(found.values - np.sort(a + x, axis=1)[:, ::-1][:, :3])
    assert (found.residuals <= 1e-2 * np.abs(found.values).max(1, keepdims=True) * 1.01).all()
    assert (error <= found.residuals).all()
    assert error.max() > 1e-12  # else nothing was left to bound


@pytest.mark.parametrize("operator", ["hessian", "gauss-newton"])
def test_a_network_against_dense_matrices_by_differences(operator):
    f, z = objective("mlp")
    points = [z + 0.1 * t * draw(len(z), seed=5) for t in range(3)]
    found = sharpness(
        f, [Station(t, point) for t, point in enumerate(points)], top=3, operator=operator, tolerance=1e-9
    )
    spaces = []
    for t, point in enumerate(points):
        dense = slopes(f.gradient, point).numpy() if operator == "hessian" else f.gauss_newton(point).dense().numpy()
        dense = (dense + dense.T) / 2
        close(found.values[t], np.linalg.eigvalsh(dense)[::-1][:3], DIFFERENCES)
        spaces.append(top_space(dense, 3))
        g = f.gradient(point).numpy()
        # eigenvectors of the differences are off by their error over the gap, at least 1e-3 of the matrix here
        close(found.shares[t], np.sum((spaces[t] @ g) ** 2) / np.sum(g**2), 1e3 * DIFFERENCES)
    overlaps = np.array([[np.sum((u @ v.T) ** 2) / 3 for v in spaces] for u in spaces])
    close(found.overlaps, overlaps, 1e3 * DIFFERENCES)
    close(found.lasting[1:], np.diag(overlaps, 1), 1e3 * DIFFERENCES)
    assert np.isnan(found.lasting[0])


def test_a_constant_hessian_lasts_and_costs_little():
    p = quadratic(np.append(np.linspace(0, 1, 195), [2.0, 3.0, 4.0, 5.0, 6.0]))
    points = [Station(t, draw(200, seed=t)) for t in range(21)]
    warm, cold = (sharpness(p.f, points, top=5, warm=flag) for flag in (True, False))
    # residuals of 1e-2 |A| = 0.06 turn each vector by at most 0.06 / gap, gap 1: a loss of at most its square
    assert (warm.overlaps >= 1 - 2 * 0.06**2).all()
    assert (warm.lasting[1:] >= 1 - 2 * 0.06**2).all()
    for found in (warm, cold):
        assert (np.abs(found.values - [6.0, 5.0, 4.0, 3.0, 2.0]) <= found.residuals).all()
    # five vectors take five products at least; the rest is for the part that is random
    assert warm.products.sum() < 0.75 * cold.products.sum()
    assert warm.products.min() >= 5


def test_the_trace_is_within_its_errors():
    f, a, q = bent()
    x = drifting(points=4)
    stops = way(q, x)
    found = sharpness(f, stops, top=2, trace_accuracy=0.01)
    close(found.traces, (a + x).sum(1))  # of so few dimensions that 1% takes the matrix itself
    assert not found.trace_errors.any()
    rough = sharpness(f, stops, top=2, trace_accuracy=0.2)
    assert (np.abs(rough.traces - (a + x).sum(1)) < 4 * rough.trace_errors).all()
    assert (rough.trace_errors <= 0.2 * np.abs(rough.traces)).all()
    without = sharpness(f, stops, top=2)
    assert np.isnan(without.traces).all()
    assert np.isnan(without.trace_errors).all()
    assert (found.products > without.products).all()


def test_both_ends_are_listed_the_largest_first():
    f, a, q = bent()
    x = drifting(points=3)
    found = sharpness(f, way(q, x), top=4, which="both", tolerance=1e-9)
    close(found.values, np.sort(a + x, axis=1)[:, [-1, -2, 0, 1]], TIGHT)


@pytest.mark.parametrize("operator", CURVATURES)
def test_every_matrix_has_a_name_and_an_answer(operator):
    f, z = objective("mlp")
    found = sharpness(f, [Station(0, z, None, 0.1)], top=2, operator=operator, method=PLAIN)
    assert stability.NAMES[operator] in found.caption()
    assert np.isfinite(found.edges).all() == (operator in ("hessian", "gauss-newton"))


# -- warm starts ------------------------------------------------------------------------------------------------------


def test_a_value_that_overtakes_unseen_is_found_by_the_search_and_told(monkeypatch):
    """The Hessian is diagonal and warm starts are its exact eigenvectors: what overtakes has no part in them, unless they hold a random one."""
    d = 30
    f = Objective.from_function(lambda w: (w**2 / 2 + w**3 / 6).sum(), d)  # Hessian diag(1 + w)
    stops = [Station(t, torch.zeros(d, dtype=F64)) for t in range(12)]
    for t, stop in enumerate(stops):
        stop.point[-2] = 2.0
        stop.point[-1] = 3.0 if t >= 5 else 0.0
    truth = np.array([3.0] * 5 + [4.0] * 7)
    # without the random part: unseen from step 5 on, until the search at step 10
    monkeypatch.setattr(stability, "RANDOM", 0.0)
    blind = sharpness(f, stops, top=1, tolerance=1e-6)
    close(blind.sharpness[[*range(5), 10, 11]], truth[[*range(5), 10, 11]], 1e-5)
    close(blind.sharpness[5:10], np.full(5, 3.0), 1e-5)
    (told,) = blind.warnings
    assert "at step 10 a search found an eigenvalue" in told
    assert "since step 0" in told
    # with it: a few products tell these two values apart
    monkeypatch.undo()
    seeing = sharpness(f, stops, top=1, tolerance=1e-6)
    close(seeing.sharpness, truth, 1e-5)
    assert not seeing.warnings


def test_the_last_station_is_searched():
    f, _, q = bent()
    x = drifting(points=3)
    three = sharpness(f, way(q, x), top=1)
    more = sharpness(f, way(q, drifting(points=4)), top=1)
    assert three.products[2] > more.products[2]  # the same point, there not the last
    assert three.products[1] == more.products[1]


def test_the_seed_decides_and_is_stated():
    f, _, q = bent()
    stops = way(q, drifting(points=4))
    one, same, other = (sharpness(f, stops, trace_accuracy=0.1, seed=seed) for seed in (4, 4, 5))
    assert one.to_json() == same.to_json()
    assert one.to_json() != other.to_json()
    stated = {name: one.provenance[name] for name in ("seed", "dtype", "device", "norm", "warm")}
    assert stated == {"seed": 4, "dtype": "float64", "device": "cpu", "norm": "eval", "warm": True}


# -- persistence ------------------------------------------------------------------------------------------------------


def test_few_references_are_evenly_spaced_and_agree_with_all(monkeypatch):
    f, _, q = bent()
    stops = way(q, drifting(points=11))
    full = sharpness(f, stops, top=2, tolerance=1e-9)
    assert np.array_equal(full.references, full.steps)
    close(full.overlaps, full.overlaps.T, 1e-12)
    close(np.diag(full.overlaps), np.ones(11), 1e-12)
    for room, expected in ((5, [0, 4, 8]), (6, [0, 2, 4, 6, 8, 10]), (1, [0])):
        monkeypatch.setattr(stability, "REFERENCE_BYTES", room * 2 * D * 8 + 8)
        few = sharpness(f, stops, top=2, tolerance=1e-9)
        assert few.references.tolist() == [10 * t for t in expected]
        known = np.isfinite(few.overlaps)
        for column, reference in enumerate(expected):
            wanted = [t >= reference or t in expected for t in range(11)]
            assert known[:, column].tolist() == wanted
        close(few.overlaps[known], full.overlaps[:, expected][known], 1e-12)
        few.plot(Figure().subplots(), few.panels()[-1])


# -- the edge ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 0.5])
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.5, False), (0.9, False), (0.5, True), (0.9, True)])
def test_descent_on_a_parabola_diverges_just_above_the_edge_and_not_below(momentum, nesterov, decay):
    """2% off the edge the slowest mode changes by at least 2 x 2% a step, plain descent's: by 1.04^500 = 3e8 in all."""
    method = Method("sgd", momentum, nesterov, decay)
    (edge,) = method.edges(np.array([0.1]))
    ends = []
    for factor in (0.98, 1.02):
        curvature = factor * (edge + decay) - decay
        w = torch.ones(1, dtype=F64, requires_grad=True)
        optimizer = torch.optim.SGD([w], lr=0.1, momentum=momentum, nesterov=nesterov, weight_decay=decay)
        for _ in range(500):
            w.grad = curvature * w.detach()
            optimizer.step()
        ends.append(abs(float(w.detach())))
    assert ends[0] < 1e-6
    assert ends[1] > 1e6


def test_the_edge_follows_the_rate_and_is_said():
    f, _, q = bent()
    x = drifting(points=4)
    rates = [0.5, 1.0, 0.0, math.nan]
    stops = [replace(stop, rate=rate) for stop, rate in zip(way(q, x), rates, strict=True)]
    found = sharpness(f, stops, top=2, method=Method("sgd", 0.9, weight_decay=0.1, batch=32, clip=1.0))
    np.testing.assert_allclose(found.edges, [7.5, 3.7, np.nan, np.nan], rtol=1e-12)
    assert found.formula == "2(1+β)/η − ω"
    for words in ("β = 0.9, ω = 0.1", "batches of 32 rows", "clipped"):
        assert words in found.caption()
    assert found.above == 0
    assert "edge 2(1+β)/η − ω = 3.7 to 7.5: above it at 0 of 2 steps" in found.summary()
    higher = sharpness(f, [replace(stop, rate=1.0) for stop in stops], top=2, method=PLAIN)
    assert higher.above == 4
    assert "(edge 2/η = 2: above it at 4 of 4 steps)" in higher.summary()


@pytest.mark.parametrize(
    ("method", "why"), [(Method("adam", 0.9), "adam rescales"), (Method.of({"task": "x"}), "is not recorded")]
)
def test_no_line_where_there_is_none_and_why(method, why):
    f, _, q = bent()
    found = sharpness(f, way(q, drifting(points=2)), top=1, method=method)
    assert np.isnan(found.edges).all()
    assert found.formula == ""
    assert why in found.caption()
    assert "edge" not in found.summary()


def test_a_method_is_read_from_the_options_of_a_run():
    recipe = {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 1e-3, "clip": 2.0, "batch_size": 64, "lr": 0.1}
    assert Method.of(recipe) == Method("sgd", 0.9, False, 1e-3, 2.0, 64)
    assert Method.of({**recipe, "nesterov": True}).formula == "2(1+β)/(1+2β)η − ω"


# -- a recorded run ---------------------------------------------------------------------------------------------------

PROBLEM = '''
import torch
from torch import nn

def make(seed=0):
    """A problem with BatchNorm, whose statistics move."""
    x = torch.randn(96, 6, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    y = (x[:, 0] * x[:, 1] > 0).long()
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2)).double()
    return model, "cross-entropy", (x, y)
'''


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[recordings.Site]:
    folder = tmp_path_factory.mktemp("run")
    (folder / "problem.py").write_text(PROBLEM)
    spec = f"{folder / 'problem.py'}:make"
    task, run, recipe = tasks.find(spec), Run(folder / "a"), Recipe(40, lr=0.2, batch_size=32, schedule="cosine")
    run.begin("train", {"task": spec, "optimizer": "sgd", "momentum": 0.9, "batch_size": 32}, {})
    device = torch.device("cpu")
    for _ in recordings.record(run, task, recipe, seed=0, every=4, device=device, dtype=F64):
        pass
    yield recordings.site(place(str(run.folder)), task, device=device, dtype=F64)


def test_a_run_is_measured_at_its_points_with_its_buffers_and_rates(site, tmp_path):
    trajectory = site.place.run.trajectory()
    found = sharpness(site.train, stations(site), top=3, tolerance=1e-9, method=Method.of(site.place.run.options))
    assert found.steps.tolist() == list(range(0, 41, 4))
    recipe = Recipe(40, lr=0.2, schedule="cosine")
    rates = np.array([recipe.rate(step) for step in range(0, 41, 4)])
    close(found.rates, rates, 1e-15)
    close(found.edges[:-1], 3.8 / rates[:-1], 1e-12)
    assert np.isnan(found.edges[-1])  # a cosine ends at a rate of 0
    # the losses of a module of torch's own, loaded by hand
    module = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2)).double().eval()
    x = torch.randn(96, 6, generator=torch.Generator().manual_seed(7), dtype=F64)
    losses = []
    for index in range(len(trajectory)):
        row = trajectory.row(index)
        state = dict.fromkeys(module.state_dict())
        for entry in trajectory.layout.entries:
            values = row.point if entry.kind == "parameter" else row.buffers
            part = values[entry.offset : entry.offset + entry.size].reshape(entry.shape)
            state[entry.name] = torch.from_numpy(np.array(part))
        module.load_state_dict(state)
        losses.append(nn.functional.cross_entropy(module(x), (x[:, 0] * x[:, 1] > 0).long()).item())
    close(found.losses, np.array(losses), 1e-12)
    assert len(set(np.round(losses, 12))) == 11
    # and a dense matrix of differences in the middle
    f = site.train.with_buffers(list(stations(site))[5].buffers)
    dense = slopes(f.gradient, torch.from_numpy(np.array(trajectory.row(5).point))).numpy()
    close(found.values[5], np.linalg.eigvalsh((dense + dense.T) / 2)[::-1][:3], DIFFERENCES)


def test_warm_starts_give_the_values_of_cold_ones_for_fewer_products(site):
    warm, cold = (sharpness(site.train, stations(site), top=2, tolerance=1e-3, warm=flag) for flag in (True, False))
    allowed = warm.residuals + cold.residuals  # each has a true value within its residual
    assert (np.abs(warm.values - cold.values) <= allowed).all()
    assert warm.products.sum() < cold.products.sum()
    assert not warm.warnings


def test_stations_are_chosen_by_their_steps(site):
    trajectory = site.place.run.trajectory()

    def steps(**options: int) -> list[int]:
        picked = [station.step for station in stations(site, **options)]
        assert picked == trajectory.steps[chosen(trajectory, **options)].tolist()
        return picked

    assert steps(every=4) == [0, 16, 32, 40]
    assert steps(first=5, last=20) == [8, 12, 16, 20]
    assert steps(first=8, last=8) == [8]
    assert steps(every=100) == [0, 40]
    with pytest.raises(UsageError, match=r"no recorded step lies in 41 to None: the 11 recorded ones go from 0 to 40"):
        next(stations(site, first=41))
    with pytest.raises(UsageError, match="give 1 or more"):
        chosen(trajectory, every=0)


# -- what cannot be measured ------------------------------------------------------------------------------------------


def test_points_that_are_not_finite_are_left_out_and_told():
    f, a, q = bent()
    x = drifting(points=5)
    stops = way(q, x)
    stops[0].point[3], stops[2].point[0] = math.nan, math.inf
    found = sharpness(f, stops, top=2, tolerance=1e-9, method=PLAIN)
    assert np.isnan(found.values[[0, 2]]).all()
    close(found.values[[1, 3, 4]], np.sort(a + x[[1, 3, 4]], axis=1)[:, ::-1][:, :2], TIGHT)
    assert np.isnan(found.overlaps[[0, 2]]).all()
    assert np.isnan(found.overlaps[:, [0, 2]]).all()
    assert np.isfinite(found.lasting[[3, 4]]).all()
    assert found.warnings[0].startswith(
        "2 of 5 points have a loss, gradient or entry that is not finite, the first at step 0"
    )
    assert len(found.warnings) == 1
    assert "at step 10, " in found.summary()
    nowhere = sharpness(f, [stops[0]], top=2)
    assert nowhere.summary() == "sharpness: none of the 1 points is finite."


def test_what_is_not_reached_is_said():
    f, _, q = bent()
    stops = way(q, drifting(points=3))
    short = sharpness(f, stops, top=3, tolerance=1e-6, max_products=6)
    assert (
        "eigenvalues at 3 of 3 steps did not reach the tolerance 1e-06 in 6 products, first at step 0"
        in short.warnings[0]
    )
    assert not short.converged.any()
    assert (short.products <= 6).all()
    cut = sharpness(quadratic(np.arange(1.0, 4.0)).f, [Station(0, draw(3))], top=9)
    assert cut.values.shape == (1, 3)
    assert "all 3 are given" in cut.warnings[0]
    flat = sharpness(Objective.from_function(lambda w: 0 * w.sum(), 4), [Station(0, draw(4))], top=1)
    assert flat.sharpness[0] == 0
    assert np.isnan(flat.shares[0])  # of no gradient there is no share


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"operator": "hesian"}, "Did you mean 'hessian'"),
        ({"top": 0}, "at least 1"),
        ({"which": "smallest"}, "Allowed: largest, both"),
        ({"tolerance": 0.0}, "positive and finite; got 0"),
        ({"top": 5, "max_products": 4}, "4 products cannot give 5"),
        ({"trace_accuracy": -1.0}, "positive and finite; got -1"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    f, _, q = bent()
    with pytest.raises(UsageError, match=message):
        sharpness(f, way(q, drifting(points=2)), **options)


def test_no_station_and_steps_out_of_order_are_refused():
    f, _, q = bent()
    with pytest.raises(UsageError, match="no point"):
        sharpness(f, [])
    with pytest.raises(UsageError, match="must increase; got 0 after 10"):
        sharpness(f, way(q, drifting(points=2))[::-1])


# -- the answer -------------------------------------------------------------------------------------------------------


def answers() -> dict[str, Sharpness]:
    """One of every look: one point, NaN amid, nothing finite, negative values, a wide range, with a trace."""
    f, _, q = bent()
    stops = way(q, drifting(points=5), rate=0.7)
    wide = [Station(t, 10.0 ** torch.linspace(-t, t, D, dtype=F64), None, 1e-3) for t in range(4)]
    quartic = Objective.from_function(lambda w: (w**4).sum(), D)
    broken = way(q, drifting(points=5), rate=0.7)
    broken[2].point[0] = math.nan
    return {
        "many": sharpness(f, stops, trace_accuracy=0.1, method=PLAIN),
        "one": sharpness(f, stops[:1], trace_accuracy=0.1, method=PLAIN),
        "single value": sharpness(f, stops, top=1, method=Method("sgd", 0.9)),
        "no line": sharpness(f, stops, top=2, method=Method("adam")),
        "nan": sharpness(f, broken, top=3, trace_accuracy=0.1, method=PLAIN),
        "nothing": sharpness(f, [broken[2]], top=3, trace_accuracy=0.1, method=PLAIN),
        "both ends": sharpness(f, stops, top=4, which="both", method=PLAIN),
        "wide": sharpness(quartic, wide, top=3, trace_accuracy=0.1, method=PLAIN),
        "unconverged": sharpness(f, stops, top=2, tolerance=1e-9, max_products=5, method=PLAIN),
    }


@pytest.fixture(scope="module")
def looks() -> dict[str, Sharpness]:
    return answers()


NAMES = ("many", "one", "single value", "no line", "nan", "nothing", "both ends", "wide", "unconverged")


@pytest.mark.parametrize("name", NAMES)
def test_read_back_equal_and_drawn_from_the_file_alone(looks, name):
    found = looks[name]
    back = Result.from_json(found.to_json())
    assert isinstance(back, Sharpness)
    for field in found.__dataclass_fields__:
        np.testing.assert_equal(getattr(back, field), getattr(found, field), field)
    assert back.to_json() == found.to_json()
    assert len(back.table()) == len(found.steps) + 1
    assert all(len(row) == len(back.table()[0]) for row in back.table())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sheet = Figure()
        for ax, panel in zip(sheet.subplots(1, 5), back.panels(), strict=False):
            back.plot(ax, panel)
        sheet.savefig(io.BytesIO(), format="svg")
        assert back.figure().to_json() == found.figure().to_json()
    assert "nan" not in back.summary()
    assert "nan" not in back.caption()


def test_panels_are_those_that_have_numbers(looks):
    assert looks["many"].panels() == ("sharpness", "loss", "gradient", "persistence", "trace")
    assert looks["one"].panels() == ("sharpness", "loss", "gradient", "trace")
    assert looks["nothing"].panels() == ("sharpness", "loss", "gradient")
    with pytest.raises(UsageError, match="unknown panel"):
        looks["one"].plot(Figure().subplots(), "persistence")


def lines(found: Sharpness, panel: str = "sharpness") -> dict[str, np.ndarray]:
    ax = Figure().subplots()
    found.plot(ax, panel)
    return {str(line.get_label()): np.asarray(line.get_ydata()) for line in ax.get_lines()}


def test_the_picture_shows_the_numbers(looks):
    many = looks["many"]
    drawn = lines(many)
    close(drawn["sharpness"], many.values[:, 0], 0)
    close(drawn["2/η"], many.edges, 0)
    close(drawn["the 4 others"], many.values[:, 1], 0)
    close(lines(many, "gradient")["in the top 5 directions"], many.shares, 0)
    close(lines(many, "gradient")["by chance, k/d = 0.21"], np.full(2, 5 / D), 1e-15)
    assert "2(1+β)/η" in lines(looks["single value"])
    assert not any("η" in name for name in lines(looks["no line"]))
    assert "not converged" in lines(looks["unconverged"])
    close(lines(looks["one"])["2/η"], np.full(2, 2 / 0.7), 1e-15)  # a line through one point is two ends
    hover = many.figure().data[-2]
    assert (hover.name, hover.text[3][:7]) == ("sharpness", "step 30")
    assert many.figure().data[-1].name == "2/η"


def test_the_axis_is_logarithmic_where_a_page_could_not_show_the_range(looks):
    for name, scale in (("many", "linear"), ("both ends", "linear"), ("wide", "log")):
        ax = Figure().subplots()
        looks[name].plot(ax)
        assert ax.get_yscale() == scale, name


def test_the_summary_says_what_was_found(looks):
    assert looks["many"].summary().endswith(" products.")
    assert "; the top 5 directions hold" in looks["many"].summary()
    assert "trace" in looks["many"].summary()
    assert "; the top direction holds" in looks["single value"].summary()
    assert "trace" not in looks["single value"].summary()


def test_the_file_is_small(looks, tmp_path: Path):
    (tmp_path / "a.json").write_text(looks["many"].to_json())
    assert (tmp_path / "a.json").stat().st_size < 2e4


# -- densities and parameters along the way -----------------------------------------------------------------------------------


def test_densities_have_the_share_of_each_sign_and_the_place_of_each_value():
    f, a, q = bent()
    x = drifting(points=3)
    found = sharpness(f, way(q, x), top=2, density_accuracy=0.1)
    values = a + x  # so few that every one is counted
    assert not found.accuracies.any()
    for shares, sign in ((found.positive_density, 1), (found.negative_density, -1)):
        # eigenvalues nearer to an end of the grid than a smoothing width are cut: one of these few is a 24th
        close(np.trapezoid(shares, found.decades, axis=1), (sign * values > 0).mean(1), 0.05)
        first = np.log10(np.abs(values[0])[sign * values[0] > 0])
        far = np.abs(found.decades[:, None] - first).min(1) > 6 * 0.05
        assert shares[0][far].max(initial=0) < 1e-6
    assert {"positive density", "negative density"} <= set(found.panels())
    for panel in found.panels():
        ax = Figure().subplots()
        found.plot(ax, panel)
        ax.figure.canvas.draw()
    assert Result.from_json(found.to_json()).to_json() == found.to_json()


def test_some_parameters_along_a_way_are_the_blocks_at_its_points():
    f, z = objective("mlp")
    points = [z, z + 0.1 * draw(f.dim, seed=3)]
    found = sharpness(
        f,
        [Station(step, point) for step, point in enumerate(points)],
        top=2,
        tolerance=1e-8,
        params="0.*",
        method=Method("sgd"),
    )
    mask = f.model.layout.select("0.*")
    for point, values in zip(points, found.values, strict=True):
        block = f.hessian(point).dense().numpy()[np.ix_(mask, mask)]
        close(values, np.linalg.eigvalsh(block)[::-1][:2], 1e-7)
    assert (found.dim, found.params) == (mask.sum(), "0.*")
    assert not np.isfinite(found.edges).any()
    assert "of all parameters" in found.caption()
