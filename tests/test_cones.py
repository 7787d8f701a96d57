"""Widths and cones against geometry in the plane, quadrature, direct Monte Carlo, NNLS, linear programs on Haar subspaces, and the classical formulas."""

import itertools
import math

import numpy as np
import pytest
from scipy import integrate, optimize, special
from sklearn.isotonic import isotonic_regression

from landscape import cones
from landscape.cones import (
    ball,
    ball_hit,
    cap,
    circular,
    cross_polytope,
    ellipsoid,
    expected_norm,
    gaussian_width,
    hit_probability,
    linear,
    monotone,
    orthant,
    polar,
    product,
    segment,
    sphere,
    statistical_dimension,
    subspace,
    tube_hit,
)
from landscape.errors import LandscapeError, UsageError

HALF = math.pi / 2
# algebra of at most 10^4 terms in float64, each known to a few ulp; measured 5e-14
EXACT = 1e-12

BODIES = {
    "sphere": sphere(7, 2.0),
    "ball in 1": ball(1, 3.0),
    "ellipsoid": ellipsoid([3.0, 1.0, 0.2, 0.0]),
    "narrow cap": cap(5, 0.4),
    "wide cap": cap(4, 2.5),
    "cap in 2": cap(2, 1.0),
    "subspace": subspace(9, 4),
    "segment": segment([[3.0, 1.0, -2.0], [0.5, 0.0, 4.0]]),
    "cross-polytope": cross_polytope(12, 0.5),
}

CONES = {
    "ray": circular(6, 0.0),
    "narrow circular": circular(7, 0.3),
    "wide circular": circular(4, 1.4),
    "circular in 2": circular(2, 0.7),
    "circular in 1": circular(1, 0.7),
    "half-space": circular(5, HALF),
    "orthant": orthant(6),
    "monotone": monotone(7),
    "subspace": linear(5, 2),
    "all": linear(4, 4),
    "nothing": linear(4, 0),
    "product": product(orthant(3), circular(4, 0.5), linear(2, 1)),
    "polar of monotone": polar(monotone(5)),
}


def haar(rng, draws, ambient, d):
    """Orthonormal bases (draws, D, d) of uniform subspaces."""
    return np.linalg.qr(rng.standard_normal((draws, ambient, d)))[0]


def within(estimate, truth, error, factor=4.0):
    """4 standard errors: of the some 60 comparisons here, with fixed seeds, one in 300 sets of seeds would fail by chance."""
    assert abs(estimate - truth) <= factor * error, (estimate, truth, error)


# -- bodies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BODIES)
def test_the_width_is_the_mean_of_the_support(name):
    body = BODIES[name]
    suprema = body.support(np.random.default_rng(1).standard_normal((200_000, body.dim)))
    within(suprema.mean(), body.width, suprema.std() / math.sqrt(len(suprema)))


def boundary(name, turn):
    """Points of sets in the plane (n, 2), at angles `turn` (n,)."""
    circle = np.stack([np.cos(turn), np.sin(turn)], -1)
    return {
        "sphere": 2 * circle,
        "ellipsoid": circle * [3.0, 0.5],
        "narrow cap": circle[np.abs(turn) <= 0.4],
        "wide cap": circle[np.abs(turn) <= 2.5],
        "cross-polytope": 1.5 * circle / np.abs(circle).sum(-1, keepdims=True),
        "subspace": np.array([[1.0, 0.0], [-1.0, 0.0]]),
        "segment": np.linspace([3.0, 1.0], [-1.0, 2.0], 100),
    }[name]


PLANE = {
    "sphere": sphere(2, 2.0),
    "ellipsoid": ellipsoid([3.0, 0.5]),
    "narrow cap": cap(2, 0.4),
    "wide cap": cap(2, 2.5),
    "cross-polytope": cross_polytope(2, 1.5),
    "subspace": subspace(2, 1),
    "segment": segment([[3.0, 1.0], [-1.0, 2.0]]),
}


