"""Chains: the solutions of successive levels of iterative pruning, joined by straight paths. Does a level match the dense network where it is connected?

Letters: D parameters, L levels, K points of a path, n dense trainings, N test rows.

    w_l       the solution of level l: exact zeros outside its mask m_l
    matching  E(w_l) <= E(w_0) + eps,  eps the standard deviation of the error over dense trainings (Paul et al. 2023, definition 2.2)
    connected the linear-baseline barrier between two solutions is below a threshold (definition 2.3; 2 points of error in Frankle et al. 2020)
    d_l       |m_l w_tau - m_(l+1) w_tau|: how far the next pruning moves the weights that are rewound to

The paper's statement: a level matches if and only if the straight path from the level before has no barrier. A path between two pruned points stays within the
union of their masks: of nested masks, within that of the denser one. The authors' notebook prunes the midpoint by it, which here changes nothing.

Both answers are yes, no or undecided, each by its own uncertainty (see landscape.analysis.ladders for matching): with few dense replicates eps is hardly known, and little is
decided. So the table of both is given twice: by the estimates alone, and of the pairs where both are decided.

Star shape: the set of solutions that are linearly connected to one, A, need not be convex. A triple is A-B and A-C connected, B-C not.

Sources: Paul et al. 2023 (sections 2 and 3; protocol of the authors' notebook), Frankle et al. 2020, Maene et al. 2021 (angular distance).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from landscape.analysis.barriers import (
    DEFAULT_POLICY,
    NEAR_CHANCE,
    POLICIES,
    UNNEEDED,
    End,
    Hills,
    Interval,
    Policies,
    amount,
    check_threshold,
    decide,
    hills,
    recomputed,
    told_threshold,
    uniform_loss,
    valued,
)
from landscape.analysis.ladders import by_row, matching, noise, spread
from landscape.analysis.styles import BLUE, GREEN, GREY, ORANGE, PURPLE, SEQUENTIAL, VERMILION, heading, interactive
from landscape.errors import UsageError, unknown
from landscape.masks import Mask
from landscape.objectives import Buffers, Objective, dtype_name
from landscape.results import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from plotly.graph_objects import Figure

ANSWERS = ("yes", "undecided", "no")
CLEAREST = 5  # triples that are listed: the rest are counted
LOOKS = ((BLUE, "-", "o"), (VERMILION, "--", "s"), (GREEN, "-.", "D"), (PURPLE, ":", "v"))  # by policy


@dataclass(frozen=True, kw_only=True)
class Chain(Result):
    """The paths between levels, with what they say of matching. Curves are named as in Barrier, errors in [0, 1]; policies as there, the headline's first."""

    numbers: np.ndarray  # (L,) of the levels, ascending
    density: np.ndarray  # (L,) share of all parameters that survive; 1 without masks
    alpha: np.ndarray  # (K,)
    curves: dict[str, dict[str, np.ndarray]]  # by policy, then curve: (L - 1, K), of the successive pairs
    intervals: dict[str, dict[str, np.ndarray]]  # by policy: low, high, error, bias (L - 1,) of the headline barrier
    degenerate: np.ndarray  # (L - 1,) bool: ends at chance or not finite, or one point
    distance: np.ndarray  # (L - 1,) between successive solutions
    angle: np.ndarray  # (L - 1,) degrees
    angular: np.ndarray  # (L - 1,) 2 angle / pi over the weights that both masks keep
    disagreement: np.ndarray  # (L - 1,) share of test rows with another predicted class; NaN without classes
    values: np.ndarray  # (L,) E(w_l) on the test rows, BatchNorm as trained
    dense: np.ndarray  # (n,) E of the dense trainings, level 0 among them
    eps: float  # NaN where unknown
    eps_interval: list[float]  # (2,) of 95%
    gap: np.ndarray  # (L,) E(w_l) - E(w_0)
    gap_error: np.ndarray  # (L,) its standard error over test rows, paired
    matching: list[str]  # (L,) yes, no, undecided
    connected: list[str]  # (L - 1,) the same, of successive levels, or degenerate
    # (3, 3) pairs by matching of the sparser level, and connected, in the order of ANSWERS; degenerate ones are left out
    decided: np.ndarray
    # (2, 2) the same by the estimates alone, yes and no; zeros where eps is unknown
    estimated: np.ndarray
    # p of Fisher's exact test on both, of `decided` without the undecided; None where a row or a column is empty
    fisher: dict[str, float | None]
    threshold: float  # below which a barrier counts as none
    masked: bool  # there are masks, and each lies within the one before
    matrix: dict[
        str, np.ndarray
    ]  # value, low, high, degenerate (L, L) of the headline barrier; empty where not all pairs were asked for
    blocks: list[list[int]]  # levels all connected with each other: maximal runs of two or more
    members: np.ndarray  # (L,) how many other levels are connected to each; empty without the matrix
    triples: np.ndarray  # (L,) of how many triples each is the centre
    clearest: list[dict[str, float]]  # centre, first, second: levels; arms: the larger of their barriers; across
    projected: np.ndarray  # (L - 1,) |w_l - m_(l+1) w_l| / |w_l|; NaN without masks
    rewound_loss: dict[
        str, np.ndarray
    ]  # (L,) train loss by "stored" and "recomputed" statistics; empty where not given
    rewound_norm: np.ndarray  # (L,) |m_l w_tau|; empty where not given
    rewound_step: np.ndarray  # (L - 1,) d_l
    guessing: float | None  # loss of uniform guesses; None without classes
    bn: list[str]  # BatchNorm policies, or "none needed"
    rows: dict[str, int]  # N by split; "statistics" where BatchNorm's were taken on others than all train rows
    loss: str

    @property
    def headline(self) -> str:
        """The curve by which connection is decided: test error, or test loss where the loss does not classify."""
        return next(iter(self.curves[self.bn[0]]))

    def value(
        self, curve: str | None = None, policy: str | None = None, definition: str = "linear-baseline"
    ) -> np.ndarray:
        """The barriers (L - 1,) of the successive pairs, by default of the headline; NaN where undefined. Raises UsageError for names that there are not."""
        return valued(self.alpha, self.curves, curve, policy, definition)

    def summary(self) -> str:
        """See Result."""
        barriers = self.value()
        name = self.headline
        text = (
            f"levels {self.numbers[0]} to {self.numbers[-1]} (density {self.density[0]:.3g} to {self.density[-1]:.3g})"
        )
        if np.isfinite(barriers).any():
            top = int(np.nanargmax(barriers))
            text += (
                f": successive {name.replace(' ', '-')} barriers up to {amount(barriers[top], name)} "
                f"({self.numbers[top]} to {self.numbers[top + 1]})"
            )
        text += f", below {amount(self.threshold, name)} in {_counted(self.connected)}"
        if math.isfinite(self.eps):
            sure = self.decided[[0, 2]][:, [0, 2]]
            text += f"; matching: {_counted(self.matching)}; both or neither: {self.estimated.trace()} of {self.estimated.sum()} pairs by the estimates"
            text += "" if self.fisher["estimated"] is None else f" (Fisher p {self.fisher['estimated']:.2g})"
            text += f", {sure.trace()} of {sure.sum()} decided ones"
            text += "" if self.fisher["decided"] is None else f" (p {self.fisher['decided']:.2g})"
        if len(self.triples):
            text += f"; {_many(len(self.blocks), 'block')} of connected levels, {_many(int(self.triples.sum()), 'triple')} that a star shape allows and a convex one does not"
        if self.bn[0] != UNNEEDED:
            text += f"; BatchNorm {self.bn[0]}"
        return text + ("; DEGENERATE pairs, see the warnings" if self.degenerate.any() else "")

    def caption(self) -> str:
        """See Result."""
        name = self.headline
        rows = ", ".join(f"{count:,} {split} rows" for split, count in self.rows.items())
        said = [
            f"Straight paths between the solutions of {len(self.numbers)} levels, {len(self.alpha)} evenly spaced points each, over {rows}. "
            f"Barrier: the largest excess of the {name} over the line between the end values (linear baseline), with its 95% interval "
            "(paired bootstrap over rows).",
            f"Connected: that interval lies below {amount(self.threshold, name)}, and neither end is at chance or not finite.",
        ]
        if self.masked:
            said.append(
                "Each path stays within the denser level's mask: to prune it by that, as the authors' notebook does, changes nothing."
            )
        if math.isfinite(self.eps):
            low, high = (_fine(end, name) for end in self.eps_interval)
            said.append(
                f"Matching: {name} at most eps = {_fine(self.eps, name)} (95% interval {low} to {high}) above that of the dense solution, eps the standard deviation over "
                f"{_many(len(self.dense), 'dense training')}; grey: the dense error and eps. Orange triangles surely match, white ones surely do not, grey ones are undecided."
            )
            said.append(
                "Pairs by matching of the sparser level and connected (both, matching only, connected only, neither): "
                f"{', '.join(map(str, self.estimated.ravel()))} by the estimates, {', '.join(map(str, self.decided[[0, 2]][:, [0, 2]].ravel()))} where both are decided."
            )
        if self.bn[0] != UNNEEDED:
            said += [f"BatchNorm {policy}: {POLICIES[policy]}." for policy in self.bn]
            said.append("Matching is judged with the statistics of training.")
        if len(self.triples):
            said.append(
                "Matrix: the barrier between any two levels; framed: runs of levels that are all connected with each other. "
                "Star-shape test: triples A-B and A-C connected, B-C surely not."
                + (" Grey: degenerate pairs." if self._unsound().any() else "")
            )
        if self.rewound_loss:
            said.append(
                "Rewound: the training loss of the weights at the rewind step under each level's mask, before retraining"
                + (
                    ", with the statistics of BatchNorm that are stored there, the dense network's, and with their own."
                    if "recomputed" in self.rewound_loss
                    else "."
                )
            )
        said.append(f"Seeds: {self.provenance.get('seed', 0)} (draws of rows).")
        return " ".join(said)

    def table(self) -> list[tuple[str, ...]]:
        """See Result: a line for each pair of successive levels."""
        name = self.headline
        head = ["levels", "density", name, "matching", "barrier", "95% interval", "connected", "midpoint"]
        more = {f"barrier ({policy})": self.value(policy=policy) for policy in self.bn[1:]}
        head += list(more)
        named = [""] if self.bn == [UNNEEDED] else [f" ({policy})" for policy in self.bn]
        losses = {f"train-loss barrier{label}": self.value("train loss", policy) for label, policy in zip(named, self.bn, strict=True)}  # fmt: skip
        head += list(losses)
        head += ["distance", "angle (degrees)", "angular", "disagreement", "projection"]
        head += [f"rewound loss ({key})" for key in self.rewound_loss]
        head += ["|m w_tau|", "d"] if len(self.rewound_norm) else []
        rows = [tuple(head)]
        barriers, middles = self.value(), self.value(definition="midpoint")
        low, high = (self.intervals[self.bn[0]][key] for key in ("low", "high"))
        for i, (one, other) in enumerate(itertools.pairwise(self.numbers)):
            row = [
                f"{one} to {other}",
                f"{self.density[i + 1]:.3g}",
                _level(self.values[i + 1], name),
                self.matching[i + 1],
                amount(barriers[i], name),
                f"{amount(low[i], name)} to {amount(high[i], name)}",
                self.connected[i],
                amount(middles[i], name),
                *(amount(values[i], name) for values in more.values()),
            ]
            row += [amount(values[i], "loss") for values in losses.values()]
            row += [
                f"{self.distance[i]:.4g}",
                f"{self.angle[i]:.1f}",
                f"{self.angular[i]:.3f}",
                "" if math.isnan(self.disagreement[i]) else f"{self.disagreement[i]:.1%}",
                "" if math.isnan(self.projected[i]) else f"{self.projected[i]:.3f}",
                *(f"{values[i + 1]:.4g}" for values in self.rewound_loss.values()),
            ]
            row += [f"{self.rewound_norm[i]:.4g}", f"{self.rewound_step[i]:.4g}"] if len(self.rewound_norm) else []
            rows.append(tuple(row))
        return rows

    # -- pictures ------------------------------------------------------------

    def panels(self) -> tuple[str, ...]:
        """See Result."""
        more = [("matrix", len(self.triples)), ("rewound", len(self.rewound_loss))]
        return ("path", "barriers", *(name for name, there in more if there))

    def plot(self, ax: Axes, panel: str = "") -> None:
        """See Result."""
        draw = {"path": self._path, "barriers": self._barriers, "matrix": self._matrix, "rewound": self._rewound}
        panel = panel or "path"
        if panel not in self.panels():
            raise unknown("panel", panel, self.panels())
        draw[panel](ax)

    def figure(self) -> Figure:
        """See Result."""
        from plotly.graph_objects import Heatmap, Scatter
        from plotly.subplots import make_subplots

        columns = 2 if len(self.triples) else 1
        figure = make_subplots(rows=1, cols=columns, horizontal_spacing=0.14)
        for policy, (colour, _, _) in zip(self.bn, LOOKS, strict=False):
            x, y = self._chained(policy)
            named = self.headline if policy == UNNEEDED else f"BatchNorm {policy}"
            figure.add_trace(Scatter(x=x, y=y, mode="lines+markers", marker={"size": 4}, line={"color": colour}, name=named), row=1, col=1)  # fmt: skip
        solutions = Scatter(
            x=np.arange(len(self.numbers)),
            y=self._scale * self.values,
            mode="markers",
            marker={"symbol": "triangle-up", "size": 11, "color": GREY},
            name="solutions, as trained",
            text=[f"level {number}, density {share:.3g}, matching: {answer}" for number, share, answer in zip(self.numbers, self.density, self.matching, strict=True)],
        )  # fmt: skip
        figure.add_trace(solutions, row=1, col=1)
        interactive(figure, x="level", y=self._axis)
        figure.update_xaxes(tickvals=np.arange(len(self.numbers)), ticktext=self._ticks(), row=1, col=1)
        if len(self.triples):
            labels = self._ticks()
            colours = {"title": f"barrier{' (pp)' if self._scale == 100 else ''}"}
            figure.add_trace(Heatmap(x=labels, y=labels, z=self._shown(), colorscale=SEQUENTIAL, colorbar=colours), row=1, col=2)  # fmt: skip
            figure.update_xaxes(title="level", type="category", row=1, col=2)
            figure.update_yaxes(title="level", type="category", autorange="reversed", row=1, col=2)
        return figure

    # -- inside --------------------------------------------------------------

    @property
    def _scale(self) -> int:
        return 100 if self.headline.endswith("error") else 1

    @property
    def _axis(self) -> str:
        return f"{self.headline} (%)" if self._scale == 100 else f"{self.headline} ({self.loss})"

    def _ticks(self) -> list[str]:
        return [str(number) for number in self.numbers]

    def _unsound(self) -> np.ndarray:
        """Pairs of the matrix whose barrier says nothing (L, L)."""
        values = self.matrix["value"]
        found: np.ndarray = self.matrix.get("degenerate", np.zeros(values.shape)).astype(
            bool
        )  # older answers have none
        return found

    def _shown(self) -> np.ndarray:
        """The matrix (L, L) in the unit of the pictures, NaN where a pair is degenerate."""
        return np.where(self._unsound(), math.nan, self._scale * self.matrix["value"])

    def _chained(self, policy: str) -> tuple[np.ndarray, np.ndarray]:
        """The paths one behind another: places ((L - 1) K,) where level i of the chain is at i, and the curve there."""
        curve = self._scale * self.curves[policy][self.headline]
        return np.concatenate([i + self.alpha for i in range(len(curve))]), curve.ravel()

    def _label(self, ax: Axes, places: np.ndarray, labels: Sequence[str], most: int = 12) -> None:
        step = math.ceil(len(places) / most)  # more labels would run into each other
        ax.set_xticks(places[::step], labels[::step])

    def _path(self, ax: Axes) -> None:
        places = np.arange(len(self.numbers))
        if math.isfinite(self.eps):
            base = self.values[0] - self.gap[0]
            ax.axhspan(
                self._scale * base, self._scale * (base + self.eps), color=GREY, alpha=0.3, linewidth=0, zorder=0
            )
        for policy, (colour, dash, _) in zip(self.bn, LOOKS, strict=False):
            x, y = self._chained(policy)
            label = "straight paths" if policy == UNNEEDED else f"BatchNorm {policy}"
            ax.plot(x, y, dash, color=colour, linewidth=1.6 if policy == self.bn[0] else 0.9, label=label, zorder=3)
        colours = {"yes": ("matching", ORANGE), "undecided": ("undecided", "#cccccc"), "no": ("not matching", "white")}
        for answer, (label, colour) in colours.items():
            chosen = np.array([own == answer for own in self.matching])
            if chosen.any():
                label = label if math.isfinite(self.eps) else "solutions"
                ax.plot(places[chosen], self._scale * self.values[chosen], "^", markersize=6, markerfacecolor=colour, markeredgecolor="black", markeredgewidth=0.7, label=label, zorder=4)  # fmt: skip
        self._label(ax, places, [f"{number}\n{100 * share:.{2 + (share == 1)}g}" for number, share in zip(self.numbers, self.density, strict=True)], 13)  # fmt: skip
        ax.tick_params(axis="x", labelsize=6.5)
        ax.set_xlabel("level, below it the weights that survive (%)")
        ax.set_ylabel(self._axis)
        heading(ax, "Error along the chain of solutions" if self._scale == 100 else "Loss along the chain of solutions", columns=3)  # fmt: skip

    def _barriers(self, ax: Axes) -> None:
        places = np.arange(len(self.numbers) - 1) + 0.5
        shift = 0.16
        for i, (policy, (colour, _, marker)) in enumerate(zip(self.bn, LOOKS, strict=False)):
            at = places + shift * (i - (len(self.bn) - 1) / 2)
            value = self._scale * self.value(policy=policy)
            low, high = (self._scale * self.intervals[policy][key] for key in ("low", "high"))
            label = "barrier" if policy == UNNEEDED else f"BatchNorm {policy}"
            bars = np.maximum([value - low, high - value], 0)
            ax.errorbar(at, value, bars, fmt=marker, color=colour, markersize=4, linewidth=1, capsize=2, label=label)
        middle = self._scale * self.value(definition="midpoint")
        named = "at the midpoint" if len(self.bn) == 1 else f"at the midpoint, {self.bn[0]}"
        first = places - shift * (len(self.bn) - 1) / 2  # its value is the first policy's, and so is its place
        ax.plot(first, middle, "_", color="black", markersize=9, label=named)
        ax.axhline(self._scale * self.threshold, color=GREY, linestyle=":", linewidth=1, label="threshold")
        self._label(ax, places, [f"{one}–{other}" for one, other in itertools.pairwise(self._ticks())], 7)
        ax.set_xlabel("levels")
        unit = "pp of test error" if self._scale == 100 else self.headline
        ax.set_ylabel(f"barrier ({unit})")
        heading(ax, "Barrier between successive levels, 95% intervals", columns=2 if len(self.bn) > 1 else 3)

    def _matrix(self, ax: Axes) -> None:
        from matplotlib import colormaps
        from matplotlib.patches import Rectangle

        values = self._shown()
        colours = colormaps[SEQUENTIAL].with_extremes(bad="#dddddd")
        image = ax.imshow(np.ma.masked_invalid(values), cmap=colours, vmin=0, interpolation="nearest")
        bar = ax.figure.colorbar(image, ax=ax, shrink=0.9)
        bar.set_label("barrier (pp)" if self._scale == 100 else "barrier")
        where = {number: i for i, number in enumerate(self.numbers.tolist())}
        for block in self.blocks:
            first, last = where[block[0]], where[block[-1]]
            frame = Rectangle((first - 0.5, first - 0.5), last - first + 1, last - first + 1, fill=False, edgecolor=VERMILION, linewidth=1.6, clip_on=False, zorder=3)  # fmt: skip
            ax.add_patch(frame)
        places = np.arange(len(self.numbers))
        step = math.ceil(len(places) / 12)
        ax.set_xticks(places[::step], self._ticks()[::step])
        ax.set_yticks(places[::step], self._ticks()[::step])
        ax.set_xlabel("level")
        ax.set_ylabel("level")
        ax.set_title("Barrier between any two levels", loc="left")

    def _rewound(self, ax: Axes) -> None:
        looks = {"stored": (BLUE, "-", "o"), "recomputed": (VERMILION, "--", "s")}
        named = {"stored": "statistics as stored", "recomputed": "statistics of its own"}
        places = np.arange(len(self.numbers))
        for key, losses in self.rewound_loss.items():
            colour, dash, marker = looks[key]
            label = named[key] if len(self.rewound_loss) > 1 else "masked rewind point"
            ax.plot(places, losses, dash, color=colour, marker=marker, markersize=4, label=label)
        if self.guessing is not None:
            ax.axhline(self.guessing, color=GREY, linestyle=":", linewidth=1, label="uniform guessing")
        self._label(ax, places, self._ticks())
        ax.set_xlabel("level")
        ax.set_ylabel(f"train loss ({self.loss})")
        heading(ax, "Rewind points under each level's mask", columns=2)


