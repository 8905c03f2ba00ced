"""``headrace deploy`` beside bare Ray Serve, on one Ray: the same model, the same CPU shares, one replica each."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.engine import texts
from benchmarks.harness.section import Options, Section
from benchmarks.harness.tables import markdown, number
from benchmarks.serving import credit
from benchmarks.serving.load import Post, middle, open_loop, wait_ready, wrk

CONNECTIONS = 64
BLOCK_S = 3
CPUS = 0.5
BATCH_MAX = 64
BARE = "bare Ray Serve"
BAR_CREDIT, BAR_TEXTS = 5.0, 3.0
SENTENCES = 200
LOAD = 0.7
OPEN_S = 6.0
# Our rate grows by this until the p99 is the peer's.
STEP = 1.25


def both(model: Any, path: str, pad: bool, work: Callable[[str, str, list[int]], Any]) -> Any:
    """Runs `work` with the URLs of ours and of the bare application, and with the processes of Ray."""
    import ray
    from ray import serve
    from ray.serve.config import HTTPOptions
    from ray.serve.schema import LoggingConfig

    from benchmarks.serving import bare_ray
    from headrace.config import AutoscalingConfig, DeployConfig, DeployedModel, HttpConfig
    from headrace.serve import deploy
    from headrace.serving import ray_cluster

    ray.cloudpickle.register_pickle_by_value(bare_ray)
    tag = ray_cluster.connect(lambda step: None)
    assert tag is not None, "this is a bug: the benchmark has a Ray of its own"
    try:
        port = ray_cluster.free_port()
        serve.start(
            proxy_location="HeadOnly", http_options=HTTPOptions(host="127.0.0.1", port=port),
            logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
        )  # fmt: skip
        application = bare_ray.build(path, CPUS, BATCH_MAX, pad)
        serve.run_many([serve.RunTarget(application, name=bare_ray.NAME, route_prefix="/bare")])
        scaling = AutoscalingConfig(min_replicas=1, max_replicas=1, cpus_per_replica=CPUS)
        config = DeployConfig(
            http=HttpConfig(port=0), models=[DeployedModel(model=model, autoscaling=scaling)]
        )  # fmt: skip
        with deploy(config) as deployment:
            return work(deployment.url, f"http://127.0.0.1:{port}/bare", ray_cluster.processes(tag))
    finally:
        ray_cluster.stop(tag, ray_cluster.EXIT_S_MAX)


def measure_credit(options: Options) -> dict[str, Any]:
    """Closed loop, 64 keep-alive connections."""
    from headrace.config import ModelConfig, ModelSettings

    settings = ModelSettings(backend="native", threads=1, max_batch=BATCH_MAX)
    model = ModelConfig(name=credit.NAME, files={1: credit.file()}, settings=settings)

    def work(ours: str, bare: str, pids: list[int]) -> dict[str, Any]:
        posts = {
            "Headrace, JSON": credit.oip_json(ours), "Headrace, binary": credit.oip_binary(ours),
            f"{BARE}, JSON": credit.plain_json(bare),
        }  # fmt: skip
        blocks: dict[str, list[dict[str, float]]] = {who: [] for who in posts}
        for post in posts.values():
            wait_ready(post, None)
            wrk(post, CONNECTIONS, 1, [])
        for turn in range(1 if options.quick else min(3, options.effort.rounds)):
            for who, post in posts.items():
                options.progress(f"{turn + 1}: {who}")
                blocks[who].append(wrk(post, CONNECTIONS, 1 if options.quick else BLOCK_S, pids))
        return {who: middle(several) for who, several in blocks.items()}

    found: dict[str, Any] = both(model, str(credit.file()), pad=False, work=work)
    return found


def credit_table(result: dict[str, Any]) -> str:
    """One line per way of asking."""
    rows = [
        [
            who, f"{one['rps']:.0f}", number(1e3 * one["p50_s"]), number(1e3 * one["p99_s"]),
            f"{1e6 * one['cpu_s']:.0f}", f"{one['wrong'] + one['broken']:.0f}",
        ]
        for who, one in result.items()
    ]  # fmt: skip
    bare = result[f"{BARE}, JSON"]
    lines = [
        f"- {who} / {BARE} = **{one['rps'] / bare['rps']:.1f}** requests/s (wanted: {BAR_CREDIT:g}), p99 "
        f"**{one['p99_s'] / bare['p99_s']:.2f}** of its (wanted: below 1)"
        for who, one in result.items()
        if who.startswith("Headrace")
    ]
    headings = ["server", "requests/s", "p50, ms", "p99, ms", "CPU of all of Ray per request, us", "failed"]
    return "\n\n".join([markdown(headings, rows), "\n".join(lines)])


def measure_texts(options: Options) -> dict[str, Any]:
    """Open loop, ragged sentences: the peer at 70 % of its capacity, and us at what rate has the same p99."""
    from headrace.config import ModelConfig, ModelSettings

    settings = ModelSettings(backend="native", threads=1, max_batch=BATCH_MAX)
    model = ModelConfig(name="minilm", files={1: texts.minilm_path()}, settings=settings)
    tokenizer = texts.minilm().Tokenizer()
    ids = [tokenizer(sentence)["input_ids"][0].tolist() for sentence in texts.sentences(SENTENCES)]
    seconds = 2.0 if options.quick else OPEN_S

    def work(ours: str, bare: str, pids: list[int]) -> dict[str, Any]:
        theirs = [Post(bare, json.dumps({"x": one}).encode()) for one in ids]
        own = [_oip_text(ours, one) for one in ids]
        wait_ready(theirs[0], None)
        wait_ready(own[0], None)
        flood = asyncio.run(open_loop(theirs, 400.0, 3.0, 1))
        options.progress(f"{BARE} carries {flood['rps']:.0f}/s")
        bare_at = asyncio.run(open_loop(theirs, LOAD * flood["rps"], seconds, 2))
        steps = []
        rate = LOAD * flood["rps"]
        while rate < 3000:
            options.progress(f"Headrace at {rate:.0f}/s")
            steps.append(asyncio.run(open_loop(own, rate, seconds, 3)))
            if steps[-1]["p99_s"] > bare_at["p99_s"] or steps[-1]["failed"]:
                break
            rate *= STEP
        return {"capacity_rps": flood["rps"], "bare": bare_at, "steps": steps}

    found: dict[str, Any] = both(model, str(texts.minilm_path()), pad=True, work=work)
    return found


def _oip_text(url: str, ids: list[int]) -> Post:
    shape = [1, len(ids)]
    tensors = [
        {"name": name, "datatype": "INT64", "shape": shape, "data": values}
        for name, values in (("input_ids", ids), ("attention_mask", np.ones(len(ids), int).tolist()))
    ]
    return Post(f"{url}/v2/models/minilm/infer", json.dumps({"inputs": tensors}).encode())


def texts_table(result: dict[str, Any]) -> str:
    """One line per rate."""
    bare = result["bare"]
    runs = [(BARE, bare), *(("Headrace", step) for step in result["steps"])]
    rows = [
        [
            who, f"{one['offered_rps']:.0f}", number(1e3 * one["p50_s"]), number(1e3 * one["p99_s"]),
            f"{one['failed']:.0f}",
        ]
        for who, one in runs
    ]  # fmt: skip
    within = [s["offered_rps"] for s in result["steps"] if s["p99_s"] <= bare["p99_s"] and not s["failed"]]
    best = max(within, default=0.0)
    line = (
        f"{BARE} carries {result['capacity_rps']:.0f} requests/s. The rate at which Headrace's p99 is no higher / "
        f"{LOAD:.0%} of that = **{best / bare['offered_rps']:.1f}** (wanted: {BAR_TEXTS:g})."
    )
    return f"{markdown(['server', 'offered, requests/s', 'p50, ms', 'p99, ms', 'failed'], rows)}\n\n{line}"


SECTIONS = [
    Section("serving-ray", "The credit model on Ray, beside bare Ray Serve", measure_credit, credit_table),
    Section("serving-minilm", "Sentences of any length on Ray, beside bare Ray Serve", measure_texts, texts_table),
]
