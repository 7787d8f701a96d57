"""How many dimensions a trajectory has of its own: variance by component beside what a random walk has, and what these components hold of the gradient, of the way, and of another run's.

Letters: D parameters, T recorded points, n = T - 1 increments, P measured steps, k dimensions of a subspace, K eigenvectors, W (n, k) weights of directions by increments.

Everything about a trajectory's subspaces follows from inner products of its increments X (n, D) with each other, with gradients and with another run's increments, taken in passes over
the store: the rows that a convention decomposes are Y = M X with a small matrix M, from M X X^T M^T = U diag(s) U^T the j-th direction is W_j^T X with W_j = M^T U_j / sqrt(s_j), and the rest is n x n algebra.

    centred      Y: deviations of the T points from their mean (DLDR)
    uncentred    Y: differences of the points to the first
    increments   Y: the increments (Larsen et al.)

What is compared with what:

    a random walk        independent increments of mean square proportional to the steps between two points, in many dimensions: X X^T is diagonal. Of T evenly spaced points the centred
                         components have variances proportional to 1 / (4 sin^2(pi j / 2T)), shares 6 / (pi^2 j^2) for many of them, and participation ratio 5/2
    permuted increments  the same increments in random order: what of the low dimension is in the steps themselves and not in their order
    a random subspace    holds a share Beta(k/2, (D-k)/2) of a fixed vector, k / D in the mean; the cosines of its principal angles to another have the law of a corner of an orthogonal matrix
    the other half       components of the points after the middle for gradients before it, and the reverse: the whole trajectory's subspace contains the steps that the measured gradients
                         made, and this one does not (but for what momentum carries across the middle)

Sources: Li et al. 2022 (DLDR) and Larsen et al. 2022 (trajectory subspaces); Antognini and Sohl-Dickstein 2018 (PCA of high-dimensional random walks);
Gur-Ari, Roberts, Dyer 2018 (the gradient in the top Hessian eigenspace); Bjorck and Golub 1973 (principal angles).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from landscape.analysis.stability import Station, sharpness
from landscape.errors import LandscapeError, UsageError, unknown
from landscape.objectives import Objective, dtype_name, named_buffers
from landscape.operators import Eigenpairs, eigenpairs
from landscape.results import Result
from landscape.seeds import child_seed, generator
from landscape.trajectories import CENTRINGS, Centring, Trajectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from plotly.graph_objects import Figure

MOST = 500  # points decomposed: their some 25 eigenvalue problems take 0.7 s, those of 1,000 points 4 s, and a finer recording adds nothing that a picture shows
KNOWN = 1e-10  # least variance of a component, relative to the first: products of float32 points and eps T of float64 leave noise below a hundredth of it
PERMUTATIONS = 20  # their spread is then known to a sixth, 1 / sqrt(2 * 19)
DRAWS = 400  # of random subspaces: the 95% band's ends are then ten draws from the extremes
LEVELS = (0.9, 0.95, 0.99)
PLAIN = 10  # dimensions where the problem has no classes
TABLE = 20  # components listed: more are in the file
TOLERANCE = 1e-3  # on residuals of Hessian eigenvectors, relative to the largest eigenvalue: a space is off by residual / gap, and at 1e-2 the tenth of ten is often not set apart
MARKED = slice(20)  # components drawn with a marker: later ones run together

PHRASES = {
    "centred": "deviations from the mean",
    "uncentred": "differences to the first point",
    "increments": "increments from point to point",
}


# -- a trajectory by its inner products -------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Components:
    """Principal components of the rows that a convention makes of n increments X, by the Gram matrix of these alone."""

    variances: np.ndarray  # (R,) descending, not divided by the number of rows; those that are known, see KNOWN
    weights: np.ndarray  # (n, R): W_j^T X is direction j, of unit length
    reach: np.ndarray  # (R,) component j of the way from the first point to the last

    @staticmethod
    def of(gram: np.ndarray, centring: Centring) -> Components:
        """From inner products (n, n) of increments."""
        rows, ends = _convention(len(gram), centring)
        values, vectors = np.linalg.eigh(rows @ gram @ rows.T)
        known = np.flatnonzero(values > KNOWN * values[-1])[::-1]
        variances, vectors = values[known], vectors[:, known]
        lengths = np.sqrt(variances)
        return Components(variances, rows.T @ vectors / lengths, ends @ vectors * lengths)

    @property
    def shares(self) -> np.ndarray:
        """Explained variance (R,): sums to 1."""
        explained: np.ndarray = self.variances / self.variances.sum()
        return explained

    def residual(self, size: int) -> np.ndarray:
        """Distance (size,) of the last point to the subspace of the first 0, 1, 2, ... components through the first point, in units of the distance of the two points.

        NaN where these two are the same, as far as inner products in float64 tell.
        """
        # sums of what is left out, not differences of what is held: exact to the last component
        left = np.sqrt(np.append(np.cumsum(self.reach[::-1] ** 2)[::-1], 0.0))
        whole = np.zeros(size)
        whole[: len(left)] = left[:size]
        apart = left[0] ** 2 > size * np.finfo(float).eps * self.variances.sum()
        return whole / left[0] if apart else np.full(size, np.nan)

    def held(self, products: np.ndarray, top: int) -> np.ndarray:
        """Squared lengths (P,) of the parts of P vectors inside the first `top` components, from their inner products (n, P) with the increments."""
        inside: np.ndarray = np.sum((self.weights[:, :top].T @ products) ** 2, axis=0)
        return inside


def _convention(n: int, centring: Centring) -> tuple[np.ndarray, np.ndarray]:
    """M (rows, n), that makes a convention's rows of n increments, and the combination (rows,) of these that is the sum of all increments."""
    after = np.tril(np.ones((n, n)))  # the points after the first, seen from it
    if centring == "uncentred":
        return after, np.eye(n)[-1]
    if centring == "increments":
        return np.eye(n), np.ones(n)
    points = np.vstack([np.zeros(n), after])
    return points - points.mean(axis=0), np.eye(n + 1)[-1] - np.eye(n + 1)[0]


