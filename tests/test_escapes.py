"""Escape bounds against the exact laws of balls, orthants, monotone cones and subspaces; their constants against their own definitions solved."""

import math

import numpy as np
import pytest
from scipy import optimize

from landscape import cones
from landscape.errors import UsageError
from landscape.escapes import amelunxen, certificates, gordon, mccoy_tropp

AMBIENT = (1, 2, 3, 5, 10, 31, 100, 301, 1000, 3000, 10_000)
RATIOS = (0.01, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1 - 1e-6)
# the exact laws are sums of probabilities to 1e-12
ROUNDING = 1e-12


def violations(bounds, hits):
    """How far each bound exceeds the exact probability of what it proves."""
    return {
        (bound.theorem, bound.proves): float((bound.probability - (1 - hits if bound.proves == "miss" else hits)).max())
        for bound in bounds
    }


def test_t14_and_t15_no_bound_exceeds_the_exact_probability_on_balls():
    told: dict[tuple[str, str], int] = {}
    for ambient in AMBIENT:
        dims = np.arange(ambient + 1)
        for ratio in RATIOS:
            angle = math.asin(ratio)
            bounds = certificates(
                ambient,
                dims,
                statistical_dimension=cones.circular(ambient, angle).statistical_dimension,
                width=cones.cap(ambient, angle).width,
            )
            # the law of a ball as an incomplete beta function: nothing of the cone's volumes enters it
            for bound, excess in violations(bounds, cones.ball_hit(ambient, dims, ratio)).items():
                assert excess <= ROUNDING, (ambient, ratio, bound)
            for bound in bounds:
                key = bound.theorem, bound.proves
                told[key] = told.get(key, 0) + int((~bound.vacuous).sum())
                assert (bound.vacuous == (bound.probability == 0)).all() and (bound.probability <= 1).all()
    # 154 balls, and 202,496 pairs of a ball and a dimension; each theorem says something of at least 300 (it would pass by saying nothing)
    assert len(told) == 5 and min(told.values()) >= 300, told


