"""The Request a model is warmed with before it is called ready."""

from __future__ import annotations

from pathlib import Path

from headrace.backend import Request
from headrace.errors import ConfigError, RequestError
from headrace.samples import make_request, read_request
from headrace.signature import Signature

# A file of this name in a model's folder, one array per input, is used in place of a made-up Request.
WARMUP_FILE = "warmup.npz"


def warmup_request(signature: Signature, folder: Path | None = None) -> Request:
    """The Request to warm a model with: ``warmup.npz`` where the folder has one, else a made-up one of least size.

    Args:
        signature: The model's signature.
        folder: The model's folder in its repository.

    Raises:
        ConfigError: ``warmup.npz`` is there but cannot be read.
    """
    if folder is not None and (path := folder / WARMUP_FILE).is_file():
        try:
            return read_request(path, signature)
        except RequestError as error:
            raise ConfigError(str(error)) from error
    return make_request(signature)
