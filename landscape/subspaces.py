"""Affine subspaces: maps R^d -> R^D, z -> origin + B z, with the adjoint g -> B^T g of their linear part.

Letters: D parameters, d subspace dimension, E ensemble. Everything is batched over leading axes: z (..., d) -> (..., D).
A basis is stored row-major (d, D), its directions in rows: that is twice as fast as columns, and a prefix of rows is a smaller nested subspace.

Sources: Li et al. 2018 and Larsen et al. 2022 (random affine subspaces, columns of unit norm); Ailon and Chazelle 2006, Tropp 2011 (SRHT);
Li et al. 2022 (DLDR: principal directions of a trajectory).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from landscape.errors import UsageError, unknown

Basis = Literal["gaussian", "haar", "srht", "sparse"]
BASES: tuple[Basis, ...] = ("gaussian", "haar", "srht", "sparse")

# a dense basis beyond this is refused: 4 GiB, a sixth of a common machine's memory
DENSE_BYTES = 4 * 2**30


class HasPrincipalDirections(Protocol):
    """What `principal` needs of a trajectory."""

    def principal(self, dim: int) -> tuple[np.ndarray, np.ndarray]:
        """Directions (d, D) and the variances (min(T, D),) of all principal components."""


@dataclass(frozen=True, eq=False)
class Subspace:
    """The affine map z -> origin + B z. Build it with one of the constructors below; nothing asks afterwards which it was."""

    origin: Tensor  # (D,) or (E, D)
    dim: int  # d
    push: Callable[[Tensor], Tensor]  # B z: (..., d) -> (..., D)
    project: Callable[[Tensor], Tensor]  # B^T g: (..., D) -> (..., d), the adjoint of push

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
        return self.origin + self.push(z)

    def at(self, origin: Tensor) -> Subspace:
        """The parallel subspace through another origin."""
        return Subspace(origin, self.dim, self.push, self.project)


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

    return Subspace(outside, len(places), push, lambda g: g.index_select(-1, places))


def random(origin: Tensor, dim: int, generator: torch.Generator, basis: Basis = "gaussian") -> Subspace:
    """A random d-dimensional subspace through `origin` (D,).

    basis: `gaussian` (rows of unit norm, the papers' choice and so the default), `haar` (orthonormal rows, uniform on the Grassmannian), `srht`
    (Hadamard transform, random signs, Hadamard transform, of coordinates spread over random places with random signs: orthonormal where D is a power of two,
    no d x D storage), `sparse` (disjoint random
    coordinates with random signs: exactly orthonormal, O(D) storage; hit laws drift slightly for axis-aligned targets).

    Raises UsageError where d is not in 1..D, or a dense basis would not fit.
    """
    ambient = origin.shape[-1]
    if not 1 <= dim <= ambient:
        raise UsageError(f"a subspace of {ambient} parameters has 1 to {ambient} dimensions; got {dim}.")
    if basis in ("gaussian", "haar"):
        size = dim * ambient * origin.element_size()
        if size > DENSE_BYTES:
            raise UsageError(
                f"a dense {basis} basis of {dim} x {ambient} takes {size / 2**30:.1f} GiB (allowed: {DENSE_BYTES / 2**30:.0f}). Use srht or sparse, which store O(D)."
            )
        rows = torch.randn(
            dim, ambient, generator=generator, dtype=torch.float32 if origin.dtype != torch.float64 else torch.float64
        )
        rows = _orthonormal(rows) if basis == "haar" else rows / rows.norm(dim=1, keepdim=True)
        return span(origin, rows.to(origin))
    if basis == "srht":
        return _srht(origin, dim, generator)
    if basis == "sparse":
        return _sparse(origin, dim, generator)
    raise unknown("basis", basis, BASES)


def principal(origin: Tensor, trajectory: HasPrincipalDirections, dim: int) -> Subspace:
    """Through `origin` (D,) along the first d principal directions (orthonormal rows) of a trajectory: DLDR (Li et al. 2022) with its own base point."""
    directions, _ = trajectory.principal(dim)
    return span(origin, torch.from_numpy(directions).to(origin))


def _orthonormal(rows: Tensor) -> Tensor:
    # Q of a Gaussian's QR is Haar once the signs of R's diagonal are taken out (Mezzadri 2007)
    q, r = torch.linalg.qr(rows.T.double())
    signs = torch.where(r.diagonal() < 0, -1.0, 1.0).to(q)
    orthonormal: Tensor = (q * signs).T
    return orthonormal.contiguous()


def _srht(origin: Tensor, dim: int, generator: torch.Generator) -> Subspace:
    ambient = origin.shape[-1]
    length = 1 << max(ambient - 1, 1).bit_length()
    if length // 2 >= ambient:
        length //= 2
    first, second = ((torch.randint(0, 2, (length,), generator=generator) * 2 - 1).to(origin) for _ in range(2))
    places = torch.randperm(length, generator=generator)[:dim].to(origin.device)
    # rows keep unit norm on average when only D of the L columns are used
    scale = math.sqrt(length / ambient)

    def push(z: Tensor) -> Tensor:
        spread = z.new_zeros(*z.shape[:-1], length).index_copy(-1, places, z)
        return hadamard(second * hadamard(first * spread))[..., :ambient] * scale

    def project(g: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(g, (0, length - ambient))
        return (first * hadamard(second * hadamard(padded))).index_select(-1, places) * scale

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
    """The orthonormal Walsh-Hadamard transform of the last axis (its length L a power of two), its own inverse; L log2 L additions."""
    length = x.shape[-1]
    if length & (length - 1):
        raise UsageError(f"a Hadamard transform needs a power of two; got {length}.")
    shape = x.shape
    half = 1
    while half < length:
        pairs = x.reshape(*shape[:-1], length // (2 * half), 2, half)
        x = torch.stack((pairs[..., 0, :] + pairs[..., 1, :], pairs[..., 0, :] - pairs[..., 1, :]), dim=-2)
        half *= 2
    return x.reshape(shape) / math.sqrt(length)
