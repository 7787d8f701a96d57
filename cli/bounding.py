"""The commands of Gaussian width: width, well, explore."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from landscape.cli.making import _begun
from landscape.cli.measuring import _about, _about_place, _alone, _asked, _at, _of_all, _positive, _pruned, _site
from landscape.cli.options import WHOLE, Common, Subject, answer, tell_table
from landscape.cli.reducing import _numbers
from landscape.errors import UsageError
from landscape.runs import Run, now, place

if TYPE_CHECKING:
    from landscape.analysis.thresholds import Threshold
    from landscape.results import Result
    from landscape.tasks import Task


# -- width ------------------------------------------------------------------------------------------------------------


def width(
    run: str,
    /,
    *,
    loss: str,
    start: Annotated[str, Parameter(name="--from")] = "init",
    measured: Path | None = None,
    draws: Annotated[int | None, WHOLE] = None,
    radii: str | None = None,
    rounds: Annotated[int | None, WHOLE] = None,
    hessian: Literal["hessian", "gauss-newton", "none"] = "hessian",
    negative: Literal["clip", "abs", "error"] = "clip",
    options: Subject = Subject(),  # noqa: B008 (frozen)
    common: Common = Common(),  # noqa: B008 (frozen)
) -> None:
    """How wide the set of low loss looks from a start, and how many random dimensions meet it: estimated without training in a subspace, predicted, bounded, and beside what was measured.

    Gaussian width, local angular dimension and threshold dimension d* of each level, by the points of the set nearest in angle to random rays and planes
    (from above: a search may stop short), by the quadratic at the end of the run (a prediction), with escape bounds at every d.

    Examples:
      landscape width runs/a --loss 1,0.5,0.2
      landscape width runs/a --loss 0.5,0.2 --from 16 --measured runs/t

    Parameters
    ----------
    run
        A RUN that was trained or imported. Its end is the solution.
    loss
        Levels of the training loss, with commas.
    start
        Where the set is seen from: init, last, or a recorded step (burn-in; `train --record-every` says which steps there are).
    measured
        The folder of a sweep of `landscape threshold` on the same task, or its threshold.json: the family random (from init), or burn-in@STEP, is drawn beside the estimates.
    draws
        Random rays, and half as many planes, over which the errors are taken; 8 where nothing is given.
    radii
        Distances from the start at which searches begin, with commas; by default half and 3 times the norm of the start.
    rounds
        Of a search, a level; 12 where nothing is given. More where a warning says that an estimate still fell.
    hessian
        The curvature of the quadratic; none leaves it out.
    negative
        What is done with its negative part: clip (free directions), abs, or error.
    """
    end = _alone(
        run, "a width is seen from a start and towards the run's end: name the run alone, and the start by --from"
    )
    begun = place(str(end.run.folder), start)
    common = common.resolved()
    found, sweep = None, None
    if measured is not None:
        found, sweep = _measured(measured), str(measured.resolve())
    first = int(end.run.trajectory().steps[0])
    chosen: dict[str, Any] = {
        "draws": draws,
        "radii": _numbers("--radii", radii, float) or None,
        "rounds": rounds,
        "matrix": hessian,
        "negative": negative,
        "family": "random" if begun.step == first else f"burn-in@{begun.step}",
    }
    if hessian != "hessian" and negative != "clip":
        raise UsageError(
            f"--negative is of --hessian hessian: with {hessian} nothing is negative. Leave one of them out."
        )
    if measured is not None and options.rows is not None:
        raise UsageError(
            "--measured trained on all rows, and --rows takes some: their levels are of other losses. Leave one of them out."
        )
    levels = sorted(set(_numbers("--loss", loss, float)), reverse=True)
    question = {
        "places": [begun.within(end.run), end.within(end.run)], "states": [begun.checksum, end.checksum], "levels": levels, **chosen,
        "measured": sweep, "made": None if found is None else found.provenance.get("made"), **_asked(options, common),
    }  # fmt: skip

    def compute() -> Result:
        from landscape.analysis.widths import width as measure

        site, task = _site(begun, options, common)
        if found is not None:
            _require_same(found, task)
        solution = _at(end, task, options, common).point
        answered = measure(
            site.train, site.point, levels, solution=solution, measured=found, seed=common.seed, **chosen
        )
        return _of_all(_about(answered, site, task), _pruned(end))

    answer(end.run, "width", question, compute, common.json, show=tell_table)


def _measured(path: Path) -> Threshold:
    """The answer of a sweep: the file itself, or the last of a folder."""
    from landscape.analysis.answers import load
    from landscape.analysis.thresholds import Threshold
    from landscape.runs import Run

    paths = [path] if path.is_file() else list(reversed(Run.open(path).answers()))
    for one in paths:
        found = load(one)
        if isinstance(found, Threshold):
            return found
    raise UsageError(
        f"{path} holds no threshold dimension. Give the folder of a `landscape threshold` sweep, or its threshold.json."
    )


def _require_same(found: Threshold, task: Task) -> None:
    """Raise UsageError where a sweep is of another task or other data."""
    theirs = found.provenance.get("task"), found.provenance.get("fingerprint")
    if theirs != (task.name, task.data.fingerprint):
        other = "other rows" if theirs[0] == task.name else f"the task {theirs[0]}"
        raise UsageError(
            f"the sweep is of {other}, the run of {task.name}: their levels are of other losses. Give a sweep of the same task and data."
        )


# -- well -------------------------------------------------------------------------------------------------------------


# the five of the theory's table; `landscape.quadratics.spectrum` says what each name means
SPECTRA = "flat,power:1,power:2,outliers:10,exponential:40"


def well(
    *,
    out: Path,
    spectrum: str | None = None,
    dim: Annotated[int | None, WHOLE] = None,
    eigenvalues: Path | None = None,
    negative: Literal["error", "clip", "abs"] | None = None,
    level: str = "0.3,0.03,0.003",
    absolute: Annotated[bool, Parameter(negative="")] = False,
    radius: float = 1.0,
    draws: Annotated[int, WHOLE] = 40,
    polar_draws: Annotated[int, WHOLE] = 25,
    json: Annotated[bool, Parameter(negative="")] = False,
    seed: Annotated[int, WHOLE] = 0,
    config: Path | None = None,
) -> None:
    """Quadratic wells: the threshold dimension by the paper's bound, the sharp form, the polar cone and exact simulation, with escape bounds and phase maps.

    No training, no optimiser: everything follows from the eigenvalues. Starts lie at one distance from the minimum, in uniform directions.

    Examples:
      landscape well --out runs/well
      landscape well --spectrum power:1.5,outliers:20 --dim 1000 --level 0.1,0.01 --out runs/w
      landscape well --eigenvalues eigenvalues.npy --negative clip --radius 12 --level 0.5 --absolute --draws 0 --out runs/h

    Parameters
    ----------
    out
        A folder for the answer. Further levels and draws of the same wells add answers to it.
    spectrum
        Shapes of spectra, with commas: flat, power:A (i to the -A), outliers:K (K, ..., 2, 1 over a bulk of 0.001), exponential:S (exp(-i/S)); by default flat, power:1, power:2, outliers:10 and exponential:40.
    dim
        Dimensions of these; 400 where nothing is given.
    eigenvalues
        A spectrum of your own: every eigenvalue, as a list in a .npy, .npz or .txt file, or in a stored answer of `landscape spectrum` that holds them all.
    negative
        Negative eigenvalues there: an error (where nothing is given), set to 0 (clip), or taken in size (abs).
    level
        Levels with commas: shares of the mean loss of the starts.
    absolute
        Take the levels as losses instead; the minimum has 0.
    radius
        Distance of the starts from the minimum.
    draws
        Simulated subspaces; 0 for none, as spectra of more than 5,000 dimensions need.
    polar_draws
        Of the polar estimate.
    json
        Print the answer as one line of JSON.
    seed
        The root of every random stream.
    config
        YAML file of options; flags win over it.
    """
    import zlib

    import numpy as np

    from landscape import quadratics
    from landscape.analysis.wells import read_eigenvalues
    from landscape.analysis.wells import well as measure

    names = [name.strip() for name in (spectrum or ("" if eigenvalues else SPECTRA)).split(",") if name.strip()]
    if not names and dim is not None:
        raise UsageError("--dim is the size of the spectra of --spectrum; the file of --eigenvalues has its own. Leave one of --dim and --eigenvalues out, or name spectra with --spectrum.")  # fmt: skip
    if eigenvalues is None and negative is not None:
        raise UsageError("--negative says what is done with negative values of --eigenvalues, and spectra of --spectrum have none. Leave it out, or give --eigenvalues.")  # fmt: skip
    dim, negative = 400 if dim is None else dim, negative or "error"
    if dim < 1:
        raise UsageError(f"--dim is at least 1; got {dim}.")
    spectra, unfit = {}, []
    for name in names:
        try:
            spectra[name] = quadratics.spectrum(name, dim)
        except UsageError as error:
            if spectrum:
                raise
            unfit.append(f"of the five spectra {name} is left out: {error}")
    names = list(spectra)
    fingerprint = None
    if eigenvalues is not None:
        spectra[eigenvalues.name] = read_eigenvalues(eigenvalues)
        fingerprint = f"{zlib.crc32(spectra[eigenvalues.name].tobytes()):08x}"
    length = _positive("--radius", radius)
    wells = {
        name: quadratics.Quadratic.of_spectrum(
            values, np.full(len(values), length / len(values) ** 0.5), negative=negative
        )
        for name, values in spectra.items()
    }
    levels = sorted(set(_numbers("--level", level, float)), reverse=True)
    options = {
        "task": "quadratic wells", "spectrum": names, "dim": dim if names else None, "eigenvalues": str(eigenvalues.resolve()) if eigenvalues else None,
        "negative": negative, "radius": length, "seed": seed,
    }  # fmt: skip
    chosen: dict[str, Any] = {"levels": levels, "absolute": absolute, "draws": draws, "polar_draws": polar_draws}
    about = {
        "data": ", ".join(f"{name} ({len(values):,})" for name, values in spectra.items()),
        "fingerprint": fingerprint,
    }
    run = Run(out)

    def compute() -> Result:
        found = measure(wells, isotropic=True, seed=seed, **chosen)
        return dataclasses.replace(
            found,
            provenance={**found.provenance, "versions": run.record()["versions"], "made": now()},
            warnings=(*unfit, *found.warnings),
        )

    with _begun(run):
        done = run.begin("well", options, about)
        answer(run, "well", {**options, "fingerprint": fingerprint, **chosen}, compute, json, show=tell_table)
        if not done:
            run.update(state="finished", ended=now())


# -- explore ----------------------------------------------------------------------------------------------------------


def explore(
    run: str,
    /,
    *,
    loss: str | None = None,
    at: str | None = None,
    directions: Annotated[int, WHOLE] = 64,
    reach: float | None = None,
    reach_distance: float | None = None,
    filter_normalised: Annotated[bool, Parameter(negative="")] = False,
    options: Subject = Subject(),  # noqa: B008 (frozen)
    common: Common = Common(),  # noqa: B008 (frozen)
) -> None:
    """The sets of low loss looked at along straight rays: how many random directions reach them, where each enters and leaves, and whether it comes back (star-shapedness).

    From the end of a run the rays tell how far low loss reaches, from its start whether chance alone finds it. Lines through the run's two ends stand beside them.

    Examples:
      landscape explore runs/a --loss 1,0.5,0.2
      landscape explore runs/a@init --directions 256
      landscape explore runs/a --filter-normalised

    Parameters
    ----------
    run
        A RUN, or a point in it: where the rays start.
    loss
        Levels separated by commas; by default three, between the losses at the start of the rays and at the ends of the run.
    at
        Which point, where RUN names none: last (the default), init, or step=500.
    directions
        Number of random directions.
    reach
        How far they are followed, in units of the norm of the parameters at their start; default 10.
    reach_distance
        Instead, an L2 distance.
    filter_normalised
        Directions of noise with each filter's norm that of the point's, and biases at rest; by default uniform on the sphere.
    """
    where = place(run, at)
    common = common.resolved()
    if reach is not None and reach_distance is not None:
        raise UsageError("--reach and --reach-distance both say how far. Leave one of them out.")
    chosen: dict[str, Any] = {
        "directions": directions,
        "reach": _positive("--reach", 10.0 if reach is None else reach),
        "distance": None if reach_distance is None else _positive("--reach-distance", reach_distance),
        "filter_normalised": filter_normalised,
    }
    levels = None if loss is None else sorted(set(_numbers("--loss", loss, float)), reverse=True)
    question = {**_about_place(where), "path": where.run.trajectory().identity, "levels": levels, **chosen}

    def compute() -> Result:
        import torch

        from landscape.analysis.explorations import exploration

        site, task = _site(where, options, common)
        trajectory = where.run.trajectory()
        ends = {int(trajectory.steps[row]): trajectory.row(row).point for row in (0, len(trajectory) - 1)}
        towards = {f"step {step}": torch.from_numpy(point.copy()) for step, point in ends.items() if step != where.step}
        found = exploration(site.train, site.point, levels, towards=towards, seed=common.seed, **chosen)
        return _of_all(_about(found, site, task), _pruned(where))

    answer(where.run, "exploration", {**question, **_asked(options, common)}, compute, common.json, show=tell_table)
