"""Pruning on a quadratic: how many coordinates of its minimum can be set to zero before the least loss over the others rises above a level.

Letters: D coordinates (of all weights that survive so far), n of them may be pruned, k are, P their set, K the others, alpha = k / D, R = |w_P| the length of the projection, lambda eigenvalues of H.

    E(v) = (v - w)^T H (v - w) / 2, the loss above its minimum at w; an axial subspace {v : v_P = 0} holds the origin and lies at the distance R from w

    (1), (2)  gordon            E = R^2 / (2 alpha s): the largest alpha with E <= epsilon is alpha = (1/D) sum r_i^2 / (R^2 / alpha + r_i^2), r_i^2 = 2 epsilon / lambda_i. Random masks have
                                R^2 = alpha |w|^2, so that this is (1), which is closed; other masks bring their own curve R(alpha), whose crossing with the theory's is (2)
    (3)       free-probability  E = (1 - alpha) R^2 / (2 alpha s), what the least loss over a uniformly random subspace at this distance tends to as D grows
              naive             E = R^2 / (2 s): the distance of the subspace taken for the distance of a point that a random subspace goes through. It is wrong by a factor alpha; for replications only
    (4)       minimum           E = w_P^T [(H^-1)_PP]^-1 w_P / 2, exact for this H and this mask (block Optimal Brain Surgeon)
    (5)       projection        E = w_P^T H_PP w_P / 2: what pruning costs without retraining

with s > 0 from mean_i 1 / (1 + s lambda_i) = alpha. (1) to (3) hold for H whose eigenvectors are spread over the axes: `alignment` tells how far they are. (1) is `Quadratic.paper_bound` and (3) `Quadratic.least_on`,
of a start in a uniform direction at the distance R / sqrt(alpha); here they stand for any curve R and any `functionals.Measure`, from exact eigenvalues or by Lanczos.

Directions without curvature cost nothing: their terms in (1) to (3) are 1, and so are those of negative eigenvalues, where a quadratic has no least loss. For (4) all eigenvalues are raised to `FLOOR` of the largest.

Sources: Paul, Chen, Larsen, Frankle, Ganguli, Dziugaite 2023 (the question); Larsen, Fort, Becker, Ganguli 2022 (the bound of (1)); Hassibi, Stork 1993 (Optimal Brain Surgeon);
LeCun, Denker, Solla 1990 (Optimal Brain Damage); Hestenes, Stiefel 1952 (conjugate gradients).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from scipy.linalg import solve_triangular
from scipy.optimize import brentq
from torch import Tensor

from landscape.errors import LandscapeError, UsageError, unknown
from landscape.functionals import Estimate, Measure, standard_error
from landscape.operators import SymmetricOperator, not_finite
from landscape.quadratics import resolution

Form = Literal["gordon", "free-probability", "naive"]
FORMS: tuple[Form, ...] = get_args(Form)

# of the largest eigenvalue: less curvature moves a loss of order 1 by nothing that can be seen, and a Cholesky factor in float64 still has eight digits
FLOOR = 1e-8
# of a solution of conjugate gradients: the loss errs by its square over the least curvature, 1e-8 of the scale at a condition number of 1e4
TOLERANCE = 1e-6
# of one solution: a thousand reach the tolerance up to a condition number of about 1e4 (2 exp(-2 m / sqrt(condition)))
MAX_PRODUCTS = 1000


# -- from a spectrum: (1), (2), (3) -----------------------------------------------------------------------------------


def price(density: Measure, alphas: Any, form: Form = "free-probability") -> np.ndarray:
    """The loss (K,) that pruning costs for each unit of R^2, at the shares alpha (K,) of pruned coordinates, each in (0, 1]; infinite for `gordon` and `naive` at 1.

    Raises UsageError for another form or alpha.
    """
    if form not in FORMS:
        raise unknown("form", form, FORMS)
    alphas = np.asarray(alphas, dtype=float)
    if alphas.size and not (alphas.min() > 0 and alphas.max() <= 1):
        raise UsageError(f"the share of pruned coordinates lies in (0, 1]; got {alphas.min():g} to {alphas.max():g}.")
    points, masses = density.all()
    values = np.maximum(points, 0.0)  # negative curvature costs no more than none
    found = np.empty(alphas.shape)
    for place, alpha in np.ndenumerate(alphas):
        s = resolution(values, masses, 1 - alpha) if alpha < 1 else 0.0
        if math.isinf(s):  # no more is pruned than there are directions without curvature
            found[place] = 0.0
        elif form == "free-probability":
            # (1 - alpha) / s = mean lambda / (1 + s lambda), which has a value at s = 0
            found[place] = float(np.sum(masses * values / (1 + s * values))) / (2 * alpha)
        else:
            found[place] = 1 / (2 * s * (alpha if form == "gordon" else 1.0)) if s > 0 else math.inf
    return found


def most(density: Measure, squares: np.ndarray, epsilon: float, form: Form = "free-probability") -> Estimate:
    """The largest number k of pruned coordinates, between 0 and n, at which a form says that the loss rises by no more than epsilon; a fraction, where its curve crosses the mask's.

    squares: R(k)^2 (n + 1,) of k = 0 ... n, rising from 0; between whole numbers it is taken as linear. Of a random mask it is linear throughout, k / n |w|^2.
    The error is that over the probes of the density; 0 where the eigenvalues are exact.
    Raises UsageError for squares that do not rise from 0, more coordinates than the density has, or an epsilon that is not positive.
    """
    n = len(squares) - 1
    if n < 1 or n > density.dim or squares[0] != 0 or (np.diff(squares) < 0).any() or not np.isfinite(squares).all():
        raise UsageError(
            f"squares of lengths rise from 0 over 1 to {density.dim} pruned coordinates; got {n} of them, from {squares[:1]}."
        )
    if not 0 < epsilon < math.inf:
        raise UsageError(f"the rise of the loss is positive and finite; got {epsilon:g}.")
    value = _crossing(density, squares, epsilon, form)
    probes = [
        dataclasses.replace(density, nodes=density.nodes[[i]], weights=density.weights[[i]])
        for i in range(len(density.nodes))
    ]
    error = standard_error(np.array([_crossing(one, squares, epsilon, form) for one in probes])) if probes else 0.0
    return Estimate(value, float(error), density.products)


def _crossing(density: Measure, squares: np.ndarray, epsilon: float, form: Form) -> float:
    n = len(squares) - 1
    every = np.arange(n + 1)

    def over(k: float) -> float:
        """Of one sign with the cost less epsilon, and between -1/2 and 1/2 where the cost is infinite."""
        square = float(np.interp(k, every, squares))
        cost = square * float(price(density, k / density.dim, form)) if square > 0 else 0.0
        return 0.5 - epsilon / (cost + epsilon)

    if over(n) <= 0:
        return float(n)
    return float(brentq(over, 0.0, n, xtol=1e-12 * n, rtol=4 * np.finfo(float).eps))


# -- exact for one matrix and one order: (4), (5) ---------------------------------------------------------------------


def definite(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The matrix (D, D) with all eigenvalues raised to `FLOOR` of the largest, itself where none are below, and its eigenvalues (D,), ascending, as they were.

    Raises LandscapeError where it is not finite, or curves upwards in no direction: there is no minimum to prune.
    """
    if not np.isfinite(matrix).all():
        raise not_finite("the matrix")
    matrix = (matrix + matrix.T) / 2
    values = np.linalg.eigvalsh(matrix)
    floor = FLOOR * float(values[-1])
    if floor <= 0:
        raise LandscapeError(
            f"the matrix has no positive eigenvalue, {values[-1]:.3g} being the largest: this is no minimum, and its loss limits no pruning."
        )
    if values[0] >= floor:
        return matrix, values
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.maximum(values, floor)) @ vectors.T, values


