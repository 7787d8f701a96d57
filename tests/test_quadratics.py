"""Quadratic wells against closed forms of balls, explicit random subspaces, the definition of a projection, and dense eigenvalues."""

import math

import numpy as np
import pytest
import torch
from problems import EPS, F64, draw, planted
from scipy.special import betainc
from scipy.stats import ks_2samp
from threadpoolctl import threadpool_limits

from landscape import cones
from landscape.errors import LandscapeError, UsageError
from landscape.functionals import standard_error
from landscape.operators import SymmetricOperator
from landscape.quadratics import Quadratic, sketch, spectrum


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Two threads on matrices this small cost more than they save."""
    with threadpool_limits(1):
        yield


D = 400
SHARES = (0.3, 0.03, 0.003)  # levels, of the start's mean loss
# spectrum -> paper's bound and sharp form at these levels: section 1.3 of the reference, to the digit that it prints
TABLE = {
    "flat": ((307.7, 388.3, 398.8), (280.0, 388.0, 398.8)),
    "power:1": ((220.7, 365.0, 396.1), (126.6, 361.8, 396.1)),
    "power:2": ((42.2, 121.1, 270.9), (3.9, 44.4, 232.9)),
    "outliers:10": ((19.0, 85.7, 285.5), (6.4, 12.6, 240.7)),
    "exponential:40": ((141.4, 231.9, 318.8), (82.6, 205.7, 309.8)),
}


def typical(name, dim=D, radius=1.0):
    """A named well with a start that has the mean square of a uniform direction along every eigenvector."""
    return Quadratic.of_spectrum(spectrum(name, dim), np.full(dim, radius / math.sqrt(dim)))


def bent(dim=9, flat=0, seed=0, spread=2.0):
    """A well with eigenvalues over a few orders of magnitude, the first `flat` of them 0, and a start in no special direction; least loss 0.25."""
    random = np.random.default_rng(seed)
    values = np.exp(spread * random.standard_normal(dim))
    values[:flat] = 0.0
    return Quadratic.of_spectrum(values, random.standard_normal(dim), least=0.25)


def at(well, share):
    """The level at a share of the start's height above the least loss."""
    return well.least + share * (well.initial - well.least)


# -- spectra ----------------------------------------------------------------------------------------------------------


def test_named_spectra():
    assert spectrum("flat", 3).tolist() == [1, 1, 1]
    assert spectrum("power:2", 3) == pytest.approx([1, 1 / 4, 1 / 9], rel=1e-15)
    assert spectrum("outliers:2", 4).tolist() == [2, 1, 1e-3, 1e-3]
    assert spectrum("exponential:0.5", 2) == pytest.approx([math.exp(-2), math.exp(-4)], rel=1e-15)
    assert spectrum("outliers:1", 1).tolist() == [1]


@pytest.mark.parametrize("name", ["flatt", "powers:2", "power", "power:", "power:x", "power:-1", "power:nan", "exponential:0", "outliers:2.5", "outliers:5", "flat:2"])  # fmt: skip
def test_a_spectrum_that_is_none(name):
    with pytest.raises(UsageError, match=r"spectrum|outliers"):
        spectrum(name, 4)


