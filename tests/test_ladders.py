"""Ladders: errors, gaps and verdicts against a plain count over rows, and against tables of the chi-square distribution."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from landscape import pruning, tasks
from landscape.analysis.ladders import Ladder, ladder, matching, noise, spread
from landscape.analysis.styles import rendered
from landscape.masks import Mask
from landscape.objectives import Objective, Rows
from landscape.results import Result

REGRESSION = """
import torch
from torch import nn

def make():
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 1)), "mse", ((x[:40], x[:40, :1]), (x[40:], x[40:, :1]))
"""
SUBTRACTING = """
import torch
from torch import nn
from torch.nn.functional import layer_norm

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x):
        return self.b(layer_norm(self.a(x), (5,)))

def make():
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    return Net(), "cross-entropy", (x, (x[:, 0] > 0).long())
"""


@pytest.fixture(scope="module")
def problem():
    task = tasks.find("digits-mlp", limit=300)
    f, w = Objective.of(task.make(0), task.loss, task.data.train, dtype=torch.float64)
    return task, f, f.on(task.data.test), w


def error_by_hand(f, w):
    model = f.module(w)
    with torch.no_grad():
        answers = model(f.rows.inputs).argmax(1)
    return (answers != f.rows.targets).double().numpy()


@pytest.fixture(scope="module")
def made(problem):
    _, f, test, w = problem
    generator = torch.Generator().manual_seed(0)
    trained = w
    for _ in range(60):
        trained = trained - 0.5 * f.gradient(trained)
    among = pruning.prunable(f)
    mask = pruning.prune(Mask.full(f.model.layout), trained.abs(), 0.5, among=among).mask
    points = [trained, mask.apply(trained)]
    others = [trained + 0.02 * torch.randn(len(w), generator=generator, dtype=w.dtype) for _ in range(3)]
    facts = [
        {"survivors": among.size, "rate": 0.0, "threshold": None},
        {"survivors": (mask & among).size, "rate": 0.5, "threshold": 0.1},
    ]
    found = ladder(
        f, test, points, [{}, {}], [Mask.full(f.model.layout), mask], facts,
        among=among, replicates=[(one, {}) for one in others], ablations={"shuffled": {1: (others[0], {})}}, fixed_rate=0.5,
    )  # fmt: skip
    return found, points, others, among, mask


def test_errors_gaps_and_their_standard_error_are_those_of_a_count(problem, made):
    _, f, test, _ = problem
    found, points, others, _, _ = made
    dense, sparse = (error_by_hand(test, point) for point in points)
    np.testing.assert_allclose(found.test_error, [dense.mean(), sparse.mean()], atol=1e-12)
    np.testing.assert_allclose(found.gap[1], (sparse - dense).mean(), atol=1e-12)
    np.testing.assert_allclose(found.gap_error[1], (sparse - dense).std(ddof=1) / math.sqrt(len(dense)), rtol=1e-12)
    errors = [dense.mean(), *(error_by_hand(test, one).mean() for one in others)]
    np.testing.assert_allclose(found.replicates, errors[1:], atol=1e-12)
    assert found.eps == pytest.approx(np.std(errors, ddof=1), rel=1e-12)
    np.testing.assert_allclose(found.ablations["shuffled"], [math.nan, errors[1]], atol=1e-12)
    np.testing.assert_allclose(found.train_loss, [float(f.value(point).loss) for point in points], rtol=1e-12)


def test_counts_by_layer_sum_to_the_survivors(made):
    found, _, _, among, mask = made
    sizes = {name: of for name, (of, _) in among.counts().items() if of}
    assert sum(round(kept[1] * sizes[name]) for name, kept in found.layers.items()) == (mask & among).size
    assert found.survivors.tolist() == [among.size, among.size - -(-among.size // 2)]
    np.testing.assert_allclose(found.expected, [among.size, among.size / 2])
    assert found.effective[0] == among.size and 0 < found.effective[1] <= found.survivors[1]


def test_the_interval_of_a_standard_deviation():
    """n = 5, s = 1: sqrt(4 / 11.143) and sqrt(4 / 0.4844), the 2.5% points of chi-square with 4 degrees of freedom as printed in tables."""
    values = np.array([-1.0, 1.0, 0.0, 1.0, -1.0])
    values = values / values.std(ddof=1)
    eps, (low, high) = spread(list(values))
    assert eps == pytest.approx(1.0)
    assert low == pytest.approx(math.sqrt(4 / 11.143), abs=1e-4) and high == pytest.approx(
        math.sqrt(4 / 0.4844), abs=1e-3
    )
    assert math.isnan(spread([0.1])[0])


@pytest.mark.parametrize(
    ("gap", "error", "verdict"),
    [
        (-0.02, 0.001, "yes"),
        (0.0, 0.001, "yes"),
        (0.009, 0.001, "undecided"),
        (0.05, 0.001, "no"),
        (0.05, 0.02, "undecided"),
    ],
)
def test_matching_is_said_only_beyond_both_uncertainties(gap, error, verdict):
    assert matching(gap, error, 0.01, [0.005, 0.03]) == verdict


def test_matching_is_unknown_without_replicates(problem, made):
    _, f, test, _ = problem
    _, points, _, among, mask = made
    facts = [{"survivors": n, "rate": 0.0, "threshold": None} for n in (among.size, (mask & among).size)]
    found = ladder(f, test, points, [{}, {}], [Mask.full(f.model.layout), mask], facts, among=among)
    assert found.matching == ["yes", "unknown"] and math.isnan(found.eps) and found.sparsest is None
    assert any("No dense replicates" in warning for warning in found.warnings) and "unknown" in found.summary()


def test_dense_trainings_of_one_start_are_told(problem, made):
    _, f, test, _ = problem
    _, points, _, among, mask = made
    facts = [{"survivors": n, "rate": 0.0, "threshold": None} for n in (among.size, (mask & among).size)]
    masks = [Mask.full(f.model.layout), mask]
    one, other = (ladder(f, test, points, [{}, {}], masks, facts, among=among, replicates=[(points[0], {})], one_start=same) for same in (True, False))  # fmt: skip
    assert [any("start from the same weights" in words for words in found.warnings) for found in (one, other)] == [True, False]  # fmt: skip


def test_a_level_at_chance_is_said(problem, made):
    _, f, test, w = problem
    _, points, _, among, mask = made
    facts = [{"survivors": among.size, "rate": 0.0, "threshold": None}] * 2
    found = ladder(
        f, test, [points[0], torch.zeros_like(w)], [{}, {}], [Mask.full(f.model.layout), mask], facts, among=among
    )
    assert any("At chance: the test error of level 1" in warning for warning in found.warnings)


def test_the_answer_is_read_back_equal_and_drawn(made):
    found = made[0]
    back = Result.from_json(found.to_json())
    assert isinstance(back, Ladder) and back.to_json() == found.to_json()
    assert rendered(back, "svg").startswith(b"<?xml") and back.figure().data
    rows = back.table()
    assert len(rows) == 3 and all(len(row) == len(rows[0]) for row in rows)
    assert "eps" in back.summary() and "Grey band" in back.caption()
    assert dataclasses.replace(back, replicates=np.array([]), eps=math.nan).caption().count("not decided") == 1


def test_a_regression_is_judged_by_its_loss(tmp_path):
    (tmp_path / "problem.py").write_text(REGRESSION)
    task = tasks.find(f"{tmp_path / 'problem.py'}:make")
    f, w = Objective.of(task.make(0), task.loss, task.data.train, dtype=torch.float64)
    test = f.on(task.data.test)
    among, full = pruning.prunable(f), Mask.full(f.model.layout)
    others = [(w + 0.01 * k, {}) for k in (1, 2, 3)]
    facts = [{"survivors": among.size, "rate": 0.0, "threshold": None}] * 2
    beside = {"shuffled": {1: others[2]}, "random": {}}
    found = ladder(
        f, test, [w, w + 0.02], [{}, {}], [full, full], facts, among=among, replicates=others, ablations=beside
    )
    losses = [float(test.value(point).loss) for point in (w, *(one for one, _ in others))]
    assert found.eps == pytest.approx(np.std(losses, ddof=1), rel=1e-10)
    assert found.gap[1] == pytest.approx(losses[2] - losses[0], rel=1e-10)
    assert "nan" not in found.summary() + found.caption() and "test loss" in found.table()[0]
    assert found.matching[1] != "unknown" and not any("At chance" in warning for warning in found.warnings)
    with torch.no_grad():
        squares = [(f.module(point)(test.rows.inputs) - test.rows.targets)[:, 0] ** 2 for point in (w, w + 0.02)]
    assert found.gap_error[1] == pytest.approx(float((squares[1] - squares[0]).std() / math.sqrt(20)), rel=1e-9)
    np.testing.assert_allclose(found.ablations["shuffled"], [math.nan, losses[3]], rtol=1e-10)
    assert f"{losses[3]:.4g}" in found.table()[2] and "%" not in found.table()[2][6]
    ax = drawn(found, "error")
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert "shuffled" in labels and "random" not in labels  # of that none was trained
    few = ladder(f, test, [w, w + 0.02], [{}, {}], [full, full], facts, among=among, replicates=others[:1])
    assert not any("pp" in warning or "nan" in warning for warning in few.warnings) and len(few.warnings) == 1
    # a dense training whose loss is not finite, and answers of before this was judged
    lost = dataclasses.replace(found, eps=math.nan, eps_interval=[math.nan] * 2, matching=["yes", "unknown"])
    assert "matching unknown" in lost.summary() and "nan" not in lost.summary() + lost.caption()
    names = [text.get_text() for text in drawn(lost, "error").get_legend().get_texts()]
    assert "matches" not in names and "dense ± eps" not in names
    assert rendered(lost, "svg") and lost.figure().data


def test_train_rows_that_stand_in_for_test_rows_are_told(problem, made):
    _, f, _, _ = problem
    _, points, _, among, mask = made
    facts = [{"survivors": n, "rate": 0.0, "threshold": None} for n in (among.size, (mask & among).size)]
    found = ladder(f, f.on(f.rows), points, [{}, {}], [Mask.full(f.model.layout), mask], facts, among=among)
    assert any("measured on the train rows" in warning for warning in found.warnings)
    part = ladder(
        f.on(f.rows.take(slice(100))), f, points, [{}, {}], [Mask.full(f.model.layout), mask], facts, among=among
    )
    own = ladder(f, f.on(f.rows.take(slice(1, None))), points, [{}, {}], [Mask.full(f.model.layout), mask], facts, among=among)  # fmt: skip
    told = [any("measured on the train rows" in words for words in one.warnings) for one in (part, own)]
    assert told == [True, False]  # the other rows overlap, but none stands at its place


def test_paths_through_layers_that_cannot_be_followed_are_not_counted(tmp_path):
    """A norm called as a function takes the mean of a signal of ones away, and with it every path."""
    (tmp_path / "problem.py").write_text(SUBTRACTING)
    task = tasks.find(f"{tmp_path / 'problem.py'}:make")
    f, w = Objective.of(task.make(0), task.loss, task.data.train, dtype=torch.float64)
    among, full = pruning.prunable(f), Mask.full(f.model.layout)
    facts = [{"survivors": among.size, "rate": 0.0, "threshold": None}]
    found = ladder(f, f.on(task.data.test), [w], [{}], [full], facts, among=among)
    assert np.isnan(found.effective).all() and found.table()[1][3] == "-"


def drawn(found, panel):
    ax = Figure().subplots()
    found.plot(ax, panel)
    return ax


def alone(f, test, points, *, replicates=()):
    """A ladder whose levels are all dense."""
    among, full = pruning.prunable(f), Mask.full(f.model.layout)
    facts = [{"survivors": among.size, "rate": 0.0, "threshold": None}] * len(points)
    return ladder(f, test, points, [{}] * len(points), [full] * len(points), facts, among=among, replicates=replicates)


class Words(nn.Module):
    """Of each of T places (N, T) one of three words (N, 3, T)."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 3, bias=False)

    def forward(self, x):
        return self.a(nn.functional.one_hot(x, 3).to(self.a.weight)).transpose(1, 2)


