"""Plateaus of a wide network's training, matched with critical points of narrow networks; and the empirical diagram of critical points over widths.

Letters: N rows, n inputs a row, K outputs, m width, E networks in lockstep, S recorded steps, Q plateaus, C cases.

    network      f(x) = c sum_k a_k sigma(w_k.x + b_k), two layers, no bias on the output (Zhang et al. 2021); c = 1, or m^(-1/2) in the NTK parametrisation
    plateau      an interval of the training where the loss hardly falls with log time: a deep minimum of |d log loss / d log step|; told by its iterate of least L1 gradient
    case         a critical output function: critical points of any width with these outputs. Its origin is the least of the widths at which it was found
    degeneracy   zero eigenvalues of the Hessian at the case's points, at their origin and embedded in wider networks

By the embedding principle each case of a narrow network is a critical point of the wide one. From a tiny initialisation descent passes near some of them: its plateaus.
Trainings that stay at a finite distance from them bend the loss without a plateau. With c = 1 and many units that happens: the units have to
share the output, stay small against their input weights, and never become alike; c = m^(-1/2) gives them the balance that a small network has.

Sources: Zhang et al. 2021, figures 1 and 4 (protocol; tiny variance m^-3; iterates of the least L1 gradient; degeneracies); Jacot et al. 2018 (parametrisation).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from landscape import critical, datasets, tasks, units
from landscape.analysis.styles import BLACK, CYCLE, GREY, heading
from landscape.critical import Found
from landscape.datasets import Data
from landscape.embeddings import to_width
from landscape.errors import DivergedError, UsageError, unknown
from landscape.inertias import inertia
from landscape.objectives import Objective, Rows
from landscape.results import Result
from landscape.seeds import generator

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from plotly.graph_objects import Figure

Optimizer = Literal["gd", "adam"]
Parametrisation = Literal["ntk", "standard"]
# learning rates: 0.02 of Adam is the paper's on Iris. 0.1 in the NTK parametrisation keeps the candidate target's first plateau below the edge of stability at widths 30 to 500 (at
# 0.2 width 30 swings over it); the paper's 0.005 of the standard one is where 500 units are just stable
RATES: dict[tuple[str, str], float] = {
    ("gd", "ntk"): 0.1,
    ("gd", "standard"): 0.005,
    ("adam", "ntk"): 0.02,
    ("adam", "standard"): 0.02,
}
VARIANCE = (
    3.0  # initial weights have variance m^-3: the paper's "tiny", outside the regime where wide networks are linear
)
SPACING = 1.03  # of recorded steps: 370 of 50,000
SLOW = 0.02  # of a plateau |d log loss / d log step| is at most this: the loss then takes a step of e^50 to fall by e
DEEP = 3.0  # and this many times faster before and after
SMOOTH = 0.4  # in log step: slopes are of the loss averaged over so much, a factor of 1.5, so that swings at the edge of stability are no plateaus
MATCHED = 1e-2  # of the largest target: a plateau is at a case whose outputs differ from its own by less; two cases do by more
RISES = 0.01  # above the least loss so far, as a share: gradient flow never rises
SHOWN = 300  # rows whose outputs are kept
DRAWN = 6  # cases of one origin in the pictures, those of least loss
SAME_OUTPUT = (
    1e-5  # of the largest target: two critical points whose outputs differ by less are one case; apart they are by 1e-2
)
SLOPES: dict[str, Callable[[Tensor], Tensor]] = {  # in place, from the activation's value
    "tanh": lambda h: h.square_().neg_().add_(1),
    "sigmoid": lambda h: h.addcmul_(h, h, value=-1),
}
VALUES: dict[str, Callable[[Tensor], Tensor]] = {"tanh": Tensor.tanh_, "sigmoid": Tensor.sigmoid_}


# -- the answer -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Plateaus(Result):
    """One wide training, its plateaus, and the cases among which each has its nearest."""

    wide: int
    widths: np.ndarray  # (W,)
    activation: str
    optimizer: str
    rate: float
    parametrisation: str
    inputs: np.ndarray  # (N,) where a row is one number; empty else
    targets: np.ndarray  # (N', K) of the rows kept
    steps: np.ndarray  # (S,)
    losses: np.ndarray  # (S,)
    gradients: np.ndarray  # (S,) L1 norm
    plateaus: list[
        dict[str, Any]
    ]  # first, last (steps), step, loss, gradient, case, loss_difference, largest, rms (differences of outputs from the case's)
    outputs: np.ndarray  # (Q, N', K)
    cases: list[
        dict[str, Any]
    ]  # origin, loss, inertias (by width: positive, zero, negative), ambiguous, found (by "width finder": points), gradient
    fits: np.ndarray  # (C, N', K)
    searches: list[dict[str, Any]]  # width, finder, starts, converged, stalled, points (distinct), seconds
    seconds: float  # of the wide training

    # -- numbers ------------------------------------------------------------------------------------------------------

    def best(self, width: int) -> dict[str, Any] | None:
        """The case of least loss that begins at a width; None where none was found."""
        return min(
            (case for case in self.cases if case["origin"] == width), key=lambda case: float(case["loss"]), default=None
        )

    @property
    def drawn(self) -> list[int]:
        """The cases that the pictures show: of each origin those of least loss, and whatever a plateau has as its nearest."""
        order = sorted(range(len(self.cases)), key=lambda place: self.cases[place]["loss"])
        near = {plateau["case"] for plateau in self.plateaus}
        kept: list[int] = []
        for place in order:
            before = sum(self.cases[other]["origin"] == self.cases[place]["origin"] for other in kept)
            if before < DRAWN or place in near:
                kept.append(place)
        return sorted(kept)

    # -- words --------------------------------------------------------------------------------------------------------

    def summary(self) -> str:
        """See Result."""
        said = []
        for plateau in self.plateaus:
            case = self.cases[plateau["case"]]
            if not plateau.get("matched", True):
                said.append(
                    f"step {plateau['step']:,} at loss {plateau['loss']:.6g}, at no critical point that was found (the nearest is a {_origin(case)}, outputs apart by {plateau['largest']:.1g})"
                )
                continue
            said.append(
                f"step {plateau['step']:,} at loss {plateau['loss']:.6g}, {abs(plateau['loss_difference']):.1g} {'above' if plateau['loss_difference'] > 0 else 'below'} a {_origin(case)} (outputs apart by at most {plateau['largest']:.1g})"
            )
        counts = ", ".join(
            f"{sum(case['origin'] == width for case in self.cases)} of width {width}" for width in self.widths
        )
        return f"width {self.wide:,}: {len(said)} plateau{'s' if len(said) != 1 else ''}{': ' if said else ''}{'; '.join(said)}. Critical output functions found: {counts}"

    def caption(self) -> str:
        """See Result."""
        scale = "outputs divided by the root of the width" if self.parametrisation == "ntk" else "outputs as they are"
        text = (
            f"Training of a two-layer {self.activation} network of width {self.wide:,} ({self.optimizer}, rate {self.rate:g}, full batches, initial variance 1/m^{VARIANCE:g}, {scale}; {int(self.steps[-1]):,} steps) and the losses of critical points of narrow networks (lines). "
            f"Plateau: where |d log loss / d log step| has a minimum of at most {SLOW:g} with {DEEP:g} times as much on both sides; its point is the iterate of least L1 gradient there, and its nearest case that with the least difference of outputs. "
            f"Cases: critical points with one output function; where their Hessians have zeros or negatives the diagram says so, at the width of the search and embedded in the wider ones (even splits). The finders find what they find: the diagram need not be complete. "
        )
        if self.provenance.get("data", "").startswith("CANDIDATE"):
            text += "The target is a candidate for the paper's undocumented one, inferred from its figures: agreement with its numbers is no confirmation."
        return text.rstrip()

    def table(self) -> list[tuple[str, ...]]:
        """See Result."""
        rows: list[tuple[str, ...]] = [
            ("case", "origin", "loss", *(f"width {width}" for width in self.widths), "found by")
        ]
        order = sorted(self.drawn, key=lambda place: (self.cases[place]["origin"], self.cases[place]["loss"]))
        for place in order:
            case = self.cases[place]
            signs = [_signs(case, int(width)) for width in self.widths]
            found = ", ".join(f"{name}: {count}" for name, count in case["found"].items())
            rows.append((str(place), str(case["origin"]), f"{case['loss']:.6g}", *signs, found))
        return rows

    def panels(self) -> tuple[str, ...]:
        """`losses`, `outputs` where there is a plateau to show them of, `diagram`."""
        shown = self.inputs.size or any(self.cases[plateau["case"]]["origin"] > 0 for plateau in self.plateaus)
        return ("losses", "outputs", "diagram") if shown else ("losses", "diagram")

    # -- pictures -----------------------------------------------------------------------------------------------------

    def plot(self, ax: Axes, panel: str = "") -> None:
        """See Result."""
        drawings: dict[str, Callable[[Axes], None]] = {"losses": self._plot_losses, "outputs": self._plot_outputs, "diagram": self._plot_diagram}  # fmt: skip
        panel = panel or "losses"
        if panel not in drawings:
            raise unknown("panel", panel, drawings)
        drawings[panel](ax)

    def _color(self, origin: int) -> str:
        return GREY if origin == 0 else CYCLE[1 + list(self.widths).index(origin) % (len(CYCLE) - 1)]

    def _plot_losses(self, ax: Axes) -> None:
        ax.plot(np.maximum(self.steps, 0.5), self.losses, color=CYCLE[0], label=f"width {self.wide:,}")
        told = set()
        for place in self.drawn:
            case = self.cases[place]
            origin = case["origin"]
            if case["loss"] < self.losses.min() / 3:
                continue  # below what the training came to
            label = "_" if origin in told else _origin(case).capitalize()
            ax.axhline(
                case["loss"],
                color=self._color(origin),
                linestyle=DASHES[origin % len(DASHES)],
                linewidth=0.9,
                label=label,
                zorder=1,
            )
            told.add(origin)
        for plateau in self.plateaus:
            ax.plot(
                max(plateau["step"], 0.5),
                plateau["loss"],
                "o",
                color=BLACK,
                markersize=5,
                markerfacecolor="white",
                zorder=4,
            )
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xlabel("step")
        ax.set_ylabel("loss")
        heading(ax, "Training, and critical points of narrow networks", columns=2)

    def _plot_outputs(self, ax: Axes) -> None:
        shown = [place for place, plateau in enumerate(self.plateaus) if self.cases[plateau["case"]]["origin"] > 0][:3]
        if self.inputs.size:
            order = np.argsort(self.inputs)
            ax.plot(self.inputs, self.targets[:, 0], ".", color=GREY, markersize=4, label="target")
            for number, place in enumerate(shown):
                plateau, color = self.plateaus[place], CYCLE[number]
                ax.plot(
                    self.inputs[order],
                    self.outputs[place, order, 0],
                    color=color,
                    linewidth=2.4,
                    alpha=0.6,
                    label=f"step {plateau['step']:,}",
                )
                fit = self.fits[plateau["case"], order, 0]
                ax.plot(
                    self.inputs[order],
                    fit,
                    "--",
                    color=BLACK,
                    linewidth=1,
                    label=f"{_origin(self.cases[plateau['case']])}, apart ≤ {plateau['largest']:.1g}",
                )
            ax.set_xlabel("input")
            ax.set_ylabel("output")
        else:
            for number, place in enumerate(shown):
                plateau = self.plateaus[place]
                fit = self.fits[plateau["case"]].ravel()
                ax.plot(
                    fit,
                    self.outputs[place].ravel() - fit,
                    ".",
                    color=CYCLE[number],
                    markersize=3,
                    label=f"step {plateau['step']:,}, {_origin(self.cases[plateau['case']])}",
                )
            ax.axhline(0, color=GREY, linewidth=0.8)
            low, high = ax.get_xlim()
            least = 0.1 * float(np.abs(self.targets).max())
            if high - low < least:  # a constant output and its rounding
                ax.set_xlim((low + high - least) / 2, (low + high + least) / 2)
            ax.set_xlabel("output of the narrow network")
            ax.set_ylabel("difference of the wide one")
        heading(ax, "Outputs at the plateaus", columns=2)

    def _plot_diagram(self, ax: Axes) -> None:
        told = set()
        losses = [self.cases[place]["loss"] for place in self.drawn]
        apart = 0.04 * (max(losses) - min(losses)) if losses else 0.0  # a line of these letters
        labelled: dict[int, list[float]] = {}
        for place in self.drawn:
            case = self.cases[place]
            there = [int(width) for width in self.widths if str(int(width)) in case["inertias"]]
            origin, height = case["origin"], case["loss"]
            if not there:
                continue
            label = "_" if origin in told else f"begins at width {origin}"
            told.add(origin)
            ax.plot(
                there,
                [height] * len(there),
                marker=MARKERS[origin % len(MARKERS)],
                color=self._color(origin),
                linestyle=":",
                linewidth=0.8,
                markersize=6,
                label=label,
            )
            for width in there:
                _, zero, negative = case["inertias"][str(width)]
                taken = labelled.setdefault(width, [])
                # the table has those that would cover another
                if (zero or negative) and all(abs(height - other) > apart for other in taken):
                    taken.append(height)
                    ax.annotate(
                        f"{zero} zero, {negative} neg.",
                        (width, height),
                        textcoords="offset points",
                        xytext=(6, 4),
                        fontsize=6,
                    )
        ax.set_xticks(self.widths)
        ax.set_xlim(self.widths.min() - 0.3, self.widths.max() + 0.7)
        ax.set_xlabel("width")
        ax.set_ylabel("loss")
        heading(ax, "Critical points over widths")

    def figure(self) -> Figure:
        """See Result."""
        import plotly.graph_objects as go

        from landscape.analysis.styles import interactive

        figure = go.Figure()
        figure.add_scatter(x=np.maximum(self.steps, 0.5), y=self.losses, mode="lines", name=f"width {self.wide:,}")
        for place in self.drawn:
            case = self.cases[place]
            if case["loss"] >= self.losses.min() / 3:
                figure.add_hline(
                    y=case["loss"],
                    line={"color": self._color(case["origin"]), "dash": "dash", "width": 1},
                    annotation_text=_origin(case),
                )
        figure.add_scatter(x=[max(p["step"], 0.5) for p in self.plateaus], y=[p["loss"] for p in self.plateaus], mode="markers", marker={"size": 9, "symbol": "circle-open"}, name="plateaus")  # fmt: skip
        figure.update_xaxes(type="log")
        figure.update_yaxes(type="log")
        return interactive(figure, x="step", y="loss")


DASHES = ("-", "--", "-.", ":")
MARKERS = ("s", "o", "^", "D", "v")


def _origin(case: dict[str, Any]) -> str:
    return "zero output" if case["origin"] == 0 else f"critical point of width {case['origin']}"


def _signs(case: dict[str, Any], width: int) -> str:
    found = case["inertias"].get(str(width))
    return (
        "" if found is None else f"+{found[0]} 0:{found[1]} -{found[2]}{'?' if str(width) in case['ambiguous'] else ''}"
    )


# -- the measurement --------------------------------------------------------------------------------------------------


def plateau(
    rows: Rows,
    *,
    widths: Sequence[int] = (1, 2, 3),
    wide: int = 500,
    activation: str = "tanh",
    optimizer: Optimizer = "gd",
    parametrisation: Parametrisation = "ntk",
    rate: float | None = None,
    steps: int = 50_000,
    starts: int = 150,
    trainings: int = 10,
    seed: int = 0,
) -> Plateaus:
    """Train the wide network from a tiny initialisation, find its plateaus, and match them with the critical points of narrow ones.

    rows       inputs (N, n) and targets (N, K), both floating: classes as one-hot rows
    starts     of the trust region, at each narrow width
    trainings  narrow ones, whose flattest iterates Newton's method starts from, at each narrow width

    Raises UsageError for options out of range, DivergedError where the training does not stay finite.
    """
    inputs, targets = rows.inputs, rows.targets
    if not isinstance(inputs, Tensor) or inputs.ndim != 2 or targets.ndim != 2 or not targets.is_floating_point():
        raise UsageError(
            "plateaus are of a two-layer network: give inputs (rows, features) and floating targets (rows, outputs)."
        )
    if (optimizer, parametrisation) not in RATES:
        raise unknown(
            "optimizer and parametrisation", f"{optimizer} {parametrisation}", [" ".join(pair) for pair in RATES]
        )
    if activation not in VALUES:
        raise unknown("activation", activation, VALUES)
    counts = {
        "--wide": wide,
        "--steps": steps,
        "--starts": starts,
        "--trainings": trainings,
        "--widths": min(widths, default=0),
    }
    for name, number in counts.items():
        if number < 1:
            raise UsageError(f"{name} must be at least 1; got {number}.")
    widths = sorted(set(widths))
    if widths[-1] >= wide:
        raise UsageError(f"the narrow widths must stay below the wide one ({wide}); got {widths[-1]}.")
    if bool((inputs == inputs[:1]).all()):
        raise UsageError(
            f"all {len(rows)} rows have the same inputs: there is nothing to fit. Give others, or more of them."
        )
    rows = rows.to(torch.device("cpu"), torch.float64)
    chosen: dict[str, Any] = {"activation": activation, "optimizer": optimizer, "parametrisation": parametrisation}
    chosen["rate"] = RATES[optimizer, parametrisation] if rate is None else rate
    cases, fits, searches = diagram(rows, widths, starts=starts, trainings=trainings, activation=activation, seed=seed)
    started = time.perf_counter()
    recorded = [
        (point.step, point.loss[0], point.gradient[0], point.outputs[0])
        for point in train(rows, wide, steps=steps, seed=seed, **chosen)
    ]
    taken = time.perf_counter() - started
    at, losses, gradients = (np.array([float(point[part]) for point in recorded]) for part in range(3))
    shown = slice(0, SHOWN)
    told, outputs = [], []
    for first, last in intervals(at, losses):
        place = first + int(gradients[first : last + 1].argmin())
        answer = recorded[place][3]
        apart = [float((answer - fit).abs().max()) for fit in fits]
        case = int(np.argmin(apart))
        told.append({
            "first": int(at[first]), "last": int(at[last]), "step": int(at[place]), "loss": float(losses[place]), "gradient": float(gradients[place]), "case": case,
            "loss_difference": float(losses[place] - cases[case]["loss"]), "matched": apart[case] <= MATCHED * float(rows.targets.abs().max()), "largest": apart[case], "rms": float((answer - fits[case]).square().mean().sqrt()),
        })  # fmt: skip
        outputs.append(answer[shown].numpy())
    kept = rows.targets[shown].numpy()
    least = np.minimum.accumulate(losses)
    rising = np.flatnonzero(losses > (1 + RISES) * least)
    notes: tuple[str, ...] = ()
    if len(rising):
        first = rising[0]
        notes = (f"the loss rises, first at step {int(at[first]):,} to {losses[first]:.3g} from {least[first]:.3g}: descent is not stable at this rate, and what follows is no plateau of a gradient flow. Use a smaller --lr.",)  # fmt: skip
    return Plateaus(
        question={}, provenance={"rows": len(rows), "dtype": "float64", "seed": seed}, warnings=notes,
        wide=wide, widths=np.array(widths), activation=activation, optimizer=optimizer, rate=chosen["rate"], parametrisation=parametrisation,
        inputs=rows.inputs[shown, 0].numpy() if rows.inputs.shape[1] == 1 else np.empty(0), targets=kept,  # type: ignore[union-attr,call-overload,index]
        steps=at.astype(int), losses=losses, gradients=gradients, plateaus=told, outputs=np.stack(outputs) if outputs else np.empty((0, *kept.shape)),
        cases=cases, fits=np.stack([fit[shown].numpy() for fit in fits]) if fits else np.empty((0, *kept.shape)), searches=searches, seconds=taken,
    )  # fmt: skip


CANDIDATE, IRIS = "candidate-target", "iris"
OWN = {
    CANDIDATE: "CANDIDATE for the undocumented target of Zhang et al. 2021: tanh(x - 7) + tanh(x) + tanh(x + 7) at 50 equispaced x in [-15, 15]",
    IRIS: "Iris (scikit-learn), 150 rows of 4 features, each with mean 0 and deviation 1, 3 classes one-hot; nothing to fetch",
}


def problem(spec: str, *, folder: Path | None = None, limit: int | None = None) -> Data:
    """Rows (N, n) with floating targets (N, K), classes one-hot: one of OWN, a data set (datasets.DATASETS), or the data of the user's module:function or file.py:function.

    Raises UsageError for other names, and for rows of several tensors.
    """
    if spec in OWN:
        rows = critical.candidate() if spec == CANDIDATE else _iris()
        found = datasets.assemble(rows, rows, None, OWN[spec])
        found = found if limit is None else datasets.limited(found, limit)
    elif tasks.is_code(spec):
        found = tasks.find(spec, limit=limit).data
    elif spec in datasets.DATASETS:
        found = datasets.load(spec, folder=folder, limit=limit)
    else:
        error = unknown("problem", spec, [*OWN, *datasets.DATASETS])
        raise UsageError(
            f"{error} The networks are two-layer ones of the widths asked for, so name the data alone; or give package.module:function or file.py:function."
        )

    def plain(rows: Rows) -> Rows:
        if not isinstance(rows.inputs, Tensor):
            raise UsageError(f"a row of {spec} is of several tensors: the networks take one.")
        targets = rows.targets
        if found.classes is not None:
            targets = torch.nn.functional.one_hot(targets, len(found.classes))
        elif not targets.is_floating_point():
            raise UsageError(f"the targets of {spec} are integers that are no classes from 0 on: give floating ones.")
        return Rows(rows.inputs.flatten(1).double(), targets.reshape(len(targets), -1).double())

    return datasets.assemble(plain(found.train), plain(found.test), None, found.description)


def _iris() -> Rows:
    from sklearn.datasets import load_iris

    bundle = load_iris()
    inputs = torch.from_numpy(bundle.data).double()
    inputs = (inputs - inputs.mean(0)) / inputs.std(0, correction=0)
    return Rows(inputs, torch.nn.functional.one_hot(torch.from_numpy(bundle.target).long()).double())


# -- training ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Recorded:
    """A state of E trainings in lockstep."""

    step: int
    loss: Tensor  # (E,)
    gradient: Tensor  # (E,) L1 norm
    outputs: Tensor  # (E, N, K)
    weights: Tensor  # (E, m, n + 1) input weights with the bias last
    scales: Tensor  # (E, m, K) output weights, the parametrisation's factor in them


def train(
    rows: Rows,
    width: int,
    *,
    steps: int,
    rate: float,
    activation: str = "tanh",
    optimizer: Optimizer = "gd",
    parametrisation: Parametrisation = "ntk",
    members: int = 1,
    seed: int = 0,
) -> Iterator[Recorded]:
    """Full-batch trainings of two-layer networks from a tiny initialisation, recorded at log-spaced steps and the last. Raises DivergedError.

    By hand, since hundreds of thousands of steps of a network so small are all overhead: a step of width 500 on 50 rows takes 0.2 ms, a tenth of what autograd takes.
    """
    features: Tensor = torch.cat([rows.inputs, rows.inputs.new_ones(len(rows), 1)], dim=1)  # type: ignore[list-item,union-attr]
    answers = rows.targets.T.contiguous()  # (K, N)
    value, slope = VALUES[activation], SLOPES[activation]
    factor = width**-0.5 if parametrisation == "ntk" else 1.0
    draws = generator(seed, "training", width)
    shape, deviation = (members, width, features.shape[1]), width ** (-VARIANCE / 2)
    w = deviation * torch.randn(shape, generator=draws, dtype=torch.float64)
    a = deviation * torch.randn(members, width, len(answers), generator=draws, dtype=torch.float64)
    moments = [torch.zeros_like(part) for part in (w, w, a, a)]
    slopes = 2 / answers.numel()
    due = 0.0
    for step in range(steps + 1):
        hidden = value(w @ features.T)  # (E, m, N)
        outputs = factor * (a.mT @ hidden)  # (E, K, N)
        error = (outputs - answers) * (slopes * factor)
        by_a = hidden @ error.mT
        recording = step >= due or step == steps
        backward = a @ error
        backward *= slope(hidden)
        by_w = backward @ features
        if recording:
            due = max(step + 1, step * SPACING)
            loss = (outputs - answers).square().mean(dim=(1, 2))
            if not bool(torch.isfinite(loss).all()):
                raise DivergedError(
                    f"the loss stopped being finite by step {step:,}: use a smaller --lr than {rate:g}."
                )
            gradient = by_w.abs().sum(dim=(1, 2)) + by_a.abs().sum(dim=(1, 2))
            yield Recorded(step, loss, gradient, outputs.mT.contiguous(), w.clone(), factor * a)
        if optimizer == "gd":
            w.sub_(by_w, alpha=rate)
            a.sub_(by_a, alpha=rate)
            continue
        for part, by, first, second in ((w, by_w, *moments[:2]), (a, by_a, *moments[2:])):
            first.lerp_(by, 0.1)
            second.mul_(0.999).addcmul_(by, by, value=0.001)
            spread = (second / (1 - 0.999 ** (step + 1))).sqrt_().add_(1e-8)
            part.addcdiv_(first, spread, value=-rate / (1 - 0.9 ** (step + 1)))


def intervals(steps: np.ndarray, losses: np.ndarray) -> list[tuple[int, int]]:
    """Plateaus of a loss (S,) over steps (S,): the first and the last place of each, in order of time.

    |d log loss / d log step|, of the loss smoothed, has a minimum of at most SLOW, DEEP times as much on both sides (an end of the training counts as a side), and stays within DEEP times
    the minimum.
    """
    from scipy.signal import find_peaks

    usable = (steps >= 1) & (losses > 0)
    if usable.sum() < 3:
        return []
    logs = np.log(steps[usable].astype(float))
    spacing = math.log(SPACING)
    grid = np.arange(logs[0], logs[-1] + spacing / 2, spacing)
    level = np.interp(grid, logs, np.log(losses[usable]))
    window = min(round(SMOOTH / spacing) // 2, (len(grid) - 1) // 2)
    inner = np.convolve(level, np.full(2 * window + 1, 1 / (2 * window + 1)), mode="valid")
    if len(inner) < 2:
        return []
    grid = grid[window : len(grid) - window]
    # below a ten-thousandth of what counts as slow, slower is slow enough: rounding would else be a plateau's deepest place
    depth = -np.log(np.maximum(np.abs(np.gradient(inner, grid)), SLOW * 1e-4))
    end = depth.min() - math.log(DEEP) - 1
    tops, _ = find_peaks(np.concatenate([[end], depth, [end]]), prominence=math.log(DEEP))
    found: list[tuple[int, int]] = []
    for top in tops - 1:
        if depth[top] < -math.log(SLOW):
            continue
        left, right = np.split(depth < depth[top] - math.log(DEEP), [top])
        first = len(left) - int(left[::-1].argmax()) if left.any() else 0
        last = top + int(right.argmax()) - 1 if right.any() else len(depth) - 1
        # an end of the training lies half a window outside what is smoothed
        low = -math.inf if first == 0 else grid[first]
        high = math.inf if last == len(depth) - 1 else grid[last]
        inside = np.flatnonzero(usable)[(logs >= low - 1e-9) & (logs <= high + 1e-9)]
        if len(inside) and found and inside[0] <= found[-1][1]:  # what parts them is shorter than a recorded step
            found[-1] = (found[-1][0], max(found[-1][1], int(inside[-1])))
        elif len(inside):
            found.append((int(inside[0]), int(inside[-1])))
    return found


# -- critical points over widths --------------------------------------------------------------------------------------


def diagram(
    rows: Rows, widths: Sequence[int], *, starts: int, trainings: int, activation: str = "tanh", seed: int = 0
) -> tuple[list[dict[str, Any]], list[Tensor], list[dict[str, Any]]]:
    """Critical points of two-layer networks over widths by two finders, one case for each output function: the cases, their outputs (N, K) each, and how the searches went.

    Finders: the trust region from random starts (minima), and Newton's method from the flattest iterates of trainings (points of any index).
    The origin of a case is the first width it was found at; its inertias are those at that width and, embedded by even splits, at the wider ones.
    For an odd activation, zero output is a case of origin 0.
    """
    inputs, outputs = rows.inputs.shape[1], rows.targets.shape[1]  # type: ignore[union-attr]
    largest = float(rows.targets.abs().max())
    cases: list[dict[str, Any]] = []
    fits: list[Tensor] = []
    searches: list[dict[str, Any]] = []
    if activation in critical.ODD:
        cases.append(
            {
                "origin": 0,
                "loss": float(rows.targets.square().mean()),
                "inertias": {},
                "ambiguous": [],
                "found": {},
                "gradient": 0.0,
            }
        )
        fits.append(torch.zeros_like(rows.targets))
    for width in widths:
        module = critical.shallow(inputs, width, outputs, activation)
        f, _ = Objective.of(module, "mse", rows, dtype=torch.float64)
        layers = units.layers(module, rows.inputs[:2])  # type: ignore[index]
        for finder, begin in (("trust region", _scattered), ("training, Newton", _flat)):
            started = time.perf_counter()
            first = begin(rows, width, starts if begin is _scattered else trainings, activation, seed)
            found = critical.find(f, first, method="trust-region" if begin is _scattered else "newton")
            good = found.take(found.certificate.converged)
            classes = critical.distinct(f, good.points, layers)
            seen = {int(number): int((classes == number).nonzero()[0]) for number in torch.unique(classes)}
            for number, place in seen.items():
                answer = f.outputs(good.points[place])
                near = [
                    case for case, fit in enumerate(fits) if float((fit - answer).abs().max()) <= SAME_OUTPUT * largest
                ]
                case = near[0] if near else len(cases)
                if not near:
                    cases.append({"origin": width, "loss": float(good.losses[place]), "inertias": {}, "ambiguous": [], "found": {}, "gradient": float(good.certificate.gradient[place])})  # fmt: skip
                    fits.append(answer)
                    _embed(
                        cases[-1],
                        f,
                        good.take(torch.tensor([place])),
                        layers[0],
                        [one for one in widths if one >= width],
                    )
                name = f"width {width} {finder}"
                cases[case]["found"][name] = cases[case]["found"].get(name, 0) + int((classes == number).sum())
            searches.append({
                "width": width, "finder": finder, "starts": len(first), "converged": len(good.losses), "stalled": int(found.certificate.stalled.sum()),
                "points": len(seen), "seconds": time.perf_counter() - started,
            })  # fmt: skip
    return cases, fits, searches


def _embed(case: dict[str, Any], f: Objective, found: Found, layer: units.Layer, widths: Sequence[int]) -> None:
    """Write the signs of the Hessian's eigenvalues into the case: at its own width, the first of these, and embedded in each wider one by even splits."""
    for width in widths:
        certificate = found.certificate
        if width > layer.size:
            embedding = to_width(f.module(found.points[0]), {layer: width}, "even")
            certificate = critical.certify(embedding.wide_objective(f), embedding.lift(found.points[0])[None])
        signs = inertia(certificate.values[0], cut=float(certificate.cut[0]))
        case["inertias"][str(width)] = list(signs.counts)
        if signs.ambiguous:
            case["ambiguous"].append(str(width))


