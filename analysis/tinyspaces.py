"""Tiny subspaces: what the top Hessian eigenspace, the tangent of the diffusion map and a random space hold of the gradient, and whether training needs what they hold.

Letters: D parameters, T recorded points, P measured ones, k dimensions of every space, B mini-batches, A arms, R replicates, S evaluations, V (k, D) an orthonormal basis.

    fraction        |V g|^2 / |g|^2 of the gradient over all rows, and the mean over mini-batches of those of their own gradients
    Hessian's top   the eigenvectors of the k largest eigenvalues at the point itself; k is the number of classes
    tangent         at a recorded point: the first k principal directions of its nearest recorded points, nearest by diffusion distance (local PCA)
    chance          a random k-dimensional space holds Beta(k/2, (D-k)/2), k / D in the mean, and overlaps with another by k / D
    overlap         tr(V^T V U^T U) / k of two spaces, 1 where they are one

A gradient that lies in the top space does not show that training happens there. So the arms, from one recorded state and with the same mini-batches, u_t being the step that the
optimizer makes of its own moments:

    whole           w + u                    SGD as it is
    dominant        w + V^T V u              its step projected onto the top space (Dom-SGD)
    rest            w + u - V^T V u          projected out of it (Bulk-SGD)
    random          likewise, with one random space a replicate, kept
    without random

The top space is computed anew at each arm's own point every so many steps. Whatever the optimizer, its step is projected and not the gradient; without momentum the two are one for SGD.
The tangent of a path contains the steps that led through its points, and so a part of their gradients by construction; that of a cloud does not.

Sources: Gur-Ari, Roberts, Dyer 2018 (the gradient in the top Hessian eigenspace, k = classes; overlaps over time); Song, Ahn, Yun, ICLR 2025 (Dom-SGD and Bulk-SGD);
Singer and Wu 2012, section 2 (local PCA), here with neighbours by diffusion distance (Coifman and Lafon 2006).
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from landscape.analysis.dimensions import _percent, _step_axis, chance, chosen, overlap_spread
from landscape.analysis.styles import BLUE, CYCLE, GREY, VERMILION
from landscape.descent import Recipe, Start, descend
from landscape.errors import LandscapeError, UsageError, unknown
from landscape.objectives import Objective, dtype_name, named_buffers
from landscape.operators import Eigenpairs, eigenpairs
from landscape.results import Result
from landscape.seeds import child_seed, generator
from landscape.trajectories import Trajectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from plotly.graph_objects import Figure

ARMS = ("whole", "dominant", "rest", "random", "without random")
PLAIN = 10  # dimensions where the problem has no classes
MOST = (
    500  # recorded points among which neighbours are looked for: a finer recording brings nearer ones on the same way
)
COORDINATES = 10  # of the diffusion map, in the diffusion distance: later ones are damped by their eigenvalues
NEIGHBOURS = 3  # for every direction of a tangent: of hardly more points than directions each would have one of its own
BATCHES = 8  # a point: their mean is then known to a third of their spread
TOLERANCE = (
    1e-3  # on residuals of Hessian eigenvectors, relative to the largest eigenvalue: a space is off by residual / gap
)
EVALUATIONS = 20  # of an arm's loss over all rows: what a curve shows


# -- the answer -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TinySpace(Result):
    """Fractions of the gradient in k-dimensional spaces along a run, and the training curves of the arms. What could not be measured at a point is NaN."""

    dim: int  # D
    rows: int  # of the data that was measured on
    recorded: int  # points of the run
    cloud: bool  # the points have no order, and steps are their numbers
    top: int  # k
    neighbours: int  # of a tangent; 0 where there is none
    at: np.ndarray  # (P,) steps
    losses: np.ndarray  # (P,)
    gradient_norms: np.ndarray  # (P,)
    angles: np.ndarray  # (P,) bound on the sine between computed and true top space
    in_hessian: np.ndarray  # (P,) fraction of the gradient over all rows
    in_tangent: np.ndarray  # (P,)
    batch_size: int  # rows of a mini-batch; 0: there are none
    batch_in_hessian: np.ndarray  # (P, 2) mean over mini-batches, and its standard error; empty without
    batch_in_tangent: np.ndarray  # (P, 2)
    by_chance: np.ndarray  # (3,) fraction in a random space: 2.5% quantile, mean, 97.5% quantile
    overlaps: np.ndarray  # (P, P) of the top spaces
    tangent_overlaps: np.ndarray  # (P,) of tangent and top space at a point
    optimizer: str
    start: int  # step of the state that the arms begin at
    moments: str  # of the optimizer there: kept, or begin at zero
    rate: float  # constant
    refresh: int  # steps between two computations of the top space
    times: np.ndarray  # (S,) steps after the start
    curves: np.ndarray  # (A, R, S) loss over all rows, arms as ARMS
    kept: (
        np.ndarray
    )  # (2,) overlap of a top space with the next, of `dominant` and `rest`, mean; NaN where there was one only

    # -- numbers ------------------------------------------------------------------------------------------------------

    @property
    def drops(self) -> np.ndarray:
        """How far each replicate of each arm lowers the loss (A, R)."""
        lowered: np.ndarray = self.curves[:, :, 0] - self.curves[:, :, -1]
        return lowered

    def share(self, arm: str) -> tuple[float, float]:
        """The mean decrease of an arm in units of the mean decrease of the whole step, and half the width of its 95% interval (Student's t over replicates; the unit is taken as known)."""
        mean, margin = self._decrease(arm)
        whole = self._decrease(ARMS[0])[0]
        return (mean / whole, margin / abs(whole)) if whole else (math.nan, math.nan)

    def lowers(self, arm: str) -> str:
        """Whether an arm lowers the loss, at 95% over replicates: yes, no (it raises it), undecided, or diverged."""
        mean, margin = self._decrease(arm)
        if not math.isfinite(mean):
            return "diverged"
        return "yes" if mean > margin else "no" if -mean > margin else "undecided"

    def _decrease(self, arm: str) -> tuple[float, float]:
        from scipy.stats import t

        if arm not in ARMS:
            raise unknown("arm", arm, ARMS)
        mine = self.drops[ARMS.index(arm)]
        if not np.isfinite(mine).all():
            return math.nan, math.nan
        error = mine.std(ddof=1) / math.sqrt(len(mine))
        return float(mine.mean()), float(t.ppf(0.975, len(mine) - 1) * error)

    @property
    def names(self) -> tuple[str, ...]:
        """The arms as the field calls them."""
        name = {"sgd": "SGD", "adam": "Adam"}[self.optimizer]
        return name, f"Dom-{name}", f"Bulk-{name}", f"{name} in a random {self.top}", f"{name} without it"

    @property
    def _unit(self) -> str:
        return "point" if self.cloud else "step"

    # -- words --------------------------------------------------------------------------------------------------------

    def summary(self) -> str:
        """See Result."""
        spaces = [("the Hessian's top", self.in_hessian), ("the diffusion tangent", self.in_tangent)]
        held = [
            f"{_percent(float(np.nanmedian(part)))} in {name} {self.top}"
            for name, part in spaces
            if np.isfinite(part).any()
        ]
        held.append(f"{_percent(self.by_chance[1])} in a random one")
        return f"of the squared gradient (median of {len(self.at)} points) {', '.join(held)}; from {self._unit} {self.start:,}, {int(self.times[-1]):,} steps: {self.verdict()}"

    def verdict(self) -> str:
        """What the arms say."""
        whole, *parts = self.names[:3]
        mean, margin = self._decrease(ARMS[0])
        if not mean > margin:
            found = "diverges" if math.isnan(mean) else "does not lower the loss for certain"
            return f"{whole} itself {found}, so that its parts say nothing; begin at an earlier step, or with another rate."
        answers = {
            "yes": "lowers the loss, by {share} of what {whole} does",
            "no": "raises the loss, by {share} of what {whole} lowers it",
            "undecided": "neither lowers nor raises the loss for certain ({share} of what {whole} does)",
            "diverged": "diverges",
        }
        said = []
        for arm, name in zip(ARMS[1:3], parts, strict=True):
            share, error = self.share(arm)
            found = self.lowers(arm)
            amount = f"{100 * (abs(share) if found == 'no' else share):.3g} ± {100 * error:.2g}%"
            said.append(f"{name} alone {answers[found].format(share=amount, whole=whole)}")
        return f"{'; '.join(said)}. {self._reading()}"

    def _reading(self) -> str:
        """The two shares in a sentence, where their intervals lie on one side of a half."""
        (dominant, _), (rest, _) = shares = [self.share(arm) for arm in ARMS[1:3]]
        if not (math.isfinite(dominant) and math.isfinite(rest)):
            return "An arm diverged: no reading."
        if any(abs(share - 0.5) < margin for share, margin in shares):
            return "Whether a part brings half by itself is not certain: no reading. Take more --replicates or --steps."
        held = float(np.nanmedian(self.in_hessian))
        if dominant < 0.5 <= rest:
            ending = ": the alignment is no evidence of a tiny subspace" if held >= 0.5 else ""
            return f"The top space holds {_percent(held)} of the gradient and training does not need it{ending}."
        if dominant >= 0.5 > rest:
            return "Training happens in the top space here: what is left out of it brings less than half."
        return (
            "Either part brings half or more by itself."
            if dominant >= 0.5
            else "Neither part brings half by itself: they need each other."
        )

    def caption(self) -> str:
        """See Result."""
        low, mean, high = self.by_chance
        text = (
            f"Fractions: part of the squared gradient over {self.rows:,} rows (lines) and of mini-batches of {self.batch_size:,} rows (open markers, mean of {BATCHES} with its standard error) inside spaces of {self.top} dimensions: "
            if self.batch_size
            else f"Fractions: part of the squared gradient over {self.rows:,} rows, which are all that a step takes, inside spaces of {self.top} dimensions: "
        )
        text += (
            f"the top eigenvectors of the Hessian at the point itself (sine of the angle to the true space at most {np.nanmax(self.angles):.1g})"
            if np.isfinite(self.angles).any()
            else "the top eigenvectors of the Hessian at the point itself"
        )
        if self.neighbours:
            text += f", and the diffusion tangent: the first principal directions of the {self.neighbours} recorded points that are nearest by diffusion distance"
            text += (
                " (of a cloud: the steps that these gradients make are not among its points)"
                if self.cloud
                else ", which contains the steps that led through the point, and so a part of their gradients by construction"
            )
        text += (
            f". Grey: a random space, {mean:.2g} in the mean, {low:.2g} to {high:.2g} for 95% of them. "
            f"Arms: loss over the same rows of {', '.join(self.names)}, from one state ({self._unit} {self.start:,}; the optimizer's moments {self.moments}) at the constant rate {self.rate:g}, mean and range of {self.curves.shape[1]} replicates that differ in their mini-batches; "
            f"all arms of a replicate have the same. The step is projected, not the gradient. The top space is computed anew every {self.refresh} steps"
        )
        if np.isfinite(self.kept).any():
            text += f" (its overlap with the next: {self.kept[0]:.2f} of {self.names[1]}, {self.kept[1]:.2f} of {self.names[2]})"
        text += f"; the random one stays. Overlaps: tr(PP')/k of the top spaces at two points, {self.top / self.dim:.2g} ± {2 * overlap_spread(self.top, self.dim):.1g} for random ones."
        if np.isfinite(self.tangent_overlaps).any():
            text += f" Of the diffusion tangent with the top space at its point: {np.nanmedian(self.tangent_overlaps):.3g} (median)."
        return text

    def table(self) -> list[tuple[str, ...]]:
        """See Result."""
        rows: list[tuple[str, ...]] = [
            ("arm", "loss at the start", "at the end", "spread", "of the decrease", "lowers the loss")
        ]
        for place, (arm, name) in enumerate(zip(ARMS, self.names, strict=True)):
            ends, (share, margin) = self.curves[place, :, -1], self.share(arm)
            rows.append((name, f"{self.curves[place, :, 0].mean():.4g}", f"{ends.mean():.4g}", f"{ends.std(ddof=1):.2g}", f"{100 * share:.3g} ± {100 * margin:.2g}%", self.lowers(arm)))  # fmt: skip
        return rows

    def panels(self) -> tuple[str, ...]:
        """`fractions`, `arms`, `overlaps`."""
        return ("fractions", "arms", "overlaps")

    # -- pictures -----------------------------------------------------------------------------------------------------

    def plot(self, ax: Axes, panel: str = "") -> None:
        """See Result."""
        drawings: dict[str, Callable[[Axes], None]] = {
            "fractions": self._plot_fractions,
            "arms": self._plot_arms,
            "overlaps": self._plot_overlaps,
        }
        panel = panel or "fractions"
        if panel not in drawings:
            raise unknown("panel", panel, drawings)
        drawings[panel](ax)

    def _lines(self) -> list[tuple[str, np.ndarray, np.ndarray, str, str]]:
        """Name, fractions (P,), those of mini-batches (P, 2) or none, colour and look of each space."""
        found = [
            (f"Hessian's top {self.top}", self.in_hessian, self.batch_in_hessian, VERMILION, "-D"),
            (f"diffusion tangent, {self.top}", self.in_tangent, self.batch_in_tangent, BLUE, "-o"),
        ]
        return [line for line in found if np.isfinite(line[1]).any()]

    def _plot_fractions(self, ax: Axes) -> None:
        from landscape.analysis.styles import heading

        low, mean, high = self.by_chance
        ax.axhspan(low, high, color=GREY, alpha=0.3, linewidth=0)
        ax.axhline(mean, color=GREY, linestyle="--", linewidth=1, label=f"random {self.top}")
        line, told = "" if self.cloud else "-", "open: mini-batches"
        for name, shares, batches, color, look in self._lines():
            ax.plot(self.at, shares, line + look[1:], color=color, markersize=4, linewidth=1.2, label=name)
            if batches.size:
                ax.errorbar(self.at, batches[:, 0], batches[:, 1], fmt=look[1:], color=color, markerfacecolor="white", markersize=4, linewidth=0.8, label=told)  # fmt: skip
                told = "_"  # the look is told once
        ax.set_yscale("log")
        ax.set_ylim(max(low / 2, 1e-8), 1.5)
        if not self.cloud:
            _step_axis(ax, self.at)
        ax.set_xlabel(self._unit)
        ax.set_ylabel("fraction of the squared gradient")
        heading(ax, "Gradient inside small spaces", columns=2)

    def _plot_arms(self, ax: Axes) -> None:
        from landscape.analysis.styles import heading

        for name, curves, color, dash in zip(self.names, self.curves, CYCLE, DASHES, strict=False):
            ax.plot(self.times, curves.mean(axis=0), linestyle=dash, color=color, linewidth=1.4, label=name)
            ax.fill_between(self.times, curves.min(axis=0), curves.max(axis=0), color=color, alpha=0.2, linewidth=0)
        if np.nanmin(self.curves) > 0:
            ax.set_yscale("log")
        ax.set_xlabel(f"steps after {self._unit} {self.start:,}")
        ax.set_ylabel("loss over all rows")
        heading(ax, "Steps projected onto and out of spaces", columns=2)

    def _plot_overlaps(self, ax: Axes) -> None:
        image = ax.imshow(self.overlaps, vmin=0, vmax=1, cmap="viridis", origin="lower")
        places = np.unique(np.linspace(0, len(self.at) - 1, min(len(self.at), 6)).round().astype(int))
        names = [f"{self.at[place]:,}" for place in places]
        ax.set_xticks(places, names)
        ax.set_yticks(places, names)
        ax.set_xlabel(self._unit)
        ax.set_ylabel(self._unit)
        ax.figure.colorbar(image, ax=ax, label="overlap")
        ax.set_title(f"Top {self.top} Hessian spaces", loc="left")

    def figure(self) -> Figure:
        """See Result."""
        import plotly.graph_objects as go

        from landscape.analysis.styles import interactive

        figure = go.Figure()
        for name, curves, color, dash in zip(
            self.names, self.curves, CYCLE, ("solid", "dash", "dot", "dashdot", "longdash"), strict=False
        ):
            mean = curves.mean(axis=0)
            figure.add_scatter(x=self.times, y=mean, error_y={"array": curves.std(axis=0, ddof=1), "thickness": 1}, mode="lines", line={"color": color, "dash": dash}, name=name)  # fmt: skip
        if np.nanmin(self.curves) > 0:
            figure.update_yaxes(type="log")
        return interactive(figure, x=f"steps after {self._unit} {self.start:,}", y="loss over all rows")


DASHES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))


