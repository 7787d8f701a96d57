"""What manifold does descent trace? The diffusion map of a trajectory or of a cloud, and beside every number what points without any structure have.

Letters: T points, D parameters, k coordinates, M null models, B draws of each, E estimators of a dimension, H half samples, G and S bandwidths.

Every trajectory looks low-dimensional: a random walk in any number of dimensions has cosines of time for coordinates, a decaying spectrum, and a dimension of 2. So each number is judged against
null models that keep something of the points and make the rest random (`landscape.nulls`), each drawn B times and measured in the same way, the bandwidth chosen anew by the same rule.

    eigenvalues    of the diffusion map; two-sided, one by one, and all at once with the dimension (`joint`)
    dimensions     by several estimators (`landscape.intrinsic`); one-sided: low is what would be found
    fits           R^2 of each coordinate on a smooth function of time, a cubic spline of the point's rank in time; one-sided: high. Not of clouds
    shares         of the first principal components in the variance; one-sided: high

Sources: Coifman and Lafon 2006; Fjellstrom and Nystrom 2022; Dsilva et al. 2018 (harmonics); Antognini and Sohl-Dickstein 2018 (random walks); Westfall and Young 1993 (several numbers at once);
Shao and Wu 1989 (half samples: the standard deviation of what they give is the standard error of what all points give).
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from landscape import harmonics, intrinsic, kernels
from landscape.diffusion import DiffusionMap, eigen, sensitivity
from landscape.errors import UsageError, unknown
from landscape.nulls import CLOUDS, PATHS, TIED, Null, Side, draw, p_value, random_walk_cosines
from landscape.results import Result
from landscape.seeds import child_seed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from plotly.graph_objects import Figure

    from landscape.distances import Distances
    from landscape.objectives import Objective
    from landscape.trajectories import Trajectory

Space = Literal["parameters", "predictions", "probabilities"]

MOST = 2000  # points: with 6 nulls of 20 draws they take five minutes, and the time grows with their cube
LEVEL = 0.05  # a p-value above it is no evidence
ORDERS = 199  # random orders of a cloud's points, for p-values down to 0.005
DEPENDENT = 0.01  # p-value from which its points count as no independent draws: one cloud of independent ones in a hundred is then not judged
NOISE = 0.05  # eigenvalues below it tell nothing: their coordinates are mostly noise
APART = 0.95  # where all eigenvalues are above it they tell nothing: the kernel hardly joins the points
COSINE = 0.9  # correlation from which a coordinate counts as a cosine of time: those of random walks have 0.95 to 0.999
SPLINE = 24  # functions of the smooth function of time: four and more a period of the tenth cosine
SHARES = 3  # principal components whose shares are judged
SENSITIVITY = 2.0 ** np.arange(
    -3, 7
)  # factors on the bandwidth: below an eighth hardly two points are joined, and at 64 all eigenvalues are about 0
SLIDES = 25  # places of the step slider
PATH, CLOUD = (
    "bgh",
    "mle",
)  # the estimator that the verdict speaks of: the one that diffusion maps come with; the one with the smallest spread on clouds

SIDES: dict[str, Side] = {"eigenvalues": "both", "dimensions": "lower", "fits": "upper", "shares": "upper"}

NOUNS = {
    "isotropic-walk": "a random walk",
    "matched-walk": "a random walk of the same covariance",
    "shuffled": "its own steps in random order",
    "sign-flipped": "its own steps with random signs",
    "ornstein-uhlenbeck": "an Ornstein-Uhlenbeck process",
    "line": "a straight line with noise",
    "isotropic-cloud": "an isotropic Gaussian cloud",
    "matched-cloud": "a Gaussian cloud of the same covariance",
}

# what the protocol of Fjellstrom and Nystrom 2022 has a value for, and its abstract, all that was at hand, has none
SLOTS = (
    "model", "data", "optimiser", "learning rate", "batch", "steps", "burn-in", "thinning", "per layer or whole vector", "standardisation",
    "kernel", "bandwidth rule", "alpha", "eigenvectors", "diffusion time", "colouring",
)  # fmt: skip


# -- one set of points ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Measured:
    """What is measured of T points, given or drawn."""

    bandwidth: kernels.Bandwidth
    vectors: np.ndarray  # (T, k)
    eigenvalues: np.ndarray  # (k,)
    dimensions: dict[str, intrinsic.Dimension]
    fits: np.ndarray  # (k,); empty for a cloud
    shares: np.ndarray  # (SHARES,)

    @property
    def numbers(self) -> dict[str, np.ndarray]:
        """By the names of SIDES."""
        values = np.array([found.value for found in self.dimensions.values()])
        return {"eigenvalues": self.eigenvalues, "dimensions": values, "fits": self.fits, "shares": self.shares}


def _measured(squared: np.ndarray, ordered: bool, rule: str | float, alpha: float, k: int) -> _Measured:
    chosen = kernels.bandwidth(squared, rule)
    eigenvalues, vectors = eigen(squared, chosen.epsilon, alpha, k)
    exclude = intrinsic.theiler(squared) if ordered else 0
    return _Measured(
        bandwidth=chosen,
        vectors=vectors,
        eigenvalues=eigenvalues,
        dimensions=intrinsic.dimensions(
            squared, curve=None if rule == "bgh-neighbours" else chosen.curve, exclude=exclude
        ),
        fits=_fits(vectors) if ordered else np.empty(0),
        shares=_shares(squared),
    )


def _fits(vectors: np.ndarray) -> np.ndarray:
    """R^2 (k,) of each coordinate on a cubic spline of the point's rank in time."""
    centred = vectors - vectors.mean(axis=0)
    with np.errstate(invalid="ignore"):
        held: np.ndarray = np.sum((_splines(len(vectors)).T @ centred) ** 2, axis=0) / np.sum(centred**2, axis=0)
    return held


