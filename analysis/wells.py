"""How many random dimensions reach the low part of a quadratic well: the theory of the threshold dimension d*, by every estimator, beside exact simulation.

Letters: D parameters, d subspace, L levels asked (from the highest, which is the easiest), G levels of the map, K dimensions, n simulated subspaces, R distance of the start w_0 from the minimum.

    well        L(w) = least + 1/2 (w - w*)^T H (w - w*); its sublevel set at a level is an ellipsoid
    simulated   the least d of a nested random subspace through w_0 that meets the set: exact, for L_min(d) of all d comes from one triangular factor and no optimiser
    polar       d* = E |g - Pi g|^2, Pi the projection onto the cone of the set seen from w_0: unbiased
    sharp form  L_min(d) = level, by the deterministic equivalent of L_min: asymptotic in D, either side
    paper bound sum lambda / (lambda + 2 level / R^2), the effective dimension: an upper bound of d*
    bounds      d up to which a miss, and from which a hit, is certain to a given probability (landscape.escapes)

A subspace's threshold is a whole number, whose mean is d* + 1/2: the polar cone and the simulation differ by that much.

Starts are those of the wells, or isotropic: as far from the minimum, in a direction drawn anew for each subspace and each cone. For these the closed forms and the bounds are of the even start, R / sqrt(D) along
each eigenvector, which has the mean loss of a drawn one.

Sources: Larsen, Fort, Becker, Ganguli 2022, "How many degrees of freedom do we need to train deep networks" (section 3: the quadratic well and its bound; its figure of success probability with the bound on it);
Amelunxen, Lotz, McCoy, Tropp 2014, "Living on the edge" (d* = D - statistical dimension).
"""

from __future__ import annotations

import dataclasses
import math
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from landscape import cones
from landscape.analysis.spectra import Spectrum
from landscape.analysis.styles import borders, heading
from landscape.errors import UnsafeInputError, UsageError, unknown
from landscape.escapes import certificates
from landscape.functionals import standard_error
from landscape.quadratics import EPS, Quadratic
from landscape.results import Result
from landscape.seeds import child_seed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from plotly.graph_objects import Figure

DIMS = 72  # of maps and curves, even in the angle arcsin sqrt(d / D), where every transition is equally wide: more columns are not told apart
FEW = 8  # more below their first, even in the logarithm: of very many dimensions it is in the thousands
LEVELS = 48  # of maps and theory curves, even in the logarithm: likewise
EASIEST = 0.95  # the highest of them, as a share of the start's loss: above 1 the start is inside, and d* is 0
BEYOND = 3.0  # they end at a level lower by this than the lowest that was asked for
OVERVIEW = 5  # wells in the overview: more lines are not told apart
SAFE = 3.0  # standard errors by which the polar estimate is moved to the bound's disadvantage before a bound is read off it, and from which on two numbers are called different
WHOLE = 0.5  # of a dimension: thresholds are whole numbers, so that their mean may stand still this far from d*
PROBABILITY = 0.9  # of the bounds: the definition of d* asks for as much (delta = 0.1 in Larsen et al. 2022)
LARGEST = (
    5_000  # D up to which subspaces are simulated: each is a QR factor, of 7 s there on one core, 5 minutes for 40
)
BAND = (0.1, 0.5, 0.9)  # quantiles of the simulated thresholds: d10, d50, d90


