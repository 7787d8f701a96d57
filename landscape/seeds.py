"""One root seed, and child streams by (seed, name, index): adding a probe or a worker shifts nothing else. Nothing seeds globally."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def child_seed(seed: int, name: str, *index: int) -> int:
    """A 63-bit seed that depends on the root seed, the stream's name and the indices only (blake2b of their text)."""
    text = "/".join([str(seed), name, *map(str, index)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, name: str, *index: int) -> torch.Generator:
    """A fresh CPU generator on the stream (seed, name, index). Draw on the CPU and move: the numbers are then the same on every device."""
    import torch  # seconds, that seeds of numpy's generators do without

    return torch.Generator().manual_seed(child_seed(seed, name, *index))


@contextlib.contextmanager
def global_stream(seed: int, name: str, *index: int, device: torch.device | None = None) -> Iterator[None]:
    """Run code that can only draw from torch's global generator (module initialisers, dropout) on the stream (seed, name, index).

    The global generators are put back as they were, also after an exception.
    """
    import torch

    cuda = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(child_seed(seed, name, *index))
        yield