@pytest.mark.parametrize("name", PLANE)
def test_in_the_plane_the_support_is_the_largest_product_and_the_width_that_of_the_perimeter(name):
    points = boundary(name, np.linspace(-math.pi, math.pi, 20_001))
    g = np.random.default_rng(2).standard_normal((50, 2))
    # two neighbours on a curve are 3e-4 * 3 apart; half of it off a smooth end costs its square, off the corner of a cap itself
    np.testing.assert_allclose(PLANE[name].support(g), (g @ points.T).max(1), atol=2e-3)
    # a random direction sees the mean breadth perimeter / pi of the hull, half of it on each side (Cauchy)
    hull = points if name == "subspace" else points[np.append(True, np.abs(np.diff(points, axis=0)).sum(1) > 0)]
    perimeter = np.linalg.norm(hull - np.roll(hull, 1, axis=0), axis=1).sum()
    # the polygon falls short of a curve's length by the square of the step, 1e-7; a cap may end a step early, 3e-4
    assert PLANE[name].width == pytest.approx(math.sqrt(HALF) * perimeter / (2 * math.pi), abs=3e-4)


@pytest.mark.parametrize("angle", [0.0, 1e-6, 0.3, HALF, 2.0, 3.1, math.pi])
def test_the_width_of_a_cap_in_the_plane(angle):
    assert cap(2, angle).width == pytest.approx((angle + math.sin(angle)) / math.sqrt(2 * math.pi), abs=1e-14)


@pytest.mark.parametrize(("dim", "angle"), [(3, 0.7), (6, 1.9), (40, 0.2), (1000, math.pi / 6), (10_000, 1.5)])
def test_the_width_of_a_cap_is_an_integral_over_the_angle_to_the_axis(dim, angle):
    def density(t):  # its greatest value, 1, is at pi / 2, with a width of 1 / sqrt(D)
        return math.exp((dim - 2) * math.log(math.sin(t))) if 0 < t < math.pi else 0.0

    reach = 12 / math.sqrt(dim)
    ends = sorted({max(0.0, HALF - reach), min(math.pi, HALF + reach), np.clip(angle, HALF - reach, HALF + reach)})
    pieces = list(itertools.pairwise(ends))

    def integral(f):
        return sum(integrate.quad(f, *piece, epsabs=1e-14, epsrel=1e-13)[0] for piece in pieces)

    mean = integral(lambda t: density(t) * (1.0 if t <= angle else math.cos(t - angle))) / integral(density)
    # beyond 12 deviations there is exp(-72); quad gives 1e-13 of each integral, the width is sqrt(D) times the mean
    assert cap(dim, angle).width == pytest.approx(expected_norm(dim) * mean, abs=1e-11 * math.sqrt(dim))


def test_the_width_of_a_sphere():
    # T1: w^2 = D - 1/2 + 1 / (8 D) + O(1 / D^2), from Stirling's series
    assert [round(sphere(d).width ** 2, 3) for d in (10, 100)] == [9.513, 99.501]
    for dim in (1, 2, 3, 17, 999, 1000, 1001, 10**4, 10**6):
        w = sphere(dim).width
        assert dim / math.sqrt(dim + 1) < w < math.sqrt(dim)
        # Gamma's recurrence: E|g_D| E|g_{D+1}| = D
        assert w * sphere(dim + 1).width == pytest.approx(dim, rel=EXACT)
        assert ball(dim, 2.0).width == 2 * w
    assert sphere(1).width == pytest.approx(math.sqrt(2 / math.pi), rel=1e-15)


@pytest.mark.parametrize("dim", [1, 2, 10, 1000, 20_000])
def test_an_ellipsoid_of_equal_axes_is_a_ball(dim):
    assert ellipsoid(np.full(dim, 0.3)).width == pytest.approx(0.3 * sphere(dim).width, rel=EXACT)
    assert ellipsoid([*[2.0] * dim, 0.0, 0.0]).width == pytest.approx(2 * sphere(dim).width, rel=EXACT)


