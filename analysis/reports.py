"""The report: one HTML file that holds everything it shows. No network address, no request: a policy in its head forbids them.

Warnings first, then the findings in a line each, then every answer with its picture, its caption, and what its numbers depend on.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from landscape.analysis import styles
from landscape.analysis.answers import load
from landscape.analysis.histories import history
from landscape.results import Result
from landscape.runs import Run

# scripts and styles stand in the page itself; plotly compiles its 3-D shaders' accessors at run time, hence unsafe-eval
POLICY = "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:; font-src data:"

# a picture drawn inside a closed fold has no size yet
UNFOLD = "for (const fold of document.querySelectorAll('details')) fold.ontoggle = () => fold.querySelectorAll('.live').forEach(Plotly.Plots.resize);"

STYLE = """
:root { color-scheme: light; --ink: #1b1b1b; --soft: #5c5c5c; --line: #dddddd; --warn: #8a3b00; --paper: #ffffff; }
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 60rem; margin: 2rem auto 5rem; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; margin: 0 0 .2rem; } h2 { font-size: 1.25rem; margin: 3rem 0 .3rem; padding-top: 1rem; border-top: 1px solid var(--line); }
.soft, figcaption { color: var(--soft); } figcaption { font-size: .9rem; margin: .2rem 0 .8rem; } figure { margin: 0; }
.warnings { border-left: 4px solid var(--warn); padding: .3rem 1rem; margin: 1.2rem 0; } .warnings h2 { border: 0; margin: 0; padding: 0; font-size: 1rem; color: var(--warn); }
.found li { margin: .35rem 0; } table { border-collapse: collapse; font-size: .85rem; } td, th { text-align: left; padding: .2rem .9rem .2rem 0; vertical-align: top; border-bottom: 1px solid var(--line); overflow-wrap: anywhere; } th { white-space: nowrap; }
details { margin: .6rem 0; } summary { cursor: pointer; color: var(--soft); font-size: .9rem; } img { max-width: 100%; height: auto; }
code { font-size: .9em; overflow-wrap: anywhere; } .live { min-height: 460px; }
"""


def report(run: Run) -> str:
    """The report of a run as HTML text. Raises UnsafeInputError where a stored answer cannot be read."""
    course = history(run)
    stored = [(path, load(path)) for path in run.answers()]
    # a sweep has answers and no course of its own
    answers = [*([] if stored and not course.recorded and not course.columns else [(None, course)]), *stored]
    record = run.record()
    title = f"{record['options']['task']}: its loss landscape"
    warnings = [(answer.kind, warning) for _, answer in answers for warning in answer.warnings]
    parts = [
        f"<h1>{_text(title)}</h1>",
        f'<p class="soft">Run <code>{_text(str(run.folder))}</code>, {_text(record["kind"])} of {_text(record["started"])}; {_text(record.get("data", ""))}.</p>',
    ]
    if warnings:
        items = "".join(f"<li><b>{_text(kind)}</b>: {_text(warning)}</li>" for kind, warning in warnings)
        parts.append(
            f'<section class="warnings"><h2>{len(warnings)} warning{"s" * (len(warnings) > 1)}</h2><ul>{items}</ul></section>'
        )
    else:
        parts.append('<p class="soft">No analysis raised a warning.</p>')
    parts.append(
        '<ul class="found">' + "".join(f"<li>{_text(answer.summary())}</li>" for _, answer in answers) + "</ul>"
    )
    parts += [_section(number, path, answer) for number, (path, answer) in enumerate(answers)]
    parts.append("<h2>What this run was</h2>" + _table(record))
    return page(title, parts)


def page(title: str, parts: Sequence[str]) -> str:
    """A whole self-contained page around parts of a body."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{_text(title)}</title><style>{STYLE}</style>'
        f"<script>{_plotly()}</script></head><body>{''.join(parts)}<script>{UNFOLD}</script></body></html>\n"
    )


def live(result: Result, name: str) -> str:
    """The interactive picture of a result as HTML."""
    figure = json.loads(result.figure().to_json())
    # "</script" would end the script, and "<!--<script" would keep it from ending: no "<" at all
    data = json.dumps([figure["data"], figure["layout"], {"responsive": True, "displaylogo": False}]).replace(
        "<", "\\u003c"
    )
    return (
        f'<div class="live" id="{name}" role="img" aria-label="{_text(result.summary())}"></div>'
        f'<script>Plotly.newPlot("{name}", ...{data});</script>'
    )


def _section(number: int, path: Path | None, answer: Result) -> str:
    heading = answer.kind.capitalize() + (f" <span class='soft'>({_text(path.name)})</span>" if path else "")
    parts = [f'<section id="{answer.kind}-{number}"><h2>{heading}</h2><p>{_text(answer.summary())}</p>']
    table = _grid(answer.table())
    if answer.panels():
        still = base64.b64encode(styles.rendered(answer, "png")).decode()
        parts += [
            f'<figure><img alt="{_text(answer.summary())}" src="data:image/png;base64,{still}"><figcaption>{_text(answer.caption())}</figcaption></figure>',
            f"<details{' open' if answer.kind == 'surface' else ''}><summary>Interactive picture</summary>{live(answer, f'live-{number}')}</details>",
            f"<details><summary>The numbers</summary>{table}</details>" if table else "",
        ]
    else:
        parts.append(table)
    parts.append(
        f"<details><summary>What these numbers depend on</summary>{_table({**answer.question, **answer.provenance})}</details></section>"
    )
    return "".join(parts)


def _grid(rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    head, *body = (
        "".join(f"<{'td' if place else 'th'}>{_text(cell)}</{'td' if place else 'th'}>" for cell in row)
        for place, row in enumerate(rows)
    )
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in body)}</table>"


def _table(record: dict[str, Any]) -> str:
    rows = "".join(f"<tr><th>{_text(key)}</th><td>{_text(_plain(value))}</td></tr>" for key, value in record.items())
    return f"<table>{rows}</table>"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)


def _plotly() -> str:
    """plotly.js without the schemes of the addresses in it (map tiles and the like, never used here); XML namespaces are names and stay."""
    from plotly.offline import get_plotlyjs

    return re.sub(r"https?://(?!www\.w3\.org/)", "", get_plotlyjs())
