"""Sweeps: a grid of trainings in subspaces, family x dimension x seed, run as ensembles in lockstep.

Letters: D parameters, d subspace dimension, E ensemble, S bases, T recorded points, N rows.

A cell is one training: a family of subspaces (random, burn-in@t, lottery, dldr, transfer), a dimension and a seed. The seed names the initialisation w_0 and
the basis A, which is what the success probability P(d, eps) is over (Larsen et al. 2022, section 2). The order of the mini-batches is not part of it: one
root seed names that for all cells, so that an ensemble shares its batches, and two cells differ only by w_0 and A. The bases of one seed are nested: a
smaller d has the first rows of the larger, and all of them and all burn-ins share one basis in memory.

First the whole space is trained once a seed by the task's own recipe: its points are what burn-ins start from and what trajectories are taken of, its end is
w*, and its scores are a cell of the family "full". Then the cells descend, as many at once as memory allows, and are committed together:

    cells.jsonl      one line a cell, appended when its ensemble has ended
    full/seed-000/   the trajectory of the whole space of that seed, recorded every few steps and exactly at the burn-ins

A cell that is committed is never trained again: a sweep that was killed goes on, and one that has ended grows by further dimensions, seeds and families.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import shutil
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from landscape import families, files, proportions, solvers, subspaces
from landscape.curvature import free_memory
from landscape.descent import Recipe, Start, State, descend, member_bytes, saved_bytes
from landscape.errors import UnsafeInputError, UsageError
from landscape.families import Choice, Family, layers_of
from landscape.objectives import Buffers, Objective, Value, named_buffers
from landscape.recordings import row_of
from landscape.runs import Run, now
from landscape.tasks import Task
from landscape.trajectories import Centring, Row, Trajectory, TrajectoryWriter

# of a trajectory: what its principal directions are taken of. A lottery basis carried over to another initialisation is "transfer"
CENTRING: dict[str, Centring] = {**families.CENTRING, "transfer": families.CENTRING["lottery"]}
NAMES = ("random", "burn-in", *CENTRING)
METRICS = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
FULL = "full"

# members of the first ensemble where nothing tells how long it will take: enough for the speed of lockstep, few enough to be over soon
PILOT = 32
# an ensemble takes about so long, the most that a kill can cost
SECONDS = 60.0
# recorded points wait for the disk until they take so much: a trajectory whose training is cut off is trained again anyway
WAITING = 2**29


@dataclass(frozen=True)
class Plan:
    """What to train. The grid may grow from call to call; the rest must stay for cells to be comparable."""

    families: tuple[Family, ...]  # without dimension
    dims: tuple[int, ...]
    seeds: tuple[int, ...]
    whole: Recipe  # of the whole space: trajectories, burn-ins, w*
    within: Recipe  # of the subspaces
    root: int = 0  # names the order of the mini-batches
    choice: Choice = Choice()  # noqa: RUF009 (frozen): of the bases
    every: int = 5  # a trajectory's points are so many steps apart, as in the released code of Larsen et al. 2022
    evaluations: int = 20  # loss and accuracy on all rows are measured so often
    level: float | None = None  # of the training loss: bisect for the smallest d that reaches it, instead of all cells

    @property
    def sources(self) -> tuple[int, ...]:
        """The seeds whose whole space is trained: a transfer takes the basis of the next seed, whichever others are asked for."""
        donors = {seed + 1 for seed in self.seeds} if any(family.name == "transfer" for family in self.families) else ()
        return tuple(sorted({*self.seeds, *donors}))


class Cell(NamedTuple):
    """One training of the grid, as it is keyed."""

    family: str
    dim: int
    seed: int


@dataclass(frozen=True)
class Progress:
    """After an evaluation of an ensemble."""

    what: str
    step: int
    steps: int
    done: int  # cells committed
    cells: int  # of the grid; an adaptive sweep ends with fewer


def sweep(run: Run, task: Task, plan: Plan, *, device: torch.device, dtype: torch.dtype) -> Iterator[Progress]:
    """Train what is missing of the grid in the run's folder; yields after each evaluation of an ensemble.

    The call checks the plan, and iterating trains. A cell whose loss or point stops being finite is marked failed with its numbers up to there; the others
    go on. Raises UsageError for a plan that cannot be trained: d not in 1..D, more directions than a trajectory has, a burn-in beyond the training.
    """
    prepared = _Sweep(run, task, plan, device, dtype)
    return prepared.train()


def cells(run: Run) -> dict[Cell, dict[str, Any]]:
    """The committed cells of a run; numbers that are not finite are NaN.

    Raises UnsafeInputError where the file is damaged.
    """
    found: dict[Cell, dict[str, Any]] = {}
    for number, line in enumerate(files.read_lines(_path(run)), 1):
        record: dict[str, Any] = dict(line)
        if record.pop("check", None) != _checksum(record):
            raise UnsafeInputError(
                f"{_path(run)}, line {number}, is damaged: its checksum does not match. Restore the file from a copy, or delete this line to train the cell again."
            )
        cell = Cell(record["family"], record["dim"], record["seed"])
        found[cell] = {name: math.nan if value is None else value for name, value in record.items()}
    return found


def columns(found: Mapping[Cell, Mapping[str, Any]], plan: Plan) -> dict[str, np.ndarray]:
    """The cells of a plan's families and seeds, of whatever dimension, and those of its seeds' whole spaces as columns (cells,) by name: family by family, seed by seed."""
    places = {str(family): place for place, family in enumerate(plan.families)}
    asked = [cell for cell in found if cell.family in places and cell.seed in plan.seeds]
    asked.sort(key=lambda cell: (places[cell.family], cell.seed, cell.dim))
    asked += sorted(cell for cell in found if cell.family == FULL and cell.seed in plan.seeds)
    return {name: np.array([found[cell][name] for cell in asked]) for name in (found[asked[0]] if asked else ())}


def ambient(cells: Mapping[str, np.ndarray]) -> int:
    """D, which is the dimension of the cells of the whole space."""
    return int(cells["dim"][cells["family"] == FULL][0])


def _path(run: Run) -> Path:
    return run.folder / "cells.jsonl"


def _checksum(record: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def _grid(plan: Plan) -> list[Cell]:
    """All cells, those that share a basis side by side and the largest first, as `subspaces.prefixes` is fastest."""
    found = [
        (_source(family, seed), -dim, place, seed)
        for place, family in enumerate(plan.families)
        for seed in plan.seeds
        for dim in plan.dims
    ]
    return [Cell(str(plan.families[place]), -dim, seed) for _, dim, place, seed in sorted(found)]


def _source(family: Family, seed: int) -> tuple[str, int]:
    """What the basis of a cell is of: (centring, seed) of a trajectory, ("", seed) of a random one."""
    return CENTRING.get(family.name, ""), seed + (family.name == "transfer")


class _Sweep:
    """A plan with the task's objective; the constructor checks that the one fits the other."""

    def __init__(self, run: Run, task: Task, plan: Plan, device: torch.device, dtype: torch.dtype) -> None:
        self._run, self._task, self._plan = run, task, plan
        first = task.make(plan.seeds[0]) if plan.seeds else None
        if first is None:
            raise UsageError("a sweep has at least one seed; got none. Give --seeds 10.")
        self._f, _ = Objective.of(first, task.loss, task.data.train, device=device, dtype=dtype)
        self._test = self._f.on(task.data.test)
        self._families = {str(family): family for family in plan.families}
        self._opened: dict[int, Trajectory] = {}
        self._pace: float | None = None  # seconds a member and step, of the last ensemble
        self._check()

    def _check(self) -> None:
        plan, ambient = self._plan, self._f.dim
        if not plan.families or not plan.dims:
            raise UsageError("a sweep has at least one family and one dimension. Give --family random --dims 1,2,4.")
        for dim in plan.dims:
            if not 1 <= dim <= ambient:
                raise UsageError(f"a subspace of {ambient:,} parameters has 1 to {ambient:,} dimensions; got {dim}.")
        if plan.every < 1 or plan.evaluations < 1:
            raise UsageError(
                f"a trajectory is recorded every k-th step and evaluated at least once; got {plan.every} and {plan.evaluations}."
            )
        for family in plan.families:
            if family.at > plan.whole.steps:
                raise UsageError(
                    f"{family} burns in for {family.at} steps, and the whole space is trained for {plan.whole.steps}. Give more --steps, or a shorter burn-in."
                )
        largest, points = max(plan.dims), plan.whole.steps // plan.every + 1
        along = [str(family) for family in plan.families if family.name in CENTRING]
        if along and largest > points - 1:
            allowed = plan.whole.steps // largest
            advice = (
                f"record it at least every {allowed} steps (--trajectory-every {allowed})"
                if allowed
                else "train longer (--steps)"
            )
            raise UsageError(
                f"{', '.join(along)} with d = {largest} takes {largest + 1} points of a trajectory; {plan.whole.steps} steps recorded every {plan.every} "
                f"give {points}. Ask for at most {points - 1} dimensions, or {advice}."
            )
        size = largest * ambient * self._f.dtype.itemsize
        if size > subspaces.DENSE_BYTES and (along or plan.choice.basis in subspaces.DENSE):
            raise UsageError(
                f"a basis of {largest:,} x {ambient:,} takes {size / 2**30:.1f} GiB (allowed: {subspaces.DENSE_BYTES / 2**30:.0f}). "
                f"Ask for fewer dimensions{'' if along else ', or --basis srht or sparse, which store O(D)'}."
            )

    def train(self) -> Iterator[Progress]:
        """Everything that is missing."""
        run = self._run
        self._done = cells(run)
        if run.record()["state"] == "finished" and self._is_complete():
            return  # it stays as it is, also where it cannot be written to
        with files.exclusive(run.folder):
            run.update(state="running")
            files.drop_torn_tail(_path(run))
            self._done = cells(run)
            try:
                yield from self._train_whole()
                while pending := self._pending():
                    yield from self._train_cells(pending)
                run.update(state="finished", ended=now())
            except BaseException as error:
                with contextlib.suppress(OSError):
                    run.update(state="failed" if isinstance(error, Exception) else "interrupted", ended=now())
                raise

    def _is_complete(self) -> bool:
        return all(map(self._is_recorded, self._plan.sources)) and not self._pending()

    def _pending(self) -> list[Cell]:
        """What to train next: all that is missing, or the next dimension of each bisection that has not ended."""
        plan = self._plan
        if plan.level is None:
            return [cell for cell in _grid(plan) if cell not in self._done]
        dims = sorted(plan.dims)
        asked = set()
        for family in self._families:
            hits = [[self._hit(Cell(family, dim, seed), plan.level) for dim in dims] for seed in plan.seeds]
            lows, highs, _ = proportions.brackets(dims, hits)
            found = proportions.next_dims(dims, lows, highs)
            asked |= {Cell(family, dim, seed) for dim, seed in zip(found, plan.seeds, strict=True) if dim is not None}
        return [cell for cell in _grid(plan) if cell in asked]

    def _hit(self, cell: Cell, level: float) -> float:
        """1 where a cell has reached the level, 0 where it has not, NaN where it was not trained."""
        return float(self._done[cell]["train_loss"] <= level) if cell in self._done else math.nan

    # -- the whole space ----------------------------------------------------------------------------------------------

    def _train_whole(self) -> Iterator[Progress]:
        lacking = [seed for seed in self._plan.sources if not self._is_recorded(seed)]
        # convolutions on a CPU are trained one after another anyway
        size = max(1, self._budget // self._member_bytes(self._plan.whole)) if self._f.model.lockstep else 1
        for first in range(0, len(lacking), size):
            yield from self._train_seeds(lacking[first : first + size])

    def _train_seeds(self, seeds: Sequence[int]) -> Iterator[Progress]:
        plan, f = self._plan, self._f
        points, buffers = self._initial(seeds)
        for seed in seeds:  # what a kill left, or a trajectory without a burn-in that is asked for now
            shutil.rmtree(self._folder(seed), ignore_errors=True)
            self._opened.pop(seed, None)
        writers = [TrajectoryWriter(self._folder(seed), f.model.layout) for seed in seeds]
        scores, waiting, what = _Scores(len(seeds)), 0, f"the whole space of {len(seeds)} seed{'s' * (len(seeds) > 1)}"
        for state in self._scored(f, Start(points, buffers=buffers), plan.whole, scores):
            if self._is_kept(state.step):
                for member, writer in enumerate(writers):
                    writer.append(row_of(state, f, member))
                waiting += points.numel() * points.element_size()
            if state.step == plan.whole.steps or waiting >= WAITING:
                for writer in writers:
                    writer.commit()
                waiting = 0
            if state.step < plan.whole.steps and self._is_evaluated(state.step, plan.whole):
                yield self._progress(what, state, plan.whole)
        lengths = _norms(state.point - points)
        for member, seed in enumerate(seeds):
            length = float(lengths[member])
            self._commit(Cell(FULL, f.dim, seed), scores.of(member), length, length, plan.whole.steps)
        yield self._progress(what, state, plan.whole)

    def _initial(self, seeds: Sequence[int]) -> tuple[Tensor, Buffers]:
        """Initialisations (E, D) and buffers (E, ...) of the seeds."""
        f, task = self._f, self._task
        # beside the sweep's first, with which all share what does not move
        modules = [task.make(seed) for seed in (self._plan.seeds[0], *seeds)]
        _, points, buffers = Objective.of_many(modules, task.loss, task.data.train, device=f.device, dtype=f.dtype)
        return points[1:], {name: value[1:] for name, value in buffers.items()}

    def _folder(self, seed: int) -> Path:
        return self._run.folder / FULL / f"seed-{seed:03d}"

    def _is_kept(self, step: int) -> bool:
        plan = self._plan
        return step % plan.every == 0 or step == plan.whole.steps or any(step == family.at for family in plan.families)

    def _is_recorded(self, seed: int) -> bool:
        """Whether a seed's whole space is trained to its end, with all points that this plan needs."""
        if Cell(FULL, self._f.dim, seed) not in self._done or not self._folder(seed).exists():
            return False
        steps = set(self._trajectory(seed).steps.tolist())
        return all(step in steps for step in range(self._plan.whole.steps + 1) if self._is_kept(step))

    def _trajectory(self, seed: int) -> Trajectory:
        if seed not in self._opened:
            self._opened[seed] = Trajectory.open(self._folder(seed))
        return self._opened[seed]

    # -- subspaces ----------------------------------------------------------------------------------------------------

    def _train_cells(self, pending: list[Cell]) -> Iterator[Progress]:
        """In ensembles, each as large as the pace of the one before allows."""
        while pending:
            most = (
                PILOT if self._pace is None else max(1, int(SECONDS / (self._pace * max(self._plan.within.steps, 1))))
            )
            job = self._together(pending, most if self._f.model.lockstep else 1)
            yield from self._train_ensemble(job)
            pending = pending[len(job) :]

    def _together(self, pending: Sequence[Cell], most: int) -> list[Cell]:
        """The first cells that can descend at once: of one kind, at most so many, and their bases and states fit."""
        f, drawn = self._f, self._plan.choice.basis in subspaces.DENSE
        bases: set[tuple[str, int]] = set()
        width, job = 0, list[Cell]()
        for cell in pending[:most]:
            along = self._is_along(cell)
            if job and along != self._is_along(job[0]):
                break
            bases.add(self._source(cell))
            width = max(width, cell.dim)
            dense = len(bases) * width * f.dim * f.dtype.itemsize if along or drawn else 0
            states = (len(job) + 1) * self._member_bytes(self._plan.within, width)
            if job and (dense > subspaces.DENSE_BYTES or dense + states > self._budget):
                break
            job.append(cell)
        if len(job) < len(pending) and self._source(pending[len(job)]) == self._source(job[-1]) != self._source(job[0]):
            # a basis is not cut in two, which would make it twice
            job = [cell for cell in job if self._source(cell) != self._source(job[-1])]
        return job

    @property
    def _budget(self) -> int:
        """Bytes of an ensemble: a third of what is free, since some are estimated and others are at work."""
        return free_memory(self._f.device) // 3

    def _member_bytes(self, recipe: Recipe, width: int = 0) -> int:
        return member_bytes(self._f, recipe, self._saved_bytes, width)

    @functools.cached_property
    def _saved_bytes(self) -> int:
        return saved_bytes(self._f, max(self._plan.whole.batch_size, self._plan.within.batch_size))

    def _is_along(self, cell: Cell) -> bool:
        return self._families[cell.family].name in CENTRING

    def _source(self, cell: Cell) -> tuple[str, int]:
        return _source(self._families[cell.family], cell.seed)

    def _train_ensemble(self, job: Sequence[Cell]) -> Iterator[Progress]:
        plan, f = self._plan, self._f
        lost = [cell for cell in job if self._is_lost(cell)]
        for cell in lost:
            self._commit(
                cell,
                dict.fromkeys((*METRICS, *(f"final_{name}" for name in METRICS), "start_train_loss"), math.nan)
                | {"failed": True},
            )
        job = [cell for cell in job if cell not in lost]
        if not job:
            return
        origins, buffers, distances = self._origins(job)
        restricted = self._subspace(job, origins)
        scales = [
            self._families[cell.family].scale(plan.within.optimizer, f.dim, cell.dim, plan.choice.basis) for cell in job
        ]
        begin = Start(
            origins.new_zeros(len(job), restricted.dim),
            buffers=buffers,
            scale=torch.tensor(scales, dtype=f.dtype, device=f.device),
        )
        scores = _Scores(len(job))
        for state in self._scored(f.restrict(restricted), begin, plan.within, scores):
            if state.step < plan.within.steps and self._is_evaluated(state.step, plan.within):
                yield self._progress(_words(job), state, plan.within)
        moved = _norms(restricted.push(state.point))
        counted = solvers.counts(state.moments, plan.within).get("evaluations", torch.tensor(plan.within.steps))
        for member, (cell, spent) in enumerate(zip(job, counted.expand(len(job)).tolist(), strict=True)):
            self._commit(cell, scores.of(member), distances[member], float(moved[member]), spent)
        yield self._progress(_words(job), state, plan.within)

    def _is_lost(self, cell: Cell) -> bool:
        """Whether the point or the trajectory that a cell stands on is not finite."""
        if self._is_along(cell):
            return bool(self._done[Cell(FULL, self._f.dim, self._source(cell)[1])]["failed"])
        return not np.isfinite(self._row(cell).point).all()

    def _row(self, cell: Cell) -> Row:
        """Of the trajectory of its seed, what a cell goes through."""
        trajectory = self._trajectory(cell.seed)
        return trajectory.row(trajectory.index(self._families[cell.family].at))

    def _origins(self, job: Sequence[Cell]) -> tuple[Tensor, Buffers, list[float]]:
        """Points (E, D) and buffers (E, ...) that the subspaces go through, and how far each is from the end of its seed's whole training."""
        f = self._f
        points, buffers, distances = [], [], []
        for cell in job:
            row, end = self._row(cell), self._trajectory(cell.seed).row(-1).point
            points.append(torch.from_numpy(row.point))
            buffers.append(named_buffers(f.model.layout, row.buffers, f.buffers))
            distances.append(float(np.linalg.norm(end.astype(float) - row.point)))
        return torch.stack(points).to(f.device, f.dtype), _stacked(buffers), distances

    def _subspace(self, job: Sequence[Cell], origins: Tensor) -> subspaces.Subspace:
        dims, choice = [cell.dim for cell in job], self._plan.choice
        sources = [self._source(cell) for cell in job]
        if not self._is_along(job[0]):
            blocks = layers_of(self._f.model.layout) if choice.layers else None
            return subspaces.ensemble(origins, dims, [seed for _, seed in sources], choice.basis, blocks)
        distinct = {
            source: CENTRING[self._families[cell.family].name] for source, cell in zip(sources, job, strict=True)
        }
        bases = origins.new_empty(len(distinct), max(dims), self._f.dim)
        for place, ((_, seed), centring) in enumerate(distinct.items()):
            trajectory = self._trajectory(seed)
            # a burn-in between two of them is left out
            rows = np.flatnonzero(trajectory.steps % self._plan.every == 0).tolist()
            bases[place] = torch.from_numpy(trajectory.principal(max(dims), centring=centring, rows=rows)[0])
        places = {source: place for place, source in enumerate(distinct)}
        return subspaces.prefixes(origins, bases, [places[source] for source in sources], dims)

    # -- both ---------------------------------------------------------------------------------------------------------

    def _scored(self, g: Objective, start: Start, recipe: Recipe, scores: _Scores) -> Iterator[State]:
        """The states of a descent; where one is evaluated, `scores` has it before it is given away."""
        started = time.monotonic()
        for state in descend(g, start, recipe, self._plan.root, lend=True):
            if self._is_evaluated(state.step, recipe):
                w = g.lift(state.point)
                train, test = (f.value(w, state.buffers) for f in (self._f, self._test))
                scores.add(train, test, torch.isfinite(w).all(1))
            yield state
        self._pace = max(time.monotonic() - started, 1e-6) / (len(start.point) * max(recipe.steps, 1))

    def _is_evaluated(self, step: int, recipe: Recipe) -> bool:
        return step == recipe.steps or step % max(1, math.ceil(recipe.steps / self._plan.evaluations)) == 0

    def _progress(self, what: str, state: State, recipe: Recipe) -> Progress:
        grid = _grid(self._plan)
        return Progress(what, state.step, recipe.steps, sum(cell in self._done for cell in grid), len(grid))

    def _commit(
        self,
        cell: Cell,
        scores: Mapping[str, float | bool],
        distance: float = math.nan,
        moved: float = math.nan,
        evaluations: int = 0,
    ) -> None:
        numbers = {**cell._asdict(), **scores, "distance": distance, "moved": moved, "evaluations": evaluations}
        record = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in numbers.items()
        }
        files.append_line(_path(self._run), {**record, "check": _checksum(record)})
        self._done[cell] = numbers


