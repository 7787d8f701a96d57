"""Embeddings of a narrow network into a wider one that keep outputs, criticality and curvature: affine maps theta -> A theta + c of parameters.

Letters: M parameters of the narrow network, M' of the wide one, m and m' units of a layer, K added units in all layers, N rows, k directions.

    e = embeddings.split(module, layer, unit=0, ratio=0.3)
    wide, point = e.wide_objective(f), e.lift(theta)      # the same outputs at every theta
    e.adjoint(wide.gradient(point))                       # A^T g' = g at every theta
    wide.restrict(e.subspace())                           # f itself, as an objective

Every entry of a wide tensor is a multiple of one entry of the narrow one, plus a constant: A has at most one number a row. Copies of a unit have its input side, and share its output
side out among them: shares beta_j of one unit sum to 1. Then the error that reaches copy j is beta_j times the narrow one, so that everywhere (`law`)

    g'(entry on an input side of copy j) = beta_j g,    g'(entry on an output side) = g.

Sources: Zhang, Zhang, Luo, Xu 2021 (splitting, null; theorems on criticality and degeneracy); the long version 2022 (general compatible, three-fold global); Zhang, Li, Zhang, Luo,
Xu 2024, "Geometry of critical sets" (inactive units); section 1 of the project's notes on these papers. For heads, gated units and residual sums the same algebra holds: what reads a
layer is linear in it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from landscape import units
from landscape.errors import UsageError, unknown
from landscape.objectives import Buffers, Network, Objective
from landscape.seeds import generator
from landscape.subspaces import Subspace
from landscape.trajectories import Layout
from landscape.units import Layer, Slice, positions

Policy = Literal["even", "random", "null"]
POLICIES: tuple[Policy, ...] = ("even", "random", "null")
# functions with s(c x) = c s(x) for c > 0: what an isometric split needs
HOMOGENEOUS = ("identity", "relu", "leaky_relu", "abs", "scale", "max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d")  # fmt: skip

# of a ratio: its square times eps is 1, so that A^T H A would be rounding alone in float64
FAR = 6e7

Move = tuple[Tensor, Tensor]  # derivatives of factor and constant (M',) by one free coefficient


@dataclass(frozen=True, eq=False)
class Embedding:
    """theta -> factor * theta[source] + constant. Build one with `split`, `null`, `inactive`, `to_width`, `compatible`, ...; `second @ first` composes."""

    narrow: Layout
    wide: Layout
    module: nn.Module  # the wide network at the narrow one's present parameters, in eval mode
    source: Tensor  # (M',) int64: the narrow entry each wide one stands for, -1 for none
    factor: Tensor  # (M',) float64
    constant: Tensor  # (M',) float64
    law: Tensor  # (M',) g' = law * g[source]; NaN where the narrow gradient does not determine it
    widen: Callable[[Buffers], Buffers]  # buffers of the narrow network -> of the wide one
    moves: Callable[[], Iterator[Move]]  # one a free coefficient
    freedom: int  # how many of these
    flat: bool  # whether lift(theta) + sum t_i v_i is critical where theta is, for every t: of splits and null units; general coefficients are coupled
    words: str

    def lift(self, theta: Tensor) -> Tensor:
        """The wide parameters (..., M') of narrow ones (..., M)."""
        return self._part(theta, self.factor) + self.constant.to(theta)

    def push(self, v: Tensor) -> Tensor:
        """A v: the direction (..., M') of a direction (..., M)."""
        return self._part(v, self.factor)

    def adjoint(self, g: Tensor) -> Tensor:
        """A^T g': (..., M') -> (..., M)."""
        if g.shape[-1] != self.wide.dim:
            raise UsageError(
                f"gradients of the wide network ({self.words}) have {self.wide.dim} entries; got {tuple(g.shape)}."
            )
        used = self.source >= 0
        parts = (g * self.factor.to(g))[..., used.to(g.device)]
        return g.new_zeros(*g.shape[:-1], self.narrow.dim).index_add(-1, self.source[used].to(g.device), parts)

    def subspace(self) -> Subspace:
        """The map as an affine subspace of the wide parameters: an objective restricted to it is the narrow one."""
        return Subspace(self.constant, self.narrow.dim, self.push, self.adjoint)

    def directions(self, theta: Tensor) -> Tensor:
        """The derivatives (k, M') of the lifted point by the k free coefficients: of splits, v_1 ... v_K of the critical affine subspace lift(theta) + sum t_i v_i.

        One is zero where its unit has no output weights. (k, M') numbers: of a very wide network ask `moves` for one after the other.
        """
        found = [self._part(theta, factor) + constant.to(theta) for factor, constant in self.moves()]
        return torch.stack(found) if found else theta.new_zeros(0, self.wide.dim)

    def wide_objective(self, f: Objective) -> Objective:
        """The objective of the wide network with the loss and the rows of `f`, and its buffers widened."""
        if f.charts:
            raise UsageError("an embedding is of whole parameter vectors: give the objective that is not restricted.")
        _same(f.model.layout, self.narrow)
        network, _, own = Network.of(self.module, f.device, f.dtype)
        return dataclasses.replace(f, model=network, buffers={**own, **self.widen(f.buffers)})

    def __matmul__(self, first: Embedding) -> Embedding:
        """The composition: `first`, then this one, which has to be made from `first.module`."""
        _same(first.wide, self.narrow)
        inner, known = self.source.clamp_min(0), self.source >= 0

        def through(values: Tensor, factor: Tensor) -> Tensor:
            return torch.where(known, values[inner], torch.zeros((), dtype=values.dtype)) * factor

        def moves() -> Iterator[Move]:
            for factor, constant in first.moves():
                yield through(factor, self.factor), through(constant, self.factor)
            for factor, constant in self.moves():
                yield through(first.factor, factor), through(first.constant, factor) + constant

        return Embedding(
            first.narrow,
            self.wide,
            self.module,
            torch.where(known, first.source[inner], -1),
            through(first.factor, self.factor),
            through(first.constant, self.factor) + self.constant,
            torch.where(self.law == 0, 0.0, torch.where(known, first.law[inner], math.nan) * self.law),
            lambda buffers: self.widen(first.widen(buffers)),
            moves,
            first.freedom + self.freedom,
            first.flat and self.flat,
            f"{first.words}, then {self.words}",
        )

    def _part(self, theta: Tensor, factor: Tensor) -> Tensor:
        if theta.shape[-1] != self.narrow.dim:
            raise UsageError(
                f"this is an embedding ({self.words}) of a network of {self.narrow.dim} parameters; got a vector of shape {tuple(theta.shape)}. Embed the network it was made from."
            )
        picked = theta[..., self.source.clamp_min(0).to(theta.device)]
        return picked * torch.where(self.source >= 0, factor, 0.0).to(theta)


def _same(one: Layout, other: Layout) -> None:
    mine, theirs = ([(e.name, e.shape) for e in layout.of("parameter")] for layout in (one, other))
    if mine != theirs:
        different = next((f"{a} and {b}" for a, b in zip(mine, theirs, strict=False) if a != b), "one has more tensors")
        raise UsageError(
            f"an embedding of another network: {one.dim} and {other.dim} parameters ({different}). Make it from the module of the objective, or of the embedding before it."
        )


# -- what happens to one layer ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Growth:
    """How a layer of m units becomes one of m'."""

    layer: Layer
    source: Tensor  # (m',) the unit that each is a copy of, -1 for none
    rows: Tensor  # (m',) float64, what multiplies the input side
    shares: Tensor  # (m',) float64, what multiplies the output side: beta
    biases: Tensor  # (m',) float64, of units without source

    @staticmethod
    def of(
        layer: Layer, source: Tensor, shares: Tensor, rows: Tensor | None = None, biases: Tensor | None = None
    ) -> _Growth:
        own = (source >= 0).to(torch.float64)
        empty = torch.zeros_like(own)
        return _Growth(
            layer.checked(), source, own if rows is None else rows, shares * own, empty if biases is None else biases
        )

    @property
    def added(self) -> Tensor:
        """Units (K,) that are not the first copy of theirs."""
        seen: set[int] = set()
        fresh = [s < 0 or s in seen or bool(seen.add(s)) for s in self.source.tolist()]  # type: ignore[func-returns-value]
        return torch.tensor(fresh).nonzero().flatten()


def _layout(module: nn.Module) -> Layout:
    return Network.of(module, torch.device("cpu"), torch.float64)[0].layout


def _grow(
    module: nn.Module,
    growths: Sequence[_Growth],
    words: str,
    blocks: Mapping[str, Tensor] | None = None,
    moves: Callable[[], Iterator[Move]] | None = None,
    freedom: int | None = None,
    flat: bool = True,
) -> Embedding:
    """The embedding in which each layer grows so; blocks: by parameter that lies between two such layers, what is added to its factors (m', m') by unit."""
    module = getattr(module, "_orig_mod", module)
    narrow = _layout(module)
    wide_module = units.resized(module, {growth.layer: len(growth.source) for growth in growths})
    buffers = dict(module.named_buffers())
    tensors = dict(module.named_parameters()) | buffers
    blocks = blocks or {}
    offsets = {entry.name: entry.offset for entry in narrow.of("parameter")}
    sources, factors, constants, laws = [], [], [], []
    wide = _layout(wide_module)
    for entry in wide.of("parameter"):
        index, factor, law = _entry(entry.name, tuple(tensors[entry.name].shape), growths, blocks.get(entry.name))
        sources.append(torch.where(index >= 0, index + offsets[entry.name], -1).flatten())
        factors.append(torch.where(index >= 0, factor, 0.0).flatten())
        laws.append(law.flatten())
        # between units of which one is none of the narrow network's, a block holds the weights themselves
        constants.append(
            torch.where(index >= 0, 0.0, factor).flatten()
            if entry.name in blocks
            else torch.zeros(index.numel(), dtype=torch.float64)
        )
    constant = torch.cat(constants)
    for growth in growths:
        wider = growth.layer.grown(len(growth.source))
        for unit in (growth.source < 0).nonzero().flatten().tolist():
            constant[_bias(wider, unit, wide)] = growth.biases[unit]

    def widen(buffers: Buffers) -> Buffers:
        return {name: _copied(value, name, growths) for name, value in buffers.items()}

    embedding = Embedding(
        narrow,
        wide,
        wide_module,
        torch.cat(sources),
        torch.cat(factors),
        constant,
        torch.cat(laws),
        widen,
        moves or (lambda: _share_moves(growths, wide, {n: tuple(t.shape) for n, t in tensors.items()}, blocks)),
        sum(len(growth.added) for growth in growths) if freedom is None else freedom,
        flat,
        words,
    )
    trained = {entry.name for entry in wide.of("parameter")}
    with torch.no_grad():  # what no vector holds
        for name, tensor in [*wide_module.named_parameters(), *wide_module.named_buffers()]:
            if name not in trained:
                old = tensors[name].detach()
                index, factor, _ = _entry(name, tuple(old.shape), growths)
                values = old.flatten()[index.clamp_min(0).to(old.device)]
                tensor.copy_(_copied(old, name, growths) if name in buffers else values * factor.to(old))
    _write(embedding, module)
    return embedding


def _entry(
    name: str, shape: Sequence[int], growths: Sequence[_Growth], block: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Of one wide tensor, entry by entry: the flat narrow entry (-1 for none), the factor, the law."""
    index = torch.arange(math.prod(shape)).reshape(tuple(shape))
    factor, error, feature = (torch.ones((), dtype=torch.float64) for _ in range(3))
    none, own = (torch.zeros((), dtype=torch.bool) for _ in range(2))
    numbers: dict[str, Tensor] = {}
    for growth in growths:
        for side, parts in (("row", growth.layer.copies), ("column", growth.layer.scaled)):
            for part in parts:
                if part.name != name:
                    continue
                index = index.index_select(part.axis, part.places(growth.source.clamp_min(0)))
                new = growth.source < 0
                none = none | _along(part, new, len(shape))
                numbers[side] = _along(part, torch.arange(len(growth.source)), len(shape))
                if side == "row":
                    factor = factor * _along(part, growth.rows, len(shape))
                    error = error * _along(part, growth.shares, len(shape))
                else:
                    factor = factor * _along(part, growth.shares, len(shape))
                    feature = feature * _along(part, growth.rows, len(shape))
                    own = own | _along(part, new, len(shape))
    if block is not None:
        factor = factor + block[numbers["row"], numbers["column"]]
    # no error reaches a copy of share 0, whatever it reads
    law = torch.where(error == 0, 0.0, torch.where(own, math.nan, error * feature))
    return torch.where(none, -1, index), factor.expand(index.shape), law.expand(index.shape)


def _along(part: Slice, values: Tensor, ndim: int) -> Tensor:
    """One value a unit (m',), along the axis of a tensor."""
    shape = [1] * ndim
    shape[part.axis] = -1
    return part.spread(values).reshape(shape)


def _copied(value: Tensor, name: str, growths: Sequence[_Growth]) -> Tensor:
    """A wide buffer."""
    for growth in growths:
        for part in growth.layer.copies:
            if part.name == name:
                value = value.index_select(part.axis, part.places(growth.source.clamp_min(0)).to(value.device))
    return value


def _write(embedding: Embedding, module: nn.Module) -> None:
    """Have the trained parameters of the wide module be those of the narrow one, embedded."""
    tensors = dict(module.named_parameters())
    theta = torch.cat(
        [tensors[entry.name].detach().cpu().double().flatten() for entry in embedding.narrow.of("parameter")]
    )
    parameters = dict(embedding.module.named_parameters())
    lifted = embedding.lift(theta)
    with torch.no_grad():
        for entry in embedding.wide.of("parameter"):
            parameters[entry.name].copy_(lifted[entry.offset : entry.offset + entry.size].reshape(entry.shape))


def _trained(layer: Layer, layout: Layout) -> list[Slice]:
    names = {entry.name for entry in layout.of("parameter")}
    return [part for part in layer.copies if part.name in names]


def incoming(module: nn.Module, layer: Layer, unit: int) -> Tensor:
    """Positions (n,) in the flat vector of all that one unit of the layer reads by: weights, biases, norms, in the order of `layer.copies`."""
    layout = _layout(module)
    return torch.cat(positions(layout, layer.checked(unit).copies, unit))


def _bias(layer: Layer, unit: int, layout: Layout) -> Tensor:
    """Positions of the unit's last bias: what it answers where its weights are zero. Empty where it has none."""
    found = [
        places
        for part, places in zip(_trained(layer, layout), positions(layout, layer.copies, unit), strict=True)
        if part.name.endswith("bias")
    ]
    return found[-1] if found else torch.empty(0, dtype=torch.int64)


def _share_moves(
    growths: Sequence[_Growth], wide: Layout, shapes: Mapping[str, Sequence[int]], blocks: Mapping[str, Tensor]
) -> Iterator[Move]:
    """One a unit added: its share grows at the cost of the first copy's, or, of one of no narrow unit, its bias."""
    entries = {entry.name: entry for entry in wide.of("parameter")}
    for place, growth in enumerate(growths):
        wider = growth.layer.grown(len(growth.source))
        for unit in growth.added.tolist():
            factor, constant = (torch.zeros(wide.dim, dtype=torch.float64) for _ in range(2))
            if growth.source[unit] < 0:
                constant[_bias(wider, unit, wide)] = 1
                yield factor, constant
                continue
            family = growth.source == growth.source[unit]
            shift = torch.zeros_like(growth.shares)
            shift[unit], shift[family.nonzero()[0]] = 1, -1
            moved = [*growths[:place], dataclasses.replace(growth, shares=shift), *growths[place + 1 :]]
            for name in dict.fromkeys(part.name for part in growth.layer.scaled if part.name in entries):
                entry = entries[name]
                index, values, _ = _entry(name, shapes[name], moved)
                factor[entry.offset : entry.offset + entry.size] += torch.where(index >= 0, values, 0.0).flatten()
            own = torch.where(family, growth.shares, 0.0)
            for name in dict.fromkeys(part.name for part in growth.layer.copies if part.name in blocks):
                # the block's columns have to stay orthogonal to the shares, which turn
                turned = -torch.outer(own, shift @ blocks[name]) / own.square().sum()
                entry = entries[name]
                factor[entry.offset : entry.offset + entry.size] += _block(
                    name, shapes[name], growths, turned
                ).flatten()
            yield factor, constant


def _block(name: str, shape: Sequence[int], growths: Sequence[_Growth], block: Tensor) -> Tensor:
    """A block (m', m') by unit, spread over the entries of its wide tensor."""
    plain = [dataclasses.replace(growth, rows=torch.zeros_like(growth.rows)) for growth in growths]
    return _entry(name, shape, plain, block)[1]


# -- one step -----------------------------------------------------------------------------------------------------------


def split(module: nn.Module, layer: Layer, unit: int, ratio: float, *, decay: float = 0.0) -> Embedding:
    """Unit `unit` becomes two: it keeps the share 1 - ratio of its output side, and the last unit of the wide layer, its copy, has the share ratio, any number up to FAR in size.

    decay: the weight decay under which the network is critical. Plain splits keep no criticality under one and are refused; see `isometric`.
    """
    layer.checked(unit)
    _finite("ratio", ratio)
    if abs(ratio) > FAR:
        raise UsageError(
            f"a ratio of {ratio:g} leaves nothing but rounding of what two copies have together: take one of at most {FAR:g} in size."
        )
    if decay:
        raise UsageError(
            f"a split changes the sum of squares, so under weight decay {decay:g} a critical point does not stay one. Use isometric (activations {', '.join(HOMOGENEOUS)}, no norm), or leave the decay out."
        )
    shares = torch.ones(layer.size + 1, dtype=torch.float64)
    shares[unit], shares[-1] = 1 - ratio, ratio
    source = torch.tensor([*range(layer.size), unit])
    return _grow(
        module, [_Growth.of(layer, source, shares)], f"unit {unit} of {layer.name} split {1 - ratio:g} : {ratio:g}"
    )


def null(module: nn.Module, layer: Layer, bias: float = 0.0) -> Embedding:
    """One more unit, of zero input and output weights; `bias` is its last bias (0: what it has least need of).

    Critical where all that reads the layer has a bias and no zero padding, or where the unit's output at that bias is 0.
    Raises UsageError for a bias other than 0 where the layer has none.
    """
    _finite("bias", bias)
    layout = _layout(module)
    if bias and not len(_bias(layer.checked(), 0, layout)):
        raise UsageError(f"layer {layer.name} has no bias: its null units have bias 0, not {bias:g}.")
    source = torch.tensor([*range(layer.size), -1])
    ones = torch.ones(layer.size + 1, dtype=torch.float64)
    return _grow(
        module, [_Growth.of(layer, source, ones, biases=bias * ones)], f"a null unit in {layer.name}, bias {bias:g}"
    )


def inactive(module: nn.Module, layer: Layer, weights: Tensor) -> Embedding:
    """One more unit that nothing reads, of input side `weights` (n,) in the order of `incoming`.

    Critical where what reads the layer would have no gradient by it: E[e s(w x)] = 0.
    Raises UsageError for weights of another shape, and for a layer that reads itself (a residual stream): there input sides grow, too.
    """
    made = null(module, layer)
    places = torch.cat(positions(made.wide, layer.grown(layer.size + 1).copies, layer.size))
    if len(places) != len(incoming(module, layer, 0)):
        raise UsageError(f"layer {layer.name} reads itself; add a null unit there, or an inactive one elsewhere.")
    if weights.shape != places.shape:
        raise UsageError(
            f"a unit of {layer.name} reads by {len(places)} numbers ({', '.join(part.name for part in _trained(layer, made.narrow))}); got {tuple(weights.shape)}."
        )
    constant = made.constant.index_copy(0, places, weights.detach().cpu().double())
    words = f"an inactive unit in {layer.name}"
    embedding = dataclasses.replace(made, constant=constant, moves=lambda: iter(()), freedom=0, words=words)
    _write(embedding, module)
    return embedding


def isometric(module: nn.Module, layer: Layer, unit: int, ratio: float) -> Embedding:
    """As `split`, of 0 < ratio < 1, but both sides of the copies are multiplied by sqrt(1 - ratio) and sqrt(ratio): the sum of squares stays, and criticality under weight decay.

    Raises UsageError for activations that are not positively homogeneous, for gated units, heads and norms, and where the layer's tensors do not all move.
    """
    layer.checked(unit)
    _finite("ratio", ratio)
    if not 0 < ratio < 1:
        raise UsageError(f"an isometric split has a ratio between 0 and 1; got {ratio:g}.")
    layout = _layout(module)
    norms = [name for name in layer.writers if isinstance(_part(module, name), nn.modules.batchnorm._NormBase)]
    able = layer.kind in ("dense", "channel") and all(name in HOMOGENEOUS for name in layer.activation.split("+"))
    if not able or norms or len(_trained(layer, layout)) < len(layer.copies):
        why = (
            f"the norm {norms[0]}"
            if norms
            else f"{layer.kind} units with {layer.activation}"
            if not able
            else "tensors that are frozen"
        )
        raise UsageError(
            f"layer {layer.name} cannot be split isometrically: it has {why}. It needs units whose output is homogeneous in their weights: activations {', '.join(HOMOGENEOUS)}, and no norm."
        )
    roots = torch.ones(layer.size + 1, dtype=torch.float64)
    roots[unit], roots[-1] = math.sqrt(1 - ratio), math.sqrt(ratio)
    source = torch.tensor([*range(layer.size), unit])
    growth = _Growth.of(layer, source, roots, rows=roots)
    words = f"unit {unit} of {layer.name} split isometrically {1 - ratio:g} : {ratio:g}"
    return _grow(module, [growth], words, moves=lambda: iter(()), freedom=0)


def _part(module: nn.Module, name: str) -> nn.Module | None:
    return dict(module.named_modules()).get(name)


def _finite(what: str, number: float) -> None:
    if not math.isfinite(number):
        raise UsageError(f"a {what} is a finite number; got {number}.")


# -- many steps ---------------------------------------------------------------------------------------------------------


def to_width(module: nn.Module, widths: Mapping[Layer, int], policy: Policy = "random", *, seed: int = 0) -> Embedding:
    """Composition of one-step embeddings to target widths, made at once.

    policy  random: units copied and shares drawn. even: one unit after the other, copies share equally. null: units added of zero weights
    """
    if policy not in POLICIES:
        raise unknown("policy", policy, POLICIES)
    if not widths:
        raise UsageError("no layer is given a width: name at least one.")
    growths = []
    for place, (layer, width) in enumerate(widths.items()):
        more = width - layer.checked().size
        if more < 0:
            raise UsageError(f"layer {layer.name} has {layer.size} units and cannot be widened to {width}.")
        draws = generator(seed, "embedding", place)
        if policy == "null":
            added = torch.full((more,), -1)
        elif policy == "even":
            added = torch.arange(more) % layer.size
        else:
            added = torch.randint(layer.size, (more,), generator=draws)
        source = torch.cat([torch.arange(layer.size), added])
        drawn = torch.randn(width, generator=draws, dtype=torch.float64) if policy == "random" else None
        growths.append(_Growth.of(layer, source, _shares(source, layer.size, drawn)))
    targets = ", ".join(f"{layer.name} {layer.size} to {width}" for layer, width in widths.items())
    return _grow(module, growths, f"{targets} ({policy})")


def _shares(source: Tensor, size: int, drawn: Tensor | None) -> Tensor:
    """Shares (m',) that sum to 1 in each family: equal ones, plus what is drawn less its mean there."""
    own, own_units = source >= 0, source.clamp_min(0)
    counts = torch.zeros(size, dtype=torch.float64).index_add(0, own_units, own.double())
    shares = torch.where(own, 1 / counts[own_units], 0.0)
    if drawn is None:
        return shares
    means = torch.zeros(size, dtype=torch.float64).index_add(0, own_units, torch.where(own, drawn, 0.0)) / counts
    return torch.where(own, shares + drawn - means[own_units], 0.0)


def compatible(
    module: nn.Module, maps: Mapping[Layer, Sequence[int] | int], *, seed: int = 0, size: float = 1.0
) -> Embedding:
    """A general compatible embedding, its coefficients drawn from all that solve the conditions of the source (2022, section 5), at scale `size`.

    maps: by layer, the unit that each wide unit is a copy of (-1: none), every unit at least once; or the width alone, and the map is drawn.

    Between two layers that both grow, W'_ij = a_ij W_I(i)I(j) with sum over copies j of a_ij = 1, and sum over copies i of b_i a_ij = b_j, the shares b. All solutions are
    a_ij = b_j + X_ij with X in the product of two null spaces: (K_l of them) times (K_(l-1)) free numbers, and K shares. Units of no narrow one feed only each other, so where there are some,
    the weights from them to copies stay 0 (the source cancels such inputs by biases; that part is left out).
    """
    growths = []
    for place, (layer, given) in enumerate(maps.items()):
        draws = generator(seed, "compatible", place)
        source = _map(layer.checked(), given, draws)
        drawn = size * torch.randn(len(source), generator=draws, dtype=torch.float64)
        shares = _shares(source, layer.size, drawn)
        biases = size * torch.randn(len(source), generator=draws, dtype=torch.float64)
        growths.append(_Growth.of(layer, source, shares, biases=biases))
    frames = {
        name: (_frame(rows, "row"), _frame(columns, "column")) for name, rows, columns in _between(module, growths)
    }
    blocks = {}
    for place, (name, (left, right)) in enumerate(frames.items()):
        draws = generator(seed, "compatible block", place)
        middle = size * torch.randn(
            sum(f.shape[1] for f in left), sum(f.shape[1] for f in right), generator=draws, dtype=torch.float64
        )
        middle[: left[0].shape[1], right[0].shape[1] :] = 0
        blocks[name] = torch.cat(left, 1) @ middle @ torch.cat(right, 1).T
    flat = not any(bool(block.any()) for block in blocks.values())
    return _coupled(module, growths, blocks, frames, "a general compatible embedding", flat=flat)


def threefold(module: nn.Module, layers: Sequence[Layer]) -> Embedding:
    """Three copies of all these layers that do not feed each other, read with factors 1, 1 and -1. A local minimum with a residual becomes a strict saddle."""
    growths = []
    for layer in layers:
        signs = torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64).repeat_interleave(layer.checked().size)
        growths.append(_Growth.of(layer, torch.arange(layer.size).repeat(3), signs))
    blocks = {
        name: torch.eye(3, dtype=torch.float64)
        .repeat_interleave(rows.layer.size, 0)
        .repeat_interleave(columns.layer.size, 1)
        - columns.shares
        for name, rows, columns in _between(module, growths)
    }
    return _coupled(module, growths, blocks, {}, "three-fold global splitting", flat=len(growths) == 1)


def twofold_null(module: nn.Module, layers: Sequence[Layer], *, seed: int = 0) -> Embedding:
    """All these layers doubled by units that read no narrow one and that none reads; among themselves their weights and biases are drawn. Critical where `null` is."""
    growths = []
    for place, layer in enumerate(layers):
        source = torch.cat([torch.arange(layer.checked().size), torch.full((layer.size,), -1)])
        biases = torch.randn(2 * layer.size, generator=generator(seed, "null", place), dtype=torch.float64)
        growths.append(_Growth.of(layer, source, torch.ones(2 * layer.size, dtype=torch.float64), biases=biases))
    blocks = {}
    for place, (name, rows, columns) in enumerate(_between(module, growths)):
        block = torch.zeros(2 * rows.layer.size, 2 * columns.layer.size, dtype=torch.float64)
        drawn = torch.randn(
            rows.layer.size, columns.layer.size, generator=generator(seed, "null block", place), dtype=torch.float64
        )
        block[rows.layer.size :, columns.layer.size :] = drawn
        blocks[name] = block
    return _coupled(module, growths, blocks, {}, "two-fold global null embedding", flat=True)


def _map(layer: Layer, given: Sequence[int] | int, draws: torch.Generator) -> Tensor:
    if isinstance(given, int):
        if given < layer.size:
            raise UsageError(f"layer {layer.name} has {layer.size} units and cannot be widened to {given}.")
        return torch.cat([torch.arange(layer.size), torch.randint(layer.size, (given - layer.size,), generator=draws)])
    missing = set(range(layer.size)) - set(given)
    if missing or min(given) < -1 or max(given) >= layer.size:
        raise UsageError(
            f"a map of layer {layer.name} names each of its units 0 to {layer.size - 1} at least once, and -1 for units that copy none; got {list(given)}."
        )
    return torch.tensor(given)


def _between(module: nn.Module, growths: Sequence[_Growth]) -> list[tuple[str, _Growth, _Growth]]:
    """Trained tensors that write one growing layer and read another, or the same in a residual stream: (name, the layer written, the layer read)."""
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    return [
        (row.name, rows, columns)
        for rows in growths
        for row in rows.layer.copies
        for columns in growths
        if row.name in trained and any(part.name == row.name for part in columns.layer.scaled)
    ]


def _frame(growth: _Growth, side: Literal["row", "column"]) -> tuple[Tensor, Tensor]:
    """Bases (m', k) of what may be added along one side of a block: vectors on copies orthogonal, family by family, to the shares (or to ones); and axes of units that copy none."""
    size = len(growth.source)
    families = torch.zeros(growth.layer.size, size, dtype=torch.float64)
    own = (growth.source >= 0).nonzero().flatten()
    families[growth.source[own], own] = growth.shares[own] if side == "row" else 1.0
    _, _, right = torch.linalg.svd(families[:, own])
    copies = torch.zeros(size, len(own) - growth.layer.size, dtype=torch.float64)
    copies[own] = right[growth.layer.size :].T
    return copies, torch.eye(size, dtype=torch.float64)[:, growth.source < 0]


_Frame = tuple[Tensor, Tensor]


def _coupled(
    module: nn.Module,
    growths: Sequence[_Growth],
    blocks: Mapping[str, Tensor],
    frames: Mapping[str, tuple[_Frame, _Frame]],
    words: str,
    *,
    flat: bool,
) -> Embedding:
    """The embedding of these growths and blocks; its free coefficients are the shares and what each block is a combination of."""
    made = _grow(module, growths, words, blocks, flat=flat)
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    entries = {entry.name: entry for entry in made.wide.of("parameter")}

    def moves() -> Iterator[Move]:
        yield from made.moves()
        for name, (left, right) in frames.items():
            entry = entries[name]
            where = slice(entry.offset, entry.offset + entry.size)
            known = made.source[where] >= 0
            for a, b in _pairs(left, right):
                values = _block(name, shapes[name], growths, torch.outer(a, b)).flatten()
                factor, constant = (torch.zeros(made.wide.dim, dtype=torch.float64) for _ in range(2))
                factor[where], constant[where] = torch.where(known, values, 0.0), torch.where(known, 0.0, values)
                yield factor, constant

    free = sum(len(list(_pairs(left, right))) for left, right in frames.values())
    return dataclasses.replace(made, moves=moves, freedom=made.freedom + free)


def _pairs(left: _Frame, right: _Frame) -> Iterator[tuple[Tensor, Tensor]]:
    """All products of directions but those from units that copy none to copies."""
    for kind, rows in enumerate(left):
        for other, columns in enumerate(right):
            if kind >= other:
                yield from ((a, b) for a in rows.T for b in columns.T)


# -- symmetries ---------------------------------------------------------------------------------------------------------

# functions with s(-x) = -s(x)
ODD = ("tanh", "softsign", "sin", "erf", "tanhshrink", "atan", "sinh", "scale")


def canonical(module: nn.Module, layers: Sequence[Layer], theta: Tensor) -> Tensor:
    """The point (M,) that stands for theta (M,) and all its images under trivial symmetries of these layers, in the order in which one row passes them; the function is the same.

    Homogeneous activations: both sides of a unit get one norm. Odd ones: the largest entry of the input side is positive. All: units in the order of their input sides, the largest first.
    Raises UsageError for layers with a norm's statistics, which belong to no point, and for vectors of another network.
    """
    layout = _layout(module)
    if theta.shape != (layout.dim,):
        raise UsageError(f"a point of this network has shape ({layout.dim},); got {tuple(theta.shape)}.")
    entries = layout.of("parameter")
    for layer in layers:
        if len(_trained(layer.checked(), layout)) < len(layer.copies):
            raise UsageError(
                f"layer {layer.name} holds tensors that no vector has (statistics, frozen ones): its units cannot be moved. Leave it out."
            )
        inner = (
            torch.stack([theta[torch.cat(positions(layout, layer.copies, unit))] for unit in range(layer.size)])
            .cpu()
            .double()
        )
        outer = torch.stack([theta[torch.cat(positions(layout, layer.scaled, unit))] for unit in range(layer.size)])
        rows = torch.ones(layer.size, dtype=torch.float64)
        functions = set(layer.activation.split("+"))
        if layer.kind in ("dense", "channel") and functions <= set(HOMOGENEOUS):
            norms = inner.norm(dim=1), outer.cpu().double().norm(dim=1)
            alive = (norms[0] > 0) & (norms[1] > 0)  # of a unit that is not read, or reads nothing, no scale is the one
            rows = torch.where(alive, (norms[1] / norms[0]).sqrt(), 1.0)
        elif layer.kind in ("dense", "channel") and functions <= set(ODD):
            largest = inner.gather(1, inner.abs().argmax(1, keepdim=True))[:, 0]
            rows = torch.where(largest < 0, -1.0, 1.0).double()
        keys = (rows.unsqueeze(1) * inner).tolist()
        order = torch.tensor(sorted(range(layer.size), key=lambda unit: keys[unit], reverse=True))
        growth = _Growth.of(layer, order, 1 / rows[order], rows=rows[order])
        moved = []
        for entry in entries:
            index, factor, _ = _entry(entry.name, entry.shape, [growth])
            own = theta[entry.offset : entry.offset + entry.size]
            moved.append((own[index.to(own.device)] * factor.to(own)).flatten())
        theta = torch.cat(moved)
    return theta


def surjections(r: int, m: int) -> int:
    """G(r, m): maps of m units onto r, so the number of affine subspaces that symmetry makes of one irreducible point of r units in a layer of m (Simsek et al. 2021)."""
    return sum((-1) ** (r - i) * math.comb(r, i) * i**m for i in range(r + 1))


def manifolds(r: int, m: int) -> int:
    """T(r, m) = sum_j G(r + j, m) / j!: ways to part m units in r groups with names, none empty, and any number without (units whose outputs cancel): subspaces of global minima."""
    return sum(surjections(r + j, m) // math.factorial(j) for j in range(m - r + 1))


# -- checks -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Check:
    """One number that has to be small, the size that rounding gives it at most, and why."""

    value: float
    tolerance: float
    reason: str

    @property
    def passed(self) -> bool:
        """Whether it is (NaN is not)."""
        return self.value <= self.tolerance


# directions of A^T H A = H that are asked: random ones, of which a wrong entry anywhere shows in the first already
PROBES = 4
# the walk's coefficients are normal of this deviation: far beyond the ratios between 0 and 1, where copies nearly cancel
STRIDE = 3.0


def check(
    f: Objective, theta: Tensor, embedding: Embedding, *, curvature: bool = True, seed: int = 0
) -> dict[str, Check]:
    """What an embedding promises, measured at the point theta (M,) of the narrow objective f, critical or not.

    output      max |f'(x) - f(x)| over rows
    law         max |g' - law g|: each entry of the wide gradient is the narrow one's times a share (those that the narrow gradient does not determine are left out)
    adjoint     max |A^T g' - g|
    curvature   max |A^T H' A v - H v| over PROBES random unit vectors; left out on request (an activation without second derivatives)
    critical    max |g'|, which the narrow gradient bounds
    walk        max |loss change| at a random point of the critical affine subspace, coefficients normal of deviation STRIDE; and `walk gradient`, as `critical`. Where there is
                such a subspace (`flat`): of compositions of splits and null units

    Tolerances are bounds on rounding: eps times how many numbers are added up one after the other, times how large these are. Use float64.
    """
    wide, point = embedding.wide_objective(f), embedding.lift(theta)
    eps = torch.finfo(f.dtype).eps
    tensors = embedding.wide.of("parameter")
    fan = max(math.prod(entry.shape[1:]) for entry in tensors)
    terms = fan * sum(len(entry.shape) > 1 for entry in tensors)
    outputs, wide_outputs = f.outputs(theta), wide.outputs(point)
    g, wide_g = f.gradient(theta), wide.gradient(point)
    # at a critical point the gradient is a difference of equal halves: their size is that of the numbers added up
    half = f.on(slice(0, (len(f.rows) + 1) // 2))
    slope = max(_largest(g), _largest(half.gradient(theta)))
    grown = theta.new_zeros(embedding.narrow.dim).index_add(
        0, embedding.source.clamp_min(0).to(theta.device), embedding.factor.abs().to(theta)
    )
    copies = max(1.0, _largest(grown))
    size = max(1.0, _largest(outputs))
    why = f"rounding: eps {eps:.1e} x {terms} terms through all layers x {copies:.3g}, the sum of absolute shares"
    rows = terms + len(f.rows)
    summed = f"rounding: eps {eps:.1e} x {rows} terms x {copies:.3g}, the sum of absolute shares, x {slope:.2g}, the gradient of half the rows"
    law = embedding.law.to(g)
    expected = torch.where(embedding.source.to(g.device) >= 0, g[embedding.source.clamp_min(0).to(g.device)], 0.0)
    # a law of 0 holds whatever the entry stands for
    gap = torch.where(law == 0, wide_g, wide_g - law * expected)
    rounding = eps * rows * copies * slope
    found = {
        "output": Check(
            _largest(wide_outputs - outputs), eps * terms * copies * size, f"{why}, x {size:.2g}, the largest output"
        ),
        "law": Check(_largest(gap[~law.isnan()]), rounding, summed),
        "adjoint": Check(
            _largest(embedding.adjoint(wide_g) - g), rounding * copies, f"{summed}, x the same sum, by which A^T adds"
        ),
    }
    if curvature:
        v = torch.randn(len(theta), PROBES, generator=generator(seed, "embedding check"), dtype=torch.float64).to(theta)
        v = v / v.norm(dim=0)
        bent = f.hessian(theta) @ v
        back = embedding.adjoint((wide.hessian(point) @ embedding.push(v.T).T.contiguous()).T).T
        scale = max(_largest(bent), _largest(half.hessian(theta) @ v))
        found["curvature"] = Check(
            _largest(back - bent),
            eps * rows * copies * copies * scale,
            f"rounding: eps {eps:.1e} x {rows} terms x {copies:.3g} squared, the sum of absolute shares, x {scale:.2g}, the largest H v of all or half the rows",
        )
    # an output of a unit of its own is at most 1 + |bias| for all usual activations
    own = 1 + _largest(embedding.constant)
    bound = max(1.0, _largest(law[~law.isnan()]))
    found["critical"] = Check(
        _largest(wide_g),
        bound * own * _largest(g) + rounding * own,
        f"shares up to {bound:.3g} x the narrow gradient's largest entry {_largest(g):.2e}; {summed}",
    )
    if embedding.flat and embedding.freedom:
        drawn = STRIDE * torch.randn(
            embedding.freedom, generator=generator(seed, "embedding walk"), dtype=torch.float64
        )
        walked = point.clone()
        for step, (factor, constant) in zip(drawn.tolist(), embedding.moves(), strict=True):
            walked += step * (embedding._part(theta, factor) + constant.to(theta))
        stride = float(drawn.abs().sum())
        far = (copies + stride) / copies
        found["walk"] = Check(
            abs(float(wide(walked) - f(theta))),
            eps * terms * (copies + stride) * max(size**2, abs(float(f(theta)))),
            f"{why}, {stride:.3g} more by the walk, x {size:.2g} squared, the largest output",
        )
        found["walk gradient"] = Check(
            _largest(wide.gradient(walked)),
            (bound + stride) * (own + stride) * _largest(g) + rounding * far * (own + stride),
            f"shares up to {bound + stride:.3g} x the narrow gradient's largest entry {_largest(g):.2e}; {summed}, {stride:.3g} more by the walk",
        )
    return found


def _largest(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0
