"""The short form of every campaign: what must hold at any length, and on a machine that is busy."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from .campaigns import CAMPAIGNS, INGRESSES
from .cluster import Cluster
from .ray_campaigns import RAY_CAMPAIGNS
from .soak import soak
from .swap import settings

# The clusters of the short forms are one. A soak says nothing in seconds, but of a leak; that a front which is killed
# comes back is a test of `tests/python/serving` too.
RAY_REPLICAS = 3
RAY_SHORT = ("ray-kill", "ray-controller", "ray-roll")
# The promises of those that overload hold as well of less.
SHORT_S = {"overload": 2.0, "greedy": 2.0}
SHORT = [name for name in CAMPAIGNS if name not in (*RAY_CAMPAIGNS, *INGRESSES, "soak")]
# Keeps 20 kB of every request, and of every fiftieth a file, a thread and a process.
LEAK = """
import subprocess, threading
import headrace.serving.served as served
kept, ended = [], served.ServedModel.ended
def leak(*args):
    kept.append(bytearray(b"x" * 20_000))
    if len(kept) % 50 == 0:
        kept.extend([open("/dev/null"), subprocess.Popen(["sleep", "60"])])
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    return ended(*args)
served.ServedModel.ended = leak
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("cluster"), RAY_REPLICAS, settings("replace"))
    try:
        cluster.start()
        yield cluster
    finally:
        left = cluster.stop()
    assert left == []


@pytest.mark.parametrize("name", SHORT)
def test_campaign(name: str, tmp_path: Path) -> None:
    report = asyncio.run(CAMPAIGNS[name](tmp_path, 1, SHORT_S.get(name, 3.0)))
    broken = [what for what, held in report.promises.items() if not held]
    assert not broken, report.facts


def test_a_soak_finds_planted_leaks(tmp_path: Path) -> None:
    report = asyncio.run(soak(tmp_path, 1, 3.0, LEAK))
    assert {what for what, held in (report.promises | report.bars).items() if not held} == {
        "memory grew by at most 2%",
        "no descriptor is left",
        "no thread is left",
        "no process was added",
        "no process outlived the server",
    }, report.facts


@pytest.mark.ray
@pytest.mark.parametrize("name", RAY_SHORT)
def test_ray_campaign(name: str, cluster: Cluster) -> None:
    # Twice at most: where other work takes the machine, Serve itself starts parts again that answer too late.
    for _ in range(2):
        report = asyncio.run(RAY_CAMPAIGNS[name](cluster, 1, 2.0))
        broken = [what for what, held in report.promises.items() if not held]
        if not broken:
            return
    raise AssertionError(f"{broken}: {report.facts}")
