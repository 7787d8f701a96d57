"""The commands that ask how few dimensions suffice by training in subspaces: threshold, dldr."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from landscape.cli.making import Searching, _about, _begun, _fields, recipe_of
from landscape.cli.options import WHOLE, Common, Problem, answer, note, tell_table
from landscape.errors import UsageError
from landscape.runs import Run, now

if TYPE_CHECKING:
    from landscape.results import Result
    from landscape.sweeps import Progress
    from landscape.tasks import Task
    from landscape.tickets import Level

# by default the dimensions are the powers of 2 up to this: beyond it a basis of a small network costs more than the network
LARGEST = 256
_FINAL = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")


def threshold(
    task: str,
    /,
    *,
    out: Path,
    family: str = "random",
    dims: str | None = None,
    seeds: Annotated[int, WHOLE] = 10,
    loss: str | None = None,
    accuracy: str | None = None,
    delta: float = 0.1,
    confidence: float = 0.95,
    adaptive: float | None = None,
    steps: Annotated[int | None, WHOLE] = None,
    full_steps: Annotated[int | None, WHOLE] = None,
    optimizer: Literal["sgd", "adam", "lbfgs", "bfgs", "newton", "gauss-newton"] = "adam",
    lr: float | None = None,
    schedule: Literal["constant", "step", "cosine"] | None = None,
    batch_size: Annotated[int | None, WHOLE] = None,
    basis: Literal["gaussian", "haar", "srht", "sparse"] = "gaussian",
    layers: Annotated[bool, Parameter(name="--per-layer", negative="")] = False,
    trajectory_every: Annotated[int, WHOLE] = 5,
    evaluations: Annotated[int, WHOLE] = 20,
    tickets: str | None = None,
    download: Annotated[bool, Parameter(negative="")] = False,
    problem: Problem = Problem(),  # noqa: B008 (frozen)
    searching: Searching = Searching(),  # noqa: B008 (frozen)
    common: Common = Common(),  # noqa: B008 (frozen)
) -> None:
    """How many dimensions are needed: train in subspaces of many dimensions, over seeds, and find where success sets in, for every loss and accuracy at once.

    A grid of family x dimension x seed is trained in lockstep. The same command goes on with a stopped sweep and returns a finished one. Further families,
    dimensions and seeds add to it, and other levels are read off it without training.

    Examples:
      landscape threshold digits-mlp --family random,burn-in@64,lottery,dldr --out runs/t
      landscape threshold digits-mlp --dims 8,16,32,64,128 --loss 0.3,0.1 --seeds 20 --out runs/t
      landscape threshold digits-mlp --family random,lottery --tickets runs/imp --out runs/t
      landscape threshold mnist-conv2 --data ~/data --steps 2345 --adaptive 0.1 --dims 1,2,4,8,16,32,64,128,256,512,1024 --out runs/u

    Parameters
    ----------
    task
        A name from `landscape tasks`, or your own problem as package.module:function or file.py:function.
    out
        The sweep's folder.
    family
        Where subspaces come from, with commas: random, burn-in@64 (random, after 64 steps in the whole space), lottery and dldr (principal directions of the
        seed's own training), transfer (the lottery directions of another seed).
    dims
        Dimensions, with commas; by default the powers of 2 up to 256.
    seeds
        How many; each names an initialisation and a basis. The first is --seed.
    loss
        Levels of the training loss that matter to you, with commas.
    accuracy
        Levels of accuracy, likewise.
    delta
        The threshold dimension is the smallest with success probability at least 1 - delta.
    confidence
        Of all intervals.
    adaptive
        A level of the training loss: bisect for each seed's smallest dimension that reaches it, instead of the whole grid.
    steps
        Mini-batch updates in a subspace, and in the whole space; the default is the task's own.
    full_steps
        In the whole space, where it is not the same.
    optimizer
        In the subspaces. The whole space has the task's own.
    lr
        Learning rate in the subspaces; its step is as long in every dimension. Default of adam 0.03; of the task's own optimizer the task's; 1 of those that search.
    schedule
        How it goes down; of adam a cosine, after a tenth of the steps as warmup.
    batch_size
        Rows a step; 0 is all of them. Default: the task's own, and 1,024 of optimizers that search.
    basis
        Of random directions: gaussian columns of unit norm, orthonormal (haar), or without a stored matrix (srht, sparse).
    layers
        Of random directions: each within one layer.
    trajectory_every
        Steps between the points of which lottery, dldr and transfer take directions.
    evaluations
        How often loss and accuracy are measured on all rows; the best of a cell counts.
    tickets
        Runs of `landscape imp` of the same task, with commas: their levels stand on the same axis, by how many parameters move.
    download
        Fetch the data set into --data with torchvision.
    """
    from landscape import families, sweeps
    from landscape.analysis.thresholds import require_levels
    from landscape.recordings import stop_signals

    common = common.resolved()
    device, dtype = common.torch()
    found = problem.task(task, download=download)
    asked = {
        "steps": steps,
        "optimizer": optimizer,
        "lr": lr,
        "schedule": schedule,
        "batch_size": batch_size,
        **dataclasses.asdict(searching),
    }
    within = recipe_of(
        found,
        asked,
        inside=True,
    )
    whole = recipe_of(found, {"steps": steps if full_steps is None else full_steps, "batch_size": batch_size})
    plan = sweeps.Plan(
        families=tuple(dict.fromkeys(families.parse(name, sweeps.NAMES) for name in family.split(","))),
        dims=tuple(sorted(set(_numbers("--dims", dims, int)))) if dims else _powers(found),
        seeds=tuple(range(common.seed, common.seed + seeds)),
        whole=whole,
        within=within,
        root=common.seed,
        choice=families.Choice(basis=basis, layers=layers),
        every=trajectory_every,
        evaluations=evaluations,
        level=adaptive,
    )
    for one in plan.families:
        if one.dim is not None:
            raise UsageError(
                f"the dimensions of a sweep are given by --dims; got --family {one}. Write {dataclasses.replace(one, dim=None)}."
            )
    # the grid is none of the options: it may grow
    options = {
        **problem.record(task), "seed": common.seed, "dtype": common.dtype, "device": device.type, **_fields(within),
        **{f"full_{name}": value for name, value in _fields(whole).items()},
        "basis": basis, "per_layer": layers, "trajectory_every": trajectory_every, "evaluations": evaluations,
    }  # fmt: skip
    levels = {
        "losses": list(dict.fromkeys([*([] if adaptive is None else [adaptive]), *_numbers("--loss", loss, float)])),
        "accuracies": _numbers("--accuracy", accuracy, float),
        "delta": delta,
        "confidence": confidence,
    }
    require_levels(**levels)  # type: ignore[arg-type]
    beside = _tickets(tickets, options, found)
    run = Run(out)
    training = sweeps.sweep(run, found, plan, device=device, dtype=dtype)
    with _begun(run):
        if run.begin("threshold", options, _about(found)):
            note(f"({out} is finished; what is new in this grid is added)")
    with stop_signals():
        _watch(training)
    cells = sweeps.columns(sweeps.cells(run), plan)
    grid = {
        "families": [str(one) for one in plan.families],
        "dims": plan.dims,
        "seeds": plan.seeds,
        "adaptive": adaptive,
    }

    def compute() -> Result:
        from landscape.analysis.thresholds import threshold as measure

        provenance = {
            "run": str(run.folder), "task": found.name, "data": found.data.description, "fingerprint": found.data.fingerprint, "seed": common.seed,
            "dtype": common.dtype, "device": device.type, "within": _fields(within), "whole": _fields(whole), "basis": basis,
            "versions": run.record()["versions"], "made": now(),
        }  # fmt: skip
        return measure(
            cells,
            ambient=sweeps.ambient(cells),
            nested=basis != "sparse",
            tickets=_rungs(beside),
            provenance=provenance,
            **levels,  # type: ignore[arg-type]
        )

    # an adaptive sweep leaves holes that a later one may fill: how many cells there were belongs to the question
    question: dict[str, Any] = {**grid, **levels, "cells": len(cells["seed"])}
    if beside:  # left out where there are none, so that older answers are found
        question["tickets"] = {
            str(one.folder.resolve()): [level.solution.checksum for level in there] for one, there in beside.values()
        }
    answer(run, "threshold", question, compute, common.json, show=tell_table)


def _tickets(text: str | None, options: Mapping[str, Any], task: Task) -> dict[str, tuple[Run, list[Level]]]:
    """The runs of imp that a text names, by a name for the picture, with their levels. Raises UsageError where one is of another task, network or data."""
    from landscape.cli.pruning import require_one_task
    from landscape.tickets import levels

    runs = [Run.open(Path(folder.strip())) for folder in text.split(",")] if text else []
    found: dict[str, tuple[Run, list[Level]]] = {}
    for run in runs:
        there = levels(run)
        require_one_task("this sweep", options, task.data.fingerprint, run)
        name = "imp" if len(runs) == 1 else f"imp {run.folder.name}"
        if name in found:
            raise UsageError(f"--tickets names two runs called {run.folder.name}: rename one of their folders, or leave it out.")  # fmt: skip
        found[name] = run, there
    return found


def _rungs(beside: Mapping[str, tuple[Run, list[Level]]]) -> dict[str, list[Any]] | None:
    """Levels as columns: what moves, and what the solution reaches. None without a run."""
    if not beside:
        return None
    columns: dict[str, list[Any]] = {name: [] for name in ("name", "level", "dim", *_FINAL)}
    for name, (_, there) in beside.items():
        for level in there:
            row = {"name": name, "level": level.number, "dim": level.mask.size}
            row |= {key: math.nan if (value := level.final.get(key)) is None else value for key in _FINAL}
            for key, value in row.items():
                columns[key].append(value)
    return columns


def dldr(
    task: str,
    /,
    *,
    out: Path,
    dims: Annotated[str, Parameter(name=("--dims", "--dim"))] = "2,5,10,20",
    epochs: Annotated[int, WHOLE] = 20,
    long: Annotated[int | None, WHOLE] = None,
    every: Annotated[int | None, WHOLE] = None,
    seeds: Annotated[int, WHOLE] = 3,
    lr: float | None = None,
    batch_size: Annotated[int | None, WHOLE] = None,
    momentum: float | None = None,
    weight_decay: float | None = None,
    schedule: Literal["constant", "step", "cosine"] | None = None,
    solver: Literal["bfgs", "lbfgs", "newton", "gauss-newton"] = "bfgs",
    solver_steps: Annotated[int, WHOLE] = 60,
    solver_batch: Annotated[int, WHOLE] = 0,
    download: Annotated[bool, Parameter(negative="")] = False,
    problem: Problem = Problem(),  # noqa: B008 (frozen)
    searching: Searching = Searching(),  # noqa: B008 (frozen)
    common: Common = Common(),  # noqa: B008 (frozen)
) -> None:
    """Train in the few dimensions of a sampled trajectory (DLDR), against the training that goes on: one table with both baselines, long and early-stopped.

    Every seed is trained once in the whole space. Its first epochs are sampled; in subspaces of their principal directions, by several conventions, and in random ones
    the loss is then minimised, all in lockstep. A killed one begins anew.

    Examples:
      landscape dldr digits-mlp --batch-size 50 --out runs/dldr
      landscape dldr digits-mlp --batch-size 50 --label-noise uniform:0.4 --out runs/noise
      landscape dldr cifar10-resnet20 --data ~/data --epochs 20 --dims 10,20 --solver-batch 1024 --out runs/c

    Parameters
    ----------
    task
        A name from `landscape tasks`, or your own file.py:function.
    out
        The run's folder, for the answer.
    dims
        Dimensions of the subspaces, separated by commas.
    epochs
        How many epochs of the training are sampled.
    long
        Epochs of the long training, of which these are the first; default 4 times as many.
    every
        Sample each so many steps; default once an epoch.
    seeds
        How many, from --seed on.
    lr
        Learning rate in the whole space; here and below the default is the task's own.
    batch_size
        Rows a step there; 0 is all of them.
    momentum
        Likewise.
    weight_decay
        Likewise.
    schedule
        Likewise; it goes over the long training.
    solver
        What minimises in the subspaces.
    solver_steps
        Of it.
    solver_batch
        Rows of its mini-batches (1,024 in the code of Li et al. 2022); 0 is all of them.
    download
        Fetch the data set into --data with torchvision.
    """
    from landscape.analysis.reductions import reduction
    from landscape.descent import Recipe

    common = common.resolved()
    device, dtype = common.torch()
    if seeds < 1:
        raise UsageError(f"--seeds is how many, at least 1; got {seeds}.")
    found = problem.task(task, download=download)
    asked = {
        "lr": lr,
        "batch_size": batch_size,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "schedule": schedule,
    }
    recipe = recipe_of(found, asked)
    search = {name: value for name, value in dataclasses.asdict(searching).items() if value is not None}
    inside = Recipe(optimizer=solver, lr=1.0, steps=solver_steps, batch_size=solver_batch, **search)
    chosen: dict[str, Any] = {
        "dims": sorted(set(_numbers("--dims", dims, int))),
        "epochs": epochs,
        "long": long,
        "every": every,
        "seeds": list(range(common.seed, common.seed + seeds)),
    }
    question = {
        **problem.record(task), **chosen, "dtype": common.dtype, "device": device.type,
        "recipe": dataclasses.asdict(recipe), "solver": dataclasses.asdict(inside),
    }  # fmt: skip

    def compute() -> Result:
        return reduction(found, **chosen, recipe=recipe, solver=inside, device=device, dtype=dtype, folder=run.folder)

    run = Run(out)
    with _begun(run):
        done = run.begin("dldr", question, _about(found))
        answer(run, "reduction", question, compute, common.json, show=tell_table)
        if not done:
            run.update(state="finished", ended=now())


def _numbers(flag: str, text: str | None, read: Callable[[str], Any]) -> list[Any]:
    try:
        return [read(part) for part in text.split(",")] if text else []
    except ValueError:
        example = "1,2,4,8" if read is int else "0.3,0.1"
        raise UsageError(f"{flag} takes numbers separated by commas, such as {example}; got {text!r}.") from None


def _powers(task: Task) -> tuple[int, ...]:
    size = sum(parameter.numel() for parameter in task.make(0).parameters() if parameter.requires_grad)
    return tuple(2**k for k in range(LARGEST.bit_length()) if 2**k <= min(size, LARGEST))


def _watch(training: Iterator[Progress]) -> None:
    """Follow a sweep: a bar on a terminal, a line an ensemble elsewhere."""
    if not sys.stderr.isatty():
        for state in training:
            if state.step == state.steps:
                note(f"trained {state.what}: {state.done:,} of {state.cells:,} cells")
        return
    from rich import progress
    from rich.console import Console

    columns = (
        progress.BarColumn(),
        progress.TextColumn("{task.completed} of {task.total} cells"),
        progress.TimeElapsedColumn(),
        progress.TextColumn("{task.fields[state]}", markup=False),
    )
    with progress.Progress(*columns, console=Console(stderr=True)) as bar:
        line = bar.add_task("", total=None, state="")
        for state in training:
            bar.update(
                line,
                completed=state.done,
                total=state.cells,
                state=f"{state.what}: step {state.step:,} of {state.steps:,}",
            )
