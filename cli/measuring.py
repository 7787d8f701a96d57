"""The commands that measure: check, spectrum, sharpness, dimensions, barrier, surface."""

from __future__ import annotations

import dataclasses
import math
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from landscape.cli.options import WHOLE, Common, Subject, answer, tell
from landscape.errors import LandscapeError, UsageError
from landscape.runs import Place, named, place

if TYPE_CHECKING:
    from landscape.masks import Mask
    from landscape.recordings import Site
    from landscape.results import Result
    from landscape.tasks import Task


Matrix = Literal["hessian", "gauss-newton", "fisher", "empirical-fisher", "gradient-covariance"]


def check(
    subject: str,
    /,
    *,
    at: str | None = None,
    options: Subject = Subject(),  # noqa: B008 (frozen)
    common: Common = Common(),  # noqa: B008 (frozen)
) -> None:
    """The doctor: can numbers measured on this run or task be trusted?

    Compares the gradient with finite differences, u.Hv with v.Hu, one pass over the data with another, and the loss with the recorded one; names
    BatchNorm, dropout, attention, frozen, tied and non-float parameters; estimates memory and cost. Computes in float64 unless told otherwise.
    Exit code 1 where a check fails. It is computed anew each time, since what it checks may have changed; a run keeps the last one.

    Parameters
    ----------
    subject
        A RUN (or RUN@step=500), or a task: a name, package.module:function or file.py:function.
    at
        Which point of the run, where RUN names none: last (the default), init, or step=500.
    """
    from landscape.analysis import checks

    common = common.resolved("float64")
    if not _is_run(subject):
        if at is not None or options.task is not None:
            idle = "--at" if at is not None else "--task"
            raise UsageError(
                f"{idle} is for a RUN, and {subject!r} is no folder: it is taken for a task, checked at its start. Leave {idle} out, or give a run's folder."
            )
        _tell_table(_check_task(subject, options, common), None, common.json)
        return
    where = place(subject, at)
    question = {"subject": where.within(where.run), "state": where.checksum, **_asked(options, common)}

    def compute() -> Result:
        site, task = _site(where, options, common)
        recorded = _recorded_loss(where) if options.rows is None else None
        module = task.make(int(where.run.options.get("seed", 0)))
        found = checks.check(site.train, site.point, module, subject=str(where), recorded=recorded, seed=common.seed)
        return _about(found, site, task)

    # a stored checkup says nothing of the code, the data and the machine of today: it is never answered from, and the last replaces the one before
    answer(where.run, "checkup", question, compute, common.json, show=_tell_table, fresh=True)


