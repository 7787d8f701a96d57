"""Every subspace obeys its law: project is the adjoint of push, whatever the constructor, dtype and leading axes."""

import math

import numpy as np
import pytest
import torch
from problems import F64, close, draw

from landscape import subspaces
from landscape.errors import UsageError
from landscape.seeds import generator
from landscape.subspaces import BASES, Subspace, coordinates, hadamard, principal, random, segment, span

ROUNDING = 1e-12  # at most 2,048 float64 terms of size 1 a sum
D = 300


class Planted:
    """A trajectory's principal directions, planted."""

    def __init__(self, directions):
        self.directions = directions

    def principal(self, dim):
        return self.directions[:dim], np.ones(len(self.directions))


def plane(d, ambient):
    return np.linalg.qr(draw(ambient, d, seed=9).numpy())[0].T.copy()


def build(name, dtype=F64, ambient=D, d=17):
    origin = draw(ambient, dtype=dtype)
    if name in BASES:
        return random(origin, d, generator(0, "basis"), name)
    return {
        "span": lambda: span(origin, draw(d, ambient, dtype=dtype)),
        "members": lambda: span(draw(4, ambient, dtype=dtype), draw(4, d, ambient, dtype=dtype)),
        "segment": lambda: segment(origin, draw(ambient, seed=1, dtype=dtype)),
        "coordinates": lambda: coordinates(origin, torch.arange(ambient) % 7 == 2),
        "principal": lambda: principal(origin, Planted(plane(d, ambient)), d),
        "moved": lambda: span(origin, draw(d, ambient, dtype=dtype)).at(origin + 1),
    }[name]()


EVERY = [*BASES, "span", "members", "segment", "coordinates", "principal", "moved"]


def basis(s):
    """B (d, D): the images of the axes."""
    return s.push(torch.eye(s.dim, dtype=F64))


# -- laws of all ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ambient", [1, 2, 64, 300])
@pytest.mark.parametrize("axes", [(), (4,), (2, 3)])
# both inner products are sums of D d rounded terms, and rounding is relative to the sum of their sizes: |z| |B^T| |g|
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (F64, ROUNDING)], ids=["float32", "float64"])
@pytest.mark.parametrize("name", EVERY)
def test_project_is_the_adjoint_of_push(name, dtype, tolerance, axes, ambient):
    if name == "members" and len(axes) != 1:
        axes = (4,)  # one basis a member
    s = build(name, dtype, ambient, min(17, ambient))
    z, g = draw(*axes, s.dim, seed=2, dtype=dtype), draw(*axes, s.ambient, seed=3, dtype=dtype)
    pushed, projected = s.push(z), s.project(g)
    assert (pushed.shape, projected.shape) == (g.shape, z.shape)
    assert pushed.dtype == projected.dtype == dtype
    one, other = ((a.double() * b.double()).sum(-1) for a, b in ((pushed, g), (z, projected)))
    size = pushed.double().norm(dim=-1) * g.double().norm(dim=-1) + z.double().norm(dim=-1) * projected.double().norm(
        dim=-1
    )
    assert ((one - other).abs() <= tolerance * size).all()


@pytest.mark.parametrize("name", EVERY)
def test_lift_is_affine_with_push_as_its_linear_part(name):
    s = build(name)
    shape = (4, s.dim) if name == "members" else (s.dim,)
    a, b = draw(*shape, seed=2), draw(*shape, seed=3)
    close(s.lift(torch.zeros_like(a)), s.origin, 0)
    close(s.lift(a), s.origin + s.push(a), 0)
    close(s.push(2 * a - 3 * b), 2 * s.push(a) - 3 * s.push(b), ROUNDING)
    assert s.ambient == D


@pytest.mark.parametrize("name", [name for name in EVERY if name != "members"])
def test_leading_axes_are_points_one_by_one(name):
    s, z, g = build(name), draw(2, 3, build(name).dim), draw(2, 3, D)
    close(s.push(z), torch.stack([torch.stack([s.push(x) for x in row]) for row in z]), ROUNDING)
    close(s.project(g), torch.stack([torch.stack([s.project(x) for x in row]) for row in g]), ROUNDING)


