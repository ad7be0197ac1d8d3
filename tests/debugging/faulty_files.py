"""Models of three layers, and faults put into their exported files by editing nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from pom_export.mixer import MixerConfig
from pom_export.models import GPT, GPTConfig, JiT, LanguageModel, LanguageModelConfig
from tests.official_style import PoM, ProductPoM
from tests.small_models import TINY_JIT, fill

LAYERS = 3
_HALF, _SINGLE = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT


class Fault(NamedTuple):
    """A fault that was put into a file: the module of its node, and what the cause should mention."""

    module: str
    mentions: str


class OwnBlock(nn.Module):
    """A block as a user writes it, with official-style mixers of both families."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.before = nn.LayerNorm(12)
        self.mix = PoM(12, 3, 2, 1, 1) if index % 2 == 0 else ProductPoM(12, 2, 2)
        self.feed = nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 20), nn.SiLU(), nn.Linear(20, 12), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(self.before(x))
        return x + self.feed(x)


class Own(nn.Module):
    """A user's classifier of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 12)
        self.body = nn.ModuleList(OwnBlock(index) for index in range(LAYERS))
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.body:
            x = block(x)
        return self.head(x.mean(1))


def _language_model() -> nn.Module:
    return LanguageModel(LanguageModelConfig(40, LAYERS, 3, 24, MixerConfig(16, 3, 2)))


def _gpt() -> nn.Module:
    sizes = {"vocab_size": 40, "n_layer": LAYERS, "n_head": 2, "n_embd": 16, "mlp_width": 24}
    return GPT(GPTConfig(**sizes, mixer_heads=2, attention_heads=4, degree=2, expand=2, attention_layers=(1,)))


def _image_model() -> nn.Module:
    import dataclasses

    model = JiT(dataclasses.replace(TINY_JIT, depth=LAYERS))
    fill(model)
    return model


MODELS: Mapping[str, Callable[[], nn.Module]] = {
    "language model": _language_model,
    "gpt": _gpt,
    "image model": _image_model,
    "own": Own,
}


def model_named(name: str) -> nn.Module:
    """Return a model with random weights, all of them different."""
    torch.manual_seed(0)
    model = MODELS[name]().eval().requires_grad_(requires_grad=False)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape) * 0.05)
    return model


def examples_of(name: str) -> Tensor | None:
    """Return example inputs for a user's own model; None for one of ours."""
    torch.manual_seed(1)
    return torch.randn(2, 9, 5) if name == "own" else None


def module_of(node: onnx.NodeProto) -> str:
    path, slash, _ = node.name.partition("/")
    return path if slash else ""


