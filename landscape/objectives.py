"""The objective: a pure function f: R^d -> R of a flat vector, the mean of a loss over rows of data, for any nn.Module.

Letters: D parameters, d coordinates (d = D unless restricted), N rows, n rows of a chunk, E ensemble, k block.

    f(z) = sum_i l_i(w) / sum_i c_i,   w = lift(z),   l_i the loss of row i, c_i its weight (1 unless the loss says otherwise)

Sums and weights are added up over chunks of rows and divided once at the end: never a mean of batch means. Tied weights stand once in the vector;
buffers (BatchNorm statistics) stand apart. The module is evaluated through a private copy whose tensors are replaced for the call (as `torch.func.functional_call` does, without its overhead), so that the
user's model is never written to: no train mode, no `.grad`, no running statistics.

Of second derivatives there are, beside the Hessian, four matrices J^T B J (J the Jacobian of the outputs): see `CURVATURES`. How their products are taken
stands in `landscape.curvature`. A restriction differentiates only by the tensors that its coordinates move.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import checkpoint

from landscape.curvature import Chunks, Product, hessian_graph, outer, sandwich_graph, twice_differentiable
from landscape.curvature import free_memory as free_memory
from landscape.errors import LandscapeError, UsageError, unknown, users_lines
from landscape.operators import SymmetricOperator
from landscape.seeds import generator
from landscape.subspaces import Subspace, coordinates
from landscape.trajectories import Entry, Layout

Inputs = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
Buffers = Mapping[str, Tensor]
Parts = tuple[Tensor, ...]
NormMode = Literal["eval", "batch"]
Curvature = Literal["hessian", "gauss-newton", "fisher", "empirical-fisher", "gradient-covariance"]
CURVATURES: tuple[Curvature, ...] = ("hessian", "gauss-newton", "fisher", "empirical-fisher", "gradient-covariance")

# rows x points that are evaluated at once in lockstep. On a CPU what lies between two layers then stays in a cache (digits-mlp, 96 points: 2^12 and 2^17 were a
# fourth slower); a GPU wants large pieces, which at 2^20 take some 100 MiB a layer
EVALUATED = {"cpu": 2**14}
EVALUATED_ELSEWHERE = 2**20
# up to so many classes torch's cross-entropy by rows is 3 times faster along the other axis (10 classes, 64 to 30,000 rows, forward and backward; slower from 100 on)
FEW_CLASSES = 32
# points that are evaluated in lockstep: more are no faster, and their activations take memory
LOCKSTEP = 256

# -- rows -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Rows:
    """N rows of data: inputs with first axis N (a tensor, or a tuple or dict of them, spread over forward's arguments), and targets (N, ...)."""

    inputs: Inputs
    targets: Tensor

    def __post_init__(self) -> None:
        sizes = {len(tensor) for tensor in [*tensors_of(self.inputs), self.targets]}
        if len(sizes) != 1:
            raise UsageError(f"inputs and targets must have one number of rows; got {sorted(sizes)}.")
        if sizes == {0}:
            raise UsageError("there are no rows of data: give at least one.")

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, index: Tensor | slice | int) -> Rows:
        """The rows at `index`; an index (E, n) gives each of E members rows of its own, (E, n, ...), and of these the number e takes member e's."""
        if isinstance(index, Tensor) and index.ndim == 1 and index.dtype == torch.long and index.device.type == "cpu":
            # whole rows: half the time of an index that might be of anything, such as of places from the end, which this one refuses
            with contextlib.suppress(IndexError):
                chosen = mapped(self.inputs, lambda tensor: tensor.index_select(0, index))
                return Rows(chosen, self.targets.index_select(0, index))
        return Rows(mapped(self.inputs, lambda tensor: tensor[index]), self.targets[index])

    def to(self, device: torch.device, dtype: torch.dtype) -> Rows:
        """Moved, floating tensors cast."""
        return Rows(
            mapped(self.inputs, lambda tensor: _cast(tensor, device, dtype)), _cast(self.targets, device, dtype)
        )

    def chunks(self, size: int) -> Iterator[Rows]:
        """Consecutive chunks of at most `size` rows."""
        for first in range(0, len(self), size):
            yield self if size >= len(self) else self.take(slice(first, first + size))


def tensors_of(inputs: Inputs) -> list[Tensor]:
    """The tensors of inputs of any structure, in their order."""
    if isinstance(inputs, Tensor):
        return [inputs]
    return list(inputs.values()) if isinstance(inputs, dict) else list(inputs)


def called(module: nn.Module, inputs: Inputs) -> Any:
    """What a module gives for inputs of any structure: a tensor, a tuple of arguments, or a dict of keywords."""
    if isinstance(inputs, dict):
        return module(**inputs)
    return module(*(inputs if isinstance(inputs, tuple) else (inputs,)))


def mapped(inputs: Inputs, function: Callable[[Tensor], Tensor]) -> Inputs:
    """Inputs of the same structure, of what a function makes of each tensor."""
    if isinstance(inputs, Tensor):
        return function(inputs)
    if isinstance(inputs, dict):
        return {name: function(tensor) for name, tensor in inputs.items()}
    return tuple(function(tensor) for tensor in inputs)


def _cast(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    return tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)


# -- losses -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Likelihood:
    """The distribution of targets given outputs whose -log is the loss: f weighs T independent targets a row, of C outputs each."""

    name: str
    targets: Callable[[Tensor], Tensor]  # outputs (n, ...) viewed as (n, C, T)
    weights: Callable[[Tensor, Tensor], Tensor]  # (outputs, targets) -> (n, T): what each target weighs in sum l_i
    noise: Callable[[tuple[int, int, int], torch.Generator], Tensor]  # what draws of targets of N rows are made of
    score: Callable[
        [Tensor, Tensor], Tensor
    ]  # (viewed outputs, noise) -> slope of -log likelihood at the drawn targets


