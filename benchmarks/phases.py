"""The digits phase diagram as one sweep, beside the same grid as a plain loop of single trainings. Prints seconds and the ratio; asserts nothing.

    python benchmarks/phases.py [--seeds 10] [--every 1] [--threads 2]

12 dimensions x seeds x (random, burn-in@64) of digits-mlp (D = 6,570): Adam, 600 steps, batch 128, loss and accuracy on all train and test rows 21 times. Both
sides train the whole space of every seed once, for burn-ins and w*. The plain loop does what a script does: a flat vector, a dense basis (d, D) drawn once a
seed and dimension, `torch.func.functional_call`, `torch.optim.Adam`, the same batches. With --every k it trains only each k-th cell, and its time for these
is multiplied by k. The sweep's time holds everything, its files too; the scores of both sides are printed, so that one sees that they do the same.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from landscape import families, subspaces, sweeps, tasks
from landscape.descent import Recipe
from landscape.runs import Run
from landscape.seeds import generator

DIMS = (2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
BURN_IN, STEPS, BATCH, EVALUATIONS = 64, 600, 128, 20


def rate(ambient: int, dim: int) -> float:
    """The factor on Adam's rate with which its first step is as long in d dimensions of unit, not orthogonal, directions as in all D."""
    return math.sqrt(ambient / dim / (1 + 2 / math.pi * (dim - 1) / ambient))


def recipes(task: tasks.Task) -> tuple[Recipe, Recipe]:
    """Of the whole space, and of the subspaces."""
    whole = Recipe(**{**task.defaults, "steps": STEPS})  # type: ignore[arg-type]
    return whole, Recipe(steps=STEPS, optimizer="adam", lr=0.03, schedule="cosine", batch_size=BATCH)


def ours(task: tasks.Task, seeds: int) -> tuple[float, dict[sweeps.Cell, float]]:
    """Seconds of a sweep, and the last training loss of each cell."""
    whole, within = recipes(task)
    chosen = (families.Family("random"), families.Family("burn-in", None, BURN_IN))
    plan = sweeps.Plan(chosen, DIMS, tuple(range(seeds)), whole, within, every=STEPS, evaluations=EVALUATIONS)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder) / "run")
        run.begin("threshold", {}, {})
        started = time.perf_counter()
        for _ in sweeps.sweep(run, task, plan, device=torch.device("cpu"), dtype=torch.float32):
            pass
        taken = time.perf_counter() - started
        return taken, {cell: record["final_train_loss"] for cell, record in sweeps.cells(run).items()}


