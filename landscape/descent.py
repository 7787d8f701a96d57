"""Descent: a generator of states over any objective, whole or restricted, one start or an ensemble in lockstep.

Letters: D parameters, d coordinates, E ensemble, n rows of a mini-batch, t step.

    g_t = gradient of the mini-batch t at z_t (+ weight decay, + clipping);  z_{t+1} = z_t - rate_t * direction(g_t)

A state is a value: nothing it holds is written to afterwards, and it holds all that is needed to go on. The batch of step t is a pure function of
(seed, t), and so are its augmentation and dropout: there is no generator state to save, and a resumed run ends bitwise equal to one that was never stopped
(same machine, versions and thread count).

Sources: momentum as torch.optim.SGD (dampening 0; Sutskever et al. 2013 with the rate outside); Adam with bias correction, Kingma and Ba 2015.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import numbers
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from landscape.errors import UsageError, unknown
from landscape.objectives import Buffers, Inputs, Objective, Parts, Rows, flat, leaves
from landscape.seeds import generator, global_stream

OPTIMIZERS = ("sgd", "adam")
SCHEDULES = ("constant", "step", "cosine")
AUGMENTATIONS = ("shift", "flip")


@dataclass(frozen=True)
class Recipe:
    """How to descend. Units: steps are mini-batch updates; the rate is per step."""

    steps: int = 1000  # a look at a small problem; every task brings its own
    optimizer: str = "sgd"
    lr: float = 0.1  # of nearly all papers measured here, with batch normalisation; likewise
    momentum: float = 0.9  # sgd; the value of nearly all papers measured here
    weight_decay: float = 0.0  # added to the gradient (L2), for sgd and adam alike, as torch.optim does
    betas: tuple[float, float] = (0.9, 0.999)  # adam: Kingma and Ba, section 2
    eps: float = 1e-8  # adam: likewise
    schedule: str = "constant"
    milestones: tuple[float, ...] = (
        0.5,
        0.75,
    )  # step schedule, as fractions of `steps`: 80 and 120 of 160 epochs (He et al. 2016, CIFAR-10)
    gamma: float = 0.1  # factor at each milestone: likewise
    warmup: int = 0  # steps of linear growth of the rate from 0
    batch_size: int = 0  # rows a step; 0 is all rows (full batch)
    clip: float = 0.0  # bound on the gradient's norm; 0 is none
    augment: str = ""  # of image rows: "shift" (up to 4 pixels, zero padded), "flip" (left-right), or both with a comma
    precision: Literal["full", "bf16"] = (
        "full"  # bf16: autocast of the forward pass on CUDA; points and moments stay as they are
    )

    def __post_init__(self) -> None:
        for ok, complaint in (
            (self.steps >= 0, f"steps must be at least 0; got {self.steps}"),
            (self.lr > 0 and math.isfinite(self.lr), f"lr must be positive and finite; got {self.lr}"),
            (0 <= self.momentum < 1, f"momentum must lie in [0, 1); got {self.momentum}"),
            (self.weight_decay >= 0, f"weight_decay must be at least 0; got {self.weight_decay}"),
            (all(0 <= b < 1 for b in self.betas), f"betas must lie in [0, 1); got {self.betas}"),
            (
                all(0 < m < 1 for m in self.milestones),
                f"milestones are fractions of the steps in (0, 1); got {self.milestones}",
            ),
            (0 <= self.warmup <= max(self.steps, 1), f"warmup must lie in 0..{self.steps}; got {self.warmup}"),
            (self.batch_size >= 0, f"batch_size must be at least 0 (0 is all rows); got {self.batch_size}"),
            (self.precision in ("full", "bf16"), f"precision is full or bf16; got {self.precision!r}"),
            (self.clip >= 0, f"clip must be at least 0 (0 is none); got {self.clip}"),
        ):
            if not ok:
                raise UsageError(complaint + ".")
        for kind, got, allowed in (("optimizer", self.optimizer, OPTIMIZERS), ("schedule", self.schedule, SCHEDULES)):
            if got not in allowed:
                raise unknown(kind, got, allowed)
        for name in self.augmentations:
            if name not in AUGMENTATIONS:
                raise unknown("augmentation", name, AUGMENTATIONS)

    @property
    def augmentations(self) -> tuple[str, ...]:
        """The names in `augment`."""
        return tuple(name.strip() for name in self.augment.split(",") if name.strip())

    def rate(self, step: int) -> float:
        """The learning rate of the update from state `step` to the next."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.schedule == "step":
            return self.lr * self.gamma ** sum(step >= milestone * self.steps for milestone in self.milestones)
        if self.schedule == "cosine":
            done = (step - self.warmup) / max(self.steps - self.warmup, 1)
            return self.lr * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        return self.lr


