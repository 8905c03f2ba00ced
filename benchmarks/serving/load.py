"""Load generators, on the same machine as the servers: wrk in a closed loop, aiohttp in an open one."""

from __future__ import annotations

import asyncio
import json
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil

# wrk's own report is for people.
SCRIPT = """
local file = io.open("{body}", "rb")
wrk.method, wrk.body = "POST", file:read("*a")
for name, value in pairs({{ {headers} }}) do wrk.headers[name] = value end
done = function(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format('JSON{{"requests":%d,"seconds":%f,"p50_s":%f,"p99_s":%f,"max_s":%f,"wrong":%d,"broken":%d}}\\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e6, latency:percentile(99) / 1e6,
    latency.max / 1e6, errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
"""


@dataclass(frozen=True)
class Post:
    """What is sent, always the same."""

    url: str
    body: bytes
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})


class Cpu:
    """The CPU time that some processes and their children have used."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = pids

    def seconds(self) -> float:
        """User and system time up to now, of those that live."""
        return sum(sum(process.cpu_times()[:2]) for process in tree(self._pids))


def tree(pids: Sequence[int]) -> list[psutil.Process]:
    """The processes and all their descendants."""
    found: dict[int, psutil.Process] = {}
    for pid in pids:
        try:
            process = psutil.Process(pid)
            found |= {one.pid: one for one in (process, *process.children(recursive=True))}
        except psutil.NoSuchProcess:
            continue
    return list(found.values())


def wrk(post: Post, connections: int, seconds: int, pids: Sequence[int]) -> dict[str, float]:
    """One block of requests over keep-alive connections, each sent when the last was answered.

    Args:
        post: What to send.
        connections: How many.
        seconds: How long; wrk knows whole seconds only.
        pids: The server's processes, whose CPU time counts.
    """
    with tempfile.TemporaryDirectory() as name:
        body, script = Path(name) / "body", Path(name) / "wrk.lua"
        body.write_bytes(post.body)
        headers = ", ".join(f'["{key}"] = "{value}"' for key, value in post.headers.items())
        script.write_text(SCRIPT.format(body=body, headers=headers))
        cpu = Cpu(pids)
        before = cpu.seconds()
        done = subprocess.run(
            ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "20s", "-s", str(script), post.url],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        used = cpu.seconds() - before
    found: dict[str, float] = json.loads(done.stdout.rpartition("JSON")[2])
    found["rps"] = (found["requests"] - found["wrong"]) / found["seconds"]
    found["cpu_s"] = used / max(1.0, found["requests"])
    return found


def middle(blocks: Sequence[dict[str, float]]) -> dict[str, float]:
    """The median of each figure over some blocks; of what went wrong the sum."""
    return {
        key: float(
            sum(one[key] for one in blocks) if key in ("wrong", "broken") else np.median([b[key] for b in blocks])
        )
        for key in blocks[0]
    }


async def closed_loop(posts: Sequence[Post], clients: int, seconds: float, seed: int) -> float:
    """Answers per second to clients that each ask again, for any of `posts`, when they were answered."""
    chance = np.random.default_rng(seed)
    order = iter(chance.integers(len(posts), size=1_000_000))
    answered = 0
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        start = time.perf_counter()

        async def client() -> None:
            nonlocal answered
            while time.perf_counter() < start + seconds:
                post = posts[next(order)]
                async with session.post(post.url, data=post.body, headers=post.headers) as response:
                    await response.read()
                    answered += response.status == 200

        await asyncio.gather(*(client() for _ in range(clients)))
        return answered / (time.perf_counter() - start)


async def open_loop(posts: Sequence[Post], rate: float, seconds: float, seed: int) -> dict[str, float]:
    """Poisson arrivals; a latency counts from when the request was to be sent, whether or not the client was late."""
    chance = np.random.default_rng(seed)
    due = np.cumsum(chance.exponential(1 / rate, int(rate * seconds)))
    order = chance.integers(len(posts), size=len(due))
    took: list[float] = []
    failed = 0
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        start = time.perf_counter()

        async def one(post: Post, at: float) -> None:
            nonlocal failed
            async with session.post(post.url, data=post.body, headers=post.headers) as response:
                await response.read()
                if response.status == 200:
                    took.append(time.perf_counter() - start - at)
                else:
                    failed += 1

        tasks: list[asyncio.Task[None]] = []
        for at, index in zip(due, order, strict=True):
            if (left := start + at - time.perf_counter()) > 0:
                await asyncio.sleep(left)
            tasks.append(asyncio.create_task(one(posts[index], float(at))))
        await asyncio.gather(*tasks, return_exceptions=True)
        ended = time.perf_counter() - start
    times = np.array(took or [np.inf])
    return {
        "offered_rps": rate, "rps": len(took) / ended, "failed": float(len(due) - len(took)),
        "p50_s": float(np.quantile(times, 0.5)), "p99_s": float(np.quantile(times, 0.99)),
    }  # fmt: skip


def wait_ready(post: Post, process: subprocess.Popen[Any] | None, timeout_s: float = 60.0) -> bytes:
    """Waits until a server answers a request, and returns the answer.

    Raises:
        RuntimeError: The server ended, or was never ready.
    """
    import urllib.error
    import urllib.request

    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if process is not None and process.poll() is not None:
            raise RuntimeError(f"got a server that ended with {process.returncode}, expected it to serve")
        try:
            request = urllib.request.Request(post.url, post.body, post.headers)
            with urllib.request.urlopen(request, timeout=10) as response:
                return bytes(response.read())
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
    raise RuntimeError(f"got no answer from {post.url} in {timeout_s:g} s, expected one")
