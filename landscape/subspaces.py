"""Affine subspaces: maps R^d -> R^D, z -> origin + B z, with the adjoint g -> B^T g of their linear part.

Letters: D parameters, d subspace dimension, E ensemble, S bases shared by its members. Everything is batched over leading axes: z (..., d) -> (..., D).
A basis is stored row-major (d, D), its directions in rows: that is twice as fast as columns, and a prefix of rows is a smaller nested subspace.
Random numbers are drawn on the CPU, in float32 at least, and moved: a basis is the same on every device.

Sources: Li et al. 2018 and Larsen et al. 2022 (random affine subspaces, columns of unit norm); Ailon and Chazelle 2006, Tropp 2011 (SRHT);
Gressmann et al. 2020 (a compartment of directions for each layer); Li et al. 2022 (DLDR: principal directions of a trajectory).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from landscape.errors import UsageError, unknown
from landscape.seeds import generator as stream_of
from landscape.trajectories import Centring

Basis = Literal["gaussian", "haar", "srht", "sparse"]
BASES: tuple[Basis, ...] = ("gaussian", "haar", "srht", "sparse")
DENSE = ("gaussian", "haar")  # stored number by number; the others take O(D)

# dense bases beyond this are refused: 4 GiB, a sixth of a common machine's memory
DENSE_BYTES = 4 * 2**30
# rows of a basis that are multiplied at once in an ensemble of many dimensions: shorter pieces cost more calls than they save zeros (24 members a basis)
PIECE = 32
# a Hadamard transform is made of matrices of at most 2^6 rows: the fastest of 2^4 to 2^9 for 2^13 to 2^20 numbers
RADIX_BITS = 6


class HasPrincipalDirections(Protocol):
    """What `principal` needs of a trajectory."""

    def principal(
        self, dim: int, *, centring: Centring = "centred", rows: Sequence[int] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Directions (d, D) and the variances of all principal components."""


@dataclass(frozen=True, eq=False)
class Subspace:
    """The affine map z -> origin + B z. Build it with one of the constructors below; nothing asks afterwards which it was."""

    origin: Tensor  # (D,) or (E, D)
    dim: int  # d
    push: Callable[[Tensor], Tensor]  # B z: (..., d) -> (..., D)
    project: Callable[[Tensor], Tensor]  # B^T g: (..., D) -> (..., d), the adjoint of push
    place: Callable[[Tensor], Tensor] | None = None  # origin + B z at once, where that costs less than the sum
    mask: Tensor | None = None  # zeros and ones (D,) or (E, D), where the origin is 0 and B is the product with these

    @property
    def ambient(self) -> int:
        """D."""
        return self.origin.shape[-1]

    def lift(self, z: Tensor) -> Tensor:
        """The points origin + B z (..., D) of coordinates z (..., d)."""
        if z.shape[-1] != self.dim:
            raise UsageError(
                f"coordinates of a {self.dim}-dimensional subspace have last axis {self.dim}; got {tuple(z.shape)}."
            )
        return self.origin + self.push(z) if self.place is None else self.place(z)

    def at(self, origin: Tensor) -> Subspace:
        """The parallel subspace through another origin."""
        return Subspace(origin, self.dim, self.push, self.project)

    def residual(self, w: Tensor) -> Tensor:
        """Distances (...,) of points w (..., D) to the subspace, whatever its basis: orthonormal or not, even dependent.

        Conjugate gradients on the least-squares problem (CGLS, Hestenes and Stiefel 1952) need push and project only, one of each where the basis is
        orthonormal, and stop once a step would shorten no distance by more than its rounding.
        """
        eps, tiny = torch.finfo(w.dtype).eps, torch.finfo(w.dtype).tiny
        rest = w - self.origin
        whole = rest.square().sum(-1, keepdim=True)
        slope = self.project(rest)
        along, size = slope, slope.square().sum(-1, keepdim=True)
        for _ in range(4 * self.dim + 20):  # d steps were enough without rounding
            image = self.push(along)
            step = size / image.square().sum(-1, keepdim=True).clamp_min(tiny)
            useful = step * size > eps * torch.maximum(rest.square().sum(-1, keepdim=True), eps * whole)
            if not useful.any():
                break
            rest = torch.where(useful, rest - step * image, rest)
            slope = self.project(rest)
            before, size = size, slope.square().sum(-1, keepdim=True)
            along = slope + size / before.clamp_min(tiny) * along
        distance: Tensor = rest.norm(dim=-1)
        return distance


