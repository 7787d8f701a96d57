"""Ladders: errors, gaps and verdicts against a plain count over rows, and against tables of the chi-square distribution."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from landscape import pruning, tasks
from landscape.analysis.ladders import Ladder, ladder, matching, spread
from landscape.masks import Mask
from landscape.objectives import Objective
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


def test_a_level_at_chance_is_said(problem, made):
    _, f, test, w = problem
    _, points, _, among, mask = made
    facts = [{"survivors": among.size, "rate": 0.0, "threshold": None}] * 2
    found = ladder(
        f, test, [points[0], torch.zeros_like(w)], [{}, {}], [Mask.full(f.model.layout), mask], facts, among=among
    )
    assert any("At chance: the test error of level 1" in warning for warning in found.warnings)


def test_the_answer_is_read_back_equal_and_drawn(made):
    from landscape.analysis.styles import rendered

    found = made[0]
    back = Result.from_json(found.to_json())
    assert isinstance(back, Ladder) and back.to_json() == found.to_json()
    assert rendered(back, "svg").startswith(b"<?xml") and back.figure().data
    rows = back.table()
    assert len(rows) == 3 and all(len(row) == len(rows[0]) for row in rows)
    assert "eps" in back.summary() and "Grey band" in back.caption()
    assert dataclasses.replace(back, replicates=np.array([])).caption().count("not decided") == 1


def test_a_regression_is_judged_by_its_loss(tmp_path):
    (tmp_path / "problem.py").write_text(REGRESSION)
    task = tasks.find(f"{tmp_path / 'problem.py'}:make")
    f, w = Objective.of(task.make(0), task.loss, task.data.train, dtype=torch.float64)
    test = f.on(task.data.test)
    among, full = pruning.prunable(f), Mask.full(f.model.layout)
    others = [(w + 0.01 * k, {}) for k in (1, 2, 3)]
    facts = [{"survivors": among.size, "rate": 0.0, "threshold": None}] * 2
    found = ladder(f, test, [w, w + 0.02], [{}, {}], [full, full], facts, among=among, replicates=others)
    losses = [float(test.value(point).loss) for point in (w, *(one for one, _ in others))]
    assert found.eps == pytest.approx(np.std(losses, ddof=1), rel=1e-10)
    assert found.gap[1] == pytest.approx(losses[2] - losses[0], rel=1e-10)
    assert "nan" not in found.summary() + found.caption() and "test loss" in found.table()[0]
    assert found.matching[1] != "unknown" and not any("At chance" in warning for warning in found.warnings)


def test_train_rows_that_stand_in_for_test_rows_are_told(problem, made):
    _, f, _, _ = problem
    _, points, _, among, mask = made
    facts = [{"survivors": n, "rate": 0.0, "threshold": None} for n in (among.size, (mask & among).size)]
    found = ladder(f, f.on(f.rows), points, [{}, {}], [Mask.full(f.model.layout), mask], facts, among=among)
    assert any("measured on the train rows" in warning for warning in found.warnings)


def test_paths_through_layers_that_cannot_be_followed_are_not_counted(tmp_path):
    """A norm called as a function takes the mean of a signal of ones away, and with it every path."""
    (tmp_path / "problem.py").write_text(SUBTRACTING)
    task = tasks.find(f"{tmp_path / 'problem.py'}:make")
    f, w = Objective.of(task.make(0), task.loss, task.data.train, dtype=torch.float64)
    among, full = pruning.prunable(f), Mask.full(f.model.layout)
    facts = [{"survivors": among.size, "rate": 0.0, "threshold": None}]
    found = ladder(f, f.on(task.data.test), [w], [{}], [full], facts, among=among)
    assert np.isnan(found.effective).all() and found.table()[1][3] == "-"