def spectrum(
    run: str,
    /,
    *,
    at: str | None = None,
    top: Annotated[int, WHOLE] = 10,
    density: Annotated[bool, Parameter(negative="")] = False,
    layers: Annotated[bool, Parameter(negative="")] = False,
    operator: Matrix = "hessian",
    params: str | None = None,
    whole: Annotated[bool, Parameter(negative="")] = False,
    which: Literal["largest", "smallest", "both", "magnitude"] = "largest",
    accuracy: float | None = None,
    counted: Annotated[int | None, WHOLE] = None,
    probes: Annotated[int | None, WHOLE] = None,
    lanczos_steps: Annotated[int | None, WHOLE] = None,
    tolerance: float | None = None,
    max_products: Annotated[int, WHOLE] = 500,
    basis: Annotated[int | None, WHOLE] = None,
    host: Annotated[bool, Parameter(negative="")] = False,
    samples: Annotated[int, WHOLE] = 1,
    engine: Literal["native", "pyhessian"] = "native",
    options: Subject = Subject(),  # noqa: B008 (frozen)
    common: Common = Common(),  # noqa: B008 (frozen)
) -> None:
    """Eigenvalues of the loss's curvature at a point, each with its residual and error bound, and the density of all of them; or layer by layer; or along the run.

    Examples:
      landscape spectrum runs/a --top 10 --density
      landscape spectrum runs/a@init --operator gauss-newton
      landscape spectrum runs/a --params 'layer3.*' --layers
      landscape spectrum runs/a --at all --top 3
      landscape spectrum runs/t@level=5 --density

    Parameters
    ----------
    run
        A RUN, or a point in it: RUN@step=500, RUN@init.
    at
        Which point, where RUN names none: last (the default), init, or a step; or all, every recorded point, as `landscape sharpness` draws them.
    top
        Number of eigenvalues.
    density
        Also the spectral density, by stochastic Lanczos quadrature beside the eigenvalues counted one by one.
    layers
        Instead, each layer's own block of the matrix: its largest eigenvalue and its trace.
    operator
        The Hessian, the generalised Gauss-Newton matrix, the Fisher matrix by labels drawn from the model or by the true ones, or the second moment of the rows' gradients.
    params
        Only of parameters of these names: globs, several separated by commas. The others stand still.
    whole
        Of a pruned network (RUN@level=5): of all parameters. By default those that were pruned stand still too.
    which
        The end of the spectrum.
    accuracy
        Of the density: its distance from the true spectrum in units of the mean |eigenvalue|. Products are spent until it is reached; 0.05 where nothing else is given.
    counted
        Instead of an accuracy: this many eigenvalues of the density counted one by one,
    probes
        and this many random vectors for the rest; the error band comes from their spread,
    lanczos_steps
        with this many products a vector.
    tolerance
        On each residual, relative to the largest eigenvalue; 1e-4, and 1e-2 along a run.
    max_products
        Give up after this many; what did not converge is marked. A density takes at most four times as many more.
    basis
        Hold at most this many vectors of the length of the parameters; by default what fits in 512 MiB, at least 2 top + 8. The random vectors of a density take --lanczos-steps more.
    host
        Hold them in the memory of the CPU, where that of the device is short.
    samples
        Of the operator fisher: labels drawn a row.
    engine
        pyhessian: put the question to PyHessian (with --which magnitude); the residuals are ours.
    """
    chosen: dict[str, Any] = {"top": top, "operator": operator, "max_products": max_products}
    one_point = {
        "--engine": engine != "native", "--basis": basis is not None, "--host": host,
        "--counted": counted is not None, "--probes": probes is not None, "--lanczos-steps": lanczos_steps is not None,
    }  # fmt: skip
    if at == "all":
        _leave_out(
            {**one_point, "--layers": layers, "--which": which not in ("largest", "both"), "--samples": samples != 1},
            "is for one point, and --at all takes every recorded one",
        )  # fmt: skip
        chosen |= {"which": which, "tolerance": 1e-2 if tolerance is None else tolerance, "params": params}
        if density:
            chosen["density_accuracy"] = _positive("--accuracy", 0.1 if accuracy is None else accuracy)
        elif accuracy is not None:
            raise UsageError("--accuracy is of a density: add --density.")
        _along(run, chosen, {}, options, common, whole)
        return
    where = place(run, at)
    common = common.resolved()
    pruned = _pruned(where, params)
    chosen |= {"tolerance": _positive("--tolerance", 1e-4 if tolerance is None else tolerance)}
    about = _about_place(where)
    if layers:
        _leave_out(
            {
                **one_point,
                "--density": density,
                "--which": which != "largest",
                "--samples": samples != 1,
                "--whole": whole,
            },
            "has no part in --layers, each layer's largest eigenvalues and trace",
        )
        chosen |= {"params": "*" if params is None else params}
        if accuracy is not None:
            chosen["accuracy"] = _positive("--accuracy", accuracy)

        def compute() -> Result:
            from landscape.analysis.layerwise import layers as measure

            site, task = _site(where, options, common)
            found = _about(measure(site.train, site.point, seed=common.seed, **chosen), site, task)
            return _of_all(found, pruned, params=params)

        answer(where.run, "layers", {**about, **chosen, **_asked(options, common)}, compute, common.json)
        return
    chosen |= {"which": which, "engine": engine}
    if basis is not None or host:
        chosen |= {"basis": basis, "host": host}
    if operator == "fisher":
        chosen["samples"] = samples
    elif samples != 1:
        raise UsageError("--samples is of --operator fisher: the other matrices draw nothing.")
    if density:
        chosen |= {"density": True, "counted": counted, "probes": probes, "steps": lanczos_steps}
        chosen["accuracy"] = None if accuracy is None else _positive("--accuracy", accuracy)
    elif not (accuracy is None and counted is None and probes is None and lanczos_steps is None):
        raise UsageError("--accuracy, --counted, --probes and --lanczos-steps are of a density: add --density.")
    if params is not None:
        chosen["params"] = params
    asked = {**about, **chosen, **_restriction(where, pruned, whole), **_asked(options, common)}

    def compute_spectrum() -> Result:
        from landscape.analysis.spectra import spectrum as measure

        site, task = _site(where, options, common)
        found = measure(site.train, site.point, mask=pruned, whole=whole, seed=common.seed, **chosen)
        return _about(found, site, task)

    answer(where.run, "spectrum", asked, compute_spectrum, common.json)


