"""The request ledger on disk: what every process accepted and how it ended, whatever became of the process.

A Batcher that is given a file keeps its books there, in memory shared with the file, so that they are exact even after
``kill -9``: what such a process had accepted and not answered counts as lost. The file's first 256 bytes are one JSON
object that says whose books they are; the counts follow as 64-bit integers in the machine's own order
(``csrc/batcher/ledger.h``). A lock on the file shows that the process lives.

Files of processes that are gone do not pile up: once there are too many, what the oldest came to is kept in one file,
which appears whole before they go and names them, so that whoever reads meanwhile, or after a crash, counts none twice.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from headrace.errors import ConfigError
from headrace.whole_file import replacing

log = logging.getLogger("headrace.observe")

SUFFIX = ".ledger"
# What files that are gone came to, and the lock of whoever adds to it.
EARLIER = "earlier.books"
_FOLDING = "earlier.lock"
# From so many files on, those of processes that are gone are folded, but for the newest of them.
FILES_MAX = 1024
GONE_KEPT = 512
# So often the folder may change while it is read, which it does when files are folded.
READS_MAX = 100
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

    def closed(self) -> Books:
        """These books when their process is gone: what it had not answered is lost."""
        return replace(self, queued=0, lost=self.queued + self.lost)

    @property
    def balanced(self) -> bool:
        """Whether every accepted Request is accounted for, and none twice."""
        ended = self.ok + self.failed + self.expired + self.cancelled
        return min(self._values()) >= 0 and self.accepted == ended + self.queued + self.lost

    def _values(self) -> tuple[int, ...]:
        return tuple(vars(self).values())


class _Earlier(msgspec.Struct, frozen=True):
    """What files that are gone came to, by model, and the names of the last of them: some may still be there."""

    models: dict[str, Books] = {}
    files: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Entry:
    """One file: whose books, whether the process still lives, and the counts.

    What files that are gone came to is one entry for each model, without version, host and process.
    """

    owner: Owner
    alive: bool
    books: Books = field(default_factory=Books)


def create(folder: str | Path, model: str, version: str) -> int:
    """Makes the file of a new Batcher's books; folds old ones, where there are too many and that can be done.

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
    content = header.ljust(_HEADER_BYTES) + _COUNTS.pack(*[0] * len(_NAMES))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Readers see whole files only.
        draft = path.with_suffix(".draft")
        fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if (written := os.write(fd, content)) != len(content):
                raise OSError(f"got room for {written} bytes, expected {len(content)}")
            os.fsync(fd)
            draft.rename(path)
        except BaseException:
            os.close(fd)
            draft.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConfigError(f"ledger: got {error}, expected a folder that files can be made in") from error
    try:
        _fold(path.parent)
    except (ConfigError, OSError) as error:
        log.warning("the ledger's old files stay: %s", error)
    return fd


def read(folder: str | Path, strays: list[ConfigError] | None = None) -> list[Entry]:
    """Every process's books, oldest first; those of files that were folded come before all others.

    Args:
        folder: Where the ledger is.
        strays: Where to say which files cannot be read; None to raise the first one.

    Raises:
        ConfigError: There is no such folder, or a file in it is no ledger.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):
        raise ConfigError(f"ledger: got no folder {str(folder)!r}, expected the one the models were served with")
    try:
        entries, found = _read_at_rest(folder)
    except OSError as error:
        raise ConfigError(f"ledger: got {error}, expected a folder that can be read") from error
    if found and strays is None:
        raise found[0]
    if strays is not None:
        strays += found
    return sorted(entries, key=lambda entry: entry.owner.started)


def totals(entries: Iterable[Entry]) -> dict[str, Books]:
    """The books of each model, all versions and processes together."""
    sums: dict[str, Books] = {}
    for entry in entries:
        sums[entry.owner.model] = sums.get(entry.owner.model, Books()) + entry.books
    return sums


def _read_at_rest(folder: Path) -> tuple[list[Entry], list[ConfigError]]:
    """Every entry, and what is none."""
    for _ in range(READS_MAX):
        found: list[ConfigError] = []
        earlier = _read_earlier(folder, found)
        entries = [Entry(Owner(model, "", "", 0, 0.0), False, books) for model, books in earlier.models.items()]
        entries += [entry for name, entry in _read_files(folder, found) if name not in earlier.files]
        # Or else files were folded meanwhile, some of which may have been counted and others not.
        if _read_earlier(folder, []) == earlier:
            return entries, found
    raise ConfigError(f"ledger: got a folder {str(folder)!r} that changes all the time, expected one at rest")


def _fold(folder: Path) -> None:
    """Folds the oldest files of processes that are gone, where there are too many.

    Raises:
        ConfigError: What was folded before cannot be read.
        OSError: The folder cannot be read or written. No count is lost or counted twice, wherever it ends.
    """
    if sum(name.endswith(SUFFIX) for name in os.listdir(folder)) <= FILES_MAX:
        return
    lock = os.open(folder / _FOLDING, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _fold_locked(folder)
    except BlockingIOError:
        pass  # another process is at it
    finally:
        os.close(lock)


def _fold_locked(folder: Path) -> None:
    found: list[ConfigError] = []
    earlier = _read_earlier(folder, found)
    if found:
        raise found[0]
    # Before their names are forgotten: whoever folded them may have been killed.
    _remove(folder, earlier.files)
    # What does not balance stays, to be looked at.
    finished = [one for one in _read_files(folder, []) if not one[1].alive and one[1].books.balanced]
    gone = sorted(finished, key=lambda one: (one[1].owner.started, one[0]))[:-GONE_KEPT]
    if not gone:
        return
    models = dict(earlier.models)
    for _, entry in gone:
        models[entry.owner.model] = models.get(entry.owner.model, Books()) + entry.books
    names = frozenset(name for name, _ in gone)
    with replacing(folder / EARLIER) as file:
        file.write(msgspec.json.encode(_Earlier(models, names)))
    _flush(folder)
    _remove(folder, names)


def _remove(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        (folder / name).unlink(missing_ok=True)
    _flush(folder)


def _flush(folder: Path) -> None:
    """Waits until what appeared in a folder, and what went, is on the disk."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _read_earlier(folder: Path, strays: list[ConfigError]) -> _Earlier:
    path = folder / EARLIER
    try:
        earlier = msgspec.json.decode(path.read_bytes(), type=_Earlier)
        for name in earlier.files:  # they are going to be removed
            if Path(name).name != name or not name.endswith(SUFFIX):
                raise msgspec.ValidationError(f"the name {name!r}")
    except FileNotFoundError:
        return _Earlier()
    except (msgspec.DecodeError, OSError) as error:
        strays.append(ConfigError(f"{path}: got {error}, expected the sums of earlier ledger files"))
        return _Earlier()
    return earlier


def _read_files(folder: Path, strays: list[ConfigError]) -> Iterator[tuple[str, Entry]]:
    """The files that are there, each with its name.

    Raises:
        OSError: The folder cannot be read.
    """
    for name in os.listdir(folder):  # not glob, which takes a folder that it must not read for an empty one
        if not name.endswith(SUFFIX):
            continue
        path = folder / name
        try:
            yield name, _read_file(path)
        except FileNotFoundError:
            pass  # it was folded meanwhile
        except ConfigError as error:
            strays.append(error)
        except OSError as error:
            strays.append(ConfigError(f"{path}: got {error}, expected a ledger file"))


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
