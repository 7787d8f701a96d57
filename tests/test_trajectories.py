"""The trajectory store: what is read is what was committed, whatever happened to the writer, and no damage goes unseen.

Letters: D parameters, B buffer entries, T recorded rows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from safetensors.numpy import load_file
from sklearn.decomposition import PCA

from landscape import files, trajectories
from landscape.errors import LandscapeError, UnsafeInputError, UsageError
from landscape.trajectories import CENTRINGS, Centring, Entry, Layout, Row, Trajectory, TrajectoryWriter


def layout_of(dim: int, buffers: int = 0) -> Layout:
    entries = [Entry("w", (dim - 2,), 0, "float32", "parameter"), Entry("b.0", (2, 1), dim - 2, "float32", "parameter")]
    if buffers:
        entries.append(Entry("mean", (buffers,), 0, "float32", "buffer"))
    entries.append(Entry("table", (3,), 0, "int64", "frozen"))
    return Layout(tuple(entries), {"tied": "w"})


def row_of(step: int, dim: int, buffers: int = 0, dtype: str = "float32") -> Row:
    """The row that a step always has: a reader elsewhere can tell it from any other."""
    draw = np.random.default_rng(step)
    numbers = draw.standard_normal(dim + buffers + 2)
    return Row(step, numbers[:dim].astype(dtype), numbers[dim : dim + buffers], float(numbers[-1]), float(numbers[-2]))


def write(
    folder: Path, dim: int, rows: int, *, buffers: int = 0, dtype: str = "float32", segment: int = 3, every: int = 5
) -> list[Row]:
    """A store of `rows` rows in segments of `segment` rows; steps 0, 5, 10, ..."""
    written = [row_of(every * number, dim, buffers, dtype) for number in range(rows)]
    writer = TrajectoryWriter(folder, layout_of(dim, buffers))
    for number, row in enumerate(written, 1):
        writer.append(row)
        if number % segment == 0:
            writer.commit()
    writer.commit()
    return written


def same(read: Row, written: Row) -> bool:
    """Bitwise."""
    arrays = ((read.point, written.point), (read.buffers, written.buffers))
    numbers = (np.array([r.step, r.loss, r.rate]).tobytes() for r in (read, written))
    return all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in arrays) and len(set(numbers)) == 1


def read_everything(folder: Path) -> tuple[np.ndarray, ...]:
    """Every stored number."""
    found = Trajectory.open(folder)
    buffers = [found.row(number).buffers for number in range(len(found))]
    return (found.steps, found.losses, found.rates, found.points(), np.array(buffers))


# -- what goes in comes out -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize("buffers", [0, 4])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_round_trip_is_exact(tmp_path: Path, dtype: str, buffers: int, rows: int) -> None:
    written = write(tmp_path, 7, rows, buffers=buffers, dtype=dtype)
    found = Trajectory.open(tmp_path)
    assert len(found) == rows
    assert found.layout == layout_of(7, buffers)
    assert (found.dim, found.layout.buffer_size) == (7, buffers)
    assert found.points().dtype == found.dtype == np.dtype(dtype)
    for number, row in enumerate(written):
        assert same(found.row(number), row)
        assert same(found.row(number - rows), row)
        assert found.index(row.step) == number
    assert found.steps.dtype == np.int64
    np.testing.assert_array_equal(found.steps, [row.step for row in written])
    np.testing.assert_array_equal(found.losses, [row.loss for row in written])
    np.testing.assert_array_equal(found.rates, [row.rate for row in written])
    assert found.points().tobytes() == np.stack([row.point for row in written]).tobytes()


def test_special_numbers_keep_their_bits(tmp_path: Path) -> None:
    """NaN with its payload, both zeros, infinities, the smallest denormal: nothing is imputed."""
    bits = np.array([0x7FC00001, 0xFFC12345, 0x80000000, 0, 0x7F800000, 0xFF800000, 1], dtype=np.uint32)
    row = Row(0, bits.view(np.float32), np.empty(0), float("nan"), float("inf"))
    writer = TrajectoryWriter(tmp_path, layout_of(7))
    writer.append(row)
    writer.commit()
    assert same(Trajectory.open(tmp_path).row(0), row)


def test_a_store_without_rows_is_empty_and_not_broken(tmp_path: Path) -> None:
    TrajectoryWriter(tmp_path, layout_of(7)).commit()
    found = Trajectory.open(tmp_path)
    assert len(found) == len(found.steps) == len(found.losses) == 0
    assert found.points().shape == (0, 7)
    assert found.gram().shape == (0, 0)
    for ask in (lambda: found.row(0), lambda: found.index(0), lambda: found.principal(1)):
        with pytest.raises(UsageError):
            ask()


def test_a_snapshot_does_not_see_later_rows(tmp_path: Path) -> None:
    write(tmp_path, 7, 2)
    found = Trajectory.open(tmp_path)
    writer = TrajectoryWriter(tmp_path, layout_of(7))
    writer.append(row_of(100, 7))
    assert len(Trajectory.open(tmp_path)) == 2  # not yet committed
    writer.commit()
    assert len(found) == 2
    assert found.points().shape == (2, 7)
    assert len(Trajectory.open(tmp_path)) == 3


def test_a_segment_s_worth_of_rows_asks_for_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trajectories, "SEGMENT_BYTES", 3 * (7 * 4 + 2 * 8))
    writer = TrajectoryWriter(tmp_path, layout_of(7, 2))
    assert [writer.append(row_of(step, 7, 2)) for step in range(3)] == [False, False, True]


def test_no_store_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no trajectory"):
        Trajectory.open(tmp_path)


def test_an_unrecorded_step_names_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path, 7, 8)
    with pytest.raises(UsageError, match=r"step 12 was not recorded. Nearest: 5, 10, 15 \(8 rows from 0 to 35\)"):
        Trajectory.open(tmp_path).index(12)
    for number in (8, -9):
        with pytest.raises(UsageError, match=f"row {number} of a trajectory of 8 rows"):
            Trajectory.open(tmp_path).row(number)


# -- lazy reading -----------------------------------------------------------------------------------------------------

SLICES = [
    slice(None),
    slice(0, 0),
    slice(2, 5),
    slice(-3, None),
    slice(4, 2),
    slice(None, -2),
    slice(-99, 99),
    slice(9, 9),
]


@pytest.mark.parametrize("rows", [(0, None), (0, 0), (1, 2), (2, 7), (4, 99), (7, 3), (-2, None), (0, -3), (-99, 2)])
def test_ranges_of_rows_and_columns_are_numpy_s(tmp_path: Path, rows: tuple[int, int | None]) -> None:
    whole = np.stack([row.point for row in write(tmp_path, 9, 8)])
    found = Trajectory.open(tmp_path)
    for columns in SLICES:
        np.testing.assert_array_equal(found.points(*rows, columns=columns), whole[slice(*rows), columns])


def test_columns_with_gaps_are_refused(tmp_path: Path) -> None:
    write(tmp_path, 9, 2)
    with pytest.raises(UsageError, match="step 2"):
        Trajectory.open(tmp_path).points(columns=slice(None, None, 2))


def test_only_the_bytes_asked_for_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 4000, 6)
    found = Trajectory.open(tmp_path)
    whole = found.points()  # and the checksums are verified, once
    read = 0
    preadv = os.preadv

    def counted(handle: int, views: Any, place: int) -> int:
        nonlocal read
        read += sum(map(len, views))
        return preadv(handle, views, place)

    monkeypatch.setattr(trajectories.os, "preadv", counted)
    np.testing.assert_array_equal(found.points(1, 5, slice(10, 14)), whole[1:5, 10:14])
    assert read == 4 * 4 * 4  # rows, columns, bytes of a float32


def vectors(points: np.ndarray) -> dict[Centring, np.ndarray]:
    """What each way of centring makes of points (n, D)."""
    return {
        "centred": points - points.sum(axis=0) / len(points),
        "uncentred": np.stack([point - points[0] for point in points[1:]]),
        "increments": np.stack([points[t + 1] - points[t] for t in range(len(points) - 1)]),
    }


@pytest.mark.parametrize("width", [1, 3, 10**9])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gram_is_numpy_s_whatever_the_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int, dtype: str
) -> None:
    whole = np.stack([row.point for row in write(tmp_path, 31, 8, dtype=dtype)]).astype(np.float64)
    monkeypatch.setattr(trajectories, "BLOCK_BYTES", width * 8 * 8)
    found = Trajectory.open(tmp_path)
    widths = [block.shape[1] for _, block in found.blocks()]
    assert max(widths) == min(width, 31)
    assert sum(widths) == 31
    for rows in (None, [6, 0, -1, 3]):
        chosen = whole if rows is None else whole[rows]
        for centring, made in vectors(chosen).items():
            # sums of 31 products of order 1: rounding is below 31 * 10 * 2^-53
            np.testing.assert_allclose(found.gram(centring=centring, rows=rows), made @ made.T, rtol=0, atol=1e-13)
    np.testing.assert_array_equal(found.gram(), found.gram(centring="centred", rows=range(8)))


@pytest.mark.parametrize("width", [1, 3, 10**9])
@pytest.mark.parametrize("rows", [None, [6, 7, 0, 1, 2, 3, -1, 3, 5], []])
@pytest.mark.parametrize("params", ["*", "w", "b.*", "tied, b.0"])
def test_blocks_are_the_chosen_rows_and_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, params: str, rows: list[int] | None, width: int
) -> None:
    whole = np.stack([row.point for row in write(tmp_path, 11, 8)])
    chosen = whole if rows is None else whole[np.array(rows, dtype=int)]
    monkeypatch.setattr(trajectories, "BLOCK_BYTES", width * 8 * max(len(chosen), 1))
    wanted = {"w": range(9), "b.*": range(9, 11)}.get(params, range(11))
    seen: list[int] = []
    for columns, block in Trajectory.open(tmp_path).blocks(rows, params):
        assert block.dtype == np.float64
        assert block.shape[1] <= width
        np.testing.assert_array_equal(block, chosen[:, columns])
        seen += range(columns.start, columns.stop)
    assert seen == list(wanted)


def test_of_other_parameters_and_rows_no_byte_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 4000, 6)
    found = Trajectory.open(tmp_path)
    found.points()  # the checksums are verified, once
    calls: list[int] = []
    preadv = os.preadv

    def counted(handle: int, views: Any, place: int) -> int:
        calls.append(sum(map(len, views)))
        return preadv(handle, views, place)

    monkeypatch.setattr(trajectories.os, "preadv", counted)
    for _ in found.blocks(params="b.0"):
        pass
    assert calls == 6 * [2 * 4]  # two columns of float32 of each row
    calls.clear()
    for _ in found.blocks([4, 1, 2, 5]):
        pass
    # rows of one segment that follow one another come in one go
    assert sorted(calls) == [2 * 4 * 4000, 2 * 4 * 4000]


def test_centred_gram_keeps_the_digits_of_close_points(tmp_path: Path) -> None:
    """Points at 1e8 that differ by about 1: uncentred sums of 1e16 would have lost all of it."""
    writer = TrajectoryWriter(tmp_path, layout_of(50))
    rows = [row_of(step, 50, dtype="float64") for step in range(6)]
    for row in rows:
        writer.append(dataclasses.replace(row, point=row.point + 1e8))
    writer.commit()
    points = np.stack([row.point for row in rows])
    centred = points - points.mean(axis=0)
    # each coordinate is known to 1e8 * 2^-53 = 1e-8, times 50 coordinates of order 1
    np.testing.assert_allclose(Trajectory.open(tmp_path).gram(), centred @ centred.T, rtol=0, atol=5e-6)


def test_reading_holds_one_block_and_not_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dim, rows = 200_000, 12
    write(tmp_path, dim, rows)
    monkeypatch.setattr(trajectories, "BLOCK_BYTES", 2**20)
    largest = 0
    empty = np.empty

    def watched(shape: Any, *args: Any, **keywords: Any) -> np.ndarray:
        nonlocal largest
        made = empty(shape, *args, **keywords)
        largest = max(largest, made.nbytes)
        return made

    found = Trajectory.open(tmp_path)
    monkeypatch.setattr(trajectories.np, "empty", watched)
    found.gram()
    assert 0 < largest <= 2**20  # the whole takes 9.6 MB


@pytest.mark.parametrize("rows", [None, [7, 1, 2, -2, 4, 0]])
@pytest.mark.parametrize("centring", CENTRINGS)
@pytest.mark.parametrize("block", [64, 10**9])
def test_principal_directions_are_those_of_the_singular_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, centring: Centring, rows: list[int] | None
) -> None:
    whole = np.stack([row.point for row in write(tmp_path, 40, 8, dtype="float64")])
    monkeypatch.setattr(trajectories, "BLOCK_BYTES", block * 8)
    directions, variances = Trajectory.open(tmp_path).principal(5, centring=centring, rows=rows)
    chosen = whole if rows is None else whole[rows]
    made = vectors(chosen)[centring]
    _, singular, right = np.linalg.svd(made, full_matrices=False)
    np.testing.assert_allclose(variances, singular**2 / len(made), rtol=0, atol=1e-12)
    np.testing.assert_allclose(np.abs(np.sum(directions * right[:5], axis=1)), 1, rtol=0, atol=1e-10)
    np.testing.assert_allclose(directions @ directions.T, np.eye(5), rtol=0, atol=1e-13)
    np.testing.assert_allclose(variances.sum(), np.sum(made**2) / len(made), rtol=1e-12)
    # the last point lies on the positive side, seen from the mean or from the first
    origin = chosen.mean(axis=0) if centring == "centred" else chosen[0]
    assert (directions @ (chosen[-1] - origin) >= 0).all()


def test_centred_directions_are_scikit_learn_s(tmp_path: Path) -> None:
    whole = np.stack([row.point for row in write(tmp_path, 40, 8, dtype="float64")])
    directions, variances = Trajectory.open(tmp_path).principal(3)
    pca = PCA(3, svd_solver="full").fit(whole)
    np.testing.assert_allclose(directions.T @ directions, pca.components_.T @ pca.components_, rtol=0, atol=1e-12)
    np.testing.assert_allclose(variances[:3], pca.explained_variance_ * 7 / 8, rtol=1e-12)  # it divides by n - 1


def test_all_centrings_span_one_affine_hull_at_full_rank_and_others_below(tmp_path: Path) -> None:
    """Through w_0: 8 points span 7 directions, whatever differences of them are taken. Truncated to 4 the spans part."""
    whole = np.stack([row.point for row in write(tmp_path, 40, 8, dtype="float64")])
    found = Trajectory.open(tmp_path)

    def projector(dim: int, centring: Centring) -> np.ndarray:
        directions, _ = found.principal(dim, centring=centring)
        return directions.T @ directions

    spans = {centring: projector(7, centring) for centring in CENTRINGS}
    for span in spans.values():
        away = whole - whole[0]
        np.testing.assert_allclose(away @ span, away, rtol=0, atol=1e-12)
        np.testing.assert_allclose(span, spans["centred"], rtol=0, atol=1e-11)
    few = [projector(4, centring) for centring in CENTRINGS]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(few[one] - few[other]).max() > 0.05


def test_directions_are_orthonormal_down_to_what_hardly_exceeds_rounding(tmp_path: Path) -> None:
    """Deviations that shrink by 30 a direction: the last variances lie near the rounding of a Gram matrix, which alone would leave them skew."""
    writer = TrajectoryWriter(tmp_path, layout_of(40))
    frame = np.linalg.qr(np.random.default_rng(0).standard_normal((40, 6)))[0]
    for step in range(7):
        point = frame @ (30.0 ** -np.arange(6) * np.random.default_rng(step).standard_normal(6))
        writer.append(dataclasses.replace(row_of(step, 40), point=point))
    writer.commit()
    directions, variances = Trajectory.open(tmp_path).principal(5)
    assert variances[4] < 1e-10 * variances[0]
    np.testing.assert_allclose(directions @ directions.T, np.eye(5), rtol=0, atol=1e-13)
    np.testing.assert_allclose(directions @ frame @ frame.T, directions, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dim", [0, -1, 8, 99])
@pytest.mark.parametrize("centring", CENTRINGS)
def test_more_directions_than_the_points_span_are_refused(tmp_path: Path, centring: Centring, dim: int) -> None:
    write(tmp_path, 40, 8)  # 8 points span 7 directions
    found = Trajectory.open(tmp_path)
    message = (
        f"asked for {dim} principal directions; the 8 recorded points span 7. Ask for 1 to 7, or record more steps."
    )
    with pytest.raises(UsageError, match=re.escape(message)):
        found.principal(dim, centring=centring)
    with pytest.raises(UsageError, match="the 3 recorded points span 2"):
        found.principal(3, centring=centring, rows=[0, 4, 7])


def test_rows_and_centrings_that_are_not_there_are_refused(tmp_path: Path) -> None:
    write(tmp_path, 40, 8)
    found = Trajectory.open(tmp_path)
    for rows in ([0, 8], [-9]):
        with pytest.raises(UsageError, match=f"row {rows[-1]} of a trajectory of 8 rows"):
            found.gram(rows=rows)
    with pytest.raises(UsageError, match=r"unknown centring 'centered'. Did you mean 'centred'"):
        found.principal(2, centring="centered")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="the 1 recorded points span 0"):
        found.principal(1, centring="increments", rows=[3])


def test_only_the_rows_asked_for_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 4000, 12)
    found, read, fill = Trajectory.open(tmp_path), 0, trajectories._fill

    def counted(handle: int, out: np.ndarray, position: int) -> None:
        nonlocal read
        read += out.nbytes
        fill(handle, out, position)

    monkeypatch.setattr(trajectories, "_fill", counted)
    found.gram(rows=[0, 5, 10])
    assert read == 3 * 4000 * 4


def test_equal_points_span_nothing(tmp_path: Path) -> None:
    writer = TrajectoryWriter(tmp_path, layout_of(7))
    for step in range(3):
        writer.append(dataclasses.replace(row_of(0, 7), step=step))
    writer.commit()
    with pytest.raises(UsageError, match="span 0"):
        Trajectory.open(tmp_path).principal(1)


def test_points_that_are_not_finite_have_no_directions(tmp_path: Path) -> None:
    write(tmp_path, 7, 4)
    writer = TrajectoryWriter(tmp_path, layout_of(7))
    writer.append(dataclasses.replace(row_of(0, 7), step=99, point=np.full(7, np.nan, dtype=np.float32)))
    writer.commit()
    with pytest.raises(LandscapeError, match="NaN or infinite"):
        Trajectory.open(tmp_path).principal(1)


# -- damage -----------------------------------------------------------------------------------------------------------


def flip(path: Path, bit: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[bit // 8] ^= 1 << bit % 8
    path.write_bytes(raw)


@pytest.mark.parametrize("part", ["header", "payload"])
def test_every_flipped_bit_of_a_segment_is_found(tmp_path: Path, part: str) -> None:
    write(tmp_path, 50, 9, buffers=3)
    path = tmp_path / "segment-000001.safetensors"
    sound = path.read_bytes()
    split = 8 + int.from_bytes(sound[:8], "little")
    low, high = (0, split) if part == "header" else (split, len(sound))
    for bit in random.Random(part).sample(range(8 * low, 8 * high), 60):
        flip(path, bit)
        with pytest.raises(UnsafeInputError, match=r"segment-000001\.safetensors is damaged: its checksum"):
            Trajectory.open(tmp_path).points(4, 5)
        path.write_bytes(sound)
    read_everything(tmp_path)


def test_a_segment_is_verified_once_and_again_when_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by another reader; a file that might still change within the clock's tick is not taken for known."""
    write(tmp_path, 50, 9)
    path = tmp_path / "segment-000001.safetensors"
    summed: list[int] = []
    crc32 = trajectories.zlib.crc32
    monkeypatch.setattr(trajectories, "TICK", 10**15)
    monkeypatch.setattr(trajectories.zlib, "crc32", lambda data, *more: summed.append(len(data)) or crc32(data, *more))
    size = path.stat().st_size

    def reads() -> int:
        summed.clear()
        Trajectory.open(tmp_path).points(4, 5)
        return summed.count(size)

    assert [reads(), reads()] == [2, 2]  # of three of one length: the first, which tells the dtype, and that of the row
    monkeypatch.setattr(trajectories, "TICK", 0)
    time.sleep(0.05)
    assert [reads(), reads()] == [2, 0]
    flip(path, 8 * size - 3)
    with pytest.raises(UnsafeInputError, match="checksum"):
        reads()
    flip(path, 8 * size - 3)
    time.sleep(0.05)
    assert [reads(), reads()] == [1, 0]