@dataclass(frozen=True, eq=False)
class State:
    """Descent before update number `step`: the point, and what the update needs."""

    step: int
    point: Tensor  # (d,) or (E, d)
    loss: Tensor  # () or (E,): of the mini-batch `step` at this point
    gradient: Tensor  # of point's shape: of that loss, without weight decay
    rate: float  # of the update that follows
    moments: tuple[Tensor, ...]  # sgd: (velocity,); adam: (first, second); of point's shape
    buffers: Buffers  # as the pass of the update before left them; with a leading E for an ensemble


@dataclass(frozen=True, eq=False)
class Start:
    """Where descent starts or goes on: step 0 from a fresh point, or what a stopped run saved."""

    point: Tensor
    step: int = 0
    moments: tuple[Tensor, ...] = ()
    buffers: Buffers | None = None  # None: those of the objective

    @staticmethod
    def of(state: State) -> Start:
        """Go on from a state: the next states are bitwise those that would have followed it."""
        return Start(state.point, state.step, state.moments, state.buffers)


def descend(f: Objective, start: Tensor | Start, recipe: Recipe, seed: int | Sequence[int]) -> Iterator[State]:
    """Yield the states 0, 1, ..., recipe.steps of descent on f from `start`, (d,) or (E, d).

    seed: names the order of the rows, their augmentation and dropout. One seed gives every member of an ensemble the same batches (fastest); a sequence of E
    seeds gives each member those of its own seed, so that member e is the run that seed e would make alone.

    Raises UsageError where shapes, batch size or augmentation do not fit the objective.
    """
    begin = start if isinstance(start, Start) else Start(start)
    seed = int(seed) if isinstance(seed, numbers.Integral) else [int(one) for one in seed]  # type: ignore[union-attr]
    point = begin.point.detach().to(f.device, f.dtype)
    members = point.shape[0] if point.ndim == 2 else None
    if point.shape[-1] != f.dim or point.ndim not in (1, 2):
        raise UsageError(f"descent starts at ({f.dim},) or (E, {f.dim}); got {tuple(point.shape)}.")
    if not isinstance(seed, int) and len(seed) != members:
        raise UsageError(f"{len(seed)} seeds for {members or 'a single'} start(s): give one seed, or one a member.")
    n = recipe.batch_size or len(f.rows)
    if n > len(f.rows):
        raise UsageError(f"a batch of {n} rows from a set of {len(f.rows)}. Allowed: 1 to {len(f.rows)}, or 0 for all.")
    _check_augmentations(recipe, f.rows)
    order = _Order(len(f.rows), n, seed, f.device)
    gradient_of = _TrainingGradient(f, recipe, seed)
    buffers = _spread(f.buffers if begin.buffers is None else begin.buffers, members if begin.buffers is None else None)
    moments = begin.moments or tuple(torch.zeros_like(point) for _ in range(2 if recipe.optimizer == "adam" else 1))
    for step in range(begin.step, recipe.steps + 1):
        rows = f.rows if n == len(f.rows) and not recipe.batch_size else f.rows.take(order.batch(step))
        loss, gradient, after = gradient_of(point, buffers, rows, step)
        state = State(step, point, loss, gradient, recipe.rate(step), moments, buffers)
        yield state
        if step < recipe.steps:
            point, moments = _update(state, recipe)
            buffers = after


def recorded(step: int, last: int, every: int | Literal["log"]) -> bool:
    """Whether a recorder that keeps every k steps, or log-spaced ones (about 20 an octave), keeps this one. The first and the last always are."""
    if every != "log" and every < 1:
        raise UsageError(f"recording takes every k-th step, k at least 1, or log; got {every}.")
    if step in (0, last):
        return True
    if every == "log":
        # the steps at which floor(20 log2 t) grows: all up to about 29, then evenly on a log axis
        return math.floor(20 * math.log2(step)) > math.floor(20 * math.log2(step - 1)) if step > 1 else True
    return step % every == 0


