"""Instability of states whose children are placed by hand, so that barriers, distances and disagreement are known in closed form; the first stable step planted; children on disk."""

import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from problems import F64, draw
from scipy import stats
from torch import nn

from landscape import branches, seeds, tickets
from landscape.analysis.instabilities import Instability, Siblings, candidates, instability, next_step
from landscape.analysis.styles import rendered
from landscape.cli.app import main
from landscape.errors import UsageError
from landscape.objectives import Objective, Rows
from landscape.recordings import taken
from landscape.results import Result
from landscape.runs import Place, Run
from landscape.tasks import find

N, T = 200, 1000


class Products(nn.Module):
    """Row i is put into class 1 where u_i v_i > 0, so that each row's answer along a path is known."""

    def __init__(self) -> None:
        super().__init__()
        self.u, self.v = nn.Parameter(torch.ones(N)), nn.Parameter(torch.ones(N))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = (x @ self.u) * (x @ self.v)
        return torch.stack([torch.zeros_like(logits), logits], dim=1)


# a tenth of the rows is of class 0: guessing the commonest class has an error of 0.1
f, origin = Objective.of(
    Products(), "cross-entropy", Rows(torch.eye(N), (torch.arange(N) >= N // 10).long()), dtype=F64
)


def child(hilly: int = 0, wrong: int = 0, *, other: bool = False) -> torch.Tensor:
    """Right on all rows, but for the last `wrong` ones. On the way to the `other` child, its `hilly` rows after the first tenth turn wrong and back: u goes from 1 to -1/2 and v from 1/2 to -1, so that their product is negative for a in (1/3, 2/3)."""
    u, v = torch.ones(N, dtype=F64), torch.ones(N, dtype=F64)
    v[: N // 10] = -1
    v[N - wrong :] = -1
    place = slice(N // 10, N // 10 + hilly)
    u[place], v[place] = (-0.5, -1.0) if other else (1.0, 0.5)
    u[0] = 2.0 if other else 1.0  # so that no two are one point; the row is of class 0, and stays there
    return torch.cat([u, v])


def siblings(step: int, hilly: int, replicate: int = 0, **more: Any) -> Siblings:
    """Two children between which so many rows turn wrong."""
    return Siblings(
        step, replicate, origin, torch.stack([child(hilly), child(hilly, other=True)]), [f.buffers] * 2, **more
    )


def measured(families: list[Siblings], **options: Any) -> Instability:
    return instability(None, f, families, steps=T, **options)


# -- numbers ----------------------------------------------------------------------------------------------------------


def test_error_barrier_distance_and_disagreement_are_those_counted_by_hand() -> None:
    one, other = child(30, 6), child(30, other=True)
    found = measured([Siblings(5, 0, origin, torch.stack([one, other]), [f.buffers] * 2)])
    # errors 6 / N and 0 at the ends; in the middle the 30 and the 6, whose product goes from -1 to 1 and is 0 there: a row of class 1 that is put into 0
    middle = [(30 * (1 / 3 < a < 2 / 3) + 6 * (a <= 0.5)) / N for a in np.linspace(0, 1, 11)]
    baseline = 6 / N * (1 - np.linspace(0, 1, 11))
    assert found.headline == "test error"
    assert found.value()[0] == pytest.approx(max(middle - baseline), abs=1e-14)
    assert found.value(definition="over-mean")[0] == pytest.approx(max(middle) - 3 / N, abs=1e-14)
    assert found.ends["none needed"]["test error"].tolist() == [[6 / N, 0.0]]
    at = found.columns
    assert at["disagreement"][0] == pytest.approx(6 / N)
    assert at["distance"][0] == pytest.approx(math.sqrt(30 * 2 * 1.5**2 + 6 * 4 + 1), rel=1e-12)
    ways = [
        math.sqrt(4 * 20 + 30 * 0.25 + 4 * 6),
        math.sqrt(4 * 20 + 30 * (2.25 + 4) + 1),
    ]  # of the tenth, of the hilly rows, of the wrong ones
    assert at["travelled"][0] == pytest.approx(np.mean(ways), rel=1e-12)
    cosine = float(one @ other / one.norm() / other.norm())
    assert at["angular"][0] == pytest.approx(2 / math.pi * math.acos(cosine), rel=1e-9)


def test_loss_barrier_of_a_saddle_is_k_over_8() -> None:
    signs = torch.tensor([1.0, -9.0], dtype=F64)
    saddle = Objective.from_function(lambda w: (signs * w**2).sum() / 2, 2)
    ends = draw(3, 2)
    found = instability(
        saddle, None, [Siblings(0, 0, torch.zeros(2, dtype=F64), ends, [{}] * 3)], steps=T, threshold=0.1
    )
    gaps = [ends[i] - ends[j] for i, j in ((0, 1), (0, 2), (1, 2))]
    k = [max(0.0, -float((signs * gap**2).sum())) for gap in gaps]
    np.testing.assert_allclose(found.value(), np.array(k) / 8, rtol=1e-12, atol=1e-13)
    assert (found.headline, found.columns["first"].tolist(), found.columns["second"].tolist()) == (
        "train loss",
        [0, 0, 1],
        [1, 2, 2],
    )
    assert not any("units of the loss" in words for words in found.warnings)
    silent = instability(saddle, None, [Siblings(0, 0, torch.zeros(2, dtype=F64), ends, [{}] * 3)], steps=T)
    assert any("0.02 is in units of the loss (train loss)" in words for words in silent.warnings)


def test_states_join_replicates_and_pairs() -> None:
    hills = {0: (30, 36, 24), 100: (0, 0, 0)}
    found = measured([siblings(step, n, r) for step, ns in hills.items() for r, n in enumerate(ns)])
    first, second = found.states
    mean, spread = found.over(first, found.value())
    assert (mean, spread) == pytest.approx((0.15, np.std([0.15, 0.18, 0.12], ddof=1)))
    low, high = found.interval(first)
    bounds = found.bounds["none needed"][first.rows]
    assert (bounds[:, 0] < found.value()[first.rows]).all()
    assert (found.value()[first.rows] < bounds[:, 1]).all()
    noise = np.abs(bounds.T - found.value()[first.rows]).mean(1)
    over = stats.t.ppf(0.975, 2) * 0.03 / math.sqrt(3)
    # 1.96 is the normal quantile to 2e-5
    assert (mean - low, high - mean) == pytest.approx(np.hypot(over, noise), rel=1e-4)
    assert (first.stable, second.stable, first.replicates) == ("no", "yes", 3)
    # of 200 rows none of which is an error: at most 1 - 0.025^(1/200) are, at 97.5% (Clopper and Pearson 1934)
    assert found.interval(second) == pytest.approx((0.0, 1 - 0.025 ** (1 / 200)))
    assert found.first_stable(0) == (0, 100)
    assert not found.warnings


@pytest.mark.parametrize(
    ("hills", "stable"),
    [
        ((30, 24, 28), "no"),  # each is 14 points and more, with a standard error of about 2.4
        ((0, 0, 0), "yes"),
        ((4, 4, 4), "undecided"),  # each is the threshold itself
        ((0, 30), "undecided"),  # one says yes and one no, and two tell little of a mean
        ((30, 30, 0, 30, 30, 30, 30, 30), "no"),  # mean 13 points, t-interval of 7: 0 is one of 8
    ],
)
def test_decision_is_that_of_each_replicate_or_else_of_their_mean(hills: tuple[int, ...], stable: str) -> None:
    found = measured([siblings(0, n, r) for r, n in enumerate(hills)])
    assert found.states[0].stable == stable
    assert any("undecided" in words for words in found.warnings) == (stable == "undecided")


def test_children_at_chance_or_at_one_point_are_never_stable() -> None:
    lost = child()
    lost[N:] = -1.0  # class 0 everywhere: nine of ten are wrong
    once, twice = child(), child()
    for ends in ([lost, lost + 0.1], [once, twice], [once, torch.full_like(once, math.nan)]):
        found = measured([siblings(0, 0), Siblings(100, 0, origin, torch.stack(ends), [f.buffers] * 2)])
        assert [state.stable for state in found.states] == ["yes", "degenerate"]
        assert found.first_stable(0) == (100, None)
        assert "k = 100" in next(words for words in found.warnings if words.startswith("degenerate"))
        rendered(found, "png")
    same = measured([Siblings(0, 0, origin, torch.stack([once, twice]), [f.buffers] * 2)])
    assert (same.value()[0], same.columns["distance"][0]) == (0.0, 0.0)


def test_stability_that_comes_and_goes_is_told() -> None:
    found = measured([siblings(step, n) for step, n in ((0, 30), (10, 0), (50, 30), (100, 0), (200, 0))])
    assert found.first_stable(0) == (50, 100)
    assert any("comes and goes" in words and "k = 10 " in words for words in found.warnings)
    assert any("one replicate" in words for words in found.warnings)
    # 4 of 200 rows are the threshold itself: undecided, which says nothing of what was stable before
    unsure = measured([siblings(step, n) for step, n in ((0, 30), (10, 0), (50, 4), (100, 0))])
    assert [state.stable for state in unsure.states] == ["no", "yes", "undecided", "yes"]
    assert not any("comes and goes" in words for words in unsure.warnings)
    between = measured([siblings(step, n) for step, n in ((0, 0), (10, 30), (50, 4), (100, 0))])
    assert any("k = 0 is stable, and k = 10 after it" in words for words in between.warnings)


def test_children_with_and_without_the_moments_of_their_state_are_told_apart() -> None:
    """At step 0 there are none, and a schedule begun anew begins them anew by what it is."""
    kept = [siblings(0, 30), siblings(100, 10), siblings(100, 8, control=True)]
    fresh = [siblings(step, 0, level=2, density=0.4, fresh=True) for step in (0, 100)]
    found = measured([*kept, *fresh])
    column = found.table()[0].index("momentum")
    assert [row[column] for row in found.table()[1:]] == ["-", "kept", "anew", "-", "anew"]
    (told,) = (words for words in found.warnings if words.startswith("momentum"))
    assert "children of level 0, k = 100 go on" in told
    assert "those of level 2, k = 100 begin" in told
    assert "Momentum anew" in found.caption()
    back = Result.from_json(found.to_json())
    assert isinstance(back, Instability)
    assert back.table() == found.table()
    for alone in (kept, fresh):
        assert not any(words.startswith("momentum") for words in measured(alone).warnings)
    assert "Momentum anew" not in measured(kept).caption()
    # answers of before had no such column, and are added to
    old = measured(kept)
    old.columns.pop("fresh")
    assert old.table()[2][column] == "kept"
    assert measured(fresh, known=old).columns["fresh"].tolist() == [False, False, False, True, True]


def test_one_pair_has_no_spread() -> None:
    found = measured([siblings(0, 30)])
    assert "15.0 pp at k = 0" in found.summary()
    assert "±" not in found.summary() + str(found.table())
    assert "±" in measured([siblings(0, 30), siblings(0, 20, 1)]).summary()


def test_states_added_to_a_known_answer_are_those_measured_at_once() -> None:
    families = [siblings(step, n, r) for step, n in ((0, 30), (50, 8), (100, 0)) for r in range(2)]
    at_once = measured(families)
    known = measured(families[:2])
    grown = measured(families[4:], known=measured(families[2:4], known=known))
    for name, column in at_once.columns.items():
        np.testing.assert_array_equal(grown.columns[name], column, name)
    np.testing.assert_array_equal(grown.value(), at_once.value())
    np.testing.assert_array_equal(grown.ends["none needed"]["test error"], at_once.ends["none needed"]["test error"])
    assert grown.bounds["none needed"].shape == (6, 2)
    assert [state.stable for state in grown.states] == [state.stable for state in at_once.states]


def test_policies_for_batch_norm_stand_side_by_side() -> None:
    module = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, momentum=None), nn.ReLU(), nn.Linear(6, 3)).double()
    rows, held = Rows(draw(60, 4), torch.arange(60) % 3), Rows(draw(40, 4, seed=1), torch.arange(40) % 3)
    train, w = Objective.of(module, "cross-entropy", rows, dtype=F64)
    ends = torch.stack([w + draw(len(w), seed=s) for s in (2, 3)])
    families = [Siblings(0, 0, w, ends, [train.buffers] * 2)]
    both = instability(train, train.on(held), families, steps=T, bn=("recompute", "average"))
    assert both.policies == ["recompute", "average"]
    assert set(both.barriers["average"]) == {"test error", "test loss", "train error", "train loss"}

    def loss_of(end: torch.Tensor, *, passes: int) -> float:
        """By torch's own layer: its statistics as they were made, or a cumulative pass over the train rows."""
        nn.utils.vector_to_parameters(end, module.parameters())
        module[1].reset_running_stats()
        for _ in range(passes):
            module.train()(rows.inputs)
        return nn.functional.cross_entropy(module.eval()(held.inputs), held.targets).item()

    for policy, passes in (("recompute", 1), ("average", 0)):
        expected = [loss_of(end, passes=passes) for end in ends]
        assert both.ends[policy]["test loss"][0] == pytest.approx(expected, rel=1e-12)
    alone = instability(train, train.on(held), families, steps=T, bn=("average",))
    assert any("averaged" in words for words in alone.warnings)
    assert not any("averaged" in words for words in both.warnings)
    rendered(both, "png")


# -- the first stable step --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("planted", [0, 1, 7, 130, 999, 5000])
def test_bisection_finds_a_planted_first_stable_step(planted: int) -> None:
    among = candidates(T, 0.25)
    assert (among[0], among[1]) == (0, 1)
    assert among[-1] < T <= among[-1] * 1.25 + 1
    assert all(b <= max(a + 1, 1.25 * a) for a, b in itertools.pairwise(among))
    answer: Instability | None = None
    pending: int | None = 0
    count = 0
    while pending is not None:
        answer = measured([siblings(pending, 0 if pending >= planted else 30)], known=answer)
        pending, count = next_step(answer, 0, among), count + 1
    assert answer is not None
    before, first = answer.first_stable(0)
    assert first == next((step for step in among if step >= planted), None)
    assert before == next((step for step in reversed(among) if step < planted), None)
    assert count <= 2 + math.ceil(math.log2(len(among)))


# -- words and pictures -----------------------------------------------------------------------------------------------


@pytest.fixture
def answer() -> Instability:
    """Three levels, two steps, three replicates, and a control."""
    families = [
        siblings(step, n + 2 * r if n else 0, r, level=level, density=density)
        for level, density, n in ((0, 1.0, 40), (2, 0.41, 20), (5, 0.107, 0))
        for step in (0, 100)
        for r in range(3)
    ]
    return measured([*families, *(siblings(100, 30, r, control=True) for r in range(3))])


def test_answer_round_trips_and_is_drawn_from_its_numbers(answer: Instability) -> None:
    again = Result.from_json(answer.to_json())
    assert isinstance(again, Instability)
    assert json.loads(again.to_json()) == json.loads(answer.to_json())
    assert again.panels() == ("barrier", "ends", "distance", "disagreement")
    assert again.table() == answer.table()
    assert "density 1" in answer.summary()
    assert "21.0 ± 1.0 pp" in answer.summary()  # 40, 42, 44 of 200 rows
    assert "stable from density 0.107 on" in answer.summary()
    for words in (str(N), "11 evenly spaced", "linear", "augmentation"):
        assert words in answer.caption() or words in answer.summary()
    sheet = Figure()
    for panel in again.panels():
        ax = sheet.subplots()
        again.plot(ax, panel)
        assert ax.get_xlabel().startswith("density")
    assert len(again.figure().data) == 3
    with pytest.raises(UsageError, match="panel"):
        again.plot(sheet.subplots(), "other")


def test_drawn_heights_are_the_means(answer: Instability) -> None:
    ax = Figure().subplots()
    answer.plot(ax)
    lines = [line for line in ax.get_lines() if len(line.get_xdata()) == 3 and line.get_linestyle() == "-"]
    assert [list(np.round(line.get_ydata(), 9)) for line in lines] == [[21.0, 11.0, 0.0]] * 2
    assert list(lines[0].get_xdata()) == [100.0, 41.0, 10.7]


def test_bad_questions_are_refused() -> None:
    family = siblings(0, 0)
    for families, options, words in (
        ([], {}, "no state"),
        ([Siblings(0, 0, origin, family.ends[:1], [f.buffers])], {}, "two children"),
        ([Siblings(0, 0, origin[1:], family.ends, [f.buffers] * 2)], {}, "parameters"),
        ([siblings(T, 0)], {}, "0..999"),
        ([family], {"threshold": 0.0}, "threshold"),
        ([family], {"bn": ("mean",)}, "policy"),
    ):
        with pytest.raises(UsageError, match=words):
            measured(families, **options)
    with pytest.raises(UsageError, match="tolerance"):
        candidates(T, 0.0)
    found = measured([family])
    for asked in ({"curve": "test accuracy"}, {"policy": "batch"}, {"definition": "mean"}):
        with pytest.raises(UsageError):
            found.value(**asked)
    with pytest.raises(UsageError, match="rows"):
        instability(None, None, [family], steps=T)


# -- on disk ----------------------------------------------------------------------------------------------------------

SMALL = ("--steps", "30", "--device", "cpu", "--rows", "300", "--limit", "300", "--points", "5")


def spawned(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    """The answer of a command line."""
    assert main(["spawn", *map(str, words), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_command_grows_children_and_adds_to_what_is_there(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "s"
    words = ("digits-mlp", *SMALL, "--out", out, "--replicates", 2)
    first = spawned(capsys, *words, "--at", "0,10")
    run = Run.open(out)
    f, _ = Objective.of(
        find("digits-mlp", limit=300).make(0), "cross-entropy", find("digits-mlp", limit=300).data.train
    )
    names = sorted(path.name for path in (out / "branches").iterdir())
    assert names == sorted(
        ["parent-0", "parent-1", *(f"spawn-l0-r{r}-k{k}-c{c}" for r in (0, 1) for k in (0, 10) for c in (0, 1))]
    )
    for r, k in itertools.product((0, 1), (0, 10)):
        parent, _ = taken(f, Place(run.branch(f"parent-{r}"), k))
        kids = [run.branch(f"spawn-l0-r{r}-k{k}-c{c}") for c in (0, 1)]
        starts = [taken(f, Place(own, k))[0] for own in kids]
        assert all(torch.equal(start, parent) for start in starts)  # the parent's state to the bit
        options = [own.options for own in kids]
        assert options[0].pop("noise") != options[1].pop("noise")
        assert [options[c].pop("child") for c in (0, 1)] == [0, 1]
        assert options[0] == options[1]  # nothing else differs
    ended = {name: run.branch(name).record_path.read_bytes() for name in names}
    assert spawned(capsys, *words, "--at", "0,10") == first
    more = spawned(capsys, *words[:-1], 3, "--at", "0,10,20", "--children", 3)
    counts = np.array(more["columns"]["step"]["array"])
    assert [(counts == k).sum() for k in (0, 10, 20)] == [9, 9, 9]
    assert all(run.branch(name).record_path.read_bytes() == ended[name] for name in names if name.startswith("spawn"))
    assert more["provenance"]["seeds"] == [0, 1, 2]


def test_command_controls_varies_the_order_and_bisects(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "s"
    found = spawned(
        capsys, "digits-mlp", *SMALL, "--out", out, "--replicates", 1, "--control", "--vary", "order", "--bisect", "--at", "5", "--threshold", 1e-9
    )  # fmt: skip
    run = Run.open(out)
    anew, goes_on = (run.branch(f"spawn-l0-r0-k5-c0-order{ending}") for ending in ("-anew", ""))
    assert (anew.trajectory().steps.tolist(), goes_on.trajectory().steps.tolist()) == ([0, 30], [5, 30])
    np.testing.assert_array_equal(anew.trajectory().row(0).point, goes_on.trajectory().row(0).point)
    kids = [run.branch(f"spawn-l0-r0-k5-c{c}-order").options for c in (0, 1)]
    assert kids[0]["noise"] == kids[1]["noise"]
    assert kids[0]["order"] != kids[1]["order"]
    # children that disagree at all have no barrier below 1e-9 but by chance: bisection goes up to the last candidate, or ends beside a stable one
    answer = Result.from_json(json.dumps(found))
    assert isinstance(answer, Instability)
    assert next_step(answer, 0, candidates(30, 0.25)) is None
    assert {state.step for state in answer.states if not state.control} == {state.step for state in answer.states if state.control} | ({0} & {state.step for state in answer.states})  # fmt: skip


def test_children_of_the_parents_own_noise_repeat_it(
    tmp_path: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = seeds.child_seed
    monkeypatch.setattr(
        seeds, "child_seed", lambda seed, name, *at: seed if name == "spawn" else drawn(seed, name, *at)
    )
    found = spawned(capsys, "digits-mlp", *SMALL, "--out", tmp_path / "s", "--replicates", 1, "--at", 10)
    answer, run = Result.from_json(json.dumps(found)), Run.open(tmp_path / "s")
    assert isinstance(answer, Instability)
    once, twice, parent = (
        run.branch(name).trajectory().row(-1).point for name in ("spawn-l0-r0-k10-c0", "spawn-l0-r0-k10-c1", "parent-0")
    )
    np.testing.assert_array_equal(once, twice)
    assert [answer.columns[name][0] for name in ("distance", "disagreement")] == [0.0, 0.0]
    assert (answer.value()[0], answer.states[0].stable) == (0.0, "degenerate")
    # two in lockstep round otherwise than one alone; with fresh momentum they would be 1e-2 away
    np.testing.assert_allclose(once, parent, atol=1e-5)


def test_children_of_a_ticket_start_at_the_masked_rewound_weights(
    tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "t"
    words = [
        "imp",
        "digits-mlp",
        *SMALL[:4],
        "--limit",
        "300",
        "--levels",
        "2",
        "--rate",
        "0.5",
        "--rewind",
        "6",
        "--replicates",
        "0",
        "--record-every",
        "3",
    ]
    assert main([*words, "--out", str(out)]) == 0
    capsys.readouterr()
    run = Run.open(out)
    found = spawned(capsys, out, "--levels", "0,2", "--at", "3,6,12", "--points", 5)
    _, f, _ = tickets.objective(run, device=torch.device("cpu"), dtype=torch.float32)
    level = tickets.levels(run)[2]
    for k in (3, 6):
        dense, _ = taken(f, Place(run.level(0), k))
        start, _ = taken(f, Place(run.branch(f"spawn-l2-r0-k{k}-c0"), k))
        assert torch.equal(start, dense * level.mask.tensor())
    own, _ = taken(f, Place(level.run, 12))
    start, _ = taken(f, Place(run.branch("spawn-l2-r0-k12-c1"), 12))
    assert torch.equal(start, own)
    ends, _ = branches.ends(run, f, ["spawn-l2-r0-k3-c0", "spawn-l2-r0-k3-c1"])
    assert not ends[:, ~level.mask.tensor()].any()
    at = {name: np.array(column["array"]) for name, column in found["columns"].items()}
    row = int(np.flatnonzero((at["level"] == 2) & (at["step"] == 3))[0])
    begun = level.mask.apply(taken(f, Place(run.level(0), 3))[0])
    ways = [float((end - begun).norm()) for end in ends]
    assert at["travelled"][row] == pytest.approx(np.mean(ways), rel=1e-6)
    assert sorted(set(at["density"])) == pytest.approx(sorted([1.0, level.facts["density"]]))
    assert spawned(capsys, out, "--levels", "0,2", "--at", "3,6,12", "--points", 5) == found
    for more, words_ in (
        (("--at", "7"), "7"),  # not recorded
        (("--at", "30"), "0 to 29"),
        (("--levels", "3"), "levels 0 to 2"),
        (("--lr", "0.1"), "--lr is of a task"),
        (("--width", "2"), "--width is of a task"),
        (("--replicates", "2"), "--replicates is of a task"),
    ):
        assert main(["spawn", str(out), *more]) == 2
        assert words_ in capsys.readouterr().err


def test_command_refuses_what_makes_no_sense(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (("digits-mlp",), "--out"),
        (("digits-mlp", "--out", "s", "--children", "1"), "two children"),
        (("digits-mlp", "--out", "s", "--replicates", "0"), "at least 1 replicate"),
        (("digits-mlp", "--out", "s", "--at", "50", "--steps", "50"), "0 to 49"),
        (("digits-mlp", "--out", "s", "--at", "-1"), "from 0 on"),
        (("digits-mlp", "--out", "s", "--at", "soon"), "separated by commas"),
        (("digits-mlp", "--out", "s", "--levels", "2"), "for a run of `landscape imp`"),
        (
            ("digits-mlp", *SMALL, "--out", str(tmp_path / "s"), "--vary", "augmentation"),
            "neither augmentation nor dropout",
        ),
    ):
        assert main(["spawn", *words]) == 2, words
        assert said in capsys.readouterr().err
