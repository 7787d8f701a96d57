"""Rules of descent that look again at the loss of their mini-batch within a step: quasi-Newton and Newton directions, and searches along them.

Letters: D parameters, d coordinates, E ensemble, h pairs of history. A point is (d,) or (E, d), a number of each member () or (E,): written (...,) below. Members go in
lockstep, each with a step, an inverse Hessian and a failure of its own; NaN in one is nothing to the others.

    p = -H g;   z' = z + a p, with a found by a search on the SAME mini-batch;   s = a p,  y = change of the gradient along s;   H from all (s, y) so far

bfgs: H (d, d) by the BFGS update, from lr * scale * I. lbfgs: the same from the last h pairs, without a matrix, from (s.y / y.y) I of the newest. In a subspace, bfgs is the P-BFGS
of Li et al. 2022. Powell's damping keeps H positive definite on any loss: where s.y < damping * s.Bs it is y <- theta y + (1 - theta) B s with s.y = damping * s.Bs.
Here B s = -a g, since p = -H g: B = H^-1 is never needed.

newton, gauss-newton: H^-1 = |M| + ridge * max|eigenvalue| * I, with M the exact Hessian or Gauss-Newton matrix of the mini-batch and |M| that with the absolute
values of its eigenvalues. So p always descends: it leaves a saddle along negative curvature (Dauphin et al. 2014) where a plain Newton step would go to it, and where a trust region would need
a solve for each trial. The ridge keeps directions without curvature from going far, and adapts as Marquardt's: one of the first tried steps that is taken has brought at least twice
`sufficient` of what the quadratic model promised, so the model is good and the ridge is divided by 10; where the search had to shorten it, or failed, it is multiplied by 10.

A search that fails: no trial was acceptable, all were NaN, or the direction does not descend (only H that rounding or undamped secants broke gives one: it is then forgotten).

Sources: Nocedal and Wright, Numerical Optimization, 2nd edition 2006: 3.1 (Armijo, Wolfe), algorithms 3.5 and 3.6 (search), 6.1 (BFGS), 7.4 (L-BFGS), procedure 18.2 (damping);
Powell 1978; Marquardt 1963; Li, Tan, Huang, Tao, Liu, Huang 2022, section on P-BFGS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor

from landscape.errors import UsageError

if TYPE_CHECKING:
    from landscape.descent import Recipe, State

Matrix = Literal["hessian", "gauss-newton"]
MATRICES: dict[str, Matrix] = {"newton": "hessian", "gauss-newton": "gauss-newton"}
SOLVERS = ("bfgs", "lbfgs", *MATRICES)
SECANTS = ("same", "cross")
SEARCHES = ("armijo", "wolfe", "none")
FAILURES = ("skip", "take", "reset")
COUNTS = ("evaluations", "failed_searches", "damped_updates")

# an exact matrix takes d products of the cost of two passes each, and a step a decomposition of d^3
NEWTON_DIM = 4096
# inverse Hessians beyond this are refused, as dense bases are (see `landscape.subspaces`)
DENSE_BYTES = 4 * 2**30
# a secant of less curvature s.y is left out: that of P-BFGS's code. It also keeps 1 / s.y in float32's range
LEAST_CURVATURE = 1e-20
# of the ridge, up and down: Marquardt's
RIDGE_FACTOR = 10.0
# a ridge of a thousand largest eigenvalues is a gradient step already
RIDGE_MOST = 1e3
# no interpolated trial comes nearer than this share of the bracket to its ends, so that the bracket always shrinks (Nocedal and Wright, section 3.5)
BRACKET_MARGIN = 0.1


class Batch(Protocol):
    """The loss of one mini-batch as a function of points, in train mode: the same rows, augmentation and dropout in every call, and nothing is changed by one."""

    @property
    def repeats(self) -> bool:
        """Whether the next step sees the same function, so that a gradient at its point is the next step's own."""

    def along(self, z: Tensor, p: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """The loss on the lines z + a p: (lengths a (...,), among (...,)) -> loss (...,). Where `among` is false it is not asked for, and may be NaN."""

    def slopes(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Loss (...,) and gradient (..., d)."""

    def matrix(self, z: Tensor, name: Matrix) -> Tensor:
        """Matrix of second derivatives (..., d, d)."""


def check(dim: int, members: int, dtype: torch.dtype, recipe: Recipe) -> None:
    """Raise UsageError where the matrices (d, d) of E members would not fit."""
    if recipe.optimizer in MATRICES and dim > NEWTON_DIM:
        raise UsageError(
            f"{recipe.optimizer} takes {dim} products and decomposes a {dim} x {dim} matrix at every step. Allowed: up to {NEWTON_DIM} dimensions. "
            "Use lbfgs, or descend in a subspace."
        )
    size = members * dim * dim * dtype.itemsize
    if recipe.optimizer != "lbfgs" and size > DENSE_BYTES:
        raise UsageError(
            f"{recipe.optimizer} holds a {dim} x {dim} matrix for each of {members} member(s): {size / 2**30:.1f} GiB (allowed: {DENSE_BYTES / 2**30:.0f}). "
            "Use lbfgs, or descend in a subspace."
        )


def fresh(point: Tensor, recipe: Recipe, first: Tensor) -> tuple[Tensor, ...]:
    """Moments before a first step. first: lr * scale (...,).

    bfgs: (H (..., d, d), ...), lbfgs: (S (..., h, d), Y (..., h, d), 1 / s.y (..., h), ...), oldest pair first and 0 where there is none yet;
    with cross secants then the last step (..., d), the gradient that it started from (..., d) and its length (...,); newton and gauss-newton: (ridge (...,), ...);
    last of all the counts (..., 3) int64, in the order of `COUNTS`.
    """
    lead = point.shape[:-1]
    counts = torch.zeros(*lead, len(COUNTS), dtype=torch.int64, device=point.device)
    counts[..., 0] = 1  # the pass of the first state
    if recipe.optimizer in MATRICES:
        return point.new_full(lead, recipe.ridge), counts
    last = () if recipe.secants == "same" else (torch.zeros_like(point), torch.zeros_like(point), point.new_zeros(lead))
    return *_rule(recipe).fresh(point, recipe.history, first), *last, counts


def carried(moments: tuple[Tensor, ...], before: tuple[Tensor, ...], recipe: Recipe) -> tuple[Tensor, ...]:
    """Fresh moments with the counts of those before, where these have any."""
    return (*moments[:-1], before[-1]) if before and recipe.optimizer in SOLVERS else moments


def counts(state: State | tuple[Tensor, ...], recipe: Recipe) -> dict[str, Tensor]:
    """What a state, or its moments, have cost so far, () or (E,) int64 each; empty for sgd and adam.

    evaluations: passes over a mini-batch, of the loss with or without its gradient, that led to the state, its own included (matrices are not among them).
    failed_searches: steps without an acceptable trial. damped_updates: secants that Powell's damping changed.
    An ensemble's are those of each member's run alone: passes that it makes because another member still searches are not its own.
    """
    if recipe.optimizer not in SOLVERS:
        return {}
    moments = state if isinstance(state, tuple) else state.moments
    return {name: moments[-1][..., i] for i, name in enumerate(COUNTS)}


def move(
    point: Tensor,
    loss: Tensor,
    gradient: Tensor,
    moments: tuple[Tensor, ...],
    batch: Batch,
    recipe: Recipe,
    first: Tensor,
    warm: float,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The next point and moments from loss (...,) and gradient (..., d) of the batch at `point`.

    first: lr * scale (...,), what bfgs and lbfgs start from. warm: of the schedule, the factor on the first trial step (which is 1 without one; lr of newton and gauss-newton).
    """
    *held, spent = moments
    ones = torch.ones_like(loss)
    damped = torch.zeros_like(loss, dtype=torch.bool)
    newton = recipe.optimizer in MATRICES
    rule = None if newton else _rule(recipe)
    last: tuple[Tensor, ...] = ()
    if rule is None:
        direction = _newton(gradient, held[0], batch.matrix(point, MATRICES[recipe.optimizer]))
        trial = recipe.lr * warm * ones
    else:
        if recipe.secants == "cross":
            *held, s, before, length = held
            pair, damped = secant(s, gradient - before, -_each(length) * before, recipe.damping)
            held = rule.learn(held, pair)
        direction = -rule.times(held, gradient, first)
        trial = warm * ones
    slope = dot(gradient, direction)
    broken = ~(slope <= 0)
    found = _SEARCHES[recipe.search](point, direction, loss, gradient, slope, trial, batch, recipe)
    moved = found.good | (recipe.on_failure == "take")
    place = torch.where(_each(moved), point + _each(found.length) * direction, point)
    asked = torch.zeros_like(moved)  # for a pass at the new point
    if rule is not None:
        step = torch.where(_each(moved & ~broken), _each(found.length) * direction, torch.zeros_like(direction))
        if recipe.secants == "same":
            asked = moved & ~found.good if found.gradient is not None else moved
            after = gradient if found.gradient is None else found.gradient
            if bool(asked.any()):
                after = torch.where(_each(asked), batch.slopes(place)[1], after)
            pair, damped = secant(step, after - gradient, -_each(found.length) * gradient, recipe.damping)
            held = rule.learn(held, pair)
        else:
            last = (step, gradient, found.length)
        forgotten = broken | (~found.good & (recipe.on_failure == "reset"))
        if bool(forgotten.any()):
            held = [
                torch.where(forgotten.reshape(*forgotten.shape, *[1] * (old.ndim - forgotten.ndim)), new, old)
                for new, old in zip(rule.fresh(point, recipe.history, first), held, strict=True)
            ]
    elif recipe.search != "none":
        ridge = torch.where(found.good & (found.trials == 1), held[0] / RIDGE_FACTOR, held[0] * RIDGE_FACTOR)
        held = [ridge.clamp_max(RIDGE_MOST)]
    # the next state's own pass, unless it is one made here
    own = ~((asked | found.last) & batch.repeats)
    passes = found.trials + asked + own
    return place, (*held, *last, spent + torch.stack([passes, (~found.good).to(passes), damped.to(passes)], dim=-1))


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products (...,) of vectors (..., d)."""
    return (a * b).sum(-1)


def _each(number: Tensor) -> Tensor:
    """A number of each member, beside vectors."""
    return number.unsqueeze(-1)


# -- searches ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Found:
    length: Tensor  # (...,): of the step taken, where good; of the last trial elsewhere
    good: Tensor  # (...,) bool: it decreases the loss enough
    trials: Tensor  # (...,) int64
    gradient: Tensor | None  # (..., d) at the point found, of searches that see gradients; where good
    last: Tensor  # (...,) bool: the last pass of all was at that point, with its gradient


def _armijo(
    z: Tensor, p: Tensor, loss: Tensor, gradient: Tensor, slope: Tensor, trial: Tensor, batch: Batch, recipe: Recipe
) -> _Found:
    """Backtracking until f(z + a p) <= f(z) + sufficient * a * slope, up to the rounding of f(z)."""
    values = batch.along(z, p)
    limit, promised = loss + _rounding(loss), recipe.sufficient * slope
    length, good = trial, torch.zeros_like(slope, dtype=torch.bool)
    live = (slope <= 0) & loss.isfinite()
    trials = torch.zeros_like(slope, dtype=torch.int64)
    for number in range(recipe.trials):
        if not bool(live.any()):
            break
        if number:
            length = torch.where(live, length * recipe.shrink, length)
        enough = live & (values(length, live) <= limit + length * promised)
        trials = trials + live
        good = good | enough
        live = live & ~enough
    return _Found(length, good, trials, None, torch.zeros_like(good))


def _wolfe(
    z: Tensor, p: Tensor, loss: Tensor, gradient: Tensor, slope: Tensor, trial: Tensor, batch: Batch, recipe: Recipe
) -> _Found:
    """A step with sufficient decrease and |slope there| <= curvature * |slope|, by a bracket that is first sought and then narrowed.

    `low` is the best step so far that decreases enough (0 at first), `high` the other end: infinite while nothing bounds the minimiser, then a step that is no better or NaN, or one past
    the minimiser. A new trial is the minimiser of the parabola through low (value, slope) and high (value). Where the trials run out, low is taken if it is not 0: only its slope is still steep.
    """
    length = trial
    low, low_value, low_slope, kept = torch.zeros_like(trial), loss, slope, gradient
    high, high_value = torch.full_like(trial, torch.inf), torch.full_like(loss, torch.nan)
    good = torch.zeros_like(slope, dtype=torch.bool)
    live = (slope <= 0) & loss.isfinite()
    trials = torch.zeros_like(slope, dtype=torch.int64)
    for number in range(recipe.trials):
        if not bool(live.any()):
            break
        if number:
            length = torch.where(live, _between(low, low_value, low_slope, high, high_value, recipe.shrink), length)
        # those who are done stand still, so that the last pass is at the points of all of them
        value, there = batch.slopes(z + _each(length) * p)
        along = dot(there, p)
        trials = trials + live
        enough = (value <= loss + recipe.sufficient * length * slope + _rounding(loss)) & along.isfinite()
        enough = enough & ((low == 0) | (value < low_value))
        # where no more than rounding can be won, slopes are no guide either
        flat = (along.abs() <= recipe.curvature * slope.abs()) | (length * slope.abs() <= _rounding(loss))
        done = live & enough & flat
        past = along * torch.sign(high - low) >= 0
        better, worse = live & enough, live & ~enough
        high, high_value = (
            torch.where(worse, here, torch.where(better & past, bound, held))
            for here, bound, held in ((length, low, high), (value, low_value, high_value))
        )
        low, low_value, low_slope = (
            torch.where(better, here, held) for here, held in ((length, low), (value, low_value), (along, low_slope))
        )
        kept = torch.where(_each(better), there, kept)
        good, live = good | done, live & ~done
    spare = live & (low > 0)
    return _Found(torch.where(spare, low, length), good | spare, trials, kept, good)


def _rounding(loss: Tensor) -> Tensor:
    """What a loss is known to: near a minimum the decrease sought is less, and without this allowance every search there would shrink its step to nothing."""
    return torch.finfo(loss.dtype).eps * loss.abs()


def _between(
    low: Tensor, low_value: Tensor, low_slope: Tensor, high: Tensor, high_value: Tensor, shrink: float
) -> Tensor:
    """The next trial: beyond low where there is no bracket yet, else inside it."""
    width = high - low
    share = -low_slope * width / (2 * (high_value - low_value - low_slope * width))
    inside = (share > 0) & share.isfinite()  # NaN: high has no value
    share = torch.where(inside, share.clamp(BRACKET_MARGIN, 1 - BRACKET_MARGIN), torch.full_like(share, 0.5))
    return torch.where(high.isinf(), low / shrink, low + share * width)


def _full(
    z: Tensor, p: Tensor, loss: Tensor, gradient: Tensor, slope: Tensor, trial: Tensor, batch: Batch, recipe: Recipe
) -> _Found:
    """No search: the first trial is taken unseen, where the direction is finite."""
    good = p.isfinite().all(-1)
    return _Found(trial, good, torch.zeros_like(slope, dtype=torch.int64), None, torch.zeros_like(good))


_SEARCHES: dict[str, Callable[..., _Found]] = {"armijo": _armijo, "wolfe": _wolfe, "none": _full}


# -- quasi-Newton -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Secant:
    """A step and the change of the gradient along it, to learn from."""

    s: Tensor  # (..., d)
    y: Tensor  # (..., d)
    rho: Tensor  # (...,): 1 / s.y, where good
    good: Tensor  # (...,) bool: to be learnt from


def secant(s: Tensor, y: Tensor, bent: Tensor, damping: float) -> tuple[Secant, Tensor]:
    """A step, the change of the gradient along it and what the present B says of that change, as a pair to learn from; and whether y was damped (...,)."""
    sy, expected = dot(s, y), dot(s, bent)
    damped = sy < damping * expected
    share = torch.where(damped, (1 - damping) * expected / (expected - sy), torch.ones_like(sy))
    y = torch.where(_each(damped), _each(share) * y + _each(1 - share) * bent, y)
    sy = dot(s, y)
    # what is below rounding says nothing of the curvature's sign
    floor = torch.finfo(s.dtype).eps * s.norm(dim=-1) * y.norm(dim=-1)
    good = (sy > floor.clamp_min(LEAST_CURVATURE)) & y.isfinite().all(-1)
    return Secant(s, y, 1 / torch.where(good, sy, torch.ones_like(sy)), good), damped & good


class _Rule(Protocol):
    def fresh(self, point: Tensor, history: int, first: Tensor) -> tuple[Tensor, ...]:
        """What is held before the first pair."""

    def learn(self, held: list[Tensor], pair: Secant) -> list[Tensor]:
        """What is held after one more."""

    def times(self, held: list[Tensor], gradient: Tensor, first: Tensor) -> Tensor:
        """H g (..., d)."""


class _BFGS:
    def fresh(self, point: Tensor, history: int, first: Tensor) -> tuple[Tensor, ...]:
        eye = torch.eye(point.shape[-1], dtype=point.dtype, device=point.device)
        return (_each(_each(first)) * eye,)

    def learn(self, held: list[Tensor], pair: Secant) -> list[Tensor]:
        """H <- (I - rho s y^T) H (I - rho y s^T) + rho s s^T, multiplied out: symmetric to the bit."""
        (inverse,) = held
        s, hy = pair.s, (inverse @ _each(pair.y)).squeeze(-1)
        cross = _each(_each(pair.rho)) * (_each(s) * hy.unsqueeze(-2))
        weight = pair.rho * (1 + pair.rho * dot(pair.y, hy))
        learnt = inverse - (cross + cross.mT) + _each(_each(weight)) * (_each(s) * s.unsqueeze(-2))
        return [torch.where(_each(_each(pair.good)), learnt, inverse)]

    def times(self, held: list[Tensor], gradient: Tensor, first: Tensor) -> Tensor:
        return (held[0] @ _each(gradient)).squeeze(-1)


class LimitedMemory:
    """The inverse Hessian of the last h pairs."""

    def fresh(self, point: Tensor, history: int, first: Tensor) -> tuple[Tensor, ...]:
        """No pairs yet: (..., h, d), (..., h, d), (..., h)."""
        lead, d = point.shape[:-1], point.shape[-1]
        empty = point.new_zeros(*lead, history, d)
        return empty, empty.clone(), point.new_zeros(*lead, history)

    def learn(self, held: list[Tensor], pair: Secant) -> list[Tensor]:
        """With one pair more, and the oldest gone."""
        steps, changes, rhos = held
        newer = (
            torch.cat([steps[..., 1:, :], pair.s.unsqueeze(-2)], -2),
            torch.cat([changes[..., 1:, :], pair.y.unsqueeze(-2)], -2),
            torch.cat([rhos[..., 1:], _each(pair.rho)], -1),
        )
        vectors = _each(_each(pair.good))
        return [
            torch.where(good, new, old)
            for good, new, old in zip((vectors, vectors, _each(pair.good)), newer, held, strict=True)
        ]

    def times(self, held: list[Tensor], gradient: Tensor, first: Tensor) -> Tensor:
        """Algorithm 7.4: a pair with rho 0 does nothing."""
        steps, changes, rhos = held
        q, weights = gradient, []
        for i in reversed(range(rhos.shape[-1])):
            weights.append(rhos[..., i] * dot(steps[..., i, :], q))
            q = q - _each(weights[-1]) * changes[..., i, :]
        newest = rhos[..., -1] > 0
        size = rhos[..., -1] * dot(changes[..., -1, :], changes[..., -1, :])
        q = _each(torch.where(newest, 1 / torch.where(newest, size, torch.ones_like(size)), first)) * q
        for i, weight in enumerate(reversed(weights)):
            q = q + _each(weight - rhos[..., i] * dot(changes[..., i, :], q)) * steps[..., i, :]
        return q


def _rule(recipe: Recipe) -> _Rule:
    return _BFGS() if recipe.optimizer == "bfgs" else LimitedMemory()


# -- Newton -----------------------------------------------------------------------------------------------------------


def _newton(gradient: Tensor, ridge: Tensor, matrix: Tensor) -> Tensor:
    """-(|M| + ridge * max|eigenvalue|)^-1 g (..., d). A matrix that is zero or not finite counts as the identity, so that p is the gradient's."""
    usable = matrix.isfinite().all(-1).all(-1) & (matrix != 0).any(-1).any(-1)
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    values, vectors = torch.linalg.eigh(torch.where(_each(_each(usable)), (matrix + matrix.mT) / 2, eye))
    sizes = values.abs()
    # what rounding leaves of a zero eigenvalue is no curvature
    floor = torch.finfo(matrix.dtype).eps * matrix.shape[-1]
    sizes = sizes + _each(ridge.clamp_min(floor) * sizes.amax(-1))
    direction: Tensor = -(vectors @ ((vectors.mT @ _each(gradient)) / _each(sizes))).squeeze(-1)
    return direction
