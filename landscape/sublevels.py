"""How near random rays and random planes come to a sublevel set, seen from a start: the constrained problem behind Gaussian width and threshold dimension.

Letters: D parameters, E draws, S starting radii, L levels (from the easiest), k dimensions of a plane, M members (what goes in lockstep), n marks of progress, s distance from the start.

    S(eps) = {w : f(w) <= eps},   C = cone(S(eps) - w_0),   g standard normal in R^D
    ray     theta: least angle between C and the ray {t g : t > 0}
    plane   theta_k: least angle between C and a uniformly random k-dimensional subspace; 0 where they meet

All that is asked of S hangs on these angles. With phi(d) = arcsin sqrt(d / D), the angle of a coordinate axis to a random d-dimensional subspace,

    width            w = E max(0, sup <g, (x - w_0) / |x - w_0|>) = a_D E cos theta,   a_D = E|g|   (of g, length and direction are independent)
    polar estimate   E dist^2(g, C) = D E sin^2 theta
    plane estimate   d_k with phi(d_k) = phi(k) + E theta_k

Why phi: a circular cone begins at the angle pi/2 - phi(d*) from its axis, and the axis is at pi/2 - phi(k) from a random plane, so the plane estimate is d* for every k < d*. The polar estimate is the same with k = 0.
For other closed convex cones the two sides agree to lowest order (sqrt(d*) = sqrt(k) + sqrt(D) sin theta_k is the equality case of Gordon's comparison), and d_k is above d* by a little: for a linear subspace by the
distance of the least singular value of a Gaussian matrix to its limit, 5% to 10% where d* is some tens. For sets that are not convex the comparison is an inequality, and the angles give less than the dimension at which
subspaces hit: of many pieces of a set the nearest is nearer to a ray than a piece is on average, while subspaces must still hit one. A plane has less to choose the larger k is, and theta_k = 0 is a hit itself, so that d_k rises with k
to the dimension at which planes hit. k = 0 is Gordon's D - w^2. How far apart they lie tells how far the set is from convex.

k has to stay below d*, for where planes hit no angle is left to measure: all that is known is that they do. It is the polar estimate less two of its standard deviations sqrt(2 d), at least 2.

Directions of error. Every angle found is that of a point met, so it is an upper bound of the true angle: w is bounded from below, E dist^2(g, C) and d_k from above. w is the width of the part of C in the unit ball: a ray with nothing
ahead of it counts as 0, where the supremum over the sphere would be negative; the two differ for cones so small that this is likely. E dist^2(g, C) itself is d* for convex cones only, and about a lower side of it for others.

The problem of each member: with A (k, D) orthonormal rows and w = w_0 + s (A^T u + x / sqrt(D)), u of unit length, x orthogonal to the rows of A,

    minimise |x|^2 / 2   subject to   log f(w) <= log eps          (D tan^2 theta = |x|^2: it is measured in dimensions)

over s, u and x: the distance to the start is free, since it is a cone that is projected on. Augmented Lagrangian, with limited-memory BFGS inside. Levels follow each other down from the loss at the start, with others put
between them where they are far apart, each from the solution of the one before: a low level that is searched for at once ends in worse minima. Every point on the way that lies in a set, of any level, counts for it: a search that is stopped early gives a worse bound, and no wrong one.

Sources: Larsen, Fort, Becker, Ganguli 2022, section 3 (width, local angular dimension); Gordon 1988 (comparison, escape); Amelunxen, Lotz, McCoy, Tropp 2014 (statistical dimension of cones);
Nocedal and Wright, Numerical Optimization, 2nd edition 2006, sections 7.2 (limited memory) and 17.3 (augmented Lagrangian).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from landscape import subspaces
from landscape.cones import expected_norm
from landscape.errors import UsageError
from landscape.objectives import Objective
from landscape.seeds import generator
from landscape.solvers import LimitedMemory, dot, secant

# rays: an estimate d of one has the standard deviation sqrt(2 d), so eight give a fifth at d = 12 and a tenth at 50; planes vary far less
DRAWS = 8
# starting distances, in units of the scale: solutions have been met at a tenth to six times |w_0|, and a search changes its distance by a factor of e in some ten steps
RADII = (0.5, 3.0)
ROUNDS = 12  # of the augmented Lagrangian at a level: the first takes some eight, the next ones three or four
INNER = 15  # quasi-Newton steps of a round
HISTORY = 12  # pairs of step and change that they remember
DAMPING = 0.2  # Powell's own
# the search aims at so much less than log eps, in units of log f(w_0) / eps or 1, whichever is less, so that it ends inside: it moves d* by 0.005 dd* / dlog eps, a tenth of a dimension on digits
MARGIN = 0.005
PENALTY = 30.0  # first one, in dimensions per square of such units; threefold where a round leaves more than a quarter of the distance to the level
RUNG = 2.5  # most that a level lies below the one before
STEP = 0.3  # most that a step changes the distance s, relatively
TRIALS = 8  # of a search along a direction
SUFFICIENT = 1e-4  # of its decrease, as is usual for quasi-Newton steps
# a member has ended when a round changes |x|^2 / 2 by no more than these, relatively or in dimensions: a fifth of a standard error at most
SETTLED = (0.02, 0.2)
BYTES = 2**30  # of history, and of planes: beyond, members go one group after another, and fewer draws have planes
RETREATS = 12  # quarterings of a starting radius where the loss is not finite


@dataclass(frozen=True, eq=False)
class Sight:
    """What E random rays and planes see of L sublevel sets from a start. Angles in radians; NaN where no point of the set was met, 0 everywhere for a set that holds the start."""

    levels: np.ndarray  # (L,) from the highest
    inside: np.ndarray  # (L,) bool: the start lies in the set
    angles: np.ndarray  # (E, L) theta, the least found between g and w - w_0, over all points w met with f <= level
    distances: np.ndarray  # (E, L) |w - w_0| there
    radii: np.ndarray  # (S,) starting distances
    by_radius: np.ndarray  # (S, E, L) theta from each alone; NaN from where it met no set and another did
    plane_dims: np.ndarray  # (L,) k; 0 where there were no planes
    plane_angles: np.ndarray  # (P, L) theta_k of the first P of the draws
    plane_distances: np.ndarray  # (P, L)
    marks: np.ndarray  # (n,) gradients a draw of rays had cost when
    progress: np.ndarray  # (n, E, L) theta was this
    losses: np.ndarray  # (E,) the lowest met
    failed: np.ndarray  # (S, E) bool: the loss at the starting radius was not finite, and the search began nearer
    ambient: int  # D
    evaluations: int  # values with gradient, of one point each

    @property
    def reached(self) -> np.ndarray:
        """How many draws (L,) met a point of each set."""
        met: np.ndarray = np.isfinite(self.angles).sum(0)
        return met

    def polar(self, angles: np.ndarray | None = None) -> np.ndarray:
        """Samples (E, L) of D sin^2 theta, whose mean is the polar estimate. A draw that met nothing counts as D, the most that it could be."""
        found: np.ndarray = self.ambient * np.sin(_least(self.angles if angles is None else angles)) ** 2
        return found

    def widths(self) -> np.ndarray:
        """Samples (E, L) of a_D cos theta, whose mean is the width of the part of C in the unit ball. A draw that met nothing counts as 0, the least that it could be."""
        found: np.ndarray = expected_norm(self.ambient) * np.cos(_least(self.angles))
        return found

    def planes(self) -> np.ndarray:
        """Samples (P, L) of the plane estimate d_k; k where a plane hits; NaN where there was no plane or no point was met."""
        own = np.arcsin(np.sqrt(self.plane_dims / self.ambient))
        found: np.ndarray = self.ambient * np.sin(_least(own + self.plane_angles)) ** 2
        return np.where(np.isfinite(self.plane_angles) & ((self.plane_dims > 0) | self.inside), found, np.nan)


def _least(angles: np.ndarray) -> np.ndarray:
    return np.minimum(np.where(np.isnan(angles), np.pi / 2, angles), np.pi / 2)


def nearest(
    f: Objective,
    start: Tensor,
    levels: Sequence[float],
    *,
    draws: int = DRAWS,
    radii: Sequence[float] | None = None,
    planes: bool = True,
    rounds: int = ROUNDS,
    seed: int = 0,
) -> Sight:
    """The least angles between E random rays, and planes, and the cones of sublevel sets seen from `start` (D,). All draws and starting radii go in lockstep.

    levels: of f, positive (what is followed is log f). radii: starting distances |w - w_0|; by default `RADII` times |start|, or times 1 at the origin.
    planes: also half as many planes, of k dimensions, k chosen by level; none where the polar estimate is less than 4, or D.
    rounds: at most so many of the augmented Lagrangian at a level.
    Raises UsageError for levels or radii that are not positive and finite, a start whose loss is not finite, fewer than 2 draws, no round, D = 1.
    """
    wanted = require_levels(levels)
    if draws < 2 or rounds < 1:
        raise UsageError(
            f"an estimate with an error takes at least 2 draws, and a search 1 round; got {draws} and {rounds}."
        )
    if f.dim < 2:
        raise UsageError("an angle takes at least 2 parameters; got D = 1, where a ray points to the set or away.")
    initial = float(f(start))
    if not math.isfinite(initial):
        raise UsageError(
            f"the loss at the start is {initial}: no set is seen from there. Take another step of the run."
        )
    scale = float(start.norm()) or 1.0
    begin = np.array([factor * scale for factor in RADII] if radii is None else [float(radius) for radius in radii])
    if not len(begin) or not (np.isfinite(begin) & (begin > 0)).all():
        raise UsageError(f"starting radii are positive and finite; got {begin.tolist()}.")
    inside = initial <= wanted
    gaze = _Gaze(f, start, initial, _ladder(initial, wanted[~inside]))
    asked, count = np.isin(gaze.levels, wanted), len(gaze.levels)
    rows = torch.stack([_rows(start, 1, seed, draw) for draw in range(draws)])
    members = _Members(gaze, rows.repeat(len(begin), 1, 1), np.tile(np.arange(draws), len(begin)))
    marks, progress = _rays(members, begin, draws, rounds) if count else (np.zeros(0), np.zeros((0, draws, 0)))
    by_radius = members.angles.reshape(len(begin), draws, count)
    best = np.where(np.isnan(by_radius), np.inf, by_radius).argmin(0)  # (E, L) of the radii
    angles, distances = (
        np.take_along_axis(found.reshape(len(begin), draws, count), best[None], 0)[0]
        for found in (members.angles, members.distances)
    )
    dims = _plane_dims(angles, f.dim) if planes else np.zeros(count, dtype=int)
    # as many as fit in memory, and one alone has no error
    crossing = min(max(2, draws // 2), BYTES // (max(1, int(dims.max(initial=0))) * f.dim * start.element_size()))
    dims = dims * (crossing > 1)
    seen = distant = np.full((max(2, draws // 2), count), np.nan)
    if dims.any():
        typical = float(np.nanmedian(distances[:, dims.argmax()]))
        seen, distant = _planes(gaze, typical, dims, crossing, rounds, seed)
    angles, distances, by_radius, seen, distant, progress = (
        _among(found[..., asked], inside) for found in (angles, distances, by_radius, seen, distant, progress)
    )
    plane_dims = np.zeros(len(wanted), dtype=int)
    plane_dims[~inside] = dims[asked]
    losses, failed = (part.reshape(len(begin), draws) for part in (members.losses, members.failed))
    return Sight(
        wanted, inside, angles, distances, begin, by_radius, plane_dims, seen, distant, marks, progress,
        losses.min(0), failed, f.dim, gaze.evaluations,
    )  # fmt: skip


def _ladder(initial: float, levels: np.ndarray) -> np.ndarray:
    """The levels (L,), and between them and the loss at the start so many others, evenly in their logarithm, that none lies more than RUNG below the one before."""
    rungs: list[float] = []
    above = initial
    for level in levels.tolist():
        steps = max(1, math.ceil(math.log(above / level) / math.log(RUNG) - 1e-9))
        rungs += [above * (level / above) ** (step / steps) for step in range(1, steps)]
        rungs.append(level)
        above = level
    return np.array(rungs)


def _plane_dims(angles: np.ndarray, ambient: int) -> np.ndarray:
    """k (L,) for rays at angles (E, L); 0 where there is no room for planes between a line and the estimate, or no ray met the set."""
    met = np.isfinite(angles)
    polar = ambient * np.where(met, np.sin(np.where(met, angles, 0)) ** 2, 0).sum(0) / np.maximum(met.sum(0), 1)
    dims = np.maximum(np.floor(polar - 2 * np.sqrt(2 * polar)), 2).astype(int)
    found: np.ndarray = dims * (polar >= 4) * (dims < ambient - 1)
    return found


def require_levels(levels: Sequence[float]) -> np.ndarray:
    """The levels (L,) from the highest, each once. Raises UsageError where there is none, or one that is not positive and finite."""
    wanted = np.array(sorted({float(level) for level in levels}, reverse=True))
    if not len(wanted) or not (np.isfinite(wanted) & (wanted > 0)).all():
        raise UsageError(
            f"levels of the loss are positive and finite; got {', '.join(f'{level:g}' for level in levels) or 'none'}. Shift a loss that goes below 0."
        )
    return wanted


def _among(found: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Columns (..., L) of all levels from those that do not hold the start; the others are 0."""
    whole = np.zeros((*found.shape[:-1], len(inside)))
    whole[..., ~inside] = found
    return whole


