"""Symmetric matrices known by their products, their extreme eigenpairs, and the Lanczos process on them.

Letters: d dimension, k eigenpairs or columns of a block, m Lanczos steps, P probes, n vectors of a search space, s vectors of its front.

Lanczos builds an orthonormal basis Q (m, d) of the Krylov space of a start vector with A Q^T = Q^T T + beta_m q_{m+1} e_m^T, T tridiagonal.
Every step is orthogonalised against the whole basis, a second time where the first took much away ("twice is enough"): without it converged values return as ghosts.
The small problems are solved on the CPU in float64 (LAPACK through numpy and scipy).

Sources: Lanczos 1950; Parlett, The Symmetric Eigenvalue Problem, 1980, chapter 13; Golub and Welsch 1969 (quadrature from T); Wu and Simon 2000 and
Stewart 2001 (thick restart, Krylov-Schur); Dixon 1983 (what a random start can miss); Ghorbani, Krishnan, Xiao 2019 (stochastic Lanczos quadrature for Hessians).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from scipy.special import ndtr
from torch import Tensor

from landscape.errors import LandscapeError, UsageError, unknown

Which = Literal["largest", "smallest", "both", "magnitude"]


@dataclass(frozen=True, eq=False)
class SymmetricOperator:
    """A symmetric matrix A of dimension d, known by `A @ v` for one vector (d,) and `A @ V` for a block (d, k)."""

    dim: int
    product: Callable[[Tensor], Tensor]  # (d,) -> (d,)
    dtype: torch.dtype
    device: torch.device
    block: Callable[[Tensor], Tensor] | None = None  # (d, k) -> (d, k), where that is faster than k products
    notes: Sequence[
        str
    ] = ()  # what a reader of its numbers should know about how products are taken; may grow while they are

    @staticmethod
    def from_dense(matrix: Tensor) -> SymmetricOperator:
        """The operator of a symmetric matrix (d, d)."""

        def product(block: Tensor) -> Tensor:
            return matrix @ block

        return SymmetricOperator(matrix.shape[0], product, matrix.dtype, matrix.device, product)

    def __matmul__(self, block: Tensor) -> Tensor:
        if block.shape[0] != self.dim or block.ndim not in (1, 2):
            raise UsageError(f"a product takes ({self.dim},) or ({self.dim}, k); got {tuple(block.shape)}.")
        if block.ndim == 1:
            return self.product(block)
        if not block.shape[1]:
            return block.clone()
        if self.block is not None:
            return self.block(block)
        return torch.stack([self.product(column) for column in block.T], dim=1)

    def dense(self) -> Tensor:
        """The matrix (d, d) itself, by d products: for tests and small d."""
        return self @ torch.eye(self.dim, dtype=self.dtype, device=self.device)

    def asymmetry(self, generator: torch.Generator) -> float:
        """|u.Av - v.Au| / (|u| |Av|) for one random pair: rounding size where A is symmetric (a product costs two)."""
        u, v = (normal(self, generator) for _ in range(2))
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

    def heaviest(self, place: float) -> float:
        """The most mass that a measure with the moments of this process can have at a place: 1 / sum_i p_i(place)^2 (Christoffel), p_i its orthonormal polynomials.

        They grow fast outside the nodes. 0 where the process has ended: all that its start sees is known.
        """
        before, now, total, coupled = 0.0, 1.0, 1.0, 0.0
        for alpha, beta in zip(self.alphas, self.betas, strict=True):
            if beta == 0:
                return 0.0
            before, now = now, ((place - alpha) * now - coupled * before) / beta
            coupled = beta
            total += now * now
            if total > 1e200:
                break
        return 1 / total


def lanczos(
    operator: SymmetricOperator,
    start: Tensor,
    steps: int,
    *,
    against: Tensor | None = None,
    storage: Tensor | None = None,
) -> Iterator[Krylov]:
    """Run Lanczos from `start` (d,), yielding the state after each step; at most min(steps, d) of them.

    The process ends when the Krylov space is exhausted: the start sees no more eigenvectors, and of a repeated eigenvalue it sees one.
    against: orthonormal rows (c, d) to stay orthogonal to; what is run is then P A P with P the projection that takes them out.
    storage: rows (at least `steps`, d) to hold the basis in; its own where none are given.

    Raises LandscapeError when a product is not finite.
    """
    if start.shape != (operator.dim,):
        raise UsageError(f"a start vector has shape ({operator.dim},); got {tuple(start.shape)}.")
    held = 0 if against is None else len(against)
    limit = min(steps, operator.dim - held)
    if limit < 1:
        return
    rounding = torch.finfo(operator.dtype).eps
    basis = storage
    if basis is None:
        basis = torch.empty(min(limit, 32), operator.dim, dtype=operator.dtype, device=operator.device)
    elsewhere = () if against is None else (against,)
    start = _orthogonalise(start.to(basis), *elsewhere)
    norm = _norm(start)
    if not (norm > 0 and np.isfinite(norm)):
        raise UsageError("Lanczos needs a start vector of positive, finite norm.")
    alphas: list[float] = []
    betas: list[float] = []
    vector = start / norm
    scale = 0.0  # a running lower bound of |A|
    for step in range(limit):
        if step == len(basis):  # doubling: never more than twice what is used
            more = torch.empty(min(step, limit - step), operator.dim, dtype=basis.dtype, device=basis.device)
            basis = torch.cat([basis, more])
        basis[step] = vector
        image, size = _product(operator, vector, f"the product number {step + 1}")
        alpha = float(image @ vector)
        scale = max(scale, size)
        image = image - alpha * vector
        if step:
            image = image - betas[-1] * basis[step - 1]
        image = _orthogonalise(image, *elsewhere, basis[: step + 1])
        beta = _norm(image)
        alphas.append(alpha)
        if beta <= ROUNDING * rounding * scale:
            beta = 0.0
        betas.append(beta)
        yield Krylov(np.array(alphas), np.array(betas), basis[: step + 1])
        if beta == 0:
            return
        vector = image / beta


def not_finite(what: str = "a product") -> LandscapeError:
    """The error of a product with NaN or infinite entries."""
    return LandscapeError(
        f"{what} is not finite: the point has NaN or infinite curvature. Check it with `landscape check`."
    )


def _product(operator: SymmetricOperator, vector: Tensor, what: str) -> tuple[Tensor, float]:
    """A v on the vector's own device, and its norm; LandscapeError where it is not finite."""
    image = (operator @ vector.to(operator.device)).to(vector.device)
    size = _norm(image)
    if not np.isfinite(size):
        raise not_finite(what)
    return image, size