def _update(state: State, recipe: Recipe) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The next point and moments. Everything is new: states already given away do not change."""
    gradient, point, rate = state.gradient, state.point, state.rate
    if recipe.clip:
        norm = gradient.norm(dim=-1, keepdim=True)
        gradient = gradient * (recipe.clip / norm.clamp_min(recipe.clip))
    if recipe.weight_decay:
        gradient = torch.add(gradient, point, alpha=recipe.weight_decay)
    if recipe.optimizer == "sgd":
        velocity = torch.add(gradient, state.moments[0], alpha=recipe.momentum) if recipe.momentum else gradient
        return torch.add(point, velocity, alpha=-rate), (velocity,)
    first, second = state.moments
    beta1, beta2 = recipe.betas
    first = torch.lerp(first, gradient, 1 - beta1)
    second = torch.addcmul(second * beta2, gradient, gradient, value=1 - beta2)
    t = state.step + 1
    scale = second.sqrt().div_(math.sqrt(1 - beta2**t)).add_(recipe.eps)
    return torch.addcdiv(point, first, scale, value=-rate / (1 - beta1**t)), (first, second)


# -- batches ----------------------------------------------------------------------------------------------------------


class _Order:
    """The rows of every step: epoch e is a permutation drawn from the stream (seed, "order", e), cut into whole batches, the rest left out."""

    def __init__(self, total: int, size: int, seed: int | Sequence[int], device: torch.device) -> None:
        self._total, self._size, self._seed, self._device = total, size, seed, device
        self._epoch = -1
        self._permutation = torch.empty(0)

    def batch(self, step: int) -> Tensor:
        """Row indices (n,), or (E, n) where every member has a seed of its own."""
        epoch, place = divmod(step, self._total // self._size)
        if epoch != self._epoch:
            seeds = [self._seed] if isinstance(self._seed, int) else self._seed
            drawn = [torch.randperm(self._total, generator=generator(s, "order", epoch)) for s in seeds]
            self._permutation = (drawn[0] if isinstance(self._seed, int) else torch.stack(drawn)).to(self._device)
            self._epoch = epoch
        return self._permutation[..., place * self._size : (place + 1) * self._size]


def _check_augmentations(recipe: Recipe, rows: Rows) -> None:
    if recipe.augmentations and not (isinstance(rows.inputs, Tensor) and rows.inputs.ndim == 4):
        raise UsageError(
            f"augmentation {recipe.augment!r} is for image rows (N, channels, height, width); these rows are not. Leave it out."
        )


def _augment(images: Tensor, names: tuple[str, ...], seed: int, step: int) -> Tensor:
    """Shift and flip each image of (n, c, h, w), on its device, by draws from the stream (seed, "augment", step)."""
    n, _, height, width = images.shape
    source = generator(seed, "augment", step)
    if "flip" in names:
        flips = (torch.rand(n, generator=source) < 0.5).to(images.device)
        images = torch.where(flips.view(-1, 1, 1, 1), images.flip(-1), images)
    if "shift" in names:
        pad = 4  # He et al. 2016, section 4.2: random crop from the image padded by 4
        dy, dx = (torch.randint(0, 2 * pad + 1, (n, 1), generator=source).to(images.device) for _ in range(2))
        padded = functional.pad(images, (pad,) * 4)
        ys = dy + torch.arange(height, device=images.device)
        xs = dx + torch.arange(width, device=images.device)
        which = torch.arange(n, device=images.device).view(-1, 1, 1)
        images = padded[which, :, ys.unsqueeze(2), xs.unsqueeze(1)].permute(0, 3, 1, 2)
    return images


# -- gradients in train mode ------------------------------------------------------------------------------------------


class _TrainingGradient:
    """Loss and gradient of a mini-batch in train mode: BatchNorm by batch statistics, dropout on, bf16 where asked. The objective has none of this."""

    def __init__(self, f: Objective, recipe: Recipe, seed: int | Sequence[int]) -> None:
        self._f, self._recipe, self._seed = f, recipe, seed
        if recipe.precision == "bf16" and f.device.type != "cuda":
            raise UsageError(f"bf16 autocast is for CUDA; the device is {f.device.type}. Use precision full.")

    def __call__(self, z: Tensor, buffers: Buffers, rows: Rows, step: int) -> tuple[Tensor, Tensor, Buffers]:
        f = self._f
        own = not isinstance(self._seed, int)
        with contextlib.ExitStack() as stack:
            if f.model.stochastic and isinstance(self._seed, int):
                stack.enter_context(global_stream(self._seed, "dropout", step, device=f.device))
            if self._recipe.precision == "bf16":
                stack.enter_context(torch.autocast("cuda", torch.bfloat16))
            rows = self._augmented(rows, step)
            w = f.lift(z)
            # the dropout of a member's own seed comes from a stream of its own, which lockstep cannot draw from
            if z.ndim == 2 and (not f.model.lockstep or (own and f.model.stochastic)):
                return self._loop(w, buffers, rows, own, step)
            parts = leaves(f.model, w)
            with torch.enable_grad():
                loss, after = (
                    self._mean_loss(parts, buffers, rows) if z.ndim == 1 else self._vmapped(parts, buffers, rows, own)
                )
                gradient = flat(
                    torch.autograd.grad(loss.sum(), parts, materialize_grads=True), len(z) if z.ndim == 2 else 0
                )
        return loss.detach(), f.project(gradient), after

    def _mean_loss(self, parts: Parts, buffers: Buffers, rows: Rows) -> tuple[Tensor, Buffers]:
        outputs, after = self._f.model.forward(parts, buffers, rows.inputs, "train")
        return self._f.loss.mean(outputs, rows.targets), after

    def _vmapped(self, parts: Parts, buffers: Buffers, rows: Rows, own: bool) -> tuple[Tensor, Buffers]:
        def one(parts: Parts, buffers: Buffers, inputs: Inputs) -> tuple[Tensor, Buffers]:
            return self._f.model.forward(parts, buffers, inputs, "train")

        members, axis = len(parts[0]), 0 if own and self._recipe.batch_size else None
        mapped = torch.func.vmap(one, in_dims=(0, 0, axis), randomness="different")
        outputs, after = mapped(parts, dict(buffers), rows.inputs)
        targets = rows.targets if axis == 0 else rows.targets.expand(members, *rows.targets.shape)
        # the loss knows rows, not members: all of them are its rows at once, which is faster than to map it too
        losses, weights = self._f.loss.rows(outputs.flatten(0, 1), targets.flatten(0, 1))
        return losses.view(members, -1).sum(1) / weights.view(members, -1).sum(1), after

    def _loop(self, w: Tensor, buffers: Buffers, rows: Rows, own: bool, step: int) -> tuple[Tensor, Tensor, Buffers]:
        losses, gradients, afters = [], [], []
        for member in range(len(w)):
            mine = rows
            if own and self._recipe.batch_size:
                mine = rows.take(member)
            parts = leaves(self._f.model, w[member])
            with contextlib.ExitStack() as stack:
                if self._f.model.stochastic and not isinstance(self._seed, int):
                    stack.enter_context(global_stream(self._seed[member], "dropout", step, device=self._f.device))
                stack.enter_context(torch.enable_grad())
                loss, after = self._mean_loss(parts, {name: value[member] for name, value in buffers.items()}, mine)
                gradient = flat(torch.autograd.grad(loss, parts, materialize_grads=True))
            losses.append(loss.detach())
            gradients.append(gradient)
            afters.append(after)
        stacked = {name: torch.stack([after[name] for after in afters]) for name in buffers}
        return torch.stack(losses), self._f.project(torch.stack(gradients)), stacked

    def _augmented(self, rows: Rows, step: int) -> Rows:
        names = self._recipe.augmentations
        if not names:
            return rows
        images = rows.inputs
        assert isinstance(images, Tensor)
        if isinstance(self._seed, int):
            return dataclasses.replace(rows, inputs=_augment(images, names, self._seed, step))
        if images.ndim == 4:  # full batch: the members share the rows but not their noise
            raise UsageError(
                "full-batch ensembles with one seed a member share their rows: leave augmentation out, or set a batch size."
            )
        return Rows(torch.stack([_augment(images[e], names, s, step) for e, s in enumerate(self._seed)]), rows.targets)


def _spread(buffers: Buffers, members: int | None) -> Buffers:
    """Buffers of its own for every member of an ensemble."""
    if members is None:
        return buffers
    return {name: value.expand(members, *value.shape).contiguous() for name, value in buffers.items()}