def _constants(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def _put_constant(model: onnx.ModelProto, node: onnx.NodeProto, index: int, array: Any) -> None:
    """Give one node a constant of its own."""
    name = f"{node.name}/other_{index}"
    model.graph.initializer.append(numpy_helper.from_array(array, name))
    node.input[index] = name


def _choose(random: np.random.Generator, places: list[Any]) -> Any:
    assert places, "the model has no place for this fault"
    return places[random.integers(len(places))]


def changed_weight(model: onnx.ModelProto, random: np.random.Generator) -> Fault:
    """Change one value of a weight."""
    constants = _constants(model)
    kinds = ("MatMul", "Gemm", "Conv", "Mul", "LayerNormalization", "GatedPolynomialAggregation")
    places = [
        (node, index)
        for node in model.graph.node
        for index, name in enumerate(node.input)
        if node.op_type in kinds and "/" in node.name and name in constants and _is_weight(constants[name])
    ]
    node, index = _choose(random, places)
    array = numpy_helper.to_array(constants[node.input[index]]).copy()
    array.reshape(-1)[random.integers(array.size)] += np.asarray(np.abs(array).max() / 2, array.dtype)
    _put_constant(model, node, index, array)
    return Fault(module_of(node), "weight")


def _is_weight(tensor: onnx.TensorProto) -> bool:
    return np.prod(tensor.dims) > 8 and bool(numpy_helper.to_array(tensor).any())


def wrong_epsilon(model: onnx.ModelProto, random: np.random.Generator) -> Fault:
    """Multiply a norm's epsilon by ten."""
    constants = _constants(model)
    places: list[Any] = []
    for node in model.graph.node:
        if node.op_type == "LayerNormalization":
            places += [(node, attribute) for attribute in node.attribute if attribute.name == "epsilon"]
        if node.op_type == "Add":
            small = [i for i, name in enumerate(node.input) if name in constants and _is_epsilon(constants[name])]
            places += [(node, i) for i in small]
    node, place = _choose(random, places)
    if isinstance(place, int):
        _put_constant(model, node, place, numpy_helper.to_array(constants[node.input[place]]) * np.float32(10))
    else:
        place.f *= 10
    return Fault(module_of(node), ", not" if isinstance(place, int) else "epsilon")


def _is_epsilon(tensor: onnx.TensorProto) -> bool:
    array = numpy_helper.to_array(tensor)
    return array.size == 1 and 0 < float(array.reshape(-1)[0]) < 1e-3


def swapped_gate(model: onnx.ModelProto, random: np.random.Generator) -> Fault:
    """Exchange what a mixer aggregates with what gates it, or change the gate's activation."""
    places = []
    for node in model.graph.node:
        if node.op_type in {"GatedPolynomialAggregation", "HardSigmoid", "Sigmoid"} and "/" in node.name:
            places.append(node)
    node = _choose(random, places)
    if node.op_type == "HardSigmoid":
        alpha = next(attribute for attribute in node.attribute if attribute.name == "alpha")
        alpha.f = 0.2
    elif node.op_type == "Sigmoid":
        node.op_type = "HardSigmoid"
    else:
        kind = next(attribute for attribute in node.attribute if attribute.name == "gate_activation")
        kind.s = b"sigmoid" if kind.s == b"hardsigmoid" else b"hardsigmoid"
        if random.integers(2):
            kind.s = b"identity"
    return Fault(module_of(node), "")


def swapped_halves(model: onnx.ModelProto, random: np.random.Generator) -> Fault:
    """Let a mixer gate with its context and aggregate its gate."""
    gated = [node for node in model.graph.node if node.op_type == "GatedPolynomialAggregation"]
    node = _choose(random, gated)
    node.input[0], node.input[1] = node.input[1], node.input[0]
    return Fault(module_of(node), "comes from")


def dropped_cast(model: onnx.ModelProto, random: np.random.Generator) -> Fault:
    """Let a norm of a half-precision file compute in half precision, without the casts around it."""
    constants = _constants(model)
    scopes = sorted({module_of(node) for node in model.graph.node if node.op_type == "ReduceMean" and "/" in node.name})
    scope = _choose(random, scopes)
    inner = [node for node in model.graph.node if module_of(node) == scope]
    casts = {node.output[0]: node for node in model.graph.node if node.op_type == "Cast"}
    for node in inner:
        for index, name in enumerate(node.input):
            if name in casts and node.op_type != "Cast":
                node.input[index] = casts[name].input[0]
            elif name in constants and constants[name].data_type == _SINGLE:
                _put_constant(model, node, index, numpy_helper.to_array(constants[name]).astype(np.float16))
    for node in [node for node in inner if node.op_type == "Cast"]:
        for user in model.graph.node:
            for index, name in enumerate(user.input):
                if name == node.output[0]:
                    user.input[index] = node.input[0]
        model.graph.node.remove(node)
    del model.graph.value_info[:]
    return Fault(scope, "without the cast to float")


FAULTS: Mapping[str, Callable[[onnx.ModelProto, np.random.Generator], Fault]] = {
    "weight": changed_weight,
    "epsilon": wrong_epsilon,
    "gate": swapped_gate,
    "halves": swapped_halves,
    "cast": dropped_cast,
}


def put(fault: str, source: Path, path: Path, seed: int) -> Fault:
    """Write a copy of a file with a fault at a place that the seed chooses."""
    model = onnx.load(source)
    found = FAULTS[fault](model, np.random.default_rng(seed))
    onnx.save(model, path)
    return found


def faults_for(name: str, dtype: str) -> Iterator[str]:
    """Yield the faults that a model's file has a place for."""
    yield from ("weight", "epsilon", "gate")
    if name in {"language model", "own"}:
        yield "halves"
    if dtype == "float16" and name in {"language model"}:
        yield "cast"
