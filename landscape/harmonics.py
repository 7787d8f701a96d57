"""Which diffusion coordinates are new directions and which repeat earlier ones (harmonics): local linear regression.

Letters: T points, k coordinates.

The eigenfunctions of a long strip begin with cos(x), cos(2x), cos(3x) of its long side: many large eigenvalues and one direction. Coordinate j is a harmonic where it is a smooth function of the
coordinates before it, and that is tested: it is regressed on them locally, each point predicted by the others, and r_j is the error left, in units of the coordinate's own spread.

Source: Dsilva, Talmon, Coifman, Kevrekidis 2018, "Parsimonious representation of nonlinear dynamical systems through manifold learning".
"""

from __future__ import annotations

import numpy as np

from landscape.errors import UsageError

POINTS = (
    1000  # regressed: the cost grows with their square, and 1,000 points tell residuals to about 1 / sqrt(1000) = 3%
)
NEW = 0.5  # a residual from which a coordinate counts as new: a quarter of its variance is no function of the earlier ones. Harmonics of a strip leave 0.2 or less, its width 0.8 or more
# slopes shrink in directions in which neighbours differ by less than a tenth of the bandwidth: such steep slopes carry errors far (without this a residual of a sampled Gaussian was 192)
RIDGE = 1e-2


def residuals(vectors: np.ndarray) -> np.ndarray:
    """Error r (k,) of predicting each coordinate at a point from the earlier ones at the other points; 1 for the first, and about 1 for what is new. NaN for a constant coordinate.

    vectors (T, k): eigenvectors, not scaled by eigenvalues, as in the source. Weights exp(-d^2 / s^2) of the distances d among the earlier coordinates, s a third of their median. A point itself is left out.
    r_j = sqrt(sum_i (psi_ij - prediction_i)^2 / sum_i (psi_ij - mean)^2). More than POINTS rows are thinned evenly.

    Raises UsageError for fewer than 3 points, or points that are not finite.
    """
    total = len(vectors)
    if total < 3 or not np.isfinite(vectors).all():
        raise UsageError(f"local linear regression takes 3 or more finite points; got {total}{'' if total < 3 else ', some of them not finite'}.")  # fmt: skip
    x = vectors[np.linspace(0, total - 1, min(total, POINTS)).round().astype(int)].astype(float)
    found = np.ones(x.shape[1])
    squared = np.zeros((len(x), len(x)))
    for j in range(1, x.shape[1]):
        squared += (x[:, j - 1, None] - x[None, :, j - 1]) ** 2
        error = x[:, j] - _predicted(x[:, :j], x[:, j], squared)
        spread = np.sum((x[:, j] - x[:, j].mean()) ** 2)
        # a constant has rounding for a spread
        constant = spread <= len(x) * (np.finfo(float).eps * np.abs(x[:, j]).max()) ** 2
        found[j] = np.nan if constant else np.sqrt(np.sum(error**2) / spread)
    return found


def _predicted(x: np.ndarray, y: np.ndarray, squared: np.ndarray) -> np.ndarray:
    """y (T,) at each point by linear regression on x (T, m) over the other points, weighted by exp(-d^2 / s^2); squared (T, T) are the d^2."""
    scale = np.median(squared) / 9
    if scale == 0:  # more than half of all pairs coincide
        scale = squared.mean() / 9 or 1.0
    others = squared.copy()
    np.fill_diagonal(others, np.inf)
    # weights count relative to each other: the nearest neighbour of a far point has weight 1, and not what underflows
    weights = np.exp(-(others - others.min(axis=1, keepdims=True)) / scale)
    weights /= weights.sum(axis=1, keepdims=True)
    # all T regressions from weighted moments about each point's own local mean
    mean, target = weights @ x, weights @ y
    size, m = x.shape
    products = (x[:, :, None] * x[:, None, :]).reshape(size, m * m)
    covariance = (weights @ products).reshape(size, m, m) - mean[:, :, None] * mean[:, None, :]
    slope = weights @ (x * y[:, None]) - mean * target[:, None]
    ridge = RIDGE * scale * np.eye(m)
    slope = np.linalg.solve(covariance + ridge, slope[:, :, None])[:, :, 0]
    predicted: np.ndarray = target + np.sum((x - mean) * slope, axis=1)
    return predicted


def unique(residuals: np.ndarray, threshold: float = NEW) -> np.ndarray:
    """Indices, from 0, of the coordinates that are new directions: those whose residual reaches the threshold."""
    return np.flatnonzero(residuals >= threshold)
