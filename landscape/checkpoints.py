"""State dicts made elsewhere, read without executing anything.

A checkpoint from the internet is a file from a stranger, and a pickle is a program. So there are three readers and no
fourth: safetensors (its header checked here first), `torch.load(weights_only=True, mmap=False)`, and npz with
`allow_pickle=False`. There is no fallback to unsafe loading and no option for one: a file that these refuse is
refused, with the name of what it asked for and what to do instead.

What each format can show of damage: a zip (`.pt`, `.npz`) has a checksum for every record and a flipped bit is found
(torch itself does not look); a safetensors file or torch's old format before zip has none, and only damage to the
header, to the pickle or to the length is found there.
"""

from __future__ import annotations

import contextlib
import difflib
import glob
import io
import json
import math
import os
import re
import stat
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from landscape.errors import LandscapeError, UnsafeInputError, UsageError, unknown

WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net", "params")
"""Keys under which training scripts put the state dict, beside an optimiser and a step."""

PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
"""What DataParallel, torch.compile and wrapping modules put before every name."""

TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".pth.tar")
INDEX_SUFFIX = ".index.json"
SUFFIXES = (".safetensors", INDEX_SUFFIX, *TORCH_SUFFIXES, ".npz")

HEADER_LIMIT = 100_000_000  # bytes; the safetensors library's own limit
TIE_SLACK = 2**20  # bytes; a view may say more than its file holds (an expanded buffer), but not without bound
SHOWN = 5  # names of each kind in a message

_DTYPE_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 8),
}
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_FLOATS_8 = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
_INTEGERS = (
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
)

_STEP_KEYS = ("step", "global_step", "iteration", "iter")
_COUNTERS = (*_STEP_KEYS, "epoch")
_STEP_WORDS = {"step", "steps", "iter", "iters", "itr", "it", "iteration", "iterations"}
_POINT_WORDS = _STEP_WORDS | {"checkpoint", "ckpt", "epoch", "ep"}
_GLUED_WORDS = _POINT_WORDS | {"e", "model", "weights", "snapshot", "net"}
_OTHER = re.compile(r"-\d+-of-\d+|\d+(?:\.\d+)?[eE][-+]?\d+|\d+\.\d+")  # shard numbers, 1e-3, 0.95
_COUNT = re.compile(r"([A-Za-z]*)([-_=. ]?)([0-9]+)([kKM]?)(?![A-Za-z0-9])")
_SCALES = {"": 1, "k": 1_000, "K": 1_000, "M": 1_000_000}

_HF_NAMES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "adapter_model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
_BESIDE = re.compile(r"(optimizer|scheduler|scaler|training_args|rng_state|random_states)(_?\d+)?\.\w+$")

