"""Straight rays through a sublevel set: where they enter it, where they leave it, how often.

Letters: D parameters, E directions (one ray each), K distances on a ray (0 first), L levels (highest first), C crossings.

    S(level)   = {w : f(w) <= level}
    ray e      : r -> start + r u_e,  r >= 0, |u_e| = 1: distances are L2 lengths in parameter space
    intervals  of r in which ray e is inside S(level); S is star-shaped about a start inside it where every ray has one interval

The loss is taken at K distances, and each change between two of them, from outside to inside or back, is narrowed by bisection. What happens twice between two neighbours is not seen, and so each
statement about a ray is one-sided: it reaches S at least where it is found to, its first entry and first exit are at most those found, and it has at least as many intervals.

A loss that is NaN or infinite is at most no level: such a point is outside, and the edge of the region where the loss is a number is an exit like any other. It is kept as it is, and counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from landscape.errors import UsageError
from landscape.objectives import Objective, require_finite
from landscape.seeds import generator

# of a crossing, relative to its distance and to nothing else, since the first radius says nothing of a crossing before it: some six bisections between radii that differ by a tenth,
# and far below the spread over directions
TOLERANCE = 1e-3
LEAST_TOLERANCE = 1e-12  # float64 does not tell less apart


@dataclass(frozen=True, eq=False)
class Rays:
    """The loss along E rays from one start, and where they cross L levels."""

    levels: np.ndarray  # (L,) from the highest
    distances: np.ndarray  # (E, K) increasing from 0
    losses: np.ndarray  # (E, K); NaN and infinite as met
    ray: np.ndarray  # (C,) place of its direction; crossings stand in the order of rays, levels, distances
    level: np.ndarray  # (C,) place of its level
    entering: np.ndarray  # (C,) whether it goes into the set
    crossing: np.ndarray  # (C,) distance from the start
    error: np.ndarray  # (C,) at most so far from a true crossing: within the tolerance, or all of the distance where rounding tells it not from the start

    @property
    def inside(self) -> np.ndarray:
        """(E, L, K): whether the point is in the set."""
        found: np.ndarray = self.losses[:, None] <= self.levels[:, None]  # NaN is not
        return found

    @property
    def intervals(self) -> np.ndarray:
        """(E, L): how many are met; at least so many there are."""
        counts = self.inside[..., 0].astype(int)
        np.add.at(counts, (self.ray[self.entering], self.level[self.entering]), 1)
        return counts

    @property
    def entries(self) -> np.ndarray:
        """(E, L): distance of the first point inside, 0 for a start inside; infinity where none is met up to the last distance."""
        return np.where(self.inside[..., 0], 0.0, self._first(self.entering))

    @property
    def exits(self) -> np.ndarray:
        """(E, L): distance at which the first interval ends; infinity where it does not up to the last distance, NaN where there is none."""
        return np.where(self.intervals > 0, self._first(~self.entering), np.nan)

    def _first(self, chosen: np.ndarray) -> np.ndarray:
        found = np.full((len(self.losses), len(self.levels)), np.inf)
        np.minimum.at(found, (self.ray[chosen], self.level[chosen]), self.crossing[chosen])
        return found

    def stretches(self, ray: int, level: int) -> np.ndarray:
        """The intervals of one ray in one set, (intervals, 2); the last distance stands for an end that is not met."""
        crossed = self.crossing[(self.ray == ray) & (self.level == level)]
        first, last = self.inside[ray, level, [0, -1]]
        ends = [*([0.0] if first else []), *crossed, *([self.distances[ray, -1]] if last else [])]
        return np.array(ends).reshape(-1, 2)


def random_directions(dim: int, count: int, seed: int) -> Tensor:
    """`count` directions (count, D) uniform on the unit sphere, float64 on the CPU, of the stream (seed, "rays"): the first of many are those of few."""
    if count < 1:
        raise UsageError(f"at least 1 direction is needed; got {count}.")
    stream = generator(seed, "rays")
    # one after another: a block of another size would be filled in another order
    drawn = torch.stack([torch.randn(dim, generator=stream, dtype=torch.float64) for _ in range(count)])
    drawn /= drawn.norm(dim=1, keepdim=True)
    return drawn


def rays(
    f: Objective,
    start: Tensor,
    directions: Tensor,
    radii: np.ndarray,
    levels: Sequence[float],
    *,
    tolerance: float = TOLERANCE,
) -> Rays:
    """Follow the rays from `start` (D,) along unit `directions` (E, D), all at once, and find where they cross the levels.

    radii: distances at which the loss is taken, increasing and positive, (K - 1,) or of each ray its own (E, K - 1); 0 is put before them. Crossings closer to each other than neighbouring radii may be missed.
    tolerance: of a crossing's distance, relative to it. One that is nearer to the start than its coordinates are rounded is left at that.

    Memory: some 3 E D numbers. Costs E K evaluations and about log2(gap / tolerance) for each crossing, of a gap relative to its distance: a first radius far beyond a crossing costs bisections, and no accuracy.
    Raises UsageError for directions, radii or levels that are none, LandscapeError where f(start) is not finite.
    """
    sought = np.unique(np.asarray(levels, dtype=float))[::-1]
    if not len(sought) or not np.isfinite(sought).all():
        raise UsageError(f"levels are one or more finite numbers; got {list(levels)}.")
    if not LEAST_TOLERANCE <= tolerance < 1:
        raise UsageError(f"the tolerance of a crossing lies between {LEAST_TOLERANCE:g} and 1; got {tolerance:g}.")
    if start.shape != (f.dim,) or directions.ndim != 2 or directions.shape[1:] != start.shape or not len(directions):
        shapes = tuple(start.shape), tuple(directions.shape)
        raise UsageError(f"rays have a start ({f.dim},) and directions (E, {f.dim}); got {shapes[0]} and {shapes[1]}.")
    lengths = directions.double().norm(dim=1)
    if not bool(((lengths - 1).abs() < 1e-5).all()):  # more than the rounding of float32
        raise UsageError(f"directions of rays have length 1; got lengths {lengths.min():g} to {lengths.max():g}.")
    try:
        ahead = np.broadcast_to(np.asarray(radii, dtype=float), (len(directions), np.shape(radii)[-1]))
    except (ValueError, IndexError):
        raise UsageError(f"radii have shape (K,) or ({len(directions)}, K); got {np.shape(radii)}.") from None
    distances = np.concatenate([np.zeros((len(directions), 1)), ahead], axis=1)
    if distances.shape[1] < 2 or not (np.isfinite(distances).all() and (np.diff(distances) > 0).all()):
        raise UsageError("radii are one or more positive, finite and increasing distances.")

    start = start.detach().to(f.device, f.dtype)
    directions = directions.detach().to(f.device, f.dtype)
    here = f(start)
    require_finite(here, "the loss at the start of the rays")

    def at(ray: np.ndarray, distance: np.ndarray) -> np.ndarray:
        """Losses at one distance on each of some rays, no more points at once than there are directions."""
        found = np.empty(len(ray))
        for block in np.array_split(np.arange(len(ray)), math.ceil(len(ray) / len(directions))):
            steps = torch.from_numpy(distance[block]).to(start)[:, None]
            found[block] = f(start + steps * directions[torch.from_numpy(ray[block])]).double().cpu().numpy()
        return found

    every = np.arange(len(directions))
    losses = np.column_stack(
        [np.full(len(every), float(here)), *(at(every, column) for column in distances[:, 1:].T)],
    )
    inside = losses[:, None] <= sought[:, None]
    ray, level, node = np.nonzero(inside[..., 1:] != inside[..., :-1])
    entering = inside[ray, level, node + 1]
    low, high = distances[ray, node], distances[ray, node + 1]
    # nearer than a rounding of its coordinates, a point of a ray is the start; from 0 every distance is told apart that is a number
    limits = torch.finfo(f.dtype)
    nearest = max(limits.eps * float(start.double().norm()), limits.tiny)
    while len(open_ := np.flatnonzero((high - low > 2 * tolerance * high) & (high > nearest))):
        middle = (low[open_] + high[open_]) / 2
        beyond = (at(ray[open_], middle) <= sought[level[open_]]) == entering[open_]
        high[open_] = np.where(beyond, middle, high[open_])
        low[open_] = np.where(beyond, low[open_], middle)
    return Rays(sought, distances, losses, ray, level, entering, (low + high) / 2, (high - low) / 2)
