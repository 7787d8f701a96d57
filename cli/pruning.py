"""The commands about lottery tickets: imp, spawn, robustness, limit, retraining."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from landscape.cli.making import Descending, _about, _begun, _every, _fields, recipe_of
from landscape.cli.measuring import _asked
from landscape.cli.options import WHOLE, Common, Problem, Subject, answer, note, tell_table
from landscape.errors import DivergedError, LandscapeError, UsageError
from landscape.runs import Place, Run, last, now

if TYPE_CHECKING:
    from landscape import tickets
    from landscape.analysis.barriers import End
    from landscape.analysis.instabilities import Instability
    from landscape.descent import Recipe, Start
    from landscape.masks import Mask
    from landscape.objectives import Objective
    from landscape.results import Result
    from landscape.tasks import Task


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Pruning:
    """What goes at a level."""

    rate: float = 0.2
    """Share of the surviving weights that goes at each level; exactly n - ceil(rate n) of n remain."""
    rewind: Annotated[int, WHOLE] = 0
    """Step to which the survivors go back; 0 is the initialisation."""
    variant: Literal["weight-rewind", "lr-rewind", "fine-tune", "one-shot", "adaptive"] = "weight-rewind"
    """What is rewound: the weights; the learning rate alone; neither, at the last rate. Or each level at once from the dense solution; or at a rate found anew each time."""
    criterion: Literal[
        "magnitude", "random", "weight-gradient", "obd", "obs", "fisher", "magnitude-increase", "synflow"
    ] = "magnitude"
    """Which weights go first: the smallest of this."""
    scope: Literal["global", "layer", "erk"] = "global"
    """Over all layers at once, in each layer alike, or with Erdos-Renyi-kernel shares."""
    noise: Literal["same", "fresh"] = "same"
    """The order of the rows and augmentation at every level: those of the dense training, or fresh ones."""
    output: float = 1.0
    """Factor on the rate of the output layer, which is then pruned by itself: 0.5 is half the rate, 0 leaves it alone."""
    first: bool = True
    """Whether the first layer is pruned."""
    include: str = ""
    """Parameters that are pruned besides the weights of convolutions and dense layers: names or globs with commas."""
    ignore: str = ""
    """Parameters that are not pruned: likewise. Biases and norms never are, unless they are included."""
    moments: Annotated[bool, Parameter(name="--rewind-moments", negative="")] = False
    """Rewind the optimizer's moments with the weights; else they start anew."""
    rule: Literal["projection", "barrier", "spectrum", "retraining"] = "projection"
    """Of the variant adaptive: the largest rate whose projection, or the whole path to it (barrier), or the quadratic theory of retraining (spectrum) stays within the tolerance; or twice the rate after a trained level within it, half after another (retraining)."""
    tolerance: float = 0.01
    """Of the rule: error above the solution's (0.01 is one point), above the dense one's (retraining), or rise of the loss (spectrum)."""