@pytest.mark.parametrize("ratio", [1e-8, 1e-3, 0.1, 0.9, 1.0])
def test_the_width_of_an_ellipse_is_an_elliptic_integral(ratio):
    truth = math.sqrt(2 / math.pi) * 5 * special.ellipe(1 - ratio**2)
    assert ellipsoid([5.0, 5 * ratio]).width == pytest.approx(truth, rel=EXACT)


@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
def test_the_width_of_an_ellipsoid_of_decaying_axes(power):
    """T2, and a quadrature of its own: E sqrt(Q) = (2 / sqrt pi) int_0^inf phi(s^2) sum r^2 / (1 + 2 s^2 r^2) ds."""
    axes = np.arange(1, 201) ** -power

    def integrand(s):
        scaled = 2 * s * s * axes**2
        return math.exp(-0.5 * np.log1p(scaled).sum()) * (axes**2 / (1 + scaled)).sum()

    decades = itertools.pairwise([0, *10.0 ** np.arange(-2, 7)])  # quad sees nothing of a peak in a corner of its piece
    whole = sum(integrate.quad(integrand, *p, epsabs=1e-13, epsrel=1e-13, limit=500)[0] for p in decades)
    truth = 2 / math.sqrt(math.pi) * whole
    length = np.linalg.norm(axes)
    width = ellipsoid(axes).width
    assert math.sqrt(2 / math.pi) * length <= width <= length
    # nine pieces of 1e-13; what is left off beyond 1e6 is 1e-12 at most, as the integrand falls like 1 / s^3 or faster
    assert width == pytest.approx(truth, abs=3e-12)


def test_t3_a_cap_is_nearly_a_sphere_of_one_dimension_less():
    # all of g but exp(-D / 8) of it lies further than 30 degrees from the axis, and is then seen at its part across the axis
    assert cap(1000, math.asin(0.5)).width == pytest.approx(expected_norm(999) * 0.5, rel=EXACT)
    assert (expected_norm(999) * 0.5) ** 2 == pytest.approx(249.625, abs=1e-3)  # (D - 3/2) / 4 + O(1 / D)


def test_the_maximum_of_absolute_normals():
    assert cross_polytope(1).width == pytest.approx(math.sqrt(2 / math.pi), abs=1e-12)
    assert cross_polytope(2).width == pytest.approx(2 / math.sqrt(math.pi), abs=1e-12)
    # E max of n standard normals, n = 3: 3 / (2 sqrt pi); of absolute values by inclusion and exclusion over signs, in quadrature by parts
    for dim in (3, 50, 10_000):
        truth = integrate.quad(
            lambda t, n=dim: t * n * special.erf(t / math.sqrt(2)) ** (n - 1) * math.sqrt(2 / math.pi) * math.exp(-t * t / 2),
            0, 14, points=[math.sqrt(2 * math.log(dim))], epsabs=1e-13, epsrel=1e-13, limit=200,
        )[0]  # fmt: skip
        assert cross_polytope(dim, 2.0).width == pytest.approx(2 * truth, abs=1e-11)


def test_sets_that_are_points_have_no_width():
    points = [sphere(4, 0.0), ball(3, 0), ellipsoid([0.0, 0.0]), cap(5, 0.0), cap(1, 1.0), cross_polytope(3, 0.0)]
    for body in [*points, segment([[1.0, 2.0], [1.0, 2.0]])]:
        assert body.width == pytest.approx(0, abs=1e-15), body.name
    assert cap(1, math.pi).width == sphere(1).width
    assert cap(9, math.pi).width == sphere(9).width


# -- cones ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONES)
def test_volumes_are_a_law_whose_mean_is_the_statistical_dimension(name):
    cone = CONES[name]
    assert cone.volumes.shape == (cone.dim + 1,) and (cone.volumes >= 0).all()
    assert cone.volumes.sum() == pytest.approx(1, abs=EXACT)
    assert np.arange(cone.dim + 1) @ cone.volumes == pytest.approx(cone.statistical_dimension, abs=1e-11)
    if not set(cone.volumes) <= {
        0.0,
        1.0,
    }:  # of a cone that is no subspace, odd and even ones weigh the same (Gauss-Bonnet)
        assert cone.volumes[::2].sum() == pytest.approx(0.5, abs=EXACT)


