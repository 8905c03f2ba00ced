"""gRPC beside REST: the same server, the same model, and the stock clients of both protocols."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.machine import ROOT
from benchmarks.harness.section import Options, Section
from benchmarks.harness.tables import markdown, number
from benchmarks.serving import credit, peers
from benchmarks.serving.load import Cpu, middle

IN_FLIGHT = (1, 16, 64)
BLOCK_S = 2.0
REST, GRPC = "REST, binary: tritonclient.http.aio", "gRPC: tritonclient.grpc.aio"
ECHO = "an empty grpc.aio server: grpc.aio"


async def closed_loop(ask: Callable[[], Awaitable[Any]], in_flight: int, seconds: float) -> dict[str, float]:
    """So many requests at a time, each sent when one was answered."""
    took: list[float] = []
    end = time.perf_counter() + seconds

    async def client() -> None:
        while (start := time.perf_counter()) < end:
            await ask()
            took.append(time.perf_counter() - start)

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(in_flight)))
    return {
        "requests": float(len(took)),
        "rps": len(took) / (time.perf_counter() - began),
        "p50_s": float(np.quantile(took, 0.5)),
        "p99_s": float(np.quantile(took, 0.99)),
    }


@contextlib.contextmanager
def echo() -> Iterator[tuple[int, str]]:
    """An empty gRPC server: its process and its address."""
    command = [sys.executable, "-m", "benchmarks.serving.grpc_echo"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            yield process.pid, f"127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


async def blocks(server: peers.Server, address: str, options: Options) -> dict[str, dict[int, list[dict[str, float]]]]:
    """Blocks of both protocols in turn, and of an empty server that speaks gRPC."""
    import grpc
    import tritonclient.grpc.aio as grpc_client
    import tritonclient.http.aio as rest_client

    found: dict[str, dict[int, list[dict[str, float]]]] = {REST: {}, GRPC: {}, ECHO: {}}
    async with contextlib.AsyncExitStack() as stack:
        asks: dict[str, Callable[[], Awaitable[Any]]] = {}
        for who, module, url in (
            (REST, rest_client, server.post.url.removeprefix("http://").partition("/")[0]),
            (GRPC, grpc_client, address),
        ):
            limit = {"conn_limit": max(IN_FLIGHT)} if who == REST else {}
            client = await stack.enter_async_context(module.InferenceServerClient(url, **limit))
            given = module.InferInput(credit.input_name(), list(credit.ROW.shape), "FP32")
            given.set_data_from_numpy(credit.ROW)
            asks[who] = lambda client=client, given=given: client.infer(credit.NAME, [given])
        answers = [(await ask()).as_numpy("probabilities") for ask in asks.values()]
        if not np.array_equal(*answers):
            raise RuntimeError(f"got {answers[1]} over gRPC, expected REST's {answers[0]}")
        pids = dict.fromkeys(asks, server.pids)
        pid, empty = stack.enter_context(echo())
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(empty))
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        asks[ECHO], pids[ECHO] = lambda: call(bytes(120)), [pid]
        for turn in range(1 if options.quick else min(3, options.effort.rounds)):
            for in_flight in IN_FLIGHT:
                for who, ask in asks.items():
                    options.progress(f"{turn + 1}: {who}, {in_flight} in flight")
                    await closed_loop(ask, in_flight, 0.2)
                    cpu = Cpu(pids[who])
                    before = cpu.seconds()
                    one = await closed_loop(ask, in_flight, 0.5 if options.quick else BLOCK_S)
                    one["cpu_s"] = (cpu.seconds() - before) / one["requests"]
                    found[who].setdefault(in_flight, []).append(one)
    return found


def measure(options: Options) -> dict[str, Any]:
    """One server, asked over both."""
    port = peers.free_port()
    with tempfile.TemporaryDirectory() as name, peers.headrace(Path(name), grpc_port=port) as server:
        found = asyncio.run(blocks(server, f"127.0.0.1:{port}", options))
    return {who: {str(n): middle(several) for n, several in by.items()} for who, by in found.items()}


def table(result: dict[str, Any]) -> str:
    """One line per protocol."""
    headings = ["protocol and client"]
    for n in IN_FLIGHT:
        headings += [f"{n}: requests/s", "p50 / p99, ms", "CPU of the server, us"]
    rows = []
    for who, by in result.items():
        cells = [who]
        for n in IN_FLIGHT:
            one = by[str(n)]
            cells += [
                f"{one['rps']:.0f}", f"{number(1e3 * one['p50_s'])} / {number(1e3 * one['p99_s'])}",
                f"{1e6 * one['cpu_s']:.0f}",
            ]  # fmt: skip
        rows.append(cells)
    ratios = ", ".join(
        f"{result[GRPC][str(n)]['rps'] / result[REST][str(n)]['rps']:.2f} with {n} in flight" for n in IN_FLIGHT
    )
    return f"{markdown(headings, rows)}\n\n- gRPC / REST, requests/s: {ratios}"


SECTIONS = [Section("serving-grpc", "gRPC beside REST, asked by the stock clients", measure, table, page="serving.md")]
