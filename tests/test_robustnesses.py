"""Robustness to perturbed rewinding.

The training is taken out: `grow` returns the starts themselves, on the loss -k |w|^2 / 2. Between two points at distance s the excess over the baseline is k a (1-a) s^2 / 2,
so that the barrier is k s^2 / 8, at the middle, whatever else the points are (T1): every barrier and the robust radius sqrt(8 threshold / k) are known.
"""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from landscape.analysis import styles
from landscape.analysis.barriers import End
from landscape.analysis.robustnesses import FINE, REACH, Barred, Robustness, Ticket, _over_draws, robustness
from landscape.cli.app import main
from landscape.errors import LandscapeError, UsageError
from landscape.masks import Mask
from landscape.objectives import Objective
from landscape.perturbations import KINDS
from landscape.results import Result
from landscape.runs import Run
from landscape.seeds import generator

D, K = 12, 0.5
F64 = torch.float64
FULL = Objective.from_function(lambda w: -K * w @ w / 2, D)
LAYOUT = FULL.model.layout


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed, "test robustnesses"), dtype=F64)


def mask_of(kept):
    return Mask(LAYOUT, np.isin(np.arange(D), list(kept)))


@pytest.fixture
def tickets():
    """Three levels: 12, 8 and 6 survivors, the last without a successor. The deleted weights are the last of each level."""
    w = draw(D)
    masks = [mask_of(range(n)) for n in (12, 8, 6, 4)]
    solutions = [End(mask.apply(w + draw(D, seed=1 + i)), mask=mask) for i, mask in enumerate(masks[:3])]
    return [
        Ticket(i, masks[i], masks[i] - masks[i + 1], masks[i].apply(w), solutions[i], [*solutions, None][i + 1])
        for i in range(3)
    ]


def as_they_start(asked):
    def grow(children):
        asked.append(list(children))
        return [End(child.point, mask=child.ticket.mask) for child in children]

    return grow


def measured(tickets, asked=None, **keywords):
    grow = keywords.pop("grow", as_they_start([] if asked is None else asked))
    return robustness(
        FULL, None, tickets, grow, prunable=Mask.full(LAYOUT), **{"threshold": 1.0, "points": 3} | keywords
    )


def apart(one, other):
    return float((one - other).square().sum())


# -- closed forms -----------------------------------------------------------------------------------------------------


def test_barriers_are_those_of_the_distances(tickets):
    asked = []
    found = measured(tickets, asked, kinds=["sphere", "projection"], factors=[0.5, 2.0], draws=2)
    starts = {child.name: child for children in asked for child in children}
    for row, ticket in enumerate(tickets):
        d = float(ticket.deleted.apply(ticket.rewound).norm())
        assert found.distances[row] == pytest.approx(d, rel=1e-12)
        assert found.norms[row] == pytest.approx(float(ticket.rewound.norm()), rel=1e-12)
        noise = found.barred("noise", row)
        assert noise.value == pytest.approx(K / 8 * apart(ticket.rewound, ticket.solution.point), rel=1e-9)
        successive = found.barred("successive", row)
        if ticket.successor is None:
            assert successive is None
        else:
            expected = K / 8 * apart(ticket.solution.point, ticket.successor.point)
            assert successive.value == pytest.approx(expected, rel=1e-9)
        for kind in ("sphere", "projection"):
            for factor in (0.5, 2.0):
                # all draws at one distance: one barrier, and an interval of no width
                bar = found.barred("perturbed", row, kind, factor)
                np.testing.assert_allclose([bar.value, bar.low, bar.high], K / 8 * (factor * d) ** 2, rtol=1e-9)
                own = [
                    child.point
                    for name, child in starts.items()
                    if child.ticket is ticket and f"-{kind}-{factor:.9g}-" in name
                ]
                assert len(own) == 2
                expected = np.mean([K / 8 * apart(point, ticket.solution.point) for point in own])
                assert found.barred("original", row, kind, factor).value == pytest.approx(expected, rel=1e-9)
    assert found.densities.tolist() == [1.0, 8 / 12, 6 / 12]


