"""What descent did, on disk: every recorded point of a run, exact, whatever happened to the process that wrote it.

Letters: D parameters, B buffer entries, T recorded rows.

A store is a folder of immutable safetensors segments of whole rows and an append-only manifest:

    layout.json          name, shape, offset, dtype, kind of every tensor of the model
    segment-000000.safetensors   points (r, D), buffers (r, B) float64, steps (r,), losses (r,), rates (r,)
    manifest.jsonl       one line a segment: file, rows, first and last step, crc32 of the file, checksum of the line

Commit = write the segment beside, fsync, rename, fsync the folder, append one manifest line, fsync. Readers trust the manifest only: a torn last line and
a segment without a line were never committed. The checksum of a segment is verified when it is first read. T x D is never held in memory.
Reads are plain reads and not memory maps, so that the memory of a reader is what it asked for.

This file needs no torch: `landscape show` opens a run in a fraction of a second.
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import json
import math
import os
import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from landscape import files
from landscape.errors import LandscapeError, UnsafeInputError, UsageError, unknown

Centring = Literal["centred", "uncentred", "increments"]
CENTRINGS: tuple[Centring, ...] = ("centred", "uncentred", "increments")

# a segment holds about this much: large enough for sequential speed, small enough to write in a fraction of a second
SEGMENT_BYTES = 64 * 2**20
# columns are streamed in blocks of about this much float64
BLOCK_BYTES = 128 * 2**20
# nanoseconds in which two writes may leave one modification time: the coarsest clock of Linux ticks 100 times a second
TICK = 20_000_000
# names shown where none matches: a network has hundreds
SHOWN = 8


@dataclass(frozen=True)
class Entry:
    """One tensor of a model: where it lies in the flat vector (parameters) or in the flat buffer row (buffers); frozen ones lie in neither."""

    name: str
    shape: tuple[int, ...]
    offset: int
    dtype: str
    kind: Literal["parameter", "buffer", "frozen"]

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """All tensors of a model in the order of its flat vector; names that share one tensor (tied weights) stand once, the others in `aliases`."""

    entries: tuple[Entry, ...]
    aliases: dict[str, str] = dataclasses.field(default_factory=dict)  # alias -> name that carries the tensor

    @cached_property
    def _kinds(self) -> dict[str, tuple[Entry, ...]]:
        kinds = ("parameter", "buffer", "frozen")
        return {kind: tuple(entry for entry in self.entries if entry.kind == kind) for kind in kinds}

    def of(self, kind: str) -> tuple[Entry, ...]:
        """The entries of one kind, by offset."""
        return self._kinds[kind]

    @property
    def dim(self) -> int:
        """D, the number of trained parameters."""
        return sum(entry.size for entry in self.of("parameter"))

    @property
    def buffer_size(self) -> int:
        """B."""
        return sum(entry.size for entry in self.of("buffer"))

    def select(self, pattern: str) -> np.ndarray:
        """Which entries (D,) of the flat vector belong to the trained parameters whose names match: globs, several separated by commas.

        Any name of a tied weight will do. Raises UsageError, with the nearest names, where a glob matches none.
        """
        entries = {entry.name: entry for entry in self.of("parameter")}
        names = {
            **entries,
            **{alias: entries[name] for alias, name in self.aliases.items() if name in entries},
        }
        mask = np.zeros(self.dim, dtype=bool)
        for glob in (part.strip() for part in pattern.split(",")):
            found = [entry for name, entry in names.items() if fnmatch.fnmatchcase(name, glob)]
            if not found:
                near = sorted(names, key=lambda name: -difflib.SequenceMatcher(None, glob, name).ratio())[:SHOWN]
                more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
                frozen = [entry.name for entry in self.of("frozen") if fnmatch.fnmatchcase(entry.name, glob)]
                why = f" ({frozen[0]} is frozen)" if frozen else ""
                raise UsageError(
                    f"no trained parameter matches {glob!r}{why}. There are: {', '.join(near)}{more}. Give names or globs, separated by commas, such as '*.weight'."
                )
            for entry in found:
                mask[entry.offset : entry.offset + entry.size] = True
        return mask

    def to_json(self) -> str:
        """The layout as JSON text."""
        return json.dumps({**dataclasses.asdict(self), "check": self.check}, indent=1) + "\n"

    @property
    def check(self) -> int:
        """A checksum of all the others."""
        return zlib.crc32(json.dumps(dataclasses.asdict(self), sort_keys=True).encode())

    @staticmethod
    def from_json(text: str | bytes) -> Layout:
        """Read it back. Raises UnsafeInputError on anything else."""
        try:
            record = json.loads(text)
            entries = tuple(
                Entry(str(e["name"]), tuple(int(n) for n in e["shape"]), int(e["offset"]), str(e["dtype"]), e["kind"])
                for e in record["entries"]
            )
            layout = Layout(entries, dict(record["aliases"]))
            if record["check"] != layout.check:
                raise ValueError("its checksum does not match")
            return layout
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UnsafeInputError(
                f"the layout.json of the trajectory is damaged ({error!r}). Restore it from a copy."
            ) from None


@dataclass(frozen=True)
class Row:
    """One recorded state."""

    step: int
    point: np.ndarray  # (D,)
    buffers: np.ndarray  # (B,) float64
    loss: float  # of the mini-batch at this step, at this point
    rate: float  # the learning rate of the step that follows


class TrajectoryWriter:
    """Appends rows to a store, durable once `commit` returns. Hold the run's lock (`files.exclusive`) while one is open.

    Appending a step that is already committed does nothing, so a resumed run may replay the rows that outlived its resume file.
    """

    def __init__(self, folder: Path, layout: Layout) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._pending: list[Row] = []
        path = folder / "layout.json"
        if path.exists():
            if Layout.from_json(path.read_bytes()) != layout:
                raise UsageError(f"{folder} holds the trajectory of another model. Choose another --out.")
        else:
            files.write_atomic(path, layout.to_json())
        self._dim, self._buffer_size = layout.dim, layout.buffer_size
        self._settle()

    def _settle(self) -> None:
        """Take the manifest for the truth. Buffered rows that it holds are done; what it does not name is removed."""
        files.drop_torn_tail(self.folder / "manifest.jsonl")
        files.sweep(self.folder, "*")
        segments = _manifest(self.folder)
        self._segments = len(segments)
        self.last_step = segments[-1].last if segments else -1  # committed
        self._pending = [row for row in self._pending if row.step > self.last_step]
        for orphan in set(self.folder.glob("segment-*.safetensors")) - {
            self.folder / segment.file for segment in segments
        }:
            orphan.unlink()  # renamed but never committed: its rows are written again
        self._settled = True

    def append(self, row: Row) -> bool:
        """Buffer one row. Returns whether a segment's worth is waiting, so that the caller should commit."""
        if not self._settled:
            self._settle()  # a commit that failed may have reached the disk
        if row.step <= self.last_step:
            return False
        if self._pending and row.step <= self._pending[-1].step:
            raise UsageError(f"steps must increase: got {row.step} after {self._pending[-1].step}.")
        if (row.point.shape, row.buffers.shape) != ((self._dim,), (self._buffer_size,)):
            raise UsageError(
                f"a row of this trajectory has {self._dim} parameters and {self._buffer_size} buffer entries; "
                f"got {row.point.shape} and {row.buffers.shape}."
            )
        self._pending.append(row)
        return len(self._pending) * (row.point.nbytes + row.buffers.nbytes) >= SEGMENT_BYTES

    def commit(self) -> None:
        """Make every buffered row durable. After a failure or an interrupt it may be called again: no row is lost or written twice."""
        if not self._settled:
            self._settle()
        if not self._pending:
            return
        rows = self._pending
        self._settled = False
        name, pieces = f"segment-{self._segments:06d}.safetensors", _pieces(rows)
        files.write_atomic(self.folder / name, *pieces)
        crc = 0
        for piece in pieces:
            crc = zlib.crc32(piece, crc)
        segment = _Segment(name, len(rows), rows[0].step, rows[-1].step, crc)
        files.append_line(self.folder / "manifest.jsonl", {**dataclasses.asdict(segment), "check": segment.check})
        self._segments += 1
        self.last_step = rows[-1].step
        self._pending = []
        self._settled = True


