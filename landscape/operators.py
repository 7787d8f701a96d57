"""Symmetric matrices known by their products, and the Lanczos process on them.

Letters: d dimension, k vectors or eigenpairs, m Lanczos steps, P probes.

Lanczos builds an orthonormal basis Q (m, d) of the Krylov space of a start vector with A Q^T = Q^T T + beta_m q_{m+1} e_m^T, T tridiagonal.
Every step is orthogonalised against the whole basis, twice (Kahan and Parlett's "twice is enough"): without it converged values return as ghosts.
The small tridiagonal problems are solved on the CPU in float64 (LAPACK stemr through scipy).

Sources: Lanczos 1950; Parlett, The Symmetric Eigenvalue Problem, 1980, chapter 13; Golub and Welsch 1969 (quadrature from T);
Ghorbani, Krishnan, Xiao 2019 (stochastic Lanczos quadrature for Hessians).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from landscape.errors import LandscapeError, UsageError

Which = Literal["largest", "smallest", "both", "magnitude"]


@dataclass(frozen=True, eq=False)
class SymmetricOperator:
    """A symmetric matrix A of dimension d, known by `A @ v` for one vector (d,) and `A @ V` for a block (d, k)."""

    dim: int
    product: Callable[[Tensor], Tensor]  # (d,) -> (d,)
    dtype: torch.dtype
    device: torch.device

    @staticmethod
    def from_dense(matrix: Tensor) -> SymmetricOperator:
        """The operator of a symmetric matrix (d, d)."""
        return SymmetricOperator(matrix.shape[0], lambda v: matrix @ v, matrix.dtype, matrix.device)

    def __matmul__(self, block: Tensor) -> Tensor:
        if block.shape[0] != self.dim or block.ndim not in (1, 2):
            raise UsageError(f"a product takes ({self.dim},) or ({self.dim}, k); got {tuple(block.shape)}.")
        if block.ndim == 1:
            return self.product(block)
        return torch.stack([self.product(column) for column in block.T], dim=1) if block.shape[1] else block.clone()

    def dense(self) -> Tensor:
        """The matrix (d, d) itself, by d products: for tests and small d."""
        return self @ torch.eye(self.dim, dtype=self.dtype, device=self.device)

    def asymmetry(self, generator: torch.Generator) -> float:
        """|u.Av - v.Au| / (|u| |Av|) for one random pair: rounding size where A is symmetric (a product costs two)."""
        u, v = (_normal(self, generator) for _ in range(2))
        image = self @ v
        scale = float(u.norm() * image.norm())
        return abs(float(u @ image - v @ (self @ u))) / scale if scale > 0 else 0.0


@dataclass(frozen=True)
class Krylov:
    """State of a Lanczos process after m steps."""

    alphas: np.ndarray  # (m,) diagonal of T, float64
    betas: np.ndarray  # (m,) below it; the last one is the coupling to the next vector
    basis: Tensor  # (m, d) orthonormal rows, on the operator's device

    def ritz(self) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues (m,) ascending and eigenvectors (m, m), in columns, of T."""
        values, vectors = eigh_tridiagonal(self.alphas, self.betas[:-1])
        return values, vectors

    def quadrature(self) -> tuple[np.ndarray, np.ndarray]:
        """Nodes (m,) and weights (m,), sum 1, of the Gauss rule of the start vector's spectral measure; exact to degree 2m - 1."""
        values, vectors = self.ritz()
        return values, vectors[0] ** 2


def lanczos(operator: SymmetricOperator, start: Tensor, steps: int, *, restart: torch.Generator | None = None) -> Iterator[Krylov]:
    """Run Lanczos from `start` (d,), yielding the state after each step; at most min(steps, d) of them.

    When the Krylov space is exhausted (the start sees no more eigenvectors) the process ends, or, with `restart`, goes on from a random
    vector orthogonal to all before it with coupling 0, so that repeated eigenvalues are found one after the other.

    Raises LandscapeError when a product is not finite.
    """
    limit = min(steps, operator.dim)
    norm = float(start.norm())
    if limit < 1:
        return
    if not norm > 0:
        raise UsageError("Lanczos needs a start vector of positive, finite norm.")
    rounding = torch.finfo(operator.dtype).eps
    basis = torch.empty(min(limit, 32), operator.dim, dtype=operator.dtype, device=operator.device)
    alphas: list[float] = []
    betas: list[float] = []
    vector = start / norm
    scale = 0.0  # a running lower bound of |A|
    for step in range(limit):
        if step == basis.shape[0]:  # doubling: never more than twice what is used
            basis = torch.cat([basis, torch.empty(min(step, limit - step), operator.dim, dtype=basis.dtype, device=basis.device)])
        basis[step] = vector
        image = operator @ vector
        alpha = float(image @ vector)
        size = float(image.norm())
        if not np.isfinite(size):
            raise LandscapeError(f"the product number {step + 1} is not finite: the point has NaN or infinite curvature. Check it with `landscape check`.")
        scale = max(scale, size)
        image = _orthogonalise(image, basis[: step + 1])
        beta = float(image.norm())
        alphas.append(alpha)
        # what is left after cancellation is noise of size rounding * |A v| * sqrt(d): below it the space is exhausted
        if beta <= 10 * rounding * max(scale, size) * operator.dim**0.5:
            beta = 0.0
        betas.append(beta)
        yield Krylov(np.array(alphas), np.array(betas), basis[: step + 1])
        if beta > 0:
            vector = image / beta
        elif restart is not None and step + 1 < operator.dim:
            fresh = _orthogonalise(_normal(operator, restart), basis[: step + 1])
            vector = fresh / fresh.norm()
        else:
            return


