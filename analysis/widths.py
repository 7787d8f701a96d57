"""How wide the set of low loss looks from a start, and how many random dimensions it takes to hit it: estimated without training in any subspace, predicted from curvature, bounded, and measured.

Letters: D parameters, d subspace dimension, L levels of the loss (from the highest, easiest, to the lowest), E draws, S starting radii, n marks of progress, K dimensions of a bound, M levels of a curve,
k dimensions of a plane, R distance from the start w_0 to the solution w*.

    S(level)  all w with a loss of at most the level;  C = cone(S - w_0): the directions in which it is seen from w_0
    theta     least angle between a Gaussian vector g and C, a right one at most;  theta_k that between a random k-dimensional subspace and C
    width     w = E|g| E cos theta, of the part of C in the unit ball: at least that of S projected on the sphere about w_0, and equal to it but where C is small
    d_local   w^2, the local angular dimension
    d*        threshold dimension, at which random subspaces through w_0 begin to meet S

Each number errs to a known side, beside the error of its draws. An angle found is at least the true one, for a search may stop short: estimates are bounds of what they estimate, from above. What they estimate is d* of a convex C;
of another one it is less, since of many pieces some is nearer to g than each, and subspaces hit later than that.

    polar        D E sin^2 theta = E dist(g, C)^2
    width        D - w^2, which is at most that, by less than 1; w itself is bounded from below
    plane        D sin^2(phi_k + E theta_k), phi_k = arcsin sqrt(k / D): a plane has less to choose from, so this is nearer to where subspaces hit
    sharp well   d* of the quadratic with the curvature at w*, by the sharp form: a prediction
    paper's well the same quadratic by D - sum r_i^2 / (R^2 + r_i^2): of that quadratic's d* an upper bound
    measured     trainings in subspaces: a hit is one, a miss may be the solver's: an upper bound of d*

Escape bounds take the statistical dimension and the width as known, and get estimates with a side. So, at 97.5% confidence over the draws (inputs two standard errors away from the estimates):
a hit bound, from D E sin^2 theta from above, holds for a convex C, and whether a network's is one, no one knows; a miss bound, from the same number or from the width from below, proves no miss: the true numbers certify no more than it says.

Sources: Larsen, Fort, Becker, Ganguli 2022, "How many degrees of freedom do we need to train deep networks" (sections 3 and 4: width, local angular dimension, well); Gordon 1988; Amelunxen, Lotz, McCoy, Tropp 2014, "Living on the edge"
(statistical dimension; d* as that of the polar cone); McCoy, Tropp 2014, "From Steiner formulas for cones to concentration of intrinsic volumes".
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy.special import ndtr

from landscape.analysis.styles import heading
from landscape.analysis.thresholds import Phase, Threshold, threshold
from landscape.errors import LandscapeError, UsageError, unknown
from landscape.escapes import certificates
from landscape.functionals import standard_error
from landscape.objectives import Objective, dtype_name
from landscape.quadratics import sketch
from landscape.results import Result
from landscape.sublevels import Sight, nearest, require_levels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from plotly.graph_objects import Figure
    from torch import Tensor


SIDES = {
    "plane": "estimate; upper bound if C is convex",
    "polar": "upper bound if C is convex",
    "width": "upper bound if C is convex; of a lower bound of the width",
    "sharp well": "prediction",
    "paper's well": "upper bound in the well",
}
SEARCHED, PREDICTED = ("plane", "polar", "width"), ("sharp well", "paper's well")
STANDING = {
    "hit": "holds if cone(S - w_0) is convex, at 97.5% confidence over the draws: taken from an upper bound of E dist(g, cone)^2",
    "miss": "no proof: taken from an upper bound of E dist(g, cone)^2, or a lower bound of the width; the true numbers certify at most this, at 97.5% confidence over the draws",
}
SURE = 1.96  # standard errors by which inputs of bounds are moved to the side on which they stand as said
CERTAIN = 0.9  # probability that a bound certifies: d* asks for as much of success (delta = 0.1, Larsen et al. 2022)
EVERY = 400  # dimensions up to which a bound is kept at each; beyond, at as many, close to each other near 1 and near D
CURVE = 60  # levels of the well's curves over all levels and the sweep's: a line on the map looks smooth
LINEAR = 0.5  # share of the well's height from which on a gradient at its bottom is told
LAST = 2 / 3  # of the work on a level: what still falls from there on has not converged

Matrix = Literal["hessian", "gauss-newton", "none"]


@dataclass(frozen=True, kw_only=True)
class Width(Result):
    """Width, local angular dimension and threshold dimension of sublevel sets seen from one start, by each estimator, with bounds at every d."""

    ambient: int  # D
    family: str  # the subspaces meant: random (through the initialisation) or burn-in@STEP
    levels: np.ndarray  # (L,) descending
    draws: int  # E
    start_loss: float
    solution_loss: float  # the least of the well; NaN without a solution
    distance: float  # R; NaN without a solution
    inside: np.ndarray  # (L,) bool: the start is in the set, so C is the whole space
    met: np.ndarray  # (L,) draws for which a point of the set was met
    crossed: np.ndarray  # (L,) planes for which one was: only they count, being a search's failures and not the set's
    hit: np.ndarray  # (L,) of them, those that meet the set
    convex: np.ndarray  # (L,) bool: nothing that was found speaks against a convex cone; False voids the bounds of hits
    width: np.ndarray  # (2, L) estimate and standard error
    dims: dict[str, np.ndarray]  # d* (2, L) by estimator, value and standard error; NaN where there is none
    radii: np.ndarray  # (S,) distances from which the search started
    won: np.ndarray  # (S, L) draws whose largest cosine was found from there
    plane_dims: np.ndarray  # (L,) k; 0 where no plane was asked about
    marks: np.ndarray  # (n,) gradients a draw had cost when
    history: np.ndarray  # (n, L) the polar estimate was this; NaN before every draw had met the set
    fall: np.ndarray  # (L,) how much of it the last third of the work on the level took away
    lowest: float  # loss met
    failed: int  # searches whose starting radius had a loss that is not finite
    evaluations: int  # of the loss with its gradient, at one point each
    seconds: dict[str, float]  # of the search and of the well
    well: dict[
        str, Any
    ]  # matrix, negative (policy), share (of negative curvature), products, start (its loss there); empty without one
    curve_levels: np.ndarray  # (M,) descending
    curves: dict[str, np.ndarray]  # (M,) d* of the well by its two forms
    bound_dims: np.ndarray  # (K,)
    bounds: list[
        dict[str, Any]
    ]  # theorem, proves, valid, standing, probability (L, K), reach (L,) at CERTAIN; NaN where it certifies nothing
    sweep: dict[
        str, Any
    ]  # cells of the family, and how they are read (nested, delta, confidence), run; empty without one

    # -- numbers ------------------------------------------------------------------------------------------------------

    @property
    def local(self) -> np.ndarray:
        """The local angular dimension w^2 (2, L), and its standard error."""
        value, error = self.width
        return np.stack([value**2, 2 * value * error])

    @cached_property
    def measured(self) -> Threshold | None:
        """The sweep's trainings in subspaces of this family, read at these levels among others."""
        if not self.sweep:
            return None
        read = {name: self.sweep[name] for name in ("nested", "delta", "confidence")}
        return threshold(self.sweep["cells"], ambient=self.ambient, losses=self.levels.tolist(), **read)

    @cached_property
    def phase(self) -> Phase | None:
        """What the sweep measured at these levels."""
        return None if self.measured is None else self.measured.at("train loss", self.levels.tolist())

    def reach(self, proves: str, row: int) -> tuple[str, float] | None:
        """The theorem that certifies most of a side at a level, and up to (miss) or from (hit) which dimension; None where none does."""
        found = [(bound["theorem"], float(bound["reach"][row])) for bound in self.bounds if bound["proves"] == proves]
        found = [one for one in found if not math.isnan(one[1])]
        if not found:
            return None
        return (max if proves == "miss" else min)(found, key=lambda one: one[1])

    # -- words --------------------------------------------------------------------------------------------------------

    def summary(self) -> str:
        """See Result."""
        task = self.provenance.get("task")
        levels = ", ".join(f"{level:g}" for level in self.levels)
        rows = range(len(self.levels))
        parts = [
            f"{name} {', '.join(self._spoken(name, row) for row in rows)}" for name in SEARCHED[:2] if name in self.dims
        ]
        if self.well:
            parts.append(f"sharp well {', '.join(self._dim('sharp well', row, plain=True) for row in rows)}")
        if self.measured is not None:
            parts.append(f"measured d50 {', '.join(self._measured(row)[1].split(' [')[0] for row in rows)}")
        return f"{f'{task}: ' if task else ''}d* of train loss {levels} from {self.place}: {'; '.join(parts)}; D = {self.ambient:,}, {self.draws} draws."

    def _spoken(self, estimator: str, row: int) -> str:
        """d* with its error."""
        error = self.dims[estimator][1, row]
        return f"{self._dim(estimator, row, plain=True)}{f' ± {_short(error)}' if error > 0 else ''}"

    @property
    def place(self) -> str:
        """The start, in words."""
        steps = self.family.partition("@")[2]
        return f"step {int(steps):,}" if steps else "the initialisation"

    def caption(self) -> str:
        """See Result."""
        text = (
            f"How many of {self.ambient:,} dimensions a random subspace through {self.place} needs to meet the set of so low a loss, without training in one: {self.draws} random rays and planes, for each the point of the set nearest in angle, "
            f"searched from {len(self.radii)} distances with {self.evaluations:,} gradients. Errors: standard errors over the draws, widened by Student's t, so that 1.96 of them, the bars, are 95% however few the draws. Triangles point down, as a search that stops short leaves an estimate too high. "
            "Polar, D E sin² θ, and D - w², w the width (itself bounded from below), estimate d* of a set that is seen as a convex cone; of others subspaces hit later, to which the planes' estimate is nearer. "
        )
        if self.well:
            share = self.well["share"]
            text += (
                f"Well: the quadratic with the {self.well['matrix']} matrix at the end of the run, at distance R = {self.distance:.4g} and least loss {self.solution_loss:.3g}; {100 * share:.2g}% of the curvature seen is negative (policy: {self.well['negative']}). "
                f"Its loss at the start is {self.well['start']:.4g}, the network's {self.start_loss:.4g}: so far does the well hold (the gradient at its bottom, left out, has norm {self.well['slope']:.2g}). It is a prediction, and no bound. "
            )
        found = self.measured
        if found is not None:
            text += f"Measured: trainings in {self.family} subspaces, {int(found.seeds[0])} seeds, each with an initialisation of its own, so that their starts are other points than this one; a hit is a fact, a miss may be the solver's. Bars there: d10 to d90; of P: Wilson's. "
        if self.provenance.get("norm") == "batch":
            text += "BatchNorm by the statistics of each chunk of rows: the set is of one function of the weights. "
        text += (
            f"The normal curves are those of balls with the same d*, of width √(2 d* (D - d*) / D). Escape bounds have these estimates as inputs, two standard errors to the careful side. Hit: {STANDING['hit']}. Miss: {STANDING['miss']}. "
            "Gordon's bound takes the width, for any closed set; it is vacuous unless D - d exceeds w² by far."
        )
        return text

    def table(self) -> list[tuple[str, ...]]:
        """See Result."""
        rows: list[tuple[str, ...]] = [("level", "estimator", "d*", "error", "side", "width", "d_local")]
        for row, level in enumerate(self.levels):
            name = f"train loss {level:.4g}"
            for estimator, values in self.dims.items():
                error = values[1, row]
                words = self._side(estimator, row)
                width = d_local = ""
                if estimator == "width" and self.met[row]:
                    width, d_local = (
                        f"{value:.4g} ± {_short(spread)}" for value, spread in (self.width[:, row], self.local[:, row])
                    )
                rows.append(
                    (
                        name,
                        estimator,
                        self._dim(estimator, row),
                        "" if np.isnan(error) else _short(error),
                        words,
                        width,
                        d_local,
                    )
                )
            if self.measured is not None:
                for quantile, word in zip(("d10", "d50", "d90", "d*"), self._measured(row), strict=True):
                    rows.append((name, f"measured {quantile}", word, "", "measured", "", ""))
            for proves in ("miss", "hit") if self.met[row] and not self.inside[row] else ():
                best = self.reach(proves, row)
                if best is not None:
                    sign, words = ("≤", "no proof: at most this")
                    if proves == "hit":
                        sign, words = "≥", "if convex" if self.convex[row] else "void: C is not convex"
                    rows.append((name, f"{proves}, {best[0]}", f"{sign} {best[1]:,.0f}", "", words, "", ""))
        return rows

    def _dim(self, estimator: str, row: int, *, plain: bool = False) -> str:
        """d* in words."""
        value = self.dims[estimator][0, row]
        if np.isnan(value):
            if not self.met[row] and estimator in ("polar", "width"):
                return f"≤ {self.ambient:,}"
            return "unknown" if plain or estimator in SEARCHED else "none"
        if self.inside[row] and estimator in SEARCHED:
            return "0"
        words = f"{value:,.0f}" if value >= 1000 else f"{value:.4g}" if value >= 100 else f"{value:.3g}"
        bound = estimator == "paper's well" and value > 0
        if estimator == "plane" and self.hit[row]:
            bound = True
        return f"≤ {words}" if bound and not plain else words

    def _side(self, estimator: str, row: int) -> str:
        """What a number of the table is."""
        value = self.dims[estimator][0, row]
        if estimator in SEARCHED:
            if self.inside[row]:
                return "exact: the start is in the set"
            if not self.met[row]:
                return "no draw met the set"
            if estimator == "plane":
                return self._side_of_planes(row)
            return SIDES[estimator]
        if np.isnan(value):
            return "below the reached minimum"
        return "prediction: the start is in the well's set" if value == 0 else SIDES[estimator]

    def _side_of_planes(self, row: int) -> str:
        k, crossed, hit = int(self.plane_dims[row]), int(self.crossed[row]), int(self.hit[row])
        if not k:
            return "too few dimensions for planes"
        if crossed < 2:
            return f"{'one' if crossed else 'no'} plane of {k} dimensions met the set"
        if hit:
            return f"{hit} of {crossed} planes of {k} dimensions hit"
        return SIDES["plane"]

    def _measured(self, row: int) -> tuple[str, str, str, str]:
        """d10, d50, d90 with their intervals, and d*, in words."""
        phase, words = self.phase, []
        assert phase is not None
        for q in range(3):
            number, bound = phase.quantiles[q, 0, row], phase.quantile_bounds[q, 0, row]
            low, high = phase.lows[q, 0, row], phase.highs[q, 0, row]
            words.append(
                "unknown"
                if np.isnan(number)
                else f"{_SIGNS[int(bound)]}{number:.4g} [{low:.3g}, {'∞' if np.isinf(high) else f'{high:.3g}'}]"
            )
        star, bound = phase.thresholds[0, row], phase.threshold_bounds[0, row]
        words.append("unknown" if np.isnan(star) else f"{_SIGNS[int(bound)]}{star:.0f}")
        return words[0], words[1], words[2], words[3]

    # -- pictures -----------------------------------------------------------------------------------------------------

    def panels(self) -> tuple[str, ...]:
        """`threshold`, a `probability` of each level, with a sweep the `map` of what it measured, and the `convergence` of what was searched."""
        maps = ("map",) if self.measured is not None else ()
        searched = ("convergence",) if (~self.inside & (self.met > 0)).any() else ()
        return ("threshold", *(f"probability {level:g}" for level in self.levels), *maps, *searched)

    def plot(self, ax: Axes, panel: str = "") -> None:
        """See Result."""
        panel = panel or "threshold"
        if panel not in self.panels():
            raise unknown("panel", panel, self.panels())
        if panel == "threshold":
            self._plot_threshold(ax)
        elif panel == "map":
            self._plot_map(ax)
        elif panel == "convergence":
            self._plot_convergence(ax)
        else:
            self._plot_probability(ax, self.panels().index(panel) - 1)

    def _plot_threshold(self, ax: Axes) -> None:
        for name, look in _LOOKS.items():
            if name in self.curves:
                ax.plot(
                    self.curve_levels,
                    self.curves[name],
                    color=look["color"],
                    linestyle=look["linestyle"],
                    linewidth=1.2,
                )
            if name in self.dims:
                value, error = self.dims[name]
                ax.errorbar(
                    self.levels * look["shift"],
                    value,
                    np.stack(
                        [np.minimum(SURE * error, 0.99 * value), np.minimum(SURE * error, self.ambient - value)]
                    ),  # from 0, where the axis ends, to D
                    label=_NAMES[name],
                    capsize=2,
                    elinewidth=0.8,
                    **_points(look),
                )
        unmet = np.isnan(self.dims["polar"][0])
        if unmet.any():
            ax.plot(
                self.levels[unmet],
                np.full(unmet.sum(), float(self.ambient)),
                label="no draw met the set",
                **_points(_LOOKS["polar"], hollow=True),
            )
        low, middle, high = self._spread()
        if len(middle):
            reach = np.stack([middle - low, high - middle])
            ax.errorbar(
                self.levels,
                middle,
                np.maximum(np.nan_to_num(reach), 0),
                label="measured d50, d10 to d90",
                capsize=3,
                elinewidth=1.2,
                **_points(_MEASURED),
            )
        top = max(float(np.nanmax(line.get_ydata(), initial=1.0)) for line in ax.get_lines())
        if self._spans_zero():
            ax.set_yscale("symlog", linthresh=1.0, linscale=0.4)
            ax.set_ylim(-0.2, 2 * top)
            decades = [digit * 10.0**power for power in range(8) for digit in (1, 3)]
            ax.set_yticks([0.0, *(tick for tick in decades if tick <= 2 * top)])
            ax.yaxis.set_major_formatter(lambda value, _: f"{value:,.4g}")
        else:
            ax.set_yscale("log")
            _plain(ax.yaxis)
        self._mark_levels(ax)
        ax.set_ylabel(f"dimensions d of D = {self.ambient:,}")
        heading(ax, f"Threshold dimension d* from {self.place}", columns=2)

    def _spans_zero(self) -> bool:
        return any((values[0] == 0).any() for values in self.dims.values())

    def _spread(self) -> np.ndarray:
        """d10, d50, d90 (3, L) of the sweep, NaN where they are bounds; (3, 0) without one."""
        phase = self.phase
        if phase is None:
            return np.empty((3, 0))
        found: np.ndarray = np.where(phase.quantile_bounds[:, 0] == 0, phase.quantiles[:, 0], np.nan)
        return found

    def _plot_probability(self, ax: Axes, row: int) -> None:
        from matplotlib.patches import Patch

        from landscape.analysis.styles import BLUE, GREY, PURPLE, VERMILION

        level, found = self.levels[row], self.measured
        handles: list[Any] = []
        dims = self.bound_dims.astype(float)
        if self.inside[row]:
            (line,) = ax.plot([1, self.ambient], [1, 1], color=BLUE, label="the start is in the set")
            handles.append(line)
        elif self.met[row]:
            for proves, colour, words in (
                ("miss", VERMILION, "miss: certified at most here"),
                ("hit", PURPLE, f"hit: certified if convex{'' if self.convex[row] else ' (it is not)'}"),
            ):
                edge = np.max(
                    [np.nan_to_num(bound["probability"][row]) for bound in self.bounds if bound["proves"] == proves],
                    axis=0,
                )
                if proves == "miss":
                    ax.fill_between(dims, 1 - edge, 1.0, color=colour, alpha=0.16, linewidth=0)
                else:
                    ax.fill_between(dims, 0.0, edge, color=colour, alpha=0.16, linewidth=0)
                handles.append(Patch(facecolor=colour, alpha=0.3, label=words))
            gordon = next(bound for bound in self.bounds if bound["theorem"].startswith("Gordon"))
            if np.nan_to_num(gordon["probability"][row]).max() > 0:
                (line,) = ax.plot(
                    dims,
                    1 - gordon["probability"][row],
                    color=GREY,
                    linestyle="-.",
                    linewidth=1,
                    label="Gordon's bound of a miss",
                )
            else:
                (line,) = ax.plot([], [], color=GREY, linestyle="-.", linewidth=1, label="Gordon: vacuous")
            handles.append(line)
            fine = np.geomspace(1, self.ambient, 400)
            for name in ("plane", "polar"):
                value, error = self.dims.get(name, np.full((2, len(self.levels)), np.nan))[:, row]
                if np.isnan(value):
                    continue
                look = _LOOKS[name]
                low, high = (_ball_law(fine, value + side * SURE * error, self.ambient) for side in (1, -1))
                ax.fill_between(fine, low, high, color=look["color"], alpha=0.25, linewidth=0)
                (line,) = ax.plot(
                    fine,
                    _ball_law(fine, value, self.ambient),
                    color=look["color"],
                    linestyle=look["linestyle"],
                    label=f"ball of the d* of {_NAMES[name]}",
                )
                handles.append(line)
        span = [1.0, float(self.ambient)]
        if found is not None:
            assert self.phase is not None
            low, high = (band[0, row] for band in self.phase.bands(found.confidence))
            p = self.phase.probabilities[0, row]
            known = np.isfinite(p)
            reach = np.maximum(np.stack([p - low, high - p])[:, known], 0)
            handles.append(
                ax.errorbar(
                    found.dims[known],
                    p[known],
                    reach,
                    label=f"measured, {int(found.seeds[0])} seeds",
                    capsize=2,
                    elinewidth=0.8,
                    **_points(_MEASURED),
                )
            )
            span = [found.dims[0] / 1.5, found.dims[-1] * 1.5]
        if self.met[row] and not self.inside[row]:
            value = self.dims["polar"][0, row]
            centre = [value / 4, 4 * value]
            span = centre if found is None else [min(span[0], centre[0]), max(span[1], centre[1])]
        elif found is None:
            ax.text(0.5, 0.5, "no draw met the set" if not self.met[row] else "", ha="center", transform=ax.transAxes)
        ax.set_xscale("log")
        ax.set_xlim(max(span[0], 0.8), min(span[1], 1.2 * self.ambient))
        _plain(ax.xaxis)
        ax.set_ylim(-0.04, 1.04)
        ax.set_xlabel("subspace dimension d")
        ax.set_ylabel("success probability P")
        heading(ax, f"P of train loss {level:g}", handles, columns=2)

    def _plot_map(self, ax: Axes) -> None:
        from matplotlib.patheffects import withStroke

        found = self.measured
        assert found is not None
        found.plot(ax, f"map {self.family}")
        legend = ax.get_legend()
        assert legend is not None
        handles: list[Any] = list(legend.legend_handles)
        frame = ax.get_xlim(), ax.get_ylim()
        edge = [withStroke(linewidth=3, foreground="white")]
        # heights as Threshold draws losses
        for name, look in _LOOKS.items():
            colour, dash = look["color"], look["linestyle"]
            if name in self.curves:
                (line,) = ax.plot(
                    np.where(self.curves[name] > 0, self.curves[name], np.nan),
                    -np.log10(self.curve_levels),
                    color=colour,
                    linestyle=dash,
                    linewidth=1.4,
                    path_effects=edge,
                    label=_NAMES[name],
                )
                handles.append(line)
            elif name in ("plane", "polar") and name in self.dims:
                away = np.where(self.inside, np.nan, self.dims[name][0])  # 0 is not on the axis
                (line,) = ax.plot(
                    away,
                    -np.log10(self.levels),
                    color=colour,
                    linestyle=dash,
                    marker=look["marker"],
                    markersize=5,
                    linewidth=1.4,
                    path_effects=edge,
                    label=_NAMES[name],
                )
                handles.append(line)
        ax.set_xlim(frame[0])
        # all levels that were asked for
        ax.set_ylim(
            min(frame[1][0], -math.log10(self.levels[0]) - 0.05), max(frame[1][1], -math.log10(self.levels[-1]) + 0.05)
        )
        heading(ax, f"P measured ({self.family}) and d* by theory", handles, columns=2)

    def _plot_convergence(self, ax: Axes) -> None:
        from landscape.analysis.styles import CYCLE

        for row, level in enumerate(self.levels):
            value, error = self.dims["polar"][:, row]
            colour, mark = CYCLE[row % len(CYCLE)], "os^Dv"[row % 5]
            known = np.isfinite(self.history[:, row])
            if self.inside[row] or not known.any():
                words = f"{level:g}: {'inside' if self.inside[row] else 'never met'}"
                ax.plot([], [], color=colour, marker=mark, label=words)
                continue
            x = self.marks[known]
            dash = ("-", "--", "-.", ":")[row % 4]
            ax.plot(x, self.history[known, row], dash, color=colour, marker=mark, markersize=3, label=f"{level:g}")
            ends = np.array([x[0], self.marks[-1]])
            ax.fill_between(ends, value - SURE * error, value + SURE * error, color=colour, alpha=0.12, linewidth=0)
        ax.set_xlim(0, 1.05 * self.marks[-1])
        ax.set_yscale("log")
        _plain(ax.yaxis)
        ax.set_xlabel("gradients spent on a draw")
        ax.set_ylabel("polar estimate of d*")
        heading(ax, "Convergence, by train loss (bands: the end)", columns=2)

    def _mark_levels(self, ax: Axes) -> None:
        """A logarithmic axis of levels, harder ones to the right, with ticks at those asked for."""
        from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

        ax.set_xscale("log")
        ax.xaxis.set_major_locator(FixedLocator(self.levels.tolist()))
        ax.xaxis.set_major_formatter(FixedFormatter([f"{level:g}" for level in self.levels]))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlim(1.5 * self.levels[0], self.levels[-1] / 1.5)
        ax.set_xlabel("train loss (harder →)")

    def figure(self) -> Figure:
        """See Result."""
        import plotly.graph_objects as go

        from landscape.analysis.styles import interactive

        figure = go.Figure()
        for name, look in _LOOKS.items():
            if name not in self.dims:
                continue
            value, error = self.dims[name]
            text = [
                f"{_NAMES[name]}<br>train loss {level:g}<br>d* {self._dim(name, row)}<br>{self._side(name, row)}"
                for row, level in enumerate(self.levels)
            ]
            figure.add_scatter(
                x=self.levels * look["shift"], y=value, error_y={"array": SURE * error}, text=text, hoverinfo="text", mode="markers", name=_NAMES[name],
                marker={"color": look["color"], "size": 10, "symbol": "triangle-down" if name in SEARCHED else "circle"},
            )  # fmt: skip
            if name in self.curves:
                dash = "solid" if look["linestyle"] == "-" else "dash"
                figure.add_scatter(
                    x=self.curve_levels,
                    y=self.curves[name],
                    mode="lines",
                    showlegend=False,
                    hoverinfo="skip",
                    line={"color": look["color"], "dash": dash},
                )
        low, middle, high = self._spread()
        if len(middle):
            text = [
                f"measured d50 {self._measured(row)[1]}<br>train loss {level:g}"
                for row, level in enumerate(self.levels)
            ]
            bars = {"symmetric": False, "array": high - middle, "arrayminus": middle - low}
            figure.add_scatter(
                x=self.levels,
                y=middle,
                error_y=bars,
                text=text,
                hoverinfo="text",
                mode="markers",
                name="measured d50, d10 to d90",
                marker={"color": _MEASURED["color"], "size": 10, "symbol": "square"},
            )
        figure = interactive(figure, x="train loss", y="threshold dimension d*")
        figure.update_xaxes(type="log", autorange="reversed")
        if not self._spans_zero():
            figure.update_yaxes(type="log")
        return figure


