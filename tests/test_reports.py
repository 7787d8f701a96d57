"""Reports and pictures: self-contained, safe whatever the names, drawn from the stored numbers alone."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from landscape import files
from landscape.analysis import reports, styles
from landscape.analysis.answers import load
from landscape.analysis.histories import history
from landscape.cli.app import main
from landscape.runs import Run

# what a name may do at worst: open a tag, hide the end of a script, leave an attribute, start mathematics, turn around
HOSTILE = "<script>alert(1)<\\script><!--<script>'\"&$_{^\u202e"
PROBLEM = """
import torch
from torch import nn

def make():
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)), "cross-entropy", (x, (x[:, 0] > 0).long())
"""
KINDS = ("spectrum", "layers", "sharpness", "dimensions", "barrier", "surface", "width", "exploration", "checkup")


def ask(*argv: object) -> None:
    assert main([str(argument) for argument in argv]) == 0


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose task and folder have hostile names, with an answer of every kind."""
    folder = tmp_path_factory.mktemp("reports") / HOSTILE
    folder.mkdir()
    (folder / "p$x_{<b>'.py").write_text(PROBLEM)
    spec, run = f"{folder}/p$x_{{<b>'.py:make", folder / "run<i>\"&'"
    ask("train", spec, "--steps", "20", "--batch-size", "10", "--record-every", "2", "--evaluations", "5", "--out", run)
    ask("spectrum", run, "--task", spec, "--density", "--probes", "2", "--lanczos-steps", "10", "--top", "99")
    ask("spectrum", run, "--task", spec, "--layers")
    ask("sharpness", run, "--task", spec, "--trace")
    ask("dimensions", run, "--task", spec, "--points", "3")
    ask("barrier", f"{run}@init", run, "--task", spec)
    ask("surface", run, "--task", spec, "--side", "5")
    ask("width", run, "--task", spec, "--loss", "0.6,0.5", "--draws", "2", "--rounds", "2", "--radii", "1")
    ask("explore", run, "--task", spec, "--loss", "0.6,0.5", "--directions", "4")
    ask("check", run, "--task", spec)
    return run


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Run:
    shutil.copytree(made, tmp_path / made.name)
    return Run(tmp_path / made.name)


@pytest.fixture(scope="module")
def page(made: Path) -> str:
    return reports.report(Run(made))


