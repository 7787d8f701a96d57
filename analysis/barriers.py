"""Barriers: what loss and error do on the straight path between two solutions (linear mode connectivity).

Letters: D parameters, d coordinates (d = D unless restricted), N rows, K points of the path, P pairs of ends, C channels of a layer, U distinct rows.

    w(a) = (1 - a) start + a end,  E(a) loss or error (1 - accuracy) there,  baseline(a) = (1 - a) E(0) + a E(1)

    linear-baseline   max_a E(a) - baseline(a)        never negative: it is 0 at the ends, which are on the grid
    over-mean         max_a E(a) - (E(0) + E(1)) / 2  |E(0) - E(1)| / 2 even on a convex path
    midpoint          E(1/2) - (E(0) + E(1)) / 2      negative where the middle is better than the ends
    over-worse-end    max_a E(a) - max(E(0), E(1))    never negative
    integral          int_0^1 E(a) - baseline(a) da   trapezoids; negative where the path is mostly below the baseline
    path-mean         int_0^1 E(a) da                 trapezoids; a level of the path and no barrier
    per-example       mean_i l_i(1/2) - (l_i(0) + l_i(1)) / 2   equals midpoint; its quantiles over rows stand beside it

All of them come from one curve, and they disagree: a barrier without the name of its definition means nothing.

The rows of a split are a sample of their population, so every curve has a sampling error, the same rows at all of its points. The interval of a barrier
comes from drawing rows with replacement, all points and both ends together (paired bootstrap). A maximum of noisy numbers lies too high: the draws lie
above the estimate by about as much as the estimate above the truth. That is the `bias`, and the interval allows for it (`_interval`).
Where no row changes on the path all draws are alike, which shows nothing of the rows that were not drawn: of errors the upper end is
at least that of none in N (rule of three: about 3.7 / N), so that below N = 183 rows no barrier is surely below 2 points.

BatchNorm statistics are no parameters, and those of w(a) are not the interpolated ones: averaging variances gives
(1-a) s^2 + a t^2 where a scaled layer has ((1-a) s + a t)^2. The midpoint of REPAIR's aligned ResNet-20 is 11.7%
accurate with averaged statistics and 90.3% with recomputed ones.

Sources: Frankle et al. 2020 (over-mean); Entezari et al. 2022 and Paul et al. 2023, definition 2.3 (linear-baseline);
Ainsworth et al. 2023, git-re-basin (25 points); Garipov et al. 2018 (integral; statistics recomputed at every point);
Jordan et al. 2023, REPAIR (statistics); Chan, Golub, LeVeque 1979 (combining variances of chunks); Efron 1979 (bootstrap).
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from statistics import NormalDist
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from landscape.analysis.styles import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILION, interactive
from landscape.errors import UsageError, unknown
from landscape.masks import Mask
from landscape.objectives import Buffers, Network, NormMode, Objective, dtype_name
from landscape.results import Result
from landscape.seeds import child_seed, generator

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
MASKS = {
    "none": "the path joins the ends as they are",
    "start": "the path is pruned by the start's mask",
    "end": "the path is pruned by the end's mask",
    "union": "the path is pruned by what either mask keeps",
    "intersection": "the path is pruned by what both masks keep",
}
DEFAULT_POLICY = "recompute"  # what a network of these weights would have; here and at the command line
UNNEEDED = "none needed"
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
NEAR_CHANCE = 0.02  # the stability bound of Frankle et al. 2020: what is smaller than it counts as no barrier
SCORED = 2**13  # targets whose losses are taken at once: with 1,000 classes their outputs take 32 MiB
HELD = 2**20  # parameters of the points evaluated at once: what is saved counts for small networks alone
DRAWS = 1000  # of rows: 25 lie beyond each end of a 95% interval, which so moves by a twentieth of its length from seed to seed
OUTSIDE = 0.025  # of the draws, on either side of an interval

T = TypeVar("T")
Policies = str | Sequence[str]
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
    uneven: bool = False  # the first curve's end values differ by more than what counts as a barrier
    intervals: dict[str, Numbers] = dataclasses.field(
        default_factory=dict
    )  # of the first curve's linear-baseline barrier, by policy: see Interval
    others: dict[str, dict[str, np.ndarray]] = dataclasses.field(
        default_factory=dict
    )  # by further policy: curves at the same places
    other_barriers: dict[str, dict[str, Numbers]] = dataclasses.field(
        default_factory=dict
    )  # by further policy, curve, definition
    mask: str = "none"  # a name of `MASKS`
    density: float | None = None  # of the mask on the path; None where there is none
    threshold: float | None = None  # that was asked about
    answer: str | None = None  # is the barrier below the threshold: yes, no or undecided
    saved: int = 0  # evaluations that the answer made needless

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
            f"{name.replace(' ', '-')} barrier {amount(self.value(), name)} "
            f"(linear baseline, {self.grid}+{self.refined} points{at}), ends {_ends(self.curves[name], name)}"
        )
        if self.threshold is not None:
            text += f"; below {amount(self.threshold, name)}: {self.answer}"
            text += f" ({self.saved} evaluations saved)" if self.saved else ""
        if between := self._between():
            text += f"; 95% interval {between}"
        split, metric = name.split()
        if metric == "error":
            text += f"; {split}-loss barrier {amount(self.value(split, 'loss'), 'loss')}"
        if self.bn != UNNEEDED:
            text += f"; BatchNorm {self.bn}"
        for policy, barriers in self.other_barriers.items():
            text += f", by {policy} {amount(_nan(barriers[name]['linear-baseline']), name)}"
        if self.mask != "none":
            text += f"; mask {self.mask}"
        text += "; UNEVEN ends" if self.uneven else ""
        return text + ("; DEGENERATE, see the warnings" if self.degenerate else "")

    def caption(self) -> str:
        """See Result."""
        name = self._headline()
        rows = ", ".join(f"{count:,} {split} rows" for split, count in self.rows.items())
        angle = "" if self.angle is None else f" ({self.angle:.1f} degrees seen from the origin)"
        keys = (key for key in DEFINITIONS if key not in ("linear-baseline", "path-mean", "per-example"))
        others = ", ".join(f"{key} {amount(self.value(definition=key), name)}" for key in keys)
        said = [
            f"Straight path w(a) = (1-a) start + a end over {rows}; the ends are {self.distance:.4g} apart{angle}.",
            "Thin grey: the linear baseline between the end values. Arrow: the barrier, the largest excess over it; "
            "a path nowhere above the baseline has barrier 0.",
            f"{self.grid} evenly spaced points, {self.refined} more around the largest excess."
            if self.answer is None or not self.saved
            else f"{self.grid} points, coarse to fine, and {self.refined} more: the answer was certain then.",
            f"By other definitions, {name}: {others}.",
        ]
        if between := self._between():
            said.append(
                f"95% interval of the barrier: {between}, from {DRAWS:,} draws of the rows, the same at all points; "
                f"a maximum of noisy values lies too high, here by about {amount(self._noise('bias'), name)}."
            )
        if self.threshold is not None:
            said.append(
                f"Dotted: the baseline and the threshold of {amount(self.threshold, name)}. Yes and no need the whole interval on one side of it, and yes ends that are not degenerate."
            )
        if self.mask != "none":
            said.append(f"Masked: {MASKS[self.mask]} (density {self.density:.3g}).")
        if self.bn != UNNEEDED:
            said.append(f"BatchNorm {self.bn}: {POLICIES[self.bn]}.")
        said += [f"Thin: BatchNorm {policy}, {POLICIES[policy]}." for policy in self.others]
        example = self.per_example[name]
        share, deviation = example["share_positive"], example["standard_error"]
        if share is not None and deviation is not None:
            said.append(
                f"At the midpoint {share:.0%} of the {name.split()[0]} rows are worse than the mean of their ends; "
                f"the standard error of the mean over rows is {amount(deviation, name)}."
            )
        if any(self.masked.values()):
            said.append("Crosses at the foot: points that are not finite, left out.")
        return " ".join(said)

    def table(self) -> list[tuple[str, ...]]:
        """See Result: every curve by every definition."""
        rows = [(name, *(amount(value, name) for value in row.values())) for name, row in self.definitions().items()]
        rows += [
            (f"{name}, BatchNorm {policy}", *(amount(_nan(row[key]), name) for key in DEFINITIONS))
            for policy, barriers in self.other_barriers.items()
            for name, row in barriers.items()
        ]
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
            height = amount(_nan(self.barriers[name]["linear-baseline"]), name)
            label = f"{name.split()[0]}: ends {_ends(self.curves[name], name)}, barrier {height}"
            ax.plot([0, 1], curve[[0, -1]], color=GREY, linewidth=0.8, zorder=1)
            ax.plot(self.alpha, curve, color=colour, linestyle=dash, marker=marker, markersize=3, label=label, zorder=3)
            missing = self.alpha[~np.isfinite(curve)]
            ax.plot(missing, np.full_like(missing, 0.02), "x", color=colour, transform=ax.get_xaxis_transform())
        first = next(iter(shown))
        self._mark(ax, first, scale)
        thin = self._thin(first)
        for policy, (colour, dash) in thin.items():
            height = amount(_nan(self.other_barriers[policy][first]["linear-baseline"]), first)
            label = f"{first.split()[0]}, BatchNorm {policy}: barrier {height}"
            ax.plot(self.alpha, scale * self.others[policy][first], color=colour, linestyle=dash, linewidth=0.9, label=label)  # fmt: skip
        if self.threshold is not None and first == self._headline():
            ax.plot([0, 1], scale * (self.curves[first][[0, -1]] + self.threshold), ":", color=GREY, linewidth=1)
        heights = scale * np.concatenate(
            [*(self.curves[name] for name in shown), *(self.others[policy][first] for policy in thin)]
        )
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
            first = next(iter(self._shown(panel)))
            for policy, (colour, dash) in self._thin(first).items():
                thin = Scatter(
                    x=self.alpha,
                    y=scale * self.others[policy][first],
                    mode="lines",
                    name=f"{first}, BatchNorm {policy}",
                    line={"color": colour, "width": 1, "dash": {"-.": "dashdot", ":": "dot"}.get(dash, "longdash")},
                    hovertemplate=f"BatchNorm {policy} %{{y:.4g}}{unit} at a = %{{x:.4f}}<extra></extra>",
                )
                figure.add_trace(thin, row=1, col=column)
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

    def _thin(self, name: str) -> dict[str, tuple[str, str]]:
        """The further BatchNorm policies that have a curve of this name, each with colour and dash."""
        looks = ((GREEN, "-."), (PURPLE, (0, (5, 2))), (ORANGE, ":"))
        return {policy: look for policy, look in zip(self.others, looks, strict=False) if name in self.others[policy]}  # type: ignore[misc]

    def _noise(self, key: str) -> float:
        """A number of the headline's interval; NaN where there is none."""
        return _nan(self.intervals.get(self.bn, {}).get(key))

    def _between(self) -> str:
        """The headline's interval in words; empty where there is none."""
        low, high = self._noise("low"), self._noise("high")
        name = self._headline()
        return "" if math.isnan(low) else f"{amount(low, name)} to {amount(high, name)}"

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
        text = f"{split} barrier {amount(self.value(split, metric), name)} (linear baseline)"
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
    bn: Policies = DEFAULT_POLICY,
    mask: str = "none",
    start_mask: Mask | None = None,
    end_mask: Mask | None = None,
    threshold: float | None = None,
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
    bn: a name of `POLICIES`, or several: the first is the headline, the others stand beside it, one more curve each.
        The default, `recompute`, costs a forward pass over all train rows a point, and gives the
        ends statistics of all rows in place of the running ones; `average` leaves the ends as they were trained and
        needs no pass over data, but exaggerates the barrier between independent ends, and warns of it. Models without
        BatchNorm need none, get none, and the result says so.
    mask: a name of `MASKS`: what prunes the path, its ends with it, by the masks of the ends. The straight path between pruned points stays within the union
        of their masks, so `none` is right for them; `start` is what the code of Paul et al. 2023 does.
    threshold: ask only whether the first curve's linear-baseline barrier is below it (in (0, 1] for errors). Points are taken coarse to fine, and no more
        once one of them is surely above; the refinement is left out where the grid has decided. Between degenerate ends the answer is never yes.
    chance: the error of guessing, by which ends are judged; by default 1 - the share of each split's commonest class.
    seed: of the order in which `recompute` and `batch` cut the rows into chunks (data often lie sorted by class), and of the draws of rows for the
        interval; nothing else is random.

    Raises UsageError where shapes, buffers, masks, names or counts do not fit.
    """
    splits = {name: f for name, f in (("test", test), ("train", train)) if f is not None}
    start, end = (point.detach().to(train.device, train.dtype) for point in (start, end))
    policies = _policies(bn, train)
    _check(splits, start, end, points, refine, chance)
    if threshold is not None:
        check_threshold(threshold, train.loss.classifies)
    kept = _chosen(mask, start_mask, end_mask)
    cut: list[str] = []
    if kept is not None:
        if train.charts:
            raise UsageError("masks are of whole parameter vectors: take the objective before it is restricted.")
        pruned = [kept.apply(point) for point in (start, end)]
        moved = {name: float((after - before).norm()) for name, after, before in zip(("start", "end"), pruned, (start, end), strict=True)}  # fmt: skip
        cut = [f"the {name} by {distance:.3g}" for name, distance in moved.items() if distance > 0]
        start, end = pruned
    buffers = _fitted(train, start_buffers, "start"), _fitted(train, end_buffers, "end")
    walks = {policy: _Walk(_Path(_ground(splits, train, policy, seed), start, end, *buffers)) for policy in policies}
    main = walks[policies[0]]

    def visit(*places: float) -> None:
        for walk in walks.values():
            walk.visit(*places)

    answer = None
    # the ends, 1/2, 1/3, 2/3, ...
    grid = [i / (points - 1) for i in sorted(range(points), key=lambda i: (Fraction(i, points - 1).denominator, i))]
    if threshold is None:
        visit(*grid)
    else:
        for a in grid:
            visit(a)
            if a not in (0, 1) and main.surely_above(threshold, a, points):
                answer = "no"
                break
    evenly = len(main.values)
    guides = main.names
    headline = guides[0]
    w0, w1 = (train.lift(point).cpu().double() for point in (start, end))
    distance = float((w1 - w0).norm())
    chances = {split: _chance(f) if chance is None else chance for split, f in splits.items() if f.loss.classifies}
    failings = list(_failings(main.curves()[0], splits, chances, distance))

    def judged(found: Interval, threshold: float) -> str:
        verdict = found.decided(threshold)[0]
        return "undecided" if failings and verdict == "yes" else verdict

    if threshold is not None and answer is None:
        answer = judged(main.interval(headline, seed), threshold)
    if answer in (None, "undecided"):
        for turn in range(refine):
            between = _between(*_curve(main.values, guides[turn % len(guides)]))
            if between is not None and between not in main.values:
                visit(between)
    noise = {policy: walk.interval(headline, seed) for policy, walk in walks.items()}
    if answer == "undecided" and threshold is not None:
        answer = judged(noise[policies[0]], threshold)

    curves, alpha = main.curves()
    barriers, argmax, examples = main.measured()
    masked = {split: int(np.isnan(curves[f"{split} loss"]).sum()) for split in splits}
    cautions = list(_cautions(curves, splits, policies[0], start_buffers is None and end_buffers is None))
    if cut:
        cautions.append(
            f"The mask ({mask}) moves {' and '.join(cut)}: the path joins the pruned ends, not the given ones."
        )
    several = len(splits[headline.split()[0]].rows) > 1  # of one row, such as a function's, there is no sample
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
        barriers=barriers,
        argmax=argmax,
        per_example=examples,
        distance=distance,
        angle=_angle(w0, w1),
        bn=policies[0],
        rows={split: len(f.rows) for split, f in splits.items()},
        masked=masked,
        grid=evenly,
        refined=len(alpha) - evenly,
        loss=train.loss.name,
        chance=chances,
        degenerate=bool(failings),
        uneven=_gap(headline, curves[headline]) is not None,
        intervals={policy: found.numbers() for policy, found in noise.items()} if several else {},
        others={policy: walks[policy].curves()[0] for policy in policies[1:]},
        other_barriers={policy: walks[policy].measured()[0] for policy in policies[1:]},
        mask=mask,
        density=None if kept is None else kept.density,
        threshold=threshold,
        answer=answer,
        saved=0 if threshold is None else points + refine - len(alpha),
    )


# -- many barriers ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class End:
    """A solution. Make one for each and use it in all its pairs: it is then evaluated once."""

    point: Tensor  # (d,)
    buffers: Buffers | None = None  # None: the objective's
    mask: Mask | None = None  # what survives in it; the path is not pruned by it


@dataclass(frozen=True, eq=False)
class Interval:
    """The linear-baseline barriers of P pairs with what sampling the rows does to them, (P,) each, from a paired bootstrap; NaN where undefined."""

    value: np.ndarray
    low: np.ndarray  # of 95%; see `_interval`
    high: np.ndarray
    error: np.ndarray  # standard error
    bias: np.ndarray  # by which the draws lie above the value, and the value above the truth

    def decided(self, threshold: float) -> list[str]:
        """Is each barrier below the threshold: yes, no, or undecided where the interval holds it or is undefined."""
        return [decide(low, high, threshold) for low, high in zip(self.low, self.high, strict=True)]

    def numbers(self, place: int = 0) -> Numbers:
        """Of one pair, as a result keeps them."""
        named = {"low": self.low, "high": self.high, "standard_error": self.error, "bias": self.bias}
        return {**_numbers({name: float(values[place]) for name, values in named.items()}), "draws": DRAWS}


def check_threshold(threshold: float, errors: bool) -> None:
    """Raises UsageError where it is no barrier, of errors (in [0, 1]) or of a loss."""
    if not 0 < threshold < math.inf:
        raise UsageError(f"a threshold is a barrier above 0, such as 0.02 for 2 points of error; got {threshold}.")
    if errors and threshold > 1:
        raise UsageError(
            f"a threshold of errors is at most 1: 0.02 is two points of error; got {threshold:g}. Give it as a share."
        )


def told_threshold(threshold: float, loss: str) -> Iterator[str]:
    """What to tell of a threshold beside a loss of this name: that the default was none of its units."""
    if threshold == NEAR_CHANCE:
        yield f"The threshold {threshold:g} is in units of the loss ({loss}); its default is two points of error: give --threshold."


def decide(low: float, high: float, threshold: float) -> str:
    """Whether what lies between low and high is below the threshold: yes, no or undecided."""
    return "yes" if high < threshold else "no" if low > threshold else "undecided"


@dataclass(frozen=True, eq=False)
class Hills:
    """The paths between P pairs of points on one grid."""

    alpha: np.ndarray  # (K,)
    curves: dict[str, dict[str, np.ndarray]]  # by policy, then curve as in Barrier: (P, K)
    intervals: dict[str, Interval]  # by policy, of the headline curve
    distance: np.ndarray  # (P,) |end - start| in parameters
    angle: np.ndarray  # (P,) degrees between start and end seen from the origin; NaN at the origin
    angular: (
        np.ndarray
    )  # (P,) 2 angle / pi over the weights that both masks keep: 1 where they are orthogonal (Maene et al. 2021)
    disagreement: (
        np.ndarray
    )  # (P,) share of rows of the headline's split on which the ends predict other classes; NaN without classes
    degenerate: np.ndarray  # (P,) bool: as in Barrier

    @property
    def policies(self) -> tuple[str, ...]:
        """BatchNorm policies, the headline's first."""
        return tuple(self.curves)

    @property
    def headline(self) -> str:
        """The first curve: of test before train, of error before loss."""
        return next(iter(self.curves[self.policies[0]]))

    def value(
        self, curve: str | None = None, policy: str | None = None, definition: str = "linear-baseline"
    ) -> np.ndarray:
        """The barriers (P,) of a curve (by default the headline) under a policy (by default the first), NaN where undefined.

        Raises UsageError for names that there are not; per-example is `midpoint` here, of which it is the mean.
        """
        return valued(self.alpha, self.curves, curve, policy, definition)

    def decided(self, threshold: float, policy: str | None = None) -> list[str]:
        """Is each headline barrier below the threshold: yes, no or undecided, by its interval."""
        return self.intervals[self.policies[0] if policy is None else policy].decided(threshold)


