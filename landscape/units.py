"""Which hidden units a module has, and which entries of its parameters belong to each: what a unit reads by, and what reads the unit.

Letters: m units of a layer, n entries of a tensor, N rows.

    layers = units.layers(module, example)
    layer = units.find(layers, "linear1")
    layer.copies    # rows of weights, biases, norms: a copied unit copies them
    layer.scaled    # columns of all that reads it: a copied unit shares them out

The module is run once on the example, and each operation is followed by its meaning for axes. An axis is a product of atoms, row-major. Operations that pair two axes
(sums, products, contractions) make their atoms one; reshapes cut atoms in factors. What two atoms become one in this way holds: the gate and the up projection of a gated unit,
the writers of a residual sum, the q, k and v rows of a head. An atom that parameters write and that is none of the input and none of the output is a layer. Whatever an operation does with
an axis that copies of units would not survive (a norm over units, a mean of units, an operation that is not known) is kept as a reason against it.

What was found is then proved: every layer without a reason is given one more unit that nothing reads, and the outputs have to stay.

Sources: Zhang et al. 2021 and 2022 (which architectures the embedding principle holds for); sections 1.4 and 1.5 of the project's notes on it for heads, gated units and residual sums.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from landscape.errors import LandscapeError, UsageError, unknown
from landscape.objectives import Inputs, Objective, called
from landscape.trajectories import Layout

Kind = Literal["dense", "channel", "head", "glu"]

# a proof run is in float64: its rounding is some 1e-13 of the outputs, and what a missed reader does to them is of the outputs' own size or an error
PROVED = 1e-8


@dataclass(frozen=True)
class Slice:
    """The entries of one tensor that belong to one unit: axis `axis` counts (repeats, size, block), row-major, and the unit is the middle index.

    repeats   2 for gate and up projections in one weight, 3 for q, k and v
    block     the pixels of a channel after flatten, the dimension of a head
    """

    name: str  # parameter or buffer
    axis: int
    size: int  # m
    block: int = 1
    repeats: int = 1

    @property
    def extent(self) -> int:
        """The length of the axis."""
        return self.repeats * self.size * self.block

    def index(self, unit: int, shape: Sequence[int]) -> Tensor:
        """Positions (n,) of the unit's entries in the flat tensor of this shape, in an order that is the same for all units."""
        if not 0 <= unit < self.size or shape[self.axis] != self.extent:
            raise UsageError(
                f"{self.name} of shape {tuple(shape)} has no unit {unit} along axis {self.axis}: {self.size} units are known, counted from 0."
            )
        places = torch.arange(math.prod(shape)).reshape(tuple(shape)).movedim(self.axis, 0)
        return places.reshape(self.repeats, self.size, self.block, -1)[:, unit].flatten()

    def places(self, source: Tensor) -> Tensor:
        """Where on the axis the entries (repeats m' block,) of units `source` (m',) lie, for `index_select`."""
        grid = torch.arange(self.extent).reshape(self.repeats, self.size, self.block)
        return grid[:, source].flatten()

    def spread(self, values: Tensor) -> Tensor:
        """One value a unit (m',), of all entries on the axis (repeats m' block,)."""
        return values.reshape(1, -1, 1).expand(self.repeats, -1, self.block).flatten()

    def grown(self, size: int) -> Slice:
        """The slice in a layer of another size."""
        return dataclasses.replace(self, size=size)


def positions(layout: Layout, slices: Sequence[Slice], unit: int) -> list[Tensor]:
    """Where, in the flat vector (D,) of trained parameters, a unit's slices lie, tensor by tensor; tensors that no vector holds are left out."""
    entries = {entry.name: entry for entry in layout.of("parameter")}
    return [entries[own.name].offset + own.index(unit, entries[own.name].shape) for own in slices if own.name in entries]  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """One hidden layer. Declare one by hand where the module cannot be followed: then what it says is taken as true."""

    name: str  # of the first module that writes it
    size: int  # m
    kind: Kind
    activation: str  # torch's name of the function; several joined by "+"; "identity" where there is none
    copies: tuple[Slice, ...]  # parameters and buffers that a copy of a unit copies
    scaled: tuple[Slice, ...]  # parameters that copies of a unit share out among them
    refusals: tuple[str, ...] = ()  # why splitting is not exact here; empty where it is
    sizes: tuple[tuple[int, int, int], ...] = ()  # (call, axis, entries a unit): reshapes with written-out sizes

    def __str__(self) -> str:
        return f"{self.name} ({self.size} {self.kind} units, {self.activation})"

    @property
    def writers(self) -> tuple[str, ...]:
        """Modules with entries that are copied."""
        return tuple(dict.fromkeys(_owner(part.name) for part in self.copies))

    def checked(self, unit: int | None = None) -> Layer:
        """The layer itself. Raises UsageError where it refuses, or has no such unit."""
        if self.refusals:
            raise UsageError(
                f"layer {self.name} cannot be split: {'; '.join(self.refusals)}. Choose another layer, or change the network there."
            )
        if unit is not None and not 0 <= unit < self.size:
            raise UsageError(f"layer {self.name} has no unit {unit}: it has {self.size}, counted from 0.")
        return self

    def grown(self, size: int) -> Layer:
        """The same layer with another number of units."""
        return dataclasses.replace(
            self,
            size=size,
            copies=tuple(part.grown(size) for part in self.copies),
            scaled=tuple(part.grown(size) for part in self.scaled),
        )


def find(layers: Sequence[Layer], name: str) -> Layer:
    """The layer of that name: its own, or that of any module that writes it. Raises UsageError where there is none."""
    for found in (
        [layer for layer in layers if layer.name == name],
        [layer for layer in layers if name in layer.writers],
    ):
        if found:
            return found[0]
    if not layers:
        raise UsageError(f"there is no layer {name!r}: no hidden layer was found in this network.")
    error = unknown("hidden layer", name, [layer.name for layer in layers])
    raise UsageError(f"{error} The input and the output layer keep their sizes.")


