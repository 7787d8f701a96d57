"""Every subspace obeys its law: project is the adjoint of push, whatever the constructor, dtype and leading axes."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from problems import F64, close, draw

from landscape import subspaces
from landscape.errors import UsageError
from landscape.seeds import generator
from landscape.subspaces import (
    BASES,
    Subspace,
    coordinates,
    ensemble,
    hadamard,
    prefixes,
    principal,
    random,
    segment,
    span,
)

ROUNDING = 1e-12  # at most 2,048 float64 terms of size 1 a sum
D = 300


class Planted:
    """A trajectory's principal directions, planted; those of its increments are others."""

    def __init__(self, directions):
        self.directions = directions

    def principal(self, dim, *, centring, rows):
        found = self.directions if (centring, rows) == ("centred", None) else self.directions[::-1].copy()
        return found[:dim], np.ones(len(self.directions))


def plane(d, ambient):
    return np.linalg.qr(draw(ambient, d, seed=9).numpy())[0].T.copy()


def layers(ambient):
    """Uneven blocks: two thirds, a quarter, and the rest."""
    sizes = [ambient * 2 // 3, ambient // 4]
    return [size for size in (*sizes, ambient - sum(sizes)) if size]


def build(name, dtype=F64, ambient=D, d=17):
    origin = draw(ambient, dtype=dtype)
    basis, _, kind = name.partition(" ")
    if basis in BASES and kind != "ensemble":
        return random(origin, d, generator(0, "basis"), basis, layers(ambient) if kind else None)
    if kind == "ensemble":  # E = 4, of two seeds
        return ensemble(draw(4, ambient, dtype=dtype), [d, max(1, d // 3), 1, d], [5, 5, 5, 2], basis)
    return {
        "span": lambda: span(origin, draw(d, ambient, dtype=dtype)),
        "members": lambda: span(draw(4, ambient, dtype=dtype), draw(4, d, ambient, dtype=dtype)),
        "segment": lambda: segment(origin, draw(ambient, seed=1, dtype=dtype)),
        "coordinates": lambda: coordinates(origin, torch.arange(ambient) % 7 == 2),
        "prefixes": lambda: prefixes(
            draw(4, ambient, dtype=dtype), draw(3, d, ambient, dtype=dtype), [2, 0, 2, 0], [1, d, max(1, d // 3), d]
        ),
        "principal": lambda: principal(origin, Planted(plane(d, ambient)), d),
        "moved": lambda: span(origin, draw(d, ambient, dtype=dtype)).at(origin + 1),
    }[name]()


MEMBERS = ["members", "prefixes", *(f"{basis} ensemble" for basis in BASES)]  # one basis a member, E = 4
SINGLE = [*BASES, *(f"{basis} blocks" for basis in BASES), "span", "segment", "coordinates", "principal", "moved"]
EVERY = [*SINGLE, *MEMBERS]


def basis(s):
    """B (d, D): the images of the axes; of an ensemble (E, d, D)."""
    axes = torch.eye(s.dim, dtype=s.origin.dtype)
    if s.origin.ndim == 1:
        return s.push(axes)
    return torch.stack([s.push(axis.expand(len(s.origin), -1)) for axis in axes], dim=1)


# -- laws of all ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ambient", [1, 2, 64, 300])
@pytest.mark.parametrize("axes", [(), (4,), (2, 3)])
# both inner products are sums of D d rounded terms, and rounding is relative to the sum of their sizes: |z| |B^T| |g|
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (F64, ROUNDING)], ids=["float32", "float64"])
@pytest.mark.parametrize("name", EVERY)
def test_project_is_the_adjoint_of_push(name, dtype, tolerance, axes, ambient):
    if name in MEMBERS:
        axes = (4,)
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
    shape = (4, s.dim) if name in MEMBERS else (s.dim,)
    a, b = draw(*shape, seed=2), draw(*shape, seed=3)
    close(s.lift(torch.zeros_like(a)), s.origin, 0)
    close(s.lift(a), s.origin + s.push(a), 0)
    close(s.push(2 * a - 3 * b), 2 * s.push(a) - 3 * s.push(b), ROUNDING)
    assert s.ambient == D


@pytest.mark.parametrize("name", EVERY)
def test_residuals_are_the_distances_of_least_squares(name):
    """To one part in 10^8: what is left of the squared distance after a step that no longer counts is its rounding."""
    s = build(name)
    w = draw(4, D, seed=5)
    bases = np.broadcast_to(basis(s).numpy(), (4, s.dim, D))
    origins = np.broadcast_to(s.lift(torch.zeros(*s.origin.shape[:-1], s.dim, dtype=F64)).numpy(), (4, D))
    truth = [
        np.linalg.norm(b.T @ np.linalg.lstsq(b.T, x - o, rcond=None)[0] - (x - o))
        for b, o, x in zip(bases, origins, w.numpy(), strict=True)
    ]
    close(s.residual(w), np.array(truth), 1e-8)
    inside = s.lift(draw(4, s.dim, seed=6))
    assert float((s.residual(inside) / (inside - s.origin).norm(dim=1)).max()) < 1e-12
    close(s.residual(s.lift(torch.zeros(4, s.dim, dtype=F64))), np.zeros(4), 0)


def test_residuals_need_no_independent_nor_well_scaled_directions():
    """A repeated, a zero and a tiny direction, and two at an angle of 1e-4: the condition number is 1e4 beside the dependence."""
    free = draw(4, D)
    rows = torch.stack([free[0], free[0], 0 * free[0], 1e-4 * free[1], free[2], free[2] + 1e-4 * free[3]])
    q = np.linalg.qr(free.numpy().T)[0]
    w = draw(3, D, seed=7)
    close(
        span(torch.zeros(D, dtype=F64), rows).residual(w),
        np.linalg.norm(w.numpy() @ (np.eye(D) - q @ q.T), axis=1),
        1e-8,
    )


@pytest.mark.parametrize("name", SINGLE)
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


def test_sparse_directions_have_disjoint_supports_of_equal_size():
    b = basis(build("sparse", ambient=300, d=17))
    assert ((b != 0).sum(0) == 1).all()
    assert set((b != 0).sum(1).tolist()) == {300 // 17, 300 // 17 + 1}


@pytest.mark.parametrize("name", BASES)
def test_seeds_reproduce_and_differ(name):
    one, same, other = (random(torch.zeros(D, dtype=F64), 5, generator(seed, "basis"), name) for seed in (0, 0, 1))
    assert torch.equal(basis(one), basis(same))
    assert not torch.equal(basis(one), basis(other))


@pytest.mark.parametrize("blocks", [None, [27, 10, 4]])
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", ["gaussian", "haar", "srht"])
def test_the_smaller_subspace_is_a_prefix_of_the_larger(name, dtype, blocks):
    """Also of odd sizes, which torch's normal numbers are not stable in by themselves; to the rounding of a norm or a QR."""
    few, whole = (
        [basis(random(torch.zeros(41, dtype=dtype), d, generator(0, "basis"), name, blocks)) for d in dims]
        for dims in ((1, 2, 3, 16, 40), (41,))
    )
    for rows in few:
        close(rows, whole[0][: len(rows)], 1e-5 if dtype == torch.float32 else ROUNDING)


# -- blocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BASES)
def test_blocks_share_the_directions_in_proportion_to_their_sizes(name):
    """By hand for sizes 6, 3, 1: claims 12 4 2.4 1.7 1.3 1.1, 6 2 1.2, 2 give the order 0 1 0 0 1 2 0 0 1 0."""
    order = [0, 1, 0, 0, 1, 2, 0, 0, 1, 0]
    block = np.repeat([0, 1, 2], [6, 3, 1])
    for d in range(1, 11):
        rows = basis(random(torch.zeros(10, dtype=F64), d, generator(0, "basis"), name, [6, 3, 1]))
        owners = [{int(b) for b in block[row.numpy() != 0]} for row in rows]
        assert owners == [{owner} for owner in order[:d]]


@pytest.mark.parametrize("name", BASES)
def test_directions_in_blocks_are_as_good_as_alone(name):
    rows = basis(random(torch.zeros(112, dtype=F64), 28, generator(0, "basis"), name, [64, 32, 16]))
    gram = (rows @ rows.T).numpy()
    close(gram.diagonal(), np.ones(28), ROUNDING)
    if name != "gaussian":  # 16, 8 and 4 directions in powers of two: orthonormal
        close(gram, np.eye(28), ROUNDING)
    assert len({tuple(row) for row in rows.tolist()}) == 28


def test_blocks_have_streams_of_their_own():
    """The first block's directions are the same whatever the second one is."""
    one, other = (
        basis(random(torch.zeros(8 + n, dtype=F64), 8, generator(0, "basis"), "gaussian", [8, n])) for n in (8, 5)
    )
    firsts = [rows[rows[:, 0] != 0, :8] for rows in (one, other)]
    close(firsts[0], firsts[1][: len(firsts[0])], ROUNDING)


# -- ensembles --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [None, [200, 80, 20]])
@pytest.mark.parametrize("name", BASES)
def test_each_member_of_an_ensemble_is_the_random_subspace_of_its_seed_and_dimension(name, blocks):
    dims, seeds, origin = [5, 40, 1, 40, 17], [3, 3, 8, 0, 3], draw(5, D)
    s = ensemble(origin, dims, seeds, name, blocks, stream="planes")
    assert s.dim == 40
    z, g = draw(5, 40, seed=1), draw(5, D, seed=2)
    lifted, projected = s.lift(z), s.project(g)
    for e in range(5):
        own = random(origin[e], dims[e], generator(seeds[e], "planes"), name, blocks)
        close(lifted[e], own.lift(z[e, : dims[e]]), ROUNDING)
        close(projected[e, : dims[e]], own.project(g[e]), ROUNDING)
        assert (projected[e, dims[e] :] == 0).all()


@pytest.mark.parametrize("piece", [1, 7, 100])
@pytest.mark.parametrize(
    ("groups", "dims"),
    [
        ([0, 0, 0, 1, 1, 1, 2, 2, 2], [40, 9, 1] * 3),  # a grid, sorted: no member is moved
        ([2, 1, 0, 0, 1, 2], [3, 3, 3, 12, 12, 12]),  # a grid in another order
        ([1, 1, 1, 1, 2], [39, 5, 5, 20, 2]),  # uneven, one basis idle, none used to its end
        ([0], [1]),
    ],
)
def test_prefixes_are_the_products_with_the_first_rows(groups, dims, piece, monkeypatch):
    monkeypatch.setattr(subspaces, "PIECE", piece)
    bases, origin = draw(3, 40, D), draw(len(dims), D, seed=1)
    s = prefixes(origin, bases, groups, dims)
    z, g = draw(len(dims), 40, seed=2), draw(len(dims), D, seed=3)
    rows = [bases[group, :d].numpy() for group, d in zip(groups, dims, strict=True)]
    close(s.push(z), np.stack([x[: len(b)] @ b for x, b in zip(z.numpy(), rows, strict=True)]), ROUNDING)
    truth = [np.pad(b @ x, (0, 40 - len(b))) for x, b in zip(g.numpy(), rows, strict=True)]
    close(s.project(g), np.stack(truth), ROUNDING)


def test_a_member_that_is_not_a_number_spoils_no_other():
    s = ensemble(draw(4, D), [40, 3, 40, 3], [0, 0, 1, 1])
    z, g = draw(4, 40, seed=1), draw(4, D, seed=2)
    lost = z.clone(), g.clone()
    lost[0][2], lost[1][2] = float("nan"), float("inf")
    others = [0, 1, 3]
    assert torch.equal(s.push(lost[0])[others], s.push(z)[others])
    assert torch.equal(s.project(lost[1])[others], s.project(g)[others])


# -- large ones -------------------------------------------------------------------------------------------------------

LARGE = """
import torch
from landscape.seeds import generator
from landscape.subspaces import random
def peak():  # of this process alone, in bytes; ru_maxrss would hold that of the process that started it, too
    return 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
torch.set_num_threads(1)
before = peak()
s = random(torch.zeros(10**6), 4096, generator(0, "basis"), "srht")
z = torch.randn(4096, generator=generator(0, "z"))
w = s.lift(z)
back = s.project(w)
print(peak() - before, float((back - z).norm() / z.norm()))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_million_parameters_and_4096_directions_fit_in_two_gibibytes():
    """A dense basis would take 15.3 GiB. B B^T differs from 1 by entries of variance 2 (L - D) / (L D): |B B^T z - z| / |z| is about sqrt(4096) 3e-4 = 0.02."""
    out = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, check=True).stdout.split()
    assert int(out[0]) < 2 * 2**30
    assert 1e-3 < float(out[1]) < 0.1


# -- Hadamard transforms ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 8, 64, 128, 512, 2048])
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
    last = principal(draw(D), Planted(directions), 1, centring="increments", rows=[0, 4])
    close(basis(last)[0], directions[2], ROUNDING)


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
    with pytest.raises(UsageError, match=r"11 x 300 takes .* Use srht or sparse"):
        random(torch.zeros(D), 11, generator(0, "basis"), name)
    random(torch.zeros(D), 20, generator(0, "basis"), name, [100, 100, 100])  # 20 rows of 100 numbers
    with pytest.raises(UsageError, match="Use srht or sparse"):
        random(torch.zeros(D), 31, generator(0, "basis"), name, [100, 100, 100])
    ensemble(torch.zeros(4, D), [5, 5, 5, 1], [0, 1, 0, 1], name)
    with pytest.raises(UsageError, match=r"for each of 3 seeds, takes .* Use fewer seeds at once, or srht or sparse"):
        ensemble(torch.zeros(3, D), [5, 5, 5], [0, 1, 2], name)


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
        (lambda: random(torch.zeros(9, dtype=torch.long), 2, generator(0, "x")), "floating numbers; got torch.int64"),
        (
            lambda: random(torch.zeros(9), 2, generator(0, "x"), blocks=[4, 4]),
            "make up the 9 parameters; these make up 8",
        ),
        (lambda: random(torch.zeros(9), 2, generator(0, "x"), blocks=[9, 0]), "sizes of at least 1"),
        (lambda: random(torch.zeros(9), 2, generator(0, "x"), blocks=[]), "these make up 0"),
        (lambda: ensemble(torch.zeros(9), [2], [0]), r"origins are \(E, D\); got \(9,\)"),
        (lambda: ensemble(torch.zeros(2, 9), [2], [0, 1]), "1 dims for an ensemble of 2"),
        (lambda: ensemble(torch.zeros(2, 9), [2, 2], [0]), "1 seeds for an ensemble of 2"),
        (lambda: ensemble(torch.zeros(0, 9), [], []), "0 dims for an ensemble of 0"),
        (lambda: ensemble(torch.zeros(2, 9), [2, 0], [0, 1]), "1 to 9 dimensions; got 0"),
        (lambda: ensemble(torch.zeros(2, 9), [2, 10], [0, 1]), "1 to 9 dimensions; got 10"),
        (lambda: ensemble(torch.zeros(2, 9), [2, 2], [0, 1], "haar", [4]), "these make up 4"),
        (lambda: ensemble(torch.zeros(2, 9), [2, 2], [0, 1], "sprht"), "Did you mean 'srht'"),
        (lambda: prefixes(torch.zeros(2, 9), torch.zeros(1, 3, 8), [0, 0], [1, 1]), r"bases are \(S, d, 9\)"),
        (lambda: prefixes(torch.zeros(2, 9), torch.zeros(3, 9), [0, 0], [1, 1]), r"bases are \(S, d, 9\)"),
        (lambda: prefixes(torch.zeros(2, 9), torch.zeros(1, 3, 9), [0, 1], [1, 1]), "1 bases by 0 to 0"),
        (
            lambda: prefixes(torch.zeros(2, 9), torch.zeros(1, 3, 9), [0, 0], [1, 4]),
            r"prefixes of 1 to 3; got \[1, 4\]",
        ),
        (
            lambda: prefixes(torch.zeros(2, 9), torch.zeros(1, 3, 9), [0, 0], [1, 0]),
            r"prefixes of 1 to 3; got \[0, 1\]",
        ),
        (lambda: prefixes(torch.zeros(2, 9), torch.zeros(1, 3, 9), [0], [1, 1]), "1 groups for an ensemble of 2"),
        (
            lambda: ensemble(torch.zeros(2, 9), [2, 2], [0, 1]).lift(torch.zeros(2)),
            r"takes vectors \(2, 2\); got \(2,\)",
        ),
        (lambda: ensemble(torch.zeros(2, 9), [2, 2], [0, 1], "srht").lift(torch.zeros(2)), r"takes vectors \(2, 2\)"),
        (
            lambda: ensemble(torch.zeros(2, 9), [2, 2], [0, 1], "sparse").project(torch.zeros(9)),
            r"takes vectors \(2, 9\)",
        ),
        (lambda: hadamard(torch.zeros(0)), "a power of two; got 0"),
        (lambda: hadamard(torch.zeros(6)), "a power of two; got 6"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(UsageError, match=message):
        make()
