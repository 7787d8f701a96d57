"""The command that asks what manifold descent traces: diffuse."""

from __future__ import annotations

import dataclasses
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from landscape.cli.options import WHOLE, Common, answer, tell
from landscape.errors import UsageError
from landscape.runs import named, now

if TYPE_CHECKING:
    from landscape.distances import Distances
    from landscape.results import Result
    from landscape.runs import Run

LINE = 110  # characters of a line of the verdict


def diffuse(
    run: str,
    /,
    *,
    at: str | None = None,
    points: Annotated[int, WHOLE] = 1000,
    space: Literal["parameters", "predictions", "probabilities"] = "parameters",
    params: str = "*",
    approximation: str = "exact",
    probes: Annotated[int | None, WHOLE] = None,
    data: Path | None = None,
    task: str | None = None,
    alpha: float = 1.0,
    bandwidth: str = "median",
    components: Annotated[int, WHOLE] = 10,
    time: float = 0.0,
    nulls: Annotated[int, WHOLE] = 20,
    engine: Literal["landscape", "pydiffmap"] = "landscape",
    protocol: Literal["fjellstrom-nystrom"] | None = None,
    common: Common = Common(),  # noqa: B008 (frozen)
) -> None:
    """What manifold does descent trace: the diffusion map of a run's points, and beside every number what null models have in its place.

    Any path looks low-dimensional: a random walk has cosines of time for coordinates and a dimension of 2. So eigenvalues, dimensions and coordinates are judged against random walks, the run's own steps
    shuffled, and the like; of a cloud (`landscape cloud`) against Gaussian clouds. One paragraph says what the data do and do not show.

    Examples:
      landscape diffuse runs/a
      landscape diffuse runs/a --at 500-2000 --params 'layers.0.*' --bandwidth bgh
      landscape diffuse runs/a --space probabilities --nulls 99
      landscape diffuse runs/t@level=5
      landscape diffuse clouds/c

    Parameters
    ----------
    run
        A RUN, the level of one (RUN@level=5), or a cloud.
    at
        A phase of the run: the first and the last step, such as 100-2000, 100- or -2000. Default: all.
    points
        At most so many recorded points, evenly thinned. 1,000 with their null models take a minute, 2,000 five.
    space
        What is compared: parameters; the model's outputs on test rows; or its class probabilities there (Hellinger distance).
    params
        Only parameters of these names: globs, several separated by commas.
    approximation
        Of the distances: exact; random:256, projected at random to so many dimensions; principal:50, the first principal components.
    probes
        Test rows of the predictions, evenly chosen; default 500.
    data
        Of predictions: folder of the data set, where it is not the one recorded.
    task
        Of predictions of a run made with your own code: its package.module:function or file.py:function again.
    alpha
        1: the geometry of the points, their density taken out. 0.5: the dynamics. 0: neither.
    bandwidth
        Of the kernel exp(-d^2 / 4 eps). median: a quarter of the median squared distance; where a run slows down, bgh takes its last tiny steps for the scale, and all eigenvalues are 1. Or bgh, bgh-neighbours, median:16, neighbour:7, or eps itself. The same rule is applied to null models.
    components
        Coordinates.
    time
        Diffusion time of the coordinates.
    nulls
        Draws of each null model; 0 leaves them out.
    engine
        pydiffmap: put the question to that library. Null models are measured by our own.
    protocol
        fjellstrom-nystrom: that of Fjellstrom and Nystrom 2022. Its values are not known here: the answer lists each slot, and what stands in it.
    """
    subject = named(run, "all points of a run are asked for: name the run alone, and a phase with --at")
    answers_only = {"--probes": probes is not None, "--data": data is not None, "--task": task is not None}
    parameters_only = {"--params": params != "*", "--approximation": approximation != "exact"}
    for flag, is_given in (answers_only if space == "parameters" else parameters_only).items():
        if is_given:
            raise UsageError(f"{flag} does nothing with --space {space}. Leave it out.")
    is_cloud = subject.record()["kind"] == "cloud"
    if is_cloud and at is not None:
        raise UsageError(f"--at is a phase of a path, and {subject.folder} is a cloud: its points have no order. Leave it out.")  # fmt: skip
    common = common.resolved()
    chosen: dict[str, Any] = {
        "alpha": alpha, "bandwidth": bandwidth, "components": components, "time": time, "nulls": nulls, "engine": engine,
    }  # fmt: skip
    where: dict[str, Any] = {"at": at, "points": points, "space": space, "params": params, "approximation": approximation}  # fmt: skip
    if space != "parameters":
        where |= {"probes": 500 if probes is None else probes, "dtype": common.dtype, "device": common.torch()[0].type}
    question = {"path": subject.trajectory().identity, **where, **chosen, "protocol": protocol, "seed": common.seed}

    def compute() -> Result:
        from landscape.analysis import diffusions

        trajectory = subject.trajectory()
        rows = diffusions.taken(trajectory.steps, at, points)
        slots = diffusions.protocol(subject.options, {**where, **chosen}) if protocol else None
        found = diffusions.diffuse(
            _distances(subject, rows.tolist(), where, data, task, common),
            ordered=not is_cloud,
            recorded=int(diffusions.within(trajectory.steps, at).size),
            seed=common.seed,
            slots=slots,
            **chosen,
        )
        record = subject.record()
        about = {
            "run": str(subject.folder), "task": record["options"].get("task"), "data": record.get("data"), "fingerprint": record.get("fingerprint"),
            "versions": record["versions"], "made": now(), "parameters": trajectory.dim,
        }  # fmt: skip
        return dataclasses.replace(found, provenance={**found.provenance, **about})

    answer(subject, "diffusion", question, compute, common.json, show=_tell)


def _distances(
    run: Run, rows: list[int], where: dict[str, Any], data: Path | None, task: str | None, common: Common
) -> Distances:
    """Of these recorded rows, in the space asked for."""
    from landscape import distances

    trajectory, space = run.trajectory(), where["space"]
    if space == "parameters":
        return distances.of(trajectory, params=where["params"], rows=rows, approximation=where["approximation"], seed=common.seed)  # fmt: skip
    import numpy as np
    import torch

    from landscape.analysis.diffusions import answers
    from landscape.recordings import site, task_of
    from landscape.runs import last

    if where["probes"] < 1:
        raise UsageError(f"--probes are 1 test row or more; got {where['probes']}.")
    device, dtype = common.torch()
    test = site(last(run), task_of(run, code=task, data=data), device=device, dtype=dtype).test
    chosen = np.linspace(0, len(test.rows) - 1, min(where["probes"], len(test.rows))).round().astype(int)
    found = answers(test.on(torch.from_numpy(chosen).to(device)), trajectory, rows, space)
    words = f"{space} of {len(chosen)} test rows" + (" (Hellinger)" if space == "probabilities" else "")
    return distances.of_points(found, steps=trajectory.steps[rows], losses=trajectory.losses[rows], space=words)


def _tell(result: Result, path: Path | None, as_json: bool) -> None:
    """Print the verdict above the line."""
    from landscape.analysis.diffusions import Diffusion

    assert isinstance(result, Diffusion)
    if not as_json:
        print(textwrap.fill(result.verdict(), LINE))
    tell(result, path, as_json)
