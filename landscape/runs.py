"""One run, one folder. Every path is a method here; what is in the files is the business of others.

    runs/a/
      run.json            the question as resolved, versions, git commit, device, threads, start, end, state
      metrics.jsonl       step, learning rate, loss and accuracy on train and test rows
      trajectory/         see landscape.trajectories
      resume.safetensors  what a stopped descent needs to go on
      subspace.safetensors  where the descent was in a subspace: its origin, and directions that come from data
      results/*.json      one an answer
      states/*.safetensors  the whole state at steps that it was asked to keep: what a branch or a rewinding starts from
      mask.safetensors    of a pruned network: what survives
      level-000/, ...     of iterative pruning: the run of each level
      branches/*/         runs that branch off this one: children, perturbed starts, ablations
      report.html         made by `landscape report`

A place in a run is written `runs/a`, `runs/a@step=500`, `runs/a@init`, `runs/a@last`; in a level of iterative pruning `runs/t@level=5`, `runs/t@level=5,step=500`.
This file needs no torch.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import itertools
import json
import platform
import re
import subprocess
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from landscape import files
from landscape.errors import LandscapeError, UnsafeInputError, UsageError
from landscape.trajectories import Trajectory

SCHEMA = 1


@dataclass(frozen=True)
class Run:
    """A run's folder. Constructing one touches nothing."""

    folder: Path

    @property
    def record_path(self) -> Path:
        """run.json."""
        return self.folder / "run.json"

    @property
    def metrics_path(self) -> Path:
        """metrics.jsonl."""
        return self.folder / "metrics.jsonl"

    @property
    def trajectory_path(self) -> Path:
        """The trajectory store."""
        return self.folder / "trajectory"

    @property
    def frozen_path(self) -> Path:
        """Tensors of the model that do not move, where there are any."""
        return self.folder / "trajectory" / "frozen.safetensors"

    @property
    def resume_path(self) -> Path:
        """resume.safetensors."""
        return self.folder / "resume.safetensors"

    @property
    def subspace_path(self) -> Path:
        """Origin and directions of the subspace that was descended in, where it was one."""
        return self.folder / "subspace.safetensors"

    def state_path(self, step: int) -> Path:
        """The whole state at a step that was to be kept."""
        return self.folder / "states" / f"step-{step:09d}.safetensors"

    @property
    def mask_path(self) -> Path:
        """The mask of a pruned network."""
        return self.folder / "mask.safetensors"

    def level(self, number: int) -> Run:
        """The run of a level of iterative pruning, which may not exist."""
        return Run(self.folder / f"level-{number:03d}")

    def levels(self) -> list[int]:
        """The numbers of the levels that have begun, in order."""
        found = (re.fullmatch("level-([0-9]{3,9})", path.parent.name) for path in self.folder.glob("level-*/run.json"))
        return sorted(int(match.group(1)) for match in found if match)

    def branch(self, name: str) -> Run:
        """The run of a branch, which may not exist."""
        return Run(self.folder / "branches" / name)

    @property
    def results_path(self) -> Path:
        """The folder of answers."""
        return self.folder / "results"

    @property
    def report_path(self) -> Path:
        """report.html."""
        return self.folder / "report.html"

    @staticmethod
    def open(folder: Path) -> Run:
        """A run that exists. Raises UsageError where there is none."""
        run = Run(folder)
        if not run.record_path.is_file():
            named, at, _ = str(folder).rpartition("@")
            if at and not folder.exists() and Run(Path(named)).record_path.is_file():
                raise UsageError(
                    f"{folder} names a place in the run {named}. Here the run itself is asked for: {named}."
                )
            what = "holds no run (no run.json)" if folder.exists() else "does not exist"
            raise UsageError(
                f"{folder} {what}. Make one with `landscape train TASK --out {folder}` or `landscape import`."
            )
        run.record()
        return run

    def record(self) -> dict[str, Any]:
        """The contents of run.json. Raises UnsafeInputError where it is damaged."""
        try:
            record = json.loads(self.record_path.read_text())
            if record["schema"] != SCHEMA:
                raise UnsafeInputError(
                    f"{self.record_path} has schema {record['schema']}; this version reads {SCHEMA}. Make the run again."
                )
            if not isinstance(record["options"], dict) or not isinstance(record["versions"], dict):
                raise TypeError("options")
            for name in ("kind", "state", "started"):
                if not isinstance(record[name], str):
                    raise TypeError(name)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UnsafeInputError(f"{self.record_path} is damaged ({error!r}). Restore it from a copy.") from None
        return dict(record)

    @property
    def is_finished(self) -> bool:
        """Whether there is a run here, and it came to its end."""
        return self.record_path.exists() and self.record()["state"] == "finished"

    @property
    def options(self) -> dict[str, Any]:
        """The question that the run answers, resolved."""
        return dict(self.record()["options"])

    def begin(self, kind: str, options: Mapping[str, Any], about: Mapping[str, Any]) -> bool:
        """Start the run, or go on with it; returns whether it is already finished.

        Where two processes may start at once, hold `files.exclusive(folder, lend=True)` around this and what is then written: else run.json can tell of
        one and the trajectory come from the other.
        Raises UsageError where the folder holds another run (the differing options named), a run on other data, or anything else: nothing is overwritten.
        """
        asked = json.loads(json.dumps(dict(options)))
        if self.record_path.exists():
            known = self.record()
            if known["kind"] != kind or known["options"] != asked:
                raise UsageError(
                    f"{self.folder} holds another run ({_differences(known['kind'], known['options'], kind, asked)}). "
                    "Choose another --out, or give the same options to go on with it."
                )
            then, here = known.get("fingerprint"), about.get("fingerprint")
            if then and here and then != here:
                raise UsageError(
                    f"{self.folder} was made on other data (fingerprint {then} there, {here} now). "
                    "Give the data used then to go on with it, or choose another --out."
                )
            if known["state"] == "finished":
                return True
            self.update(state="running")
            return False
        # what a run killed in its first moment may leave: a lock, and a run.json not yet renamed
        if self.folder.exists() and any(
            path.name != ".lock" and not path.match(".run.json.*.tmp") for path in self.folder.iterdir()
        ):
            raise UsageError(f"{self.folder} is not empty and holds no run. Choose a new folder for --out.")
        record = {
            "schema": SCHEMA,
            "kind": kind,
            "state": "running",
            "options": asked,
            "started": now(),
            **about,
            **environment(),
        }
        self._write(record)
        return False

    def update(self, **changes: Any) -> None:
        """Change fields of run.json, atomically."""
        self._write({**self.record(), **changes})

    def _write(self, record: Mapping[str, Any]) -> None:
        files.write_atomic(self.record_path, json.dumps(record, indent=1, allow_nan=False) + "\n")

    def metrics(self) -> dict[str, np.ndarray]:
        """The columns of metrics.jsonl, (evaluations,) each, by step; a value that was not finite is NaN.

        Raises UnsafeInputError where the file is damaged.
        """
        read = files.read_lines(self.metrics_path)
        try:
            lines = {int(str(line["step"])): line for line in read}
            rows = [lines[step] for step in sorted(lines)]
            names = list(dict.fromkeys(name for row in rows for name in row))
            return {
                name: np.array([np.nan if row.get(name) is None else float(str(row[name])) for row in rows])
                for name in names
            }
        except (ValueError, KeyError, TypeError) as error:
            raise UnsafeInputError(f"{self.metrics_path} is damaged ({error!r}). Restore it from a copy.") from None

    def trajectory(self) -> Trajectory:
        """What was committed so far."""
        return Trajectory.open(self.trajectory_path)

    def answers(self) -> list[Path]:
        """The files of results/, oldest first."""
        return sorted(self.results_path.glob("*.json"), key=lambda path: (path.stat().st_mtime_ns, path.name))

    def find(self, kind: str, question: Mapping[str, Any]) -> Path | None:
        """The answer of this kind to exactly this question, if there is one."""
        asked = json.loads(json.dumps(dict(question)))
        for path in self.answers():
            try:
                stored = json.loads(path.read_text())
                if stored["kind"] == kind and stored["question"] == asked:
                    return path
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
        return None

    def keep(self, kind: str, text: str, *, replace: bool = False) -> Path:
        """Write an answer as results/KIND.json, or KIND-2.json, ... where that is taken: no answer replaces another, unless `replace` says so."""
        if replace:
            path = self.results_path / f"{kind}.json"
            files.write_atomic(path, text)
            return path
        for number in itertools.count(1):
            path = self.results_path / (f"{kind}.json" if number == 1 else f"{kind}-{number}.json")
            with contextlib.suppress(FileExistsError):
                files.write_atomic(path, text, new=True)
                break
        return path