def test_robust_radius_by_bisection(tickets):
    """rho = sqrt(8 threshold / k); no barrier has an error here, so the bracket is as fine as asked and the zone is the bracket."""
    for target in (0.3, 5.0):
        for row in (0, 2):
            d = float(tickets[row].deleted.apply(tickets[row].rewound).norm())
            asked = []
            found = measured([tickets[row]], asked, bisect=True, threshold=K / 8 * (target * d) ** 2)
            radius = found.robust("sphere", 0)
            assert radius.sign == "" and radius.value == radius.sure
            assert radius.sure < target < radius.lost <= FINE * radius.sure
            # doublings to the bracket, at most 3 of them, then halvings of log 2 down to log 1.25: 2 more
            assert len(asked) <= 1 + 3 + math.ceil(math.log2(math.log(2) / math.log(FINE)))


@pytest.mark.parametrize(("threshold", "sign", "end"), [(1e-9, "<", 1 / REACH), (1e9, ">", REACH)])
def test_beyond_the_bracket_a_radius_is_one_sided(threshold, sign, end, tickets):
    found = measured(tickets[1:2], bisect=True, threshold=threshold)
    radius = found.robust("sphere", 0)
    assert (radius.sign, radius.value) == (sign, end)
    assert (radius.sure, radius.lost) == ((0.0, end) if sign == "<" else (end, math.inf))
    assert f"{sign} {end:.3g}" in found.summary()


def test_draws_join_the_interval_over_rows_and_that_over_draws():
    values, lows, highs = np.array([0.02, 0.05, 0.035]), np.array([0.01, 0.03, 0.03]), np.array([0.03, 0.07, 0.05])
    found = _over_draws(np.stack([values, lows, highs]), np.zeros(3, dtype=bool), 1.0)
    over_draws = stats.t.interval(0.95, 2, loc=values.mean(), scale=stats.sem(values))
    reach = math.hypot((over_draws[1] - over_draws[0]) / 2, (highs.mean() - lows.mean()) / 2)
    middle = (lows.mean() + highs.mean()) / 2
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((max(middle - reach, 0), middle + reach))
    single = _over_draws(np.array([[0.02], [0.01], [0.05]]), np.zeros(1, dtype=bool), 1.0)
    assert (single.low, single.high) == pytest.approx((0.01, 0.05))
    # of two draws t is 12.7, and no barrier of errors is above 1; one of losses may be
    wide = np.array([[0.1, 0.5]] * 3)
    assert [_over_draws(wide, np.zeros(2, dtype=bool), most).high > 1 for most in (1.0, math.inf)] == [False, True]


@pytest.mark.parametrize(
    ("barred", "keeps", "decided"),
    [
        (Barred(0.01, 0.0, 0.015, False), True, "yes"),
        (Barred(0.01, 0.0, 0.03, False), True, "undecided"),
        (Barred(0.03, 0.025, 0.04, False), False, "no"),
        (Barred(0.0, 0.0, 0.0, True), False, "no"),  # two nets that know nothing are perfectly connected
        (Barred(math.nan, math.nan, math.nan, False), False, "no"),
    ],
)
def test_decisions(barred, keeps, decided):
    assert (barred.keeps(0.02), barred.decided(0.02)) == (keeps, decided)


def test_bisection_stops_where_nothing_is_sure(tickets, monkeypatch):
    """With intervals as wide as 0 to 4 times the barrier, whatever lies within a factor of 2 of the threshold is undecided."""
    decided = {factor: Barred(factor**2, 0.0, 4 * factor**2, False) for factor in (0.5, 1.0, 2.0)}
    found = measured(tickets[:1], threshold=1.5)
    monkeypatch.setattr(Robustness, "_tried", lambda *_: decided)
    assert found.another("sphere", 0) is None  # 1 keeps and 2 does not, and neither surely
    decided[2.0] = Barred(4.0, 3.0, 5.0, False)
    assert found.another("sphere", 0) == pytest.approx(math.sqrt(2))


# -- what is trained --------------------------------------------------------------------------------------------------


class Asked(Exception):
    """Raised by a `grow` that only wants to know."""


def children_of(tickets, **keywords):
    def grow(children):
        raise Asked(list(children))

    with pytest.raises(Asked) as caught:
        robustness(FULL, None, tickets, grow, **{"prunable": Mask.full(LAYOUT)} | keywords)
    return caught.value.args[0]


