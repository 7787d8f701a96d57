"""What becomes of a point when its network is widened by splitting a unit: outputs and gradient that stay, curvature that is predicted from two small matrices, and the way out.

Letters: D parameters of the narrow network and D' of a wide one, S steps (units added one after the other), q output and p input parameters of a unit, R ratios, T points of a line.

Every number is of the mean loss over the rows. Inertias are (positive, zero, negative) counts of eigenvalues; those of the wide networks are predicted by
In(H_wide) = In(H_narrow) + In(K), exact at any point (`landscape.inertias`), and beside that counted in the dense Hessian, where that is not too large.

Sources: Zhang et al. 2021 (splitting, null units, figure 3) and the long version 2022 (three-fold global splitting); Fukumizu, Amari 2000 (the scan over the ratio).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from landscape import embeddings, units
from landscape.errors import LandscapeError, UsageError, unknown
from landscape.inertias import (
    DENSE,
    Blocks,
    Inertia,
    blocks,
    directions,
    equal_ratios,
    inertia,
    kinks,
    predicted,
    require_smooth,
    scalings,
)
from landscape.objectives import Objective, dtype_name, require_finite
from landscape.operators import normal
from landscape.results import Result
from landscape.seeds import generator

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from plotly.graph_objects import Figure

    from landscape.embeddings import Embedding
    from landscape.units import Layer

Way = Literal["split", "null", "threefold"]
# |gradient| / |weights of the unit| over the largest |eigenvalue|: up to here the zeros of the critical point nearby can be told, and are counted as zeros; beyond, the inertia is that of
# the Hessian as it stands
NEAR = 1e-6
# the line of escape is looked for up to where the quadratic model takes off this share of the loss: enough to be seen, and within what the model says
DROP = 0.1
LINE = 41
SCANNED = 97  # ratios; 0 and 1 are added
PROBES = 4  # products with the Hessian and with Gauss-Newton: their ratio is told to some 10%, and what is asked is whether it is 0
# |H - Gauss-Newton| over |H| below which a residual part is rounding
NO_RESIDUAL = 1e-9


@dataclass(frozen=True, kw_only=True)
class Splitting(Result):
    """A point before and after its network is widened. Steps are 0 (before) to S; -1 stands for counts and NaN for numbers that are not known."""

    way: str
    layer: str
    units: int  # of the layer, before
    shape: str  # what the units are: dense, channel, head, glu
    activation: str
    unit: int  # -1 where it is no single one
    ratios: list[float]  # (S,) of splits; empty otherwise
    bias: float  # of null units
    dims: np.ndarray  # (S + 1,) parameters
    rows: int
    loss: float
    gradient: float  # |g| at the narrow point
    gradient_wide: float
    step: float  # |H^+ g|, by the quadratic model the distance to a critical point
    decrement: float  # (g^T |H|^+ g)^(1/2)
    slope: float  # |g| over the size of the unit's weights: so far may zeros of a critical point nearby be moved
    critical: bool  # whether the slope is within NEAR of the largest |eigenvalue|
    checks: list[dict[str, Any]]  # name, value, tolerance, reason
    kinked: list[str]  # functions with kinks that the network calls
    foretold: np.ndarray  # (S + 1, 3) inertia: that of the narrow network, and what is predicted from it; where the narrow one is not counted, what is added to it alone
    counted: np.ndarray  # (S + 1, 3) inertia counted in each Hessian
    cuts: np.ndarray  # (S + 1,) of the counted
    gaps: np.ndarray  # (S + 1,)
    doubtful: np.ndarray  # (S + 1,) bool: eigenvalues near the cut, or an estimate
    eigenvalues: list[np.ndarray]  # (S + 1) of (D,) ascending; empty where the Hessian is not formed
    scaled: np.ndarray  # (S + 1,) zeros that are scalings of homogeneous units
    residual: (
        float  # |H - Gauss-Newton| / |H| in the Frobenius norm, by random products: 0 at minima without a residual
    )
    coupling: np.ndarray  # (min(q, p),) singular values of B
    bending: np.ndarray  # (p,) eigenvalues of G
    tried: np.ndarray  # (R,) ratios of the scan; empty where none was asked for
    lowest: np.ndarray  # (R,) lowest curvature along a unit vector that K sees
    signs: np.ndarray  # (R, 3) inertia of K
    curvature: float  # along the escape direction; NaN where none was asked for
    line: np.ndarray  # (T,) distances along it
    losses: np.ndarray  # (T,)

    # -- words --------------------------------------------------------------------------------------------------------

    @property
    def agrees(self) -> bool | None:
        """Whether every counted inertia is the predicted one; None where there is nothing to compare, or a count is doubtful."""
        both = (self.counted[1:, 0] >= 0) & (self.foretold[1:, 0] >= 0)
        if not both.any() or self.doubtful[[0, *(np.flatnonzero(both) + 1)]].any():
            return None
        return bool((self.counted[1:][both] == self.foretold[1:][both]).all())

    @property
    def exact(self) -> bool:
        """Whether every check is within its tolerance."""
        return all(check["value"] <= check["tolerance"] for check in self.checks if math.isfinite(check["tolerance"]))

    def summary(self) -> str:
        """See Result."""
        task = self.provenance.get("task")
        line = f"{f'{task}: ' if task else ''}{self._words()}, {self.dims[0]:,} to {self.dims[-1]:,} parameters: "
        line += "all checks within their tolerance" if self.exact else "A CHECK FAILED"
        line += f"; |g| {self.gradient:.2g}{'' if self.critical else ', not a critical point'}"
        if self.foretold[0, 0] >= 0:
            known = self.counted[0, 0] >= 0
            line += f"; inertia {_counts(self.foretold[0])}" if known else "; inertia before not counted"
            if self.foretold[-1, 0] >= 0 and not known:
                line += f", predicted {_counts(self.foretold[-1])} more"
            elif self.foretold[-1, 0] >= 0:
                line += (
                    f", predicted {_counts(self.foretold[-1])}: {_counts(self.foretold[-1] - self.foretold[0])} more"
                )
            if self.counted[-1, 0] >= 0:
                line += f", counted {_counts(self.counted[-1])}"
            line += f" ({self._verdict()})"
        return line + "."

    def _verdict(self) -> str:
        if self.agrees is not None:
            return "agreed" if self.agrees else "THEY DIFFER"
        if self.foretold[-1, 0] < 0:
            return "not predicted"
        return (
            "the wide Hessian was not formed" if self.counted[-1, 0] < 0 else "eigenvalues near the cut: not compared"
        )

    def _words(self) -> str:
        where = f"{self.layer} ({self.units} {self.shape} units, {self.activation})"
        if self.way == "threefold":
            return f"three-fold global splitting from {where}"
        if self.way == "null":
            count = len(self.dims) - 1
            return f"{count} null {'unit' if count == 1 else 'units'} in {where}"
        if len(self.ratios) == 1:
            return f"unit {self.unit} of {where} split {1 - self.ratios[0]:.4g} : {self.ratios[0]:.4g}"
        return f"unit {self.unit} of {where} split into {len(self.ratios) + 1} ({', '.join(f'{ratio:.4g}' for ratio in self.ratios)})"

    def caption(self) -> str:
        """See Result."""
        text = f"{self._words()}; mean loss {self.loss:.6g} over {self.rows:,} rows. Checks and inertias are of the same point before and after: the wide network has the same outputs. "
        if self.critical:
            text += f"The point is critical as far as its gradient, {self.gradient:.2g}, tells: zeros of the critical point may be off by {self.slope:.1g}, which the cut allows for. "
        else:
            text += f"The point is NOT critical: |g| = {self.gradient:.3g}"
            if math.isfinite(self.step):
                text += f", Newton step {self.step:.3g}, decrement {self.decrement:.3g}"
            text += ". Inertias are those of the Hessian as it stands there; the prediction holds at any point, the nullities of critical points do not. "
        if self.foretold[0, 0] >= 0:
            text += (
                "Predicted: the narrow network's inertia plus that of K = [[0, -B], [-B^T, ratio (1 - ratio) G]], exact at any point; the wide Hessian is formed for comparison only"
                f"{'' if len(self.eigenvalues) > 1 else f', and not above {DENSE:,} parameters'}. An eigenvalue counts as 0 up to the cut (dashed). "
            )
            if self.counted[0, 0] < 0:
                text += f"The Hessian before is above {DENSE:,} parameters too, and its inertia is not counted: the predicted counts are those that are added to it, with its cut. "
            elif self.doubtful.any():
                text += "Eigenvalues lie within a factor of 10 of a cut: these counts are doubtful and not compared. "
            if self.scaled.any():
                text += f"Of the zeros at a critical point {self.scaled[0]} before and {self.scaled[-1]} after are scalings of homogeneous units, which mean nothing. "
        if self.kinked:
            text += (
                f"The network has kinks ({', '.join(self.kinked)}): second derivatives are those of its smooth pieces. "
            )
        if self.tried.size:
            text += "Scan: In(K) can change at the ratios 0 and 1 alone, and does so only where null(B) sees G. "
        if self.losses.size:
            text += f"Escape: along the most negative eigenvector of K, lifted to the wide network (curvature {self.curvature:.3g} along a unit vector); dotted, the quadratic model. The lowest loss on the line is {np.nanmin(self.losses):.6g}. "
        if math.isfinite(self.residual):
            text += f"Residual part of the Hessian (all but Gauss-Newton): {self.residual:.2g} of it. {self._bad()}"
        return text.strip()

    def _bad(self) -> str:
        if not self.critical or self.foretold[0, 2] != 0:
            return ""
        if self.residual > NO_RESIDUAL:
            return "No negative eigenvalue and a residual part: the three-fold global splitting makes this point a strict saddle."
        return "Without a residual part B and G are 0, and a split adds zeros alone."

    def table(self) -> list[tuple[str, ...]]:
        """See Result."""
        rows: list[tuple[str, ...]] = [("what", "number", "tolerance", "why")]
        for check in self.checks:
            verdict = "" if check["value"] <= check["tolerance"] else "FAILED: "
            rows.append(
                (check["name"], f"{check['value']:.2e}", f"{check['tolerance']:.1e}", verdict + check["reason"])
            )
        rows.append(("gradient norm", f"{self.gradient:.3e}", "", "before"))
        rows.append(("gradient norm", f"{self.gradient_wide:.3e}", "", "after"))
        if math.isfinite(self.step):
            rows.append(("Newton step", f"{self.step:.3e}", "", "distance to a critical point, by the quadratic model"))
        for step, size in enumerate(self.dims):
            for name, counts in (("inertia predicted", self.foretold[step]), ("inertia counted", self.counted[step])):
                if counts[0] >= 0 and (step or name == "inertia counted"):
                    doubt = name == "inertia counted" and self.doubtful[step]
                    words = f"of {size:,} parameters"
                    if name == "inertia counted":
                        words += (
                            f", cut {self.cuts[step]:.1e}, gap {self.gaps[step]:.1e}{', doubtful' if doubt else ''}"
                        )
                    elif self.counted[0, 0] < 0:
                        name = "inertia added"
                        words = f"by K, cut {self.cuts[0]:.1e}, to that of {self.dims[0]:,} parameters, which is not counted"
                    rows.append((name, _counts(counts), "", words))
        return rows

    # -- pictures -----------------------------------------------------------------------------------------------------

    def panels(self) -> tuple[str, ...]:
        """`eigenvalues` where Hessians were formed, `scan` and `escape` where they were asked for."""
        there = {"eigenvalues": bool(self.eigenvalues), "scan": self.tried.size > 0, "escape": self.losses.size > 0}
        return tuple(name for name, shown in there.items() if shown)

    def plot(self, ax: Axes, panel: str = "") -> None:
        """See Result."""
        panel = panel or next(iter(self.panels()), "")
        drawn = {"eigenvalues": self._plot_eigenvalues, "scan": self._plot_scan, "escape": self._plot_escape}
        if panel not in self.panels():
            raise unknown("panel", panel, self.panels())
        drawn[panel](ax)

    def _plot_eigenvalues(self, ax: Axes) -> None:
        from landscape.analysis.styles import BLACK, BLUE, GREY, VERMILION, heading

        floor = self._floor()
        start = 0
        ticks, names = [], []
        looks = ((BLUE, "o", "positive"), (GREY, "x", "zero"), (VERMILION, "v", "negative"))
        for step, values in enumerate(self.eigenvalues):
            order = np.argsort(-np.abs(values), kind="stable")
            values = values[order]
            x = start + np.arange(len(values))
            signs = np.where(np.abs(values) <= self.cuts[step], 1, np.where(values > 0, 0, 2))
            for sign, (colour, marker, name) in enumerate(looks):
                own = signs == sign
                ax.plot(x[own], np.maximum(np.abs(values[own]), floor), marker, color=colour, markerfacecolor="none", markersize=4, linestyle="none", label=name if step == 0 else None)  # fmt: skip
            ax.plot(
                [x[0], x[-1]],
                [self.cuts[step]] * 2,
                "--",
                color=BLACK,
                linewidth=0.8,
                label="cut" if step == 0 else None,
            )
            ticks.append((x[0] + x[-1]) / 2)
            told = f"\npredicted {_counts(self.foretold[step])}" if step and self.foretold[step, 0] >= 0 else ""
            names.append(f"{_counts(self.counted[step])}{told}")
            start += math.ceil(1.12 * len(values)) + 1
        ax.set_yscale("log")
        ax.set_ylim(floor / 3, None)
        ax.set_xticks(ticks, names, fontsize=6.5 if len(ticks) > 2 else 8)
        ax.set_xlabel("eigenvalues by size: (positive, zero, negative)")
        ax.set_ylabel("|eigenvalue|")
        heading(ax, "Hessian before and after" if len(ticks) == 2 else "Hessian before and after each step", columns=4)

    def _floor(self) -> float:
        """Where eigenvalues of 0 are drawn."""
        sizes = np.abs(np.concatenate(self.eigenvalues))
        return max(float(sizes[sizes > 0].min(initial=1.0)), 1e-4 * float(self.cuts.min()))

    def _plot_scan(self, ax: Axes) -> None:
        from matplotlib.ticker import MaxNLocator

        from landscape.analysis.styles import BLUE, GREY, VERMILION, heading

        ax.plot(self.tried, self.lowest, color=BLUE, label="lowest curvature of K")
        ax.axhline(0, color=GREY, linewidth=0.6, zorder=0)
        for end in (0, 1):
            if self.tried[0] <= end <= self.tried[-1]:
                ax.axvline(end, color=GREY, linestyle=":", linewidth=0.9, zorder=0)
        ax.set_xlabel("ratio")
        ax.set_ylabel("curvature along a unit vector")
        beside = ax.twinx()
        beside.step(
            self.tried,
            self.signs[:, 2],
            where="mid",
            color=VERMILION,
            linestyle="--",
            label="negative eigenvalues of K",
        )
        beside.set_ylim(-0.2, max(float(self.signs.max()), 1) + 0.4)
        beside.yaxis.set_major_locator(MaxNLocator(integer=True))
        beside.set_ylabel("count")
        beside.spines["right"].set_visible(True)
        handles = [*ax.get_legend_handles_labels()[0], *beside.get_legend_handles_labels()[0]]
        heading(ax, "Scan over the ratio of the split", handles, columns=2)

    def _plot_escape(self, ax: Axes) -> None:
        from landscape.analysis.styles import BLUE, GREY, heading

        middle = float(self.losses[self.line == 0][0])
        ax.plot(self.line, self.losses, color=BLUE, label="loss")
        ax.plot(self.line, middle + self.curvature * self.line**2 / 2, ":", color=GREY, label="quadratic model")
        ax.plot(0, middle, "o", color=BLUE, markersize=4, label="the split point")
        ax.locator_params(axis="x", nbins=5)
        ax.set_xlabel("distance along the escape direction")
        ax.set_ylabel("loss")
        heading(ax, "Loss along the most negative direction of K")

    def figure(self) -> Figure:
        """See Result."""
        import plotly.graph_objects as go

        from landscape.analysis.styles import BLUE, GREY, VERMILION, interactive

        figure = go.Figure()
        if not self.eigenvalues:
            if self.tried.size:
                figure.add_scatter(x=self.tried, y=self.lowest, mode="lines", name="lowest curvature of K")
                return interactive(figure, x="ratio", y="curvature along a unit vector")
            figure.add_scatter(x=self.line, y=self.losses, mode="lines", name="loss")
            return interactive(figure, x="distance along the escape direction", y="loss")
        floor = self._floor()
        for step, values in enumerate(self.eigenvalues):
            sizes = np.abs(values)
            places = np.argsort(np.argsort(-sizes, kind="stable"))
            zero = sizes <= self.cuts[step]
            for own, colour, symbol, name in (
                (~zero & (values > 0), BLUE, "circle-open", "positive"),
                (zero, GREY, "x", "zero"),
                (~zero & (values < 0), VERMILION, "triangle-down-open", "negative"),
            ):
                figure.add_scatter(
                    x=places[own], y=np.maximum(sizes[own], floor), text=[f"{value:.3g}" for value in values[own]], mode="markers",
                    marker={"color": colour, "symbol": symbol}, name=f"{self.dims[step]:,} parameters: {int(own.sum())} {name}",
                )  # fmt: skip
        interactive(figure, x="number, by size", y="|eigenvalue|")
        figure.update_yaxes(type="log")
        return figure


def _counts(counts: np.ndarray | Sequence[int]) -> str:
    return f"({', '.join(str(int(count)) for count in counts)})"


# -- the embedding ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Plan:
    """Which layer is widened, and by which embeddings, one after the other."""

    way: Way
    layer: Layer
    unit: int  # -1 where it is no single one
    ratios: list[float]  # of splits
    bias: float
    steps: tuple[Embedding, ...]
    layers: tuple[Layer, ...]  # all that can be split

    @property
    def whole(self) -> Embedding:
        """All steps at once."""
        found = self.steps[0]
        for step in self.steps[1:]:
            found = step @ found
        return found


def plan(
    f: Objective,
    theta: Tensor,
    *,
    way: Way = "split",
    layer: str | None = None,
    unit: int = 0,
    ratio: float | None = None,
    widen: int = 1,
    bias: float = 0.0,
) -> Plan:
    """How the network of an objective at theta (D,) is widened.

    layer: by default the first that can be split. ratio: of a split, by default such that all copies have equal shares. widen: units added, by splits of the same unit or as null units.
    bias: of null units; 0, where most activations are 0 and nothing has to take a constant up.
    Raises UsageError for layers, units and numbers that are not there, and where no layer can be split, with the reasons.
    """
    if widen < 1:
        raise UsageError(f"at least 1 unit is added; got {widen}.")
    module = f.module(theta)
    found = units.layers(module, f.rows.take(slice(0, 2)).inputs)
    able = tuple(one for one in found if not one.refusals)
    if layer is None and not able:
        reasons = "; ".join(f"{one.name}: {', '.join(one.refusals)}" for one in found)
        raise UsageError(f"no layer of this network can be split exactly. {reasons or 'It has no hidden layer'}.")
    chosen = able[0] if layer is None else units.find(found, layer)
    chosen.checked(unit if way == "split" else None)
    if way == "threefold":
        return Plan(way, chosen, -1, [], 0.0, (embeddings.threefold(module, able),), able)
    ratios = [] if way != "split" else equal_ratios(widen + 1) if ratio is None else [ratio] * widen
    steps, grown = [], chosen
    for number in range(widen):
        made = (
            embeddings.split(module, grown, unit, ratios[number])
            if way == "split"
            else embeddings.null(module, grown, bias)
        )
        steps.append(made)
        module, grown = made.module, grown.grown(grown.size + 1)
    return Plan(way, chosen, unit if way == "split" else -1, ratios, bias, tuple(steps), able)


# -- the question -----------------------------------------------------------------------------------------------------


def splitting(
    f: Objective,
    theta: Tensor,
    made: Plan,
    *,
    scan: tuple[float, float] | None = None,
    escape: bool = False,
    pieces: bool = False,
    decay: float = 0.0,
    seed: int = 0,
) -> Splitting:
    """Widen the network as planned at theta (D,) and compare what is predicted with what is.

    scan: ratios from the first to the second, of the last split. escape: the loss along the most negative direction that the last split opens.
    decay: weight decay that the point was trained with; the loss here is without it, and the answer says so.
    pieces: of networks with kinks, take second derivatives of the smooth pieces; without it they get the checks of first order alone.
    Raises UsageError where a scan or an escape is asked of no split, or of a network with kinks without `pieces`; LandscapeError where the point is not finite, or nothing escapes.
    """
    require_finite(theta, "the point")
    if (scan or escape) and made.way != "split":
        raise UsageError(f"a scan and an escape are of a split of one unit, not of {made.way}: leave them out.")
    if scan is not None and not (all(map(math.isfinite, scan)) and scan[0] < scan[1]):
        raise UsageError(f"a scan goes from a ratio to a larger one; got {scan[0]:g} to {scan[1]:g}.")
    kinked = kinks(f, theta)
    curved = pieces or not kinked
    notes = []
    if not curved:
        if scan or escape:
            require_smooth(f, theta, pieces=False)
        notes.append(f"the network calls {', '.join(kinked)}, without a second derivative everywhere: no Hessian was taken. For that of the smooth pieces add --pieces (pieces=True).")  # fmt: skip
    if curved and f.dtype != torch.float64:
        notes.append(f"curvature is taken in {dtype_name(f.dtype)}: eigenvalues below the cut, which rounding makes large here, count as zeros. Take float64.")  # fmt: skip
    if decay:
        notes.append(f"the point was trained with weight decay {decay:g}, and the loss here is without it: of the decayed loss a plain split is not critical. Where activations are homogeneous the isometric one is (landscape.embeddings.isometric).")  # fmt: skip
    whole = made.whole
    wide, point = whole.wide_objective(f), whole.lift(theta)
    value, g = f.value_and_gradient(theta)
    checks = embeddings.check(f, theta, whole, curvature=curved, seed=seed)
    found: dict[str, Any] = {
        "way": made.way, "layer": made.layer.name, "units": made.layer.size, "shape": made.layer.kind, "activation": made.layer.activation,
        "unit": made.unit, "ratios": made.ratios, "bias": made.bias, "rows": len(f.rows), "loss": float(value),
        "dims": np.array([f.dim, *(step.wide.dim for step in made.steps)]), "gradient": float(g.norm()), "gradient_wide": float(wide.gradient(point).norm()),
        "checks": [{"name": name, "value": check.value, "tolerance": check.tolerance, "reason": check.reason} for name, check in checks.items()],
        "kinked": list(kinked),
    }  # fmt: skip
    own = _blocks(f, theta, made) if curved else None
    found |= _curvature(f, theta, g, made, own, seed) if curved else _unknown(len(made.steps))
    found |= _scan(own, made, scan, float(found["cuts"][0]))
    found |= _escape(wide, point, own, made, escape, float(value))
    if curved and not found["critical"]:
        notes.append(f"the point is not critical (|g| = {found['gradient']:.3g}): inertias are of the Hessian as it stands, and zeros that a critical point has are not seen. Take a point of less gradient.")  # fmt: skip
    return Splitting(
        question={},
        provenance={"dtype": dtype_name(f.dtype), "device": str(f.device), "seed": seed, "norm": f.norm},
        warnings=tuple(notes),
        **found,
    )


def _blocks(f: Objective, theta: Tensor, made: Plan) -> Blocks | None:
    """Of the unit that is split, or of the null unit that is added; None where there is no one unit, or a null unit's constant is taken up by nothing."""
    if made.way == "split":
        return blocks(f, theta, made.layer, made.unit, pieces=True)
    first = made.steps[0]
    wide, point, layer = first.wide_objective(f), first.lift(theta), made.layer.grown(made.layer.size + 1)
    if made.way == "null" and _constant_is_taken_up(wide, point, layer):
        return blocks(wide, point, layer, made.layer.size, pieces=True)
    return None


