"""What can go wrong, with the exit code that the command line gives it. An error says what was got, what is allowed, what to do."""

from __future__ import annotations

import difflib
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path


class LandscapeError(Exception):
    """The analysis failed (exit 1)."""

    exit_code = 1


class DivergedError(LandscapeError):
    """The loss of a training stopped being finite (exit 1); what was recorded before is kept."""


class UsageError(LandscapeError):
    """The question was put wrongly: an unknown name, a value out of range, a run that is not there (exit 2)."""

    exit_code = 2


class UnsafeInputError(LandscapeError):
    """Unsafe or corrupt input was refused, and nothing of it was executed or used (exit 3)."""

    exit_code = 3


def unknown(kind: str, got: str, allowed: Iterable[str]) -> UsageError:
    """The error for a name that is not on a list: the name, the nearest that is, and the list."""
    names = sorted(allowed)
    near = difflib.get_close_matches(got, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return UsageError(f"unknown {kind} {got!r}.{hint} Allowed: {', '.join(names)}.")


def users_lines(error: BaseException | None) -> str:
    """The user's own lines in the traceback of what a model or a loss raised, and the error; empty where there are none (or no error)."""
    if error is None:
        return ""
    here = Path(__file__).resolve().parent
    others = [here, here / "analysis", here / "cli", *(here.parent / name for name in ("analysis", "cli"))]
    others += [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")]
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_file()
        and not any(Path(frame.filename).resolve().is_relative_to(folder.resolve()) for folder in others)
    ]
    return "".join([*traceback.format_list(frames), *traceback.format_exception_only(error)]).rstrip() if frames else ""
