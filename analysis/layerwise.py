"""Curvature layer by layer: the diagonal blocks of a curvature matrix, one a layer, each with its top eigenvalues and its trace.

Letters: L layers, k eigenvalues, D_l parameters of layer l.

A block is the matrix of the objective restricted to the layer's parameters, the others held where they are. Its top eigenvalue is at most that of the whole matrix (Cauchy), and the
traces of the blocks add up to the trace of the whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from landscape.analysis.spectra import NAMES, asymmetry
from landscape.errors import UsageError, unknown
from landscape.functionals import trace
from landscape.objectives import CURVATURES, Curvature, Objective, dtype_name, require_finite
from landscape.operators import SearchSpace
from landscape.results import Result
from landscape.seeds import generator
from landscape.subspaces import coordinates

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from plotly.graph_objects import Figure


SMALL = 64  # a block of so few parameters, as the biases of a layer, is known whole by as many products as its estimates would take
DRAWN = 30  # layers
MOST = 200  # products of a trace: one near 0 has no relative accuracy


@dataclass(frozen=True, kw_only=True)
class Layers(Result):
    """Top eigenvalues and trace of each layer's block of a curvature matrix."""

    operator: str
    rows: int
    loss: float
    names: tuple[str, ...]  # (L,)
    sizes: np.ndarray  # (L,) parameters
    values: np.ndarray  # (L, k) largest first; NaN where a layer has fewer than k parameters
    residuals: np.ndarray  # (L, k)
    converged: np.ndarray  # (L,) bool
    traces: np.ndarray  # (L,)
    trace_errors: np.ndarray  # (L,) standard errors
    products: int

    def summary(self) -> str:
        """See Result."""
        first = int(np.argmax(self.values[:, 0]))
        most = int(np.argmax(self.traces))
        total = float(self.traces.sum())
        line = f"{NAMES[self.operator]} by layer, {len(self.names)} layers: the sharpest is {self.names[first]} with λ₁ = {self.values[first, 0]:.4g} ± {self.residuals[first, 0]:.1g}"
        if total > 0:
            line += f"; {self.names[most]} has {100 * self.traces[most] / total:.0f}% of the trace {total:.4g} ± {np.linalg.norm(self.trace_errors):.2g}"
        return f"{line} ({self.products} products)."

    def caption(self) -> str:
        """See Result."""
        return (
            f"Diagonal blocks of the {NAMES[self.operator]} of the mean loss over {self.rows:,} rows, at loss {self.loss:.4g}: each layer's parameters move, the others stand. "
            "Left, the largest eigenvalue with its residual (a true eigenvalue of the block lies within it); right, the trace with its standard error. "
            "Per parameter, the trace is the mean curvature of the layer."
        )

    def table(self) -> list[tuple[str, ...]]:
        """See Result."""
        body = [
            (
                name,
                f"{size:,}",
                ", ".join(f"{value:.6g}" for value in values if np.isfinite(value)),
                f"{np.nanmax(residuals):.1e}",
                "yes" if done else "no",
                f"{total:.5g}",
                f"{error:.1e}",
                f"{total / size:.3g}",
            )
            for name, size, values, residuals, done, total, error in zip(
                self.names,
                self.sizes,
                self.values,
                self.residuals,
                self.converged,
                self.traces,
                self.trace_errors,
                strict=True,
            )
        ]
        return [
            ("layer", "parameters", "top eigenvalues", "residual", "converged", "trace", "its error", "per parameter"),
            *body,
        ]

    def panels(self) -> tuple[str, ...]:
        """See Result."""
        return ("top", "trace")

    def plot(self, ax: Axes, panel: str = "") -> None:
        """See Result."""
        from landscape.analysis.styles import BLUE, GREY, ORANGE

        top = (panel or "top") == "top"
        values, errors = (self.values[:, 0], self.residuals[:, 0]) if top else (self.traces, self.trace_errors)
        # more names than fit a page's panel: those with the longest bars, in the network's order
        drawn = np.sort(np.argsort(-np.abs(values), kind="stable")[:DRAWN])
        values, errors, names = values[drawn], errors[drawn], [self.names[index] for index in drawn]
        place = np.arange(len(names))[::-1]
        ax.barh(
            place,
            values,
            xerr=errors,
            height=0.7,
            color=BLUE if top else ORANGE,
            error_kw={"elinewidth": 1, "capsize": 2, "ecolor": "#1b1b1b"},
        )
        ax.axvline(0, color=GREY, linewidth=0.6)
        crowded = len(names) > 20
        # half of the panel stays for the bars
        shown = [name if len(name) <= 32 else f"{name[:18]}…{name[-13:]}" for name in names]
        ax.set_yticks(place, shown, fontsize=5 if crowded else 7)
        ax.set_ylim(-0.7, len(names) - 0.3)
        ax.set_xlabel("largest eigenvalue of the block" if top else "trace of the block")
        some = f", the {DRAWN} largest of {len(self.names)}" if len(self.names) > DRAWN else ""
        ax.set_title(("Sharpness by layer" if top else "Trace by layer") + some, loc="left")

    def figure(self) -> Figure:
        """See Result."""
        import plotly.graph_objects as go

        from landscape.analysis.styles import BLUE, ORANGE, interactive

        figure = go.Figure()
        for name, values, errors, colour in (
            ("largest eigenvalue", self.values[:, 0], self.residuals[:, 0], BLUE),
            ("trace", self.traces, self.trace_errors, ORANGE),
        ):
            figure.add_bar(
                x=list(self.names),
                y=values,
                error_y={"type": "data", "array": errors},
                marker_color=colour,
                name=name,
                text=[f"{size:,} parameters" for size in self.sizes],
                hovertemplate="%{x}: %{y:.5g}<br>%{text}<extra></extra>",
                textposition="none",
            )
        return interactive(figure, x="layer", y="curvature")


