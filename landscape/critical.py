"""Critical points: planted ones that are exact for any architecture, found ones with a certificate, and which of many are one.

Letters: D parameters, d coordinates, N rows, K outputs a row, E points in lockstep, J (N K, d) the Jacobian of the outputs, H (d, d) the Hessian, lambda its eigenvalues.

    planted       take any parameters and any e with J^T e = 0, and set the targets to y = f - e: the mean squared error has the gradient (2 / N K) J^T e = 0 there
    found         from a start, by a trust region (minima alone) or by damped pseudo-inverse Newton steps on |g|^2 (of any index)
    certificate   |g|, the Newton decrement (g^T |H|^+ g)^(1/2), and |Hg| / (|H| |g|), near 0 where |g|^2 has a minimum that is no zero (gradient-flat)

The eigenvalue cut below which a direction counts as flat:  max(CUT |H|, |H'| |H^+ g|). The first is far above the rounding of H. By the second, with H' the change of H along
the Newton step, eigenvalues may differ from those at the critical point itself, |H^+ g| away.

Sources: Zhang et al. 2021 (critical points as iterates of the least gradient); More and Sorensen 1983 (trust region by an eigendecomposition); Frye et al. 2021 (Newton on |g|^2 stops
in gradient-flat regions; the test); Fukumizu and Amari 2000 (networks that points are looked for in).
"""

from __future__ import annotations

import dataclasses
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from landscape.curvature import twice_differentiable
from landscape.errors import UsageError, unknown
from landscape.objectives import Inputs, Loss, NormMode, Objective, Rows
from landscape.seeds import generator
from landscape.units import Layer, positions

Method = Literal["trust-region", "newton"]
METHODS: tuple[Method, ...] = ("trust-region", "newton")

# a gradient below this is zero: float64 leaves some 1e-16 of the terms that cancel in it, and of these there are a few thousand of size 1 at most
GRADIENT = 1e-12
# a decrement below this is zero: half of its square is what a Newton step would still change of the loss, here below the rounding of a loss of 1e-3
DECREMENT = 1e-9
# of the largest |eigenvalue|: the rounding of a Hessian of a few thousand parameters is some 1e-13 of it, and what is flat by symmetry comes out below that
CUT = 1e-9
# |Hg| / (|H| |g|) below this: g lies in the kernel of H as far as it matters, and no Newton step can lower it (Frye et al. 2021)
FLAT = 1e-3
# of |f|: a change of the loss below it is rounding, and steps are then judged by the gradient
ROUNDING = 1e-13
# rows x points that one graph holds
HELD = 2**17
# a Jacobian or Hessians beyond this are refused
BYTES = 4 * 2**30

ODD = (
    "tanh",
    "identity",
    "sin",
    "softsign",
    "hardtanh",
    "erf",
    "asinh",
    "atan",
    "tanhshrink",
    "softshrink",
    "hardshrink",
)


# -- planted ----------------------------------------------------------------------------------------------------------


def plant(
    module: nn.Module, inputs: Inputs, *, residual: float = 0.3, seed: int = 0, norm: NormMode = "eval"
) -> tuple[Objective, Tensor]:
    """A mean squared error of which the module's present parameters are an exact critical point: the objective in float64 (its targets in `rows`), and the point (D,).

    residual  root mean square of f - y, so that the loss is residual^2; its direction is drawn uniformly from the null space of J^T
    norm      BatchNorm by running statistics, or by those of the rows

    The point is a critical one and no more: its index is what it happens to be. Initialise the module with biases that are not 0 where that matters.
    Raises UsageError where J has rank N K (no e but 0: give more rows), and where J would not fit.
    """
    size = len(
        inputs if isinstance(inputs, Tensor) else next(iter(inputs.values() if isinstance(inputs, dict) else inputs))
    )
    # the targets come later: this loss asks the network for its outputs alone
    asked = Loss("outputs", lambda outputs, _: (outputs.flatten(1).sum(1), outputs.new_ones(len(outputs))), False)
    f, point = Objective.of(module, asked, Rows(inputs, torch.zeros(size)), dtype=torch.float64, chunk=size)
    f = f.with_buffers(f.buffers, norm=norm)
    outputs, jacobian = _jacobian(f, point)
    left, values, _ = torch.linalg.svd(jacobian, full_matrices=False)
    rank = int((values > max(jacobian.shape) * torch.finfo(torch.float64).eps * values[0]).sum())
    if rank == len(jacobian):
        raise UsageError(
            f"the Jacobian of the {len(jacobian)} outputs over {size} rows has full rank: every residual pushes the parameters somewhere, and only zero is critical. Give more rows (the network has {f.dim} parameters)."
        )
    error = torch.randn(len(jacobian), generator=generator(seed, "residual"), dtype=torch.float64).to(f.device)
    for _ in range(2):  # the second time takes away what rounding left
        error -= left[:, :rank] @ (left[:, :rank].T @ error)
    error *= residual * math.sqrt(len(error)) / error.norm()
    rows = Rows(f.rows.inputs, outputs - error.view_as(outputs))
    return dataclasses.replace(f, loss=Loss.of("mse"), rows=rows), point


