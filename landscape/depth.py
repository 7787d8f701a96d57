"""Depth: a layer inserted where it acts as an affine map on the rows at hand, the layers of which that is so, and the way back.

Letters: m units that a dense layer reads, k that it writes, q units inserted between, N rows, D parameters, M of them after a change.

    lift          W h + b  becomes  W' sigma(V h + c) + b',   with every V h + c of the rows in a piece where sigma(t) = slope t + offset,
                  W' slope V = W and b' = b - W' (slope c + offset)
    linearised    a layer whose every unit gives, on the rows, an affine function of what goes into its activation: the smallest correlation of a unit, and the residual of the best affine function
    merge         the layer and its reader become one dense layer

Unlike a split this holds ON THE ROWS only: an input that drives one unit out of its piece is answered otherwise, and more rows leave fewer lifts. Activations without an affine piece
(tanh) are nearly affine in a small range about 0: there the error is bounded, and stated.

Source: Bai, Luo, Xu, Zhang, "Embedding principle in depth for the loss landscape analysis of deep neural networks": the abstract and the mathematics; its own figures are not used.
"""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from landscape.errors import UsageError, unknown
from landscape.networks import ACTIVATIONS
from landscape.objectives import Objective, called
from landscape.seeds import generator
from landscape.units import Layer, whole_module

# of the range of what goes into an inserted activation, kept free to the ends of its piece: rounding then cannot push a row of the data over
MARGIN = 0.1
# half the range about 0 that stands for a piece where there is none: tanh is there within 3e-10 of the identity, a share of 3e-7, and the output weights grow to no more than a thousand times their size
SPREAD = 1e-3


@dataclass(frozen=True)
class Piece:
    """Where an activation is slope t + offset, or within cubic |t|^3 of it."""

    slope: float = 1.0
    offset: float = 0.0
    low: float = -math.inf
    high: float = math.inf
    cubic: float = 0.0


# By name in networks.ACTIVATIONS. Of a function with a bounded third derivative cubic = max |sigma'''| / 6 where sigma''(0) = 0: tanh 2/6, sigmoid (1/8)/6. gelu and silu are t to double precision
# from 9 and 40 on (their tails are t Q(t) and t e^-t); softplus is so by torch's own threshold from 20 on
PIECES: dict[str, Piece] = {
    "identity": Piece(),
    "relu": Piece(low=0.0),
    "leaky-relu": Piece(low=0.0),
    "elu": Piece(low=0.0),
    "gelu": Piece(low=9.0),
    "silu": Piece(low=40.0),
    "softplus": Piece(low=20.0),
    "tanh": Piece(low=-SPREAD, high=SPREAD, cubic=1 / 3),
    "sigmoid": Piece(slope=0.25, offset=0.5, low=-SPREAD, high=SPREAD, cubic=1 / 48),
}


@dataclass(frozen=True, eq=False)
class Deepened:
    """A network with one layer more, or one less, and its point."""

    f: Objective
    point: Tensor  # (M,)
    error: float  # bound on the change of what the layers concerned give on any row of the objective, in the largest entry: but for rounding 0 where the piece is affine


