"""Traces: what made ones look like, and what is read from files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from headrace.errors import ConfigError
from headrace.simulate import Shape, diurnal, mmpp, read, spike, step


def test_a_day_is_quiet_at_midnight_and_busiest_at_noon() -> None:
    trace = diurnal(Shape(base_rps=10, peak_rps=100, burst=0))
    assert trace.seconds == 86400
    assert trace.rates[0] == pytest.approx(10, abs=0.01)
    assert np.argmax(trace.rates) == pytest.approx(43200, abs=2)
    assert trace.rates.max() == pytest.approx(100, abs=0.01)


def test_bursts_have_the_height_and_the_share_of_time_asked_for() -> None:
    calm = diurnal(Shape(base_rps=50, peak_rps=50, burst=0))
    bursty = diurnal(Shape(base_rps=50, peak_rps=50, burst=0.4, burst_s=60, calm_s=240, ramp_s=5, seed=3))
    assert bursty.rates.max() == pytest.approx(70)
    assert bursty.rates.min() == calm.rates.min()
    assert np.mean(bursty.rates > 60) == pytest.approx(65 / 310, rel=0.25)
    assert not np.array_equal(bursty.rates, diurnal(Shape(base_rps=50, peak_rps=50, burst=0.4, seed=4)).rates)


def test_steps_and_spikes_are_where_they_should_be() -> None:
    shape = Shape(seconds=300, base_rps=10, peak_rps=100, ramp_s=0, burst_s=20)
    assert [step(shape).rates[at] for at in (50, 150, 250)] == [10, 100, 10]
    assert [spike(shape).rates[at] for at in (130, 150, 170)] == [10, 100, 10]
    assert set(np.unique(mmpp(shape).rates)) <= {10.0, 100.0}


def test_a_file_of_arrivals_is_replayed_from_its_first(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("arrival_s\n100.5\n100.75\n\n103.0\n")
    trace = read(path)
    assert trace.arrivals_s is not None
    assert trace.arrivals_s.tolist() == [0, 0.25, 2.5]
    assert trace.rates.tolist() == [2, 0, 1]
    assert trace.name == "trace"


def test_a_file_of_rates_holds_each_until_the_next(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    for encoding in ("utf-8", "utf-8-sig"):  # the latter is what spreadsheets write
        path.write_text("start_s,rate_rps\n0,5\n2,7.5\n5,1\n", encoding=encoding)
        assert read(path).rates.tolist() == [5, 5, 7.5, 7.5, 7.5, 1, 1, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: got columns none"),
        ("when\n1\n", "line 1: got columns when, expected arrival_s or start_s,rate_rps"),
        ("arrival_s\n1\nx\n", "line 3: got 'x', expected 1 numbers"),
        ("arrival_s\n1\nnan\n", "line 3: got 'nan'"),
        ("arrival_s\n2\n1\n", "line 3: got a time before the one above it"),
        ("start_s,rate_rps\n1,-2\n", "line 2: got '1,-2'"),
        ("arrival_s\n", "got no numbers"),
        ("arrival_s\n0\n99999999999\n", "are they in seconds"),
    ],
)
def test_a_file_that_is_no_trace_says_where(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read(path)


def test_a_missing_file_is_a_plain_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.csv: got"):
        read(tmp_path / "none.csv")


def test_a_shape_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match="got base_rps=5"):
        Shape(base_rps=5, peak_rps=4)
    with pytest.raises(ConfigError, match="got seconds=0"):
        Shape(seconds=0)