_SAVE_ALONE = (
    "Nothing in it was run. Where it was made, save the weights alone: "
    'safetensors.torch.save_file(model.state_dict(), "weights.safetensors"), or '
    'torch.save(model.state_dict(), "weights.pt").'
)
_COPY_AGAIN = "Copy or download it again, or save it again where it was made."


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of one checkpoint, on the CPU, without gradients.

    `tensors`: name -> tensor of any shape; float16, bfloat16, float32, float64, bool or an integer dtype (8-bit floats
    have become float32). Views of one storage (tied or transposed weights) stay views, so that reading never needs
    more memory than the file. `step`: from the file's name, else from a step-like entry of the file, else from an epoch
    entry, else None; where name and entry disagree, a note says so. `notes` say where it came from, which wrapper and prefix were taken off and what was skipped.
    """

    path: Path
    tensors: dict[str, torch.Tensor]
    step: int | None
    notes: tuple[str, ...]


def read(path: Path) -> Checkpoint:
    """Read a checkpoint file, an index of shards, or a folder that holds exactly one of them.

    Raises UsageError where there is nothing to read (no such file, unreadable, no or several checkpoints in the
    folder, an unknown kind of file, a missing shard, no tensor, several state dicts), UnsafeInputError (exit 3) where
    the file is damaged or asks for anything that is not a tensor or a plain container.
    """
    notes: list[str] = []
    file = Path(path)
    if stat.S_ISDIR(_status(file).st_mode):
        file = _only_one(file)
        notes.append(f"read {file.name} of the folder")
    entries = _entries(file, notes)
    entries, counters = _unwrapped(file, entries, notes)
    tensors = _tensors(file, entries, notes)
    tensors = _without_prefixes(tensors, notes)
    return Checkpoint(file, tensors, _step(file, counters, notes), tuple(notes))


def match(
    checkpoint: Checkpoint,
    expected: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
    aliases: Mapping[str, str] | None = None,
    allow_nonfinite: bool = False,
) -> dict[str, torch.Tensor]:
    """Exactly the expected tensors, in the order of `expected`: contiguous copies of the shapes and dtypes asked for.

    `expected`: name -> (shape, dtype). `aliases`: a tied name -> the expected name that it is tied to; such a name may
    stand in the checkpoint beside the expected one (with equal values) or instead of it. Where all names differ by one
    common prefix, it is added or taken off. A float becomes any float, an integer or bool any integer or bool that
    holds its values; nothing else is converted. `allow_nonfinite` is off because one NaN in the weights makes every
    later number NaN.

    Raises UsageError naming the first mismatches of each kind with their counts; LandscapeError naming a tensor with
    NaN or infinity (or one that overflows in the dtype asked for).
    """
    ties = dict(aliases or {})
    have = _renamed(checkpoint.tensors, set(expected), ties)
    for name in sorted(set(have) - set(expected)):
        target = ties.get(name)
        if target is None or target not in expected:
            continue
        value = have.pop(name)
        if target in have and not _equal(value, have[target]):
            raise UsageError(
                f"{checkpoint.path}: {_show(name)} and {_show(target)} are one tensor in the model, two in the file. "
                "Give a model in which they are not tied, or save the checkpoint again from a model in which they are."
            )
        have.setdefault(target, value)
    _refuse_mismatches(checkpoint.path, have, expected)
    return {
        name: _fitted(checkpoint.path, name, have[name], dtype, allow_nonfinite)
        for name, (_, dtype) in expected.items()
    }


def order(paths: Iterable[Path | str]) -> list[Path]:
    """Checkpoint files in the order of their steps (numbers, so step_9 comes before step_10).

    Each of `paths` is a file, a glob, or a folder: one that holds a checkpoint, or one that holds many (files or
    `checkpoint-N` folders). Where names in a folder carry steps, those without one (`best.pt`, `last.pt`: copies as a
    rule) are left out; name them to have them. The step is taken from the name; the file is read for it only where the
    name has none and there is something to order. A file met twice counts once.

    Raises UsageError for a folder or glob without a checkpoint, two files of one step, or a file among several whose
    step cannot be told.
    """
    found: dict[Path, Path] = {}
    for given in paths:
        for file in _expanded(given):
            found.setdefault(file.resolve(), file)
    files = list(found.values())
    if not files:
        raise UsageError(f"no checkpoint was given. Give files ({', '.join(SUFFIXES)}), folders or globs.")
    if len(files) == 1:
        return files
    steps: dict[int, Path] = {}
    for file in files:
        step = step_in_name(file)
        if step is None:
            step = read(file).step
        if step is None:
            raise UsageError(
                f"the step of {file} cannot be told from its name or its contents. Rename it, for example to "
                f"step_500{_suffix(file)}."
            )
        if step in steps:
            raise UsageError(
                f"{steps[step]} and {file} are both of step {step}. Give one of them, or rename one (step_N in the "
                "name tells the step)."
            )
        steps[step] = file
    return [steps[step] for step in sorted(steps)]


def step_in_name(path: Path) -> int | None:
    """The step that a file's (or folder's) name tells, or None.

    The last number after a word for steps (`epoch3-step1200.ckpt`: 1200), else the last integer that stands alone or
    after a word such as `ckpt` or `epoch` (so `resnet18.pt` has none, `resnet18-500.pt` has 500); 10k and 2M count as
    10000 and 2000000; decimals, 1e-3 and shard numbers do not count. A file whose own name tells nothing takes the
    step of its folder, where that is a number or names one (`checkpoint-500/model.safetensors`).
    """
    own = _counted(path.name.removesuffix(_suffix(path)), _GLUED_WORDS)
    if own is not None or not _suffix(path):
        return own
    folder = path.absolute().parent.name
    return int(folder) if re.fullmatch(r"[0-9]+", folder) else _counted(folder, _POINT_WORDS, alone=False)


# ---- where the file is ---------------------------------------------------------------------------------------------


def _status(path: Path) -> os.stat_result:
    """The file's status, or UsageError saying why there is none."""
    try:
        return path.stat()
    except FileNotFoundError:
        raise UsageError(
            f"there is no checkpoint at {path}. Give a file ({', '.join(SUFFIXES)}) or a folder with one."
        ) from None
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> UsageError:
    reason = getattr(error, "strerror", None) or error
    return UsageError(f"{_show(str(path))} cannot be read ({reason}). Check its name and its permissions.")


