"""From an inference request to a Request, by a model's signature: REST bodies here, gRPC messages in `grpc_codec`.

Everything a client declares (names, dtypes, shapes, sizes) is checked against the signature and against the bytes
that really came before a single array is made, so memory used is bounded by the body, which the server bounds.
"""

from __future__ import annotations

import struct
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import msgspec
import numpy as np

from headrace._core import twofold_key
from headrace.errors import DeadlineExceeded, DtypeMismatch, MalformedRequest, MissingInput, ShapeMismatch, UnknownInput
from headrace.serving.json_data import JsonData, is_large, json_error, shown
from headrace.serving.oip import NO_DATA, InferBody, InputTensor, RequestedOutput
from headrace.serving.turns import PART_BYTES, PART_STRINGS, run_to_end
from headrace.signature import DTYPE_FROM_OIP, Signature, TensorSpec

_BODY = msgspec.json.Decoder(InferBody)
# Protobuf has no integers of less than 32 bits.
_WIRE_DTYPES = {"INT8": np.int32, "INT16": np.int32, "UINT8": np.uint32, "UINT16": np.uint32}


@dataclass(slots=True)
class InferCall:
    """One decoded inference request.

    Attributes:
        inputs: The Request: name -> array.
        outputs: The wanted outputs in the order they were asked for, each with whether it goes out in binary form.
        id: The client's own id, sent back as it came.
        priority: Triton's priority: 0 for the default, 1 for the highest.
        timeout_us: Microseconds the answer is worth waiting for; 0 for the model's own deadline.
    """

    inputs: dict[str, np.ndarray]
    outputs: tuple[tuple[TensorSpec, bool], ...]
    id: str | None
    priority: int
    timeout_us: int

    def count_wait(self, waited_s: float) -> None:
        """Takes the seconds that it waited before it came here off what the client said it may take.

        Raises:
            DeadlineExceeded: Nothing is left.
        """
        if self.timeout_us:
            left_us = self.timeout_us - int(1e6 * waited_s)
            if left_us <= 0:
                raise DeadlineExceeded(
                    f"parameters.timeout: got a wait of {waited_s:.3g} s for a replica, expected less than "
                    f"{self.timeout_us} us"
                )
            self.timeout_us = left_us


