"""A server process over fakes. Arguments: seconds that one batch takes, longest body in bytes, address."""

import sys
import time
from typing import Any

from serving_fakes import FakeBatcher, FakeEngine, make_config

from headrace.serving.host import ModelHost
from headrace.serving.http import limits
from headrace.serving.server import run

delay_s, body_bytes_max = float(sys.argv[1]), int(sys.argv[2])
limits.LINGER_S_MAX, limits.SWEEP_S = 0.3, 0.1


class SlowEngine(FakeEngine):
    def run_batch(self, requests: Any) -> Any:
        time.sleep(delay_s)
        return super().run_batch(requests)


host = ModelHost([make_config()], engine_opener=lambda p, s: SlowEngine(), batcher_opener=FakeBatcher)  # type: ignore[arg-type]
run(
    host,
    address=sys.argv[3],
    port=0,
    body_bytes_max=body_bytes_max,
    on_ready=lambda url, grpc: print(f"ready: {url}", flush=True),
)
print("drained", flush=True)
