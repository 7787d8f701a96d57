"""A result is read back equal, whatever numbers it holds; what is not a result is refused, and says why."""

import dataclasses
import json
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from landscape.errors import UnsafeInputError, UsageError
from landscape.results import SCHEMA, Result


@dataclass(frozen=True, kw_only=True)
class Specimen(Result):
    """Holds anything."""

    number: float
    array: np.ndarray
    tree: dict

    def summary(self):
        return f"a specimen of {self.number}"


@dataclass(frozen=True, kw_only=True)
class Narrow(Specimen):
    """A specimen of a narrower kind."""


@dataclass(frozen=True, kw_only=True)
class Mute(Result):
    """States nothing."""


def specimen(number=1.5, array=None, tree=None, cls=Specimen):
    return cls(
        question={"top": 3},
        provenance={"seed": 0},
        warnings=("mind",),
        number=number,
        array=np.arange(6.0).reshape(2, 3) if array is None else array,
        tree=tree or {},
    )


@pytest.fixture(autouse=True)
def registered():
    yield
    assert {"specimen", "narrow", "mute"} <= Result.kinds.keys()


def back(result):
    return Result.from_json(result.to_json())


def same(one, other):
    assert type(one) is type(other)
    for field in dataclasses.fields(one):
        np.testing.assert_equal(getattr(other, field.name), getattr(one, field.name), field.name)
    assert other.to_json() == one.to_json()


FLOATS = st.floats(allow_nan=True, allow_infinity=True)
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
ARRAYS = st.one_of(
    hnp.arrays(np.float64, SHAPES, elements=FLOATS),
    hnp.arrays(np.float32, SHAPES, elements=st.floats(width=32)),
    hnp.arrays(np.int64, SHAPES),
    hnp.arrays(np.bool_, SHAPES),
    hnp.arrays("<U3", SHAPES, elements=st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=3)),
)
TREES = st.dictionaries(
    st.text(max_size=5),
    st.recursive(
        st.none() | st.booleans() | st.integers() | FLOATS | st.text(max_size=5),
        lambda x: st.lists(x, max_size=3),
        max_leaves=5,
    ),
    max_size=4,
)


@given(array=ARRAYS, tree=TREES)
def test_arrays_of_all_dtypes_and_shapes_come_back_equal(array, tree):
    result = specimen(array=array, tree=tree)
    read = back(result)
    assert read.array.dtype == array.dtype
    assert read.array.shape == array.shape
    same(result, read)


@pytest.mark.parametrize(
    "number", [float("nan"), float("inf"), float("-inf"), 0.1, -0.0, 5e-324, 1.7976931348623157e308]
)
def test_every_float_field_comes_back_as_the_float_it_was(number):
    read = back(specimen(number=number))
    assert isinstance(read.number, float)
    np.testing.assert_equal(read.number, number)


def test_numpy_scalars_and_nested_arrays_become_plain():
    read = back(
        specimen(
            tree={"n": np.int64(3), "x": np.float32(0.5), "yes": np.bool_(True), "a": [np.array([1, 2])], 7: (1, 2)}
        )
    )
    assert read.tree["n"] == 3
    assert read.tree["x"] == 0.5
    assert read.tree["yes"] is True
    assert np.array_equal(read.tree["a"][0], [1, 2])
    assert read.tree["7"] == [1, 2]


def test_the_text_is_strict_json_with_the_summary_beside_the_numbers():
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    record = json.loads(
        specimen(number=float("inf"), array=np.array([np.nan, np.inf, -np.inf])).to_json(), parse_constant=refuse
    )
    assert (record["kind"], record["schema"], record["summary"]) == ("specimen", SCHEMA, "a specimen of inf")
    assert record["number"] == {"float": "inf"}
    assert record["array"] == {"array": [None, "inf", "-inf"], "shape": [3], "dtype": "float64"}


