"""Bad inputs get one screen that says what was got, what is allowed and what to do, and an exit code.

Nothing is lost by any of them. Most commands run in this process, through the `main` that the console script calls; a
process of its own is started only where it is the point.
"""

from __future__ import annotations

import errno
import json
import os
import pickle  # noqa: TID251 (to make what must be refused)
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from landscape import files, objectives, recordings
from landscape.cli.app import app, main
from landscape.results import Result
from landscape.runs import Run

PROBLEM = '''
import torch
from torch import nn

def data():
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    return x, (x[:, 0] > 0).long()

def make():
    """A problem."""
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)), "cross-entropy", data()

def with_nan():
    x, y = data()
    x[17, 2] = float("nan")
    return nn.Linear(4, 2), "cross-entropy", (x, y)

def raising():
    raise LookupError("no such thing, says the user")

class Broken(nn.Linear):
    def forward(self, x):
        return super().forward(x) @ "seven"

def broken_forward():
    return Broken(4, 2), "cross-entropy", data()

def odd_loss():
    def loss(outputs, targets):
        raise ZeroDivisionError("in the user's loss")
    return nn.Linear(4, 2), loss, data()
'''
OURS = Path(__file__).parent.parent
HERE = ["--steps", "20", "--batch-size", "10", "--record-every", "5", "--evaluations", "4"]


@dataclass
class Answer:
    code: int
    out: str
    err: str


class Shell:
    """Runs command lines in this process and checks what holds for all of them."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *argv: object) -> Answer:
        self._capsys.readouterr()
        code = main([str(argument) for argument in argv])
        out, err = self._capsys.readouterr()
        assert "Traceback" not in out + err
        return Answer(code, out, err)

    def refused(self, code: int, *argv: object, says: str | tuple[str, ...] = ()) -> Answer:
        """One screen on stderr, nothing on stdout."""
        answer = self(*argv)
        assert answer.code == code, answer.err
        assert answer.out == ""
        told = [line for line in answer.err.splitlines() if not line.startswith(("step ", "warning: "))]
        assert told[0].startswith("landscape: ")
        assert len(told) <= 12
        assert len("".join(told)) < 2000
        assert str(OURS) not in answer.err.replace(str(Path.cwd()), "")  # none of our own lines
        for words in (says,) if isinstance(says, str) else says:
            assert words in answer.err, answer.err
        return answer


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Shell:
    monkeypatch.chdir(tmp_path)
    return Shell(capsys)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("problem") / "problem.py"
    path.write_text(PROBLEM)
    return f"{path}:make"


def sibling(spec: str, name: str) -> str:
    return spec.rpartition(":")[0] + ":" + name


@pytest.fixture(scope="module")
def made(spec: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with an answer; tests that write take a copy."""
    folder = tmp_path_factory.mktemp("made") / "run"
    assert main(["train", spec, *HERE, "--out", str(folder)]) == 0
    assert main(["spectrum", str(folder), "--task", spec, "--top", "2"]) == 0
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# -- words that mean nothing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["trian"], ('"trian"', '"train"', "landscape --help")),
        (["train", "digits-mpl", "--out", "x"], ("'mpl'", "'mlp'")),
        (["train", "digit-mlp", "--out", "x"], ("'digit'", "'digits'")),
        (["train", "nonsense", "--out", "x"], ("nonsense", "file.py:function")),
        (["train", "digits-mlp", "--out", "x", "--setps", "3"], ("--setps", "--steps", "landscape train --help")),
        (["train", "digits-mlp", "more", "--out", "x"], "more"),
        (["train", "digits-mlp"], "--out"),
        (["train", "--out", "x"], "TASK"),
        (["train", "digits-mlp", "--out"], "--out"),
        (["train", "digits-mlp", "--out", "x", "--steps", "many"], ("--steps", '"many"', "int")),
        (["train", "digits-mlp", "--out", "x", "--lr", "fast"], ("--lr", '"fast"')),
        (["train", "digits-mlp", "--out", "x", "--steps", "2.5"], '"2.5" is not a whole number'),
        (["train", "digits-mlp", "--out", "x", "--lr", "nan"], "lr must be positive and finite; got nan"),
        (["train", "digits-mlp", "--out", "x", "--lr", "0"], "got 0"),
        (["train", "digits-mlp", "--out", "x", "--steps", "-3"], "steps must be at least 0; got -3"),
        (["train", "digits-mlp", "--out", "x", "--momentum", "1"], "momentum must lie in [0, 1); got 1"),
        (["train", "digits-mlp", "--out", "x", "--optimizer", "adma"], ('"adma"', '"adam"')),
        (["train", "digits-mlp", "--out", "x", "--schedule", "cosin"], ('"cosin"', '"cosine"')),
        (["train", "digits-mlp", "--out", "x", "--augment", "flop"], ("'flop'", "'flip'")),
        (["train", "digits-mlp", "--out", "x", "--augment", "flip"], "is for image rows"),
        (["train", "digits-mlp", "--out", "x", "--batch-size", "9999"], ("9999", "1437")),
        (["train", "digits-mlp", "--out", "x", "--device", "tpu"], ('"tpu"', '"cpu"')),
        (["train", "digits-mlp", "--out", "x", "--device", "mps"], ("mps", "--device cpu")),
        (["train", "digits-mlp", "--out", "x", "--dtype", "float16"], ('"float16"', '"float32"')),
        (["train", "digits-mlp", "--out", "x", "--precision", "bf16"], "bf16 autocast is for CUDA"),
        (["train", "digits-mlp", "--out", "x", "--record-every", "0"], ("--record-every", "'0'", "log or auto")),
        (["train", "digits-mlp", "--out", "x", "--record-every", "²"], "'²'"),
        (["train", "digits-mlp", "--out", "x", "--evaluations", "0"], "--evaluations at least 1"),
        (["train", "digits-mlp", "--out", "x", "--commit-seconds", "0"], "--commit-seconds must be positive"),
        (["train", "digits-mlp", "--out", "x", "--commit-seconds", "nan"], "got nan"),
        (["train", "digits-mlp", "--out", "x", "--data", "."], "--data would do nothing for digits-mlp"),
        (["train", "digits-mlp", "--out", "x", "--download"], "--download would do nothing for digits-mlp"),
        (["import", "x.pt", "--task", "digits-mlp", "--out", "x", "--dtype", "float64"], "--dtype"),
        (["import", "x.pt", "--task", "digits-mlp", "--out", "x", "--device", "cpu"], "--device"),
        (["check", "digits-mlp", "--at", "init"], "--at is for a RUN"),
        (["check", "digits-mlp", "--task", "x"], "--task is for a RUN"),
        (["train", "digits-mlp", "--out", "x", "--limit", "0"], "0"),
        (["train", "digits-mlp", "--out", "x", "--width", "nan"], "nan"),
        (["train", "nofile.py:make", "--out", "x"], "nofile.py"),
        (["train", "no_such_module:make", "--out", "x"], "no_such_module"),
        (["import", "--task", "digits-mlp", "--out", "x"], "no checkpoint given"),
        (["import", "x.pt", "--out", "x"], "--task"),
        (["show", "nowhere"], "nowhere does not exist"),
        (["report", "nowhere"], "nowhere does not exist"),
        (["spectrum", "nowhere"], "nowhere does not exist"),
        (["show"], "RUN"),
    ],
)
def test_what_is_misspelt_is_a_usage_error(shell: Shell, argv: list[str], says: str | tuple[str, ...]) -> None:
    shell.refused(2, *argv, says=says)
    assert not Path("x").exists()  # and leaves nothing behind


