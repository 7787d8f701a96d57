"""How far apart the points of a trajectory lie: all squared distances between T points of R^D, from inner products that are streamed and checked.

Letters: T points, D dimension of their space, k dimension of what an approximation keeps.

|w_i - w_j|^2 = G_ii + G_jj - 2 G_ij with G the inner products of the points seen from their mean, added up in float64 over blocks of columns: one pass over a
store, never T x D in memory. Three things keep the digits:
- the mean is taken off in each block first: without it G holds |w|^2, and the distances of a trained network's iterates are a millionth of that;
- pairs so close that the subtraction leaves fewer digits than ACCURACY asks for are found, gathered into groups of neighbours and measured again, each group seen
  from one of its own points. Equal points come out at exactly zero;
- `check` holds what a third pass finds: plain differences of some random pairs and of the nearest ones.

This file needs no torch until something is drawn.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from landscape.errors import LandscapeError, UsageError
from landscape.seeds import child_seed
from landscape.trajectories import Trajectory

EPS = float(np.finfo(float).eps)
# relative error allowed in a squared distance: a thousandth of what iterates stored in float32 know of theirs (1.5e-6 in the median)
ACCURACY = 1e-9
# rounding of an inner product of x and y in units of EPS |x| |y|: BLAS sums in lanes and blocks, far below the worst case D; 1.6 was the most seen for D to 3e6
SUMS = 4.0
# pairs of each sort that are compared with plain differences: enough for a median, and few rows to read once more
CHECKED = 32
# columns of a matrix of this many float64 are held at once
BLOCK_BYTES = 32 * 2**20

# points (n, some columns) float64 of the n rows asked for, which may be overwritten, until all columns were seen
Stream = Callable[[np.ndarray], Iterator[np.ndarray]]


@dataclass(frozen=True, eq=False)
class Distances:
    """Squared distances of T points, and what they are distances of."""

    squared: np.ndarray  # (T, T) float64, symmetric, zero diagonal, never negative
    steps: np.ndarray  # (T,)
    losses: np.ndarray  # (T,)
    space: str  # in words: "parameters", "parameters fc1.*", ...
    dim: int  # D of that space
    approximation: str = "exact"  # or in words, with what is discarded
    kept: int = 0  # dimensions, or principal components, that the approximation keeps; 0: all D
    check: dict[str, Any] = field(
        default_factory=dict
    )  # see `_check`: relative errors found, and how many pairs were `refined`
    masked: int = 0  # rows left out since they hold NaN or infinity
    rows: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=int))  # (T,) rows of the source that are kept
    recorded: int = 0  # rows that the source had: `extended` goes on from there
    params: str = "*"  # the glob that chose the columns
    inner: np.ndarray | None = None  # (T, T) inner products seen from the mean, as added up
    whole: np.ndarray | None = None  # (T, T) those before all but `kept` principal components were left out

    def __len__(self) -> int:
        return len(self.squared)

    @cached_property
    def gram(self) -> np.ndarray:
        """(T, T) inner products seen from the mean of the points: as added up, where that is known; else the squared distances, centred twice."""
        return _centred(-self.squared / 2) if self.inner is None else self.inner

    def alike(self, squared: np.ndarray) -> np.ndarray:
        """Squared distances (T, T) of other points, such as a null model draws by `whole`, approximated as these were: principal components are those of the points themselves."""
        if self.whole is None:
            return squared
        coordinates, _ = _principal(_centred(-squared / 2), self.kept)
        if coordinates is None:
            return squared
        return _exact(_held(coordinates), np.arange(len(coordinates))).squared

    def select(self, rows: Sequence[int] | np.ndarray) -> Distances:
        """Those of some of the points: indices into these T."""
        kept = np.asarray(rows)
        both = np.ix_(kept, kept)
        return dataclasses.replace(
            self,
            squared=self.squared[both],
            steps=self.steps[kept],
            losses=self.losses[kept],
            rows=self.rows[kept],
            inner=None if self.inner is None else _centred(self.inner[both]),
            whole=None if self.whole is None else _centred(self.whole[both]),
        )


def of(
    trajectory: Trajectory,
    *,
    params: str = "*",
    rows: Sequence[int] | None = None,
    approximation: str = "exact",
    seed: int = 0,
) -> Distances:
    """Of the recorded points of a run.

    params: globs of the parameters that count, separated by commas; of the others no byte is read.
    rows: indices of recorded rows. Default: all.
    approximation: `exact`; `random:k`, a projection to k random signs, which changes each distance by about a share 1 / sqrt(2 k) (Johnson and
    Lindenstrauss): k D numbers are drawn and T D k products taken instead of T D T / 2, so it pays where T is several times k; `principal:k`, the first k principal components, exact
    where the points span no more, else with the discarded share of the variance in words. `check` then compares with plain differences of the whole points.
    seed: of the projection.

    Rows that hold NaN or infinity are left out and counted. Raises UsageError where no row is left, for an unknown approximation and a glob that matches nothing.
    """
    chosen = trajectory.places(rows)
    dim = int(trajectory.layout.select(params).sum())
    found = _measure(_stored(trajectory, chosen, params), len(chosen), dim, approximation, seed)
    kept = chosen[found.rows]
    return dataclasses.replace(
        found,
        steps=trajectory.steps[kept],
        losses=trajectory.losses[kept],
        space="parameters" if params == "*" else f"parameters {params}",
        rows=kept,
        recorded=len(trajectory),
        params=params,
    )


def of_points(
    points: np.ndarray,
    *,
    steps: np.ndarray | None = None,
    losses: np.ndarray | None = None,
    space: str = "points",
    approximation: str = "exact",
    seed: int = 0,
) -> Distances:
    """Of points (T, D) in memory: predictions on a probe set, a cloud. `approximation` as for `of`; `steps` default to 0, 1, 2, ...; losses to NaN."""
    points = np.asarray(points)
    if points.ndim != 2:
        raise UsageError(f"points are a table (T, D); got the shape {points.shape}.")
    for name, facts in (("steps", steps), ("losses", losses)):
        if facts is not None and len(facts) != len(points):
            raise UsageError(f"{len(points)} points have as many {name}; got {len(facts)}.")
    found = _measure(_held(points), len(points), points.shape[1], approximation, seed)
    return dataclasses.replace(
        found,
        steps=(np.arange(len(points)) if steps is None else np.asarray(steps))[found.rows],
        losses=(np.full(len(points), np.nan) if losses is None else np.asarray(losses))[found.rows],
        space=space,
        recorded=len(points),
    )


def extended(known: Distances, trajectory: Trajectory) -> Distances:
    """`known` and the rows recorded since: only inner products with these are taken, and what was known stays as it is to the last bit.

    Raises UsageError where the trajectory is not the one that was measured, or `known` is an approximation: a longer trajectory has other principal components.
    """
    if known.approximation != "exact":
        raise UsageError(
            f"only exact distances are extended; these are by {known.approximation}. Measure the trajectory anew."
        )
    old = known.rows
    if not (
        len(trajectory) >= known.recorded >= len(old) > 0
        and np.array_equal(trajectory.steps[old], known.steps)
        and np.array_equal(trajectory.losses[old], known.losses, equal_nan=True)
    ):
        raise UsageError(
            f"{trajectory.folder} is not the trajectory whose {len(known)} points were measured, grown longer: its steps or losses differ. Measure it anew."
        )
    candidates = np.concatenate([old, np.arange(known.recorded, len(trajectory))])
    stream = _stored(trajectory, candidates, known.params)
    found = _exact(stream, np.arange(len(candidates)), known)
    rows = candidates[found.rows]
    return dataclasses.replace(
        known,
        squared=found.squared,
        steps=trajectory.steps[rows],
        losses=trajectory.losses[rows],
        check=_check(stream, found),
        masked=known.masked + len(candidates) - len(rows),
        rows=rows,
        recorded=len(trajectory),
        inner=found.inner,
    )


# -- where points come from -------------------------------------------------------------------------------------------


def _stored(trajectory: Trajectory, chosen: np.ndarray, params: str) -> Stream:
    return lambda places: (block for _, block in trajectory.blocks(chosen[places], params))


def _held(points: np.ndarray) -> Stream:
    def stream(places: np.ndarray) -> Iterator[np.ndarray]:
        width = max(1, BLOCK_BYTES // (8 * max(len(places), 1)))
        for first in range(0, points.shape[1], width):
            yield points[places, first : first + width].astype(np.float64)

    return stream


def _projected(stream: Stream, total: int, k: int, seed: int) -> np.ndarray:
    """All points (T, k), multiplied by a matrix (D, k) of random signs / sqrt(k) (Achlioptas 2003), of which some rows are held at a time.

    Signs and not Gaussian numbers: as good, and drawn in a tenth of the time. Each column of the points takes whole words of 64 bits from one generator, so how the columns are
    cut changes nothing.
    """

    random = np.random.default_rng(child_seed(seed, "random projection"))
    width = max(1, BLOCK_BYTES // (8 * k))
    made = np.zeros((total, k))
    with np.errstate(invalid="ignore"):  # rows that are not finite stay so
        for block in stream(np.arange(total)):
            for first in range(0, block.shape[1], width):
                piece = block[:, first : first + width]
                words = random.integers(2**64, size=(piece.shape[1], -(-k // 64)), dtype=np.uint64)
                signs = np.unpackbits(words.view(np.uint8), axis=1)[:, :k].astype(np.float64)
                made += piece @ (2 * signs - 1)
    return made / math.sqrt(k)


# -- the measurement --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Measured:
    rows: np.ndarray  # those that are finite
    squared: np.ndarray
    inner: np.ndarray  # seen from the mean
    refined: int  # pairs that were measured again


def _measure(stream: Stream, total: int, dim: int, approximation: str, seed: int) -> Distances:
    """Distances without the facts of the source; `rows` are places of the stream."""
    kind, k = _approximation(approximation)
    points = _held(_projected(stream, total, k, seed)) if kind == "random" else stream
    found = _exact(points, np.arange(total))
    words, kept, whole = "exact", 0, None
    if kind == "random":
        kept = k
        words = f"a random projection of {dim:,} dimensions to {k} (random signs, seed {seed}): it changes a distance by about {1 / math.sqrt(2 * k):.1%}"
    if kind == "principal":
        coordinates, rest = _principal(found.inner, k)
        if coordinates is None:
            words = f"{k} principal components, which hold the points wholly"
        else:
            cut = _exact(_held(coordinates), np.arange(len(found.rows)))
            whole, kept = found.inner, k
            found = dataclasses.replace(cut, rows=found.rows)
            words = f"{k} principal components: {rest:.2g} of the variance is discarded"
    return Distances(
        squared=found.squared,
        steps=np.empty(0),
        losses=np.empty(0),
        space="",
        dim=dim,
        approximation=words,
        kept=kept,
        check=_check(stream, found),
        masked=total - len(found.rows),
        rows=found.rows,
        inner=found.inner,
        whole=whole,
    )


def _approximation(text: str) -> tuple[str, int]:
    kind, _, size = text.partition(":")
    if text != "exact" and not (kind in ("random", "principal") and size.isdecimal() and int(size) > 0):
        raise UsageError(
            f"unknown approximation {text!r}. Allowed: exact, random:K and principal:K with K dimensions, 1 or more, such as random:256."
        )
    return kind, int(size or 0)


def _principal(inner: np.ndarray, k: int) -> tuple[np.ndarray | None, float]:
    """Coordinates (T, k) along the first k principal components, None where these hold all that float64 can tell; and the share of the variance left out."""
    values, vectors = np.linalg.eigh(inner)
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    if np.sum(values > len(values) * EPS * values[0]) <= k:
        return None, 0.0
    return vectors[:, :k] * np.sqrt(values[:k]), float(values[k:].sum() / values.sum())


def _exact(stream: Stream, rows: np.ndarray, known: Distances | None = None) -> _Measured:
    """Of the finite ones of these rows. The first len(known) are known, finite, and only what is new is measured."""
    first = 0 if known is None else len(known)
    fresh = _inner(stream, rows, first)
    if not np.isfinite(4 * fresh).all():  # 4: a squared distance is at most four times the larger norm
        finite = np.ones(len(rows), dtype=bool)
        for block in stream(rows):
            finite &= np.isfinite(block).all(axis=1)
        rows = rows[finite]
        fresh = _inner(stream, rows, first)
        if not np.isfinite(4 * fresh).all():
            raise LandscapeError(
                "the points lie so far apart that their squared distances overflow float64: the run diverged. Leave the last rows out."
            )
    inner = fresh
    if known is not None:
        inner = np.block([[known.gram, fresh[:, :first].T], [fresh]])
    norms = inner.diagonal()
    squared = np.maximum(norms + (norms[:, None] - 2 * inner), 0.0)
    squared = (squared + squared.T) / 2
    np.fill_diagonal(squared, 0.0)
    doubt = 2 * SUMS * EPS * (norms + norms[:, None])
    if known is not None:
        squared[:first, :first], doubt[:first, :first] = known.squared, 0.0
    np.fill_diagonal(doubt, 0.0)
    refined = _refine(stream, rows, squared, doubt)
    return _Measured(rows, squared, _centred(inner), refined)


def _inner(stream: Stream, rows: np.ndarray, first: int) -> np.ndarray:
    """Inner products (T - first, T) of the rows from `first` on with all, seen from the mean of those before `first`, or of all where there are none."""
    if not len(rows):
        raise UsageError("there is no point to measure from: no row is recorded, or all hold NaN or infinity.")
    inner = np.zeros((len(rows) - first, len(rows)))
    with np.errstate(invalid="ignore", over="ignore"):  # rows that are not finite show in the sums
        for block in stream(rows):
            block -= block[: first or None].mean(axis=0)
            inner += block[first:] @ block.T
    return inner


def _refine(stream: Stream, rows: np.ndarray, squared: np.ndarray, doubt: np.ndarray) -> int:
    """Measure again, in place, the pairs whose rounding error `doubt` is above ACCURACY of their squared distance; returns how many.

    Pairs in doubt are near each other. Groups of them, each a point and those whose distance from it is in doubt, are seen from that point: their inner products are smaller by
    the factor by which the group is smaller than the whole, and so is the rounding. Again until nothing is in doubt: distances from a group's own point are plain differences.
    """
    touched = np.zeros(squared.shape, dtype=bool)
    while True:
        left = doubt > ACCURACY * squared
        if not left.any():
            return int(touched.sum()) // 2
        touched |= left
        groups: list[np.ndarray] = []
        partners = left.sum(axis=1)
        while partners.any():
            centre = int(partners.argmax())
            group = np.concatenate([[centre], np.flatnonzero(left[centre])])
            both = np.ix_(group, group)
            partners[group] -= left[both].sum(axis=1)
            left[both] = False
            groups.append(group)
        inners = [np.zeros((len(group), len(group))) for group in groups]
        members = np.unique(np.concatenate(groups))
        places = [np.searchsorted(members, group) for group in groups]
        for block in stream(rows[members]):
            for place, inner in zip(places, inners, strict=True):
                seen = block[place]
                seen -= block[place[0]]
                inner += seen @ seen.T
        for group, inner in zip(groups, inners, strict=True):
            both, norms = np.ix_(group, group), inner.diagonal()
            closer = 2 * SUMS * EPS * (norms + norms[:, None])
            better = closer <= doubt[both]
            made = np.maximum(norms + (norms[:, None] - 2 * inner), 0.0)
            squared[both] = np.where(better, (made + made.T) / 2, squared[both])
            doubt[both] = np.where(better, closer, doubt[both])


def _check(stream: Stream, found: _Measured) -> dict[str, Any]:
    """Distances against plain differences of up to CHECKED random pairs and of the CHECKED points that have the nearest neighbours.

    Relative errors, of equal points relative to the root mean square distance: `median` of the random pairs, `nearest` the median of the nearest ones, `largest` of all `pairs`.
    """
    count = len(found.rows)
    if count < 2:
        return {"pairs": 0, "median": 0.0, "nearest": 0.0, "largest": 0.0, "refined": found.refined}
    random = np.random.default_rng(0)  # which pairs are compared is no part of the question
    one = random.integers(count, size=CHECKED)
    other = (one + 1 + random.integers(count - 1, size=CHECKED)) % count
    apart = found.squared + np.diag(np.full(count, np.inf))
    neighbours = apart.argmin(axis=1)
    closest = apart[np.arange(count), neighbours].argsort(kind="stable")[:CHECKED]
    ends = np.sort([np.concatenate([one, closest]), np.concatenate([other, neighbours[closest]])], axis=0)
    members, places = np.unique(ends, return_inverse=True)
    plain = np.zeros(ends.shape[1])
    for block in stream(found.rows[members]):
        for number, (i, j) in enumerate(places.reshape(ends.shape).T):
            way = block[i] - block[j]
            plain[number] += way @ way
    measured, truth = np.sqrt(found.squared[tuple(ends)]), np.sqrt(plain)
    wrong = np.abs(measured - truth)
    typical = math.sqrt(found.squared.sum() / (count * (count - 1)))
    errors = np.divide(wrong, np.where(truth > 0, truth, typical), out=np.zeros_like(wrong), where=wrong > 0)
    return {
        "pairs": len(np.unique(ends, axis=1).T),
        "median": float(np.median(errors[:CHECKED])),
        "nearest": float(np.median(errors[CHECKED:])),
        "largest": float(errors.max()),
        "refined": found.refined,
    }


def _centred(matrix: np.ndarray) -> np.ndarray:
    """J A J with J = 1 - 11^T / T, symmetric to the last bit."""
    mean = matrix.mean(axis=0)
    made = matrix - mean - (mean[:, None] - mean.mean())
    symmetric: np.ndarray = (made + made.T) / 2
    return symmetric