def walk(steps: np.ndarray, centring: Centring) -> Components:
    """The components of a random walk in many dimensions, seen at these steps (T,)."""
    return Components.of(np.diag(np.diff(steps).astype(float)), centring)


def random_cosines(k: int, dim: int, draws: int, random: np.random.Generator) -> np.ndarray:
    """Cosines (draws, k), descending, of the principal angles between two random k-dimensional subspaces of `dim` dimensions.

    They are the singular values of the k x k corner of a random orthogonal matrix: of a Gaussian matrix (D, k) with orthonormalised columns. Of the D - k rows below the corner the
    triangular factor is enough, and its law is known (Bartlett 1933), so that nothing of size D is drawn.
    """
    drawn = np.empty((draws, k))
    below = dim - k
    for cosines in drawn:
        corner = random.standard_normal((k, k))
        rest = random.standard_normal((min(below, k), k))
        if below >= k:
            rest = np.triu(rest, 1) + np.diag(np.sqrt(random.chisquare(below - np.arange(k))))
        frame = np.linalg.qr(np.vstack([corner, rest]))[0]
        cosines[:] = np.linalg.svd(frame[:k], compute_uv=False)
    return np.minimum(drawn, 1.0)


def chance(k: int, dim: int) -> np.ndarray:
    """The share (3,) of a fixed vector that a random k-dimensional subspace of `dim` dimensions holds: its 2.5% quantile, mean and 97.5% quantile (Beta law)."""
    from scipy.stats import beta

    if k >= dim:
        return np.ones(3)
    low, high = beta.ppf([0.025, 0.975], k / 2, (dim - k) / 2)
    return np.array([low, k / dim, high])


def overlap_spread(k: int, dim: int) -> float:
    """Standard deviation of |U V^T|_F^2 / k for the bases of two random k-dimensional subspaces of `dim` dimensions; the mean is k / D."""
    # for symmetric A and B without trace and random rotations Q, E tr(A Q B Q^T)^2 = 2 |A|^2 |B|^2 / ((D - 1)(D + 2)); a projection less k / D has the square norm k (D - k) / D
    return math.sqrt(2 / ((dim - 1) * (dim + 2))) * (dim - k) / dim if dim > 1 else 0.0


