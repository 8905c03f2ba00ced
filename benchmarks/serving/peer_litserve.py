"""The model behind LitServe, with its dynamic batching."""

import os

import litserve
import numpy as np
import onnxruntime


class Credit(litserve.LitAPI):
    """One worker."""

    def setup(self, device):
        """Loads the model."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])

    def decode_request(self, request):
        """One body."""
        return request["x"]

    def batch(self, inputs):
        """Several, as one array."""
        return np.array(inputs, np.float32)

    def predict(self, x):
        """One batch."""
        label, probabilities = self.session.run(None, {"x": x})
        return list(zip(label.tolist(), probabilities.tolist(), strict=True))

    def unbatch(self, output):
        """Back to single answers."""
        return output

    def encode_response(self, output):
        """One answer."""
        return {"label": output[0], "probabilities": output[1]}


if __name__ == "__main__":
    api = Credit(max_batch_size=int(os.environ["BATCH_MAX"]), batch_timeout=0.001)
    server = litserve.LitServer(api, accelerator="cpu")
    server.run(host="127.0.0.1", port=int(os.environ["PORT"]), generate_client_file=False, log_level="error")
