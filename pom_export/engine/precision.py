"""Check that a parsed network has the precision asked for: the types that the ONNX file declares."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx

from pom_export.engine.product_types import asked_products, type_name
from pom_export.errors import EngineError

_DECLARED = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.BFLOAT16: "bfloat16",
}
# Layers that compute nothing.
_MOVERS = ("CONSTANT", "CAST", "SHUFFLE", "SLICE", "SQUEEZE", "UNSQUEEZE", "CONCATENATION", "GATHER", "IDENTITY")
_NAMED = 3


def declared_types(graph: onnx.GraphProto) -> dict[str, str]:
    """Return the declared types of the floating-point tensors in an ONNX graph; the exporter declares all of them."""
    values = (*graph.input, *graph.output, *graph.value_info)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return {name: _DECLARED[kind] for name, kind in types.items() if kind in _DECLARED}


@dataclass(frozen=True)
class Precisions:
    """The types that layers compute in.

    Attributes:
        layers: how many of all layers that compute have each floating-point type, without those that only move or
            convert values, the most frequent first.
        products: the type that each matrix product and convolution asks for; see `asked_products`.
    """

    layers: dict[str, int]
    products: dict[str, str]

    def product_counts(self) -> dict[str, int]:
        """Return how many products ask for each type, the most frequent first."""
        return dict(Counter(self.products.values()).most_common())


def check_precisions(network: Any, declared: Mapping[str, str]) -> Precisions:
    """Compare a network with the file that it was parsed from, and count its layers by type.

    Since the network is strongly typed, no later step of the build changes a type.

    Args:
        network: TensorRT's network.
        declared: the result of `declared_types` for its graph.

    Raises:
        EngineError: a tensor's type differs from the file's, or the types of an aggregation's x and y differ.
    """
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    wrong = [
        f"{tensor.name} is {_type(tensor)} and not {declared[tensor.name]}"
        for tensor in _tensors(network, layers)
        if _type(tensor) != declared.get(tensor.name, _type(tensor))
    ]
    wrong += [
        f"{layer.name} takes {_type(layer.get_input(0))} and gives {_type(layer.get_output(0))}"
        for layer in layers
        if layer.type.name == "PLUGIN_V3" and layer.get_input(0).dtype != layer.get_output(0).dtype
    ]
    if wrong:
        raise EngineError(
            f"TensorRT changed the precision of {len(wrong)} tensors: {', '.join(wrong[:_NAMED])}", "Report this"
        )
    # Layers that control branches and loops have no outputs.
    computing = [layer for layer in layers if layer.num_outputs and layer.type.name not in _MOVERS]
    return Precisions(_count(computing), asked_products(layers))


def _count(layers: Iterable[Any]) -> dict[str, int]:
    types = (_type(layer.get_output(0)) for layer in layers)
    return dict(Counter(kind for kind in types if kind in _DECLARED.values()).most_common())


def _tensors(network: Any, layers: list[Any]) -> Iterator[Any]:
    """Yield a network's inputs, then the outputs of all layers, including the network's own."""
    yield from (network.get_input(i) for i in range(network.num_inputs))
    for layer in layers:
        yield from (layer.get_output(i) for i in range(layer.num_outputs))


def _type(tensor: Any) -> str:
    return type_name(tensor.dtype.name)
