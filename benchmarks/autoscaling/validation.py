"""The simulator against reality: the same arrivals at a real Batcher and at a simulated one.

A real model, one Engine with one thread, requests of one size, open-loop Poisson arrivals: the client does not wait for
answers, so that queues build as they would. The cost of a Batch (fixed and per request) and its noise are measured
beforehand, with the Engine alone, and so is what only shows behind a Batcher, in rehearsals of three seconds as the
planner has them; nothing is fitted to the run. The same is simulated with what the run's own Batches took, which tells
a machine that was slower during the run from a simulator that is wrong.
"""

from __future__ import annotations

import ctypes
import statistics
import threading
import time
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

import headrace as hr
from benchmarks.engine import texts
from benchmarks.harness.section import Options, Section
from benchmarks.harness.tables import markdown
from headrace.backend import Request
from headrace.engine import Engine
from headrace.errors import DeadlineExceeded, Overloaded
from headrace.measure import uncollected
from headrace.planner.cost import Cost
from headrace.planner.rehearsal import rehearse
from headrace.simulate import Outcome, Sample, Service, Trace, simulate

TOKENS = 48
MAX_BATCH = 16
SLO_S = 0.1
LOADS = (0.5, 0.7, 0.85)  # of the capacity that was measured
# Of about as many as run together within that: a moment's disturbance doubles what a short Batch takes, and is nothing
# to a long one, so their noise is not the same.
SIZES = (1, 2, 3, 4)
# Before the runs, at the first of the loads and other times of arrival.
REHEARSALS = 3
# The last stretch to an arrival is spun, since a sleeping thread wakes late: a short one, because who spins keeps the
# interpreter from the thread that notes when answers came.
SPIN_S = 0.00005
_PR_SET_TIMERSLACK = 29


class One:
    """One replica, always."""

    name = "one replica"
    bounds = (1, 1)

    def __call__(self, sample: Sample) -> int:
        """One."""
        return 1


def measure_cost(engine: Engine, request: Request, rounds: int) -> Service:
    """Times Batches of every size in turn, and fits fixed + n * per_request to the medians' relative errors."""
    sizes = np.array(SIZES * rounds)
    np.random.default_rng(1).shuffle(sizes)
    times = []
    for size in sizes:
        start = time.perf_counter()
        engine.run_batch([request] * int(size))
        times.append(time.perf_counter() - start)
    taken = np.array(times)
    medians = np.array([np.median(taken[sizes == size]) for size in SIZES])
    columns = np.stack([np.ones(len(SIZES)), SIZES], axis=1)
    fixed, per = np.linalg.lstsq(columns / medians[:, None], np.ones(len(SIZES)), rcond=None)[0]
    fixed, per = max(0.0, float(fixed)), float(per)
    ratios = taken / (fixed + per * sizes)
    return Service(fixed, per, tuple(ratios.tolist()), MAX_BATCH, slo_s=SLO_S)


def rehearsed(engine: Engine, request: Request, service: Service) -> tuple[Service, float]:
    """The service as it is behind a Batcher, and the seconds of a request outside of queue and Batch.

    Batches that begin after a pause find cold caches, and the threads that send and answer take their part.
    """
    cost = Cost(service.fixed_s, service.per_request_s, {}, {1: service.ratios})
    rate_rps = LOADS[0] * service.capacity_rps
    found = [rehearse(engine, cost, [request], MAX_BATCH, rate_rps) for _ in range(REHEARSALS)]
    slowness = statistics.median(one.slowness for one in found)
    wake_s = statistics.median(one.wake_s for one in found)
    slower = replace(
        service, fixed_s=slowness * service.fixed_s, per_request_s=slowness * service.per_request_s, wake_s=wake_s
    )
    return slower, statistics.median(one.outside_s for one in found)


def run_real(
    engine: Engine,
    request: Request,
    arrivals_s: npt.NDArray[np.float64],
    slo_s: float | None = SLO_S,
    max_batch: int = MAX_BATCH,
) -> tuple[npt.NDArray[np.float64], int]:
    """Sends requests when they are due. Returns the latencies from the due time, in seconds, and how many had none."""
    _, done_s = send(engine, request, arrivals_s, slo_s, max_batch)
    latencies = (done_s - arrivals_s)[~np.isnan(done_s)]
    return latencies, len(arrivals_s) - len(latencies)


