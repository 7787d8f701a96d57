"""The commands about units that point the same way: condensation, reduce."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from landscape.cli.measuring import _about, _about_place, _asked, _leave_out, _pruned, _site
from landscape.cli.options import WHOLE, Common, Subject, answer, note, tell_table
from landscape.errors import UsageError
from landscape.runs import named, place

if TYPE_CHECKING:
    from landscape.analysis.condensations import Outcome
    from landscape.recordings import Site
    from landscape.results import Result
    from landscape.units import Layer


@Parameter(name="*")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Likeness:
    """Which units are alike."""

    similarity: float = 0.9
    """Least similarity of two units of a group: the cosine of their input weights with the bias. In a merge 1 is what merges without an error: equal units, where the activation is not 1-homogeneous."""
    negligible: float = 0.01
    """Leave out the smallest units by |a||u| as long as they have together at most this share of the sum."""
    linkage: Literal["complete", "components"] = "complete"
    """Every pair of a group is so similar; or each unit to some other of its group, which makes chains."""

    def chosen(self) -> dict[str, Any]:
        """As the functions take them."""
        if not 0 < self.similarity <= 1:
            raise UsageError(f"--similarity lies in (0, 1]; got {self.similarity}.")
        if not 0 <= self.negligible < 1:
            raise UsageError(f"--negligible is a share in [0, 1); got {self.negligible}.")
        return {"similarity": self.similarity, "share": self.negligible, "linkage": self.linkage}


def condensation(
    run: str,
    /,
    *,
    at: str | None = None,
    layer: str | None = None,
    every: Annotated[int, WHOLE] = 1,
    likeness: Likeness = Likeness(),
    options: Subject = Subject(),  # noqa: B008 (frozen)
    common: Common = Common(),  # noqa: B008 (frozen)
) -> None:
    """How many directions the hidden units of each layer have along a run: groups of similar input weights, their cosines and orientations, and which layers act as affine maps.

    Examples:
      landscape condensation runs/a
      landscape condensation runs/a --at 0,200,2000 --layer linear1

    Parameters
    ----------
    run
        A RUN.
    at
        Which recorded points: all (the default), with the cosines drawn at three of them; or steps, init and last, separated by commas, with the cosines at each.
    layer
        The layer whose cosines are drawn; by default the widest.
    every
        Measure each so many recorded points, and the last.
    """
    chosen = likeness.chosen()
    common = common.resolved()
    whole = named(run, "which of its points to measure is said with --at, such as --at init,500,last")
    spots = [] if at in (None, "all") else [place(str(whole.folder), spot.strip()) for spot in str(at).split(",")]
    _leave_out({"--every": bool(spots) and every != 1}, "is for all recorded points")
    where = spots[-1] if spots else place(str(whole.folder))
    steps = sorted({spot.step for spot in spots})
    about = {"path": whole.trajectory().identity, "steps": steps, "every": every}

    def compute() -> Result:
        from landscape import units
        from landscape.analysis.condensations import condensation as measure
        from landscape.analysis.stability import stations

        site, task = _site(where, options, common)
        course = stations(site, every=every) if not steps else (one for one in stations(site) if one.step in steps)
        found = measure(
            site.train,
            course,
            units.layers(site.train.module(site.point), site.train.rows.take(slice(0, 2)).inputs),
            shown=layer,
            drawn=steps,
            **chosen,
        )
        return _about(found, site, task)

    answer(whole, "condensation", {**about, "layer": layer, **chosen, **_asked(options, common)}, compute, common.json, show=tell_table)  # fmt: skip


def reduce(
    run: str,
    /,
    *,
    at: str | None = None,
    layer: str | None = None,
    linear: float | None = None,
    retrain: Annotated[int, WHOLE] = 0,
    lr: float | None = None,
    save: Path | None = None,
    likeness: Likeness = Likeness(),
    options: Subject = Subject(),  # noqa: B008 (frozen)
    common: Common = Common(),  # noqa: B008 (frozen)
) -> None:
    """Merge the hidden units that are alike into one each, and compare the smaller network with the one before: losses, answers on the test rows, and a proved bound on what changed.

    Examples:
      landscape reduce runs/a --similarity 0.9
      landscape reduce runs/a --retrain 200 --save small.safetensors

    Parameters
    ----------
    run
        A RUN, or a point in it.
    at
        Which point, where RUN names none: last (the default), init, or step=500.
    layer
        Reduce these layers only, separated by commas; by default all that can be.
    linear
        Also merge with its reader each layer whose smallest correlation between what goes into a unit's activation and what comes out is at least this, such as 0.9999: it is nearly affine, on the training rows.
    retrain
        Then train the smaller network for so many steps, by the run's own recipe at a constant rate.
    lr
        Learning rate of the retraining; default is the run's own.
    save
        Write the smaller network here: safetensors, its widths by layer in the metadata.
    """
    where = place(run, at)
    common = common.resolved()
    chosen = likeness.chosen()
    if retrain < 0:
        raise UsageError(f"--retrain is how many steps, 0 for none; got {retrain}.")
    if lr is not None and not retrain:
        raise UsageError("--lr is of the retraining: add --retrain STEPS.")
    if linear is not None and not 0 < linear <= 1:
        raise UsageError(f"--linear is a correlation in (0, 1]; got {linear}.")
    if retrain and _pruned(where) is not None:
        raise UsageError(
            "--retrain would fill the weights of a pruned network again: merged units have other masks. Leave it out."
        )
    if save is not None and save.exists():
        raise UsageError(f"{save} exists. Give --save the name of a new file.")
    made: list[Outcome] = []

    def outcome() -> Result:
        from landscape.analysis.condensations import merger

        site, task = _site(where, options, common)
        found, refused = _reducible(site, layer)
        recipe = _recipe(where.run.options, task.defaults, retrain, lr) if retrain else None
        done = merger(
            site.train, site.test, site.point, found, **chosen, linear=linear, recipe=recipe, seed=common.seed, warnings=refused
        )  # fmt: skip
        made.append(done)
        return _about(done.answer, site, task)

    asked = {**_about_place(where), "layer": layer, **chosen, "linear": linear, "retrain": retrain, "lr": lr}
    answer(where.run, "merger", {**asked, **_asked(options, common)}, outcome, common.json, show=tell_table)
    if save is not None:
        if not made:  # answered before; the network itself is not kept
            outcome()
        _save(save, made[0], {"run": str(where), **{name: str(value) for name, value in chosen.items()}})
        note(f"saved {save}")


def _reducible(site: Site, names: str | None) -> tuple[list[Layer], list[str]]:
    """The layers to reduce, and sentences on those that cannot be."""
    from landscape import units

    f = site.train
    there = units.layers(f.module(site.point), f.rows.take(slice(0, 2)).inputs)
    if names is not None:
        return [units.find(there, name.strip()).checked() for name in names.split(",")], []
    refused = [f"{layer.name} was left as it is: {'; '.join(layer.refusals)}." for layer in there if layer.refusals]
    able = [layer for layer in there if not layer.refusals]
    if not able:
        raise UsageError(f"no hidden layer of this network can be reduced. {' '.join(refused)}".rstrip())
    return able, refused


def _recipe(options: dict[str, Any], defaults: Any, steps: int, lr: float | None) -> Any:
    """The run's own recipe, or the task's where the run was not trained here; at a constant rate: its schedule was for its own length."""
    from landscape.descent import Recipe

    known = {field.name for field in dataclasses.fields(Recipe)}
    fields = {name: value for name, value in {**defaults, **options}.items() if name in known}
    fields |= {name: tuple(fields[name]) for name in ("betas", "milestones") if name in fields}
    fields |= {"steps": steps, "schedule": "constant", "warmup": 0}
    return Recipe(**fields | ({} if lr is None else {"lr": lr}))


def _save(path: Path, made: Outcome, about: dict[str, str]) -> None:
    import safetensors.torch

    from landscape import files

    state = made.f.module(made.point).state_dict()
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    files.write_atomic(path, safetensors.torch.save(tensors, {**about, "widths": json.dumps(made.widths)}), new=True)