def _suffix(path: Path) -> str:
    """The ending that says how to read the file, as it is written there; empty where it is none of SUFFIXES."""
    name = path.name
    ending = max((known for known in SUFFIXES if name.lower().endswith(known)), key=len, default="")
    return name[len(name) - len(ending) :]


def _inside(folder: Path) -> tuple[list[Path], list[Path]]:
    """The folder's checkpoint files (not the optimiser's and the like, nothing hidden) and its subfolders, by name."""
    try:
        children = sorted(child for child in folder.iterdir() if not child.name.startswith("."))
        files = [child for child in children if _suffix(child) and not _BESIDE.match(child.name) and child.is_file()]
        return files, [child for child in children if child.is_dir()]
    except OSError as error:
        raise _unreadable(folder, error) from None


def _candidates(folder: Path) -> list[Path]:
    """A folder's checkpoint: the file by Hugging Face's names, else the indices, else safetensors, else all others."""
    files, _ = _inside(folder)
    by_name = {file.name: file for file in files}
    for name in _HF_NAMES:
        if name in by_name:
            return [by_name[name]]
    for ending in (INDEX_SUFFIX, ".safetensors"):
        chosen = [file for file in files if _suffix(file).lower() == ending]
        if chosen:
            return chosen
    return files


def _only_one(folder: Path) -> Path:
    chosen = _candidates(folder)
    if len(chosen) == 1:
        return chosen[0]
    if not chosen:
        raise _nothing_in(folder)
    names = ", ".join(_show(file.name) for file in chosen[:SHOWN])
    raise UsageError(
        f"{folder} holds {len(chosen)} checkpoints ({names}{', ...' if len(chosen) > SHOWN else ''}). Name one."
    )


def _nothing_in(folder: Path) -> UsageError:
    advice = "Give the folder that the files lie in."
    if (folder / ".metadata").exists() or any(folder.glob("*.distcp")):
        advice = (
            "It is a folder of torch.distributed.checkpoint, whose .metadata is a pickle and is not read here. Where "
            "it was made, write it with the safetensors writer, or convert it: "
            "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER weights.pt."
        )
    return UsageError(
        f"no checkpoint in {folder}; looked for {', '.join('*' + ending for ending in SUFFIXES)}. {advice}"
    )


def _expanded(given: Path | str) -> list[Path]:
    """The checkpoint files that a path, folder or glob stands for."""
    path = Path(given)
    if glob.has_magic(str(given)) and not os.path.lexists(path):
        matches = [Path(name) for name in sorted(glob.glob(str(given), recursive=True))]
        files = [match for match in matches if not match.is_dir() and _suffix(match) and not _BESIDE.match(match.name)]
        files += [_candidates(match)[0] for match in matches if match.is_dir() and len(_candidates(match)) == 1]
        if not files:
            raise UsageError(
                f"no checkpoint matches {given}; looked for {', '.join('*' + ending for ending in SUFFIXES)}."
            )
        return files
    if not stat.S_ISDIR(_status(path).st_mode):
        return [path]
    chosen = _candidates(path)
    if len(chosen) == 1 and step_in_name(path) is not None:  # checkpoint-500/, whatever else lies in it
        return chosen
    files, folders = _inside(path)
    single = {folder: _candidates(folder) for folder in folders if _counted(folder.name, _GLUED_WORDS) is not None}
    numbered = [file for file in files if _counted(file.name.removesuffix(_suffix(file)), _GLUED_WORDS) is not None]
    numbered += [held[0] for held in single.values() if len(held) == 1]
    if numbered:
        return numbered
    if not chosen:
        raise _nothing_in(path)
    return chosen


def _counted(stem: str, words: set[str], alone: bool = True) -> int | None:
    """The last number after a word for steps, else after one of `words`, or (where `alone`) standing by itself."""
    counts = [(word.lower(), gap, digits, scale) for word, gap, digits, scale in _COUNT.findall(_OTHER.sub("#", stem))]
    chosen = [count for count in counts if count[0] in _STEP_WORDS]
    chosen = chosen or [count for count in counts if count[0] in words or (alone and (count[1] or not count[0]))]
    return int(chosen[-1][2]) * _SCALES[chosen[-1][3]] if chosen else None


# ---- the readers ---------------------------------------------------------------------------------------------------


