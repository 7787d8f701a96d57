"""The objective: a pure function f: R^d -> R of a flat vector, the mean of a loss over rows of data, for any nn.Module.

Letters: D parameters, d coordinates (d = D unless restricted), N rows, n rows of a chunk, E ensemble, k block.

    f(z) = sum_i l_i(w) / sum_i c_i,   w = lift(z),   l_i the loss of row i, c_i its weight (1 unless the loss says otherwise)

Sums and weights are added up over chunks of rows and divided once at the end: never a mean of batch means. Tied weights stand once in the vector;
buffers (BatchNorm statistics) stand apart. The module is evaluated through a private copy by `torch.func.functional_call`, so that the
user's model is never written to: no train mode, no `.grad`, no running statistics.

Hessian products differentiate the gradient a second time (double backward; Pearlmutter 1994), with the gradient's graph kept between products
where memory allows. Gauss-Newton products J^T H_l J v take J v by differentiating J^T u, linear in u (Schraudolph 2002).
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from landscape.errors import LandscapeError, UsageError, unknown
from landscape.operators import SymmetricOperator
from landscape.subspaces import Subspace
from landscape.trajectories import Entry, Layout

Inputs = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
Buffers = Mapping[str, Tensor]
Parts = tuple[Tensor, ...]
NormMode = Literal["eval", "batch"]


# -- rows -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Rows:
    """N rows of data: inputs with first axis N (a tensor, or a tuple or dict of them, spread over forward's arguments), and targets (N, ...)."""

    inputs: Inputs
    targets: Tensor

    def __post_init__(self) -> None:
        sizes = {len(tensor) for tensor in [*_tensors(self.inputs), self.targets]}
        if len(sizes) != 1:
            raise UsageError(f"inputs and targets must have one number of rows; got {sorted(sizes)}.")
        if sizes == {0}:
            raise UsageError("there are no rows of data: give at least one.")

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, index: Tensor | slice) -> Rows:
        """The rows at `index`; an index (E, n) gives each of E members rows of its own, (E, n, ...)."""
        return Rows(_map(self.inputs, lambda tensor: tensor[index]), self.targets[index])

    def member(self, index: int) -> Rows:
        """Of rows (E, n, ...), one set a member: those of one member."""
        return Rows(_map(self.inputs, lambda tensor: tensor[index]), self.targets[index])

    def to(self, device: torch.device, dtype: torch.dtype) -> Rows:
        """Moved, floating tensors cast."""
        return Rows(_map(self.inputs, lambda tensor: _cast(tensor, device, dtype)), _cast(self.targets, device, dtype))

    def chunks(self, size: int) -> Iterator[Rows]:
        """Consecutive chunks of at most `size` rows."""
        for first in range(0, len(self), size):
            yield self if size >= len(self) else self.take(slice(first, first + size))


def _tensors(inputs: Inputs) -> list[Tensor]:
    if isinstance(inputs, Tensor):
        return [inputs]
    return list(inputs.values()) if isinstance(inputs, dict) else list(inputs)


def _map(inputs: Inputs, function: Callable[[Tensor], Tensor]) -> Inputs:
    if isinstance(inputs, Tensor):
        return function(inputs)
    if isinstance(inputs, dict):
        return {name: function(tensor) for name, tensor in inputs.items()}
    return tuple(function(tensor) for tensor in inputs)


def _cast(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    return tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)


