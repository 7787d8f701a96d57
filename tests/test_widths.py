"""Widths and threshold dimensions against quadratic wells (exact simulation, the law of a ball), angles by hand, and the formulas of the escape bounds; the pictures from the stored numbers alone."""

import dataclasses
import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from problems import draw, planted, rotation
from scipy import special
from test_thresholds import columns, steps

from landscape.analysis import widths
from landscape.analysis.thresholds import Threshold, threshold
from landscape.analysis.widths import Width, width
from landscape.cli.app import main
from landscape.errors import LandscapeError, UsageError
from landscape.objectives import Objective
from landscape.quadratics import Quadratic
from landscape.results import Result
from landscape.sublevels import Sight

D = 40
LEVELS = (0.3, 0.1, 0.03)  # of the loss at the start


def well(values: np.ndarray, seed: int = 0) -> tuple[Objective, torch.Tensor, torch.Tensor, Quadratic]:
    """A well of these curvatures in a random frame, a start at distance 1 from its bottom, the bottom, and the same known exactly; its loss at the start is 1."""
    frame, offset = rotation(len(values), seed), draw(len(values), seed=seed + 1).numpy()
    offset /= np.linalg.norm(offset)
    values = values / (0.5 * values @ offset**2)
    a, bottom = torch.from_numpy(frame * values @ frame.T), draw(len(values), seed=seed + 2)
    f = Objective.from_function(lambda w: (w - bottom) @ a @ (w - bottom) / 2, len(values))
    return f, bottom + torch.from_numpy(frame @ offset), bottom, Quadratic.of_spectrum(values, offset)


def seen(angles: Any, *, ambient: int = 100, levels: Any = (1.0, 0.5), planes: Any = None, k: Any = None, progress: Any = None, inside: Any = None, **others: Any) -> Sight:  # fmt: skip
    """A sight of these angles (E, L)."""
    angles = np.asarray(angles, dtype=float)
    e, n = angles.shape
    k = np.zeros(n, dtype=int) if k is None else np.asarray(k)
    planes = np.full((e, n), np.nan) if planes is None else np.asarray(planes, dtype=float)
    progress = np.stack([angles] * 2) if progress is None else np.asarray(progress, dtype=float)
    inside = np.zeros(n, dtype=bool) if inside is None else np.asarray(inside)
    one = Sight(
        np.array(levels), inside, angles, angles * 0 + 3, np.array([1.0, 4.0]), np.stack([angles, angles + 0.1]), k, planes, planes, 10.0 * np.arange(1, 1 + len(progress)), progress,
        np.full(e, 0.4), np.zeros((2, e), dtype=bool), ambient, 77,
    )  # fmt: skip
    return dataclasses.replace(one, **others)


def sight_of(known: Quadratic, levels: Any, draws: int = 16, seed: int = 0) -> Sight:
    """What a perfect search sees of a well: angles by projection on its cone, of rays and of planes that meet no nearer point (NaN)."""
    levels = np.sort(np.array(levels, dtype=float))[::-1].copy()
    g = np.random.default_rng(seed).standard_normal((draws, known.dim))
    inside = np.array([known.inside(level) for level in levels])
    angles = np.zeros((draws, len(levels)))
    for row in np.flatnonzero(~inside):
        cosines = np.linalg.norm(known.project(g, levels[row]), axis=1) / np.linalg.norm(g, axis=1)
        angles[:, row] = np.arccos(np.clip(cosines, 0, 1))
    return seen(angles, ambient=known.dim, levels=levels, inside=inside)


