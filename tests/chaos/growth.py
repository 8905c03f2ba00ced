"""Whether processes grow: their memory, descriptors, threads and children, from when they are warm to the end."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter

import psutil

# Growth of resident memory that is allowed.
RSS_GROWTH_MAX = 0.02
# Connections and files come and go with requests: what is left at rest in the end must be what was there when warm.
SPARE_DESCRIPTORS = 2
# The name of the threads that gRPC adds where calls wait for one, and ends where they have nothing to do: how many
# there are says how busy a machine was. Of no other kind may there be more.
GRPC_THREADS = "event_engine"
# Shares of the run over which the warm state and the end are measured.
WARM = (0.25, 0.5)
END = (0.85, 1.0)


@dataclass(frozen=True)
class Sample:
    """What some processes held at one moment.

    Attributes:
        at_s: When, by `perf_counter`.
        rss_bytes: Resident memory by process.
        descriptors: Open ones by process.
        threads: By process, but for gRPC's own.
    """

    at_s: float
    rss_bytes: dict[int, int]
    descriptors: dict[int, int]
    threads: dict[int, int]

    @property
    def pids(self) -> set[int]:
        """The processes."""
        return set(self.rss_bytes)


def look(pids: Collection[int]) -> Sample:
    """Takes a sample of processes; those that have ended are left out."""
    rss, descriptors, threads = dict[int, int](), dict[int, int](), dict[int, int]()
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError):
            process = psutil.Process(pid)
            with process.oneshot():
                values = process.memory_info().rss, process.num_fds(), _threads(pid)
            rss[pid], descriptors[pid], threads[pid] = values
    return Sample(perf_counter(), rss, descriptors, threads)


def _threads(pid: int) -> int:
    count = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended
            count += (thread / "comm").read_text().strip() != GRPC_THREADS
    return count


@dataclass
class Growth:
    """Samples of a run, always taken in the same state, and what they say.

    Attributes:
        samples: In the order they were taken.
    """

    samples: list[Sample] = field(default_factory=list)

    def rss(self) -> float:
        """How much the memory of the processes that were there all along has grown, as a share of it when warm."""
        warm, end = self.rss_mib()
        return end / warm - 1

    def rss_mib(self) -> tuple[float, float]:
        """The memory of the processes that were there all along, when warm and at the end, in MiB."""
        warm, end, stayed = self._windows()
        total = lambda sample: sum(sample.rss_bytes[pid] for pid in stayed)  # noqa: E731
        return median(map(total, warm)) / 2**20, median(map(total, end)) / 2**20

    def rss_of(self, pid: int) -> tuple[float, float]:
        """The memory of one process when warm and at the end, in MiB."""
        warm, end, _ = self._windows()
        return tuple(median(sample.rss_bytes[pid] for sample in part) / 2**20 for part in (warm, end))  # type: ignore[return-value]

    def descriptors_of(self, pid: int) -> int:
        """How many descriptors more one process has."""
        warm, end, _ = self._windows()
        return round(median(one.descriptors[pid] for one in end) - median(one.descriptors[pid] for one in warm))

    def threads_of(self, pid: int) -> int:
        """How many threads more one process has."""
        warm, end, _ = self._windows()
        return round(median(one.threads[pid] for one in end) - median(one.threads[pid] for one in warm))

    def descriptors(self) -> int:
        """Descriptors more than when warm, over the processes that were there all along."""
        return sum(map(self.descriptors_of, self.stayed()))

    def threads(self) -> int:
        """Threads more than when warm, likewise."""
        return sum(map(self.threads_of, self.stayed()))

    def processes(self) -> int:
        """Processes more than when warm."""
        warm, end, _ = self._windows()
        return round(median(len(one.pids) for one in end) - median(len(one.pids) for one in warm))

    def stayed(self) -> set[int]:
        """The processes that were there all along."""
        return self._windows()[2]

    def _windows(self) -> tuple[Sequence[Sample], Sequence[Sample], set[int]]:
        begin, span = self.samples[0].at_s, self.samples[-1].at_s - self.samples[0].at_s
        warm, end = (
            [one for one in self.samples if low * span <= one.at_s - begin <= high * span] for low, high in (WARM, END)
        )
        if not warm:
            raise ValueError(f"got {len(self.samples)} samples, expected some of when it was warm")
        return warm, end, set.intersection(*(one.pids for one in (*warm, *end)))