# -- the answer -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Dimensions(Result):
    """The dimension of a trajectory of T points, n = T - 1 increments. Numbers of a step whose gradient is not finite, or zero, are NaN."""

    centring: str
    dim: int  # D
    rows: int  # of the data, for gradients
    recorded: int  # points of the run, of which T are taken
    steps: np.ndarray  # (T,)
    shares: np.ndarray  # (R,) of the variance, by component: as many as are known, see KNOWN
    walk: np.ndarray  # (n,) likewise, of a random walk seen at the same steps
    permuted: np.ndarray  # (n,) likewise, of the increments in random order, mean; empty where order plays no part
    permuted_spread: np.ndarray  # (n,) standard deviation over these orders
    permuted_participation: np.ndarray  # (2,) mean and standard deviation
    distance: float  # from the first point to the last
    captured: np.ndarray  # (3, T) distance of the last point to the first 0, 1, ..., n components through the first point, in units of `distance`, by CENTRINGS
    walk_captured: np.ndarray  # (T,) the same of a random walk, under `centring`
    top: int  # k, dimensions of the subspaces that gradients are projected on
    hessian_top: int  # K; 0 where the Hessian was left out
    at: np.ndarray  # (P,) steps at which gradients are measured
    middle: int  # step that parts the halves
    half_dims: np.ndarray  # (2,) dimensions of the subspaces of the two halves: k, or as many as they have
    losses: np.ndarray  # (P,) over all rows
    gradient_norms: np.ndarray  # (P,)
    in_own: np.ndarray  # (P,) share of the squared gradient inside the trajectory's first k components
    in_half: np.ndarray  # (P,) inside those of the other half
    in_other: np.ndarray  # (P,) inside those of the other run; empty without one, likewise below
    in_hessian: np.ndarray  # (P,) inside the top K Hessian eigenvectors at the point itself; empty where left out
    angles: np.ndarray  # (P,) bound on the sine between computed and true eigenspace
    by_chance: np.ndarray  # (3,) inside a random k-dimensional subspace: 2.5% quantile, mean, 97.5% quantile
    cosines: np.ndarray  # (k,) of the principal angles between the two runs' subspaces, descending
    random_cosines: np.ndarray  # (2, k) 2.5% and 97.5% quantiles of those between two random subspaces
    hessian_cosines: np.ndarray  # (K,) between the top Hessian eigenspaces at the two runs' last points

    @property
    def participation(self) -> float:
        """Participation ratio (sum s)^2 / sum s^2: the number of components, were all alike."""
        return _participation(self.shares)

    @property
    def walk_participation(self) -> float:
        """That of the random walk."""
        return _participation(self.walk)

    @property
    def overlap(self) -> float:
        """|U_a U_b^T|_F^2 / k of the two runs' subspaces; k / D in the mean for random ones. NaN without another run."""
        return float(np.mean(self.cosines**2)) if self.cosines.size else math.nan

    def components_for(self, level: float, shares: np.ndarray) -> int:
        """The least number of components with this share of the variance."""
        # sums of shares are 1 up to rounding
        return int(np.searchsorted(np.cumsum(shares), level * (1 - 1e-12))) + 1

    def summary(self) -> str:
        """See Result."""
        ours, walks = (self.components_for(0.95, shares) for shares in (self.shares, self.walk))
        parts = [
            f"{self.recorded:,} points in {self.dim:,} dimensions: 95% of the variance ({self.centring}) in {_count(ours, 'component')}, {walks} for a random walk",
            f"participation ratio {self.participation:.3g} ({self.walk_participation:.3g})",
        ]
        if np.isfinite(self.in_own).any():
            spaces = [("its own", self.in_own), ("the other half's", self.in_half), ("the other run's", self.in_other)]
            held = [
                f"{_percent(float(np.nanmedian(part)))} in {name}" for name, part in spaces if np.isfinite(part).any()
            ]
            text = f"of the squared gradient (median of {_count(len(self.at), 'step')}) {', '.join(held)} {_count(self.top, 'component')}"
            if np.isfinite(self.in_hessian).any():
                text += f", {_percent(float(np.nanmedian(self.in_hessian)))} in the Hessian's top {self.hessian_top}"
            parts.append(f"{text}, {_percent(self.by_chance[1])} by chance")
        if self.cosines.size:
            parts.append(f"overlap with the other run {self.overlap:.3g} (random: {self.top / self.dim:.2g})")
        return "; ".join(parts) + "."

    def caption(self) -> str:
        """See Result."""
        taken = f"{len(self.steps):,} recorded points"
        if len(self.steps) < self.recorded:
            taken = f"{len(self.steps):,} of {self.recorded:,} recorded points"
        walks = self.components_for(0.95, self.walk)
        text = (
            f"Variance: shares of the principal components of {taken} ({PHRASES[self.centring]}; {len(self.shares)} components are above {KNOWN:g} of the first). "
            f"Dashed: a random walk in many dimensions, seen at the same steps{' (6/π²k² for many evenly spaced ones)' if self.centring == 'centred' else ''}: 95% of its variance lies in {_count(walks, 'component')}. "
            "So 95% of the variance in few components is no evidence of a low-dimensional landscape; what the path shows is how far it lies from the walk's line. "
        )
        if self.permuted.size:
            text += f"Dotted: the same increments in random order (mean of {PERMUTATIONS}, ± 2 standard deviations): where the trajectory's line lies near it, the directions of the steps explain the line, and where it does not, their order. "
        text += (
            f"Gradient: part of the squared gradient over all {self.rows:,} rows inside subspaces of {_count(self.top, 'dimension')}. The trajectory's own contains the very steps that these gradients made, so that it holds a part of them "
            f"by construction; the other half's (of the points after step {self.middle:,} for gradients before it, and the reverse) does not"
        )
        if (self.half_dims < self.top).any():
            text += f", and has {self.half_dims[0]} and {self.half_dims[1]} dimensions"
        text += f". Grey: a random subspace, {self.by_chance[1]:.2g} in the mean, {self.by_chance[0]:.2g} to {self.by_chance[2]:.2g} for 95% of them. "
        if np.isfinite(self.angles).any():
            text += f"Hessian: the top {self.hessian_top} eigenvectors at each point, computed to angles of sine {np.nanmedian(self.angles):.1g} (median) and at most {np.nanmax(self.angles):.1g}. "
        text += (
            f"Captured: distance of the last point to the subspace of the first k components through the first point, in units of the distance of the two ({self.distance:.4g}); 0, and not drawn, "
            "where the subspace holds both points. "
        )
        if self.cosines.size:
            text += (
                f"Angles: cosines of the principal angles between the two runs' first {_count(self.top, 'component')}; their overlap is {self.overlap:.3g}, and {self.top / self.dim:.2g} ± {2 * overlap_spread(self.top, self.dim):.1g} for random subspaces, "
                "whose 95% band is grey. "
            )
            if self.hessian_cosines.size:
                text += f"Hessian: the same of the top {self.hessian_top} eigenvectors of this run's loss at the two last points, overlap {np.mean(self.hessian_cosines**2):.3g}. "
        return text.rstrip()

    def table(self) -> list[tuple[str, ...]]:
        """See Result."""
        head = ("component", "variance", "cumulative", "random walk", "cumulative", "ratio", "permuted")
        ours, walks = np.cumsum(self.shares), np.cumsum(self.walk)
        count = min(len(self.shares), len(self.walk), TABLE)
        rows = [
            (
                f"{j + 1}",
                f"{self.shares[j]:.4g}",
                f"{ours[j]:.5f}",
                f"{self.walk[j]:.4g}",
                f"{walks[j]:.5f}",
                f"{self.shares[j] / self.walk[j]:.3g}",
                f"{self.permuted[j]:.4g} ± {self.permuted_spread[j]:.1g}" if self.permuted.size else "",
            )
            for j in range(count)
        ]
        for level in LEVELS:
            needed = [
                str(self.components_for(level, shares)) if shares.size else ""
                for shares in (self.shares, self.walk, self.permuted)
            ]
            rows.append((f"for {100 * level:g}%", needed[0], "", needed[1], "", "", needed[2]))
        mixed = self.permuted_participation
        rows.append(
            (
                "participation",
                f"{self.participation:.4g}",
                "",
                f"{self.walk_participation:.4g}",
                "",
                "",
                f"{mixed[0]:.4g} ± {mixed[1]:.1g}" if mixed.size else "",
            )
        )
        return [head, *rows]

    def panels(self) -> tuple[str, ...]:
        """`variance`, `gradient`, `captured`, and with another run `angles`."""
        return ("variance", "gradient", "captured", *(("angles",) if self.cosines.size else ()))

    # -- pictures -----------------------------------------------------------------------------------------------------

    def plot(self, ax: Axes, panel: str = "") -> None:
        """See Result."""
        drawings: dict[str, Callable[[Axes], None]] = {
            "variance": self._plot_variance,
            "gradient": self._plot_gradient,
            "captured": self._plot_captured,
            "angles": self._plot_angles,
        }
        panel = panel or "variance"
        if panel not in self.panels():
            raise unknown("panel", panel, self.panels())
        drawings[panel](ax)

    def _plot_variance(self, ax: Axes) -> None:
        from landscape.analysis.styles import BLUE, GREY, ORANGE

        def label(name: str, shares: np.ndarray) -> str:
            return f"{name}: 95% in {self.components_for(0.95, shares)}"

        order = np.arange(1, len(self.walk) + 1)
        ax.plot(order, self.walk, "--", color=GREY, label=label("random walk", self.walk))
        if self.permuted.size:
            low, high = (self.permuted + sign * 2 * self.permuted_spread for sign in (-1, 1))
            # a band below zero has no place on a logarithmic axis
            ax.fill_between(order, np.maximum(low, self.permuted / 10), high, color=ORANGE, alpha=0.25, linewidth=0)
            ax.plot(order, self.permuted, ":", color=ORANGE, label=label("permuted steps", self.permuted))
        ours = np.arange(1, len(self.shares) + 1)
        ax.plot(
            ours, self.shares, "-o", color=BLUE, markersize=3, markevery=MARKED, label=label("trajectory", self.shares)
        )
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_ylim(max(self.shares.min() / 2, 1e-8), 2)
        ax.set_xlabel("component")
        ax.set_ylabel("share of the variance")
        ax.legend(loc="lower left", handlelength=2.2)
        ax.set_title(f"Explained variance ({self.centring})", loc="left")

    def _plot_gradient(self, ax: Axes) -> None:
        from landscape.analysis.styles import GREY

        for name, shares, color, look in self._gradient_lines():
            ax.plot(self.at, shares, look, color=color, markersize=4, linewidth=1.2, label=name)
        low, mean, high = self.by_chance
        ax.axhspan(low, high, color=GREY, alpha=0.3, linewidth=0)
        ax.axhline(mean, color=GREY, linestyle="--", linewidth=1, label=f"random {self.top}")
        ax.set_yscale("log")
        drawn = [shares[shares > 0] for _, shares, _, _ in self._gradient_lines()]
        bottom = min([low, *(float(part.min()) for part in drawn if part.size)])
        bottom = max(bottom / 2, 1e-8)
        ax.set_ylim(bottom, bottom**-0.35)  # room for the legend above 1
        ax.set_yticks([10.0**power for power in range(math.ceil(math.log10(bottom)), 1)])
        ax.minorticks_off()
        _step_axis(ax, self.at)
        ax.set_xlabel("step")
        ax.set_ylabel("share of the squared gradient")
        ax.legend(loc="upper left", ncols=2, columnspacing=1.0, handlelength=2.2)
        ax.set_title("Gradient inside subspaces", loc="left")

    def _gradient_lines(self) -> list[tuple[str, np.ndarray, str, str]]:
        """Name, shares (P,), colour and line of each subspace that was measured."""
        from landscape.analysis.styles import BLUE, GREEN, SKY, VERMILION

        lines = [
            (f"Hessian's top {self.hessian_top}", self.in_hessian, VERMILION, "-D"),
            (f"trajectory's {self.top}", self.in_own, BLUE, "-o"),
            ("other half's", self.in_half, SKY, "--s"),
            ("other run's", self.in_other, GREEN, "-.^"),
        ]
        return [line for line in lines if line[1].size]

    def _plot_captured(self, ax: Axes) -> None:
        from landscape.analysis.styles import BLUE, GREEN, GREY, VERMILION

        order = np.arange(1, len(self.steps))
        looks = ((BLUE, "-o"), (GREEN, "--s"), (VERMILION, "-.^"))
        ax.plot(order, _positive(self.walk_captured[1:]), "--", color=GREY, label=f"random walk, {self.centring}")
        for name, (color, look), left in zip(CENTRINGS, looks, self.captured, strict=True):
            ax.plot(
                order, _positive(left[1:]), look, color=color, markersize=3, markevery=MARKED, linewidth=1.2, label=name
            )
        ax.set_xscale("log")
        ax.set_yscale("log")
        positive = self.captured[self.captured > 0]
        ax.set_ylim(max(positive.min() / 20, 1e-5) if positive.size else 1e-5, 1.5)  # room for the legend below
        ax.set_xlabel("components k")
        ax.set_ylabel("distance left / whole distance")
        ax.legend(loc="lower left", handlelength=2.2)
        ax.set_title("Last point to the subspace through the first", loc="left")

    def _plot_angles(self, ax: Axes) -> None:
        from matplotlib.ticker import MaxNLocator

        from landscape.analysis.styles import BLUE, GREY, VERMILION

        order = np.arange(1, self.top + 1)
        ax.fill_between(order, *self.random_cosines, color=GREY, alpha=0.4, linewidth=0, label="random subspaces, 95%")
        if self.top == 1:  # a band of one place has no width
            ax.vlines(order, *self.random_cosines, color=GREY, alpha=0.4, linewidth=8)
        if self.hessian_cosines.size:
            places = np.arange(1, len(self.hessian_cosines) + 1)
            ax.plot(
                places,
                self.hessian_cosines,
                "--D",
                color=VERMILION,
                markersize=4,
                label="top Hessian eigenspaces at the ends",
            )
        ax.plot(order, self.cosines, "-o", color=BLUE, markersize=4, label="trajectories")
        highest = max(float(np.max(values)) for values in (self.cosines, self.hessian_cosines, [0.05]) if len(values))
        ax.set_ylim(0, 1.3 * highest)  # room for the legend above
        if highest > 0.7:  # no ticks where no cosine can be
            ax.set_yticks(np.linspace(0, 1, 6))
        ax.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        ax.set_xlabel("principal angle")
        ax.set_ylabel("cosine")
        ax.legend(loc="upper right", handlelength=2.2)
        ax.set_title("Two runs' subspaces", loc="left")

    def figure(self) -> Figure:
        """See Result."""
        import plotly.graph_objects as go

        from landscape.analysis.styles import BLUE, GREY, ORANGE, interactive

        figure = go.Figure()
        lines = [
            ("random walk", self.walk, GREY, "dash"),
            ("permuted increments", self.permuted, ORANGE, "dot"),
            ("trajectory", self.shares, BLUE, "solid"),
        ]
        for name, shares, color, dash in lines:
            if not shares.size:
                continue
            sums = np.cumsum(shares)
            figure.add_scatter(
                x=np.arange(1, len(shares) + 1),
                y=shares,
                text=[
                    f"{name}<br>component {j + 1}: {share:.4g}<br>together {total:.5f}"
                    for j, (share, total) in enumerate(zip(shares, sums, strict=True))
                ],
                hoverinfo="text",
                mode="lines+markers",
                line={"color": color, "dash": dash},
                marker={"size": 5 if name == "trajectory" else 2},
                name=f"{name}: 95% in {self.components_for(0.95, shares)}",
            )
        figure.update_xaxes(type="log")
        figure.update_yaxes(type="log", exponentformat="power")
        return interactive(figure, x="component", y=f"share of the variance ({self.centring})")


