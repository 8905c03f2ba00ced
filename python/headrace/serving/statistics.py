"""The protocol's statistics of a served model, in the fields of Triton's statistics extension."""

from __future__ import annotations

from typing import Any

from headrace.serving.host import ServedModel


def statistics(served: ServedModel) -> dict[str, Any]:
    """One entry of ``model_stats``.

    ``queue`` counts requests by their wait, ``compute_input`` and ``compute_output`` by decoding and encoding. As in
    Triton, ``compute_infer`` counts the whole run of a Batch for every request in it, ``execution_count`` the Batches,
    and ``batch_stats`` each size of them. ``fail`` leaves out the requests that were wrong.
    """
    stats = served.batcher.stats()
    sizes: list[int] = stats["batch_sizes"]
    seconds: list[float] = stats["batch_seconds"]
    requests = sum(size * count for size, count in enumerate(sizes))
    compute_s = sum(size * total_s for size, total_s in enumerate(seconds))
    stages = served.stages
    return {
        "name": served.name,
        "version": served.version,
        "last_inference": served.last_inference_ms,
        "inference_count": requests,
        "execution_count": sum(sizes),
        "inference_stats": {
            "success": _duration(served.succeeded.count, served.succeeded.total_s),
            "fail": _duration(served.failed.count, served.failed.total_s),
            "queue": _duration(stats["queue_delay"]["count"], stats["queue_delay"]["total_s"]),
            "compute_input": _duration(sum(stages["decode"].counts), stages["decode"].total),
            "compute_infer": _duration(requests, compute_s),
            "compute_output": _duration(sum(stages["encode"].counts), stages["encode"].total),
            "cache_hit": _duration(0, 0),
            "cache_miss": _duration(0, 0),
        },
        "batch_stats": [
            {
                "batch_size": size,
                # Requests are decoded and encoded one by one, whatever Batch they are in.
                "compute_input": _duration(0, 0),
                "compute_infer": _duration(count, total_s),
                "compute_output": _duration(0, 0),
            }
            for size, (count, total_s) in enumerate(zip(sizes, seconds, strict=True))
            if count
        ],
    }


def _duration(count: int, total_s: float) -> dict[str, int]:
    return {"count": count, "ns": round(total_s * 1e9)}
