"""The table of quadratic wells against the published one and the exact law of the ball; the stored answer is the answer, and draws itself."""

import json
import math
import os
import warnings
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from problems import objective
from scipy.special import betainc

from landscape.analysis import wells
from landscape.analysis.spectra import spectrum as measured
from landscape.analysis.wells import Estimates, Well, read_eigenvalues, well
from landscape.cli.app import main
from landscape.errors import UnsafeInputError, UsageError
from landscape.quadratics import Quadratic, spectrum
from landscape.results import Result

NAMES = ("flat", "power:1", "power:2", "outliers:10", "exponential:40")
SHARES = (0.3, 0.03, 0.003)
# ../shared/papers/subspaces-and-width.md, section 1.3, D = 400, R = 1: paper bound, sharp form, simulated mean with its error
# (16 draws, or 120; where the table gives no error it is sqrt(2 d (D - d) / D) of the ball over 4)
TABLE = {
    "flat": [(307.7, 280.0, 279.1, 1.1), (388.3, 388.0, 386.5, 1.0), (398.8, 398.8, 398.6, 0.4)],
    "power:1": [(220.7, 126.6, 125.1, 1.3), (365.0, 361.8, 358.9, 2.0), (396.1, 396.1, 395.7, 0.8)],
    "power:2": [(42.2, 3.9, 3.5, 0.9), (121.1, 44.4, 44.5, 1.0), (270.9, 232.9, 233.0, 1.2)],
    "outliers:10": [(19.0, 6.4, 6.2, 0.2), (85.7, 12.6, 12.8, 0.4), (285.5, 240.7, 241.4, 1.3)],
    "exponential:40": [(141.4, 82.6, 81.9, 0.9), (231.9, 205.7, 206.8, 0.8), (318.8, 309.8, 311.1, 2.0)],
}


def even(values: np.ndarray, radius: float = 1.0, **options: Any) -> Quadratic:
    return Quadratic.of_spectrum(values, np.full(len(values), radius / math.sqrt(len(values))), **options)


@pytest.fixture(scope="module")
def found() -> Well:
    return well({name: even(spectrum(name, 400)) for name in NAMES}, SHARES, isotropic=True, draws=30, polar_draws=16)


# -- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_published_table(found, name):
    one = found.of(name)
    paper, sharp, simulated, error = np.array(TABLE[name]).T
    # rounded to a tenth there
    np.testing.assert_allclose(one.paper, paper, atol=0.0501)
    np.testing.assert_allclose(one.sharp, sharp, atol=0.0501)
    # 15 cells at 4 standard errors of the difference: a chance of a thousandth
    assert (np.abs(one.simulated - simulated) <= 4 * np.hypot(one.simulated_error, error)).all()
    # the mean threshold is d* + 1/2 of a start outside, and d* = 0 of one inside: between them
    assert (np.abs(one.polar + 0.25 - one.simulated) <= 4 * np.hypot(one.simulated_error, one.polar_error) + 0.25).all()


def ball(dim: int, share: float, dims: Any) -> np.ndarray:
    """P that a random d-dimensional subspace meets the ball: r^2 / R^2 is the share of the loss, for the loss is the squared distance."""
    dims = np.asarray(dims, dtype=float)
    inner = np.clip(dims, 1e-9, dim - 1e-9)
    return np.where(dims >= dim, 1.0, np.where(dims <= 0, 0.0, betainc((dim - inner) / 2, inner / 2, share)))


