"""Condensation on planted directions, mergers of networks that were split, and both by their commands; the pictures from the stored numbers alone."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from problems import F64, draw, filled
from safetensors import safe_open
from torch import Tensor, nn

from landscape import depth, embeddings, units
from landscape.analysis.condensations import DRAWN, Condensation, Merger, condensation, merger
from landscape.analysis.stability import Station
from landscape.cli import condensing
from landscape.cli.app import main
from landscape.cli.condensing import Likeness
from landscape.descent import Recipe
from landscape.errors import UsageError
from landscape.objectives import Objective, Rows
from landscape.results import Result

M = 12


def network(width: int = M, inputs: int = 1, outputs: int = 2) -> tuple[Objective, Tensor, tuple[units.Layer, ...]]:
    module = filled(nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, outputs)))
    f, z = Objective.of(module, "mse", Rows(draw(20, inputs), draw(20, outputs, seed=1)), dtype=F64)
    return f, z, units.layers(module, f.rows.inputs[:2])


def pointing(z: Tensor, angles: Tensor) -> Tensor:
    """The point with input weights (w, b) = (cos, sin) of these angles, and output weights 1."""
    return torch.cat([angles.cos(), angles.sin(), torch.ones(2 * len(angles), dtype=F64), z[-2:]])


def course(z: Tensor) -> list[Station]:
    scattered = torch.linspace(0, 2 * math.pi, M + 1, dtype=F64)[:-1]
    two = torch.tensor([0.2, 2.5, 2.5], dtype=F64).repeat(M // 3)
    return [Station(step, pointing(z, angles)) for step, angles in ((0, scattered), (10, two), (20, two + 0.2 * draw(M)), (30, scattered))]  # fmt: skip


def test_directions_are_counted_along_the_steps():
    f, z, layers = network()
    found = condensation(f, course(z), layers)
    # 30 degrees apart: no pair has a cosine of 0.9; two directions; scattered again
    assert found.effective[[0, 1, 3], 0].tolist() == [M, 2, M]
    assert found.steps.tolist() == [0, 10, 20, 30]
    assert found.losses.tolist() == pytest.approx([float(f(station.point)) for station in course(z)], abs=1e-12)
    assert found.drawn.tolist() == [0, 10, 30]  # the first, that with the fewest, the last
    assert found.shown == "0"
    assert np.isnan(found.multiplicities).all()  # relu is not smooth at 0
    # two inputs with the bias: all directions lie in a plane
    assert found.planar == pytest.approx(np.ones(3), abs=1e-12)
    truth = np.where(np.arange(M) % 3 == 0, 0.2, 2.5)
    # up to one rotation or reflection of the plane
    turned, meant = (np.cos(angles[:, None] - angles) for angles in (found.angles[1], truth))
    assert np.allclose(turned, meant, rtol=0, atol=1e-12)
    # spectral order: the two directions stand side by side
    order = found.order[1]
    assert sorted(order.tolist()) == list(range(M))
    assert int((np.diff((order % 3 == 0).astype(int)) != 0).sum()) == 1
    same = (order[:, None] % 3 == 0) == (order % 3 == 0)
    assert (found.cosines[1][same] == 100).all()
    assert (found.cosines[1][~same] == round(100 * math.cos(2.3))).all()
    assert "2 at 10" in found.summary()


def test_a_condensation_survives_the_round_trip_and_is_drawn():
    f, z, layers = network()
    for stations, drawn in ((course(z), ()), (course(z)[1:2], ()), (course(z), (10,))):
        found = condensation(f, stations, layers, drawn=drawn, provenance={"task": "t"})
        again = Result.from_json(found.to_json())
        assert isinstance(again, Condensation)
        assert again.to_json() == found.to_json()
        for panel in again.panels():
            again.plot(Figure().subplots(), panel)
        assert len(again.figure().data) == 1
        assert len({len(row) for row in again.table()}) == 1
        assert "0.9" in again.caption()
    with pytest.raises(UsageError, match="panel"):
        again.plot(Figure().subplots(), "other")


def test_a_wide_layer_is_drawn_in_part():
    f, z, layers = network(width=2 * DRAWN)
    found = condensation(f, [Station(0, z)], layers)
    assert found.order.shape == (1, DRAWN)
    assert found.amplitudes.shape == (1, 2 * DRAWN)
    assert found.amplitudes[0, found.order[0]].min() >= np.sort(found.amplitudes[0])[DRAWN]
    assert f"the {DRAWN} of the largest amplitude" in found.caption()


def test_what_is_not_there_cannot_be_measured():
    f, z, layers = network()
    with pytest.raises(UsageError, match="hidden layer"):
        condensation(f, course(z), layers, shown="fc")
    with pytest.raises(UsageError, match="step 11"):
        condensation(f, course(z), layers, drawn=(11,))
    with pytest.raises(UsageError, match="nothing to condense"):
        condensation(f, course(z), ())
    with pytest.raises(UsageError, match="no point"):
        condensation(f, [], layers)


# -- mergers ----------------------------------------------------------------------------------------------------------


def classes(n: int = 60) -> tuple[Objective, Objective, Tensor]:
    """A classifier of three classes, widened by two copies, and its test rows."""
    module = filled(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))
    x = draw(2 * n, 4)
    y = x[:, :3].argmax(1)
    f, z = Objective.of(module, "cross-entropy", Rows(x[:n], y[:n]), dtype=F64)
    layer = units.layers(module, x[:2])[0]
    grown = embeddings.split(module, layer, 2, 0.5)
    wide, w = grown.wide_objective(f), grown.lift(z)
    return wide, wide.on(Rows(x[n:], y[n:])), w


def of(f: Objective, w: Tensor) -> tuple[units.Layer, ...]:
    return units.layers(f.module(w), f.rows.inputs[:2])


def test_what_was_split_is_merged_without_a_trace():
    f, test, w = classes()
    made = merger(f, test, w, of(f, w), similarity=1.0, share=0.0)
    found = made.answer
    assert (found.before.tolist(), found.after.tolist()) == ([6], [5])
    assert found.parameters == [6 * 5 + 3 * 7, 5 * 5 + 3 * 6]
    assert found.states == ["before", "merged"]
    assert found.train_loss[1] == pytest.approx(found.train_loss[0], abs=1e-14)
    assert found.test_accuracy[0] == pytest.approx(float(test.value(w).accuracy), abs=1e-12)
    assert found.agreement.tolist() == [1, 1]
    assert (found.confusion.sum(), np.trace(found.confusion)) == (60, 60)
    assert found.difference < 1e-13
    assert found.bound == 0
    assert made.widths == {"0": 5}
    assert made.f.dim == found.parameters[1]


def test_a_coarse_merger_is_counted_by_hand_and_trained_back():
    f, test, w = classes()
    recipe = Recipe(steps=30, lr=0.5, momentum=0.0)
    made = merger(f, test, w, of(f, w), similarity=0.2, share=0.3, recipe=recipe)
    found = made.answer
    assert found.after[0] < 5
    assert found.states == ["before", "merged", "retrained"]
    before, after = test.outputs(w).argmax(1).numpy(), made.f.on(test.rows).outputs(made.point).argmax(1).numpy()
    assert found.agreement[2] == pytest.approx(np.mean(before == after), abs=1e-12)
    truth = np.zeros((3, 3), dtype=int)
    np.add.at(truth, (before, after), 1)
    assert (found.confusion == truth).all()
    assert 0 < found.difference <= found.bound
    assert found.retrained_steps.tolist() == list(range(1, 31))
    assert found.retrained_losses[-1] == found.train_loss[2] < found.train_loss[1]
    assert found.sizes["0"].sum() == 6 - found.negligible[0]
    again = Result.from_json(found.to_json())
    assert isinstance(again, Merger)
    assert again.to_json() == found.to_json()
    assert again.panels() == ("groups", "losses", "answers")
    for panel in again.panels():
        again.plot(Figure().subplots(), panel)
    assert len(again.figure().data) == 2
    assert len({len(row) for row in again.table()}) == 1
    below = [step for step, loss in zip(found.retrained_steps, found.retrained_losses, strict=True) if loss <= found.train_loss[0]]  # fmt: skip
    assert found.back == (below[0] if below else None)


def test_one_hot_targets_are_classes_and_others_are_none():
    f, test, w = classes()
    hot = [Rows(g.rows.inputs, nn.functional.one_hot(g.rows.targets, 3).double()) for g in (f, test)]
    g, _ = Objective.of(f.module(w), "mse", hot[0], dtype=F64)
    found = merger(g, g.on(hot[1]), w, of(f, w), similarity=1.0).answer
    assert found.test_accuracy[0] == pytest.approx(float(test.value(w).accuracy), abs=1e-12)
    real = [Rows(rows.inputs, rows.targets + 0.1) for rows in hot]
    found = merger(g.on(real[0]), g.on(real[1]), w, of(f, w), similarity=1.0).answer
    assert np.isnan(found.agreement).all()
    assert found.panels() == ("groups", "losses")
    assert "answers" not in found.summary()


def test_a_linearised_layer_goes_too():
    f, test, w = classes()
    deep = depth.lift(f, w, "2")
    layers = of(deep.f, deep.point)
    made = merger(deep.f, deep.f.on(test.rows), deep.point, layers, similarity=1.0, share=0.0, linear=1 - 1e-9)
    assert made.answer.linear == ["2.inserted"]
    assert made.answer.linear_errors[0] < 1e-12
    assert made.widths == {"0": 5, "2.inserted": 0}
    assert made.answer.parameters[1] == 5 * 5 + 3 * 6
    # on the training rows nothing moves
    assert made.answer.train_loss[1] == pytest.approx(made.answer.train_loss[0], abs=1e-12)
    assert "affine" in made.answer.warnings[0]
    assert math.isinf(made.answer.bound)


# -- commands ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "a"
    assert main(["train", "digits-mlp", "--activation", "tanh", "--steps", "20", "--record-every", "10", "--out", str(folder)]) == 0  # fmt: skip
    return folder


def test_condensation_by_its_command(run, capsys):
    condensing.condensation(str(run), at="init,20", layer="linear2")
    told = capsys.readouterr().out
    assert "digits-mlp" in told
    answer = Result.from_json((run / "results" / "condensation.json").read_text())
    assert isinstance(answer, Condensation)
    assert answer.steps.tolist() == answer.drawn.tolist() == [0, 20]
    assert answer.sizes.tolist() == [64, 32]
    assert answer.multiplicities.tolist() == [1, 1]
    assert answer.cosines.shape == (2, 32, 32)
    condensing.condensation(str(run), every=2)
    assert "0.9" in capsys.readouterr().out
    for wrong, says in (
        ({"at": "5"}, "step"), ({"layer": "fc"}, "fc"), ({"at": "init", "every": 2}, "--every"),
        ({"likeness": Likeness(similarity=2.0)}, "--similarity"), ({"likeness": Likeness(negligible=1.0)}, "--negligible"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=says):
            condensing.condensation(str(run), **wrong)
    with pytest.raises(UsageError, match="--at"):
        condensing.condensation(f"{run}@init")


def test_reduce_by_its_command(run, capsys, tmp_path):
    saved = tmp_path / "small.safetensors"
    likeness = Likeness(similarity=0.3)
    condensing.reduce(str(run), retrain=5, likeness=likeness, save=saved)
    assert "answers of 360 test rows that stay" in capsys.readouterr().out
    answer = Result.from_json((run / "results" / "merger.json").read_text())
    assert isinstance(answer, Merger)
    assert answer.states == ["before", "merged", "retrained"]
    with safe_open(saved, framework="pt") as file:
        widths = json.loads(file.metadata()["widths"])
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (not a dict)
    assert widths == dict(zip(answer.layers, answer.after.tolist(), strict=True))
    assert shapes["linear2.weight"] == [widths["linear2"], widths["linear1"]]
    assert sum(math.prod(shape) for shape in shapes.values()) == answer.parameters[1]
    # answered before: the network is made again, the same
    again = tmp_path / "again.safetensors"
    condensing.reduce(str(run), retrain=5, likeness=likeness, save=again)
    assert "answered before" in capsys.readouterr().err
    with safe_open(saved, framework="pt") as one, safe_open(again, framework="pt") as other:
        assert all(torch.equal(one.get_tensor(name), other.get_tensor(name)) for name in one.keys())  # noqa: SIM118
    for wrong, says in (
        ({"save": saved}, "exists"), ({"lr": 0.1}, "--retrain"), ({"retrain": -1}, "--retrain"), ({"linear": 2.0}, "--linear"), ({"layer": "output"}, "output"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=says):
            condensing.reduce(str(run), **wrong)