def _constant_is_taken_up(wide: Objective, point: Tensor, layer: Layer) -> bool:
    """Whether what the last unit of the layer, a null one, gives to its readers is 0, or a step of biases that all of them have. Zero padding makes a constant one no more."""
    columns, q = directions(wide.model.layout, layer, 0, layer.size - 1, 1.0, point)
    few = wide.on(slice(0, 2))
    outputs = few.outputs(point)
    read = few.outputs(point + (columns[:q] > 0).any(0))  # its output side set to 1
    if torch.allclose(read, outputs, rtol=0, atol=1e-12 * float(1 + outputs.abs().max())):
        return True
    module = wide.module(point)
    trained = {entry.name for entry in wide.model.layout.of("parameter")}
    readers = {part.name.rpartition(".")[0] for part in layer.scaled}
    return all(
        f"{name}.bias" in trained and not any(np.atleast_1d(getattr(module.get_submodule(name), "padding", 0)) != 0) for name in readers
    )  # fmt: skip


def _unknown(steps: int) -> dict[str, Any]:
    """Where no second derivative is taken."""
    cuts, gaps = np.full((2, steps + 1), math.nan)
    return {
        "foretold": np.full((steps + 1, 3), -1), "counted": np.full((steps + 1, 3), -1), "cuts": cuts, "gaps": gaps,
        "doubtful": np.zeros(steps + 1, dtype=bool), "eigenvalues": [], "scaled": np.zeros(steps + 1, dtype=int),
        "step": math.nan, "decrement": math.nan, "slope": math.nan, "critical": False, "residual": math.nan, "coupling": np.empty(0), "bending": np.empty(0),
    }  # fmt: skip


