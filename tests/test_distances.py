"""Distances of trajectories against plain differences, exact fractions, other orders of the same work, and the laws that distances obey.

Letters: T points, D dimension, k dimension of what an approximation keeps.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import tracemalloc
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from problems import EPS
from sklearn.decomposition import PCA

from landscape import distances, trajectories
from landscape.distances import Distances
from landscape.errors import LandscapeError, UsageError
from landscape.trajectories import Entry, Layout, Row, Trajectory, TrajectoryWriter

# what is promised of any squared distance, relatively
ACCURACY = distances.ACCURACY


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def walk(count: int, dim: int, seed: int = 0) -> np.ndarray:
    return np.cumsum(draw(count, dim, seed=seed), axis=0)


def store(folder: Path, points: np.ndarray, segment: int = 4, first: int = 0) -> Trajectory:
    """Points (T, D) as a run records them, in three tensors, at the steps 0, 3, 6, ...; rows before `first` are there already."""
    dim = points.shape[1]
    cuts = (0, dim // 2, dim - 2, dim)
    names = ("fc1.weight", "fc1.bias", "head")
    entries = [
        Entry(name, (b - a,), a, str(points.dtype), "parameter")
        for name, a, b in zip(names, cuts[:-1], cuts[1:], strict=True)
    ]
    writer = TrajectoryWriter(folder, Layout(tuple(entries)))
    for number, point in enumerate(points[first:], first):
        writer.append(Row(3 * number, point, np.empty(0), 1 / (number + 1), 0.1))
        if number % segment == segment - 1:
            writer.commit()
    writer.commit()
    return Trajectory.open(folder)


def plain(points: np.ndarray) -> np.ndarray:
    """Squared distances (T, T): differences, squared, and summed without rounding. Relative error at most 2 EPS: of a difference, twice, its square and the sum."""
    wide = points.astype(np.float64)
    made = np.zeros((len(wide), len(wide)))
    for i, j in itertools.combinations(range(len(wide)), 2):
        made[i, j] = made[j, i] = math.fsum(((wide[i] - wide[j]) ** 2).tolist())
    return made


def relative(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Relative errors of the distances (pairs,), of squared ones (T, T)."""
    pairs = np.triu_indices(len(truth), 1)
    one, other = np.sqrt(found[pairs]), np.sqrt(truth[pairs])
    return np.abs(one - other) / other


# -- exact distances --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("block", [64, 10**9])
def test_distances_are_plain_differences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, dtype: str
) -> None:
    monkeypatch.setattr(trajectories, "BLOCK_BYTES", block * 8)
    points = walk(13, 37).astype(dtype)
    found = distances.of(store(tmp_path, points))
    # d^2 is known to 2 SUMS EPS of the norms, 13 + 13 squared steps at most against one: 5e-14
    np.testing.assert_allclose(found.squared, plain(points), rtol=1e-13, atol=0)
    np.testing.assert_array_equal(found.squared, found.squared.T)
    assert not found.squared.diagonal().any()
    centred = points.astype(float) - points.astype(float).mean(axis=0)
    np.testing.assert_allclose(found.gram, centred @ centred.T, rtol=0, atol=1e-13 * np.sum(centred**2))
    np.testing.assert_array_equal(found.steps, 3 * np.arange(13))
    np.testing.assert_array_equal(found.losses, 1 / np.arange(1, 14))
    np.testing.assert_array_equal(found.rows, np.arange(13))
    assert (len(found), found.dim, found.space, found.approximation, found.masked) == (13, 37, "parameters", "exact", 0)
    assert found.check["largest"] < 1e-13
    assert found.check["pairs"] > 30


