"""Spectra of curvature at a point: the extreme eigenvalues with residuals and error bounds, and the density of all of them.

Letters: d coordinates of the objective, k eigenvalues, n counted values, P probes, m Lanczos steps, G grid points.

Eigenvalues: thick-restart Lanczos with full reorthogonalisation until each residual |A v - theta v| is below the tolerance; an eigenvalue of A lies within the residual.
Density: the whole search space of the eigenvalues, grown further, is counted, and stochastic Lanczos quadrature is done on its complement only
(`landscape.functionals.measure`). The counted values and the nodes are kept; the smooth curves are drawn from them with a width chosen from their spacing, and their mass is
checked, never imposed.

Sources: Ghorbani, Krishnan, Xiao 2019, algorithm 1 and section 2; Golub and Welsch 1969; Papyan 2019 (outliers apart from the bulk); Hutchinson 1990.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from landscape.errors import UsageError, unknown
from landscape.functionals import Measure, measure, standard_error, trace
from landscape.objectives import CURVATURES, Curvature, Objective, dtype_name, require_finite
from landscape.operators import MISSED, ROUNDING, Eigenpairs, SearchSpace, SymmetricOperator, Which
from landscape.results import Result
from landscape.seeds import generator
from landscape.subspaces import coordinates

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from plotly.graph_objects import Figure

    from landscape.masks import Mask

NAMES = {
    "hessian": "Hessian",
    "gauss-newton": "Gauss-Newton matrix",
    "fisher": "Monte-Carlo Fisher matrix",
    "empirical-fisher": "empirical Fisher matrix",
    "gradient-covariance": "uncentred gradient covariance",
}
Engine = Literal["native", "pyhessian"]
ENGINES: tuple[Engine, ...] = ("native", "pyhessian")


@dataclass(frozen=True, kw_only=True)
class Spectrum(Result):
    """Eigenvalues, and perhaps the density, of a curvature matrix at one point."""

    operator: str
    params: str  # globs of the parameters that move; empty for all of them
    dim: int  # d
    rows: int
    loss: float
    gradient_norm: float
    which: str
    values: np.ndarray  # (k,)
    residuals: np.ndarray  # (k,) an eigenvalue lies within this of each value
    bounds: (
        np.ndarray
    )  # (k,) error of each value, given that the gap to its neighbours is the one seen: min(residual, residual^2 / gap)
    converged: np.ndarray  # (k,) bool
    tolerance: float
    missed: float  # chance that a value that belongs to these is not among them, as a repeated one that the random starts did not see; NaN where not checked
    products: int
    counted: np.ndarray  # (n,) values counted one by one in the density; empty where no density was asked for, likewise below, and NaN for numbers
    nodes: (
        np.ndarray
    )  # (P, m) of the rest, NaN where a probe ended early; empty too where every eigenvalue was computed
    weights: np.ndarray  # (P, m), each row sums to 1
    leak: float  # nuclear norm of what couples the counted space to the rest; see landscape.operators.Deflation
    accuracy: float  # estimated Wasserstein-1 distance to the true spectrum, in units of the mean |eigenvalue|
    grid: np.ndarray  # (G,)
    density: np.ndarray  # (G,) per unit eigenvalue, mean over probes
    density_error: np.ndarray  # (G,) standard error over probes
    width: float  # least standard deviation of the smoothing Gaussians
    mass: float  # integral of the smooth curve over the grid: 1 up to the grid's error
    decades: np.ndarray  # (G',) log10 |eigenvalue|, from `zero` up
    positive_density: np.ndarray  # (G',) share of eigenvalues per decade, those above `zero`
    positive_density_error: np.ndarray  # (G',)
    negative_density: np.ndarray  # (G',) those below -zero
    negative_density_error: np.ndarray  # (G',)
    trace: float
    trace_error: float  # standard error over probes
    trace_check: float  # the same by Hutchinson's estimator with probes of its own; NaN where the trace is exact
    trace_check_error: float
    square: float  # sum of squares of the eigenvalues, the squared Frobenius norm
    square_error: float
    zero: float  # what products of this precision cannot tell from 0: 100 eps max |eigenvalue|
    negative: float  # share of eigenvalues below -zero
    negative_error: float  # standard error over probes, plus the weight of the quadrature node at the threshold, which bounds the rule's own error
    positive: float  # share above zero; the rest, 1 - negative - positive, lies within
    positive_error: float
    unpruned: int = 0  # of a pruned network: parameters before it was pruned, those of other names than `params` apart; 0 where nothing was, likewise below
    survivors: int = 0  # of these, what is left; d is this, or `unpruned` where the pruned ones were taken along

    @property
    def has_density(self) -> bool:
        """Whether the density was asked for."""
        return self.grid.size > 0

    def measure(self) -> Measure:
        """The spectral measure behind the curves, ready for any average over the spectrum: `.effective_dimension(z)`, `.log_determinant(z)`, `.moment(p)`."""
        return Measure(self.dim, self.counted, self.nodes, self.weights, self.leak, self.products)

    def summary(self) -> str:
        """See Result."""
        shown = ", ".join(f"{value:.4g}" for value in self.values[:3])
        end = {"largest": "top", "smallest": "lowest", "both": "extreme", "magnitude": "largest in size"}[self.which]
        line = f"{self._name()}{self._among() or f', {self.dim:,} dimensions'}: {end} {len(self.values)} eigenvalues {shown}{', ...' if len(self.values) > 3 else ''}"
        line += f" (residuals at most {self.residuals.max():.1e}, {self.products} products)"
        if self.has_density:
            line += f"; trace {_with_error(self.trace, self.trace_error)}; {self._negative_share()}"
        return line + "."

    def caption(self) -> str:
        """See Result."""
        text = (
            f"Eigenvalues of the {self._name()} of the mean loss over {self.rows:,} rows{self._among()}, at loss {self.loss:.4g} with gradient norm {self.gradient_norm:.2g}. "
            "Each eigenvalue comes with the residual of its vector: a true eigenvalue lies within it. "
        )
        if np.isfinite(self.missed):
            text += f"Chance that a value which belongs to these was missed: {100 * self.missed:.2g}%. "
        if self.has_density:
            text += f"The density counts {len(self.counted)} eigenvalues one by one"
            if len(self.nodes):
                probes, steps = self.nodes.shape
                text += f"; the rest is the mean over {probes} random probes of {steps} Lanczos steps, and the band is ± 2 standard errors"
            text += (
                f". Estimated distance to the true spectrum (Wasserstein 1): {self.accuracy:.2g} of the mean |λ|. Ticks mark the {len(self.values)} eigenvalues asked for. "
                f"Each point is smoothed by a Gaussian as wide as the spacing there, at least {self.width:.2g}. Mass of the curve: {self.mass:.4f}. "
            )
            if np.isfinite(self.trace_check):
                text += f"Trace {_with_error(self.trace, self.trace_error)}; by Hutchinson's estimator with probes of its own {_with_error(self.trace_check, self.trace_check_error)}. "
            text += (
                f"Below {-self.zero:.1g} lie {100 * self.negative:.0f}% ± {100 * self.negative_error:.0f}% of the eigenvalues, above {self.zero:.1g} {100 * self.positive:.0f}% ± "
                f"{100 * self.positive_error:.0f}%; nearer to 0 products of this precision have no sign."
            )
        return text

    def table(self) -> list[tuple[str, ...]]:
        """See Result."""
        rows = zip(self.values, self.residuals, self.bounds, self.converged, strict=True)
        numbered = [
            (str(i), f"{value:.9g}", f"{residual:.1e}", f"{bound:.1e}", "yes" if done else "no")
            for i, (value, residual, bound, done) in enumerate(rows, 1)
        ]
        return [("number", "eigenvalue", "residual", "error bound", "converged"), *numbered]

    def panels(self) -> tuple[str, ...]:
        """See Result."""
        return ("density", "magnitude", "eigenvalues") if self.has_density else ("eigenvalues",)

    def plot(self, ax: Axes, panel: str = "") -> None:
        """See Result."""
        {"density": self._plot_density, "magnitude": self._plot_magnitude, "eigenvalues": self._plot_values}[
            panel or self.panels()[0]
        ](ax)

    def _plot_density(self, ax: Axes) -> None:
        from landscape.analysis.styles import BLUE, GREY, VERMILION

        floor = self._floor()
        low, high = (np.maximum(self.density + sign * 2 * self.density_error, floor) for sign in (-1, 1))
        ax.fill_between(self.grid, low, high, color=BLUE, alpha=0.25, linewidth=0)
        ax.plot(self.grid, np.maximum(self.density, floor), color=BLUE)
        ax.plot(
            self.values,
            np.full(len(self.values), floor * 1.6),
            "|",
            color=VERMILION,
            markersize=9,
            markeredgewidth=1.4,
            label=f"the {len(self.values)} eigenvalues asked for",
        )
        ax.set_yscale("log")
        if np.isfinite(floor) and np.isfinite(self.density).any():
            ax.set_ylim(floor, np.nanmax(self.density) * 4)
        ax.axvline(0, color=GREY, linewidth=0.6, zorder=0)
        ax.set_xlabel("eigenvalue λ")
        ax.set_ylabel("density (share of eigenvalues per unit λ)")
        ax.legend(loc="upper right")
        ax.set_title(f"Spectral density of the {NAMES[self.operator]}", loc="left")

    def _plot_magnitude(self, ax: Axes) -> None:
        from landscape.analysis.styles import BLUE, VERMILION

        floor = 0.3 / self.dim
        top = floor
        for curve, error, colour, dash, name in (
            (self.positive_density, self.positive_density_error, BLUE, "-", "λ > 0"),
            (self.negative_density, self.negative_density_error, VERMILION, "--", "λ < 0"),
        ):
            if not (curve > floor).any():
                continue
            low, high = (np.maximum(curve + sign * 2 * error, floor) for sign in (-1, 1))
            ax.fill_between(10**self.decades, low, high, color=colour, alpha=0.2, linewidth=0)
            ax.plot(10**self.decades, np.maximum(curve, floor), dash, color=colour, label=name)
            top = max(top, float(np.nanmax(curve)))
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_ylim(floor, top * 6)
        near = 1 - self.negative - self.positive
        ax.set_xlabel("|eigenvalue|")
        ax.set_ylabel("share of eigenvalues per decade")
        if top > floor:
            ax.legend(loc="upper right")
        ax.set_title(f"By size; within ±{self.zero:.0e} lie {100 * max(near, 0):.0f}%", loc="left")

    def _plot_values(self, ax: Axes) -> None:
        from matplotlib.ticker import MaxNLocator

        from landscape.analysis.styles import BLUE, GREY, VERMILION

        place = np.arange(1, len(self.values) + 1)
        ax.errorbar(
            place,
            self.values,
            yerr=self.residuals,
            fmt="o-",
            color=BLUE,
            markersize=4,
            linewidth=1,
            capsize=2,
            label="eigenvalue ± residual",
        )
        for x, value in zip(place[~self.converged], self.values[~self.converged], strict=True):
            ax.plot(x, value, "x", color=VERMILION, markersize=9)
        ax.axhline(0, color=GREY, linewidth=0.6, zorder=0)
        ax.set_xlabel("number, as ordered")
        ax.set_ylabel("eigenvalue λ")
        ax.set_xlim(0.5, len(self.values) + 0.5)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.legend(loc="best")
        ax.set_title(f"{self.which.capitalize()} eigenvalues", loc="left")

    def figure(self) -> Figure:
        """See Result."""
        import plotly.graph_objects as go

        from landscape.analysis.styles import BLUE, VERMILION, interactive

        figure = go.Figure()
        if not self.has_density:
            bars = {"type": "data", "array": self.residuals}
            figure.add_scatter(
                x=np.arange(1, len(self.values) + 1),
                y=self.values,
                error_y=bars,
                mode="lines+markers",
                line_color=BLUE,
                name="eigenvalue ± residual",
            )
            return interactive(figure, x="number, as ordered", y="eigenvalue")
        floor = self._floor()
        high, low = (np.maximum(self.density + sign * 2 * self.density_error, floor) for sign in (1, -1))
        figure.add_scatter(x=self.grid, y=high, mode="lines", line_width=0, hoverinfo="skip", showlegend=False)
        figure.add_scatter(
            x=self.grid,
            y=low,
            mode="lines",
            line_width=0,
            fill="tonexty",
            fillcolor="rgba(0,114,178,.25)",
            hoverinfo="skip",
            name="± 2 standard errors",
        )
        figure.add_scatter(
            x=self.grid, y=np.maximum(self.density, floor), mode="lines", line_color=BLUE, name="density"
        )
        text = [
            f"λ<sub>{i + 1}</sub> = {value:.6g}<br>residual {residual:.1e}"
            for i, (value, residual) in enumerate(zip(self.values, self.residuals, strict=True))
        ]
        figure.add_scatter(
            x=self.values,
            y=np.full(len(self.values), floor * 1.5),
            mode="markers",
            marker={"symbol": "line-ns-open", "size": 14, "color": VERMILION, "line": {"width": 2}},
            text=text,
            hoverinfo="text",
            name="eigenvalues one by one",
        )
        interactive(figure, x="eigenvalue", y="density")
        figure.update_yaxes(type="log")
        if np.isfinite(floor) and np.isfinite(self.density).any():
            figure.update_yaxes(range=[np.log10(floor), np.log10(np.nanmax(self.density) * 4)])
        return figure

    def _name(self) -> str:
        return NAMES[self.operator] + (f" in the parameters {self.params}" if self.params else "")

    def _among(self) -> str:
        """Which parameters of a pruned network the matrix is of; nothing where nothing was pruned."""
        if not self.unpruned:
            return ""
        if self.dim == self.survivors:
            return f", among the {self.survivors:,} survivors of {self.unpruned:,}"
        return f", of all {self.unpruned:,}, the {self.unpruned - self.survivors:,} pruned ones included"

    def _negative_share(self) -> str:
        """The share below zero in words. A bulk at 0 is one quadrature node, whose sign no finite number of Lanczos steps tells."""
        if self.negative_error > 0.1:
            return f"the sign of up to {100 * self.negative_error:.0f}% of the eigenvalues, a bulk around 0, is not resolved"
        share = f"{100 * self.negative:.1f}% ± {100 * self.negative_error:.1f}%"
        return f"{share} of the eigenvalues below {-self.zero:.1g}"

    def _floor(self) -> float:
        """Lowest density drawn: a tenth of one eigenvalue's bump."""
        return float(0.1 / (self.dim * self.width * np.sqrt(2 * np.pi)))


