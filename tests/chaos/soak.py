"""Load and new versions for as long as one likes: nothing may grow."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import secrets
import shutil
from pathlib import Path
from time import perf_counter

import psutil

from .cluster import Cluster
from .growth import RSS_GROWTH_MAX, SPARE_DESCRIPTORS, Growth, look
from .load import Client, Tally, session
from .model import NAME, save
from .report import Report
from .server import Server
from .swap import CHANGES, Admin, Change, put, settings

CONNECTIONS = 4
# A replica that was not asked for a while answers slower at first; a burst lasts long enough to be past that.
BURST_S = 1.0
# What lies in a trial's or a closed version's threads is given back within so long.
REST_S = 0.3


def judge(report: Report, growth: Growth, spare_descriptors: int = SPARE_DESCRIPTORS, spare_threads: int = 0) -> None:
    """Writes down what the samples of a soak say."""
    report.facts |= {
        "samples": len(growth.samples),
        "rss growth": f"{growth.rss():+.2%}",
        "descriptors more": growth.descriptors(),
        "threads more": growth.threads(),
        "processes more": growth.processes(),
    }
    report.bars[f"memory grew by at most {RSS_GROWTH_MAX:.0%}"] = growth.rss() <= RSS_GROWTH_MAX
    report.promises["no descriptor is left"] = growth.descriptors() <= spare_descriptors
    report.promises["no thread is left"] = growth.threads() <= spare_threads
    report.promises["no process was added"] = growth.processes() <= 0


async def soak(folder: Path, seed: int, seconds: float, prelude: str = "") -> Report:
    """One server under load while versions come and go: memory, descriptors and threads stay as they were when warm.

    Args:
        folder: Where the model and the ledger go.
        seed: Of the versions' order.
        seconds: How long; half an hour says something about memory.
        prelude: Python that the server runs first, by which a test plants a leak.
    """
    chance, report, tally, token = random.Random(seed), Report(), Tally(), secrets.token_hex(16)
    repository, version, growth, changes = folder / "models", 1, Growth(), dict[int, Change]()
    cases = save(repository, layers=1, settings=settings("replace"))
    server = Server(repository, folder / "ledger", {"HEADRACE_ADMIN_TOKEN": token}, prelude)
    try:
        await asyncio.to_thread(server.start)
        async with session() as http:
            admin, client, end = Admin(http, server.url, token), Client(http, server.url, cases), perf_counter()
            end += seconds
            while perf_counter() < end or len(growth.samples) < 8:
                version += 1
                change = changes[version] = chance.choice(CHANGES)
                await asyncio.to_thread(put, repository, version, change)
                stop = asyncio.Event()
                load = asyncio.create_task(client.closed_loop(CONNECTIONS, math.inf, tally, stop))
                serving = await admin.bring(version)
                await asyncio.sleep(min(BURST_S, seconds / 10))
                stop.set()
                await load
                _clean(repository, serving)
                await asyncio.sleep(REST_S)
                growth.samples.append(look(server.pids()))
        await asyncio.to_thread(server.stop)
    finally:
        await asyncio.to_thread(server.kill)
    report.facts |= {"versions": version - 1, "requests": tally.sent}
    report.facts["rss in MiB, warm and at the end"] = " ".join(f"{value:.1f}" for value in growth.rss_mib())
    report.promises["no process outlived the server"] = server.outlived == 0
    report.add("clients", tally)
    report.balance(server.ledger, tally, changes=changes)
    report.promises["every request was answered with a result"] = tally.outcomes["ok"] == tally.sent > 0
    judge(report, growth)
    return report


async def ray_soak(cluster: Cluster, seed: int, seconds: float) -> Report:
    """A deployment under load while versions come and go and replicas start and end: nothing is left of any of it."""
    chance, report, tally, growth = random.Random(seed), Report(), Tally(), Growth()
    least, scaled = cluster.replicas, 0
    cluster.tallies.append(tally)
    async with session() as http:
        client, end = cluster.client(http), perf_counter() + seconds
        while perf_counter() < end or len(growth.samples) < 8:
            stop = asyncio.Event()
            load = asyncio.create_task(client.closed_loop(CONNECTIONS, math.inf, tally, stop))
            await asyncio.to_thread(cluster.put, chance.choice(CHANGES))
            for replicas in (least + 1, least):
                cluster.replicas = replicas
                await asyncio.to_thread(cluster.update)
                await asyncio.to_thread(cluster.wait, cluster.whole, 60.0)
                scaled += 1
            await asyncio.to_thread(cluster.wait, lambda: "candidate" not in cluster.rollout(), 60.0)
            await asyncio.sleep(BURST_S)
            stop.set()
            await load
            _clean(cluster.repository, (await asyncio.to_thread(cluster.rollout))["running"])
            await asyncio.sleep(REST_S)
            growth.samples.append(look(await asyncio.to_thread(cluster.deployment.processes)))
    report.facts |= {"times scaled": scaled, "requests": tally.sent}
    roles = {pid: _role(pid) for pid in growth.stayed()}
    for pid in sorted(growth.stayed()):
        warm, last = growth.rss_of(pid)
        more = f"{last - warm:+.1f} MiB, {growth.descriptors_of(pid):+d}, {growth.threads_of(pid):+d}"
        report.facts[f"memory, descriptors and threads more in {roles[pid]} ({pid})"] = more
    report.add("clients", tally)
    report.balance(cluster.ledger, *cluster.tallies, changes=cluster.changes)
    report.promises["every request was answered with a result"] = tally.outcomes["ok"] == tally.sent > 0
    # Ray's log monitor keeps the logs of ended workers open, up to 200 of them.
    logs = sum(growth.descriptors_of(pid) for pid, role in roles.items() if role == "log_monitor.py")
    # Ray's own processes keep pools of threads that come and go; replicas and the front are ours.
    pools = sum(growth.threads_of(pid) for pid, role in roles.items() if not role.startswith("ray::ServeReplica:"))
    judge(report, growth, SPARE_DESCRIPTORS + logs, pools)
    return report


def _clean(repository: Path, serving: str | int) -> None:
    """Takes away every version but the one that serves: a soak would fill the disk."""
    for path in (repository / NAME).iterdir():
        if path.is_dir() and path.name != str(serving):
            shutil.rmtree(path)


def _role(pid: int) -> str:
    """What a process of Ray is, from its command line."""
    with contextlib.suppress(psutil.Error):
        words = psutil.Process(pid).cmdline()
        return next((Path(word).name for word in words if not word.startswith("-") and "/bin/python" not in word), "?")
    return "a process that has ended"