def layers(module: nn.Module, example: Inputs) -> tuple[Layer, ...]:
    """The hidden layers of the module, in the order in which one row passes them, with the reasons against those that cannot be split.

    example: inputs of a few rows, as the module takes them. Two rows do; of one row an axis of length 1 would be lost.
    Raises UsageError where the module cannot be run on them, or is TorchScript, which shows no operations.
    """
    if any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
        raise UsageError(
            "the model holds TorchScript, whose operations cannot be followed: give the module it was made from."
        )
    double = copy.deepcopy(getattr(module, "_orig_mod", module)).eval().to(torch.float64)
    follow = _Follow(double, dropping=module.training)
    try:
        with torch.no_grad(), follow:
            outputs = _called(double, example)
            follow.output(outputs)
    except LandscapeError:
        raise
    except Exception as error:
        raise UsageError(f"the network cannot be followed: it failed on the example ({error}).") from error
    return _proved(double, example, _tensors(outputs), follow.layers())


def whole_module(f: Objective, z: Tensor) -> nn.Module:
    """The module at a point (D,) of an objective that is not restricted. Raises UsageError where it is."""
    if f.charts:
        raise UsageError("units and layers are those of the whole network: take them before the objective is restricted.")  # fmt: skip
    return f.module(z)


def _called(module: nn.Module, inputs: Inputs) -> Any:
    def cast(tensor: Tensor) -> Tensor:
        return tensor.double() if tensor.is_floating_point() else tensor

    if isinstance(inputs, dict):
        return called(module, {name: cast(tensor) for name, tensor in inputs.items()})
    return called(module, tuple(cast(tensor) for tensor in ((inputs,) if isinstance(inputs, Tensor) else inputs)))