def spectrum(
    f: Objective,
    z: Tensor,
    *,
    top: int = 10,
    operator: Curvature = "hessian",
    params: str | None = None,
    mask: Mask | None = None,
    whole: bool = False,
    which: Which = "largest",
    density: bool = False,
    accuracy: float | None = None,
    counted: int | None = None,
    probes: int | None = None,
    steps: int | None = None,
    tolerance: float = 1e-4,
    max_products: int = 500,
    basis: int | None = None,
    host: bool = False,
    engine: Engine = "native",
    samples: int = 1,
    seed: int = 0,
) -> Spectrum:
    """The `top` eigenvalues of a curvature matrix of f at z (d,), and on request the density.

    operator: one of landscape.objectives.CURVATURES. In a subspace: restrict f first (`f.restrict(subspace)`).
    params: globs of parameter names, to move these only.
    mask: what survives of a pruned network, to move these only: the matrix restricted to their axial subspace (Paul et al. 2023). whole: it is of all parameters all the same, and that is told.
    accuracy: of the density, adaptive: 0.05 is a Wasserstein-1 distance of 5% of the mean |eigenvalue|, and the default where none of the next three is given. Where a few outliers hold
    nearly all of that mean, it says little of the bulk: ask for less.
    counted, probes, steps: fixed numbers instead; see `landscape.functionals.measure`.
    tolerance, basis, host: as `landscape.operators.eigenpairs`. max_products: of the eigenvalues; a density takes at most four times as many.
    samples: labels drawn a row, of `fisher`.
    engine: `pyhessian` asks PyHessian for the same eigenvalues; their residuals are by our own products.

    Raises UsageError on options out of range, LandscapeError where the point or a product is not finite.
    """
    if operator not in CURVATURES:
        raise unknown("operator", operator, CURVATURES)
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    require_finite(z, "the point")
    unpruned = survivors = 0
    if mask is not None:
        chosen = f.model.layout.select("*" if params is None else params)
        kept = mask.kept & chosen
        if kept.sum() < chosen.sum():
            unpruned, survivors = int(chosen.sum()), int(kept.sum())
    if survivors < unpruned and not whole:
        if not survivors:
            raise UsageError(f"nothing of the parameters {params or '*'} survived the pruning. Name others, or take the pruned ones too (--whole).")  # fmt: skip
        places = torch.from_numpy(kept).to(z.device)
        f, z = f.restrict(coordinates(z, places)), z[places]
    elif params is not None:
        f, z = f.among(z, params)
    least = ROUNDING * torch.finfo(f.dtype).eps
    asked, tolerance = tolerance, max(tolerance, least)
    matrix = f.curvature(z, operator, samples=samples, seed=seed)
    space = SearchSpace(
        matrix,
        min(top, f.dim) if top > 0 else top,
        generator=generator(seed, "lanczos"),
        which=which,
        basis=basis,
        host=host,
    )
    notes = []
    if asked < tolerance:
        notes.append(
            f"the tolerance {asked:g} was raised to {tolerance:.2g}: products in {dtype_name(f.dtype)} carry no more. Use --dtype float64 for less."
        )
    if engine == "native":
        space.converge(tolerance=tolerance, max_products=max_products, missed=MISSED)
        pairs, products = space.pairs(), space.products
        if pairs.converged.all() and pairs.missed > MISSED:
            notes.append(
                f"a repeated eigenvalue could have been missed with a chance of {100 * pairs.missed:.0f}%, more than {100 * MISSED:.0f}%: products or room ran out. Raise --max-products or --basis."
            )
    else:
        if density or operator != "hessian" or which != "magnitude":
            raise UsageError(
                "the engine pyhessian answers one question: the eigenvalues of the hessian that are largest in size (which='magnitude'), without a density "
                "(its release 0.1 calls torch.eig, which torch 2 has no more)."
            )
        pairs = _pyhessian(f, z, matrix, min(top, f.dim), tolerance, max_products, seed)
        products = pairs.products
    if not pairs.converged.all():
        notes.append(
            f"{int((~pairs.converged).sum())} of {len(pairs.values)} eigenvalues did not reach the tolerance {tolerance:g} in {pairs.products} products: raise --max-products."
        )
    if top > f.dim:
        notes.append(f"asked for {top} eigenvalues of a {f.dim}-dimensional matrix: all {f.dim} are given.")
    if skew := asymmetry(matrix, seed):
        notes.append(skew)
    if operator == "fisher" and f.dim:
        first = pairs.vectors[0]
        other = float(first @ (f.curvature(z, operator, samples=samples, seed=seed + 1) @ first))
        notes.append(
            f"the labels of the Fisher matrix are drawn {samples} time{'s' * (samples > 1)} a row: along the first eigenvector another draw has {other:.4g} in place of {pairs.values[0]:.4g}. "
            "More --samples bring both to the Gauss-Newton matrix, their mean for these losses."
        )
    loss, gradient = f.value_and_gradient(z)
    again = float(f(z))
    if abs(again - float(loss)) > 1e3 * torch.finfo(f.dtype).eps * max(abs(again), torch.finfo(f.dtype).tiny):
        notes.append(
            f"two passes over the data give the losses {float(loss):.9g} and {again:.9g}: the model or the data draw random numbers. Every number here is of one such draw."
        )
    curve = _NO_DENSITY
    if density:
        plan = (counted, probes, steps)
        if accuracy is None and plan == (None, None, None):
            accuracy = 0.05
        found = measure(
            matrix,
            space=space,
            counted=counted,
            probes=probes,
            steps=steps,
            accuracy=accuracy,
            max_products=4 * max_products,
            seed=seed,
        )
        products = space.products + found.products
        curve = _density(found, pairs.values, 100 * torch.finfo(f.dtype).eps)
        if found.nodes.size:
            check = trace(matrix, max_products=max(found.products // 4, 8), seed=seed)
            products += check.products
            curve |= {"trace_check": check.value, "trace_check_error": check.error}
            apart = abs(check.value - curve["trace"])
            if apart > 5 * np.hypot(check.error, curve["trace_error"]):
                notes.append(
                    f"the trace by quadrature, {curve['trace']:.5g}, and by Hutchinson's estimator, {check.value:.5g}, differ by more than five standard errors: raise --accuracy."
                )
        if abs(curve["mass"] - 1) > 0.01:
            notes.append(
                f"the smooth density has mass {curve['mass']:.3f}, not 1: its grid misses some of the spectrum."
            )
        if accuracy is not None and curve["accuracy"] > accuracy:
            notes.append(
                f"the density reached an accuracy of {curve['accuracy']:.2g}, not {accuracy:g}, in {products} products: raise --max-products."
            )
    return Spectrum(
        question={},
        provenance={
            "seed": seed,
            "dtype": dtype_name(f.dtype),
            "device": f.device.type,
            "norm": f.norm,
            "engine": engine,
        },
        warnings=(*matrix.notes, *notes),
        operator=operator,
        params=params or "",
        dim=f.dim,
        rows=len(f.rows),
        loss=float(loss),
        gradient_norm=float(gradient.norm()),
        which=which,
        values=pairs.values,
        residuals=pairs.residuals,
        bounds=pairs.bounds,
        converged=pairs.converged,
        tolerance=tolerance,
        missed=pairs.missed,
        products=products,
        unpruned=unpruned,
        survivors=survivors,
        **curve,
    )


def asymmetry(matrix: SymmetricOperator, seed: int) -> str:
    """A warning where products of a matrix are not symmetric, else nothing. It costs two of them."""
    found = matrix.asymmetry(generator(seed, "symmetry"))
    # products agree to rounding times the depth of the sums; a hundredfold is no rounding
    if found <= 1e4 * torch.finfo(matrix.dtype).eps:
        return ""
    return (
        f"products are not symmetric (relative difference {found:.1e}): the loss is not twice differentiable here, a layer's second derivative is wrong, or the data differ between passes. "
        "These numbers are not to be trusted."
    )


_EMPTY, _NAN = np.empty(0), float("nan")
_NO_DENSITY: dict[str, Any] = {
    "nodes": _EMPTY.reshape(0, 0),
    "weights": _EMPTY.reshape(0, 0),
    **dict.fromkeys(
        (
            "counted", "grid", "density", "density_error", "decades",
            "positive_density", "positive_density_error", "negative_density", "negative_density_error",
        ),
        _EMPTY,
    ),
    **dict.fromkeys(
        (
            "leak", "accuracy", "width", "mass", "trace", "trace_error", "trace_check", "trace_check_error", "square", "square_error",
            "zero", "negative", "negative_error", "positive", "positive_error",
        ),
        _NAN,
    ),
}  # fmt: skip

# a 1/200 of the range, and a 1/20 of a decade: as fine as a page shows; the nodes are stored for whoever wants another
FINEST, FINEST_DECADE = 1 / 200, 1 / 20


def _density(found: Measure, known: np.ndarray, precision: float) -> dict[str, Any]:
    """The fields of a Spectrum that tell of its density; `known` eigenvalues lie on the grid too."""
    points = np.concatenate([found.values, found.nodes[found.weights > 0], known])
    low, high = float(points.min()), float(points.max())
    size = max(abs(low), abs(high))
    zero = max(precision * size, float(np.finfo(float).tiny))  # of a zero matrix no eigenvalue has a sign
    width = max(high - low, 1e-12 * max(size, 1.0)) * FINEST
    grid = np.linspace(low - 5 * width, high + 5 * width, 2001)
    mean, error = curve(found, grid, width, lambda x: x)
    decades = np.linspace(np.log10(zero), np.log10(size) + 0.3, 601) if size > 0 else _EMPTY
    parts: dict[str, np.ndarray] = {}
    for name, sign in (("positive", 1), ("negative", -1)):
        # eigenvalues of the other sign, and those of none, are put below the axis
        bent = [_EMPTY, _EMPTY]
        if size > 0:
            bent = list(curve(found, decades, FINEST_DECADE, decade(sign, zero)))
        parts |= {f"{name}_density": bent[0], f"{name}_density_error": bent[1]}
    whole, square = found.trace(), found.moment(2)
    below, above = found.share(-np.inf, -zero), found.share(zero, np.inf)
    return {
        "counted": found.values,
        "nodes": found.nodes,
        "weights": found.weights,
        "leak": found.leak,
        "accuracy": found.error(),
        "grid": grid,
        "density": mean,
        "density_error": error,
        "width": width,
        "mass": float(np.trapezoid(mean, grid)),
        "decades": decades,
        **parts,
        "trace": whole.value,
        "trace_error": whole.error,
        "trace_check": _NAN,
        "trace_check_error": _NAN,
        "square": square.value * found.dim,
        "square_error": square.error * found.dim,
        "zero": zero,
        "negative": below.value,
        "negative_error": below.error,
        "positive": above.value,
        "positive_error": above.error,
    }


def decade(sign: int, zero: float) -> Any:
    """The coordinate log10 |lambda| of eigenvalues of one sign beyond `zero`; NaN of the others."""

    def transform(x: np.ndarray) -> np.ndarray:
        seen = sign * x > zero
        return np.where(seen, np.log10(np.where(seen, np.abs(x), 1.0)), np.nan)

    return transform


def curve(found: Measure, grid: np.ndarray, width: float, transform: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean over probes (G,), and its standard error, of the measure smoothed in the coordinate transform(lambda), NaN where a point has none.

    A node stands for the interval up to its neighbours, so its Gaussian is half as wide as their mean distance, at least `width`; that of a counted value is as wide as `width`.
    """
    counted = _bumps(found.values, np.full(len(found.values), 1 / found.dim), grid, width, transform, width)
    if not len(found.nodes):
        return counted, np.zeros_like(counted)
    curves = np.array(
        [
            _bumps(nodes[weights > 0], found.rest * weights[weights > 0], grid, width, transform, np.inf)
            for nodes, weights in zip(found.nodes, found.weights, strict=True)
        ]
    )
    return counted + curves.mean(axis=0), standard_error(curves)


def _bumps(
    points: np.ndarray, masses: np.ndarray, grid: np.ndarray, width: float, transform: Any, widest: float
) -> np.ndarray:
    places = transform(points)
    seen = np.isfinite(places)
    order = np.argsort(places[seen])
    places, masses = places[seen][order], masses[seen][order]
    if not len(places):
        return np.zeros_like(grid)
    gaps = np.diff(places)
    around = (np.append(gaps[:1], gaps) + np.append(gaps, gaps[-1:])) / 2 if len(gaps) else np.zeros(1)
    widths = np.clip(around / 2, width, max(widest, width))
    curve = np.zeros_like(grid)
    for place, mass, spread in zip(places, masses, widths, strict=True):
        near = slice(*np.searchsorted(grid, (place - 8 * spread, place + 8 * spread)))
        curve[near] += mass * np.exp(-0.5 * ((grid[near] - place) / spread) ** 2) / (spread * np.sqrt(2 * np.pi))
    return curve


def _with_error(value: float, error: float) -> str:
    return f"{value:.4g} ± {error:.2g}"


def _pyhessian(
    f: Objective, z: Tensor, matrix: SymmetricOperator, top: int, tolerance: float, most: int, seed: int
) -> Eigenpairs:
    """The same question put to PyHessian (Yao et al. 2020): power iteration with deflation on the user's module. Residuals are by our products."""
    import contextlib
    import importlib
    import io
    import warnings

    from landscape.seeds import global_stream

    if f.charts:
        raise UsageError(
            "PyHessian takes whole models only: leave the restriction to some parameters out, and of a pruned network take all (--whole)."
        )
    if f.norm != "eval" or not isinstance(f.rows.inputs, Tensor):
        raise UsageError("PyHessian takes one tensor of inputs and a model in evaluation mode.")
    peer: Any = importlib.import_module(
        "pyhessian.hessian"
    )  # the package hides its module behind the class of that name
    taken = 0
    original = peer.hessian_vector_product

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal taken
        taken += 1
        return original(*args, **kwargs)

    peer.hessian_vector_product = counted
    try:
        with global_stream(seed, "pyhessian"), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its way to build graphs
            asked = peer.hessian(
                f.module(z), f.loss.mean, data=(f.rows.inputs, f.rows.targets), cuda=f.device.type == "cuda"
            )
            values, vectors = asked.eigenvalues(maxIter=max(most // top, 1), tol=tolerance, top_n=top)
    finally:
        peer.hessian_vector_product = original
    rows = torch.stack([torch.cat([part.detach().reshape(-1) for part in vector]) for vector in vectors])
    images = (matrix @ rows.T).T
    theta = np.array(values, dtype=float)
    residuals = (images - rows * torch.from_numpy(theta).to(rows)[:, None]).norm(dim=1).double().cpu().numpy()
    return Eigenpairs(
        theta,
        rows,
        residuals,
        residuals,
        residuals <= tolerance * np.abs(theta).max(),
        taken,
        float("nan"),
        float("nan"),
    )
