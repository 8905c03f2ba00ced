"""`headrace serve` with little patience. Argument: a model repository."""

import sys

from headrace.config import load_repository
from headrace.serving.host import ModelHost
from headrace.serving.http import limits
from headrace.serving.server import run

limits.HEAD_S_MAX = limits.BODY_S_MAX = 0.5
limits.SWEEP_S = 0.1
run(
    ModelHost(load_repository(sys.argv[1])),
    port=0,
    body_bytes_max=1 << 20,
    on_ready=lambda url, _: print(f"ready: {url}", flush=True),
)
