"""The command that sets a wide network's training beside the critical points of narrow ones: plateaus."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

from landscape.cli.making import _begun
from landscape.cli.measuring import _positive
from landscape.cli.options import WHOLE, Common, answer, tell_table
from landscape.cli.reducing import _numbers
from landscape.errors import UsageError
from landscape.results import Result
from landscape.runs import Run, now


def plateaus(
    task: str,
    /,
    *,
    out: Path,
    widths: str = "1,2,3",
    wide: Annotated[int, WHOLE] = 500,
    steps: Annotated[int, WHOLE] = 50_000,
    lr: float | None = None,
    optimizer: Literal["gd", "adam"] = "gd",
    parametrisation: Literal["ntk", "standard"] = "ntk",
    activation: Literal["tanh", "sigmoid"] = "tanh",
    starts: Annotated[int, WHOLE] = 150,
    trainings: Annotated[int, WHOLE] = 10,
    data: Path | None = None,
    limit: Annotated[int | None, WHOLE] = None,
    common: Common = Common(),  # noqa: B008 (frozen)
) -> None:
    """Plateaus of a wide two-layer network's training, and the critical points of narrow ones that they lie at (embedding principle); the diagram of critical points over widths.

    Squared error, full batches, a tiny initialisation, float64 on the CPU.

    Examples:
      landscape plateaus candidate-target --out runs/p
      landscape plateaus candidate-target --widths 1,2 --wide 100 --steps 50000 --starts 50 --out runs/q
      landscape plateaus iris --activation sigmoid --optimizer adam --steps 50000 --out runs/i
      landscape plateaus digits --widths 1,2 --wide 200 --limit 200 --starts 10 --steps 20000 --lr 0.05 --out runs/d

    Parameters
    ----------
    task
        The data: candidate-target (a candidate for the undocumented target of Zhang et al. 2021), iris, a data set of `landscape tasks` (digits, mnist, ...), or your own as
        package.module:function or file.py:function. The networks are two-layer ones.
    out
        The folder of the answer.
    widths
        Of the narrow networks, separated by commas.
    wide
        Width of the network that is trained.
    steps
        Of its training; the candidate target's first plateau takes 10,000.
    lr
        Learning rate; default 0.1 (gd), 0.005 (gd, standard), 0.02 (adam).
    optimizer
        Gradient descent, or Adam.
    parametrisation
        ntk divides the outputs by the root of the width; standard, as in the paper, bends the loss of a very wide network without a plateau.
    activation
        Of the hidden units.
    starts
        Random starts of the search for critical points, for each narrow width.
    trainings
        Narrow trainings, from whose flattest iterates Newton's method starts, for each narrow width.
    data
        Folder of the data set.
    limit
        Use this many rows only. The search forms a Hessian for every start: of digits, with 75 parameters a unit, take some hundred rows and ten starts.
    """
    from landscape.analysis.plateaus import CANDIDATE, OWN, problem

    if task in OWN and data is not None:
        raise UsageError(f"--data would do nothing for {task}: it needs no files. Leave it out.")
    idle = {"--device": common.device not in ("auto", "cpu"), "--dtype": common.dtype == "float32"}
    for flag, given in idle.items():
        if given:
            raise UsageError(
                f"plateaus are computed on the CPU in float64, where critical points can be told from others: leave {flag} out."
            )
    found = problem(task, folder=data, limit=limit)
    chosen: dict[str, Any] = {
        "widths": _numbers("--widths", widths, int), "wide": wide, "steps": steps, "rate": None if lr is None else _positive("--lr", lr), "optimizer": optimizer,
        "parametrisation": parametrisation, "activation": activation, "starts": starts, "trainings": trainings,
    }  # fmt: skip
    options = {"task": task, "limit": limit, "seed": common.seed, **chosen}
    about = {"data": found.description, "fingerprint": found.fingerprint}
    run = Run(out)

    def compute() -> Result:
        from landscape.analysis.plateaus import plateau as measure

        result = measure(found.train, seed=common.seed, **chosen)
        told = {
            **about,
            "task": task,
            "versions": run.record()["versions"],
            "made": now(),
            "candidate": task == CANDIDATE,
        }
        return dataclasses.replace(result, provenance={**result.provenance, **told})

    with _begun(run):
        done = run.begin("plateaus", options, about)
        answer(run, "plateaus", {**options, "fingerprint": found.fingerprint}, compute, common.json, show=tell_table)
        if not done:
            run.update(state="finished", ended=now())