def test_a_misspelt_function_of_the_user_is_named(shell: Shell, spec: str) -> None:
    shell.refused(2, "train", sibling(spec, "mkae"), "--out", "x", says=("'mkae'", "'make'"))


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("@step=7", "step 7 was not recorded. Nearest: 0, 5, 10 (5 rows from 0 to 20)"),
        ("@setp=5", "cannot read the place 'setp=5'"),
        ("@step=", "cannot read the place"),
        ("@step=--5", "cannot read the place"),
        ("@step=²", "cannot read the place"),
        ("@step=" + "9" * 5000, "cannot read the place"),
        ("@first", "Allowed: RUN, RUN@init, RUN@last, RUN@step=500"),
    ],
)
@pytest.mark.parametrize("command", ["show", "spectrum"])
def test_a_point_that_is_not_there_is_a_usage_error(
    shell: Shell, made: Path, command: str, place: str, says: str
) -> None:
    if len(place) > 100:
        says, place = "step=999", place[:100]
    shell.refused(2, command, f"{made}{place}", says=says)


def test_points_that_are_there_are_found(shell: Shell, made: Path, tmp_path: Path) -> None:
    odd = tmp_path / "a@b c ü"
    shutil.copytree(made, odd)
    for place in ("", "@last", "@init", "@step=15"):
        assert shell("show", f"{odd}{place}").code == 0


