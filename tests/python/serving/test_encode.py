"""Answers are read back by a client that shares no code with the encoder."""

from __future__ import annotations

import json

import numpy as np
import pytest
from oip_client import read_answer
from serving_fakes import MIRROR

from headrace.serving.encode import encode
from headrace.signature import TensorSpec

VALUES = {
    "bool": [True, False], "uint8": [0, 255], "int32": [-(2**31), 2**31 - 1], "int64": [-(2**63), 2**63 - 1],
    "uint64": [0, 2**64 - 1], "float16": [0.1, 65504], "float32": [0.1, 1e-45], "float64": [0.1, 1e308],
    "bfloat16": [0.1, 3e38], "string": ["ä€😀", ""],
}  # fmt: skip


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("spec", MIRROR.outputs, ids=lambda spec: spec.dtype)
def test_every_dtype_reads_back_bit_for_bit(spec: TensorSpec, binary: bool) -> None:
    array = np.array([VALUES[spec.dtype]], dtype=spec.numpy_dtype)
    body, length = encode("m", "3", "id-1", ((spec, binary),), {spec.name: array})
    assert (length is not None) == binary
    head = json.loads(body[:length])
    assert {key: head[key] for key in ("model_name", "model_version", "id")} == {
        "model_name": "m", "model_version": "3", "id": "id-1",
    }  # fmt: skip
    headers = {} if length is None else {"inference-header-content-length": str(length)}
    got = read_answer(body, headers)[spec.name]
    assert got.shape == (1, 2)
    assert got.tolist() == array.tolist()


def test_outputs_keep_the_order_asked_for_and_their_own_form() -> None:
    a, b, c = (TensorSpec(name, "int32", (1,)) for name in "abc")
    arrays = {name: np.array([value], np.int32) for name, value in zip("abc", (1, 2, 3), strict=True)}
    body, length = encode("m", "1", None, ((c, True), (a, False), (b, True)), arrays)
    assert [output["name"] for output in json.loads(body[:length])["outputs"]] == ["c", "a", "b"]
    got = read_answer(body, {"inference-header-content-length": str(length)})
    assert {name: array.tolist() for name, array in got.items()} == {"c": [3], "a": [1], "b": [2]}
    assert "id" not in json.loads(body[:length])


def test_nan_and_inf_are_null_in_json_and_themselves_in_binary() -> None:
    spec = TensorSpec("y", "float32", (3,))
    array = np.array([np.nan, np.inf, -np.inf], np.float32)
    body, _ = encode("m", "1", None, ((spec, False),), {"y": array})
    assert json.loads(body, parse_constant=pytest.fail)["outputs"][0]["data"] == [None, None, None]
    body, length = encode("m", "1", None, ((spec, True),), {"y": array})
    np.testing.assert_array_equal(read_answer(body, {"inference-header-content-length": str(length)})["y"], array)


def test_a_strided_result_goes_out_in_row_major_order() -> None:
    spec = TensorSpec("y", "float32", (2, 3))
    array = np.arange(6, dtype=np.float32).reshape(3, 2).T
    for binary in (False, True):
        body, length = encode("m", "1", None, ((spec, binary),), {"y": array})
        headers = {} if length is None else {"inference-header-content-length": str(length)}
        np.testing.assert_array_equal(read_answer(body, headers)["y"], array)


def test_an_empty_result_has_its_shape() -> None:
    spec = TensorSpec("y", "float32", ("n", 3))
    for binary in (False, True):
        body, length = encode("m", "1", None, ((spec, binary),), {"y": np.empty((0, 3), np.float32)})
        headers = {} if length is None else {"inference-header-content-length": str(length)}
        assert read_answer(body, headers)["y"].shape == (0, 3)