@pytest.fixture
def perfect(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the search perfect, of a known well."""

    def of(known: Quadratic) -> None:
        def search(f: Objective, start: Any, levels: Any, *, draws: int = 8, radii: Any = None, seed: int = 0, **options: Any) -> Sight:  # fmt: skip
            return sight_of(known, levels, draws, seed)

        monkeypatch.setattr(widths, "nearest", search)

    return of


# -- the estimates ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 1.0, 2.0])
def test_every_estimate_of_a_convex_set_is_the_exact_threshold(perfect, decay):
    f, start, bottom, known = well(np.arange(1.0, D + 1) ** -decay)
    perfect(known)
    found = width(f, start, LEVELS, solution=bottom, draws=400, seed=3)
    exact = known.thresholds(LEVELS, draws=400, seed=1)  # (n, L) by nested Cholesky: no cone and no angle
    truth, spread = exact.mean(0), exact.std(0, ddof=1) / math.sqrt(len(exact))
    value, error = found.dims["polar"]
    # hits are told by whole dimensions, so that the simulated mean is half a dimension high, or less near 0
    assert (np.abs(value - truth + 0.5) < 3 * np.hypot(error, spread) + 0.5).all(), (value, truth)
    # w^2 <= delta <= w^2 + 1
    local, spread = found.local
    assert (local < D - value + 3 * spread).all()
    assert (D - value - 1 < local + 3 * spread).all()
    assert np.allclose(found.dims["width"][0], D - local)
    value, error = found.dims["sharp well"]
    assert np.allclose(value, [known.threshold(level) for level in LEVELS], atol=1e-6)
    assert (error < 1e-6).all()  # so few dimensions are counted one by one
    # the paper's bound in numpy, from the semi-axes
    axes = 2 * np.array(LEVELS)[:, None] / known.values
    bound = D - (axes / (found.distance**2 + axes)).sum(1)
    assert np.allclose(found.dims["paper's well"][0], bound, atol=1e-6)
    assert found.distance == pytest.approx(1.0, abs=1e-12)
    assert found.solution_loss == pytest.approx(0.0, abs=1e-12)
    assert found.well["start"] == pytest.approx(1.0, abs=1e-9)


def test_the_search_itself_errs_to_the_side_that_is_said():
    # delta of a circular cone = D sin^2 a + cos 2a to a few thousandths (paper file T4); here r / R = 0.8
    f, start, bottom, _ = well(np.ones(12))
    found = width(f, start, [0.64], solution=bottom, draws=4, rounds=4, seed=1)
    delta = 12 * 0.64 - 0.28
    value, error = found.dims["polar"][:, 0]
    assert value > 12 - delta - 3 * error - 0.05
    local, error = found.local[:, 0]
    assert local < delta + 3 * error
    assert found.met[0] > 0


def told(monkeypatch: pytest.MonkeyPatch, sight: Sight, **options: Any) -> Width:
    """The answer that a sight leads to, of |w|^2 / 2 seen from (2, 0, ..., 0)."""
    monkeypatch.setattr(widths, "nearest", lambda *args, **kwargs: sight)
    f = Objective.from_function(lambda w: w @ w / 2, sight.ambient)
    start = torch.zeros(sight.ambient, dtype=torch.float64)
    start[0] = 2.0
    return width(f, start, sight.levels.tolist(), **options)


def test_angles_become_widths_and_dimensions(monkeypatch):
    angles = np.array([[0.3, np.nan], [0.5, np.nan], [0.4, 1.2]])
    sight = seen(angles, k=[20, 0], planes=[[0.2, np.nan], [0.3, np.nan], [0.1, np.nan]])
    found = told(monkeypatch, sight)
    norm = math.sqrt(2) * special.gamma(50.5) / special.gamma(50)  # E|g| in 100 dimensions
    t = special.stdtrit(2, 0.975) / 1.96  # of three draws
    assert found.width[0, 0] == pytest.approx(norm * np.cos(angles[:, 0]).mean(), rel=1e-12)
    assert found.width[1, 0] == pytest.approx(norm * np.cos(angles[:, 0]).std(ddof=1) / math.sqrt(3) * t, rel=1e-9)
    squares = 100 * np.sin(angles[:, 0]) ** 2
    assert found.dims["polar"][:, 0] == pytest.approx(
        [squares.mean(), squares.std(ddof=1) / math.sqrt(3) * t], rel=1e-9
    )
    assert found.dims["width"][0, 0] == pytest.approx(100 - found.width[0, 0] ** 2, rel=1e-12)
    assert found.dims["width"][1, 0] == pytest.approx(2 * found.width[0, 0] * found.width[1, 0], rel=1e-12)
    turned = 100 * np.sin(math.asin(math.sqrt(0.2)) + np.array([0.2, 0.3, 0.1])) ** 2
    assert found.dims["plane"][0, 0] == pytest.approx(turned.mean(), rel=1e-12)
    # draws that met nothing count as D
    assert found.met.tolist() == [3, 1]
    assert found.dims["polar"][0, 1] == pytest.approx((200 + 100 * math.sin(1.2) ** 2) / 3, rel=1e-12)
    assert np.isnan(found.dims["plane"][0, 1])
    missed = told(
        monkeypatch, dataclasses.replace(sight, plane_angles=np.where(angles == 0.4, np.nan, sight.plane_angles))
    )
    assert missed.dims["plane"][0, 0] == pytest.approx(
        np.delete(turned, np.flatnonzero(angles[:, 0] == 0.4)).mean(), rel=1e-12
    )
    assert any(
        "1 of 3 planes of 20 dimensions met no point of the set of train loss 1:" in note for note in missed.warnings
    )
    assert any("2 of 3 draws met no point of the set of train loss 0.5" in note for note in found.warnings)
    assert found.won.tolist() == [[3, 1], [0, 0]]
    assert found.evaluations == 77


def test_planes_that_hit_and_planes_that_are_lost_are_said(monkeypatch):
    angles = np.array([[0.3, 0.5], [0.5, 0.6], [0.4, 0.7]])
    planes = np.array([[0.0, 0.3], [0.2, np.nan], [0.1, np.nan]])
    found = told(monkeypatch, seen(angles, k=[9, 12], planes=planes))
    rows = {(row[0], row[1]): row for row in found.table()}
    assert rows["train loss 1", "plane"][2].startswith("≤ ") and rows["train loss 1", "plane"][3] == ""
    assert rows["train loss 1", "plane"][4] == "1 of 3 planes of 9 dimensions hit"
    assert rows["train loss 0.5", "plane"][2] == "unknown"
    assert rows["train loss 0.5", "plane"][4] == "one plane of 12 dimensions met the set"
    assert any("there is no estimate from planes" in note for note in found.warnings)
    none = told(monkeypatch, seen(angles, k=[0, 12], planes=np.full((3, 2), np.nan)))
    sides = {row[0]: row[4] for row in none.table() if row[1] == "plane"}
    assert sides == {
        "train loss 1": "too few dimensions for planes",
        "train loss 0.5": "no plane of 12 dimensions met the set",
    }


def test_what_speaks_against_a_convex_cone_voids_hits(monkeypatch, beside):
    angles = np.array([[0.3], [0.31], [0.32]])
    near, far = (
        told(monkeypatch, seen(angles, levels=(1.0,), k=[4], planes=[[x], [x + 0.01], [x]])) for x in (0.1, 0.5)
    )
    assert near.convex.tolist() == [True] and far.convex.tolist() == [False]
    assert {row[4] for row in far.table() if row[1].startswith("hit")} == {"void: C is not convex"}
    assert any("planes come less near than rays" in note for note in far.warnings)
    # a sweep that misses where a convex cone would be hit
    missing = width_of_misses()
    words = widths._contradicted(missing["levels"], missing["dims"], missing["bounds"], missing["measured"], "random")
    assert "the sweep hit 0 of 6 at d = 32" in words[0]


def width_of_misses():
    """Six seeds of which none hits at 32 of 40 dimensions, where a convex cone would nearly always be."""
    measured = threshold(columns(steps("random", [64] * 6, (8, 16, 32))), ambient=D, losses=[0.3])
    bound = {"proves": "hit", "probability": np.array([[0.0, 0.99, 1.0]])}
    return {"levels": np.array([0.3]), "dims": np.array([1, 20, D]), "bounds": [bound], "measured": measured}


def test_what_still_falls_is_told_level_by_level(monkeypatch):
    # polar values of two draws: 100 s. The first level is done at the fourth mark; the second begins there, and falls to the last
    first, second = [90, 50, 40, 40, 40, 40, 40], [np.nan, np.nan, np.nan, 90, 70, 60, 45]
    shift = np.array([-1.0, 1.0])[:, None]
    progress = np.arcsin(np.sqrt((np.stack([first, second], 1)[:, None] + shift) / 100))
    found = told(monkeypatch, seen(progress[-1], progress=progress))
    np.testing.assert_allclose(found.history[:, 0], first)
    np.testing.assert_allclose(found.history[:, 1], second)
    # 90, 50, 40: two thirds of two marks is the second; 90, 70, 60, 45: two thirds of three marks the third
    assert found.fall == pytest.approx([10.0, 15.0])
    error = math.sqrt(2) / math.sqrt(2) * special.stdtrit(1, 0.975) / 1.96  # 6.5
    notes = [note for note in found.warnings if "fell by" in note]
    assert len(notes) == 2
    assert f"fell by 15 over the last third of the work on it, more than its standard error {error:.2g}" in notes[1]


def test_nothing_met_is_a_bound_and_no_number(monkeypatch):
    found = told(monkeypatch, seen(np.full((3, 2), np.nan)), solution=torch.zeros(100, dtype=torch.float64))
    assert np.isnan(found.width).all()
    assert np.isnan(found.dims["polar"]).all()
    rows = [row for row in found.table() if row[1] == "polar"]
    assert [row[2:5] for row in rows] == [("≤ 100", "", "no draw met the set")] * 2
    assert "polar ≤ 100, ≤ 100" in found.summary()
    assert not any(np.isfinite(bound["reach"]).any() for bound in found.bounds)
    assert sum("no draw met" in note for note in found.warnings) == 2


def test_planes_that_come_less_near_than_rays_say_that_the_set_is_not_convex(monkeypatch):
    angles = np.full((4, 2), 0.3) + 0.01 * np.arange(4)[:, None]
    base = math.asin(math.sqrt(0.1))
    flat = math.asin(math.sqrt(0.0873)) + 0.01 * np.arange(4) - base  # the same d as the rays, and 4 times as much
    more = math.asin(math.sqrt(0.36)) + 0.01 * np.arange(4) - base
    found = told(monkeypatch, seen(angles, k=[10, 10], planes=np.stack([flat, more], 1)))
    notes = [note for note in found.warnings if "not seen as a convex cone" in note]
    assert len(notes) == 1
    assert notes[0].startswith("at train loss 0.5 ")


# -- starts and levels that are none ----------------------------------------------------------------------------------


def test_a_start_inside_sees_the_whole_sphere(perfect):
    f, start, bottom, known = well(np.ones(D))
    perfect(known)
    found = width(f, start, [2.0, 0.25], solution=bottom, draws=4)
    assert found.inside.tolist() == [True, False]
    assert found.width[:, 0] == pytest.approx([math.sqrt(2) * special.gamma(20.5) / special.gamma(20), 0.0])
    assert all(value == 0 for values in found.dims.values() for value in values[:, 0])
    assert all(values[0, 1] > 0 for values in found.dims.values())
    assert any(
        "lies in the set of train loss 2: the width is that of the whole sphere, and d* = 0" in note
        for note in found.warnings
    )
    assert [row[2] for row in found.table() if row[0] == "train loss 2"] == ["0"] * 4
    whole = width(f, start, [2.0], solution=bottom, draws=4)
    assert whole.panels() == ("threshold", "probability 2")


def test_below_the_reached_minimum_the_well_is_silent(perfect):
    f, start, bottom, known = well(np.ones(D))
    perfect(known)
    lifted = Objective.from_function(lambda w: f(w) + 0.1, D)
    # a point at a loss of 0.2: the bottom of the well is there
    end = bottom + (start - bottom) * math.sqrt(0.1)
    found = width(lifted, start, [0.5, 0.15], solution=end, draws=4)
    assert np.isfinite(found.dims["sharp well"]).tolist() == [[True, False]] * 2
    assert np.isfinite(found.dims["polar"]).all()
    assert any("train loss 0.15, below the reached minimum" in note for note in found.warnings)
    assert {row[4] for row in found.table() if row[0] == "train loss 0.15" and "well" in row[1]} == {
        "below the reached minimum"
    }
    with pytest.raises(UsageError, match=r"every level is at or below 0\.2,"):
        width(lifted, start, [0.199, 0.15], solution=end)


def test_a_start_at_the_end_has_distance_zero(perfect):
    f, _, bottom, _ = well(np.ones(D))
    perfect(Quadratic.of_spectrum(np.ones(D), np.zeros(D), 0.1))
    lifted = Objective.from_function(lambda w: f(w) + 0.1, D)
    found = width(lifted, bottom, [0.5], solution=bottom, draws=2)
    assert found.distance == 0
    assert found.dims["sharp well"][0, 0] == found.dims["polar"][0, 0] == 0
    assert any("the distance is 0" in note for note in found.warnings)


def test_negative_curvature_is_told_and_refused_on_request(perfect):
    values = np.where(np.arange(D) < 5, -0.02, 1.0)
    a = torch.from_numpy(planted(values))
    f = Objective.from_function(lambda w: w @ a @ w / 2 + 0.3 * (w @ w) ** 2 + 0.1, D)
    perfect(well(np.ones(D))[3])
    start, end = draw(D) / math.sqrt(D), torch.zeros(D, dtype=torch.float64)
    found = width(f, start, [0.3], solution=end, draws=2)
    assert found.well["share"] == pytest.approx(5 * 0.02 / (35 + 5 * 0.02), rel=1e-6)
    assert "% of the curvature seen is negative (policy: clip)" in found.caption()
    with pytest.raises(UsageError):
        width(f, start, [0.3], solution=end, draws=2, negative="error")
    assert not width(f, start, [0.3], solution=end, draws=2, matrix="none").well


@pytest.mark.parametrize(
    ("levels", "options", "says"),
    [
        ([], {}, "levels of the loss are positive"),
        ([-1.0], {}, "levels of the loss are positive"),
        ([math.nan], {}, "levels of the loss are positive"),
        ([0.5], {"draws": 1}, "at least 2 draws"),
        ([0.5], {"radii": [0.0]}, "starting radii"),
    ],
)
def test_questions_out_of_range_are_refused(levels, options, says):
    f, start, _, _ = well(np.ones(5))
    with pytest.raises(UsageError, match=says):
        width(f, start, levels, **options)


def test_an_end_that_is_no_number_is_refused():
    f = Objective.from_function(lambda w: torch.where(w[0] > 0, w @ w, math.nan), 5)
    with pytest.raises(LandscapeError, match="the loss at the end of the run is nan"):
        width(f, torch.ones(5, dtype=torch.float64), [0.5], solution=-torch.ones(5, dtype=torch.float64))


# -- the bounds -------------------------------------------------------------------------------------------------------


def test_bounds_are_of_inputs_on_the_careful_side(monkeypatch):
    ambient = 3000
    angles = np.array([[0.3, 1.3], [0.32, 1.31], [0.28, 1.29]])
    found = told(monkeypatch, seen(angles, ambient=ambient))
    for row in range(2):
        (star, error), (wide, spread) = found.dims["polar"][:, row], found.width[:, row]
        high, low = min(star + 1.96 * error, ambient), wide - 1.96 * spread
        least = min(high, ambient - high)
        every = np.arange(1, ambient)
        for proves, beyond in (("miss", high - every), ("hit", every - high)):
            bound = next(b for b in found.bounds if b["proves"] == proves and b["theorem"].startswith("McCoy"))
            tail = np.exp(-(beyond**2) / 4 / (least + np.maximum(beyond, 0) / 3))  # McCoy, Tropp 2014
            sure = every[(beyond > 0) & (1 - tail >= 0.9)]
            assert bound["reach"][row] == (sure.max() if proves == "miss" else sure.min())
            inner = found.bound_dims < ambient
            beyond = np.maximum(beyond[found.bound_dims[inner] - 1], 0)
            by_hand = 1 - np.exp(-(beyond**2) / 4 / (least + beyond / 3))
            np.testing.assert_allclose(bound["probability"][row, inner], by_hand, atol=1e-12)
        gordon = next(b for b in found.bounds if b["theorem"] == "Gordon")
        k = ambient - every
        excess = k / np.sqrt(k + 1) - low
        sure = every[(k > low**2) & (excess > 0) & (1 - 3.5 * np.exp(-(excess**2) / 18) >= 0.9)]
        assert np.isnan(gordon["reach"][row]) if not len(sure) else gordon["reach"][row] == sure.max()
    # d* of a tenth of D is out of Gordon's reach, one near D is not
    assert np.isnan(gordon["reach"][0])
    assert np.isfinite(gordon["reach"][1])
    words = {bound["proves"]: bound["standing"] for bound in found.bounds}
    assert words["miss"].startswith("no proof")
    assert words["hit"].startswith("holds if cone(S - w_0) is convex")


def test_a_miss_bound_from_an_estimate_never_falls_short_of_the_true_one(perfect):
    # the true d* is below the estimate's upper side: what is stated of each direction, against the exact numbers
    f, start, bottom, known = well(1 / np.arange(1, D + 1))
    perfect(known)
    found = width(f, start, LEVELS, solution=bottom, draws=50)
    exact = known.thresholds(LEVELS, draws=200, seed=1).mean(0) - 0.5
    for row, star in enumerate(exact):
        least = min(star, D - star)
        every = np.arange(1, D)
        for proves, beyond in (("miss", star - every), ("hit", every - star)):
            tail = np.exp(-(beyond**2) / 4 / (least + np.maximum(beyond, 0) / 3))
            sure = every[(beyond > 0) & (1 - tail >= 0.9)]
            best = found.reach(proves, row)
            if proves == "miss" and len(sure):
                assert best is not None
                assert best[1] >= sure.max()
            if proves == "hit" and best is not None:
                assert best[1] >= sure.min()


# -- beside a sweep ---------------------------------------------------------------------------------------------------


def sweep(ambient: int = D) -> Threshold:
    """Six seeds whose thresholds at a loss of 0.1 are known, in two families."""
    dims = (2, 4, 8, 16, 24, 32)
    rows = steps("random", [16, 16, 24, 24, 24, 32], dims) + steps("burn-in@3", [4, 4, 4, 4, 8, 8], dims)
    return threshold(columns(rows), ambient=ambient, losses=[0.3], provenance={"run": "runs/t"})


@pytest.fixture(scope="module")
def beside() -> dict[str, Width]:
    f, start, bottom, known = well(1 / np.arange(1, D + 1))
    chosen: dict[str, Any] = {"solution": bottom, "draws": 5}

    def search(f: Any, start: Any, levels: Any, *, draws: int, **options: Any) -> Sight:
        sight = sight_of(known, levels, draws)
        dims = np.where(sight.inside, 0, 5)
        planes = np.where(sight.inside, 0.0, 0.6 * sight.angles)
        progress = np.stack([np.where(sight.inside, 0.0, np.nan) + 0 * sight.angles, 1.1 * sight.angles, sight.angles])
        return dataclasses.replace(
            sight, plane_dims=dims, plane_angles=planes, progress=progress, marks=np.array([10.0, 20.0, 30.0])
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(widths, "nearest", search)
        found = {
            "alone": width(f, start, LEVELS, **chosen),
            "measured": width(f, start, LEVELS, measured=sweep(), **chosen),
            "burn-in": width(f, start, [0.3], measured=sweep(), family="burn-in@3", **chosen),
            "some inside": width(f, start, [2.0, 0.3], measured=sweep(), **chosen),
            "all inside": width(f, start, [2.0, 1.5], **chosen),
            "no solution": width(f, start, [0.3], draws=2),
        }
        found["not met"] = told(patch, seen(np.array([[0.3, np.nan]] * 3), ambient=D), measured=sweep())
        found["nothing met"] = told(patch, seen(np.full((2, 1), np.nan), levels=[0.5]))
    return found


def test_what_was_measured_is_the_sweep_s(beside):
    found = beside["measured"]
    truth = sweep().at("train loss", LEVELS)
    assert found.measured is not None
    assert found.phase is not None
    assert found.measured.families == ["random"]
    np.testing.assert_array_equal(found.phase.hits[0], truth.hits[0])
    np.testing.assert_array_equal(found.phase.quantiles[:, 0], truth.quantiles[:, 0])
    # of 16, 16, 24, 24, 24, 32: two hits at 16, five at 24
    assert found.phase.hits[0, 0].tolist() == [0, 0, 0, 2, 5, 6]
    d50 = next(row for row in found.table() if row[1] == "measured d50")
    assert d50[2].startswith(f"{truth.quantiles[1, 0, 0]:.4g} [")
    assert "measured d50" in found.summary()
    burnt = beside["burn-in"]
    assert burnt.phase is not None
    assert burnt.phase.hits[0, 0].tolist() == [0, 4, 6, 6, 6, 6]
    assert "step 3" in burnt.summary()


def test_a_sweep_of_something_else_is_refused():
    f, start, _, _ = well(np.ones(D))
    with pytest.raises(UsageError, match="It has: random, burn-in@3"):
        width(f, start, [0.5], measured=sweep(), family="burn-in@7")
    with pytest.raises(UsageError, match="the sweep is of 41 parameters, the run of 40"):
        width(f, start, [0.5], measured=sweep(41))


# -- words and pictures -----------------------------------------------------------------------------------------------

NAMES = ("alone", "measured", "burn-in", "some inside", "all inside", "no solution", "not met", "nothing met")


@pytest.mark.parametrize("name", NAMES)
def test_read_back_equal_and_drawn_from_the_file_alone(beside, name):
    found = beside[name]
    back = Result.from_json(found.to_json())
    assert isinstance(back, Width)
    for field in found.__dataclass_fields__:
        np.testing.assert_equal(getattr(back, field), getattr(found, field), field)
    assert back.to_json() == found.to_json()
    assert all(len(row) == len(back.table()[0]) for row in back.table())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        panels = back.panels()
        sheet = Figure()
        for ax, panel in zip(np.ravel(sheet.subplots(1, len(panels))), panels, strict=True):
            back.plot(ax, panel)
        sheet.draw_without_rendering()
        assert back.figure().to_json() == found.figure().to_json()
    texts = [back.summary(), back.caption(), *back.warnings, *(text for row in back.table() for text in row)]
    assert not any("nan" in text or "inf " in text for text in texts)
    with pytest.raises(UsageError, match="unknown panel"):
        back.plot(Figure().subplots(), "curves")


def test_the_pictures_show_the_numbers(beside):
    found = beside["measured"]
    assert found.panels() == (
        "threshold",
        "probability 0.3",
        "probability 0.1",
        "probability 0.03",
        "map",
        "convergence",
    )
    assert "map" not in beside["alone"].panels()
    ax = Figure().subplots()
    found.plot(ax, "threshold")
    bars = {str(bar.get_label()): bar[0].get_ydata() for bar in ax.containers}
    np.testing.assert_array_equal(bars["rays (polar)"], found.dims["polar"][0])
    np.testing.assert_array_equal(bars["well, sharp form"], found.dims["sharp well"][0])
    assert ax.get_xlim()[0] > ax.get_xlim()[1]  # harder to the right
    ax = Figure().subplots()
    found.plot(ax, "probability 0.1")
    lines = {str(line.get_label()): (line.get_xdata(), line.get_ydata()) for line in ax.get_lines()}
    x, y = lines["ball of the d* of rays (polar)"]
    star = found.dims["polar"][0, 1]
    spread = math.sqrt(2 * star * (D - star) / D)
    np.testing.assert_allclose(y, special.ndtr((x - star) / spread), atol=1e-12)
    (points,) = ax.containers
    np.testing.assert_allclose(points[0].get_ydata(), np.array([0, 0, 0, 2, 5, 6]) / 6)
    ax = Figure().subplots()
    found.plot(ax, "map")
    drawn = {str(line.get_label()): line for line in ax.get_lines()}
    np.testing.assert_array_equal(drawn["rays (polar)"].get_xdata(), found.dims["polar"][0])
    np.testing.assert_array_equal(drawn["rays (polar)"].get_ydata(), -np.log10(found.levels))
    curve = found.curves["sharp well"]  # 0, a start inside, has no place on the axis
    np.testing.assert_array_equal(drawn["well, sharp form"].get_xdata(), np.where(curve > 0, curve, np.nan))
    low, high = ax.get_ylim()
    assert low < -np.log10(found.levels[0]) and -np.log10(found.levels[-1]) < high
    words = [text.get_text() for text in ax.get_legend().get_texts()]
    assert words[:2] == ["d*", "d50"]
    assert "rays (polar)" in words
    traces = {trace.name: trace for trace in found.figure().data}
    np.testing.assert_array_equal(traces["rays (polar)"].y, found.dims["polar"][0])
    assert "upper bound" in traces["rays (polar)"].text[0]


def test_every_number_names_its_side(beside):
    sides = {row[1]: row[4] for row in beside["measured"].table()[1:]}
    assert sides["polar"].startswith("upper bound")
    assert sides["width"].endswith("of a lower bound of the width")
    assert sides["sharp well"] == "prediction"
    assert sides["paper's well"] == "upper bound in the well"
    assert sides["measured d50"] == "measured"


# -- the command ------------------------------------------------------------------------------------------------------

PROBLEM = """
import torch
from torch import nn

def make():
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), "cross-entropy", (x, (x[:, 0] > 0).long())