def lift(
    f: Objective, z: Tensor, reader: str, *, activation: str = "relu", width: int | None = None, seed: int = 0
) -> Deepened:
    """Insert a layer of `width` units before the dense layer named `reader`, at a point (D,): the outputs on the rows of f stay.

    activation  one of networks.ACTIVATIONS; where it has no affine piece the outputs stay nearly
    width       q, at least min(m, k): by default m, what the reader reads
    seed        of the orthonormal frame that the inserted weights are

    The reader becomes `reader.inserted`, `reader.activation`, `reader.output`.
    Raises UsageError for a layer that is no dense one, an activation that is not on the list and a width that is too small to pass on what the reader needs.
    """
    if activation not in ACTIVATIONS or activation not in PIECES:
        raise unknown("activation", activation, PIECES)
    module, piece = whole_module(f, z), PIECES[activation]
    part = _dense(module, reader)
    (read,), _ = _seen(module, f, [part])
    weight = part.weight.detach().double()
    k, m = weight.shape
    q = m if width is None else width
    if q < min(m, k):
        raise UsageError(f"{reader} maps {m} units to {k}: an inserted layer has at least {min(m, k)}; got {q}.")
    if q >= m:
        basis = torch.eye(m, dtype=torch.float64, device=weight.device)
    else:  # what the reader does not look at need not pass
        basis = torch.linalg.svd(weight, full_matrices=False).Vh
    draws = torch.randn(q, len(basis), generator=generator(seed, "inserted layer"), dtype=torch.float64)
    frame = torch.linalg.qr(draws).Q.to(weight.device)
    inner, outer = frame @ basis, weight @ basis.T @ frame.T  # outer @ inner = weight
    passed = read @ inner.T  # (N, q)
    low, high = passed.amin(0), passed.amax(0)
    middle, half = (low + high) / 2, (high - low) / 2
    # a unit that is the same on all rows may be moved as it is
    room = (1 + 2 * MARGIN) * torch.where(half > 0, half, 1.0)
    scale, shift = torch.ones_like(low), torch.zeros_like(low)
    if math.isfinite(piece.low) and math.isfinite(piece.high):
        scale = (piece.high - piece.low) / 2 / room
        shift = (piece.low + piece.high) / 2 - scale * middle
    elif math.isfinite(piece.low):
        shift = piece.low + room - middle
    inner, outer = inner * scale[:, None], outer / (piece.slope * scale)
    bias = part.bias.detach().double() if part.bias is not None else outer.new_zeros(k)
    bias = bias - outer @ (piece.slope * shift + piece.offset)

    deep = copy.deepcopy(module)
    new = OrderedDict(
        inserted=_linear(inner, shift, part), activation=ACTIVATIONS[activation](), output=_linear(outer, bias, part)
    )
    deep.set_submodule(reader, nn.Sequential(new).eval())
    error = float((outer.abs() @ (piece.cubic * (passed * scale + shift).abs().amax(0) ** 3)).max())
    return _objective(f, deep, error)


@dataclass(frozen=True, eq=False)
class Linearisation:
    """How far a layer's activation acts on the rows as an affine function, unit by unit."""

    layer: str
    slopes: Tensor  # (m,) of the least squares fit of what comes out on what goes in
    offsets: Tensor  # (m,)
    residuals: Tensor  # (m,) the largest distance from it over rows
    correlation: float  # the smallest of a unit; units that give the same for every row (dead ones) are affine and left out; NaN where all are
    residual: float  # the largest, as a share of the root mean square deviation of what comes out, over units and rows
    constant: int  # units that give the same for every row


