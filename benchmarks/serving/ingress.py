"""The ways requests can reach replicas on Ray: our own ingress, Ray Serve's proxy, and its HAProxy."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
from typing import Any

import psutil

from benchmarks.harness.machine import ROOT
from benchmarks.harness.section import Options, Section
from benchmarks.harness.tables import markdown, number

# What the child is started with: `ingress` of the deployment, and the environment.
INGRESSES: dict[str, tuple[str, dict[str, str]]] = {
    "Headrace's own (`headrace`)": ("headrace", {}),
    "Ray Serve's proxy (`ray`)": ("ray", {}),
    "Ray Serve's HAProxy": ("ray", {"RAY_SERVE_ENABLE_HA_PROXY": "1"}),
}
CHILD_S_MAX = 75
# Every process that a child starts inherits it.
MARK = "HEADRACE_BENCHMARK_CHILD"


def measure(options: Options) -> dict[str, Any]:
    """One child after the other: two Rays at a time would disturb each other."""
    found: dict[str, Any] = {}
    for name, (ingress, environment) in INGRESSES.items():
        options.progress(name)
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.serving.ingress_child", ingress]
        command.append("1" if options.quick else "2")
        mark = secrets.token_hex(16)
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
            env={**os.environ, **environment, MARK: mark},
        ) as child:  # fmt: skip
            try:
                out, err = child.communicate(timeout=CHILD_S_MAX)
            except subprocess.TimeoutExpired:
                child.kill()
                out, err = child.communicate()
        _end_marked(mark)
        if "JSON" in out:
            found[name] = json.loads(out.rpartition("JSON")[2])
        else:
            found[name] = {"refused": (err.strip().splitlines() or ["no report"])[-1]}
    return found


def _end_marked(mark: str) -> None:
    """Ends what a child has left behind, such as a haproxy, each process by its own id."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == mark:
                process.kill()


def table(result: dict[str, Any]) -> str:
    """One line per ingress and number of connections, then one per ingress for what happens while replicas change."""
    measured = {name: one for name, one in result.items() if "steady" in one}
    steady = [
        [
            name, connections, f"{one['rps']:.0f}", number(1e3 * one["p50_s"]), number(1e3 * one["p99_s"]),
            f"{1e6 * one['cpu_s']:.0f}", f"{one['wrong'] + one['broken']:.0f}",
        ]
        for name, report in measured.items()
        for connections, one in report["steady"].items()
    ]  # fmt: skip
    kinds = ("1 to 2", "2 to 1", "0 to 1")
    changes = [
        [name, *(_change(report["changes"].get(kind)) for kind in kinds), str(report.get("left", "did not end"))]
        for name, report in measured.items()
    ]
    everywhere = [
        f"- {name} listens on {', '.join(one for one in report['listeners'] if _is_open(one)) or 'no other interface'}"
        for name, report in measured.items()
    ]
    refused = [f"- not measured: {name}: {one['refused']}" for name, one in result.items() if "refused" in one]
    headings = ["ingress", "connections", "requests/s", "p50, ms", "p99, ms", "CPU of all of Ray, us", "failed"]
    longest = [f"{kind} replicas: longest answer, failed" for kind in kinds]
    return "\n\n".join([
        markdown(headings, steady),
        markdown(["ingress", *longest, "processes left"], changes),
        "\n".join([*everywhere, *refused]),
    ])  # fmt: skip


def _change(found: dict[str, Any] | None) -> str:
    """What clients went through."""
    if found is None:
        return "not measured"
    return f"{found['longest_s']:.2f} s, {found['failures']} of {found['answered'] + found['failures']}"


def _is_open(listener: str) -> bool:
    """Whether it is one on every interface that is not there without HTTP: Ray has two of its own per replica."""
    return ("::" in listener or "0.0.0.0" in listener) and "ServeReplica" not in listener


SECTIONS = [Section("serving-ingress", "The ways requests can reach replicas on Ray", measure, table, page="ray.md")]