def span(origin: Tensor, directions: Tensor) -> Subspace:
    """Through `origin` (D,) along the rows of `directions` (d, D), taken as they are; with a leading axis (E, d, D), one basis a member."""
    if directions.shape[-1] != origin.shape[-1]:
        raise UsageError(f"directions of {directions.shape[-1]} parameters do not fit an origin of {origin.shape[-1]}.")
    if directions.ndim == 3:
        return Subspace(
            origin,
            directions.shape[1],
            lambda z: torch.einsum("ed,edp->ep", z, directions),
            lambda g: torch.einsum("ep,edp->ed", g, directions),
        )
    return Subspace(origin, directions.shape[0], lambda z: z @ directions, lambda g: g @ directions.T)


def segment(start: Tensor, end: Tensor) -> Subspace:
    """The line through two points (D,): coordinate 0 is `start`, 1 is `end`."""
    if start.shape != end.shape:
        raise UsageError(f"a segment joins points of one shape; got {tuple(start.shape)} and {tuple(end.shape)}.")
    return span(start, (end - start).unsqueeze(0))


def coordinates(origin: Tensor, mask: Tensor) -> Subspace:
    """The axial subspace of a mask (D,) bool: coordinates are the entries where it is true; the others stay at `origin`."""
    if mask.shape != origin.shape[-1:] or mask.dtype != torch.bool:
        raise UsageError(f"a mask is a bool tensor ({origin.shape[-1]},); got {mask.dtype} {tuple(mask.shape)}.")
    (places,) = mask.nonzero(as_tuple=True)
    ambient = origin.shape[-1]
    # the coordinate is the entry itself, so the origin gives only what lies outside the mask
    outside = torch.where(mask, torch.zeros_like(origin), origin)

    def push(z: Tensor) -> Tensor:
        return z.new_zeros(*z.shape[:-1], ambient).index_copy(-1, places, z)

    def place(z: Tensor) -> Tensor:
        return outside.expand(*z.shape[:-1], ambient).index_copy(-1, places, z)

    return Subspace(outside, len(places), push, lambda g: g.index_select(-1, places), place)


def axes(masks: Tensor, dtype: torch.dtype) -> Subspace:
    """The axial subspace through 0 of a mask (D,) bool, or of an ensemble with a mask (E, D) each. Coordinates are the D entries themselves; those outside the mask do nothing.

    What starts at 0 outside the mask stays exactly there: its gradient is 0. A product with the mask costs a third of what `coordinates` takes to gather and
    scatter, but matrices of second derivatives are singular here.
    """
    if masks.ndim not in (1, 2) or masks.dtype != torch.bool:
        raise UsageError(f"masks are bool (D,), or (E, D) of an ensemble; got {masks.dtype} {tuple(masks.shape)}.")
    kept = masks.to(dtype)  # a product is 15 times faster than masked_fill

    def keep(v: Tensor) -> Tensor:
        return v * kept

    dim = masks.shape[-1]
    return Subspace(torch.zeros(dim, dtype=dtype, device=masks.device), dim, keep, keep, keep, kept)


def random(
    origin: Tensor,
    dim: int,
    generator: torch.Generator,
    basis: Basis = "gaussian",
    blocks: Sequence[int] | None = None,
) -> Subspace:
    """A random d-dimensional subspace through `origin` (D,).

    basis: `gaussian` (rows of unit norm, the papers' choice and so the default), `haar` (orthonormal rows, uniform on the Grassmannian), `srht`
    (rows of a randomised Hadamard transform: orthonormal where D is a power of two, nearly so for d far below D elsewhere, O(D) storage), `sparse`
    (disjoint random coordinates with random signs: exactly orthonormal, O(D) storage; hit laws drift slightly for axis-aligned targets).
    All but `sparse` are nested: from generators in the same state, the smaller subspace is the prefix of the larger.
    blocks: sizes of consecutive blocks of parameters, as a rule the layers; each direction then lies in one block, and the blocks share the directions
    in proportion to their sizes.

    Raises UsageError where d is not in 1..D, the blocks do not make up D, or a dense basis would not fit.
    """
    _check(origin, [dim], basis, blocks)
    _check_dense(origin, dim, basis, blocks)
    return _random(origin, dim, generator, basis, blocks)


