"""``headrace serve`` beside the inference servers that users would otherwise run, one model, one machine."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness.section import Options, Section
from benchmarks.harness.tables import markdown, number
from benchmarks.serving import credit, peers, stages
from benchmarks.serving.load import middle, wrk

CONNECTIONS = (1, 16, 64)
BLOCK_S = 2
OURS = ("Headrace, JSON", "Headrace, binary")
# Of the fastest peer's requests/s; what is still missing is a data plane without Python.
BARS = {1: 1.0, 16: 0.5, 64: 0.5}


def measure(options: Options) -> dict[str, Any]:
    """Blocks of every server in turn, while the others are stopped."""
    options.progress("installing the peers")
    peers.install()
    rounds = 1 if options.quick else min(3, options.effort.rounds)
    seconds = 1 if options.quick else BLOCK_S
    blocks: dict[str, dict[int, list[dict[str, float]]]] = {}
    refused: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        starts: dict[str, Any] = {
            OURS[0]: lambda: peers.headrace(folder, credit.oip_json, OURS[0]),
            OURS[1]: lambda: peers.headrace(folder, credit.oip_binary, OURS[1]),
            **{who: (lambda start=start: start(folder)) for who, start in peers.PEERS.items()},
        }
        servers: list[peers.Server] = []
        for who, start in starts.items():
            options.progress(f"starting {who}")
            try:
                servers.append(stack.enter_context(start()))
            except (RuntimeError, OSError) as error:
                refused[who] = str(error).splitlines()[-1]
                continue
            servers[-1].suspend()
        for turn in range(rounds):
            for connections in CONNECTIONS:
                for server in servers:
                    options.progress(f"{turn + 1}/{rounds}: {server.name}, {connections} connections")
                    server.resume()
                    if turn == 0:
                        wrk(server.post, connections, 1, server.pids)
                    block = wrk(server.post, connections, seconds, server.pids)
                    blocks.setdefault(server.name, {}).setdefault(connections, []).append(block)
                    server.suspend()
    options.progress("CPU by stage")
    found = {who: {str(n): middle(several) for n, several in by.items()} for who, by in blocks.items()}
    return {"servers": found, "refused": refused, "stages": stages.measure()}


def table(result: dict[str, Any]) -> str:
    """One line per server."""
    servers = result["servers"]
    headings = ["server"]
    for n in CONNECTIONS:
        headings += [f"{n}: requests/s", "p50 / p99, ms", "CPU, us"]
    rows = []
    for who, by in servers.items():
        cells = [who]
        for n in CONNECTIONS:
            one = by[str(n)]
            wrong = f" ({one['wrong'] + one['broken']:.0f} failed)" if one["wrong"] + one["broken"] else ""
            cells += [
                f"{one['rps']:.0f}{wrong}", f"{number(1e3 * one['p50_s'])} / {number(1e3 * one['p99_s'])}",
                f"{1e6 * one['cpu_s']:.0f}",
            ]  # fmt: skip
        rows.append(cells)
    peer_names = [who for who in servers if who not in OURS]
    lines = []
    for n, bar in BARS.items():
        best = max(peer_names, key=lambda who: servers[who][str(n)]["rps"], default="")
        if best:
            ratio = servers[OURS[0]][str(n)]["rps"] / servers[best][str(n)]["rps"]
            held = "" if ratio >= bar else ": not reached"
            lines.append(f"- {n} connections: Headrace (JSON) / {best} = **{ratio:.2f}** (wanted: {bar:g}{held})")
    lines += [f"- not measured: {who}: {why}" for who, why in result["refused"].items()]
    return "\n\n".join([markdown(headings, rows), "\n".join(lines), stages.sentence(result["stages"])])


SECTIONS = [Section("serving-embedded", "One process beside other inference servers", measure, table)]
