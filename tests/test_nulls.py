"""Null models against direct simulation in R^D, dense algebra and their own hypotheses: p-values are uniform where a null says that they are exact."""

import math
import os

import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import cdist

from landscape import intrinsic, kernels, nulls
from landscape.errors import UsageError

NULLS = nulls.PATHS | nulls.CLOUDS


def gram_of(points):
    centred = points - points.mean(0)
    return centred @ centred.T


def squares_of(points):
    return cdist(points, points, "sqeuclidean")


def centred_gram(squared):
    """Dense double centring, the second way back from distances."""
    n = len(squared)
    centre = np.eye(n) - 1 / n
    return -centre @ squared @ centre / 2


def steps_gram(squared):
    """Inner products of increments by polarisation of four distances."""
    d = squared
    return (d[1:, :-1] + d[:-1, 1:] - d[1:, 1:] - d[:-1, :-1]) / 2


def walk(random, points=60, dim=40, spectrum=0.0):
    """A Gaussian walk whose increments have variances j^-spectrum."""
    scale = np.arange(1, dim + 1) ** (-spectrum / 2)
    return (random.standard_normal((points, dim)) * scale).cumsum(0)


def statistics(squared):
    """(..., 3) lambda_1 of the diffusion map with alpha 1 at a quarter of the median squared distance, R^2 of psi_1 on time, twice the slope of the kernel sum there; psi_1 (..., T). Dense algebra."""
    points = squared.shape[-1]
    exponents = squared / np.median(squared, axis=(-2, -1), keepdims=True)
    kernel = np.exp(-exponents)
    dimension = 2 * (kernel * exponents).sum((-2, -1)) / kernel.sum((-2, -1))
    density = kernel.sum(-1)
    kernel /= density[..., None] * density[..., None, :]
    root = np.sqrt(kernel.sum(-1))
    values, vectors = np.linalg.eigh(kernel / (root[..., None] * root[..., None, :]))
    psi = vectors[..., -2] / root
    psi -= psi.mean(-1, keepdims=True)
    time = np.arange(points) - (points - 1) / 2
    explained = (psi @ time) ** 2 / (np.square(psi).sum(-1) * (time @ time))
    return np.stack([values[..., -2], explained, dimension], axis=-1), psi


# -- what each null keeps ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NULLS)
@pytest.mark.parametrize("dim", [3, 200])
def test_draws_are_squared_distances_of_points(name, dim):
    points = walk(np.random.default_rng(0), 60, dim)
    squared = nulls.draw(name, gram_of(points), np.arange(60), dim, np.random.default_rng(1))
    assert squared.shape == (60, 60)
    assert (squared == squared.T).all()
    assert (squared.diagonal() == 0).all()
    values = np.linalg.eigvalsh(centred_gram(squared))
    # products of 60 x 60 matrices round by some 60 eps of the largest eigenvalue
    assert values[0] > -1e-12 * values[-1]
    # no relative leaves the space: at most D directions
    assert np.count_nonzero(values > 1e-10 * values[-1]) <= dim
    again = nulls.draw(name, gram_of(points), np.arange(60), dim, np.random.default_rng(1))
    other = nulls.draw(name, gram_of(points), np.arange(60), dim, np.random.default_rng(2))
    assert (again == squared).all()
    assert np.abs(other - squared).max() > 0.01 * squared.max()