@dataclass(frozen=True)
class Estimates:
    """d* of one well at its levels. Of isotropic starts the means; inside the set it is 0."""

    dim: int  # D
    radius: float  # R
    least: float  # loss at the minimum
    initial: float  # loss at w_0
    negative: str  # what was done with negative eigenvalues; empty where there were none
    levels: np.ndarray  # (L,) descending
    inside: np.ndarray  # (L,) bool: w_0, or the even start, lies in the set; drawn ones may not
    paper: np.ndarray  # (L,) upper bound
    sharp: np.ndarray  # (L,)
    polar: np.ndarray  # (L,)
    polar_error: np.ndarray  # (L,) standard error over draws
    thresholds: np.ndarray  # (n, L) of each simulated subspace; n = 0 where none was
    certified: dict[
        str, np.ndarray
    ]  # by `theorem: miss` and `theorem: hit` (L,): the last d of a sure miss, the first of a sure hit; NaN where there is none, and where the even start lies inside and others outside
    fine: np.ndarray  # (G,) levels of the map, descending
    fine_paper: np.ndarray  # (G,)
    fine_sharp: np.ndarray  # (G,)
    dims: np.ndarray  # (K,)
    success: np.ndarray  # (G, K) share of the simulated subspaces that meet the set; (G, 0) without simulation
    predicted: np.ndarray  # (K,) deterministic equivalent of L_min(d)
    course: np.ndarray  # (3, K) mean, 10% and 90% quantile of the simulated L_min(d); (3, 0) without

    @property
    def shares(self) -> np.ndarray:
        """The levels (L,) as shares of the start's loss, both above the least."""
        return (self.levels - self.least) / (self.initial - self.least)

    @property
    def fine_shares(self) -> np.ndarray:
        """Likewise those of the map (G,)."""
        return (self.fine - self.least) / (self.initial - self.least)

    @property
    def mixed(self) -> np.ndarray:
        """Whether the even start lies in the set and others at its distance outside (L,): closed forms and bounds, which are of the even start, say nothing of the drawn ones."""
        return np.asarray(self.inside & np.isnan(self.best("hit")))

    @property
    def seen(self) -> np.ndarray:
        """Whether a level has a d* to draw (L,): not where every start lies inside."""
        return np.asarray(~self.inside | self.mixed)

    @property
    def told(self) -> np.ndarray:
        """Whether a level of the map has closed forms to draw (G,)."""
        return np.asarray(self.fine < self.initial)

    @property
    def simulated(self) -> np.ndarray:
        """Mean threshold (L,); NaN without simulation."""
        return self.thresholds.mean(0) if len(self.thresholds) else np.full(len(self.levels), np.nan)

    @property
    def simulated_error(self) -> np.ndarray:
        """Its standard error (L,), widened as that of the polar estimate is."""
        if not len(self.thresholds):
            return np.full(len(self.levels), np.nan)
        found: np.ndarray = standard_error(self.thresholds)
        return found

    @property
    def quantiles(self) -> np.ndarray:
        """d10, d50 and d90 (3, L): each the smallest d at which so many of the subspaces hit."""
        if not len(self.thresholds):
            return np.full((3, len(self.levels)), np.nan)
        found: np.ndarray = np.quantile(self.thresholds, BAND, axis=0, method="inverted_cdf").astype(float)
        return found

    @property
    def deviations(self) -> np.ndarray:
        """Sharp form minus simulated mean (L,), in standard errors of the latter, of which SAFE are half a dimension at least; NaN without simulation, of mixed starts, and in one dimension."""
        apart = (self.sharp - self.simulated) / np.maximum(self.simulated_error, WHOLE / SAFE)
        return np.where(self.mixed | (self.dim == 1), np.nan, apart)

    @property
    def factors(self) -> np.ndarray:
        """Paper bound over the simulated mean, or over the sharp form where nothing was simulated (L,); NaN inside the set, and in one dimension."""
        truth = self.simulated if len(self.thresholds) else self.sharp
        return np.where(
            self.inside | (truth <= 0) | (self.dim == 1), np.nan, self.paper / np.where(truth > 0, truth, 1.0)
        )

    def best(self, side: str) -> np.ndarray:
        """Over the theorems, the largest d of a certain miss or the smallest of a certain hit (L,); NaN where none certifies one."""
        rows = np.array([row for name, row in self.certified.items() if name.endswith(side)])
        empty, pick = (-np.inf, np.max) if side == "miss" else (np.inf, np.min)
        found = pick(np.where(np.isnan(rows), empty, rows), axis=0)
        return np.where(np.isfinite(found), found, np.nan)