# -- the question -----------------------------------------------------------------------------------------------------


def chain(
    train: Objective,
    test: Objective,
    solutions: Tensor,
    buffers: Sequence[Buffers] | None = None,
    masks: Sequence[Mask] | None = None,
    *,
    numbers: Sequence[int] | None = None,
    density: Sequence[float] | None = None,
    dense: Sequence[float] = (),
    dense_end: End | None = None,
    eps: float | None = None,
    rewound: Tensor | None = None,
    rewound_buffers: Sequence[Buffers] | None = None,
    pairs: Literal["successive", "all"] = "successive",
    points: int = 11,
    bn: Policies = (DEFAULT_POLICY, "average"),
    statistics: Objective | None = None,
    threshold: float = NEAR_CHANCE,
    seed: int = 0,
) -> Chain:
    """Barriers between the solutions (L, D) of levels, and which levels match.

    buffers, masks: of each level; by default the objective's buffers, and no masks. The points are taken with exact zeros outside their masks.
    numbers: of the levels, ascending; by default 0, 1, ...
    density: of the levels; by default the share of all parameters that survive.
    dense: test errors (losses, where the loss does not classify) of networks trained without pruning, level 0 among them.
    dense_end: the dense solution, with whose answers those of the levels are compared row by row; by default the first level's.
    eps: how much above it counts as matching; by default the standard deviation of `dense`, of which there is none for less than 2: then it is undecided.
    rewound, rewound_buffers: the rewind points (L, D), each under its level's mask, with their buffers.
    pairs: `all` adds the matrix over all pairs of levels, by test rows alone under the first policy, and the star-shape test.
    points: of each path; 11, since a chain is many paths. Take 25 to compare with git-re-basin.
    bn: policies for BatchNorm, the first the headline's. The authors average.
    statistics: over whose rows `recompute` takes them; by default train.
    threshold: below which a barrier counts as none; 2 points of error as Frankle et al. 2020.

    Raises UsageError where shapes, numbers or names do not fit each other.
    """
    count = len(solutions)
    numbers = list(range(count)) if numbers is None else [int(number) for number in numbers]
    _check(count, numbers, buffers, masks, rewound, pairs, threshold, test.loss.classifies, eps)
    if masks is not None:
        solutions = _pruned(solutions, masks)
    shared = [train.buffers] * count
    ends = [
        End(point, own, None if masks is None else masks[i])
        for i, (point, own) in enumerate(zip(solutions, buffers or shared, strict=True))
    ]
    near = list(itertools.pairwise(ends))
    found = hills(train, test, near, points=points, bn=bn, statistics=statistics, seed=seed)
    connected = [
        "degenerate" if bad else one for one, bad in zip(found.decided(threshold), found.degenerate, strict=True)
    ]
    rowwise = [by_row(test.with_buffers(end.buffers or {}), end.point)[0] for end in ends]
    values = np.array([rows.mean() for rows in rowwise])
    base = rowwise[0] if dense_end is None else by_row(test.with_buffers(dense_end.buffers or {}), dense_end.point)[0]
    gap = np.array([(rows - base).mean() for rows in rowwise])
    gap_error = np.array([(rows - base).std() / math.sqrt(len(rows)) for rows in rowwise])
    least = noise(base) if test.loss.classifies else 0.0
    bound, interval = spread(dense, least) if eps is None else (eps, [eps, eps])
    verdicts = [matching(one, error, bound, interval) for one, error in zip(gap, gap_error, strict=True)]
    verdicts = ["undecided" if verdict == "unknown" else verdict for verdict in verdicts]
    decided = _crossed(verdicts[1:], connected, found.degenerate)
    matched = ["undecided" if math.isnan(bound) else "yes" if one <= bound else "no" for one in gap[1:]]
    below = ["yes" if one < threshold else "no" for one in found.intervals[found.policies[0]].value]
    estimated = _crossed(matched, below, found.degenerate)[[0, 2]][:, [0, 2]]

    matrix: dict[str, np.ndarray] = {}
    blocks: list[list[int]] = []
    members = triples = np.empty(0, dtype=int)
    clearest: list[dict[str, float]] = []
    if pairs == "all":
        matrix = _matrix(ends, found, test, statistics or train, points, found.policies[0], seed)  # fmt: skip
        joined = np.array([[decide(*both, threshold) for both in zip(*rows, strict=True)] for rows in zip(matrix["low"], matrix["high"], strict=True)])  # fmt: skip
        joined[matrix["degenerate"]] = "undecided"  # neither an arm of a triple nor its far side
        np.fill_diagonal(joined, "yes")
        blocks = [[numbers[i] for i in block] for block in _blocks(joined == "yes")]
        members = (joined == "yes").sum(1) - 1
        triples, clearest = _stars(joined, matrix["value"], numbers)

    nested = masks is not None and all(after <= before for before, after in itertools.pairwise(masks))
    norms, steps = _rewinding(rewound, masks)
    return Chain(
        question={},
        provenance={
            "rows": {"test": len(test.rows), "train": len(train.rows)},
            "dtype": dtype_name(train.dtype),
            "device": str(train.device),
            "D": train.model.layout.dim,
            "seed": seed,
        },
        warnings=tuple(
            _cautions(
                numbers,
                values,
                test.loss.classifies,
                found,
                masks,
                nested,
                None if eps is not None else len(dense),
                threshold,
                test.loss.name,
            )
        ),
        numbers=np.array(numbers),
        density=np.array(density or [1.0 if end.mask is None else end.mask.density for end in ends]),
        alpha=found.alpha,
        curves=found.curves,
        intervals={policy: _arrays(own) for policy, own in found.intervals.items()},
        degenerate=found.degenerate,
        distance=found.distance,
        angle=found.angle,
        angular=found.angular,
        disagreement=found.disagreement,
        values=values,
        dense=np.array(dense, dtype=float),
        eps=bound,
        eps_interval=interval,
        gap=gap,
        gap_error=gap_error,
        matching=verdicts,
        connected=connected,
        decided=decided,
        estimated=estimated,
        fisher={"estimated": _fisher(estimated), "decided": _fisher(decided[[0, 2]][:, [0, 2]])},
        threshold=threshold,
        masked=nested,
        matrix=matrix,
        blocks=blocks,
        members=members,
        triples=triples,
        clearest=clearest,
        projected=_projected(solutions, masks),
        rewound_loss=_rewound_losses(train, rewound, rewound_buffers, statistics, found.policies != (UNNEEDED,)),
        rewound_norm=norms,
        rewound_step=steps,
        guessing=uniform_loss(train) if train.loss.classifies else None,
        bn=list(found.policies),
        rows={
            "test": len(test.rows),
            "train": len(train.rows),
            **({} if statistics is None or found.policies == (UNNEEDED,) else {"statistics": len(statistics.rows)}),
        },
        loss=train.loss.name,
    )


