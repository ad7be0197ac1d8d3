"""Time a language model with float32 and with quantized weights, token by token and on prompts, beside the floor.

    python -m benchmarks.quantized [--layers 12] [--dim 768] [--prompts 128,1024] [--rounds N] [--output FILE.json]

The model has random weights, which are rounded to the nearest: the time does not depend on their values. Each form of
quantized products that `quantize` chooses from is a file of its own. In every round, each file is loaded in a process
of its own, so that no session's threads take another's time, and makes calls of one token and of the prompts' lengths;
given are medians over all rounds, and ratios to float32.

The floor of a step is the time that as many threads take to read as many bytes as the file's weights have, measured in
the same rounds. A step cannot be faster unless its weights fit in a cache.

    python -m benchmarks.quantized --products [--rows 1,8,128,1024] [--layers 12] [--dim 768] [--output FILE.json]

This times only the products with weights of all layers, in blocks of several sizes, with weights that are in a cache
and that are not, on one thread and on all.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from benchmarks.quantized.products import rows_of, time_products
from benchmarks.quantized.timing import measure, table_of, write_files
from benchmarks.stream.models import StreamShape
from pom_export.bench.machine import usable_processors
from pom_export.bench.table import aligned

_HEAD_WIDTH: Final = 64


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--prompts", type=numbers, default=[128, 1024], help="lengths of prompts, after commas")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--products", action="store_true", help="time products alone")
    parser.add_argument("--rows", type=numbers, default=[1, 8, 128, 1024], help="rows of the products' activations")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    threads = len(usable_processors())
    with tempfile.TemporaryDirectory() as name:
        found = _products(options, threads, Path(name)) if options.products else _files(options, threads, Path(name))
    if options.output:
        options.output.write_text(json.dumps(found, indent=1) + "\n")


def _files(options: argparse.Namespace, threads: int, folder: Path) -> dict[str, Any]:
    sizes = [1, *options.prompts]
    shape = StreamShape(dim=options.dim, layers=options.layers, heads=max(1, options.dim // _HEAD_WIDTH))
    found = measure(write_files(shape, folder), sizes, options.rounds, threads, folder)
    print(f"{options.layers} layers of {options.dim}, {threads} threads; milliseconds a call (ratio to float32)\n")
    print(aligned(table_of(found, sizes)))
    return {name: {**asdict(timed), "floor": timed.floor} for name, timed in found.items()}


def _products(options: argparse.Namespace, threads: int, folder: Path) -> list[dict[str, Any]]:
    counts = sorted({1, threads})
    found = list(time_products(options.dim, options.layers, options.rows, counts, folder))
    print(f"the products of {options.layers} layers of {options.dim}\n")
    print(aligned(rows_of(found)))
    return [asdict(each) for each in found]


if __name__ == "__main__":
    main()
