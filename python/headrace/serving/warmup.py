"""The Request a model is warmed with before it is called ready."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from headrace.backend import Request
from headrace.errors import ConfigError
from headrace.signature import Signature

# A file of this name in a model's folder, one array per input, is used in place of a made-up Request.
WARMUP_FILE = "warmup.npz"


def warmup_request(signature: Signature, folder: Path | None = None) -> Request:
    """The Request to warm a model with: ``warmup.npz`` where the folder has one, else zeros of the smallest shape.

    Args:
        signature: The model's signature. Symbolic dims become 1, strings become ``""``.
        folder: The model's folder in its repository.

    Raises:
        ConfigError: ``warmup.npz`` is there but cannot be read.
    """
    if folder is not None and (path := folder / WARMUP_FILE).is_file():
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return {spec.name: arrays[spec.name] for spec in signature.inputs}
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"{path}: got {error}, expected one array for each of {signature}") from error
    request: dict[str, np.ndarray] = {}
    for spec in signature.inputs:
        shape = [1 if isinstance(dim, str) else dim for dim in spec.dims]
        fill = "" if spec.dtype == "string" else 0
        request[spec.name] = np.full(shape, fill, dtype=spec.numpy_dtype)
    return request