def ensemble(
    origin: Tensor,
    dims: Sequence[int],
    seeds: Sequence[int],
    basis: Basis = "gaussian",
    blocks: Sequence[int] | None = None,
    stream: str = "subspace",
) -> Subspace:
    """Random subspaces of E members: member e is `random(origin[e], dims[e], generator(seeds[e], stream), basis, blocks)`.

    origin (E, D). Coordinates are (E, d), d the largest of the dims; those of a member beyond its own dimension do nothing, and their gradient is 0.
    Members of one seed share one stored basis (but for `sparse`, which is not nested).

    Raises UsageError as `random` does, and where dims or seeds are not one a member.
    """
    _check(origin, dims, basis, blocks)
    _check_members(origin, dims=dims, seeds=seeds)
    names = sorted(set(seeds))
    dim = max(dims)
    _check_dense(origin, dim, basis, blocks, len(names))
    if basis in DENSE and blocks is None:
        bases = torch.stack([_dense(origin, dim, stream_of(seed, stream), basis) for seed in names])
        return prefixes(origin, bases, [names.index(seed) for seed in seeds], dims)
    shared: dict[tuple[int, int], list[int]] = {}
    for member, (seed, own) in enumerate(zip(seeds, dims, strict=True)):
        shared.setdefault((seed, own if basis == "sparse" else dim), []).append(member)
    parts = [
        (torch.tensor(members, device=origin.device), _random(origin[0], d, stream_of(seed, stream), basis, blocks))
        for (seed, d), members in shared.items()
    ]
    where = torch.cat([members for members, _ in parts]).argsort()
    used = _used(dims, dim, origin)

    def push(z: Tensor) -> Tensor:
        _fits(z, *used.shape)
        z = z * used
        return torch.cat([part.push(z[members, : part.dim]) for members, part in parts])[where]

    def project(g: Tensor) -> Tensor:
        _fits(g, *origin.shape)
        found = [pad(part.project(g[members]), (0, dim - part.dim)) for members, part in parts]
        return torch.cat(found)[where] * used

    return Subspace(origin, dim, push, project)


def prefixes(origin: Tensor, bases: Tensor, groups: Sequence[int], dims: Sequence[int]) -> Subspace:
    """Nested subspaces of shared bases: member e of `origin` (E, D) moves along the first dims[e] rows of bases[groups[e]], bases (S, d, D).

    Coordinates are (E, d). Those beyond a member's own dimension do nothing, and their gradient is 0.

    The members of a basis are sorted by falling dimension, so that rows a..b of it are multiplied only with the members that use them.
    It is fastest where all bases have equally many members of the same dims, and they come so sorted, basis after basis.

    Raises UsageError where shapes, groups and dims do not fit.
    """
    _check_members(origin, groups=groups, dims=dims)
    if bases.ndim != 3 or bases.shape[-1] != origin.shape[-1]:
        raise UsageError(f"bases are (S, d, {origin.shape[-1]}); got {tuple(bases.shape)}.")
    total, dim, ambient = bases.shape
    if not all(0 <= group < total for group in groups):
        raise UsageError(f"groups name one of {total} bases by 0 to {total - 1}; got {sorted(set(groups))}.")
    if not all(1 <= own <= dim for own in dims):
        raise UsageError(f"bases of {dim} directions have prefixes of 1 to {dim}; got {sorted(set(dims))}.")
    members = len(dims)
    of_group = [sorted((e for e in range(members) if groups[e] == s), key=lambda e: -dims[e]) for s in range(total)]
    width = max(map(len, of_group))
    # slot (s, i) holds the i-th member of basis s; where it has fewer, member 0, whose second result nobody reads
    who, where = torch.zeros(total, width, dtype=torch.long), torch.zeros(members, dtype=torch.long)
    for s, own in enumerate(of_group):
        who[s, : len(own)] = torch.tensor(own)
        where[own] = torch.arange(len(own)) + s * width
    who = who.flatten()
    straight = torch.equal(who, torch.arange(members))
    who, where = who.to(origin.device), where.to(origin.device)
    pieces = _pieces([[dims[e] for e in own] for own in of_group])
    used = _used(dims, dim, origin)

    def push(z: Tensor) -> Tensor:
        _fits(z, *used.shape)
        z = z * used
        z = (z if straight else z[who]).view(total, width, dim)
        (_, first, _), *others = pieces
        out = torch.bmm(z[:, :, :first], bases[:, :first])
        for low, high, count in others:
            out[:, :count].baddbmm_(z[:, :count, low:high], bases[:, low:high])
        out = out.view(total * width, ambient)
        return out if straight else out[where]

    def project(g: Tensor) -> Tensor:
        _fits(g, *origin.shape)
        g = (g if straight else g[who]).view(total, width, ambient)
        out = g.new_zeros(total, width, dim)
        for low, high, count in pieces:
            out[:, :count, low:high] = torch.bmm(g[:, :count], bases[:, low:high].mT)
        out = out.view(total * width, dim)
        return (out if straight else out[where]) * used

    return Subspace(origin, dim, push, project)