# -- options from a file ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("stepz: 3\n", ("unknown option in run.yaml: 'stepz'", "'steps'")),
        ("batchsize: 3\n", ("'batchsize'", "'batch-size'")),
        ("task: digits-mlp\n", "'task'"),
        ("config: other.yaml\n", "'config'"),
        ("train: {steps: 3}\n", "'train'"),
        ("common: {seed: 3}\n", "'common'"),
        ("help: true\n", "'help'"),
        ("steps: many\n", ("steps", "many", "int")),
        ("steps: yes\n", ("steps", "True")),
        ("steps: [1, 2]\n", "steps"),
        ("steps: {a: 1}\n", "steps"),
        ("lr: .nan\n", "lr must be positive"),
        ("steps: 2.5\n", '"2.5" is not a whole number'),
        ("lr: 1e-3x\n", "lr"),
        ("optimizer: 3\n", ("optimizer", '"sgd"')),
        ("milestones: [0.5, x]\n", "milestones"),
        ("steps: 3\nlr: 0.1\nsteps: 4\n", "the key 'steps' is given twice"),
        ("steps: &n 3\nwarmup: *n\n", "aliases are not allowed"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", "aliases are not allowed"),
        ("<<: {steps: 3}\n", "run.yaml"),
        ("steps: !!python/object/apply:os.system ['touch hacked']\n", "could not determine a constructor"),
        ("steps: !!python/name:os.system\n", "could not determine a constructor"),
        ("\tsteps: 3\n", ("is not YAML", "'\\t'")),
        ("steps:\t3\n\tlr: 1\n", "is not YAML"),
        ("- steps\n", "must map option names to values, such as `steps: 2000`; got list"),
        ("3\n", "got int"),
        ("", "got NoneType"),
        ("1: 2\n", "must map option names"),
        ("steps: [3\n", "is not YAML"),
        ("when: 2001-99-99\n", "is not YAML: month"),
        ("steps: !!timestamp abc\n", "is not YAML"),
        ("steps: !!int ''\n", "is not YAML"),
        ("steps: !!map [a]\n", "is not YAML"),
        ("? [a]\n: b\n", "unhashable"),
        ("[" * 20_000, "is not YAML"),
        ("x: " + "y" * 2**21, "is not YAML: 2,097,155 characters"),
        ("a: \x07\n", "special characters are not allowed"),
        (b"\xff\xfe\x00", "is not YAML"),
    ],
)
def test_a_bad_file_of_options_is_a_usage_error(shell: Shell, text: str | bytes, says: str | tuple[str, ...]) -> None:
    Path("run.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    shell.refused(2, "train", "digits-mlp", "--out", "x", "--config", "run.yaml", says=says)
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["run.yaml"]


@pytest.mark.parametrize(
    ("path", "says"), [("none.yaml", "No such file"), (".", "Is a directory"), ("a/b", "Not a directory")]
)
def test_a_file_of_options_that_is_not_there_is_a_usage_error(shell: Shell, path: str, says: str) -> None:
    Path("a").touch()
    shell.refused(2, "train", "digits-mlp", "--out", "x", "--config", path, says=("--config", says))
    shell.refused(2, "train", "digits-mlp", "--out", "x", f"--config={path}", says=("--config", says))


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"], ids=["plain", "BOM"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
def test_flags_win_over_files_and_later_files_over_earlier(shell: Shell, spec: str, start: bytes, end: bytes) -> None:
    Path("a.yaml").write_bytes(start + b"steps: 8" + end + b"lr: 0.25" + end + b"batch_size: 10" + end)
    Path("b.yaml").write_bytes(b"lr: 0.125\nwarmup: 3\n")
    answer = shell("train", spec, "--out", "x", "--config", "a.yaml", "--config=b.yaml", "--warmup", "2")
    assert answer.code == 0, answer.err
    options = Run(Path("x")).options
    assert [options[name] for name in ("steps", "lr", "batch_size", "warmup")] == [8, 0.125, 10, 2]


def test_a_file_may_set_an_option_that_bears_the_name_of_a_command(shell: Shell) -> None:
    Path("a.yaml").write_text("width: 0.25\nsteps: 1\n")
    Path("b.yaml").write_text("spectrum: flat\ndim: 8\ndraws: 0\n")
    answer = shell("train", "digits-mlp", "--out", "x", "--config", "a.yaml")
    assert answer.code == 0, answer.err
    assert (Run(Path("x")).options["width"], Run(Path("x")).options["steps"]) == (0.25, 1)
    answer = shell("well", "--out", "y", "--config", "b.yaml")
    assert answer.code == 0, answer.err
    assert "1 quadratic well in 8 dimensions" in answer.out


# -- checkpoints ------------------------------------------------------------------------------------------------------


def state(**changes: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    return {**module.state_dict(), **changes}


class Gadget:
    """What runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch hacked",)


def bad_checkpoints(folder: Path) -> dict[str, tuple[int, tuple[str, ...]]]:
    """Files that must be refused: exit code and words."""
    folder.mkdir()
    torch.save(state(), folder / "good.pt")
    good = (folder / "good.pt").read_bytes()
    names = state()
    names["9.weight"] = names.pop("2.weight")
    torch.save(names, folder / "names.pt")
    torch.save(state(**{"0.weight": torch.zeros(8, 5)}), folder / "shapes.pt")
    torch.save(state(**{"0.bias": torch.full((8,), torch.nan)}), folder / "nan.pt")
    (folder / "cut.pt").write_bytes(good[: len(good) // 2])
    flipped = bytearray(good)
    flipped[good.index(state()["2.weight"].numpy().tobytes()) + 5] ^= 16
    (folder / "flipped.pt").write_bytes(flipped)
    (folder / "empty.pt").touch()
    torch.save({**state(), "gadget": Gadget()}, folder / "hostile.pt")
    (folder / "raw.pt").write_bytes(
        pickle.dumps({**{k: v.numpy() for k, v in state().items()}, "x": Gadget()}, protocol=2)
    )
    np.savez(folder / "objects.npz", weight=np.array([Gadget()], dtype=object))
    safetensors.torch.save_file(state(), folder / "cut.safetensors")
    os.truncate(folder / "cut.safetensors", 300)
    (folder / "fake.safetensors").write_bytes(pickle.dumps(Gadget()))
    (folder / "nothing").mkdir()
    return {
        "names.pt": (2, ("'2.weight'", "'9.weight'", "does not fit the model")),
        "shapes.pt": (2, ("'0.weight' is (8, 5) where (8, 4) is due",)),
        "nan.pt": (1, ("'0.bias' has 8 of 8 values that are NaN",)),
        "cut.pt": (3, ("cut.pt",)),
        "flipped.pt": (3, ("flipped.pt is damaged: the checksum",)),
        "empty.pt": (3, ("empty.pt is empty",)),
        "hostile.pt": (3, ("system", "Nothing in it was run")),
        "raw.pt": (3, ("raw.pt", "Nothing in it was run")),
        "objects.npz": (3, ("objects.npz", "Nothing in it was run")),
        "cut.safetensors": (3, ("cut.safetensors",)),
        "fake.safetensors": (3, ("looks like a pickle",)),
        "nothing": (2, ("no checkpoint in", "*.safetensors")),
        "missing.pt": (2, ("there is no checkpoint at",)),
        "..": (2, ()),
    }


def test_bad_checkpoints_are_refused_and_nothing_in_them_is_run(shell: Shell, spec: str) -> None:
    for name, (code, says) in bad_checkpoints(Path("checkpoints")).items():
        shell.refused(code, "import", f"checkpoints/{name}", "--task", spec, "--out", "imported", says=says)
        assert not Path("imported").exists(), name
        assert not Path("hacked").exists(), name
    # one bad among good: nothing of either is kept, and the corrected command works in the same folder
    Path("imported").mkdir()
    both = ["checkpoints/good.pt", "checkpoints/nan.pt"]
    for index, name in enumerate(both):
        Path(name).rename(f"checkpoints/step_{index}.pt")
    shell.refused(
        1,
        "import",
        "checkpoints/step_0.pt",
        "checkpoints/step_1.pt",
        "--task",
        spec,
        "--out",
        "imported",
        says="step_1.pt",
    )
    assert list(Path("imported").iterdir()) == []
    answer = shell("import", "checkpoints/step_0.pt", "--task", spec, "--out", "imported")
    assert answer.code == 0, answer.err
    assert Run(Path("imported")).trajectory().steps.tolist() == [0]
    assert shell("import", "checkpoints/step_1.pt", "--allow-nonfinite", "--task", spec, "--out", "with-nan").code == 0


# -- the user's own code ----------------------------------------------------------------------------------------------


def test_nan_in_the_data_is_refused_before_anything_is_trained(shell: Shell, spec: str) -> None:
    for command in (["train", "--out", "x"], ["check"]):
        shell.refused(2, command[0], sibling(spec, "with_nan"), *command[1:], says=("NaN", "row 17"))
    assert not Path("x").exists()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("raising", ("in raising", "LookupError: no such thing, says the user")),
        ("broken_forward", ("in forward", '@ "seven"', "TypeError")),
        ("odd_loss", ("in loss", "ZeroDivisionError: in the user's loss")),
    ],
)
def test_an_error_of_the_user_s_code_shows_their_lines_and_not_ours(
    shell: Shell, spec: str, name: str, says: tuple[str, ...]
) -> None:
    answer = shell.refused(
        1,
        "train",
        sibling(spec, name),
        *HERE,
        "--out",
        "x",
        says=("your code", f'File "{spec.rpartition(":")[0]}"', *says),
    )
    assert "landscape/" not in answer.err
    assert "torch" not in answer.err
    assert not Path("x").exists()


def test_a_run_s_file_makes_no_code_run(shell: Shell, run: Path, spec: str) -> None:
    marker = Path("executed")
    planted = Path("planted.py")
    planted.write_text(f"open({str(marker)!r}, 'w')\n" + PROBLEM)
    record = json.loads((run / "run.json").read_text())
    record["options"]["task"] = f"{planted.resolve()}:make"
    (run / "run.json").write_text(json.dumps(record))
    for command in (["show"], ["report"], ["spectrum"], ["surface"], ["check"]):
        answer = shell(*command, run)
        assert answer.code == (0 if command[0] in ("show", "report") else 3), answer.err
        assert not marker.exists()


# -- folders ----------------------------------------------------------------------------------------------------------


def test_a_run_of_another_configuration_is_left_alone(shell: Shell, run: Path, spec: str) -> None:
    before = contents(run)
    says = ("holds another run", "lr: 0.05 there, 0.25 asked", "Choose another --out")
    shell.refused(2, "train", spec, *HERE, "--lr", "0.25", "--out", run, says=says)
    shell.refused(2, "import", "x.pt", "--task", spec, "--out", run, says="made by train, not import")
    assert contents(run) == before
    answer = shell("train", spec, *HERE, "--out", run)  # the same configuration: finished
    assert answer.code == 0
    assert "already finished" in answer.err
    assert contents(run) == before


def test_a_folder_that_is_no_run_is_left_alone(shell: Shell, spec: str) -> None:
    Path("thesis").mkdir()
    Path("thesis/chapter.tex").write_text("years of work")
    says = "thesis is not empty and holds no run. Choose a new folder for --out"
    shell.refused(2, "train", spec, *HERE, "--out", "thesis", says=says)
    shell.refused(2, "import", "x.pt", "--task", spec, "--out", "thesis", says=says)
    shell.refused(2, "report", "thesis", says="holds no run")
    assert contents(Path("thesis")) == {"chapter.tex": b"years of work"}
    shell.refused(1, "train", spec, *HERE, "--out", "thesis/chapter.tex", says="chapter.tex")
    assert contents(Path("thesis")) == {"chapter.tex": b"years of work"}


def test_what_a_kill_in_the_first_moment_leaves_is_no_obstacle(shell: Shell, spec: str) -> None:
    Path("x").mkdir()
    Path("x/.run.json.77.tmp").write_text('{"schema": 1, "ki')
    Path("x/.lock").touch()
    assert shell("train", spec, *HERE, "--out", "x").code == 0


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (errno.ENOSPC, "the disk is full. Free space"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EACCES, "no permission"),
    ],
)
@pytest.mark.parametrize("allowed", [0, 3, 9, 12])
def test_a_disk_that_takes_no_more_loses_nothing(
    shell: Shell, spec: str, monkeypatch: pytest.MonkeyPatch, code: int, says: str, allowed: int
) -> None:
    """Full from the start, or after some writes: the same command goes on, and ends as one that was never stopped."""
    fsync = os.fsync
    left = allowed

    def full(handle: int) -> None:
        nonlocal left
        if left == 0:
            raise OSError(code, os.strerror(code), "x/file")
        left -= 1
        fsync(handle)

    train = ["train", spec, *HERE, "--commit-seconds", "1e-9", "--out", "x"]
    with monkeypatch.context() as broken:
        broken.setattr(files.os, "fsync", full)
        shell.refused(1, *train, says=says)
    assert shell(*train).code == 0
    assert shell(*train[:-1], "alone").code == 0
    one, other = (Run(Path(name)) for name in ("x", "alone"))
    assert one.trajectory().points().tobytes() == other.trajectory().points().tobytes()
    assert one.metrics_path.read_bytes() == other.metrics_path.read_bytes()


def test_a_full_disk_keeps_the_answers_and_pictures_that_were_there(
    shell: Shell, run: Path, spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shell("report", run).code == 0
    assert shell("plot", run, "curve.svg").code == 0
    before, picture = contents(run), Path("curve.svg").read_bytes()

    def full(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    for call in ("replace", "link"):
        monkeypatch.setattr(files.os, call, full)
    for argv in (["report", run], ["plot", run, "curve.svg"], ["spectrum", run, "--task", spec, "--top", "1"]):
        shell.refused(1, *argv, says=("the disk is full. Free space", "are kept"))
    assert contents(run) == before | {".lock": before.get(".lock", b"")}
    assert Path("curve.svg").read_bytes() == picture


def test_a_second_writer_is_told_of_the_first(shell: Shell, spec: str) -> None:
    train = ["train", spec, *HERE, "--out", "x"]
    with files.exclusive(Path("x")):
        shell.refused(1, *train, says=(f"x is being written by process {os.getpid()}", "--out"))
        assert not Path("x/run.json").exists()  # nor does it say what the run is
    assert shell(*train).code == 0


def test_an_interrupt_is_exit_130_and_the_same_command_goes_on(
    shell: Shell, spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = ["train", spec, *HERE, "--out", "x"]
    descend = recordings.descend
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what it starts with & ignore it

    def interrupted(*args: Any, **options: Any) -> Iterator[Any]:
        for given in descend(*args, **options):
            if given.step == 12:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(5)  # the interrupt comes here
            yield given

    with monkeypatch.context() as broken:
        broken.setattr(recordings, "descend", interrupted)
        shell.refused(
            130,
            *train,
            says="interrupted. What was committed is kept, and a training goes on from there with the same command.",
        )
    signal.signal(signal.SIGINT, before)
    one = Run(Path("x"))
    assert one.record()["state"] == "interrupted"
    assert one.trajectory().steps.tolist() == [0, 5, 10]
    assert shell("show", "x").code == 0
    assert shell("report", "x").code == 0
    assert "interrupted" in Path("x/report.html").read_text()
    assert shell(*train).code == 0
    assert shell(*train[:-1], "alone").code == 0
    assert one.trajectory().points().tobytes() == Run(Path("alone")).trajectory().points().tobytes()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", '{"schema": 1}', '{"schema": 9, "options": {}}', "\u00ff", "[" * 100_000]
)
def test_a_damaged_run_json_is_refused(shell: Shell, run: Path, spec: str, text: str) -> None:
    (run / "run.json").write_text(text, encoding="latin-1")
    for argv in (["show", run], ["report", run], ["spectrum", run], ["train", spec, *HERE, "--out", run]):
        shell.refused(3, *argv, says="run.json")
    assert (run / "run.json").read_text(encoding="latin-1") == text


def test_a_flipped_bit_in_the_trajectory_is_refused(shell: Shell, run: Path, spec: str) -> None:
    path = run / "trajectory" / "segment-000000.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-40] ^= 1
    path.write_bytes(raw)
    for argv in (["show", run], ["spectrum", run, "--task", spec, "--top", "1"], ["surface", run, "--task", spec]):
        shell.refused(3, *argv, says="segment-000000.safetensors is damaged")


# -- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", 3),
        ("{", 3),
        ("[]", 3),
        ("[" * 100_000, 3),
        ('{"kind": "spectrum", "schema": 1}', 3),
        ('{"kind": "spectrum", "schema": 99}', 3),
        ('{"kind": [], "schema": 1}', 3),
        ('{"kind": "spektrum", "schema": 1}', 2),
        ("\u00ff", 3),
    ],
)
def test_a_broken_answer_is_refused_by_name_and_does_not_hide_the_others(
    shell: Shell, run: Path, spec: str, text: str, code: int
) -> None:
    (run / "results" / "broken.json").write_text(text, encoding="latin-1")
    shell.refused(code, "plot", run / "results" / "broken.json", "x.svg", says="broken.json")
    shell.refused(code, "report", run, says="broken.json")
    assert not Path("x.svg").exists()
    assert not (run / "report.html").exists()
    assert "Hessian" in shell("show", run).out
    answer = shell("spectrum", run, "--task", spec, "--top", "2")
    assert "answered before" in answer.err


@pytest.mark.parametrize("name", ["x.txt", "x", "x.svgz", "x.jpeg"])
def test_only_known_pictures_are_drawn(shell: Shell, made: Path, name: str) -> None:
    shell.refused(2, "plot", made, name, says=(repr(name), ".svg, .pdf, .png or .html"))
    assert not Path(name).exists()


def test_a_plot_of_nothing_is_a_usage_error(shell: Shell, made: Path) -> None:
    shell.refused(2, "plot", made / "results" / "none.json", "x.svg", says="there is no result file")
    shell.refused(2, "plot", made / "results", "x.svg", says="holds no run")
    shell.refused(3, "plot", made / "trajectory" / "segment-000000.safetensors", "x.svg", says="not a text file")


def test_the_same_question_is_answered_once_and_another_beside_it(
    shell: Shell, run: Path, spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = ["spectrum", run, "--task", spec, "--top"]
    before = contents(run)
    with monkeypatch.context() as broken:
        broken.setattr(objectives.Objective, "hessian", lambda *_, **__: pytest.fail("it was computed again"))
        first = shell(*ask, "2")
    assert "answered before" in first.err
    assert contents(run) == before
    second = shell(*ask, "3")
    assert "answered before" not in second.err
    assert sorted(path.name for path in (run / "results").iterdir()) == ["spectrum-2.json", "spectrum.json"]
    assert contents(run) == before | {"results/spectrum-2.json": (run / "results" / "spectrum-2.json").read_bytes()}
    assert shell(*ask, "2").out == first.out
    assert shell(*ask, "3").out == second.out


@pytest.mark.parametrize("name", ["--tolerance", "--span"])
def test_numbers_that_are_none_are_refused(shell: Shell, made: Path, spec: str, name: str) -> None:
    command = "spectrum" if name == "--tolerance" else "surface"
    for value in ("nan", "inf", "-1"):
        shell.refused(2, command, made, "--task", spec, f"{name}={value}", says=(name, value))


def test_a_point_is_named_once(shell: Shell, made: Path, spec: str) -> None:
    for command in ("spectrum", "surface", "check"):
        shell.refused(2, command, f"{made}@init", "--at", "last", "--task", spec, says="--at last names one again")


def asked(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())["question"])


def test_a_run_made_anew_is_measured_anew(shell: Shell, spec: str) -> None:
    for seed in (0, 1):
        assert shell("train", spec, *HERE, "--seed", seed, "--out", f"run-{seed}").code == 0
    asks = (
        ["barrier", "run-0", "run-1", "--points", "3", "--refine", "0", "--task", spec],
        ["spectrum", "run-1", "--top", "1", "--task", spec],
        ["surface", "run-1", "--side", "3", "--task", spec],
    )
    for ask in asks:
        first, second = shell(*ask), shell(*ask)
        assert ("answered before" in first.err, "answered before" in second.err) == (False, True)
    answers = Path("answers")
    shutil.move("run-1/results", answers)
    shutil.rmtree("run-1")
    assert shell("train", spec, *HERE, "--seed", "2", "--out", "run-1").code == 0
    shutil.move(answers, "run-1/results")
    for ask in asks:
        assert "answered before" not in shell(*ask).err


def test_a_surface_along_the_path_depends_on_all_of_it(shell: Shell, run: Path, spec: str) -> None:
    ask = ["surface", f"{run}@step=0", "--side", "3", "--task", spec]
    assert shell(*ask).code == 0
    one = asked(run / "results" / "surface.json")
    assert shell("train", spec, *HERE[:-4], "--record-every", "4", "--evaluations", "4", "--out", "other").code == 0
    assert shell("surface", "other@step=0", "--side", "3", "--task", spec).code == 0
    other = asked(Path("other/results/surface.json"))
    assert {name for name in one if one[name] != other[name]} == {"path"}


def test_a_check_is_made_anew_and_the_last_is_kept(shell: Shell, run: Path, spec: str) -> None:
    path = run / "results" / "checkup.json"
    for _ in range(2):
        answer = shell("check", run, "--task", spec)
        assert answer.code == 0
        assert "answered before" not in answer.err
    before = path.read_bytes()
    assert shell("check", run, "--task", spec, "--at", "init").code == 0
    assert path.read_bytes() != before
    assert [path.name for path in run.glob("results/checkup*")] == ["checkup.json"]


def test_the_dtype_of_a_command_stays_its_own(shell: Shell, run: Path, spec: str) -> None:
    """Also where another common option is given; and the question names it."""
    for argv, dtype in (([], "float64"), (["--seed", "1"], "float64"), (["--dtype", "float32"], "float32")):
        assert shell("check", run, "--task", spec, *argv).code == 0
        assert asked(run / "results" / "checkup.json")["dtype"] == dtype
    assert shell("spectrum", run, "--task", spec, "--top", "1", "--seed", "1").code == 0
    assert asked(run / "results" / "spectrum-2.json")["dtype"] == "float32"
    assert Run(run).options["dtype"] == "float32"


def test_a_default_batch_is_no_larger_than_the_rows(shell: Shell, spec: str) -> None:
    answer = shell("train", spec, "--steps", "2", "--out", "x")
    assert answer.code == 0, answer.err
    assert Run(Path("x")).options["batch_size"] == 60
    assert "all training rows" in Run(Path("x")).record()["notes"][0]
    shell.refused(2, "train", spec, "--steps", "2", "--batch-size", "61", "--out", "y", says=("61", "60"))


def test_the_barrier_of_the_command_line_has_the_policy_of_the_function(shell: Shell, run: Path, spec: str) -> None:
    assert shell("barrier", f"{run}@init", run, "--points", "3", "--task", spec).code == 0
    assert asked(run / "results" / "barrier.json")["bn"] == "recompute"


FROZEN = """
from problem import data
from torch import nn

def make():
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    model[0].weight.requires_grad_(False)
    return model, "cross-entropy", data()
"""


def test_runs_with_other_frozen_tensors_have_no_barrier(shell: Shell) -> None:
    Path("problem.py").write_text(PROBLEM)
    Path("frozen.py").write_text(FROZEN)
    for seed in (0, 1):
        assert shell("train", "frozen.py:make", *HERE, "--seed", seed, "--out", f"run-{seed}").code == 0
    barrier = ["barrier", "run-0", "run-1", "--task", "frozen.py:make"]
    shell.refused(2, *barrier, says=("differ in '0.weight', which is frozen", "run-0", "run-1"))
    assert shell("barrier", "run-0@init", "run-0", "--task", "frozen.py:make").code == 0


# -- what machines read -----------------------------------------------------------------------------------------------


def test_json_is_one_line_on_stdout(shell: Shell, run: Path, spec: str) -> None:
    for argv in (
        ["tasks", "--json"],
        ["show", run, "--json"],
        ["train", spec, *HERE, "--out", run, "--json"],
        ["train", spec, *HERE, "--out", "new", "--json"],
        ["spectrum", run, "--task", spec, "--top", "2", "--json"],
        ["spectrum", run, "--task", spec, "--top", "1", "--density", "--json"],
        ["check", run, "--task", spec, "--json"],
        ["check", spec, "--json"],
        ["report", run, "--json"],
        ["plot", run, "curve.svg", "--json"],
    ):
        answer = shell(*argv)
        assert answer.code == 0, answer.err
        assert answer.out.count("\n") == 1, argv
        json.loads(answer.out, parse_constant=pytest.fail)


def test_words_are_on_stdout_and_progress_beside_it(shell: Shell, spec: str) -> None:
    answer = shell("train", spec, *HERE, "--out", "x")
    assert "step       5 of 20" in answer.err
    assert answer.out.splitlines()[0].endswith("5 points recorded (finished).")
    assert answer.out.splitlines()[1:] == ["  x"]


# -- help, and processes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [name for name in app if not name.startswith("-")])
def test_every_command_explains_itself(shell: Shell, command: str) -> None:
    answer = shell(command, "--help")
    assert answer.code == 0
    assert f"landscape {command}" in answer.out
    assert len(answer.out.splitlines()) > 4


@pytest.mark.parametrize("argv", [[], ["--help"], ["--version"]])
def test_help_and_version(shell: Shell, argv: list[str]) -> None:
    answer = shell(*argv)
    assert answer.code == 0
    assert answer.err == ""
    assert answer.out


SHOWN_WITHOUT = ("torch", "sklearn", "matplotlib", "plotly", "scipy")


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["train", "--help"],
        ["spectrum", "--help"],
        ["--version"],
        ["show", "RUN"],
        ["show", "RUN", "--json"],
    ],
)
def test_help_and_show_import_nothing_heavy(made: Path, argv: list[str]) -> None:
    code = (
        "import sys; from landscape.cli.app import main; code = main(sys.argv[1:]); "
        f"print([name for name in {SHOWN_WITHOUT} if name in sys.modules], file=sys.stderr); sys.exit(code)"
    )
    argv = [str(made) if word == "RUN" else word for word in argv]
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=True)
    assert done.stdout
    assert done.stderr == "[]\n"


ENTRY = "from landscape.cli.app import entry; entry()"  # what the console script does
LANDSCAPE = f"{sys.executable} -c '{ENTRY}'"


@pytest.mark.parametrize("line", ["tasks", "--help", "show RUN --json"])
def test_a_closed_pipe_ends_quietly(made: Path, line: str) -> None:
    """The reader is gone before a word is written."""
    command = f"{LANDSCAPE} {line.replace('RUN', str(made))} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_head_gets_its_line() -> None:
    done = subprocess.run(
        ["bash", "-c", f"{LANDSCAPE} tasks | head -1; echo ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[0].startswith("digits-mlp ")
    assert done.stdout.splitlines()[1:] == ["0"]
    assert done.stderr == ""


def test_the_exit_code_is_that_of_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", ENTRY, "show", "nowhere"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("landscape: nowhere does not exist.")


def test_whole_numbers_are_read_whole() -> None:
    """Also beyond what a float holds, and in the notation of powers."""
    for text, number in (("9007199254740993", 9007199254740993), ("2e3", 2000)):
        _, bound, _ = app.parse_args(
            ["train", "digits-mlp", "--out", "x", "--steps", text], exit_on_error=False, print_error=False
        )
        assert bound.arguments["descending"].steps == number


# -- curvature --------------------------------------------------------------------------------------------------------


def test_parameters_are_named_by_globs_and_layers_have_blocks_of_their_own(shell: Shell, made: Path, spec: str) -> None:
    ask = ["spectrum", made, "--task", spec, "--top", "1", "--json"]
    first = json.loads(shell(*ask, "--params", "0.*").out)
    assert first["dim"] == 4 * 8 + 8
    blocks = json.loads(shell(*ask, "--layers").out)
    assert blocks["names"] == ["0", "2"]
    np.testing.assert_allclose(blocks["values"]["array"][:1], first["values"]["array"], rtol=1e-5)
    shell.refused(2, *ask, "--params", "layer3.*", says=("'layer3.*'", "0.weight"))


def test_a_run_is_measured_along_its_steps_by_either_door(shell: Shell, made: Path, spec: str) -> None:
    ask = ["--task", spec, "--top", "2", "--tolerance", "1e-4", "--json"]
    one = json.loads(shell("sharpness", made, *ask).out)
    all_ = json.loads(shell("spectrum", made, "--at", "all", *ask).out)
    assert one["kind"] == all_["kind"] == "sharpness"
    assert one["steps"] == all_["steps"]
    assert one["values"] == all_["values"]
    assert one["steps"]["array"] == [0, 5, 10, 15, 20]
    some = json.loads(
        shell("sharpness", made, "--task", spec, "--from", "5", "--to", "15", "--every", "2", "--json").out
    )
    assert some["steps"]["array"] == [5, 15]
    last = json.loads(shell("spectrum", made, "--at", "20", *ask).out)
    along = np.reshape(one["values"]["array"], one["values"]["shape"])
    np.testing.assert_allclose(along[-1], last["values"]["array"], rtol=1e-3)  # residuals of 1e-4 leave less


@pytest.mark.parametrize("operator", ["gauss-newton", "fisher", "empirical-fisher", "gradient-covariance"])
def test_every_matrix_is_named_by_an_option(shell: Shell, made: Path, spec: str, operator: str) -> None:
    found = json.loads(shell("spectrum", made, "--task", spec, "--operator", operator, "--top", "2", "--json").out)
    assert found["operator"] == operator
    assert min(found["values"]["array"]) >= 0


def test_the_engine_pyhessian_answers_the_same_question(shell: Shell, made: Path, spec: str) -> None:
    ask = ["spectrum", made, "--task", spec, "--top", "2", "--which", "magnitude", "--tolerance", "1e-6", "--json"]
    ours, theirs = (json.loads(shell(*ask, "--engine", engine).out) for engine in ("native", "pyhessian"))
    np.testing.assert_allclose(theirs["values"]["array"], ours["values"]["array"], rtol=1e-3)
    assert theirs["provenance"]["engine"] == "pyhessian"
    shell.refused(2, *ask, "--engine", "pyhessian", "--density", says="without a density")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--accuracy", "0.1"], "add --density"),
        (["--density", "--accuracy", "-1"], "--accuracy must be positive"),
        (["--density", "--accuracy", "0.1", "--probes", "3"], "either an accuracy, or numbers"),
        (["--at", "all", "--layers"], "--layers is for one point"),
        (["--at", "all", "--accuracy", "0.1"], "add --density"),
        (["--at", "all", "--params", "layer3.*"], "'layer3.*'"),
        (["--layers", "--density"], "--density has no part in --layers"),
        (["--layers", "--basis", "40"], "--basis has no part in --layers"),
        (["--samples", "3"], "--samples is of --operator fisher"),
        (["--basis", "3"], "a basis of 3 vectors"),
        (["--at", "7"], "7"),
        (["--operator", "fischer"], "fischer"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    shell: Shell, made: Path, spec: str, options: list[str], says: str
) -> None:
    shell.refused(2, "spectrum", made, "--task", spec, *options, says=says)


def test_a_place_and_all_places_are_two_questions(shell: Shell, made: Path, spec: str) -> None:
    shell.refused(2, "sharpness", f"{made}@init", "--task", spec, says="name the run alone")
    shell.refused(2, "sharpness", made, "--task", spec, "--every", "0", says="give 1 or more")
    shell.refused(2, "sharpness", made, "--task", spec, "--from", "21", says="no recorded step")


# -- pruned networks --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pruned(spec: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of imp with the levels 0 and 1, half of the weights gone; tests that write take a copy."""
    folder = tmp_path_factory.mktemp("pruned") / "t"
    brief = ["--steps", "12", "--batch-size", "10", "--levels", "1", "--rewind", "4", "--rate", "0.5", "--replicates", "0"]  # fmt: skip
    assert main(["imp", spec, *brief, "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def tickets(pruned: Path, tmp_path: Path) -> Path:
    shutil.copytree(pruned, tmp_path / "t")
    return tmp_path / "t"


def dense_hessian(run: Run, spec: str) -> tuple[np.ndarray, np.ndarray]:
    """The Hessian (D, D) at the end of a run of PROBLEM, and its point, by torch's own differentiation of the loss written out."""
    names: dict[str, Any] = {}
    exec(Path(spec.rpartition(":")[0]).read_text(), names)
    x, y = names["data"]()
    trajectory = run.trajectory()
    point = torch.from_numpy(np.array(trajectory.row(len(trajectory) - 1).point)).double()

    def loss(w: torch.Tensor) -> torch.Tensor:
        first, shift, second, offset = w.split([32, 8, 16, 2])
        hidden = torch.tanh(x.double() @ first.view(8, 4).T + shift)
        return nn.functional.cross_entropy(hidden @ second.view(2, 8).T + offset, y)

    return torch.autograd.functional.hessian(loss, point).numpy(), point.numpy()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    ("options", "names", "whole", "among"),
    [
        ([], slice(0, 58), False, ", among the 34 survivors of 58"),
        (["--whole"], slice(0, 58), True, ", of all 58, the 24 pruned ones included"),
        (["--params", "0.*"], slice(0, 40), False, ", among the {n} survivors of 40"),
        (["--params", "0.*", "--whole"], slice(0, 40), True, ", of all 40, the {gone} pruned ones included"),
        (["--params", "*.bias"], np.r_[32:40, 56:58], False, ""),  # none of them was pruned
    ],
)
def test_the_spectrum_of_a_pruned_network_is_that_of_its_survivors(
    shell: Shell, tickets: Path, spec: str, options: list[str], names: Any, whole: bool, among: str
) -> None:
    """Paul et al. 2023, section 3: the Hessian restricted to the axial subspace. No trained weight is exactly 0 but the pruned ones."""
    matrix, point = dense_hessian(Run(tickets).level(1), spec)
    chosen = np.zeros(58, dtype=bool)
    chosen[names] = True
    if not whole:
        chosen &= point != 0
    truth = np.linalg.eigvalsh(matrix[np.ix_(chosen, chosen)])[::-1][:3]
    ask = ["spectrum", f"{tickets}@level=1", "--task", spec, "--top", "3", "--dtype", "float64", "--tolerance", "1e-9"]
    found = json.loads(shell(*ask, *options, "--json").out)
    assert found["dim"] == chosen.sum()
    # a residual of 1e-9 of the largest bounds the error; the loss is summed in another order, to 1e-13 or so
    np.testing.assert_allclose(found["values"]["array"], truth, atol=1e-8 * truth[0])
    among = among.format(n=chosen.sum(), gone=(point[names] == 0).sum())
    assert f"{among or ', 10 dimensions'}: top 3 eigenvalues" in found["summary"]
    assert f"mean loss over 60 rows{among}, at loss" in Result.from_json(json.dumps(found)).caption()


def test_the_questions_of_a_network_that_was_not_pruned_are_what_they_were(
    shell: Shell, tickets: Path, made: Path, spec: str
) -> None:
    ask = ["--task", spec, "--top", "1", "--json"]
    dense = json.loads(shell("spectrum", f"{tickets}@level=0", *ask).out)
    assert not {"mask", "whole"} & set(dense["question"])
    assert dense["dim"] == 58
    assert "survivors" not in dense["summary"]
    # its mask is full, and the whole is the same question
    assert json.loads(shell("spectrum", f"{tickets}@level=0", *ask, "--whole").out) == dense
    assert json.loads(shell("spectrum", f"{tickets}@level=1", *ask).out)["question"].keys() - dense["question"].keys() == {"mask"}  # fmt: skip
    for command in (["spectrum"], ["sharpness"]):
        shell.refused(2, *command, made, "--task", spec, "--whole", says="--whole is of a pruned network")
    shell.refused(2, "spectrum", f"{tickets}@level=1", "--task", spec, "--layers", "--whole", says="has no part")


def test_the_sharpness_of_a_level_is_that_of_its_survivors(shell: Shell, tickets: Path, spec: str) -> None:
    matrix, point = dense_hessian(Run(tickets).level(1), spec)
    ask = ["sharpness", f"{tickets}@level=1", "--task", spec, "--top", "1", "--tolerance", "1e-5", "--json"]
    for options, chosen in (([], point != 0), (["--whole"], point == point)):
        found = json.loads(shell(*ask, *options).out)
        truth = np.linalg.eigvalsh(matrix[np.ix_(chosen, chosen)])[-1]
        # single precision: 1e-6 of it, times what a sum of 60 rows grows it by
        assert found["values"]["array"][-1] == pytest.approx(truth, rel=1e-4)
        assert found["dim"] == chosen.sum()
        assert bool(found["warnings"]) == bool(options)
        caption = Result.from_json(json.dumps(found)).caption()
        assert ("Among the 34 survivors of 58 parameters" in caption) == (not options)


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["spectrum", "--layers"], "of all 58 parameters, the 24 pruned ones included"),
        (["sharpness", "--params", "0.*"], "of all 40 parameters 0.*, the"),
        (["sharpness", "--params", "*.bias"], ""),
        (["dimensions", "--points", "2", "--hessian", "0"], "of all 58 parameters, the 24 pruned ones included"),
        (["surface", "--side", "3", "--plane", "random"], "of all 58 parameters, the 24 pruned ones included"),
        (["surface", "--side", "3"], ""),
        (["explore", "--directions", "2", "--loss", "1"], "of all 58 parameters, the 24 pruned ones included"),
        (["width", "--loss", "0.6", "--draws", "2"], "of all 58 parameters, the 24 pruned ones included"),
    ],
)
def test_what_takes_pruned_parameters_too_says_so(
    shell: Shell, tickets: Path, spec: str, command: list[str], told: str
) -> None:
    answer = shell(command[0], f"{tickets}@level=1", "--task", spec, *command[1:], "--json")
    assert answer.code == 0, answer.err
    warnings = " ".join(json.loads(answer.out)["warnings"])
    assert told in warnings
    assert ("pruned ones included" in warnings) == bool(told)