def _entries(file: Path, notes: list[str]) -> dict[Any, Any]:
    """What the file holds: names to tensors, and whatever else a pickle of plain containers may hold."""
    ending = _suffix(file).lower()
    if not ending:
        raise _unknown_kind(file)
    status = _status(file)
    if not stat.S_ISREG(status.st_mode):
        raise UsageError(f"{file} is not a regular file. Give a file ({', '.join(SUFFIXES)}).")
    if status.st_size == 0:
        raise UnsafeInputError(f"{file} is empty. {_COPY_AGAIN}")
    _refuse_beyond_memory(file, status.st_size)
    try:
        with open(file, "rb") as stream:
            head = stream.read(8)
    except OSError as error:
        raise _unreadable(file, error) from None
    if ending == ".safetensors":
        return _from_safetensors(file)
    if ending == INDEX_SUFFIX:
        return _from_shards(file, notes)
    if ending == ".npz":
        return _from_npz(file, notes)
    return _from_torch(file, head, status.st_size, notes)


def _unknown_kind(file: Path) -> UsageError:
    known = {
        ".h5": "Keras and HDF5 files are not read: convert to safetensors or npz.",
        ".msgpack": "Flax files are not read: convert with safetensors.flax.save_file.",
        ".distcp": "torch.distributed.checkpoint shards are not read: convert with dcp_to_torch where they were made.",
        ".pkl": "Pickles are programs and are never run here: save with safetensors.",
        ".pickle": "Pickles are programs and are never run here: save with safetensors.",
        ".npy": "One array has no name: save with numpy.savez(name=array).",
    }
    error = unknown("kind of checkpoint file", file.suffix or file.name, SUFFIXES)
    return UsageError(f"{file}: {error} {known.get(file.suffix.lower(), '')}".rstrip())


def _refuse_beyond_memory(file: Path, size: int) -> None:
    """A compressed file can claim a thousand times its size: refuse it before anything is allocated."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > memory:
        raise UnsafeInputError(
            f"{file} needs {size / 2**30:.1f} GiB and this machine has {memory / 2**30:.1f} GiB. Use a larger "
            "machine, or check where it came from."
        )


@contextlib.contextmanager
def _refusing(file: Path, advice: str) -> Iterator[None]:
    """Whatever a loader raises on this file becomes a refusal of the file; its warnings, which are for others, rest."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (LandscapeError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except (PermissionError, FileNotFoundError) as error:
        raise _unreadable(file, error) from None
    except MemoryError:
        raise UnsafeInputError(f"{file} asks for more memory than there is. {advice}") from None
    except BaseException as error:  # BaseException, because a panic in a Rust library is not an Exception
        raise UnsafeInputError(f"{file} cannot be read as a checkpoint: {_reason(error)}. {advice}") from None


def _reason(error: BaseException) -> str:
    """What went wrong, in one line; torch's own advice to load unsafely is left out."""
    text = re.sub(r"\x1b\[\d*m", "", str(error))
    if "TorchScript" in text:
        return "it is a TorchScript archive, which is a program"
    if "legacy .tar format" in text:
        return "it is in torch's oldest format (tar)"
    asked = re.search(r"GLOBAL (\S+) (?:was not|whose)", text)
    if asked:
        return f"its pickle asks for {_show(asked.group(1))}, which is neither a tensor nor a plain container"
    lines = [line.strip() for line in text.split("WeightsUnpickler error:")[-1].splitlines()]
    lines = [line for line in lines if line and "weights_only" not in line and "eights only" not in line]
    first = "".join(character if character.isprintable() else "?" for character in lines[0][:200]) if lines else ""
    return f"{first.rstrip('.')} ({type(error).__name__})" if first else type(error).__name__


def _from_torch(file: Path, head: bytes, size: int, notes: list[str]) -> dict[Any, Any]:
    """`torch.load` with weights_only, by torch's own list alone.

    What other code in this process has declared safe (`add_safe_globals`) is set aside meanwhile: a file from a
    stranger could ask for it. That list is one for the process, so another thread's load may be refused meanwhile.
    """
    with _refusing(file, _SAVE_ALONE):
        if head.startswith(b"PK\x03\x04"):
            _check_zip(file, notes)
        declared = torch.serialization.get_safe_globals()
        torch.serialization.clear_safe_globals()
        try:
            loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=False)
        finally:
            torch.serialization.add_safe_globals(declared)
        if not isinstance(loaded, dict):
            raise UsageError(f"{file} holds one {type(loaded).__name__}, not a state dict. Save model.state_dict().")
        # dict.items, because a pickle can hide a method of an OrderedDict behind an attribute of the same name
        entries = dict(dict.items(loaded))
        _refuse_blown_up(file, entries, max(size, TIE_SLACK), depth=3)
    return entries


