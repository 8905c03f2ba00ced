"""What the tests on the host and those on a real GPU have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from headrace.backends.native.adapter import NativeBackend
from headrace.backends.native.cuda import PRECISIONS

import headrace as hr
from headrace.backend import Capabilities, CompileOptions, Executable

Request = dict[str, np.ndarray]


class OnCuda(NativeBackend):
    """The native backend as it is on a CUDA device, where it offers less than on a CPU.

    Args:
        cublaslt: Whether cuBLASLt computes products, where nothing else is asked for.
    """

    def __init__(self, cublaslt: str = "auto") -> None:
        self.cublaslt = cublaslt

    def capabilities(self) -> Capabilities:
        return replace(super().capabilities(), precisions=PRECISIONS, winograd=False)

    def compile(self, model: hr.Model, options: CompileOptions) -> Executable:
        return super().compile(model, replace(options, options={"cublaslt": self.cublaslt, **options.options}))


@dataclass(frozen=True)
class Sample:
    """A whole Model and Requests for it; the largest difference from the CPU's results that rounding explains."""

    model: hr.Model
    requests: list[Request]
    tolerance: float = 2e-5


def transformer(layers: int = 2, width: int = 48, heads: int = 4, lengths: tuple[int, ...] = (5, 1, 34)) -> Sample:
    """A BERT with mean pooling, as sentence embeddings have it: what MiniLM is, smaller."""
    import torch
    from transformers import BertConfig, BertModel

    class Embedding(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            config = BertConfig(
                vocab_size=100, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
                intermediate_size=4 * width, max_position_embeddings=512,
            )  # fmt: skip
            self.bert = BertModel(config, add_pooling_layer=False)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
            return torch.nn.functional.normalize(mean, dim=-1)

    torch.manual_seed(0)
    ids = torch.randint(0, 100, (2, 9))
    batch, sequence = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("sequence", min=1, max=512)
    model = hr.load(
        Embedding().eval(),
        example_inputs=(ids, torch.ones_like(ids)),
        dynamic_shapes=({0: batch, 1: sequence}, {0: batch, 1: sequence}),
    )
    return Sample(model, [_text(model, length, seed) for seed, length in enumerate(lengths)])


def _text(model: hr.Model, length: int, seed: int) -> Request:
    random = np.random.default_rng(seed)
    mask = np.ones((2, length), np.int64)
    mask[1, max(1, length // 2) :] = 0  # a padded member
    ids, masks = (spec.name for spec in model.signature.inputs)
    return {ids: random.integers(0, 100, (2, length)), masks: mask}


def network(size: int = 20, width: int = 8) -> Sample:
    """Strided, grouped, depthwise and 1x1 convolutions with batch norms, shortcuts, both poolings and a classifier."""
    import torch
    from torch import nn

    def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
        layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        return nn.Sequential(layer, nn.BatchNorm2d(outputs))

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(conv(3, width, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
            self.body = nn.Sequential(conv(width, width, 3), nn.ReLU(), conv(width, width, 3, groups=2))
            self.narrow = nn.Sequential(
                conv(width, 4 * width, 1), nn.ReLU6(), conv(4 * width, 4 * width, 3, 2, 4 * width), nn.ReLU6(),
                conv(4 * width, width, 1),
            )  # fmt: skip
            self.head = nn.Linear(width, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            x = self.narrow(torch.relu(self.body(x) + x))
            return torch.softmax(self.head(x.mean((2, 3))), -1)

    torch.manual_seed(0)
    example = torch.randn(2, 3, size, size)
    batch = torch.export.Dim("batch", min=1, max=64)
    model = hr.load(Network().eval(), example_inputs=(example,), dynamic_shapes=({0: batch},))
    (name,) = (spec.name for spec in model.signature.inputs)
    random = np.random.default_rng(4)
    requests = [{name: random.standard_normal((n, 3, size, size)).astype(np.float32)} for n in (1, 3, 2)]
    return Sample(model, requests)


def perceptron(width: int = 30) -> Sample:
    """Linear layers with every activation that is fused into them."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    layers: list[Any] = []
    for activation in (nn.ReLU(), nn.GELU(), nn.GELU(approximate="tanh"), nn.SiLU(), nn.Sigmoid(), nn.Tanh()):
        layers += [nn.Linear(width, width), activation]
    module = nn.Sequential(*layers, nn.Linear(width, 3)).eval()
    rows = torch.export.Dim("rows", min=1, max=100000)
    model = hr.load(module, example_inputs=(torch.randn(2, width),), dynamic_shapes=({0: rows},))
    (name,) = (spec.name for spec in model.signature.inputs)
    random = np.random.default_rng(5)
    return Sample(model, [{name: random.standard_normal((n, width)).astype(np.float32)} for n in (1, 70, 3)])


def trees(trees: int = 40, rows: tuple[int, ...] = (1, 300, 7)) -> Sample:
    """A LightGBM classifier of three classes, with missing values."""
    import lightgbm

    random = np.random.default_rng(6)
    x = random.standard_normal((500, 8))
    x[random.random(x.shape) < 0.1] = np.nan
    y = np.nan_to_num(x[:, 0] + x[:, 1] > 0).astype(int) + (np.nan_to_num(x[:, 2]) > 0.5)
    data = lightgbm.Dataset(x, y)
    parameters = {"objective": "multiclass", "num_class": 3, "num_leaves": 15, "verbose": -1, "num_threads": 1}
    model = hr.load(lightgbm.train(parameters, data, trees))
    spec = model.signature.inputs[0]
    dtype = np.float32 if spec.dtype == "float32" else np.float64
    return Sample(model, [{spec.name: x[:n].astype(dtype)} for n in rows], 1e-6)


SAMPLES: dict[str, Callable[[], Sample]] = {
    "transformer": transformer, "network": network, "perceptron": perceptron, "trees": trees,
}  # fmt: skip


def differences(sample: Sample, device: str, precision: str = "fp32", cublaslt: str = "auto") -> tuple[float, bool]:
    """How far a device is from the CPU, and whether every Request's bits are the same alone as in a Batch."""
    with (
        sample.model.compile(backend="native") as cpu,
        sample.model.compile(
            backend="native", device=device, precision=precision, options={"cublaslt": cublaslt}
        ) as engine,
    ):
        expected = cpu.run_batch(sample.requests)
        got = engine.run_batch(sample.requests)
        alone = [engine(request) for request in sample.requests]
    worst, same = 0.0, True
    for result, want, own in zip(got, expected, alone, strict=True):
        for name, value in want.items():
            assert (result[name].shape, result[name].dtype) == (value.shape, value.dtype)
            difference = np.abs(result[name].astype(np.float64) - value.astype(np.float64))
            worst = max(worst, float(np.max(difference, initial=0.0)))
            same = same and result[name].tobytes() == own[name].tobytes()
    return worst, same