# -- matching ---------------------------------------------------------------------------------------------------------


def _crossed(matching: Sequence[str], connected: Sequence[str], degenerate: np.ndarray) -> np.ndarray:
    """Pairs by matching and connected (3, 3) in the order of ANSWERS; those that are degenerate say nothing."""
    counts = np.zeros((3, 3), dtype=int)
    for one, other, bad in zip(matching, connected, degenerate, strict=True):
        if not bad:
            counts[ANSWERS.index(one), ANSWERS.index(other)] += 1
    return counts


def _fisher(both: np.ndarray) -> float | None:
    """p of Fisher's exact test on a table (2, 2); None where it can show nothing."""
    return float(stats.fisher_exact(both)[1]) if both.sum(0).all() and both.sum(1).all() else None


# -- all pairs --------------------------------------------------------------------------------------------------------


def _matrix(
    ends: Sequence[End], near: Hills, test: Objective, train: Objective, points: int, policy: str, seed: int
) -> dict[str, np.ndarray]:
    """Barriers between all ends (L, L), and which pairs are degenerate: symmetric, the diagonal 0. Those of successive ones are known."""
    count = len(ends)
    found = {key: np.zeros((count, count)) for key in ("value", "low", "high")}
    found["degenerate"] = np.zeros((count, count), dtype=bool)
    far = [(i, j) for i in range(count) for j in range(i + 2, count)]
    known = [((i, i + 1), near, i) for i in range(count - 1)]
    if far:
        policies = DEFAULT_POLICY if policy == UNNEEDED else policy
        measured = hills(None, test, [(ends[i], ends[j]) for i, j in far], points=points, bn=policies, statistics=train, seed=seed)  # fmt: skip
        known += [(pair, measured, place) for place, pair in enumerate(far)]
    for (i, j), those, place in known:
        for key, values in found.items():
            own = those.degenerate if key == "degenerate" else getattr(those.intervals[those.policies[0]], key)
            values[i, j] = values[j, i] = own[place]
    return found