def _participation(shares: np.ndarray) -> float:
    return float(shares.sum() ** 2 / np.sum(shares**2))


def _positive(values: np.ndarray) -> np.ndarray:
    """Zeros, which a logarithmic axis has not, become NaN."""
    return np.where(values > 0, values, np.nan)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%" if share > 0.095 else f"{100 * share:.2g}%"


def _step_axis(ax: Axes, steps: np.ndarray) -> None:
    """Steps evenly on a logarithmic axis, with a place for step 0."""
    later = steps[steps > 0]
    if len(later) > 1 and later[-1] > 20 * later[0]:
        ax.set_xscale("symlog", linthresh=float(later[0]), linscale=0.4)
        if len(later) < len(steps):
            ax.set_xlim(-0.3 * float(later[0]), 1.4 * float(later[-1]))


# -- the measurement --------------------------------------------------------------------------------------------------


def chosen(steps: np.ndarray, points: int) -> np.ndarray:
    """Rows (P,), of recorded steps (T,), that lie about evenly on a logarithmic axis: `points` of them or a few more, the first and the last among them; all where there are not so many."""
    if points < 1:
        raise UsageError(f"gradients are measured at 1 step or more; got {points}.")
    if points >= len(steps):
        return np.arange(len(steps))
    if points == 1:
        return np.array([len(steps) - 1])
    ages = steps - steps[0] + 1.0
    # many places of the axis fall on one recorded step where these are coarse: more places, until enough steps are met
    for places in range(points, 20 * points):
        grid = np.geomspace(1.0, ages[-1], places)
        picked: np.ndarray = np.unique(np.abs(ages[None] - grid[:, None]).argmin(axis=1))
        if len(picked) >= points:
            break
    return picked


