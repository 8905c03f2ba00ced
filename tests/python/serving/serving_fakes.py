"""Stand-ins for the engine and the scheduler, and a bare ASGI client: the HTTP layer is tested without models."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from headrace.backend import Plan, Request, Result
from headrace.config import ModelConfig, ModelSettings
from headrace.errors import DeadlineExceeded, ExecutionError, InvalidModel, Overloaded
from headrace.serving.app import OipApp
from headrace.serving.host import ModelHost
from headrace.serving.repository import ModelRepository
from headrace.serving.service import OipService
from headrace.signature import Signature, TensorSpec

DOUBLER = Signature((TensorSpec("x", "float32", ("n", 3)),), (TensorSpec("y", "float32", ("n", 3)),))
# Every dtype in and out again, each with its own rank.
MIRROR_DTYPES = ("bool", "uint8", "int32", "int64", "uint64", "float16", "float32", "float64", "bfloat16", "string")
MIRROR = Signature(
    tuple(TensorSpec(f"in_{d}", d, ("n", 2)) for d in MIRROR_DTYPES),
    tuple(TensorSpec(f"out_{d}", d, ("n", 2)) for d in MIRROR_DTYPES),
)


class FakeEngine:
    """Doubles `x` into `y`, or mirrors every input. Slow or failing when a test asks for it."""

    def __init__(self, signature: Signature = DOUBLER) -> None:
        self.signature = signature
        self.plan = Plan("fake", "cpu:0", "scalar", "fp32", 1)
        self.parity = "not checked: a fake"
        self.gate = threading.Event()
        self.gate.set()
        self.computed: list[Request] = []
        self.closed = False
        self.broken = False
        self.factor = 2

    def run_batch(self, requests: Sequence[Request]) -> list[Result]:
        assert not self.closed
        self.gate.wait(20)
        self.computed.extend(requests)
        return [self._run(request) for request in requests]

    def _run(self, request: Request) -> Result:
        if self.signature is MIRROR:
            return {name.replace("in_", "out_"): array for name, array in request.items()}
        if self.broken:
            raise ExecutionError("node 'boom': got a broken engine, expected a whole one")
        x = request["x"]
        if x.size and x.flat[0] == 666:
            raise ExecutionError("node 'boom': got 666, expected anything else")
        if x.size and x.flat[0] == 667:
            raise ZeroDivisionError("secret detail")
        with np.errstate(over="ignore"):
            return {"y": x * np.float32(self.factor)}

    def close(self) -> None:
        self.closed = True


class FakeBatcher:
    """One Request at a time, with the real Batcher's interface, errors and ledger."""

    def __init__(self, engine: FakeEngine, settings: ModelSettings) -> None:
        self._engine = engine
        self._settings = settings
        self._busy: asyncio.Lock | None = None
        self.ledger = dict.fromkeys(("accepted", "ok", "failed", "expired", "cancelled", "refused", "queued"), 0)
        self.seen: list[tuple[float | None, int]] = []
        self.callers: list[Hashable] = []
        self.running_s = 0.0

    async def infer(
        self, req: Request, *, deadline_ms: float | None = None, priority: int = 0, caller: Hashable = None
    ) -> Result:
        self.seen.append((deadline_ms, priority))
        self.callers.append(caller)
        self._busy = self._busy or asyncio.Lock()
        if self.ledger["queued"] >= self._settings.max_queue:
            self.ledger["refused"] += 1
            raise Overloaded(f"queue: got {self.ledger['queued']} waiting, expected less", retry_after_s=2.5)
        self.ledger["accepted"] += 1
        self.ledger["queued"] += 1
        started = time.monotonic()
        try:
            async with self._busy:
                if deadline_ms is not None and (time.monotonic() - started) * 1000 > deadline_ms:
                    raise DeadlineExceeded(f"queue: got a wait beyond {deadline_ms} ms, expected less")
                result = (await asyncio.to_thread(self._engine.run_batch, [req]))[0]
            self.ledger["ok"] += 1
            return result
        except asyncio.CancelledError:
            self.ledger["cancelled"] += 1
            raise
        except DeadlineExceeded:
            self.ledger["expired"] += 1
            raise
        except Exception:
            self.ledger["failed"] += 1
            raise
        finally:
            self.ledger["queued"] -= 1

    def stats(self) -> dict[str, Any]:
        ran = self.ledger["ok"] + self.ledger["failed"]
        took = {"count": ran, "total_s": 0.003 * ran, "buckets": [(0.001, 0), (0.004, ran), (float("inf"), ran)]}
        return {
            **self.ledger,
            "batches": ran,
            "batch_sizes": [0, ran],
            "batch_seconds": [0.0, 0.003 * ran],
            "queue_delay": took,
            "compute": took,
            "queue_delay_s": 0.0,
            "running_s": self.running_s,
            "capacity_rps": 0.0,
            "offered_rps": 0.0,
        }

    def close(self) -> None:
        end = time.monotonic() + 5  # the event loop answers them meanwhile, if this is not its thread
        while self.ledger["queued"] and time.monotonic() < end:
            time.sleep(0.005)
        assert self.ledger["queued"] == 0, "closed with accepted Requests still unanswered"


