"""Success probabilities from counts: their intervals, the dimension at which they turn from 0 to 1, and the next dimension to try.

Letters: D ambient dimension, d subspace, K tried dimensions (increasing), n seeds, M kinds of bracket, L fits at once, P(d) probability that a subspace of dimension d hits.

    angle       phi(d) = arcsin sqrt(d / D): of a coordinate axis to a random d-dimensional subspace, in the root mean square
    model       the angle at which a seed starts to hit is normal: P(d) = Phi((phi(d) - centre) / scale)
    transition  d10, d50, d90: the dimensions where P is 0.1, 0.5 and 0.9

Why the angle: a subspace through a point at distance R from a ball of radius r hits it with probability I_{r^2/R^2}((D - d) / 2, d / 2), so that the threshold dimension is near normal about
D (1 - r^2/R^2) with variance 2 d (D - d) / D (Amelunxen, Lotz, McCoy, Tropp 2014, "Living on the edge", section 6). phi turns that variance into the constant 1 / (2 D), whatever the ball:
one scale fits small and large d alike. For other sets the scale is fitted, not assumed.

Two kinds of data, one likelihood. With a fresh subspace in each cell a hit says "the threshold lies in (0, d]", a miss "in (d, inf)". With nested subspaces a seed has one threshold, known to lie in a
bracket (low, high] between the largest dimension that missed and the smallest that hit. Both are counts of brackets, of probability Phi(high) - Phi(low) each.

Intervals are those of the likelihood ratio: all (centre, scale) whose log likelihood is within the cut of the greatest, and of these the range of each dimension. The cut of large samples, chi2 / 2 with one
degree of freedom, is too small for ten seeds; n/2 log(1 + t^2 / (n - 1)), t Student's quantile with n - 1 degrees of freedom, is exact for the centre of a normal sample with unknown scale, and tends to chi2 / 2.
Nothing breaks where hits and misses separate perfectly: the scale then goes to 0, and the interval of d50 is the bracket.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats
from scipy.special import ndtr, ndtri

QUANTILES = (0.1, 0.5, 0.9)

STEPS = 24  # places of the centre in each gap between tried dimensions: an interval is rounded outwards to them
SCALES = 64  # of the model, on a logarithmic axis over some three decades: steps of a tenth, where ten seeds tell scales apart to a quarter
ROUNDS = 5  # of refinement, each to half the step: estimates are exact to a 700th of a gap
LEAST = 1e-300  # probability that stands for less, so that its logarithm is finite
TIED = 1e-9  # log likelihoods closer than this are equal: rounding, or a plateau, whose middle is taken


# -- one proportion ---------------------------------------------------------------------------------------------------


def wilson(hits: Any, trials: Any, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """The score interval (low, high) of a proportion, broadcast; (0, 1) of no trials.

    Covers `confidence` on average over proportions, not at each of them. Source: Wilson 1927.
    """
    hits, trials = np.broadcast_arrays(np.asarray(hits, dtype=float), np.asarray(trials, dtype=float))
    z2 = ndtri((1 + confidence) / 2) ** 2
    n = np.maximum(trials, 1.0)
    middle = (hits + z2 / 2) / (n + z2)
    half = np.sqrt(z2 * (hits * (n - hits) / n + z2 / 4)) / (n + z2)
    # at the ends rounding would leave 1e-17 for 0
    low = np.where(hits <= 0, 0.0, middle - half)
    high = np.where(hits >= trials, 1.0, middle + half)
    return low, high


def clopper_pearson(hits: Any, trials: Any, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """The exact interval (low, high) of a proportion, broadcast; (0, 1) of no trials.

    Covers at least `confidence` at every proportion: what certifies. Source: Clopper, Pearson 1934.
    """
    hits, trials = np.broadcast_arrays(np.asarray(hits, dtype=float), np.asarray(trials, dtype=float))
    tail = (1 - confidence) / 2
    misses = trials - hits
    low = np.where(hits > 0, stats.beta.ppf(tail, np.maximum(hits, 0.5), misses + 1), 0.0)
    high = np.where(misses > 0, stats.beta.ppf(1 - tail, hits + 1, np.maximum(misses, 0.5)), 1.0)
    return low, high


# -- the transition ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Transition:
    """d10, d50 and d90 of one fit, or of L at once. Nothing is extrapolated: beyond the tried dimensions stand bounds."""

    dims: (
        np.ndarray
    )  # (3, ...) maximum likelihood, or the end of the tried dimensions where `bounds` is not 0; NaN without data
    lows: np.ndarray  # (3, ...) of the interval; 0 where it reaches below the tried dimensions
    highs: np.ndarray  # (3, ...) likewise; infinity where it reaches above them
    bounds: np.ndarray  # (3, ...) -1: at most `dims`; 1: more than `dims`; 0: the estimate
    confidence: float

    @property
    def width(self) -> np.ndarray:
        """d90 - d10; NaN where one of them is a bound."""
        return np.where((self.bounds[0] == 0) & (self.bounds[2] == 0), self.dims[2] - self.dims[0], np.nan)


def probit(dims: Any, hits: Any, trials: Any, ambient: int, confidence: float = 0.95) -> Transition:
    """The transition of independent cells: `hits` of `trials` (..., K) at dimensions `dims` (K,), in D = `ambient` dimensions."""
    dims = _tried(dims, ambient)
    hits, trials = np.broadcast_arrays(np.asarray(hits, dtype=float), np.asarray(trials, dtype=float))
    if hits.shape[-1] != len(dims) or (hits < 0).any() or (hits > trials).any():
        raise ValueError(f"hits lie in 0..trials, one for each of {len(dims)} dimensions; got shape {hits.shape}")
    counts = np.concatenate([hits, trials - hits], axis=-1)
    place = np.arange(len(dims)) + 1
    ends = np.concatenate([0 * place, place]), np.concatenate([place, 0 * place + len(dims) + 1])
    return _fit(dims, *ends, counts, trials.max(-1), ambient, confidence)


def censored(dims: Any, lows: Any, highs: Any, ambient: int, confidence: float = 0.95) -> Transition:
    """The transition of nested subspaces: each of n seeds (..., n) has its threshold in (low, high], as `brackets` gives them.

    `dims` (K,) are those tried; each low is one of them, or 0 (the smallest has hit); each high too, or infinity (none has).
    A seed of which nothing is known, (0, inf), is left out.
    """
    dims = _tried(dims, ambient)
    knots = np.concatenate([[0.0], dims, [np.inf]])
    lows, highs = np.broadcast_arrays(np.asarray(lows, dtype=float), np.asarray(highs, dtype=float))
    if not (np.isin(lows, knots).all() and np.isin(highs, knots).all() and (lows < highs).all()):
        raise ValueError("brackets (low, high] have low < high, both from the dimensions, or 0 and infinity")
    first, last = np.searchsorted(knots, lows), np.searchsorted(knots, highs)
    kinds, which = np.unique(first * len(knots) + last, return_inverse=True)
    counts = (which.reshape(lows.shape)[..., None] == np.arange(len(kinds))).sum(-2)
    starts, stops = np.divmod(kinds, len(knots))
    known = (starts > 0) | (stops <= len(dims))
    counts = counts * known
    return _fit(dims, starts, stops, counts, counts.sum(-1), ambient, confidence)


def _tried(dims: Any, ambient: int) -> np.ndarray:
    found: np.ndarray = np.asarray(dims, dtype=float)
    if found.ndim != 1 or not len(found) or found[0] <= 0 or found[-1] > ambient or (np.diff(found) <= 0).any():
        raise ValueError(f"dimensions increase within 1..{ambient}; got {found}")
    return found


def _fit(
    dims: np.ndarray,  # (K,)
    starts: np.ndarray,  # (M,) places in 0, dims, infinity
    stops: np.ndarray,  # (M,)
    counts: np.ndarray,  # (..., M) of brackets
    seeds: np.ndarray,  # (...,) n, for the cut
    ambient: int,
    confidence: float,
) -> Transition:
    shape = counts.shape[:-1]
    counts = counts.reshape(-1, len(starts)).astype(float)
    seeds = seeds.reshape(-1)
    angles = np.arcsin(np.sqrt(dims / ambient))
    knots = np.concatenate([[-np.inf], angles, [np.inf]])

    def logarithms(centres: np.ndarray, scales: Any) -> np.ndarray:
        """Of the brackets' probabilities, (..., M)."""
        below = ndtr((knots - centres[..., None]) / np.asarray(scales)[..., None])
        found: np.ndarray = np.log(np.maximum(below[..., stops] - below[..., starts], LEAST))
        return found

    edges = np.concatenate([[0.0], angles])
    gaps = np.diff(edges)
    places = [low + gap * np.arange(STEPS) / STEPS for low, gap in zip(edges[:-1], gaps, strict=True)]
    # above the tried dimensions in growing steps, as the centre is less and less sure there
    # (past pi/2 there is no dimension; a centre there says that not even the whole space succeeds as a rule)
    beyond = angles[-1] + np.geomspace(gaps[-1] / STEPS, np.pi / 2, 2 * STEPS)
    centres = np.concatenate([*places, angles[-1:], beyond])
    # the smallest is a step function between the places, the largest hardly turns over the tried dimensions
    scales = np.geomspace(gaps.min() / STEPS, 2 * angles[-1], SCALES)
    likelihoods = np.stack([logarithms(centres, scale) @ counts.T for scale in scales])  # (scales, centres, L)

    best = likelihoods.max((0, 1))
    estimates = _peak(logarithms, counts, likelihoods, centres, scales)  # (2, L) centre and scale
    inside = likelihoods >= best - _cut(seeds, confidence)
    some = inside.any(1)  # (scales, L)
    first = np.maximum(inside.argmax(1) - 1, 0)
    last = np.minimum(len(centres) - inside[:, ::-1].argmax(1), len(centres) - 1)
    turns = ndtri(np.array(QUANTILES))[:, None]
    shifts = turns[..., None] * scales[:, None]
    lowest = np.where(some, centres[first] + shifts, np.inf).min(1)
    highest = np.where(some, centres[last] + shifts, -np.inf).max(1)
    slack = 1e-9  # of rounding on the way to an angle
    middle, low, high = estimates[0] + turns * estimates[1], lowest, highest
    bounds = (middle > angles[-1] * (1 + slack)).astype(int) - (middle < angles[0] * (1 - slack))
    below, above = low < angles[0] * (1 - slack), high > angles[-1] * (1 + slack)
    middle, low, high = (ambient * np.sin(np.clip(phi, 0, np.pi / 2)) ** 2 for phi in (middle, low, high))
    low = np.where(below, 0.0, np.minimum(low, dims[-1]))
    high = np.where(above, np.inf, np.maximum(high, dims[0]))
    middle = np.where(counts.sum(1) > 0, np.clip(middle, dims[0], dims[-1]), np.nan)
    bounds[np.isnan(middle)] = 0
    middle, low, high, bounds = (part.reshape(len(QUANTILES), *shape) for part in (middle, low, high, bounds))
    return Transition(middle, low, high, bounds, confidence)


