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
    try:
        return kind.FromString(payload)
    except DecodeError as error:
        raise MalformedRequest(
            f"message: got {len(payload)} bytes that are no {kind.DESCRIPTOR.name} ({error}), expected one"
        ) from error