class Plain:
    """The loop that everyone writes."""

    def __init__(self, task: tasks.Task) -> None:
        self.task, self.module = task, task.make(0)
        self.parts = {name: (p.shape, p.numel()) for name, p in self.module.named_parameters()}
        self.train, self.test = task.data.train, task.data.test

    def outputs(self, w: Tensor, inputs: Tensor) -> Tensor:
        pieces = torch.split(w, [size for _, size in self.parts.values()])
        named = {name: piece.view(shape) for (name, (shape, _)), piece in zip(self.parts.items(), pieces, strict=True)}
        return torch.func.functional_call(self.module, named, inputs)

    def scores(self, w: Tensor) -> tuple[float, ...]:
        with torch.no_grad():
            found: list[float] = []
            for rows in (self.train, self.test):
                answers = self.outputs(w, rows.inputs)  # type: ignore[arg-type]
                found += [
                    float(functional.cross_entropy(answers, rows.targets)),
                    float((answers.argmax(1) == rows.targets).float().mean()),
                ]
            return tuple(found)

    def batches(self, steps: int) -> itertools.chain[Tensor]:
        total = len(self.train)
        epochs = math.ceil(steps / (total // BATCH))
        orders = (torch.randperm(total, generator=generator(0, "order", epoch)) for epoch in range(epochs))
        return itertools.chain.from_iterable(order[: total // BATCH * BATCH].split(BATCH) for order in orders)

    def whole(self, seed: int, recipe: Recipe) -> tuple[Tensor, Tensor]:
        """The initialisation and the point after the burn-in, of a training to the end."""
        first = torch.cat([p.detach().flatten() for p in self.task.make(seed).parameters()])
        w = first.clone().requires_grad_()
        optimizer = torch.optim.SGD([w], lr=recipe.lr, momentum=recipe.momentum)
        kept = first
        for step, index in zip(range(STEPS), self.batches(STEPS), strict=False):
            if step == BURN_IN:
                kept = w.detach().clone()
            if step % (STEPS // EVALUATIONS) == 0:
                self.scores(w)
            optimizer.zero_grad()
            functional.cross_entropy(self.outputs(w, self.train.inputs[index]), self.train.targets[index]).backward()  # type: ignore[index]
            optimizer.step()
        self.scores(w)
        return first, kept

    def cell(self, origin: Tensor, dim: int, seed: int, recipe: Recipe) -> float:
        """The last training loss of one cell."""
        # the very directions of the sweep: drawing them is not what is compared
        basis = (
            subspaces.random(torch.zeros_like(origin), dim, generator(seed, "subspace"))
            .push(torch.eye(dim))
            .contiguous()
        )
        z = torch.zeros(dim, requires_grad=True)
        optimizer = torch.optim.Adam([z], lr=recipe.lr * rate(len(origin), dim))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        for step, index in zip(range(STEPS), self.batches(STEPS), strict=False):
            if step % (STEPS // EVALUATIONS) == 0:
                self.scores(origin + z.detach() @ basis)
            optimizer.zero_grad()
            answers = self.outputs(origin + z @ basis, self.train.inputs[index])  # type: ignore[index]
            functional.cross_entropy(answers, self.train.targets[index]).backward()
            optimizer.step()
            schedule.step()
        return self.scores(origin + z.detach() @ basis)[0]


def theirs(task: tasks.Task, seeds: int, every: int) -> tuple[float, dict[sweeps.Cell, float]]:
    """Seconds of the plain loop over each `every`-th cell, times `every`, and the losses of these cells."""
    plain, (whole, within) = Plain(task), recipes(task)
    started = time.perf_counter()
    starts = [plain.whole(seed, whole) for seed in range(seeds)]
    common = time.perf_counter() - started
    grid = [(seed, dim, place) for seed in range(seeds) for dim in DIMS for place in range(2)]
    names, losses = ("random", f"burn-in@{BURN_IN}"), {}
    started = time.perf_counter()
    for seed, dim, place in grid[::every]:
        losses[sweeps.Cell(names[place], dim, seed)] = plain.cell(starts[seed][place], dim, seed, within)
    return common + (time.perf_counter() - started) * len(grid) / len(losses), losses


def main() -> None:
    """Both sides in turn, three times the sweep and as often as asked the loop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--every", type=int, default=1, help="train each k-th cell of the plain loop only")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    task = tasks.find("digits-mlp")
    count = 2 * len(DIMS) * chosen.seeds
    print(
        f"torch {torch.__version__}, {chosen.threads} threads: {count} cells of digits-mlp, {STEPS} steps each, {chosen.rounds} interleaved rounds",
        flush=True,
    )
    pairs = []
    for _ in range(chosen.rounds):
        (mine, losses), (other, plain) = ours(task, chosen.seeds), theirs(task, chosen.seeds, chosen.every)
        pairs.append((mine, other))
        scaled = f", its time for {len(plain)} cells scaled to {count}" if chosen.every > 1 else ""
        print(f"  sweep {mine:7.1f} s   plain loop {other:7.1f} s{scaled}   ratio {other / mine:5.2f}", flush=True)
    apart = statistics.median(abs(losses[cell] - loss) / loss for cell, loss in plain.items())
    ratio = statistics.median(other / mine for mine, other in pairs)
    print(
        f"the sweep is {ratio:.2f} times faster  (at least 6, and under 180 s); final training losses differ by {apart:.1e} in the median cell"
    )


if __name__ == "__main__":
    main()
