"""Whole files, lines and locks: what stands on disk after a failure at every step of a write."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from landscape import files
from landscape.errors import LandscapeError, UnsafeInputError

LINES = [{"step": 0, "loss": 2.5}, {"step": 10, "loss": None, "name": "ü"}, {"step": 20, "loss": 1e-300}]


def left_behind(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.endswith(".tmp"))


# -- whole files ------------------------------------------------------------------------------------------------------


def test_a_file_is_written_with_its_folders_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c.json"
    files.write_atomic(path, "zuerst ü\n")
    assert path.read_bytes() == "zuerst ü\n".encode()
    files.write_atomic(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert left_behind(path.parent) == []


def test_a_new_file_replaces_none(tmp_path: Path) -> None:
    path = tmp_path / "spectrum.json"
    files.write_atomic(path, "first", new=True)
    with pytest.raises(FileExistsError):
        files.write_atomic(path, "second", new=True)
    assert path.read_text() == "first"
    assert left_behind(tmp_path) == []


def fail(monkeypatch: pytest.MonkeyPatch, call: str, error: BaseException) -> None:
    """Make one of the calls that `files` makes raise."""

    def raising(*args: Any, **keywords: Any) -> Any:
        raise error

    if call == "open":
        monkeypatch.setattr(files, "open", raising, raising=False)
    else:
        monkeypatch.setattr(files.os, call, raising)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT], ids=errno.errorcode.get)
@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    path = tmp_path / "run.json"
    files.write_atomic(path, "old")
    with monkeypatch.context() as broken:
        fail(broken, call, OSError(code, os.strerror(code), str(path)))
        with pytest.raises(OSError) as raised:
            files.write_atomic(path, "new")
    assert raised.value.errno == code
    assert path.read_text() == "old"
    assert left_behind(tmp_path) == []
    files.write_atomic(path, "new")  # and the next one succeeds
    assert path.read_text() == "new"


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_an_interrupted_write_leaves_the_old_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "run.json"
    files.write_atomic(path, "old")
    fail(monkeypatch, call, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        files.write_atomic(path, "new")
    assert path.read_text() == "old"
    assert left_behind(tmp_path) == []


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the system itself refuse to write beyond `size` bytes of a file (EFBIG, in the middle of a write)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_the_system_cuts_in_the_middle_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "segment"
    files.write_atomic(path, b"old" * 100)
    with largest_file(5000), pytest.raises(OSError):
        files.write_atomic(path, b"new" * 10_000)
    assert path.read_bytes() == b"old" * 100
    assert left_behind(tmp_path) == []


def test_everything_is_synced_before_it_is_renamed_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of the commit protocol: without it a power cut may leave a renamed file without its bytes."""
    calls: list[str] = []

    def noted(name: str, what: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            target = os.readlink(f"/proc/self/fd/{args[0]}") if name == "fsync" else str(args[1])
            calls.append(f"{name} {'folder' if Path(target).is_dir() else 'file'}")
            return what(*args)

        return run

    for name in ("fsync", "replace"):
        monkeypatch.setattr(files.os, name, noted(name, getattr(os, name)))
    files.write_atomic(tmp_path / "x", "data")
    assert calls == ["fsync file", "replace file", "fsync folder"]
    calls.clear()
    files.append_line(tmp_path / "lines", LINES[0])
    assert calls == ["fsync file"]


# -- lines ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "lines.jsonl"
    for line in LINES:
        files.append_line(path, line)
    return path


def test_lines_come_back_in_order(lines: Path, tmp_path: Path) -> None:
    assert files.read_lines(lines) == LINES
    assert files.read_lines(tmp_path / "none") == []


def test_a_line_holds_no_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        files.append_line(tmp_path / "lines", {"loss": float("nan")})


def test_every_truncation_of_the_file_reads_as_a_prefix_and_can_be_appended_to(lines: Path) -> None:
    raw = lines.read_bytes()
    ends = [place + 1 for place, byte in enumerate(raw) if byte == ord("\n")]
    for cut in range(len(raw) + 1):
        lines.write_bytes(raw[:cut])
        whole = sum(end <= cut for end in ends)
        assert files.read_lines(lines) == LINES[:whole]
        files.drop_torn_tail(lines)
        files.append_line(lines, {"step": 99})
        assert files.read_lines(lines) == [*LINES[:whole], {"step": 99}]


def test_nothing_is_rewritten_where_no_tail_is_torn(lines: Path) -> None:
    before = lines.stat()
    files.drop_torn_tail(lines)
    assert lines.stat().st_ino == before.st_ino
    files.drop_torn_tail(lines.with_name("none"))
    assert not lines.with_name("none").exists()


@pytest.mark.parametrize(
    "damage", [b"{", b"", b"[1]", b"3", b'{"step": 1', b"\xff\xfe", b"[" * 100_000, b'{"step": 1}}']
)
def test_a_damaged_line_before_the_last_is_refused_by_its_number(lines: Path, damage: bytes) -> None:
    first, _, third, _ = lines.read_bytes().split(b"\n")
    lines.write_bytes(b"\n".join([first, damage, third, b""]))
    with pytest.raises(UnsafeInputError, match=r"lines\.jsonl, line 2, is damaged"):
        files.read_lines(lines)


@given(
    st.lists(st.dictionaries(st.text(max_size=5), st.integers() | st.none() | st.text(max_size=8)), max_size=6),
    st.data(),
)
def test_whatever_is_appended_and_wherever_it_is_cut_a_prefix_is_read(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, object]], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("lines") / "lines.jsonl"
    path.touch()
    for record in records:
        files.append_line(path, record)
    raw = path.read_bytes()
    assert files.read_lines(path) == json.loads(json.dumps(records))
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    kept = files.read_lines(path)
    assert kept == records[: len(kept)]