@pytest.mark.parametrize("dim", [1, 2, 3, 100, 9999, 10_000])
def test_volumes_stay_exact_in_many_dimensions(dim):
    k = np.arange(dim + 1)
    for cone in [orthant(dim), monotone(dim), *(circular(dim, angle) for angle in (0, 1e-6, 0.4, 1.2, HALF))]:
        assert cone.volumes.sum() == pytest.approx(1, abs=EXACT), cone.name
        assert k @ cone.volumes == pytest.approx(cone.statistical_dimension, rel=EXACT), cone.name
        opposite = polar(cone)
        # T12: dimensions of a cone and its polar sum to D
        assert opposite.statistical_dimension + cone.statistical_dimension == pytest.approx(dim, rel=EXACT)
        np.testing.assert_array_equal(opposite.volumes, cone.volumes[::-1])


@pytest.mark.parametrize("name", CONES)
def test_the_projection_is_the_nearest_point(name):
    """x = Pi g iff x is in C, <g - x, x> = 0 and <g - x, y> <= 0 on C; C is sampled by projecting, which is idempotent on it."""
    cone = CONES[name]
    rng = np.random.default_rng(3)
    g = np.concatenate(
        [rng.standard_normal((400, cone.dim)), np.zeros((1, cone.dim)), np.eye(cone.dim), -np.eye(cone.dim)]
    )
    x, y = cone.project(g), cone.project(rng.standard_normal((3000, cone.dim)))
    np.testing.assert_allclose(cone.project(x), x, atol=1e-14)
    scale = 1e-14 * cone.dim  # sums of D products of order 1
    np.testing.assert_allclose(((g - x) * x).sum(1), 0, atol=10 * scale)
    assert ((g - x) @ y.T).max() <= 30 * scale
    # Moreau: what is left is the projection onto the polar
    away = polar(cone).project(g)
    np.testing.assert_allclose(np.square(x).sum(1) + np.square(away).sum(1), np.square(g).sum(1), rtol=1e-13)


def test_projections_are_those_of_other_solvers():
    g = np.random.default_rng(4).standard_normal((30, 6))
    # the monotone cone is generated by the line of constants and by the steps up
    steps = np.column_stack([-np.ones(6), np.tril(np.ones((6, 6)))])
    for row, ours, monotonic in zip(g, orthant(6).project(g), monotone(6).project(g), strict=True):
        np.testing.assert_allclose(ours, optimize.nnls(np.eye(6), row)[0], atol=1e-12)
        np.testing.assert_allclose(monotonic, steps @ optimize.nnls(steps, row)[0], atol=1e-12)
        np.testing.assert_allclose(monotonic, isotonic_regression(row), atol=1e-12)
    angle = 0.6
    x = circular(6, angle).project(g)
    # in the cone by its definition, and no nearer point of it by a solver of constrained problems
    assert (x[:, 0] >= np.linalg.norm(x, axis=1) * math.cos(angle) - 1e-14).all()
    for row, ours in zip(g[:10], x[:10], strict=True):
        inside = {"type": "ineq", "fun": lambda p: p[0] * math.tan(angle) - math.sqrt(1e-14 + (p[1:] ** 2).sum())}
        found = optimize.minimize(lambda p, row=row: ((p - row) ** 2).sum(), np.eye(6)[0], constraints=[inside], method="SLSQP",
                                  options={"ftol": 1e-12, "maxiter": 300})  # fmt: skip
        # the constraint is rounded by 1e-7 at the tip, so the solver's point is this much off at most
        assert abs(((ours - row) ** 2).sum() - found.fun) < 1e-5


