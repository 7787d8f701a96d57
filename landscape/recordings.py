"""Between a run's folder and the mathematics: descend into a run, import checkpoints into one, take up its objective at a recorded point.

Letters: D parameters, B buffer entries, T recorded rows.

Commit order while recording: rows, then metrics, then resume.safetensors. So whatever resume.safetensors says was done is on disk, and rows and metrics that
outlived it are recognised by their step when the descent replays them, bitwise equal.
"""

from __future__ import annotations

import dataclasses
import math
import signal
import threading
import time
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from landscape import checkpoints, families, files, solvers, subspaces, tasks
from landscape.descent import Recipe, Start, State, descend, recorded, redrawn
from landscape.errors import DivergedError, UnsafeInputError, UsageError, unknown
from landscape.families import Choice, Family, Source
from landscape.objectives import Buffers, Objective, flat_buffers, named_buffers
from landscape.runs import Place, Run, now
from landscape.seeds import child_seed
from landscape.subspaces import Subspace
from landscape.tasks import Task
from landscape.trajectories import Row, Trajectory, TrajectoryWriter

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = {"float32": torch.float32, "float64": torch.float64}

# at most this much work is lost to a kill
COMMIT_SECONDS = 30.0


def device_of(name: str) -> torch.device:
    """`auto` is CUDA, else MPS, else the CPU. Raises UsageError for a device that is not there."""
    if name not in DEVICES:
        raise unknown("device", name, DEVICES)
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(device for device in ("cuda", "mps", "cpu") if there[device])
    if not there[name]:
        raise UsageError(
            f"device {name} was asked for, but torch {torch.__version__} sees none here. Use --device cpu."
        )
    return torch.device(name)


def dtype_of(name: str) -> torch.dtype:
    """float32 or float64."""
    if name not in DTYPES:
        raise unknown("dtype", name, DTYPES)
    return DTYPES[name]


# -- descend into a run -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Progress:
    """After an evaluation of a recorded descent."""

    step: int
    steps: int
    metrics: Mapping[str, float | None]


def record(
    run: Run,
    task: Task,
    recipe: Recipe,
    *,
    seed: int,
    every: int | Literal["log"],
    evaluations: int = 20,
    device: torch.device,
    dtype: torch.dtype,
    commit_seconds: float = COMMIT_SECONDS,
    restrict: Callable[[Objective, Tensor], tuple[Objective, Tensor | Start]] | None = None,
    descent: Callable[[Objective, Start, Recipe, int], Iterator[State]] | None = None,
    noise: int | None = None,
    order: int | None = None,
    states: Collection[int] = (),
) -> Iterator[Progress]:
    """Descend on the task's training rows, or go on where a stopped run was, and commit into the run's folder; yields after each evaluation.

    every: record each k-th state, or log-spaced ones; the first and the last always. evaluations: how often loss and accuracy are measured on
    all rows, besides at the first and last state (20 draws a curve).
    restrict: from the whole objective and its start, what to descend on instead and from where, such as
    `lambda f, w: (f.restrict(subspaces.random(w, 64, generator(seed, "subspace"))), w.new_zeros(64))`; the same at every call. What is recorded is
    the point among all parameters; only resume.safetensors holds coordinates. descent: what makes the states, by default `descend`.
    See `Within` for both.
    noise: seed of the order of the rows, augmentation and dropout, where it is not to be `seed`, which then names the initialisation alone; order: of the order alone.
    states: steps whose whole state is kept (see `state_of`); they are recorded, too.
    Raises LandscapeError when the loss stops being finite; everything up to there is kept.
    """
    f, whole = Objective.of(task.make(seed), task.loss, task.data.train, device=device, dtype=dtype)
    with files.exclusive(run.folder):
        start: Tensor | Start = whole
        if restrict is not None:
            f, start = restrict(f, whole)
        test = f.on(task.data.test)
        start = start if isinstance(start, Start) else Start(start)
        files.drop_torn_tail(run.metrics_path)
        files.sweep(run.folder, run.resume_path.name)
        measured = int(max(run.metrics().get("step", [-1])))
        writer = TrajectoryWriter(run.trajectory_path, f.model.layout)
        _keep_frozen(run, f)
        resumed = _resumed(run, f, start.scale)
        begin = resumed or start

        def is_kept(step: int) -> bool:
            return recorded(step, recipe.steps, every) or step == start.step or step in states

        due = next((step for step in range(begin.step - 1, start.step - 1, -1) if is_kept(step)), -1)
        if writer.last_step < due:
            raise UnsafeInputError(
                f"{run.folder} has lost rows: the last on disk is of step {writer.last_step}, and those up to step {due} were committed. "
                f"Restore the trajectory from a copy, or delete {run.resume_path} to descend again from step 0 and fill it up."
            )
        interval = max(1, math.ceil(recipe.steps / max(evaluations, 1)))
        state: State | None = None
        committed = time.monotonic()

        def commit() -> None:
            writer.commit()
            if state is not None:
                files.write_atomic(run.resume_path, _resume_bytes(state))

        try:
            seeds = seed if noise is None else noise
            made = descent(f, begin, recipe, seeds) if descent else descend(f, begin, recipe, seeds, order, lend=True)
            for state in made:
                full = is_kept(state.step) and writer.append(row_of(state, f))
                if state.step in states:
                    keep_state(run, state)
                if state.step % interval == 0 or state.step == recipe.steps:
                    if not math.isfinite(float(state.loss)):
                        raise DivergedError(
                            f"the loss is {float(state.loss)} at step {state.step}: descent diverged. Use a smaller --lr, --warmup or --clip; what was recorded is kept."
                        )
                    metrics = _metrics(state, f, test, recipe)
                    if state.step > measured:
                        files.append_line(run.metrics_path, metrics)
                    yield Progress(state.step, recipe.steps, metrics)  # type: ignore[arg-type]
                if full or time.monotonic() - committed >= commit_seconds:
                    commit()
                    committed = time.monotonic()
            commit()
            final = files.read_lines(run.metrics_path)[-1]
            run.update(state="finished", ended=now(), final=final)
        except BaseException as error:
            # an interrupt, a kill by signal, a full disk: keep what can be kept, and say in run.json how it ended
            try:
                if not isinstance(error, OSError):
                    commit()
            finally:
                ended(run, error)
            raise