def layers(
    f: Objective,
    w: Tensor,
    *,
    operator: Curvature = "hessian",
    top: int = 1,
    params: str = "*",
    accuracy: float = 0.05,
    tolerance: float = 1e-4,
    max_products: int = 500,
    seed: int = 0,
) -> Layers:
    """The `top` (k) eigenvalues and the trace of each layer's block at parameters w (D,). A layer is a module with parameters of its own: its weight and its bias are one block.

    params: globs of parameter names, to take some layers only. accuracy: standard error of each trace, relative: 5%, finer than bars show.
    tolerance, max_products: of each block's eigenvalues.

    Raises UsageError on options out of range or an objective that is restricted already, LandscapeError where the point or a product is not finite.
    """
    if operator not in CURVATURES:
        raise unknown("operator", operator, CURVATURES)
    if f.charts:
        raise UsageError("layers are those of the whole parameter vector: give the objective before it is restricted.")
    if top < 1:
        raise UsageError(f"asked for {top} eigenvalues a layer; at least 1 is needed.")
    require_finite(w, "the point")
    layout = f.model.layout
    chosen = layout.select(params)
    groups: dict[str, np.ndarray] = {}
    for entry in layout.of("parameter"):
        owner = entry.name.rpartition(".")[0] or entry.name
        part = groups.setdefault(owner, np.zeros(layout.dim, dtype=bool))
        place = slice(entry.offset, entry.offset + entry.size)
        part[place] = chosen[place]
    groups = {name: part for name, part in groups.items() if part.any()}
    values, residuals = (np.full((len(groups), top), np.nan) for _ in range(2))
    traces, errors, converged, products = [], [], [], 0
    notes: dict[str, None] = {}
    rough: list[str] = []
    for index, (name, part) in enumerate(groups.items()):
        mask = torch.from_numpy(part).to(w.device)
        block = f.restrict(coordinates(w, mask)).curvature(w[mask], operator, seed=seed)
        space = SearchSpace(block, top, generator=generator(seed, "lanczos", index))
        space.converge(tolerance=tolerance, max_products=max_products)
        pairs = space.pairs()
        if block.dim <= SMALL:
            space.grow(block.dim)
        whole = trace(block, accuracy=accuracy, space=space, max_products=MOST, seed=seed)
        products += space.products + whole.products
        notes |= dict.fromkeys(block.notes)
        skew = asymmetry(block, seed)
        if skew:
            notes |= {f"layer {name}: {skew}": None}
        values[index, : len(pairs.values)], residuals[index, : len(pairs.values)] = pairs.values, pairs.residuals
        converged.append(bool(pairs.converged.all()))
        traces.append(whole.value)
        errors.append(whole.error)
        if whole.error > 1.001 * accuracy * abs(whole.value):
            rough.append(name)
    if not all(converged):
        late = [name for name, done in zip(groups, converged, strict=True) if not done]
        notes[
            f"{len(late)} of {len(groups)} layers did not reach the tolerance {tolerance:g} in {max_products} products ({', '.join(late[:3])}): raise --max-products."
        ] = None
    if rough:
        notes[
            f"the trace of {len(rough)} of {len(groups)} layers did not reach the accuracy {accuracy:g} ({', '.join(rough[:3])}): its error bars are right."
        ] = None
    return Layers(
        question={},
        provenance={"seed": seed, "dtype": dtype_name(f.dtype), "device": f.device.type, "norm": f.norm},
        warnings=tuple(notes),
        operator=operator,
        rows=len(f.rows),
        loss=float(f(w)),
        names=tuple(groups),
        sizes=np.array([part.sum() for part in groups.values()]),
        values=values,
        residuals=residuals,
        converged=np.array(converged),
        traces=np.array(traces),
        trace_errors=np.array(errors),
        products=products,
    )
