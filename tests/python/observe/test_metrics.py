"""What /metrics says, read by Prometheus's own parser."""

from __future__ import annotations

import asyncio

from prometheus_client.parser import text_string_to_metric_families
from serving_fakes import FakeBatcher, Served, acall, call, make_config, make_served, rows

INFER = "/v2/models/doubler/infer"


def scrape(served: Served) -> dict[tuple[str, tuple[str, ...]], float]:
    """(sample name, label values in the order of their names) -> value."""
    answer = call(served.app, "GET", "/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = {}
    for family in text_string_to_metric_families(answer.body.decode()):
        for sample in family.samples:
            labels = tuple(value for _, value in sorted(sample.labels.items()))
            assert (sample.name, labels) not in samples
            samples[sample.name, labels] = sample.value
    return samples


def outcomes(samples: dict[tuple[str, tuple[str, ...]], float]) -> dict[str, float]:
    return {labels[1]: value for (name, labels), value in samples.items() if name == "headrace_requests_total"}


def test_the_ledger_balances_after_every_kind_of_ending() -> None:
    served = make_served(make_config(max_queue=2))
    for body in (rows(1, 2, 3), rows(1, 2), b"junk", rows(666, 0, 0), rows(1, 2, 3)):
        call(served.app, "POST", INFER, body)
    served.engines[0].gate.clear()

    async def overload() -> None:
        tasks = [asyncio.create_task(acall(served.app, "POST", INFER, rows(1, 2, 3, parameters={"timeout": 1000})))]
        for _ in range(4):
            await asyncio.sleep(0.01)
            tasks.append(
                asyncio.create_task(acall(served.app, "POST", INFER, rows(1, 2, 3, parameters={"timeout": 1})))
            )
        await asyncio.sleep(0.02)
        served.engines[0].gate.set()
        await asyncio.gather(*tasks)

    asyncio.run(overload())
    samples = scrape(served)
    counted = outcomes(samples)
    assert counted == {"ok": 3, "failed": 1, "expired": 1, "cancelled": 0, "refused": 3, "rejected": 2}
    accepted = samples["headrace_requests_accepted_total", ("doubler", "1")]
    queued = samples["headrace_queue_requests", ("doubler", "1")]
    assert accepted == queued + sum(counted[word] for word in ("ok", "failed", "expired", "cancelled"))
    responses = {
        labels[0]: value for (name, labels), value in samples.items() if name == "headrace_http_responses_total"
    }
    assert responses == {"200": 3, "400": 2, "429": 3, "500": 1, "504": 1}
    assert sum(responses.values()) == sum(counted.values()), "every request ends once, in both books"


def test_stages_are_observed_per_model_and_version() -> None:
    served = make_served(make_config(versions=(1, 2)), make_config("other"))
    for _ in range(3):
        call(served.app, "POST", INFER, rows(1, 2, 3))
    call(served.app, "POST", INFER, b"junk")
    samples = scrape(served)
    for stage, count in (("decode", 3), ("queue", 3), ("compute", 3), ("encode", 3), ("total", 4)):
        assert samples["headrace_stage_seconds_count", ("doubler", stage, "2")] == count
        assert samples["headrace_stage_seconds_count", ("doubler", stage, "1")] == 0
        assert samples["headrace_stage_seconds_count", ("other", stage, "1")] == 0
    parts = sum(samples["headrace_stage_seconds_sum", ("doubler", stage, "2")] for stage in ("decode", "encode"))
    assert 0 < parts < samples["headrace_stage_seconds_sum", ("doubler", "total", "2")]


def test_batch_sizes_are_a_histogram() -> None:
    served = make_served(make_config(max_batch=6))
    sizes = [0, 5, 2, 0, 0, 1, 3]  # five Batches of one Request, two of two, one of five, three of six
    served.batchers[0].stats = lambda: {**FakeBatcher.stats(served.batchers[0]), "batch_sizes": sizes}  # type: ignore[method-assign]
    samples = scrape(served)
    name = "headrace_batch_size_requests"
    buckets = {labels[0]: value for (key, labels), value in samples.items() if key == name + "_bucket"}
    assert buckets == {"1": 5, "2": 7, "4": 7, "8": 11, "+Inf": 11}
    assert samples[name + "_count", ("doubler", "1")] == 11
    assert samples[name + "_sum", ("doubler", "1")] == 5 + 4 + 5 + 18


def test_guards_and_readiness_are_told() -> None:
    served = make_served()
    call(served.app, "POST", INFER, rows(1, 3e38, 2))
    samples = scrape(served)
    assert samples["headrace_nonfinite_results_total", ("doubler", "1")] == 1
    assert samples["headrace_ready", ()] == 1
    served.host.drain()
    assert scrape(served)["headrace_ready", ()] == 0


def test_the_ledger_is_there_as_a_dict_too() -> None:
    served = make_served()
    call(served.app, "POST", INFER, rows(1, 2, 3))
    call(served.app, "POST", INFER, b"junk")
    ledger = served.host.stats()["doubler/1"]
    assert (ledger["accepted"], ledger["ok"], ledger["rejected"]) == (1, 1, 1)
