"""The gRPC protocol over fakes, asked by the stock client's own messages and channel."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc.aio as triton
from hypothesis import given, settings
from hypothesis import strategies as st
from oip_client import binary_request, read_answer
from serving_fakes import DOUBLER, MIRROR, MIRROR_DTYPES, Served, acall, make_config, make_served, rows
from tritonclient.grpc import service_pb2 as pb

from headrace.errors import ConfigError, MalformedRequest, RequestError
from headrace.serving import grpc_codec, grpc_server, messages
from headrace.serving.decode import Decoder
from headrace.serving.grpc_app import GrpcApp
from headrace.signature import OIP_FROM_DTYPE, Signature, TensorSpec

SERVICE = "/inference.GRPCInferenceService/"
INFER = SERVICE + "ModelInfer"


@contextlib.asynccontextmanager
async def listening(served: Served) -> AsyncIterator[str]:
    service = served.app.service
    listener = await grpc_server.start(GrpcApp(service), "127.0.0.1", 0, service.body_bytes_max)
    try:
        yield listener.address
    finally:
        await listener.server.stop(5)


def doubler_request(*values: float, **more: Any) -> pb.ModelInferRequest:
    """A request to the doubler, raw."""
    request = pb.ModelInferRequest(model_name="doubler", **more)
    request.inputs.add(name="x", datatype="FP32", shape=[len(values) // 3, 3])
    request.raw_input_contents.append(np.array(values, np.float32).tobytes())
    return request


async def ask(address: str, payload: Any, timeout: float | None = 20, method: str = INFER) -> pb.ModelInferResponse:
    async with grpc.aio.insecure_channel(address) as channel:
        data = payload if isinstance(payload, bytes) else payload.SerializeToString()
        return pb.ModelInferResponse.FromString(await channel.unary_unary(method)(data, timeout=timeout))


async def refused(address: str, payload: Any, timeout: float | None = 20, method: str = INFER) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(address, payload, timeout, method)
    return caught.value


async def test_the_stock_client_reads_health_and_metadata() -> None:
    served = make_served(make_config("doubler", versions=(1, 2)), load=False)
    async with listening(served) as address, triton.InferenceServerClient(address) as client:
        assert await client.is_server_live()
        assert not await client.is_server_ready()
        assert not await client.is_model_ready("doubler")
        served.host.load()
        assert await client.is_server_ready()
        assert await client.is_model_ready("doubler", "1")
        assert (await client.get_server_metadata()).name == "headrace"
        metadata = await client.get_model_metadata("doubler")
        assert list(metadata.versions) == ["1", "2"]
        assert [(one.name, one.datatype, list(one.shape)) for one in metadata.inputs] == [("x", "FP32", [-1, 3])]
        with pytest.raises(triton.InferenceServerException, match=r"model: got 'nobody', expected one of doubler"):
            await client.get_model_metadata("nobody")
        with pytest.raises(triton.InferenceServerException, match="got version '7', expected one of 1, 2"):
            await client.is_model_ready("doubler", "7")


def _mirror_tensors(rng: np.random.Generator) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for index, spec in enumerate(MIRROR.inputs):
        shape = (index % 3, 2)
        if spec.dtype == "string":
            tensors[spec.name] = np.array([["", "grün"]] * shape[0], object).reshape(shape)
        elif spec.dtype == "bool":
            tensors[spec.name] = rng.integers(0, 2, shape).astype(bool)
        else:
            # Any bits at all, NaN and subnormal numbers included.
            size = spec.numpy_dtype.itemsize
            tensors[spec.name] = np.frombuffer(rng.bytes(size * shape[0] * 2), spec.numpy_dtype).reshape(shape)
    return tensors


def _bytes_of(datatype: str, array: np.ndarray) -> bytes:
    body, headers = binary_request({"x": (datatype, array)})
    return body[int(headers["Inference-Header-Content-Length"]) :]


async def test_every_dtype_comes_back_to_the_bit_as_over_rest() -> None:
    served = make_served(make_config("mirror"))
    tensors = _mirror_tensors(np.random.default_rng(5))
    datatypes = {spec.name: spec.oip_datatype for spec in MIRROR.inputs}
    body, headers = binary_request({name: (datatypes[name], array) for name, array in tensors.items()})
    over_rest = await acall(served.app, "POST", "/v2/models/mirror/infer", body, headers)
    rest = read_answer(over_rest.body, over_rest.headers)
    request = pb.ModelInferRequest(model_name="mirror", id="seven")
    for name, array in tensors.items():
        request.inputs.add(name=name, datatype=datatypes[name], shape=array.shape)
        request.raw_input_contents.append(_bytes_of(datatypes[name], array))
    async with listening(served) as address:
        answer = await ask(address, request)
    assert (answer.model_name, answer.model_version, answer.id) == ("mirror", "1", "seven")
    assert len(answer.outputs) == len(answer.raw_output_contents) == len(MIRROR_DTYPES)
    for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True):
        array = rest[output.name]
        assert list(output.shape) == list(array.shape)
        assert raw == _bytes_of(output.datatype, array), output.name


# The fields and extreme values of every datatype that may travel typed.
TYPED: dict[str, tuple[str, list[Any]]] = {
    "bool": ("bool_contents", [True, False]),
    "uint8": ("uint_contents", [0, 255]),
    "uint16": ("uint_contents", [0, 65535]),
    "uint32": ("uint_contents", [0, 2**32 - 1]),
    "uint64": ("uint64_contents", [0, 2**64 - 1]),
    "int8": ("int_contents", [-128, 127]),
    "int16": ("int_contents", [-32768, 32767]),
    "int32": ("int_contents", [-(2**31), 2**31 - 1]),
    "int64": ("int64_contents", [-(2**63), 2**63 - 1]),
    "float32": ("fp32_contents", [float("inf"), 2.0**-149]),
    "float64": ("fp64_contents", [5e-324, -0.0]),
    "string": ("bytes_contents", ["grün".encode(), b""]),
}


def test_typed_contents_of_every_datatype_go_in_and_out() -> None:
    specs = [TensorSpec(dtype, dtype, ("n",)) for dtype in TYPED]
    request = pb.ModelInferRequest()
    for dtype, (field, values) in TYPED.items():
        tensor = request.inputs.add(name=dtype, datatype=OIP_FROM_DTYPE[dtype], shape=[2])
        getattr(tensor.contents, field).extend(values)
    call = grpc_codec.decode(Decoder(Signature(tuple(specs), tuple(specs))), request)
    assert all(call.inputs[spec.name].dtype == spec.numpy_dtype for spec in specs)
    answer = pb.ModelInferResponse.FromString(grpc_codec.encode("m", "1", call, call.inputs))
    assert not answer.raw_output_contents
    for output, (dtype, (field, values)) in zip(answer.outputs, TYPED.items(), strict=True):
        assert (output.name, output.datatype, list(output.shape)) == (dtype, OIP_FROM_DTYPE[dtype], [2])
        assert list(getattr(output.contents, field)) == values
        assert len(output.contents.ListFields()) == 1


def test_the_answer_is_raw_where_asked_for_or_where_a_datatype_has_no_typed_form() -> None:
    signature = Signature(
        (TensorSpec("x", "float32", ("n",)),), (TensorSpec("y", "float32", ("n",)), TensorSpec("h", "float16", ("n",)))
    )
    result = {"y": np.array([1.5], np.float32), "h": np.array([2], np.float16)}
    request = pb.ModelInferRequest()
    request.inputs.add(name="x", datatype="FP32", shape=[1]).contents.fp32_contents.append(1)

    def answer() -> pb.ModelInferResponse:
        call = grpc_codec.decode(Decoder(signature), request)
        return pb.ModelInferResponse.FromString(grpc_codec.encode("m", "1", call, result))

    assert list(answer().raw_output_contents) == [result["y"].tobytes(), result["h"].tobytes()]
    request.outputs.add(name="y")
    assert list(answer().outputs[0].contents.fp32_contents) == [1.5]
    request.parameters["binary_data_output"].bool_param = True
    assert list(answer().raw_output_contents) == [result["y"].tobytes()]
    assert not answer().outputs[0].HasField("contents")


def _wrong(change: Callable[[pb.ModelInferRequest], object]) -> pb.ModelInferRequest:
    request = doubler_request(1, 2, 3)
    change(request)
    return request


def _typed(**contents: list[Any]) -> pb.ModelInferRequest:
    request = doubler_request(1, 2, 3)
    del request.raw_input_contents[:]
    request.inputs[0].contents.MergeFrom(pb.InferTensorContents(**contents))
    return request


WRONG: list[tuple[Any, str]] = [
    (b"\xff" * 50, "got 50 bytes that are no ModelInferRequest"),
    (doubler_request(1, 2, 3).SerializeToString()[:-3], "that are no ModelInferRequest"),
    (_wrong(lambda r: r.ClearField("inputs")), "raw_input_contents: got 1 entries, expected 0"),
    (_wrong(lambda r: (r.ClearField("inputs"), r.ClearField("raw_input_contents"))), "got 0 of 1 inputs"),
    (_wrong(lambda r: r.raw_input_contents.append(b"")), "got 2 entries, expected 1"),
    (_wrong(lambda r: r.inputs[0].contents.fp32_contents.append(1)), "got contents and raw_input_contents"),
    (_wrong(lambda r: r.raw_input_contents.__setitem__(0, b"123")), r"got raw_input_contents\[0\] of length 3, expect"),
    (_wrong(lambda r: r.inputs[0].shape.__setitem__(0, -1)), "got -1 at axis 0"),
    (_wrong(lambda r: r.inputs[0].shape.__setitem__(0, 2**62)), "of length 12, expected 55340232221128654848 for FP32"),
    (_wrong(lambda r: r.inputs[0].shape.append(1)), "got 3 dims in shape"),
    (_wrong(lambda r: r.inputs[0].shape.extend([1] * 100_000)), "got 100002 dims in shape, expected at most 32"),
    (b"*\0" * 100_000, "got more than 4096 fields"),
    (b"\xa3\6\xa4\6" + b"*\0" * 100_000, "got more than 4096 fields"),
    (_wrong(lambda r: setattr(r.inputs[0], "datatype", "FP64")), "got datatype 'FP64', expected FP32"),
    (_wrong(lambda r: setattr(r.inputs[0], "datatype", "FP31")), "got datatype 'FP31', expected FP32"),
    (_wrong(lambda r: setattr(r.inputs[0], "name", "z")), "got 'z', expected one of x"),
    (_wrong(lambda r: (r.inputs.append(r.inputs[0]), r.raw_input_contents.append(b""))), "got 'x' twice"),
    (_wrong(lambda r: r.outputs.add(name="z")), "outputs: got 'z', expected one of y"),
    (
        _wrong(lambda r: setattr(r.outputs.add(name="y").parameters["classification"], "int64_param", 3)),
        "got parameter classification",
    ),
    (
        _wrong(lambda r: setattr(r.inputs[0].parameters["shared_memory_region"], "string_param", "a")),
        "got parameter shared_memory_region",
    ),
    (_wrong(lambda r: setattr(r.parameters["sequence_id"], "int64_param", 4)), "sequence_id: got a sequence"),
    (_wrong(lambda r: setattr(r.parameters["timeout"], "int64_param", -4)), "timeout: got -4, expected 0 or more"),
    (
        _wrong(lambda r: setattr(r.parameters["priority"], "string_param", "high")),
        "priority: got string_param, expected",
    ),
    (_typed(), "got 0 values in contents, expected 3"),
    (_typed(fp32_contents=[1, 2]), "got 2 values in contents, expected 3"),
    (_typed(fp64_contents=[1, 2, 3]), "got fp64_contents, expected fp32_contents for FP32"),
    (_typed(fp32_contents=[1, 2, 3], int_contents=[1]), "got int_contents and fp32_contents, expected fp32_contents"),
]


async def test_a_wrong_request_is_told_what_is_wrong_and_harms_nobody() -> None:
    served = make_served()
    async with listening(served) as address:
        for payload, message in WRONG:
            error = await refused(address, payload)
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, error
            assert re.search(message, error.details()), (message, error.details())
        right = await ask(address, doubler_request(1, 2, 3))
        assert right.raw_output_contents[0] == np.array([2, 4, 6], np.float32).tobytes()
    # Four were no message at all, or too many, and belong to no model.
    assert served.host.stats()["doubler/1"]["rejected"] == len(WRONG) - 4
    assert served.app.service.grpc_responses == {"INVALID_ARGUMENT": len(WRONG), "OK": 1}
    assert served.app.service.in_flight.bytes == 0


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_message_is_decoded_or_refused_and_nothing_else(data: st.DataObject) -> None:
    request = _typed(fp32_contents=[1, 2, 3]) if data.draw(st.booleans()) else doubler_request(1, 2, 3)
    request.parameters["priority"].int64_param = 2
    request.outputs.add(name="y").parameters["classification"].int64_param = 0
    damaged = bytearray(request.SerializeToString())
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
        damaged = damaged or bytearray(b"\0")
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(RequestError):
        patch.setattr(messages, "SCAN_BYTES", data.draw(st.sampled_from([0, 1 << 20])))
        call = grpc_codec.decode(Decoder(DOUBLER), messages.parse(messages.ModelInferRequest, bytes(damaged)))
        assert call.inputs["x"].shape[1] == 3


def test_integers_that_do_not_fit_and_text_that_is_none_are_refused() -> None:
    for dtype, field, values, message in (
        ("int8", "int_contents", [128], "got values from 128 to 128 in contents, expected them to fit INT8"),
        ("uint8", "uint_contents", [256], "expected them to fit UINT8"),
        ("string", "bytes_contents", [b"\xff\xfe"], "got element 0 that is not UTF-8"),
    ):
        spec = TensorSpec("x", dtype, ("n",))
        request = pb.ModelInferRequest()
        tensor = request.inputs.add(name="x", datatype=OIP_FROM_DTYPE[dtype], shape=[1])
        getattr(tensor.contents, field).extend(values)
        with pytest.raises(MalformedRequest, match=message):
            grpc_codec.decode(Decoder(Signature((spec,), (spec,))), request)


async def test_errors_of_the_model_and_unknown_names_have_their_codes() -> None:
    async with listening(make_served()) as address:
        for payload, code, message in (
            (doubler_request(666, 0, 0), grpc.StatusCode.INTERNAL, "node 'boom': got 666"),
            (doubler_request(667, 0, 0), grpc.StatusCode.INTERNAL, "internal error: ZeroDivisionError"),
            (
                pb.ModelInferRequest(model_name="../x"),
                grpc.StatusCode.NOT_FOUND,
                r"got '../x', expected one of doubler",
            ),
            (doubler_request(1, 2, 3, model_version="2"), grpc.StatusCode.NOT_FOUND, "got version '2', expected"),
        ):
            error = await refused(address, payload)
            assert error.code() is code
            assert message in error.details()


async def test_what_is_not_offered_says_so() -> None:
    async with listening(make_served()) as address:
        for method in ("ModelStreamInfer", "SystemSharedMemoryStatus", "TraceSetting", "Nonsense"):
            error = await refused(address, b"", method=SERVICE + method)
            assert error.code() is grpc.StatusCode.UNIMPLEMENTED
            assert "expected one of" in error.details()
            assert "ModelInfer" in error.details()
        async with triton.InferenceServerClient(address) as client:
            x = triton.InferInput("x", [1, 3], "FP32")
            x.set_data_from_numpy(np.zeros((1, 3), np.float32))

            async def requests() -> AsyncIterator[dict[str, Any]]:
                yield {"model_name": "doubler", "inputs": [x]}

            with pytest.raises(grpc.aio.AioRpcError, match="streaming"):
                await anext(client.stream_infer(requests()))


async def test_a_full_queue_says_when_to_come_back() -> None:
    served = make_served(make_config(max_queue=1))
    served.engines[0].gate.clear()
    async with listening(served) as address:
        first = asyncio.create_task(ask(address, doubler_request(1, 2, 3)))
        while served.batchers[0].ledger["queued"] == 0:
            await asyncio.sleep(0.005)
        error = await refused(address, doubler_request(1, 2, 3))
        served.engines[0].gate.set()
        await first
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    trailing = dict(error.trailing_metadata())
    assert trailing["retry-after"] == "3"
    assert trailing["grpc-retry-pushback-ms"] == "2500"


async def test_the_clients_deadline_is_the_requests_and_the_smaller_one_counts() -> None:
    served = make_served()
    async with listening(served) as address:
        await ask(address, doubler_request(1, 2, 3), timeout=None)
        await ask(address, doubler_request(1, 2, 3), timeout=50)
        short = doubler_request(1, 2, 3)
        short.parameters["timeout"].int64_param = 7_000_000
        short.parameters["priority"].uint64_param = 1
        await ask(address, short, timeout=50)
    (none, _), (client_ms, level), (own_ms, first) = served.batchers[0].seen
    assert none is None
    assert client_ms is not None
    assert 40_000 < client_ms < 51_000  # grpc rounds up on its way
    assert own_ms == 7000
    assert first > level


async def test_a_caller_is_the_same_over_both_protocols() -> None:
    served = make_served()
    body = rows(1, 2, 3)
    await acall(served.app, "POST", "/v2/models/doubler/infer", body, {"x-headrace-caller": "ann"})
    async with listening(served) as address, triton.InferenceServerClient(address) as client:
        x = triton.InferInput("x", [1, 3], "FP32")
        x.set_data_from_numpy(np.zeros((1, 3), np.float32))
        await client.infer("doubler", [x], headers={"x-headrace-caller": "ann"})
        await client.infer("doubler", [x])
    assert served.batchers[0].callers == [b"ann", b"ann", None]


async def test_a_call_that_is_cancelled_or_times_out_leaves_the_queue() -> None:
    served = make_served()
    served.engines[0].gate.clear()
    ledger = served.batchers[0].ledger
    async with listening(served) as address, grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary(INFER)(doubler_request(1, 2, 3).SerializeToString())
        while ledger["queued"] == 0:
            await asyncio.sleep(0.005)
        call.cancel()
        late = await refused(address, doubler_request(1, 2, 3), timeout=0.05)
        assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        while ledger["cancelled"] + ledger["expired"] < 2:
            await asyncio.sleep(0.005)
        served.engines[0].gate.set()
    assert ledger["queued"] == 0


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame of HTTP/2 (RFC 9113, 4.1)."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def call_headers(method: str = INFER, *more: tuple[bytes, bytes]) -> bytes:
    """HEADERS of a call, all literals (RFC 7541, 6.2.2)."""
    pairs = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", method.encode()), (b":authority", b"x"),
             (b"content-type", b"application/grpc"), (b"te", b"trailers"), *more]  # fmt: skip
    block = b"".join(bytes((0, len(name))) + name + bytes((len(value),)) + value for name, value in pairs)
    return frame(1, 4, 1, block)


OPENING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0)
MESSAGE = doubler_request(1, 2, 3).SerializeToString()
PREFIX = b"\0" + len(MESSAGE).to_bytes(4, "big")
CANCEL = frame(3, 0, 1, (8).to_bytes(4, "big"))
BROKEN = {
    "a reset within the message": OPENING + call_headers() + frame(0, 0, 1, PREFIX + MESSAGE[:10]) + CANCEL,
    "a reset before the message": OPENING + call_headers() + CANCEL,
    "a reset behind the message": OPENING + call_headers() + frame(0, 1, 1, PREFIX + MESSAGE) + CANCEL,
    "the end within the message": OPENING + call_headers() + frame(0, 1, 1, PREFIX + MESSAGE[:10]),
    "no message": OPENING + call_headers() + frame(0, 1, 1),
    "a message of 4 GiB": OPENING + call_headers() + frame(0, 0, 1, b"\0\xff\xff\xff\xff" + MESSAGE),
    "compression nobody agreed on": OPENING + call_headers() + frame(0, 1, 1, b"\1" + PREFIX[1:] + MESSAGE),
    "a compression nobody knows": (
        OPENING + call_headers(INFER, (b"grpc-encoding", b"nonsense")) + frame(0, 1, 1, b"\1" + PREFIX[1:] + MESSAGE)
    ),
    "a deadline that is none": (
        OPENING + call_headers(INFER, (b"grpc-timeout", b"soon")) + frame(0, 1, 1, PREFIX + MESSAGE)
    ),
    "headers that are none": OPENING + frame(1, 4, 1, b"\xff" * 50),
    "a frame longer than allowed": OPENING + b"\xff\xff\xff\0\0\0\0\0\1",
    "data of no call": OPENING + frame(0, 1, 7, MESSAGE),
    "no HTTP/2": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "half an opening": OPENING[:10],
}


@pytest.mark.parametrize("aborts", [False, True], ids=["closes", "aborts"])
async def test_a_broken_call_harms_nobody(aborts: bool) -> None:
    served = make_served()
    good = np.array([2, 4, 6], np.float32).tobytes()
    ledger = served.batchers[0].ledger
    async with listening(served) as address, grpc.aio.insecure_channel(address) as channel:
        client = channel.unary_unary(INFER)
        for name, sent in BROKEN.items():
            host, port = address.rsplit(":", 1)
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(sent)
            with contextlib.suppress(TimeoutError, OSError):  # some are answered, some closed, some waited for
                await asyncio.wait_for(reader.read(), 0.02)
            if aborts:
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.close()
            answer = pb.ModelInferResponse.FromString(await client(MESSAGE, timeout=20))
            assert answer.raw_output_contents[0] == good, name
            live = await channel.unary_unary(SERVICE + "ServerLive")(b"", timeout=20)
            assert pb.ServerLiveResponse.FromString(live).live, name
        while ledger["queued"]:
            await asyncio.sleep(0.005)
    assert served.app.service.in_flight.bytes == 0
    # The client's own, and those of the broken ones that were whole.
    assert len(BROKEN) <= ledger["ok"] + ledger["cancelled"] <= len(BROKEN) + 3


async def test_a_call_whose_client_vanishes_is_cancelled_in_the_ledger() -> None:
    served = make_served()
    served.engines[0].gate.clear()
    ledger = served.batchers[0].ledger
    async with listening(served) as address:
        for number, ends in enumerate((CANCEL, b""), 1):
            host, port = address.rsplit(":", 1)
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(OPENING + call_headers() + frame(0, 1, 1, PREFIX + MESSAGE))
            while ledger["queued"] == 0:
                await asyncio.sleep(0.005)
            if ends:
                writer.write(ends)
            else:
                writer.transport.abort()
            while ledger["cancelled"] < number:
                await asyncio.sleep(0.005)
            assert ledger["queued"] == 0
            writer.close()
        served.engines[0].gate.set()
        await ask(address, doubler_request(1, 2, 3))
    assert (ledger["ok"], ledger["cancelled"]) == (1, 2)


async def test_long_messages_are_refused_plain_and_compressed() -> None:
    served = make_served(body_bytes_max=100_000)
    async with listening(served) as address:
        big = doubler_request(*[0.0] * 30_000)
        for compression in (None, grpc.Compression.Gzip, grpc.Compression.Deflate):
            async with grpc.aio.insecure_channel(address) as channel:
                call = channel.unary_unary(INFER)(big.SerializeToString(), compression=compression, timeout=20)
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            small = await ask(address, doubler_request(*[1.0] * 21_000))
            assert small.outputs[0].shape == [7000, 3]
    assert served.app.service.in_flight.bytes == 0


async def test_bytes_in_flight_are_bounded_over_both_protocols() -> None:
    served = make_served()
    service = served.app.service
    service.in_flight.bytes_max = 1000
    async with listening(served) as address:
        error = await refused(address, doubler_request(*[0.0] * 300))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "bodies in flight" in error.details()
        await ask(address, doubler_request(1, 2, 3))
    assert service.in_flight.bytes == 0


async def test_a_port_in_use_is_an_error_that_names_it(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"got 127\.0\.0\.1:{port}, expected a free one"):
            await grpc_server.start(GrpcApp(make_served().app.service), "127.0.0.1", port, 1000)
    assert capfd.readouterr().err == ""  # of gRPC's own


def test_the_messages_have_the_stock_clients_names_numbers_and_types() -> None:
    def check(ours: Any, theirs: Any) -> None:
        for name, field in ours.fields_by_name.items():
            other = theirs.fields_by_name[name]
            assert (field.number, field.type, field.is_repeated) == (other.number, other.type, other.is_repeated), name
            if field.enum_type is not None:
                numbers = {value.name: value.number for value in field.enum_type.values}
                assert numbers == {value.name: value.number for value in other.enum_type.values}
            if field.message_type is not None:
                check(field.message_type, other.message_type)

    (service,) = pb.DESCRIPTOR.services_by_name.values()
    assert service.full_name == messages.SERVICE
    for name, kinds in messages.RPCS.items():
        method = service.methods_by_name[name]
        check(kinds[0].DESCRIPTOR, method.input_type)
        check(kinds[1].DESCRIPTOR, method.output_type)


def test_the_compiled_messages_are_those_of_the_proto_file(tmp_path: Path) -> None:
    from grpc_tools import protoc

    folder = Path(messages.__file__).parent
    assert protoc.main(["protoc", f"-I{folder}", f"--descriptor_set_out={tmp_path}/new", "oip.proto"]) == 0
    assert (tmp_path / "new").read_bytes() == (folder / "oip.desc").read_bytes(), "run make protos"
