"""Descent: a generator of states over any objective, whole or restricted, one start or an ensemble in lockstep.

Letters: D parameters, d coordinates, E ensemble, n rows of a mini-batch, t step.

    g_t = gradient of the mini-batch t at z_t (+ weight decay, + clipping);  z_{t+1} = z_t - rate_t * scale * direction(g_t)

Here are the rules that see a mini-batch once a step (sgd, adam); those that look at it again (line searches, second derivatives) are in `landscape.solvers`.

scale, one number a member, is what makes a step's length independent of d: coordinates of a random subspace see only the share d / D of the squared gradient, so that with
scale sqrt(D / d) the root mean square of the first step's length among the parameters is the rate times |g| (sgd), or the rate times sqrt(D) (adam), whatever d is.

A state is a value: nothing it holds is written to afterwards, and it holds all that is needed to go on. The batch of step t is a pure function of
(seed, t), and so are its augmentation and dropout: there is no generator state to save, and a resumed run ends bitwise equal to one that was never stopped
(same machine, versions and thread count). On a GPU passes are recorded once and replayed (`landscape.captures`).

Sources: momentum as torch.optim.SGD (dampening 0; Sutskever et al. 2013 with the rate outside); Adam with bias correction, Kingma and Ba 2015; random bases,
Gressmann, Eaton-Rosen, Luschi 2020.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import numbers
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from landscape import captures, solvers
from landscape.captures import TOLERANCE, Captured
from landscape.errors import UsageError, unknown
from landscape.objectives import Buffers, Inputs, Objective, Parts, Rows, flat, leaves, mapped, tensors_of
from landscape.seeds import generator, global_stream
from landscape.subspaces import Subspace

OPTIMIZERS = ("sgd", "adam", *solvers.SOLVERS)
SCHEDULES = ("constant", "step", "cosine")
AUGMENTATIONS = ("shift", "batch-shift", "flip")
# of the length of the parameters, that a member of an ensemble holds at once: point, tensors, their gradients, and what is between them, generously
VECTORS = 16
FEW = 64  # rows that tell what a pass keeps: enough for what each row takes to outweigh what all share
CAPTURED = 50  # steps from which on passes are recorded on a GPU: a recording takes about six of them
SHIFT = 4  # pixels; He et al. 2016, section 4.2: random crop from the image padded by 4


@dataclass(frozen=True)
class Recipe:
    """How to descend. Units: steps are mini-batch updates; the rate is per step."""

    steps: int = 1000  # a look at a small problem; every task brings its own
    optimizer: str = "sgd"
    # of nearly all papers measured here, with batch normalisation; likewise. Of bfgs and lbfgs the first inverse Hessian is lr * scale times the identity,
    # and of newton and gauss-newton it is the first step tried: there 1 is natural (P-BFGS has 1)
    lr: float = 0.1
    momentum: float = 0.9  # sgd; the value of nearly all papers measured here
    weight_decay: float = 0.0  # added to the gradient (L2), for sgd and adam alike, as torch.optim does; solvers decay the loss that they search on, too
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
    augment: str = ""  # of image rows: "shift" (up to 4 pixels, zero padded; "shift:2" up to 2), "batch-shift" (one for the whole mini-batch), "flip" (left-right), or several with commas
    precision: Literal["full", "bf16"] = (
        "full"  # bf16: autocast of the forward pass on CUDA; points and moments stay as they are
    )
    # bfgs and lbfgs: the gradients whose difference is the secant are of the same mini-batch at both points, or of consecutive mini-batches (as the code of
    # P-BFGS has it: one pass less a step, but the noise of the rows is taken for curvature)
    secants: Literal["same", "cross"] = "same"
    search: Literal["armijo", "wolfe", "none"] = (
        "armijo"  # that of P-BFGS: trials without gradients; damping stands in for Wolfe's condition
    )
    sufficient: float = 0.4  # share of the decrease promised by the slope that a step must bring; P-BFGS. Below 1/2, or Newton's own step on a quadratic fails
    shrink: float = 0.4  # factor from trial to trial; P-BFGS
    curvature: float = (
        0.9  # wolfe: share of the slope that may be left; Nocedal and Wright, section 3.1, for quasi-Newton directions
    )
    trials: int = 20  # at most, in one search; P-BFGS: 0.4^19 is 3e-8, about what float32 resolves
    # of a search: stay, which makes no point worse while the next mini-batch brings another direction; take the last trial, as the code of P-BFGS does; or stay and forget the curvature
    on_failure: Literal["skip", "take", "reset"] = "skip"
    damping: float = (
        0.2  # bfgs and lbfgs: least curvature of a secant, as a share of that expected (Powell 1978; 0 is none)
    )
    history: int = 10  # lbfgs: pairs; 3 to 20 are usual (Nocedal and Wright, section 7.2)
    ridge: float = 1e-3  # newton and gauss-newton: added to the |eigenvalues|, as a share of the largest; 10 times less after a step taken as tried first, 10 times more after another. 0 is none

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
            (
                not self.clip or self.optimizer not in solvers.SOLVERS,
                f"clip bounds the gradients of sgd and adam; {self.optimizer} searches along its own direction. Leave clip at 0",
            ),
            (0 < self.sufficient < 1, f"sufficient must lie in (0, 1); got {self.sufficient}"),
            (0 < self.shrink < 1, f"shrink must lie in (0, 1); got {self.shrink}"),
            (0 < self.curvature < 1, f"curvature must lie in (0, 1); got {self.curvature}"),
            (
                self.search != "wolfe" or self.sufficient < self.curvature,
                f"a Wolfe search needs sufficient < curvature, or there may be no such step; got {self.sufficient} and {self.curvature}",
            ),
            (self.trials >= 1, f"trials must be at least 1; got {self.trials}"),
            (0 <= self.damping < 1, f"damping must lie in [0, 1), 0 is none; got {self.damping}"),
            (self.history >= 1, f"history must be at least 1 pair; got {self.history}"),
            (self.ridge >= 0 and math.isfinite(self.ridge), f"ridge must be at least 0 and finite; got {self.ridge}"),
        ):
            if not ok:
                raise UsageError(complaint + ".")
        for kind, got, allowed in (
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("schedule", self.schedule, SCHEDULES),
            ("kind of secants", self.secants, solvers.SECANTS),
            ("search", self.search, solvers.SEARCHES),
            ("answer to a failed search", self.on_failure, solvers.FAILURES),
        ):
            if got not in allowed:
                raise unknown(kind, got, allowed)
        for part in filter(None, (part.strip() for part in self.augment.split(","))):
            name, _, pixels = part.partition(":")
            if name not in AUGMENTATIONS:
                raise unknown("augmentation", name, AUGMENTATIONS)
            if (pixels and (name == "flip" or not re.fullmatch("[1-9][0-9]?", pixels))) or part.endswith(":"):
                raise UsageError(
                    f"cannot read the augmentation {part!r}. Allowed: flip, shift (by up to {SHIFT} pixels), shift:2 (by up to 2), and likewise batch-shift."
                )

    @property
    def augmentations(self) -> dict[str, int]:
        """The names in `augment`, each with its pixels."""
        parts = (part.strip().partition(":") for part in self.augment.split(","))
        return {name: int(pixels or SHIFT) for name, _, pixels in parts if name}

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
    # sgd: (velocity,); adam: (first, second); of point's shape. Solvers: see `landscape.solvers`; with redrawn bases (origin, coordinates, *those of the rule)
    moments: tuple[Tensor, ...]
    buffers: Buffers  # as the pass of the update before left them; with a leading E for an ensemble
    scale: Tensor | None = None  # factor on the rate, () or (E,); None is 1
    since: int = 0  # the step at which the moments were fresh: Adam's bias correction counts from it


@dataclass(frozen=True, eq=False)
class Start:
    """Where descent starts or goes on: step 0 from a fresh point, or what a stopped run saved."""

    point: Tensor
    step: int = 0
    moments: tuple[Tensor, ...] = ()
    buffers: Buffers | None = None  # None: those of the objective
    scale: Tensor | float | None = None  # factor on the rate, () or (E,); None is 1
    since: int = 0  # the step at which the moments were fresh; without moments they are so at `step`

    @staticmethod
    def of(state: State) -> Start:
        """Go on from a state: the next states are bitwise those that would have followed it."""
        return Start(state.point, state.step, state.moments, state.buffers, state.scale, state.since)


def descend(
    f: Objective,
    start: Tensor | Start,
    recipe: Recipe,
    seed: int | Sequence[int],
    order: int | Sequence[int] | None = None,
    *,
    lend: bool = False,
) -> Iterator[State]:
    """Yield the states 0, 1, ..., recipe.steps of descent on f from `start`, (d,) or (E, d).

    seed: names the order of the rows, their augmentation and dropout. One seed gives every member of an ensemble the same batches (fastest); a sequence of E
    seeds gives each member those of its own seed, so that member e is the run that seed e would make alone.
    order: names the order of the rows alone, where it is not to be that of `seed`; one number, or one a member, as seeds are.
    lend: a state's gradient is lent until the next state is asked for, which may take its memory: a step of a small network is then up to a tenth faster. All else
    of a state stays a value, and the numbers are the same to the bit.

    Raises UsageError where shapes, batch size or augmentation do not fit the objective, or a solver's matrices would not fit.
    """
    begin, point, seeds = _begin(f, start, seed)
    since = begin.since if begin.moments else begin.step
    rule = _Rule(f, recipe, seeds, point.shape[:-1], begin.scale, since, _like(seeds, order), lend)
    moments, buffers = begin.moments or rule.fresh(point), rule.buffers(begin.buffers)
    rule.enter(point, moments)
    for step in range(begin.step, recipe.steps + 1):
        state = rule.state(step, point, moments, buffers)
        yield state
        if step < recipe.steps:
            point, moments, buffers = rule.move(state)


def redrawn(
    f: Objective,
    start: Tensor | Start,
    recipe: Recipe,
    seed: int | Sequence[int],
    draw: Callable[[int, Tensor], Subspace],
    every: int,
) -> Iterator[State]:
    """Random-bases descent (Gressmann et al. 2020): as `descend` on f, but within a subspace through the present point that is drawn anew every `every` steps.

    draw: from the number of the draw and the origin, (D,) or (E, D), to the subspace; the same at every call, such as
    `lambda number, w: subspaces.random(w, 64, generator(seed, "subspace", number))`. The rule starts anew in each subspace; the schedule and the batches go on.
    States are of the whole space: `gradient` (D,) is the direction B B^T g of the subspace's own gradient, and `moments` hold origin and coordinates first.

    Raises UsageError as `descend` does, and for every < 1.
    """
    if every < 1:
        raise UsageError(f"a basis is drawn every k-th step, k at least 1; got {every}.")
    begin, point, seeds = _begin(f, start, seed)
    moments, buffers = begin.moments, begin.buffers or {}
    rule: _Rule | None = None
    for step in range(begin.step, recipe.steps + 1):
        number, done = divmod(step, every)
        if rule is None or not done:
            goes_on = rule is None and bool(done and moments)
            origin = moments[0] if goes_on else point
            chart = draw(number, origin)
            first = rule is None and begin.buffers is None
            rule = _Rule(
                f.restrict(chart), recipe, seeds, point.shape[:-1], begin.scale, step - done, capture=every >= CAPTURED
            )
            z = moments[1] if goes_on else point.new_zeros(*point.shape[:-1], chart.dim)
            held = moments[2:] if goes_on else solvers.carried(rule.fresh(z), moments, recipe)
            buffers = rule.buffers(None) if first else buffers
        state = rule.state(step, z, held, buffers)
        yield dataclasses.replace(
            state, point=chart.lift(z), gradient=chart.push(state.gradient), moments=(origin, z, *held)
        )
        if step < recipe.steps:
            z, held, buffers = rule.move(state)
            point, moments = chart.lift(z), (origin, z, *held)


def _begin(f: Objective, start: Tensor | Start, seed: int | Sequence[int]) -> tuple[Start, Tensor, int | list[int]]:
    """The start with its point and scale where the objective is, and the seeds."""
    begin = start if isinstance(start, Start) else Start(start)
    seeds = int(seed) if isinstance(seed, numbers.Integral) else [int(one) for one in seed]  # type: ignore[union-attr]
    point = begin.point.detach().to(f.device, f.dtype)
    if point.shape[-1] != f.dim or point.ndim not in (1, 2):
        raise UsageError(f"descent starts at ({f.dim},) or (E, {f.dim}); got {tuple(point.shape)}.")
    if not isinstance(seeds, int) and (point.ndim == 1 or len(seeds) != len(point)):
        single = "a single" if point.ndim == 1 else len(point)
        raise UsageError(f"{len(seeds)} seeds for {single} start(s): give one seed, or one a member.")
    scale = begin.scale
    if scale is not None:
        scale = torch.as_tensor(scale, dtype=f.dtype, device=f.device)
        if scale.shape not in (torch.Size(), point.shape[:-1]):
            raise UsageError(f"the scale of the rate is one number, or one a member; got {tuple(scale.shape)}.")
        scale = scale.expand(point.shape[:-1])
    return dataclasses.replace(begin, scale=scale), point, seeds


def _like(seeds: int | list[int], order: int | Sequence[int] | None) -> int | list[int] | None:
    """The seeds of the order, one or one a member as the seeds are."""
    if order is None:
        return None
    found = int(order) if isinstance(order, numbers.Integral) else [int(one) for one in order]  # type: ignore[union-attr]
    if isinstance(seeds, int) != isinstance(found, int) or (isinstance(found, list) and len(found) != len(seeds)):  # type: ignore[arg-type]
        raise UsageError("the order of the rows is named as the seeds are: by one number, or by one a member.")
    return found


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


def member_bytes(f: Objective, recipe: Recipe, saved: int, width: int = 0) -> int:
    """What a member of an ensemble takes: what its mini-batch leaves for the backward pass (`saved_bytes`), as much again in that, its solver in `width` coordinates, and
    the vectors that flatten, lift and project.
    """
    squared = recipe.optimizer in ("bfgs", "newton", "gauss-newton")
    numbers = 3 * width**2 if squared else 2 * recipe.history * width
    return 2 * saved + (VECTORS * f.dim + numbers) * f.dtype.itemsize


def saved_bytes(f: Objective, size: int) -> int:
    """What the forward pass of one member over one mini-batch keeps for the backward pass, as a few rows tell."""
    total = 0
    few = min(size or len(f.rows), FEW)
    rows = f.rows.take(slice(0, few))

    def pack(tensor: Tensor) -> Tensor:
        nonlocal total
        total += tensor.numel() * tensor.element_size()
        return tensor

    parts = leaves(f.model, torch.zeros(f.model.layout.dim, dtype=f.dtype, device=f.device))
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        f.loss.mean(f.model.forward(parts, f.buffers, rows.inputs)[0], rows.targets)
    return total * (size or len(f.rows)) // few


class _Rule:
    """The states of one objective, and how one follows from another."""

    def __init__(
        self,
        f: Objective,
        recipe: Recipe,
        seed: int | list[int],
        members: Sequence[int],  # () or (E,)
        scale: Tensor | float | None,
        since: int = 0,  # the step at which the moments were fresh
        order: int | list[int] | None = None,
        lend: bool = False,  # whether a move may write to the gradient of the state before it
        capture: bool = True,  # whether passes may be recorded, since there will be many
    ) -> None:
        n = recipe.batch_size or len(f.rows)
        if n > len(f.rows):
            raise UsageError(
                f"a batch of {n} rows from a set of {len(f.rows)}. Allowed: 1 to {len(f.rows)}, or 0 for all."
            )
        _check_augmentations(recipe, f.rows)
        if recipe.optimizer in solvers.SOLVERS:
            solvers.check(f.dim, math.prod(members), f.dtype, recipe)
        self._f, self._recipe, self._members, self._since = f, recipe, tuple(members), since
        self._lend = lend
        assert not isinstance(scale, float)
        self._scale = scale
        self._order = _Order(len(f.rows), n, seed if order is None else order, f.device)
        self._passes = _Passes(f, recipe, seed, capture)
        self._batch: _Batch | None = None

    def enter(self, point: Tensor, moments: tuple[Tensor, ...]) -> None:
        """Where a mask alone restricts, what starts at 0 outside stays there, and coordinates are the parameters themselves: see once whether it does."""
        mask = self._f.mask
        if mask is not None and self._recipe.optimizer not in solvers.SOLVERS:
            self._passes.inside = all(torch.equal(vector * mask, vector) for vector in (point, *moments))

    def fresh(self, point: Tensor) -> tuple[Tensor, ...]:
        """The moments of a first step."""
        if self._recipe.optimizer in solvers.SOLVERS:
            return solvers.fresh(point, self._recipe, self._first)
        return tuple(torch.zeros_like(point) for _ in range(2 if self._recipe.optimizer == "adam" else 1))

    def buffers(self, given: Buffers | None) -> Buffers:
        """Those given; where there are none the objective's, for every member of an ensemble its own."""
        if given is not None or not self._members:
            return self._f.buffers if given is None else given
        return {
            name: value.expand(*self._members, *value.shape).contiguous() for name, value in self._f.buffers.items()
        }

    def state(self, step: int, point: Tensor, moments: tuple[Tensor, ...], buffers: Buffers) -> State:
        """The state at a point: a pass over the mini-batch `step`, unless the move to it made this very pass."""
        f, recipe = self._f, self._recipe
        known = self._batch.known(point) if self._batch is not None and self._batch.step == step - 1 else None
        rows = f.rows if not recipe.batch_size else f.rows.take(self._order.batch(step))
        self._batch = _Batch(self._passes, self._passes.augmented(rows, step), step, buffers, point, known)
        return State(
            step,
            point,
            self._batch.loss,
            self._batch.gradient,
            recipe.rate(step),
            moments,
            buffers,
            self._scale,
            self._since,
        )

    def move(self, state: State) -> tuple[Tensor, tuple[Tensor, ...], Buffers]:
        """The next point, moments and buffers. Everything is new: states already given away do not change."""
        batch, recipe = self._batch, self._recipe
        assert batch is not None
        if recipe.optimizer in solvers.SOLVERS:
            loss, gradient = batch.decayed(state.point, state.loss, state.gradient)
            warm = recipe.rate(state.step) / recipe.lr
            point, moments = solvers.move(state.point, loss, gradient, state.moments, batch, recipe, self._first, warm)
        else:
            point, moments = self._update(state)
        return point, moments, batch.after

    @property
    def _first(self) -> Tensor:
        """lr * scale of every member."""
        one = torch.ones(self._members, dtype=self._f.dtype, device=self._f.device)
        return self._recipe.lr * (one if self._scale is None else self._scale)

    def _update(self, state: State) -> tuple[Tensor, tuple[Tensor, ...]]:
        recipe = self._recipe
        gradient, point, rate = state.gradient, state.point, state.rate
        if recipe.clip:
            norm = gradient.norm(dim=-1, keepdim=True)
            gradient = gradient * (recipe.clip / norm.clamp_min(recipe.clip))
        if recipe.weight_decay:
            gradient = torch.add(gradient, point, alpha=recipe.weight_decay)
        if recipe.optimizer == "sgd":
            ours = self._lend or gradient is not state.gradient  # memory that the velocity may take, while it is warm
            velocity = gradient
            if recipe.momentum:
                velocity = torch.add(gradient, state.moments[0], alpha=recipe.momentum, out=gradient if ours else None)
            return torch.add(point, self._scaled(velocity), alpha=-rate), (velocity,)
        first, second = state.moments
        beta1, beta2 = recipe.betas
        first = torch.lerp(first, gradient, 1 - beta1)
        second = torch.addcmul(second * beta2, gradient, gradient, value=1 - beta2)
        t = state.step - self._since + 1
        spread = second.sqrt().div_(math.sqrt(1 - beta2**t)).add_(recipe.eps)
        return torch.addcdiv(point, self._scaled(first), spread, value=-rate / (1 - beta1**t)), (first, second)

    def _scaled(self, direction: Tensor) -> Tensor:
        return direction if self._scale is None else direction * self._scale.unsqueeze(-1)


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