def test_a_basis_for_every_member_is_that_members():
    s, directions = build("members"), draw(4, 17, D)
    z, g = draw(4, 17, seed=2), draw(4, D, seed=3)
    close(s.push(z), np.stack([x @ b for x, b in zip(z.numpy(), directions.numpy(), strict=True)]), ROUNDING)
    close(s.project(g), np.stack([b @ x for x, b in zip(g.numpy(), directions.numpy(), strict=True)]), ROUNDING)


# -- random bases -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "ambient"),
    [
        ("haar", 300),
        ("haar", 40),
        ("sparse", 300),
        ("sparse", 41),
        ("srht", 256),
        ("srht", 64),
        ("srht", 2),
        ("srht", 1),
    ],
)
@pytest.mark.parametrize("share", [0.01, 0.3, 1.0])
def test_orthonormal_bases_are_orthonormal(name, ambient, share):
    s = build(name, ambient=ambient, d=max(1, round(share * ambient)))
    close(basis(s) @ basis(s).T, np.eye(s.dim), ROUNDING)


def test_srht_off_powers_of_two_is_near_orthonormal():
    """Rows of an L = 512 frame seen in D = 300 columns: entries of B B^T have mean that of I and variance about 2 (L - D) / (L D) < 1 / 300."""
    b = basis(build("srht"))
    gram = (b @ b.T).numpy()
    close(gram.diagonal().mean(), 1.0, 4 / math.sqrt(17 * D))
    assert np.abs(gram - np.eye(17)).max() < 5 / math.sqrt(D)  # 153 entries, each 5 standard errors


def test_gaussian_rows_have_unit_norm_and_singular_values_within_the_edges():
    """T20: singular values lie in 1 ± sqrt(d / D), beyond it by t with probability below 2 exp(-D t^2 / 2); t = 0.1 at D = 2,000 gives 1e-4."""
    b = basis(build("gaussian", ambient=2000, d=200))
    close(b.norm(dim=1), np.ones(200), ROUNDING)
    values = np.linalg.svd(b.numpy(), compute_uv=False)
    edge = math.sqrt(200 / 2000)
    assert 1 - edge - 0.1 < values.min() < 1 - edge + 0.1
    assert 1 + edge - 0.1 < values.max() < 1 + edge + 0.1


@pytest.mark.parametrize("name", ["gaussian", "haar", "srht", "sparse"])
def test_a_fixed_direction_meets_a_random_subspace_in_the_share_d_over_D(name):
    """T16: |B g|^2 / |g|^2 has mean d / D and standard deviation at most sqrt(2 d) / D; the mean of 200 bases within 5 of its errors.

    Gaussian rows are not orthogonal, but the mean over rows of (b . g)^2 is 1 / D for them too.
    """
    g = torch.arange(64.0, dtype=F64) / torch.arange(64.0, dtype=F64).norm()
    shares = [
        float(random(torch.zeros(64, dtype=F64), 8, generator(i, "basis"), name).project(g).square().sum())
        for i in range(200)
    ]
    assert abs(np.mean(shares) - 8 / 64) < 5 * math.sqrt(2 * 8) / 64 / math.sqrt(200)


