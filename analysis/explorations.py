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
from landscape.rays import Rays, random_directions, rays
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
MARKED = 6  # levels drawn into the picture of the loss: labels of more would lie on each other


@dataclass(frozen=True, kw_only=True)
class Exploration(Result):
    """What straight rays from one point meet. Distances are L2 lengths."""

    dim: int  # D
    start_loss: float
    start_norm: float  # |w|
    drawn: str  # uniform, or filter-normalised
    reach: float  # the last distance of the random rays
    confidence: float  # of the intervals of shares
    statistics: str  # BatchNorm: `eval` (the start's running statistics everywhere) or `batch`; `none`: no buffers
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
        rays = f"{len(self.rays['losses'])} {self.drawn} directions, up to {self.reach:.3g} away (D = {self.dim:,})"
        return f"{f'{task}: ' if task else ''}from loss {self.start_loss:.3g} along {rays}: {told}."

    def _told(self, place: int) -> str:
        """The finding at one level."""
        count = len(self.rays["losses"])
        inside = bool(self.starts_inside[place])
        if inside:
            text = f"loss {self.levels[place]:.4g} is left at {self._three('exits', place)}, in one interval by {self._share(self.single[place], count)}"
        else:
            text = f"loss {self.levels[place]:.4g} is reached by {self._share(self.reached[place], count)}"
        lines = self.lined
        for number, name in enumerate(self.towards):
            where = (lines.exits if inside else lines.entries)[number, place]
            text += f", towards {name} "
            text += f"at {where:.3g} of {self.lengths[number]:.3g}" if np.isfinite(where) else "not"
            if lines.inside[number, place, ALONG // 2] and not self.straight[number, place]:
                text += " (in more than one interval up to it)"
        return text

    def caption(self) -> str:
        """See Result."""
        count = len(self.rays["losses"])
        text = (
            f"Loss, mean over {self.provenance.get('rows', 'all')} rows, along {count} {self.drawn} random directions from a point of loss {self.start_loss:.4g} and norm {self.start_norm:.3g} in D = {self.dim:,}, "
            f"at {self.rays['losses'].shape[1] - 1} distances (L2) up to {self.reach:.3g}: median, and the band of the middle 80%. A set S(level) holds the points whose loss is at most the level. "
            "Where a ray enters and leaves a set is narrowed by bisection; what it does twice between two distances is not seen, so that shares that reach a set are at least, shares with one interval at most, those shown. "
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
            text += f"Hatched: distances at which the loss of some rays is not finite ({lost} points in all); they are outside every set, and the band is over the others. "
        if self.statistics == "eval":
            text += "BatchNorm has the start's running statistics everywhere. "
        elif self.statistics != "none":
            text += f"BatchNorm policy: {self.statistics}. "
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
                met = int(lines.intervals[number, place])
                rows.append(
                    (
                        f"line to {name}, {self.lengths[number]:.3g} away",
                        f"{level:.4g}",
                        "inside" if self.starts_inside[place] else "outside",
                        "" if self.starts_inside[place] else "yes" if met else "no",
                        f"{lines.entries[number, place]:.3g}" if met and not self.starts_inside[place] else "",
                        _beyond(lines.exits[number, place], end) if met else "",
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
        low, middle, high = (_beyond(number, self.reach) for number in self.quartiles(which)[:, place])
        return f"{middle} [{low}, {high}]"

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
        x = found.distances[0, 1:]
        losses = found.losses[:, 1:]
        low, middle, high = self._band(losses)
        ax.fill_between(x, low, high, color=styles.GREY, alpha=0.35, linewidth=0, label="middle 80%")
        ax.plot(x, middle, color=styles.BLACK, label=f"median of {len(losses)} random")
        lost = ~np.isfinite(losses).all(0)
        if lost.any():
            ax.fill_between(x, 0, 1, where=lost, transform=ax.get_xaxis_transform(), facecolor="none", edgecolor=styles.GREY, hatch="////", linewidth=0)  # fmt: skip
        lines = self.lined
        for number, name in enumerate(self.towards):
            colour, dash = _line_look(number)
            along = np.where(np.isfinite(lines.losses[number]), lines.losses[number], np.nan)
            ax.plot(lines.distances[number, 1:], along[1:], dash, color=colour, label=f"line to {name}")
            ax.plot(self.lengths[number], along[ALONG // 2], "*", color=colour, markersize=9, markeredgecolor="black", markeredgewidth=0.5)  # fmt: skip
        shown = [self.start_loss, *self.levels, *low, *high, *lines.losses.ravel()]
        finite = [number for number in shown if np.isfinite(number)]
        if min(finite) > 0:
            ax.set_yscale("log")
        for place in _spread(len(self.levels), MARKED):
            level = self.levels[place]
            ax.axhline(level, color=_level_look(place)[0], linewidth=0.8, linestyle=":")
            ax.annotate(f"{level:.4g}", (1.0, level), (2, 0), xycoords=("axes fraction", "data"), textcoords="offset points", color=_level_look(place)[0], fontsize=7, va="center")  # fmt: skip
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
                f"{level:.4g}\n({'inside' if inside else 'outside'})" if len(self.levels) <= MARKED else f"{level:.4g}"
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
        ax.set_ylabel("level (start)")
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
        ax.set_title(f"Share of {count} directions inside S(level) at a distance", loc="left")
        ax.legend(title="level", loc="best")

    def _span(self) -> tuple[float, float]:
        """Of the distances that are drawn: all but 0."""
        first, last = self.rays["distances"][0, [1, -1]]
        return float(first), float(max(last, *self.lines["distances"][:, -1], 0.0))

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
        x = found.distances[0, 1:]
        shown = np.where(np.isfinite(found.losses), found.losses, np.nan)[:, 1:]
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
        figure.add_scatter(x=x, y=self._band(found.losses[:, 1:])[1], mode="lines", line={"color": styles.BLACK}, name="their median")  # fmt: skip
        for number, name in enumerate(self.towards):
            along = np.where(np.isfinite(lines.losses[number]), lines.losses[number], np.nan)[1:]
            figure.add_scatter(
                x=lines.distances[number, 1:],
                y=along,
                customdata=lines.distances[number, 1:] / self.lengths[number],
                mode="lines",
                line={"color": _line_look(number)[0], "dash": "dash"},
                hovertemplate="distance %{x:.3g} (%{customdata:.3g} of the way)<br>loss %{y:.4g}<extra></extra>",
                name=f"line to {name}",
            )
        for place in _spread(len(self.levels), MARKED):
            figure.add_scatter(
                x=self._span(),
                y=2 * [self.levels[place]],
                text=["", f"{self.levels[place]:.4g}"],
                mode="lines+text",
                textposition="top left",
                line={"color": _level_look(place)[0], "width": 1, "dash": "dot"},
                hoverinfo="skip",
                showlegend=False,
            )
        styles.interactive(figure, x="distance from the start (L2)", y="loss").update_xaxes(type="log")
        numbers = [*shown.ravel(), *self.levels, *lines.losses.ravel()]
        if min(number for number in numbers if np.isfinite(number)) > 0:
            figure.update_yaxes(type="log")
        return figure


def _beyond(number: float, reach: float) -> str:
    return f"{number:.3g}" if np.isfinite(number) else f"> {reach:.3g}"


def _spread(size: int, count: int) -> list[int]:
    """At most so many places of a list, with both ends."""
    return [int(place) for place in np.unique(np.linspace(0, size - 1, min(size, count)).round())]


def _level_look(place: int) -> tuple[str, str]:
    """Colour and marker of a level."""
    return styles.CYCLE[place % len(styles.CYCLE)], "os^Dv"[place % 5]


def _line_look(number: int) -> tuple[str, str]:
    """Colour and dash of a line: none of the first levels has its colour."""
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
    start = start.detach().to(f.device, f.dtype)
    here = f(start)
    require_finite(here, "the loss at the start")
    norm = float(start.double().norm())
    furthest = reach * norm if distance is None else distance
    if not furthest:
        raise UsageError(
            "the start is 0, so that a reach in units of its norm is 0: give the reach as a distance (--reach-distance)."
        )

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

    statistics = f.norm if f.buffers else "none"
    lost = ~np.isfinite(random.losses)
    if lost.any():
        notes.append(
            f"the loss is not finite at {int(lost.sum())} of {lost.size} points, on {int(lost.any(1).sum())} of {directions} random rays: outside every set, and not made up."
        )
    if not np.isfinite(lines.losses).all():
        notes.append(f"the loss is not finite at {int((~np.isfinite(lines.losses)).sum())} of {lines.losses.size} points of the lines.")  # fmt: skip
    if ways and statistics == "eval":
        notes.append(
            f"buffers (BatchNorm statistics) are the start's everywhere: the loss at {', '.join(ways)} is not that of the run."
        )
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
        statistics=statistics,
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