class Outline(html.parser.HTMLParser):
    """What a browser makes of a page: its tags with attributes, and the text outside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        self._inside = tag if tag in ("script", "style") else ""
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif not self._inside:
            self.text.append(data)


# -- the page ---------------------------------------------------------------------------------------------------------


def test_it_names_no_address_but_xml_namespaces(page: str) -> None:
    assert "http" in page  # namespaces: else this test would see nothing
    assert re.findall(r"https?://(?!www\.w3\.org/)", page) == []


def test_it_may_load_nothing(page: str) -> None:
    outline = Outline(page)
    (policy,) = [
        given["content"] for tag, given in outline.tags if given.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy is not None
    rules = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert rules["default-src"] == "'none'"
    for sources in rules.values():
        assert set(sources.split()) <= {"'none'", "'unsafe-inline'", "'unsafe-eval'", "data:", "blob:"}
    head = [tag for tag, _ in outline.tags[: outline.tags.index(("body", {}))]]
    assert head.index("meta") < head.index("script")  # a policy counts from where it stands
    for tag, given in outline.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        for name in ("src", "href", "action"):
            assert given.get(name, "data:").startswith("data:")  # type: ignore[union-attr]


def test_hostile_names_stay_text(page: str, made: Path) -> None:
    outline = Outline(page)
    # plotly, the unfolding of folds, and a call for each picture (history, and all kinds but the checkup): nothing that a name brought
    assert len(outline.scripts) == 2 + len(KINDS)
    for script in outline.scripts[1:-1]:
        assert script.startswith("Plotly.newPlot(")
        assert "<" not in script
    assert sum(page.count(f"</{tag}>") for tag in ("html", "body", "head")) == 3
    allowed = {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "script",
        "body",
        "h1",
        "h2",
        "p",
        "code",
        "section",
        "ul",
        "li",
        "b",
    }
    allowed |= {"figure", "img", "figcaption", "details", "summary", "div", "table", "tr", "th", "td", "span"}
    assert {tag for tag, _ in outline.tags} <= allowed
    for _, given in outline.tags:
        assert set(given) <= {
            "lang",
            "charset",
            "http-equiv",
            "content",
            "name",
            "class",
            "id",
            "alt",
            "src",
            "open",
            "role",
            "aria-label",
        }
    assert str(made) in "".join(outline.text)  # the name itself is there, whole


def test_every_answer_is_there_with_picture_and_caption(page: str, made: Path) -> None:
    outline = Outline(page)
    text = "".join(outline.text)
    for answer in [history(Run(made)), *map(load, Run(made).answers())]:
        assert answer.summary() in text
        if answer.panels():
            assert answer.caption() in text
    stills = [given for tag, given in outline.tags if tag == "img"]
    assert len(stills) == len(KINDS)  # with the history; the checkup is a table
    for given in stills:
        assert given["src"].startswith("data:image/png;base64,")  # type: ignore[union-attr]
        assert given["alt"]


def test_warnings_come_first(run: Run) -> None:
    path = run.results_path / "spectrum.json"
    record = json.loads(path.read_text())
    del record["check"]  # as if written by hand
    record["warnings"] = ["mind the <gap> & co", "and the step"]
    path.write_text(json.dumps(record))
    page = reports.report(run)
    others = sum(len(answer.warnings) for answer in map(load, run.answers()) if answer.kind != "spectrum")
    assert f"<h2>{2 + others} warnings</h2>" in page
    first = page.index("mind the &lt;gap&gt; &amp; co")
    assert first < page.index('<ul class="found">') < page.index("<section id=")
    assert "<gap>" not in page


def test_it_is_small_enough_to_send(page: str) -> None:
    assert len(page.encode()) < 8e6


def test_a_run_without_measurements_has_a_report(run: Run) -> None:
    shutil.rmtree(run.results_path)
    run.metrics_path.unlink()
    page = reports.report(run)
    assert "no measured curve" in page
    assert "No analysis raised a warning" in page


def test_strange_contents_of_the_record_stay_text(run: Run) -> None:
    run.update(data=["<b>", 3, None], kind="<b>train</b>", git=None)
    page = reports.report(run)
    assert "<b>train" not in page
    assert "[&#x27;&lt;b&gt;&#x27;, 3, None]" in page


def test_the_command_writes_it_whole(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    ask("report", run.folder)
    assert capsys.readouterr().out == f"{run.report_path}\n"
    assert run.report_path.read_text() == reports.report(run)


# -- pictures ---------------------------------------------------------------------------------------------------------


def signature(path: Path) -> bool:
    raw = path.read_bytes()
    if path.suffix == ".png":
        return raw.startswith(b"\x89PNG\r\n\x1a\n") and raw.endswith(b"IEND\xaeB`\x82")
    if path.suffix == ".pdf":
        return raw.startswith(b"%PDF-") and raw.rstrip().endswith(b"%%EOF")
    if path.suffix == ".svg":
        return b"<svg" in raw[:1000] and raw.rstrip().endswith(b"</svg>")
    return raw.startswith(b"<!doctype html>") and raw.endswith(b"</html>\n")


def drawn(kind: str) -> list[str]:
    return [] if kind == "checkup" else ["svg", "pdf", "png", "html"]


TICKETS = ("ladder", "chain", "instability", "robustness", "retraining")


def test_a_report_of_tickets_holds_an_answer_of_every_kind(tmp_path: Path) -> None:
    """Of hostile names, too; each is drawn from its stored numbers, and read back equal."""
    (tmp_path / "p$x_{<b>'.py").write_text(PROBLEM)
    spec, run = f"{tmp_path}/p$x_{{<b>'.py:make", tmp_path / "run<i>\"&'"
    recipe = ("--steps", "8", "--batch-size", "10", "--rewind", "2", "--levels", "2", "--rate", "0.3")
    ask("imp", spec, *recipe, "--replicates", "2", "--ablations", "shuffled,reinit", "--out", run)
    ask("barrier", run, "--task", spec, "--levels", "all", "--pairs", "all", "--points", "3")
    ask("spawn", run, "--task", spec, "--levels", "0,1", "--points", "3")
    ask("robustness", run, "--task", spec, "--levels", "0,1", "--points", "3")
    ask("retraining", run, "--task", spec)
    page = reports.report(Run(run))
    assert page.count("<img alt=") == len(TICKETS) and "<i>" not in page and "<b>'" not in page
    for kind in TICKETS:
        answer = load(run / "results" / f"{kind}.json")
        assert styles.rendered(answer, "svg").startswith(b"<?xml") and answer.figure().data
        assert type(answer).from_json(answer.to_json()).to_json() == answer.to_json()
        assert answer.caption() and len({len(row) for row in answer.table()}) == 1


@pytest.mark.parametrize("kind", ["history", *KINDS])
def test_a_picture_needs_its_stored_numbers_only(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The answer is moved away from its run, and everything that computes is out of reach."""
    if kind == "history":
        source: Path = made
    else:
        source = tmp_path / "moved" / "any name.json"
        source.parent.mkdir()
        shutil.copy(made / "results" / f"{kind}.json", source)
    monkeypatch.setattr("landscape.objectives.Objective.of", lambda *_, **__: pytest.fail("it was computed again"))
    for ending in drawn(kind):
        out = tmp_path / "new folder" / f"x.{ending}"
        ask("plot", source, out)
        assert signature(out), ending
    if not drawn(kind):
        for ending in ("svg", "html"):
            assert main(["plot", str(source), str(tmp_path / f"x.{ending}")]) == 2
            assert not (tmp_path / f"x.{ending}").exists()


