"""Measure the machine's limits in the same run: bandwidth by size, and matrix products."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.products import Product, write_floor
from pom_export.bench.runners import SessionRunner, open_session

_MIB = 1 << 20
_SIZES_MIB = (1, 4, 16, 64, 256)
_ROWS, _INNER, _COLUMNS = 2048, 1024, 2048
# For each size; long enough to see the machine at its best.
_STRETCHES, _STRETCH_S = 6, 0.03
_SECONDS, _FEWEST = 0.15, 5


@dataclass(frozen=True)
class Bandwidth:
    """Bandwidth at one size of the working set, in bytes per second.

    Attributes:
        bytes: total size of the arrays.
        read: bytes read per second, by the faster of two reductions.
        copy: bytes read and written per second, by the faster of two element-wise operations.
    """

    bytes: int
    read: float
    copy: float


@dataclass(frozen=True)
class Roofline:
    """The machine's limits with the benchmark's threads.

    Attributes:
        bandwidths: by increasing size.
        flops_per_s: of the fastest run of a large float32 matrix product in ONNX Runtime.
    """

    bandwidths: Sequence[Bandwidth]
    flops_per_s: float

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return asdict(self)

    def copy_at(self, size: float) -> float:
        """Return the copy bandwidth for a working set of `size` bytes, interpolated between the measured sizes."""
        known = self.bandwidths
        if size <= known[0].bytes:
            return known[0].copy
        for below, above in itertools.pairwise(known):
            if size <= above.bytes:
                share = math.log(size / below.bytes) / math.log(above.bytes / below.bytes)
                return below.copy ** (1 - share) * above.copy**share
        return known[-1].copy

    def memory_ms(self, traffic: int) -> float:
        """Return the least time in milliseconds to move `traffic` bytes."""
        return 1e3 * traffic / self.copy_at(traffic)


def measure_roofline(threads: int, folder: Path) -> Roofline:
    """Measure this machine with as many threads as this process is pinned to."""
    bandwidths = [_bandwidth(size * _MIB, threads) for size in _SIZES_MIB]
    return Roofline(bandwidths, _peak_flops(threads, folder))


def _bandwidth(size: int, threads: int) -> Bandwidth:
    """Measure with threads that never wait for each other, each on its own arrays; `size` is their total in bytes."""
    import torch

    numbers = max(2, size // (4 * threads))
    with _pool(threads) as pool:
        halves = [(torch.ones(numbers // 2), torch.empty(numbers // 2)) for _ in range(threads)]
        writes = ([partial(torch.add, a, 1.0, out=b) for a, b in halves], [partial(b.copy_, a) for a, b in halves])
        copy = 4 * numbers * max(_best_rate(pool, op) for op in writes)
    return Bandwidth(size, read_bandwidth(size, threads), copy)


def read_bandwidth(size: int, threads: int) -> float:
    """Return the bytes a second at which threads read arrays of `size` bytes in total, by the faster of two reductions.

    The threads never wait for each other, and each reads its own array.
    """
    import torch

    numbers = max(2, size // (4 * threads))
    with _pool(threads) as pool:
        whole = [torch.ones(numbers) for _ in range(threads)]
        reads = ([part.sum for part in whole], [partial(torch.dot, part, part) for part in whole])
        return 4 * numbers * max(_best_rate(pool, op) for op in reads)


def _pool(threads: int) -> ThreadPoolExecutor:
    import torch

    return ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))


def _best_rate(pool: ThreadPoolExecutor, functions: Sequence[Callable[[], object]]) -> float:
    """Return the maximum number of calls per second, of all functions together, over several stretches of time."""
    return max(sum(pool.map(_rate, functions)) for _ in range(_STRETCHES))


def _rate(function: Callable[[], object]) -> float:
    calls, started = 0, time.perf_counter()
    while (spent := time.perf_counter() - started) < _STRETCH_S or not calls:
        function()
        calls += 1
    return calls / spent


def _peak_flops(threads: int, folder: Path) -> float:
    import numpy as np

    product = Product((_ROWS,), _INNER, _COLUMNS)
    path = folder / "peak.onnx"
    write_floor([product], path, seed=0)
    bound = SessionRunner(open_session(path, threads)).bind({"left_0": np.ones((_ROWS, _INNER), np.float32)})
    return product.flops({}) / _best_s(bound.run)


def _best_s(function: Callable[[], object]) -> float:
    function()
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < _FEWEST or time.perf_counter() - started < _SECONDS:
        before = time.perf_counter()
        function()
        times.append(time.perf_counter() - before)
    # The minimum, since it is a limit: time that other processes take does not count.
    return min(times)