def test_chance_of_targets_of_more_axes_is_that_of_their_entries():
    """Of 40 x 5 words 100, 60, 40 are of each kind: always the commonest is wrong of half. Of 30 x 4 labels a quarter is 1."""
    words = torch.arange(200).reshape(40, 5) % 10
    words = torch.where(words < 5, 0, torch.where(words < 8, 1, 2))
    f, _ = Objective.of(Words(), "cross-entropy", Rows(words, words), dtype=torch.float64)
    right, blind = 9 * torch.eye(3, dtype=torch.float64).flatten(), torch.tensor([9.0, 9, 9] + 6 * [0], dtype=torch.float64)  # fmt: skip
    found = alone(f, f, [right, blind])
    assert found.test_error.tolist() == [0.0, 0.5]
    assert [words for words in found.warnings if words.startswith("At chance")] == [
        "At chance: the test error of level 1 is that of guessing (50.0%). A barrier between such networks shows nothing."
    ]
    labels = torch.eye(4, dtype=torch.float64)[torch.arange(30) % 4]
    f, _ = Objective.of(nn.Linear(4, 4, bias=False), nn.BCEWithLogitsLoss(), Rows(labels, labels), dtype=torch.float64)
    right = (18 * torch.eye(4, dtype=torch.float64) - 9).flatten()
    found = alone(f, f, [right, -torch.ones(16, dtype=torch.float64)])
    assert found.test_error.tolist() == [0.0, 0.25]
    assert [words.split(". ")[0] for words in found.warnings if words.startswith("At chance")] == [
        "At chance: the test error of level 1 is that of guessing (25.0%)"
    ]