def test_walks_keep_their_increments():
    """Lengths, or the eigenvalues of X^T X, which the inner products of the increments share."""
    random = np.random.default_rng(0)
    points = walk(random, 61, 5, 2.0) * np.linspace(1, 0.01, 61)[:, None]
    times = np.cumsum(random.integers(1, 4, 61))
    gram, before = gram_of(points), np.diff(points, axis=0)
    scale = np.sqrt(np.diff(times))[:, None]
    drawn = {
        name: steps_gram(nulls.draw(name, gram, times, 5, random)) / (scale * scale.T if weighted else 1.0)
        for name, weighted in {
            "isotropic-walk": False,
            "matched-walk": True,
            "shuffled": True,
            "sign-flipped": False,
        }.items()
    }
    # polarisation of distances up to 1e3 times an increment's costs 1e6 eps
    tolerance = 1e-9 * np.square(before).sum(1).max()
    plain, weighed = before @ before.T, (before / scale) @ (before / scale).T
    for name in ("isotropic-walk", "sign-flipped"):
        np.testing.assert_allclose(drawn[name].diagonal(), plain.diagonal(), atol=tolerance)
    np.testing.assert_allclose(np.abs(drawn["sign-flipped"]), np.abs(plain), atol=tolerance)
    np.testing.assert_allclose(np.sort(drawn["shuffled"].ravel()), np.sort(weighed.ravel()), atol=tolerance)
    # 60 increments make seven pieces of 9 and 8; each keeps its own scatter
    pieces = np.array_split(np.arange(60), 7)
    for piece in pieces:
        got = np.linalg.eigvalsh(drawn["matched-walk"][np.ix_(piece, piece)])
        np.testing.assert_allclose(got, np.linalg.eigvalsh(weighed[np.ix_(piece, piece)]), atol=tolerance)
    joint = np.linalg.eigvalsh(drawn["matched-walk"])
    np.testing.assert_allclose(joint, np.linalg.eigvalsh(weighed), atol=10 * tolerance)


def test_clouds_keep_their_covariance_or_its_trace():
    points = np.random.default_rng(0).standard_normal((50, 7)) * np.arange(1, 8)
    spectrum = np.linalg.eigvalsh(gram_of(points))
    matched, isotropic = (
        np.linalg.eigvalsh(centred_gram(nulls.draw(name, gram_of(points), np.arange(50), 7, np.random.default_rng(1))))
        for name in ("matched-cloud", "isotropic-cloud")
    )
    np.testing.assert_allclose(matched, spectrum, atol=1e-12 * spectrum[-1])
    assert isotropic.sum() == pytest.approx(spectrum.sum(), rel=1e-12)
    # seven variances of one Gaussian with 49 degrees of freedom lie within (1 +- sqrt(7 / 49))^2, a ratio of 4.9; those of the points span 49
    assert isotropic[-1] / isotropic[-7] < 6 < spectrum[-1] / spectrum[-7]


def test_a_line_keeps_its_line_and_the_scatter_about_it():
    random = np.random.default_rng(0)
    times = np.cumsum(random.integers(1, 4, 40)).astype(float)
    points = np.outer(times, random.standard_normal(6)) + random.standard_normal((40, 6))
    design = np.stack([np.ones(40), times], axis=1)
    fit = design @ np.linalg.lstsq(design, points, rcond=None)[0]
    hat = design @ np.linalg.pinv(design)
    drawn = centred_gram(nulls.draw("line", gram_of(points), times, 6, random))
    size = np.abs(gram_of(points)).max()
    np.testing.assert_allclose(hat @ drawn @ hat, gram_of(fit), atol=1e-12 * size)
    beside = np.eye(40) - hat
    got, truth = (np.linalg.eigvalsh(beside @ gram @ beside) for gram in (drawn, gram_of(points)))
    np.testing.assert_allclose(got, truth, atol=1e-12 * size)


# -- laws against simulation ------------------------------------------------------------------------------------------


def same_law(ours, theirs):
    """Two samples of a statistic are of one law: Kolmogorov-Smirnov at one in a thousand, under a fixed seed."""
    assert stats.ks_2samp(ours, theirs).pvalue > 1e-3


@pytest.mark.parametrize("dim", [4, 60])
def test_isotropic_draws_are_vectors_in_the_space(dim):
    """Both sides of Bartlett's factor, D below and above T."""
    random = np.random.default_rng(dim)
    lengths = np.linspace(1, 3, 29)
    start = np.zeros((1, dim))
    observed = np.concatenate([start, np.outer(lengths, np.eye(dim)[0]).cumsum(0)])
    gram, ours, theirs = gram_of(observed), [], []
    for _ in range(400):
        squared = nulls.draw("isotropic-walk", gram, np.arange(30), dim, random)
        ours.append((squared[0, -1], squared[5, 20]))
        way = random.standard_normal((29, dim))
        way *= (lengths / np.linalg.norm(way, axis=1))[:, None]
        path = np.concatenate([start, way.cumsum(0)])
        theirs.append([np.square(path[i] - path[j]).sum() for i, j in ((0, -1), (5, 20))])
    for mine, other in zip(np.transpose(ours), np.transpose(theirs), strict=True):
        same_law(mine, other)


