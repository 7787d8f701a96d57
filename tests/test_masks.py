"""Masks are sets: their algebra against python's sets, exact zeros, bits that come back, and refusal of what is damaged or another network's."""

import json
import math
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from landscape import subspaces
from landscape.errors import UnsafeInputError, UsageError
from landscape.masks import Mask
from landscape.objectives import Objective
from landscape.trajectories import Entry, Layout


def layout(*shapes, names="abcdefgh", aliases=None):
    entries, offset = [], 0
    for name, shape in zip(names, shapes, strict=False):
        entries.append(Entry(name, shape, offset, "float32", "parameter"))
        offset += math.prod(shape)
    return Layout(tuple(entries), aliases or {})


LAYOUT = layout(
    (3, 5), (), (0, 4), (2, 3, 1), (9,)
)  # 31 parameters: a scalar, an empty tensor, none a multiple of 8 long
ALL = st.sets(st.integers(0, LAYOUT.dim - 1))


def mask(places, of=LAYOUT):
    kept = np.zeros(of.dim, dtype=bool)
    kept[list(places)] = True
    return Mask(of, kept)


def places(found):
    return set(np.flatnonzero(found.kept).tolist())


@settings(deadline=None)
@given(ALL, ALL)
def test_algebra_is_that_of_sets(one, other):
    a, b = mask(one), mask(other)
    assert places(a & b) == one & other
    assert places(a | b) == one | other
    assert places(a - b) == one - other
    assert (a <= b) == (one <= other)
    assert (a == b) == (one == other)
    assert a.size == len(one)
    assert a.density == len(one) / 31
    assert (a != b) or hash(a) == hash(b)


@settings(deadline=None)
@given(ALL)
def test_counts_and_tensors_by_name(one):
    found = mask(one)
    assert {name: tensor.shape for name, tensor in found.tensors().items()} == {
        "a": (3, 5), "b": (), "c": (0, 4), "d": (2, 3, 1), "e": (9,)
    }  # fmt: skip
    own = {"a": range(15), "b": range(15, 16), "c": range(0), "d": range(16, 22), "e": range(22, 31)}
    assert found.counts() == {name: (len(one & set(span)), len(span)) for name, span in own.items()}
    for name, span in own.items():
        assert found.tensors()[name].ravel().tolist() == [place in one for place in span]
    assert Mask.of(LAYOUT, found.tensors()) == found


def test_of_keeps_what_is_not_named_and_takes_any_name_of_a_tied_weight():
    tied = layout((2, 2), (3,), aliases={"head": "a"})
    assert places(Mask.of(tied, {"head": [[1, 0], [0, 1]]})) == {0, 3, 4, 5, 6}
    for given_tensors, says in (
        ({"z": [1]}, "unknown trained parameter 'z'.*Allowed: a, b"),
        ({"b": [1, 0]}, r"mask of b has shape \(2,\), and the parameter \(3,\)"),
        ({"b": [1, 2, 0]}, "other than true and false"),
        ({"b": [1, math.nan, 0]}, "other than true and false"),
    ):
        with pytest.raises(UsageError, match=says):
            Mask.of(tied, given_tensors)


def test_a_mask_does_not_change_with_the_array_it_was_made_of():
    array = np.ones(31, dtype=bool)
    found = Mask(LAYOUT, array)
    array[:] = False
    assert found == Mask.full(LAYOUT)
    with pytest.raises(ValueError, match="read-only"):
        found.kept[0] = False
    with pytest.raises(ValueError, match="read-only"):
        found.tensors()["a"][0, 0] = False
    for wrong in (np.ones(31), np.ones(30, dtype=bool)):
        with pytest.raises(UsageError, match=r"is a bool array \(31,\)"):
            Mask(LAYOUT, wrong)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_is_applied_leaves_exact_zeros_whatever_stood_there(dtype):
    found = mask({1, 2, 5})
    w = torch.full((2, 31), math.nan, dtype=dtype)
    w[1] = -math.inf
    w[:, [1, 2, 5]] = torch.tensor([[1.0, -0.0, 3.0], [4.0, 5.0, 6.0]], dtype=dtype)
    out = found.apply(w)
    wanted = torch.zeros(2, 31, dtype=dtype)
    wanted[:, [1, 2, 5]] = w[:, [1, 2, 5]]
    assert out.dtype == dtype
    assert torch.equal(out, wanted)
    assert w[0, 0].isnan()  # the argument is as it was
    if dtype != torch.bfloat16:
        again = found.apply(w.numpy())
        assert again.dtype == w.numpy().dtype
        assert np.array_equal(again, wanted.numpy())
    with pytest.raises(UsageError, match="of 31 parameters"):
        found.apply(w[:, :30])