def imp(
    task: str | None = None,
    /,
    *,
    out: Path,
    levels: Annotated[int, WHOLE] = 15,
    replicates: Annotated[int, WHOLE] = 3,
    ablations: str | None = None,
    record_every: str = "auto",
    evaluations: Annotated[int, WHOLE] = 1,
    download: Annotated[bool, Parameter(negative="")] = False,
    pruning: Pruning = Pruning(),
    problem: Problem = Problem(),  # noqa: B008 (frozen)
    descending: Descending = Descending(),  # noqa: B008 (frozen)
    common: Common = Common(),  # noqa: B008 (frozen)
) -> None:
    """Find lottery tickets: train, prune the smallest weights, rewind the others, again and again (iterative magnitude pruning).

    Each level is a run of its own, RUN@level=5, which every other command takes. The same command goes on with a stopped one; more levels, replicates and ablations
    add to it. Then ask: barrier RUN --levels all, spawn RUN, robustness RUN, limit RUN@level=0, retraining RUN.

    Examples:
      landscape imp digits-mlp --levels 10 --rewind 50 --out runs/t
      landscape imp --preset mnist-mlp --data ~/data --out runs/m
      landscape imp cifar10-resnet20 --preset resnet20-cifar10 --rewind 250 --data ~/data --out runs/r
      landscape imp digits-mlp --variant one-shot --ablations shuffled,random,reinit --out runs/o

    Parameters
    ----------
    task
        A name from `landscape tasks`, or your own problem as package.module:function or file.py:function; with --preset that of the preset.
    out
        The folder of all levels.
    levels
        How many times to prune.
    replicates
        Further dense trainings from other initialisations: their spread decides what matches the dense network.
    ablations
        Train beside each level, with commas: shuffled (its mask shuffled within layers), random (over all layers), reinit (its mask, another initialisation).
    record_every
        Record each k-th state (a number), or log-spaced ones (log); auto keeps about 20 a level.
    evaluations
        How often loss and accuracy are measured on all rows in a level; once is at its end.
    download
        Fetch the data set into --data with torchvision.
    """
    from landscape import tickets
    from landscape.analysis.ladders import ladder
    from landscape.recordings import describe, site, stop_signals, taken

    common = common.resolved()
    device, dtype = common.torch()
    task = _named(task, descending.preset)
    found = problem.task(task, download=download)
    recipe = recipe_of(found, dataclasses.asdict(descending))
    names = tuple(_words(ablations or ""))
    plan = tickets.Plan(levels=levels, replicates=replicates, ablations=names, **dataclasses.asdict(pruning))
    every = max(1, recipe.steps // 20) if record_every == "auto" else _every(record_every, recipe.steps)
    grid: dict[str, Any] = {"levels": levels, "replicates": replicates, "ablations": list(names)}
    options = {
        **problem.record(task), "seed": common.seed, "dtype": common.dtype, "device": device.type, **_fields(recipe),
        **{name: value for name, value in _fields(plan).items() if name not in grid},
        "record_every": every, "evaluations": evaluations,
    }  # fmt: skip
    run = Run(out)
    training = tickets.climb(
        run, found, plan, recipe, seed=common.seed, every=every, evaluations=evaluations, device=device, dtype=dtype
    )
    with _begun(run):
        if run.begin("imp", options, _about(found)):
            note(f"({out} is finished; what is new is added)")
        known = run.record().get("grid", {})
        # what was trained by an earlier call stays a part of the answer
        grid["levels"] = max(grid["levels"], known.get("levels", 0))
        grid["replicates"] = max(grid["replicates"], known.get("replicates", 0))
        grid["ablations"] = list(dict.fromkeys([*known.get("ablations", []), *names]))
        run.update(grid=grid)
        with stop_signals():
            watch(training, f"pruning {found.name}")
    rungs, dense, ablated = tickets.levels(run), tickets.replicates(run), tickets.ablations(run)
    beside = [*dense, *(own for owns in ablated.values() for own in owns.values())]
    question = {
        **grid,
        "levels trained": [level.run.record()["ended"] for level in rungs],
        "beside": [own.record()["ended"] for own in beside],
    }

    def compute() -> Result:
        here = site(rungs[0].solution, found, device=device, dtype=dtype)
        train, test = here.train, here.test
        states = [taken(train, level.solution) for level in rungs]
        result = ladder(
            train,
            test,
            [point for point, _ in states],
            [buffers for _, buffers in states],
            [level.mask for level in rungs],
            [level.facts for level in rungs],
            among=tickets.prunable(train, plan),
            replicates=[taken(train, last(own)) for own in dense],
            ablations={
                kind: {number: taken(train, last(own)) for number, own in owns.items()}
                for kind, owns in ablated.items()
            },
            fixed_rate=None if plan.variant == "adaptive" else plan.rate,
            one_start=len({own.trajectory().checksum(0) for own in (rungs[0].run, *dense)}) == 1,
        )
        about = describe(run, found, **_fields(plan), seed=common.seed)
        return dataclasses.replace(result, provenance={**result.provenance, **about})

    answer(run, "ladder", question, compute, common.json, show=tell_table)
    if stopped := run.record().get("stopped"):
        raise LandscapeError(stopped)


def _named(task: str | None, preset: str | None) -> str:
    """The task, or that of the preset. Raises UsageError where neither is given."""
    if preset is not None:
        from landscape.presets import find

        return task or find(preset).task
    if task is None:
        raise UsageError("name a task, such as digits-mlp (see `landscape tasks`), or a --preset.")
    return task


def watch(training: Iterator[Any], text: str) -> None:
    """Follow trainings one after another (what, step, steps, note): a bar on a terminal, a line each elsewhere."""
    if not sys.stderr.isatty():
        last = ""
        for state in training:
            if state.step == state.steps or state.what != last:
                last = state.what
                note(f"{state.what:<28} step {state.step:>7,} of {state.steps:,}   {getattr(state, 'note', '')}")
        return
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("{task.fields[state]}", markup=False),
    )
    with progress.Progress(*columns, console=Console(stderr=True)) as bar:
        line = bar.add_task(text, total=None, state="")
        for state in training:
            words = f"{state.what}  {getattr(state, 'note', '')}"
            bar.update(line, completed=state.step, total=max(state.steps, 1), state=words)


