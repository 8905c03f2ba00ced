"""Campaigns against a deployment on Ray: its parts are killed one by one, and versions change, under load."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from time import perf_counter
from typing import Any

from .cluster import Cluster
from .load import Client, Tally, session
from .model import NAME
from .report import Report
from .soak import ray_soak
from .swap import CHANGES, Change, settings

CONNECTIONS = 8
# Where nothing is lost, more of them find more.
ROLL_CONNECTIONS = 32
REPLICAS = 5
# Kills are this far apart, where there is a replica to kill.
KILL_EVERY_S = 1.0
# What is killed is back after so long, on two cores that carry the load and the start of what is killed together.
BACK_S_MAX = {"replica": 60.0, "ingress": 30.0, "controller": 30.0}
SETTLE_S_MAX = 60.0
# How a request whose replica was killed may end: a fast 503, or a connection that is cut with the process it ends in.
CUT = ("broken", "refused")

Campaign = Callable[[Cluster, int, float], Coroutine[Any, Any, Report]]


@contextlib.asynccontextmanager
async def under_load(cluster: Cluster, report: Report, connections: int = CONNECTIONS) -> AsyncIterator[Tally]:
    """Keeps requests in flight meanwhile, then waits for their answers and notes how they ended."""
    tally, stop = Tally(), asyncio.Event()
    cluster.tallies.append(tally)
    async with session() as http:
        client = Client(http, cluster.url, cluster.cases)
        load = asyncio.create_task(client.closed_loop(connections, math.inf, tally, stop))
        try:
            yield tally
        finally:
            stop.set()
            await load
    report.add("clients", tally)
    report.facts["requests"] = tally.sent


def conclude(cluster: Cluster, report: Report, failures: bool = False) -> None:
    """The ledger's balance, over all that was sent to the cluster since it started."""
    books = report.balance(cluster.ledger, *cluster.tallies, failures=failures, unheard=CUT)
    lost_max = cluster.kills * CONNECTIONS
    report.promises["no more was lost than was in flight on what was killed"] = books.lost <= lost_max


async def ray_kill(cluster: Cluster, seed: int, seconds: float) -> Report:
    """kill -9 of a replica every second: only what was in flight there ends without a result, and at once."""
    chance, report, kills, spared = random.Random(seed), Report(), 0, 0
    async with under_load(cluster, report) as tally:
        end = perf_counter() + seconds
        while perf_counter() < end:
            await asyncio.sleep(KILL_EVERY_S * chance.uniform(0.5, 1.5))
            if answering := await asyncio.to_thread(cluster.answering):
                cluster.kill(chance.choice(answering))
                kills += 1
            else:
                spared += 1
        back_s = await asyncio.to_thread(cluster.wait, cluster.whole, BACK_S_MAX["replica"])
    cut = tally.outcomes["broken"] + tally.outcomes["refused"] + tally.outcomes["failed"]
    report.facts |= {
        "replicas killed": kills,
        "times there was none to kill": spared,
        "all replicas back after s": round(back_s, 1),
        "503 in ms, median": round(tally.quantile_ms("refused", 0.5), 1),
        "503 in ms, p99": round(tally.quantile_ms("refused", 0.99), 1),
        "503 in ms, slowest": round(tally.quantile_ms("refused", 1), 1),
        "slowest answer in ms": round(tally.quantile_ms("ok", 1), 1),
    }
    report.promises["replicas were killed, and requests answered"] = kills > 0 and tally.outcomes["ok"] > 0
    report.promises["no more failed than was in flight there"] = cut <= kills * CONNECTIONS
    report.bars["99 % of the 503 come within a second"] = tally.quantile_ms("refused", 0.99) < 1000
    cluster.kills += kills
    conclude(cluster, report)
    return report


async def ray_proxy(cluster: Cluster, seed: int, seconds: float) -> Report:
    """kill -9 of the process that clients connect to: it comes back, and the replicas never noticed."""
    chance, report, kills, back_s = random.Random(seed), Report(), 0, list[float]()
    before = set(await asyncio.to_thread(cluster.pids))
    async with under_load(cluster, report) as tally:
        end = perf_counter() + seconds
        while kills == 0 or perf_counter() < end:
            await asyncio.sleep(chance.uniform(0.5, 1.5))
            cluster.kill(await asyncio.to_thread(cluster.listener))
            kills += 1
            known = tally.outcomes["ok"] + CONNECTIONS
            answers = lambda known=known: tally.outcomes["ok"] > known  # noqa: E731
            back_s.append(await asyncio.to_thread(cluster.wait, answers, BACK_S_MAX["ingress"]))
    report.facts |= {"ingress killed": kills, "answers again after s, at most": round(max(back_s), 1)}
    report.promises["the replicas stayed"] = set(await asyncio.to_thread(cluster.pids)) == before
    report.promises["nothing but connections to it was cut"] = tally.outcomes["failed"] == 0
    conclude(cluster, report)
    return report