def _blocks(joined: np.ndarray) -> list[range]:
    """Maximal runs of two or more levels that are all joined with each other, by (L, L)."""
    count = len(joined)
    found: list[range] = []
    for first in range(count):
        last = first
        while last + 1 < count and joined[first : last + 2, first : last + 2].all():
            last += 1
        if last > first and not (found and last < found[-1].stop):
            found.append(range(first, last + 1))
    return found


def _stars(
    joined: np.ndarray, barriers: np.ndarray, numbers: Sequence[int]
) -> tuple[np.ndarray, list[dict[str, float]]]:
    """Of how many triples each level is the centre (L,), and the clearest: where the way across is highest above the arms."""
    count = len(joined)
    centres = np.zeros(count, dtype=int)
    found = []
    for centre in range(count):
        around = [i for i in range(count) if i != centre and joined[centre, i] == "yes"]
        for i, j in itertools.combinations(around, 2):
            if joined[i, j] == "no":
                centres[centre] += 1
                arms = float(max(barriers[centre, i], barriers[centre, j]))
                found.append({"centre": numbers[centre], "first": numbers[i], "second": numbers[j], "arms": arms, "across": float(barriers[i, j])})  # fmt: skip
    found.sort(key=lambda triple: triple["arms"] - triple["across"])
    return centres, found[:CLEAREST]


