"""Speed and memory of the foundation, side by side with plain PyTorch in one run. Prints medians and ratios; asserts nothing.

    python benchmarks/foundation.py [a] [b] [c] [d] [e] [--rounds 5] [--threads 2]

(a) a training step of lenet-300-100 and of resnet20 against a plain PyTorch loop on the same batches;
(b) recording every step of resnet20 (D = 272,474) against not recording;
(c) 32 seeds of digits-mlp as one ensemble against 32 plain runs;
(d) peak memory of the streaming Gram matrix of a 1,000 x 1,000,000 trajectory (in a process of its own; needs 4 GB of disk);
(e) a Hessian and a Gauss-Newton product in units of a gradient.

Rounds are interleaved: each measures both sides, and the ratio is the median of the rounds' ratios, so that a drifting machine cancels out.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from landscape import networks
from landscape.descent import Recipe, descend
from landscape.objectives import Objective, Rows
from landscape.recordings import row_of
from landscape.trajectories import TrajectoryWriter

ROWS = {"lenet-300-100": (4096, (1, 28, 28)), "resnet20": (512, (3, 32, 32))}


def problem(name: str, rows: int | None = None) -> tuple[nn.Module, Rows]:
    """A fresh network and random rows of its shape: speed does not depend on what is in them."""
    count, shape = ROWS[name]
    torch.manual_seed(0)
    count = rows or count
    return networks.build(name, inputs=shape, outputs=10), Rows(
        torch.randn(count, *shape), torch.randint(0, 10, (count,))
    )


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def compare(
    label: str, ours: Callable[[], object], theirs: Callable[[], object], rounds: int, per: int, unit: str, allowed: str
) -> None:
    """Time both in turn; print medians per unit of work and the median ratio."""
    ours(), theirs()  # warm-up
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(rounds)]
    mine, other = (statistics.median(pair[i] for pair in pairs) / per * 1e3 for i in range(2))
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"{label:<58} {mine:9.3f} ms  {other:9.3f} ms per {unit:<8} ratio {ratio:6.3f}  ({allowed})", flush=True)


def plain_loop(module: nn.Module, rows: Rows, steps: int, batch: int) -> None:
    """The loop that everyone writes."""
    inputs, targets = rows.inputs, rows.targets
    assert isinstance(inputs, torch.Tensor)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
    order = torch.randperm(len(targets))
    module.train()
    for step in range(steps):
        place = step * batch % (len(targets) - batch + 1)
        index = order[place : place + batch]
        optimizer.zero_grad()
        loss = functional.cross_entropy(module(inputs[index]), targets[index])
        loss.backward()
        optimizer.step()


def exhaust(f: Objective, point: torch.Tensor, steps: int, batch: int, seed: int | list[int] = 0) -> None:
    """Our loop, `steps` gradients long."""
    for _ in descend(f, point, Recipe(steps=steps - 1, lr=0.01, batch_size=batch), seed):
        pass


def a(rounds: int) -> None:
    """Training steps."""
    for name, steps in (("lenet-300-100", 60), ("resnet20", 2)):
        module, rows = problem(name)
        f, point = Objective.of(module, "cross-entropy", rows)
        compare(
            f"(a) step of {name}, batch 128: descend | plain loop",
            lambda: exhaust(f, point, steps, 128),
            lambda: plain_loop(module, rows, steps, 128),
            rounds, steps, "step", "at most 1.15",
        )  # fmt: skip


def b(rounds: int) -> None:
    """Recording every step."""
    module, rows = problem("resnet20")
    f, point = Objective.of(module, "cross-entropy", rows)
    steps = 3

    def recording() -> None:
        with tempfile.TemporaryDirectory() as folder:
            writer = TrajectoryWriter(Path(folder), f.model.layout)
            for state in descend(f, point, Recipe(steps=steps - 1, lr=0.01, batch_size=128), 0):
                writer.append(row_of(state, f))
                writer.commit()  # the worst case: each row durable by itself

    compare(
        f"(b) step of resnet20, every one recorded (D = {f.dim:,}) | not",
        recording,
        lambda: exhaust(f, point, steps, 128),
        rounds,
        steps,
        "step",
        "at most 1.20",
    )


def c(rounds: int) -> None:
    """Ensembles."""
    torch.manual_seed(0)
    modules = [networks.build("mlp", inputs=(64,), outputs=10) for _ in range(32)]
    rows = Rows(torch.randn(1437, 64), torch.randint(0, 10, (1437,)))
    f, _ = Objective.of(modules[0], "cross-entropy", rows)
    starts = torch.stack([torch.cat([p.detach().flatten() for p in module.parameters()]) for module in modules])
    steps, batch = 50, 64

    def plain() -> None:
        for module in modules:
            plain_loop(module, rows, steps, batch)

    for label, seed in (("each member its own batches", list(range(32))), ("batches shared", 0)):
        compare(
            f"(c) 32 seeds of digits-mlp, {label}: ensemble | loop",
            lambda: exhaust(f, starts, steps, batch, seed),
            plain,
            rounds,
            steps,
            "step",
            "at most 0.25",
        )


GRAM = """
import sys, time
from pathlib import Path
import numpy as np
from landscape.trajectories import Entry, Layout, Row, Trajectory, TrajectoryWriter
folder, task = Path(sys.argv[1]), sys.argv[2]
T, D = 1000, 1_000_000
if task == "write":
    writer = TrajectoryWriter(folder, Layout((Entry("w", (D,), 0, "float32", "parameter"),)))
    draw = np.random.default_rng(0)
    point = draw.standard_normal(D, dtype=np.float32)
    for step in range(T):
        point = point + 0.01 * draw.standard_normal(D, dtype=np.float32)
        if writer.append(Row(step, point, np.empty(0), 0.0, 0.1)):
            writer.commit()
    writer.commit()
