"""Inputs that lie on a device already: checked against the signature without bringing them to the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from headrace.errors import DtypeMismatch, MissingInput, ShapeMismatch, UnknownInput
from headrace.signature import Signature, TensorSpec

# DLPack's numbers of the kinds of memory that the host can read: its own, and what CUDA has pinned of it.
_HOST_KINDS = (1, 3)


def is_on_device(value: object) -> bool:
    """Whether `value` says by DLPack that it lies where the host cannot read it."""
    if isinstance(value, np.ndarray):
        return False
    ask = getattr(value, "__dlpack_device__", None)
    return ask is not None and int(ask()[0]) not in _HOST_KINDS


def check(signature: Signature, request: Mapping[str, Any]) -> dict[str, Any]:
    """A Request with such inputs, by the signature's rules: those on the host as C-contiguous numpy arrays.

    Raises:
        RequestError: It does not fit.
    """
    names = [spec.name for spec in signature.inputs]
    for name in request:
        if name not in names:
            raise UnknownInput(f"got input {name!r}, expected only: {', '.join(names)}")
    checked: dict[str, Any] = {}
    bound: dict[str, tuple[int, str]] = {}  # symbolic dim -> its length, and the input that has it
    for spec in signature.inputs:
        if spec.name not in request:
            raise MissingInput(f"input {spec.name!r}: got none, expected {spec}")
        value = request[spec.name]
        if not is_on_device(value):
            value = np.asarray(value, order="C")
        dtype = str(value.dtype).rpartition(".")[2]  # torch says "torch.float32"
        if dtype != spec.dtype and not (spec.dtype == "string" and dtype == "object"):
            raise DtypeMismatch(f"input {spec.name!r}: got dtype {dtype}, expected {spec.dtype}")
        _bind(spec, tuple(value.shape), bound)
        checked[spec.name] = value
    return checked


def _bind(spec: TensorSpec, shape: tuple[int, ...], bound: dict[str, tuple[int, str]]) -> None:
    fits = len(shape) == len(spec.dims)
    if not fits or any(isinstance(dim, int) and dim != got for dim, got in zip(spec.dims, shape, strict=True)):
        raise ShapeMismatch(f"input {spec.name!r}: got shape {list(shape)}, expected {spec}")
    for dim, got in zip(spec.dims, shape, strict=True):
        if isinstance(dim, str):
            length, owner = bound.setdefault(dim, (got, spec.name))
            if length != got:
                raise ShapeMismatch(
                    f"input {spec.name!r}: got shape {list(shape)}, where dim {dim!r} is {got}, expected {length} as "
                    f"in input {owner!r}"
                )
