"""Inertia, the numbers of positive, zero and negative eigenvalues, and that of a widened network predicted from two small matrices a unit.

Letters: D parameters of the narrow network, D' of the wide one, q output parameters of a unit (their vector a), p input parameters of it (u), N rows,
alpha the ratio of a split, s the share of the unit's output that the split unit bears, r the rank of B.

A hidden unit enters what reads it as V(a) phi(x; u), linear in a. It is split: (u, (1 - alpha) a) and (u, alpha a). In the coordinates (theta, c, delta) of

    u_1 = u + alpha delta,   u_2 = u - (1 - alpha) delta,   a_1 = (1 - alpha) a - c,   a_2 = alpha a + c

the wide network's Hessian is, exactly and at any point, block-diagonal: that of the narrow network, and

    K = [[0, -B], [-B^T, alpha (1 - alpha) s G]],   B = d^2 S / da du (q, p),   G = d^2 S / du^2 (p, p),   S = <e, V(a) phi(u)>

where e, the slope of the loss by what the readers compute, is held fixed. For a dense layer S = E[(a.e) sigma(u.f)], f = (inputs, 1), so B = E[e (sigma' f)^T] and
G = E[(a.e) sigma'' f f^T]; for a channel of a convolution these are sums over positions too. By Sylvester's law In(H_wide) = In(H_narrow) + In(K), and
In(K) = (r, q - r, r) + In(alpha (1 - alpha) s Z^T G Z), Z a basis of null(B). So it changes with alpha at 0 and at 1 alone.
A null unit (zero weights) has a = 0, so G = 0, and where the readers have biases that take up its constant, it adds In([[0, -B], [-B^T, 0]]) = (r, q + p - 2 r, r).

Of an activation with kinks all this is the Hessian of the smooth pieces, which is asked for by name.

Sources: the congruence is derived here; it contains Fukumizu, Amari 2000 (scalar outputs: B = 0 at a critical point where a is not 0) and explains Zhang et al. 2021, figure 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from landscape import embeddings
from landscape.errors import LandscapeError, UsageError
from landscape.functionals import measure
from landscape.objectives import Network, Objective, leaves
from landscape.operators import SearchSpace, SymmetricOperator
from landscape.seeds import generator
from landscape.subspaces import span
from landscape.trajectories import Layout
from landscape.units import Layer, Slice, positions

# rounding of a Hessian and of its eigenvalues, in units of eps D |lambda|max: zeros at planted points of networks of 13 to 50 parameters came out at up to 0.08
ROUNDING = 10
# zeros along a manifold of critical points become +-|gradient| / |a| (a^T B is the gradient by u) where the point is that far from critical
SLOPES = 10
# eigenvalues within this factor of the cut, on either side, may lie on the wrong one
MARGIN = 10.0
# parameters up to which a matrix is formed: its eigenvalues take 5 s there on one core, and 8 D^2 bytes are 72 MB
DENSE = 3000


@dataclass(frozen=True)
class Inertia:
    """How many eigenvalues are positive, zero (at most `cut` in size) and negative."""

    positive: int
    zero: int
    negative: int
    cut: float
    gap: float  # the smallest |eigenvalue| above the cut over the largest below it; infinite where one side is empty or exactly 0, NaN where they were not computed
    ambiguous: bool  # eigenvalues lie within a factor of MARGIN of the cut, or were estimated with an error of half a count: the counts are not to be relied on

    @property
    def counts(self) -> tuple[int, int, int]:
        """(positive, zero, negative)."""
        return self.positive, self.zero, self.negative

    def __add__(self, other: Inertia) -> Inertia:
        """Of a block-diagonal matrix."""
        return Inertia(
            self.positive + other.positive,
            self.zero + other.zero,
            self.negative + other.negative,
            max(self.cut, other.cut),
            min(self.gap, other.gap),
            self.ambiguous or other.ambiguous,
        )


def inertia(
    matrix: np.ndarray | Tensor | SymmetricOperator, *, slope: float = 0.0, cut: float | None = None, seed: int = 0
) -> Inertia:
    """The inertia of a symmetric matrix (D, D), of eigenvalues (D,), or of an operator.

    Eigenvalues up to the cut in size are zeros: max(ROUNDING eps D |lambda|max, SLOPES slope).
    slope: |gradient| over the size of the weights, where the point is not quite critical: by about so much are the zeros of a critical point moved.
    cut: this one instead.
    Operators above DENSE dimensions are counted by Lanczos (`functionals.measure`): the counts are then estimates, and ambiguous where their error reaches half a count.
    Raises LandscapeError where the matrix is not finite, UsageError where it is not square.
    """
    if isinstance(matrix, SymmetricOperator):
        if matrix.dim > DENSE:
            return _counted(matrix, slope, cut, seed)
        eps = torch.finfo(matrix.dtype).eps
        matrix = matrix.dense()
    else:
        eps = float(torch.finfo(torch.float64).eps)
    values = np.asarray(matrix.detach().cpu() if isinstance(matrix, Tensor) else matrix, dtype=float)
    if not np.isfinite(values).all():
        raise LandscapeError("the matrix has entries that are not finite, so no inertia. See `landscape check`.")
    if values.ndim == 2:
        if values.shape[0] != values.shape[1]:
            raise UsageError(f"an inertia is of a square matrix (D, D) or of eigenvalues (D,); got {values.shape}.")
        values = np.linalg.eigvalsh((values + values.T) / 2)
    sizes = np.abs(values)
    tau = _cut(eps, len(values), float(sizes.max(initial=0.0)), slope) if cut is None else cut
    above, below = sizes[sizes > tau], sizes[sizes <= tau]
    lowest, highest = float(above.min(initial=math.inf)), float(below.max(initial=0.0))
    return Inertia(
        int(np.sum(values > tau)),
        len(below),
        int(np.sum(values < -tau)),
        tau,
        lowest / highest if highest > 0 else math.inf,
        bool(np.any((sizes > tau / MARGIN) & (sizes < tau * MARGIN))),
    )


def _cut(eps: float, dim: int, largest: float, slope: float) -> float:
    return max(ROUNDING * eps * dim * largest, SLOPES * slope)


def _counted(operator: SymmetricOperator, slope: float, cut: float | None, seed: int) -> Inertia:
    space = SearchSpace(operator, 20, generator=generator(seed, "inertia"), which="both")
    found = measure(operator, space=space, seed=seed)
    points, _ = found.all()
    tau = (
        _cut(torch.finfo(operator.dtype).eps, operator.dim, float(np.abs(points).max()), slope) if cut is None else cut
    )
    shares = (found.share(tau, math.inf), found.share(-math.inf, -tau))
    positive, negative = (round(share.value * operator.dim) for share in shares)
    open_ = max(share.error for share in shares) * operator.dim
    return Inertia(positive, operator.dim - positive - negative, negative, tau, math.nan, open_ >= 0.5)


# -- kinks ------------------------------------------------------------------------------------------------------------

# by torch's names: their slopes jump, or for the smooth ELU their slopes of slopes
_KINKED = frozenset(
    [
        "relu",
        "relu_",
        "relu6",
        "leaky_relu",
        "leaky_relu_",
        "prelu",
        "rrelu",
        "rrelu_",
        "threshold",
        "threshold_",
        "hardtanh",
        "hardtanh_",
        "hardsigmoid",
        "hardswish",
        "hardshrink",
        "softshrink",
        "elu",
        "elu_",
        "celu",
        "celu_",
        "selu",
        "selu_",
        "abs",
        "clamp",
        "clamp_min",
        "clamp_max",
        "clip",
        "maximum",
        "minimum",
        "amax",
        "amin",
        "max_pool1d",
        "max_pool2d",
        "max_pool3d",
        "adaptive_max_pool1d",
        "adaptive_max_pool2d",
        "adaptive_max_pool3d",
    ]
)


class _Seen(TorchFunctionMode):
    """Collects the names of kinked functions that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[str, None] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(getattr(func, "__name__", ""))
        if name in _KINKED:
            self.names[name.removesuffix("_")] = None
        return func(*args, **(kwargs or {}))


