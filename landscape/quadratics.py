"""Quadratic wells: the threshold dimension of a random subspace, in closed form, by projections on a cone, and by exact simulation without an optimiser.

Letters: D parameters, d subspace dimension, L levels, n draws, k codimension, R distance from the minimum, P probes, m Lanczos steps.

    L(w) = least + (w - w*)^T H (w - w*) / 2,   S(epsilon) = {w : L(w) <= epsilon}, an ellipsoid with semi-axes r_i = sqrt(2 (epsilon - least) / lambda_i)
    s            coordinates of w_0 - w* along the eigenvectors of H, R = |s|
    paper bound  d* <= D - sum r_i^2 / (R^2 + r_i^2), the same number as N_eff(H, 2 (epsilon - least) / R^2), N_eff(z) = sum lambda_i / (lambda_i + z)
    sharp form   gamma with sum lambda_i s_i^2 / (1 + gamma lambda_i) = 2 (epsilon - least); then d* = N_eff(H, 1 / gamma). A deterministic equivalent: right as D grows, off by
                 order 1 at finite D
    cone         C of directions in which w_0 sees S. A uniform subspace through w_0 meets S where it meets C, and d* = D - delta(C) = E|g - Pi_C g|^2 exactly, delta the statistical dimension
    simulation   the least loss on every one of D nested uniform subspaces, from one triangular factor. The mean of the smallest integer d that reaches the level is D - delta(C) + 1/2, exactly

Everything happens in the coordinates of the eigenvectors: a uniform subspace and a Gaussian vector look the same in all of them. Directions without curvature (lambda = 0) cost nothing and change nothing:
they are left out of the ellipsoid, and C holds all of them. Where w_0 lies inside S it sees S in every direction: d* = 0 and C is the whole space. A start just outside sees a half-space.

Sources: Larsen, Fort, Becker, Ganguli 2022, "How many degrees of freedom do we need to train deep networks" (the bound); MacKay 1992 (effective dimension); Derezinski, Liang, Liao, Mahoney 2020 (the
deterministic equivalent of a projection on a Gaussian sketch); Amelunxen, Lotz, McCoy, Tropp 2014 (statistical dimension, kinematic formula); Golub and Meurant 2010 (quadratic forms by Lanczos).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor

from landscape import cones
from landscape.errors import UsageError, unknown
from landscape.functionals import COUNTED, PROBES, Estimate, Function, Measure, measure
from landscape.operators import ROUNDING, SearchSpace, SymmetricOperator, lanczos
from landscape.seeds import child_seed, generator

Negative = Literal["error", "clip", "abs"]
NEGATIVE: tuple[Negative, ...] = get_args(Negative)
SPECTRA = ("flat", "power:P", "outliers:K", "exponential:S")

EPS = float(np.finfo(float).eps)
ASYMMETRY = 1e-5  # of the largest entry: what a Hessian summed in float32 has
FAR = 100.0  # of a logarithm: a ratio of e^100 is a limit
WIDEST = 1e140  # curvature, distance and loss, and one over each: their squares, and sums of these, are floats


def spectrum(name: str, dim: int) -> np.ndarray:
    """A named spectrum (D,), from the largest eigenvalue down: `flat` (ones), `power:P` (i^-P), `outliers:K` (K, ..., 2, 1 over a bulk of 1e-3), `exponential:S` (exp(-i / S)); i from 1.

    Raises UsageError for an unknown name, a number that is not positive and finite, or more outliers than dimensions.
    """
    kind, _, text = name.partition(":")
    place = np.arange(1, dim + 1, dtype=float)
    if name == "flat":
        return np.ones(dim)
    if kind not in ("power", "outliers", "exponential"):
        raise unknown("spectrum", name, SPECTRA)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise UsageError(f"the spectrum {kind!r} takes a positive number after a colon, as in {kind}:2; got {name!r}.")
    if kind == "power":
        return place**-number
    if kind == "exponential":
        return np.exp(-place / number)
    if number != int(number) or number > dim:
        raise UsageError(f"outliers are a whole number of at most {dim} dimensions; got {name!r}.")
    return np.where(place <= number, number + 1 - place, 1e-3)


@dataclass(frozen=True, eq=False)
class Quadratic:
    """A quadratic well and a start, in the coordinates of the eigenvectors of H."""

    values: np.ndarray  # (D,) eigenvalues, none negative
    start: np.ndarray  # (D,) s, coordinates of w_0 - w*
    least: float = 0.0  # the loss at the minimum
    negative: str = ""  # what was done with negative eigenvalues; empty where there were none

    def __post_init__(self) -> None:
        if self.values.ndim != 1 or not len(self.values) or self.start.shape != self.values.shape:
            raise UsageError(
                f"a quadratic takes D eigenvalues and D coordinates, D at least 1; got shapes {self.values.shape} and {self.start.shape}."
            )
        if not (np.isfinite(self.values).all() and np.isfinite(self.start).all() and math.isfinite(self.least)):
            raise UsageError(
                "a quadratic takes finite numbers; got NaN or infinity among its eigenvalues, its coordinates or its least loss."
            )
        top, far = float(np.abs(self.values).max()), float(np.abs(self.start).max())
        sizes = [size for size in (top, far, top * far * far) if top * far > 0 or size > 0]
        if not all(1 / WIDEST <= size <= WIDEST for size in sizes):
            raise UsageError(
                f"the largest eigenvalue of a well, the distance of its start and the loss there lie between {1 / WIDEST:.0e} and {WIDEST:.0e}; got an eigenvalue of {top:.4g} and a start with a coordinate of {far:.4g}. "
                "Give them in another unit: d* depends only on the ratio of eigenvalues, and of the level to the loss at the start."
            )
        if self.values.min() < 0:
            raise UsageError(
                f"eigenvalues of a well are not negative; got {self.values.min():.4g}. Use of_spectrum(..., negative='clip' or 'abs')."
            )

    @staticmethod
    def of_spectrum(values: Any, start: Any, least: float = 0.0, negative: Negative = "error") -> Quadratic:
        """The well of eigenvalues (D,) in any order, and a start (D,) along its eigenvectors.

        negative: what to do with negative eigenvalues: `error`, `clip` (set to 0: no curvature), `abs`. Those within rounding of 0 are always set to 0, and so are those so small that no level sees them (1e-280 of the largest).
        Raises UsageError for shapes that differ, numbers that are not finite, negative eigenvalues under the policy `error`.
        """
        values, start = np.array(values, dtype=float), np.array(start, dtype=float)
        if not np.isfinite(values).all():
            raise UsageError("a well takes finite eigenvalues; got NaN or infinity.")
        values[np.abs(values) < np.abs(values).max(initial=0.0) / WIDEST**2] = 0.0  # one over these is no float
        note = _checked(values, negative, values.size * EPS)
        return Quadratic(_positive(values, negative), start, float(least), note)

    @staticmethod
    def of_matrix(matrix: Any, displacement: Any, least: float = 0.0, negative: Negative = "error") -> Quadratic:
        """The well of a symmetric matrix H (D, D) and a displacement w_0 - w* (D,). Eigenvalues within rounding (D eps |H|) of 0 are set to 0.

        Raises UsageError as `of_spectrum`, and where H is not symmetric.
        """
        matrix, displacement = np.array(matrix, dtype=float), np.array(displacement, dtype=float)
        if matrix.ndim != 2 or displacement.shape != matrix.shape[:1] or matrix.shape[0] != matrix.shape[1]:
            raise UsageError(
                f"a well takes a matrix (D, D) and a displacement (D,); got {matrix.shape} and {displacement.shape}."
            )
        if not np.isfinite(matrix).all():
            raise UsageError("a well takes a matrix of finite numbers; got NaN or infinity.")
        apart, size = np.abs(matrix - matrix.T).max(initial=0.0), np.abs(matrix).max(initial=0.0)
        if apart > ASYMMETRY * size:
            raise UsageError(
                f"the matrix of a well is symmetric; this one differs from its transpose by {apart:.2g}, its largest entry being {size:.2g}."
            )
        values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
        values[np.abs(values) <= len(values) * EPS * np.abs(values).max(initial=0.0)] = 0.0
        return Quadratic.of_spectrum(values, vectors.T @ displacement, least, negative)

    @property
    def dim(self) -> int:
        """D."""
        return len(self.values)

    @property
    def radius(self) -> float:
        """R, the distance of the start from the minimum."""
        return float(np.linalg.norm(self.start))

    @property
    def initial(self) -> float:
        """The loss at the start."""
        return self.least + float(self.values @ self.start**2) / 2

    def require(self, level: float) -> None:
        """Raise UsageError unless the level is finite and above the least loss: below it there is no set, at it a point that no subspace short of the rank of H meets."""
        if not (math.isfinite(level) and level > self.least):
            raise UsageError(f"a level of a well is finite and above its least loss {self.least:.4g}; got {level:g}.")

    def inside(self, level: float) -> bool:
        """Whether the start lies in S(level), the boundary included."""
        self.require(level)
        return self.initial <= level

    # -- closed forms -------------------------------------------------------------------------------------------------

    def paper_bound(self, level: float) -> float:
        """D - sum r_i^2 / (R^2 + r_i^2), an upper bound of d* for large D, by the semi-axes r_i; 0 inside, which the formula itself does not know.

        It is loose where d* is far below D: its tips of the axes lie nearer to w_0's axis than the points at which w_0's rays touch the ellipsoid.
        """
        if self.inside(level):
            return 0.0
        axes = np.full(self.dim, math.inf)  # r_i^2
        with np.errstate(over="ignore"):  # of the least eigenvalues that there are, an axis is as good as infinite
            np.divide(2 * (level - self.least), self.values, out=axes, where=self.values > 0)
        return self.dim - float(np.sum(1 / (1 + self.radius**2 / axes)))

    def effective_dimension(self, shift: float) -> float:
        """N_eff(z) = sum lambda_i / (lambda_i + z) at a positive shift z."""
        if not 0 < shift < math.inf:
            raise UsageError(f"the shift of an effective dimension is positive and finite; got {shift:g}.")
        return float(np.sum(self.values / (self.values + shift)))

    def threshold(self, level: float) -> float:
        """d* by the sharp form for this start: a deterministic equivalent, off by order 1 either way; 0 inside."""
        return 0.0 if self.inside(level) else self._sharp(self.start**2, level)

    def threshold_isotropic(self, level: float) -> float:
        """d* by the sharp form for a start at the same radius in a uniform direction; 0 where the mean loss of such starts is at most the level."""
        return self._sharp(np.full(self.dim, self.radius**2 / self.dim), level)

    def angular_dimension(self, level: float) -> float:
        """The local angular dimension D - d* of S seen from the start, by the sharp form."""
        return self.dim - self.threshold(level)

    def least_on(self, dims: Any) -> np.ndarray:
        """The least loss on a uniform subspace of each of the dimensions (K,), which may be fractions: the deterministic equivalent least + sum lambda_i s_i^2 / (1 + gamma lambda_i) / 2 with N_eff(1 / gamma) = d."""
        found = np.full(np.shape(dims), self.least)
        for place, d in np.ndenumerate(np.asarray(dims, dtype=float)):
            if d <= 0:
                found[place] = self.initial
            else:
                found[place] += self._left(resolution(self.values, np.ones(self.dim), d))
        return found

    def _left(self, gamma: float) -> float:
        """The loss above the least at a gamma, which may be infinite."""
        if math.isinf(gamma):
            return 0.0
        return float(np.sum(self.values * self.start**2 / (1 + gamma * self.values))) / 2

    def _sharp(self, squares: np.ndarray, level: float) -> float:
        self.require(level)
        if self.values @ squares <= 2 * (level - self.least):
            return 0.0
        x = self._shrinkage(squares, level) * self.values
        return float(np.sum(x / (1 + x)))

    def _shrinkage(self, squares: np.ndarray, level: float) -> float:
        """gamma with sum lambda_i squares_i / (1 + gamma lambda_i) = 2 (level - least), for a start outside, to a relative rounding however near or far the start is."""
        curved = self.values > 0
        values, pull = self.values[curved], (self.values * squares)[curved]
        above = 2 * (level - self.least)
        excess = max(float(pull.sum()) - above, EPS * above)  # a start outside by less than rounding
        # 1 / (1 + gamma lambda) is at least that at the largest lambda, and below 1 / (gamma lambda)
        low, high = math.log(excess / above / values.max()), math.log(float(squares[curved].sum()) / above)

        def over(gamma: float) -> float:
            # above * (start's loss - loss at gamma) - excess * (loss at gamma), without a difference of near numbers at either end
            x = gamma * values
            return float(np.sum(pull * (above * x - excess) / (1 + x)))

        return _log_root(over, low, high)

    # -- the cone -----------------------------------------------------------------------------------------------------

    def project(self, vectors: Any, level: float) -> np.ndarray:
        """The nearest points (n, D) to vectors g (n, D) in the closed cone of directions that lead from the start into S(level), all in the coordinates of the eigenvectors. Inside, g itself.

        C = {u : h.u <= 0, (h.u)^2 >= c u.Hu}, h = H s, c = 2 (L(w_0) - level). On its boundary the nearest point is x = v - t s with v in the ellipsoid scaled by t > 0:

            v = (1 + mu H)^-1 (g + t s),   v.Hv = 2 (level - least) t^2,   s.Hv = 2 (level - least) t

        The last gives t at each mu, with a pole at mu = gamma, the sharp form's; one sign there tells on which side of the pole the one remaining root lies, in log |mu / gamma - 1|. O(D) in time and memory.
        """
        g: np.ndarray = np.array(vectors, dtype=float)
        if g.ndim != 2 or g.shape[1] != self.dim:
            raise UsageError(f"a projection takes vectors (n, {self.dim}); got {g.shape}.")
        if self.inside(level):
            return g
        curved = slice(None) if self.values.min() > 0 else self.values > 0
        values, start = self.values[curved], self.start[curved]
        above, gamma = 2 * (level - self.least), self._shrinkage(self.start**2, level)
        pull = values * start  # h
        shrunk = pull / (1 + gamma * values)
        excess = max(float(pull @ start) - above, EPS * above)
        for row in range(len(g)):
            g[row, curved] = _on_cone(g[row, curved], values, start, pull, shrunk, above, excess, gamma)
        return g

    def polar(self, level: float, *, draws: int = 25, seed: int = 0) -> tuple[float, float, str]:
        """d* = D - delta(C): its value, its standard error, and how it was found: `exact` inside, where it is 0, else `Monte Carlo`, without bias, as `cones.statistical_dimension` does it.

        draws: of a ball 25 give an error of 0.4 sqrt(d* (D - d*) / D), sqrt(2) times what as many simulated subspaces leave, at a thousandth of the time (D = 2,000; benchmarks/widths.py b).
        """
        if self.inside(level):
            return 0.0, 0.0, "exact"
        stream = child_seed(seed, "cone of a well")
        found = cones.statistical_dimension(lambda g: self.project(g, level), self.dim, draws=draws, seed=stream)
        return self.dim - found.value, found.error, "Monte Carlo"

    # -- simulation ---------------------------------------------------------------------------------------------------

    def simulate(self, draws: int = 40, seed: int = 0, *, isotropic: bool = False) -> np.ndarray:
        """The least loss (n, D + 1) on nested uniform subspaces through the start, column d for dimension d; no optimiser, exact to rounding.

        With G (D, D) Gaussian, B = H^(1/2) G = Q T and b = H^(1/2) s, the first d columns leave the residual L_min(d) - least = sum_{i > d} (Q^T b)_i^2 / 2. T is the Cholesky factor of G^T H G, found
        from B itself: the product would square the condition number. From the rank of H on the least loss is met exactly.
        isotropic: a start in a fresh uniform direction, at this radius, for each draw.
        """
        curved = self.values > 0
        rank = int(curved.sum())
        found = self._found(draws, self.dim + 1)
        for draw in range(draws):
            random = np.random.default_rng(child_seed(seed, "subspaces of a well", draw))
            start = self._begun(random, isotropic)
            squares = _components(np.sqrt(self.values[curved]), start[curved], rank, random)
            found[draw, :rank] += np.cumsum(squares[::-1])[::-1] / 2
            found[draw, 0] = self.least + float(self.values @ start**2) / 2  # as `initial`, to the last digit
        return found

    def simulate_dual(self, most: int, draws: int = 40, seed: int = 0, *, isotropic: bool = False) -> np.ndarray:
        """The least loss (n, most + 1) on nested uniform subspaces of small codimension k = 0 ... most, column k, from their complements N (D, k): b^T (N^T H^-1 N)^-1 b / 2, b = N^T s, in O(D k^2).

        Subspaces short of the whole space by no more than H has directions without curvature meet the minimum.
        """
        if not 0 <= most <= self.dim:
            raise UsageError(f"codimensions lie in 0..{self.dim}; got {most}.")
        curved = self.values > 0
        flat = self.dim - int(curved.sum())
        found = self._found(draws, most + 1)
        for draw in range(draws):
            random = np.random.default_rng(child_seed(seed, "complements of a well", draw))
            start = self._begun(random, isotropic)
            if most > flat:
                # the same law in the curved coordinates: each direction without curvature takes one constraint away
                squares = _components(np.sqrt(self.values[curved]), start[curved], most - flat, random, dual=True)
                found[draw, flat + 1 :] += np.cumsum(squares) / 2
        return found

    def thresholds(
        self, levels: Sequence[float], draws: int = 40, seed: int = 0, *, isotropic: bool = False
    ) -> np.ndarray:
        """The smallest dimension (n, L) whose subspace meets S(level), for each draw of `simulate` and each level; 0 for a start inside."""
        for level in levels:
            self.require(level)
        least = self.simulate(draws, seed, isotropic=isotropic)
        return np.stack([(least <= level).argmax(axis=1) for level in levels], axis=1)

    def success(
        self, level: float, dims: Any, draws: int = 40, seed: int = 0, *, isotropic: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """P_s: the share (K,) of draws whose subspace of each dimension (K,) meets S(level), and their number (K,)."""
        hits = (self.thresholds([level], draws, seed, isotropic=isotropic) <= np.asarray(dims)).sum(axis=0)
        return hits / draws, hits

    def _found(self, draws: int, columns: int) -> np.ndarray:
        if draws < 1:
            raise UsageError(f"a simulation takes at least 1 draw; got {draws}.")
        return np.full((draws, columns), self.least)

    def _begun(self, random: np.random.Generator, isotropic: bool) -> np.ndarray:
        if not isotropic:
            return self.start
        direction = random.standard_normal(self.dim)
        return self.radius / np.linalg.norm(direction) * direction


def _checked(values: np.ndarray, negative: Negative, rounding: float, *, whole: bool = True) -> str:
    """A note of what the policy does with negative values, empty where there are none below -rounding times the largest in size; UsageError where the policy is `error`, or none. whole: the values are all of them, to be counted."""
    if negative not in NEGATIVE:
        raise unknown("policy for negative curvature", negative, NEGATIVE)
    least = values.min(initial=0.0)
    below = np.count_nonzero(values < -rounding * np.abs(values).max(initial=0.0))
    if not below:
        return ""
    count = (
        f"{below} of {values.size} values of the curvature are" if whole else "the curvature that was seen is in part"
    )
    found = f"{count} negative, {least:.4g} at the least"
    if negative == "error":
        raise UsageError(f"{found}: a well has none. Say what to do with them: negative 'clip' (set to 0) or 'abs'.")
    return f"{found}: {'set to 0' if negative == 'clip' else 'taken by their size'}"


def _positive(values: np.ndarray, negative: Negative) -> np.ndarray:
    found: np.ndarray = np.abs(values) if negative == "abs" else np.maximum(values, 0.0)
    return found


def resolution(values: np.ndarray, masses: np.ndarray, d: float) -> float:
    """gamma with sum masses_i x_i / (1 + x_i) = d, x = gamma values; infinite where the curved directions are no more than d."""
    curved = values > 0
    values, masses = values[curved], masses[curved]
    rank = float(masses.sum())
    if not d < rank * (1 - len(values) * EPS):
        return math.inf
    # the sum lies between rank x / (1 + x) at the least curvature and, by concavity, at the mean one
    odds = math.log(d / (rank - d))
    low, high = odds - math.log(float(masses @ values) / rank), odds - math.log(float(values.min()))

    def over(gamma: float) -> float:
        x = gamma * values
        return float(np.sum(masses * x / (1 + x))) - d

    return _log_root(over, low, high)


def _log_root(function: Callable[[float], float], low: float, high: float) -> float:
    """The root of an increasing function of a positive number, known to lie between exp(low) and exp(high), to rounding."""
    slack = 1e-6 * (1 + abs(low) + abs(high))  # the two meet where all eigenvalues are equal
    return math.exp(brentq(lambda x: function(math.exp(x)), low - slack, high + slack, xtol=4 * EPS, rtol=4 * EPS))


def _on_cone(
    g: np.ndarray,  # (D,)
    values: np.ndarray,  # (D,) all positive
    start: np.ndarray,  # (D,)
    pull: np.ndarray,  # (D,) h = H s
    shrunk: np.ndarray,  # (D,) (1 + gamma H)^-1 h
    above: float,  # 2 (level - least)
    excess: float,  # c = s.Hs - above
    gamma: float,  # s.H (1 + gamma H)^-1 s = above
) -> np.ndarray:
    """See `Quadratic.project`."""
    along, toward = float(pull @ g), float(start @ g)
    squares = g * g
    with np.errstate(over="ignore"):
        if along <= 0 and along**2 >= excess * float(values @ squares):
            return g
        if toward >= 0 and toward**2 >= above * float(np.sum(squares / values)):
            return np.zeros_like(g)  # g.(w - w_0) <= 0 for all w in S
    tilt = float(shrunk @ g)
    side = 1 if tilt > 0 else -1  # of the pole
    scale = 1e-3 * EPS * float(np.linalg.norm(shrunk) * np.linalg.norm(g))
    # at 0 the root sits on the pole; a thousandth of rounding beside it nothing changes
    tilt = side * max(abs(tilt), scale)
    ours, its = values * shrunk * g, values * shrunk * start

    def at(place: float) -> tuple[np.ndarray, float, float]:
        """(1 + mu H)^-1, mu and t at |mu / gamma - 1|, or gamma / mu - 1 below the pole, of exp(place)."""
        ratio = math.exp(place)
        mu = gamma * (1 + ratio) if side > 0 else gamma / (1 + ratio)
        offset = gamma * ratio if side > 0 else -gamma * ratio / (1 + ratio)  # mu - gamma
        resolvent = 1 / (1 + mu * values)
        # t (2 (level - least) - s.H (1 + mu H)^-1 s) = s.H (1 + mu H)^-1 g, both sides as differences from mu = gamma
        return resolvent, mu, (tilt / offset - float(ours @ resolvent)) / float(its @ resolvent)

    near = excess < above

    def out(place: float) -> float:
        """Positive where x lies in the cone's inside, negative outside of it, between -1 and 1."""
        resolvent, mu, t = at(place)
        # above t^2 - v.Hv and excess t^2 - x.Hx are the same number; the one with the smaller terms keeps its digits
        resolvent *= g - mu * t * pull if near else g + t * start
        resolvent *= resolvent
        reach, bent = excess if near else above, float(values @ resolvent)
        return (reach * t * abs(t) - bent) / (reach * t * t + bent)

    if out(0.0) > 0:
        low, high = 0.0, 2.0
        while out(high) > 0 and high < FAR:
            low, high = high, 2 * high
    else:
        low, high = -2.0, 0.0
        while out(low) <= 0 and low > -FAR:
            low, high = 2 * low, low
    if abs(low) >= FAR or abs(high) >= FAR:  # g is on the boundary to rounding
        place = low if abs(low) >= FAR else high
    else:
        place = brentq(out, low, high, xtol=1e-13, rtol=4 * EPS)
    resolvent, mu, t = at(place)
    return resolvent * (g - mu * t * pull)