# -- closed forms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLE)
def test_the_columns_of_the_table(name):
    """To half of the last digit printed; 307.69, 388.35, 398.80 and 280.00 among them are plain fractions."""
    well = typical(name)
    assert well.radius == pytest.approx(1, rel=1e-14)
    for share, bound, sharp in zip(SHARES, *TABLE[name], strict=True):
        level = share * spectrum(name, D).mean() / 2
        assert abs(well.paper_bound(level) - bound) <= 0.0501
        assert abs(well.threshold_isotropic(level) - sharp) <= 0.0501
        # the start has the mean square of an isotropic one in every direction: one equation, two sums of D terms and a root, each to rounding
        assert well.threshold(level) == pytest.approx(well.threshold_isotropic(level), rel=1e-10)
        assert well.angular_dimension(level) == D - well.threshold(level)


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("share", [0.9, 0.1, 1e-3, 1e-9])
@pytest.mark.parametrize("flat", [0, 7])
def test_the_papers_bound_is_the_effective_dimension(name, share, flat):
    """By semi-axes and by eigenvalues: sum r^2 / (R^2 + r^2) = D - N_eff(2 (level - least) / R^2)."""
    values = spectrum(name, 100)
    values[:flat] = 0.0
    well = Quadratic.of_spectrum(values, np.random.default_rng(1).standard_normal(100), least=-1.5)
    level = at(well, share)
    shift = 2 * (level - well.least) / well.radius**2
    assert well.paper_bound(level) == pytest.approx(well.effective_dimension(shift), rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("share", [0.99999, 0.7, 0.1, 1e-4, 1e-10])
@pytest.mark.parametrize("seed", range(3))
def test_the_sharp_form_satisfies_its_equations(share, seed):
    """d = N_eff(1 / gamma) and what is left at gamma is the level: gamma is solved from d here, by bisection, and the loss summed anew."""
    well = bent(12, flat=2, seed=seed)
    level = at(well, share)
    d = well.threshold(level)
    low, high = -60.0, 60.0  # of log gamma
    for _ in range(200):
        middle = (low + high) / 2
        x = math.exp(middle) * well.values
        low, high = (middle, high) if (x / (1 + x)).sum() < d else (low, middle)
    left = (well.values * well.start**2 / (1 + math.exp(low) * well.values)).sum() / 2
    # d to rounding leaves d / dgamma short by eps / (10 - d) where d is near the rank, relatively
    allowed = 1e-12 + 100 * EPS / min(1.0, 10 - d) + 100 * EPS / (1 - share)
    assert left == pytest.approx(level - well.least, rel=allowed)
    assert well.least_on([d])[0] - well.least == pytest.approx(level - well.least, rel=1e-12 + allowed)


def test_a_flat_well_is_a_ball():
    """L_min / L_0 is Beta((D - d) / 2, d / 2) with mean 1 - d / D, so that d* = D (1 - level / L_0)."""
    well = typical("flat", 50, radius=3.0)
    for share in (0.5, 0.01):
        assert well.threshold(share * well.initial) == pytest.approx(50 * (1 - share), rel=1e-12)
    assert well.least_on(np.arange(51)) == pytest.approx(well.initial * (1 - np.arange(51) / 50), rel=1e-11, abs=1e-13)
    assert well.least_on([[0, 50], [10, 60]]).shape == (2, 2)


@pytest.mark.parametrize("factor", [1e-3, 7.0])
def test_the_scale_law(factor):
    """(level, R) -> (c^2 level, c R) leaves d* as it is, and so does a factor of the loss."""
    well, scaled = (Quadratic.of_spectrum(bent().values, c * bent().start) for c in (1.0, factor))
    steeper = Quadratic.of_spectrum(factor * well.values, well.start)
    g = np.random.default_rng(0).standard_normal((5, 9))
    for share in SHARES:
        level = at(well, share)
        for other in (scaled, steeper):
            same = at(other, share)
            for form in ("paper_bound", "threshold", "threshold_isotropic"):
                assert getattr(other, form)(same) == pytest.approx(getattr(well, form)(level), rel=1e-10)
            assert other.project(g, same) == pytest.approx(well.project(g, level), abs=1e-9)


def test_a_matrix_is_its_spectrum_in_any_frame():
    values = np.concatenate([np.zeros(3), np.geomspace(1e-3, 10, 17)])
    matrix, displacement = planted(values), draw(20, seed=3).numpy()
    well = Quadratic.of_matrix(matrix, displacement, least=0.5)
    assert np.count_nonzero(well.values == 0) == 3  # not 1e-17
    assert well.initial == pytest.approx(0.5 + displacement @ matrix @ displacement / 2, rel=1e-12)
    assert well.radius == pytest.approx(np.linalg.norm(displacement), rel=1e-12)
    level = at(well, 0.1)
    z = 2 * (level - 0.5) / well.radius**2
    dense = np.trace(np.linalg.solve(matrix + z * np.eye(20), matrix))
    assert well.paper_bound(level) == pytest.approx(dense, rel=1e-9)  # condition 1e4 of the solve


# -- the cone ---------------------------------------------------------------------------------------------------------


def wells():
    """Wells of every awkward kind."""
    yield from (bent(dim, seed=dim, spread=spread) for dim in (1, 2, 3, 7) for spread in (0.1, 1.0, 4.0))
    yield from (bent(6, flat=flat, seed=flat) for flat in (1, 4, 5))
    yield Quadratic.of_spectrum([5.0, 1.0, 0.2], [1.0, 0.0, 0.0])  # along one eigenvector
    yield Quadratic.of_spectrum([5.0, 1.0, 0.2], [0.0, 0.0, 2.0])
    yield Quadratic.of_spectrum([1.0, 1.0, 1.0], [0.0, 3.0, 0.0])
    yield Quadratic.of_spectrum([1e8, 1.0, 1e-8], [1.0, 1.0, 1.0])


@pytest.mark.parametrize("well", list(wells()))
@pytest.mark.parametrize("share", [1 - 1e-9, 0.8, 0.3, 1e-2, 1e-8])
def test_a_projection_is_one_by_definition(well, share):
    """x is the nearest point of a closed convex cone to g if and only if x is in it, g - x in its polar, and the two are orthogonal (Moreau).

    In the cone: the loss falls to the level somewhere along x. In the polar: no point of S lies further along g - x than w_0 does, by the support function of an ellipsoid. Gaussian g, g in special
    places (axes, the start's direction, their opposites, 0), and points of the cone's boundary, which must stay.
    """
    level = at(well, share)
    above = 2 * (level - well.least)
    random = np.random.default_rng(0)
    special = np.concatenate([np.eye(well.dim), -np.eye(well.dim), [well.start, -well.start, 0 * well.start]])
    g = np.concatenate([random.standard_normal((12, well.dim)), special])
    g = np.concatenate([g, well.project(g, level)])
    x = well.project(g, level)
    y = g - x
    size = np.maximum(np.linalg.norm(g, axis=1), 1e-100)
    assert np.abs((x * y).sum(1) / size**2).max() <= 1e-10
    # lowest loss along x: start's height - (h.x)^2 / (2 x.Hx), to be at most the level, downhill
    slope, curvature = x @ (well.values * well.start), x**2 @ well.values
    excess = well.start**2 @ well.values - above
    steepness = size * np.linalg.norm(well.values * well.start)
    assert ((np.sqrt(excess * curvature) + slope) / steepness).max() <= 1e-9
    # the support function of S - w_0 along y, scaled by the ellipsoid's own reach
    curved = well.values > 0
    assert np.abs(y[:, ~curved]).max(initial=0.0) == 0
    reach = np.sqrt(above * (y[:, curved] ** 2 / well.values[curved]).sum(1))
    longest = math.sqrt(above / well.values[curved].min())
    assert ((reach - y @ well.start) / size).max() <= 1e-9 * (well.radius + longest)
    assert x[len(g) // 2 :] == pytest.approx(g[len(g) // 2 :], abs=1e-9 * size.max())  # idempotent


@pytest.mark.parametrize("angle", [0.01, 0.7, 1.57])
def test_a_ball_is_seen_as_a_circular_cone(angle):
    """About the axis to its centre, of half-angle arcsin(r / R)."""
    well = Quadratic.of_spectrum(np.full(6, 2.5), [-4.0, 0, 0, 0, 0, 0])
    g = np.random.default_rng(0).standard_normal((200, 6))
    found = well.project(g, math.sin(angle) ** 2 * well.initial)
    assert found == pytest.approx(cones.circular(6, angle).project(g), abs=1e-9)
    value, error, form = well.polar(math.sin(angle) ** 2 * well.initial, draws=400)
    assert form == "Monte Carlo"
    assert abs(6 - cones.circular(6, angle).statistical_dimension - value) <= 4 * error


@pytest.mark.parametrize("share", [0.9, 0.1])
@pytest.mark.parametrize("flat", [0, 3])
def test_the_mean_threshold_of_random_subspaces_is_that_of_the_cone_and_a_half(share, flat):
    """The smallest d that hits has mean sum_d P(miss) = D - delta + 1/2: by the kinematic formula P(hit at d) = 2 (v_{D-d+1} + v_{D-d+3} + ...), and odd volumes sum to 1/2 (Gauss, Bonnet).

    One side by triangular factors, the other by projections; within 4 standard errors of both.
    """
    well = bent(10, flat=flat, seed=2)
    level = at(well, share)
    dims = well.thresholds([level], 1000, seed=1)[:, 0]
    value, error, _ = well.polar(level, draws=1000, seed=1)
    assert abs(dims.mean() - 0.5 - value) <= 4 * math.hypot(error, standard_error(dims))
    assert dims.min() >= 1
    assert dims.max() <= 10 - flat


# -- simulation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLE)
def test_the_sharp_form_is_within_three_errors_of_simulation(name):
    """D = 400, starts in uniform directions at R = 1, as in the table of section 1.3."""
    well = typical(name)
    levels = [share * well.initial for share in SHARES]
    dims = well.thresholds(levels, 60, seed=0, isotropic=True)
    for column, level in zip(dims.T, levels, strict=True):
        assert abs(well.threshold_isotropic(level) - column.mean()) <= 3 * standard_error(column)


@pytest.mark.parametrize("isotropic", [False, True])
@pytest.mark.parametrize("flat", [0, 2])
def test_simulated_losses_are_those_of_explicit_subspaces(isotropic, flat):
    """min over theta of L(w_0 + A theta) by least squares on random A, against column d. Two samples of 800: Kolmogorov and Smirnov reject at 1e-3, once in a thousand; seeds are fixed."""
    well, n = bent(7, flat=flat, seed=5), 800
    found = well.simulate(n, seed=3, isotropic=isotropic)
    dual = well.simulate_dual(7, n, seed=3, isotropic=isotropic)
    assert found.shape == dual.shape == (n, 8)
    random, roots = np.random.default_rng(7), np.sqrt(well.values)
    for d in range(1, 7):
        explicit = np.empty(n)
        for place in range(n):
            start = random.standard_normal(7)
            start = well.radius * start / np.linalg.norm(start) if isotropic else well.start
            basis = roots[:, None] * random.standard_normal((7, d))
            theta = np.linalg.lstsq(basis, -roots * start, rcond=None)[0]
            explicit[place] = well.least + ((roots * start + basis @ theta) ** 2).sum() / 2
        for simulated in (found[:, d], dual[:, 7 - d]):
            if d >= 7 - flat:
                assert (simulated == well.least).all()
                assert explicit == pytest.approx(well.least, abs=1e-9)
            else:
                assert ks_2samp(explicit, simulated).pvalue > 1e-3
    assert (np.diff(found, axis=1) <= 0).all()
    assert (np.diff(dual, axis=1) >= 0).all()
    if not isotropic:
        for whole in (found[:, 0], dual[:, 7]):
            assert whole == pytest.approx(well.initial, rel=1e-12)


def test_the_hit_probability_of_a_ball_is_a_beta_law():
    """P(d) = I_{r^2/R^2}((D - d) / 2, d / 2); hits of 600 subspaces within 4 binomial standard errors, and one hit for where these vanish."""
    well, share, n = typical("flat", 30), 0.4, 600
    dims = np.arange(1, 30)
    shares, hits = well.success(share * well.initial, dims, n, seed=4)
    exact = betainc((30 - dims) / 2, dims / 2, share)
    assert (np.abs(hits - n * exact) <= 4 * np.sqrt(n * exact * (1 - exact)) + 1).all()
    assert shares == pytest.approx(hits / n)
    ends, _ = well.success(share * well.initial, [0, 30], 5)
    assert ends.tolist() == [0, 1]


@pytest.mark.parametrize("name", TABLE)
def test_the_deterministic_equivalent_follows_the_simulated_curve(name):
    """D = 200. A few per cent of finite-d error where d is small, as the reference says, here allowed as 1/d of the value beside 4 standard errors; at the ends both are exact."""
    well = typical(name, 200)
    dims = np.array([1, 5, 20, 100, 180])
    found = well.least_on(dims)
    simulated = well.simulate(60, isotropic=True)[:, dims]
    assert (np.abs(found - simulated.mean(0)) <= 4 * standard_error(simulated) + found / dims).all()
    assert well.least_on([0, 200]) == pytest.approx([well.initial, 0])


def test_draws_are_their_own_streams():
    """More draws change none before; another seed changes all; levels of one call come from the same subspaces, so that a harder one never needs fewer dimensions."""
    well = bent()
    few, many = well.simulate(3, 5), well.simulate(6, 5)
    assert (many[:3] == few).all()
    assert not np.isclose(well.simulate(3, 6)[:, 1:9], few[:, 1:9]).any()
    dims = well.thresholds([at(well, share) for share in SHARES], 50)
    assert (np.diff(dims, axis=1) >= 0).all()


# -- special starts and bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize("well", [bent(5), Quadratic.of_spectrum([0.0, 2.0], [3.0, 0.0]), Quadratic.of_spectrum(np.ones(3), np.zeros(3)), Quadratic.of_spectrum(np.zeros(2), np.ones(2))])  # fmt: skip
def test_a_start_inside_sees_the_set_everywhere(well):
    """Also at the boundary, in a direction without curvature, and at the minimum itself."""
    for level in (max(well.initial, well.least + 1e-3), well.initial + 1):
        assert well.inside(level)
        assert well.paper_bound(level) == well.threshold(level) == 0
        assert well.angular_dimension(level) == well.dim
        assert well.polar(level) == (0.0, 0.0, "exact")
        g = np.random.default_rng(0).standard_normal((3, well.dim))
        assert (well.project(g, level) == g).all()
        assert (well.thresholds([level], 4) == 0).all()
        assert well.success(level, [0, 1], 4)[0].tolist() == [1, 1]


def test_just_outside_is_a_half_space():
    """Its d* is 1/2, and one dimension always meets it; inside jumps to 0."""
    well = bent(5)
    level = at(well, 1 - 1e-9)
    value, error, _ = well.polar(level, draws=400)
    assert abs(value - 0.5) <= 4 * error + 1e-3  # the set bends away by sqrt(1e-9) at most
    assert (well.thresholds([level], 30) == 1).all()
    assert well.threshold(level) == pytest.approx(0, abs=1e-6)
    # by the last digit, where differences of losses are rounding
    for seed in range(20):
        well = bent(5, seed=seed)
        level = np.nextafter(well.initial, 0)
        assert not well.inside(level)
        assert 0 <= well.threshold(level) < 1e-12
        g = np.random.default_rng(0).standard_normal((4, 5))
        steep = well.values * well.start
        onto = g - np.maximum(g @ steep, 0)[:, None] * steep / (steep @ steep)  # a half-space
        assert well.project(g, level) == pytest.approx(onto, abs=1e-5)  # bent by sqrt(c), c = 1e-16


def test_one_dimension():
    """The set lies to one side: half of all directions, always met by the line, never by the point."""
    well = Quadratic.of_spectrum([2.0], [3.0])  # L = 9 at the start
    assert well.initial == 9
    assert well.project([[-1.0], [2.0], [0.0]], 1.0).tolist() == [[-1.0], [0.0], [0.0]]
    # gamma: 18 / (1 + 2 gamma) = 2, d = 2 gamma / (1 + 2 gamma) = 8/9; the bound N_eff(2/9) = 2 / (2 + 2/9)
    assert well.threshold(1.0) == pytest.approx(8 / 9, rel=1e-13)
    assert well.paper_bound(1.0) == pytest.approx(0.9, rel=1e-13)
    assert (well.thresholds([1.0], 5) == 1).all()
    assert well.simulate(2) == pytest.approx(np.array([[9.0, 0.0], [9.0, 0.0]]))


def test_levels_without_a_set():
    well = bent()
    for level in (well.least, well.least - 1, -math.inf, math.inf, math.nan):
        for ask in (well.inside, well.paper_bound, well.threshold, well.threshold_isotropic, well.polar):
            with pytest.raises(UsageError, match=r"above its least loss 0\.25"):
                ask(level)
        with pytest.raises(UsageError, match="least loss"):
            well.thresholds([1.0, level])
        with pytest.raises(UsageError, match="least loss"):
            well.project(np.ones((1, 9)), level)


def test_negative_curvature_needs_a_policy():
    values, start = np.array([3.0, -1.0, 0.5]), np.ones(3)
    for make in (lambda **k: Quadratic.of_spectrum(values, start, **k), lambda **k: Quadratic.of_matrix(planted(values), start, **k)):  # fmt: skip
        with pytest.raises(UsageError, match=r"'clip'.*'abs'"):
            make()
        assert sorted(make(negative="clip").values) == pytest.approx([0, 0.5, 3])
        assert sorted(make(negative="abs").values) == pytest.approx([0.5, 1, 3])
        assert "1 of 3 values" in make(negative="clip").negative
        with pytest.raises(UsageError, match="clip"):
            make(negative="clipp")
    rounding = Quadratic.of_spectrum([1.0, -1e-17], [1.0, 1.0])
    assert rounding.negative == ""
    assert rounding.values[1] == 0
    with pytest.raises(UsageError, match="negative"):
        Quadratic(values, start)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Quadratic.of_spectrum([1.0, 2.0], [1.0]),
        lambda: Quadratic.of_spectrum([], []),
        lambda: Quadratic.of_spectrum([math.nan, 1.0], [1.0, 1.0]),
        lambda: Quadratic.of_spectrum([1.0], [math.inf]),
        lambda: Quadratic.of_spectrum([1.0], [1.0], least=math.nan),
        lambda: Quadratic.of_matrix([[1.0, 2.0], [0.0, 1.0]], [1.0, 1.0]),
        lambda: Quadratic.of_matrix([[1.0, math.nan], [math.nan, 1.0]], [1.0, 1.0]),
        lambda: Quadratic.of_matrix(np.ones((2, 3)), [1.0, 1.0]),
        lambda: bent().effective_dimension(0.0),
        lambda: bent().effective_dimension(-1.0),
        lambda: bent().project(np.ones(9), 1.0),
        lambda: bent().simulate_dual(10),
        lambda: bent().simulate(0),
    ],
)
def test_input_that_is_no_well(make):
    with pytest.raises(UsageError, match=r"well|quadratic|shift|projection|codimension|simulation"):
        make()


