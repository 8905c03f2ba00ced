"""Versions come and go under load: replaced, promoted after a trial, or rolled back."""

from __future__ import annotations

import asyncio
import math
import random
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import aiohttp

from .load import Client, Tally, session
from .model import NAME, WIDTH, save
from .report import Report
from .server import Server

CONNECTIONS = 4
POLL_S = 0.05
SETTLE_S_MAX = 60.0


@dataclass(frozen=True)
class Change:
    """A new version, and what is to become of it.

    Attributes:
        mode: How it is brought in.
        broken: Its answers are not finite, which the model's settings make an error.
        other: Its weights are others, so that its answers differ.
        taken: Whether it is to take over.
    """

    mode: str
    broken: bool = False
    other: bool = False
    taken: bool = True


CHANGES = (
    Change("replace"),
    Change("canary"),
    Change("shadow"),
    Change("canary", broken=True, taken=False),
    Change("shadow", broken=True, taken=False),
    Change("shadow", other=True, taken=False),
)


async def swap(folder: Path, seed: int, seconds: float) -> Report:
    """New versions take over, or fail their trial, under load: no caller sees any of it."""
    chance, report, tally, token = random.Random(seed), Report(), Tally(), secrets.token_hex(16)
    repository, version, ended, changes = folder / "models", 1, dict[str, int](), dict[int, Change]()
    cases = save(repository, layers=1, settings=settings("replace"))
    server = Server(repository, folder / "ledger", {"HEADRACE_ADMIN_TOKEN": token})
    try:
        await asyncio.to_thread(server.start)
        async with session() as http:
            admin = Admin(http, server.url, token)
            client, stop, end = Client(http, server.url, cases), asyncio.Event(), perf_counter() + seconds
            load = asyncio.create_task(client.closed_loop(CONNECTIONS, math.inf, tally, stop))
            order: list[Change] = []
            while perf_counter() < end:
                order = order or chance.sample(CHANGES, len(CHANGES))
                change, version = order.pop(), version + 1
                changes[version] = change
                await asyncio.to_thread(put, repository, version, change)
                serving = await admin.bring(version)
                what = f"{change.mode} {'broken ' * change.broken}{'other ' * change.other}taken"
                promise = f"{what}: {change.taken}"
                as_told = (serving == version) == change.taken
                report.promises[promise] = as_told and report.promises.get(promise, True)
                ended[what] = ended.get(what, 0) + 1
                if serving != version:
                    shutil.rmtree(repository / NAME / str(version))
            stop.set()
            await load
        code = await asyncio.to_thread(server.stop)
    finally:
        await asyncio.to_thread(server.kill)
    report.facts |= {f"times {what.removesuffix(' taken')}": count for what, count in ended.items()}
    report.add("clients", tally)
    books = report.balance(server.ledger, tally, changes=changes)
    report.promises["every request was answered with a result"] = tally.outcomes["ok"] == tally.sent
    report.promises["nothing was lost"] = books.lost == 0
    report.promises["versions were taken, and rolled back"] = len(ended) >= len(CHANGES) - 2
    report.promises["SIGTERM ended it with exit code 0"] = code == 0
    return report


def settings(mode: str) -> str:
    """What the model's ``headrace.toml`` says, of a trial that a few requests decide."""
    trial = "share = 0.3\nmin_requests = 20\nmin_s = 0\nslower_max = 100\ndivergent_max = 0.1\n"
    return f'nonfinite = "error"\nthreads = 1\n[rollout]\nmode = "{mode}"\n{trial}'


def put(repository: Path, version: int, change: Change, width: int = WIDTH) -> None:
    """Puts a new version into the repository."""
    scale = float("inf") if change.broken else 1.0
    save(
        repository, 1, settings(change.mode), version, seed=4 if change.other else 3, scale=scale, cases=0, width=width
    )


class Admin:
    """Brings new versions in, through the model repository's API."""

    def __init__(self, http: aiohttp.ClientSession, url: str, token: str) -> None:
        self._http = http
        self._url = f"{url}/v2/repository/"
        self._headers = {"authorization": f"Bearer {token}"}

    async def bring(self, version: int) -> int:
        """Loads a version, waits for the end of its trial, and says which version serves then."""
        await self._post(f"models/{NAME}/load")
        for _ in range(int(SETTLE_S_MAX / POLL_S)):
            if (serving := await self.serving()) is not None:
                return serving
            await asyncio.sleep(POLL_S)
        raise TimeoutError(f"version {version}: got a trial of more than {SETTLE_S_MAX} s, expected an end of it")

    async def serving(self) -> int | None:
        """The version that serves; None while another is on trial."""
        states = {one["state"]: int(one["version"]) for one in await self._post("index")}
        return None if "LOADING" in states else states["READY"]

    async def _post(self, path: str) -> Any:
        async with self._http.post(self._url + path, headers=self._headers) as response:
            body = await response.read()
            if response.status != 200:
                raise RuntimeError(f"{path}: got {response.status} {body[:300]!r}, expected 200")
            return await response.json() if body else None
