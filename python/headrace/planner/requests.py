"""The Requests that candidates are compared on: given ones, or some made from the signature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from headrace.errors import HeadraceError, ParityError
from headrace.samples import make_request

if TYPE_CHECKING:
    from headrace.backend import Request
    from headrace.engine import Engine

# Lengths of symbolic dims, the first of which the Model runs with: a text, an image, less.
_LENGTHS = (128, 224, 32, 16, 1)
_SEEDS = 3


def representative(
    engine: Engine, samples: Sequence[Request] | None = None, dims: Mapping[str, int] | None = None
) -> tuple[list[Request], str, dict[str, int] | None]:
    """Requests to measure with; where they come from, for people; and the symbolic dims of made ones.

    Args:
        engine: Must be able to run them.
        samples: Requests of the real traffic; None to make some: one row each, other symbolic dims of one length.
        dims: Lengths of symbolic dims for those that are made.

    Raises:
        RequestError: The samples do not fit the signature, or `dims` names a symbol that it does not have.
        ParityError: There are no samples, and the Model runs none of those that were made.
    """
    if samples:
        return [engine.check(sample) for sample in samples], f"{len(samples)} given requests", None
    symbols = {dim for spec in engine.signature.inputs for dim in spec.dims if isinstance(dim, str)}
    leading = {spec.dims[0] for spec in engine.signature.inputs if spec.dims}
    for length in _LENGTHS:
        lengths = {symbol: 1 if symbol in leading else length for symbol in symbols} | dict(dims or {})
        requests = [make_request(engine.signature, lengths, seed) for seed in range(_SEEDS)]
        try:
            engine.run_batch(requests)
        except HeadraceError:
            continue
        shown = ", ".join(f"{symbol}={length}" for symbol, length in sorted(lengths.items()))
        return requests, f"{_SEEDS} requests made from the signature{f' with {shown}' if shown else ''}", lengths
    raise ParityError(
        f"model {engine.name!r}: got no samples, and it runs none of those made from its signature "
        f"{engine.signature}; expected samples (or dims) to measure with"
    )