# Daniel, Gragg, Kaufman, Stewart 1976: a projection that leaves more than this of a vector's norm has left it orthogonal to rounding; else once more, and twice is enough
KEPT = 0.7


def _orthogonalise(vector: Tensor, *bases: Tensor) -> Tensor:
    for _ in range(2):
        before = _norm(vector)
        for basis in bases:
            vector = torch.addmv(vector, basis.T, basis @ vector, alpha=-1)
        if _norm(vector) > KEPT * before:
            break
    return vector


def _norm(vector: Tensor) -> float:
    # summed in float64 where the device has it: a float32 norm of a million entries is off by 1e-5 and more on a CPU, and then so is every eigenvalue
    exact = torch.float32 if vector.device.type == "mps" else torch.float64
    return float(torch.linalg.vector_norm(vector, dtype=exact))


def normal(operator: SymmetricOperator, generator: torch.Generator) -> Tensor:
    """A standard normal vector (d,) of the generator, on the operator's device: drawn in float64 on the CPU, so that every device and dtype has the same."""
    drawn = torch.randn(operator.dim, generator=generator, dtype=torch.float64)
    return drawn.to(operator.device, operator.dtype)


@dataclass(frozen=True, eq=False)
class Eigenpairs:
    """The k wanted eigenpairs, each with its residual |A v - theta v|, the error bound of its value, and whether the residual reached the tolerance."""

    values: np.ndarray  # (k,) in the order asked for
    vectors: Tensor  # (k, d) unit rows
    residuals: (
        np.ndarray
    )  # (k,) an eigenvalue of A lies within this of each value; never less than the rounding of a product, eps |A|
    bounds: np.ndarray  # (k,) error of each value: min(residual, residual^2 / gap), gap to the nearest other value seen; never less than eps |A|
    converged: np.ndarray  # (k,) bool
    products: int  # number of products with A
    gap: float  # from the wanted values to the nearest other one seen, less its residual; infinite where there is none, not positive where they are not set apart
    missed: float  # chance that the random start vectors hid an eigenvalue that belongs to the wanted ones; 1 where that was not checked


