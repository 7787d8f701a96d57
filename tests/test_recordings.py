"""A recorded descent that is killed, interrupted, damaged or taken up elsewhere, against one that was left alone.

The kills need a process of its own for every descent. One helper imports torch once and forks a child for each, on one
thread: a child starts in milliseconds, and its sums are those of the others.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional

from landscape import files, recordings, subspaces, tasks
from landscape.descent import Recipe
from landscape.errors import LandscapeError, UnsafeInputError, UsageError
from landscape.objectives import Objective
from landscape.runs import Run, place

CPU = torch.device("cpu")

# a small network with all that a resumed run must carry: BatchNorm's buffers, dropout's draws, and moments
PROBLEM = '''
"""A problem of the tests."""
import torch
from torch import nn

def make(seed=0):
    draw = torch.Generator().manual_seed(7)
    x = torch.randn(96, 6, generator=draw)
    y = (x[:, 0] * x[:, 1] > 0).long()
    model = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.1), nn.Linear(12, 2))
    return model, "cross-entropy", (x, y)
'''

HELPER = """
import json, os, signal, sys, traceback
from pathlib import Path
import torch
torch.set_num_threads(1)
from landscape import recordings, subspaces, tasks
from landscape.analysis import histories
from landscape.cli.app import main
from landscape.descent import Recipe
from landscape.runs import Run
from landscape.seeds import generator

def restricted(f, w):
    return f.restrict(subspaces.random(w, 40, generator(0, "subspace"))), w.new_zeros(40)