def test_the_table_of_precisions() -> None:
    """Iterates of norm 22 that lie 6e-6 to 4e-3 apart: uncentred inner products in float32 hold nothing, in float64 5e-7; centred ones 3.6e-7 in float32.
    Ours are as good as the stored numbers. (200 iterates of 2e5 parameters in the notes; 40 of 1e4 here.)
    """
    count, dim = 40, 10_000
    start = 22 / math.sqrt(dim) * draw(dim, seed=1)
    points = start + walk(count, dim) * 6e-6 / math.sqrt(dim)
    truth = plain(points)
    assert np.sqrt(truth[np.triu_indices(count, 1)]).min() < 7e-6

    def naive(made: np.ndarray) -> np.ndarray:
        inner = made @ made.T
        norms = inner.diagonal()
        return np.maximum(norms + norms[:, None] - 2 * inner, 0).astype(float)

    centred = points - points.mean(axis=0)
    single = naive(points.astype(np.float32))
    assert np.median(relative(single, truth)) > 0.5
    assert np.mean(single[np.triu_indices(count, 1)] == 0) > 0.3
    assert 1e-9 < np.median(relative(naive(points), truth)) < 1e-3
    assert 1e-9 < np.median(relative(naive(centred.astype(np.float32)), truth)) < 1e-5
    found = distances.of_points(points)
    # the points themselves are the truth. d^2 is known to 2 SUMS EPS of the norms: a few of d^2 in the median, and 40 + 40 squared steps against one for neighbours
    assert np.median(relative(found.squared, truth)) < 1e-14
    assert relative(found.squared, truth).max() < 1e-13
    # by centring, and not since every pair was measured twice
    assert found.check["refined"] == 0


@pytest.mark.parametrize(("count", "dim"), [(3, 300_000), (12, 30_000)])
def test_the_rounding_of_sums_is_below_what_is_assumed(count: int, dim: int) -> None:
    """Pairs are measured again where 2 SUMS EPS (|x|^2 + |y|^2) is too much: this must bound the error found. Positive entries, so that rounding drifts most."""
    points = np.abs(draw(count, dim))
    found = distances.of_points(points)
    norms = found.gram.diagonal()
    wrong = np.abs(found.squared - plain(points))
    assert (wrong <= 2 * distances.SUMS * EPS * (norms + norms[:, None])).all()


def clusters(scales: tuple[float, ...], each: int = 5, dim: int = 40) -> np.ndarray:
    """Around each point of a cluster lies a smaller one: T = each^len(scales)."""
    made = np.zeros((1, dim))
    for number, scale in enumerate(scales):
        made = (made[:, None] + scale * draw(len(made), each, dim, seed=number)).reshape(-1, dim)
    return made


@pytest.mark.parametrize("scales", [(1.0, 1e-7), (1e3, 1e-4, 1e-11)])
def test_close_pairs_keep_their_digits(tmp_path: Path, scales: tuple[float, ...]) -> None:
    """Inner products alone hold nothing of distances below 1e-8 of the whole."""
    points = clusters(scales)
    for found in (distances.of_points(points), distances.of(store(tmp_path, points))):
        truth = plain(points)
        assert relative(found.squared, truth).max() < ACCURACY
        assert found.check["refined"] >= len(points) * 4 // 2
        assert found.check["largest"] < ACCURACY
    centred = points - points.mean(axis=0)
    inner = centred @ centred.T
    naive = np.maximum(inner.diagonal() + inner.diagonal()[:, None] - 2 * inner, 0)
    assert relative(naive, truth).max() > 1e-3


def test_equal_points_are_at_zero() -> None:
    points = draw(30, 50)
    points[10:20] = points[3]
    points[25] = points[26]
    found = distances.of_points(points)
    equal = plain(points) == 0
    np.testing.assert_array_equal(found.squared == 0, equal)
    assert found.check["largest"] < 1e-13


def test_an_outlier_spoils_nothing() -> None:
    points = np.vstack([draw(20, 30), np.full((1, 30), 1e30)])
    found = distances.of_points(points)
    assert relative(found.squared, plain(points)).max() < 1e-13


@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_constant_trajectory_and_one_point(tmp_path: Path, count: int) -> None:
    found = distances.of(store(tmp_path, np.full((count, 9), 0.1)))
    assert not found.squared.any()
    assert np.abs(found.gram).max() < 1e-30
    assert found.check["largest"] == 0
    assert len(found) == count


# numbers whose differences and squares are far apart in size: a few units, a few 2^-20 of one, a few 2^-40
numbers = st.builds(
    lambda a, b, c: a + b * 2.0**-20 + c * 2.0**-40, st.integers(-3, 3), st.integers(-1, 1), st.integers(-1, 1)
)
tables = arrays.arrays(np.float64, st.tuples(st.integers(1, 9), st.integers(1, 5)), elements=numbers)


@given(tables, st.floats(-1e3, 1e3, allow_nan=False))
def test_distances_are_exact_fractions(points: np.ndarray, shift: float) -> None:
    """For any points, also moved: symmetric, zero where and only where points are equal, and within ACCURACY of the exact value."""
    points = points + shift
    found = distances.of_points(points)
    for i, j in itertools.product(range(len(points)), repeat=2):
        exact = sum(
            (Fraction(a) - Fraction(b)) ** 2 for a, b in zip(points[i].tolist(), points[j].tolist(), strict=True)
        )
        assert abs(Fraction(float(found.squared[i, j])) - exact) <= Fraction(ACCURACY) * exact
    np.testing.assert_array_equal(found.squared, found.squared.T)


