"""The campaigns. Each returns what it saw and which of its promises held."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

from .load import Client, Tally, session
from .model import save
from .ray_campaigns import RAY_CAMPAIGNS, alone, ray_scale
from .report import Report, lost_of
from .server import Server
from .soak import soak
from .swap import swap

CONNECTIONS = 8
# Of the deadline that a request without its own gets, in the campaigns that overload.
SLO_MS = 250
OVERLOAD = 10
# A client that is one Python process adds some of its own to what it measures.
CLIENT_SLACK_MS = 25


async def kill(folder: Path, seed: int, seconds: float) -> Report:
    """kill -9 of the server every second or so, under load: only what was in flight there may go unanswered."""
    return await _ended(folder, seed, seconds, Server.kill)


async def drain(folder: Path, seed: int, seconds: float) -> Report:
    """SIGTERM every second or so, under load: everything accepted is answered."""
    report = await _ended(folder, seed, seconds, Server.stop)
    report.promises["nothing accepted was lost"] = report.facts["ledger lost"] == 0
    # A connection kept alive may be closed just as its next request leaves the client; that one was never accepted.
    report.promises["every answer arrived"] = report.facts["ledger ok"] == report.facts["clients ok"]
    return report


async def _ended(folder: Path, seed: int, seconds: float, end: Callable[[Server], int]) -> Report:
    chance, report, tally = random.Random(seed), Report(), Tally()
    cases = save(folder / "models", layers=2)
    with Server(folder / "models", folder / "ledger") as server:
        ends, codes = 0, set[int]()
        async with session() as http:
            load = asyncio.create_task(Client(http, server.url, cases).closed_loop(CONNECTIONS, seconds, tally))
            while True:
                await asyncio.wait({load}, timeout=chance.uniform(0.5, 1.5))
                if load.done():
                    break
                codes.add(await asyncio.to_thread(end, server))
                ends += 1
                await asyncio.to_thread(server.start)
            await load
        await asyncio.to_thread(server.stop)
    report.facts["ends"] = ends
    report.promises["the server ended as it was told to"] = codes <= {0, -signal.SIGKILL}
    report.facts["slowest start in s"] = round(max(server.starts_s), 2)
    report.add("clients", tally)
    report.balance(server.ledger, tally)
    report.promises["the server was ended, and came back"] = ends > 0 and tally.outcomes["ok"] > 0
    report.promises["none lost more than was in flight"] = max(lost_of(server.ledger).values()) <= CONNECTIONS
    return report


async def overload(folder: Path, seed: int, seconds: float) -> Report:
    """Ten times what the server can do: it still does nearly all it can, and refuses the rest at once."""
    report, calm, storm = Report(), Tally(), Tally()
    async with _steady(folder) as (server, client):
        capacity = await _capacity(client, seconds, calm)
        await client.open_loop(OVERLOAD * capacity, seconds, storm, random.Random(seed))
        await asyncio.to_thread(server.stop)
    service_ms = 1e3 / capacity
    late_ms = SLO_MS + service_ms + CLIENT_SLACK_MS
    goodput = storm.outcomes["ok"] / seconds
    report.facts |= {
        "capacity per s": round(capacity, 1),
        "goodput per s": round(goodput, 1),
        "refusal p99 in ms": round(storm.quantile_ms("refused", 0.99), 1),
        "slowest answer in ms": round(storm.quantile_ms("ok", 1), 1),
    }
    report.add("clients", storm)
    report.balance(server.ledger, calm, storm)
    report.promises["what could not be done was refused"] = storm.outcomes["refused"] > 0
    report.promises["nothing was unavailable or broken"] = not storm.outcomes["unavailable"] + storm.outcomes["broken"]
    report.bars[f"goodput at {OVERLOAD} times the capacity is at least 90 % of it"] = goodput >= 0.9 * capacity
    report.bars["refusals take less than 50 ms"] = storm.quantile_ms("refused", 0.99) < 50
    report.bars["no answer is later than its deadline and one service time"] = storm.quantile_ms("ok", 1) <= late_ms
    return report


async def greedy(folder: Path, seed: int, seconds: float) -> Report:
    """One caller asks for five times the capacity: another, who asks for a fifth of it, gets all of that."""
    report, calm, heavy, light = Report(), Tally(), Tally(), Tally()
    async with _steady(folder) as (server, client):
        capacity = await _capacity(client, seconds, calm)
        await asyncio.gather(
            client.open_loop(5 * capacity, seconds, heavy, random.Random(seed), "heavy"),
            client.open_loop(capacity / 5, seconds, light, random.Random(seed + 1), "light"),
        )
        await asyncio.to_thread(server.stop)
    answered = light.outcomes["ok"] / max(light.sent, 1)
    report.facts |= {
        "capacity per s": round(capacity, 1),
        "light's requests answered": f"{answered:.1%}",
        "light's p99 in ms": round(light.quantile_ms("ok", 0.99), 1),
    }
    report.add("heavy", heavy)
    report.add("light", light)
    report.balance(server.ledger, calm, heavy, light)
    report.promises["the heavy caller was refused some"] = heavy.outcomes["refused"] > 0
    report.bars["the light caller gets at least 90 % of what it asks for"] = answered >= 0.9
    return report


@contextlib.asynccontextmanager
async def _steady(folder: Path) -> AsyncIterator[tuple[Server, Client]]:
    """A server of one thread that takes some 15 ms per request, and a client of it."""
    cases = save(folder / "models", layers=12, settings=f"slo_ms = {SLO_MS}\nthreads = 1\n")
    server = Server(folder / "models", folder / "ledger")
    try:
        await asyncio.to_thread(server.start)
        async with session() as http:
            yield server, Client(http, server.url, cases)
    finally:
        await asyncio.to_thread(server.kill)


async def _capacity(client: Client, seconds: float, tally: Tally) -> float:
    """Requests per second that a few callers get through once it is warm."""
    await client.closed_loop(4, seconds / 3, tally)
    before = tally.outcomes["ok"]
    await client.closed_loop(4, seconds / 3, tally)
    return (tally.outcomes["ok"] - before) / (seconds / 3)


# The same through either ingress.
INGRESSES = {"ray-scale": "headrace", "ray-scale-proxy": "ray"}
CAMPAIGNS: dict[str, Callable[[Path, int, float], Coroutine[Any, Any, Report]]] = {
    "kill": kill,
    "drain": drain,
    "overload": overload,
    "greedy": greedy,
    "swap": swap,
    "soak": soak,
    **{name: partial(alone, campaign) for name, campaign in RAY_CAMPAIGNS.items()},
    **{name: partial(alone, ray_scale, replicas=1, ingress=ingress) for name, ingress in INGRESSES.items()},
}

# Seconds of the full forms.
FULL_S_DEFAULT = 30.0
FULL_S = {"ray-kill": 120.0, "ray-roll": 180.0, "soak": 1800.0, "ray-soak": 1800.0}
