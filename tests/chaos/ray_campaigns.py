"""Campaigns against a deployment on Ray: its parts are killed one by one, and versions change, under load."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from time import perf_counter
from typing import Any

from .cluster import Cluster
from .load import Tally, session
from .model import NAME
from .report import Report, lost_of
from .soak import ray_soak
from .swap import CHANGES, Change, settings

CONNECTIONS = 8
# Where nothing is lost, more of them find more.
ROLL_CONNECTIONS = 32
REPLICAS = 5
# Where there is one at first, so many are more.
SCALED = 3
# Kills are this far apart, where there is a replica to kill.
KILL_EVERY_S = 1.0
# What is killed is back after so long, on two cores that carry the load and the start of what is killed together.
BACK_S_MAX = {"replica": 60.0, "ingress": 30.0, "controller": 30.0}
SETTLE_S_MAX = 60.0
# How a request whose replica was killed may end: a fast 503, or a connection that is cut with the process it ends in.
CUT = ("broken", "unavailable")

Campaign = Callable[[Cluster, int, float], Coroutine[Any, Any, Report]]


@contextlib.asynccontextmanager
async def under_load(cluster: Cluster, report: Report, connections: int = CONNECTIONS) -> AsyncIterator[Tally]:
    """Keeps requests in flight meanwhile, then waits for their answers and notes how they ended."""
    tally, stop = Tally(), asyncio.Event()
    cluster.tallies.append(tally)
    async with session() as http:
        load = asyncio.create_task(cluster.client(http).closed_loop(connections, math.inf, tally, stop))
        try:
            yield tally
        finally:
            stop.set()
            await load
    report.add("clients", tally)
    report.facts["requests"] = tally.sent


def conclude(cluster: Cluster, report: Report) -> None:
    """The ledger's balance, over all that was sent to the cluster since it started."""
    report.balance(cluster.ledger, *cluster.tallies, changes=cluster.changes, unheard=CUT)
    lost = lost_of(cluster.ledger)
    within = all(count <= cluster.killed.get(pid, 0) for pid, count in lost.items())
    report.promises["no more was lost than was in flight on what was killed"] = within


