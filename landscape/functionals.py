"""Numbers of a whole spectrum without the spectrum: density, trace, diagonal, log-determinant, effective dimension, quadratic forms, each with its error.

Letters: d dimension, k eigenvalues counted one by one, P probes, m Lanczos steps, n products.

    mu = (1/d) sum_j delta(lambda_j) = (1/d) sum_{i <= k} delta(lambda_i) + (1 - k/d) E_v sum_m omega_vm delta(theta_vm)

The first part is counted, the second is stochastic Lanczos quadrature on the complement of the counted vectors: v is uniform on its unit sphere, theta and omega
are the nodes and weights of the Gauss rule of v's spectral measure. Counting the outliers takes away what plain quadrature is worst at, their weights, which
fluctuate from probe to probe. Any average of a function over the spectrum is an integral against mu.

Sources: Golub and Welsch 1969; Ubaru, Chen, Saad 2017 (tr f(A) by Lanczos); Ghorbani, Krishnan, Xiao 2019; Hutchinson 1990; Meyer, Musco, Musco, Woodruff 2021
(Hutch++); Epperly, Tropp, Webber 2024 (XTrace); Bekas, Kokiopoulou, Saad 2007 (diagonal); Golub and Meurant 2010 (w^T f(A) w).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor

from landscape.errors import LandscapeError, UsageError, unknown
from landscape.operators import (
    BASIS_BYTES,
    Krylov,
    SearchSpace,
    SymmetricOperator,
    lanczos,
    normal,
    not_finite,
    quadrature,
)
from landscape.seeds import generator

Function = Callable[[np.ndarray], np.ndarray]
TraceMethod = Literal["deflation", "hutchinson", "hutch++", "xtrace"]
TRACE_METHODS: tuple[TraceMethod, ...] = ("deflation", "hutchinson", "hutch++", "xtrace")


@dataclass(frozen=True)
class Estimate:
    """A number, its standard error (0 where it is exact; see `standard_error`) and the products that it took."""

    value: float
    error: float
    products: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "error", float(self.error))  # numpy's scalars print otherwise


# -- the spectral measure ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Measure:
    """The spectral measure mu of a matrix of dimension d: k eigenvalues counted, and P Gauss rules of m nodes for the rest."""

    dim: int
    values: np.ndarray  # (k,)
    nodes: np.ndarray  # (P, m); unused places (a probe that ended early) hold NaN
    weights: np.ndarray  # (P, m); each row sums to 1; 0 in unused places
    leak: float  # see operators.Deflation; 0 where every counted value has converged
    products: int  # taken for the rules

    @property
    def rest(self) -> float:
        """The share of the spectrum that is not counted one by one, 1 - k/d."""
        return 1 - len(self.values) / self.dim

    def average(self, function: Function) -> Estimate:
        """The mean of function(lambda) over the spectrum; `error` is the standard error over probes and, added in squares, what half the steps would change.

        function: numpy arrays to arrays. Multiply by d for tr f(A).
        """
        counted = float(np.sum(function(self.values))) / self.dim if len(self.values) else 0.0
        if not len(self.nodes):
            return Estimate(counted, 0.0, self.products)
        samples = self._integrals(function, self.nodes, self.weights)
        coarse = self._integrals(function, *self._halved)
        spread, rule = standard_error(samples), abs(float(samples.mean() - coarse.mean()))
        return Estimate(
            counted + self.rest * float(samples.mean()), self.rest * math.hypot(spread, rule), self.products
        )

    def moment(self, power: int) -> Estimate:
        """The mean of lambda^power. A Gauss rule is exact to degree 2m - 1, so up to there the only error is that over probes, and from the square on what the counted space leaks.

        Of the sum of squares that is at most leak^2 / 2, and stands in the error.
        """
        counted = float(np.sum(self.values**power)) / self.dim
        left_out = self.leak**2 / 2 / self.dim if power == 2 else 0.0
        if not len(self.nodes):
            return Estimate(counted, left_out, self.products)
        samples = self._integrals(lambda x: x**power, self.nodes, self.weights)
        error = self.rest * standard_error(samples) + left_out
        return Estimate(counted + self.rest * float(samples.mean()), error, self.products)

    def share(self, low: float, high: float) -> Estimate:
        """The share of eigenvalues in (low, high]; the error holds, beside that over probes, what the rules leave open at each end.

        Chebyshev, Markov, Stieltjes: of measures with the moments of a rule, none has more mass at x than 1 / sum_i p_i(x)^2, p_i its orthonormal polynomials, and by no more does its
        distribution function differ there. It is small but where nodes are near. A process that ended by itself leaves nothing open.
        """
        counted = float(np.sum((self.values > low) & (self.values <= high))) / self.dim
        if not len(self.nodes):
            return Estimate(counted, 0.0, self.products)
        with np.errstate(invalid="ignore"):
            samples = np.sum(self.weights * ((self.nodes > low) & (self.nodes <= high)), axis=1)
        error = standard_error(samples)
        for end in (low, high):
            if math.isfinite(end):
                error += float(np.mean([self._open(probe, end) for probe in range(len(self.nodes))]))
        return Estimate(counted + self.rest * float(samples.mean()), min(self.rest * error, 1.0), self.products)

    def _open(self, probe: int, place: float) -> float:
        """The most mass that a measure with the moments of one probe's rule can have at a place."""
        used = self.weights[probe] > 0
        if not used.all():
            return 0.0
        state = _process(self.nodes[probe], self.weights[probe], used.sum())
        # of the process that made the rule, how it went on is not known: the last coupling here is its end
        return Krylov(state.alphas[:-1], state.betas[:-1], state.basis).heaviest(place)

    def trace(self) -> Estimate:
        """The sum of all eigenvalues."""
        return _times(self.moment(1), self.dim)

    def log_determinant(self, shift: float) -> Estimate:
        """log det(A + shift I), natural. Raises UsageError unless the shift exceeds minus every eigenvalue seen."""
        self._require_positive(shift)
        return _times(self.average(lambda x: np.log(x + shift)), self.dim)

    def effective_dimension(self, shift: float) -> Estimate:
        """N_eff(shift) = sum_j lambda_j / (lambda_j + shift): the number of directions that are curved by more than the shift.

        Raises UsageError unless the shift exceeds minus every eigenvalue seen: beyond, the sum has poles and no meaning as a number of directions.
        """
        self._require_positive(shift)
        return _times(self.average(lambda x: x / (x + shift)), self.dim)

    def error(self) -> float:
        """Estimated Wasserstein-1 distance to the true spectral measure, in units of the mean |eigenvalue|: over probes, of the rule, and of the counted part, added.

        Over probes: the integral of the standard error of the distribution function. Of the rule: the distance between these rules and those of half the steps, since the
        distance to the truth falls as 1/m. Of the counted part: at most leak / d.
        """
        if not len(self.nodes):
            return 0.0
        scale = self.average(np.abs).value
        if scale == 0:
            return 0.0
        rules = _spread(self.nodes, self.weights) + _distance((self.nodes, self.weights), self._halved)
        return (self.rest * rules + self.leak / self.dim) / scale

    def all(self) -> tuple[np.ndarray, np.ndarray]:
        """The measure as points (n,) and masses (n,) that sum to 1: the raw quadrature behind every picture."""
        used = self.weights > 0
        points = np.concatenate([self.values, self.nodes[used]])
        masses = np.concatenate(
            [np.full(len(self.values), 1 / self.dim), self.rest * self.weights[used] / max(len(self.weights), 1)]
        )
        return points, masses

    def distance(self, eigenvalues: np.ndarray) -> float:
        """Wasserstein-1 distance to the measure of all eigenvalues (d,), where they are known."""
        points, masses = self.all()
        return _distance(
            (points[None], masses[None]), (eigenvalues[None], np.full((1, len(eigenvalues)), 1 / len(eigenvalues)))
        )

    def _integrals(self, function: Function, nodes: np.ndarray, weights: np.ndarray) -> np.ndarray:
        used = weights > 0
        values = np.zeros_like(nodes)
        values[used] = function(nodes[used])
        return np.asarray(np.sum(weights * values, axis=1))

    @cached_property
    def _halved(self) -> tuple[np.ndarray, np.ndarray]:
        """The rules of half as many steps, from the same processes: a measure of m points determines its own Jacobi matrix."""
        steps = (self.nodes.shape[1] + 1) // 2
        nodes, weights = np.full((len(self.nodes), steps), np.nan), np.zeros((len(self.nodes), steps))
        for place, (points, masses) in enumerate(zip(self.nodes, self.weights, strict=True)):
            used = masses > 0
            found = _truncated(points[used], masses[used], steps)
            nodes[place, : len(found[0])], weights[place, : len(found[0])] = found
        return nodes, weights

    def _require_positive(self, shift: float) -> None:
        lowest = float(min(np.nanmin(self.nodes, initial=math.inf), self.values.min(initial=math.inf)))
        if not (math.isfinite(shift) and lowest + shift > 0):
            raise UsageError(
                f"a shift of {shift:g} does not make the matrix positive: its lowest eigenvalue seen is {lowest:.4g}. Give a shift above {max(-lowest, 0):.4g}."
            )