def kinks(f: Objective, theta: Tensor) -> tuple[str, ...]:
    """The functions with kinks that the network calls, by torch's names: found by running two rows, whichever way the code calls them."""
    with torch.no_grad(), _Seen() as seen:
        f.model.forward(f.model.split(theta), f.buffers, f.rows.take(slice(0, 2)).inputs, f.norm)
    return tuple(seen.names)


def require_smooth(f: Objective, theta: Tensor, *, pieces: bool) -> None:
    """Raise UsageError for a network with kinks, unless the Hessian of its smooth pieces is asked for."""
    if not pieces and (found := kinks(f, theta)):
        raise UsageError(
            f"the network calls {', '.join(found)}, which {'has' if len(found) == 1 else 'have'} no second derivative everywhere, so the loss has no Hessian there. "
            "Ask for the Hessian of the smooth pieces (pieces=True, or --pieces), or take a smooth activation such as tanh or gelu."
        )


# -- a unit's blocks --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Blocks:
    """B and G of one unit (see the head of this file): rows of B in the order of `scaled`, all else in that of `copies`, of the layer's trained parameters."""

    B: np.ndarray  # (q, p)
    G: np.ndarray  # (p, p)

    def K(self, ratio: float, share: float = 1.0) -> np.ndarray:
        """[[0, -B], [-B^T, ratio (1 - ratio) share G]] (q + p, q + p), in the coordinates (c, delta)."""
        q = len(self.B)
        found = np.zeros((q + len(self.G),) * 2)
        found[:q, q:], found[q:, :q] = -self.B, -self.B.T
        found[q:, q:] = ratio * (1 - ratio) * share * self.G
        return found

    def curvature(self, ratio: float, share: float = 1.0) -> np.ndarray:
        """K in orthonormal coordinates of the wide network, where c has length sqrt(2) and delta sqrt(ratio^2 + (1 - ratio)^2): its eigenvalues are slopes of slopes
        along unit vectors, as those of the wide Hessian are, and have one cut with these.
        """
        lengths = self.lengths(ratio)
        return self.K(ratio, share) / np.outer(lengths, lengths)

    def lengths(self, ratio: float) -> np.ndarray:
        """(q + p,) the lengths, among the wide network's parameters, of unit steps of c and delta."""
        q, p = self.B.shape
        return np.concatenate([np.full(q, math.sqrt(2)), np.full(p, math.hypot(ratio, 1 - ratio))])

    def escape(self, ratio: float, share: float = 1.0) -> tuple[float, np.ndarray]:
        """The lowest curvature of K along a unit vector of the wide network, and its coordinates (c, delta) (q + p,). It leads down where the curvature is negative."""
        values, vectors = np.linalg.eigh(self.curvature(ratio, share))
        vector = vectors[:, 0] * np.sign(vectors[np.abs(vectors[:, 0]).argmax(), 0])  # a sign rule: the same everywhere
        return float(values[0]), vector / self.lengths(ratio)


