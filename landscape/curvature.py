"""How products with matrices of second derivatives are taken: kernels, graphs, and the memory that they hold.

Letters: N rows of data, n rows of a chunk, C and T of outputs viewed as T targets of C numbers each, J the Jacobian of the outputs by the parameters.

A graph is built once for a chunk of rows and then asked for many products:
`hessian_graph`: the gradient, differentiated a second time (double backward; Pearlmutter 1994). `sandwich_graph`: J^T B J, B the loss's own curvature or
scores of its targets; J v by differentiating J^T u, which is linear in u (Schraudolph 2002).

torch's own double backward of a convolution takes the weights' part as a convolution by a kernel as large as the image, that of batch norm is one of a training step,
and that of ReLU writes zeros for the curvature that ReLU does not have. The kernels here say what these layers are: bilinear, affine, a mask. A product with the Hessian of a
ResNet-20 takes two thirds of the time so, one with the Gauss-Newton matrix half (`benchmarks/foundation.py e`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from landscape.errors import LandscapeError

Pieces = tuple[Tensor, ...]  # tensors of the shapes of the parameters that move
Product = Callable[[Pieces], Pieces]
T = TypeVar("T")


# -- graphs -----------------------------------------------------------------------------------------------------------


def hessian_graph(value: Tensor, parts: Pieces) -> Product:
    """v -> H v of a scalar value by `parts`; built under `twice_differentiable`."""
    if not value.requires_grad:  # the value depends on none of them
        return _nothing
    slopes = torch.autograd.grad(value, parts, create_graph=True, materialize_grads=True)
    bent = [place for place, slope in enumerate(slopes) if slope.requires_grad]  # the others are constant: no curvature
    if not bent:
        return _nothing

    def product(along: Pieces) -> Pieces:
        return torch.autograd.grad(
            [slopes[i] for i in bent], parts, [along[i] for i in bent], retain_graph=True, materialize_grads=True
        )

    return product


def sandwich_graph(
    outputs: Tensor, parts: Pieces, bend: Callable[[Tensor], Tensor] | None, kernels: Kernels
) -> Product:
    """v -> J^T B J v, with `bend` the product with B on a tangent of the outputs' shape (None where B = 0); built under `twice_differentiable`, with its kernels."""
    if bend is None or not outputs.requires_grad:
        return _nothing
    dummy = torch.zeros_like(outputs, requires_grad=True)
    with kernels.by_tangent_alone():
        pulled = torch.autograd.grad(outputs, parts, dummy, create_graph=True, materialize_grads=True)  # J^T u
    moving = [place for place, part in enumerate(pulled) if part.requires_grad]
    if not moving:  # the outputs do not vary
        return _nothing

    def product(along: Pieces) -> Pieces:
        (tangent,) = torch.autograd.grad(
            [pulled[i] for i in moving], dummy, [along[i] for i in moving], retain_graph=True, materialize_grads=True
        )
        return torch.autograd.grad(outputs, parts, bend(tangent), retain_graph=True, materialize_grads=True)

    return product


def outer(scores: Tensor, weights: Tensor, shape: torch.Size) -> Callable[[Tensor], Tensor]:
    """The product with sum_t weight_t s_t s_t^T on tangents of `shape` (n, ...): scores (samples, n, C, T) or (n, C, T), weights (n, T); the mean over samples."""
    scores = scores if scores.ndim == 4 else scores.unsqueeze(0)

    def bend(tangent: Tensor) -> Tensor:
        tangent = tangent.reshape(scores.shape[1:])
        along = (scores * tangent).sum(2, keepdim=True) * weights.unsqueeze(1)
        return (scores * along).mean(0).reshape(shape)

    return bend


def _nothing(along: Pieces) -> Pieces:
    return tuple(torch.zeros_like(piece) for piece in along)


# -- the sum over rows, in the memory that there is -------------------------------------------------------------------