def dimension(
    f: Objective,
    trajectory: Trajectory,
    *,
    against: Trajectory | None = None,
    top: int | None = None,
    centring: Centring = "centred",
    hessian: int | None = None,
    at: Sequence[int] | None = None,
    points: int = 12,
    max_products: int = 500,
    seed: int = 0,
) -> Dimensions:
    """The dimension of a trajectory on the landscape of f (the objective of all its points but for their buffers).

    against: another run's trajectory, with the same parameters.
    top (k): dimensions of the subspaces compared. Default: the number of classes, that of the large Hessian eigenvalues (Gur-Ari et al.), or 10 where there are none; fewer where the points span fewer.
    centring: what is decomposed; `centred` as DLDR does.
    hessian (K): eigenvectors at each measured point; default k, so that spaces of one size are compared, and 0 leaves the Hessian out.
    at: recorded steps at which gradients are measured; default `points` of them, evenly on a logarithmic axis. 12: some four a decade; a dozen Hessians of digits-mlp take three seconds.
    max_products: with the Hessian, at each point.

    More than MOST points are thinned evenly. Memory: two blocks of columns and P gradients; T x D is never held.
    Raises UsageError for fewer than 3 points, equal points, k beyond what the points span, unknown steps and another run of other parameters; LandscapeError where points are not finite.
    """
    if centring not in CENTRINGS:
        raise unknown("centring", centring, CENTRINGS)
    if hessian is not None and hessian < 0:
        raise UsageError(f"a number of eigenvectors is 0 (none) or more; got {hessian}.")
    if trajectory.dim != f.dim:
        raise UsageError(f"a trajectory of {trajectory.dim} parameters does not lie on a landscape of {f.dim}.")
    rows, gram = _increments(trajectory)
    steps = trajectory.steps[rows]
    places = chosen(trajectory.steps, points) if at is None else np.unique([trajectory.index(step) for step in at])
    if not len(places):
        raise UsageError("there is no step to measure gradients at: give at least one.")
    ours = Components.of(gram, centring)
    spaces = [(trajectory, ours)]
    theirs = None
    if against is not None:
        require_same_parameters(trajectory, against)
        other_rows, other_gram = _increments(against)
        theirs = Components.of(other_gram, centring)
        spaces.append((against, theirs))
    k = _top(top, f, trajectory, spaces)
    eigenvectors = k if hessian is None else hessian

    # gradients, and Hessians from point to point
    gradients: list[Tensor] = []
    losses: list[float] = []

    def stations() -> Iterator[Station]:
        for place in places:
            here, point = _at(f, trajectory, int(place))
            loss, gradient = here.value_and_gradient(point)
            losses.append(float(loss))
            gradients.append(gradient.cpu())
            yield Station(int(trajectory.steps[place]), point, here.buffers)

    notes: list[str] = []
    provenance: dict[str, Any] = {"seed": seed, "dtype": dtype_name(f.dtype), "device": f.device.type, "norm": f.norm}
    in_hessian = angles = np.empty(0)
    if eigenvectors:
        found = sharpness(f, stations(), top=eigenvectors, tolerance=TOLERANCE, max_products=max_products, seed=seed)
        in_hessian, angles, eigenvectors = found.shares, found.angles, found.values.shape[1]
        notes += found.warnings
        provenance["products"] = int(found.products.sum())
    else:
        for _ in stations():
            pass
        lost = [
            int(step) for step, g in zip(trajectory.steps[places], gradients, strict=True) if not g.isfinite().all()
        ]
        if lost:
            notes.append(f"the gradient at {len(lost)} of {len(places)} steps is not finite, first at step {lost[0]}: nothing is measured there.")  # fmt: skip

    # what the subspaces hold of the gradients
    slopes = torch.stack(gradients)
    products, others, cross = _products(trajectory, rows, slopes, None if against is None else (against, other_rows))
    norms = slopes.double().norm(dim=1).numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        squares = np.where(np.isfinite(norms) & (norms > 0), norms**2, np.nan)
    half = len(gram) // 2
    early, late = Components.of(gram[:half, :half], centring), Components.of(gram[half:, half:], centring)
    before = trajectory.steps[places] < steps[half]
    in_half = np.where(before, late.held(products[half:], k), early.held(products[:half], k)) / squares

    # the other run
    cosines = hessian_cosines = np.empty(0)
    bands = np.empty((2, 0))
    if against is not None and theirs is not None:
        cosines = _cosines(ours.weights[:, :k].T @ cross @ theirs.weights[:, :k])
        draws = random_cosines(k, f.dim, DRAWS, np.random.default_rng(child_seed(seed, "random subspaces")))
        bands = np.quantile(draws, [0.025, 0.975], axis=0)
        if eigenvectors:
            tops = [_top_space(f, path, eigenvectors, max_products, seed) for path in (trajectory, against)]
            hessian_cosines = _cosines((tops[0].vectors @ tops[1].vectors.T).cpu().double().numpy())
            if not all(pairs.converged.all() for pairs in tops):
                notes.append(f"Hessian eigenvectors at a run's last point did not reach the tolerance {TOLERANCE:g} in {max_products} products: raise --max-products.")  # fmt: skip

    null = walk(steps, centring)
    permuted, spread, mixed = _permuted(gram, centring, seed)
    captured = np.array([Components.of(gram, name).residual(len(steps)) for name in CENTRINGS])
    distance = math.sqrt(max(float(gram.sum()), 0.0))
    if not np.isfinite(captured).all():
        notes.append("the last point is the first one: no distance is captured.")
    return Dimensions(
        question={},
        provenance=provenance,
        warnings=tuple(notes),
        centring=centring,
        dim=f.dim,
        rows=len(f.rows),
        recorded=len(trajectory),
        steps=steps,
        shares=ours.shares,
        walk=null.shares,
        permuted=permuted,
        permuted_spread=spread,
        permuted_participation=mixed,
        distance=distance,
        captured=captured,
        walk_captured=null.residual(len(steps)),
        top=k,
        hessian_top=eigenvectors,
        at=trajectory.steps[places],
        middle=int(steps[half]),
        half_dims=np.array([min(k, len(part.variances)) for part in (early, late)]),
        losses=np.array(losses),
        gradient_norms=norms,
        in_own=ours.held(products, k) / squares,
        in_half=in_half,
        in_other=np.empty(0) if theirs is None else theirs.held(others, k) / squares,
        in_hessian=in_hessian,
        angles=angles,
        by_chance=chance(k, f.dim),
        cosines=cosines,
        random_cosines=bands,
        hessian_cosines=hessian_cosines,
    )