def test_the_map_is_that_of_the_ball():
    n = 3000
    one = well({"flat": even(np.ones(20), radius=3.0)}, [0.5, 0.1], draws=n).of("flat")
    exact = np.array([ball(20, share, one.dims) for share in one.fine_shares])
    # Dvoretzky, Kiefer, Wolfowitz: the greatest distance over d exceeds this at a level with chance 1e-6 / G
    reach = math.sqrt(math.log(2 * len(one.fine) / 1e-6) / (2 * n))
    assert np.abs(one.success - exact).max() < reach
    for row, share in enumerate(one.shares):
        chances = ball(20, share, np.arange(21))
        # E T = sum of P(T > d)
        assert abs(one.simulated[row] - (1 - chances).sum()) < 4 * one.simulated_error[row]
        for quantile, level in zip(one.quantiles[:, row], (0.1, 0.5, 0.9), strict=True):
            # up to the sampling error of the level itself, 4 standard errors
            slack = 4 * math.sqrt(level * (1 - level) / n)
            assert chances[int(quantile)] >= level - slack and chances[int(quantile) - 1] <= level + slack
    # gamma with 1 / (1 + gamma) = share; and N_eff at z = 2 level / R^2 = share
    for shares, sharp, paper in ((one.shares, one.sharp, one.paper), (one.fine_shares, one.fine_sharp, one.fine_paper)):
        np.testing.assert_allclose(sharp, 20 * (1 - shares), rtol=1e-10)
        np.testing.assert_allclose(paper, 20 / (1 + shares), rtol=1e-10)
    # L_min / L_0 is Beta((D - d) / 2, d / 2) with mean 1 - d / D; its standard deviation is at most 1/2
    mean, low, high = one.course / one.initial
    np.testing.assert_allclose(mean, 1 - one.dims / 20, atol=4 * 0.5 / math.sqrt(n))
    np.testing.assert_allclose(one.predicted / one.initial, 1 - one.dims / 20, atol=1e-9)
    assert (low <= mean).all() and (mean <= high).all()


def test_drawn_starts_are_those_of_dense_algebra():
    """Explicit starts and subspaces, and the least loss on each by least squares: nothing is nested, so the mean threshold is the sum over d of the share that misses."""
    dim, n, level = 7, 1500, 0.6
    values = spectrum("power:2", dim)
    random = np.random.default_rng(0)
    misses = np.zeros((dim, n))
    for draw in range(n):
        start = random.standard_normal(dim)
        start *= 2 / np.linalg.norm(start)
        for d in range(dim):  # the whole space never misses
            basis = np.sqrt(values)[:, None] * random.standard_normal((dim, d))
            target = np.sqrt(values) * start
            rest = target - basis @ np.linalg.lstsq(basis, target, rcond=None)[0] if d else target
            misses[d, draw] = rest @ rest / 2 > level * 4 * values.mean() / 2
    truth, half = misses.sum(0), misses[0] / 2
    one = well({"a": even(values, radius=2.0)}, [level], isotropic=True, draws=n, polar_draws=n).of("a")
    assert one.initial == pytest.approx(4 * values.mean() / 2, rel=1e-14)
    error = truth.std() / math.sqrt(n)
    assert abs(one.simulated[0] - truth.mean()) <= 4 * math.hypot(error, one.simulated_error[0])
    # d* is 1/2 less, for each start outside
    assert abs(one.polar[0] - (truth - half).mean()) <= 4 * math.hypot(error, one.polar_error[0])
    # a start that stands still, at the same mean loss, has other means
    still = well({"a": even(values, radius=2.0)}, [level], draws=n, polar_draws=n).of("a")
    assert abs(still.simulated[0] - truth.mean()) > 4 * math.hypot(error, still.simulated_error[0])
    assert abs(still.polar[0] - (truth - half).mean()) > 4 * math.hypot(error, still.polar_error[0])


@pytest.mark.parametrize("dim", [30, 400, 3000])
def test_certified_dimensions_hold_for_the_ball(dim):
    shares = [0.9, 0.5, 0.2, 0.05, 0.004]
    one = well({"flat": even(np.ones(dim))}, shares, draws=0, polar_draws=12, probability=0.9).of("flat")
    assert {name.rpartition(" ")[2] for name in one.certified} == {"miss", "hit"}
    some = {"miss": 0, "hit": 0}
    for name, row in one.certified.items():
        for share, d in zip(one.shares, row, strict=True):
            if np.isfinite(d):
                chance = float(ball(dim, share, d))
                assert (1 - chance if name.endswith("miss") else chance) >= 0.9
                some["miss" if name.endswith("miss") else "hit"] += 1
    # and they say something, the more so in many dimensions
    assert dim == 30 or min(some.values()) >= 3
    for side, pick in (("miss", np.nanmax), ("hit", np.nanmin)):
        rows = np.array([row for name, row in one.certified.items() if name.endswith(side)])
        for level in np.flatnonzero(np.isfinite(rows).any(0)):
            assert one.best(side)[level] == pick(rows[:, level])
        assert np.isnan(one.best(side)[~np.isfinite(rows).any(0)]).all()


