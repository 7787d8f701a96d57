"""A sublevel set looked at along straight rays: how many random directions reach it, where they enter and leave it, and whether they come back.

Letters: D parameters, E random directions, M lines, K distances (0 first), L levels (highest first).

    random rays   start + r u_e, r from 0 to the reach, with u_e uniform on the unit sphere or filter-normalised noise (Li et al. 2018, as in `landscape.analysis.surfaces`)
    lines         from the start through other points of the run and as far again: to the end of training, back to its start
    one interval  a ray is inside S(level) from one distance to another and nowhere else. From a start inside S, rays with more show that S is not star-shaped about it

Shares of directions have Wilson's interval, since directions are drawn independently. A distance beyond the reach is censored: it counts as more than all others in a quartile, and is never made up.
What a share of rays says is one-sided, as `landscape.rays` says of each ray; nor does it say anything of directions that training finds: random ones miss a thin set almost surely.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from landscape.analysis import styles
from landscape.analysis.surfaces import random_plane
from landscape.errors import UsageError, unknown
from landscape.objectives import Objective, dtype_name, require_finite
from landscape.proportions import wilson
from landscape.rays import TOLERANCE, Rays, random_directions, rays
from landscape.results import Result
from landscape.seeds import generator

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from plotly.graph_objects import Figure

DECADES = 3  # of distance up to the reach: sets are left at 0.01 |w| across sharp directions and at several |w| along flat ones
# on a logarithmic grid, since the scale of a set is not known and changes with level and direction: every decade is seen as closely. Neighbours differ by 7.5%: at 15% a ring
# of a tenth of its radius slipped through
PER_DECADE = 32
ALONG = 80  # even distances on a line, up to twice its point's, which is the 40th of them: 2.5% of its length apart
LEVELS = 3  # where none are asked for: even in log loss between the losses of the start and the ends of the run
QUARTILES = (0.25, 0.5, 0.75)
BAND = (0.1, 0.5, 0.9)  # of the loss over directions
TOLD = 3  # levels in the summary
MARKED = 16  # levels drawn into the picture of the loss: labels of more do not fit beside it
ROOMY = 6  # rows of levels in the picture of distances whose names may have two lines
LABEL = 0.045  # of the picture's height, to a label: 7 points of some 170
BEYOND = 1.3  # drawn past the last crossing where every ray has left every set


@dataclass(frozen=True, kw_only=True)
class Exploration(Result):
    """What straight rays from one point meet. Distances are L2 lengths."""

    dim: int  # D
    start_loss: float
    start_norm: float  # |w|
    drawn: str  # uniform, or filter-normalised
    reach: float  # the last distance of the random rays
    confidence: float  # of the intervals of shares
    rays: dict[str, np.ndarray]  # fields of Rays, of the E random directions
    towards: list[str]  # (M,) points that the lines go to
    lengths: np.ndarray  # (M,) distance of these
    lines: dict[str, np.ndarray]  # fields of Rays, of the M lines

    # -- numbers ------------------------------------------------------------------------------------------------------

    @property
    def levels(self) -> np.ndarray:
        """(L,) from the highest."""
        return self.rays["levels"]

    @property
    def random(self) -> Rays:
        """The random rays."""
        return Rays(**self.rays)

    @property
    def lined(self) -> Rays:
        """The lines."""
        return Rays(**self.lines)

    @property
    def starts_inside(self) -> np.ndarray:
        """(L,): whether the start is in the set."""
        return np.asarray(self.start_loss <= self.levels)

    @property
    def reached(self) -> np.ndarray:
        """(L,): random rays with a point in the set; all of them where the start is."""
        return np.asarray((self.random.intervals > 0).sum(0))

    @property
    def single(self) -> np.ndarray:
        """(L,): random rays with exactly one interval."""
        return np.asarray((self.random.intervals == 1).sum(0))

    @property
    def blurred(self) -> float:
        """Crossings up to here are told no closer: they lie within the rounding of the start. 0 where there is none."""
        ends = [found.crossing + found.error for found in (self.random, self.lined)]
        lost = [found.error > 2 * TOLERANCE * found.crossing for found in (self.random, self.lined)]
        return float(max([0.0, *ends[0][lost[0]], *ends[1][lost[1]]]))

    @property
    def straight(self) -> np.ndarray:
        """(M, L): whether the first interval of a line holds its point; False where the point is outside the set. A set star-shaped about a point inside has this on every line to it."""
        lines = self.lined
        return np.asarray((lines.entries <= self.lengths[:, None]) & (self.lengths[:, None] <= lines.exits))

    def quartiles(self, which: str) -> np.ndarray:
        """Quartiles (3, L) of the `entries` or `exits` of the random rays that are ever inside; infinity: beyond the reach. NaN where no ray is."""
        found = np.full((3, len(self.levels)), np.nan)
        for place, values in enumerate(getattr(self.random, which).T):
            known = values[self.random.intervals[:, place] > 0]
            if len(known):
                found[:, place] = np.quantile(known, QUARTILES, method="inverted_cdf")  # no mean with an infinity
        return found

    # -- words --------------------------------------------------------------------------------------------------------

    def summary(self) -> str:
        """See Result."""
        task = self.provenance.get("task")
        told = "; ".join(self._told(place) for place in _spread(len(self.levels), TOLD))
        rays = f"{self._count('direction')}, up to {self.reach:.3g} away (D = {self.dim:,})"
        return f"{f'{task}: ' if task else ''}from loss {self.start_loss:.3g} along {rays}: {told}."

    def _told(self, place: int) -> str:
        """The finding at one level."""
        count = len(self.rays["losses"])
        inside = bool(self.starts_inside[place])
        if inside:
            text = f"loss {self.levels[place]:.4g} is "
            if np.isinf(self.quartiles("exits")[0, place]):
                text += (
                    f"not left within {self.reach:.3g} by {int(np.isinf(self.random.exits[:, place]).sum())} of {count}"
                )
            else:
                text += f"left at {self._three('exits', place)}"
            text += f", in one interval by {self._share(self.single[place], count)}"
        else:
            text = f"loss {self.levels[place]:.4g} is reached by {self._share(self.reached[place], count)}"
        lines = self.lined
        for number, name in enumerate(self.towards):
            where = (lines.exits if inside else lines.entries)[number, place]
            if np.isfinite(where):
                text += f", towards {name} at {self._short(where)} of {self.lengths[number]:.3g}"
            else:
                text += (
                    f", not {'left' if inside else 'reached'} towards {name} within {lines.distances[number, -1]:.3g}"
                )
            if lines.inside[number, place, ALONG // 2] and not self.straight[number, place]:
                text += " (in more than one interval up to it)"
        return text

    def caption(self) -> str:
        """See Result."""
        text = (
            f"Loss, mean over {self.provenance.get('rows', 'all')} rows, along {self._count('random direction')} from a point of loss {self.start_loss:.4g} and norm {self.start_norm:.3g} in D = {self.dim:,}, "
            f"at {self.rays['losses'].shape[1] - 1} distances (L2) up to {self.reach:.3g}: median, and the band of the middle 80%. A set S(level) holds the points whose loss is at most the level. "
            f"Where a ray enters and leaves a set is narrowed by bisection, to {100 * TOLERANCE:.1g}% of the distance; what it does twice between two distances is not seen, so that shares that reach a set are at least, shares with one interval at most, those shown. "
            f"Quartiles are over the rays that are ever inside; a distance beyond the reach counts as more than all others. Intervals of shares: Wilson's, {100 * self.confidence:g}%. "
        )
        if self.starts_inside.any():
            text += (
                "From a start inside a set: a ray with more than one interval shows that the set is not star-shaped about the start. A ball of the median exit's radius r would have the Gaussian width r sqrt(D), "
                "but the median speaks for most directions only: directions of high curvature are few, and leave earlier. "
            )
        if not self.starts_inside.all():
            text += (
                "From a start outside: a random ray is half of a random subspace of one dimension, and in many dimensions next to none reaches a set that a random subspace of dimension d* reaches almost surely, "
                "even where d* is small. A share of 0 is no sign that the set is far. "
            )
        if self.towards:
            text += (
                "Lines run from the start through other points of the run, and as far again; the star marks the point. "
            )
        lost = int((~np.isfinite(self.rays["losses"])).sum())
        if lost:
            text += f"Hatched, as far as drawn: distances at which the loss of some rays is not finite ({lost} points in all); they are outside every set, and the band is over the others. "
        if self.blurred:
            text += f"<: nearer to the start than its rounding, {self.blurred:.2g}. "
        if self.provenance.get("norm") == "batch":
            text += "BatchNorm by the statistics of each chunk of rows: the set is of one function of the weights. "
        return text.rstrip()

    def table(self) -> list[tuple[str, ...]]:
        """See Result."""
        head = ("rays", "level", "start", "reach it", "enter at", "leave at", "still inside at the reach", "one interval", "width of the ball")  # fmt: skip
        count, found = len(self.rays["losses"]), self.random
        rows: list[tuple[str, ...]] = [head]
        for place, level in enumerate(self.levels):
            inside = bool(self.starts_inside[place])
            met = int(self.reached[place])
            middle = self.quartiles("exits")[1, place]
            rows.append(
                (
                    f"{count} {self.drawn}",
                    f"{level:.4g}",
                    "inside" if inside else "outside",
                    "" if inside else self._share(met, count),
                    "" if inside or not met else self._three("entries", place),
                    self._three("exits", place) if met else "",
                    f"{int(found.inside[:, place, -1].sum())}/{count}" if met else "",
                    self._share(self.single[place], met) if met else "",
                    f"{middle * math.sqrt(self.dim):.3g}"
                    if inside and self.drawn == "uniform" and np.isfinite(middle)
                    else "",
                )
            )
        lines = self.lined
        for number, name in enumerate(self.towards):
            end = float(lines.distances[number, -1])
            for place, level in enumerate(self.levels):
                met, out = int(lines.intervals[number, place]), float(lines.exits[number, place])
                rows.append(
                    (
                        f"line to {name}, {self.lengths[number]:.3g} away",
                        f"{level:.4g}",
                        "inside" if self.starts_inside[place] else "outside",
                        "" if self.starts_inside[place] else "yes" if met else "no",
                        self._short(lines.entries[number, place]) if met and not self.starts_inside[place] else "",
                        (self._short(out) if np.isfinite(out) else f"not within {end:.3g}") if met else "",
                        ("yes" if lines.inside[number, place, -1] else "no") if met else "",
                        ("yes" if met == 1 else f"no, {met}") if met else "",
                        "",
                    )
                )
        return rows

    def _share(self, hits: int, trials: int) -> str:
        low, high = (float(end) for end in wilson(hits, trials, self.confidence))
        if hits == 0 or hits == trials:
            sure = f"at most {100 * high:.2g}%" if hits == 0 else f"at least {100 * low:.3g}%"
        else:
            sure = f"{100 * low:.2g}% to {100 * high:.2g}%"
        return f"{int(hits)} of {int(trials)} ({sure})"

    def _three(self, which: str, place: int) -> str:
        """Median and quartiles."""
        ends = self.quartiles(which)[:, place]
        if np.isinf(ends).all():
            return f"not within {self.reach:.3g}"
        low, middle, high = (self._short(end) if np.isfinite(end) else f"> {self.reach:.3g}" for end in ends)
        return f"{middle} [{low}, {high}]"

    def _short(self, distance: float) -> str:
        """Of a crossing, to the digits that it is known to."""
        return f"{distance:.3g}" if distance > self.blurred else f"< {self.blurred:.2g}"

    def _count(self, noun: str) -> str:
        """The random directions, with their number."""
        count = len(self.rays["losses"])
        return f"{count} {self.drawn} {noun}{'' if count == 1 else 's'}"

    # -- pictures -----------------------------------------------------------------------------------------------------

    def panels(self) -> tuple[str, ...]:
        """`loss`, `inside`, and where some ray or line crosses a level `distances`."""
        crossed = len(self.rays["crossing"]) + len(self.lines["crossing"])
        return ("loss", "distances", "inside") if crossed else ("loss", "inside")

    def plot(self, ax: Axes, panel: str = "") -> None:
        """See Result."""
        drawings: dict[str, Callable[[Axes], None]] = {
            "loss": self._plot_loss,
            "distances": self._plot_distances,
            "inside": self._plot_inside,
        }
        panel = panel or "loss"
        if panel not in self.panels():
            raise unknown("panel", panel, self.panels())
        drawings[panel](ax)
        low, high = self._span()
        if panel == "distances":  # a start at the edge of a set is close to where rays leave it
            crossed = np.concatenate([self.rays["crossing"], self.lines["crossing"]])
            low = min(low, float(crossed.min()) / 1.2)
        ax.set_xscale("log")
        ax.set(xlim=(low, high), xlabel="distance from the start (L2)")

    def _plot_loss(self, ax: Axes) -> None:
        found = self.random
        x, losses = self._drawn(found.distances[0], found.losses)
        low, middle, high = self._band(losses)
        ax.fill_between(x, low, high, color=styles.GREY, alpha=0.35, linewidth=0, label="middle 80%")
        ax.plot(x, middle, color=styles.BLACK, label=f"median of {len(losses)} random")
        lost = ~np.isfinite(losses).all(0)
        if lost.any():
            ax.fill_between(x, 0, 1, where=lost, transform=ax.get_xaxis_transform(), facecolor="none", edgecolor=styles.GREY, hatch="////", linewidth=0)  # fmt: skip
        lines = self.lined
        shown = [self.start_loss, *self.levels, *low, *high]
        for number, name in enumerate(self.towards):
            colour, dash = _line_look(number)
            away, along = self._drawn(lines.distances[number], lines.losses[number])
            shown += [*along]
            ax.plot(away, along, dash, color=colour, label=f"line to {name}")
            ax.plot(self.lengths[number], along[ALONG // 2 - 1], "*", color=colour, markersize=9, markeredgecolor="black", markeredgewidth=0.5)  # fmt: skip
        finite = [number for number in shown if np.isfinite(number)]
        if min(finite) > 0:
            ax.set_yscale("log")
        marked = _spread(len(self.levels), MARKED)
        for place in marked:
            ax.axhline(self.levels[place], color=_level_look(place)[0], linewidth=0.8, linestyle=":")
        ax.set_ylim(ax.get_ylim())  # the labels' heights are of these limits
        heights = ax.transAxes.inverted().transform(ax.transData.transform([(1.0, self.levels[place]) for place in marked]))[:, 1]  # fmt: skip
        for place, height, apart in zip(marked, heights, _apart(heights[::-1], LABEL)[::-1], strict=True):
            colour = _level_look(place)[0]
            ax.annotate(
                f"{self.levels[place]:.4g}",
                (1.0, height),
                (1.03, apart),
                xycoords="axes fraction",
                color=colour,
                fontsize=7,
                va="center",
                arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 0},
            )
        ax.set_ylabel("loss")
        ax.set_title("Loss along rays (dotted: the levels)", loc="left")
        ax.legend(loc="best")

    def _plot_distances(self, ax: Axes) -> None:
        found, lines = self.random, self.lined
        count = len(found.losses)
        names = []
        for place, level in enumerate(self.levels):
            colour, marker = _level_look(place)
            row = len(self.levels) - 1 - place  # the highest on top
            inside = self.starts_inside[place]
            for which, face in (("entries", "none"), ("exits", colour)):
                if which == "entries" and inside:
                    continue
                values = np.sort(getattr(found, which)[:, place])
                values = values[np.isfinite(values)]
                # each ray at its rank: a row is the distribution function of its distances, as high as the share that has one
                heights = row - 0.1 + 0.5 * (np.arange(len(values)) + 0.5) / count
                ax.plot(values, heights, marker, color=colour, markerfacecolor=face, markersize=3.5, markeredgewidth=0.8)  # fmt: skip
            met = int(self.reached[place])
            said = f"{met} of {count} reach it"
            if met:
                said = (
                    f"{'' if inside else f'{said}, '}{int(np.isinf(found.exits[:, place]).sum())} of {met} do not leave"
                )
            ax.annotate(said.replace(", ", "\n"), (1.01, row), xycoords=("axes fraction", "data"), va="center", fontsize=7)  # fmt: skip
            names.append(
                f"{level:.4g}\n({'inside' if inside else 'outside'})" if len(self.levels) <= ROOMY else f"{level:.4g}"
            )
            for number in range(len(self.towards)):
                tint = _line_look(number)[0]
                height = row - 0.2 - 0.1 * number
                for first, last in lines.stretches(number, place):
                    ax.plot([max(first, 1e-300), last], [height, height], color=tint, linewidth=2.2, solid_capstyle="butt")  # fmt: skip
                if lines.inside[number, place, ALONG // 2]:
                    ax.plot(self.lengths[number], height, "*", color=tint, markersize=7, markeredgecolor="black", markeredgewidth=0.5)  # fmt: skip
        ax.set_yticks(range(len(names)), names[::-1])
        ax.set_ylim(-0.55, len(names) - 0.3)
        ax.set_ylabel("level (start)" if len(names) <= ROOMY else "level")
        handles = [_handle(ax, styles.GREY, "o", "left at", styles.GREY)]
        if not self.starts_inside.all():
            handles.insert(0, _handle(ax, styles.GREY, "o", "entered at", "none"))
        for number, name in enumerate(self.towards):
            handles.append(ax.plot([], [], color=_line_look(number)[0], linewidth=2.2, label=f"inside on the line to {name}")[0])  # fmt: skip
        ax.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=7, borderaxespad=0.2)
        ax.set_title("First entry and exit of each ray", loc="left", pad=8 + 11 * math.ceil(len(handles) / 2))

    def _plot_inside(self, ax: Axes) -> None:
        found = self.random
        x, count = found.distances[0, 1:], len(found.losses)
        for place, level in enumerate(self.levels):
            colour, marker = _level_look(place)
            hits = found.inside[:, place, 1:].sum(0)
            low, high = wilson(hits, count, self.confidence)
            ax.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
            ax.plot(x, hits / count, "-" + marker, color=colour, markersize=3, markevery=(place, 5), label=f"{level:.4g}")  # fmt: skip
        ax.set(ylim=(-0.04, 1.04), ylabel="share of directions inside")
        ax.set_title(f"Share of {count} direction{'' if count == 1 else 's'} inside S(level) at a distance", loc="left")
        ax.legend(title="level", loc="best")

    def _span(self) -> tuple[float, float]:
        """Of the distances that are drawn: all but 0, and none far beyond the last crossing where every random ray has left every set."""
        found, lines = self.random, self.lined
        first, last = found.distances[0, [1, -1]]
        last = max(last, *lines.distances[:, -1], 0.0)
        if (found.intervals > 0).all() and not found.inside[..., -1].any():
            ends = lines.distances[lines.inside[..., -1].any(1), -1]
            told = BEYOND * max(*found.crossing, *lines.crossing, *self.lengths, *ends, 0.0)
            if told > first:  # else no loss that was taken would be drawn
                last = min(last, told)
        return float(first), float(last)

    def _drawn(self, distances: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of a ray's distances (K,) and losses (..., K), those that are drawn, up to the first past the axis; NaN for what is not finite."""
        stop = int(np.searchsorted(distances, self._span()[1])) + 1
        shown = losses[..., 1:stop]
        return distances[1:stop], np.where(np.isfinite(shown), shown, np.nan)

    def _band(self, losses: np.ndarray) -> np.ndarray:
        """Quantiles (3, K) over the rays with a finite loss; NaN where there is none."""
        found = np.full((3, losses.shape[1]), np.nan)
        for place, column in enumerate(losses.T):
            finite = column[np.isfinite(column)]
            if len(finite):
                found[:, place] = np.quantile(finite, BAND)
        return found

    def figure(self) -> Figure:
        """See Result."""
        import plotly.graph_objects as go

        found, lines = self.random, self.lined
        x, shown = self._drawn(found.distances[0], found.losses)
        numbers = [*shown.ravel(), *self.levels]
        apart = np.full((len(shown), 1), np.nan)  # a gap between rays
        figure = go.Figure()
        figure.add_scatter(
            x=np.tile([*x, np.nan], len(shown)),
            y=np.hstack([shown, apart]).ravel(),
            customdata=np.repeat(np.arange(len(shown)), len(x) + 1),
            mode="lines",
            line={"color": "rgba(138,138,138,0.35)", "width": 1},
            hovertemplate="ray %{customdata}<br>distance %{x:.3g}<br>loss %{y:.4g}<extra></extra>",
            name="each random ray",
        )
        figure.add_scatter(x=x, y=self._band(shown)[1], mode="lines", line={"color": styles.BLACK}, name="their median")  # fmt: skip
        for number, name in enumerate(self.towards):
            away, along = self._drawn(lines.distances[number], lines.losses[number])
            numbers += [*along]
            figure.add_scatter(
                x=away,
                y=along,
                customdata=away / self.lengths[number],
                mode="lines",
                line={"color": _line_look(number)[0], "dash": "dash"},
                hovertemplate="distance %{x:.3g} (%{customdata:.3g} of the way)<br>loss %{y:.4g}<extra></extra>",
                name=f"line to {name}",
            )
        for place in _spread(len(self.levels), MARKED):
            figure.add_scatter(
                x=self._span(),
                y=2 * [self.levels[place]],
                mode="lines",
                line={"color": _level_look(place)[0], "width": 1, "dash": ("dot", "dashdot", "longdashdot")[place % 3]},
                hoverinfo="skip",
                name=f"level {self.levels[place]:.4g}",
            )
        styles.interactive(figure, x="distance from the start (L2)", y="loss").update_xaxes(type="log")
        # beside the axes, in the levels' order: above them the toolbar covers it, and names in the picture would lie on each other
        figure.update_layout(legend={"orientation": "v", "x": 1.02, "y": 1})
        if min(number for number in numbers if np.isfinite(number)) > 0:
            figure.update_yaxes(type="log")
        return figure


