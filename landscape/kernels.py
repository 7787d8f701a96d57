"""Gaussian kernels of points: squared distances, bandwidths, neighbour graphs, densities.

Letters: N points, D coordinates, M other points, k neighbours, G bandwidths on a grid. Source: shared formulas of diffusion maps (Coifman & Lafon 2006; Berry & Harlim 2016).

Convention of the package: K = exp(-d^2 / (4 eps)) with eps in squared units of the distance, so that (I - P) / eps tends to the Laplacian. Coifman and Lafon write exp(-d^2 / eps): their
eps is 4 of ours. A variable bandwidth rho divides: K = exp(-d^2 / (4 eps rho_i rho_j)).

A bandwidth by rule:

    bgh              the eps where d log S / d log eps is largest, S(eps) the mean of K with its diagonal (Berry, Giannakis & Harlim 2015). Twice that slope estimates the dimension
    bgh-neighbours   the same with each point's nearest neighbours alone: smaller, since it cannot see across the folds of a manifold
    median[:c]       median of the squared distances over c (4: the kernel of a typical pair is 1/e)
    neighbour:k      a quarter of the median squared distance to the k-th neighbour (the kernel there is 1/e)
    a number         that eps
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from landscape.errors import UsageError, unknown

# bandwidths of a curve are 2^(1/4) apart: the maximum of its slope is so flat that a finer grid moves eps by less than points drawn anew do
STEP = 2**0.25
# neighbours of a point for the rule `bgh-neighbours`, itself among them: what pydiffmap takes
NEIGHBOURS = 64
# of the median squared distance, for the rule `median`
DIVISOR = 4.0
# neighbours of a point for the pilot estimate of a density, itself among them: Berry & Harlim's choice
PILOT = 8
# a block of distances holds about so many numbers (2 MiB, what a cache holds)
BLOCK = 1 << 18
# up to so many coordinates differences are taken one by one, and a k-d tree finds neighbours; above, one matrix product is faster
FEW = 16
# rows of a symmetric matrix of distances computed at once
PANEL = 500
# of up to so many points all distances are held at once: 200 MB
WHOLE = 5000
# squared distances below this part of the squared norms have lost digits in the matrix product, and are taken anew
CANCELLED = 1e-6
# points in a group, principal coordinates that tell groups apart, and from so many points on groups are made: measured
GROUP, AXES, MANY = 64, 8, 1000
# times the count of neighbours that bound the last one's distance
AHEAD = 2
# groups are used where they spare all but this part of the distances: a product of all has half the work, by symmetry
SPARED = 0.3
# margin for the rounding of an inner product of D coordinates in float32, by sqrt(D) and the norms: sums round as random walks, of steps below a quarter of this
ROUNDED = 4 * float(np.finfo(np.float32).eps)
# leading bits of a float64 that number its bin: sign, exponent and 6 bits of the mantissa, 64 bins an octave
SHIFT = 46
# squared distances below this part of the largest count as zero: repeated points
ZERO = 1e-30

RULES = ("bgh", "bgh-neighbours", "median", "neighbour")


class LandscapeWarning(UserWarning):
    """An answer that stands, with something that its reader must know."""


@dataclass(frozen=True, eq=False)
class Curve:
    """The kernel's mean over all pairs, as a function of the bandwidth."""

    epsilon: np.ndarray  # (G,) ascending, STEP apart
    log_sum: np.ndarray  # (G,) log of the mean of exp(-d^2 / (4 eps)), the zero diagonal in it
    slope: np.ndarray  # (G,) its derivative by log eps, exact and not a difference

    @property
    def dimension(self) -> float:
        """Twice the largest slope: d for points that fill a d-dimensional manifold evenly, less above d of about 4."""
        return 2 * float(self.slope.max())


