"""The question of splitting on points whose inertia is known, its words and pictures from the stored numbers alone, and the command from a run to an answer."""

import dataclasses
import json
import math

import numpy as np
import pytest
import safetensors.torch
import torch
from matplotlib.figure import Figure
from problems import F64, close, draw
from torch import nn

from landscape.analysis import splittings
from landscape.analysis.splittings import Splitting, plan, splitting
from landscape.cli.app import main
from landscape.cli.embedding import split
from landscape.cli.options import Common, Subject
from landscape.critical import plant
from landscape.errors import LandscapeError, UsageError
from landscape.objectives import Objective, Rows
from landscape.operators import SymmetricOperator
from landscape.results import Result
from landscape.runs import Run
from landscape.seeds import global_stream


def posed(*sizes: int, seed: int = 0, activation: type[nn.Module] = nn.Tanh, rows: int = 24):
    """A planted critical point of a dense network."""
    with global_stream(seed, "splittings"):
        parts: list[nn.Module] = []
        for ins, outs in zip(sizes[:-1], sizes[1:], strict=True):  # noqa: RUF007
            parts += [nn.Linear(ins, outs), activation()]
        module = nn.Sequential(*parts[:-1]).double()
        for tensor in module.parameters():
            nn.init.normal_(tensor, std=0.8)
    return plant(module, draw(rows, sizes[0], seed=seed), seed=seed)


def asked(f, theta, *, scan=None, escape=False, pieces=False, **how) -> Splitting:
    return splitting(f, theta, plan(f, theta, **how), scan=scan, escape=escape, pieces=pieces)


def drawn(found: Splitting) -> None:
    """Back from JSON, every panel and the interactive picture."""
    again = Result.from_json(found.to_json())
    assert again.summary() == found.summary() and again.caption() == found.caption() and again.table() == found.table()
    for panel in found.panels():
        again.plot(Figure().subplots(), panel)
    if found.panels():
        again.figure()


