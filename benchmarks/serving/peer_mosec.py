"""The model behind Mosec, with its dynamic batching."""

import os
import sys

import numpy as np
import onnxruntime
from mosec import Server, Worker


class Credit(Worker):
    """One process that runs batches."""

    def __init__(self):
        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])

    def forward(self, data):
        """Runs one batch of decoded bodies."""
        label, probabilities = self.session.run(None, {"x": np.array([one["x"] for one in data], np.float32)})
        return [
            {"label": int(one), "probabilities": both.tolist()} for one, both in zip(label, probabilities, strict=True)
        ]


if __name__ == "__main__":
    sys.argv += ["--address", "127.0.0.1", "--port", os.environ["PORT"], "--log-level", "error"]
    server = Server()
    # Its shortest wait for a batch to fill.
    server.append_worker(Credit, max_batch_size=int(os.environ["BATCH_MAX"]), max_wait_time=1)
    server.run()
