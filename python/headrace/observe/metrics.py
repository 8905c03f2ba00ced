"""The Prometheus exposition of an `OipService`.

Nothing here runs on the request path. The request path bumps plain counters and `Histogram`s; a scrape reads them, and
reads the Batchers' own ledgers, so the numbers on ``/metrics`` are the ones the scheduler goes by.

| metric | labels | is |
|---|---|---|
| headrace_requests_total | model, version, outcome | Requests by how they ended, the ledger's words below |
| headrace_requests_accepted_total | model, version | Requests the Batcher let in |
| headrace_queue_requests | model, version | Requests accepted and not answered yet |
| headrace_batches_total | model, version | Batches run |
| headrace_batch_size_requests | model, version | histogram: Requests per Batch |
| headrace_stage_seconds | model, version, stage | histogram: decode, queue, compute (per Batch), encode, total |
| headrace_queue_delay_seconds | model, version | the Batcher's estimate of the delay a Request meets now |
| headrace_capacity_requests_per_second | model, version | measured capacity |
| headrace_offered_requests_per_second | model, version | measured arrival rate |
| headrace_nonfinite_results_total | model, version | Results with NaN or Inf in an output |
| headrace_plan_info | model, version, backend, device, isa, precision, threads | 1: what really runs it |
| headrace_fallback_requests_total | model, version, wanted, backend | Results from a fallback, not the backend wanted |
| headrace_http_responses_total | code | HTTP answers of every route |
| headrace_grpc_responses_total | code | gRPC answers of every call |
| headrace_ready | | 1 where readiness is true |

Outcomes: ok, failed, expired and cancelled were accepted and add up, with those queued, to accepted; refused (no room,
or no hope of meeting the deadline) and rejected (a wrong request) never were. They are the Batcher's: a Result that the
guard against NaN and Inf turns into an error was computed, is ok, and counts in headrace_nonfinite_results_total.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.utils import floatToGoString

if TYPE_CHECKING:
    from headrace.serving.host import ServedModel
    from headrace.serving.service import OipService

__all__ = ["CONTENT_TYPE", "exposition"]

_MODEL = ["model", "version"]
_OUTCOMES = ("ok", "failed", "expired", "cancelled", "refused", "rejected")


def exposition(service: OipService) -> bytes:
    """All metrics of a server in Prometheus's text format."""
    text: bytes = generate_latest(_ServiceCollector(service))
    return text


class _ServiceCollector:
    """Looks like a registry to `generate_latest`: everything is gathered at the scrape."""

    def __init__(self, service: OipService) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        ready = GaugeMetricFamily("headrace_ready", "1 where every model is loaded and warmed.")
        ready.add_metric([], float(self._service.ready))
        yield ready
        http = CounterMetricFamily("headrace_http_responses", "HTTP answers.", labels=["code"])
        for status, count in sorted(self._service.http_responses.items()):
            http.add_metric([str(status)], float(count))
        yield http
        grpc = CounterMetricFamily("headrace_grpc_responses", "gRPC answers.", labels=["code"])
        for code, count in sorted(self._service.grpc_responses.items()):
            grpc.add_metric([code], float(count))
        yield grpc
        served = [(model, model.batcher.stats()) for model in self._service.host]
        yield from _placement(served)
        yield from _ledger(served)
        yield from _scheduler(served)
        yield _batch_sizes(served)
        yield _stages(served)


Served = list[tuple["ServedModel", dict[str, Any]]]


def _placement(served: Served) -> Iterable[Metric]:
    keys = ["backend", "device", "isa", "precision", "threads"]
    info = GaugeMetricFamily("headrace_plan_info", "1: what really runs the model.", labels=[*_MODEL, *keys])
    fallback = CounterMetricFamily(
        "headrace_fallback_requests",
        "Results from a fallback, not the backend wanted.",
        labels=[*_MODEL, "wanted", "backend"],
    )
    for model, stats in served:
        plan = model.engine.plan
        labels = [model.name, model.version]
        info.add_metric([*labels, *(str(getattr(plan, key)) for key in keys)], 1.0)
        if (wanted := plan.details.get("fallback_from")) is not None:
            fallback.add_metric([*labels, wanted, plan.backend], float(stats["ok"]))
    yield from (info, fallback)