def test_a_split_of_three_outputs_adds_two_of_each_sign():
    # B is 3 x 3 with a^T B = 0 at a critical point, so of rank 2: (2, 1, 2) and the sign of G on a null space of one dimension
    f, theta = posed(2, 3, 3)
    found = asked(f, theta, ratio=0.3, scan=(-1, 2), escape=True)
    assert found.critical and found.exact and found.agrees is True
    assert not found.warnings
    more = found.counted[1] - found.counted[0]
    assert found.coupling[2] < 1e-14 < found.coupling[1]
    assert more[1] == 1 and more.sum() == 6 and min(more[0], more[2]) == 2
    assert found.dims.tolist() == [21, 27] and found.unit == 0 and found.layer == "0"
    # between the ends and beyond them the sign of G on null(B) turns, at them it is a zero
    inside, outside = found.signs[found.tried == 0.5][0], found.signs[0]
    assert inside.tolist() == outside.tolist()[::-1] and inside.tolist() == more.tolist()
    for end in (0, 1):
        assert found.signs[found.tried == end][0].tolist() == [2, 2, 2]
    assert found.curvature < 0 and found.losses.min() < found.loss - 1e-6
    # the even part has no third order, and of what is left the first places have 1/16 of the share that the next have
    even = (found.losses + found.losses[::-1]) / 2 - found.loss
    off = np.abs(even - found.curvature * found.line**2 / 2)[len(even) // 2 + 1 :]
    assert found.losses[found.line == 0] == pytest.approx(found.loss, abs=1e-15) and off[1] / off[0] == pytest.approx(
        16, rel=0.05
    )
    assert found.panels() == ("eigenvalues", "scan", "escape")
    drawn(found)
    assert "agreed" in found.summary() and "split 0.7 : 0.3" in found.summary()


def test_equal_splits_of_one_unit_step_by_step():
    f, theta = posed(2, 3, 1)
    found = asked(f, theta, unit=1, widen=2)
    assert found.ratios == [1 / 3, 1 / 2] and found.agrees is True
    assert found.counted[:, 1].tolist() == [0, 1, 2]  # one zero a step: scalar outputs have B = 0
    assert (found.counted == found.foretold).all()
    assert len(found.eigenvalues) == 3 and [len(values) for values in found.eigenvalues] == [13, 17, 21]
    drawn(found)


def test_null_units_and_three_copies():
    f, theta = posed(2, 3, 3, seed=1)
    nulls = asked(f, theta, way="null", widen=2, bias=0.4)
    assert nulls.agrees is True and nulls.exact
    assert (nulls.counted[2] - nulls.counted[1]).tolist() == (nulls.counted[1] - nulls.counted[0]).tolist() == [2, 2, 2]
    three = asked(f, theta, way="threefold")
    assert three.agrees is True and three.unit == -1
    drawn(three)
    deep, point = posed(2, 2, 2, 1, seed=2)
    other = asked(deep, point, way="threefold")
    assert other.agrees is None and other.foretold[1, 0] == -1 and other.counted[1].sum() == other.dims[1]
    assert "not predicted" in other.summary()


def test_a_null_unit_that_nothing_takes_up_is_not_predicted():
    f, theta = posed(2, 3, 1, seed=3)
    module = f.module(theta)
    module[2].bias = None
    g, w = Objective.of(module, "mse", f.rows, dtype=F64)
    # tanh(0) = 0: nothing has to be taken up
    assert asked(g, w, way="null").foretold[1, 0] >= 0
    assert asked(g, w, way="null", bias=0.5).foretold[1, 0] == -1


def test_a_point_that_is_not_critical_is_told_so_and_predicted_all_the_same():
    f, theta = posed(2, 3, 2, seed=4)
    found = asked(f, theta + 0.3 * draw(f.dim, seed=9), ratio=0.4)
    assert not found.critical and "NOT critical" in found.caption() and "not a critical point" in found.summary()
    assert "not critical" in found.warnings[0]
    assert found.agrees is True and found.exact
    # the Newton step is the distance of the quadratic's own critical point
    near = theta + 1e-6 * draw(f.dim, seed=9)
    assert asked(f, near).step == pytest.approx(1e-6 * float(draw(f.dim, seed=9).norm()), rel=1e-2)


def test_residual_part():
    # linear in its parameters: no residual part; with squares of the outputs there is one
    x = draw(9, 3)
    linear, w = Objective.of(
        nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)).double(), "mse", Rows(x, draw(9, 1)), dtype=F64
    )
    fitted = linear.on(Rows(x, linear.outputs(w)))
    assert asked(fitted, w).residual < 1e-12  # a zero residual
    assert asked(linear, w).residual > 1e-3


def test_kinks_have_checks_of_first_order_alone():
    f, theta = posed(2, 4, 1, activation=nn.ReLU)
    found = asked(f, theta)
    assert found.exact and found.kinked == ["relu"] and not found.panels()
    assert "--pieces" in found.warnings[0] and found.foretold[0, 0] == -1 and math.isnan(found.curvature)
    drawn(found)
    with pytest.raises(UsageError, match="no second derivative"):
        asked(f, theta, scan=(-1, 2))
    of_pieces = asked(f, theta, pieces=True)
    assert of_pieces.scaled.tolist() == [4, 5] and "smooth pieces" in of_pieces.caption()
    assert of_pieces.counted[0, 1] >= 4  # the scalings are among the zeros
    drawn(of_pieces)


def test_refusals():
    f, theta = posed(2, 3, 1)
    for how, words in (
        ({"unit": 3}, "has no unit 3"),
        ({"layer": "1.weight"}, "hidden layer"),
        ({"widen": 0}, "at least 1 unit"),
        ({"scan": (2, -1)}, "to a larger one"),
        ({"way": "null", "escape": True}, "of a split"),
    ):
        with pytest.raises(UsageError, match=words):
            asked(f, theta, **how)
    bad = theta.clone()
    bad[0] = math.nan
    with pytest.raises(LandscapeError, match="NaN"):
        splitting(f, bad, plan(f, theta))
    norm = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Tanh(), nn.LayerNorm(3), nn.Linear(3, 1)).double()
    g, w = Objective.of(norm, "mse", Rows(draw(5, 2), draw(5, 1)), dtype=F64)
    with pytest.raises(UsageError, match="no layer of this network can be split"):
        plan(g, w)


