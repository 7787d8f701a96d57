"""The way back from a wide network to a narrow one: units that point the same way are counted (condensation), and merged (reduction).

Letters: m units of a layer, n entries of an augmented input weight, k entries of an output weight, G groups, N rows, D parameters, M of them after the reduction.

    u = [w, b]               a unit's augmented input weight, with a BatchNorm between it and the activation folded in
    a                        its output weight: all entries by which others read it
    cosine u.v / (|u| |v|)   the similarity of the paper; amplitude |a| |u|
    effective units          groups of cosine at least 0.9 among the units that are not negligible

Two units merge without any error where the activation cannot tell them apart:

    1-homogeneous (relu)     u_k = c u_j, c > 0:  a_j takes c a_k, c = |u_k| / |u_j|
    any                      u_k = u_j:           a_j takes a_k
    odd (tanh)               also u_k = -u_j:     a_j takes -a_k
    even (cos)               also u_k = -u_j:     a_j takes a_k
    odd about a level        also u_k = -u_j:     a_j takes -a_k, and the next bias 2 level a_k (sigmoid, level 1/2)
    u_k = [0, b]             a constant: it goes into the next bias
    a_k = 0                  goes

So `similarity` is what these rules make of it: of directions for a 1-homogeneous activation (the paper's cosine), else 2 u.v / (|u|^2 + |v|^2), which is 1 for equal rows only; of lines where signs may differ.

The error of a merge that is not exact is bounded: with e_k = u_k - s_k c_k u_j, L the activation's Lipschitz constant and h the layer's input with 1 appended,

    |change of what is read| <= L sum_k |a_k| |e_k . h| <= (L sum_k |a_k| |e_k|) |h|,

times the Lipschitz constant of the layers after it. The first is taken on rows, the second holds for any input.

Sources: Zhang, Zhang, Luo, Xu 2021, figure 5 (similarity, merge rule, protocol); Zhou et al. 2022 (condensation in at most 2p directions); Simsek et al. 2021 (reducible units). The rules and the bound are proved in one line each.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from scipy.cluster import hierarchy
from torch import Tensor, nn

from landscape import units
from landscape.errors import LandscapeError, UsageError
from landscape.objectives import Objective, Rows, called
from landscape.units import Layer, whole_module, with_units

Linkage = Literal["complete", "components"]
Convolution = nn.modules.conv._ConvNd

# of the similarity, in "Embedding principle", figure 5
SIMILARITY = 0.9
# share of the summed amplitude that the smallest units may have to be left out: what they give to the outputs is at most a hundredth of what all could give together
NEGLIGIBLE = 0.01


# -- what an activation cannot tell apart -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Character:
    """What merging has to know of an activation sigma. The default is that nothing is known: only equal units merge, and errors have no bound."""

    homogeneous: bool = False  # sigma(c x) = c sigma(x) for c > 0
    even: bool = False
    level: float | None = None  # sigma(x) + sigma(-x) = 2 level for every x: 0 is an odd function
    vanishes: bool = False  # sigma(0) = 0
    multiplicity: int | None = (
        None  # p, the order of the first non-zero derivative at 0; None: not smooth there, or not known
    )
    lipschitz: float = math.inf

    @property
    def signed(self) -> bool:
        """Whether units of opposite input weights merge."""
        return self.even or self.level is not None

    @property
    def rule(self) -> str:
        """When two units merge, in words."""
        rows = "parallel" if self.homogeneous else "equal"
        return f"{rows} input weights{', up to their sign' if self.signed else ''}"


# By torch's name of the function. |gelu'| is largest at sqrt 2, Phi(sqrt 2) + sqrt 2 phi(sqrt 2) = 1.12891 (1.12898 by its tanh form), |silu'| at 2.4, 1.09984. Of hardtanh and relu6 the name does not tell
# the limits, so that nothing is known; the slope of leaky_relu and the alpha of elu are asked of their layers
CHARACTERS: dict[str, Character] = {
    "identity": Character(homogeneous=True, level=0.0, vanishes=True, multiplicity=1, lipschitz=1),
    "relu": Character(homogeneous=True, vanishes=True, lipschitz=1),
    "leaky_relu": Character(homogeneous=True, vanishes=True, lipschitz=1),
    "abs": Character(homogeneous=True, even=True, vanishes=True, lipschitz=1),
    "tanh": Character(level=0.0, vanishes=True, multiplicity=1, lipschitz=1),
    "softsign": Character(level=0.0, vanishes=True, multiplicity=1, lipschitz=1),
    "tanhshrink": Character(level=0.0, vanishes=True, multiplicity=3, lipschitz=1),
    "sin": Character(level=0.0, vanishes=True, multiplicity=1, lipschitz=1),
    "cos": Character(even=True, multiplicity=2, lipschitz=1),
    "erf": Character(level=0.0, vanishes=True, multiplicity=1, lipschitz=2 / math.sqrt(math.pi)),
    "sigmoid": Character(level=0.5, multiplicity=1, lipschitz=0.25),
    "softplus": Character(multiplicity=1, lipschitz=1),
    "gelu": Character(vanishes=True, multiplicity=1, lipschitz=1.129),
    "silu": Character(vanishes=True, multiplicity=1, lipschitz=1.0999),
    "elu": Character(vanishes=True, multiplicity=1, lipschitz=1),
    "selu": Character(vanishes=True, lipschitz=1.7581),
}
# what else units.layers tells of a unit: a factor, of which the name does not tell how large it is, and the largest of a channel's pixels
BESIDE: dict[str, Character] = {
    "scale": Character(homogeneous=True, level=0.0, vanishes=True),
    **{
        f"{kind}max_pool{axes}d": Character(homogeneous=True, vanishes=True)
        for kind in ("", "adaptive_")
        for axes in (1, 2, 3)
    },
}


def _character(module: nn.Module, activation: str) -> Character:
    """What is known of an activation in this network, by torch's name of it; of several joined by "+", what all of them have."""
    if "+" in activation:
        each = [_character(module, name) for name in activation.split("+")]
        return Character(
            homogeneous=all(one.homogeneous for one in each),
            level=0.0 if all(one.level == 0 for one in each) else None,
            vanishes=all(one.vanishes for one in each),
            lipschitz=math.prod(one.lipschitz for one in each),
        )
    found = CHARACTERS.get(activation, BESIDE.get(activation, Character()))
    slopes = [part.negative_slope for part in module.modules() if isinstance(part, nn.LeakyReLU)]
    slopes += [part.alpha for part in module.modules() if isinstance(part, nn.ELU)]
    if activation in ("leaky_relu", "elu"):  # called without a layer, they may have any slope
        return dataclasses.replace(found, lipschitz=max(1.0, *map(abs, slopes)) if slopes else math.inf)
    return found