@pytest.mark.parametrize("name", CONES)
def test_the_volumes_are_those_of_the_squared_length_of_a_projection(name):
    """The law of |Pi g|^2 is that of chi^2 with V degrees of freedom (McCoy and Tropp 2014): its mean is E V, its variance Var V + 2 E V, its chance of 0 is v_0."""
    cone = CONES[name]
    squares = np.square(cone.project(np.random.default_rng(5).standard_normal((40_000, cone.dim)))).sum(1)
    k = np.arange(cone.dim + 1)
    mean = cone.volumes @ k
    spread = cone.volumes @ (k - mean) ** 2 + 2 * mean
    within(squares.mean(), mean, math.sqrt(spread / len(squares)) + 1e-15)
    deviations = (squares - squares.mean()) ** 2
    within(deviations.mean(), spread, deviations.std() / math.sqrt(len(squares)) + 1e-15)
    at_zero = float((squares < 1e-20).mean())
    within(at_zero, cone.volumes[0], math.sqrt(cone.volumes[0] * (1 - cone.volumes[0]) / len(squares)) + 1e-15)


def test_t4_and_t13_the_published_statistical_dimensions():
    for sine, truth in ((0.7, 29.42), (0.8, 38.12)):
        angle = math.asin(sine)
        found = circular(60, angle).statistical_dimension
        assert round(found, 2) == truth
        assert found == pytest.approx(60 * sine**2 + math.cos(2 * angle), rel=1e-4)
    assert orthant(50).statistical_dimension == 25
    assert round(monotone(50).statistical_dimension, 3) == 4.499
    assert monotone(4).volumes * 24 == pytest.approx([0, 6, 11, 6, 1])  # Stirling numbers of the first kind


@pytest.mark.parametrize(("dim", "angle"), [(1, 0.3), (2, 0.3), (3, 1.1), (50, 0.2), (50, 1.5), (2000, 0.8)])
def test_the_statistical_dimension_of_a_circular_cone_is_an_integral_and_near_the_squared_width_of_its_cap(dim, angle):
    found = circular(dim, angle).statistical_dimension
    if dim > 1:

        def density(t):
            return math.sin(t) ** (dim - 2)

        def far(t):
            return density(t) * math.cos(t - angle) ** 2

        def integral(f, low, high):
            middle = float(np.clip(HALF, low, high))
            return sum(
                integrate.quad(f, *p, epsabs=1e-14, epsrel=1e-12, limit=300)[0] for p in ((low, middle), (middle, high))
            )

        whole = integral(density, 0, math.pi)
        mean = (integral(density, 0, angle) + integral(far, angle, min(math.pi, angle + HALF))) / whole
        assert found == pytest.approx(dim * mean, rel=1e-9)  # five integrals of 1e-14 over one of order 1 / sqrt(D)
    assert cap(dim, angle).width ** 2 <= found <= cap(dim, angle).width ** 2 + 1  # T12


def test_a_product_of_orthants_is_an_orthant():
    cone = product(orthant(3), orthant(1), orthant(5))
    np.testing.assert_allclose(cone.volumes, orthant(9).volumes, atol=1e-16)
    g = np.random.default_rng(6).standard_normal((4, 9))
    np.testing.assert_array_equal(cone.project(g), np.maximum(g, 0))
    # a ray and a line are a half-plane
    half = product(circular(1, 0.0), linear(1, 1))
    np.testing.assert_allclose(half.volumes, circular(2, HALF).volumes, atol=1e-16)


# -- probabilities ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 2, 3, 10, 31, 1000])
def test_the_orthant_is_hit_as_wendel_says(dim):
    """A d-dimensional subspace meets the orthant iff D uniform points of R^d lie in a half-space: 2^(1 - D) sum_{k < d} C(D - 1, k) (Wendel 1962)."""
    dims = np.arange(dim + 1)
    counts = itertools.accumulate((math.comb(dim - 1, k) for k in range(dim)), initial=0)
    below = np.array([count / 2 ** (dim - 1) for count in counts])  # whole numbers, divided at the end
    np.testing.assert_allclose(hit_probability(orthant(dim), dims), below, atol=EXACT)