def test_an_uncertain_estimate_certifies_less():
    sure, unsure = (wells._certified(400, 200.0, error, 0.9) for error in (0.0, 8.0))
    for name, d in sure.items():
        if np.isfinite(d) and np.isfinite(unsure[name]):
            assert (unsure[name] < d) if name.endswith("miss") else (unsure[name] > d)
    # moved past the ends there is no cone to speak of, and no error
    assert all(
        not np.isfinite(d) for name, d in wells._certified(400, 1.0, 300.0, 0.9).items() if name.endswith("miss")
    )


def test_only_ratios_matter():
    """The scale law: level and R^2 in the same proportion, and the unit of the loss, change nothing; nor does a loss that is not 0 at the minimum."""
    values = spectrum("power:1", 60)
    start = np.linspace(1.0, 3.0, 60)
    plain = well({"a": Quadratic.of_spectrum(values, start)}, [0.4, 0.02], draws=8).of("a")
    scaled = well({"a": Quadratic.of_spectrum(7 * values, 5 * start, least=2.0)}, [0.4, 0.02], draws=8).of("a")
    for name in ("paper", "sharp", "fine_paper", "fine_sharp", "polar", "thresholds", "success", "shares", "dims"):
        np.testing.assert_allclose(getattr(scaled, name), getattr(plain, name), rtol=1e-8, err_msg=name)
    levels = 2.0 + np.array([0.4, 0.02]) * (scaled.initial - 2.0)
    absolute = well({"a": Quadratic.of_spectrum(7 * values, 5 * start, least=2.0)}, levels, absolute=True, draws=8)
    np.testing.assert_allclose(absolute.of("a").sharp, plain.sharp, rtol=1e-8)
    np.testing.assert_array_equal(absolute.of("a").levels, absolute.asked)


def test_a_further_well_shifts_no_other():
    both = well({"a": even(np.ones(12)), "b": even(spectrum("power:1", 9))}, [0.2], draws=5)
    alone = well({"b": even(spectrum("power:1", 9))}, [0.2], draws=5)
    np.testing.assert_array_equal(both.of("b").thresholds, alone.of("b").thresholds)
    assert both.of("b").polar[0] == alone.of("b").polar[0]
    other = well({"b": even(spectrum("power:1", 9))}, [0.2], draws=5, seed=1)
    assert other.of("b").polar[0] != alone.of("b").polar[0]


def test_means_errors_and_deviations_are_those_of_the_draws(found):
    one = replace(
        found.of("flat"),
        thresholds=np.array([[2, 5, 0], [4, 5, 0], [6, 5, 0], [4, 5, 0]]),
        sharp=np.array([3.0, 4.0, 0.0]),
        paper=np.array([8.0, 10.0, 0.0]),
        inside=np.array([False, False, True]),
    )
    np.testing.assert_array_equal(one.simulated, [4, 5, 0])
    # deviations -2, 0, 2, 0: sqrt(8 / 3) / 2, widened by the 97.5% quantile of Student's t of 3 degrees of freedom (tables: 3.182446) over 1.96
    error = math.sqrt(8 / 3) / 2 * 3.182446 / 1.96
    np.testing.assert_allclose(one.simulated_error, [error, 0, 0], rtol=1e-6)
    # without spread half a dimension is 3 of them
    np.testing.assert_allclose(one.deviations[:2], [-1 / error, -6], rtol=1e-6)
    assert np.isnan(one.deviations[2])  # inside, but for no certain hit: other starts lie outside
    np.testing.assert_array_equal(one.factors, [2, 2, np.nan])
    # the smallest d at which 10%, 50%, 90% of four have hit: one, two and all of them
    np.testing.assert_array_equal(one.quantiles[:, 0], [2, 4, 6])


# -- edges ------------------------------------------------------------------------------------------------------------


