"""Barriers: what loss and error do on the straight path between two solutions (linear mode connectivity).

Letters: D parameters, d coordinates (d = D unless restricted), N rows, K points of the path, C channels of a layer.

    w(a) = (1 - a) start + a end,  E(a) loss or error (1 - accuracy) there,  baseline(a) = (1 - a) E(0) + a E(1)

    linear-baseline   max_a E(a) - baseline(a)        never negative: it is 0 at the ends, which are on the grid
    over-mean         max_a E(a) - (E(0) + E(1)) / 2  |E(0) - E(1)| / 2 even on a convex path
    midpoint          E(1/2) - (E(0) + E(1)) / 2      negative where the middle is better than the ends
    over-worse-end    max_a E(a) - max(E(0), E(1))    never negative
    integral          int_0^1 E(a) - baseline(a) da   trapezoids; negative where the path is mostly below the baseline
    path-mean         int_0^1 E(a) da                 trapezoids; a level of the path and no barrier
    per-example       mean_i l_i(1/2) - (l_i(0) + l_i(1)) / 2   equals midpoint; its quantiles over rows stand beside it

All of them come from one curve, and they disagree: a barrier without the name of its definition means nothing.

BatchNorm statistics are no parameters, and those of w(a) are not the interpolated ones: averaging variances gives
(1-a) s^2 + a t^2 where a scaled layer has ((1-a) s + a t)^2. The midpoint of REPAIR's aligned ResNet-20 is 11.7%
accurate with averaged statistics and 90.3% with recomputed ones.

Sources: Frankle et al. 2020 (over-mean); Entezari et al. 2022 and Paul et al. 2023, definition 2.3 (linear-baseline);
Ainsworth et al. 2023, git-re-basin (25 points); Garipov et al. 2018 (integral; statistics recomputed at every point);
Jordan et al. 2023, REPAIR (statistics); Chan, Golub, LeVeque 1979 (combining variances of chunks).
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from landscape.analysis.styles import BLUE, GREY, VERMILION, interactive
from landscape.errors import UsageError, unknown
from landscape.objectives import Buffers, Network, NormMode, Objective, dtype_name
from landscape.results import Result
from landscape.seeds import generator

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from plotly.graph_objects import Figure

DEFINITIONS = {
    "linear-baseline": "max over a of E(a) - ((1-a) E(0) + a E(1))",
    "over-mean": "max over a of E(a) - (E(0) + E(1)) / 2",
    "midpoint": "E(1/2) - (E(0) + E(1)) / 2",
    "over-worse-end": "max over a of E(a) - max(E(0), E(1))",
    "integral": "mean over a of E(a) - ((1-a) E(0) + a E(1))",
    "path-mean": "mean over a of E(a)",
    "per-example": "mean over rows of l(1/2) - (l(0) + l(1)) / 2",
}
POLICIES = {
    "average": "running statistics interpolated like the weights",
    "recompute": "statistics of all train rows taken anew at every point",
    "endpoint": "the start's statistics on the whole path, the end included",
    "batch": "each chunk of rows normalised by its own statistics",
}
DEFAULT_POLICY = "recompute"  # what a network of these weights would have; here and at the command line
UNNEEDED = "none needed"
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
NEAR_CHANCE = 0.02  # the stability bound of Frankle et al. 2020: what is smaller than it counts as no barrier

T = TypeVar("T")
Numbers = dict[str, float | None]  # None: undefined, because of values that are not finite


@dataclass(frozen=True, kw_only=True)
class Barrier(Result):
    """The path between two points, and every definition of its barrier.

    Curves are named "<split> <metric>": test before train, "error" (only where the loss classifies) before "loss".
    """

    alpha: np.ndarray  # (K,) ascending from 0 to 1, 1/2 among them
    curves: dict[str, np.ndarray]  # (K,) each; errors in [0, 1]; NaN where the loss was not finite
    barriers: dict[str, Numbers]  # by curve, then definition
    argmax: dict[str, Numbers]  # by curve: a of the largest excess over the `baseline`, and of the largest `value`
    per_example: dict[str, Numbers]  # by curve: mean, standard_error, q05 ... q95, share_positive, rows, masked
    distance: float  # |end - start| in parameters
    angle: float | None  # degrees between start and end, seen from the origin; None where one of them is the origin
    bn: str  # policy for BatchNorm statistics, or "none needed"
    rows: dict[str, int]  # N by split
    masked: dict[str, int]  # points of the path without a finite loss, by split
    grid: int  # evenly spaced points
    refined: int  # points added around the largest excess
    loss: str  # name
    chance: dict[str, float]  # error of always guessing the commonest class, by split; empty without classes
    degenerate: bool  # an end at chance or not finite, or both ends one point: the barrier says nothing

    def value(self, split: str | None = None, metric: str | None = None, definition: str = "linear-baseline") -> float:
        """One barrier; NaN where values that are not finite leave it undefined.

        split: `test` or `train`; by default test where there is one.
        metric: `error` (in [0, 1]) or `loss`; by default error where the loss classifies.
        definition: a name of `DEFINITIONS`; by default the one that is 0 on every convex path (Paul et al. 2023, 2.3).
        Raises UsageError for names that the result does not have.
        """
        own_split, own_metric = self._headline().split()
        name = f"{split or own_split} {metric or own_metric}"
        if name not in self.barriers:
            raise unknown("curve", name, self.barriers)
        if definition not in DEFINITIONS:
            raise unknown("definition", definition, DEFINITIONS)
        return _nan(self.barriers[name][definition])

    def definitions(self) -> dict[str, dict[str, float]]:
        """All barriers: curve -> definition -> value, NaN where undefined."""
        return {name: {key: _nan(row[key]) for key in DEFINITIONS} for name, row in self.barriers.items()}

    def summary(self) -> str:
        """See Result."""
        name = self._headline()
        place = self.argmax[name]["baseline"]
        at = "" if place is None else f", at a = {place:.2f}" if self.value() > 0 else ", nowhere above it"
        text = (
            f"{name.replace(' ', '-')} barrier {_amount(self.value(), name)} "
            f"(linear baseline, {self.grid}+{self.refined} points{at}), ends {_ends(self.curves[name], name)}"
        )
        split, metric = name.split()
        if metric == "error":
            text += f"; {split}-loss barrier {_amount(self.value(split, 'loss'), 'loss')}"
        if self.bn != UNNEEDED:
            text += f"; BatchNorm {self.bn}"
        return text + ("; DEGENERATE, see the warnings" if self.degenerate else "")

    def caption(self) -> str:
        """See Result."""
        name = self._headline()
        rows = ", ".join(f"{count:,} {split} rows" for split, count in self.rows.items())
        angle = "" if self.angle is None else f" ({self.angle:.1f} degrees seen from the origin)"
        keys = (key for key in DEFINITIONS if key not in ("linear-baseline", "path-mean", "per-example"))
        others = ", ".join(f"{key} {_amount(self.value(definition=key), name)}" for key in keys)
        said = [
            f"Straight path w(a) = (1-a) start + a end over {rows}; the ends are {self.distance:.4g} apart{angle}.",
            "Thin grey: the linear baseline between the end values. Arrow: the barrier, the largest excess over it; "
            "a path nowhere above the baseline has barrier 0.",
            f"{self.grid} evenly spaced points, {self.refined} more around the largest excess.",
            f"By other definitions, {name}: {others}.",
        ]
        if self.bn != UNNEEDED:
            said.append(f"BatchNorm {self.bn}: {POLICIES[self.bn]}.")
        example = self.per_example[name]
        share, deviation = example["share_positive"], example["standard_error"]
        if share is not None and deviation is not None:
            said.append(
                f"At the midpoint {share:.0%} of the {name.split()[0]} rows are worse than the mean of their ends; "
                f"the standard error of the mean over rows is {_amount(deviation, name)}."
            )
        if any(self.masked.values()):
            said.append("Crosses at the foot: points that are not finite, left out.")
        return " ".join(said)

    def table(self) -> list[tuple[str, ...]]:
        """See Result: every curve by every definition."""
        rows = [(name, *(_amount(value, name) for value in row.values())) for name, row in self.definitions().items()]
        return [("curve", *DEFINITIONS), *rows]

    def panels(self) -> tuple[str, ...]:
        """See Result."""
        return ("error", "loss") if self._headline().endswith("error") else ("loss",)

    def plot(self, ax: Axes, panel: str = "") -> None:
        """See Result."""
        panel = panel or self.panels()[0]
        if panel not in self.panels():
            raise unknown("panel", panel, self.panels())
        scale = 100 if panel == "error" else 1
        shown = self._shown(panel)
        for name, (colour, dash, marker) in shown.items():
            curve = scale * self.curves[name]
            amount = _amount(_nan(self.barriers[name]["linear-baseline"]), name)
            label = f"{name.split()[0]}: ends {_ends(self.curves[name], name)}, barrier {amount}"
            ax.plot([0, 1], curve[[0, -1]], color=GREY, linewidth=0.8, zorder=1)
            ax.plot(self.alpha, curve, color=colour, linestyle=dash, marker=marker, markersize=3, label=label, zorder=3)
            missing = self.alpha[~np.isfinite(curve)]
            ax.plot(missing, np.full_like(missing, 0.02), "x", color=colour, transform=ax.get_xaxis_transform())
        self._mark(ax, next(iter(shown)), scale)
        heights = scale * np.concatenate([self.curves[name] for name in shown])
        heights = heights[np.isfinite(heights)]
        if len(heights):
            low, high = heights.min(), heights.max()
            room = (high - low) or abs(high) or 1.0
            ax.set_ylim(low - 0.06 * room, high + 0.16 * room)  # the strip above the curves holds the barrier's label
        ax.set_xlim(-0.03, 1.03)
        ax.set_xlabel("place on the path, a (0 = start, 1 = end)")
        ax.set_ylabel("error (%)" if panel == "error" else f"loss ({self.loss})")
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)

    def figure(self) -> Figure:
        """See Result."""
        from plotly.graph_objects import Scatter
        from plotly.subplots import make_subplots

        panels = self.panels()
        figure = make_subplots(rows=1, cols=len(panels), horizontal_spacing=0.12)
        for column, panel in enumerate(panels, 1):
            scale, unit = (100, "%") if panel == "error" else (1, "")
            for name, (colour, dash, marker) in self._shown(panel).items():
                curve = scale * self.curves[name]
                path = Scatter(
                    x=self.alpha,
                    y=curve,
                    customdata=curve - _baseline(self.alpha, curve),
                    mode="lines+markers",
                    name=name,
                    line={"color": colour, "dash": "solid" if dash == "-" else "dash"},
                    marker={"symbol": "circle" if marker == "o" else "square", "size": 5},
                    hovertemplate=f"{name} %{{y:.4g}}{unit} at a = %{{x:.4f}}<br>"
                    f"%{{customdata:+.4g}}{unit} over the baseline<extra></extra>",
                )
                baseline = Scatter(
                    x=[0, 1],
                    y=curve[[0, -1]],
                    mode="lines",
                    line={"color": GREY, "width": 1},
                    showlegend=False,
                    hoverinfo="skip",
                )
                figure.add_traces([baseline, path], rows=1, cols=column)
        interactive(figure, x="place on the path, a", y=f"loss ({self.loss})")
        if len(panels) > 1:
            figure.update_yaxes(title="error (%)", col=1)
        return figure

    # -- inside --------------------------------------------------------------

    def _headline(self) -> str:
        """The first curve: of test before train, of error before loss."""
        return next(iter(self.curves))

    def _shown(self, panel: str) -> dict[str, tuple[str, str, str]]:
        """The curves of a panel, the headline's first, each with colour, dash and marker."""
        looks = {"test": (BLUE, "-", "o"), "train": (VERMILION, "--", "s")}
        return {name: looks[name.split()[0]] for name in self.curves if name.endswith(panel)}

    def _mark(self, ax: Axes, name: str, scale: float) -> None:
        """The barrier of a curve: an arrow from the baseline up to it, its value in the strip above all curves."""
        place = self.argmax[name]["baseline"]
        if place is None:
            return
        curve = scale * self.curves[name]
        peak, foot = (line[np.searchsorted(self.alpha, place)] for line in (curve, _baseline(self.alpha, curve)))
        split, metric = name.split()
        colour = self._shown(metric)[name][0]
        if peak > foot:
            style = {"arrowstyle": "<->", "color": colour, "linewidth": 1, "shrinkA": 0, "shrinkB": 0}
            ax.annotate("", (place, peak), (place, foot), arrowprops=style, zorder=2)
        text = f"{split} barrier {_amount(self.value(split, metric), name)} (linear baseline)"
        side = "left" if place < 0.3 else "right" if place > 0.7 else "center"
        ax.text(place, 0.99, text, color=colour, ha=side, va="top", transform=ax.get_xaxis_transform())


