"""Robustness to perturbed rewinding: does training end in one linearly connected mode when it starts as far from the rewound weights as the next pruning step goes?

Letters: D parameters, L levels, E draws, P pairs of ends, r radius.

    d_L         |m_L w_tau - m_{L+1} w_tau|, the norm of the rewound weights that the next pruning deletes
    perturbed   a run from a start at distance r = factor d_L of m_L w_tau, within the axial subspace of m_L
    sibling     a run from m_L w_tau itself, with SGD noise of its own: data order, augmentation, dropout
    rho_L       the robust radius: the largest r tried up to which the barrier between the two keeps below the threshold

Four barriers stand beside each other, all of the same definition and on the same rows:

    perturbed   between a perturbed run and the sibling of its draw: another start and other noise
    original    between a perturbed run and the level's own solution w^(L)
    noise       between a sibling and w^(L): other noise alone, the plain stability of the level
    successive  between w^(L) and w^(L+1): another start (the projected one), another subspace

A draw is a direction with two noises, the sibling's and the perturbed run's; at all radii it is the same direction and the same noises. A barrier over draws is their mean;
its interval joins that over rows (paired bootstrap, whose rows all draws share) with that over draws (Student's t, from two draws on). A run that ends at chance is not robust,
whatever its barrier. rho_L is found by bisection in log r; what lies between the largest radius that surely keeps below the threshold and the smallest that surely does not is undecided.

Sources: Paul et al. 2023, "Unmasking the lottery ticket hypothesis" (robustness to perturbations of length d_L); Frankle et al. 2020 (stability, its threshold of 2 points).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from scipy.stats import t as student
from torch import Tensor

from landscape.analysis.barriers import (  # fmt: skip
    DEFAULT_POLICY,
    NEAR_CHANCE,
    POLICIES,
    UNNEEDED,
    End,
    Hills,
    check_threshold,
    decide,
    hills,
    told_threshold,
)
from landscape.analysis.styles import BLACK, BLUE, CYCLE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, heading
from landscape.errors import LandscapeError, UsageError, unknown
from landscape.masks import Mask
from landscape.objectives import Objective, dtype_name
from landscape.perturbations import KINDS, distance, perturbed
from landscape.results import Result
from landscape.seeds import child_seed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from plotly.graph_objects import Figure

COMPARED = ("perturbed", "original", "noise", "successive")
THRESHOLD = NEAR_CHANCE  # Frankle et al. 2020: what is below counts as stable
REACH = 8.0  # factors are looked for between 1/8 and 8: d_L is a third to a half of the norm of the weights, so 8 d_L leaves little of the start
FINE = 1.25  # bisection ends where neighbouring radii differ by less than this factor: draws move rho_L by more
POINTS = 11  # of a path, ends included, as in the table of section 1.2; a hump of a training is wider than a tenth of the path
SURE = 0.975  # quantile of two-sided 95% intervals
# of the pairs: what is compared at which level (its row), with which kind of perturbation (none: ""), at which r / d_L (none: 0); the curve's values at both ends, their
# L2 distance, and whether an end is at chance, not finite or diverged
COLUMNS = ("compared", "level", "kind", "draw", "factor", "first", "last", "distance", "degenerate")

Moving = Literal["all", "prunable"]
Decision = Literal["yes", "no", "undecided"]


@dataclass(frozen=True, eq=False)
class Ticket:
    """A level of iterative pruning, before anything is perturbed."""

    number: int
    mask: Mask  # m_L
    deleted: Mask  # m_L - m_{L+1}
    rewound: Tensor  # (D,) m_L w_tau: exact zeros outside the mask
    solution: End  # w^(L)
    successor: End | None  # w^(L+1); None after the last level


@dataclass(frozen=True, eq=False)
class Child:
    """A training that is asked for."""

    name: str  # equal where and only where level, start and noise are
    ticket: Ticket
    point: Tensor  # (D,) where it starts
    noise: int  # seed of the order of the rows, augmentation and dropout


@dataclass(frozen=True)
class Barred:
    """A barrier over draws."""

    value: float
    low: float
    high: float
    degenerate: bool  # an end at chance or not finite among them

    def keeps(self, threshold: float) -> bool:
        """Whether it is below the threshold, by its value."""
        return not self.degenerate and self.value < threshold

    def decided(self, threshold: float) -> Decision:
        """Whether it is below the threshold, by its interval. Ends at chance are not connected by their small barrier."""
        if self.degenerate or math.isnan(self.value):
            return "no"
        found: Decision = decide(self.low, self.high, threshold)  # type: ignore[assignment]
        return found


@dataclass(frozen=True)
class Radius:
    """A robust radius, in units of d_L."""

    value: float  # NaN where the level itself is at chance
    sign: str  # "": a larger radius failed; ">": none did; "<": the smallest tried failed
    sure: float  # the largest radius that surely keeps below the threshold, with all smaller ones; 0 where none does
    lost: float  # the smallest that surely does not; infinity where none does


@dataclass(frozen=True, kw_only=True)
class Robustness(Result):
    """Barriers of perturbed and unperturbed runs level by level, and robust radii."""

    curve: str  # what the barriers are of: "test error", ...
    threshold: float  # errors in [0, 1]
    perturbations: list[str]  # kinds
    draws: int  # E
    moving: str  # all: every survivor is perturbed; prunable: of them the weights that could be pruned
    levels: np.ndarray  # (L,) numbers
    survivors: np.ndarray  # (L,) of the weights that could be pruned
    prunable: int  # how many these are
    distances: np.ndarray  # (L,) d_L
    norms: np.ndarray  # (L,) |m_L w_tau|
    pairs: dict[str, np.ndarray]  # (P,) each, see COLUMNS
    barriers: dict[
        str, np.ndarray
    ]  # (3, P) by BatchNorm policy, the first the main one: value, and its interval over rows
    points: int  # of a path
    rows: int  # of the curve

    # -- reading ------------------------------------------------------------------------------------------------------

    @property
    def densities(self) -> np.ndarray:
        """Survivors among the prunable weights (L,)."""
        shares: np.ndarray = self.survivors / self.prunable
        return shares

    @cached_property
    def policy(self) -> str:
        """The main BatchNorm policy."""
        return next(iter(self.barriers))

    def factors(self, kind: str, row: int | None = None) -> list[float]:
        """The radii tried, in units of d_L, ascending; of one level or of any."""
        rows = self._select("perturbed", kind)
        if row is not None:
            rows &= self.pairs["level"] == row
        return sorted(set(self.pairs["factor"][rows].tolist()))

    def shown(self, kind: str) -> float:
        """The radius nearest to d_L that every level has: what the paper perturbs by, as a rule."""
        common = set(self.factors(kind))
        for row in range(len(self.levels)):
            common &= set(self.factors(kind, row))
        return min(common, key=lambda factor: abs(math.log(factor)))

    def barred(self, compared: str, row: int, kind: str = "", factor: float = 0.0, policy: str = "") -> Barred | None:
        """One barrier over draws; None where it was not measured. Raises UsageError for unknown names."""
        if compared not in COMPARED:
            raise unknown("comparison", compared, COMPARED)
        rows = self._select(compared, kind) & (self.pairs["level"] == row) & (self.pairs["factor"] == factor)
        if not rows.any():
            return None
        most = 1.0 if self.curve.endswith("error") else math.inf
        return _over_draws(self.barriers[policy or self.policy][:, rows], self.pairs["degenerate"][rows], most)

    def robust(self, kind: str, row: int) -> Radius:
        """The robust radius of a level."""
        if self._lost(row):
            return Radius(math.nan, "", 0.0, math.inf)
        return _radius(self._tried(kind, row), self.threshold)

    def another(self, kind: str, row: int) -> float | None:
        """The radius, in units of d_L, at which one more training tells most about the robust one; None where it is known as well as asked."""
        if self._lost(row):
            return None
        tried = self._tried(kind, row)
        factors = sorted(tried)
        kept = _leading(factors, lambda factor: tried[factor].keeps(self.threshold))
        if not kept:
            return factors[0] / 2 if factors[0] / 2 >= 1 / REACH else None
        if len(kept) == len(factors):
            return 2 * factors[-1] if 2 * factors[-1] <= REACH else None
        inside, outside = kept[-1], factors[len(kept)]
        unsure = all(tried[factor].decided(self.threshold) == "undecided" for factor in (inside, outside))
        # between two radii of which nothing is sure, another one is not sure either
        return None if outside / inside <= FINE or unsure else math.sqrt(inside * outside)

    def _tried(self, kind: str, row: int) -> dict[float, Barred]:
        """The perturbed barriers of a level by radius."""
        found = {factor: self.barred("perturbed", row, kind, factor) for factor in self.factors(kind, row)}
        return {factor: one for factor, one in found.items() if one is not None}

    def _select(self, compared: str, kind: str) -> np.ndarray:
        found: np.ndarray = (self.pairs["compared"] == compared) & (self.pairs["kind"] == kind)
        return found

    def _lost(self, row: int) -> bool:
        """Whether the level itself is at chance: nothing is robust there."""
        plain = self.barred("noise", row)
        return plain is None or plain.degenerate

    def _series(self, compared: str, kind: str = "", policy: str = "") -> list[Barred | None]:
        factor = self.shown(kind) if kind else 0.0
        return [self.barred(compared, row, kind, factor, policy) for row in range(len(self.levels))]

    def ends(self, row: int) -> float:
        """The curve's value at w^(L), by the main policy."""
        own = (self.pairs["compared"] != "perturbed") & (self.pairs["level"] == row)
        known = self.pairs["first"][own & np.isfinite(self.pairs["first"])]
        return float(known[0]) if len(known) else math.nan

    # -- words --------------------------------------------------------------------------------------------------------

    def summary(self) -> str:
        """See Result."""
        task = self.provenance.get("task")
        parts = [f"{words} {self._finding(self._series(compared, kind))}" for compared, kind, words in self._lines()]
        many = f"{len(self.levels)} level{'s' * (len(self.levels) != 1)}"
        text = f"{f'{task}: ' if task else ''}{self.curve.replace(' ', '-')} barriers of {many}, dense to sparse: {'; '.join(parts)}"
        radii = [f"{kind} {self._range(kind)}" for kind in self.perturbations if len(self.factors(kind)) > 1]
        return text + (f"; robust radius in d_L: {', '.join(radii)}" if radii else "") + "."

    def _lines(self) -> list[tuple[str, str, str]]:
        """What is compared in the main picture, in which kind, and its name."""
        lines = [("perturbed", kind, f"{kind} at {self._units(self.shown(kind))}") for kind in self.perturbations]
        return [*lines, ("noise", "", "noise only"), ("successive", "", "successive levels")]

    def _finding(self, series: Sequence[Barred | None]) -> str:
        known = [found for found in series if found is not None]
        if not known:
            return "not measured"
        kept = sum(found.keeps(self.threshold) for found in known)
        ends = " to ".join(dict.fromkeys(self._number(found.value) for found in (known[0], known[-1])))
        return f"{ends}{self._unit}, below {self._number(self.threshold)}{self._unit} at {kept} of {len(known)}"

    def _range(self, kind: str) -> str:
        radii = [self.robust(kind, row) for row in range(len(self.levels))]
        known = [radius for radius in radii if not math.isnan(radius.value)]
        if not known:
            return "unknown"
        words = [_radius_words(pick(known, key=lambda radius: radius.value)) for pick in (min, max)]
        return " to ".join(dict.fromkeys(words))

    @property
    def _scale(self) -> float:
        return 100.0 if self.curve.endswith("error") else 1.0

    @property
    def _unit(self) -> str:
        return " pp" if self.curve.endswith("error") else ""

    def _number(self, value: float) -> str:
        if math.isnan(value):
            return "undefined"
        return f"{self._scale * value:.1f}" if self._unit else f"{value:.3g}"

    @staticmethod
    def _units(factor: float) -> str:
        return "d_L" if factor == 1 else f"{factor:.3g} d_L"

    def caption(self) -> str:
        """See Result."""
        rows = self.rows
        moved = "all survivors" if self.moving == "all" else "those survivors that could be pruned"
        said = [
            f"Barriers of the {self.curve} between ends of training ({rows:,} {self.curve.split()[0]} rows): the largest excess over the straight line between the end values (linear baseline) on {self.points} evenly spaced points of the straight path.",
            "Perturbed: a run from a start at distance r of the rewound weights, within the axial subspace of the level's mask, against a run from the rewound weights themselves; both have SGD noise of their own. "
            f"d_L is the norm of the rewound weights that the next pruning deletes; {moved} are perturbed" + (" (random-mask: the prunable ones)." if "random-mask" in self.perturbations and self.moving == "all" else "."),
            "Original (in the table): the perturbed run against the level's own solution. Noise only: a run from the rewound weights against that solution. Successive: the solutions of a level and of the next.",
        ]  # fmt: skip
        shared = self.provenance.get("noise")
        if shared:
            said.append(
                "The levels' own trainings share one noise."
                if shared == "same"
                else "Each level's own training has a noise of its own."
            )
        if self.policy != UNNEEDED:
            said.append(f"BatchNorm {self.policy}: {POLICIES[self.policy]}.")
        over = "rows (paired bootstrap)" + (
            f" and {self.draws} draws (Student's t)"
            if self.draws > 1
            else "; one draw, so nothing tells how much draws differ"
        )
        said.append(
            f"Bars: 95% over {over}. Seed {self.provenance.get('seed', 0)}. Dashed line: the threshold, {self._number(self.threshold)}{self._unit}."
        )
        if any(len(self.factors(kind)) > 1 for kind in self.perturbations):
            said.append(
                "Robust radius: the largest tried r up to which the perturbed barrier keeps below the threshold. Bars there: from the largest r that surely keeps below it to the smallest that surely does not; triangles where none tried does. No point: the smallest r tried failed."
            )
        if self.pairs["degenerate"].any():
            said.append("Crosses at the foot: an end at chance or not finite; such a run counts as not connected.")
        return " ".join(said)

    def table(self) -> list[tuple[str, ...]]:
        """See Result: a row a level and kind."""
        unit = "pp" if self._unit else self.curve
        head = [
            "level",
            "density",
            "d_L",
            "d_L / |w|",
            f"{self.curve} of w(L){' (%)' if self._unit else ''}",
            "kind",
            "r / d_L",
        ]
        policies = list(self.barriers)
        for compared in COMPARED:
            head += [f"{compared} ({unit}{f', {policy}' if len(policies) > 1 else ''})" for policy in policies]
        found = [(*head, "distance perturbed", "distance noise", "rho / d_L", "rho / |w|")]
        for row, number in enumerate(self.levels):
            for kind in self.perturbations:
                factor = self.shown(kind)
                cells = []
                for compared in COMPARED:
                    own = (kind, factor) if compared in ("perturbed", "original") else ("", 0.0)
                    cells += [self._cell(self.barred(compared, row, *own, policy)) for policy in policies]
                share = self.distances[row] / self.norms[row]
                radius = self.robust(kind, row)
                many = len(self.factors(kind, row)) > 1
                found.append((
                    str(number), f"{self.densities[row]:.4g}", f"{self.distances[row]:.4g}", f"{share:.3g}", self._number(self.ends(row)), kind, f"{factor:.3g}", *cells,
                    self._apart("perturbed", row, kind, factor), self._apart("noise", row), _radius_words(radius) if many else "-", _radius_words(radius, share) if many else "-",
                ))  # fmt: skip
        return found

    def _cell(self, found: Barred | None) -> str:
        if found is None:
            return "-"
        bar = f" [{self._number(found.low)}, {self._number(found.high)}]"
        return f"{self._number(found.value)}{bar}{' (at chance)' if found.degenerate else ''}"

    def _apart(self, compared: str, row: int, kind: str = "", factor: float = 0.0) -> str:
        rows = self._select(compared, kind) & (self.pairs["level"] == row) & (self.pairs["factor"] == factor)
        return f"{self.pairs['distance'][rows].mean():.4g}" if rows.any() else "-"

    # -- pictures -----------------------------------------------------------------------------------------------------

    def panels(self) -> tuple[str, ...]:
        """See Result."""
        swept = [kind for kind in self.perturbations if len(self.factors(kind)) > 1]
        return ("density", *(f"radius {kind}" for kind in swept), *(("robust radius",) if swept else ()))

    def plot(self, ax: Axes, panel: str = "") -> None:
        """See Result."""
        panel = panel or "density"
        if panel not in self.panels():
            raise unknown("panel", panel, self.panels())
        if panel == "density":
            self._plot_density(ax)
        elif panel == "robust radius":
            self._plot_robust(ax)
        else:
            self._plot_radius(ax, panel.removeprefix("radius "))

    def _plot_density(self, ax: Axes) -> None:
        for name, look, series in self._looks():
            self._draw(ax, self.densities * look["shift"], series, name, look)
        self._mark_densities(ax)
        self._mark_barriers(ax)
        heading(ax, f"Barriers between ends of training ({self.curve})", columns=2)

    def _plot_radius(self, ax: Axes, kind: str) -> None:
        for row, (colour, dash, marker) in enumerate(self._level_looks()):
            factors = self.factors(kind, row)
            series = [self.barred("perturbed", row, kind, factor) for factor in factors]
            look = {"color": colour, "linestyle": dash, "marker": marker, "shift": 1.0}
            self._draw(
                ax, np.array(factors), series, f"density {self.densities[row]:.2g}", look, bars=len(self.levels) <= 5
            )
        ax.set_xscale("log")
        _plain(ax.xaxis)
        factors = self.factors(kind)
        ax.set_xlim(factors[0] / 1.2, factors[-1] * 1.2)
        ax.set_xlabel("radius of the perturbation / d_L")
        self._mark_barriers(ax)
        heading(ax, f"Perturbed barrier over the radius ({kind})", columns=4)

    def _plot_robust(self, ax: Axes) -> None:
        swept = [kind for kind in self.perturbations if len(self.factors(kind)) > 1]
        for place, kind in enumerate(swept):
            look: dict[str, Any] = {
                "color": _KIND_COLOURS[place],
                "marker": _MARKERS[place],
                "markersize": 4,
                "linewidth": 1,
            }
            x = self.densities * _beside(place, len(swept))
            radii = [self.robust(kind, row) for row in range(len(self.levels))]
            for row, radius in enumerate(radii):
                if not math.isnan(radius.value):
                    self._draw_zone(ax, x[row], radius, self.factors(kind, row), _KIND_COLOURS[place])
            # where the smallest radius tried failed there is none to draw: the open end of the bar stands alone
            values = np.array([math.nan if radius.sign == "<" else radius.value for radius in radii])
            ax.plot(x, values, label=f"{kind}: rho / d_L", **look)
            shares = values * self.distances / self.norms
            ax.plot(x, shares, linestyle=":", markerfacecolor="white", label=f"{kind}: rho / |w|", **look)
        ax.axhline(1, color=GREY, linewidth=0.8, linestyle="--")
        ax.set_yscale("log")
        _plain(ax.yaxis)
        ax.margins(y=0.12)
        ax.set_ylabel("robust radius")
        self._mark_densities(ax)
        heading(ax, f"Robust radius: barrier below {self._number(self.threshold)}{self._unit}", columns=2)

    @staticmethod
    def _draw_zone(ax: Axes, x: float, radius: Radius, tried: Sequence[float], colour: str) -> None:
        """From the largest radius that surely keeps below the threshold to the smallest that surely does not; triangles where there is none."""
        low = radius.sure or tried[0] / 1.3
        high = radius.lost if math.isfinite(radius.lost) else tried[-1] * 1.3
        ax.plot([x, x], [low, high], color=colour, linewidth=4, alpha=0.3, solid_capstyle="butt")
        for end, is_open, mark in ((low, not radius.sure, "v"), (high, math.isinf(radius.lost), "^")):
            if is_open:
                ax.plot([x], [end], marker=mark, color=colour, alpha=0.5, markersize=5)

    def _draw(
        self,
        ax: Axes,
        places: np.ndarray,
        series: Sequence[Barred | None],
        name: str,
        look: Mapping[str, Any],
        bars: bool = True,
    ) -> None:
        """A line of barriers with their intervals; ends at chance as crosses at the foot."""
        sound = [(x, one) for x, one in zip(places, series, strict=True) if one is not None and not one.degenerate]
        style = {
            "color": look["color"],
            "marker": look["marker"],
            "linestyle": look["linestyle"],
            "markersize": 4,
            "linewidth": 1.3,
        }
        x, values, low, high = (np.array(column) for column in zip(*((x, one.value, one.low, one.high) for x, one in sound), strict=True)) if sound else [np.empty(0)] * 4  # fmt: skip
        reach = self._scale * np.maximum(np.stack([values - low, high - values]), 0)
        ax.errorbar(
            x,
            self._scale * values,
            yerr=np.nan_to_num(reach) if bars and len(x) else None,
            label=name,
            capsize=2,
            elinewidth=0.8,
            **style,
        )
        lost = [x for x, one in zip(places, series, strict=True) if one is not None and one.degenerate]
        ax.plot(lost, np.full(len(lost), 0.03), "x", color=look["color"], transform=ax.get_xaxis_transform())

    def _looks(self) -> Iterator[tuple[str, dict[str, Any], list[Barred | None]]]:
        """The lines of the main picture: name, look, barriers (L,)."""
        looks = [(colour, "-", marker) for colour, marker in zip(_KIND_COLOURS, _MARKERS, strict=True)]
        lines = self._lines()
        looks = [*looks[: len(self.perturbations)], (BLUE, "--", "o"), (GREY, ":", "s")]
        for place, ((compared, kind, name), (colour, dash, marker)) in enumerate(zip(lines, looks, strict=True)):
            look = {"color": colour, "linestyle": dash, "marker": marker, "shift": _beside(place, len(lines))}
            yield (f"perturbed: {name}" if kind else name), look, self._series(compared, kind)

    def _level_looks(self) -> list[tuple[str, str, str]]:
        """Colour, dash and marker of each level, from dense to sparse."""
        import matplotlib as mpl
        from matplotlib.colors import to_hex

        many = len(self.levels)
        tones = mpl.colormaps["viridis"](np.linspace(0, 0.92, many))
        colours = CYCLE[:many] if many <= len(CYCLE) else [to_hex(tone) for tone in tones]
        return [(colour, ("-", "--", "-.", ":")[i % 4], "osD^vPX"[i % 7]) for i, colour in enumerate(colours)]

    def _mark_densities(self, ax: Axes) -> None:
        ax.set_xscale("log")
        _plain(ax.xaxis)
        ax.set_xlim(self.densities.max() * 1.25, self.densities.min() / 1.25)
        ax.set_xlabel("density: survivors / prunable weights (sparser →)")

    def _mark_barriers(self, ax: Axes) -> None:
        from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

        line = self._scale * self.threshold
        ax.axhline(line, color="#000000", linewidth=0.8, linestyle=(0, (5, 3)), zorder=1)
        ax.set_yscale("symlog", linthresh=line)  # linear up to the threshold, where noise is, and logarithmic beyond
        top = max(ax.get_ylim()[1], 2 * line)
        ticks = [0.0, line / 2, *(line * step * 10**power for power in range(4) for step in (1, 2.5, 5))]
        ax.yaxis.set_major_locator(FixedLocator([tick for tick in ticks if tick <= top]))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.set_ylim(-0.15 * line, 1.2 * top)
        ax.set_ylabel(f"barrier of the {self.curve}{' (pp)' if self._unit else ''}")

    def figure(self) -> Figure:
        """See Result."""
        import plotly.graph_objects as go

        from landscape.analysis.styles import interactive

        figure = go.Figure()
        dashes = {"-": "solid", "--": "dash", ":": "dot"}
        for name, look, series in self._looks():
            known = [(row, one) for row, one in enumerate(series) if one is not None]
            text = [
                f"level {self.levels[row]}, density {self.densities[row]:.3g}<br>{name}<br>{self._cell(one)}{self._unit}"
                for row, one in known
            ]
            figure.add_scatter(
                x=[self.densities[row] for row, _ in known], y=[self._scale * one.value for _, one in known], text=text, hoverinfo="text", name=name, mode="lines+markers",
                line={"color": look["color"], "dash": dashes[look["linestyle"]]},
                error_y={"symmetric": False, "array": [self._scale * max(one.high - one.value, 0) for _, one in known], "arrayminus": [self._scale * max(one.value - one.low, 0) for _, one in known]},
            )  # fmt: skip
        figure.add_hline(self._scale * self.threshold, line={"color": "#000000", "width": 1, "dash": "dash"})
        unit = " (pp)" if self._unit else ""
        interactive(figure, x="density: survivors / prunable weights", y=f"barrier of the {self.curve}{unit}")
        figure.update_xaxes(type="log", autorange="reversed")
        return figure