def test_rotations_prefer_no_direction():
    """Entries of a Haar matrix of size 3 are uniform on (-1, 1) (Archimedes), the diagonal too, which QR alone makes negative."""
    random = np.random.default_rng(0)
    turns = np.stack([nulls._haar(3, random) for _ in range(500)])
    np.testing.assert_allclose(turns @ turns.transpose(0, 2, 1), np.broadcast_to(np.eye(3), turns.shape), atol=1e-14)
    for entry in turns.reshape(500, 9).T:
        assert stats.kstest(entry, stats.uniform(-1, 2).cdf).pvalue > 1e-3


@pytest.mark.parametrize("dim", [3, 60])
def test_a_gaussian_cloud_is_one(dim):
    random = np.random.default_rng(dim)
    ours, theirs = [], []
    for _ in range(400):
        cloud = random.standard_normal((20, dim))
        gram = gram_of(cloud)
        other = squares_of(random.standard_normal((20, dim)))
        theirs.append((other[0, 1] / other.sum(), other[np.triu_indices(20, 1)].min() / other.sum()))
        squared = nulls.draw("isotropic-cloud", gram, np.arange(20), dim, random)
        ours.append((squared[0, 1] / squared.sum(), squared[np.triu_indices(20, 1)].min() / squared.sum()))
    for mine, other in zip(np.transpose(ours), np.transpose(theirs), strict=True):
        same_law(mine, other)


def test_matched_walks_are_gaussian_walks_where_the_path_is_one():
    """Over paths and draws together a relative has the law of the path itself, here with six directions of unequal variance."""
    random = np.random.default_rng(0)

    def end(squared):
        return squared[0, -1], squared[10, 11] / squared[0, -1]

    ours = [
        end(nulls.draw("matched-walk", gram_of(walk(random, 40, 6, 1.0)), np.arange(40), 6, random)) for _ in range(400)
    ]
    theirs = [end(squares_of(walk(random, 40, 6, 1.0))) for _ in range(400)]
    for mine, other in zip(np.transpose(ours), np.transpose(theirs), strict=True):
        same_law(mine, other)


def test_an_ornstein_uhlenbeck_path_is_continued_by_its_own_recursion():
    """The pull is found without bias in many coordinates, where least squares is off by 34 standard errors, and draws are as rough as the path."""
    random = np.random.default_rng(0)
    dim, count, a = 400, 100, 0.8
    pulls, plain, ratios = [], [], []
    for _ in range(20):
        noise = random.standard_normal((count, dim))
        points = noise / math.sqrt(1 - a**2)
        for i in range(1, count):
            points[i] = a * points[i - 1] + noise[i]
        pulls.append(nulls._pull(gram_of(points)))
        before, after = points[:-1] - points[:-1].mean(0), points[1:] - points[1:].mean(0)
        plain.append((before * after).sum() / np.square(before).sum())
        squared = nulls.draw("ornstein-uhlenbeck", gram_of(points), np.arange(count), dim, random)
        ratios.append(
            squared.diagonal(1).mean()
            / squared.mean()
            / (squares_of(points).diagonal(1).mean() / squares_of(points).mean())
        )
    # (1 - a^2) / (n D) is the variance of a where the mean is known, exact to 1 / T
    error = math.sqrt((1 - a**2) / (count * dim) / 20)
    assert abs(np.mean(pulls) - a) < 4 * error + 0.1 / count
    assert np.mean(plain) < a - 0.5 * (1 + a) / count  # what the correction is for: about (1 + a) / n
    assert np.mean(ratios) == pytest.approx(1, abs=0.02)


# -- p-values ---------------------------------------------------------------------------------------------------------