# -- the measurement --------------------------------------------------------------------------------------------------


def tiny(
    f: Objective,
    measured: Objective,
    trajectory: Trajectory,
    recipe: Recipe,
    start: Start,
    *,
    cloud: bool = False,
    at: Sequence[int] | None = None,
    points: int = 12,
    top: int | None = None,
    refresh: int = 5,
    replicates: int = 3,
    max_products: int = 500,
    seed: int = 0,
) -> TinySpace:
    """Fractions of the gradient in k-dimensional spaces along a trajectory, and the arms of training from one of its states.

    f: the objective that training goes on with, whole or restricted to the coordinates of a mask; measured: the same over the rows that losses, gradients and Hessians are of.
    recipe: constant rate, as `landscape.clouds.held` makes it, to the step at which the arms end; sgd or adam. start: the state in the whole space; without moments these begin at zero.
    cloud: the trajectory's points have no order.
    at: recorded steps at which fractions are measured; default `points` of them, evenly on a logarithmic axis. 12: some four a decade.
    top (k): default the number of classes, that of the large Hessian eigenvalues (Gur-Ari et al.), or 10 where there are none.
    refresh: steps between two computations of the top space. 5: from step 85 of digits-mlp (momentum 0.9) a top space overlaps by 0.93 with that 5 steps later under Dom-SGD, by 1.00 under Bulk-SGD; each takes 25 products for every replicate of the two.
    replicates: orders of the rows, at least 2; 3 tell whether an arm lowers the loss.
    max_products: for each top space.

    Memory: A R k D numbers for the spaces of the arms, and 2 P k D for those along the trajectory.
    Raises UsageError for options out of range and optimizers other than sgd and adam; LandscapeError where products are not finite.
    """
    if recipe.optimizer not in ("sgd", "adam"):
        raise UsageError(f"the arms project a step of sgd or adam; this run has {recipe.optimizer}, whose next step depends on where the last one led. Train with --optimizer sgd or adam.")  # fmt: skip
    if refresh < 1 or replicates < 2 or recipe.steps <= start.step:
        raise UsageError(f"the arms take 1 step or more, a space lasts 1 step or more, and a spread takes 2 replicates or more; got {recipe.steps - start.step}, {refresh} and {replicates}.")  # fmt: skip
    k = _top(top, measured, start.point)
    places = chosen(trajectory.steps, points) if at is None else np.unique([trajectory.index(step) for step in at])
    if not len(places):
        raise UsageError("there is no step to measure gradients at: give at least one.")
    notes: list[str] = []
    tangents, neighbours = _tangents(f, trajectory, places, k, seed, notes)
    along = _fractions(f, measured, trajectory, places, tangents, k, recipe.batch_size, max_products, seed, notes)
    arms = _arms(f, measured, recipe, start, k, refresh, replicates, max_products, seed, notes)
    return TinySpace(
        question={},
        provenance={
            "seed": seed,
            "dtype": dtype_name(f.dtype),
            "device": f.device.type,
            "norm": measured.norm,
            "recipe": dataclasses.asdict(recipe),
        },
        warnings=tuple(notes),
        dim=f.dim,
        rows=len(measured.rows),
        recorded=len(trajectory),
        cloud=cloud,
        top=k,
        neighbours=neighbours,
        at=trajectory.steps[places],
        batch_size=recipe.batch_size,
        by_chance=chance(k, f.dim),
        optimizer=recipe.optimizer,
        start=start.step,
        # plain SGD has none to keep
        moments="kept"
        if start.moments or not (start.step or cloud) or (recipe.optimizer == "sgd" and not recipe.momentum)
        else "begin at zero",
        rate=recipe.rate(start.step),
        refresh=refresh,
        **along,
        **arms,
    )


