"""``headrace deploy`` beside bare Ray Serve, on one Ray: the same model, the same CPU shares, one replica each."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.engine import texts
from benchmarks.harness.section import Options, Section
from benchmarks.harness.tables import markdown, number
from benchmarks.serving import credit
from benchmarks.serving.load import Post, closed_loop, middle, open_loop, wait_ready, wrk

CONNECTIONS = 64
BLOCK_S = 3
CPUS = 0.5
BATCH_MAX = 64
BARE = "bare Ray Serve"
BAR_CREDIT, BAR_TEXTS = 5.0, 3.0
SENTENCES = 200
LOAD = 0.7
# Clients that each ask again when they have their answer. The peer carries what it carries with that number of them
# which suits it best: the more there are, the more sentences it pads to the longest.
CLIENTS = (1, 4, 16, 64)
CLOSED_S = 3.0
# A p99 wants some hundreds of answers.
OPEN_S = 10.0
# Our rate begins at the bar and goes up by this while the p99 is no higher than the peer's, else down.
STEP = 1.25
RATES_MAX = 4
# ONNX Runtime has no bf16 on a CPU.
PRECISIONS = ("fp32", "bf16")


def both(models: Sequence[Any], path: str, pad: bool, work: Callable[[str, str, list[int]], Any]) -> Any:
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
            http=HttpConfig(port=0), models=[DeployedModel(model=model, autoscaling=scaling) for model in models]
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

    found: dict[str, Any] = both([model], str(credit.file()), pad=False, work=work)
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
    """Open loop, ragged sentences: the peer at 70 % of its capacity, and at what rate we have the same p99."""
    from headrace.config import ModelConfig, ModelSettings

    models = [
        ModelConfig(
            name=f"minilm-{precision}", files={1: texts.minilm_path()},
            settings=ModelSettings(backend="native", threads=1, max_batch=BATCH_MAX, precision=precision),
        )
        for precision in PRECISIONS
    ]  # fmt: skip
    tokenizer = texts.minilm().Tokenizer()
    ids = [tokenizer(sentence)["input_ids"][0].tolist() for sentence in texts.sentences(SENTENCES)]
    closed_s, open_s = (1.0, 2.0) if options.quick else (CLOSED_S, OPEN_S)

    def work(ours: str, bare: str, pids: list[int]) -> dict[str, Any]:
        theirs = [Post(bare, json.dumps({"x": one}).encode()) for one in ids]
        own = {precision: [_oip_text(ours, precision, one) for one in ids] for precision in PRECISIONS}
        for posts in (theirs, *own.values()):
            wait_ready(posts[0], None)
        carried = {clients: asyncio.run(closed_loop(theirs, clients, closed_s, 1)) for clients in CLIENTS}
        options.progress(f"{BARE} carries {', '.join(f'{rps:.0f}/s with {n}' for n, rps in carried.items())} clients")
        rate = LOAD * max(carried.values())
        bare_at = asyncio.run(open_loop(theirs, rate, open_s, 2))
        steps = {
            precision: _rates(posts, BAR_TEXTS * rate, bare_at["p99_s"], open_s, options)
            for precision, posts in own.items()
        }
        return {"carried": carried, "bare": bare_at, "steps": steps}

    found: dict[str, Any] = both(models, str(texts.minilm_path()), pad=True, work=work)
    return found


def _rates(posts: list[Post], rate: float, p99_s: float, seconds: float, options: Options) -> list[dict[str, float]]:
    """Runs at rates from `rate` upwards while the p99 is at most `p99_s`, or downwards until it is."""
    steps: list[dict[str, float]] = []
    up = True
    while len(steps) < RATES_MAX:
        options.progress(f"{posts[0].url} at {rate:.0f}/s")
        steps.append(asyncio.run(open_loop(posts, rate, seconds, 3)))
        held = steps[-1]["p99_s"] <= p99_s and not steps[-1]["failed"]
        up = held if len(steps) == 1 else up
        if held != up:
            break
        rate *= STEP if up else 1 / STEP
    return steps


def _oip_text(url: str, precision: str, ids: list[int]) -> Post:
    shape = [1, len(ids)]
    tensors = [
        {"name": name, "datatype": "INT64", "shape": shape, "data": values}
        for name, values in (("input_ids", ids), ("attention_mask", np.ones(len(ids), int).tolist()))
    ]
    return Post(f"{url}/v2/models/minilm-{precision}/infer", json.dumps({"inputs": tensors}).encode())


def texts_table(result: dict[str, Any]) -> str:
    """One line per rate."""
    bare = result["bare"]
    runs = [(f"{BARE}, fp32", bare)]
    runs += [(f"Headrace, {precision}", step) for precision, steps in result["steps"].items() for step in steps]
    rows = [
        [
            who, f"{one['offered_rps']:.0f}", number(1e3 * one["p50_s"]), number(1e3 * one["p99_s"]),
            f"{one['failed']:.0f}",
        ]
        for who, one in runs
    ]  # fmt: skip
    carried = ", ".join(f"{rps:.0f} with {clients}" for clients, rps in result["carried"].items())
    lines = [f"- {BARE} carries {carried} clients in a closed loop, requests/s."]
    for precision, steps in result["steps"].items():
        within = [step["offered_rps"] for step in steps if step["p99_s"] <= bare["p99_s"] and not step["failed"]]
        reached = max(within, default=0.0) / bare["offered_rps"]
        lines.append(
            f"- The rate at which Headrace in {precision} has no higher p99 / {LOAD:.0%} of the most of these = "
            f"**{reached:.1f}** (wanted: {BAR_TEXTS:g})."
        )
    table = markdown(["server", "offered, requests/s", "p50, ms", "p99, ms", "failed"], rows)
    return "\n\n".join([table, "\n".join(lines)])


SECTIONS = [
    Section("serving-ray", "The credit model on Ray, beside bare Ray Serve", measure_credit, credit_table),
    Section("serving-minilm", "Sentences of any length on Ray, beside bare Ray Serve", measure_texts, texts_table),
]