class Decoder:
    """Decodes the inference requests of one model. Stateless after construction; any thread may call it."""

    def __init__(self, signature: Signature) -> None:
        self._inputs = {spec.name: InputDecoder(spec) for spec in signature.inputs}
        self._outputs = {spec.name: spec for spec in signature.outputs}
        self._all_json = tuple((spec, False) for spec in signature.outputs)
        self._all_binary = tuple((spec, True) for spec in signature.outputs)

    def decode(self, body: bytes, header_length: int | None = None) -> InferCall:
        """Decodes one request body.

        Args:
            body: The JSON object, then the binary data of the inputs that say ``binary_data_size``, back to back.
            header_length: Bytes of the JSON object (``Inference-Header-Content-Length``); None if it is the whole body.

        Raises:
            RequestError: One of its subclasses; the message says what was got, what was expected, and where.
        """
        message, tail = _split(body, header_length)
        return self._call(message, tail, {})

    def steps(self, body: bytes, header_length: int | None = None) -> Generator[None, None, InferCall]:
        """The same in steps of a millisecond or so: yields where others may run, and returns the call."""
        message, tail = _split(body, header_length)
        ready: dict[str, np.ndarray] = {}
        offset = 0
        for tensor in message.inputs:
            if is_large(tensor.data):
                ready[tensor.name] = yield from self.declared(tensor, ready).from_json_in_steps(tensor)
                continue
            size = tensor.parameters.binary_data_size if tensor.parameters is not None else None
            if size is not None and PART_BYTES < size <= len(tail) - offset:
                data = tail[offset : offset + size]
                ready[tensor.name] = yield from self.declared(tensor, ready).from_binary_in_steps(
                    tensor.shape, data, "binary_data_size"
                )
            offset += max(0, size or 0)
        return self._call(message, tail, ready)

    def _call(self, message: InferBody, tail: memoryview, ready: dict[str, np.ndarray]) -> InferCall:
        """Checks and decodes what is not yet in `ready`, the arrays of inputs that are decoded already."""
        inputs = self._decode_inputs(message.inputs, tail, ready)
        priority = timeout_us = 0
        binary = False
        if (parameters := message.parameters) is not None:
            priority, timeout_us, binary = parameters.priority, parameters.timeout or 0, parameters.binary_data_output
            check_parameters(priority, timeout_us, parameters.sequence_id)
        outputs = self.wanted(message.outputs, binary)
        return InferCall(inputs, outputs, message.id, priority, timeout_us)

    def _decode_inputs(
        self, tensors: list[InputTensor], tail: memoryview, ready: dict[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        inputs: dict[str, np.ndarray] = {}
        offset = 0
        for tensor in tensors:
            name = tensor.name
            decoder = self.declared(tensor, inputs)
            parameters = tensor.parameters
            size = parameters.binary_data_size if parameters is not None else None
            if size is None:
                inputs[name] = ready[name] if name in ready else decoder.from_json(tensor)
                continue
            if not 0 <= size <= len(tail) - offset:
                raise MalformedRequest(
                    f"input {name!r}: got binary_data_size {shown(size)}, expected 0 to {len(tail) - offset}, "
                    "the bytes left in the body"
                )
            if tensor.data != NO_DATA:
                raise MalformedRequest(f"input {name!r}: got both data and binary_data_size, expected one of them")
            if name in ready:
                inputs[name] = ready[name]
            else:
                inputs[name] = decoder.from_binary(tensor.shape, tail[offset : offset + size], "binary_data_size")
            offset += size
        self.check_complete(inputs)
        if offset != len(tail):
            raise MalformedRequest(
                f"body: got {len(tail)} bytes of binary data, expected the {offset} that the inputs declare"
            )
        return inputs

    def declared(self, tensor: InputTensor, inputs: Mapping[str, object]) -> InputDecoder:
        """The decoder of a declared input, once name, datatype, shape and parameters are found right.

        Args:
            tensor: What the request declares; its data is not looked at.
            inputs: The inputs before it in the request, by name.

        Raises:
            RequestError: It does not fit the signature, or comes a second time.
        """
        decoder = self._inputs.get(tensor.name)
        if decoder is None:
            raise UnknownInput(f"inputs: got {shown(tensor.name)}, expected one of {', '.join(self._inputs)}")
        if tensor.name in inputs:
            raise MalformedRequest(f"inputs: got {tensor.name!r} twice, expected each input once")
        decoder.check_declared(tensor)
        return decoder

    def check_complete(self, inputs: Mapping[str, object]) -> None:
        """Raises `MissingInput` where one of the signature's inputs is not in `inputs`."""
        if len(inputs) != len(self._inputs):
            missing = ", ".join(repr(name) for name in self._inputs if name not in inputs)
            raise MissingInput(f"inputs: got {len(inputs)} of {len(self._inputs)} inputs, expected also {missing}")

    def wanted(self, outputs: list[RequestedOutput] | None, binary: bool) -> tuple[tuple[TensorSpec, bool], ...]:
        """The outputs to send, each with whether it goes out in binary form.

        Args:
            outputs: Those the request names; all where it names none.
            binary: For the outputs that do not say.

        Raises:
            RequestError: One is unknown or named twice, or asks for what is not offered.
        """
        if not outputs:
            return self._all_binary if binary else self._all_json
        wanted: dict[str, tuple[TensorSpec, bool]] = {}
        for output in outputs:
            spec = self._outputs.get(output.name)
            if spec is None:
                raise UnknownInput(f"outputs: got {shown(output.name)}, expected one of {', '.join(self._outputs)}")
            if output.name in wanted:
                raise MalformedRequest(f"outputs: got {output.name!r} twice, expected each output once")
            own = output.parameters
            if own is not None and (own.classification or own.shared_memory_region):
                raise MalformedRequest(
                    f"output {output.name!r}: got parameter classification or shared_memory_region, "
                    "expected neither: those extensions are not offered"
                )
            own_binary = own.binary_data if own is not None else None
            wanted[output.name] = (spec, binary if own_binary is None else own_binary)
        return tuple(wanted.values())


class InputDecoder:
    """Decodes one named input."""

    def __init__(self, spec: TensorSpec) -> None:
        self._spec = spec
        self._datatype = spec.oip_datatype
        self._dtype = spec.numpy_dtype
        self._json = JsonData(spec)

    def check_declared(self, tensor: InputTensor) -> None:
        """Checks datatype, shape and parameters without looking at the data."""
        spec = self._spec
        if tensor.datatype != self._datatype:
            kind = MalformedRequest if tensor.datatype not in DTYPE_FROM_OIP else DtypeMismatch
            raise kind(f"input {spec.name!r}: got datatype {shown(tensor.datatype)}, expected {self._datatype}")
        shape = tensor.shape
        if len(shape) != len(spec.dims):
            raise ShapeMismatch(
                f"input {spec.name!r}: got {len(shape)} dims in shape {shown(shape)}, "
                f"expected {len(spec.dims)} as in {spec}"
            )
        for axis, (got, expected) in enumerate(zip(shape, spec.dims, strict=True)):
            if got < 0 or (got != expected and not isinstance(expected, str)):
                want = "0 or more" if isinstance(expected, str) else expected
                raise ShapeMismatch(
                    f"input {spec.name!r}: got {shown(got)} at axis {axis} of shape {shown(shape)}, "
                    f"expected {want} as in {spec}"
                )
        if tensor.parameters is not None and tensor.parameters.shared_memory_region is not None:
            raise MalformedRequest(
                f"input {spec.name!r}: got parameter shared_memory_region, expected the data in the body: "
                "the shared memory extension is not offered"
            )

    def from_json(self, tensor: InputTensor) -> np.ndarray:
        """The array of an input whose data is in the JSON object, flat or nested."""
        if tensor.data == NO_DATA:
            raise MalformedRequest(f"input {tensor.name!r}: got neither data nor binary_data_size, expected one")
        return self._json.decode(tensor.data, tensor.shape, _count(tensor.shape))

    def from_json_in_steps(self, tensor: InputTensor) -> Generator[None, None, np.ndarray]:
        """The same of large data: yields where others may run, and returns the array."""
        return self._json.steps(tensor.data, tensor.shape, _count(tensor.shape))

    def from_values(self, shape: list[int], values: Sequence[Any]) -> Generator[None, None, np.ndarray]:
        """The array of an input whose values gRPC carries one by one, with the types of its datatype, in steps."""
        count = _count(shape)
        if len(values) != count:
            raise ShapeMismatch(
                f"input {self._spec.name!r}: got {len(values)} values in contents, "
                f"expected {shown(count)} for shape {shown(shape)}"
            )
        if self._spec.dtype == "string":
            texts = yield from self._texts(values)
            return texts.reshape(shape)
        array = np.array(values, dtype=_WIRE_DTYPES.get(self._datatype, self._dtype))
        if array.dtype != self._dtype:
            bounds = np.iinfo(self._dtype)
            if array.size and (array.min() < bounds.min or array.max() > bounds.max):
                self._refuse(
                    f"got values from {array.min()} to {array.max()} in contents, expected them to fit {self._datatype}"
                )
            array = array.astype(self._dtype)
        return array.reshape(shape)

    def _texts(self, values: Sequence[bytes]) -> Generator[None, None, np.ndarray]:
        array = np.empty(len(values), dtype=object)
        index = 0
        try:
            for index, value in enumerate(values):
                if index % PART_STRINGS == PART_STRINGS - 1:
                    yield
                array[index] = value.decode()
        except UnicodeDecodeError as error:
            self._refuse(f"got element {index} that is not UTF-8 ({error.reason}), expected UTF-8 text")
        return array

    def from_binary(self, shape: list[int], data: memoryview, what: str) -> np.ndarray:
        """The array of an input in binary form: row-major little-endian values, or length-prefixed strings.

        Args:
            shape: Its shape, found right by `check_declared`.
            data: The bytes.
            what: What the length of `data` is called on the wire, for messages.
        """
        if self._spec.dtype == "string":
            return run_to_end(self.from_binary_in_steps(shape, data, what))
        expected = _count(shape) * self._dtype.itemsize
        if len(data) != expected:
            self._refuse(
                f"got {what} {len(data)}, expected {shown(expected)} for {self._datatype} of shape {shown(shape)}"
            )
        if self._dtype == np.bool_:
            raw = np.frombuffer(data, dtype=np.uint8)
            if raw.size and raw.max() > 1:
                self._refuse(f"got byte {raw.max()} in binary BOOL data, expected 0 or 1")
        # A copy, because the bytes sit at any offset of the body and Backends want aligned memory.
        return np.frombuffer(data, dtype=self._dtype).reshape(shape).copy()

    def from_binary_in_steps(self, shape: list[int], data: memoryview, what: str) -> Generator[None, None, np.ndarray]:
        """The same; yields between many strings, where others may run, and returns the array."""
        if self._spec.dtype != "string":
            return self.from_binary(shape, data, what)
        strings = yield from self._strings(data, _count(shape), what)
        return strings.reshape(shape)

    def _strings(self, data: memoryview, count: int, what: str) -> Generator[None, None, np.ndarray]:
        """BYTES in binary form: each element is 4 bytes of little-endian length, then the bytes."""
        if len(data) < 4 * count:
            self._refuse(f"got {len(data)} bytes of BYTES data, expected at least {shown(4 * count)}")
        array = np.empty(count, dtype=object)
        offset = 0
        for first in range(0, count, PART_STRINGS):
            if first:
                yield
            part, offset = self._part(data, offset, first, min(PART_STRINGS, count - first), count, what)
            array[first : first + len(part)] = part
        if offset != len(data):
            self._refuse(f"got {len(data) - offset} bytes after the last string, expected none")
        return array

    def _part(
        self, data: memoryview, offset: int, first: int, number: int, count: int, what: str
    ) -> tuple[list[str], int]:
        """So many of the `count` strings, from the one numbered `first` at `offset` on; and where they end."""
        strings: list[str] = []
        try:
            for _ in range(number):
                (length,) = struct.unpack_from("<I", data, offset)
                offset += 4 + length
                if offset > len(data):
                    self._refuse(f"got a string of {length} bytes beyond the end of the data, expected it to fit")
                strings.append(str(data[offset - length : offset], "utf-8"))
        except UnicodeDecodeError as error:
            self._refuse(f"got element {first + len(strings)} that is not UTF-8 ({error.reason}), expected UTF-8 text")
        except struct.error:
            self._refuse(f"got {first + len(strings)} strings in {what} {len(data)}, expected {count}")
        return strings, offset

    def _refuse(self, message: str) -> NoReturn:
        raise MalformedRequest(f"input {self._spec.name!r}: {message}")


def _split(body: bytes, header_length: int | None) -> tuple[InferBody, memoryview]:
    """The JSON object of a body, and the binary data behind it."""
    if header_length is None or header_length == len(body):
        tail = memoryview(b"")
        head: bytes | memoryview = body
    elif 0 < header_length < len(body):
        view = memoryview(body)
        head, tail = view[:header_length], view[header_length:]
    else:
        raise MalformedRequest(
            f"header Inference-Header-Content-Length: got {header_length}, "
            f"expected 1 to the length of the body, {len(body)}"
        )
    return _decode_body(head), tail


def _decode_body(head: bytes | memoryview) -> InferBody:
    try:
        message = _BODY.decode(head)
    except (ValueError, RecursionError) as error:
        text = json_error(error)
        if "expected" not in text.lower():  # no JSON, or the body of something else
            text += ', expected a JSON object with "inputs": [{"name", "datatype", "shape", "data"}, ...]'
        raise MalformedRequest(f"body: {text}") from error
    check_keys(head)
    return message


def check_keys(json: bytes | memoryview) -> None:
    """Raises `MalformedRequest` where an object of a JSON text, found valid, has a key twice: which one is meant?"""
    if (key := twofold_key(json)) is not None:
        text = key.decode(errors="replace")  # half a surrogate pair is no UTF-8
        raise MalformedRequest(f"body: got key {shown(text)} twice in one object, expected it once")


def check_parameters(priority: int, timeout_us: int, sequence_id: int | str | None) -> None:
    """Raises `MalformedRequest` for parameters of a request that are out of range or not offered."""
    if priority < 0:
        raise MalformedRequest(f"parameters.priority: got {shown(priority)}, expected 0 or more")
    if timeout_us < 0:
        raise MalformedRequest(f"parameters.timeout: got {shown(timeout_us)}, expected 0 or more microseconds")
    if sequence_id:
        raise MalformedRequest("parameters.sequence_id: got a sequence, expected none: models here keep no state")


def _count(shape: list[int]) -> int:
    """Elements of a shape, exact: Python integers do not overflow."""
    count = 1
    for dim in shape:
        count *= dim
    return count
