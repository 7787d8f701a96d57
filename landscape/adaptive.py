"""Adaptive pruning rates: how large a share of the survivors may go at one level, by what pruning does to the loss.

Letters: D parameters, n survivors that may be pruned, k of them go, P = the pruned set.

    projection   the largest rate with E(m w) <= E(w) + tolerance; m w the projection of the solution w. No training
    barrier      the largest rate whose projection lies in the linearly connected sublevel set of w (Paul et al. 2023, definition 2.4): E(m w) <= E(w) + tolerance, and the path from w to m w
                 rises at most `tolerance` above the straight line between the values of its ends. No training
    spectrum     the largest rate at which the least loss on the axial subspace is predicted to rise by at most `tolerance`: formula (3) of `landscape.axial`, from the Hessian's spectrum at w
    retraining   accept or reject after the next level is trained: twice the rate after success, half of it after failure (`next_rate`)

The first three prune just as the level itself will, and bisect the count k to one weight. Along the path and over k a network's loss may rise and fall again: what is found is then a count
that is accepted and whose next is not, and not surely the largest.
The barrier alone would be no rule: on a convex quadratic it is 0 at every rate, and so it is for a network whose projection is at chance where the error rises late on the path (digits-mlp: 99.5% of the
weights went, and the next level stayed at chance). The third takes w for a minimum of the loss without weight decay, and eigenvectors for spread over the axes.

Source: Paul et al. 2023, "Unmasking the lottery ticket hypothesis" (the linearly connected sublevel set). Their own rule of an adaptive rate is not known to us; these are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from landscape import axial, functionals, subspaces
from landscape.errors import UsageError, unknown
from landscape.masks import Mask
from landscape.objectives import Objective
from landscape.operators import SearchSpace
from landscape.seeds import generator

Rule = Literal["projection", "barrier", "spectrum"]
RULES: tuple[Rule, ...] = get_args(Rule)
Metric = Literal["error", "loss"]

POINTS = 11  # of a path: odd, so that the midpoint, where the barrier of a quadratic path lies, is one of them
MOST = 0.9  # rate: a level that leaves less than a tenth is pruning at one shot, which sharpness rules out (Paul et al. 2023)
LEAST = 0.01  # rate: below it a level is not worth its training


@dataclass(frozen=True)
class Choice:
    """The rate that a rule allows."""

    rate: float  # at which exactly what was accepted goes; 0 where not one weight may
    pruned: int  # weights that go
    excess: float  # what the rule measured there, or predicted
    refused: float  # and with one weight more; NaN where that was not asked, because one weight stays in any case
    tried: int  # points at which the objective was evaluated, or products of its Hessian


def rate(
    rule: str,
    f: Objective,
    w: Tensor,
    mask: Mask,
    cut: Callable[[float], Mask],
    *,
    among: Mask,
    tolerance: float,
    metric: Metric | None = None,
    points: int = POINTS,
    seed: int = 0,
) -> Choice:
    """The largest rate that a rule of `RULES` allows at the solution w (D,) of a level, found by bisection on the count: about log2(n) times one projection, or one path; `spectrum` takes one spectrum.

    f: the whole-space objective. For values BatchNorm goes by the statistics of each chunk of rows, since those of w are not those of its projections.
    mask: the level's own. cut: what pruning at a rate would leave of it, as `lambda rate: prune(mask, scores, rate, among=among).mask`. among: what may be pruned.
    tolerance: in the metric's unit (errors in [0, 1]).
    metric: by default the error where the loss classifies, else the loss; `spectrum` is of the loss always.
    points: of a path, ends included; odd.
    seed: of the probes of a spectrum.

    A cut that leaves a layer without a weight is never allowed, where there are several.

    Raises UsageError for an unknown rule or metric, a tolerance or a number of points out of range, and where nothing is left to prune.
    """
    if rule not in RULES:
        raise unknown("rule", rule, RULES)
    metric = metric or ("error" if f.loss.classifies and rule != "spectrum" else "loss")
    if metric not in get_args(Metric):
        raise unknown("metric", metric, get_args(Metric))
    if metric == "error" and (rule == "spectrum" or not f.loss.classifies):
        raise UsageError(
            f"{'the rule spectrum' if rule == 'spectrum' else f'the loss {f.loss.name}'} has no error rate. Give metric='loss'."
        )
    if not 0 <= tolerance < math.inf:
        raise UsageError(f"the tolerance of an adaptive rate is finite and not negative; got {tolerance}.")
    if points < 3 or points % 2 == 0:
        raise UsageError(f"a path has an odd number of points, 3 at least, so that the middle is one; got {points}.")
    n = (mask & among).size
    if not n:
        raise UsageError("no weight that may be pruned is left.")
    excess, tried = (
        _predicted(f, w, mask, cut, n, seed) if rule == "spectrum" else _measured(rule, f, w, cut, n, metric, points)
    )
    before = {name for name, (left, _) in (mask & among).counts().items() if left}

    def allowing(k: int) -> float:
        left = (cut(_fraction(k, n)) & among).counts()
        # no signal passes a layer without a weight, whatever the rule says of it
        return excess(k) if all(left[name][0] for name in before) else math.inf

    allowed, found, refused = _bisected(allowing if len(before) > 1 else excess, n, tolerance)
    chosen = _fraction(allowed, n) if allowed else 0.0
    left = cut(chosen) if allowed else mask
    return Choice(chosen, mask.size - left.size, found, refused, tried())


def next_rate(previous: float, success: bool) -> float:
    """The rate of the next trial after one that was accepted (the next level) or rejected (the same level again): doubled, at most `MOST`, or halved; 0 below `LEAST`: stop.

    Raises UsageError for a rate that is not in (0, 1).
    """
    if not 0 < previous < 1:
        raise UsageError(f"a pruning rate lies between 0 and 1; got {previous}.")
    if success:
        return min(2 * previous, max(previous, MOST))
    return previous / 2 if previous / 2 >= LEAST else 0.0


def _fraction(k: int, n: int) -> float:
    """A rate at which exactly k of n weights go, however it is rounded: ceil((k - 1/2) / n * n) = k."""
    return (k - 0.5) / n


def _measured(
    rule: str, f: Objective, w: Tensor, cut: Callable[[float], Mask], n: int, metric: str, points: int
) -> tuple[Callable[[int], float], Callable[[], int]]:
    """What pruning k of n costs at the projection, or on the path there; and how many points that took so far."""
    f, count = f.of_all_points(), 0

    def at(point: Tensor) -> float:
        nonlocal count
        count += 1
        value = f.value(point)
        return float(value.loss) if metric == "loss" else 1 - float(value.accuracy)

    here = at(w)
    places = np.ones(1) if rule == "projection" else np.linspace(0, 1, points)[1:]

    def excess(k: int) -> float:
        end = cut(_fraction(k, n)).apply(w)
        path = np.array([at(w.lerp(end, a) if a < 1 else end) for a in places.tolist()])
        baseline = (1 - places) * here + places * path[-1]
        # the last of the path is the projection, which lies on the baseline
        return max(float(path[-1]) - here, float((path - baseline).max()))

    return excess, lambda: count


def _predicted(
    f: Objective, w: Tensor, mask: Mask, cut: Callable[[float], Mask], n: int, seed: int
) -> tuple[Callable[[int], float], Callable[[], int]]:
    """What pruning k of n costs by formula (3), the Hessian being that of all survivors; and how many of its products that took."""
    free = mask.tensor(w.device)
    hessian = f.restrict(subspaces.coordinates(torch.zeros_like(w), free)).hessian(w[free])
    space = SearchSpace(hessian, 1, generator=generator(seed, "lanczos"))
    density = functionals.measure(hessian, space=space, seed=seed)

    def excess(k: int) -> float:
        left = cut(_fraction(k, n))
        gone = w[(mask - left).tensor(w.device)].double()
        (price,) = axial.price(density, [(mask.size - left.size) / mask.size])
        return float(gone.square().sum()) * float(price)

    return excess, lambda: density.products + space.products


def _bisected(excess: Callable[[int], float], n: int, tolerance: float) -> tuple[int, float, float]:
    """A count in 0..n-1 that is allowed while the next is not, with the excess at both (NaN where the next is n). An excess that is NaN is none that is allowed."""
    low, high, below, above = 0, n, 0.0, math.nan
    while high - low > 1:
        middle = (low + high) // 2
        found = excess(middle)
        if found <= tolerance:
            low, below = middle, found
        else:
            high, above = middle, found
    return low, below, above
