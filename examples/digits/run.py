"""Handwritten digits: a small torch CNN, trained here in seconds, answered by Headrace.

    python examples/digits/run.py

The data is scikit-learn's digits: 1,797 images of 8 x 8. Needs torch and scikit-learn to train; running needs neither.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

import headrace as hr

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "build" / "models" / "digits" / "1" / "model.onnx"
PARITY_MAX = 2e-5
SEED = 3
EPOCHS = 12
IMAGES_ALONE = 50


def images() -> tuple[np.ndarray, np.ndarray]:
    """float32 ``[1797, 1, 8, 8]`` in 0..1, and int64 labels ``[1797]``."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return (data.images[:, None] / 16).astype(np.float32), data.target.astype(np.int64)


def train(x: np.ndarray, y: np.ndarray) -> Any:
    """A CNN with batch normalisation and one residual block, trained on the CPU."""
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
            self.block = nn.Sequential(
                nn.Conv2d(16, 16, 3, padding=1),
                nn.BatchNorm2d(16),
                nn.ReLU(),
                nn.Conv2d(16, 16, 3, padding=1),
                nn.BatchNorm2d(16),
            )
            self.down = nn.Sequential(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU())
            self.head = nn.Linear(32, 10)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            hidden = self.stem(image)
            hidden = torch.relu(hidden + self.block(hidden))
            return self.head(self.down(hidden).mean((2, 3))).softmax(-1)

    # One thread: the net is small, and the threads would mostly wait for each other.
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    net = Net()
    optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
    images, labels = torch.from_numpy(x), torch.from_numpy(y)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(images)).split(64):
            optimiser.zero_grad()
            loss = nn.functional.nll_loss(net(images[rows]).clamp_min(1e-9).log(), labels[rows])
            loss.backward()
            optimiser.step()
    return net.eval()


def main() -> int:
    """Trains, loads and compares; returns the exit code."""
    import torch

    x, y = images()
    cut = len(x) * 3 // 4
    net = train(x[:cut], y[:cut])
    example = torch.zeros(2, 1, 8, 8)
    model = hr.load(net, example_inputs=example, input_names=["image"], output_names=["probabilities"], name="digits")
    engine = model.compile()
    with torch.inference_mode():
        expected = net(torch.from_numpy(x[cut:])).numpy()
    got = engine({"image": x[cut:]})["probabilities"]
    alone = [engine({"image": x[row : row + 1]})["probabilities"][0] for row in range(cut, cut + IMAGES_ALONE)]
    same = np.array_equal(np.stack(alone), got[:IMAGES_ALONE])
    error = float(np.abs(got - expected).max())
    print(str(engine.plan).splitlines()[0])
    print(f"accuracy on {len(x) - cut} unseen digits: {np.mean(got.argmax(1) == y[cut:]):.1%}")
    print(f"max abs error {error:.1e} (at most {PARITY_MAX:g}): {'ok' if error <= PARITY_MAX else 'TOO MUCH'}")
    print(f"an image alone gives the same bits as in the batch: {'yes' if same else 'NO'}")
    MODEL.parent.mkdir(parents=True, exist_ok=True)
    MODEL.write_bytes(model.to_proto().SerializeToString())
    print(f"wrote {MODEL}")
    return 0 if error <= PARITY_MAX and same else 1


if __name__ == "__main__":
    sys.exit(main())
