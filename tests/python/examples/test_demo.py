"""The demo's own parts: load that keeps to its rate, ledgers that lose nothing, a report that says what happened."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
from aiohttp import web
from client import LENGTH, decode, encode
from report import Check, ModelReport, write
from traffic import Profile, Record, Sender, http_session
from watch import Sample, balances, now

from headrace.serving.front_ledgers import ReplicaLedger

BODY = encode({"x": np.arange(3, dtype=np.float32)}, "y", np.array([0, 2, 4], dtype=np.float32))


def answer(values: list[float]) -> tuple[bytes, dict[str, str]]:
    raw = np.array(values, dtype=np.float32).tobytes()
    tensor = {"name": "y", "datatype": "FP32", "shape": [3], "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"outputs": [tensor]}).encode()
    return head + raw, {LENGTH: str(len(head))}


@asynccontextmanager
async def server(handler: web.RequestHandler | object) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/infer", handler)  # type: ignore[arg-type]
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        yield f"http://127.0.0.1:{port}/infer"
    finally:
        await runner.cleanup()


def test_the_profile_is_piecewise_linear_and_then_zero() -> None:
    profile = Profile(((10, 0.2, 0.2), (5, 0.2, 1.0), (5, 1.0, 0.0)))
    assert profile.seconds == 20
    assert [profile.share(at) for at in (0, 9.99, 12.5, 15, 17.5, 20, 99)] == pytest.approx(
        [0.2, 0.2, 0.6, 1.0, 0.5, 0, 0]
    )


async def test_the_open_loop_keeps_to_its_rate_whatever_the_answers_do() -> None:
    async def slow(request: web.Request) -> web.Response:
        await asyncio.sleep(0.5)
        body, headers = answer([0, 2, 4])
        return web.Response(body=body, headers=headers)

    async with server(slow) as url, http_session() as session:
        sender = Sender(session, url, [BODY], perf_counter())
        await sender.open_loop(Profile(((2.0, 1.0, 1.0),)), lambda: 100.0, seed=5)
    record = sender.record
    assert 140 <= record.sent <= 260  # Poisson of mean 200: four standard deviations are 57
    assert record.outcomes == {"ok": record.sent}
    assert record.error_max == 0
    gaps = np.diff(record.sent_s)
    assert gaps.std() / gaps.mean() > 0.6, "arrivals are to be random, not evenly spaced"


async def test_every_way_a_request_can_end_is_counted_once() -> None:
    replies = iter([200, 429, 504, 500, 200, "cut", "wrong"])

    async def mixed(request: web.Request) -> web.Response:
        reply = next(replies)
        if reply == "cut":
            assert request.transport is not None
            request.transport.abort()
        body, headers = answer([0, 2, 4] if reply == 200 else [0, 2, 5])
        return web.Response(body=body, headers=headers, status=reply if isinstance(reply, int) else 200)

    async with server(mixed) as url, http_session() as session:
        sender = Sender(session, url, [BODY], perf_counter())
        for _ in range(7):
            await sender.one(BODY)
    record = sender.record
    assert record.sent == 7
    assert record.outcomes == {"ok": 3, "refused": 1, "expired": 1, "failed": 1, "lost": 1}
    assert record.error_max == 1.0, "a wrong answer must show"
    assert len(record.failures) == 2


def test_a_body_decodes_to_what_was_encoded() -> None:
    start = int(BODY.headers[LENGTH])
    assert json.loads(BODY.payload[:start])["inputs"][0]["shape"] == [3]
    assert np.frombuffer(BODY.payload[start:], np.float32).tolist() == [0, 1, 2]
    body, headers = answer([7, 8, 9])
    assert decode(body, headers[LENGTH], "y").tolist() == [7, 8, 9]
    with pytest.raises(ValueError, match="expected binary output 'y'"):
        decode(body, None, "y")
    with pytest.raises(ValueError, match="got no output 'z'"):
        decode(body, headers[LENGTH], "z")


def test_now_sums_up_the_last_seconds() -> None:
    record = Record(sent_s=[1.0, 8.0, 9.0], done=[(1.1, 0.1, "ok"), (8.2, 0.2, "ok"), (9.3, 0.3, "refused")], sent=3)
    samples = [
        Sample(6.0, 1, 0, Counter(ok=10, batches=5), 50.0),
        Sample(9.5, 2, 1, Counter(ok=22, batches=8), 50.0),
    ]
    at = now(record, samples, at_s=10.0)
    assert (at.offered_rps, at.served_rps, at.batch) == (0.5, 0.25, 4.0)
    assert (at.p50_ms, at.running, at.starting) == (200.0, 2, 1)


def test_a_ledger_that_does_not_add_up_is_noticed() -> None:
    assert balances({"accepted": 10, "ok": 7, "failed": 1, "expired": 1, "cancelled": 1})
    assert not balances({"accepted": 10, "ok": 8, "failed": 1, "expired": 0, "cancelled": 0})


def test_the_report_holds_figures_ledgers_and_checks(tmp_path: Path) -> None:
    record = Record(sent=3, outcomes=Counter(ok=2, lost=1), failures=["ClientError: <cut off>"])
    record.sent_s = [0.5, 1.5, 2.5]
    record.done = [(0.6, 0.1, "ok"), (1.8, 0.3, "ok"), (2.6, 0.1, "lost")]
    counts = Counter(accepted=2, ok=2, batches=1)
    stats = {"accepted": 2, "ok": 2, "batches": 1}
    model = ModelReport(
        name="tickets",
        what="one message",
        plan="native on cpu",
        peak_rps=20.0,
        capacity_rps=40.0,
        record=record,
        samples=[Sample(0.5 * tick, 1, 0, counts, 40.0) for tick in range(8)],
        ledgers=[ReplicaLedger("tickets", "abc", 1, stats, {}, True)],
        phases={"all": (0.0, 3.0)},
    )
    checks = [Check("it worked", True), Check("none lost", False)]
    page = write(tmp_path / "sub" / "index.html", [model], checks, "2 cores")
    text = page.read_text(encoding="utf-8")
    assert text.count("data:image/png;base64,") == 1
    assert "replica abc" in text
    assert "&lt;cut off&gt;" in text, "what came over the network must be escaped"
    assert text.count('class="ok"') == 1
    assert "all (2)" in text