_SIGNS = {0: "", 1: "> ", -1: "≤ "}
_NAMES = {
    "plane": "planes",
    "polar": "rays (polar)",
    "width": "D − width²",
    "sharp well": "well, sharp form",
    "paper's well": "well, paper's bound",
}
# colour is never the only cue: markers and dashes differ; side by side where levels are shared
_LOOKS: dict[str, dict[str, Any]] = {
    "plane": {"color": "#009E73", "marker": "v", "linestyle": "-.", "shift": 0.97},
    "polar": {"color": "#0072B2", "marker": "v", "linestyle": ":", "shift": 1.06},
    "width": {"color": "#56B4E9", "marker": "v", "linestyle": ":", "shift": 1.03},
    "sharp well": {"color": "#D55E00", "marker": "o", "linestyle": "-", "shift": 1.0},
    "paper's well": {"color": "#E69F00", "marker": "D", "linestyle": "--", "shift": 1.0},
}
_MEASURED: dict[str, Any] = {"color": "#000000", "marker": "s"}


def _short(error: float) -> str:
    """An error in two digits, and none of them in an exponent."""
    return f"{error:,.0f}" if error >= 100 else f"{error:.2g}"


def _points(look: Mapping[str, Any], hollow: bool = False) -> dict[str, Any]:
    return {
        "color": look["color"],
        "marker": look["marker"],
        "markersize": 6,
        "linestyle": "none",
        **({"markerfacecolor": "none"} if hollow else {}),
    }


