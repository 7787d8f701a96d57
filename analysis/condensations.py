"""Condensation and its use: how many directions the units of a layer have while it trains, and what is left of the network when like units are merged.

Letters: T measured steps, L layers, S steps whose matrices are drawn, m units of the drawn layer, V of them in the drawing, K outputs, G units that are left.

    effective units   groups of units whose augmented input weights have cosines of at least the similarity, the negligible ones left out (see landscape.merging)
    2p                in how many directions units condense at first, from a small initialisation: p is the multiplicity of the activation
    agreement         share of the test rows for which both networks have the same largest output

Sources: Zhang, Zhang, Luo, Xu 2021, figure 5; Zhou et al. 2022 (2p directions). The order of the heat maps is that of the leading eigenvector of the matrix.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from landscape.analysis.styles import heading
from landscape.errors import UsageError, unknown
from landscape.results import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from plotly.graph_objects import Figure
    from torch import Tensor

    from landscape.analysis.stability import Station
    from landscape.descent import Recipe
    from landscape.merging import Linkage, Neurons, Reduced
    from landscape.objectives import Objective, Rows
    from landscape.units import Layer

SHOWN = (
    3  # matrices, where none are asked for: at the first step, at the one with the fewest effective units, at the last
)
DRAWN = 128  # units in a matrix, those of the largest amplitude: more are smaller than a point of the picture, and make the answer's file large
MEASURED = 40  # losses along a retraining: as many as draw a curve


# -- condensation -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Condensation(Result):
    """Effective units of layers along a run, and the directions of one of them at some steps."""

    similarity: float
    share: float  # of the summed amplitude that negligible units may have
    linkage: str
    layers: list[str]  # (L,)
    activations: list[str]  # (L,)
    multiplicities: np.ndarray  # (L,) p; NaN where the activation is not smooth at 0, or not known
    sizes: np.ndarray  # (L,) units
    steps: np.ndarray  # (T,)
    losses: np.ndarray  # (T,) on the rows
    effective: np.ndarray  # (T, L)
    negligible: np.ndarray  # (T, L)
    correlations: np.ndarray  # (T, L) the smallest between what goes into and what comes out of a unit's activation, over the rows; NaN where that is not to be had
    shown: str  # the layer of the drawings
    drawn: np.ndarray  # (S,) steps
    order: np.ndarray  # (S, V) units in spectral order
    cosines: np.ndarray  # (S, V, V) in that order, in hundredths
    angles: np.ndarray  # (S, m) direction within the leading plane of the directions at that step
    planar: np.ndarray  # (S,) share of the squared directions, weighed by amplitude, that lies in that plane
    amplitudes: np.ndarray  # (S, m)

    def summary(self) -> str:
        """See Result."""
        parts = []
        for place, name in enumerate(self.layers):
            counts = self.effective[:, place]
            least = int(counts.argmin())
            text = f"{name}: {counts[-1]} effective of {self.sizes[place]} units at step {self.steps[-1]:,}"
            if len(counts) > 1:
                text += f" ({counts[0]} at step {self.steps[0]:,}"
                text += f", {counts[least]} at {self.steps[least]:,})" if 0 < least < len(counts) - 1 else ")"
            parts.append(text)
        task = self.provenance.get("task")
        return f"{f'{task}: ' if task else ''}{'; '.join(parts)}; cosine at least {self.similarity:g}."

    def caption(self) -> str:
        """See Result."""
        linked = (
            "every pair of a group is so similar"
            if self.linkage == "complete"
            else "a unit is so similar to some other of its group, so that groups may be chains"
        )
        expected = [
            f"{name} ({activation}): {2 * int(p)}"
            for name, activation, p in zip(self.layers, self.activations, self.multiplicities, strict=True)
            if math.isfinite(p)
        ]
        text = (
            f"Effective units: groups of units whose input weights with their bias have cosines of at least {self.similarity:g} ({linked}), the smallest units by |a||u| left out as long as they have together at most "
            f"{100 * self.share:g}% of the sum. A BatchNorm before the activation is folded in. "
            f"Matrices: cosines in {self.shown}, units ordered by the leading eigenvector"
        )
        size = int(self.sizes[self.layers.index(self.shown)])
        if self.order.shape[1] < size:
            text += f", the {self.order.shape[1]} of the largest amplitude among {size:,}"
        text += (
            ". Orientation: the angle of each unit's input weights in the leading plane of all of them at that step, weighed by amplitude; the share of them that lies in this plane stands in the legend, and where it is small the angle says little. "
            f"Linearity: the smallest correlation, over units, between what goes into the activation and what comes out on {self.provenance.get('rows', 'the')} training rows; 1 is a layer that acts as an affine map (landscape.depth); units that give the same for all rows are left out."
        )
        if expected:
            text += f" Directions expected at first, from a small initialisation, at most 2p: {', '.join(expected)}."
        return text

    def table(self) -> list[tuple[str, ...]]:
        """See Result."""
        rows: list[tuple[str, ...]] = [
            ("layer", "activation", "units", "step", "effective", "negligible", "linearity", "loss")
        ]
        for place, name in enumerate(self.layers):
            for t in np.unique(np.linspace(0, len(self.steps) - 1, 12).round().astype(int)):
                correlation = self.correlations[t, place]
                rows.append(
                    (
                        name,
                        self.activations[place],
                        str(self.sizes[place]),
                        f"{self.steps[t]:,}",
                        str(self.effective[t, place]),
                        str(self.negligible[t, place]),
                        f"{correlation:.4f}" if math.isfinite(correlation) else "",
                        f"{self.losses[t]:.4g}",
                    )
                )
        return rows

    def panels(self) -> tuple[str, ...]:
        """`effective units` and `linearity` where there is more than one step, a matrix a drawn step, and `orientation`."""
        along = ()
        if len(self.steps) > 1:
            along = ("effective units", *(("linearity",) if np.isfinite(self.correlations).any() else ()))
        return (*along, *(f"cosines at step {step}" for step in self.drawn), "orientation")

    def plot(self, ax: Axes, panel: str = "") -> None:
        """See Result."""
        panel = panel or self.panels()[0]
        if panel not in self.panels():
            raise unknown("panel", panel, self.panels())
        if panel.startswith("cosines"):
            self._plot_cosines(ax, list(self.drawn).index(int(panel.rpartition(" ")[2])))
        elif panel == "orientation":
            self._plot_orientation(ax)
        else:
            self._plot_along(ax, panel)

    def _plot_along(self, ax: Axes, panel: str) -> None:
        from landscape.analysis.styles import GREY

        counted = panel == "effective units"
        for place, name in enumerate(self.layers):
            values = self.effective[:, place] if counted else self.correlations[:, place]
            look = _look(place)
            ax.plot(self.steps, values, label=name, **look)
            if counted:
                ax.axhline(self.sizes[place], color=look["color"], linestyle=":", linewidth=0.8)
        if counted and self.effective.max() > 10 * self.effective.min() > 0:
            ax.set_yscale("log")
        if counted:
            ax.plot([], [], color=GREY, linestyle=":", linewidth=0.8, label="all units")
        ax.set_xlabel("step")
        ax.set_ylabel("effective units" if counted else "smallest correlation")
        heading(
            ax,
            f"Groups of cosine ≥ {self.similarity:g}"
            if counted
            else "Linearity of layers (1: an affine map on the rows)",
        )

    def _plot_cosines(self, ax: Axes, place: int) -> None:
        image = ax.imshow(self.cosines[place] / 100, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
        assert ax.figure is not None
        ax.figure.colorbar(image, ax=ax, label="cosine", shrink=0.85)
        ax.set_xlabel("unit, in spectral order")
        ax.set_ylabel("unit")
        count = self.effective[list(self.steps).index(self.drawn[place]), self.layers.index(self.shown)]
        heading(ax, f"{self.shown} at step {self.drawn[place]:,}: {count} effective units", [])

    def _plot_orientation(self, ax: Axes) -> None:
        for place, step in enumerate(self.drawn):
            look = {**_look(place), "linestyle": "none", "markersize": 3}
            ax.plot(
                self.angles[place],
                self.amplitudes[place],
                alpha=0.6,
                label=f"step {step:,} ({100 * self.planar[place]:.0f}% in plane)",
                **look,
            )
        ax.set_xticks([-math.pi, 0, math.pi], ["−π", "0", "π"])
        if (self.amplitudes > 0).any():
            ax.set_yscale("log")
        ax.set_xlabel("orientation in the leading plane")
        ax.set_ylabel("amplitude |a||u|")
        heading(ax, f"Units of {self.shown}", columns=2)

    def figure(self) -> Figure:
        """See Result."""
        import plotly.graph_objects as go

        from landscape.analysis.styles import interactive

        figure = go.Figure()
        if len(self.steps) > 1:
            for place, name in enumerate(self.layers):
                text = [
                    f"loss {loss:.4g}, {count} negligible"
                    for loss, count in zip(self.losses, self.negligible[:, place], strict=True)
                ]
                figure.add_scatter(x=self.steps, y=self.effective[:, place], text=text, mode="lines+markers", name=name)
            return interactive(figure, x="step", y="effective units")
        labels = [str(unit) for unit in self.order[-1]]
        figure.add_heatmap(
            z=self.cosines[-1] / 100, x=labels, y=labels, zmin=-1, zmax=1, colorscale="RdBu", reversescale=True
        )
        return interactive(figure, x="unit", y="unit")


def _look(place: int) -> dict[str, Any]:
    """Colour, dash and marker: colour is never the only cue."""
    from landscape.analysis.styles import CYCLE

    return {
        "color": CYCLE[place % len(CYCLE)],
        "linestyle": ("-", "--", "-.")[place % 3],
        "marker": "os^DvPX"[place % 7],
        "markersize": 3,
    }


def condensation(
    f: Objective,
    stations: Iterable[Station],
    layers: Sequence[Layer],
    *,
    shown: str | None = None,
    drawn: Sequence[int] = (),
    similarity: float | None = None,
    share: float | None = None,
    linkage: Linkage = "complete",
    question: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Condensation:
    """Effective units of the layers at each station, and the cosines of one layer at some.

    shown       the layer whose matrices are drawn; by default the one with the most units
    drawn       steps of the matrices; by default three (see SHOWN)
    similarity, share, linkage    as in landscape.merging, with its defaults

    Raises UsageError where there is no layer or no station, or a name or a step is not among them.
    """
    from landscape import merging

    similarity = merging.SIMILARITY if similarity is None else similarity
    share = merging.NEGLIGIBLE if share is None else share
    if not layers:
        raise UsageError(
            "this network has no hidden layer whose units could be told apart: there is nothing to condense."
        )
    names = [layer.name for layer in layers]
    chosen = max(range(len(layers)), key=lambda place: layers[place].size) if shown is None else -1
    if shown is not None:
        if shown not in names:
            raise unknown("hidden layer", shown, names)
        chosen = names.index(shown)
    rows: list[dict[str, Any]] = []
    pictures: dict[int, dict[str, Any]] = {}
    for station in stations:
        at = f if station.buffers is None else f.with_buffers(station.buffers)
        row, looked = _measured(at, station, layers, chosen, similarity, share, linkage)
        rows.append(row)
        if not drawn or station.step in drawn:
            pictures[station.step] = _picture(looked)
        if not drawn:  # the first, that with the fewest, and this one, which may be the last
            fewest = min(rows, key=lambda row: row["effective"][chosen])
            kept = (rows[0]["step"], fewest["step"], station.step)
            pictures = {step: pictures[step] for step in dict.fromkeys(kept)}
    if not rows:
        raise UsageError("there is no point to measure.")
    missing = sorted(set(drawn) - set(pictures))
    if missing:
        raise UsageError(
            f"step {missing[0]} is not among those that are measured: {rows[0]['step']} to {rows[-1]['step']}."
        )
    refused = [layer for layer in layers if layer.refusals]
    characters = [merging.CHARACTERS.get(layer.activation, merging.Character()) for layer in layers]

    def stacked(name: str) -> np.ndarray:
        return np.array([row[name] for row in rows])

    return Condensation(
        question=dict(question or {}),
        provenance={"rows": len(f.rows), **(provenance or {})},
        warnings=tuple(
            f"{layer.name}: units are counted, but like ones cannot be merged there: {'; '.join(layer.refusals)}."
            for layer in refused
        ),
        similarity=similarity,
        share=share,
        linkage=linkage,
        layers=names,
        activations=[layer.activation for layer in layers],
        multiplicities=np.array(
            [math.nan if c.multiplicity is None else c.multiplicity for c in characters], dtype=float
        ),
        sizes=np.array([layer.size for layer in layers]),
        **{
            name: stacked({"steps": "step", "losses": "loss"}.get(name, name))
            for name in ("steps", "losses", "effective", "negligible", "correlations")
        },
        shown=names[chosen],
        drawn=np.array(sorted(pictures)),
        **{
            name: np.stack([pictures[step][name] for step in sorted(pictures)])
            for name in ("order", "cosines", "angles", "planar", "amplitudes")
        },
    )


def _measured(
    f: Objective,
    station: Station,
    layers: Sequence[Layer],
    chosen: int,
    similarity: float,
    share: float,
    linkage: Linkage,
) -> tuple[dict[str, Any], Neurons]:
    from landscape import depth, merging

    found = [merging.neurons(f, station.point, layer) for layer in layers]
    linear = [depth.linearisation(f, station.point, layer) for layer in layers]
    row = {
        "step": station.step,
        "loss": float(f(station.point)),
        "effective": [len(own.groups(similarity, share, linkage)) for own in found],
        "negligible": [int(own.negligible(share).sum()) for own in found],
        "correlations": [math.nan if own is None else own.correlation for own in linear],
    }
    return row, found[chosen]


def _picture(own: Neurons) -> dict[str, Any]:
    import torch

    from landscape import merging

    largest = own.amplitudes.argsort(descending=True, stable=True)[:DRAWN].sort().values
    square = own.cosines[largest][:, largest]
    order = merging.spectral_order(square)
    directions = own.inputs / own.lengths.clamp_min(torch.finfo(torch.float64).tiny)[:, None]
    weighed = directions * own.amplitudes.sqrt()[:, None]
    _, sizes, axes = torch.linalg.svd(weighed, full_matrices=False)
    axes = axes[:2]
    # a sign of its own for each axis, so that the angles do not turn over from machine to machine
    axes = axes * torch.where((weighed @ axes.T).sum(0) < 0, -1.0, 1.0)[:, None]
    within = directions @ axes.T
    second = within[:, 1] if len(axes) > 1 else torch.zeros(len(within), dtype=within.dtype)
    total = float(sizes.square().sum())
    return {
        "order": largest[order].numpy(),
        "cosines": (100 * square[order][:, order]).round().to(torch.int8).numpy(),
        "angles": torch.atan2(second, within[:, 0]).numpy(),
        "planar": float(sizes[:2].square().sum()) / total if total else math.nan,
        "amplitudes": own.amplitudes.numpy(),
    }


# -- reduction --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Merger(Result):
    """What is left of a network when like units are merged, and what it can do. The states are: before, merged, and retrained where that was asked for."""

    similarity: float
    share: float
    linkage: str
    layers: list[str]  # (L,) that were reduced
    activations: list[str]  # (L,)
    rules: list[str]  # (L,) when two units merge without an error
    before: np.ndarray  # (L,) units
    after: np.ndarray  # (L,)
    null: np.ndarray  # (L,) that nothing read
    constant: np.ndarray  # (L,) that went into the next bias
    negligible: np.ndarray  # (L,) that were left out
    sizes: dict[str, np.ndarray]  # units of each group, the largest first, by layer
    slopes: np.ndarray  # (L,) bound on the change of what is read of the layer, for an input of length 1
    bounds: np.ndarray  # (L,) bound on the change of the outputs on the training rows; inf where none is known
    difference: float  # the largest change of the outputs on the training rows by merging, as a length
    linear: list[str]  # layers that were merged with what reads them, for they were affine on the rows
    linear_errors: np.ndarray  # of these, bound on the change of what is read
    parameters: list[int]  # before and after
    states: list[str]
    train_loss: np.ndarray  # (states,)
    test_loss: np.ndarray
    test_accuracy: np.ndarray  # of the largest output; NaN where targets are no classes
    agreement: np.ndarray  # with the network before, on the test rows; NaN likewise
    confusion: np.ndarray  # (K, K) test rows by the answer before and the answer of the last state; empty likewise
    retrained_steps: np.ndarray
    retrained_losses: np.ndarray  # of the training rows

    @property
    def bound(self) -> float:
        """Bound on `difference`: the sum over layers."""
        return float(self.bounds.sum()) if not self.linear else math.inf

    @property
    def back(self) -> int | None:
        """The first measured step of the retraining at which the training loss is not above that before; None where there is none."""
        below = np.flatnonzero(self.retrained_losses <= self.train_loss[0])
        return int(self.retrained_steps[below[0]]) if len(below) else None

    def summary(self) -> str:
        """See Result."""
        layers = ", ".join(
            f"{name} {old} to {new}" for name, old, new in zip(self.layers, self.before, self.after, strict=True)
        )
        layers += "".join(f", {name} merged with its reader" for name in self.linear)
        losses = ", ".join(f"{loss:.4g} {state}" for loss, state in zip(self.train_loss, self.states, strict=True))
        text = f"{layers} units at similarity {self.similarity:g} ({self.parameters[0]:,} to {self.parameters[1]:,} parameters); train loss {losses}"
        if len(self.retrained_steps):
            text += f" ({'not back' if self.back is None else f'back at {self.back}'} in {self.retrained_steps[-1]:,} steps)"
        if np.isfinite(self.agreement).all():
            shares = ", ".join(
                f"{100 * share:.2f}% {state}"
                for share, state in list(zip(self.agreement, self.states, strict=True))[1:]
            )
            text += f"; answers of {int(self.confusion.sum()):,} test rows that stay: {shares}"
        bound = f"bound {self.bound:.3g}" if math.isfinite(self.bound) else "no bound is known"
        return f"{text}; outputs moved by at most {self.difference:.3g} ({bound})."

    def caption(self) -> str:
        """See Result."""
        rules = "; ".join(
            dict.fromkeys(
                f"{activation}: {rule}" for activation, rule in zip(self.activations, self.rules, strict=True)
            )
        )
        linked = (
            "every pair of a group is so similar"
            if self.linkage == "complete"
            else "groups may be chains of similar units"
        )
        return (
            f"Units that an activation cannot tell apart merge without an error ({rules}); here those of similarity {self.similarity:g} and more ({linked}). The one of the largest amplitude is kept, and takes the output weights of its group, "
            "each times |u_k|/|u_kept| where the activation is 1-homogeneous. The smallest units by amplitude were left out "
            f"as long as they have together at most {100 * self.share:g}% of the sum, of activations that vanish at 0. "
            "The bound is proved: L·Σ|a_k||e_k·h| over merged units, the largest over the training rows, times the norms of the layers after it; it is known for chains of dense layers. "
            "Losses are means over all rows; agreement is the share of test rows with the same largest output. BatchNorm by its running statistics."
        )

    def table(self) -> list[tuple[str, ...]]:
        """See Result."""
        rows: list[tuple[str, ...]] = [
            ("layer", "activation", "units", "left", "largest group", "null", "constant", "negligible", "bound")
        ]
        for place, name in enumerate(self.layers):
            counts = [str(table[place]) for table in (self.null, self.constant, self.negligible)]
            largest = self.sizes[name]
            rows.append((name, self.activations[place], str(self.before[place]), str(self.after[place]), str(largest[0]) if len(largest) else "", *counts, f"{self.bounds[place]:.3g}"))  # fmt: skip
        rows += [("", *[""] * 8), ("state", "train loss", "test loss", "accuracy", "agreement", *[""] * 4)]
        for place, state in enumerate(self.states):
            shares = (
                f"{100 * value:.2f}%" if math.isfinite(value) else ""
                for value in (self.test_accuracy[place], self.agreement[place])
            )
            rows.append((state, f"{self.train_loss[place]:.4g}", f"{self.test_loss[place]:.4g}", *shares, *[""] * 4))
        return rows

    def panels(self) -> tuple[str, ...]:
        """`groups`, `losses`, and `answers` where targets are classes."""
        return ("groups", "losses", *(("answers",) if self.confusion.size else ()))

    def plot(self, ax: Axes, panel: str = "") -> None:
        """See Result."""
        from landscape.analysis.styles import BLUE, GREY, VERMILION

        panel = panel or "groups"
        if panel not in self.panels():
            raise unknown("panel", panel, self.panels())
        if panel == "groups":
            for place, name in enumerate(self.layers):
                sizes = self.sizes[name]
                ax.plot(
                    np.arange(1, len(sizes) + 1),
                    sizes,
                    label=f"{name}: {self.before[place]} to {self.after[place]}",
                    **_look(place),
                )
            ax.set_xscale("log")
            ax.set_yscale("log")
            ax.set_xlabel("group, the largest first")
            ax.set_ylabel("units of the group")
            heading(ax, f"Merged at similarity {self.similarity:g}", columns=2)
        elif panel == "losses":
            ax.axhline(self.train_loss[0], color=BLUE, linestyle="--", label="before")
            ax.plot([0], self.train_loss[1:2], "s", color=VERMILION, label="merged")
            if len(self.retrained_steps):
                ax.plot(self.retrained_steps, self.retrained_losses, color=VERMILION, label="retrained")
            if min(self.train_loss.min(), self.retrained_losses.min(initial=math.inf)) > 0:
                ax.set_yscale("log")
            ax.set_xlabel("step of retraining")
            ax.set_ylabel("train loss")
            heading(ax, "Loss on the training rows")
        else:
            shares = self.confusion / np.maximum(self.confusion.sum(1, keepdims=True), 1)
            # of the answers that change: the diagonal would drown them
            off = np.where(np.eye(len(shares), dtype=bool), np.nan, 100 * shares)
            image = ax.imshow(np.ma.masked_invalid(off), cmap="viridis", vmin=0, interpolation="nearest")
            for place, share in enumerate(np.diag(shares)):
                ax.text(place, place, f"{100 * share:.0f}", ha="center", va="center", fontsize=6, color=GREY)
            assert ax.figure is not None
            ax.figure.colorbar(image, ax=ax, label="% of the row", shrink=0.85)
            ax.set_xlabel(f"answer, {self.states[-1]}")
            ax.set_ylabel("answer before")
            heading(ax, f"Test rows: {100 * self.agreement[-1]:.2f}% answered as before", [])

    def figure(self) -> Figure:
        """See Result."""
        import plotly.graph_objects as go

        from landscape.analysis.styles import interactive

        figure = go.Figure()
        steps, losses = [0, *self.retrained_steps], [self.train_loss[1], *self.retrained_losses]
        figure.add_scatter(x=steps, y=losses, mode="lines+markers", name="merged, then retrained")
        figure.add_scatter(
            x=[0, max(steps)], y=[self.train_loss[0]] * 2, mode="lines", line={"dash": "dash"}, name="before"
        )
        return interactive(figure, x="step of retraining", y="train loss")


@dataclass(frozen=True, eq=False)
class Outcome:
    """A merger, with the network that it is about."""

    answer: Merger
    f: Objective
    point: Tensor  # of the last state
    widths: dict[str, int]  # units that are left, by layer; 0 for one that was merged with its reader


def merger(
    f: Objective,
    test: Objective,
    z: Tensor,
    layers: Sequence[Layer],
    *,
    similarity: float | None = None,
    share: float | None = None,
    linkage: Linkage = "complete",
    linear: float | None = None,
    recipe: Recipe | None = None,
    seed: int = 0,
    warnings: Sequence[str] = (),
    question: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Outcome:
    """Merge like units of the layers at a point (D,), train the reduced network on by `recipe` where one is given, and compare with the network before.

    linear      also merge those layers with their readers whose smallest correlation is at least this (see landscape.depth): they are affine on the training rows, and nothing is said of others
    similarity, share, linkage    as in landscape.merging, with its defaults

    Raises UsageError as `merging.reduce` does, and where there is no layer.
    """
    import torch

    from landscape import depth, merging

    similarity = merging.SIMILARITY if similarity is None else similarity
    share = merging.NEGLIGIBLE if share is None else share
    if not layers:
        raise UsageError("there is no hidden layer whose units could be merged.")
    reduced = merging.reduce(f, z, layers, similarity=similarity, share=share, linkage=linkage)
    g, point, errors = reduced.f, reduced.point, {}
    widths = reduced.widths
    if linear is not None:
        for layer in layers:
            narrow = layer.grown(widths[layer.name])
            found = depth.linearisation(g, point, narrow)
            if found is not None and (math.isnan(found.correlation) or found.correlation >= linear):
                shallow = depth.merge(g, point, narrow)
                g, point, errors[layer.name] = shallow.f, shallow.point, shallow.error
                widths[layer.name] = 0
    states = [("before", f, z), ("merged", g, point)]
    moved = (g.outputs(point) - f.outputs(z)).double().flatten(1).norm(dim=1)
    steps, losses = [], []
    if recipe is not None:
        for step, value, end in _retrained(g, point, recipe, seed):
            steps.append(step)
            losses.append(value)
            g_end, point = end
        states.append(("retrained", g_end, point))
        g = g_end
    reference, told = _answers(test, test.outputs(z)), []
    for _, network, place in states:
        tested = network.on(test.rows)
        answers = _answers(test, tested.outputs(place))
        told.append(
            (
                float(network(place)),
                float(tested(place)),
                _share(answers, _targets(test.rows)),
                _share(answers, reference),
                answers,
            )
        )
    numbers = np.array([row[:4] for row in told])
    last = told[-1][4]
    confusion = np.zeros((0, 0), dtype=np.int64)
    if reference is not None and last is not None:
        classes = int(test.outputs(z).shape[1])
        confusion = (
            torch.bincount(reference * classes + last, minlength=classes**2).reshape(classes, classes).cpu().numpy()
        )
    answer = Merger(
        question=dict(question or {}),
        provenance=dict(provenance or {}),
        warnings=(*warnings, *_warnings(reduced, errors)),
        similarity=similarity,
        share=share,
        linkage=linkage,
        layers=[own.layer for own in reduced.layers],
        activations=[own.activation for own in reduced.layers],
        rules=[own.rule for own in reduced.layers],
        before=np.array([own.before for own in reduced.layers]),
        after=np.array([own.width for own in reduced.layers]),
        null=np.array([len(own.null) for own in reduced.layers]),
        constant=np.array([len(own.constant) for own in reduced.layers]),
        negligible=np.array([len(own.negligible) for own in reduced.layers]),
        sizes={own.layer: np.sort([len(merge.members) for merge in own.merges])[::-1].copy() for own in reduced.layers},
        slopes=np.array([own.slope for own in reduced.layers]),
        bounds=np.array([own.bound for own in reduced.layers]),
        difference=float(moved.max()),
        linear=list(errors),
        linear_errors=np.array(list(errors.values()), dtype=float),
        parameters=[f.dim, g.dim],
        states=[name for name, _, _ in states],
        train_loss=numbers[:, 0],
        test_loss=numbers[:, 1],
        test_accuracy=numbers[:, 2],
        agreement=numbers[:, 3],
        confusion=confusion,
        retrained_steps=np.array(steps, dtype=np.int64),
        retrained_losses=np.array(losses, dtype=float),
    )
    return Outcome(answer, g, point, widths)


def _retrained(
    g: Objective, point: Tensor, recipe: Recipe, seed: int
) -> Iterable[tuple[int, float, tuple[Objective, Tensor]]]:
    """Step, loss on all rows, and network, along a descent."""
    from landscape.descent import descend

    every = max(1, recipe.steps // MEASURED)
    for state in descend(g, point, recipe, seed):
        if state.step and (state.step % every == 0 or state.step == recipe.steps):
            now = g.with_buffers(state.buffers)
            yield state.step, float(now(state.point)), (now, state.point)


def _targets(rows: Rows) -> Tensor | None:
    """Classes (N,) of rows whose targets are such, or one-hot; else None."""
    targets = rows.targets
    if not targets.is_floating_point():
        return targets if targets.ndim == 1 else None
    hot = (
        targets.ndim == 2
        and targets.shape[1] > 1
        and bool(((targets == 0) | (targets == 1)).all() & (targets.sum(1) == 1).all())
    )
    return targets.argmax(1) if hot else None


def _answers(f: Objective, outputs: Tensor) -> Tensor | None:
    """The largest output (N,) of each row, where targets are classes."""
    return outputs.argmax(1) if outputs.ndim == 2 and outputs.shape[1] > 1 and _targets(f.rows) is not None else None


def _share(one: Tensor | None, other: Tensor | None) -> float:
    return math.nan if one is None or other is None else float((one == other).double().mean())


def _warnings(reduced: Reduced, errors: Mapping[str, float]) -> list[str]:
    notes = [
        f"{own.layer}: nothing is known of the activation {own.activation!r}, or of how its units are made: only units with equal weights merge there without an error, and the change has no bound."
        for own in reduced.layers
        if math.isinf(own.slope)
    ]
    if errors:
        notes.append(
            f"{', '.join(errors)} merged with what reads them: they are affine on the training rows, or nearly, and on other rows the network may answer otherwise. The bound is of the merged units alone."
        )
    return notes
