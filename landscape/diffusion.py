"""Diffusion maps: the slow coordinates of a random walk on points, from their kernel.

Letters: N (or T) points, D coordinates, k components, M other points, B draws. From the kernel K = exp(-d^2 / (4 eps)) and weights w of the points,

    q = K w,   K_a = K / (q_i q_j)^alpha,   r = K_a w,   P = K_a w / r,   P psi = lambda psi

alpha takes out the density of the points (Coifman & Lafon 2006): for points of density e^-U, (P - I) / eps tends to the generator of dx = -2 (1 - alpha) grad U dt + sqrt(2) dW, so 0 is the
graph Laplacian, 1/2 the Fokker-Planck (backward) operator of U, 1 the Laplace-Beltrami operator. The problem solved is symmetric, S = f K f with f = w^(1/2) q^-alpha / r^(1/2), of the same
eigenvalues: psi = v / pi^(1/2), where pi = w r / sum(w r) is the stationary law of the walk. Deflated by its known eigenvectors of eigenvalue 1, one for each connected piece.

With a variable bandwidth rho = q_0^beta (Berry & Harlim 2016), q_0 a pilot density: K = exp(-d^2 / (4 eps rho_i rho_j)), q = K w / rho^d, L = (P - I) / (eps rho^2), the density's drift has the factor
c1 = 2 - 2 alpha + d beta + 2 beta. Given are the eigenvalues of I + eps L, so that rates are (1 - lambda) / eps there as well.

Sign of a coordinate: sum(pi psi^3) is positive, which knows no order of the points; where that is zero to SKEW of sum(pi |psi|^3) (a symmetric set of points, whose coordinates have no sign
of their own), the first point with at least half the largest magnitude is positive.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import scipy.linalg
import scipy.sparse
from scipy.linalg import eigh_tridiagonal
from scipy.sparse.csgraph import connected_components, reverse_cuthill_mckee
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from scipy.spatial.distance import cdist
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from landscape import kernels
from landscape.errors import LandscapeError, UsageError, unknown
from landscape.kernels import Bandwidth, LandscapeWarning, Sites

if TYPE_CHECKING:
    from landscape.distances import Distances
    from landscape.trajectories import Trajectory

KERNELS = ("gaussian", "variable")
SOLVERS = ("auto", "dense", "sparse", "landmarks")
ENGINES = ("landscape", "pydiffmap")
METRICS = ("euclidean", "squared")

# up to so many points a full matrix is the fastest, and exact: 200 MB
DENSE = 5000
# up to so many points LAPACK finds all eigenvectors sooner than ARPACK finds a few
SMALL = 200
# bandwidths are chosen from all rows of up to so many points, from SAMPLE rows of more: the curve moves by a percent
WHOLE, SAMPLE = 2000, 500
# a sparse kernel holds at most so many pairs: 360 MB
PAIRS = 30_000_000
# restarts after which a full matrix goes to LAPACK: some 1,000 products, a fifth of what LAPACK takes at 1,000 points
PATIENCE = 20
# Krylov vectors: at small eps eigenvalues crowd below 1, and 60 took the least time of 30 to 150
KRYLOV = 60
# rows of distances that say how much a kernel leaves out
SAMPLED = 100
# what rounding may add to the squared distance of a neighbour
SLACK = 1 + 1e-9
# a sparse problem of more points than these is filtered: below, ARPACK alone takes a fraction of a second
FILTERED = 2000
# products of the filter, and Krylov vectors with it: of 4 to 32 and 24 to 50 those that took the least time at 5,000 and at 20,000 points, within a tenth
DEGREE, KRYLOV_FILTERED = 8, 36
# steps that look for where the filter ends; it lets about so many times k eigenvalues through: from 1.6 to 4 takes the same time, and at 1 it cuts among the wanted ones
PROBE, WANTED = 20, 3.0
# restarts before the filter is given up: it takes 5 to 20
RESTARTS = 100
# an eigenvalue WANTED k below this does not crowd
CROWDED = 0.5
# entries of S at or below rounding join nothing
JOINED = float(np.finfo(float).eps)
# relative third moment below which a coordinate has no sign of its own; rounding of a symmetric one is far below, a random one is far above
SKEW = 1e-6
# rates above this part of 1 / (eps max rho^2) belong to the false plateau that a wide variable bandwidth makes: measured on a Gaussian, true ones up to 0.7 of it were right to a percent
PLATEAU = 0.9


class InputError(UsageError, ValueError):
    """A usage error that is also what scikit-learn's callers expect of bad values."""


def eigen(
    squared: np.ndarray, epsilon: float | np.ndarray, alpha: float = 1.0, k: int = 10
) -> tuple[np.ndarray, np.ndarray]:
    """The first k non-trivial eigenvalues (..., k), descending, and right eigenvectors psi (..., T, k) of P, from squared distances (T, T) or (B, T, T) and eps, one or (B,).

    The lean form for many small problems: no weights, no look at connected pieces (their eigenvalues 1 stand among the others), at most T - 1 pairs. Normalised and signed as in
    `DiffusionMap`. Exact to rounding.
    """
    epsilon = np.asarray(epsilon, dtype=float)
    kernel = squared * (-0.25 / epsilon[..., None, None])
    np.exp(kernel, out=kernel)
    _, factor, mass = _balance(kernel, np.ones(squared.shape[-1]), alpha)
    kernel *= factor[..., :, None]
    kernel *= factor[..., None, :]
    root = np.sqrt(mass / mass.sum(axis=-1, keepdims=True))
    k = min(k, squared.shape[-1] - 1)
    if squared.shape[-1] <= SMALL:
        kernel -= 3 * root[..., :, None] * root[..., None, :]  # the trivial eigenvalue 1 becomes -2, below all others
        values, vectors = np.linalg.eigh(kernel)
        values, vectors = values[..., ::-1][..., :k], vectors[..., ::-1][..., :k]
    elif squared.ndim == 2:
        values, vectors = _top(kernel, root[:, None], k)
    else:
        pairs = [_top(one, its[:, None], k) for one, its in zip(kernel, root, strict=True)]
        values, vectors = np.stack([pair[0] for pair in pairs]), np.stack([pair[1] for pair in pairs])
    return values, _signed(vectors / root[..., None], root**2)


