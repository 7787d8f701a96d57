"""Symmetric matrices known by their products, and the Lanczos process on them.

Letters: d dimension, k vectors or eigenpairs, m Lanczos steps, P probes.

Lanczos builds an orthonormal basis Q (m, d) of the Krylov space of a start vector with A Q^T = Q^T T + beta_m q_{m+1} e_m^T, T tridiagonal.
Every step is orthogonalised against the whole basis, twice (Kahan and Parlett's "twice is enough"): without it converged values return as ghosts.
The small tridiagonal problems are solved on the CPU in float64 (LAPACK stemr through scipy).

Sources: Lanczos 1950; Parlett, The Symmetric Eigenvalue Problem, 1980, chapter 13; Golub and Welsch 1969 (quadrature from T);
Ghorbani, Krishnan, Xiao 2019 (stochastic Lanczos quadrature for Hessians).
"""

from __future__ import annotations

from collections import deque
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


# what cancellation leaves of nothing, in units of eps |A|: measured at up to 35. A bound that grew with d, as sqrt(d) eps |A|, would end the process of a
# large float32 Hessian inside its bulk
ROUNDING = 100


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


def lanczos(
    operator: SymmetricOperator, start: Tensor, steps: int, *, against: Tensor | None = None
) -> Iterator[Krylov]:
    """Run Lanczos from `start` (d,), yielding the state after each step; at most min(steps, d) of them.

    The process ends when the Krylov space is exhausted: the start sees no more eigenvectors, and of a repeated eigenvalue it sees one.
    against: orthonormal rows (c, d) to stay orthogonal to; what is run is then P A P with P the projection that takes them out.

    Raises LandscapeError when a product is not finite.
    """
    held = 0 if against is None else against.shape[0]
    limit = min(steps, operator.dim - held)
    if limit < 1:
        return
    rounding = torch.finfo(operator.dtype).eps
    basis = torch.empty(held + min(limit, 32), operator.dim, dtype=operator.dtype, device=operator.device)
    if against is not None:
        basis[:held] = against
        start = _orthogonalise(start, basis[:held])
    norm = _norm(start)
    if not (norm > 0 and np.isfinite(norm)):
        raise UsageError("Lanczos needs a start vector of positive, finite norm.")
    alphas: list[float] = []
    betas: list[float] = []
    vector = start / norm
    scale = 0.0  # a running lower bound of |A|
    for step in range(limit):
        last = held + step
        if last == basis.shape[0]:  # doubling: never more than twice what is used
            basis = torch.cat(
                [basis, torch.empty(min(step, limit - step), operator.dim, dtype=basis.dtype, device=basis.device)]
            )
        basis[last] = vector
        image = operator @ vector
        alpha = float(image @ vector)
        size = _norm(image)
        if not np.isfinite(size):
            raise LandscapeError(
                f"the product number {step + 1} is not finite: the point has NaN or infinite curvature. Check it with `landscape check`."
            )
        scale = max(scale, size)
        image = _orthogonalise(image, basis[: last + 1])
        beta = _norm(image)
        alphas.append(alpha)
        if beta <= ROUNDING * rounding * scale:
            beta = 0.0
        betas.append(beta)
        yield Krylov(np.array(alphas), np.array(betas), basis[held : last + 1])
        if beta == 0:
            return
        vector = image / beta


def _orthogonalise(vector: Tensor, basis: Tensor) -> Tensor:
    for _ in range(2):
        vector = vector - basis.T @ (basis @ vector)
    return vector


def _norm(vector: Tensor) -> float:
    # summed in float64 where the device has it: a float32 norm of a million entries is off by 1e-5 and more on a CPU, and then so is every eigenvalue
    exact = torch.float32 if vector.device.type == "mps" else torch.float64
    return float(torch.linalg.vector_norm(vector, dtype=exact))