def descend(order):
    if "argv" in order:
        return main(order["argv"])
    run, task = Run(Path(order["out"])), tasks.find(order["task"])
    if not run.begin("train", {"task": order["task"], **order["recipe"]}, {}):
        with recordings.stop_signals():
            for _ in recordings.record(
                run, task, Recipe(**order["recipe"]), seed=0, every=3, device=torch.device("cpu"), dtype=torch.float32,
                commit_seconds=0.01, restrict=restricted if order["restrict"] else None,
            ):
                pass
    return 0

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what it starts with & ignore it
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 99
        try:
            code = descend(json.loads(line))
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Helper:
    """Runs one order at a time in a fresh child."""

    def __init__(self, errors: Path) -> None:
        self.errors = errors
        self._process = subprocess.Popen(
            [sys.executable, "-c", HELPER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors.open("wb")
        )
        assert self._line() == b"ready\n"

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def start(self, order: dict[str, Any]) -> int:
        """The process that carries the order out."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        return int(self._line())

    def end(self) -> int:
        """Its exit code, or minus the signal that killed it."""
        return int(self._line())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@pytest.fixture(scope="module")
def helper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Helper]:
    made = Helper(tmp_path_factory.mktemp("helper") / "stderr.txt")
    yield made
    made.close()


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("problem") / "problem.py"
    path.write_text(PROBLEM)
    return f"{path}:make"


def rows_of(run: Run) -> dict[int, tuple[bytes, bytes, float, float]]:
    """Every committed row by its step."""
    found = run.trajectory()
    rows = (found.row(number) for number in range(len(found)))
    return {row.step: (row.point.tobytes(), row.buffers.tobytes(), row.loss, row.rate) for row in rows}


def resume_of(run: Run) -> dict[str, Any]:
    """Point, moments, buffers and step. Not the bytes of the file: the library writes its header in any order."""
    with safetensors.safe_open(run.resume_path, "np") as file:
        return {name: file.get_tensor(name).tobytes() for name in file.keys()} | file.metadata()  # noqa: SIM118 (no dict)


def order_of(problem: str, out: Path, optimizer: str, restrict: bool) -> dict[str, Any]:
    recipe = {"steps": 420, "optimizer": optimizer, "lr": 0.02, "batch_size": 16, "warmup": 5, "schedule": "cosine"}
    return {"out": str(out), "task": problem, "recipe": recipe, "restrict": restrict}


def wait_for_commits(run: Run, count: int, alive: int) -> None:
    """Until the manifest has grown by so many lines, or the writer is gone."""
    path = run.trajectory_path / "manifest.jsonl"

    def lines() -> int:
        return path.read_bytes().count(b"\n") if path.exists() else 0

    due = lines() + count
    while lines() < due and Path(f"/proc/{alive}/exe").exists():
        time.sleep(0.0005)


# -- killed -----------------------------------------------------------------------------------------------------------

WAYS = list(itertools.product(["sgd", "adam"], [False, True]))
KILLS = 5  # of each of the four ways: twenty in all


@pytest.mark.parametrize(
    ("optimizer", "restrict"), WAYS, ids=lambda value: {False: "whole", True: "subspace"}.get(value, value)
)
def test_a_run_killed_again_and_again_ends_bitwise_equal_to_one_left_alone(
    helper: Helper, problem: str, tmp_path: Path, optimizer: str, restrict: bool
) -> None:
    alone = Run(tmp_path / "alone")
    helper.start(order_of(problem, alone.folder, optimizer, restrict))
    assert helper.end() == 0, helper.errors.read_text()
    wanted = rows_of(alone)
    assert sorted(wanted) == list(range(0, 421, 3))

    run = Run(tmp_path / "killed")
    order = order_of(problem, run.folder, optimizer, restrict)
    draw = random.Random(f"{optimizer} {restrict}")
    known: dict[int, tuple[bytes, bytes, float, float]] = {}
    for kill in range(KILLS):
        child = helper.start(order)
        # the first at any moment of its start; the others soon after a commit, and the next one comes at once
        if kill:
            wait_for_commits(run, draw.randint(1, 3), child)
        time.sleep(draw.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        assert helper.end() == -signal.SIGKILL, helper.errors.read_text()
        if not run.record_path.exists():
            continue  # killed before the run had begun
        assert run.record()["state"] == "running"
        if (run.trajectory_path / "layout.json").exists():
            now = rows_of(run)
            assert known.items() <= now.items() <= wanted.items()
            known = now
    assert len(known) > 3  # the kills came in the midst of it

    helper.start(order)
    assert helper.end() == 0, helper.errors.read_text()
    assert rows_of(run) == wanted
    assert resume_of(run) == resume_of(alone)  # last point, moments, buffers, step
    assert run.metrics_path.read_bytes() == alone.metrics_path.read_bytes()
    assert run.record()["state"] == "finished"
    assert run.record()["final"] == alone.record()["final"]
    left = [
        path.name
        for path in run.folder.rglob("*")
        if path.name.endswith(".tmp") and not path.name.startswith(".run.json")
    ]
    assert left == []


def test_the_way_of_the_subspace_stays_in_it(problem: str, tmp_path: Path) -> None:
    """The rows are points among all parameters, and what the restriction keeps out stands still."""
    task, run = tasks.find(problem), Run(tmp_path / "run")
    run.begin("train", {"task": problem}, {})
    mask = torch.arange(task.make(0)[0].weight.numel() + 12 + 12 + 12 + 24 + 2) % 5 == 0

    def pruned(f: Objective, w: torch.Tensor) -> tuple[Objective, torch.Tensor]:
        return f.restrict(subspaces.coordinates(w, mask)), w[mask]

    last = list(
        recordings.record(
            run, task, Recipe(steps=20, lr=0.1), seed=0, every=4, device=CPU, dtype=torch.float32, restrict=pruned
        )
    )[-1]
    points = run.trajectory().points()
    moved = (points != points[0]).any(axis=0)
    assert not moved[~mask.numpy()].any()
    assert moved[mask.numpy()].mean() > 0.5  # not all of them: a bias before BatchNorm has no gradient
    site = recordings.site(place(str(run.folder)), task, device=CPU, dtype=torch.float32)
    assert float(site.train(site.point)) == last.metrics["train_loss"]


# -- interrupted ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_an_interrupted_run_says_so_and_goes_on(helper: Helper, problem: str, tmp_path: Path, name: str) -> None:
    def order(out: Path) -> dict[str, Any]:
        options = ["--steps", "300", "--batch-size", "16", "--record-every", "2", "--commit-seconds", "0.02"]
        return {"argv": ["train", problem, *options, "--out", str(out)]}

    alone, run = Run(tmp_path / "alone"), Run(tmp_path / "run")
    helper.start(order(alone.folder))
    assert helper.end() == 0
    child = helper.start(order(run.folder))
    wait_for_commits(run, 2, child)
    os.kill(child, getattr(signal, name))
    assert helper.end() == 130, helper.errors.read_text()
    assert "interrupted. What was committed is kept, and a training goes on" in helper.errors.read_text()
    assert run.record()["state"] == "interrupted"
    committed = rows_of(run)
    assert 0 < len(committed) < 151
    # the interrupt itself committed: nothing is lost, not even since the last commit
    with safetensors.safe_open(run.resume_path, "pt") as resume:
        assert int(resume.metadata()["step"]) - max(committed) <= 2
    helper.start(order(run.folder))
    assert helper.end() == 0
    assert rows_of(run) == rows_of(alone)
    assert resume_of(run) == resume_of(alone)
    assert run.metrics_path.read_bytes() == alone.metrics_path.read_bytes()


def run_of(folder: Path, problem: str) -> Run:
    run = Run(folder)
    run.begin("train", {"task": problem, "seed": 0}, {})
    return run


RECIPE = Recipe(steps=40, lr=0.05, batch_size=16)


def steps(run: Run, problem: str, recipe: Recipe = RECIPE, **options: Any) -> Iterator[Any]:
    settings = {"every": 4, "evaluations": 10, "device": CPU, "dtype": torch.float32, "commit_seconds": 0.0}
    return recordings.record(run, tasks.find(problem), recipe, seed=0, **{**settings, **options})


@pytest.mark.parametrize("when", range(1, 40, 6))
@pytest.mark.parametrize("call", ["append_line", "write_atomic"])
def test_an_interrupt_in_the_midst_of_a_commit_does_no_harm(
    problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, when: int
) -> None:
    """A signal that comes right after the k-th line or file is durable, before the writer has noted it."""
    alone, run = run_of(tmp_path / "alone", problem), run_of(tmp_path / "run", problem)
    list(steps(alone, problem))
    left, real = when, getattr(files, call)

    def interrupted(*args: Any) -> None:
        nonlocal left
        real(*args)
        left -= 1
        if left == 0:
            raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(files, call, interrupted)
        with contextlib.suppress(KeyboardInterrupt):
            list(steps(run, problem))
    list(steps(run, problem))
    assert rows_of(run) == rows_of(alone)
    assert run.metrics_path.read_bytes() == alone.metrics_path.read_bytes()
    assert resume_of(run) == resume_of(alone)


def test_leaving_the_loop_early_commits(problem: str, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", problem)
    descent = steps(run, problem, commit_seconds=1e9)
    for progress in descent:
        if progress.step >= 20:
            break
    descent.close()
    assert max(rows_of(run)) == 20
    assert run.record()["state"] == "interrupted"


def test_metrics_are_not_repeated_when_steps_are_replayed(problem: str, tmp_path: Path) -> None:
    """Metrics are on disk at once, rows at a commit: a run that lost rows measures again, and writes no line twice."""
    alone, run = run_of(tmp_path / "alone", problem), run_of(tmp_path / "run", problem)
    list(steps(alone, problem))
    for progress in steps(run, problem):
        if progress.step >= 20:
            shutil.copytree(run.folder, tmp_path / "copy")  # as a kill -9 would leave it
            break
    again = Run(tmp_path / "copy")
    again.resume_path.unlink()  # and the last commit had been long ago
    assert [progress.step for progress in steps(again, problem)] == list(range(0, 41, 4))
    assert again.metrics_path.read_bytes() == alone.metrics_path.read_bytes()
    assert rows_of(again) == rows_of(alone)


def test_a_finished_run_returns_at_once(problem: str, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", problem)
    assert len(list(steps(run, problem))) == 11
    before = {
        path: path.read_bytes()
        for path in run.folder.rglob("*")
        if path.is_file() and path.name not in ("run.json", "resume.safetensors", ".lock")
    }
    assert run.begin("train", {"task": problem, "seed": 0}, {})
    assert [progress.step for progress in steps(run, problem)] == [40]  # and descending again is only the last state
    for path, content in before.items():
        assert path.read_bytes() == content


def test_a_failed_write_is_told_in_run_json(problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, write = run_of(tmp_path / "run", problem), files.write_atomic

    def full(path: Path, *args: Any, **keywords: Any) -> None:
        if path.name.startswith("segment"):
            raise OSError(28, "No space left on device", str(path))
        write(path, *args, **keywords)

    with monkeypatch.context() as broken:
        broken.setattr(files, "write_atomic", full)
        with pytest.raises(OSError):
            list(steps(run, problem))
    assert run.record()["state"] == "failed"
    assert list(steps(run, problem))[-1].step == 40
    assert run.record()["state"] == "finished"


def test_a_run_on_other_data_does_not_go_on(problem: str, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.begin("train", {"task": problem}, {"fingerprint": "then"})
    assert not run.begin("train", {"task": problem}, {"fingerprint": "then"})
    with pytest.raises(UsageError, match=r"other data \(fingerprint then there, now now\)"):
        run.begin("train", {"task": problem}, {"fingerprint": "now"})


def test_a_place_knows_what_stands_there(problem: str, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", problem)
    list(steps(run, problem))
    sums = {step: place(f"{run.folder}@step={step}").checksum for step in (0, 4, 40)}
    assert len(set(sums.values())) == 3
    assert place(str(run.folder), "init").checksum == sums[0]
    shutil.rmtree(run.folder)
    run_of(run.folder, problem)
    list(steps(run, problem, Recipe(steps=40, lr=0.04, batch_size=16)))
    assert place(f"{run.folder}@step=0").checksum == sums[0]
    assert place(f"{run.folder}@step=40").checksum != sums[40]
    with pytest.raises(UsageError, match="--at last names one again"):
        place(f"{run.folder}@init", "last")


def test_two_writers_are_refused(problem: str, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", problem)
    first = steps(run, problem)
    next(first)
    with pytest.raises(LandscapeError, match=rf"is being written by process {os.getpid()}"):
        next(steps(run, problem))
    assert [progress.step for progress in first][-1] == 40
    assert run.record()["state"] == "finished"


# -- damaged ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(problem: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run stopped at step 20. Tests that change it take a copy."""
    run = run_of(tmp_path_factory.mktemp("stopped") / "run", problem)
    descent = steps(run, problem, Recipe(steps=40, lr=0.05, batch_size=16, optimizer="adam"))
    for progress in descent:
        if progress.step >= 20:
            break
    descent.close()
    return run


def copy_of(run: Run, folder: Path) -> Run:
    shutil.copytree(run.folder, folder)
    return Run(folder)


def again(run: Run, problem: str) -> list[int]:
    return [
        progress.step for progress in steps(run, problem, Recipe(steps=40, lr=0.05, batch_size=16, optimizer="adam"))
    ]


@pytest.mark.parametrize("part", ["header", "payload"])
def test_every_flipped_bit_of_the_resume_file_is_found(stopped: Run, problem: str, tmp_path: Path, part: str) -> None:
    """None of them is descended from: not a wrong moment, nor a right one at a wrong step."""
    run = copy_of(stopped, tmp_path / "run")
    sound = run.resume_path.read_bytes()
    split = 8 + int.from_bytes(sound[:8], "little")
    bits = random.Random(part).sample(range(8 * split) if part == "header" else range(8 * split, 8 * len(sound)), 40)
    if part == "header":
        place_of_step = sound.index(b'"20"') + 1
        bits += [8 * place_of_step, 8 * place_of_step + 9]  # 20 becomes 30, or 22
    for bit in bits:
        damaged = bytearray(sound)
        damaged[bit // 8] ^= 1 << bit % 8
        run.resume_path.write_bytes(damaged)
        with pytest.raises(UnsafeInputError, match=r"resume file is damaged.*Restore .* from a copy, or delete it"):
            again(run, problem)
        assert run.resume_path.read_bytes() == damaged  # nothing was written over it
    run.resume_path.write_bytes(sound)
    assert again(run, problem)[-1] == 40


@pytest.mark.parametrize("content", [b"", b"x", b"\x00" * 64, b"\xff" * 9])
def test_a_resume_file_that_is_none_is_refused(stopped: Run, problem: str, tmp_path: Path, content: bytes) -> None:
    run = copy_of(stopped, tmp_path / "run")
    before = rows_of(run)
    run.resume_path.write_bytes(content)
    with pytest.raises(UnsafeInputError, match="resume file is damaged") as refusal:
        again(run, problem)
    assert refusal.value.exit_code == 3
    assert rows_of(run) == before
    run.resume_path.unlink()  # as the message advises
    assert again(run, problem)[-1] == 40
    assert before.items() <= rows_of(run).items()


def test_rows_that_were_lost_are_missed(stopped: Run, problem: str, tmp_path: Path) -> None:
    """The resume file says that they were committed: to go on would leave a hole in the trajectory."""
    run = copy_of(stopped, tmp_path / "run")
    manifest = run.trajectory_path / "manifest.jsonl"
    manifest.write_text("".join(manifest.read_text().splitlines(keepends=True)[:-3]))
    with pytest.raises(
        UnsafeInputError, match=r"has lost rows: the last on disk is of step \d+, and those up to step 16"
    ):
        again(run, problem)
    run.resume_path.unlink()
    assert again(run, problem)[-1] == 40
    assert sorted(rows_of(run)) == list(range(0, 41, 4))


@pytest.mark.parametrize("line", ['{"step": "x"}', '{"loss": 1}', '{"step": 3, "lr": "fast"}', "[]"])
def test_damaged_metrics_are_refused(stopped: Run, problem: str, tmp_path: Path, line: str) -> None:
    run = copy_of(stopped, tmp_path / "run")
    run.metrics_path.write_text(line + "\n" + run.metrics_path.read_text())
    with pytest.raises(UnsafeInputError, match=r"metrics\.jsonl"):
        run.metrics()
    with pytest.raises(UnsafeInputError, match=r"metrics\.jsonl"):
        again(run, problem)


def test_a_diverging_run_fails_and_keeps_its_rows(problem: str, tmp_path: Path) -> None:
    path = tmp_path / "diverging.py"
    path.write_text(
        "import torch\nfrom torch import nn\n"
        "def make():\n    x = torch.ones(8, 3)\n    return nn.Linear(3, 1), 'mse', (x, x[:, :1])\n"
    )
    spec = f"{path}:make"
    run = run_of(tmp_path / "run", spec)
    with pytest.raises(
        LandscapeError, match=r"the loss is (nan|inf) at step \d+: descent diverged.*smaller --lr"
    ) as failure:
        list(steps(run, spec, Recipe(steps=400, lr=30.0), evaluations=100))
    assert failure.value.exit_code == 1
    assert run.record()["state"] == "failed"
    found = run.trajectory()
    assert len(found) >= 2
    assert found.steps[0] == 0
    assert np.isfinite(found.points(0, 1)).all()
    metrics = run.metrics()
    assert np.isfinite(metrics["train_loss"][0])
    json.loads(run.record_path.read_text(), parse_constant=pytest.fail)  # no NaN in what others read
    for line in run.metrics_path.read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


# -- checkpoints made elsewhere ---------------------------------------------------------------------------------------

FOREIGN = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Tanh())
        self.table = nn.Embedding(12, 12)
        self.head = nn.Linear(12, 2)
        self.table.weight.requires_grad_(False)
    def forward(self, x):
        return self.head(self.body(x) @ self.table.weight)

def make(seed=0):
    draw = torch.Generator().manual_seed(7)
    x = torch.randn(96, 6, generator=draw)
    return Net(), "cross-entropy", (x, (x[:, 0] > 0).long())
"""


@pytest.fixture
def foreign(tmp_path: Path) -> str:
    (tmp_path / "foreign.py").write_text(FOREIGN)
    return f"{tmp_path / 'foreign.py'}:make"


def trained(task: tasks.Task, seed: int) -> nn.Module:
    """A model of the task as another trainer would leave it: moved weights, moved statistics, another frozen table."""
    module = task.make(seed)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw), alpha=0.3)
    module.train()
    module(task.data.train.inputs[:32])
    return module.eval()


def torch_loss(module: nn.Module, task: tasks.Task) -> float:
    """By torch alone, in float64."""
    with torch.no_grad():
        outputs = module.double()(task.data.train.inputs.double())
        return float(functional.cross_entropy(outputs, task.data.train.targets))


def import_into(folder: Path, spec: str, task: tasks.Task, paths: list[Path]) -> Run:
    run = Run(folder)
    run.begin("import", {"task": spec}, {"fingerprint": task.data.fingerprint})
    recordings.import_checkpoints(run, task, paths)
    return run


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_imported_checkpoints_have_the_loss_that_torch_gives_them(foreign: str, tmp_path: Path, suffix: str) -> None:
    task = tasks.find(foreign)
    (tmp_path / "ckpts").mkdir()
    wanted = {}
    frozen = task.make(0).table.weight
    for step in (0, 9, 10, 200):
        module = trained(task, step)
        module.table.weight.copy_(frozen)  # one table for all: it does not move
        path = tmp_path / "ckpts" / f"step_{step}.{suffix}"
        if suffix == "pt":
            torch.save({"model": module.state_dict(), "step": step}, path)
        else:
            safetensors.torch.save_file(module.state_dict(), path)
        wanted[step] = torch_loss(module, task)
    run = import_into(tmp_path / "run", foreign, task, [tmp_path / "ckpts"])
    assert run.trajectory().steps.tolist() == [0, 9, 10, 200]  # numbers, not names
    assert run.record()["state"] == "finished"
    for step, loss in wanted.items():
        site = recordings.site(place(f"{run.folder}@step={step}"), task, device=CPU, dtype=torch.float64)
        # the same float32 weights, computed on in float64 by both
        assert float(site.train(site.point)) == pytest.approx(loss, rel=1e-12)


def test_frozen_parameters_are_those_of_the_checkpoint(foreign: str, tmp_path: Path) -> None:
    task = tasks.find(foreign)
    module = trained(task, 1)
    assert not torch.equal(module.table.weight, task.make(0).table.weight)
    torch.save(module.state_dict(), tmp_path / "step_1.pt")
    run = import_into(tmp_path / "run", foreign, task, [tmp_path / "step_1.pt"])
    site = recordings.site(place(str(run.folder)), task, device=CPU, dtype=torch.float64)
    assert float(site.train(site.point)) == pytest.approx(torch_loss(module, task), rel=1e-12)


def test_weights_in_float64_are_imported_whole(tmp_path: Path) -> None:
    path = tmp_path / "double.py"
    path.write_text(FOREIGN.replace("return Net()", "return Net().double()"))
    task = tasks.find(f"{path}:make")
    module = trained(task, 1) if task.data.train.inputs.dtype == torch.float64 else task.make(1)
    with torch.no_grad():
        module.head.weight.fill_(1 + 2**-40)
    torch.save(module.state_dict(), tmp_path / "step_1.pt")
    run = import_into(tmp_path / "run", f"{path}:make", task, [tmp_path / "step_1.pt"])
    points = run.trajectory().points()
    assert points.dtype == np.float64
    assert np.sum(points == 1 + 2**-40) == 24


def test_one_bad_checkpoint_among_many_writes_nothing(foreign: str, tmp_path: Path) -> None:
    task = tasks.find(foreign)
    for step in (1, 2):
        torch.save(with_table(task, step).state_dict(), tmp_path / f"step_{step}.pt")
    broken = with_table(task, 3).state_dict()
    broken["head.bias"][0] = math.nan
    torch.save(broken, tmp_path / "step_3.pt")
    with pytest.raises(LandscapeError, match=r"step_3\.pt: 'head\.bias' has 1 of 2 values that are NaN"):
        import_into(tmp_path / "run", foreign, task, sorted(tmp_path.glob("*.pt")))
    assert not (tmp_path / "run" / "trajectory").exists()
    assert Run(tmp_path / "run").record()["state"] == "failed"


def with_table(task: tasks.Task, seed: int) -> nn.Module:
    """Trained, but with the frozen table of all the others."""
    module = trained(task, seed)
    module.table.weight.copy_(task.make(0).table.weight)
    return module


def test_checkpoints_with_different_frozen_tensors_are_refused(foreign: str, tmp_path: Path) -> None:
    task = tasks.find(foreign)
    for step in (1, 2):
        torch.save(trained(task, step).state_dict(), tmp_path / f"step_{step}.pt")
    with pytest.raises(UsageError, match=r"step_2\.pt and .*step_1\.pt differ in 'table\.weight'"):
        import_into(tmp_path / "run", foreign, task, sorted(tmp_path.glob("*.pt")))
    assert not (tmp_path / "run" / "trajectory").exists()


def test_sites_with_different_frozen_tensors_have_no_path(foreign: str, tmp_path: Path) -> None:
    task = tasks.find(foreign)
    sites = []
    for step in (1, 2):
        torch.save(trained(task, step).state_dict(), tmp_path / f"step_{step}.pt")
        run = import_into(tmp_path / f"run-{step}", foreign, task, [tmp_path / f"step_{step}.pt"])
        sites.append(recordings.site(place(str(run.folder)), task, device=CPU, dtype=torch.float32))
    recordings.require_common_frozen(sites[0], sites[0])
    with pytest.raises(UsageError, match=r"differ in 'table\.weight', which is frozen"):
        recordings.require_common_frozen(*sites)


def test_an_import_lets_go_of_each_checkpoint(foreign: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read to be checked, and read again to be written: only the one at hand is alive."""
    task, read, known, most = tasks.find(foreign), recordings.checkpoints.read, [], 0
    for step in range(6):
        torch.save(with_table(task, step).state_dict(), tmp_path / f"step_{step}.pt")

    def counted(path: Path) -> Any:
        nonlocal most
        made = read(path)
        known.append(weakref.ref(made))
        most = max(most, sum(one() is not None for one in known))
        return made

    monkeypatch.setattr(recordings.checkpoints, "read", counted)
    # what is matched is copied: it is the copies that must not pile up
    match, copies = recordings.checkpoints.match, []

    def matched(*args: Any, **keywords: Any) -> Any:
        nonlocal most
        made = match(*args, **keywords)
        copies.append(weakref.ref(made["head.weight"]))
        most = max(most, sum(one() is not None for one in copies))
        return made

    monkeypatch.setattr(recordings.checkpoints, "match", matched)
    first = recordings.TrajectoryWriter.append
    seen: list[int] = []
    monkeypatch.setattr(
        recordings.TrajectoryWriter, "append", lambda writer, row: (seen.append(len(known)), first(writer, row))[1]
    )
    run = import_into(tmp_path / "run", foreign, task, sorted(tmp_path.glob("*.pt")))
    assert run.trajectory().steps.tolist() == list(range(6))
    assert seen[0] == 7  # all were read before the first row was written
    assert most == 1


# -- taking a run up --------------------------------------------------------------------------------------------------


def test_a_run_s_file_never_makes_code_run(stopped: Run, problem: str) -> None:
    with pytest.raises(
        UnsafeInputError, match=r"never makes this tool execute code: name it again with --task .*problem\.py:make"
    ):
        recordings.task_of(stopped)
    assert recordings.task_of(stopped, code=problem).name == problem
    with pytest.raises(UsageError, match="was made with the task"):
        recordings.task_of(stopped, code="other.py:make")


def test_other_data_than_the_run_s_are_refused(stopped: Run, problem: str, tmp_path: Path) -> None:
    run = copy_of(stopped, tmp_path / "run")
    run.update(fingerprint="0" * 16)
    with pytest.raises(UsageError, match=r"the data of .* differ from those"):
        recordings.task_of(run, code=problem)


def test_a_changed_model_is_refused(stopped: Run, problem: str) -> None:
    other = tasks.find(problem.replace("problem.py:make", "problem.py:make"))
    changed = tasks.Task(
        other.name, "", lambda seed: nn.Linear(6, 2), other.data, other.loss, other.defaults, other.options
    )
    with pytest.raises(UsageError, match="has other tensors than the trajectory"):
        recordings.site(place(str(stopped.folder)), changed, device=CPU, dtype=torch.float32)


def test_a_site_has_the_loss_that_was_measured_there(stopped: Run, problem: str) -> None:
    """BatchNorm's statistics and all: to rounding, since here other threads may add in another order."""
    task = tasks.find(problem)
    metrics = stopped.metrics()
    for step, loss in zip(metrics["step"], metrics["train_loss"], strict=True):
        site = recordings.site(place(f"{stopped.folder}@step={int(step)}"), task, device=CPU, dtype=torch.float32)
        assert float(site.train(site.point)) == pytest.approx(loss, rel=1e-6)
    few = [
        recordings.site(place(str(stopped.folder)), task, device=CPU, dtype=torch.float32, limit=10) for _ in range(2)
    ]
    assert len(few[0].train.rows) == 10
    assert torch.equal(few[0].train.rows.inputs, few[1].train.rows.inputs)
    with pytest.raises(UsageError, match="at least 1 row"):
        recordings.site(place(str(stopped.folder)), task, device=CPU, dtype=torch.float32, limit=0)