# -- losses -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Loss:
    """A loss by rows: `rows(outputs, targets)` gives l_i (n,) and c_i (n,), and f = sum l_i / sum c_i."""

    name: str
    rows: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    classifies: bool  # outputs (n, classes) and integer targets: accuracy is defined
    fused: Callable[[Tensor, Tensor], Tensor] | None = None  # torch's own sum l_i / sum c_i in one kernel, where it has one

    def mean(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """sum l_i / sum c_i over a mini-batch."""
        if self.fused is not None:
            return self.fused(outputs, targets)
        losses, weights = self.rows(outputs, targets)
        return losses.sum() / weights.sum()

    @staticmethod
    def of(loss: str | nn.Module | Callable[..., Tensor] | Loss) -> Loss:
        """A loss from "cross-entropy", "mse", a torch loss module, or a function (outputs, targets) -> (n,).

        A torch module is asked row by row; class weights and `ignore_index` of a cross-entropy keep torch's meaning (divided by the sum of weights).
        Raises UsageError on anything else.
        """
        if isinstance(loss, Loss):
            return loss
        if isinstance(loss, str):
            if loss not in _LOSSES:
                raise unknown("loss", loss, _LOSSES)
            return _from_module(_LOSSES[loss](), loss)
        if isinstance(loss, nn.Module) and hasattr(loss, "reduction"):
            return _from_module(loss, type(loss).__name__)
        if isinstance(loss, type) or not callable(loss):
            raise UsageError(f"a loss is a name, a torch loss module or a function of (outputs, targets); got {loss!r}.")
        return Loss(getattr(loss, "__name__", type(loss).__name__), lambda o, t: _ones(_checked(loss(o, t), o)), False)

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Share of right answers of each row (n,): 0 or 1 for one target a row. NaN where the loss does not classify."""
        if not self.classifies:
            return torch.full(targets.shape[:1], float("nan"), device=outputs.device)
        return _per_row((outputs.argmax(1) == targets).float())


_LOSSES: dict[str, Callable[[], nn.Module]] = {"cross-entropy": nn.CrossEntropyLoss, "mse": nn.MSELoss}


def _from_module(module: nn.Module, name: str) -> Loss:
    if getattr(module, "reduction", "mean") != "mean":
        raise UsageError(f"the loss {name} has reduction={module.reduction!r}; objectives are means over rows, so give it with reduction='mean'.")
    rowwise = copy.deepcopy(module)
    rowwise.reduction = "none"  # type: ignore[assignment]
    stateless = not any(True for _ in module.buffers())
    classifies = isinstance(module, (nn.CrossEntropyLoss, nn.NLLLoss))
    class_weights = getattr(module, "weight", None) if classifies else None
    ignored = getattr(module, "ignore_index", -100)

    def rows(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        losses = (rowwise if stateless else rowwise.to(outputs.device, outputs.dtype))(outputs, targets)
        if not classifies or targets.is_floating_point():  # probabilities as targets: plain mean
            return _ones(_per_row(_checked(losses, outputs)))
        counted = (targets != ignored).to(losses.dtype)
        if class_weights is not None:
            counted = counted * class_weights.to(losses)[targets.clamp_min(0)]
        if losses.ndim == 1:
            return losses, counted
        return losses.flatten(1).sum(1), counted.flatten(1).sum(1)

    return Loss(name, rows, classifies, copy.deepcopy(module) if stateless else None)


def _per_row(values: Tensor) -> Tensor:
    return values if values.ndim == 1 else values.flatten(1).mean(1)


def _ones(losses: Tensor) -> tuple[Tensor, Tensor]:
    return losses, torch.ones_like(losses)


def _checked(losses: Tensor, outputs: Tensor) -> Tensor:
    if losses.ndim == 0 or losses.shape[0] != outputs.shape[0]:
        raise UsageError(
            f"the loss returned shape {tuple(losses.shape)} for {outputs.shape[0]} rows. Return one loss a row (reduction='none'): "
            "means over unequal chunks could not be weighted exactly."
        )
    return _per_row(losses)


# -- the module as a function of a flat vector --------------------------------------------------------------------------


class Predictor(Protocol):
    """A model as a pure function of a flat vector w (D,) and of its buffers."""

    @property
    def layout(self) -> Layout:
        """Names and shapes of the flat vector."""

    @property
    def lockstep(self) -> bool:
        """Whether an ensemble is faster by vmap than by a loop."""

    @property
    def recurrent(self) -> bool:
        """Whether it has recurrent layers: cuDNN's have no second derivative."""

    @property
    def stochastic(self) -> bool:
        """Whether it draws random numbers in train mode (dropout)."""

    def split(self, w: Tensor) -> Parts:
        """The parameter tensors in a flat vector w (..., D): views (..., *shape) in the layout's order."""

    def forward(self, parts: Parts, buffers: Buffers, inputs: Inputs, mode: str = "eval") -> tuple[Tensor, Buffers]:
        """Outputs (n, ...), and the buffers after the pass. mode: `eval`; `batch` (BatchNorm by batch statistics, no dropout); `train`."""


@dataclass(frozen=True, eq=False)
class Network:
    """An nn.Module as a function of its flat parameters, through private copies."""

    layout: Layout
    skeletons: dict[str, nn.Module]  # by mode
    frozen: Buffers
    lockstep: bool
    recurrent: bool
    stochastic: bool

    @staticmethod
    def of(module: nn.Module, device: torch.device, dtype: torch.dtype) -> tuple[Network, Tensor, Buffers]:
        """The network, its present parameters (D,) and its buffers. The module itself is only read.

        Raises UsageError where it has no trainable floating parameter, or one that is quantised or uninitialised.
        """
        module = getattr(module, "_orig_mod", module)  # torch.compile wraps; its graph breaks under double backward
        entries, aliases, parts = [], {}, []
        frozen, buffers = {}, {}
        first_name: dict[int, str] = {}
        offset = 0
        for name, parameter in module.named_parameters(remove_duplicate=False):
            if isinstance(parameter, nn.parameter.UninitializedParameter):
                raise UsageError(f"parameter {name} is lazy and has no shape yet: run the model once on a batch before.")
            if id(parameter) in first_name:
                aliases[name] = first_name[id(parameter)]
                continue
            first_name[id(parameter)] = name
            value = parameter.detach()
            trained = parameter.requires_grad and parameter.is_floating_point()
            place = offset if trained else 0
            entries.append(Entry(name, tuple(value.shape), place, _name(value.dtype), "parameter" if trained else "frozen"))
            if trained:
                parts.append(value.to(device, dtype).flatten())
                offset += value.numel()
            else:
                frozen[name] = _cast(value.clone(), device, dtype)
        if not parts:
            raise UsageError("the model has no trainable floating-point parameter (requires_grad): there is no landscape to measure.")
        offset = 0
        for name, buffer in module.named_buffers():
            persistent = name in module.state_dict()
            value = _cast(buffer.detach().clone(), device, dtype)
            if persistent:
                entries.append(Entry(name, tuple(value.shape), offset, _name(buffer.dtype), "buffer"))
                offset += value.numel()
                buffers[name] = value
            else:
                frozen[name] = value
        convolves = any(isinstance(part, _CONVOLUTIONS) for part in module.modules())
        recurrent = any(isinstance(part, nn.RNNBase) for part in module.modules())
        # vmapped convolutions become grouped ones: 2.5 times slower than a loop on a CPU
        lockstep = not recurrent and not (convolves and device.type == "cpu")
        stochastic = any(isinstance(part, _DROPOUTS) and part.p > 0 for part in module.modules())
        skeletons = {mode: _skeleton(module, mode, device, dtype) for mode in ("eval", "batch", "train")}
        network = Network(Layout(tuple(entries), aliases), skeletons, frozen, lockstep, recurrent, stochastic)
        return network, torch.cat(parts), buffers

    def split(self, w: Tensor) -> Parts:
        """See Predictor."""
        entries = self.layout.of("parameter")
        pieces = torch.split(w, [entry.size for entry in entries], dim=-1)
        return tuple(piece.view(*w.shape[:-1], *entry.shape) for entry, piece in zip(entries, pieces, strict=True))

    def forward(self, parts: Parts, buffers: Buffers, inputs: Inputs, mode: str = "eval") -> tuple[Tensor, Buffers]:
        """See Predictor."""
        state: dict[str, Tensor] = {entry.name: part for entry, part in zip(self.layout.of("parameter"), parts, strict=True)}
        if mode != "eval" and buffers:
            buffers = {name: value.clone() for name, value in buffers.items()}
        state.update(self.frozen)
        state.update(buffers)
        arguments = inputs if isinstance(inputs, tuple) else () if isinstance(inputs, dict) else (inputs,)
        keywords = inputs if isinstance(inputs, dict) else {}
        outputs = torch.func.functional_call(self.skeletons[mode], state, arguments, keywords)
        if not isinstance(outputs, Tensor):
            outputs = getattr(outputs, "logits", outputs[0] if isinstance(outputs, (tuple, list)) else outputs)
        if not isinstance(outputs, Tensor):
            raise UsageError(f"the model returned {type(outputs).__name__}; it must return a tensor (n, ...), or an object with `logits`.")
        return outputs, buffers


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _skeleton(module: nn.Module, mode: str, device: torch.device, dtype: torch.dtype) -> nn.Module:
    copied = copy.deepcopy(module)
    for parameter in copied.parameters():
        parameter.grad = None
    copied = copied.to(device=device, dtype=dtype).requires_grad_(False)
    copied.train(mode != "eval")
    if mode == "batch":
        for part in copied.modules():
            if not isinstance(part, nn.modules.batchnorm._NormBase):
                part.training = False
    return copied


@dataclass(frozen=True, eq=False)
class Formula:
    """A plain function of a vector as a predictor: its output is its value, one row."""

    function: Callable[[Tensor], Tensor]  # (D,) -> ()
    layout: Layout
    lockstep: bool = True
    recurrent: bool = False
    stochastic: bool = False

    def split(self, w: Tensor) -> Parts:
        """See Predictor."""
        return (w,)

    def forward(self, parts: Parts, buffers: Buffers, inputs: Inputs, mode: str = "eval") -> tuple[Tensor, Buffers]:
        """See Predictor."""
        return self.function(parts[0]).reshape(1), buffers


def leaves(model: Predictor, w: Tensor) -> Parts:
    """The parameter tensors in w (..., D), each to be differentiated by itself: a third faster than through views of one vector."""
    return tuple(part.detach().requires_grad_() for part in model.split(w))


def flat(parts: Sequence[Tensor], members: int = 0) -> Tensor:
    """The inverse of split: (D,), or (E, D) for the parts of `members` vectors."""
    return torch.cat([part.reshape(members, -1) if members else part.reshape(-1) for part in parts], dim=-1)


# -- the objective ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Value:
    """Loss and accuracy of points: floats as tensors () or (E,) in float64; accuracy is NaN where the loss does not classify."""

    loss: Tensor
    accuracy: Tensor


@dataclass(frozen=True, eq=False)
class Objective:
    """f: R^d -> R, a mean over rows. Build one with `Objective.of` (a module) or `Objective.from_function`; every method is pure."""

    model: Predictor
    loss: Loss
    rows: Rows
    buffers: Buffers
    dtype: torch.dtype
    device: torch.device
    chunk: int  # rows evaluated at once
    charts: tuple[Subspace, ...] = ()  # restrictions, the first applied outermost
    norm: NormMode = "eval"  # BatchNorm: by running statistics, or by those of each chunk of rows

    @staticmethod
    def of(
        module: nn.Module,
        loss: str | nn.Module | Callable[..., Tensor] | Loss,
        rows: Rows,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        chunk: int | None = None,
    ) -> tuple[Objective, Tensor]:
        """The objective of a module, and the module's present parameters (D,) as its point.

        chunk: rows evaluated at once. Default 64 for convolutions on a CPU (a gradient over 512 images of a ResNet-20 took 4.7 s in chunks of 32, 7.2 in one),
        else 2,048: an answer depends on it only in rounding.
        Raises UsageError for modules, losses and rows that do not fit each other in kind.
        """
        device = torch.device(device)
        network, point, buffers = Network.of(module, device, dtype)
        if chunk is None:
            chunk = 2048 if network.lockstep else 64
        if chunk < 1:
            raise UsageError(f"a chunk has at least 1 row; got {chunk}.")
        return Objective(network, Loss.of(loss), rows.to(device, dtype), buffers, dtype, device, chunk), point

    @staticmethod
    def from_function(
        function: Callable[[Tensor], Tensor], dim: int, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float64
    ) -> Objective:
        """The objective of a differentiable function (D,) -> () written in torch: no data, so one row."""
        layout = Layout((Entry("w", (dim,), 0, _name(dtype), "parameter"),))
        rows = Rows(torch.zeros(1, device=device), torch.zeros(1, device=device))
        loss = Loss("function", lambda outputs, _: _ones(outputs), False)
        return Objective(Formula(function, layout), loss, rows, {}, dtype, torch.device(device), 1)

    # -- shape ---------------------------------------------------------------

    @property
    def dim(self) -> int:
        """d."""
        return self.charts[-1].dim if self.charts else self.model.layout.dim

    def lift(self, z: Tensor) -> Tensor:
        """The parameters w (..., D) at coordinates z (..., d)."""
        for chart in reversed(self.charts):
            z = chart.lift(z)
        return z

    def push(self, v: Tensor) -> Tensor:
        """The direction (..., D) of a direction of coordinates (..., d): the linear part of lift."""
        for chart in reversed(self.charts):
            v = chart.push(v)
        return v

    def project(self, g: Tensor) -> Tensor:
        """The adjoint of push: a gradient by parameters (..., D) becomes one by coordinates (..., d)."""
        for chart in self.charts:
            g = chart.project(g)
        return g

    def restrict(self, subspace: Subspace) -> Objective:
        """z -> f(subspace.lift(z)): again an objective, of subspace.dim coordinates."""
        if subspace.ambient != self.dim:
            raise UsageError(f"a subspace of {subspace.ambient} dimensions cannot restrict an objective of {self.dim}.")
        return dataclasses.replace(self, charts=(*self.charts, subspace))

    def on(self, rows: Rows | Tensor | slice) -> Objective:
        """The same function over other rows, or over the rows at an index."""
        chosen = rows.to(self.device, self.dtype) if isinstance(rows, Rows) else self.rows.take(rows)
        return dataclasses.replace(self, rows=chosen)

    def with_buffers(self, buffers: Buffers, norm: NormMode | None = None) -> Objective:
        """The same function with other buffers (BatchNorm statistics)."""
        return dataclasses.replace(self, buffers=dict(buffers), norm=norm or self.norm)

    # -- values --------------------------------------------------------------

    def __call__(self, z: Tensor) -> Tensor:
        """f at one point (d,) or at many (E, d): () or (E,), in float64 where the device has it."""
        return self.value(z).loss

    def value(self, z: Tensor) -> Value:
        """Loss and accuracy over all rows, at one point (d,) or many (E, d)."""
        if self._points(z).ndim == 2:
            values = [self.value(point) for point in z]
            return Value(torch.stack([v.loss for v in values]), torch.stack([v.accuracy for v in values]))
        parts = self.model.split(self.lift(z))
        loss = weight = right = torch.zeros((), dtype=_exact(self.device), device=self.device)
        with torch.no_grad():
            for rows in self.rows.chunks(self.chunk):
                losses, weights, correct = self._chunk(parts, rows)
                loss, weight, right = (a + b.to(a.dtype).sum() for a, b in ((loss, losses), (weight, weights), (right, correct)))
        return Value(loss / weight, right / len(self.rows))

    def by_row(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Loss l_i / mean(c) (N,) and correctness (N,) of each row at one point (d,); the mean of the first is f."""
        parts = self.model.split(self.lift(self._points(z)))
        with torch.no_grad():
            found = [self._chunk(parts, rows) for rows in self.rows.chunks(self.chunk)]
        losses, weights, correct = (torch.cat([chunk[i] for chunk in found]) for i in range(3))
        return losses / weights.mean(), correct

    def outputs(self, z: Tensor) -> Tensor:
        """What the model answers for every row (N, ...) at one point (d,)."""
        parts = self.model.split(self.lift(self._points(z)))
        with torch.no_grad():
            return torch.cat([self._forward(parts, rows) for rows in self.rows.chunks(self.chunk)])

    # -- derivatives ---------------------------------------------------------

    def gradient(self, z: Tensor) -> Tensor:
        """The gradient at one point (d,) or many (E, d), of that shape."""
        return self.value_and_gradient(z)[1]

    def value_and_gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """f, () or (E,), and its gradient, of z's shape."""
        if self._points(z).ndim == 2 and not self.model.lockstep:
            pairs = [self.value_and_gradient(point) for point in z]
            return torch.stack([p[0] for p in pairs]), torch.stack([p[1] for p in pairs])
        w = self.lift(z)
        members = len(w) if w.ndim == 2 else 0
        loss = weight = torch.zeros((), dtype=_exact(self.device), device=self.device)
        gradient = torch.zeros_like(w)
        with torch.enable_grad():
            parts = leaves(self.model, w)
            for rows in self.rows.chunks(self.chunk):
                losses, weights = self._ensemble(parts, rows) if members else self._chunk(parts, rows)[:2]
                gradient += flat(torch.autograd.grad(losses.sum(), parts, materialize_grads=True), members)
                loss = loss + losses.detach().to(loss.dtype).sum(-1)
                weight = weight + weights.detach().to(loss.dtype).sum(-1)
        scale = (1 / weight).to(gradient.dtype)
        return loss / weight, self.project(gradient * (scale.unsqueeze(-1) if gradient.ndim == 2 else scale))

    def hessian(self, z: Tensor, *, keep: bool | None = None) -> SymmetricOperator:
        """The Hessian (d, d) at one point.

        keep: hold the gradient's graph of all rows between products (over twice as fast); by default where it takes at most half of the free memory,
        measured on the first chunk. Otherwise each product builds the graph chunk by chunk.
        """
        return self._curvature(z, self._hessian_graph, keep)

    def gauss_newton(self, z: Tensor, *, keep: bool | None = None) -> SymmetricOperator:
        """The generalised Gauss-Newton matrix (d, d): the mean over rows of J_i^T (d^2 l_i / d outputs^2) J_i. `keep` as for `hessian`."""
        return self._curvature(z, self._gauss_newton_graph, keep)

    # -- inside --------------------------------------------------------------

    def _points(self, z: Tensor) -> Tensor:
        if z.ndim not in (1, 2) or z.shape[-1] != self.dim:
            raise UsageError(f"a point has shape ({self.dim},), many (E, {self.dim}); got {tuple(z.shape)}.")
        return z

    def _forward(self, parts: Parts, rows: Rows) -> Tensor:
        return self.model.forward(parts, self.buffers, rows.inputs, self.norm)[0]

    def _chunk(self, parts: Parts, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
        outputs = self._forward(parts, rows)
        losses, weights = _explained(self.loss, outputs, rows.targets)
        return losses, weights, self.loss.correct(outputs.detach(), rows.targets)

    def _ensemble(self, parts: Parts, rows: Rows) -> tuple[Tensor, Tensor]:
        """Losses and weights (E, n) of many parameter vectors (E, D) on the same rows."""

        def one(*member: Tensor) -> tuple[Tensor, Tensor]:
            return self.loss.rows(self._forward(member, rows), rows.targets)

        losses, weights = torch.func.vmap(one, out_dims=(0, 0))(*parts)
        return losses, weights

    def _curvature(self, z: Tensor, build: Callable[[Tensor, Rows, float], _Product], keep: bool | None) -> SymmetricOperator:
        if z.ndim != 1:
            raise UsageError(f"curvature is taken at one point ({self.dim},); got {tuple(z.shape)}.")
        w = self.lift(self._points(z)).detach()
        chunks = list(self.rows.chunks(self.chunk))
        total = self._total_weight(w)
        with _counting() as counted:
            first = build(w, chunks[0], total)
        if keep is None:
            keep = counted.bytes * len(chunks) <= _free_memory(self.device) / 2
        kept = [first, *(build(w, rows, total) for rows in chunks[1:])] if keep else []

        def product(v: Tensor) -> Tensor:
            direction = self.push(v)
            image = torch.zeros_like(w)
            for part in kept or (build(w, rows, total) for rows in chunks):
                image += part(direction)
            return self.project(image)

        return SymmetricOperator(self.dim, product, self.dtype, self.device)

    def _total_weight(self, w: Tensor) -> float:
        """sum c_i. Only the losses know the weights, so one pass; most losses weigh every row 1 and this is N."""
        with torch.no_grad():
            parts = self.model.split(w)
            return float(sum(self._chunk(parts, rows)[1].to(_exact(self.device)).sum() for rows in self.rows.chunks(self.chunk)))

    def _hessian_graph(self, w: Tensor, rows: Rows, total: float) -> _Product:
        with _twice_differentiable(self.model), torch.enable_grad():
            parts = leaves(self.model, w)
            losses, _, _ = self._chunk(parts, rows)
            slopes = torch.autograd.grad(losses.sum() / total, parts, create_graph=True, materialize_grads=True)
        bent = [place for place, slope in enumerate(slopes) if slope.requires_grad]  # the others are constant in w: no curvature

        def product(v: Tensor) -> Tensor:
            if not bent:
                return torch.zeros_like(v)
            along = self.model.split(v)
            moved = torch.autograd.grad([slopes[i] for i in bent], parts, [along[i] for i in bent], retain_graph=True, materialize_grads=True)
            return flat(moved)

        return product

    def _gauss_newton_graph(self, w: Tensor, rows: Rows, total: float) -> _Product:
        with _twice_differentiable(self.model), torch.enable_grad():
            parts = leaves(self.model, w)
            outputs = self._forward(parts, rows)
            answer = outputs.detach().requires_grad_()
            losses, _ = self.loss.rows(answer, rows.targets)
            (slope,) = torch.autograd.grad(losses.sum() / total, answer, create_graph=True)
            dummy = torch.zeros_like(outputs, requires_grad=True)
            pulled = torch.autograd.grad(outputs, parts, dummy, create_graph=True, materialize_grads=True)
        moving = [place for place, part in enumerate(pulled) if part.requires_grad]

        def product(v: Tensor) -> Tensor:
            if not slope.requires_grad:  # a loss linear in the outputs has no Gauss-Newton curvature
                return torch.zeros_like(v)
            along = self.model.split(v)
            (moved,) = torch.autograd.grad([pulled[i] for i in moving], dummy, [along[i] for i in moving], retain_graph=True)  # J v
            (bent,) = torch.autograd.grad(slope, answer, moved, retain_graph=True)  # H_l J v
            return flat(torch.autograd.grad(outputs, parts, bent, retain_graph=True, materialize_grads=True))  # J^T H_l J v

        return product


_Product = Callable[[Tensor], Tensor]


def _explained(loss: Loss, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The losses, or torch's own complaint with the shapes beside it."""
    try:
        return loss.rows(outputs, targets)
    except (RuntimeError, ValueError, IndexError) as error:
        raise UsageError(
            f"the loss {loss.name} refused outputs {tuple(outputs.shape)} {_name(outputs.dtype)} with targets {tuple(targets.shape)} {_name(targets.dtype)}: {error}"
        ) from error


def _exact(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64


class _AffineBatchNorm(TorchFunctionMode):
    """BatchNorm by running statistics is an affine map; written as one, its second derivative costs a product and not a batch-norm double backward."""

    def __torch_function__(self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if function is functional.batch_norm:
            return _affine_batch_norm(*args, **kwargs)
        return function(*args, **kwargs)


def _affine_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if training or running_mean is None or running_var is None:
        return functional.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    shape = (1, -1, *(1,) * (input.ndim - 2))
    scale = torch.rsqrt(running_var + eps)
    scale = scale if weight is None else scale * weight
    shift = -running_mean * scale
    shift = shift if bias is None else shift + bias
    return torch.addcmul(shift.view(shape), input, scale.view(shape))


@contextlib.contextmanager
def _twice_differentiable(model: Predictor) -> Iterator[None]:
    """Kernels that have a second derivative: attention by its MATH backend, recurrent layers without cuDNN, BatchNorm as the affine map it is."""
    with sdpa_kernel(SDPBackend.MATH), torch.backends.cudnn.flags(enabled=not model.recurrent), _AffineBatchNorm():
        yield


@dataclass
class _Counted:
    bytes: int = 0


@contextlib.contextmanager
def _counting() -> Iterator[_Counted]:
    """Counts the memory of all tensors that autograd saves inside, each storage once."""
    counted, seen = _Counted(), set()

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            counted.bytes += storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield counted


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def require_finite(values: Tensor, what: str) -> None:
    """Raise LandscapeError, with the count, where `values` has NaN or infinite entries."""
    bad = int((~torch.isfinite(values)).sum())
    if bad:
        raise LandscapeError(f"{what} has {bad} NaN or infinite of {values.numel()} entries: nothing was computed from it. See `landscape check`.")
