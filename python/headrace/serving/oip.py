"""The Open Inference Protocol (KServe v2) over REST: message types and the model-independent half of the wire format.

Formats: https://github.com/kserve/open-inference-protocol (rest_predict_v2) and Triton's "binary tensor data" and
"schedule policy" extensions. `decode` turns bodies into Requests and `encode` turns Results into bodies.
"""

from __future__ import annotations

from typing import Any

import msgspec

# Model tensors have few axes; this stops a shape list from being the attack.
RANK_MAX = 32
NO_DATA = msgspec.Raw(b"")


class TensorParameters(msgspec.Struct, kw_only=True):
    """``parameters`` of one input or of one requested output. Unknown keys are ignored, as the protocol asks."""

    binary_data_size: int | None = None
    binary_data: bool | None = None
    classification: int | None = None
    shared_memory_region: str | None = None


class InputTensor(msgspec.Struct, kw_only=True):
    """One input. `data` stays undecoded until its dtype and shape were checked against the signature."""

    name: str
    shape: list[int]
    datatype: str
    data: msgspec.Raw = NO_DATA
    parameters: TensorParameters | None = None


class RequestedOutput(msgspec.Struct, kw_only=True):
    """One output the client wants."""

    name: str
    parameters: TensorParameters | None = None


class RequestParameters(msgspec.Struct, kw_only=True):
    """``parameters`` of a request.

    Attributes:
        priority: Triton's meaning: 0 for the default, 1 for the highest, larger for lower.
        timeout: Microseconds until the answer is worth nothing; 0 for the model's default.
        binary_data_output: Whether outputs that do not say come back in binary form.
        sequence_id: Refused where set: a model here keeps no state between requests.
    """

    priority: int = 0
    timeout: int | None = None
    binary_data_output: bool = False
    sequence_id: int | str | None = None


class InferBody(msgspec.Struct, kw_only=True):
    """The JSON part of an inference request."""

    inputs: list[InputTensor]
    id: str | None = None
    outputs: list[RequestedOutput] | None = None
    parameters: RequestParameters | None = None


class OutputTensor(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One output of an answer: `data` flat in row-major order, or `parameters` with ``binary_data_size``."""

    name: str
    datatype: str
    shape: list[int]
    data: list[Any] | msgspec.Raw | None = None
    parameters: dict[str, int] | None = None


class InferAnswer(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The JSON part of an inference answer."""

    model_name: str
    model_version: str
    outputs: list[OutputTensor]
    id: str | None = None
