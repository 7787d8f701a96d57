"""The commands that show: tasks, show, plot, report, demo."""

from __future__ import annotations

import contextlib
import dataclasses
import html
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from landscape.cli.options import Common, note
from landscape.errors import UsageError
from landscape.runs import Run, named, place

if TYPE_CHECKING:
    from landscape.results import Result


def tasks(*, presets: Annotated[bool, Parameter(negative="")] = False, json: bool = False) -> None:
    """List the tasks that come with the tool.

    Parameters
    ----------
    presets
        List the presets of `landscape imp` instead: published protocols, with where their values come from.
    json
        Print the list as JSON.
    """
    if presets:
        _tell_presets(json)
        return
    from landscape.tasks import catalogue

    rows = catalogue()
    if json:
        _print_json([{"name": name, "description": text} for name, text in rows])
        return
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        print(f"{name:<{width}}  {text}")
    print("\nYour own: package.module:function or file.py:function, returning model, loss and data.")


def _tell_presets(json: bool) -> None:
    from landscape.presets import PRESETS

    if json:
        fields = ("task", "source", "note")
        _print_json(
            [
                {"name": name, **{field: getattr(preset, field) for field in fields}, "options": dict(preset.options)}
                for name, preset in PRESETS.items()
            ]
        )
        return
    width = max(map(len, PRESETS))
    for name, preset in PRESETS.items():
        options = ", ".join(f"{key} {value}" for key, value in preset.options.items() if value != "")
        print(f"{name:<{width}}  {preset.task}: {options}")
        print(f"{'':<{width}}  from: {preset.source}. {preset.note}".rstrip())


def show(run: str, /, *, json: bool = False) -> None:
    """Show what is in a run: how it was made, what was recorded, what was answered.

    Parameters
    ----------
    run
        The run's folder, a level (RUN@level=5), or a point in it (RUN@step=500).
    json
        Print everything as JSON.
    """
    import numpy as np

    shown = Run.open(Path(run)) if Path(run).exists() else place(run).run
    record, metrics = shown.record(), shown.metrics()
    recorded = (shown.trajectory_path / "layout.json").exists()
    steps = shown.trajectory().steps if recorded else np.empty(0, dtype=int)
    answers = [_headline(path) for path in shown.answers()]
    if json:
        curve = {name: [None if np.isnan(value) else value for value in values] for name, values in metrics.items()}
        _print_json(
            {
                "folder": str(shown.folder),
                "record": record,
                "metrics": curve,
                "steps": steps.tolist(),
                "answers": answers,
            }
        )
        return
    options = record["options"]
    print(f"{shown.folder}: {record['kind']} of {options['task']}, {record['state']}, started {record['started']}")
    if levels := shown.levels():
        grown = len(list(shown.folder.glob("branches/*/run.json")))
        print(
            f"  levels      {levels[0]} to {levels[-1]}, each a run: {shown.folder}@level={levels[-1]}; {grown} branches"
        )
    if recorded:
        layout = shown.trajectory().layout
        print(
            f"  model       {layout.dim:,} parameters in {len(layout.of('parameter'))} tensors, {layout.buffer_size:,} buffer entries"
        )
    print(f"  data        {record.get('data', '?')}")
    if len(steps):
        print(f"  trajectory  {len(steps):,} points, steps {steps[0]:,} to {steps[-1]:,}")
    if metrics:
        last = {name: values[-1] for name, values in metrics.items()}
        words = [
            f"{name.replace('_', ' ')} {last[name]:.4g}"
            for name in ("train_loss", "test_loss", "test_accuracy")
            if np.isfinite(last[name])
        ]
        print(f"  last        step {int(last['step']):,}: {', '.join(words)}")
    chosen = {
        name: options[name]
        for name in (
            "steps",
            "optimizer",
            "lr",
            "momentum",
            "weight_decay",
            "schedule",
            "batch_size",
            "seed",
            "dtype",
            "device",
        )
        if name in options
    }
    if pruned := record.get("pruning"):
        print(f"  pruning     {_pruned(pruned, options)}")
    print("  options     " + ", ".join(f"{name} {value}" for name, value in chosen.items()))
    for answer in answers:
        print(f"  {answer['kind']:<10}  {answer['summary']}\n              {answer['path']}")