CONES = {
    "orthant": [cones.orthant(d) for d in (2, 7, 60, 1000)],
    "monotone": [cones.monotone(d) for d in (2, 7, 60, 1000)],
    "polar of monotone": [cones.polar(cones.monotone(d)) for d in (7, 60, 1000)],
    "subspace": [cones.linear(d, d // 3) for d in (2, 7, 60, 1000)],
    "nothing and all": [cones.linear(50, 0), cones.linear(50, 50)],
    "product": [cones.product(cones.orthant(100), cones.circular(200, 0.3), cones.linear(50, 20))],
}


@pytest.mark.parametrize("name", CONES)
def test_no_bound_exceeds_the_exact_probability_of_other_cones(name):
    for cone in CONES[name]:
        dims = np.arange(cone.dim + 1)
        delta = cone.statistical_dimension
        # without a width Gordon takes sqrt(delta), which bounds it from above
        bounds = certificates(cone.dim, dims, statistical_dimension=delta)
        for bound, excess in violations(bounds, cones.hit_probability(cone, dims)).items():
            assert excess <= ROUNDING, (cone.name, cone.dim, bound)


def test_statements_survive_what_they_say_they_survive():
    """A miss for a smaller set, a hit for a larger cone: bounds fall as the statistical dimension given is moved to the safe side, and Gordon's as the width grows."""
    ambient, dims = 200, np.arange(201)
    deltas = np.linspace(0, ambient, 401)
    for theorem in (mccoy_tropp, amelunxen):
        misses = np.stack([theorem(ambient, dims, delta, "miss").probability for delta in deltas])
        hits = np.stack([theorem(ambient, dims, delta, "hit").probability for delta in deltas])
        assert (np.diff(misses, axis=0) <= 1e-15).all() and (np.diff(hits, axis=0) >= -1e-15).all()
        assert misses.max() > 0.9 and hits.max() > 0.9
    found = np.stack([gordon(ambient, dims, width).probability for width in np.linspace(0, 15, 151)])
    assert (np.diff(found, axis=0) <= 1e-15).all() and found.max() > 0.9


def test_t14_gordons_constants():
    # 1 - 3.5 exp(-x^2 / 18) is 0 at 4.749 and 0.9 at 8.000; found by a root search, not by the logarithm
    zero, sure = (optimize.brentq(lambda x, p=p: 1 - 3.5 * math.exp(-x * x / 18) - p, 0, 30) for p in (0, 0.9))
    assert (round(zero, 3), round(sure, 3)) == (4.749, 8.0)
    ambient, width = 20_000, 100.0
    dims = np.arange(ambient + 1)
    bound = gordon(ambient, dims, width)
    k = ambient - dims
    excess = k / np.sqrt(k + 1) - width
    np.testing.assert_array_equal(bound.vacuous, excess <= zero)
    np.testing.assert_array_equal(bound.probability >= 0.9, excess >= sure)
    assert ambient - bound.reaches(0.9) - width**2 == pytest.approx(1665, abs=1)
    # where k <= w^2 it says nothing, though the square of a negative excess would: here up to 1 - 3.5 exp(-100^2 / 18)
    assert bound.vacuous[k <= width**2].all()


def test_gordon_is_vacuous_where_the_conic_bounds_are_not():
    ambient, centre = 20_490, 512
    dims, ratio = np.arange(ambient + 1), math.sqrt(1 - centre / ambient)
    cone, width = cones.circular(ambient, math.asin(ratio)), cones.cap(ambient, math.asin(ratio)).width
    reached = {
        (bound.theorem, bound.proves): bound.reaches(0.9)
        for bound in certificates(ambient, dims, statistical_dimension=cone.statistical_dimension, width=width)
    }
    exact = cones.ball_hit(ambient, dims, ratio)
    assert reached["Gordon", "miss"] is None
    miss, hit = reached["McCoy-Tropp", "miss"], reached["McCoy-Tropp", "hit"]
    # solved by hand: l^2 / 4 = log(10) (o + l / 3), o = d*
    threshold = ambient - cone.statistical_dimension
    reach = optimize.brentq(lambda x: x * x / 4 - math.log(10) * (threshold + x / 3), 0, 1000)
    assert (miss, hit) == (math.floor(threshold - reach), math.ceil(threshold + reach)) == (442, 584)
    # the certified dimensions lie outside those of 10% and 90%, 473 and 554, as they must
    assert exact[miss] < 0.1 < exact[hit] and exact[hit] > 0.9
    assert reached["Amelunxen et al.", "miss"] < miss and hit < reached["Amelunxen et al.", "hit"]


def test_amelunxen_implies_a_transition_within_some_square_roots():
    """Theorem I: beyond d* by sqrt(8 log(4 / eta)) sqrt(D) the chance of the other side is eta at most."""
    for ambient, delta in ((400, 200.0), (4000, 700.0), (4000, 3900.5)):
        dims = np.arange(ambient + 1)
        for eta in (0.5, 0.1, 0.01):
            far = math.sqrt(8 * math.log(4 / eta) * ambient)
            for side, beyond in (("miss", ambient - delta - dims), ("hit", dims - ambient + delta)):
                found = amelunxen(ambient, dims, delta, side).probability
                assert (found[beyond >= far] >= 1 - eta).all()
    assert (beyond >= far).any()


def test_reaches_names_only_dimensions_that_say_something():
    dims = np.arange(101)
    # of {0} (delta 0) every d misses, of the whole space every d > 0 hits: d = D and d = 0 are not named
    assert mccoy_tropp(100, dims, 0.0, "miss").reaches(0.9) is not None
    assert mccoy_tropp(100, dims, 0.0, "miss").reaches(0.9) < 100
    assert mccoy_tropp(100, dims, 100.0, "hit").reaches(0.9) > 0
    assert mccoy_tropp(100, dims, 100.0, "miss").reaches(0.9) is None
    assert mccoy_tropp(100, dims, 0.0, "hit").reaches(0.9) is None
    only = np.array([0, 100])
    assert mccoy_tropp(100, only, 0.0, "miss").reaches(0.9) is None
    assert mccoy_tropp(100, only, 100.0, "hit").reaches(0.9) is None
    assert gordon(1, [0, 1], 0.0).reaches(0.5) is None
    # the inside case: exp(-3 d / 4) of a miss for the cone that is the whole space
    np.testing.assert_allclose(
        mccoy_tropp(100, [0, 1, 8], 100.0, "hit").probability, [0, 1 - math.exp(-0.75), 1 - math.exp(-6)], rtol=1e-14
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: gordon(10, [1], -1.0), "at least 0; got -1"),
        (lambda: gordon(10, [1], math.nan), "got nan"),
        (lambda: gordon(10, [11], 1.0), r"0\.\.10"),
        (lambda: gordon(10, [1.5], 1.0), "whole numbers"),
        (lambda: gordon(0, [0], 1.0), "1 or more"),
        (lambda: mccoy_tropp(10, [1], 10.5, "miss"), r"0\.\.10; got 10.5"),
        (lambda: amelunxen(10, [1], math.nan, "miss"), "got nan"),
        (lambda: amelunxen(10, [1], 3.0, "mis"), "Did you mean 'miss'"),
        (lambda: certificates(10, [1], statistical_dimension=-1.0), "got -1"),
        (lambda: mccoy_tropp(10, [1], 3.0, "miss").reaches(1.0), "strictly between 0 and 1; got 1"),
    ],
)
def test_wrong_questions_are_answered_with_what_is_allowed(wrong, message):
    with pytest.raises(UsageError, match=message):
        wrong()
