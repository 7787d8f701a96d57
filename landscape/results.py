"""A finished answer: plain numbers with their uncertainty and warnings, written as JSON, read back equal, drawn from itself alone.

The only class of the package that is inherited from. Each file of `landscape.analysis` defines one or more kinds.
"""

from __future__ import annotations

import dataclasses
import json
import math
import zlib
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from landscape.errors import UnsafeInputError, unknown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from plotly.graph_objects import Figure

SCHEMA = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """Base of every answer. Subclasses add fields (numbers, strings, numpy arrays, dicts and lists of these) and the three views."""

    question: dict[str, Any]  # the options as asked, resolved: an equal question finds this answer again
    provenance: dict[str, Any]  # task, rows, dtype, device, versions, seed: what the numbers depend on
    warnings: tuple[str, ...] = ()  # each a sentence; shown first wherever the result is shown

    kinds: ClassVar[dict[str, type[Result]]] = {}

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        Result.kinds[cls.__name__.lower()] = cls

    @property
    def kind(self) -> str:
        """The name under which the answer is stored: `spectrum`, `barrier`, ..."""
        return type(self).__name__.lower()

    def summary(self) -> str:
        """The finding in one line."""
        raise TypeError(f"{type(self).__name__} states no summary")

    def caption(self) -> str:
        """What a reader needs beside the picture: definitions, samples, policies, and how to read it."""
        return self.summary()

    def panels(self) -> tuple[str, ...]:
        """The names of the panels of the whole picture, the main one first; none where the answer is a table."""
        return ("",)

    def table(self) -> list[tuple[str, ...]]:
        """The numbers that a reader may want to copy, as text: the head, then the rows. Empty where the picture says it all."""
        return []

    def plot(self, ax: Axes, panel: str = "") -> None:
        """Draw one panel (by default the main one) on a matplotlib axes, from the stored numbers only."""
        raise TypeError(f"{type(self).__name__} has no picture")

    def figure(self) -> Figure:
        """The interactive picture (plotly), from the stored numbers only."""
        raise TypeError(f"{type(self).__name__} has no interactive picture")

    def to_json(self) -> str:
        """The answer as JSON text. Arrays carry dtype and shape, and hold NaN as null, infinities as "inf" and "-inf"; elsewhere, where None and strings
        stand too, these are {"float": "nan"} and the like. `check` is the checksum of all other fields.
        """
        fields = {field.name: _encode(getattr(self, field.name)) for field in dataclasses.fields(self)}
        record = {"kind": self.kind, "schema": SCHEMA, "summary": self.summary(), **fields}
        return json.dumps({**record, "check": _checksum(record)}, allow_nan=False, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read an answer back. Raises UnsafeInputError where the text is not one, or is of another kind than `cls`, or differs from what was written.

        An answer without `check`, written by hand, is taken as it is.
        """
        try:
            record = json.loads(text)
            name = record["kind"]
            schema = record["schema"]
            if not isinstance(name, str):
                raise TypeError(f"kind is {name!r}")
        except (ValueError, KeyError, TypeError) as error:
            raise UnsafeInputError(f"not a result of this tool: {error!r}. Give a results/*.json file.") from None
        if "check" in record and record.pop("check") != _checksum(record):
            raise UnsafeInputError(
                f"the {name} result is damaged: its checksum does not match. Run the analysis again."
            )
        if schema != SCHEMA:
            raise UnsafeInputError(
                f"a result of schema {schema}; this version reads schema {SCHEMA}. Run the analysis again."
            )
        if name not in Result.kinds:
            raise unknown("kind of result", name, Result.kinds)
        kind = Result.kinds[name]
        if not issubclass(kind, cls):
            raise UnsafeInputError(f"a result of kind {name!r} where {cls.__name__.lower()!r} was expected.")
        values: dict[str, Any] = {}
        for field in dataclasses.fields(kind):
            if field.name not in record:
                given = (field.default, field.default_factory) != (dataclasses.MISSING, dataclasses.MISSING)
                if given and field.name != "warnings":
                    continue  # a field younger than the answer
                raise UnsafeInputError(
                    f"the {name} result lacks the field {field.name!r}: the file is damaged. Run the analysis again."
                )
            try:
                values[field.name] = _decode(record[field.name])
                if field.name == "warnings":
                    values["warnings"] = tuple(values["warnings"])
            except (ValueError, KeyError, TypeError, OverflowError) as error:
                raise UnsafeInputError(
                    f"the field {field.name!r} of the {name} result is damaged ({error}). Run the analysis again."
                ) from None
            if field.type in (float, "float") and not isinstance(values[field.name], (int, float)):
                raise UnsafeInputError(
                    f"the field {field.name!r} of the {name} result is no number: the file is damaged. Run the analysis again."
                )
        return kind(**values)


def _checksum(record: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def _encode(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        numbers = value.ravel().tolist()
        if value.dtype.kind == "f":
            numbers = [number if math.isfinite(number) else _NON_FINITE[str(number)] for number in numbers]
        return {"array": numbers, "shape": list(value.shape), "dtype": str(value.dtype)}
    if isinstance(value, np.generic):
        return _encode(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encode(item) for item in value]
    if value is None or isinstance(value, (str, int, bool)):
        return value
    raise TypeError(f"a result holds plain numbers, strings and arrays; got {type(value).__name__}")


# in arrays of floats, where nothing else can stand
_NON_FINITE = {"nan": None, "inf": "inf", "-inf": "-inf"}


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        if set(value) == {"array", "shape", "dtype"}:
            dtype = np.dtype(value["dtype"])
            if dtype.kind not in "fiubU":
                raise TypeError(f"arrays of dtype {dtype}")
            numbers = (
                [math.nan if item is None else float(item) for item in value["array"]]
                if dtype.kind == "f"
                else value["array"]
            )
            return np.array(numbers, dtype=dtype).reshape(value["shape"])
        if set(value) == {"float"}:
            return float(value["float"])
        return {key: _decode(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_decode(item) for item in value]
    return value
