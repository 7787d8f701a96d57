"""Chains of levels on problems whose barriers, blocks and triples are known in closed form."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from landscape.analysis import styles
from landscape.analysis.chains import Chain, chain
from landscape.cli.app import main
from landscape.errors import UsageError
from landscape.masks import Mask
from landscape.objectives import Objective, Rows
from landscape.results import Result
from landscape.seeds import generator

F64 = torch.float64


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed, "test chains"), dtype=F64)


def same(one, other):
    """Equality of results, field by field, NaN equal to NaN."""
    for field in dataclasses.fields(one):
        np.testing.assert_equal(getattr(one, field.name), getattr(other, field.name), field.name)


class Walls(nn.Module):
    """A row (4,) is answered wrong where the point lies between two of its numbers along one coordinate: row = (coordinate, from, to, label)."""

    def __init__(self, dim):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(dim))

    def forward(self, x):
        along = self.w[x[:, 0].long()]
        wrong = (along > x[:, 1]) & (along < x[:, 2])
        return torch.stack([torch.zeros_like(along), (0.5 - wrong.to(along)) * (2 * x[:, 3] - 1)], 1)


def walled(*walls, dim=2, n=100):
    """The objective with, for each wall (coordinate, from, to, count), so many of the n rows wrong behind it."""
    rows = [[coordinate, low, high] for coordinate, low, high, count in walls for _ in range(count)]
    rows += [[0, 9.0, 9.0]] * (n - len(rows))
    labels = torch.arange(n) % 2
    inputs = torch.cat([torch.tensor(rows, dtype=F64), labels[:, None].to(F64)], 1)
    f, _ = Objective.of(Walls(dim), "cross-entropy", Rows(inputs, labels), dtype=F64)
    return f


# -- barriers ---------------------------------------------------------------------------------------------------------


def test_quadratic_levels_have_their_barriers_in_closed_form():
    signs, points = torch.tensor([1.0, -9.0, 4.0], dtype=F64), draw(5, 3, seed=2)
    f = Objective.from_function(lambda w: (signs * w**2).sum() / 2, 3)
    result = chain(f, f, points, pairs="all", threshold=0.5)
    bends = [[float((signs * (a - b) ** 2).sum()) for a in points] for b in points]
    expected = np.maximum(0, -np.array(bends) / 8)
    np.testing.assert_allclose(result.matrix["value"], expected, rtol=1e-12, atol=1e-13)
    np.testing.assert_array_equal(result.matrix["value"], result.matrix["value"].T)
    assert not np.diag(result.matrix["value"]).any()
    np.testing.assert_allclose(result.value("train loss"), np.diag(expected, 1), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(result.value(definition="midpoint"), -np.diag(bends, 1) / 8, rtol=1e-11)
    # of one row there is no sample: the interval is the value
    assert result.connected == ["yes" if value < 0.5 else "no" for value in np.diag(expected, 1)]
    assert result.headline == "test loss"


def test_masks_make_exact_zeros_and_name_the_steps():
    signs = torch.tensor([1.0, -9.0, 4.0, -2.0], dtype=F64)
    f = Objective.from_function(lambda w: (signs * w**2).sum() / 2, 4)
    kept = [[1, 1, 1, 1], [1, 1, 1, 0], [0, 1, 1, 0]]
    masks = [Mask.of(f.model.layout, {"w": own}) for own in kept]
    solutions, start = draw(3, 4, seed=3), draw(4, seed=4)
    rewound = torch.stack([start * torch.tensor(own) for own in kept])
    result = chain(f, f, solutions, None, masks, rewound=rewound)
    pruned = (solutions * torch.tensor(kept)).numpy()
    np.testing.assert_allclose(result.values, (pruned**2 @ signs.numpy()) / 2, rtol=1e-12)
    # what the next mask takes away: coordinate 3, then 0
    np.testing.assert_allclose(result.rewound_step, start.abs()[[3, 0]], rtol=1e-14)
    np.testing.assert_allclose(result.rewound_norm, rewound.norm(dim=1), rtol=1e-14)
    np.testing.assert_allclose(result.projected, np.abs(pruned[[0, 1], [3, 0]]) / np.linalg.norm(pruned[:2], axis=1))
    np.testing.assert_allclose(result.rewound_loss["stored"], (rewound**2 @ signs) / 2, rtol=1e-12)
    assert list(result.rewound_loss) == ["stored"]
    np.testing.assert_allclose(result.density, [1, 0.75, 0.5])
    # over the weights that both masks keep, of the second pair coordinates 1 and 2
    u, v = pruned[1, 1:3], pruned[2, 1:3]
    assert result.angular[1] == pytest.approx(2 / math.pi * math.acos(u @ v / np.linalg.norm(u) / np.linalg.norm(v)))
    assert result.masked
    backwards = chain(f, f, solutions, None, masks[::-1])
    assert not backwards.masked
    assert any("not nested" in warning for warning in backwards.warnings)


# -- matching ---------------------------------------------------------------------------------------------------------


def test_matching_is_decided_by_the_gap_and_by_eps():
    # along coordinate 0: 0 wrong rows of 2,000 at level 0, 4 at level 1, 200 at level 2, and none behind it
    f = walled((0, 0.5, 1.5, 4), (0, 1.5, 2.5, 200), n=2000)
    solutions = torch.tensor([[0.0, 0], [1, 0], [2, 0], [3, 0]], dtype=F64)
    dense = [0.0, 0.02, 0.01, 0.03, 0.015]
    result = chain(f, f, solutions, dense=dense)
    np.testing.assert_allclose(result.values, [0, 0.002, 0.1, 0])
    np.testing.assert_allclose(result.gap_error, [math.sqrt(p * (1 - p) / 2000) for p in (0, 0.002, 0.1, 0)])
    deviation = np.std(dense, ddof=1)
    assert result.eps == pytest.approx(deviation, rel=1e-12)
    # chi-squared with 4 degrees of freedom: 0.4844 and 11.1433 at 2.5% and 97.5% (tables)
    np.testing.assert_allclose(result.eps_interval, [deviation * math.sqrt(4 / q) for q in (11.1433, 0.4844)], rtol=1e-4)  # fmt: skip
    # eps 1.1 points (0.67 to 3.2): 0.2 is surely below, 10 surely above
    assert result.matching == ["yes", "yes", "no", "yes"]
    unsure = chain(f, f, solutions, dense=dense[:2])  # of two: from 0.6 to 45 points
    assert unsure.matching == ["yes", "yes", "undecided", "yes"]
    alone = chain(f, f, solutions, dense=dense[:1])
    assert set(alone.matching) == {"undecided"}
    assert alone.estimated.sum() == 0
    assert any("no standard deviation" in warning for warning in alone.warnings)
    assert chain(f, f, solutions, eps=0.05).matching == ["yes", "yes", "no", "yes"]


def test_the_contingency_counts_pairs_and_fisher_is_the_hypergeometric():
    # a chain of 7 levels: each step crosses a wall or none, and comes to a place where rows are wrong or none
    walls = [(0, step + 0.3, step + 0.7, 60) for step in (3, 4, 5)]
    lost = [(1, 0.5, 1.5, 60)]
    f = walled(*walls, *lost, n=400)
    second = [0, 0, 0, 0, 1, 1, 1]
    solutions = torch.tensor([[i, second[i]] for i in range(7)], dtype=F64)
    result = chain(f, f, solutions, eps=0.01)
    # steps 0, 1, 2 match and have no wall; 3, 4, 5 do not match and have one
    assert result.connected == ["yes"] * 3 + ["no"] * 3
    np.testing.assert_array_equal(result.estimated, [[3, 0], [0, 3]])
    np.testing.assert_array_equal(result.decided, [[3, 0, 0], [0, 0, 0], [0, 0, 3]])
    # of the 20 ways to choose 3 of 6, the two extreme ones
    assert result.fisher["estimated"] == pytest.approx(2 / 20)
    assert "6 of 6 pairs" in result.summary()


def test_pairs_at_chance_say_nothing():
    f = walled((0, -1, 9, 100), n=100)  # every answer wrong everywhere
    result = chain(f, f, torch.tensor([[0.0, 0], [1, 0], [2, 0]], dtype=F64), eps=0.01)
    assert result.degenerate.all()
    assert result.decided.sum() == result.estimated.sum() == 0
    assert "chance" in result.warnings[0]
    assert "DEGENERATE" in result.summary()
    assert result.connected == ["degenerate"] * 2
    assert "in 0 of 0" in result.summary()


def test_degenerate_pairs_are_in_no_block_and_no_triple():
    # behind 4.5 every answer is wrong: levels 2 and 3 know nothing; level 0 and 1 know all, without a wall between them
    f = walled((0, 4.5, 99, 200), n=200)
    result = chain(f, f, torch.tensor([[0.0, 0], [1, 0], [5, 0], [6, 0]], dtype=F64), pairs="all")
    assert result.connected == ["yes", "degenerate", "degenerate"]
    bad = np.ones((4, 4), dtype=bool)
    bad[:2, :2] = bad[[2, 3], [2, 3]] = False
    np.testing.assert_array_equal(result.matrix["degenerate"], bad)
    assert result.blocks == [[0, 1]]
    assert result.members.tolist() == [1, 1, 0, 0]
    assert not result.triples.any()
    assert "1 block of" in result.summary() and "0 triples" in result.summary() and "in 1 of 1" in result.summary()
    assert "Grey: degenerate" in result.caption()
    assert np.isnan(result._shown()).sum() == bad.sum()


def test_a_default_threshold_on_a_loss_is_warned_of():
    f = Objective.from_function(lambda w: (w**2).sum(), 2)
    points = draw(2, 2)
    assert any("units of the loss" in warning for warning in chain(f, f, points).warnings)
    assert not any("units of the loss" in warning for warning in chain(f, f, points, threshold=2.0).warnings)
    g = walled()
    assert not any("units of the loss" in warning for warning in chain(g, g, points).warnings)
    with pytest.raises(UsageError, match="two points of error"):
        chain(g, g, points, threshold=2.0)


# -- all pairs --------------------------------------------------------------------------------------------------------


def test_a_wall_parts_the_blocks():
    f = walled((0, 1.0, 1.5, 100), n=200)  # of 100 rows no pair would be surely connected
    solutions = torch.tensor([[0.9, 0], [0.8, 3], [1.6, 0], [1.7, 5]], dtype=F64)  # two on each side
    result = chain(f, f, solutions, pairs="all")
    expected = np.kron([[0, 0.5], [0.5, 0]], np.ones((2, 2)))
    np.testing.assert_array_equal(result.matrix["value"], expected)
    assert result.blocks == [[0, 1], [2, 3]]
    np.testing.assert_array_equal(result.members, [1, 1, 1, 1])
    assert not result.triples.any()


class Corner(nn.Module):
    """Half of the rows are wrong where both coordinates are above 1: what two points on the axes have between them, and neither has to the origin."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2))

    def forward(self, x):
        wrong = (self.w > 1).all() & (x[:, 0] > 0)
        return torch.stack([torch.zeros(len(x), dtype=x.dtype), (0.5 - wrong.to(x)) * (2 * x[:, 1] - 1)], 1)


