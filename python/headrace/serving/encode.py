"""From a Result to the bytes of a REST answer; gRPC's are made in `grpc_codec`."""

from __future__ import annotations

import struct
from collections.abc import Generator
from typing import Any

import msgspec
import numpy as np

from headrace.serving.oip import InferAnswer, OutputTensor
from headrace.serving.turns import PART_NUMBERS, PART_STRINGS, run_to_end
from headrace.signature import TensorSpec

_ENCODER = msgspec.json.Encoder()


Outputs = tuple[tuple[TensorSpec, bool], ...]


def encode(
    name: str, version: str, request_id: str | None, outputs: Outputs, result: dict[str, np.ndarray]
) -> tuple[bytes, int | None]:
    """What `encode_in_steps` returns, at once."""
    return run_to_end(encode_in_steps(name, version, request_id, outputs, result))


def is_long(outputs: Outputs, result: dict[str, np.ndarray]) -> bool:
    """Whether to encode a Result in steps: numbers in binary form need none."""
    return any(
        result[spec.name].size > _part_of(spec) and (spec.dtype == "string" or not is_binary)
        for spec, is_binary in outputs
    )


def _part_of(spec: TensorSpec) -> int:
    """How many values of an output to encode at a time."""
    return PART_STRINGS if spec.dtype == "string" else PART_NUMBERS


def encode_in_steps(
    name: str, version: str, request_id: str | None, outputs: Outputs, result: dict[str, np.ndarray]
) -> Generator[None, None, tuple[bytes, int | None]]:
    """Encodes one Result; yields where others may run, if `is_long`, and returns it.

    JSON has no NaN and no Inf: both go out as ``null``, which keeps the answer valid JSON. Ask for binary output to
    get them as they are.

    Args:
        name: The model's name.
        version: Its version.
        request_id: The client's id, or None.
        outputs: What to send, in order, each with whether it goes out in binary form.
        result: The Result; arrays of the signature's dtypes.

    Returns:
        The body, and the length of its JSON part where binary data follows (None where there is none).
    """
    tensors: list[OutputTensor] = []
    blobs: list[bytes] = []
    for spec, is_binary in outputs:
        array = result[spec.name]
        tensor = OutputTensor(name=spec.name, datatype=spec.oip_datatype, shape=list(array.shape))
        if is_binary:
            blob = yield from binary(spec, array)
            tensor.parameters = {"binary_data_size": len(blob)}
            blobs.append(blob)
        else:
            tensor.data = yield from _json(spec, array)
        tensors.append(tensor)
    head = _ENCODER.encode(InferAnswer(model_name=name, model_version=version, outputs=tensors, id=request_id))
    if not blobs:
        return head, None
    return b"".join([head, *blobs]), len(head)


def _json(spec: TensorSpec, array: np.ndarray) -> Generator[None, None, list[Any] | msgspec.Raw]:
    """An output's values for JSON, flat: as they are, or, of many, as the text that they make."""
    if spec.dtype == "bfloat16":
        array = array.astype(np.float32)
    values = array.ravel()
    part = _part_of(spec)
    if values.size <= part:
        return values.tolist()
    texts: list[bytes] = []
    for start in range(0, values.size, part):
        texts.append(_ENCODER.encode(values[start : start + part].tolist())[1:-1])
        yield
    return msgspec.Raw(b"[%b]" % b",".join(texts))


def binary(spec: TensorSpec, array: np.ndarray) -> Generator[None, None, bytes]:
    """An output in binary form, in steps: row-major little-endian values, or length-prefixed strings."""
    if spec.dtype == "string":
        return (yield from _strings(array))
    return array.tobytes()


def _strings(array: np.ndarray) -> Generator[None, None, bytes]:
    """BYTES in binary form: each element is 4 bytes of little-endian length, then its UTF-8 bytes."""
    parts: list[bytes] = []
    for index, text in enumerate(array.ravel().tolist()):
        if index % PART_STRINGS == PART_STRINGS - 1:
            yield
        data = text.encode()
        parts.append(struct.pack("<I", len(data)))
        parts.append(data)
    return b"".join(parts)