def test_a_start_inside_the_set():
    made = well({"flat": even(np.ones(10)), "power:2": even(spectrum("power:2", 10))}, [2.0, 1.0, 0.1], draws=6)
    for name in made.names:
        one = made.of(name)
        assert one.inside.tolist() == [True, True, False]
        for numbers in (one.paper, one.sharp, one.polar, one.simulated, one.best("hit"), one.deviations):
            assert numbers[:2].tolist() == [0, 0]
        assert (one.thresholds[:, 2] > 0).all()
    assert sum("lies inside the set at 2, 1" in note for note in made.warnings) == 2
    assert made.table()[1][:5] == ("flat", "2", "0 (inside)", "0.0", "0.0 ± 0.0")
    drawn = well({"power:2": even(spectrum("power:2", 10))}, [1.0, 0.1], isotropic=True, draws=40)
    assert drawn.of("power:2").sharp[0] == 0 < drawn.of("power:2").simulated[0]
    assert "polar and simulated are of the drawn ones" in drawn.warnings[0]
    for draws in (0, 4):
        every = well({"flat": even(np.ones(10))}, [1.5], draws=draws)
        assert every.summary().endswith("1 level: every start lies inside, d* is 0.")


def test_where_only_some_drawn_starts_lie_inside_nothing_is_certified():
    """The greatest loss at distance R is lambda_1 R^2 / 2, a share lambda_1 / mean(lambda) of the mean: 1 of the flat well, 20 / 1.597 = 12.5 of power:2 in 20 dimensions."""
    wells = {name: even(spectrum(name, 20)) for name in ("flat", "power:2")}
    made = well(wells, [13.0, 12.0, 2.0, 1.0], isotropic=True, draws=6)
    flat, steep = made.of("flat"), made.of("power:2")
    assert flat.best("hit").tolist() == [0, 0, 0, 0]
    # level 1 is the boundary, on which drawn starts lie but for rounding
    assert flat.thresholds.max() == 0 == np.abs(flat.polar).max()
    np.testing.assert_array_equal(steep.best("hit"), [0, np.nan, np.nan, np.nan])
    assert np.isnan(steep.best("miss")).all()
    assert steep.mixed.tolist() == [False, True, True, True] and not flat.mixed.any()
    np.testing.assert_array_equal(np.isnan(steep.deviations), steep.mixed)
    rows = [row for row in made.table() if row[0] == "power:2"]
    assert [row[2] for row in rows] == ["0 (inside)"] + 3 * ["0 (mean start)"]
    assert [row[9] for row in rows] == ["≥ 0"] + 3 * ["none"]
    assert "standard errors" not in made.summary() and "closed forms say nothing" in made.summary()
    assert not any("believe" in note for note in made.warnings)


def test_a_simulation_without_spread_raises_no_alarm():
    """All of 4 subspaces hit first at D = 7 where the sharp form says 6.8: a whole number cannot come nearer."""
    made = well({"flat": even(np.ones(7))}, [0.03, 0.003], isotropic=True, draws=4)
    one = made.of("flat")
    assert one.simulated.tolist() == [7, 7] and (one.sharp < 7).all()
    assert (np.abs(one.deviations) < 3).all() and not made.warnings


def test_one_dimension_is_met_by_the_line():
    made = well({"flat": even(np.ones(1))}, [0.25, 0.01], draws=4, polar_draws=400)
    assert "in 1 dimension, 2 levels" in made.summary() and made.summary().endswith("d* is 1/2.")
    assert len(made.warnings) == 1 and "the threshold is 1 and d* is 1/2" in made.warnings[0]
    assert made.panels() == ("threshold", "map flat")  # least losses are 0 but for one
    one = made.of("flat")
    assert one.simulated.tolist() == [1, 1]
    # the cone is a half-line: E min(g, 0)^2 = 1/2 and its variance 3/2 - 1/4
    assert (np.abs(one.polar - 0.5) <= 4 * math.sqrt(1.25 / 400)).all()