def sharpness(
    run: str,
    /,
    *,
    top: Annotated[int, WHOLE] = 5,
    every: Annotated[int, WHOLE] = 1,
    first: Annotated[int | None, Parameter(name="--from"), WHOLE] = None,
    last: Annotated[int | None, Parameter(name="--to"), WHOLE] = None,
    operator: Matrix = "hessian",
    params: str | None = None,
    whole: Annotated[bool, Parameter(negative="")] = False,
    which: Literal["largest", "both"] = "largest",
    trace: Annotated[bool, Parameter(negative="")] = False,
    density: Annotated[bool, Parameter(negative="")] = False,
    warm: bool = True,
    tolerance: float = 1e-2,
    max_products: Annotated[int, WHOLE] = 500,
    options: Subject = Subject(),  # noqa: B008 (frozen)
    common: Common = Common(),  # noqa: B008 (frozen)
) -> None:
    """Curvature along a run: the top eigenvalues against the step with the edge of stability 2/lr, the gradient's share in their space, and how long that space lasts.

    Examples:
      landscape sharpness runs/a
      landscape sharpness runs/a --top 1 --every 10 --trace

    Parameters
    ----------
    run
        A RUN. Every recorded point is measured, or each --every-th of them.
    top
        Number of eigenvalues.
    every
        Measure each so many recorded points, and the last.
    first
        From this step on.
    last
        Up to this step.
    operator
        As for `landscape spectrum`.
    params
        Only of parameters of these names, as for `landscape spectrum`; then there is no edge of stability.
    whole
        Of a pruned network: of all parameters, as with --params. By default only of those that survive.
    which
        The largest eigenvalues, or both ends.
    trace
        Also the trace, to 5%.
    density
        Also the spectral density at every point, as `landscape spectrum --density`, to an accuracy of 0.1.
    warm
        Start each point from the eigenvectors of the one before, and look for hidden ones at each tenth and where their space turns; --no-warm measures each by itself.
    tolerance
        On each residual, relative to the largest eigenvalue. The error of a value is of the order of its square.
    max_products
        Give up after this many a point; what did not converge is marked.
    """
    chosen = {
        "top": top,
        "operator": operator,
        "which": which,
        "tolerance": tolerance,
        "max_products": max_products,
        "warm": warm,
        "trace_accuracy": 0.05 if trace else None,
        "density_accuracy": 0.1 if density else None,
        "params": params,
    }
    _along(run, chosen, {"every": every, "first": first, "last": last}, options, common, whole)


def _along(
    run: str, chosen: dict[str, Any], steps: dict[str, Any], options: Subject, common: Common, whole: bool
) -> None:
    """Measure at every recorded point that `steps` chooses; of a pruned network among its survivors, unless it is of some names or of the whole."""
    where = _alone(run)
    common = common.resolved()
    _positive("--tolerance", chosen["tolerance"])
    pruned = _pruned(where, chosen["params"])
    everything = whole or chosen["params"] is not None
    path = {"path": where.run.trajectory().identity}

    def compute() -> Result:
        import torch

        from landscape.analysis.stability import Method, stations
        from landscape.analysis.stability import sharpness as measure
        from landscape.subspaces import coordinates

        site, task = _site(where, options, common)
        f, course = site.train, stations(site, **steps)
        if pruned is not None and not everything:
            kept = pruned.tensor(f.device)
            # every point of the course is 0 outside the mask
            f = f.restrict(coordinates(torch.zeros_like(site.point), kept))
            course = (dataclasses.replace(station, point=station.point[kept]) for station in course)
        found = measure(f, course, method=Method.of(where.run.options), seed=common.seed, **chosen)
        if pruned is not None and not everything:
            among = f"Among the {pruned.size:,} survivors of {pruned.layout.dim:,} parameters."
            found = dataclasses.replace(found, remark=f"{among} {found.remark}".rstrip())
        return _of_all(_about(found, site, task), pruned if everything else None, params=chosen["params"])

    asked = {**path, **steps, **chosen, **_restriction(where, pruned, whole), **_asked(options, common)}
    answer(where.run, "sharpness", asked, compute, common.json)