def _curvature(f: Objective, theta: Tensor, g: Tensor, made: Plan, own: Blocks | None, seed: int) -> dict[str, Any]:
    """Inertias predicted and counted, and how far from critical the point is."""
    found = _unknown(len(made.steps))
    # what moves the zeros of a critical point nearby: see inertias.SLOPES
    slope = float(g.norm()) / _size(f, theta, made)
    found["slope"] = slope
    if f.dim <= DENSE:
        values, vectors = np.linalg.eigh(_dense(f, theta))
        found["critical"] = slope <= NEAR * float(np.abs(values).max())
        allowed = slope if found["critical"] else 0.0
        before = inertia(values, slope=allowed)
        along = vectors.T @ g.double().cpu().numpy()
        bent = np.abs(values) > before.cut
        found["step"] = float(np.linalg.norm(along[bent] / values[bent]))
        found["decrement"] = float(np.linalg.norm(along[bent] / np.sqrt(np.abs(values[bent]))))
        found["eigenvalues"].append(values)
    else:
        before, allowed = inertia(f.hessian(theta), seed=seed), 0.0
        if before.ambiguous:
            # eigenvalues lie at the cut by the hundred, and quadrature tells their number to thousands: what is added is known, and told alone
            before = dataclasses.replace(before, positive=0, zero=0, negative=0)
    found["residual"] = _residual(f, theta, seed)
    told = _predicted(f, theta, made, own, before)
    for step, one in enumerate(told):
        found["foretold"][step] = one.counts
    counts = [before]
    lifted = made.steps[0]
    layers = made.layers
    found["scaled"][0] = scalings(f.model.layout, theta, layers)
    for step, more in enumerate(made.steps):
        lifted = more if step == 0 else more @ lifted
        grown = {
            True: {one.name: 3 * one.size for one in layers},
            False: {made.layer.name: made.layer.size + step + 1},
        }[made.way == "threefold"]
        wider = tuple(one.grown(grown.get(one.name, one.size)) for one in layers)
        found["scaled"][step + 1] = scalings(lifted.wide, lifted.lift(theta), wider)
        if lifted.wide.dim <= DENSE:
            values = np.linalg.eigvalsh(_dense(lifted.wide_objective(f), lifted.lift(theta)))
            counts.append(inertia(values, slope=allowed))
            found["eigenvalues"].append(values)
    for step, one in enumerate(counts):
        found["counted"][step], found["cuts"][step], found["gaps"][step], found["doubtful"][step] = (
            one.counts if any(one.counts) else -1,
            one.cut,
            one.gap,
            one.ambiguous,
        )
    if own is not None:
        found["coupling"], found["bending"] = np.linalg.svd(own.B, compute_uv=False), np.linalg.eigvalsh(own.G)
    return found


