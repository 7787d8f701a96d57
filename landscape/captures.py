"""A function of tensors recorded once as a CUDA graph and replayed: one launch in place of the some hundred of a small network's pass, which take longer than their work.

A replay computes what was recorded, whatever the Python around it would do by now. So the function must be one of its inputs alone, and nothing is trusted unseen: the first
replays are held against plain calls, and where one differs, or the recording fails (a model that looks at numbers on the host), all calls are plain ones.

Source: PyTorch's notes on CUDA graphs (warm-up on a side stream, static inputs and outputs).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Function = Callable[[list[Tensor]], list[Tensor]]

WARM = 3  # plain calls before the recording, on a side stream: as PyTorch's notes have it, for what libraries allocate on first use
CHECKED = 2  # replays that are held against plain calls: at the recorded inputs, and at others
# of the larger norm, that a replay may differ: what is looked for is memory of another step, which differs by as much as the numbers themselves. Other kernels
# than those of the plain call may sum in another order, in TF32 (eps 1e-3), and under autocast in bf16 (eps 8e-3)
TOLERANCE = {"full": 5e-3, "bf16": 3e-2}


def possible(device: torch.device) -> bool:
    """Whether a device takes graphs."""
    return device.type == "cuda"


class Captured:
    """The function, replayed where it can be. Outputs are new tensors every time."""

    def __init__(self, function: Function, tolerance: float) -> None:
        self._function, self._tolerance = function, tolerance
        self._inputs: list[Tensor] = []
        self._outputs: list[Tensor] = []
        self._replay: Callable[[], None] | None = None
        self._checks = CHECKED
        self.failed = ""  # why calls are plain; empty while they are not

    def __call__(self, inputs: list[Tensor]) -> list[Tensor]:
        """What the function gives for tensors of the shapes of the first call; for others it is called plainly."""
        if self._replay is None and not self.failed:
            self._record(inputs)
        if self._replay is None or _shapes(inputs) != _shapes(self._inputs):
            return self._function(inputs)
        _copy(self._inputs, inputs)
        self._replay()
        outputs = [torch.empty_like(own) for own in self._outputs]
        _copy(outputs, self._outputs)
        if self._checks:
            self._checks -= 1
            plain = self._function(inputs)
            if not all(_alike(one, other, self._tolerance) for one, other in zip(outputs, plain, strict=True)):
                self._give_up("a replay differed from a plain call")
                return plain
        return outputs

    def _record(self, inputs: list[Tensor]) -> None:
        self._inputs = [one.detach().clone() for one in inputs]
        try:
            self._replay, self._outputs = recorded(self._function, self._inputs)
        except RuntimeError as error:
            # what a stream that is being captured does not take, and no memory for the graph's own
            self._give_up(str(error))

    def _give_up(self, why: str) -> None:
        self.failed, self._replay, self._inputs, self._outputs = why or "it could not be recorded", None, [], []


def recorded(function: Function, inputs: list[Tensor]) -> tuple[Callable[[], None], list[Tensor]]:
    """A replay of the function at these very tensors, and the tensors that it writes to. Raises RuntimeError where it cannot be recorded."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM):
            function(inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = function(inputs)
    return graph.replay, outputs


def _shapes(tensors: list[Tensor]) -> list[tuple[torch.Size, torch.dtype]]:
    return [(one.shape, one.dtype) for one in tensors]


def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    """One launch a dtype and not one a tensor: a network has some dozens of buffers."""
    for dtype in {one.dtype for one in sources}:
        places = [place for place, one in enumerate(sources) if one.dtype == dtype]
        torch._foreach_copy_([targets[place] for place in places], [sources[place] for place in places])


def _alike(one: Tensor, other: Tensor, tolerance: float) -> bool:
    if not one.is_floating_point():
        return torch.equal(one, other)
    one, other = one.double(), other.double()
    if not bool(torch.isfinite(other).all()):
        # a descent that has diverged already shows nothing of the replay but this
        return torch.equal(torch.isfinite(one), torch.isfinite(other))
    return bool((one - other).norm() <= tolerance * torch.maximum(one.norm(), other.norm()))
