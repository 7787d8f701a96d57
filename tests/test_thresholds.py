"""The phase transition against counts by hand, the exact law of a ball, and scipy's intervals; the pictures from the stored numbers alone."""

import json
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import optimize, special, stats

from landscape.analysis.thresholds import ACCURACIES, Phase, Threshold, threshold
from landscape.errors import UsageError
from landscape.results import Result

D = 6570
DIMS = (2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
LOW, HIGH = 0.1, 1.0  # the losses of hits and misses


def cell(family: str, dim: int, seed: int, loss: float, accuracy: float | None = None, **others: Any) -> dict[str, Any]:
    """A cell whose best and final numbers are the same."""
    score = 1 - loss / 2 if accuracy is None else accuracy
    row = {"family": family, "dim": dim, "seed": seed, "distance": math.nan, "failed": False}
    for kind in ("", "final_"):
        for rows in ("train", "test"):
            row |= {f"{kind}{rows}_loss": loss, f"{kind}{rows}_accuracy": score}
    return row | others


def columns(rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def steps(family: str, thresholds: list[int], dims: tuple[int, ...] = DIMS, **others: Any) -> list[dict[str, Any]]:
    """Cells of seeds that have loss LOW from their threshold on, and HIGH below."""
    return [cell(family, d, n, LOW if d >= t else HIGH, **others) for n, t in enumerate(thresholds) for d in dims]


STARTS = {"random": 2.3, "burn-in@16": 1.4, "burn-in@64": 0.5, "lottery": 2.3}


def smooth(seeds: int = 10, dims: tuple[int, ...] = DIMS, families: tuple[str, ...] = ("random", "burn-in@16"), whole: bool = True) -> dict[str, np.ndarray]:  # fmt: skip
    """Cells as a real sweep gives them: families and seeds that differ, losses that fall smoothly."""
    rng, rows = np.random.default_rng(0), []
    for n in range(seeds):
        within = np.cumsum(rng.standard_normal(D) ** 2) / 40
        for place, family in enumerate(families):
            for d in dims:
                loss = STARTS[family] * math.exp(-within[d - 1] * (8 if family == "lottery" else 1)) + 1e-3
                rows.append(cell(family, d, n, loss, distance=10.0 - place))
        if whole:
            rows.append(cell("full", D, n, 1e-3))
    return columns(rows)


def without(cells: dict[str, np.ndarray], *words: str) -> dict[str, np.ndarray]:
    """The cells with NaN in all columns of such names."""
    return {name: column * np.nan if any(word in name for word in words) else column for name, column in cells.items()}


def at(found: Threshold, level: float, family: int = 0, criterion: str = "") -> tuple[float, int]:
    """d* and its bound."""
    phase = found.phase(criterion)
    row = phase.row(level)
    assert phase.levels[row] == level
    return float(phase.thresholds[family, row]), int(phase.threshold_bounds[family, row])


# -- P and d* ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("delta", [0.1, 0.25, 0.5])
def test_p_and_d_star_are_those_of_a_count(nested, delta):
    rng = np.random.default_rng(1)
    losses = np.sort(rng.uniform(0.01, 2, (10, len(DIMS))))[:, ::-1]
    if not nested:  # independent cells are not monotone
        losses = np.sort(losses + rng.normal(0, 0.3, losses.shape) ** 2, axis=0)
    rows = [cell("random", d, n, losses[n, k]) for n in range(10) for k, d in enumerate(DIMS)]
    rng.shuffle(rows)
    found = threshold(columns(rows), ambient=D, nested=nested, delta=delta, losses=[0.7, 0.05, 1.9])
    phase = found.phase("train loss")
    assert (np.diff(phase.levels) < 0).all()
    for row, level in enumerate(phase.levels):
        share = (losses <= level).mean(0)
        np.testing.assert_allclose(phase.probabilities[0, row], share, atol=1e-12)
        good = [k for k in range(len(DIMS)) if (share[k:] >= 1 - delta - 1e-9).all()]
        expected = (DIMS[good[0]], -(good[0] == 0)) if good else (DIMS[-1], 1)
        assert at(found, level) == expected
    low, high = phase.bands(0.95)
    k = 5
    truth = stats.binomtest(int(phase.hits[0, 20, k]), 10).proportion_ci(0.95, "wilson")
    np.testing.assert_allclose((low[0, 20, k], high[0, 20, k]), (truth.low, truth.high), atol=1e-7)


def test_d50_is_that_of_the_ball_and_the_width_stands_beside_its_own():
    rng, target, seeds = np.random.default_rng(2), 90, 40
    dims = tuple(range(50, 140, 5))
    squares = rng.standard_normal((seeds, D)) ** 2
    held = squares.cumsum(1) / squares.sum(1, keepdims=True)
    # a level of the loss 1 - (held part) is a ball around the end: I_x((D - d)/2, d/2) with x the level
    rows = [cell("random", d, n, 1 - held[n, d - 1]) for n in range(seeds) for d in dims]
    level = 1 - target / D
    found = threshold(columns(rows), ambient=D, losses=[level])
    phase = found.phase()
    row = phase.row(level)
    for q, p in enumerate((0.1, 0.5, 0.9)):
        truth = optimize.brentq(lambda d, p=p: special.betainc((D - d) / 2, d / 2, level) - p, 1, D - 1)
        # fixed seed; the interval is of 95%
        assert phase.lows[q, 0, row] <= truth <= phase.highs[q, 0, row]
        assert abs(phase.quantiles[q, 0, row] - truth) < 6  # of a standard deviation of 13 over sqrt(40) seeds, three
    assert found.ball_width(90) == pytest.approx(2 * stats.norm.ppf(0.9) * math.sqrt(2 * 90 * (D - 90) / D))
    (line,) = [row for row in found.table() if row[1] == f"train loss {level:.4g}"]
    # the standard deviation of 40 is known to a ninth: three of these
    assert float(line[7]) == pytest.approx(float(line[8]), rel=0.34)


def test_a_hit_is_one_in_every_larger_nested_subspace():
    rows = steps("random", [16] * 10) + steps("lottery", [8] * 10)
    for row in rows:
        if (
            row["dim"] in (32, 64) and row["seed"] < 3
        ):  # the solver missed what a smaller subspace of the seed had reached
            row["train_loss"] = HIGH
    nested = threshold(columns(rows), ambient=D, losses=[0.5])
    assert at(nested, 0.5, 0) == (16, 0)
    assert at(nested, 0.5, 1) == (8, 0)
    assert nested.phase().violations.sum() == 12
    assert nested.phase().violations[0].tolist() == [3 * (d in (32, 64)) for d in DIMS]
    assert any("of 240 cells, 12 missed a loss" in note for note in nested.warnings)
    # sparse bases are drawn anew for each d; principal directions are nested all the same
    fresh = threshold(columns(rows), ambient=D, losses=[0.5], nested=False)
    assert at(fresh, 0.5, 0) == (96, 0)
    assert at(fresh, 0.5, 1) == (8, 0)
    assert fresh.phase().violations[0].sum() == 0
    assert fresh.phase().probabilities[0, fresh.phase().row(0.5), DIMS.index(32)] == pytest.approx(0.7)


def test_cells_that_were_not_tried_are_implied_or_left_out():
    thresholds = [16, 16, 16, 16, 24, 24, 24, 24, 24, 32]
    every = steps("random", thresholds)
    full = threshold(columns(every), ambient=D, losses=[0.5])
    assert at(full, 0.5) == (24, 0)
    # what a bisection leaves: the two cells around each threshold
    around = [(DIMS[DIMS.index(t) - 1], t) for t in thresholds]
    few = [row for row in every if row["dim"] in around[row["seed"]]] + [cell("random", d, 0, LOW) for d in (48, 256)]
    sparse = threshold(columns(few), ambient=D, losses=[0.5])
    assert at(sparse, 0.5) == (24, 0)
    phase, whole = sparse.phase(), full.phase()
    known = np.isin(whole.levels, 0.5)
    kept = np.isin(DIMS, sparse.dims)
    np.testing.assert_array_equal(phase.probabilities[0, phase.row(0.5)], whole.probabilities[0, known][0, kept])
    # the same brackets, so the same fit
    np.testing.assert_allclose(phase.quantiles[1, 0, phase.row(0.5)], whole.quantiles[1, 0, known][0], rtol=1e-2)
    # seeds 0 to 3 untried at 8 and 16: either may be d*'s, and a count says only "at most"
    holes = [row for row in every if not (row["dim"] < 24 and row["seed"] < 9)]
    bounded = threshold(columns(holes), ambient=D, losses=[0.5])
    assert at(bounded, 0.5) == (24, -1)
    assert bounded.phase().trials[0, bounded.phase().row(0.5)].tolist() == [0] * 4 + [10] * 8
    # and without what is larger, nothing is known but that 8 is too small for a seed in ten
    cut = [row for row in every if row["dim"] <= 8 or row["seed"] < 2]
    assert at(threshold(columns(cut), ambient=D, losses=[0.5]), 0.5) == (8, 1)


def test_levels_that_none_or_all_reach_are_bounds():
    found = threshold(columns(steps("random", [16] * 10)), ambient=D, losses=[2.0, 0.5, 0.01])
    assert at(found, 2.0) == (2, -1)
    assert at(found, 0.01) == (256, 1)
    rows = {row[1]: row for row in found.table()}
    assert rows["train loss 2"][2] == "≤ 2"
    assert rows["train loss 2"][-1] == "≥ 3,285"
    assert rows["train loss 0.01"][-1] == "< 25.7"
    assert rows["train loss 0.01"][2] == "> 256"
    assert rows["train loss 0.01"][5].startswith("> 256 [256, ∞]")
    phase = found.phase()
    row = phase.row(0.5)
    assert (phase.lows[1, 0, row], phase.highs[1, 0, row]) == pytest.approx((8, 16), rel=0.01)  # perfect separation
    assert rows["train loss 0.5"][7] == "< 8"  # a width that the dimensions do not resolve


def test_a_nan_is_a_miss_unless_the_level_was_reached_before():
    rows = steps("random", [16] * 10)
    before = [row for row in rows if row["dim"] == 64 and row["seed"] < 4]
    for row in before:
        row["failed"] = True
        row["final_test_accuracy"] = math.nan
        if row["seed"] < 2:
            row |= {"train_loss": math.nan, "train_accuracy": math.nan}
    found = threshold(columns(rows), ambient=D, losses=[0.5], nested=False)
    k = DIMS.index(64)
    phase = found.phase()
    assert (phase.hits[0, phase.row(0.5), k], phase.trials[0, phase.row(0.5), k]) == (8, 10)
    assert at(found, 0.5) == (96, 0)
    assert found.failed[0].tolist() == [4 * (d == 64) for d in DIMS]
    assert any(note.startswith("4 of 120 cells met a loss") for note in found.warnings)
    np.testing.assert_allclose(found.scores["test"][:, 0, k], 1 - LOW / 2)  # of those that ended with a number


def test_few_seeds_certify_little():
    def notes(seeds: int, **options: Any) -> list[str]:
        found = threshold(columns(steps("random", [16] * seeds)), ambient=D, **options)
        return [note for note in found.warnings if "certify" in note]

    # the exact interval of all hits, by scipy
    assert stats.binomtest(35, 35).proportion_ci(0.95, "exact").low < 0.9
    assert stats.binomtest(36, 36).proportion_ci(0.95, "exact").low > 0.9
    (note,) = notes(10)
    assert "10 hits of 10 seeds certify P of at least 0.69 only" in note
    assert "take 36 seeds" in note
    assert notes(35)
    assert not notes(36)
    assert not notes(10, delta=0.5)


# -- levels -----------------------------------------------------------------------------------------------------------


def test_levels_cover_the_data_and_hold_those_asked_for():
    found = threshold(smooth(), ambient=D, losses=[0.123], accuracies=[0.912])
    losses, accuracies = found.phase("train loss").levels, found.phase("test accuracy").levels
    best = found.cells["train_loss"][found.cells["family"] != "full"]
    assert len(losses) > 40
    assert losses[0] == pytest.approx(best.max(), rel=0.01)
    assert losses[-1] == pytest.approx(best.min(), rel=0.01)
    assert {0.123, 0.1, 0.5} <= set(losses)
    assert set(accuracies) == {0.912, *ACCURACIES}
    assert (found.level, found.criterion) == (0.123, "train loss")
    assert found.marks["test accuracy"].tolist() == [0.912]
    assert threshold(smooth(), ambient=D, accuracies=[0.9]).criterion == "test accuracy"


def test_a_level_that_is_met_exactly_is_hit():
    found = threshold(columns(steps("random", [16] * 10)), ambient=D, losses=[LOW], accuracies=[1 - LOW / 2])
    for criterion, level in (("train loss", LOW), ("train accuracy", 1 - LOW / 2), ("test accuracy", 1 - LOW / 2)):
        assert at(found, level, criterion=criterion) == (16, 0)


@pytest.mark.parametrize(("criterion", "level"), [("train loss", 0.0777), ("train accuracy", 0.8765), ("test accuracy", 0.999)])  # fmt: skip
def test_any_level_is_read_off_the_stored_cells(criterion, level):
    found = Result.from_json(threshold(smooth(), ambient=D).to_json())
    assert isinstance(found, Threshold)
    phase = found.at(criterion, [level])
    assert phase.levels.tolist() == [level]
    name = criterion.replace(" ", "_")
    for place, family in enumerate(found.families):
        for k, d in enumerate(found.dims):
            column = found.cells[name][(found.cells["family"] == family) & (found.cells["dim"] == d)]
            hits = column <= level if name == "train_loss" else column >= level
            assert phase.hits[place, 0, k] == hits.sum()
    asked = threshold(smooth(), ambient=D, losses=[0.0777], accuracies=[0.8765, 0.999])
    same = asked.phase(criterion)
    np.testing.assert_allclose(same.quantiles[:, :, same.row(level)], phase.quantiles[:, :, 0], rtol=1e-9)


# -- the common axis --------------------------------------------------------------------------------------------------


def test_scores_and_intrinsic_dimensions_are_those_of_the_medians():
    found = threshold(smooth(seeds=7, families=tuple(STARTS)), ambient=D)
    cells = found.cells
    whole = np.median(cells["final_test_accuracy"][cells["family"] == "full"])
    for place, family in enumerate(found.families):
        medians = []
        for k, d in enumerate(found.dims):
            column = cells["final_test_accuracy"][(cells["family"] == family) & (cells["dim"] == d)]
            medians.append(np.median(column))
            np.testing.assert_allclose(found.scores["test"][:, place, k], np.quantile(column, (0.25, 0.5, 0.75)))
        for s, share in enumerate((0.9, 1.0)):
            good = [k for k, score in enumerate(medians) if score >= share * whole]
            expected = (DIMS[good[0]], -(good[0] == 0)) if good else (DIMS[-1], 1)
            assert (found.intrinsic[s, place], found.intrinsic_bounds[s, place]) == expected
    assert found.intrinsic_bounds[1, 0] == 1  # random subspaces of this grid do not get there
    lines = {row[:2]: row for row in found.table()}
    assert lines["random", f"d_int100: median of {whole:.4g}"][2] == "> 256"
    alone = threshold(smooth(whole=False), ambient=D)
    assert np.isnan(alone.intrinsic).all()
    assert np.isnan(alone.whole["test"]).all()


def test_families_may_have_other_dimensions_and_distances_are_means():
    rows = steps("random", [64] * 5, distance=9.0) + steps("burn-in@16", [8, 4, 4], (4, 8, 12), distance=5.0)
    for row in rows:
        row["distance"] += row["seed"]
    found = threshold(columns(rows), ambient=D, losses=[0.5])
    assert found.dims.tolist() == sorted({*DIMS, 12})
    assert found.seeds.tolist() == [5, 3]
    assert at(found, 0.5, 0) == (64, 0)
    assert at(found, 0.5, 1) == (8, 0)
    np.testing.assert_allclose(found.distances, [11.0, 6.0])
    assert found.burn_ins == {0: 0, 16: 1}
    # a level that the smaller grid does not reach is a bound of its own
    assert at(threshold(columns(rows), ambient=D, losses=[0.05]), 0.05, 1) == (12, 1)


# -- the answer -------------------------------------------------------------------------------------------------------


def answers() -> dict[str, Threshold]:
    many = smooth(families=tuple(STARTS))
    kept = np.random.default_rng(0).random(len(many["dim"])) < 0.5
    kept &= (many["family"] != "lottery") | np.isin(many["dim"], (4, 32))
    kept &= many["family"] != "burn-in@64"
    broken = without(smooth(dims=(4, 8)), "loss", "accuracy")
    broken["failed"] = broken["family"] != "full"
    subspaces = {name: column[broken["failed"]] for name, column in broken.items()}
    return {
        "many": threshold(many, ambient=D, provenance={"task": "digits-mlp"}, losses=[0.1, 0.3]),
        "accuracy": threshold(smooth(families=("random",)), ambient=D, accuracies=[0.9, 1.0]),
        "one cell": threshold(columns([cell("random", 8, 0, 0.3)]), ambient=D),
        "one family": threshold(columns(steps("lottery", [8, 16, 8])), ambient=D),
        "one dimension": threshold(smooth(dims=(16,)), ambient=D),
        "all failed": threshold(subspaces, ambient=D),
        "failed with the whole space": threshold(broken, ambient=D),
        "no accuracy": threshold(without(smooth(families=("random",)), "accuracy"), ambient=D),
        "not nested": threshold(smooth(), ambient=D, nested=False),
        "holes": threshold({name: column[kept] for name, column in many.items()}, ambient=D),
        "unreached": threshold(smooth(families=("random",)), ambient=D, losses=[1e-9]),
        "no distance": threshold(without(smooth(dims=(4, 32)), "distance"), ambient=D),
        "wide": threshold(smooth(dims=tuple(2**k for k in range(13)), families=("random",)), ambient=D),
    }


@pytest.fixture(scope="module")
def looks() -> dict[str, Threshold]:
    return answers()


NAMES = (
    "many", "accuracy", "one cell", "one family", "one dimension", "all failed", "failed with the whole space", "no accuracy", "not nested", "holes", "unreached", "no distance", "wide",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_read_back_equal_and_drawn_from_the_file_alone(looks, name):
    found = looks[name]
    back = Result.from_json(found.to_json())
    assert isinstance(back, Threshold)
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
    texts = [back.summary(), back.caption(), *(text for row in back.table() for text in row)]
    assert not any("nan" in text for text in texts)


def test_panels_are_those_that_have_numbers(looks):
    assert looks["many"].panels() == (
        "curves", "probability", "axis", "map random", "map burn-in@16", "map burn-in@64", "map lottery", "burn-in", "distance",
    )  # fmt: skip
    assert looks["one family"].panels() == ("curves", "probability", "axis", "map lottery")
    assert looks["all failed"].panels() == ("axis",)
    assert "distance" not in looks["no distance"].panels()
    with pytest.raises(UsageError, match="unknown panel"):
        looks["one family"].plot(Figure().subplots(), "burn-in")


def drawn(found: Threshold, panel: str) -> Any:
    ax = Figure().subplots()
    found.plot(ax, panel)
    return ax


def test_the_pictures_show_the_numbers(looks):
    many = looks["many"]
    phase = many.phase()
    lines = {str(line.get_label()): np.asarray(line.get_ydata()) for line in drawn(many, "curves").get_lines()}
    for place, family in enumerate(many.families):
        number = np.where(phase.threshold_bounds[place] == 0, phase.thresholds[place], np.nan)
        np.testing.assert_equal(lines[family], number)
    mesh = drawn(many, "map burn-in@16").collections[0].get_array()
    np.testing.assert_array_equal(mesh.filled(np.nan), phase.probabilities[1])
    axis = {str(line.get_label()): np.asarray(line.get_ydata()) for line in drawn(many, "axis").get_lines()}
    np.testing.assert_array_equal(axis["lottery"], many.scores["test"][1, 3])
    assert axis["90% of it"][0] == 0.9 * axis["whole space"][0] == 0.9 * many.whole["test"][1]
    trace = many.figure().data[1]
    assert trace.name == "burn-in@16"
    row = phase.row(0.1)
    assert f"d* = {phase.thresholds[1, row]:.0f}<br>" in trace.text[row]
    # what was not tried shows the hatched ground, what failed is hatched over
    holes = drawn(looks["holes"], "map lottery")
    assert np.ma.getmaskarray(holes.collections[0].get_array()).any()
    assert [text.get_text() for text in holes.get_legend().get_texts()] == ["d*", "d50", "not tried"]


def test_the_summary_says_what_was_found(looks):
    line = looks["many"].summary()
    assert line.startswith("digits-mlp: 90% of seeds reach train loss 0.1 from d ")
    assert line.endswith("D = 6,570, 10 seeds.")
    for place, family in enumerate(looks["many"].families):
        d, bound = at(looks["many"], 0.1, place)

        assert f"d {'≤' if bound else '='} {d:.0f} ({family}; d50 " in line
    assert "from d > 256 (random; d50 > 256 [256, ∞]); D" in looks["unreached"].summary()
    assert looks["all failed"].summary().startswith("no cell reached a number")
    assert "test accuracy 0.9" in looks["accuracy"].summary()


def test_stored_phases_are_named(looks):
    assert isinstance(looks["many"].phase("test accuracy"), Phase)
    with pytest.raises(UsageError, match="Did you mean 'train loss'"):
        looks["many"].phase("train los")
    with pytest.raises(UsageError, match="unknown criterion"):
        looks["no accuracy"].at("test accuracy", [0.9])


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delta": 0.0}, "delta lies between"),
        ({"delta": math.nan}, "delta lies between"),
        ({"confidence": 95}, "confidence lies between"),
        ({"losses": [0.0]}, "level of the loss is positive"),
        ({"losses": [math.inf]}, "level of the loss is positive"),
        ({"accuracies": [90]}, "level of the accuracy lies"),
        ({"criterion": "loss"}, "unknown criterion"),
        ({"ambient": 100}, "subspaces have 1 to 100 dimensions; got 2 to 256"),
    ],
)
def test_questions_out_of_range_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        threshold(smooth(seeds=2), **{"ambient": D, **options})


def test_cells_that_are_no_grid_are_refused():
    rows = steps("random", [16] * 2)
    with pytest.raises(UsageError, match="no cell of a subspace"):
        threshold(columns([cell("full", D, 0, LOW)]), ambient=D)
    with pytest.raises(UsageError, match="random, d = 2, seed 0 is there twice"):
        threshold(columns([*rows, rows[0]]), ambient=D)
    with pytest.raises(UsageError, match="lack the column 'failed'"):
        threshold({name: column for name, column in columns(rows).items() if name != "failed"}, ambient=D)
    with pytest.raises(UsageError, match="one entry a cell"):
        threshold(columns(rows) | {"seed": np.arange(3)}, ambient=D)
    with pytest.raises(UsageError, match=r"no cell has a train loss\. Allowed: train accuracy, test accuracy"):
        threshold(without(columns(rows), "train_loss"), ambient=D)


# -- what an honest answer does not say ---------------------------------------------------------------------------------


def plain(family: str, dims: Sequence[int], losses: np.ndarray, **more: np.ndarray) -> dict[str, np.ndarray]:
    """Cells (n, K) of a family with these best losses; NaN where there is no cell."""
    seeds, places = np.nonzero(np.isfinite(losses))
    found = losses[seeds, places]
    columns = {"family": np.array([family] * len(seeds)), "dim": np.array(dims)[places], "seed": seeds}
    for name in (
        "train_accuracy",
        "test_accuracy",
        "test_loss",
        "final_train_accuracy",
        "final_test_accuracy",
        "distance",
        "moved",
    ):
        columns[name] = np.full(len(seeds), np.nan)
    for name in ("train_loss", "final_train_loss", "final_test_loss"):
        columns[name] = found
    columns |= {"evaluations": np.zeros(len(seeds), int), "failed": np.zeros(len(seeds), bool)}
    return columns | {name: values[seeds, places] for name, values in more.items()}


def test_a_share_of_the_seeds_that_are_known_is_no_probability() -> None:
    # bisection: of two seeds d = 4 is known to miss, of one that d = 8 hits; of the other nothing is known there
    losses = np.array([[2.0, 1.0], [2.0, np.nan]])
    found = threshold(plain("random", (4, 8), losses), ambient=100, losses=[1.0])
    row = found.phase("train loss").row(1.0)
    assert found.phase("train loss").probabilities[0, row, 0] == 0
    assert np.isnan(found.phase("train loss").probabilities[0, row, 1])


def test_the_whole_space_that_misses_gives_a_bound() -> None:
    found = threshold(plain("random", (2, 40), np.full((4, 2), 2.0)), ambient=40, losses=[0.1]).phase("train loss")
    row = found.row(0.1)
    assert (found.quantile_bounds[1:, 0, row] == 1).all()
    assert np.isinf(found.highs[1:, 0, row]).all()


def test_what_failed_is_in_no_score_and_all_failed_is_said() -> None:
    cells = plain("random", (2, 8), np.full((2, 2), 2.0))
    cells["failed"] = np.ones(4, bool)
    found = threshold(cells, ambient=100)
    assert np.isnan(found.scores["train"]).all()
    assert "all 4 trainings met a loss or a point that is not finite" in found.summary()


def test_a_level_that_the_start_has_reached_is_named() -> None:
    losses = np.full((3, 2), 0.5)
    inside = threshold(
        plain("random", (2, 8), losses, start_train_loss=np.full((3, 2), 0.9)), ambient=100, losses=[1.0]
    )
    assert any("have a train loss of 1 or less before any training" in note for note in inside.warnings)
    outside = threshold(
        plain("random", (2, 8), losses, start_train_loss=np.full((3, 2), 2.0)), ambient=100, losses=[1.0]
    )
    assert not any("before any training" in note for note in outside.warnings)


# -- tickets ----------------------------------------------------------------------------------------------------------


def rungs(*names: str) -> dict[str, list[Any]]:
    """Five levels of 1,600 to 100 parameters: losses 0.01, 0.02, 0.04, 0.5, 0.08 and test accuracies 0.97, 0.96, 0.95, 0.5, 0.9."""
    found: dict[str, list[Any]] = {name: [] for name in ("name", "level", "dim", "train_loss", "train_accuracy", "test_loss", "test_accuracy")}  # fmt: skip
    for name in names:
        for level, (dim, loss, accuracy) in enumerate(zip((1600, 800, 400, 200, 100), (0.01, 0.02, 0.04, 0.5, 0.08), (0.97, 0.96, 0.95, 0.5, 0.9), strict=True)):  # fmt: skip
            for key, value in (("name", name), ("level", level), ("dim", dim), ("train_loss", loss), ("train_accuracy", accuracy), ("test_loss", 2 * loss), ("test_accuracy", accuracy)):  # fmt: skip
                found[key].append(value)
    return found


def test_a_ticket_stands_at_the_fewest_parameters_that_reach_a_goal():
    found = threshold(smooth(), ambient=D, losses=(0.08, 0.04, 0.015, 0.001), tickets=rungs("imp"))
    fewest, bounds = found.ticket("imp", "train_loss", [0.5, 0.08, 0.04, 0.03, 0.015, 0.001])
    # level 3 misses 0.08, which the smaller level 4 reaches: that is enough, for its subspace lies in that of level 3
    assert fewest[:5].tolist() == [100, 100, 400, 800, 1600]
    assert math.isnan(fewest[5])
    assert bounds.tolist() == [-1, -1, 0, 0, 0, 0]  # even fewer might do where the last level does
    assert found.ticket("imp", "test_accuracy", [0.95])[0].tolist() == [400]
    rows = {row[1]: row for row in found.table()[1:] if row[0] == "imp"}
    assert rows["train loss 0.08"][2:4] == ("≤ 100", "one run")
    assert rows["train loss 0.04"][2] == "400"
    assert rows["train loss 0.04"][-1] == f"{D / 400:.3g}"  # 16.4
    assert rows["train loss 0.08"][-1] == f"≥ {D / 100:.3g}"
    assert rows["train loss 0.001"][2] == "none reached"
    assert {len(row) for row in found.table()} == {10}
    # the whole space's test accuracy is 0.9995 (its loss 1e-3): 90% of it is 0.89955, reached by the last level too
    assert next(row for name, row in rows.items() if name.startswith("d_int90"))[2] == "≤ 100"
    assert next(row for name, row in rows.items() if name.startswith("d_int100"))[2] == "none reached"
    assert "imp with ≤ 100 parameters" in found.summary()


def test_tickets_change_no_other_number_and_are_drawn_from_the_answer():
    cells = smooth()
    plain, beside = threshold(cells, ambient=D), threshold(cells, ambient=D, tickets=rungs("imp a", "imp b"))
    assert [row for row in beside.table() if not row[0].startswith("imp")] == plain.table()
    again = Result.from_json(beside.to_json())
    assert isinstance(again, Threshold)
    assert again.to_json() == beside.to_json()
    assert again.ladders == ["imp a", "imp b"]
    for panel in again.panels():
        again.plot(Figure().subplots(), panel)
    ax = Figure().subplots()
    again.plot(ax, "axis")
    (line,) = [line for line in ax.get_lines() if line.get_label() == "imp b"]
    assert line.get_xdata().tolist() == [1600, 800, 400, 200, 100]
    assert ax.get_xlim()[1] > 1600  # in view
    assert len(again.figure().data) == len(plain.figure().data) + 2


def test_an_answer_from_before_tickets_is_read():
    record = json.loads(threshold(smooth(), ambient=D).to_json())
    del record["tickets"], record["check"]
    found = Result.from_json(json.dumps(record))
    assert isinstance(found, Threshold)
    assert found.ladders == []
    assert found.table() == threshold(smooth(), ambient=D).table()


def test_tickets_of_another_network_are_refused():
    with pytest.raises(UsageError, match="1 to 6,570 move; got tickets with 100 to 6,571"):
        threshold(smooth(), ambient=D, tickets={**rungs("imp"), "dim": [D + 1, 800, 400, 200, 100]})
    with pytest.raises(UsageError, match="lack the column 'dim'"):
        threshold(smooth(), ambient=D, tickets={name: column for name, column in rungs("imp").items() if name != "dim"})
    with pytest.raises(UsageError, match="one entry a level"):
        threshold(smooth(), ambient=D, tickets={**rungs("imp"), "dim": [100]})