def predicted(narrow: Inertia, blocks: Blocks, ratio: float | Sequence[float]) -> Inertia:
    """The inertia of the wide network: one unit split with this ratio, or again and again with these, the unit itself and not a copy of it.

    narrow: that of the narrow network's Hessian, at the same point; its cut holds for K too, if it is the larger, since rounding does not know of blocks.
    Of a null unit: the blocks are those of the added unit in the wide network, and the ratio is 0.
    """
    found, share = narrow, 1.0
    for one in [ratio] if isinstance(ratio, (int, float)) else ratio:
        values = np.linalg.eigvalsh(blocks.curvature(one, share))
        own = inertia(values)
        found = found + (own if own.cut >= narrow.cut else inertia(values, cut=narrow.cut))
        share *= 1 - one
    return found


def equal_ratios(copies: int) -> list[float]:
    """The ratios by which one unit is split again and again into so many copies of equal shares, as in figure 3 of Zhang et al. 2021."""
    return [1 / left for left in range(copies, 1, -1)]


def blocks(f: Objective, theta: Tensor, layer: Layer, unit: int, *, pieces: bool = False) -> Blocks:
    """B and G of a unit at any point theta (D,) of an objective of a module: from activations where the layer is dense or a convolution, else by Hessian products.

    pieces: of networks with kinks (ReLU, max-pooling), the Hessian of the smooth pieces; these are refused otherwise, since they have no second derivative everywhere.
    Raises UsageError for a unit that is not there, a layer that cannot be split, kinks, and an objective that is restricted or of no module.
    """
    if f.charts or not isinstance(f.model, Network):
        raise UsageError("blocks are of units of a module: give the objective of a module, not restricted.")
    layer.checked(unit)
    require_smooth(f, theta, pieces=pieces)
    return by_activations(f, theta, layer, unit) or by_products(f, theta, layer, unit)