def spawn(
    subject: str,
    /,
    *,
    out: Path | None = None,
    at: str | None = None,
    levels: str | None = None,
    children: Annotated[int, WHOLE] = 2,
    replicates: Annotated[int | None, WHOLE] = None,
    vary: Literal["all", "order", "augmentation"] = "all",
    control: Annotated[bool, Parameter(negative="")] = False,
    bisect: Annotated[bool, Parameter(negative="")] = False,
    tolerance: float = 0.25,
    threshold: float = 0.02,
    points: Annotated[int, WHOLE] = 11,
    bn: str | None = None,
    rows: Annotated[int | None, WHOLE] = None,
    code: Annotated[str | None, Parameter(name="--task")] = None,
    download: Annotated[bool, Parameter(negative="")] = False,
    problem: Problem = Problem(),  # noqa: B008 (frozen)
    descending: Descending = Descending(),  # noqa: B008 (frozen)
    common: Common = Common(),  # noqa: B008 (frozen)
) -> None:
    """Instability: train children of one state that differ in their SGD noise alone, and see whether their ends are linearly connected.

    Of a task: replicates are trained from initialisations of their own, and children from each one's state (weights, momentum, BatchNorm statistics) at every step of --at. Of a run of `landscape imp`:
    children of the pruned networks, at the step that they were rewound to. The same command goes on with a stopped one; more steps, children, replicates and levels add to what is there.

    Examples:
      landscape spawn digits-mlp --at 0,50,200 --out runs/s
      landscape spawn digits-mlp --bisect --replicates 3 --out runs/s
      landscape spawn mnist-conv2 --data ~/data --at 0,100,500 --control --out runs/c
      landscape spawn runs/t --levels 0,2,5

    Parameters
    ----------
    subject
        A name from `landscape tasks`, or your own problem as package.module:function or file.py:function; or a run of `landscape imp`.
    out
        Of a task: the folder of all trainings.
    at
        Steps of the states, with commas; default 0. Of a run of imp: up to the rewind step (the default) the dense network's state within the mask, later ones the level's own; steps that were recorded.
    levels
        Of a run of imp: all (the default), 0-5, or 0,3,5.
    children
        Of each state; all pairs of them are compared.
    replicates
        Of a task: initialisations, named by --seed and the numbers after it; 3 where nothing is given, as Frankle et al. 2020.
    vary
        What children differ in: all, the order of the rows alone, or augmentation and dropout alone.
    control
        Also children that are trained for all steps from the state's weights, with the schedule begun anew.
    bisect
        Look for the first stable step, among steps that are --tolerance apart (of a run of imp: that were recorded), besides those of --at.
    tolerance
        Of --bisect, as a share of the step.
    threshold
        A state is stable where the barrier is below: 0.02 is two points of error.
    points
        On each path, ends included; odd.
    bn
        Statistics of BatchNorm on the path, several with commas, the first the main one; default recompute,average.
    rows
        Measure on this many training rows only, drawn once; default all.
    code
        For runs of imp made with your own code: its package.module:function or file.py:function again. Code is run only when you name it.
    download
        Fetch the data set into --data with torchvision.
    """
    from landscape.cli.measuring import _is_run

    chosen = _Spawning(
        at=None if at is None else _steps(at), children=children, vary=vary, control=control, bisect=bisect, tolerance=tolerance, threshold=threshold,
        points=points, bn=tuple(_words(bn or "recompute,average")), rows=rows,
    )  # fmt: skip
    if children < 2:
        raise UsageError(f"a barrier needs two children or more; got --children {children}.")
    if _is_run(subject):
        made = {"--out": out, "--replicates": replicates, "--download": download or None}
        made |= {f"--{name.replace('_', '-')}": value for name, value in dataclasses.asdict(descending).items()}
        made |= {f"--{name.replace('_', '-')}": value for name, value in dataclasses.asdict(problem).items() if name != "data" and value != getattr(Problem(), name)}  # fmt: skip
        for flag, value in made.items():
            if value is not None:
                raise UsageError(
                    f"{flag} is of a task, and {subject} is a run, trained as it says itself. Leave it out."
                )
        _spawn_levels(subject, levels, chosen, Subject(data=problem.data, task=code, rows=rows), common)
        return
    for flag, text in (("--levels", levels), ("--task", code)):
        if text is not None:
            raise UsageError(f"{flag} is for a run of `landscape imp`, and {subject!r} is no folder: it is taken for a task. Leave it out, or give the run's folder.")  # fmt: skip
    if out is None:
        raise UsageError("name the folder of the trainings: --out runs/s.")
    replicates = 3 if replicates is None else replicates
    if replicates < 1:
        raise UsageError(f"at least 1 replicate is needed; got --replicates {replicates}.")
    _spawn_task(subject, out, replicates, download, problem, descending, chosen, common)


@dataclass(frozen=True, kw_only=True)
class _Spawning:
    """What is asked about children."""

    at: list[int] | None
    children: int
    vary: Literal["all", "order", "augmentation"]
    control: bool
    bisect: bool
    tolerance: float
    threshold: float
    points: int
    bn: tuple[str, ...]
    rows: int | None


@dataclass(frozen=True, eq=False)
class _Parent:
    """A state that children may begin at."""

    level: int
    replicate: int
    start: Start
    mask: Mask | None
    density: float
    recipe: Recipe