def valued(
    alpha: np.ndarray,
    curves: Mapping[str, Mapping[str, np.ndarray]],
    curve: str | None = None,
    policy: str | None = None,
    definition: str = "linear-baseline",
) -> np.ndarray:
    """The barriers (P,) of curves (P, K) at alpha (K,), by policy, then name; by default of the first of each, NaN where undefined.

    Raises UsageError for names that there are not; per-example is `midpoint` here, of which it is the mean.
    """
    policy = next(iter(curves)) if policy is None else policy
    if policy not in curves:
        raise unknown("BatchNorm policy", policy, curves)
    name = next(iter(curves[policy])) if curve is None else curve
    if name not in curves[policy]:
        raise unknown("curve", name, curves[policy])
    if definition not in DEFINITIONS or definition == "per-example":
        raise unknown("definition", definition, [key for key in DEFINITIONS if key != "per-example"])
    return np.array([by_definition(alpha, row)[definition] for row in curves[policy][name]])


def uniform_loss(f: Objective) -> float:
    """The loss of uniform guesses among the classes that there are; infinite where the loss does not classify."""
    return math.log(max(len(_classes(f)[0]), 2)) if f.loss.classifies else math.inf


def hills(
    train: Objective | None,
    test: Objective | None,
    pairs: Sequence[tuple[End, End]],
    *,
    points: int = 11,
    bn: Policies = DEFAULT_POLICY,
    statistics: Objective | None = None,
    seed: int = 0,
) -> Hills:
    """The barriers of many pairs, at the cost of their evaluations; an end in many pairs is evaluated once.

    train, test: curves over the rows of each that is given.
    points: of the grid, odd; 11 see a barrier as wide as the path to 1% of a parabola's height, and there is no refinement.
    statistics: over whose rows `recompute` takes BatchNorm's statistics, by default train; a few thousand are enough, and a pass over them costs a point.
    seed: as in `barrier`, the draws a stream of their own by pair.
    Raises UsageError where shapes, buffers or names do not fit, and where neither objective, no pair, or for `recompute` no train rows are given.
    """
    splits = {name: f for name, f in (("test", test), ("train", train)) if f is not None}
    if not splits or not pairs:
        raise UsageError("give at least one of train and test, and at least one pair of ends.")
    first = next(iter(splits.values()))
    policies = _policies(bn, first)
    taken = statistics or train
    for start, end in pairs:
        _check(splits, start.point, end.point, points, 0, None)
    if taken is None and "recompute" in policies:
        raise UsageError("bn='recompute' takes BatchNorm's statistics on training rows: give train or statistics.")
    grid = [i / (points - 1) for i in range(points)]
    ends = {id(end): end for pair in pairs for end in pair}
    points_of = {key: end.point.detach().to(first.device, first.dtype) for key, end in ends.items()}
    buffers_of = {key: _fitted(first, end.buffers, "end") for key, end in ends.items()}
    chances = {split: _chance(f) for split, f in splits.items() if f.loss.classifies}
    curves: dict[str, dict[str, np.ndarray]] = {}
    intervals: dict[str, Interval] = {}
    predicted: dict[int, np.ndarray | None] = {}
    for policy in policies:
        ground = _ground(splits, taken, policy, seed)
        given = ground.answers(((points_of[key], buffers_of[key]) for key in ends), predict=True)
        seen = dict(zip(ends, given, strict=True))
        if not predicted:
            predicted = {key: next(iter(found.values())).predicted for key, found in seen.items()}
        found: list[dict[str, np.ndarray]] = []
        noise: list[Interval] = []
        for place, (start, end) in enumerate(pairs):
            one, other = id(start), id(end)
            walk = _Walk(_Path(ground, points_of[one], points_of[other], buffers_of[one], buffers_of[other]))
            walk.take(0.0, seen[one])
            if policy != "endpoint":  # there the end has the start's statistics
                walk.take(1.0, seen[other])
            walk.visit(*grid)
            found.append(walk.curves()[0])
            noise.append(walk.interval(walk.names[0], seed, place))
        curves[policy] = {name: np.stack([one[name] for one in found]) for name in found[0]}
        intervals[policy] = Interval(*(np.concatenate([getattr(one, field.name) for one in noise]) for field in dataclasses.fields(Interval)))  # fmt: skip

    whole = {key: first.lift(point).cpu().double() for key, point in points_of.items()}
    distance, angle, angular, disagreement = (np.full(len(pairs), math.nan) for _ in range(4))
    degenerate = np.zeros(len(pairs), dtype=bool)
    for place, (start, end) in enumerate(pairs):
        w0, w1 = whole[id(start)], whole[id(end)]
        distance[place] = float((w1 - w0).norm())
        angle[place] = _nan(_angle(w0, w1))
        for mask in (start.mask, end.mask):
            w0, w1 = (w0, w1) if mask is None else (mask.apply(w0), mask.apply(w1))
        angular[place] = _nan(_angle(w0, w1)) / 90
        answers = predicted[id(start)], predicted[id(end)]
        if answers[0] is not None and answers[1] is not None:
            disagreement[place] = (answers[0] != answers[1]).mean()
        own = {name: values[place] for name, values in curves[policies[0]].items()}
        degenerate[place] = any(_failings(own, splits, chances, distance[place]))
    return Hills(np.array(grid), curves, intervals, distance, angle, angular, disagreement, degenerate)


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
class _Answers:
    """What a pass over a split finds by row, float64; the means over rows are loss and error."""

    loss: np.ndarray  # (N,)
    error: np.ndarray  # (N,); NaN where the loss does not classify
    predicted: np.ndarray | None  # (N, ...) classes, where they are asked for