def _ledger(served: Served) -> Iterable[Metric]:
    requests = CounterMetricFamily("headrace_requests", "Requests by how they ended.", labels=[*_MODEL, "outcome"])
    accepted = CounterMetricFamily("headrace_requests_accepted", "Requests the Batcher let in.", labels=_MODEL)
    nonfinite = CounterMetricFamily("headrace_nonfinite_results", "Results with NaN or Inf.", labels=_MODEL)
    for model, stats in served:
        labels = [model.name, model.version]
        for outcome in _OUTCOMES:
            count = model.rejected if outcome == "rejected" else stats[outcome]
            requests.add_metric([*labels, outcome], float(count))
        accepted.add_metric(labels, float(stats["accepted"]))
        nonfinite.add_metric(labels, float(model.nonfinite))
    return requests, accepted, nonfinite


def _scheduler(served: Served) -> Iterable[Metric]:
    queued = GaugeMetricFamily("headrace_queue_requests", "Requests accepted and not answered yet.", labels=_MODEL)
    batches = CounterMetricFamily("headrace_batches", "Batches run.", labels=_MODEL)
    delay = GaugeMetricFamily("headrace_queue_delay_seconds", "Delay a Request meets now.", labels=_MODEL)
    capacity = GaugeMetricFamily("headrace_capacity_requests_per_second", "Measured capacity.", labels=_MODEL)
    offered = GaugeMetricFamily("headrace_offered_requests_per_second", "Measured arrival rate.", labels=_MODEL)
    for model, stats in served:
        labels = [model.name, model.version]
        queued.add_metric(labels, float(stats["queued"]))
        batches.add_metric(labels, float(stats["batches"]))
        delay.add_metric(labels, float(stats["queue_delay_s"]))
        capacity.add_metric(labels, float(stats["capacity_rps"]))
        offered.add_metric(labels, float(stats["offered_rps"]))
    return queued, batches, delay, capacity, offered


def _batch_sizes(served: Served) -> Metric:
    sizes = HistogramMetricFamily("headrace_batch_size_requests", "Requests per Batch.", labels=_MODEL)
    for model, stats in served:
        # batch_sizes[n] is the number of Batches of n Requests. Powers of two are bounds enough.
        counts: list[int] = stats["batch_sizes"]
        bounds = [1 << power for power in range((model.max_batch - 1).bit_length() + 1)]
        buckets = [(str(bound), float(sum(counts[: bound + 1]))) for bound in bounds]
        total = sum(size * count for size, count in enumerate(counts))
        sizes.add_metric([model.name, model.version], [*buckets, ("+Inf", float(sum(counts)))], total)
    return sizes


def _stages(served: Served) -> Metric:
    stages = HistogramMetricFamily("headrace_stage_seconds", "Latency by stage.", labels=[*_MODEL, "stage"])
    for model, stats in served:
        labels = [model.name, model.version]
        for stage, histogram in model.stages.items():
            stages.add_metric([*labels, stage], histogram.cumulative(), histogram.total)
        for stage, key in (("queue", "queue_delay"), ("compute", "compute")):
            stages.add_metric([*labels, stage], _thinned(stats[key]["buckets"]), stats[key]["total_s"])
    return stages


def _thinned(buckets: Sequence[tuple[float, int]]) -> list[tuple[str, float]]:
    """Every second bound of the Batcher's: a factor of 2 apart is as fine as a dashboard shows."""
    kept = [*buckets[:-1:2], buckets[-1]]
    return [(floatToGoString(bound), float(count)) for bound, count in kept]