def _rows(start: Tensor, count: int, seed: int, draw: int) -> Tensor:
    """Orthonormal rows (count, D) of a draw, uniform; the first is the direction of its ray, whatever the count."""
    space = subspaces.random(start, count, generator(seed, "width", draw), "haar")
    return space.push(torch.eye(count, dtype=start.dtype, device=start.device))


def _rays(members: _Members, radii: np.ndarray, draws: int, rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """Search along rays from all radii, level by level. Returns marks (n,) and the best angles (n, E, L) there."""
    gaze = members.gaze
    z = members.begin(np.repeat(radii, draws), torch.ones(len(radii) * draws, 1))
    marks: list[float] = []
    progress: list[np.ndarray] = []
    for place in range(len(gaze.levels)):
        for _ in members.follow(z, place, rounds):
            marks.append(gaze.evaluations / draws)
            progress.append(np.fmin.reduce(members.angles.reshape(len(radii), draws, -1), axis=0))
    return np.array(marks), np.array(progress).reshape(len(marks), draws, len(gaze.levels))


def _planes(
    gaze: _Gaze, distance: float, dims: np.ndarray, draws: int, rounds: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Angles and distances (P, L) of P planes of `dims` (L,) dimensions each, from a random point of each at `distance`. Planes of one draw are nested, and levels follow each other.

    From the solution of a ray that lies in the plane, the search ends in worse minima: at four to twelve times the angle squared on digits.
    """
    most = int(dims.max())
    bases = torch.stack([_rows(gaze.start, most, seed, draw) for draw in range(draws)])
    within = [
        torch.randn(most, generator=generator(seed, "within", draw), dtype=torch.float64) for draw in range(draws)
    ]
    everyone = np.arange(draws)
    found = np.full((2, draws, len(dims)), np.nan)
    v = None
    for place, count in enumerate(dims):
        if not count:
            continue
        members = _Members(gaze, bases[:, :count], everyone)
        z = members.begin(np.full(draws, distance), torch.stack(within)[:, :count]) if v is None else members.at(v)
        for _ in members.follow(z, place, rounds):
            pass
        v = members.displacement(z, everyone)[0]
        flat = z.clone()
        flat[:, : len(gaze.start)] = 0  # where a plane hits, what is left of x is rounding
        members.look(flat, everyone)
        found[:, :, place] = members.angles[:, place], members.distances[:, place]
    return found[0], found[1]


class _Gaze:
    """What members share: the objective, the start (D,), the levels (L,), and for each the unit (L,) in which log f is measured."""

    def __init__(self, f: Objective, start: Tensor, initial: float, levels: np.ndarray) -> None:
        self.f, self.start, self.levels = f, start, levels
        self.units = np.minimum(
            np.log(initial / levels), 1.0
        )  # where the set is near, or the loss has a floor, small differences count
        self.evaluations = 0


class _Members:
    """M searches in lockstep, each of a ray or plane with orthonormal rows `bases` (M, k, D). Coordinates z (M, D + k): x (D,), and s u (k,) in units of a length of its own."""

    def __init__(self, gaze: _Gaze, bases: Tensor, draws: np.ndarray) -> None:
        self.gaze, self.bases, self.draws = gaze, bases, draws  # draws (M,): of each member
        count, levels, start = len(bases), len(gaze.levels), gaze.start
        self.place = 0  # of the level that is aimed at
        self.scale = torch.ones(count, dtype=start.dtype, device=start.device)
        self.held = torch.zeros(count, 1, dtype=start.dtype, device=start.device)  # 1: the distance stands still
        self.angles = np.full((count, levels), np.nan)  # the least that were met, and the distances there
        self.distances = np.full((count, levels), np.nan)
        self.losses = np.full(count, np.inf)
        self.failed = np.zeros(count, dtype=bool)
        self.alive = np.ones(count, dtype=bool)

    # -- coordinates ---------------------------------------------------------

    def begin(self, radii: np.ndarray, directions: Tensor) -> Tensor:
        """Coordinates at distances `radii` (M,) along directions (M, k) in their planes, or nearer where the loss is not finite there."""
        self.scale = torch.from_numpy(radii).to(self.scale)
        inside = directions.to(self.scale)
        nothing = inside.new_zeros(len(radii), len(self.gaze.start))
        z = torch.cat([nothing, inside / inside.norm(dim=1, keepdim=True)], dim=1)
        wrong = np.arange(len(radii))
        for _ in range(RETREATS):
            if not len(wrong):
                break
            losses = self.look(z[wrong], wrong)[0].cpu().numpy()
            wrong = wrong[~np.isfinite(losses)]
            self.failed[wrong] = True
            self.scale[wrong] /= 4
        return z

    def at(self, v: Tensor) -> Tensor:
        """Coordinates of displacements v (M, D)."""
        which = np.arange(len(v))
        along = self._project(v, which)
        self.scale = along.norm(dim=1)
        rest = (v - self._push(along, which)) * (math.sqrt(v.shape[1]) / self.scale)[:, None]
        return torch.cat([rest, along / self.scale[:, None]], dim=1)

    def displacement(self, z: Tensor, which: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """w - w_0 (m, D) at coordinates of the members `which`, and of it the part t (m, k) in the plane and its length (m, 1)."""
        ambient = len(self.gaze.start)
        t = z[:, ambient:] * self.scale[which, None]
        length = t.norm(dim=1, keepdim=True)
        return self._push(t, which) + length / math.sqrt(ambient) * z[:, :ambient], t, length

    def _push(self, t: Tensor, which: np.ndarray) -> Tensor:
        """A^T t (m, D)."""
        return (t[:, None] @ self._bases(which))[:, 0]

    def _project(self, v: Tensor, which: np.ndarray) -> Tensor:
        """A v (m, k)."""
        return (self._bases(which) @ v[:, :, None])[:, :, 0]

    def _bases(self, which: np.ndarray) -> Tensor:
        return self.bases if len(which) == len(self.bases) else self.bases[which]

    # -- values --------------------------------------------------------------

    def look(self, z: Tensor, which: np.ndarray) -> tuple[Tensor, Tensor]:
        """How far log f is above the level (m,), in its units, and the gradient of that (m, D + k), at coordinates of the members `which` (m,). What lies in a set is noted."""
        gaze, ambient = self.gaze, len(self.gaze.start)
        level, unit = float(gaze.levels[self.place]), float(gaze.units[self.place])
        x = z[:, :ambient]
        v, t, length = self.displacement(z, which)
        loss, slope = gaze.f.value_and_gradient(gaze.start + v)
        gaze.evaluations += len(z)
        self._note(x, v, loss, which)
        # a loss of 0 lies in every set; its logarithm should not be minus infinity
        loss = loss.clamp_min(level * 1e-6)
        slope = slope / (unit * loss).to(z.dtype)[:, None]
        along = self._project(slope, which)
        by_x = length / math.sqrt(ambient) * (slope - self._push(along, which))
        by_t = along + t / length * (dot(slope, x)[:, None] / math.sqrt(ambient))
        outward = t / length
        by_t = by_t - self.held[which] * dot(by_t, outward)[:, None] * outward
        return (loss / level).log().to(z.dtype) / unit + MARGIN, torch.cat(
            [by_x, by_t * self.scale[which, None]], dim=1
        )

    def _note(self, x: Tensor, v: Tensor, loss: Tensor, which: np.ndarray) -> None:
        found = loss.double().cpu().numpy()
        self.losses[which] = np.fmin(self.losses[which], found)
        lengths = v.norm(dim=1).double().cpu().numpy()
        angle = np.arctan(x.norm(dim=1).double().cpu().numpy() / math.sqrt(x.shape[1]))
        for place, level in enumerate(self.gaze.levels):
            # false for NaN on the left: nothing was met before
            better = (found <= level) & ~(self.angles[which, place] <= angle)
            own = which[better]
            self.angles[own, place] = angle[better]
            self.distances[own, place] = lengths[better]

    # -- the search ----------------------------------------------------------

    def follow(self, z: Tensor, place: int, rounds: int) -> Iterator[None]:
        """Rounds of the augmented Lagrangian to a level. Each moves the coordinates z (M, D + k), and ends with a pause.

        Who has not met its set is given up where another of its draw has. Else it goes once more from where it began, at a distance that is held until the multiplier has settled: with a small one, and a start that
        nearly lies in the set, the way to less is back to the start.
        """
        self.place = place
        self.held[:] = 0
        origin = z.clone()
        yield from self._rounds(z, np.flatnonzero(self.alive), rounds)
        met = np.isfinite(self.angles[:, place])
        draws = np.unique(self.draws[met])
        self.alive &= met | ~np.isin(self.draws, draws)
        lost = np.flatnonzero(self.alive & ~met)
        if len(lost):
            z[lost], self.held[lost] = origin[lost], 1
            yield from self._rounds(z, lost, rounds)

    def _rounds(self, z: Tensor, live: np.ndarray, rounds: int) -> Iterator[None]:
        ambient = len(self.gaze.start)
        # at a solution x = -multiplier * (slope by x); elsewhere the least squares of that
        by_x = self.look(z[live], live)[1][:, :ambient]
        multipliers, penalties, gaps, costs = (
            torch.full_like(z[:, 0], value) for value in (0.0, PENALTY, math.inf, math.inf)
        )
        multipliers[live] = (
            (-dot(z[live, :ambient], by_x) / dot(by_x, by_x).clamp_min(1e-30)).nan_to_num(0).clamp_min(0)
        )
        room = max(1, BYTES // (2 * HISTORY * z.shape[1] * z.element_size()))
        for _ in range(rounds):
            still = np.zeros(len(z), dtype=bool)
            for first in range(0, len(live), room):
                own = live[first : first + room]
                z[own], gap = self._descend(z[own], own, penalties[own], multipliers[own])
                cost = dot(z[own, :ambient], z[own, :ambient]) / 2
                met = gap.abs() <= MARGIN
                change = (cost - costs[own]).abs()
                settled = met & (change <= (SETTLED[0] * cost).clamp_min(SETTLED[1]))
                still[own] = (settled & (self.held[own, 0] == 0)).cpu().numpy()
                # the set may not be met at this distance
                stuck = (gap > MARGIN) & (gap > 0.9 * gaps[own])
                self.held[own] *= ~(settled | stuck)[:, None]
                multipliers[own] = (multipliers[own] + penalties[own] * gap).clamp_min(0)
                slow = ~met & (gap.abs() > gaps[own] / 4)
                penalties[own] = torch.where(slow, 3 * penalties[own], penalties[own])
                gaps[own], costs[own] = gap.abs(), cost
            yield
            live = live[~still[live]]
            if not len(live):
                return

    def _descend(self, z: Tensor, which: np.ndarray, penalties: Tensor, multipliers: Tensor) -> tuple[Tensor, Tensor]:
        """`INNER` quasi-Newton steps on |x|^2 / 2 + (max(0, multiplier + penalty c)^2 - multiplier^2) / (2 penalty), c as `look` has it. Returns coordinates and c."""
        ambient = len(self.gaze.start)

        def lagrangian(z: Tensor, among: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            gap, slope = self.look(z, which[among.cpu().numpy()])
            force = (multipliers[among] + penalties[among] * gap).clamp_min(0)
            cost = dot(z[:, :ambient], z[:, :ambient]) / 2
            slope = force[:, None] * slope
            slope[:, :ambient] += z[:, :ambient]
            return cost + (force**2 - multipliers[among] ** 2) / (2 * penalties[among]), slope, gap

        rule = LimitedMemory()
        everyone = torch.arange(len(z), device=z.device)
        value, slope, gap = lagrangian(z, everyone)
        first = 1 / slope.norm(dim=1).clamp_min(1)
        held = list(rule.fresh(z, HISTORY, first))
        for _ in range(INNER):
            direction = -rule.times(held, slope, first)
            steep = dot(direction, slope)
            lost = ~(steep < 0)  # rounding: forget, and go down the gradient
            direction = torch.where(lost[:, None], -first[:, None] * slope, direction)
            steep = torch.where(lost, dot(direction, slope), steep)
            far = direction[:, ambient:].norm(dim=1) / z[:, ambient:].norm(dim=1)
            length = (STEP / far).clamp_max(1)
            place, after, height, left = z.clone(), slope.clone(), value.clone(), gap.clone()
            among = everyone[slope.isfinite().all(1)]
            for _ in range(TRIALS):
                if not len(among):
                    break
                there = z[among] + length[among, None] * direction[among]
                reached, tilt, distance = lagrangian(there, among)
                promised = SUFFICIENT * length[among] * steep[among]
                good = reached <= value[among] + promised
                own = among[good]
                place[own], after[own], height[own], left[own] = there[good], tilt[good], reached[good], distance[good]
                among, reached = among[~good], reached[~good]
                # the least of the parabola through both values and the first slope, not too near to either end
                bend = reached - value[among] - length[among] * steep[among]
                share = -steep[among] * length[among] / (2 * bend)
                length[among] *= torch.where(share.isfinite(), share.clamp(0.1, 0.5), torch.full_like(share, 0.2))
            moved = torch.where(lost[:, None], torch.zeros_like(z), place - z)
            pair, _ = secant(moved, after - slope, -length[:, None] * slope, DAMPING)
            held = rule.learn(held, pair)
            z, slope, value, gap = place, after, height, left
        return z, gap