@pytest.mark.parametrize("kind", KINDS)
def test_starts_and_noises(kind, tickets):
    options = {"kinds": [kind], "draws": 2, "factors": [1.0, 2.0]}
    children = children_of(tickets, **options)
    assert len(children) == 3 * (2 + 2 * 2)
    names = [child.name for child in children]
    assert len(set(names)) == len(names)
    noises = {}
    for child in children:
        assert (child.point[~child.ticket.mask.tensor()] == 0).all()
        plain = child.name.startswith("sibling")
        assert bool((child.point == child.ticket.rewound).all()) == plain
        noises.setdefault((child.ticket.number, plain, child.name.split("draw-")[1]), set()).add(child.noise)
    # one noise at all radii; else every noise another
    assert all(len(found) == 1 for found in noises.values())
    assert len({noise for (noise,) in noises.values()}) == len(noises) == 3 * 2 * 2
    # the same question asks for the same trainings, another seed for others
    again = children_of(tickets, **options)
    assert [child.name for child in again] == names
    assert all((a.point == b.point).all() and a.noise == b.noise for a, b in zip(again, children, strict=True))
    other = children_of(tickets, **options, seed=1)
    assert not {child.name for child in other} & set(names)
    assert not {child.noise for child in other} & {child.noise for child in children}


def test_prunable_alone_leaves_the_rest_where_it_was(tickets):
    def moves(**keywords):
        """Whether the first two weights, which cannot be pruned, move in any perturbed start."""
        children = children_of(tickets, prunable=mask_of(range(2, 12)), **keywords)
        perturbed = [child for child in children if child.name.startswith("perturbed")]
        return any(bool((child.point != child.ticket.rewound)[:2].any()) for child in perturbed)

    assert moves()
    assert not moves(moving="prunable")
    assert not moves(kinds=["random-mask"])


def test_a_training_that_diverges_is_not_robust(tickets):
    def grow(children):
        ends = as_they_start([])(children)
        return [None if "-2-draw" in child.name else end for child, end in zip(children, ends, strict=True)]

    found = measured(tickets, grow=grow, factors=[1.0, 2.0], threshold=1e6)
    bar = found.barred("perturbed", 0, "sphere", 2.0)
    assert bar.degenerate and math.isnan(bar.value)
    assert [found.robust("sphere", row).value for row in range(3)] == [1.0] * 3
    assert [found.robust("sphere", row).lost for row in range(3)] == [2.0] * 3
    assert "3 perturbed runs ended at chance or diverged" in found.warnings[0]
    assert same(Result.from_json(found.to_json()), found)
    with pytest.raises(LandscapeError, match="every training diverged"):
        measured(tickets[2:], grow=lambda children: [None] * len(children))


def test_a_level_at_chance_has_no_radius(tickets):
    def grow(children):  # the siblings diverge at level 1
        ends = as_they_start([])(children)
        lost = ["sibling-001" in child.name for child in children]
        return [None if gone else end for gone, end in zip(lost, ends, strict=True)]

    found = measured(tickets, grow=grow, bisect=True, threshold=1e6)
    assert math.isnan(found.robust("sphere", 1).value) and found.another("sphere", 1) is None
    assert found.factors("sphere", 1) == [1.0] and found.factors("sphere", 0) == [1.0, 2.0, 4.0, 8.0]
    assert "level 1" in found.warnings[0]
    (row,) = [row for row in found.table() if row[0] == "1"]
    assert any("at chance" in cell for cell in row)
    assert found.ends(1) == pytest.approx(-K / 2 * float(tickets[1].solution.point.square().sum()))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"kinds": ["shpere"]}, "sphere"),
        ({"kinds": []}, "none"),
        ({"draws": 0}, "at least 1 draw"),
        ({"factors": [0.0]}, "positive multiples"),
        ({"factors": [1.0, 1.0]}, "each once"),
        ({"threshold": math.nan}, "threshold"),
        ({"moving": "some"}, "prunable"),
    ],
)
def test_what_does_not_fit_is_named(changed, said, tickets):
    with pytest.raises(UsageError, match=said):
        measured(tickets, **changed)
    with pytest.raises(UsageError, match="no level"):
        measured([])
    nothing = [dataclasses.replace(tickets[0], deleted=mask_of([]))]
    with pytest.raises(UsageError, match="d_L is 0"):
        measured(nothing)