@pytest.mark.parametrize(
    ("values", "start"), [([1e308, 1e308, 1.0], 0.6), ([1e-200, 1e-200], 1.0), ([1.0, 2.0], 1e160), ([1.0, 2.0], 1e-160), ([1e100, 1.0], 1e100)]
)  # fmt: skip
def test_sizes_whose_squares_are_no_floats(values, start):
    with pytest.raises(UsageError, match="another unit"):
        Quadratic.of_spectrum(values, np.full(len(values), start))


def test_curvature_too_small_to_be_seen_is_none():
    values, start = np.array([2.0, 1.0, 1e-310]), np.ones(3)
    faint, flat = (Quadratic.of_spectrum(v, start) for v in (values, [2.0, 1.0, 0.0]))
    for share in (0.5, 1e-6):
        level = at(flat, share)
        assert faint.paper_bound(level) == pytest.approx(flat.paper_bound(level), rel=1e-14)
        assert faint.threshold(level) == pytest.approx(flat.threshold(level), rel=1e-14)
    assert faint.least_on([1, 2]) == pytest.approx(flat.least_on([1, 2]), rel=1e-14)


# -- matrix-free ------------------------------------------------------------------------------------------------------

FORMS = ("paper_bound", "threshold", "threshold_isotropic")


def operator(matrix):
    return SymmetricOperator.from_dense(torch.as_tensor(matrix, dtype=F64))