def test_p_values_are_ranks():
    drawn = np.arange(1.0, 20.0)
    assert nulls.p_value(100, drawn) == 1 / 20
    assert nulls.p_value(0, drawn) == 1
    assert nulls.p_value(0, drawn, "lower") == 1 / 20
    assert nulls.p_value(0, drawn, "both") == nulls.p_value(100, drawn, "both") == 2 / 20
    assert nulls.p_value(10, drawn, "both") == 1
    assert nulls.p_value(15.5, drawn) == 5 / 20
    # ties count as extreme, also those that rounding parts
    assert nulls.p_value(1 + 1e-15, np.ones(19)) == nulls.p_value(1 - 1e-15, np.ones(19), "lower") == 1
    assert math.isnan(nulls.p_value(math.nan, drawn))
    assert nulls.p_value(100, np.append(drawn[:-1], math.nan)) == 2 / 20
    with pytest.raises(UsageError, match="upper"):
        nulls.p_value(1, drawn, "uper")


def line_path(random, points, dim):
    return np.outer(np.arange(points) / 10, random.standard_normal(dim)) + random.standard_normal((points, dim))


def decaying(random, points, dim):
    """A walk whose scale falls hundredfold: the increments' signs are all that is exchangeable."""
    return (random.standard_normal((points, dim)) * np.geomspace(1, 0.01, points)[:, None]).cumsum(0)


def unit_walk(random, points, dim):
    rows = random.standard_normal((points, dim))
    lengths = random.exponential(size=(points, 1)) + 0.1
    return (rows * lengths / np.linalg.norm(rows, axis=1, keepdims=True)).cumsum(0)


TRUE = {
    "isotropic-walk": unit_walk,
    "matched-walk": lambda random, points, dim: walk(random, points, dim, 1.5),
    "shuffled": lambda random, points, dim: (random.exponential(size=(points, dim)) - 0.9).cumsum(0),
    "sign-flipped": decaying,
    "line": line_path,
    "isotropic-cloud": lambda random, points, dim: random.standard_normal((points, dim)),
    "matched-cloud": lambda random, points, dim: np.diff(walk(random, points + 1, dim, 1.5), axis=0),
}


def p_values(name, points, draws, random, side="upper"):
    """Of the three statistics."""
    times = np.arange(len(points))
    gram, dim = gram_of(points), points.shape[1]
    relatives = [nulls.draw(name, gram, times, dim, random) for _ in range(draws)]
    observed, *drawn = statistics(np.stack([squares_of(points), *relatives]))[0]
    return np.array([nulls.p_value(x, np.array(drawn)[:, k], side) for k, x in enumerate(observed)])


@pytest.mark.parametrize("name", TRUE)
def test_p_values_are_uniform_where_a_null_is_exact(name):
    """500 paths or clouds of the null's hypothesis, B = 9: the p-values of all three statistics against the uniform law on 1/10, ..., 1."""
    seed = list(NULLS).index(name)
    found = []
    for i in range(500):
        random = np.random.default_rng([seed, i])
        # each tenth spread evenly over itself: uniform on (0, 1), so that the test for continuous laws is exact
        found.append(p_values(name, TRUE[name](random, 24, 8), 9, random) - random.uniform() / 10)
    for values in np.transpose(found):
        assert stats.kstest(values, "uniform").pvalue > 0.01


def test_wrong_nulls_are_found_out():
    """A line with noise is no walk, and shuffling hands a falling scale's large increments to the end of the path."""
    random = np.random.default_rng(0)
    assert p_values("matched-walk", line_path(random, 60, 12), 99, random, "both").min() <= 0.02
    assert p_values("shuffled", decaying(random, 60, 12), 99, random, "both").min() <= 0.02


# -- theory -----------------------------------------------------------------------------------------------------------