@dataclass(frozen=True)
class Place:
    """A point of a run."""

    run: Run
    step: int

    def __str__(self) -> str:
        return f"{self.run.folder}@step={self.step}"

    @property
    def checksum(self) -> int:
        """Of what is recorded here (point, buffers, tensors that do not move): a run made anew at the same path is another place."""
        trajectory = self.run.trajectory()
        crc = trajectory.checksum(trajectory.index(self.step))
        return zlib.crc32(self.run.frozen_path.read_bytes(), crc) if self.run.frozen_path.exists() else crc

    def within(self, run: Run) -> str:
        """The place as an answer kept in `run` names it: a folder that is moved or written differently keeps its answers."""
        return f"step={self.step}" if self.run.folder.resolve() == run.folder.resolve() else str(self)


def place(text: str, at: str | None = None) -> Place:
    """Read `RUN`, `RUN@last`, `RUN@init`, `RUN@step=500` or `RUN@500`; `at` is the part after @ where the text has none, by default last.

    Of a level `RUN@level=5`, or `RUN@level=5,` and the point.
    Raises UsageError where the run, the level or the step is not there, or both tell a point.
    """
    run, selector = _parsed(text)
    if selector and at is not None:
        raise UsageError(f"{text} names a point, and --at {at} names one again. Give one of them.")
    run, selector = _level(run, selector or at or "", text)
    selector = selector or "last"
    if not run.trajectory_path.exists() and (levels := run.levels()):
        raise UsageError(
            f"{run.folder} holds the levels {levels[0]} to {levels[-1]} of iterative pruning. Say which: {run.folder}@level={levels[-1]}."
        )
    steps = run.trajectory().steps
    if not len(steps):
        raise UsageError(f"{run.folder} has no recorded point yet.")
    if selector == "last":
        return Place(run, int(steps[-1]))
    if selector == "init":
        return Place(run, int(steps[0]))
    name, _, number = selector.partition("=") if "=" in selector else ("step", "", selector)
    if name != "step" or not re.fullmatch(r"-?[0-9]{1,18}", number):
        raise UsageError(
            f"cannot read the place {selector!r} of {text!r}. Allowed: RUN, RUN@init, RUN@last, RUN@step=500 or RUN@500; of a pruned network RUN@level=5 or RUN@level=5,step=500."
        )
    run.trajectory().index(int(number))
    return Place(run, int(number))