def sensitivity(squared: np.ndarray, epsilons: np.ndarray, *, alpha: float = 1.0, k: int = 10) -> np.ndarray:
    """The eigenvalues (G, k) of squared distances (T, T) at each of the bandwidths (G,): where they stand still, an answer does not hang on the bandwidth."""
    return np.stack([eigen(squared, float(epsilon), alpha, k)[0] for epsilon in epsilons])


def _balance(
    kernel: Any, weights: np.ndarray, alpha: float, rho: np.ndarray | None = None, dimension: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The density q, f (..., N) of S = f K f, and the stationary mass w r rho^2 (..., N), from a kernel (..., N, N), dense or sparse."""
    scale = np.ones_like(weights) if rho is None else rho
    density = (kernel @ weights) / scale**dimension
    thinned = density**-alpha
    if thinned.ndim == 1:
        reach = thinned * (kernel @ (thinned * weights))
    else:
        reach = thinned * (kernel @ (thinned * weights)[..., None])[..., 0]
    return density, thinned * np.sqrt(weights / reach) / scale, weights * reach * scale**2


def _top(matrix: Any, known: np.ndarray, k: int, shift: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The largest k eigenvalues, descending, and eigenvectors (N, k) of a symmetric matrix (N, N), dense or sparse, plus diag(shift) where given, on the complement of its known eigenvectors (N, m).

    The start vector is fixed: fractional parts of n^2 / 1.618..., as uneven as random numbers, so that it holds some of every eigenvector. sqrt(r), the known eigenvector itself, would span the first
    Krylov space alone.
    """
    size = len(known)
    # where the known ones are moved to: below all others
    depth = 2.0 - (0.0 if shift is None else min(shift.min(), 0.0))

    def product(x: np.ndarray) -> np.ndarray:
        x = x.reshape(size, -1)
        shares = known.T @ x
        x = x - known @ shares
        y = matrix @ x
        if shift is not None:
            y += shift[:, None] * x
        y -= known @ (known.T @ y + depth * shares)
        return y  # type: ignore[no-any-return]

    if k <= 0:
        return np.empty(0), np.empty((size, 0))
    if size <= SMALL or 2 * (k + known.shape[1]) >= size:
        whole = product(np.eye(size))
        return _refined(product, np.linalg.eigh((whole + whole.T) / 2)[1][:, ::-1][:, :k])
    start = np.mod(np.arange(1, size + 1) ** 2 * ((math.sqrt(5) - 1) / 2), 1.0) - 0.5
    found = _filtered(matrix, known, product, start, k, shift) if scipy.sparse.issparse(matrix) and size > FILTERED else None  # fmt: skip
    if found is None:
        operator = LinearOperator((size, size), matvec=product, dtype=np.float64)
        is_full = isinstance(matrix, np.ndarray)
        try:
            _, found = eigsh(operator, k=k, which="LA", v0=start, ncv=min(size, max(KRYLOV, 2 * k + 20)), maxiter=PATIENCE if is_full else 50 * size)  # fmt: skip
        except ArpackNoConvergence as error:
            if is_full:  # eigenvalues that crowd below 1 are nothing to LAPACK
                whole = product(np.eye(size))
                return _refined(
                    product, scipy.linalg.eigh((whole + whole.T) / 2, subset_by_index=(size - k, size - 1))[1]
                )
            raise LandscapeError(f"the eigenvectors of the diffusion map did not converge ({error}). Take a larger bandwidth, or fewer components.") from None  # fmt: skip
    return _refined(product, found)


def _refined(product: Callable[[np.ndarray], np.ndarray], vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, descending, and vectors (N, k) in their order: values by the matrix itself, whatever found the vectors, which is right to an ulp or two."""
    images = product(vectors)
    values = np.array([x @ y / (x @ x) for x, y in zip(vectors.T.copy(), images.T.copy(), strict=True)])
    order = np.argsort(-values, kind="stable")
    return values[order], vectors[:, order]


def _filtered(
    matrix: Any,
    known: np.ndarray,
    product: Callable[[np.ndarray], np.ndarray],
    start: np.ndarray,
    k: int,
    shift: np.ndarray | None,
) -> np.ndarray | None:
    """The top k eigenvectors (N, k) of a sparse S as those of p(S), p a Chebyshev polynomial that spreads the top of the spectrum and presses the rest into [-1, 1]: a step of Lanczos then takes DEGREE
    products, and there are that many fewer to orthogonalise. Where the rest begins is read off PROBE steps of Lanczos, whose weights count the eigenvalues above each node (stochastic quadrature).

    None where eigenvalues do not crowd below 1, so that there is nothing to gain, and where the count was wrong.
    """
    size = len(start)
    basis = np.empty((PROBE, size))
    alphas, betas = np.empty(PROBE), np.empty(PROBE)
    x = start - known @ (known.T @ start)
    for step in range(PROBE):
        basis[step] = x / np.linalg.norm(x)
        x = product(basis[step])[:, 0]
        alphas[step] = x @ basis[step]
        for _ in range(2):
            x -= known @ (known.T @ x)
            x -= basis[: step + 1].T @ (basis[: step + 1] @ x)
        betas[step] = np.linalg.norm(x)
        if betas[step] < JOINED * size:
            return None
    nodes, weights = eigh_tridiagonal(alphas, betas[:-1])
    above = np.cumsum(weights[0, ::-1] ** 2) * size
    # what lies a little below the last node must not be spread as well
    high, low = float(nodes[::-1][np.searchsorted(above, WANTED * k)]), float(nodes[0]) - 0.02
    if high < CROWDED:
        return None
    middle, half = (high + low) / 2, (high - low) / 2
    # neighbours side by side in memory: a quarter less time
    order = reverse_cuthill_mckee(matrix, symmetric_mode=True)
    places = np.empty_like(order)
    places[order] = np.arange(size)
    scaled = matrix[order]
    scaled.indices = places[scaled.indices]
    scaled.data /= half
    diagonal = np.full(size, -middle) if shift is None else shift[order] - middle
    diagonal /= half
    known, start = known[order], start[order]
    scale = 1 / math.cosh(DEGREE * math.acosh((1 - middle) / half))  # p(1) = 1

    def spread(x: np.ndarray) -> np.ndarray:
        x = x.reshape(-1)
        before = x - known @ (known.T @ x)
        now = scaled @ before
        now += diagonal * before
        for _ in range(DEGREE - 1):
            after = scaled @ now
            after += diagonal * now
            after *= 2.0
            after -= before
            before, now = now, after
        now *= scale
        now -= known @ (known.T @ now)
        return now  # type: ignore[no-any-return]

    operator = LinearOperator((size, size), matvec=spread, dtype=np.float64)
    try:
        values, found = eigsh(operator, k=k, which="LA", v0=start, ncv=min(size, max(KRYLOV_FILTERED, 2 * k + 4)), maxiter=RESTARTS)  # fmt: skip
    except ArpackNoConvergence:
        return None
    if values.min() <= 1.01 * scale:
        return None  # the k-th lies at the cut or below it, where the filter keeps no order
    vectors = np.empty((size, k))
    vectors[order] = found
    return vectors


def _signed(vectors: np.ndarray, stationary: np.ndarray) -> np.ndarray:
    """Coordinates (..., N, k) with their signs by the rule at the head of this file."""
    cubes = stationary[..., None] * vectors**3
    skew, scale = cubes.sum(axis=-2), np.abs(cubes).sum(axis=-2)
    large = np.abs(vectors) >= 0.5 * np.abs(vectors).max(axis=-2, keepdims=True)
    first = np.take_along_axis(vectors, large.argmax(axis=-2)[..., None, :], axis=-2)[..., 0, :]
    sign = np.where(np.where(np.abs(skew) > SKEW * scale, skew, first) < 0, -1.0, 1.0)
    signed: np.ndarray = vectors * sign[..., None, :]
    return signed


class DiffusionMap(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Coordinates of points by a diffusion map, as a scikit-learn estimator.

    Parameters:
        n_components: k, coordinates beyond the trivial one. 10: a null model is compared on so many eigenvalues, and more are noise at usual sizes.
        alpha: 0 keeps the density of the points in the walk, 1/2 gives the dynamics that it stands for, 1 (the default) the geometry alone. Any number from 0 to 1; with the variable kernel any up to 1.
        bandwidth: a rule of `landscape.kernels`, or eps itself. "bgh": needs nothing to be set; see `bandwidth_.curve` for how sure it is.
        kernel: "gaussian", or "variable": wide where points are rare, for densities with long tails.
        beta: of the variable kernel, rho = q_0^beta. -1/2: Berry & Harlim's choice.
        dimension: d of the variable kernel; None: estimated with the pilot density.
        time: t of the coordinates lambda^t psi. 0: as large as each other.
        solver: "dense" (exact), "sparse" (pairs with a kernel below `cutoff` left out; their mass is in `truncated_`), "landmarks" (the map of some points that stand, with weights, for all, extended to
            the others: approximate), "auto": dense up to 5,000 points, sparse beyond, landmarks where a sparse kernel would hold over 30 million pairs (told).
        neighbours: keep each point's so many nearest instead of all pairs above `cutoff`: sparser and biased (see `truncated_`).
        cutoff: 1e-5: what is left out then moves rates by less than points drawn anew do.
        landmarks: how many. 1,000: a second of work.
        metric: "euclidean": X holds points (N, D). "squared": X holds squared distances (N, N), and `transform` takes those (M, N) to the points fitted.
        seed: of the choice of landmarks; nothing else is random.
        engine: "landscape", or "pydiffmap": the same question to that library (gaussian, no sample weights).

    `fit` takes points, squared distances, `Distances` or a `Trajectory` (its euclidean distances). Rows that hold NaN or infinity are masked: NaN in the answers, counted in `masked_`. Points of weight 0
    play no part and get coordinates by extension.

    After `fit`: `eigenvalues_` (k,) without the trivial 1; `vectors_` (N, k) psi with sum(pi psi^2) = 1; `stationary_` (N,) pi; `embedding_` (N, k); `rates_` (1 - lambda) / eps and `log_rates_`
    -log(lambda) / eps (k,); `bandwidth_`; `labels_` (N,) the connected piece of each point, 0 the largest, -1 masked; `n_pieces_`, the multiplicity of the eigenvalue 1 (coordinates of the
    pieces come first, with rate 0); `truncated_`, the part of the kernel's mass left out; `residuals_` (k,) of the symmetric problem (None from
    pydiffmap; of the landmarks' own problem with landmarks); `solver_` that was used; `masked_`.
    """

    def __init__(
        self,
        n_components: int = 10,
        *,
        alpha: float = 1.0,
        bandwidth: str | float = "bgh",
        kernel: Literal["gaussian", "variable"] = "gaussian",
        beta: float = -0.5,
        dimension: float | None = None,
        time: float = 0.0,
        solver: Literal["auto", "dense", "sparse", "landmarks"] = "auto",
        neighbours: int | None = None,
        cutoff: float = 1e-5,
        landmarks: int = 1000,
        metric: Literal["euclidean", "squared"] = "euclidean",
        seed: int = 0,
        engine: Literal["landscape", "pydiffmap"] = "landscape",
    ) -> None:
        self.n_components = n_components
        self.alpha = alpha
        self.bandwidth = bandwidth
        self.kernel = kernel
        self.beta = beta
        self.dimension = dimension
        self.time = time
        self.solver = solver
        self.neighbours = neighbours
        self.cutoff = cutoff
        self.landmarks = landmarks
        self.metric = metric
        self.seed = seed
        self.engine = engine

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.pairwise = self.metric == "squared"
        return tags

    # -- fit -----------------------------------------------------------------

    def fit(
        self, X: np.ndarray | Distances | Trajectory, y: object = None, sample_weight: np.ndarray | None = None
    ) -> DiffusionMap:
        """Find the coordinates. `y` is ignored. Raises InputError for options or input that make no map (fewer than 3 points, all equal, ...)."""
        self._check()
        sites, finite = self._sites(X)
        total = len(finite)
        weights = np.ones(total) if sample_weight is None else _check_sample_weight(sample_weight, np.empty((total, 1)), dtype=np.float64)  # fmt: skip
        if (weights < 0).any() or not np.isfinite(weights).all():
            raise InputError("sample weights are numbers of zero or more.")
        kept = finite & (weights > 0)
        self.masked_ = int((~finite).sum())
        count = int(kept.sum())
        if count < 3:
            raise InputError(f"a diffusion map takes 3 points or more; got n_samples = {count} that are finite and have weight, of {total}. Record or give more.")  # fmt: skip
        k = min(self.n_components, count - 1)
        if k < self.n_components:
            _say(f"{self.n_components} components were asked for; {count} points have {k} beside the constant, and these are given.")  # fmt: skip
        inner, mass = sites.subset(kept), weights[kept]
        if self.engine == "pydiffmap":
            if sample_weight is not None:
                raise InputError("pydiffmap normalises by unweighted densities: it takes no sample weights.")
            found = _foreign(inner, k, self)
            vectors, stationary, labels = found.vectors, found.stationary, found.labels
        else:
            found, vectors, stationary, labels = self._solve(inner, mass, k)
        self._map, self._columns = found, np.flatnonzero(kept)[found.members]
        self.bandwidth_ = found.law.bandwidth
        self.eigenvalues_ = found.values
        self.n_pieces_ = int(found.labels.max()) + 1
        self.truncated_ = found.truncated
        self.residuals_ = found.residuals
        self.solver_ = found.solver
        self.rates_ = (1 - found.values) / self.bandwidth_.epsilon
        with np.errstate(divide="ignore", invalid="ignore"):
            self.log_rates_ = -np.log(found.values) / self.bandwidth_.epsilon
        self.vectors_ = np.full((total, len(found.values)), np.nan)
        self.stationary_ = np.zeros(total)
        self.labels_ = np.full(total, -1)
        self.vectors_[kept], self.stationary_[kept], self.labels_[kept] = vectors, stationary, labels
        idle = np.flatnonzero(finite & ~kept)
        if len(idle):
            self.vectors_[idle] = found.extend(sites.given(idle, self._columns))[0]
        self.embedding_ = self.vectors_ * self._powers(self.time)
        self._tell(labels)
        return self

    def fit_transform(
        self, X: np.ndarray | Distances | Trajectory, y: object = None, sample_weight: np.ndarray | None = None
    ) -> np.ndarray:
        """`fit`, and its `embedding_`."""
        embedding: np.ndarray = self.fit(X, y, sample_weight).embedding_
        return embedding

    def _check(self) -> None:
        for name, got, allowed in (("kernel", self.kernel, KERNELS), ("solver", self.solver, SOLVERS), ("engine", self.engine, ENGINES), ("metric", self.metric, METRICS)):  # fmt: skip
            if got not in allowed:
                raise unknown(name, str(got), allowed)
        if self.n_components < 1 or self.n_components % 1:
            raise InputError(f"n_components is a whole number, 1 or more; got {self.n_components}.")
        if not (self.alpha <= 1 and (self.alpha >= 0 or self.kernel == "variable")):
            raise InputError(f"alpha lies from 0 to 1; got {self.alpha}.")
        if not math.isfinite(self.beta):
            raise InputError(f"beta is a finite number; got {self.beta}.")
        if self.dimension is not None and not 0 < self.dimension < math.inf:
            raise InputError(f"dimension is a positive number, or None; got {self.dimension}.")
        if not 0 < self.cutoff < 1:
            raise InputError(f"cutoff lies between 0 and 1; got {self.cutoff}.")
        if self.neighbours is not None and self.neighbours < 2:
            raise InputError(f"neighbours counts the point itself: 2 or more; got {self.neighbours}.")
        if self.landmarks < 3:
            raise InputError(f"landmarks are 3 or more; got {self.landmarks}.")
        if not self.time >= 0:
            raise InputError(f"the diffusion time is zero or more; got {self.time}.")

    def _sites(self, X: Any) -> tuple[Sites, np.ndarray]:
        """All points, and which (N,) are finite."""
        from landscape.distances import Distances, of
        from landscape.trajectories import Trajectory

        if isinstance(X, Trajectory):
            X = of(X)
        if isinstance(X, Distances):
            self.n_features_in_ = len(X.squared)
            return Sites(None, X.squared), np.ones(len(X.squared), dtype=bool)
        # three points are asked for in words of our own
        X = validate_data(self, X, dtype=np.float64, ensure_all_finite=False, ensure_min_samples=1)
        if self.metric == "euclidean":
            return Sites(X), np.isfinite(X).all(axis=1)
        if X.shape[0] != X.shape[1]:
            raise InputError(f"squared distances form a square matrix; got {X.shape}.")
        # a masked point has a NaN in each of its rows and columns; its own row has nothing else
        finite = np.isfinite(X)
        good = finite.all(axis=1) | (finite.sum(axis=1) > 1)
        good &= finite[:, good].all(axis=1)
        block = X[np.ix_(good, good)]
        largest = np.abs(block).max(initial=0.0)
        if block.size and block.min() < 0:
            raise InputError(f"squared distances are zero or more; the smallest is {block.min():.3g}.")
        gap = np.abs(block - block.T).max(initial=0.0)
        if gap > 1e-8 * largest:
            raise InputError(f"squared distances are symmetric; entries differ by up to {gap:.3g} from their mirror images.")  # fmt: skip
        if np.abs(block.diagonal()).max(initial=0.0) > 1e-8 * largest:
            raise InputError("the squared distance of a point to itself is zero; the diagonal is not. A kernel or a Gram matrix is no matrix of squared distances.")  # fmt: skip
        return Sites(None, X), good

    def _solve(self, sites: Sites, weights: np.ndarray, k: int) -> tuple[_Map, np.ndarray, np.ndarray, np.ndarray]:
        """The map that was solved, and vectors, stationary law and labels of all points."""
        solver = self.solver
        if solver == "auto":
            solver = "dense" if len(sites) <= DENSE and self.neighbours is None else "sparse"
        if solver == "landmarks" and self.landmarks < len(sites):
            return self._landmarked(sites, weights, k)
        # neighbours alone are found without most of the distances
        held = sites if self.neighbours is not None and solver == "sparse" else sites.held()
        if not held.rows(slice(0, 1)).any():
            raise InputError("all points are equal: they make no map. Give points that differ.")
        law = _Law.of(held, weights, self, cut=solver == "sparse")
        if solver == "sparse":
            pairs = law.pairs(held)
            if pairs > PAIRS:
                told = f"the kernel joins about {pairs:.2g} pairs of {len(sites)} points, and up to {PAIRS:.2g} can be held"
                if self.solver == "sparse":
                    raise InputError(f"{told}. Take a smaller bandwidth, neighbours, or solver='landmarks'.")
                _say(f"{told}: the map of {self.landmarks} landmarks is given. A smaller bandwidth, or neighbours, would make it sparse.")  # fmt: skip
                return self._landmarked(sites, weights, k)
        found = _Map.of(held, weights, law, k, "sparse" if solver == "sparse" else "dense")
        found = dataclasses.replace(found, sites=held.light())
        return found, found.vectors, found.stationary, found.labels

    def _landmarked(self, sites: Sites, weights: np.ndarray, k: int) -> tuple[_Map, np.ndarray, np.ndarray, np.ndarray]:
        """The map of some points, each with the weight of those nearest to it, so that their own density plays no part; extended to all."""
        from landscape.seeds import child_seed

        size = len(sites)
        random = np.random.default_rng(child_seed(self.seed, "landmarks"))
        chosen = np.sort(random.choice(size, self.landmarks, replace=False))
        few = sites.subset(chosen)
        parts = kernels.blocks(size, len(few))
        home = np.concatenate([few.to(sites.given(part, chosen)).argmin(axis=1) for part in parts])
        cells = np.bincount(home, weights, minlength=len(few))
        law = _Law.of(few, cells, self, cut=False)
        found = dataclasses.replace(_Map.of(few, cells, law, min(k, len(few) - 1), "landmarks"), members=chosen)
        vectors, mass = found.extend(sites.given(slice(None), chosen))
        mass *= weights
        return found, vectors, mass / mass.sum(), found.labels[home]

    def _tell(self, labels: np.ndarray) -> None:
        """Warn of what a reader must know."""
        if self.n_pieces_ > 1:
            sizes = np.bincount(labels, minlength=self.n_pieces_)
            shown = ", ".join(map(str, sizes[:8])) + (", ..." if len(sizes) > 8 else "")
            _say(f"the points fall into {self.n_pieces_} pieces that no kernel joins (of {shown} points): the eigenvalue 1 stands {self.n_pieces_} times, and the first coordinates tell pieces apart. See labels_; a larger bandwidth joins them.")  # fmt: skip
        rho = self._map.law.rho
        if rho is not None:
            plateau = 1 / (self.bandwidth_.epsilon * float(rho.max()) ** 2)
            beyond = int((self.rates_ > PLATEAU * plateau).sum())
            if beyond:
                _say(f"{beyond} of {len(self.rates_)} rates come near {plateau:.3g} = 1 / (eps max rho^2), where a bandwidth this wide makes a false plateau: do not read them. Take a smaller bandwidth, or a beta nearer to zero.")  # fmt: skip

    # -- use -----------------------------------------------------------------

    def transform(self, X: np.ndarray) -> np.ndarray:
        """Coordinates (M, k), lambda^time psi, of other points (M, D), or of squared distances (M, N) from them to the points fitted: the Nystrom extension.

        psi(x) = sum_j P(x, x_j) psi(x_j) / lambda, with x's own density in P: it gives the fitted points their own coordinates, to rounding over lambda. NaN, with a warning, where no fitted point is
        within the kernel's reach.
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, ensure_all_finite=False, reset=False)
        if self._map.sites.points is None:
            X = X[:, self._columns]
        finite = np.isfinite(X).all(axis=1)
        vectors = np.full((len(X), len(self.eigenvalues_)), np.nan)
        vectors[finite] = self._map.extend(X[finite])[0]
        if lost := int(np.isnan(vectors[finite]).all(axis=1).sum()):
            _say(
                f"{lost} of {len(X)} points lie beyond the kernel's reach of every fitted one: they have no coordinates."
            )
        coordinates: np.ndarray = vectors * self._powers(self.time)
        return coordinates

    def distance(self, time: float | None = None) -> np.ndarray:
        """Diffusion distances (N, N) at a time (by default that of the embedding): sqrt of sum_j lambda_j^(2 time) (psi_j(x) - psi_j(y))^2 over the components found."""
        check_is_fitted(self)
        scaled = self.vectors_ * self._powers(self.time if time is None else time)
        distances: np.ndarray = cdist(scaled, scaled)
        return distances

    def _powers(self, time: float) -> np.ndarray:
        """lambda^time, for eigenvalues below zero (of cut kernels, and of rounding) that of zero."""
        powers: np.ndarray = np.maximum(self.eigenvalues_, 0.0) ** time
        return powers

    @property
    def _n_features_out(self) -> int:
        return len(self.eigenvalues_)


def _say(text: str) -> None:
    warnings.warn(text, LandscapeWarning, stacklevel=3)


def _curve(sites: Sites, sample: np.ndarray, weights: np.ndarray | None) -> kernels.Curve:
    """The bandwidth's curve, from some rows of points of these weights (N,)."""
    return kernels.curve(sites.rows(sample), None if weights is None else weights[sample, None] * weights)


@dataclass(frozen=True, eq=False)
class _Law:
    """How near two points are: a kernel of squared distances, with the densities that its bandwidth follows and what it leaves out."""

    alpha: float
    bandwidth: Bandwidth
    pilot: kernels.Pilot | None = None  # of the variable kernel
    beta: float = 0.0
    centre: float = 1.0  # geometric mean of the pilot densities: rho is 1 for a typical point
    rho: np.ndarray | None = None  # (N,) of the points fitted
    limit: float = math.inf  # pairs with d^2 / (rho_i rho_j) above it are left out
    radii: np.ndarray | None = None  # (N,) and pairs with d^2 above both of these
    count: int = 0  # of neighbours that these radii hold

    @staticmethod
    def of(sites: Sites, weights: np.ndarray, options: DiffusionMap, *, cut: bool) -> _Law:
        """By the options; with `cut`, small kernels are left out."""
        sample = sites.sample(len(sites) if len(sites) <= WHOLE else SAMPLE)
        pairs = None if (weights == weights[0]).all() else weights
        epsilon = kernels.fixed(options.bandwidth)
        variable: dict[str, Any] = {}
        if options.kernel == "variable":
            pilot = kernels.Pilot.of(sites, weights, options.dimension, sample)
            density = np.concatenate(
                [pilot.density(sites.rows(part)) for part in kernels.blocks(len(sites), len(sites))]
            )
            centre = math.exp(np.log(density).mean())
            rho = (density / centre) ** options.beta
            rows = sites.rows(sample) / (rho[sample, None] * rho)
            variable = {"pilot": pilot, "beta": options.beta, "centre": centre, "rho": rho}
        elif epsilon is None:
            rows = sites.rows(sample)
        if epsilon is not None and not variable:
            found = Bandwidth(epsilon, str(options.bandwidth), partial(_curve, sites.light(), sample, pairs))
        else:
            shares = None if pairs is None else pairs[sample, None] * pairs
            found = kernels.bandwidth(rows, options.bandwidth, weights=shares)
        law = _Law(options.alpha, found, **variable)
        if not cut:
            return law
        if options.neighbours is None:
            return dataclasses.replace(law, limit=-4 * found.epsilon * math.log(options.cutoff))
        return dataclasses.replace(law, count=min(options.neighbours, len(sites)))

    def width(self, squared: np.ndarray) -> np.ndarray | None:
        """rho (M,) at points with these squared distances (M, N) to the fitted ones."""
        if self.pilot is None:
            return None
        rho: np.ndarray = (self.pilot.density(squared) / self.centre) ** self.beta
        return rho

    def kernel(self, squared: np.ndarray, rho: np.ndarray | None) -> np.ndarray:
        """K (M, N) from squared distances (M, N) to the fitted points, and the widths (M,) of the others."""
        ratio = squared if rho is None else squared / (rho[:, None] * self.rho)
        kernel = kernels.gaussian(ratio, self.bandwidth.epsilon)
        if self.limit < math.inf:
            kernel[ratio > self.limit] = 0.0
        if self.radii is not None:
            own = np.partition(squared, self.count - 1, axis=1)[:, self.count - 1] * SLACK
            kernel[squared > np.maximum(own[:, None], self.radii)] = 0.0
        return kernel

    def dense(self, sites: Sites) -> np.ndarray:
        """K (N, N) of the fitted points."""
        kernel = np.empty((len(sites), len(sites)))
        for part in kernels.blocks(*kernel.shape):
            kernel[part] = self.kernel(sites.rows(part), None if self.rho is None else self.rho[part])
        return kernel

    def pairs(self, sites: Sites) -> float:
        """About how many pairs are kept."""
        if self.count:
            return 2.0 * self.count * len(sites)
        sample = sites.sample(SAMPLED)
        kept = self.kernel(sites.rows(sample), None if self.rho is None else self.rho[sample]) > 0
        return float(kept.mean()) * len(sites) ** 2

    def sparse(self, sites: Sites) -> tuple[_Law, Any]:
        """K (N, N) of the fitted points as a sparse matrix, and the law that it follows (with the radii, where neighbours are counted)."""
        size, law = len(sites), self
        if not self.count:
            # the pairs of a point with narrower ones; `graph` mirrors them
            radii = self.limit * (np.ones(size) if self.rho is None else self.rho**2)
            i, j, squared = sites.within(radii)
        else:
            # one more than asked for, to see whether the last is one of several at the same distance: all of these are taken then, since the order of the points must not matter
            squared, places = sites.nearest(self.count + 1)
            radii = np.partition(squared, self.count - 1, axis=1)[:, self.count - 1] * SLACK
            law = dataclasses.replace(self, radii=radii)
            kept = squared <= radii[:, None]
            counts = kept.sum(axis=1)
            if (counts > self.count).any():
                i, j, squared = sites.within(radii)
            else:
                i, j, squared = np.repeat(np.arange(size, dtype=places.dtype), counts), places[kept], squared[kept]
        ratio = squared if self.rho is None else squared / (self.rho[i] * self.rho[j])
        values = kernels.gaussian(ratio, self.bandwidth.epsilon)
        if self.rho is not None and self.limit < math.inf:
            values[ratio > self.limit] = 0.0
        return law, kernels.graph(i, j, values, squared > radii[j], size)

    def truncated(self, sites: Sites, weights: np.ndarray, mass: np.ndarray) -> float:
        """The part of the kernel's mass that is left out, from SAMPLED rows; `mass` (N,) is what is kept of each row, K w."""
        if not (self.count or self.limit < math.inf):
            return 0.0
        sample = sites.sample(SAMPLED)
        plain = dataclasses.replace(self, limit=math.inf, radii=None)
        whole = plain.kernel(sites.rows(sample), None if self.rho is None else self.rho[sample]) @ weights
        return float(1 - (weights[sample] @ mass[sample]) / (weights[sample] @ whole))


@dataclass(frozen=True, eq=False)
class _Map:
    """A solved map: what it takes to extend it to other points."""

    sites: Sites
    law: _Law
    weights: np.ndarray  # (N,)
    density: np.ndarray  # (N,) q
    values: np.ndarray  # (k,)
    vectors: np.ndarray  # (N, k) psi
    stationary: np.ndarray  # (N,)
    labels: np.ndarray  # (N,) pieces, the largest first
    residuals: np.ndarray | None  # (k,)
    truncated: float
    solver: str
    members: np.ndarray  # (N,) which of the points given these are

    @staticmethod
    def of(sites: Sites, weights: np.ndarray, law: _Law, k: int, solver: str) -> _Map:
        """Build the kernel, solve."""
        matrix: Any
        if solver == "sparse":
            law, matrix = law.sparse(sites)
        else:
            matrix = law.dense(sites)
        dimension = 0.0 if law.pilot is None else law.pilot.dimension
        density, factor, mass = _balance(matrix, weights, law.alpha, law.rho, dimension)
        truncated = law.truncated(sites, weights, density if law.rho is None else density * law.rho**dimension)
        if solver == "sparse":
            matrix.data *= np.repeat(factor, np.diff(matrix.indptr))
            matrix.data *= factor[matrix.indices]
        else:
            matrix *= factor[:, None]
            matrix *= factor
        stationary = mass / mass.sum()
        root = np.sqrt(stationary)
        labels = _pieces(matrix)
        shift = None if law.rho is None else 1 - law.rho**-2
        pieces = int(labels.max()) + 1
        contrasts = _contrasts(labels, stationary, min(pieces - 1, k)) * root[:, None]
        values, vectors = np.empty(0), np.empty((len(sites), 0))
        if k > pieces - 1:
            known = np.zeros((len(sites), pieces))
            known[np.arange(len(sites)), labels] = root
            known /= np.linalg.norm(known, axis=0)
            values, vectors = _top(matrix, known, k - pieces + 1, shift)
        values = np.concatenate([np.ones(contrasts.shape[1]), values])
        vectors = np.concatenate([contrasts, vectors], axis=1)
        products = matrix @ vectors
        if shift is not None:
            products += shift[:, None] * vectors
        residuals = np.linalg.norm(products - vectors * values, axis=0)
        vectors = _signed(vectors / root[:, None], stationary)
        return _Map(
            sites,
            law,
            weights,
            density,
            values,
            vectors,
            stationary,
            labels,
            residuals,
            truncated,
            solver,
            np.arange(len(sites)),
        )

    def extend(self, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """psi (M, k) and the reach r rho^2 (M,), which pi / w is proportional to, at other points, as `Sites.to` takes them; NaN and 0 beyond the kernel's reach."""
        parts = [self._extend(self.sites.to(others[part])) for part in kernels.blocks(len(others), len(self.sites))]
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])

    def _extend(self, squared: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        law = self.law
        rho = law.width(squared)
        kernel = law.kernel(squared, rho)
        mine = kernel @ self.weights
        if rho is not None and law.pilot is not None:
            mine /= rho**law.pilot.dimension
        kernel *= self.weights * self.density**-law.alpha
        reach = kernel.sum(axis=1)
        near = reach > 0
        vectors = np.full((len(squared), len(self.values)), np.nan)
        # L psi = (P psi - psi) / (eps rho^2) = (lambda - 1) psi / eps
        scale = 1.0 if rho is None else rho[near, None] ** 2
        vectors[near] = (kernel[near] @ self.vectors) / reach[near, None] / (1 - (1 - self.values) * scale)
        mass = np.zeros(len(squared))
        mass[near] = reach[near] * mine[near] ** -law.alpha
        return vectors, mass if rho is None else mass * rho**2


def _pieces(matrix: Any) -> np.ndarray:
    """The connected piece (N,) of each point, the largest 0 (of equal ones, that of the first point): two points are joined where S is above rounding."""
    if isinstance(matrix, np.ndarray):
        if matrix.min() > JOINED:
            return np.zeros(len(matrix), dtype=np.int64)
        joined = scipy.sparse.csr_array(matrix > JOINED)
    else:
        joined = matrix if matrix.data.min(initial=1.0) > JOINED else matrix > JOINED
    count, labels = connected_components(joined, directed=False)
    order = np.argsort(-np.bincount(labels, minlength=count), kind="stable")
    places = np.empty(count, dtype=np.int64)
    places[order] = np.arange(count)
    return places[labels]  # type: ignore[no-any-return]


def _contrasts(labels: np.ndarray, stationary: np.ndarray, count: int) -> np.ndarray:
    """The coordinates of eigenvalue 1 beside the constant (N, count): the j-th tells piece j from all larger ones, and is 0 on smaller ones; orthonormal under the stationary law."""
    masses = np.bincount(labels, stationary)
    contrasts = np.zeros((len(labels), count))
    for j in range(count):
        larger, own = masses[: j + 1].sum(), masses[j + 1]
        contrasts[labels <= j, j] = -math.sqrt(own / (larger * (larger + own)))
        contrasts[labels == j + 1, j] = math.sqrt(larger / (own * (larger + own)))
    return contrasts


def _foreign(sites: Sites, k: int, options: DiffusionMap) -> _Map:
    """The same question to pydiffmap: its kernel (its eps is ours), its normalisation, its non-symmetric eigenproblem. It is given our eps, since its own rule looks at powers of two alone.

    Its coordinates carry the factor (-1/mu)^(1/2), and its signs are random: normalised and signed here as ours. Its extension lacks the factor 1/lambda; `transform` uses ours, with its vectors.
    """
    from pydiffmap import diffusion_map
    from pydiffmap.kernel import Kernel

    if options.kernel != "gaussian":
        raise InputError("pydiffmap divides the variable kernel's density by rho^2 whatever the dimension: only the gaussian kernel is asked of it.")  # fmt: skip
    size = len(sites)
    count = min(options.neighbours or size, size)
    weights = np.ones(size)
    law = _Law.of(sites, weights, options, cut=options.neighbours is not None)
    law = dataclasses.replace(law, limit=math.inf)
    metric = "euclidean" if sites.points is not None else "precomputed"
    given = sites.points if sites.points is not None else np.sqrt(sites.rows(slice(None)))
    rival = diffusion_map.DiffusionMap(Kernel(epsilon=law.bandwidth.epsilon, k=count, metric=metric), alpha=options.alpha, n_evecs=k)  # fmt: skip
    rival.fit(given)
    order = np.argsort(-rival.evals)
    values, vectors = 1 + law.bandwidth.epsilon * rival.evals[order], rival.evecs[:, order]
    if options.neighbours is not None:
        law = dataclasses.replace(law, radii=sites.nearest(count)[0].max(axis=1) * SLACK)
    density, _, mass = _balance(rival.kernel_matrix, weights, options.alpha)
    stationary = mass / mass.sum()
    vectors = vectors / np.sqrt(stationary @ vectors**2)
    labels = _pieces(rival.kernel_matrix.tocsr())
    return _Map(sites, law, weights, density, values, _signed(vectors, stationary), stationary, labels, None, law.truncated(sites, weights, density), "pydiffmap", np.arange(size))  # fmt: skip