def meets(rows):
    """Whether some combination of the columns of `rows` (m, d) is >= 0 and not 0: a linear program."""
    d = rows.shape[1]
    found = optimize.linprog(
        -rows.sum(0),
        A_ub=np.concatenate([-rows, rows]),
        b_ub=np.repeat([0.0, 1.0], len(rows)),
        bounds=[(None, None)] * d,
    )
    return -found.fun > 1e-7


@pytest.mark.parametrize("name", ["orthant", "monotone"])
def test_hits_are_counted_by_linear_programs_on_haar_subspaces(name):
    dim, draws = 5, 120
    cone = {"orthant": orthant, "monotone": monotone}[name](dim)
    # sides of the cone: x_i >= 0, or x_{i+1} - x_i >= 0
    sides = np.eye(dim) if name == "orthant" else np.diff(np.eye(dim), axis=0)
    rng = np.random.default_rng(7)
    for d in range(1, dim):
        share = np.mean([meets(sides @ basis) for basis in haar(rng, draws, dim, d)])
        truth = float(hit_probability(cone, d))
        within(share, truth, math.sqrt(truth * (1 - truth) / draws) + 1e-12)


@pytest.mark.parametrize("dim", [2, 3, 6, 7, 40, 41, 1000, 1001, 10_000])
@pytest.mark.parametrize("ratio", [1e-3, 0.3, 0.5, 0.8, 0.999])
def test_t6_the_kinematic_formula_of_a_circular_cone_is_the_law_of_a_ball(dim, ratio):
    dims = np.arange(dim + 1)
    np.testing.assert_allclose(
        hit_probability(circular(dim, math.asin(ratio)), dims), ball_hit(dim, dims, ratio), atol=EXACT
    )


def test_a_ball_is_hit_as_often_as_haar_subspaces_pass_near():
    rng, ambient, draws = np.random.default_rng(8), 9, 20_000
    for d in (1, 4, 8):
        # the centre is the first axis, w_0 the origin: the squared distance is what the basis does not hold of it
        away = 1 - np.square(haar(rng, draws, ambient, d)[:, 0]).sum(1)
        for ratio in (0.2, 0.6, 0.95):
            truth = float(ball_hit(ambient, d, ratio))
            within(np.mean(away <= ratio**2), truth, math.sqrt(truth * (1 - truth) / draws) + 1e-12)


def test_t5_the_threshold_dimensions_of_a_ball():
    dims = np.arange(1, 1000)
    quantiles = np.interp([0.1, 0.5, 0.9], ball_hit(1000, dims, 0.5), dims)
    # between whole dimensions the law is a straight line but for some 1e-3 of one
    np.testing.assert_allclose(quantiles, [724.6, 749.7, 774.2], atol=0.06)


def test_t7_a_tube_is_hit_whatever_the_ambient_dimension():
    rng, m, draws = np.random.default_rng(9), 6, 4000
    for ambient in (7, 20):
        for d in (1, 3, 5):
            # |z - (basis across the manifold) theta|, the centre one away from w_0 across it
            across = haar(rng, draws, ambient, d)[:, :m]
            frame = np.linalg.qr(across)[0]
            away = 1 - np.square(frame[:, 0]).sum(1)
            truth = float(tube_hit(m, d, 0.7))
            within(np.mean(away <= 0.49), truth, math.sqrt(truth * (1 - truth) / draws))
    np.testing.assert_array_equal(tube_hit(m, np.arange(9), 0.0), np.arange(9) >= m)
    np.testing.assert_array_equal(tube_hit(12, [0, 5, 12, 300], [[0.3], [1.0]])[1], 1)