class _Scores:
    """Best and last loss and accuracy (4, E) of every member over the evaluations so far; a member that is no longer finite keeps what it had."""

    def __init__(self, members: int) -> None:
        self._best = np.full((len(METRICS), members), np.nan)
        self._last = self._best.copy()
        self._first: np.ndarray | None = None  # (E,) training loss of the starts
        self._failed = np.zeros(members, dtype=bool)

    def add(self, train: Value, test: Value, finite: Tensor) -> None:
        """Take an evaluation in: values (E,), and whether the points are finite (E,)."""
        found = torch.stack([train.loss, train.accuracy, test.loss, test.accuracy]).double().cpu().numpy()
        self._first = found[0].copy() if self._first is None else self._first
        self._failed |= ~(finite.cpu().numpy() & np.isfinite(found[0]))
        found[:, self._failed] = np.nan
        least = np.array([[1.0], [-1.0], [1.0], [-1.0]])  # the lowest loss, the highest accuracy
        self._best = least * np.fmin(least * self._best, least * found)
        self._last = np.where(self._failed, self._last, found)

    def of(self, member: int) -> dict[str, float | bool]:
        """The columns of one member."""
        best = dict(zip(METRICS, self._best[:, member].tolist(), strict=True))
        last = {f"final_{name}": value for name, value in zip(METRICS, self._last[:, member].tolist(), strict=True)}
        first = math.nan if self._first is None else float(self._first[member])
        return {**best, **last, "start_train_loss": first, "failed": bool(self._failed[member])}


def _stacked(buffers: Sequence[Buffers]) -> Buffers:
    return {name: torch.stack([one[name] for one in buffers]) for name in buffers[0]}


def _norms(v: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(
        v, dim=-1, dtype=torch.float32 if v.device.type == "mps" else torch.float64
    )
    return lengths


def _words(job: Sequence[Cell]) -> str:
    names = ", ".join(dict.fromkeys(cell.family for cell in job))
    dims = sorted({cell.dim for cell in job})
    return f"{len(job)} of {names}, d = {dims[0]}" + (f" to {dims[-1]}" if len(dims) > 1 else "")