def test_a_singular_well_ends_at_its_rank():
    values = np.concatenate([np.ones(5), np.zeros(7)])
    one = well({"rank 5": even(values)}, [0.5, 1e-6], draws=20).of("rank 5")
    assert one.thresholds.max() <= 5
    assert (one.thresholds[:, 1] == 5).all()  # so low a level is met before with chance about 1e-3 a draw at most
    assert one.sharp[1] <= 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": []}, "levels are finite positive shares"),
        ({"levels": [0.0]}, "levels are finite positive shares"),
        ({"levels": [math.nan]}, "levels are finite"),
        ({"levels": [0.0], "absolute": True}, "above its least loss"),
        ({"levels": [-0.1], "absolute": True}, "above its least loss"),
        ({"draws": 1}, "at least 2 draws, and 0 draws leave the simulation out"),
        ({"draws": -3}, "at least 2 draws"),
        ({"polar_draws": 1}, "at least 2 draws"),
        ({"probability": 1.0}, "between 0 and 1"),
        ({"quadratics": {}}, "at least one well"),
        ({"quadratics": {"a": even(np.ones(wells.LARGEST + 1))}}, "--draws 0"),
        ({"quadratics": {"a": even(np.ones(4), radius=0.0)}}, "least loss already"),
        ({"quadratics": {"a": even(np.zeros(4))}}, "least loss already"),
    ],
)
def test_bad_questions_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        well(**{"quadratics": {"flat": even(np.ones(6))}, "levels": [0.3], "draws": 2, "polar_draws": 2, **options})


def test_names_of_wells_and_panels(found):
    with pytest.raises(UsageError, match="Did you mean 'power:2'"):
        found.of("power2")
    with pytest.raises(UsageError, match="unknown panel"):
        found.plot(Figure().subplots(), "map steep")


# -- the answer -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def looks(found) -> dict[str, Well]:
    small = {f"power:{k / 2:g}": even(spectrum(f"power:{k / 2:g}", 15 + k)) for k in range(1, 8)}
    return {
        "many": found,
        "no draws": well({"power:1": even(spectrum("power:1", 6000))}, [0.3, 0.001], draws=0, polar_draws=2),
        "seven": well(small, [0.5, 0.05], draws=4),
        "inside": well({"flat": even(np.ones(10))}, [1.5, 1.0], draws=3),
        "mixed": well({"power:2": even(spectrum("power:2", 20))}, [2.0, 1.0], isotropic=True, draws=40),
        "one dimension": well({"flat": even(np.ones(1))}, [0.25], draws=3),
        "negative": well({"own": even(np.array([2.0, 1.0, -0.5]), negative="clip")}, [0.25], draws=3),
        "absolute": well({"own": even(np.array([2.0, 1.0, 0.5]))}, [0.25], absolute=True, draws=3),
    }


@pytest.mark.parametrize(
    "name", ["many", "no draws", "seven", "inside", "mixed", "one dimension", "negative", "absolute"]
)
def test_read_back_equal_and_drawn_from_the_file_alone(looks, name):
    made = looks[name]
    back = Result.from_json(made.to_json())
    assert isinstance(back, Well)
    for one in made.names:
        for field in fields(Estimates):
            np.testing.assert_equal(getattr(back.of(one), field.name), getattr(made.of(one), field.name), field.name)
    assert back.to_json() == made.to_json()
    table = back.table()
    assert len(table) == 1 + len(made.names) * len(made.asked)
    assert all(len(row) == len(table[0]) for row in table)
    kinds = {panel.partition(" ")[0]: panel for panel in back.panels()}
    panels = tuple(kinds.values())  # one of each: the wells do not differ in kind
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sheet = Figure()
        for ax, panel in zip(np.ravel(sheet.subplots(1, len(panels))), panels, strict=True):
            back.plot(ax, panel)
        sheet.draw_without_rendering()
        assert back.figure().to_json() == made.figure().to_json()
    texts = [back.summary(), back.caption(), *back.warnings, *(text for row in table for text in row)]
    assert not any("nan" in text.split() for text in texts)


def test_what_is_left_out_is_said(looks):
    assert looks["no draws"].panels() == ("threshold", "curve power:1")
    assert "simulated" not in looks["no draws"].caption()
    assert "times the sharp d*" in looks["no draws"].summary()
    assert len(looks["negative"].warnings) == 1 and "own" in looks["negative"].warnings[0]
    assert looks["absolute"].table()[0][1] == "level"
    ax = Figure().subplots()
    looks["seven"].plot(ax)
    assert "first 5 of 7" in ax.get_title("left")
    assert "widened by Student's t" in looks["many"].caption()


