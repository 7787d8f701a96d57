"""Branches: many trainings of one task that differ in where they start, in what they may move, or in their noise, each recorded as a run of its own.

Letters: D parameters, E ensemble.

Children of a state that differ in SGD noise alone, perturbed starts, dense replicates, pruned networks and their ablations are all this. Where the model allows,
branches that start at the same step descend as one ensemble in lockstep; else one after another.

    RUN/branches/NAME/   a run: its first and its last state, its mask, and whole states that it was asked to keep

A finished branch is never trained again. An ensemble that was killed is trained again as the same ensemble: its numbers are then the same to the bit, since how many
descend together decides how sums are rounded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from landscape import files, subspaces
from landscape.descent import Recipe, Start, State, descend, member_bytes, saved_bytes
from landscape.errors import DivergedError, UsageError
from landscape.masks import Mask
from landscape.objectives import Buffers, Objective
from landscape.recordings import ended, keep_state, record, row_of, taken
from landscape.runs import Run, last, now
from landscape.solvers import SOLVERS
from landscape.subspaces import Subspace
from landscape.tasks import Task
from landscape.trajectories import TrajectoryWriter

# an ensemble has at most so many members and takes about so much memory: fixed numbers, so that a repeated call makes the same ensembles
MEMBERS = 32
BYTES = 2 * 2**30
EVALUATIONS = 20  # of a branch that descends alone; one in an ensemble is measured at its end

# of the parent's options: what finds the task again
PROBLEM = ("task", "width", "activation", "norm", "init", "data", "limit", "label_noise", "seed", "dtype", "device")


@dataclass(frozen=True, eq=False)
class Branch:
    """One training to make. Its name is that of its folder."""

    name: str
    point: Tensor  # (D,) where it starts; what its mask leaves out is 0 there
    buffers: Buffers
    mask: Mask | None = None  # what may move; None is all
    step: int = 0  # at which it starts: schedule and batches go on from there
    moments: tuple[Tensor, ...] = ()  # (D,) each, of the optimizer at the start, fresh at step 0; none is fresh ones
    noise: int = 0  # seed of the order of the rows, augmentation and dropout
    order: int | None = None  # seed of the order alone, where it is not to be that of `noise`
    keep: tuple[int, ...] = ()  # steps whose whole state is kept (`recordings.state_of`); of branches without a mask
    facts: Mapping[str, Any] = field(default_factory=dict)  # what it is, for its record


@dataclass(frozen=True)
class Progress:
    """After a part of the steps of some branches."""

    what: str
    step: int
    steps: int
    done: int  # branches finished
    total: int


def grow(run: Run, task: Task, f: Objective, recipe: Recipe, branches: Sequence[Branch]) -> Iterator[Progress]:
    """Train what is missing of the branches in the run's folder, each from its step to recipe.steps; yields now and then.

    f: the task's whole objective on its train rows.
    Raises UsageError for a branch that starts beyond the recipe's end, and for a folder of the same name that holds another branch; DivergedError where a
    loss stopped being finite, once all others are trained: these are kept.
    """
    names = [branch.name for branch in branches]
    if len(set(names)) < len(names):
        raise UsageError(f"branches have names of their own; got {sorted(n for n in set(names) if names.count(n) > 1)} twice.")  # fmt: skip
    for branch in branches:
        if not 0 <= branch.step <= recipe.steps:
            raise UsageError(
                f"{branch.name} starts at step {branch.step}, and the training has {recipe.steps}. Start it at 0 to {recipe.steps}."
            )
        if branch.mask is not None and branch.keep:
            raise UsageError(f"{branch.name} has a mask: whole states are kept of networks that are not pruned.")
    todo = [branch for branch in branches if not _is_done(run, branch)]
    done = len(branches) - len(todo)
    lost: list[str] = []
    for group in _groups(run, f, recipe, branches, todo):
        missing = [branch for branch in group if branch in todo]
        what = group[0].name if len(group) == 1 else f"{group[0].name} to {group[-1].name}"
        try:
            trained = (
                _together(run, task, f, recipe, group, lost) if len(group) > 1 else _alone(run, task, recipe, group[0])
            )
            for step in trained:
                yield Progress(what, step, recipe.steps, done, len(branches))
        except DivergedError:  # of one that descends alone
            lost.append(group[0].name)
        done += len(missing)
        yield Progress(what, recipe.steps, recipe.steps, done, len(branches))
    if lost:
        raise DivergedError(
            f"the loss stopped being finite in {', '.join(lost)}. Use a smaller --lr, --warmup or --clip; the others are kept."
        )


def of(run: Run, name: str) -> Run:
    """The run of a branch. Raises UsageError where it is not there."""
    return Run.open(run.branch(name).folder)


def ends(run: Run, f: Objective, names: Sequence[str]) -> tuple[Tensor, list[Buffers]]:
    """The last points (E, D) of branches, and the buffers there."""
    found = [taken(f, last(of(run, name))) for name in names]
    return torch.stack([point for point, _ in found]), [buffers for _, buffers in found]


def options_of(run: Run, recipe: Recipe, **more: Any) -> dict[str, Any]:
    """The options of a run that belongs to another: its task, the recipe, and what else makes it."""
    parent = run.options
    return {**{name: parent[name] for name in PROBLEM if name in parent}, **dataclasses.asdict(recipe), **more}


# -- one run a branch ---------------------------------------------------------------------------------------------------


def _is_done(run: Run, branch: Branch) -> bool:
    own = run.branch(branch.name)
    return (
        own.is_finished
        and own.options.get("start") == _checksum(branch)
        and all(own.state_path(step).exists() for step in branch.keep)
    )


def _begin(run: Run, task: Task, recipe: Recipe, branch: Branch, **about: Any) -> Run:
    own = run.branch(branch.name)
    files.sweep(own.folder, "*")
    options = options_of(
        run, recipe, step=branch.step, noise=branch.noise, order=branch.order, start=_checksum(branch), **branch.facts
    )
    about = {"data": task.data.description, "fingerprint": task.data.fingerprint, **about}
    if not own.begin("branch", options, about):
        own.update(**about)
    if branch.mask is not None and not own.mask_path.exists():
        files.write_atomic(own.mask_path, branch.mask.to_bytes())
    return own


def _checksum(branch: Branch) -> int:
    """Of where a branch starts and of what it may move."""
    tensors = [branch.point, *branch.moments, *(branch.buffers[name] for name in sorted(branch.buffers))]
    crc = hash(branch.mask) if branch.mask is not None else 0
    for tensor in tensors:
        crc = zlib.crc32(tensor.detach().cpu().contiguous().numpy().tobytes(), crc)
    return crc


def within(mask: Tensor, like: Tensor, recipe: Recipe) -> Subspace:
    """Where a network with a mask (D,) bool, or (E, D), descends: exactly 0 outside. Rules that invert curvature need coordinates without the pruned ones, which one mask for all has."""
    if recipe.optimizer in SOLVERS and mask.ndim == 1:
        return subspaces.coordinates(torch.zeros_like(like), mask)
    return subspaces.axes(mask, like.dtype)


def _start(branch: Branch, chart: Subspace | None) -> Start:
    """As its mask leaves it."""
    vectors = [branch.point, *branch.moments]
    point, *moments = vectors if chart is None else [chart.project(vector) for vector in vectors]
    return Start(point, branch.step, tuple(moments), branch.buffers)


def _alone(run: Run, task: Task, recipe: Recipe, branch: Branch) -> Iterator[int]:
    def restrict(f: Objective, w: Tensor) -> tuple[Objective, Start]:
        if branch.mask is None:
            return f, _start(branch, None)
        chart = within(branch.mask.tensor(w.device), w, recipe)
        return f.restrict(chart), _start(branch, chart)

    own = _begin(run, task, recipe, branch)
    if any(not own.state_path(step).exists() for step in branch.keep):
        own.resume_path.unlink(missing_ok=True)  # descend again, past the states that are asked for now
    options = run.options
    progress = record(
        own,
        task,
        recipe,
        seed=int(options.get("seed", 0)),
        every=max(recipe.steps, 1),
        evaluations=EVALUATIONS,
        device=branch.point.device,
        dtype=branch.point.dtype,
        restrict=restrict,
        noise=branch.noise,
        order=branch.order,
        states=branch.keep,
    )
    for found in progress:
        if found.step < recipe.steps:
            yield found.step
    own.resume_path.unlink(missing_ok=True)  # a finished branch needs none


# -- many in lockstep -----------------------------------------------------------------------------------------------------


def _groups(
    run: Run, f: Objective, recipe: Recipe, branches: Sequence[Branch], todo: Sequence[Branch]
) -> list[list[Branch]]:
    """What descends together: the ensembles that had begun, then those of the same first step."""
    if not f.model.lockstep or f.model.stochastic:
        return [[branch] for branch in todo]
    named = {branch.name: branch for branch in branches}
    groups: list[list[Branch]] = []
    placed: set[str] = set()
    for branch in todo:
        own = run.branch(branch.name)
        members = own.record().get("ensemble", []) if own.record_path.exists() else []
        if branch.name not in placed and len(members) > 1 and set(members) <= named.keys():
            groups.append([named[name] for name in members])
            placed |= set(members)
    size = max(1, min(MEMBERS, BYTES // member_bytes(f, recipe, saved_bytes(f, recipe.batch_size))))
    kinds: dict[tuple[Any, ...], list[Branch]] = {}
    for branch in todo:
        if branch.name not in placed:
            # an order of its own is given to all or to none
            kinds.setdefault((branch.step, len(branch.moments), branch.order is None), []).append(branch)
    for kind in kinds.values():
        # evenly: 33 are 17 and 16, not 32 and 1
        count = math.ceil(len(kind) / size)
        groups += [kind[len(kind) * i // count : len(kind) * (i + 1) // count] for i in range(count)]
    return groups


def _together(
    run: Run, task: Task, f: Objective, recipe: Recipe, group: Sequence[Branch], lost: list[str]
) -> Iterator[int]:
    """Train an ensemble; members whose loss stops being finite are failed, and named in `lost`."""
    with contextlib.ExitStack() as stack:
        owns = []
        for branch in group:
            own = run.branch(branch.name)
            stack.enter_context(files.exclusive(own.folder, lend=True))
            owns.append(_begin(run, task, recipe, branch, ensemble=[one.name for one in group]))
        restricted, start = _ensemble(f, recipe, group)
        order = None if group[0].order is None else [int(branch.order or 0) for branch in group]
        writers = [TrajectoryWriter(own.trajectory_path, f.model.layout) for own in owns]
        first, every = group[0].step, max(1, recipe.steps // EVALUATIONS)
        try:
            for state in descend(restricted, start, recipe, [branch.noise for branch in group], order, lend=True):
                for member, (branch, own) in enumerate(zip(group, owns, strict=True)):
                    if state.step in (first, recipe.steps, *branch.keep):
                        writers[member].append(row_of(state, restricted, member))
                    if state.step in branch.keep:
                        keep_state(own, _member(state, member))
                if state.step % every == 0 and state.step < recipe.steps:
                    yield state.step
            test = restricted.on(task.data.test)
            scores = [g.value(state.point, state.buffers) for g in (restricted, test)]
            for member, own in enumerate(owns):
                numbers = [float(part[member]) for value in scores for part in (value.loss, value.accuracy)]
                if not (math.isfinite(numbers[0]) and bool(torch.isfinite(state.point[member]).all())):
                    lost.append(group[member].name)
                    own.update(state="failed", ended=now())
                    continue
                names = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
                final = {
                    name: value if math.isfinite(value) else None for name, value in zip(names, numbers, strict=True)
                }
                writers[member].commit()
                own.update(state="finished", ended=now(), final={"step": recipe.steps, "lr": state.rate, **final})
        except BaseException as error:
            for own in owns:
                if own.record()["state"] == "running":
                    ended(own, error)
            raise


def _ensemble(f: Objective, recipe: Recipe, group: Sequence[Branch]) -> tuple[Objective, Start]:
    """The objective that all move on, and their starts (E, d): where there are masks, with zeros where its own has."""
    masks = [branch.mask for branch in group]
    points = torch.stack([branch.point for branch in group])
    chart: Subspace | None = None
    if masks[0] is not None and all(mask == masks[0] for mask in masks):
        chart = within(masks[0].tensor(points.device), points[0], recipe)
    elif any(mask is not None for mask in masks):
        full = torch.ones(points.shape[1], dtype=torch.bool, device=points.device)
        stacked = torch.stack([full if mask is None else mask.tensor(points.device) for mask in masks])
        chart = within(stacked, points[0], recipe)
    starts = [_start(branch, None) for branch in group]
    vectors = [torch.stack(found) for found in zip(*[(s.point, *s.moments) for s in starts], strict=True)]
    point, *moments = vectors if chart is None else [chart.project(vector) for vector in vectors]
    buffers = {name: torch.stack([branch.buffers[name] for branch in group]) for name in group[0].buffers}
    return (f if chart is None else f.restrict(chart)), Start(point, group[0].step, tuple(moments), buffers)


def _member(state: State, member: int) -> State:
    """One member of an ensemble's state."""
    return dataclasses.replace(
        state,
        point=state.point[member],
        loss=state.loss[member],
        gradient=state.gradient[member],
        moments=tuple(moment[member] for moment in state.moments),
        buffers={name: value[member] for name, value in state.buffers.items()},
    )
