"""The commands that make runs: train, import."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from landscape import files
from landscape.cli.options import WHOLE, Common, note
from landscape.errors import UsageError
from landscape.runs import Run

if TYPE_CHECKING:
    from landscape.recordings import Progress
    from landscape.tasks import Task


def train(
    task: str,
    /,
    *,
    out: Path,
    steps: Annotated[int | None, WHOLE] = None,
    lr: float | None = None,
    batch_size: Annotated[int | None, WHOLE] = None,
    optimizer: Literal["sgd", "adam"] | None = None,
    momentum: float | None = None,
    weight_decay: float | None = None,
    schedule: Literal["constant", "step", "cosine"] | None = None,
    milestones: Annotated[tuple[float, ...] | None, Parameter(negative="")] = None,
    warmup: Annotated[int | None, WHOLE] = None,
    clip: float | None = None,
    augment: str | None = None,
    precision: Literal["full", "bf16"] | None = None,
    width: float = 1,
    activation: str | None = None,
    norm: str | None = None,
    data: Path | None = None,
    download: Annotated[bool, Parameter(negative="")] = False,
    limit: Annotated[int | None, WHOLE] = None,
    record_every: str = "auto",
    evaluations: Annotated[int, WHOLE] = 20,
    commit_seconds: float = 30.0,
    common: Common = Common(),  # noqa: B008 (frozen)
) -> None:
    """Train a task and record its trajectory. The same command goes on with a stopped run, and returns a finished one.

    Examples:
      landscape train digits-mlp --out runs/a
      landscape train cifar10-resnet20 --data ~/data --norm group --out runs/b
      landscape train problem.py:make --steps 5000 --optimizer adam --lr 1e-3 --out runs/c

    Parameters
    ----------
    task
        A name from `landscape tasks`, or your own problem as package.module:function or file.py:function, returning model, loss and data.
    out
        The run's folder.
    steps
        Mini-batch updates; here and below the default is the task's own.
    lr
        Learning rate at the height of the schedule.
    batch_size
        Rows a step; 0 is all of them.
    optimizer
        SGD with momentum, or Adam.
    momentum
        Of SGD.
    weight_decay
        Added to the gradient (L2).
    schedule
        How the learning rate goes down.
    milestones
        Of the step schedule, as fractions of the steps.
    warmup
        Steps of linear growth of the learning rate.
    clip
        Bound on the gradient's norm; 0 is none.
    augment
        Of images: shift, flip, or both with a comma.
    precision
        bf16 runs the forward pass in autocast (CUDA).
    width
        Factor on the network's widths.
    activation
        Of the network: relu, tanh, gelu, ...
    norm
        Of the network: batch, group, layer or none.
    data
        Folder of the data set.
    download
        Fetch the data set into --data with torchvision.
    limit
        Train on this many rows only.
    record_every
        Record each k-th state (a number), or log-spaced ones (log); auto keeps about 200.
    evaluations
        How often loss and accuracy are measured on all rows.
    commit_seconds
        At most this much work is lost to a kill.
    """
    from landscape import tasks
    from landscape.descent import Recipe
    from landscape.recordings import record, stop_signals

    common = common.resolved()
    device, dtype = common.torch()
    if not 0 < commit_seconds < math.inf or evaluations < 1:
        raise UsageError(
            f"--commit-seconds must be positive and finite, and --evaluations at least 1; got {commit_seconds} and {evaluations}."
        )
    found = tasks.find(task, width=width, activation=activation, norm=norm, data=data, download=download, limit=limit)
    asked = {
        "steps": steps, "lr": lr, "batch_size": batch_size, "optimizer": optimizer, "momentum": momentum, "weight_decay": weight_decay,
        "schedule": schedule, "milestones": milestones, "warmup": warmup, "clip": clip, "augment": augment, "precision": precision,
    }  # fmt: skip
    recipe = Recipe(**{**found.defaults, **{name: value for name, value in asked.items() if value is not None}})  # type: ignore[arg-type]
    about = _about(found)
    if batch_size is None and recipe.batch_size == len(found.data.train):
        about["notes"] = [
            f"batch size {recipe.batch_size}: all training rows, which are no more than the default batch."
        ]
    every = _every(record_every, recipe.steps)
    options = {
        "task": task, **_task_options(width, activation, norm, data, limit), "seed": common.seed, "dtype": common.dtype, "device": device.type,
        **_fields(recipe), "record_every": every, "evaluations": evaluations,
    }  # fmt: skip
    run = Run(out)
    with _begun(run):
        if not run.begin("train", options, about):
            with stop_signals():
                _watch(
                    record(
                        run,
                        found,
                        recipe,
                        seed=common.seed,
                        every=every,
                        evaluations=evaluations,
                        device=device,
                        dtype=dtype,
                        commit_seconds=commit_seconds,
                    ),
                    f"training {found.name}",
                )
        else:
            note(f"({out} is already finished)")
    _announce(run, common.json)


def import_(
    *checkpoints: Path,
    task: str,
    out: Path,
    width: float = 1,
    activation: str | None = None,
    norm: str | None = None,
    data: Path | None = None,
    limit: Annotated[int | None, WHOLE] = None,
    allow_nonfinite: Annotated[bool, Parameter(negative="")] = False,
    seed: Annotated[int, WHOLE] = 0,
    json: Annotated[bool, Parameter(negative="")] = False,
    config: Path | None = None,
) -> None:
    """Import checkpoints made elsewhere into a run, so that every analysis takes them.

    Reads safetensors (also sharded), .pt, .pth, .ckpt (weights only: nothing in a file is ever executed) and .npz. Steps are read from the files' names, else from their contents.

    Examples:
      landscape import ckpts/step_*.pt --task cifar10-resnet20 --data ~/data --out runs/mine
      landscape import model.safetensors --task problem.py:make --out runs/mine

    Parameters
    ----------
    checkpoints
        Files, or folders of them.
    task
        What the checkpoints are weights of: a name from `landscape tasks`, or your own file.py:function.
    out
        The run's folder.
    width
        Factor on the network's widths.
    activation
        Of the network.
    norm
        Of the network.
    data
        Folder of the data set.
    limit
        Use this many training rows only.
    allow_nonfinite
        Accept NaN or infinite weights.
    seed
        For tasks whose model is made from one: that of the run which wrote the checkpoints.
    json
        Print the run as one line of JSON.
    config
        YAML file of options; flags win over it.
    """
    from landscape import tasks
    from landscape.recordings import import_checkpoints

    if not checkpoints:
        raise UsageError("no checkpoint given. Name files or folders: landscape import CKPT... --task TASK --out RUN")
    found = tasks.find(task, width=width, activation=activation, norm=norm, data=data, limit=limit)
    options = {
        "task": task, **_task_options(width, activation, norm, data, limit), "seed": seed, "checkpoints": [str(path) for path in checkpoints],
        "allow_nonfinite": allow_nonfinite,
    }  # fmt: skip
    run = Run(out)
    with _begun(run):
        if not run.begin("import", options, _about(found)):
            for line in import_checkpoints(run, found, checkpoints, allow_nonfinite=allow_nonfinite):
                note(line)
    _announce(run, json)


def _watch(descent: Iterator[Progress], text: str) -> None:
    """Follow a descent: a bar on a terminal, a line an evaluation elsewhere."""
    if not sys.stderr.isatty():
        for state in descent:
            note(f"step {state.step:>7,} of {state.steps:,}   " + "   ".join(_shown(state.metrics)))
        return
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[state]}"),
    )
    with progress.Progress(*columns, console=Console(stderr=True)) as bar:
        line = bar.add_task(text, total=None, state="")
        for state in descent:
            bar.update(line, completed=state.step, total=max(state.steps, 1), state=", ".join(_shown(state.metrics)))


def _every(text: str, steps: int) -> int | Literal["log"]:
    if text == "log":
        return "log"
    if text == "auto":
        return max(1, steps // 200)
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"--record-every takes a number of steps, log or auto; got {text!r}.")
    return int(text)


def _task_options(
    width: float, activation: str | None, norm: str | None, data: Path | None, limit: int | None
) -> dict[str, Any]:
    return {
        "width": width,
        "activation": activation,
        "norm": norm,
        "data": str(data.resolve()) if data else None,
        "limit": limit,
    }


def _fields(recipe: object) -> dict[str, Any]:
    import dataclasses

    return dataclasses.asdict(recipe)  # type: ignore[call-overload, no-any-return]


def _about(task: Task) -> dict[str, Any]:
    import torch

    return {
        "data": task.data.description,
        "fingerprint": task.data.fingerprint,
        "rows": {"train": len(task.data.train), "test": len(task.data.test)},
        "threads": torch.get_num_threads(),
    }


def _shown(metrics: Any) -> list[str]:
    names = {
        "train_loss": "train loss {:.4f}",
        "test_loss": "test loss {:.4f}",
        "test_accuracy": "test accuracy {:.4f}",
    }
    return [text.format(metrics[name]) for name, text in names.items() if metrics[name] is not None]


def _announce(run: Run, as_json: bool) -> None:
    from landscape.analysis.histories import history

    if as_json:
        print(json.dumps({"run": str(run.folder), "record": run.record()}, allow_nan=False))
    else:
        print(history(run).summary())
        print(f"  {run.folder}")


@contextlib.contextmanager
def _begun(run: Run) -> Iterator[None]:
    """Hold the run's folder, so that run.json tells of what is written there.

    A run that was begun here and failed before its first row is taken back: the corrected command then finds the folder as it was.
    """
    import shutil

    if run.record_path.exists() and run.record()["state"] == "finished":
        yield  # it stays as it is, also where it cannot be written to
        return
    folder_too = not run.folder.exists()
    with files.exclusive(run.folder, lend=True):
        ours = not run.record_path.exists()
        try:
            yield
        except BaseException:
            if ours:
                with contextlib.suppress(OSError):
                    if run.record_path.exists() and not (run.trajectory_path / "manifest.jsonl").exists():
                        shutil.rmtree(run.trajectory_path, ignore_errors=True)
                        for path in (run.metrics_path, run.resume_path, run.record_path):
                            path.unlink(missing_ok=True)
                    if not run.record_path.exists():
                        (run.folder / ".lock").unlink(missing_ok=True)
                        if folder_too:
                            run.folder.rmdir()
            raise