def _augment(images: Tensor, names: Mapping[str, int], seed: int, step: int) -> Tensor:
    """Shift and flip each image of (n, c, h, w), on its device, by draws from the stream (seed, "augment", step)."""
    n, _, height, width = images.shape
    source = generator(seed, "augment", step)
    if "flip" in names:
        flips = (torch.rand(n, generator=source) < 0.5).to(images.device)
        images = torch.where(flips.view(-1, 1, 1, 1), images.flip(-1), images)
    for name, draws in (("shift", n), ("batch-shift", 1)):
        if name in names:
            pad = names[name]
            dy, dx = (
                torch.randint(0, 2 * pad + 1, (draws, 1), generator=source).expand(n, 1).to(images.device)
                for _ in range(2)
            )
            padded = functional.pad(images, (pad,) * 4)
            ys = dy + torch.arange(height, device=images.device)
            xs = dx + torch.arange(width, device=images.device)
            which = torch.arange(n, device=images.device).view(-1, 1, 1)
            images = padded[which, :, ys.unsqueeze(2), xs.unsqueeze(1)].permute(0, 3, 1, 2)
    return images


# -- passes in train mode ---------------------------------------------------------------------------------------------


class _Passes:
    """Loss and gradient of a mini-batch in train mode: BatchNorm by batch statistics, dropout on, bf16 where asked. The objective has none of this."""

    def __init__(self, f: Objective, recipe: Recipe, seed: int | list[int], capture: bool = True) -> None:
        self.f, self.recipe, self._seed = f, recipe, seed
        self.inside = False  # whether coordinates are the parameters themselves, zeros and all
        if recipe.precision == "bf16" and f.device.type != "cuda":
            raise UsageError(f"bf16 autocast is for CUDA; the device is {f.device.type}. Use precision full.")
        self._own = not isinstance(seed, int)
        self._captured: Captured | None = None
        model = f.model
        drawn = model.stochastic or model.recurrent or not self._lockstep
        if capture and captures.possible(f.device) and recipe.steps >= CAPTURED and not drawn:
            self._captured = self._capturing(f.rows, tuple(f.buffers))

    @property
    def repeats(self) -> bool:
        """Whether every step sees the same function."""
        return not (self.recipe.batch_size or self.recipe.augmentations or self.f.model.stochastic)

    @property
    def divisible(self) -> bool:
        """Whether some members of an ensemble can be evaluated without the others: not where they draw their dropout from one stream."""
        return self._own or not self.f.model.stochastic

    def slopes(self, z: Tensor, buffers: Buffers, rows: Rows, step: int) -> tuple[Tensor, Tensor, Buffers]:
        """Loss () or (E,), gradient of z's shape, and the buffers after the pass."""
        f = self.f
        w = z if self.inside else f.lift(z)
        with self._context(step):
            if z.ndim == 2 and not self._lockstep:
                return self._loop(w, buffers, rows, step)
            if self._captured is None:
                loss, gradient, after = self._slopes(w, buffers, rows)
            else:
                data = [*tensors_of(rows.inputs), rows.targets]
                loss, gradient, *held = self._captured([w, *data, *(buffers[name] for name in f.buffers)])
                after = dict(zip(f.buffers, held, strict=True))
        return loss, gradient if f.mask is not None else f.project(gradient), after

    def _slopes(self, w: Tensor, buffers: Buffers, rows: Rows) -> tuple[Tensor, Tensor, Buffers]:
        """Loss, gradient by the parameters w (D,) or (E, D), masked where a mask alone restricts, and the buffers after the pass."""
        f, single = self.f, w.ndim == 1
        parts = leaves(f.model, w)
        with torch.enable_grad():
            loss, after = self._mean_loss(parts, buffers, rows) if single else self._vmapped(parts, buffers, rows)
            found = torch.autograd.grad(loss if single else loss.sum(), parts, materialize_grads=True)
        gradient = flat(found, 0 if single else len(w))
        return loss.detach(), gradient if f.mask is None else gradient.mul_(f.mask), after

    def _capturing(self, like: Rows, names: Sequence[str]) -> Captured:
        """`_slopes` as a function of tensors alone: w, the rows' inputs and targets, the buffers."""

        def function(given: list[Tensor]) -> list[Tensor]:
            w, rest = given[0], given[1:]
            count = len(rest) - len(names)
            inputs = iter(rest[: count - 1])
            rows = Rows(mapped(like.inputs, lambda _: next(inputs)), rest[count - 1])
            loss, gradient, after = self._slopes(w, dict(zip(names, rest[count:], strict=True)), rows)
            return [loss, gradient, *after.values()]

        return Captured(function, TOLERANCE[self.recipe.precision])

    def values(self, w: Tensor, buffers: Buffers, rows: Rows, step: int, among: Tensor) -> Tensor:
        """Loss () or (E,) alone, at parameters (D,) or (E, D); where `among` () or (E,) is false it may be left out and is NaN then."""
        f = self.f
        with self._context(step), torch.no_grad():
            if w.ndim == 1:
                return self._mean_loss(f.model.split(w), buffers, rows)[0]
            found = w.new_full(w.shape[:1], math.nan)
            everyone = not self.divisible or bool(among.all())
            chosen = torch.arange(len(w), device=w.device) if everyone else among.nonzero()[:, 0]
            if not self._lockstep:
                for member in chosen.tolist():
                    found[member] = self._member(f.model.split(w[member]), member, buffers, rows, step)[0]
                return found
            if not everyone:
                w, buffers = w[chosen], {name: value[chosen] for name, value in buffers.items()}
                rows = rows.take(chosen) if self._own and self.recipe.batch_size else rows
            found[chosen] = self._vmapped(f.model.split(w), buffers, rows)[0].to(found.dtype)
        return found

    def matrix(self, z: Tensor, buffers: Buffers, rows: Rows, name: solvers.Matrix) -> Tensor:
        """The matrix of second derivatives (d, d) or (E, d, d), exactly: d products with the whole space's, pushed and projected. Dropout is off in it."""
        f = self.f
        single = z.ndim == 1
        w = f.lift(z)
        operators = []
        for member in range(1 if single else len(z)):
            mine = rows.take(member) if self._own and self.recipe.batch_size else rows
            held = buffers if single else {key: value[member] for key, value in buffers.items()}
            # BatchNorm by the statistics of the whole mini-batch, as in the gradient; without buffers there is no such layer, and the rows may be split
            whole = dataclasses.replace(f, charts=(), chunk=len(mine) if held else f.chunk)
            whole = whole.with_buffers(held, norm="batch" if held else None).on(mine)
            operators.append(whole.curvature(w if single else w[member], name))
        columns = []
        for axis in torch.eye(f.dim, dtype=z.dtype, device=z.device):
            along = f.push(axis.expand_as(z))
            images = [matrix @ v for matrix, v in zip(operators, [along] if single else along, strict=True)]
            columns.append(f.project(images[0] if single else torch.stack(images)))
        return torch.stack(columns, dim=-1)

    def augmented(self, rows: Rows, step: int) -> Rows:
        """The rows as the passes of a step see them."""
        names = self.recipe.augmentations
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

    # -- inside --------------------------------------------------------------

    @property
    def _lockstep(self) -> bool:
        # the dropout of a member's own seed comes from a stream of its own, which lockstep cannot draw from
        return self.f.model.lockstep and not (self._own and self.f.model.stochastic)

    @contextlib.contextmanager
    def _context(self, step: int) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            if self.f.model.stochastic and isinstance(self._seed, int):
                stack.enter_context(global_stream(self._seed, "dropout", step, device=self.f.device))
            if self.recipe.precision == "bf16":
                # nothing to cache: a pass has parameter tensors of its own, and uses each once
                stack.enter_context(torch.autocast("cuda", torch.bfloat16, cache_enabled=False))
            yield

    def _mean_loss(self, parts: Parts, buffers: Buffers, rows: Rows) -> tuple[Tensor, Buffers]:
        outputs, after = self.f.model.forward(parts, buffers, rows.inputs, "train")
        return self.f.loss.mean(outputs, rows.targets), after

    def _vmapped(self, parts: Parts, buffers: Buffers, rows: Rows) -> tuple[Tensor, Buffers]:
        def one(parts: Parts, buffers: Buffers, inputs: Inputs) -> tuple[Tensor, Buffers]:
            return self.f.model.forward(parts, buffers, inputs, "train")

        members, axis = len(parts[0]), 0 if self._own and self.recipe.batch_size else None
        mapped = torch.func.vmap(one, in_dims=(0, 0, axis), randomness="different")
        outputs, after = mapped(parts, dict(buffers), rows.inputs)
        targets = rows.targets if axis == 0 else rows.targets.expand(members, *rows.targets.shape)
        # the loss knows rows, not members: all of them are its rows at once, which is faster than to map it too
        losses, weights = self.f.loss.rows(outputs.flatten(0, 1), targets.flatten(0, 1))
        return losses.view(members, -1).sum(1) / weights.view(members, -1).sum(1), after

    def _member(self, parts: Parts, member: int, buffers: Buffers, rows: Rows, step: int) -> tuple[Tensor, Buffers]:
        """Loss of one member of an ensemble, and its buffers after the pass."""
        mine = rows.take(member) if self._own and self.recipe.batch_size else rows
        with contextlib.ExitStack() as stack:
            if self.f.model.stochastic and not isinstance(self._seed, int):
                stack.enter_context(global_stream(self._seed[member], "dropout", step, device=self.f.device))
            return self._mean_loss(parts, {name: value[member] for name, value in buffers.items()}, mine)

    def _loop(self, w: Tensor, buffers: Buffers, rows: Rows, step: int) -> tuple[Tensor, Tensor, Buffers]:
        losses, gradients, afters = [], [], []
        for member in range(len(w)):
            parts = leaves(self.f.model, w[member])
            with torch.enable_grad():
                loss, after = self._member(parts, member, buffers, rows, step)
                gradient = flat(torch.autograd.grad(loss, parts, materialize_grads=True))
            losses.append(loss.detach())
            gradients.append(gradient)
            afters.append(after)
        stacked = {name: torch.stack([after[name] for after in afters]) for name in buffers}
        return torch.stack(losses), self.f.project(torch.stack(gradients)), stacked