@pytest.mark.parametrize("buffers", [0, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_another_library_reads_a_segment(tmp_path: Path, dtype: str, buffers: int) -> None:
    written = write(tmp_path, 7, 5, buffers=buffers, dtype=dtype)[3:]
    path = tmp_path / "segment-000001.safetensors"
    found = load_file(path)
    assert found["points"].dtype == np.dtype(dtype)
    np.testing.assert_array_equal(found["points"], [row.point for row in written])
    np.testing.assert_array_equal(found["buffers"], np.array([row.buffers for row in written]).reshape(2, buffers))
    assert found["steps"].tolist() == [row.step for row in written]
    assert (found["losses"].tolist(), found["rates"].tolist()) == ([r.loss for r in written], [r.rate for r in written])
    length = int.from_bytes(path.read_bytes()[:8], "little")
    assert length % 8 == 0  # so that what is read as it lies is aligned


@pytest.mark.parametrize("name", ["manifest.jsonl", "layout.json"])
def test_every_flipped_bit_beside_the_segments_is_found_or_harmless(tmp_path: Path, name: str) -> None:
    """Every third bit, so some of every byte. Harmless: the last line break (its line then was never committed)."""
    write(tmp_path, 5, 4, buffers=1)
    path = tmp_path / name
    sound, (manifest, layout) = path.read_bytes(), (trajectories._manifest(tmp_path), layout_of(5, 1))
    for bit in range(0, 8 * len(sound), 3):
        flip(path, bit)
        try:
            found = Trajectory.open(tmp_path)
        except UnsafeInputError:
            pass
        else:
            kept = manifest[:-1] if name == "manifest.jsonl" and bit // 8 == len(sound) - 1 else manifest
            assert (found.layout, list(found.segments)) == (layout, kept), f"bit {bit}"
        path.write_bytes(sound)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 100, -8, -1])
