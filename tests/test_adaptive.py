"""Adaptive rates on quadratics, where the largest count that a rule allows is known by sorting and adding up."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from problems import draw
from torch import Tensor, nn

from landscape import adaptive
from landscape.errors import UsageError
from landscape.masks import Mask
from landscape.objectives import Objective, Rows
from landscape.pruning import prune

D = 60
W = draw(D)  # no two of the same size


def bowl(curvature: np.ndarray, centre: Tensor = W) -> Objective:
    """sum_i h_i (w_i - c_i)^2 / 2."""
    h = torch.from_numpy(curvature)
    return Objective.from_function(lambda w: (h * (w - centre).square()).sum() / 2, len(curvature))


def cutter(mask: Mask, among: Mask) -> Callable[[float], Mask]:
    return lambda share: prune(mask, W.abs(), share, among=among).mask


def ordered(h: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """h_i w_i^2 of the kept weights, the smallest |w| first."""
    order = np.argsort(np.abs(W.numpy()), kind="stable")
    order = order[kept[order]]
    return np.asarray((h * W.numpy() ** 2)[order])


@pytest.mark.parametrize("tolerance", [0.0, 1e-4, 0.01, 0.3, 2.0])
@pytest.mark.parametrize("part", [False, True])
def test_the_projection_rule_takes_as_many_as_the_closed_form(tolerance, part):
    h = np.geomspace(0.01, 10, D)[np.random.default_rng(1).permutation(D)]
    f = bowl(h)
    full = Mask.full(f.model.layout)
    kept = np.arange(D) % 3 > 0 if part else np.ones(D, dtype=bool)
    mask = Mask(full.layout, kept)
    among = Mask(full.layout, np.arange(D) < 50)
    w = mask.apply(W)
    # E(m w) - E(w) = sum over P of h_i w_i^2 / 2, and here w, which lacks what the mask has not, is c on the others
    rises = np.cumsum(ordered(h, kept & among.kept)) / 2
    expected = int((rises <= tolerance).sum())
    assert expected < len(rises)
    found = adaptive.rate("projection", f, w, mask, cutter(mask, among), among=among, tolerance=tolerance)
    assert found.pruned == expected
    left = cutter(mask, among)(found.rate)
    assert mask.size - left.size == expected
    # sums of 60 terms of order 1 in float64
    assert found.excess == pytest.approx(rises[expected - 1] if expected else 0, abs=1e-12)
    assert found.refused == pytest.approx(rises[expected], abs=1e-12)
    assert found.tried <= 2 + math.log2(D)
    assert (found.rate == 0) == (expected == 0)


@pytest.mark.parametrize("tilt", [0.0, 0.05])
def test_the_barrier_rule_takes_as_many_as_the_closed_form(tilt):
    # -|v|^2 / 2 + sum_i (1/2 - tilt) w_i v_i: from w to m w it changes by tilt |w_P|^2, and the path rises by |w_P|^2 / 8 over its baseline in the middle
    f = Objective.from_function(lambda v: -v @ v / 2 + (0.5 - tilt) * (W @ v), D)
    full = Mask.full(f.model.layout)
    squares = np.cumsum(ordered(np.ones(D), full.kept))
    rises = np.maximum(squares / 8, tilt * squares)
    expected = int((rises <= 0.2).sum())
    assert 5 < expected < D - 5
    found = adaptive.rate("barrier", f, W, full, cutter(full, full), among=full, tolerance=0.2)
    assert found.pruned == expected
    assert (found.excess, found.refused) == pytest.approx(tuple(rises[expected - 1 : expected + 1]), abs=1e-12)
    assert found.tried <= 1 + 10 * math.ceil(math.log2(D))


def test_without_a_barrier_the_end_decides_and_where_nothing_does_one_weight_stays():
    f = bowl(np.ones(D))  # convex: no path has a barrier
    full = Mask.full(f.model.layout)
    ask = {"among": full, "tolerance": 0.3}
    by_end, by_path = (adaptive.rate(rule, f, W, full, cutter(full, full), **ask) for rule in ("projection", "barrier"))
    assert by_path.pruned == by_end.pruned < D - 1
    flat = adaptive.rate("barrier", bowl(np.zeros(D)), W, full, cutter(full, full), **ask)
    assert flat.pruned == D - 1
    assert math.isnan(flat.refused)


def test_errors_are_the_metric_of_a_loss_that_classifies():
    # row i is right as long as weight i is there: the error after k go is k / D
    class Signs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(W.clone())

        def forward(self, x: Tensor) -> Tensor:
            score = x @ self.weight.abs()
            return torch.stack([-torch.ones_like(score) * 1e-6, score - 2e-6], dim=1)

    f, w = Objective.of(Signs(), "cross-entropy", Rows(torch.eye(D, dtype=torch.float64), torch.ones(D, dtype=torch.long)), dtype=torch.float64)  # fmt: skip
    full = Mask.full(f.model.layout)
    found = adaptive.rate("projection", f, w, full, cutter(full, full), among=full, tolerance=0.25 + 1e-9)
    assert found.pruned == D // 4
    assert found.excess == pytest.approx(0.25, abs=1e-12)
    by_loss = adaptive.rate("projection", f, w, full, cutter(full, full), among=full, tolerance=10.0, metric="loss")
    assert by_loss.pruned == D - 1


def test_a_loss_that_is_not_finite_is_never_allowed():
    f = Objective.from_function(lambda w: torch.where((w == 0).sum() > 7, torch.nan, 0.0) + 0 * w.sum(), D)
    full = Mask.full(f.model.layout)
    assert adaptive.rate("projection", f, W, full, cutter(full, full), among=full, tolerance=1.0).pruned == 7


def test_rates_double_and_halve():
    assert adaptive.next_rate(0.2, True) == 0.4
    assert adaptive.next_rate(0.6, True) == 0.9
    assert adaptive.next_rate(0.95, True) == 0.95  # a first rate that was asked for stays
    assert adaptive.next_rate(0.2, False) == 0.1
    assert adaptive.next_rate(0.02, False) == 0.01
    assert adaptive.next_rate(0.015, False) == 0.0
    for wrong in (0.0, 1.0, -0.1, math.nan):
        with pytest.raises(UsageError, match="between 0 and 1"):
            adaptive.next_rate(wrong, True)


def test_what_no_rule_can_do_is_refused():
    f = bowl(np.ones(D))
    full = Mask.full(f.model.layout)
    ask = {"among": full, "tolerance": 0.1}
    with pytest.raises(UsageError, match="unknown rule 'projections'"):
        adaptive.rate("projections", f, W, full, cutter(full, full), **ask)
    with pytest.raises(UsageError, match="tolerance"):
        adaptive.rate("projection", f, W, full, cutter(full, full), **{**ask, "tolerance": -1.0})
    with pytest.raises(UsageError, match="no error rate"):
        adaptive.rate("projection", f, W, full, cutter(full, full), metric="error", **ask)
    with pytest.raises(UsageError, match="odd number"):
        adaptive.rate("barrier", f, W, full, cutter(full, full), points=10, **ask)
    nothing = Mask(full.layout, np.zeros(D, dtype=bool))
    with pytest.raises(UsageError, match="no weight"):
        adaptive.rate("projection", f, W, full, cutter(full, full), **{**ask, "among": nothing})


@pytest.mark.parametrize("tolerance", [0.05, 0.5])
def test_the_spectrum_rule_is_exact_for_a_round_bowl(tolerance):
    # H = lam I: formula (3) has s = (1 - alpha) / (alpha lam), so that E = lam R^2 / 2 exactly
    lam = 0.7
    f = bowl(np.full(D, lam), centre=torch.zeros(D, dtype=torch.float64))
    full = Mask.full(f.model.layout)
    mask, among = Mask(full.layout, np.arange(D) % 4 > 0), Mask(full.layout, np.arange(D) < 50)
    rises = np.cumsum(ordered(np.full(D, lam), mask.kept & among.kept)) / 2
    expected = int((rises <= tolerance).sum())
    assert 0 < expected < len(rises)
    found = adaptive.rate("spectrum", f, mask.apply(W), mask, cutter(mask, among), among=among, tolerance=tolerance)
    assert found.pruned == expected
    # s is a root, found to a relative 1e-10 or better
    assert found.excess == pytest.approx(rises[expected - 1], rel=1e-8)
    assert found.refused == pytest.approx(rises[expected], rel=1e-8)
    assert found.tried == mask.size  # the matrix is formed where that costs no more


@pytest.mark.parametrize("tolerance", [1e-3, 0.2])
def test_the_spectrum_rule_solves_formula_3_in_all_survivors(tolerance):
    # two thirds of the survivors have curvature 1, the others none: mean 1 / (1 + s lambda) = (2/3) / (1 + s) + 1/3 = alpha gives s, where alpha > 1/3
    full = Mask.full(bowl(np.ones(D)).model.layout)
    mask, among = Mask(full.layout, np.arange(D) < 48), Mask(full.layout, np.arange(D) < 45)
    h = np.where(np.arange(D) % 3 == 0, 0.0, 1.0)
    n = mask.size  # 48, of which 32 are bent
    squares = np.cumsum(ordered(np.ones(D), mask.kept & among.kept))
    alphas = np.arange(1, 46) / n
    s = (2 / 3) / np.where(alphas > 1 / 3, alphas - 1 / 3, np.nan) - 1
    rises = np.nan_to_num(squares * (1 - alphas) / (2 * alphas * s))
    expected = int((rises <= tolerance).sum())
    assert n / 3 <= expected < 44
    f = bowl(h, centre=torch.zeros(D, dtype=torch.float64))
    found = adaptive.rate("spectrum", f, mask.apply(W), mask, cutter(mask, among), among=among, tolerance=tolerance)
    assert found.pruned == expected
    assert found.refused == pytest.approx(rises[expected], rel=1e-8)


def test_the_spectrum_rule_is_of_the_loss():
    f = bowl(np.ones(D))
    full = Mask.full(f.model.layout)
    with pytest.raises(UsageError, match="the rule spectrum has no error rate"):
        adaptive.rate("spectrum", f, W, full, cutter(full, full), among=full, tolerance=0.1, metric="error")