def require_same_parameters(one: Trajectory, other: Trajectory) -> None:
    """Raise UsageError, naming the first tensor that differs, where two trajectories are not of the same parameters."""
    first, second = ([(e.name, e.shape) for e in path.layout.of("parameter")] for path in (one, other))
    for mine, its in itertools.zip_longest(first, second):
        if mine != its:
            known = [f"{entry[0]!r} {entry[1]}" if entry else "nothing" for entry in (mine, its)]
            raise UsageError(
                f"the two runs have other parameters: {known[0]} in {one.folder.parent}, {known[1]} in {other.folder.parent} at the same place. Compare runs of one model."
            )


def _increments(trajectory: Trajectory) -> tuple[list[int], np.ndarray]:
    """The rows (T,) taken of a trajectory and the inner products (n, n) of the increments between them."""
    total = len(trajectory)
    if total < 3:
        raise UsageError(
            f"{trajectory.folder} holds {_count(total, 'recorded point')}: a dimension takes 3 or more. Record more often, or import more checkpoints."
        )
    rows = np.linspace(0, total - 1, min(total, MOST)).round().astype(int).tolist()
    gram = trajectory.gram(centring="increments", rows=rows)
    if not np.isfinite(gram).all():
        raise LandscapeError(
            f"{trajectory.folder} holds points that are NaN or infinite: they have no principal directions."
        )
    if not gram.any():
        raise UsageError(f"all {total} points of {trajectory.folder} are equal: nothing moved.")
    return rows, gram