# -- the question -----------------------------------------------------------------------------------------------------


def barrier(
    train: Objective,
    test: Objective | None,
    start: Tensor,
    end: Tensor,
    *,
    start_buffers: Buffers | None = None,
    end_buffers: Buffers | None = None,
    points: int = 25,
    refine: int = 8,
    bn: str = DEFAULT_POLICY,
    chance: float | None = None,
    seed: int = 0,
) -> Barrier:
    """Loss and error on the straight path from `start` (d,) to `end` (d,), coordinates of both objectives.

    test: None where no rows are held out.
    start_buffers, end_buffers: the models' buffers at the ends; by default those of `train`. Integer ones are never
        interpolated: the start's are used.
    points: evenly spaced ones, odd so that 1/2 is among them; 25 as git-re-basin.
    refine: more points, each halving the wider of the two intervals beside the largest excess over the linear baseline,
        the curves taking turns. 8 halve both intervals of each of four curves, for a third of the grid's cost.
    bn: a name of `POLICIES`. The default, `recompute`, costs a forward pass over all train rows a point, and gives the
        ends statistics of all rows in place of the running ones; `average` leaves the ends as they were trained and
        needs no pass over data, but exaggerates the barrier between independent ends, and warns of it. Models without
        BatchNorm need none, get none, and the result says so.
    chance: the error of guessing, by which ends are judged; by default 1 - the share of each split's commonest class.
    seed: of the order in which `recompute` and `batch` cut the rows into chunks (data often lie sorted by class);
        nothing else is random.

    Raises UsageError where shapes, buffers, names or counts do not fit.
    """
    splits = {name: f for name, f in (("test", test), ("train", train)) if f is not None}
    start, end = (point.detach().to(train.device, train.dtype) for point in (start, end))
    _check(splits, start, end, points, refine, bn, chance)
    policy = bn if _batch_norms(train) else UNNEEDED
    if policy in ("recompute", "batch"):
        splits = {split: _evenly(_shuffled(f, seed)) for split, f in splits.items()}
    path = _Path(splits, start, end, _fitted(train, start_buffers, "start"), _fitted(train, end_buffers, "end"), policy)

    rowwise = {a: path.by_row(a) for a in (0.0, 0.5, 1.0)}
    values = {a: _masked({name: float(rows.mean()) for name, rows in found.items()}) for a, found in rowwise.items()}
    for i in range(points):
        a = i / (points - 1)
        if a not in values:
            values[a] = path.values(a)
    guides = list(rowwise[0.0])
    for turn in range(refine):
        between = _between(*_curve(values, guides[turn % len(guides)]))
        if between is not None and between not in values:
            values[between] = path.values(between)

    curves = {name: _curve(values, name)[1] for name in guides}
    alpha = _curve(values, guides[0])[0]
    measured = {name: _definitions(alpha, curve) for name, curve in curves.items()}
    examples = {name: _examples(*(rowwise[a][name] for a in (0.0, 0.5, 1.0))) for name in guides}
    for name in guides:
        measured[name][0]["per-example"] = examples[name]["mean"]
    w0, w1 = (train.lift(point).cpu().double() for point in (start, end))
    distance = float((w1 - w0).norm())
    chances = {split: _chance(f) if chance is None else chance for split, f in splits.items() if f.loss.classifies}
    masked = {split: int(np.isnan(curves[f"{split} loss"]).sum()) for split in splits}
    failings = list(_failings(curves, splits, chances, distance))
    cautions = list(_cautions(curves, splits, policy, start_buffers is None and end_buffers is None))
    return Barrier(
        question={},
        provenance={
            "rows": {split: len(f.rows) for split, f in splits.items()},
            "dtype": dtype_name(train.dtype),
            "device": str(train.device),
            "D": train.model.layout.dim,
            "chunk": train.chunk,
            "seed": seed,
        },
        warnings=(*failings, *cautions),
        alpha=alpha,
        curves=curves,
        barriers={name: values for name, (values, _) in measured.items()},
        argmax={name: places for name, (_, places) in measured.items()},
        per_example=examples,
        distance=distance,
        angle=_angle(w0, w1),
        bn=policy,
        rows={split: len(f.rows) for split, f in splits.items()},
        masked=masked,
        grid=points,
        refined=len(alpha) - points,
        loss=train.loss.name,
        chance=chances,
        degenerate=bool(failings),
    )


