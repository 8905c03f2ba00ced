"""A Model's signature: its named inputs and outputs, with dtypes and symbolic dims."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

# Open Inference Protocol datatype <-> Headrace dtype name. The dtype names are numpy's, plus "string" and "bfloat16".
OIP_FROM_DTYPE = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "bfloat16": "BF16",
    "string": "BYTES",
}
DTYPE_FROM_OIP = {oip: dtype for dtype, oip in OIP_FROM_DTYPE.items()}

Dim = int | str


@dataclass(frozen=True)
class TensorSpec:
    """One named input or output.

    Attributes:
        name: The tensor's name.
        dtype: A numpy dtype name, ``"bfloat16"`` or ``"string"``.
        dims: One entry per axis: an int, or the name of a symbolic dim. The same name in two
            inputs means that both axes must have the same length in one Request.
    """

    name: str
    dtype: str
    dims: tuple[Dim, ...]

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The dtype numpy arrays of this tensor have; strings are object arrays of ``str``."""
        if self.dtype == "string":
            return np.dtype(object)
        if self.dtype == "bfloat16":
            import ml_dtypes

            bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
            return bfloat16
        return np.dtype(self.dtype)

    @property
    def oip_datatype(self) -> str:
        """The Open Inference Protocol's name for the dtype."""
        return OIP_FROM_DTYPE[self.dtype]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.dims))}]"


@dataclass(frozen=True)
class Signature:
    """The named inputs and outputs of a Model, in the Model's own order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __str__(self) -> str:
        return f"({', '.join(map(str, self.inputs))}) -> ({', '.join(map(str, self.outputs))})"