def _top(top: int | None, f: Objective, point: Tensor) -> int:
    """k: as asked, else the number of classes."""
    if top is None:
        classes = f.on(slice(0, 2)).outputs(f.project(point)).shape[1] if f.loss.classifies else PLAIN
        return int(min(classes, f.dim - 1))
    if not 1 <= top < f.dim:
        raise UsageError(f"a tiny space has 1 to {f.dim - 1} of the {f.dim} dimensions; got {top}.")
    return top


def _space(f: Objective, point: Tensor, k: int, max_products: int, seed: int, step: int) -> Eigenpairs:
    """The top eigenspace of the Hessian at a point."""
    draws = generator(seed, "lanczos", step)
    return eigenpairs(f.hessian(point), k, generator=draws, tolerance=TOLERANCE, max_products=max_products)


def _overlap(one: Tensor, other: Tensor) -> float:
    return float((one @ other.T).square().sum()) / len(one)


# -- along the run ----------------------------------------------------------------------------------------------------


def _tangents(
    f: Objective, trajectory: Trajectory, places: np.ndarray, k: int, seed: int, notes: list[str]
) -> tuple[list[Tensor | None], int]:
    """The diffusion tangent (k, d) at each measured row, None where there is none, and the number of neighbours it is of."""
    from landscape import distances
    from landscape.diffusion import DiffusionMap

    total = len(trajectory)
    count = NEIGHBOURS * k
    rows = np.union1d(np.linspace(0, total - 1, min(total, MOST)).round().astype(int), places)
    nothing: list[Tensor | None] = [None] * len(places)
    if len(rows) <= count:
        notes.append(
            f"no diffusion tangent: of {k} directions it takes {count} neighbours, and {total} points are recorded."
        )
        return nothing, 0
    try:
        known = distances.of(trajectory, rows=rows.tolist())
        # the scale of typical distances: at that of BGH the first points of a run are pieces of their own, and have no neighbours
        diffusion = DiffusionMap(min(COORDINATES, len(known) - 2), bandwidth="median", time=1.0, seed=seed)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            coordinates = diffusion.fit(known).embedding_
        notes += [f"diffusion map: {warning.message}" for warning in told]
    except LandscapeError as error:
        notes.append(f"no diffusion tangent: {error}")
        return nothing, 0
    found: list[Tensor | None] = []
    for place in places:
        mine = np.flatnonzero(known.rows == place)
        try:
            if not len(mine):
                raise UsageError("the point is not finite.")
            apart = np.linalg.norm(coordinates - coordinates[mine[0]], axis=1)
            nearest = known.rows[np.argsort(apart, kind="stable")[:count]]
            directions = torch.from_numpy(trajectory.principal(k, rows=nearest.tolist())[0])
            # every point is 0 outside a mask, and so is every direction
            found.append(f.project(directions.to(f.device, f.dtype)))
        except LandscapeError as error:
            notes.append(f"no diffusion tangent at step {trajectory.steps[place]:,}: {error}")
            found.append(None)
    return found, count


