"""Laws of reading checkpoints: nothing in a file is ever run, damage is refused, and what is read is what was written.

Truth is what numpy or plain arithmetic put into the file; each gadget is shown to fire under plain pickle first.
"""

from __future__ import annotations

import argparse
import builtins
import importlib
import io
import json
import os
import pickle  # noqa: TID251  (the hostile files have to be made somehow, and the gadgets shown to fire)
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from landscape import checkpoints
from landscape.checkpoints import Checkpoint, match, order, read, step_in_name
from landscape.errors import LandscapeError, UnsafeInputError, UsageError

# ---- nothing is run ------------------------------------------------------------------------------------------------


class Reduce:
    """Pickles as a call of `function` with `arguments`; callable, so that it can itself stand for a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call

    def __call__(self) -> None: ...


class Armed:
    """Fires in __setstate__, which BUILD calls."""

    def __getstate__(self) -> Any:
        return self.__dict__

    def __setstate__(self, state: dict[str, str]) -> None:
        Path(state["marker"]).touch()


def touch(marker: str) -> None:
    Path(marker).touch()


def armed(marker: Path) -> Armed:
    made = Armed()
    made.__dict__["marker"] = str(marker)
    return made


GADGETS = {
    "os.system": lambda marker: Reduce(os.system, f"touch '{marker}'"),
    "exec": lambda marker: Reduce(builtins.exec, f"open({str(marker)!r}, 'w')"),
    "eval": lambda marker: Reduce(builtins.eval, f"open({str(marker)!r}, 'w')"),
    "getattr": lambda marker: Reduce(
        Reduce(builtins.getattr, Reduce(importlib.import_module, "os"), "system"), f"touch '{marker}'"
    ),
    "setstate": armed,
    "nested": lambda marker: {"a": [{"b": (Reduce(os.system, f"touch '{marker}'"),)}]},
}


def save_zip(path: Path, gadget: Any) -> Path:
    torch.save({"w": torch.ones(3), "x": gadget}, path)
    return path


def save_wrapped(path: Path, gadget: Any) -> Path:
    torch.save({"state_dict": {"w": torch.ones(3)}, "hyper_parameters": gadget}, path)
    return path


def save_legacy(path: Path, gadget: Any) -> Path:
    torch.save({"w": torch.ones(3), "x": gadget}, path, _use_new_zipfile_serialization=False)
    return path


def save_pickle(path: Path, gadget: Any) -> Path:
    path.write_bytes(pickle.dumps({"x": gadget}))
    return path


def save_old_pickle(path: Path, gadget: Any) -> Path:
    path.write_bytes(pickle.dumps({"x": gadget}, protocol=2))
    return path


def save_npz(path: Path, gadget: Any) -> Path:
    array = np.empty(1, dtype=object)
    array[0] = gadget
    np.savez(path, w=np.ones(3), x=array)
    return path


CONTAINERS = {
    "weights.pt": save_zip,
    "lightning.ckpt": save_wrapped,
    "legacy.pth": save_legacy,
    "raw.bin": save_pickle,
    "raw2.bin": save_old_pickle,
    "renamed.safetensors": save_pickle,
    "zip.safetensors": save_zip,
    "object.npz": save_npz,
}


@pytest.mark.parametrize("gadget", GADGETS)
def test_each_gadget_fires_when_it_is_unpickled(gadget: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    pickle.loads(pickle.dumps(GADGETS[gadget](marker)))
    assert marker.exists()


@pytest.mark.parametrize("name", CONTAINERS)
@pytest.mark.parametrize("gadget", GADGETS)
def test_a_hostile_file_is_refused_and_not_run(
    gadget: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "marker"
    path = CONTAINERS[name](tmp_path / name, GADGETS[gadget](marker))
    calls: list[dict[str, Any]] = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda file, **options: calls.append(options) or load(file, **options))
    with pytest.raises(UnsafeInputError) as caught:
        read(path)
    assert not marker.exists()
    assert caught.value.exit_code == 3
    assert str(path) in str(caught.value)
    assert "weights_only" not in str(caught.value)  # torch's own message says how to run the file
    assert all(options["weights_only"] is True and options["mmap"] is False for options in calls)
    assert len(calls) <= 1  # no second try


def test_the_environment_cannot_turn_unsafe_loading_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = save_zip(tmp_path / "a.pt", GADGETS["os.system"](tmp_path / "marker"))
    with pytest.raises(UnsafeInputError, match="system"):
        read(path)
    assert not (tmp_path / "marker").exists()


def test_what_other_code_declared_safe_is_not_safe_here(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    path = save_zip(tmp_path / "a.pt", Reduce(touch, str(marker)))
    with torch.serialization.safe_globals([touch]):
        with pytest.raises(UnsafeInputError, match="touch"):
            read(path)
        assert not marker.exists()
        assert touch in torch.serialization.get_safe_globals()  # and it is put back
        torch.load(path, weights_only=True)
        assert marker.exists()  # so the gadget does fire where it is declared safe


def test_a_hostile_shard_is_refused(tmp_path: Path) -> None:
    save_zip(tmp_path / "shard.bin", GADGETS["os.system"](tmp_path / "marker"))
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"w": "shard.bin"}}))
    with pytest.raises(UnsafeInputError, match="system"):
        read(tmp_path)
    assert not (tmp_path / "marker").exists()


def test_a_distributed_checkpoint_is_named_and_not_read(tmp_path: Path) -> None:
    save_pickle(tmp_path / ".metadata", GADGETS["os.system"](tmp_path / "marker"))
    (tmp_path / "__0_0.distcp").write_bytes(b"x")
    with pytest.raises(UsageError, match="dcp_to_torch"):
        read(tmp_path)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        (argparse.Namespace(lr=0.1), "argparse.Namespace"),
        (Path("data"), "pathlib"),
        (np.float64(0.1), "numpy"),
        (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
    ],
    ids=["Namespace", "Path", "numpy scalar", "module"],
)
def test_a_harmless_object_is_refused_by_name_with_advice(extra: Any, named: str, tmp_path: Path) -> None:
    torch.save({"state_dict": {"w": torch.ones(2)}, "args": extra}, tmp_path / "a.ckpt")
    with pytest.raises(UnsafeInputError) as caught:
        read(tmp_path / "a.ckpt")
    assert named in str(caught.value)
    assert "save_file(model.state_dict()" in str(caught.value)


def test_a_torchscript_archive_is_refused_by_name(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt", "a") as archive:
        archive.writestr("a/constants.pkl", b"\x80\x02}.")
    with pytest.raises(UnsafeInputError, match="TorchScript"):
        read(tmp_path / "a.pt")


def test_attributes_in_a_pickle_do_not_replace_methods(tmp_path: Path) -> None:
    state = torch.nn.Linear(2, 2).state_dict()
    for name in ("keys", "values", "get", "__iter__"):
        state.__dict__[name] = "not a method"
    weight = torch.nn.Parameter(torch.arange(4.0))
    for name in ("detach", "numel", "resolve_neg", "to", "view"):
        setattr(weight, name, "not a method")
    state["weight"] = weight
    torch.save(state, tmp_path / "a.pt")
    got = read(tmp_path / "a.pt").tensors["weight"]
    assert got.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert type(got) is torch.Tensor and not got.requires_grad and not got.__dict__


def test_a_dict_that_holds_itself_ends(tmp_path: Path) -> None:
    loop: dict[str, Any] = {"w": torch.ones(2)}
    loop["model"] = loop
    torch.save(loop, tmp_path / "a.pt")
    assert list(read(tmp_path / "a.pt").tensors) == ["w"]


def test_a_view_that_claims_more_than_its_file_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1).expand(10**12)}, tmp_path / "a.pt")  # 4 bytes that would be copied to 4 TB
    with pytest.raises(UnsafeInputError, match="claims 4000000000000 bytes"):
        read(tmp_path / "a.pt")


# ---- safetensors headers -------------------------------------------------------------------------------------------


def assembled(header: bytes | dict[str, Any], data: bytes, length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def entry(dtype: str, shape: list[Any], *offsets: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


A = entry("F32", [2], 0, 8)
B = entry("F32", [1], 8, 12)
ATTACKS = {
    "seven bytes": (b"\0" * 7, "too short"),
    "length zero": (assembled(b"", b""), "does not begin"),
    "length beyond the file": (assembled({"a": A}, b"\0" * 8, length=10_000), "claims 10000 bytes"),
    "length 2^63": (assembled({"a": A}, b"\0" * 8, length=2**63), "over the limit"),
    "length over 100 MB": (assembled({"a": A}, b"\0" * 8, length=100_000_001), "over the limit"),
    "not UTF-8": (assembled(b'{"\xff": 1}', b""), "cannot be read"),
    "not JSON": (assembled(b"{nonsense}", b""), "cannot be read"),
    "an array": (assembled(b"[1]", b""), "does not begin"),
    "deep nesting": (assembled(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b""), "cannot be read"),
    "an integer of 10000 digits": (assembled(b'{"a":' + b"9" * 10_000 + b"}", b""), "cannot be read"),
    "unpaired surrogate": (assembled(b'{"\\ud800":' + json.dumps(A).encode() + b"}", b"\0" * 8), "cannot be read"),
    "duplicate tensor": (
        assembled(b'{"a":' + json.dumps(A).encode() + b',"a":' + json.dumps(A).encode() + b"}", b"\0" * 8),
        "duplicate key 'a'",
    ),
    "duplicate field": (
        assembled(b'{"a":{"dtype":"F32","dtype":"I32","shape":[2],"data_offsets":[0,8]}}', b"\0" * 8),
        "duplicate key 'dtype'",
    ),
    "overlap": (assembled({"a": A, "b": entry("F32", [1], 4, 8)}, b"\0" * 8), "overlap"),
    "same bytes twice": (assembled({"a": A, "b": A}, b"\0" * 8), "overlap"),
    "gap": (assembled({"a": A, "b": entry("F32", [1], 12, 16)}, b"\0" * 16), "gap"),
    "hole at the front": (assembled({"b": B}, b"\0" * 12), "gap"),
    "beyond the end": (assembled({"a": A}, b"\0" * 4), "end at byte 8 of 4"),
    "trailing bytes": (assembled({"a": A}, b"\0" * 9), "end at byte 8 of 9"),
    "unknown dtype": (assembled({"a": entry("F4", [2], 0, 8)}, b"\0" * 8), "unknown dtype 'F4'"),
    "shape too small": (assembled({"a": entry("F32", [1], 0, 8)}, b"\0" * 8), "does not fill"),
    "shape that overflows 64 bits to fit": (
        assembled({"a": entry("U8", [2**32, 2**32, 1], 0, 0)}, b""),
        "does not fill",
    ),
    "negative shape": (assembled({"a": entry("F32", [-1, -2], 0, 8)}, b"\0" * 8), "has the shape"),
    "true as a size": (assembled({"a": entry("F64", [True], 0, 8)}, b"\0" * 8), "has the shape"),
    "fractional size": (assembled({"a": entry("F32", [2.0], 0, 8)}, b"\0" * 8), "has the shape"),
    "65 dimensions": (assembled({"a": entry("F64", [1] * 65, 0, 8)}, b"\0" * 8), "has the shape"),
    "offsets reversed": (assembled({"a": entry("F32", [2], 8, 0)}, b"\0" * 8), "data_offsets"),
    "one offset": (assembled({"a": entry("F32", [2], 0)}, b"\0" * 8), "data_offsets"),
    "no dtype": (assembled({"a": {"shape": [2], "data_offsets": [0, 8]}}, b"\0" * 8), "not given by"),
    "metadata that is no text": (assembled({"__metadata__": {"a": 1}, "a": A}, b"\0" * 8), "__metadata__"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_false_safetensors_header_is_refused_with_its_fault(attack: str, tmp_path: Path) -> None:
    raw, fault = ATTACKS[attack]
    (tmp_path / "a.safetensors").write_bytes(raw)
    with pytest.raises(UnsafeInputError) as caught:
        read(tmp_path / "a.safetensors")
    assert "is not a sound safetensors file" in str(caught.value)  # by our own check, before the library's
    assert fault in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_our_check_lets_no_safe_file_wait(tmp_path: Path) -> None:
    """Every dtype, an empty tensor, a scalar and 2000 entries, as the library writes them."""
    state = {f"n{i}": torch.full((i % 3, 2), float(i)) for i in range(2000)}
    state |= {str(dtype): torch.ones(3).to(dtype) for dtype in (torch.bool, torch.uint16, torch.int64, torch.bfloat16)}
    state["scalar"] = torch.tensor(7.0)
    safetensors.torch.save_file(state, tmp_path / "a.safetensors", metadata={"step": "12", "format": "pt"})
    got = read(tmp_path / "a.safetensors")
    assert got.step == 12
    assert set(got.tensors) == set(state)
    assert all(torch.equal(got.tensors[name], state[name]) for name in state)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_mutated_safetensors_file_is_read_or_refused(data: st.DataObject, tmp_path: Path) -> None:
    raw = bytearray(safetensors.torch.save({"a": torch.arange(6.0).reshape(2, 3), "b": torch.arange(4)}))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(raw) - 1))
        raw[position] = data.draw(st.sampled_from(b'\x00\xff{}[]",:0129-eE\\ ') | st.integers(0, 255))
    (tmp_path / "a.safetensors").write_bytes(raw)
    try:
        got = read(tmp_path / "a.safetensors")
    except LandscapeError:
        return
    assert sum(value.numel() for value in got.tensors.values()) <= 10 * 8  # no more values than there are bytes


# ---- damage --------------------------------------------------------------------------------------------------------

VALUES = {"layer.weight": np.arange(12, dtype=np.float32).reshape(3, 4), "layer.bias": np.arange(3, dtype=np.float32)}
STATE = {name: torch.from_numpy(value) for name, value in VALUES.items()}


def saved(form: str, folder: Path) -> Path:
    path = folder / form
    if form == "legacy.pt":
        torch.save(STATE, path, _use_new_zipfile_serialization=False)
    elif form == "zip.pt":
        torch.save(STATE, path)
    elif form.endswith(".npz"):
        (np.savez_compressed if "compressed" in form else np.savez)(path, **VALUES)
    else:
        safetensors.torch.save_file(STATE, path)
    return path


FORMS = ("zip.pt", "legacy.pt", "plain.npz", "compressed.npz", "a.safetensors")
CUTS = (0, 1, 7, 9, 0.2, 0.4, 0.6, 0.8, 0.95, -1)  # bytes, parts of the whole, all but one


@pytest.mark.parametrize("form", FORMS)
def test_each_format_gives_the_values_back(form: str, tmp_path: Path) -> None:
    got = read(saved(form, tmp_path))
    assert {name: value.numpy().tolist() for name, value in got.tensors.items()} == {
        name: value.tolist() for name, value in VALUES.items()
    }
    assert all(value.dtype == torch.float32 for value in got.tensors.values())
    assert got.step is None


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("form", FORMS)
def test_a_truncated_file_is_refused(form: str, cut: float, tmp_path: Path) -> None:
    path = saved(form, tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:cut] if isinstance(cut, int) else whole[: int(cut * len(whole))])
    with pytest.raises(UnsafeInputError, match=form + (" is empty" if cut == 0 else "")):
        read(path)


@pytest.mark.parametrize("form", ["zip.pt", "plain.npz", "compressed.npz"])
def test_a_flipped_bit_is_refused_or_changes_nothing(form: str, tmp_path: Path) -> None:
    path = saved(form, tmp_path)
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for position in random.choice(len(whole), size=min(250, len(whole)), replace=False):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << int(random.integers(8))
        path.write_bytes(flipped)
        try:
            got = read(path).tensors
        except LandscapeError:
            refused += 1
            continue
        for name, value in got.items():
            assert name in VALUES and value.numpy().tobytes() == VALUES[name].tobytes(), position
    assert refused > 20


def test_a_flipped_bit_in_the_weights_of_a_zip_is_seen_though_torch_does_not(tmp_path: Path) -> None:
    path = saved("zip.pt", tmp_path)
    flipped = bytearray(path.read_bytes())
    flipped[flipped.find(VALUES["layer.weight"].tobytes()) + 5] ^= 64
    path.write_bytes(flipped)
    assert not torch.equal(torch.load(path, weights_only=True)["layer.weight"], STATE["layer.weight"])
    with pytest.raises(UnsafeInputError, match="checksum"):
        read(path)


@pytest.mark.parametrize("form", FORMS)
def test_random_bytes_under_any_name_are_refused(form: str, tmp_path: Path) -> None:
    for seed in range(5):
        (tmp_path / form).write_bytes(np.random.default_rng(seed).bytes(500))
        with pytest.raises(UnsafeInputError):
            read(tmp_path / form)


def rezipped(source: Path, target: Path, method: int, edit: Any = lambda name, raw: raw) -> Path:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", method) as new:
        for record in old.infolist():
            new.writestr(record.filename, edit(record.filename, old.read(record)))
    return target


def test_compressed_records_and_twin_names_are_refused(tmp_path: Path) -> None:
    path = saved("zip.pt", tmp_path)
    assert torch.equal(
        read(rezipped(path, tmp_path / "same.pt", zipfile.ZIP_STORED)).tensors["layer.bias"], STATE["layer.bias"]
    )
    with pytest.raises(UnsafeInputError, match="compressed"):
        read(rezipped(path, tmp_path / "small.pt", zipfile.ZIP_DEFLATED))
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("zip/data.pkl", b"\x80\x02}.")
    with pytest.raises(UnsafeInputError, match="two records"):
        read(path)


def test_an_npz_that_claims_more_than_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "a.npz", w=np.zeros(10**6))
    monkeypatch.setattr(os, "sysconf", lambda name: 1000)  # a machine of 1000 pages of 1000 bytes
    with pytest.raises(UnsafeInputError, match="GiB"):
        read(tmp_path / "a.npz")


def test_an_npy_header_that_claims_a_shape_beyond_its_bytes_is_refused(tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": (2**40, 2**40)})
    for name, raw in (("huge", stream.getvalue()), ("tail", b"")):
        with zipfile.ZipFile(tmp_path / f"{name}.npz", "w") as archive:
            if not raw:
                body = io.BytesIO()
                np.save(body, np.ones(2))
                raw = body.getvalue() + b"more"
            archive.writestr("w.npy", raw)
        with pytest.raises(UnsafeInputError):
            read(tmp_path / f"{name}.npz")


def test_a_file_without_checksums_is_read_and_said_so(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = saved("zip.pt", tmp_path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert any("checksums" in note for note in read(path).notes)


@pytest.mark.parametrize(
    "error", [MemoryError(), OverflowError("x"), RuntimeError("x"), RecursionError(), KeyError("x")]
)
def test_whatever_a_loader_raises_becomes_a_refusal(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise error

    for module, name, form in (
        (torch, "load", "zip.pt"),
        (safetensors.torch, "load", "a.safetensors"),
        (np.lib.format, "read_array", "plain.npz"),
    ):
        path = saved(form, tmp_path)
        with monkeypatch.context() as patch, pytest.raises(UnsafeInputError, match=form):
            patch.setattr(module, name, fails)
            read(path)


def test_an_interrupt_is_not_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    path = saved("zip.pt", tmp_path)
    monkeypatch.setattr(torch, "load", fails)
    with pytest.raises(KeyboardInterrupt):
        read(path)


# ---- nothing to read -----------------------------------------------------------------------------------------------


def test_an_unreadable_file_is_a_usage_error(tmp_path: Path) -> None:
    path = saved("a.safetensors", tmp_path)
    path.chmod(0)
    root = os.geteuid() == 0
    try:
        if root:
            os.seteuid(65534)  # root may read everything, nobody may not
        with pytest.raises(UsageError, match="denied"):
            read(path)
        with pytest.raises(UsageError, match="denied"):
            read(path.with_name("a.pt") if root else path)
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.pt", "there is no checkpoint at"),
        ("a\0b.pt", "cannot be read"),
        ("x" * 300 + ".pt", "cannot be read"),
        ("model.h5", "HDF5"),
        ("model.pkl", "Allowed: .bin, .ckpt, .index.json"),
        ("empty-folder", "no checkpoint in .*looked for"),
        ("fifo.pt", "not a regular file"),
    ],
)
def test_nothing_to_read_is_a_usage_error(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "model.h5").write_bytes(b"x")
    (tmp_path / "model.pkl").write_bytes(b"x")
    (tmp_path / "empty-folder").mkdir()
    os.mkfifo(tmp_path / "fifo.pt")
    with pytest.raises(UsageError, match=message):
        read(tmp_path / name)


@pytest.mark.parametrize("content", [torch.ones(3), [torch.ones(3)], {}, {"epoch": 3}, {"w": torch.ones(2).to("meta")}])
def test_a_file_without_a_state_dict_is_a_usage_error(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(UsageError, match=r"state_dict"):
        read(tmp_path / "a.pt")


def test_tensors_under_an_unknown_name_are_named(tmp_path: Path) -> None:
    torch.save({"generator": STATE, "critic": STATE, "epoch": 3}, tmp_path / "a.pt")
    with pytest.raises(UsageError, match="'generator', 'critic'"):
        read(tmp_path / "a.pt")


def test_two_state_dicts_are_not_chosen_between(tmp_path: Path) -> None:
    torch.save({"model": STATE, "net": STATE}, tmp_path / "a.pt")
    with pytest.raises(UsageError, match="'model' and 'net'"):
        read(tmp_path / "a.pt")


def test_names_from_a_file_reach_no_terminal_raw(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2), "\x1b[31mred\n" * 100: "x"}, tmp_path / "a.pt")
    note = read(tmp_path / "a.pt").notes[0]
    assert "\x1b" not in note and "\n" not in note and len(note) < 200


# ---- wrappers, prefixes, kinds -------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapper", checkpoints.WRAPPERS)
def test_a_wrapper_is_opened_and_the_step_beside_it_taken(wrapper: str, tmp_path: Path) -> None:
    torch.save({wrapper: STATE, "optimizer": {"state": {}}, "global_step": 700, "epoch": 2}, tmp_path / "last.pt")
    got = read(tmp_path / "last.pt")
    assert set(got.tensors) == set(STATE)
    assert got.step == 700
    assert any(repr(wrapper) in note and "'optimizer'" in note for note in got.notes)


def test_wrappers_within_wrappers_are_opened(tmp_path: Path) -> None:
    torch.save({"model": {"state_dict": STATE}, "step": 5}, tmp_path / "a.pt")
    assert set(read(tmp_path / "a.pt").tensors) == set(STATE)
    assert read(tmp_path / "a.pt").step == 5


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "net.", "module._orig_mod.", "_orig_mod.module."]
)
def test_a_prefix_on_every_name_is_taken_off(prefix: str, tmp_path: Path) -> None:
    torch.save({prefix + name: value for name, value in STATE.items()}, tmp_path / "a.pt")
    got = read(tmp_path / "a.pt")
    assert set(got.tensors) == set(STATE)
    assert any(prefix in note for note in got.notes)


def test_a_prefix_on_some_names_stays(tmp_path: Path) -> None:
    torch.save({"model.w": torch.ones(1), "loss.w": torch.ones(1)}, tmp_path / "a.pt")
    assert set(read(tmp_path / "a.pt").tensors) == {"model.w", "loss.w"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.uint16, torch.bool])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_dtypes_are_kept(dtype: torch.dtype, suffix: str, tmp_path: Path) -> None:
    state = {"w": torch.tensor([0, 1, 3]).to(dtype)}
    path = tmp_path / f"a{suffix}"
    torch.save(state, path) if suffix == ".pt" else safetensors.torch.save_file(state, path)
    got = read(path).tensors["w"]
    assert got.dtype == dtype
    assert got.to(torch.float64).tolist() == ([0, 1, 1] if dtype == torch.bool else [0, 1, 3])


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_8_bit_floats_become_float32_exactly(dtype: torch.dtype, suffix: str, tmp_path: Path) -> None:
    state = {"w": torch.tensor([0.5, -1.75, 224.0]).to(dtype)}
    path = tmp_path / f"a{suffix}"
    torch.save(state, path) if suffix == ".pt" else safetensors.torch.save_file(state, path)
    got = read(path).tensors["w"]
    assert got.dtype == torch.float32
    assert got.tolist() == [0.5, -1.75, 224.0]


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_what_is_no_dense_real_tensor_is_skipped_with_a_note(tmp_path: Path) -> None:
    state = {
        "w": torch.ones(2),
        "complex": torch.ones(2, dtype=torch.complex64),
        "sparse": torch.eye(2).to_sparse(),
        "quantised": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        "meta": torch.ones(2, device="meta"),
        "_extra_state": "text",
    }
    torch.save(state, tmp_path / "a.pt")
    got = read(tmp_path / "a.pt")
    assert list(got.tensors) == ["w"]
    for name in set(state) - {"w"}:
        assert any(f"'{name}'" in note for note in got.notes), name


def test_npz_arrays_that_torch_lacks_are_skipped_and_byte_order_is_mended(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "a.npz",
        w=np.arange(3, dtype=">f4"),
        f=np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        scalar=np.float64(2.5),
        text=np.array(["a"]),
        z=np.ones(2, dtype=np.complex128),
        step=np.int64(40),
    )
    got = read(tmp_path / "a.npz")
    assert {name: value.tolist() for name, value in got.tensors.items()} == {
        "w": [0, 1, 2],
        "f": [[0, 1, 2], [3, 4, 5]],
        "scalar": 2.5,
    }
    assert got.step == 40
    assert sum("skipped" in note for note in got.notes) == 2


def test_a_bool_byte_that_is_neither_0_nor_1_becomes_true(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(assembled({"m": entry("BOOL", [3], 0, 3)}, b"\x00\x02\xff"))
    assert read(tmp_path / "a.safetensors").tensors["m"].view(torch.uint8).tolist() == [0, 1, 1]


def test_views_and_ties_keep_their_values(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    torch.save({"a": base, "transposed": base.T, "row": base[1], "tied": base}, tmp_path / "a.pt")
    got = read(tmp_path / "a.pt").tensors
    assert got["transposed"].tolist() == base.T.tolist()
    assert got["row"].tolist() == [4, 5, 6, 7]
    assert got["tied"].data_ptr() == got["a"].data_ptr()
    fitted = match(read(tmp_path / "a.pt"), {n: (tuple(v.shape), v.dtype) for n, v in got.items()})
    assert all(value.is_contiguous() for value in fitted.values())
    assert fitted["transposed"].tolist() == base.T.tolist()


# ---- shards and folders --------------------------------------------------------------------------------------------


def shard(folder: Path, **listed: str) -> Path:
    folder.mkdir(exist_ok=True)
    safetensors.torch.save_file({"a": torch.zeros(2)}, folder / "model-00001-of-00002.safetensors")
    safetensors.torch.save_file({"b": torch.ones(2)}, folder / "model-00002-of-00002.safetensors")
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"} | listed
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 16}, "weight_map": names}))
    return index


def test_a_sharded_folder_is_read_whole(tmp_path: Path) -> None:
    index = shard(tmp_path / "checkpoint-500")
    (tmp_path / "checkpoint-500" / "training_args.bin").write_bytes(b"not to be read")
    (tmp_path / "checkpoint-500" / "optimizer.pt").write_bytes(b"not to be read")
    for path in (index, index.parent):
        got = read(path)
        assert {name: value.tolist() for name, value in got.tensors.items()} == {"a": [0, 0], "b": [1, 1]}
        assert got.step == 500


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    index = shard(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UsageError, match=r"1 of 2 shards are missing: 'model-00002-of-00002.safetensors'"):
        read(index)


@pytest.mark.parametrize(
    "target",
    [
        "../outside.safetensors",
        "/etc/outside.safetensors",
        "a/../../outside.safetensors",
        "..\\outside.safetensors",
        "C:\\outside.safetensors",
        "",
        "a\0.safetensors",
        "passwd",
        "other.index.json",
        "a.npz",
    ],
)
def test_an_index_cannot_point_elsewhere(target: str, tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": torch.zeros(2)}, tmp_path / "outside.safetensors")
    with pytest.raises(UnsafeInputError, match=r"points outside|is no shard"):
        read(shard(tmp_path / "in", a=target))


def test_a_tensor_that_is_not_in_its_shard_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnsafeInputError, match="'c' is not in model-00001"):
        read(shard(tmp_path, c="model-00001-of-00002.safetensors"))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}'])
def test_a_broken_index_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.index.json").write_text(text)
    with pytest.raises(UnsafeInputError):
        read(tmp_path / "a.index.json")


def test_what_lies_beside_the_weights_is_no_checkpoint(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "weights.pt")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state_0.pth", "training_args.bin", "scaler.pt", ".hidden.pt"):
        (tmp_path / name).write_bytes(b"never opened")
    assert read(tmp_path).path == tmp_path / "weights.pt"
    assert order([tmp_path]) == [tmp_path / "weights.pt"]


def test_a_folder_with_several_checkpoints_is_not_chosen_from(tmp_path: Path) -> None:
    for name in ("one.pt", "two.pt"):
        torch.save(STATE, tmp_path / name)
    with pytest.raises(UsageError, match=r"2 checkpoints \('one.pt', 'two.pt'\)"):
        read(tmp_path)


# ---- steps ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("step_500.pt", 500),
        ("ckpt-000500.pth", 500),
        ("checkpoint-500", 500),
        ("epoch3-step1200.ckpt", 1200),
        ("step1200-epoch3.ckpt", 1200),
        ("epoch=3-step=1200-v1.ckpt", 1200),
        ("epoch=7-val_loss=0.25.ckpt", 7),
        ("model_iter_00020000.pth", 20000),
        ("global_step143000.pt", 143000),
        ("step_10k.safetensors", 10_000),
        ("step_2M.safetensors", 2_000_000),
        ("lr1e-3_step40.pt", 40),
        ("0.pt", 0),
        ("17.npz", 17),
        ("model_best_acc_0.95.pt", None),
        ("resnet18.pt", None),
        ("resnet18-500.pt", 500),
        ("model.safetensors", None),
        ("model-00001-of-00003.safetensors", None),
        ("checkpoint.pth.tar", None),
        ("checkpoint-12.pth.tar", 12),
        ("checkpoint-500/model.safetensors", 500),
        ("checkpoint-500/model.safetensors.index.json", 500),
        ("runs/250/weights.npz", 250),
        ("seed3/final.pt", None),
        ("checkpoint-500/step_7.pt", 7),
    ],
)
def test_the_step_of_a_name(name: str, step: int | None) -> None:
    assert step_in_name(Path("/data") / name) == step


@pytest.mark.parametrize(
    ("name", "beside", "step"),
    [
        ("a.pt", {}, None),
        ("a.pt", {"epoch": 4}, 4),
        ("step_9.pt", {"epoch": 4}, 9),
        ("step_9.pt", {"step": 12, "epoch": 4}, 9),
        ("a.pt", {"iteration": 30}, 30),
        ("a.pt", {"step": -1}, None),
        ("a.pt", {"step": True}, None),
        ("a.pt", {"step": 2**70}, None),
        ("a.pt", {"step": "12"}, None),
    ],
)
def test_the_step_of_a_file(name: str, beside: dict[str, Any], step: int | None, tmp_path: Path) -> None:
    torch.save({"model": STATE, **beside}, tmp_path / name)
    got = read(tmp_path / name)
    assert got.step == step
    if step == 4:
        assert any("counts epochs" in note for note in got.notes)
    assert any("the entry 'step' says 12" in note for note in got.notes) == (beside.get("step") == 12)


# ---- order ---------------------------------------------------------------------------------------------------------


def test_order_is_by_number_not_by_letters(tmp_path: Path) -> None:
    for step in (10, 9, 100, 1):
        (tmp_path / f"step_{step}.pt").write_bytes(b"never opened")
    (tmp_path / "best.pt").write_bytes(b"never opened")
    (tmp_path / ".step_5.pt").write_bytes(b"never opened")
    expected = [tmp_path / f"step_{step}.pt" for step in (1, 9, 10, 100)]
    assert order([tmp_path]) == expected
    assert order([str(tmp_path / "step_*.pt")]) == expected
    assert order(reversed(expected)) == expected
    assert order([tmp_path, *expected]) == expected


def test_order_opens_the_folders_of_a_trainer(tmp_path: Path) -> None:
    for step in (1000, 500):
        shard(tmp_path / f"checkpoint-{step}")
    safetensors.torch.save_file(STATE, tmp_path / "model.safetensors")  # the last one again
    (tmp_path / "runs-2").mkdir()
    expected = [tmp_path / f"checkpoint-{step}" / "model.safetensors.index.json" for step in (500, 1000)]
    assert order([tmp_path]) == expected
    assert order([tmp_path / "checkpoint-1000", tmp_path / "checkpoint-500"]) == expected
    assert order([str(tmp_path / "checkpoint-*")]) == expected


def test_order_reads_a_file_whose_name_tells_nothing(tmp_path: Path) -> None:
    torch.save({"model": STATE, "step": 7}, tmp_path / "final.pt")
    (tmp_path / "step_3.pt").write_bytes(b"never opened")
    assert order([tmp_path / "final.pt", tmp_path / "step_3.pt"]) == [tmp_path / "step_3.pt", tmp_path / "final.pt"]
    torch.save({"model": STATE, "step": 1}, tmp_path / "step_9.pt")  # the name first: as `read` has it
    assert order([tmp_path / "step_9.pt", tmp_path / "final.pt"])[-1].name == "step_9.pt"
    assert read(tmp_path / "step_9.pt").step == 9
    torch.save(STATE, tmp_path / "other.pt")
    assert order([tmp_path / "other.pt"]) == [tmp_path / "other.pt"]  # nothing to order
    with pytest.raises(UsageError, match=r"step of .*other\.pt cannot be told"):
        order([tmp_path / "other.pt", tmp_path / "step_3.pt"])


def test_order_refuses_what_it_cannot_order(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no checkpoint in .*; looked for .*\.safetensors"):
        order([tmp_path])
    with pytest.raises(UsageError, match="no checkpoint matches"):
        order([str(tmp_path / "*.pt")])
    with pytest.raises(UsageError, match="there is no checkpoint at"):
        order([tmp_path / "absent.pt"])
    with pytest.raises(UsageError, match="no checkpoint was given"):
        order([])
    for name in ("step_5.pt", "ckpt-5.pt"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UsageError) as caught:
        order([tmp_path])
    assert "step_5.pt" in str(caught.value) and "ckpt-5.pt" in str(caught.value)


# ---- match ---------------------------------------------------------------------------------------------------------


def held(**tensors: torch.Tensor) -> Checkpoint:
    return Checkpoint(Path("a.pt"), {name.replace("__", "."): value for name, value in tensors.items()}, None, ())


def spec(**shapes: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    return {name.replace("__", "."): (shape, torch.float32) for name, shape in shapes.items()}


def test_match_gives_the_expected_tensors_in_their_order_as_copies() -> None:
    source = held(b=torch.ones(2), a=torch.zeros(3))
    got = match(source, spec(a=(3,), b=(2,)))
    assert list(got) == ["a", "b"]
    got["a"].fill_(9)
    assert source.tensors["a"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("there", ["", "net.", "encoder.", "deep.er."])
@pytest.mark.parametrize("wanted", ["", "net.", "deep.er."])
def test_match_adds_or_takes_off_one_common_prefix(there: str, wanted: str) -> None:
    source = Checkpoint(Path("a.pt"), {f"{there}0.w": torch.ones(1), f"{there}1.w": torch.zeros(1)}, None, ())
    expected = {f"{wanted}0.w": ((1,), torch.float32), f"{wanted}1.w": ((1,), torch.float32)}
    if there and wanted and there != wanted:  # two prefixes: that is another model
        with pytest.raises(UsageError):
            match(source, expected)
    else:
        assert [value.item() for value in match(source, expected).values()] == [1, 0]


def test_match_names_every_kind_of_mismatch_and_the_nearest_name() -> None:
    source = held(layer__weigth=torch.ones(2), layer__bias=torch.ones(3), n=torch.ones(1, dtype=torch.int64))
    with pytest.raises(UsageError) as caught:
        match(source, spec(layer__weight=(2,), layer__bias=(4,), n=(1,)))
    text = str(caught.value)
    assert "1 missing: 'layer.weight' (nearest there: 'layer.weigth')" in text
    assert "1 unexpected: 'layer.weigth' (nearest there: 'layer.weight')" in text
    assert "1 of another shape: 'layer.bias' is (3,) where (4,) is due" in text
    assert "1 of another kind: 'n' is torch.int64 where torch.float32 is due" in text


def test_match_shows_five_and_counts_all() -> None:
    with pytest.raises(UsageError) as caught:
        match(held(zz=torch.ones(1)), spec(**{f"name_{i}": (1,) for i in range(40)}))
    assert "40 missing" in str(caught.value)
    assert sum(f"'name_{i}'" in str(caught.value).split("unexpected")[0] for i in range(40)) == 5


def test_tied_names_may_stand_beside_or_instead() -> None:
    ties = {"head": "embed"}
    for source in (
        held(embed=torch.ones(2), head=torch.ones(2)),
        held(head=torch.ones(2)),
        held(embed=torch.ones(2)),
        held(x__embed=torch.ones(2), x__head=torch.ones(2)),
    ):
        assert match(source, spec(embed=(2,)), aliases=ties)["embed"].tolist() == [1, 1]
    with pytest.raises(UsageError, match="unexpected: 'head'"):
        match(held(embed=torch.ones(2), head=torch.ones(2)), spec(embed=(2,)))
    with pytest.raises(UsageError, match="one tensor in the model, two in the file"):
        match(held(embed=torch.ones(2), head=torch.zeros(2)), spec(embed=(2,)), aliases=ties)


@pytest.mark.parametrize("there", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("wanted", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_float_becomes_the_float_asked_for(there: torch.dtype, wanted: torch.dtype) -> None:
    got = match(held(w=torch.tensor([0.5, -2.0], dtype=there)), {"w": ((2,), wanted)})["w"]
    assert got.dtype == wanted
    assert got.tolist() == [0.5, -2.0]  # exact in all of them


@pytest.mark.parametrize(
    ("value", "there", "wanted", "fits"),
    [
        (300, torch.int64, torch.int32, True),
        (300, torch.int64, torch.uint8, False),
        (-1, torch.int64, torch.uint64, False),
        (2**63, torch.uint64, torch.int64, False),
        (2**62, torch.uint64, torch.int64, True),
        (1, torch.bool, torch.int64, True),
        (1, torch.int64, torch.bool, True),
        (2, torch.int64, torch.bool, False),
        (2**40, torch.int64, torch.int32, False),
    ],
)
def test_an_integer_is_converted_only_where_its_value_stays(
    value: int, there: torch.dtype, wanted: torch.dtype, fits: bool
) -> None:
    source = held(n=torch.tensor([value], dtype=there))
    if fits:
        assert match(source, {"n": ((1,), wanted)})["n"].tolist() == [value]
    else:
        with pytest.raises(UsageError, match=str(value)):
            match(source, {"n": ((1,), wanted)})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused_with_their_count(bad: float, dtype: torch.dtype) -> None:
    source = held(w=torch.tensor([1.0, bad, bad], dtype=dtype))
    with pytest.raises(LandscapeError, match="'w' has 2 of 3 values") as caught:
        match(source, {"w": ((3,), dtype)})
    assert type(caught.value) is LandscapeError
    assert str(match(source, {"w": ((3,), dtype)}, allow_nonfinite=True)["w"][1].item()) == str(bad)


def test_overflow_in_the_dtype_asked_for_is_refused() -> None:
    with pytest.raises(LandscapeError, match=r"1 of 2 values of 'w' overflow in torch\.float16"):
        match(held(w=torch.tensor([1.0, 1e6])), {"w": ((2,), torch.float16)})


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shapes=st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=8).map(lambda n: "k" + n),
        st.lists(st.integers(0, 3), max_size=3).map(tuple),
        min_size=1,
        max_size=4,
    ),
    suffix=st.sampled_from([".pt", ".safetensors"]),
)
def test_what_is_written_is_what_is_matched(shapes: dict[str, tuple[int, ...]], suffix: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    arrays = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    state = {name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}
    path = tmp_path / f"a{suffix}"
    torch.save(state, path) if suffix == ".pt" else safetensors.torch.save_file(state, path)
    got = match(read(path), {name: (shape, torch.float32) for name, shape in shapes.items()})
    assert list(got) == list(shapes)
    assert all(got[name].numpy().tobytes() == arrays[name].tobytes() for name in shapes)