def test_sparse_directions_have_disjoint_supports_of_equal_size():
    b = basis(build("sparse", ambient=300, d=17))
    assert ((b != 0).sum(0) == 1).all()
    assert set((b != 0).sum(1).tolist()) == {300 // 17, 300 // 17 + 1}


@pytest.mark.parametrize("name", BASES)
def test_seeds_reproduce_and_differ(name):
    one, same, other = (random(torch.zeros(D, dtype=F64), 5, generator(seed, "basis"), name) for seed in (0, 0, 1))
    assert torch.equal(basis(one), basis(same))
    assert not torch.equal(basis(one), basis(other))


@pytest.mark.parametrize("name", ["gaussian"])
def test_a_gaussian_prefix_is_a_smaller_basis_of_the_same_seed(name):
    few, many = (random(torch.zeros(D, dtype=F64), d, generator(0, "basis"), name) for d in (16, 32))
    close(basis(few), basis(many)[:16], ROUNDING)


@pytest.mark.parametrize("length", [1, 2, 8, 512])
def test_hadamard_is_the_orthonormal_walsh_matrix_and_an_involution(length):
    walsh = np.ones((1, 1))
    while len(walsh) < length:
        walsh = np.block([[walsh, walsh], [walsh, -walsh]])
    x = draw(3, length)
    close(hadamard(x), x.numpy() @ walsh / math.sqrt(length), ROUNDING)
    close(hadamard(hadamard(x)), x, ROUNDING)


# -- coordinates, segments, principal directions -------------------------------------------------------------------------


def test_coordinates_are_the_entries_and_the_rest_stays_at_the_origin():
    origin, mask = draw(D), torch.arange(D) % 7 == 2
    s, z = coordinates(origin, mask), draw(int(mask.sum()), seed=1)
    lifted = s.lift(z)
    assert torch.equal(lifted[mask], z)
    assert torch.equal(lifted[~mask], origin[~mask])
    assert torch.equal(s.lift(origin[mask]), origin)
    assert torch.equal(s.project(origin), origin[mask])
    close(basis(s) @ basis(s).T, np.eye(s.dim), 0)


@pytest.mark.parametrize(
    "mask", [torch.zeros(5, dtype=torch.bool), torch.ones(5, dtype=torch.bool)], ids=["none", "all"]
)
def test_empty_and_full_masks(mask):
    origin = draw(5)
    s = coordinates(origin, mask)
    z = draw(s.dim, seed=1)
    assert torch.equal(s.lift(z), z if mask.all() else origin)


def test_a_segment_goes_from_start_to_end():
    start, end = draw(D), draw(D, seed=1)
    s = segment(start, end)
    close(s.lift(torch.tensor([0.0], dtype=F64)), start, 0)
    close(s.lift(torch.tensor([1.0], dtype=F64)), end, ROUNDING)
    close(
        s.lift(torch.tensor([[0.25], [2.0]], dtype=F64)),
        torch.stack([0.75 * start + 0.25 * end, 2 * end - start]),
        ROUNDING,
    )


def test_principal_spans_the_planted_plane():
    directions = plane(3, D)
    s = principal(draw(D), Planted(directions), 2)
    truth = directions[:2].T @ directions[:2]
    close(basis(s).T @ basis(s), truth, ROUNDING)
    point = s.lift(draw(2)) - s.origin
    close(truth @ point.numpy(), point, ROUNDING)


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("d", [0, -1, D + 1])
def test_dimensions_out_of_range_are_refused(name, d):
    with pytest.raises(UsageError, match=f"1 to {D} dimensions; got {d}"):
        random(torch.zeros(D), d, generator(0, "basis"), name)


@pytest.mark.parametrize("name", ["gaussian", "haar"])
def test_a_dense_basis_that_does_not_fit_names_the_cheaper_ones(name, monkeypatch):
    monkeypatch.setattr(subspaces, "DENSE_BYTES", 10 * D * 4)
    random(torch.zeros(D), 10, generator(0, "basis"), name)
    with pytest.raises(UsageError, match="Use srht or sparse"):
        random(torch.zeros(D), 11, generator(0, "basis"), name)


def coordinate_error():
    return Subspace(torch.zeros(3), 2, lambda z: z, lambda g: g).lift(torch.zeros(3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: random(torch.zeros(9), 2, generator(0, "x"), "gausian"), "Did you mean 'gaussian'"),
        (lambda: span(torch.zeros(9), torch.zeros(2, 8)), "8 parameters do not fit an origin of 9"),
        (lambda: segment(torch.zeros(9), torch.zeros(8)), r"got \(9,\) and \(8,\)"),
        (lambda: coordinates(torch.zeros(9), torch.ones(9)), "a mask is a bool tensor"),
        (lambda: coordinates(torch.zeros(9), torch.ones(8, dtype=torch.bool)), "a mask is a bool tensor"),
        (coordinate_error, r"last axis 2; got \(3,\)"),
        (lambda: hadamard(torch.zeros(6)), "a power of two; got 6"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(UsageError, match=message):
        make()