def test_a_truncated_segment_is_found(tmp_path: Path, size: int) -> None:
    write(tmp_path, 50, 9)
    path = tmp_path / "segment-000002.safetensors"
    os.truncate(path, size % path.stat().st_size)
    found = Trajectory.open(tmp_path)
    assert found.points(0, 6).shape == (6, 50)  # the sound segments are still read
    with pytest.raises(UnsafeInputError, match=r"segment-000002\.safetensors is damaged"):
        found.points()


def test_a_missing_segment_is_found(tmp_path: Path) -> None:
    write(tmp_path, 50, 9)
    (tmp_path / "segment-000001.safetensors").unlink()
    with pytest.raises(UnsafeInputError, match=r"segment-000001\.safetensors is missing, though the manifest names it"):
        Trajectory.open(tmp_path).points()


def test_segments_that_changed_places_are_found(tmp_path: Path) -> None:
    write(tmp_path, 50, 9)
    first, second = (tmp_path / f"segment-00000{number}.safetensors" for number in range(2))
    first.rename(tmp_path / "x")
    second.rename(first)
    (tmp_path / "x").rename(second)
    with pytest.raises(UnsafeInputError, match="checksum"):
        Trajectory.open(tmp_path).points()


def test_the_layout_of_another_store_is_found(tmp_path: Path) -> None:
    write(tmp_path / "a", 50, 3)
    write(tmp_path / "b", 51, 3)
    (tmp_path / "b" / "layout.json").rename(tmp_path / "a" / "layout.json")
    with pytest.raises(UnsafeInputError, match=r"does not fit the layout\.json"):
        Trajectory.open(tmp_path / "a").points()


