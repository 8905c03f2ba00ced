"""The ``data`` of an input in JSON: numbers, booleans or strings, flat or nested by axis, as one array.

Decoding a megabyte of numbers takes some 10 ms, in which an event loop would answer nobody else. Large data is
therefore decoded in parts, and whoever decodes may let others run between them: `JsonData.steps` is a generator that
yields there.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from typing import Any, NoReturn

import msgspec
import numpy as np

from headrace._core import is_finite
from headrace.errors import MalformedRequest, ShapeMismatch
from headrace.serving.oip import RANK_MAX
from headrace.serving.turns import PART_BYTES, PART_STRINGS, run_to_end
from headrace.signature import TensorSpec

FLOATS = {"float16", "float32", "float64", "bfloat16"}


class JsonData:
    """Decodes the data of one named input."""

    def __init__(self, spec: TensorSpec) -> None:
        self._spec = spec
        self._dtype = spec.numpy_dtype
        self._is_float = spec.dtype in FLOATS
        element: Any = float if self._is_float else {"string": str, "bool": bool}.get(spec.dtype, int)
        self._flat = msgspec.json.Decoder(list[element])
        # The slower ways to write the same data: null for NaN, and nested by axis.
        loose: Any = float | None if self._is_float else element
        rank = min(len(spec.dims), RANK_MAX)
        nested: Any = loose
        for _ in range(rank):
            nested = list[nested]
        self._nullable = msgspec.json.Decoder(list[loose])
        self._nested = msgspec.json.Decoder(nested)
        # Where data may be cut: between values, or between what the first axis counts; strings, which may hold either,
        # after so many of them.
        self._comma = re.compile(rb",")
        self._row_end = re.compile(rb"\]" + rb"\s*\]" * (rank - 2) + rb"\s*(,)")
        self._is_string = spec.dtype == "string"
        self._strings = re.compile(rb'(?:\s*+"[^"\\]*+(?:\\.[^"\\]*+)*+"\s*+,){%d}+' % PART_STRINGS)

    def decode(self, raw: msgspec.Raw, shape: list[int], count: int) -> np.ndarray:
        """Decodes `raw`.

        Args:
            raw: The data, as text.
            shape: The shape that the input declares, found right by the signature.
            count: The number of elements of that shape.

        Raises:
            MalformedRequest: A value is not of the input's kind, or does not fit its datatype.
            ShapeMismatch: The values are not as many, or not nested, as `shape` says.
        """
        if is_large(raw) and not self._is_string:
            return run_to_end(self.steps(raw, shape, count))
        try:
            values = self._flat.decode(raw)
            nested = False
        except (ValueError, RecursionError) as error:
            nested = "got `array`" in str(error) and len(self._spec.dims) > 1
            values = self._loose(raw, nested, "")
        return self._shaped(self._to_array(values), nested, shape, count)

    def steps(self, raw: msgspec.Raw, shape: list[int], count: int) -> Generator[None, None, np.ndarray]:
        """The same in parts: yields where others may run, and returns the array."""
        view = memoryview(raw)
        nested = self._looks_nested(view)
        if nested and self._is_string:
            return self.decode(raw, shape, count)
        arrays: list[np.ndarray] = []
        first = 0
        for part in self._parts(view, nested):
            arrays.append(self._decode_part(part, nested, first))
            if not (len(arrays[-1]) and len(arrays[0])) and len(arrays) > 1:
                self._refuse(f"got no value beside a comma in data, expected one at [{first}]")
            first += len(arrays[-1])
            yield
        return self._shaped(self._joined(arrays), nested, shape, count)

    def _looks_nested(self, view: memoryview) -> bool:
        return len(self._spec.dims) > 1 and bytes(view[:64]).lstrip(b" \t\r\n")[1:].lstrip(b" \t\r\n")[:1] == b"["

    def _parts(self, view: memoryview, nested: bool) -> Iterator[memoryview]:
        """Cuts the array `view` into arrays' insides, each but the last `PART_BYTES` long or of `PART_STRINGS`."""
        end = len(view)
        if view[0] != ord("[") or view[-1] != ord("]"):
            self._refuse("got data that is no array, expected one")
        end -= 1
        start = 1
        if self._is_string:
            while (found := self._strings.match(view, start, end)) is not None:
                yield view[start : found.end() - 1]
                start = found.end()
            yield view[start:end]
            return
        separator = self._row_end if nested else self._comma
        while (found := separator.search(view, start + PART_BYTES, end)) is not None:
            yield view[start : found.end() - 1]
            start = found.end()
        yield view[start:end]

    def _decode_part(self, part: memoryview, nested: bool, first: int) -> np.ndarray:
        text = b"".join((b"[", part, b"]"))
        where = f", counted from [{first}]" if first else ""
        if nested:
            return self._to_array(self._loose(text, True, where))
        try:
            values = self._flat.decode(text)
        except (ValueError, RecursionError):
            values = self._loose(text, False, where)
        return self._to_array(values)

    def _loose(self, text: bytes | msgspec.Raw, nested: bool, where: str) -> list[Any]:
        """The values in one of the slower forms, that which the client seems to have meant."""
        try:
            return (self._nested if nested else self._nullable).decode(text)
        except (ValueError, RecursionError) as error:
            self._refuse(f"{json_error(error)} in data{where}")

    def _to_array(self, values: list[Any]) -> np.ndarray:
        try:
            with np.errstate(over="ignore"):
                array = np.array(values, dtype=self._dtype)
        except (OverflowError, ValueError, TypeError) as error:
            self._refuse_fit(error)
        # A null became NaN, as it should. JSON has no Inf, so an Inf here is a number that did not fit.
        if self._is_float and not is_finite(array) and np.isinf(array).any():
            self._refuse(f"got a number in data beyond the range of {self._spec.oip_datatype}, expected it to fit")
        return array

    def _joined(self, arrays: list[np.ndarray]) -> np.ndarray:
        try:
            return np.concatenate(arrays)
        except ValueError as error:  # rows of different lengths
            self._refuse_fit(error)

    def _shaped(self, array: np.ndarray, nested: bool, shape: list[int], count: int) -> np.ndarray:
        if nested:
            if list(array.shape) != shape:
                raise ShapeMismatch(
                    f"input {self._spec.name!r}: got data nested as {list(array.shape)}, expected shape {shown(shape)}"
                )
            return array
        if len(array) != count:
            raise ShapeMismatch(
                f"input {self._spec.name!r}: got {len(array)} values in data, "
                f"expected {shown(count)} for shape {shown(shape)}"
            )
        return array.reshape(shape)

    def _refuse_fit(self, error: Exception) -> NoReturn:
        self._refuse(f"got data that does not fit {self._spec.oip_datatype} or its own nesting ({error})")

    def _refuse(self, message: str) -> NoReturn:
        raise MalformedRequest(f"input {self._spec.name!r}: {message}")


def is_large(raw: msgspec.Raw) -> bool:
    """Whether to decode `raw` in steps."""
    return len(memoryview(raw)) > PART_BYTES


def json_error(error: Exception) -> str:
    """What is wrong with a JSON text, for an error message."""
    if isinstance(error, RecursionError):
        return "got JSON nested too deep, expected an inference request"
    if isinstance(error, UnicodeDecodeError):
        return f"got text that is not UTF-8 ({error.reason}), expected UTF-8"
    return str(error)[:500]


def shown(value: object) -> str:
    """`value` for an error message, cut short: clients choose its length."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python prints
        return "a huge number"
    return text if len(text) <= 100 else f"{text[:100]}..."
