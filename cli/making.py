"""The commands that make runs: train, import."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from landscape import files
from landscape.cli.options import WHOLE, Common, Problem, note
from landscape.errors import UsageError
from landscape.runs import Run, place

if TYPE_CHECKING:
    from landscape.descent import Recipe
    from landscape.families import Source
    from landscape.recordings import Progress, Within
    from landscape.tasks import Task


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Inside:
    """Descent in a subspace instead of the whole space."""

    subspace: str | None = None
    """Where to descend: random:64, burn-in:64@100 (after 100 steps in the whole space), lottery:40, dldr:40, hessian:20. Default: the whole space."""
    source: Annotated[str | None, Parameter(name="--from")] = None
    """The RUN that lottery, dldr and hessian are taken from (or RUN@step=500: up to there); random and burn-in go through its point."""
    basis: Literal["gaussian", "haar", "srht", "sparse"] | None = None
    """Of random directions: gaussian columns of unit norm (the default), orthonormal (haar), or without a stored matrix (srht, sparse)."""
    layers: Annotated[bool, Parameter(name="--per-layer", negative="")] = False
    """Of random directions: each within one layer."""
    redraw: Annotated[int | None, WHOLE] = None
    """Of random directions: draw new ones, through the point reached, every so many steps."""
    centring: Literal["centred", "uncentred", "increments"] | None = None
    """Of a trajectory: principal directions of its points about their mean (dldr's default), about the first, or of its increments (lottery's default)."""
    base: Literal["init", "last", "mean", "own"] | None = None
    """The point that the subspace of a source goes through: its first (lottery, dldr), its last (the others), the mean of its points, or this run's own initialisation."""
    lr_scale: float | None = None
    """Factor on the learning rate; by default the first step is as long as in the whole space, whatever the dimension."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Descending:
    """How to descend; what is not given is the task's own."""

    preset: str | None = None
    """Options of a published protocol (`landscape tasks --presets`); flags win over it."""
    steps: Annotated[int | None, WHOLE] = None
    """Mini-batch updates."""
    lr: float | None = None
    """Learning rate at the height of the schedule; of an optimizer other than the task's, 1e-3 (adam; 0.03 with warmup and cosine in a subspace), or 1, a first trial of the whole step (those that search)."""
    batch_size: Annotated[int | None, WHOLE] = None
    """Rows a step; 0 is all of them. Of optimizers that search, 1,024."""
    optimizer: Literal["sgd", "adam", "lbfgs", "bfgs", "newton", "gauss-newton"] | None = None
    """SGD with momentum, Adam, a quasi-Newton method (lbfgs, bfgs), or with the exact matrix of the subspace (newton, gauss-newton)."""
    momentum: float | None = None
    """Of SGD."""
    weight_decay: float | None = None
    """Added to the gradient (L2); in a random or principal subspace, where the default is none, to that by its coordinates: it pulls to the subspace's origin."""
    schedule: Literal["constant", "step", "cosine"] | None = None
    """How the learning rate goes down."""
    milestones: Annotated[tuple[float, ...] | None, Parameter(negative="")] = None
    """Of the step schedule, as fractions of the steps."""
    gamma: float | None = None
    """Of the step schedule: the factor at each milestone."""
    warmup: Annotated[int | None, WHOLE] = None
    """Steps of linear growth of the learning rate."""
    clip: float | None = None
    """Bound on the gradient's norm; 0 is none."""
    augment: str | None = None
    """Of images: shift (up to 4 pixels; shift:2 up to 2), batch-shift (one for all images of a mini-batch), flip, or several with commas."""
    precision: Literal["full", "bf16"] | None = None
    """bf16 runs the forward pass in autocast (CUDA)."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Searching:
    """Of the optimizers that search along a line or solve for a step: lbfgs, bfgs, newton, gauss-newton."""

    search: Literal["armijo", "wolfe", "none"] | None = None
    """The line search."""
    sufficient: float | None = None
    """Decrease that a step must reach, as a share of what the slope promises."""
    shrink: float | None = None
    """Factor on a step that was refused."""
    trials: Annotated[int | None, WHOLE] = None
    """Give up a search after this many."""
    on_failure: Literal["skip", "take", "reset"] | None = None
    """When a search fails: stay, take the last trial, or stay and forget the curvature learnt."""
    secants: Literal["same", "cross"] | None = None
    """Gradients of a secant pair from one mini-batch, or from two that follow each other (Li et al. 2022)."""
    damping: float | None = None
    """Powell's, of bfgs and lbfgs; 0 is none."""
    history: Annotated[int | None, WHOLE] = None
    """Secant pairs that lbfgs keeps."""
    ridge: float | None = None
    """Of newton and gauss-newton: added to the matrix."""