def _fractions(
    f: Objective,
    measured: Objective,
    trajectory: Trajectory,
    places: np.ndarray,
    tangents: list[Tensor | None],
    k: int,
    batch: int,
    max_products: int,
    seed: int,
    notes: list[str],
) -> dict[str, Any]:
    """The fields of the answer that are of single points."""
    count = len(places)
    columns = {name: np.full(count, np.nan) for name in ("losses", "gradient_norms", "angles", "in_hessian", "in_tangent", "tangent_overlaps")}  # fmt: skip
    batches = {name: np.full((count if batch else 0, 2), np.nan) for name in ("batch_in_hessian", "batch_in_tangent")}
    tops: list[Tensor | None] = []
    open_steps = []
    for row, place in enumerate(places):
        recorded = trajectory.row(int(place))
        buffers = named_buffers(trajectory.layout, recorded.buffers, f.buffers)
        point = f.project(torch.from_numpy(np.array(recorded.point)).to(f.device, f.dtype))
        here = measured.with_buffers(buffers)
        loss, gradient = here.value_and_gradient(point)
        norm = float(gradient.double().norm())
        columns["losses"][row], columns["gradient_norms"][row] = float(loss), norm
        if not (math.isfinite(norm) and norm > 0):
            notes.append(
                f"the gradient at step {recorded.step:,} is {'zero' if norm == 0 else 'not finite'}: nothing is measured there."
            )
            tops.append(None)
            continue
        pairs = _space(here, point, k, max_products, seed, recorded.step)
        tops.append(pairs.vectors)
        if not pairs.converged.all():
            open_steps.append(recorded.step)
        columns["angles"][row] = min(float(np.linalg.norm(pairs.residuals)) / pairs.gap, 1.0) if pairs.gap > 0 else 1.0
        slopes = list(_mini_batches(f.with_buffers(buffers), point, batch, seed, recorded.step)) if batch else []
        for space, name in ((pairs.vectors, "in_hessian"), (tangents[row], "in_tangent")):
            if space is None:
                continue
            columns[name][row] = _fraction(space, gradient)
            if batch:
                each = np.array([_fraction(space, slope) for slope in slopes])
                batches[f"batch_{name}"][row] = each.mean(), each.std(ddof=1) / math.sqrt(BATCHES)
        tangent = tangents[row]
        if tangent is not None:
            columns["tangent_overlaps"][row] = _overlap(tangent, pairs.vectors)
    if open_steps:
        notes.append(f"the top space at {len(open_steps)} of {count} points did not reach the tolerance {TOLERANCE:g} in {max_products} products, first at step {open_steps[0]:,}: raise --max-products.")  # fmt: skip
    overlaps = [[math.nan if a is None or b is None else _overlap(a, b) for b in tops] for a in tops]
    return {**columns, **batches, "overlaps": np.array(overlaps)}