def _top(top: int | None, f: Objective, trajectory: Trajectory, spaces: Sequence[tuple[Trajectory, Components]]) -> int:
    """k: as asked, where every trajectory spans so many; else the default."""
    if top is None:
        k = PLAIN
        if f.loss.classifies:
            here, point = _at(f, trajectory, len(trajectory) - 1)
            k = here.on(slice(0, 2)).outputs(point).shape[1]
        return int(min(k, *(len(space.variances) for _, space in spaces), f.dim))
    for path, space in spaces:
        rank = len(space.variances)
        if not 1 <= top <= rank:
            raise UsageError(
                f"asked for {top} dimensions; the {len(path)} recorded points of {path.folder.parent} span {rank} (components above {KNOWN:g} of the first variance). Ask for 1 to {rank}, or record more steps."
            )
    return top


def _at(f: Objective, trajectory: Trajectory, place: int) -> tuple[Objective, Tensor]:
    """The objective with the buffers of a recorded row, and its point."""
    row = trajectory.row(place)
    point = torch.from_numpy(np.array(row.point)).to(f.device, f.dtype)
    return f.with_buffers(named_buffers(trajectory.layout, row.buffers, f.buffers)), point


def _top_space(f: Objective, trajectory: Trajectory, count: int, max_products: int, seed: int) -> Eigenpairs:
    """The top K Hessian eigenpairs at a trajectory's last point."""
    here, point = _at(f, trajectory, len(trajectory) - 1)
    draws = generator(seed, "lanczos", int(trajectory.steps[-1]))
    return eigenpairs(here.hessian(point), count, generator=draws, tolerance=TOLERANCE, max_products=max_products)


