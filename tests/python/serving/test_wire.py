"""The two questions of the request path that are answered in C++, beside numpy's and Python's own answers."""

from __future__ import annotations

import json
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace._core import is_finite, twofold_key
from headrace.errors import DtypeMismatch

FLOATS = [np.dtype(kind) for kind in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("count", [0, 1, 7, 1024, 5000])
def test_finite_is_what_numpy_says(dtype: np.dtype[Any], count: int) -> None:
    largest = ml_dtypes.finfo(dtype).max
    array = np.full((count, 2), largest, dtype)
    array[::3] = -largest
    array[1::3] = 0
    assert is_finite(array)
    for at in {0, count // 2, count - 1} if count else ():
        for value in (np.nan, np.inf, -np.inf):
            bad = array.copy()
            bad[at, 1] = value
            assert not np.isfinite(bad).all()
            assert not is_finite(bad)
            assert not is_finite(bad.T)
            assert is_finite(bad[:, 0])


def test_other_numbers_are_refused() -> None:
    with pytest.raises(DtypeMismatch, match="got values of 1 bytes"):
        is_finite(np.zeros(3, np.int8))


class Pairs(list[Any]):
    """An object whose keys may be there twice."""


keys = st.sampled_from(["a", "b", "é", "\n", '"', "\\", "", "a:", "{", "}"])
values = st.recursive(
    st.none() | st.integers() | st.text('ab"\\:{}é', max_size=4) | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.lists(st.tuples(keys, inner), max_size=4).map(Pairs),
    max_leaves=12,
)


def text_of(value: Any, ascii_only: bool) -> str:
    if isinstance(value, Pairs):
        inside = ", ".join(
            f"{json.dumps(key, ensure_ascii=ascii_only)} : {text_of(one, ascii_only)}" for key, one in value
        )
        return "{" + inside + "}"
    if isinstance(value, list):
        return "[" + ",".join(text_of(one, ascii_only) for one in value) + "]"
    return json.dumps(value, ensure_ascii=ascii_only)


@settings(max_examples=300, deadline=None)
@given(values, st.booleans())
def test_a_key_is_found_twice_where_python_finds_it_twice(value: Any, ascii_only: bool) -> None:
    text = text_of(value, ascii_only)
    twice: list[str] = []

    def look(pairs: list[tuple[str, Any]]) -> None:
        names = [name for name, _ in pairs]
        twice.extend(name for name in names if names.count(name) > 1)

    json.loads(text, object_pairs_hook=look)
    found = twofold_key(text.encode())
    assert (found is not None) == bool(twice)
    assert found is None or found.decode() in twice