# -- the units of a layer ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Neurons:
    """The weights of a layer's units at a point, in float64 on the CPU."""

    layer: Layer
    character: Character
    inputs: Tensor  # (m, n) u
    outputs: Tensor  # (m, k) a
    biased: bool  # whether the last column of `inputs` is the bias
    plain: bool  # sigma(u . h) with one dense layer or convolution, perhaps a BatchNorm, before the activation: else `inputs` are all entries that a copy of the unit would copy

    @cached_property
    def lengths(self) -> Tensor:
        """|u| (m,)."""
        return _norms(self.inputs)

    @cached_property
    def amplitudes(self) -> Tensor:
        """|a| |u| (m,): of a unit whose activation vanishes at 0 and has Lipschitz constant 1, the most it can give to what reads it, an input of length 1."""
        return _norms(self.outputs) * self.lengths

    @cached_property
    def cosines(self) -> Tensor:
        """(m, m); a unit without input weights has cosine 0 with all but itself."""
        directions = self.inputs / self.lengths.clamp_min(torch.finfo(torch.float64).tiny)[:, None]
        return (directions @ directions.T).fill_diagonal_(1).clamp(-1, 1)

    @cached_property
    def similarities(self) -> Tensor:
        """(m, m): 1 where two units merge without an error, -1 where they do so with opposite signs."""
        if self.character.homogeneous:
            return self.cosines
        squares = self.lengths.square()
        sums = (squares[:, None] + squares).clamp_min(torch.finfo(torch.float64).tiny)
        return (2 * self.inputs @ self.inputs.T / sums).fill_diagonal_(1).clamp(-1, 1)

    @property
    def constant(self) -> Tensor:
        """Which (m,) units give the same for every input; of units that are not plain none is known to."""
        weights = self.inputs[:, :-1] if self.biased else self.inputs
        return (weights == 0).all(1) if self.plain else torch.zeros(len(weights), dtype=torch.bool)

    def negligible(self, share: float = NEGLIGIBLE) -> Tensor:
        """Which (m,) are the smallest by amplitude that have together at most this share of the sum; those of amplitude 0 always."""
        order = self.amplitudes.argsort(stable=True)
        below = self.amplitudes[order].cumsum(0) <= share * self.amplitudes.sum()
        found = torch.zeros(len(order), dtype=torch.bool)
        found[order] = below
        return found | (self.amplitudes == 0)

    def groups(
        self, similarity: float = SIMILARITY, share: float = NEGLIGIBLE, linkage: Linkage = "complete"
    ) -> list[list[int]]:
        """Units of like direction (by `cosines`, as condensation is defined), those that are negligible left out; the largest group first. Their number is that of effective units."""
        return grouped(self.cosines, similarity, ~self.negligible(share), slack=self.slack, linkage=linkage)

    @property
    def slack(self) -> float:
        """What rounding does to a cosine: |fl(u.v) - u.v| <= n eps |u| |v| to first order, and as much again in the two lengths."""
        return 2 * self.inputs.shape[1] * torch.finfo(torch.float64).eps


