"""torch modules, as torch exports them today, become the fused graph and still compute the same."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from headrace.errors import InvalidModel
from headrace.graph import load

TOLERANCE = 1e-5


def run(model: Any, **feeds: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.to_proto().SerializeToString(), options)
    (out,) = session.run(None, feeds)
    return np.asarray(out)


def ops(model: Any) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.graph)


def test_an_mlp(rng) -> None:
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.GELU(approximate="tanh"), nn.Linear(8, 3))
    module.train()
    model = load(module, example_inputs=torch.zeros(2, 4), input_names=["x"], output_names=["y"])
    assert module.training
    assert str(model) == "Sequential(x: float32[batch, 4]) -> (y: float32[batch, 3])"
    assert ops(model) == {"Linear": 3}
    x = rng.normal(size=(5, 4)).astype(np.float32)
    np.testing.assert_allclose(run(model, x=x), module(torch.from_numpy(x)).detach().numpy(), rtol=0, atol=TOLERANCE)


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.norm2(self.second(torch.relu(self.norm1(self.first(x))))))


class Cnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Conv2d(1, 8, 3, stride=2), Block(8), nn.Linear(8, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(nn.functional.relu6(self.stem(image))).mean((2, 3)))


def test_a_residual_network_with_batch_norm_and_dynamic_size(rng) -> None:
    module = Cnn().eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_var, 0.5, 2)
            for tensor in (part.running_mean, part.weight, part.bias):
                nn.init.normal_(tensor)
    dims = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    model = load(module, example_inputs=torch.zeros(2, 1, 12, 14), dynamic_shapes=(dims,))
    assert ops(model).items() >= {"FusedConv": 3, "ReduceMean": 1, "Linear": 1}.items()
    image = rng.normal(size=(3, 1, 9, 21)).astype(np.float32)
    want = module(torch.from_numpy(image)).detach().numpy()
    np.testing.assert_allclose(run(model, image=image), want, rtol=0, atol=TOLERANCE)


class Encoder(nn.Module):
    """A BERT as sentence encoders use it: masked mean over the last layer."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        config = BertConfig(
            vocab_size=50,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=32,
            max_position_embeddings=32,
        )
        self.bert = BertModel(config, add_pooling_layer=False)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)


@pytest.fixture(scope="module")
def bert() -> tuple[Encoder, Any]:
    torch.manual_seed(0)
    module = Encoder().eval()
    ids = torch.randint(1, 50, (2, 7))
    dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", min=2, max=32)}
    model = load(
        module,
        example_inputs={"input_ids": ids, "attention_mask": torch.ones_like(ids)},
        dynamic_shapes={"input_ids": dims, "attention_mask": dims},
        output_names=["embedding"],
    )
    return module, model


def test_a_bert_is_linears_attention_and_norms(bert) -> None:
    _, model = bert
    count = ops(model)
    assert (count["Linear"], count["Attention"], count["LayerNormalization"], count["EmbeddingNorm"]) == (8, 2, 4, 1)
    gone = {
        "Transpose",
        "Reshape",
        "MatMul",
        "Softmax",
        "IsNaN",
        "Expand",
        "GatherND",
        "GatherElements",
        "Range",
        "Concat",
    }
    assert not gone & set(count)
    for node in model.graph.graph:
        if node.op_type == "Attention":
            assert node.attributes["layout"].value == "qkv"
            assert [str(dim) for dim in node.inputs[3].shape] == ["batch", "1", "1", "sequence"]


@pytest.mark.parametrize("lengths", [[5], [2, 9], [31, 4, 1, 17]])
def test_a_bert_computes_what_torch_does(bert, rng, lengths: list[int]) -> None:
    module, model = bert
    longest = max(lengths)
    ids = rng.integers(1, 50, (len(lengths), longest))
    mask = (np.arange(longest) < np.array(lengths)[:, None]).astype(np.int64)
    with torch.no_grad():
        want = module(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
    np.testing.assert_allclose(run(model, input_ids=ids, attention_mask=mask), want, rtol=0, atol=TOLERANCE)


def test_without_example_inputs_it_says_what_is_needed() -> None:
    with pytest.raises(TypeError, match="Linear without example_inputs"):
        load(nn.Linear(2, 2))


def test_inputs_without_a_common_batch_need_dynamic_shapes() -> None:
    with pytest.raises(InvalidModel, match=r"first dims \[2, 3\]"):
        load(nn.Bilinear(2, 2, 2), example_inputs=(torch.zeros(2, 2), torch.zeros(3, 2)))