else:
    started = time.perf_counter()
    gram = Trajectory.open(folder).gram()
    # the process's own high-water mark; ru_maxrss would also hold that of the process that started it
    peak = int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 2**20
    print(f"(d) Gram matrix of 1,000 x 1,000,000: {time.perf_counter() - started:.1f} s, peak memory of the process {peak:.2f} GiB  (under 1 GiB); trace {np.trace(gram):.6g}")
"""


def d(rounds: int) -> None:
    """The streaming Gram matrix."""
    with tempfile.TemporaryDirectory() as folder:
        for task in ("write", "gram"):
            subprocess.run([sys.executable, "-c", GRAM, folder, task], check=True)


def e(rounds: int) -> None:
    """Hessian products."""
    for name, count in (("lenet-300-100", 1000), ("resnet20", 128)):
        module, rows = problem(name, count)
        f, point = Objective.of(module, "cross-entropy", rows)
        vector = torch.randn(f.dim)
        for label, matrix in (("Hessian", f.hessian(point)), ("Gauss-Newton", f.gauss_newton(point))):
            compare(
                f"(e) {label} product of {name} | gradient",
                lambda: matrix @ vector,
                lambda: f.gradient(point),
                rounds,
                1,
                "product",
                "at most 2.5",
            )


def run(parts: dict[str, Callable[[int], None]], description: str | None, rounds: int) -> None:
    """Run the parts that the command line names."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(parts)}; all by default")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    chosen = parser.parse_args()
    if odd := set(chosen.parts) - set(parts):
        parser.error(f"no part {', '.join(sorted(odd))}; there are {', '.join(parts)}")
    torch.set_num_threads(chosen.threads)
    print(
        f"torch {torch.__version__}, {chosen.threads} threads, median of {chosen.rounds} interleaved rounds; ours | theirs"
    )
    for name in chosen.parts or parts:
        parts[name](chosen.rounds)


if __name__ == "__main__":
    run({"a": a, "b": b, "c": c, "d": d, "e": e}, __doc__, rounds=5)