def _pieces(rows: Sequence[Row]) -> list[memoryview]:
    """A safetensors file of the rows, to be written piece after piece: 64 MiB of points are neither stacked nor serialised first."""
    kept = {
        "steps": ("I64", [np.array([row.step for row in rows], dtype="<i8")]),
        "losses": ("F64", [np.array([row.loss for row in rows], dtype="<f8")]),
        "rates": ("F64", [np.array([row.rate for row in rows], dtype="<f8")]),
        "buffers": ("F64", [np.asarray(row.buffers, dtype="<f8") for row in rows]),
    }
    dtype = np.result_type(*(row.point for row in rows)).newbyteorder("<")
    named = {np.dtype(known): name for name, known in _DTYPES.items()}
    # last: of any size, and what is longer a number lies aligned before it
    kept["points"] = named[dtype], [np.asarray(row.point, dtype=dtype) for row in rows]
    header, place = {}, 0
    for name, (kind, arrays) in kept.items():
        size = sum(array.nbytes for array in arrays)
        shape = [len(rows), *(arrays[0].shape if name in ("buffers", "points") else ())]
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    bodies = [array for _, arrays in kept.values() for array in arrays if array.size]
    return [memoryview(struct.pack("<Q", len(text)) + text), *(np.ascontiguousarray(body).view(np.uint8).data for body in bodies)]  # fmt: skip