def _norms(vectors: Tensor) -> Tensor:
    found: Tensor = torch.linalg.vector_norm(vectors, dim=1)
    return found


def neurons(f: Objective, z: Tensor, layer: Layer) -> Neurons:
    """The units of a layer at a point (D,).

    Raises UsageError for an objective that is restricted or of a function, LandscapeError where a weight is not finite.
    """
    return _neurons(whole_module(f, z), f.rows, layer)


def _neurons(module: nn.Module, rows: Rows, layer: Layer) -> Neurons:
    state = _state(module)
    weights, bias, plain = _folded(module, rows, layer, state)
    if not plain:
        weights, bias = _entries(state, layer.copies), None
    inputs = weights if bias is None else torch.cat([weights, bias[:, None]], dim=1)
    outputs = _entries(state, layer.scaled)
    if not (torch.isfinite(inputs).all() and torch.isfinite(outputs).all()):
        raise LandscapeError(
            f"layer {layer.name} has weights that are not finite: the run diverged. Take an earlier point."
        )
    character = _character(module, layer.activation) if plain else Character()
    return Neurons(layer, character, inputs, outputs, bias is not None, plain)


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in [*module.named_parameters(), *module.named_buffers()]}


def _entries(state: Mapping[str, Tensor], slices: Sequence[units.Slice]) -> Tensor:
    """The entries (m, ...) of all units in these slices, in float64."""
    parts = []
    for part in slices:
        tensor = state[part.name].double().cpu().movedim(part.axis, 0)
        parts.append(tensor.reshape(part.repeats, part.size, part.block, -1).movedim(1, 0).flatten(1))
    return torch.cat(parts, dim=1)


