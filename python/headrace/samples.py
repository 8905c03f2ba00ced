"""Sample Requests: made from a signature, or read from an .npz file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from headrace.backend import Request
from headrace.errors import HeadraceError, RequestError
from headrace.signature import Signature, TensorSpec

# Lengths of symbolic dims in generated samples: one row, a short text, an image.
_SAMPLE_DIMS = (1, 16, 224)
# The first dim is a batch, of which a few do.
_SAMPLE_ROWS_MAX = 4
_SAMPLES_PER_LENGTH = 3
# Of the larger of two: rows of the batch, and whatever else has a length.
_FEW_ROWS, _FEW_OTHERS = 3, 16


def make_request(
    signature: Signature,
    dims: Mapping[str, int] | None = None,
    seed: int = 0,
    ranges: Mapping[str, int] | None = None,
) -> Request:
    """A Request of made-up values that fits the signature.

    Floats are normal with variance 1. Integers are 0 or 1, which every embedding table and every class index can
    take, unless `ranges` allows more; inputs whose name contains "mask" are all ones. Strings are ``"a"``.

    Args:
        signature: What to fit.
        dims: Length of each symbolic dim; those not named are 1.
        seed: Of the random values.
        ranges: Below which integers the named inputs stay (`headrace.graph.index_ranges`).

    Raises:
        RequestError: `dims` names a symbol the signature does not have.
    """
    dims = dict(dims or {})
    symbols = {dim for spec in signature.inputs for dim in spec.dims if isinstance(dim, str)}
    if unknown := set(dims) - symbols:
        raise RequestError(f"got dims {sorted(unknown)}, expected some of {sorted(symbols)} in {signature}")
    rng = np.random.default_rng(seed)
    ranges = ranges or {}
    return {spec.name: _array(spec, dims, rng, ranges.get(spec.name, 2)) for spec in signature.inputs}


def sample_requests(
    signature: Signature, run_batch: Callable[[Sequence[Request]], object], ranges: Mapping[str, int] | None = None
) -> list[Request]:
    """Those Requests made from a signature that a Model can run: a CNN, say, needs images of some size.

    Args:
        signature: What to fit.
        run_batch: Runs Requests; those it fails at with an error of Headrace's are left out.
        ranges: As for `make_request`; where a Request with such integers fails, they are 0 and 1.
    """
    symbols = {dim for spec in signature.inputs for dim in spec.dims if isinstance(dim, str)}
    leading = {spec.dims[0] for spec in signature.inputs if spec.dims}
    requests = []
    for length in _SAMPLE_DIMS:
        dims = {symbol: min(length, _SAMPLE_ROWS_MAX) if symbol in leading else length for symbol in symbols}
        for seed in range(_SAMPLES_PER_LENGTH):
            request = _that_runs(run_batch, signature, dims, seed, ranges)
            if request is None:
                break
            requests.append(request)
    return requests


def two_requests(
    signature: Signature,
    run_batch: Callable[[Sequence[Request]], object] | None = None,
    ranges: Mapping[str, int] | None = None,
) -> list[Request]:
    """Two made-up Requests that the reference backend is soon done with: one of least size, one a little larger.

    Args:
        signature: What to fit.
        run_batch: Tells whether integers of these ranges fail, where there are any.
        ranges: As for `sample_requests`.
    """
    symbols = {dim for spec in signature.inputs for dim in spec.dims if isinstance(dim, str)}
    leading = {spec.dims[0] for spec in signature.inputs if spec.dims}
    larger = {symbol: _FEW_ROWS if symbol in leading else _FEW_OTHERS for symbol in symbols}
    requests = []
    for seed, dims in enumerate([{}, larger] if larger else [{}]):
        found = _that_runs(run_batch, signature, dims, seed, ranges) if run_batch and ranges else None
        requests.append(found or make_request(signature, dims, seed))
    return requests


def _that_runs(
    run_batch: Callable[[Sequence[Request]], object],
    signature: Signature,
    dims: Mapping[str, int],
    seed: int,
    ranges: Mapping[str, int] | None,
) -> Request | None:
    for some in (ranges, None) if ranges else (None,):
        request = make_request(signature, dims, seed, some)
        try:
            run_batch([request])
        except HeadraceError:
            continue
        return request
    return None


def _array(spec: TensorSpec, dims: Mapping[str, int], rng: np.random.Generator, below: int) -> np.ndarray:
    shape = [dims.get(dim, 1) if isinstance(dim, str) else dim for dim in spec.dims]
    dtype = spec.numpy_dtype
    if spec.dtype == "string":
        return np.full(shape, "a", dtype=object)
    if "mask" in spec.name.lower():
        return np.ones(shape, dtype=dtype)
    if dtype.kind in "iu":
        return rng.integers(0, min(below, np.iinfo(dtype).max), shape).astype(dtype)
    if dtype.kind == "b":
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
