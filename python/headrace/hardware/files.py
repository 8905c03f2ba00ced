"""Reading /proc and /sys: whatever cannot be read or understood is None."""

from __future__ import annotations

from pathlib import Path

# A range of CPUs that no machine has is somebody's mistake, not a set to build.
_CPUS_MAX = 1 << 16


def read(path: Path) -> str | None:
    """A file's text without the white space around it; None if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except (OSError, ValueError):  # a NUL byte in a path is a ValueError
        return None


def integer(text: str | None) -> int | None:
    """The decimal number that `text` is."""
    try:
        return None if text is None else int(text)
    except ValueError:
        return None


def hexadecimal(text: str) -> int | None:
    """The number that `text` is in hex, with or without 0x."""
    try:
        return int(text, 16)
    except ValueError:
        return None


def cpu_list(text: str | None) -> frozenset[int] | None:
    """The CPUs of a list such as ``0-3,8``; None if it is no such list. An empty list has none."""
    if text is None:
        return None
    cpus: set[int] = set()
    for part in filter(None, text.split(",")):
        first, dash, last = part.partition("-")
        low, high = integer(first), integer(last if dash else first)
        if low is None or high is None or not 0 <= low <= high < _CPUS_MAX:
            return None
        cpus.update(range(low, high + 1))
    return frozenset(cpus)


def numbered(folder: Path, prefix: str) -> list[tuple[int, Path]]:
    """The entries of a folder that are called `prefix` and a number, in the order of their numbers."""
    try:
        entries = list(folder.iterdir())
    except OSError:
        return []
    found = [(integer(entry.name.removeprefix(prefix)), entry) for entry in entries if entry.name.startswith(prefix)]
    return sorted((number, entry) for number, entry in found if number is not None and number >= 0)
