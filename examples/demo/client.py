"""The Open Inference Protocol with the binary tensor extension, from the client's side."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np

DATATYPES = {"float32": "FP32", "int64": "INT64"}
DTYPES = {datatype: dtype for dtype, datatype in DATATYPES.items()}
LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True)
class Body:
    """One request, ready to be sent as often as wanted, and the answer it must get.

    Attributes:
        payload: What goes over the wire.
        headers: The HTTP headers that belong to it.
        output: The output that is looked at.
        expected: What the framework the model came from answers for it.
    """

    payload: bytes
    headers: dict[str, str]
    output: str
    expected: np.ndarray


def encode(inputs: dict[str, np.ndarray], output: str, expected: np.ndarray) -> Body:
    """Packs `inputs` as one request that asks for `output` in binary."""
    tensors, chunks = [], []
    for name, array in inputs.items():
        raw = np.ascontiguousarray(array).tobytes()
        chunks.append(raw)
        tensors.append(
            {
                "name": name,
                "datatype": DATATYPES[array.dtype.name],
                "shape": list(array.shape),
                "parameters": {"binary_data_size": len(raw)},
            }
        )
    head = json.dumps({"inputs": tensors, "outputs": [{"name": output, "parameters": {"binary_data": True}}]}).encode()
    headers = {LENGTH: str(len(head)), "Content-Type": "application/octet-stream"}
    return Body(head + b"".join(chunks), headers, output, expected)


def decode(payload: bytes, length: str | None, output: str) -> np.ndarray:
    """Unpacks `output` from an answer's body.

    Args:
        payload: The whole body.
        length: The answer's Inference-Header-Content-Length, as it came; None where there was none.
        output: Name of the output.

    Raises:
        ValueError: The answer does not hold it in binary.
    """
    if length is None:
        raise ValueError(f"got an answer without {LENGTH}, expected binary output {output!r}")
    start = int(length)
    for tensor in json.loads(payload[:start])["outputs"]:
        size = tensor["parameters"]["binary_data_size"]
        if tensor["name"] == output:
            flat = np.frombuffer(payload[start : start + size], dtype=DTYPES[tensor["datatype"]])
            return flat.reshape(tensor["shape"])
        start += size
    raise ValueError(f"got no output {output!r} in the answer, expected it")