def test_t8_subspaces_meet_where_their_dimensions_exceed_the_ambient_one():
    rng = np.random.default_rng(10)
    for mine in range(6):
        found = hit_probability(linear(5, mine), np.arange(6))
        # they meet where the two bases together are linearly dependent
        bases = [np.concatenate([np.eye(5)[:, :mine], haar(rng, 1, 5, d)[0]], axis=1) for d in range(6)]
        truth = [np.linalg.matrix_rank(both) < both.shape[1] if both.size else False for both in bases]
        np.testing.assert_array_equal(found, truth)
        np.testing.assert_array_equal(hit_probability(polar(linear(5, mine)), np.arange(6)), np.arange(6) > mine)
    np.testing.assert_array_equal(hit_probability(product(linear(2, 1), linear(3, 2)), np.arange(6)), np.arange(6) > 2)


def test_the_ends_of_the_dimensions():
    for name, cone in CONES.items():
        found = hit_probability(cone, np.arange(cone.dim + 1))
        assert found[0] == 0, name
        assert found[-1] == (cone.statistical_dimension > 0), name
        assert (np.diff(found) >= -EXACT).all(), name
    for ambient in (1, 2, 5):
        dims = np.arange(ambient + 1)
        np.testing.assert_array_equal(ball_hit(ambient, dims, 0.0), dims == ambient)  # a point
        for inside in (1.0, 1.5, math.inf):
            np.testing.assert_array_equal(ball_hit(ambient, dims, inside), 1)  # also d = 0: T22
        np.testing.assert_array_equal(ball_hit(ambient, [0, ambient], 0.7), [0, 1])
    # a ray is met by no subspace but the whole space; a half-space by all but {0}
    np.testing.assert_array_equal(hit_probability(circular(4, 0.0), np.arange(5)), [0, 0, 0, 0, 1])
    np.testing.assert_allclose(hit_probability(circular(4, HALF), np.arange(5)), [0, 1, 1, 1, 1], atol=EXACT)
    assert hit_probability(orthant(4), 2).shape == ()


# -- Monte Carlo ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONES)
def test_monte_carlo_finds_the_statistical_dimension_with_less_variance_than_either_plain_form(name):
    cone = CONES[name]
    found = statistical_dimension(cone.project, cone.dim, draws=4000, seed=11)
    within(found.value, cone.statistical_dimension, found.error + 1e-12)
    assert found.residual < 1e-12 and found.draws == 4000
    g = np.random.default_rng(12).standard_normal((4000, cone.dim))
    x = cone.project(g)
    plain = min(np.square(x).sum(1).std(), np.square(g - x).sum(1).std()) / math.sqrt(4000)
    # standard deviations of 4000 draws are known to 1 / sqrt(8000) = 1%, those of heavier tails to a few
    assert found.error <= 1.1 * plain + 1e-12


@pytest.mark.parametrize("name", BODIES)
def test_monte_carlo_finds_the_width(name):
    body = BODIES[name]
    found = gaussian_width(body.support, body.dim, draws=4000, seed=13)
    within(found.value, body.width, found.error + 1e-12)


def test_where_a_set_lies_changes_its_width_by_nothing():
    body, shift = BODIES["ellipsoid"], 1e3 * np.arange(4)
    here, there = (
        gaussian_width(support, 4, draws=100, seed=14)
        for support in (body.support, lambda g: body.support(g) + g @ shift)
    )
    assert there.value == pytest.approx(here.value, abs=1e-10) and there.error == pytest.approx(here.error, abs=1e-10)


def test_the_error_covers_with_few_draws():
    cone, runs, draws = orthant(40), 1000, 5
    found = [statistical_dimension(cone.project, cone.dim, draws=draws, seed=seed) for seed in range(runs)]
    covered = np.mean([abs(one.value - cone.statistical_dimension) <= 1.96 * one.error for one in found])
    # 95% of 1000, to 4 deviations of 0.7%; errors that are not widened would cover 88%, P(|t_4| < 1.96)
    assert abs(covered - 0.95) < 0.028