def ended(run: Run, error: BaseException) -> None:
    """Say in run.json that an error ended the run, where the disk still takes that."""
    with suppress(OSError):
        run.update(state="failed" if isinstance(error, Exception) else "interrupted", ended=now())


@contextmanager
def stop_signals() -> Iterator[None]:
    """SIGTERM and SIGUSR1 (what schedulers send before they kill) end a recorded descent as Ctrl-C does: with everything committed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _metrics(state: State, f: Objective, test: Objective, recipe: Recipe) -> dict[str, object]:
    buffers = state.buffers
    train_value, test_value = (g.with_buffers(buffers).value(state.point) for g in (f, test))
    numbers = {
        "lr": state.rate,
        "batch_loss": float(state.loss),
        "train_loss": float(train_value.loss),
        "train_accuracy": float(train_value.accuracy),
        "test_loss": float(test_value.loss),
        "test_accuracy": float(test_value.accuracy),
        **{name: float(count) for name, count in solvers.counts(state.moments, recipe).items()},
    }
    return {"step": state.step, **{name: value if math.isfinite(value) else None for name, value in numbers.items()}}


def row_of(state: State, f: Objective, member: int | None = None) -> Row:
    """What a trajectory keeps of a state, or of one member of an ensemble's."""
    point, buffers, loss = f.lift(state.point), state.buffers, state.loss
    if member is not None:
        point, loss = point[member], loss[member]
        buffers = {name: value[member] for name, value in buffers.items()}
    return Row(state.step, point.cpu().numpy(), flat_buffers(f.model.layout, buffers), float(loss), state.rate)


def _resume_bytes(state: State) -> bytes:
    tensors = {"point": state.point, **{f"moment.{i}": moment for i, moment in enumerate(state.moments)}}
    tensors |= {f"buffer.{name}": value for name, value in state.buffers.items()}
    tensors["since"] = torch.tensor(state.since)
    return _sealed(state.step, tensors)


