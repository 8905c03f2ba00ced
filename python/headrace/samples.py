"""Sample Requests: made from a signature, or read from an .npz file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from headrace.backend import Request
from headrace.errors import RequestError
from headrace.signature import Signature, TensorSpec


def make_request(signature: Signature, dims: Mapping[str, int] | None = None, seed: int = 0) -> Request:
    """A Request of made-up values that fits the signature.

    Floats are normal with variance 1. Integers are 0 or 1, which every embedding table and every class index can
    take; inputs whose name contains "mask" are all ones. Strings are ``"a"``.

    Args:
        signature: What to fit.
        dims: Length of each symbolic dim; those not named are 1.
        seed: Of the random values.

    Raises:
        RequestError: `dims` names a symbol the signature does not have.
    """
    dims = dict(dims or {})
    symbols = {dim for spec in signature.inputs for dim in spec.dims if isinstance(dim, str)}
    if unknown := set(dims) - symbols:
        raise RequestError(f"got dims {sorted(unknown)}, expected some of {sorted(symbols)} in {signature}")
    rng = np.random.default_rng(seed)
    return {spec.name: _array(spec, dims, rng) for spec in signature.inputs}


def _array(spec: TensorSpec, dims: Mapping[str, int], rng: np.random.Generator) -> np.ndarray:
    shape = [dims.get(dim, 1) if isinstance(dim, str) else dim for dim in spec.dims]
    dtype = spec.numpy_dtype
    if spec.dtype == "string":
        return np.full(shape, "a", dtype=object)
    if "mask" in spec.name.lower():
        return np.ones(shape, dtype=dtype)
    if dtype.kind in "iub":
        return rng.integers(0, 2, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def read_request(path: str | Path, signature: Signature) -> Request:
    """The Request in an .npz file: one array per input, by name.

    Raises:
        RequestError: The file cannot be read or lacks an input.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {spec.name: arrays[spec.name] for spec in signature.inputs}
    except (OSError, ValueError, KeyError) as error:
        raise RequestError(f"{path}: got {error}, expected an .npz with one array for each of {signature}") from error