def _plain(axis: Any) -> None:
    """Ticks of a logarithmic axis as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
    axis.set_minor_formatter(NullFormatter())


def _ball_law(dims: np.ndarray, centre: float, ambient: int) -> np.ndarray:
    """P that a random subspace meets a ball of this d*: near normal, with variance 2 d* (D - d*) / D (Amelunxen et al. 2014)."""
    centre = min(max(centre, 1e-9), ambient - 1e-9)
    curve: np.ndarray = ndtr((dims - centre) / math.sqrt(2 * centre * (ambient - centre) / ambient))
    return curve


# -- the measurement --------------------------------------------------------------------------------------------------


def width(
    f: Objective,
    start: Tensor,
    levels: Sequence[float],
    *,
    solution: Tensor | None = None,
    measured: Threshold | None = None,
    family: str = "random",
    draws: int | None = None,
    radii: Sequence[float] | None = None,
    rounds: int | None = None,
    matrix: Matrix = "hessian",
    negative: Literal["clip", "abs", "error"] = "clip",
    seed: int = 0,
) -> Width:
    """Width, local angular dimension and d* of the sublevel sets of f seen from `start` (D,), by search, by the well at `solution` (D,), and as `measured`.

    levels: of the loss, positive, in any order. All are searched at once.
    measured: a sweep of trainings in subspaces of the same problem, of which `family` is read.
    draws, radii, rounds: of the search; by default as `sublevels.nearest` chooses them.
    matrix: the curvature of the well; none leaves it out. The Gauss-Newton matrix has no negative part.
    negative: what is done with the Hessian's, as `quadratics.sketch` does it. clip: directions that curve down are free in the well.

    Raises UsageError for levels that are none, or all at most the loss of the solution, or a sweep without the family; LandscapeError where a loss is not finite.
    """
    f = f.of_all_points()
    wanted = require_levels(levels)
    losses = {"start": float(f(start)), "solution": math.nan if solution is None else float(f(solution))}
    if solution is not None and not math.isfinite(losses["solution"]):
        raise LandscapeError(
            f"the loss at the end of the run is {losses['solution']}: there is no well. Give a run that ended at a finite loss."
        )
    if solution is not None and len(wanted) and wanted[0] <= losses["solution"]:
        raise UsageError(
            f"every level is at or below {losses['solution']:.4g}, the loss at the end of the run: whether the set is there at all is not known. Give a level above it, or train longer."
        )
    sweep = {} if measured is None else _sweep(measured, family, f.dim)
    chosen: dict[str, Any] = {
        name: value for name, value in (("draws", draws), ("rounds", rounds)) if value is not None
    }
    clock = time.perf_counter()
    sight = nearest(f, start, wanted.tolist(), radii=radii, seed=seed, **chosen)
    seconds = {"search": time.perf_counter() - clock}
    found = _read(sight)
    curve_levels = np.geomspace(*_range(wanted, measured), CURVE)
    well: dict[str, Any] = {}
    curves: dict[str, np.ndarray] = {}
    distance = math.nan if solution is None else float((start - solution).double().norm())
    clock = time.perf_counter()
    if solution is not None and matrix != "none":
        well, predicted, curves = _well(
            f, start - solution, solution, losses["solution"], wanted, curve_levels, matrix, negative, seed
        )
        found["dims"] |= predicted
        seconds["well"] = time.perf_counter() - clock
    dims, bounds = _bounds(f.dim, sight.inside, found)
    contradicted = _contradicted(wanted, dims, bounds, measured, family)
    found["convex"] = ~(found["apart"] | np.array([bool(words) for words in contradicted]))
    notes = [*_warnings(wanted, found, sight, losses, distance), *filter(None, contradicted)]
    if well and well["slope"] * distance > LINEAR * (well["start"] - losses["solution"]):
        notes.append(
            f"the gradient at the end of the run has norm {well['slope']:.3g}: over the distance {distance:.3g} its part is not small beside the well's {well['start'] - losses['solution']:.3g}, which leaves it out. The end is no minimum; train longer."
        )
    return Width(
        question={},
        provenance={
            "rows": len(f.rows),
            "dtype": dtype_name(f.dtype),
            "device": str(f.device),
            "norm": f.norm,
            "seed": seed,
        },
        warnings=tuple(notes),
        ambient=f.dim,
        family=family,
        levels=wanted,
        draws=len(sight.angles),
        start_loss=losses["start"],
        solution_loss=losses["solution"],
        distance=distance,
        inside=sight.inside,
        lowest=float(np.fmin.reduce([losses["start"], *sight.losses])),
        failed=int(sight.failed.sum()),
        radii=sight.radii,
        plane_dims=sight.plane_dims,
        marks=sight.marks,
        evaluations=sight.evaluations,
        seconds=seconds,
        well=well,
        curve_levels=curve_levels,
        curves=curves,
        bound_dims=dims,
        bounds=bounds,
        sweep=sweep,
        **{name: value for name, value in found.items() if name != "apart"},
    )


def _sweep(measured: Threshold, family: str, ambient: int) -> dict[str, Any]:
    """What is kept of a sweep: its cells of the family, read again whenever they are drawn."""
    if measured.ambient != ambient:
        raise UsageError(
            f"the sweep is of {measured.ambient:,} parameters, the run of {ambient:,}: they are other problems. Give a sweep of the run's task."
        )
    if family not in measured.families:
        raise UsageError(
            f"the sweep has no trainings of the family {family!r}, which starts where this estimate does. It has: {', '.join(measured.families)}. Add it to the sweep, or start from where one of them does."
        )
    mine = measured.cells["family"].astype(str) == family
    return {
        "cells": {name: column[mine] for name, column in measured.cells.items()},
        "nested": measured.nested,
        "delta": measured.delta,
        "confidence": measured.confidence,
        "run": str(measured.provenance.get("run", "")),
    }


def _read(sight: Sight) -> dict[str, Any]:
    """Width and d* from what a search saw."""
    inside, met, ambient = sight.inside, sight.reached, sight.ambient
    known = np.where(met > 0, 1.0, np.nan)

    def moments(samples: np.ndarray) -> np.ndarray:
        """Mean and standard error (2, L) over draws (E, L)."""
        return np.stack([samples.mean(0), standard_error(samples)])

    wide = moments(sight.widths()) * known
    dims = {
        "polar": moments(sight.polar()) * known,
        "width": np.stack([np.where(inside, 0.0, ambient - wide[0] ** 2), 2 * wide[0] * wide[1]]),
    }
    planes = sight.planes()
    crossed = np.isfinite(planes).sum(0) * (sight.plane_dims > 0)
    hit = (sight.plane_angles == 0).sum(0) * (sight.plane_dims > 0)
    if (sight.plane_dims > 0).any():
        samples = [column[np.isfinite(column)] for column in planes.T]
        ends = [moments(own[:, None])[:, 0] if len(own) > 1 else np.full(2, np.nan) for own in samples]
        # planes that hit leave no angle to measure, and no spread
        dims = {"plane": np.where((hit > 0) & (np.arange(2) == 1)[:, None], np.nan, np.stack(ends, axis=1)), **dims}
    # until every draw that meets the set in the end has met it, a mean says how many have, and not how near
    waiting = ~np.isfinite(sight.progress) & np.isfinite(sight.angles)  # (n, E, L)
    history = np.where(waiting.any(1) | (met == 0), np.nan, sight.polar(sight.progress).mean(1))
    near = np.where(np.isfinite(sight.by_radius), sight.by_radius, np.inf)  # (S, E, L)
    won = (near.argmin(0)[None] == np.arange(len(near))[:, None, None]) & np.isfinite(near.min(0))
    apart = np.zeros(len(met), dtype=bool)
    if "plane" in dims:
        plane, polar = dims["plane"], dims["polar"]
        with np.errstate(invalid="ignore"):
            apart = (met == len(sight.angles)) & (plane[0] - polar[0] > SURE * np.hypot(plane[1], polar[1]))
    return {
        "apart": apart,
        "met": met,
        "crossed": crossed,
        "hit": hit,
        "width": wide,
        "dims": dims,
        "won": won.sum(1) * ~inside,
        "history": history,
        "fall": np.array([_late(path) for path in history.T]) * known,
    }


def _late(path: np.ndarray) -> float:
    """How much of a falling path (n,) fell in the last third of its way from its first number to the first mark at its last: levels are worked on one after another."""
    known = np.flatnonzero(np.isfinite(path))
    if not len(known):
        return math.nan
    last = int(np.flatnonzero(path <= path[-1])[0])
    return float(path[known[0] + math.floor(LAST * (last - known[0]))] - path[-1])


def _range(levels: np.ndarray, measured: Threshold | None) -> tuple[float, float]:
    """The highest and the lowest level that curves are drawn at."""
    high, low = 1.5 * float(levels[0]), float(levels[-1]) / 1.5  # the margin that the axis has
    if measured is not None and "train loss" in measured.phases:
        swept = measured.phase("train loss").levels
        high, low = max(high, float(swept[0])), min(low, float(swept[-1]))
    return high, low


def _well(
    f: Objective,
    displacement: Tensor,
    solution: Tensor,
    least: float,
    levels: np.ndarray,
    curve_levels: np.ndarray,
    matrix: Matrix,
    negative: Literal["clip", "abs", "error"],
    seed: int,
) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """What the quadratic at the solution predicts: how it was made, d* at the levels with errors, and along the curves."""
    if float(displacement.norm()) == 0:
        # the start is the bottom: inside every set that is not below it
        dims = {name: np.stack([np.where(levels >= least, 0.0, np.nan)] * 2) for name in PREDICTED}
        curves = {name: np.where(curve_levels >= least, 0.0, np.nan) for name in PREDICTED}
        return (
            {"matrix": matrix, "negative": negative, "share": 0.0, "products": 0, "start": least, "slope": 0.0},
            dims,
            curves,
        )
    operator = f.hessian(solution) if matrix == "hessian" else f.gauss_newton(solution)
    found = sketch(operator, displacement, least=least, negative=negative, seed=seed)
    forms = dict(zip(PREDICTED, (found.threshold, found.paper_bound), strict=True))
    dims = {name: np.full((2, len(levels)), np.nan) for name in PREDICTED}
    curves = {name: np.full(len(curve_levels), np.nan) for name in PREDICTED}
    for name, form in forms.items():
        for row, level in enumerate(levels):
            if level > least:
                estimate = form(float(level))
                dims[name][:, row] = estimate.value, estimate.error
        for row, level in enumerate(curve_levels):
            if level > least:
                curves[name][row] = form(float(level)).value
    about = {
        "matrix": matrix,
        "negative": negative,
        "share": found.negative_share,
        "products": found.products,
        "start": found.initial,
        "slope": float(f.gradient(solution).double().norm()),
    }
    return about, dims, curves


def _bounds(ambient: int, inside: np.ndarray, found: Mapping[str, Any]) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """The escape bounds (K,) at every level, from the inputs that make them stand as said."""
    every = np.arange(1, ambient + 1)
    dims = every
    if ambient > EVERY:
        near = np.geomspace(1, ambient, EVERY // 2)
        dims = np.unique(np.concatenate([near, ambient + 1 - near]).round().astype(int))
    made: dict[tuple[str, str], dict[str, Any]] = {}
    levels = len(inside)
    for row in range(levels):
        (star, spread), (wide, error) = found["dims"]["polar"][:, row], found["width"][:, row]
        inputs = {
            "width": max(wide - SURE * error, 0.0),
            "statistical_dimension": ambient - min(star + SURE * spread, ambient),
        }
        usable = found["met"][row] > 0 and not inside[row]
        if not usable:  # inside, every subspace hits; with no point met, nothing is known
            inputs = {"width": 0.0, "statistical_dimension": 0.0}
        for bound in certificates(ambient, every, **inputs):
            entry = made.setdefault(
                (bound.theorem, bound.proves),
                {
                    "theorem": bound.theorem,
                    "proves": bound.proves,
                    "valid": bound.valid,
                    "standing": STANDING[bound.proves],
                    "probability": np.full((levels, len(dims)), np.nan),
                    "reach": np.full(levels, np.nan),
                },
            )
            if usable:
                reach = bound.reaches(CERTAIN)
                entry["probability"][row] = bound.probability[dims - 1]
                entry["reach"][row] = math.nan if reach is None else reach
    return dims, list(made.values())


def _contradicted(levels: np.ndarray, dims: np.ndarray, bounds: Sequence[Mapping[str, Any]], measured: Threshold | None, family: str) -> list[str]:  # fmt: skip
    """For each level what the sweep has measured against the bounds of hits, in words; "" where nothing."""
    words = [""] * len(levels)
    if measured is None:
        return words
    phase, place = measured.at("train loss", levels.tolist()), measured.families.index(family)
    high = phase.bands(measured.confidence)[1][place]
    for row, level in enumerate(levels):
        certified = np.max([np.nan_to_num(one["probability"][row]) for one in bounds if one["proves"] == "hit"], axis=0)
        below = (phase.trials[place, row] > 0) & (high[row] < np.interp(measured.dims, dims, certified))
        if below.any():
            k = int(np.flatnonzero(below)[-1])
            words[row] = (
                f"at train loss {level:g} the sweep hit {phase.hits[place, row, k]} of {phase.trials[place, row, k]} at d = {measured.dims[k]}, where a convex cone would be hit with probability {np.interp(measured.dims[k], dims, certified):.2g} or more: the set is not seen as one (or the sweep's solver failed), and hits are not certified."
            )
    return words


def _warnings(levels: np.ndarray, found: Mapping[str, Any], sight: Sight, losses: Mapping[str, float], distance: float) -> list[str]:  # fmt: skip
    """Each a sentence."""
    notes, draws = [], len(sight.angles)
    for row, level in enumerate(levels):
        error = found["dims"]["polar"][1, row]
        met, fall = int(found["met"][row]), found["fall"][row]
        if sight.inside[row]:
            notes.append(
                f"the start has a loss of {losses['start']:.4g} and lies in the set of train loss {level:g}: the width is that of the whole sphere, and d* = 0."
            )
        elif not met:
            notes.append(
                f"no draw met the set of train loss {level:g}: of d* nothing is known but that it is at most D. Search with more --rounds, or from other --radii."
            )
        elif met < draws:
            notes.append(
                f"{draws - met} of {draws} draws met no point of the set of train loss {level:g}: either none lies ahead of them, as where d* is near D, or the search failed and the estimate from rays is too high, by at most {100 * (1 - met / draws):.0f}% of D. With more --rounds they may."
            )
        elif fall > error:
            notes.append(
                f"the polar estimate at train loss {level:g} fell by {_short(fall)} over the last third of the work on it, more than its standard error {_short(error)}: more --rounds would lower it further."
            )
        if sight.plane_dims[row] > 0:
            whole, k = len(sight.plane_angles), int(sight.plane_dims[row])
            crossed, hit = int(found["crossed"][row]), int(found["hit"][row])
            plane, polar = found["dims"]["plane"][:, row], found["dims"]["polar"][:, row]
            if crossed < whole:
                rest = "their d* is of the others" if crossed > 1 else "there is no estimate from planes"
                notes.append(
                    f"{whole - crossed} of {whole} planes of {k} dimensions met no point of the set of train loss {level:g}: {rest}. Search with more --rounds or --draws."
                )
            if hit:
                notes.append(
                    f"{hit} of {crossed} planes of {k} dimensions hit the set of train loss {level:g}: so many dimensions are enough for these, and no angle was left to measure."
                )
            elif found["apart"][row]:
                notes.append(
                    f"at train loss {level:g} planes come less near than rays, {plane[0]:.3g} against {polar[0]:.3g} dimensions: the set is not seen as a convex cone (or that search stopped short), and hits are not certified. Read the planes' d*."
                )
    failed = int(sight.failed.sum())
    if failed:
        notes.append(
            f"{failed} of {sight.failed.size} searches found a loss that is not finite at their starting radius, and began nearer."
        )
    below = [f"{level:g}" for level in levels if level <= losses["solution"]]
    if below:
        notes.append(
            f"the run ended at a loss of {losses['solution']:.4g}: of train loss {', '.join(below)}, below the reached minimum, the well says nothing."
        )
    if distance == 0:
        notes.append("the start is the end of the run: the distance is 0, and the well is seen from its bottom.")
    return notes
