"""Why some requests are late: the Batches of a run, replayed.

Requests go one by one through a Batcher, so that each one's run can be told from when it was sent and when it and the
one before it were answered. Then the queue is replayed: with these times as they were, which must give the latencies
that were measured; with the same times in random order, as the planner's simulation draws them; and with all of the
mean length. What is between the first two comes from times that are alike for a while, such as of a machine that is
slower for some tens of milliseconds; between the other two, from single ones that take long.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.autoscaling.validation import send
from benchmarks.engine.planner import PAGE, cases
from benchmarks.harness.section import Options, Section
from benchmarks.harness.tables import markdown, number
from headrace.backend import Request
from headrace.engine import Engine

Seconds = npt.NDArray[np.float64]

LOAD = 0.6  # of what the Engine does in a row
LAGS = (1, 20)
SHUFFLES = 9


def measure(options: Options) -> list[dict[str, Any]]:
    """One entry per case, in seconds."""
    seconds = 1.0 if options.quick else 8.0
    rows = []
    for name, model, samples, _ in cases(options, driven=True):
        with model.compile(backend="native", threads=1) as engine:
            options.progress(f"{name}: in a row")
            alone = in_a_row(engine, samples[0], seconds / 4)
            rate = LOAD / float(alone.mean())
            options.progress(f"{name}: {seconds:g} s at {rate:.0f} requests/s")
            arrivals_s = np.cumsum(np.random.default_rng(2).exponential(1 / rate, round(rate * seconds)))
            sent_s, done_s = send(engine, samples[0], arrivals_s, None, 1)
        ran_s = np.diff(done_s, prepend=0.0)
        ran_s = np.minimum(ran_s, done_s - sent_s)  # one that found the Engine idle began when it was sent
        random = np.random.default_rng(0)
        shuffled = [p99(sent_s, random.permutation(ran_s)) for _ in range(SHUFFLES)]
        rows.append({
            "case": name, "rate_rps": rate, "alone_s": float(alone.mean()), "mean_s": float(ran_s.mean()),
            "late_s": float(np.quantile(sent_s - arrivals_s, 0.99)),
            "alike": [alikeness(ran_s, lag) for lag in LAGS], "p99_s": float(np.quantile(done_s - sent_s, 0.99)),
            "replayed_s": p99(sent_s, ran_s), "shuffled_s": float(np.median(shuffled)),
            "even_s": p99(sent_s, np.full(len(ran_s), ran_s.mean())),
        })  # fmt: skip
    return rows


def in_a_row(engine: Engine, request: Request, seconds: float) -> Seconds:
    """What Batches of one Request take, one after the other."""
    batch = [engine.check(request)]
    engine.executable.run_batch(batch)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        engine.executable.run_batch(batch)
        times.append(time.perf_counter() - start)
    return np.array(times)


def p99(sent_s: Seconds, ran_s: Seconds) -> float:
    """Of the latencies of requests that are sent then, and run for so long one after the other."""
    free, latencies = 0.0, np.empty(len(sent_s))
    for place, (sent, ran) in enumerate(zip(sent_s, ran_s, strict=True)):
        free = max(free, sent) + ran
        latencies[place] = free - sent
    return float(np.quantile(latencies, 0.99))


def alikeness(times: Seconds, lag: int) -> float:
    """The correlation of times with those so many Batches later; beyond three medians they count as three."""
    capped = np.minimum(times, 3 * np.median(times))
    return float(np.corrcoef(capped[:-lag], capped[lag:])[0, 1])


def table(rows: list[dict[str, Any]]) -> str:
    """One line per case."""
    cells = [
        [row["case"], f"{row['rate_rps']:.0f}"]
        + [number(1e3 * row[name]) for name in ("alone_s", "mean_s")]
        + [f"{alike:.2f}" for alike in row["alike"]]
        + [number(1e3 * row[name]) for name in ("p99_s", "replayed_s", "shuffled_s", "even_s", "late_s")]
        for row in rows
    ]
    lags = (f"correlation, {lag} later" for lag in LAGS)
    headings = ("case", "requests/s", "a run in a row, ms", "under load", *lags, "p99", "replayed", "shuffled")
    return markdown((*headings, "all alike", "sent late, p99"), cells)


SECTIONS = [Section("planner-replay", "Why some requests are late", measure, table, page=PAGE, by_case=True)]