def _components(
    roots: np.ndarray, start: np.ndarray, count: int, random: np.random.Generator, dual: bool = False
) -> np.ndarray:
    """Squares (count,) of the components of b = H^(1/2) s along the orthonormalised columns of H^(1/2) G, or of H^(-1/2) G for the dual, G Gaussian; H by the roots of its eigenvalues."""
    block = np.empty((len(roots), count + 1))
    block[:, :count] = random.standard_normal((len(roots), count))
    block[:, :count] *= (1 / roots if dual else roots)[:, None]
    block[:, count] = roots * start
    triangle = np.asarray(np.linalg.qr(block, mode="r"))
    squares: np.ndarray = triangle[:count, count] ** 2  # its last column is Q^T b
    return squares


# -- matrix-free ------------------------------------------------------------------------------------------------------

# of Lanczos, from each probe and from the displacement. From the initialisation of a trained 64-16-10 network (1,210 parameters) they leave an error of 0.2 in a d* of 13, and 60 leave 0.7
STEPS = 100


@dataclass(frozen=True, eq=False)
class Sketch:
    """A quadratic well whose H is known by products: its spectral measure, and the small wells that the Lanczos process from the displacement sees.

    A process of m steps replaces H, seen from s alone, by m nodes and weights: a well of m dimensions with the same s.f(H) s, exact for f of degree up to 2 m - 1 (Gauss). The second well has half the
    steps; what they differ by stands in each error, beside that of the spectral measure over its probes, added in squares.
    """

    density: Measure  # of H, as it is
    fine: Quadratic  # (m,) nodes; their squared starts are R^2 times the weights
    coarse: Quadratic  # of half the steps; the same where the process ended by itself
    negative: Negative  # what is done with negative curvature, in the density and along the displacement
    negative_along: float  # share of s.|H| s that negative nodes hold
    products: int  # all of them

    @property
    def dim(self) -> int:
        """D."""
        return self.density.dim

    @property
    def radius(self) -> float:
        """R, the distance of the start from the minimum."""
        return self.fine.radius

    @property
    def initial(self) -> float:
        """The loss that the well, after the policy for negative curvature, has at the start."""
        return self.fine.initial

    @property
    def negative_share(self) -> float:
        """Share of the mean |eigenvalue| that negative ones hold; 0 in a flat landscape."""
        whole = self.density.average(np.abs).value
        return self.density.average(lambda x: np.maximum(-x, 0.0)).value / whole if whole > 0 else 0.0

    def inside(self, level: float) -> bool:
        """See `Quadratic.inside`."""
        return self.fine.inside(level)

    def paper_bound(self, level: float) -> Estimate:
        """See `Quadratic.paper_bound`; by the effective dimension."""
        if self.inside(level):
            return Estimate(0.0, 0.0, self.products)
        return self._dims(self.radius**2 / 2 / (level - self.fine.least))

    def threshold(self, level: float) -> Estimate:
        """See `Quadratic.threshold`."""
        if self.inside(level):
            return Estimate(0.0, 0.0, self.products)
        found, other = (
            self._dims(0.0 if well.inside(level) else well._shrinkage(well.start**2, level))
            for well in (self.fine, self.coarse)
        )
        return Estimate(found.value, math.hypot(found.error, found.value - other.value), self.products)

    def threshold_isotropic(self, level: float) -> Estimate:
        """See `Quadratic.threshold_isotropic`."""
        self.fine.require(level)
        points, masses = self.density.all()
        mean = Quadratic(_positive(points, self.negative), self.radius * np.sqrt(masses), self.fine.least)
        if mean.inside(level):
            return Estimate(0.0, 0.0, self.products)
        gamma = mean._shrinkage(mean.start**2, level)
        # a = average of lambda / (1 + gamma lambda) is known, gamma is not: d = D gamma a errs by D a (da / |da/dgamma|)
        a = self._average(lambda x: x / (1 + gamma * x))
        slope = self._average(lambda x: (x / (1 + gamma * x)) ** 2)
        return Estimate(self.dim * gamma * a.value, self.dim * a.value * a.error / slope.value, self.products)

    def least_on(self, dims: Any) -> list[Estimate]:
        """See `Quadratic.least_on`; one estimate for each of the dimensions (K,), or of the one."""
        return [self._least(float(d)) for d in np.atleast_1d(dims)]

    def _least(self, d: float) -> Estimate:
        points, masses = self.density.all()
        gamma = 0.0 if d <= 0 else resolution(_positive(points, self.negative), self.dim * masses, d)
        left, other = self.fine._left(gamma), self.coarse._left(gamma)
        error = abs(left - other)
        if 0 < gamma < math.inf:
            # through gamma, whose own error is that of N_eff over its slope
            slope = self.dim * self._average(lambda x: x / (1 + gamma * x) ** 2).value
            fall = float(np.sum((self.fine.values * self.fine.start / (1 + gamma * self.fine.values)) ** 2)) / 2
            error = math.hypot(error, fall * self._dims(gamma).error / slope)
        return Estimate(self.fine.least + left, error, self.products)

    def _dims(self, gamma: float) -> Estimate:
        """N_eff(1 / gamma)."""
        found = self._average(lambda x: gamma * x / (1 + gamma * x))
        return Estimate(self.dim * found.value, self.dim * found.error, self.products)

    def _average(self, function: Function) -> Estimate:
        return self.density.average(lambda x: function(_positive(x, self.negative)))


