"""Large JSON data is decoded in parts: the same arrays and the same refusals as at once, and no part is long."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import RequestError
from headrace.serving import json_data
from headrace.serving.decode import Decoder
from headrace.serving.json_data import JsonData, is_large
from headrace.serving.turns import PART_STRINGS
from headrace.signature import OIP_FROM_DTYPE, Signature, TensorSpec

AT_ONCE = 1 << 30


def decode(text: str, shape: list[int], dtype: str, part_bytes: int) -> tuple[np.ndarray, int]:
    """The array, and how many times others could have run."""
    spec = TensorSpec("x", dtype, tuple(f"d{axis}" for axis in range(len(shape))))
    raw = msgspec.json.decode(text.encode(), type=msgspec.Raw)
    data, count = JsonData(spec), int(np.prod(shape))
    turns = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_data, "PART_BYTES", part_bytes)
        if not is_large(raw):
            return data.decode(raw, shape, count), 0
        steps = data.steps(raw, shape, count)
        while True:
            try:
                next(steps)
                turns += 1
            except StopIteration as end:
                return end.value, turns


def outcome(*args: Any) -> tuple[Any, ...]:
    try:
        array, _ = decode(*args)
    except RequestError:
        return ("refused",)
    return array.dtype, array.shape, array.tobytes()


SPACED: list[Callable[[Any], str]] = [
    json.dumps,
    lambda value: json.dumps(value, separators=(",", ":")),
    lambda value: json.dumps(value, indent=1),
]


@pytest.mark.parametrize("write", SPACED)
@pytest.mark.parametrize("text", ["plain", '"],["', "\\\\", '\\",', "\n\u00e9\U0001f600", ""])
def test_strings_are_cut_between_them_whatever_they_hold(write: Callable[[Any], str], text: str) -> None:
    values = [f"{text}{number % 7}" if text else "" for number in range(3 * PART_STRINGS + 5)]
    array, turns = decode(write(values), [len(values)], "string", 64)
    assert array.tolist() == values
    assert turns == 4
    nested, turns = decode(write([[value] for value in values]), [len(values), 1], "string", 64)
    assert nested.ravel().tolist() == values
    assert turns == 0


@pytest.mark.parametrize("dtype", sorted(set(OIP_FROM_DTYPE) - {"string"}))
@pytest.mark.parametrize("write", SPACED)
def test_parts_make_the_same_array(dtype: str, write: Callable[[Any], str]) -> None:
    rng = np.random.default_rng(5)
    array = rng.integers(0, 2, (6, 2, 3)).astype(bool) if dtype == "bool" else rng.integers(0, 100, (6, 2, 3))
    for text in (write(array.tolist()), write(array.ravel().tolist())):
        whole, never = decode(text, [6, 2, 3], dtype, AT_ONCE)
        parts, turns = decode(text, [6, 2, 3], dtype, 24)
        assert (never, turns >= 3) == (0, True)
        assert parts.dtype == whole.dtype
        np.testing.assert_array_equal(parts, whole)
        np.testing.assert_array_equal(parts, array.astype(whole.dtype))


def test_nulls_are_nan_in_any_part() -> None:
    text = json.dumps([[1.5, None], [None, 2.5]] * 20)
    got, turns = decode(text, [40, 2], "float32", 24)
    assert turns > 10
    np.testing.assert_array_equal(got, np.array([[1.5, np.nan], [np.nan, 2.5]] * 20, np.float32))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" + "1," * 50 + '"a"]', r"Expected `float \| null`, got `str`.*counted from \[50\]"),
        ("[" + "1," * 50 + "1e39]", "beyond the range of FP32"),
        ("[" + "1," * 50 + "[1]]", "got `array`"),
        ("[" + "[1,1]," * 25 + "[1]]", "does not fit FP32 or its own nesting"),
        ("[" + "[1,1]," * 25 + "1]", "Expected `array`, got `int`"),
        ("[" + "[1,1]," * 24 + "[1,1]]", r"nested as \[25, 2\], expected shape \[26, 2\]"),
        ("[" + "1," * 50 + "1]", "got 51 values in data, expected 52"),
        ('"' + "a" * 100 + '"', "got data that is no array"),
        ("{" + '"a": 1, ' * 20 + '"b": 2}', "got data that is no array"),
    ],
)
def test_what_is_wrong_is_said_of_the_part(text: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        decode(text, [26, 2], "float32", 8)


rows = st.lists(st.lists(st.none() | st.integers(-3, 3) | st.floats(width=32), max_size=3), max_size=6)
values = st.lists(st.none() | st.booleans() | st.integers(-3, 300) | st.floats() | st.text(max_size=2), max_size=12)


@settings(max_examples=300, deadline=None)
@given(
    data=rows | values | st.lists(rows, max_size=3),
    write=st.sampled_from(SPACED),
    shape=st.sampled_from([[2, 2], [3, 1], [4], [0, 2], [1, 2, 2]]),
    dtype=st.sampled_from(["float32", "int8", "bool", "string"]),
    part_bytes=st.integers(1, 12),
)
def test_parts_and_whole_agree_on_any_json(
    data: Any, write: Callable[[Any], str], shape: list[int], dtype: str, part_bytes: int
) -> None:
    try:
        text = write(msgspec.to_builtins(data))
        msgspec.json.decode(text.encode())
    except ValueError:  # Python writes NaN, which is no JSON
        return
    assert outcome(text, shape, dtype, part_bytes) == outcome(text, shape, dtype, AT_ONCE)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_large_body_is_decoded_or_refused_and_nothing_else(data: st.DataObject) -> None:
    tensor = {"name": "x", "shape": [8, 3], "datatype": "FP32", "data": [[0.5, -1e3, None]] * 8}
    decoder = Decoder(Signature((TensorSpec("x", "float32", ("n", 3)),), ()))
    damaged = bytearray(json.dumps({"inputs": [tensor]}).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        length = data.draw(st.integers(0, 8))
        damaged[at : at + length] = data.draw(
            st.sampled_from([b"", b",", b"]", b"[[", b"null", b"1e9", b'"', b"\xff", b" "])
        )
    with pytest.MonkeyPatch.context() as patch:
        found = []
        for part_bytes in (16, AT_ONCE):
            patch.setattr(json_data, "PART_BYTES", part_bytes)
            try:
                found.append(decoder.decode(bytes(damaged)).inputs["x"].tobytes())
            except RequestError:
                found.append(b"refused")
    assert found[0] == found[1]