# -- rewind points ----------------------------------------------------------------------------------------------------


def _rewinding(rewound: Tensor | None, masks: Sequence[Mask] | None) -> tuple[np.ndarray, np.ndarray]:
    """|m_l w_tau| (L,), and how far the next mask moves each (L - 1,)."""
    if rewound is None:
        return np.empty(0), np.empty(0)
    norms = rewound.cpu().double().norm(dim=1).numpy()
    return norms, np.zeros(len(rewound) - 1) if masks is None else _moved(rewound, masks)


def _moved(points: Tensor, masks: Sequence[Mask]) -> np.ndarray:
    """How far the next mask moves each point of (L, D) but the last: (L - 1,)."""
    whole = points.cpu().double()
    return np.array([float((w - mask.apply(w)).norm()) for w, mask in zip(whole[:-1], masks[1:], strict=True)])


def _rewound_losses(
    train: Objective,
    rewound: Tensor | None,
    buffers: Sequence[Buffers] | None,
    statistics: Objective | None,
    normalised: bool,
) -> dict[str, np.ndarray]:
    """Train loss of the rewind points (L,), with BatchNorm's statistics as stored and, where there are any, taken anew."""
    if rewound is None:
        return {}
    points = rewound.to(train.device, train.dtype)
    owns = [train.with_buffers(own) for own in (buffers or [train.buffers] * len(points))]
    losses = {"stored": np.array([float(f(z)) for f, z in zip(owns, points, strict=True)])}
    if normalised:
        taken = [recomputed((statistics or train).with_buffers(f.buffers), z).buffers for f, z in zip(owns, points, strict=True)]  # fmt: skip
        losses["recomputed"] = np.array([float(train.with_buffers(own)(z)) for own, z in zip(taken, points, strict=True)])  # fmt: skip
    return losses