def other():
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(1))
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), "cross-entropy", (x, (x[:, 0] > 0).long())
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, a sweep of the same task, one of another, and one of other rows."""
    folder = tmp_path_factory.mktemp("widths")
    spec = folder / "problem.py"
    spec.write_text(PROBLEM)
    here = ["--steps", "40", "--batch-size", "10"]
    assert main(["train", f"{spec}:make", *here, "--record-every", "4", "--out", str(folder / "a")]) == 0
    sweeps = {
        "t": ["make", "--family", "random,burn-in@8", "--dims", "1,2,4,8"],
        "u": ["other", "--dims", "2"],
        "v": ["make", "--dims", "2", "--limit", "30"],
    }
    for out, (name, *grid) in sweeps.items():
        assert main(["threshold", f"{spec}:{name}", *here, *grid, "--seeds", "2", "--out", str(folder / out)]) == 0
    return folder


def ask(place: Path, *argv: str) -> list[str]:
    return ["width", str(place / "a"), "--task", f"{place / 'problem.py'}:make", "--draws", "2", "--rounds", "3", *argv]


def test_one_command_tells_estimates_beside_measurements(place, capsys):
    capsys.readouterr()
    assert main(ask(place, "--loss", "0.5,0.3", "--measured", str(place / "t"), "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "width"
    assert found["family"] == "random"
    assert found["levels"]["array"] == [0.5, 0.3]
    assert found["provenance"]["task"].endswith("make")
    assert found["sweep"]["run"] == str(place / "t")
    assert (place / "a" / "results" / "width.json").exists()
    # the order of levels makes no other question; again, from a burn-in, by the file
    assert main(ask(place, "--loss", "0.3,0.5", "--measured", str(place / "t"))) == 0
    assert "answered before" in capsys.readouterr().err
    file = str(place / "t" / "results" / "threshold.json")
    burnt = ask(place, "--loss", "0.3", "--from", "8", "--measured", file, "--hessian", "none")
    assert main(burnt) == 0
    out = capsys.readouterr().out
    assert "measured d50" in out
    assert "sharp well" not in out
    stored = json.loads((place / "a" / "results" / "width-2.json").read_text())
    assert stored["family"] == "burn-in@8"
    assert main(burnt) == 0
    assert "answered before" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--loss", "0.5", "--measured", "u"], "the sweep is of the task"),
        (["--loss", "0.5", "--measured", "v"], "the sweep is of other rows"),
        (["--loss", "0.5", "--measured", "a"], "holds no threshold dimension"),
        (["--loss", "0.5", "--measured", "nowhere"], "nowhere"),
        (["--loss", "0.5", "--from", "12", "--measured", "t"], "It has: random, burn-in@8"),
        (["--loss", "0.5", "--from", "5"], "5"),
        (["--loss", "0.5", "--from", "early"], "early"),
        (["--loss", "half"], "--loss takes numbers"),
        (["--loss=-1"], "levels of the loss are positive"),
        (["--loss", "0.5", "--rows", "30", "--measured", "t"], "Leave one of them out"),
        (["--loss", "0.5", "--negative", "abs", "--hessian", "none"], "Leave one of them out"),
        (["--loss", "1e-9"], "every level is at or below"),
        (["--loss", "0.5", "--radii", "-1"], "radii"),
    ],
)
def test_a_command_that_cannot_be_answered_says_why(place, capsys, monkeypatch, argv, says):
    monkeypatch.chdir(place)
    capsys.readouterr()
    assert main(ask(place, *argv)) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert says in told.err
    assert "Traceback" not in told.err