def test_a_projection_that_falls_short_makes_it_err_downwards_and_is_told():
    cone = orthant(30)
    short = statistical_dimension(lambda g: 0.8 * cone.project(g), 30, draws=200, seed=15)
    # |g - 0.8 Pi g|^2 = |g - Pi g|^2 + 0.04 |Pi g|^2, so 0.04 delta is lost
    whole = statistical_dimension(cone.project, 30, draws=200, seed=15)
    assert short.value == pytest.approx(0.96 * whole.value, rel=1e-12)
    assert short.residual > 0.1 and whole.residual < 1e-14


def test_draws_are_the_same_in_any_blocks_and_for_any_number(monkeypatch):
    seen = []

    def project(g):
        seen.append(g)
        return np.maximum(g, 0)

    whole = statistical_dimension(project, 7, draws=50, seed=16)
    monkeypatch.setattr(cones, "BLOCK", 7 * 9)
    parts = statistical_dimension(project, 7, draws=50, seed=16)
    statistical_dimension(project, 7, draws=20, seed=16)
    assert [len(g) for g in seen] == [50, *[9] * 5, 5, 9, 9, 2]
    np.testing.assert_array_equal(np.concatenate(seen[1:7]), seen[0])
    np.testing.assert_array_equal(np.concatenate(seen[7:]), seen[0][:20])
    assert parts.value == pytest.approx(whole.value, rel=1e-14)


# -- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: sphere(0), "1 or more; got 0"),
        (lambda: ball(3, -1.0), "radius is finite and at least 0; got -1"),
        (lambda: cross_polytope(3, math.inf), "got inf"),
        (lambda: ellipsoid([]), "semi-axes"),
        (lambda: ellipsoid([1.0, -1.0]), "semi-axes"),
        (lambda: cap(3, 3.2), r"0\.\.pi radians; got 3.2"),
        (lambda: cap(3, math.nan), "got nan"),
        (lambda: subspace(3, 0), r"1\.\.3 dimensions; got 0"),
        (lambda: segment([[1.0, 2.0]]), "two ends"),
        (lambda: linear(3, 4), "got 4"),
        (lambda: circular(3, 1.6), "isn't convex; got 1.6"),
        (lambda: circular(3, -0.1), "got -0.1"),
        (lambda: orthant(0), "got 0"),
        (lambda: product(), "one cone at least"),
        (lambda: hit_probability(orthant(3), [1, 4]), r"0\.\.3; got"),
        (lambda: hit_probability(orthant(3), 1.5), "whole numbers"),
        (lambda: hit_probability(cones.Cone("cone", 3, 1.0, None, np.abs), 1), "not known"),
        (lambda: ball_hit(5, [-1], 0.5), r"0\.\.5"),
        (lambda: ball_hit(5, 2, -0.5), "at least 0"),
        (lambda: ball_hit(5, 2, math.nan), "at least 0"),
        (lambda: tube_hit(0, 2, 0.5), "1 or more"),
        (lambda: statistical_dimension(np.abs, 3, draws=1), "at least 2 draws; got 1"),
        (lambda: gaussian_width(np.abs, 3), r"mapped to shape \(256,\)"),
    ],
)
def test_wrong_questions_are_answered_with_what_is_allowed(wrong, message):
    with pytest.raises(UsageError, match=message):
        wrong()


def test_a_projection_that_is_not_finite_is_an_error():
    with pytest.raises(LandscapeError, match="not finite"):
        statistical_dimension(lambda g: g * math.nan, 3)


@pytest.mark.parametrize("angle", [math.pi / 2 - 1e-8, math.pi / 2 - 1e-4, 1e-8, 1e-4])
def test_circular_volumes_stay_exact_next_to_a_half_space_and_a_ray(angle):
    """They sum to 1."""
    volumes = cones.circular(10**4, angle).volumes
    assert abs(volumes.sum() - 1) < 1e-10


def test_ellipsoids_of_any_size_have_widths():
    for scale in (1e-170, 1e200):
        assert cones.ellipsoid([scale, scale]).width == pytest.approx(scale * cones.sphere(2).width, rel=1e-12)
    assert cones.ellipsoid([0.0, 0.0]).width == 0
