"""The command of the embedding principle: split."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from landscape.cli.measuring import _about, _about_place, _asked, _leave_out, _site
from landscape.cli.options import WHOLE, Common, Subject, answer, note, tell_table
from landscape.errors import UsageError
from landscape.runs import place

if TYPE_CHECKING:
    from landscape.results import Result


def split(
    run: str,
    /,
    *,
    at: str | None = None,
    layer: str | None = None,
    unit: Annotated[int, WHOLE] = 0,
    ratio: float | None = None,
    widen: Annotated[int, WHOLE] = 1,
    null: Annotated[bool, Parameter(negative="")] = False,
    bias: float = 0.0,
    threefold: Annotated[bool, Parameter(negative="")] = False,
    scan: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    escape: Annotated[bool, Parameter(negative="")] = False,
    pieces: Annotated[bool, Parameter(negative="")] = False,
    save: Path | None = None,
    options: Subject = Subject(),  # noqa: B008 (frozen)
    common: Common = Common(),  # noqa: B008 (frozen)
) -> None:
    """Split a unit of the network at a point: outputs and criticality stay exactly, and the wide network's curvature is predicted from two small matrices.

    Shows the checks, the inertia (positive, zero and negative eigenvalues) before, predicted and, up to 3,000 parameters, counted in the wide Hessian. Computes in float64 unless told otherwise.

    Examples:
      landscape split runs/a
      landscape split runs/a --layer linear2 --unit 3 --ratio 0.3 --scan -1,2 --escape
      landscape split runs/a --unit 1 --widen 2 --save wide.safetensors
      landscape split runs/a --threefold

    Parameters
    ----------
    run
        A RUN, or a point in it: RUN@step=500, RUN@init.
    at
        Which point, where RUN names none: last (the default), init, or step=500.
    layer
        The hidden layer; by default the first that can be split.
    unit
        The unit of it, counted from 0.
    ratio
        The copy's share of the unit's output; by default all copies have equal shares.
    widen
        Add this many units: by splitting the same one again and again, or as null units.
    null
        Instead, add a null unit, of zero weights.
    bias
        Of null units.
    threefold
        Instead, copy all hidden layers three times, read with factors 1, 1 and -1: a minimum with a residual becomes a saddle.
    scan
        Over the ratio, from the first number to the second: the curvature that the split opens.
    escape
        The loss along the most negative direction that the split opens.
    pieces
        Of networks with kinks (ReLU, max-pooling): take the Hessian of the smooth pieces.
    save
        Write the wide network's weights to this file, .safetensors.
    """
    where = place(run, at)
    common = common.resolved("float64")
    _leave_out(
        {"--null": null and threefold, "--bias": bias != 0.0 and not null, "--ratio": ratio is not None and (null or threefold), "--widen": widen != 1 and threefold,
         "--unit": unit != 0 and (null or threefold), "--layer": layer is not None and threefold, "--scan": scan is not None and (null or threefold), "--escape": escape and (null or threefold)},
        "does not go with the way of widening that is asked for (--null, --threefold, or a split)",
    )  # fmt: skip
    if ratio is not None and not math.isfinite(ratio):
        raise UsageError(f"--ratio is a finite number; got {ratio}.")
    if save is not None and save.suffix != ".safetensors":
        raise UsageError(f"--save writes a .safetensors file; got {save.name!r}.")
    if save is not None and save.exists():
        raise UsageError(f"{save} exists. Give --save the name of a new file.")
    ends = None if scan is None else _ends(scan)
    way = "threefold" if threefold else "null" if null else "split"
    chosen: dict[str, Any] = {"way": way, "layer": layer, "unit": unit, "ratio": ratio, "widen": widen, "bias": bias}
    asked = {
        **_about_place(where),
        **chosen,
        "scan": ends,
        "escape": escape,
        "pieces": pieces,
        **_asked(options, common),
    }

    def compute() -> Result:
        from landscape.analysis.splittings import plan, splitting

        site, task = _site(where, options, common)
        made = plan(site.train, site.point, **chosen)
        decay = float(where.run.options.get("weight_decay") or 0.0)
        found = splitting(
            site.train, site.point, made, scan=ends, escape=escape, pieces=pieces, decay=decay, seed=common.seed
        )
        return _about(found, site, task)

    answer(where.run, "splitting", asked, compute, common.json, show=tell_table)
    if save is not None:
        import safetensors.torch

        from landscape import files
        from landscape.analysis.splittings import plan

        site, _ = _site(where, dataclasses.replace(options, rows=2), common)
        whole = plan(site.train, site.point, **chosen).whole
        state = whole.wide_objective(site.train).module(whole.lift(site.point)).state_dict()
        files.write_atomic(
            save, safetensors.torch.save({name: value.contiguous() for name, value in state.items()}), new=True
        )
        note(f"(the wide network's weights are in {save})")


def _ends(text: str) -> tuple[float, float]:
    """Two ratios separated by a comma."""
    try:
        first, second = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--scan takes two ratios separated by a comma, such as -1,2; got {text!r}.") from None
    return first, second