def _spread(size: int, count: int) -> list[int]:
    """At most so many places of a list, with both ends."""
    return [int(place) for place in np.unique(np.linspace(0, size - 1, min(size, count)).round())]


def _apart(heights: np.ndarray, gap: float) -> np.ndarray:
    """Heights (n,) that increase, as near as can be to themselves with a gap between neighbours, from 0 to 1."""
    from scipy.optimize import isotonic_regression

    steps = gap * np.arange(len(heights))
    moved: np.ndarray = isotonic_regression(heights - steps).x.clip(0, max(1 - steps[-1], 0)) + steps
    return moved


def _level_look(place: int) -> tuple[str, str]:
    """Colour and marker of a level: periods of 4 and 9, so that 36 levels differ; no line has a colour or the star of these."""
    return styles.CYCLE[place % 4], "os^DvPX<>"[place % 9]


def _line_look(number: int) -> tuple[str, str]:
    """Colour and dash of a line: no level has its colour."""
    return (styles.ORANGE, styles.SKY, styles.YELLOW)[number % 3], ("--", "-.", ":")[number % 3]


def _handle(ax: Axes, colour: str, marker: str, label: str, face: str) -> Any:
    """An entry of a legend, of nothing that is drawn."""
    return ax.plot([], [], marker, color=colour, markerfacecolor=face, markersize=4, label=label)[0]


