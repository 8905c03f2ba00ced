"""Better words for Requests that were refused, from what the caller really passed.

Only what failed comes here: nothing of this is on the way of a Request that fits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from headrace.errors import DtypeMismatch, MalformedRequest, MissingInput, RequestError, UnknownInput
from headrace.signature import Signature, TensorSpec


def refuse(signature: Signature, request: Any, error: Exception) -> NoReturn:
    """Raises what a caller is told whose Request was refused.

    Args:
        signature: The Model's.
        request: What should have been the Request.
        error: How it failed, which is raised itself where it says what is wrong.

    Raises:
        RequestError: `request` is none, or does not fit.
        Exception: `error`.
    """
    explained = _explained(signature, request, error)
    if explained is None:
        raise error
    raise explained from error


def refuse_batch(signature: Signature, requests: Any, error: Exception) -> NoReturn:
    """Raises what a caller is told whose Batch was refused; as `refuse`."""
    if isinstance(requests, Mapping | str | np.ndarray) or not isinstance(requests, Iterable):
        expected = f"a sequence of requests, each {_form(signature)}"
        raise MalformedRequest(f"run_batch: got {_kind(requests)}, expected {expected}") from error
    for request in requests if isinstance(requests, Sequence) else ():  # an iterator has nothing left to look at
        explained = _explained(signature, request, error)
        if explained is not None:
            raise explained from error
    raise error


def _explained(signature: Signature, request: Any, error: Exception) -> RequestError | None:
    """What is wrong with a Request that was refused with `error`; None where that says it."""
    if not isinstance(request, Mapping):
        return MalformedRequest(f"request: got {_kind(request)}, expected {_form(signature)}")
    specs = {spec.name: spec for spec in signature.inputs}
    unknown = [name for name in request if name not in specs]
    if unknown and isinstance(error, MissingInput | UnknownInput | TypeError):
        missing = [name for name in specs if name not in request]
        got = f"inputs: got {', '.join(map(repr, unknown))}"
        if not missing:
            return UnknownInput(f"{got}, expected only: {', '.join(specs)}")
        return MissingInput(f"{got}, expected {', '.join(str(specs[name]) for name in missing)}")
    if not isinstance(error, DtypeMismatch | TypeError | ValueError):
        return None
    for name, spec in specs.items():
        value = request.get(name)
        if name in request and value is None:
            return DtypeMismatch(f"input {name!r}: got None, expected {spec}")
        # numpy takes Python's numbers for float64 and int64.
        if isinstance(value, list | tuple | int | float) and f"input {name!r}: got dtype" in str(error):
            hint = f"numpy.asarray(..., dtype={spec.dtype!r})"
            return DtypeMismatch(f"{error}: a {type(value).__name__} becomes that, pass {hint}")
        if f"input {name!r}: got an element of type" in str(error):
            found = _object_array(spec, value)
            if found is not None:
                return found
    return None


def _object_array(spec: TensorSpec, value: Any) -> RequestError | None:
    """What is wrong with an array of Python objects, which is taken for one of strings; None where nothing is."""
    array = np.asarray(value)
    if array.dtype != object:
        return None
    if spec.dtype != "string":
        return DtypeMismatch(
            f"input {spec.name!r}: got dtype object, expected {spec}: pass numpy.asarray(..., dtype={spec.dtype!r})"
        )
    for index, element in np.ndenumerate(array):
        if not isinstance(element, str | bytes):
            where = f"{element!r} (a {type(element).__name__}) at {list(index)}"
            return DtypeMismatch(f"input {spec.name!r}: got {where}, expected str everywhere: fill gaps with a str")
    return None


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def _form(signature: Signature) -> str:
    return f"a dict of arrays: {', '.join(map(str, signature.inputs))}"