def _steps(text: str) -> list[int]:
    try:
        found = sorted({int(float(word)) if float(word).is_integer() else int(word) for word in _words(text)})
    except (ValueError, OverflowError):
        raise UsageError(f"--at takes steps separated by commas, such as 0,100,500; got {text!r}.") from None
    if not found or found[0] < 0:
        raise UsageError(f"--at takes steps from 0 on, separated by commas; got {text!r}.")
    return found


def _require_before(steps: Sequence[int] | None, end: int) -> None:
    late = [step for step in steps or () if step >= end]
    if late:
        raise UsageError(f"children are trained from the step of their state to step {end:,}, the end; got --at {late[0]}. Allowed: 0 to {end - 1:,}; or train longer with --steps.")  # fmt: skip


def _spawn_task(
    spec: str,
    out: Path,
    replicates: int,
    download: bool,
    problem: Problem,
    descending: Descending,
    chosen: _Spawning,
    common: Common,
) -> None:
    """Parents are branches of the run, trained in lockstep where the network allows it; so are their children."""
    from landscape import branches
    from landscape.analysis.instabilities import candidates
    from landscape.objectives import Objective
    from landscape.recordings import describe, ended, some_rows, state_of, stop_signals

    common = common.resolved()
    device, dtype = common.torch()
    task = problem.task(spec, download=download)
    recipe = recipe_of(task, dataclasses.asdict(descending))
    _require_before(chosen.at, recipe.steps)
    asked = [0] if chosen.at is None else chosen.at
    among = candidates(recipe.steps, chosen.tolerance) if chosen.bisect else []
    options = {
        **problem.record(spec), "seed": common.seed, "dtype": common.dtype, "device": device.type, **_fields(recipe),
    }  # fmt: skip
    run = Run(out)
    with _begun(run):
        if run.begin("spawn", options, _about(task)):
            note(f"({out} is there; what is new is added)")
    seeds = [common.seed + number for number in range(replicates)]
    f, points, buffers = Objective.of_many([task.make(seed) for seed in seeds], task.loss, task.data.train, device=device, dtype=dtype)  # fmt: skip
    parents = [
        branches.Branch(
            f"parent-{number}", points[number], {name: value[number] for name, value in buffers.items()}, noise=seed,
            keep=tuple(sorted({*asked, *among})), facts={"is": "parent", "replicate": number},
        )
        for number, seed in enumerate(seeds)
    ]  # fmt: skip
    question = {**dataclasses.asdict(chosen), "at": asked, "replicates": replicates}

    def compute() -> Result:
        with stop_signals():
            watch(branches.grow(run, task, f, recipe, parents), "training parents")

        def states(level: int, step: int) -> list[_Parent]:
            starts = [state_of(branches.of(run, parent.name), step, f) for parent in parents]
            return [_Parent(level, number, start, None, 1.0, recipe) for number, start in enumerate(starts)]

        found = _spawned(
            run,
            task,
            f,
            some_rows(f, chosen.rows),
            f.on(task.data.test),
            states,
            {0: asked},
            {0: among},
            chosen,
            common,
        )
        about = describe(run, task, seeds=seeds)
        return dataclasses.replace(found, provenance={**found.provenance, **about})

    # not within `answer`: what is trained shows its own progress
    try:
        made = [] if run.find("instability", question) else [compute()]
    except BaseException as error:
        ended(run, error)
        raise
    run.update(state="finished", ended=now())
    answer(run, "instability", question, made.pop, common.json, show=tell_table)


def _spawn_levels(folder: str, text: str | None, chosen: _Spawning, options: Subject, common: Common) -> None:
    from landscape import tickets
    from landscape.descent import Start
    from landscape.recordings import describe, some_rows, taken

    own = Run.open(Path(folder))
    found = {level.number: level for level in tickets.chosen(own, text)}
    trained = own.options["dtype"]
    if common.dtype not in (None, trained):
        raise UsageError(f"{folder} was trained in {trained}, and so are the children: leave --dtype out.")
    common = dataclasses.replace(common, dtype=trained)
    plan = tickets.plan(own)
    recipes = {number: tickets.recipe(level.run) for number, level in found.items()}
    _require_before(chosen.at, recipes[min(recipes)].steps)
    asked = [plan.rewind] if chosen.at is None else chosen.at
    question = {
        "levels": sorted(found), "states": [level.solution.checksum for level in found.values()],
        **dataclasses.asdict(chosen), "at": asked, **_asked(options, common),
    }  # fmt: skip

    def compute() -> Result:
        device, dtype = common.torch()
        task, f, test = tickets.objective(own, code=options.task, data=options.data, device=device, dtype=dtype)
        train = some_rows(f, options.rows)

        def states(number: int, step: int) -> list[_Parent]:
            level = found[number]
            start = tickets.dense_state(own, step, f) if not number or step <= plan.rewind else None
            if number:
                # as the level itself began: its optimizer starts anew unless the moments are rewound, too
                moments = start.moments if start is not None and plan.moments else ()
                if start is None or step == level.rewound.step:
                    point, buffers = taken(f, Place(level.run, step))
                    start = Start(point, step, (), buffers)
                start = dataclasses.replace(start, point=level.mask.apply(start.point), moments=moments)
            assert start is not None
            return [_Parent(number, 0, start, level.mask if number else None, level.facts["density"], recipes[number])]

        among = {}
        dense = own.level(0).trajectory().steps.tolist()
        for number, level in found.items():
            later = level.run.trajectory().steps.tolist()
            among[number] = sorted({*(step for step in dense if step <= plan.rewind), *(step for step in later[:-1] if step > plan.rewind)})  # fmt: skip
        result = _spawned(own, task, f, train, test, states, dict.fromkeys(found, asked), among, chosen, common)
        about = describe(own, task, seeds=[own.options["seed"]], rewind=plan.rewind, variant=plan.variant)
        return dataclasses.replace(result, provenance={**result.provenance, **about})

    made = [] if own.find("instability", question) else [compute()]
    answer(own, "instability", question, made.pop, common.json, show=tell_table)


