"""Find a graph's matrix products with constant weights, quantized or not."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from pom_export.graph.nodes import module_of, take_place
from pom_export.graph.opsets import STANDARD_DOMAINS

MICROSOFT: Final = "com.microsoft"
BLOCK_PRODUCT: Final = "MatMulNBits"
PRODUCTS_OF: Final = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
"""The types of the products that can be quantized; those of float16 for TensorRT alone."""
_MATRIX: Final = 2
_PRODUCTS: Final = ("MatMul", "Gemm", "Einsum")
_ZERO_POINT: Final = 2


@dataclass(frozen=True)
class FloatProduct:
    """A product of activations with a constant matrix of float32, or of float16 if those were asked for.

    Attributes:
        node: the MatMul.
        initializer: the matrix as the file holds it.
        transposed: whether a Transpose is between the two, as in a head that is tied to the embedding.
    """

    node: ir.Node
    initializer: ir.Value
    transposed: bool

    @property
    def name(self) -> str:
        """The node's name, which begins with its module's."""
        return self.node.name or ""

    @property
    def module(self) -> str:
        """The name of the module that it comes from."""
        return module_of(self.node) if "/" in self.name else ""

    @property
    def input(self) -> str:
        """The name of the activations, (..., K)."""
        return (self.node.inputs[0] and self.node.inputs[0].name) or ""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The matrix's type."""
        dtype = self.initializer.dtype
        assert dtype is not None
        return dtype.numpy()

    @property
    def shape(self) -> tuple[int, int]:
        """K and N."""
        shape = self.initializer.shape
        assert shape is not None
        first, second = shape.numpy()
        return (second, first) if self.transposed else (first, second)

    @property
    def size(self) -> int:
        """How many numbers the matrix has."""
        rows, columns = self.shape
        return rows * columns

    def matrix(self) -> npt.NDArray[np.float32]:
        """Return the matrix as it is multiplied by, in float32: (K, N)."""
        tensor = self.initializer.const_value
        assert tensor is not None
        array: npt.NDArray[np.float32] = tensor.numpy().astype(np.float32, copy=False)
        return array.T if self.transposed else array


def float_products(model: ir.Model, dtypes: Collection[ir.DataType] = (ir.DataType.FLOAT,)) -> list[FloatProduct]:
    """Return a graph's products with constant matrices of some types, in order; those in branches and loops are not."""
    return [product for node in model.graph if (product := _float_product(node, dtypes)) is not None]


def other_products(model: ir.Model) -> list[str]:
    """Return the names of the nodes that multiply by a constant matrix of floats, and that `float_products` leaves.

    They are in branches or loops, have another matrix than `x @ W` needs, or are a Gemm with factors, or an Einsum.
    """
    found = {product.node for product in float_products(model, PRODUCTS_OF)}
    return [
        node.name or node.op_type
        for node in model.graph.all_nodes()
        if node.op_type in _PRODUCTS and node.domain in STANDARD_DOMAINS and node not in found
        if any(_is_matrix(value) for value in node.inputs)
    ]


def _is_matrix(value: ir.Value | None) -> bool:
    if value is None or not value.is_initializer() or value.is_graph_input() or value.dtype not in PRODUCTS_OF:
        return False
    return value.shape is not None and len(value.shape) >= _MATRIX


def split_biases(model: ir.Model, names: Collection[str] | None = None) -> None:
    """Make each Gemm by a constant matrix a MatMul of the same name and an Add, so that `float_products` finds it.

    torch's exporter writes a Gemm for a linear layer with a bias on inputs of two dimensions.

    Args:
        model: the graph.
        names: names of the nodes; None: all.
    """
    for node in list(model.graph):
        if node.op_type == "Gemm" and (names is None or node.name in names) and _is_plain(node):
            _split(model.graph, node)


def _is_plain(gemm: ir.Node) -> bool:
    """Return whether a Gemm multiplies by a constant, and has a bias or none, and neither factor."""
    numbers = {name: attribute.value for name, attribute in gemm.attributes.items()}
    weight = gemm.inputs[1]
    factors = (numbers.get("alpha", 1.0), numbers.get("beta", 1.0))
    constant = weight is not None and weight.is_initializer() and not weight.is_graph_input()
    return constant and factors == (1.0, 1.0) and not numbers.get("transA")


def _split(graph: ir.Graph, gemm: ir.Node) -> None:
    given, weight, *rest = gemm.inputs
    assert weight is not None
    added: list[ir.Node] = []
    transposed = gemm.attributes.get("transB")
    if transposed is not None and transposed.as_int():
        transpose = ir.node("Transpose", [weight], {"perm": [1, 0]}, name=f"{weight.name}_transposed/Transpose")
        shape = None if weight.shape is None else ir.Shape(weight.shape[::-1])
        transpose.outputs[0].shape, transpose.outputs[0].type = shape, weight.type
        added, weight = [transpose], transpose.outputs[0]
    product = ir.node("MatMul", [given, weight], name=gemm.name)
    added.append(product)
    bias = rest[0] if rest else None
    if bias is not None:
        product.outputs[0].shape, product.outputs[0].type = gemm.outputs[0].shape, gemm.outputs[0].type
        added.append(ir.node("Add", [product.outputs[0], bias], name=f"{gemm.name}.bias"))
    graph.insert_before(gemm, added)
    take_place(gemm.outputs[0], added[-1].outputs[0])
    graph.remove(gemm, safe=True)


def _float_product(node: ir.Node, dtypes: Collection[ir.DataType]) -> FloatProduct | None:
    if node.op_type != "MatMul" or node.domain not in STANDARD_DOMAINS or not node.name:
        return None
    activations, weight = node.inputs
    maker = weight.producer() if weight is not None else None
    transposed = maker is not None and maker.op_type == "Transpose" and _swaps(maker)
    if transposed and maker is not None:
        weight = maker.inputs[0]
    if activations is None or activations.is_initializer() or weight is None or not weight.is_initializer():
        return None
    is_matrix = weight.shape is not None and len(weight.shape) == _MATRIX and 0 not in weight.shape
    if weight.dtype not in dtypes or not is_matrix or weight.is_graph_input():
        return None
    return FloatProduct(node, weight, transposed)


def _swaps(transpose: ir.Node) -> bool:
    order = transpose.attributes.get("perm")
    return order is None or list(order.as_ints()) == [1, 0]


def constant_of(value: ir.Value | None) -> npt.NDArray[Any] | None:
    """Return the array of a constant; None if the value is computed, or missing."""
    if value is None or value.const_value is None or not value.is_initializer():
        return None
    return value.const_value.numpy()


def is_symmetric(node: ir.Node) -> bool:
    """Return whether a Q or DQ has no zero point, or one of zeros."""
    zero = node.inputs[2] if len(node.inputs) > _ZERO_POINT else None
    array = constant_of(zero)
    return zero is None or (array is not None and not array.astype(np.float32).any())
