"""How much of a solution can be pruned in one step before its loss rises by more than epsilon: what flatness predicts, what the quadratic says exactly, what the network does.

Letters: D coordinates (all weights that survive so far), n of them prunable, k pruned, P their set, L rises epsilon of the loss, M shares of a curve, draws of a random order.

    F(v)   the objective: the mean training loss, plus decay |v|^2 / 2 where there is weight decay
    limit  the largest share k / n of the prunable weights, pruned in one order, up to which the loss over what is left stays at or below F(w) + epsilon

An order (random, magnitude, ...) makes the pruned sets nested, so that each question has one answer for an order. Predicted from the spectrum at w (`landscape.axial`):

    gordon, free-probability, naive   (1) and (2), (3), and the variant that takes R for R / sqrt(alpha)

exact for the quadratic at w with this mask: `minimum` (4), and `projection` (5), which does not retrain. Measured: `unretrained`, the loss of the network at the projection, up to the first share at which it
is above the level; `retrained`, the least loss that L-BFGS finds within the axial subspace, from the projection and from the quadratic's minimiser. A loss that was found is a fact, one that was not proves nothing:
`retrained` is a lower bound of the network's limit.

The quadratic has its centre at w and leaves the gradient out. What that is worth is the gain g.H^-1 g / 2, the loss that a Newton step would still take away: beside the least epsilon it should be small.

Of an indefinite matrix only (4) and the gain ask for more than it has: there is no least loss, and no Newton step. A formed matrix has its eigenvalues raised for (4). By products all of them can only be shifted,
which is done where the shift is tiny (`SHIFT`), and elsewhere (4) is NaN. (5) and the curvature along the way are always those of the matrix as it is.

Sources: Paul, Chen, Larsen, Frankle, Ganguli, Dziugaite 2023 (the experiment); the rest as in `landscape.axial`.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from landscape import axial, pruning
from landscape.analysis.styles import heading
from landscape.errors import LandscapeError, UsageError, unknown
from landscape.functionals import Measure, measure, standard_error
from landscape.masks import Mask
from landscape.objectives import Objective, dtype_name, require_finite
from landscape.operators import SearchSpace, SymmetricOperator, eigenpairs
from landscape.rays import random_directions
from landscape.results import Result
from landscape.seeds import child_seed, generator
from landscape.subspaces import coordinates

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from plotly.graph_objects import Figure

Matrix = Literal["hessian", "gauss-newton"]
KINDS = ("random", "magnitude")  # the paper's two; any other criterion of `pruning` may be asked for
PREDICTED, QUADRATIC, MEASURED = axial.FORMS, ("minimum", "projection"), ("unretrained", "retrained")

# orders of random masks: their limits differ by some 0.02 on a network of 1,210 weights, so that five tell the mean to 0.01
DRAWS = 5
# up to so many survivors the matrix is formed (72 MB) and all is exact: 3,000 products, a minute for networks of that size. Beyond, Lanczos and conjugate gradients
DENSE = 3000
# gradients of a retraining: on digits 400 find all but 0.02 of the share that 2,000 find, for half of the time
STEPS = 400
HISTORY = 20  # pairs of L-BFGS: half of the steps that 10 take near a minimum, and their memory is small beside that of the rows
FLAT = 1e-6  # of the gradient at the start of a retraining, largest entry: there it has converged
WIDTH = 128  # shares of a limit that is bisected by trainings or by conjugate gradients: its resolution is 1 / 128
SHARES = (
    41  # of a curve: steps of 0.025, within which a limit of the network without retraining is bisected to one weight
)
RADII = 4000  # steps of a distance up to `FAR` times |w|: a robust distance is told to 1 / 2,000 of |w|
FAR = 2.0  # times |w|: beyond the projection to 0, which is at |w|
SOLVED = 1e-4  # residual of conjugate gradients: the loss errs by its square, and a limit is told to 1 / 128
ALIGNED = 0.25  # share of |H|^2 that the diagonal holds beyond what it does by chance: 0.02 on a digits network, 1 for a diagonal matrix, of which eq. 1 to 3 are wrong by a factor of two
SHIFT = 0.01  # of tr H / D, the curvature along a random direction: a larger shift of all eigenvalues would be what (4) tells, since the least loss lies along the flattest directions
CLEAR = 1e-4  # of the largest eigenvalue: below, a gain of raised eigenvalues is g^2 over a number that was made up
GAIN = 0.1  # of the least epsilon: a larger gain of a Newton step is told


@dataclass(frozen=True, kw_only=True)
class Limit(Result):
    """The largest share of the prunable weights that can be pruned at once, by formula, exactly for the quadratic, and measured."""

    ambient: int  # trained parameters
    dim: int  # D
    prunable: int  # n
    epsilons: np.ndarray  # (L,) ascending
    absolute: bool  # given as levels of the loss
    base: float  # F(w)
    decay: float
    norm: float  # |w|, survivors
    gradient: float  # |grad F(w)|
    gain: float  # g.H^-1 g / 2; NaN where the curvature is negative somewhere, and there is no Newton step
    matrix: str
    dense: bool  # formed, so that the spectrum and (4) are exact
    negative: float  # how many eigenvalues are not positive, about where they are not all known
    extremes: np.ndarray  # (2,) smallest and largest eigenvalue seen
    mean: np.ndarray  # (2,) tr H / D and its standard error
    alignment: (
        np.ndarray
    )  # (2,) share of the diagonal in |H|_F^2, and that of random eigenvectors; NaN where the matrix was not formed
    draws: int
    masks: list[str]
    limits: dict[str, dict[str, np.ndarray]]  # by kind and method (2, L): share of n, standard error
    shares: np.ndarray  # (M,) from 0 to 1, of n
    price: np.ndarray  # (M,) loss per R^2 by gordon's form; NaN at 0
    curves: dict[
        str, dict[str, np.ndarray]
    ]  # by kind, (M,) each, means over draws: length, minimum, projection, unretrained (rises), curvature, and its spread over draws
    robust: dict[str, dict[str, np.ndarray]]  # by kind, or sphere: (2, L) distance and standard error; predicted length
    steps: int  # of a retraining at most; 0 for none
    stopped: dict[
        str, dict[str, np.ndarray]
    ]  # by kind (L,): of the refused retrainings next to the limit, largest gradient norm, how many had not converged
    cost: dict[str, float]  # products, gradients, seconds
    shift: float = 0.0  # of all eigenvalues, for (4) by products; NaN where it would be above `SHIFT` tr H / D, and (4) is not told

    # -- words --------------------------------------------------------------------------------------------------------

    @property
    def methods(self) -> tuple[str, ...]:
        """Those that there are, predictions first."""
        found = next(iter(self.limits.values()))
        return tuple(name for name in (*PREDICTED, *QUADRATIC, *MEASURED) if name in found)

    def _level(self, row: int) -> str:
        rise = self.epsilons[row]
        return f"loss {self.base + rise:.4g}" if self.absolute else f"rise {rise:.4g}"

    def summary(self) -> str:
        """See Result."""
        task = self.provenance.get("task")
        shown = [
            name for name in ("gordon", "minimum", "retrained" if self.steps else "unretrained") if name in self.methods
        ]
        parts = []
        for kind in self.masks:
            rows = (
                ", ".join(_share(self.limits[kind][name][0, row], 0.0) for name in shown)
                for row in range(len(self.epsilons))
            )
            parts.append(f"{kind} {'; '.join(rows)}")
        levels = ", ".join(self._level(row) for row in range(len(self.epsilons)))
        names = ", ".join(_NAMES[name] for name in shown)
        return f"{f'{task}: ' if task else ''}prunable share of {self.prunable:,} weights at {levels} ({names}): {' | '.join(parts)}."

    def caption(self) -> str:
        """See Result."""
        whole = (
            "" if self.dim == self.ambient else f" (of {self.ambient:,} trained parameters, the others pruned before)"
        )
        held = self.dim - self.prunable
        loss = "Loss: mean training loss" + (f" + {self.decay:g} |w|²/2" if self.decay else "")
        text = (
            f"The largest share of the {self.prunable:,} prunable weights that one step can set to zero before the loss over what is left rises by more than ε. D = {self.dim:,} surviving parameters{whole}; "
            f"{held:,} biases and others that are kept belong to D and to the curvature, and are never pruned. {loss}, on {self.provenance.get('rows', 'all')} training rows; {self.base:.4g} at w. "
        )
        minimum = "exact least loss of the quadratic"
        if not self.dense:
            minimum = "none" if math.isnan(self.shift) else f"{minimum}, by conjugate gradients"
        if "random" in self.masks:
            text += f"Random masks: {self.draws} nested orders; errors are standard errors of their mean, the band of the curvature is the standard deviation. "
        text += (
            f"Predicted from the eigenvalues of the {_MATRICES[self.matrix]} among the survivors{'' if self.dense else ' (Lanczos quadrature)'}: Gordon, eq. 1 and 2, conservative by the factor 1 - α in ε; free probability, eq. 3; "
            f"naive, the length taken for the distance, for comparison only. Minimum, eq. 4 (block OBS): {minimum}. Projection: the quadratic at the projection, eq. 5. "
            f"Unretrained: the network at the projection, up to the first of {len(self.shares)} shares that is too high, then bisected. "
        )
        if self.steps:
            other = "" if math.isnan(self.shift) else " and from the quadratic's minimum"
            text += f"Retrained: least loss found by at most {self.steps:,} gradients of L-BFGS in the axial subspace, from the projection{other}, bisected to 1/{WIDTH}: a lower bound, since a failure proves nothing. "
        text += (
            f"The quadratic has its centre at w: |gradient| = {self.gradient:.2g}, {self._newton()}. Eigenvalues {self.extremes[0]:.3g} to {self.extremes[1]:.3g}, {self.negative:.3g} of them not positive "
            f"(free directions in eq. 1 to 3; as they are in eq. 5 and in the curvature along δ; in eq. 4 {self._treated()}). "
        )
        if np.isfinite(self.alignment[0]):
            text += f"The diagonal holds {100 * self.alignment[0]:.2g}% of |H|², {100 * self.alignment[1]:.2g}% for eigenvectors in random position, which eq. 1 to 3 assume. "
        return (
            text
            + f"BatchNorm, where there is any: {'running statistics of w, held' if self.provenance.get('norm') == 'eval' else 'statistics of each chunk of rows'}. Seed {self.provenance.get('seed')}."
        )

    def _newton(self) -> str:
        if math.isnan(self.gain):
            return f"and the {_MATRICES[self.matrix]} has negative curvature: there is no Newton step"
        return f"by which a Newton step would gain {self.gain:.2g}"

    def _treated(self) -> str:
        """What (4) makes of eigenvalues that are not positive."""
        if self.dense:
            return "raised to 1e-8 of the largest"
        if math.isnan(self.shift):
            return "they leave no minimum, and none is told: the quadratic is not bounded below"
        if self.shift > 0:
            return f"shifted with all the others by {self.shift:.2g}, {self.shift / self.mean[0]:.1g} of tr H / D, which makes limits no larger"
        return "1e-8 of the largest is added to all"

    def table(self) -> list[tuple[str, ...]]:
        """See Result."""
        rows: list[tuple[str, ...]] = [
            ("level", "masks", *(_NAMES[name] for name in self.methods), "R predicted", "R robust", "on a sphere")
        ]
        for row in range(len(self.epsilons)):
            for kind in self.masks:
                found = self.robust[kind]
                rows.append(
                    (
                        self._level(row),
                        kind,
                        *(_share(*self.limits[kind][name][:, row]) for name in self.methods),
                        f"{found['predicted'][row]:.3g}",
                        _short(*found["distance"][:, row]),
                        _short(*self.robust["sphere"]["distance"][:, row]),
                    )
                )
        return rows

    # -- pictures -----------------------------------------------------------------------------------------------------

    def panels(self) -> tuple[str, ...]:
        """`limits` (theory against fact), `lengths` R(alpha) with their crossings, `losses` of the whole way, `curvature` along it."""
        return ("limits", "lengths", "losses", "curvature")

    def plot(self, ax: Axes, panel: str = "") -> None:
        """See Result."""
        panel = panel or "limits"
        if panel not in self.panels():
            raise unknown("panel", panel, self.panels())
        {
            "limits": self._plot_limits,
            "lengths": self._plot_lengths,
            "losses": self._plot_losses,
            "curvature": self._plot_curvature,
        }[panel](ax)

    def _plot_limits(self, ax: Axes) -> None:
        slots = [(row, kind) for row in range(len(self.epsilons)) for kind in self.masks]
        for place, name in enumerate(self.methods):
            values = np.array([self.limits[kind][name][:, row] for row, kind in slots])
            shift = 0.7 * ((place + 0.5) / len(self.methods) - 0.5)
            if not np.isfinite(values[:, 0]).any():
                continue  # no minimum, no mark
            errors = np.where(values[:, 1] > 0, np.minimum(values[:, 1], 1.0), np.nan)
            ax.errorbar(np.arange(len(slots)) + shift, values[:, 0], errors, label=_NAMES[name], linestyle="none", markersize=5, elinewidth=0.8, capsize=1.5, **_LOOKS[name])  # fmt: skip
        for edge in range(1, len(slots)):
            strong = edge % len(self.masks) == 0
            ax.axvline(
                edge - 0.5,
                color="#cccccc",
                linewidth=1.2 if strong else 0.5,
                linestyle="-" if strong else ":",
                zorder=0,
            )
        names = [f"{kind}\n{self._level(row)}" for row, kind in slots]
        crowded = len(slots) > 6
        ax.set_xticks(range(len(slots)), names, fontsize=6 if crowded else 7, rotation=90 if crowded else 0)
        ax.tick_params(axis="x", length=0)
        ax.set_xlim(-0.5, len(slots) - 0.5)
        ax.set_ylim(-0.02, 1.05)
        ax.set_ylabel("prunable share at once")
        heading(ax, f"Pruning limit, {self.prunable:,} weights", columns=4)

    def _plot_lengths(self, ax: Axes) -> None:
        from matplotlib.lines import Line2D

        from landscape.analysis.styles import BLACK, CYCLE

        handles: list[Any] = []
        for row in range(len(self.epsilons)):
            colour = CYCLE[(row + 1) % 6]
            for form in ("gordon", "free-probability"):
                ax.plot(self.shares, self._reach(form, row), color=colour, linestyle=_DASHES[form], linewidth=1.3)
            handles.append(Line2D([], [], color=colour, label=self._level(row)))
        handles += [Line2D([], [], color="#555555", linestyle=_DASHES[form], linewidth=1.3, label=_NAMES[form]) for form in ("gordon", "free-probability")]  # fmt: skip
        for place, kind in enumerate(self.masks):
            dash = ("-", (0, (1, 1)), (0, (4, 1, 1, 1)))[place % 3]
            (line,) = ax.plot(
                self.shares,
                self.curves[kind]["length"],
                color=BLACK,
                linestyle=dash,
                linewidth=2,
                label=f"{kind} masks",
            )
            handles.append(line)
            for row in range(len(self.epsilons)):
                share = self.limits[kind]["gordon"][0, row]
                ax.plot([share], [self.robust[kind]["predicted"][row]], "o", color=CYCLE[(row + 1) % 6], markeredgecolor="white", markersize=6, zorder=5)  # fmt: skip
        ax.set_xlim(0, 1)
        ax.set_ylim(0, 1.15 * self.norm)
        ax.set_xlabel("pruned share of the prunable weights")
        ax.set_ylabel("length of the projection R")
        heading(ax, "Where masks cross what theory allows", handles, columns=3)

    def _reach(self, form: str, row: int) -> np.ndarray:
        """The length (M,) up to which a form allows a share."""
        alphas = self.shares * self.prunable / self.dim
        factor = {"gordon": np.ones_like(alphas), "free-probability": 1 - alphas, "naive": alphas}[form]
        with np.errstate(divide="ignore", invalid="ignore"):
            found: np.ndarray = np.sqrt(self.epsilons[row] / (self.price * factor))
        return np.where(np.isfinite(found), found, np.nan)

    def _plot_losses(self, ax: Axes) -> None:
        from landscape.analysis.styles import CYCLE, GREY

        for place, kind in enumerate(self.masks):
            colour = CYCLE[place]
            lines = self._lines(kind)
            for name, values in lines.items():
                ax.plot(self.shares, np.where(values > 0, values, np.nan), color=colour, linestyle=_DASHES[name], linewidth=1.2, marker="." if name == "unretrained" else None, markersize=3, label=f"{kind}, {_NAMES[name]}")  # fmt: skip
        for epsilon in self.epsilons:
            ax.axhline(epsilon, color=GREY, linewidth=0.7, zorder=0)
        ax.set_yscale("log")
        ax.set_ylim(self.epsilons[0] / 30, 30 * self.epsilons[-1])
        ax.set_xlim(0, 1)
        ax.set_xlabel("pruned share of the prunable weights")
        ax.set_ylabel("rise of the loss")
        heading(ax, "Rise of the loss (grey: the levels)", columns=2)

    def _lines(self, kind: str) -> dict[str, np.ndarray]:
        """Rises (M,) of the loss by method."""
        found = self.curves[kind]
        with np.errstate(invalid="ignore"):
            gordon = self.price * found["length"] ** 2
        lines = {"gordon": gordon, "minimum": found["minimum"], "unretrained": found["unretrained"]}
        return {name: values for name, values in lines.items() if np.isfinite(values).any()}

    def _plot_curvature(self, ax: Axes) -> None:
        from landscape.analysis.styles import BLACK, CYCLE

        # of an indefinite matrix some may be negative, which a logarithm does not show
        upwards = not any((self.curves[kind]["curvature"] <= 0).any() for kind in self.masks)
        for place, kind in enumerate(self.masks):
            middle, spread = self.curves[kind]["curvature"], self.curves[kind]["spread"]
            dash = ("-", "--", "-.")[place % 3]
            ax.plot(self.shares, middle, dash, color=CYCLE[place], label=f"{kind} masks")
            if np.nan_to_num(spread).any():
                ax.fill_between(
                    self.shares,
                    np.maximum(middle - spread, 0) if upwards else middle - spread,
                    middle + spread,
                    color=CYCLE[place],
                    alpha=0.15,
                    linewidth=0,
                )
        ax.axhline(self.mean[0], color=BLACK, linestyle=":", label="tr H / D")
        ax.set_yscale("log" if upwards else "linear")
        ax.set_xlim(0, 1)
        ax.set_xlabel("pruned share of the prunable weights")
        ax.set_ylabel("curvature δᵀHδ / |δ|²")
        heading(ax, "Curvature along δ, from w to the projection", columns=3)

    def figure(self) -> Figure:
        """See Result."""
        import plotly.graph_objects as go

        from landscape.analysis.styles import interactive

        figure = go.Figure()
        slots = [(row, kind) for row in range(len(self.epsilons)) for kind in self.masks]
        names = [f"{kind}, {self._level(row)}" for row, kind in slots]
        for name in self.methods:
            values = np.array([self.limits[kind][name][:, row] for row, kind in slots])
            figure.add_scatter(
                x=names, y=values[:, 0], error_y={"array": np.nan_to_num(values[:, 1])}, mode="markers", name=_NAMES[name],
                marker={"color": _LOOKS[name]["color"], "size": 10, "symbol": _SYMBOLS[_LOOKS[name]["marker"]]},
            )  # fmt: skip
        return interactive(figure, x="masks, level", y="prunable share at once")


_NAMES = {
    "gordon": "Gordon (2)", "free-probability": "free prob. (3)", "naive": "naive",
    "minimum": "exact (4)", "projection": "projection (5)", "unretrained": "unretrained", "retrained": "retrained",
}  # fmt: skip
_MATRICES = {"hessian": "Hessian", "gauss-newton": "Gauss-Newton matrix"}
# colour is never the only cue: theory hollow, the quadratic filled, what was measured black and square
_LOOKS: dict[str, dict[str, Any]] = {
    "gordon": {"color": "#0072B2", "marker": "o", "markerfacecolor": "none"},
    "free-probability": {"color": "#009E73", "marker": "^", "markerfacecolor": "none"},
    "naive": {"color": "#8a8a8a", "marker": "x"},
    "minimum": {"color": "#D55E00", "marker": "D"},
    "projection": {"color": "#E69F00", "marker": "v"},
    "unretrained": {"color": "#000000", "marker": "s", "markerfacecolor": "none"},
    "retrained": {"color": "#000000", "marker": "s"},
}
_SYMBOLS = {"o": "circle-open", "^": "triangle-up-open", "x": "x", "D": "diamond", "v": "triangle-down", "s": "square"}
_DASHES: dict[str, Any] = {"gordon": "-", "free-probability": "--", "minimum": "-.", "unretrained": ":"}


def _share(value: float, error: float) -> str:
    return "none" if math.isnan(value) else f"{value:.2f}{_within(error)}"


def _short(value: float, error: float) -> str:
    return f"{value:.3g}{_within(error)}"


def _within(error: float) -> str:
    return f" ± {error:.2g}" if np.isfinite(error) and error > 0 else ""


# -- the objective, whole or pruned -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Penalised:
    """F: an objective with weight decay, as the decayed gradient of training has it."""

    f: Objective
    decay: float

    def __call__(self, z: Tensor) -> np.ndarray:
        """F at (d,) or (E, d): () or (E,)."""
        values = self.f(z).double() + self.decay / 2 * z.double().square().sum(-1)
        found: np.ndarray = values.cpu().numpy()
        return found

    def slope(self, z: Tensor) -> tuple[float, Tensor]:
        """F and its gradient (d,)."""
        value, gradient = self.f.value_and_gradient(z)
        return float(value) + self.decay / 2 * float(z.double().square().sum()), gradient + self.decay * z

    def curvature(self, z: Tensor, matrix: Matrix) -> SymmetricOperator:
        """The matrix of F at (d,)."""
        bare = self.f.curvature(z, matrix)
        return dataclasses.replace(bare, product=lambda v: bare.product(v) + self.decay * v, block=None)

    def within(self, kept: np.ndarray) -> _Penalised:
        """F on the axial subspace of kept (d,) coordinates."""
        origin = torch.zeros(self.f.dim, dtype=self.f.dtype, device=self.f.device)
        return _Penalised(self.f.restrict(coordinates(origin, torch.from_numpy(kept).to(self.f.device))), self.decay)


@dataclass(eq=False)
class _Retraining:
    """Least losses on axial subspaces of one order: from the projection and from the quadratic's minimiser, whichever is less."""

    loss: _Penalised
    z: np.ndarray  # (d,)
    order: np.ndarray  # (n,)
    minimiser: Callable[[int], np.ndarray] | None  # None: from the projection alone
    base: float
    steps: int
    gradients: int = 0
    refused: dict[int, tuple[float, bool]] = dataclasses.field(default_factory=dict)  # by k: gradient norm, converged

    def rise(self, k: int, goal: float) -> float:
        """The least rise of the loss found with k pruned; the search ends at the goal."""
        kept = np.ones(len(self.z), dtype=bool)
        kept[self.order[:k]] = False
        inner = self.loss.within(kept)
        best, state = self._descend(inner, self.z[kept], goal)
        if best > goal and self.minimiser is not None:
            other, ended = self._descend(inner, self.minimiser(k)[kept], goal)
            best, state = (other, ended) if other < best else (best, state)
        self.refused[k] = state
        return best

    def _descend(self, inner: _Penalised, start: np.ndarray, goal: float) -> tuple[float, tuple[float, bool]]:
        """The rise, and the gradient norm there with whether that has converged."""
        if not len(start):
            return float(inner(torch.zeros(0, dtype=inner.f.dtype, device=inner.f.device))) - self.base, (0.0, True)

        def slope(x: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = inner.slope(torch.from_numpy(x).to(inner.f.device, inner.f.dtype))
            self.gradients += 1
            # a step into NaN is one that was too long
            return (value - self.base if math.isfinite(value) else 1e300), gradient.double().cpu().numpy()

        def stop(intermediate_result: Any) -> None:
            if intermediate_result.fun <= goal:
                raise StopIteration

        value, gradient = slope(start)
        if value <= goal:
            return value, (float(np.linalg.norm(gradient)), True)
        rounding = float(torch.finfo(inner.f.dtype).eps)
        found = minimize(
            slope, start, jac=True, method="L-BFGS-B", callback=stop,
            options={"maxfun": self.steps, "maxiter": self.steps, "maxcor": HISTORY, "gtol": FLAT * float(np.abs(gradient).max()), "ftol": 10 * rounding},
        )  # fmt: skip
        return float(found.fun), (float(np.linalg.norm(found.jac)), int(found.status) == 0)


# -- the quadratic ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Way:
    """The quadratic along one order of pruning, at k pruned."""

    minimum: Callable[[int], float] | None  # (4); None where the quadratic has none
    minimiser: Callable[[int], np.ndarray] | None  # and where (d,)
    projected: Callable[[int], float]  # (5)
    width: int  # to which a limit by (4) is bisected: 1 where it costs nothing


@dataclass(eq=False)
class _Quadratic:
    """The curvature at w, formed or by products."""

    operator: SymmetricOperator
    z: Tensor  # (d,)
    density: Measure
    matrix: np.ndarray | None  # (d, d) as it is
    raised: np.ndarray | None  # (d, d) definite; the same array where the matrix is
    values: np.ndarray  # all eigenvalues, or the lowest and the largest seen
    shift: float  # see Limit
    products: int
    loose: int = 0  # solutions that did not converge

    @staticmethod
    def of(operator: SymmetricOperator, z: Tensor, dense: int, seed: int, semidefinite: bool) -> _Quadratic:
        """semidefinite: known to have no negative eigenvalue, as a Gauss-Newton matrix."""
        if operator.dim <= dense:
            matrix = operator.dense().double().cpu().numpy()
            matrix = (matrix + matrix.T) / 2
            raised, values = axial.definite(matrix)
            empty = np.empty((0, 0))
            density = Measure(operator.dim, values, empty, empty, 0.0, operator.dim)
            return _Quadratic(operator, z, density, matrix, raised, values, 0.0, operator.dim)
        space = SearchSpace(operator, 1, generator=generator(seed, "limit"))
        density = measure(operator, space=space, seed=seed)
        points, _ = density.all()
        lowest, largest = float(points.min()), float(points.max())
        if largest <= 0:
            raise LandscapeError(
                f"the curvature at w is nowhere positive, {largest:.3g} being the largest eigenvalue seen: this is no minimum, and its loss limits no pruning."
            )
        products, shift = density.products + space.products, 0.0
        if lowest <= 0:
            # of an indefinite matrix conjugate gradients find no minimum: all eigenvalues are shifted by the lowest, which makes losses no smaller and limits no larger
            most = SHIFT * density.moment(1).value
            if semidefinite:
                shift = most  # what is below zero is rounding: for the convergence alone
            else:
                end = eigenpairs(operator, 1, generator=generator(seed, "limit", 1), which="smallest")
                lowest = float(end.values[0] - end.residuals[0])
                products += end.products
                shift = max(0.0, -lowest) if -lowest <= most else math.nan
        return _Quadratic(operator, z, density, None, None, np.array([lowest, largest]), shift, products)

    @property
    def indefinite(self) -> bool:
        """Whether the least eigenvalue is negative beyond rounding."""
        rounding = max(axial.FLOOR, 100 * torch.finfo(self.z.dtype).eps)
        return bool(self.values[0] < -rounding * self.values[-1])

    def shifted(self) -> SymmetricOperator:
        """What (4) by products is taken of."""
        ridge = self.shift + axial.FLOOR * float(self.values[-1])
        return dataclasses.replace(self.operator, product=lambda v: self.operator.product(v) + ridge * v, block=None)

    def gain(self, gradient: Tensor) -> float:
        """g.H^-1 g / 2; NaN where there is negative curvature, along which a Newton step would go up."""
        if self.indefinite:
            return math.nan
        if self.raised is None:
            found = axial.solve(self.shifted(), gradient, tolerance=SOLVED)
            self.products += found.products
            return float(gradient.double() @ found.point.double()) / 2
        g = gradient.double().cpu().numpy()
        if self.values[0] >= axial.FLOOR * self.values[-1]:
            return float(g @ np.linalg.solve(self.raised, g)) / 2
        values, vectors = np.linalg.eigh(self.raised)
        clear = values > CLEAR * values[-1]
        return float(np.sum((g @ vectors[:, clear]) ** 2 / values[clear])) / 2

    def along(self, order: np.ndarray) -> _Way:
        """What it says of an order (n,)."""
        if self.matrix is not None and self.raised is not None:
            w = self.z.double().cpu().numpy()
            found, bare = axial.nested(self.raised, w, order), axial.projections(self.matrix, w, order)
            return _Way(lambda k: float(found.minima[k]), found.minimiser, lambda k: float(bare[k]), 1)
        shifted = self.shifted()
        solved: dict[int, axial.Least] = {}

        def least(k: int) -> axial.Least:
            if k not in solved:
                # the minimiser for fewer pruned coordinates is near
                start = max((known for known in solved if known < k), default=None)
                solved[k] = axial.least_on(
                    shifted,
                    self.z,
                    _kept(self.z, order[:k]),
                    start=None if start is None else solved[start].point,
                    tolerance=SOLVED,
                )
                self.products += solved[k].products
                self.loose += not solved[k].converged
            return solved[k]

        def projected(k: int) -> float:
            step = torch.where(_kept(self.z, order[:k]), torch.zeros_like(self.z), self.z)
            self.products += 1
            return float(step.double() @ self.operator.product(step).double()) / 2

        if math.isnan(self.shift):
            return _Way(None, None, projected, 1)
        return _Way(
            lambda k: least(k).loss,
            lambda k: least(k).point.double().cpu().numpy(),
            projected,
            math.ceil(len(order) / WIDTH),
        )


def _kept(z: Tensor, pruned: np.ndarray) -> Tensor:
    """All but the pruned coordinates, (d,) bool."""
    kept = torch.ones(len(z), dtype=torch.bool, device=z.device)
    kept[torch.from_numpy(pruned).to(z.device)] = False
    return kept


# -- where a level is left --------------------------------------------------------------------------------------------


def _largest(rise: Callable[[int, float], float], n: int, epsilons: np.ndarray, width: int) -> list[tuple[int, int]]:
    """For each of ascending epsilons the largest k in 0..n with rise(k, epsilon) <= epsilon, to `width`, and the least k that was refused beside it (n + 1: none), by bisection.

    It asks for a rise that grows with k, as the least loss on nested subspaces does. What was found for one epsilon serves the next.
    """
    known, found = {0: 0.0}, []
    for epsilon in epsilons:
        while True:
            low = max(k for k, value in known.items() if value <= epsilon)
            high = min((k for k in known if k > low), default=n + 1)
            if high - low <= width:
                break
            middle = (low + high) // 2
            known[middle] = rise(middle, float(epsilon))
        found.append((low, high))
    return found


def _first(rise: Callable[[int], float], places: np.ndarray, epsilons: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each epsilon the last whole number before the rise is first above it (L,), as far as its values at ascending places (M,) show, bisected between two of them; and these values (M,)."""
    values = np.array([rise(int(k)) for k in places])
    found = []
    for epsilon in epsilons:
        above = np.flatnonzero(~(values <= epsilon))  # NaN is above
        if not len(above) or not above[0]:
            found.append(int(places[0 if len(above) else -1]))
            continue
        low, high = int(places[above[0] - 1]), int(places[above[0]])
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if rise(middle) <= epsilon else (low, middle)
        found.append(low)
    return np.array(found), values


# -- the experiment ---------------------------------------------------------------------------------------------------


def limit(
    f: Objective,
    w: Tensor,
    prunable: Mask,
    epsilons: Sequence[float],
    *,
    mask: Mask | None = None,
    absolute: bool = False,
    kinds: Sequence[str] = KINDS,
    draws: int = DRAWS,
    weight_decay: float = 0.0,
    retrain: bool = True,
    steps: int = STEPS,
    matrix: Matrix = "hessian",
    dense: int = DENSE,
    seed: int = 0,
) -> Limit:
    """The pruning limit of a solution w (D,) of the whole-space objective f, among the survivors of `mask`.

    epsilons: rises of the loss above that at w, or with `absolute` levels of it. kinds: criteria of `pruning` that make the orders; `random` is drawn `draws` times.
    weight_decay: |w|^2 / 2 times this belongs to the loss, its levels and its curvature, as in the training that found w.
    steps: gradients of one retraining at most. dense: up to so many survivors the matrix is formed and all about the quadratic is exact.

    Raises UsageError for levels that are not above the loss at w, masks that leave nothing to prune, and options out of range; LandscapeError where the loss or the curvature at w is not finite, or curves nowhere upwards.
    """
    mask = Mask.full(f.model.layout) if mask is None else mask
    _check(f, w, kinds, draws, weight_decay, steps)
    clock = time.perf_counter()
    w = mask.apply(w.detach().to(f.device, f.dtype))
    free = mask.tensor(f.device)
    z = w[free]
    may = prunable.kept[mask.kept]  # (d,)
    n = int(may.sum())
    if not n or not bool((z != 0).any()):
        raise UsageError("no surviving weight may be pruned. Give a mask that leaves some, or other prunable weights.")
    loss = _Penalised(f.restrict(coordinates(torch.zeros_like(w), free)), weight_decay)
    base, gradient = loss.slope(z)
    require_finite(gradient, "the gradient at the solution")
    rises = _rises(epsilons, base, absolute)
    quadratic = _Quadratic.of(loss.curvature(z, matrix), z, dense, seed, matrix == "gauss-newton")
    counts = np.unique(np.linspace(0, n, min(SHARES, n + 1)).round().astype(int))
    alphas = counts / len(z)
    price = np.concatenate([[np.nan], axial.price(quadratic.density, alphas[1:], "gordon")])

    limits: dict[str, dict[str, np.ndarray]] = {}
    curves: dict[str, dict[str, np.ndarray]] = {}
    robust: dict[str, dict[str, np.ndarray]] = {}
    stopped: dict[str, dict[str, np.ndarray]] = {}
    gradients, points, places = 0, z.double().cpu().numpy(), np.flatnonzero(may)
    for kind in kinds:
        seeds = [child_seed(seed, "limit", draw) for draw in range(draws)] if kind == "random" else [seed]
        # of equal scores the lower index goes first, as in `pruning`
        scores = [pruning.score(kind, f, w, mask, seed=one)[free].double().cpu().numpy() for one in seeds]
        orders = [places[np.argsort(own[may], kind="stable")] for own in scores]
        squares = [np.concatenate([[0.0], np.cumsum(points[order] ** 2)]) for order in orders]
        # the mean over random masks is known
        mean = np.linspace(0, squares[0][-1], n + 1) if kind == "random" else squares[0]
        limits[kind] = {}
        for form in PREDICTED:
            found = [axial.most(quadratic.density, mean, float(rise), form) for rise in rises]
            limits[kind][form] = np.array([[one.value / n, one.error / n] for one in found]).T
        aims = limits[kind]["gordon"][0] * n
        traced = [
            _trace(loss, z, base, order, length, quadratic.along(order), rises, counts, aims, steps if retrain else 0)
            for order, length in zip(orders, squares, strict=True)
        ]

        limits[kind] |= {name: _mean(traced, name) / n for name in (*QUADRATIC, *MEASURED) if name in traced[0]}
        curves[kind] = {
            "length": np.sqrt(mean[counts]),
            **{
                name: _mean(traced, f"{name} curve")[0]
                for name in ("minimum", "projection", "unretrained", "curvature")
            },
            "spread": np.stack([one["curvature curve"] for one in traced]).std(0),
        }
        robust[kind] = {
            "distance": _mean(traced, "distance"),
            "predicted": np.sqrt(np.interp(aims, np.arange(n + 1), mean)),
        }
        if retrain:
            gradients += sum(int(one["gradients"]) for one in traced)
            stopped[kind] = {
                "gradient": np.stack([one["left gradient"] for one in traced]).max(0),
                "unconverged": np.stack([one["unconverged"] for one in traced]).sum(0),
            }
    sphere = [{"distance": _distances(loss, z, base, u.to(z), rises)} for u in random_directions(len(z), draws, seed)]
    robust["sphere"] = {"distance": _mean(sphere, "distance")}

    points_seen, masses = quadratic.density.all()
    mean_curvature = quadratic.density.moment(1)
    made = Limit(
        question={},
        provenance={
            "rows": len(f.rows),
            "dtype": dtype_name(f.dtype),
            "device": str(f.device),
            "norm": f.norm,
            "seed": seed,
        },
        ambient=len(w),
        dim=len(z),
        prunable=n,
        epsilons=rises,
        absolute=absolute,
        base=base,
        decay=weight_decay,
        norm=float(np.linalg.norm(points)),
        gradient=float(gradient.double().norm()),
        gain=quadratic.gain(gradient),
        matrix=matrix,
        dense=quadratic.matrix is not None,
        negative=float(masses[points_seen <= 0].sum() * len(z)),
        extremes=np.array([quadratic.values.min(), quadratic.values.max()]),
        mean=np.array([mean_curvature.value, mean_curvature.error]),
        alignment=np.array(axial.alignment(quadratic.matrix) if quadratic.matrix is not None else (np.nan, np.nan)),
        draws=draws,
        masks=list(kinds),
        limits=limits,
        shares=counts / n,
        price=price,
        curves=curves,
        robust=robust,
        steps=steps if retrain else 0,
        stopped=stopped,
        cost={"products": quadratic.products, "gradients": gradients, "seconds": time.perf_counter() - clock},
        shift=quadratic.shift,
    )
    return dataclasses.replace(made, warnings=tuple(_warnings(made, quadratic.loose)))


def _check(f: Objective, w: Tensor, kinds: Sequence[str], draws: int, weight_decay: float, steps: int) -> None:
    if f.charts or w.shape != (f.model.layout.dim,):
        raise UsageError(f"a limit is taken of the whole vector ({f.model.layout.dim},) of an objective that is not restricted; got {tuple(w.shape)}.")  # fmt: skip
    allowed = [name for name in pruning.CRITERIA if name != "magnitude-increase"]  # which compares two points
    for kind in kinds:
        if kind not in allowed:
            raise unknown("kind of mask", kind, allowed)
    if not kinds or len(set(kinds)) != len(kinds):
        raise UsageError(f"kinds of masks are one or more different names; got {list(kinds)}.")
    if draws < 2:
        raise UsageError(
            f"random masks and directions are drawn at least twice, so that their mean has an error; got {draws}."
        )
    if not 0 <= weight_decay < math.inf:
        raise UsageError(f"weight decay is at least 0 and finite; got {weight_decay:g}.")
    if steps < 1:
        raise UsageError(f"a retraining takes at least 1 gradient; got {steps}.")


def _rises(epsilons: Sequence[float], base: float, absolute: bool) -> np.ndarray:
    """Positive rises (L,), ascending."""
    given = np.unique(np.asarray(epsilons, dtype=float))
    rises = given - base if absolute else given
    if not len(given) or not np.isfinite(rises).all() or rises.min() <= 0:
        shown = ", ".join(f"{value:g}" for value in given)
        if absolute:
            raise UsageError(
                f"levels of the loss are finite and above its {base:.4g} at the solution, weight decay included; got {shown}."
            )
        raise UsageError(f"rises of the loss are positive and finite; got {shown or 'none'}.")
    return rises


def _mean(traced: Sequence[dict[str, np.ndarray]], name: str) -> np.ndarray:
    """Mean over orders and its standard error (2, ...); no error of a single one, which is not drawn."""
    samples = np.stack([one[name] for one in traced])
    error = standard_error(samples) if len(samples) > 1 else np.zeros(samples.shape[1:])
    return np.stack([samples.mean(0), error])


def _trace(
    loss: _Penalised,
    z: Tensor,
    base: float,
    order: np.ndarray,
    squares: np.ndarray,
    way: _Way,
    rises: np.ndarray,
    counts: np.ndarray,
    aims: np.ndarray,
    steps: int,
) -> dict[str, np.ndarray]:
    """Of one order: limits as numbers k of weights (L,), robust distances (L,) and curves (M,)."""
    n = len(order)

    def unretrained(k: int) -> float:
        return float(loss(torch.where(_kept(z, order[:k]), z, torch.zeros_like(z)))) - base

    found: dict[str, np.ndarray] = {}
    found["projection"], bent = _first(way.projected, counts, rises)
    found["unretrained"], found["unretrained curve"] = _first(unretrained, counts, rises)
    minimum = way.minimum
    if minimum is None:
        found["minimum"], found["minimum curve"] = np.full(len(rises), np.nan), np.full(len(counts), np.nan)
    else:
        found["minimum"] = np.array([low for low, _ in _largest(lambda k, _: minimum(k), n, rises, way.width)])
        known = way.width == 1
        found["minimum curve"] = np.array([minimum(int(k)) if known else np.nan for k in counts])
    found["projection curve"] = bent
    with np.errstate(invalid="ignore", divide="ignore"):
        found["curvature curve"] = 2 * bent / squares[counts]
    found["distance"] = np.array(
        [
            _distances(
                loss, z, base, torch.where(_kept(z, order[: max(1, round(aim))]), torch.zeros_like(z), -z), rises
            )[row]
            for row, aim in enumerate(aims)
        ]
    )
    if steps:
        retraining = _Retraining(loss, z.double().cpu().numpy(), order, way.minimiser, base, steps)
        ends = _largest(retraining.rise, n, rises, math.ceil(n / WIDTH))
        found["retrained"] = np.array([low for low, _ in ends])
        refused = [retraining.refused.get(high, (0.0, True)) for _, high in ends]
        found["left gradient"] = np.array([gradient for gradient, _ in refused])
        found["unconverged"] = np.array([not converged for _, converged in refused])
        found["gradients"] = np.array(retraining.gradients)
    return found


def _distances(loss: _Penalised, z: Tensor, base: float, direction: Tensor, rises: np.ndarray) -> np.ndarray:
    """How far along a direction (d,) the loss stays within each rise (L,); `FAR` |z| where it never leaves. NaN along 0."""
    length = float(direction.double().norm())
    if length == 0:
        return np.full(len(rises), np.nan)
    unit = FAR * float(z.double().norm()) / RADII

    def rise(place: int) -> float:
        return float(loss(z + (place * unit / length) * direction)) - base

    return _first(rise, np.linspace(0, RADII, SHARES).round().astype(int), rises)[0] * unit


def _warnings(found: Limit, loose: int) -> list[str]:
    """Each a sentence."""
    notes = []
    if found.gain > GAIN * found.epsilons[0]:
        notes.append(
            f"w is no minimum: its gradient has norm {found.gradient:.2g}, by which a Newton step would gain a loss of {found.gain:.2g}, beside a least rise of {found.epsilons[0]:.3g}. The quadratic leaves that out, and its limits are rough. Train on, or ask for larger rises."
        )
    if math.isnan(found.gain):
        notes.append(
            f"w is no minimum of the quadratic: its gradient has norm {found.gradient:.2g}, and the {_MATRICES[found.matrix]} has negative curvature: there is no Newton step, whose gain would tell how far w is from one."
        )
    advice = (
        ""
        if found.matrix == "gauss-newton"
        else " The Gauss-Newton matrix has no negative ones (--matrix gauss-newton)."
    )
    if math.isnan(found.shift):
        notes.append(
            f"eq. 4 is not told: no minimum, the quadratic is not bounded below. Its least eigenvalue is {found.extremes[0]:.3g} beside a mean of {found.mean[0]:.3g}, too much to shift all eigenvalues by."
            " Eq. 1 to 3 count negative ones as directions without curvature." + advice
        )
    elif found.negative >= 0.5:
        notes.append(
            f"{found.negative:.0f} of {found.dim:,} eigenvalues are not positive, {found.extremes[0]:.3g} at the least: eq. 1 to 3 count them as directions without curvature, and for eq. 4: {found._treated()}."
            + advice
        )
    if found.alignment[0] - found.alignment[1] > ALIGNED:
        notes.append(
            f"the diagonal holds {found.alignment[0]:.0%} of |H|², and {found.alignment[1]:.0%} where eigenvectors are in random position, which eq. 1 to 3 assume: here they lie along the axes, and only eq. 4 is to be trusted."
        )
    if loose:
        notes.append(
            f"{loose} solutions by conjugate gradients stopped before a residual of {SOLVED:g}: eq. 4 gives a loss that is too high there, and a limit that is too small."
        )
    unsettled = sum(int(one["unconverged"].sum()) for one in found.stopped.values())
    if unsettled:
        notes.append(
            f"next to a limit {unsettled} of the retrainings had to be stopped at {found.steps} gradients, the largest gradient norm left being {max(float(one['gradient'].max()) for one in found.stopped.values()):.2g}: with more --steps the limit may be larger."
        )
    return notes