def by_products(f: Objective, theta: Tensor, layer: Layer, unit: int) -> Blocks:
    """B and G of a unit of any kind, from p products with the Hessian of the network with that unit split in halves, restricted to (c, delta)."""
    assert isinstance(f.model, Network)
    embedding = embeddings.split(f.module(theta), layer, unit, 0.5)
    wide, point = embedding.wide_objective(f), embedding.lift(theta)
    columns, q = directions(embedding.wide, layer.grown(layer.size + 1), unit, layer.size, 0.5, point)
    found = wide.restrict(span(point, columns)).hessian(point.new_zeros(len(columns)))
    products = (found @ torch.eye(len(columns), dtype=point.dtype, device=point.device)[:, q:]).double().cpu().numpy()
    bend = 4 * products[q:]
    return Blocks(-products[:q], (bend + bend.T) / 2)


def directions(wide: Layout, layer: Layer, unit: int, added: int, ratio: float, like: Tensor) -> tuple[Tensor, int]:
    """The columns of the congruence for (c, delta), as rows (q + p, D') over the wide network's parameters, and q. `layer` is that of the wide network."""
    outs = _places(wide, layer.scaled, unit), _places(wide, layer.scaled, added)
    ins = _places(wide, layer.copies, unit), _places(wide, layer.copies, added)
    q, p = len(outs[0]), len(ins[0])
    rows = torch.zeros(q + p, wide.dim, dtype=like.dtype, device=like.device)
    c, delta = torch.arange(q), torch.arange(q, q + p)
    rows[c, outs[0]], rows[c, outs[1]] = -1.0, 1.0
    rows[delta, ins[0]], rows[delta, ins[1]] = ratio, ratio - 1
    return rows, q


def scalings(layout: Layout, theta: Tensor, layers: Sequence[Layer]) -> int:
    """How many zeros of the Hessian at a critical point are scalings of homogeneous units: u -> t u, a -> a / t changes nothing, so (u, -a) is flat.

    Counted where they are independent, so not for units that are dead on both sides; of layers with one writer alone, since the running statistics of a BatchNorm are not scaled.
    """
    rows: list[Tensor] = []
    for layer in layers:
        if (
            set(layer.activation.split("+")) <= set(embeddings.HOMOGENEOUS)
            and layer.kind in ("dense", "channel")
            and len(layer.writers) == 1
        ):
            for unit in range(layer.size):
                row = torch.zeros_like(theta)
                for slices, sign in ((layer.copies, 1.0), (layer.scaled, -1.0)):
                    places = _places(layout, slices, unit).to(theta.device)
                    row[places] += sign * theta[places]
                rows.append(row)
    lengths = [row.norm() for row in rows]
    directions = [row / length for row, length in zip(rows, lengths, strict=True) if length > 0]
    return int(torch.linalg.matrix_rank(torch.stack(directions))) if directions else 0


def _places(layout: Layout, slices: Sequence[Slice], unit: int) -> Tensor:
    """Where a unit's slices lie in the flat vector of trained parameters."""
    found = positions(layout, slices, unit)
    return torch.cat(found) if found else torch.empty(0, dtype=torch.int64)


# -- from activations -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Chain:
    maker: str  # the module whose output is the pre-activation
    inputs: tuple[str, ...]  # which of its parameters are trained, in the layer's order: weight, bias
    readers: tuple[str, ...]


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# numbers that tangents of the layer take at once: 256 MiB in float64
TANGENTS = 2**25