@dataclass(frozen=True, eq=False)
class Bandwidth:
    """A chosen eps, with the whole curve that the rule looked at (or might have)."""

    epsilon: float
    rule: str
    known: Curve | Callable[[], Curve]

    @cached_property
    def curve(self) -> Curve:
        """Computed when it is first asked for, where the rule did without it."""
        return self.known if isinstance(self.known, Curve) else self.known()

    @property
    def dimension(self) -> float:
        """Of the curve."""
        return self.curve.dimension


def curve(squared: np.ndarray, weights: np.ndarray | None = None) -> Curve:
    """The curve of squared distances (n, m), of pairs with weights (n, m) where given, the zeros of the points to themselves among them (without these the steepest place escapes to eps = 0).

    From a histogram with 64 bins an octave, each bin at the mean of what is in it, at a hundredth of the cost of the sums. exp(-x) is then off by half the relative variance of a bin, 2e-5 at most,
    times x^2, whose mean under the kernel is d (d + 2) / 4: in 3 dimensions the sum is right to 4e-5 of itself. The grid is tied to the distances: multiplied by c they give c eps.

    Raises UsageError where no distance is positive.
    """
    largest = float(squared.max(initial=0.0))
    if not largest > 0:
        raise UsageError("all points are equal: no bandwidth can be chosen. Give points that differ.")
    low = np.float64(max(largest * ZERO, np.finfo(float).tiny))
    first = int(low.view(np.int64)) >> SHIFT
    bins = (int(np.float64(largest).view(np.int64)) >> SHIFT) - first + 1
    counts, sums = np.zeros(bins), np.zeros(bins)
    for part in blocks(*squared.shape):
        values = np.asarray(squared[part], dtype=np.float64)
        positive = values >= low
        values = values[positive]
        numbers = (values.view(np.int64) >> SHIFT) - first
        pairs = None if weights is None else weights[part][positive]
        counts += np.bincount(numbers, pairs, minlength=bins)
        sums += np.bincount(numbers, values if pairs is None else values * pairs, minlength=bins)
    whole = float(squared.size if weights is None else weights.sum())
    kept = counts > 0
    counts, means = counts[kept], sums[kept] / counts[kept]
    typical = math.exp(counts @ np.log(means) / counts.sum()) / 4
    # 30 beyond both ends: there the kernel of every pair is 1 or 0 to within 3 percent
    ends = (means[0] / 4 / 30 / typical, means[-1] / 4 * 30 / typical)
    powers = np.arange(math.floor(math.log(ends[0], STEP)), math.ceil(math.log(ends[1], STEP)) + 1)
    epsilon = typical * STEP**powers
    exponents = means / (4 * epsilon[:, None])
    kernel = counts * np.exp(-exponents)
    total = kernel.sum(axis=1) + max(whole - counts.sum(), 0.0)
    with np.errstate(
        divide="ignore", invalid="ignore"
    ):  # without any zero distance the sum underflows at the lower end
        slope = np.nan_to_num((kernel * exponents).sum(axis=1) / total)
        log_sum = np.log(total / whole)
    return Curve(epsilon, log_sum, slope)


def bandwidth(
    squared: np.ndarray, rule: str | float = "bgh", *, neighbours: int = NEIGHBOURS, weights: np.ndarray | None = None
) -> Bandwidth:
    """Choose eps by a rule (see the head of this file) from rows of squared distances (n, N): each of n points to all N, itself among them. The curve heeds weights of pairs (n, N), medians do not.

    Raises UsageError for an unknown rule, and where all points are equal.
    """
    name, number = _parsed(rule)
    if name == "bgh-neighbours":
        places = np.argpartition(squared, min(neighbours, squared.shape[1]) - 1, axis=1)[:, :neighbours]
        squared = np.take_along_axis(squared, places, axis=1)
        weights = None if weights is None else np.take_along_axis(weights, places, axis=1)
    found = curve(squared, weights)
    if name == "fixed":
        epsilon = number
    elif name == "median":
        epsilon = float(np.median(squared[squared > 0])) / number
    elif name == "neighbour":
        place = min(int(number), squared.shape[1] - 1)
        distances = np.partition(squared, place, axis=1)[:, place]
        epsilon = float(np.median(distances)) / 4
        if not epsilon > 0:
            raise UsageError(f"half of the points or more are repeated: the distance to the {place}-th neighbour is zero. Take another --bandwidth, such as bgh.")  # fmt: skip
    else:
        epsilon = float(found.epsilon[found.slope.argmax()])
    return Bandwidth(epsilon, str(rule), found)


