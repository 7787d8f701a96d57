"""Masks: which trained parameters survive pruning, tensor by tensor, as sets with an algebra.

Letters: D parameters (all trained ones, biases and norms among them), n survivors.

The points that a mask keeps, { w : w_i = 0 wherever the mask is false }, are its axial subspace (Paul et al. 2023). Train in it with

    f.restrict(subspaces.coordinates(torch.zeros(D), mask.tensor(device)))

Stored as a safetensors file of one row of bits a tensor, with the names and the shapes that it belongs to and a checksum. This file needs no torch at import.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from landscape.errors import UnsafeInputError, UsageError, unknown
from landscape.trajectories import Layout

if TYPE_CHECKING:
    import torch

Points = TypeVar("Points", np.ndarray, "torch.Tensor")

_FORMAT = "landscape mask 1"


@dataclass(frozen=True, eq=False)
class Mask:
    """A set of trained parameters of one network, those that survive: `a & b`, `a | b`, `a - b`, `a <= b` (a lies within b), `a == b`.

    kept (D,) bool, read-only. Raises UsageError where it does not fit the layout, and in the algebra where the masks are of two networks.
    """

    layout: Layout
    kept: np.ndarray  # (D,)

    def __post_init__(self) -> None:
        if self.kept.shape != (self.layout.dim,) or self.kept.dtype != np.bool_:
            raise UsageError(
                f"a mask of this network is a bool array ({self.layout.dim},); got {self.kept.dtype} {self.kept.shape}."
            )
        kept = self.kept.copy()  # the caller's own may change
        kept.flags.writeable = False
        object.__setattr__(self, "kept", kept)

    @staticmethod
    def full(layout: Layout) -> Mask:
        """Everything survives."""
        return Mask(layout, np.ones(layout.dim, dtype=bool))

    @staticmethod
    def of(layout: Layout, tensors: Mapping[str, Any]) -> Mask:
        """The mask of arrays of true and false, or of 1 and 0, by name. Tensors that are not named are kept; any name of a tied weight will do.

        Raises UsageError for a name that is no trained parameter, another shape, and values that are neither 0 nor 1.
        """
        entries = {entry.name: entry for entry in layout.of("parameter")}
        kept = np.ones(layout.dim, dtype=bool)
        for name, given in tensors.items():
            entry = entries.get(layout.aliases.get(name, name))
            if entry is None:
                raise unknown("trained parameter", name, entries)
            values = np.asarray(given)
            if values.shape != entry.shape:
                raise UsageError(f"the mask of {name} has shape {values.shape}, and the parameter {entry.shape}.")
            if not np.isin(values, (0, 1)).all():
                raise UsageError(f"the mask of {name} holds values other than true and false, or 1 and 0.")
            kept[entry.offset : entry.offset + entry.size] = values.astype(bool).ravel()
        return Mask(layout, kept)

    # -- size ------------------------------------------------------------------

    @property
    def size(self) -> int:
        """n, the number of survivors."""
        return int(np.count_nonzero(self.kept))

    @property
    def density(self) -> float:
        """n / D."""
        return self.size / self.layout.dim

    def counts(self) -> dict[str, tuple[int, int]]:
        """By name of tensor: how many survive, and of how many."""
        return {name: (int(np.count_nonzero(kept)), kept.size) for name, kept in self.tensors().items()}

    def tensors(self) -> dict[str, np.ndarray]:
        """The mask by name of tensor, each of the tensor's shape; views, read-only."""
        return {
            entry.name: self.kept[entry.offset : entry.offset + entry.size].reshape(entry.shape)
            for entry in self.layout.of("parameter")
        }

    # -- algebra ---------------------------------------------------------------

    def __and__(self, other: Mask) -> Mask:
        return Mask(self.layout, self.kept & self._fitting(other))

    def __or__(self, other: Mask) -> Mask:
        return Mask(self.layout, self.kept | self._fitting(other))

    def __sub__(self, other: Mask) -> Mask:
        return Mask(self.layout, self.kept & ~self._fitting(other))

    def __le__(self, other: Mask) -> bool:
        return not (self.kept & ~self._fitting(other)).any()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mask):
            return NotImplemented
        return _shapes(self.layout) == _shapes(other.layout) and np.array_equal(self.kept, other.kept)

    def __hash__(self) -> int:
        return zlib.crc32(np.packbits(self.kept).data)

    def _fitting(self, other: Mask) -> np.ndarray:
        if other.layout is not self.layout:
            _refuse_other(_shapes(other.layout), self.layout, "the other mask")
        return other.kept

    # -- use -------------------------------------------------------------------

    def apply(self, w: Points) -> Points:
        """Points w (..., D), numpy or torch, with exact zeros outside the mask, whatever stood there: NaN and infinity are gone, too."""
        if w.shape[-1:] != self.kept.shape:
            raise UsageError(f"the mask is of {self.layout.dim} parameters, and the points are {tuple(w.shape)}.")
        if isinstance(w, np.ndarray):
            return np.where(self.kept, w, np.zeros((), dtype=w.dtype))
        return w.masked_fill(~self.tensor(w.device), 0)

    def tensor(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """The mask as a bool tensor (D,) on the device: what `subspaces.coordinates` takes."""
        import torch

        return torch.from_numpy(self.kept.copy()).to(device)

    # -- bytes -----------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """As a safetensors file; write it with `files.write_atomic`."""
        packed = {name: np.packbits(kept) for name, kept in self.tensors().items()}
        shapes = _shapes(self.layout)
        about = {"format": _FORMAT, "shapes": json.dumps(shapes), "crc32": str(_crc(shapes, packed))}
        return bytes(save(packed, about))

    @staticmethod
    def from_bytes(data: bytes, layout: Layout, *, source: str = "the mask") -> Mask:
        """Read it back for the network of this layout. source: what error messages call it.

        Raises UnsafeInputError where it is damaged or no mask, UsageError, naming the first tensor that differs, where it is the mask of another network.
        """
        try:
            packed = load(data)
            (length,) = struct.unpack("<Q", data[:8])
            about = json.loads(data[8 : 8 + length])["__metadata__"]
            if about["format"] != _FORMAT:
                raise ValueError(f"its format is {about['format']!r}, not {_FORMAT!r}")
            shapes = {str(name): tuple(int(n) for n in shape) for name, shape in json.loads(about["shapes"]).items()}
            if int(about["crc32"]) != _crc(shapes, packed) or set(shapes) != set(packed):
                raise ValueError("its checksum does not match")
        except (
            SafetensorError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            struct.error,
            RecursionError,
        ) as error:
            raise UnsafeInputError(
                f"{source} is damaged, or no mask of ours ({error}). Restore the file from a copy."
            ) from None
        _refuse_other(shapes, layout, source)
        if any(packed[n].dtype != np.uint8 or packed[n].size != (math.prod(s) + 7) // 8 for n, s in shapes.items()):
            raise UnsafeInputError(f"{source} holds other bits than it says. Restore the file from a copy.")
        kept = [np.unpackbits(packed[name], count=math.prod(shape)) for name, shape in shapes.items()]
        return Mask(layout, np.concatenate(kept).astype(bool))

    @staticmethod
    def load(path: Path, layout: Layout) -> Mask:
        """The mask of a file, for the network of this layout. Raises as `from_bytes`, and UsageError where there is no such file."""
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UsageError(f"{path} cannot be read ({error.strerror}). Give a mask.safetensors.") from None
        return Mask.from_bytes(data, layout, source=str(path))


def _shapes(layout: Layout) -> dict[str, tuple[int, ...]]:
    """Of the trained parameters, in the order of the flat vector: what makes two masks comparable. Buffers and dtypes do not."""
    return {entry.name: entry.shape for entry in layout.of("parameter")}


def _crc(shapes: Mapping[str, tuple[int, ...]], packed: Mapping[str, np.ndarray]) -> int:
    crc = zlib.crc32(json.dumps(shapes).encode())
    for name in shapes:
        crc = zlib.crc32(packed[name].tobytes(), crc)
    return crc


def _refuse_other(shapes: Mapping[str, tuple[int, ...]], layout: Layout, source: str) -> None:
    """Raise UsageError, naming the first tensor that differs, where a mask of these tensors is not one of the layout's network."""
    want = _shapes(layout)
    if list(shapes.items()) == list(want.items()):
        return
    theirs, ours = list(shapes.items()), list(want.items())
    place = next((i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), min(len(theirs), len(ours)))

    def at(tensors: list[tuple[str, tuple[int, ...]]]) -> str:
        return f"{tensors[place][0]!r} of shape {tensors[place][1]}" if place < len(tensors) else "nothing more"

    raise UsageError(
        f"{source} belongs to another network: its tensor {place + 1} is {at(theirs)}, and here it is {at(ours)}. Give the mask of a run of the same task and width."
    )
