"""ResNet-50 (version 1.5: the stride is in the 3x3 convolution), 224 x 224, random weights, real batch norms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.engine.shapes import exported
from benchmarks.engine.shapes.batch_norm import settle

# (blocks, width of the 3x3 convolution, stride of the first block); a block's output is four times as wide.
STAGES = ((3, 64, 1), (4, 128, 2), (6, 256, 2), (3, 512, 2))


def module() -> Any:
    """Images ``[batch, 3, 224, 224]`` to logits ``[batch, 1000]``."""
    import torch
    from torch import nn

    def conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False), nn.BatchNorm2d(outputs)
        )

    class Bottleneck(nn.Module):
        def __init__(self, inputs: int, width: int, stride: int) -> None:
            super().__init__()
            self.body = nn.Sequential(
                conv(inputs, width, 1), nn.ReLU(), conv(width, width, 3, stride), nn.ReLU(), conv(width, 4 * width, 1)
            )
            same = stride == 1 and inputs == 4 * width
            self.shortcut = nn.Identity() if same else conv(inputs, 4 * width, 1, stride)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.body(x) + self.shortcut(x))

    torch.manual_seed(0)
    layers: list[nn.Module] = [conv(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for blocks, width, stride in STAGES:
        for block in range(blocks):
            layers.append(Bottleneck(channels, width, stride if block == 0 else 1))
            channels = 4 * width
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000)]
    return settle(nn.Sequential(*layers))


def path() -> Path:
    """The exported model."""
    import torch

    return exported("resnet50", module, lambda: (torch.randn(2, 3, 224, 224),), {"image": {0: "batch"}}, "logits")
