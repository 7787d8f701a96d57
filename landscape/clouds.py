"""Clouds: points of a landscape in no order, drawn by training itself. A trajectory is a curve, and a curve cannot show the dimension of a manifold; a cloud can.

Letters: D parameters, T points.

    restarts     T continuations of one recorded state that differ in their mini-batch noise alone, m steps each: their ends
    stationary   one continuation, its points every m steps once it has run some steps for nothing

Both hold the learning rate where the state was left: a rate that goes on falling would end every continuation at its own nearest minimum, and no two points of a walk would
be drawn from one law. A cloud is a run of the kind "cloud" (`is_cloud`); the rows of its trajectory are its points, the row's number is its step, its loss is that over all
training rows. What it was drawn from stands in its options: "cloud" (one of KINDS) and "source" (the place and its checksum).

    CLOUD/run.json, trajectory/    the cloud
    CLOUD/branches/                the continuations while they are made; a finished cloud needs them no more

Sources: restarts, Horoi et al. 2022 (jump and retrain, here without the jump); stationary sampling of SGD at a constant rate, Mandt, Hoffman, Blei 2017.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from landscape import branches, files
from landscape.branches import Branch, Progress
from landscape.descent import Recipe, Start
from landscape.errors import DivergedError, UsageError, unknown
from landscape.masks import Mask
from landscape.objectives import Objective, named_buffers
from landscape.recordings import ended, record, state_of, taken
from landscape.runs import Place, Run, now
from landscape.seeds import child_seed
from landscape.subspaces import Subspace
from landscape.tasks import Task
from landscape.trajectories import TrajectoryWriter

Kind = Literal["restarts", "stationary"]
KINDS: tuple[Kind, ...] = ("restarts", "stationary")

# of the way that is kept, the share that is walked before for nothing. How long a walk takes to forget its start is not known beforehand: half of what is kept is a third of
# the whole (Gelman and Rubin 1992 throw away the first half, blindly), and `drift` tells whether it was enough
BURN_IN = 0.5
# of `drift`: in many dimensions that of independent points hardly varies about 1, and correlated ones of a stationary walk show their correlation time in it
DRIFTS = 3.0


@dataclass(frozen=True)
class Plan:
    """A cloud to draw."""

    size: int = 200  # T: a dimension of 2 or 3 stands out of its nulls at 100 to 200 points, and these take seconds
    steps: int = 100  # m, of each continuation; or between two points of a walk
    kind: Kind = "restarts"
    # of `stationary`: steps walked for nothing; None is half of the way that is kept (BURN_IN)
    burn_in: int | None = None
    seed: int = 0  # of the noise

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown("kind of cloud", self.kind, KINDS)
        for ok, complaint in (
            (self.size >= 3, f"a cloud has 3 points or more; got {self.size}"),
            (self.steps >= 1, f"points are 1 step or more apart; got {self.steps}"),
            (self.burn_in is None or self.burn_in >= 0, f"a burn-in takes 0 steps or more; got {self.burn_in}"),
            (
                self.burn_in is None or self.kind == "stationary",
                "a burn-in is of a stationary cloud; restarts begin at their state. Leave it out",
            ),
        ):
            if not ok:
                raise UsageError(complaint + ".")

    @property
    def unused(self) -> int:
        """Steps walked before the first point that is kept; 0 of restarts."""
        if self.kind == "restarts":
            return 0
        return math.ceil(BURN_IN * self.size * self.steps) if self.burn_in is None else self.burn_in

    @property
    def length(self) -> int:
        """Steps of the longest continuation."""
        return self.steps if self.kind == "restarts" else self.unused + self.size * self.steps


def is_cloud(run: Run) -> bool:
    """Whether the rows of a run's trajectory are points in no order."""
    return bool(run.record()["kind"] == "cloud")


def origin(source: Place, f: Objective) -> Start:
    """The state at a place: whole where it was kept, else with the point and the buffers, and moments that begin at zero (`Start.moments` is empty)."""
    if source.run.state_path(source.step).exists():
        return state_of(source.run, source.step, f)
    point, buffers = taken(f, source)
    return Start(point, source.step, (), buffers)