def alignment(matrix: np.ndarray) -> tuple[float, float]:
    """How far the eigenvectors lie along the axes: the share of the diagonal in |H|_F^2, 1 for a diagonal matrix; and its expectation for uniformly random eigenvectors.

    E sum_i H_ii^2 = ((tr H)^2 + 2 tr H^2) / (D + 2), from E u_i^4 = 3 E u_i^2 u_j^2 = 3 / (D (D + 2)) on the sphere.
    """
    diagonal, whole = np.diagonal(matrix), float(np.sum(matrix**2))
    expected = (float(diagonal.sum()) ** 2 + 2 * whole) / (len(matrix) + 2)
    return float(np.sum(diagonal**2)) / whole, expected / whole


@dataclass(frozen=True, eq=False)
class Nested:
    """One quadratic over axial subspaces that lie in each other: the first k coordinates of an order are pruned, k = 0 ... n."""

    order: np.ndarray  # (D,) the n coordinates in the order of pruning, then the others
    w: np.ndarray  # (D,) the minimum
    lengths: np.ndarray  # (n + 1,) R
    minima: np.ndarray  # (n + 1,) the least loss, (4)
    projections: np.ndarray  # (n + 1,) the loss at the projection, (5)
    factor: np.ndarray  # (D, D) lower triangle G, H = G G^T with the coordinates from the last kept to the first pruned

    @property
    def curvatures(self) -> np.ndarray:
        """w_P^T H w_P / R^2 (n,), along the direction of pruning, for k = 1 ... n; NaN where R = 0."""
        squares = self.lengths[1:] ** 2
        found: np.ndarray = np.divide(
            2 * self.projections[1:], squares, out=np.full(len(squares), np.nan), where=squares > 0
        )
        return found

    def minimiser(self, k: int) -> np.ndarray:
        """The point (D,) of least loss with the first k coordinates pruned, which are exactly 0 there."""
        pruned, kept = self.order[:k], self.order[k:]
        point = np.zeros_like(self.w)
        count = len(kept)
        # H_KK x = H_KP w_P with H_KK = G_KK G_KK^T and H_KP = G_KK G_PK^T
        pull = self.factor[count:, :count].T @ self.w[pruned][::-1]
        step = solve_triangular(self.factor[:count, :count], pull, lower=True, trans=1)
        point[kept] = self.w[kept] + step[::-1]
        return point


