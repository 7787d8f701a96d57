"""The folder of a run: what begins one, what is refused, where its answers go, and how a point in it is named."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from landscape import files
from landscape.errors import UnsafeInputError, UsageError
from landscape.runs import Place, Run, describe_failure, environment, named, place
from landscape.trajectories import Entry, Layout, Row, TrajectoryWriter

OPTIONS = {"task": "digits-mlp", "steps": 20, "lr": 0.1, "milestones": (0.5, 0.75)}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run(tmp_path / "run")
    assert not made.begin("train", OPTIONS, {"data": "digits"})
    return made


def recorded(run: Run, steps: list[int]) -> Run:
    writer = TrajectoryWriter(run.trajectory_path, Layout((Entry("w", (3,), 0, "float32", "parameter"),)))
    for step in steps:
        writer.append(Row(step, np.full(3, step, dtype=np.float32), np.empty(0), 1.0, 0.1))
    writer.commit()
    return run


# -- beginning --------------------------------------------------------------------------------------------------------


def test_constructing_a_run_touches_nothing(tmp_path: Path) -> None:
    made = Run(tmp_path / "run")
    assert (made.metrics(), made.answers()) == ({}, [])
    assert list(tmp_path.iterdir()) == []


def test_a_run_says_what_its_numbers_depend_on(run: Run) -> None:
    record = run.record()
    assert (record["kind"], record["state"], record["data"]) == ("train", "running", "digits")
    assert record["options"] == {**OPTIONS, "milestones": [0.5, 0.75]}
    assert set(record["versions"]) == {"python", "landscape-geometry", "torch", "numpy", "scipy", "safetensors"}
    assert record["versions"]["numpy"] == np.__version__
    assert record["started"].endswith("+00:00")
    assert {"git", "machine"} <= set(record)


def test_the_same_question_goes_on_and_a_finished_one_is_left(run: Run) -> None:
    run.update(state="interrupted")
    started = run.record()["started"]
    assert not run.begin("train", OPTIONS, {"data": "other words"})
    assert run.record()["state"] == "running"
    run.update(state="finished")
    assert run.begin("train", OPTIONS, {})
    record = run.record()
    assert (record["state"], record["started"], record["data"]) == ("finished", started, "digits")


@pytest.mark.parametrize(
    ("kind", "changes", "says"),
    [
        ("import", {}, "made by train, not import"),
        ("train", {"lr": 0.2}, "lr: 0.1 there, 0.2 asked"),
        ("train", {"lr": 0.2, "steps": 21}, "lr: 0.1 there, 0.2 asked; steps: 20 there, 21 asked"),
        ("train", {"momentum": 0.5}, "momentum: None there, 0.5 asked"),
    ],
)
def test_another_question_is_refused_and_the_difference_named(
    run: Run, kind: str, changes: dict[str, Any], says: str
) -> None:
    before = run.record_path.read_bytes()
    with pytest.raises(UsageError) as refusal:
        run.begin(kind, {**OPTIONS, **changes}, {})
    assert f"holds another run ({says}). Choose another --out" in str(refusal.value)
    assert run.record_path.read_bytes() == before


@pytest.mark.parametrize("name", ["thesis.tex", ".hidden", "run.json.tmp", "trajectory"])
def test_a_folder_of_other_things_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(UsageError, match="is not empty and holds no run"):
        Run(tmp_path).begin("train", OPTIONS, {})
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("names", [[], [".lock"], [".run.json.123.tmp"], [".lock", ".run.json.9.tmp"]])
def test_an_empty_folder_is_begun_in(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).touch()
    assert not Run(tmp_path).begin("train", OPTIONS, {})
    assert Run.open(tmp_path).options["lr"] == 0.1


def test_no_run_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no run"):
        Run.open(tmp_path)
    with pytest.raises(UsageError, match=r"nowhere does not exist. Make one with `landscape train TASK --out"):
        Run.open(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["schema", "kind", "state", "options", "started", "versions"])
@pytest.mark.parametrize("change", ["missing", "of another type"])
def test_a_record_that_is_not_whole_is_refused(run: Run, name: str, change: str) -> None:
    record = run.record()
    if change == "missing":
        del record[name]
    else:
        record[name] = 3.5
    run.record_path.write_text(json.dumps(record))
    with pytest.raises(UnsafeInputError, match=r"run\.json"):
        Run.open(run.folder)


# -- metrics ----------------------------------------------------------------------------------------------------------


def test_metrics_are_columns_by_step(run: Run) -> None:
    for line in ({"step": 10, "loss": 2.0}, {"step": 0, "loss": 3.0}, {"step": 20, "loss": None, "accuracy": 0.5}):
        files.append_line(run.metrics_path, line)
    metrics = run.metrics()
    np.testing.assert_array_equal(metrics["step"], [0, 10, 20])
    np.testing.assert_array_equal(metrics["loss"], [3, 2, np.nan])
    np.testing.assert_array_equal(metrics["accuracy"], [np.nan, np.nan, 0.5])
    with open(run.metrics_path, "ab") as file:
        file.write(b'{"step": 30, "lo')
    assert run.metrics()["step"].tolist() == [0, 10, 20]


@pytest.mark.parametrize(
    "line", [{"loss": 1.0}, {"step": "x"}, {"step": None}, {"step": 5, "loss": "low"}, {"step": 5, "loss": [1]}]
)
def test_metrics_that_make_no_sense_are_refused(run: Run, line: dict[str, object]) -> None:
    files.append_line(run.metrics_path, line)
    with pytest.raises(UnsafeInputError, match=r"metrics\.jsonl is damaged"):
        run.metrics()


# -- answers ----------------------------------------------------------------------------------------------------------


def stored(question: dict[str, Any], kind: str = "spectrum") -> str:
    return json.dumps({"kind": kind, "question": question, "summary": "s"})


def test_an_equal_question_finds_its_answer_and_no_other(run: Run) -> None:
    paths = [run.keep("spectrum", stored({"top": top})) for top in (1, 2, 3)]
    paths.append(run.keep("barrier", stored({"top": 2}, "barrier")))
    assert [path.name for path in paths] == ["spectrum.json", "spectrum-2.json", "spectrum-3.json", "barrier.json"]
    assert set(run.answers()) == set(paths)
    assert [run.find("spectrum", {"top": top}) for top in (1, 2, 3, 4)] == [*paths[:3], None]
    assert run.find("barrier", {"top": 2}) == paths[3]
    assert run.find("surface", {"top": 2}) is None
    assert run.find("spectrum", {"top": 2, "seed": 0}) is None


def test_a_question_with_tuples_finds_its_answer(run: Run) -> None:
    path = run.keep("spectrum", stored({"at": [1, 2]}))
    assert run.find("spectrum", {"at": (1, 2)}) == path


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff", b'{"kind": "spectrum"}', b"[" * 100_000])
def test_a_damaged_answer_is_not_found_and_not_replaced(run: Run, text: bytes) -> None:
    run.results_path.mkdir()
    (run.results_path / "spectrum.json").write_bytes(text)
    assert run.find("spectrum", {"top": 1}) is None
    assert run.keep("spectrum", stored({"top": 1})).name == "spectrum-2.json"
    assert (run.results_path / "spectrum.json").read_bytes() == text


def keep_many(folder: Path, name: int) -> None:
    for number in range(20):
        Run(folder).keep("spectrum", stored({"who": [name, number]}))


def test_answers_kept_at_once_do_not_replace_each_other(run: Run) -> None:
    """Two shells measure one run."""
    context = multiprocessing.get_context("fork")
    others = [context.Process(target=keep_many, args=(run.folder, name)) for name in range(4)]
    for other in others:
        other.start()
    for other in others:
        other.join()
        assert other.exitcode == 0
    kept = {tuple(json.loads(path.read_text())["question"]["who"]) for path in run.answers()}
    assert kept == {(name, number) for name in range(4) for number in range(20)}


# -- places -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("selector", "step"),
    [("", 500), ("@last", 500), ("@init", 0), ("@step=0", 0), ("@step=37", 37), ("@step=500", 500)],
)
@pytest.mark.parametrize("name", ["run", "a@b", "a@last", "a b ü", "@"])
def test_places_are_read(tmp_path: Path, name: str, selector: str, step: int) -> None:
    made = Run(tmp_path / name)
    made.begin("train", OPTIONS, {})
    recorded(made, [0, 37, 500])
    found = place(f"{made.folder}{selector}")
    assert found == Place(made, step)
    assert place(str(found)) == found


def test_a_point_is_named_once(run: Run) -> None:
    recorded(run, [0, 37])
    assert place(str(run.folder), "init").step == 0
    assert place(str(run.folder)).step == 37
    with pytest.raises(UsageError, match="names a point, and --at init names one again"):
        place(f"{run.folder}@last", "init")


@pytest.mark.parametrize(
    "selector", ["step", "step=", "step=x", "step=1.5", "step=--5", "step=²", "step=1e3", "Step=0", "first"]
)
def test_places_that_cannot_be_read_are_refused(run: Run, selector: str) -> None:
    recorded(run, [0, 37])
    with pytest.raises(UsageError, match=r"Allowed: RUN, RUN@init, RUN@last, RUN@step=500"):
        place(f"{run.folder}@{selector}")


@pytest.mark.parametrize("step", [-1, 1, 38, 10**17])
def test_steps_that_were_not_recorded_are_refused(run: Run, step: int) -> None:
    recorded(run, [0, 37])
    with pytest.raises(UsageError, match=rf"step {step} was not recorded. Nearest: 0, 37"):
        place(f"{run.folder}@step={step}")


def test_a_run_without_points_has_no_place(run: Run) -> None:
    with pytest.raises(UsageError, match="holds no trajectory"):
        place(str(run.folder))
    recorded(run, [])
    with pytest.raises(UsageError, match="no recorded point yet"):
        place(str(run.folder))


def test_a_place_keeps_its_name_when_its_run_is_moved(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded(run, [0])
    monkeypatch.chdir(run.folder.parent)
    assert Place(run, 5).within(Run(Path("run"))) == Place(Run(Path("run")), 5).within(run) == "step=5"
    assert Place(Run(Path("other")), 5).within(run) == "other@step=5"


# -- levels of iterative pruning --------------------------------------------------------------------------------------


@pytest.fixture
def levels(tmp_path: Path) -> Run:
    """A run with the levels 0 and 1, and no trajectory of its own."""
    made = Run(tmp_path / "t")
    made.begin("imp", OPTIONS, {})
    for number in (0, 1):
        made.level(number).begin("level", {**OPTIONS, "level": number}, {})
        recorded(made.level(number), [0, 37, 500])
    return made


@pytest.mark.parametrize(
    ("selector", "at", "step"),
    [
        ("@level=1", None, 500),
        ("@level=1,init", None, 0),
        ("@level=1,step=37", None, 37),
        ("@level=1", "init", 0),  # a level is no point yet
        ("", "level=1", 500),
        ("", "level=1,step=37", 37),
    ],
)
def test_a_point_of_a_level_is_read(levels: Run, selector: str, at: str | None, step: int) -> None:
    assert place(f"{levels.folder}{selector}", at) == Place(levels.level(1), step)


@pytest.mark.parametrize("selector", ["", "@last"])
def test_the_run_of_a_level_is_named_as_its_place_is(levels: Run, selector: str) -> None:
    assert named(f"{levels.level(1).folder}{selector}") == levels.level(1)
    assert named(f"{levels.folder}@level=1") == named(f"{levels.folder}@level=1,last") == levels.level(1)
    assert named(f"{levels.folder}{selector}") == levels  # which has answers of its own


@pytest.mark.parametrize(
    ("selector", "says"),
    [
        ("level=1,init", "is one point, and the whole run is asked for"),
        ("level=1,step=38", "step 38 was not recorded"),
        ("level=2", "holds the levels 0, 1; got"),
        ("level=", "holds the levels 0, 1; got"),
        ("level=²", "holds the levels 0, 1; got"),
        ("level=1,first", "cannot read the place 'first'"),
        ("init", "Say which: .*@level=1[.]$"),  # not a step that may not be there
    ],
)
def test_what_is_no_run_of_a_level_is_refused(levels: Run, selector: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        named(f"{levels.folder}@{selector}")


def test_a_number_of_a_level_may_be_of_any_length(levels: Run) -> None:
    with pytest.raises(UsageError, match="holds the levels 0, 1; got"):
        place(str(levels.folder), "level=" + "9" * 5000)  # more digits than int() takes


def test_a_place_where_a_folder_is_asked_for_is_told_as_such(levels: Run) -> None:
    with pytest.raises(UsageError, match=r"names a place in the run .*/t\. Here the run itself") as refusal:
        Run.open(Path(f"{levels.folder}@level=1"))
    assert "--out" not in str(refusal.value)


# -- the rest ---------------------------------------------------------------------------------------------------------


def test_no_git_is_no_obstacle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert environment()["git"] is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment()["git"] is None


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the quota is used up"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "no permission"),
        (errno.ENOENT, "does not exist"),
        (errno.ENOTDIR, "not a folder"),
        (errno.EISDIR, "not a file"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_a_failed_write_says_where_and_what_to_do(code: int, says: str) -> None:
    told = describe_failure(OSError(code, os.strerror(code), "runs/a/run.json"))
    assert told.exit_code == 1
    assert str(told).startswith("runs/a/run.json: ")
    assert says in str(told)
    assert "a file: " in str(describe_failure(OSError(code, os.strerror(code))))