def test_a_star_that_is_not_convex_has_its_triple():
    rows = Rows(
        torch.tensor([[1.0, 0], [-1.0, 0], [1, 1], [-1, 1]], dtype=F64).repeat(50, 1), torch.tensor([0, 0, 1, 1] * 50)
    )
    f, _ = Objective.of(Corner(), "cross-entropy", rows, dtype=F64)
    solutions = torch.tensor([[4.0, 0], [0, 0], [0, 4], [0, 5]], dtype=F64)
    result = chain(f, f, solutions, numbers=[0, 2, 3, 7], pairs="all")
    expected = np.zeros((4, 4))
    expected[0, 2:] = expected[2:, 0] = 0.5
    np.testing.assert_array_equal(result.matrix["value"], expected)
    assert result.blocks == [[0, 2], [2, 3, 7]]
    np.testing.assert_array_equal(result.members, [1, 3, 2, 2])
    np.testing.assert_array_equal(result.triples, [0, 2, 0, 0])
    assert {(one["centre"], one["first"], one["second"]) for one in result.clearest} == {(2, 0, 3), (2, 0, 7)}
    assert {(one["arms"], one["across"]) for one in result.clearest} == {(0.0, 0.5)}
    assert any("left out" in warning for warning in result.warnings)


def test_an_undecided_way_across_is_no_triple():
    inputs = torch.tensor([[-1.0, 0], [-1.0, 1]], dtype=F64).repeat(100, 1)
    inputs[:4, 0] = 1  # 2% of the rows, as much as the threshold
    f, _ = Objective.of(Corner(), "cross-entropy", Rows(inputs, torch.tensor([0, 1] * 100)), dtype=F64)
    result = chain(f, f, torch.tensor([[4.0, 0], [0, 0], [0, 4]], dtype=F64), pairs="all")
    assert result.connected == ["yes", "yes"]
    assert result.matrix["value"][0, 2] == pytest.approx(0.02)
    assert result.members.tolist() == [1, 2, 1]
    assert not result.triples.any()