def _refuse_blown_up(file: Path, entries: dict[Any, Any], allowed: int, depth: int) -> None:
    """A view with stride 0 can claim terabytes over four stored bytes; the first copy of it would take them."""
    for name, value in dict.items(entries):
        if isinstance(value, torch.Tensor):
            claimed = torch.Tensor.numel(value) * value.dtype.itemsize
            if claimed > allowed and value.layout is torch.strided:
                raise UnsafeInputError(
                    f"{file}: {_show(name)} claims {claimed} bytes, more than the file holds. {_COPY_AGAIN}"
                )
        elif isinstance(value, dict) and depth:
            _refuse_blown_up(file, value, allowed, depth - 1)


def _check_zip(file: Path, notes: list[str]) -> None:
    """Check what torch's reader does not: the checksums, compressed records (it inflates without bound), twin names."""
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        names = [record.filename for record in records]
        if len(set(names)) < len(names):
            raise UnsafeInputError(f"{file} has two records of one name. {_COPY_AGAIN}")
        for record in records:
            if record.compress_type != zipfile.ZIP_STORED:
                raise UnsafeInputError(
                    f"{file}: the record {_show(record.filename)} is compressed, which torch.save never does. Save it "
                    "again with torch.save."
                )
        if not any(record.CRC for record in records):
            notes.append("written without checksums (torch.serialization.set_crc32_options): damage would not be seen")
            return
        damaged = archive.testzip()
        if damaged is not None:
            raise UnsafeInputError(f"{file} is damaged: the checksum of {_show(damaged)} is wrong. {_COPY_AGAIN}")


def _from_npz(file: Path, notes: list[str]) -> dict[Any, Any]:
    """Arrays of numbers; a scalar integer called step (or the like) is the step."""
    entries: dict[Any, Any] = {}
    with (
        _refusing(file, "Nothing in it was run. Save plain numeric arrays with numpy.savez."),
        zipfile.ZipFile(file) as archive,
    ):
        records = archive.infolist()
        _refuse_beyond_memory(file, sum(record.file_size for record in records))
        for record in records:
            name = record.filename.removesuffix(".npy")
            if name in entries:
                raise UnsafeInputError(f"{file} has two arrays called {_show(name)}. {_COPY_AGAIN}")
            stream = io.BytesIO(archive.read(record))  # reading to the end checks the checksum
            if name == record.filename:
                notes.append(f"skipped {_show(name)}: not an array")
                continue
            array = np.lib.format.read_array(stream, allow_pickle=False)
            if stream.read(1):
                raise UnsafeInputError(f"{file}: {_show(name)} has bytes behind its array. {_COPY_AGAIN}")
            if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
                notes.append(
                    f"skipped {_show(name)}: dtype {array.dtype.kind}{array.dtype.itemsize * 8} has no real torch dtype"
                )
            elif name in _STEP_KEYS and array.dtype.kind in "iu" and array.ndim == 0:
                entries[name] = int(array)
            else:
                entries[name] = torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))
    return entries


def _from_safetensors(file: Path) -> dict[Any, Any]:
    """The bytes are read once; what was checked is what is loaded."""
    with _refusing(file, _COPY_AGAIN):
        raw = file.read_bytes()
        remarks = _check_header(file, raw)
        entries: dict[Any, Any] = dict(safetensors.torch.load(raw))
        for key in _STEP_KEYS:
            if key in remarks and key not in entries and re.fullmatch(r"[0-9]{1,18}", remarks[key]):
                entries[key] = int(remarks[key])
    return entries


def _check_header(file: Path, raw: bytes) -> dict[str, str]:
    """Check a safetensors header against the file's bytes; returns its free text. UnsafeInputError names the fault."""

    def refuse(fault: str) -> UnsafeInputError:
        hint = " It looks like a pickle or a zip under another name." if raw[:1] == b"\x80" or raw[:2] == b"PK" else ""
        return UnsafeInputError(f"{file} is not a sound safetensors file: {fault}.{hint} {_COPY_AGAIN}")

    if len(raw) < 8:
        raise refuse(f"{len(raw)} bytes, too short for the header's length")
    length = int.from_bytes(raw[:8], "little")
    if length > HEADER_LIMIT:
        raise refuse(f"its header claims {length} bytes, over the limit of {HEADER_LIMIT}")
    if length > len(raw) - 8:
        raise refuse(f"its header claims {length} bytes and {len(raw) - 8} follow")
    if raw[8:9] != b"{":
        raise refuse("its header does not begin with '{'")
    try:
        header = _json(raw[8 : 8 + length])
    except (ValueError, RecursionError) as error:
        raise refuse(f"its header cannot be read ({_reason(error)})") from None
    remarks = header.pop("__metadata__", {})
    if not isinstance(remarks, dict) or not all(isinstance(value, str) for value in remarks.values()):
        raise refuse("__metadata__ is not a map from text to text")
    ranges = sorted(_range(name, entry, refuse) for name, entry in header.items())
    end = 0
    for start, stop, name in ranges:
        if start != end:
            raise refuse(
                f"{_show(name)} begins at byte {start} where {end} is due ({'overlap' if start < end else 'gap'})"
            )
        end = stop
    if end != len(raw) - 8 - length:
        raise refuse(f"its tensors end at byte {end} of {len(raw) - 8 - length} bytes of data")
    return remarks


