"""The options that all commands share, and how answers are kept and printed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter, Token

from landscape.runs import Run

if TYPE_CHECKING:
    import torch

    from landscape.results import Result
    from landscape.tasks import Task


def _whole(kind: object, tokens: Sequence[Token]) -> int:
    """Read a whole number, also as 1e3; 2.5 is refused and not cut to 2."""
    text = tokens[0].value
    with contextlib.suppress(ValueError):
        return int(text)
    with contextlib.suppress(ValueError):
        if float(text).is_integer():
            return int(float(text))
    raise ValueError(f'"{text}" is not a whole number (int).')


WHOLE = Parameter(converter=_whole)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Common:
    """Options of every command that computes."""

    json: Annotated[bool, Parameter(negative="")] = False
    """Print the answer as one line of JSON."""
    seed: Annotated[int, WHOLE] = 0
    """The root of every random stream."""
    config: Path | None = None
    """YAML file of options; flags win over it."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute: auto is CUDA, else MPS, else the CPU."""
    dtype: Literal["float32", "float64"] | None = None
    """Precision of points and products; by default float32, and float64 for check."""

    def resolved(self, dtype: Literal["float32", "float64"] = "float32") -> Common:
        """With a dtype: the one asked for, else this command's own."""
        return self if self.dtype else dataclasses.replace(self, dtype=dtype)

    def torch(self) -> tuple[torch.device, torch.dtype]:
        """Device and dtype as torch's."""
        from landscape.recordings import device_of, dtype_of

        return device_of(self.device), dtype_of(self.resolved().dtype or "")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Problem:
    """The variant of a task."""

    width: float = 1
    """Factor on the network's widths."""
    activation: str | None = None
    """Of the network: relu, tanh, gelu, ..."""
    norm: str | None = None
    """Of the network: batch, group, layer or none."""
    init: Literal["he", "glorot", "lecun"] | None = None
    """How weights are drawn: variance 2 / fan-in, 2 / (fan-in + fan-out) or 1 / fan-in, with zero biases; default is the network's own."""
    data: Path | None = None
    """Folder of the data set."""
    limit: Annotated[int | None, WHOLE] = None
    """Use this many training rows only."""
    label_noise: str | None = None
    """Wrong labels in a share of the training rows: uniform:0.4, pairwise:0.4, or authors:0.2 as in the code of Li et al. 2022; another draw with uniform:0.4@3."""

    def task(self, spec: str, *, download: bool = False) -> Task:
        """The task of that name in this variant."""
        from landscape import tasks

        return tasks.find(spec, download=download, **dataclasses.asdict(self))

    def record(self, spec: str) -> dict[str, Any]:
        """As run.json keeps it. What was not asked for and is younger than the first runs is left out."""
        kept = {"task": spec, **dataclasses.asdict(self), "data": str(self.data.resolve()) if self.data else None}
        return {name: value for name, value in kept.items() if name not in ("label_noise", "init") or value is not None}


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Subject:
    """How the data of a run are found again."""

    data: Path | None = None
    """Folder of the data set, where it is not the one recorded."""
    task: str | None = None
    """For runs made with your own code: its package.module:function or file.py:function again. Code is run only when you name it."""
    rows: Annotated[int | None, WHOLE] = None
    """Measure on this many training rows only, drawn once; default all."""


def tell(result: Result, path: Path | None, as_json: bool) -> None:
    """Print an answer: its warnings on stderr; its line, or its JSON, on stdout."""
    for warning in result.warnings:
        note(f"warning: {warning}")
    if as_json:
        print(json.dumps(json.loads(result.to_json()), allow_nan=False))
        return
    print(result.summary())
    if path is not None:
        print(f"  {path}")


def tell_table(result: Result, path: Path | None, as_json: bool) -> None:
    """Print an answer with its table above the line."""
    if not as_json:
        rows = result.table()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            print("  ".join(f"{word:<{width}}" for word, width in zip(row, widths, strict=True)).rstrip())
    tell(result, path, as_json)


def answer(
    run: Run,
    kind: str,
    question: Mapping[str, Any],
    compute: Callable[[], Result],
    as_json: bool,
    show: Callable[[Result, Path, bool], None] = tell,
    fresh: bool = False,
) -> None:
    """Find the stored answer to this question, or compute and keep it; print it.

    fresh: compute always, and replace the last answer of this kind.
    """
    from landscape.analysis.answers import load

    path = None if fresh else run.find(kind, question)
    if path is None:
        with working(f"measuring: {kind}"):
            result = compute()
        result = dataclasses.replace(result, question=json.loads(json.dumps(dict(question))))
        path = run.keep(kind, result.to_json(), replace=fresh)
    else:
        result = load(path)
        note(f"(answered before, in {path})")
    show(result, path, as_json)


@contextlib.contextmanager
def working(text: str) -> Iterator[None]:
    """Show that work goes on, with the time it has taken: on a terminal only."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        progress.add_task(text)
        yield


def note(text: str) -> None:
    """A line for the reader, not for machines."""
    print(text, file=sys.stderr, flush=True)
