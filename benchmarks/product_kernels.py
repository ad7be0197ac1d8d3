"""Time the CPU's kernels for products with 4-bit weights beside ONNX Runtime's products of the same sizes.

    python -m benchmarks.product_kernels [--rows 1,4,16,128,1024] [--kernel avx512vnni] [--rounds N]

Ours are timed by `pom_products_benchmark`, which is compiled first, and include the rounding of the activations. ONNX
Runtime's are a MatMul in float32, and MatMulNBits, which rounds activations in the same way. Everything runs on one
thread, in turns, with the same weights in every call, so that they come from a cache if they fit into it; given are
medians.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from pom_export.bench.table import aligned
from pom_export.graph.quantized.block_weights import QuantizedWeight, pack_blocks
from pom_export.graph.quantized.products import BLOCK_PRODUCT, MICROSOFT
from pom_export.graph.quantized.writing import INTEGER_ACTIVATIONS

ROOT: Final = Path(__file__).parents[1]
BUILD: Final = ROOT / "build" / "benchmark"
PROGRAM: Final = "pom_products_benchmark"
SIZES: Final = ((768, 3072), (4608, 768))
BLOCKS: Final = (32, 128)
_SECONDS, _FEWEST = 0.1, 3


def build() -> Path:
    """Compile the program and return its path.

    Raises:
        SystemExit: CMake is missing, or it failed.
    """
    if shutil.which("cmake") is None:
        sys.exit("cmake is not installed")
    options = ["-DCMAKE_BUILD_TYPE=Release", "-DPOM_BUILD_BENCHMARK=ON", "-DPOM_BUILD_TENSORRT=OFF"]
    configure = ["cmake", "-S", str(ROOT / "plugins"), "-B", str(BUILD), *options]
    for command in (configure, ["cmake", "--build", str(BUILD), "--target", PROGRAM]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return next(file for file in BUILD.rglob(PROGRAM) if os.access(file, os.X_OK) and file.is_file())


def time_ours(program: Path, kernel: str, sizes: tuple[int, int], block: int, rows: int) -> tuple[str, float]:
    """Return the kernel's name, and seconds of a product with its rounding."""
    numbers = {"inputs": sizes[0], "outputs": sizes[1], "block": block, "rows": rows, "memory": 0}
    options = [text for name, number in numbers.items() for text in (f"--{name}", str(number))]
    chosen = ["--kernel", kernel] if kernel else []
    done = subprocess.run([program, *options, *chosen], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr.strip())
    result = json.loads(done.stdout.splitlines()[0])
    return result["kernel"], (result["us"] + result["round_us"]) / 1e6


def open_product(sizes: tuple[int, int], block: int | None) -> ort.InferenceSession:
    """Return a session of one product: in float32, or with 4-bit weights in blocks."""
    inputs, outputs = sizes
    draws = np.random.default_rng(0)
    if block is None:
        weights = [numpy_helper.from_array(draws.standard_normal(sizes, np.float32), "w")]
        node = helper.make_node("MatMul", ["x", "w"], ["y"])
    else:
        values = draws.integers(-7, 8, sizes).astype(np.int8)
        scales = np.full((-(-inputs // block), outputs), 0.01, np.float32)
        packed = pack_blocks(QuantizedWeight(values, scales, 4, block))
        arrays: dict[str, npt.NDArray[Any]] = {"w": packed, "s": np.ascontiguousarray(scales.T)}
        weights = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
        attributes: dict[str, Any] = {"K": inputs, "N": outputs, "bits": 4, "block_size": block}
        attributes["accuracy_level"] = INTEGER_ACTIVATIONS
        node = helper.make_node(BLOCK_PRODUCT, ["x", "w", "s"], ["y"], domain=MICROSOFT, **attributes)
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", width])
        for name, width in (("x", inputs), ("y", outputs))
    )
    graph = helper.make_graph([node], "product", [x], [y], weights)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(MICROSOFT, 1)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def time_theirs(session: ort.InferenceSession, rows: int) -> float:
    """Return the median seconds of a call."""
    x = np.random.default_rng(1).standard_normal((rows, session.get_inputs()[0].shape[1]), np.float32)
    times: list[float] = []
    end = time.perf_counter() + _SECONDS
    while time.perf_counter() < end or len(times) < _FEWEST:
        started = time.perf_counter()
        session.run(None, {"x": x})
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def compare(program: Path, kernel: str, all_rows: Sequence[int], rounds: int) -> list[list[str]]:
    """Return the rows of a table."""
    table = [["kernel", "K", "N", "rows", "block", "ours us", "float32 us", "MatMulNBits us", "/ float32", "/ NBits"]]
    for sizes in SIZES:
        plain = open_product(sizes, None)
        for block in BLOCKS:
            quantized = open_product(sizes, block)
            for rows in all_rows:
                times: list[tuple[float, float, float]] = []
                for _ in range(rounds):
                    name, ours = time_ours(program, kernel, sizes, block, rows)
                    times.append((ours, time_theirs(plain, rows), time_theirs(quantized, rows)))
                medians = [statistics.median(each) for each in zip(*times, strict=True)]
                ours, single, blocks = medians
                facts = [name, *map(str, (*sizes, rows, block)), *(f"{1e6 * each:.0f}" for each in medians)]
                table.append([*facts, f"{ours / single:.2f}", f"{ours / blocks:.2f}"])
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1,4,16,128,1024", help="rows of the activations, after commas")
    parser.add_argument("--kernel", default="", help="an instruction set; else the fastest")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rows = [int(number) for number in options.rows.split(",")]
    print(aligned(compare(build(), options.kernel, rows, options.rounds)))


if __name__ == "__main__":
    main()