@given(tables, st.randoms(use_true_random=False))
def test_the_order_of_points_and_a_turn_of_space_change_nothing(points: np.ndarray, random: Any) -> None:
    order = list(range(len(points)))
    random.shuffle(order)
    one, other = distances.of_points(points).squared, distances.of_points(points[order][:, ::-1]).squared
    # each is within ACCURACY of the truth
    np.testing.assert_allclose(other, one[np.ix_(order, order)], rtol=3 * ACCURACY, atol=0)


# -- parts of the parameters, parts of the rows ------------------------------------------------------------------------


def test_squared_distances_of_the_layers_add_up(tmp_path: Path) -> None:
    points = walk(9, 40)
    found = store(tmp_path, points)
    whole = distances.of(found)
    parts = [distances.of(found, params=glob) for glob in ("fc1.weight", "fc1.bias", "head")]
    np.testing.assert_allclose(sum(part.squared for part in parts), whole.squared, rtol=1e-13, atol=0)
    np.testing.assert_allclose(sum(part.gram for part in parts), whole.gram, rtol=0, atol=1e-12 * np.trace(whole.gram))
    outer = distances.of(found, params="fc1.weight, head")
    np.testing.assert_allclose(outer.squared, plain(np.delete(points, range(20, 38), axis=1)), rtol=1e-12, atol=0)
    assert (outer.space, outer.dim, outer.params) == ("parameters fc1.weight, head", 22, "fc1.weight, head")
    with pytest.raises(UsageError, match="no trained parameter matches 'fc2"):
        distances.of(found, params="fc2.*")


def test_chosen_rows(tmp_path: Path) -> None:
    points = walk(9, 40)
    found = distances.of(store(tmp_path, points), rows=[-1, 0, 5, 5])
    np.testing.assert_allclose(found.squared, plain(points[[8, 0, 5, 5]]), rtol=1e-13, atol=0)
    np.testing.assert_array_equal(found.steps, [24, 0, 15, 15])
    with pytest.raises(UsageError, match="row 9 of a trajectory of 9 rows"):
        distances.of(Trajectory.open(tmp_path), rows=[9])


def test_select_is_the_distances_of_these_points() -> None:
    points = walk(12, 30)
    kept = [7, 2, 3, 11]
    found = distances.of_points(points, steps=10 * np.arange(12), losses=np.arange(12.0)).select(kept)
    np.testing.assert_array_equal(found.steps, [70, 20, 30, 110])
    np.testing.assert_array_equal(found.losses, kept)
    np.testing.assert_allclose(found.squared, plain(points[kept]), rtol=1e-12, atol=0)
    centred = points[kept] - points[kept].mean(axis=0)
    np.testing.assert_allclose(found.gram, centred @ centred.T, rtol=0, atol=1e-12 * np.sum(centred**2))
    bare = dataclasses.replace(found, inner=None)  # from the squared distances alone
    np.testing.assert_allclose(bare.gram, centred @ centred.T, rtol=0, atol=1e-12 * np.sum(centred**2))
    assert bare.select([0]).gram == 0


# -- rows that are not finite ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [[0], [12], [0, 5, 6, 12]])
@pytest.mark.parametrize("block", [64, 10**9])
def test_rows_with_nan_or_infinity_are_left_out_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, bad: list[int]
) -> None:
    monkeypatch.setattr(trajectories, "BLOCK_BYTES", block * 8)
    points = walk(13, 37)
    for number, row in enumerate(bad):
        points[row, 3 + 9 * number] = (np.nan, np.inf, -np.inf, np.nan)[number]
    good = np.delete(np.arange(13), bad)
    trajectory = store(tmp_path, points)
    for approximation in ("exact", "principal:40"):
        found = distances.of(trajectory, approximation=approximation)
        np.testing.assert_array_equal(found.rows, good)
        np.testing.assert_array_equal(found.steps, 3 * good)
        assert found.masked == len(bad)
        np.testing.assert_allclose(found.squared, plain(points[good]), rtol=1e-12, atol=0)
    found = distances.of(trajectory, approximation="random:64")
    np.testing.assert_array_equal(found.rows, good)
    assert found.masked == len(bad)
    assert 0 < found.check["largest"] < 1