def test_a_level_is_named_where_a_run_is_asked_for(shell: Shell, tickets: Path, spec: str) -> None:
    level = f"{tickets}@level=1"
    for command in (["report", level], ["plot", level, "course.svg"]):
        answer = shell(*command)
        assert answer.code == 0, answer.err
    assert Run(tickets).level(1).report_path.is_file()
    refusal = shell.refused(2, "dimensions", tickets, "--task", spec, says="Say which: ")
    advised = refusal.err.rpartition("Say which: ")[2].strip().removesuffix(".")
    assert advised == level
    asked = ["--task", spec, "--points", "2", "--hessian", "0", "--against", f"{tickets}@level=0"]
    assert shell("dimensions", advised, *asked).code == 0
    for command in (["spawn", level, "--levels", "all"], ["robustness", level], ["retraining", level]):
        assert "--out" not in shell.refused(2, *command).err


def test_what_is_in_a_level_is_told(shell: Shell, tickets: Path) -> None:
    line = "24 of 48 prunable weights survive (50.00%), rate 0.5, threshold "
    for name in (f"{tickets}@level=1", f"{tickets}@level=1,init", tickets / "level-001"):
        answer = shell("show", name)
        assert line in answer.out
        assert "weight-rewind" in answer.out
    assert "pruning" not in shell("show", tickets).out