@dataclass(eq=False)
class Chunks:
    """Sums over chunks of rows of the products that `build` gives for a slice of them, in as much memory as there is.

    The graphs of all chunks are held between products (`keep`) where they take at most half of the free memory; else each product builds them anew. A chunk whose graph alone
    would take more is split, and what still runs out of memory is halved down to single rows. `notes` says what was done and why.
    """

    build: Callable[[slice], Product]
    rows: int
    size: int  # rows at once
    device: torch.device
    keep: bool | None
    divisible: bool = True  # False where rows depend on each other: another split would be another function
    notes: list[str] = field(default_factory=list)
    _kept: dict[int, Product] = field(default_factory=dict)  # by first row
    _bytes_a_row: float | None = None

    def __post_init__(self) -> None:
        asked = self.size = min(self.size, self.rows)
        free = free_memory(self.device)
        measured = self.measured()
        if measured is not None:
            fixed, self._bytes_a_row = measured
            if self.divisible and fixed + self._bytes_a_row * asked > free / 2:
                self.size = max(1, min(asked, int((free / 2 - fixed) / max(self._bytes_a_row, 1.0))))
            if self.keep is None:
                self.keep = fixed * len(self.slices) + self._bytes_a_row * self.rows <= free / 2
        reason = f"half of the {_readable(free)} that were free"
        if self.keep and not self._keeps():
            self.keep, reason = False, "the memory that was there"
        while not self.keep and _tried(lambda: self.build(self.slices[0])) is None:
            self._halve()
            reason = "the memory that was there"
        if self.size < asked:
            size = "" if self._bytes_a_row is None else f" of {_readable(asked * self._bytes_a_row)}"
            self.notes.append(f"rows taken {self.size} at a time: the graph{size} of {asked} did not fit in {reason}")

    @property
    def slices(self) -> list[slice]:
        """The chunks, in order."""
        return [slice(first, min(first + self.size, self.rows)) for first in range(0, self.rows, self.size)]

    def measured(self) -> tuple[float, float] | None:
        """Bytes that the graph of a chunk holds of its own: a fixed part and a part a row, from graphs of 2 and of 8 rows; None where not even these fit,
        and where torch does not let it be measured.

        What both of them hold, parameters and data, all the others hold too: it is there once and not counted.
        """
        found: list[tuple[int, Product, dict[int, int]]] = []
        for size in sorted({min(2, self.size), min(8, self.size)}):
            try:
                graph = _tried(lambda size=size: self._graph(size))  # type: ignore[misc]
            except RuntimeError as error:
                if "saved tensor hooks" not in str(error):  # torch.func.grad, in a model, does not run under them
                    raise
                graph = None
                if not self.keep:
                    self.notes.append(
                        "the graph is built anew in every product, since torch.func in the model does not let its size be measured; keep=True holds it"
                    )
            if graph is None:
                break
            found.append((size, *graph))
        if not found:
            return None
        shared = found[0][2].keys() & found[1][2].keys() if len(found) == 2 else set()
        held = [sum(size for place, size in storages.items() if place not in shared) for _, _, storages in found]
        n = found[-1][0]
        each = (held[1] - held[0]) / (n - found[0][0]) if len(found) == 2 else held[0] / n
        return max(held[-1] - each * n, 0.0), each

    def product(self, along: Pieces) -> Pieces:
        """The sum over all rows."""
        while True:
            done = _tried(lambda: self._sum(along))
            if done is not None:
                return done
            if self._kept:  # what is held leaves no room to work in
                self._kept, self.keep = {}, False
            else:
                self._halve()
                self.notes[:] = [f"rows taken {self.size} at a time: memory ran out in a product with more"]

    def _sum(self, along: Pieces) -> Pieces:
        image = None
        for part in self.slices:
            found = (self._kept.get(part.start) or self.build(part))(along)
            image = found if image is None else tuple(a + b for a, b in zip(image, found, strict=True))
        assert image is not None
        return image

    def _graph(self, size: int) -> tuple[Product, dict[int, int]]:
        with _saved() as storages:
            return self.build(slice(0, size)), storages

    def _keeps(self) -> bool:
        kept = _tried(lambda: {part.start: self.build(part) for part in self.slices})
        self._kept = kept or {}
        return kept is not None

    def _halve(self) -> None:
        if self.size == 1 or not self.divisible:
            each = "" if self._bytes_a_row is None else f" (a row takes {_readable(self._bytes_a_row)})"
            raise LandscapeError(
                f"the graph of {self.size} row{'s' * (self.size > 1)} does not fit in memory{each}; {_readable(free_memory(self.device))} are free. "
                + (
                    "Take float32, smaller inputs, fewer parameters, or a machine with more memory."
                    if self.divisible
                    else "BatchNorm by the statistics of a chunk does not allow to split it: take norm='eval', or smaller chunks."
                )
            )
        self.size = (self.size + 1) // 2


