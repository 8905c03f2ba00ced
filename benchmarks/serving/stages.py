"""Where the CPU time of one REST request goes, in one process without sockets: ours only."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from benchmarks.serving import credit
from headrace.backend import Request, Result
from headrace.config import ModelConfig, ModelSettings
from headrace.serving import listener
from headrace.serving.app import OipApp
from headrace.serving.encode import encode
from headrace.serving.host import ModelHost
from headrace.serving.http.connection import HttpProtocol
from headrace.serving.service import OipService

CALLS = 3000


class Known:
    """A Batcher that knows the answer: what is left is everything around it."""

    def __init__(self, batcher: Any, result: Result) -> None:
        self._batcher, self._result = batcher, result

    async def infer(self, request: Request, **options: Any) -> Result:
        """The answer."""
        return self._result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batcher, name)


class Transport:
    """A connection whose client asks again when it has its answer."""

    def __init__(self) -> None:
        self.answered: asyncio.Future[None] | None = None

    def write(self, data: bytes) -> None:
        """The body is the last that is written."""
        if b"model_name" in data and self.answered is not None and not self.answered.done():
            self.answered.set_result(None)

    def get_extra_info(self, name: str) -> None:
        """Nothing is known of it."""

    def is_closing(self) -> bool:
        """Never."""
        return False

    def pause_reading(self) -> None:
        """Nothing comes unasked."""

    resume_reading = close = pause_reading


def per_call(function: Callable[[], object]) -> float:
    """Seconds of CPU time of this thread per call."""
    for _ in range(100):
        function()
    start = time.thread_time()
    for _ in range(CALLS):
        function()
    return (time.thread_time() - start) / CALLS


async def _requests(app: OipApp, raw: bytes) -> float:
    """CPU seconds per request, of all threads."""
    server = listener.http_server(app)
    server.config.load()
    loop, transport = asyncio.get_running_loop(), Transport()
    protocol = HttpProtocol(server.config, server.server_state, {}, loop)
    protocol.connection_made(transport)  # type: ignore[arg-type]
    start = 0.0
    for number in range(CALLS + 200):
        if number == 200:
            start = time.process_time()
        transport.answered = loop.create_future()
        protocol.data_received(raw)
        await transport.answered
        await asyncio.sleep(0)
    return (time.process_time() - start) / CALLS


def measure() -> dict[str, float]:
    """Microseconds of CPU time by stage, one request at a time."""
    import uvloop

    config = ModelConfig(
        name=credit.NAME, files={1: credit.file()}, settings=ModelSettings(backend="native", threads=1, parity=False)
    )
    host = ModelHost([config])
    host.load()
    try:
        app, served = OipApp(OipService(host)), host.find(credit.NAME)
        body = credit.oip_json("").body
        raw = (
            f"POST /v2/models/{credit.NAME}/infer HTTP/1.1\r\nHost: localhost\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode() + body
        call = served.decoder.decode(body)
        result = served.engine.run_batch([call.inputs])[0]
        decode_s = per_call(lambda: served.decoder.decode(body))
        encode_s = per_call(lambda: encode(served.name, served.version, call.id, call.outputs, result))
        run_s = per_call(lambda: served.engine.run_batch([call.inputs]))
        all_s = uvloop.run(_requests(app, raw))
        batcher, served.batcher = served.batcher, Known(served.batcher, result)
        around_s = uvloop.run(_requests(app, raw))
        served.batcher = batcher
    finally:
        host.close()
    return {
        "HTTP and ASGI": 1e6 * (around_s - decode_s - encode_s),
        "decode": 1e6 * decode_s,
        # All of it on the event loop's thread, or with the scheduler's: so short a request is mostly not handed over.
        "admit, batch and complete": 1e6 * (all_s - around_s - run_s),
        "run": 1e6 * run_s,
        "encode": 1e6 * encode_s,
    }


def sentence(stages: dict[str, float]) -> str:
    """What was measured, in a line."""
    parts = ", ".join(f"{name} {us:.0f}" for name, us in stages.items())
    return (
        f"CPU of one JSON request in `headrace serve`, us, without sockets and one at a time: {parts}; "
        f"together **{sum(stages.values()):.0f}**."
    )
