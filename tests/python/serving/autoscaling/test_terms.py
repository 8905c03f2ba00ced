"""What the policy reckons with: staffing, forecasts, its configuration."""

from __future__ import annotations

import math
from typing import Any

import pytest

from headrace.serving.autoscaling import (
    PolicyConfig,
)
from headrace.serving.autoscaling.forecast import Forecast
from headrace.serving.autoscaling.staffing import replicas_for


def test_staffing_keeps_the_waits_of_a_single_queue_as_erlang_says() -> None:
    # Two servers with 1.7 Erlangs: C = 0.781. The wait is five services.
    late = 0.781 * math.exp(-2 * (2 - 1.7) * 5)
    assert replicas_for(1.7, 1.0, 5.0, 1.01 * late, 1.0, 50) == 2
    assert replicas_for(1.7, 1.0, 5.0, 0.99 * late, 1.0, 50) == 3


def test_many_replicas_need_less_headroom_than_few() -> None:
    shares = [replicas_for(10.0 * load, 10.0, 0.5, 0.001, 0.99, 5000) / load for load in (1, 4, 16, 64, 256, 1024)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] >= 2
    assert shares[-1] < 1.15


def test_a_tighter_objective_needs_more_replicas() -> None:
    counts = [replicas_for(500.0, 10.0, wait, 0.01, 0.9, 5000) for wait in (1.0, 0.3, 0.2, 0.1)]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1] <= 50 / 0.3 + 1


def test_the_forecast_follows_a_line_and_knows_its_errors() -> None:
    forecast = Forecast()
    for second in range(120):
        forecast = forecast.note(float(second), 50.0 + 2 * second, 10.0, 1.0, 20.0, 300.0)
    assert forecast.at(10.0) == pytest.approx(50 + 2 * 129, rel=0.01)
    calm = forecast.shortfall_rps
    for second in range(120, 132):
        forecast = forecast.note(float(second), 900.0, 10.0, 1.0, 20.0, 300.0)
    assert forecast.shortfall_rps > calm + 50
    assert forecast.note(5.0, 7.0, 10.0, 1.0, 20.0, 300.0).at(10.0) == 7.0, "a clock that stepped back starts over"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"min_replicas": 3, "max_replicas": 2}, "got min_replicas=3, max_replicas=2"),
        ({"target_utilisation": 0.0}, "got target_utilisation=0.0"),
        ({"slo_s": 0.0}, "got slo_s=0.0"),
        ({"down_margin": 1.0}, "got down_margin=1.0"),
        ({"cold_start_s": math.nan}, "got cold_start_s=nan"),
        ({"late_share": 1.0}, "got late_share=1.0"),
    ],
)
def test_a_bad_config_says_what_was_expected(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="expected") as caught:
        PolicyConfig(**bad)
    assert message in str(caught.value)
