"""Inference over gRPC: from a ModelInferRequest to an `InferCall`, and from a Result to a ModelInferResponse.

Tensors come and go raw (one ``bytes`` per tensor, in the layout of the REST binary extension) or typed (one repeated
field per kind of number). The `InferCall` in between is the same as REST's, and so are the bits of the Result.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np

from headrace.errors import MalformedRequest, ShapeMismatch
from headrace.serving.decode import Decoder, InferCall, check_parameters
from headrace.serving.encode import binary
from headrace.serving.json_data import shown
from headrace.serving.messages import ModelInferResponse
from headrace.serving.oip import RANK_MAX, InputTensor, RequestedOutput, TensorParameters
from headrace.serving.turns import PART_STRINGS, run_to_end
from headrace.signature import TensorSpec

# The field of InferTensorContents that carries each datatype. 16-bit floats have none and travel raw.
CONTENTS_FIELD = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def decode(decoder: Decoder, request: Any) -> InferCall:
    """What `decode_in_steps` returns, at once."""
    return run_to_end(decode_in_steps(decoder, request))


def decode_in_steps(decoder: Decoder, request: Any) -> Generator[None, None, InferCall]:
    """Decodes a ModelInferRequest; yields where others may run, if it has many strings, and returns the call.

    The outputs are marked binary where the answer is to be raw: as the inputs came, unless the parameter
    ``binary_data_output`` says otherwise.

    Args:
        decoder: The model's.
        request: The message.

    Raises:
        RequestError: One of its subclasses; the message says what was got, what was expected, and where.
    """
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise MalformedRequest(
            f"raw_input_contents: got {len(raw)} entries, expected {len(request.inputs)}, one for each input, or none"
        )
    inputs: dict[str, np.ndarray] = {}
    for index, tensor in enumerate(request.inputs):
        if len(tensor.shape) > RANK_MAX:
            raise ShapeMismatch(
                f"input {shown(tensor.name)}: got {len(tensor.shape)} dims in shape, expected at most {RANK_MAX}"
            )
        declared = InputTensor(
            name=tensor.name,
            shape=list(tensor.shape),
            datatype=tensor.datatype,
            parameters=_tensor_parameters(tensor.parameters) if tensor.parameters else None,
        )
        check = decoder.declared(declared, inputs)
        if raw:
            if tensor.HasField("contents"):
                raise MalformedRequest(
                    f"input {tensor.name!r}: got contents and raw_input_contents, expected one of them"
                )
            data = memoryview(raw[index])
            what = f"raw_input_contents[{index}] of length"
            inputs[tensor.name] = yield from check.from_binary_in_steps(declared.shape, data, what)
        else:
            inputs[tensor.name] = yield from check.from_values(declared.shape, _typed(tensor))
    decoder.check_complete(inputs)
    priority, timeout_us, want_raw = _request_parameters(request.parameters) if request.parameters else (0, 0, None)
    outputs = decoder.wanted(
        [_requested(output) for output in request.outputs], bool(raw) if want_raw is None else want_raw
    )
    return InferCall(inputs, outputs, request.id or None, priority, timeout_us)


def encode(name: str, version: str, call: InferCall, result: dict[str, np.ndarray]) -> bytes:
    """What `encode_in_steps` returns, at once."""
    return run_to_end(encode_in_steps(name, version, call, result))


def encode_in_steps(
    name: str, version: str, call: InferCall, result: dict[str, np.ndarray]
) -> Generator[None, None, bytes]:
    """Encodes one Result as a ModelInferResponse: all outputs raw, or all typed.

    Yields where others may run, if it has many strings, and returns the message.

    Args:
        name: The model's name.
        version: Its version.
        call: What is answered.
        result: The Result; arrays of the signature's dtypes.
    """
    response = ModelInferResponse(model_name=name, model_version=version, id=call.id or "")
    typed = not any(raw or spec.oip_datatype not in CONTENTS_FIELD for spec, raw in call.outputs)
    for spec, _ in call.outputs:
        array = result[spec.name]
        output = response.outputs.add(name=spec.name, datatype=spec.oip_datatype, shape=array.shape)
        if typed:
            yield from _put_values(output.contents, spec, array)
        else:
            response.raw_output_contents.append((yield from binary(spec, array)))
    encoded: bytes = response.SerializeToString()
    return encoded


def _put_values(contents: Any, spec: TensorSpec, array: np.ndarray) -> Generator[None, None, None]:
    values = array.ravel().tolist()
    field = getattr(contents, CONTENTS_FIELD[spec.oip_datatype])
    if spec.dtype != "string":
        field.extend(values)
        return
    for first in range(0, len(values), PART_STRINGS):
        if first:
            yield
        field.extend(text.encode() for text in values[first : first + PART_STRINGS])


def _typed(tensor: Any) -> Any:
    """The values of an input from the one field that its datatype may use."""
    field = CONTENTS_FIELD.get(tensor.datatype)
    if field is None:
        raise MalformedRequest(
            f"input {tensor.name!r}: got {tensor.datatype} without raw_input_contents, expected it in there: "
            "contents has no field for it"
        )
    given = [descriptor.name for descriptor, _ in tensor.contents.ListFields()]
    if given not in ([], [field]):
        raise MalformedRequest(
            f"input {tensor.name!r}: got {' and '.join(given)}, expected {field} for {tensor.datatype}"
        )
    return getattr(tensor.contents, field)


def _requested(output: Any) -> RequestedOutput:
    parameters = _tensor_parameters(output.parameters) if output.parameters else None
    return RequestedOutput(name=output.name, parameters=parameters)


def _tensor_parameters(parameters: Any) -> TensorParameters:
    """The parameters of a tensor that REST knows too, but for ``binary_data``: all outputs go alike."""
    found = TensorParameters()
    for key, value in parameters.items():
        if key == "classification":
            found.classification = _whole("classification", value)
        elif key == "shared_memory_region":
            found.shared_memory_region = value.string_param
    return found


def _request_parameters(parameters: Any) -> tuple[int, int, bool | None]:
    """Priority, microseconds the answer is worth waiting for, and whether it is to be raw (None where not said)."""
    priority = timeout_us = 0
    sequence: int | str | None = None
    raw: bool | None = None
    for key, value in parameters.items():
        if key == "priority":
            priority = _whole(key, value)
        elif key == "timeout":
            timeout_us = _whole(key, value)
        elif key == "sequence_id":
            sequence = value.string_param or value.int64_param or value.uint64_param
        elif key == "binary_data_output":
            kind = value.WhichOneof("parameter_choice")
            if kind != "bool_param":
                raise MalformedRequest(f"parameters.{key}: got {kind or 'no value'}, expected bool_param")
            raw = value.bool_param
    check_parameters(priority, timeout_us, sequence)
    return priority, timeout_us, raw


def _whole(key: str, value: Any) -> int:
    kind = value.WhichOneof("parameter_choice")
    if kind not in ("int64_param", "uint64_param"):
        raise MalformedRequest(f"parameters.{key}: got {kind or 'no value'}, expected int64_param or uint64_param")
    return int(getattr(value, kind))