def test_from_a_run_to_an_answer(tmp_path, capsys):
    run = tmp_path / "run"
    assert (
        main(
            [
                "train",
                "digits-mlp",
                "--width",
                "0.05",
                "--activation",
                "tanh",
                "--steps",
                "3",
                "--limit",
                "60",
                "--out",
                str(run),
            ]
        )
        == 0
    )
    wide = tmp_path / "wide.safetensors"
    capsys.readouterr()
    split(str(run), layer="linear2", unit=1, ratio=0.25, scan="-1,2", save=wide, common=Common(json=True))
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "splitting" and found["layer"] == "linear2" and found["provenance"]["dtype"] == "float64"
    # the answer is kept, and the weights are those of the split: by numpy, unit 1 of 2 with shares 0.75 and 0.25
    assert Result.from_json((run / "results" / "splitting.json").read_text()).provenance["task"] == "digits-mlp"
    state = safetensors.torch.load_file(wide)
    last = Run(run).trajectory()
    old, at = last.row(len(last) - 1).point, 0
    pieces = {}
    for name, shape in (("linear1.weight", (3, 64)), ("linear1.bias", (3,)), ("linear2.weight", (2, 3)), ("linear2.bias", (2,)), ("output.weight", (10, 2)), ("output.bias", (10,))):  # fmt: skip
        pieces[name] = np.asarray(old[at : at + math.prod(shape)], dtype=float).reshape(shape)
        at += math.prod(shape)
    close(state["linear1.weight"], pieces["linear1.weight"], 0)
    close(state["linear2.weight"], pieces["linear2.weight"][[0, 1, 1]], 0)
    close(state["output.weight"], pieces["output.weight"][:, [0, 1, 1]] * [1, 0.75, 0.25], 1e-15)
    for arguments, words in (
        ({"scan": "3"}, "two ratios"),
        ({"null": True, "threefold": True}, "--null does not go"),
        ({"null": True, "ratio": 0.5}, "--ratio does not go"),
        ({"save": tmp_path / "x.pt"}, "safetensors"),
        ({"layer": "linear9"}, "linear2"),
    ):
        with pytest.raises(UsageError, match=words):
            split(str(run), **arguments, options=Subject(rows=10))
    assert torch.isfinite(state["output.bias"]).all()


def test_what_is_not_counted_is_not_told(monkeypatch):
    """Above DENSE parameters the narrow inertia is not known; what the split adds to it is, and is the same."""
    f, theta = posed(2, 3, 2)
    known = asked(f, theta)
    counted = splittings.inertia

    def estimated(
        matrix, **how
    ):  # wide of the truth, and said to be so: what Lanczos gives where hundreds of eigenvalues lie at the cut
        found = counted(matrix, **how)
        doubtful = isinstance(matrix, SymmetricOperator)
        return dataclasses.replace(found, positive=5, zero=0, negative=12, ambiguous=True) if doubtful else found

    monkeypatch.setattr(splittings, "inertia", estimated)
    monkeypatch.setattr(splittings, "DENSE", 10)
    found = asked(f, theta)
    assert (found.counted == -1).all()
    assert (found.foretold[1] == known.foretold[1] - known.foretold[0]).all()
    assert "not counted" in found.summary() and "inertia counted" not in str(found.table())
    drawn(found)


def test_what_limits_the_answer_is_told():
    f, theta = posed(2, 3, 2)
    plain = splitting(f, theta, plan(f, theta))
    assert not any("float32" in note or "decay" in note for note in plain.warnings)
    decayed = splitting(f, theta, plan(f, theta), decay=5e-4)
    assert any("weight decay 0.0005" in note for note in decayed.warnings)
    module = f.model.module(theta, f.buffers).float()
    rows = Rows(f.rows.inputs.float(), f.rows.targets.float())
    single, point = Objective.of(module, "mse", rows, dtype=torch.float32)
    assert any(
        "curvature is taken in float32" in note for note in splitting(single, point, plan(single, point)).warnings
    )
