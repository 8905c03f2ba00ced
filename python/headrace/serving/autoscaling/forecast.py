"""The offered rate a little later: Holt's linear smoothing, and how wrong it has been lately."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

# More forecasts than this are never waiting for their time to come: the horizon in steps is capped at it.
_WAITING_MAX = 64
# A gap longer than this many steps (no reports, no calls) says nothing about the trend.
_GAP_STEPS = 10.0


@dataclass(frozen=True)
class Forecast:
    """Level and trend of a rate, with the errors of the forecasts made from them.

    Holt's method (1957; Gardner, Journal of Forecasting 4(1), 1985) for steps of any length dt:

        level <- rate_before + a * (rate - rate_before),  a = 1 - exp(-dt / level_tau)
        trend <- trend + b * ((level - level_before) / dt - trend),  b = 1 - exp(-dt / trend_tau)

    with rate_before = level + trend * dt. A forecast for h seconds on is level + h * trend; h seconds later it is held
    against what came, and the mean square of what it was too low by, over `error_tau`, is the margin to keep.

    Attributes:
        at_s: When the last rate was noted; None before the first.
        level_rps: Smoothed rate then.
        trend_rps_s: Its change per second.
        error_rps2: Mean square of the shortfall.
        waiting: (due time, forecast) of forecasts whose time has not come.
    """

    at_s: float | None = None
    level_rps: float = 0.0
    trend_rps_s: float = 0.0
    error_rps2: float = 0.0
    waiting: tuple[tuple[float, float], ...] = ()

    def at(self, horizon_s: float) -> float:
        """The rate expected `horizon_s` from the last one noted, in requests per second."""
        return max(0.0, self.level_rps + horizon_s * self.trend_rps_s)

    @property
    def shortfall_rps(self) -> float:
        """By how much forecasts have been too low, as a root mean square."""
        return math.sqrt(self.error_rps2)

    def note(
        self,
        now_s: float,
        rate_rps: float,
        horizon_s: float,
        level_tau_s: float,
        trend_tau_s: float,
        error_tau_s: float,
    ) -> Forecast:
        """The forecast with one more rate in it.

        Args:
            now_s: Not before the last one; a clock that stepped back starts the forecast over.
            rate_rps: The rate measured now.
            horizon_s: How far ahead the forecasts are whose errors count.
            level_tau_s: Memory of the level.
            trend_tau_s: Memory of the trend.
            error_tau_s: Memory of the errors.
        """
        step_s = max(horizon_s / _WAITING_MAX, level_tau_s / 4)
        if self.at_s is None or now_s < self.at_s or now_s - self.at_s > _GAP_STEPS * max(step_s, horizon_s):
            return Forecast(now_s, rate_rps, 0.0, self.error_rps2, ())
        dt = now_s - self.at_s
        if dt < step_s:
            return self
        expected = self.level_rps + dt * self.trend_rps_s
        level = max(0.0, expected + -math.expm1(-dt / level_tau_s) * (rate_rps - expected))
        slope = (level - self.level_rps) / dt
        trend = self.trend_rps_s + -math.expm1(-dt / trend_tau_s) * (slope - self.trend_rps_s)
        error = self.error_rps2
        due = [made for at, made in self.waiting if at <= now_s]
        if due:
            shortfall = max(0.0, rate_rps - due[-1])
            error += -math.expm1(-dt / error_tau_s) * (shortfall * shortfall - error)
        noted = replace(self, at_s=now_s, level_rps=level, trend_rps_s=trend, error_rps2=error)
        waiting = (*self.waiting[len(due) :], (now_s + horizon_s, noted.at(horizon_s)))
        return replace(noted, waiting=waiting[-2 * _WAITING_MAX :])
