"""The decoder: what it accepts, what it says about what it does not, and that nothing else can come out of it."""

from __future__ import annotations

import contextlib
import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oip_client import binary_request, to_bytes
from serving_fakes import DOUBLER, MIRROR, rows

from headrace import errors
from headrace.serving.decode import Decoder
from headrace.signature import OIP_FROM_DTYPE, Signature, TensorSpec

decoder = Decoder(DOUBLER)


def one(dtype: str, *dims: int | str) -> Decoder:
    return Decoder(Signature((TensorSpec("x", dtype, dims),), (TensorSpec("y", dtype, dims),)))


def body(**tensor: Any) -> bytes:
    return json.dumps({"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", **tensor}]}).encode()


def test_flat_and_nested_data_are_the_same_request() -> None:
    flat = decoder.decode(rows(1, 2, 3, 4, 5, 6)).inputs["x"]
    nested = decoder.decode(body(shape=[2, 3], data=[[1, 2, 3], [4, 5, 6]])).inputs["x"]
    assert flat.dtype == nested.dtype == np.float32
    np.testing.assert_array_equal(flat, [[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(nested, flat)


def test_null_is_nan_for_floats_only() -> None:
    assert np.isnan(decoder.decode(body(data=[1, None, 3])).inputs["x"][0, 1])
    assert np.isnan(decoder.decode(body(data=[[1, None, 3]])).inputs["x"][0, 1])
    with pytest.raises(errors.MalformedRequest, match="Expected `int`, got `null`"):
        one("int64", 1).decode(body(shape=[1], datatype="INT64", data=[None]))


def test_empty_tensors_are_requests_too() -> None:
    assert decoder.decode(body(shape=[0, 3], data=[])).inputs["x"].shape == (0, 3)
    scalar = one("float32").decode(body(shape=[], data=[7])).inputs["x"]
    assert scalar.shape == ()
    assert scalar == 7


@pytest.mark.parametrize("dtype", sorted(OIP_FROM_DTYPE))
def test_every_dtype_decodes_the_same_from_json_and_from_binary(dtype: str) -> None:
    datatype = OIP_FROM_DTYPE[dtype]
    values: list[Any] = {"bool": [True, False], "string": ["ä€", ""]}.get(dtype, [1, 120])
    spec = TensorSpec("x", dtype, (2,))
    array = np.array(values, dtype=spec.numpy_dtype)
    from_json = one(dtype, 2).decode(body(shape=[2], datatype=datatype, data=values)).inputs["x"]
    request, headers = binary_request({"x": (datatype, array)})
    from_binary = one(dtype, 2).decode(request, int(headers["Inference-Header-Content-Length"])).inputs["x"]
    for got in (from_json, from_binary):
        assert got.dtype == spec.numpy_dtype
        assert got.tolist() == array.tolist()
        assert got.flags.c_contiguous
        assert got.flags.aligned
        assert got.flags.writeable


@pytest.mark.parametrize(
    ("twice", "key"),
    [
        (b'{"inputs": [], ' + rows(1, 2, 3)[1:], "inputs"),
        (rows(1, 2, 3).replace(b'"shape"', b'"shape": [1, 3], "sh\\u0061pe"'), "shape"),
        (rows(1, 2, 3, parameters={"unknown": [{"a": 1}]}).replace(b'"a": 1', b'"a": 1, "a": 1'), "a"),
        (b'{"inputs": [], "parameters": {"\\ud83d\\ude00": 1, "\\ud83d\\ude00": 2}}', "😀"),
        (b'{"inputs": [], "parameters": {"\\ud83d\\ude00": 1, "\xf0\x9f\x98\x80": 2}}', "😀"),
    ],
)
def test_a_key_that_stands_twice_in_one_object_is_refused(twice: bytes, key: str) -> None:
    with pytest.raises(errors.MalformedRequest, match=f"body: got key '{key}' twice in one object, expected it once"):
        decoder.decode(twice)


def test_large_integers_keep_every_bit() -> None:
    big = [2**63 + 1, 2**64 - 1]
    got = one("uint64", 2).decode(body(shape=[2], datatype="UINT64", data=big)).inputs["x"]
    assert got.tolist() == big


def test_json_and_binary_inputs_mix_in_one_request() -> None:
    two = Signature((TensorSpec("a", "int32", (2,)), TensorSpec("b", "int32", (2,))), ())
    head = {
        "inputs": [
            {"name": "b", "shape": [2], "datatype": "INT32", "parameters": {"binary_data_size": 8}},
            {"name": "a", "shape": [2], "datatype": "INT32", "data": [1, 2]},
        ]
    }
    text = json.dumps(head).encode()
    inputs = Decoder(two).decode(text + to_bytes(np.array([3, 4]), "INT32"), len(text)).inputs
    assert inputs["a"].tolist() == [1, 2]
    assert inputs["b"].tolist() == [3, 4]


def test_parameters_outputs_and_id() -> None:
    call = decoder.decode(rows(1, 2, 3, id="r-1", parameters={"priority": 2, "timeout": 1500, "custom": {"a": [1]}}))
    assert (call.id, call.priority, call.timeout_us) == ("r-1", 2, 1500)
    call = decoder.decode(rows(1, 2, 3, outputs=[{"name": "y", "parameters": {"binary_data": True}}]))
    assert [(spec.name, binary) for spec, binary in call.outputs] == [("y", True)]
    two = Decoder(Signature(DOUBLER.inputs, (TensorSpec("p", "float32", (1,)), TensorSpec("q", "float32", (1,)))))
    call = two.decode(rows(1, 2, 3, outputs=[{"name": "q"}], parameters={"binary_data_output": True}))
    assert [(spec.name, binary) for spec, binary in call.outputs] == [("q", True)]


BAD: list[tuple[bytes, type[Exception], str]] = [
    (b"", errors.MalformedRequest, "body: Input data was truncated, expected a JSON object with"),
    (b"{}", errors.MalformedRequest, "missing required field `inputs`, expected a JSON object with"),
    (b"[1]", errors.MalformedRequest, "Expected `object`, got `array`"),
    (b"\xff\xfe", errors.MalformedRequest, "body: "),
    (b'{"inputs":[], "id": "\xff"}', errors.MalformedRequest, "UTF-8"),
    (b"[" * 250_000, errors.MalformedRequest, "Expected `object`, got `array`"),
    (b'{"inputs":' + b"[" * 250_000, errors.MalformedRequest, r"Expected `object`, got `array` - at `\$.inputs"),
    (b'{"zzz":' + b"[" * 250_000, errors.MalformedRequest, "nested too deep"),
    (rows(1, 2, 3).replace(b"[1, 2, 3]", b"[" * 250_000), errors.MalformedRequest, "body: got JSON nested too deep"),
    (b'{"inputs":[]}', errors.MissingInput, "got 0 of 1 inputs, expected also 'x'"),
    (body(name="nope", data=[]), errors.UnknownInput, "got 'nope', expected one of x"),
    (body(name="../../etc/passwd", data=[]), errors.UnknownInput, r"got '\.\./\.\./etc/passwd', expected one of x"),
    (body(datatype="INT64", data=[1, 2, 3]), errors.DtypeMismatch, "got datatype 'INT64', expected FP32"),
    (body(datatype="FLOAT", data=[1, 2, 3]), errors.MalformedRequest, "got datatype 'FLOAT', expected FP32"),
    (body(shape=[3], data=[1, 2, 3]), errors.ShapeMismatch, "got 1 dims .* expected 2"),
    (body(shape=[1, 4], data=[1, 2, 3, 4]), errors.ShapeMismatch, "got 4 at axis 1 .* expected 3"),
    (body(shape=[-1, 3], data=[1, 2, 3]), errors.ShapeMismatch, "got -1 at axis 0 .* expected 0 or more"),
    (body(shape=[2**31, 3], data=[1, 2, 3]), errors.ShapeMismatch, "got 3 values in data, expected 6442450944"),
    (body(shape=[2**64, 3], data=[1, 2, 3]), errors.ShapeMismatch, "got 3 values in data, expected 55340232221128"),
    (body(shape=[1.5, 3], data=[1, 2, 3]), errors.MalformedRequest, r"Expected `int`, got `float` - at `\$.inputs"),
    (body(shape=["1", 3], data=[]), errors.MalformedRequest, "Expected `int`, got `str`"),
    (body(data=[1, 2]), errors.ShapeMismatch, r"got 2 values in data, expected 3 for shape \[1, 3\]"),
    (body(data=[[1, 2], [3]]), errors.MalformedRequest, "does not fit FP32 or its own nesting"),
    (body(shape=[3, 3], data=[[1, 2, 3]]), errors.ShapeMismatch, r"nested as \[1, 3\], expected shape \[3, 3\]"),
    (body(data=[[[1]]]), errors.MalformedRequest, "got `array`"),
    (body(data="abc"), errors.MalformedRequest, "Expected `array"),
    (body(data=["a", "b", "c"]), errors.MalformedRequest, "Expected `float|Expected `number|got `str`"),
    (body(data=[1, True, 3]), errors.MalformedRequest, "got `bool`"),
    (body(data=[1, 1e300, 3]), errors.MalformedRequest, "beyond the range of FP32"),
    (rows(1, 2, 3).replace(b"2,", b"1e999,"), errors.MalformedRequest, "out of range"),
    (rows(1, 2, 3).replace(b"2,", b"NaN,"), errors.MalformedRequest, "malformed"),
    (rows(1, 2, 3).replace(b"2,", b"9" * 100_000 + b","), errors.MalformedRequest, "out of range"),
    (body(), errors.MalformedRequest, "got neither data nor binary_data_size"),
    (body(data=None), errors.MalformedRequest, "got `null`"),
    (body(parameters={"binary_data_size": 12}), errors.MalformedRequest, "got binary_data_size 12, expected 0 to 0"),
    (body(parameters={"binary_data_size": -1}), errors.MalformedRequest, "got binary_data_size -1"),
    (body(parameters={"shared_memory_region": "r"}), errors.MalformedRequest, "shared memory extension is not offered"),
    (
        b'{"inputs":[%s,%s]}' % ((b'{"name":"x","shape":[0,3],"datatype":"FP32","data":[]}',) * 2),
        errors.MalformedRequest,
        "got 'x' twice, expected each input once",
    ),
    (rows(1, 2, 3, outputs=[{"name": "z"}]), errors.UnknownInput, "outputs: got 'z', expected one of y"),
    (rows(1, 2, 3, outputs=[{"name": "y"}] * 2), errors.MalformedRequest, "got 'y' twice"),
    (rows(1, 2, 3, parameters={"timeout": -5}), errors.MalformedRequest, "parameters.timeout: got -5"),
    (rows(1, 2, 3, parameters={"priority": -1}), errors.MalformedRequest, "parameters.priority: got -1"),
    (rows(1, 2, 3, parameters={"sequence_id": 4}), errors.MalformedRequest, "models here keep no state"),
]


@pytest.mark.parametrize(("request_body", "kind", "message"), BAD)
def test_bad_bodies_say_what_is_wrong(request_body: bytes, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        decoder.decode(request_body)
    assert len(str(caught.value)) < 1000
    assert decoder.decode(rows(1, 2, 3)).inputs["x"].tolist() == [[1, 2, 3]]


def binary(size: int, tail: bytes, *, header: int | None = None, **tensor: Any) -> tuple[bytes, int]:
    head = body(parameters={"binary_data_size": size}, **tensor)
    return head + tail, len(head) if header is None else header


@pytest.mark.parametrize(
    ("request_body", "message"),
    [
        (binary(8, b"\0" * 8), r"got binary_data_size 8, expected 12 for FP32 of shape \[1, 3\]"),
        (binary(8, b"\0" * 12), r"got binary_data_size 8, expected 12"),
        (binary(12, b"\0" * 8), "got binary_data_size 12, expected 0 to 8"),
        (binary(12, b"\0" * 13), "got 13 bytes of binary data, expected the 12"),
        (binary(12, b"\0" * 12, shape=[2**62, 3]), "got binary_data_size 12, expected 553402322211286"),
        (binary(12, b"\0" * 12, data=[1, 2, 3]), "got both data and binary_data_size"),
        (binary(12, b"\0" * 12, header=0), "Inference-Header-Content-Length: got 0"),
        (binary(12, b"\0" * 12, header=10**9), "Inference-Header-Content-Length: got 1000000000"),
        (binary(12, b"\0" * 12, header=5), "body: "),
    ],
)
def test_declared_sizes_must_match_the_bytes(request_body: tuple[bytes, int], message: str) -> None:
    with pytest.raises(errors.RequestError, match=message):
        decoder.decode(*request_body)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x01\0\0\0a", "got 5 bytes of BYTES data, expected at least 8"),
        (b"\x01\0\0\0a\xff\xff\xff\xff", "got a string of 4294967295 bytes beyond the end"),
        (b"\x01\0\0\0a\x01\0\0\0\xff", "element 1 that is not UTF-8"),
        (b"\x01\0\0\0a\x01\0\0\0bc", "got 1 bytes after the last string"),
        (b"\x05\0\0\0abcde\x01\0", "got 1 strings"),
    ],
)
def test_broken_strings(data: bytes, message: str) -> None:
    head = body(shape=[2], datatype="BYTES", parameters={"binary_data_size": len(data)})
    with pytest.raises(errors.MalformedRequest, match=message):
        one("string", 2).decode(head + data, len(head))


def test_a_bool_byte_is_0_or_1() -> None:
    head = body(shape=[2], datatype="BOOL", parameters={"binary_data_size": 2})
    with pytest.raises(errors.MalformedRequest, match="got byte 2 in binary BOOL data, expected 0 or 1"):
        one("bool", 2).decode(head + b"\1\2", len(head))


@pytest.mark.parametrize(("dtype", "value"), [("uint8", 256), ("int8", -129), ("uint64", -1), ("int64", 2**63)])
def test_integers_out_of_range_are_refused(dtype: str, value: int) -> None:
    with pytest.raises(errors.MalformedRequest, match="does not fit"):
        one(dtype, 1).decode(body(shape=[1], datatype=OIP_FROM_DTYPE[dtype], data=[value]))


def test_a_hostile_shape_allocates_nothing() -> None:
    request_body = body(shape=[10**9, 3], data=[1, 2, 3])
    head, length = binary(12, b"\0" * 12, shape=[10**9, 3])
    tracemalloc.start()
    try:
        for _ in range(2):
            with pytest.raises(errors.RequestError):
                decoder.decode(request_body)
            with pytest.raises(errors.RequestError):
                decoder.decode(head, length)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


mirror = Decoder(MIRROR)
MIRROR_BODY, MIRROR_HEADERS = binary_request(
    {
        spec.name: (spec.oip_datatype, np.full((1, 2), "s" if spec.dtype == "string" else 1, object))
        for spec in MIRROR.inputs
    }
)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_damaged_body_is_decoded_or_refused_and_nothing_else(data: st.DataObject) -> None:
    damaged = bytearray(MIRROR_BODY)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        if data.draw(st.booleans()):
            damaged[at] = data.draw(st.integers(0, 255))
        else:
            del damaged[at : at + data.draw(st.integers(1, 8))]
    length = data.draw(st.one_of(st.just(int(MIRROR_HEADERS["Inference-Header-Content-Length"])), st.integers(0, 3000)))
    try:
        call = mirror.decode(bytes(damaged), length)
    except errors.RequestError:
        return
    assert set(call.inputs) == {spec.name for spec in MIRROR.inputs}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["name", "data", "shape"]), inner),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(
    name=st.just("x") | json_values,
    shape=json_values | st.lists(st.integers(-2, 4)),
    data=json_values,
    more=json_values,
)
def test_any_json_is_decoded_or_refused_and_nothing_else(name: Any, shape: Any, data: Any, more: Any) -> None:
    tensor = {"name": name, "shape": shape, "datatype": "FP32", "data": data}
    with contextlib.suppress(errors.RequestError):
        decoder.decode(json.dumps({"inputs": [tensor], "parameters": more}).encode())
