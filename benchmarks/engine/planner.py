"""The planner against reality: what it predicts against a run at that rate, what it chooses against trying all.

Predictions: the plan is made for one thread, so that the client has the machine's other core. Arrivals are open-loop
and Poisson; latencies count from when a request was due. The capacity is that with full Batches always waiting.

Choice: every candidate and every Batch size is timed as long as a point of this project's benchmarks is (rounds of a
quarter of a second), and the best of them by the same question is what the planner's choice is compared with.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import headrace as hr
from benchmarks.autoscaling.validation import run_real
from benchmarks.engine import tabular, texts
from benchmarks.engine.shapes import mobilenet
from benchmarks.harness.section import Options, Section
from benchmarks.harness.tables import markdown, number
from headrace.backend import Request
from headrace.planner.cost import Cost, Stopwatch
from headrace.planner.offers import BATCHES, offer_of
from headrace.planner.report import Question, Report
from headrace.planner.space import Candidate, space_of

PAGE = "planner.md"
LOAD = 0.7  # of the highest rate that the plan promises
# Arrivals of some seconds alone are off: the p99 of a queue that keeps up differs by a tenth and more between them.
RUNS = 3
TOKENS = 48


@dataclass(frozen=True)
class Case:
    """What is planned for.

    Attributes:
        model: Loads it; the argument is whether a small one will do.
        samples: Requests like those that come, for the model's first input.
        slo_ms: What is promised.
        driven: Whether one thread of Python can send as many as a plan promises.
    """

    model: Callable[[bool], hr.Model]
    samples: Callable[[str], list[Request]]
    slo_ms: float
    driven: bool = True


def trees(count: int, leaves: int) -> Callable[[bool], hr.Model]:
    """A LightGBM classifier."""
    return lambda quick: hr.load(tabular.train_lightgbm(min(count, 60) if quick else count, leaves))


def tables(rows: int) -> Callable[[str], list[Request]]:
    """Three requests of so many rows."""
    return lambda name: [{name: tabular.data(rows, seed)} for seed in range(3)]


CASES = {
    f"MiniLM, {TOKENS} tokens": Case(
        lambda _: hr.load(str(texts.minilm_path())), lambda _: [texts.rectangle(1, TOKENS)], 60.0
    ),
    "LightGBM, 100 trees, a row": Case(trees(100, 31), tables(1), 5.0, driven=False),
    "LightGBM, 300 trees, 1000 rows": Case(trees(300, 63), tables(1000), 10.0),
    "MobileNetV2, an image": Case(lambda _: hr.load(str(mobilenet.path())), lambda _: [image()], 150.0),
}


def cases(options: Options, *, driven: bool = False) -> Iterator[tuple[str, hr.Model, list[Request], float]]:
    """Names, models, requests and SLOs in milliseconds of the cases that were asked for; only `driven` ones, if so."""
    for name, case in CASES.items():
        if options.case in name and (case.driven or not driven):
            model = case.model(options.quick)
            yield name, model, case.samples(model.signature.inputs[0].name), case.slo_ms


def image() -> Request:
    """One image of noise."""
    return {"image": np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)}


def predictions(options: Options) -> list[dict[str, Any]]:
    """What a plan for one thread expects, and what a run at that rate shows."""
    rows = []
    for name, model, samples, slo_ms in cases(options, driven=True):
        options.progress(f"{name}: planning")
        question: dict[str, Any] = {"slo_ms": slo_ms, "samples": samples, "backends": ["native"], "threads": [1]}
        highest = chosen(hr.plan(model, **question)).prediction
        assert highest is not None
        report = hr.plan(model, rate=LOAD * highest.rate_rps, **question)
        rows.append({"case": name, "slo_ms": slo_ms} | against_reality(model, report, samples, options))
    return rows


def chosen(report: Report) -> Any:
    """The report's choice; there must be one."""
    assert report.choice is not None, str(report)
    return report.choice


def against_reality(model: hr.Model, report: Report, samples: list[Request], options: Options) -> dict[str, Any]:
    """The choice's figures beside measured ones."""
    row = chosen(report)
    found, candidate = row.prediction, row.candidate
    seconds = 2.0 if options.quick else 8.0
    with candidate.compile(model) as engine:
        latencies, lost = [], 0
        for run in range(RUNS):
            options.progress(
                f"{report.model}: run {run + 1} of {RUNS}, {seconds:g} s at {found.rate_rps:.0f} requests/s"
            )
            gaps_s = np.random.default_rng(2 + run).exponential(1 / found.rate_rps, round(found.rate_rps * seconds))
            real, refused = run_real(engine, samples[0], np.cumsum(gaps_s), report.question.slo_s, found.max_batch)
            latencies.append(real)
            lost += refused
        options.progress(f"{report.model}: capacity")
        capacity = flood(engine, samples[0], found.max_batch, report.question.slo_s, seconds / 3)
    real = np.concatenate(latencies)
    each = [float(np.quantile(one, 0.99)) for one in latencies]
    return {
        "candidate": str(candidate), "rate_rps": found.rate_rps, "requests": len(real) + lost, "lost": lost,
        "p50_s": found.p50_s, "p50_real_s": float(np.quantile(real, 0.5)),
        "p99_s": found.p99_s, "p99_real_s": float(np.quantile(real, 0.99)), "p99_runs_s": each,
        "capacity_rps": found.capacity_rps, "capacity_real_rps": capacity,
        "max_batch": found.max_batch, "wall_s": report.wall_s,
    }  # fmt: skip


