"""Instability: whether training from one state leads two runs that differ only in their SGD noise to linearly connected solutions.

Letters: D parameters, P pairs of children, C children of a state, R replicates, k the step of the state, T steps of the training.

    state     a run's point, optimiser moments and buffers at step k; of a pruned network within the subspace of its mask
    children  trained from one state to step T; they differ in the order of the rows and their augmentation, and in nothing else
    barrier   max over a of E(a) - ((1 - a) E(0) + a E(1)) on the straight path between two children: the instability of the state
    stable    the barrier is below a threshold, 2 points of error (Frankle et al. 2020)
    control   children trained for all T steps with the schedule begun anew, so that the state is told from the steps that remain

A barrier between children that know nothing is 0, and so is that between children which are one point: such a state is marked and never stable. Distance is no substitute for the barrier: children of a
stable state end up far from each other.

Where each pair of children says the same at 95% confidence (paired bootstrap over the rows), that is the answer, "yes" or "no". Where they differ, the mean barrier of the state decides, with an error of two parts: the spread
over replicates (initialisations), by Student's t, and the noise of the rows, which all pairs share, so that more replicates do not make it smaller. Else the answer is "undecided".

Sources: Frankle, Dziugaite, Roy, Carbin 2020, "Linear mode connectivity and the lottery ticket hypothesis", section 3 (instability, the 2% threshold, 3 x 3 replicates, the control); Paul et al. 2023, definition 2.3 (barrier).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from landscape.analysis.barriers import (  # fmt: skip
    DEFAULT_POLICY,
    DEFINITIONS,
    NEAR_CHANCE,
    POLICIES,
    UNNEEDED,
    End,
    decide,
    hills,
    told_threshold,
)
from landscape.analysis.styles import CYCLE, GREY, heading
from landscape.errors import UsageError, unknown
from landscape.functionals import standard_error
from landscape.objectives import Buffers, Objective, dtype_name
from landscape.results import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from plotly.graph_objects import Figure
    from torch import Tensor

    from landscape.masks import Mask

STABLE = NEAR_CHANCE  # of error: Frankle et al. 2020, section 3; the noise of their test errors is below it
KEPT = (
    "linear-baseline",
    "over-mean",
    "midpoint",
)  # definitions kept: ours, that of Frankle et al., and that of the authors' notebooks
TOLD = 3  # lines that the summary tells of
SURE = 1.96  # standard errors to either side of a decision


@dataclass(frozen=True, eq=False)
class Siblings:
    """A state and the ends of its children."""

    step: int  # k
    replicate: int
    start: Tensor  # (D,) the state's point, where the children began
    ends: Tensor  # (C, D)
    buffers: Sequence[Buffers]  # (C,) of the ends
    mask: Mask | None = None
    level: int = 0  # of iterative pruning
    density: float = 1.0  # share of the weights that survive
    control: bool = False  # trained for all T steps with the schedule begun anew
    fresh: bool = False  # the optimizer's moments start anew, as in the training of a pruned level, and are not those of the state


@dataclass(frozen=True, eq=False)
class State:
    """All replicates of one state: what a point of the curve is."""

    level: int
    density: float
    control: bool
    step: int
    rows: np.ndarray  # (n,) its pairs
    replicates: int
    stable: str  # yes, no, undecided, or degenerate: children at chance, not finite, or one point
    fresh: bool = False  # see Siblings

    @property
    def momentum(self) -> str:
        """What children begin with: at step 0 there are no moments; a schedule begun anew begins them anew."""
        return "-" if not self.step else "anew" if self.fresh or self.control else "kept"


@dataclass(frozen=True, kw_only=True)
class Instability(Result):
    """The barriers between children of states, pair by pair, and what they say of each state."""

    steps: int  # T
    points: int  # of a path, evenly spaced
    threshold: float  # of the headline's barrier
    headline: str  # the curve that decides
    policies: list[str]  # for BatchNorm statistics, the one that decides first
    varied: str  # all of the noise, order, or augmentation
    columns: dict[
        str, np.ndarray
    ]  # (P,) each: step, level, density, control, replicate, first, second (children), distance, angular, travelled, disagreement, degenerate, fresh
    barriers: dict[str, dict[str, dict[str, np.ndarray]]]  # (P,) by policy, curve, and definition; errors in [0, 1]
    ends: dict[str, dict[str, np.ndarray]]  # (P, 2) by policy and curve: the values at both ends
    bounds: dict[str, np.ndarray]  # (P, 2) by policy: 95% interval of the headline's barrier over the rows

    # -- numbers ------------------------------------------------------------------------------------------------------

    def value(self, curve: str | None = None, policy: str | None = None, definition: str = KEPT[0]) -> np.ndarray:
        """The barriers (P,) of the pairs.

        Raises UsageError for names that the answer does not have.
        """
        curve, policy = curve or self.headline, policy or self.policies[0]
        for kind, name, allowed in (
            ("BatchNorm policy", policy, self.policies),
            ("curve", curve, self.barriers[self.policies[0]]),
            ("definition", definition, KEPT),
        ):
            if name not in allowed:
                raise unknown(kind, name, allowed)
        return self.barriers[policy][curve][definition]

    def over(self, state: State, values: np.ndarray) -> tuple[float, float]:
        """Mean of values (P,) over the pairs of a state, and their standard deviation (0 of one)."""
        mine = values[state.rows]
        return float(mine.mean()), float(mine.std(ddof=1)) if len(mine) > 1 else 0.0

    def interval(self, state: State, policy: str | None = None) -> tuple[float, float]:
        """The 95% interval of a state's mean barrier of the headline, over replicates and rows."""
        policy = policy or self.policies[0]
        low, high = self.bounds[policy][state.rows].T
        value = self.value(policy=policy)[state.rows]
        replicate = self.columns["replicate"][state.rows]
        means = np.array([value[replicate == one].mean() for one in np.unique(replicate)])
        spread = SURE * float(standard_error(means)) if len(means) > 1 else 0.0
        mean = float(means.mean())
        return mean - math.hypot(spread, float((value - low).mean())), mean + math.hypot(
            spread, float((high - value).mean())
        )

    @cached_property
    def states(self) -> list[State]:
        """The states: by level, then the control after the rest, then by step."""
        at = self.columns
        keys = sorted(set(zip(at["level"].tolist(), at["control"].tolist(), at["step"].tolist(), strict=True)))
        found = []
        for level, control, step in keys:
            rows = np.flatnonzero((at["level"] == level) & (at["control"] == control) & (at["step"] == step))
            replicates = len(np.unique(at["replicate"][rows]))
            state = State(
                level, float(at["density"][rows[0]]), control, step, rows, replicates, "", bool(_fresh(at)[rows].any())
            )
            found.append(dataclasses.replace(state, stable=self._stable(state)))
        return found

    def _stable(self, state: State) -> str:
        """Whether a state is: what each of its pairs says by itself, where they agree, else what their mean says."""
        if self.columns["degenerate"][state.rows].any():
            return "degenerate"
        each = {decide(low, high, self.threshold) for low, high in self.bounds[self.policies[0]][state.rows]}
        return each.pop() if len(each) == 1 else decide(*self.interval(state), self.threshold)

    def line(self, *, level: int | None = None, step: int | None = None, control: bool = False) -> list[State]:
        """The states of one level by step, or of one step by level."""
        return [
            state
            for state in self.states
            if state.control == control and level in (None, state.level) and step in (None, state.step)
        ]

    def first_stable(self, level: int, control: bool = False) -> tuple[int | None, int | None]:
        """The last measured step that is not stable, None where all are, and the first from which on all are, None where the last is not."""
        before, first = _onset(self.line(level=level, control=control))
        return (None if before is None else before.step), (None if first is None else first.step)

    # -- words --------------------------------------------------------------------------------------------------------

    def summary(self) -> str:
        """See Result."""
        task = self.provenance.get("task")
        parts = [self._told(line) for line in self.lines[:TOLD]]
        if len(self.lines) > TOLD:
            parts.append(f"{len(self.lines) - TOLD} more lines in the table")
        first = self.states[0]
        pairs = len(first.rows) // first.replicates
        counts = f"{_count(first.replicates, 'replicate')} of {_count(pairs, 'pair')} a state"
        policy = "" if self.policies[0] == UNNEEDED else f", BatchNorm {self.policies[0]}"
        return f"{f'{task}: ' if task else ''}{self.headline} barrier between children (linear baseline{policy}; {counts}; stable below {self._amount(self.threshold)}): {'; '.join(parts)}."

    def _told(self, line: list[State]) -> str:
        """The barrier at the start of a line, and from where on it is stable."""
        before, first = _onset(line)
        if first is None:
            last = line[-1]
            found = {"no": "not stable"}.get(last.stable, last.stable)
            if len(line) > 1:
                found += f" at {self._place(last)}, the last"
        else:
            found = "stable" if len(line) == 1 else f"stable from {self._place(first)} on"
            if before is not None and before.stable != "no":
                found += f" ({before.stable} at {self._place(before)})"
        name = self._name(line[0]) if len(self.lines) > 1 else ""
        return f"{f'{name}: ' if name else ''}{self._barrier(line[0])} at {self._place(line[0])}, {found}"

    def _place(self, state: State) -> str:
        return f"density {state.density:.3g}" if self._by_density else f"k = {state.step:,}"

    def _name(self, state: State) -> str:
        """What all states of its line share."""
        return ", ".join(filter(None, (self._key(state), "schedule begun anew" if state.control else "")))

    def _key(self, state: State) -> str:
        """What lines differ in, but for the control."""
        if self._by_density:
            return f"k = {state.step:,}"
        return f"density {state.density:.3g}" if self._levels > 1 else ""

    def named(self, state: State) -> str:
        """A state in words."""
        level = f"level {state.level}" if self._levels > 1 else ""
        return ", ".join(filter(None, (level, f"k = {state.step:,}", "schedule begun anew" if state.control else "")))

    def _amount(self, value: float, curve: str | None = None) -> str:
        if math.isnan(value):
            return "undefined"
        return f"{100 * value:.1f} pp" if (curve or self.headline).endswith("error") else f"{value:.3g}"

    def _barrier(self, state: State, policy: str | None = None, curve: str | None = None) -> str:
        """Mean and standard deviation over the pairs."""
        mean, spread = self.over(state, self.value(curve, policy))
        if len(state.rows) == 1 or math.isnan(mean):
            return self._amount(mean, curve)
        if (curve or self.headline).endswith("error"):
            return f"{100 * mean:.1f} ± {100 * spread:.1f} pp"
        return f"{mean:.3g} ± {spread:.2g}"

    def caption(self) -> str:
        """See Result."""
        about = self.provenance
        rows = ", ".join(f"{count:,} {split} rows" for split, count in about["rows"].items())
        noise = {
            "all": "the order of the rows, augmentation and dropout",
            "order": "the order of the rows alone",
            "augmentation": "augmentation and dropout alone, the order of the rows being one",
        }[self.varied]
        parents = np.unique(self.columns["replicate"])
        said = [
            f"Barriers between children trained from one state at step k to step {self.steps:,}, which differ in {noise}: {DEFINITIONS[KEPT[0]]}, E the {self.headline}, over {rows}; {self.points} evenly spaced points a path.",
            f"Lines: means over {_count(len(parents), 'replicate')} and their pairs of children; bands: one standard deviation of these; small dots: each pair. "
            f"Grey: the threshold {self._amount(self.threshold)}. Full markers are stable, open ones are not, half-filled ones are undecided (95%, over replicates and rows); crosses: children at chance or one point, whose barrier says nothing.",
        ]
        if any(state.control for state in self.states):
            said.append(f"Schedule begun anew: children trained for all {self.steps:,} steps from the state's point.")
        if any(state.fresh for state in self.states):
            said.append(
                "Momentum anew (see the table): children begin with the point and the buffers of the state, and not with the optimizer's moments there."
            )
        if self.policies[0] != UNNEEDED:
            said.append("BatchNorm: " + "; ".join(f"{name} ({POLICIES[name]})" for name in self.policies) + ".")
            if len(self.policies) > 1:
                said.append(f"Thin dotted lines: {', '.join(self.policies[1:])}.")
        said.append(
            "Distance: L2 between two children, as a share of the mean distance that they moved away from the state (√2 = 1.41 where they moved in orthogonal directions). Disagreement: share of rows that they put into other classes."
        )
        if "seeds" in about:
            said.append(f"Seeds of the replicates: {', '.join(str(seed) for seed in about['seeds'])}.")
        return " ".join(said)

    def table(self) -> list[tuple[str, ...]]:
        """See Result."""
        curves = list(self.barriers[self.policies[0]])
        several = len(self.policies) > 1
        titles = [f"{curve} barrier{f', {policy}' if several else ''}" for curve in curves for policy in self.policies]
        head = (
            "level",
            "density",
            "step",
            "schedule",
            "momentum",
            "pairs",
            *titles,
            "stable",
            f"{self.headline}",
            "distance",
            "share of way",
            "angular",
            "disagreement",
        )
        rows: list[tuple[str, ...]] = [head]
        at = self.columns
        for state in self.states:
            ends = self.ends[self.policies[0]][self.headline].mean(1)
            mean, spread = self.over(state, ends)
            error = self.headline.endswith("error")
            spread_over = f" ± {100 * spread:.2f}" if error else f" ± {spread:.2g}"
            value = (
                (f"{100 * mean:.2f}" if error else f"{mean:.4g}") + spread_over * (state.replicates > 1) + "%" * error
            )
            companions = [
                self.over(state, values)[0]
                for values in (at["distance"], self._shares, at["angular"], at["disagreement"])
            ]
            rows.append(
                (
                    str(state.level),
                    f"{state.density:.4g}",
                    str(state.step),
                    "anew" if state.control else "goes on",
                    state.momentum,
                    f"{state.replicates} x {len(state.rows) // state.replicates}",
                    *(self._barrier(state, policy, curve) for curve in curves for policy in self.policies),
                    state.stable,
                    value,
                    *(f"{number:.3g}" for number in companions[:3]),
                    "" if math.isnan(companions[3]) else f"{100 * companions[3]:.2f}%",
                )
            )
        return rows

    # -- pictures -----------------------------------------------------------------------------------------------------

    @property
    def _levels(self) -> int:
        return len({state.level for state in self.states})

    @property
    def _by_density(self) -> bool:
        """Whether the curves go over density: where there are as many levels as steps, and more than one."""
        return self._levels > 1 and self._levels >= len({state.step for state in self.states})

    @property
    def lines(self) -> list[list[State]]:
        """The curves: one a level over k, or one a step over density; those of the control after the rest."""
        found = []
        for control in (False, True):
            if self._by_density:
                keys = [{"step": step} for step in sorted({state.step for state in self.states})]
            else:
                keys = [{"level": level} for level in sorted({state.level for state in self.states})]
            found += [self.line(**key, control=control) for key in keys]
        return [line for line in found if line]

    @property
    def _shares(self) -> np.ndarray:
        """Distance over the mean way of the two children (P,); NaN where they did not move."""
        way = self.columns["travelled"]
        found: np.ndarray = np.divide(self.columns["distance"], way, out=np.full(len(way), np.nan), where=way > 0)
        return found

    def panels(self) -> tuple[str, ...]:
        """`barrier`, the ends' `error` (or loss), `distance`, and of classes `disagreement`."""
        classes = ("disagreement",) if np.isfinite(self.columns["disagreement"]).any() else ()
        return ("barrier", "ends", "distance", *classes)

    def plot(self, ax: Axes, panel: str = "") -> None:
        """See Result."""
        panel = panel or "barrier"
        if panel not in self.panels():
            raise unknown("panel", panel, self.panels())
        percent = 100 if self.headline.endswith("error") else 1
        unit = " (pp)" if percent == 100 else ""
        if panel == "barrier":
            self._plot(
                ax, percent * self.value(), f"{self.headline} barrier{unit}", "Instability: barrier between children"
            )
            for policy in self.policies[1:]:
                for line, look in zip(self.lines, self._looks, strict=True):
                    means = [percent * self.over(state, self.value(policy=policy))[0] for state in line]
                    ax.plot(self._x(line), means, ":", color=look["color"], linewidth=1)
            self._scale_barriers(ax, percent)
        elif panel == "ends":
            ends = self.ends[self.policies[0]][self.headline].mean(1)
            name = f"{self.headline} (%)" if percent == 100 else self.headline
            self._plot(ax, percent * ends, name, f"{self.headline[0].upper()}{self.headline[1:]} of the children")
        elif panel == "distance":
            self._plot(ax, self._shares, "distance / way from the state", "Distance between children")
            ax.axhline(math.sqrt(2), color=GREY, linestyle=":", linewidth=1, zorder=0)
            ax.text(0.995, math.sqrt(2), "√2", color=GREY, ha="right", va="bottom", transform=ax.get_yaxis_transform())
            ax.set_ylim(0, max(ax.get_ylim()[1], 1.55))
        else:
            self._plot(
                ax,
                100 * self.columns["disagreement"],
                f"{self.headline.split()[0]} rows (%)",
                "Disagreement of children",
            )

    @property
    def _looks(self) -> list[dict[str, Any]]:
        """Colour, dash and marker of every line; a control has those of its level, dashed."""
        order = list(dict.fromkeys(self._key(line[0]) for line in self.lines))
        places = [order.index(self._key(line[0])) for line in self.lines]
        return [
            {
                "color": CYCLE[place % len(CYCLE)],
                "marker": "os^Dv"[place % 5],
                "linestyle": "--" if line[0].control else "-",
            }
            for place, line in zip(places, self.lines, strict=True)
        ]

    def _x(self, line: Sequence[State]) -> list[float]:
        return [100 * state.density if self._by_density else state.step for state in line]

    def _plot(self, ax: Axes, values: np.ndarray, label: str, title: str) -> None:
        """One curve a line, with its band, its pairs as dots, and a marker a state that says whether it is stable; crosses at the foot where a value is not defined."""
        from matplotlib.lines import Line2D

        handles: list[Any] = []
        for line, look in zip(self.lines, self._looks, strict=True):
            x, colour = self._x(line), look["color"]
            middle, spread = np.array([self.over(state, values) for state in line]).T
            ax.fill_between(x, np.maximum(middle - spread, 0), middle + spread, color=colour, alpha=0.15, linewidth=0)
            ax.plot(x, middle, color=colour, linestyle=look["linestyle"], linewidth=1.4)
            for place, height, state in zip(x, middle, line, strict=True):
                mine = values[state.rows]
                ax.plot(np.full(len(mine), place), mine, ".", color=colour, markersize=3, alpha=0.45, zorder=2)
                marker = "X" if state.stable == "degenerate" else look["marker"]
                drawn: dict[str, Any] = {"color": colour, "marker": marker, "fillstyle": _FILLS[state.stable]}
                if np.isnan(height):
                    ax.plot([place], [0.03], **drawn, transform=ax.get_xaxis_transform())
                else:
                    ax.plot([place], [height], **drawn, markersize=6, markerfacecoloralt="white", zorder=3)
            if len(self.lines) > 1 and not line[0].control:
                handles.append(
                    Line2D([], [], **look, markersize=5, linewidth=1.4, label=self._key(line[0]) or "schedule goes on")
                )
        if any(state.control for state in self.states):
            handles.append(Line2D([], [], color=GREY, linestyle="--", linewidth=1.4, label="schedule begun anew"))
        self._mark_places(ax)
        ax.set_ylabel(label)
        top = float(np.nanmax(values, initial=0.0)) or 1.0
        ax.set_ylim(-0.03 * top, 1.08 * top)  # markers at 0 are whole
        heading(ax, title, handles, columns=3)

    def _scale_barriers(self, ax: Axes, percent: int) -> None:
        """Linear up to the threshold, logarithmic above it: barriers go from none to most of 100 points."""
        edge = percent * self.threshold
        top = max(
            float(np.nanmax(percent * self.value(), initial=0.0)),
            *(float(np.nanmax(percent * self.value(policy=name), initial=0.0)) for name in self.policies),
        )
        ax.axhline(edge, color=GREY, linestyle="--", linewidth=1, zorder=0)
        if top > 4 * edge:
            ax.set_yscale("symlog", linthresh=edge, linscale=0.8)
            ticks = [digit * 10.0**power for power in range(-6, 7) for digit in (1, 2, 5)]
            ax.set_yticks([0.0, edge / 2, *(tick for tick in ticks if edge * 0.999 <= tick <= 1.6 * top)], minor=False)
            ax.yaxis.set_major_formatter(lambda value, _: f"{value:,.4g}")
            ax.minorticks_off()
        # below zero, so that markers at 0 are whole
        ax.set_ylim(-0.12 * edge, max(1.35 * top, 1.6 * edge))

    def _mark_places(self, ax: Axes) -> None:
        """The horizontal axis, with ticks at what was measured as far as they have room."""
        from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

        states = self.states
        places = sorted({place for line in self.lines for place in self._x(line)})
        if self._by_density:
            ax.set_xscale("log")
            ax.set_xlim(1.25 * places[-1], places[0] / 1.25)
            ax.set_xlabel("density: weights that survive (%, sparser →)")
            at = [math.log(place) for place in places]
        else:
            least = min((place for place in places if place > 0), default=1.0)
            if places[-1] > 4 * least:
                ax.set_xscale("symlog", linthresh=least, linscale=0.5)
                at = [0.5 * place / least if place < least else 0.5 + math.log10(place / least) for place in places]
                ax.set_xlim(-0.12 * least if places[0] == 0 else places[0] / 1.25, 1.3 * places[-1])
            else:
                at = [float(place) for place in places]
                room = 0.06 * (places[-1] - places[0]) or 0.5
                ax.set_xlim(places[0] - room, places[-1] + room)
            ax.set_xlabel(f"step k of the state (of {self.steps:,})" if states else "")
        span = (at[-1] - at[0]) or 1.0
        chosen: list[tuple[float, float]] = []
        for place, where in zip(places, at, strict=True):
            if not chosen or (where - chosen[-1][1]) / span >= 0.085:
                chosen.append((place, where))
        ax.xaxis.set_major_locator(FixedLocator([place for place, _ in chosen]))
        ax.xaxis.set_major_formatter(
            FixedFormatter([f"{place:,.3g}" if self._by_density else f"{place:,.0f}" for place, _ in chosen])
        )
        ax.xaxis.set_minor_locator(NullLocator())

    def figure(self) -> Figure:
        """See Result."""
        import plotly.graph_objects as go

        from landscape.analysis.styles import interactive

        percent, unit = (100, " pp") if self.headline.endswith("error") else (1, "")
        figure = go.Figure()
        symbols = {"yes": "circle", "no": "circle-open", "undecided": "circle-dot", "degenerate": "x"}
        for line, look in zip(self.lines, self._looks, strict=True):
            x = self._x(line)
            middle, spread = percent * np.array([self.over(state, self.value()) for state in line]).T
            text = [
                f"density {state.density:.3g}, k = {state.step:,}<br>{self.headline} barrier {self._barrier(state)}<br>"
                f"95% interval {percent * low:.2f} to {percent * high:.2f}{unit}<br>stable: {state.stable}<br>"
                f"disagreement {100 * self.over(state, self.columns['disagreement'])[0]:.2f}%"
                for state, (low, high) in ((state, self.interval(state)) for state in line)
            ]
            figure.add_scatter(
                x=x, y=middle, error_y={"array": spread}, text=text, hoverinfo="text", mode="lines+markers", name=self._name(line[0]) or "barrier",
                line={"color": look["color"], "dash": "dash" if line[0].control else "solid"},
                marker={"size": 10, "symbol": [symbols[state.stable] for state in line]},
            )  # fmt: skip
        figure.add_hline(y=percent * self.threshold, line={"color": GREY, "dash": "dash", "width": 1})
        figure = interactive(
            figure,
            x="density (%)" if self._by_density else "step k of the state",
            y=f"{self.headline} barrier{' (pp)' if percent == 100 else ''}",
        )
        if self._by_density:
            figure.update_xaxes(type="log", autorange="reversed")
        return figure