@dataclass(frozen=True, kw_only=True)
class Well(Result):
    """d* of quadratic wells, by every estimator, at the same levels."""

    isotropic: bool  # whether starts were drawn
    absolute: bool  # whether levels were asked for as losses; else as shares of the start's loss above the least
    asked: np.ndarray  # (L,) the levels as asked, descending
    draws: int  # n
    polar_draws: int
    probability: float  # of the bounds
    wells: dict[str, dict[str, Any]]  # fields of Estimates, by name

    # -- numbers ------------------------------------------------------------------------------------------------------

    @property
    def names(self) -> list[str]:
        """Of the wells."""
        return list(self.wells)

    def of(self, name: str) -> Estimates:
        """The estimates of one well."""
        if name not in self.wells:
            raise unknown("well", name, self.wells)
        return Estimates(**self.wells[name])

    def _worst(self, numbers: Callable[[Estimates], np.ndarray]) -> tuple[float, str, int]:
        """The number of the largest size over wells and levels, with its place; NaN and an empty name where there is none."""
        found = (math.nan, "", 0)
        for name in self.names:
            for row, number in enumerate(numbers(self.of(name))):
                if math.isfinite(number) and not abs(number) <= abs(found[0]):
                    found = (float(number), name, row)
        return found

    # -- words --------------------------------------------------------------------------------------------------------

    def summary(self) -> str:
        """See Result."""
        sizes = sorted({self.of(name).dim for name in self.names})
        text = f"{_count(len(self.names), 'quadratic well')} in {', '.join(f'{size:,}' for size in sizes)} dimension{'s' * (sizes != [1])}, {_count(len(self.asked), 'level')}: "
        parts = []
        worst, name, row = self._worst(lambda one: np.where(one.inside, np.nan, one.deviations))
        if name:
            one = self.of(name)
            parts.append(
                f"the sharp form is at most {abs(worst):.2g} standard errors from exact simulation "
                f"(worst: {name} at {self.asked[row]:g}, {_tenth(one.sharp[row])} against {_with_error(one.simulated[row], one.simulated_error[row])})"
            )
        factor, name, row = self._worst(lambda one: one.factors)
        if name:
            one = self.of(name)
            truth = "simulated" if self.draws else "sharp"
            number = one.simulated[row] if self.draws else one.sharp[row]
            parts.append(
                f"the paper's bound is up to {factor:.3g} times the {truth} d* ({name} at {self.asked[row]:g}, {_tenth(one.paper[row])} against {_tenth(number)})"
            )
        every = [self.of(name) for name in self.names]
        if any(one.mixed.any() for one in every):
            parts.append(
                "where the start of mean loss lies inside and drawn ones do not, closed forms say nothing of d*"
            )
        if any(one.dim == 1 and not one.inside.all() for one in every):
            parts.append("in 1 dimension the line meets every set and d* is 1/2")
        return text + ("; ".join(parts) or "every start lies inside, d* is 0") + "."

    def caption(self) -> str:
        """See Result."""
        text = (
            "Threshold dimension d* of quadratic wells: how many random dimensions through a start w_0 at distance R from the minimum meet the set of loss at most a level"
            + (". " if self.absolute else ", given as a share of the loss at w_0. ")
            + (
                "Starts are isotropic, drawn anew for each subspace and each cone; bounds, sharp form and levels are those of the start of mean loss that is even in all eigenvectors. "
                if self.isotropic
                else ""
            )
            + "Paper bound: an upper bound of d* in many dimensions, where d* need not be a whole number (dotted). Sharp form: the deterministic equivalent, asymptotic in D, either side (lines). "
            f"Polar: D minus the statistical dimension of the cone in which w_0 sees the set, by projections of {self.polar_draws} draws, which the levels share; unbiased, ± its standard error (hollow). "
            "Standard error: widened by Student's t for few draws, so that 1.96 of it is 95%. "
        )
        if self.draws:
            text += (
                f"Simulated: the least dimension of each of {self.draws} nested random subspaces that meets the set, exact and without an optimiser; mean ± standard error, and d10 to d90 over the draws. "
                "It is a whole number, whose mean is d* + 1/2. "
                f"Sharp - simulated: in these standard errors, each taken as {WHOLE / SAFE:.2g} at least, for whole numbers may have no spread and still lie half a dimension off. P: share of these subspaces that meet the set. Least loss in d dimensions: of these subspaces, and by the deterministic equivalent (theory). "
            )
        return (
            text
            + f"Sure miss and sure hit: at d up to, and from, these, a random subspace misses or hits with probability at least {self.probability:g} (McCoy, Tropp 2014; Amelunxen et al. 2014); "
            f"Gordon's theorem proves misses only, and is vacuous at a level where it certifies no d. Bounds are read off the polar estimate moved {SAFE:g} standard errors to their disadvantage, "
            "and Gordon's from a width of at most the square root of the statistical dimension D - d*. Dimensions stand evenly in the angle arcsin √(d/D). A start inside the set has d* = 0"
            + (
                ". Where the start of mean loss lies inside, and others at its distance outside, closed forms and bounds say nothing of the drawn ones."
                if self.isotropic
                else "."
            )
        )

    def table(self) -> list[tuple[str, ...]]:
        """See Result."""
        level = "level" if self.absolute else "level / L(w_0)"
        head = ("well", level, "paper bound", "sharp form", "polar", "simulated", "sharp - simulated", "d10 to d90", "sure miss", "sure hit", "Gordon miss")  # fmt: skip
        rows: list[tuple[str, ...]] = [head]
        for name in self.names:
            one = self.of(name)
            quantiles, miss, hit, gordon = (
                one.quantiles,
                one.best("miss"),
                one.best("hit"),
                one.certified["Gordon: miss"],
            )
            for row, asked in enumerate(self.asked):
                start = "mean start" if one.mixed[row] else "inside"
                rows.append(
                    (
                        name,
                        f"{asked:g}",
                        f"0 ({start})" if one.inside[row] else f"≤ {_tenth(one.paper[row])}",
                        _tenth(one.sharp[row]),
                        _with_error(one.polar[row], one.polar_error[row]),
                        _with_error(one.simulated[row], one.simulated_error[row]) if self.draws else "-",
                        f"{one.deviations[row]:+.1f} s.e." if np.isfinite(one.deviations[row]) else "-",
                        f"{quantiles[0, row]:.0f} to {quantiles[2, row]:.0f}" if self.draws else "-",
                        f"≤ {miss[row]:,.0f}" if np.isfinite(miss[row]) else "none",
                        f"≥ {hit[row]:,.0f}" if np.isfinite(hit[row]) else "none",
                        f"≤ {gordon[row]:,.0f}" if np.isfinite(gordon[row]) else "vacuous",
                    )
                )
        return rows

    # -- pictures -----------------------------------------------------------------------------------------------------

    def panels(self) -> tuple[str, ...]:
        """`threshold`, then a `map` of each well (where it was simulated), then a `curve` of each that does not fall to the minimum in one step."""
        maps = [f"map {name}" for name in self.names if self.draws]
        curves = [f"curve {name}" for name in self.names if (one := self.of(name)).predicted[1] > one.least]
        return ("threshold", *maps, *curves)

    def plot(self, ax: Axes, panel: str = "") -> None:
        """See Result."""
        panel = panel or "threshold"
        if panel not in self.panels():
            raise unknown("panel", panel, self.panels())
        kind, _, name = panel.partition(" ")
        if kind == "threshold":
            self._plot_thresholds(ax)
        elif kind == "map":
            _plot_map(ax, name, self.of(name))
        else:
            _plot_curve(ax, name, self.of(name))

    def _plot_thresholds(self, ax: Axes) -> None:
        from matplotlib.lines import Line2D

        from landscape.analysis.styles import CYCLE, GREY

        shown = self.names[:OVERVIEW]
        handles = []
        for place, name in enumerate(shown):
            one, colour, marker = self.of(name), CYCLE[place], "os^Dv"[place]
            # shares of D, so that wells of several sizes share the axis
            told, seen = one.told, one.seen
            ax.plot(one.fine_shares[told], one.fine_sharp[told] / one.dim, color=colour, linewidth=1.4)
            ax.plot(one.fine_shares[told], one.fine_paper[told] / one.dim, color=colour, linewidth=1.1, linestyle=":")
            style: dict[str, Any] = {
                "color": colour,
                "marker": marker,
                "linestyle": "none",
                "elinewidth": 0.9,
                "capsize": 1.5,
            }
            x = one.shares[seen]
            # side by side: they lie on each other
            ax.errorbar(
                x * 1.08,
                one.polar[seen] / one.dim,
                one.polar_error[seen] / one.dim,
                markersize=4.5,
                markerfacecolor="white",
                **style,
            )
            if self.draws:
                ax.errorbar(
                    x / 1.08,
                    one.simulated[seen] / one.dim,
                    one.simulated_error[seen] / one.dim,
                    markersize=4,
                    **style,
                )
            handles.append(Line2D([], [], color=colour, marker=marker if seen.any() else "", markersize=4, label=name))
        ways: list[tuple[str, dict[str, Any]]] = [
            ("paper bound", {"linestyle": ":"}),
            ("sharp form", {"linestyle": "-"}),
        ]
        if any(self.of(name).seen.any() for name in shown):
            ways.append(("polar ± s.e.", {"linestyle": "none", "marker": "o", "markerfacecolor": "white"}))
            if self.draws:
                ways.append(("simulated ± s.e.", {"linestyle": "none", "marker": "o"}))
        handles += [Line2D([], [], color=GREY, markersize=4.5, label=label, **look) for label, look in ways]
        same = len({self.of(name).dim for name in shown}) == 1
        dim = self.of(shown[0]).dim if same else 1
        _mark_shares(ax, "x")
        _mark_angles(ax, "y", 1, 0.0, 1.0, scale=dim)
        ax.set_ylabel(f"threshold dimension d* of D = {dim:,}" if same else "threshold dimension d* / D")
        left = f" (first {OVERVIEW} of {len(self.names)})" if len(self.names) > OVERVIEW else ""
        unseen = "" if all(self.of(name).seen.all() for name in shown) else "; levels inside are not drawn"
        heading(ax, f"Threshold dimension over the level{left}{unseen}", handles)

    def figure(self) -> Figure:
        """See Result."""
        import plotly.graph_objects as go

        from landscape.analysis.styles import CYCLE, interactive

        figure = go.Figure()
        for place, name in enumerate(self.names):
            one, colour = self.of(name), CYCLE[place % len(CYCLE)]
            group: dict[str, Any] = {"legendgroup": name}
            lines = (("sharp form", one.fine_sharp, "solid"), ("paper bound", one.fine_paper, "dot"))
            for label, values, dash in lines:
                figure.add_scatter(
                    x=one.fine_shares[one.told], y=values[one.told], name=f"{name}: {label}", mode="lines", line={"color": colour, "dash": dash}, showlegend=label == "sharp form",
                    hovertemplate=f"{name}: {label}<br>level %{{x:.3g}} of L(w_0): d* %{{y:.1f}}<extra></extra>", **group,
                )  # fmt: skip
            points = [("polar", one.polar, one.polar_error, "circle-open")]
            if self.draws:
                points.append(("simulated", one.simulated, one.simulated_error, "circle"))
            for label, values, errors, symbol in points:
                figure.add_scatter(
                    x=one.shares, y=values, error_y={"type": "data", "array": np.nan_to_num(errors)}, name=f"{name}: {label}", mode="markers",
                    marker={"color": colour, "symbol": symbol, "size": 8}, showlegend=False,
                    text=[f"{name}: {label}<br>level {share:.3g} of L(w_0)<br>d* {_with_error(value, error)}" for share, value, error in zip(one.shares, values, errors, strict=True)],
                    hoverinfo="text", **group,
                )  # fmt: skip
        interactive(
            figure, x="level / L(w_0) (harder →)", y="threshold dimension d*: sharp form (line), paper bound (dots)"
        )
        figure.update_xaxes(type="log", autorange="reversed")
        return figure


