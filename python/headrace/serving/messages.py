"""The protocol's gRPC messages, as protobuf classes made from ``oip.proto``.

They live in a descriptor pool of their own: `tritonclient` and KServe's client bring the same names for the default
pool, and one process must be able to use them beside this server. No generated Python code is kept here, because it
would tie the package to one major version of protobuf.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from headrace.errors import MalformedRequest

SERVICE = "inference.GRPCInferenceService"
# An empty input takes 2 bytes in a message and 90 once it is parsed, so whatever is longer than this is first counted.
SCAN_BYTES = 64 * 1024
FIELDS_MAX = 4096


def _make_pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    compiled = resources.files(__package__).joinpath("oip.desc").read_bytes()
    for file in descriptor_pb2.FileDescriptorSet.FromString(compiled).file:
        pool.Add(file)
    return pool


_POOL = _make_pool()


def _message(name: str) -> Any:
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"inference.{name}"))


# RPC -> the classes of its request and of its answer.
RPCS: dict[str, tuple[Any, Any]] = {
    method.name: (
        message_factory.GetMessageClass(method.input_type),
        message_factory.GetMessageClass(method.output_type),
    )
    for method in _POOL.FindServiceByName(SERVICE).methods
}

ModelInferRequest, ModelInferResponse = RPCS["ModelInfer"]
InferParameter = _message("InferParameter")


def parse(kind: Any, payload: bytes) -> Any:
    """Parses a message.

    Args:
        kind: Its class.
        payload: Its bytes.

    Raises:
        MalformedRequest: They are no such message.
    """
    if len(payload) > SCAN_BYTES:
        _check_fields(payload)
    try:
        return kind.FromString(payload)
    except DecodeError as error:
        raise MalformedRequest(
            f"message: got {len(payload)} bytes that are no {kind.DESCRIPTOR.name} ({error}), expected one"
        ) from error


def _check_fields(payload: bytes) -> None:
    """Raises `MalformedRequest` where a message has more fields than any request needs, before they become objects.

    Format: https://protobuf.dev/programming-guides/encoding. What is no message at all is left to the parser.
    """
    position = count = 0
    try:
        while position < len(payload):
            key, position = _varint(payload, position)
            count += 1
            if count > FIELDS_MAX:
                raise MalformedRequest(f"message: got more than {FIELDS_MAX} fields, expected fewer")
            match key & 7:
                case 0:
                    _, position = _varint(payload, position)
                case 1:
                    position += 8
                case 2:
                    length, position = _varint(payload, position)
                    position += length
                case 5:
                    position += 4
    except IndexError:
        return


def _varint(payload: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = payload[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80 or shift > 63:
            return value, position
        shift += 7
