"""One ingress in front of the credit model: steady load, then replicas that come and go. Prints one JSON object.

Run by ingress.py in a process of its own, because Ray Serve reads which proxy it has when it is imported:
``python -m benchmarks.serving.ingress_child INGRESS SECONDS``.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import aiohttp
import psutil

from benchmarks.serving import credit
from benchmarks.serving.load import Post, wait_ready, wrk
from headrace.config import AutoscalingConfig, DeployConfig, DeployedModel, HttpConfig, ModelConfig, ModelSettings
from headrace.serve import Deployment, deploy

CONNECTIONS = (1, 16, 64)
CLIENTS = 8
# A client that hears nothing for so long gives up.
ANSWER_S_MAX = 12.0
CHANGE_S_MAX = 12.0


def config(ingress: Any, least: int, most: int, idle_s: float = 600.0) -> DeployConfig:
    """The deployment with so many replicas."""
    model = ModelConfig(name=credit.NAME, files={1: credit.file()}, settings=ModelSettings(backend="native", threads=1))
    scaling = AutoscalingConfig(
        min_replicas=least, max_replicas=most, cpus_per_replica=0.5, idle_s=idle_s, down_hold_s=1.0
    )  # fmt: skip
    http = HttpConfig(port=0, ingress=ingress)
    return DeployConfig(http=http, models=[DeployedModel(model=model, autoscaling=scaling)])


class Clients:
    """Keep-alive connections, each with one request at a time, and what they went through."""

    def __init__(self, post: Post) -> None:
        self._post = post
        self.longest_s = 0.0
        self.failed: list[str] = []
        self.answered = 0

    async def run(self, until: asyncio.Event) -> None:
        """Sends until told to stop."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ANSWER_S_MAX)) as session:
            await asyncio.gather(*(self._one(session, until) for _ in range(CLIENTS)))

    async def _one(self, session: aiohttp.ClientSession, until: asyncio.Event) -> None:
        while not until.is_set():
            started = time.perf_counter()
            try:
                async with session.post(self._post.url, data=self._post.body, headers=self._post.headers) as answer:
                    await answer.read()
                    if answer.status == 200:
                        self.answered += 1
                    else:
                        self.failed.append(str(answer.status))
            except (aiohttp.ClientError, TimeoutError) as error:
                self.failed.append(type(error).__name__)
            self.longest_s = max(self.longest_s, time.perf_counter() - started)
            await asyncio.sleep(0.02)


async def phase(deployment: Deployment, post: Post, change: DeployConfig | None, replicas: int) -> dict[str, Any]:
    """Clients at work while the replicas change to so many; without a change, one request that finds none."""
    clients, stop = Clients(post), asyncio.Event()
    sending = asyncio.create_task(clients.run(stop))
    began = time.perf_counter()
    if change is not None:
        await asyncio.sleep(1)
        await asyncio.to_thread(deployment.update, change)
    while time.perf_counter() - began < CHANGE_S_MAX:
        states = (await asyncio.to_thread(deployment.replicas)).get(credit.NAME, {})
        if states == {"RUNNING": replicas} and clients.answered:
            break
        await asyncio.sleep(0.1)
    await asyncio.sleep(2)
    stop.set()
    await sending
    return {"longest_s": clients.longest_s, "answered": clients.answered, "failed": clients.failed[:50],
            "failures": len(clients.failed)}  # fmt: skip


def listeners(pids: list[int]) -> list[str]:
    """Where those processes listen that have to do with requests: proxies, haproxy, the front and the replicas."""
    found = set()
    for pid in pids:
        try:
            process = psutil.Process(pid)
            name = process.name()
            if any(word in name for word in ("Proxy", "haproxy", "ServeReplica")):
                for one in process.net_connections("inet"):
                    if one.status == "LISTEN":
                        found.add(f"{name} {one.laddr.ip}:{one.laddr.port}")
        except psutil.Error:
            continue
    return sorted(found)


def main() -> None:
    """One deployment."""
    ingress, seconds = sys.argv[1], int(sys.argv[2])
    report: dict[str, Any] = {"steady": {}, "changes": {}}
    deployment = deploy(config(ingress, 1, 1))
    try:
        post = credit.oip_json(deployment.url)
        wait_ready(post, None)
        pids = deployment.processes()
        for connections in CONNECTIONS:
            wrk(post, connections, 1, [])
            report["steady"][connections] = wrk(post, connections, seconds, pids)
        report["listeners"] = listeners(deployment.processes())
        # Whoever ends this process because it takes too long has what was found until then.
        print("JSON" + json.dumps(report), flush=True)
        for name, least, most, wanted in (("1 to 2", 2, 2, 2), ("2 to 1", 1, 1, 1)):
            report["changes"][name] = asyncio.run(phase(deployment, post, config(ingress, least, most), wanted))
            print("JSON" + json.dumps(report), flush=True)
        deployment.update(config(ingress, 0, 1, 1.0))
        end = time.monotonic() + CHANGE_S_MAX
        while deployment.replicas().get(credit.NAME, {}) and time.monotonic() < end:
            time.sleep(0.2)
        report["changes"]["0 to 1"] = asyncio.run(phase(deployment, post, None, 1))
    finally:
        report["left"] = len(deployment.shutdown())
        print("JSON" + json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