# -- BatchNorm --------------------------------------------------------------------------------------------------------


def test_masked_rewind_points_have_statistics_of_their_own():
    module = nn.Sequential(nn.Linear(3, 6, bias=False), nn.BatchNorm1d(6, eps=1e-12), nn.Linear(6, 4))
    rows = Rows(draw(50, 3), torch.arange(50) % 4)
    f, point = Objective.of(module, "cross-entropy", rows, dtype=F64)
    halved = torch.cat([point[:18] / 2, point[18:]])
    mean, variance = (getattr(module[0].double()(rows.inputs), name)(0).detach() for name in ("mean", "var"))
    stored = {**f.buffers, "1.running_mean": mean, "1.running_var": variance}
    result = chain(f, f, torch.stack([point, halved]), [stored] * 2, rewound=torch.stack([point, halved]), rewound_buffers=[stored] * 2)  # fmt: skip
    # with statistics of its own the halved network is the same function; with the stored ones it is not
    own = result.rewound_loss["recomputed"]
    assert own[1] == pytest.approx(own[0], rel=1e-9)
    assert result.rewound_loss["stored"][0] == pytest.approx(own[0], rel=1e-9)
    assert abs(result.rewound_loss["stored"][1] - own[1]) > 1e-3
    assert result.bn == ["recompute", "average"]
    np.testing.assert_allclose(result.curves["recompute"]["test loss"], own[0], rtol=1e-9)