def train(
    task: str,
    /,
    *,
    out: Path,
    download: Annotated[bool, Parameter(negative="")] = False,
    record_every: str = "auto",
    evaluations: Annotated[int, WHOLE] = 20,
    commit_seconds: float = 30.0,
    problem: Problem = Problem(),  # noqa: B008 (frozen)
    descending: Descending = Descending(),
    inside: Inside = Inside(),
    searching: Searching = Searching(),
    common: Common = Common(),  # noqa: B008 (frozen)
) -> None:
    """Train a task, in the whole space or in a subspace, and record its trajectory. The same command goes on with a stopped run, and returns a finished one.

    Examples:
      landscape train digits-mlp --out runs/a
      landscape train cifar10-resnet20 --data ~/data --norm group --out runs/b
      landscape train problem.py:make --steps 5000 --optimizer adam --lr 1e-3 --out runs/c
      landscape train digits-mlp --subspace random:64 --optimizer adam --out runs/d
      landscape train digits-mlp --subspace dldr:10 --from runs/a --optimizer bfgs --steps 50 --out runs/e

    Parameters
    ----------
    task
        A name from `landscape tasks`, or your own problem as package.module:function or file.py:function, returning model, loss and data.
    out
        The run's folder.
    download
        Fetch the data set into --data with torchvision.
    record_every
        Record each k-th state (a number), or log-spaced ones (log); auto keeps about 200.
    evaluations
        How often loss and accuracy are measured on all rows.
    commit_seconds
        At most this much work is lost to a kill.
    """
    from landscape.recordings import record, stop_signals

    common = common.resolved()
    device, dtype = common.torch()
    if not 0 < commit_seconds < math.inf or evaluations < 1:
        raise UsageError(
            f"--commit-seconds must be positive and finite, and --evaluations at least 1; got {commit_seconds} and {evaluations}."
        )
    found = problem.task(task, download=download)
    asked = {**dataclasses.asdict(descending), **dataclasses.asdict(searching)}
    recipe = recipe_of(found, asked, inside=inside.subspace is not None)
    about = _about(found)
    if descending.batch_size is None and recipe.batch_size == len(found.data.train):
        about["notes"] = [
            f"batch size {recipe.batch_size}: all training rows, which are no more than the default batch."
        ]
    every = _every(record_every, recipe.steps)
    options = {
        **problem.record(task), "seed": common.seed, "dtype": common.dtype, "device": device.type,
        **_fields(recipe), "record_every": every, "evaluations": evaluations, **given(inside),
    }  # fmt: skip
    run = Run(out)
    within, source = _within(inside, found, run)
    options |= {"source": source} if source else {}
    if within and within.redraw and recipe.weight_decay:
        raise UsageError(
            f"--weight-decay in a subspace pulls the coordinates to its origin, and with --redraw these begin anew every {within.redraw} steps. Leave one of them out."
        )
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
                        restrict=within.restrict(run, recipe, common.seed) if within else None,
                        descent=within.descent if within else None,
                    ),
                    f"training {found.name}",
                )
        else:
            note(f"({out} is already finished)")
    _announce(run, common.json)