def principal(
    origin: Tensor,
    trajectory: HasPrincipalDirections,
    dim: int,
    *,
    centring: Centring = "centred",
    rows: Sequence[int] | None = None,
) -> Subspace:
    """Through `origin` (D,) along the first d principal directions (orthonormal rows) of a trajectory, or of those of its rows.

    Centred is DLDR (Li et al. 2022, who go through the trajectory's first point), increments the lottery subspaces of Larsen et al. 2022.
    """
    directions, _ = trajectory.principal(dim, centring=centring, rows=rows)
    return span(origin, torch.from_numpy(directions).to(origin))


# -- checks -----------------------------------------------------------------------------------------------------------


def _check(origin: Tensor, dims: Sequence[int], basis: str, blocks: Sequence[int] | None) -> None:
    ambient = origin.shape[-1]
    if basis not in BASES:
        raise unknown("basis", basis, BASES)
    if not origin.is_floating_point():
        raise UsageError(f"a subspace goes through a point of floating numbers; got {origin.dtype}.")
    for dim in dims:
        if not 1 <= dim <= ambient:
            raise UsageError(f"a subspace of {ambient} parameters has 1 to {ambient} dimensions; got {dim}.")
    if blocks is not None and (sum(blocks) != ambient or min(blocks, default=0) < 1):
        raise UsageError(
            f"blocks are sizes of at least 1 that make up the {ambient} parameters; these make up {sum(blocks)}: {list(blocks)}."
        )


def _check_members(origin: Tensor, **each: Sequence[int]) -> None:
    if origin.ndim != 2:
        raise UsageError(f"an ensemble's origins are (E, D); got {tuple(origin.shape)}.")
    for name, values in each.items():
        if len(values) != len(origin) or not len(values):
            raise UsageError(f"{len(values)} {name} for an ensemble of {len(origin)}: give one a member.")


def _check_dense(origin: Tensor, dim: int, basis: str, blocks: Sequence[int] | None, seeds: int = 1) -> None:
    if basis not in DENSE:
        return
    ambient = origin.shape[-1]
    shares = (
        zip(blocks, np.bincount(_shares(blocks, dim), minlength=len(blocks)), strict=True)
        if blocks
        else [(ambient, dim)]
    )
    size = seeds * sum(int(size) * int(share) for size, share in shares) * origin.element_size()
    if size <= DENSE_BYTES:
        return
    many = f", one for each of {seeds} seeds," if seeds > 1 else ""
    fewer = "fewer seeds at once, or " if seeds > 1 else ""
    raise UsageError(
        f"a dense {basis} basis of {dim} x {ambient}{many} takes {size / 2**30:.1f} GiB (allowed: {DENSE_BYTES / 2**30:.0f}). "
        f"Use {fewer}srht or sparse, which store O(D)."
    )


