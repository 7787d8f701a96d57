"""Stored answers, whatever their kind."""

from __future__ import annotations

import importlib
from pathlib import Path

from landscape.errors import LandscapeError, UnsafeInputError, UsageError
from landscape.results import Result

_HOMES = (
    "spectra",
    "layerwise",
    "stability",
    "dimensions",
    "thresholds",
    "wells",
    "widths",
    "explorations",
    "reductions",
    "barriers",
    "chains",
    "ladders",
    "instabilities",
    "robustnesses",
    "limits",
    "magnitudes",
    "diffusions",
    "tinyspaces",
    "splittings",
    "condensations",
    "plateaus",
    "surfaces",
    "checks",
    "histories",
)


def load(path: Path) -> Result:
    """Read a results/*.json file. Raises UsageError where there is none, UnsafeInputError where it is not an answer."""
    for home in _HOMES:
        importlib.import_module(f"landscape.analysis.{home}")
    try:
        text = path.read_text()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise UsageError(f"there is no result file {path}. Give one of RUN/results/*.json.") from None
    except UnicodeDecodeError:
        raise UnsafeInputError(f"{path} is not a text file. Give one of RUN/results/*.json.") from None
    try:
        return Result.from_json(text)
    except LandscapeError as error:
        raise type(error)(f"{path}: {error}") from None
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise UnsafeInputError(f"{path} is damaged ({error!r}). Run the analysis again.") from None
