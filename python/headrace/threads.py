"""How many threads may be asked for: everything that takes a number of threads has it checked here."""

from __future__ import annotations

import operator

from headrace.errors import ConfigError

# More than a machine of fewer than 256 cores has a use for, and so few that starting them does no harm.
THREADS_MAX = 1024


def checked_threads(threads: object, where: str = "threads") -> int:
    """`threads` as a number of threads that can be started here.

    Args:
        threads: What somebody asked for.
        where: Who asked, for the error.

    Raises:
        ConfigError: It is no integer, below 1, or above both `THREADS_MAX` and four times the usable cores: the
            operating system would start them all and have time for nothing else.
    """
    try:
        count = None if isinstance(threads, bool) else operator.index(threads)  # type: ignore[arg-type]
    except TypeError:
        count = None
    if count is not None and 1 <= count <= THREADS_MAX:
        return count
    from headrace.hardware import usable_cores

    most = max(THREADS_MAX, 4 * usable_cores())
    if count is None or not 1 <= count <= most:
        raise ConfigError(f"{where}: got {threads!r}, expected an integer from 1 to {most}")
    return count