def _tried(work: Callable[[], T]) -> T | None:
    """What the work gives, or None where memory ran out. Outside the handler nothing holds the frames, and so the tensors, of the failure any more."""
    try:
        return work()
    except MemoryError:
        pass
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and not any(said in str(error) for said in _ALLOCATORS):
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


# what allocators without an exception type of their own say
_ALLOCATORS = ("can't allocate memory", "DefaultCPUAllocator", "not enough memory", "out of memory")


def _readable(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} GiB"


@contextlib.contextmanager
def _saved() -> Iterator[dict[int, int]]:
    """Address and bytes of the storages of all tensors that autograd saves inside."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        with contextlib.suppress(RuntimeError):  # zeros of forward mode have no memory
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield storages


GROUP = Path("/sys/fs/cgroup")  # of this container, where it has one


def free_memory(device: torch.device) -> int:
    """Bytes that can be had: of the device, or of the machine (page cache counted as free, a container's limit heeded)."""
    if device.type == "cuda":
        # what torch holds and does not use is free to it
        return (
            torch.cuda.mem_get_info(device)[0]
            + torch.cuda.memory_reserved(device)
            - torch.cuda.memory_allocated(device)
        )
    found = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable:"))
        found.append(int(line.split()[1]) * 1024)
    with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
        limit, used = (int((GROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        counts = dict(line.split() for line in (GROUP / "memory.stat").read_text().splitlines())
        found.append(limit - used + int(counts.get("inactive_file", 0)))
    if not found:  # no Linux: half of what the machine has
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    return max(min(found), 0)


# -- kernels ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def twice_differentiable(*, recurrent: bool = False) -> Iterator[Kernels]:
    """Kernels that have a second derivative: attention by its MATH backend, recurrent layers without cuDNN, the layers below by their own."""
    with (
        sdpa_kernel(SDPBackend.MATH),
        torch.backends.cudnn.flags(enabled=not recurrent),
        Kernels() as kernels,
        torch.enable_grad(),
    ):
        yield kernels


class Kernels(TorchFunctionMode):
    """Puts the kernels below in the place of torch's, where they say the same."""

    def __init__(self) -> None:
        super().__init__()
        self.tangent_alone = False

    @contextlib.contextmanager
    def by_tangent_alone(self) -> Iterator[None]:
        """Inside, what is pulled back will be differentiated only by the tangent it is pulled back from, so nothing is saved for the other derivatives.

        Not so for what a model differentiates in its own forward pass (forces, penalties of slopes): that depends on its parameters too.
        """
        self.tangent_alone = True
        try:
            yield
        finally:
            self.tangent_alone = False

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is torch._weight_norm:
            return _weight_norm(*args, **kwargs)
        if _transformed():
            return function(*args, **kwargs)
        if function in _CONVOLUTIONS:
            return _convolution(function, self, *args, **kwargs)
        if function is functional.batch_norm:
            return _batch_norm(self, *args, **kwargs)
        if function in _RELUS:
            return _relu(*args, **kwargs)
        return function(*args, **kwargs)


def _transformed() -> bool:
    """Whether a model's own torch.func.vmap, grad or jvp is at work: our kernels do not say what they are under these, torch's do."""
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


_CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)
_RELUS = (torch.relu, Tensor.relu, functional.relu)


def _convolution(
    function: Any,
    kernels: Kernels,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    if (
        isinstance(padding, str) or input.ndim != weight.ndim
    ):  # "same" may pad unevenly; one image without its axis of rows
        return function(input, weight, bias, stride, padding, dilation, groups)  # type: ignore[no-any-return]
    axes = weight.ndim - 2

    def each(size: int | Sequence[int]) -> list[int]:
        sizes = [size] if isinstance(size, int) else list(size)
        return sizes * axes if len(sizes) == 1 else sizes

    shape = _Shape(each(stride), each(padding), each(dilation), groups, kernels)
    return _Convolution.apply(input, weight, bias, shape)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class _Shape:
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int
    kernels: Kernels

    def forward(self, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return torch.convolution(
            x, w, b, self.stride, self.padding, self.dilation, False, [0] * len(self.stride), self.groups
        )

    def backward(self, g: Tensor, x: Tensor, w: Tensor, wanted: Sequence[bool]) -> tuple[Tensor | None, ...]:
        """Pulled back to x, to w and to the bias, each where it is wanted."""
        if not any(wanted):
            return None, None, None
        found: tuple[Tensor | None, ...] = torch.ops.aten.convolution_backward(
            g, x, w, [w.shape[0]], self.stride, self.padding, self.dilation, False, [0] * len(self.stride), self.groups, list(wanted)
        )  # fmt: skip
        return tuple(tensor if want else None for tensor, want in zip(found, wanted, strict=True))


class _Convolution(torch.autograd.Function):
    """y = x * w + b."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, shape: _Shape) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.shape = shape
        return shape.forward(x, w, b)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, w = (tensor.detach() if ctx.shape.kernels.tangent_alone else tensor for tensor in ctx.saved_tensors)
        return *_ConvolutionSlope.apply(g, x, w, ctx.shape, ctx.needs_input_grad[:3]), None


class _ConvolutionSlope(torch.autograd.Function):
    """Gradients by x, w and b, themselves linear in g and bilinear in (g, w), (g, x): their derivatives are convolutions of the same shapes."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, w: Tensor, shape: _Shape, wanted: Sequence[bool]) -> Any:
        ctx.save_for_backward(g, x, w)
        ctx.set_materialize_grads(False)
        ctx.shape = shape
        return shape.backward(g, x, w, wanted)

    @staticmethod
    def backward(ctx: Any, along_x: Tensor | None, along_w: Tensor | None, along_b: Tensor | None) -> Any:
        g, x, w = ctx.saved_tensors
        by_g = None
        if along_x is not None:
            by_g = ctx.shape.forward(along_x, w, along_b)
        if along_w is not None:
            other = ctx.shape.forward(x, along_w, along_b if by_g is None else None)
            by_g = other if by_g is None else by_g.add_(other)
        if by_g is None and along_b is not None:
            by_g = along_b.view(1, -1, *(1,) * (g.ndim - 2)).expand_as(g)
        by_x = ctx.needs_input_grad[1] and along_w is not None
        by_w = ctx.needs_input_grad[2] and along_x is not None
        # where only one is wanted, the other's argument gives only its shape
        bent = ctx.shape.backward(
            g, x if along_x is None else along_x, w if along_w is None else along_w, (by_x, by_w, False)
        )
        return by_g, bent[0], bent[1], None, None


def _batch_norm(
    kernels: Kernels,
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
    return _BatchNorm.apply(input, weight, bias, running_mean, running_var, eps, kernels)  # type: ignore[no-any-return]


class _BatchNorm(torch.autograd.Function):
    """Batch norm by running statistics: y = (x - mean) / sqrt(var + eps) * w + b, affine in x."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor | None, b: Tensor | None, mean: Tensor, var: Tensor, eps: float, kernels: Kernels
    ) -> Tensor:
        ctx.save_for_backward(x, w, mean, var)
        ctx.eps, ctx.kernels = eps, kernels
        return _norm_forward(x, w, b, mean, var, eps)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, w, mean, var = ctx.saved_tensors
        if ctx.kernels.tangent_alone:
            x, w = x.detach(), None if w is None else w.detach()
        slopes = _BatchNormSlope.apply(g, x, w, mean, var, ctx.eps, ctx.needs_input_grad[:3])
        return *slopes, None, None, None, None


def _norm_forward(x: Tensor, w: Tensor | None, b: Tensor | None, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    return torch.native_batch_norm(x, w, b, mean, var, False, 0.0, eps)[0]


def _norm_backward(
    g: Tensor, x: Tensor, w: Tensor | None, mean: Tensor, var: Tensor, eps: float, wanted: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    # torch 2.14 reads the weight of (n, C) rows as if it were contiguous, and a column of a block of directions is not
    w = None if w is None else w.contiguous()
    found = torch.ops.aten.native_batch_norm_backward(g, x, w, mean, var, None, None, False, eps, list(wanted))
    return tuple(tensor if want else None for tensor, want in zip(found, wanted, strict=True))


class _BatchNormSlope(torch.autograd.Function):
    """Gradients by x (g w / s), by w (the sum of g (x - mean) / s) and by b (the sum of g), s = sqrt(var + eps)."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, w: Tensor | None, mean: Tensor, var: Tensor, eps: float, wanted: Sequence[bool]
    ) -> Any:
        ctx.save_for_backward(g, x, w, mean, var)
        ctx.set_materialize_grads(False)
        ctx.eps = eps
        return _norm_backward(g, x, w, mean, var, eps, wanted)

    @staticmethod
    def backward(ctx: Any, along_x: Tensor | None, along_w: Tensor | None, along_b: Tensor | None) -> Any:
        g, x, w, mean, var = ctx.saved_tensors
        by_g = None
        if along_x is not None:
            by_g = _norm_forward(along_x, w, along_b, torch.zeros_like(mean), var, ctx.eps)
        if along_w is not None or (by_g is None and along_b is not None):
            along = torch.zeros_like(mean) if along_w is None else along_w
            other = _norm_forward(x, along, along_b if by_g is None else None, mean, var, ctx.eps)
            by_g = other if by_g is None else by_g.add_(other)
        by_x = ctx.needs_input_grad[1] and along_w is not None
        by_w = ctx.needs_input_grad[2] and along_x is not None
        bent: tuple[Tensor | None, ...] = (None, None)
        if (
            by_x or by_w
        ):  # both are sums and products of g alone with what it was pulled back through: the same kernel, without a mean
            bent = _norm_backward(
                g,
                x if along_x is None else along_x,
                w if along_w is None else along_w,
                torch.zeros_like(mean),
                var,
                ctx.eps,
                (by_x, by_w, False),
            )
        return by_g, bent[0], bent[1], None, None, None, None


def _relu(input: Tensor, inplace: bool = False) -> Tensor:
    return functional.relu(input, True) if inplace else _ReLU.apply(input)


class _ReLU(torch.autograd.Function):
    """max(x, 0): its slope is a mask, constant but where x = 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = torch.relu(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(g, y.detach(), 0)  # type: ignore[no-any-return]


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """g v / |v|, the norm over all axes but `dim` (-1: over all). torch's fused one has a wrong second derivative by v and g (2.14)."""
    return v * (g / torch.norm_except_dim(v, 2, dim))
