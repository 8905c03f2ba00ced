"""Clients that know the right answer, and file every request under how it ended."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import aiohttp
import numpy as np

from .model import NAME, Case

CALLER_HEADER = "x-headrace-caller"
TIMEOUT_S = 30.0
# A client whose server is gone tries again after this long.
RETRY_S = 0.02
# Answer's status -> how the request ended. Anything else is a failure.
OUTCOMES = {200: "ok", 429: "refused", 503: "unavailable", 504: "expired"}
# Answers that must say when to try again. A deployment on Ray says so in its 503 too.
RETRY_AFTER = frozenset({429})
RETRY_AFTER_ON_RAY = frozenset({429, 503})
# Between us and the reference evaluator, which sums in another order.
ERROR_MAX = 1e-4
_VERSION = re.compile(rb'"model_version":"[0-9]+"')


@dataclass
class Tally:
    """How the requests of some clients ended.

    Attributes:
        outcomes: ok, wrong, refused (429), unavailable (503), expired, failed, or broken (no answer: the connection was
            refused or cut).
        begun_s: When those that are under way began, by `perf_counter`.
        latencies_s: Of each outcome.
        notes: A few messages of what should not have happened.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    begun_s: list[float] = field(default_factory=list)
    latencies_s: dict[str, list[float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def sent(self) -> int:
        """Requests that ended in any way."""
        return self.outcomes.total()

    def quantile_ms(self, outcome: str, share: float) -> float:
        """Milliseconds below which `share` of an outcome's latencies are; 0 of none."""
        values = self.latencies_s.get(outcome)
        return 1e3 * float(np.quantile(values, share)) if values else 0.0


class Client:
    """Sends requests and checks answers: the first of each case and version against the reference, every other bit for
    bit.

    Args:
        session: Its connections.
        url: Of the server.
        cases: What it asks for, in turns.
        retry_after: The statuses whose answers must have a ``Retry-After``.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        cases: Sequence[Case],
        retry_after: Collection[int] = RETRY_AFTER,
    ) -> None:
        self._session = session
        self._url = f"{url}/v2/models/{NAME}/infer"
        self._cases = cases
        self._retry_after = retry_after
        self._answers: dict[tuple[int, bytes], bytes] = {}

    async def one(self, number: int, tally: Tally, caller: str = "") -> str:
        """Sends the `number`-th request; returns how it ended."""
        index, start = number % len(self._cases), perf_counter()
        headers = {CALLER_HEADER: caller} if caller else {}
        tally.begun_s.append(start)
        try:
            async with self._session.post(self._url, data=self._cases[index].body, headers=headers) as response:
                payload = await response.read()
                outcome = OUTCOMES.get(response.status, "failed")
                if outcome == "ok" and not self._right(index, payload):
                    outcome = "wrong"
                if outcome in ("wrong", "failed"):
                    _note(tally, f"{outcome}: {response.status} {payload[:200]!r}")
                if response.status in self._retry_after and "Retry-After" not in response.headers:
                    _note(tally, f"{response.status} without Retry-After: {payload[:200]!r}")
                    outcome = "failed"
        except (aiohttp.ClientError, TimeoutError, OSError):
            outcome = "broken"
        finally:
            tally.begun_s.remove(start)
        tally.outcomes[outcome] += 1
        tally.latencies_s.setdefault(outcome, []).append(perf_counter() - start)
        return outcome

    async def closed_loop(
        self, connections: int, seconds: float, tally: Tally, stop: asyncio.Event | None = None
    ) -> None:
        """Keeps so many requests in flight for so long, or until `stop`, then waits for their answers."""
        end = perf_counter() + seconds

        async def caller(first: int) -> None:
            number = first
            while perf_counter() < end and not (stop and stop.is_set()):
                if await self.one(number, tally) == "broken":
                    await asyncio.sleep(RETRY_S)
                number += 1

        await asyncio.gather(*(caller(index) for index in range(connections)))

    async def open_loop(
        self, rate: float, seconds: float, tally: Tally, chance: random.Random, caller: str = ""
    ) -> None:
        """Sends as a Poisson process, whatever the answers do, then waits for all of them."""
        running: set[asyncio.Task[str]] = set()
        start = perf_counter()
        due, number = chance.expovariate(rate), 0
        while due < seconds:
            await asyncio.sleep(max(0.0, start + due - perf_counter()))
            task = asyncio.create_task(self.one(number, tally, caller))
            running.add(task)
            task.add_done_callback(running.discard)
            number += 1
            due += chance.expovariate(rate)
        await asyncio.gather(*running)

    def _right(self, index: int, payload: bytes) -> bool:
        version = _VERSION.search(payload)
        if version is None:
            return False
        known = self._answers.get((index, version[0]))
        if known is not None:
            return payload == known
        expected = self._cases[index].expected
        got = np.array(json.loads(payload)["outputs"][0]["data"], np.float32).reshape(expected.shape)
        if not np.allclose(got, expected, atol=ERROR_MAX):
            return False
        self._answers[index, version[0]] = payload
        return True


def session() -> aiohttp.ClientSession:
    """Keep-alive connections without a limit on their number."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)
    )


def _note(tally: Tally, message: str) -> None:
    if len(tally.notes) < 5:
        tally.notes.append(message)
