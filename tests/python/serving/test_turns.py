"""Many strings are decoded and encoded in steps, in every form, and are the same as at once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Generator
from typing import Any

import msgspec
import numpy as np
import pytest
from oip_client import binary_request, read_answer

from headrace.serving import grpc_codec
from headrace.serving.decode import Decoder
from headrace.serving.encode import encode, encode_in_steps, is_long
from headrace.serving.messages import ModelInferRequest, ModelInferResponse
from headrace.serving.turns import PART_NUMBERS, PART_STRINGS, in_turns, run_to_end
from headrace.signature import Signature, TensorSpec

TEXT = TensorSpec("x", "string", ("n",))
DECODER = Decoder(Signature((TEXT,), (TEXT,)))
FEW = {"x": np.array(["a", "b"], dtype=object)}
VALUES = np.array([f'{number} ,"é' * 4 for number in range(3 * PART_STRINGS + 1)], dtype=object)


def turns_of(steps: Generator[None, None, Any]) -> tuple[int, Any]:
    turns = 0
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return turns, end.value
        turns += 1


def message(raw: bool) -> Any:
    request = ModelInferRequest()
    tensor = request.inputs.add(name="x", datatype="BYTES", shape=[len(VALUES)])
    if raw:
        _, answer = turns_of(encode_in_steps("m", "1", None, ((TEXT, True),), {"x": VALUES}))
        request.raw_input_contents.append(answer[0][answer[1] :])
    else:
        tensor.contents.bytes_contents.extend(value.encode() for value in VALUES)
    return request


def decoding(form: str) -> Generator[None, None, Any]:
    if form == "JSON":
        tensor = {"name": "x", "datatype": "BYTES", "shape": [len(VALUES)], "data": VALUES.tolist()}
        return DECODER.steps(json.dumps({"inputs": [tensor]}).encode())
    if form == "binary":
        body, headers = binary_request({"x": ("BYTES", VALUES)})
        return DECODER.steps(body, int(headers["Inference-Header-Content-Length"]))
    return grpc_codec.decode_in_steps(DECODER, message(form == "raw"))


@pytest.mark.parametrize("form", ["JSON", "binary", "raw", "typed"])
def test_many_strings_are_decoded_in_steps(form: str) -> None:
    turns, call = turns_of(decoding(form))
    assert turns >= 3
    assert call.inputs["x"].tolist() == VALUES.tolist()


@pytest.mark.parametrize("raw", [True, False])
def test_many_strings_are_encoded_in_steps(raw: bool) -> None:
    outputs = ((TEXT, raw),)
    assert is_long(outputs, {"x": VALUES})
    assert not is_long(outputs, {"x": VALUES[:5]})
    turns, (body, length) = turns_of(encode_in_steps("m", "1", None, outputs, {"x": VALUES}))
    assert turns >= 3
    headers = {} if length is None else {"inference-header-content-length": str(length)}
    assert read_answer(body, headers)["x"].tolist() == VALUES.tolist()
    call = run_to_end(grpc_codec.decode_in_steps(DECODER, message(raw)))
    turns, encoded = turns_of(grpc_codec.encode_in_steps("m", "1", call, {"x": VALUES}))
    assert turns >= 3
    answer = ModelInferResponse.FromString(encoded)
    if raw:
        assert answer.raw_output_contents[0] == body[length:]
    else:
        assert [value.decode() for value in answer.outputs[0].contents.bytes_contents] == VALUES.tolist()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int64", "bool"])
def test_many_numbers_are_encoded_in_steps_in_json_alone(dtype: str) -> None:
    spec = TensorSpec("y", dtype, (3, "n"))
    result = {"y": np.random.default_rng(1).normal(0, 100, (3, PART_NUMBERS)).astype(spec.numpy_dtype)}
    result["y"][1, 7:9] = 0
    if dtype != "int64" and dtype != "bool":
        result["y"][0, :2] = np.nan, np.inf
    assert is_long(((spec, False),), result)
    assert not is_long(((spec, True),), result)
    assert not is_long(((spec, False),), {"y": result["y"][:, :5]})
    turns, (body, length) = turns_of(encode_in_steps("m", "1", "id", ((spec, False), (TEXT, True)), result | FEW))
    assert turns >= 3
    assert json.loads(body[:length])["outputs"][0]["shape"] == [3, PART_NUMBERS]
    values = result["y"].astype(np.float32) if dtype == "bfloat16" else result["y"]
    whole = msgspec.json.encode(values.ravel().tolist())
    assert body[:length].count(whole) == 1
    assert encode("m", "1", "id", ((spec, False), (TEXT, True)), result | FEW) == (body, length)


def test_others_have_their_turn_between_the_steps() -> None:
    async def main() -> int:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        other = asyncio.create_task(tick())
        await in_turns(decoding("binary"))
        other.cancel()
        return ticks

    assert asyncio.run(main()) >= 3