def fixed(rule: str | float) -> float | None:
    """The eps that a rule names, where it is a number. Raises UsageError for an unknown rule."""
    name, number = _parsed(rule)
    return number if name == "fixed" else None


def _parsed(rule: str | float) -> tuple[str, float]:
    """Name and number of a rule."""
    name, _, rest = str(rule).partition(":")
    try:
        number = float(rest or name)
        name = name if rest else "fixed"
    except ValueError:
        number = DIVISOR if name == "median" else 0.0
    if name not in (*RULES, "fixed") or (rest and name not in ("median", "neighbour")):
        raise unknown("bandwidth", str(rule), (*RULES[:2], "median:4", "neighbour:7", "a number"))
    if name == "neighbour" and not (math.isfinite(number) and number >= 1 and number == int(number)):
        raise UsageError(f"the bandwidth {rule!r} takes a whole number of neighbours, 1 or more, such as neighbour:7.")
    # the least is that whose reciprocal is finite
    if name in ("fixed", "median") and not np.finfo(float).tiny <= number < math.inf:
        raise UsageError(f"a bandwidth is a positive number; got {rule!r}. It has squared units of the distance.")
    return name, number


def blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of the rows, about BLOCK numbers each."""
    height = max(1, BLOCK // max(columns, 1))
    for first in range(0, rows, height):
        yield slice(first, min(first + height, rows))


def gaussian(squared: np.ndarray, epsilon: float) -> np.ndarray:
    """K = exp(-d^2 / (4 eps)), any shape."""
    kernel: np.ndarray = squared * (-0.25 / epsilon)
    np.exp(kernel, out=kernel)
    return kernel


def squared_distances(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """(M, N) between points (M, D) and (N, D).

    From differences for a few coordinates. For many, from one matrix product of points centred on the mean of `theirs`; pairs so close that it lost digits are then taken from differences,
    so that every distance is right to about 1e-10 of itself and repeated points lie at exactly 0.
    """
    return Sites(theirs).to(ours)


@dataclass(frozen=True, eq=False)
class Sites:
    """N points by their coordinates, or by their squared distances alone (or by both, these at hand): rows of squared distances on demand."""

    points: np.ndarray | None  # (N, D)
    squared: np.ndarray | None = None  # (N, N)

    @cached_property
    def _centred(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The mean (D,), the points from there (N, D), and their squared norms (N,)."""
        assert self.points is not None
        centre = self.points.mean(axis=0)
        points = self.points - centre
        return centre, points, np.einsum("ij,ij->i", points, points)

    def __len__(self) -> int:
        known = self.points if self.squared is None else self.squared
        assert known is not None
        return len(known)

    def rows(self, which: slice | np.ndarray) -> np.ndarray:
        """Squared distances (m, N) of these points to all, zero to themselves. May be a view."""
        if self.squared is not None:
            rows: np.ndarray = self.squared[which]
            return rows
        assert self.points is not None
        return self.to(self.points[which])

    def to(self, others: np.ndarray) -> np.ndarray:
        """Squared distances (M, N) of other points, given by coordinates (M, D), or by these distances themselves."""
        if self.points is None:
            return others
        if self.points.shape[1] <= FEW:
            squared: np.ndarray = cdist(others, self.points, "sqeuclidean")
            return squared
        ours = others - self._centred[0]
        return self._product(ours, np.einsum("ij,ij->i", ours, ours))

    def _product(self, ours: np.ndarray, norms: np.ndarray) -> np.ndarray:
        """Squared distances (M, N) of centred points (M, D) with these squared norms (M,), by one matrix product."""
        _, theirs, their_norms = self._centred
        return _expanded(ours @ theirs.T, ours, norms, theirs, their_norms)

    def held(self) -> Sites:
        """The same points with all distances at hand, where one matrix product gives them and they are not too many: half the work of rows by themselves, once."""
        if self.points is None or self.points.shape[1] <= FEW or len(self) > WHOLE:
            return self
        _, centred, norms = self._centred
        squared = np.empty((len(self), len(self)))
        for first in range(0, len(self), PANEL):
            part, rest = slice(first, first + PANEL), slice(first, None)
            panel = _expanded(centred[part] @ centred[rest].T, centred[part], norms[part], centred[rest], norms[rest])
            squared[part, rest] = panel
            squared[rest, part] = panel.T
        return Sites(self.points, squared)

    def light(self) -> Sites:
        """The same points without distances that their coordinates give."""
        return self if self.points is None else Sites(self.points)

    def given(self, rows: slice | np.ndarray, columns: np.ndarray) -> np.ndarray:
        """What `to` of `subset(columns)` takes for these points: their coordinates, or their squared distances to the columns."""
        return self.points[rows] if self.points is not None else self.rows(rows)[:, columns]

    def subset(self, which: np.ndarray) -> Sites:
        """Some of the points: a mask (N,) or indices."""
        if self.points is not None:
            return self if which.dtype == bool and which.all() else Sites(self.points[which])
        assert self.squared is not None
        if which.dtype == bool:
            if which.all():
                return self
            which = np.flatnonzero(which)
        return Sites(None, self.squared[np.ix_(which, which)])

    def sample(self, count: int) -> np.ndarray:
        """Up to `count` indices, spread evenly: a fixed choice, so that equal points give equal answers."""
        return np.linspace(0, len(self) - 1, min(count, len(self))).round().astype(int)

    def nearest(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Each point's nearest, itself among them: squared distances and indices (N, count), in no order."""
        count = min(count, len(self))
        if self.points is not None and self.squared is None and self.points.shape[1] <= FEW:
            distances, places = cKDTree(self.points).query(self.points, k=count)
            return distances.reshape(len(self), count) ** 2, places.reshape(len(self), count)
        squared, places = np.empty((len(self), count)), np.empty((len(self), count), dtype=np.int64)
        if self.squared is None and len(self) >= MANY and (groups := _Groups.of(*self._centred[1:])).spare(count):
            for own, others, rows in groups.near(count):
                best = np.argpartition(rows, count - 1, axis=1)[:, :count]
                places[own], squared[own] = others[best], np.take_along_axis(rows, best, axis=1)
            return squared, places
        held = self.held()
        for part in blocks(len(self), len(self) // 8):
            rows = held.rows(part)
            places[part] = np.argpartition(rows, count - 1, axis=1)[:, :count]
            squared[part] = np.take_along_axis(rows, places[part], axis=1)
        return squared, places

    def within(self, squared_radii: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pairs (i, j, squared distance) with j no further from i than its radius (N, squared)."""
        tree = cKDTree(self.points) if self.points is not None and self.points.shape[1] <= FEW else None
        parts = []
        for part in blocks(len(self), len(self)):
            if tree is None:
                rows = self.rows(part)
                i, j = np.nonzero(rows <= squared_radii[part, None])
                parts.append((i + part.start, j, rows[i, j]))
                continue
            assert self.points is not None
            found = tree.query_ball_point(self.points[part], np.sqrt(squared_radii[part]) * (1 + 1e-9))
            i = np.repeat(np.arange(part.start, part.stop), [len(few) for few in found])
            j = np.concatenate([np.asarray(few, dtype=np.int64) for few in found])
            difference = self.points[i] - self.points[j]
            squared = np.einsum("ij,ij->i", difference, difference)
            kept = squared <= squared_radii[i]
            parts.append((i[kept], j[kept], squared[kept]))
        i, j, squared = (np.concatenate([part[place] for part in parts]) for place in range(3))
        return i, j, squared


def _expanded(products: np.ndarray, ours: np.ndarray, norms: np.ndarray, theirs: np.ndarray, their_norms: np.ndarray) -> np.ndarray:  # fmt: skip
    """Squared distances (M, N) in place of the inner products of points (M, D) and (N, D), given with their squared norms; where digits cancelled, from differences."""
    products *= -2.0
    for part in blocks(*products.shape):
        scale = norms[part, None] + their_norms
        products[part] += scale
        scale *= CANCELLED
        rows, columns = np.nonzero(products[part] <= scale)
        rows += part.start
        for few in blocks(len(rows), theirs.shape[1]):
            difference = ours[rows[few]] - theirs[columns[few]]
            products[rows[few], columns[few]] = np.einsum("ij,ij->i", difference, difference)
    return products


@dataclass(frozen=True, eq=False)
class _Groups:
    """Points of many coordinates in G groups of near ones, each with its centre and radius: neighbours of a group's points lie in groups that the triangle inequality does not rule out. Exact:
    bounds are taken in float32 with a margin, distances in float64."""

    points: np.ndarray  # (N, D)
    norms: np.ndarray  # (N,) squared
    rough: np.ndarray  # (N, D) float32, in units of the largest norm, as all below
    lengths: np.ndarray  # (N,) squared norms
    order: np.ndarray  # (N,) group by group
    bounds: np.ndarray  # (G + 1,) of the groups in that order
    centres: np.ndarray  # (G, D) float32
    reaches: np.ndarray  # (G,) their squared norms
    radii: np.ndarray  # (G,)

    @staticmethod
    def of(points: np.ndarray, norms: np.ndarray) -> _Groups:
        """Halved at the median of the widest of AXES leading principal coordinates (roughly: one power iteration on some points), until GROUP or fewer are left."""
        random = np.random.default_rng(0).standard_normal((points.shape[1], AXES))
        some = points[:: max(1, len(points) // MANY)]
        coordinates = points @ np.linalg.qr(some.T @ (some @ random))[0]
        parts, leaves = [np.arange(len(points))], []
        while parts:
            part = parts.pop()
            if len(part) <= GROUP:
                leaves.append(part)
                continue
            widest = np.ptp(coordinates[part], axis=0).argmax()
            halves = np.argpartition(coordinates[part, widest], len(part) // 2)
            parts += [part[halves[len(part) // 2 :]], part[halves[: len(part) // 2]]]
        scale = math.sqrt(norms.max()) or 1.0
        rough = (points / scale).astype(np.float32)
        centres = np.stack([rough[leaf].mean(axis=0) for leaf in leaves])
        radii = np.array([np.linalg.norm(rough[leaf] - centre, axis=1).max() for leaf, centre in zip(leaves, centres, strict=True)])  # fmt: skip
        bounds = np.cumsum([0, *map(len, leaves)])
        lengths = norms / scale**2
        return _Groups(points, norms, rough, lengths, np.concatenate(leaves), bounds, centres, np.square(centres).sum(axis=1), radii)  # fmt: skip

    def spare(self, count: int) -> bool:
        """Whether most distances need not be taken: of some groups, as of points without structure, nearly all are."""
        some = np.linspace(0, len(self.radii) - 1, 4).round().astype(int)
        sizes = np.diff(self.bounds)
        return bool(np.mean([sizes[self._wanted(group, count)].sum() for group in some]) < SPARED * len(self.order))

    def near(self, count: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Of each group its points (m,), points (M,) that hold the nearest `count` of each, and the squared distances (m, M)."""
        kept = np.empty_like(self.points[:0])
        for group in range(len(self.radii)):
            own, others = self._members([group]), self._members(self._wanted(group, count))
            # memory that is used again costs a third of memory that is new
            if len(kept) < len(others):
                kept = np.empty((2 * len(others), self.points.shape[1]))
            ours, theirs = self.points[own], kept[: len(others)]
            np.take(self.points, others, axis=0, out=theirs, mode="clip")
            yield own, others, _expanded(ours @ theirs.T, ours, self.norms[own], theirs, self.norms[others])

    def _members(self, groups: Sequence[int] | np.ndarray) -> np.ndarray:
        return np.concatenate([self.order[self.bounds[group] : self.bounds[group + 1]] for group in groups])

    def _wanted(self, group: int, count: int) -> np.ndarray:
        """The groups that may hold one of the nearest `count` of a point of this one."""
        own = self._members([group])
        ours, norms = self.rough[own], self.lengths[own]
        rounded = ROUNDED * math.sqrt(ours.shape[1])

        def squared(theirs: np.ndarray, their_norms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            scale = norms[:, None] + their_norms
            return scale - 2 * (ours @ theirs.T), rounded * scale

        rough, margin = squared(self.centres, self.reaches)
        distances = np.sqrt(np.maximum(rough - margin, 0.0))
        ranked = np.argsort(distances.min(axis=0), kind="stable")
        enough = int(np.searchsorted(np.cumsum(np.diff(self.bounds)[ranked]), AHEAD * count)) + 1
        first = self._members(ranked[:enough])
        rough, margin = squared(self.rough[first], self.lengths[first])
        last = np.sqrt(np.partition(rough + margin, count - 1, axis=1)[:, count - 1])
        return np.flatnonzero((distances - self.radii * (1 + rounded) <= last[:, None]).any(axis=0))


def graph(rows: np.ndarray, columns: np.ndarray, values: np.ndarray, alone: np.ndarray, size: int) -> Any:
    """A symmetric sparse matrix (size, size) of pairs that stand twice, or (where `alone`) once, to be mirrored. Indices within a row are in no order."""
    # narrow indices: less to read at each product
    places = np.int32 if 2 * len(rows) < 2**31 else np.int64
    rows, columns = rows.astype(places), columns.astype(places)
    pairs = np.concatenate([rows, columns[alone]]), np.concatenate([columns, rows[alone]])
    one = scipy.sparse.coo_array((np.concatenate([values, values[alone]]), pairs), shape=(size, size))
    one.has_canonical_format = True  # no pair stands twice: no need to sort
    return one.tocsr()


@dataclass(frozen=True, eq=False)
class Pilot:
    """A first estimate of the density of points, for a bandwidth that follows it (Berry & Harlim 2016, section 4).

    q(x) = sum_j w_j exp(-d(x, x_j)^2 / (4 eps s(x) s_j)) / s(x)^d, up to a factor, with s the root mean square distance to the PILOT nearest points (itself among them, for one of the points).
    """

    weights: np.ndarray  # (N,)
    scales: np.ndarray  # (N,) s
    epsilon: float  # by the rule `bgh` on d^2 / (s_i s_j)
    dimension: float  # as given, or of the same curve

    @staticmethod
    def of(sites: Sites, weights: np.ndarray, dimension: float | None, sample: np.ndarray) -> Pilot:
        """Of points (N,), with the curve from the rows `sample`. Raises UsageError where every point is repeated so often that it has no scale."""
        scales = np.sqrt(sites.nearest(PILOT)[0].mean(axis=1))
        if not scales.any():
            raise UsageError("every point is repeated many times and has no scale of its own: take kernel='gaussian'.")
        scales = np.maximum(scales, scales[scales > 0].min())
        chosen = bandwidth(sites.rows(sample) / (scales[sample, None] * scales))
        return Pilot(weights, scales, chosen.epsilon, chosen.dimension if dimension is None else dimension)

    def density(self, squared: np.ndarray) -> np.ndarray:
        """q (M,) at points with these squared distances (M, N)."""
        count = min(PILOT, squared.shape[1])
        scales = np.sqrt(np.partition(squared, count - 1, axis=1)[:, :count].mean(axis=1))
        scales = np.maximum(scales, self.scales.min())
        kernel = gaussian(squared / (scales[:, None] * self.scales), self.epsilon)
        density: np.ndarray = (kernel @ self.weights) / scales**self.dimension
        return density
