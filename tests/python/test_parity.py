"""How answers are compared: by dtype, whole and element by element, with the worst one told."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from headrace.errors import ParityError
from headrace.parity import beyond, tolerance_of


def one(array: object, dtype: object = np.float32) -> list[dict[str, np.ndarray]]:
    return [{"y": np.asarray(array, dtype=dtype)}]  # type: ignore[call-overload]


def test_tolerances_go_by_precision_and_dtype() -> None:
    assert tolerance_of("fp32", np.dtype(np.float32)) == 1e-3
    assert tolerance_of("fp32", np.dtype(np.float16)) == 4e-3
    assert tolerance_of("fp32", np.dtype(ml_dtypes.bfloat16)) == 0.03
    assert tolerance_of("quantized", np.dtype(np.float32)) == 0.03
    assert tolerance_of("int8", np.dtype(np.float32)) == tolerance_of("bf16", np.dtype(np.float64)) == 0.1


def test_one_wrong_element_of_a_large_tensor_is_found_and_told() -> None:
    expected = np.random.default_rng(0).standard_normal((2, 50, 1000)).astype(np.float32)
    got = expected.copy()
    got[1, 17, 333] = got[1, 17, 333] * 1.02 + 0.02
    found = beyond([{"y": expected[0]}, {"y": got[1]}], [{"y": expected[0]}, {"y": expected[1]}], None)
    assert found is not None
    assert (found.output, found.sample, found.index) == ("y", 1, (17, 333))
    assert (found.got, found.expected) == (got[1, 17, 333], expected[1, 17, 333])
    assert found.norm_error < 1e-3 < found.tolerance < found.error
    assert "output 'y' of sample 1 at [17, 333]: got " in str(found)


def test_small_elements_are_seen_against_the_tensor() -> None:
    assert beyond(one([1000, 1e-3]), one([1000, 2e-3]), None) is None
    assert beyond(one([1000, 20.0]), one([1000, 2e-3]), None) is not None


def test_what_is_not_finite_must_be_the_same() -> None:
    odd = [np.nan, np.inf, -np.inf, 1.0]
    assert beyond(one(odd), one(odd), None) is None
    for place, other in ((0, 1.0), (1, -np.inf), (2, 1.0), (3, np.nan)):
        changed = list(odd)
        changed[place] = other
        found = beyond(one(changed), one(odd), None)
        assert found is not None
        assert found.index == (place,)
        assert found.error == np.inf


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint32, np.bool_, object])
def test_integers_booleans_and_strings_are_exact(dtype: object) -> None:
    right, wrong = (["a", "b"], ["a", "c"]) if dtype is object else ([0, 1], [1, 1])
    assert beyond(one(right, dtype), one(right, dtype), None) is None
    assert beyond(one(wrong, dtype), one(right, dtype), None, "int8") is not None


def test_bytes_may_be_off_by_a_step_and_no_more() -> None:
    assert beyond(one([3, 200], np.uint8), one([4, 199], np.uint8), None) is None
    found = beyond(one([3, 202], np.uint8), one([4, 200], np.uint8), None)
    assert found is not None
    assert (found.index, found.error) == ((1,), 2.0)


def test_bfloat16_is_compared_as_floats() -> None:
    assert beyond(one([1.0, 2.0], ml_dtypes.bfloat16), one([1.0, 2.016], ml_dtypes.bfloat16), None) is None
    assert beyond(one([1.0, 2.0], ml_dtypes.bfloat16), one([1.0, 3.0], ml_dtypes.bfloat16), None) is not None


def test_other_shapes_and_dtypes_are_errors_and_empty_tensors_agree() -> None:
    with pytest.raises(ParityError, match=r"got float32 \[2\], expected float32 \[3\]"):
        beyond(one([1, 2]), one([1, 2, 3]), None)
    assert beyond(one(np.zeros((0, 3))), one(np.zeros((0, 3))), None) is None
