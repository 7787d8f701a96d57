"""The commands that look off the path: cloud, tiny."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from landscape.cli.making import _about as _about_task
from landscape.cli.making import _announce, _begun, recipe_of
from landscape.cli.measuring import _about, _alone, _asked, _listed, _mask, _site
from landscape.cli.options import WHOLE, Common, Subject, answer, note, tell_table
from landscape.errors import UsageError
from landscape.runs import Place, Run, place

if TYPE_CHECKING:
    from landscape.descent import Recipe
    from landscape.results import Result
    from landscape.tasks import Task


def cloud(
    run: str,
    /,
    *,
    out: Path,
    kind: Literal["restarts", "stationary"] = "restarts",
    size: Annotated[int, WHOLE] = 200,
    steps: Annotated[int, WHOLE] = 100,
    burn_in: Annotated[int | None, WHOLE] = None,
    lr: float | None = None,
    batch_size: Annotated[int | None, WHOLE] = None,
    data: Path | None = None,
    task: str | None = None,
    common: Common = Common(),  # noqa: B008 (frozen)
) -> None:
    """Draw a cloud of points around a recorded state by training itself: a curve cannot show the dimension of a manifold, a cloud can.

    The cloud is a run whose points are in no order: `landscape diffuse CLOUD` and `landscape dimensions CLOUD` read it as any other. The learning rate stays what it was at the state.
    The same command goes on with a stopped one.

    Examples:
      landscape cloud runs/a@step=500 --out runs/cloud
      landscape cloud runs/a@step=500 --size 400 --steps 50 --out runs/near
      landscape cloud runs/a --kind stationary --steps 20 --out runs/walk

    Parameters
    ----------
    run
        A RUN, or a point in it: RUN@step=500; the last where none is named.
    out
        The cloud's folder.
    kind
        restarts: the ends of continuations of that state that differ in their mini-batch noise alone. stationary: the points of one long continuation.
    size
        How many points.
    steps
        Mini-batch updates of each continuation; of a stationary cloud, from one point to the next.
    burn_in
        Of a stationary cloud: steps walked for nothing before the first point; default half of the way that is kept.
    lr
        Another learning rate than the one there.
    batch_size
        Another number of rows a step than the run's.
    data
        Folder of the data set, where it is not the one recorded.
    task
        For runs made with your own code: its package.module:function or file.py:function again. Code is run only when you name it.
    """
    from landscape import clouds
    from landscape.cli.pruning import watch
    from landscape.recordings import stop_signals

    plan = clouds.Plan(size, steps, kind, burn_in, common.seed)
    source = place(run)
    common = _as_trained(source, common)
    options = Subject(data=data, task=task)
    site, found = _site(source, options, common)
    recipe = clouds.held(_recipe(source, found, batch_size, lr is not None), source.step, plan.length, lr)
    own = Run(out)
    asked = clouds.options(source, recipe, plan)
    with _begun(own):
        if not own.begin("cloud", asked, _about_task(found)):
            with stop_signals():
                watch(clouds.draw(own, source, found, site.train, recipe, plan), "drawing the cloud")
            for line in clouds.remarks(own):
                note(line)
        else:
            note(f"({out} is already finished)")
    _announce(own, common.json)


def tiny(
    run: str,
    /,
    *,
    at: str | None = None,
    points: Annotated[int | None, WHOLE] = None,
    top: Annotated[int | None, WHOLE] = None,
    start: Annotated[int | None, WHOLE] = None,
    steps: Annotated[int, WHOLE] = 200,
    rate: float | None = None,
    refresh: Annotated[int, WHOLE] = 5,
    replicates: Annotated[int, WHOLE] = 3,
    max_products: Annotated[int, WHOLE] = 500,
    options: Subject = Subject(),  # noqa: B008 (frozen)
    common: Common = Common(),  # noqa: B008 (frozen)
) -> None:
    """Does training happen in a tiny subspace? What the Hessian's top space, the diffusion tangent and a random space hold of the gradient, and SGD projected onto and out of them.

    Examples:
      landscape tiny runs/a
      landscape tiny runs/a --at 0,100,1000 --top 10 --start 100 --steps 500

    Parameters
    ----------
    run
        A RUN, trained here or imported, or a cloud.
    at
        Recorded steps at which fractions are measured, separated by commas.
    points
        Instead, about this many, evenly on a logarithmic axis; default 12.
    top
        Dimensions of every space; by default the number of classes.
    start
        Recorded step of the state that the projected trainings begin at; by default the middle one of the measured steps, where the gradient has turned and there is loss left to lose.
    steps
        Mini-batch updates of each projected training.
    rate
        Their learning rate, constant; by default that of the run at the start.
    refresh
        Compute the top space anew every so many steps.
    replicates
        Trainings of each kind, which differ in their mini-batches.
    max_products
        Of the Hessian, for each top space: give up after this many; what did not converge is told.
    """
    from landscape import clouds
    from landscape.analysis.dimensions import chosen as evenly

    where = _alone(
        run, "every recorded one is looked at: name the run alone, and with --start where the projected trainings begin"
    )
    common = _as_trained(where, common)
    if at is not None and points is not None:
        raise UsageError("--at and --points both choose the steps. Leave one of them out.")
    trajectory = where.run.trajectory()
    measured = (
        trajectory.steps[evenly(trajectory.steps, 12 if points is None else points)] if at is None else _listed(at)
    )
    begin = int(measured[len(measured) // 2]) if start is None else start
    source = Place(where.run, int(trajectory.steps[trajectory.index(begin)]))
    clouds.check(source)
    chosen: dict[str, Any] = {"top": top, "refresh": refresh, "replicates": replicates, "max_products": max_products}
    asked = {"path": trajectory.identity, "at": [int(step) for step in measured], "start": begin, "steps": steps, "rate": rate, **chosen}  # fmt: skip

    def compute() -> Result:
        import torch

        from landscape.analysis.tinyspaces import tiny as measure
        from landscape.recordings import some_rows
        from landscape.subspaces import coordinates

        site, task = _site(source, dataclasses.replace(options, rows=None), common)
        recipe = clouds.held(_recipe(source, task, None, rate is not None), begin, steps, rate)
        f, mask = site.train, _mask(source)
        begun = clouds.origin(source, f)
        if mask is not None:
            f = f.restrict(coordinates(torch.zeros_like(site.point), mask.tensor(f.device)))
        found = measure(
            f, some_rows(f, options.rows), trajectory, recipe, begun, cloud=clouds.is_cloud(where.run), at=asked["at"],
            seed=common.seed, **chosen,
        )  # fmt: skip
        return _about(found, site, task)

    answer(where.run, "tinyspace", {**asked, **_asked(options, common)}, compute, common.json, show=tell_table)


def _as_trained(where: Place, common: Common) -> Common:
    """In the precision that a training had, which goes on."""
    trained = where.run.options.get("dtype")
    if trained and common.dtype not in (None, trained):
        raise UsageError(f"{where.run.folder} was trained in {trained}, and so it goes on: leave --dtype out.")
    return dataclasses.replace(common, dtype=trained or common.dtype).resolved()


def _recipe(source: Place, task: Task, batch_size: int | None, rated: bool) -> Recipe:
    """How the run of a place was trained; of imported checkpoints the task's own recipe."""
    from landscape import tickets

    if "optimizer" in source.run.options:
        recipe = tickets.recipe(source.run)
        return recipe if batch_size is None else dataclasses.replace(recipe, batch_size=batch_size)
    told = "" if rated else ", at the rate that the task begins with (another may be given)"
    note(f"({source.run.folder} does not say how it was trained: the training goes on by the task's own recipe{told})")
    recipe = recipe_of(task, {"batch_size": batch_size})
    return dataclasses.replace(recipe, schedule="constant", warmup=0)
