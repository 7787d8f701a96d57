"""What retraining does between two levels of iterative pruning: the magnitudes of the weights before pruning, after it, and after the retraining that follows.

Letters: V variants, L levels, B bins of |w|, Q quantiles, T tensors that may be pruned, n_L survivors of level L, D parameters.

    w^(L)               the solution of level L, on the survivors of its mask m^(L)
    m^(L+1) w^(L)       its projection: what pruning leaves, before it is trained again
    w^(L+1)             the solution of the next level, on the same survivors as the projection
    threshold tau_L     the (n_L - n_(L+1))-th smallest |w^(L)|: under global magnitude pruning the largest weight that goes
    new small weights   the share of the survivors of L+1 with |w^(L+1)| <= tau_L. In the projection it is 0; where retraining makes the magnitudes as they were, it is the pruned share f_L
    length R_L/|w^(L)|  R_L = |w^(L) - m^(L+1) w^(L)|. A random mask of the same size has E R_L^2 = f_L |w^(L)|^2 exactly, so about sqrt(f_L)
    angular distance    2 angle / pi between w^(L) and w^(L+1) on the weights that both have: 1 is a right angle

Counts, quantiles, thresholds and R_L are over the weights that may be pruned (biases and norms are left out); distances and angles are over all that moves.

Sources: Paul et al. 2023, "Unmasking the lottery ticket hypothesis" (retraining finds new small weights to prune); Renda et al. 2020 (weight rewinding, learning-rate rewinding, fine-tuning);
Maene et al. 2021 (magnitudes over the rounds; angular distance on the shared weights).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from landscape.analysis.styles import heading
from landscape.errors import LandscapeError, UsageError, unknown
from landscape.masks import Mask
from landscape.results import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from plotly.graph_objects import Figure

# |w| from 1e-12, which float32 training does not tell from 0, to 1e4, in decades of 12 bins: at n = 1,000 a bin of the bulk then holds some 30 weights
DECADES = (-12, 4)
PER_DECADE = 12
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
SHOWN = 3  # levels in a panel of histograms, where none are asked for: the first, one in the middle, the last
TAIL = 0.005  # of the survivors: those smaller than the others' by decades are counted, and lie left of the picture
DRAWN = 24  # tensors in the panel of layers: more names than that do not fit its height


@dataclass(frozen=True, eq=False)
class Stage:
    """One level of an iterative pruning."""

    number: int
    mask: Mask
    start: np.ndarray  # (D,) where its training began: rewound weights, or the projection of the solution before
    solution: np.ndarray  # (D,) 0 outside the mask
    error: float = math.nan  # test error of the solution, in [0, 1]


@dataclass(frozen=True, kw_only=True)
class Retraining(Result):
    """Magnitudes at the levels of V iterative prunings. What belongs to the step from a level to the next one stands at the first of them; NaN where there is none."""

    variants: list[str]  # (V,)
    numbers: np.ndarray  # (L,) levels
    shown: list[int]  # levels from which the drawn steps go
    prunable: int  # weights that may be pruned
    survivors: np.ndarray  # (V, L) of them; 0 where the variant has no such level
    errors: np.ndarray  # (V, L) test error; NaN where unknown
    edges: np.ndarray  # (B + 1,) of |w|
    solved: np.ndarray  # (V, L, B) counts of |w^(L)|
    projected: np.ndarray  # (V, L, B) counts of |m^(L+1) w^(L)|
    outside: np.ndarray  # (V, L) survivors that no bin holds: zeros
    quantiles: np.ndarray  # (Q,)
    solved_quantiles: np.ndarray  # (V, L, Q)
    projected_quantiles: np.ndarray  # (V, L, Q)
    pruned: np.ndarray  # (V, L) f_L, the share of the survivors that goes
    thresholds: np.ndarray  # (V, L) tau_L
    small: np.ndarray  # (V, L) share of new small weights after retraining
    lengths: np.ndarray  # (V, L) R_L / |w^(L)|
    travelled: np.ndarray  # (V, L) |w^(L) - its start|
    moved: np.ndarray  # (V, L) |w^(L+1) - m^(L+1) w^(L)|
    turned: np.ndarray  # (V, L) angular distance
    layers: list[str]  # (T,)
    kept: np.ndarray  # (V, L, T) share of each tensor that survives

    # -- words --------------------------------------------------------------------------------------------------------

    def summary(self) -> str:
        """See Result."""
        task = self.provenance.get("task")
        parts = [f"{name}: {self._told(place)}" for place, name in enumerate(self.variants)]
        return f"{f'{task}: ' if task else ''}{'; '.join(parts)}."

    def _told(self, place: int) -> str:
        steps = self._steps(place)
        if not len(steps):
            return "one level, so nothing was retrained"
        first, last = steps[0], steps[-1]
        small, pruned = (100 * np.nanmedian(row[place, steps]) for row in (self.small, self.pruned))
        return (
            f"{small:.3g}% of the survivors are new small weights after retraining ({pruned:.3g}% were pruned; medians of {len(steps)} {'step' if len(steps) == 1 else 'steps'}), "
            f"threshold {self.thresholds[place, first]:.3g} to {self.thresholds[place, last]:.3g}, R/|w| {self.lengths[place, first]:.2f} to {self.lengths[place, last]:.2f} "
            f"(random mask {math.sqrt(pruned / 100):.2f})"
        )

    def caption(self) -> str:
        """See Result."""
        about = self.provenance
        text = (
            f"Magnitudes of the {self.prunable:,} weights that may be pruned, at the levels of {len(self.variants)} iterative {'pruning' if len(self.variants) == 1 else 'prunings'} ({', '.join(self.variants)}). "
            f"Histograms over the survivors, {PER_DECADE} bins a decade of |w|, as shares of the survivors before pruning, so that areas of a row compare: grey the solution of a level, blue its projection (pruned, not yet trained), "
            "vermilion the solution of the next level; the dotted line is the pruning threshold. A row is one step, drawn to its own peak. "
            "New small weights: the share of survivors that retraining brought to the threshold before it or below; thin lines: the pruned share, which it is where retraining restores the distribution. "
            "R/|w|: how much of the length pruning removes; thin lines: √f, a random mask of the same size. Distances and angles in the table are over all parameters that move; angular distance is 2·angle/π on shared weights. "
            "No data enter: weights only, so there is no split and no BatchNorm policy."
        )
        if "seeds" in about:
            text += f" One run a variant, seeds {', '.join(str(seed) for seed in about['seeds'])}."
        if np.isfinite(self.errors).any():
            text += " Test errors in the table are those that the runs recorded."
        if len(self.layers) > DRAWN:
            text += f" Of {len(self.layers)} tensors the {DRAWN} whose shares differ most from the mean are drawn."
        return text

    def table(self) -> list[tuple[str, ...]]:
        """See Result."""
        head = (
            "variant", "level", "survivors", "density", "test error", "threshold", "new small", "pruned", "R/|w|", "√f", "median |w|", "projected", "retrained",
            "travelled", "from projection", "angular",
        )  # fmt: skip
        middle = int(np.flatnonzero(self.quantiles == 0.5)[0])
        rows: list[tuple[str, ...]] = [head]
        for v, name in enumerate(self.variants):
            for k in np.flatnonzero(self.survivors[v]):
                after = self.solved_quantiles[v, k + 1, middle] if k + 1 < len(self.numbers) else math.nan
                rows.append(
                    (
                        name,
                        str(self.numbers[k]),
                        f"{self.survivors[v, k]:,}",
                        f"{self.survivors[v, k] / self.prunable:.3g}",
                        _percent(self.errors[v, k]),
                        _number(self.thresholds[v, k]),
                        _percent(self.small[v, k]),
                        _percent(self.pruned[v, k]),
                        _number(self.lengths[v, k]),
                        _number(np.sqrt(self.pruned[v, k])),
                        _number(self.solved_quantiles[v, k, middle]),
                        _number(self.projected_quantiles[v, k, middle]),
                        _number(after),
                        _number(self.travelled[v, k]),
                        _number(self.moved[v, k]),
                        _number(self.turned[v, k]),
                    )
                )
        return rows

    def _steps(self, place: int) -> np.ndarray:
        """Places of the levels of a variant from which a step goes."""
        return np.flatnonzero(np.isfinite(self.thresholds[place]))

    # -- pictures -----------------------------------------------------------------------------------------------------

    def panels(self) -> tuple[str, ...]:
        """`magnitudes NAME` of every variant that has a step, then `threshold`, `new small weights`, `length` and `layers`."""
        stepped = [name for place, name in enumerate(self.variants) if len(self._steps(place))]
        if not stepped:
            return ("layers",)
        return (*(f"magnitudes {name}" for name in stepped), "threshold", "new small weights", "length", "layers")

    def plot(self, ax: Axes, panel: str = "") -> None:
        """See Result."""
        panel = panel or self.panels()[0]
        if panel not in self.panels():
            raise unknown("panel", panel, self.panels())
        if panel.startswith("magnitudes "):
            self._plot_magnitudes(ax, self.variants.index(panel.removeprefix("magnitudes ")))
        elif panel == "layers":
            self._plot_layers(ax)
        else:
            self._plot_levels(ax, panel)

    def _plot_magnitudes(self, ax: Axes, place: int) -> None:
        from matplotlib.ticker import NullLocator

        from landscape.analysis.styles import BLACK, BLUE, GREY, VERMILION

        steps = [k for k in self._steps(place) if self.numbers[k] in self.shown] or list(self._steps(place)[:1])
        curves: list[tuple[np.ndarray, ...]] = []
        for k in steps:
            total = self.survivors[place, k]
            drawn = (self.solved[place, k], self.projected[place, k], self.solved[place, k + 1])
            curves.append(tuple(counts * PER_DECADE / total for counts in drawn))
        handles: list[Any] = []
        for row, (k, heights) in enumerate(zip(steps, curves, strict=True)):
            foot = (len(steps) - 1 - row) * 1.15
            # each row to its own peak: late levels, whose weights lie close together, would flatten the first
            peak = max(float(curve.max()) for curve in heights) or 1.0
            before, projection, after = (curve / peak + foot for curve in heights)
            handles = [
                ax.stairs(before, self.edges, baseline=foot, fill=True, color=GREY, alpha=0.35, label="before pruning"),
                ax.stairs(projection, self.edges, baseline=None, color=BLUE, linewidth=1.2, linestyle="--", label="pruned"),
                ax.stairs(after, self.edges, baseline=None, color=VERMILION, linewidth=1.4, label="retrained"),
            ]  # fmt: skip
            tau = self.thresholds[place, k]
            handles += ax.plot([tau, tau], [foot, foot + 1.05], color=BLACK, linestyle=":", linewidth=1, label="threshold")  # fmt: skip
            words = f"level {self.numbers[k]} → {self.numbers[k + 1]}"
            ax.annotate(words, (0.02, foot + 0.7), xycoords=("axes fraction", "data"), fontsize=7)
        shares = np.array([curve / max(curve.sum(), 1e-300) for row in curves for curve in row])
        first = np.flatnonzero((np.cumsum(shares, 1) > TAIL).any(0))[0]
        last = np.flatnonzero(shares.any(0))[-1]
        ax.set_xscale("log")
        # room for the words on the left, where few weights are
        low, high = self.edges[first], self.edges[last + 1] * 1.1
        ax.set_xlim(low * (low / high) ** 0.25, high)
        ax.set_ylim(-0.02, (len(steps) - 1) * 1.15 + 1.1)
        ax.yaxis.set_major_locator(NullLocator())
        ax.spines["left"].set_visible(False)
        ax.set_ylabel("share of survivors a decade")
        ax.set_xlabel("|w|")
        heading(ax, self.variants[place], handles, columns=4)

    def _plot_levels(self, ax: Axes, panel: str) -> None:
        """A line a variant over levels."""
        from matplotlib.ticker import MaxNLocator

        rows, reference, label, title = {
            "threshold": (self.thresholds, None, "|w|", "Pruning threshold"),
            "new small weights": (
                100 * self.small, 100 * self.pruned, "share of survivors (%)", "New small weights after retraining (thin: f, as before pruning)",
            ),
            "length": (self.lengths, np.sqrt(self.pruned), "R / |w|", "Length that pruning removes (thin: √f, a random mask)"),
        }[panel]  # fmt: skip
        for place, name in enumerate(self.variants):
            look = _look(place)
            ax.plot(self.numbers, rows[place], label=name, **look)
            if reference is not None:
                ax.plot(self.numbers, reference[place], color=look["color"], linestyle=":", linewidth=0.9)
        if panel == "threshold" and np.nanmax(rows) > 10 * np.nanmin(rows) > 0:
            ax.set_yscale("log")
        else:
            ax.set_ylim(bottom=0)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_xlabel("level that is pruned")
        ax.set_ylabel(label)
        heading(ax, title)

    def _plot_layers(self, ax: Axes) -> None:
        """The share of each tensor that survives at the last level of each variant."""
        ends = np.stack([self.kept[place, np.flatnonzero(row)[-1]] for place, row in enumerate(self.survivors)])
        spread = np.abs(np.log(np.maximum(ends, 1e-6)) - np.log(np.maximum(ends.mean(1, keepdims=True), 1e-6))).max(0)
        drawn = np.sort(np.argsort(-spread, kind="stable")[:DRAWN])
        heights = np.arange(len(drawn))[::-1]
        lasts = [int(self.numbers[np.flatnonzero(row)[-1]]) for row in self.survivors]
        together = len(set(lasts)) == 1
        for place, name in enumerate(self.variants):
            look = {**_look(place), "linestyle": "none"}
            shift = 0.2 * (place - (len(self.variants) - 1) / 2)  # side by side where shares are equal
            ax.plot(
                100 * ends[place, drawn],
                heights - shift,
                label=name if together else f"{name}, level {lasts[place]}",
                **look,
            )
        names = [self.layers[index] for index in drawn]
        shown = [name if len(name) <= 32 else f"{name[:18]}…{name[-13:]}" for name in names]
        ax.set_yticks(heights, shown, fontsize=5 if len(names) > 14 else 7)
        ax.grid(axis="y", linewidth=0.4, color="#dddddd")
        ax.set_ylim(-0.6, len(drawn) - 0.4)
        positive = ends[ends > 0]
        if len(positive) == ends.size and positive.max() > 10 * positive.min():
            ax.set_xscale("log")
        else:
            ax.set_xlim(left=0)
        ax.set_xlabel("share of the tensor that survives (%)")
        heading(ax, f"Layers at {f'level {lasts[0]}' if together else 'the last level'}", columns=3 if together else 2)

    def figure(self) -> Figure:
        """See Result."""
        import plotly.graph_objects as go

        from landscape.analysis.styles import interactive

        figure = go.Figure()
        middles = np.sqrt(self.edges[1:] * self.edges[:-1])
        for v, name in enumerate(self.variants):
            for k in self._steps(v):
                drawn = (("before pruning", self.solved[v, k]), ("pruned", self.projected[v, k]), ("retrained", self.solved[v, k + 1]))  # fmt: skip
                for number, (what, counts) in enumerate(drawn):
                    figure.add_scatter(
                        x=middles,
                        y=100 * counts * PER_DECADE / self.survivors[v, k],
                        name=f"{name}, level {self.numbers[k]}: {what}",
                        mode="lines",
                        line={"shape": "hvh", "dash": ("solid", "dash", "solid")[number]},
                        visible=True if v == 0 and k == self._steps(v)[0] else "legendonly",
                    )
        figure = interactive(figure, x="|w|", y="share of survivors a decade (%)")
        figure.update_xaxes(type="log")
        # many lines, most of them waiting in the legend: beside the picture, where it can scroll
        figure.update_layout(legend={"orientation": "v", "x": 1.02, "y": 1})
        return figure


def _look(place: int) -> dict[str, Any]:
    """Colour, dash and marker of a variant: colour is never the only cue."""
    from landscape.analysis.styles import CYCLE

    return {
        "color": CYCLE[place % len(CYCLE)],
        "linestyle": ("-", "--", "-.")[place % 3],  # dotted lines are references
        "marker": "os^DvPX"[place % 7],
        "markersize": 4,
    }


def _number(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else ""


def _percent(value: float) -> str:
    return f"{100 * value:.3g}%" if math.isfinite(value) else ""


# -- the measurement --------------------------------------------------------------------------------------------------


def retraining(
    variants: Mapping[str, Iterable[Stage]],
    *,
    prunable: Mask,
    levels: Sequence[int] = (),
    question: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Retraining:
    """Magnitudes at the levels of one or more iterative prunings of one network, each by name with its stages in order. Two stages are held at a time, so that a generator may read them from disk.

    prunable: the weights that may be pruned.
    levels: from which the drawn steps go; by default the first, one in the middle and the last.

    Raises UsageError where there is no stage, masks are not nested or of other networks, numbers do not rise, or a level asked for is none from which a step goes; LandscapeError where a weight is not finite.
    """
    if not variants:
        raise UsageError("there is no iterative pruning to look at: give at least one run.")
    found = {name: _followed(name, stages, prunable) for name, stages in variants.items()}
    numbers = sorted({row["number"] for rows in found.values() for row in rows})
    stepped = sorted({row["number"] for rows in found.values() for row in rows[:-1]})
    for level in levels:
        if level not in stepped:
            allowed = ", ".join(str(number) for number in stepped) or "none: there is one level only"
            raise UsageError(f"no step goes from level {level}. Allowed: {allowed}.")
    if not levels and stepped:
        levels = [stepped[k] for k in np.unique(np.linspace(0, len(stepped) - 1, SHOWN).round().astype(int))]
    edges = _edges()

    def gathered(name: str, blank: Any) -> np.ndarray:
        """(V, L, ...) of the stages."""
        first = np.asarray(next(iter(found.values()))[0][name])
        table = np.full((len(found), len(numbers), *first.shape), blank)
        for v, rows in enumerate(found.values()):
            for row in rows:
                table[v, numbers.index(row["number"])] = row[name]
        return table

    solved, projected = gathered("solved", 0), gathered("projected", 0)
    used = np.flatnonzero(solved.sum((0, 1)))
    bins = slice(used[0], used[-1] + 1) if len(used) else slice(0, 1)
    numeric = (
        "solved_quantiles", "projected_quantiles", "errors", "pruned", "thresholds", "small", "lengths", "travelled", "moved", "turned", "kept",
    )  # fmt: skip
    return Retraining(
        question=dict(question or {}),
        provenance=dict(provenance or {}),
        warnings=tuple(_warnings(found)),
        variants=list(found),
        numbers=np.array(numbers),
        shown=[int(level) for level in levels],
        prunable=prunable.size,
        survivors=gathered("survivors", 0),
        edges=edges[bins.start : bins.stop + 1],
        solved=solved[..., bins],
        projected=projected[..., bins],
        outside=gathered("outside", 0),
        quantiles=np.array(QUANTILES),
        layers=[name for name, (size, _) in prunable.counts().items() if size],
        **{name: gathered(name, math.nan) for name in numeric},
    )


def _edges() -> np.ndarray:
    low, high = DECADES
    return np.asarray(10.0 ** (np.arange(low * PER_DECADE, high * PER_DECADE + 1) / PER_DECADE))


def _followed(name: str, stages: Iterable[Stage], prunable: Mask) -> list[dict[str, Any]]:
    """What is measured at each stage of one iterative pruning, in order; the step to the next one stands at the first of the two."""
    rows: list[dict[str, Any]] = []
    before: Stage | None = None
    for stage in stages:
        for what, point in (("start", stage.start), ("solution", stage.solution)):
            if point.shape != stage.mask.kept.shape:
                raise UsageError(f"the {what} of level {stage.number} of {name} is {point.shape}, and its mask of {stage.mask.layout.dim} parameters.")  # fmt: skip
            if not np.isfinite(point[stage.mask.kept]).all():
                raise LandscapeError(f"the {what} of level {stage.number} of {name} has weights that are not finite: it diverged. Train it with a smaller --lr.")  # fmt: skip
        row = _standing(stage, prunable)
        if before is not None:
            if stage.number <= before.number or not stage.mask <= before.mask:
                raise UsageError(f"level {stage.number} of {name} does not follow from level {before.number}: numbers rise, and each mask lies within the one before.")  # fmt: skip
            rows[-1] |= _stepped(before, stage, prunable)
        rows.append(row)
        before = stage
    if not rows:
        raise UsageError(f"{name} has no level.")
    return rows


def _standing(stage: Stage, prunable: Mask) -> dict[str, Any]:
    """Of one level; what belongs to the step from it is not known yet."""
    mine = stage.mask & prunable
    sizes = np.abs(stage.solution[mine.kept].astype(float))
    counts, _ = np.histogram(sizes, _edges())
    free = stage.mask.kept
    nothing = dict.fromkeys(("pruned", "thresholds", "small", "lengths", "moved", "turned", "overlap"), math.nan)
    shares = zip(mine.counts().values(), prunable.counts().values(), strict=True)
    return {
        "number": stage.number,
        "errors": stage.error,
        "survivors": len(sizes),
        "solved": counts,
        "outside": len(sizes) - int(counts.sum()),
        "solved_quantiles": _quantiles(sizes),
        "travelled": float(np.linalg.norm(stage.solution[free].astype(float) - stage.start[free])),
        "kept": np.array([left / total for (left, _), (total, _) in shares if total]),
        "projected": np.zeros_like(counts),
        "projected_quantiles": np.full(len(QUANTILES), math.nan),
        **nothing,
    }


def _stepped(before: Stage, after: Stage, prunable: Mask) -> dict[str, Any]:
    """Of the step from one level to the next."""
    mine, next_ = before.mask & prunable, after.mask & prunable
    old = np.abs(before.solution.astype(float))
    sizes, left, gone = old[mine.kept], old[next_.kept], old[(mine - next_).kept]
    retrained = np.abs(after.solution[next_.kept].astype(float))
    tau = float(np.partition(sizes, len(gone) - 1)[len(gone) - 1]) if len(gone) else 0.0
    length = float(np.linalg.norm(sizes))
    shared = after.mask.kept
    start, end = before.solution[shared].astype(float), after.solution[shared].astype(float)
    counts, _ = np.histogram(left, _edges())
    return {
        "projected": counts,
        "projected_quantiles": _quantiles(left),
        "pruned": len(gone) / len(sizes) if len(sizes) else math.nan,
        "thresholds": tau,
        "small": float(np.mean(retrained <= tau)) if len(retrained) else math.nan,
        "lengths": float(np.linalg.norm(gone)) / length if length else math.nan,
        "moved": float(np.linalg.norm(end - start)),
        "turned": _angular(start, end),
        # weights that went though they are larger than the threshold: another criterion than global magnitude
        "overlap": int(np.sum(gone > tau)),
    }


def _quantiles(sizes: np.ndarray) -> np.ndarray:
    return np.quantile(sizes, QUANTILES) if len(sizes) else np.full(len(QUANTILES), math.nan)


def _angular(one: np.ndarray, other: np.ndarray) -> float:
    """2 angle / pi between two vectors; NaN where one is 0. By Kahan's formula, which is exact to rounding at small angles too."""
    lengths = np.linalg.norm(one), np.linalg.norm(other)
    if not all(lengths):
        return math.nan
    one, other = one / lengths[0], other / lengths[1]
    return 4 / math.pi * math.atan2(float(np.linalg.norm(one - other)), float(np.linalg.norm(one + other)))


def _warnings(found: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    """Each a sentence."""
    notes = []
    for name, rows in found.items():
        others = sum(row["overlap"] > 0 for row in rows[:-1])
        if others:
            notes.append(
                f"{name}: in {others} of {len(rows) - 1} steps weights went that are larger than others that stayed (layer-wise pruning, another rate of the output layer, or another criterion): "
                "the threshold is then that of global magnitude pruning of as many, and no boundary."
            )
        zeros = sum(row["outside"] for row in rows)
        if zeros:
            notes.append(f"{name}: over all levels {zeros:,} of the survivors that are 0 or beyond the bins of |w| ({10.0 ** DECADES[0]:g} to {10.0 ** DECADES[1]:g}) are left out of the histograms.")  # fmt: skip
    return notes
