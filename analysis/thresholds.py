"""How many dimensions suffice: success probability, threshold dimension and phase map of trainings in subspaces, read off a grid of finished cells.

Letters: D parameters, d subspace dimension, F families, K dimensions (increasing), L levels (from the easiest to the hardest), n seeds, t steps of burn-in, R distance.

    cell           one training: a family of subspaces, a dimension, a seed; it hits a level where the best loss it met is at most that (an accuracy: at least)
    P(d, level)    the share of seeds that hit: over initialisations and bases
    d*             the smallest tried d with P >= 1 - delta at it and at every larger one
    d10, d50, d90  where a normal curve in arcsin sqrt(d / D), fitted to the same cells, is 0.1, 0.5 and 0.9
    d_int90, 100   the smallest tried d whose median score is at least 90% or 100% of the whole space's

A level decides nothing before the end: cells keep their best numbers, and every level is read off the same cells, as often as wanted (`Threshold.at`).

One-sided. A hit proves that the subspace meets the sublevel set; a miss may be the solver's. Where a seed's subspaces are nested (all bases but the sparse one), a hit is therefore a hit in every larger one:
each seed has one threshold, in a bracket, and a larger subspace that missed is counted as the solver's violation. A cell that met a NaN is judged by what it had reached before, so a hit stays a hit;
nothing is imputed. What was not tried, and is not implied, is left out of P; d* is then a bound if the missing cells could change it.

Tickets. The levels of iterative pruning stand beside the families, one run by itself and without a probability: a level's d is the number of parameters that move, its subspace is axial and goes through the origin, and a solution that reaches
a goal is a hit there and, masks being nested, in all larger ones. Which parameters move was found by training in more dimensions, and is not counted in d.

The ball of radius r at distance R, whose d50 is D (1 - r^2/R^2), has the transition width d90 - d10 = 2.56 sqrt(2 d (D - d) / D), which stands beside the measured one.

Sources: Larsen, Fort, Becker, Ganguli 2022, "How many degrees of freedom do we need to train deep networks" (definitions 2.1 to 2.3: P, d*, delta = 0.1); Li, Farkhoor, Liu, Yosinski 2018, "Measuring the
intrinsic dimension of objective landscapes" (d_int90, d_int100); Amelunxen, Lotz, McCoy, Tropp 2014 (the width).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import ndtr, ndtri

from landscape import proportions
from landscape.analysis.styles import borders, heading
from landscape.errors import UsageError, unknown
from landscape.proportions import Transition
from landscape.results import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from plotly.graph_objects import Figure

FULL = "full"  # the family of the whole space
# whose subspaces of one seed are nested whatever the basis: prefixes of one list of directions
PREFIXES = ("lottery", "dldr", "transfer", "hessian")
DRAWN = ("random", "burn-in")  # nested or not as the basis is
CRITERIA = {"train loss": "train_loss", "train accuracy": "train_accuracy", "test accuracy": "test_accuracy"}
COLUMNS = ("family", "dim", "seed", *CRITERIA.values(), "final_train_loss", "final_train_accuracy", "final_test_loss", "final_test_accuracy", "distance", "failed")  # fmt: skip

LOSSES = 24  # levels even in log loss, and as many even in rank, so that a family whose losses lie close together has its share: more rows are not told apart in a map
ACCURACIES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99, 0.995)
MARKED = 3  # levels of the criterion in the table and in the pictures over burn-in, where none are asked for; of other criteria one
SIGNS = {0: "", 1: "> ", -1: "≤ "}  # of a dimension's bound
RATIO_SIGNS = {0: "", 1: "< ", -1: "≥ "}  # of D/d there
SHARES = (0.9, 1.0)  # of the whole space's score: d_int90 and d_int100
TICKETS = ("name", "level", "dim", "train_loss", "train_accuracy", "test_loss", "test_accuracy")


@dataclass(frozen=True)
class Phase:
    """P, d* and the transitions of F families at L levels of one criterion."""

    criterion: str
    levels: np.ndarray  # (L,) from the easiest to the hardest
    hits: np.ndarray  # (F, L, K) seeds
    trials: np.ndarray  # (F, L, K) seeds of which it is known whether they hit; 0 where none is
    thresholds: np.ndarray  # (F, L) d*; NaN where nothing is known
    threshold_bounds: np.ndarray  # (F, L) 0: d* is the number; 1: d* is more than it; -1: at most it
    quantiles: np.ndarray  # (3, F, L) d10, d50, d90, likewise
    quantile_bounds: np.ndarray  # (3, F, L)
    lows: np.ndarray  # (3, F, L) of their intervals; 0 where it reaches below the tried dimensions
    highs: np.ndarray  # (3, F, L) likewise; infinity above
    violations: np.ndarray  # (F, K) cells that missed a level that a smaller subspace of the same seed reached

    @property
    def probabilities(self) -> np.ndarray:
        """P (F, L, K); NaN where nothing is known."""
        return np.where(self.trials > 0, self.hits / np.maximum(self.trials, 1), np.nan)

    def bands(self, confidence: float) -> tuple[np.ndarray, np.ndarray]:
        """Wilson's interval (low, high) of each P (F, L, K)."""
        return proportions.wilson(self.hits, self.trials, confidence)

    def row(self, level: float) -> int:
        """The index of a level."""
        return int(np.abs(self.levels - level).argmin())


