"""The request ledger on disk: what every process accepted and how it ended, whatever became of the process.

A Batcher that is given a file keeps its books there, in memory shared with the file, so that they are exact even after
``kill -9``: what such a process had accepted and not answered counts as lost. The file's first 256 bytes are one JSON
object that says whose books they are; the counts follow as 64-bit integers in the machine's own order
(``csrc/batcher/ledger.h``). A lock on the file shows that the process lives.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from headrace.errors import ConfigError

SUFFIX = ".ledger"
_HEADER_BYTES = 256
_COUNTS = struct.Struct("=8q")
_NAMES = ("accepted", "refused", "ok", "failed", "expired", "cancelled", "waiting", "running")
_ENDS = ("ok", "failed", "expired", "cancelled")


class Owner(msgspec.Struct, frozen=True):
    """Whose books they are.

    Attributes:
        model: The model's name.
        version: Its version.
        host: The machine's name.
        pid: The process.
        started: Seconds since 1970.
    """

    model: str
    version: str
    host: str
    pid: int
    started: float


@dataclass(frozen=True)
class Books:
    """The counts of one process for one version of one model, or the sum of several.

    accepted = ok + failed + expired + cancelled + queued + lost.

    Attributes:
        accepted: Requests taken in.
        refused: Requests turned away at admission, never accepted.
        ok: Answered with a Result.
        failed: Ended with an error of the Engine.
        expired: Not computed, because their deadline passed.
        cancelled: Given up by their caller.
        queued: Waiting or running now.
        lost: Accepted by a process that is gone, and never answered.
    """

    accepted: int = 0
    refused: int = 0
    ok: int = 0
    failed: int = 0
    expired: int = 0
    cancelled: int = 0
    queued: int = 0
    lost: int = 0

    def __add__(self, other: Books) -> Books:
        return Books(*(a + b for a, b in zip(self._values(), other._values(), strict=True)))

    @classmethod
    def of_stats(cls, stats: Mapping[str, Any]) -> Books:
        """The books of a living process, of `headrace.Batcher.stats`."""
        return cls(**{name: int(stats[name]) for name in ("accepted", "refused", *_ENDS, "queued")})

    @property
    def balanced(self) -> bool:
        """Whether every accepted Request is accounted for, and none twice."""
        ended = self.ok + self.failed + self.expired + self.cancelled
        return self.queued >= 0 and self.lost >= 0 and self.accepted == ended + self.queued + self.lost

    def _values(self) -> tuple[int, ...]:
        return tuple(vars(self).values())


@dataclass(frozen=True)
class Entry:
    """One file: whose books, whether the process still lives, and the counts."""

    owner: Owner
    alive: bool
    books: Books = field(default_factory=Books)


def create(folder: str | Path, model: str, version: str) -> int:
    """Makes the file of a new Batcher's books.

    Args:
        folder: Where the ledger is; made where it is not there.
        model: The model's name.
        version: Its version.

    Returns:
        The file's descriptor, locked, for the Batcher to take over.

    Raises:
        ConfigError: The file cannot be made there.
    """
    owner = Owner(model, version, socket.gethostname(), os.getpid(), time.time())
    header = msgspec.json.encode(owner)
    if len(header) > _HEADER_BYTES:
        raise ConfigError(f"ledger: got {len(header)} bytes of names for {model!r}, expected at most {_HEADER_BYTES}")
    path = Path(folder) / f"{model}-{version}-{owner.pid}-{time.time_ns()}{SUFFIX}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Readers see whole files only.
        draft = path.with_suffix(".draft")
        fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            os.write(fd, header.ljust(_HEADER_BYTES) + _COUNTS.pack(*[0] * len(_NAMES)))
            draft.rename(path)
        except BaseException:
            os.close(fd)
            draft.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConfigError(f"ledger: got {error}, expected a folder that files can be made in") from error
    return fd


def read(folder: str | Path) -> list[Entry]:
    """Every process's books, oldest first.

    Args:
        folder: Where the ledger is.

    Raises:
        ConfigError: There is no such folder, or a file in it is no ledger.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ConfigError(f"ledger: got no folder {str(folder)!r}, expected the one the models were served with")
    return sorted((_read_file(path) for path in folder.glob(f"*{SUFFIX}")), key=lambda entry: entry.owner.started)


def totals(entries: Iterable[Entry]) -> dict[str, Books]:
    """The books of each model, all versions and processes together."""
    sums: dict[str, Books] = {}
    for entry in entries:
        sums[entry.owner.model] = sums.get(entry.owner.model, Books()) + entry.books
    return sums


def _read_file(path: Path) -> Entry:
    with path.open("rb") as file:
        # Before the counts: a process that ends in between has written its last ones by then.
        alive = _locked(file.fileno())
        content = file.read(_HEADER_BYTES + _COUNTS.size)
    try:
        owner = msgspec.json.decode(content[:_HEADER_BYTES], type=Owner)
        counts = dict(zip(_NAMES, _COUNTS.unpack(content[_HEADER_BYTES:]), strict=True))
    except (msgspec.DecodeError, struct.error) as error:
        raise ConfigError(f"{path}: got {error}, expected a ledger file") from error
    ended = {name: counts[name] for name in _ENDS}
    # Not waiting + running: a process killed between two counts must not unbalance the sum.
    left = counts["accepted"] - sum(ended.values())
    books = Books(counts["accepted"], counts["refused"], **ended, **({"queued": left} if alive else {"lost": left}))
    return Entry(owner, alive, books)


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False