@pytest.mark.parametrize("kind", ["spectrum", "layers", "sharpness", "barrier", "surface"])
def test_the_same_numbers_give_the_same_bytes(made: Path, kind: str) -> None:
    answer = load(made / "results" / f"{kind}.json")
    for ending in styles.FORMATS:
        assert styles.rendered(answer, ending) == styles.rendered(load(made / "results" / f"{kind}.json"), ending)


def test_text_in_pictures_stays_text(made: Path) -> None:
    image = styles.rendered(history(Run(made)), "svg").decode()
    assert "<text" in image
    assert "step" in re.sub("<[^>]*>", " ", image)


def test_an_interactive_picture_is_as_safe_as_the_report(made: Path, tmp_path: Path) -> None:
    ask("plot", made, tmp_path / "x.html")
    outline = Outline((tmp_path / "x.html").read_text())
    assert len(outline.scripts) == 3
    assert outline.scripts[1].startswith("Plotly.newPlot(")
    assert {tag for tag, _ in outline.tags} <= {"html", "head", "meta", "title", "style", "script", "body", "p", "div"}
    assert HOSTILE in "".join(outline.text)


def test_drawing_leaves_matplotlib_as_it_was(made: Path) -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    styles.rendered(history(Run(made)), "png")
    assert dict(mpl.rcParams) == before


# -- nothing but NaN --------------------------------------------------------------------------------------------------


def without_numbers(value: Any) -> Any:
    """The same answer, every measured number NaN. Where it was measured is known: a grid, a plane, the path on it."""
    if isinstance(value, dict) and set(value) == {"array", "shape", "dtype"}:
        floats = value["dtype"].startswith("float")
        return {**value, "array": [None] * len(value["array"])} if floats else value
    if isinstance(value, dict):
        return {
            key: item if key in ("x", "y", "grid", "path", "out_of_plane") else without_numbers(item)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [without_numbers(item) for item in value]
    return value


@pytest.mark.filterwarnings("ignore:All-NaN")
@pytest.mark.parametrize("kind", ["spectrum", "layers", "sharpness", "barrier", "surface"])
def test_an_answer_of_nan_alone_is_drawn_and_reported(run: Run, kind: str) -> None:
    path = run.results_path / f"{kind}.json"
    record = json.loads(path.read_text())
    del record["check"]  # as if written by hand
    files.write_atomic(path, json.dumps(without_numbers(record)))
    answer = load(path)
    for ending in styles.FORMATS:
        assert styles.rendered(answer, ending)
    page = reports.report(run)
    for script in Outline(page).scripts[1:-1]:
        json.loads(script[script.index(", ...") + 5 : -2], parse_constant=pytest.fail)


def test_a_curve_of_nan_alone_is_drawn_and_reported(run: Run) -> None:
    lines = files.read_lines(run.metrics_path)
    run.metrics_path.unlink()
    for line in lines:
        files.append_line(run.metrics_path, {name: value if name == "step" else None for name, value in line.items()})
    answer = history(run)
    assert np.isnan(answer.columns["train_loss"]).all()
    for ending in styles.FORMATS:
        assert styles.rendered(answer, ending)
    assert "train loss nan" in reports.report(run)