def _answers(f: Objective, points: Sequence[tuple[Tensor, Buffers]], predict: bool) -> list[_Answers]:
    """A pass over f's rows at each of the points (d,), with its buffers; losses are taken at once of all. Rows whose target is not counted have error 0."""
    w, buffers = f.lift(torch.stack([z for z, _ in points])), [own for _, own in points]
    whole = dataclasses.replace(f, charts=())  # a chart is climbed once, not for every chunk
    found: list[list[Tensor]] = []
    classes: list[Tensor] = []
    with torch.no_grad():
        # of small networks, losses by row cost as much as the outputs when taken chunk by chunk
        for rows in f.rows.chunks(max(1, _scored(f) // f.chunk) * f.chunk):
            outputs = whole.on(rows).outputs(w, buffers).flatten(0, 1)
            targets = rows.targets if len(w) == 1 else torch.cat([rows.targets] * len(w))
            scores = (*f.loss.rows(outputs, targets), *f.loss.correct(outputs, targets))
            found.append([score.view(len(w), -1) for score in scores])
            if predict and f.loss.classifies:
                chosen = outputs.argmax(1) if f.loss.threshold is None else outputs > f.loss.threshold
                classes.append(chosen.view(len(w), -1, *chosen.shape[1:]))
    losses, weights, right, counted = (torch.cat(parts, 1).cpu().double().numpy() for parts in zip(*found, strict=True))
    loss, error = losses / weights.mean(1, keepdims=True), (counted - right) / counted.mean(1, keepdims=True)
    predicted = torch.cat(classes, 1).cpu().numpy() if classes else [None] * len(w)
    return [_Answers(*own) for own in zip(loss, error, predicted, strict=True)]


def _scored(f: Objective) -> int:
    """Rows whose losses are taken at once."""
    return SCORED * len(f.rows) // max(f.rows.targets.numel(), 1)


@dataclass(frozen=True, eq=False)
class _Ground:
    """Where paths are evaluated: the rows, and the policy for BatchNorm."""

    splits: dict[str, Objective]
    statistics: Objective | None  # over whose rows `recompute` takes them
    policy: str

    def answers(self, points: Iterable[tuple[Tensor, Buffers]], predict: bool = False) -> Iterator[dict[str, _Answers]]:
        """Of every split at each of the points (d,) with its buffers. They are asked for as they are needed: few of them are held."""
        norm: NormMode | None = None if self.policy == UNNEEDED else "batch" if self.policy == "batch" else "eval"
        splits = {split: f.with_buffers(f.buffers, norm) for split, f in self.splits.items()}
        several = min(min(_scored(f) // len(f.rows), HELD // f.model.layout.dim) for f in splits.values())
        left = iter(points)
        while group := list(itertools.islice(left, max(1, several))):
            if self.policy == "recompute":
                assert self.statistics is not None
                group = [(z, recomputed(self.statistics.with_buffers(buffers), z).buffers) for z, buffers in group]
            found = [_answers(f, group, predict) for f in splits.values()]
            yield from (dict(zip(splits, own, strict=True)) for own in zip(*found, strict=True))


def _ground(splits: dict[str, Objective], statistics: Objective | None, policy: str, seed: int) -> _Ground:
    if policy not in ("recompute", "batch"):
        return _Ground(splits, statistics, policy)
    mixed = {split: _evenly(_shuffled(f, seed)) for split, f in splits.items()}
    if statistics is not None:
        same = next((split for split, f in splits.items() if f is statistics), None)
        statistics = mixed[same] if same else _evenly(_shuffled(statistics, seed))
    return _Ground(mixed, statistics, policy)


@dataclass(frozen=True, eq=False)
class _Path:
    """A segment."""

    ground: _Ground
    start: Tensor  # (d,)
    end: Tensor  # (d,)
    start_buffers: Buffers
    end_buffers: Buffers

    def at(self, a: float) -> tuple[Tensor, Buffers]:
        """The point w(a), exactly an end at 0 and 1, and the buffers there."""
        z = {0.0: self.start, 1.0: self.end}.get(a, torch.lerp(self.start, self.end, a))
        buffers = self.start_buffers
        if self.ground.policy != "endpoint":
            pairs = ((name, value, self.end_buffers[name]) for name, value in buffers.items())
            buffers = {name: torch.lerp(b0, b1, a) if b0.is_floating_point() else b0 for name, b0, b1 in pairs}
        return z, buffers


class _Walk:
    """A path and what was found on it so far."""

    def __init__(self, path: _Path) -> None:
        self.path = path
        self.values: dict[float, dict[str, float]] = {}  # by place, then curve
        self.rows: dict[
            float, dict[str, np.ndarray]
        ] = {}  # the same by row (N,): of the first curve, and at 0, 1/2 and 1 of all

    @property
    def names(self) -> list[str]:
        """Of the curves: test before train, error (where the loss classifies) before loss."""
        return list(self.values[0.0])

    def visit(self, *places: float) -> None:
        """Evaluate every curve at the places, where that was not done yet."""
        new = [a for a in places if a not in self.values]
        for a, answers in zip(new, self.path.ground.answers(map(self.path.at, new)), strict=True):
            self.take(a, answers)

    def take(self, a: float, answers: Mapping[str, _Answers]) -> None:
        """Take in what was found at a."""
        found: dict[str, np.ndarray] = {}
        for split, own in answers.items():
            if self.path.ground.splits[split].loss.classifies:
                found[f"{split} error"] = own.error
            found[f"{split} loss"] = own.loss
        self.values[a] = _masked({name: float(rows.mean()) for name, rows in found.items()})
        self.rows[a] = found if a in (0.0, 0.5, 1.0) else dict([next(iter(found.items()))])

    def curves(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Every curve (K,), and the places (K,), ascending."""
        return {name: _curve(self.values, name)[1] for name in self.names}, np.array(sorted(self.values))

    def measured(self) -> tuple[dict[str, Numbers], dict[str, Numbers], dict[str, Numbers]]:
        """Of every curve: all definitions, the places of the largest excess and value, the distribution over rows."""
        found = {name: _definitions(*_curve(self.values, name)) for name in self.names}
        examples = {name: _examples(*(self.rows[a][name] for a in (0.0, 0.5, 1.0))) for name in found}
        barriers = {name: {**own, "per-example": examples[name]["mean"]} for name, (own, _) in found.items()}
        return barriers, {name: places for name, (_, places) in found.items()}, examples

    def surely_above(self, threshold: float, a: float, points: int) -> bool:
        """Whether the first curve's excess at a alone is above the threshold, at an error rate of OUTSIDE for all `points` looks together (Bonferroni)."""
        first, last, rows = (self.rows[place][self.names[0]] for place in (0.0, 1.0, a))
        excess = rows - ((1 - a) * first + a * last)
        bound = NormalDist().inv_cdf(1 - OUTSIDE / points)
        return bool(excess.mean() - bound * excess.std() / math.sqrt(len(excess)) > threshold)  # NaN is not

    def interval(self, name: str, seed: int, place: int = 0) -> Interval:
        """Of the first curve's barrier."""
        alpha = sorted(self.values)
        finite = np.array([math.isfinite(self.values[a][name]) for a in alpha])
        rows = np.stack([self.rows[a][name] for a in alpha])
        return _interval(np.array(alpha), rows, finite, child_seed(seed, "bootstrap", place), name.endswith("error"))


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


def by_definition(alpha: np.ndarray, curve: np.ndarray) -> dict[str, float]:
    """The barriers of a curve (K,) at the places (K,), 0, 1/2 and 1 among them, by every definition but per-example; NaN where undefined."""
    return {name: _nan(value) for name, value in _definitions(alpha, curve)[0].items()}


def _interval(alpha: np.ndarray, rows: np.ndarray, finite: np.ndarray, seed: int, errors: bool) -> Interval:
    """The barrier of a curve whose values by row (K, N) at the places (K,) have it as their mean, from the points that are `finite` (K,).

    Rows are drawn with replacement, the same at all points. Rows that are constant along the path have no part in any excess: only how many others are
    drawn is drawn for them; and rows with equal values along the path are counted together (of errors few differ, and there are N draws of each of DRAWS).

    low = 2 value - q, high = q, q the quantile of the draws above which OUTSIDE of them lie: on the low side it is reflected, since the value lies above
    the truth as the draws above the value; on the high side that is left in, which errs on the careful side. For a single peak both are the usual interval.

    Of errors, high is at least value + 1 - OUTSIDE^(1/N) (at most 1): of N rows that are right on the whole path all draws are alike, and yet a share p of the
    population may be wrong in the middle, which N rows miss with probability (1 - p)^N (rule of three; Clopper and Pearson 1934, none in N). So nothing is
    surely below 0.02 by less than 183 rows. A loss has no such bound: its rows have no largest value.
    """
    if not (finite[0] and finite[-1]):
        return Interval(*(np.array([math.nan]) for _ in range(5)))
    alpha, rows = alpha[finite], rows[finite]
    active = rows[:, (rows != rows[0]).any(0)]
    n, m = rows.shape[1], active.shape[1]
    if ((active == 0) | (active == 1)).all():
        # a row's path of right and wrong as bytes, of which equal ones are found at once
        packed = np.ascontiguousarray(np.packbits(active.astype(bool), axis=0).T)
        _, first, inverse = np.unique(packed.view(f"V{packed.shape[1]}").ravel(), return_index=True, return_inverse=True)  # fmt: skip
    else:
        first = inverse = np.arange(m)
    distinct = active[:, first]
    excess = distinct - ((1 - alpha)[:, None] * distinct[0] + alpha[:, None] * distinct[-1])
    excess[[0, -1]] = 0  # exactly
    value = float((excess @ np.bincount(inverse, minlength=len(first))).max() / n)
    random = np.random.default_rng(seed)
    tops = np.empty(DRAWS)
    block = max(1, 2**22 // max(m, 1))  # draws at once: 32 MiB of rows
    for begin in range(0, DRAWS, block):
        sizes = random.binomial(n, m / n, size=min(block, DRAWS - begin))
        drawn = inverse[random.integers(0, max(m, 1), size=int(sizes.sum()))] + len(first) * np.repeat(np.arange(len(sizes)), sizes)  # fmt: skip
        counts = np.bincount(drawn, minlength=len(sizes) * len(first)).reshape(len(sizes), -1)
        tops[begin : begin + len(sizes)] = (excess @ counts.T.astype(float)).max(0) / n
    upper = float(np.quantile(tops, 1 - OUTSIDE))
    floor = min(value + 1 - OUTSIDE ** (1 / n), 1.0) if errors else value
    # never below 0 as the barrier itself, nor above the value, which q may be below where hardly a row is active
    found = (
        value,
        min(max(2 * value - upper, 0.0), value),
        max(upper, floor, value),
        tops.std(ddof=1),
        tops.mean() - value,
    )
    return Interval(*(np.array([number]) for number in found))


def _examples(start: np.ndarray, middle: np.ndarray, end: np.ndarray) -> Numbers:
    """The distribution over rows of l(1/2) - (l(0) + l(1)) / 2, from the values (N,) at the three points.

    Rows that are not finite are left out and counted.
    """
    with np.errstate(invalid="ignore"):
        barriers = middle - (start + end) / 2
    finite = barriers[np.isfinite(barriers)]
    n = len(finite)
    quantiles = np.quantile(finite, QUANTILES) if n else np.full(len(QUANTILES), math.nan)
    numbers = {f"q{round(100 * q):02d}": float(value) for q, value in zip(QUANTILES, quantiles, strict=True)}
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
    """The classes among the targets and how often each stands there, as `Loss.correct` reads targets; negative ones are those that torch ignores."""
    targets = f.rows.targets
    if f.loss.threshold is not None:
        targets = (targets > 0.5).long()
    elif targets.is_floating_point():
        targets = targets.argmax(1)
    counts = torch.bincount(targets[targets >= 0])
    classes = counts.nonzero()[:, 0]
    return classes, counts[classes]


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


def _gap(name: str, curve: np.ndarray) -> float | None:
    """How far the end values are apart, where that is much; else None."""
    gap, larger = float(abs(curve[0] - curve[-1])), float(np.abs(curve[[0, -1]]).max())
    # errors: definitions differ by gap / 2, here over the stability bound; losses: one is over twice the other
    return gap if gap > (2 * NEAR_CHANCE if name.endswith("error") else larger / 2) else None


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
        uniform = uniform_loss(f)
        if losses[[0, -1]].max() >= uniform - NEAR_CHANCE:
            guessing.append(f"{split} loss {_ends(losses, 'loss')}, uniform guessing {uniform:.3g}")
    for name, curve in curves.items():
        gap = _gap(name, curve)
        if gap is not None:
            apart.append(f"{name} ({_ends(curve, name)}: {amount(gap / 2, name)})")
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


def _policies(bn: Policies, f: Objective) -> tuple[str, ...]:
    """The policies asked for, checked; one that is none where f has no BatchNorm."""
    asked = tuple(dict.fromkeys([bn] if isinstance(bn, str) else bn))
    if not asked:
        raise UsageError(f"give at least one BatchNorm policy of {', '.join(POLICIES)}.")
    for policy in asked:
        if policy not in POLICIES:
            raise unknown("BatchNorm policy", policy, POLICIES)
    return asked if _batch_norms(f) else (UNNEEDED,)


def _chosen(mask: str, start: Mask | None, end: Mask | None) -> Mask | None:
    """The mask of that name, of the masks of the ends; None for none."""
    if mask not in MASKS:
        raise unknown("mask of the path", mask, MASKS)
    if mask == "none":
        return None
    missing = [name for name, own in (("start", start), ("end", end)) if own is None and mask in (name, "union", "intersection")]  # fmt: skip
    if missing:
        raise UsageError(f"mask={mask!r} needs the mask of the {' and of the '.join(missing)}, which has none. Leave mask out: a path needs none.")  # fmt: skip
    if mask == "start" or end is None:
        return start
    if mask == "end" or start is None:
        return end
    return start | end if mask == "union" else start & end


def _check(
    splits: Mapping[str, Objective], start: Tensor, end: Tensor, points: int, refine: int, chance: float | None
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
    loss = next(iter(splits.values())).loss
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


def amount(value: float, name: str) -> str:
    """A difference in its unit: percentage points for errors."""
    if math.isnan(value):
        return "undefined"
    return f"{100 * value:.1f} pp" if name.endswith("error") else f"{value:.3g}"


def _ends(curve: np.ndarray, name: str) -> str:
    unit = "{:.1%}" if name.endswith("error") else "{:.3g}"
    return " and ".join(unit.format(value) for value in curve[[0, -1]])