@functools.lru_cache(maxsize=8)
def _splines(count: int) -> np.ndarray:
    """Orthonormal functions (T, m) of time: cubic splines with even knots, m = SPLINE, or a fifth of the points where these are few."""
    from scipy.interpolate import BSpline

    size = min(SPLINE, max(4, count // 5))
    knots = np.concatenate([np.zeros(3), np.linspace(0, 1, size - 2), np.ones(3)])
    design = BSpline.design_matrix((np.arange(count) + 0.5) / count, knots, 3).toarray()
    return np.linalg.qr(design)[0]


def _shares(squared: np.ndarray) -> np.ndarray:
    """Of the variance, by principal component (SHARES,)."""
    from scipy.linalg import eigvalsh

    gram = squared - squared.mean(axis=0)
    gram = (gram - gram.mean(axis=1, keepdims=True)) / -2
    size = len(gram)
    shares = np.zeros(SHARES)
    top = eigvalsh(gram, subset_by_index=[max(0, size - SHARES), size - 1])[::-1]
    shares[: len(top)] = top / np.trace(gram)
    return shares


def joint(observed: np.ndarray, drawn: np.ndarray) -> float:
    """p-value of several numbers (n,) at once among B drawn ones (B, n): the largest deviation of any of them from the mean, in standard deviations, by its rank.

    Mean and standard deviation are those of all B + 1, so that the p-value is exact for exchangeable ones, however the numbers depend on each other (max-t test, Westfall and Young 1993).
    """
    together = np.vstack([observed, drawn])
    together = together[:, np.isfinite(together).all(axis=0)]
    spread = together.std(axis=0)
    varies = spread > TIED * np.abs(together).max(axis=0, initial=0.0)  # what a null keeps differs by rounding
    deviations = np.abs(together - together.mean(axis=0))[:, varies] / spread[varies]
    largest = deviations.max(axis=1, initial=0.0)
    return float(np.mean(largest >= largest[0] * (1 - TIED)))


# -- the answer -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Diffusion(Result):
    """The diffusion map of T points, and what null models have in its place. Arrays over nulls are empty where there are none."""

    ordered: bool  # a path; else a cloud
    space: str
    dim: int  # D
    approximation: str  # of the distances
    recorded: int  # points that the question is about, of which T are taken
    masked: int  # points left out since they hold NaN or infinity
    steps: np.ndarray  # (T,)
    losses: np.ndarray  # (T,) of a mini-batch; NaN where not known
    alpha: float
    rule: str
    epsilon: float
    time: float
    engine: str
    eigenvalues: np.ndarray  # (k,) descending, without the trivial 1
    rates: np.ndarray  # (k,) (1 - lambda) / eps
    vectors: np.ndarray  # (T, k)
    accuracy: float  # largest residual of an eigenpair; NaN where the engine tells none
    pieces: np.ndarray  # sizes of the connected pieces of the kernel's graph, descending
    residuals: np.ndarray  # (k,) of local linear regression on the earlier coordinates
    fits: np.ndarray  # (k,)
    cosines: np.ndarray  # (k,) |correlation| of coordinate j with cos(pi j t / T); empty for a cloud
    shares: np.ndarray  # (SHARES,)
    estimators: list[str]  # (E,)
    dimensions: np.ndarray  # (E,)
    errors: np.ndarray  # (E,) standard errors; NaN where none is known
    biases: list[str]  # (E,) what is known of the estimator's bias
    halves: np.ndarray  # (H, k) eigenvalues of half samples
    curve: np.ndarray  # (3, G) bandwidth, log of the kernel's sum, its slope
    sensitivity: np.ndarray  # (S, 1 + k) bandwidth and eigenvalues
    variants: dict[str, np.ndarray]  # eigenvalues (k,) under other conventions
    nulls: list[str]  # (M,)
    null_words: list[str]  # (M,) what a draw is, and what its p-values are exact for
    null_eigenvalues: np.ndarray  # (M, B, k)
    null_dimensions: np.ndarray  # (M, B, E)
    null_fits: np.ndarray  # (M, B, k)
    null_shares: np.ndarray  # (M, B, SHARES)
    slots: dict[
        str, str
    ]  # of a published protocol whose values are not known: what stands in each place here. Empty where none was named
    succession: float = math.nan  # of a cloud: p-value of "its points are drawn in no order", see `succession`

    # -- what follows from the numbers --------------------------------------------------------------------------------

    @property
    def draws(self) -> int:
        """B."""
        return self.null_eigenvalues.shape[1] if self.nulls else 0

    @property
    def coordinates(self) -> np.ndarray:
        """(T, k) lambda^time psi."""
        scaled: np.ndarray = self.vectors * np.maximum(self.eigenvalues, 0.0) ** self.time  # as DiffusionMap
        return scaled

    @property
    def informative(self) -> np.ndarray:
        """Indices of the eigenvalues that tell something at this bandwidth."""
        return np.flatnonzero(self.eigenvalues > NOISE) if self.eigenvalues.min() < APART else np.empty(0, dtype=int)

    @property
    def unique(self) -> np.ndarray:
        """Indices of the informative coordinates that are no harmonics of earlier ones."""
        return np.intersect1d(harmonics.unique(self.residuals), self.informative)

    @property
    def gap(self) -> tuple[int, float, float, float]:
        """The place j of the largest gap lambda_j - lambda_j+1, the gap, its standard error by half samples, and the share of these that have it at the same place."""
        gaps = -np.diff(self.eigenvalues)
        if not len(gaps):
            return 0, math.nan, math.nan, math.nan
        place = int(gaps.argmax())
        if not len(self.halves):
            return place + 1, float(gaps[place]), math.nan, math.nan
        others = -np.diff(self.halves, axis=1)
        return place + 1, float(gaps[place]), float(others[:, place].std(ddof=1)), float(np.mean(others.argmax(axis=1) == place))  # fmt: skip

    def p_values(self, name: str) -> np.ndarray:
        """(M, ...) of each number of a row of SIDES, by null."""
        observed, drawn = getattr(self, name), getattr(self, f"null_{name}")
        return np.array([[p_value(float(x), column, SIDES[name]) for x, column in zip(observed, one.T, strict=True)] for one in drawn])  # fmt: skip

    @property
    def joint_p(self) -> np.ndarray:
        """(M,) of all eigenvalues and the dimension that the verdict speaks of at once."""
        e = self.judged
        drawn = np.concatenate([self.null_eigenvalues, self.null_dimensions[:, :, e : e + 1]], axis=2)
        return np.array([joint(np.append(self.eigenvalues, self.dimensions[e]), one) for one in drawn])

    @property
    def judged(self) -> int:
        """Index of the estimator that the verdict speaks of."""
        return self.estimators.index(PATH if self.ordered else CLOUD)

    # -- in words -----------------------------------------------------------------------------------------------------

    def summary(self) -> str:
        """See Result."""
        what = "path" if self.ordered else "cloud"
        eigenvalues = " ".join(f"{value:.3f}" for value in self.eigenvalues[:4])
        text = f"{len(self.steps):,} points of a {what} in {self.dim:,} dimensions: eigenvalues {eigenvalues}{' ...' if len(self.eigenvalues) > 4 else ''}; dimension {self._dimension()}"
        if not self.nulls:
            return f"{text}; judged against nothing."
        if self._undecided:
            return f"{text}; {_count(self.draws, 'draw')} of each null model {'is' if self.draws == 1 else 'are'} too few to judge it."
        if self._dependent:
            return f"{text}; its points are no independent draws, and cannot be judged."
        like = self._alike()
        if not like:
            return f"{text}; unlike all {len(self.nulls)} null models (p ≤ {self.joint_p.max():.2g})."
        return f"{text}; nothing that {NOUNS[like[0]]} does not show."

    def verdict(self) -> str:
        """One paragraph: what the data do and do not show."""
        said = [*self._said_of_bandwidth(), *self._said_of_coordinates(), *self._said_of_nulls(), *self._said_of_dimension()]  # fmt: skip
        if self.ordered:
            said.append("A path cannot show a manifold's dimension, since it is a curve: see `landscape cloud`.")
        return " ".join(said)

    def _said_of_bandwidth(self) -> list[str]:
        said = []
        if len(self.pieces) > 1:
            shown = [f"{size:,}" for size in self.pieces[:3]]
            telling = min(len(self.pieces) - 1, len(self.eigenvalues))
            told = "the first coordinate tells" if telling == 1 else f"the first {telling:,} coordinates tell"
            sizes = _joined(shown + ([f"{len(self.pieces) - 3:,} more"] if len(self.pieces) > 3 else []))
            said.append(f"At this bandwidth the points fall into {len(self.pieces):,} pieces ({sizes}), and {told} these apart and nothing else.")  # fmt: skip
        k, n = len(self.eigenvalues), len(self.informative)
        if not n and self.eigenvalues.min() >= APART:
            return [*said, f"All {_count(k, 'eigenvalue')} are above {APART:g}: the bandwidth is so small, or some points lie so far from the others, that they tell nothing; take a larger bandwidth, or a phase of the path."]  # fmt: skip
        return [*said, f"Of {_count(k, 'eigenvalue')} {n} {'is' if n == 1 else 'are'} above {NOISE:g} and {'tells' if n == 1 else 'tell'} something."]  # fmt: skip

    def _said_of_coordinates(self) -> list[str]:
        said = []
        # how many of the first ones are cosines
        leading = len(self.cosines) if (self.cosines >= COSINE).all() else int(np.argmin(self.cosines >= COSINE))
        if leading:
            which = "The first coordinate is the cosine" if leading == 1 else f"The first {leading} coordinates are the cosines"  # fmt: skip
            said.append(f"{which} of time that an evenly run straight line and every long random walk have too (correlation {self.cosines[:leading].min():.2f}{' and more' if leading > 1 else ''}).")  # fmt: skip
        if len(self.informative) > 1:
            names = _joined([f"ψ{j + 1}" for j in self.unique])
            said.append(f"Of those that tell something {names} {'is' if len(self.unique) == 1 else 'are'} no smooth function of the earlier ones{'' if len(self.unique) == len(self.informative) else '; the others repeat them (harmonics)'}.")  # fmt: skip
        return said

    def _alike(self) -> list[str]:
        """The nulls from which the eigenvalues and the dimension are not told apart."""
        return [name for name, p in zip(self.nulls, self.joint_p, strict=True) if p > LEVEL] if self.nulls else []

    @property
    def _undecided(self) -> bool:
        """Whether there are too few draws for any p-value to be evidence."""
        return self.draws + 1 < 1 / LEVEL

    @property
    def _dependent(self) -> bool:
        """Whether the points of a cloud are no independent draws, which its null models take them for."""
        return self.succession <= DEPENDENT

    def _said_of_nulls(self) -> list[str]:
        if not self.nulls:
            return ["All this was judged against nothing: without null models no number here is evidence of low dimension."]  # fmt: skip
        if self._undecided:
            return [f"{_count(self.draws, 'draw')} of a null cannot give a p-value of {LEVEL:g}: nothing can be told from them; take 19 or more."]  # fmt: skip
        if self._dependent:
            return [f"Points that follow each other are nearer than others (p = {self.succession:.2g}): they are no independent draws, which the null models take them for, so that p-values are too small and dimensions too low. Draw them further apart."]  # fmt: skip
        like = self._alike()
        if not like:
            return [f"Eigenvalues and dimension are unlike those of every null model (p ≤ {self.joint_p.max():.2g})."]
        p = dict(zip(self.nulls, self.joint_p, strict=True))
        told = _joined([f"{NOUNS[name]} (p = {p[name]:.2g})" for name in like])
        other = [NOUNS[name] for name in self.nulls if name not in like]
        text = (
            f"In eigenvalues and dimension they show nothing that {told} {'does' if len(like) == 1 else 'do'} not show."
        )
        unlike = max((p[name] for name in self.nulls if name not in like), default=0.0)
        return [f"{text} They are unlike {_joined(other)} (p ≤ {unlike:.2g})." if other else text]

    def _said_of_dimension(self) -> list[str]:
        if not self.nulls or self._undecided or self._dependent:
            return []
        name, value, p = self.estimators[self.judged], self._dimension(), self.p_values("dimensions")[:, self.judged]
        if np.isnan(p).all():
            return [f"Too few points are distinct for a dimension ({name})."]

        def told(m: int) -> str:
            drawn = self.null_dimensions[m, :, self.judged]
            return f"{NOUNS[self.nulls[m]]} ({np.nanmin(drawn):.3g} to {np.nanmax(drawn):.3g}, p = {p[m]:.2g})"

        like = int(np.argmax(p))
        if p[like] > LEVEL:
            return [f"With a dimension of {value} ({name}) the points are no more low-dimensional than {told(like)}."]
        lowest = int(np.argmin(np.nanmedian(self.null_dimensions[:, :, self.judged], axis=1)))
        text = f"With a dimension of {value} ({name}) the points are more low-dimensional than every null model, even {told(lowest)}"  # fmt: skip
        return [
            text
            + (
                "."
                if self.ordered
                else ": they lie near a curved set of about that dimension, or are unevenly spread (clusters, outliers), which looks alike here: see the coordinates."
            )
        ]

    def _dimension(self) -> str:
        error = self.errors[self.judged]
        return f"{self.dimensions[self.judged]:.3g}" + (f" ± {error:.1g}" if math.isfinite(error) else "")

    def caption(self) -> str:
        """See Result."""
        j, gap, error, same = self.gap
        taken = f"{len(self.steps):,} points" if len(self.steps) + self.masked == self.recorded else f"{len(self.steps):,} of {self.recorded:,} points, evenly thinned"  # fmt: skip
        text = f"{self.verdict()} Measured on {taken}; distances in {self.space} ({self.dim:,} dimensions; {self.approximation}); kernel exp(-d²/4ε) with ε = {self.epsilon:.4g} by the rule {self.rule}, α = {self.alpha:g}, diffusion time {self.time:g}{f'; residuals of eigenpairs at most {self.accuracy:.0e}' if math.isfinite(self.accuracy) else ''}. "  # fmt: skip
        if self.masked:
            text += f"Left out, since they hold NaN or infinity: {_count(self.masked, 'point')}. "
        if math.isfinite(error):
            text += f"The largest gap, {gap:.3g} ± {error:.1g}, follows eigenvalue {j}, in {same:.0%} of {len(self.halves)} random half samples too. "
        if self.nulls:
            text += f"Bars: smallest, median and largest of {self.draws} draws of each null model, measured in the same way. p-values are by rank, at least {1 / (self.draws + 1):.2g}: two-sided for single eigenvalues, and one-sided for low dimension, high R² on time and high shares of the variance. "
            text += " ".join(f"{name}: {words}." for name, words in zip(self.nulls, self.null_words, strict=True)) + " "
        text += (
            f"Residuals r: local linear regression of each coordinate on the earlier ones, new from {harmonics.NEW:g}. "
        )
        biases = [f"{name}: {words}" for name, words in zip(self.estimators, self.biases, strict=True) if words]
        if biases:
            text += f"Dimensions, with what is known of their bias: {'; '.join(biases)}. "
        if self.ordered:
            text += "R²: of a coordinate on a cubic spline of the point's rank in time. Cosines: correlation with cos(πjt/T). Losses are those of mini-batches. "
        if self.slots:
            stands = "; ".join(f"{slot}: {ours}" for slot, ours in self.slots.items())
            text += f"Protocol of Fjellström and Nyström 2022: all {len(self.slots)} of its slots are unfilled, since their paper's text was not at hand; in their places stand choices of ours ({stands})."
        return text.rstrip()

    def table(self) -> list[tuple[str, ...]]:
        """See Result."""
        head = ("", "value", "±", "r", "cosine", *(f"p {name}" for name in self.nulls))
        p = {name: self.p_values(name) for name in SIDES} if self.nulls else {}
        spread = self.halves.std(axis=0, ddof=1) if len(self.halves) else np.full(len(self.eigenvalues), np.nan)

        def row(name: str, value: float, kind: str, place: int, more: Sequence[str] = ("", "", "")) -> tuple[str, ...]:
            return (name, f"{value:.4g}", *more, *(f"{found:.2g}" for found in (p[kind][:, place] if p else ())))

        rows = []
        for j, value in enumerate(self.eigenvalues):
            more = (_number(spread[j], ".1g"), _number(self.residuals[j], ".2f"), _number(self.cosines[j], ".3f") if self.ordered else "")  # fmt: skip
            rows.append(row(f"λ{j + 1}", value, "eigenvalues", j, more))
        if self.nulls:
            rows.append(("all λ and the dimension", "", "", "", "", *(f"{found:.2g}" for found in self.joint_p)))
        rows += [row(f"R² of ψ{j + 1} on time", value, "fits", j) for j, value in enumerate(self.fits)]
        rows += [row(f"variance, component {j + 1}", value, "shares", j) for j, value in enumerate(self.shares)]
        for e, (name, value) in enumerate(zip(self.estimators, self.dimensions, strict=True)):
            rows.append(row(f"dimension, {name}", value, "dimensions", e, (_number(self.errors[e], ".1g"), "", "")))
        blank = ("",) * (len(head) - 2)
        for name, eigenvalues in self.variants.items():
            rows.append((f"λ, {name}", " ".join(f"{value:.3f}" for value in eigenvalues), *blank))
        return [head, *rows]

    # -- pictures -----------------------------------------------------------------------------------------------------

    def panels(self) -> tuple[str, ...]:
        """`eigenvalues`, `steps` and `losses` (coordinates by colour), `time`, `bandwidth`, `sensitivity`, `residuals`, `dimensions`; of a cloud neither `steps` nor `time`."""
        two = len(self.eigenvalues) > 1
        names = {
            "eigenvalues": True, "steps": two and self.ordered, "losses": two, "time": self.ordered,
            "bandwidth": True, "sensitivity": True, "residuals": True, "dimensions": True,
        }  # fmt: skip
        return tuple(name for name, shown in names.items() if shown)

    def plot(self, ax: Axes, panel: str = "") -> None:
        """See Result."""
        drawings: dict[str, Callable[[Axes], None]] = {
            "eigenvalues": self._plot_eigenvalues,
            "steps": lambda ax: self._plot_coordinates(ax, "step"),
            "losses": lambda ax: self._plot_coordinates(ax, "loss"),
            "time": self._plot_time,
            "bandwidth": self._plot_bandwidth,
            "sensitivity": self._plot_sensitivity,
            "residuals": self._plot_residuals,
            "dimensions": self._plot_dimensions,
        }
        panel = panel or "eigenvalues"
        if panel not in self.panels():
            raise unknown("panel", panel, self.panels())
        drawings[panel](ax)

    def _bars(self, ax: Axes, drawn: np.ndarray) -> None:
        """Smallest, median and largest (M, B, n) of the draws of each null, side by side at the places 1..n."""
        from landscape.analysis.styles import CYCLE

        places = np.arange(1, drawn.shape[2] + 1)
        for m, (name, its) in enumerate(zip(self.nulls, drawn, strict=True)):
            known = np.isfinite(its).any(axis=0)
            low, middle, high = np.nanquantile(its[:, known], [0, 0.5, 1], axis=0)
            x = (places + 0.7 * ((m + 0.5) / len(self.nulls) - 0.5))[known]
            ax.vlines(x, low, high, color=CYCLE[m], linewidth=2, alpha=0.55)
            ax.plot(x, middle, MARKERS[m], color=CYCLE[m], markersize=2.6, linestyle="none", label=name)

    def _plot_eigenvalues(self, ax: Axes) -> None:
        from landscape.analysis.styles import BLACK, heading

        if self.nulls:
            self._bars(ax, self.null_eigenvalues)
        order = np.arange(1, len(self.eigenvalues) + 1)
        ax.plot(order, self.eigenvalues, "-o", color=BLACK, markersize=4, linewidth=1.2, label="path" if self.ordered else "cloud", zorder=3)  # fmt: skip
        ax.axhline(NOISE, color="#bbbbbb", linewidth=0.7, linestyle=":", zorder=0)
        _whole(ax)
        ax.set(xlabel="j", ylabel="eigenvalue λj")
        heading(ax, "Eigenvalues beside those of null models" if self.nulls else "Eigenvalues", columns=3)

    def _plot_coordinates(self, ax: Axes, by: str) -> None:
        from matplotlib.colors import LogNorm

        from landscape.analysis.styles import GREY, SEQUENTIAL

        x, y = self.coordinates[:, 0], self.coordinates[:, 1]
        values = self.steps if by == "step" else self.losses
        known = np.isfinite(values)
        if self.ordered:
            ax.plot(x, y, color=GREY, linewidth=0.4, alpha=0.6, zorder=0)
        ax.scatter(x[~known], y[~known], s=6, color=GREY, linewidths=0)
        title = f"Coordinates by {by}"
        if known.any():
            colours = values[known]
            norm = LogNorm() if by == "loss" and colours.min() > 0 and colours.max() > 10 * colours.min() else None
            points = ax.scatter(x[known], y[known], s=9, c=colours, cmap=SEQUENTIAL, norm=norm, linewidths=0)
            ax.figure.colorbar(points, ax=ax, pad=0.02).set_label("loss of the mini-batch" if by == "loss" and self.ordered else by)  # fmt: skip
        else:
            title += ": not known"
        ax.set(xlabel=self._axis(0), ylabel=self._axis(1))
        ax.set_title(title, loc="left")

    def _axis(self, j: int) -> str:
        name = f"ψ{j + 1}" if self.time == 0 else f"λ{j + 1}^{self.time:g} ψ{j + 1}"
        return f"{name} (λ = {self.eigenvalues[j]:.3f})"

    def _plot_time(self, ax: Axes) -> None:
        from landscape.analysis.styles import CYCLE, GREY, heading

        cosines = random_walk_cosines(len(self.steps), min(3, len(self.eigenvalues)))
        for j, cosine in enumerate(cosines.T):
            psi = self.vectors[:, j] * (
                1 if self.vectors[:, j] @ cosine >= 0 else -1
            )  # the sign of an eigenvector is free
            ax.plot(self.steps, math.sqrt(2) * cosine, "--", color=GREY, linewidth=0.9, label="cosines" if not j else None)  # fmt: skip
            ax.plot(self.steps, psi, color=CYCLE[j], linewidth=1.1, linestyle=("-", "-.", ":")[j], label=f"ψ{j + 1}: {self.cosines[j]:.3f}")  # fmt: skip
        ax.set(xlabel="step", ylabel="coordinate")
        heading(ax, "Coordinates over time, correlation with cosines", columns=4)

    def _plot_bandwidth(self, ax: Axes) -> None:
        from landscape.analysis.styles import BLUE, VERMILION, heading

        epsilon, sums, slope = self.curve
        shown = slope > 0.01 * slope.max()
        ax.plot(epsilon[shown], 2 * slope[shown], color=BLUE, label="2 d log S / d log ε")
        ax.axvline(self.epsilon, color=VERMILION, linestyle="--", label=f"ε = {self.epsilon:.3g} ({self.rule})")
        other = ax.twinx()
        other.plot(epsilon[shown], np.exp(sums[shown]), color="#8a8a8a", linestyle=":", linewidth=1.2)
        other.set(ylabel="mean of the kernel, S (dotted)", ylim=(0, 1.02))
        ax.set_xscale("log")
        ax.set(xlabel="bandwidth ε", ylabel="dimension at this scale", ylim=(0, None))
        heading(ax, "Sum of the kernel over bandwidths", columns=2)

    def _plot_sensitivity(self, ax: Axes) -> None:
        from landscape.analysis.styles import CYCLE, VERMILION

        epsilon, eigenvalues = self.sensitivity[:, 0], self.sensitivity[:, 1:]
        ax.axhspan(-0.03, NOISE, color="#eeeeee", linewidth=0, zorder=0)
        for j in range(eigenvalues.shape[1]):
            ax.plot(epsilon, eigenvalues[:, j], "-o", color=CYCLE[j % len(CYCLE)], markersize=2.5, linewidth=1)
        for j, side in {
            eigenvalues.shape[1] - 1: "right",
            0: "left",
        }.items():  # the outer ones are named, where they are half way
            place = int(np.abs(eigenvalues[:, j] - 0.5).argmin())
            ax.annotate(f"λ{j + 1}", (epsilon[place], eigenvalues[place, j]), xytext=(4 if side == "left" else -4, 3), textcoords="offset points", fontsize=8, ha=side)  # fmt: skip
        ax.axvline(self.epsilon, color=VERMILION, linestyle="--", linewidth=1)
        ax.set_xscale("log")
        ax.set(xlabel="bandwidth ε (dashed: the one taken)", ylabel="eigenvalues", ylim=(-0.03, 1.03))
        ax.set_title("Eigenvalues over bandwidths (grey: noise)", loc="left")

    def _plot_residuals(self, ax: Axes) -> None:
        from landscape.analysis.styles import BLUE, GREY, VERMILION

        order = np.arange(1, len(self.residuals) + 1)
        tells = np.isin(order - 1, self.informative)
        new = np.isin(order - 1, self.unique)
        colours = np.where(new, VERMILION, np.where(tells, BLUE, GREY))
        ax.bar(order, np.nan_to_num(self.residuals), color=colours, width=0.7)
        for j in np.flatnonzero(new):
            ax.annotate("new", (order[j], self.residuals[j]), ha="center", va="bottom", fontsize=8)
        ax.axhline(harmonics.NEW, color="black", linestyle="--", linewidth=0.8)
        _whole(ax)
        ax.set(xlabel="j (grey: the eigenvalue tells nothing)", ylabel="residual r", ylim=(0, 1.15 * max(1.0, np.nanmax(self.residuals))))  # fmt: skip
        ax.set_title("Coordinates by what the earlier ones leave of them", loc="left")

    def _plot_dimensions(self, ax: Axes) -> None:
        from landscape.analysis.styles import BLACK, heading

        if self.nulls:
            self._bars(ax, self.null_dimensions)
        places = np.arange(1, len(self.estimators) + 1)
        ax.errorbar(places, self.dimensions, np.nan_to_num(2 * self.errors), fmt="o", color=BLACK, markersize=5, capsize=3, linewidth=1.2, label="path" if self.ordered else "cloud", zorder=3)  # fmt: skip
        ax.set_yscale("log")
        _plain_log(ax)
        ax.set_xticks(places, self.estimators)
        ax.set(ylabel="dimension", xlim=(0.4, len(places) + 0.6))
        heading(ax, "Dimension by estimator (± 2 standard errors)", columns=3)

    def figure(self) -> Figure:
        """The first three coordinates; a slider goes through the steps of a path, and the colour is the step or the loss."""
        import plotly.graph_objects as go

        from landscape.analysis.styles import SEQUENTIAL, interactive

        xyz = np.zeros((len(self.steps), 3))
        xyz[:, : min(3, len(self.eigenvalues))] = self.coordinates[:, :3]
        # a trace a piece of the path, each with the point before it, so that the line goes on
        cuts = np.linspace(0, len(xyz), (SLIDES if self.ordered else 1) + 1).round().astype(int)
        cuts = np.unique(cuts)
        figure = go.Figure()
        hover = [f"step {step}<br>loss {loss:.4g}" if self.ordered else f"point {step}<br>loss {loss:.4g}" for step, loss in zip(self.steps, self.losses, strict=True)]  # fmt: skip
        losses = self.losses
        if np.isfinite(losses).any() and np.nanmin(losses) > 0:
            losses = np.log10(losses)
        pieces = [slice(max(first - 1, 0), last) for first, last in itertools.pairwise(cuts.tolist())]
        for part in pieces:
            figure.add_scatter3d(
                x=xyz[part, 0], y=xyz[part, 1], z=xyz[part, 2], text=hover[part], hoverinfo="text", showlegend=False,
                mode="lines+markers" if self.ordered else "markers", line={"color": "#999999", "width": 2},
                marker={"size": 3, "color": (self.steps if self.ordered else losses)[part], "coloraxis": "coloraxis"},
            )  # fmt: skip
        log = losses is not self.losses
        words = {"step": self.steps} if self.ordered else {}
        if np.isfinite(losses).any():
            words["log₁₀ loss" if log else "loss"] = losses
        # ranges of all points, so that nothing jumps while the slider moves
        scales = {
            word: {"cmin": float(np.nanmin(values)), "cmax": float(np.nanmax(values)), "colorbar.title.text": word}
            for word, values in words.items()
        }
        buttons = [
            {
                "label": f"colour: {word}",
                "method": "update",
                "args": [
                    {"marker.color": [values[part] for part in pieces]},
                    {f"coloraxis.{name}": value for name, value in scales[word].items()},
                ],
            }
            for word, values in words.items()
        ]
        first: dict[str, Any] = next(iter(scales.values()), {})
        places = [
            {"label": f"{self.steps[last - 1]}", "method": "restyle", "args": ["visible", [m <= n for m in range(len(pieces))]]}
            for n, last in enumerate(cuts[1:])
        ]  # fmt: skip
        slider = {"active": len(places) - 1, "steps": places, "currentvalue": {"prefix": "up to step "}, "pad": {"t": 10}}  # fmt: skip
        axis = {"title_font_size": 11, "tickfont_size": 10, "gridcolor": "#dddddd", "zeroline": False}
        ends = np.stack([xyz.min(axis=0), xyz.max(axis=0)]) + 0.05 * np.outer([-1, 1], np.ptp(xyz, axis=0) + 1e-9)
        interactive(figure, x="", y="").update_layout(
            height=640,
            margin={"l": 0, "r": 0, "t": 40, "b": 90},
            coloraxis={"colorscale": SEQUENTIAL, "showscale": bool(words), "colorbar": {"len": 0.7, "thickness": 16}},
            updatemenus=[{"buttons": buttons, "direction": "right", "type": "buttons", "x": 0, "y": 1.06, "xanchor": "left"}] if len(words) > 1 else [],
            sliders=[slider] if self.ordered else [],
            scene={f"{name}axis": {"title": self._axis(j) if j < len(self.eigenvalues) else "", "range": ends[:, j], **axis} for j, name in enumerate("xyz")},
        )  # fmt: skip
        figure.layout.coloraxis.update({name.replace(".", "_"): value for name, value in first.items()})
        return figure


MARKERS = "so^Dv<"


def _whole(ax: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True))


def _plain_log(ax: Axes) -> None:
    """1, 2, 5, 10 and not powers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _number(value: float, form: str) -> str:
    return f"{value:{form}}" if math.isfinite(value) else ""


def _joined(parts: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


# -- the measurement --------------------------------------------------------------------------------------------------


def within(steps: np.ndarray, span: str | None) -> np.ndarray:
    """Rows, of recorded steps (T,), inside `span`: "100-2000", "100-" or "-2000"; None: all. Raises UsageError for a span that cannot be read."""
    if span is None:
        return np.arange(len(steps))
    match = re.fullmatch("([0-9]{0,18})-([0-9]{0,18})", span)
    if not match or span == "-":
        raise UsageError(f"a phase is a first and a last step, such as 100-2000, 100- or -2000; got {span!r}.")
    first, last = match.groups()
    return np.flatnonzero((steps >= int(first or 0)) & (steps <= int(last or steps.max(initial=0))))


def taken(steps: np.ndarray, span: str | None, points: int) -> np.ndarray:
    """Rows, of recorded steps (T,), inside `span`, thinned evenly to at most `points`.

    Raises UsageError for fewer than 3 points within it, and more than MOST points asked for.
    """
    if not 3 <= points <= MOST:
        raise UsageError(f"a diffusion map is made of 3 to {MOST:,} points here; got {points}. To go beyond, use landscape.diffusion.DiffusionMap.")  # fmt: skip
    rows = within(steps, span)
    if len(rows) < 3:
        where = "" if span is None else f" in steps {span}"
        raise UsageError(f"{_count(len(rows), 'point')} recorded{where}: a diffusion map takes 3 or more. Record more often{'' if span is None else ', or give a longer phase'}.")  # fmt: skip
    chosen: np.ndarray = rows[np.linspace(0, len(rows) - 1, min(points, len(rows))).round().astype(int)]
    return chosen


def answers(f: Objective, trajectory: Trajectory, rows: Sequence[int], space: Space) -> np.ndarray:
    """What the model at each recorded row says of the rows of f, one point (n,) a recorded row: (T, n) float64. One recorded point is held at a time.

    predictions: outputs, such that a squared distance is the mean over rows of the squared difference. probabilities: square roots of class probabilities, such that it is the mean squared
    Hellinger distance, 1/2 sum_c (sqrt p - sqrt q)^2.

    Raises UsageError where probabilities are asked of a loss that has no classes.
    """
    import torch

    from landscape.objectives import named_buffers

    if space not in get_args(Space)[1:]:
        raise unknown("space of answers", space, get_args(Space)[1:])
    if space == "probabilities" and not (f.loss.classifies and f.loss.threshold is None):
        raise UsageError(f"class probabilities are of a loss that classifies; this one is {f.loss.name}. Take --space predictions.")  # fmt: skip
    found = []
    for index in rows:
        row = trajectory.row(int(index))
        point = torch.from_numpy(np.array(row.point)).to(f.device, f.dtype)
        outputs = f.with_buffers(named_buffers(trajectory.layout, row.buffers, f.buffers)).outputs(point).double().cpu()
        if space == "probabilities":  # log-probabilities come out of it as they went in
            outputs = outputs.softmax(1).sqrt() / math.sqrt(2)
        found.append((outputs.flatten() / math.sqrt(len(outputs))).numpy())
    return np.stack(found)


def diffuse(
    distances: Distances,
    *,
    ordered: bool = True,
    recorded: int | None = None,
    alpha: float = 1.0,
    bandwidth: str | float = "median",
    components: int = 10,
    time: float = 0.0,
    nulls: int = 20,
    subsamples: int = 20,
    seed: int = 0,
    engine: Literal["landscape", "pydiffmap"] = "landscape",
    slots: Mapping[str, str] | None = None,
) -> Diffusion:
    """The diffusion map of points, judged against null models.

    ordered: the points are a path in this order, at the times `distances.steps`; else a cloud.
    recorded: how many points there were before they were thinned.
    alpha: 1 takes the density of the points out (their geometry); 1/2 gives the dynamics; 0 keeps it.
    bandwidth: a rule of `landscape.kernels`, or a number. Default `median`: where a run slows down, `bgh` takes its last tiny steps for the scale, and all eigenvalues are 1. The same rule is applied to every draw of a null.
    nulls: draws of each null model; 20 are enough for p < 0.05. 0: none, and the answer says so.
    subsamples: random half samples for the uncertainty of the eigenvalues; 20 give it to a sixth, 1 / sqrt(2 * 19).
    engine: what solves for the map; nulls are measured by our own, and so is what they are compared with.
    slots: see `protocol`.

    Raises UsageError for fewer than 3 points, points that are all equal, and options that do not make a map.
    """
    import warnings

    squared, k = distances.squared, min(components, len(distances) - 1)
    if len(distances) < 3:
        raise UsageError(f"{_count(len(distances), 'finite point')}: a diffusion map takes 3 or more.")
    if not squared.any():
        raise UsageError(f"all {len(distances):,} points are equal: nothing moved.")
    if components < 1 or nulls < 0 or subsamples < 0 or subsamples == 1:
        raise UsageError(f"components are 1 or more, nulls 0 or more, half samples 0 or 2 and more; got {components}, {nulls}, {subsamples}.")  # fmt: skip
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        found = DiffusionMap(k, alpha=alpha, bandwidth=bandwidth, time=time, metric="squared", engine=engine).fit(squared)  # fmt: skip
    notes = [str(one.message) for one in raised]
    if k < components:
        notes.insert(
            0, f"{components} components were asked for; {len(distances)} points have {k} beside the constant."
        )
    own = _measured(squared, ordered, bandwidth, alpha, k)
    vectors = found.vectors_
    drawn = _drawn(distances, ordered, bandwidth, alpha, k, own, nulls, seed)
    models = _models(ordered) if nulls else {}
    estimates = list(own.dimensions.values())
    grid = own.bandwidth.epsilon * SENSITIVITY
    cosines = np.empty(0)
    if ordered:
        waves = random_walk_cosines(len(vectors), vectors.shape[1])
        centred = vectors - vectors.mean(axis=0)
        with np.errstate(invalid="ignore"):
            cosines = np.abs(np.sum(centred * waves, axis=0)) / np.sqrt(np.sum(centred**2, axis=0) * np.sum(waves**2, axis=0))  # fmt: skip
    return Diffusion(
        question={},
        provenance={"seed": seed, "dtype": "float64", "distances": distances.check},
        warnings=tuple(notes),
        ordered=ordered,
        space=distances.space,
        dim=distances.dim,
        approximation=distances.approximation,
        recorded=len(distances) + distances.masked if recorded is None else recorded,
        masked=distances.masked,
        steps=distances.steps,
        losses=distances.losses,
        alpha=float(alpha),
        rule=str(bandwidth),
        epsilon=float(found.bandwidth_.epsilon),
        time=float(time),
        engine=engine,
        eigenvalues=found.eigenvalues_,
        rates=found.rates_,
        vectors=vectors,
        accuracy=math.nan if found.residuals_ is None else float(np.max(found.residuals_)),
        pieces=np.sort(np.bincount(found.labels_))[::-1],
        residuals=harmonics.residuals(vectors),
        fits=own.fits,
        cosines=cosines,
        shares=own.shares,
        estimators=list(own.dimensions),
        dimensions=np.array([one.value for one in estimates]),
        errors=np.array([one.error for one in estimates]),
        biases=[one.words for one in estimates],
        halves=_halves(squared, bandwidth, alpha, k, subsamples, seed),
        curve=np.stack([own.bandwidth.curve.epsilon, own.bandwidth.curve.log_sum, own.bandwidth.curve.slope]),
        sensitivity=np.column_stack([grid, sensitivity(squared, grid, alpha=alpha, k=k)]),
        variants=_variants(squared, k),
        nulls=list(models),
        null_words=[f"{model.words} (p-values are exact for {model.exact})" for model in models.values()],
        null_eigenvalues=drawn["eigenvalues"],
        null_dimensions=drawn["dimensions"],
        null_fits=drawn["fits"],
        null_shares=drawn["shares"],
        slots=dict(slots or {}),
        succession=math.nan if ordered else succession(squared, seed),
    )


def succession(squared: np.ndarray, seed: int) -> float:
    """p-value of points being drawn in no order, from squared distances (T, T): low where those that follow each other are nearer than in ORDERS random orders.

    Exact for exchangeable points. Points of one walk are not (`clouds.drift`), and look low-dimensional for it: each has the few before and after it for neighbours.
    """
    random = np.random.default_rng(child_seed(seed, "order"))
    orders = [random.permutation(len(squared)) for _ in range(ORDERS)]
    drawn = np.array([squared[order[:-1], order[1:]].sum() for order in orders])
    return p_value(float(squared.diagonal(1).sum()), drawn, "lower")


def _models(ordered: bool) -> dict[str, Null]:
    return PATHS if ordered else CLOUDS


def _drawn(
    distances: Distances, ordered: bool, rule: str | float, alpha: float, k: int, own: _Measured, draws: int, seed: int
) -> dict[str, np.ndarray]:
    """The numbers (M, B, ...) of B draws of each null model, by the names of SIDES."""
    models = list(_models(ordered)) if draws else []
    found = {name: np.empty((len(models), draws, len(values))) for name, values in own.numbers.items()}
    for m, model in enumerate(models):
        for b in range(draws):
            random = np.random.default_rng(child_seed(seed, f"null {model}", b))
            # of a random projection, points have its dimensions; of principal components, each draw has its own
            gram = distances.gram if distances.whole is None else distances.whole
            dim = distances.kept if distances.kept and distances.whole is None else distances.dim
            squared = distances.alike(draw(model, gram, distances.steps, dim, random))
            for name, values in _measured(squared, ordered, rule, alpha, k).numbers.items():
                found[name][m, b] = values
    return found


def _halves(squared: np.ndarray, rule: str | float, alpha: float, k: int, count: int, seed: int) -> np.ndarray:
    """Eigenvalues (H, k) of random halves of the points, each with its own bandwidth: of those whose points are not all equal; none where a half has not so many, or fewer than 2 are left."""
    size = len(squared) // 2
    if size <= k + 1:
        return np.empty((0, k))
    found = []
    for h in range(count):
        random = np.random.default_rng(child_seed(seed, "half sample", h))
        rows = np.sort(random.choice(len(squared), size, replace=False))
        half = squared[np.ix_(rows, rows)]
        if half.any():
            found.append(eigen(half, kernels.bandwidth(half, rule).epsilon, alpha, k)[0])
    return np.array(found) if len(found) > 1 else np.empty((0, k))


def _variants(squared: np.ndarray, k: int) -> dict[str, np.ndarray]:
    """Eigenvalues for the geometry and for the dynamics, at a small and at a large bandwidth."""
    chosen = {rule: kernels.bandwidth(squared, rule).epsilon for rule in ("bgh", "median")}
    return {
        f"α = {alpha:g}, {rule}": eigen(squared, epsilon, alpha, k)[0]
        for alpha in (1.0, 0.5)
        for rule, epsilon in chosen.items()
    }


def protocol(options: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, str]:
    """What stands here in each slot of the published protocol, from the options of a run and those of the question (space, params, at, points, alpha, bandwidth, components, time)."""

    def of(*names: str) -> str:
        known = [f"{options[name]}" for name in names if options.get(name) is not None]
        return ", ".join(known) if known else "not known"

    ours = {
        "model": of("task"),
        "data": of("task"),
        "optimiser": of("optimizer"),
        "learning rate": of("lr", "schedule"),
        "batch": of("batch_size"),
        "steps": of("steps"),
        "burn-in": "none" if asked["at"] is None else f"steps {asked['at']} only",
        "thinning": f"every {of('record_every')} steps, at most {asked['points']:,} points",
        "per layer or whole vector": "whole vector" if asked["params"] == "*" else f"parameters {asked['params']}",
        "standardisation": "none",
        "kernel": "Gaussian, exp(-d²/4ε)",
        "bandwidth rule": str(asked["bandwidth"]),
        "alpha": f"{asked['alpha']:g}",
        "eigenvectors": str(asked["components"]),
        "diffusion time": f"{asked['time']:g}",
        "colouring": "by step and by loss",
    }
    return {slot: f"unfilled; here {ours[slot]}" for slot in SLOTS}