def edit_line(folder: Path, number: int, change: Callable[[str], str]) -> None:
    lines = (folder / "manifest.jsonl").read_text().splitlines()
    lines[number] = change(lines[number])
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")


def test_a_torn_last_line_is_ignored_and_written_again(tmp_path: Path) -> None:
    written = write(tmp_path, 7, 9)
    path = tmp_path / "manifest.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    assert len(Trajectory.open(tmp_path)) == 6
    writer = TrajectoryWriter(tmp_path, layout_of(7))
    assert writer.last_step == 25
    for row in written:
        writer.append(row)
    writer.commit()
    found = Trajectory.open(tmp_path)
    assert all(same(found.row(number), row) for number, row in enumerate(written))
    assert len(found) == 9


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda line: line[:-20], "line 2, is damaged"),
        (lambda line: "", "line 2, is damaged"),
        (lambda line: '{"file": "segment-000001.safetensors"}', "line 2, is not a segment"),
        (lambda line: line.replace('"rows": 3', '"rows": "three"'), "line 2, is not a segment"),
        (lambda line: line.replace('"rows": 3', '"rows": 4'), "line 2, is damaged: its checksum"),
        (lambda line: line.replace('"segment', '"../segment'), "line 2, names a file outside the trajectory"),
        (lambda line: line.replace('"segment', '"/etc/segment'), "line 2, names a file outside the trajectory"),
    ],
)
def test_a_damaged_line_before_the_last_is_refused(
    tmp_path: Path, change: Callable[[str], str], complaint: str
) -> None:
    write(tmp_path, 7, 9)
    edit_line(tmp_path, 1, change)
    before = sorted(path.name for path in tmp_path.iterdir())
    for opening in (lambda: Trajectory.open(tmp_path), lambda: TrajectoryWriter(tmp_path, layout_of(7))):
        with pytest.raises(UnsafeInputError, match=complaint):
            opening()
    assert sorted(path.name for path in tmp_path.iterdir()) == before  # the writer removed no segment