def sketch(
    operator: SymmetricOperator,
    displacement: Tensor,
    *,
    least: float = 0.0,
    negative: Negative = "clip",
    counted: int = COUNTED,
    probes: int = PROBES,
    steps: int = STEPS,
    seed: int = 0,
) -> Sketch:
    """The well of an operator H and a displacement w_0 - w* (D,), by `counted` + `probes` x `steps` products for the spectral measure and `steps` for the process from the displacement.

    negative: `clip`, since a network's Hessian at a solution has a little negative curvature, and a direction without curvature is the nearest that a well has to it; `abs`, `error` as in `Quadratic`.
    counted: see `functionals.measure`; 0 for spectra without outliers, or where a basis of so many vectors does not fit.
    Raises UsageError for a displacement of another shape or not finite, options out of range, negative curvature under the policy `error`; LandscapeError when a product is not finite.
    """
    if displacement.shape != (operator.dim,) or not bool(torch.isfinite(displacement).all()):
        raise UsageError(
            f"a displacement is a finite vector ({operator.dim},); got shape {tuple(displacement.shape)}{'' if displacement.shape != (operator.dim,) else ' with NaN or infinity'}."
        )
    if not math.isfinite(least):
        raise UsageError(f"the least loss of a well is finite; got {least}.")
    space = SearchSpace(operator, 1, generator=generator(seed, "sketch")) if counted else None
    density = measure(operator, space=space, counted=counted, probes=probes, steps=steps, seed=seed)
    products = density.products + (0 if space is None else space.products)
    radius = float(torch.linalg.vector_norm(displacement, dtype=torch.float64))
    rules = [(np.zeros(1), np.ones(1))] * 2
    if radius > 0:
        half = (steps + 1) // 2
        for state in lanczos(operator, displacement / radius, steps):
            products += 1
            if len(state.alphas) <= half:
                rules[1] = state.quadrature()
        rules[0] = state.quadrature()
        if state.betas[-1] == 0:
            rules[1] = rules[0]
    nodes, weights = rules[0]
    seen = np.concatenate([density.all()[0], nodes])
    _checked(seen, negative, ROUNDING * torch.finfo(operator.dtype).eps, whole=False)
    fine, coarse = (Quadratic(_positive(points, negative), radius * np.sqrt(masses), least) for points, masses in rules)
    bent = float(weights @ np.abs(nodes))
    along = float(weights @ np.maximum(-nodes, 0.0)) / bent if bent > 0 else 0.0
    return Sketch(density, fine, coarse, negative, along, products)
