"""What only some installations have: the extras of the package, and how to get one that is missing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from headrace.errors import BackendUnavailable


def how_to_install(extra: str) -> str:
    """The command that brings an extra, for errors."""
    return f"pip install 'headrace[{extra}]' (in a checkout: pip install '.[{extra}]')"


@contextlib.contextmanager
def needs(extra: str, what: str, otherwise: str = "") -> Iterator[None]:
    """Around imports of packages that come with an extra.

    Args:
        extra: Its name in ``setup.py``.
        what: Who needs it, for the error.
        otherwise: What else would help, for the error.

    Raises:
        BackendUnavailable: One of them is not installed. A module of Headrace's own that is missing is passed on.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "headrace":
            raise
        raise BackendUnavailable(
            f"{what}: got {error}, expected it installed: {how_to_install(extra)}{otherwise}"
        ) from error