def test_a_file_outside_is_refused_also_where_its_checksum_is_right(tmp_path: Path) -> None:
    """A run from a stranger must not make this tool read other files of the user."""
    write(tmp_path / "store", 7, 3)
    (tmp_path / "store" / "segment-000000.safetensors").rename(tmp_path / "secret")
    forged = dataclasses.replace(trajectories._manifest(tmp_path / "store")[0], file="../secret")
    edit_line(tmp_path / "store", 0, lambda _: json.dumps({**dataclasses.asdict(forged), "check": forged.check}))
    with pytest.raises(UnsafeInputError, match=r"outside the trajectory: '\.\./secret'"):
        Trajectory.open(tmp_path / "store")


def test_a_repeated_line_is_refused(tmp_path: Path) -> None:
    write(tmp_path, 7, 9)
    edit_line(tmp_path, 1, lambda line: f"{line}\n{line}")
    with pytest.raises(UnsafeInputError, match="line 3: steps do not increase"):
        Trajectory.open(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"entries": 3, "aliases": {}}', "\u00ff", "[" * 100_000])
def test_a_damaged_layout_is_refused(tmp_path: Path, text: str) -> None:
    write(tmp_path, 7, 3)
    (tmp_path / "layout.json").write_text(text, encoding="latin-1")
    for opening in (lambda: Trajectory.open(tmp_path), lambda: TrajectoryWriter(tmp_path, layout_of(7))):
        with pytest.raises(UnsafeInputError, match=r"layout\.json of the trajectory is damaged"):
            opening()