@dataclass(frozen=True, kw_only=True)
class Threshold(Result):
    """The phase transition of trainings in subspaces. Families stand in the order of the cells; the whole space is none of them."""

    ambient: int  # D
    delta: float  # d* asks for P >= 1 - delta
    confidence: float  # of all intervals
    nested: bool  # whether the random subspaces of one seed are
    families: list[str]  # (F,)
    dims: np.ndarray  # (K,) of all families
    seeds: np.ndarray  # (F,) n
    tried: np.ndarray  # (F, K) cells
    failed: np.ndarray  # (F, K) of them met a NaN
    distances: np.ndarray  # (F,) R: mean over seeds of |start - end of the whole space's training|; NaN where unknown
    criterion: str  # of the maps and the summary
    level: float  # of the summary; NaN where no level can be read
    marks: dict[str, np.ndarray]  # levels of each criterion that the table lists
    phases: dict[str, dict[str, Any]]  # fields of Phase, by criterion
    measure: str  # of the scores: accuracy, or loss where the task has none
    scores: dict[
        str, np.ndarray
    ]  # train and test (3, F, K): quartiles over seeds of the final score; NaN where no cell
    whole: dict[str, np.ndarray]  # train and test (3,): of the whole space; NaN where it was not trained
    intrinsic: np.ndarray  # (2, F) d_int90 and d_int100; NaN without the whole space, or where the score is a loss
    intrinsic_bounds: np.ndarray  # (2, F) as threshold_bounds
    cells: dict[str, np.ndarray]  # columns: everything above is read off them
    tickets: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)  # columns TICKETS, a row a level of iterative pruning; empty without  # fmt: skip

    # -- numbers ------------------------------------------------------------------------------------------------------

    def phase(self, criterion: str = "") -> Phase:
        """The stored phase of a criterion, by default that of the summary."""
        name = criterion or self.criterion
        if name not in self.phases:
            raise unknown("criterion", name, self.phases)
        return Phase(**self.phases[name])

    def at(self, criterion: str, levels: Sequence[float]) -> Phase:
        """The phase at any levels, read off the stored cells again."""
        if criterion not in self.phases:
            raise unknown("criterion", criterion, self.phases)
        grid = _Grid(self.cells, self.ambient, self.nested)
        return grid.phase(criterion, _sorted(criterion, levels), self.delta, self.confidence)

    def ball_width(self, dim: float) -> float:
        """d90 - d10 of a ball whose d50 is `dim`."""
        return 2 * float(ndtri(0.9)) * math.sqrt(2 * dim * (self.ambient - dim) / self.ambient)

    @property
    def ladders(self) -> list[str]:
        """The names of the iterative prunings."""
        return list(dict.fromkeys(self.tickets["name"].tolist())) if self.tickets else []

    def ticket(self, name: str, column: str, goals: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The fewest parameters (L,) with which a pruning's solution reaches each goal in a column of `TICKETS` (NaN: none does), and the bounds (L,): -1 where its last level still does."""
        mine = self.tickets["name"] == name
        dims, reached = self.tickets["dim"][mine], self.tickets[column][mine]
        goals = np.asarray(goals, dtype=float)
        hit = reached <= goals[:, None] if column.endswith("loss") else reached >= goals[:, None]
        found = np.where(hit, dims.astype(float), np.inf).min(1)
        return np.where(np.isfinite(found), found, np.nan), np.where(found == dims.min(), -1, 0)

    @property
    def burn_ins(self) -> dict[int, int]:
        """Steps of burn-in, increasing, and the place of the family with so many; `random` has 0."""
        found = {_steps(name): place for place, name in enumerate(self.families) if _base(name) in DRAWN}
        return dict(sorted(found.items()))

    # -- words --------------------------------------------------------------------------------------------------------

    def summary(self) -> str:
        """See Result."""
        task = self.provenance.get("task")
        start = f"{task}: " if task else ""
        size = f"D = {self.ambient:,}, {_span(self.seeds)}"
        if math.isnan(self.level):
            return f"{start}no cell reached a number that a level could be read off; {size}."
        if (self.failed == self.tried).all():
            return f"{start}all {int(self.tried.sum())} trainings met a loss or a point that is not finite: use a smaller learning rate; {size}."
        found = self.phase()
        row = found.row(self.level)
        parts = []
        for place, family in enumerate(self.families):
            d = _bounded(found.thresholds[place, row], found.threshold_bounds[place, row])
            d = f"= {d}" if d[0].isdigit() else d
            parts.append(f"d {d} ({family}; d50 {_estimate(found, 1, place, row)})")
        for name in self.ladders:
            (d,), (bound,) = self.ticket(name, CRITERIA[self.criterion], [self.level])
            parts.append(f"{name} with {_bounded(d, bound)} parameters" if np.isfinite(d) else f"{name} at no level")
        share = f"{100 * (1 - self.delta):g}%"
        return f"{start}{share} of seeds reach {_named(self.criterion, self.level)} from {', '.join(parts)}; {size}."

    def caption(self) -> str:
        """See Result."""
        own = [name for name in self.families if _nested(name, self.nested)]
        text = (
            f"Success probability P of training in d of {self.ambient:,} dimensions, over {_span(self.seeds)} (initialisation and basis); a run hits a level where the best number it met reaches it. "
            f"d*: the smallest tried d with P of at least {1 - self.delta:g} at it and at every larger one. d50 and its band: normal fit in the angle arcsin sqrt(d/D), {100 * self.confidence:g}% likelihood intervals; bars of P: Wilson's. "
            "Nothing is extrapolated: where the tried dimensions do not decide, a bound stands (≤, >), and lines end. A hit proves that the subspace meets the set of so low a loss; a miss may be the solver's. "
        )
        if own:
            text += f"Subspaces of one seed are nested ({', '.join(own)}), so a hit counts in every larger one. "
        if any((found["trials"] < self.seeds[:, None, None]).any() for found in self.phases.values()):
            text += "Where cells were not tried, and are not implied, P is over the seeds that are known; hatched where none is. "
        if self.tickets:
            text += (
                f"{', '.join(self.ladders)}: levels of iterative pruning, one run each, so no probability; d is the number of parameters that move, in an axial subspace through the origin, and the score that of the level's solution. "
                "A solution that reaches a level shows that so many are enough; another training might need fewer. Which of them move was learnt in more dimensions, and is not counted. "
            )
        failed = int(self.failed.sum())
        if failed:
            text += f"{failed} of {int(self.tried.sum())} runs met a NaN: they are judged by what they had reached before, and hatched in the maps. "
        text += f"Scores over d: final {self.measure}, median and quartiles over the seeds that ended with a number; compression is D/d."
        if np.isfinite(self.intrinsic).any():
            text += " d_int90 and d_int100: the smallest tried d whose median test score is at least 90% or 100% of the whole space's (Li et al. 2018)."
        return text

    def table(self) -> list[tuple[str, ...]]:
        """See Result."""
        head = ("family", "level", "d*", "P there", "d10", "d50", "d90", "width", "ball's", "D/d*")
        rows: list[tuple[str, ...]] = []
        for criterion, levels in self.marks.items():
            found = self.phase(criterion)
            low, high = found.bands(self.confidence)
            for level in levels:
                row = found.row(level)
                for place, family in enumerate(self.families):
                    d, bound = found.thresholds[place, row], found.threshold_bounds[place, row]
                    k = int(np.searchsorted(self.dims, d)) if np.isfinite(d) else -1
                    hits, trials = found.hits[place, row, k], found.trials[place, row, k]
                    there = f"{hits}/{trials} [{low[place, row, k]:.2f}, {high[place, row, k]:.2f}]" if k >= 0 else ""
                    middle = found.quantiles[1, place, row]
                    settled = found.quantile_bounds[1, place, row] == 0 and np.isfinite(middle)
                    rows.append(
                        (
                            family,
                            _named(criterion, level),
                            _bounded(d, bound),
                            there,
                            *(_estimate(found, q, place, row) for q in range(3)),
                            self._width(found, place, row),
                            f"{self.ball_width(middle):.3g}" if settled else "",
                            _bounded(self.ambient / d, bound, RATIO_SIGNS) if np.isfinite(d) else "",
                        )
                    )
                rows += [
                    self._rung(name, CRITERIA[criterion], level, _named(criterion, level)) for name in self.ladders
                ]
        whole = float(self.whole["test"][1])
        for share, dims, bounds in zip(SHARES, self.intrinsic, self.intrinsic_bounds, strict=True):
            for family, d, bound in zip(self.families, dims, bounds, strict=True):
                if np.isfinite(d):
                    level = f"d_int{100 * share:.0f}: median of {share * whole:.4g}"
                    ratio = _bounded(self.ambient / d, bound, RATIO_SIGNS)
                    rows.append((family, level, _bounded(d, bound), *[""] * 6, ratio))
            if self.measure == "accuracy" and np.isfinite(whole):
                words = f"d_int{100 * share:.0f}: median of {share * whole:.4g}"
                rows += [self._rung(name, "test_accuracy", share * whole, words) for name in self.ladders]
        return [head, *rows]

    def _rung(self, name: str, column: str, goal: float, words: str) -> tuple[str, ...]:
        """The row of an iterative pruning."""
        (d,), (bound,) = self.ticket(name, column, [goal])
        if np.isnan(d):
            return (name, words, "none reached", *[""] * 7)
        return (name, words, _bounded(d, bound), "one run", *[""] * 5, _bounded(self.ambient / d, bound, RATIO_SIGNS))

    def _width(self, found: Phase, place: int, row: int) -> str:
        """d90 - d10; where at most one tried dimension lies between them, only that it is less than the gap around them."""
        first, _, last = found.quantiles[:, place, row]
        dims = self.dims[self.tried[place] > 0]
        if np.isnan(first) or found.quantile_bounds[[0, 2], place, row].any():
            return ""
        if np.sum((dims > first) & (dims < last)) > 1:
            return f"{last - first:.3g}"
        return f"< {dims[dims >= last][0] - dims[dims <= first][-1]}"

    # -- pictures -----------------------------------------------------------------------------------------------------

    def panels(self) -> tuple[str, ...]:
        """`curves`, `probability`, `axis`, a `map` of each family, and where several burn-ins have a d50 at one level `burn-in` and `distance`."""
        names = ["axis"]
        if not math.isnan(self.level):
            names = ["curves", "probability", "axis", *(f"map {family}" for family in self.families)]
            if len(self._compared()):
                names.append("burn-in")
                if np.isfinite(self.distances[list(self.burn_ins.values())]).all():
                    names.append("distance")
        return tuple(names)

    def plot(self, ax: Axes, panel: str = "") -> None:
        """See Result."""
        drawings: dict[str, Callable[[Axes], None]] = {
            "curves": self._plot_curves,
            "probability": self._plot_probability,
            "axis": self._plot_axis,
            "burn-in": self._plot_burn_in,
            "distance": self._plot_distance,
        }
        panel = panel or self.panels()[0]
        if panel not in self.panels():
            raise unknown("panel", panel, self.panels())
        if panel.startswith("map "):
            self._plot_map(ax, self.families.index(panel.removeprefix("map ")))
        else:
            drawings[panel](ax)

    def _plot_curves(self, ax: Axes) -> None:
        found = self.phase()
        heights = _heights(self.criterion, found.levels)
        for place, family in enumerate(self.families):
            look = _look(place)
            settled = found.quantile_bounds[1, place] == 0
            low = np.maximum(found.lows[1, place], self.dims[0])
            high = np.minimum(found.highs[1, place], self.dims[-1])
            ax.fill_between(heights, low, high, where=settled, color=look["color"], alpha=0.18, linewidth=0)
            middle = np.where(settled, found.quantiles[1, place], np.nan)
            ax.plot(heights, middle, color=look["color"], linestyle=look["linestyle"], linewidth=0.8, alpha=0.7)
            exact = found.threshold_bounds[place] == 0
            stars = np.where(exact, found.thresholds[place], np.nan)
            ax.plot(heights, stars, drawstyle="steps-mid", label=family, markevery=_sparse(stars), **look)
        for place, name in enumerate(self.ladders):
            fewest, bounds = self.ticket(name, CRITERIA[self.criterion], found.levels)
            fewest = np.where(bounds == 0, fewest, np.nan)
            ax.plot(heights, fewest, drawstyle="steps-mid", label=name, markevery=_sparse(fewest), **_ticket_look(place))  # fmt: skip
        self._mark_dims(ax, "y", tickets=True)
        self._mark_levels(ax, "x", found.levels)
        if len(heights) > 1:
            ax.set_xlim(heights[0], heights[-1])
        ax.set_ylabel("d")
        heading(ax, "Threshold dimension d* (thin, with bands: d50)")

    def _plot_probability(self, ax: Axes) -> None:
        found = self.phase()
        row = found.row(self.level)
        low, high = found.bands(self.confidence)
        chances = found.probabilities
        fine = np.geomspace(self.dims[0], self.dims[-1], 200)
        for place, family in enumerate(self.families):
            look = _look(place)
            known = np.isfinite(chances[place, row]) & (self.tried[place] > 0)
            p = chances[place, row, known]
            reach = np.stack([p - low[place, row, known], high[place, row, known] - p])
            # side by side where dimensions are shared
            shift = 1.04 ** (place - (len(self.families) - 1) / 2)
            style = {**look, "linestyle": "none"}
            ax.errorbar(
                self.dims[known] * shift, p, np.maximum(reach, 0), elinewidth=0.8, capsize=1.5, label=family, **style
            )
            curve = self._fitted(found, place, row, fine)
            if curve is not None:
                ax.plot(fine, curve, color=look["color"], linestyle=look["linestyle"], linewidth=1.2)
        ax.axhline(1 - self.delta, color="#8a8a8a", linestyle=":", linewidth=1)
        self._mark_dims(ax, "x")
        ax.set_xlabel("subspace dimension d")
        ax.set_ylim(-0.04, 1.04)
        ax.set_ylabel("success probability P")
        heading(ax, f"P of {_named(self.criterion, self.level)} (dotted: 1 − δ)")

    def _fitted(self, found: Phase, place: int, row: int, dims: np.ndarray) -> np.ndarray | None:
        """The fitted P at dimensions; None where d10 or d90 is a bound, so that the curve is not known."""
        if found.quantile_bounds[:, place, row].any() or np.isnan(found.quantiles[1, place, row]):
            return None
        first, centre, last = np.arcsin(np.sqrt(found.quantiles[:, place, row] / self.ambient))
        scale = max((last - first) / (2 * ndtri(0.9)), 1e-12)
        curve: np.ndarray = ndtr((np.arcsin(np.sqrt(dims / self.ambient)) - centre) / scale)
        return curve

    def _plot_axis(self, ax: Axes) -> None:
        from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

        for place, family in enumerate(self.families):
            look = _look(place)
            low, middle, high = self.scores["test"][:, place]
            known = np.isfinite(middle)
            ax.fill_between(self.dims[known], low[known], high[known], color=look["color"], alpha=0.18, linewidth=0)
            ax.plot(self.dims[known], middle[known], label=family, **look)
        for place, name in enumerate(self.ladders):
            mine = self.tickets["name"] == name
            ax.plot(self.tickets["dim"][mine], self.tickets[f"test_{self.measure}"][mine], label=name, **_ticket_look(place))  # fmt: skip
        low, middle, high = self.whole["test"]
        if np.isfinite(middle):
            ax.axhspan(low, high, color="#8a8a8a", alpha=0.25, linewidth=0)
            ax.axhline(middle, color="#000000", linestyle="-", linewidth=0.8, label="whole space")
            if self.measure == "accuracy":
                ax.axhline(SHARES[0] * middle, color="#8a8a8a", linestyle=":", linewidth=1, label="90% of it")
        if self.measure == "loss" and np.nanmax(self.scores["test"][1], initial=0.0) > 0:
            ax.set_yscale("log")
        self._mark_dims(ax, "x", tickets=True)
        ax.set_xlabel("degrees of freedom d")
        ax.set_ylabel(f"test {self.measure} (median, quartiles)")
        top = ax.secondary_xaxis("top", functions=(self._ratio, self._ratio))
        top.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        top.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
        top.xaxis.set_minor_locator(NullLocator())
        top.set_xlabel("compression D/d", fontsize=8, labelpad=2)
        top.tick_params(labelsize=7)
        heading(ax, f"Final test {self.measure} over d of D = {self.ambient:,}", raised=28)

    def _ratio(self, dims: Any) -> Any:
        """D/d, and back."""
        return self.ambient / np.maximum(dims, 1e-9)

    def _plot_map(self, ax: Axes, place: int) -> None:
        from matplotlib.patches import Patch, Rectangle
        from matplotlib.patheffects import withStroke

        from landscape.analysis.styles import GREY, SEQUENTIAL, VERMILION

        found = self.phase()
        heights = _heights(self.criterion, found.levels)
        across, upwards = 2 ** borders(np.log2(self.dims)), borders(heights)
        ax.set_facecolor("#dddddd")
        ax.patch.set(hatch="////", edgecolor=GREY, linewidth=0)
        shares = np.ma.masked_invalid(found.probabilities[place])
        image = ax.pcolormesh(across, upwards, shares, vmin=0, vmax=1, cmap=SEQUENTIAL, rasterized=True)
        handles: list[Any] = []
        for k in np.flatnonzero(self.failed[place]):
            corner, size = (across[k], upwards[0]), (across[k + 1] - across[k], upwards[-1] - upwards[0])
            ax.add_patch(
                Rectangle(corner, *size, fill=False, hatch="\\\\\\", edgecolor="white", linewidth=0, alpha=0.7)
            )
        if self.failed[place].any():
            handles.append(Patch(facecolor=GREY, hatch="\\\\\\", edgecolor="white", label="a run met NaN"))
        edge = [withStroke(linewidth=3, foreground="white")]
        stars = np.where(found.threshold_bounds[place] == 0, found.thresholds[place], np.nan)
        # a level is a row: the line runs along its borders
        (line,) = ax.plot(
            np.repeat(stars, 2), np.repeat(upwards, 2)[1:-1], color="black", path_effects=edge, label="d*"
        )
        middles = np.where(found.quantile_bounds[1, place] == 0, found.quantiles[1, place], np.nan)
        look: dict[str, Any] = {"color": VERMILION, "linestyle": "--", "linewidth": 1.4, "path_effects": edge}
        (dashed,) = ax.plot(middles, heights, label="d50", **look)
        if np.isnan(found.probabilities[place]).any():
            handles.append(Patch(facecolor="#dddddd", hatch="////", edgecolor=GREY, label="not tried"))
        self._mark_dims(ax, "x")
        ax.set_xlim(across[0], across[-1])
        # rows that all dimensions hit, or none, say nothing more than the next one
        turning = np.flatnonzero((found.hits[place] < found.trials[place]).any(1) & (found.hits[place] > 0).any(1))
        first, last = (turning[0], turning[-1]) if len(turning) else (0, len(heights) - 1)
        first, last = max(first - 1, 0), min(last + 2, len(heights))
        self._mark_levels(ax, "y", found.levels[first:last])
        ax.set_ylim(upwards[first], upwards[last])
        ax.set_xlabel("subspace dimension d")
        bar = ax.figure.colorbar(image, ax=ax, pad=0.02)
        bar.set_label("success probability P")
        heading(ax, f"Phase map: {self.families[place]}", [line, dashed, *handles])

    def _plot_burn_in(self, ax: Axes) -> None:
        steps = list(self.burn_ins)
        self._plot_against(ax, np.array(steps, dtype=float))
        positive = [t for t in steps if t]
        ax.set_xscale("symlog", linthresh=positive[0], linscale=0.5)
        ax.set_xticks(steps, [f"{t:,}" for t in steps])
        ax.minorticks_off()
        ax.set_xlabel("steps of burn-in in the whole space")
        heading(ax, f"d50 (bars) and d* (hollow), by {self.criterion}")

    def _plot_distance(self, ax: Axes) -> None:
        self._plot_against(ax, self.distances[list(self.burn_ins.values())])
        ax.set_xlabel("distance R to the end of full training")
        heading(ax, f"d50 (bars) and d* (hollow), by {self.criterion}")

    def _compared(self) -> np.ndarray:
        """Levels at which the d50 of two burn-ins is known: the marked ones, or else some."""
        found = self.phase()
        places = list(self.burn_ins.values())
        known = (found.quantile_bounds[1, places] == 0) & np.isfinite(found.quantiles[1, places])
        levels = found.levels[known.sum(0) > 1]
        marked = levels[np.isin(levels, self.marks[self.criterion])]
        return marked if len(marked) or not len(levels) else _some(levels, self.criterion, MARKED)

    def _plot_against(self, ax: Axes, x: np.ndarray) -> None:
        """d50 with its interval, and d*, of the burn-ins at x, a line a level."""
        found = self.phase()
        places = list(self.burn_ins.values())
        for number, level in enumerate(self._compared()):
            row = found.row(level)
            look = _look(number)
            settled = found.quantile_bounds[1, places, row] == 0
            middle = np.where(settled, found.quantiles[1, places, row], np.nan)
            low = middle - np.maximum(found.lows[1, places, row], self.dims[0])
            high = np.minimum(found.highs[1, places, row], self.dims[-1]) - middle
            reach = np.maximum(np.nan_to_num(np.stack([low, high])), 0)
            ax.errorbar(x, middle, reach, elinewidth=0.8, capsize=2, label=f"{level:.4g}", **look)
            stars = np.where(found.threshold_bounds[places, row] == 0, found.thresholds[places, row], np.nan)
            ax.plot(x, stars, linestyle="none", marker=look["marker"], markersize=7, markerfacecolor="none", color=look["color"])  # fmt: skip
        self._mark_dims(ax, "y")
        ax.set_ylabel("d")

    def figure(self) -> Figure:
        """See Result."""
        import plotly.graph_objects as go

        from landscape.analysis.styles import interactive

        figure = go.Figure()
        dashes = {"-": "solid", "--": "dash", "-.": "dashdot", ":": "dot"}
        found = None if math.isnan(self.level) else self.phase()
        for place, family in enumerate(self.families):
            look = _look(place)
            line = {"color": look["color"], "dash": dashes[look["linestyle"]]}
            if found is None:
                x, y = self.dims, self.scores["test"][1, place]
                text = [f"{family}<br>d = {d:,}, D/d = {self.ambient / d:.3g}<br>{self.measure} {score:.4g}" for d, score in zip(x, y, strict=True)]  # fmt: skip
            else:
                x = found.levels
                y = np.where(found.threshold_bounds[place] == 0, found.thresholds[place], np.nan)
                text = [
                    f"{family}<br>{_named(self.criterion, level)}<br>d* = {_bounded(found.thresholds[place, row], found.threshold_bounds[place, row])}"
                    + "".join(
                        f"<br>{name} = {_estimate(found, q, place, row)}"
                        for q, name in enumerate(("d10", "d50", "d90"))
                    )
                    for row, level in enumerate(found.levels)
                ]
            figure.add_scatter(x=x, y=y, text=text, hoverinfo="text", mode="lines+markers", line=line, name=family)
        for place, name in enumerate(self.ladders):
            look = _ticket_look(place)
            mine = self.tickets["name"] == name
            x, y = self.tickets["dim"][mine], self.tickets[f"test_{self.measure}"][mine]
            if found is not None:
                fewest, bounds = self.ticket(name, CRITERIA[self.criterion], found.levels)
                x, y = found.levels, np.where(bounds == 0, fewest, np.nan)
            figure.add_scatter(x=x, y=y, mode="lines+markers", line={"color": look["color"], "dash": dashes[look["linestyle"]]}, marker={"symbol": "star"}, name=name)  # fmt: skip
        if found is None:
            figure = interactive(figure, x="degrees of freedom d", y=f"final test {self.measure}")
            figure.update_xaxes(type="log")
            return figure
        figure = interactive(figure, x=self.criterion, y="threshold dimension d*")
        figure.update_yaxes(type="log")
        if self.criterion == "train loss":
            figure.update_xaxes(type="log", autorange="reversed")
        return figure

    def _mark_dims(self, ax: Axes, which: str, tickets: bool = False) -> None:
        """A logarithmic axis of dimensions, of tickets too where asked for, with ticks at powers of two."""
        from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

        axis = ax.xaxis if which == "x" else ax.yaxis
        (ax.set_xscale if which == "x" else ax.set_yscale)("log", base=2)
        dims = np.concatenate([self.dims, self.tickets["dim"]]) if tickets and self.tickets else self.dims
        low, high = float(dims.min()), float(dims.max())
        decades = high > 2**9 * low  # more than nine doublings: every fourth
        powers = 4.0 if decades else 2.0
        ticks = [t for t in powers ** np.arange(0, 32) if low / 1.01 <= t <= high * 1.01] or [low]
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axis.set_minor_locator(NullLocator())
        limits = (low / 1.25, high * 1.25)
        (ax.set_xlim if which == "x" else ax.set_ylim)(*limits)

    def _mark_levels(self, ax: Axes, which: str, levels: np.ndarray) -> None:
        """An axis of levels in view, harder ones to the right or up, with ticks at round ones where there are enough."""
        from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

        axis = ax.xaxis if which == "x" else ax.yaxis
        rounds = levels[[_round(self.criterion, level) for level in levels]]
        shown = rounds if len(rounds) > 2 else levels
        heights = _heights(self.criterion, shown)
        room = max(float(np.ptp(heights)), 1e-9) / (8 if which == "x" else 12)
        kept: list[int] = []
        for place, height in enumerate(heights):  # those too close to be read are left out
            if not kept or height - heights[kept[-1]] > room:
                kept.append(place)
        axis.set_major_locator(FixedLocator(heights[kept].tolist()))
        axis.set_major_formatter(FixedFormatter([f"{shown[place]:g}" for place in kept]))
        axis.set_minor_locator(NullLocator())
        (ax.set_xlabel if which == "x" else ax.set_ylabel)(f"{self.criterion} (harder →)")


def _base(family: str) -> str:
    return family.partition("@")[0]


def _steps(family: str) -> int:
    return int(family.partition("@")[2] or 0)


def _nested(family: str, bases: bool) -> bool:
    """Whether the subspaces of one seed are nested."""
    return _base(family) in PREFIXES or (_base(family) in DRAWN and bases)


def _sorted(criterion: str, levels: Sequence[float] | np.ndarray) -> np.ndarray:
    """From the easiest to the hardest."""
    found = np.unique(np.asarray(levels, dtype=float))
    return found[::-1] if criterion == "train loss" else found


def _heights(criterion: str, levels: np.ndarray) -> np.ndarray:
    """Where levels are drawn, harder ones higher: evenly in the logarithm of the loss, or of the error 1 - accuracy (0.1% at the least)."""
    found: np.ndarray = -np.log10(levels if criterion == "train loss" else np.maximum(1 - levels, 1e-3))
    return found


def _round(criterion: str, level: float) -> bool:
    """Whether a level is a round number: 1, 2 or 5 times a power of ten, or one of the accuracies."""
    return bool(np.isclose(level, ACCURACIES).any()) if criterion != "train loss" else f"{level:.2e}"[:4] in ("1.00", "2.00", "5.00")  # fmt: skip


def _named(criterion: str, level: float) -> str:
    return f"{criterion} {level:.4g}"


def _bounded(number: float, bound: float, signs: Mapping[int, str] = SIGNS) -> str:
    """A dimension, or a ratio D/d, with the sign of the dimension's bound."""
    if not np.isfinite(number):
        return "unknown"
    exact = number >= 100 or number == round(number)
    return signs[int(bound)] + (f"{number:,.0f}" if exact else f"{number:.3g}")


def _estimate(found: Phase, quantile: int, place: int, row: int) -> str:
    """d10, d50 or d90 with its interval."""
    where = quantile, place, row
    number, bound = found.quantiles[where], found.quantile_bounds[where]
    low, high = found.lows[where], found.highs[where]
    if np.isnan(number):
        return "unknown"
    ends = f"{low:.3g}" if low > 0 else "0", f"{high:.3g}" if np.isfinite(high) else "∞"
    return f"{_bounded(float(f'{number:.3g}'), bound)} [{', '.join(ends)}]"


def _span(seeds: np.ndarray) -> str:
    low, high = int(seeds.min()), int(seeds.max())
    return f"{low if low == high else f'{low} to {high}'} {'seed' if high == 1 else 'seeds'}"


def _look(place: int) -> dict[str, Any]:
    """Colour, dash and marker of the place-th line: colour is never the only cue."""
    from landscape.analysis.styles import CYCLE

    return {
        "color": CYCLE[place % len(CYCLE)],
        "linestyle": ("-", "--", "-.", ":")[place % 4],
        "marker": "os^DvPX"[place % 7],
        "markersize": 4,
    }


def _ticket_look(place: int) -> dict[str, Any]:
    """Of the place-th iterative pruning: hollow stars in black and grey, which no family has."""
    from landscape.analysis.styles import BLACK, GREY

    return {"color": (BLACK, GREY)[place % 2], "linestyle": ("-", "--", "-.", ":")[place % 4], "linewidth": 1.0, "marker": "*", "markersize": 7, "markerfacecolor": "white"}  # fmt: skip


def _sparse(values: np.ndarray) -> list[int]:
    """Every fifth of the known places: markers that are told apart."""
    return [int(place) for place in np.flatnonzero(np.isfinite(values))[::5]]


# -- the measurement --------------------------------------------------------------------------------------------------


def threshold(
    cells: Mapping[str, Any],
    *,
    ambient: int,
    nested: bool = True,
    delta: float = 0.1,
    criterion: str | None = None,
    losses: Sequence[float] = (),
    accuracies: Sequence[float] = (),
    confidence: float = 0.95,
    tickets: Mapping[str, Any] | None = None,
    question: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Threshold:
    """Read P, d* and the transitions off a grid of cells, for all families, criteria and levels at once.

    cells: columns of equal length, an entry a cell: `family`, `dim`, `seed`; `train_loss`, `train_accuracy`, `test_accuracy`, the best met; `final_train_loss`, `final_train_accuracy`, `final_test_loss`,
        `final_test_accuracy`; `distance`, from the start to the end of full training; `failed`. Others are kept. Numbers may be NaN. Cells of the family "full" are trainings of the whole space.
    ambient: D.
    nested: whether the random subspaces of one seed are nested, as all bases but the sparse one are.
    delta: d* asks for P >= 1 - delta; 0.1 as in Larsen et al. 2022.
    criterion: of the summary and the maps; None: the train loss, or the test accuracy where only accuracies are asked for.
    losses, accuracies: levels of interest, beside those chosen from the data: they stand in the table, the first of the criterion in the summary.
    confidence: of all intervals.
    tickets: columns `TICKETS` of equal length, an entry a level of iterative pruning: its pruning's name, its number, the parameters that move, and what its solution reaches (NaN: unknown).

    Raises UsageError where there is no cell of a subspace, or numbers are out of range.
    """
    require_levels(losses, accuracies, delta, confidence)
    beside = _beside(tickets, ambient) if tickets else {}
    if criterion is None:
        criterion = "test accuracy" if accuracies and not losses else "train loss"
    if criterion not in CRITERIA:
        raise unknown("criterion", criterion, CRITERIA)
    grid = _Grid(cells, ambient, nested)
    phases, marks = {}, {}
    for name in CRITERIA:
        own = losses if name == "train loss" else accuracies
        levels = grid.levels(name, own)
        if len(levels):
            phases[name] = grid.phase(name, levels, delta, confidence)
            marks[name] = _sorted(name, own) if len(own) else _telling(phases[name], MARKED if name == criterion else 1)
    if phases and criterion not in phases:
        raise UsageError(f"no cell has a {criterion}. Allowed: {', '.join(phases)}.")
    own = losses if criterion == "train loss" else accuracies
    level = math.nan
    if phases:
        level = float(own[0]) if own else _hardest(phases[criterion], marks[criterion])
    measure = "accuracy" if np.isfinite(grid.columns["final_test_accuracy"]).any() else "loss"
    scores = {name: grid.quartiles(f"final_{name}_{measure}") for name in ("train", "test")}
    whole = {name: grid.whole(f"final_{name}_{measure}") for name in ("train", "test")}
    intrinsic, bounds = _intrinsic(grid, scores["test"][1], float(whole["test"][1]), measure)
    return Threshold(
        question=dict(question or {}),
        provenance=dict(provenance or {}),
        warnings=(*_warnings(grid, phases, delta, confidence), *_inside(grid, marks.get("train loss", ()), delta)),
        ambient=ambient,
        delta=delta,
        confidence=confidence,
        nested=nested,
        families=grid.families,
        dims=grid.dims,
        seeds=grid.seeds,
        tried=grid.tried,
        failed=grid.failed,
        distances=grid.distances(),
        criterion=criterion,
        level=level,
        marks=marks,
        phases={name: dataclasses.asdict(found) for name, found in phases.items()},
        measure=measure,
        scores=scores,
        whole=whole,
        intrinsic=intrinsic,
        intrinsic_bounds=bounds,
        cells=grid.columns,
        tickets=beside,
    )


def require_levels(losses: Sequence[float], accuracies: Sequence[float], delta: float, confidence: float) -> None:
    """Raise UsageError where a question to `threshold` is out of range: to be asked before hours of training."""
    for name, number in (("delta", delta), ("confidence", confidence)):
        if not 0 < number < 1:
            raise UsageError(f"{name} lies between 0 and 1; got {number}.")
    for level in losses:
        if not 0 < level < math.inf:
            raise UsageError(f"a level of the loss is positive and finite; got {level}. Give one such as 0.1.")
    for level in accuracies:
        if not 0 < level <= 1:
            raise UsageError(f"a level of the accuracy lies above 0, up to 1; got {level}. Give one such as 0.9.")


def _beside(tickets: Mapping[str, Any], ambient: int) -> dict[str, np.ndarray]:
    """The columns of tickets. Raises UsageError where one is missing, or a dimension is out of range."""
    for name in TICKETS:
        if name not in tickets:
            raise UsageError(f"the tickets lack the column {name!r}. Needed: {', '.join(TICKETS)}.")
    found = {name: np.asarray(tickets[name]) for name in TICKETS}
    sizes = {column.shape for column in found.values()}
    if len(sizes) != 1 or len(next(iter(sizes))) != 1 or not len(found["dim"]):
        raise UsageError(f"the columns of tickets have one entry a level each; got shapes {sorted(sizes)}.")
    if found["dim"].min() < 1 or found["dim"].max() > ambient:
        raise UsageError(
            f"of {ambient:,} parameters 1 to {ambient:,} move; got tickets with {found['dim'].min():,} to {found['dim'].max():,}. Give those of the same network."
        )
    return found


class _Grid:
    """The cells, by family, seed and dimension."""

    def __init__(self, cells: Mapping[str, Any], ambient: int, nested: bool) -> None:
        self.columns = {name: np.asarray(column) for name, column in cells.items()}
        for name in COLUMNS:
            if name not in self.columns:
                raise UsageError(f"the cells lack the column {name!r}. Needed: {', '.join(COLUMNS)}.")
        sizes = {column.shape for column in self.columns.values()}
        if len(sizes) != 1 or len(next(iter(sizes))) != 1:
            raise UsageError(f"the columns of cells have one entry a cell each; got shapes {sorted(sizes)}.")
        family, dim = self.columns["family"].astype(str), self.columns["dim"]
        self._is_full = family == FULL
        self.families = list(dict.fromkeys(family[~self._is_full].tolist()))
        if not self.families:
            raise UsageError("there is no cell of a subspace: train some first (landscape threshold TASK --family random --dims 8,16,32).")  # fmt: skip
        inside = dim[~self._is_full]
        if inside.min() < 1 or inside.max() > ambient:
            raise UsageError(f"subspaces have 1 to {ambient:,} dimensions; got {inside.min()} to {inside.max()}.")
        self.ambient, self._bases = ambient, nested
        self.dims, place = np.unique(inside, return_inverse=True)
        self._values: dict[str, np.ndarray] = {}
        names, seeds = np.array(self.families), np.unique(self.columns["seed"][~self._is_full])
        # (F, n, K): the cell, or -1
        self._cell = np.full((len(names), len(seeds), len(self.dims)), -1)
        for cell, k in zip(np.flatnonzero(~self._is_full), place, strict=True):
            where = self.families.index(family[cell]), int(np.searchsorted(seeds, self.columns["seed"][cell])), k
            if self._cell[where] >= 0:
                raise UsageError(f"the cell {family[cell]}, d = {self.dims[k]}, seed {self.columns['seed'][cell]} is there twice.")  # fmt: skip
            self._cell[where] = cell
        self._there = self._cell >= 0
        self.tried = self._there.sum(1)
        self.seeds = self._there.any(2).sum(1)
        self.failed = (self._there & self.columns["failed"].astype(bool)[self._cell]).sum(1)

    def values(self, column: str) -> np.ndarray:
        """A column by family, seed and dimension (F, n, K); NaN where there is no cell."""
        return np.where(self._there, self.columns[column].astype(float)[self._cell], np.nan)

    def whole(self, column: str) -> np.ndarray:
        """Quartiles (3,) over the trainings of the whole space; NaN where there is none."""
        return _quartiles(self.columns[column].astype(float)[self._is_full], 0)

    def quartiles(self, column: str) -> np.ndarray:
        """Quartiles (3, F, K) over the seeds that ended with a number."""
        lost = self._there & self.columns["failed"].astype(bool)[self._cell]
        return _quartiles(np.where(lost, np.nan, self.values(column)), 1)

    def distances(self) -> np.ndarray:
        """The mean distance R (F,)."""
        found = self.values("distance").reshape(len(self.families), -1)
        counts = np.isfinite(found).sum(1)
        return np.where(counts > 0, np.nansum(found, 1) / np.maximum(counts, 1), np.nan)

    def levels(self, criterion: str, own: Sequence[float]) -> np.ndarray:
        """The levels (L,) of a criterion, from the easiest to the hardest; none where no cell has a number for it."""
        found = self.values(CRITERIA[criterion])
        found = found[np.isfinite(found)]
        if not len(found):
            return np.empty(0)
        if criterion != "train loss":
            return _sorted(criterion, [*ACCURACIES, *own])
        found = found[found > 0]
        if not len(found):
            return _sorted(criterion, own)
        low, high = float(found.min()), float(found.max())
        even = [np.geomspace(low, high, LOSSES), np.quantile(found, np.linspace(0, 1, LOSSES))]
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        steps = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
        chosen = [*even[0], *even[1], *(level for level in steps if low <= level <= high)]
        return _sorted(criterion, [*(float(f"{level:.3g}") for level in chosen), *own])

    def phase(self, criterion: str, levels: np.ndarray, delta: float, confidence: float) -> Phase:
        """Read P, d* and transitions off the cells at each level."""
        families, k = range(len(self.families)), len(self.dims)
        reached = self.values(CRITERIA[criterion])[:, None]
        goal = levels[:, None, None]
        hit = reached <= goal if criterion == "train loss" else reached >= goal
        hits = np.where(self._there[:, None], hit.astype(float), np.nan)  # (F, L, n, K)
        counts, trials = np.zeros((2, len(families), len(levels), k), dtype=int)
        violations = np.zeros((len(families), k), dtype=int)
        thresholds, bounds = np.empty((2, len(families), len(levels)))
        transitions: list[Transition] = []
        for f in families:
            mine = np.flatnonzero(self.tried[f])
            if _nested(self.families[f], self._bases):
                lows, highs, missed = proportions.brackets(self.dims, hits[f])
                counts[f] = (highs[..., None] <= self.dims).sum(1)
                trials[f] = counts[f] + (lows[..., None] >= self.dims).sum(1)
                violations[f] = missed.any(0).sum(0)
                transitions.append(proportions.censored(self.dims[mine], lows, highs, self.ambient, confidence))
            else:
                counts[f], trials[f] = np.nansum(hits[f], 1), np.isfinite(hits[f]).sum(1)
                transitions.append(proportions.probit(self.dims[mine], counts[f][:, mine], trials[f][:, mine], self.ambient, confidence))  # fmt: skip
            thresholds[f], bounds[f] = _rule(self.dims[mine], counts[f][:, mine], trials[f][:, mine], int(self.seeds[f]), delta)  # fmt: skip
            if _nested(self.families[f], self._bases):
                # only hits are known above and only misses below what was tried, so a share of some of the seeds would be of the lucky ones
                unknown = trials[f] < self.seeds[f]
                counts[f][unknown] = trials[f][unknown] = 0
        return Phase(
            criterion=criterion,
            levels=levels,
            hits=counts,
            trials=trials,
            thresholds=thresholds,
            threshold_bounds=bounds.astype(int),
            quantiles=np.stack([found.dims for found in transitions], 1),
            quantile_bounds=np.stack([found.bounds for found in transitions], 1),
            lows=np.stack([found.lows for found in transitions], 1),
            highs=np.stack([found.highs for found in transitions], 1),
            violations=violations,
        )


def _quartiles(values: np.ndarray, axis: int) -> np.ndarray:
    """Of the finite numbers along an axis, (3, ...); NaN where there is none."""
    moved = np.moveaxis(values, axis, -1)
    found = np.full((3, *moved.shape[:-1]), np.nan)
    for where in np.ndindex(moved.shape[:-1]):
        numbers = moved[where][np.isfinite(moved[where])]
        if len(numbers):
            found[(slice(None), *where)] = np.quantile(numbers, (0.25, 0.5, 0.75))
    return found


def _rule(dims: np.ndarray, hits: np.ndarray, trials: np.ndarray, seeds: int, delta: float) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """d* (L,) by the paper's rule and its bounds, from hits and trials (L, K) of `seeds` seeds: what is not known may be a hit or a miss."""
    needed = (1 - delta) * seeds - 1e-9  # 9 of 10 are 90%
    sure = hits >= needed
    possible = hits + seeds - trials >= needed
    lasting = np.flip(np.logical_and.accumulate(np.flip(possible, 1), 1), 1)  # no larger one is known to fail
    good = sure & lasting
    found = good.argmax(1)
    rows = np.arange(len(hits))
    below = np.maximum(found - 1, 0)
    open_below = (found == 0) | possible[rows, below]
    fails = ~possible
    last = len(dims) - 1 - np.flip(fails, 1).argmax(1)  # the largest that is known to fail
    thresholds = np.where(good.any(1), dims[found], np.where(fails.any(1), dims[last], np.nan))
    bounds = np.where(good.any(1), -open_below.astype(int), fails.any(1).astype(int))
    return thresholds, bounds


def _telling(found: Phase, count: int) -> np.ndarray:
    """A few levels at which as many families as possible have a d*."""
    settled = ((found.threshold_bounds == 0) & np.isfinite(found.thresholds)).sum(0)
    return _some(found.levels[settled == settled.max()], found.criterion, count)


def _some(levels: np.ndarray, criterion: str, count: int) -> np.ndarray:
    """So many of the levels, spread over them, at most: round ones where there are, and not at the ends."""
    rounds = levels[[_round(criterion, level) for level in levels]]
    levels = rounds if len(rounds) else levels
    picked = np.unique(np.linspace(0, len(levels) - 1, count + 2)[1:-1].round().astype(int))
    return np.asarray(levels[picked])


def _hardest(found: Phase, marks: np.ndarray) -> float:
    """Of the marked levels that which most families have a d* at, the hardest of several."""
    settled = (found.threshold_bounds == 0) & np.isfinite(found.thresholds)
    counts = [int(settled[:, found.row(level)].sum()) for level in marks]
    return float(max(zip(counts, range(len(marks)), marks, strict=True))[2])


def _intrinsic(grid: _Grid, medians: np.ndarray, whole: float, measure: str) -> tuple[np.ndarray, np.ndarray]:
    """d_int90 and d_int100 (2, F) and their bounds, from the median scores (F, K)."""
    dims, bounds = np.full((2, len(grid.families)), np.nan), np.zeros((2, len(grid.families)), dtype=int)
    if measure == "loss" or math.isnan(whole):
        return dims, bounds
    for s, share in enumerate(SHARES):
        for f, row in enumerate(medians):
            known = np.flatnonzero(np.isfinite(row))
            good = known[row[known] >= share * whole]
            if len(good):
                dims[s, f], bounds[s, f] = grid.dims[good[0]], -int(good[0] == known[0])
            elif len(known):
                dims[s, f], bounds[s, f] = grid.dims[known[-1]], 1
    return dims, bounds


def _inside(grid: _Grid, levels: Sequence[float] | np.ndarray, delta: float) -> list[str]:
    """A sentence for each level of the loss that a family's starts have reached already: there d* is 0, and nothing is learnt of dimensions."""
    if "start_train_loss" not in grid.columns:
        return []
    found = grid.values("start_train_loss")
    notes = []
    for level in levels:
        inside = []
        for family, starts in zip(grid.families, found, strict=True):
            known = starts[np.isfinite(starts).any(1)]
            if len(known) and (np.nanmin(known, axis=1) <= level).mean() >= 1 - delta - 1e-9:
                inside.append(family)
        if inside:
            notes.append(
                f"the starts of {', '.join(inside)} have a train loss of {level:g} or less before any training in a subspace: there d* is 0."
            )
    return notes


def _warnings(grid: _Grid, phases: Mapping[str, Phase], delta: float, confidence: float) -> list[str]:
    """Each a sentence."""
    notes = []
    cells = int(grid.tried.sum())
    failed = int(grid.failed.sum())
    if failed:
        notes.append(
            f"{failed} of {cells} cells met a loss or a point that is not finite: each is judged by what it had reached before."
        )
    first = phases.get("train loss")
    missed = int(first.violations.sum()) if first is not None else 0
    if missed:
        notes.append(
            f"of {cells} cells, {missed} missed a loss that a smaller subspace of the same seed reached: the solver, not the geometry. Train longer, or with another --lr, to see how much of d* is the solver's."
        )
    seeds = int(grid.seeds.min())
    certified = float(proportions.clopper_pearson(seeds, seeds, confidence)[0])
    if certified < 1 - delta:
        needed = math.ceil(math.log((1 - confidence) / 2) / math.log(1 - delta))
        notes.append(
            f"even {seeds} hits of {seeds} seeds certify P of at least {certified:.2g} only, at {100 * confidence:g}% confidence: for 1 - delta = {1 - delta:g} take {needed} seeds, or read d50 with its interval."
        )
    return notes