def networks_like(d=300):
    """A few large eigenvalues over a bulk that is mostly positive."""
    return np.concatenate([[30.0, 20.0, 12.0, 8.0, 5.0], np.linspace(-0.5, 2, d - 5)])


@pytest.mark.parametrize(
    ("values", "negative"), [(networks_like(), "clip"), (networks_like(), "abs"), (1 / np.arange(1.0, 301), "clip")]
)
def test_a_sketch_is_the_dense_well_within_its_errors(values, negative):
    """12 seeds, 3 forms and one loss at 2 levels: 95% of a normal law is within 2 errors, so fewer than 8 of 12 are once in 5,000; and all within 4."""
    matrix, displacement = planted(values), draw(300, seed=9) / math.sqrt(300)
    dense = Quadratic.of_matrix(matrix, displacement.numpy(), least=0.1, negative=negative)
    made = [sketch(operator(matrix), displacement, least=0.1, negative=negative, counted=20, probes=4, steps=16, seed=seed) for seed in range(12)]  # fmt: skip
    assert all(found.products == 20 + 5 * 16 for found in made)
    for share in (0.3, 0.03):
        level = at(dense, share)
        asked = [([getattr(found, form)(level) for found in made], getattr(dense, form)(level)) for form in FORMS]
        asked += [([found.least_on([30])[0] for found in made], dense.least_on([30])[0])]
        for estimates, truth in asked:
            apart = np.array([e.value - truth for e in estimates])
            errors = np.array([e.error for e in estimates])
            assert errors.mean() <= 10 * np.sqrt(
                np.mean(apart**2)
            )  # nor idle: half of the steps are not as bad as none
            misses = np.abs(apart) / errors
            assert (misses <= 2).sum() >= 8
            assert misses.max() <= 4
    for found in made:
        assert found.radius == pytest.approx(dense.radius, rel=1e-12)
    if negative == "clip":
        share = np.maximum(-values, 0).sum() / np.abs(values).sum()
        assert np.mean([found.negative_share for found in made]) == pytest.approx(
            share, abs=0.02
        )  # 0.02 is the standard deviation of one
        assert (made[0].negative_along > 0) == (share > 0)


