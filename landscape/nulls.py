"""What a path or a cloud without any structure looks like: random relatives of given points, for p-values of whatever is measured of these.

Letters: T points, D parameters, n = T - 1 increments X (n, D) of a path, B draws.

A relative of the points P (T, D) is M P with a random T x T matrix M, or a fresh Gaussian draw, so that squared distances follow from the centred Gram matrix G = P P^T alone, as those of M G M^T: nothing of
size D is ever touched. Each null keeps something of the points and makes the rest random:

    isotropic-walk       the length of every increment; directions uniform in R^D
    matched-walk         the scatter X^T X of each of up to PIECES pieces of the path: increments turned by a Haar orthogonal matrix within their piece (a rotation test, Langsrud 2005)
    shuffled             the increments, and so the two ends; their order random
    sign-flipped         the increments up to their signs
    ornstein-uhlenbeck   the start, the pull a towards a centre, and the mean and the scatter of what each step adds to it
    line                 the straight line of least squares, and the scatter of the residuals, turned in the space that the fit leaves free
    isotropic-cloud      the mean square radius; directions and radii those of a Gaussian in R^D
    matched-cloud        the mean and the scatter: points turned in the space orthogonal to the ones

Why p-values are exact: under the hypothesis that a null names (`Null.exact`) the points and their B relatives are exchangeable given what is kept, so that the rank of the observed statistic is uniform on
1..B + 1, whatever the statistic. A small p-value says that the hypothesis fails, not why.

Why in pieces: the scale and the directions of SGD's noise follow the learning rate and the region. One rotation of all increments would hand early, large ones to the end. A subgroup of a group of symmetries gives
exact p-values too, so pieces cost nothing where the covariance is constant, and the hypothesis is only that it is so within each piece. Uneven recording is accounted for by sqrt(dt), as for a Wiener process.

How approximate the Ornstein-Uhlenbeck null is: with a known it would be exact for evenly recorded points and Gaussian innovations of one covariance. With a estimated, on 60 to 100 true paths of T = 200 each
(D from 5 to 1,000, a from 0.5 to 1), p-values of lambda_1 and of the R^2 of psi_1 on time were at most .05 in 2 to 13% and above .95 in 0 to 8%, and Kolmogorov-Smirnov p was .02 to .9 in these sixteen
cases. Of a statistic that a itself decides, such as the mean squared increment, they gather about 1/2 where a < 1: conservative, since each draw has the path's own a.

Sources: Langsrud 2005 (rotation tests); Bartlett 1933 (the factor of a Wishart matrix); Phipson and Smyth 2010 (p-values of drawn relatives are never 0); Antognini and Sohl-Dickstein 2018 (PCA of high-dimensional
random walks); Bun and Carree 2005 (the bias of a pull that many coordinates share).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from landscape.errors import UsageError, unknown

PIECES = 20  # of a path: a learning rate schedule is nearly constant in a twentieth of it
SHORTEST = 8  # increments in a piece: of fewer, a rotation is little more than a change of signs
TIED = 1e-9  # relative: statistics closer than this are equal, so that the rounding of a draw that changed nothing is no evidence
WALK_SHARE = 6 / math.pi**2  # of the first principal component in the variance of a long random walk in many dimensions

Side = Literal["upper", "lower", "both"]


@dataclass(frozen=True)
class Null:
    """One hypothesis about points, with the way to draw their relatives under it."""

    name: str
    words: str  # what a draw is
    exact: str  # what its p-values are exact for
    gram: Callable[[np.ndarray, np.ndarray, int, np.random.Generator], np.ndarray]
    """Inner products (T, T) about any origin of a relative, from centred ones (T, T), times (T,), D and a generator."""


def draw(name: str, gram: np.ndarray, times: np.ndarray, dim: int, random: np.random.Generator) -> np.ndarray:
    """Squared distances (T, T) of one relative of T points with centred inner products `gram` (T, T), recorded at `times` (T,), in R^D with D = `dim`.

    A cloud's times are not used. Raises UsageError on an unknown name, fewer than 3 points, or times of a path that do not increase.
    """
    nulls = PATHS | CLOUDS
    if name not in nulls:
        raise unknown("null model", name, nulls)
    times = np.asarray(times, dtype=float)
    if len(gram) < 3:
        raise UsageError(f"a null model needs at least 3 points; got {len(gram)}.")
    if gram.shape != (len(times), len(times)):
        raise ValueError(f"{len(times)} times and inner products of shape {gram.shape}")
    if name in PATHS and not (np.diff(times) > 0).all():
        raise UsageError("the times of a path increase from point to point; give the points in their order.")
    relative = nulls[name].gram(np.asarray(gram, dtype=float), times, dim, random)
    squares = relative.diagonal()
    squared = squares[:, None] + squares - (relative + relative.T)
    np.fill_diagonal(squared, 0.0)
    positive: np.ndarray = np.maximum(squared, 0.0)
    return positive


def p_value(observed: float, drawn: np.ndarray, side: Side = "upper") -> float:
    """(1 + how many of the B drawn statistics are as extreme as the observed one) / (B + 1); NaN where the observed one is.

    "upper": large ones are extreme; "both": twice the smaller of the two, at most 1. Ties, and NaN among the drawn, count as extreme: the p-value is never too small for them.
    Source: Phipson and Smyth 2010.
    """
    drawn = np.asarray(drawn, dtype=float)
    if math.isnan(observed):
        return math.nan
    slack = TIED * abs(observed) if math.isfinite(observed) else 0.0
    above = 1 + np.count_nonzero(~(drawn < observed - slack))
    below = 1 + np.count_nonzero(~(drawn > observed + slack))
    if side not in ("upper", "lower", "both"):
        raise unknown("side", side, ("upper", "lower", "both"))
    count = {"upper": above, "lower": below, "both": 2 * min(above, below)}[side]
    return float(min(1.0, count / (len(drawn) + 1)))


def random_walk_cosines(points: int, k: int) -> np.ndarray:
    """(T, k) cos(pi j t / T), j = 1..k, t at the middles of T equal intervals: principal components of a random walk in many dimensions, and about its diffusion coordinates.

    Exact eigenvectors of the centred covariance min(s, t) of T points. Their shares of the variance tend to WALK_SHARE / j^2. Source: Antognini and Sohl-Dickstein 2018.
    """
    return np.cos(np.pi * np.outer((np.arange(points) + 0.5) / points, np.arange(1, k + 1)))


# -- random matrices --------------------------------------------------------------------------------------------------


def _haar(n: int, random: np.random.Generator) -> np.ndarray:
    """A uniform orthogonal matrix (n, n): QR of a Gaussian one, with the signs of R's diagonal moved to Q (Mezzadri 2007)."""
    q, r = np.linalg.qr(random.standard_normal((n, n)))
    turn: np.ndarray = q * np.where(r.diagonal() < 0, -1.0, 1.0)
    return turn


