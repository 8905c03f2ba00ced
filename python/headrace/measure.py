"""Fair timing of several ways to do the same work in one process.

Candidates are timed in blocks, A B C A B C: a pause, warm-up calls, then a stretch of timed calls. Call by call would
be unfair: thread pools spin for a while after a call and slow down whoever comes next. One after the other would be,
too: the machine's clock and its neighbours change over minutes. Ratios within one run are what counts.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any


@contextmanager
def uncollected() -> Iterator[None]:
    """Keeps Python's garbage collector out of what is measured.

    It stops a process that has imported much for 30 ms and more, every few thousand requests. Servers keep it from what
    lives as long as they do.
    """
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@dataclass(frozen=True)
class Candidate:
    """One way to do the work: a name for the report and the call that is timed."""

    name: str
    run: Callable[[], Any]


@dataclass(frozen=True)
class Timing:
    """What one candidate's calls took, in seconds.

    Attributes:
        median_s: The median over rounds of each round's median.
        best_s: The fastest single call.
        p90_s: The 90th percentile of all calls.
        spread: How far apart the rounds' medians lie: (largest - smallest) / `median_s`.
        calls: How many calls were timed.
    """

    name: str
    median_s: float
    best_s: float
    p90_s: float
    spread: float
    calls: int

    def to_dict(self) -> dict[str, Any]:
        """The same as plain JSON-able values."""
        return asdict(self)


def interleave(
    candidates: Sequence[Candidate],
    *,
    rounds: int = 5,
    block_s: float = 0.25,
    warmup_calls: int = 3,
    pause_s: float = 0.05,
    progress: Callable[[], None] | None = None,
) -> list[Timing]:
    """Times the candidates in interleaved blocks.

    Args:
        candidates: What to time, in the order of each round.
        rounds: How many blocks each candidate gets.
        block_s: Seconds of timed calls per block; at least one call is made.
        warmup_calls: Untimed calls before each block; fewer, but one at least, once they have taken `block_s`.
        pause_s: Seconds of rest before each block, so that the last one's threads go to sleep.
        progress: Called after every block.

    Returns:
        One `Timing` per candidate, in the same order.
    """
    calls: list[list[list[float]]] = [[] for _ in candidates]
    for _ in range(rounds):
        for candidate, blocks in zip(candidates, calls, strict=True):
            time.sleep(pause_s)
            _warm_up(candidate.run, warmup_calls, block_s)
            blocks.append(_block(candidate.run, block_s))
            if progress is not None:
                progress()
    return [_timing(candidate.name, blocks) for candidate, blocks in zip(candidates, calls, strict=True)]


def _warm_up(run: Callable[[], Any], calls: int, enough_s: float) -> None:
    end = time.perf_counter() + enough_s
    for _ in range(calls):
        run()
        if time.perf_counter() >= end:
            return


def _block(run: Callable[[], Any], block_s: float) -> list[float]:
    durations: list[float] = []
    clock = time.perf_counter
    end = clock() + block_s
    while True:
        start = clock()
        run()
        stop = clock()
        durations.append(stop - start)
        if stop >= end:
            return durations


def _timing(name: str, blocks: list[list[float]]) -> Timing:
    every = sorted(duration for block in blocks for duration in block)
    medians = [statistics.median(block) for block in blocks]
    median = statistics.median(medians)
    return Timing(
        name=name,
        median_s=median,
        best_s=every[0],
        p90_s=every[min(len(every) - 1, int(0.9 * len(every)))],
        spread=(max(medians) - min(medians)) / median,
        calls=len(every),
    )