@dataclass(frozen=True)
class _Segment:
    file: str
    rows: int
    first: int
    last: int
    crc32: int

    @property
    def check(self) -> int:
        """The checksum of the manifest's line."""
        return zlib.crc32(repr(dataclasses.astuple(self)).encode())


def _manifest(folder: Path) -> list[_Segment]:
    path = folder / "manifest.jsonl"
    segments: list[_Segment] = []
    for number, line in enumerate(files.read_lines(path), 1):
        try:
            segment = _Segment(str(line["file"]), *(int(line[key]) for key in ("rows", "first", "last", "crc32")))  # type: ignore[call-overload]
        except (KeyError, TypeError, ValueError) as error:
            raise UnsafeInputError(
                f"{path}, line {number}, is not a segment ({error!r}). Restore the file from a copy."
            ) from None
        if Path(segment.file).name != segment.file:
            raise UnsafeInputError(f"{path}, line {number}, names a file outside the trajectory: {segment.file!r}.")
        if line.get("check") != segment.check:
            raise UnsafeInputError(
                f"{path}, line {number}, is damaged: its checksum does not match. Restore the file from a copy."
            )
        if segments and segment.first <= segments[-1].last:
            raise UnsafeInputError(f"{path}, line {number}: steps do not increase. Restore the file from a copy.")
        segments.append(segment)
    return segments


def _deviations(points: np.ndarray, centring: Centring) -> np.ndarray:
    """The vectors (n, ...) or (n - 1, ...) that `centring` makes of points (n, ...). Overwrites these."""
    if centring not in CENTRINGS:
        raise unknown("centring", centring, CENTRINGS)
    if centring == "increments":
        points = np.diff(points, axis=0)
    elif centring == "uncentred":
        points, first = points[1:], points[:1]
        points -= first
    elif len(points):
        points -= points.mean(axis=0)
    return points