def _orthogonalise(vector: Tensor, basis: Tensor) -> Tensor:
    for _ in range(2):
        vector = vector - basis.T @ (basis @ vector)
    return vector


def _normal(operator: SymmetricOperator, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(operator.dim, generator=generator, dtype=torch.float64)
    return drawn.to(operator.device, operator.dtype)


@dataclass(frozen=True)
class Eigenpairs:
    """The k wanted eigenpairs, each with its residual |A v - theta v| and whether that reached the tolerance."""

    values: np.ndarray  # (k,) in the order asked for
    vectors: Tensor  # (k, d) unit rows
    residuals: np.ndarray  # (k,) an eigenvalue of A lies within this of each value
    converged: np.ndarray  # (k,) bool
    products: int  # number of products with A


def eigenpairs(
    operator: SymmetricOperator,
    count: int,
    *,
    generator: torch.Generator,
    which: Which = "largest",
    tolerance: float = 1e-4,
    steps: int = 500,
) -> Eigenpairs:
    """The `count` (k) wanted eigenpairs by Lanczos, run until every wanted residual is at most `tolerance` times the largest |value| seen.

    tolerance: 1e-4, since the error of a value is at most residual^2 / gap, far below what float32 products carry.
    steps: 500 bounds the basis to 500 vectors; whoever hits it sees `converged` false.

    Raises UsageError for count < 1; a count above d is cut to d.
    """
    if count < 1:
        raise UsageError(f"asked for {count} eigenpairs; at least 1 is needed.")
    count = min(count, operator.dim)
    state = None
    wanted = np.arange(0)
    residuals = np.empty(0)
    for state in lanczos(operator, _normal(operator, generator), steps, restart=generator):
        m = len(state.alphas)
        if m < count:
            continue
        values, vectors = state.ritz()
        wanted = _select(values, count, which)
        # |beta_m s_mi| is the residual in exact arithmetic; rounding of the products adds about eps |A|
        residuals = np.abs(state.betas[-1] * vectors[-1, wanted])
        bound = tolerance * max(np.abs(values).max(), np.finfo(float).tiny)
        if m == operator.dim or _breakdowns(state) > count:
            break
        if state.betas[-1] > 0 and np.all(residuals <= bound) and _tail_settled(state, which, bound):
            break
    assert state is not None
    values, vectors = state.ritz()
    coefficients = torch.from_numpy(vectors[:, wanted]).to(state.basis)
    bound = tolerance * max(np.abs(values).max(), np.finfo(float).tiny)
    return Eigenpairs(values[wanted], coefficients.T @ state.basis, residuals, residuals <= bound, len(state.alphas))


def _breakdowns(state: Krylov) -> int:
    return int(np.sum(state.betas == 0))


def _tail_settled(state: Krylov, which: Which, bound: float) -> bool:
    """Whether the block since the last breakdown knows its own extreme value: else another copy of a wanted value may still come from it."""
    if _breakdowns(state) == 0:
        return True
    first = int(np.flatnonzero(state.betas == 0)[-1]) + 1
    tail = Krylov(state.alphas[first:], state.betas[first:], state.basis[first:])
    values, vectors = tail.ritz()
    ends = _select(values, min(2, len(values)), "both" if which in ("both", "magnitude") else which)
    return bool(np.all(np.abs(tail.betas[-1] * vectors[-1, ends]) <= bound))


def _select(values: np.ndarray, count: int, which: Which) -> np.ndarray:
    """Indices (k,) of the wanted among ascending values; `both` interleaves the ends, largest first."""
    n = len(values)
    if which == "largest":
        return np.arange(n - 1, n - 1 - count, -1)
    if which == "smallest":
        return np.arange(count)
    if which == "magnitude":
        return np.argsort(-np.abs(values), kind="stable")[:count]
    high = (count + 1) // 2
    return np.concatenate([np.arange(n - 1, n - 1 - high, -1), np.arange(count - high)])


@dataclass(frozen=True)
class Quadrature:
    """Stochastic Lanczos quadrature: for each probe a discrete measure of mass 1 whose mean over probes estimates the spectral density."""

    nodes: np.ndarray  # (P, m); unused places (a probe that ended early) hold NaN
    weights: np.ndarray  # (P, m); 0 there
    products: int


def quadrature(operator: SymmetricOperator, *, probes: int, steps: int, generators: list[torch.Generator]) -> Quadrature:
    """Run `steps` (m) Lanczos steps from each of `probes` (P) Gaussian vectors, one generator a probe."""
    nodes = np.full((probes, min(steps, operator.dim)), np.nan)
    weights = np.zeros_like(nodes)
    products = 0
    for index in range(probes):
        state = None
        for state in lanczos(operator, _normal(operator, generators[index]), steps):
            products += 1
        assert state is not None
        theta, omega = state.quadrature()
        nodes[index, : len(theta)], weights[index, : len(theta)] = theta, omega
    return Quadrature(nodes, weights, products)