# -- the measurement --------------------------------------------------------------------------------------------------


def exploration(
    f: Objective,
    start: Tensor,
    levels: Sequence[float] | None = None,
    *,
    towards: Mapping[str, Tensor] | None = None,
    directions: int = 64,
    reach: float = 10.0,
    distance: float | None = None,
    filter_normalised: bool = False,
    confidence: float = 0.95,
    seed: int = 0,
) -> Exploration:
    """Look at the sublevel sets of f along random rays from `start` (D,), and along the lines from it to other points.

    Where the network has buffers, BatchNorm takes the statistics of each chunk of rows, as for the width: running ones are of one point.

    levels: of the loss; None: three, even in log loss between the greatest and the least loss of the start and the points of `towards`.
    towards: points (D,) by name, as the ends of the run; one that is the start is left out, with a warning.
    directions: E (64: a share of one half is known to within 12%, and none of them at all means at most 5.7%).
    reach: the last distance, in units of |start|; by default 10, by where a network's weights are noise. `distance` gives it as an L2 length instead.
    filter_normalised: Gaussian noise with each filter's norm as the point's, biases resting, as for a random plane (the direction then has length 1 again); else uniform on the sphere.

    Uniform directions come from the stream (seed, "rays"), filter-normalised ones from (seed, "explorations").
    `question` is empty and `provenance` holds rows, dtype, device, D, norm and seed: who asked replaces them.
    Raises UsageError for options that are none and where no levels lie between, LandscapeError where the loss of the start or of a point is not finite.
    """
    if not 0 < reach < math.inf or (distance is not None and not 0 < distance < math.inf):
        raise UsageError(f"the reach is positive and finite; got {reach if distance is None else distance:g}.")
    if not 0 < confidence < 1:
        raise UsageError(f"a confidence lies between 0 and 1; got {confidence:g}.")
    if start.shape != (f.dim,):
        raise UsageError(f"a start has shape ({f.dim},); got {tuple(start.shape)}.")
    f = f.of_all_points()
    start = start.detach().to(f.device, f.dtype)
    here = f(start)
    require_finite(here, "the loss at the start")
    norm = float(start.double().norm())
    furthest = reach * norm if distance is None else distance
    if not furthest:
        raise UsageError(
            "the start is 0, so that a reach in units of its norm is 0: give the reach as a distance (--reach-distance)."
        )

    if furthest > (most := torch.finfo(torch.float32).max):
        raise UsageError(f"the reach is {furthest:.3g} away, and single precision ends at {most:.3g}: lower --reach.")

    notes: list[str] = []
    ways: dict[str, Tensor] = {}
    for name, point in (towards or {}).items():
        if point.shape != start.shape:
            raise UsageError(f"the point {name} has shape {tuple(point.shape)}; the start has ({f.dim},).")
        way = point.detach().to(start) - start
        if bool((way != 0).any()):
            ways[name] = way
        else:
            notes.append(f"{name} is the start itself: there is no line to it.")
    lengths = np.array([float(way.double().norm()) for way in ways.values()])
    if not np.isfinite(lengths).all():
        raise UsageError(f"the points {', '.join(ways)} are not all finite: there is no line to them.")
    if levels is None:
        known = [float(here), *(float(f(start + way)) for way in ways.values())]
        levels = _between([loss for loss in known if math.isfinite(loss)])

    grid = np.geomspace(10.0**-DECADES * furthest, furthest, DECADES * PER_DECADE + 1)
    drawn = _normalised(f, start, directions, seed) if filter_normalised else random_directions(f.dim, directions, seed)
    random = rays(f, start, drawn, grid, levels)
    if ways:
        units = torch.stack([way / way.norm() for way in ways.values()])
        lines = rays(f, start, units, lengths[:, None] * np.arange(1, ALONG + 1) / (ALONG // 2), levels)
    else:
        no_rays, nowhere, never = np.empty((0, ALONG + 1)), np.empty(0, dtype=int), np.empty(0)
        lines = Rays(random.levels, no_rays, no_rays, nowhere, nowhere, never.astype(bool), never, never)

    first, nearer = float(grid[0]), int((random.crossing < grid[0]).sum())
    if nearer or first > norm > 0:
        notes.append(
            f"the first distance on the random rays is {first:.3g}{f', and {nearer} of {len(random.crossing)} crossings lie before it' if nearer else ''}: what a ray does twice before it, or a set that it only meets there, is not seen. Lower --reach."
        )
    lost = ~np.isfinite(random.losses)
    if lost.any():
        notes.append(
            f"the loss is not finite at {int(lost.sum())} of {lost.size} points, on {int(lost.any(1).sum())} of {directions} random rays: outside every set, and not made up."
        )
    if not np.isfinite(lines.losses).all():
        notes.append(f"the loss is not finite at {int((~np.isfinite(lines.losses)).sum())} of {lines.losses.size} points of the lines.")  # fmt: skip
    return Exploration(
        question={},
        provenance={
            "rows": len(f.rows),
            "dtype": dtype_name(f.dtype),
            "device": str(f.device),
            "D": f.dim,
            "norm": f.norm,
            "seed": seed,
        },
        warnings=tuple(notes),
        dim=f.dim,
        start_loss=float(here),
        start_norm=norm,
        drawn="filter-normalised" if filter_normalised else "uniform",
        reach=furthest,
        confidence=confidence,
        rays=_fields(random),
        towards=list(ways),
        lengths=lengths,
        lines=_fields(lines),
    )


def _fields(found: Rays) -> dict[str, np.ndarray]:
    return {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}


def _normalised(f: Objective, start: Tensor, count: int, seed: int) -> Tensor:
    """Filter-normalised directions (count, D), of length 1: the axes of random planes."""
    if count < 1:
        raise UsageError(f"at least 1 direction is needed; got {count}.")
    stream = generator(seed, "explorations")
    planes = [random_plane(f, start, stream) for _ in range((count + 1) // 2)]
    drawn = np.concatenate([plane.basis() / plane.norms[:, None] for plane in planes])[:count]
    return torch.from_numpy(drawn)


def _between(losses: list[float]) -> list[float]:
    """Levels even in log loss strictly between the least and the greatest, of two digits."""
    low, high = min(losses), max(losses)
    if low > 0:
        found = [float(f"{level:.2g}") for level in np.geomspace(high, low, LEVELS + 2)[1:-1]]
        if len({*found, low, high}) == LEVELS + 2 and low < min(found) and max(found) < high:
            return found
    raise UsageError(
        f"no levels lie between the losses at the start and at the ends of the run ({low:.4g} to {high:.4g}): give them, such as --loss 1,0.5,0.2."
    )