def test_no_finite_point_and_points_beyond_float64(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no point to measure"):
        distances.of_points(np.full((3, 2), np.nan))
    with pytest.raises(UsageError, match="no point to measure"):
        distances.of_points(np.empty((0, 2)))
    with pytest.raises(UsageError, match="no point to measure"):
        distances.of(store(tmp_path, np.empty((0, 9))))
    with pytest.raises(LandscapeError, match="overflow float64"):
        distances.of_points(np.array([[1e200], [-1e200], [0.0]]))


@pytest.mark.parametrize("text", ["random", "random:0", "random:-3", "random:1.5", "pca:3", "exact:2", ""])
def test_unknown_approximations_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="unknown approximation"):
        distances.of_points(draw(3, 3), approximation=text)


def test_tables_of_a_wrong_shape_are_refused() -> None:
    with pytest.raises(UsageError, match=r"\(T, D\); got the shape \(5,\)"):
        distances.of_points(draw(5))
    with pytest.raises(UsageError, match="as many losses; got 4"):
        distances.of_points(draw(5, 2), losses=np.zeros(4))


# -- appended rows -----------------------------------------------------------------------------------------------------


def same(one: Distances, other: Distances, rtol: float) -> None:
    np.testing.assert_allclose(one.squared, other.squared, rtol=rtol, atol=0)
    np.testing.assert_allclose(one.gram, other.gram, rtol=0, atol=rtol * np.trace(other.gram))
    for name in ("steps", "losses", "rows"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    for name in ("dim", "space", "approximation", "masked", "recorded", "params"):
        assert getattr(one, name) == getattr(other, name)


@pytest.mark.parametrize("params", ["*", "fc1.*"])
@pytest.mark.parametrize("cut", [1, 4, 11, 12])
def test_appended_rows_are_measured_as_all_at_once(tmp_path: Path, cut: int, params: str) -> None:
    points = walk(12, 40)
    known = distances.of(store(tmp_path, points[:cut]), params=params)
    grown = store(tmp_path, points, first=cut)
    found = distances.extended(known, grown)
    same(found, distances.of(grown, params=params), 1e-12)
    np.testing.assert_array_equal(found.squared[:cut, :cut], known.squared)
    assert found.check["largest"] < 1e-13


def test_what_was_known_is_not_measured_again(tmp_path: Path) -> None:
    points = walk(12, 40)
    known = distances.of(store(tmp_path, points[:8]))
    marked = dataclasses.replace(known, squared=2 * known.squared)
    found = distances.extended(marked, store(tmp_path, points, first=8))
    np.testing.assert_array_equal(found.squared[:8, :8], 2 * known.squared)
    truth = plain(points)
    np.testing.assert_allclose(found.squared[8:], truth[8:], rtol=1e-12, atol=0)


def test_appended_rows_may_be_close_or_not_finite(tmp_path: Path) -> None:
    """New points a billionth from old ones, equal ones, NaN at the end of the old ones and among the new."""
    points = walk(16, 40)
    points[9] = points[2] + 1e-9 * draw(40, seed=5)
    points[12] = points[9]
    points[7] = points[13] = np.nan
    known = distances.of(store(tmp_path, points[:8]))
    assert known.masked == 1
    grown = store(tmp_path, points, first=8)
    found = distances.extended(known, grown)
    same(found, distances.of(grown), ACCURACY)
    good = np.delete(np.arange(16), [7, 13])
    truth = plain(points[good])
    np.testing.assert_allclose(found.squared, truth, rtol=2 * ACCURACY, atol=0)
    assert found.squared[8, 11] == 0  # rows 9 and 12, one row left out
    assert found.masked == 2


def test_only_the_same_trajectory_is_extended(tmp_path: Path) -> None:
    points = walk(8, 40)
    known = distances.of(store(tmp_path / "a", points[:5]))
    others = [
        store(tmp_path / "b", points[:3]),
        dataclasses.replace(store(tmp_path / "c", points)),
    ]
    others[1]._small["losses"][2] += 1
    for other in others:
        with pytest.raises(UsageError, match="is not the trajectory"):
            distances.extended(known, other)
    with pytest.raises(UsageError, match="only exact distances are extended"):
        approximate = distances.of(Trajectory.open(tmp_path / "a"), approximation="random:8")
        distances.extended(approximate, store(tmp_path / "a", points, first=5))


# -- approximations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [64, 256, 1024])
def test_the_table_of_random_projections(k: int) -> None:
    """|R x|^2 / |x|^2 has mean 1 and variance 2/k (1 - sum x_i^4), so a distance is off by 1 / sqrt(2 k): half of them by more than 0.6745 of that: 6.0, 3.0, 1.5 %
    (7.6, 3.2, 1.2 % in one draw of the notes).

    n differences of disjoint pairs of independent points are nearly orthogonal, their errors nearly independent: the median of n absolute values of normal numbers has the
    standard error 0.787 sigma / sqrt(n).
    """
    n, dim = 200, 4000
    points = draw(2 * n, dim)
    found = distances.of_points(points, approximation=f"random:{k}")
    exact = np.sqrt(np.sum((points[:n] - points[n:]) ** 2, axis=1))
    errors = np.abs(np.sqrt(found.squared[np.arange(n), n + np.arange(n)]) / exact - 1)
    sigma = 1 / math.sqrt(2 * k)
    assert abs(np.median(errors) - 0.6745 * sigma) < 4 * 0.787 * sigma / math.sqrt(n)
    assert f"by about {sigma:.1%}" in found.approximation
    assert found.check["median"] < 2 * sigma


def test_a_projection_does_not_depend_on_the_blocks_but_on_the_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = walk(9, 101)
    trajectory = store(tmp_path, points)
    ask = {"approximation": "random:70"}
    whole = distances.of(trajectory, **ask).squared
    monkeypatch.setattr(trajectories, "BLOCK_BYTES", 9 * 8 * 17)
    monkeypatch.setattr(distances, "BLOCK_BYTES", 70 * 8 * 5)
    # another order of the same sums
    np.testing.assert_allclose(distances.of(trajectory, **ask).squared, whole, rtol=1e-12, atol=0)
    np.testing.assert_allclose(distances.of_points(points, **ask).squared, whole, rtol=1e-12, atol=0)
    other = distances.of(trajectory, **ask, seed=1).squared
    assert np.abs(other[0, 1:] / whole[0, 1:] - 1).min() > 1e-6


def test_principal_components_first(tmp_path: Path) -> None:
    """Of points in k components: the distances of the coordinates that scikit-learn finds, and its share of the variance is discarded."""
    points = walk(15, 40)
    trajectory = store(tmp_path, points)
    found = distances.of(trajectory, approximation="principal:4")
    pca = PCA(4, svd_solver="full").fit(points)
    truth = plain(pca.transform(points))
    np.testing.assert_allclose(found.squared, truth, rtol=1e-9, atol=1e-12 * truth.max())
    share = 1 - pca.explained_variance_ratio_.sum()
    assert f"4 principal components: {share:.2g} of the variance" in found.approximation
    exact = distances.of(trajectory).squared
    assert (found.squared <= exact * (1 + 1e-12)).all()
    errors = relative(found.squared, exact)
    assert errors.min() <= found.check["median"] <= found.check["largest"] <= errors.max() * (1 + 1e-12)
    whole = distances.of(trajectory, approximation="principal:14")  # 15 points span no more
    np.testing.assert_array_equal(whole.squared, exact)
    assert "wholly" in whole.approximation


def test_the_check_finds_the_largest_error() -> None:
    """Three points have three pairs, and all are compared."""
    points = walk(3, 30)
    found = distances.of_points(points, approximation="random:4")
    errors = relative(found.squared, plain(points))
    assert found.check["pairs"] == 3
    np.testing.assert_allclose(found.check["largest"], errors.max(), rtol=1e-9)
    assert errors.max() > 0.01


# -- memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("approximation", ["exact", "random:64"])
def test_neither_the_points_nor_the_projection_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, approximation: str
) -> None:
    """16 points of 100,000: 6.4 MB as stored, 12.8 in float64; the projection takes 51. Blocks of a quarter MB: a few of them at a time."""
    trajectory = store(tmp_path, draw(16, 100_000).astype(np.float32), segment=16)
    monkeypatch.setattr(trajectories, "BLOCK_BYTES", 2**18)
    monkeypatch.setattr(distances, "BLOCK_BYTES", 2**18)
    distances.of(trajectory, rows=[0, 1], approximation=approximation)  # checksums are verified, torch is imported
    tracemalloc.start()
    try:
        distances.of(trajectory, approximation=approximation)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 2**18 < peak < 8 * 2**18