def dimensions(
    run: str,
    /,
    *,
    against: str | None = None,
    dims: Annotated[int | None, WHOLE] = None,
    centring: Literal["centred", "uncentred", "increments"] = "centred",
    hessian: Annotated[int | None, WHOLE] = None,
    at: str | None = None,
    points: Annotated[int | None, WHOLE] = None,
    max_products: Annotated[int, WHOLE] = 500,
    options: Subject = Subject(),  # noqa: B008 (frozen)
    common: Common = Common(),  # noqa: B008 (frozen)
) -> None:
    """How many dimensions a trajectory has of its own: explained variance beside that of a random walk, and what its subspace holds of the gradient, of the way, and of another run's.

    Examples:
      landscape dimensions runs/a
      landscape dimensions runs/a --against runs/b --centring increments
      landscape dimensions runs/a --dims 40 --hessian 0

    Parameters
    ----------
    run
        A RUN, trained here or imported.
    against
        Another RUN of the same model, such as one of another seed: the principal angles between the two subspaces.
    dims
        Dimensions of the subspaces that are compared; by default the number of classes.
    centring
        What is decomposed: deviations of the recorded points from their mean, their differences to the first, or the increments from point to point.
    hessian
        Eigenvectors of the Hessian at each measured point; by default as many as --dims, and 0 leaves the Hessian out.
    at
        Recorded steps at which gradients are measured, separated by commas.
    points
        Instead, about this many, evenly on a logarithmic axis; default 12.
    max_products
        With the Hessian at a point: give up after this many; what did not converge is told.
    """
    where = _alone(run)
    common = common.resolved()
    if at is not None and points is not None:
        raise UsageError("--at and --points both choose the steps. Leave one of them out.")
    chosen: dict[str, Any] = {
        "top": dims,
        "centring": centring,
        "hessian": hessian,
        "at": None if at is None else _listed(at),
        "points": 12 if points is None else points,
        "max_products": max_products,
    }
    other = None if against is None else _alone(against)
    paths = {
        "path": where.run.trajectory().identity,
        "against": None if other is None else [other.within(where.run), other.run.trajectory().identity],
    }

    def compute() -> Result:
        from landscape.analysis.dimensions import dimension, require_same_parameters
        from landscape.recordings import require_common_frozen

        site, task = _site(where, options, common)
        trajectory, second = where.run.trajectory(), None
        if other is not None:
            second = other.run.trajectory()
            require_same_parameters(trajectory, second)
            require_common_frozen(site, _at(other, task, options, common))
        found = _about(dimension(site.train, trajectory, against=second, seed=common.seed, **chosen), site, task)
        found = _of_all(found, _pruned(where), "The gradients and the Hessian are")
        return found if other is None else dataclasses.replace(found, provenance={**found.provenance, "against": str(other.run.folder)})  # fmt: skip

    answer(where.run, "dimensions", {**paths, **chosen, **_asked(options, common)}, compute, common.json)