MISSED = 0.05  # chance to miss an eigenvalue that a search may leave: one in twenty, as everywhere

# rows of a basis are kept as long as they fit in this, the same on every machine so that answers do not depend on its memory; a restart costs products
BASIS_BYTES = 512 * 2**20

# least room for the process that looks for hidden eigenvalues; some five steps settle a neural network's matrix
CHECK = 12


def eigenpairs(
    operator: SymmetricOperator,
    count: int,
    *,
    generator: torch.Generator,
    which: Which = "largest",
    tolerance: float = 1e-4,
    max_products: int = 500,
    block: int = 1,
    basis: int | None = None,
    start: Tensor | None = None,
    missed: float = MISSED,
    host: bool = False,
) -> Eigenpairs:
    """The `count` (k) wanted eigenpairs by thick-restart Lanczos, run until every wanted residual is at most `tolerance` times the largest |value| seen.

    One start vector sees one vector of a repeated eigenvalue, whatever its residual says. So a short second process follows from a fresh random
    vector orthogonal to the pairs found; it ends when an eigenvalue among the wanted ones could have been hidden from it with probability `missed` at most
    (its weight in the vector would have to be below Christoffel's bound on the mass that the moments of the process leave there), or when it finds one, which then is converged too.

    tolerance: 1e-4, since the error of a value is at most residual^2 / gap, far below what float32 products carry; never less than rounding.
    max_products: of all together; whoever hits it sees `converged` false.
    block: random start vectors. 1 needs fewest products; more see as many copies of a repeated eigenvalue from the beginning.
    basis: most vectors (of d) held, at least k + block + 6. By default as many as fit in 512 MiB, and at least the larger of 2 k + 8 and 20.
    start: rows (s, d), a warm start, such as the eigenvectors of a nearby matrix: no random vector is drawn but by the check.
    missed: 5% (`MISSED`); 1 leaves the check out.
    host: hold the basis in the memory of the CPU, where that of the device is short.

    Raises UsageError for options out of range, LandscapeError when a product is not finite; a count above d is cut to d.
    """
    space = SearchSpace(
        operator, count, generator=generator, which=which, block=block, basis=basis, start=start, host=host
    )
    space.converge(tolerance=tolerance, max_products=max_products, missed=missed)
    return space.pairs()


@dataclass(frozen=True, eq=False)
class Deflation:
    """A subspace to be counted exactly: orthonormal rows U and the Ritz values on it.

    A differs from the block-diagonal matrix of diag(values) on it and P A P on its complement by a matrix of nuclear norm `leak`, so the sorted eigenvalues of the
    two differ by at most that in sum (Lidskii), and their traces not at all.
    """

    values: np.ndarray  # (n,)
    vectors: Tensor  # (n, d), where the search space holds its basis
    coupling: Tensor  # B (s, n)
    front: Tensor  # F (s, d) orthonormal rows outside the subspace: A U^T = U^T diag(values) + F^T B
    leak: float