def _projected(solutions: Tensor, masks: Sequence[Mask] | None) -> np.ndarray:
    """How far the next mask moves each solution, relative to its norm (L - 1,)."""
    if masks is None:
        return np.full(len(solutions) - 1, math.nan)
    found: np.ndarray = _moved(solutions, masks) / solutions[:-1].cpu().double().norm(dim=1).numpy()
    return found


# -- checks and words -------------------------------------------------------------------------------------------------


def _check(
    count: int,
    numbers: Sequence[int],
    buffers: Sequence[Buffers] | None,
    masks: Sequence[Mask] | None,
    rewound: Tensor | None,
    pairs: str,
    threshold: float,
    classifies: bool,
    eps: float | None,
) -> None:
    if count < 2:
        raise UsageError(f"a chain joins at least two levels; got {count}.")
    given = {"numbers": numbers, "buffers": buffers, "masks": masks, "rewound": rewound}
    for name, own in given.items():
        if own is not None and len(own) != count:
            raise UsageError(f"{name} must be as many as the {count} levels; got {len(own)}.")
    if any(after <= before for before, after in itertools.pairwise(numbers)):
        raise UsageError(f"levels are given in ascending order, each once; got {list(numbers)}.")
    if pairs not in ("successive", "all"):
        raise unknown("choice of pairs", pairs, ("successive", "all"))
    check_threshold(threshold, classifies)
    if eps is not None and not 0 <= eps < math.inf:
        raise UsageError(f"eps is a difference of errors, 0 or more; got {eps}.")


