import itertools
import math
import warnings
from typing import Any

import numpy as np
import pytest
from scipy import special
from scipy.signal import lfilter
from scipy.spatial.distance import cdist
from scipy.stats import norm
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from landscape import diffusion, harmonics
from landscape.diffusion import DiffusionMap, eigen
from landscape.errors import UsageError
from landscape.kernels import LandscapeWarning

# warnings are part of what is tested
pytestmark = pytest.mark.filterwarnings("error::landscape.kernels.LandscapeWarning")


def circle(count: int) -> np.ndarray:
    angle = 2 * np.pi * np.arange(count) / count
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def ball(count: int, dim: int = 3, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((count, dim))
    return x / np.linalg.norm(x, axis=1)[:, None]


def literal(
    x: np.ndarray, epsilon: float, alpha: float, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and right eigenvectors of P by the formulas as they stand, from a general eigensolver."""
    w = np.ones(len(x)) if weights is None else weights
    kernel = np.exp(-cdist(x, x, "sqeuclidean") / (4 * epsilon))
    q = kernel @ w
    kernel = kernel / np.outer(q, q) ** alpha
    walk = kernel * w / (kernel @ w)[:, None]
    values, vectors = np.linalg.eig(walk)
    order = np.argsort(-values.real)
    return values.real[order], vectors.real[:, order]


# -- ground truths -----------------------------------------------------------


@pytest.mark.parametrize(("count", "epsilon"), [(200, 0.05), (400, 0.01)])
@pytest.mark.parametrize("solver", ["dense", "sparse"])
def test_circle(count: int, epsilon: float, solver: str) -> None:
    """D1: lambda_k = I_k(1 / (2 eps)) / I_0, each twice."""
    found = DiffusionMap(8, bandwidth=epsilon, solver=solver, cutoff=1e-300).fit(circle(count))
    truth = special.ive(np.repeat(np.arange(1, 5), 2), 0.5 / epsilon) / special.ive(0, 0.5 / epsilon)
    assert np.abs(found.eigenvalues_ - truth).max() < 1e-15
    assert found.residuals_.max() < 1e-13
    assert np.allclose(found.stationary_, 1 / count, rtol=1e-12)
    squared = cdist(circle(count), circle(count), "sqeuclidean")
    assert np.abs(eigen(squared, epsilon, 1.0, 8)[0] - truth).max() < 1e-14


def test_circles_of_many_points_have_pairs() -> None:
    """Where ARPACK solves, both of two equal eigenvalues are found."""
    found = DiffusionMap(7, bandwidth=0.01, solver="dense").fit(circle(700))
    truth = special.ive([1, 1, 2, 2, 3, 3, 4], 50.0) / special.ive(0, 50.0)
    assert np.abs(found.eigenvalues_ - truth).max() < 1e-13


def test_sphere_by_quadrature() -> None:
    """D2: lambda_l = I_{l+1/2} / I_{1/2}, 2 l + 1 times, with Gauss-Legendre weights (of scipy: numpy's round twice as much)."""
    heights, weights = special.roots_legendre(24)
    angles = 2 * np.pi * np.arange(48) / 48
    z, phi = np.repeat(heights, 48), np.tile(angles, 24)
    radius = np.sqrt(1 - z**2)
    x = np.stack([radius * np.cos(phi), radius * np.sin(phi), z], axis=1)
    found = DiffusionMap(15, bandwidth=0.05).fit(x, sample_weight=np.repeat(weights, 48))
    order = np.repeat([1, 2, 3], [3, 5, 7])
    truth = special.ive(order + 0.5, 10.0) / special.ive(0.5, 10.0)
    assert np.abs(found.eigenvalues_ - truth).max() < 1.5e-15
    assert np.allclose(found.rates_[[0, 3]], [2.0, 5.4], atol=1e-3)


@pytest.mark.parametrize(("alpha", "tolerance"), [(0.0, 5e-16), (0.5, 1e-14)])
def test_gaussian_grid(alpha: float, tolerance: float) -> None:
    """D3: lambda_k = rho^k, psi_k Hermite polynomials; the grid's ends lie beyond 9 standard deviations."""
    epsilon, spread = 0.3, 1.0
    grid = np.linspace(-9, 9, 361)
    found = DiffusionMap(4, bandwidth=epsilon, alpha=alpha).fit(
        grid[:, None], sample_weight=norm.pdf(grid, scale=spread)
    )
    narrowed = 1 / (1 / spread**2 - alpha / (spread**2 + 2 * epsilon))
    ratio = narrowed / (narrowed + 2 * epsilon)
    assert np.abs(found.eigenvalues_ - ratio ** np.arange(1, 5)).max() < tolerance
    unit = np.sqrt(narrowed * (narrowed + 2 * epsilon) / (2 * (narrowed + epsilon)))
    for k in range(1, 4):
        hermite = special.eval_hermitenorm(k, grid / unit)
        overlap = (found.stationary_ * found.vectors_[:, k - 1]) @ hermite
        norms = found.stationary_ @ hermite**2
        # alpha 0.5 loses digits where the density is tiny
        assert abs(overlap) / np.sqrt(norms) == pytest.approx(1, abs=1e-9)


def test_product_of_gaussians() -> None:
    """D4: products of the factors' eigenvalues; a grid of 41 x 41 to 1e-10 at 6 standard deviations."""
    grid = np.linspace(-6, 6, 41)
    x = np.array(list(itertools.product(grid, 0.5 * grid)))
    weights = norm.pdf(x[:, 0]) * norm.pdf(x[:, 1], scale=0.5)
    found = DiffusionMap(5, bandwidth=0.3, alpha=0.0).fit(x, sample_weight=weights)
    one, two = 1 / 1.6, 0.25 / 0.85
    truth = sorted((one**i * two**j for i, j in itertools.product(range(6), range(6)) if i + j), reverse=True)[:5]
    assert np.abs(found.eigenvalues_ - truth).max() < 1e-10


def test_ornstein_uhlenbeck_path() -> None:
    """D5: stationary paths of 4,000 steps, alpha 0: lambda_k = rho^k within 0.005 for k <= 4 and psi_1, psi_2 Hermite to .9998 and .996, as the reference's one path; here of the mean and the median of 4, since
    one path misses by 0.01 as often as not (its variance is known to 3 percent).
    """
    values, overlaps = [], []
    for seed in range(4):
        steps = np.random.default_rng(seed).standard_normal(4000)
        x = lfilter([np.sqrt(0.75)], [1, -0.5], steps, zi=[steps[0] * (1 - np.sqrt(0.75))])[0]
        found = DiffusionMap(4, alpha=0.0, bandwidth=0.3).fit(x[:, None])
        values.append(found.eigenvalues_)
        overlaps.append([abs(np.corrcoef(special.eval_hermitenorm(k, x), found.vectors_[:, k - 1])[0, 1]) for k in (1, 2)])  # fmt: skip
    spread = np.std(values, axis=0, ddof=1) / np.sqrt(4)
    assert (np.abs(np.mean(values, axis=0) - (1 / 1.6) ** np.arange(1, 5)) < 0.005 + 2 * spread).all()
    assert (np.median(overlaps, axis=0) > [0.9995, 0.996]).all()


def test_swiss_roll() -> None:
    """D6: psi_1 = cos(pi s / L) along the arc, rates of the strip (m pi / L)^2 + (n pi / h)^2 within 10 percent, but for the first across it, which the height's ends lower by a fifth at this
    bandwidth; local linear regression tells these two directions from the harmonics."""
    random = np.random.default_rng(0)
    height = 10.0
    turns = np.linspace(1.5 * np.pi, 4.5 * np.pi, 4001)
    arc = np.concatenate([[0], np.cumsum(np.hypot(np.diff(turns * np.cos(turns)), np.diff(turns * np.sin(turns))))])
    s, y = random.uniform(0, arc[-1], 2500), random.uniform(0, height, 2500)
    t = np.interp(s, arc, turns)
    x = np.stack([t * np.cos(t), y, t * np.sin(t)], axis=1)
    found = DiffusionMap(9, bandwidth=1.0).fit(x)
    for m in range(1, 9):
        assert abs(np.corrcoef(np.cos(m * np.pi * s / arc[-1]), found.vectors_[:, m - 1])[0, 1]) > (0.9995 if m == 1 else 0.98)  # fmt: skip
    truth = (np.arange(1, 9) * np.pi / arc[-1]) ** 2
    # the last of these stands among modes of the other direction
    assert np.abs(found.rates_[:8] / truth - 1)[:7].max() < 0.1
    assert abs(np.corrcoef(np.cos(np.pi * y / height), found.vectors_[:, 8])[0, 1]) > 0.97
    assert found.rates_[8] / (np.pi / height) ** 2 == pytest.approx(0.79, abs=0.04)
    new = harmonics.residuals(found.vectors_)
    assert (new[[0, 8]] > 0.9).all()
    assert (new[1:8] < 0.1).all()


def test_variable_bandwidth() -> None:
    """D11: beta -1/2, alpha -d/4 gives c1 = 1 and the rates 1.008, 2.07 of the harmonic well on [-3.3, 3.3]; alpha 1/2 - d/4 gives c1 = 0, the interval's own (k pi / 6.6)^2."""
    grid = np.linspace(-3.3, 3.3, 500)
    for alpha, truth in ((-0.25, [1.008, 2.07]), (0.25, [(np.pi / 6.6) ** 2, (2 * np.pi / 6.6) ** 2])):
        found = DiffusionMap(2, kernel="variable", beta=-0.5, alpha=alpha, dimension=1.0, bandwidth=0.003)
        found.fit(grid[:, None], sample_weight=norm.pdf(grid))
        assert np.abs(found.rates_ / truth - 1).max() < 0.05


def test_wide_variable_bandwidths_are_told() -> None:
    grid = np.linspace(-3.3, 3.3, 400)
    with pytest.warns(LandscapeWarning, match="false plateau"):
        DiffusionMap(4, kernel="variable", alpha=-0.25, dimension=1.0, bandwidth=0.03).fit(grid[:, None], sample_weight=norm.pdf(grid))  # fmt: skip


def test_interval_and_torus() -> None:
    """D12: reflecting ends give cos(k pi x), but for a layer of width sqrt(eps) at the ends, a phase of k pi / 100; a flat torus gives sums of rates and products of eigenvalues, exactly, at any bandwidth."""
    x = (np.arange(1500) + 0.5) / 1500
    found = DiffusionMap(4, bandwidth=1e-4).fit(x[:, None])
    for k in range(1, 5):
        assert abs(np.corrcoef(np.cos(k * np.pi * x), found.vectors_[:, k - 1])[0, 1]) > 0.998
    # the ends change rates by the order sqrt(eps) = 1 percent, several times
    assert np.abs(found.rates_ / (np.pi * np.arange(1, 5)) ** 2 - 1).max() < 0.05
    torus = np.hstack([np.repeat(circle(24), 24, axis=0), 0.6 * np.tile(circle(24), (24, 1))])
    many = DiffusionMap(8, bandwidth=0.05).fit(torus).eigenvalues_
    one = special.ive(np.arange(4), 10.0) / special.ive(0, 10.0)
    two = special.ive(np.arange(4), 3.6) / special.ive(0, 3.6)
    truth = sorted((a * b for i, a in enumerate(one) for j, b in enumerate(two) for _ in range((2 if i else 1) * (2 if j else 1))), reverse=True)[1:9]  # fmt: skip
    # 24 points alias I_24, which is below 1e-8 of I_0 at 10
    assert np.abs(many - truth).max() < 1e-7


# -- algebra -----------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_formulas_as_they_stand(alpha: float, weighted: bool) -> None:
    x = ball(80)
    weights = np.random.default_rng(1).uniform(0.2, 2, 80) if weighted else None
    found = DiffusionMap(6, alpha=alpha, bandwidth=0.1).fit(x, sample_weight=weights)
    values, vectors = literal(x, 0.1, alpha, weights)
    assert np.abs(found.eigenvalues_ - values[1:7]).max() < 1e-12
    assert found.stationary_.sum() == pytest.approx(1, abs=1e-14)
    assert np.allclose((found.stationary_ @ found.vectors_**2), 1, atol=1e-12)
    assert np.abs(found.stationary_ @ found.vectors_).max() < 1e-12
    # eigenvalues of random points are simple: vectors agree up to a factor
    for k in range(6):
        ours, theirs = found.vectors_[:, k], vectors[:, k + 1]
        assert np.abs(ours / np.linalg.norm(ours)).T @ np.abs(theirs) == pytest.approx(1, abs=1e-9)
    assert np.allclose(found.rates_, (1 - found.eigenvalues_) / 0.1)
    assert np.allclose(found.log_rates_, -np.log(found.eigenvalues_) / 0.1)


@pytest.mark.parametrize(
    ("options", "weighted"),
    [
        ({}, True),
        ({"alpha": 0.5, "time": 1.5}, True),
        ({"solver": "sparse"}, True),
        ({"neighbours": 60}, False),
        ({"kernel": "variable", "alpha": -0.2, "beta": -0.25}, False),
        ({"kernel": "variable", "alpha": 0.0, "solver": "sparse"}, True),
    ],
)
@pytest.mark.parametrize("squared", [False, True])
def test_transform_reproduces_the_fitted_points(options: dict, weighted: bool, squared: bool) -> None:
    """D7, 1e-14 of the Gaussian kernel; the pilot density of the variable one is taken by a second way, and its power rounds ten times as much."""
    x = ball(600)
    weights = np.random.default_rng(1).uniform(0.2, 2, 600) if weighted else None
    given = cdist(x, x, "sqeuclidean") if squared else x
    found = DiffusionMap(8, bandwidth="median:16", metric="squared" if squared else "euclidean", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LandscapeWarning)
        found.fit(given, sample_weight=weights)
    # over lambda: 0.3 and more here
    assert found.eigenvalues_.min() > 0.2
    assert np.abs(found.transform(given[:200]) - found.embedding_[:200]).max() < (
        2e-12 if "kernel" in options else 1e-14
    )


def test_transform_between_the_points() -> None:
    x = ball(1500)
    found = DiffusionMap(3, bandwidth=0.05).fit(x[:1400])
    # the first three coordinates of a sphere are linear in the points
    fitted = np.linalg.lstsq(x[:1400], found.embedding_, rcond=None)
    apart = found.transform(x[1400:]) - x[1400:] @ fitted[0]
    assert np.sqrt((apart**2).mean()) < 2 * np.sqrt(fitted[1].mean() / 1400)


def test_distances_are_those_of_the_walk() -> None:
    """sum_l (P^t(i, l) - P^t(j, l))^2 / pi_l (Coifman & Lafon 2006), from powers of P, with all components."""
    x = ball(30)
    kernel = np.exp(-cdist(x, x, "sqeuclidean") / 0.4)
    q = kernel.sum(axis=1)
    kernel /= np.outer(q, q)
    walk = kernel / kernel.sum(axis=1)[:, None]
    found = DiffusionMap(29, bandwidth=0.1).fit(x)
    for time in (1, 3):
        power = np.linalg.matrix_power(walk, time) / np.sqrt(found.stationary_)
        assert np.abs(found.distance(time) - cdist(power, power)).max() < 1e-8  # square roots of rounding
    assert np.allclose(found.distance(), cdist(found.embedding_, found.embedding_))


def test_order_of_the_points_does_not_matter() -> None:
    x = ball(500) * [1.0, 0.8, 0.6]
    order = np.random.default_rng(2).permutation(500)
    for options in ({}, {"solver": "sparse"}, {"neighbours": 40}, {"kernel": "variable"}):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LandscapeWarning)
            one, two = (DiffusionMap(5, bandwidth=0.05, **options).fit(points) for points in (x, x[order]))
            again = DiffusionMap(5, bandwidth=0.05, **options).fit(x)
        assert np.array_equal(one.vectors_, again.vectors_)
        assert np.abs(one.vectors_[order] - two.vectors_).max() < 1e-9


def test_ties_among_neighbours() -> None:
    """On a grid 11 neighbours cut among the four at distance 2: all are taken, and the symmetry of the grid and the extension are kept."""
    x = np.array(list(itertools.product(range(18), range(18))), dtype=float)
    found = DiffusionMap(4, bandwidth=1.0, neighbours=11).fit(x)
    assert found.eigenvalues_[0] == pytest.approx(found.eigenvalues_[1], abs=1e-13)
    assert np.abs(found.transform(x) - found.embedding_).max() < 1e-12


def test_sparse_is_dense() -> None:
    x = ball(2500)
    dense = DiffusionMap(8, bandwidth=0.01, solver="dense").fit(x)
    sparse = DiffusionMap(8, bandwidth=0.01, solver="sparse").fit(x)
    # what is left out has mass 1e-5 (of all pairs of a plane, exp(-d^2 / 4 eps) above the cutoff holds 1 - cutoff), and eigenvalues move by no more
    assert 1e-6 < sparse.truncated_ < 3e-5
    assert np.abs(dense.eigenvalues_ - sparse.eigenvalues_).max() < 3e-5
    assert sparse.residuals_.max() < 1e-10
    assert dense.truncated_ == 0


def test_filter_finds_what_arpack_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    x = ball(2500)
    found = DiffusionMap(8, bandwidth=0.004, solver="sparse").fit(x)
    monkeypatch.setattr(diffusion, "FILTERED", 10**9)
    plain = DiffusionMap(8, bandwidth=0.004, solver="sparse").fit(x)
    assert np.abs(found.eigenvalues_ - plain.eigenvalues_).max() < 1e-12
    assert np.abs(found.vectors_ - plain.vectors_).max() < 1e-7
    # a cut among the wanted ones is noticed, whether the iteration ends or not
    x = ball(400)
    plain = DiffusionMap(8, bandwidth=0.02, solver="sparse").fit(x)
    monkeypatch.setattr(diffusion, "FILTERED", 0)
    monkeypatch.setattr(diffusion, "WANTED", 0.2)
    for restarts in (5, 1000):
        monkeypatch.setattr(diffusion, "RESTARTS", restarts)
        wrong = DiffusionMap(8, bandwidth=0.02, solver="sparse").fit(x)
        assert np.abs(wrong.eigenvalues_ - plain.eigenvalues_).max() < 1e-12


def test_the_curve_of_a_fixed_bandwidth_is_computed_when_asked_for() -> None:
    x = ball(500, dim=20)
    weights = np.random.default_rng(1).uniform(0.2, 2, 500)
    for options in ({}, {"sample_weight": weights}):
        chosen = DiffusionMap(3).fit(x, **options)
        found = DiffusionMap(3, bandwidth=chosen.bandwidth_.epsilon).fit(x, **options)
        assert found.bandwidth_.known.args[0].squared is None  # the 500 x 500 distances are let go
        assert np.allclose(found.bandwidth_.curve.slope, chosen.bandwidth_.curve.slope, atol=1e-9)
        assert found.bandwidth_.dimension == pytest.approx(chosen.bandwidth_.dimension)


def test_truncated_mass_of_few_neighbours() -> None:
    """64 neighbours of 3,000 on a sphere fill a cap in which exp(-d^2 / (4 eps)) keeps 1 - exp(-d_k^2 / (4 eps)) of its mass; d_k^2 is 4 k / N. The k-th is not at one distance: a tenth."""
    found = DiffusionMap(3, bandwidth=0.02, neighbours=64).fit(ball(3000))
    assert found.truncated_ == pytest.approx(np.exp(-64 * 4 / 3000 / 0.08), rel=0.15)


def test_landmarks() -> None:
    x = ball(1800)
    whole = DiffusionMap(8, bandwidth=0.05, solver="dense").fit(x)
    few = DiffusionMap(8, bandwidth=0.05, solver="landmarks", landmarks=500).fit(x)
    # 500 weighted points stand for 1,800: rates to 5 percent (Roseland without density correction had 20 in the reference)
    assert np.abs(few.rates_ / whole.rates_ - 1).max() < 0.08
    assert few.vectors_.shape == (1800, 8)
    angles = np.linalg.svd(np.sqrt(whole.stationary_)[:, None] * whole.vectors_[:, :3], full_matrices=False)[0].T @ np.linalg.svd(np.sqrt(few.stationary_)[:, None] * few.vectors_[:, :3], full_matrices=False)[0]  # fmt: skip
    assert np.linalg.svd(angles, compute_uv=False).min() > 0.99
    assert np.abs(few.transform(x[:100]) - few.embedding_[:100]).max() < 1e-12
    again = DiffusionMap(8, bandwidth=0.05, solver="landmarks", landmarks=500, metric="squared").fit(cdist(x, x, "sqeuclidean"))  # fmt: skip
    assert np.allclose(again.vectors_, few.vectors_, atol=1e-9)


def test_batches_of_small_problems() -> None:
    x = np.random.default_rng(0).standard_normal((5, 40, 3))
    squared = np.stack([cdist(one, one, "sqeuclidean") for one in x])
    epsilon = np.linspace(0.1, 0.5, 5)
    values, vectors = eigen(squared, epsilon, 0.5, 4)
    for b in range(5):
        found = DiffusionMap(4, alpha=0.5, bandwidth=epsilon[b]).fit(x[b])
        assert np.abs(values[b] - found.eigenvalues_).max() < 1e-13
        assert np.abs(vectors[b] - found.vectors_).max() < 1e-10
        assert np.abs(values[b] - literal(x[b], epsilon[b], 0.5)[0][1:5]).max() < 1e-12
    grid = diffusion.sensitivity(squared[0], epsilon, alpha=0.5, k=4)
    assert grid.shape == (5, 4)
    assert np.allclose(grid[0], values[0], atol=1e-13)


def test_pydiffmap_answers_the_same() -> None:
    x = ball(500)
    for options in ({}, {"neighbours": 80}):
        ours = DiffusionMap(5, bandwidth=0.03, **options).fit(x)
        theirs = DiffusionMap(5, bandwidth=0.03, engine="pydiffmap", **options).fit(x)
        assert np.abs(ours.eigenvalues_ - theirs.eigenvalues_).max() < 1e-10
        assert np.abs(ours.vectors_ - theirs.vectors_).max() < 1e-6
        assert theirs.residuals_ is None
    with pytest.raises(UsageError, match="weights"):
        theirs.fit(x, sample_weight=np.ones(500))
    with pytest.raises(UsageError, match="gaussian"):
        DiffusionMap(engine="pydiffmap", kernel="variable").fit(x)


# -- bad input ---------------------------------------------------------------


def test_pieces_are_told() -> None:
    x = np.concatenate([ball(60), ball(30, seed=1) + 100, [[1e4, 0, 0]]])
    for options in ({}, {"solver": "sparse"}):
        found = DiffusionMap(6, bandwidth=0.1, **options)
        with pytest.warns(LandscapeWarning, match=r"3 pieces .* \(of 60, 30, 1 points\)"):
            found.fit(x)
        assert found.n_pieces_ == 3
        assert (np.bincount(found.labels_) == [60, 30, 1]).all()
        assert (found.eigenvalues_[:2] == 1).all()
        assert found.eigenvalues_[2] < 0.99
        assert np.abs(found.vectors_).max() <= 1 / np.sqrt(found.stationary_.min()) * (1 + 1e-12)
        # the rest are those of the pieces by themselves
        alone = [DiffusionMap(3, bandwidth=0.1).fit(x[:60]).eigenvalues_, DiffusionMap(3, bandwidth=0.1).fit(x[60:90]).eigenvalues_]  # fmt: skip
        assert np.allclose(found.eigenvalues_[2:5], np.sort(np.concatenate(alone))[::-1][:3], atol=1e-4)
        assert np.abs(found.transform(x) - found.embedding_).max() < 1e-11
        gram = (found.stationary_[:, None] * found.vectors_).T @ found.vectors_
        assert np.abs(gram - np.eye(6)).max() < 1e-12
    with pytest.warns(LandscapeWarning, match="pieces"):  # more pieces than components
        assert (DiffusionMap(3, bandwidth=1e-9).fit(ball(20)).eigenvalues_ == 1).all()
    with pytest.warns(LandscapeWarning, match="reach"):
        assert np.isnan(found.transform(np.full((1, 3), -5e3))).all()


def test_masked_rows() -> None:
    x = ball(50)
    holed = np.insert(x, [3, 20], np.nan, axis=0)
    found = DiffusionMap(4, bandwidth=0.1).fit(holed)
    clean = DiffusionMap(4, bandwidth=0.1).fit(x)
    bad = np.isnan(holed[:, 0])
    assert found.masked_ == 2
    assert (found.labels_[bad] == -1).all()
    assert np.isnan(found.vectors_[bad]).all()
    assert np.array_equal(found.vectors_[~bad], clean.vectors_)
    squared = cdist(holed, holed, "sqeuclidean")
    by_distance = DiffusionMap(4, bandwidth=0.1, metric="squared").fit(squared)
    assert by_distance.masked_ == 2
    assert np.allclose(by_distance.vectors_[~bad], clean.vectors_, atol=1e-10)
    assert np.allclose(by_distance.transform(np.nan_to_num(squared[~bad])), clean.embedding_, atol=1e-10)
    assert np.isnan(found.transform(holed)[bad]).all()


def test_points_without_weight_play_no_part() -> None:
    x = ball(80)
    weights = np.ones(80)
    weights[::4] = 0
    found = DiffusionMap(4, bandwidth=0.1).fit(x, sample_weight=weights)
    rest = DiffusionMap(4, bandwidth=0.1).fit(x[weights > 0])
    assert np.allclose(found.vectors_[weights > 0], rest.vectors_, atol=1e-12)
    assert np.allclose(found.embedding_, rest.transform(x), atol=1e-12)
    assert (found.stationary_[weights == 0] == 0).all()
    with pytest.raises(ValueError, match="weights"):
        found.fit(x, sample_weight=-weights)


def test_repeated_points() -> None:
    x = np.repeat(ball(40), 10, axis=0)
    found = DiffusionMap(4, bandwidth=0.1).fit(x)
    once = DiffusionMap(4, bandwidth=0.1).fit(ball(40))
    assert np.abs(found.eigenvalues_ - once.eigenvalues_).max() < 1e-13
    assert np.abs(found.vectors_[::10] - once.vectors_).max() < 1e-10
    weighted = DiffusionMap(4).fit(ball(40), sample_weight=np.full(40, 10.0))
    assert np.allclose(weighted.eigenvalues_, DiffusionMap(4).fit(x).eigenvalues_, atol=1e-12)


def test_more_components_than_points() -> None:
    with pytest.warns(LandscapeWarning, match="4 beside the constant"):
        found = DiffusionMap(10, bandwidth=0.1).fit(ball(5))
    assert found.embedding_.shape == (5, 4)


@pytest.mark.parametrize(
    ("x", "options", "words"),
    [
        (ball(2), {}, "3 points"),
        (np.full((5, 2), np.nan), {}, "3 points"),
        (np.ones((9, 2)), {}, "all points are equal"),
        (np.ones((4, 3)), {"metric": "squared"}, "square"),
        (np.triu(np.ones((4, 4)), 1), {"metric": "squared"}, "symmetric"),
        (np.eye(4) - np.ones((4, 4)), {"metric": "squared"}, "zero or more"),
        (np.ones((4, 4)), {"metric": "squared"}, "itself is zero"),
        (ball(9), {"alpha": 1.5}, "alpha"),
        (ball(9), {"alpha": -0.5}, "alpha"),
        (ball(9), {"n_components": 0}, "n_components"),
        (ball(9), {"cutoff": 0.0}, "cutoff"),
        (ball(9), {"neighbours": 1}, "neighbours"),
        (ball(9), {"landmarks": 2}, "landmarks"),
        (ball(9), {"time": -1.0}, "time"),
        (ball(9), {"kernel": "gausian"}, "gaussian"),
        (ball(9), {"bandwidth": "bhg"}, "bgh"),
    ],
)
def test_bad_input(x: np.ndarray, options: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        DiffusionMap(2 if "n_components" not in options else options.pop("n_components"), **options).fit(x)


def test_too_many_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diffusion, "PAIRS", 1000)
    monkeypatch.setattr(diffusion, "DENSE", 100)
    with pytest.raises(UsageError, match="pairs"):
        DiffusionMap(2, solver="sparse").fit(ball(300))
    with pytest.warns(LandscapeWarning, match="landmarks is given"):
        assert DiffusionMap(2, landmarks=100).fit(ball(300)).solver_ == "landmarks"


# -- scikit-learn ------------------------------------------------------------


@parametrize_with_checks(
    [DiffusionMap(2), DiffusionMap(2, solver="sparse")],
)
def test_estimator(estimator, check) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LandscapeWarning)  # its clusters fall into pieces
        check(estimator)


def test_pipeline() -> None:
    x = ball(60)
    pipeline = make_pipeline(StandardScaler(), DiffusionMap(3, time=2.0))
    made = pipeline.fit_transform(x)
    assert made.shape == (60, 3)
    assert np.allclose(pipeline.transform(x), made, atol=1e-10)
    copy = clone(pipeline[-1]).set_params(alpha=0.5)
    assert (copy.alpha, copy.time) == (0.5, 2.0)


@pytest.mark.parametrize("options", [{"alpha": math.nan}, {"beta": math.nan}, {"n_components": 2.5}, {"dimension": -1.0, "kernel": "variable"}, {"bandwidth": 1e-320}, {"bandwidth": "neighbour:nan"}, {"bandwidth": "neighbour:inf"}])  # fmt: skip
def test_numbers_that_are_none_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        DiffusionMap(**{"n_components": 2} | options).fit(np.random.default_rng(0).standard_normal((20, 2)))