def linearisation(f: Objective, z: Tensor, layer: Layer) -> Linearisation | None:
    """How far a layer (see units.layers) is linearised on the rows of f, at a point (D,). None where its readers do not read its units as they leave the activation (after pooling, say), or a unit is no single number a place (a head, a gated unit).

    The last module that writes the layer is taken to be what the activation reads.
    """
    if layer.kind not in ("dense", "channel"):
        return None
    module = whole_module(f, z)
    writer, reader = module.get_submodule(layer.writers[-1]), module.get_submodule(_reader(layer))
    (read,), (wrote,) = _seen(module, f, [reader], [writer])
    if read.shape != wrote.shape or read.shape[-1] != layer.size:
        return None
    middle, level = wrote.mean(0), read.mean(0)
    into, out = wrote - middle, read - level
    variance = into.square().sum(0)
    slopes = torch.where(variance > 0, (into * out).sum(0) / variance.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
    residuals = (out - slopes * into).abs().amax(0)
    spread = out.square().sum(0).sqrt()
    varies = spread > 0
    correlations = (into * out).sum(0)[varies] / (variance.sqrt() * spread)[varies]
    scale = out.square().mean().sqrt()
    return Linearisation(
        layer.name,
        slopes,
        level - slopes * middle,
        residuals,
        float(correlations.abs().min()) if varies.any() else math.nan,
        float(residuals.max() / scale) if scale > 0 else 0.0,
        int((~varies).sum()),
    )


def merge(f: Objective, z: Tensor, layer: Layer) -> Deepened:
    """The network without this layer: its weights and its reader's become one dense layer, as if its activation were the affine function that fits best on the rows. The error says how far it is not.

    Raises UsageError where the layer or its reader is not dense, or the activation is no module of its own that runs once, between the two.
    """
    module = whole_module(f, z)
    writer, reader = layer.writers[-1], _reader(layer)
    first, second = _dense(module, writer), _dense(module, reader)
    between = _between(module, f, first, second)
    found = linearisation(f, z, layer)
    if found is None or between is None or len(layer.writers) > 1 or len(layer.scaled) > 1:
        raise UsageError(
            f"layer {layer.name} cannot be merged with what reads it: it must be one dense layer, then one activation that is a module of its own, then one dense layer."
        )
    outer = second.weight.detach().double()
    weight = outer * found.slopes @ first.weight.detach().double()
    bias = outer @ found.offsets
    for part, factor in ((first, outer * found.slopes), (second, None)):
        if part.bias is not None:
            own = part.bias.detach().double()
            bias = bias + (own if factor is None else factor @ own)
    shallow = copy.deepcopy(module)
    for name in (writer, between):
        shallow.set_submodule(name, nn.Identity())
    shallow.set_submodule(reader, _linear(weight, bias, second))
    return _objective(f, shallow, float((outer.abs() @ found.residuals).max()))


def _reader(layer: Layer) -> str:
    return layer.scaled[0].name.rpartition(".")[0]


def _dense(module: nn.Module, name: str) -> nn.Linear:
    parts = {own: part for own, part in module.named_modules() if isinstance(part, nn.Linear)}
    if name not in parts:
        raise unknown("dense layer", name, parts)
    return parts[name]


def _linear(weight: Tensor, bias: Tensor, like: nn.Linear) -> nn.Linear:
    new = nn.Linear(weight.shape[1], len(weight), device=like.weight.device, dtype=like.weight.dtype)
    with torch.no_grad():
        new.weight.copy_(weight)
        new.bias.copy_(bias)
    return new.requires_grad_(like.weight.requires_grad)


def _objective(f: Objective, module: nn.Module, error: float) -> Deepened:
    g, point = Objective.of(module, f.loss, f.rows, device=f.device, dtype=f.dtype, chunk=f.chunk)
    return Deepened(g.with_buffers(g.buffers, f.norm), point, error)


def _seen(
    module: nn.Module, f: Objective, read: list[nn.Module], wrote: list[nn.Module] | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """What some modules read and others write on the rows of f, (samples, units) in float64: of a convolution each pixel is a sample."""
    given: dict[int, list[Tensor]] = {}

    def keep(number: int, part: nn.Module, tensor: Tensor) -> None:
        flat = tensor if isinstance(part, (nn.Linear, nn.LayerNorm)) else tensor.movedim(1, -1)
        given.setdefault(number, []).append(flat.detach().double().flatten(0, -2))

    parts = [(part, False) for part in read] + [(part, True) for part in wrote or []]
    hooks = [
        part.register_forward_hook(
            lambda part, inputs, out, number=number, writes=writes: keep(number, part, out if writes else inputs[0])
        )
        for number, (part, writes) in enumerate(parts)
    ]
    with _hooked(hooks), torch.no_grad():
        for rows in f.rows.chunks(f.chunk):
            called(module, rows.inputs)
    found = [torch.cat(given.get(number, [torch.zeros(0, 0)])) for number in range(len(parts))]
    return found[: len(read)], found[len(read) :]


def _between(module: nn.Module, f: Objective, first: nn.Module, second: nn.Module) -> str | None:
    """The module that reads what the first one writes, and writes what the second one reads; None where there is none, or it runs more than once."""
    calls: list[tuple[str, int, int]] = []
    held: list[object] = []  # tensors whose identity is compared must not make room for others

    def note(name: str, given: object, out: object) -> None:
        held.extend((given, out))
        calls.append((name, id(given), id(out)))

    hooks = [
        part.register_forward_hook(lambda _, given, out, name=name: note(name, given[0] if given else None, out))
        for name, part in module.named_modules()
        if not any(True for _ in part.children())
    ]
    with _hooked(hooks), torch.no_grad():
        called(module, f.rows.take(slice(0, 2)).inputs)
    names = {id(part): name for name, part in module.named_modules()}
    wrote = [out for name, _, out in calls if name == names[id(first)]]
    read = [given for name, given, _ in calls if name == names[id(second)]]
    for name, given, out in calls:
        if [given] == wrote and [out] == read and sum(other == name for other, _, _ in calls) == 1:
            return name
    return None


@contextmanager
def _hooked(hooks: list[torch.utils.hooks.RemovableHandle]) -> Iterator[None]:
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