def _orthonormal(directions: np.ndarray) -> np.ndarray:
    """The rows (d, D), orthonormal again without a turn: a Gram matrix leaves those that hold hardly more than its rounding skew. Overwrites them."""
    from scipy.linalg import qr  # a quarter of a second that `show` can do without

    q, r = qr(directions.T, mode="economic", overwrite_a=True, check_finite=False)
    turned: np.ndarray = (q * np.where(r.diagonal() < 0, -1.0, 1.0)).T
    return turned


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A committed store, read lazily. A snapshot: rows committed after `open` are not seen."""

    folder: Path
    layout: Layout
    segments: tuple[_Segment, ...]

    @staticmethod
    def open(folder: Path) -> Trajectory:
        """Read layout and manifest. Raises UsageError where there is no store, UnsafeInputError where it is damaged."""
        if not (folder / "layout.json").exists():
            raise UsageError(
                f"{folder} holds no trajectory (no layout.json). Give a run made by `landscape train` or `landscape import`."
            )
        return Trajectory(folder, Layout.from_json((folder / "layout.json").read_bytes()), tuple(_manifest(folder)))

    def __len__(self) -> int:
        return sum(segment.rows for segment in self.segments)

    @cached_property
    def _small(self) -> dict[str, np.ndarray]:
        parts: dict[str, list[np.ndarray]] = {name: [] for name in ("steps", "losses", "rates")}
        for index in range(len(self.segments)):
            for name, found in parts.items():
                found.append(self._read(index, name, 0, self.segments[index].rows))
        return {name: np.concatenate(found) if found else np.empty(0) for name, found in parts.items()}

    @property
    def steps(self) -> np.ndarray:
        """(T,) int64, increasing."""
        return self._small["steps"].astype(np.int64)

    @property
    def losses(self) -> np.ndarray:
        """(T,) mini-batch loss at each recorded point."""
        return self._small["losses"]

    @property
    def rates(self) -> np.ndarray:
        """(T,) learning rate of the step that followed."""
        return self._small["rates"]

    @property
    def dim(self) -> int:
        """D."""
        return self.layout.dim

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """Of the stored points."""
        return self._header(0)["points"][0] if self.segments else np.dtype(np.float32)

    def index(self, step: int) -> int:
        """The row of a recorded step. Raises UsageError naming the nearest ones where it was not recorded."""
        places = np.flatnonzero(self.steps == step)
        if len(places):
            return int(places[0])
        if not len(self):
            raise UsageError(f"{self.folder} has no committed row yet.")
        near = sorted(self.steps.tolist(), key=lambda known: abs(known - step))[:3]
        raise UsageError(
            f"step {step} was not recorded. Nearest: {', '.join(map(str, sorted(near)))} ({len(self)} rows from {self.steps[0]} to {self.steps[-1]})."
        )

    def row(self, index: int) -> Row:
        """One row; negative indices count from the end."""
        total = len(self)
        if not -total <= index < total:
            raise UsageError(f"row {index} of a trajectory of {total} rows.")
        index %= total
        for number, segment in enumerate(self.segments):
            if index < segment.rows:
                point = self._read(number, "points", index, index + 1)[0]
                buffers = self._read(number, "buffers", index, index + 1)[0]
                break
            index -= segment.rows
        place = index + sum(segment.rows for segment in self.segments[:number])
        return Row(int(self.steps[place]), point, buffers, float(self.losses[place]), float(self.rates[place]))

    def checksum(self, index: int) -> int:
        """crc32 of the bytes of one row, point and buffers: what tells it from the row of a run made anew."""
        row = self.row(index)
        return zlib.crc32(row.buffers.tobytes(), zlib.crc32(row.point.tobytes()))

    @property
    def identity(self) -> int:
        """crc32 that stands for all committed rows. It depends on how they were cut into segments, too."""
        return zlib.crc32(repr([segment.crc32 for segment in self.segments]).encode())

    def points(self, start: int = 0, stop: int | None = None, columns: slice = slice(None)) -> np.ndarray:
        """Points (stop - start, columns) in the stored dtype, both as numpy slices; only these bytes are read."""
        start, stop, _ = slice(start, stop).indices(len(self))
        first, last, stride = columns.indices(self.dim)
        if stride != 1:
            raise UsageError(f"columns are read in one piece; got a slice with step {stride}.")
        last = max(first, last)
        out = np.empty((max(stop - start, 0), last - first), dtype=self.dtype)
        offset = 0
        for number, segment in enumerate(self.segments):
            low, high = max(start - offset, 0), min(stop - offset, segment.rows)
            if low < high:
                out[offset + low - start : offset + high - start] = self._read(number, "points", low, high, first, last)
            offset += segment.rows
        return out

    def blocks(
        self, rows: Sequence[int] | np.ndarray | None = None, params: str = "*"
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """All rows, or those at the indices `rows`, a block of columns at a time: (columns, points (n, columns) float64), about 128 MiB each.

        `params`: globs of the parameters whose columns are read, as `Layout.select` takes them; of the others no byte is.
        """
        places = self.places(rows)
        width = max(1, BLOCK_BYTES // (8 * max(len(places), 1)))
        # where the selection begins and ends, in turn: neighbouring tensors make one piece
        edges = np.flatnonzero(np.diff(self.layout.select(params), prepend=False, append=False)).tolist()
        for start, stop in zip(edges[::2], edges[1::2], strict=True):
            for first in range(start, stop, width):
                columns = slice(first, min(first + width, stop))
                yield columns, self._gather(places, columns)

    def gram(self, *, centring: Centring = "centred", rows: Sequence[int] | None = None) -> np.ndarray:
        """Inner products in float64 of what `centring` makes of the points of all rows, or of the rows (n of them) at the indices `rows`.

        centring: `centred`, the n deviations from their mean; `uncentred`, the n - 1 differences of the others from the first; `increments`, the n - 1
        differences of one from the one before.

        Streams over column blocks: memory is one block and n x n. Taking differences in each block first keeps those of close points exact:
        without it float64 loses |w|^2 / |w - w'|^2 of its digits.

        Raises UsageError where `rows` names a row that is not there.
        """
        return sum(
            (made @ made.T for made in (_deviations(block, centring) for _, block in self.blocks(rows))),
            start=np.zeros(()),
        )

    def principal(
        self, dim: int, *, centring: Centring = "centred", rows: Sequence[int] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The first `dim` principal directions (d, D), orthonormal rows in float64, and the variances along all, descending (they sum to the total).

        `centring` and `rows` as for `gram`, which says what m vectors v_t of the points are looked at. From the Gram matrix G = U diag(s) U^T of these,
        direction k is sum_t U_tk v_t / sqrt(s_k), its variance s_k / m (without centring: the mean square). A second pass over the store builds the
        directions. Sign: the last point, seen from the mean or from the first, lies on the positive side.

        Raises UsageError where the points span fewer than `dim` directions.
        """
        count = len(self.places(rows))
        gram = self.gram(centring=centring, rows=rows)
        if not np.isfinite(gram).all():
            raise LandscapeError(
                f"{self.folder} holds points that are NaN or infinite: they have no principal directions."
            )
        values, vectors = np.linalg.eigh(gram)
        values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
        # what float64 can tell from zero in a Gram matrix of this size
        floor = len(values) * np.finfo(float).eps * max(values[0], 0.0) if len(values) else 0.0
        rank = int(np.sum(values > floor))
        if not 1 <= dim <= rank:
            raise UsageError(
                f"asked for {dim} principal directions; the {count} recorded points span {rank}. "
                f"{f'Ask for 1 to {rank}, or record' if rank else 'Record'} more steps."
            )
        vectors = vectors[:, :dim]
        # the way to the last point is the last vector, or the sum of all increments
        ends = vectors.sum(axis=0) if centring == "increments" else vectors[-1]
        weights = vectors * np.where(ends < 0, -1.0, 1.0) / np.sqrt(values[:dim])
        directions = np.empty((dim, self.dim))
        for columns, block in self.blocks(rows):
            directions[:, columns] = weights.T @ _deviations(block, centring)
        return _orthonormal(directions), values / len(values)

    def places(self, rows: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Indices (n,) from 0 of the rows, all by default; negative ones count from the end. Raises UsageError where one is not there."""
        total = len(self)
        if rows is None:
            return np.arange(total)
        places = np.asarray(rows, dtype=int).reshape(-1)
        for row in places[(places < -total) | (places >= total)]:
            raise UsageError(f"row {row} of a trajectory of {total} rows.")
        return places % max(total, 1)

    # -- bytes ----------------------------------------------------------------

    @cached_property
    def _headers(self) -> dict[int, _Tensors]:
        return {}

    def _header(self, number: int) -> _Tensors:
        """Where every tensor of a segment lies; the first call verifies the checksum of the whole file."""
        if number not in self._headers:
            segment = self.segments[number]
            path = self.folder / segment.file
            found = _verified(path, segment)
            shapes = {"points": (segment.rows, self.dim), "buffers": (segment.rows, self.layout.buffer_size)}
            if any(found[name][1] != shape for name, shape in shapes.items()):
                raise UnsafeInputError(
                    f"{path} does not fit the layout.json beside it. Restore the folder from a copy."
                )
            self._headers[number] = found
        return self._headers[number]

    def _gather(self, places: np.ndarray, columns: slice) -> np.ndarray:
        """Points (n, columns) float64 at these places; a segment is read at a time, so that there is one copy of the whole."""
        out = np.empty((len(places), columns.stop - columns.start))
        offset = 0
        for number, segment in enumerate(self.segments):
            inside = np.flatnonzero((places >= offset) & (places < offset + segment.rows))
            # rows that follow one another in the segment are read in one go
            for run in np.split(inside, np.flatnonzero(np.diff(places[inside]) != 1) + 1) if len(inside) else ():
                low = int(places[run[0]]) - offset
                out[run] = self._read(number, "points", low, low + len(run), columns.start, columns.stop)
            offset += segment.rows
        return out

    def _read(
        self, number: int, name: str, start: int, stop: int, first: int = 0, last: int | None = None
    ) -> np.ndarray:
        """Rows start..stop of a tensor of a segment, and of each row only the columns first..last."""
        dtype, shape, position = self._header(number)[name]
        width = shape[1] if len(shape) == 2 else 1
        last = width if last is None else last
        out = np.empty((stop - start, last - first), dtype=dtype)
        handle = os.open(self.folder / self.segments[number].file, os.O_RDONLY)
        try:
            if last - first == width:
                _fill(handle, out, position + start * width * dtype.itemsize)
            else:
                for row in range(stop - start):
                    _fill(handle, out[row], position + ((start + row) * width + first) * dtype.itemsize)
        finally:
            os.close(handle)
        return out if len(shape) == 2 else out[:, 0]


_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8"}
_Tensors = dict[str, tuple[np.dtype[Any], tuple[int, ...], int]]  # of a segment: dtype, shape, position in the file
# files that this process has verified, as they were then
_known: dict[tuple[str, _Segment, tuple[int, ...]], _Tensors] = {}


def _verified(path: Path, segment: _Segment) -> _Tensors:
    """The tensors of a segment, once its checksum has been found right: read in whole once a process, as long as nothing has written to it."""
    try:
        with open(path, "rb") as file:
            about = os.fstat(file.fileno())
            key = str(path.absolute()), segment, (about.st_ino, about.st_size, about.st_mtime_ns)
            if key in _known:
                return _known[key]
            crc = 0
            while chunk := file.read(1 << 22):
                crc = zlib.crc32(chunk, crc)
            if crc != segment.crc32:
                raise UnsafeInputError(
                    f"{path} is damaged: its checksum is {crc}, the manifest says {segment.crc32}. Restore the file from a copy."
                )
            file.seek(0)
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
    except FileNotFoundError:
        raise UnsafeInputError(
            f"{path} is missing, though the manifest names it. Restore the file from a copy."
        ) from None
    found = {
        name: (np.dtype(_DTYPES[entry["dtype"]]), tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
        for name, entry in header.items()
        if name != "__metadata__"
    }
    # a file as young as the clock's tick may yet change within it, and would look the same
    if time.time_ns() - about.st_mtime_ns > TICK:
        _known[key] = found
    return found


def _fill(handle: int, out: np.ndarray, position: int) -> None:
    view = memoryview(out.reshape(-1).view(np.uint8).data)
    done = 0
    while done < len(view):
        got = os.preadv(handle, [view[done:]], position + done)
        if got == 0:
            raise LandscapeError(
                f"a segment ended early at byte {position + done}: it changed while it was being read. Run the command again."
            )
        done += got