def send(
    engine: Engine, request: Request, arrivals_s: npt.NDArray[np.float64], slo_s: float | None, max_batch: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Sends requests when they are due. Returns when each was sent and answered, in seconds; NaN where none was."""
    sent_s, done_s = np.zeros(len(arrivals_s)), np.full(len(arrivals_s), np.nan)
    left = threading.Semaphore(0)
    # Linux lets a thread sleep some 50 us longer than it was told to, unless it asks for less.
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)

    slo_ms = None if slo_s is None else 1e3 * slo_s
    with uncollected(), hr.Batcher(engine, slo_ms=slo_ms, max_batch=max_batch) as batcher:
        start = time.perf_counter() + 0.1

        def note(place: int, future: Any) -> None:
            if future.exception() is None:
                done_s[place] = time.perf_counter() - start
            left.release()

        submitted = 0
        for place, due in enumerate(arrivals_s):
            wait = start + due - time.perf_counter() - SPIN_S
            if wait > 0:
                time.sleep(wait)
            while time.perf_counter() < start + due:
                pass
            sent_s[place] = time.perf_counter() - start
            try:
                future = batcher.submit(request)
            except (Overloaded, DeadlineExceeded):
                continue
            submitted += 1
            future.add_done_callback(lambda future, place=place: note(place, future))
        for _ in range(submitted):
            left.acquire()
    return sent_s, done_s


def measure(options: Options) -> dict[str, Any]:
    """Real and simulated latencies at several loads."""
    seconds, rounds = (2.0, 10) if options.quick else (25.0, 150)
    engine = hr.load(str(texts.minilm_path())).compile(backend="native", threads=1)
    request = texts.rectangle(1, TOKENS)
    options.progress("measuring the cost of Batches")
    measure_cost(engine, request, 3)  # to warm up
    service = measure_cost(engine, request, rounds)
    options.progress("rehearsing")
    behind, outside_s = rehearsed(engine, request, service)
    rows = []
    for load in LOADS:
        rate = load * service.capacity_rps
        options.progress(f"{seconds:g} s at {rate:.0f} requests/s")
        arrivals_s = np.cumsum(np.random.default_rng(2).exponential(1 / rate, round(rate * seconds)))
        _, done_s = send(engine, request, arrivals_s, SLO_S, MAX_BATCH)
        own = as_run(arrivals_s, done_s - outside_s, behind)
        simulated = {"simulated": _simulated(arrivals_s, behind), "own": _simulated(arrivals_s, own)}
        rows.append({"load": load, "rate_rps": rate} | _compare(done_s - arrivals_s, simulated, outside_s))
    return {
        "fixed_ms": 1e3 * service.fixed_s, "per_request_ms": 1e3 * service.per_request_s,
        "noise": float(np.std(service.ratios)), "capacity_rps": service.capacity_rps, "rows": rows,
        "slowness": behind.per_request_s / service.per_request_s, "wake_ms": 1e3 * behind.wake_s,
        "outside_ms": 1e3 * outside_s,
    }  # fmt: skip


def as_run(arrivals_s: npt.NDArray[np.float64], done_s: npt.NDArray[np.float64], service: Service) -> Service:
    """The service with the times that a run's Batches took.

    The answers of a Batch come together, and it began when the one before had ended and its first request had come.
    Done is NaN where there was no answer.
    """
    order = np.argsort(done_s)[: np.count_nonzero(~np.isnan(done_s))]
    done_s, arrivals_s = done_s[order], arrivals_s[order]
    # Answers of one Batch lie microseconds apart, Batches at least what one request takes.
    firsts = np.flatnonzero(np.diff(done_s, prepend=-np.inf) > service.per_request_s / 2)
    ends_s, sizes = done_s[firsts], np.diff(firsts, append=len(done_s))
    free_s = np.concatenate([[-np.inf], ends_s[:-1]])
    taken_s = ends_s - np.maximum(free_s, np.minimum.reduceat(arrivals_s, firsts))
    ratios = taken_s / (service.fixed_s + service.per_request_s * sizes)
    return replace(service, ratios=tuple(ratios.tolist()), wake_s=0.0)


def _simulated(arrivals_s: npt.NDArray[np.float64], service: Service) -> Outcome:
    trace = Trace("poisson", 1.0, np.bincount(arrivals_s.astype(np.int64)).astype(np.float64), arrivals_s)
    return simulate(trace, service, One())


def _compare(latencies_s: npt.NDArray[np.float64], simulated: dict[str, Outcome], outside_s: float) -> dict[str, Any]:
    found: dict[str, Any] = {"requests": len(latencies_s), "lost": int(np.count_nonzero(np.isnan(latencies_s)))}
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        found[f"{name}_s"] = float(np.nanquantile(latencies_s, share))
    for kind, outcome in simulated.items():
        found[f"lost_{kind}"] = outcome.counts["refused"] + outcome.counts["expired"]
        for name in ("p50", "p99"):
            found[f"{name}_{kind}_s"] = outside_s + outcome.quantiles_s[name]
    return found


def table(result: dict[str, Any]) -> str:
    """One line per load."""
    rows = []
    for one in result["rows"]:
        cells = [f"{one['load']:.0%}", f"{one['rate_rps']:.0f}", str(one["requests"])]
        for name in ("p50", "p99"):
            real = one[f"{name}_s"]
            cells.append(f"{1e3 * real:.1f}")
            for kind in ("simulated", "own"):
                simulated = one[f"{name}_{kind}_s"]
                cells += [f"{1e3 * simulated:.1f}", f"**{simulated / real:.2f}**"]
        rows.append([*cells, str(one["lost"]), str(one["lost_simulated"]), str(one["lost_own"])])
    kinds = ("simulated", "own Batches")
    pairs = ("simulated", "ratio", "own Batches", "ratio")
    headings = ("load", "requests/s", "requests", "p50 ms", *pairs, "p99 ms", *pairs, "lost", *kinds)
    about = (
        f"A Batch of n: {result['fixed_ms']:.2f} ms + n x {result['per_request_ms']:.2f} ms, noise "
        f"{result['noise']:.0%}; capacity {result['capacity_rps']:.0f}/s. Behind a Batcher it is "
        f"{result['slowness']:.2f} times that, after a pause {result['wake_ms']:.2f} ms more, and a request spends "
        f"{result['outside_ms']:.2f} ms elsewhere."
    )
    return f"{about}\n\n{markdown(headings, rows)}"


SECTIONS = [
    Section(
        "autoscaling-validation", "The simulator against a real run of the same arrivals", measure, table,
        page="autoscaling.md",
    )
]  # fmt: skip