def _predicted(f: Objective, theta: Tensor, made: Plan, own: Blocks | None, before: Inertia) -> list[Inertia]:
    """After 0, 1, ... steps, as far as it can be told."""
    found = [before]
    if made.way == "threefold" and len(made.layers) == 1:
        total = before
        for unit in range(made.layer.size):  # shares (1), (2, -1), (1, -1, 1)
            total = predicted(total, blocks(f, theta, made.layer, unit, pieces=True), (-1.0, 0.5))
        return [before, total]
    if own is None:
        return found
    for step in range(len(made.steps)):
        found.append(predicted(before, own, made.ratios[: step + 1] or [0.0] * (step + 1)))
    return found


def _size(f: Objective, theta: Tensor, made: Plan) -> float:
    """The length of the unit's output side, or of its input side where that is 0; of all weights where there is no one unit."""
    if made.unit < 0:
        return float(theta.norm()) or 1.0
    first = made.steps[0]
    columns, q = directions(first.wide, made.layer.grown(made.layer.size + 1), made.unit, made.layer.size, 1.0, theta)
    ins, outs = (float(first.lift(theta)[(block > 0).any(0)].norm()) for block in (columns[q:], -columns[:q]))
    return outs or ins or 1.0


def _dense(f: Objective, theta: Tensor) -> np.ndarray:
    matrix = f.hessian(theta).dense().double().cpu().numpy()
    require_finite(torch.from_numpy(matrix), "the Hessian")
    return np.asarray((matrix + matrix.T) / 2)