def _pruned(points: Tensor, masks: Sequence[Mask]) -> Tensor:
    return torch.stack([mask.apply(point) for mask, point in zip(masks, points, strict=True)])


def _cautions(
    numbers: Sequence[int],
    values: np.ndarray,
    classifies: bool,
    found: Hills,
    masks: Sequence[Mask] | None,
    nested: bool,
    n: int | None,
    threshold: float,
    loss: str,
) -> Iterator[str]:
    """Sentences; n: of dense trainings, None where eps is given."""
    if not classifies:
        yield from told_threshold(threshold, loss)
    named = [f"{one} to {other}" for one, other in itertools.pairwise(numbers)]
    bad = [pair for pair, is_bad in zip(named, found.degenerate, strict=True) if is_bad]
    if bad:
        yield f"An end at chance or not finite, or both ends one point: levels {', '.join(bad)}. Between points that know nothing a small barrier shows nothing."
    steep = [pair for pair, gap in zip(named, np.abs(np.diff(values)), strict=True) if classifies and gap > 2 * NEAR_CHANCE]  # fmt: skip
    if steep:
        yield (
            f"The ends differ by more than {amount(2 * NEAR_CHANCE, 'error')}: levels {', '.join(steep)}. A path that rises all the way has no barrier over the linear "
            "baseline: connected there does not mean as good."
        )
    if masks is not None and not nested:
        yield "The masks are not nested: the straight path leaves the denser level's axial subspace, and to prune the midpoint by its mask would change it."
    if any(after - before > 1 for before, after in itertools.pairwise(numbers)):
        yield "Levels are left out: the barriers of neighbours here are not all of successive levels."
    if n is not None and n < 2:
        yield f"{_many(n, 'dense training')} {'has' if n == 1 else 'have'} no standard deviation: which levels match is undecided. Give --replicates to `landscape imp`."
    elif n is not None and n < 4:
        yield f"{n} dense trainings tell their standard deviation poorly: few levels are decided. Give --replicates 5 to `landscape imp`."
    if found.policies[0] == "average":
        yield "BatchNorm statistics are averaged along the path, which exaggerates the barrier unless the ends share most of their training."


def _arrays(interval: Interval) -> dict[str, np.ndarray]:
    return {key: getattr(interval, key) for key in ("low", "high", "error", "bias")}


def _counted(answers: Sequence[str]) -> str:
    """`3 of 5 (1 undecided)`; those that are degenerate are not counted."""
    unsure, counted = answers.count("undecided"), len(answers) - answers.count("degenerate")
    return f"{answers.count('yes')} of {counted}" + (f" ({unsure} undecided)" if unsure else "")


def _many(count: int, name: str) -> str:
    return f"{count} {name}{'s' * (count != 1)}"


def _level(value: float, name: str) -> str:
    """A value in its unit: per cent for errors."""
    return f"{value:.2%}" if name.endswith("error") else f"{value:.4g}"


def _fine(value: float, name: str) -> str:
    """A small difference, with a digit more than `amount` has."""
    return f"{100 * value:.2f} pp" if name.endswith("error") else f"{value:.3g}"
