"""Open-loop load: Poisson arrivals at a rate that rises and falls, whatever the answers do."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import aiohttp
import numpy as np
from client import LENGTH, Body, decode

# Longer than any cold start; a request without an answer by then counts as lost.
TIMEOUT_S = 60.0
# How often the open loop looks at the clock: arrivals are this exact.
TICK_S = 0.002
# Answer's status -> how the request ended. Anything else is a failure; no answer at all is a loss.
OUTCOMES = {200: "ok", 429: "refused", 503: "refused", 504: "expired"}


@dataclass(frozen=True)
class Profile:
    """A share of the peak rate over time: pieces of (seconds, share at their start, share at their end)."""

    pieces: tuple[tuple[float, float, float], ...]

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return sum(piece[0] for piece in self.pieces)

    def share(self, at_s: float) -> float:
        """The share of the peak at `at_s` seconds after the start."""
        for seconds, first, last in self.pieces:
            if at_s < seconds:
                return first + (last - first) * at_s / seconds
            at_s -= seconds
        return 0.0


@dataclass
class Record:
    """What happened to the requests of one model.

    Attributes:
        sent_s: When each was sent, in seconds after the start of the clock.
        done: (when it was answered, latency in seconds, outcome) of each that ended.
        sent: How many were sent.
        outcomes: How they ended: ok, refused, expired, failed, lost.
        error_max: Largest difference between an answer and the framework's own, over every ok answer.
        failures: A few messages of what failed or was lost.
    """

    sent_s: list[float] = field(default_factory=list)
    done: list[tuple[float, float, str]] = field(default_factory=list)
    sent: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    error_max: float = 0.0
    failures: list[str] = field(default_factory=list)

    def fail(self, message: str) -> None:
        """Keeps the first few messages."""
        if len(self.failures) < 5:
            self.failures.append(message)


class Sender:
    """Sends the requests of one model.

    Args:
        session: The HTTP client.
        url: The model's inference URL.
        bodies: What to send, in turn.
        clock_s: `perf_counter` at the start of the clock.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str, bodies: Sequence[Body], clock_s: float) -> None:
        self._session = session
        self._url = url
        self._bodies = bodies
        self._clock_s = clock_s
        self.record = Record()

    async def one(self, body: Body) -> str:
        """Sends one request and files its answer; returns how it ended."""
        record, start = self.record, perf_counter()
        record.sent += 1
        record.sent_s.append(start - self._clock_s)
        try:
            async with self._session.post(self._url, data=body.payload, headers=body.headers) as response:
                payload = await response.read()
                outcome = OUTCOMES.get(response.status, "failed")
                if outcome == "ok":
                    got = decode(payload, response.headers.get(LENGTH), body.output)
                    record.error_max = max(record.error_max, float(np.abs(got - body.expected).max()))
                elif outcome == "failed":
                    record.fail(f"{response.status}: {payload[:300]!r}")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            outcome = "lost"
            record.fail(f"{type(error).__name__}: {error}")
        except ValueError as error:
            outcome = "failed"
            record.fail(str(error))
        now = perf_counter()
        record.outcomes[outcome] += 1
        record.done.append((now - self._clock_s, now - start, outcome))
        return outcome

    async def open_loop(self, profile: Profile, peak_rps: Callable[[], float], seed: int) -> None:
        """Follows `profile`, then waits for every answer.

        Args:
            profile: The shape of the load.
            peak_rps: The rate at its peak; asked again and again, because what a machine can do changes.
            seed: Of the arrival times.
        """
        chance, start, running, number = random.Random(seed), perf_counter(), set[asyncio.Task[str]](), 0
        # A Poisson process of a changing rate: an arrival is due whenever the integral of the rate has grown by an
        # exponential variate of mean 1.
        due, at_s = chance.expovariate(1.0), 0.0
        while at_s < profile.seconds:
            await asyncio.sleep(TICK_S)
            now_s = perf_counter() - start
            due -= profile.share(at_s) * peak_rps() * (now_s - at_s)
            at_s = now_s
            while due <= 0:
                task = asyncio.create_task(self.one(self._bodies[number % len(self._bodies)]))
                running.add(task)
                task.add_done_callback(running.discard)
                number += 1
                due += chance.expovariate(1.0)
        if running:
            await asyncio.wait(running)

    async def closed_loop(self, callers: int, seconds: float) -> None:
        """Keeps `callers` requests in flight for `seconds`, then waits for every answer."""
        end = perf_counter() + seconds

        async def caller(first: int) -> None:
            number = first
            while perf_counter() < end:
                await self.one(self._bodies[number % len(self._bodies)])
                number += callers

        await asyncio.gather(*(caller(first) for first in range(callers)))


def http_session() -> aiohttp.ClientSession:
    """A client without a limit on connections: an open loop must not wait for one."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=TIMEOUT_S), auto_decompress=True
    )