_FILLS: dict[str, Any] = {"yes": "full", "no": "none", "undecided": "bottom", "degenerate": "full"}


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}" if number != 1 else f"one {what}"


def _onset(line: Sequence[State]) -> tuple[State | None, State | None]:
    """Of states in order the last that is not stable, and the first of those after it: from there on all are."""
    last = max((place for place, state in enumerate(line) if state.stable != "yes"), default=-1)
    return (line[last] if last >= 0 else None), (line[last + 1] if last + 1 < len(line) else None)


# -- the question -----------------------------------------------------------------------------------------------------


def instability(
    train: Objective | None,
    test: Objective | None,
    families: Sequence[Siblings],
    *,
    steps: int,
    threshold: float = STABLE,
    points: int = 11,
    bn: Sequence[str] = (DEFAULT_POLICY, "average"),
    varied: str = "all",
    seed: int = 0,
    statistics: Objective | None = None,
    known: Instability | None = None,
) -> Instability:
    """Barriers, distances and disagreement between all children of each state.

    train, test: curves are taken of each that is given; errors of test decide. families: a state may come several times, one a replicate.
    steps: T, those of the whole training.
    threshold: a barrier of the headline (in [0, 1] of errors, in its units of a loss) below which a state is stable.
    points: of a path, odd. 11, since of children the path is one smooth hump: finer grids are for `barrier`.
    bn: policies for BatchNorm, side by side; the first decides. Averages are what the authors of Paul et al. take, and exaggerate.
    varied: what noise the children differ in, for the record. seed: of the bootstrap, and of how rows are cut into chunks.
    statistics: the rows by which BatchNorm is recomputed; by default train's.
    known: an answer with the same settings, to which these states are added.

    Raises UsageError for a state with fewer than two children, beyond the training, or of another shape.
    """
    _check(families, steps, threshold, test if test is not None else train)
    policies = (bn,) if isinstance(bn, str) else tuple(bn)
    pairs, columns = _pairs(families)
    found = hills(train, test, pairs, points=points, bn=policies, statistics=statistics, seed=seed)
    columns |= {
        "distance": found.distance, "angular": found.angular, "disagreement": found.disagreement, "degenerate": found.degenerate,
    }  # fmt: skip
    measured: dict[str, Any] = {
        "columns": columns,
        "barriers": {policy: {curve: {name: found.value(curve, policy, name) for name in KEPT} for curve in found.curves[policy]} for policy in found.policies},
        "ends": {policy: {curve: values[:, [0, -1]] for curve, values in found.curves[policy].items()} for policy in found.policies},
        "bounds": {policy: np.stack([found.intervals[policy].low, found.intervals[policy].high], axis=1) for policy in found.policies},
    }  # fmt: skip
    if known is not None:
        before = {name: getattr(known, name) for name in measured}
        measured = _joined({**before, "columns": {**known.columns, "fresh": _fresh(known.columns)}}, measured)
    one = test if test is not None else train
    assert one is not None
    answer = Instability(
        question={},
        provenance={
            "rows": {split: len(f.rows) for split, f in (("test", test), ("train", train)) if f is not None},
            "dtype": dtype_name(one.dtype),
            "device": str(one.device),
            "D": one.model.layout.dim,
            "seed": seed,
        },
        steps=steps,
        points=points,
        threshold=threshold,
        headline=found.headline,
        policies=list(found.policies),
        varied=varied,
        **measured,
    )
    return dataclasses.replace(answer, warnings=tuple(_warnings(answer)))