def _tensors(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    if isinstance(outputs, Mapping):
        outputs = list(outputs.values())
    if isinstance(outputs, (tuple, list)):
        return [tensor for part in outputs for tensor in _tensors(part)]
    return [outputs.logits] if isinstance(getattr(outputs, "logits", None), Tensor) else []


def _owner(name: str) -> str:
    """The module that holds a tensor; the tensor's own name where that is the whole network."""
    return name.rpartition(".")[0] or name


# -- more units -------------------------------------------------------------------------------------------------------


def widened(module: nn.Module, layer: Layer, count: int) -> nn.Module:
    """A copy in eval mode whose layer has `count` units more: copies of its last one that nothing reads, so that the outputs are the same."""
    return resized(module, {layer: layer.size + count})


def resized(module: nn.Module, sizes: Mapping[Layer, int]) -> nn.Module:
    """A copy in eval mode whose layers have these sizes, none smaller than before; the function is the same.

    `nn.MultiheadAttention` becomes `Heads`, whose heads need not fill the width of the stream. Where the forward writes sizes out (`view(n, t, 4, 8)`), they are
    replaced as they are passed.
    Raises UsageError for a layer that refuses, and for one that gets smaller or shares an axis with another (widen these one after the other).
    """
    sources, weights = {}, {}
    for layer, size in sizes.items():
        layer.checked()
        if size < layer.size:
            raise UsageError(f"layer {layer.name} has {layer.size} units and cannot be widened to {size}.")
        sources[layer] = torch.arange(size).clamp_max(layer.size - 1)
        weights[layer] = (torch.arange(size) < layer.size).to(torch.float64)
    return with_units(getattr(module, "_orig_mod", module), sources, weights).eval()


def with_units(
    module: nn.Module, units: Mapping[Layer, Tensor], weights: Mapping[Layer, Tensor] | None = None
) -> nn.Module:
    """A copy of a module whose layers have copies of their own units at these places (m,), what each gives times its weight (m,), by default 1.

    Raises UsageError where a layer is of another module, and for layers that share an axis.
    """
    made = copy.deepcopy(module)
    changes: dict[tuple[int, int], tuple[int, int]] = {}
    for layer, source in units.items():
        for part in layer.copies:
            _replace(made, part, source, None)
        for part in layer.scaled:
            _replace(made, part, source, None if weights is None else weights[layer])
        sizes = {(call, axis): (extent, extent // layer.size * len(source)) for call, axis, extent in layer.sizes}
        changes |= {place: change for place, change in sizes.items() if len(source) != layer.size}
    for layer in units:
        for name in {_owner(part.name) for part in (*layer.copies, *layer.scaled)}:
            _declare(made, name)
    _write_sizes(made, changes)
    return made


def _replace(module: nn.Module, part: Slice, source: Tensor, columns: Tensor | None) -> None:
    owner, _, name = part.name.rpartition(".")
    held = dict([*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)])
    if part.name not in held:
        raise UsageError(
            f"the network has no tensor {part.name!r}, that its layer names. Name the layers of this very network."
        )
    holder, old = module.get_submodule(owner), held[part.name]
    if old.ndim <= part.axis or old.shape[part.axis] != part.extent:
        raise UsageError(
            f"{part.name} has shape {tuple(old.shape)}, and along axis {part.axis} its layer says {part.extent}. Name the layers of this very network, and widen two that share an axis one after the other."
        )
    new = old.detach().index_select(part.axis, part.places(source).to(old.device))
    if columns is not None:
        shape = [1] * new.ndim
        shape[part.axis] = -1
        new = new * part.spread(columns).to(new).reshape(shape)
    if isinstance(old, nn.Parameter):
        new = nn.Parameter(new, requires_grad=old.requires_grad)
    setattr(holder, name, new)


def _declare(module: nn.Module, name: str) -> None:
    """Have a layer's attributes say what its tensors are."""
    try:
        part: Any = module.get_submodule(name)
    except AttributeError:  # a parameter of the network itself
        return
    above, _, last = name.rpartition(".")
    holder: Any = module.get_submodule(above)
    if isinstance(part, nn.MultiheadAttention):
        setattr(holder, last, Heads(part))
    elif isinstance(part, nn.Linear):
        part.out_features, part.in_features = part.weight.shape
        if isinstance(holder, nn.MultiheadAttention):
            _declare(module, above)
    elif isinstance(part, nn.modules.conv._ConvNd):
        first, second = part.weight.shape[:2]
        part.out_channels, part.in_channels = (second, first) if part.transposed else (first, second)
    elif isinstance(part, nn.modules.batchnorm._NormBase):
        part.num_features = len(next(t for t in (part.weight, part.running_mean) if t is not None))
    elif isinstance(part, nn.Embedding):
        part.num_embeddings, part.embedding_dim = part.weight.shape


class Heads(nn.Module):
    """Attention with any number of heads: `nn.MultiheadAttention` asks that they fill the width of the stream. Parameters bear the same names.

    It answers (outputs, None): weights averaged over heads would not be those of the narrow network. Masks are those of torch, but for one mask a head.
    """

    _qkv_same_embed_dim = False  # torch's encoder layers read it, and leave their fused path

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.in_proj_weight, self.in_proj_bias = attention.in_proj_weight, attention.in_proj_bias
        self.out_proj = attention.out_proj
        self.head_dim, self.batch_first = attention.head_dim, attention.batch_first
        self.train(attention.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """(N, T, E), or (T, N, E) where batch_first is false, or (T, E); and no weights."""
        turned = query.ndim == 3 and not self.batch_first
        given = [part.transpose(0, 1) if turned else part for part in (query, key, value)]
        weights = self.in_proj_weight.chunk(3)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        q, k, v = (
            torch.unflatten(nn.functional.linear(x, weight, bias), -1, (-1, self.head_dim)).transpose(-3, -2)
            for x, weight, bias in zip(given, weights, biases, strict=True)
        )
        scores = q @ k.transpose(-2, -1) / math.sqrt(self.head_dim)
        for mask in (attn_mask, None if key_padding_mask is None else key_padding_mask[..., None, None, :]):
            if mask is not None:
                scores = scores.masked_fill(mask, -math.inf) if mask.dtype == torch.bool else scores + mask
        mixed = (scores.softmax(-1) @ v).transpose(-3, -2).flatten(-2)
        answer = self.out_proj(mixed)
        return answer.transpose(0, 1) if turned else answer, None


_RESHAPES = ("view", "reshape", "unflatten")


class _Resizing(TorchFunctionMode):
    """While one forward runs: of its n-th reshape, the sizes to be changed are."""

    def __init__(self, changes: Mapping[tuple[int, int], tuple[int, int]]) -> None:
        super().__init__()
        self.changes, self.call = changes, -1

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _name(func) in _RESHAPES and not (len(args) > 1 and isinstance(args[1], torch.dtype)):
            self.call += 1
            first, sizes = _sizes(_name(func), args, kwargs)
            new = list(sizes)
            for place in range(len(sizes)):
                old, wide = self.changes.get((self.call, first + place), (0, 0))
                if sizes[place] == old:
                    new[place] = wide
            if new != list(sizes):
                return args[0].unflatten(first, new) if _name(func) == "unflatten" else args[0].reshape(new)
        return func(*args, **kwargs)


def _sizes(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[int, tuple[int, ...]]:
    """The first axis that a reshape makes, and the sizes it was given."""
    if name == "unflatten":
        axis = int(args[1] if len(args) > 1 else kwargs["dim"])
        return axis % args[0].ndim, tuple(args[2] if len(args) > 2 else kwargs["sizes"])
    given = args[1:] or (kwargs.get("shape", kwargs.get("size")),)
    return 0, tuple(given[0]) if isinstance(given[0], (tuple, list)) else tuple(given)


class _Sizes:
    """Two hooks around a forward."""

    def __init__(self, changes: dict[tuple[int, int], tuple[int, int]]) -> None:
        self.changes = changes
        self.running: list[_Resizing] = []

    def enter(self, module: nn.Module, args: Any) -> None:
        self.running.append(_Resizing(self.changes))
        self.running[-1].__enter__()  # type: ignore[no-untyped-call]

    def leave(self, module: nn.Module, args: Any, outputs: Any) -> None:
        self.running.pop().__exit__(None, None, None)  # type: ignore[no-untyped-call]


def _write_sizes(module: nn.Module, changes: dict[tuple[int, int], tuple[int, int]]) -> None:
    for hook in module._forward_pre_hooks.values():
        held = getattr(hook, "__self__", None)
        if isinstance(
            held, _Sizes
        ):  # widened before: its own sizes are seen as they are passed on, so the older come first
            held.changes = {
                key: (old, changes.pop(key, (0, new))[1]) for key, (old, new) in held.changes.items()
            } | changes
            return
    if changes:
        sizes = _Sizes(changes)
        module.register_forward_pre_hook(sizes.enter)
        module.register_forward_hook(sizes.leave, always_call=True)


# -- atoms of axes ----------------------------------------------------------------------------------------------------


class _Atom:
    """A factor of an axis. Those that operations pair are one (`same`), those that reshapes cut have parts."""

    def __init__(self, size: int, *, fixed: bool = False) -> None:
        self.size = size
        self.same: _Atom | None = None
        self.parts: tuple[_Atom, ...] = ()
        self.fixed = fixed  # of the input, the output or a position
        self.reasons: dict[str, None] = {}
        self.activations: dict[str, None] = {}
        self.kinds: set[str] = set()

    def leaves(self) -> list[_Atom]:
        """What it is now made of."""
        root = self
        while root.same is not None:
            root = root.same
        return [leaf for part in root.parts for leaf in part.leaves()] if root.parts else [root]

    def cut(self, first: int) -> None:
        """Of a leaf: (first, the rest)."""
        self.parts = (_Atom(first), _Atom(self.size // first))
        for part in self.parts:
            part.take(self)

    def take(self, other: _Atom) -> None:
        self.fixed |= other.fixed
        self.reasons |= other.reasons
        self.activations |= other.activations
        self.kinds |= other.kinds


_Axis = list[_Atom]


def _leaves(axis: Iterable[_Atom]) -> list[_Atom]:
    return [leaf for atom in axis for leaf in atom.leaves()]


def _size(axis: _Axis) -> int:
    return math.prod(atom.size for atom in axis)


def _refuse(axis: _Axis, reason: str) -> None:
    for leaf in _leaves(axis):
        leaf.reasons[reason] = None


def _fix(axis: Iterable[_Atom]) -> None:
    """It counts no units: positions, parts of a tensor, an end of the network."""
    for leaf in _leaves(axis):
        leaf.fixed = True


def _join(one: _Axis, other: _Axis) -> None:
    """Make two axes of one size one."""
    left, right = list(one), list(other)
    while left and right:
        left[:1], right[:1] = left[0].leaves(), right[0].leaves()
        a, b = left[0], right[0]
        if a is b:
            pass
        elif a.size == b.size:
            b.same = a
            a.take(b)
        elif b.size % a.size == 0:
            b.cut(a.size)
            continue
        elif a.size % b.size == 0:
            a.cut(b.size)
            continue
        else:
            _refuse([*left, *right], "two of its axes are paired that have no common factors")
            return
        del left[0], right[0]


def _regroup(axes: list[_Axis], shape: Sequence[int]) -> list[_Axis]:
    """The axes after a reshape to `shape`, row-major."""
    old, new = list(axes), list(shape)
    head: list[_Axis] = []
    tail: list[_Axis] = []
    # axes that stay are kept whole, so that those of length 1 stay where they are
    while old and new and _size(old[0]) == new[0]:
        head.append(old.pop(0))
        new.pop(0)
    while old and new and _size(old[-1]) == new[-1]:
        tail.insert(0, old.pop())
        new.pop()
    atoms = _leaves(atom for axis in old for atom in axis)
    if not new:
        _fix(atoms)
    middle: list[_Axis] = []
    for place, size in enumerate(new):
        made: _Axis = []
        if place == len(new) - 1:
            made, atoms = atoms, []
        while (_size(made) < size or not made) and atoms:
            atoms[:1] = atoms[0].leaves()
            rest = size // _size(made)
            if atoms[0].size <= rest and size % (_size(made) * atoms[0].size) == 0:
                made.append(atoms.pop(0))
            elif atoms[0].size % rest == 0:
                atoms[0].cut(rest)
            else:
                break
        if _size(made) != size:
            _refuse([*made, *atoms, *(a for axis in middle for a in axis)], "a reshape cuts across its units")
            return [*head, *([_Atom(n, fixed=True)] for n in new), *tail]
        middle.append(made or [_Atom(1, fixed=True)])
    return [*head, *middle, *tail]


@dataclass
class _Value:
    """What is known of one tensor: its axes and, of a parameter or a piece of one that nothing has computed with yet, its name and which of its axes these are."""

    axes: list[_Axis]
    name: str = ""
    piece: str = ""
    places: list[int] = dataclasses.field(default_factory=list)


# -- following one run ------------------------------------------------------------------------------------------------

_ACTIVATIONS = {
    "relu", "relu6", "leaky_relu", "prelu", "elu", "selu", "celu", "gelu", "silu", "mish", "tanh", "sigmoid", "logsigmoid", "softplus", "softsign",
    "hardtanh", "hardswish", "hardsigmoid", "tanhshrink", "threshold", "sin", "cos", "exp", "erf", "square", "pow", "abs", "sqrt",
}  # fmt: skip
# entry by entry, with broadcasting
_ENTRYWISE = _ACTIVATIONS | {
    "add", "radd", "iadd", "sub", "rsub", "isub", "mul", "rmul", "imul", "div", "truediv", "rdiv", "rtruediv", "itruediv", "rpow", "ipow", "neg",
    "clone", "contiguous", "detach", "to", "float", "double", "half", "type", "type_as", "maximum", "minimum", "where", "lerp", "clamp", "clip",
    "reciprocal", "rsqrt", "log", "log1p", "expm1", "erfc", "sign", "masked_fill", "addcmul", "addcdiv", "dropout", "dropout1d", "dropout2d",
    "dropout3d", "alpha_dropout", "feature_dropout", "requires_grad", "logical_not", "eq", "ne", "lt", "le", "gt", "ge", "float_power", "identity",
    "positive", "sinh", "cosh", "atan", "tan",
}  # fmt: skip
_PRODUCTS = {"mul", "rmul", "imul"}
# by a number these are a factor, which is told as "scale"
_SCALES = _PRODUCTS | {"div", "truediv", "itruediv", "neg", "positive"}
# with another tensor these are a bias or a sum of streams, and no function of a unit
_SUMS = {"add", "radd", "iadd", "sub", "rsub", "isub"}
_DROPOUTS = {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout"}
_SAME = _DROPOUTS | {"clone", "contiguous", "detach", "to", "float", "double", "half", "type", "type_as", "requires_grad", "identity"}  # fmt: skip
_LINEAR = {"linear", "matmul", "rmatmul", "mm", "bmm", "addmm", "baddbmm", "einsum", "mv", "dot"}
_OVER_AXES = {
    "sum", "mean", "softmax", "log_softmax", "softmin", "std", "var", "prod", "amax", "amin", "max", "min", "argmax", "argmin", "logsumexp", "norm",
    "normalize", "cumsum", "cumprod", "all", "any", "median", "sort", "topk",
}  # fmt: skip


def _name(func: Any) -> str:
    """torch's name of a function, method, operator or property, without underscores around."""
    name = getattr(func, "__name__", type(func).__name__)
    if name in ("__get__", "__set__"):  # a property of tensors
        name = getattr(func.__self__, "__name__", name) if name == "__get__" else name
        return f"property {name}"
    return str(name).strip("_")


class _Follow(TorchFunctionMode):
    """While one forward runs: what each operation does to the axes of what it takes."""

    def __init__(self, module: nn.Module, *, dropping: bool) -> None:
        super().__init__()
        self.module, self.dropping = module, dropping
        self.values: dict[int, _Value] = {}
        self.kept: list[Tensor] = []  # so that no id is given twice
        self.state: dict[str, _Value] = {}  # parameters and buffers, as they stand in the module
        self.columns: set[tuple[str, int]] = set()  # axes of parameters that are contracted with what they read
        self.used: dict[str, set[str]] = {}  # pieces of each, in the order of use
        self.reshapes: list[tuple[int, int, int, _Axis]] = []  # (call, axis, written size, what stands there)
        self.call = -1
        trained = {id(parameter) for parameter in module.parameters()}
        self.parameters = set()
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            value = _Value([[_Atom(n)] for n in tensor.shape], name, "", list(range(tensor.ndim)))
            self.values[id(tensor)] = self.state[name] = value
            self.state[name] = dataclasses.replace(value, axes=[list(axis) for axis in value.axes])
            if id(tensor) in trained:
                self.parameters.add(name)
            self.kept.append(tensor)

    # -- ends ----------------------------------------------------------------

    def output(self, outputs: Any) -> None:
        """The axes of what the network answers stay."""
        for tensor in _tensors(outputs):
            _fix(atom for axis in self.value(tensor).axes for atom in axis)

    def value(self, tensor: Tensor) -> _Value:
        """What is known of a tensor; of one never seen, that its axes are fixed."""
        if id(tensor) not in self.values:
            self.set(tensor, _Value([[_Atom(n, fixed=True)] for n in tensor.shape]))
        return self.values[id(tensor)]

    def set(self, tensor: Tensor, value: _Value) -> None:
        """Know it."""
        self.values[id(tensor)] = value
        self.kept.append(tensor)

    def use(self, value: _Value) -> None:
        """A parameter takes part in a computation. A second time is a tie."""
        if not value.name:
            return
        pieces = self.used.setdefault(value.name, set())
        if value.name in self.parameters and any(
            value.piece.startswith(piece) or piece.startswith(value.piece) for piece in pieces
        ):
            for axis in self.state[value.name].axes:
                _refuse(axis, f"{value.name} is used more than once (tied weights)")
        pieces.add(value.piece)

    def lose(self, name: str, given: Iterable[_Value]) -> None:
        """An operation that is not known took part of it."""
        for value in given:
            self.use(value)
            for axis in value.axes:
                _refuse(axis, f"the operation {name!r} is not known to keep units apart")

    # -- one operation -------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = _name(func)
        # known before the call: an operation in place changes what it takes
        given = [self.value(tensor) for tensor in _given((args, kwargs))]
        result = func(*args, **kwargs)
        made = _given(result)
        if not made or name == "property __set__":
            if name == "setitem":
                self.lose(name, given)
            return result
        if not given:
            for tensor in made:
                self.value(tensor)
            return result
        values = self.follow(name.removeprefix("property "), args, kwargs, given, made)
        if values is None:
            self.lose(name, given)
            values = [_Value([[_Atom(n, fixed=True)] for n in tensor.shape]) for tensor in made]
        for tensor, value in zip(made, values, strict=True):
            self.set(tensor, value)
        return result

    def follow(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], given: list[_Value], made: list[Tensor]
    ) -> list[_Value] | None:
        """The axes of what an operation made; None for one that is not known."""

        def at(place: int, key: str, default: Any = None) -> Any:
            return args[place] if len(args) > place else kwargs.get(key, default)

        def of(tensor: Tensor | None) -> _Value | None:
            return None if tensor is None else self.value(tensor)

        first, shape = given[0], made[0].shape
        if name in _ENTRYWISE:
            if name == "prelu":
                slopes = given[1]
                if slopes.axes[0][0].size > 1:
                    _join(first.axes[1], slopes.axes[0])
                    self.use(slopes)
                given = given[:1]
            if name in _DROPOUTS and self.dropping and at(1, "p", 0.5) > 0:
                for axis in first.axes:
                    _refuse(axis, "dropout in train mode draws one number a unit: call module.eval() first")
            self.act(name, given)
            return [self.entrywise(given, len(shape), product=name in _PRODUCTS)]
        if name in _LINEAR:
            return self.contraction(name, args, kwargs, given)
        if name.startswith("conv"):
            return self.convolution(name, args, kwargs, given, made[0])
        if name == "embedding":
            ids, weight = self.value(at(0, "input")), self.value(at(1, "weight"))
            self.use(weight)
            _fix(weight.axes[0])
            return [_Value([*ids.axes, weight.axes[1]])]
        if name in ("batch_norm", "instance_norm"):
            for value in given[1:]:
                self.use(value)
                _join(first.axes[1], value.axes[0])
            return [_Value(first.axes)]
        if name in ("layer_norm", "rms_norm"):
            count = len(at(1, "normalized_shape"))
            for value in given[1:]:
                self.use(value)
                for mine, theirs in zip(first.axes[-count:], value.axes, strict=True):
                    _join(mine, theirs)
            for axis in first.axes[-count:]:
                _refuse(axis, f"a norm over its units ({name}) counts a copy twice")
            return [_Value(first.axes)]
        if name in ("group_norm", "local_response_norm"):
            for value in given[1:]:
                self.use(value)
                _join(first.axes[1], value.axes[0])
            _refuse(first.axes[1], f"a norm over its channels ({name}) counts a copy twice")
            return [_Value(first.axes)]
        if name == "scaled_dot_product_attention":
            q, k, v = given[:3]
            scores = self.contracted([q, k], ["...qd", "...kd"], "...qk")
            for value in given[3:]:
                scores = self.entrywise([scores, value], len(scores.axes))
            return [self.contracted([scores, v], ["...qk", "...kd"], "...qd")]
        if name == "multi_head_attention_forward":
            return self.attention(args, kwargs, made)
        if "pool" in name or name in ("interpolate", "upsample", "pad", "pixel_shuffle"):
            return self.spatial(name, args, kwargs, first, made)
        if name == "glu":
            axis = at(1, "dim", -1)
            cut = _regroup([first.axes[axis]], [2, shape[axis]])
            _fix(cut[0])
            for leaf in _leaves(cut[1]):
                leaf.kinds.add("glu")
                leaf.activations["sigmoid"] = None
            axes = list(first.axes)
            axes[axis] = cut[1]
            return [_Value(axes)]
        if name in _OVER_AXES:
            return self.over_axes(name, at(1, "dim", None), kwargs, first, made)
        return self.shapes(name, args, kwargs, given, made)

    def act(self, name: str, given: list[_Value]) -> None:
        """An operation entry by entry is part of what a unit does: whatever is not told here, a merge or a scaling would take for the identity."""
        computed = [value for value in given if not value.name]
        gated = name in _PRODUCTS and len(computed) == 2
        if name in _SAME or gated or (name in _SUMS and len(given) > 1):
            return
        told = "scale" if name in _SCALES and len(given) == 1 else name
        for value in computed:
            for leaf in _leaves(atom for axis in value.axes for atom in axis):
                leaf.activations[told] = None

    def entrywise(self, given: list[_Value], ndim: int, *, product: bool = False) -> _Value:
        """Broadcast from the right: axes of one length are one."""
        if len(given) == 1:
            if given[0].name:
                self.use(given[0])
            return _Value(given[0].axes)
        if product and sum(not value.name for value in given) == 2:
            both = [{leaf for axis in value.axes for leaf in _leaves(axis)} for value in given]
            for leaf in both[0] | both[1]:
                leaf.kinds.add("glu")
        axes: list[_Axis] = []
        for place in range(-ndim, 0):
            there = [value.axes[place] for value in given if len(value.axes) >= -place]
            size = max(_size(axis) for axis in there)
            whole = [axis for axis in there if _size(axis) == size]
            for axis in there:
                if _size(axis) != size:
                    _refuse(axis, "its one unit is broadcast over many entries")
            for axis in whole[1:]:
                _join(whole[0], axis)
            axes.append(whole[0])
        for value in given:
            self.use(value)
        return _Value(axes)

    def contraction(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], given: list[_Value]
    ) -> list[_Value] | None:
        if name == "linear":
            made = self.contracted(
                given[:2],
                ["...i", "oi" if len(given[1].axes) == 2 else "i"],
                "...o" if len(given[1].axes) == 2 else "...",
            )
            return [self.entrywise([made, *given[2:]], len(made.axes)) if given[2:] else made]
        if name == "einsum":
            if not isinstance(args[0], str) or "->" not in args[0]:
                return None
            left, right = args[0].replace(" ", "").split("->")
            return [self.contracted(given, left.split(","), right)]
        added = given[:1] if name in ("addmm", "baddbmm") else []
        one, other = given[len(added) :][:2]
        if name == "rmatmul":
            one, other = other, one
        left = "i" if len(one.axes) == 1 else "...qi"
        right = "i" if len(other.axes) == 1 else "...ik"
        out = "..." + ("q" if len(one.axes) > 1 else "") + ("k" if len(other.axes) > 1 else "")
        made = self.contracted([one, other], [left, right], out)
        return [self.entrywise([made, *added], len(made.axes)) if added else made]

    def contracted(self, given: list[_Value], inputs: list[str], output: str) -> _Value:
        """einsum: letters are axes, those without place in the output are summed over. Linear in a parameter, that makes its axis one that reads."""
        spare = max(
            (len(v.axes) - len(s.replace("...", "")) for v, s in zip(given, inputs, strict=True) if "..." in s),
            default=0,
        )
        dots = "ABCDEFGHIJ"[:spare]
        spelled = []
        for value, letters in zip(given, inputs, strict=True):
            missing = len(value.axes) - len(letters.replace("...", ""))
            spelled.append(letters.replace("...", dots[spare - missing :]))
        axes: dict[str, _Axis] = {}
        readers: dict[str, list[tuple[str, int]]] = {}
        holders: dict[str, int] = {}
        for value, letters in zip(given, spelled, strict=True):
            for place, letter in enumerate(letters):
                axis = value.axes[place]
                if letter not in axes or (_size(axes[letter]) == 1 and _size(axis) > 1):
                    axes[letter] = axis
                elif _size(axes[letter]) == _size(axis):
                    _join(axes[letter], axis)
                if value.name:
                    readers.setdefault(letter, []).append((value.name, value.places[place]))
                else:
                    holders[letter] = holders.get(letter, 0) + 1
        kept = output.replace("...", dots)
        for letter, axis in axes.items():
            if letter in kept:
                if holders.get(letter, 0) > 1:
                    for leaf in _leaves(axis):
                        leaf.kinds.add("head")
            elif len(readers.get(letter, [])) == 1:
                self.columns.add(readers[letter][0])
            else:
                _refuse(axis, "it is summed over in a product that is not linear in one parameter")
        for value in given:
            self.use(value)
        return _Value([axes[letter] for letter in kept])

    def convolution(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], given: list[_Value], made: Tensor
    ) -> list[_Value] | None:
        if name.removesuffix("d").rstrip("123") not in ("conv", "conv_transpose"):
            return None
        transposed = "transpose" in name
        x, weight, *bias = given
        spatial = len(weight.axes) - 2
        groups = kwargs.get("groups", args[6] if len(args) > 6 and not transposed else 1)
        if transposed:
            groups = kwargs.get("groups", args[6] if len(args) > 6 else 1)
        out, into = (1, 0) if transposed else (0, 1)
        channels = x.axes[-spatial - 1]
        for axis in weight.axes[2:]:
            for leaf in _leaves(axis):
                leaf.fixed = True
        for axis in x.axes[-spatial:]:
            _refuse(axis, "it is convolved over")
        self.use(weight)
        if groups != 1:
            for axis in (channels, weight.axes[0], weight.axes[1]):
                _refuse(axis, "a grouped convolution has as many groups as its module says")
        else:
            _join(channels, weight.axes[into])
            if weight.name:
                self.columns.add((weight.name, weight.places[into]))
            else:
                _refuse(channels, "it is read by something that is computed of parameters")
        written = weight.axes[out] if groups == 1 or not transposed else [_Atom(made.shape[-spatial - 1], fixed=True)]
        for value in bias:
            self.use(value)
            _join(written, value.axes[0])
        for leaf in _leaves(written):
            leaf.kinds.add("channel")
        return [_Value([*x.axes[: -spatial - 1], written, *([_Atom(n, fixed=True)] for n in made.shape[-spatial:])])]

    def attention(self, args: Sequence[Any], kwargs: Mapping[str, Any], made: list[Tensor]) -> list[_Value] | None:
        """torch's own attention: (T, N, E) or (T, E), q, k and v in one weight."""
        names = [
            "query", "key", "value", "embed_dim_to_check", "num_heads", "in_proj_weight", "in_proj_bias", "bias_k", "bias_v", "add_zero_attn", "dropout_p",
            "out_proj_weight", "out_proj_bias",
        ]  # fmt: skip
        by = dict(zip(names, args, strict=False)) | dict(kwargs)
        if by.get("use_separate_proj_weight") or by["bias_k"] is not None or by["add_zero_attn"]:
            return None
        query, key, value = (self.value(by[name]) for name in names[:3])
        weight, out = self.value(by["in_proj_weight"]), self.value(by["out_proj_weight"])
        heads = by["num_heads"]
        width = by["embed_dim_to_check"]
        three, head, dim = _regroup([weight.axes[0]], [3, heads, width // heads])
        for letters in (query, key, value):
            _join(letters.axes[-1], weight.axes[1])
            _refuse(letters.axes[0], "attention sums over its positions")
        _fix(three)
        _refuse(dim, "queries and keys are summed over it in their product")
        self.use(weight)
        self.use(out)
        _join([*head, *dim], out.axes[1])
        self.columns |= {(weight.name, 1), (out.name, 1)}
        for name, axis in (("in_proj_bias", [*three, *head, *dim]), ("out_proj_bias", out.axes[0])):
            if by[name] is not None:
                self.use(self.value(by[name]))
                _join(axis, self.value(by[name]).axes[0])
        for leaf in _leaves(head):
            leaf.kinds.add("head")
            leaf.activations["attention"] = None
            if self.dropping and by["dropout_p"] > 0:
                leaf.reasons["dropout in train mode draws other numbers for a copy: call module.eval() first"] = None
        values = [_Value([*query.axes[:-1], out.axes[0]])]
        return values + [_Value([[_Atom(n, fixed=True)] for n in tensor.shape]) for tensor in made[1:]]

    def spatial(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], first: _Value, made: list[Tensor]
    ) -> list[_Value]:
        """Pooling, padding, scaling: axes whose entries mix are fresh."""
        ndim = made[0].ndim
        if name == "pad":
            count = len(args[1] if len(args) > 1 else kwargs["pad"]) // 2
        else:
            digits = [int(c) for c in name if c in "123"]
            count = digits[0] if digits else ndim - 2
        for axis in first.axes[ndim - count :]:
            _refuse(axis, f"{name} mixes its units")
        if "max_pool" in name or "lp_pool" in name:  # no linear map of a channel, as all others are
            for leaf in _leaves(atom for axis in first.axes[: ndim - count] for atom in axis):
                leaf.activations[name.removesuffix("_with_indices")] = None
        return [
            _Value([*first.axes[: ndim - count], *([_Atom(n, fixed=True)] for n in tensor.shape[ndim - count :])])
            for tensor in made
        ]

    def over_axes(
        self, name: str, dims: Any, kwargs: Mapping[str, Any], first: _Value, made: list[Tensor]
    ) -> list[_Value] | None:
        """Sums, means, softmax over some axes: units on these are refused."""
        ndim = len(first.axes)
        if isinstance(dims, Tensor) or (name == "norm" and "dim" not in kwargs):
            return None
        if dims is None:
            dims = kwargs.get("axis", range(ndim))
        over = {dim % ndim for dim in ([dims] if isinstance(dims, int) else dims)}
        self.use(first)
        for place in over:
            _refuse(first.axes[place], f"{name} over its units counts a copy twice")
        if made[0].ndim == ndim:
            axes = [
                axis
                if place not in over or made[0].shape[place] == _size(axis)
                else [_Atom(made[0].shape[place], fixed=True)]
                for place, axis in enumerate(first.axes)
            ]
        else:
            axes = [axis for place, axis in enumerate(first.axes) if place not in over]
        return [_Value(axes) for _ in made]

    def shapes(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], given: list[_Value], made: list[Tensor]
    ) -> list[_Value] | None:
        """Operations that move entries and change none."""
        first = given[0]
        ndim, shape = len(first.axes), tuple(made[0].shape)

        def at(place: int, key: str, default: Any = None) -> Any:
            return args[place] if len(args) > place else kwargs.get(key, default)

        def ordered(order: Sequence[int]) -> list[_Value]:
            places = [first.places[i] for i in order] if first.name else []
            return [_Value([first.axes[i] for i in order], first.name, first.piece, places)]

        if name in ("T", "mT", "t", "H", "mH", "adjoint"):
            order = list(range(ndim))
            return ordered(order[::-1] if name in ("T", "t") else [*order[:-2], *order[:-3:-1]])
        if name in ("transpose", "swapaxes", "swapdims"):
            order = list(range(ndim))
            one, other = at(1, "dim0") % ndim, at(2, "dim1") % ndim
            order[one], order[other] = other, one
            return ordered(order)
        if name == "permute":
            dims = args[1] if len(args) == 2 and isinstance(args[1], (tuple, list)) else args[1:] or kwargs["dims"]
            return ordered([dim % ndim for dim in dims])
        if name in ("as_subclass", "Parameter", "data", "real", "alias", "view_as"):
            return ordered(range(ndim)) if len(shape) == ndim else None
        if name in (*_RESHAPES, "flatten"):
            if name == "view" and len(args) > 1 and isinstance(args[1], torch.dtype):
                return ordered(range(ndim))
            self.use(first)
            axes = _regroup(first.axes, shape)
            if name in _RESHAPES:
                self.call += 1
                start, sizes = _sizes(name, args, kwargs)
                for place, size in enumerate(sizes, start):
                    if size != -1:
                        self.reshapes.append((self.call, place, int(size), axes[place]))
            return [_Value(axes)]
        if name in ("squeeze", "unsqueeze"):
            return self.squeezed(name, at(1, "dim", None), first, shape)
        if name in ("chunk", "split", "unbind", "tensor_split"):
            return self.pieces(name, at(2 if name != "unbind" else 1, "dim", 0), first, made)
        if name in ("cat", "concat", "concatenate", "stack"):
            return self.joined(name, at(1, "dim", 0), given, shape)
        if name in ("expand", "expand_as", "broadcast_to"):
            self.use(first)
            axes = [[_Atom(n, fixed=True)] for n in shape]
            for place in range(1, ndim + 1):
                if _size(first.axes[-place]) == shape[-place]:
                    axes[-place] = first.axes[-place]
            return [_Value(axes)]
        if name in ("getitem", "select", "narrow"):
            return self.indexed(name, args, kwargs, first, shape)
        if name in ("flip", "roll"):
            dims = at(1 if name == "flip" else 2, "dims", ())
            for dim in [dims] if isinstance(dims, int) else dims:
                _refuse(first.axes[dim], f"{name} changes the order of its units")
            return [_Value(first.axes)]
        if name in (
            "zeros_like",
            "ones_like",
            "empty_like",
            "full_like",
            "rand_like",
            "randn_like",
            "new_zeros",
            "new_ones",
        ):
            return [_Value([[_Atom(n, fixed=True)] for n in shape])]
        return None

    def squeezed(self, name: str, dims: Any, first: _Value, shape: tuple[int, ...]) -> list[_Value]:
        ndim = len(first.axes)
        if name == "unsqueeze":
            axes = list(first.axes)
            axes.insert(dims % (ndim + 1), [_Atom(1, fixed=True)])
            self.use(first)
            return [_Value(axes)]
        lost = range(ndim) if dims is None else [dim % ndim for dim in ([dims] if isinstance(dims, int) else dims)]
        gone = [place for place in lost if _size(first.axes[place]) == 1]
        for place in gone:
            _fix(first.axes[place])
        self.use(first)
        return [_Value([axis for place, axis in enumerate(first.axes) if place not in gone])]

    def pieces(self, name: str, dim: int, first: _Value, made: list[Tensor]) -> list[_Value]:
        """An axis in equal parts; in others its units are refused."""
        ndim = len(first.axes)
        dim %= ndim
        size = 1 if name == "unbind" else made[0].shape[dim]
        equal = size * len(made) == _size(first.axes[dim]) and all(
            name == "unbind" or part.shape[dim] == size for part in made
        )
        if not equal:
            _refuse(first.axes[dim], f"{name} cuts it in unequal parts")
            self.use(first)
            axes = [
                [[_Atom(part.shape[dim], fixed=True)] if i == dim else axis for i, axis in enumerate(first.axes)]
                for part in made
            ]
            return [_Value(one) for one in axes]
        count, rest = _regroup([first.axes[dim]], [len(made), size])
        _fix(count)
        axes = [list(first.axes) for _ in made]
        places = list(first.places)
        for one in axes:
            one[dim : dim + 1] = [] if name == "unbind" else [rest]
        if name == "unbind" and first.name:
            del places[dim]
        return [_Value(one, first.name, f"{first.piece}[{part}]", places) for part, one in enumerate(axes)]

    def joined(self, name: str, dim: int, given: list[_Value], shape: tuple[int, ...]) -> list[_Value]:
        """cat and stack."""
        dim %= len(shape)
        axes: list[_Axis] = [list(axis) for axis in given[0].axes]
        if name == "stack":
            axes.insert(dim, [_Atom(shape[dim], fixed=True)])
        for value in given:
            self.use(value)
            theirs = [list(axis) for axis in value.axes]
            if name == "stack":
                theirs.insert(dim, axes[dim])
            for place, axis in enumerate(theirs):
                if place != dim:
                    _join(axes[place], axis)
                elif name != "stack":
                    _refuse(axis, "it is joined with others to one axis")
        axes[dim] = [_Atom(shape[dim], fixed=True)]
        return [_Value(axes)]

    def indexed(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], first: _Value, shape: tuple[int, ...]
    ) -> list[_Value] | None:
        ndim = len(first.axes)
        if name == "select":
            index: Any = [slice(None)] * (args[1] % ndim) + [args[2]]
        elif name == "narrow":
            index = [slice(None)] * (args[1] % ndim) + [slice(args[2], args[2] + args[3])]
        else:
            index = list(args[1]) if isinstance(args[1], tuple) else [args[1]]
        if not all(isinstance(item, (int, slice)) or item is None or item is Ellipsis for item in index):
            return None
        taken = sum(isinstance(item, (int, slice)) for item in index)
        if Ellipsis not in index:
            index.append(Ellipsis)
        where = index.index(Ellipsis)
        index[where : where + 1] = [slice(None)] * (ndim - taken)
        axes: list[_Axis] = []
        place = 0
        self.use(first)
        for item in index:
            if item is None:
                axes.append([_Atom(1, fixed=True)])
                continue
            axis = first.axes[place]
            place += 1
            if isinstance(item, int):
                _refuse(axis, "single ones of its units are picked out")
            elif shape[len(axes)] == _size(axis):
                axes.append(axis)
            else:
                _refuse(axis, "some of its units are picked out")
                axes.append([_Atom(shape[len(axes)], fixed=True)])
        return [_Value(axes)]

    # -- what was found ------------------------------------------------------

    def layers(self) -> tuple[Layer, ...]:
        """Every atom that parameters write and that may grow, or the reasons why it may not."""
        order = list(self.used)
        rows: dict[_Atom, list[Slice]] = {}
        columns: dict[_Atom, list[Slice]] = {}
        for name in [*order, *(name for name in self.state if name not in self.used)]:
            for place, axis in enumerate(self.state[name].axes):
                leaves = _leaves(axis)
                for position, leaf in enumerate(leaves):
                    part = Slice(
                        name,
                        place,
                        leaf.size,
                        math.prod(atom.size for atom in leaves[position + 1 :]),
                        math.prod(atom.size for atom in leaves[:position]),
                    )
                    found = columns if (name, place) in self.columns else rows
                    found.setdefault(leaf, []).append(part)
        made: dict[str, Layer] = {}
        for leaf, copies in rows.items():
            if leaf.fixed or not any(part.name in self.used for part in copies):
                continue
            scaled = columns.get(leaf, [])
            reasons = tuple(leaf.reasons) or (() if scaled else ("nothing that reads it by a linear map was found",))
            matrices = [part for part in copies if len(self.state[part.name].axes) > 1] or copies
            name = _owner(matrices[0].name)
            kind: Kind = next((k for k in ("head", "channel", "glu") if k in leaf.kinds), "dense")
            layer = Layer(
                name,
                leaf.size,
                kind,
                "+".join(name for name in leaf.activations if kind != "head" or name != "scale") or "identity",
                tuple(copies),
                tuple(scaled),
                reasons,
                tuple((call, place, size) for call, place, size, axis in self.reshapes if leaf in _leaves(axis)),
            )
            if name in made:
                # of two factors of one axis, such as heads and their dimension, that which can be split stands for it
                if layer.refusals:
                    continue
                if not made[name].refusals:
                    layer = dataclasses.replace(layer, name=f"{name}:{len([n for n in made if n.startswith(name)])}")
            made[layer.name] = layer
        return tuple(made.values())


def _given(arguments: Any) -> list[Tensor]:
    """All tensors among arguments, lists and dicts of them, in order."""
    if isinstance(arguments, Tensor):
        return [arguments]
    if isinstance(arguments, Mapping):
        arguments = list(arguments.values())
    if isinstance(arguments, (tuple, list)):
        return [tensor for part in arguments for tensor in _given(part)]
    return []


# -- the proof --------------------------------------------------------------------------------------------------------


def _proved(module: nn.Module, example: Inputs, truth: Sequence[Tensor], found: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """The layers, with one more reason against each of those that one more unit, which nothing reads, shows not to be followed."""
    open_ = [layer for layer in found if not layer.refusals]

    def fault(layers: Sequence[Layer]) -> str:
        try:
            with torch.no_grad():
                answers = _tensors(_called(resized(module, {layer: layer.size + 1 for layer in layers}), example))
                worst = max(
                    float((a - b).abs().max() / (1 + b.abs().max())) for a, b in zip(answers, truth, strict=True)
                )
        except Exception as error:
            return f"a unit more does not fit: {str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}"
        return "" if worst < PROVED else f"a unit more, which nothing should read, changes the outputs by {worst:.1e}"

    if not open_ or not fault(open_):
        return found
    reasons = {layer.name: fault([layer]) for layer in open_}
    return tuple(
        dataclasses.replace(layer, refusals=(reasons[layer.name],)) if reasons.get(layer.name) else layer
        for layer in found
    )