def test_weights_on_a_path_are_those_of_boolean_algebra(problem):
    """A weight from i to j of a layer is on a path where something reaches i from the inputs and the outputs are reached from j: products of 0-1 matrices."""
    _, f, test, w = problem
    among = pruning.prunable(f)
    masks = [pruning.shuffled(pruning.prune(Mask.full(f.model.layout), w.abs(), 0.97, among=among).mask, among, seed, "global") for seed in range(2)]  # fmt: skip
    counts = []
    for mask in masks:
        layers = [mask.tensors()[name].astype(bool) for name in pruning.layers(f)]
        reached, reaching = [np.ones(layers[0].shape[1], bool)], [np.ones(layers[-1].shape[0], bool)]
        for kept in layers:
            reached.append((kept & reached[-1]).any(1))
        for kept in reversed(layers):
            reaching.insert(0, (kept.T & reaching[0]).any(1))
        counts.append(sum(int((kept & reached[i] & reaching[i + 1][:, None]).sum()) for i, kept in enumerate(layers)))
    survivors = [(mask & among).size for mask in masks]
    assert all(0 < count < kept for count, kept in zip(counts, survivors, strict=True))  # some are on none
    facts = [{"survivors": kept, "rate": 0.9, "threshold": None} for kept in survivors]
    found = ladder(f, test, [w, w], [{}, {}], masks, facts, among=among)
    assert found.effective.tolist() == counts