def _haar_beside(kept: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A uniform one (T, T) among the orthogonal matrices that leave the columns of `kept` (T, p) as they are."""
    basis = np.linalg.qr(kept, mode="complete")[0]
    fixed, free = basis[:, : kept.shape[1]], basis[:, kept.shape[1] :]
    turn: np.ndarray = fixed @ fixed.T + free @ _haar(free.shape[1], random) @ free.T
    return turn


def _gaussian(n: int, dim: int, random: np.random.Generator) -> np.ndarray:
    """F (n, min(n, D)) with F F^T in law the inner products of n standard Gaussian vectors in R^D: Bartlett's factor where that is smaller than the vectors."""
    if dim < n:
        return random.standard_normal((n, dim))
    factor = np.tril(random.standard_normal((n, n)), -1)
    factor[np.diag_indices(n)] = np.sqrt(random.chisquare(dim - np.arange(n)))
    return factor


def _products(rows: np.ndarray, gram: np.ndarray | None = None) -> np.ndarray:
    """Inner products of the rows: of coordinates, or of weights of points that have inner products `gram`."""
    products: np.ndarray = rows @ rows.T if gram is None else rows @ gram @ rows.T
    return products


# -- paths ------------------------------------------------------------------------------------------------------------


def _increments(gram: np.ndarray) -> np.ndarray:
    """Inner products (n, n) of the increments."""
    return np.diff(np.diff(gram, axis=0), axis=1)


def _walk(increments: np.ndarray) -> np.ndarray:
    """Inner products (T, T) of the points of a path about its start, from those of its increments."""
    return np.pad(increments, ((1, 0), (1, 0))).cumsum(0).cumsum(1)


def _turn(rows: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Q (n, n) @ rows (n, m), where Q turns the rows within each piece of the path."""
    n = len(rows)
    pieces = np.array_split(np.arange(n), max(1, min(PIECES, n // SHORTEST)))
    return np.concatenate([_haar(len(piece), random) @ rows[piece] for piece in pieces])


def _isotropic_walk(gram: np.ndarray, times: np.ndarray, dim: int, random: np.random.Generator) -> np.ndarray:
    lengths = np.sqrt(np.maximum(_increments(gram).diagonal(), 0.0))
    rows = _gaussian(len(lengths), dim, random)
    rows *= (lengths / np.linalg.norm(rows, axis=1))[:, None]
    points = np.pad(rows, ((1, 0), (0, 0))).cumsum(0)
    return _products(points)


def _matched_walk(gram: np.ndarray, times: np.ndarray, dim: int, random: np.random.Generator) -> np.ndarray:
    scale = np.sqrt(np.diff(times))
    turn = _turn(np.diag(1 / scale), random) * scale[:, None]
    return _walk(_products(turn, _increments(gram)))


def _shuffled(gram: np.ndarray, times: np.ndarray, dim: int, random: np.random.Generator) -> np.ndarray:
    scale = np.sqrt(np.diff(times))
    order = random.permutation(len(scale))
    ratio = scale / scale[order]
    return _walk(_increments(gram)[np.ix_(order, order)] * np.outer(ratio, ratio))


def _sign_flipped(gram: np.ndarray, times: np.ndarray, dim: int, random: np.random.Generator) -> np.ndarray:
    signs = random.choice([-1.0, 1.0], len(gram) - 1)
    return _walk(_increments(gram) * np.outer(signs, signs))


def _pull(gram: np.ndarray) -> float:
    """a of x' = c + a x + innovation, one scalar for all coordinates: least squares, with the bias taken off that fitting c makes.

    Least squares solves <x - mean, innovation> = 0. In expectation that is -s^2/n sum_{i > j} a^(i-1-j), s^2 the innovations' mean square: the mean holds every later point's share of an innovation. In many
    coordinates the spread of a is far below this bias, of (1 + a)/n, so it is solved for with the expectation (Bun and Carree 2005). The first root above least squares is a; at most 1, a walk.
    """
    before, after = _centred(gram[:-1, :-1]), _centred(gram[1:, 1:])
    xx, yy = np.trace(before), np.trace(after)
    xy = np.trace(_centred(gram[:-1, 1:]))
    n = len(gram) - 1
    if xx <= 0:
        return 1.0  # the path stands still
    start = min(1.0, max(-1.0, float(xy / xx)))
    grid = np.linspace(start, 1.0, 2001)  # to a 2,000th of the distance to a walk: far below the spread of a
    lags = np.arange(n - 1)
    shares = np.polynomial.polynomial.polyval(grid, (n - 1 - lags) / n)
    excess = xy - grid * xx + (yy - 2 * grid * xy + grid**2 * xx) / (n - 1) * shares
    below = np.flatnonzero(excess <= 0)
    return float(grid[below[0]] if len(below) else grid[excess.argmin()])


def _centred(gram: np.ndarray) -> np.ndarray:
    rows: np.ndarray = gram - gram.mean(0)
    centred: np.ndarray = rows - rows.mean(1, keepdims=True)
    return centred


def _ornstein_uhlenbeck(gram: np.ndarray, times: np.ndarray, dim: int, random: np.random.Generator) -> np.ndarray:
    count = len(gram)
    a = _pull(gram)
    moves = np.eye(count)[1:] - a * np.eye(count)[:-1]  # (n, T): x' - a x = c + innovation, by points
    # with a known, the mean of these and their scatter are sufficient for c and the covariance: a rotation that keeps both adds no error of c
    moves = _haar_beside(np.ones((count - 1, 1)), random) @ moves
    matrix = np.eye(count)
    for i in range(1, count):
        matrix[i] = a * matrix[i - 1] + moves[i - 1]
    return _products(matrix, gram)


def _line(gram: np.ndarray, times: np.ndarray, dim: int, random: np.random.Generator) -> np.ndarray:
    matrix = _haar_beside(np.stack([np.ones(len(times)), times - times.mean()], axis=1), random)
    return _products(matrix, gram)


# -- clouds -----------------------------------------------------------------------------------------------------------


def _isotropic_cloud(gram: np.ndarray, times: np.ndarray, dim: int, random: np.random.Generator) -> np.ndarray:
    points = _gaussian(len(gram), dim, random)
    points -= points.mean(0)
    # the shape of an isotropic Gaussian cloud is independent of its size, so the size may be that of the points: exact whatever the variance
    points *= math.sqrt(max(0.0, np.trace(gram)) / max(np.square(points).sum(), np.finfo(float).tiny))
    return _products(points)


def _matched_cloud(gram: np.ndarray, times: np.ndarray, dim: int, random: np.random.Generator) -> np.ndarray:
    matrix = _haar_beside(np.ones((len(gram), 1)), random)
    return _products(matrix, gram)


# -- the list ---------------------------------------------------------------------------------------------------------

_PATHS = (
    Null(
        "isotropic-walk",
        "a walk with the same step lengths in directions uniform in the whole space",
        "independent increments in uniform directions, given their lengths",
        _isotropic_walk,
    ),
    Null(
        "matched-walk",
        f"a walk whose increments have the same covariance in each of up to {PIECES} pieces of the path",
        "independent Gaussian increments of mean zero whose covariance is constant within each piece",
        _matched_walk,
    ),
    Null(
        "shuffled",
        "the same increments in random order, with the same two ends",
        "increments that are exchangeable once divided by the square root of their time",
        _shuffled,
    ),
    Null(
        "sign-flipped",
        "the same increments in the same order with random signs",
        "independent increments with a law symmetric about zero, of any scale",
        _sign_flipped,
    ),
    Null(
        "ornstein-uhlenbeck",
        "noise with a pull towards a centre, both estimated from the path",
        "nothing: approximate through the estimated pull and centre, and for evenly recorded points",
        _ornstein_uhlenbeck,
    ),
    Null(
        "line",
        "the straight line of least squares with noise of the same covariance about it",
        "a straight line at constant speed with independent Gaussian noise of one covariance about it",
        _line,
    ),
)
_CLOUDS = (
    Null(
        "isotropic-cloud",
        "a Gaussian cloud of the same mean square radius, equal in all directions of the space",
        "independent points of an isotropic Gaussian law",
        _isotropic_cloud,
    ),
    Null(
        "matched-cloud",
        "a Gaussian cloud of the same covariance",
        "independent points of any Gaussian law",
        _matched_cloud,
    ),
)
PATHS = {null.name: null for null in _PATHS}
CLOUDS = {null.name: null for null in _CLOUDS}