def _residual(f: Objective, theta: Tensor, seed: int) -> float:
    """|H - Gauss-Newton| / |H| in the Frobenius norm, from PROBES products with each: E |M v|^2 = |M|^2 for normal v."""
    hessian, squares = f.hessian(theta), f.gauss_newton(theta)
    parts = np.zeros(2)
    for probe in range(PROBES):
        v = normal(hessian, generator(seed, "residual part", probe))
        bent = hessian @ v
        parts += [float((bent - squares @ v).square().sum()), float(bent.square().sum())]
    return math.sqrt(parts[0] / parts[1]) if parts[1] else 0.0


def _scan(own: Blocks | None, made: Plan, scan: tuple[float, float] | None, cut: float) -> dict[str, Any]:
    """In(K) and its lowest eigenvalue over the ratio of the last split."""
    if scan is None:
        return {"tried": np.empty(0), "lowest": np.empty(0), "signs": np.empty((0, 3), dtype=int)}
    assert own is not None
    tried = np.unique([*np.linspace(*scan, SCANNED), *(end for end in (0.0, 1.0) if scan[0] <= end <= scan[1])])
    values = [np.linalg.eigvalsh(own.curvature(ratio, _share(made))) for ratio in tried]
    kinds = [inertia(each, cut=max(cut, inertia(each).cut)).counts for each in values]
    return {"tried": tried, "lowest": np.array([each[0] for each in values]), "signs": np.array(kinds)}