# -- writing again ----------------------------------------------------------------------------------------------------


def test_replayed_rows_change_nothing(tmp_path: Path) -> None:
    written = write(tmp_path, 7, 8)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    writer = TrajectoryWriter(tmp_path, layout_of(7))
    assert not any(writer.append(row) for row in written)
    writer.commit()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("step", [7, 6, 0])
def test_steps_must_increase(tmp_path: Path, step: int) -> None:
    writer = TrajectoryWriter(tmp_path, layout_of(7))
    writer.append(row_of(7, 7))
    with pytest.raises(UsageError, match=f"steps must increase: got {step} after 7"):
        writer.append(row_of(step, 7))
    writer.commit()
    assert Trajectory.open(tmp_path).steps.tolist() == [7]


@pytest.mark.parametrize(
    "pattern, entries",
    [
        ("w", range(5)),
        ("b.*", range(5, 7)),
        ("tied", range(5)),
        ("*", range(7)),
        ("b.0, t*d", range(7)),
        ("[a-b].?", range(5, 7)),
    ],
)
def test_a_glob_selects_the_entries_of_the_tensors_that_it_names(pattern: str, entries: range) -> None:
    assert np.flatnonzero(layout_of(7, 2).select(pattern)).tolist() == list(entries)


@pytest.mark.parametrize(
    "pattern, message",
    [
        ("b.1", r"no trained parameter matches 'b\.1'\. There are: b\.0, "),
        ("w,mean", "no trained parameter matches 'mean'"),
        ("table", r"matches 'table' \(table is frozen\)"),
        ("W", "matches 'W'"),
        ("", "matches ''"),
    ],
)
def test_a_glob_that_names_nothing_is_refused_with_the_nearest_names(pattern: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        layout_of(7, 2).select(pattern)


def test_only_a_few_names_of_many_are_shown() -> None:
    layout = Layout(tuple(Entry(f"layer{i}.weight", (1,), i, "float32", "parameter") for i in range(100)))
    with pytest.raises(UsageError, match=r"There are: layer42\.weight, .*, and 92 more\."):
        layout.select("layer42.wait")


@pytest.mark.parametrize("other", [layout_of(8), layout_of(7, 1), dataclasses.replace(layout_of(7), aliases={})])
def test_the_trajectory_of_another_model_is_not_written_to(tmp_path: Path, other: Layout) -> None:
    write(tmp_path, 7, 3)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UsageError, match=r"holds the trajectory of another model\. Choose another --out"):
        TrajectoryWriter(tmp_path, other)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("shape", [(6, 2), (8, 2), (7, 1), (7, 0)])