def test_a_sketch_with_as_many_products_as_dimensions_is_exact():
    values = np.geomspace(1e-3, 5, 30)
    matrix, displacement = planted(values), draw(30, seed=2)
    dense, found = Quadratic.of_matrix(matrix, displacement.numpy()), sketch(operator(matrix), displacement)
    assert found.initial == pytest.approx(dense.initial, rel=1e-10)
    level = at(dense, 0.05)
    for form in FORMS:
        estimate = getattr(found, form)(level)
        assert estimate.value == pytest.approx(getattr(dense, form)(level), rel=1e-8)
        assert estimate.error <= 1e-8
    for d, estimate in zip((0, 3, 29, 30, 40), found.least_on([0, 3, 29, 30, 40]), strict=True):
        assert estimate.value == pytest.approx(dense.least_on([d])[0], rel=1e-7, abs=1e-12)


def test_a_million_dimensions():
    """A diagonal of two values, seen whole by two steps, so that the only errors are float32's and the share of the larger one in 2 probes and in the start: sqrt(0.09 / 0.01 * 2 / 1e6) = 0.4% each."""
    dim = 10**6
    diagonal = torch.full((dim,), 1e-3, dtype=torch.float32)
    diagonal[: dim // 10] = 1.0
    product = SymmetricOperator(dim, lambda v: diagonal * v, torch.float32, torch.device("cpu"))
    start = draw(dim, dtype=torch.float32) / 1000
    found = sketch(product, start, counted=0, probes=2, steps=4)
    assert found.dim == dim
    exact = Quadratic.of_spectrum(diagonal.numpy(), start.numpy())
    assert found.initial == pytest.approx(exact.initial, rel=1e-4)
    for form in FORMS:
        estimate = getattr(found, form)(exact.initial / 10)
        assert estimate.value == pytest.approx(getattr(exact, form)(exact.initial / 10), rel=0.02)


def test_a_sketch_without_a_displacement_starts_inside():
    found = sketch(operator(planted(np.arange(1.0, 11))), torch.zeros(10, dtype=F64), least=0.5)
    assert found.radius == 0
    assert found.initial == 0.5
    for form in FORMS:
        assert getattr(found, form)(0.6).value == 0
    with pytest.raises(UsageError, match="least loss"):
        found.threshold(0.5)


def test_a_sketch_of_a_start_inside_predicts_none():
    values = np.arange(1.0, 11)
    found = sketch(operator(planted(values)), draw(10))
    assert found.inside(found.initial + 1)
    assert found.paper_bound(found.initial + 1).value == found.threshold(found.initial + 1).value == 0


def test_bad_input_of_a_sketch():
    matrix, s = operator(planted(networks_like(40))), draw(40)
    with pytest.raises(UsageError, match=r"'clip'.*'abs'"):
        sketch(matrix, s, negative="error")
    with pytest.raises(UsageError, match="clip"):
        sketch(matrix, s, negative="cut")
    for wrong in (draw(39), torch.full((40,), math.nan, dtype=F64)):
        with pytest.raises(UsageError, match=r"finite vector \(40,\)"):
            sketch(matrix, wrong)
    with pytest.raises(UsageError, match="least loss"):
        sketch(matrix, s, least=math.inf)
    broken = SymmetricOperator(40, lambda v: v * math.nan, F64, torch.device("cpu"))
    with pytest.raises(LandscapeError, match="not finite"):
        sketch(broken, s)
    # what float32 makes of a semi-definite matrix is no negative curvature
    semi = SymmetricOperator.from_dense(torch.from_numpy(planted(np.arange(40.0) // 10)).float())
    assert sketch(semi, s.float(), negative="error").dim == 40


def test_one_dimension_may_be_asked_of_a_sketch_and_negative_curvature_is_not_counted_in_it():
    matrix = torch.diag(torch.tensor([1.0, 2.0, 3.0, -0.5], dtype=torch.float64))
    start = torch.ones(4, dtype=torch.float64)
    (least,) = sketch(SymmetricOperator.from_dense(matrix), start, negative="abs").least_on(1)
    exact = Quadratic.of_matrix(matrix.numpy(), start.numpy(), negative="abs").least_on([1])[0]
    assert least.value == pytest.approx(exact, rel=1e-8)
    with pytest.raises(UsageError, match="in part negative"):
        sketch(SymmetricOperator.from_dense(matrix), start, negative="error")