def _spawned(
    run: Run,
    task: Task,
    f: Objective,
    train: Objective,
    test: Objective,
    states: Callable[[int, int], list[_Parent]],
    asked: Mapping[int, Sequence[int]],
    among: Mapping[int, Sequence[int]],
    chosen: _Spawning,
    common: Common,
) -> Instability:
    """Train the children of the states asked for, by level, and measure; with --bisect go on among the candidates of each level."""
    from landscape import branches
    from landscape.analysis.instabilities import Siblings, instability, next_step
    from landscape.recordings import stop_signals
    from landscape.seeds import child_seed

    answered: Instability | None = None
    pending = {level: list(steps) for level, steps in asked.items()}
    while pending:
        families = []
        for parent in (parent for level, steps in pending.items() for step in steps for parent in states(level, step)):
            # at step 0 the schedule begins anew anyway
            families += [
                (parent, anew) for anew in ((False, True) if chosen.control and parent.start.step else (False,))
            ]
        if chosen.vary == "augmentation" and not (families[0][0].recipe.augmentations or f.model.stochastic):
            raise UsageError("--vary augmentation: this training has neither augmentation nor dropout, so that its children would be one. Give --augment, or leave --vary out.")  # fmt: skip
        broods: list[list[branches.Branch]] = []
        for parent, anew in families:
            start, place = parent.start, (parent.level, parent.replicate, parent.start.step)
            noises = [child_seed(common.seed, "spawn", *place, child) for child in range(chosen.children)]
            alike = [child_seed(common.seed, "spawn", *place)] * chosen.children
            ending = ("" if chosen.vary == "all" else f"-{chosen.vary}") + ("-anew" if anew else "")
            broods.append(
                [
                    branches.Branch(
                        f"spawn-l{place[0]}-r{place[1]}-k{place[2]}-c{child}{ending}",
                        start.point, start.buffers or f.buffers, parent.mask, 0 if anew else start.step, () if anew else start.moments,
                        noise=(alike if chosen.vary == "order" else noises)[child],
                        order=None if chosen.vary == "all" else (noises if chosen.vary == "order" else alike)[child],
                        facts={"is": "child", "level": place[0], "replicate": place[1], "state": place[2], "child": child, "anew": anew},
                    )
                    for child in range(chosen.children)
                ]
            )  # fmt: skip
        for recipe in dict.fromkeys(parent.recipe for parent, _ in families):
            mine = [branch for (parent, _), brood in zip(families, broods, strict=True) if parent.recipe == recipe for branch in brood]  # fmt: skip
            with stop_signals():
                watch(branches.grow(run, task, f, recipe, mine), "training children")
        siblings = []
        for (parent, anew), brood in zip(families, broods, strict=True):
            points, buffers = branches.ends(run, f, [branch.name for branch in brood])
            fresh = bool(parent.start.step) and not parent.start.moments
            siblings.append(Siblings(parent.start.step, parent.replicate, parent.start.point, points, buffers, parent.mask, parent.level, parent.density, anew, fresh))  # fmt: skip
        answered = instability(
            train, test, siblings, steps=families[0][0].recipe.steps, threshold=chosen.threshold, points=chosen.points, bn=chosen.bn, varied=chosen.vary,
            seed=common.seed, known=answered,
        )  # fmt: skip
        following = {level: next_step(answered, level, among[level]) for level in pending} if chosen.bisect else {}
        pending = {level: [step] for level, step in following.items() if step is not None}
    assert answered is not None
    return answered


