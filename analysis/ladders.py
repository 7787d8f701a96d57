"""Ladders: what iterative pruning made of a network, level by level, against the dense network, its replicates and the ablations.

Letters: D parameters, L levels, N test rows, R dense replicates.

Matching (Paul et al. 2023, definition 2.2): a sparse solution matches the dense one where its error is at most eps above it, eps being the standard deviation of the error over
dense trainings that differ by initialisation and noise. Both sides are uncertain, and both uncertainties are used: the gap by its standard error over test rows, paired row by row;
eps by the chi-square interval of a standard deviation of R + 1 normal numbers. "yes": the gap is below eps at the unfavourable ends of both 95% intervals; "no": above it at the
favourable ends; else "undecided". Errors of few rows may be equal by chance, and a standard deviation of 0 has the interval 0 to 0: so the upper end of that of eps is never
below the standard error of one dense error over the rows, sqrt(p (1 - p) / N), nor below one row.

Where the loss does not classify there is no error, and all of this is of the test loss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from landscape import pruning
from landscape.analysis.barriers import NEAR_CHANCE, _chance
from landscape.analysis.styles import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILION, heading, interactive
from landscape.datasets import _leaves
from landscape.errors import LandscapeError
from landscape.masks import Mask
from landscape.objectives import Buffers, Objective, Rows, dtype_name
from landscape.results import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from plotly.graph_objects import Figure

CONFIDENCE = 0.95
ROOM = 0.09  # of the axis, for the number under a tick: five characters at the size of the panels
LOOKS = {"shuffled": (ORANGE, "s", "--"), "random": (PURPLE, "^", ":"), "reinit": (GREEN, "D", "-.")}
MEANINGS = {
    "shuffled": "the level's mask shuffled within each layer, the same rewound weights",
    "random": "a random mask of as many weights, the same rewound weights",
    "reinit": "the level's own mask, another initialisation, trained from step 0",
}


@dataclass(frozen=True, kw_only=True)
class Ladder(Result):
    """Every level of iterative pruning, and what it is compared with."""

    levels: np.ndarray  # (L,) numbers
    survivors: np.ndarray  # (L,) of the prunable weights
    expected: (
        np.ndarray
    )  # (L,) f^level times as many as at first, not rounded; NaN where the rate is found anew each time
    density: np.ndarray  # (L,) survivors over the prunable
    rates: np.ndarray  # (L,) share of the survivors of the level before that went
    thresholds: np.ndarray  # (L,) largest score that went; NaN at level 0
    effective: np.ndarray  # (L,) survivors on a path from the inputs to the outputs; NaN where it is not known
    layers: dict[str, np.ndarray]  # (L,) share kept, by tensor
    test_error: np.ndarray  # (L,) in [0, 1]; NaN where the loss does not classify
    test_loss: np.ndarray  # (L,)
    train_error: np.ndarray  # (L,)
    train_loss: np.ndarray  # (L,)
    gap: (
        np.ndarray
    )  # (L,) test error above that of level 0; of a loss that does not classify, here and below, the test loss
    gap_error: np.ndarray  # (L,) its standard error over test rows, paired
    replicates: np.ndarray  # (R,) test errors of dense trainings besides level 0
    eps: float  # standard deviation of the test error over level 0 and the replicates; NaN without them
    eps_interval: list[float]  # (2,) chi-square interval of it, the upper end no lower than what rows can tell
    matching: list[str]  # (L,) yes, no, undecided; "unknown" without replicates
    ablations: dict[str, np.ndarray]  # (L,) test errors by kind; NaN where it was not trained
    rows: dict[str, int]  # N by split
    loss: str

    @property
    def sparsest(self) -> int | None:
        """Index of the sparsest level whose gap is at most eps; None where eps is not known. Its verdict in `matching` says how sure that is."""
        return max((place for place, gap in enumerate(self.gap) if gap <= self.eps), default=None)

    def summary(self) -> str:
        """See Result."""
        last = len(self.levels) - 1
        name = self.question.get("variant", self.provenance.get("variant", "")) or "pruned"
        if not last:
            text = f"{name}: the dense network alone, of {self.survivors[0]:,} weights; {self._named(0)}"
            return text + (f"; {self._eps}" if self._decides else "")
        text = f"{name}: {self.levels[last]} levels to {self.density[last]:.2%} of {self.survivors[0]:,} weights; {self._named(0)} dense, {self._named(last)} at the last"
        best = self.sparsest
        if best is None:
            return f"{text}; matching unknown ({self._reason})"
        sure = {"yes": "surely", "no": "surely not", "undecided": "undecided within noise"}[self.matching[best]]
        return f"{text}; sparsest within eps of the dense one: level {self.levels[best]} ({self.density[best]:.2%}, {sure}), {self._eps}"

    def caption(self) -> str:
        """See Result."""
        said = [
            f"Test {'error' if self._classifies else 'loss'} over {self.rows['test']:,} rows, each solution with the BatchNorm statistics of its own training where it has any, against the share of prunable weights that survive (logarithmic, sparser to the right); bars: standard error of the gap to level 0, paired by row.",
        ]
        if self._decides:
            low, high = (_amount(end, self._classifies) for end in self.eps_interval)
            least = (
                f", whose upper end is at least the standard error of one dense error over {self.rows['test']:,} rows"
            )
            said.append(
                f"Grey band: the dense value plus and minus eps, the standard deviation over {len(self.replicates) + 1} dense trainings of other initialisation and noise "
                f"({_amount(self.eps, self._classifies)}, 95% interval {low} to {high}{least * self._classifies}). Filled circles match (gap below eps at the unfavourable ends of both intervals), "
                "crosses do not, open circles are undecided."
            )
        else:
            said.append(f"Matching is not decided: {self._reason}.")
        said += [f"{kind.capitalize()}: {MEANINGS[kind]}." for kind in self.ablations]
        said.append("Right: the share of each layer's weights that survives.")
        if "seed" in self.provenance:
            said.append(f"Seed {self.provenance['seed']}.")
        return " ".join(said)

    def table(self) -> list[tuple[str, ...]]:
        """See Result."""
        head = (
            "level",
            "weights",
            "density",
            "on a path",
            "rate",
            "threshold",
            "test error" if self._classifies else "test loss",
            "gap",
            "matches",
            "train loss",
            *self.ablations,
        )
        body, scale = [], self._scale
        for place, number in enumerate(self.levels):
            body.append(
                (
                    str(number),
                    f"{self.survivors[place]:,}",
                    f"{self.density[place]:.2%}",
                    _count(self.effective[place]),
                    _number(self.rates[place], "{:.3f}"),
                    _number(self.thresholds[place], "{:.3g}"),
                    self._value(self._values[place]),
                    _number(scale * self.gap[place], "{:+.2f} pp" if self._classifies else "{:+.3g}") if place else "",
                    self._verdict(place) if place else "",
                    f"{self.train_loss[place]:.3g}",
                    *(self._value(errors[place]) for errors in self.ablations.values()),
                )
            )
        return [head, *body]

    def panels(self) -> tuple[str, ...]:
        """See Result."""
        return ("error", "layers")

    def plot(self, ax: Axes, panel: str = "") -> None:
        """See Result."""
        if (panel or "error") == "layers":
            self._plot_layers(ax)
            return
        x, (values, label) = 100 * self.density, self._shown()
        if self._decides:
            middle = values[0]
            ax.axhspan(
                middle - self._scale * self.eps,
                middle + self._scale * self.eps,
                color="#e4e4e4",
                linewidth=1,  # so that a band of no height is seen
                zorder=0,
                label="dense ± eps",
            )
        ax.errorbar(x, values, yerr=self._scale * self.gap_error, color=BLUE, linewidth=1.4, elinewidth=0.8, zorder=3)
        looks = {"yes": ("o", BLUE), "no": ("X", VERMILION), "undecided": ("o", "white"), "unknown": ("o", BLUE)}
        named = {"yes": "matches", "no": "does not match", "undecided": "undecided", "unknown": "level"}
        # level 0 matches itself, which says nothing where eps is not known
        verdicts = self.matching if self._decides else ["unknown"] * len(values)
        for verdict, (marker, face) in looks.items():
            where = [place for place, found in enumerate(verdicts) if found == verdict]
            if where:
                edge = VERMILION if verdict == "no" else BLUE
                ax.plot(
                    x[where],
                    values[where],
                    marker,
                    color=face,
                    markeredgecolor=edge,
                    markersize=5,
                    label=named[verdict],
                    zorder=4,
                )
        for kind, errors in self.ablations.items():
            colour, marker, dash = LOOKS[kind]
            if not np.isfinite(errors).any():  # none was trained: no name in the legend
                continue
            ax.plot(
                x,
                self._scale * errors,
                color=colour,
                marker=marker,
                markersize=3.5,
                linestyle=dash,
                linewidth=1.1,
                label=kind,
                zorder=2,
            )
        self._axis(ax)
        ax.set_ylabel(label)
        heading(ax, "Solution of each level", ax.get_legend_handles_labels()[0])

    def _plot_layers(self, ax: Axes) -> None:
        from matplotlib import colormaps
        from matplotlib.ticker import LogLocator, NullFormatter

        x, colours = 100 * self.density, colormaps["viridis"]
        for place, (name, kept) in enumerate(self.layers.items()):
            colour = colours(0.9 * place / max(len(self.layers) - 1, 1))
            ends = place in (0, len(self.layers) - 1) or len(self.layers) <= 6
            # of many layers only the first and the last are named: the others lie between them in colour as in depth
            ax.plot(
                x,
                100 * np.maximum(kept, 1e-9),
                color=colour,
                marker="o",
                markersize=2.5,
                linewidth=1.1,
                label=name if ends else None,
            )
        ax.plot(x, x, color=GREY, linewidth=0.8, linestyle=":", label="all layers")
        ax.set_yscale("log")
        lows = np.concatenate([kept[kept > 0] for kept in self.layers.values()])
        ax.set_ylim(100 * lows.min() / 1.5, 150)
        self._axis(ax)
        ax.set_ylabel("weights of the layer that survive (%)")
        # less than a decade may hold one power of ten
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.yaxis.set_minor_formatter(NullFormatter())
        heading(ax, "Where the survivors are", ax.get_legend_handles_labels()[0], columns=3)

    def _axis(self, ax: Axes) -> None:
        from matplotlib.ticker import FixedLocator, NullLocator

        x = 100 * self.density
        ax.set_xscale("log")
        ax.set_xlim(130, x.min() / 1.3)
        ax.set_xlabel("weights that survive (%), level by level")
        # ticks at the levels, as far as they have room
        ticks = [x[0]]
        for place in x[1:]:
            if math.log(ticks[-1] / place) >= ROOM * math.log(130 * 1.3 / x.min()):
                ticks.append(place)
        ax.xaxis.set_major_locator(FixedLocator(ticks))
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
        ax.xaxis.set_minor_locator(NullLocator())

    def figure(self) -> Figure:
        """See Result."""
        from plotly.graph_objects import Figure, Scatter

        values, label = self._shown()
        words = [
            f"level {number}: {kept:,} weights<br>{_number(gap, self._gap_form)} to the dense one, matches: {verdict}"
            for number, kept, gap, verdict in zip(
                self.levels, self.survivors, self._scale * self.gap, self.matching, strict=True
            )
        ]
        figure = Figure(
            Scatter(
                x=100 * self.density, y=values, mode="lines+markers", name=label, text=words, line={"color": BLUE},
                error_y={"array": self._scale * self.gap_error, "thickness": 1}, hovertemplate="%{x:.3g}% kept, %{y:.4g}<br>%{text}<extra></extra>",
            )
        )  # fmt: skip
        for kind, errors in self.ablations.items():
            figure.add_trace(Scatter(x=100 * self.density, y=self._scale * errors, mode="lines+markers", name=kind, line={"color": LOOKS[kind][0], "dash": "dash"}))  # fmt: skip
        if self._decides:
            figure.add_hrect(
                y0=values[0] - self._scale * self.eps,
                y1=values[0] + self._scale * self.eps,
                fillcolor=GREY,
                opacity=0.2,
                line_width=0,
            )
        interactive(figure, x="weights that survive (%)", y=label)
        return figure.update_xaxes(type="log", autorange="reversed")

    # -- inside --------------------------------------------------------------

    def _verdict(self, place: int) -> str:
        if self.matching[place] != "undecided":
            return self.matching[place]
        return "undecided, likelier " + ("yes" if self.gap[place] <= self.eps else "no")

    @property
    def _decides(self) -> bool:
        """Whether eps is known."""
        return math.isfinite(self.eps)

    @property
    def _eps(self) -> str:
        return f"eps {_amount(self.eps, self._classifies)} of {len(self.replicates) + 1} dense trainings"

    @property
    def _reason(self) -> str:
        """Why eps is not known."""
        return (
            "the dense trainings have no finite standard deviation" if len(self.replicates) else "no dense replicates"
        )

    @property
    def _classifies(self) -> bool:
        return bool(np.isfinite(self.test_error).all())

    @property
    def _scale(self) -> int:
        return 100 if self._classifies else 1

    @property
    def _values(self) -> np.ndarray:
        return self.test_error if self._classifies else self.test_loss

    @property
    def _gap_form(self) -> str:
        return "{:+.2f} pp" if self._classifies else "{:+.3g}"

    def _value(self, value: float) -> str:
        return _number(self._scale * value, "{:.2f}%" if self._classifies else "{:.4g}")

    def _shown(self) -> tuple[np.ndarray, str]:
        return self._scale * self._values, "test error (%)" if self._classifies else f"test loss ({self.loss})"

    def _named(self, place: int) -> str:
        return f"test {'error' if self._classifies else 'loss'} {self._value(self._values[place])}"


# -- the question -----------------------------------------------------------------------------------------------------


def matching(gap: float, error: float, eps: float, interval: Sequence[float]) -> str:
    """Whether a gap (with its standard error) lies below eps (with its interval): yes, no, undecided; "unknown" where eps is."""
    if not math.isfinite(eps):
        return "unknown"
    turn = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
    if gap + turn * error <= interval[0]:
        return "yes"
    return "no" if gap - turn * error > interval[1] else "undecided"


def spread(errors: Sequence[float], least: float = 0.0) -> tuple[float, list[float]]:
    """The standard deviation of the errors of dense trainings and its chi-square interval; NaN of fewer than two.

    least: the interval reaches up to it at least; see `noise`. Its lower end stays: a gap is called below eps only where it is below the least that eps may be.
    """
    n = len(errors)
    if n < 2:
        return math.nan, [math.nan, math.nan]
    deviation = float(np.std(errors, ddof=1))
    tail = (1 - CONFIDENCE) / 2
    ends = [deviation * math.sqrt((n - 1) / float(stats.chi2.ppf(q, n - 1))) for q in (1 - tail, tail)]
    return deviation, [ends[0], max(ends[1], least)]


def noise(errors: np.ndarray) -> float:
    """The standard error of an error over its rows (N,), sqrt(p (1 - p) / N), and one row at the least. Dense errors that are equal, since rows are few, do not show that the trainings are."""
    return max(float(errors.std()) / math.sqrt(len(errors)), 1 / len(errors))


def by_row(f: Objective, z: Tensor) -> tuple[np.ndarray, float]:
    """Errors by row (N,), or losses where these do not classify, in float64; and the mean loss."""
    losses, right = f.by_row(z)
    rows = 1 - right if f.loss.classifies else losses
    return rows.cpu().double().numpy(), float(losses.mean())


def ladder(
    train: Objective,
    test: Objective,
    points: Sequence[Tensor],
    buffers: Sequence[Buffers],
    masks: Sequence[Mask],
    facts: Sequence[Mapping[str, Any]],
    *,
    among: Mask,
    replicates: Sequence[tuple[Tensor, Buffers]] = (),
    ablations: Mapping[str, Mapping[int, tuple[Tensor, Buffers]]] | None = None,
    fixed_rate: float | None = None,
    one_start: bool = False,
) -> Ladder:
    """Levels 0, 1, ... of iterative pruning: solutions (D,) with their buffers, their masks, and what pruning did (`tickets.Level.facts`).

    among: the mask of what may be pruned. replicates: dense solutions besides level 0. ablations: by kind, then level. fixed_rate: where every level had the same.
    one_start: whether level 0 and its replicates began with the same weights.
    """
    classifies = test.loss.classifies

    def rowwise(point: Tensor, own: Buffers) -> tuple[np.ndarray, float]:
        return by_row(test.with_buffers(own), point)

    scores = [rowwise(point, own) for point, own in zip(points, buffers, strict=True)]
    trained = [train.with_buffers(own).value(point) for point, own in zip(points, buffers, strict=True)]
    errors = [row for row, _ in scores]
    gaps = [row - errors[0] for row in errors]
    gap = np.array([float(row.mean()) for row in gaps])
    gap_error = np.array([float(row.std(ddof=1) / math.sqrt(len(row))) if len(row) > 1 else math.nan for row in gaps])
    if classifies:  # N rows that all agree bound the share of those that do not by 3 / N at 95%, two standard errors
        gap_error[1:] = np.maximum(gap_error[1:], 1.5 / len(test.rows))
    others = np.array([float(rowwise(*one)[0].mean()) for one in replicates])
    eps, interval = spread([float(errors[0].mean()), *others], noise(errors[0]) if classifies else 0.0)
    verdicts = [matching(g, e, eps, interval) for g, e in zip(gap, gap_error, strict=True)]
    if verdicts:
        verdicts[0] = "yes"
    beside = {
        kind: np.array(
            [float(rowwise(*found[place])[0].mean()) if place in found else math.nan for place in range(len(points))]
        )
        for kind, found in (ablations or {}).items()
    }
    counts = [(mask & among).counts() for mask in masks]
    whole = among.counts()
    survivors = np.array([int(fact["survivors"]) for fact in facts])
    warnings = []
    if not len(others):
        warnings.append(
            "No dense replicates: whether a level matches the dense network is not decided. Give --replicates 3."
        )
    elif one_start:
        warnings.append(
            "All dense trainings start from the same weights: their spread, by which levels are judged, is that of SGD noise alone. Let the task make other weights for another seed."
        )
    elif len(others) < 3 and math.isfinite(eps):
        warnings.append(
            f"{len(others) + 1} dense trainings tell their standard deviation poorly: its 95% interval reaches from {_amount(interval[0], classifies)} to {_amount(interval[1], classifies)}. Give --replicates 5."
        )
    if _same_rows(train.rows, test.rows):
        warnings.append(
            f"There are no test rows: what stands as test {'error' if classifies else 'loss'} is measured on the train rows. Give the task test rows of its own."
        )
    if classifies:
        guess = _chance(test)
        lost = [place for place, row in enumerate(errors) if row.mean() >= guess - NEAR_CHANCE]
        if lost:
            warnings.append(
                f"At chance: the test error of level {', '.join(map(str, lost))} is that of guessing ({guess:.1%}). A barrier between such networks shows nothing."
            )
    return Ladder(
        question={},
        provenance={"dtype": dtype_name(train.dtype), "device": str(train.device), "D": train.model.layout.dim},
        warnings=tuple(warnings),
        levels=np.arange(len(points)),
        survivors=survivors,
        expected=survivors[0] * (1 - fixed_rate) ** np.arange(len(points))
        if fixed_rate is not None
        else np.full(len(points), math.nan),
        density=survivors / among.size,
        rates=np.array([float(fact["rate"]) if place else math.nan for place, fact in enumerate(facts)]),
        thresholds=np.array([_float(fact["threshold"]) for fact in facts]),
        effective=_effective(train, masks, among),
        layers={name: np.array([own[name][0] / of for own in counts]) for name, (of, _) in whole.items() if of},
        test_error=np.array([float(row.mean()) if classifies else math.nan for row in errors]),
        test_loss=np.array([loss for _, loss in scores]),
        train_error=np.array([1 - float(value.accuracy) for value in trained]),
        train_loss=np.array([float(value.loss) for value in trained]),
        gap=gap,
        gap_error=gap_error,
        replicates=others,
        eps=eps,
        eps_interval=interval,
        matching=verdicts,
        ablations=beside,
        rows={"train": len(train.rows), "test": len(test.rows)},
        loss=train.loss.name,
    )


def _effective(f: Objective, masks: Sequence[Mask], among: Mask) -> np.ndarray:
    """Survivors on a path from the inputs to the outputs (L,); NaN where the model cannot be asked: where it refuses, or finds weights of the dense network on no path."""
    try:
        found = np.array([float((pruning.effective(f, mask) & among).size) for mask in masks])
        known = pruning.effective(f, Mask.full(f.model.layout)) & among == among
    except LandscapeError:  # it says of which models it knows no paths
        known = False
    return found if known else np.full(len(masks), math.nan)


def _same_rows(one: Rows, other: Rows) -> bool:
    """Whether the shorter rows are the first of the longer: test rows that are the train rows, of which --limit may take a part."""
    n = min(len(one), len(other))
    one, other = one.take(slice(n)), other.take(slice(n))
    # targets first: they are the smaller, and different ones end it
    pairs = zip([one.targets, *_leaves(one.inputs)], [other.targets, *_leaves(other.inputs)], strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def _amount(value: float, is_error: bool) -> str:
    return f"{100 * value:.2f} pp" if is_error else f"{value:.3g}"


def _float(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _number(value: float, form: str) -> str:
    return form.format(value) if math.isfinite(value) else "-"


def _count(value: float) -> str:
    return f"{int(value):,}" if math.isfinite(value) else "-"