def _plot_map(ax: Axes, name: str, one: Estimates) -> None:
    from matplotlib.patheffects import withStroke

    from landscape.analysis.styles import SEQUENTIAL, VERMILION

    angles = borders(np.arcsin(np.sqrt(one.dims / one.dim)))
    across = one.dim * np.sin(np.clip(angles, 0, np.pi / 2)) ** 2
    upwards = np.exp(borders(np.log(one.fine_shares)))
    image = ax.pcolormesh(across, upwards, one.success, vmin=0, vmax=1, cmap=SEQUENTIAL, rasterized=True)
    edge = [withStroke(linewidth=3, foreground="white")]
    look: dict[str, Any] = {"color": VERMILION, "linestyle": "--", "linewidth": 1.4, "path_effects": edge}
    shares, bounds, sharps = (values[one.told] for values in (one.fine_shares, one.fine_paper, one.fine_sharp))
    (bound,) = ax.plot(bounds, shares, label="paper bound", **look)
    (sharp,) = ax.plot(sharps, shares, color="black", path_effects=edge, label="sharp form")
    _mark_angles(ax, "x", one.dim, float(across[0]), float(across[-1]))
    _mark_shares(ax, "y")
    ax.set_ylim(upwards[0], upwards[-1])
    ax.set_xlabel(f"subspace dimension d of {one.dim:,}")
    bar = ax.figure.colorbar(image, ax=ax, pad=0.02)
    bar.set_label("success probability P")
    heading(ax, f"{name}: P of {_count(len(one.thresholds), 'simulated subspace')}", [bound, sharp])