def nested(matrix: np.ndarray, w: np.ndarray, order: np.ndarray) -> Nested:
    """The whole curve of minima for one order (n,) of pruning, from one Cholesky factor of H (D, D), positive definite, in O(D^3).

    With the coordinates in reverse order, first pruned last, H = G G^T and (4) for the first k is half the sum of the last k squares of G^T w: the pruned block of G^T is the inverse
    factor of (H^-1)_PP. H is never inverted.
    Raises UsageError for an order that names a coordinate twice or one that is not there, LandscapeError where H is not positive definite (see `definite`).
    """
    dim, order = len(w), np.asarray(order)
    if matrix.shape != (dim, dim) or not len(order) or len(np.unique(order)) != len(order):
        raise UsageError(
            f"a matrix ({dim}, {dim}) and an order of different coordinates are needed; got {matrix.shape} and {len(order)} of them, {len(np.unique(order))} different."
        )
    if not (order.min() >= 0 and order.max() < dim):
        raise UsageError(f"coordinates are 0 to {dim - 1}; got {order.min()} to {order.max()}.")
    rest = np.setdiff1d(np.arange(dim), order)
    whole = np.concatenate([order, rest])
    turned = whole[::-1]
    try:
        factor = np.linalg.cholesky(matrix[np.ix_(turned, turned)])
    except np.linalg.LinAlgError:
        raise LandscapeError(
            "the matrix is not positive definite: its least loss over a subspace has no bound. Make it so with `definite`."
        ) from None
    parts = (factor.T @ w[turned])[::-1][: len(order)]
    zero = np.zeros(1)
    return Nested(
        whole,
        w,
        np.sqrt(np.concatenate([zero, np.cumsum(w[order] ** 2)])),
        np.concatenate([zero, np.cumsum(parts**2) / 2]),
        projections(matrix, w, order),
        factor,
    )


