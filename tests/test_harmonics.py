"""New directions and harmonics: eigenfunctions known in closed form, a swiss roll by dense algebra, and each regression by least squares one at a time."""

from __future__ import annotations

import numpy as np
import pytest

from landscape import harmonics
from landscape.errors import UsageError


def strip(points: int, ratio: float, modes: int, seed: int = 0) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Neumann eigenfunctions cos(m pi x) cos(n pi y) of a strip, its length `ratio` times its width, at random points, by ascending eigenvalue; and their (m, n)."""
    x, y = np.random.default_rng(seed).random((2, points))
    pairs = sorted(((m, n) for m in range(20) for n in range(20)), key=lambda p: (p[0] / ratio) ** 2 + p[1] ** 2)
    chosen = pairs[1 : modes + 1]
    return np.stack([np.cos(m * np.pi * x) * np.cos(n * np.pi * y) for m, n in chosen], axis=1), chosen


@pytest.mark.parametrize("ratio", [1.3, 2.6, 3.4])
def test_the_new_directions_of_a_strip_are_its_length_and_its_width(ratio: float) -> None:
    vectors, modes = strip(1000, ratio, 6)
    found = harmonics.unique(harmonics.residuals(vectors))
    assert found.tolist() == [modes.index((1, 0)), modes.index((0, 1))]


def test_a_circle_has_two() -> None:
    angle = np.linspace(0, 2 * np.pi, 300, endpoint=False)
    vectors = np.stack([f(j * angle) for j in (1, 2, 3) for f in (np.cos, np.sin)], axis=1)
    residuals = harmonics.residuals(vectors)
    assert harmonics.unique(residuals).tolist() == [0, 1]
    # to the regression the sine is +- the same at each cosine: its mean, and all its variance is left
    assert residuals[1] == pytest.approx(1, abs=0.05)
    assert residuals[2:].max() < 0.1


def test_of_a_swiss_roll_only_its_length_and_its_width_stand_out() -> None:
    random = np.random.default_rng(4)
    turns = np.linspace(1.5 * np.pi, 4.5 * np.pi, 20001)
    arc = np.concatenate([[0], np.cumsum(np.hypot(1, (turns[1:] + turns[:-1]) / 2) * np.diff(turns))])
    t, width = np.interp(random.random(900) * arc[-1], arc, turns), arc[-1] / 7.5
    height = width * random.random(900)
    points = np.stack([t * np.cos(t), height, t * np.sin(t)], axis=1)
    # the diffusion map at eps = 1 and alpha = 1, by dense algebra
    kernel = np.exp(-np.sum((points[:, None] - points) ** 2, axis=2) / 4)
    kernel /= np.outer(kernel.sum(0), kernel.sum(0))
    root = np.sqrt(kernel.sum(0))
    vectors = (np.linalg.eigh(kernel / np.outer(root, root))[1] / root[:, None])[:, -2:-11:-1]
    residuals = harmonics.residuals(vectors)
    # one mode of the width is expected where (1 / 7.5)^2 j^2 reaches 1: the 7th or 8th
    new = harmonics.unique(residuals)
    assert new.tolist() == [0, 6]
    modes = np.cos(np.pi * height / width)
    correlations = [abs(np.corrcoef(modes, psi)[0, 1]) for psi in vectors.T]
    assert int(np.argmax(correlations)) in (6, 7)
    assert np.delete(residuals, new).max() < 0.2


def test_each_prediction_is_weighted_least_squares_without_the_point_itself() -> None:
    x = np.random.default_rng(0).standard_normal((40, 4))
    x[:, 3] += x[:, 0] ** 2
    expected = [1.0]
    for j in range(1, 4):
        known, y = x[:, :j], x[:, j]
        squared = np.sum((known[:, None] - known) ** 2, axis=2)
        scale = (np.sqrt(np.median(squared)) / 3) ** 2
        errors = []
        for i in range(40):
            others = np.delete(np.arange(40), i)
            weights = np.exp(-squared[i, others] / scale)
            weights /= weights.sum()
            mean = weights @ known[others]
            # slopes are shrunk by ridge rows, the intercept at the local mean is free
            design = np.vstack([np.sqrt(weights)[:, None] * np.c_[np.ones(39), known[others] - mean], np.c_[np.zeros(j), np.sqrt(harmonics.RIDGE * scale) * np.eye(j)]])  # fmt: skip
            target = np.concatenate([np.sqrt(weights) * y[others], np.zeros(j)])
            fitted = np.linalg.lstsq(design, target, rcond=None)[0]
            errors.append(y[i] - np.append(1, known[i] - mean) @ fitted)
        expected.append(float(np.sqrt(np.sum(np.square(errors)) / np.sum((y - y.mean()) ** 2))))
    # normal equations square the condition number, at most 1 / RIDGE here: 1e2 * eps * amplification of far points, far below 1e-9
    np.testing.assert_allclose(harmonics.residuals(x), expected, rtol=1e-9)


def test_many_points_are_thinned_evenly() -> None:
    vectors, _ = strip(harmonics.POINTS * 2 - 1, 2.6, 3)
    np.testing.assert_array_equal(harmonics.residuals(vectors), harmonics.residuals(vectors[::2]))


def test_degenerate_coordinates() -> None:
    wave = np.cos(np.linspace(0, np.pi, 50))
    found = harmonics.residuals(np.stack([wave, np.full(50, 0.3), wave], axis=1))
    assert found[0] == 1
    assert np.isnan(found[1])
    assert found[2] < 0.1  # a copy is no new direction
    repeated = np.repeat(np.eye(3), [40, 1, 1], axis=0)  # most points coincide
    assert np.isfinite(harmonics.residuals(repeated[:, :2])).all()
    assert harmonics.unique(found).tolist() == [0]


@pytest.mark.parametrize("vectors", [np.ones((2, 3)), np.array([[0.0, 1], [1, np.nan], [2, 3]])])
def test_too_few_or_not_finite(vectors: np.ndarray) -> None:
    with pytest.raises(UsageError, match="3 or more finite points"):
        harmonics.residuals(vectors)