def _json(raw: bytes) -> dict[str, Any]:
    """A JSON object without duplicate keys, NaN or unpaired surrogates; ValueError otherwise."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for name, value in pairs:
            if name in made:
                raise ValueError(f"duplicate key {_show(name)}")
            made[name] = value
        return made

    def constant(name: str) -> float:
        raise ValueError(f"{name} is not JSON")

    text = raw.decode("utf-8")
    made = json.loads(text, object_pairs_hook=once, parse_constant=constant)
    if not isinstance(made, dict):
        raise ValueError("not an object")
    for name in made:
        name.encode("utf-8")
    return made


def _range(name: str, entry: Any, refuse: Any) -> tuple[int, int, str]:
    """(start, stop, name) of one tensor of the header, once its dtype and shape are found to fill that range."""

    def counts(value: Any, most: int) -> bool:
        return isinstance(value, list) and len(value) <= most and all(type(n) is int and 0 <= n < 2**63 for n in value)

    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise refuse(f"{_show(name)} is not given by dtype, shape and data_offsets alone")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPE_BYTES:
        raise refuse(f"{_show(name)} has the unknown dtype {_show(dtype)} (known: {', '.join(_DTYPE_BYTES)})")
    if not counts(shape, 64):
        raise refuse(f"{_show(name)} has the shape {_show(shape)}, not at most 64 sizes")
    if not counts(offsets, 2) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise refuse(f"{_show(name)} has the data_offsets {_show(offsets)}, not [start, stop]")
    if math.prod(shape) * _DTYPE_BYTES[dtype] != offsets[1] - offsets[0]:
        raise refuse(f"{_show(name)} of {dtype} {_show(shape)} does not fill its {offsets[1] - offsets[0]} bytes")
    return offsets[0], offsets[1], name


def _from_shards(index: Path, notes: list[str]) -> dict[Any, Any]:
    """The tensors of a sharded checkpoint, each from the shard that the index names for it."""
    with _refusing(index, _COPY_AGAIN):
        if index.stat().st_size > HEADER_LIMIT:
            raise UnsafeInputError(f"{index} is over {HEADER_LIMIT} bytes, too long for an index. {_COPY_AGAIN}")
        listed = _json(index.read_bytes()).get("weight_map")
        if not isinstance(listed, dict) or not listed or not all(isinstance(shard, str) for shard in listed.values()):
            raise UnsafeInputError(f"{index} has no weight_map from names to files. {_COPY_AGAIN}")
    shards = sorted(set(listed.values()))
    for shard in shards:
        parts = re.split(r"[/\\]", shard)
        if not all(parts) or ".." in parts or ":" in parts[0] or "\0" in shard:
            raise UnsafeInputError(
                f"{index} points outside its folder, to {_show(shard)}. Shards must lie beside their index."
            )
        if _suffix(Path(shard)).lower() not in (".safetensors", *TORCH_SUFFIXES):
            raise UnsafeInputError(
                f"{index} names {_show(shard)}, which is no shard (.safetensors, {', '.join(TORCH_SUFFIXES)})."
            )
    missing = [shard for shard in shards if not os.path.exists(index.parent / shard)]
    if missing:
        names = ", ".join(_show(shard) for shard in missing[:SHOWN])
        raise UsageError(
            f"{index}: {len(missing)} of {len(shards)} shards are missing: {names}. Put them beside the index."
        )
    entries: dict[Any, Any] = {}
    for shard in shards:
        held = _entries(index.parent / shard, notes)
        due = [name for name, where in listed.items() if where == shard]
        absent = [name for name in due if not isinstance(held.get(name), torch.Tensor)]
        if absent:
            raise UnsafeInputError(
                f"{index}: {_show(absent[0])} is not in {shard}, where the index puts it. {_COPY_AGAIN}"
            )
        if len(held) > len(due):
            notes.append(f"skipped {len(held) - len(due)} entries of {shard} that the index does not list")
        entries.update((name, held[name]) for name in due)
    notes.append(f"read {len(shards)} shards")
    return entries


# ---- from entries to tensors ---------------------------------------------------------------------------------------


def _holds_tensors(entries: Any, depth: int = 3) -> bool:
    """Whether this is a state dict, or wraps one; bounded in depth, because a pickle may hold itself."""
    if not isinstance(entries, dict) or depth == 0:
        return False
    held = dict(dict.items(entries))
    return any(isinstance(value, torch.Tensor) for value in held.values()) or any(
        _holds_tensors(held.get(wrapper), depth - 1) for wrapper in WRAPPERS
    )


def _unwrapped(file: Path, entries: dict[Any, Any], notes: list[str]) -> tuple[dict[Any, Any], dict[str, int]]:
    """The state dict within its wrappers, and the counters (step, epoch, ...) beside it; the outermost wins."""
    counters: dict[str, int] = {}
    for _ in range(4):
        found = {key: _integer(entries.get(key)) for key in _COUNTERS}
        counters = {key: count for key, count in found.items() if count is not None} | counters
        wrappers = [name for name in WRAPPERS if _holds_tensors(entries.get(name))]
        if not wrappers:
            break
        if len(wrappers) > 1:
            raise UsageError(
                f"{file} holds state dicts under {' and '.join(map(repr, wrappers))}. Save the one that is meant alone."
            )
        beside = [name for name in entries if name != wrappers[0]]
        notes.append(
            f"took the state dict under {wrappers[0]!r}" + (f"; skipped beside it: {_list(beside)}" if beside else "")
        )
        entries = dict(dict.items(entries[wrappers[0]]))
    return entries, counters


def _integer(value: Any) -> int | None:
    """A non-negative count, given as an integer."""
    return value if type(value) is int and 0 <= value < 2**63 else None


def _tensors(file: Path, entries: dict[Any, Any], notes: list[str]) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    others: list[Any] = []
    with _refusing(file, _COPY_AGAIN):
        for name, value in entries.items():
            if not isinstance(value, torch.Tensor) or not isinstance(name, str):
                if name not in _COUNTERS or _integer(value) is None:
                    others.append(name)
                continue
            made = _plain(value)
            if isinstance(made, str):
                notes.append(f"skipped {_show(name)}: {made}")
            else:
                tensors[name] = made
    if others:
        notes.append(f"skipped {len(others)} entries that are not tensors: {_list(others)}")
    if not tensors:
        nested = [name for name, value in entries.items() if _holds_tensors(value)]
        advice = (
            f"There are tensors under {_list(nested)}: save one of these alone."
            if nested
            else "Save model.state_dict()."
        )
        skipped = f" ({'; '.join(notes)})" if notes else ""
        raise UsageError(f"{file} holds no tensor that can be a weight{skipped}. {advice}")
    return tensors


def _plain(value: torch.Tensor) -> torch.Tensor | str:
    """A dense real CPU tensor without history, hooks or attributes; or why it cannot be had.

    The methods are taken from the class, because a pickle can hide a tensor's own behind attributes.
    """
    if value.layout is not torch.strided or value.is_nested:
        return f"a {str(value.layout).removeprefix('torch.')} tensor"
    if value.device.type != "cpu":
        return f"a tensor without data (device {value.device.type})"
    if value.dtype not in (*_FLOATS, *_FLOATS_8, *_INTEGERS, torch.bool):
        return f"dtype {str(value.dtype).removeprefix('torch.')}"
    plain = torch.Tensor.resolve_neg(torch.Tensor.detach(value))
    if plain.dtype in _FLOATS_8:
        return plain.to(torch.float32)  # nothing can be computed in 8-bit floats, and float32 holds them exactly
    if plain.dtype == torch.bool:
        return plain.view(torch.uint8).ne(0)  # a byte other than 0 and 1 is no bool, and torch would compute with it
    return plain


def _without_prefixes(tensors: dict[str, torch.Tensor], notes: list[str]) -> dict[str, torch.Tensor]:
    """Take off prefixes that every name bears, again and again."""
    stripped = ""
    while prefix := next((p for p in PREFIXES if all(n.startswith(p) and n != p for n in tensors)), ""):
        stripped += prefix
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    if stripped:
        notes.append(f"took the prefix {stripped!r} off every name")
    return tensors


def _step(file: Path, counters: dict[str, int], notes: list[str]) -> int | None:
    named = step_in_name(file)
    key = next((key for key in _STEP_KEYS if key in counters), None)
    if named is not None:
        other = f"; the entry {key!r} says {counters[key]}" if key and counters[key] != named else ""
        notes.append(f"step {named} from the name{other}")
        return named
    if key:
        return counters[key]
    if "epoch" in counters:
        notes.append(f"step {counters['epoch']} from the entry 'epoch': it counts epochs")
    return counters.get("epoch")


# ---- fitting to a model --------------------------------------------------------------------------------------------


def _renamed(tensors: dict[str, torch.Tensor], want: set[str], ties: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """The tensors as they are, or with one common prefix taken off or added: the first that fits, else the nearest."""

    def boundaries(names: list[str]) -> list[str]:
        first, last = min(names, default=""), max(names, default="")  # what these two share, all share
        common = first[: next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))]
        return [common[: dot.end()] for dot in re.finditer(r"\.", common)][:16]

    def fits(names: set[str]) -> bool:
        filled = names | {ties[name] for name in names if name in ties}
        return want <= filled and all(ties.get(name) in want for name in names - want)

    ways: list[dict[str, torch.Tensor]] = [tensors]
    ways += [{name.removeprefix(p): value for name, value in tensors.items()} for p in boundaries(list(tensors))]
    ways += [{p + name: value for name, value in tensors.items()} for p in boundaries(list(want))]
    best = next((way for way in ways if fits(set(way))), None)
    if best is None:
        best = max(ways, key=lambda way: len(want & set(way)))
    return dict(best)


def _refuse_mismatches(
    path: Path,
    have: dict[str, torch.Tensor],
    expected: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
) -> None:
    missing = [name for name in expected if name not in have]
    extra = [name for name in have if name not in expected]
    shapes = [name for name in expected if name in have and tuple(have[name].shape) != tuple(expected[name][0])]
    kinds = [name for name in expected if name in have and _kind(have[name].dtype) != _kind(expected[name][1])]
    if not (missing or extra or shapes or kinds):
        return

    def near(name: str, names: list[str]) -> str:
        short = [other for other in names[:2000] if len(other) < 200]  # the comparison is quadratic in both
        close = difflib.get_close_matches(name[:200], short, n=1)
        return f"{_show(name)} (nearest there: {_show(close[0])})" if close else _show(name)

    def sizes(name: str) -> str:
        return f"{_show(name)} is {tuple(have[name].shape)} where {tuple(expected[name][0])} is due"

    def dtypes(name: str) -> str:
        return f"{_show(name)} is {have[name].dtype} where {expected[name][1]} is due"

    parts = [
        f"{len(names)} {label}: {', '.join(say(name) for name in names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}"
        for label, names, say in (
            ("missing", missing, lambda name: near(name, extra or list(have))),
            ("unexpected", extra, lambda name: near(name, missing or list(expected))),
            ("of another shape", shapes, sizes),
            ("of another kind", kinds, dtypes),
        )
        if names
    ]
    raise UsageError(
        f"{path} does not fit the model ({len(have)} tensors, {len(expected)} expected). {'; '.join(parts)}. "
        "Give the model that the checkpoint was made with, or rename its tensors."
    )


def _kind(dtype: torch.dtype) -> str:
    return "float" if dtype.is_floating_point else "complex" if dtype.is_complex else "integer"


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """The same values, NaN equal to NaN."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    same = one == other
    return bool((same | (one.isnan() & other.isnan())).all() if one.is_floating_point() else same.all())