def _mini_batches(f: Objective, point: Tensor, size: int, seed: int, step: int) -> Iterator[Tensor]:
    for number in range(BATCHES):
        order = torch.randperm(len(f.rows), generator=generator(seed, "mini-batches", step, number))
        yield f.on(order[:size].to(f.device)).gradient(point)


def _fraction(space: Tensor, gradient: Tensor) -> float:
    """|V g|^2 / |g|^2."""
    vector = gradient.double()
    return float((space.double() @ vector).square().sum() / vector.square().sum())


# -- the arms ---------------------------------------------------------------------------------------------------------


def _arms(
    f: Objective,
    measured: Objective,
    recipe: Recipe,
    start: Start,
    k: int,
    refresh: int,
    replicates: int,
    max_products: int,
    seed: int,
    notes: list[str],
) -> dict[str, Any]:
    """The fields of the answer that are of the arms. All descend in lockstep, member a R + r being the replicate r of the arm a."""
    members, length = len(ARMS) * replicates, recipe.steps - start.step
    noises = [child_seed(seed, "tiny", start.step, replicate) for replicate in range(replicates)] * len(ARMS)
    buffers = f.buffers if start.buffers is None else start.buffers
    state = Start(
        *(f.project(start.point).expand(members, -1).contiguous(), start.step),
        tuple(f.project(moment).expand(members, -1).contiguous() for moment in start.moments),
        {name: value.expand(members, *value.shape).contiguous() for name, value in buffers.items()},
        since=start.since,
    )
    # rows (E, k, d) of each member's space; those of the whole step are never looked at
    spaces = state.point.new_zeros(members, k, f.dim)
    of = dict(zip(ARMS, torch.arange(members).view(len(ARMS), replicates).tolist(), strict=True))
    for replicate in range(replicates):
        drawn = torch.randn(f.dim, k, dtype=torch.float64, generator=generator(seed, "random space", replicate))
        basis = torch.linalg.qr(drawn)[0].T.to(spaces)
        spaces[of["random"][replicate]] = spaces[of["without random"][replicate]] = basis
    inside, outside = (of["dominant"] + of["random"], of["rest"] + of["without random"])
    times = np.unique(np.linspace(0, length, min(length, EVALUATIONS) + 1).round().astype(int))
    curves, kept, unsettled = [], [], 0
    for step in range(start.step, recipe.steps + 1):
        if step - start.step in times:
            curves.append(measured.value(state.point, state.buffers).loss.double().cpu().numpy())
        if step == recipe.steps:
            break
        if (step - start.step) % refresh == 0:
            before = spaces.clone()
            first: Eigenpairs | None = None
            for member in of["dominant"] + of["rest"]:
                if not state.point[member].isfinite().all():
                    continue
                if first is None or step > start.step:  # at the start all are one point
                    own = {name: value[member] for name, value in (state.buffers or {}).items()}
                    first = _space(measured.with_buffers(own), state.point[member], k, max_products, seed, step)
                    unsettled += not first.converged.all()
                spaces[member] = first.vectors
            if step > start.step:
                kept.append([np.mean([_overlap(before[one], spaces[one]) for one in of[arm]]) for arm in ARMS[1:3]])
        # descend tells the next point by the whole step, and the moments there; ours is another one
        following = descend(f, state, recipe, noises)
        begun, ended = next(following), next(following)
        point = ended.point.clone()
        update = ended.point - begun.point
        held = torch.einsum("ek,ekd->ed", torch.einsum("ed,ekd->ek", update, spaces), spaces)
        point[inside] = begun.point[inside] + held[inside]
        point[outside] = ended.point[outside] - held[outside]
        state = Start(point, step + 1, ended.moments, ended.buffers, since=ended.since)
    if unsettled:
        notes.append(f"{unsettled} top spaces of the arms did not reach the tolerance {TOLERANCE:g} in {max_products} products: raise --max-products.")  # fmt: skip
    losses = np.stack(curves, axis=-1).reshape(len(ARMS), replicates, len(times))
    if not np.isfinite(losses).all():
        notes.append("the loss of an arm stopped being finite: use a smaller --rate.")
    return {"times": times, "curves": losses, "kept": np.mean(kept, axis=0) if kept else np.full(2, np.nan)}
