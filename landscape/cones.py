"""Sets and cones whose width is known exactly, the probability that a random subspace meets them, and Monte Carlo for those where it is not.

Letters: D ambient dimension, d subspace, k = D - d its codimension, n draws, K tried dimensions. g ~ N(0, I_D); Pi is the projection onto a closed convex cone C, C° its polar.

    w(S) = E sup_{x in S} <g, x> = 1/2 E sup_{x, y in S} <g, x - y>                      Gaussian width of a bounded set
    delta(C) = E |Pi g|^2 = D - E |g - Pi g|^2 = sum_k k v_k;  delta(C) + delta(C°) = D    statistical dimension of a cone
    w^2 <= delta <= w^2 + 1, with w that of C's unit vectors
    v_k, k = 0..D: intrinsic volumes of C: a probability law; of a polyhedral cone, P(Pi g lies inside a face of dimension k)
    P(a uniform d-dimensional subspace L meets C in more than 0) = 2 (v_{k+1} + v_{k+3} + ...), where C is no linear subspace

Why linear subspaces suffice: an affine subspace w_0 + L meets a convex set S where L meets the cone of S - w_0. A ball of radius r at distance R > r is seen under the angle arcsin(r / R), and its cone is
`circular`: that gives the law of `ball_hit` a second time.

Sources: Gordon 1988, "On Milman's inequality and random subspaces which escape through a mesh" (width); Chandrasekaran, Recht, Parrilo, Willsky 2012, "The convex geometry of linear inverse problems" (width of
cones); Amelunxen, Lotz, McCoy, Tropp 2014, "Living on the edge", sections 2 to 5 (statistical dimension, intrinsic volumes, the conic kinematic formula); McCoy, Tropp 2014, "From Steiner formulas
for cones to concentration of intrinsic volumes".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from scipy import integrate, optimize, special, stats

from landscape.errors import LandscapeError, UsageError

Map = Callable[[np.ndarray], np.ndarray]

# numbers of one block of draws (32 MiB of float64): memory stays flat however many draws, and rows come in the same order
BLOCK = 2**22
# an axis or intrinsic volume below this is rounding to every sum it enters; denormal numbers are slow
TINY = 1e-300


@dataclass(frozen=True, eq=False)
class Body:
    """A bounded set with its exact Gaussian width and its support function sup_{x in S} <g, x>, of vectors (n, D) -> (n,)."""

    name: str
    dim: int  # D
    width: float
    support: Map


@dataclass(frozen=True, eq=False)
class Cone:
    """A closed convex cone with its exact statistical dimension, its intrinsic volumes v_0..v_D, and its projection (n, D) -> (n, D)."""

    name: str
    dim: int  # D
    statistical_dimension: float
    volumes: np.ndarray | None  # (D + 1,); None where no formula is known
    project: Map


@dataclass(frozen=True)
class Estimated:
    """A mean over draws of g and its standard error, widened for few draws as that of `functionals.standard_error`."""

    value: float
    error: float
    draws: int
    # of a statistical dimension: the largest |<g - Pi g, Pi g>| / |g|^2. It is 0 for a projection onto a convex cone (Moreau), so it says how far the given map is from one
    residual: float = 0.0


def expected_norm(dim: int) -> float:
    """E |g| = sqrt(2) Gamma((D + 1) / 2) / Gamma(D / 2), between D / sqrt(D + 1) and sqrt(D); 0 in no dimensions."""
    if dim <= 0:
        return 0.0
    x = dim / 2
    if x < 500:
        return math.sqrt(2) * float(special.poch(x, 0.5))
    # beyond, log-gammas of size x log x cancel down to log(x) / 2; the series leaves off at 399 / (262144 x^5) < 1e-16
    return math.sqrt(dim) * (1 - 1 / (8 * x) + 1 / (128 * x**2) + 5 / (1024 * x**3) - 21 / (32768 * x**4))


# -- bodies -----------------------------------------------------------------------------------------------------------


def sphere(dim: int, radius: float = 1.0) -> Body:
    """The sphere |x| = r: w = r E |g|, w^2 = r^2 (D - 1/2 + O(1 / D)). In one dimension it is two points. (Gordon 1988)"""
    _dimension(dim)
    _nonnegative("radius", radius)
    return Body(f"sphere of radius {radius:g}", dim, radius * expected_norm(dim), lambda g: radius * _norm(g))


def ball(dim: int, radius: float = 1.0) -> Body:
    """The ball |x| <= r: convex hulls change no width, so that of its sphere."""
    body = sphere(dim, radius)
    return Body(f"ball of radius {radius:g}", dim, body.width, body.support)


def ellipsoid(axes: Sequence[float] | np.ndarray) -> Body:
    """The ellipsoid sum (x_i / r_i)^2 <= 1 with semi-axes r (D,), which may be 0: w = E sqrt(sum r_i^2 g_i^2), between sqrt(2 / pi) and 1 times |r|.

    With Q = sum r_i^2 g_i^2, E exp(-t Q) = phi(t) = prod (1 + 2 t r_i^2)^(-1/2), and E sqrt(Q) = -pi^(-1/2) int_0^inf t^(-1/2) phi'(t) dt. The substitution t = exp(x - exp(-x)) makes the
    integrand fall off doubly exponentially to the left and at least as exp(-x) to the right, and the trapezoidal rule converge exponentially: some 200 points, O(D) each, give 13 digits for any axes.
    """
    axes = np.asarray(axes, dtype=float)
    if axes.ndim != 1 or not len(axes) or not np.isfinite(axes).all() or (axes < 0).any():
        raise UsageError(f"the semi-axes of an ellipsoid are D >= 1 finite numbers >= 0; got {axes}.")
    longest = float(axes.max())  # squares of what is left neither overflow nor vanish
    length = float(_norm(axes / longest)) if longest > 0 else 0.0
    width = longest * length * _mean_root((axes / longest / length) ** 2) if longest > 0 else 0.0
    return Body("ellipsoid", len(axes), width, lambda g: _norm(g * axes))


def _mean_root(weights: np.ndarray) -> float:
    """E sqrt(sum a_i g_i^2) for a (D,) >= 0 of sum 1."""
    weights = weights[weights > TINY]
    # step: the integrand is analytic to |Im x| = 1.5 about, so the rule's error is some exp(-2 pi 1.5 / 0.2) = 3e-21
    # start: left of it is an integral of 2 sqrt(t) = 5e-19
    step, total, x = 0.2, 0.0, -4.4
    while True:
        t = math.exp(x - math.exp(-x))
        scaled = 2 * t * weights
        phi = math.exp(-0.5 * float(np.log1p(scaled).sum()))
        total += math.sqrt(t) * (1 + math.exp(-x)) * phi * float((weights / (1 + scaled)).sum())
        # right of t is an integral of phi(t) / sqrt(t) at most, as phi falls; the whole is sqrt(2) at least
        if phi < 1e-16 * math.sqrt(t):
            return step * total / math.sqrt(math.pi)
        x += step


def cap(dim: int, angle: float) -> Body:
    """The unit vectors within `angle` a (radians, 0..pi) of an axis, here the first.

    The supremum is |g| where g is within a of the axis, else |g| cos(angle of g - a). Both means are integrals of powers of a sine:
    w = E|g_D| F_D(a) + E|g_{D-1}| sin a (1 - F_{D+1}(a)) - cos a sin^(D-1) a / sqrt(2 pi), F_D(a) the share of the sphere in R^D within a.
    In one dimension it is a point, or the whole sphere for a = pi.
    """
    _dimension(dim)
    if not 0 <= angle <= math.pi:
        raise UsageError(f"the angle of a cap lies in 0..pi radians; got {angle}.")
    sine, cosine = math.sin(angle), math.cos(angle)
    name = f"cap of angle {angle:g}"
    if angle == math.pi:
        return Body(name, dim, expected_norm(dim), _norm)
    if dim == 1:
        return Body(name, dim, 0.0, lambda g: g[..., 0])
    inside = expected_norm(dim) * _share(dim, angle)
    outside = expected_norm(dim - 1) * sine * (1 - _share(dim + 1, angle))
    rim = cosine * sine ** (dim - 1) / math.sqrt(2 * math.pi)

    def support(g: np.ndarray) -> np.ndarray:
        length, across = g[..., 0], _norm(g[..., 1:])
        within = np.arctan2(across, length) <= angle
        return np.where(within, np.hypot(length, across), length * cosine + across * sine)

    return Body(name, dim, inside + outside - rim, support)


def subspace(dim: int, d: int) -> Body:
    """The unit sphere of a d-dimensional linear subspace, here of the first d axes: w = E |g_d|. d = 0 has no unit vectors."""
    _dimension(dim)
    if not 1 <= d <= dim:
        raise UsageError(f"a subspace with unit vectors has 1..{dim} dimensions; got {d}.")
    return Body(f"unit sphere of {d} dimensions", dim, expected_norm(d), lambda g: _norm(g[..., :d]))


def segment(ends: Sequence[Sequence[float]] | np.ndarray) -> Body:
    """The segment between two points (2, D), or the two points alone: w = |x - y| / sqrt(2 pi)."""
    ends = np.asarray(ends, dtype=float)
    if ends.ndim != 2 or len(ends) != 2 or not ends.size or not np.isfinite(ends).all():
        raise UsageError(f"a segment has two ends in D >= 1 dimensions, (2, D), finite; got shape {ends.shape}.")
    width = float(_norm(ends[0] - ends[1])) / math.sqrt(2 * math.pi)
    return Body("segment", ends.shape[1], width, lambda g: (g @ ends.T).max(-1))


def cross_polytope(dim: int, radius: float = 1.0) -> Body:
    """The cross-polytope sum |x_i| <= r: w = r E max |g_i| = r int_0^inf 1 - (1 - erfc(t / sqrt 2))^D dt, by quadrature."""
    _dimension(dim)
    _nonnegative("radius", radius)

    def missing(t: float) -> float:
        outside = float(special.erfc(t / math.sqrt(2)))
        return -math.expm1(dim * math.log1p(-outside)) if outside < 1 else 1.0

    # the integrand turns from 1 to 0 about sqrt(2 log D), and nine further on D erfc is below erfc(9 / sqrt 2) = 2e-19
    turn = math.sqrt(2 * math.log(dim))
    mean = sum(
        integrate.quad(missing, *ends, epsabs=1e-13, epsrel=1e-13, limit=200)[0]
        for ends in ((0, turn), (turn, turn + 9))
    )
    return Body(f"cross-polytope of radius {radius:g}", dim, radius * mean, lambda g: radius * np.abs(g).max(-1))


# -- cones ------------------------------------------------------------------------------------------------------------


def linear(dim: int, d: int) -> Cone:
    """A d-dimensional linear subspace, 0 <= d <= D, here of the first d axes: delta = d = the only k with v_k > 0."""
    _dimension(dim)
    if not 0 <= d <= dim:
        raise UsageError(f"a linear subspace of {dim} dimensions has 0..{dim}; got {d}.")
    kept = np.arange(dim) < d
    return Cone(f"subspace of {d} dimensions", dim, float(d), np.eye(1, dim + 1, d)[0], lambda g: g * kept)


def orthant(dim: int) -> Cone:
    """The vectors without negative entries: delta = D / 2, v_k = C(D, k) / 2^D. (Amelunxen et al. 2014, section 3)"""
    _dimension(dim)
    volumes = stats.binom.pmf(np.arange(dim + 1), dim, 0.5)
    return Cone("orthant", dim, dim / 2, volumes, lambda g: np.maximum(g, 0))


def circular(dim: int, angle: float) -> Cone:
    """The vectors within `angle` a (radians, 0..pi/2) of an axis, here the first: 0 is a ray, pi/2 a half-space; in one dimension always a ray.

    v_k = 1/2 C((D - 2) / 2, (k - 1) / 2) sin^(k-1) a cos^(D-k-1) a for 0 < k < D; v_D and v_0 are the shares of the sphere in C and C°; delta = sum k v_k, which is
    D sin^2 a + cos 2a but for what is exponentially small in D away from 0 and pi/2, and within 1/2 of it there.
    Source: Amelunxen, Lotz, McCoy, Tropp 2014, section 3 (statistical dimension) and its appendix (volumes).
    Raises UsageError for a wider angle: that cone isn't convex.
    """
    _dimension(dim)
    if not 0 <= angle <= math.pi / 2:
        raise UsageError(
            f"the angle of a circular cone lies in 0..pi/2 radians, beyond which it isn't convex; got {angle}."
        )
    sine, cosine = math.sin(angle), math.cos(angle)
    if dim == 1:
        volumes = np.array([0.5, 0.5])
    else:
        # v_k is 1 / D of a beta density at sin^2 a: that is known to 1e-13, where log-gammas of size D log D would leave 1e-11. Of sin^2 and cos^2, the smaller is known to full relative precision
        k = np.arange(1, dim)
        powers = (k + 1) / 2, (dim - k + 1) / 2
        middle = (stats.beta.pdf(sine**2, *powers) if sine < cosine else stats.beta.pdf(cosine**2, *powers[::-1])) / dim
        volumes = np.concatenate([[_share(dim, math.pi / 2 - angle)], middle, [_share(dim, angle)]])

    def project(g: np.ndarray) -> np.ndarray:
        length, across = g[..., :1], _norm(g[..., 1:])[..., None]
        along = length * cosine + across * sine  # onto the cone's edge nearest to g
        turned = np.arctan2(across, length)
        # an edge has a direction where g has one across the axis; on the axis only 0 and the ray itself are left
        direction = np.divide(g[..., 1:], across, out=np.zeros_like(g[..., 1:]), where=across > 0)
        edge = np.concatenate([along * cosine, along * sine * direction], axis=-1)
        return np.where(turned <= angle, g, np.where(along > 0, edge, 0.0))

    mean = float(np.arange(dim + 1) @ volumes)
    return Cone(f"circular cone of angle {angle:g}", dim, mean, volumes, project)


def monotone(dim: int) -> Cone:
    """The vectors with x_1 <= ... <= x_D: delta = 1 + 1/2 + ... + 1/D; v_k = [D, k] / D!, [D, k] the unsigned Stirling numbers of the first kind.

    The projection is isotonic regression. v is the law of a sum of independent coins that show 1 with probability 1/j, j = 1..D, and is built so: all terms positive, no large number.
    Source: Amelunxen, Lotz, McCoy, Tropp 2014, section 3 (statistical dimension) and its appendix (volumes).
    """
    _dimension(dim)
    law = np.ones(1)
    for j in range(1, dim + 1):
        law = np.append(law * (1 - 1 / j), 0.0) + np.append(0.0, law / j)
        while law[-1] < TINY:
            law = law[:-1]
    volumes = np.zeros(dim + 1)
    volumes[: len(law)] = law

    def project(g: np.ndarray) -> np.ndarray:
        rows = [optimize.isotonic_regression(row).x for row in g.reshape(-1, dim)]
        return np.reshape(rows, g.shape)

    return Cone("monotone cone", dim, float((1 / np.arange(1, dim + 1)).sum()), volumes, project)


def product(*cones: Cone) -> Cone:
    """C_1 x C_2 x ... in the sum of their dimensions: statistical dimensions add, volumes convolve, each projects its own coordinates."""
    if not cones:
        raise UsageError("a product of cones takes one cone at least; got none.")
    ends = np.cumsum([cone.dim for cone in cones])
    known = [cone.volumes for cone in cones if cone.volumes is not None]
    volumes = reduce(np.convolve, known) if len(known) == len(cones) else None

    def project(g: np.ndarray) -> np.ndarray:
        parts = np.split(g, ends[:-1], axis=-1)
        return np.concatenate([cone.project(part) for cone, part in zip(cones, parts, strict=True)], axis=-1)

    total = sum(cone.statistical_dimension for cone in cones)
    return Cone(" x ".join(cone.name for cone in cones), int(ends[-1]), total, volumes, project)


def polar(cone: Cone) -> Cone:
    """C° = {y: <y, x> <= 0 for all x in C}: delta° = D - delta, v°_k = v_{D-k}, and g = Pi g + Pi° g (Moreau)."""
    volumes = None if cone.volumes is None else cone.volumes[::-1]
    return Cone(
        f"polar of {cone.name}",
        cone.dim,
        cone.dim - cone.statistical_dimension,
        volumes,
        lambda g: g - cone.project(g),
    )


# -- probabilities ----------------------------------------------------------------------------------------------------


def hit_probability(cone: Cone, dims: Any) -> np.ndarray:
    """P(a uniform d-dimensional linear subspace meets the cone in more than 0), for `dims` d in 0..D of any shape.

    By the conic kinematic formula; two linear subspaces meet iff their dimensions sum to more than D. d = 0 never hits, and d = D always, unless the cone is {0}.
    Source: Amelunxen, Lotz, McCoy, Tropp 2014, section 5.
    Raises UsageError for a cone without volumes, or dimensions outside 0..D.
    """
    if cone.volumes is None:
        raise UsageError(f"the intrinsic volumes of the {cone.name} are not known: estimate its statistical dimension.")
    dims = _dims(dims, cone.dim)
    # odd and even volumes of a cone sum to 1/2 each, unless it is a linear subspace: it has one volume, 1
    if cone.volumes.max() > 0.75:
        meets: np.ndarray = (dims + cone.volumes.argmax() > cone.dim).astype(float)
        return meets
    tails = np.zeros(cone.dim + 2)  # v_k + v_{k+2} + ..., k = 0..D+1; summed from the far, small end
    for parity in (0, 1):
        tails[: cone.dim + 1][parity::2] = np.cumsum(cone.volumes[parity::2][::-1])[::-1]
    hits: np.ndarray = np.clip(2 * tails[cone.dim - dims + 1], 0.0, 1.0)
    return np.where(dims == cone.dim, 1.0, hits)


def ball_hit(ambient: int, dims: Any, ratio: Any) -> np.ndarray:
    """P(a uniform d-dimensional affine subspace through w_0 meets a ball of radius r at distance R from w_0), `ratio` = r / R, broadcast.

    I_{r^2/R^2}((D - d) / 2, d / 2): the squared distance over R^2 is Beta((D - d) / 2, d / 2). A ratio of 1 or more has w_0 in the ball, which is hit by d = 0 too; a point (0) only by d = D.
    Raises UsageError for dimensions outside 0..D or a negative ratio.
    """
    _dimension(ambient)
    return tube_hit(ambient, _dims(dims, ambient), ratio)


def tube_hit(codimension: int, dims: Any, ratio: Any) -> np.ndarray:
    """P(a uniform d-dimensional affine subspace through w_0 meets the r-tube about an affine manifold of codimension m at distance R), `ratio` = r / R, broadcast.

    The part along the manifold is free, so that only the m coordinates across it count, and the answer is `ball_hit` in m dimensions, whatever D; d >= m hits always, the bare manifold (ratio 0) too.
    Raises UsageError for a negative dimension or ratio, or a codimension below 1.
    """
    _dimension(codimension)
    dims, ratio = np.broadcast_arrays(_dims(dims), np.asarray(ratio, dtype=float))
    if not (ratio >= 0).all():
        raise UsageError(f"the ratio of a radius to a distance is at least 0; got {ratio}.")
    sure = (dims >= codimension) | (ratio >= 1)
    open_ = ~sure & (dims > 0)  # where both parameters of the beta function are positive
    inside = special.betainc(
        np.where(open_, codimension - dims, 1) / 2, np.where(open_, dims, 1) / 2, np.minimum(ratio, 1) ** 2
    )
    return np.where(sure, 1.0, np.where(open_, inside, 0.0))


# -- Monte Carlo ------------------------------------------------------------------------------------------------------


def statistical_dimension(project: Map, dim: int, *, draws: int = 256, seed: int = 0) -> Estimated:
    """delta(C) of a cone given by its projection (n, D) -> (n, D).

    Each draw gives D (1 - |g - Pi g|^2 / |g|^2). |g| is independent of the direction of g and projections are homogeneous, so the mean is delta: of a draw of the plain forms |Pi g|^2 (variance about 2 delta)
    and D - |g - Pi g|^2 (about 2 (D - delta)) it is the expectation given the direction, and its variance, about 2 delta (D - delta) / D, is below both (Rao-Blackwell). It is the same number from either.
    A map that falls short of the nearest point, but stays in the cone, makes it err downwards only.

    draws: 256 give an error of sqrt(delta (D - delta) / D) / 11.
    Raises UsageError for fewer than 2 draws, LandscapeError when a projection is not finite.
    """
    values, residuals = [], [0.0]
    for g in _blocks(dim, draws, seed):
        projected = _mapped(project, g, g.shape)
        rest = g - projected
        squares = np.square(g).sum(-1)
        values.append(dim * (1 - np.square(rest).sum(-1) / squares))
        residuals.append(float((np.abs((rest * projected).sum(-1)) / squares).max()))
    return _estimated(np.concatenate(values), max(residuals))


def gaussian_width(support: Map, dim: int, *, draws: int = 256, seed: int = 0) -> Estimated:
    """w(S) of a bounded set given by its support function (n, D) -> (n,).

    Each draw is used with both signs, 1/2 (sup <g, x> + sup <-g, x>), so that where the set lies adds no variance; and as the supremum grows with |g|, which is independent of g's direction, |g| is replaced
    by its mean. A maximisation that falls short makes the estimate err downwards only.

    draws: as for `statistical_dimension`.
    Raises UsageError for fewer than 2 draws, LandscapeError when a supremum is not finite.
    """
    values = []
    for g in _blocks(dim, draws, seed):
        suprema = [_mapped(support, part, part.shape[:1]) for part in (g, -g)]
        values.append(expected_norm(dim) * (suprema[0] + suprema[1]) / 2 / _norm(g))
    return _estimated(np.concatenate(values), 0.0)


def _blocks(dim: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    """The draws (n, D) in blocks of rows; the first rows are the same however many follow."""
    _dimension(dim)
    if draws < 2:
        raise UsageError(f"a mean with an error takes at least 2 draws; got {draws}.")
    rows = max(1, BLOCK // dim)
    random = np.random.default_rng(seed)
    return (random.standard_normal((min(rows, draws - start), dim)) for start in range(0, draws, rows))


def _mapped(function: Map, g: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    found = np.asarray(function(g), dtype=float)
    if found.shape != shape:
        raise UsageError(
            f"vectors of shape {g.shape} must be mapped to shape {shape}; the given function returned {found.shape}."
        )
    if not np.isfinite(found).all():
        raise LandscapeError("a projection or supremum is not finite: is the set bounded, or the cone closed?")
    return found


def _estimated(values: np.ndarray, residual: float) -> Estimated:
    n = len(values)
    # twice it is 95% however few the draws (Student's t)
    widening = float(special.stdtrit(n - 1, 0.975)) / 1.96
    return Estimated(float(values.mean()), float(values.std(ddof=1)) / math.sqrt(n) * widening, n, residual)


# -- parts ------------------------------------------------------------------------------------------------------------


def _dims(dims: Any, ambient: int | None = None) -> np.ndarray:
    """Dimensions of subspaces, of any shape, checked: whole numbers in 0..D (any D where it is None)."""
    found = np.asarray(dims)
    top = math.inf if ambient is None else ambient
    if found.dtype.kind not in "iu" or ((found < 0) | (found > top)).any():
        allowed = "from 0 up" if ambient is None else f"in 0..{ambient}"
        raise UsageError(f"dimensions of subspaces are whole numbers {allowed}; got {dims}.")
    return found


def _norm(g: np.ndarray) -> np.ndarray:
    norms: np.ndarray = np.sqrt(np.square(g).sum(-1))
    return norms


def _share(dim: int, angle: float) -> float:
    """Of the unit sphere in R^D, D >= 2, within `angle` of a point."""
    # from the smaller of sin^2 and cos^2, which is the one that is known to full relative precision
    sine, cosine = math.sin(angle) ** 2, math.cos(angle) ** 2
    power = (dim - 1) / 2
    half = special.betainc(power, 0.5, sine) if sine < cosine else special.betaincc(0.5, power, cosine)
    return float(half) / 2 if angle <= math.pi / 2 else 1 - float(half) / 2


def _dimension(dim: int) -> None:
    if dim < 1 or dim != int(dim):
        raise UsageError(f"a dimension is a whole number of 1 or more; got {dim}.")


def _nonnegative(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise UsageError(f"a {name} is finite and at least 0; got {value}.")