def robustness(
    run: str,
    /,
    *,
    levels: str = "all",
    kind: str = "sphere",
    draws: Annotated[int, WHOLE] = 1,
    radii: str = "1",
    bisect: Annotated[bool, Parameter(negative="")] = False,
    params: Literal["all", "prunable"] = "all",
    threshold: float = 0.02,
    points: Annotated[int, WHOLE] = 11,
    bn: str | None = None,
    options: Subject = Subject(),  # noqa: B008 (frozen)
    common: Common = Common(),  # noqa: B008 (frozen)
) -> None:
    """Perturb the rewound weights by as much as the next pruning moves them, train, and see whether the end is linearly connected to that of the unperturbed training.

    At every level: a run from a start at distance d_L = |m_L w - m_(L+1) w| of the rewound weights w, within the mask, and one from the rewound weights themselves, both with SGD noise of their own;
    their barrier stands beside that of noise alone and that between successive levels. What is trained is kept in the run; the same command goes on with what was stopped.

    Examples:
      landscape robustness runs/t
      landscape robustness runs/t --levels 0,2,5 --kind sphere,projection,random-mask --draws 3
      landscape robustness runs/t --radii 0.5,1,2 --bisect

    Parameters
    ----------
    run
        A run of `landscape imp`.
    levels
        all, 0-5, or 0,3,5.
    kind
        Perturbations, with commas: sphere, ball, gaussian, layer-wise (each tensor by the same share of its norm), projection (towards the next mask), random-mask (towards a random one of its size).
    draws
        Directions a level and kind, each with its own noises: intervals over draws need at least 2, and cost two trainings a level each.
    radii
        Distances in units of d_L, with commas.
    bisect
        Look for the robust radius, the largest that keeps the barrier below the threshold, between 1/8 and 8 d_L.
    params
        What is perturbed: all survivors, biases and norm parameters among them, or those that could be pruned.
    threshold
        Of the barrier: 0.02 is two points of error.
    points
        On each path, ends included; odd.
    bn
        Statistics of BatchNorm on the path, several with commas, the first the main one: recompute (the default), average, endpoint, batch.
    """
    from landscape import tickets
    from landscape.analysis.barriers import DEFAULT_POLICY

    own = Run.open(Path(run))
    found = tickets.chosen(own, levels)
    trained = own.options["dtype"]
    if common.dtype not in (None, trained):
        raise UsageError(f"{run} was trained in {trained}, and so are the perturbed runs: leave --dtype out.")
    common = dataclasses.replace(common, dtype=trained)
    chosen: dict[str, Any] = {
        "kinds": _words(kind),
        "draws": draws,
        "factors": _multiples(radii),
        "bisect": bisect,
        "moving": params,
        "threshold": threshold,
        "points": points,
        "bn": _words(bn or DEFAULT_POLICY),
    }
    there = tickets.levels(own)
    question = {
        "levels": [level.number for level in found],
        # the next level has a part in each: its mask tells d_L
        "states": [level.solution.checksum for level in there[: found[-1].number + 2]],
        **chosen,
        **_asked(options, common),
    }
    # not within `answer`: what is trained shows its own progress
    made = [] if own.find("robustness", question) else [_perturbed(own, found, chosen, options, common)]
    answer(own, "robustness", question, made.pop, common.json, show=tell_table)


def _perturbed(
    own: Run, found: Sequence[tickets.Level], chosen: dict[str, Any], options: Subject, common: Common
) -> Result:
    """Train the perturbed runs and their siblings, and measure."""
    from landscape import branches, tickets
    from landscape.analysis.barriers import End
    from landscape.analysis.robustnesses import Child, Ticket
    from landscape.analysis.robustnesses import robustness as measure
    from landscape.descent import Start
    from landscape.recordings import describe, some_rows, stop_signals, taken

    device, dtype = common.torch()
    task, f, test = tickets.objective(own, code=options.task, data=options.data, device=device, dtype=dtype)
    train = some_rows(f, options.rows)
    plan, there = tickets.plan(own), tickets.levels(own)
    solutions = {level.number: End(*taken(f, level.solution), level.mask) for level in there}
    starts: dict[int, Start] = {}
    asked: list[Ticket] = []
    for level in found:
        number = level.number
        if number:
            point, buffers = taken(f, level.rewound)
            starts[number] = Start(point, level.rewound.step, (), buffers)
        else:  # the dense training goes through this state, with the moments that it has there
            starts[number] = tickets.dense_state(own, plan.rewind, f)
        successor = solutions.get(number + 1)
        following = tickets.following(own, level, f)
        rewound = level.mask.apply(starts[number].point)
        asked.append(Ticket(number, level.mask, level.mask - following, rewound, solutions[number], successor))
    recipes = {level.number: tickets.recipe(level.run) for level in found}

    def grow(children: Sequence[Child]) -> list[End | None]:
        made = {}
        for child in children:
            start, is_ = starts[child.ticket.number], "perturbed" if child.name.startswith("perturbed") else "sibling"
            made[child.name] = branches.Branch(
                child.name, child.point, start.buffers or f.buffers, child.ticket.mask, start.step, start.moments,
                noise=child.noise, facts={"is": is_, "level": child.ticket.number},
            )  # fmt: skip
        lost: set[str] = set()
        for recipe in dict.fromkeys(recipes.values()):
            mine = [made[child.name] for child in children if recipes[child.ticket.number] == recipe]
            try:
                with stop_signals():
                    watch(branches.grow(own, task, f, recipe, mine), "training perturbed runs")
            except DivergedError:
                # what diverges from so far away is a finding; the others are trained
                lost |= {branch.name for branch in mine if not own.branch(branch.name).is_finished}
        kept = [child for child in children if child.name not in lost]
        points, buffers_there = branches.ends(own, f, [child.name for child in kept])
        grown = {
            child.name: End(point, buffers, child.ticket.mask)
            for child, point, buffers in zip(kept, points, buffers_there, strict=True)
        }
        return [grown.get(child.name) for child in children]

    answered = measure(train, test, asked, grow, prunable=tickets.prunable(f, plan), seed=common.seed, **chosen)
    about = describe(own, task, noise=plan.noise, rewind=plan.rewind, variant=plan.variant)
    return dataclasses.replace(answered, provenance={**answered.provenance, **about})


