"""The types that matrix products multiply: those that a network asks for, and those that an engine got."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

SMALL: Final = ("int8", "fp8", "int4", "fp4")
UNLISTED: Final = "not listed"
"""The type of a product that TensorRT's list of layers does not name."""
# As networks name types, and as lists of layers do.
_TYPES: Final = {
    "FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT8": "int8", "FP8": "fp8", "INT4": "int4",
    "FP4": "fp4", "FP4E2M1": "fp4", "BFLOAT16": "bfloat16",
}  # fmt: skip
_PRODUCTS: Final = ("MATRIX_MULTIPLY", "CONVOLUTION")
# Layers through which the values of their first input pass unchanged.
_PASSED: Final = ("SHUFFLE", "CAST", "SQUEEZE", "UNSQUEEZE", "IDENTITY")

_LAYER: Final = re.compile(
    r"^Name: .*?, LayerType: (?P<kind>\w*), Inputs: \[(?P<inputs>.*?)\], Constants: \[(?P<constants>.*?)\], "
    r"Outputs: .* Metadata: (?P<metadata>.*)$"
)
_TENSOR: Final = re.compile(r"\{ Name: .*?, Dimensions: \[(?P<sizes>[-\d,]*)\].*?Datatype: (?P<type>\w+)")
# Layers of a list that multiply, rather than prepare operands or take a product further.
_MULTIPLYING: Final = ("gemm", "runtime_fusion", "correlation")
_MATRIX: Final = 2


def type_name(name: str) -> str:
    """Return our name of a type that TensorRT names."""
    return _TYPES.get(name.upper(), name.lower())


def asked_products(layers: Sequence[Any]) -> dict[str, str]:
    """Return the type that each matrix product and convolution of a network asks for.

    Args:
        layers: the network's layers.

    Returns:
        By the name under which TensorRT's list of layers refers to it: a type such as "float16" or "int8", or
        "int4 weights" if only the weights are small and the activations are floats.
    """
    makers = {layer.get_output(i).name: layer for layer in layers for i in range(layer.num_outputs)}
    asked: dict[str, str] = {}
    for layer in layers:
        if layer.type.name in _PRODUCTS:
            operands = [_operand_type(layer.get_input(i), makers) for i in range(min(layer.num_inputs, 2))]
            # Names need not be unique where functions were inlined, but all products are counted.
            name = layer.metadata or f"[{layer.name}]"
            asked[name if name not in asked else f"{name}[{len(asked)}]"] = _label(operands[0], operands[-1])
    return asked


def _operand_type(tensor: Any, makers: Mapping[str, Any]) -> str:
    """Return a tensor's type, or that of the small values that it was dequantized from."""
    source = tensor
    while (maker := makers.get(source.name)) is not None:
        if maker.type.name == "DEQUANTIZE":
            return type_name(maker.get_input(0).dtype.name)
        if maker.type.name not in _PASSED:
            break
        source = maker.get_input(0)
    return type_name(tensor.dtype.name)


def _label(activations: str, weights: str) -> str:
    if activations == weights or weights not in SMALL:
        return activations
    return f"{weights} weights" if activations not in SMALL else f"{weights} weights, {activations} activations"


@dataclass(frozen=True)
class EngineProducts:
    """What TensorRT's list of an engine's layers says of the products that a network asked for.

    Attributes:
        counts: how many of them multiply in each type.
        otherwise: those that were asked for in a small type and do not, with both types, by name.
    """

    counts: dict[str, int]
    otherwise: dict[str, str]


def engine_products(asked: Mapping[str, str], lists: Sequence[str]) -> EngineProducts | None:
    """Compare the products that a network asked for with the engine's layers.

    Args:
        asked: the result of `asked_products`.
        lists: the lists of layers that TensorRT logged while it built the engine; see `collected_layers`. For several
            targets, it lists the layers of one.

    Returns:
        None if there is no list of layers in the form of TensorRT for RTX.
    """
    lines = lists[-1].splitlines() if lists else []
    layers = [match for line in lines if (match := _LAYER.match(line))]
    if not layers:
        return None
    got = {name: _type_in(layers, name) for name in asked}
    otherwise = {
        name.strip("[]").removeprefix("ONNX Layer: "): f"{asked[name]} asked for, {kind} got"
        for name, kind in got.items()
        if any(small in asked[name] for small in SMALL) and kind != asked[name]
    }
    return EngineProducts(dict(Counter(got.values()).most_common()), otherwise)


def _type_in(layers: Sequence[re.Match[str]], name: str) -> str:
    """Return the type that a product multiplies in, among the layers that name it."""
    named = [layer for layer in layers if name in layer["metadata"]]
    found = [layer for layer in named if layer["kind"] in _MULTIPLYING] or named
    if not found:
        return UNLISTED
    inputs, constants = (_matrices(found[0][part]) for part in ("inputs", "constants"))
    # A weight that is restored before the product is an input of known sizes; epilogues add inputs after it.
    weights = [max(constants, key=_volume)] if constants else [each for each in inputs[1:] if "-" not in each[0]]
    if not inputs:
        return UNLISTED
    return _label(inputs[0][1], (weights or inputs[1:] or inputs)[0][1])


def _matrices(tensors: str) -> list[tuple[str, str]]:
    """Return the sizes and types of those tensors in a layer's description that have two or more dimensions."""
    found = [(each["sizes"], type_name(each["type"])) for each in _TENSOR.finditer(tensors)]
    return [each for each in found if each[0].count(",") + 1 >= _MATRIX]


def _volume(tensor: tuple[str, str]) -> int:
    return abs(math.prod(map(int, tensor[0].split(","))))