def test_reading_by_a_base_gives_the_kind_and_by_another_kind_is_refused():
    text = specimen(cls=Narrow).to_json()
    assert type(Result.from_json(text)) is Narrow
    assert type(Specimen.from_json(text)) is Narrow
    with pytest.raises(UnsafeInputError, match="a result of kind 'specimen' where 'narrow' was expected"):
        Narrow.from_json(specimen().to_json())
    with pytest.raises(UnsafeInputError, match="where 'mute' was expected"):
        Mute.from_json(text)


def edited(**changes):
    record = json.loads(specimen().to_json())
    del record["check"]  # as if written by hand
    record.update(changes)
    return json.dumps({key: value for key, value in record.items() if value != "gone"})


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", UnsafeInputError, "not a result of this tool"),
        ("{", UnsafeInputError, "not a result"),
        ("[1, 2]", UnsafeInputError, "not a result"),
        ("null", UnsafeInputError, "not a result"),
        ('"kind"', UnsafeInputError, "not a result"),
        ("{}", UnsafeInputError, "not a result"),
        (specimen().to_json()[:-30], UnsafeInputError, "not a result"),
        (edited(schema=SCHEMA + 1), UnsafeInputError, f"schema {SCHEMA + 1}; this version reads schema {SCHEMA}"),
        (edited(kind="specimens"), UsageError, "Did you mean 'specimen'"),
        (edited(number="gone"), UnsafeInputError, "lacks the field 'number'"),
        (edited(warnings="gone"), UnsafeInputError, "lacks the field 'warnings'"),
        (edited(array={"array": [1, 2, 3], "shape": [2, 2], "dtype": "float64"}), UnsafeInputError, "damaged"),
        (edited(array={"array": [1, 2], "shape": [2], "dtype": "nonsense"}), UnsafeInputError, "damaged"),
        (edited(array={"array": ["x"], "shape": [1], "dtype": "float64"}), UnsafeInputError, "damaged"),
        (edited(array={"array": [1], "shape": [1], "dtype": "object"}), UnsafeInputError, "damaged"),
        (edited(array={"array": 3, "shape": [1], "dtype": 5}), UnsafeInputError, "damaged"),
        (edited(number="three"), UnsafeInputError, "'number' of the specimen result is no number"),
        (edited(number=None), UnsafeInputError, "is no number"),
        (edited(tree={"x": {"float": "y"}}), UnsafeInputError, "damaged"),
        (edited(warnings=None), UnsafeInputError, "damaged"),
        (edited(kind=["specimen"]), UnsafeInputError, "not a result"),
    ],
)
def test_what_is_not_a_result_is_refused_and_says_why(text, error, message):
    with pytest.raises(error, match=message):
        Result.from_json(text)


def test_torch_objects_and_the_like_are_no_numbers():
    with pytest.raises(TypeError, match="plain numbers, strings and arrays; got set"):
        specimen(tree={"a": {1, 2}}).to_json()


def test_views_that_a_kind_does_not_have_say_so():
    mute = Mute(question={}, provenance={})
    for view in (mute.summary, mute.caption, lambda: mute.plot(None), mute.figure):
        with pytest.raises(TypeError, match="Mute"):
            view()
    assert mute.panels() == ("",)
    assert mute.kind == "mute"
    assert specimen().caption() == specimen().summary()


def test_every_flipped_bit_is_found_or_harmless():
    """A flip in the numbers is refused; one in the checksum's own name, in white space or between equal letters leaves the answer as it was."""
    result = specimen(tree={"a": [1.5, float("nan"), "text"]})
    raw = result.to_json().encode()
    for place in np.random.default_rng(0).integers(0, 8 * len(raw), 300):
        flipped = bytearray(raw)
        flipped[place // 8] ^= 1 << (place % 8)
        try:
            read = Result.from_json(flipped.decode())
        except (UnsafeInputError, UnicodeDecodeError, UsageError):
            continue
        assert read.to_json() == result.to_json(), place