def _jacobian(f: Objective, point: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs (N, ...) at one point, and their Jacobian (N K, d)."""
    z = point.detach().requires_grad_()
    with twice_differentiable(recurrent=f.model.recurrent):
        outputs = f.model.forward(f.model.split(f.lift(z)), f.buffers, f.rows.inputs, f.norm)[0]
        size = outputs.numel() * f.dim * 8
        if size > BYTES:
            raise UsageError(
                f"the Jacobian of {outputs.numel():,} outputs by {f.dim:,} parameters takes {size / 2**30:.1f} GiB (allowed: {BYTES / 2**30:.0f}). Give fewer rows or a smaller network."
            )
        rows = [torch.autograd.grad(one, z, retain_graph=True)[0] for one in outputs.flatten()]
    return outputs.detach(), torch.stack(rows)


# -- found ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Certificate:
    """How near points are to critical ones, (E,) each."""

    gradient: Tensor  # |g|_2
    gradient_l1: Tensor  # as Zhang et al. 2021 report it
    decrement: Tensor  # (g^T |H|^+ g)^(1/2)
    flat: Tensor  # |Hg| / (|H| |g|); NaN where g is exactly 0
    cut: Tensor  # |eigenvalues| up to here count as 0
    values: Tensor  # (E, d) eigenvalues of H, ascending

    @property
    def converged(self) -> Tensor:
        """Whether a point is critical by the rule (E,): |g| at most GRADIENT and decrement at most DECREMENT."""
        return (self.gradient <= GRADIENT) & (self.decrement <= DECREMENT)

    @property
    def stalled(self) -> Tensor:
        """Whether a point that is not critical lies in a gradient-flat region (E,), where the search cannot go on."""
        return ~self.converged & (self.flat < FLAT)


@dataclass(frozen=True, eq=False)
class Found:
    """Where searches ended, converged or not."""

    points: Tensor  # (E, d)
    losses: Tensor  # (E,)
    certificate: Certificate
    steps: Tensor  # (E,) int64

    def take(self, index: Tensor) -> Found:
        """Those at an index or a mask."""
        parts = {field.name: getattr(self.certificate, field.name)[index] for field in dataclasses.fields(Certificate)}
        return Found(self.points[index], self.losses[index], Certificate(**parts), self.steps[index])


def find(f: Objective, starts: Tensor, *, method: Method = "trust-region", steps: int = 300) -> Found:
    """Critical points from starts (E, d), all in lockstep, each with a radius or damping of its own; those that have ended cost nothing more.

    method  trust-region: to minima, around strict saddles. newton: to the critical point of any index that lies nearest downhill of |g|; start near one, such as at
            the iterate of a training with the least gradient (`flattest`)
    steps   at most; a step takes one value, gradient and Hessian of every point that is still on its way

    A search ends where rounding stops it, not at the first gradient below the rule: what is zero by theory then comes out as small as it can. Points that ran off to infinity,
    as saturated units do, end at `steps` and are not converged. A member that meets NaN stays where it was.
    Raises UsageError for another method, points of another shape, and where the Hessians would not fit.
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    if starts.ndim != 2 or starts.shape[1] != f.dim:
        raise UsageError(f"starts have shape (points, {f.dim}); got {tuple(starts.shape)}.")
    z = starts.detach().to(f.device, f.dtype).clone()
    taken = torch.zeros(len(z), dtype=torch.int64, device=z.device)
    propose = _trust_region_step if method == "trust-region" else _newton_step
    # of the trust region a length, of Newton a share of the step
    reach = z.norm(dim=1).clamp_min(1.0) if method == "trust-region" else z.new_ones(len(z))
    value, gradient, hessian = expansion(f, z)
    # a start whose loss or Hessian is not finite has nowhere to go
    active = (torch.isfinite(value) & torch.isfinite(hessian).flatten(1).all(1)).nonzero()[:, 0]
    idle = torch.zeros_like(taken)  # steps in a row that rounding alone decided
    while len(active) and int(taken.max()) < steps:
        v, g, radius = value[active], gradient[active], reach[active]
        step, promised = propose(g, hessian[active], radius)
        new_v, new_g, new_h = expansion(f, z[active] + step)
        slope, new_slope, length = g.norm(dim=1), new_g.norm(dim=1), step.norm(dim=1)
        if method == "trust-region":
            won = (v - new_v) / promised
            lost_in_rounding = promised <= ROUNDING * v.abs() + torch.finfo(v.dtype).tiny
            better = torch.where(lost_in_rounding, new_slope < slope, won > 1e-4)
            grown = torch.where((won > 0.75) & (length > 0.8 * radius), 2 * radius, radius)
            radius = torch.where(better & (lost_in_rounding | (won > 0.25)), grown, length / 4)
        else:
            lost_in_rounding = slope <= GRADIENT
            better = new_slope < (1 - 1e-4 * radius) * slope
            radius = torch.where(better, (2 * radius).clamp_max(1.0), radius / 4)
        better &= torch.isfinite(new_v) & torch.isfinite(new_h).flatten(1).all(1)
        ahead = active[better]
        z[ahead] += step[better]
        value[ahead], gradient[ahead], hessian[ahead] = new_v[better], new_g[better], new_h[better]
        reach[active] = radius
        taken[active] += 1
        idle[active] = torch.where(lost_in_rounding & ~(better & (new_slope < slope / 2)), idle[active] + 1, 0)
        ended = (idle[active] >= PATIENCE) | (reach[active] < LEAST_REACH)
        active = active[~ended]
    return Found(z, value, _certificate(f, z, gradient, hessian), taken)


# steps in a row without half of the gradient that end a search at the rounding: the second may come by chance
PATIENCE = 2
# a share of a Newton step, or a radius, below which a search stands: where the model of the loss is any good, far longer steps are taken
LEAST_REACH = 1e-10


def expansion(f: Objective, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value (E,), gradient (E, d) and Hessian (E, d, d) at points (E, d), in lockstep: one backward pass a coordinate, for all points at once."""
    size = len(points) * f.dim**2 * f.dtype.itemsize
    if size > BYTES:
        raise UsageError(
            f"{len(points)} Hessians of {f.dim:,} x {f.dim:,} take {size / 2**30:.1f} GiB (allowed: {BYTES / 2**30:.0f}). Use fewer starts or a smaller network."
        )
    held = max(1, HELD // len(f.rows))
    found = [_expansion(f, piece) for piece in torch.split(points, held)]
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))  # type: ignore[return-value]


def _expansion(f: Objective, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if not len(points):
        return points.new_empty(0), points, points.new_empty(0, f.dim, f.dim)
    z = points.detach().requires_grad_()
    rows, members = f.rows, len(points)
    with twice_differentiable(recurrent=f.model.recurrent):
        parts = f.model.split(f.lift(z))

        def outputs(member: tuple[Tensor, ...]) -> Tensor:
            return f.model.forward(member, f.buffers, rows.inputs, f.norm)[0]

        if f.model.lockstep:
            answers = torch.func.vmap(outputs)(parts)
        else:
            answers = torch.stack([outputs(tuple(part[e] for part in parts)) for e in range(members)])
        targets = rows.targets.expand(members, *rows.targets.shape).flatten(0, 1)
        losses, weights = f.loss.rows(answers.flatten(0, 1), targets)
        values = losses.view(members, -1).sum(1) / weights.view(members, -1).sum(1)
        (gradient,) = torch.autograd.grad(values.sum(), z, create_graph=True, materialize_grads=True)
        columns = [
            torch.autograd.grad(gradient[:, axis].sum(), z, retain_graph=True, materialize_grads=True)[0]
            for axis in range(f.dim)
        ]
    hessian = torch.stack(columns, dim=-1)
    return values.detach(), gradient.detach(), (hessian + hessian.mT) / 2


def _trust_region_step(gradient: Tensor, hessian: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """The step of length up to `radius` with the least g.p + p.Hp / 2, and what that promises to take off the loss (More and Sorensen 1983)."""
    values, vectors = torch.linalg.eigh(hessian)
    g = torch.einsum("edk,ed->ek", vectors, gradient)
    scale = values.abs().amax(1, keepdim=True)
    # along what is flat to the last digit the gradient is rounding, and its quotient anything
    rounding = values.abs() <= 1e-14 * scale
    g = torch.where(rounding & (g.abs() <= 1e-14 * scale), 0.0, g)
    low = (-values[:, :1]).clamp_min(0.0)
    high = low + gradient.norm(dim=1, keepdim=True) / radius[:, None] + torch.finfo(g.dtype).tiny

    def along(shift: Tensor) -> Tensor:
        return torch.where(g == 0, 0.0, -g / (values + shift))

    inside = (values[:, :1] > 0) & (along(torch.zeros_like(low)).norm(dim=1, keepdim=True) <= radius[:, None])
    for _ in range(40):  # the shift at which the step is as long as the radius
        middle = (low + high) / 2
        long = along(middle).norm(dim=1, keepdim=True) > radius[:, None]
        low, high = torch.where(long, middle, low), torch.where(long, high, middle)
    step = along(torch.where(inside, 0.0, high))
    # the hard case: nothing of the gradient lies along the lowest eigenvector, and what is left of the radius goes there
    left = (radius**2 - (step**2).sum(1)).clamp_min(0.0).sqrt()
    lowest = torch.where(step[:, 0] == 0, 1.0, step[:, 0].sign()) * left
    hard = (values[:, 0] < -CUT * scale[:, 0]) & (left > 0.1 * radius)
    step[:, 0] += torch.where(hard, lowest, 0.0)
    promised = -(g * step + values * step**2 / 2).sum(1)
    return torch.einsum("edk,ek->ed", vectors, step), promised


def _newton_step(gradient: Tensor, hessian: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """A share of -H^+ g, and what the full one promises to take off |g|^2 / 2."""
    values, vectors = torch.linalg.eigh(hessian)
    step = _newton(gradient, values, vectors, CUT * values.abs().amax(1))
    return share[:, None] * step, (gradient**2).sum(1) / 2


def _newton(gradient: Tensor, values: Tensor, vectors: Tensor, cut: Tensor) -> Tensor:
    """-H^+ g (E, d), eigenvalues up to the cut left out."""
    g = torch.einsum("edk,ed->ek", vectors, gradient)
    return torch.einsum("edk,ek->ed", vectors, torch.where(values.abs() > cut[:, None], -g / values, 0.0))


def certify(f: Objective, points: Tensor) -> Certificate:
    """How near points (E, d) are to critical ones."""
    _, gradient, hessian = expansion(f, points)
    return _certificate(f, points, gradient, hessian)


def _certificate(f: Objective, points: Tensor, gradient: Tensor, hessian: Tensor) -> Certificate:
    values, vectors = torch.linalg.eigh(torch.nan_to_num(hessian))
    scale = values.abs().amax(1)
    cut = CUT * scale
    step = _newton(gradient, values, vectors, cut)
    length = step.norm(dim=1)
    # along the step, far enough to stand above the rounding of H: its square root is where a difference quotient is best
    h = torch.finfo(points.dtype).eps ** 0.5 * points.norm(dim=1).clamp_min(1.0)
    direction = step / length.clamp_min(torch.finfo(points.dtype).tiny)[:, None]
    bent = expansion(f, points + h[:, None] * direction)[2]
    third = torch.linalg.matrix_norm(torch.nan_to_num(bent - hessian)) / h
    cut = torch.maximum(cut, third * length)
    g = torch.einsum("edk,ed->ek", vectors, gradient)
    decrement = torch.where(values.abs() > cut[:, None], g**2 / values.abs(), 0.0).sum(1).sqrt()
    slope = gradient.norm(dim=1)
    flat = (values * g).norm(dim=1) / (scale * slope)
    return Certificate(slope, gradient.abs().sum(1), decrement, flat, cut, values)


def flattest(f: Objective, points: Tensor, *, norm: Literal["l1", "l2"] = "l1") -> int:
    """The place, among points (T, d) of a training, of the one with the least gradient; by its L1 norm as in Zhang et al. 2021."""
    if norm not in ("l1", "l2"):
        raise unknown("norm", norm, ("l1", "l2"))
    slopes = torch.cat([f.gradient(piece) for piece in torch.split(points, max(1, HELD // len(f.rows)))])
    return int((slopes.abs().sum(1) if norm == "l1" else slopes.norm(dim=1)).argmin())


# -- which are one ----------------------------------------------------------------------------------------------------


def canonical(f: Objective, points: Tensor, layers: Sequence[Layer]) -> Tensor:
    """Points (E, D) moved along the network's own symmetries to one of each class: units sorted by what they read, and of an odd activation signed so that the first weight is positive.

    Layers from the input on, so that what a layer reads is in order before it is sorted. Scalings of homogeneous activations stay as they are.
    """
    found = points.clone()
    for layer in layers if len(points) else ():
        reads, writes = (
            torch.stack([torch.cat(positions(f.model.layout, slices, unit)) for unit in range(layer.size)])
            for slices in (layer.copies, layer.scaled)
        )
        incoming, outgoing = found[:, reads], found[:, writes]  # (E, m, ...)
        if layer.activation in ODD and layer.kind in ("dense", "channel") and len(layer.writers) == 1:
            large = incoming.abs() > SAME * incoming.abs().amax(2, keepdim=True)
            first = large.to(torch.int64).argmax(2, keepdim=True)
            sign = torch.where(incoming.gather(2, first) < 0, -1.0, 1.0).to(found)
            incoming, outgoing = incoming * sign, outgoing * sign
        # rounded, so that what differs in rounding alone is told by the next weight; among units that read the same, by what they write
        rounding = SAME * torch.cat([incoming, outgoing], 2).abs().amax((1, 2), keepdim=True).clamp_min(1e-300)
        keys = (torch.cat([incoming, outgoing], 2) / rounding).round().cpu().numpy()
        order = torch.from_numpy(np.stack([np.lexsort(member.T[::-1]) for member in keys])).to(found.device)
        found[:, reads] = incoming.gather(1, order[:, :, None].expand_as(incoming))
        found[:, writes] = outgoing.gather(1, order[:, :, None].expand_as(outgoing))
    return found


# two numbers are one within this share of the largest: searches that end at the rounding differ by some 1e-10 where the Hessian is worst, and different points by 1e-3 and more
SAME = 1e-6


def distinct(f: Objective, points: Tensor, layers: Sequence[Layer]) -> Tensor:
    """The class of each point (E,) int64, counted from 0 in the order of their appearance: points of one class are one up to the network's symmetries."""
    kept: list[Tensor] = []
    classes = []
    for point in canonical(f, points, layers):
        near = [
            place for place, other in enumerate(kept) if bool((point - other).abs().max() <= SAME * other.abs().max())
        ]
        if not near:
            kept.append(point)
        classes.append(near[0] if near else len(kept) - 1)
    return torch.tensor(classes, dtype=torch.int64, device=points.device)


# -- where they are looked for ----------------------------------------------------------------------------------------


def candidate() -> Rows:
    """A CANDIDATE for the undocumented one-dimensional target of Zhang et al. 2021: y = tanh(x - 7) + tanh(x) + tanh(x + 7) at 50 equispaced x in [-15, 15], (50, 1) each.

    Inferred from their figure 1 and the loss values of their figure 4, which other targets fit too: agreement with these is no confirmation.
    """
    x = torch.linspace(-15, 15, 50, dtype=torch.float64)[:, None]
    return Rows(x, torch.tanh(x - 7) + torch.tanh(x) + torch.tanh(x + 7))


ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "sigmoid": nn.Sigmoid}


def shallow(inputs: int, width: int, outputs: int, activation: str = "tanh") -> nn.Module:
    """The two-layer network of Zhang et al. 2021, (N, inputs) to (N, outputs): one hidden layer with biases, none on the output, so that their counts of eigenvalues come out."""
    if activation not in ACTIVATIONS:
        raise unknown("activation", activation, ACTIVATIONS)
    if min(inputs, width, outputs) < 1:
        raise UsageError(f"a network of {inputs} inputs, {width} units and {outputs} outputs: each must be at least 1.")
    parts = OrderedDict(
        hidden=nn.Linear(inputs, width),
        activation=ACTIVATIONS[activation](),
        output=nn.Linear(width, outputs, bias=False),
    )
    return nn.Sequential(parts)
