"""A client of the binary tensor data extension, written from its specification and sharing no code with the server."""

from __future__ import annotations

import json
import struct
from typing import Any

import ml_dtypes
import numpy as np

NUMPY = {
    "BOOL": "?", "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "i1", "INT16": "<i2",
    "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8", "BF16": ml_dtypes.bfloat16,
}  # fmt: skip


def to_bytes(array: np.ndarray, datatype: str) -> bytes:
    """Row-major little-endian values; strings with a length in front of each."""
    if datatype == "BYTES":
        texts = [text.encode() for text in array.ravel()]
        return b"".join(struct.pack("<I", len(text)) + text for text in texts)
    return np.ascontiguousarray(array).astype(NUMPY[datatype]).tobytes()


def binary_request(tensors: dict[str, tuple[str, np.ndarray]], **more: Any) -> tuple[bytes, dict[str, str]]:
    """Body and headers as the stock client sends them: every input in binary form, every output asked for in it."""
    inputs, tail = [], b""
    for name, (datatype, array) in tensors.items():
        blob = to_bytes(array, datatype)
        shape = list(array.shape)
        inputs.append(
            {"name": name, "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": len(blob)}}
        )
        tail += blob
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}, **more}).encode()
    return head + tail, {"Inference-Header-Content-Length": str(len(head))}


def read_answer(body: bytes, headers: dict[str, str]) -> dict[str, np.ndarray]:
    """The outputs of an answer, in whichever form each came."""
    length = headers.get("inference-header-content-length")
    head, tail = (body, b"") if length is None else (body[: int(length)], body[int(length) :])
    arrays: dict[str, np.ndarray] = {}
    for output in json.loads(head)["outputs"]:
        datatype, size = output["datatype"], output.get("parameters", {}).get("binary_data_size")
        if size is None:
            array = np.array(output["data"], dtype=object if datatype == "BYTES" else NUMPY[datatype])
        else:
            blob, tail = tail[:size], tail[size:]
            array = _texts(blob) if datatype == "BYTES" else np.frombuffer(blob, NUMPY[datatype])
        arrays[output["name"]] = array.reshape(output["shape"])
    assert not tail, "the answer has bytes that no output declares"
    return arrays


def _texts(blob: bytes) -> np.ndarray:
    texts = []
    while blob:
        (length,) = struct.unpack("<I", blob[:4])
        texts.append(blob[4 : 4 + length].decode())
        blob = blob[4 + length :]
    return np.array(texts, dtype=object)