def projections(matrix: np.ndarray, w: np.ndarray, order: np.ndarray) -> np.ndarray:
    """(5) for the first k coordinates of an order (n,), k = 0 ... n, as (n + 1,). The symmetric matrix (D, D) may be indefinite: this is no least loss, and needs none."""
    ours = w[order]
    block = matrix[np.ix_(order, order)] * ours[:, None] * ours
    steps = 2 * np.tril(block, -1).sum(1) + np.diagonal(block)
    return np.concatenate([np.zeros(1), np.cumsum(steps) / 2])


# -- exact for one mask, by products ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Solution:
    """What conjugate gradients found."""

    point: Tensor  # (D,)
    residual: float  # |b - A x| / |b|
    products: int
    converged: bool


def solve(
    operator: SymmetricOperator,
    right: Tensor,
    *,
    start: Tensor | None = None,
    tolerance: float = TOLERANCE,
    max_products: int = MAX_PRODUCTS,
) -> Solution:
    """A x = b for positive definite A and b (D,), by conjugate gradients, until |b - A x| <= tolerance |b| or the products are spent.

    Whenever it stops, x has less of x.Ax / 2 - b.x than all iterates before.
    Raises LandscapeError where a product is not finite, or a direction has no positive curvature.
    """
    x = torch.zeros_like(right) if start is None else start.clone()
    rest = right - operator.product(x) if start is not None else right.clone()
    products = 0 if start is None else 1
    size, goal = float(rest.norm()), tolerance * float(right.norm())
    along = rest.clone()
    while size > goal and products < max_products:
        image = operator.product(along)
        products += 1
        bent = float(along @ image)
        if not math.isfinite(bent):
            raise not_finite()
        if bent <= 0:
            raise LandscapeError(
                f"the matrix is not positive definite: a direction has a curvature of {bent / float(along @ along):.3g}, so that there is no least loss. Take the Gauss-Newton matrix, or add weight decay."
            )
        step = size**2 / bent
        x = x + step * along
        rest = rest - step * image
        before, size = size, float(rest.norm())
        along = rest + (size / before) ** 2 * along
    scale = float(right.norm())
    return Solution(x, size / scale if scale > 0 else 0.0, products, size <= goal)


@dataclass(frozen=True, eq=False)
class Least:
    """The least loss over one axial subspace, and where: an upper bound where it has not converged."""

    loss: float
    point: Tensor  # (D,) exactly 0 where pruned
    residual: float  # see Solution
    products: int
    converged: bool


def least_on(
    operator: SymmetricOperator,
    w: Tensor,
    kept: Tensor,
    *,
    start: Tensor | None = None,
    tolerance: float = TOLERANCE,
    max_products: int = MAX_PRODUCTS,
) -> Least:
    """Formula (4) for one mask `kept` (D,) bool, by conjugate gradients on masked products: H_KK x = H_KP w_P.

    start: a point (D,) to begin at, such as the minimiser for a larger mask; what it has outside this one is left out.
    Raises as `solve`.
    """
    pruned = torch.where(kept, torch.zeros_like(w), w)

    def inside(v: Tensor) -> Tensor:
        return torch.where(kept, v, torch.zeros_like(v))

    pulled = operator.product(pruned)
    masked = SymmetricOperator(
        operator.dim, lambda v: inside(operator.product(v)), operator.dtype, operator.device, notes=operator.notes
    )
    right = inside(pulled)
    found = solve(
        masked,
        right,
        start=None if start is None else inside(start - w),
        tolerance=tolerance,
        max_products=max_products - 2,
    )
    step = found.point
    exact = torch.float32 if w.device.type == "mps" else torch.float64
    offset = (step - pruned).to(exact)
    loss = float(offset @ operator.product(step - pruned).to(exact)) / 2
    return Least(loss, inside(w + step), found.residual, found.products + 2, found.converged)