def _share(made: Plan) -> float:
    """What the unit bears of its output side before the last split."""
    return math.prod(1 - ratio for ratio in made.ratios[:-1])


def _escape(wide: Objective, point: Tensor, own: Blocks | None, made: Plan, asked: bool, loss: float) -> dict[str, Any]:
    """The loss along the most negative direction of K, between the unit and its last copy."""
    if not asked:
        return {"curvature": math.nan, "line": np.empty(0), "losses": np.empty(0)}
    assert own is not None
    curvature, coordinates = own.escape(made.ratios[-1], _share(made))
    if curvature >= 0:
        raise LandscapeError(f"nothing escapes: the lowest eigenvalue of K is {curvature:.3g}, so this split opens no way down. Try another ratio (--scan -1,2 shows them) or another unit.")  # fmt: skip
    last = made.layer.size + len(made.steps)
    columns, _ = directions(made.steps[-1].wide, made.layer.grown(last), made.unit, last - 1, made.ratios[-1], point)
    direction = torch.from_numpy(coordinates).to(point) @ columns

    def along(places: np.ndarray) -> np.ndarray:
        steps = torch.from_numpy(places).to(point)[:, None] * direction
        return np.asarray(wide(point + steps).double().cpu().numpy())

    # from where the quadratic model takes DROP off the loss, inwards, since higher terms may turn the loss up before: the line goes twice as far as the lowest of these
    far = min(math.sqrt(2 * DROP * abs(loss) / -curvature), float(point.norm())) * 0.5 ** np.arange(16)
    lowest = np.fmin(along(far), along(-far)).argmin()
    line = np.linspace(-1, 1, LINE) * 2 * far[lowest]
    line[LINE // 2] = 0
    values = along(line)
    return {"curvature": curvature, "line": line, "losses": values}
