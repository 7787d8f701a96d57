"""Cost and accuracy around the embedding principle. Prints medians, ratios and figures; asserts nothing.

    python benchmarks/embedding.py [a] [b] [c] [--rounds 5] [--threads 2]

(a) the inertia of a two-layer network of width 200 after a split, from the blocks of the unit and the narrow network's inertia, against the dense Hessian of the wide network and its eigenvalues;
    the narrow inertia is known once for all units and ratios, and what it costs is told beside;
(b) the finder on the candidate target: widths 1 to 3, 150 starts each in lockstep;
(c) gradients at planted critical points, by plain PyTorch.

Rounds are interleaved, as in foundation.py.
"""

from __future__ import annotations

import statistics

import torch
from foundation import compare, run, seconds
from torch import nn

from landscape import critical, embeddings, units
from landscape.analysis.plateaus import _scattered
from landscape.inertias import blocks, inertia, predicted
from landscape.objectives import Objective, Rows
from landscape.seeds import generator

WIDTH, RATIO, UNIT = 200, 0.3, 7


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed, "benchmark", *shape), dtype=torch.float64)


def a(rounds: int) -> None:
    """Inertia after a split."""
    for inputs, outputs in ((1, 1), (4, 3)):
        module = critical.shallow(inputs, WIDTH, outputs)
        f, point = Objective.of(module, "mse", Rows(normal(150, inputs), normal(150, outputs)), dtype=torch.float64)
        (layer,) = units.layers(module, f.rows.inputs[:2])  # type: ignore[index]
        embedding = embeddings.split(module, layer, UNIT, RATIO)
        wide, lifted = embedding.wide_objective(f), embedding.lift(point)
        narrow = inertia(f.hessian(point).dense())
        truth, ours = inertia(wide.hessian(lifted).dense()), predicted(narrow, blocks(f, point, layer, UNIT), RATIO)
        agree = "the same" if truth.counts == ours.counts else "DIFFERENT"
        print(
            f"(a) {inputs}-{WIDTH}-{outputs}: dense {truth}{'?' if truth.ambiguous else ''}, blocks {ours}{'?' if ours.ambiguous else ''}: {agree}"
        )
        compare(
            f"(a) {inputs}-{WIDTH}-{outputs} split (D = {f.dim:,}): blocks | dense Hessian",
            lambda: predicted(narrow, blocks(f, point, layer, UNIT), RATIO),
            lambda: inertia(wide.hessian(lifted).dense()),
            rounds, 1, "split", "at most 0.02",
        )  # fmt: skip
        once = statistics.median(seconds(lambda: inertia(f.hessian(point).dense())) for _ in range(rounds))
        print(
            f"(a) {inputs}-{WIDTH}-{outputs}: the narrow inertia, once for all splits: {once * 1e3:.3g} ms", flush=True
        )


def b(rounds: int) -> None:
    """The finder."""
    rows = critical.candidate()
    total = 0.0
    for width in (1, 2, 3):
        f, _ = Objective.of(critical.shallow(1, width, 1), "mse", rows, dtype=torch.float64)
        starts = _scattered(rows, width, 150, "tanh", 0)
        found: list[critical.Found] = []
        taken = seconds(lambda: found.append(critical.find(f, starts)))
        total += taken
        sure = found[0].certificate.converged
        best = found[0].losses[sure].min()
        print(f"(b) width {width}: {taken:6.2f} s, {int(sure.sum())} of 150 converged (median {int(found[0].steps[sure].median())} steps), least loss {float(best):.5f}", flush=True)  # fmt: skip
    print(f"(b) widths 1 to 3: {total:.1f} s (under 60 s on 2 cores)", flush=True)


class Gated(nn.Module):
    """y = W (silu(G x) * U x)."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.down(nn.functional.silu(self.gate(x)) * self.up(x))
        return out


class Heads(nn.Module):
    """Two heads of self-attention, averaged over places."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.attention(x, x, x, need_weights=False)[0].mean(1)
        return out


def c(rounds: int) -> None:
    """Planted critical points."""
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    images = normal(60, 1, 6, 6)
    for name, module, inputs, norm in (
        ("MLP", dense, normal(40, 3), "eval"),
        ("CNN", _convolutional(nn.Identity()), images, "eval"),
        ("CNN, BatchNorm by running statistics", _convolutional(nn.BatchNorm2d(3)), images, "eval"),
        ("CNN, BatchNorm by the batch", _convolutional(nn.BatchNorm2d(3)), images, "batch"),
        ("attention heads", Heads(), normal(80, 3, 4), "eval"),
        ("SwiGLU", Gated(), normal(60, 3), "eval"),
    ):
        f, _ = critical.plant(module, inputs, residual=0.5, norm=norm)  # type: ignore[arg-type]
        own = module.double().train(norm == "batch")
        loss = nn.functional.mse_loss(own(inputs), f.rows.targets)
        slope = torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(own.parameters()))]).norm()
        print(f"(c) {name:<38} loss {loss.item():.4f}  |g| {slope.item():.1e}  (at most 1e-13)", flush=True)


def _convolutional(norm: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), norm, nn.Tanh(), nn.Conv2d(3, 2, 3), nn.GELU(), nn.Flatten(), nn.Linear(8, 2)
    )


if __name__ == "__main__":
    run({"a": a, "b": b, "c": c}, __doc__, rounds=5)
