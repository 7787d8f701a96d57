"""Lottery tickets: iterative magnitude pruning with rewinding, level by level, and what is compared with it.

Letters: D parameters, L levels, m_L the mask of level L, w_tau the dense weights at the rewind step tau, w_L the solution of level L.

    level 0     the dense network is trained; its whole state at step tau is kept
    level L+1   m_{L+1} is m_L without the share `rate` of its weights that score lowest at w_L; the survivors are trained from tau to the end, starting at

        weight-rewind   m_{L+1} w_tau (Frankle et al. 2020; tau = 0: Frankle and Carbin 2019)
        lr-rewind       m_{L+1} w_L, with the learning rate and the batches from tau on (Renda et al. 2020)
        fine-tune       m_{L+1} w_L, at the last learning rate of the dense training, for as many steps (likewise)
        one-shot        m_{L+1} w_tau, each mask made from w_0 at once, with as many survivors as the iterative ones
        adaptive        as weight-rewind, the rate found anew at each level (see landscape.adaptive)

    RUN/level-000/, level-001/, ...   a run each, with its mask: the place RUN@level=3 is its solution
    RUN/branches/                     dense replicates, ablations
    RUN/rejected/                     levels that the rule `retraining` took back

A pruned network is the objective restricted to the coordinates of its mask: what is pruned is exactly zero in every recorded state, and no optimizer, decay or clipping
knows of it. What is there is never made again: a ladder that was killed goes on where it was.

Sources: those above; Paul et al. 2023, section 2; Renda, Frankle, Carbin 2020 (variants).
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from landscape import adaptive, branches, files, pruning, recordings, solvers
from landscape.branches import Branch
from landscape.descent import Recipe, Start
from landscape.errors import LandscapeError, UnsafeInputError, UsageError, unknown
from landscape.masks import Mask
from landscape.objectives import Buffers, Objective
from landscape.recordings import record, state_of, taken, task_of
from landscape.runs import Place, Run, last, now
from landscape.seeds import child_seed
from landscape.tasks import Task

Variant = Literal["weight-rewind", "lr-rewind", "fine-tune", "one-shot", "adaptive"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)
NOISES = ("same", "fresh")
ABLATIONS = ("shuffled", "random", "reinit")
RULES = (*adaptive.RULES, "retraining")
KEEPING = ("lr-rewind", "fine-tune")  # variants that go on from the weights of the level before
FIRST_RATE = 0.2  # of the rule `retraining`: that of Frankle and Carbin 2019


@dataclass(frozen=True)
class Plan:
    """How to prune. Levels, replicates and ablations may grow from call to call; the rest must stay."""

    levels: int = 15
    rate: float = 0.2  # of the survivors, at each level: Frankle and Carbin 2019
    rewind: int = 0  # tau, in steps
    variant: Variant = "weight-rewind"
    criterion: str = "magnitude"  # see pruning.CRITERIA
    scope: pruning.Scope = "global"
    noise: str = "same"  # the batches of every level are those of the dense training, or fresh ones
    output: float = 1.0  # factor on the rate of the output layer, pruned by itself then: 0 leaves it alone, 0.5 as Frankle and Carbin 2019 had it for LeNet
    first: bool = True  # whether the first layer is pruned
    include: str = ""  # globs of parameters that are pruned besides the weights of convolutions and dense layers
    ignore: str = ""  # globs of parameters that are not pruned
    moments: bool = False  # rewind the optimizer's moments, too; the released codes start them anew
    rule: str = "projection"  # of the variant adaptive
    tolerance: float = 0.01  # of the rule, in error: one point
    replicates: int = 0  # further dense trainings, from other initialisations, with other noise
    ablations: tuple[str, ...] = ()  # see ABLATIONS
    control: int = 1000  # added to the seed of what is initialised anew


@dataclass(frozen=True, eq=False)
class Level:
    """A trained level."""

    number: int
    run: Run
    mask: Mask
    rewound: Place  # where its training starts
    solution: Place

    @property
    def facts(self) -> dict[str, Any]:
        """What pruning did: survivors, prunable, density (of the prunable), rate, threshold."""
        return dict(self.run.record()["pruning"])

    @property
    def final(self) -> dict[str, Any]:
        """Loss and accuracy of the solution."""
        return dict(self.run.record()["final"])


@dataclass(frozen=True)
class Progress:
    """After a part of the steps of what is trained."""

    what: str
    step: int
    steps: int
    note: str = ""


def climb(
    run: Run,
    task: Task,
    plan: Plan,
    recipe: Recipe,
    *,
    seed: int,
    every: int | Literal["log"],
    evaluations: int = 20,
    device: torch.device,
    dtype: torch.dtype,
) -> Iterator[Progress]:
    """Train what is missing of the levels, then of the dense replicates and the ablations; yields now and then. The call checks the plan, and iterating trains.

    Raises UsageError for a plan that cannot be; LandscapeError, naming the layer, where a level would leave a tensor without a single weight (the levels up to it are kept),
    and where a loss stops being finite.
    """
    f, _ = Objective.of(task.make(seed), task.loss, task.data.train, device=device, dtype=dtype)
    climber = _Climber(run, task, plan, recipe, f, seed, every, evaluations)
    climber.check()
    return climber.climb()


def levels(run: Run) -> list[Level]:
    """The trained levels of a run of `imp`, in order. Raises UsageError where it is none, or has none yet."""
    if run.record()["kind"] != "imp":
        raise UsageError(
            f"{run.folder} was made by {run.record()['kind']}, not by imp: it has no levels. Make some with `landscape imp TASK --out RUN`."
        )
    found = []
    for place, number in enumerate(run.levels()):
        if number != place:
            raise UnsafeInputError(
                f"{run.folder} has lost level {place}: {', '.join(map(str, run.levels()))} are there. Restore it from a copy, or delete the later ones and go on with `landscape imp`."
            )
        own = run.level(number)
        record = own.record()
        if record["state"] != "finished":
            break
        trajectory = own.trajectory()
        mask = Mask.load(own.mask_path, trajectory.layout)
        if hash(mask) != record["options"]["mask"]:
            raise UnsafeInputError(
                f"{own.mask_path} is not the mask that level {number} was trained with. Restore it from a copy."
            )
        places = Place(own, int(record["options"]["rewound"])), last(own)
        found.append(Level(number, own, mask, *places))
    if not found:
        raise UsageError(f"{run.folder} has no trained level yet. Go on with the same `landscape imp` command.")
    return found


def chosen(run: Run, text: str | None) -> list[Level]:
    """The levels that a text names: `all` (or None), `0-5`, `0,3,5`. Raises UsageError for one that is not there."""
    there = levels(run)
    if text in (None, "all"):
        return there
    numbers: list[int] = []
    for part in str(text).split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UsageError(f"cannot read the levels {text!r}. Allowed: all, 0-5, or 0,3,5.")
        numbers += range(int(first), int(last if dash else first) + 1)
    for number in numbers:
        if number >= len(there):
            raise UsageError(
                f"{run.folder} has the levels 0 to {len(there) - 1}; got {number}. Train more with --levels, or ask for fewer."
            )
    return [there[number] for number in sorted(set(numbers))]


def objective(
    run: Run,
    *,
    code: str | None = None,
    data: Path | None = None,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Task, Objective, Objective]:
    """The task of a run of `imp`, and its objectives of train and test rows, once for all levels."""
    task = task_of(run, code=code, data=data)
    found = recordings.site(last(run.level(0)), task, device=device, dtype=dtype)
    return task, found.train, found.test


def recipe(run: Run) -> Recipe:
    """The recipe of the dense training."""
    return Recipe(**_fields(Recipe, run.options))


def plan(run: Run) -> Plan:
    """How a run of `imp` prunes; levels, replicates and ablations are those last asked for."""
    return Plan(**_fields(Plan, {**run.options, **run.record()["grid"]}))


def _fields(kind: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a dataclass among options, as they were before JSON; those younger than the options keep their default."""
    found = {field.name: options[field.name] for field in dataclasses.fields(kind) if field.name in options}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}