def _cut(seeds: np.ndarray, confidence: float) -> np.ndarray:
    """How far below the greatest log likelihood the interval reaches, for n seeds; one seed says nothing of a scale."""
    n = np.maximum(seeds, 2.0)
    t = stats.t.ppf((1 + confidence) / 2, n - 1)
    return np.where(seeds < 2, np.inf, n / 2 * np.log1p(t**2 / (n - 1)))


def _peak(
    logarithms: Callable[[np.ndarray, Any], np.ndarray],
    counts: np.ndarray,
    likelihoods: np.ndarray,
    centres: np.ndarray,
    scales: np.ndarray,
) -> np.ndarray:
    """The centre and scale (2, L) of the greatest likelihood: the middle of it where it is a plateau, at the smallest scale."""
    fits = np.arange(counts.shape[0])
    row = (likelihoods.max(1) >= likelihoods.max((0, 1)) - TIED).argmax(0)
    across = likelihoods[row, :, fits]  # (L, centres)
    tied = across >= across.max(1, keepdims=True) - TIED
    column = np.rint((tied * np.arange(len(centres))).sum(1) / tied.sum(1)).astype(int)
    centre, scale = centres[column], np.log(scales[row])
    step = np.maximum(centres[np.minimum(column + 1, len(centres) - 1)] - centre, centre - centres[column - 1])
    ratio = np.full(len(fits), np.log(scales[1] / scales[0]))
    least = np.log(scales[0])
    offsets = np.stack(np.meshgrid(*2 * [np.linspace(-1, 1, 5)], indexing="ij")).reshape(2, 1, -1)
    for _ in range(ROUNDS):
        c = centre[:, None] + offsets[0] * step[:, None]  # (L, 25)
        s = np.maximum(scale[:, None] + offsets[1] * ratio[:, None], least)
        found = np.einsum("lgm,lm->lg", logarithms(c, np.exp(s)), counts)
        tied = found >= found.max(1, keepdims=True) - TIED
        centre, scale = ((tied * part).sum(1) / tied.sum(1) for part in (c, s))
        step, ratio = step / 2, ratio / 2
    return np.stack([centre, np.exp(scale)])


