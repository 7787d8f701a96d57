"""A sweep is nothing but its cells: each equals the training alone that it stands for, however the grid is cut, stopped, extended or bisected.

The trainings alone are `descend` on one vector, in a basis that is made here with numpy and `subspaces.random`, and they are scored with `Objective.value`, one point at a time.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from problems import F64
from torch import Tensor, nn

from landscape import families, files, subspaces, sweeps, tasks
from landscape.cli.app import main
from landscape.descent import Recipe, Start, State, descend
from landscape.errors import LandscapeError, UnsafeInputError, UsageError
from landscape.objectives import Objective
from landscape.runs import Run
from landscape.seeds import generator, global_stream
from landscape.sweeps import Cell, Plan
from landscape.tasks import Task

CPU = torch.device("cpu")
WHOLE = Recipe(steps=24, lr=0.1, batch_size=25)
TORN = b'{"family": "random", "di'  # what a kill in the middle of a line leaves
WITHIN = Recipe(steps=15, optimizer="adam", lr=0.02, schedule="cosine", batch_size=25)


@pytest.fixture(scope="module")
def task() -> Task:
    """8 x 8 digits, 100 rows; 1,266 parameters."""
    return tasks.find("digits-mlp", width=0.25, limit=100)


def plan(names: str, dims: tuple[int, ...] = (1, 3), seeds: tuple[int, ...] = (0, 1), **changes: object) -> Plan:
    found = Plan(
        tuple(families.parse(name, sweeps.NAMES) for name in names.split(",")),
        dims,
        seeds,
        WHOLE,
        WITHIN,
        every=4,
        evaluations=5,
    )
    return dataclasses.replace(found, **changes)  # type: ignore[arg-type]


def train(folder: Path, task: Task, asked: Plan, dtype: torch.dtype = F64) -> dict[Cell, dict[str, object]]:
    run = Run(folder)
    run.begin("threshold", {}, {})
    for _ in sweeps.sweep(run, task, asked, device=CPU, dtype=dtype):
        pass
    return sweeps.cells(run)


def same(one: dict[Cell, dict[str, object]], other: dict[Cell, dict[str, object]], rtol: float) -> None:
    assert one.keys() == other.keys()
    for cell, numbers in one.items():
        for name, value in numbers.items():
            expected = other[cell][name]
            assert value == (
                expected if isinstance(expected, str) else pytest.approx(expected, rel=rtol, nan_ok=True)
            ), (cell, name)


# -- each cell is the training alone --------------------------------------------------------------------------------------


def objective(task: Task, seed: int, dtype: torch.dtype) -> tuple[Objective, Tensor]:
    return Objective.of(task.make(seed), task.loss, task.data.train, dtype=dtype)


def scored(g: Objective, test: Objective, states: list[State], evaluations: int) -> dict[str, float]:
    """The columns that a training alone has."""
    last = states[-1].step
    seen = [state for state in states if state.step % math.ceil(last / evaluations) == 0 or state.step == last]
    values = [
        (name, f.with_buffers(state.buffers).value(state.point))
        for state in seen
        for name, f in (("train", g), ("test", test))
    ]
    found = {}
    for part in ("train", "test"):
        losses = [float(value.loss) for name, value in values if name == part]
        accuracies = [float(value.accuracy) for name, value in values if name == part]
        found |= {f"{part}_loss": min(losses), f"{part}_accuracy": max(accuracies)}
        found |= {f"final_{part}_loss": losses[-1], f"final_{part}_accuracy": accuracies[-1]}
    return found


def alone(task: Task, asked: Plan, cell: Cell, dtype: torch.dtype) -> dict[str, float]:
    """One cell without any ensemble."""
    f, w = objective(task, cell.seed, dtype)
    whole = list(descend(f, w, asked.whole, asked.root))
    family = families.parse(cell.family, sweeps.NAMES)
    start = whole[family.at]
    if family.name in ("random", "burn-in"):
        blocks = families.layers_of(f.model.layout) if asked.choice.layers else None
        drawn = subspaces.random(start.point, cell.dim, generator(cell.seed, "subspace"), asked.choice.basis, blocks)
        # E |B B^T g|^2 of a step of the whole space's length, where B^T B is not the identity; of signs 2/pi of the excess (see families.Family.scale)
        length = 1 << (f.dim - 1).bit_length()
        excess = {"gaussian": (cell.dim - 1) / f.dim, "srht": cell.dim / f.dim - cell.dim / length}.get(
            asked.choice.basis, 0.0
        )
        excess *= 2 / math.pi if asked.within.optimizer == "adam" else 1
        scale = math.sqrt(f.dim / cell.dim / (1 + excess))
    else:
        source = (
            whole
            if family.name != "transfer"
            else list(descend(f, objective(task, cell.seed + 1, dtype)[1], asked.whole, asked.root))
        )
        points = np.stack([state.point.numpy() for state in source[:: asked.every]]).astype(float)
        moves = points - points.mean(0) if family.name == "dldr" else np.diff(points, axis=0)
        drawn = subspaces.span(
            start.point, torch.from_numpy(np.linalg.svd(moves, full_matrices=False)[2][: cell.dim]).to(w)
        )
        scale = 1.0 if asked.within.optimizer == "sgd" else math.sqrt(f.dim / cell.dim)
    g = f.restrict(drawn)
    begin = Start(w.new_zeros(cell.dim), buffers=start.buffers, scale=w.new_tensor(scale))
    states = list(descend(g, begin, asked.within, asked.root))
    return {
        **scored(g, g.on(task.data.test), states, asked.evaluations),
        "distance": float((start.point - whole[-1].point).norm()),
        "moved": float((g.lift(states[-1].point) - start.point).norm()),
    }


# float64: two orders of summation differ by 1e-16 a number, a Gram matrix squares the ratio of the largest singular value to the third (under 1e2), and 15 steps
# of Adam, which divides by the gradient's own size, let that grow by 1e3 at most here: under 1e-9. float32 likewise: 6e-8 without the Gram matrix's square, which is taken in float64
@pytest.mark.parametrize(
    ("names", "choice", "within", "dtype", "rtol"),
    [
        ("random,burn-in@7", {}, {}, F64, 1e-9),
        ("random", {}, {}, torch.float32, 1e-5),
        ("random,burn-in@7", {"basis": "haar"}, {"optimizer": "sgd"}, F64, 1e-9),
        ("random", {"basis": "srht"}, {}, F64, 1e-9),
        ("random", {"basis": "sparse"}, {}, F64, 1e-9),
        ("random", {"layers": True}, {}, F64, 1e-9),
        ("lottery,dldr,transfer", {}, {}, F64, 1e-9),
        ("lottery", {}, {"optimizer": "sgd"}, F64, 1e-9),
    ],
)
def test_a_cell_is_the_training_alone(
    tmp_path: Path,
    task: Task,
    names: str,
    choice: dict[str, object],
    within: dict[str, object],
    dtype: torch.dtype,
    rtol: float,
) -> None:
    asked = plan(names, choice=families.Choice(**choice), within=dataclasses.replace(WITHIN, **within))  # type: ignore[arg-type]
    found = train(tmp_path / "run", task, asked, dtype)
    kinds = len(names.split(","))
    assert len([cell for cell in found if cell.family != "full"]) == kinds * 4
    for cell, numbers in found.items():
        if cell.family == "full":
            continue
        for name, value in alone(task, asked, cell, dtype).items():
            assert numbers[name] == pytest.approx(value, rel=rtol, abs=1e-12), (cell, name)
        assert (numbers["evaluations"], numbers["failed"]) == (15, False)


def test_batch_norm_goes_on_from_where_the_burn_in_left_its_statistics(tmp_path: Path) -> None:
    task = tasks.find("digits-mlp", width=0.25, limit=100, norm="batch")
    asked = plan("burn-in@7,lottery", dims=(2,))
    for cell, numbers in train(tmp_path / "run", task, asked).items():
        if cell.family != "full":
            for name, value in alone(task, asked, cell, F64).items():
                assert numbers[name] == pytest.approx(value, rel=1e-9, abs=1e-12), (cell, name)


def test_the_whole_space_is_a_cell_and_a_trajectory(tmp_path: Path, task: Task) -> None:
    asked = plan("burn-in@7", dims=(1,))
    found = train(tmp_path / "run", task, asked)
    f, w = objective(task, 1, F64)
    states = list(descend(f, w, WHOLE, 0))
    numbers = found[Cell("full", 1266, 1)]
    for name, value in scored(f, f.on(task.data.test), states, 5).items():
        assert numbers[name] == pytest.approx(value, rel=1e-9)
    kept = sweeps.Trajectory.open(tmp_path / "run" / "full" / "seed-001")
    assert kept.steps.tolist() == [0, 4, 7, 8, 12, 16, 20, 24]  # every 4, and the burn-in
    np.testing.assert_allclose(kept.points()[2], states[7].point, rtol=1e-9, atol=1e-12)


def test_a_solver_counts_its_evaluations(tmp_path: Path, task: Task) -> None:
    within = Recipe(steps=4, optimizer="bfgs", lr=1.0)
    found = train(tmp_path / "run", task, plan("random", within=within))
    for cell, numbers in found.items():
        if cell.family == "random":
            # each step looks at least at the gradient and at one trial
            assert numbers["evaluations"] >= 2 * 4
            f, w = objective(task, cell.seed, F64)
            assert numbers["train_loss"] < float(f(w))


def test_the_start_is_a_candidate(tmp_path: Path, task: Task) -> None:
    """A subspace through a point of the sublevel set meets it without a step: d* = 0 inside."""
    found = train(tmp_path / "run", task, plan("burn-in@24", dims=(1,), within=dataclasses.replace(WITHIN, lr=1e3)))
    f, w = objective(task, 0, F64)
    end = list(descend(f, w, WHOLE, 0))[-1].point
    numbers = found[Cell("burn-in@24", 1, 0)]
    assert numbers["train_loss"] == pytest.approx(float(f(end)), rel=1e-9)
    assert numbers["final_train_loss"] > 10 * numbers["train_loss"]  # type: ignore[operator]
    assert numbers["distance"] == 0


# -- however it is cut, stopped and extended -----------------------------------------------------------------------------


def test_ensembles_of_any_size_give_the_same_cells(tmp_path: Path, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = plan("random,burn-in@7,dldr", seeds=(0, 1, 2))
    at_once = train(tmp_path / "a", task, asked)
    monkeypatch.setattr(sweeps, "PILOT", 1)
    monkeypatch.setattr(sweeps, "SECONDS", 0.0)  # each ensemble is one cell
    same(at_once, train(tmp_path / "b", task, asked), 1e-9)
    monkeypatch.undo()
    monkeypatch.setattr(subspaces, "DENSE_BYTES", 3 * 1266 * 8)  # the bases of one seed
    run = Run(tmp_path / "c")
    run.begin("threshold", {}, {})
    what = [state.what for state in sweeps.sweep(run, task, asked, device=CPU, dtype=F64) if state.step == state.steps]
    assert what == [
        "the whole space of 3 seeds",
        *["4 of random, burn-in@7, d = 1 to 3"] * 3,
        *["2 of dldr, d = 1 to 3"] * 3,
    ]
    same(at_once, sweeps.cells(run), 1e-9)


def test_a_stopped_sweep_goes_on_and_loses_one_ensemble_at_most(
    tmp_path: Path, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = plan("random,lottery", seeds=(0, 1, 2))
    whole = train(tmp_path / "a", task, asked)
    monkeypatch.setattr(sweeps, "PILOT", 2)
    monkeypatch.setattr(sweeps, "SECONDS", 0.0)
    run = Run(tmp_path / "b")
    run.begin("threshold", {}, {})
    path, before = run.folder / "cells.jsonl", b""
    for done in (0, 2, 6):  # in the whole space; in the midst of an ensemble, with so many cells committed
        training = sweeps.sweep(run, task, asked, device=CPU, dtype=F64)
        next(state for state in training if state.done >= done and 0 < state.step < state.steps)
        training.close()  # type: ignore[attr-defined]
        assert run.record()["state"] == "interrupted"
        now = path.read_bytes().removesuffix(TORN) if path.exists() else b""
        assert now.startswith(before)
        assert now.count(b"\n") == done + 3 * (done > 0)  # and the whole space of three seeds
        before = now
        with open(path, "ab") as file:
            file.write(TORN)
    same(whole, train(tmp_path / "b", task, asked), 1e-9)
    assert path.read_bytes().startswith(before)
    assert len(files.read_lines(path)) == len(whole)  # nothing was trained twice
    assert run.record()["state"] == "finished"


def test_a_finished_sweep_is_not_touched(tmp_path: Path, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path / "run", task, plan("random,dldr"))
    held = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    monkeypatch.setattr(Run, "update", None)  # nor is its record, which a folder that cannot be written to would refuse
    part = plan("dldr", dims=(3,), seeds=(1,))
    assert list(sweeps.sweep(Run(tmp_path / "run"), task, part, device=CPU, dtype=F64)) == []
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == held


def test_a_sweep_grows(tmp_path: Path, task: Task) -> None:
    asked = plan("random,burn-in@7,transfer", dims=(1, 2, 3), seeds=(0, 1))
    once = train(tmp_path / "a", task, asked)
    first = train(tmp_path / "b", task, plan("random,transfer", dims=(1, 3), seeds=(0,)))
    # a burn-in that no trajectory has yet: they are trained again, with it
    grown = train(tmp_path / "b", task, asked)
    same(once, grown, 1e-9)
    assert {cell: grown[cell] for cell in first if cell.family != "full"} == {
        cell: first[cell] for cell in first if cell.family != "full"
    }
    rows = sweeps.columns(grown, plan("transfer,random", dims=(3, 1), seeds=(0, 1)))
    assert list(zip(rows["family"], rows["seed"], rows["dim"], strict=True)) == [
        # also the d = 2 that was trained before: what is known counts
        *[("transfer", seed, dim) for seed in (0, 1) for dim in (1, 2, 3)],
        *[("random", seed, dim) for seed in (0, 1) for dim in (1, 2, 3)],
        ("full", 0, 1266),
        ("full", 1, 1266),  # not the third, whose basis the second one took
    ]
    assert Cell("full", 1266, 2) in grown
    assert sweeps.ambient(rows) == 1266


def test_bisection_finds_the_brackets_of_the_whole_grid(tmp_path: Path, task: Task) -> None:
    dims = (1, 4, 8, 16, 64)
    within = dataclasses.replace(WITHIN, lr=0.05, steps=25)
    full = plan("random,burn-in@7", dims, (0, 1, 2), within=within)
    level = 2.0
    every = train(tmp_path / "a", task, full)
    some = train(tmp_path / "b", task, dataclasses.replace(full, level=level))
    for family in ("random", "burn-in@7"):
        for seed in (0, 1, 2):
            hits = [every[Cell(family, dim, seed)]["train_loss"] <= level for dim in dims]  # type: ignore[operator]
            assert hits == sorted(hits)  # else bisection may rightly find another bracket
            tried = {
                cell.dim: numbers["train_loss"] <= level
                for cell, numbers in some.items()
                if (cell.family, cell.seed) == (family, seed)
            }  # type: ignore[operator]
            assert len(tried) <= math.ceil(math.log2(len(dims) + 1))
            threshold = min((dim for dim, hit in zip(dims, hits, strict=True) if hit), default=math.inf)
            assert min((dim for dim, hit in tried.items() if hit), default=math.inf) == threshold
            below = max((dim for dim, hit in zip(dims, hits, strict=True) if not hit), default=0)
            assert max((dim for dim, hit in tried.items() if not hit), default=0) == below


# -- what can go wrong ---------------------------------------------------------------------------------------------------


def test_a_cell_that_meets_nan_is_marked_and_the_others_go_on(tmp_path: Path, task: Task) -> None:
    def make(seed: int) -> nn.Module:
        module = task.make(seed)
        if seed == 1:
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter *= 1e120  # three layers of these overflow
        return module

    bad = dataclasses.replace(task, make=make)
    asked = plan("random,dldr", seeds=(0, 1, 2))
    found = train(tmp_path / "run", bad, asked)
    good = train(tmp_path / "good", task, asked)
    same(*({cell: numbers for cell, numbers in one.items() if cell.seed != 1} for one in (found, good)), 1e-9)
    for cell, numbers in found.items():
        assert numbers["failed"] is (cell.seed == 1)
        if cell.seed == 1:
            assert all(math.isnan(numbers[name]) for name in (*sweeps.METRICS, "final_test_loss"))  # type: ignore[arg-type]
    assert len(found) == len(good) == 15


def test_a_cell_that_diverges_keeps_what_it_had_reached(tmp_path: Path, task: Task) -> None:
    """Plain SGD at rate 1e200 is lost at its second step, and the loss of the start stands."""
    within = Recipe(steps=6, lr=1e200, momentum=0.0)
    found = train(tmp_path / "run", task, plan("random", within=within, evaluations=6))
    for seed in (0, 1):
        numbers = found[Cell("random", 3, seed)]
        f, w = objective(task, seed, F64)
        assert numbers["failed"] is True
        assert numbers["train_loss"] == pytest.approx(float(f(w)), rel=1e-9)
        assert math.isfinite(numbers["final_train_accuracy"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dims": (3, 2000)}, "1 to 1,266 dimensions; got 2000"),
        ({"dims": (0,)}, "1 to 1,266 dimensions; got 0"),
        ({"dims": ()}, "at least one family and one dimension"),
        ({"seeds": ()}, "at least one seed"),
        ({"every": 0}, "every k-th step"),
        ({"evaluations": 0}, "evaluated at least once"),
        (
            {"families": (families.Family("burn-in", None, 25),)},
            "burns in for 25 steps, and the whole space is trained for 24",
        ),
        (
            {"families": (families.Family("lottery"), families.Family("dldr")), "dims": (2, 8)},
            "lottery, dldr with d = 8 takes 9 points of a trajectory; 24 steps recorded every 4 give 7. Ask for at most 6 dimensions, or record it at least every 3 steps (--trajectory-every 3)",
        ),
        (
            {"families": (families.Family("transfer"),), "dims": (30,)},
            "Ask for at most 6 dimensions, or train longer (--steps)",
        ),
    ],
)
def test_an_impossible_plan_is_refused_before_training(
    tmp_path: Path, task: Task, changes: dict[str, object], words: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        sweeps.sweep(Run(tmp_path / "run"), task, plan("random", **changes), device=CPU, dtype=F64)
    assert not (tmp_path / "run").exists()


def test_a_basis_that_does_not_fit_is_refused_with_the_cheaper_ones(
    tmp_path: Path, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subspaces, "DENSE_BYTES", 3 * 1266 * 8 - 1)
    with pytest.raises(UsageError, match="--basis srht or sparse"):
        sweeps.sweep(Run(tmp_path / "run"), task, plan("random"), device=CPU, dtype=F64)
    sweeps.sweep(Run(tmp_path / "run"), task, plan("random", choice=families.Choice("srht")), device=CPU, dtype=F64)


def test_tensors_that_do_not_move_must_be_common(tmp_path: Path, task: Task) -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(64, 10)
            self.register_buffer("noise", torch.randn(10), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.inner(x) + self.noise
            return out

    def make(seed: int) -> nn.Module:
        with global_stream(seed, "initialisation"):
            return Noisy()

    noisy = dataclasses.replace(task, make=make)
    with pytest.raises(UsageError, match="'noise' does not move and differs between the models 0 and"):
        train(tmp_path / "run", noisy, plan("random"))


def test_a_damaged_line_is_found(tmp_path: Path, task: Task) -> None:
    train(tmp_path / "run", task, plan("random", dims=(1,), seeds=(0,)))
    path = tmp_path / "run" / "cells.jsonl"
    text = path.read_text()
    digit = re.search(r'"train_loss": \d\.(\d)', text)
    assert digit is not None
    other = str((int(digit.group(1)) + 1) % 10)
    path.write_text(text[: digit.start(1)] + other + text[digit.end(1) :])
    with pytest.raises(UnsafeInputError, match="line 1, is damaged"):
        sweeps.cells(Run(tmp_path / "run"))
    path.write_text('{"seed": 1}\n')
    with pytest.raises(LandscapeError, match="line 1, is damaged"):
        sweeps.cells(Run(tmp_path / "run"))


def test_a_failure_stands_in_the_record(tmp_path: Path, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no such luck")

    monkeypatch.setattr(sweeps, "descend", broken)
    with pytest.raises(RuntimeError):
        train(tmp_path / "run", task, plan("random"))
    assert Run(tmp_path / "run").record()["state"] == "failed"
    assert json.loads((tmp_path / "run" / "run.json").read_text())["ended"]


# -- the command ---------------------------------------------------------------------------------------------------------

SMALL = (
    "--width",
    "0.25",
    "--limit",
    "100",
    "--steps",
    "12",
    "--batch-size",
    "25",
    "--trajectory-every",
    "3",
    "--evaluations",
    "3",
)


def command(capsys: pytest.CaptureFixture[str], out: Path, *flags: str, **options: object) -> tuple[int, str, str]:
    given = {"family": "random,dldr", "seeds": 2, **options}
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    capsys.readouterr()
    code = main(["threshold", "digits-mlp", *SMALL, "--out", str(out), *words, *flags])
    return (code, *capsys.readouterr())


def test_the_command_trains_answers_and_answers_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    code, first, told = command(capsys, out, dims="1,3", loss="2.2,1.9")
    assert code == 0
    assert "dldr" in first and "D = 1,266" in first
    assert "4 of 8 cells" in told
    lines = files.read_lines(out / "cells.jsonl")
    assert len(lines) == 8 + 2
    code, again, told = command(capsys, out, dims="1,3", loss="2.2,1.9")
    assert (code, again) == (0, first)
    assert "answered before" in told
    # other levels are read off the same cells, and a larger grid keeps them
    code, other, told = command(capsys, out, "--json", dims="1,3", loss="2.0", delta=0.5)
    assert code == 0 and "trained" not in told
    record = json.loads(other)
    assert record["kind"] == "threshold"
    assert record["delta"] == 0.5
    assert record["question"]["losses"] == [2.0]
    assert files.read_lines(out / "cells.jsonl") == lines
    code, _, told = command(capsys, out, dims="1,2,3", family="random,dldr,lottery")
    assert code == 0 and "18 of 18 cells" in told
    assert files.read_lines(out / "cells.jsonl")[: len(lines)] == lines
    assert len(files.read_lines(out / "cells.jsonl")) == 18 + 2
    assert len(list((out / "results").glob("threshold*.json"))) == 3


def test_the_command_bisects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, shown, _ = command(capsys, tmp_path / "run", dims="1,2,4,8,16", adaptive=2.2, loss=2.2, family="random")
    assert code == 0 and "train loss 2.2" in shown
    tried = [line for line in files.read_lines(tmp_path / "run" / "cells.jsonl") if line["family"] == "random"]
    assert 2 <= len(tried) <= 2 * 3  # log2(5 + 1), rounded up, a seed


def test_training_options_must_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(capsys, tmp_path / "run", dims=1, family="random")[0] == 0
    held = (tmp_path / "run" / "cells.jsonl").read_bytes()
    code, out, err = command(capsys, tmp_path / "run", dims=1, family="random", lr=0.5)
    assert (code, out) == (2, "")
    assert "lr: 0.03 there, 0.5 asked" in err
    assert (tmp_path / "run" / "cells.jsonl").read_bytes() == held


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dims": "1,x"}, "--dims takes numbers separated by commas, such as 1,2,4,8; got '1,x'"),
        ({"dims": 0}, "1 to 1,266 dimensions; got 0"),
        ({"family": "lotery"}, "Did you mean 'lottery'?"),
        ({"family": "random:8"}, "given by --dims; got --family random:8. Write random."),
        ({"family": "burn-in"}, "burn-in says after how many steps"),
        ({"family": "burn-in@13"}, "burns in for 13 steps"),
        ({"family": "lottery", "dims": 8}, "--trajectory-every 1"),
        ({"seeds": 0}, "at least one seed"),
        ({"loss": "low"}, "--loss takes numbers"),
    ],
)
def test_what_cannot_be_is_refused_before_a_folder_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: dict[str, object], words: str
) -> None:
    code, out, err = command(capsys, tmp_path / "run", **{"dims": 2, **options})
    assert (code, out) == (2, "")
    assert words in err and "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_a_sweep_has_answers_and_no_course_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a"
    words = [
        "threshold",
        "digits-mlp",
        "--limit",
        "100",
        "--width",
        "0.25",
        "--steps",
        "4",
        "--dims",
        "2,4",
        "--seeds",
        "2",
        "--device",
        "cpu",
    ]
    assert main([*words, "--out", str(out)]) == 0
    assert main(["report", str(out)]) == 0
    page = (out / "report.html").read_text()
    assert "nothing was measured" not in page
    assert "Threshold" in page
    capsys.readouterr()
    assert main(["plot", str(out), str(tmp_path / "x.png")]) == 2
    assert "threshold.json" in capsys.readouterr().err
