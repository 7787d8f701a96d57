"""Files that survive a kill -9: one way to write a whole file, one to append a line, one to keep a second writer out.

Commit = write a temporary file beside the target, fsync, rename, fsync the folder. A reader sees the old file or the new one, never a part.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from landscape.errors import LandscapeError, UnsafeInputError

# what a file system without hard links (exFAT, some network mounts) answers
_NO_LINKS = (errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)

# folders that this process holds and lends: (process, folder) -> whether the loan is free. The process, because a fork inherits this record
_lent: dict[tuple[int, Path], bool] = {}


def sync_folder(folder: Path) -> None:
    """Make a rename in this folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, *data: bytes | memoryview | str, new: bool = False) -> None:
    """Replace the file at `path` by `data`, piece after piece, wholly or not at all. OSError (disk full, read-only) leaves the old file as it was.

    new: raise FileExistsError where there is a file already, also one that another process has just made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            for piece in data:
                file.write(piece.encode() if isinstance(piece, str) else piece)
            file.flush()
            os.fsync(file.fileno())
        if new:
            _rename_new(temporary, path)
        else:
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _rename_new(temporary: Path, path: Path) -> None:
    """Give a whole file its name, which must be free. Without hard links an empty file claims the name for a moment."""
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        try:
            os.replace(temporary, path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    else:
        temporary.unlink()


def append_line(path: Path, record: dict[str, object]) -> None:
    """Append one JSON line and fsync. A kill in the middle leaves a torn last line, which `read_lines` ignores."""
    with open(path, "ab") as file:
        file.write((json.dumps(record, allow_nan=False) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, object]]:
    """The committed JSON lines of a file, in order; a torn last line is left out.

    Raises UnsafeInputError where a line that is not the last cannot be read: that is damage, not a kill.
    """
    if not path.exists():
        return []
    *lines, tail = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError("not an object")
        except (ValueError, RecursionError) as error:
            raise UnsafeInputError(
                f"{path}, line {number}, is damaged ({error}). Restore the file from a copy."
            ) from None
        records.append(record)
    del tail  # no newline after it: it was never committed
    return records


def sweep(folder: Path, pattern: str) -> None:
    """Remove the temporary files that killed writers of files of this name left behind. Hold the lock of these files."""
    for left in folder.glob(f".{pattern}.*.tmp"):
        left.unlink(missing_ok=True)


def drop_torn_tail(path: Path) -> None:
    """Cut an uncommitted last line away, so that the next append starts on a line of its own."""
    if not path.exists():
        return
    raw = path.read_bytes()
    whole = raw[: raw.rfind(b"\n") + 1]
    if whole != raw:
        write_atomic(path, whole)


@contextlib.contextmanager
def exclusive(folder: Path, *, lend: bool = False) -> Iterator[None]:
    """Hold `folder/.lock` while writing there. The system lets the lock go when the holder dies, so it is never stale.

    lend: let one part of this process at a time ask for the same folder again within, and get it: who holds a folder around several writers each of which
    takes it. Without it a second call is refused in this process too. The loan is the process's, not the thread's: while one thread lends, another that asks
    gets it, so write to a folder from one thread.
    Raises LandscapeError, naming the holder, where another has it.
    """
    key = os.getpid(), folder.resolve()
    if _lent.get(key):
        _lent[key] = False
        try:
            yield
        finally:
            if key in _lent:  # else the lender has left before
                _lent[key] = True
        return
    with _locked(folder / ".lock") as file:
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        if lend:
            _lent[key] = True
        try:
            yield
        finally:
            _lent.pop(key, None)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[TextIO]:
    """The lock file, locked."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip() or "another process"
                raise LandscapeError(
                    f"{path.parent} is being written by {holder}. Wait for it to end, or choose another --out."
                ) from None
            # a holder that took its run back has removed the file that was opened here: a lock on that would keep nobody out
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                yield file
                return