class _Batch:
    """The mini-batch of one step: its loss and gradient at the step's point, and for solvers (`solvers.Batch`) its decayed loss at others. No trial changes buffers."""

    def __init__(
        self,
        passes: _Passes,
        rows: Rows,
        step: int,
        buffers: Buffers,
        point: Tensor,
        known: tuple[Tensor, Tensor, Buffers] | None,
    ) -> None:
        self._passes, self._rows, self.step = passes, rows, step
        self._decay = passes.recipe.weight_decay
        self.loss, self.gradient, self.after = known or passes.slopes(point, buffers, rows, step)
        # where the next step sees the same function, its pass is one of ours, if we start from the buffers that it will have
        self._buffers = self.after if passes.repeats else buffers
        self._last: tuple[Tensor, tuple[Tensor, Tensor, Buffers]] | None = None

    @property
    def repeats(self) -> bool:
        """Whether the next step sees the same function."""
        return self._passes.repeats

    def along(self, z: Tensor, p: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """See solvers.Batch. Both are mapped to the parameters once, not in every trial."""
        w, direction = self._passes.f.lift(z), self._passes.f.push(p)

        def values(length: Tensor, among: Tensor) -> Tensor:
            length = length.unsqueeze(-1)
            found = self._passes.values(w + length * direction, self._buffers, self._rows, self.step, among)
            return self._decayed(z + length * p, found)

        return values

    def slopes(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """See solvers.Batch."""
        found = self._passes.slopes(z, self._buffers, self._rows, self.step)
        self._last = z, found
        return self.decayed(z, *found[:2])

    def matrix(self, z: Tensor, name: solvers.Matrix) -> Tensor:
        """See solvers.Batch."""
        matrix = self._passes.matrix(z, self._buffers, self._rows, name)
        return matrix + self._decay * torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)

    def decayed(self, z: Tensor, loss: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and gradient with weight decay: of f(z) + weight_decay |z|^2 / 2."""
        return self._decayed(z, loss), torch.add(gradient, z, alpha=self._decay) if self._decay else gradient

    def _decayed(self, z: Tensor, loss: Tensor) -> Tensor:
        return loss + self._decay / 2 * (z * z).sum(-1) if self._decay else loss

    def known(self, z: Tensor) -> tuple[Tensor, Tensor, Buffers] | None:
        """The pass of the next step at z, where it was made here."""
        if self._last is None or not self.repeats or not torch.equal(self._last[0], z):
            return None
        return self._last[1]