def _plot_curve(ax: Axes, name: str, one: Estimates) -> None:
    from landscape.analysis.styles import BLUE, GREY

    def share(losses: np.ndarray) -> np.ndarray:
        # a logarithmic axis has no place for the minimum itself
        found = (losses - one.least) / (one.initial - one.least)
        return np.where(found > 0, found, np.nan)

    if one.course.size:
        mean, low, high = share(one.course)
        ax.fill_between(one.dims, low, high, color=BLUE, alpha=0.25, linewidth=0, label="10% to 90%")
        ax.plot(one.dims, mean, color=BLUE, label="simulated mean")
    ax.plot(one.dims, share(one.predicted), color="black", linestyle="--", linewidth=1.2, label="theory")
    for place, level in enumerate(one.shares[one.seen]):
        ax.axhline(level, color=GREY, linestyle=":", linewidth=0.8, label="" if place else "levels")
    _mark_angles(ax, "x", one.dim, 0, float(one.dims[-1]))
    ax.set_yscale("log")
    ax.set_ylim(one.fine_shares[-1], 1.3 * max(one.fine_shares[0], 1.0))
    ax.set_xlabel(f"subspace dimension d of {one.dim:,}")
    ax.set_ylabel("least loss / L(w_0)")
    heading(ax, f"{name}: least loss in d dimensions")


def _mark_shares(ax: Axes, which: str) -> None:
    """A logarithmic axis of levels, harder ones to the right or up."""
    (ax.set_xscale if which == "x" else ax.set_yscale)("log")
    (ax.invert_xaxis if which == "x" else ax.invert_yaxis)()
    (ax.set_xlabel if which == "x" else ax.set_ylabel)("level / L(w_0) (harder →)")