def _words(text: str) -> list[str]:
    """Names separated by commas, each once."""
    return list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def _multiples(text: str) -> list[float]:
    """Radii separated by commas, ascending."""
    try:
        return sorted({float(word) for word in _words(text)})
    except ValueError:
        raise UsageError(
            f"--radii takes multiples of d_L separated by commas, such as 0.5,1,2; got {text!r}."
        ) from None


def limit(
    run: str,
    /,
    *,
    at: str | None = None,
    loss: str = "0.01,0.05,0.2",
    absolute: Annotated[bool, Parameter(negative="")] = False,
    masks: str = "random,magnitude",
    draws: Annotated[int, WHOLE] = 5,
    retrain: bool = True,
    steps: Annotated[int, WHOLE] = 400,
    weight_decay: float | None = None,
    matrix: Literal["hessian", "gauss-newton"] = "hessian",
    ignore: str | None = None,
    dense: Annotated[int, WHOLE] = 3000,
    options: Subject = Subject(),  # noqa: B008 (frozen)
    common: Common = Common(),  # noqa: B008 (frozen)
) -> None:
    """How much of a solution can be pruned in one step: what its flatness predicts, what the quadratic says exactly, and what the network does, with and without retraining.

    Largest prunable share, for each rise of the loss and kind of mask: from the Hessian's spectrum (equations 1 to 3), the exact least loss of the quadratic (4), its projection (5), the network at the projection,
    and the least loss that L-BFGS finds in the axial subspace (a lower bound). With the curvature along the way to the projection, and how far the loss stays low along it. Computes in float64 unless told otherwise.

    Examples:
      landscape limit runs/a
      landscape limit runs/t@level=5 --loss 0.02,0.1 --masks random,magnitude,obd
      landscape limit runs/r --matrix gauss-newton --rows 5000 --no-retrain --draws 2 --dtype float32

    Parameters
    ----------
    run
        A RUN, or a point in it: RUN@step=500, RUN@level=5 of iterative pruning, whose survivors are then all there is.
    at
        Which point, where RUN names none: last (the default), init, or step=500.
    loss
        How much the loss may rise above that at the point, with commas. The loss includes the weight decay.
    absolute
        Take them as levels of the loss instead.
    masks
        Orders of pruning, with commas: random, magnitude, obd, obs, weight-gradient, fisher, synflow. The smallest go first, over all layers at once.
    draws
        Random orders, and directions on the sphere.
    retrain
        Train within the axial subspaces: the dearest part.
    steps
        Gradients of one retraining at most.
    weight_decay
        |w|^2 / 2 times this belongs to the loss; by default that of the run's recipe, 0 for what was imported.
    matrix
        The curvature: the Hessian, or the Gauss-Newton matrix, which has no negative directions.
    ignore
        Parameters that are not pruned: names or globs with commas. Biases and norms never are; by default those that the run did not prune.
    dense
        Form the matrix, so that its spectrum is exact, where at most so many weights survive; else Lanczos and conjugate gradients.
    """
    from landscape.cli.measuring import _about as told
    from landscape.cli.measuring import _about_place, _site
    from landscape.cli.reducing import _numbers
    from landscape.runs import place

    where = place(run, at)
    common = common.resolved("float64")
    own = where.run
    decay = float(own.options.get("weight_decay", 0.0)) if weight_decay is None else weight_decay
    chosen: dict[str, Any] = {
        "absolute": absolute,
        "draws": draws,
        "weight_decay": decay,
        "retrain": retrain,
        "steps": steps,
        "matrix": matrix,
        "dense": dense,
    }
    levels, kinds = sorted(set(_numbers("--loss", loss, float))), _words(masks)
    question = {**_about_place(where), "levels": levels, "masks": kinds, "ignore": ignore, **chosen}

    def compute() -> Result:
        from landscape import tickets
        from landscape.analysis.limits import limit as measure
        from landscape.masks import Mask
        from landscape.pruning import prunable

        site, task = _site(where, options, common)
        f = site.train
        mask = Mask.load(own.mask_path, f.model.layout) if own.mask_path.exists() else None
        if ignore is None and own.record()["kind"] == "level":
            among = tickets.prunable(f, tickets.plan(Run(own.folder.parent)))
        else:
            among = prunable(f, ignore=ignore or "")
        found = measure(f, site.point, among, levels, mask=mask, kinds=kinds, seed=common.seed, **chosen)
        return told(found, site, task)

    answer(own, "limit", {**question, **_asked(options, common)}, compute, common.json, show=tell_table)


