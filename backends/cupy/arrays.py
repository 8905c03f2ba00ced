"""What the ops of this backend share: the library behind an array, dtypes, and numbers read back by the host.

Ops are written in the Python array API (https://data-apis.org/array-api, 2024.12), so that one text runs on cupy, on
numpy and on anything else that keeps to that standard. Texts are object arrays, and always numpy's.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import array_api_compat
import numpy as np

from headrace.graph.script import Untranslated

Array = Any

# ONNX TensorProto.DataType -> name in the array API. float16 is no part of it, but numpy and cupy have it.
DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16",
    11: "float64", 12: "uint32", 13: "uint64",
}  # fmt: skip


@lru_cache(maxsize=64)
def _library(kind: type) -> Any:
    if issubclass(kind, np.ndarray | np.generic):
        import array_api_compat.numpy

        return array_api_compat.numpy
    return None


def library(array: Array) -> Any:
    """The array API's functions for `array`."""
    found = _library(type(array))
    return array_api_compat.array_namespace(array) if found is None else found


def dtype_name(code: int) -> str:
    """The name of an ONNX element type.

    Raises:
        Untranslated: The array API has no such dtype.
    """
    if code not in DTYPES:
        raise Untranslated(f"the array API has no dtype for ONNX element type {code}")
    return DTYPES[code]


def dtype_of(xp: Any, name: str) -> Any:
    """The dtype called `name` in library `xp`."""
    return getattr(xp, name)


def same_place(array: np.ndarray[Any, Any], like: Array) -> Array:
    """`array` in the library and on the device of `like`."""
    if isinstance(like, np.ndarray | np.generic):
        return array
    return library(like).asarray(array, device=array_api_compat.device(like))


class Placed:
    """A constant of an op's own, copied once to every device it is wanted on."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self._array = np.array(array, order="C")
        self._copies: dict[tuple[type, str], Array] = {}

    def like(self, other: Array) -> Array:
        """It, in the library and on the device of `other`."""
        if isinstance(other, np.ndarray | np.generic):
            return self._array
        key = (type(other), str(array_api_compat.device(other)))
        if key not in self._copies:
            self._copies[key] = same_place(self._array, other)
        return self._copies[key]


def ints(array: Array) -> list[int]:
    """The elements of a vector of integers, or of a scalar, as Python ints."""
    return [int(item) for item in to_numpy(array).reshape(-1)]


def number(array: Array) -> Any:
    """The one element of `array`, as a Python number."""
    return to_numpy(array).reshape(-1)[0].item()


def to_numpy(array: Array) -> np.ndarray[Any, Any]:
    """`array` on the host; waits for the device."""
    if isinstance(array, np.ndarray | np.generic):
        return np.asarray(array)
    if hasattr(array, "get"):  # cupy
        copied: np.ndarray[Any, Any] = array.get()
        return copied
    return np.from_dlpack(array.cpu() if hasattr(array, "cpu") else array)  # torch has it


def is_float(array: Array) -> bool:
    """Whether `array` has a real floating-point dtype."""
    if isinstance(array, np.ndarray | np.generic):
        return array.dtype.kind == "f"
    xp = library(array)
    return bool(xp.isdtype(array.dtype, "real floating"))


def size_of(dims: Any) -> int:
    """How many elements an array of `dims` has."""
    size = 1
    for dim in dims:
        size *= int(dim)
    return size