def held(recipe: Recipe, step: int, steps: int, rate: float | None = None) -> Recipe:
    """The recipe of a continuation by so many steps of a state at `step`, at the rate there, or at another.

    Raises UsageError where the rate there is zero, as at the end of a cosine.
    """
    rate = recipe.rate(step) if rate is None else rate
    if not rate > 0:
        raise UsageError(f"the learning rate at step {step} is {rate:g}: nothing moves from there. Give another rate.")  # fmt: skip
    return dataclasses.replace(recipe, steps=step + steps, lr=rate, schedule="constant", warmup=0)


def check(source: Place) -> None:
    """Raises UsageError for a source that was trained within a subspace: a continuation would leave it."""
    if source.run.options.get("subspace"):
        raise UsageError(f"{source.run.folder} was trained within a subspace ({source.run.options['subspace']}), which a continuation in the whole space would leave. Give a run of the whole space.")  # fmt: skip


def options(source: Place, recipe: Recipe, plan: Plan, **more: Any) -> dict[str, Any]:
    """The options of a cloud's run. recipe: what `held` makes of the source's.

    Raises UsageError for a source that was trained within a subspace: a continuation would leave it.
    """
    check(source)
    place = {"run": str(source.run.folder.resolve()), "step": source.step, "checksum": source.checksum}
    asked = {"cloud": plan.kind, "source": place, "size": plan.size, "apart": plan.steps, "burn_in": plan.unused}
    return branches.options_of(source.run, recipe, **asked, noise=plan.seed, **more)


def draw(run: Run, source: Place, task: Task, f: Objective, recipe: Recipe, plan: Plan) -> Iterator[Progress]:
    """Draw a cloud into a run that has begun with `options`, or go on with one that was stopped; yields now and then.

    f: the task's whole objective on its train rows. recipe: what `held` makes of the source's.
    A point whose training diverged is left out and counted (`lost` in run.json). Raises DivergedError where fewer than three are left, UsageError for restarts without noise.
    """
    with files.exclusive(run.folder, lend=True):
        try:
            yield from _draw(run, source, task, f, recipe, plan)
        except BaseException as error:
            ended(run, error)
            raise


def drift(gram: np.ndarray) -> float:
    """How far the means of the first and the second half of a walk's points are apart, squared, in units of what independent points would show on average; from their inner products (T, T).

    1 for independent points of one law; 3 T / 4 for evenly spaced points of a straight line.
    """
    total = len(gram)
    half = np.arange(total) < total // 2
    signs = half / half.sum() - ~half / (~half).sum()
    # independent points: the two means are apart by tr C (1/n + 1/m), and tr C is the sum of squared deviations less one degree of freedom
    expected = np.trace(gram) / (total - 1) * (1 / half.sum() + 1 / (~half).sum())
    return float(signs @ gram @ signs / expected) if expected > 0 else math.nan


def remarks(run: Run) -> list[str]:
    """What a reader of a finished cloud should know of how it was drawn, a sentence each."""
    options, facts = run.options, run.record()["cloud"]
    told = []
    if facts["moments"] != "kept":
        told.append(f"the state at step {options['source']['step']:,} was not kept whole: the optimizer's moments begin at zero there.")  # fmt: skip
    if facts["lost"]:
        told.append(f"{facts['lost']} of {options['size']} continuations diverged and are left out: what is there is the part of the cloud that did not.")  # fmt: skip
    if facts.get("drift", 0) > DRIFTS:
        told.append(
            f"the walk has not forgotten where it began: the means of its halves are {facts['drift']:.1f} times as far apart, squared, as those of independent points would be. Raise --burn-in or --steps, or read it as a path."
        )
    return told


# -- inside -----------------------------------------------------------------------------------------------------------