def recomputed(f: Objective, z: Tensor) -> Objective:
    """f with its BatchNorm statistics taken anew at z (d,) over f.rows: mean and unbiased variance, as torch has it.

    Chunks are combined by their sums, so that unequal ones do no harm: the first normalised layer's statistics are
    those of all rows, whatever the chunk. Each layer normalises by its own chunk meanwhile, so that deeper layers do
    depend on how many rows share a chunk, and on which: shuffle rows that lie sorted. Counters (num_batches_tracked)
    and all other buffers stay. Without BatchNorm the answer is f itself.

    Raises UsageError where a chunk would hold a single row.
    """
    layers = _batch_norms(f)
    if not layers:
        return f
    f = _evenly(f)
    tallies = {name: _Tally() for name in layers}

    def count(module: nn.Module, inputs: tuple[Tensor, ...], *, tally: _Tally) -> None:
        tally.add(inputs[0].detach())

    w = f.lift(z)
    with contextlib.ExitStack() as stack, torch.no_grad():
        for name, layer in layers.items():
            stack.enter_context(layer.register_forward_pre_hook(partial(count, tally=tallies[name])))
        for rows in f.rows.chunks(f.chunk):
            f.model.forward(f.model.split(w), f.buffers, rows.inputs, "batch")
    buffers = dict(f.buffers)
    for name, tally in tallies.items():
        for key, statistic in (("running_mean", tally.mean), ("running_var", tally.squares / max(tally.count - 1, 1))):
            buffers[f"{name}.{key}"] = statistic.to(f.buffers[f"{name}.{key}"])
    return f.with_buffers(buffers, "eval")