def dense_name(number: int) -> str:
    """The branch of a dense replicate, from 1."""
    return f"dense-{number}"


def ablation_name(kind: str, level: int) -> str:
    """The branch of an ablation of a level."""
    return f"{kind}-level-{level:03d}"


def replicates(run: Run) -> list[Run]:
    """The finished dense replicates."""
    found = [run.branch(dense_name(number)) for number in range(1, plan(run).replicates + 1)]
    return [own for own in found if own.is_finished]


def ablations(run: Run) -> dict[str, dict[int, Run]]:
    """The finished ablations, by kind and level."""
    found = {}
    for kind in plan(run).ablations:
        owns = {number: run.branch(ablation_name(kind, number)) for number in run.levels()}
        found[kind] = {number: own for number, own in owns.items() if own.is_finished}
    return found


def dense_state(run: Run, step: int, f: Objective) -> Start:
    """The whole dense state at a step: exactly where it was kept, else, without moments, from the trajectory of level 0.

    Raises UsageError, naming the steps that are there, where it was not recorded.
    """
    dense = run.level(0)
    if dense.state_path(step).exists():
        return state_of(dense, step, f)
    point, buffers = taken(f, Place(dense, step))
    return Start(point, step, (), buffers)


def prunable(f: Objective, plan: Plan) -> Mask:
    """What a plan may prune."""
    return pruning.prunable(f, output=plan.output > 0, first=plan.first, include=plan.include, ignore=plan.ignore)


