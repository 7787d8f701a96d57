"""How many dimensions the set has on which points lie: several estimators, each with its known bias in words.

Letters: T points, d their intrinsic dimension, r distances.

    bgh            2 max d log S / d log eps of the kernel sum S: Coifman, Shkolnisky, Sigworth, Singer 2008; Berry, Giannakis, Harlim 2015
    correlation    slope of log C(r), C the share of pairs closer than r: Grassberger and Procaccia 1983
    twonn          of the ratios of the second neighbour's distance to the first's, Pareto with exponent d: Facco, d'Errico, Rodriguez, Laio 2017
    mle            of the ratios of the k-th neighbour's distance to the nearer ones': Levina and Bickel 2004, averaged over points as MacKay and Ghahramani 2005 say
    participation  (tr G)^2 / tr G^2 of the centred inner products: of a Gaussian of equal variances in d directions it is d; it sees variances and no manifold

On a path the nearest points are near because they are near in time. `exclude` leaves out pairs closer than so many recorded points (Theiler 1986), and `theiler` gives the usual number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from landscape import kernels
from landscape.errors import UsageError, unknown

REPEATED = 1e-13  # of the largest squared distance: points closer than this are one; float64 Gram matrices leave about 1e-15 between equal points
LEAST = 10  # distinct points: of fewer nothing is estimated
DISCARDED = 0.1  # of the ratios of TwoNN, the largest: there the density is not constant any more (Facco et al.); they count as censored
NEIGHBOURS = (10, 20)  # k of the MLE, first and last: Levina and Bickel's
SHARED = 1.3  # points share neighbours: estimates from neighbours spread so much more than independent ratios do (1.1 to 1.5 in 150 draws of 300 points, d from 1 to 10)
SHARES = (
    1e-3,
    2e-2,
)  # C(r) at the ends of the range of the correlation slope: below it lie few pairs, above it the set's curvature and edge
RADII = 30  # in that range, for the slope


@dataclass(frozen=True)
class Dimension:
    """One estimate."""

    value: float  # NaN where too few distinct points are left
    error: float  # standard error for independent points; NaN where none is known
    words: str  # the known bias


def theiler(squared: np.ndarray) -> int:
    """How many recorded points apart two of a path are unrelated: the first lag whose mean squared distance reaches 1 - 1/e of the mean over all pairs.

    Of a stationary path that is the time after which the correlation has fallen to 1/e; of a walk, which has no such time, about a fifth of the path.
    """
    count = len(squared)
    level = (1 - 1 / math.e) * squared.sum() / max(1, count * (count - 1))
    for lag in range(1, count):
        if squared.diagonal(lag).mean() >= level:
            return lag
    return count


def dimensions(
    squared: np.ndarray, *, curve: kernels.Curve | None = None, names: Iterable[str] | None = None, exclude: int = 0
) -> dict[str, Dimension]:
    """Estimates by name, from squared distances (T, T); all of ESTIMATORS, or those of `names`.

    `curve` is the kernel sum's where it is known; `exclude` leaves out pairs of points closer than so many in the order given (of a path: `theiler`). Points that repeat an earlier one are left out and counted.
    """
    asked = tuple(ESTIMATORS if names is None else names)
    for name in asked:
        if name not in ESTIMATORS:
            raise unknown("estimator of a dimension", name, ESTIMATORS)
    if squared.ndim != 2 or squared.shape[0] != squared.shape[1]:
        raise ValueError(f"squared distances are a square matrix; got shape {squared.shape}")
    if not np.isfinite(squared).all():
        raise UsageError("distances hold NaN or infinity: leave those points out first.")
    repeated = np.tril(squared <= REPEATED * squared.max(initial=0.0), -1).any(1)
    order = np.flatnonzero(~repeated)
    view = _View(squared[np.ix_(order, order)], order, exclude, curve)
    left_out = f"; {repeated.sum()} repeated points left out" if repeated.any() else ""
    answer = {}
    for name in asked:
        estimate, words = ESTIMATORS[name]
        value, error = estimate(view) if len(order) >= LEAST else (math.nan, math.nan)
        answer[name] = Dimension(value, error, words + left_out)
    return answer


@dataclass(frozen=True, eq=False)
class _View:
    """Distinct points by their squared distances (n, n), with their places in the order given."""

    squared: np.ndarray
    order: np.ndarray  # (n,)
    exclude: int
    curve: kernels.Curve | None

    def related(self) -> np.ndarray:
        """(n, n) pairs left out: each point with itself, and those close in the order."""
        close: np.ndarray = np.abs(self.order[:, None] - self.order) < max(1, self.exclude)
        return close

    def nearest(self, k: int) -> np.ndarray:
        """(m, k) log distances to the k nearest, ascending, of the points that have so many."""
        squared = np.where(self.related(), np.inf, self.squared)
        near = np.sort(np.partition(squared, k - 1, axis=1)[:, :k], axis=1)
        logs: np.ndarray = np.log(near[np.isfinite(near[:, -1])]) / 2
        return logs


def _bgh(view: _View) -> tuple[float, float]:
    return (view.curve or kernels.curve(view.squared)).dimension, math.nan


def _correlation(view: _View) -> tuple[float, float]:
    rows, columns = np.nonzero(np.triu(~view.related()))
    squared = view.squared[rows, columns]
    first, last = (int(share * len(squared)) for share in SHARES)
    first = max(first, LEAST)
    if last - first < LEAST:
        return math.nan, math.nan
    nearest = np.argpartition(squared, last)[:last]
    nearest = nearest[np.argsort(squared[nearest])]
    counts = np.unique(np.geomspace(first, last, RADII).astype(int))  # even on the axis of log C
    radii = np.log(squared[nearest[counts - 1]]) / 2
    radii -= radii.mean()
    weights = radii / (radii @ radii)  # slope = weights . log C
    slope = float(weights @ np.log(counts))
    # to first order the slope sums what each pair adds. Pairs add independent noise, and those of one point have that point's share in common (Hoeffding 1948)
    steps = np.searchsorted(counts, np.arange(1, last + 1))  # of each pair, the first radius that counts it
    tails = np.cumsum((weights / counts)[::-1])[::-1][steps]
    adds = np.bincount(rows[nearest], tails, len(view.order)) + np.bincount(columns[nearest], tails, len(view.order))
    alone = float(tails @ tails)
    return slope, math.sqrt(max(alone, len(adds) * float(adds.var(ddof=1)) - alone))


def _twonn(view: _View) -> tuple[float, float]:
    logs = view.nearest(2)
    ratios = np.sort(logs[:, 1] - logs[:, 0])
    kept = math.floor((1 - DISCARDED) * len(ratios))
    total = ratios[:kept].sum() + (len(ratios) - kept) * ratios[kept - 1] if kept > 2 else 0.0
    if total <= 0:
        return math.nan, math.nan
    # log ratios are exponential with rate d; of the first `kept` order statistics (kept - 1) / total is unbiased
    value = (kept - 1) / float(total)
    return value, SHARED * value / math.sqrt(len(ratios))


def _mle(view: _View) -> tuple[float, float]:
    first, last = (min(k, (len(view.order) - 1) // 2) for k in NEIGHBOURS)
    logs = view.nearest(last)
    if len(logs) < 2:
        return math.nan, math.nan
    ks = np.arange(max(2, first), last + 1)
    inverse = np.stack([(logs[:, k - 1 : k] - logs[:, : k - 1]).mean(1) for k in ks])  # (ks, m): 1 / d at each point
    values = 1 / inverse.mean(1)
    value = float(values.mean())
    spread = inverse.mean(0)
    return value, SHARED * value * float(spread.std(ddof=1) / spread.mean()) / math.sqrt(len(logs))


def _participation(view: _View) -> tuple[float, float]:
    n = len(view.squared)
    gram = view.squared - view.squared.mean(0)
    gram = -(gram - gram.mean(1, keepdims=True)) / 2
    trace, square = np.trace(gram), np.square(gram).sum()
    # without point i: its row of the centred Gram matrix leaves trace and square by rank-one algebra
    own, with_others = gram.diagonal() * n / (n - 1), np.square(gram).sum(0) * n / (n - 1)
    without = (trace - own) ** 2 / (square - 2 * with_others + own**2)
    return float(trace**2 / square), float(math.sqrt((n - 1) / n * np.square(without - without.mean()).sum()))


# name -> how, and the known bias: means over 30 draws of 1,000 independent points (of the sphere S^9 in R^10, and so on), and of walks of 1,000 points in R^1000
ESTIMATORS: dict[str, tuple[Callable[[_View], tuple[float, float]], str]] = {
    "bgh": (
        _bgh,
        "a lower bound above about 4: a circle gives 1.2, S^2 2.0, S^9 5.8, Gaussians of 2, 5, 10, 50 dimensions 1.9, 3.8, 5.5, 8.0; a random walk gives 2 in any large space",
    ),
    "correlation": (
        _correlation,
        "low above about 5: a circle gives 1.0, S^2 2.0, S^9 8.2, Gaussians of 2, 5, 10, 50 dimensions 2.0, 4.7, 8.3, 24; a random walk gives 2.4 unless close times are left out",
    ),
    "twonn": (
        _twonn,
        "sees the smallest scale, and with it any noise; low above about 8: a circle gives 1.0, S^2 2.0, S^9 8.4, Gaussians of 2, 5, 10, 50 dimensions 2.0, 5.0, 9.5, 31; "
        "without meaning on a path that does not return: its neighbours are its own last and next points",
    ),
    "mle": (
        _mle,
        "low above about 6: a circle gives 1.0, S^2 2.0, S^9 8.1, Gaussians of 2, 5, 10, 50 dimensions 2.0, 5.0, 9.0, 27; a random walk gives 2.4 unless close times are left out",
    ),
    "participation": (
        _participation,
        "counts directions of variance and no manifold: a circle gives 2, S^2 3, a Gaussian of d dimensions and T points d T / (d + T); a random walk gives 2.5",
    ),
}