def barrier(
    first: str,
    second: str | None = None,
    /,
    *,
    points: Annotated[int | None, WHOLE] = None,
    refine: Annotated[int | None, WHOLE] = None,
    bn: str | None = None,
    threshold: float | None = None,
    mask: Literal["none", "start", "end", "union", "intersection"] = "none",
    levels: str | None = None,
    pairs: Literal["successive", "all"] = "successive",
    options: Subject = Subject(),  # noqa: B008 (frozen)
    common: Common = Common(),  # noqa: B008 (frozen)
) -> None:
    """Loss and error on the straight line between two points: are they linearly mode connected? Or between the levels of iterative pruning: where do they match?

    Every definition of the barrier in use is computed from one curve, each under its name, with a 95% interval of the first. The answer is kept in the first run.

    Examples:
      landscape barrier runs/a runs/b
      landscape barrier runs/a@step=100 runs/a --bn recompute,average
      landscape barrier runs/a runs/b --threshold 0.02
      landscape barrier runs/t@level=3 runs/t@level=4 --mask start
      landscape barrier runs/t --levels all
      landscape barrier runs/t --levels 0-10 --pairs all

    Parameters
    ----------
    first
        A RUN or a point in it; with --levels, a run of `landscape imp`.
    second
        Another, of the same task. None with --levels.
    points
        On the line, ends included; odd, so that the midpoint is one of them. Default 25, and 11 between levels.
    refine
        Further points around the highest one: default 8, and none between levels.
    bn
        Statistics of BatchNorm on the path: recompute, on the training rows at each point (what a network of these weights would have), average, of
        the ends' (exaggerates barriers), endpoint, the first end's, or batch, each batch's own. Several with commas: the first counts, the others stand beside it.
        Default recompute, and recompute,average between levels.
    threshold
        Is the barrier below this (0.02 is 2 points of error): yes, no or undecided, with no more evaluations than it takes. Between levels, what counts as
        connected; default 0.02.
    mask
        Prune the line by a mask of pruned ends. Between pruned points it stays within the union of their masks by itself.
    levels
        Barriers between the solutions of successive levels, and which levels match the dense replicates: all, 0-5, or 0,3,5.
    pairs
        With --levels: all adds the barriers between any two levels, blocks of connected ones, and the test of a star shape.
    """
    common = common.resolved()
    policies = None if bn is None else [name.strip() for name in bn.split(",")]
    if threshold is not None:
        _positive("--threshold", threshold)
    if levels is not None:
        two = {"a second point": second is not None, "--refine": refine is not None, "--mask": mask != "none"}
        _leave_out(two, "is for a line between two points, and --levels takes those of a run of `landscape imp`")
        _chain(first, levels, {"points": points, "bn": policies, "threshold": threshold, "pairs": pairs}, options, common)  # fmt: skip
        return
    if second is None:
        raise UsageError(
            f"a barrier lies between two points: give another beside {first}, or --levels all for a run of `landscape imp`."
        )
    _leave_out({"--pairs": pairs != "successive"}, "is of --levels")
    from landscape.analysis.barriers import DEFAULT_POLICY

    start, end = place(first), place(second)
    policies = policies or [DEFAULT_POLICY]
    chosen: dict[str, Any] = {
        "points": 25 if points is None else points,
        "refine": 8 if refine is None else refine,
        "bn": policies[0] if len(policies) == 1 else policies,
    }
    # not asked for, they leave a question what it was before there were any
    chosen |= {} if threshold is None else {"threshold": threshold}
    chosen |= {} if mask == "none" else {"mask": mask}
    ends = {"first": start.within(start.run), "second": end.within(start.run), "states": [start.checksum, end.checksum]}
    if mask != "none":
        ends["masks"] = [zlib.crc32(where.run.mask_path.read_bytes()) if where.run.mask_path.exists() else None for where in (start, end)]  # fmt: skip

    def compute() -> Result:
        from landscape.analysis.barriers import barrier as measure
        from landscape.recordings import require_common_frozen

        one, task = _site(start, options, common)
        other, other_task = (
            (_at(end, task, options, common), task) if end.run == start.run else _site(end, options, common)
        )
        if (task.name, task.data.fingerprint, one.train.dim) != (
            other_task.name,
            other_task.data.fingerprint,
            other.train.dim,
        ):
            raise UsageError(
                f"{first} and {second} are of different tasks or data ({task.name}, {other_task.name}): there is no common landscape."
            )
        require_common_frozen(one, other)
        found = measure(
            one.train,
            one.test,
            one.point,
            other.point,
            start_buffers=one.train.buffers,
            end_buffers=other.train.buffers,
            start_mask=_mask(start) if mask != "none" else None,
            end_mask=_mask(end) if mask != "none" else None,
            seed=common.seed,
            **chosen,
        )
        return _about(found, one, task)

    answer(start.run, "barrier", {**ends, **chosen, **_asked(options, common)}, compute, common.json)


def _mask(where: Place) -> Mask | None:
    """What survives at a place; None where nothing was pruned."""
    from landscape.masks import Mask

    path = where.run.mask_path
    return Mask.load(path, where.run.trajectory().layout) if path.exists() else None


def _pruned(where: Place, params: str | None = None) -> Mask | None:
    """What survives at a place where something was pruned, among the parameters of these names."""
    mask = _mask(where)
    if mask is None or mask.kept[mask.layout.select("*" if params is None else params)].all():
        return None
    return mask


