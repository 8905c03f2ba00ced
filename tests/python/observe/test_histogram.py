"""The cheap histogram counts as prometheus_client's does."""

from __future__ import annotations

import math

import prometheus_client
from hypothesis import given
from hypothesis import strategies as st

from headrace.observe.histogram import LATENCY_BOUNDS_S, Histogram

values = st.one_of(st.floats(0, 20), st.sampled_from(LATENCY_BOUNDS_S))


@given(st.lists(values, max_size=50))
def test_it_counts_as_prometheus_client_does(observed: list[float]) -> None:
    ours = Histogram()
    theirs = prometheus_client.Histogram("h", "h", buckets=LATENCY_BOUNDS_S, registry=None)
    for value in observed:
        ours.observe(value)
        theirs.observe(value)
    (family,) = theirs.collect()
    buckets = [sample.value for sample in family.samples if sample.name == "h_bucket"]
    (total,) = (sample.value for sample in family.samples if sample.name == "h_sum")
    assert [count for _, count in ours.cumulative()] == buckets
    assert math.isclose(ours.total, total, abs_tol=1e-12)
    assert [bound for bound, _ in ours.cumulative()][-1] == "+Inf"