def _fits(vectors: Tensor, members: int, width: int) -> None:
    if vectors.shape != (members, width):
        raise UsageError(f"an ensemble of {members} takes vectors ({members}, {width}); got {tuple(vectors.shape)}.")


# -- random bases -----------------------------------------------------------------------------------------------------


def _random(
    origin: Tensor, dim: int, generator: torch.Generator, basis: Basis, blocks: Sequence[int] | None
) -> Subspace:
    if blocks is not None:
        return _blockwise(origin, dim, generator, basis, blocks)
    if basis in DENSE:
        return span(origin, _dense(origin, dim, generator, basis))
    return (_srht if basis == "srht" else _sparse)(origin, dim, generator)


def _dense(origin: Tensor, dim: int, generator: torch.Generator, basis: str) -> Tensor:
    """Rows (d, D), of unit norm or orthonormal, in the dtype and on the device of the origin."""
    ambient = origin.shape[-1]
    dtype = torch.float64 if origin.dtype == torch.float64 else torch.float32
    # torch draws normal numbers in sixteens and the rest of them otherwise: with whole sixteens a row does not depend on how many follow
    rows = torch.randn(dim, -(-ambient // 16) * 16, generator=generator, dtype=dtype)[:, :ambient]
    rows = _orthonormal(rows) if basis == "haar" else rows / rows.norm(dim=1, keepdim=True)
    return rows.to(origin)


def _shares(blocks: Sequence[int], dim: int) -> np.ndarray:
    """The block (d,) that each direction lies in: the next one goes where size / (directions so far + 1/2) is largest.

    (Webster's method: in proportion to the sizes, rounded to the nearest, never more than a size, and nobody loses a direction when d grows.)
    """
    counts = [min(size, dim) for size in blocks]
    owners = np.repeat(np.arange(len(blocks)), counts)
    claims = np.concatenate([size / (np.arange(count) + 0.5) for size, count in zip(blocks, counts, strict=True)])
    return owners[np.argsort(-claims, kind="stable")[:dim]]


def _blockwise(origin: Tensor, dim: int, generator: torch.Generator, basis: Basis, blocks: Sequence[int]) -> Subspace:
    owner = _shares(blocks, dim)
    # each block has a stream of its own, so that its directions do not depend on those of the others
    seeds = torch.randint(2**63 - 1, (len(blocks),), generator=generator).tolist()
    parts = []
    for block, (end, size, seed) in enumerate(zip(np.cumsum(blocks).tolist(), blocks, seeds, strict=True)):
        own = torch.from_numpy(np.flatnonzero(owner == block)).to(origin.device)
        if len(own):
            place, stream = slice(end - size, end), torch.Generator().manual_seed(seed)
            parts.append((place, own, _random(origin[..., place], len(own), stream, basis, None)))

    def push(z: Tensor) -> Tensor:
        out = z.new_zeros(*z.shape[:-1], origin.shape[-1])
        for place, own, part in parts:
            out[..., place] = part.push(z[..., own])
        return out

    def project(g: Tensor) -> Tensor:
        out = g.new_zeros(*g.shape[:-1], dim)
        for place, own, part in parts:
            out[..., own] = part.project(g[..., place])
        return out

    return Subspace(origin, dim, push, project)


def _pieces(dims: Sequence[Sequence[int]]) -> list[tuple[int, int, int]]:
    """Pieces (low, high, count) of the rows of bases: of the members of each, by falling dims, only the first `count` use any of that piece."""
    known = sorted({own for group in dims for own in group})
    pieces, low = [], 0
    for high in known:
        if high - low >= PIECE or high == known[-1]:
            pieces.append((low, high, max(sum(own > low for own in group) for group in dims)))
            low = high
    return pieces


def _used(dims: Sequence[int], dim: int, like: Tensor) -> Tensor:
    """1 for the coordinates (E, d) of each member's own dimensions, 0 beyond."""
    return (torch.arange(dim) < torch.tensor(dims).unsqueeze(1)).to(like)


def _orthonormal(rows: Tensor) -> Tensor:
    # Q of a Gaussian's QR is Haar once the signs of R's diagonal are taken out (Mezzadri 2007)
    q, r = torch.linalg.qr(rows.T.double())
    signs = torch.where(r.diagonal() < 0, -1.0, 1.0).to(q)
    orthonormal: Tensor = (q * signs).T
    return orthonormal.contiguous()


def _srht(origin: Tensor, dim: int, generator: torch.Generator) -> Subspace:
    """Spread over random places, Hadamard transform, random rotations of pairs, Hadamard transform, random signs.

    Rotations where the textbook has signs: about signs, all rows are shifts (by exclusive or) of one vector of few different values, and now and then
    dependent. Of 600 such subspaces of 10 dimensions 67 missed the solution of the toy of Li et al. 2018 (D = 1,000); rows about rotations are
    independent almost surely, and no subspace missed.
    """
    ambient = origin.shape[-1]
    length = 1 << (ambient - 1).bit_length()
    angles = torch.rand(length // 2, generator=generator, dtype=torch.float64) * 2 * math.pi
    angles = torch.cat([angles, -angles, torch.zeros(length % 2)])  # of places i and i + L / 2, which turn together
    cos, sin = angles.cos().to(origin), angles.sin().to(origin)
    # rows keep unit norm on average when only D of the L columns are used
    signs = (torch.randint(0, 2, (ambient,), generator=generator) * 2 - 1).to(origin) * math.sqrt(length / ambient)
    places = torch.randperm(length, generator=generator)[:dim].to(origin.device)

    def push(z: Tensor) -> Tensor:
        x = hadamard(z.new_zeros(*z.shape[:-1], length).index_copy(-1, places, z))
        return hadamard(cos * x + sin * x.roll(length // 2, -1))[..., :ambient] * signs

    def project(g: Tensor) -> Tensor:
        x = hadamard(pad(g * signs, (0, length - ambient)))
        return hadamard(cos * x - sin * x.roll(length // 2, -1)).index_select(-1, places)

    return Subspace(origin, dim, push, project)


def _sparse(origin: Tensor, dim: int, generator: torch.Generator) -> Subspace:
    ambient = origin.shape[-1]
    # parameter i belongs to direction group[i]; every direction gets floor or ceil of D / d parameters
    group = torch.empty(ambient, dtype=torch.long)
    group[torch.randperm(ambient, generator=generator)] = torch.arange(ambient) % dim
    sizes = torch.bincount(group, minlength=dim)
    signs = torch.randint(0, 2, (ambient,), generator=generator) * 2 - 1
    weights = (signs / sizes[group].double().sqrt()).to(origin)
    group = group.to(origin.device)

    def project(g: Tensor) -> Tensor:
        return g.new_zeros(*g.shape[:-1], dim).index_add(-1, group, g * weights)

    return Subspace(origin, dim, lambda z: z.index_select(-1, group) * weights, project)


def hadamard(x: Tensor) -> Tensor:
    """The orthonormal Walsh-Hadamard transform of the last axis (its length L a power of two), its own inverse.

    The matrix is a Kronecker product of small ones, and each of them is one matrix product over all the numbers: about 10 times faster than log2 L
    passes of additions, which are bound by memory.
    """
    length = x.shape[-1]
    if length & (length - 1) or not length:
        raise UsageError(f"a Hadamard transform needs a power of two; got {length}.")
    shape, bits, done = x.shape, length.bit_length() - 1, 1
    count = -(-bits // RADIX_BITS)
    for i in range(count):
        size = 1 << (bits + i) // count  # the bits, shared out evenly
        walsh = _walsh(size, x.dtype, x.device)
        if not i:
            walsh = walsh / math.sqrt(length)
        x = x.reshape(-1, size) @ walsh if done == 1 else walsh @ x.reshape(-1, size, done)
        done *= size
    return x.reshape(shape)


@functools.cache
def _walsh(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The matrix of entries 1 and -1."""
    matrix = torch.ones(1, 1, dtype=dtype, device=device)
    while len(matrix) < size:
        matrix = torch.kron(torch.tensor([[1, 1], [1, -1]], dtype=dtype, device=device), matrix)
    return matrix