def candidates(steps: int, tolerance: float) -> list[int]:
    """The steps among which bisection looks for the first stable one: 0, and then each about (1 + tolerance) times the one before, up to the last step but one. Stability sets in early, so that they are dense there.

    Raises UsageError for a tolerance that is not positive.
    """
    if not 0 < tolerance < math.inf:
        raise UsageError(f"the tolerance is a positive share of the first stable step; got {tolerance}.")
    found = [0]
    while (following := max(found[-1] + 1, math.floor(found[-1] * (1 + tolerance)))) < steps:
        found.append(following)
    return found


def next_step(answer: Instability, level: int, among: Sequence[int]) -> int | None:
    """Of candidates, ascending, the one to measure next on the way to a level's first stable step; None where it is found, or all there are have been measured.

    Bisection between the last measured step that is not stable and the first from which on all are. At the end of the training children are one point, so that it needs no measurement.
    """
    before, first = answer.first_stable(level)
    between = [step for step in among if (before is None or step > before) and (first is None or step < first)]
    return between[len(between) // 2] if between else None


def _pairs(families: Sequence[Siblings]) -> tuple[list[tuple[End, End]], dict[str, np.ndarray]]:
    """All pairs of children of each state, and what is known of them before any is measured."""
    pairs: list[tuple[End, End]] = []
    rows: list[dict[str, Any]] = []
    for family in families:
        ends = [End(point, buffers, family.mask) for point, buffers in zip(family.ends, family.buffers, strict=True)]
        ways = (family.ends - family.start).double().norm(dim=1).tolist()
        about = {name: getattr(family, name) for name in ("step", "level", "density", "control", "replicate", "fresh")}
        for first, second in itertools.combinations(range(len(ends)), 2):
            pairs.append((ends[first], ends[second]))
            rows.append({**about, "first": first, "second": second, "travelled": (ways[first] + ways[second]) / 2})
    return pairs, {name: np.array([row[name] for row in rows]) for name in rows[0]}


def _fresh(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """The column (P,) of that name, which answers of earlier versions lack: they did not tell."""
    return columns.get("fresh", np.zeros(len(columns["step"]), dtype=bool))


def _joined(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays (P, ...) of the same names, one after the other."""
    return {
        name: _joined(value, other[name]) if isinstance(value, Mapping) else np.concatenate([value, other[name]])
        for name, value in one.items()
    }


def _check(families: Sequence[Siblings], steps: int, threshold: float, f: Objective | None) -> None:
    if f is None:
        raise UsageError("barriers are measured on rows: give train, test, or both.")
    if not families:
        raise UsageError("there is no state to measure. Give at least one with two children.")
    if not 0 < threshold < math.inf:
        raise UsageError(f"the threshold must be positive and finite; got {threshold}.")
    for family in families:
        if family.ends.ndim != 2 or len(family.ends) < 2:
            raise UsageError(
                f"a barrier needs two children or more; the state of step {family.step} has {len(family.ends)}."
            )
        if not family.start.shape == family.ends.shape[1:] == (f.dim,):
            raise UsageError(
                f"states and their children are points of {f.dim:,} parameters; got {tuple(family.start.shape)} and {tuple(family.ends.shape)}."
            )
        if not 0 <= family.step < steps:
            raise UsageError(
                f"children start at a step in 0..{steps - 1:,}, before the end of the training; got {family.step:,}."
            )


def _warnings(answer: Instability) -> Iterator[str]:
    """Each a sentence."""
    columns = answer.columns

    def named(stable: str) -> str:
        """The states of a kind."""
        return "; ".join(answer.named(state) for state in answer.states if state.stable == stable)

    if answer.headline.endswith("loss"):
        yield from told_threshold(answer.threshold, answer.headline)
    if words := named("degenerate"):
        yield f"degenerate: {words}. Children are at chance, not finite, or one point: a small barrier between them shows nothing, and the state is not counted as stable. Where they know nothing, train with a smaller --lr, or with --warmup."
    if words := named("undecided"):
        yield f"undecided at 95%: {words}. More replicates, or more rows, would decide."
    for line in answer.lines:
        # the last that is surely not stable: of an undecided one nobody knows
        last = max((place for place, state in enumerate(line) if state.stable == "no"), default=0)
        early = [state for state in line[:last] if state.stable == "yes"]
        if early:
            yield f"stability comes and goes: {answer.named(early[0])} is stable, and {answer.named(line[last])} after it is not. What is called stable from somewhere on is so from there on."
    kinds = {
        kind: "; ".join(answer.named(state) for state in answer.states if not state.control and state.momentum == kind)
        for kind in ("kept", "anew")
    }
    if all(kinds.values()):
        yield f"momentum: children of {kinds['kept']} go on with the optimizer's moments of their state, those of {kinds['anew']} begin them anew. A part of the difference between their barriers may be that."
    if len(np.unique(columns["replicate"])) == 1:
        yield "one replicate: what is said is about this one initialisation, and the spread over others is unknown. Of a task, add --replicates; of tickets, make further runs of imp with other seeds."
    if answer.policies[0] == "average":
        yield "BatchNorm statistics are averaged along the path, which exaggerates barriers. Recompute them."
