"""The model behind BentoML, with its adaptive batching."""

import os

import bentoml
import numpy as np
import onnxruntime


@bentoml.service(workers=1, logging={"access": {"enabled": False}})
class Credit:
    """One worker."""

    def __init__(self):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])

    @bentoml.api(batchable=True, max_batch_size=int(os.environ["BATCH_MAX"]))
    def predict(self, x: np.ndarray) -> np.ndarray:
        """One batch: the rows of several bodies."""
        return self.session.run(["probabilities"], {"x": x.astype(np.float32)})[0]
