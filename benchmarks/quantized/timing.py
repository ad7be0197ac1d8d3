"""Write the files of each form, and time them in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnx_ir as ir

import pom_export
from benchmarks.roofline import read_bandwidth
from benchmarks.stream.models import StreamShape, make_model
from pom_export.bench.runners import Bound, SessionRunner
from pom_export.bench.worker import call_in_worker
from pom_export.graph.quantized.block_weights import QuantizedWeight
from pom_export.graph.quantized.products import FloatProduct, float_products
from pom_export.graph.quantized.writing import (
    FLOAT_ACTIVATIONS,
    INTEGER_ACTIVATIONS,
    write_block_product,
    write_dynamic_product,
)
from pom_export.graph.saving import save_model
from pom_export.quantization.rounding import nearest
from pom_export.runtime.session import default_session_options
from pom_export.runtime.streaming.interface import IDS, read_stateful

FLOAT32: Final = "float32"
_Write = Callable[[ir.Model, FloatProduct, QuantizedWeight], None]


def _in_blocks(accuracy: int) -> _Write:
    return lambda model, product, weight: write_block_product(model, product, weight, accuracy)


FORMS: Final[Mapping[str, tuple[int, int | None, _Write]]] = {
    "int8, activations of 8 bits": (8, 128, _in_blocks(INTEGER_ACTIVATIONS)),
    "int8, activations in float32": (8, 128, _in_blocks(FLOAT_ACTIVATIONS)),
    "int8 by column": (8, None, write_dynamic_product),
    "int4, activations of 8 bits": (4, 32, _in_blocks(INTEGER_ACTIVATIONS)),
    "int4, blocks of 128, activations of 8 bits": (4, 128, _in_blocks(INTEGER_ACTIVATIONS)),
    "int4, activations in float32": (4, 32, _in_blocks(FLOAT_ACTIVATIONS)),
}
"""Bits of the weights, rows of a block (None: a scale per column), and form of the products, by name in the table."""
_STEPS, _SKIPPED = 40, 5
_LONG_RUNS: Final = 2


@dataclass
class Timed:
    """The calls of one file.

    Attributes:
        weights_bytes: bytes of its weights.
        seconds: of each timed call, by its number of tokens.
        floors: seconds to read the weights once, one for each round.
    """

    weights_bytes: int
    seconds: dict[int, list[float]] = field(default_factory=dict)
    floors: list[float] = field(default_factory=list)

    @property
    def floor(self) -> float:
        """The least of the floors: what other processes take of the memory's bandwidth does not count."""
        return min(self.floors)

    def median(self, tokens: int) -> float:
        """Return the median of the calls with so many tokens."""
        return statistics.median(self.seconds[tokens])


def write_files(shape: StreamShape, folder: Path) -> dict[str, Path]:
    """Export a model with its state, and write a file of each form; return the files by name."""
    plain = folder / "float32.onnx"
    pom_export.export(make_model(shape, 0), plain, stateful=True)
    files = {FLOAT32: plain}
    for index, (name, (bits, block, write)) in enumerate(FORMS.items()):
        model = ir.load(plain)
        for product in float_products(model):
            matrix = product.matrix()
            write(model, product, nearest(matrix, bits, block or len(matrix)))
        files[name] = folder / f"quantized{index}.onnx"
        save_model(model, files[name])
    return files


def weights_bytes(path: Path) -> int:
    """Return the bytes of a file's weights."""
    return sum(len(tensor.raw_data) for tensor in onnx.load(path).graph.initializer)


def time_calls(path: Path, sizes: Sequence[int], threads: int) -> dict[int, list[float]]:
    """Return the seconds of a file's calls, by their number of tokens, each from an empty state.

    The only session of a process: its threads spin while they wait, as a user's do.
    """
    options = default_session_options()
    options.intra_op_num_threads = threads
    runner = SessionRunner(pom_export.inference_session(path, session_options=options))
    past = read_stateful(str(path)).empty(1)
    found: dict[int, list[float]] = {}
    for tokens in sizes:
        ids = np.random.default_rng(0).integers(0, 256, (1, tokens))
        bound = runner.bind({IDS: ids, **past})
        skipped, timed = (_SKIPPED, _STEPS) if tokens == 1 else (1, _LONG_RUNS)
        found[tokens] = [_seconds(bound) for _ in range(skipped + timed)][skipped:]
    return found


def _seconds(bound: Bound) -> float:
    started = time.perf_counter()
    bound.run()
    return time.perf_counter() - started


def measure(
    files: Mapping[str, Path], sizes: Sequence[int], rounds: int, threads: int, folder: Path
) -> dict[str, Timed]:
    """Time each file's calls and floor in turns."""
    found = {name: Timed(weights_bytes(path)) for name, path in files.items()}
    for turn in range(rounds):
        names = list(files) if turn % 2 == 0 else list(files)[::-1]
        for name in names:
            timed = found[name]
            for tokens, seconds in call_in_worker(
                time_calls, files[name], sizes, threads, folder=folder, threads=threads
            ).items():
                timed.seconds.setdefault(tokens, []).extend(seconds)
            rate = call_in_worker(read_bandwidth, timed.weights_bytes, threads, folder=folder, threads=threads)
            timed.floors.append(timed.weights_bytes / rate)
    return found


def table_of(found: Mapping[str, Timed], sizes: Sequence[int]) -> list[list[str]]:
    """Return the rows of a table: milliseconds, and in brackets the ratio to float32."""
    head = ["file", "weights MB", "floor ms", "step / floor", *(f"{size} tokens" for size in sizes)]
    rows = [head]
    plain = found[FLOAT32]
    for name, timed in found.items():
        calls = [f"{1e3 * timed.median(n):.2f} ({timed.median(n) / plain.median(n):.2f})" for n in sizes]
        floor = timed.floor
        facts = [f"{timed.weights_bytes / 1e6:.0f}", f"{1e3 * floor:.2f}", f"{timed.median(1) / floor:.2f}"]
        rows.append([name, *facts, *calls])
    return rows
