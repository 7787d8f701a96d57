"""What is proved, in finite dimension, of the chance that a random subspace misses or hits a set: bounds from its Gaussian width or from its statistical dimension.

Letters: D ambient dimension, d subspace, k = D - d its codimension, K tried dimensions. S: a closed set of unit vectors, the directions in which the sublevel set is seen from w_0; C: a closed convex cone.

    miss   Y and S have no point in common; Y a uniform d-dimensional linear subspace
    hit    they have

    Gordon           P(miss) >= 1 - 3.5 exp(-(k / sqrt(k + 1) - w)^2 / 18)   where k > w(S)^2
    McCoy, Tropp     P(other side) <= exp(-l^2 / 4 / (o + l / 3))            at distance l of d from d*, on the proved side of it
    Amelunxen et al. P(other side) <= 4 exp(-l^2 / 8 / (o + l))              likewise
    d* = D - delta(C), o = min(delta(C), D - delta(C))

The last two are tails of the law of the intrinsic volumes V of C. They become bounds on a subspace by interlacing, P(V >= k + 1) <= P(hit) <= P(V >= k): a miss from d* - d = l and a hit from d - d* = l.

Which sets: a miss of a larger set is a miss of S, so a miss is proved for any closed S from the width, or from the statistical dimension of any closed convex cone that contains it; an upper bound of either
serves. A hit is proved only where S itself is the unit vectors of the convex cone C (S is spherically convex); of another S only its spherically convex hull is hit. A lower bound of delta serves there.

Sources: Gordon 1988, "On Milman's inequality and random subspaces which escape through a mesh", in the form quoted by Larsen, Fort, Becker, Ganguli 2022; Amelunxen, Lotz, McCoy, Tropp 2014, "Living on the edge",
theorems I and 6.1 (concentration of intrinsic volumes), and the interlacing of half-tails; McCoy, Tropp 2014, "From Steiner formulas for cones to concentration of intrinsic volumes" (the Bernstein tails); Chandrasekaran, Recht, Parrilo, Willsky 2012 (width).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from landscape.errors import UsageError, unknown

Side = Literal["miss", "hit"]
SIDES: tuple[Side, ...] = ("miss", "hit")

VALID: dict[Side, str] = {
    "miss": "any closed set inside a closed convex cone of at most this statistical dimension, such as its own convex cone.",
    "hit": "spherically convex sets only: the directions of a closed convex cone of at least this statistical dimension; of another set only its spherically convex hull.",
}
VALID_WIDTH = "any closed set of directions whose Gaussian width is at most this, convex or not."


@dataclass(frozen=True, eq=False)
class Bound:
    """A lower bound of the probability of a miss, or of a hit, at each dimension."""

    theorem: str
    proves: Side
    valid: str  # the sets it is valid for, one sentence
    ambient: int  # D
    dims: np.ndarray  # (K,)
    probability: np.ndarray  # (K,) at least this probable; 0 where nothing is proved

    @property
    def vacuous(self) -> np.ndarray:
        """Where nothing is proved (K,)."""
        return self.probability <= 0

    def reaches(self, probability: float) -> int | None:
        """The largest of `dims` with a miss certified at this probability, or the smallest with a hit; only of 1..D-1, where that says something, and None where there is none."""
        if not 0 < probability < 1:
            raise UsageError(f"the probability of a certificate lies strictly between 0 and 1; got {probability}.")
        sure = self.dims[(self.probability >= probability) & (self.dims >= 1) & (self.dims < self.ambient)]
        if not len(sure):
            return None
        return int(sure.max() if self.proves == "miss" else sure.min())


def gordon(ambient: int, dims: Any, width: float) -> Bound:
    """Misses by Gordon's escape theorem, for a set of unit vectors of Gaussian width w; vacuous for k <= w^2, and well beyond.

    Something is proved where k / sqrt(k + 1) - w exceeds sqrt(18 log 3.5) = 4.749, and 0.9 where it exceeds 8.000: some 16 w + 64 dimensions more than w^2.
    Source: Gordon 1988, with the constants that Larsen et al. 2022 use.
    Raises UsageError for a width that is negative or not finite.
    """
    dims = _dims(ambient, dims)
    if not 0 <= width < math.inf:
        raise UsageError(f"the width of a set of unit vectors is finite and at least 0; got {width}.")
    k = ambient - dims.astype(float)
    excess = k / np.sqrt(k + 1) - width
    # the theorem's condition; without it the square of a negative excess would look like a proof
    found = np.where(k > width**2, 1 - 3.5 * np.exp(-np.square(excess) / 18), 0.0)
    return Bound("Gordon", "miss", VALID_WIDTH, ambient, dims, np.maximum(found, 0.0))


def mccoy_tropp(ambient: int, dims: Any, statistical_dimension: float, proves: Side) -> Bound:
    """Misses below d* = D - delta, or hits above it, by the concentration of intrinsic volumes; the sharpest of the three.

    Source: McCoy, Tropp 2014, the concentration inequality in Bernstein's form.
    Raises UsageError for a statistical dimension outside 0..D, or a side that is not `miss` or `hit`.
    """
    dims, beyond, least = _beyond(ambient, dims, statistical_dimension, proves)
    other = np.exp(-_over(beyond**2 / 4, least + beyond / 3))
    return Bound("McCoy-Tropp", proves, VALID[proves], ambient, dims, np.maximum(1 - other, 0.0))


def amelunxen(ambient: int, dims: Any, statistical_dimension: float, proves: Side) -> Bound:
    """The same by the first theorem of its kind, with larger constants; it implies "within sqrt(8 log(4 / eta)) sqrt(D) of d*, but for eta".

    Source: Amelunxen, Lotz, McCoy, Tropp 2014, theorem 6.1 (tails 4 exp(-l^2 / 8 / (o + l))).
    Raises UsageError as `mccoy_tropp`.
    """
    dims, beyond, least = _beyond(ambient, dims, statistical_dimension, proves)
    other = 4 * np.exp(-_over(beyond**2 / 8, least + beyond))
    return Bound("Amelunxen et al.", proves, VALID[proves], ambient, dims, np.maximum(1 - other, 0.0))


def certificates(ambient: int, dims: Any, *, statistical_dimension: float, width: float | None = None) -> list[Bound]:
    """All bounds on both sides: Gordon, McCoy-Tropp (miss, hit), Amelunxen et al. (miss, hit).

    width: of the set's directions; without one, the square root of the statistical dimension, which it cannot exceed.
    Raises UsageError as each of them.
    """
    conic = [
        theorem(ambient, dims, statistical_dimension, side) for theorem in (mccoy_tropp, amelunxen) for side in SIDES
    ]
    return [gordon(ambient, dims, math.sqrt(statistical_dimension) if width is None else width), *conic]


def _beyond(ambient: int, dims: Any, delta: float, proves: Side) -> tuple[np.ndarray, np.ndarray, float]:
    """The dimensions; how far each lies on the proved side of d*, 0 on the other, where the bounds are vacuous; and min(delta, D - delta)."""
    dims = _dims(ambient, dims)
    if proves not in SIDES:
        raise unknown("side", proves, SIDES)
    if not 0 <= delta <= ambient:
        raise UsageError(
            f"the statistical dimension of a cone in {ambient} dimensions lies in 0..{ambient}; got {delta}. An estimate beyond the end by its error stands for that end."
        )
    apart = dims - (ambient - delta)
    return dims, np.maximum(apart if proves == "hit" else -apart, 0.0), min(delta, ambient - delta)


def _over(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """top / bottom, 0 where both are 0: at d* of a cone that is {0} or the whole space."""
    ratio: np.ndarray = np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)
    return ratio


def _dims(ambient: int, dims: Any) -> np.ndarray:
    if ambient < 1:
        raise UsageError(f"a dimension is a whole number of 1 or more; got {ambient}.")
    found = np.atleast_1d(np.asarray(dims))
    if found.ndim != 1 or found.dtype.kind not in "iu" or ((found < 0) | (found > ambient)).any():
        raise UsageError(f"dimensions of subspaces are whole numbers in 0..{ambient}, one array of them; got {dims}.")
    return found