def _folded(
    module: nn.Module, rows: Rows, layer: Layer, state: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor | None, bool]:
    """Weights (m, n) and biases (m,), and whether the layer is a dense one or a convolution with at most a BatchNorm right after it."""
    owners = {name: module.get_submodule(name) for name in layer.writers}
    first, *others = owners.items()
    weighted = isinstance(first[1], (nn.Linear, Convolution))
    norms = [(name, part) for name, part in others if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    nothing = torch.zeros(0), None, False
    if layer.kind not in ("dense", "channel") or not weighted or len(norms) != len(others) or len(norms) > 1:
        return nothing
    named = {part.name: part for part in layer.copies}

    def vector(owner: str, name: str) -> Tensor | None:
        part = named.get(f"{owner}.{name}".lstrip("."))
        return None if part is None else _entries(state, [part])

    weights, bias = vector(first[0], "weight"), vector(first[0], "bias")
    if weights is None:
        return nothing
    bias = None if bias is None else bias[:, 0]
    if norms:
        name, norm = norms[0]
        mean, variance = vector(name, "running_mean"), vector(name, "running_var")
        if mean is None or variance is None or not _follows(module, rows, first[1], norm):
            return nothing
        gain, shift = vector(name, "weight"), vector(name, "bias")
        scale = (variance[:, 0] + norm.eps).rsqrt() * (1 if gain is None else gain[:, 0])
        bias = ((0 if bias is None else bias) - mean[:, 0]) * scale + (0 if shift is None else shift[:, 0])
        weights = weights * scale[:, None]
    return weights, bias, True


def _follows(module: nn.Module, rows: Rows, first: nn.Module, second: nn.Module) -> bool:
    """Whether the second layer reads just what the first one writes."""
    wrote: list[Tensor] = []
    read: list[Tensor] = []
    hooks = [
        first.register_forward_hook(lambda _, __, out: wrote.append(out)),
        second.register_forward_pre_hook(lambda _, given: read.append(given[0])),
    ]
    try:
        with torch.no_grad():
            called(module, rows.take(slice(0, 2)).inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return len(wrote) == len(read) == 1 and wrote[0] is read[0]


# -- groups -----------------------------------------------------------------------------------------------------------


def grouped(
    similarities: Tensor,
    least: float,
    among: Tensor | None = None,
    *,
    slack: float = 0.0,
    linkage: Linkage = "complete",
) -> list[list[int]]:
    """Groups of those `among` (m,) whose similarity (m, m) is at least `least`, the largest first, each by number.

    complete     every pair of a group is so similar, which is what a merge's error bound asks for
    components   every unit is so similar to some other of its group: chains, whose ends may differ

    slack: what rounding may have taken from a similarity. Raises UsageError for a least similarity outside (0, 1].
    """
    if not 0 < least <= 1:
        raise UsageError(f"a similarity lies in (0, 1], 1 for units that merge without an error; got {least}.")
    places = np.arange(len(similarities)) if among is None else np.flatnonzero(among.numpy())
    if len(places) < 2:
        return [[int(place)] for place in places]
    apart = (1 - similarities.numpy()[np.ix_(places, places)]).clip(0)
    condensed = apart[np.triu_indices(len(places), 1)]
    tree = hierarchy.linkage(condensed, "complete" if linkage == "complete" else "single")
    labels = hierarchy.fcluster(tree, 1 - least + slack, "distance")
    found = [[int(place) for place in places[labels == label]] for label in np.unique(labels)]
    return sorted(found, key=lambda group: (-len(group), group))


def spectral_order(similarities: Tensor) -> Tensor:
    """The units (m,) by their entry in the leading eigenvector of the similarity matrix: like ones stand side by side, as in the paper's heat maps. Its sign is chosen so that most entries are positive."""
    vector: Tensor = torch.linalg.eigh(similarities).eigenvectors[:, -1]
    return (vector * (1 if vector.sum() >= 0 else -1)).argsort(stable=True, descending=True)


# -- reduction --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Merge:
    """A group of units that became one."""

    members: tuple[int, ...]  # units of the wide layer
    kept: int  # whose input weights the new unit has: that of the largest amplitude
    signs: tuple[int, ...]  # of the members
    scales: tuple[float, ...]  # |u_k| / |u_kept|, of a 1-homogeneous activation
    similarity: float  # the smallest between a member and the kept one


@dataclass(frozen=True, eq=False)
class Narrowed:
    """What a reduction did to one layer."""

    layer: str
    activation: str
    rule: str
    before: int  # m
    merges: tuple[Merge, ...]  # one a unit of the narrow layer, in its order
    null: tuple[int, ...]  # nothing read them
    constant: tuple[int, ...]  # went into the next bias
    negligible: tuple[int, ...]  # left out for their small amplitude
    slope: float  # L sum |a_k| |e_k| over all units: what is read changes by at most this times the length of the layer's input with 1 appended; inf where no Lipschitz constant is known
    change: float  # bound on the change of what is read, the largest over rows; inf as above
    after: float  # Lipschitz constant of the layers after it; inf where it is not known
    bound: float  # change * after: of the change of the outputs on the rows

    @property
    def width(self) -> int:
        """Units that are left."""
        return len(self.merges)


@dataclass(frozen=True, eq=False)
class Reduced:
    """A narrower network, its point, and how it came about."""

    f: Objective
    point: Tensor  # (M,)
    layers: tuple[Narrowed, ...]

    @property
    def bound(self) -> float:
        """Bound on the change of the outputs on the rows of the objective, the largest over rows: the sum over layers (each was reduced in the network that the one before had left)."""
        return sum(layer.bound for layer in self.layers)

    @property
    def widths(self) -> dict[str, int]:
        """Units that are left, by layer."""
        return {layer.layer: layer.width for layer in self.layers}


def reduce(
    f: Objective,
    z: Tensor,
    layers: Sequence[Layer],
    *,
    similarity: float = SIMILARITY,
    share: float = NEGLIGIBLE,
    linkage: Linkage = "complete",
) -> Reduced:
    """The network with the similar units of each of these layers merged into one, by the rule of its activation; first what nothing reads, constants and negligible units are removed.

    similarity   1 merges what is equal to rounding: then the outputs stay, and a network that was split comes back
    share        of the summed amplitude, see `Neurons.negligible`; 0 leaves out none but those of amplitude 0. Only of activations that vanish at 0: others give a constant, however small their weights

    Raises UsageError for a layer that refuses to be split (what cannot be split cannot be merged), for an objective that is restricted or of a function, and for a least similarity outside (0, 1].
    """
    module, done = whole_module(f, z), []
    for layer in layers:
        module, told = _narrow(module, f, layer.checked(), similarity, share, linkage)
        done.append(told)
    g, point = Objective.of(module, f.loss, f.rows, device=f.device, dtype=f.dtype, chunk=f.chunk)
    return Reduced(g.with_buffers(g.buffers, f.norm), point, tuple(done))


def _narrow(
    module: nn.Module, f: Objective, layer: Layer, similarity: float, share: float, linkage: Linkage
) -> tuple[nn.Module, Narrowed]:
    own = _neurons(module, f.rows, layer)
    character, m = own.character, layer.size
    null = (own.outputs == 0).all(1)
    readers = _readers(module, layer) if own.plain else []
    sinks = _sinks(layer, readers)
    constant = own.constant & ~null
    levels = _levels(module, f.rows, layer, readers) if constant.any() and readers else torch.full((m,), math.nan)
    # a constant without a bias to go to stays, unless it is 0
    constant &= (levels == 0) | (torch.isfinite(levels) if sinks else torch.tensor(False))
    levels = torch.where(constant, levels, 0.0).double()
    # |a| |u| says how much a unit gives only if it gives nothing at u = 0
    negligible = own.negligible(share) & ~null & ~constant if character.vanishes else torch.zeros(m, dtype=torch.bool)
    signed = character.even or (character.level is not None and (character.level == 0 or bool(sinks)))
    alike = own.similarities.abs() if signed else own.similarities
    groups = grouped(alike, similarity, ~(null | constant | negligible), slack=own.slack, linkage=linkage)
    if not groups:  # a layer has a unit, if one that nothing reads
        groups, null[0], constant[0], negligible[0] = [[0]], False, False, False

    outputs, added = own.outputs.clone(), levels[:, None] * own.outputs
    errors = torch.where(negligible[:, None], own.inputs, 0.0)
    merges = []
    for group in sorted(groups):
        merge, total, offset, errors[group] = _merged(own, group, signed)
        merges.append(merge)
        outputs[merge.kept] = total
        added[merge.kept] += offset
    kept = [merge.kept for merge in merges]
    narrow = _chosen(module, layer, kept, outputs[kept])
    if sinks and added.any():
        _settle(narrow, layer, sinks, added.sum(0))
    change = _change(module, f, layer, own, errors)
    after = _lipschitz_after(module, layer)
    return narrow, Narrowed(
        layer=layer.name,
        activation=layer.activation,
        rule=character.rule,
        before=m,
        merges=tuple(merges),
        null=_numbers(null),
        constant=_numbers(constant),
        negligible=_numbers(negligible),
        slope=float(_reach(own, errors) @ _norms(errors)) if errors.any() else 0.0,
        change=change,
        after=after,
        bound=change * after if change else 0.0,
    )


def _numbers(which: Tensor) -> tuple[int, ...]:
    return tuple(which.nonzero()[:, 0].tolist())


def _merged(own: Neurons, group: list[int], signed: bool) -> tuple[Merge, Tensor, Tensor, Tensor]:
    """The merge of a group, its output weight (k,), what goes to the next bias (k,), and the errors e (members, n) of the input weights."""
    character, parts = own.character, own.outputs[group]
    kept = group[int(own.amplitudes[group].argmax())]
    inputs, target = own.inputs[group], own.inputs[kept]
    alike = own.similarities[kept, group]
    signs = torch.where(alike < 0, -1.0, 1.0).double() if signed else torch.ones_like(alike)
    equal = (inputs == signs[:, None] * target).all(1)
    scales = torch.ones_like(alike)
    if character.homogeneous and own.lengths[kept] > 0:
        # of equal rows exactly 1, however their lengths were rounded: what was split comes back to the bit
        scales = torch.where(equal, 1.0, own.lengths[group] / own.lengths[kept])
    turned = torch.ones_like(signs) if character.even else signs
    total = ((turned * scales)[:, None] * parts).sum(0)
    offset = 2 * (character.level or 0.0) * parts[turned < 0].sum(0)
    merge = Merge(
        tuple(group), kept, tuple(int(sign) for sign in signs), tuple(scales.tolist()), float((signs * alike).min())
    )
    return merge, total, offset, torch.where(equal[:, None], 0.0, inputs - (signs * scales)[:, None] * target)


def _reach(own: Neurons, errors: Tensor) -> Tensor:
    """L |a_k| (m,) of the units with an error, 0 of the others."""
    return torch.where(errors.any(1), own.character.lipschitz * _norms(own.outputs), 0.0)


def _chosen(module: nn.Module, layer: Layer, kept: list[int], outputs: Tensor) -> nn.Module:
    """A copy of the module with the units `kept` of a layer alone, which have these output weights (units, k)."""
    narrow = with_units(module, {layer: torch.tensor(kept)})
    state, place = _state(narrow), 0
    with torch.no_grad():
        for part in layer.scaled:
            tensor = state[part.name]
            moved = tensor.movedim(part.axis, 0).reshape(part.repeats, len(kept), part.block, -1)
            size = part.repeats * part.block * moved.shape[-1]
            values = outputs[:, place : place + size].reshape(len(kept), part.repeats, part.block, -1).movedim(1, 0)
            tensor.copy_(values.reshape(tensor.movedim(part.axis, 0).shape).movedim(0, part.axis))
            place += size
    return narrow


# -- constants --------------------------------------------------------------------------------------------------------


def _readers(module: nn.Module, layer: Layer) -> list[nn.Linear | Convolution]:
    """The dense layers and convolutions that read the layer, by entries of `scaled`; none where another thing reads it."""
    found = [module.get_submodule(part.name.rpartition(".")[0]) for part in layer.scaled]
    return [part for part in found if isinstance(part, (nn.Linear, Convolution))] if all(isinstance(part, (nn.Linear, Convolution)) for part in found) else []  # fmt: skip


def _sinks(layer: Layer, readers: list[nn.Linear | Convolution]) -> list[str]:
    """The biases that can take up a constant that the layer gives, one for each reader; none where one cannot: it has none, or pads its input with zeros, as no constant would be."""
    for part in readers:
        if part.bias is None:
            return []
        if isinstance(part, Convolution) and (part.groups != 1 or any(part._reversed_padding_repeated_twice)):
            return []
    return [f"{slice_.name.rpartition('.')[0]}.bias".lstrip(".") for slice_ in layer.scaled] if readers else []


def _levels(module: nn.Module, rows: Rows, layer: Layer, readers: list[nn.Linear | Convolution]) -> Tensor:
    """What units (m,) give to their readers on a few rows; NaN where it is not one number."""
    seen: list[Tensor] = []

    def look(reader: nn.Module, given: tuple[Tensor, ...], part: units.Slice) -> None:
        read = given[0].detach().double().cpu().movedim(-1 if isinstance(reader, nn.Linear) else 1, 0)
        seen.append(read.reshape(part.repeats, part.size, part.block, -1).movedim(1, 0).flatten(1))

    hooks = [
        reader.register_forward_pre_hook(functools.partial(look, part=part))
        for reader, part in zip(readers, layer.scaled, strict=True)
    ]
    try:
        with torch.no_grad():
            called(module, rows.take(slice(0, 2)).inputs)
    finally:
        for hook in hooks:
            hook.remove()
    values = torch.cat(seen, dim=1)
    return torch.where((values == values[:, :1]).all(1), values[:, 0], math.nan)


def _settle(module: nn.Module, layer: Layer, sinks: list[str], added: Tensor) -> None:
    """Add to the biases what goes there (k,), by entries of the output weights."""
    state, place = _state(module), 0
    with torch.no_grad():
        for part, name in zip(layer.scaled, sinks, strict=True):
            shape = state[part.name].movedim(part.axis, 0).shape[1:]
            size = part.repeats * part.block * math.prod(shape)
            values = added[place : place + size].reshape(part.repeats * part.block, shape[0], -1)
            state[name] += values.sum((0, 2)).to(state[name])
            place += size


# -- bounds -----------------------------------------------------------------------------------------------------------


def _change(module: nn.Module, f: Objective, layer: Layer, own: Neurons, errors: Tensor) -> float:
    """max over rows of sum_k L |a_k| |e_k . h|, as a length over the places of a row where it has several; inf where the layer is not a plain dense one."""
    if not errors.any():
        return 0.0
    part, reach = module.get_submodule(layer.writers[0]), _reach(own, errors)
    if not own.plain or not isinstance(part, nn.Linear) or not torch.isfinite(reach).all():
        return math.inf
    largest = 0.0
    read: list[Tensor] = []
    hook = part.register_forward_pre_hook(lambda _, given: read.append(given[0].detach().double().cpu()))
    try:
        for rows in f.rows.chunks(f.chunk):
            with torch.no_grad():
                called(module, rows.inputs)
            h = read.pop()
            off = h @ errors[:, : h.shape[-1]].T + (errors[:, -1] if own.biased else 0)
            largest = max(largest, float(_norms((off.abs() @ reach).reshape(len(rows), -1)).max()))
    finally:
        hook.remove()
    return largest


def _lipschitz_after(module: nn.Module, layer: Layer) -> float:
    """Of the map from what is read of the layer to the outputs: the product of spectral norms and of the activations' constants where the module is a chain of dense layers; else inf."""
    parts = dict(module.named_children()) if isinstance(module, nn.Sequential) else {}
    readers = {part.name.rpartition(".")[0] for part in layer.scaled}
    if len(readers) != 1 or not readers <= set(parts):
        return math.inf
    product = 1.0
    for part in list(parts.values())[list(parts).index(readers.pop()) + 1 :]:
        if isinstance(part, nn.Linear):
            product *= float(torch.linalg.matrix_norm(part.weight.detach().double(), 2))
        elif not isinstance(part, (nn.Flatten, nn.Dropout)):
            name = "leaky_relu" if isinstance(part, nn.LeakyReLU) else type(part).__name__.lower()
            product *= _character(module, name).lipschitz
    return product