# -- the path ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Path:
    """A segment, with the policy for the buffers on it."""

    splits: dict[str, Objective]
    start: Tensor  # (d,)
    end: Tensor  # (d,)
    start_buffers: Buffers
    end_buffers: Buffers
    policy: str

    def at(self, a: float) -> tuple[Tensor, dict[str, Objective]]:
        """The point w(a), exactly an end at 0 and 1, and the objectives with their buffers there."""
        z = {0.0: self.start, 1.0: self.end}.get(a, torch.lerp(self.start, self.end, a))
        buffers = self.start_buffers
        if self.policy != "endpoint":
            pairs = ((name, value, self.end_buffers[name]) for name, value in buffers.items())
            buffers = {name: torch.lerp(b0, b1, a) if b0.is_floating_point() else b0 for name, b0, b1 in pairs}
        if self.policy == "recompute":
            buffers = recomputed(self.splits["train"].with_buffers(buffers), z).buffers
        norm: NormMode | None = None if self.policy == UNNEEDED else "batch" if self.policy == "batch" else "eval"
        return z, {split: f.with_buffers(buffers, norm) for split, f in self.splits.items()}

    def values(self, a: float) -> dict[str, float]:
        """Every curve at a."""
        z, objectives = self.at(a)
        found = {split: f.value(z) for split, f in objectives.items()}
        return _masked(self._named({split: (float(v.loss), 1 - float(v.accuracy)) for split, v in found.items()}))

    def by_row(self, a: float) -> dict[str, np.ndarray]:
        """Every curve's values by row (N,) at a."""
        z, objectives = self.at(a)
        found = {split: [part.cpu().double().numpy() for part in f.by_row(z)] for split, f in objectives.items()}
        return self._named({split: (losses, 1 - right) for split, (losses, right) in found.items()})

    def _named(self, found: dict[str, tuple[T, T]]) -> dict[str, T]:
        """By curve: test before train, error (where the loss classifies) before loss."""
        named = {}
        for split, (loss, error) in found.items():
            if self.splits[split].loss.classifies:
                named[f"{split} error"] = error
            named[f"{split} loss"] = loss
        return named