def _restriction(where: Place, pruned: Mask | None, whole: bool) -> dict[str, Any]:
    """What a question says of pruning. Where nothing was pruned it is the question that it was before there were masks."""
    if whole and not where.run.mask_path.exists():
        raise UsageError(f"--whole is of a pruned network, and {where.run.folder} has no mask. Leave it out.")
    if pruned is None:
        return {}
    return {"mask": zlib.crc32(where.run.mask_path.read_bytes()), **({"whole": True} if whole else {})}


def _of_all(result: Result, pruned: Mask | None, what: str = "These numbers are", params: str | None = None) -> Result:
    """With a warning that a measurement, among the parameters of these names, took pruned ones of a network too."""
    if pruned is None:
        return result
    kept = pruned.kept[pruned.layout.select("*" if params is None else params)]
    told = f"{what} of all {kept.size:,} parameters{f' {params}' if params else ''}, the {(~kept).sum():,} pruned ones included: the network was trained among the other {kept.sum():,}."
    return dataclasses.replace(result, warnings=(*result.warnings, told))


def _chain(text: str, levels: str, given: dict[str, Any], options: Subject, common: Common) -> None:
    """Measure between the levels of a run of imp."""
    from landscape import tickets

    run = named(text)
    rungs = tickets.chosen(run, levels)
    chosen = {name: value for name, value in given.items() if value is not None}
    question = {
        "levels": [level.number for level in rungs],
        "states": [place.checksum for level in rungs for place in (level.solution, level.rewound)],
        "replicates": [own.record()["final"] for own in tickets.replicates(run)],
        **chosen,
    }

    def compute() -> Result:
        import torch

        from landscape.analysis.barriers import End
        from landscape.analysis.chains import chain
        from landscape.recordings import describe, some_rows, taken

        device, dtype = common.torch()
        task, whole, test = tickets.objective(run, code=options.task, data=options.data, device=device, dtype=dtype)
        train = some_rows(whole, options.rows)
        solutions = [taken(train, level.solution) for level in rungs]
        rewound = [taken(train, level.rewound) for level in rungs]
        if rungs[0].number == 0:  # trained from step 0 on; what the others go back to is the rewind step
            start = tickets.dense_state(run, tickets.plan(run).rewind, train)
            rewound[0] = start.point, start.buffers or {}
        column = "test_accuracy" if train.loss.classifies else "test_loss"
        finals = [own.record()["final"][column] for own in (run.level(0), *tickets.replicates(run))]
        found = chain(
            train,
            test,
            torch.stack([point for point, _ in solutions]),
            [buffers for _, buffers in solutions],
            [level.mask for level in rungs],
            numbers=[level.number for level in rungs],
            density=[level.facts["density"] for level in rungs],
            dense=[1 - final if train.loss.classifies else final for final in finals],
            dense_end=End(*taken(train, tickets.levels(run)[0].solution)),
            rewound=torch.stack([point for point, _ in rewound]),
            rewound_buffers=[buffers for _, buffers in rewound],
            seed=common.seed,
            **chosen,
        )
        where = rungs[0].solution
        kept = {name: run.options[name] for name in ("rate", "rewind", "variant", "criterion", "noise") if name in run.options}  # fmt: skip
        return dataclasses.replace(
            found, provenance={**found.provenance, **describe(where.run, task, step=where.step), "pruning": kept}
        )

    answer(run, "chain", {**question, **_asked(options, common)}, compute, common.json)