def test_a_walk_in_many_dimensions_gives_cosines_and_dimension_two():
    """D10: psi_j = cos(j pi t / T) at .999, dimension 2 by BGH, first component .60, of a walk in R^10,000."""
    count = 400
    points = walk(np.random.default_rng(0), count, 10_000)
    centred = points - points.mean(0)
    gram = centred @ centred.T
    cosines = nulls.random_walk_cosines(count, 3)
    # eigenvectors of the centred covariance min(s, t), by dense algebra
    exact = centred_gram(np.abs(np.subtract.outer(np.arange(count), np.arange(count))).astype(float))
    values, vectors = np.linalg.eigh(exact)
    for j in range(3):
        assert abs(np.corrcoef(vectors[:, -1 - j], cosines[:, j])[0, 1]) == pytest.approx(1, abs=1e-12)
    assert values[-1] / values.sum() == pytest.approx(nulls.WALK_SHARE, rel=3 / count)
    squared = gram.diagonal()[:, None] + gram.diagonal() - 2 * gram
    vector = statistics(squared)[1]
    assert abs(np.corrcoef(vector, cosines[:, 0])[0, 1]) > 0.999
    # the largest variance of a walk in D dimensions spreads by sqrt(2 / D) = .014 of itself
    assert np.linalg.eigvalsh(gram)[-1] / np.trace(gram) == pytest.approx(nulls.WALK_SHARE, abs=4 * 0.014 * 0.61)
    assert kernels.curve(squared).dimension == pytest.approx(2, abs=0.1)


# -- a planted manifold -----------------------------------------------------------------------------------------------

# 100 for the whole claim: PLANTED_DRAWS=100 pytest tests/test_nulls.py -k planted
PLANTED_DRAWS = int(os.environ.get("PLANTED_DRAWS", "3"))
CLOUD = 200  # points


def torus(random, angles, dim=60):
    """Points (T, D) of the flat 3-torus under random smooth features: sines and cosines of modes k, |k|^2 <= 2, mixed by a Gaussian matrix."""
    modes = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3), axis=-1).reshape(-1, 3)
    size = np.square(modes).sum(1)
    phases = angles @ modes[(size > 0) & (size <= 2)].T
    return np.concatenate([np.cos(phases), np.sin(phases)], axis=1) @ random.standard_normal((2 * phases.shape[1], dim))


def planted_cloud(random):
    return torus(random, random.uniform(0, 2 * math.pi, (CLOUD, 3)))


def planted_path(random):
    return torus(random, random.normal(0, 0.5, (CLOUD, 3)).cumsum(0))


def dimension_off_time(squared, path):
    window = intrinsic.theiler(squared) if path else 0
    return intrinsic.dimensions(squared, names=["mle"], exclude=window)["mle"].value


@pytest.mark.parametrize(("name", "plant"), [("matched-cloud", planted_cloud), ("matched-walk", planted_path)])
def test_a_planted_manifold_of_three_dimensions_is_found(name, plant):
    """At the 1% level, the least p-value that B = 99 draws can give, in at least 95 of 100."""
    found = []
    for i in range(PLANTED_DRAWS):
        random = np.random.default_rng([7, i])
        points = plant(random)
        path = name in nulls.PATHS
        observed = dimension_off_time(squares_of(points), path)
        drawn = [
            dimension_off_time(nulls.draw(name, gram_of(points), np.arange(CLOUD), 60, random), path) for _ in range(99)
        ]
        found.append(nulls.p_value(observed, np.array(drawn), "lower") <= 0.01)
    assert np.mean(found) >= 0.95


# -- bad input --------------------------------------------------------------------------------------------------------


def test_bad_input_is_named():
    random = np.random.default_rng(0)
    with pytest.raises(UsageError, match="matched-walk"):
        nulls.draw("matched-wlak", np.eye(5), np.arange(5), 3, random)
    with pytest.raises(UsageError, match="at least 3 points; got 2"):
        nulls.draw("line", np.eye(2), np.arange(2), 3, random)
    with pytest.raises(UsageError, match="increase"):
        nulls.draw("shuffled", np.eye(3), np.array([0, 2, 2]), 3, random)


@pytest.mark.parametrize("name", NULLS)
def test_constant_and_shortest_paths_give_finite_distances(name):
    random = np.random.default_rng(0)
    assert (nulls.draw(name, np.zeros((6, 6)), np.arange(6), 4, random) == 0).all()
    triangle = np.array([[0.0, 0], [1, 0], [0, 2]])
    squared = nulls.draw(name, gram_of(triangle), np.arange(3), 2, random)
    assert np.isfinite(squared).all()
    assert squared.max() > 0.1
