"""Time the quantized products of a step alone, in ONNX Runtime's MatMulNBits, against reading their weights."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.roofline import read_bandwidth
from pom_export.bench.runners import SessionRunner
from pom_export.bench.worker import call_in_worker
from pom_export.graph.quantized.block_weights import QuantizedWeight, pack_blocks
from pom_export.graph.quantized.products import BLOCK_PRODUCT, MICROSOFT
from pom_export.graph.quantized.writing import INTEGER_ACTIVATIONS
from pom_export.runtime.session import default_session_options, inference_session

FORMS: Final = ((4, 32), (4, 64), (4, 128), (8, 32), (8, 128))
"""Bits and rows of a block. Activations are rounded to 8 bits, since products take longer where they are not."""
_SECONDS, _FEWEST = 0.6, 3


@dataclass(frozen=True)
class TimedProducts:
    """The products of all layers, one after the other.

    Attributes:
        name: the form.
        cold: whether each layer has weights of its own; else all read the same, which stay in a cache.
        threads: number of threads.
        rows: of the activations.
        seconds: median.
        floor: seconds to read the weights as often, of which there are as many bytes.
    """

    name: str
    cold: bool
    threads: int
    rows: int
    seconds: float
    floor: float


def shapes_of(dim: int) -> list[tuple[int, int]]:
    """Return K and N of a layer's products: the gate's, the mixer's output, and the MLP's, as in StreamShape."""
    return [(dim, dim // 2), (6 * dim, dim), (dim, 4 * dim), (4 * dim, dim)]


def time_products(
    dim: int, layers: int, rows: Sequence[int], threads: Sequence[int], folder: Path
) -> Iterator[TimedProducts]:
    """Time every form, each in a process of its own, with float32 first."""
    path = folder / "products.onnx"
    for cold in (True, False):
        for form in (None, *FORMS):
            weights = _write(path, dim, layers, form, cold=cold)
            name = "float32" if form is None else "int{}, blocks of {}".format(*form)
            for count in threads:
                read = weights if cold else weights // layers
                rate = call_in_worker(read_bandwidth, read, count, folder=folder, threads=count)
                for each in rows:
                    seconds = call_in_worker(_time, path, each, count, folder=folder, threads=count)
                    yield TimedProducts(name, cold, count, each, seconds, weights / rate)


def rows_of(timed: Sequence[TimedProducts]) -> list[list[str]]:
    """Return the rows of a table: milliseconds, and for one row of activations the ratio to the floor."""
    head = ["weights", "in a cache", "threads", "rows", "ms", "floor ms", "over floor", "over float32"]
    plain = {(each.cold, each.threads, each.rows): each.seconds for each in timed if each.name == "float32"}
    table = [head]
    for each in timed:
        ratio = f"{each.seconds / each.floor:.2f}" if each.rows == 1 else "-"
        over = f"{each.seconds / plain[each.cold, each.threads, each.rows]:.2f}"
        facts = ["no" if each.cold else "yes", str(each.threads), str(each.rows)]
        table.append([each.name, *facts, f"{1e3 * each.seconds:.2f}", f"{1e3 * each.floor:.2f}", ratio, over])
    return table


def _write(path: Path, dim: int, layers: int, form: tuple[int, int] | None, *, cold: bool) -> int:
    """Write a graph of the layers' products, and return the bytes of weights that a run reads."""
    nodes, weights, outputs, read = [], {}, [], 0
    for layer in range(layers):
        for index, (rows, columns) in enumerate(shapes_of(dim)):
            name, y = f"{layer if cold else 0}_{index}", f"y{layer}_{index}"
            if name not in weights:
                weights[name] = _weight(name, rows, columns, form)
            read += sum(len(tensor.raw_data) for tensor in weights[name])
            inputs = [f"x{rows}", *(tensor.name for tensor in weights[name])]
            if form is None:
                nodes.append(helper.make_node("MatMul", inputs, [y]))
            else:
                bits, block = form
                attributes: dict[str, Any] = {"K": rows, "N": columns, "bits": bits, "block_size": block}
                attributes["accuracy_level"] = INTEGER_ACTIVATIONS
                nodes.append(helper.make_node(BLOCK_PRODUCT, inputs, [y], domain=MICROSOFT, **attributes))
            outputs.append(helper.make_tensor_value_info(y, TensorProto.FLOAT, ["rows", columns]))
    sizes = sorted({rows for rows, _ in shapes_of(dim)})
    given = [helper.make_tensor_value_info(f"x{size}", TensorProto.FLOAT, ["rows", size]) for size in sizes]
    tensors = [tensor for each in weights.values() for tensor in each]
    graph = helper.make_graph(nodes, "products", given, outputs, tensors)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(MICROSOFT, 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return read


def _weight(name: str, rows: int, columns: int, form: tuple[int, int] | None) -> list[onnx.TensorProto]:
    # Other values in each layer: ONNX Runtime keeps equal weights once, which then stay in a cache.
    draws = np.random.default_rng([int(number) for number in name.split("_")])
    if form is None:
        return [numpy_helper.from_array(draws.standard_normal((rows, columns), np.float32), f"w{name}")]
    bits, block = form
    values = draws.integers(-7, 8, (rows, columns)).astype(np.int8)
    scales = np.full((-(-rows // block), columns), 0.01, np.float32)
    packed = pack_blocks(QuantizedWeight(values, scales, bits, block))
    arrays: dict[str, npt.NDArray[Any]] = {"w": packed, "s": np.ascontiguousarray(scales.T)}
    return [numpy_helper.from_array(array, f"{kind}{name}") for kind, array in arrays.items()]


def _time(path: Path, rows: int, threads: int) -> float:
    options = default_session_options()
    options.intra_op_num_threads = threads
    session = inference_session(path, session_options=options)
    feed = {each.name: np.ones((rows, each.shape[1]), np.float32) for each in session.get_inputs()}
    bound = SessionRunner(session).bind(feed)
    times: list[float] = []
    end = time.perf_counter() + _SECONDS
    while time.perf_counter() < end or len(times) < _FEWEST:
        started = time.perf_counter()
        bound.run()
        times.append(time.perf_counter() - started)
    return statistics.median(times)