def _products(
    trajectory: Trajectory, rows: list[int], slopes: Tensor, other: tuple[Trajectory, list[int]] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inner products in one pass: of the increments with gradients (n, P), of the other run's with the same (m, P), and of the two runs' with each other (n, m)."""
    if other is not None and len(other[1]) > len(rows):  # blocks are sized by the longer one, so that both fit
        swapped = _products(*other, slopes, (trajectory, rows))
        return swapped[1], swapped[0], swapped[2].T
    n, m = len(rows) - 1, 0 if other is None else len(other[1]) - 1
    mine, its, cross = np.zeros((n, len(slopes))), np.zeros((m, len(slopes))), np.zeros((n, m))
    for columns, block in trajectory.blocks(rows):
        steps, part = np.diff(block, axis=0), slopes[:, columns].double().numpy().T
        mine += steps @ part
        if other is not None:
            points = [other[0].points(row, row + 1, columns) for row in other[1]]
            beside = np.diff(np.concatenate(points).astype(np.float64), axis=0)
            its += beside @ part
            cross += steps @ beside.T
    return mine, its, cross


def _cosines(products: np.ndarray) -> np.ndarray:
    """Of principal angles, from inner products of two orthonormal bases."""
    cosines: np.ndarray = np.minimum(np.linalg.svd(products, compute_uv=False), 1.0)
    return cosines


def _permuted(gram: np.ndarray, centring: Centring, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Explained variance (n,) of the increments in random order: mean, standard deviation; and those (2,) of the participation ratio. Empty where the order plays no part."""
    if centring == "increments":
        return np.empty(0), np.empty(0), np.empty(0)
    random = np.random.default_rng(child_seed(seed, "permutations"))
    n = len(gram)
    rows, _ = _convention(n, centring)
    drawn = np.empty((PERMUTATIONS, n))
    for shares in drawn:
        order = random.permutation(n)
        values = np.linalg.eigvalsh(rows @ gram[np.ix_(order, order)] @ rows.T)[::-1][:n]
        shares[:] = np.maximum(values, 0.0) / np.maximum(values, 0.0).sum()
    ratios = np.array([_participation(shares) for shares in drawn])
    return drawn.mean(axis=0), drawn.std(axis=0, ddof=1), np.array([ratios.mean(), ratios.std(ddof=1)])