def _sealed(step: int, tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors of a step as the bytes of a safetensors file, with their checksum."""
    held = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    return safetensors.torch.save(held, {"step": str(step), "crc32": str(_checksum(step, held))})


def _unsealed(path: Path, device: torch.device, advice: str) -> tuple[int, dict[str, Tensor]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        step, crc = int(metadata["step"]), int(metadata["crc32"])
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError) as error:
        raise UnsafeInputError(f"the {path.stem} file is damaged ({error}). {advice}") from None
    if _checksum(step, tensors) != crc:
        raise UnsafeInputError(f"the {path.stem} file is damaged: its checksum does not match. {advice}")
    return step, {name: value.to(device) for name, value in tensors.items()}


def _checksum(step: int, tensors: Mapping[str, Tensor]) -> int:
    crc = zlib.crc32(str(step).encode())
    for name in sorted(tensors):
        crc = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes(), zlib.crc32(name.encode(), crc))
    return crc


def _resumed(run: Run, f: Objective, scale: Tensor | float | None) -> Start | None:
    if not run.resume_path.exists():
        return None
    advice = f"Restore {run.resume_path} from a copy, or delete it to descend again from the start: committed rows stay as they are."
    return dataclasses.replace(_start(run.resume_path, f, advice), scale=scale)


def _start(path: Path, f: Objective, advice: str) -> Start:
    step, moved = _unsealed(path, f.device, advice)
    moments = tuple(moved[f"moment.{i}"] for i in range(sum(name.startswith("moment.") for name in moved)))
    buffers = {name: moved[f"buffer.{name}"] for name in f.buffers}
    return Start(moved["point"], step, moments, buffers, since=int(moved["since"]) if "since" in moved else 0)


def keep_state(run: Run, state: State) -> None:
    """Keep a whole state with the run, unless it is there."""
    path = run.state_path(state.step)
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        files.write_atomic(path, _resume_bytes(state))


def state_of(run: Run, step: int, f: Objective) -> Start:
    """The whole state (coordinates, moments, buffers) that a run was asked to keep at a step.

    Raises UsageError where it was not, UnsafeInputError where the file is damaged.
    """
    path = run.state_path(step)
    if not path.exists():
        kept = sorted(int(found.stem.removeprefix("step-")) for found in path.parent.glob("step-*.safetensors"))
        advice = (
            f"Name one of those that are there: {', '.join(map(str, kept))}."
            if kept
            else "It was not trained to keep any, or they were deleted."
        )
        raise UsageError(f"{run.folder} keeps no whole state of step {step}. {advice}")
    return _start(path, f, f"Restore {path} from a copy, or train again into another --out.")


def taken(f: Objective, where: Place) -> tuple[Tensor, Buffers]:
    """The point (D,) and the buffers recorded at a place, of f's dtype and on its device; f is the whole objective of the place's task.

    Raises UsageError where the model is not the one recorded.
    """
    trajectory = where.run.trajectory()
    _require_model(f, trajectory, where.run)
    row = trajectory.row(trajectory.index(where.step))
    return torch.from_numpy(np.array(row.point)).to(f.device, f.dtype), named_buffers(
        trajectory.layout, row.buffers, f.buffers
    )


def _require_model(f: Objective, trajectory: Trajectory, run: Run) -> None:
    if [(e.name, e.shape, e.kind) for e in f.model.layout.entries] != [
        (e.name, e.shape, e.kind) for e in trajectory.layout.entries
    ]:
        raise UsageError(
            f"the task's model has other tensors than the trajectory of {run.folder}. Was the code changed since?"
        )


def _keep_frozen(run: Run, f: Objective) -> None:
    frozen = getattr(f.model, "frozen", {})
    named = {entry.name: frozen[entry.name].cpu().contiguous() for entry in f.model.layout.of("frozen")}
    if named and not run.frozen_path.exists():
        files.write_atomic(run.frozen_path, safetensors.torch.save(named))


# -- descend within a subspace ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Within:
    """A subspace to descend in, for `record`: record(run, ..., restrict=within.restrict(run, recipe, seed), descent=within.descent).

    Origin and directions that come from data are kept in the run's subspace.safetensors, and what is to know of them in run.json: the source may go.
    """

    family: Family
    burn_in: Recipe  # of the whole space, for a burn-in without a source
    choice: Choice = field(default_factory=Choice)
    source: Source | None = None
    redraw: int = 0  # draw another random subspace, through the point reached, every so many steps; 0: never
    scale: float | None = None  # factor on the rate; None: the first step is as long as in the whole space

    def restrict(self, run: Run, recipe: Recipe, seed: int) -> Callable[[Objective, Tensor], tuple[Objective, Start]]:
        """What `record` restricts the objective to, and where the descent starts."""

        def restricted(f: Objective, w: Tensor) -> tuple[Objective, Start]:
            assert self.family.dim is not None
            scale = self.scale or self.family.scale(recipe.optimizer, f.dim, basis=self.choice.basis)
            if not run.subspace_path.exists():
                self._choose(run, f, w, seed, scale)
            _, kept = _unsealed(
                run.subspace_path, f.device, f"Restore {run.subspace_path} from a copy, or train into another --out."
            )
            origin, directions = kept["origin"], kept.get("directions")
            buffers = {name: kept[f"buffer.{name}"] for name in f.buffers}
            if self.redraw:
                return f, Start(origin, buffers=buffers, scale=scale)
            if directions is None:
                space = families.draw(origin, self.family.dim, seed, self.choice, f.model.layout)
            else:
                space = subspaces.span(origin, directions)
            return f.restrict(space), Start(origin.new_zeros(space.dim), buffers=buffers, scale=scale)

        return restricted

    def descent(self, f: Objective, start: Start, recipe: Recipe, seed: int) -> Iterator[State]:
        """What makes the states."""
        if not self.redraw:
            return descend(f, start, recipe, seed, lend=True)

        def another(k: int, origin: Tensor) -> Subspace:
            assert self.family.dim is not None
            return families.draw(origin, self.family.dim, seed, self.choice, f.model.layout, k)

        return redrawn(f, start, recipe, seed, another, self.redraw)

    def _choose(self, run: Run, f: Objective, w: Tensor, seed: int, scale: float) -> None:
        chosen = families.choose(
            self.family, f, w, seed=seed, choice=self.choice, burn_in=self.burn_in, source=self.source
        )
        tensors = {
            "origin": chosen.subspace.origin,
            **{f"buffer.{name}": value for name, value in chosen.buffers.items()},
        }
        if chosen.directions is not None:
            tensors["directions"] = chosen.directions
        files.write_atomic(run.subspace_path, _sealed(0, tensors))
        more = {"per layer": self.choice.layers, "redrawn every": self.redraw}
        run.update(subspace={**chosen.facts, **{k: v for k, v in more.items() if v}, "factor on the rate": scale})


# -- import into a run --------------------------------------------------------------------------------------------------


def import_checkpoints(run: Run, task: Task, paths: Sequence[Path], *, allow_nonfinite: bool = False) -> list[str]:
    """Write checkpoints made elsewhere into a run, in the order of their steps; returns notes on what was recognised and skipped.

    Steps come from the files' names, else from their contents; a single file without either is step 0.
    Every file is read and matched against the task's model before the first row is written, and read again when its row is: they are never
    in memory together.
    Raises UnsafeInputError and UsageError as `landscape.checkpoints` does, UsageError where tensors that do not move differ between the files.
    """
    ordered = checkpoints.order(paths)
    f, _ = Objective.of(task.make(0), task.loss, task.data.train)
    layout = f.model.layout
    expected = {entry.name: (entry.shape, getattr(torch, entry.dtype)) for entry in layout.entries}
    # exact for every parameter: half precision is stored as float32
    dtype = torch.float64 if any(entry.dtype == "float64" for entry in layout.of("parameter")) else torch.float32

    def tensors_of(path: Path) -> tuple[checkpoints.Checkpoint, dict[str, Tensor]]:
        checkpoint = checkpoints.read(path)
        return checkpoint, checkpoints.match(
            checkpoint, expected, aliases=layout.aliases, allow_nonfinite=allow_nonfinite
        )

    with files.exclusive(run.folder):
        try:
            notes: list[str] = []
            frozen: dict[str, Tensor] = {}
            found: dict[int, Path] = {}  # by step
            for path in ordered:
                checkpoint, tensors = tensors_of(path)
                notes += [f"{path.name}: {note}" for note in checkpoint.notes]
                step = 0 if checkpoint.step is None else checkpoint.step  # `order` lets only a single file have none
                if step in found:
                    raise UsageError(
                        f"two checkpoints claim step {step}: {found[step]} and {path}. Rename the files so that each has its own."
                    )
                found[step] = path
                held = {entry.name: tensors[entry.name].contiguous() for entry in layout.of("frozen")}
                frozen = frozen or held
                for name, value in held.items():
                    if not _same(value, frozen[name]):
                        raise UsageError(
                            f"{path} and {ordered[0]} differ in {name!r}, which the model holds frozen: a run keeps one value for all its points. "
                            "Import them into runs of their own, or unfreeze this tensor in the model."
                        )
                del checkpoint, tensors, held  # before the next is read
            writer = TrajectoryWriter(run.trajectory_path, layout)
            if frozen:
                files.write_atomic(run.frozen_path, safetensors.torch.save(frozen))
            for step in sorted(found):
                checkpoint, tensors = tensors_of(found[step])
                point = torch.cat([tensors[entry.name].to(dtype).flatten() for entry in layout.of("parameter")])
                # loss and rate are not known: only weights were given
                if writer.append(Row(step, point.numpy(), flat_buffers(layout, tensors), math.nan, math.nan)):
                    writer.commit()
                del checkpoint, tensors
            writer.commit()
            run.update(state="finished", ended=now(), notes=notes)
        except BaseException as error:
            ended(run, error)
            raise
    return notes


def _same(one: Tensor, other: Tensor) -> bool:
    """Equal to the bit, NaN and all."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return torch.equal(*(value.detach().reshape(-1).contiguous().view(torch.uint8) for value in (one, other)))


# -- take up a run's objective ------------------------------------------------------------------------------------------


def task_of(run: Run, *, code: str | None = None, data: Path | None = None) -> Task:
    """The task of a run, from its record.

    Code is run only when the user names it: a run made with `file.py:function` is taken up with the same spec given again as `code`.
    Raises UnsafeInputError where that is missing, UsageError where the data differ from those of the run.
    """
    options = run.options
    spec = str(options["task"])
    if tasks.is_code(spec) and code is None:
        raise UnsafeInputError(
            f"{run.folder} was made with your own code {spec!r}. A run's file never makes this tool execute code: name it again with --task {spec}."
        )
    if code is not None and code != spec:
        raise UsageError(f"{run.folder} was made with the task {spec!r}, not {code!r}.")
    folder = data or (Path(options["data"]) if options.get("data") else None)
    task = tasks.find(
        spec,
        width=options.get("width", 1),
        activation=options.get("activation"),
        norm=options.get("norm"),
        init=options.get("init"),
        data=folder,
        limit=options.get("limit"),
        label_noise=options.get("label_noise"),
    )
    known = run.record().get("fingerprint")
    if known and known != task.data.fingerprint:
        raise UsageError(
            f"the data of {spec} differ from those of {run.folder} (fingerprint {task.data.fingerprint}, then {known}). Give the folder used then with --data."
        )
    return task


def require_common_frozen(one: Site, other: Site) -> None:
    """Raise UsageError, naming the first tensor that differs, where two sites hold other numbers in what does not move."""
    first, second = (getattr(where.train.model, "frozen", {}) for where in (one, other))
    for name, value in first.items():
        if name not in second or not _same(value, second[name]):
            raise UsageError(
                f"{one.place} and {other.place} differ in {name!r}, which is frozen: no path among the trained parameters joins them. "
                "Give two points with the same frozen tensors, or unfreeze this one in the model."
            )


@dataclass(frozen=True, eq=False)
class Site:
    """A point of a run, ready to be measured."""

    place: Place
    train: Objective  # with the buffers recorded there
    test: Objective
    point: Tensor  # (D,)


def site(where: Place, task: Task, *, device: torch.device, dtype: torch.dtype, limit: int | None = None) -> Site:
    """The objectives and the point of a place. limit: measure on this many training rows only (see `some_rows`).

    Raises UsageError where the task's model is not the one recorded.
    """
    run = where.run
    module = task.make(int(run.options.get("seed", 0)))
    _restore_frozen(run, module)
    f, _ = Objective.of(module, task.loss, task.data.train, device=device, dtype=dtype)
    point, buffers = taken(f, where)
    f = f.with_buffers(buffers)
    test = f.on(task.data.test)
    return Site(where, some_rows(f, limit), test, point)


def some_rows(f: Objective, limit: int | None) -> Objective:
    """The objective on so many of its rows only, drawn evenly from the stream (0, "rows"); on all where that is None. Raises UsageError for less than 1."""
    if limit is None:
        return f
    if limit < 1:
        raise UsageError(f"at least 1 row is needed; got {limit}.")
    if limit >= len(f.rows):
        return f
    drawn = torch.randperm(len(f.rows), generator=torch.Generator().manual_seed(child_seed(0, "rows")))[:limit]
    return f.on(drawn.sort().values.to(f.device))


def _restore_frozen(run: Run, module: nn.Module) -> None:
    if not run.frozen_path.exists():
        return
    tensors = safetensors.torch.load(run.frozen_path.read_bytes())
    named = dict(module.named_parameters())
    with torch.no_grad():
        for name, value in tensors.items():
            if name in named:
                named[name].copy_(value)


def describe(run: Run, task: Task, **more: Any) -> dict[str, Any]:
    """What an answer about a run depends on, for its provenance; `more` stands with it, such as the step of a place."""
    return {
        "run": str(run.folder),
        **more,
        "task": task.name,
        "data": task.data.description,
        "fingerprint": task.data.fingerprint,
        "versions": run.record()["versions"],
        "made": now(),
    }
