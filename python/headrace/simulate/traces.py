"""Arrivals, read from a file or made up: a rate per interval (then they are Poisson), or each request by itself."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from headrace.errors import ConfigError

DAY_S = 86400.0
# A trace longer than this many intervals, or a file with more rows, is a mistake in its units.
ROWS_MAX = 50_000_000


@dataclass(frozen=True)
class Trace:
    """What is offered over time.

    Attributes:
        name: For tables and plots.
        interval_s: Length of an interval.
        rates: Requests per second in each interval, float64 of shape (intervals,).
        arrivals_s: When each request comes, sorted, float64; None where only the rates are known.
    """

    name: str
    interval_s: float
    rates: npt.NDArray[np.float64]
    arrivals_s: npt.NDArray[np.float64] | None = None

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return len(self.rates) * self.interval_s


@dataclass(frozen=True)
class Shape:
    """What a made trace looks like.

    Attributes:
        seconds: How long it lasts.
        base_rps: The least rate.
        peak_rps: The largest rate, bursts left out.
        burst: By how much a burst raises the rate, as a share of it.
        burst_s: How long a burst lasts, on average.
        calm_s: How long it is between two, on average.
        ramp_s: How long a burst, or a step, takes to reach its height.
        seed: Of the bursts.
    """

    seconds: float = DAY_S
    base_rps: float = 10.0
    peak_rps: float = 100.0
    burst: float = 0.3
    burst_s: float = 120.0
    calm_s: float = 1800.0
    ramp_s: float = 15.0
    seed: int = 1

    def __post_init__(self) -> None:
        for name in ("seconds", "burst_s", "calm_s"):
            if not 0 < getattr(self, name) < 1e9:
                raise ConfigError(f"trace: got {name}={getattr(self, name)}, expected more than 0")
        for name in ("base_rps", "peak_rps", "burst", "ramp_s"):
            if not 0 <= getattr(self, name) < 1e9:
                raise ConfigError(f"trace: got {name}={getattr(self, name)}, expected 0 or more")
        if self.base_rps > self.peak_rps:
            raise ConfigError(f"trace: got base_rps={self.base_rps:g}, expected at most peak_rps={self.peak_rps:g}")


def diurnal(shape: Shape, interval_s: float = 1.0) -> Trace:
    """Days that go from the base at midnight to the peak at noon and back, times bursts."""
    at_s = _times(shape, interval_s)
    rates = shape.base_rps + (shape.peak_rps - shape.base_rps) * (0.5 - 0.5 * np.cos(2 * np.pi * at_s / DAY_S))
    return Trace("diurnal", interval_s, rates * (1 + shape.burst * _bursts(shape, at_s)))


def mmpp(shape: Shape, interval_s: float = 1.0) -> Trace:
    """A Markov-modulated Poisson process of two states: the base and the peak, each left after a random time."""
    at_s = _times(shape, interval_s)
    return Trace("mmpp", interval_s, shape.base_rps + (shape.peak_rps - shape.base_rps) * _bursts(shape, at_s))


def step(shape: Shape, interval_s: float = 1.0) -> Trace:
    """The base, the peak for the middle third, and the base again."""
    at_s = _times(shape, interval_s)
    third = shape.seconds / 3
    rates = np.interp(
        at_s, [0, third, third + shape.ramp_s, 2 * third, 2 * third + shape.ramp_s], [0.0, 0.0, 1.0, 1.0, 0.0]
    )
    return Trace("step", interval_s, shape.base_rps + (shape.peak_rps - shape.base_rps) * rates)


def spike(shape: Shape, interval_s: float = 1.0) -> Trace:
    """The base, with one spike to the peak as long as `burst_s` in the middle."""
    at_s = _times(shape, interval_s)
    start = (shape.seconds - shape.burst_s) / 2
    edges = np.cumsum([start, shape.ramp_s, shape.burst_s, shape.ramp_s])
    rates = np.interp(at_s, edges, [0.0, 1.0, 1.0, 0.0])
    return Trace("spike", interval_s, shape.base_rps + (shape.peak_rps - shape.base_rps) * rates)


KINDS: dict[str, Callable[[Shape], Trace]] = {"diurnal": diurnal, "mmpp": mmpp, "step": step, "spike": spike}


def _times(shape: Shape, interval_s: float) -> npt.NDArray[np.float64]:
    count = round(shape.seconds / interval_s)
    if not 1 <= count <= ROWS_MAX:
        raise ConfigError(f"trace: got {count} intervals of {interval_s:g} s, expected 1 to {ROWS_MAX}")
    return (np.arange(count, dtype=np.float64) + 0.5) * interval_s


def _bursts(shape: Shape, at_s: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Between 0 (calm) and 1 (burst): exponential times in each state, and ramps in between."""
    chance = np.random.default_rng(shape.seed)
    edges, heights, now = [0.0], [0.0], 0.0
    while now < shape.seconds:
        now = edges[-1] + chance.exponential(shape.calm_s)
        length = shape.ramp_s + chance.exponential(shape.burst_s)
        # np.interp wants points that do not go back; a ramp of no length gets as little as a double resolves.
        ramp_s = max(shape.ramp_s, 1e-6)
        edges += [now, now + ramp_s, now + length, now + length + ramp_s]
        heights += [0.0, 1.0, 1.0, 0.0]
    shares: npt.NDArray[np.float64] = np.interp(at_s, edges, heights)
    return shares