def recipe_of(task: Task, asked: Mapping[str, Any], inside: bool = False) -> Recipe:
    """The task's recipe with what was asked for (None: nothing) in place of its own; inside: of a subspace.

    Another optimizer than the task's brings its own learning rate, schedule and batch: the task's were found for its own. Inside a subspace there is no weight
    decay: there it would pull to the subspace's origin.
    """
    from landscape.descent import Recipe

    own = {name: value for name, value in asked.items() if value is not None and name != "preset"}
    chosen = str(own.get("optimizer", task.defaults.get("optimizer")))
    for name, optimizers in _TAKEN_BY.items():
        if name in own and chosen not in optimizers:
            raise UsageError(
                f"--{name.replace('_', '-')} would do nothing for {chosen}: it is of {', '.join(optimizers)}. Leave it out."
            )
    fields: dict[str, Any] = dict(task.defaults) | ({"weight_decay": 0.0} if inside else {})
    if chosen == "adam" and inside:
        # digits-mlp, 600 steps: the mean training loss of random d = 4, 16, 64, 256 (3 seeds) ended at 2.27, 1.99, 1.18, 0.44 with 1e-3 and at 2.28, 1.89, 0.72, 0.013
        # with 0.03, which without warmup threw 1 of 4 lottery trainings off at d = 8 and 16, and with it none. A cosine was as good as a constant rate or better
        fields |= {"lr": 0.03, "schedule": "cosine", "warmup": int(own.get("steps", fields["steps"])) // 10}
    elif chosen != fields.get("optimizer"):
        # Adam: Kingma and Ba 2015, section 2. Those that search try the whole step first, on batches of 1,024 rows as the code of Li et al. 2022: curvature of a
        # small batch misleads them
        searching = {"lr": 1.0, "schedule": "constant", "warmup": 0, "batch_size": min(1024, len(task.data.train))}
        fields |= {"lr": 1e-3} if chosen == "adam" else searching
    return Recipe(**{**fields, **own})


_SECANT, _MATRIX = ("bfgs", "lbfgs"), ("newton", "gauss-newton")
_TAKEN_BY = {
    "momentum": ("sgd",), "history": ("lbfgs",), "secants": _SECANT, "damping": _SECANT, "ridge": _MATRIX,
    **dict.fromkeys(("search", "sufficient", "shrink", "trials", "on_failure"), (*_SECANT, *_MATRIX)),
}  # fmt: skip


def given(options: object) -> dict[str, Any]:
    """The options of a group that were given, so that runs made before the group existed are still found."""
    return {name: value for name, value in dataclasses.asdict(options).items() if value not in (None, False)}  # type: ignore[call-overload]


def _within(inside: Inside, task: Task, run: Run) -> tuple[Within | None, dict[str, Any] | None]:
    """The subspace asked for, None for the whole space, and what the record keeps of its source, such that another run made at the same path is another source.

    A run that has its subspace on disk goes on without the source. Raises UsageError for options that would do nothing.
    """
    from landscape import families
    from landscape.descent import Recipe
    from landscape.recordings import Within

    flags = [_FLAGS.get(name, "--" + name.replace("_", "-")) for name in given(inside) if name != "subspace"]
    if inside.subspace is None:
        if flags:
            raise UsageError(
                f"{', '.join(flags)} would do nothing without a subspace. Add --subspace random:64, or leave it out."
            )
        return None, None
    family = families.parse(inside.subspace)
    blind = family.blind
    idle = {
        "--basis": blind,
        "--per-layer": blind,
        "--redraw": blind,
        "--centring": family.along,
        "--base": inside.source is not None,
    }
    for flag in flags:
        if not idle.get(flag, True):
            why = "without --from RUN" if flag == "--base" else f"for {family}"
            raise UsageError(f"{flag} would do nothing {why}. Leave it out.")
    if inside.redraw is not None and inside.redraw < 1:
        raise UsageError(f"--redraw takes a number of steps, at least 1; got {inside.redraw}.")
    if inside.lr_scale is not None and not (0 < inside.lr_scale < math.inf):
        raise UsageError(f"--lr-scale must be positive and finite; got {inside.lr_scale}.")
    if family.dim is None:
        raise UsageError(f"say how many dimensions: --subspace {family.name}:64{f'@{family.at}' if family.at else ''}.")
    source, kept = None, None
    if inside.source is not None:
        known = run.record()["options"].get("source") if run.record_path.exists() else None
        named = {str(Path(text).resolve()) for text in (inside.source, inside.source.rpartition("@")[0])}
        if known and known["run"] in named and run.subspace_path.exists() and not Path(known["run"]).exists():
            kept = known
        else:
            source, kept = _source(inside.source, family.at)
    choice = families.Choice(inside.basis or "gaussian", inside.layers, inside.centring, inside.base)
    burn_in = Recipe(**task.defaults)  # type: ignore[arg-type]
    return Within(family, burn_in, choice, source, inside.redraw or 0, inside.lr_scale), kept


def _source(text: str, at: int) -> tuple[Source, dict[str, Any]]:
    """The recorded trajectory that `--from` names, up to a step (of a burn-in: `at`), and what the record keeps of it."""
    from landscape.families import Source

    where = place(text)
    if at and ("@" in text and not Path(text).exists()) and where.step != at:
        raise UsageError(
            f"--from {text} names step {where.step}, and the burn-in ends at step {at}. Write --from {where.run.folder}."
        )
    if at:
        where = place(f"{where.run.folder}@{at}")
    if where.run.record()["state"] != "finished":
        note(
            f"warning: {where.run.folder} is not finished: its trajectory ends at step {where.run.trajectory().steps[-1]:,}."
        )
    kept = {"run": str(where.run.folder.resolve()), "step": where.step, "checksum": where.checksum}
    return Source(where.run.trajectory(), where.step, str(where.run.folder)), kept


_FLAGS = {"source": "--from", "layers": "--per-layer"}


def import_(
    *checkpoints: Path,
    task: str,
    out: Path,
    allow_nonfinite: Annotated[bool, Parameter(negative="")] = False,
    seed: Annotated[int, WHOLE] = 0,
    json: Annotated[bool, Parameter(negative="")] = False,
    config: Path | None = None,
    problem: Problem = Problem(),  # noqa: B008 (frozen)
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
    allow_nonfinite
        Accept NaN or infinite weights.
    seed
        For tasks whose model is made from one: that of the run which wrote the checkpoints.
    json
        Print the run as one line of JSON.
    config
        YAML file of options; flags win over it.
    """
    from landscape.recordings import import_checkpoints

    if not checkpoints:
        raise UsageError("no checkpoint given. Name files or folders: landscape import CKPT... --task TASK --out RUN")
    found = problem.task(task)
    options = {
        **problem.record(task), "seed": seed, "checkpoints": [str(path) for path in checkpoints],
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


def _fields(recipe: object) -> dict[str, Any]:
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
        for name, value in run.record().get("subspace", {}).items():
            print(f"  {name}: {_plain(value)}")
        print(f"  {run.folder}")


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


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
                    written = (run.trajectory_path / "manifest.jsonl").exists() or run.levels()
                    if run.record_path.exists() and not written and not (run.folder / "branches").exists():
                        shutil.rmtree(run.trajectory_path, ignore_errors=True)
                        for path in (run.metrics_path, run.resume_path, run.subspace_path, run.record_path):
                            path.unlink(missing_ok=True)
                    if not run.record_path.exists():
                        (run.folder / ".lock").unlink(missing_ok=True)
                        if folder_too:
                            run.folder.rmdir()
            raise
