"""The model behind Triton's Python backend, which hands over what its dynamic batcher gathered."""

from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """One instance."""

    def initialize(self, args):
        """Loads the model that lies beside this file."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        """Runs all requests as one batch."""
        inputs = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        (probabilities,) = self.session.run(["probabilities"], {"x": np.concatenate(inputs)})
        answers, start = [], 0
        for one in inputs:
            rows = slice(start, start + len(one))
            start = rows.stop
            tensor = pb_utils.Tensor("probabilities", probabilities[rows])
            answers.append(pb_utils.InferenceResponse([tensor]))
        return answers