def labels(made: Well, panel: str) -> tuple[Any, list[str]]:
    ax = Figure().subplots()
    made.plot(ax, panel)
    return ax, [text.get_text() for text in ax.get_legend().get_texts()]


def test_pictures_of_levels_above_the_start(looks):
    inside, mixed = looks["inside"], looks["mixed"]
    ax, legend = labels(inside, "threshold")
    assert "levels inside are not drawn" in ax.get_title("left")
    assert legend == ["flat", "paper bound", "sharp form"]
    assert "levels" not in labels(inside, "curve flat")[1]
    # what is drawn has its place, and its mark in the legend
    ax, legend = labels(mixed, "threshold")
    assert "not drawn" not in ax.get_title("left") and legend[-2:] == ["polar ± s.e.", "simulated ± s.e."]
    assert max(ax.get_xlim()) >= 2
    ax, legend = labels(mixed, "map power:2")
    assert max(ax.get_ylim()) >= 2
    assert all(np.max(line.get_ydata()) < 1 for line in ax.get_lines())  # closed forms end at the start's loss
    ax, legend = labels(mixed, "curve power:2")
    assert "levels" in legend and max(ax.get_ylim()) >= 2


def test_the_pictures_show_the_numbers(found):
    one = found.of("outliers:10")
    ax = Figure().subplots()
    found.plot(ax, "map outliers:10")
    np.testing.assert_array_equal(ax.collections[0].get_array(), one.success)
    lines = {str(line.get_label()): line for line in ax.get_lines()}
    np.testing.assert_array_equal(lines["paper bound"].get_xdata(), one.fine_paper)
    np.testing.assert_array_equal(lines["sharp form"].get_xdata(), one.fine_sharp)
    np.testing.assert_array_equal(lines["sharp form"].get_ydata(), one.fine_shares)
    # each column of the mesh covers its dimension, each row its level
    corners = ax.collections[0].get_coordinates()
    assert ((corners[0, :-1, 0] <= one.dims) & (one.dims <= corners[0, 1:, 0])).all()
    assert ((corners[:-1, 0, 1] >= one.fine_shares) & (one.fine_shares >= corners[1:, 0, 1])).all()
    ax = Figure().subplots()
    found.plot(ax, "curve flat")
    lines = {str(line.get_label()): np.asarray(line.get_ydata()) for line in ax.get_lines()}
    flat = found.of("flat")
    above = np.where(
        flat.course[0] > 0, flat.course[0] / flat.initial, np.nan
    )  # the minimum itself has no place on a logarithmic axis
    np.testing.assert_allclose(lines["simulated mean"], above, rtol=1e-12)
    np.testing.assert_allclose(lines["theory"][:-1], 1 - flat.dims[:-1] / 400, rtol=1e-8)
    traces = {trace.name: trace for trace in found.figure().data}
    np.testing.assert_array_equal(traces["power:2: polar"].y, found.of("power:2").polar)
    np.testing.assert_array_equal(traces["power:2: simulated"].y, found.of("power:2").simulated)


def test_the_summary_names_the_worst(found):
    line = found.summary()
    deviations = {(name, row): abs(z) for name in NAMES for row, z in enumerate(found.of(name).deviations)}
    (name, row), worst = max(deviations.items(), key=lambda item: item[1])
    assert f"at most {worst:.2g} standard errors from exact simulation (worst: {name} at {SHARES[row]:g}, " in line
    factors = {(name, row): z for name in NAMES for row, z in enumerate(found.of(name).factors)}
    (name, row), most = max(factors.items(), key=lambda item: item[1])
    assert f"up to {most:.3g} times the simulated d* ({name} at {SHARES[row]:g}, " in line
    # of a sharp form that is off, a warning
    moved = {**found.wells["flat"], "sharp": found.of("flat").sharp + 100}
    notes = wells._warnings(replace(found, wells={"flat": moved}))
    assert len(notes) == 3 and "believe the simulation" in notes[0]


# -- a spectrum of one's own ------------------------------------------------------------------------------------------