def named(text: str, why: str = "the whole run is asked for: name it without a point") -> Run:
    """The run that is named where no point is asked for: `RUN`, or the run of a level, `RUN@level=5`.

    Raises UsageError, saying `why`, where the text names a point other than the last.
    """
    run, selector = _parsed(text)
    if selector not in ("", "last"):
        place(text)  # what cannot be read at all is told as such
        raise UsageError(f"{text} is one point, and {why}.")
    return run


def _parsed(text: str) -> tuple[Run, str]:
    """The run of `RUN`, `RUN@POINT` or `RUN@level=5,POINT`, and the point, empty where there is none. A folder's own name may hold an @."""
    folder, _, selector = text.rpartition("@") if "@" in text and not Path(text).exists() else (text, "", "")
    return _level(Run.open(Path(folder)), selector, text)


def _level(run: Run, selector: str, text: str) -> tuple[Run, str]:
    """Where a selector begins with a level, that level's run and the rest; else both as they are."""
    first, _, rest = selector.partition(",")
    if not first.startswith("level="):
        return run, selector
    number, there = first.removeprefix("level="), run.levels()
    if not there:
        raise UsageError(
            f"{text} names a level, and {run.folder} holds none. Make levels with `landscape imp TASK --out RUN`."
        )
    if not re.fullmatch("[0-9]{1,9}", number) or int(number) not in there:
        raise UsageError(
            f"{run.folder} holds the levels {', '.join(map(str, there))}; got {text!r}. Name one of them: {run.folder}@level={there[-1]}."
        )
    return run.level(int(number)), rest


def last(run: Run) -> Place:
    """The last recorded point of a run that has one."""
    return Place(run, int(run.trajectory().steps[-1]))


def now() -> str:
    """The time, UTC, ISO 8601 to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def environment() -> dict[str, Any]:
    """What the numbers may depend on outside the options: versions, git commit of the working folder, machine."""
    return {
        "versions": dict(_versions()),
        "git": _git(Path.cwd()),
        "machine": f"{platform.system()} {platform.machine()}",
    }


@cache
def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in ("landscape-geometry", "torch", "numpy", "scipy", "safetensors"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


@cache
def _git(folder: Path) -> str | None:
    """As first asked: what was loaded is of then."""
    try:
        asked = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
            cwd=folder,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return asked.stdout.strip() or None


def _differences(kind: str, known: Mapping[str, Any], asked_kind: str, asked: Mapping[str, Any]) -> str:
    if kind != asked_kind:
        return f"made by {kind}, not {asked_kind}"
    names = [name for name in sorted({*known, *asked}) if known.get(name) != asked.get(name)]
    return "; ".join(f"{name}: {known.get(name)!r} there, {asked.get(name)!r} asked" for name in names[:6])


def describe_failure(error: OSError) -> LandscapeError:
    """A failed write or read as an error that says what to do; what was committed before it is safe."""
    import errno

    where = error.filename or "a file"
    advice = {
        errno.ENOSPC: "the disk is full. Free space and run the same command again: committed rows and answers are kept",
        errno.EDQUOT: "the quota is used up. Free space and run the same command again: committed rows and answers are kept",
        errno.EROFS: "the file system is read-only. Choose another --out",
        errno.EACCES: "no permission. Choose a folder that you may write, or change its permissions",
        errno.ENOENT: "it does not exist. Check the path",
        errno.ENOTDIR: "a part of the path is a file, not a folder. Check the path",
        errno.EISDIR: "it is a folder, not a file. Check the path",
        errno.EEXIST: "a file is in the way. Choose another --out",
    }.get(error.errno or 0, error.strerror or repr(error))
    return LandscapeError(f"{where}: {advice}.")