_KIND_COLOURS = (VERMILION, PURPLE, GREEN, ORANGE, SKY, BLACK)
_MARKERS = "oDv^PX"


def _beside(place: int, many: int) -> float:
    """A factor on the densities of a line, so that its bars do not cover those of others."""
    return float(1.03 ** (place - (many - 1) / 2))


def _plain(axis: Any) -> None:
    """Ticks of a logarithmic axis as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
    axis.set_minor_formatter(NullFormatter())


def _radius_words(radius: Radius, unit: float = 1.0) -> str:
    if math.isnan(radius.value):
        return "at chance"
    return f"{radius.sign}{' ' * bool(radius.sign)}{radius.value * unit:.3g}"


# -- numbers ----------------------------------------------------------------------------------------------------------


def _over_draws(found: np.ndarray, degenerate: np.ndarray, most: float) -> Barred:
    """The mean of barriers (3, E), each at most `most`, over draws, with the interval over rows, which the draws share, and that over draws joined in quadrature."""
    value, low, high = (float(one) for one in found.mean(axis=1))
    draws = found.shape[1]
    spread = 0.0
    if draws > 1:
        spread = float(student.ppf(SURE, draws - 1)) * float(found[0].std(ddof=1)) / math.sqrt(draws)
    middle, reach = (low + high) / 2, math.hypot((high - low) / 2, spread)
    # the excess is 0 at both ends, so no barrier is negative
    return Barred(value, max(middle - reach, 0.0), min(middle + reach, most), bool(degenerate.any()))


def _radius(tried: Mapping[float, Barred], threshold: float) -> Radius:
    """The robust radius of the barriers at some radii, each in units of d_L."""
    factors = sorted(tried)
    kept = _leading(factors, lambda factor: tried[factor].keeps(threshold))
    surely = _leading(factors, lambda factor: tried[factor].decided(threshold) == "yes")
    lost = [factor for factor in factors if tried[factor].decided(threshold) == "no"]
    sign = "<" if not kept else ">" if len(kept) == len(factors) else ""
    return Radius(kept[-1] if kept else factors[0], sign, surely[-1] if surely else 0.0, min(lost, default=math.inf))


def _leading(factors: Sequence[float], good: Callable[[float], bool]) -> list[float]:
    """The first of the factors, up to one that is not good."""
    count = next((i for i, factor in enumerate(factors) if not good(factor)), len(factors))
    return list(factors[:count])


# -- the measurement --------------------------------------------------------------------------------------------------


def robustness(
    train: Objective,
    test: Objective | None,
    tickets: Sequence[Ticket],
    grow: Callable[[Sequence[Child]], Sequence[End | None]],
    *,
    prunable: Mask,
    kinds: Sequence[str] = ("sphere",),
    draws: int = 1,
    factors: Sequence[float] = (1.0,),
    bisect: bool = False,
    moving: Moving = "all",
    threshold: float = THRESHOLD,
    points: int = POINTS,
    bn: str | Sequence[str] = DEFAULT_POLICY,
    seed: int = 0,
) -> Robustness:
    """Train from perturbed starts around the rewound point of each level, and measure the barriers between what comes out.

    grow: trains what is asked for, together, from the level's rewind step to its end within the level's mask, and returns the ends; None of a training that diverged.
        It is called once, and with `bisect` some times more.
    prunable: the weights that could be pruned; random-mask deletes among them.
    kinds: names of `perturbations.KINDS`; the sphere is the paper's.
    draws: directions a level and kind, each with noises of its own: one tells the trend over levels at the cost of two trainings a level.
    factors: radii in units of d_L; 1 is the length of the real step.
    bisect: look for the robust radius between 1/8 and 8 d_L, down to a factor of 1.25, or as far as the intervals decide.
    moving: all, since biases and norm parameters survive and so belong to the axial subspace; prunable leaves them at the rewound values.
    threshold: of the barrier, in the curve's own unit (errors in [0, 1]).
    bn: BatchNorm policies, the first the main one, by which radii are judged.

    Raises UsageError where names or numbers do not fit.
    """
    _check(tickets, kinds, draws, factors, moving, threshold, train.loss.classifies)
    gone = [ticket.deleted.tensor() for ticket in tickets]
    distances = [distance(ticket.rewound, one) for ticket, one in zip(tickets, gone, strict=True)]
    for ticket, d in zip(tickets, distances, strict=True):
        if not d > 0:
            raise UsageError(
                f"the next pruning of level {ticket.number} deletes nothing but zeros: d_L is 0. Leave this level out."
            )
    blocks = [entry.size for entry in prunable.layout.of("parameter")]
    siblings: dict[tuple[int, int], End | None] = {}
    pairs = _Pairs()

    def start(row: int, kind: str, draw: int, factor: float) -> Child:
        """The training of a perturbed start; of the sibling, where there is no kind."""
        ticket = tickets[row]
        noise = child_seed(seed, "robustness noise", ticket.number, draw, int(bool(kind)))
        if not kind:
            return Child(f"sibling-{ticket.number:03d}-draw-{draw}-seed-{seed}", ticket, ticket.rewound, noise)
        only = moving == "prunable" or kind == "random-mask"
        starts = perturbed(
            kind,
            ticket.rewound,
            (ticket.mask & prunable if only else ticket.mask).tensor(),
            factor * distances[row],
            seed=child_seed(seed, "robustness", ticket.number),
            draws=draw + 1,
            blocks=blocks,
            deleted=gone[row],
        )
        part = "-prunable" if moving == "prunable" else ""
        name = f"perturbed-{ticket.number:03d}-{kind}{part}-{factor:.9g}-draw-{draw}-seed-{seed}"
        return Child(name, ticket, starts[draw], noise)

    def measure(asked: Sequence[tuple[int, str, int, float]]) -> Robustness:
        """Train what is asked for, siblings before what is compared with them, and measure the new pairs."""
        for own, end in zip(asked, grow([start(*one) for one in asked]), strict=True):
            row, kind, draw, _ = own
            if kind:
                pairs.add("perturbed", own, siblings[row, draw], end)
                pairs.add("original", own, tickets[row].solution, end)
            else:
                siblings[row, draw] = end
                pairs.add("noise", own, tickets[row].solution, end)
        sound = [(one, other) for one, other in pairs.ends if one is not None and other is not None]
        if not sound and not pairs.barriers:
            raise LandscapeError("every training diverged, the unperturbed ones among them. Give levels that train.")
        pairs.take(hills(None if test else train, test, sound, points=points, bn=bn, statistics=train, seed=seed) if sound else None)  # fmt: skip
        return Robustness(
            question={},
            provenance={"dtype": dtype_name(train.dtype), "device": str(train.device), "seed": seed, "chunk": train.chunk},
            curve=pairs.curve,
            threshold=threshold,
            perturbations=list(kinds),
            draws=draws,
            moving=moving,
            levels=np.array([ticket.number for ticket in tickets]),
            survivors=np.array([(ticket.mask & prunable).size for ticket in tickets]),
            prunable=prunable.size,
            distances=np.array(distances),
            norms=np.array([float(ticket.rewound.cpu().double().norm()) for ticket in tickets]),
            pairs={name: np.array(column) for name, column in pairs.columns.items()},
            barriers={policy: np.array(bars).T for policy, bars in pairs.barriers.items()},
            points=points,
            rows=len((test or train).rows),
        )  # fmt: skip

    places = range(len(tickets))
    for row, ticket in enumerate(tickets):
        if ticket.successor is not None:
            pairs.add("successive", (row, "", 0, 0.0), ticket.solution, ticket.successor)
    answer = measure(
        [(row, "", draw, 0.0) for row in places for draw in range(draws)]
        + [(row, kind, draw, factor) for row in places for kind in kinds for draw in range(draws) for factor in factors]
    )
    while bisect:
        steps = [(row, kind, factor) for row in places for kind in kinds if (factor := answer.another(kind, row))]
        if not steps:
            break
        answer = measure([(row, kind, draw, factor) for row, kind, factor in steps for draw in range(draws)])
    return dataclasses.replace(answer, warnings=tuple(_warnings(answer)))


class _Pairs:
    """The pairs of ends measured so far, column by column, and those that wait."""

    def __init__(self) -> None:
        self.curve = ""
        self.policies: tuple[str, ...] = ()
        self.columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        self.barriers: dict[str, list[tuple[float, ...]]] = {}  # by policy: value, low, high of each
        self.ends: list[tuple[End | None, End | None]] = []

    def add(self, compared: str, own: tuple[int, str, int, float], first: End | None, second: End | None) -> None:
        """A pair to be measured; None is an end that diverged."""
        for name, value in zip(COLUMNS, (compared, *own), strict=False):
            self.columns[name].append(value)
        self.ends.append((first, second))

    def take(self, found: Hills | None) -> None:
        """The barriers of the pairs that wait, where both ends are there; of the others nothing is known but that they failed. None where that is all of them."""
        places = itertools.count()
        if found is not None:
            self.curve, self.policies = found.headline, found.policies
        for one, other in self.ends:
            numbers, bars = [math.nan, math.nan, math.nan, True], dict.fromkeys(self.policies, (math.nan,) * 3)
            if found is not None and one is not None and other is not None:
                k = next(places)
                curve = found.curves[found.policies[0]][self.curve][k]
                numbers = [float(curve[0]), float(curve[-1]), float(found.distance[k]), bool(found.degenerate[k])]
                parts = found.intervals.items()
                bars = {name: (float(x.value[k]), float(x.low[k]), float(x.high[k])) for name, x in parts}
            for name, number in zip(COLUMNS[-4:], numbers, strict=True):
                self.columns[name].append(number)
            for policy, bar in bars.items():
                self.barriers.setdefault(policy, []).append(bar)
        self.ends = []


def _warnings(found: Robustness) -> Iterator[str]:
    """What a reader must know before the numbers."""
    if found.curve.endswith("loss"):
        yield from told_threshold(found.threshold, found.curve)
    lost = [str(number) for row, number in enumerate(found.levels) if found._lost(row)]
    if lost:
        yield f"At chance or not finite without any perturbation: level{'s' * (len(lost) > 1)} {', '.join(lost)}. Nothing is robust there, and no radius is given."
    sound = np.array([not found._lost(row) for row in found.pairs["level"]])
    failed = (found.pairs["compared"] == "perturbed") & found.pairs["degenerate"] & sound
    if failed.any():
        many = int(failed.sum())
        yield f"{many} perturbed run{'s' * (many > 1)} ended at chance or diverged, which counts as not connected."
    back = []
    for kind in found.perturbations:
        for row, number in enumerate(found.levels):
            radius = found.robust(kind, row)
            if any(factor > radius.lost and one.decided(found.threshold) == "yes" for factor, one in found._tried(kind, row).items()):  # fmt: skip
                back.append(f"{number} ({kind})")
    if back:
        yield f"The barrier falls below the threshold again beyond a radius that failed, at level {', '.join(back)}: the robust radius is the first."


def _check(
    tickets: Sequence[Ticket],
    kinds: Sequence[str],
    draws: int,
    factors: Sequence[float],
    moving: str,
    threshold: float,
    classifies: bool,
) -> None:
    if not tickets:
        raise UsageError("no level is asked for. Name at least one.")
    for kind in kinds:
        if kind not in KINDS:
            raise unknown("perturbation", kind, KINDS)
    if not kinds or len(set(kinds)) < len(kinds):
        raise UsageError(f"give kinds of perturbations, each once; got {', '.join(kinds) or 'none'}.")
    if draws < 1:
        raise UsageError(f"at least 1 draw is needed; got {draws}.")
    if not factors or len(set(factors)) < len(factors) or not all(0 < factor < math.inf for factor in factors):
        raise UsageError(
            f"radii are positive multiples of d_L, each once; got {', '.join(f'{factor:g}' for factor in factors) or 'none'}."
        )
    if moving not in get_args(Moving):
        raise unknown("choice of what moves", moving, get_args(Moving))
    check_threshold(threshold, classifies)
