"""What a file with quantized weights should compute: the model that it stands for, with the weights that it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx_ir as ir

from pom_export.api.expecting import Expected
from pom_export.errors import InputError
from pom_export.graph.exported_model import ExportedModel
from pom_export.graph.loading import load_graph
from pom_export.graph.precisions import PRECISIONS
from pom_export.graph.quantized.operators import is_quantized
from pom_export.graph.quantized.products import float_products
from pom_export.graph.quantized.reading import FLOAT32, QuantizedProduct, dequantize, quantized_products
from pom_export.parity.case import Case
from pom_export.parity.modules import FileDifference
from pom_export.parity.quantized.report import ProductResult
from pom_export.parity.quantized.weights import Part, find_part, put
from pom_export.parity.targets import Target, Targets
from pom_export.parity.verification import record

if TYPE_CHECKING:
    from torch import nn

_OTHER_FORMS: Final = (
    "operators of the file are quantized in a form that pom-export does not read: they were compared with the "
    "original's numbers, at the tolerances of what is not quantized"
)
_ONLY_OUTPUTS: Final = (
    "the file is quantized, and only outputs are known: they must be those of its quantized weights in float32, and "
    "the weights themselves were not compared with the original's"
)


@dataclass(frozen=True)
class QuantizedFile:
    """A file's quantized products, and what they should be.

    Attributes:
        products: the products.
        results: what is known of each so far: how far its weight is from the model's.
        expected: the expected outputs with these weights.
        original: those of the original model; None if it is not known.
    """

    products: Sequence[QuantizedProduct]
    results: Sequence[ProductResult]
    expected: Expected
    original: Expected | None

    @property
    def rounds(self) -> bool:
        """Whether any product rounds its activations."""
        return any(product.activations != FLOAT32 for product in self.products)

    @property
    def wrong_weights(self) -> list[FileDifference]:
        """The products whose weights are not the model's in fewer bits, by their modules."""
        pairs = zip(self.products, self.results, strict=True)
        return [
            FileDifference(product.module, f"{each.name}: {each.fault}", "weight")
            for product, each in pairs
            if not each
        ]


def quantized_file(model: ExportedModel, expected: Expected) -> QuantizedFile | None:
    """Return what a file with quantized products should compute; None if it has none, or is in half precision.

    Args:
        model: the file.
        expected: the expected outputs of the model that it was exported from, or recorded ones.

    Raises:
        InputError: a product's integers or scales are unusable.
    """
    graph = load_graph(model.path)
    if expected.precision != PRECISIONS[0] or not is_quantized(graph):
        return None
    products = quantized_products(graph)
    if not products or not _are_single(products):
        return None
    notes = [*expected.notes]
    if expected.program is None:
        results = [_result(product) for product in products]
        return QuantizedFile(products, results, replace(expected, notes=[*notes, _ONLY_OUTPUTS]), None)
    matched = _match(graph, products, expected)
    if dequantize(graph) and is_quantized(graph):
        notes.append(_OTHER_FORMS)
    reference = f"{expected.reference}, with the file's quantized weights"
    with_weights = replace(
        expected, targets=_targets(expected, matched.weights), reference=reference, notes=notes, weights=matched.weights
    )
    # Read again: a graph that was dequantized has lost the names of its products' outputs.
    products = quantized_products(load_graph(model.path))
    return QuantizedFile(products, matched.results, with_weights, expected)


def as_it_is(model: ExportedModel, expected: Expected, *, given: bool) -> Expected:
    """Return what a file without readable quantized products is compared with, and say so if it has others.

    Args:
        model: the file.
        expected: the expected outputs of the model that it was exported from, or recorded ones.
        given: whether the user has given a bound.

    Raises:
        InputError: its quantized products are in half precision, of which nothing tells coarse ones from wrong ones,
            and there is no bound.
    """
    graph = load_graph(model.path)
    if not is_quantized(graph):
        return expected
    if not given and not _are_single(quantized_products(graph)):
        raise InputError(
            f"{model.path} has quantized products in half precision: how far it may be off is not known",
            "Verify the float32 file with the same weights, or give `rtol`",
        )
    return replace(expected, notes=[*expected.notes, _OTHER_FORMS])