def test_sweeping_removes_the_leavings_of_this_name_only(tmp_path: Path) -> None:
    for name in (".segment-1.safetensors.77.tmp", ".run.json.77.tmp", "segment-1.safetensors", ".lock"):
        (tmp_path / name).touch()
    files.sweep(tmp_path, "segment-*")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", ".run.json.77.tmp", "segment-1.safetensors"]


# -- one writer -------------------------------------------------------------------------------------------------------

HOLD = """
import sys
from pathlib import Path
from landscape import files
with files.exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that holds the lock of a folder."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        try:
            yield other
        finally:
            other.kill()


def test_a_second_writer_is_refused_and_the_first_is_named(tmp_path: Path) -> None:
    with holder(tmp_path / "run") as other:
        with (
            pytest.raises(LandscapeError, match=rf"run is being written by process {other.pid} on .*--out"),
            files.exclusive(tmp_path / "run"),
        ):
            pytest.fail("two writers")
        # the refusal did not disturb the first one's claim
        assert f"process {other.pid} " in (tmp_path / "run" / ".lock").read_text()


def test_a_killed_writer_leaves_no_lock(tmp_path: Path) -> None:
    with holder(tmp_path) as other:
        other.send_signal(signal.SIGKILL)
        other.wait()
        with files.exclusive(tmp_path):
            assert f"process {os.getpid()} " in (tmp_path / ".lock").read_text()


def test_the_lock_is_released_also_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="inside"), files.exclusive(tmp_path):
        raise RuntimeError("inside")
    with (
        files.exclusive(tmp_path),
        pytest.raises(LandscapeError, match=f"process {os.getpid()} "),
        files.exclusive(tmp_path),
    ):
        pytest.fail("two writers")


def test_a_lent_folder_is_taken_by_one_at_a_time_within(tmp_path: Path) -> None:
    with files.exclusive(tmp_path, lend=True):
        for _ in range(2):
            with (
                files.exclusive(tmp_path),
                pytest.raises(LandscapeError, match="is being written by"),
                files.exclusive(tmp_path),
            ):
                pytest.fail("two writers")
        with pytest.raises(LandscapeError, match=f"process {os.getpid()} "):
            subprocess_exclusive(tmp_path)
    with files.exclusive(tmp_path), pytest.raises(LandscapeError), files.exclusive(tmp_path):
        pytest.fail("the loan outlived the lender")


def subprocess_exclusive(folder: Path) -> None:
    """Ask for the folder from another process; LandscapeError where it is refused."""
    done = subprocess.run([sys.executable, "-c", HOLD, str(folder)], input=b"", capture_output=True)
    if done.returncode:
        raise LandscapeError(done.stderr.decode().splitlines()[-1])


def test_a_lock_file_that_was_removed_keeps_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening and locking, the holder before took its folder back: the lock is then on a file that no one else sees."""
    flock, left = files.fcntl.flock, 1

    def late(*args: Any) -> None:
        nonlocal left
        if left:
            left -= 1
            (tmp_path / ".lock").unlink()
        flock(*args)

    monkeypatch.setattr(files.fcntl, "flock", late)
    with files.exclusive(tmp_path):
        assert f"process {os.getpid()} " in (tmp_path / ".lock").read_text()


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def test_a_new_file_needs_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    fail(monkeypatch, "link", OSError(code, os.strerror(code)))
    path = tmp_path / "spectrum.json"
    files.write_atomic(path, "first", new=True)
    with pytest.raises(FileExistsError):
        files.write_atomic(path, "second", new=True)
    assert path.read_text() == "first"
    fail(monkeypatch, "replace", OSError(errno.ENOSPC, "full"))
    with pytest.raises(OSError, match="full"):
        files.write_atomic(tmp_path / "other.json", "x", new=True)
    assert [path.name for path in tmp_path.iterdir()] == ["spectrum.json"]