def test_a_default_threshold_on_a_loss_is_warned_of(tickets):
    assert any("units of the loss" in warning for warning in measured(tickets, threshold=0.02).warnings)
    assert not any("units of the loss" in warning for warning in measured(tickets, threshold=2.0).warnings)


# -- the answer -------------------------------------------------------------------------------------------------------


def same(one, other):
    for field in dataclasses.fields(one):
        np.testing.assert_equal(getattr(one, field.name), getattr(other, field.name), field.name)
    return True


def test_round_trip_words_and_pictures(tickets):
    found = measured(tickets, kinds=["sphere", "ball"], factors=[0.5, 1.0])
    assert same(Result.from_json(found.to_json()), found)
    assert found.panels() == ("density", "radius sphere", "radius ball", "robust radius")
    head, *rows = found.table()
    assert len(rows) == 6 and {len(row) for row in rows} == {len(head)}
    assert rows[0][head.index("noise (train loss)")].startswith(f"{found.barred('noise', 0).value:.3g} [")
    for words in ("linear baseline", "3 evenly spaced", "Seed 0", "Robust radius"):
        assert words in found.caption()
    assert b"<svg" in styles.rendered(found, "svg")
    assert len(found.figure().data) == 4
    assert measured(tickets).panels() == ("density",)


# -- the command ------------------------------------------------------------------------------------------------------


def test_command(tmp_path, capsys):
    folder = tmp_path / "run"
    make = ["imp", "digits-mlp-16", "--steps", "30", "--levels", "2", "--rate", "0.6", "--rewind", "5", "--replicates", "0", "--record-every", "10", "--out", str(folder)]  # fmt: skip
    ask = ["robustness", str(folder), "--levels", "0,2", "--kind", "sphere,projection", "--radii", "1,2", "--json"]
    assert main(make) == 0
    capsys.readouterr()
    assert main(ask) == 0
    first = json.loads(capsys.readouterr().out)
    run = Run(folder)
    trained = sorted(path.name for path in (folder / "branches").iterdir())
    assert len(trained) == 2 * (1 + 2 * 2)
    found = Result.from_json(run.find("robustness", first["question"]).read_text())
    assert isinstance(found, Robustness)
    # the start of each branch, read back: distance d_L of the rewound weights, those of level 0 deleted by the mask of level 1
    layout = run.level(0).trajectory().layout
    dense = run.level(0).trajectory()
    w = dense.row(dense.index(5)).point.astype(float)
    kept = Mask.load(run.level(1).mask_path, layout).kept
    assert found.distances[0] == pytest.approx(np.linalg.norm(w[~kept]), rel=1e-6)
    for factor in (1, 2):
        start = run.branch(f"perturbed-000-sphere-{factor}-draw-0-seed-0").trajectory().row(0)
        assert start.step == 5
        assert np.linalg.norm(start.point.astype(float) - w) == pytest.approx(factor * found.distances[0], rel=1e-5)
    target = run.branch("perturbed-000-projection-1-draw-0-seed-0").trajectory().row(0).point
    # at r = d_L the projection is the rewound point of the next level, and exactly 0 where that is
    np.testing.assert_array_equal(target[~kept], 0)
    np.testing.assert_array_equal(target[kept], w[kept])
    sparse = run.branch("perturbed-002-sphere-1-draw-0-seed-0").trajectory()
    last = Mask.load(run.level(2).mask_path, layout).kept
    assert (sparse.row(-1).point[~last] == 0).all() and (sparse.row(-1).point[last] != 0).all()
    # asked again: found. Without the answer and one branch: made anew, the same
    assert main(ask) == 0 and "answered before" in capsys.readouterr().err
    run.find("robustness", first["question"]).unlink()
    assert main(ask) == 0
    second = json.loads(capsys.readouterr().out)
    assert (second["barriers"], second["pairs"]) == (first["barriers"], first["pairs"])
    for argv, says in (
        (["--levels", "7"], "levels 0 to 2"),
        (["--kind", "shpere"], "sphere"),
        (["--radii", "1,two"], "--radii"),
        (["--dtype", "float64"], "--dtype"),
        (["--bn", "averge"], "average"),
    ):
        assert main([*ask[:2], *argv]) == 2
        assert says in capsys.readouterr().err