def _are_single(products: Sequence[QuantizedProduct]) -> bool:
    return all(product.output.dtype in {ir.DataType.FLOAT, None} for product in products)


@dataclass
class _Matched:
    """What each product stands for, and the values that the model's parameters have in the file."""

    results: list[ProductResult] = field(default_factory=list)
    weights: dict[str, Any] = field(default_factory=dict)


def _match(graph: ir.Model, products: Sequence[QuantizedProduct], expected: Expected) -> _Matched:
    """Find the parameter of each product, and put the weights into copies of the parameters."""
    import torch

    from pom_export.graph.quantized.reference import named_weights

    assert expected.program is not None
    prefix = f"{expected.program.prefix}."
    inside = named_weights(expected.program.module)
    paths = {name.removeprefix(prefix): name for name in inside}
    parameters = {
        name: inside[path].detach().float().numpy() for name, path in paths.items() if inside[path].is_floating_point()
    }
    in_float = {product.initializer.name for product in float_products(graph)}
    changed: dict[str, np.ndarray[Any, Any]] = {}
    taken: dict[tuple[str, bool], list[tuple[int, QuantizedProduct]]] = {}
    matched = _Matched()
    for product in products:
        part = find_part(product, parameters)
        if part is None:
            matched.results.append(replace(_result(product), reason=_unknown(product)))
            continue
        reason = _conflict(product, part, taken.setdefault((part.parameter, part.transposed), []), in_float)
        taken[part.parameter, part.transposed].append((part.start, product))
        array = changed.setdefault(part.parameter, parameters[part.parameter].copy())
        put(part, product.weight.dequantized(), array)
        matched.results.append(replace(_result(product), parameter=part.parameter, weight=part.distance, reason=reason))
    matched.weights = {paths[name]: torch.from_numpy(array) for name, array in changed.items()}
    return matched


def _result(product: QuantizedProduct) -> ProductResult:
    weight = product.weight
    return ProductResult(name_of(product), weight.bits, weight.block, product.activations)


def name_of(product: QuantizedProduct) -> str:
    """Return what to call a product: its node's name, or that of its output, which another tool may have left alone."""
    return product.name or product.output.name or ""


def _unknown(product: QuantizedProduct) -> str:
    rows, columns = product.weight.values.shape
    called = f"called {product.initializer} " if product.initializer else ""
    return (
        f"its weight {called}({rows}, {columns}) is no parameter of the model, nor close to a part of one: there is "
        "nothing to compare it with. Look for other weights, or wrong scales, order or axes"
    )


def _conflict(
    product: QuantizedProduct, part: Part, others: Sequence[tuple[int, QuantizedProduct]], in_float: set[str | None]
) -> str:
    """Return why a weight can't be put into the model; empty if it can: a parameter has one value there."""
    if product.initializer and product.initializer in in_float:
        return f"{part.parameter} is also multiplied by in float32, and can't have both values in PyTorch"
    count = product.weight.values.shape[1]
    for start, other in others:
        overlap = part.start < start + other.weight.values.shape[1] and start < part.start + count
        same = start == part.start and np.array_equal(other.weight.dequantized(), product.weight.dequantized())
        if overlap and not same:
            return f"{name_of(other)} has another copy of {part.parameter}, and it can't have both values in PyTorch"
    return ""


def _targets(expected: Expected, weights: Mapping[str, Any]) -> Targets:
    """Return the outputs with other values of parameters, with the rounding errors of the original's."""
    assert expected.program is not None
    reference = _module(expected.program.module, weights)
    names = list(expected.targets[0].outputs)
    places = {id(case): index for index, case in enumerate(expected.cases)}

    def compute(case: Case) -> Target:
        outputs = record(reference, names, case)
        return Target(outputs, expected.targets[places[id(case)]].spreads if expected.own else {})

    return Targets(expected.cases, compute)


def _module(module: nn.Module, weights: Mapping[str, Any]) -> nn.Module:
    from pom_export.graph.quantized.reference import QuantizedModule

    return QuantizedModule(module, weights)