def test_the_axial_subspace_of_a_mask_holds_what_the_mask_keeps():
    """The minimum of |w - c|^2 / 2 over it is c on the survivors and 0 elsewhere: one step of gradient descent of rate 1 goes there."""
    found, centre = mask({0, 3, 7, 30}), torch.arange(31.0, dtype=torch.float64)
    f = Objective.from_function(lambda w: (w - centre).square().sum() / 2, 31)
    f = f.restrict(subspaces.coordinates(torch.zeros(31, dtype=torch.float64), found.tensor("cpu")))
    z = torch.ones(4, dtype=torch.float64)
    end = f.lift(z - f.gradient(z))
    assert torch.equal(end, found.apply(centre))
    assert torch.equal(
        end,
        torch.zeros(31, dtype=torch.float64).scatter(
            0, torch.tensor([0, 3, 7, 30]), torch.tensor([0.0, 3, 7, 30], dtype=torch.float64)
        ),
    )


# -- bytes ------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(ALL)
def test_bytes_come_back(one):
    assert places(Mask.from_bytes(mask(one).to_bytes(), LAYOUT)) == one


def test_a_mask_takes_a_bit_a_parameter():
    big = layout((1000, 1000))
    assert len(Mask.full(big).to_bytes()) < 1e6 / 8 + 1000


def test_every_flipped_bit_and_every_cut_is_refused():
    data = mask({1, 2, 5, 30}).to_bytes()
    for place in range(len(data)):
        bad = bytearray(data)
        bad[place] ^= 1 << place % 8
        with pytest.raises(UnsafeInputError, match="damaged"):
            Mask.from_bytes(bytes(bad), LAYOUT)
    for length in range(0, len(data), 7):
        with pytest.raises(UnsafeInputError, match="damaged"):
            Mask.from_bytes(data[:length], LAYOUT)
    for junk in (b"", b"\0" * 100, (8).to_bytes(8, "little") + b"[1,2,3] ", b"x" * 1000):
        with pytest.raises(UnsafeInputError, match="damaged"):
            Mask.from_bytes(junk, LAYOUT)


@pytest.mark.parametrize(
    "shapes", [{"a": [20]}, {"a": [2**62, 4]}, {"a": [-1]}, {"a": [10**6]}, {"b": [20]}, {}, [1], {"a": 3}]
)
def test_a_file_whose_shapes_lie_is_refused_with_a_right_checksum(shapes):
    """A mask whose own checksum is right, and whose shapes ask for more bits than it has, or name others."""
    from safetensors.numpy import save

    packed = np.array([7], dtype=np.uint8)
    crc = zlib.crc32(json.dumps(shapes).encode())
    crc = zlib.crc32(packed.tobytes(), crc)
    data = save({"a": packed}, {"format": "landscape mask 1", "shapes": json.dumps(shapes), "crc32": str(crc)})
    with pytest.raises((UnsafeInputError, UsageError)):
        Mask.from_bytes(data, layout((20,)))


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (layout((3, 5), (), (0, 4), (2, 3, 2), (9,)), r"tensor 4 is 'd' of shape \(2, 3, 1\), and here it is 'd' of shape \(2, 3, 2\)"),
        (layout((5, 3), (), (0, 4), (2, 3, 1), (9,)), r"tensor 1 is 'a' of shape \(3, 5\)"),
        (layout((3, 5), ()), r"tensor 3 is 'c' of shape \(0, 4\), and here it is nothing more"),
        (layout((3, 5), (), (0, 4), (2, 3, 1), (9,), names="abcfe"), r"'d' of shape.*and here it is 'f'"),
    ],
)  # fmt: skip
def test_the_mask_of_another_network_is_refused_by_its_first_tensor_that_differs(other, says, tmp_path):
    path = tmp_path / "mask.safetensors"
    path.write_bytes(mask({1}).to_bytes())
    with pytest.raises(UsageError, match=says):
        Mask.load(path, other)
    with pytest.raises(UsageError, match="belongs to another network"):
        mask({1}) & Mask.full(other)
    assert mask({1}) != Mask.full(other)
    assert Mask.load(path, LAYOUT) == mask({1})
    with pytest.raises(UsageError, match=r"none\.safetensors cannot be read \(No such file"):
        Mask.load(tmp_path / "none.safetensors", LAYOUT)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UnsafeInputError, match=r"mask\.safetensors is damaged"):
        Mask.load(path, LAYOUT)


def test_a_mask_fits_the_same_network_in_another_precision_and_with_other_buffers():
    entries = [Entry(e.name, e.shape, e.offset, "float64", e.kind) for e in LAYOUT.entries]
    other = Layout((*entries, Entry("count", (), 0, "int64", "buffer")))
    assert Mask.from_bytes(mask({1}).to_bytes(), other) == mask({1})
    assert Mask.full(other) & mask({1}) == mask({1})


def test_masks_need_no_torch():
    code = "import sys, landscape.masks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
