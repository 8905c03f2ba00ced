"""What only shows where Engines run as they will: behind a Batcher under a load, and beside others of their kind."""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.errors import HeadraceError
from headrace.measure import uncollected
from headrace.planner.cost import Cost

if TYPE_CHECKING:
    from headrace.backend import Request
    from headrace.engine import Engine

# A rehearsal has so many requests, if that takes neither less nor more than these seconds, ...
_REQUESTS = 100
_S_MIN = 1.0
_S_MAX = 3.0
# ... and is sent by one thread of this process, which must not become what is measured.
_RPS_MAX = 1000.0
# Beyond that, something else was measured.
_SLOWNESS = (0.7, 2.0)
# Fewer Batches after a pause, or in a row, say nothing about those.
_WOKEN_MIN = 10.0
_ROW_MIN = 20
# Calls for a median, at least.
_CALLS_MIN = 3


@dataclass(frozen=True)
class Rehearsal:
    """How Batches and requests behind a Batcher differ from Batches that are timed one after the other.

    Attributes:
        slowness: Times as long as any Batch takes, what waking adds to it included.
        wake_s: How much longer a Batch takes that an idle Engine runs: its thread wakes, its caches are cold. At most
            as long as a Batch of one Request.
        outside_s: Of a request's latency, what is spent neither in the queue nor in a Batch: being checked and
            submitted, and until the caller has the Result.
    """

    slowness: float = 1.0
    wake_s: float = 0.0
    outside_s: float = 0.0


def rehearse(engine: Engine, cost: Cost, samples: Sequence[Request], max_batch: int, rate_rps: float) -> Rehearsal:
    """Sends a load through a real Batcher for a moment.

    Args:
        engine: Runs the Batches.
        cost: What was measured of it.
        samples: Requests, taken in turn.
        max_batch: Requests per Batch at most.
        rate_rps: Requests per second, at random times; beyond what this process can send, as many as it can.

    Raises:
        HeadraceError: The Engine failed.
    """
    rate_rps = min(rate_rps, _RPS_MAX)
    lasts_s = min(_S_MAX, max(_S_MIN, _REQUESTS / rate_rps))
    gaps_s = np.random.default_rng(0).exponential(1 / rate_rps, max(2, round(lasts_s * rate_rps)))
    sent_s, done_s, elapsed_s, stats = _send(engine, samples, np.cumsum(gaps_s).tolist(), max_batch)
    requests = len(sent_s)
    batches = [(size, count, stats["batch_seconds"][size]) for size, count in enumerate(stats["batch_sizes"]) if count]
    ran_s = sum(seconds for _, _, seconds in batches)
    expected_s = _expected(cost, batches)
    inside_s = stats["queue_delay"]["total_s"] + sum(size * seconds for size, _, seconds in batches)
    outside_s = max(0.0, (math.fsum(done_s) - math.fsum(sent_s) - inside_s) / requests)
    in_a_row = float(np.clip(_in_a_row(cost, batches, sent_s, done_s), *_SLOWNESS))
    # Poisson arrivals find the Engine idle as often as it is, and each that does is a Batch of its own.
    woken, wake_s = requests * max(0.0, 1 - ran_s / elapsed_s), 0.0
    if ran_s > in_a_row * expected_s and woken >= _WOKEN_MIN:
        wake_s = min((ran_s / in_a_row - expected_s) / woken, cost.seconds(1))
    # What waking does not explain slows all Batches, and what they take longer for waking with the rest.
    slowness = ran_s / (expected_s + woken * wake_s)
    return Rehearsal(float(np.clip(slowness, *_SLOWNESS)), wake_s, outside_s)


def _expected(cost: Cost, batches: Sequence[tuple[int, int, float]]) -> float:
    """Seconds that (size, how many, seconds) Batches should have taken together."""
    return sum(count * cost.seconds(size) * cost.noise(size) for size, count, _ in batches)


def _in_a_row(
    cost: Cost, batches: Sequence[tuple[int, int, float]], sent_s: Sequence[float], done_s: Sequence[float]
) -> float:
    """Times as long as measured that Batches took which came right after another; 1 where that were too few.

    Beside a client the machine is slower than with one core at work, after a pause or not. A Batch of several Requests
    formed while another one ran. Where all are of one, a Request had waited that was sent before the one before it was
    answered.
    """
    if batches[-1][0] > 1:
        several = [batch for batch in batches if batch[0] > 1]
        if sum(count for _, count, _ in several) < _ROW_MIN:
            return 1.0
        return sum(seconds for _, _, seconds in several) / _expected(cost, several)
    ran_s = [done - before for sent, before, done in zip(sent_s[1:], done_s, done_s[1:], strict=False) if sent < before]
    if len(ran_s) < _ROW_MIN:
        return 1.0
    return statistics.fmean(ran_s) / _expected(cost, [(1, 1, 0.0)])


def _send(
    engine: Engine, samples: Sequence[Request], due_s: Sequence[float], max_batch: int
) -> tuple[list[float], list[float], float, dict[str, Any]]:
    """Requests to a Batcher when they are due: when each was sent and answered, how long all took, what it counted."""
    from headrace.batcher import Batcher

    clock = time.perf_counter
    sent_s, done_s = [0.0] * len(due_s), [0.0] * len(due_s)
    futures = []

    def note(place: int, _: object) -> None:
        done_s[place] = clock()

    with uncollected(), Batcher(engine, max_batch=max_batch, max_queue=len(due_s)) as batcher:
        start_s = clock()
        for place, due in enumerate(due_s):
            time.sleep(max(0.0, start_s + due - clock()))
            sent_s[place] = clock()
            future = batcher.submit(samples[place % len(samples)])
            future.add_done_callback(partial(note, place))
            futures.append(future)
        for future in futures:
            future.result()
        elapsed_s = clock() - start_s
        stats = batcher.stats()
    # Closing it has waited for the callbacks.
    return sent_s, done_s, elapsed_s, stats


def slowdown(engine: Engine, others: Sequence[Engine], request: Request, seconds: float = 0.3) -> float:
    """How many times as long single Requests take an Engine while others run beside it; 1 at least.

    Args:
        engine: The one that is timed.
        others: Called all the time from threads of their own.
        request: What all of them run.
        seconds: How long it is timed alone, and how long beside the others.

    Raises:
        HeadraceError: One of them failed.
    """
    alone_s = _median_call(engine, request, seconds)
    stopped = threading.Event()
    failures: list[HeadraceError] = []

    def call_until_stopped(other: Engine) -> None:
        try:
            while not stopped.is_set():
                other.run_batch([request])
        except HeadraceError as error:
            failures.append(error)

    threads = [threading.Thread(target=call_until_stopped, args=(other,)) for other in others]
    for thread in threads:
        thread.start()
    try:
        beside_s = _median_call(engine, request, seconds)
    finally:
        stopped.set()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]
    return max(1.0, beside_s / alone_s)


def _median_call(engine: Engine, request: Request, seconds: float) -> float:
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < _CALLS_MIN:
        start = time.perf_counter()
        engine.run_batch([request])
        times.append(time.perf_counter() - start)
    return statistics.median(times)