def test_equal_errors_of_few_rows_do_not_make_eps_surely_zero(problem):
    """Rows are classes, so that all dense networks are right, or wrong on the same 6 of 40: sqrt(0.15 * 0.85 / 40) = 0.05646."""
    errors = np.repeat([1.0, 0.0], [6, 34])
    assert noise(errors) == pytest.approx(0.05646, abs=1e-5)
    assert noise(np.zeros(40)) == 1 / 40
    assert spread([0.15] * 3, 0.05646) == (pytest.approx(0, abs=1e-15), [pytest.approx(0, abs=1e-15), 0.05646])
    assert spread([0.1, 0.2], 0.01) == spread([0.1, 0.2])  # wide enough by itself
    words = torch.arange(40).reshape(40, 1) % 3
    f, _ = Objective.of(Words(), "cross-entropy", Rows(words, words), dtype=torch.float64)
    dense = 9 * torch.eye(3, dtype=torch.float64).flatten()
    found = alone(f, f, [dense, dense], replicates=[(2 * dense, {}), (3 * dense, {})])
    assert (found.eps, found.eps_interval) == (0.0, [0.0, 1 / 40])
    assert "0.00 pp to 2.50 pp, whose upper end" in found.caption()
    assert "standard error of one dense error over 40 rows" in found.caption()
    for panel in found.panels():
        drawn(found, panel)


def test_one_test_row_leaves_the_gap_undecided(problem):
    _, f, _, w = problem
    found = alone(f, f.on(f.rows.take(slice(7, 8))), [w, w + 0.01], replicates=[(w + 0.02, {}), (w - 0.02, {})])
    assert np.isnan(found.gap_error).all() and found.matching[1] == "undecided"
    assert rendered(found, "svg")


@pytest.mark.parametrize("densities", [[1.0], [1.0, 0.8, 0.64], [1.0, 0.3, 0.09, 0.027, 0.0081]])
def test_ticks_are_plain_numbers_of_the_levels(made, densities):
    found = made[0]
    count = len(densities)
    cut = {
        name: np.resize(getattr(found, name), count)
        for name in ("levels", "survivors", "test_error", "test_loss", "gap", "gap_error", "rates", "thresholds", "effective", "train_loss")
    }  # fmt: skip
    few = dataclasses.replace(
        found, density=np.array(densities), matching=["yes"] * count, ablations={}, layers={"a": np.array(densities), "b": np.sqrt(densities)}, **cut
    )  # fmt: skip
    for panel in few.panels():
        ax = drawn(few, panel)
        ax.figure.canvas.draw()
        texts = [tick.get_text() for axis in (ax.xaxis, ax.yaxis) for tick in (*axis.get_majorticklabels(), *axis.get_minorticklabels())]  # fmt: skip
        assert not any("$" in text for text in texts)
        across = [text.get_text() for text in ax.get_xticklabels()]
        assert across == [f"{100 * density:.3g}" for density in densities]
    if count == 1:
        assert "the dense network alone" in few.summary() and "at the last" not in few.summary()


def test_the_caption_tells_the_seed(made):
    found = made[0]
    assert "Seed" not in found.caption()
    assert "Seed 3." in dataclasses.replace(found, provenance={**found.provenance, "seed": 3}).caption()