def _mark_angles(ax: Axes, which: str, dim: float, low: float, high: float, scale: int = 1) -> None:
    """An axis of dimensions, even in the angle arcsin sqrt(d / D), in which every transition is equally wide; `scale` times the numbers stand at the ticks."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    def forward(d: Any) -> Any:
        return np.arcsin(np.sqrt(np.clip(np.asarray(d, dtype=float) / dim, 0, 1)))

    def backward(angle: Any) -> Any:
        return dim * np.sin(np.clip(angle, 0, np.pi / 2)) ** 2

    axis = ax.xaxis if which == "x" else ax.yaxis
    (ax.set_xscale if which == "x" else ax.set_yscale)("function", functions=(forward, backward))
    whole = dim * scale
    even = whole * np.sin(np.linspace(forward(low), forward(high), 11)) ** 2
    # 1, 2 or 5 times a power of ten is read at a glance: as d, or as what is missing to D
    near = np.minimum(even, whole - even)
    power = 10.0 ** np.floor(np.log10(np.maximum(near, 1e-12)))
    digit = np.array([1, 2, 5, 10])[np.searchsorted([1.5, 3.5, 7.5], near / power)]
    near = np.where(near > 1e-9 * whole, digit * power, 0.0)
    ticks = np.where(even <= whole / 2, near, whole - near)
    ticks = np.unique(np.rint(ticks) if whole > 1 else ticks)
    ticks = ticks[(ticks >= low * scale) & (ticks <= high * scale)]
    # those that would run into one another are left out
    room = (forward(high) - forward(low)) / 14
    kept = [0]
    for place in range(1, len(ticks)):
        if forward(ticks[place] / scale) - forward(ticks[kept[-1]] / scale) > room:
            kept.append(place)
    ticks = ticks[kept]
    axis.set_major_locator(FixedLocator((ticks / scale).tolist()))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _short(value * scale)))
    axis.set_minor_locator(NullLocator())
    (ax.set_xlim if which == "x" else ax.set_ylim)(low, high)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _short(number: float) -> str:
    """At a tick: 400, 20k, 1M."""
    for unit, sign in ((1e6, "M"), (1e3, "k")):
        if number >= 10 * unit or number == unit:
            return f"{number / unit:.6g}{sign}"
    return f"{number:.4g}"


def _tenth(number: float) -> str:
    return f"{number:,.1f}"


def _with_error(number: float, error: float) -> str:
    return f"{number:,.1f} ± {error:.1f}" if math.isfinite(number) else "unknown"


# -- the measurement --------------------------------------------------------------------------------------------------


def well(
    quadratics: Mapping[str, Quadratic],
    levels: Sequence[float],
    *,
    isotropic: bool = False,
    absolute: bool = False,
    draws: int = 40,
    polar_draws: int = 25,
    probability: float = PROBABILITY,
    seed: int = 0,
) -> Well:
    """d* of quadratic wells at each level, by every estimator, beside exact simulation.

    quadratics: wells by name, each with its start. isotropic: draw the start's direction anew, at that distance, for each subspace and each cone. levels: shares of the start's loss above the least, so that one list serves all wells; with `absolute` losses.
    draws: simulated subspaces (each a triangular factor of D x D numbers); 0 leaves the simulation out. polar_draws: of the polar estimate.
    probability: of the bounds.

    Raises UsageError on an option out of range, a level at or below the least loss, a start at the minimum itself, and a well too large to be simulated.
    """
    if not quadratics:
        raise UsageError("give at least one well.")
    asked = np.unique(np.asarray(levels, dtype=float))[::-1]
    if not len(asked) or not np.isfinite(asked).all() or (not absolute and asked[-1] <= 0):
        kind = "losses" if absolute else "positive shares of the start's loss"
        raise UsageError(
            f"levels are finite {kind}, such as 0.3, 0.03; got {', '.join(f'{level:g}' for level in levels) or 'none'}."
        )
    if draws < 0 or draws == 1 or polar_draws < 2:
        raise UsageError(
            f"a standard error takes at least 2 draws, and 0 draws leave the simulation out; got {draws} draws and {polar_draws} of the polar estimate."
        )
    if not 0 < probability < 1:
        raise UsageError(f"the probability of bounds lies between 0 and 1; got {probability}.")
    found = {}
    for name, quadratic in quadratics.items():
        if not quadratic.initial > quadratic.least:
            raise UsageError(
                f"the start of {name!r} has the least loss already: every level contains it, and d* is 0. Give another start, or a positive radius."
            )
        if draws and quadratic.dim > LARGEST:
            raise UsageError(
                f"{name!r} has {quadratic.dim:,} dimensions; subspaces are simulated in up to {LARGEST:,}, for each takes D x D numbers. Leave the simulation out (--draws 0)."
            )
        if isotropic:
            quadratic = dataclasses.replace(
                quadratic, start=np.full(quadratic.dim, quadratic.radius / math.sqrt(quadratic.dim))
            )
        # each well has draws of its own: one more shifts none
        one = _estimate(
            quadratic, asked, isotropic, absolute, draws, polar_draws, probability, child_seed(seed, f"well {name}")
        )
        found[name] = {field.name: getattr(one, field.name) for field in dataclasses.fields(one)}
    result = Well(
        question={},
        provenance={"seed": seed, "dtype": "float64", "device": "cpu"},
        isotropic=isotropic,
        absolute=absolute,
        asked=asked,
        draws=draws,
        polar_draws=polar_draws,
        probability=probability,
        wells=found,
    )
    return dataclasses.replace(result, warnings=tuple(_warnings(result)))


def _estimate(
    quadratic: Quadratic,
    asked: np.ndarray,
    isotropic: bool,
    absolute: bool,
    draws: int,
    polar_draws: int,
    probability: float,
    seed: int,
) -> Estimates:
    height = quadratic.initial - quadratic.least
    levels = asked if absolute else quadratic.least + asked * height
    for level in levels:
        quadratic.require(float(level))
    shares = (levels - quadratic.least) / height
    inside = np.array([bool(quadratic.inside(level)) for level in levels])
    every = inside  # and so does every start
    if isotropic:
        most = float(quadratic.values.max()) * quadratic.radius**2 / 2  # that a start has, but for rounding
        every = inside & (most <= (levels - quadratic.least) * (1 + quadratic.dim * EPS))
    highest, lowest = max([EASIEST, *shares[inside & ~every]]), min(float(shares[-1]), EASIEST)
    fine = quadratic.least + height * np.geomspace(highest, lowest / BEYOND, LEVELS)
    paper, sharp = (
        np.array([bound(level) for level in levels]) for bound in (quadratic.paper_bound, quadratic.threshold)
    )
    fine_paper, fine_sharp = (
        np.array([bound(level) for level in fine]) for bound in (quadratic.paper_bound, quadratic.threshold)
    )
    own = [quadratic.polar(level, draws=polar_draws, seed=seed)[:2] for level in levels]
    bounds = [_certified(quadratic.dim, value, error, probability) for value, error in own]  # they are of one cone
    polar = own
    if isotropic:
        polar = [
            (0.0, 0.0) if done else _polar_of_drawn(quadratic, level, polar_draws, seed)
            for level, done in zip(levels, every, strict=True)
        ]
    # all that is needed lies below the largest paper bound, and a little more
    far = min(1.1 * float(fine_paper.max()) + 1, quadratic.dim)
    even = quadratic.dim * np.sin(np.linspace(0, math.asin(math.sqrt(far / quadratic.dim)), DIMS)) ** 2
    few = np.geomspace(1, max(even[1], 1), FEW)
    dims = np.unique(np.rint([*even, *few]).astype(int).clip(0, quadratic.dim))
    least = np.empty((0, quadratic.dim + 1))  # (n, D + 1)
    if draws:
        least = quadratic.simulate(draws, seed, isotropic=isotropic)
    return Estimates(
        dim=quadratic.dim,
        radius=quadratic.radius,
        least=quadratic.least,
        initial=quadratic.initial,
        negative=quadratic.negative,
        levels=levels,
        inside=inside,
        paper=paper,
        sharp=sharp,
        polar=np.array([value for value, _ in polar]),
        polar_error=np.array([error for _, error in polar]),
        thresholds=np.where(every, 0, np.stack([_first(least, level) for level in levels], axis=1)),
        certified={
            name: np.where(every & name.endswith("hit"), 0.0, np.where(inside, np.nan, [row[name] for row in bounds]))
            for name in bounds[0]
        },
        fine=fine,
        fine_paper=fine_paper,
        fine_sharp=fine_sharp,
        dims=dims,
        success=np.stack([(least[:, dims] <= level).mean(0) for level in fine]) if draws else np.empty((len(fine), 0)),
        predicted=np.asarray(quadratic.least_on(dims)),
        course=np.stack([least[:, dims].mean(0), *np.quantile(least[:, dims], BAND[::2], axis=0)])
        if draws
        else np.empty((3, 0)),
    )


def _polar_of_drawn(quadratic: Quadratic, level: float, draws: int, seed: int) -> tuple[float, float]:
    """Mean d* of isotropic starts and its standard error: each draw is projected onto the cone of a start of its own."""
    random = np.random.default_rng(child_seed(seed, "starts of a well"))

    def project(g: np.ndarray) -> np.ndarray:
        directions = random.standard_normal(g.shape)
        starts = quadratic.radius * directions / np.linalg.norm(directions, axis=1, keepdims=True)
        return np.concatenate(
            [
                dataclasses.replace(quadratic, start=start).project(row[None], level)
                for start, row in zip(starts, g, strict=True)
            ]
        )

    found = cones.statistical_dimension(project, quadratic.dim, draws=draws, seed=child_seed(seed, "cones of a well"))
    return quadratic.dim - found.value, found.error


def _first(least: np.ndarray, level: float) -> np.ndarray:
    """The smallest d (n,) with L_min(d) <= level, from curves (n, D + 1): those never rise, and end at the least loss."""
    return np.asarray((least <= level).argmax(1))


def _certified(dim: int, value: float, error: float, probability: float) -> dict[str, float]:
    """By theorem and side, the last d of a certain miss or the first of a certain hit, from d* = `value` ± `error`; NaN where there is none."""
    dims = np.arange(dim + 1)
    found = {}
    for side, shift in (("miss", -SAFE), ("hit", SAFE)):
        # a smaller d* is a larger cone: it makes misses harder to prove, and a larger d* hits
        size = dim - min(max(value + shift * error, 0.0), float(dim))
        for bound in certificates(dim, dims, statistical_dimension=size):
            if bound.proves == side:
                reached = bound.reaches(probability)
                found[f"{bound.theorem}: {side}"] = math.nan if reached is None else float(reached)
    return found


def _warnings(result: Well) -> list[str]:
    """Each a sentence."""
    notes = []
    for name in result.names:
        one = result.of(name)
        if one.negative:
            notes.append(f"{name}: {one.negative}.")
        mixed, inside = (
            ", ".join(f"{level:g}" for level in result.asked[rows]) for rows in (one.mixed, one.inside & ~one.mixed)
        )
        if mixed:
            notes.append(
                f"{name}: at {mixed} the set holds the start of mean loss, whose d* is 0, but not every start at its distance: polar and simulated are of the drawn ones, of which closed forms and bounds say nothing."
            )
        if inside:
            start = "every start lies" if result.isotropic else "the start lies"
            notes.append(f"{name}: {start} inside the set at {inside}: the cone is the whole space, and d* is 0.")
        if one.dim == 1 and not one.inside.all():
            notes.append(
                f"{name}: in one dimension the line meets every set and the point at the start none: the threshold is 1 and d* is 1/2. The closed forms are of many dimensions."
            )
        for row in np.flatnonzero(np.abs(one.deviations) > SAFE):
            notes.append(
                f"{name}: at {result.asked[row]:g} the sharp form is {_tenth(one.sharp[row])} and the simulation {_with_error(one.simulated[row], one.simulated_error[row])}: the form is asymptotic in D; believe the simulation."
            )
    return notes


# -- a spectrum of the user's own -------------------------------------------------------------------------------------


def read_eigenvalues(path: Path) -> np.ndarray:
    """All D eigenvalues (D,) in a file: .npy, .npz with one array, .txt with numbers, or the .json of a `spectrum` that holds every one.

    Nothing is unpickled. Raises UsageError where there is no such file, or it holds a part of a spectrum; UnsafeInputError where it cannot be read.
    """
    readers: dict[str, Callable[[Path], Any]] = {
        ".npy": partial(np.load, allow_pickle=False),
        ".npz": _only_array,
        ".txt": _all_in_text,
        ".json": _all_of,
    }
    if not path.is_file():
        raise UsageError(f"there is no file {path}. Give one of eigenvalues: {', '.join(readers)}.")
    if path.suffix.lower() not in readers:
        raise UsageError(f"cannot read eigenvalues from {path.name!r}: the name must end in {', '.join(readers)}.")
    try:
        found = np.asarray(readers[path.suffix.lower()](path))
        # text, records and complex numbers are no eigenvalues of a symmetric matrix
        values = found.astype(float, casting="safe" if found.dtype.kind in "fiu" else "no")
    except (ValueError, TypeError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise UnsafeInputError(f"{path} holds no plain numbers ({' '.join(str(error).split())}). Write the eigenvalues with numpy.save or numpy.savetxt.") from None  # fmt: skip
    if not values.size:
        raise UsageError(f"{path} must hold at least one eigenvalue; got none.")
    if values.ndim > 2 or (values.ndim == 2 and 1 not in values.shape):
        kind = "a matrix" if values.ndim == 2 else "an array"
        raise UsageError(f"{path} must hold a list of eigenvalues; this is {kind} {values.shape}: give its eigenvalues, numpy.linalg.eigvalsh of it.")  # fmt: skip
    if not np.isfinite(values).all():
        raise UsageError(f"{path} must hold finite eigenvalues only; got {values.size:,}, of which {np.sum(~np.isfinite(values)):,} are not finite.")  # fmt: skip
    return values.reshape(-1)


def _all_in_text(path: Path) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a file without numbers, which is refused
        return np.loadtxt(path, ndmin=1)


def _only_array(path: Path) -> np.ndarray:
    with np.load(path, allow_pickle=False) as archive:
        if len(archive.files) != 1:
            raise UsageError(
                f"{path} must hold one array, that of the eigenvalues; got {', '.join(archive.files) or 'none'}."
            )
        return np.asarray(archive[archive.files[0]])


def _all_of(path: Path) -> np.ndarray:
    """Of a stored spectrum."""
    from landscape.analysis.answers import load

    if not path.read_bytes().lstrip().startswith(b"{"):
        raise UsageError(
            f"{path} is not an answer of `landscape spectrum`, which is the only .json that is read here. Write a list of eigenvalues with numpy.save or numpy.savetxt."
        )
    result = load(path)
    if not isinstance(result, Spectrum):
        raise UsageError(f"{path} is a {result.kind} result; eigenvalues are in those of `landscape spectrum`.")
    held = max(result.counted, result.values, key=len)
    if len(held) < result.dim:
        raise UsageError(
            f"{path} holds {len(held):,} of {result.dim:,} eigenvalues, and d* depends on all of them. Ask for all (landscape spectrum RUN --top {result.dim}), or use `landscape width RUN`, which estimates with what it can see."
        )
    return held
