"""A model on bare Ray Serve, as its documentation shows it: @serve.batch and ONNX Runtime behind the default proxy."""

from __future__ import annotations

from typing import Any

import numpy as np
from ray import serve
from starlette.requests import Request

NAME = "bare"


def build(path: str, cpus: float, batch_max: int, pad: bool) -> Any:
    """The application.

    Args:
        path: The model.
        cpus: Of its one replica, as of ours.
        batch_max: Requests that one batch may have.
        pad: For texts: token ids of different lengths, which a batch pads to its longest. Otherwise rows of numbers.
    """

    @serve.deployment(ray_actor_options={"num_cpus": cpus}, max_ongoing_requests=4 * batch_max)
    class Bare:
        def __init__(self) -> None:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

        @serve.batch(max_batch_size=batch_max, batch_wait_timeout_s=0.002)
        async def run(self, inputs: list[list[float]]) -> list[list[float]]:
            if not pad:
                return list(self.session.run(None, {"x": np.array(inputs, np.float32)})[1].tolist())
            ids = np.zeros((len(inputs), max(map(len, inputs))), np.int64)
            mask = np.zeros_like(ids)
            for row, one in enumerate(inputs):
                ids[row, : len(one)] = one
                mask[row, : len(one)] = 1
            return list(self.session.run(None, {"input_ids": ids, "attention_mask": mask})[0].tolist())

        async def __call__(self, request: Request) -> list[float]:
            found: list[float] = await self.run((await request.json())["x"])
            return found

    return Bare.bind()
