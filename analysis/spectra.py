"""Spectra of curvature at a point: the top eigenvalues with their residuals, and the density of all of them.

Letters: d coordinates of the objective, k eigenvalues, P probes, m Lanczos steps, G grid points.

Top eigenvalues: Lanczos with full reorthogonalisation until each residual |A v - theta v| is below the tolerance; an eigenvalue of A lies within the residual.
Density: stochastic Lanczos quadrature. Probe p gives the discrete measure mu_p = sum_i weight_pi delta(node_pi) of mass 1, exact to degree 2m - 1 for the
spectral measure of its start vector; the mean over Gaussian probes estimates (1/d) sum_j delta(lambda_j), and its spread over probes gives the error bars.
The nodes are kept; the smooth curve is their convolution with a Gaussian, and its mass is checked, never imposed.

Sources: Ghorbani, Krishnan, Xiao 2019, algorithm 1 and section 2; Golub and Welsch 1969; Hutchinson 1990 (trace from the first moment).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from landscape.errors import UsageError, unknown
from landscape.objectives import Objective, dtype_name, require_finite
from landscape.operators import Quadrature, Which, eigenpairs, quadrature
from landscape.results import Result
from landscape.seeds import generator

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from plotly.graph_objects import Figure

NAMES = {"hessian": "Hessian", "gauss-newton": "Gauss-Newton matrix"}
OPERATORS = tuple(NAMES)


@dataclass(frozen=True, kw_only=True)
class Spectrum(Result):
    """Eigenvalues, and perhaps the density, of a curvature matrix at one point."""

    operator: str
    dim: int  # d
    rows: int
    loss: float
    gradient_norm: float
    which: str
    values: np.ndarray  # (k,)
    residuals: np.ndarray  # (k,)
    converged: np.ndarray  # (k,) bool
    tolerance: float
    products: int
    nodes: np.ndarray  # (P, m), NaN where a probe ended early; empty where no density was asked for, likewise below, and NaN for numbers
    weights: np.ndarray  # (P, m), each row sums to 1
    grid: np.ndarray  # (G,)
    density: np.ndarray  # (G,) per unit eigenvalue, mean over probes
    density_error: np.ndarray  # (G,) standard error over probes
    width: float  # standard deviation of the smoothing Gaussian
    mass: float  # integral of the smooth curve over the grid: 1 up to the grid's error
    trace: float
    trace_error: float  # standard error over probes
    zero: float  # what products of this precision cannot tell from 0: 100 eps max |eigenvalue|
    negative: float  # share of eigenvalues below -zero
    negative_error: float  # standard error over probes, plus the weight of the quadrature node at the threshold, which bounds the rule's own error

    @property
    def has_density(self) -> bool:
        """Whether the density was asked for."""
        return self.grid.size > 0

    def summary(self) -> str:
        """See Result."""
        shown = ", ".join(f"{value:.4g}" for value in self.values[:3])
        end = {"largest": "top", "smallest": "lowest", "both": "extreme", "magnitude": "largest in size"}[self.which]
        line = f"{NAMES[self.operator]}, {self.dim:,} dimensions: {end} {len(self.values)} eigenvalues {shown}{', ...' if len(self.values) > 3 else ''}"
        line += f" (residuals at most {self.residuals.max():.1e}, {self.products} products)"
        if self.has_density:
            line += f"; trace {_with_error(self.trace, self.trace_error)}; {self._negative_share()}"
        return line + "."

    def caption(self) -> str:
        """See Result."""
        text = (
            f"Eigenvalues of the {NAMES[self.operator]} of the mean loss over {self.rows:,} rows, at loss {self.loss:.4g} with gradient norm {self.gradient_norm:.2g}. "
            "Each eigenvalue comes with the residual of its vector: a true eigenvalue lies within it. "
        )
        if self.has_density:
            probes, steps = self.nodes.shape
            text += (
                f"The density is the mean over {probes} random probes of {steps} Lanczos steps; the band is ± 2 standard errors; ticks mark the eigenvalues counted one by one. "
                f"It is smoothed by a Gaussian of width {self.width:.2g}; a bump of height {1 / self.dim:.1e} times the peak of that Gaussian is one eigenvalue. Mass of the curve: {self.mass:.4f}. "
                f"Below {-self.zero:.1g} lie {100 * self.negative:.0f}% ± {100 * self.negative_error:.0f}% of the eigenvalues; nearer to 0 products of this precision have no "
                "sign, and a bulk at 0 is known only to the weight of one quadrature node, which the error contains."
            )
        return text

    def table(self) -> list[tuple[str, ...]]:
        """See Result."""
        rows = zip(self.values, self.residuals, self.converged, strict=True)
        numbered = [
            (str(i), f"{value:.9g}", f"{residual:.1e}", "yes" if done else "no")
            for i, (value, residual, done) in enumerate(rows, 1)
        ]
        return [("number", "eigenvalue", "residual", "converged"), *numbered]

    def panels(self) -> tuple[str, ...]:
        """See Result."""
        return ("density", "eigenvalues") if self.has_density else ("eigenvalues",)

    def plot(self, ax: Axes, panel: str = "") -> None:
        """See Result."""
        from matplotlib.ticker import MaxNLocator

        from landscape.analysis.styles import BLUE, GREY, VERMILION

        panel = panel or self.panels()[0]
        if panel == "density":
            floor = self._floor()
            ax.fill_between(
                self.grid,
                np.maximum(self.density - 2 * self.density_error, floor),
                np.maximum(self.density + 2 * self.density_error, floor),
                color=BLUE,
                alpha=0.25,
                linewidth=0,
            )
            ax.plot(self.grid, np.maximum(self.density, floor), color=BLUE)
            ax.plot(
                self.values,
                np.full(len(self.values), floor * 1.6),
                "|",
                color=VERMILION,
                markersize=9,
                markeredgewidth=1.4,
                label=f"the {len(self.values)} eigenvalues computed one by one",
            )
            ax.set_yscale("log")
            if np.isfinite(floor) and np.isfinite(self.density).any():
                ax.set_ylim(floor, np.nanmax(self.density) * 4)
            ax.axvline(0, color=GREY, linewidth=0.6, zorder=0)
            ax.set_xlabel("eigenvalue λ")
            ax.set_ylabel("density (share of eigenvalues per unit λ)")
            ax.legend(loc="upper right")
            ax.set_title(f"Spectral density of the {NAMES[self.operator]}", loc="left")
        else:
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

    def _negative_share(self) -> str:
        """The share below zero in words. A bulk at 0 is one quadrature node, whose sign no finite number of Lanczos steps tells."""
        if self.negative_error > 0.1:
            return f"the sign of {100 * self.negative_error:.0f}% of the eigenvalues, a bulk at 0, is not resolved"
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
    operator: str = "hessian",
    which: Which = "largest",
    density: bool = False,
    probes: int = 10,
    steps: int = 80,
    tolerance: float = 1e-4,
    max_products: int = 500,
    seed: int = 0,
) -> Spectrum:
    """The `top` eigenvalues of the Hessian or Gauss-Newton matrix of f at z (d,), and on request the density.

    probes, steps: 10 probes of 80 Lanczos steps, as Ghorbani et al. 2019 (section 2.2: 90 steps suffice in double precision; 10 draws for the figures).
    tolerance, max_products: as `landscape.operators.eigenpairs`.

    Raises UsageError on options out of range, LandscapeError where the point or a product is not finite.
    """
    if operator not in OPERATORS:
        raise unknown("operator", operator, OPERATORS)
    if density and (probes < 2 or steps < 2):
        raise UsageError(f"a density with error bars needs at least 2 probes and 2 steps; got {probes} and {steps}.")
    require_finite(z, "the point")
    matrix = f.hessian(z) if operator == "hessian" else f.gauss_newton(z)
    pairs = eigenpairs(
        matrix, top, generator=generator(seed, "lanczos"), which=which, tolerance=tolerance, steps=max_products
    )
    notes = []
    if not pairs.converged.all():
        notes.append(
            f"{int((~pairs.converged).sum())} of {len(pairs.values)} eigenvalues did not reach the tolerance {tolerance:g} in {pairs.products} products: raise --max-products."
        )
    if top > f.dim:
        notes.append(f"asked for {top} eigenvalues of a {f.dim}-dimensional matrix: all {f.dim} are given.")
    asymmetry = matrix.asymmetry(generator(seed, "symmetry"))
    # products agree to rounding times the depth of the sums; a hundredfold is no rounding
    if asymmetry > 1e4 * torch.finfo(f.dtype).eps:
        notes.append(
            f"products are not symmetric (relative difference {asymmetry:.1e}): the loss is not twice differentiable here, or the data differ between passes."
        )
    loss, gradient = f.value_and_gradient(z)
    curve, products = _NO_DENSITY, pairs.products
    if density:
        rule = quadrature(
            matrix, probes=probes, steps=steps, generators=[generator(seed, "probe", p) for p in range(probes)]
        )
        products += rule.products
        curve = _density(f.dim, rule, pairs.values, 100 * torch.finfo(f.dtype).eps)
        if abs(curve["mass"] - 1) > 0.01:
            notes.append(
                f"the smooth density has mass {curve['mass']:.3f}, not 1: its grid misses some of the spectrum."
            )
    return Spectrum(
        question={},
        provenance={
            "seed": seed,
            "dtype": dtype_name(f.dtype),
            "device": f.device.type,
            "norm": f.norm,
        },
        warnings=tuple(notes),
        operator=operator,
        dim=f.dim,
        rows=len(f.rows),
        loss=float(loss),
        gradient_norm=float(gradient.norm()),
        which=which,
        values=pairs.values,
        residuals=pairs.residuals,
        converged=pairs.converged,
        tolerance=tolerance,
        products=products,
        **curve,
    )


_EMPTY, _NAN = np.empty(0), float("nan")
_NO_DENSITY: dict[str, Any] = {
    "nodes": _EMPTY.reshape(0, 0),
    "weights": _EMPTY.reshape(0, 0),
    **dict.fromkeys(("grid", "density", "density_error"), _EMPTY),
    **dict.fromkeys(("width", "mass", "trace", "trace_error", "zero", "negative", "negative_error"), _NAN),
}


def _density(dim: int, rule: Quadrature, known: np.ndarray, precision: float) -> dict[str, Any]:
    """The fields of a Spectrum that tell of its density; `known` eigenvalues lie on the grid too."""
    nodes, weights = rule.nodes, rule.weights
    low, high = (float(pick([np.nanmin(nodes), np.nanmax(nodes), *known])) for pick in (min, max))
    span = max(high - low, 1e-12 * max(abs(high), abs(low), 1.0))
    # a 1/200 of the range: as fine as a page shows; the nodes are stored for whoever wants another
    width = span / 200
    grid = np.linspace(low - 5 * width, high + 5 * width, 2001)
    bumps = np.exp(-0.5 * ((grid[:, None, None] - np.nan_to_num(nodes, nan=np.inf)) / width) ** 2) / (
        width * np.sqrt(2 * np.pi)
    )
    curves = np.einsum("gpm,pm->pg", bumps, weights)
    filled = np.nan_to_num(nodes)
    zero = precision * max(abs(low), abs(high))
    below, below_error = map(float, _mean(np.sum(weights * (filled < -zero), axis=1)))
    # Chebyshev, Markov, Stieltjes: a Gauss rule's distribution function is off by at most the weight of the node where it is asked
    nearest = np.argmin(np.where(weights > 0, np.abs(filled + zero), np.inf), axis=1)
    below_error += float(np.take_along_axis(weights, nearest[:, None], axis=1).mean())
    mean, mean_error = map(float, _mean(np.sum(weights * filled, axis=1)))
    mean_curve, error_curve = _mean(curves)
    return {
        "nodes": nodes,
        "weights": weights,
        "grid": grid,
        "density": mean_curve,
        "density_error": error_curve,
        "width": width,
        "mass": float(np.trapezoid(mean_curve, grid)),
        "trace": mean * dim,
        "trace_error": mean_error * dim,
        "zero": zero,
        "negative": below,
        "negative_error": below_error,
    }


def _mean(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over probes and its standard error."""
    return samples.mean(axis=0), samples.std(axis=0, ddof=1) / np.sqrt(len(samples))


def _with_error(value: float, error: float) -> str:
    return f"{value:.4g} ± {error:.2g}"