def make_config(name: str = "doubler", versions: Sequence[int] = (1,), **settings: Any) -> ModelConfig:
    files = {version: Path(f"/nowhere/{name}/{version}/model.onnx") for version in versions}
    return ModelConfig(name=name, files=files, settings=ModelSettings(**settings))


@dataclass
class Served:
    """A loaded host of fakes and the application over it."""

    host: ModelHost
    app: OipApp
    engines: list[FakeEngine] = field(default_factory=list)
    batchers: list[FakeBatcher] = field(default_factory=list)


def make_served(
    *configs: ModelConfig,
    load: bool = True,
    body_bytes_max: int = 1 << 20,
    repository: Path | None = None,
    admin_token: str | None = None,
) -> Served:
    engines: list[FakeEngine] = []
    batchers: list[FakeBatcher] = []

    def engine_opener(path: Path, settings: ModelSettings) -> FakeEngine:
        if path.is_file() and path.read_bytes() == b"broken":
            raise InvalidModel(f"{path}: got something broken, expected a model")
        engines.append(FakeEngine(MIRROR if "mirror" in path.parts else DOUBLER))
        return engines[-1]

    def batcher_opener(engine: Any, settings: ModelSettings) -> FakeBatcher:
        batchers.append(FakeBatcher(engine, settings))
        return batchers[-1]

    host = ModelHost(configs or [make_config()], engine_opener=engine_opener, batcher_opener=batcher_opener)
    if load:
        host.load()
        for engine in engines:
            engine.computed.clear()
    service = OipService(
        host,
        body_bytes_max=body_bytes_max,
        repository=None if repository is None else ModelRepository(host, repository),
        admin_token=admin_token,
    )
    return Served(host, OipApp(service), engines, batchers)


@dataclass
class Answer:
    """One HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return str(self.json["error"])


async def acall(
    app: OipApp,
    method: str,
    path: str,
    body: bytes | list[bytes] = b"",
    headers: dict[str, str] | None = None,
    **scope: Any,
) -> Answer:
    """Sends one request straight into the ASGI application; a list of bodies arrives chunk by chunk."""
    chunks = body if isinstance(body, list) else [body]
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": chunk, "more_body": index + 1 < len(chunks)}
        for index, chunk in enumerate(chunks)
    ]
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop(0)
        await asyncio.Event().wait()  # an open connection with nothing more to say
        raise AssertionError("unreachable")

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
    await app({"type": "http", "method": method, "path": path, "headers": raw, **scope}, receive, send)
    start, end = sent
    assert start["type"] == "http.response.start"
    assert end["type"] == "http.response.body"
    decoded = {name.decode(): value.decode() for name, value in start["headers"]}
    assert decoded["content-length"] == str(len(end["body"]))
    return Answer(start["status"], decoded, end["body"])


def call(app: OipApp, method: str, path: str, *args: Any, **kwargs: Any) -> Answer:
    """`acall` for tests that need no concurrency."""
    return asyncio.run(acall(app, method, path, *args, **kwargs))


def rows(*values: float, shape: Sequence[int] | None = None, **more: Any) -> bytes:
    """The JSON body of a request to the doubler."""
    tensor = {"name": "x", "shape": list(shape or (len(values) // 3, 3)), "datatype": "FP32", "data": list(values)}
    return json.dumps({"inputs": [tensor], **more}).encode()
