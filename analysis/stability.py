"""Curvature along a trajectory: sharpness against the edge of stability, the gradient's share in the top eigenspace, and how long that space lasts.

Letters: D parameters, d coordinates of the objective, T measured steps, k eigenvalues a step, R reference steps, U (k, d) orthonormal top eigenvectors, g gradient,
η learning rate, β momentum, ω weight decay.

    sharpness    the largest eigenvalue of the curvature matrix over all rows
    share        |U g|^2 / |g|^2; a random space of k directions holds k / d of a vector in the mean
    persistence  |U_s U_t^T|_F^2 / k: 1 for one and the same space, k / d for two random ones

The edge. Descent on the parabola λ w^2 / 2 is a linear recursion of (w, velocity), and diverges as soon as its matrix has an eigenvalue below -1, so where 1 + trace + determinant < 0:

    plain             w' = (1 - ηλ) w                                                                  λ > 2 / η
    heavy ball        v' = βv + λw, w' = w - ηv':         trace 1 + β - ηλ, determinant β              λ > 2 (1 + β) / η
    Nesterov          v' = βv + λw, w' = w - η(λw + βv'): trace 1 + β - (1 + β) ηλ, det. β (1 - ηλ)    λ > 2 (1 + β) / (η (1 + 2β))

as torch.optim.SGD steps (velocity without the rate, no dampening). Weight decay is added to the gradient, so that λ + ω stands in the place of λ: the edge of λ is lower by ω.
Adam and its like rescale each coordinate; their edge is that of a rescaled Hessian, which this does not measure.

Warm starts. One Lanczos process starts from the sum of the eigenvectors of the step before, and a random vector as large. A block of these vectors needs more products, since every
one of them has to be multiplied before any polynomial in the matrix can help (measured on the 101 points of a digits-mlp run at tolerance 1e-2, with a random part of a tenth: 13.9 products against 16.0 for k = 10,
8.5 against 11.4 for k = 5, 2.4 each for k = 1; cold 16.4, 12.1 and 6.0, before the search for hidden eigenvalues). A warm start may follow an eigenvector that another one has
overtaken: the random part sees that as soon as the process has a few steps, and each tenth step, and each where the space has turned, is searched for what was hidden.

Sources: Cohen, Kaur, Li, Kolter, Talwalkar 2021, "Gradient descent on neural networks typically occurs at the edge of stability" (section 2; momentum in appendix B);
Gur-Ari, Roberts, Dyer 2018, "Gradient descent happens in a tiny subspace" (shares and overlaps); Jastrzebski et al. 2019 (mini-batches stay below the edge).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from landscape import functionals
from landscape.analysis.spectra import FINEST_DECADE, NAMES, asymmetry, curve, decade
from landscape.analysis.styles import borders
from landscape.errors import UsageError, unknown
from landscape.objectives import CURVATURES, Buffers, Curvature, Objective, dtype_name, named_buffers
from landscape.operators import MISSED, Eigenpairs, SearchSpace, SymmetricOperator, normal
from landscape.recordings import Site
from landscape.results import Result
from landscape.seeds import generator
from landscape.trajectories import Trajectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from plotly.graph_objects import Figure

Ends = Literal["largest", "both"]

REFERENCE_BYTES = 2**30  # reference spaces held for the overlaps
REFERENCES = 200  # most of them: more than a picture shows, and the overlaps of a long run stay linear in its length
STEADY = 0.9  # overlap with the step before, below which a warm start is searched at once
CONFIRMED = 10  # each so many steps a warm start is searched for hidden eigenvalues: some five products, so half a product a step
RANDOM = 0.3  # size of the random vector in a warm start beside the known part: 0.1 costs as much, 1.0 a quarter of a product a step more, and values were as right
DECADES = 200  # places of a density's grid: a tenth of a decade or less in either precision
LOOSE = 0.3  # sine of an angle between computed and true eigenspace that an overlap shows: it costs a tenth of it
SPREAD = 30.0  # a page shows numbers further apart than this factor on a logarithmic axis

# -- where to measure -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Station:
    """A point on the way of a descent."""

    step: int
    point: Tensor  # (d,)
    buffers: Buffers | None = None  # None: those of the objective
    rate: float = math.nan  # learning rate of the update that follows


def chosen(trajectory: Trajectory, *, every: int = 1, first: int | None = None, last: int | None = None) -> np.ndarray:
    """The rows (T,) of a trajectory whose steps lie in first..last: each `every`-th of them, and the last.

    Raises UsageError where there is none.
    """
    if every < 1:
        raise UsageError(f"each {every}-th recorded step cannot be taken: give 1 or more.")
    steps = trajectory.steps
    within = np.flatnonzero(
        (steps >= (-np.inf if first is None else first)) & (steps <= (np.inf if last is None else last))
    )
    if not len(within):
        known = (
            f"the {len(steps)} recorded ones go from {steps[0]} to {steps[-1]}" if len(steps) else "none is recorded"
        )
        raise UsageError(f"no recorded step lies in {first} to {last}: {known}.")
    picked: np.ndarray = np.unique(np.append(within[::every], within[-1]))
    return picked


def stations(where: Site, *, every: int = 1, first: int | None = None, last: int | None = None) -> Iterator[Station]:
    """The recorded points of the run of a site, each with its buffers and rate; read one by one. Options and errors as `chosen`.

    The site's objective serves for all of them: to build the model a hundred times would cost more than what is measured.
    """
    trajectory = where.place.run.trajectory()
    f = where.train
    for index in chosen(trajectory, every=every, first=first, last=last):
        row = trajectory.row(int(index))
        point = torch.from_numpy(np.array(row.point)).to(f.device, f.dtype)
        yield Station(row.step, point, named_buffers(trajectory.layout, row.buffers, f.buffers), row.rate)


# -- the edge of stability --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """How a run stepped, as far as its edge of stability depends on it."""

    optimizer: str = "sgd"
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0  # added to the gradient
    clip: float = 0.0  # bound on the gradient's norm; 0 is none
    batch: int = 0  # rows of a mini-batch; 0 is all

    @staticmethod
    def of(options: Mapping[str, Any]) -> Method:
        """From the options of a run; `optimizer` is empty where they name none, as for imported checkpoints."""
        return Method(
            str(options.get("optimizer") or ""),
            float(options.get("momentum") or 0.0),
            bool(options.get("nesterov", False)),
            float(options.get("weight_decay") or 0.0),
            float(options.get("clip") or 0.0),
            int(options.get("batch_size") or 0),
        )

    @property
    def formula(self) -> str:
        """The edge in signs; empty where there is none."""
        if self.optimizer != "sgd":
            return ""
        text = "2/η"
        if self.momentum:
            text = "2(1+β)/(1+2β)η" if self.nesterov else "2(1+β)/η"
        return f"{text} − ω" if self.weight_decay else text

    def edges(self, rates: np.ndarray) -> np.ndarray:
        """The largest curvature (T,) at which a step of these rates (T,) is stable; NaN where it is not known."""
        if self.optimizer != "sgd":
            return np.full(len(rates), np.nan)
        factor = 1 + self.momentum
        if self.nesterov:
            factor /= 1 + 2 * self.momentum
        # a rate of 0, as at the end of a cosine, has no edge to draw
        with np.errstate(divide="ignore", invalid="ignore"):
            edges: np.ndarray = np.where(rates > 0, 2 * factor / rates, np.nan) - self.weight_decay
        return edges

    def remark(self, operator: str) -> str:
        """What a reader of the line should know, or why there is none."""
        if not self.optimizer:
            return "No edge of stability is drawn: how these points were reached is not recorded."
        if self.optimizer != "sgd":
            return f"No edge of stability is drawn: {self.optimizer} rescales each coordinate, and its edge is that of the rescaled Hessian, which is not what is measured here."
        if operator not in ("hessian", "gauss-newton"):
            return f"No edge of stability is drawn: it is one of the Hessian, and this is the {NAMES[operator]}."
        signs = {"β": self.momentum, "ω": self.weight_decay}
        values = ", ".join(f"{sign} = {value:g}" for sign, value in signs.items() if value)
        text = f"Dashed: {self.formula}, with η the learning rate{f', {values}' if values else ''}, above which descent with all rows on a parabola of that curvature diverges."
        if self.batch:
            text += f" The run took batches of {self.batch:,} rows; their noise holds the sharpness below the line."
        if self.clip:
            text += " Gradients were clipped: where they are, the true edge lies higher."
        if operator == "gauss-newton":
            text += " The line is the Hessian's, whose largest eigenvalue is near to that of the Gauss-Newton matrix late in training only."
        return text


# -- the answer -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Sharpness(Result):
    """The top of the curvature at T steps of a descent. Numbers of a step that has none (a point that is not finite) are NaN."""

    operator: str
    which: str  # `largest`, or `both` ends of the spectrum, the high ones from the top down, then the low ones from the bottom up
    dim: int  # d
    rows: int
    tolerance: float  # on residuals, relative to the largest |eigenvalue|
    steps: np.ndarray  # (T,) increasing
    losses: np.ndarray  # (T,) over all rows
    gradient_norms: np.ndarray  # (T,) likewise
    rates: np.ndarray  # (T,) learning rate of the update that follows; NaN where not recorded
    values: np.ndarray  # (T, k)
    residuals: np.ndarray  # (T, k) |A u - λ u|: a true eigenvalue lies within it
    bounds: np.ndarray  # (T, k) error of each value, as the residual and the gap to the next value bound it
    converged: np.ndarray  # (T, k) bool
    products: np.ndarray  # (T,) with the matrix, those of the trace among them
    edges: np.ndarray  # (T,) curvature at which a step stops being stable; NaN where there is no such line
    formula: str  # of the edges; empty where there are none
    remark: str  # on the edges, or why there are none
    shares: np.ndarray  # (T,) of the squared gradient in the space of the k eigenvectors
    traces: np.ndarray  # (T,) NaN where not asked for, likewise below
    trace_errors: np.ndarray  # (T,) standard errors
    angles: np.ndarray  # (T,) bound on the sine between the computed and the true eigenspace, |residuals| / gap (Davis and Kahan 1970), at most 1
    lasting: np.ndarray  # (T,) overlap of the eigenspace with that of the measured step before; the first is NaN
    references: np.ndarray  # (R,) steps
    params: str  # globs of the parameters that move; empty for all of them
    decades: np.ndarray  # (G,) log10 |eigenvalue|; empty where no density was asked for, likewise below
    positive_density: np.ndarray  # (T, G) share of eigenvalues per decade, those above zero
    negative_density: np.ndarray  # (T, G) those below
    accuracies: (
        np.ndarray
    )  # (T,) estimated Wasserstein-1 distance of each density to the true one, in units of the mean |eigenvalue|
    overlaps: np.ndarray  # (T, R) overlap of the eigenspaces of each step and each reference step. NaN before the reference where not every step is one

    @property
    def sharpness(self) -> np.ndarray:
        """The largest eigenvalue (T,)."""
        return self.values[:, 0]

    @property
    def above(self) -> int:
        """At how many steps the sharpness is above the edge."""
        return int(np.sum(self.sharpness > self.edges))

    def summary(self) -> str:
        """See Result."""
        name = "sharpness" if self.operator == "hessian" else f"sharpness ({NAMES[self.operator]})"
        total = int(self.products.sum())
        found = np.flatnonzero(np.isfinite(self.sharpness))
        if not len(found):
            return f"{name}: none of the {len(self.steps)} points is finite."
        first, last = found[0], found[-1]
        parts = [f"{name} {self.sharpness[first]:.4g} at step {self.steps[first]:,}"]
        if last > first:
            parts[0] += f", {self.sharpness[last]:.4g} at step {self.steps[last]:,}"
        highest = int(np.nanargmax(self.sharpness))
        if highest not in (first, last):
            parts[0] += f", at most {self.sharpness[highest]:.4g} at step {self.steps[highest]:,}"
        lined = np.flatnonzero(np.isfinite(self.edges))
        if len(lined):
            low, high = self.edges[lined].min(), self.edges[lined].max()
            size = f"{low:.4g}" if high - low <= 1e-9 * high else f"{low:.4g} to {high:.4g}"
            parts[0] += f" (edge {self.formula} = {size}: above it at {self.above} of {len(lined)} steps)"
        if np.isfinite(self.shares[last]):
            k = self.values.shape[1]
            ours = f"the top {k} directions hold" if k > 1 else "the top direction holds"
            parts.append(f"{ours} {_percent(self.shares[last])} of the gradient at the end")
        if np.isfinite(self.traces[last]):
            parts.append(f"trace {self.traces[last]:.4g} ± {self.trace_errors[last]:.2g} there")
        return "; ".join([*parts, f"{total:,} products"]) + "."

    def caption(self) -> str:
        """See Result."""
        k = self.values.shape[1]
        listed = f"The {k} largest eigenvalues" if self.which == "largest" else f"{k} eigenvalues at both ends"
        if k == 1:
            listed = "The largest eigenvalue"
        text = (
            f"{listed} of the {NAMES[self.operator]}{f' in the parameters {self.params}' if self.params else ''} of the mean loss over {self.rows:,} rows, at {len(self.steps):,} recorded points ({self.dim:,} dimensions); the largest is the sharpness. "
            f"Residuals are at most {_worst(self.residuals)}, and errors as they bound them at most {_worst(self.bounds)}; each search for hidden values, at every {CONFIRMED}th step of warm starts and where the space turns, "
            f"misses one with a chance of {100 * MISSED:.0f}%, and then the next lower one is listed. {self.remark} "
            f"Gradient: the part of the squared gradient over all rows that lies in the space of {'this direction' if k == 1 else f'these {k} directions'}; {k / self.dim:.2g} of it would by chance. "
        )
        if len(self.references) > 1:
            text += "Persistence: overlap of the spaces at two steps, 1 where they are the same."
            loose = int(np.sum(self.angles > LOOSE))
            if loose:
                text += (
                    f" At {loose} of {len(self.steps)} steps the lowest of these values is not set apart from the next, so that the space is computed to an angle of sine {LOOSE} or worse, "
                    "and overlaps are below 1 for that reason too: choose another --top, or a lower --tolerance."
                )
            if len(self.references) < len(self.steps):
                text += f" It is drawn between {len(self.references)} reference steps; the step before is compared at every one."
        if self.decades.size:
            text += (
                f"{'' if text.endswith(' ') else ' '}Densities: share of eigenvalues per decade of size, those below 100 eps of the largest left out; "
                f"estimated distances to the true spectra (Wasserstein 1) at most {np.nanmax(self.accuracies, initial=0.0):.2g} of the mean |λ|. A bulk near zero is less sure than that: there columns differ by chance."
            )
        if np.isfinite(self.traces).any():
            text += f"{'' if text.endswith(' ') else ' '}Trace: ± 2 standard errors; all steps share one set of random probes, so that its course is smoother than that."
        return text.rstrip()

    def table(self) -> list[tuple[str, ...]]:
        """See Result."""
        traced = bool(np.isfinite(self.traces).any())
        head = ("step", "loss", "sharpness", "error bound", "edge", "gradient in top space", "products")
        rows = [
            (
                f"{self.steps[t]}",
                f"{self.losses[t]:.6g}",
                f"{self.values[t, 0]:.6g}",
                f"{self.bounds[t, 0]:.1e}",
                f"{self.edges[t]:.6g}",
                f"{self.shares[t]:.4f}",
                f"{self.products[t]}",
                *((f"{self.traces[t]:.6g} ± {self.trace_errors[t]:.2g}",) if traced else ()),
            )
            for t in range(len(self.steps))
        ]
        return [(*head, "trace") if traced else head, *rows]

    def panels(self) -> tuple[str, ...]:
        """`sharpness`, `loss`, `gradient`, of more than one step `persistence`, and where it was asked for `trace`."""
        names = ["sharpness", "loss", "gradient"]
        if len(self.references) > 1:
            names.append("persistence")
        if np.isfinite(self.traces).any():
            names.append("trace")
        if self.decades.size:
            names += ["positive density", "negative density"] if self.negative_density.any() else ["positive density"]
        return tuple(names)

    # -- pictures -----------------------------------------------------------------------------------------------------

    def plot(self, ax: Axes, panel: str = "") -> None:
        """See Result."""
        drawings: dict[str, Callable[[Axes], None]] = {
            "sharpness": self._plot_sharpness,
            "loss": self._plot_loss,
            "gradient": self._plot_gradient,
            "persistence": self._plot_persistence,
            "trace": self._plot_trace,
            "positive density": partial(self._plot_density, sign=1),
            "negative density": partial(self._plot_density, sign=-1),
        }
        panel = panel or "sharpness"
        if panel not in self.panels():
            raise unknown("panel", panel, self.panels())
        drawings[panel](ax)

    def _plot_sharpness(self, ax: Axes) -> None:
        from landscape.analysis.styles import BLUE, GREY, VERMILION

        marker = _marker(self.steps)
        k = self.values.shape[1]
        for i in range(1, k):
            label = f"the {k - 1} others" if i == 1 and k > 2 else "the other" if i == 1 else None
            ax.plot(self.steps, self.values[:, i], color=GREY, linewidth=0.8, marker=marker, markersize=2, label=label)
        ax.fill_between(
            self.steps, self.sharpness - self.bounds[:, 0], self.sharpness + self.bounds[:, 0], color=BLUE, alpha=0.25, linewidth=0
        )  # fmt: skip
        ax.plot(self.steps, self.sharpness, color=BLUE, marker=marker, markersize=3, label="sharpness")
        bad = ~self.converged[:, 0] & np.isfinite(self.sharpness)
        if bad.any():
            ax.plot(self.steps[bad], self.sharpness[bad], "x", color=VERMILION, markersize=7, label="not converged")
        top = np.nanmax(self.values, initial=0.0)
        if np.isfinite(self.edges).any():
            alone = len(self.steps) == 1
            drawn = [self._span(), np.repeat(self.edges, 2)] if alone else [self.steps, self.edges]
            ax.plot(*drawn, "--", color=VERMILION, linewidth=1.3, label=self.formula)
            # a warm-up or the end of a cosine sends the edge to infinity: the eigenvalues keep the page
            top = max(top, min(float(np.nanmax(self.edges)), max(2 * top, float(np.nanmin(self.edges)))))
        low = min(float(np.nanmin(self.values, initial=0.0)), 0.0)
        lowest = float(np.nanmin(self.sharpness, initial=np.inf))
        if 0 < SPREAD * lowest < top:
            low = max(float(np.nanmin(np.where(self.values > 0, self.values, np.nan))), lowest / SPREAD)
            ax.set_yscale("log")
            ax.set_ylim(low / 1.3, top * (top / low) ** 0.2)
        elif top > low:
            ax.set_ylim(low - 0.04 * (top - low) if low < 0 else 0.0, top + 0.3 * (top - low))  # room for the legend
            if low < 0:
                ax.axhline(0, color=GREY, linewidth=0.6, zorder=0)
        self._mark_steps(ax)
        ax.set_ylabel("eigenvalue λ")
        ax.legend(loc="upper left", ncols=3, columnspacing=1.0, handlelength=1.6)
        ax.set_title(f"Sharpness ({NAMES[self.operator]})", loc="left")

    def _plot_loss(self, ax: Axes) -> None:
        from landscape.analysis.styles import BLUE

        ax.plot(self.steps, self.losses, color=BLUE, linewidth=1.0, marker=_marker(self.steps), markersize=2)
        _logarithmic(ax, self.losses)
        self._mark_steps(ax)
        ax.set_ylabel("loss")
        ax.set_title("Loss over all rows", loc="left")

    def _plot_gradient(self, ax: Axes) -> None:
        from landscape.analysis.styles import BLUE, GREY

        k = self.values.shape[1]
        chance = k / self.dim
        label = f"in the top {k} directions" if k > 1 else "in the top direction"
        ax.plot(self.steps, self.shares, color=BLUE, marker=_marker(self.steps), markersize=3, label=label)
        ax.axhline(chance, color=GREY, linestyle="--", linewidth=1, label=f"by chance, k/d = {chance:.2g}")
        low = min(chance, float(np.nanmin(self.shares, initial=1.0)))
        if low < 0.05:
            ax.set_yscale("log")
            low = max(low / 2, 1e-16)
            ax.set_ylim(low, low**-0.2)
        else:
            ax.set_ylim(0, 1.25)
        self._mark_steps(ax)
        ax.set_ylabel("share of the squared gradient")
        ax.legend(loc="upper right", handlelength=1.6)
        ax.set_title("Gradient in the top eigenspace", loc="left")

    def _plot_persistence(self, ax: Axes) -> None:
        from landscape.analysis.styles import GREY, SEQUENTIAL

        # where not every step is a reference, half of the other rows is not known
        square = self.overlaps[np.isin(self.steps, self.references)]
        edges = borders(self.references)
        ax.set_facecolor("#dddddd")
        ax.patch.set(hatch="////", edgecolor=GREY, linewidth=0)
        image = ax.pcolormesh(edges, edges, np.ma.masked_invalid(square), vmin=0, vmax=1, cmap=SEQUENTIAL, rasterized=True)  # fmt: skip
        ax.set_aspect("equal")
        self._mark_steps(ax)
        ax.set_xlim(edges[0], edges[-1])
        ax.set_yticks(ax.get_xticks())
        ax.set_ylim(edges[-1], edges[0])
        ax.set_ylabel("step")
        bar = ax.figure.colorbar(image, ax=ax, pad=0.02)
        bar.set_label("overlap of the top eigenspaces")
        ax.set_title("Persistence of the top eigenspace", loc="left")

    def _plot_trace(self, ax: Axes) -> None:
        from landscape.analysis.styles import BLUE, GREY

        error = 2 * np.nan_to_num(self.trace_errors)
        look: dict[str, Any] = {"fmt": "-", "color": BLUE, "linewidth": 1.2, "elinewidth": 0.8, "capsize": 1.5}
        ax.errorbar(self.steps, self.traces, yerr=error, marker="o", markersize=2.5, label="trace ± 2 s.e.", **look)
        counted = self.values.sum(axis=1)
        k = self.values.shape[1]
        label = f"of it the {k} eigenvalues" if k > 1 else "of it the sharpness"
        ax.plot(self.steps, counted, color=GREY, linewidth=1, marker=_marker(self.steps), markersize=2, label=label)
        both = np.concatenate([self.traces - error, self.traces + error, counted])
        low, high = float(np.nanmin(both)), float(np.nanmax(both))
        if 0 < SPREAD * low < high:
            ax.set_yscale("log")
            ax.set_ylim(low / 1.3, high * (high / low) ** 0.2)
        elif high > min(low, 0.0):
            low = min(low, 0.0)
            ax.set_ylim(low, high + 0.2 * (high - low))
        self._mark_steps(ax)
        ax.set_ylabel("trace")
        ax.legend(loc="upper left", ncols=2, columnspacing=1.0, handlelength=1.6)
        ax.set_title(f"Trace of the {NAMES[self.operator]}", loc="left")

    def _plot_density(self, ax: Axes, sign: int) -> None:
        from landscape.analysis.styles import SEQUENTIAL

        shares = self.positive_density if sign > 0 else self.negative_density
        floor = 0.3 / self.dim
        levels = np.where(np.isfinite(shares), np.log10(np.maximum(np.nan_to_num(shares), floor)), np.nan)
        steps = self.steps.astype(float)
        edges = borders(steps)
        half = (self.decades[1] - self.decades[0]) / 2
        sizes = 10 ** np.append(self.decades - half, self.decades[-1] + half)
        image = ax.pcolormesh(edges, sizes, levels.T, cmap=SEQUENTIAL, rasterized=True)
        ax.set_yscale("log")
        self._mark_steps(ax)
        ax.set_ylabel("|eigenvalue|")
        ax.set_xlim(edges[0], edges[-1])
        bar = ax.figure.colorbar(image, ax=ax, pad=0.02)
        bar.set_label("log₁₀ share of eigenvalues per decade")
        ax.set_title(f"Density of λ {'>' if sign > 0 else '<'} 0", loc="left")

    def figure(self) -> Figure:
        """See Result."""
        import plotly.graph_objects as go

        from landscape.analysis.styles import BLUE, GREY, VERMILION, interactive

        figure = go.Figure()
        mode = "lines+markers"
        k = self.values.shape[1]
        for i in range(k - 1, -1, -1):  # the largest last, so that it lies on top
            text = [
                f"step {step:,}<br>λ<sub>{i + 1}</sub> = {value:.6g} ± {bound:.1g}<br>loss {loss:.4g}<br>gradient in the top space {_percent(share)}"
                + (f"<br>edge {edge:.4g}" if np.isfinite(edge) else "")
                for step, value, bound, loss, share, edge in zip(
                    self.steps, self.values[:, i], self.bounds[:, i], self.losses, self.shares, self.edges, strict=True
                )
            ]
            figure.add_scatter(
                x=self.steps,
                y=self.values[:, i],
                text=text,
                hoverinfo="text",
                mode=mode,
                line={"color": GREY if i else BLUE, "width": 1 if i else 2.5},
                marker={"size": 3 if i else 5},
                name=f"eigenvalue {i + 1}" if i else "sharpness",
                legendgroup="others" if i else "sharpness",
                showlegend=i in (0, 1),
            )
        if k > 1:
            figure.update_traces(selector={"name": "eigenvalue 2"}, name="the others" if k > 2 else "the other")
        if np.isfinite(self.edges).any():
            figure.add_scatter(
                x=self._span() if len(self.steps) == 1 else self.steps,
                y=np.repeat(self.edges, 2) if len(self.steps) == 1 else self.edges,
                mode="lines",
                line={"color": VERMILION, "dash": "dash"},
                name=self.formula,
            )
        return interactive(figure, x="step", y="eigenvalue")

    def _mark_steps(self, ax: Axes) -> None:
        from matplotlib.ticker import MaxNLocator

        ax.set_xlabel("step")
        ax.xaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10], integer=True))
        if len(self.steps) == 1:
            ax.set_xlim(self.steps[0] - 1, self.steps[0] + 1)

    def _span(self) -> np.ndarray:
        """Two ends (2,) around a single step, so that a line through it is seen."""
        return np.array([self.steps[0] - 0.5, self.steps[0] + 0.5])


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%" if not share < 1e-4 else "less than 0.01%"


def _worst(errors: np.ndarray) -> str:
    finite = errors[np.isfinite(errors)]
    return f"{finite.max():.1e}" if len(finite) else "unknown"


def _marker(steps: np.ndarray) -> str | None:
    """Points are marked as long as they can be told apart."""
    return "o" if len(steps) <= 60 else None


def _logarithmic(ax: Axes, values: np.ndarray) -> None:
    finite = values[np.isfinite(values)]
    if len(finite) and finite.min() > 0 and finite.max() > 3 * finite.min():
        ax.set_yscale("log")


# -- the measurement --------------------------------------------------------------------------------------------------


def sharpness(
    f: Objective,
    stations: Iterable[Station],
    *,
    top: int = 5,
    operator: Curvature = "hessian",
    which: Ends = "largest",
    tolerance: float = 1e-2,
    max_products: int = 500,
    trace_accuracy: float | None = None,
    density_accuracy: float | None = None,
    params: str | None = None,
    warm: bool = True,
    method: Method = Method(""),
    seed: int = 0,
) -> Sharpness:
    """The `top` (k) eigenvalues of a curvature matrix of f at each station, and what they say of the descent that passed there.

    f: the objective of all stations but for their buffers.
    tolerance: 1e-2, since a value's error is about residual^2 / gap, 1e-4 of it where it stands apart: below a line's width. The bounds stand in the answer.
    trace_accuracy: relative standard error of the trace; None leaves it out.
    density_accuracy: of the spectral density at each station, as `landscape.functionals.measure` takes it; None leaves it out.
    params: globs of parameter names: the others stand where they are, and there is no edge of stability.
    warm: start from the eigenvectors of the station before, and search for hidden eigenvalues at the first station, each tenth, the last, and where the space has turned; else every station by itself.
    method: how the run stepped, for its edge of stability.

    Raises UsageError for options out of range and where there is no station or their steps do not increase. A point with NaN or infinite entries, loss or gradient is left out and told.
    """
    if operator not in CURVATURES:
        raise unknown("operator", operator, CURVATURES)
    if which not in ("largest", "both"):
        raise UsageError(
            f"sharpness needs the largest eigenvalues; got which={which!r}. Allowed: largest, both. Others are in `landscape spectrum`."
        )
    if not 0 < tolerance < math.inf:
        raise UsageError(f"the tolerance must be positive and finite; got {tolerance}.")
    d = f.dim if params is None else int(f.model.layout.select(params).sum())
    k = min(top, d)
    course = _Course(
        f, params, d, k, operator, which, tolerance, max_products, trace_accuracy, density_accuracy, warm, seed
    )
    rest = iter(stations)
    station = next(rest, None)
    while station is not None:
        following = next(rest, None)  # the last one is searched, since none comes after it that would tell
        if following is not None and following.step <= station.step:
            raise UsageError(
                f"the steps of stations must increase; got {following.step} after {station.step}. Sort them."
            )
        course.add(station, last=following is None)
        station = following
    if not course.steps:
        raise UsageError("there is no point to measure at: give at least one.")
    columns = {name: np.array([row[name] for row in course.rows]) for name in course.rows[0]}
    notes = course.notes()
    if top > d:
        notes.append(f"asked for {top} eigenvalues of a {d}-dimensional matrix: all {d} are given.")
    rates = np.array(course.rates, dtype=float)
    lined = operator in ("hessian", "gauss-newton") and params is None
    edges = method.edges(rates) if lined else np.full(len(rates), np.nan)
    return Sharpness(
        question={},
        provenance={
            "seed": seed,
            "dtype": dtype_name(f.dtype),
            "device": f.device.type,
            "norm": f.norm,
            "warm": warm,
            "products taken": list(course.how),
        },
        warnings=tuple(notes),
        operator=operator,
        which=which,
        dim=d,
        params=params or "",
        **course.densities(),
        rows=len(f.rows),
        tolerance=tolerance,
        steps=np.array(course.steps, dtype=np.int64),
        rates=rates,
        edges=edges,
        formula=method.formula if np.isfinite(edges).any() else "",
        remark=method.remark(operator)
        if params is None
        else "No edge of stability is drawn: it is one of all parameters, and these are some.",
        references=np.array(course.spaces.steps, dtype=np.int64),
        overlaps=course.spaces.matrix(),
        **columns,
    )


@dataclass(eq=False)
class _Course:
    """The stations measured so far."""

    f: Objective
    params: str | None
    d: int
    k: int
    operator: Curvature
    which: Ends
    tolerance: float
    max_products: int
    trace_accuracy: float | None
    density_accuracy: float | None
    warm: bool
    seed: int
    steps: list[int] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)  # fields of the answer, an entry of each
    how: dict[str, None] = field(default_factory=dict)  # notes of the operators, in order, each once
    skipped: list[int] = field(default_factory=list)  # steps of points that are not finite
    overtaken: list[tuple[int, int]] = field(default_factory=list)  # steps between which a search found what was hidden
    skew: str = ""  # what is wrong with the symmetry of products at the first point
    measures: list[functionals.Measure | None] = field(default_factory=list)
    coarse: list[int] = field(default_factory=list)  # steps whose density is less accurate than asked
    rough: list[int] = field(default_factory=list)  # steps whose trace is less accurate than asked
    _before: Tensor | None = None  # (k, d) eigenvectors
    _searched: int = 0  # the last step searched for hidden eigenvalues
    _since: int = 0  # stations since

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UsageError(f"asked for {self.k} eigenvalues; at least 1 is needed.")
        self.spaces = _Spaces(REFERENCES, REFERENCE_BYTES // (self.k * self.d * torch.finfo(self.f.dtype).bits // 8))

    def add(self, station: Station, *, last: bool) -> None:
        """Measure at a station."""
        f = self.f if station.buffers is None else self.f.with_buffers(station.buffers)
        self.steps.append(station.step)
        self.rates.append(station.rate)
        point = station.point
        if self.params is not None:
            f, point = f.among(point, self.params)
        loss, gradient = f.value_and_gradient(point)
        finite = all(bool(torch.isfinite(part).all()) for part in (station.point, loss, gradient))
        if not finite:
            self.skipped.append(station.step)
            self.rows.append(self._row(float(loss), math.nan))
            self.spaces.add(station.step, None)
            self.measures.append(None)
            return
        norm = float(gradient.norm())
        row = self._row(float(loss), norm)
        matrix = f.curvature(point, self.operator, seed=self.seed)
        if not any(np.isfinite(known["gradient_norms"]) for known in self.rows):
            self.skew = asymmetry(matrix, self.seed)
        searched = not self.warm or self._before is None or self._since >= CONFIRMED - 1 or last
        space = self._converged(matrix, station.step, searched)
        pairs = space.pairs()
        self.how |= dict.fromkeys(matrix.notes)
        self._since = 0 if searched else self._since + 1
        if searched:
            self._searched = station.step
        row |= {
            "values": pairs.values,
            "residuals": pairs.residuals,
            "bounds": pairs.bounds,
            "converged": pairs.converged,
            "products": pairs.products,
            "angles": min(float(np.linalg.norm(pairs.residuals)) / pairs.gap, 1.0) if pairs.gap > 0 else 1.0,
            "shares": float((pairs.vectors @ (gradient / norm)).norm() ** 2) if norm > 0 else math.nan,
        }
        if self.trace_accuracy is not None:
            # one seed for all stations: what the probes get wrong they get wrong alike, and the course is smooth
            trace = functionals.trace(matrix, accuracy=self.trace_accuracy, space=space, seed=self.seed)
            row |= {"traces": trace.value, "trace_errors": trace.error}
            row["products"] += trace.products
            if trace.error > 1.001 * self.trace_accuracy * abs(trace.value):
                self.rough.append(station.step)
        if self.density_accuracy is not None:
            before = space.products
            found = functionals.measure(
                matrix, space=space, accuracy=self.density_accuracy, max_products=4 * self.max_products, seed=self.seed
            )
            self.measures.append(found)
            row["products"] += found.products + space.products - before
            if found.error() > self.density_accuracy:
                self.coarse.append(station.step)
        row["lasting"] = math.nan if self._before is None else _overlap(pairs.vectors, self._before)
        self.rows.append(row)
        self._before = pairs.vectors
        self.spaces.add(station.step, pairs.vectors)

    def _converged(self, matrix: SymmetricOperator, step: int, searched: bool) -> SearchSpace:
        """A search space whose wanted pairs have converged, and where it is `searched` hide none."""
        draws = generator(self.seed, "lanczos", step)

        def converge(space: SearchSpace, missed: float) -> Eigenpairs:
            space.converge(tolerance=self.tolerance, max_products=self.max_products, missed=missed)
            return space.pairs()

        if not self.warm or self._before is None:
            space = SearchSpace(matrix, self.k, generator=draws, which=self.which)
            converge(space, MISSED)
            return space
        start = _unit(self._before.sum(0)) + RANDOM * _unit(normal(matrix, draws))
        space = SearchSpace(matrix, self.k, generator=draws, which=self.which, start=start[None])
        before = converge(space, 1.0)
        # where the space has turned, its vectors were no good start, and what they hid may have come up
        turned = _overlap(before.vectors, self._before) < STEADY
        if searched or turned:
            after = converge(space, MISSED)
            # each value has an eigenvalue within its residual
            allowed = float((before.residuals + after.residuals).max())
            if searched and np.any(np.abs(before.values - after.values) > allowed):
                self.overtaken.append((self._searched, step))
        return space

    def densities(self) -> dict[str, np.ndarray]:
        """The densities by decades at all stations on one grid."""
        known = [found for found in self.measures if found is not None]
        if not known:
            empty = np.empty(0)
            return {"decades": empty, "positive_density": empty, "negative_density": empty, "accuracies": empty}
        sizes = [float(np.abs(found.all()[0]).max()) for found in known]
        largest = max(*sizes, np.finfo(float).tiny * 1e10)
        zero = 100 * torch.finfo(self.f.dtype).eps * largest
        grid = np.linspace(np.log10(zero), np.log10(largest) + 0.1, DECADES)
        curves = {
            name: np.array(
                [
                    np.full(DECADES, np.nan)
                    if found is None
                    else curve(found, grid, FINEST_DECADE, decade(sign, zero))[0]
                    for found in self.measures
                ]
            )
            for name, sign in (("positive_density", 1), ("negative_density", -1))
        }
        errors = np.array([math.nan if found is None else found.error() for found in self.measures])
        return {"decades": grid, **curves, "accuracies": errors}

    def _row(self, loss: float, norm: float) -> dict[str, Any]:
        """The fields of a station before anything is known of its eigenvalues."""
        unknown_values = np.full(self.k, np.nan)
        return {
            "losses": loss,
            "gradient_norms": norm,
            "values": unknown_values,
            "residuals": unknown_values,
            "bounds": unknown_values,
            "converged": np.zeros(self.k, dtype=bool),
            "products": 0,
            "shares": math.nan,
            "traces": math.nan,
            "trace_errors": math.nan,
            "angles": math.nan,
            "lasting": math.nan,
        }

    def notes(self) -> list[str]:
        """Warnings, each a sentence."""
        notes = [self.skew] if self.skew else []
        if self.skipped:
            notes.append(
                f"{len(self.skipped)} of {len(self.steps)} points have a loss, gradient or entry that is not finite, the first at step {self.skipped[0]}: nothing is measured there."
            )
        open_steps = [
            step
            for step, row in zip(self.steps, self.rows, strict=True)
            if step not in self.skipped and not row["converged"].all()
        ]
        if open_steps:
            notes.append(
                f"eigenvalues at {len(open_steps)} of {len(self.steps)} steps did not reach the tolerance {self.tolerance:g} in {self.max_products} products, first at step {open_steps[0]}: raise --max-products."
            )
        for first, last in self.overtaken:
            notes.append(
                f"at step {last} a search found an eigenvalue that warm starts had not seen: since step {first} one of those listed may be the next lower one. Measure without warm starts to be sure."
            )
        if self.coarse:
            notes.append(
                f"the density at {len(self.coarse)} of {len(self.steps)} steps did not reach the accuracy {self.density_accuracy:g}, first at step {self.coarse[0]}: raise --max-products."
            )
        if self.rough:
            notes.append(
                f"the trace at {len(self.rough)} of {len(self.steps)} steps did not reach the accuracy {self.trace_accuracy:g}, first at step {self.rough[0]}: its error bars are right."
            )
        return notes


class _Spaces:
    """Eigenspaces of evenly spaced reference steps, at most `room` of them, and the overlaps of every step's with these.

    How many steps come is not known beforehand: every one is a reference until the room is full, then every second is let go, and so on.
    """

    def __init__(self, most: int, room: int) -> None:
        self._room = max(min(most, room), 1)
        self._stride = 1
        self._seen = 0
        self._indices: list[int] = []
        self._spaces: list[Tensor | None] = []  # (k, d); None at a point that is not finite
        self.steps: list[int] = []
        self._overlaps: list[dict[int, float]] = []  # of each step, by the index of the reference

    def add(self, step: int, vectors: Tensor | None) -> None:
        """Compare a step's eigenspace with the references, and make it one where its turn has come."""
        index = self._seen
        self._seen += 1
        held = zip(self._indices, self._spaces, strict=True)
        self._overlaps.append({reference: _overlap(vectors, space) for reference, space in held})
        if index % self._stride:
            return
        if len(self._spaces) == self._room:
            self._stride *= 2
            keep = [place for place, known in enumerate(self._indices) if known % self._stride == 0]
            self._indices = [self._indices[place] for place in keep]
            self._spaces = [self._spaces[place] for place in keep]
            self.steps = [self.steps[place] for place in keep]
            if index % self._stride:
                return
        if len(self._spaces) == self._room:  # room for one: the first
            return
        self._overlaps[index][index] = math.nan if vectors is None else 1.0
        self._indices.append(index)
        self._spaces.append(vectors)
        self.steps.append(step)

    def matrix(self) -> np.ndarray:
        """The overlaps (T, R); a pair of reference steps is known from the later one."""
        table = np.full((self._seen, len(self._indices)), np.nan)
        held = set(self._indices)
        for column, reference in enumerate(self._indices):
            for index, known in enumerate(self._overlaps):
                table[index, column] = known.get(reference, math.nan)
                if index < reference and index in held:
                    table[index, column] = self._overlaps[reference].get(index, math.nan)
        return table


def _overlap(one: Tensor | None, other: Tensor | None) -> float:
    """|U V^T|_F^2 / k of orthonormal rows (k, d); NaN where one is not known."""
    if one is None or other is None:
        return math.nan
    return float((one @ other.T).square().sum()) / len(one)


def _unit(vector: Tensor) -> Tensor:
    return cast(Tensor, vector / vector.norm())