def plot(result: Path, out: Path, /, *, json: Annotated[bool, Parameter(negative="")] = False) -> None:
    """Draw a stored answer, from its numbers alone.

    Parameters
    ----------
    result
        A results/*.json file, or a run (RUN, RUN@level=5) for its training curve.
    out
        The picture: .svg, .pdf or .png; .html is interactive.
    json
        Print the picture's path as JSON.
    """
    from landscape import files
    from landscape.analysis import reports, styles
    from landscape.analysis.answers import load
    from landscape.analysis.histories import history

    format = styles.format_of(out)
    if result.is_dir() or ("@" in str(result) and not result.exists()):
        run = named(str(result))
        answer: Result = (course := history(run))
        if not course.columns and (stored := run.answers()):
            raise UsageError(
                f"{result} has no training curve. Draw one of its answers: landscape plot {stored[-1]} {out}"
            )
    else:
        answer = load(result)
    if format == "html" and answer.panels():
        data: bytes | str = reports.page(
            answer.summary(), [f"<p>{html.escape(answer.summary())}</p>", reports.live(answer, "live")]
        )
    else:
        data = styles.rendered(
            answer, "svg" if format == "html" else format
        )  # which refuses an answer that has no picture
    files.write_atomic(out, data)
    _tell_path(out, json)


def report(run: str, /, *, json: Annotated[bool, Parameter(negative="")] = False) -> None:
    """Write the report of a run: one HTML file with every answer and picture, warnings first.

    Parameters
    ----------
    run
        The run's folder, or a level of iterative pruning (RUN@level=5).
    json
        Print the report's path as JSON.
    """
    _tell_path(_write_report(named(run)), json)


def demo(*, out: Path, common: Common = Common()) -> None:  # noqa: B008 (frozen)
    """The whole tool on real data in a minute: two trainings, curvature, barrier, surface, report.

    Parameters
    ----------
    out
        Folder for the two runs; the report is in its first run.
    """
    from landscape.analysis.answers import load
    from landscape.analysis.histories import history
    from landscape.cli import making, measuring

    first, second = out / "seed-0", out / "seed-1"
    common = dataclasses.replace(common, json=False)
    with contextlib.redirect_stdout(io.StringIO()):  # each command's own line; they are told together at the end
        for index, folder in enumerate((first, second)):
            note(f"training digits-mlp, seed {common.seed + index}")
            making.train(
                "digits-mlp",
                out=folder,
                record_every="10",
                common=dataclasses.replace(common, seed=common.seed + index),
            )
        note("measuring: curvature, barrier, surface")
        measuring.spectrum(str(first), density=True, common=common)
        measuring.spectrum(str(first), layers=True, common=common)
        measuring.sharpness(str(first), every=10, common=common)
        measuring.barrier(str(first), str(second), common=common)
        measuring.surface(str(first), common=common)
        measuring.check(str(first), common=common)
    run = Run.open(first)
    path = _write_report(run)
    found = {answer.kind: answer.summary() for answer in [history(run), *map(load, run.answers())]}
    for kind in ("history", "spectrum", "layers", "sharpness", "barrier", "surface"):
        print(found[kind])
    print(f"The report, for your browser: {path.resolve()}")


def _write_report(run: Run) -> Path:
    from landscape import files
    from landscape.analysis.reports import report as written

    files.write_atomic(run.report_path, written(run))
    return run.report_path


def _pruned(told: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """What is left of a pruned network, and how it came about."""
    words = [f"{told['survivors']:,} of {told['prunable']:,} prunable weights survive ({told['density']:.2%})"]
    if told.get("rate"):
        words.append(f"rate {told['rate']:.4g}")
    if told.get("threshold") is not None:
        words.append(f"threshold {told['threshold']:.4g}")
    if "variant" in options:
        words.append(str(options["variant"]))
    return ", ".join(words)


def _headline(path: Path) -> dict[str, str]:
    try:
        record = json.loads(path.read_text())
        return {"path": str(path), "kind": str(record["kind"]), "summary": str(record["summary"])}
    except (ValueError, KeyError, TypeError, RecursionError):
        return {"path": str(path), "kind": "damaged", "summary": "this file cannot be read"}


def _tell_path(path: Path, as_json: bool) -> None:
    if as_json:
        _print_json({"path": str(path)})
    else:
        print(path)


def _print_json(value: object) -> None:
    print(json.dumps(value, allow_nan=False))
