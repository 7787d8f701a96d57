"""Perturbed rewinding: starts at a given distance from a rewound point, within the axial subspace of its mask.

Letters: D parameters, S survivors that may move, E draws, r radius, L the level.

    distance   d_L = |m_L w_tau - m_{L+1} w_tau|: the norm of the rewound weights that the next pruning deletes

    sphere       w + r u, u uniform on the unit sphere of the axial subspace: the paper's
    ball         w + r U^(1/S) u, U uniform in [0, 1]: uniform in the ball; in many dimensions nearly the sphere
    gaussian     w + r g / sqrt(S), g standard normal: the norm is r in root mean square only
    layer-wise   a sphere a tensor, of radius r |w_t| / |w|: every tensor moves by the same share of its norm, one of zeros not at all
    projection   w - (m_L - m_{L+1}) w, the step of the next pruning, scaled to r: at r = d_L its target. Nothing is drawn
    random-mask  the same step for a random mask with as many survivors

Sources: Paul et al. 2023, "Unmasking the lottery ticket hypothesis" (the distance d_L); T16 of its analytic ground truths for the laws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from landscape.errors import UsageError, unknown
from landscape.seeds import generator

KINDS = ("sphere", "ball", "gaussian", "layer-wise", "projection", "random-mask")
PRUNINGS = ("projection", "random-mask")  # steps of a mask, whose direction is made of w itself


def distance(w: Tensor, deleted: Tensor) -> float:
    """d_L, the norm of the entries of w (D,) that a pruning deletes, (D,) bool; in float64."""
    return float(torch.linalg.vector_norm(_exact(w)[deleted.cpu()]))


def perturbed(
    kind: str,
    w: Tensor,
    support: Tensor,
    radius: float,
    *,
    seed: int,
    draws: int = 1,
    blocks: Sequence[int] | None = None,
    deleted: Tensor | None = None,
) -> Tensor:
    """Points (E, D) at `radius` from w (D,) that differ from it within `support`, (D,) bool, only.

    The displacement is drawn, normalised and added in float64 on the CPU; what w's own dtype rounds off is the last thing that happens to it. Draw e comes from
    the stream (seed, "perturbation KIND", e): more draws change none, and at another radius the direction is the same.

    w: the rewound point with its mask applied, so that entries outside `support` stay what they are, zeros among them.
    support: what may move. The axial subspace of a mask is all of its survivors, biases and norm parameters among them; for random-mask, the weights that could be pruned.
    blocks: of layer-wise: sizes of consecutive tensors, which make up D.
    deleted: of projection and random-mask: (D,) bool, what the next pruning deletes; random-mask deletes as many entries of the support.

    Raises UsageError where names, shapes or the radius do not fit, nothing may move, or a step has no direction.
    """
    if kind not in KINDS:
        raise unknown("perturbation", kind, KINDS)
    for name, mask in {"support": support, "deleted": support if deleted is None else deleted}.items():
        if mask.shape != w.shape or mask.dtype != torch.bool:
            raise UsageError(f"{name} is a bool tensor {tuple(w.shape)}; got {mask.dtype} {tuple(mask.shape)}.")
    if not 0 <= radius < math.inf:
        raise UsageError(f"a radius is finite and at least 0; got {radius}.")
    if draws < 1:
        raise UsageError(f"at least 1 draw is needed; got {draws}.")
    point, free = _exact(w), support.cpu().nonzero()[:, 0]
    if not len(free):
        raise UsageError("no entry may move: the support is empty. Give a level with survivors.")
    points = []
    for draw in range(draws):
        stream = generator(seed, f"perturbation {kind}", draw)
        if kind in PRUNINGS:
            gone = _deleted(kind, free, deleted, stream)
            step = torch.zeros_like(point).index_copy(0, gone, -point[gone])
            # the same sum as in `distance`: at r = d_L the factor is exactly 1, and the projection ends at exact zeros
            step *= radius / _length(kind, point[gone])
        else:
            normal = torch.randn(len(free), generator=stream, dtype=torch.float64)
            step = torch.zeros_like(point).index_copy(0, free, normal)
            if kind == "layer-wise":
                step = _by_block(step, point.where(support.cpu(), 0.0), blocks)
            length = math.sqrt(len(free)) if kind == "gaussian" else _length(kind, step)
            share = float(torch.rand((), generator=stream, dtype=torch.float64)) if kind == "ball" else 1.0
            step *= radius * share ** (1 / len(free)) / length
        points.append(point + step)
    return torch.stack(points).to(w)


def _exact(w: Tensor) -> Tensor:
    return w.detach().cpu().double()


def _deleted(kind: str, free: Tensor, deleted: Tensor | None, stream: torch.Generator) -> Tensor:
    """The entries that a pruning deletes, or as many free ones at random."""
    if deleted is None:
        raise UsageError(
            f"the perturbation {kind} is the step of a pruning: give `deleted`, what the next one deletes."
        )
    gone = deleted.cpu().nonzero()[:, 0]
    if kind == "projection":
        return gone
    if len(gone) > len(free):
        raise UsageError(f"a random mask cannot delete {len(gone):,} of {len(free):,} entries. Give a larger support.")
    return free[torch.randperm(len(free), generator=stream)[: len(gone)]]


def _by_block(step: Tensor, point: Tensor, blocks: Sequence[int] | None) -> Tensor:
    """Each block of the step as long as the point's."""
    if blocks is None or sum(blocks) != len(point):
        raise UsageError(
            f"layer-wise needs blocks, the sizes of the tensors that make up the {len(point):,} parameters."
        )
    pairs = zip(step.split_with_sizes(list(blocks)), point.split_with_sizes(list(blocks)), strict=True)
    return torch.cat([one * (other.norm() / one.norm().clamp_min(torch.finfo(one.dtype).tiny)) for one, other in pairs])


def _length(kind: str, step: Tensor) -> float:
    """The norm of a step that must have one."""
    norm = float(torch.linalg.vector_norm(step))
    if not norm > 0:
        raise UsageError(
            f"the perturbation {kind} has no direction: the weights that make it are 0. Choose another kind."
        )
    return norm