def held_at_most(connections: int, others: int, older: int) -> int:
    """How many requests a replica can have.

    Each goes to the replica with the fewest: one that gets its k-th leaves every other with k - 1 at least.

    Args:
        connections: Requests in flight in all.
        others: Replicas that have answered beside it for some time.
        older: Requests in flight that began before that time.
    """
    return min(connections, older + 1 + (connections - 1) // (others + 1))


async def ray_kill(cluster: Cluster, seed: int, seconds: float) -> Report:
    """kill -9 of a replica every second: only what was in flight there ends without a result, and at once."""
    chance, report, spared, held = random.Random(seed), Report(), 0, list[int]()
    async with under_load(cluster, report) as tally:
        end = perf_counter() + seconds
        taken, looked_s = await asyncio.to_thread(cluster.taken), perf_counter()
        while perf_counter() < end:
            await asyncio.sleep(KILL_EVERY_S * chance.uniform(0.5, 1.5))
            answering, before = await asyncio.to_thread(cluster.answering), taken
            taken = await asyncio.to_thread(cluster.taken)
            if answering:
                pid = chance.choice(answering)
                # What had requests before the last look, and has had more since, was open all the time between.
                others = sum(taken[other] > before[other] > 0 for other in answering if other != pid)
                older = sum(begun_s < looked_s for begun_s in tally.begun_s)
                cluster.killed[pid] = held_at_most(CONNECTIONS, others, older)
                cluster.kill(pid)
                held.append(cluster.killed[pid])
            else:
                spared += 1
            looked_s = perf_counter()
        back_s = await asyncio.to_thread(cluster.wait, cluster.whole, BACK_S_MAX["replica"])
    cut = tally.sent - tally.outcomes["ok"]
    report.facts |= {
        "replicas killed": len(held),
        "requests in flight there, at most": sum(held),
        "times there was none to kill": spared,
        "all replicas back after s": round(back_s, 1),
        "503 in ms, median": round(tally.quantile_ms("unavailable", 0.5), 1),
        "503 in ms, p99": round(tally.quantile_ms("unavailable", 0.99), 1),
        "503 in ms, slowest": round(tally.quantile_ms("unavailable", 1), 1),
        "slowest answer in ms": round(tally.quantile_ms("ok", 1), 1),
    }
    report.promises["replicas were killed, and requests answered"] = len(held) > 0 and tally.outcomes["ok"] > 0
    report.promises["no more failed than was in flight there"] = cut <= sum(held)
    report.bars["99 % of the 503 come within a second"] = tally.quantile_ms("unavailable", 0.99) < 1000
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
    chance, report = random.Random(seed), Report()
    tried, restarts, order = Counter[Change](), 0, list[Change]()
    async with under_load(cluster, report, ROLL_CONNECTIONS) as tally:
        end = perf_counter() + seconds
        # At the least one that is to be taken and one that is not.
        while len(tried) < 2 or perf_counter() < end:
            order = order or _in_turns(chance)
            change = order.pop()
            version = await asyncio.to_thread(cluster.put, change)
            serving = await asyncio.to_thread(_bring, cluster)
            what = f"{change.mode} {'broken ' * change.broken}{'other ' * change.other}taken"
            promise, as_told = f"{what}: {change.taken}", (serving == version) == change.taken
            report.promises[promise] = as_told and report.promises.get(promise, True)
            tried[change] += 1
            report.facts[f"times {what.removesuffix(' taken')}"] = tried[change]
            if serving != version:
                shutil.rmtree(cluster.repository / NAME / str(version))
            if not order and perf_counter() < end:
                restarts += 1
                await asyncio.to_thread(_replace_replicas, cluster)
    report.facts["times all replicas were replaced"] = restarts
    report.promises["every request was answered with a result"] = tally.outcomes["ok"] == tally.sent > 0
    report.promises["versions were taken, and rolled back"] = {change.taken for change in tried} == {True, False}
    report.bars["every kind of change was tried"] = tried.keys() == {*CHANGES}
    report.bars["all replicas were replaced"] = restarts > 0
    conclude(cluster, report)
    return report


async def ray_scale(cluster: Cluster, seed: int, seconds: float) -> Report:
    """More replicas, fewer, none and back, while clients keep their connections: no caller sees any of it."""
    chance, report, tally, turns = random.Random(seed), Report(), Tally(), 0
    took: dict[str, list[float]] = {"more": [], "fewer": [], "none": [], "first answer from none": []}
    cluster.tallies.append(tally)
    async with session() as http:
        client, end = cluster.client(http), perf_counter() + seconds
        while turns == 0 or perf_counter() < end:
            turns += 1
            stop = asyncio.Event()
            load = asyncio.create_task(client.closed_loop(CONNECTIONS, math.inf, tally, stop))
            for what, replicas in (("more", SCALED), ("fewer", 1)):
                cluster.replicas, begun_s = replicas, perf_counter()
                await asyncio.to_thread(cluster.update)
                await asyncio.to_thread(cluster.wait, cluster.whole, BACK_S_MAX["replica"])
                took[what].append(perf_counter() - begun_s)
                await asyncio.sleep(chance.uniform(0.5, 1.5))
            stop.set()
            await load
            cluster.to_zero, begun_s = True, perf_counter()
            await asyncio.to_thread(cluster.update)
            await asyncio.to_thread(cluster.wait, cluster.gone, BACK_S_MAX["replica"])
            took["none"].append(perf_counter() - begun_s)
            begun_s = perf_counter()
            await asyncio.gather(*(client.one(number, tally) for number in range(CONNECTIONS)))
            took["first answer from none"].append(perf_counter() - begun_s)
            cluster.to_zero = False
    report.add("clients", tally)
    report.facts |= {"requests": tally.sent, "turns": turns}
    report.facts |= {f"{what}, slowest in s": round(max(times), 1) for what, times in took.items()}
    report.facts["slowest answer in ms"] = round(tally.quantile_ms("ok", 1), 1)
    report.promises["every request was answered with a result"] = tally.outcomes["ok"] == tally.sent > 0
    conclude(cluster, report)
    return report


def _in_turns(chance: random.Random) -> list[Change]:
    """All changes, those that are to be taken and those that are not in turns."""
    taken, other = ([change for change in CHANGES if change.taken == kind] for kind in (True, False))
    pairs = zip(chance.sample(taken, len(taken)), chance.sample(other, len(other)), strict=True)
    return [change for pair in pairs for change in pair]


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
    "ray-roll": ray_roll,
    "ray-soak": ray_soak,
}


async def alone(
    campaign: Campaign, folder: Path, seed: int, seconds: float, replicas: int = REPLICAS, ingress: str = "headrace"
) -> Report:
    """Runs one campaign on a cluster of its own."""
    cluster = Cluster(folder, replicas, settings("replace"), ingress)
    try:
        await asyncio.to_thread(cluster.start)
        report = await campaign(cluster, seed, seconds)
    finally:
        left = await asyncio.to_thread(cluster.stop)
    report.promises["no process is left"] = left == []
    return report