def test_a_row_of_another_size_is_refused(tmp_path: Path, shape: tuple[int, int]) -> None:
    writer = TrajectoryWriter(tmp_path, layout_of(7, 2))
    with pytest.raises(UsageError, match="7 parameters and 2 buffer entries"):
        writer.append(row_of(0, *shape))


def test_an_orphan_segment_and_half_written_files_are_replaced(tmp_path: Path) -> None:
    """What a kill between the rename and the manifest's line leaves, and one before the rename."""
    written = write(tmp_path, 7, 3)
    (tmp_path / "segment-000001.safetensors").write_bytes(b"renamed, never committed")
    (tmp_path / ".segment-000001.safetensors.123.tmp").write_bytes(b"half")
    assert len(Trajectory.open(tmp_path)) == 3
    writer = TrajectoryWriter(tmp_path, layout_of(7))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "layout.json",
        "manifest.jsonl",
        "segment-000000.safetensors",
    ]
    writer.append(row_of(50, 7))
    writer.commit()
    found = Trajectory.open(tmp_path)
    assert all(map(same, map(found.row, range(4)), [*written, row_of(50, 7)]))


# -- failures at every step of a commit -------------------------------------------------------------------------------

# open the temporary file, sync it, rename it, sync the folder; open the manifest, sync it
CALLS = 6
ERRORS = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EROFS, "Read-only file system"),
    KeyboardInterrupt(),
]


class Breaking:
    """Makes the k-th system call of `files` raise, before it is done or after (as a signal would)."""

    def __init__(self, number: int, error: BaseException, after: bool) -> None:
        self._left, self._error, self._after = number, error, after
        self._real: dict[str, Any] = {"fsync": os.fsync, "replace": os.replace}

    def __enter__(self) -> Breaking:
        files.open = self._wrap(open)  # type: ignore[attr-defined]
        for name, call in self._real.items():
            setattr(os, name, self._wrap(call))
        return self

    def __exit__(self, *error: object) -> None:
        del files.open  # type: ignore[attr-defined]
        for name, call in self._real.items():
            setattr(os, name, call)

    def _wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            self._left -= 1
            if self._left == 0 and not self._after:
                raise self._error
            done = call(*args)
            if self._left == 0:
                raise self._error
            return done

        return run