@dataclass(frozen=True, eq=False)
class Loss:
    """A loss by rows: `rows(outputs, targets)` gives l_i (n,) and c_i (n,), and f = sum l_i / sum c_i."""

    name: str
    rows: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    classifies: bool  # outputs (n, classes) and integer targets: accuracy is defined
    fused: Callable[[Tensor, Tensor], Tensor] | None = (
        None  # torch's own sum l_i / sum c_i in one kernel, where it has one
    )
    ignored: int = -100  # targets of this class are not counted (torch's default)
    threshold: float | None = None  # outputs above it mean 1, of losses on binary targets entry by entry
    likelihood: Likelihood | None = None  # where the loss is the -log of one: Fisher matrices are defined

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
            raise UsageError(
                f"a loss is a name, a torch loss module or a function of (outputs, targets); got {loss!r}."
            )
        return Loss(getattr(loss, "__name__", type(loss).__name__), lambda o, t: _ones(_checked(loss(o, t), o)), False)

    def correct(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """How many answers of each row are right, and how many are counted, (n,) each: 1 for one target a row. Both NaN where the loss does not classify."""
        if not self.classifies:
            unknown = torch.full(targets.shape[:1], float("nan"), device=outputs.device)
            return unknown, unknown
        if self.threshold is not None:
            right = (outputs > self.threshold) == (targets.reshape(outputs.shape) > 0.5)
            return right.reshape(len(right), -1).float().sum(1), torch.full_like(
                right.reshape(len(right), -1)[:, 0], right[0].numel(), dtype=torch.float32
            )
        if targets.is_floating_point():  # probabilities: the likeliest class is the right one
            targets = targets.argmax(1)
        counted = targets != self.ignored
        # as argmax, the first of equal ones; on a CPU in two thirds of its time
        right = (outputs.max(1).indices == targets) & counted
        return tuple(part.float() if part.ndim == 1 else part.flatten(1).float().sum(1) for part in (right, counted))  # type: ignore[return-value]


_LOSSES: dict[str, Callable[[], nn.Module]] = {"cross-entropy": nn.CrossEntropyLoss, "mse": nn.MSELoss}


def _from_module(module: nn.Module, name: str) -> Loss:
    if getattr(module, "reduction", "mean") != "mean":
        raise UsageError(
            f"the loss {name} has reduction={module.reduction!r}; objectives are means over rows, so give it with reduction='mean'."
        )
    whole, rowwise = copy.deepcopy(module), copy.deepcopy(module)
    rowwise.reduction = "none"  # type: ignore[assignment]
    stateless = not any(True for _ in module.buffers())
    classifies = isinstance(module, (nn.CrossEntropyLoss, nn.NLLLoss))
    elementwise = isinstance(module, _ELEMENTWISE)
    threshold = next((value for kind, value in _BINARY.items() if isinstance(module, kind)), None)
    class_weights = getattr(module, "weight", None) if classifies else None
    ignored = int(getattr(module, "ignore_index", -100))
    classes_last = isinstance(module, nn.CrossEntropyLoss)

    def fitted(outputs: Tensor, targets: Tensor) -> Tensor:
        return _like(outputs, targets, name) if elementwise else targets

    def rows(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        targets = fitted(outputs, targets)
        asked = rowwise if stateless else rowwise.to(outputs.device, outputs.dtype)
        if classes_last and outputs.ndim == 2 and targets.ndim == 1 and outputs.shape[1] <= FEW_CLASSES:
            losses = asked(outputs.T.unsqueeze(0), targets.unsqueeze(0))[0]
        else:
            losses = asked(outputs, targets)
        if not classifies or targets.is_floating_point():  # probabilities as targets: plain mean
            return _ones(_per_row(_checked(losses, outputs)))
        counted = (targets != ignored).to(losses.dtype)
        if class_weights is not None:
            counted = counted * class_weights.to(losses)[targets.clamp_min(0)]
        if losses.ndim == 1:
            return losses, counted
        return losses.flatten(1).sum(1), counted.flatten(1).sum(1)

    fused = (lambda outputs, targets: whole(outputs, fitted(outputs, targets))) if stateless else None
    return Loss(name, rows, classifies or threshold is not None, fused, ignored, threshold, _likelihood(module))


def _likelihood(module: nn.Module) -> Likelihood | None:
    """The likelihood of a torch loss with its own meaning; None where there is none that is known, such as under weights by entry."""
    if type(module) not in (nn.CrossEntropyLoss, nn.NLLLoss, nn.BCEWithLogitsLoss, nn.BCELoss, nn.MSELoss):
        return None  # of a subclass nothing is known
    if isinstance(module, (nn.CrossEntropyLoss, nn.NLLLoss)):
        logits = isinstance(module, nn.CrossEntropyLoss)
        smoothing = module.label_smoothing if isinstance(module, nn.CrossEntropyLoss) else 0.0
        by_class, ignored = module.weight, module.ignore_index

        def weights(outputs: Tensor, targets: Tensor) -> Tensor:
            classes = outputs.shape[1]
            each = outputs.new_ones(classes) if by_class is None else by_class.to(outputs)
            if targets.is_floating_point():  # probabilities by class, as the outputs
                shares = (1 - smoothing) * targets.reshape(len(targets), classes, -1) + smoothing / classes
                return torch.einsum("c,nct->nt", each, shares)
            targets = targets.reshape(len(targets), -1)
            found = (1 - smoothing) * each[targets.clamp_min(0)] + smoothing * each.mean()
            return found * (targets != ignored)

        def score(outputs: Tensor, noise: Tensor) -> Tensor:
            shares = outputs.softmax(1) if logits else outputs.exp()
            below = shares.cumsum(1)
            drawn = (below <= noise * below[:, -1:]).sum(1, keepdim=True).clamp_max(outputs.shape[1] - 1)
            return (shares if logits else torch.zeros_like(shares)).scatter_add(
                1, drawn, -torch.ones_like(drawn, dtype=shares.dtype)
            )

        return Likelihood(
            "categorical",
            lambda outputs: outputs.reshape(*outputs.shape[:2], -1),
            weights,
            lambda shape, draws: torch.rand(shape[0], 1, shape[2], generator=draws, dtype=torch.float64),
            score,
        )
    if isinstance(module, (nn.BCEWithLogitsLoss, nn.BCELoss)):
        if module.weight is not None or getattr(module, "pos_weight", None) is not None:
            return None

        def binary(outputs: Tensor, noise: Tensor) -> Tensor:
            if isinstance(module, nn.BCEWithLogitsLoss):
                share = outputs.sigmoid()
                return share - (noise < share).to(share)
            return torch.where(noise < outputs, -1 / outputs, 1 / (1 - outputs))

        return Likelihood(
            "Bernoulli",
            lambda outputs: outputs.reshape(len(outputs), 1, -1),
            # the loss of a row is the mean over its entries
            lambda outputs, _: torch.full_like(outputs, 1 / outputs[0].numel()).reshape(len(outputs), -1),
            lambda shape, draws: torch.rand(shape, generator=draws, dtype=torch.float64),
            binary,
        )
    return Likelihood(  # the mean of K squares is -log of a normal density of variance K / 2 an entry
        "normal",
        lambda outputs: outputs.reshape(len(outputs), -1, 1),
        lambda outputs, _: outputs.new_ones(len(outputs), 1),
        lambda shape, draws: torch.randn(shape, generator=draws, dtype=torch.float64),
        lambda outputs, noise: noise * (2 / outputs.shape[1]) ** 0.5,
    )


# losses that compare outputs and targets entry by entry, and would broadcast (n, 1) against (n,) to (n, n) without a word
_ELEMENTWISE = (
    nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCELoss, nn.BCEWithLogitsLoss, nn.PoissonNLLLoss, nn.KLDivLoss, nn.SoftMarginLoss,
)  # fmt: skip

# what an output above means 1: a logit, a probability
_BINARY: dict[type[nn.Module], float] = {nn.BCEWithLogitsLoss: 0.0, nn.BCELoss: 0.5}


def _like(outputs: Tensor, targets: Tensor, name: str) -> Tensor:
    """Targets in the shape and dtype of the outputs: (n,) beside (n, 1) are the same numbers; other shapes are refused."""
    if targets.shape != outputs.shape:
        if targets.numel() != outputs.numel() or targets.squeeze().shape != outputs.squeeze().shape:
            raise UsageError(
                f"the loss {name} compares entry by entry, and outputs {tuple(outputs.shape)} do not match targets {tuple(targets.shape)}."
            )
        targets = targets.reshape(outputs.shape)
    return targets.to(outputs.dtype)


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
    frozen: Buffers  # parameters that do not move
    constants: Buffers  # buffers that no checkpoint holds
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
        frozen, constants, buffers = {}, {}, {}
        first_name: dict[int, str] = {}
        offset = 0
        for name, parameter in module.named_parameters(remove_duplicate=False):
            if isinstance(parameter, nn.parameter.UninitializedParameter):
                raise UsageError(
                    f"parameter {name} is lazy and has no shape yet: run the model once on a batch before."
                )
            if id(parameter) in first_name:
                aliases[name] = first_name[id(parameter)]
                continue
            first_name[id(parameter)] = name
            value = parameter.detach()
            if value.is_meta:
                raise UsageError(f"parameter {name} lies on the meta device and has no values: load the weights first.")
            if parameter.requires_grad and not parameter.is_floating_point():
                raise UsageError(
                    f"parameter {name} is trained and {dtype_name(value.dtype)}: landscapes are over real numbers. Hold real and imaginary parts apart, or freeze it."
                )
            trained = parameter.requires_grad
            place = offset if trained else 0
            entries.append(
                Entry(name, tuple(value.shape), place, dtype_name(value.dtype), "parameter" if trained else "frozen")
            )
            if trained:
                parts.append(value.to(device, dtype).flatten())
                offset += value.numel()
            else:
                frozen[name] = _cast(value.clone(), device, dtype)
        if not parts:
            raise UsageError(
                "the model has no trainable floating-point parameter (requires_grad): there is no landscape to measure."
            )
        offset = 0
        held = module.state_dict().keys()
        for name, buffer in module.named_buffers(remove_duplicate=False):
            if id(buffer) in first_name:
                aliases[name] = first_name[id(buffer)]
                continue
            first_name[id(buffer)] = name
            persistent = name in held
            if buffer.is_complex() and persistent:
                raise UsageError(
                    f"buffer {name} is {dtype_name(buffer.dtype)}: buffers are recorded as real numbers. Register it with persistent=False."
                )
            value = _cast(buffer.detach().clone(), device, dtype)
            if persistent:
                entries.append(Entry(name, tuple(value.shape), offset, dtype_name(buffer.dtype), "buffer"))
                offset += value.numel()
                buffers[name] = value
            else:
                constants[name] = value
        convolves = any(isinstance(part, _CONVOLUTIONS) for part in module.modules())
        recurrent = any(isinstance(part, nn.RNNBase) for part in module.modules())
        # vmapped convolutions become grouped ones: 2.5 times slower than a loop on a CPU
        lockstep = not recurrent and not (convolves and device.type == "cpu")
        stochastic = any(_drops(part) for part in module.modules())
        network = Network(
            Layout(tuple(entries), aliases),
            _skeletons(module, device, dtype),
            frozen,
            constants,
            lockstep,
            recurrent,
            stochastic,
        )
        return network, torch.cat(parts), buffers

    @cached_property
    def _slots(self) -> dict[str, list[tuple[dict[str, Any], str, str]]]:
        """By mode, where the private copy holds each tensor: the dict, the key, and the full name."""
        found = {}
        for mode, skeleton in self.skeletons.items():
            found[mode] = [
                (held, key, f"{prefix}.{key}" if prefix else key)
                for prefix, part in skeleton.named_modules()
                for held in (part._parameters, part._buffers)
                for key, tensor in held.items()
                if tensor is not None
            ]
        return found

    @cached_property
    def _cuts(self) -> tuple[tuple[str, ...], list[int], list[tuple[int, ...]]]:
        """Names, sizes and shapes of the parameters."""
        entries = self.layout.of("parameter")
        return (
            tuple(entry.name for entry in entries),
            [entry.size for entry in entries],
            [entry.shape for entry in entries],
        )

    def split(self, w: Tensor) -> Parts:
        """See Predictor."""
        _, sizes, shapes = self._cuts
        lead, pieces = w.shape[:-1], w.split_with_sizes(sizes, -1)
        return tuple(
            piece if len(shape) == 1 else piece.view(lead + shape) for piece, shape in zip(pieces, shapes, strict=True)
        )

    def forward(self, parts: Parts, buffers: Buffers, inputs: Inputs, mode: str = "eval") -> tuple[Tensor, Buffers]:
        """See Predictor."""
        state: dict[str, Tensor] = dict(zip(self._cuts[0], parts, strict=True))
        # cloned, since a module may write to its buffers in any mode, and a pure function must not remember
        buffers = {name: value.clone() for name, value in buffers.items()}
        state.update(self.frozen)
        state.update(buffers)
        state.update({name: value.clone() for name, value in self.constants.items()})
        state.update({alias: state[name] for alias, name in self.layout.aliases.items()})
        arguments = inputs if isinstance(inputs, tuple) else () if isinstance(inputs, dict) else (inputs,)
        keywords = inputs if isinstance(inputs, dict) else {}
        slots = self._slots[mode]
        own = [held[key] for held, key, _ in slots]
        try:
            for held, key, name in slots:
                held[key] = state[name]
            with _without_recomputation():
                outputs = self.skeletons[mode](*arguments, **keywords)
        finally:
            for (held, key, _), tensor in zip(slots, own, strict=True):
                held[key] = tensor
        if not isinstance(outputs, Tensor):
            outputs = getattr(outputs, "logits", outputs[0] if isinstance(outputs, (tuple, list)) else outputs)
        if not isinstance(outputs, Tensor):
            raise UsageError(
                f"the model returned {type(outputs).__name__}; it must return a tensor (n, ...), or an object with `logits`."
            )
        return outputs, buffers

    def module(self, w: Tensor, buffers: Buffers) -> nn.Module:
        """A copy of the module in eval mode with the parameters w (D,) and the buffers; what was trained may be trained again."""
        copied = copy.deepcopy(self.skeletons["eval"])
        entries = self.layout.of("parameter")
        state = {entry.name: part for entry, part in zip(entries, self.split(w), strict=True)}
        state.update(self.frozen)
        state.update(buffers)
        state.update(self.constants)
        state.update({alias: state[name] for alias, name in self.layout.aliases.items()})
        trained = {entry.name for entry in entries}
        with torch.no_grad():
            for name, tensor in [*copied.named_parameters(), *copied.named_buffers()]:
                tensor.copy_(state[name])
                tensor.requires_grad_(name in trained)
        return copied


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def _drops(part: nn.Module) -> bool:
    """Whether a layer draws random numbers in train mode. Attention and recurrent layers hold their share as `dropout`, as do most that call it by function."""
    share = part.p if isinstance(part, _DROPOUTS) else getattr(part, "dropout", 0.0)
    return isinstance(share, (int, float)) and share > 0


class _PlainCall:
    """Stands for the autograd function of a reentrant checkpoint."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        return function(*args)


_PLAIN = {"_checkpoint_hook": lambda frame: contextlib.nullcontext(), "CheckpointFunction": _PlainCall}


@contextlib.contextmanager
def _without_recomputation() -> Iterator[None]:
    """torch.utils.checkpoint as a plain call: it runs parts of a model again in the backward pass, with the tensors that the module has by then, not with ours."""
    held = {name: getattr(checkpoint, name) for name in _PLAIN if hasattr(checkpoint, name)}
    for name in held:
        setattr(checkpoint, name, _PLAIN[name])
    try:
        yield
    finally:
        for name, own in held.items():
            setattr(checkpoint, name, own)


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` of torch.float32: as records and options write it."""
    return str(dtype).removeprefix("torch.")


def _skeletons(module: nn.Module, device: torch.device, dtype: torch.dtype) -> dict[str, nn.Module]:
    """Private copies by mode, which share one set of tensors: these are replaced in every call, and never read."""
    if isinstance(module, torch.jit.ScriptModule):
        raise UsageError(
            "the model is compiled by TorchScript, which cannot be evaluated at other parameters: give the module that it was made from."
        )
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise UsageError("the model is wrapped for parallel training: give the model inside (`model.module`).")
    try:
        first = copy.deepcopy(module)
    except RuntimeError as error:
        raise UsageError(
            f"the model cannot be copied ({error}). Old torch.nn.utils.weight_norm does this: use torch.nn.utils.parametrizations.weight_norm."
        ) from error
    for parameter in first.parameters():
        parameter.grad = None
    first = first.to(device=device, dtype=dtype).requires_grad_(False)
    shared = {id(tensor): tensor for tensor in (*first.parameters(), *first.buffers())}
    found = {}
    for mode in ("eval", "batch", "train"):
        copied = copy.deepcopy(first, dict(shared)).train(mode != "eval")
        if mode == "batch":
            for part in copied.modules():
                if not isinstance(part, nn.modules.batchnorm._NormBase):
                    part.training = False
        found[mode] = copied
    return found


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


def leaves(model: Predictor, w: Tensor, moved: Sequence[int] | None = None) -> Parts:
    """The parameter tensors in w (..., D), each (of those at the places `moved`) to be differentiated by itself: a third faster than through views of one vector."""
    parts = enumerate(model.split(w))
    return tuple(part.detach().requires_grad_(moved is None or place in moved) for place, part in parts)


def flat(parts: Sequence[Tensor], members: int = 0) -> Tensor:
    """The inverse of split: (D,), or (E, D) for the parts of `members` vectors."""
    return torch.cat([part.reshape(members, -1) if members else part.reshape(-1) for part in parts], dim=-1)


def flat_buffers(layout: Layout, buffers: Buffers) -> np.ndarray:
    """Buffers as one row (B,) float64, which holds float32 and counters below 2^53 exactly."""
    parts = [buffers[entry.name].detach().cpu().double().flatten().numpy() for entry in layout.of("buffer")]
    return np.concatenate(parts) if parts else np.empty(0)


def named_buffers(layout: Layout, row: np.ndarray, like: Buffers) -> dict[str, Tensor]:
    """The inverse of `flat_buffers`, with dtypes and device of `like`."""
    flat = torch.from_numpy(np.array(row))
    return {
        entry.name: flat[entry.offset : entry.offset + entry.size]
        .reshape(entry.shape)
        .to(like[entry.name].device, like[entry.name].dtype)
        for entry in layout.of("buffer")
    }


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
    channels_last: bool = False  # images are held pixel by pixel: convolutions on a CPU are a fifth faster so

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
        f = Objective(network, Loss.of(loss), rows.to(device, dtype), buffers, dtype, device, chunk)
        _try_two_rows(f, point)
        convolves = any(isinstance(part, nn.Conv2d) for part in module.modules())
        return dataclasses.replace(
            f,
            model=dataclasses.replace(network, stochastic=network.stochastic or _draws(f, point)),
            channels_last=convolves and device.type == "cpu" and _takes_channels_last(f, point),
        ), point

    @staticmethod
    def of_many(
        modules: Sequence[nn.Module],
        loss: str | nn.Module | Callable[..., Tensor] | Loss,
        rows: Rows,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> tuple[Objective, Tensor, Buffers]:
        """The objective that modules of one kind share, with their present parameters (E, D) and their buffers (E, ...), each with a leading axis.

        Raises UsageError, naming the tensor, where they differ in one that does not move: an ensemble shares these.
        """
        f, _ = Objective.of(modules[0], loss, rows, device=device, dtype=dtype)
        assert isinstance(f.model, Network)
        found = [Network.of(module, f.device, dtype) for module in modules]
        for place, (network, _, _) in enumerate(found):
            for mine, theirs in ((f.model.frozen, network.frozen), (f.model.constants, network.constants)):
                for name, value in mine.items():
                    if not torch.equal(value, theirs[name]):
                        raise UsageError(
                            f"{name!r} does not move and differs between the models 0 and {place} (of the first and another seed): what goes in lockstep shares such "
                            "tensors. Make it the same for every seed, or give one seed."
                        )
        buffers = {name: torch.stack([own[name] for _, _, own in found]) for name in f.buffers}
        return f, torch.stack([point for _, point, _ in found]), buffers

    @staticmethod
    def from_function(
        function: Callable[[Tensor], Tensor],
        dim: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float64,
    ) -> Objective:
        """The objective of a differentiable function (D,) -> () written in torch: no data, so one row."""
        layout = Layout((Entry("w", (dim,), 0, dtype_name(dtype), "parameter"),))
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

    @property
    def mask(self) -> Tensor | None:
        """Zeros and ones (D,) or (E, D), where a mask alone restricts: coordinates are then the parameters, times it. None elsewhere."""
        return self.charts[0].mask if len(self.charts) == 1 else None

    def restrict(self, subspace: Subspace) -> Objective:
        """z -> f(subspace.lift(z)): again an objective, of subspace.dim coordinates."""
        if subspace.ambient != self.dim:
            raise UsageError(f"a subspace of {subspace.ambient} dimensions cannot restrict an objective of {self.dim}.")
        return dataclasses.replace(self, charts=(*self.charts, subspace))

    def among(self, w: Tensor, params: str) -> tuple[Objective, Tensor]:
        """The objective in the parameters whose names match globs (several separated by commas), the others held at w (D,), and its point.

        Raises UsageError where a glob matches none, and for an objective that is restricted already.
        """
        if self.charts:
            raise UsageError(
                "parameters are those of the whole vector: choose them before the objective is restricted."
            )
        mask = torch.from_numpy(self.model.layout.select(params)).to(w.device)
        return self.restrict(coordinates(w, mask)), w[mask]

    def on(self, rows: Rows | Tensor | slice) -> Objective:
        """The same function over other rows, or over the rows at an index."""
        chosen = rows.to(self.device, self.dtype) if isinstance(rows, Rows) else self.rows.take(rows)
        return dataclasses.replace(self, rows=chosen)

    def with_buffers(self, buffers: Buffers, norm: NormMode | None = None) -> Objective:
        """The same function with other buffers (BatchNorm statistics)."""
        return dataclasses.replace(self, buffers=dict(buffers), norm=norm or self.norm)

    # -- values --------------------------------------------------------------

    def of_all_points(self) -> Objective:
        """The same function as one of the weights alone, for sets of points: BatchNorm, where there is any, by the statistics of each chunk of rows. Running ones are of one point."""
        return self.with_buffers(self.buffers, norm="batch") if self.buffers else self

    def __call__(self, z: Tensor) -> Tensor:
        """f at one point (d,) or at many (E, d): () or (E,), in float64 where the device has it."""
        return self.value(z).loss

    def value(self, z: Tensor, buffers: Buffers | None = None) -> Value:
        """Loss and accuracy over all rows, at one point (d,) or many (E, d). buffers: those of each of many points, with a leading axis E; else all have the objective's."""
        w = self.lift(self._points(z))
        if z.ndim == 1:
            return self._value(w)
        if not self.model.lockstep:
            owns = [self if buffers is None else self._member(buffers, place) for place in range(len(w))]
            values = [own._value(point) for own, point in zip(owns, w, strict=True)]
        else:
            if buffers is None:
                buffers = {name: value.expand(len(w), *value.shape) for name, value in self.buffers.items()}
            values = [
                self._values(w[first : first + LOCKSTEP], {k: v[first : first + LOCKSTEP] for k, v in buffers.items()})
                for first in range(0, len(w), LOCKSTEP)
            ]
        join = torch.cat if self.model.lockstep else torch.stack
        return Value(join([v.loss for v in values]), join([v.accuracy for v in values]))

    def _member(self, buffers: Buffers, place: int) -> Objective:
        return self.with_buffers({name: value[place] for name, value in buffers.items()})

    def _values(self, w: Tensor, buffers: Buffers) -> Value:
        """Loss and accuracy (E,) at parameter vectors (E, D) in lockstep."""
        members, parts = len(w), self.model.split(w)
        sums = torch.zeros(4, members, dtype=_exact(self.device), device=self.device)
        # under BatchNorm by the statistics of a chunk, a chunk is what it is for one point
        size = (
            self.chunk
            if self.norm == "batch"
            else min(self.chunk, max(1, EVALUATED.get(self.device.type, EVALUATED_ELSEWHERE) // members))
        )
        for rows in self.rows.chunks(size):
            with torch.no_grad():
                found = self._by_row(self._outputs(parts, buffers, rows), rows)
                sums += torch.stack([part.to(sums.dtype).sum(1) for part in found])
        loss, weight, right, counted = sums
        return Value(loss / weight, right / counted)

    def by_row(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Loss l_i / mean(c) (N,) and share of right answers (N,) of each row at one point (d,); the mean of the first is f."""
        parts = self.model.split(self.lift(self._points(z)))
        with torch.no_grad():
            found = [self._chunk(parts, rows) for rows in self.rows.chunks(self.chunk)]
        losses, weights, right, counted = (torch.cat([chunk[i] for chunk in found]) for i in range(4))
        return losses / weights.mean(), right / counted

    def outputs(self, z: Tensor, buffers: Sequence[Buffers] | None = None) -> Tensor:
        """What the model answers for every row: (N, ...) at one point (d,), (E, N, ...) at many (E, d), there with the buffers of each, or else the objective's.

        Points are taken one after another: on a CPU a batched product of many small matrices takes half as long again as one product each.
        """
        w = self.lift(self._points(z))
        pieces = self.model.split(w if w.ndim == 2 else w.unsqueeze(0))
        owns = buffers or [self.buffers] * len(pieces[0])
        with torch.no_grad():
            found = [
                self._forward(tuple(parts), rows, own)
                for *parts, own in zip(*(piece.unbind() for piece in pieces), owns, strict=True)
                for rows in self.rows.chunks(self.chunk)
            ]
        answers = found[0] if len(found) == 1 else torch.cat(found)
        return answers if z.ndim == 1 else answers.view(len(w), -1, *answers.shape[1:])

    # -- derivatives ---------------------------------------------------------

    def gradient(self, z: Tensor) -> Tensor:
        """The gradient at one point (d,) or many (E, d), of that shape."""
        return self.value_and_gradient(z)[1]

    def value_and_gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """f, () or (E,), and its gradient, of z's shape."""
        value, gradient = self._slope(self.lift(self._points(z)), self._moved(z.shape[:-1]))
        return value, self.project(gradient)

    def curvature(
        self, z: Tensor, name: Curvature, *, samples: int = 1, seed: int = 0, keep: bool | None = None
    ) -> SymmetricOperator:
        """The matrix (d, d) of that name at one point: one of `CURVATURES`. samples and seed: of `fisher`.

        Raises UsageError for another name, and where the loss or the normalisation does not define the matrix.
        """
        if name == "fisher":
            return self.fisher(z, samples=samples, seed=seed, keep=keep)
        others: dict[str, Callable[..., SymmetricOperator]] = {
            "hessian": self.hessian,
            "gauss-newton": self.gauss_newton,
            "empirical-fisher": self.empirical_fisher,
            "gradient-covariance": self.gradient_covariance,
        }
        if name not in others:
            raise unknown("matrix of curvature", name, CURVATURES)
        return others[name](z, keep=keep)

    def hessian(self, z: Tensor, *, keep: bool | None = None) -> SymmetricOperator:
        """The Hessian (d, d) at one point.

        keep: hold the gradient's graph of all rows between products (over twice as fast); by default where it takes at most half of the free memory,
        measured on a few rows. Otherwise each product builds the graph chunk by chunk, and where a chunk's does not fit, in smaller ones (see `notes` of the operator).
        """
        w, moved, total = self._expansion(z)
        return self._operator(w, moved, keep, lambda place: self._hessian_graph(w, moved, self.rows.take(place), total))

    def gauss_newton(self, z: Tensor, *, keep: bool | None = None) -> SymmetricOperator:
        """The generalised Gauss-Newton matrix (d, d): the mean over rows of J_i^T (d^2 l_i / d outputs^2) J_i. `keep` as for `hessian`."""

        def bend(outputs: Tensor, rows: Rows, place: slice) -> Callable[[Tensor], Tensor] | None:
            with torch.enable_grad():
                answer = outputs.requires_grad_()
                losses, _ = self.loss.rows(answer, rows.targets)
                (slope,) = torch.autograd.grad(losses.sum(), answer, create_graph=True)
            if not slope.requires_grad:  # a loss linear in the outputs
                return None
            return lambda tangent: torch.autograd.grad(slope, answer, tangent, retain_graph=True)[0]

        return self._sandwich(z, bend, keep)

    def fisher(self, z: Tensor, *, samples: int = 1, seed: int = 0, keep: bool | None = None) -> SymmetricOperator:
        """The Fisher information (d, d) with targets drawn from the model: the weighted mean over targets and draws of J^T s s^T J.

        s is the slope, by the outputs, of -log likelihood at the drawn target. Its expectation is `gauss_newton` for losses on logits and for squares.
        samples: draws of each target. They depend on the seed, their number and the row alone, so that all products are with one matrix.
        Raises UsageError where the loss has no known likelihood, or samples < 1.
        """
        likelihood = self._likelihood("fisher")
        if samples < 1:
            raise UsageError(f"a Fisher matrix takes at least 1 sample a target; got {samples}.")
        noise: list[Tensor] = []  # drawn once, for all rows, so that no chunk or order of products matters

        def bend(outputs: Tensor, rows: Rows, place: slice) -> Callable[[Tensor], Tensor]:
            viewed = likelihood.targets(outputs)
            if not noise:
                shape = (len(self.rows), viewed.shape[1], viewed.shape[2])
                draws = [likelihood.noise(shape, generator(seed, "fisher", sample)) for sample in range(samples)]
                noise.append(torch.stack(draws).to(outputs.dtype))
            drawn = noise[0][:, place].to(outputs.device)
            scores = torch.stack([likelihood.score(viewed, one) for one in drawn])
            return outer(scores, likelihood.weights(outputs, rows.targets), outputs.shape)

        return self._sandwich(z, bend, keep)

    def empirical_fisher(self, z: Tensor, *, keep: bool | None = None) -> SymmetricOperator:
        """The empirical Fisher matrix (d, d): as `fisher`, at the targets of the data instead of drawn ones. It is not an estimate of `fisher` or of the Hessian.

        Every target counts by itself: each token of a sequence, each entry of a binary answer. Raises UsageError where the loss has no known likelihood.
        """
        likelihood = self._likelihood("empirical-fisher")

        def bend(outputs: Tensor, rows: Rows, place: slice) -> Callable[[Tensor], Tensor]:
            slope, _ = self._slope_by_outputs(outputs, rows)
            return _outer_over(likelihood.targets(slope), likelihood.weights(outputs, rows.targets), outputs.shape)

        return self._sandwich(z, bend, keep)

    def gradient_covariance(self, z: Tensor, *, keep: bool | None = None) -> SymmetricOperator:
        """The uncentred covariance (d, d) of the gradients g_i of l_i / c_i: sum c_i g_i g_i^T / sum c_i, for any loss. Rows of weight 0 do not count.

        One gradient a row: of a row of several targets it holds what these have in common, so there it differs from `empirical_fisher`.
        Raises UsageError for BatchNorm by the statistics of a chunk, where no row has a gradient of its own.
        """
        if self.norm == "batch":
            raise UsageError(
                "BatchNorm by the statistics of its chunk couples the rows: no row has a gradient of its own. Use the running statistics (norm='eval')."
            )

        def bend(outputs: Tensor, rows: Rows, place: slice) -> Callable[[Tensor], Tensor]:
            slope, weights = self._slope_by_outputs(outputs, rows)
            return _outer_over(slope.reshape(len(slope), -1, 1), weights.unsqueeze(1), outputs.shape)

        return self._sandwich(z, bend, keep)

    def graph_bytes(self, z: Tensor) -> int:
        """Memory that `hessian` would hold between products at one point (d,), measured on a few rows."""
        w, moved = self.lift(self._points(z)).detach(), self._moved(())
        chunks = self._chunks(lambda place: self._hessian_graph(w, moved, self.rows.take(place), 1.0), keep=False)
        fixed, each = chunks.measured() or (0.0, 0.0)
        return round(fixed * len(chunks.slices) + each * len(self.rows))

    def module(self, z: Tensor) -> nn.Module:
        """A copy of the module, in eval mode, with the parameters at one point (d,) and the buffers of this objective: to hand the point to another library.

        Raises UsageError for the objective of a function, and for BatchNorm by the statistics of a chunk, which eval mode does not have.
        """
        if not isinstance(self.model, Network):
            raise UsageError("this objective is of a function, not of a module: it has none to give.")
        if self.norm == "batch":
            raise UsageError(
                "BatchNorm by the statistics of its chunk is no eval mode: take the objective with norm='eval'."
            )
        return self.model.module(self.lift(self._points(z)).detach(), self.buffers)

    # -- inside --------------------------------------------------------------

    def _points(self, z: Tensor) -> Tensor:
        if z.ndim not in (1, 2) or z.shape[-1] != self.dim:
            raise UsageError(f"a point has shape ({self.dim},), many (E, {self.dim}); got {tuple(z.shape)}.")
        return z

    def _forward(self, parts: Parts, rows: Rows, buffers: Buffers | None = None) -> Tensor:
        inputs = mapped(rows.inputs, _pixel_by_pixel) if self.channels_last else rows.inputs
        return self.model.forward(parts, self.buffers if buffers is None else buffers, inputs, self.norm)[0]

    def _value(self, w: Tensor) -> Value:
        parts = self.model.split(w)
        sums = [torch.zeros((), dtype=_exact(self.device), device=self.device)] * 4
        with torch.no_grad():
            for rows in self.rows.chunks(self.chunk):
                sums = [
                    total + part.to(total.dtype).sum()
                    for total, part in zip(sums, self._chunk(parts, rows), strict=True)
                ]
        loss, weight, right, counted = sums
        return Value(loss / weight, right / counted)

    def _chunk(self, parts: Parts, rows: Rows) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of every row (n,): loss, its weight, right answers, counted answers."""
        outputs = self._forward(parts, rows)
        losses, weights = self.loss.rows(outputs, rows.targets)
        return losses, weights, *self.loss.correct(outputs.detach(), rows.targets)

    def _outputs(self, parts: Parts, buffers: Buffers, rows: Rows) -> Tensor:
        """Outputs (E, n, ...) of many parameter vectors (E, D), each with buffers of its own, on the same rows."""

        def one(member: Parts, own: Buffers) -> Tensor:
            return self.model.forward(member, own, rows.inputs, self.norm)[0]

        with _without_attention_fastpath(), sdpa_kernel(SDPBackend.MATH):  # the fused kernels are not batched
            outputs: Tensor = torch.func.vmap(one)(parts, dict(buffers))
        return outputs

    def _ensemble(self, parts: Parts, rows: Rows) -> tuple[Tensor, Tensor]:
        """Losses and weights (E, n) of many parameter vectors (E, D) on the same rows."""

        members = len(parts[0])
        # of each its own, since batch mode writes to them
        buffers = {name: value.expand(members, *value.shape) for name, value in self.buffers.items()}
        losses, weights = self._by_row(self._outputs(parts, buffers, rows), rows)[:2]
        return losses, weights

    def _by_row(self, outputs: Tensor, rows: Rows) -> tuple[Tensor, ...]:
        """Of outputs (E, n, ...): loss, its weight, right and counted answers, (E, n) each. The loss knows rows, not members: all of them are its rows at once."""
        members = len(outputs)
        targets = rows.targets.expand(members, *rows.targets.shape).flatten(0, 1)
        outputs = outputs.flatten(0, 1)
        found = (*self.loss.rows(outputs, targets), *self.loss.correct(outputs.detach(), targets))
        return tuple(part.view(members, -1) for part in found)

    @cached_property
    def _moves(self) -> dict[tuple[int, ...], tuple[int, ...]]:
        return {}

    def _moved(self, lead: tuple[int, ...] | torch.Size) -> tuple[int, ...]:
        """Places of the parameter tensors that coordinates of shape (*lead, d) move; the others are constants, by which nothing need be differentiated.

        A random direction moves them all, whatever the charts are: a tensor that it leaves, all of them leave (but for a set of directions of measure zero).
        """
        lead = tuple(lead)
        if lead not in self._moves:
            if self.charts:
                drawn = torch.randn(*lead, self.dim, generator=generator(0, "moved"), dtype=torch.float64)
                pieces = self.model.split(self.push(drawn.to(self.device, self.dtype)))
                found = tuple(place for place, piece in enumerate(pieces) if bool((piece != 0).any()))
            else:
                found = tuple(range(len(self.model.layout.of("parameter"))))
            self._moves[lead] = found
        return self._moves[lead]

    def _slope(self, w: Tensor, moved: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """f and its gradient by the parameters w (D,) or (E, D), of that shape; 0 by those that do not move."""
        if w.ndim == 2 and not self.model.lockstep:
            pairs = [self._slope(point, moved) for point in w]
            return torch.stack([p[0] for p in pairs]), torch.stack([p[1] for p in pairs])
        loss = weight = torch.zeros((), dtype=_exact(self.device), device=self.device)
        gradient = torch.zeros_like(w)
        pieces = [self.model.split(gradient)[place] for place in moved]
        with torch.enable_grad():
            parts = leaves(self.model, w, moved)
            for rows in self.rows.chunks(self.chunk):
                losses, weights = self._ensemble(parts, rows) if w.ndim == 2 else self._chunk(parts, rows)[:2]
                if losses.requires_grad:  # else it depends on no parameter that moves
                    by = [parts[place] for place in moved]
                    for piece, slope in zip(
                        pieces, torch.autograd.grad(losses.sum(), by, materialize_grads=True), strict=True
                    ):
                        piece += slope
                loss = loss + losses.detach().to(loss.dtype).sum(-1)
                weight = weight + weights.detach().to(loss.dtype).sum(-1)
        scale = (1 / weight).to(gradient.dtype)
        return loss / weight, gradient * (scale.unsqueeze(-1) if w.ndim == 2 else scale)

    def _expansion(self, z: Tensor) -> tuple[Tensor, tuple[int, ...], float]:
        """The parameters (D,) at one point, the places of those that move, and the total weight of the rows."""
        if z.ndim != 1:
            raise UsageError(f"curvature is taken at one point ({self.dim},); got {tuple(z.shape)}.")
        w = self.lift(self._points(z)).detach()
        return w, self._moved(()), self._total_weight(w)

    def _chunks(self, build: Callable[[slice], Product], keep: bool | None) -> Chunks:
        return Chunks(build, len(self.rows), self.chunk, self.device, keep, divisible=self.norm != "batch")

    def _operator(
        self, w: Tensor, moved: tuple[int, ...], keep: bool | None, build: Callable[[slice], Product]
    ) -> SymmetricOperator:
        """The sum over chunks of rows of what `build` gives, seen through the charts."""
        chunks = self._chunks(build, keep)

        def product(v: Tensor) -> Tensor:
            along = self.model.split(self.push(v))
            image = torch.zeros_like(w)
            pieces = self.model.split(image)
            found = chunks.product(tuple(along[i] for i in moved)) if moved else ()
            for i, piece in zip(moved, found, strict=True):
                pieces[i].copy_(piece)
            return self.project(image)

        return SymmetricOperator(self.dim, product, self.dtype, self.device, notes=chunks.notes)

    def _sandwich(self, z: Tensor, bend: _Bend, keep: bool | None) -> SymmetricOperator:
        """sum over rows of J^T B J / sum c_i, with B of a chunk given by `bend` of its outputs."""
        w, moved, total = self._expansion(z)

        def build(place: slice) -> Product:
            rows = self.rows.take(place)
            with twice_differentiable(recurrent=self.model.recurrent) as kernels:
                parts = leaves(self.model, w, moved)
                outputs = self._forward(parts, rows)
                bent = bend(outputs.detach().clone(), rows, place)
                scaled = None if bent is None else lambda tangent: bent(tangent) / total
                return sandwich_graph(outputs, tuple(parts[i] for i in moved), scaled, kernels)

        return self._operator(w, moved, keep, build)

    def _hessian_graph(self, w: Tensor, moved: tuple[int, ...], rows: Rows, total: float) -> Product:
        with twice_differentiable(recurrent=self.model.recurrent):
            parts = leaves(self.model, w, moved)
            losses = self._chunk(parts, rows)[0]
            return hessian_graph(losses.sum() / total, tuple(parts[i] for i in moved))

    def _slope_by_outputs(self, outputs: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """d sum_i l_i / d outputs (n, ...), and the weights c_i (n,)."""
        with torch.enable_grad():
            answer = outputs.detach().requires_grad_()
            losses, weights = self.loss.rows(answer, rows.targets)
            (slope,) = torch.autograd.grad(losses.sum(), answer, materialize_grads=True)
        return slope, weights.detach()

    def _likelihood(self, matrix: str) -> Likelihood:
        if self.loss.likelihood is None:
            raise UsageError(
                f"the loss {self.loss.name} has no known likelihood, so no {matrix} matrix. Allowed: cross-entropy, NLLLoss, BCELoss and BCEWithLogitsLoss without "
                "weights by entry, mse. For any loss there are hessian, gauss-newton and gradient-covariance."
            )
        return self.loss.likelihood

    @cached_property
    def _weighed(self) -> list[float]:
        return []

    def _total_weight(self, w: Tensor) -> float:
        """sum c_i. Only the losses know the weights, so one pass at any point; most losses weigh every row 1 and this is N."""
        if not self._weighed:
            with torch.no_grad():
                parts = self.model.split(w)
                chunks = (self._chunk(parts, rows)[1] for rows in self.rows.chunks(self.chunk))
                self._weighed.append(float(sum(weights.to(_exact(self.device)).sum() for weights in chunks)))
        return self._weighed[0]


_Bend = Callable[
    [Tensor, Rows, slice], Callable[[Tensor], Tensor] | None
]  # outputs and their rows -> the product with B


def _outer_over(slopes: Tensor, weights: Tensor, shape: torch.Size) -> Callable[[Tensor], Tensor]:
    """The product with sum_t weight_t s_t s_t^T where slopes (n, C, T) are weight_t s_t; targets of weight 0 have no s and do not count."""
    return outer(slopes, torch.where(weights > 0, 1 / weights, 0.0), shape)


def _pixel_by_pixel(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def _exact(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64


@contextlib.contextmanager
def _without_attention_fastpath() -> Iterator[None]:
    """Attention's fused inference kernels have no derivative, and under vmap, where parameters do not show that they need one, eval mode takes them."""
    allowed = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(allowed)


def _try_two_rows(f: Objective, w: Tensor) -> None:
    """Evaluate two rows, so that a model, a loss and data that do not fit each other are told so with their shapes, before any work is done."""
    rows = f.rows.take(slice(0, 2))
    shapes = ", ".join(f"{tuple(tensor.shape)} {dtype_name(tensor.dtype)}" for tensor in tensors_of(rows.inputs))
    try:
        with torch.no_grad(), warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            outputs = f.model.forward(f.model.split(w), f.buffers, rows.inputs)[0]
            if outputs.ndim == 0 or len(outputs) != len(rows):
                raise UsageError(
                    f"the model returned shape {tuple(outputs.shape)} for {len(rows)} rows of inputs {shapes}: its first axis must be the rows."
                )
            f.loss.rows(outputs, rows.targets)
    except (LandscapeError, MemoryError):
        raise
    except Exception as error:
        if lines := users_lines(error):
            raise LandscapeError(f"your code failed on two rows of inputs {shapes}:\n{lines}") from error
        targets = f"{tuple(rows.targets.shape)} {dtype_name(rows.targets.dtype)}"
        raise UsageError(
            f"model, loss {f.loss.name} and data do not fit each other. Two rows of inputs {shapes} with targets {targets} gave: "
            f"{type(error).__name__}: {error}"
        ) from error
    if any("target size" in str(one.message) for one in said):
        raise UsageError(
            f"the loss {f.loss.name} broadcasts outputs {tuple(outputs.shape)} against targets {tuple(rows.targets.shape)}: give them one shape."
        )


def _takes_channels_last(f: Objective, w: Tensor) -> bool:
    """Whether two rows of images held pixel by pixel have the answers of the rows as they are: `view` does not take them."""
    rows, parts = f.rows.take(slice(0, 2)), f.model.split(w)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        truth = f._forward(parts, rows)
        try:
            other = dataclasses.replace(f, channels_last=True)._forward(parts, rows)
        except RuntimeError:
            return False
    return torch.allclose(truth, other, rtol=1e-3, atol=1e-5 * float(truth.abs().max()), equal_nan=True)


def _draws(f: Objective, w: Tensor) -> bool:
    """Whether a pass in train mode draws random numbers, from whichever layer."""
    cuda = f.device.type == "cuda"
    with torch.random.fork_rng(devices=[f.device] if cuda else []), torch.no_grad():
        before = torch.get_rng_state(), torch.cuda.get_rng_state(f.device) if cuda else None
        try:
            f.model.forward(f.model.split(w), f.buffers, f.rows.take(slice(0, 2)).inputs, "train")
        except (ValueError, RuntimeError):  # BatchNorm of one row has no statistics: nothing was drawn up to there
            return False
        after = torch.get_rng_state(), torch.cuda.get_rng_state(f.device) if cuda else None
    return any(a is not None and b is not None and not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def require_finite(values: Tensor, what: str) -> None:
    """Raise LandscapeError, with the count, where `values` has NaN or infinite entries."""
    bad = int((~torch.isfinite(values)).sum())
    if bad:
        raise LandscapeError(
            f"{what} has {bad} NaN or infinite of {values.numel()} entries: nothing was computed from it. See `landscape check`."
        )
