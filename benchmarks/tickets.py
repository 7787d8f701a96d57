"""Cost of lottery tickets and of what is measured on them, side by side with plain PyTorch. Prints medians and ratios; asserts nothing.

    python benchmarks/tickets.py [a] [b] [c] [d] [--rounds 5] [--threads 2]

(a) a level of iterative pruning, recorded as `landscape imp` does, against a dense training by a plain loop of as many steps: lenet-300-100 (4,096 rows, 600 and 3,000 steps: what a level costs besides its steps is the same)
and resnet20 (512 rows, 20 steps). Both measure loss and accuracy on all rows at the start and at the end;
(b) the children of `landscape spawn` (digits-mlp, 6 states of 2) as one ensemble, against the same children grown one by one, and against plain loops;
(c) a barrier of 25 points against 25 plain forward passes with loss and error over the same rows: digits-mlp, lenet-300-100 and resnet20 (statistics averaged);
(d) on a GPU: a training step of resnet20 at batch 128, bf16, the data on the device.

Rounds are interleaved, as in foundation.py.
"""

from __future__ import annotations

import copy
import itertools
import statistics
import tempfile
from pathlib import Path

import torch
from foundation import ROWS, compare, plain_loop, problem, run, seconds
from torch import nn
from torch.nn import functional

from landscape import branches, networks, tickets
from landscape.analysis.barriers import barrier
from landscape.descent import Recipe, descend
from landscape.objectives import Objective
from landscape.runs import Run
from landscape.seeds import global_stream
from landscape.tasks import Task, find

CPU = torch.device("cpu")
CHUNK = 1024  # rows of a plain pass