def _normal(operator: SymmetricOperator, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(operator.dim, generator=generator, dtype=torch.float64)
    return drawn.to(operator.device, operator.dtype)


@dataclass(frozen=True)
class Eigenpairs:
    """The k wanted eigenpairs, each with its residual |A v - theta v| and whether that reached the tolerance."""

    values: np.ndarray  # (k,) in the order asked for
    vectors: Tensor  # (k, d) unit rows
    residuals: (
        np.ndarray
    )  # (k,) an eigenvalue of A lies within this of each value; never less than the rounding of a product, eps |A|
    converged: np.ndarray  # (k,) bool
    products: int  # number of products with A


# a pass that only looks for missed copies ends once its extreme residuals are within this many bounds: it needs to know where they lie, not what they are
GLANCE = 10


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

    One start vector sees one vector of a repeated eigenvalue, whatever its residual says. So passes follow from fresh starts orthogonal to the pairs
    found, until one finds nothing better than they are; the last one is short.

    tolerance: 1e-4, since the error of a value is at most residual^2 / gap, far below what float32 products carry; never less than rounding.
    steps: products of all passes together; 500 bounds the basis to 500 vectors, and whoever hits it sees `converged` false.

    Raises UsageError for count < 1 or steps < count; a count above d is cut to d.
    """
    if count < 1:
        raise UsageError(f"asked for {count} eigenpairs; at least 1 is needed.")
    count = min(count, operator.dim)
    if steps < count:
        raise UsageError(
            f"{steps} products cannot give {count} eigenpairs: allow at least {count}, better several times as many."
        )
    tolerance = max(tolerance, ROUNDING * torch.finfo(operator.dtype).eps)
    values, residuals = np.empty(0), np.empty(0)
    rows = torch.empty(0, operator.dim, dtype=operator.dtype, device=operator.device)
    products, passes, scale, bound = 0, 0, 0.0, 0.0
    while products < steps and len(values) < operator.dim:
        start = _normal(operator, generator)
        state = None
        for state in lanczos(operator, start, steps - products, against=rows):
            theta, vectors = state.ritz()
            errors = np.abs(state.betas[-1] * vectors[-1])  # |beta_m s_mi| is the residual in exact arithmetic
            scale = max(scale, float(np.abs(theta).max()))
            bound = max(tolerance * scale, np.finfo(float).tiny)
            if len(values) + len(theta) < count:
                continue
            better = _better(values, theta, bound, count, which)
            ends = (
                _select(theta, min(2, len(theta)), "both")
                if which in ("both", "magnitude")
                else _select(theta, 1, which)
            )
            # half of the bound: the rest is for what the pairs of earlier passes leave coupled to these
            if np.all(errors[better] <= bound / 2) and (passes == 0 or np.all(errors[ends] <= GLANCE * bound)):
                break
        assert state is not None
        better = _better(values, theta, bound, count, which)
        products += len(theta)
        if not len(better):
            break
        passes += 1
        values, residuals = np.append(values, theta[better]), np.append(residuals, errors[better])
        rows = torch.cat([rows, torch.from_numpy(vectors[:, better].T.copy()).to(state.basis) @ state.basis])
        kept = _choose(values, count, which)
        values, residuals, rows = values[kept], residuals[kept], rows[torch.from_numpy(kept)]
    if passes > 1:
        products += len(values)
        images = operator @ rows.T
        residuals = (images - rows.T * torch.from_numpy(values).to(rows)).norm(dim=0).double().cpu().numpy()
    # no product is known better than to its rounding
    residuals = np.maximum(residuals, torch.finfo(operator.dtype).eps * scale)
    return Eigenpairs(values, rows, residuals, residuals <= bound, products)


def _better(known: np.ndarray, fresh: np.ndarray, margin: float, count: int, which: Which) -> np.ndarray:
    """Indices of the fresh ascending values that belong to the `count` wanted of all, by more than `margin` where they push out a known one."""
    middle = (fresh[0] + fresh[-1]) / 2
    inward = {"largest": -1.0, "smallest": 1.0, "magnitude": -np.sign(fresh), "both": -np.sign(fresh - middle)}[which]
    chosen = _choose(np.append(known, fresh + margin * inward if len(known) else fresh), count, which)
    better: np.ndarray = np.sort(chosen[chosen >= len(known)]) - len(known)
    return better


def _choose(values: np.ndarray, count: int, which: Which) -> np.ndarray:
    """Indices of the `count` wanted among values of any order."""
    ascending: np.ndarray = np.argsort(values, kind="stable")
    chosen: np.ndarray = ascending[_select(values[ascending], min(count, len(values)), which)]
    return chosen


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


def quadrature(
    operator: SymmetricOperator, *, probes: int, steps: int, generators: list[torch.Generator]
) -> Quadrature:
    """Run `steps` (m) Lanczos steps from each of `probes` (P) Gaussian vectors, one generator a probe."""
    nodes = np.full((probes, min(steps, operator.dim)), np.nan)
    weights = np.zeros_like(nodes)
    products = 0
    for index in range(probes):
        (state,) = deque(lanczos(operator, _normal(operator, generators[index]), steps), maxlen=1)
        products += len(state.alphas)
        theta, omega = state.quadrature()
        nodes[index, : len(theta)], weights[index, : len(theta)] = theta, omega
    return Quadrature(nodes, weights, products)
