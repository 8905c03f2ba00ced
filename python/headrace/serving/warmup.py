"""The Requests a model is warmed with, and compared with the reference backend on, before it is called ready."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from headrace.backend import Request
from headrace.errors import ConfigError, RequestError
from headrace.samples import make_request, read_request, two_requests
from headrace.signature import Signature

# A file of this name in a model's folder, one array per input, is used in place of a made-up Request.
WARMUP_FILE = "warmup.npz"
# A folder beside it with more of them, for the comparison with the reference backend.
SAMPLES = "samples"


def warmup_request(signature: Signature, folder: Path | None = None) -> Request:
    """The Request to warm a model with: ``warmup.npz`` where the folder has one, else a made-up one of least size.

    Args:
        signature: The model's signature.
        folder: The model's folder in its repository.

    Raises:
        ConfigError: ``warmup.npz`` is there but cannot be read.
    """
    if folder is not None and (path := folder / WARMUP_FILE).is_file():
        return _read(path, signature)
    return make_request(signature)


def parity_requests(
    signature: Signature,
    folder: Path | None,
    run_batch: Callable[[Sequence[Request]], object],
    ranges: Mapping[str, int],
) -> list[Request]:
    """The Requests to compare a model with the reference backend on, the most important first.

    Where the folder has ``warmup.npz`` or a folder ``samples`` with more of its kind, those: recorded Requests show
    what made-up ones cannot. Else one of least size, and one of a few rows, tokens or pixels.

    Args:
        signature: The model's signature.
        folder: The model's folder in its repository.
        run_batch: Runs Requests; see `headrace.samples.two_requests`.
        ranges: Below which the integers of its inputs stay; see `headrace.graph.index_ranges`.

    Raises:
        ConfigError: One of the files cannot be read.
    """
    if folder is not None:
        given = [path for path in (folder / WARMUP_FILE, *sorted((folder / SAMPLES).glob("*.npz"))) if path.is_file()]
        if given:
            return [_read(path, signature) for path in given]
    return two_requests(signature, run_batch, ranges)


def _read(path: Path, signature: Signature) -> Request:
    try:
        return read_request(path, signature)
    except RequestError as error:
        raise ConfigError(str(error)) from error
