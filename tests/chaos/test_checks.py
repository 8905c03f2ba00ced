"""That the campaigns' checks find what they are there for."""

from __future__ import annotations

import asyncio
import os
import random
import threading
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from aiohttp import web

from headrace.observe import ledger

from .growth import GRPC_THREADS, Growth, Sample, look
from .load import RETRY_AFTER, RETRY_AFTER_ON_RAY, Client, Tally, session
from .model import NAME, Case
from .ray_campaigns import _in_turns, held_at_most
from .report import Report, lost_of
from .swap import CHANGES, Change

CHANGED = {2: Change("shadow"), 3: Change("canary", broken=True, taken=False)}


def write(folder: Path, version: str = "1", /, **counts: int) -> None:
    """A ledger file of a process that has ended."""
    fd = ledger.create(folder, NAME, version)
    os.pwrite(fd, ledger._COUNTS.pack(*[counts.get(name, 0) for name in ledger._NAMES]), ledger._HEADER_BYTES)
    os.close(fd)


def broken(folder: Path, **outcomes: int) -> list[str]:
    """The promises that such clients' ledger breaks."""
    report = Report()
    report.balance(folder, Tally(Counter(outcomes)), changes=CHANGED)
    return [what for what, held in report.promises.items() if not held]


def test_the_books_of_the_same_requests_balance(tmp_path: Path) -> None:
    write(tmp_path, accepted=13, ok=10, expired=1, refused=3, cancelled=2)
    write(tmp_path, "2", accepted=7, ok=4, cancelled=3)
    write(tmp_path, "3", accepted=5, failed=5)
    assert broken(tmp_path, ok=10, expired=1, refused=3, broken=2) == []


def test_the_books_balance_where_earlier_ones_were_folded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "GONE_KEPT", 1)
    write(tmp_path, accepted=13, ok=13)
    write(tmp_path, "2", accepted=7, ok=7)
    write(tmp_path, accepted=3, ok=3)
    ledger._fold_locked(tmp_path)
    assert sorted(entry.owner.version for entry in ledger.read(tmp_path)) == ["", "1"]
    assert broken(tmp_path, ok=16) == []
    assert broken(tmp_path, ok=24) == ["the ledger knows of every answer"]


@pytest.mark.parametrize(
    ("counts", "outcomes", "promise"),
    [
        ({"accepted": 1, "ok": 2}, {"ok": 2}, "the ledger balances"),
        ({"accepted": 1, "ok": 1}, {"ok": 2}, "the ledger knows of every answer"),
        ({"accepted": 3, "ok": 3}, {"ok": 1, "broken": 1}, "it has no answer that no client could get"),
        ({"accepted": 1, "ok": 1, "refused": 1}, {"ok": 1}, "it has as many refused as the clients"),
        ({"accepted": 1, "ok": 1}, {"ok": 1, "refused": 1}, "it has as many refused as the clients"),
        ({"accepted": 2, "ok": 1, "expired": 1}, {"ok": 1}, "it has as many expired as the clients"),
        ({"accepted": 2, "ok": 1, "cancelled": 1}, {"ok": 1}, "it has nothing cancelled that a client waited for"),
        ({"accepted": 2, "ok": 1, "failed": 1}, {"ok": 1}, "it has no failure but of what is broken"),
    ],
)
def test_books_of_other_requests_break_a_promise(
    counts: dict[str, int], outcomes: dict[str, int], promise: str, tmp_path: Path
) -> None:
    write(tmp_path, **counts)
    assert broken(tmp_path, **outcomes) == [promise]


def test_what_is_lost_is_known_by_process(tmp_path: Path) -> None:
    write(tmp_path, accepted=5, ok=3)
    assert lost_of(tmp_path) == {os.getpid(): 2}


def test_a_replica_can_have_its_share_and_what_is_older() -> None:
    assert [held_at_most(8, others, 0) for others in range(5)] == [8, 4, 3, 2, 2]
    assert [held_at_most(8, 4, older) for older in (1, 6, 8)] == [3, 8, 8]


def test_two_changes_in_turn_are_one_to_be_taken_and_one_that_is_not() -> None:
    order = _in_turns(random.Random(1))
    assert {*order} == {*CHANGES}
    assert all(one.taken != other.taken for one, other in pairwise(order))


@pytest.mark.parametrize(
    ("status", "told", "anywhere", "on_ray"),
    [
        (429, True, "refused", "refused"),
        (429, False, "failed", "failed"),
        (503, True, "unavailable", "unavailable"),
        (503, False, "unavailable", "failed"),
    ],
)
def test_a_503_is_no_429(status: int, told: bool, anywhere: str, on_ray: str) -> None:
    async def answer(request: web.BaseRequest) -> web.Response:
        return web.Response(status=status, headers={"Retry-After": "1"} if told else {})

    async def run() -> None:
        runner = web.ServerRunner(web.Server(answer))
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        tally = Tally()
        async with session() as http:
            for statuses, outcome in ((RETRY_AFTER, anywhere), (RETRY_AFTER_ON_RAY, on_ray)):
                client = Client(http, f"http://{host}:{port}", [Case(b"{}", None)], statuses)  # type: ignore[arg-type]
                assert await client.one(0, tally) == outcome
        await runner.cleanup()
        assert tally.begun_s == []

    asyncio.run(run())


def test_a_thread_more_is_seen_but_not_one_of_grpc() -> None:
    stop, ready = threading.Event(), threading.Barrier(3)

    def wait(name: str) -> None:
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(name)
        ready.wait()
        stop.wait()

    before = look([os.getpid()]).threads[os.getpid()]
    names = GRPC_THREADS, "a leak"
    threads = [threading.Thread(target=wait, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    ready.wait()
    more = look([os.getpid()]).threads[os.getpid()] - before
    stop.set()
    for thread in threads:
        thread.join()
    assert more == 1


def test_growth_is_told_by_process() -> None:
    def sample(at_s: float, more: int) -> Sample:
        return Sample(at_s, {1: 100 + more, 2: 100}, {1: 5, 2: 5 + more}, {1: 4, 2: 3 + 2 * more})

    growth = Growth([sample(at_s, 0 if at_s < 6 else 1) for at_s in range(11)])
    assert growth.rss() == pytest.approx(1 / 200)
    assert (growth.descriptors_of(1), growth.descriptors_of(2), growth.descriptors()) == (0, 1, 1)
    assert (growth.threads_of(1), growth.threads_of(2), growth.threads()) == (0, 2, 2)
    assert growth.processes() == 0