def surface(
    run: str,
    /,
    *,
    at: str | None = None,
    plane: Literal["trajectory", "random"] = "trajectory",
    side: Annotated[int, WHOLE] = 41,
    span: float | None = None,
    options: Subject = Subject(),  # noqa: B008 (frozen)
    common: Common = Common(),  # noqa: B008 (frozen)
) -> None:
    """The loss on a plane through a point: along the trajectory's principal directions with the path drawn on it, or along random directions.

    Examples:
      landscape surface runs/a
      landscape surface runs/a --plane random --side 61

    Parameters
    ----------
    run
        A RUN, or a point in it.
    at
        Which point, where RUN names none: last (the default), init, or step=500.
    plane
        Principal directions of the trajectory, or two random filter-normalised ones.
    side
        Grid points a side.
    span
        Half-width of the plane, in the units of its axes; default fits the path, or 1 for random directions.
    """
    where = place(run, at)
    common = common.resolved()
    if span is not None and not 0 < span < math.inf:
        raise UsageError(f"--span must be positive and finite; got {span}.")
    chosen: dict[str, Any] = {"plane": plane, "side": side, "span": span}
    # every recorded point has a part in the principal plane
    path = {"path": where.run.trajectory().identity} if plane == "trajectory" else {}

    def compute() -> Result:
        from landscape.analysis.surfaces import surface as measure

        site, task = _site(where, options, common)
        found = measure(site.train, site.point, trajectory=where.run.trajectory(), seed=common.seed, **chosen)
        # the plane of a trajectory lies among the survivors, as every point of it does
        return _of_all(_about(found, site, task), _pruned(where) if plane == "random" else None, "The directions are")

    answer(
        where.run, "surface", {**_about_place(where), **path, **chosen, **_asked(options, common)}, compute, common.json
    )


def _alone(run: str, why: str = "every recorded one is asked for: name the run alone") -> Place:
    """The last point of a run, or of a level's, that is named without one."""
    return place(str(named(run, why).folder))


def _listed(text: str) -> list[int]:
    """Steps separated by commas."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--at takes recorded steps separated by commas, such as 0,100,2000; got {text!r}.") from None


def _leave_out(given: dict[str, bool], reason: str) -> None:
    """Refuse the first flag that is given and would do nothing."""
    for flag, is_given in given.items():
        if is_given:
            raise UsageError(f"{flag} {reason}. Leave one of them out.")


def _positive(flag: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise UsageError(f"{flag} must be positive and finite; got {value}.")
    return value


def _about_place(where: Place) -> dict[str, Any]:
    """Where was measured, and what stood there: a run made anew at this path has no answer yet."""
    return {"place": where.within(where.run), "state": where.checksum}


def _is_run(subject: str) -> bool:
    folder = subject.rpartition("@")[0]  # as `place` reads it: the folder's own name may hold an @
    return Path(subject).is_dir() or (folder != "" and Path(folder).is_dir())


def _asked(options: Subject, common: Common) -> dict[str, Any]:
    """What else an answer depends on."""
    return {"rows": options.rows, "seed": common.seed, "dtype": common.dtype, "device": common.torch()[0].type}


def _site(where: Place, options: Subject, common: Common) -> tuple[Site, Task]:
    from landscape.recordings import task_of

    task = task_of(where.run, code=options.task, data=options.data)
    return _at(where, task, options, common), task


def _at(where: Place, task: Task, options: Subject, common: Common) -> Site:
    from landscape.recordings import site

    device, dtype = common.torch()
    return site(where, task, device=device, dtype=dtype, limit=options.rows)


def _about(result: Result, site: Site, task: Task) -> Result:
    from landscape.recordings import describe

    return dataclasses.replace(
        result, provenance={**result.provenance, **describe(site.place.run, task, step=site.place.step)}
    )


def _recorded_loss(where: Place) -> float | None:
    metrics = where.run.metrics()
    if not metrics:
        return None
    for step, loss in zip(metrics["step"], metrics["train_loss"], strict=True):
        if int(step) == where.step:
            return float(loss)
    return None


def _check_task(spec: str, options: Subject, common: Common) -> Result:
    from landscape import tasks
    from landscape.analysis.checks import check as examine
    from landscape.objectives import Objective

    device, dtype = common.torch()
    task = tasks.find(spec, data=options.data, limit=options.rows)
    module = task.make(common.seed)
    f, point = Objective.of(module, task.loss, task.data.train, device=device, dtype=dtype)
    return examine(f, point, module, subject=task.name, seed=common.seed)


def _tell_table(result: Result, path: Path | None, as_json: bool) -> None:
    from landscape.analysis.checks import Checkup

    assert isinstance(result, Checkup)
    if as_json:
        tell(result, path, True)
    else:
        for name, status, words in result.table()[1:]:
            print(f"{status:<5} {name:<20} {words}")
        print(result.summary())
        if path is not None:
            print(f"  {path}")
    if not result.healthy:
        raise LandscapeError("a check failed: numbers measured here are not to be trusted until it is mended.")