def _chain(network: Network, layer: Layer) -> _Chain | None:
    """The maker and the readers of a layer of plain Linear modules and convolutions; None of any other, such as one with a BatchNorm of its own."""
    trained = {entry.name for entry in network.layout.of("parameter")}
    parts = dict(network.skeletons["eval"].named_modules())
    makers, readers = ([own.name.rpartition(".")[0] for own in owns] for owns in (layer.copies, layer.scaled))
    plain = (
        len(set(makers)) == 1
        and len(set(readers)) == len(readers)
        and all(own.repeats == 1 for own in (*layer.copies, *layer.scaled))
        and all(own.name.endswith(".weight") and own.name in trained for own in layer.scaled)
        and all(_plain(parts.get(name)) for name in (*makers, *readers))
    )
    if not plain:
        return None
    inputs = tuple(own.name.rpartition(".")[2] for own in layer.copies if own.name in trained)
    return _Chain(makers[0], inputs, tuple(readers))


def _plain(part: nn.Module | None) -> bool:
    return type(part) is nn.Linear or (
        isinstance(part, _CONVOLUTIONS) and type(part) in _CONVOLUTIONS and part.groups == 1
    )


def by_activations(f: Objective, theta: Tensor, layer: Layer, unit: int) -> Blocks | None:
    """B and G of a unit of a dense layer or a convolution, as sums over rows and positions; None where they are no such sums.

    What lies between the layer and what reads it (activation, pooling, flatten) is followed by its own derivatives. It is no sum over positions where the layer has a BatchNorm
    of its own, is read by anything but Linear modules and convolutions, or has a function that mixes positions (a softmax over them).
    """
    network = f.model
    assert isinstance(network, Network)
    chain = _chain(network, layer)
    if chain is None:
        return None
    skeleton = network.skeletons["eval" if f.norm == "eval" else "batch"]
    maker, readers = skeleton.get_submodule(chain.maker), [skeleton.get_submodule(name) for name in chain.readers]
    entries = {entry.name: entry for entry in network.layout.of("parameter")}
    rows = [own.index(unit, entries[own.name].shape) for own in layer.scaled]
    caught: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def catch(part: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        if part in caught:
            raise UsageError(f"a layer around {layer.name} is called more than once: its weights are shared.")
        caught[part] = given[0], made

    hooks = [part.register_forward_hook(catch) for part in (maker, *readers)]
    sums: list[Tensor] = []
    total = 0.0
    try:
        for chunk in f.rows.chunks(f.chunk):
            caught.clear()
            with torch.enable_grad():
                outputs = network.forward(leaves(network, theta), f.buffers, chunk.inputs, f.norm)[0]
                losses, weights = f.loss.rows(outputs, chunk.targets)
                made = [caught[part][1] for part in readers]
                errors = torch.autograd.grad(losses.sum(), made, retain_graph=True, materialize_grads=True)
                more = _sums(maker, readers, caught, errors, unit, chain.inputs, rows)
            if more is None:
                return None
            sums = [*more] if not sums else [old + new for old, new in zip(sums, more, strict=True)]
            total += float(weights.double().sum())
    finally:
        for hook in hooks:
            hook.remove()
    B, G = ((part / total).detach().double().cpu().numpy() for part in sums)
    return Blocks(B, G)


def _sums(
    maker: nn.Module,
    readers: Sequence[nn.Module],
    caught: dict[nn.Module, tuple[Tensor, Tensor]],
    errors: Sequence[Tensor],
    unit: int,
    inputs: Sequence[str],
    places: Sequence[Tensor],
) -> tuple[Tensor, Tensor] | None:
    """B and G of a chunk of rows, not yet divided by their weight; None where positions mix."""
    x, before = caught[maker]
    features = _features(maker, x.detach(), inputs)  # (p, n, positions)
    axis = 1 if isinstance(maker, _CONVOLUTIONS) else before.ndim - 1
    total = torch.stack([(e * caught[part][1]).sum() for e, part in zip(errors, readers, strict=True)]).sum()
    slope = torch.autograd.grad(total, before, create_graph=True)[0].select(axis, unit)  # z sigma'
    second = torch.zeros_like(slope)
    if slope.requires_grad:
        signs = (
            torch.where(torch.arange(slope.numel(), device=slope.device) % 3 == 0, -1.0, 1.0).to(slope).view_as(slope)
        )
        second, signed = (
            torch.autograd.grad(slope, before, weights, retain_graph=True, materialize_grads=True)[0].select(axis, unit)
            for weights in (torch.ones_like(slope), signs)
        )  # z sigma'', if the derivatives of slopes are a diagonal matrix
        if not torch.allclose(signed, signs * second, rtol=1e-4, atol=1e-4 * float(second.abs().max())):
            return None
    flat = features.flatten(1)
    G = (flat * second.flatten()) @ flat.T
    tangents = _tangents([caught[part][0] for part in readers], before, features, axis, unit)
    found = [
        _outgoing(part, e, tangent, own)
        for part, e, tangent, own in zip(readers, errors, tangents, places, strict=True)
    ]
    return torch.cat(found), G


def _features(maker: nn.Module, x: Tensor, inputs: Sequence[str]) -> Tensor:
    """The slopes of a unit's pre-activation by its trained weight and bias, (p, n, positions...): the inputs that it sees at each position, and 1."""
    if isinstance(maker, nn.Linear):
        seen = x.movedim(-1, 0)
    else:
        assert isinstance(maker, _CONVOLUTIONS)
        count = maker.weight[0].numel()
        taps = torch.eye(count, dtype=x.dtype, device=x.device).reshape(count, *maker.weight.shape[1:])
        seen = maker._conv_forward(x, taps, None).movedim(1, 0)  # one filter for each place of the window
    return torch.cat([seen if name == "weight" else torch.ones_like(seen[:1]) for name in inputs])


def _tangents(ends: Sequence[Tensor], before: Tensor, features: Tensor, axis: int, unit: int) -> list[Tensor]:
    """How what the readers see moves with each of the unit's input parameters: (p, *reader's input) each, in detail J t for tangents t of the pre-activation."""
    dummies = [torch.zeros_like(end, requires_grad=True) for end in ends]
    (pulled,) = torch.autograd.grad(list(ends), before, dummies, create_graph=True)  # J^T v, linear in v
    size = max(1, TANGENTS // max(before.numel(), *(end.numel() for end in ends)))
    found = []
    for first in range(0, len(features), size):
        along = before.new_zeros(len(features[first : first + size]), *before.shape)
        along.select(axis + 1, unit).copy_(features[first : first + size])
        found.append(torch.autograd.grad(pulled, dummies, along, is_grads_batched=True, retain_graph=True))
    return [torch.cat(pieces).detach() for pieces in zip(*found, strict=True)]


def _outgoing(reader: nn.Module, error: Tensor, tangent: Tensor, places: Tensor) -> Tensor:
    """<error, reader's linear map of the tangents> by the entries `places` of its weight: (q, p)."""
    if isinstance(reader, nn.Linear):
        columns, inverse = torch.unique(places % reader.in_features, return_inverse=True)
        moved = tangent[..., columns].flatten(1, -2)  # (p, rows and positions, columns)
        found = torch.einsum("no,pnk->okp", error.flatten(0, -2), moved)
        return found[places // reader.in_features, inverse]
    assert isinstance(reader, _CONVOLUTIONS)
    window = math.prod(reader.weight.shape[2:])
    channel = int(places[0]) // window % reader.in_channels
    moved = tangent[:, :, channel].movedim(0, 1)  # (n, p, positions): a filter's gradient over p channels at once
    weight = moved.new_zeros(reader.out_channels, len(tangent), *reader.weight.shape[2:], requires_grad=True)
    (found,) = torch.autograd.grad(reader._conv_forward(moved, weight, None), weight, error)
    found = found.flatten(2).movedim(1, 2)  # (out, window, p)
    return found[places // (window * reader.in_channels), places % window]