def following(run: Run, level: Level, f: Objective) -> Mask:
    """The mask that one more pruning after a level makes, at its own rate where the rate is adaptive."""
    own, numbers = plan(run), run.levels()
    if level.number + 1 in numbers and run.level(level.number + 1).mask_path.exists():
        return Mask.load(run.level(level.number + 1).mask_path, f.model.layout)
    source = run.level(0 if own.variant == "one-shot" else level.number)
    w, buffers = taken(f, last(source))
    start, _ = taken(f, Place(run.level(0), 0))
    rate = level.facts["rate"] or own.rate if own.variant == "adaptive" else own.rate
    seed = child_seed(int(run.options["seed"]), "pruning", level.number + 1)
    scores = pruning.score(own.criterion, f.with_buffers(buffers), w, level.mask, start=start, seed=seed)
    return _cutter(f, own, prunable(f, own), scores)(level.mask, rate).mask


def _cutter(f: Objective, plan: Plan, among: Mask, scores: Tensor) -> Callable[[Mask, float], pruning.Pruned]:
    """How a plan prunes a mask at a rate, by scores; what it may prune and its layers, found by passing a row through the network, are the same at every rate."""
    factors = {pruning.layers(f)[-1]: plan.output} if 0 < plan.output < 1 else None
    return lambda mask, rate: pruning.prune(mask, scores, rate, among=among, scope=plan.scope, factors=factors)


class _Ended(LandscapeError):
    """There is no further level."""