async def ray_controller(cluster: Cluster, seed: int, seconds: float) -> Report:
    """kill -9 of Serve's controller: traffic goes on, and it comes back."""
    chance, report, kills, back_s = random.Random(seed), Report(), 0, list[float]()
    before = set(await asyncio.to_thread(cluster.pids))
    async with under_load(cluster, report) as tally:
        end = perf_counter() + seconds
        while kills == 0 or perf_counter() < end:
            await asyncio.sleep(chance.uniform(0.5, 1.5))
            killed = await asyncio.to_thread(cluster.controller)
            cluster.kill(killed)
            kills += 1
            back = lambda killed=killed: cluster.controller() != killed and cluster.whole()  # noqa: E731
            back_s.append(await asyncio.to_thread(cluster.wait, back, BACK_S_MAX["controller"]))
            await asyncio.sleep(1)
    report.facts |= {"controller killed": kills, "all known again after s, at most": round(max(back_s), 1)}
    report.promises["every request was answered with a result"] = tally.outcomes["ok"] == tally.sent > 0
    report.promises["the replicas stayed"] = set(await asyncio.to_thread(cluster.pids)) == before
    conclude(cluster, report)
    return report


async def ray_roll(cluster: Cluster, seed: int, seconds: float) -> Report:
    """Versions change, are tried and rolled back, and replicas are replaced: no caller sees any of it."""
    chance, report, version = random.Random(seed), Report(), _newest(cluster.repository)
    ended, restarts, order = dict[str, int](), 0, list[Change]()
    async with under_load(cluster, report, ROLL_CONNECTIONS) as tally:
        end = perf_counter() + seconds
        while not ended or perf_counter() < end:
            order = order or chance.sample(CHANGES, len(CHANGES))
            change, version = order.pop(), version + 1
            await asyncio.to_thread(cluster.put, version, change)
            serving = await asyncio.to_thread(_bring, cluster)
            what = f"{change.mode} {'broken ' * change.broken}{'other ' * change.other}taken"
            promise, as_told = f"{what}: {change.taken}", (serving == version) == change.taken
            report.promises[promise] = as_told and report.promises.get(promise, True)
            ended[what] = ended.get(what, 0) + 1
            if serving != version:
                shutil.rmtree(cluster.repository / NAME / str(version))
            if not order and perf_counter() < end:
                restarts += 1
                await asyncio.to_thread(_replace_replicas, cluster)
    report.facts |= {f"times {what.removesuffix(' taken')}": count for what, count in ended.items()}
    report.facts["times all replicas were replaced"] = restarts
    report.promises["every request was answered with a result"] = tally.outcomes["ok"] == tally.sent > 0
    conclude(cluster, report, failures=True)
    return report


def _newest(repository: Path) -> int:
    return max(int(path.name) for path in (repository / NAME).iterdir() if path.is_dir())


def _bring(cluster: Cluster) -> int:
    """Brings in what lies in the folder, and says what serves when that has ended."""
    cluster.update()
    cluster.wait(lambda: "candidate" not in cluster.rollout(), SETTLE_S_MAX)
    return int(cluster.rollout()["running"])


def _replace_replicas(cluster: Cluster) -> None:
    """Changes what replicas are made of."""
    before = set(cluster.pids())
    cluster.cpus = 0.06 if cluster.cpus == 0.05 else 0.05
    cluster.update()
    cluster.wait(lambda: not before & set(cluster.pids()) and cluster.whole(), BACK_S_MAX["replica"])


RAY_CAMPAIGNS: dict[str, Campaign] = {
    "ray-kill": ray_kill,
    "ray-proxy": ray_proxy,
    "ray-controller": ray_controller,
    # Last, because it makes failures on purpose, after which the ledger says less of others.
    "ray-roll": ray_roll,
    "ray-soak": ray_soak,
}


async def alone(campaign: Campaign, folder: Path, seed: int, seconds: float) -> Report:
    """Runs one campaign on a cluster of its own."""
    cluster = Cluster(folder, REPLICAS, settings("replace"))
    try:
        await asyncio.to_thread(cluster.start)
        report = await campaign(cluster, seed, seconds)
    finally:
        left = await asyncio.to_thread(cluster.stop)
    report.promises["no process is left"] = left == []
    return report