def retraining(
    run: str,
    /,
    *others: str,
    levels: str | None = None,
    options: Subject = Subject(),  # noqa: B008 (frozen)
    common: Common = Common(),  # noqa: B008 (frozen)
) -> None:
    """What retraining does between two levels: magnitudes of the weights before pruning, after it and after retraining, thresholds, new small weights, distances.

    Nothing is trained. Several runs stand side by side, such as the same tickets with weights rewound, with the learning rate rewound, and fine-tuned. The answer is
    kept in the first run.

    Examples:
      landscape retraining runs/t
      landscape retraining runs/rewound runs/lr-rewound runs/fine-tuned --levels 0,3,7

    Parameters
    ----------
    run
        A run of `landscape imp`.
    others
        More of the same task.
    levels
        From which level each drawn step goes, as 0,3,7 or 0-3; default the first, one in the middle and the last. All of them are measured.
    """
    from landscape import tickets
    from landscape.analysis.magnitudes import Stage
    from landscape.analysis.magnitudes import retraining as measure
    from landscape.recordings import describe

    common = common.resolved()
    runs = [Run.open(Path(folder)) for folder in (run, *others)]
    found = [tickets.levels(one) for one in runs]
    for other in runs[1:]:
        require_one_task(str(runs[0].folder), runs[0].options, runs[0].record().get("fingerprint"), other)
    # --levels are those that the first run has; of the others what they have of these is drawn
    drawn = [level.number for level in tickets.chosen(runs[0], levels)] if levels else []
    folders = [str(one.folder.resolve()) for one in runs]
    if len(set(folders)) < len(folders):
        raise UsageError(f"a run is named twice: {', '.join(map(str, (run, *others)))}. Leave one out.")
    question = {
        "others": folders[1:],
        "states": [[level.solution.checksum for level in there] for there in found],
        "levels": drawn,
        "dtype": common.dtype,
    }

    def stages(there: list[tickets.Level]) -> Iterator[Stage]:
        for level in there:
            trajectory = level.run.trajectory()
            start, end = (
                trajectory.row(trajectory.index(place.step)).point for place in (level.rewound, level.solution)
            )
            accuracy = level.final.get("test_accuracy")
            yield Stage(level.number, level.mask, start, end, math.nan if accuracy is None else 1 - accuracy)

    def compute() -> Result:
        device, dtype = common.torch()
        task, f, _ = tickets.objective(runs[0], code=options.task, data=options.data, device=device, dtype=dtype)
        plans = [tickets.plan(one) for one in runs]
        among = [tickets.prunable(f, plan) for plan in plans]
        for one, mask in zip(runs, among, strict=True):
            if mask != among[0]:
                raise UsageError(
                    f"{runs[0].folder} and {one.folder} may not prune the same weights (--output, --first, --ignore differ): their magnitudes cannot stand side by side. Give them one by one."
                )
        variants = [plan.variant for plan in plans]
        names = [
            f"{name} ({one.folder.name})" if variants.count(name) > 1 else name
            for one, name in zip(runs, variants, strict=True)
        ]
        if len(set(names)) < len(names):  # folders of one name in different places
            names = [f"{name} {number}" for number, name in enumerate(names, 1)]
        seeds = [one.options["seed"] for one in runs]
        about = describe(runs[0], task, runs=[str(one.folder) for one in runs], seeds=seeds)
        sides = {name: stages(there) for name, there in zip(names, found, strict=True)}
        return measure(sides, prunable=among[0], levels=drawn, provenance=about)

    answer(runs[0], "retraining", question, compute, common.json, show=tell_table)


def require_one_task(where: str, options: Mapping[str, Any], fingerprint: str | None, other: Run) -> None:
    """Raise UsageError where a run is of another task, network or data than these options and this fingerprint of the data, which `where` names."""
    for name in ("task", "width", "activation", "norm", "init", "limit", "label_noise"):
        one, two = options.get(name), other.options.get(name)
        if one != two:
            raise UsageError(f"{where} and {other.folder} differ in {name} ({one!r} and {two!r}): give runs of one task and one network.")  # fmt: skip
    if fingerprint != other.record().get("fingerprint"):
        raise UsageError(f"{where} and {other.folder} were made on different data. Give runs on the same rows.")