def test_files_of_eigenvalues(tmp_path):
    values = np.array([3.0, 1.5, 0.25])
    np.save(tmp_path / "a.npy", values)
    np.savez(tmp_path / "b.npz", anything=values)
    np.savetxt(tmp_path / "c.txt", values)
    np.save(tmp_path / "d.npy", np.array([[3, 2, 1, 0]], dtype=np.int32))
    np.save(tmp_path / "e.npy", values[:, None])
    for name in ("a.npy", "b.npz", "c.txt", "e.npy"):
        np.testing.assert_allclose(read_eigenvalues(tmp_path / name), values)
    np.testing.assert_array_equal(read_eigenvalues(tmp_path / "d.npy"), [3, 2, 1, 0])


class Trap:
    """What a pickle may hold: a call."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_unreadable_files_are_refused(tmp_path):
    trap = np.array([Trap(str(tmp_path / "sprung"))], dtype=object)
    np.save(tmp_path / "objects.npy", trap, allow_pickle=True)
    np.savez(tmp_path / "two.npz", a=np.ones(2), b=np.ones(2))
    np.savez(tmp_path / "objects.npz", a=trap)
    np.save(tmp_path / "complex.npy", np.ones(3, dtype=complex))
    np.save(tmp_path / "text.npy", np.array(["1.0"]))
    np.save(tmp_path / "nan.npy", np.array([1.0, np.nan]))
    np.save(tmp_path / "none.npy", np.empty(0))
    np.save(tmp_path / "matrix.npy", np.eye(20))
    np.savez(tmp_path / "matrix.npz", np.eye(20))
    np.save(tmp_path / "cube.npy", np.ones((2, 1, 3)))
    (tmp_path / "matrix.txt").write_text("1 0\n0 1\n")
    (tmp_path / "none.txt").write_text("")
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "words.txt").write_text("one two")
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04")
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "other.csv").write_text("1")
    (tmp_path / "other.json").write_text("{}")
    for name in ("objects.npy", "objects.npz", "complex.npy", "text.npy", "words.txt", "cut.npz", "empty.npy"):
        with pytest.raises(UnsafeInputError, match="holds no plain numbers"):
            read_eigenvalues(tmp_path / name)
    assert not (tmp_path / "sprung").exists()
    with pytest.raises(UnsafeInputError, match="not a result of this tool"):
        read_eigenvalues(tmp_path / "other.json")
    for name, says in (
        ("two.npz", "one array"),
        ("nan.npy", "1 are not finite"),
        ("none.npy", "got none"),
        ("none.txt", "got none"),
        ("matrix.npy", r"matrix \(20, 20\): give its eigenvalues, numpy.linalg.eigvalsh"),
        ("matrix.npz", r"matrix \(20, 20\)"),
        ("matrix.txt", r"matrix \(2, 2\)"),
        ("cube.npy", r"array \(2, 1, 3\)"),
        ("list.json", "not an answer of `landscape spectrum`"),
        ("other.csv", "must end in"),
        ("lost.npy", "no file"),
    ):
        with warnings.catch_warnings(), pytest.raises(UsageError, match=says):
            warnings.simplefilter("error")
            read_eigenvalues(tmp_path / name)


def test_a_stored_spectrum_must_hold_every_eigenvalue(tmp_path, found):
    f, z = objective("mlp")
    exact = np.linalg.eigvalsh(f.hessian(z).dense().numpy())
    for name, options in (("counted", {"density": True}), ("top", {"top": f.dim})):
        path = tmp_path / f"{name}.json"
        path.write_text(measured(f, z, **options).to_json())
        # the Lanczos residual bound of the default tolerance, 1e-4 of the largest
        np.testing.assert_allclose(np.sort(read_eigenvalues(path)), exact, atol=1e-4 * np.abs(exact).max())
    few = tmp_path / "few.json"
    few.write_text(measured(f, z, top=5).to_json())
    with pytest.raises(UsageError, match=f"holds 5 of {f.dim} eigenvalues"):
        read_eigenvalues(few)
    other = tmp_path / "other.json"
    other.write_text(found.to_json())
    with pytest.raises(UsageError, match="a well result"):
        read_eigenvalues(other)


# -- through the command ----------------------------------------------------------------------------------------------


def test_the_command_prints_the_table_and_answers_again_without_computing(tmp_path, capsys, monkeypatch):
    out = tmp_path / "a"
    words = ["well", "--spectrum", "power:1", "--dim", "24", "--draws", "5", "--polar-draws", "4", "--out", str(out)]
    assert main(words) == 0
    first = capsys.readouterr().out
    assert (
        first.startswith("well")
        and first.count("\npower:1 ") == 3
        and "1 quadratic well in 24 dimensions, 3 levels" in first
    )
    with monkeypatch.context() as patched:
        patched.setattr(wells, "_estimate", None)
        assert main(words) == 0
        assert capsys.readouterr().out == first
    assert main([*words, "--level", "0.5", "--json"]) == 0  # a further question to the same wells
    record = json.loads(capsys.readouterr().out)
    assert record["kind"] == "well" and record["asked"]["array"] == [0.5] and record["question"]["levels"] == [0.5]
    assert sorted(path.name for path in (out / "results").iterdir()) == ["well-2.json", "well.json"]
    assert main([*words, "--radius", "2"]) == 2  # other wells belong into another folder
    assert "radius: 1.0 there, 2.0 asked" in capsys.readouterr().err
    assert main(["show", str(out)]) == 0
    assert "well of quadratic wells, finished" in capsys.readouterr().out
    assert main(["report", str(out)]) == 0
    assert "1 quadratic well in 24 dimensions" in (out / "report.html").read_text()


def test_the_command_takes_eigenvalues_and_knows_them_again(tmp_path, capsys):
    path, out = tmp_path / "own.npy", tmp_path / "b"
    np.save(path, np.array([2.0, 1.0, -0.25]))
    words = ["well", "--eigenvalues", str(path), "--level", "0.2", "--absolute", "--draws", "4", "--out", str(out)]
    assert main(words) == 2
    assert "negative" in capsys.readouterr().err
    assert not out.exists()
    assert main([*words, "--negative", "clip"]) == 0
    printed = capsys.readouterr()
    assert printed.out.count("own.npy") >= 1 and "own.npy: 1 of 3 " in printed.err
    np.save(path, np.array([2.0, 1.0, -0.5]))
    assert main([*words, "--negative", "clip"]) == 2
    assert "made on other data" in capsys.readouterr().err


def test_spectra_that_do_not_fit_are_left_out_unless_they_were_named(tmp_path, capsys):
    words = ["well", "--dim", "2", "--draws", "0", "--polar-draws", "2", "--out", str(tmp_path / "a")]
    assert main([*words, "--spectrum", "flat,outliers:10"]) == 2
    assert "'outliers:10'" in capsys.readouterr().err
    for _ in range(2):  # measured, and answered again
        assert main(words) == 0
        printed = capsys.readouterr()
        assert printed.out.count("\nflat ") == 3 and "outliers:10" not in printed.out
        assert "outliers:10 is left out" in printed.err


def test_options_from_a_file(tmp_path, capsys):
    (tmp_path / "a.yaml").write_text("dim: 3\nlevel: 0.5\ndraws: 0\n")
    assert main(["well", "--config", str(tmp_path / "a.yaml"), "--spectrum", "flat", "--out", str(tmp_path / "a")]) == 0
    assert "1 quadratic well in 3 dimensions, 1 level:" in capsys.readouterr().out
    assert main(["well", "--help"]) == 0
    assert "--config" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--spectrum", "flt"], "Did you mean 'flat'"),
        (["--spectrum", "power:x"], "positive number after a colon"),
        (["--dim", "0"], "--dim is at least 1"),
        (["--level", "0.3;0.1"], "--level takes numbers"),
        (["--level", "0"], "positive shares"),
        (["--radius", "0"], "--radius must be positive"),
        (["--dim", "5001"], "--draws 0"),
        (["--draws", "1"], "at least 2 draws"),
        (["--eigenvalues", "lost.npy"], "no file lost.npy"),
        (["--eigenvalues", "lost.npy", "--dim", "400"], "one of --dim and --eigenvalues"),
        (["--negative", "error"], "or give --eigenvalues"),
        (["--radius", "1e-200"], "another unit"),
    ],
)
def test_bad_options_leave_no_folder(tmp_path, capsys, words, message):
    out = tmp_path / "c"
    assert main(["well", *words, "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()