def flood(engine: hr.Engine, request: Request, max_batch: int, slo_s: float | None, seconds: float) -> float:
    """Requests per second with a full Batch waiting at any time, of the size that half of the SLO has time for."""
    jobs = max_batch
    if slo_s is not None:
        watch = Stopwatch(engine, [request])
        watch.spend([n for n in BATCHES if n <= max_batch], 0.3)
        cost = watch.cost()
        jobs = max([n for n in range(1, max_batch + 1) if cost.seconds(n) <= slo_s / 2], default=1)
    with hr.Batcher(engine, max_batch=jobs) as batcher:
        waiting = [batcher.submit(request) for _ in range(2 * jobs)]
        done, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            for future in waiting[:jobs]:
                future.result()
            done += jobs
            waiting = waiting[jobs:] + [batcher.submit(request) for _ in range(jobs)]
        elapsed = time.perf_counter() - start
        for future in waiting:
            future.result()
    return done / elapsed


def choices(options: Options) -> list[dict[str, Any]]:
    """The planner's choice against that of timing everything, by the same question."""
    return [choice(*case, options) for case in cases(options)]


def choice(name: str, model: hr.Model, samples: list[Request], slo_ms: float, options: Options) -> dict[str, Any]:
    """One model's."""
    options.progress(f"{name}: planning")
    report = hr.plan(model, slo_ms=slo_ms, samples=samples)
    options.progress(f"{name}: timing everything")
    question = report.question
    candidates = space_of(model, question.cores).candidates
    start, watches = time.perf_counter(), []
    for one in candidates:
        options.progress(f"{name}: timing {one}")
        watches.append(exhaustive(model, one, samples, slo_ms / 1e3, options))
    everything_s = time.perf_counter() - start
    right = {row.candidate for row in report.rows if "parity failed" not in row.why}
    timed = {one: watch for one, watch in zip(candidates, watches, strict=True) if watch is not None}
    prices = {one: price(question, one, watch.cost()) for one, watch in timed.items() if one in right}
    best = min(prices, key=lambda one: prices[one])
    mine = chosen(report).candidate
    return {
        "case": name, "choice": str(mine), "best": str(best), "ratio": prices[mine] / prices[best],
        "wall_s": report.wall_s, "everything_s": everything_s, "candidates": len(candidates),
        "measured_s": report.measured_s, "everything_measured_s": sum(watch.measured_s for watch in timed.values()),
    }  # fmt: skip


def exhaustive(
    model: hr.Model, candidate: Candidate, samples: list[Request], slo_s: float, options: Options
) -> Stopwatch | None:
    """Every Batch size that fits into the SLO, each in as many blocks as the benchmarks take; None if it cannot run."""
    try:
        with candidate.compile(model) as engine:
            watch = Stopwatch(engine, samples)
            alone_s = max(watch.warm_up(), watch.warm_up())
            counts = [n for n in BATCHES if n == 1 or n * alone_s <= slo_s]
            for _ in range(options.effort.rounds):
                watch.spend(counts, options.effort.block_s * len(counts))
            watch.let_go()
            return watch
    except hr.HeadraceError:
        return None


def price(question: Question, candidate: Candidate, cost: Cost) -> float:
    """Cores per request per second, as the planner reckons; without end where the SLO is out of reach."""
    offer = offer_of(question, candidate, cost, BATCHES)
    return float("inf") if offer is None else offer.key[0]


def predictions_table(rows: list[dict[str, Any]]) -> str:
    """One line per model."""
    cells = []
    for row in rows:
        line = [row["case"], row["candidate"], f"{row['rate_rps']:.0f}", str(row["requests"])]
        for expected, real, scale in (("p50_s", "p50_real_s", 1e3), ("p99_s", "p99_real_s", 1e3)):
            line += [number(scale * row[expected]), number(scale * row[real]), f"**{row[expected] / row[real]:.2f}**"]
        line[-2] += f" ({', '.join(number(1e3 * one) for one in row['p99_runs_s'])})"
        line += [f"{row['capacity_rps']:.0f}", f"{row['capacity_real_rps']:.0f}"]
        line += [f"**{row['capacity_rps'] / row['capacity_real_rps']:.2f}**"]
        cells.append(line)
    three = ("measured", "ratio")
    headings = ("case", "plan", "requests/s", "requests", "p50 ms", *three, "p99 ms", *three, "capacity/s", *three)
    return markdown(headings, cells)


def choices_table(rows: list[dict[str, Any]]) -> str:
    """One line per model."""
    cells = [
        [
            row["case"], str(row["candidates"]), row["choice"], row["best"], f"**{row['ratio']:.3f}**",
            number(row["measured_s"]), number(row["everything_measured_s"]),
            f"**{row['measured_s'] / row['everything_measured_s']:.0%}**",
            number(row["wall_s"]), number(row["everything_s"]),
        ]
        for row in rows
    ]  # fmt: skip
    times = ("measuring s", "everything's", "share", "all together s", "everything's")
    headings = ("case", "candidates", "planner's", "best of all", "cost ratio", *times)
    return markdown(headings, cells)


SECTIONS = [
    Section("planner", "What a plan expects against a run", predictions, predictions_table, page=PAGE, by_case=True),
    Section("planner-choice", "The planner against timing everything", choices, choices_table, page=PAGE, by_case=True),
]
