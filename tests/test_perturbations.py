"""Perturbed rewinding: norms and supports exactly, distributions by their closed-form moments within five standard errors under fixed seeds."""

import math

import numpy as np
import pytest
import torch

from landscape.errors import UsageError
from landscape.perturbations import KINDS, distance, perturbed
from landscape.seeds import generator

F64 = torch.float64
D, BLOCKS = 60, (30, 10, 20)
# numpy sums 60 squares near 1 with an error of at most 60 eps / 2 each way; adding the point and taking it off again costs eps |w| a time, |w| below 10
ROUNDING = 100 * np.finfo(float).eps


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed, "test perturbations"), dtype=F64)


@pytest.fixture
def rewound():
    """A masked point of three tensors, its mask, and what the next pruning deletes: the smallest fifth of the survivors."""
    mask = draw(D, seed=1) > -0.5
    w = torch.where(mask, draw(D), 0.0)
    alive = mask.nonzero()[:, 0]
    deleted = torch.zeros(D, dtype=torch.bool)
    deleted[alive[w[alive].abs().argsort()[: len(alive) // 5]]] = True
    return w, mask, deleted


def moved(kind, w, mask, deleted, radius=0.7, **keywords):
    return perturbed(kind, w, mask, radius, blocks=BLOCKS, deleted=deleted, **{"seed": 3, "draws": 4} | keywords)


def test_distance_is_the_norm_of_what_is_deleted(rewound):
    w, mask, deleted = rewound
    following = mask & ~deleted
    by_definition = np.linalg.norm(np.where(mask, w, 0) - np.where(following, w, 0))
    assert distance(w, deleted) == pytest.approx(by_definition, rel=ROUNDING)
    assert distance(w.float(), deleted) == pytest.approx(by_definition, rel=1e-6)  # float32 rounds each entry by 6e-8


@pytest.mark.parametrize("kind", KINDS)
def test_support_lies_inside_the_mask_and_survivors_outside_it_stay(kind, rewound):
    w, mask, deleted = rewound
    support = mask.clone()
    support[torch.arange(D) % 3 == 0] = False
    for within in (mask, support):
        points = moved(kind, w, within, deleted & within)
        still = ~within
        assert points.shape == (4, D) and points.dtype == w.dtype
        assert (points[:, still] == w[still]).all()
        assert (points[:, ~mask] == 0).all()


@pytest.mark.parametrize("kind", ["sphere", "layer-wise", "projection", "random-mask"])
@pytest.mark.parametrize("radius", [0.0, 1e-3, 5.0])
def test_norm_is_the_radius(kind, radius, rewound):
    norms = np.linalg.norm(moved(kind, *rewound, radius=radius) - rewound[0], axis=1)
    np.testing.assert_allclose(norms, radius, rtol=0, atol=ROUNDING * max(1, radius))


def test_float32_rounds_once(rewound):
    w, mask, _ = rewound
    w = w.float()
    exact = perturbed("sphere", w.double(), mask, 0.7, seed=3)
    assert (perturbed("sphere", w, mask, 0.7, seed=3) == exact.float()).all()


def test_projection_ends_at_exact_zeros_and_random_mask_deletes_as_many(rewound):
    w, mask, deleted = rewound
    d = distance(w, deleted)
    (point,) = moved("projection", w, mask, deleted, radius=d, draws=1)
    assert (point == torch.where(deleted, 0.0, w)).all()
    for shift in (moved("random-mask", w, mask, deleted, radius=d) - w).numpy():
        where = shift != 0
        assert where.sum() == deleted.sum() and mask.numpy()[where].all()
        # straight towards 0: one factor for all deleted entries
        ratio = -shift[where] / w.numpy()[where]
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-10)


def test_layer_wise_moves_each_tensor_by_the_same_share(rewound):
    w, mask, deleted = rewound
    w[30:40] = 0.0  # biases at initialisation
    shift = (moved("layer-wise", w, mask, deleted) - w).split(BLOCKS, dim=1)
    for part, own in zip(shift, w.split(BLOCKS), strict=True):
        expected = 0.7 * np.linalg.norm(own) / np.linalg.norm(w)
        np.testing.assert_allclose(np.linalg.norm(part, axis=1), expected, rtol=0, atol=ROUNDING)


def test_moments_of_the_draws():
    """S = 40 of 60 may move, n = 2,000 draws, r = 1. Sphere: mean 0, E x_i^2 = 1/S, var x_i^2 = 2 (S-1) / (S^2 (S+2)). Ball: E |x| = S / (S+1), var of |x| = S/(S+2) minus that squared.
    Gaussian: E |x|^2 = 1, var |x|^2 = 2/S. Each within five standard errors of its mean over draws."""
    s, n = 40, 2000
    support = torch.arange(D) < s
    found = {kind: perturbed(kind, torch.zeros(D, dtype=F64), support, 1.0, seed=5, draws=n).numpy()[:, :s] for kind in ("sphere", "ball", "gaussian")}  # fmt: skip
    x = found["sphere"]
    assert np.abs(x.mean(0)).max() < 5 * math.sqrt(1 / s / n)
    assert np.abs((x**2).mean(0) - 1 / s).max() < 5 * math.sqrt(2 * (s - 1) / (s**2 * (s + 2)) / n)
    norm = np.linalg.norm(found["ball"], axis=1)
    assert norm.max() <= 1
    assert abs(norm.mean() - s / (s + 1)) < 5 * math.sqrt((s / (s + 2) - (s / (s + 1)) ** 2) / n)
    # the law P(|x| <= q) = q^S tells a ball from a sphere: at its median half of the draws lie inside, with standard error 1 / (2 sqrt(n))
    assert abs((norm < 0.5 ** (1 / s)).mean() - 0.5) < 5 * 0.5 / math.sqrt(n)
    square = (found["gaussian"] ** 2).sum(1)
    assert abs(square.mean() - 1) < 5 * math.sqrt(2 / s / n)
    assert square.std() == pytest.approx(math.sqrt(2 / s), rel=5 / math.sqrt(2 * n) * 1.1)


def test_a_random_fraction_of_equal_weights_has_norm_sqrt_of_it():
    """T16: |delta| / |w| -> sqrt(f). For normal weights the squared share is f up to sqrt(2 f (1-f) / D) roughly; five of these at D = 40,000 are 0.015."""
    size = 40_000
    w, support = draw(size, seed=2), torch.ones(size, dtype=torch.bool)
    gone = torch.arange(size) < 0.36 * size
    assert (distance(w, gone) / float(w.norm())) ** 2 == pytest.approx(0.36, abs=0.015)
    # the same for the entries that random-mask takes: scaled by nothing, its step is their norm
    (point,) = perturbed("random-mask", w, support, 1e-3, seed=0, deleted=gone)
    taken = point != w
    assert int(taken.sum()) == int(gone.sum()) and bool((taken != gone).any())
    assert (distance(w, taken) / float(w.norm())) ** 2 == pytest.approx(0.36, abs=0.015)


@pytest.mark.parametrize("kind", KINDS)
def test_draws_are_streams(kind, rewound):
    few, many = moved(kind, *rewound, draws=2), moved(kind, *rewound, draws=5)
    assert (few == many[:2]).all()
    same = bool((many[0] == many[1]).all())
    assert same == (kind == "projection")
    assert bool((moved(kind, *rewound, seed=4, draws=1) == few[0]).all()) == (kind == "projection")
    # one direction at every radius
    w = rewound[0]
    np.testing.assert_allclose(moved(kind, *rewound, radius=1.4) - w, 2 * (moved(kind, *rewound) - w), atol=ROUNDING)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"kind": "spere"}, "sphere"),
        ({"radius": -1.0}, "radius"),
        ({"radius": math.nan}, "radius"),
        ({"draws": 0}, "at least 1 draw"),
        ({"kind": "projection", "deleted": None}, "deleted"),
        ({"kind": "projection", "deleted": torch.zeros(D, dtype=torch.bool)}, "no direction"),
        ({"kind": "layer-wise", "blocks": (3, 4)}, "blocks"),
        ({"support": torch.zeros(D, dtype=torch.bool)}, "empty"),
        ({"support": torch.ones(D)}, "bool"),
        ({"kind": "random-mask", "support": torch.arange(D) < 1}, "cannot delete"),
    ],
)
def test_what_does_not_fit_is_named(changed, said, rewound):
    w, mask, deleted = rewound
    given = {"kind": "sphere", "w": w, "support": mask, "radius": 0.5, "seed": 0, "blocks": BLOCKS, "deleted": deleted}
    with pytest.raises(UsageError, match=said):
        perturbed(**given | changed)