def _fitted(path: Path, name: str, value: torch.Tensor, dtype: torch.dtype, allow_nonfinite: bool) -> torch.Tensor:
    if value.is_floating_point():
        made = value.to(dtype, copy=True, memory_format=torch.contiguous_format)
        if allow_nonfinite:
            return made
        bad = int((~torch.isfinite(value)).sum())
        if bad:
            raise LandscapeError(
                f"{path}: {_show(name)} has {bad} of {value.numel()} values that are NaN or infinite. Take an earlier "
                "checkpoint."
            )
        over = int((~torch.isfinite(made)).sum())
        if over:
            raise LandscapeError(
                f"{path}: {over} of {value.numel()} values of {_show(name)} overflow in {dtype}. Ask for a wider "
                "dtype, such as torch.float32."
            )
        return made
    array = value.numpy()  # numpy compares unsigned integers of all widths; torch does not
    if array.size and value.dtype != dtype:
        low, high = int(array.min()), int(array.max())
        least, most = (0, 1) if dtype == torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
        if low < least or high > most:
            raise UsageError(
                f"{path}: {_show(name)} has values from {low} to {high}, which {dtype} does not hold. Give the model "
                "that the checkpoint was made with."
            )
    return value.to(dtype, copy=True, memory_format=torch.contiguous_format)


def _show(name: object) -> str:
    """A name from a foreign file, quoted, without control characters, and short."""
    text = ascii(name) if not isinstance(name, str) or not name.isprintable() else repr(name)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _list(names: list[Any]) -> str:
    return ", ".join(_show(name) for name in names[:SHOWN]) + (
        f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    )