def _scattered(rows: Rows, width: int, count: int, activation: str, seed: int) -> Tensor:
    """Random starts (E, D): units of random directions and steepnesses whose kinks lie at random rows, and the output weights that fit best."""
    inputs: Tensor = rows.inputs  # type: ignore[assignment]
    draws = generator(seed, "starts", width)
    # steepness over the spread of the rows, log-uniform: from nearly linear over all of them to a step between two
    steep = torch.exp(
        torch.empty(count, width, 1, dtype=torch.float64).uniform_(math.log(0.3), math.log(10.0), generator=draws)
    )
    directions = torch.randn(count, width, inputs.shape[1], generator=draws, dtype=torch.float64)
    spread = ((inputs - inputs.mean(0)) ** 2).sum(1).mean().sqrt()
    w = steep * directions / (directions.norm(dim=2, keepdim=True) * spread)
    w *= math.sqrt(inputs.shape[1])  # a random direction sees that part of the spread
    b = -(w * inputs[torch.randint(len(inputs), (count, width), generator=draws)]).sum(2)
    hidden = VALUES[activation](inputs @ w.mT + b[:, None])
    # a little ridge: units that are nearly alike would get huge weights of opposite signs
    gram = hidden.mT @ hidden / len(inputs) + 1e-3 * torch.eye(width, dtype=torch.float64)
    a = torch.linalg.solve(gram, hidden.mT @ rows.targets / len(inputs))
    return torch.cat([w.flatten(1), b, a.mT.flatten(1)], dim=1)


def _flat(rows: Rows, width: int, count: int, activation: str, seed: int) -> Tensor:
    """The flattest iterates (E, D) of the plateaus of trainings from tiny initialisations."""
    recorded = list(
        train(
            rows,
            width,
            steps=NARROW_STEPS,
            rate=NARROW_RATE,
            activation=activation,
            parametrisation="standard",
            members=count,
            seed=seed,
        )
    )
    at = np.array([point.step for point in recorded])
    losses, gradients = (
        torch.stack([getattr(point, name) for point in recorded]).numpy() for name in ("loss", "gradient")
    )
    found = []
    for member in range(count):
        for first, last in intervals(at, losses[:, member]) or [(0, len(at) - 1)]:
            point = recorded[first + int(gradients[first : last + 1, member].argmin())]
            w, a = point.weights[member], point.scales[member]
            found.append(torch.cat([w[:, :-1].flatten(), w[:, -1], a.T.flatten()]))
    return torch.stack(found)


# of narrow trainings: the candidate target's width-1 fit is too sharp for the paper's 0.005, which is for 500 units, and is reached in 20,000 steps of a fifth of that
NARROW_STEPS, NARROW_RATE = 20_000, 1e-3
