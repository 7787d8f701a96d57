"""Pruning: which weights may go, how important each is, and exactly how many go.

Letters: D trained parameters, n survivors of a mask, N prunable weights.

    pruned = prune(mask, score("magnitude", f, w, mask), 0.2, among=prunable(f))

Of n survivors exactly n - ceil(fraction n) remain; of equal scores the one of the lower index in the flat vector goes first; what is pruned never comes back;
what is not prunable is never touched. Scores: higher is more important.

Sources: Han et al. 2015, Frankle and Carbin 2019 (magnitude); LeCun, Denker, Solla 1990 (OBD); Hassibi and Stork 1993 (OBS); Theis et al. 2018 (Fisher);
Lee, Ajanthan, Torr 2019 (SNIP); Zhou et al. 2019 (magnitude increase); Tanaka et al. 2020 (SynFlow); Mocanu et al. 2018, Evci et al. 2020 (ERK budgets);
Vysogorets and Kempe 2023 (effective sparsity).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from landscape.errors import LandscapeError, UsageError, unknown
from landscape.functionals import diagonal
from landscape.masks import Mask
from landscape.objectives import Network, Objective, called
from landscape.operators import SymmetricOperator
from landscape.seeds import generator
from landscape.subspaces import coordinates

Scope = Literal["global", "layer", "erk"]
SCOPES: tuple[Scope, ...] = ("global", "layer", "erk")
CRITERIA = ("magnitude", "random", "weight-gradient", "obd", "obs", "fisher", "magnitude-increase", "synflow")

# up to so many survivors the diagonal of a curvature is exact, by as many products: seconds for the networks of that size
EXACT = 2000
# beyond, by so many products with random signs (Bekas et al. 2007): twice the default of `functionals.diagonal`, since it is paid once a level
PROBES = 64
# obs forms and factorises the Hessian of the survivors: at 4,096 that is 128 MiB and a minute
OBS_LIMIT = 4096
# obs: eigenvalues below this share of the largest are raised to it. H has flat and, away from a minimum, negative directions; H^-1 is asked for
OBS_FLOOR = 1e-6

WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

# -- what may go ------------------------------------------------------------------------------------------------------


def layers(f: Objective) -> tuple[str, ...]:
    """Names of the trained weights of convolutions and dense layers, in the order in which one row passes them: the first layer first, the output layer last.

    Tied weights stand once. Layers that the model never calls as modules (those inside torch's attention) come before the output layer. Of the objective of a
    function: its one vector.
    """
    layout = f.model.layout
    if not isinstance(f.model, Network):
        return tuple(entry.name for entry in layout.of("parameter"))
    module = _module(f, torch.zeros(layout.dim, dtype=f.dtype, device=f.device))
    passed: dict[str, None] = {}
    weighted = {
        f"{name}.weight".lstrip("."): part for name, part in module.named_modules() if isinstance(part, WEIGHTED)
    }
    for name, part in weighted.items():
        part.register_forward_pre_hook(lambda _, __, name=name: passed.setdefault(name))
    _call(module, f)
    *inner, last = passed or weighted or [""]
    order = [*inner, *(name for name in weighted if name not in passed), last]
    trained = {entry.name for entry in layout.of("parameter")}
    known = (layout.aliases.get(name, name) for name in order)
    return tuple(dict.fromkeys(name for name in known if name in trained))


def prunable(f: Objective, *, output: bool = True, first: bool = True, include: str = "", ignore: str = "") -> Mask:
    """Which parameters may be pruned: by default the weights of all convolutions and dense layers, and no bias or norm (Frankle and Carbin 2019).

    output, first   whether the output layer and the first one are among them
    include, ignore names or globs of trained parameters, separated by commas, that are or are not, whatever their kind

    Raises UsageError where nothing is left, or a glob matches no trained parameter.
    """
    layout, names = f.model.layout, layers(f)
    names = names[0 if first else 1 : len(names) if output else -1]
    kept = np.zeros(layout.dim, dtype=bool)
    for entry in layout.of("parameter"):
        kept[entry.offset : entry.offset + entry.size] = entry.name in names
    if include:
        kept |= layout.select(include)
    if ignore:
        kept &= ~layout.select(ignore)
    if not kept.any():
        raise UsageError(
            "nothing may be pruned: no trained weight of a convolution or a dense layer is left. Name parameters to include, such as '*weight'."
        )
    return Mask(layout, kept)


def _module(f: Objective, w: Tensor) -> nn.Module:
    return dataclasses.replace(f, charts=(), norm="eval").module(w)


def _call(module: nn.Module, f: Objective) -> Any:
    return called(module, f.rows.take(slice(0, 1)).inputs)


# -- how important ----------------------------------------------------------------------------------------------------


def score(name: str, f: Objective, w: Tensor, mask: Mask, *, start: Tensor | None = None, seed: int = 0) -> Tensor:
    """How important each parameter is, (D,), at the point w (D,) of the whole-space objective f; meaningful among the survivors of the mask.

    magnitude           |w|
    random              uniform on [0, 1), by the seed: of nested masks and one seed the same order
    weight-gradient     |w g|: the first-order change of the loss, in absolute value. At the initial point this is SNIP
    obd                 w^2 H_ii / 2, signed: where it is negative, removing the weight is predicted to lower the loss. H among survivors
    obs                 w^2 / (2 [H^-1]_ii), H among survivors: of one weight removed and all others readjusted
    fisher              w^2 C_ii / 2, C the uncentred covariance of the gradients of single rows
    magnitude-increase  |w| - |w_0|, w_0 = start (D,)
    synflow             |w| dR/d|w|, R the summed outputs of the network of |w| at a row of ones. Without data. One round at a high rate empties whole layers: prune in many small ones

    H_ii and C_ii are exact for up to EXACT survivors, beyond that estimated by PROBES products (seed).
    Raises UsageError for another name, a missing start, and what obs or synflow cannot do; LandscapeError where a score of a survivor is not finite.
    """
    if name not in CRITERIA:
        raise unknown("criterion", name, CRITERIA)
    if name == "magnitude-increase" and start is None:
        raise UsageError(
            "magnitude-increase compares with the point where training started: give it, or use magnitude."
        )
    if name == "obs" and mask.size > OBS_LIMIT:
        raise UsageError(
            f"obs inverts the Hessian of all survivors, and {mask.size:,} are more than {OBS_LIMIT:,}. Use obd, which takes its diagonal alone, or a smaller network."
        )
    free = mask.tensor(w.device)
    among, z = f.restrict(coordinates(torch.zeros_like(w), free)), w[free]

    def spread(values: Tensor) -> Tensor:
        return torch.zeros_like(w).masked_scatter(free, values)

    ways: dict[str, Callable[[], Tensor]] = {
        "magnitude": lambda: w.abs(),
        "random": lambda: torch.rand(len(w), generator=generator(seed, "pruning"), dtype=torch.float64).to(w),
        "weight-gradient": lambda: (w * f.gradient(w)).abs(),
        "obd": lambda: spread(z.square() / 2 * _diagonal(among.hessian(z), seed)),
        "obs": lambda: spread(z.square() / 2 / _inverse_diagonal(among.hessian(z).dense())),
        "fisher": lambda: spread(z.square() / 2 * _diagonal(among.gradient_covariance(z), seed)),
        "magnitude-increase": lambda: w.abs() - (w if start is None else start.to(w)).abs(),
        "synflow": lambda: _flow(f, w),
    }
    scores = ways[name]()
    wrong = int((~scores[free.to(scores.device)].isfinite()).sum())
    if wrong:
        raise LandscapeError(
            f"the {name} of {wrong} surviving parameters is NaN or infinite. Prune at a point where training has not diverged."
        )
    return scores


def _diagonal(operator: SymmetricOperator, seed: int) -> Tensor:
    probes = operator.dim if operator.dim <= EXACT else PROBES
    return diagonal(operator, probes=max(2, probes), seed=seed).values


def _inverse_diagonal(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix.cpu().double())
    values = values.clamp_min(OBS_FLOOR * values[-1].clamp_min(torch.finfo(values.dtype).tiny))
    inverse: Tensor = vectors.square() @ (1 / values)
    return inverse.to(matrix)


def _flow(f: Objective, w: Tensor) -> Tensor:
    """In float64 and so on the CPU: a product of so many sums leaves float32."""
    ones = _ones(f).cpu().double()
    module = _linearised(f, w.abs()).cpu().double()
    slopes = _slopes(module, ones, [entry.name for entry in f.model.layout.of("parameter")])
    flow = w.abs().cpu().double() * torch.cat([slope.flatten() for slope in slopes])
    if flow.min() < 0:
        raise LandscapeError(
            "synflow follows a signal through layers that keep positive numbers positive, and this network has others (functions such as log_softmax or layer_norm). Use another criterion."
        )
    return flow


def _ones(f: Objective) -> Tensor:
    """One row of ones."""
    inputs = f.rows.take(slice(0, 1)).inputs
    if not isinstance(f.model, Network) or not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        raise UsageError(
            "signals are followed through a network whose rows are one tensor of real numbers, and this is none. Use another criterion than synflow, and leave effective weights out."
        )
    return torch.ones_like(inputs)


def _linearised(f: Objective, w: Tensor) -> nn.Module:
    """A copy of the network at w >= 0 in which norms, activations and dropout pass on what they get, and what is frozen is not negative."""
    module = _module(f, w)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.abs_()
    for part in module.modules():
        if not isinstance(part, WEIGHTED) and not any(True for _ in part.children()):
            part.register_forward_hook(_unchanged)
    return module


def _unchanged(part: nn.Module, given: tuple[Any, ...], out: Any) -> Any:
    if not (given and isinstance(given[0], Tensor) and isinstance(out, Tensor)):
        return out
    if isinstance(
        part, _MAXIMA
    ):  # a maximum hands its slope to one of its equals; where anything arrives, a mean tells as well
        return _averaged(part, given[0])
    return given[0] if given[0].shape == out.shape else out


_MAXIMA = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)


def _averaged(part: Any, x: Tensor) -> Tensor:
    axes = type(part).__name__[-2:]  # 1d, 2d, 3d
    if hasattr(part, "output_size"):
        out: Tensor = getattr(functional, f"adaptive_avg_pool{axes}")(x, part.output_size)
    else:
        out = getattr(functional, f"avg_pool{axes}")(x, part.kernel_size, part.stride, part.padding, part.ceil_mode)
    return out


def _slopes(module: nn.Module, inputs: Tensor, names: Sequence[str]) -> list[Tensor]:
    """Of the summed outputs, by the parameters of these names; 0 of those that play no part."""
    parameters = dict(module.named_parameters())
    chosen = [parameters[name] for name in names]
    with torch.enable_grad():
        outputs = module(inputs)
        outputs = getattr(outputs, "logits", outputs)
        slopes = torch.autograd.grad(outputs.sum(), chosen, allow_unused=True)
    return [torch.zeros_like(p) if slope is None else slope for p, slope in zip(chosen, slopes, strict=True)]


# -- how many ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Pruned:
    """What pruning left."""

    mask: Mask
    threshold: float  # the largest score removed; NaN where nothing was
    dead: tuple[str, ...]  # tensors that it emptied: no signal passes such a layer


def removed(n: int, fraction: float) -> int:
    """ceil(fraction n), of the fraction as it is written: 0.07 of 100 is 7, where the product of floats lies above it."""
    return math.ceil(Fraction(fraction).limit_denominator(10**12) * n)


def survivors(n: int, rate: float, levels: int) -> list[int]:
    """How many of n weights survive each of the levels 0 to `levels`, exactly: n, n - ceil(rate n), ... (levels + 1 numbers)."""
    _check_fraction(rate)
    counts = [n]
    for _ in range(levels):
        counts.append(counts[-1] - removed(counts[-1], rate))
    return counts


def prune(
    mask: Mask,
    scores: Tensor,
    fraction: float,
    *,
    among: Mask,
    scope: Scope = "global",
    factors: Mapping[str, float] | None = None,
) -> Pruned:
    """Remove the share `fraction` of the n survivors within `among`, the lowest scores (D,) first: exactly n - ceil(fraction n) of them remain.

    scope    global: over all tensors at once, as Frankle and Carbin 2019 prune deep networks. layer: each tensor by itself, n being its own survivors.
             erk: as many in all as global, shared out over the tensors in proportion to (sum of a tensor's sizes) / (their product), each whole at most
    factors  tensors, by name, that are pruned by themselves at another rate: 0.5 is half the fraction, 0 leaves one alone

    Raises UsageError for a fraction outside [0, 1] and for what does not fit; LandscapeError for scores of survivors that are NaN.
    """
    _check_fraction(fraction)
    if scope not in SCOPES:
        raise unknown("scope of pruning", scope, SCOPES)
    present = {name: n for name, (n, _) in (mask & among).counts().items()}
    own = {name: 1.0 for name in present if scope == "layer"} | dict(factors or {})
    for name, factor in own.items():
        if name not in present:
            raise unknown("trained parameter", name, present)
        _check_fraction(fraction * factor)
    groups = [([name], present[name] - removed(present[name], fraction * own[name])) for name in own]
    others = [name for name in present if name not in own]
    total = sum(present[name] for name in others)
    total -= removed(total, fraction)
    if scope == "erk":
        shapes, wholes = {entry.name: entry.shape for entry in mask.layout.of("parameter")}, among.counts()
        others = [name for name in others if present[name]]
        wanted = {name: wholes[name][0] * (sum(shapes[name]) or 1) / math.prod(shapes[name]) for name in others}
        groups += [([name], count) for name, count in _shared(total, wanted, present).items()]
    else:
        groups.append((others, total))
    return _cut(mask, among, scores, groups)


def shuffled(mask: Mask, among: Mask, seed: int, within: Literal["layer", "global"] = "layer") -> Mask:
    """A random mask with as many survivors within `among` as `mask`, in each tensor or in all together; outside it is `mask` itself.

    The ablation that keeps a ticket's proportions and forgets its places (Frankle and Carbin 2019), and the random masks of these densities. Those of nested
    masks under one seed are nested.
    """
    if within not in ("layer", "global"):
        raise unknown("reach of a shuffle", within, ("layer", "global"))
    groups = [([name], n) for name, (n, _) in (mask & among).counts().items()]
    if within == "global":
        groups = [([name for (name,), _ in groups], sum(n for _, n in groups))]
    scores = torch.rand(mask.layout.dim, generator=generator(seed, "shuffled mask"), dtype=torch.float64)
    return _cut(mask | among, among, scores, groups).mask


def _cut(mask: Mask, among: Mask, scores: Tensor, groups: Sequence[tuple[Sequence[str], int]]) -> Pruned:
    """Of the survivors within `among` in each group of tensors the lowest scores go, until so many are left."""
    if scores.shape != mask.kept.shape:
        raise UsageError(f"the mask is of {mask.layout.dim} parameters, and the scores are {tuple(scores.shape)}.")
    scores = scores.detach().cpu()
    values = (scores if scores.dtype in (torch.float32, torch.float64) else scores.double()).numpy()
    free, kept, threshold = (mask & among).kept, mask.kept.copy(), math.nan
    places = {e.name: slice(e.offset, e.offset + e.size) for e in mask.layout.of("parameter")}
    for names, left in groups:
        own = np.concatenate([values[places[name]][free[places[name]]] for name in names] or [values[:0]])
        if np.isnan(own).any():
            raise LandscapeError(
                f"{int(np.isnan(own).sum())} scores of surviving parameters are NaN. Prune at a point where training has not diverged."
            )
        count = len(own) - left
        if not count:
            continue
        highest = np.partition(own, count - 1)[count - 1]  # linear time, where a sort of 25 million takes seconds
        ties = count - int(np.count_nonzero(own < highest))
        for name in names:
            part, here = values[places[name]], free[places[name]]
            equal = np.flatnonzero(here & (part == highest))[:ties]
            ties -= len(equal)
            kept[places[name]] &= ~(here & (part < highest))
            kept[places[name].start + equal] = False
        threshold = max(float(highest), -math.inf if math.isnan(threshold) else threshold)
    after, before = Mask(mask.layout, kept), mask.counts()
    dead = tuple(name for name, (n, _) in after.counts().items() if not n and before[name][0])
    return Pruned(after, threshold, dead)


def _shared(total: int, wanted: dict[str, float], most: dict[str, int]) -> dict[str, int]:
    """`total` things in proportion to `wanted`, no one above its `most`; what is left by rounding down goes to the largest fractions."""
    shares: dict[str, float] = {}
    room, weight = float(total), sum(wanted.values())
    for name in sorted(wanted, key=lambda name: most[name] / wanted[name]):  # those that fill up come first
        shares[name] = min(float(most[name]), room * wanted[name] / weight)
        room, weight = room - shares[name], weight - wanted[name]
    counts = {name: math.floor(share) for name, share in shares.items()}
    for name in sorted(counts, key=lambda name: counts[name] - shares[name])[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


def _check_fraction(fraction: float) -> None:
    if not 0 <= fraction <= 1:
        raise UsageError(f"a fraction to prune lies in [0, 1]; got {fraction}. 0.2 removes a fifth of the survivors.")


# -- what is left -----------------------------------------------------------------------------------------------------


class _Reached(torch.autograd.Function):
    """1 where anything arrives, forwards, and where anything is passed on, backwards: neither over- nor underflows with depth."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Where the signal is."""
        return (x != 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        """Where the gradient is."""
        return (g != 0).to(g.dtype)


def effective(f: Objective, mask: Mask) -> Mask:
    """The survivors that lie on a path of survivors from an input to an output; what the others carry depends on no input: they are at most biases (Vysogorets and Kempe 2023).

    Only weights of convolutions and dense layers are looked at. Biases and norms stay as they are in `mask`, and begin no path. A row of ones goes through the
    network of the mask, with norms and activations passing it on; a weight is on a path where its slope is not 0. Exact for networks of these layers,
    poolings, norms and activations (as modules, or functions that keep positive numbers positive), sums and concatenations.

    Raises UsageError for rows that are not one tensor of real numbers.
    """
    ones, names = _ones(f), layers(f)
    module = _linearised(f, torch.from_numpy(mask.kept.astype(np.float32)).to(f.device, f.dtype))
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, WEIGHTED):
                if part.bias is not None:
                    part.bias.zero_()
                part.register_forward_hook(lambda _, __, out: _Reached.apply(out))
    kept = mask.kept.copy()
    slopes = dict(zip(names, _slopes(module, ones, names), strict=True))
    for entry in mask.layout.of("parameter"):
        if entry.name in slopes:
            kept[entry.offset : entry.offset + entry.size] &= (slopes[entry.name] != 0).flatten().cpu().numpy()
    return Mask(mask.layout, kept)


def dead_units(mask: Mask) -> dict[str, tuple[int, int]]:
    """By name of weight (two axes or more): how many of its units, first axis, have no survivor, and of how many. Ask of `effective` masks."""
    return {
        name: (int((~kept.reshape(len(kept), -1).any(axis=1)).sum()), len(kept))
        for name, kept in mask.tensors().items()
        if kept.ndim > 1
    }