def read(path: Path) -> Trace:
    """Reads a trace from a CSV file.

    Its first line names the columns: ``arrival_s`` (one line per request, in seconds), or ``start_s,rate_rps`` (one
    line per interval: when it starts, and its rate, which holds until the next; the last as long as the one before).

    Raises:
        ConfigError: The file cannot be read, has other columns, or numbers that make no trace; it says where.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets write a byte-order mark
            rows = csv.reader(file)
            columns = [name.strip() for name in next(rows, [])]
            if columns not in (["arrival_s"], ["start_s", "rate_rps"]):
                raise ConfigError(
                    f"{path}, line 1: got columns {','.join(columns) or 'none'}, expected arrival_s or start_s,rate_rps"
                )
            numbers = _numbers(path, rows, len(columns))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: got {error}, expected a CSV file") from error
    at_s = numbers[:, 0]
    if np.any(np.diff(at_s) < 0):
        line = int(np.argmax(np.diff(at_s) < 0)) + 3
        raise ConfigError(f"{path}, line {line}: got a time before the one above it, expected them in order")
    return _of_arrivals(path, at_s) if len(columns) == 1 else _of_rates(path, at_s, numbers[:, 1])


def _numbers(path: Path, rows: csv._reader, width: int) -> npt.NDArray[np.float64]:  # type: ignore[name-defined]
    numbers: list[list[float]] = []
    for line, row in enumerate(rows, start=2):
        if not row:
            continue
        try:
            values = [float(cell) for cell in row]
        except ValueError:
            values = []
        if len(values) != width or not all(0 <= value < 1e12 for value in values):
            raise ConfigError(f"{path}, line {line}: got {','.join(row)[:80]!r}, expected {width} numbers, 0 or more")
        numbers.append(values)
        if len(numbers) > ROWS_MAX:
            raise ConfigError(f"{path}: got more than {ROWS_MAX} lines, expected fewer")
    if not numbers:
        raise ConfigError(f"{path}: got no numbers, expected a line per request or interval")
    return np.array(numbers)


def _of_arrivals(path: Path, at_s: npt.NDArray[np.float64]) -> Trace:
    at_s = at_s - at_s[0]
    count = int(at_s[-1]) + 1
    if count > ROWS_MAX:
        raise ConfigError(f"{path}: got arrivals over {count} s, expected at most {ROWS_MAX}; are they in seconds?")
    rates = np.bincount(at_s.astype(np.int64), minlength=count).astype(np.float64)
    return Trace(path.stem, 1.0, rates, at_s)


def _of_rates(path: Path, at_s: npt.NDArray[np.float64], rates: npt.NDArray[np.float64]) -> Trace:
    at_s = at_s - at_s[0]
    last = at_s[-1] - at_s[-2] if len(at_s) > 1 else 1.0
    count = round(at_s[-1] + last)
    if not 1 <= count <= ROWS_MAX:
        raise ConfigError(f"{path}: got {count} s in all, expected 1 to {ROWS_MAX}; are the times in seconds?")
    place = np.searchsorted(at_s, np.arange(count) + 1e-9, side="right") - 1
    return Trace(path.stem, 1.0, rates[place])