class _Climber:
    """A plan with its task; levels are made one after another."""

    def __init__(
        self,
        run: Run,
        task: Task,
        plan: Plan,
        recipe: Recipe,
        f: Objective,
        seed: int,
        every: int | Literal["log"],
        evaluations: int,
    ) -> None:
        self._run, self._task, self._plan, self._recipe, self._f = run, task, plan, recipe, f
        self._seed, self._every, self._evaluations = seed, every, evaluations
        self._among = prunable(f, plan)

    def check(self) -> None:
        """Raise UsageError for a plan that cannot be."""
        plan, recipe = self._plan, self._recipe
        adapts = plan.variant == "adaptive"
        for name, got, allowed in (
            ("variant", plan.variant, VARIANTS),
            ("criterion", plan.criterion, pruning.CRITERIA),
            ("scope of pruning", plan.scope, pruning.SCOPES),
            ("noise", plan.noise, NOISES),
            ("rule of the adaptive rate", plan.rule, RULES),
            *(("ablation", name, ABLATIONS) for name in plan.ablations),
        ):
            if got not in allowed:
                raise unknown(name, got, allowed)
        for ok, complaint in (
            (plan.levels >= 0, f"levels are counted from 0; got {plan.levels}"),
            (
                0 < plan.rate < 1,
                f"the rate is the share of the survivors that goes at a level, between 0 and 1; got {plan.rate}",
            ),
            (0 <= plan.output <= 1, f"the output layer's factor on the rate lies in [0, 1]; got {plan.output}"),
            (
                0 <= plan.rewind < max(recipe.steps, 1),
                f"the training has {recipe.steps} steps, and rewinding goes back to step 0 to {recipe.steps - 1}; got {plan.rewind}",
            ),
            (0 <= plan.tolerance < math.inf, f"the tolerance is at least 0 and finite; got {plan.tolerance}"),
            (plan.replicates >= 0, f"dense replicates are 0 or more; got {plan.replicates}"),
            (
                plan.replicates < plan.control,
                f"replicates take the seeds after the run's own, up to {plan.control}; got {plan.replicates}",
            ),
            (
                adapts or (plan.rule, plan.tolerance) == (Plan.rule, Plan.tolerance),
                "--rule and --tolerance are of the variant adaptive. Leave them out, or add --variant adaptive",
            ),
            (
                not adapts or plan.rate == Plan.rate,
                "the variant adaptive finds its own rates: --rate would do nothing. Leave it out",
            ),
            (
                not plan.moments or plan.variant not in KEEPING,
                f"{plan.variant} rewinds no weights: --rewind-moments would do nothing. Leave it out",
            ),
            (
                not plan.moments or recipe.optimizer not in solvers.SOLVERS,
                f"what {recipe.optimizer} has learnt of the curvature is of the whole network and cannot be rewound into a part of it. Leave --rewind-moments out",
            ),
            (
                plan.criterion != "obs" or self._f.dim <= pruning.OBS_LIMIT,
                f"obs inverts the Hessian of all survivors, and {self._f.dim:,} are more than {pruning.OBS_LIMIT:,}. Use obd, which takes its diagonal alone, or a smaller network",
            ),
        ):
            if not ok:
                raise UsageError(complaint + ".")
        if plan.replicates or "reinit" in plan.ablations:
            try:
                again = torch.equal(self._initial(self._seed)[0], self._initial(self._seed + plan.control)[0])
            except UsageError as error:
                raise UsageError(
                    f"{error} Or compare with no other initialisation: --replicates 0, and no ablation reinit."
                ) from None
            if again and "reinit" in plan.ablations:
                raise UsageError(
                    "the task's model is the same for every seed: reinit would be no other initialisation. Leave it out, or let the task's function take a seed."
                )
        if plan.variant != "adaptive":
            tensors = sum(1 for kept, _ in self._among.counts().values() if kept)
            left = pruning.survivors(self._among.size, plan.rate, plan.levels)
            if left[-1] < tensors:
                most = max(level for level, n in enumerate(left) if n >= tensors)
                raise UsageError(
                    f"level {plan.levels} at rate {plan.rate:g} leaves {left[-1]} of {left[0]:,} weights for {tensors} layers: less than one a layer. "
                    f"Allowed with this rate: --levels {most} at most."
                )

    def climb(self) -> Iterator[Progress]:
        """Everything that is missing."""
        run = self._run
        with files.exclusive(run.folder, lend=True):
            try:
                files.sweep(run.folder, "*")
                ended = None
                for number in range(self._plan.levels + 1):
                    try:
                        yield from self._level(number)
                    except _Ended as error:
                        ended = str(error)  # what is compared with the levels before is trained all the same
                        break
                yield from self._beside()
                run.update(state="finished", ended=now(), stopped=ended)
            except BaseException as error:
                recordings.ended(run, error)
                raise

    # -- a level --------------------------------------------------------------------------------------------------------

    def _level(self, number: int) -> Iterator[Progress]:
        own = self._run.level(number)
        while True:
            if not own.is_finished:
                if number == 0:
                    mask, facts = Mask.full(self._f.model.layout), self._facts(self._among, 0.0, math.nan)
                else:
                    mask, facts = self._mask(number)
                yield from self._train(number, mask, facts)
            # asked of a finished one, too: a kill may have come before it was taken back
            if self._run.level(number + 1).record_path.exists() or not self._is_rejected(number):
                return
            rejected = self._rejected(number)
            rejected.parent.mkdir(exist_ok=True)
            os.rename(own.folder, rejected)

    def _train(self, number: int, mask: Mask, facts: dict[str, Any]) -> Iterator[Progress]:
        plan, own = self._plan, self._run.level(number)
        recipe, step = self._recipe_of(number), plan.rewind if number else 0
        files.sweep(own.folder, "*")
        noise = self._seed if plan.noise == "same" or not number else child_seed(self._seed, "level", number)
        options = branches.options_of(
            self._run, recipe, level=number, rewound=step, noise=noise, mask=hash(mask), variant=plan.variant
        )
        about = {"data": self._task.data.description, "fingerprint": self._task.data.fingerprint, "pruning": facts}
        own.begin("level", options, about)
        if not own.mask_path.exists():
            files.write_atomic(own.mask_path, mask.to_bytes())

        def restrict(f: Objective, w: Tensor) -> tuple[Objective, Start]:
            if not number:
                return f, Start(w)
            chart = branches.within(mask.tensor(w.device), w, recipe)
            point, buffers, moments = self._rewound(number, f)
            start = Start(chart.project(point), step, tuple(chart.project(m) for m in moments), buffers)
            return f.restrict(chart), start

        kept = {plan.rewind} if not number else set()
        size = f"{facts['survivors']:,} weights ({facts['density']:.2%})"
        for found in record(
            own,
            self._task,
            recipe,
            seed=self._seed,
            every=self._every,
            evaluations=self._evaluations,
            device=self._f.device,
            dtype=self._f.dtype,
            restrict=restrict,
            noise=noise,
            states=kept,
        ):
            accuracy = found.metrics["test_accuracy"]
            note = size + ("" if accuracy is None else f", test error {1 - accuracy:.2%}")
            yield Progress(f"level {number}", found.step, found.steps, note)

    def _recipe_of(self, number: int) -> Recipe:
        recipe = self._recipe
        if self._plan.variant != "fine-tune" or not number:
            return recipe
        return dataclasses.replace(recipe, lr=recipe.rate(recipe.steps - 1), schedule="constant", warmup=0)

    def _rewound(self, number: int, f: Objective) -> tuple[Tensor, Buffers, tuple[Tensor, ...]]:
        """Where a level starts, before its mask: point (D,), buffers, moments."""
        plan = self._plan
        if plan.variant in KEEPING:
            return *self._solution(number - 1, f), ()
        state = state_of(self._run.level(0), plan.rewind, f)
        assert state.buffers is not None
        return state.point, state.buffers, state.moments if plan.moments else ()

    def _solution(self, number: int, f: Objective) -> tuple[Tensor, Buffers]:
        return taken(f, last(self._run.level(number)))

    def _mask(self, number: int) -> tuple[Mask, dict[str, Any]]:
        """The mask of a level, from the solution of the one before (one-shot: of the dense one)."""
        plan, f = self._plan, self._f
        source = 0 if plan.variant == "one-shot" else number - 1
        mask = Mask.load(self._run.level(source).mask_path, f.model.layout)
        w, buffers = self._solution(source, f)
        f = f.with_buffers(buffers)
        start, _ = taken(f, Place(self._run.level(0), 0))
        scores = pruning.score(plan.criterion, f, w, mask, start=start, seed=child_seed(self._seed, "pruning", number))
        cut = _cutter(f, plan, self._among, scores)
        rate, more = plan.rate, {}
        if plan.variant == "one-shot":
            # as often as iteratively, by the same scores: as many weights, layer by layer
            for _ in range(number - 1):
                mask = cut(mask, rate).mask
        elif plan.variant == "adaptive" and plan.rule == "retraining":
            rate = self._tried_rate(number)
        elif plan.variant == "adaptive":
            choice = adaptive.rate(
                plan.rule,
                f,
                w,
                mask,
                lambda rate: cut(mask, rate).mask,
                among=self._among,
                tolerance=plan.tolerance,
            )
            rate, more = choice.rate, {"excess": choice.excess, "refused": choice.refused, "tried": choice.tried}
        if not rate:
            raise _Ended(
                f"level {number}: the rule {plan.rule} with tolerance {plan.tolerance:g} lets no weight go. The levels up to {number - 1} are kept; give a larger --tolerance, or --levels {number - 1}."
            )
        pruned = cut(mask, rate)
        if pruned.dead:
            other = "--tolerance" if plan.variant == "adaptive" else "--rate"
            even = "" if plan.scope == "layer" else ", or --scope layer, which prunes every layer alike"
            raise _Ended(
                f"level {number} would leave no weight in {', '.join(pruned.dead)}: no signal passes such a layer. The levels up to {number - 1} are kept. "
                f"Give --levels {number - 1}, or a smaller {other}{even}."
            )
        return pruned.mask, self._facts(pruned.mask & self._among, rate, pruned.threshold, **more)

    def _facts(self, left: Mask, rate: float, threshold: float, **more: float) -> dict[str, Any]:
        numbers = {
            "survivors": left.size,
            "prunable": self._among.size,
            "density": left.size / self._among.size,
            "rate": rate,
            "threshold": threshold,
            **more,
        }
        return {name: value if math.isfinite(value) else None for name, value in numbers.items()}

    # -- accept or reject -----------------------------------------------------------------------------------------------

    def _rejected(self, number: int) -> Path:
        """The folder of the next level that is taken back."""
        return self._run.folder / "rejected" / f"level-{number:03d}-try-{self._rejections(number) + 1}"

    def _rejections(self, number: int) -> int:
        return len(list((self._run.folder / "rejected").glob(f"level-{number:03d}-try-*")))

    def _tried_rate(self, number: int) -> float:
        """Twice that of the level before, halved for every time that this one was taken back."""
        rate = FIRST_RATE
        if number > 1:
            rate = adaptive.next_rate(self._run.level(number - 1).record()["pruning"]["rate"], True)
        for _ in range(self._rejections(number)):
            rate = adaptive.next_rate(rate, False) if rate else 0.0
        return rate

    def _is_rejected(self, number: int) -> bool:
        """Whether a trained level is taken back: its test error (where the loss does not classify, its test loss) is more than the tolerance above the dense one's."""
        plan = self._plan
        if plan.variant != "adaptive" or plan.rule != "retraining" or not number:
            return False
        dense, own = (self._run.level(place).record()["final"] for place in (0, number))
        if dense["test_accuracy"] is None:
            return bool(own["test_loss"] > dense["test_loss"] + plan.tolerance)
        return bool(dense["test_accuracy"] - own["test_accuracy"] > plan.tolerance)

    # -- what is compared with it ---------------------------------------------------------------------------------------

    def _beside(self) -> Iterator[Progress]:
        """Dense replicates and ablations."""
        plan, f, task, seed = self._plan, self._f, self._task, self._seed
        found: list[Branch] = []
        for number in range(1, plan.replicates + 1):
            point, buffers = self._initial(seed + number)
            found.append(
                Branch(dense_name(number), point, buffers, noise=seed + number, facts={"is": "dense replicate"})
            )
        fresh = self._initial(seed + plan.control) if "reinit" in plan.ablations else None
        beside: dict[Recipe, list[Branch]] = {self._recipe: found}
        for level in levels(self._run)[1:] if plan.ablations else ():
            noise = int(level.run.options["noise"])
            for kind in plan.ablations:
                if kind == "reinit":
                    assert fresh is not None
                    (point, buffers), step, recipe, mask = fresh, 0, self._recipe, level.mask
                else:
                    point, buffers, _ = self._rewound(level.number, f)
                    within: Literal["layer", "global"] = "layer" if kind == "shuffled" else "global"
                    mask = pruning.shuffled(level.mask, self._among, child_seed(seed, "ablation"), within)
                    step, recipe = plan.rewind, self._recipe_of(level.number)
                name = ablation_name(kind, level.number)
                beside.setdefault(recipe, []).append(
                    Branch(name, mask.apply(point), buffers, mask, step, noise=noise, facts={"is": kind})
                )
        for recipe, those in beside.items():
            for progress in branches.grow(self._run, task, f, recipe, those):
                yield Progress(
                    progress.what, progress.step, progress.steps, f"{progress.done} of {progress.total} done"
                )

    def _initial(self, seed: int) -> tuple[Tensor, Buffers]:
        f = self._f
        _, points, buffers = Objective.of_many(
            [self._task.make(self._seed), self._task.make(seed)], self._task.loss, self._task.data.train, device=f.device, dtype=f.dtype
        )  # fmt: skip
        return points[1], {name: value[1] for name, value in buffers.items()}
