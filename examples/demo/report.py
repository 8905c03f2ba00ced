"""The demo's report: one HTML file with its figures inside."""

from __future__ import annotations

import base64
import io
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from traffic import Record
from watch import COUNTS, Sample, quantile

from headrace.serving.front_ledgers import ReplicaLedger

BIN_S = 1.0
COLOURS = {"offered": "#5b6b78", "served": "#1565c0", "p50": "#2e7d32", "p99": "#c62828", "batch": "#6a1b9a"}


@dataclass(frozen=True)
class Check:
    """One thing the demo promises, and whether it came true."""

    text: str
    ok: bool


@dataclass(frozen=True)
class ModelReport:
    """Everything the report says about one model.

    Attributes:
        phases: Name -> (from, to), in seconds after the start of the clock, for the latency table.
        plan: What really ran it, in one line.
    """

    name: str
    what: str
    plan: str
    peak_rps: float
    capacity_rps: float
    record: Record
    samples: list[Sample]
    ledgers: list[ReplicaLedger]
    phases: dict[str, tuple[float, float]]


def write(path: Path, models: list[ModelReport], checks: list[Check], machine: str) -> Path:
    """Writes the report to `path`."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, autoescape=True, trim_blocks=True
    )
    page = environment.get_template("report.html.j2").render(
        when=time.strftime("%Y-%m-%d %H:%M"),
        machine=f"{platform.node()} ({machine})",
        checks=checks,
        counts=COUNTS,
        models=[_context(model) for model in models],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _context(model: ModelReport) -> dict[str, Any]:
    replicas = [
        {
            "name": ledger.replica,
            "final": ledger.final,
            "counts": {key: int(ledger.stats.get(key, 0)) for key in COUNTS},
        }
        for ledger in model.ledgers
    ]
    return {
        "name": model.name,
        "what": model.what,
        "plan": model.plan,
        "peak_rps": model.peak_rps,
        "capacity_rps": model.capacity_rps,
        "figure": _figure(model),
        "latency": [_latency_row(model.record, phase, *span) for phase, span in model.phases.items()],
        "sent": model.record.sent,
        "outcomes": model.record.outcomes,
        "replicas": replicas,
        "total": {key: sum(replica["counts"][key] for replica in replicas) for key in COUNTS},
        "failures": model.record.failures,
    }


def _latency_row(record: Record, phase: str, first_s: float, last_s: float) -> dict[str, Any]:
    """By when a request was sent, so that a slow one counts for the phase that made it slow."""
    chosen = sorted(took for when, took, outcome in record.done if outcome == "ok" and first_s <= when - took < last_s)
    figures = [quantile(chosen, share) * 1e3 for share in (0.5, 0.9, 0.99, 1.0)]
    return {"phase": phase, "count": len(chosen), "figures": figures}


def _figure(model: ModelReport) -> str:
    """Rates, latency, batch size and replicas over time, as a data URI."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    record, samples = model.record, model.samples
    end_s = max([0.0, *(sample.at_s for sample in samples), *(when for when, _, _ in record.done)])
    edges = np.arange(0.0, end_s + BIN_S, BIN_S)
    middle = (edges[:-1] + edges[1:]) / 2
    figure, (rates, latency, batch, replicas) = pyplot.subplots(
        4, 1, figsize=(10, 8.5), sharex=True, height_ratios=(3, 3, 2, 1.5), layout="constrained"
    )
    served = [when for when, _, outcome in record.done if outcome == "ok"]
    rates.plot(middle, np.histogram(record.sent_s, edges)[0] / BIN_S, color=COLOURS["offered"], label="offered")
    rates.plot(middle, np.histogram(served, edges)[0] / BIN_S, color=COLOURS["served"], label="served", alpha=0.8)
    rates.set_ylabel("requests / s")
    _plot_latency(latency, record, edges, middle)
    times = [sample.at_s for sample in samples]
    batch.plot(*_batch_sizes(samples), color=COLOURS["batch"])
    batch.set_ylabel("mean batch")
    replicas.step(times, [sample.running for sample in samples], where="post", color="black", label="running")
    asked = [sample.running + sample.starting for sample in samples]
    replicas.fill_between(times, asked, step="post", color="orange", alpha=0.4, label="and starting")
    replicas.set_ylabel("replicas")
    replicas.set_xlabel("seconds")
    replicas.yaxis.get_major_locator().set_params(integer=True)
    for axes in (rates, latency, replicas):
        axes.legend(loc="upper right", frameon=False, ncols=2)
    for axes in (rates, latency, batch, replicas):
        axes.grid(alpha=0.25)
        axes.set_ylim(bottom=None if axes is latency else 0)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    pyplot.close(figure)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _plot_latency(axes: Any, record: Record, edges: np.ndarray, middle: np.ndarray) -> None:
    ends = np.array([when for when, _, outcome in record.done if outcome == "ok"])
    took = np.array([latency for _, latency, outcome in record.done if outcome == "ok"]) * 1e3
    where = np.digitize(ends, edges) - 1
    for share, name in ((0.5, "p50"), (0.99, "p99")):
        values = [
            quantile(sorted(took[where == index]), share) if (where == index).any() else np.nan
            for index in range(len(middle))
        ]
        axes.plot(middle, values, color=COLOURS[name], label=name)
    axes.set_yscale("log")
    axes.set_ylabel("latency, ms")


def _batch_sizes(samples: list[Sample], step: int = 4) -> tuple[list[float], list[float]]:
    """Mean requests per batch between samples `step` apart; no point where no batch ran."""
    times, sizes = [], []
    for before, after in zip(samples[:-step], samples[step:], strict=True):
        batches = after.counts["batches"] - before.counts["batches"]
        times.append(after.at_s)
        sizes.append((after.counts["ok"] - before.counts["ok"]) / batches if batches else float("nan"))
    return times, sizes