@pytest.mark.parametrize("error", ERRORS, ids=["ENOSPC", "EROFS", "interrupt"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", range(1, CALLS + 1))
def test_a_failed_commit_loses_nothing_and_may_be_repeated(
    tmp_path: Path, number: int, after: bool, error: BaseException
) -> None:
    old = write(tmp_path, 7, 4)
    new = [row_of(step, 7) for step in (100, 101)]
    writer = TrajectoryWriter(tmp_path, layout_of(7))
    for row in new:
        writer.append(row)
    with Breaking(number, error, after), pytest.raises(type(error)):
        writer.commit()
    committed = Trajectory.open(tmp_path)
    assert len(committed) in (4, 6)
    assert all(map(same, map(committed.row, range(len(committed))), [*old, *new]))
    # another writer takes the store up ...
    again = TrajectoryWriter(tmp_path, layout_of(7))
    assert again.last_step in (15, 101)
    # ... or the same goes on, as a run does that commits once more before it ends; what is on disk may be given again
    if again.last_step == 101:
        assert not any(map(writer.append, new))
    writer.append(row_of(102, 7))
    writer.commit()
    found = Trajectory.open(tmp_path)
    assert all(map(same, map(found.row, range(7)), [*old, *new, row_of(102, 7)]))
    assert len(found) == 7


def test_the_test_above_reaches_every_call(tmp_path: Path) -> None:
    writer = TrajectoryWriter(tmp_path, layout_of(7))
    writer.append(row_of(0, 7))
    with Breaking(CALLS + 1, KeyboardInterrupt(), False) as breaking:
        writer.commit()
    assert breaking._left == 1


# -- other processes --------------------------------------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
import numpy as np
from landscape import files
from landscape.trajectories import Entry, Layout, Row, TrajectoryWriter
folder, dim = Path(sys.argv[1]), 20_000
with files.exclusive(folder):
    writer = TrajectoryWriter(folder, Layout((Entry("w", (dim,), 0, "float32", "parameter"),)))
    print("ready", flush=True)
    for step in range(writer.last_step + 1, 100_000):
        point = np.random.default_rng(step).standard_normal(dim).astype(np.float32)
        writer.append(Row(step, point, np.empty(0), float(step), 0.1))
        if step % 7 == 6:
            writer.commit()
"""


def checked_prefix(folder: Path, known: int) -> int:
    """Every committed row from `known` on, bitwise; returns their number."""
    found = Trajectory.open(folder)
    assert found.steps.tolist() == list(range(len(found)))
    for step in range(known, len(found)):
        point = np.random.default_rng(step).standard_normal(20_000).astype(np.float32)
        assert found.points(step, step + 1).tobytes() == point.tobytes(), f"row {step}"
    return len(found)


def test_a_reader_beside_a_writer_sees_a_growing_prefix_and_kills_lose_nothing(tmp_path: Path) -> None:
    """Ten writers, one after the other, each killed with -9 at a random moment while this process reads."""
    draw = random.Random(3)
    known, grew = 0, 0
    for number in range(10):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == b"ready\n"
            end = time.monotonic() + draw.uniform(0.0, 0.15)
            while time.monotonic() < end or (number == 0 and grew < 3):  # the first lives until it was seen at work
                now = checked_prefix(tmp_path, known)
                assert now >= known
                grew += now > known
                known = now
            other.send_signal(signal.SIGKILL)
            assert other.wait() == -signal.SIGKILL
        now = checked_prefix(tmp_path, known)
        assert now >= known
        known = now
    assert grew >= 3
    assert checked_prefix(tmp_path, 0) == known


# -- any order of events ----------------------------------------------------------------------------------------------


class Store(RuleBasedStateMachine):
    """The store against a dict: append, commit, fail, be killed, go on, read."""

    def __init__(self) -> None:
        super().__init__()
        self.committed: dict[int, Row] = {}
        self.pending: dict[int, Row] = {}
        self.step = 0

    @initialize(buffers=st.sampled_from([0, 2]), dtype=st.sampled_from(["float32", "float64"]))
    def start(self, buffers: int, dtype: str) -> None:
        import tempfile

        self.home = tempfile.TemporaryDirectory()
        self.folder = Path(self.home.name) / "trajectory"
        self.buffers, self.dtype = buffers, dtype
        self.writer = TrajectoryWriter(self.folder, layout_of(5, buffers))

    def teardown(self) -> None:
        if hasattr(self, "home"):
            self.home.cleanup()

    @rule(gaps=st.lists(st.integers(1, 9), min_size=1, max_size=4))
    def append(self, gaps: list[int]) -> None:
        for gap in gaps:
            row = row_of(self.step, 5, self.buffers, self.dtype)
            self.writer.append(row)
            self.pending[self.step] = row
            self.step += gap

    @rule()
    def replay(self) -> None:
        for row in self.committed.values():
            assert not self.writer.append(row)

    @rule()
    def commit(self) -> None:
        self.writer.commit()
        self.committed |= self.pending
        self.pending = {}

    @rule(number=st.integers(1, CALLS), after=st.booleans(), error=st.sampled_from(ERRORS), killed=st.booleans())
    def fail(self, number: int, after: bool, error: BaseException, killed: bool) -> None:
        with Breaking(number, error, after), contextlib.suppress(OSError, KeyboardInterrupt):
            self.writer.commit()
        if len(Trajectory.open(self.folder)) > len(self.committed):
            self.committed |= self.pending
            self.pending = {}
        if killed:
            self.reopen(torn=0)

    @rule(torn=st.integers(0, 60))
    def reopen(self, torn: int) -> None:
        """The process dies; perhaps in the middle of its manifest's line."""
        if torn:
            with open(self.folder / "manifest.jsonl", "ab") as file:
                file.write(b'{"file": "segment-999999.safetensors", "rows": 3, "first": 12, "la'[:torn])
            (self.folder / "segment-999999.safetensors").write_bytes(b"x" * torn)
        self.writer = TrajectoryWriter(self.folder, layout_of(5, self.buffers))
        self.pending = {}
        self.step = max(self.committed, default=-1) + 1
        assert self.writer.last_step == self.step - 1

    @invariant()
    def what_is_read_is_what_was_committed(self) -> None:
        if not hasattr(self, "folder"):
            return
        found = Trajectory.open(self.folder)
        assert found.steps.tolist() == list(self.committed)
        assert all(map(same, map(found.row, range(len(found))), self.committed.values()))


TestStore = Store.TestCase
TestStore.settings = settings(
    max_examples=40, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
