"""How fast a real deployment on Ray follows its load: up, down, to zero and back, with replicas of a part of a CPU."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import aiohttp
import numpy as np

from benchmarks.engine import texts
from benchmarks.harness.section import Options, Section
from benchmarks.harness.tables import markdown
from headrace.config import AutoscalingConfig, DeployConfig, DeployedModel, HttpConfig, ModelConfig, ModelSettings
from headrace.serve import Deployment, deploy
from headrace.serving.autoscaling import METRIC_CAPACITY

NAME = "minilm"
TOKENS = 128
TIMEOUT_S = 75.0
SLO_MS = 500.0
# Wanted, in seconds after the load changed.
BOUNDS_S = {"one to two replicas": 10.0, "two to one": 30.0, "one to none": 60.0, "first answer from none": 5.0}


# Answer's status -> how the request ended. Whatever else there is, no answer included, has failed.
OUTCOMES = {200: "ok", 429: "refused", 504: "late"}


class Client:
    """Sends requests at a rate that can be changed, and counts how they end.

    Attributes:
        rate: Requests per second.
        during: What happens now: requests count for what happened when they were sent.
        ended: How they ended, by that.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.session, self.url = session, f"{url}/v2/models/{NAME}/infer"
        self.rate = 0.0
        self.during = "before"
        self.ended: dict[str, Counter[str]] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self.body = {
            "inputs": [
                {"name": name, "datatype": "INT64", "shape": list(ids.shape), "data": ids.ravel().tolist()}
                for name, ids in ((name, np.asarray(value)) for name, value in texts.rectangle(1, TOKENS).items())
            ]
        }

    async def one(self) -> None:
        """One request."""
        ended = self.ended.setdefault(self.during, Counter())
        try:
            async with self.session.post(self.url, json=self.body) as response:
                await response.read()
                ended[OUTCOMES.get(response.status, "failed")] += 1
        except (aiohttp.ClientError, TimeoutError):
            ended["failed"] += 1

    async def forever(self) -> None:
        """Open loop: Poisson arrivals, whoever still waits."""
        chance = np.random.default_rng(1)
        while True:
            if self.rate == 0:
                await asyncio.sleep(0.05)
                continue
            await asyncio.sleep(chance.exponential(1 / self.rate))
            task = asyncio.create_task(self.one())
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)


def running(deployment: Deployment) -> int:
    """Replicas that take requests."""
    return deployment.replicas()[NAME].get("RUNNING", 0)


def capacity(deployment: Deployment) -> float:
    """What the one replica says it can sustain; 0 while it does not know."""
    return max((one.load.get(METRIC_CAPACITY, 0.0) for one in deployment.ledgers()[NAME] if not one.final), default=0.0)


async def until(what: Callable[[], bool]) -> float:
    """Seconds until something is so."""
    start = time.monotonic()
    while not await asyncio.to_thread(what):
        if time.monotonic() - start > TIMEOUT_S:
            raise TimeoutError(f"got nothing within {TIMEOUT_S:g} s")
        await asyncio.sleep(0.1)
    return time.monotonic() - start


async def drive(deployment: Deployment, progress: Callable[[str], None]) -> dict[str, Any]:
    """Changes the load and waits for the replicas to follow."""
    took: dict[str, float] = {}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        client = Client(session, deployment.url)
        sender = asyncio.create_task(client.forever())
        progress("learning what a replica can do")
        client.rate = 5.0
        await until(lambda: capacity(deployment) > 0)
        await asyncio.sleep(10)
        one_rps = await asyncio.to_thread(capacity, deployment)
        low, high = 0.1 * one_rps, 1.1 * one_rps
        client.rate = low
        await until(lambda: running(deployment) == 1)
        for name, rate, replicas in (
            ("one to two replicas", high, 2), ("two to one", low, 1), ("one to none", 0.0, 0),
        ):  # fmt: skip
            progress(f"{name}: {rate:.0f} requests/s")
            client.rate, client.during = rate, name
            took[name] = await until(lambda replicas=replicas: running(deployment) == replicas)
            await asyncio.sleep(3)
        progress("a request to no replica")
        start, client.during = time.monotonic(), "first answer from none"
        await client.one()
        took["first answer from none"] = time.monotonic() - start
        sender.cancel()
        await asyncio.gather(*client.tasks)
    return {"took_s": took, "capacity_rps": one_rps, "rates": [low, high], "ended": client.ended}


def measure(options: Options) -> dict[str, Any]:
    """One deployment of MiniLM."""
    settings = ModelSettings(slo_ms=SLO_MS, threads=1)
    model = ModelConfig(name=NAME, files={1: texts.minilm_path()}, settings=settings)
    scaling = AutoscalingConfig(min_replicas=0, max_replicas=2, cpus_per_replica=0.4)
    config = DeployConfig(http=HttpConfig(port=0), models=[DeployedModel(model=model, autoscaling=scaling)])
    with deploy(config, progress=options.progress) as deployment:
        return asyncio.run(drive(deployment, options.progress))


def table(result: dict[str, Any]) -> str:
    """One line per change."""
    rows = []
    for name, bound in BOUNDS_S.items():
        ended = Counter(result["ended"].get(name, {}))
        counts = [str(ended[how]) for how in ("refused", "late", "failed")]
        rows.append([name, f"{result['took_s'][name]:.1f}", f"{bound:g}", str(ended.total()), *counts])
    low, high = result["rates"]
    about = (
        f"MiniLM, {TOKENS} tokens, replicas of 0.4 CPUs that sustain {result['capacity_rps']:.0f}/s each; "
        f"{low:.0f}/s and {high:.0f}/s; all else by default. Refused: 429, at once. Late: 504, after the SLO of "
        f"{SLO_MS:g} ms. Failed: anything else that is no result."
    )
    headings = ["change", "seconds", "wanted, at most", "requests", "refused", "late", "failed"]
    return f"{about}\n\n{markdown(headings, rows)}"


SECTIONS = [
    Section("autoscaling-ray", "How fast a deployment on Ray follows its load", measure, table, page="autoscaling.md")
]
