"""Reads ONNX files without holding their weights.

`read` walks the protobuf wire format of the file, takes the graph out, and leaves every large initializer where it
is: the IR gets a tensor that reads its bytes from the file when asked, and keeps nothing. A Model so costs no memory
for weights until a Backend prepares them. The file stays open, so replacing it (a rename over it) does no harm.

Wire format: https://protobuf.dev/programming-guides/encoding/; messages and field numbers: onnx/onnx.proto.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.errors import InvalidModel
from headrace.graph._onnx_ir import ir
from headrace.graph.edit import static_dims

if TYPE_CHECKING:
    import onnx

# Initializers of fewer bytes stay in the proto: passes look at small constants all the time.
_DETACH_BYTES_MIN = 4096

_MODEL_GRAPH, _GRAPH_INITIALIZER = 7, 5
_TENSOR_DATA_TYPE, _TENSOR_NAME, _TENSOR_RAW_DATA = 2, 8, 9
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


class DataFile:
    """A file that tensors read their bytes from. Safe to use from several threads; closed when nothing refers to it.

    Args:
        path: The file, opened at once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        self.size = os.fstat(self._fd).st_size

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            os.close(self._fd)

    def read(self, offset: int, length: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """`length` bytes from `offset` on, in fresh memory aligned for any dtype.

        Raises:
            InvalidModel: The file ends before that.
        """
        data = np.empty(length, dtype=np.uint8)
        view, done = data.data, 0
        while done < length:
            count = os.preadv(self._fd, [view[done:]], offset + done)
            if count == 0:
                raise InvalidModel(f"{self.path}: ends at byte {offset + done}, expected {offset + length} or more")
            done += count
        return data

    def sha256(self) -> str:
        """The SHA-256 of the whole file, in hex."""
        digest = hashlib.sha256()
        for offset in range(0, self.size, 1 << 20):
            digest.update(self.read(offset, min(1 << 20, self.size - offset)).data)
        return digest.hexdigest()


def file_tensor(
    file: DataFile, offset: int, length: int, dtype: ir.DataType, shape: ir.Shape, name: str
) -> ir.LazyTensor:
    """A tensor whose elements lie little-endian in `file`; each access reads them anew."""

    def read_tensor() -> ir.TensorProtocol:
        array = file.read(offset, length).view(dtype.numpy()).reshape(shape.numpy())
        return ir.Tensor(array, dtype=dtype, shape=shape, name=name)

    return ir.LazyTensor(read_tensor, dtype=dtype, shape=shape, name=name)


def read(path: Path) -> tuple[ir.Model, str]:
    """Reads an ONNX file.

    Returns:
        The model, whose large initializers read from the file on demand, and its digest; see `sha256_of`.

    Raises:
        InvalidModel: It is not an ONNX file, or an initializer's bytes do not fit its shape.
        FileNotFoundError: There is no such file.
    """
    if path.is_dir():
        others = "headrace.load_plan maps a saved plan; `headrace serve` takes a folder of models"
        raise InvalidModel(f"{path}: got a folder, expected an .onnx file ({others})")
    file = DataFile(path)
    model, detached = _graph(file, path)
    for name, (offset, length) in detached.items():
        value = model.graph.initializers[name]
        tensor = value.const_value
        assert tensor is not None
        dtype, shape = tensor.dtype, ir.Shape(static_dims(tensor))
        _check_bytes(str(path), name, dtype, shape, length)
        value.const_value = file_tensor(file, offset, length, dtype, shape, name)
    files = _locations(model)
    _attach_external_data(model, path)
    return model, _digest(file, path, files)


def sha256_of(path: Path) -> str:
    """The SHA-256 of an ONNX file, in hex; where it keeps weights in other files, that of all their SHA-256 and names.

    Raises:
        InvalidModel: It is not an ONNX file.
        FileNotFoundError: There is no such file, or not one of those it names.
    """
    return _digest(DataFile(path), path, external_files(path))


def _digest(file: DataFile, path: Path, others: list[str]) -> str:
    whole = file.sha256()
    if not others:
        return whole
    parts = [whole, *(f"{name} {DataFile(path.parent / name).sha256()}" for name in others)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def external_files(path: Path) -> list[str]:
    """The files that an ONNX file keeps weights in beside itself, as it names them; it reads no weights.

    Raises:
        InvalidModel: It is not an ONNX file.
        FileNotFoundError: There is no such file.
    """
    return _locations(_graph(DataFile(path), path)[0])


def _locations(model: ir.Model) -> list[str]:
    tensors = (value.const_value for graph in model.graphs() for value in graph.initializers.values())
    return sorted({str(tensor.location) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)})


def _graph(file: DataFile, path: Path) -> tuple[ir.Model, dict[str, tuple[int, int]]]:
    """The model without its large initializers, and where in the file each of these lies."""
    import onnx

    try:
        stripped, detached = _detach_weights(file)
        proto = onnx.ModelProto.FromString(stripped)
    except (ValueError, IndexError, EOFError, _decode_error()) as error:
        raise InvalidModel(f"{path}: not an ONNX file: {error}") from error
    if not proto.HasField("graph") or not proto.opset_import:
        raise InvalidModel(f"{path}: not an ONNX file: expected a ModelProto with a graph and an opset_import")
    return from_proto(proto, str(path)), detached


def from_proto(proto: onnx.ModelProto, where: str) -> ir.Model:
    """Turns a ModelProto into IR, naming `where` in errors.

    Raises:
        InvalidModel: The proto breaks the rules of ONNX.
    """
    try:
        return ir.serde.deserialize_model(proto)
    except (ir.serde.SerdeError, ValueError, KeyError, TypeError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise InvalidModel(f"{where}: not a valid ONNX model: {cause}") from error


def _decode_error() -> type[Exception]:
    from google.protobuf.message import DecodeError

    error: type[Exception] = DecodeError
    return error


def _check_bytes(where: str, name: str, dtype: ir.DataType, shape: ir.Shape, length: int) -> None:
    expected = int(np.prod(shape.numpy(), dtype=np.int64)) * dtype.itemsize
    if expected != length:
        raise InvalidModel(
            f"{where}: initializer {name!r} holds {length} bytes, expected {expected} for {dtype.name}{list(shape)}"
        )


def _attach_external_data(model: ir.Model, path: Path) -> None:
    """Makes tensors stored beside the model read from their own files, which must lie in the model's folder."""
    folder = path.resolve().parent
    files: dict[Path, DataFile] = {}
    for graph in model.graphs():
        for name, value in graph.initializers.items():
            tensor = value.const_value
            if not isinstance(tensor, ir.ExternalTensor):
                continue
            location = (folder / tensor.location).resolve()
            if not location.is_relative_to(folder):
                raise InvalidModel(
                    f"{path}: initializer {name!r} lies in {str(location)!r}, expected a file in {str(folder)!r}"
                )
            if location not in files:
                if not location.is_file():
                    raise InvalidModel(f"{path}: initializer {name!r} lies in {str(location)!r}, which does not exist")
                files[location] = DataFile(location)
            dtype, shape, offset = tensor.dtype, ir.Shape(static_dims(tensor)), tensor.offset or 0
            length = tensor.length if tensor.length is not None else files[location].size - offset
            _check_bytes(str(path), name, dtype, shape, length)
            if offset + length > files[location].size:
                raise InvalidModel(
                    f"{path}: initializer {name!r} ends at byte {offset + length} of {str(location)!r}, "
                    f"which has {files[location].size}"
                )
            value.const_value = file_tensor(files[location], offset, length, dtype, shape, name)


# ---- the wire format ----


class _Window:
    """Random access to a file's bytes through one block at a time, so that skipping weights reads none of them."""

    _BLOCK = 1 << 16

    def __init__(self, file: DataFile) -> None:
        self._file, self._start, self._block = file, 0, b""

    def bytes(self, offset: int, length: int) -> bytes:
        end = offset + length
        if end > self._file.size:
            raise ValueError(f"it ends at byte {self._file.size}, expected {end} or more")
        if length > self._BLOCK:
            return self._file.read(offset, length).tobytes()
        if offset < self._start or end > self._start + len(self._block):
            self._start = offset
            self._block = self._file.read(offset, min(self._BLOCK, self._file.size - offset)).tobytes()
        return self._block[offset - self._start : end - self._start]

    def varint(self, offset: int, end: int) -> tuple[int, int]:
        value, data = 0, self.bytes(offset, min(10, end - offset))
        for index, byte in enumerate(data):
            value |= (byte & 0x7F) << (7 * index)
            if not byte & 0x80:
                return value, offset + index + 1
        raise ValueError(f"malformed varint at byte {offset}")


def _fields(window: _Window, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """The fields of one message: (field number, where the field starts, where its payload starts, where it ends)."""
    at = start
    while at < end:
        tag, payload = window.varint(at, end)
        field, wire = tag >> 3, tag & 7
        if wire == _LENGTH:
            length, payload = window.varint(payload, end)
            after = payload + length
        elif wire == _VARINT:
            _, after = window.varint(payload, end)
        elif wire in (_FIXED64, _FIXED32):
            after = payload + (8 if wire == _FIXED64 else 4)
        else:
            raise ValueError(f"unknown wire type {wire} at byte {at}")
        if after > end or field == 0:
            raise ValueError(f"malformed field at byte {at}")
        yield field, at, payload, after
        at = after


def _message(field: int, body: bytes) -> bytes:
    return _varint(field << 3 | _LENGTH) + _varint(len(body)) + body


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _detach_weights(file: DataFile) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """The serialized ModelProto without its large initializers' bytes; name -> (offset, length) of those."""
    window, detached = _Window(file), {}
    model = bytearray()
    for field, start, payload, end in _fields(window, 0, file.size):
        if field != _MODEL_GRAPH:
            model += window.bytes(start, end - start)
            continue
        graph = bytearray()
        for graph_field, at, inner, after in _fields(window, payload, end):
            if graph_field == _GRAPH_INITIALIZER and after - inner >= _DETACH_BYTES_MIN:
                tensor, found = _detach_tensor(window, inner, after)
                graph += _message(_GRAPH_INITIALIZER, tensor)
                detached.update(found)
            else:
                graph += window.bytes(at, after - at)
        model += _message(_MODEL_GRAPH, bytes(graph))
    return bytes(model), detached


def _detach_tensor(window: _Window, start: int, end: int) -> tuple[bytes, dict[str, tuple[int, int]]]:
    kept, name, raw, itemsize = bytearray(), "", None, 0.0
    for field, at, payload, after in _fields(window, start, end):
        if field == _TENSOR_RAW_DATA and after - payload >= _DETACH_BYTES_MIN:
            raw = (payload, after - payload)
            continue
        if field == _TENSOR_NAME:
            name = window.bytes(payload, after - payload).decode()
        elif field == _TENSOR_DATA_TYPE:
            itemsize = ir.DataType(window.varint(payload, after)[0]).itemsize
        kept += window.bytes(at, after - at)
    if raw is None:
        return bytes(kept), {}
    if itemsize < 1:  # packed 4-bit types: the IR unpacks them, so it must see the bytes
        return window.bytes(start, end - start), {}
    return bytes(kept), {name: raw}