# Counting is worth more than probing: each doubling of the counted part about halves the error, and 150 counted with 4 probes of 60 steps have a tenth of the error of 10 plain
# probes of 80 steps at half of the products (networks of 1,210 to 4,810 parameters; benchmarks/spectra.py d)
COUNTED, PROBES, STEPS = 150, 4, 60


def measure(
    operator: SymmetricOperator,
    *,
    space: SearchSpace | None = None,
    counted: int | None = None,
    probes: int | None = None,
    steps: int | None = None,
    accuracy: float | None = None,
    max_products: int = 2000,
    seed: int = 0,
) -> Measure:
    """The spectral measure of an operator: the search space `space` counted whole, and stochastic Lanczos quadrature on its complement.

    The space, grown to `counted` vectors or as many as its basis holds, is treated as invariant, its Ritz values as eigenvalues, converged or not: what that costs is known
    (`Deflation.leak`). With no space, or counted=0, this is plain stochastic Lanczos quadrature.
    Fixed: `probes` (P) Gaussian vectors of `steps` (m) Lanczos steps each, by default 4 of 60 and 150 counted.
    Adaptive, with `accuracy` and neither of those: from a third of that on, each stage about twice as dear as the last, until `Measure.error` is at most `accuracy` (a
    Wasserstein-1 distance in units of the mean |eigenvalue|) or the next stage would pass `max_products`.
    Where the products asked for reach d, the matrix is formed and its eigenvalues are exact: it costs no more.

    Raises UsageError for options out of range, LandscapeError when a product is not finite.
    """
    if accuracy is not None and (probes is not None or steps is not None or counted is not None):
        raise UsageError("a density takes either an accuracy, or numbers of probes and steps; got both.")
    if accuracy is not None and not 0 < accuracy < math.inf:
        raise UsageError(f"the accuracy of a density must be positive and finite; got {accuracy}.")
    adaptive = accuracy is not None
    plan = [
        COUNTED if counted is None else counted,
        PROBES if probes is None else probes,
        STEPS if steps is None else steps,
    ]
    if adaptive:
        plan = [50, 3, 24]
    if plan[1] < 2 or plan[2] < 2 or plan[0] < 0:
        raise UsageError(
            f"a density with error bars needs at least 2 probes and 2 steps; got {plan[1]} and {plan[2]}, with {plan[0]} counted."
        )
    taken = 0
    while True:
        if operator.dim <= plan[0] * (space is not None) + plan[1] * plan[2]:
            return _exactly(operator, taken)
        values, against, leak = np.empty(0), None, 0.0
        if space is not None and plan[0]:
            space.grow(plan[0])
            deflation = space.deflation()
            values, against, leak = deflation.values, deflation.vectors, deflation.leak
        if len(values) == operator.dim:  # nothing is left to sample
            return Measure(operator.dim, values, np.empty((0, 0)), np.empty((0, 0)), leak, taken)
        draws = [generator(seed, "probe", probe) for probe in range(plan[1])]
        rule = quadrature(operator, probes=plan[1], steps=plan[2], generators=draws, against=against)
        taken += rule.products
        found = Measure(operator.dim, values, rule.nodes, rule.weights, leak, taken)
        if accuracy is None or found.error() <= accuracy:
            return found
        full = space is None or len(values) < plan[0]
        room = max(STEPS, BASIS_BYTES // (operator.dim * torch.finfo(operator.dtype).bits // 8))
        plan = [2 * plan[0], 2 * plan[1] if full else plan[1], min(plan[2] * 3 // 2, MOST_STEPS, room)]
        if taken + plan[1] * plan[2] + (0 if space is None else space.products + plan[0] - len(values)) > max_products:
            return found


# where the small problem begins to cost; and their basis is memory too, at least 60 vectors beside those of the space
MOST_STEPS = 200


def _exactly(operator: SymmetricOperator, taken: int) -> Measure:
    matrix = operator.dense().double().cpu().numpy()
    if not np.isfinite(matrix).all():
        raise not_finite()
    empty = np.empty((0, 0))
    values = np.linalg.eigvalsh((matrix + matrix.T) / 2)[::-1]
    return Measure(operator.dim, values, empty, empty, 0.0, taken + operator.dim)


def _truncated(nodes: np.ndarray, weights: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The Gauss rule of `steps` nodes of a discrete measure."""
    return _process(nodes, weights, steps).quadrature()


def _process(nodes: np.ndarray, weights: np.ndarray, steps: int) -> Krylov:
    """The Lanczos process of a discrete measure: that of its diagonal matrix, started at the roots of its weights."""
    matrix = SymmetricOperator(len(nodes), lambda v: torch.from_numpy(nodes) * v, torch.float64, torch.device("cpu"))
    (state,) = deque(lanczos(matrix, torch.from_numpy(np.sqrt(weights)), steps), maxlen=1)
    return state


def standard_error(samples: np.ndarray, axis: int = 0) -> Any:
    """Of the mean of n samples, widened for small n by Student's t, so that twice it is 95% however few they are; infinite for one."""
    n = samples.shape[axis]
    if n < 2:
        return np.full(np.delete(samples.shape, axis), math.inf)[()]
    return samples.std(axis=axis, ddof=1) / math.sqrt(n) * float(stdtrit(n - 1, 0.975)) / 1.96


def _distance(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> float:
    """Wasserstein-1 distance between two mean measures: the integral of |F - G|."""
    (points, masses), (places, weights) = (_flat(*part) for part in (one, other))
    merged = np.concatenate([points, places])
    order = np.argsort(merged)
    jumps = np.cumsum(np.concatenate([masses, -weights])[order])
    return float(np.sum(np.abs(jumps[:-1]) * np.diff(merged[order])))


def _flat(nodes: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    used = weights > 0
    return nodes[used], weights[used] / len(nodes)


def _spread(nodes: np.ndarray, weights: np.ndarray) -> float:
    """The integral over x of the standard error, over probes, of the distribution function."""
    probes = len(nodes)
    if probes < 2:
        return math.inf
    used = weights > 0
    owner = np.broadcast_to(np.arange(probes)[:, None], nodes.shape)[used]
    points = nodes[used]
    order = np.argsort(points)
    jumps = np.zeros((probes, len(points)))
    jumps[owner[order], np.arange(len(points))] = weights[used][order]
    functions = np.cumsum(jumps, axis=1)[:, :-1]
    return float(np.sum(functions.std(axis=0, ddof=1) * np.diff(points[order]))) / math.sqrt(probes)


def _times(estimate: Estimate, factor: float) -> Estimate:
    return Estimate(estimate.value * factor, estimate.error * factor, estimate.products)


# -- trace and diagonal -----------------------------------------------------------------------------------------------

# fewest samples before a standard error is believed: the relative deviation of a deviation from n samples is 1 / sqrt(2 n)
LEAST_SAMPLES = 8
# Lanczos steps before sampling: on an MLP and a ResNet-20, 10 to 20 took fewest products to 2% (benchmarks/spectra.py e)
DEFLATED = 16


def trace(
    operator: SymmetricOperator,
    *,
    method: TraceMethod = "deflation",
    accuracy: float = 0.02,
    max_products: int = 1000,
    space: SearchSpace | None = None,
    seed: int = 0,
) -> Estimate:
    """The trace, to a standard error of `accuracy` times its size, or what `max_products` give.

    method: `deflation`, the Ritz values of a Lanczos process summed and Hutchinson's estimator on the complement of its basis: spectra of neural networks have outliers, which are most of a
    plain estimator's variance. `hutchinson` (random signs v, E v.Av = tr A), `hutch++` and `xtrace` (half of the products or more for a low-rank part) are its peers.
    space: for `deflation`, a search space at hand, such as that of the eigenvalues, used as it stands; by default one of 16 steps is made.
    accuracy: 2%, what a page shows.

    Raises UsageError for options out of range, LandscapeError when a product is not finite.
    """
    if method not in TRACE_METHODS:
        raise unknown("method", method, TRACE_METHODS)
    if not 0 < accuracy < math.inf:
        raise UsageError(f"the accuracy of a trace must be positive and finite; got {accuracy}.")
    if space is not None and method != "deflation":
        raise UsageError(f"a search space serves the method deflation, not {method}.")
    # two samples at least, after one product for a space, or a sketch of two
    least = {"deflation": 2 + (space is None), "hutchinson": 2, "hutch++": 6, "xtrace": 4}[method]
    if max_products < least:
        raise UsageError(f"a trace with an error takes at least {least} products by {method}; got {max_products}.")
    if operator.dim <= 2 * LEAST_SAMPLES:
        return _formed(operator, 0)
    if method == "hutch++":
        return _hutchplus(operator, accuracy, max_products, seed)
    if method == "xtrace":
        return _xtrace(operator, accuracy, max_products, seed)
    counted, taken = 0.0, 0
    known = torch.empty(0, operator.dim, dtype=operator.dtype, device=operator.device)
    if method == "deflation":
        if space is None:
            space = SearchSpace(operator, 1, generator=generator(seed, "deflation"))
            space.grow(min(DEFLATED, max_products // 2))
            taken = space.products
        deflation = space.deflation()
        counted, known = float(deflation.values.sum()), deflation.vectors
        if len(known) == operator.dim:
            return Estimate(counted, 0.0, taken)
    samples: list[float] = []
    while True:
        v = _outside(signs(operator, generator(seed, "trace", len(samples))), known)
        samples.append(counted + _inner(v, operator.product(v)))  # P A P has the trace of the rest
        if len(samples) < min(LEAST_SAMPLES, max_products - taken):
            continue
        found = _estimate(samples, taken + len(samples))
        if found.error <= accuracy * abs(found.value) or found.products >= max_products:
            return found
        whole = found.products + operator.dim
        needed = len(samples) * found.error**2 / max(accuracy * abs(found.value), np.finfo(float).tiny) ** 2
        if whole <= max_products and needed >= operator.dim:  # the matrix itself is no dearer
            return _formed(operator, found.products)


def _formed(operator: SymmetricOperator, taken: int) -> Estimate:
    """The trace of the matrix itself, exact."""
    exact = float(operator.dense().diagonal().double().sum())
    return _estimate([exact, exact], taken + operator.dim)


def _hutchplus(operator: SymmetricOperator, accuracy: float, most: int, seed: int) -> Estimate:
    """A third of the products for a sketch, a third for the trace on its range, a third for Hutchinson on the complement; doubled until the error is small enough."""
    basis = torch.empty(0, operator.dim, dtype=operator.dtype, device=operator.device)
    products, size, drawn, counted = 0, max(2, min(LEAST_SAMPLES, most // 3)), 0, 0.0
    while True:
        images = [operator.product(signs(operator, generator(seed, "sketch", i))) for i in range(drawn, size)]
        fresh = _orthonormal(torch.stack(images), basis)
        counted += sum(_inner(row, operator.product(row)) for row in fresh)
        basis = torch.cat([basis, fresh])
        samples = []
        for i in range(size):
            v = _outside(signs(operator, generator(seed, "residual", size, i)), basis)
            samples.append(counted + _inner(v, operator.product(v)))
        products += 2 * (size - drawn) + size
        found = _estimate(samples, products)
        if found.error <= accuracy * abs(found.value) or products + 4 * size > most or 2 * size >= operator.dim:
            return found
        size, drawn = 2 * size, size


def _xtrace(operator: SymmetricOperator, accuracy: float, most: int, seed: int) -> Estimate:
    """XTrace: every test vector serves the low-rank part of all others and the residual of its own; two products a vector; grown by a quarter until the error is small enough, twice.
    Its samples share vectors, so the stated error is a low guess: by 1.0 to 1.8 at an accuracy of 2%, and up to 3 at 10%, over 200 seeds on spectra with outliers, flat and decaying.

    With Q = orth(A Omega), H = Q^T A Q and R = Q^T A Omega, the range of all test vectors but the i-th is Q without the direction s_i, the i-th column of R^{-T} normalised.
    """
    rows = images = basis = torch.empty(0, operator.dim, dtype=operator.dtype, device=operator.device)
    inside = np.zeros((0, 0))
    size, small_before = max(2, min(LEAST_SAMPLES, most // 2)), False
    while True:
        fresh = torch.stack([normal(operator, generator(seed, "xtrace", i)) for i in range(len(rows), size)])
        new = torch.stack([operator.product(row) for row in fresh])
        rows, images = torch.cat([rows, fresh]), torch.cat([images, new])
        grown = _orthonormal(new, basis)
        mapped = torch.stack([operator.product(row) for row in grown])
        basis = torch.cat([basis, grown])
        corner = (basis @ mapped.T).double().cpu().numpy()
        known = len(inside)
        inside = np.block([[inside, corner[:known]], [corner[:known].T, corner[known:]]])
        outer = (basis @ images.T).double().cpu().numpy()  # R
        # R^{-T} with singular values kept off 0: where A has a lower rank than there are vectors, the i-th column adds nothing, and s_i is a direction in which A is 0
        turned, scales, back = np.linalg.svd(outer)
        scales = np.maximum(scales / (scales[0] or 1.0), torch.finfo(operator.dtype).eps)
        left = (turned / scales) @ back
        left = left / np.linalg.norm(left, axis=0)
        seen = (basis @ rows.T).double().cpu().numpy()
        seen = seen - left * np.sum(left * seen, axis=0)  # coordinates in the range of the others
        own = np.array([_inner(row, image) for row, image in zip(rows, images, strict=True)])
        residual = own - 2 * np.sum(seen * outer, axis=0) + np.sum(seen * (inside @ seen), axis=0)
        length = np.array([_inner(row, row) for row in rows]) - np.sum(seen**2, axis=0)
        # a Gaussian vector's length carries no information: the residual is scaled to the mean one
        residual *= (operator.dim - size + 1) / np.maximum(length, np.finfo(float).tiny)
        found = _estimate(list(np.trace(inside) - np.sum(left * (inside @ left), axis=0) + residual), 2 * size)
        small = found.error <= accuracy * abs(found.value)  # the leave-one-out spread is a low guess now and then
        more = max(2, size // 4)
        if (small and small_before) or 2 * (size + more) > most or size + more >= operator.dim:
            return found
        size, small_before = size + more, small


@dataclass(frozen=True, eq=False)
class Diagonal:
    """The diagonal of a matrix, entry by entry with standard errors."""

    values: Tensor  # (d,)
    errors: Tensor  # (d,) 0 where it is exact
    products: int


def diagonal(
    operator: SymmetricOperator, *, probes: int = 32, space: SearchSpace | None = None, seed: int = 0
) -> Diagonal:
    """The diagonal (d,) by `probes` (P) products with random signs: the mean of v * A v (Bekas et al. 2007).

    probes: 32 halves the error of 8, and costs a tenth of a density; at P >= d the diagonal is exact, from the matrix itself.
    space: a search space at hand; what it holds is counted, and only the rest sampled.
    Raises UsageError for fewer than 2 probes.
    """
    if probes < 2:
        raise UsageError(f"a diagonal with errors takes at least 2 probes; got {probes}.")
    if probes >= operator.dim:
        exact = operator.dense().diagonal().clone()
        return Diagonal(exact, torch.zeros_like(exact), operator.dim)
    mean = torch.zeros(operator.dim, dtype=operator.dtype, device=operator.device)
    squares, counted = mean.clone(), mean.clone()
    known = torch.empty(0, operator.dim, dtype=operator.dtype, device=operator.device)
    if space is not None:
        # A = U^T T U + P A P + U^T B^T F + F^T B U: the last two are what the space leaks, and known too
        deflation = space.deflation()
        known = deflation.vectors
        counted = (torch.from_numpy(deflation.values).to(known) @ known**2).to(mean)
        counted += 2 * (deflation.front * (deflation.coupling @ known)).sum(0).to(mean)
    for probe in range(probes):
        v = signs(operator, generator(seed, "diagonal", probe))
        sample = v * _outside(operator.product(_outside(v, known)), known)
        change = sample - mean  # Welford
        mean += change / (probe + 1)
        squares += change * (sample - mean)
    return Diagonal(counted + mean, (squares / (probes - 1) / probes).sqrt(), probes)


def quadratic_form(
    operator: SymmetricOperator, w: Tensor, function: Function, *, accuracy: float = 1e-6, max_products: int = 200
) -> Estimate:
    """w^T f(A) w for a vector w (d,), by Lanczos started at w: |w|^2 sum_i omega_i f(theta_i) (Golub and Meurant 2010).

    accuracy: stops when the last three steps changed it by less than this, relatively; 1e-6, since it costs a few products more than 1e-3. `error` is that change, 0 where the process
    ended by itself and the answer is exact.
    Raises UsageError for a w without direction, LandscapeError when a product or f of a node is not finite.
    """
    if max_products < 1:
        raise UsageError(f"a quadratic form takes at least 1 product; got {max_products}.")
    size = _inner(w, w)
    found: list[float] = []
    state = None
    with np.errstate(all="ignore"):
        for state in lanczos(operator, w, max_products):
            nodes, weights = state.quadrature()
            found.append(size * float(weights @ function(nodes)))
            change = max((abs(found[-1] - old) for old in found[-4:-1]), default=math.inf)
            if len(found) > 3 and change <= accuracy * abs(found[-1]):
                break
    if not found or not math.isfinite(found[-1]):
        raise LandscapeError(
            "f of an eigenvalue seen from w is not finite: the matrix has eigenvalues outside the domain of f. Shift it."
        )
    ended = state is not None and state.betas[-1] == 0
    return Estimate(found[-1], 0.0 if ended else change, len(found))


def signs(operator: SymmetricOperator, draws: torch.Generator) -> Tensor:
    """Random signs (d,), the same on every device and dtype."""
    drawn = torch.randint(0, 2, (operator.dim,), generator=draws, dtype=torch.int8) * 2 - 1
    return drawn.to(operator.device, operator.dtype)


def _outside(vectors: Tensor, known: Tensor) -> Tensor:
    """What vectors (..., d) have outside the span of orthonormal rows (c, d), which may lie on another device."""
    moved = vectors.to(known.device)
    return (moved - (moved @ known.T) @ known).to(vectors.device) if len(known) else vectors


def _orthonormal(vectors: Tensor, known: Tensor) -> Tensor:
    """Orthonormal rows of what vectors (n, d) have outside the span of orthonormal rows (c, d)."""
    for _ in range(2):
        vectors = torch.linalg.qr(_outside(vectors, known).T)[0].T
    return vectors


def _inner(one: Tensor, other: Tensor) -> float:
    # summed in float64 where the device has it: these are sums of millions of terms of both signs
    exact = torch.float32 if one.device.type == "mps" else torch.float64
    return float(one.to(exact) @ other.to(exact))


def _estimate(samples: list[float], products: int) -> Estimate:
    value, error = float(np.mean(samples)), float(standard_error(np.array(samples)))
    if not math.isfinite(value):
        raise not_finite()
    return Estimate(value, error, products)