class SearchSpace:
    """A growing search space for eigenpairs: orthonormal rows Q (n, d) whose products are known, and a front F (s, d) that spans what these leave: A Q^T = Q^T T + F^T B.

    Any front vector may be multiplied next; where one is, this is Lanczos, where several are, a block or a warm start. B tells which is worth it.
    Options as for `eigenpairs`.
    """

    def __init__(
        self,
        operator: SymmetricOperator,
        count: int,
        *,
        generator: torch.Generator,
        which: Which = "largest",
        block: int = 1,
        basis: int | None = None,
        start: Tensor | None = None,
        host: bool = False,
    ) -> None:
        if which not in get_args(Which):
            raise unknown("end of the spectrum", which, get_args(Which))
        if count < 1:
            raise UsageError(f"asked for {count} eigenpairs; at least 1 is needed.")
        if block < 1:
            raise UsageError(f"a block of {block} start vectors; at least 1 is needed.")
        if start is not None and start.shape[1:] != (operator.dim,):
            raise UsageError(f"a warm start has shape (s, {operator.dim}); got {tuple(start.shape)}.")
        self.operator, self.generator, self.which = operator, generator, which
        self.count = count = min(count, operator.dim)
        started = block if start is None else len(start)
        # a block is multiplied in turn: aimed at the wanted residuals it would follow one start, and see of a repeated eigenvalue what this one sees
        self.in_turn = block > 1 and start is None
        if basis is None:
            row = operator.dim * torch.finfo(operator.dtype).bits // 8
            basis = max(BASIS_BYTES // row, 2 * count + 8 + (started if start is not None else 0), 20)
        if basis < count + started + CHECK // 2:
            raise UsageError(
                f"a basis of {basis} vectors cannot give {count} eigenpairs: allow at least {count + started + CHECK // 2}."
            )
        self.limit = min(basis, 2 * operator.dim + CHECK)
        # on a CPU pages are taken when they are written to: an unused part costs nothing
        device = torch.device("cpu") if host else operator.device
        self.rows = torch.empty(self.limit, operator.dim, dtype=operator.dtype, device=device)
        self.size = self.front = self.products = 0
        self.projected = np.zeros((0, 0))  # T (n, n)
        self.coupling = np.zeros((0, 0))  # B (s, n)
        self.largest = 0.0  # a running lower bound of |A|
        self.bound = 0.0  # what a residual must reach
        self.missed = 1.0  # see Eigenpairs
        for vector in () if start is None else start:
            self._add(vector)
        while self.front < started and self._add(normal(operator, generator)):
            pass

    def converge(self, *, tolerance: float = 1e-4, max_products: int = 500, missed: float = MISSED) -> None:
        """Grow until the wanted pairs have converged and none is hidden; see `eigenpairs`."""
        if not 0 < tolerance < np.inf:
            raise UsageError(f"the tolerance must be positive and finite; got {tolerance}.")
        if not 0 < missed <= 1:
            raise UsageError(f"the chance of a missed eigenvalue must be in (0, 1]; got {missed}.")
        if max_products < self.count:
            raise UsageError(
                f"{max_products} products cannot give {self.count} eigenpairs: allow at least {self.count}, better several times as many."
            )
        tolerance = max(tolerance, ROUNDING * torch.finfo(self.operator.dtype).eps)
        hidden = [torch.empty(0)]
        while hidden and self._expand_until_converged(tolerance, max_products) and missed < 1:
            hidden = self._hidden(max_products, missed)
            for vector in hidden:
                self._include(vector)

    def grow(self, size: int) -> None:
        """Multiply on until the space has `size` vectors (n), all that the basis holds, or d: for a deflation."""
        while self.size < min(size, self.operator.dim) and not self._full():
            if self.front == 0 and not self._add(normal(self.operator, self.generator)):
                break
            if self.front > 1:
                self._turn(np.linalg.svd(self.coupling)[0].T)
            self._expand()

    def pairs(self) -> Eigenpairs:
        """The wanted pairs as they stand."""
        theta, _, errors = self._ritz()
        chosen = self._wanted(theta)
        # no product is known better than to its rounding
        floor = torch.finfo(self.operator.dtype).eps * float(np.abs(theta).max(initial=0.0))
        residuals = np.maximum(errors[chosen], floor)
        gaps = np.array([np.delete(np.abs(theta - theta[i]) - errors, i).min(initial=np.inf) for i in chosen])
        with np.errstate(divide="ignore", invalid="ignore"):
            bounds = np.where((gaps > residuals) & np.isfinite(gaps), residuals**2 / gaps, residuals)
        self._shrink(self.limit)
        rows = self.rows[: len(chosen)]
        # a copy lets go of the rest; where the basis is a large share of the memory, a copy is the dearer
        if self.rows.numel() * self.rows.element_size() <= 2 * BASIS_BYTES:
            rows = rows.clone()
        converged = residuals <= max(self.bound, floor)
        others = np.delete(np.arange(len(theta)), chosen)
        apart = np.abs(theta[chosen][:, None] - theta[others]) - errors[others]
        return Eigenpairs(
            theta[chosen],
            rows.to(self.operator.device),
            residuals,
            np.maximum(bounds, floor),
            converged,
            self.products,
            float(apart.min(initial=np.inf)),
            self.missed,
        )

    def deflation(self) -> Deflation:
        """The whole space as it stands, to be counted exactly; the rows are the space's own."""
        self._shrink(self.limit)
        leak = 2 * float(np.linalg.svd(self.coupling, compute_uv=False).sum()) if self.front else 0.0
        rows, front = self.rows[: self.size], self.rows[self.size : self.size + self.front]
        coupling = torch.from_numpy(self.coupling).to(rows)
        return Deflation(
            self.projected.diagonal().copy(),
            rows,
            coupling,
            front,
            leak,
        )

    # -- inside --------------------------------------------------------------

    def _expand_until_converged(self, tolerance: float, max_products: int) -> bool:
        while True:
            ended = self.products >= max_products or (self.front == 0 and self.size == self.operator.dim)
            # the small problem costs n^3: beyond 64 vectors it is solved at every 32nd part of growth, and for one start not before that can have seen the wanted ones
            enough = self.count + (min(self.count, 4) if self.front == 1 else 0)
            if self.size >= enough and (ended or self.size < 64 or self.size % (self.size // 32) == 0):
                theta, _, errors = self._ritz()
                self.bound = max(tolerance * float(np.abs(theta).max(initial=0.0)), np.finfo(float).tiny)
                if (errors[self._wanted(theta)] <= self.bound).all() and not self._waiting().any():
                    return True
            if ended or (self.front == 0 and not self._add(normal(self.operator, self.generator))):
                return False
            if self._full():
                self._shrink((self.limit - self.front + self.count) // 2)
            self._aim()
            self._expand()

    def _hidden(self, max_products: int, missed: float) -> list[Tensor]:
        """Approximate eigenvectors (d,) that belong to the wanted ones and are not in the space."""
        self.missed = 0.0
        if self.size == self.operator.dim:
            return []
        theta, _, _ = self._ritz()
        edges = _edges(theta[self._wanted(theta)], self.which, self.bound)
        self._shrink(self.limit - self.front - CHECK)  # the wanted ones stand first now
        used, wanted = self.size + self.front, self.rows[: self.count]
        probe = normal(self.operator, self.generator).to(self.rows)
        length = _norm(_orthogonalise(probe, wanted))
        self.missed = float(self.operator.dim > self.count)
        for state in lanczos(
            self.operator,
            probe,
            min(self.limit - used, max_products - self.products),
            against=wanted,
            storage=self.rows[used:],
        ):
            self.products += 1
            seen, mixed = state.ritz()
            beyond = np.flatnonzero((seen < edges[0]) | (seen > edges[1]))
            if len(beyond):
                return [torch.from_numpy(mixed[:, i]).to(state.basis) @ state.basis for i in beyond]
            self.missed = max(_chance(state, edge, length) for edge in edges if np.isfinite(edge))
            if self.missed <= missed:
                break
        return []

    def _wanted(self, theta: np.ndarray) -> np.ndarray:
        return _select(theta, min(self.count, len(theta)), self.which)

    def _full(self) -> bool:
        """Whether no product can be taken before a restart."""
        return self.size + self.front >= self.limit

    def _waiting(self) -> np.ndarray:
        """Of each front vector (s,): whether nothing is coupled to it, which is a start not yet multiplied."""
        waiting: np.ndarray = np.abs(self.coupling).max(axis=1, initial=0.0) == 0
        return waiting

    def _add(self, vector: Tensor) -> float:
        """Put a vector's part outside the space to the front. Returns the norm of that part, 0 where there is none."""
        used = self.size + self.front
        if used >= self.limit:
            return 0.0
        vector = vector.to(self.rows)
        before = _norm(vector)
        if not np.isfinite(before):
            raise UsageError("a start vector has NaN or infinite entries.")
        vector = _orthogonalise(vector, self.rows[:used])
        size = _norm(vector)
        # what is left of a vector inside the space is rounding
        if size <= ROUNDING * torch.finfo(self.rows.dtype).eps * before:
            return 0.0
        # once more: normalising a small rest magnifies what of the others is left in it
        vector = _orthogonalise(vector / size, self.rows[:used])
        self.rows[used] = vector / _norm(vector)
        self.coupling = np.vstack([self.coupling, np.zeros((1, self.size))])
        self.front += 1
        return size

    def _expand(self) -> None:
        """Multiply the first vector of the front."""
        n, s = self.size, self.front
        image, size = _product(self.operator, self.rows[n], f"the product with vector {n + 1} of the basis")
        self.products += 1
        self.largest = max(self.largest, size)
        # the components along Q are known, most of them 0: with these out, one pass against all rows does, unless it takes much away
        parts = np.zeros(n + s)
        parts[:n] = self.coupling[0]
        parts[n] = float(image @ self.rows[n])
        for place in np.flatnonzero(parts):
            image = torch.add(image, self.rows[int(place)], alpha=-float(parts[place]))
        beta = float(np.sqrt(max(size**2 - np.sum(parts**2), 0.0)))
        known = self.rows[: n + s]
        for _ in range(2):
            inside = known @ image
            image = torch.addmv(image, known.T, inside, alpha=-1)
            parts += inside.double().cpu().numpy()
            before, beta = beta, _norm(image)
            if beta > KEPT * before:
                break
        if beta <= ROUNDING * torch.finfo(self.rows.dtype).eps * self.largest or n + s == self.operator.dim:
            beta = 0.0
        column = self.coupling[:1].T  # equal to parts[:n] up to rounding, and what makes T symmetric
        self.projected = np.block([[self.projected, column], [column.T, parts[n : n + 1, None]]])
        self.coupling = np.hstack([self.coupling[1:], parts[n + 1 :, None]])
        self.size, self.front = n + 1, s - 1
        if beta:
            self.rows[n + s] = image / beta
            last = np.zeros((1, n + 1))
            last[0, n] = beta
            self.coupling = np.vstack([self.coupling, last])
            self.front += 1

    def _ritz(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ritz values (n,) ascending, vectors (n, n) in columns, and residuals (n,): |B s| for the vector s."""
        theta, vectors = np.linalg.eigh(self.projected)
        return theta, vectors, np.linalg.norm(self.coupling @ vectors, axis=0) if self.front else np.zeros(len(theta))

    def _aim(self) -> None:
        """Turn the front so that its first vector is the next to multiply: a start if one waits, else the direction with most of the wanted pairs' residuals."""
        if self.front <= 1 or not self.size or self.in_turn:
            return
        waiting = self._waiting()
        if waiting.any():
            self._turn(np.eye(self.front)[np.argsort(~waiting, kind="stable")])
            return
        theta, vectors, errors = self._ritz()
        wanted = self._wanted(theta)
        still = wanted[errors[wanted] > self.bound]
        self._turn(np.linalg.svd(self.coupling @ vectors[:, still if len(still) else wanted])[0].T)

    def _turn(self, turned: np.ndarray) -> None:
        """Replace the front by an orthogonal turn (s, s) of it."""
        place = slice(self.size, self.size + self.front)
        self.rows[place] = torch.from_numpy(np.ascontiguousarray(turned)).to(self.rows) @ self.rows[place]
        self.coupling = turned @ self.coupling

    def _include(self, vector: Tensor) -> None:
        """Multiply what a vector (d,) has in the front, and put its part outside the space there."""
        if self._full():
            self._shrink(self.count)
        if self.front:
            parts = (self.rows[self.size : self.size + self.front] @ vector).double().cpu().numpy()
            if np.linalg.norm(parts) > 1e-3:  # a smaller part is found again by going on
                self._turn(np.linalg.svd(parts[:, None])[0].T)
                self._expand()
        self._add(vector)

    def _shrink(self, room: int) -> None:
        """Thick restart: Q becomes at most `room` Ritz vectors, the wanted ones first; the relation holds as before."""
        theta, vectors, _ = self._ritz()
        first = self._wanted(theta)
        nearest = _select(theta, min(max(room, self.count), len(theta)), self.which)
        kept = np.concatenate([first, np.setdiff1d(nearest, first)])
        self._rotate(vectors[:, kept])
        for place in range(self.front):  # forward, so that nothing is overwritten before it is moved
            self.rows[len(kept) + place] = self.rows[self.size + place]
        self.size = len(kept)
        self.projected = np.diag(theta[kept])
        self.coupling = self.coupling @ vectors[:, kept]

    def _rotate(self, combinations: np.ndarray) -> None:
        """Replace Q by its combinations (n, p), p <= n, a strip of columns at a time and in place."""
        turn = torch.from_numpy(np.ascontiguousarray(combinations.T)).to(self.rows)
        strip = max(2**22 // max(self.size, 1), 1)
        for first in range(0, self.operator.dim, strip):
            part = slice(first, first + strip)
            self.rows[: len(turn), part] = turn @ self.rows[: self.size, part]


def _edges(chosen: np.ndarray, which: Which, margin: float) -> tuple[float, float]:
    """Below the first and above the second number an eigenvalue would be among the `chosen`; infinite where that end is not wanted."""
    if which == "largest":
        return -np.inf, float(chosen.min()) + margin
    if which == "smallest":
        return float(chosen.max()) - margin, np.inf
    if which == "magnitude":
        size = float(np.abs(chosen).min()) + margin
        return -size, size
    high = (len(chosen) + 1) // 2
    low = float(chosen[high:].max()) - margin if len(chosen) > high else -np.inf
    return low, float(chosen[:high].min()) + margin


def _chance(state: Krylov, edge: float, size: float) -> float:
    """The chance that a Gaussian start of norm `size` hid an eigenvalue at the edge or beyond from the process, outside whose Ritz values the edge lies.

    The start's component along the eigenvector is standard normal, and its share of the start is bounded by `Krylov.heaviest`.
    """
    return float(2 * ndtr(size * np.sqrt(state.heaviest(edge))) - 1)


def _select(values: np.ndarray, count: int, which: Which) -> np.ndarray:
    """Indices (k,) of the wanted among ascending values; `both` gives the high ones from the top down, then the low ones from the bottom up."""
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
    operator: SymmetricOperator,
    *,
    probes: int,
    steps: int,
    generators: Sequence[torch.Generator],
    against: Tensor | None = None,
    storage: Tensor | None = None,
) -> Quadrature:
    """Run `steps` (m) Lanczos steps from each of `probes` (P) Gaussian vectors, one generator a probe.

    against: orthonormal eigenvectors (c, d), counted elsewhere: the probes and their measures are of the complement's d - c dimensions.
    storage: as for `lanczos`, on the device of `against`.
    """
    held = 0 if against is None else len(against)
    if storage is None:
        device = operator.device if against is None else against.device
        storage = torch.empty(min(steps, operator.dim - held), operator.dim, dtype=operator.dtype, device=device)
    nodes = np.full((probes, min(steps, operator.dim - held)), np.nan)
    weights = np.zeros_like(nodes)
    products = 0
    for index in range(probes):
        (state,) = deque(
            lanczos(operator, normal(operator, generators[index]), steps, against=against, storage=storage), maxlen=1
        )
        products += len(state.alphas)
        theta, omega = state.quadrature()
        nodes[index, : len(theta)], weights[index, : len(theta)] = theta, omega
    return Quadrature(nodes, weights, products)