def _masked(values: dict[str, float]) -> dict[str, float]:
    """NaN, for the error too, where the loss of a split is not finite: outputs that are NaN have no right answers."""
    finite = {name: math.isfinite(values[f"{name.split()[0]} loss"]) for name in values}
    return {name: value if finite[name] else math.nan for name, value in values.items()}


def _curve(values: Mapping[float, Mapping[str, float]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Places (K,), ascending, and one curve's values there."""
    alpha = sorted(values)
    return np.array(alpha), np.array([values[a][name] for a in alpha])


def _baseline(alpha: np.ndarray, curve: np.ndarray) -> np.ndarray:
    """The straight line between the end values (K,), exactly those at the ends; NaN where one of them is."""
    if np.isnan(curve[[0, -1]]).any():
        return np.full_like(curve, math.nan)
    line: np.ndarray = np.interp(alpha, [0, 1], curve[[0, -1]])
    return line


def _between(alpha: np.ndarray, curve: np.ndarray) -> float | None:
    """The middle of the wider interval beside the largest excess; of equal ones, of that with the higher neighbour."""
    excess = curve - _baseline(alpha, curve)
    if not np.isfinite(excess).any():
        return None
    top = int(np.nanargmax(excess))

    def rank(neighbour: int) -> tuple[float, float]:
        height = excess[neighbour]
        # rounded: the widths of one grid differ in their last bits
        return round(abs(alpha[neighbour] - alpha[top]), 12), height if np.isfinite(height) else -math.inf

    best = max((i for i in (top - 1, top + 1) if 0 <= i < len(alpha)), key=rank)
    return float((alpha[top] + alpha[best]) / 2)


# -- the numbers ------------------------------------------------------------------------------------------------------


def _definitions(alpha: np.ndarray, curve: np.ndarray) -> tuple[Numbers, Numbers]:
    """Every definition but per-example; and the places of the largest excess over the baseline and largest value."""
    excess = curve - _baseline(alpha, curve)
    middle = float(curve[np.searchsorted(alpha, 0.5)])
    first, last = float(curve[0]), float(curve[-1])
    top = float(np.nanmax(curve)) if np.isfinite(curve).any() else math.nan
    barriers = {
        "linear-baseline": float(np.nanmax(excess)) if np.isfinite(excess).any() else math.nan,
        "over-mean": top - (first + last) / 2,
        "midpoint": middle - (first + last) / 2,
        "over-worse-end": top - max(first, last) if math.isfinite(first + last) else math.nan,
        # a gap is not bridged: with a masked point the integrals are undefined
        "integral": float(np.trapezoid(excess, alpha)),
        "path-mean": float(np.trapezoid(curve, alpha)),
    }
    places = {
        "baseline": float(alpha[np.nanargmax(excess)]) if np.isfinite(excess).any() else math.nan,
        "value": float(alpha[np.nanargmax(curve)]) if np.isfinite(curve).any() else math.nan,
    }
    return _numbers(barriers), _numbers(places)


def _examples(start: np.ndarray, middle: np.ndarray, end: np.ndarray) -> Numbers:
    """The distribution over rows of l(1/2) - (l(0) + l(1)) / 2, from the values (N,) at the three points.

    Rows that are not finite are left out and counted.
    """
    with np.errstate(invalid="ignore"):
        barriers = middle - (start + end) / 2
    finite = barriers[np.isfinite(barriers)]
    n = len(finite)
    numbers = {f"q{round(100 * q):02d}": float(np.quantile(finite, q)) if n else math.nan for q in QUANTILES}
    numbers |= {
        "mean": float(finite.mean()) if n else math.nan,
        "standard_error": float(finite.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan,
        "share_positive": float((finite > 0).mean()) if n else math.nan,
        "rows": n,
        "masked": len(barriers) - n,
    }
    return _numbers(numbers)


def _numbers(values: Mapping[str, float]) -> Numbers:
    """None where undefined: a NaN outside an array does not survive JSON."""
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def _nan(number: float | None) -> float:
    return math.nan if number is None else number


def _angle(u: Tensor, v: Tensor) -> float | None:
    """Degrees between two vectors; Kahan's form, exact also where they are nearly parallel."""
    if not (u.norm() * v.norm() > 0):
        return None
    u, v = u / u.norm(), v / v.norm()
    return math.degrees(2 * math.atan2(float((u - v).norm()), float((u + v).norm())))


def _chance(f: Objective) -> float:
    """The error of always guessing the commonest class."""
    _, counts = _classes(f)
    return 1 - float(counts.max() / counts.sum())


def _classes(f: Objective) -> tuple[Tensor, Tensor]:
    """The classes among the targets and how often each stands there; negative ones are those that torch ignores."""
    targets = f.rows.targets
    classes, counts = torch.unique(targets[targets >= 0], return_counts=True)
    return classes, counts


def _failings(
    curves: Mapping[str, np.ndarray], splits: Mapping[str, Objective], chance: Mapping[str, float], distance: float
) -> Iterator[str]:
    """Why the barrier is degenerate, in sentences."""
    if distance == 0:
        yield "The ends are one point: the path is constant and every barrier 0."
    lost, guessing = [], []
    for split, place in itertools.product(splits, (0, -1)):
        end = "end" if place else "start"
        error = curves[f"{split} error"][place] if split in chance else -math.inf
        if math.isnan(curves[f"{split} loss"][place]):
            lost.append(f"{split} loss of the {end}")
        elif error >= chance.get(split, math.inf) - NEAR_CHANCE:
            guessing.append(f"{split} error of the {end} {error:.1%}, guessing {chance[split]:.1%}")
    if lost:
        yield f"Not finite: {', '.join(lost)}. No barrier of these curves is defined. Give another point."
    if guessing:
        yield f"At chance: {'; '.join(guessing)}. Between points that know nothing a small barrier shows nothing."


def _cautions(
    curves: Mapping[str, np.ndarray], splits: Mapping[str, Objective], policy: str, same_buffers: bool
) -> Iterator[str]:
    """What else a reader must know: a sentence for each cause, naming the curves that have it."""
    gaps, guessing, apart = [], [], []
    for split, f in splits.items():
        losses = curves[f"{split} loss"]
        masked = int(np.isnan(losses).sum())
        if masked:
            gaps.append(f"{masked} of {len(losses)} points of the {split} loss")
        uniform = math.log(max(len(_classes(f)[0]), 2)) if f.loss.classifies else math.inf
        if losses[[0, -1]].max() >= uniform - NEAR_CHANCE:
            guessing.append(f"{split} loss {_ends(losses, 'loss')}, uniform guessing {uniform:.3g}")
    for name, curve in curves.items():
        gap, larger = abs(curve[0] - curve[-1]), np.abs(curve[[0, -1]]).max()
        # errors: definitions differ by gap / 2, here over the stability bound; losses: one is over twice the other
        if gap > (2 * NEAR_CHANCE if name.endswith("error") else larger / 2):
            apart.append(f"{name} ({_ends(curve, name)}: {_amount(gap / 2, name)})")
    if gaps:
        yield f"Not finite: {', '.join(gaps)}. They are left out: maxima are lower bounds, integrals are undefined."
    if guessing:
        yield f"An end is no better than uniform guessing: {'; '.join(guessing)}. The loss barrier shows little."
    if apart:
        yield (
            f"The ends differ much in {', '.join(apart)}: even without a hump over-mean is at least the last of these "
            "numbers, half the gap. Compare linear-baseline and over-worse-end."
        )
    if policy == "average":
        yield (
            "BatchNorm statistics are averaged along the path. Unless both ends share most of their training, this "
            "exaggerates the barrier: use bn='recompute' (a pass over the train rows a point)."
        )
        if same_buffers:
            yield (
                "Both ends were given one set of BatchNorm statistics, the objective's: "
                "give start_buffers and end_buffers, or use bn='recompute'."
            )
    if policy == "endpoint":
        yield "BatchNorm statistics are the start's on the whole path: the values at a = 1 are not the end's own."


# -- BatchNorm --------------------------------------------------------------------------------------------------------


class _Tally:
    """Mean and sum of squared deviations (C,) of a layer's inputs, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.squares = torch.zeros((), dtype=torch.float64)

    def add(self, inputs: Tensor) -> None:
        """Take in inputs (n, C, ...)."""
        values = inputs.transpose(0, 1).flatten(1)  # (C, m)
        m = values.shape[1]
        variance, mean = (part.cpu().double() for part in torch.var_mean(values, 1, correction=0))
        shift = mean - self.mean
        total = self.count + m
        self.squares = self.squares + variance * m + shift**2 * (self.count * m / total)
        self.mean = self.mean + shift * (m / total)
        self.count = total


def _batch_norms(f: Objective) -> dict[str, nn.Module]:
    """The BatchNorm layers with running statistics, by name."""
    if not isinstance(f.model, Network):
        return {}
    kind = nn.modules.batchnorm._BatchNorm
    return {
        name: module
        for name, module in f.model.skeletons["batch"].named_modules()
        if isinstance(module, kind) and f"{name}.running_mean" in f.buffers
    }


def _evenly(f: Objective) -> Objective:
    """With chunks of nearly one size, none a rest of a single row: that has no variance."""
    if min(f.chunk, len(f.rows)) < 2:
        raise UsageError(
            f"batch statistics need chunks of at least 2 rows; got {len(f.rows)} rows in chunks of {f.chunk}. "
            "Give more rows or a larger chunk, or use bn='average'."
        )
    total = len(f.rows)
    even = math.ceil(total / math.ceil(total / f.chunk))
    return dataclasses.replace(f, chunk=next(size for size in itertools.count(even) if total % size != 1))


def _shuffled(f: Objective, seed: int) -> Objective:
    """With its rows in a random order, where that decides which of them share a chunk."""
    if len(f.rows) <= f.chunk:
        return f
    return f.on(torch.randperm(len(f.rows), generator=generator(seed, "barrier")).to(f.device))


# -- checks and words -------------------------------------------------------------------------------------------------


def _check(
    splits: Mapping[str, Objective], start: Tensor, end: Tensor, points: int, refine: int, bn: str, chance: float | None
) -> None:
    for split, f in splits.items():
        if not start.shape == end.shape == (f.dim,):
            raise UsageError(
                f"a path joins two points of shape ({f.dim},), coordinates of the {split} objective; "
                f"got {tuple(start.shape)} and {tuple(end.shape)}."
            )
    if points < 3 or points % 2 == 0:
        nearest = max(points + 1, 3)
        raise UsageError(f"points must be odd and at least 3, so that 1/2 is among them; got {points}. Take {nearest}.")
    if refine < 0:
        raise UsageError(f"refine must be at least 0 (0 is none); got {refine}.")
    if bn not in POLICIES:
        raise unknown("BatchNorm policy", bn, POLICIES)
    loss = splits["train"].loss
    if chance is not None and not (0 < chance <= 1 and loss.classifies):
        raise UsageError(
            f"chance is the error of guessing, in (0, 1], for a loss that classifies; "
            f"got {chance} with the loss {loss.name}. Leave it out."
        )


def _fitted(f: Objective, given: Buffers | None, end: str) -> Buffers:
    """Buffers of an end, on f's device and of its dtype; f's own where none are given."""
    if given is None:
        return f.buffers
    own = f.buffers
    wrong = sorted(own.keys() ^ given.keys()) + [
        name for name in own.keys() & given.keys() if own[name].shape != given[name].shape
    ]
    if wrong:
        raise UsageError(
            f"{end}_buffers do not fit the model: {', '.join(wrong[:5])} missing, unknown or of another shape. "
            f"Allowed: exactly {', '.join(own) or 'none'}."
        )
    return {name: given[name].to(value) for name, value in own.items()}


def _amount(value: float, name: str) -> str:
    """A difference in its unit: percentage points for errors."""
    if math.isnan(value):
        return "undefined"
    return f"{100 * value:.1f} pp" if name.endswith("error") else f"{value:.3g}"


def _ends(curve: np.ndarray, name: str) -> str:
    unit = "{:.1%}" if name.endswith("error") else "{:.3g}"
    return " and ".join(unit.format(value) for value in curve[[0, -1]])