def task_of(name: str) -> Task:
    """Random rows of a network's shape as a task: speed does not depend on what is in them."""
    _, rows = problem(name)
    _, test = problem(name, rows=len(rows) // 4)
    _, shape = ROWS[name]

    def make(seed: int) -> nn.Module:
        with global_stream(seed, "init"):
            return networks.build(name, inputs=shape, outputs=10)

    data = type(find("digits-mlp").data)(rows, test, None, "random rows", "0" * 16)
    return Task(name, "random rows", make, data, "cross-entropy", {}, {})


def begun(folder: str, kind: str, name: str) -> Run:
    """A run that belongs to no command."""
    found = Run(Path(folder) / "run")
    found.begin(kind, {"task": name, "seed": 0, "dtype": "float32", "device": "cpu"}, {})
    return found


def evaluate(module: nn.Module, task: Task) -> list[tuple[float, float]]:
    """Mean loss and error on the train and the test rows, as everyone writes it."""
    module.eval()
    found = []
    with torch.no_grad():
        for rows in (task.data.train, task.data.test):
            loss = error = 0.0
            for chunk in rows.chunks(CHUNK):
                outputs = module(chunk.inputs)
                loss += float(functional.cross_entropy(outputs, chunk.targets, reduction="sum"))
                error += float((outputs.argmax(1) != chunk.targets).sum())
            found.append((loss / len(rows), error / len(rows)))
    return found


def a(rounds: int) -> None:
    """A level of iterative pruning."""
    for name, steps in (("lenet-300-100", 600), ("lenet-300-100", 3000), ("resnet20", 20)):
        task = task_of(name)
        recipe, levels = Recipe(steps=steps, lr=0.01, batch_size=128), 3

        def climb() -> None:
            own = begun(tempfile.mkdtemp(dir=folder), "imp", name)
            plan = tickets.Plan(levels=levels - 1, rewind=0)
            own.update(grid={"levels": levels - 1, "replicates": 0, "ablations": []})
            made = tickets.climb(own, task, plan, recipe, seed=0, every=max(1, steps // 20), evaluations=1, device=CPU, dtype=torch.float32)  # fmt: skip
            for _ in made:
                pass

        module = task.make(0)

        def plain() -> None:
            for _ in range(levels):
                evaluate(module, task)
                plain_loop(module, task.data.train, steps, 128)
                evaluate(module, task)

        with tempfile.TemporaryDirectory() as folder:  # runs are not removed within the time of a level
            compare(f"(a) level of imp, {name}, {steps:,} steps: ours | dense, plain loop", climb, plain, rounds, levels, "level", "at most 1.1")  # fmt: skip


def b(rounds: int) -> None:
    """Children as one ensemble."""
    task = find("digits-mlp")
    recipe = Recipe(steps=200, lr=0.05, batch_size=64)
    f, _ = Objective.of(task.make(0), task.loss, task.data.train)
    modules = [task.make(seed) for seed in range(6)]
    _, points, buffers = Objective.of_many(modules, task.loss, task.data.train)
    children = [
        branches.Branch(f"r{r}-c{c}", points[r], {name: value[r] for name, value in buffers.items()}, noise=10 * r + c + 1)
        for r, c in itertools.product(range(len(modules)), range(2))
    ]  # fmt: skip

    def grow(groups: list[list[branches.Branch]]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            own = begun(folder, "spawn", "digits-mlp")
            for group in groups:
                for _ in branches.grow(own, task, f, recipe, group):
                    pass

    for label, theirs in (
        ("one by one", lambda: grow([[child] for child in children])),
        ("plain loops", lambda: [plain_loop(copy.deepcopy(modules[n // 2]), task.data.train, recipe.steps, 64) for n in range(len(children))]),
    ):  # fmt: skip
        compare(
            f"(b) 12 children of digits-mlp: ensemble | {label}", lambda: grow([children]), theirs, rounds, recipe.steps, "step", "at most 0.33"
        )  # fmt: skip


def c(rounds: int) -> None:
    """A barrier."""
    digits = find("digits-mlp")
    for name, module, rows in (
        ("digits-mlp", digits.make(0), digits.data.train),
        ("lenet-300-100", *problem("lenet-300-100", 4096)),
        ("resnet20", *problem("resnet20", 512)),
    ):
        f, start = Objective.of(module, "cross-entropy", rows)
        end = start + 0.01 * torch.randn_like(start)
        module.eval()

        def passes() -> None:
            with torch.no_grad():
                for _ in range(25):
                    loss = error = 0.0
                    for chunk in rows.chunks(f.chunk):
                        outputs = module(chunk.inputs)
                        loss += float(functional.cross_entropy(outputs, chunk.targets, reduction="sum"))
                        error += float((outputs.argmax(1) != chunk.targets).sum())

        compare(
            f"(c) barrier of 25 points, {name}: ours | 25 passes",
            lambda: barrier(f, None, start, end, points=25, refine=0, bn="average"),
            passes, rounds, 25, "point", "at most 1.1",
        )  # fmt: skip


def d(rounds: int) -> None:
    """A step on a GPU."""
    if not torch.cuda.is_available():
        print("(d) step of resnet20 on a GPU: there is none here")
        return
    module, rows = problem("resnet20", 8192)
    f, point = Objective.of(module, "cross-entropy", rows, device=torch.device("cuda"))
    steps = 500

    def train(precision: str, augment: str = "") -> None:
        for _ in descend(
            f, point, Recipe(steps=steps - 1, lr=0.01, batch_size=128, precision=precision, augment=augment), 0
        ):  # type: ignore[arg-type]
            pass
        torch.cuda.synchronize()

    for precision, augment in (("full", ""), ("bf16", ""), ("bf16", "shift,flip")):
        train(precision, augment)
        found = statistics.median(seconds(lambda: train(precision, augment)) for _ in range(rounds))
        print(f"(d) step of resnet20, batch 128, {precision} {augment}: {found / steps * 1e3:6.3f} ms on {torch.cuda.get_device_name()} (under 1.5 ms on an H100)", flush=True)  # fmt: skip


if __name__ == "__main__":
    run({"a": a, "b": b, "c": c, "d": d}, __doc__, rounds=5)