# -- the answer -------------------------------------------------------------------------------------------------------


def test_json_round_trip_draws_the_same():
    f = walled((0, 1.2, 1.8, 30), (0, 2.5, 3.5, 20))
    solutions = torch.tensor([[float(i), 0] for i in range(4)], dtype=F64)
    result = chain(f, f, solutions, dense=[0.0, 0.01, 0.02], pairs="all", rewound=solutions)
    back = Result.from_json(result.to_json())
    assert isinstance(back, Chain)
    same(back, result)
    assert styles.rendered(back, "svg") == styles.rendered(result, "svg")
    back.figure()
    assert result.panels() == ("path", "barriers", "matrix", "rewound")
    assert chain(f, f, solutions).panels() == ("path", "barriers")
    assert len({len(row) for row in result.table()}) == 1
    for part in ("linear baseline", "11 evenly spaced points", "100 test rows", "paired bootstrap", "2.0 pp", "Seeds"):
        assert part in result.caption()
    with pytest.raises(UsageError, match="panel"):
        result.plot(None, "paths")
    with pytest.raises(UsageError, match="policy"):
        result.value(policy="avarage")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"numbers": [0, 2, 1]}, "ascending"),
        ({"numbers": [0, 1]}, "as many"),
        ({"pairs": "any"}, "choice of pairs"),
        ({"threshold": 0.0}, "threshold"),
        ({"eps": -1.0}, "eps"),
        ({"bn": "recomptue"}, "Did you mean 'recompute'"),
    ],
)
def test_wrong_options_are_refused(options, match):
    f = Objective.from_function(lambda w: w @ w, 2)
    with pytest.raises(UsageError, match=match):
        chain(f, f, draw(3, 2), **options)
    with pytest.raises(UsageError, match="at least two"):
        chain(f, f, draw(1, 2))


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tickets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tickets") / "t"
    brief = ["--steps", "30", "--levels", "2", "--rewind", "5", "--replicates", "1", "--evaluations", "1"]
    assert main(["imp", "digits-mlp", *brief, "--out", str(folder)]) == 0
    return folder


def test_the_command_asks_all_levels_and_finds_its_answer(tickets, capsys):
    asked = ["barrier", str(tickets), "--levels", "all", "--points", "3", "--pairs", "all"]
    assert main(asked) == 0
    path = tickets / "results" / "chain.json"
    result = Result.from_json(path.read_text())
    assert result.numbers.tolist() == [0, 1, 2]
    # of 6,464 prunable weights a fifth goes, rounded up
    np.testing.assert_allclose(result.density, [1, 5171 / 6464, 4136 / 6464])
    assert len(result.dense) == 2
    capsys.readouterr()
    assert main(asked) == 0
    assert "answered before" in capsys.readouterr().err
    assert len(list(path.parent.glob("chain*"))) == 1


def test_masks_of_levels_are_those_of_their_runs(tickets):
    assert main(["barrier", f"{tickets}@level=0", f"{tickets}@level=2", "--mask", "end", "--points", "3", "--refine", "0"]) == 0  # fmt: skip
    result = Result.from_json((tickets / "level-000" / "results" / "barrier.json").read_text())
    assert result.density == pytest.approx((4136 + 106) / 6570)  # and the biases
    assert "moves the start" in " ".join(result.warnings)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["t"], "give another beside"),
        (["t", "--levels", "0-7"], "the levels 0 to 2"),
        (["t", "--levels", "1"], "at least two"),
        (["t", "--levels", "all", "--mask", "start"], "--mask"),
        (["t", "t", "--levels", "all"], "second point"),
        (["t@level=1", "t@level=2", "--pairs", "all"], "--pairs is of --levels"),
        (["t@level=1", "t@level=2", "--threshold", "-1"], "--threshold"),
    ],
)
def test_the_command_refuses_what_does_nothing(tickets, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tickets.parent)
    assert main(["barrier", *arguments]) == 2
    assert said in capsys.readouterr().err