# -- nested subspaces -------------------------------------------------------------------------------------------------


def brackets(dims: Any, hits: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the threshold of each seed lies, from `hits` (..., n, K): 1 for a hit, 0 for a miss, NaN where it was not tried.

    A set that a subspace meets is met by every larger one that contains it, so the smallest hit decides: a miss above it is the solver's, not the geometry's.
    Returns (lows, highs) (..., n): the largest miss below the smallest hit, or 0, and that hit, or infinity; and where it missed above it (..., n, K).
    """
    dims, hits = np.asarray(dims, dtype=float), np.asarray(hits, dtype=float)
    highs = np.where(hits == 1, dims, np.inf).min(-1)
    missed = hits == 0
    below = missed & (dims < highs[..., None])
    lows = np.where(below, dims, 0.0).max(-1)
    return lows, highs, missed & ~below


def next_dims(dims: Sequence[int], lows: Any, highs: Any) -> list[int | None]:
    """The dimension to try next for each seed whose threshold lies in (low, high]; None where no allowed one lies between.

    Bisection: the middle one of `dims` (K,), increasing, that lie strictly between, the smaller (cheaper) of two. At most log2(K + 1), rounded up, trials find the threshold of a seed
    as closely as all K would, and so the same threshold dimension over seeds.
    """
    picked: list[int | None] = []
    for low, high in zip(np.asarray(lows, dtype=float), np.asarray(highs, dtype=float), strict=True):
        between = [d for d in dims if low < d < high]
        picked.append(between[(len(between) - 1) // 2] if between else None)
    return picked
