"""A model whose products' weights are given with each call, so that any are tried without loading it again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from pom_export.errors import InputError, reason_of
from pom_export.files import scratch_folder
from pom_export.graph.exported_model import PRECISIONS, ExportedModel
from pom_export.graph.loading import load_graph
from pom_export.graph.nodes import add_constant
from pom_export.graph.quantized.block_weights import QuantizedWeight
from pom_export.graph.quantized.products import (
    PRODUCTS_OF,
    FloatProduct,
    float_products,
    other_products,
    split_biases,
)
from pom_export.graph.saving import save_graph
from pom_export.parity.case import Array, Arrays
from pom_export.quantization.quality import Run
from pom_export.runtime.session import inference_session

# Activations' products are kept in memory for as many products at once as take this much.
_MOMENTS_BYTES: Final = 2**29


class Trials:
    """A float32 or float16 file in ONNX Runtime, with its products' weights and their inputs within reach.

    Args:
        model: the file.

    Attributes:
        products: its products with constant matrices, by name.
        others: names of the nodes that also multiply by constants, and can't be quantized.

    Raises:
        InputError: the file has none, or a matrix holds NaN or infinity.
    """

    def __init__(self, model: ExportedModel) -> None:
        graph = load_graph(model.path)
        split_biases(graph)
        found = float_products(graph, PRODUCTS_OF if model.precision != PRECISIONS[0] else (ir.DataType.FLOAT,))
        if not found:
            raise InputError(
                f"{model.path} has no matrix product with a constant weight", "There is nothing to quantize"
            )
        self._stack = ExitStack()
        self.products: Mapping[str, FloatProduct] = {product.name: product for product in found}
        for product in found:
            _check_finite(product)
        self.others = other_products(graph)
        self._outputs = [spec.name for spec in model.outputs]
        self._taps = list(dict.fromkeys(product.input for product in found))
        self._weights = {product.name: _as_input(graph, product) for product in found}
        known = {value.name for value in (*graph.graph.outputs, *graph.graph.inputs)}
        made = {value.name: value for node in graph.graph for value in node.outputs}
        graph.graph.outputs.extend(made[name] for name in self._taps if name not in known and name in made)
        with ExitStack() as stack:
            path = stack.enter_context(scratch_folder()) / "trials.onnx"
            save_graph(graph, path)
            self._session: Any = inference_session(path)
            self._stack = stack.pop_all()

    def __enter__(self) -> Trials:
        """Return itself; leaving removes its copy of the file."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Remove the copy of the file."""
        self._session = None
        self._stack.close()

    def run_with(self, weights: Mapping[str, QuantizedWeight]) -> Run:
        """Return what runs the model with some products' weights replaced by what they are after rounding."""
        given = {
            self._weights[name]: weight.dequantized().astype(self.products[name].dtype)
            for name, weight in weights.items()
        }
        return lambda call: self._run(self._outputs, {**call, **given})

    def moments(
        self, names: Iterable[str], calls: Sequence[Arrays], use: Callable[[FloatProduct, Array], None]
    ) -> None:
        """Call a function with each named product and the mean of x^T x over its activations x in calls, (K, K)."""
        waiting = [self.products[name] for name in names]
        while waiting:
            inputs: dict[str, int] = {}
            part: list[FloatProduct] = []
            for product in waiting:
                inputs.setdefault(product.input, 8 * product.shape[0] ** 2)
                if part and sum(inputs.values()) > _MOMENTS_BYTES:
                    break
                part.append(product)
            waiting = waiting[len(part) :]
            moments = self._moments(list(dict.fromkeys(product.input for product in part)), calls)
            for product in part:
                use(product, moments[product.input])
            del moments  # the next ones take as much memory

    def _moments(self, names: Sequence[str], calls: Sequence[Arrays]) -> dict[str, Array]:
        totals: dict[str, Array] = {}
        counts = dict.fromkeys(names, 0)
        for call in calls:
            given = {name: call[name] for name in names if name in call}
            made = {**given, **self._run([name for name in names if name not in given], call)}
            for name in names:
                rows = made[name].reshape(-1, made[name].shape[-1]).astype(np.float32, copy=False)
                if not np.isfinite(rows).all():
                    raise InputError(f"the activations {name} have NaN or infinity", "Give other inputs: `calibrate`")
                totals[name] = totals.get(name, 0) + _squares(rows)
                counts[name] += len(rows)
        return {name: total / max(counts[name], 1) for name, total in totals.items()}

    def _run(self, names: Sequence[str], feed: Arrays) -> dict[str, Array]:
        return run_session(self._session, names, feed)


def _squares(rows: Array) -> Array:
    """Return x^T x, (K, K), in float64, of float32 rows: relative to the largest, as squares have half its range."""
    largest = np.float32(np.abs(rows).max(initial=0)) or np.float32(1)
    unit = rows / largest
    return (unit.T @ unit).astype(np.float64) * float(largest) ** 2


def runner_of(session: Any) -> Run:
    """Return what runs a session of ONNX Runtime."""
    names = [output.name for output in session.get_outputs()]
    return lambda call: run_session(session, names, call)


def run_session(session: Any, names: Sequence[str], feed: Arrays) -> dict[str, Array]:
    """Return the named outputs of a session.

    Raises:
        InputError: ONNX Runtime fails on the inputs.
    """
    if not names:
        return {}  # ONNX Runtime takes no names for all
    try:
        made = session.run(list(names), dict(feed))
    except Exception as error:  # onnxruntime's exceptions have no common base class
        raise InputError(f"ONNX Runtime fails on the model: {reason_of(error)}", "Check the inputs") from error
    return dict(zip(names, made, strict=True))


def _as_input(graph: ir.Model, product: FloatProduct) -> str:
    """Make a product's weight an input of the graph whose value is the default; return its name."""
    weight = product.initializer
    if product.transposed or len({user for user, _ in weight.uses()}) > 1:
        weight = add_constant(
            graph.graph, f"{product.initializer.name}.of_product", product.matrix().astype(product.dtype)
        )
        product.node.replace_input_with(1, weight)
    weight.shape = ir.Shape(product.shape)
    graph.graph.inputs.append(weight)
    assert weight.name is not None
    return weight.name


def _check_finite(product: FloatProduct) -> None:
    matrix = product.matrix()
    wrong = matrix[~np.isfinite(matrix)]
    if wrong.size:
        places = "1 place" if wrong.size == 1 else f"{wrong.size} places"
        raise InputError(
            f"the weight of {product.name} holds {wrong.flat[0]} in {places}, and has no scale",
            "Repair the checkpoint, and export it again",
        )