def _draw(run: Run, source: Place, task: Task, f: Objective, recipe: Recipe, plan: Plan) -> Iterator[Progress]:
    if plan.kind == "restarts" and recipe.batch_size in (0, len(f.rows)) and not (recipe.augmentations or f.model.stochastic):  # fmt: skip
        raise UsageError("every step takes all rows, so that no noise tells the continuations apart and all would end at one point. Give a smaller --batch-size.")  # fmt: skip
    start = origin(source, f)
    none = recipe.optimizer == "sgd" and not recipe.momentum
    known = (
        bool(start.moments) or none or not (start.step or is_cloud(source.run))
    )  # at step 0 of a training there are none
    mask = Mask.load(source.run.mask_path, f.model.layout) if source.run.mask_path.exists() else None
    if source.run.frozen_path.exists() and not run.frozen_path.exists():
        run.trajectory_path.mkdir(exist_ok=True)
        files.write_atomic(run.frozen_path, source.run.frozen_path.read_bytes())
    if mask is not None and not run.mask_path.exists():
        files.write_atomic(run.mask_path, mask.to_bytes())
    facts: dict[str, Any] = {"moments": "kept" if known else "begin at zero"}
    if plan.kind == "restarts":
        names = [f"restart-{number:05d}" for number in range(plan.size)]
        first = Branch("", start.point, start.buffers or {}, mask, start.step, start.moments, facts={"is": "restart"})
        asked = [
            dataclasses.replace(first, name=name, noise=child_seed(plan.seed, "cloud", source.step, number))
            for number, name in enumerate(names)
        ]
        try:
            yield from branches.grow(run, task, f, recipe, asked)
        except DivergedError:
            if sum(run.branch(name).is_finished for name in names) < 3:
                raise
        made = [(own, len(own.trajectory()) - 1) for own in map(run.branch, names) if own.is_finished]
    else:
        own = run.branch("walk")
        yield from _walk(own, run, task, f, recipe, start, mask, plan)
        steps = own.trajectory().steps
        # a walk records each m-th step, and its first and its last besides
        kept = (steps % plan.steps == 0) & (steps > start.step + plan.unused)
        made = [(own, int(place)) for place in np.flatnonzero(kept)]
    _collect(run, f, made)
    facts["lost"] = plan.size - len(made)
    if plan.kind == "stationary":
        facts["drift"] = drift(run.trajectory().gram())
    run.update(state="finished", ended=now(), cloud=facts)
    shutil.rmtree(run.folder / "branches")


def _walk(
    own: Run, run: Run, task: Task, f: Objective, recipe: Recipe, start: Start, mask: Mask | None, plan: Plan
) -> Iterator[Progress]:
    """Record one continuation, all points every `plan.steps` steps."""
    if own.is_finished:
        return
    own.begin("branch", branches.options_of(run, recipe), {})
    chart: Subspace | None = None
    if mask is not None:
        chart = branches.within(mask.tensor(f.device), start.point, recipe)
        vectors = [chart.project(vector) for vector in (start.point, *start.moments)]
        start = dataclasses.replace(start, point=vectors[0], moments=tuple(vectors[1:]))
    walking = record(
        own,
        task,
        recipe,
        seed=int(run.options.get("seed", 0)),
        every=plan.steps,
        device=f.device,
        dtype=f.dtype,
        restrict=lambda *_: (f if chart is None else f.restrict(chart), start),
        noise=child_seed(plan.seed, "cloud", start.step),
    )
    for found in walking:
        yield Progress("walk", found.step, recipe.steps, 0, 1)


def _collect(run: Run, f: Objective, made: list[tuple[Run, int]]) -> None:
    """Write the points, each a row of another run's trajectory, in order of their numbers."""
    writer = TrajectoryWriter(run.trajectory_path, f.model.layout)
    for number, (own, place) in enumerate(made):
        if number <= writer.last_step:  # before a kill
            continue
        row = own.trajectory().row(place)
        loss = own.record().get("final", {}).get("train_loss") if own.options.get("is") == "restart" else None
        if loss is None:
            here = f.with_buffers(named_buffers(f.model.layout, row.buffers, f.buffers))
            loss = float(here(torch.from_numpy(np.array(row.point)).to(f.device, f.dtype)))
        if writer.append(dataclasses.replace(row, step=number, loss=loss)):
            writer.commit()
    writer.commit()
