"""Speed of training inside subspaces, side by side with plain PyTorch in one run. Prints medians and ratios; asserts nothing.

    python benchmarks/subspaces.py [b] [--rounds 9] [--threads 2]

(b) an epoch of P-BFGS in 40 principal directions of an SGD trajectory, batches of 128: ours against a straightforward one that does as the code of Li et al. 2022 is
    described: parameters live in the module, the state dict is saved to a file at each step and loaded from it for each trial of the line search, trials run with
    autograd on, the basis is a dense matrix. Both make the same steps (secants across mini-batches, no damping, a failed search takes its last trial), which is printed;
    a second line has ours with its defaults (same-batch secants, damping, a failed search skipped), a third 8 seeds, each with mini-batches of its own, as one ensemble against 8 epochs of the other,
    one after another.

Rounds are interleaved: each measures both sides, and the ratio is the median of the rounds' ratios, so that a drifting machine cancels out.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from foundation import run
from torch import Tensor, nn
from torch.nn import functional

from landscape import networks, solvers, tasks
from landscape.descent import Recipe, State, _Order, descend
from landscape.objectives import Objective, Rows
from landscape.subspaces import span

BATCH, DIM, SEEDS = 128, 40, 8


def compare(label: str, ours: Callable[[], object], theirs: Callable[[], object], rounds: int, per: int) -> None:
    """Time both in turn; print medians per step and how many times faster ours is."""
    ours(), theirs()  # warm-up
    pairs = []
    for _ in range(rounds):
        times = []
        for work in (ours, theirs):
            started = time.perf_counter()
            work()
            times.append(time.perf_counter() - started)
        pairs.append(times)
    mine, other = (statistics.median(pair[i] for pair in pairs) / per * 1e3 for i in range(2))
    ratio = statistics.median(b / a for a, b in pairs)
    print(f"{label:<62} {mine:8.2f} ms {other:8.2f} ms per step   {ratio:5.2f} times faster", flush=True)


def straightforward(module: nn.Module, rows: Rows, basis: Tensor, steps: int, folder: Path) -> Iterator[Tensor]:
    """P-BFGS as the authors' code does it, on our mini-batches; yields the parameters (D,) before each step, and the last."""
    parameters, file = list(module.parameters()), folder / "state.pt"
    order = _Order(len(rows), BATCH, 0, basis.device)
    inverse, eye = torch.eye(len(basis)), torch.eye(len(basis))
    before = moved = None
    module.train()

    def vector(of: Callable[[nn.Parameter], Tensor]) -> Tensor:
        return torch.cat([of(p).flatten() for p in parameters])

    def shift(direction: Tensor) -> None:
        place = 0
        for p in parameters:
            p.data += direction[place : place + p.numel()].view_as(p)
            place += p.numel()

    for step in range(steps):
        yield vector(lambda p: p.detach().clone())
        batch = rows.take(order.batch(step))
        module.zero_grad()
        loss = functional.cross_entropy(module(batch.inputs), batch.targets)
        loss.backward()
        gradient = basis @ vector(lambda p: p.grad)  # type: ignore[arg-type, return-value]
        if before is not None and moved is not None:
            change = gradient - before
            curvature = float(change @ moved)
            if curvature > 1e-20:
                v = eye - torch.outer(change, moved) / curvature
                inverse = v.T @ inverse @ v + torch.outer(moved, moved) / curvature
        direction = -inverse @ gradient
        slope = float(gradient @ direction)
        torch.save(module.state_dict(), file)
        length = 1.0
        for trial in range(20):
            if trial:
                length *= 0.4
            module.load_state_dict(torch.load(file, weights_only=True))
            shift(basis.T @ (length * direction))
            value = functional.cross_entropy(module(batch.inputs), batch.targets)
            if value.item() <= loss.item() + 0.4 * length * slope:
                break
        before, moved = gradient, length * direction
    yield vector(lambda p: p.detach().clone())


def b(rounds: int) -> None:
    """P-BFGS."""
    digits = tasks.find("digits-mlp")
    torch.manual_seed(0)
    images = Rows(torch.randn(1024, 1, 28, 28), torch.randint(0, 10, (1024,)))
    problems: list[tuple[str, Callable[[], nn.Module], Rows]] = [
        ("digits-mlp", lambda: digits.make(0), digits.data.train),
        ("conv2, 28 x 28", lambda: _seeded("conv2", (1, 28, 28)), images),
    ]
    for name, make, rows in problems:
        f, w = Objective.of(make(), "cross-entropy", rows)
        trace = torch.stack([s.point for s in descend(f, w, Recipe(steps=80, lr=0.05, batch_size=BATCH), 0)])
        basis = torch.linalg.svd(trace - trace.mean(0), full_matrices=False)[2][:DIM].contiguous()
        g, steps = f.restrict(span(w, basis)), len(rows) // BATCH
        authors = Recipe(
            steps=steps,
            optimizer="bfgs",
            lr=1.0,
            batch_size=BATCH,
            secants="cross",
            damping=0.0,
            on_failure="take",
        )
        own = Recipe(steps=steps, optimizer="bfgs", lr=1.0, batch_size=BATCH)
        with tempfile.TemporaryDirectory() as folder:

            def theirs() -> list[Tensor]:
                return list(straightforward(make(), rows, basis, steps, Path(folder)))

            def ours(recipe: Recipe) -> list[State]:
                # the last state is the first of the next epoch
                return list(descend(g, w.new_zeros(DIM), recipe, 0))

            def ensemble() -> None:
                list(descend(g, w.new_zeros(SEEDS, DIM), authors, range(SEEDS)))

            def repeated() -> None:
                for _ in range(SEEDS):
                    theirs()

            states, points = ours(authors), theirs()
            apart = max(float((g.lift(s.point) - p).abs().max()) for s, p in zip(states, points, strict=True))
            made = solvers.counts(states[-1], authors)["evaluations"]
            print(f"(b) {name}, D = {f.dim:,}: {steps} steps, {int(made)} passes, parameters at most {apart:.1e} apart")
            compare(f"(b) {name}: ours, the same steps | straightforward", lambda: ours(authors), theirs, rounds, steps)
            compare(f"(b) {name}: ours, its defaults | straightforward", lambda: ours(own), theirs, rounds, steps)
            label = f"(b) {name}: {SEEDS} seeds as one ensemble | {SEEDS} straightforward"
            compare(label, ensemble, repeated, max(rounds // 3, 1), steps)


def _seeded(name: str, inputs: tuple[int, ...]) -> nn.Module:
    torch.manual_seed(0)
    return networks.build(name, inputs=inputs, outputs=10)


if __name__ == "__main__":
    run({"b": b}, __doc__, rounds=9)
