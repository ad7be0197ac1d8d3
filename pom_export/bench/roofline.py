"""What the machine itself can do, measured in the same run: bandwidth by size, and matrix products."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pom_export.bench.contestants import OnnxContestant
from pom_export.bench.products import Product, write_floor

_MIB = 1 << 20
_SIZES_MIB = (1, 4, 16, 64, 256)
_ROWS, _INNER, _COLUMNS = 2048, 1024, 2048
# Of every size, as long as it takes to see the machine at its best.
_SECONDS, _FEWEST = 0.15, 5


@dataclass(frozen=True)
class Bandwidth:
    """Bytes a second at one working set.

    Attributes:
        bytes: of all arrays that are touched, together.
        read: bytes read a second, by the fastest of a few reductions.
        copy: bytes read and written a second, by the fastest of a few element-wise operations.
    """

    bytes: int
    read: float
    copy: float


@dataclass(frozen=True)
class Roofline:
    """The machine's limits with the benchmark's threads.

    Attributes:
        bandwidths: from the smallest size to the largest.
        flops_per_s: of a large float32 matrix product in ONNX Runtime; the best run, as of the bandwidths.
    """

    bandwidths: Sequence[Bandwidth]
    flops_per_s: float

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Roofline:
        """Return what `to_dict` was called on."""
        return cls([Bandwidth(**item) for item in values["bandwidths"]], values["flops_per_s"])

    def copy_at(self, size: float) -> float:
        """Return the copy bandwidth at a working set of `size` bytes, between the sizes that were measured."""
        known = self.bandwidths
        if size <= known[0].bytes:
            return known[0].copy
        for below, above in itertools.pairwise(known):
            if size <= above.bytes:
                share = math.log(size / below.bytes) / math.log(above.bytes / below.bytes)
                return below.copy ** (1 - share) * above.copy**share
        return known[-1].copy

    def memory_ms(self, traffic: int) -> float:
        """Return the milliseconds that moving `traffic` bytes takes at the least."""
        return 1e3 * traffic / self.copy_at(traffic)


def measure_roofline(threads: int, folder: Path) -> Roofline:
    """Measure this machine, with the threads that this process is pinned to."""
    import torch

    torch.set_num_threads(threads)
    with torch.inference_mode():
        bandwidths = [_bandwidth(size * _MIB) for size in _SIZES_MIB]
    return Roofline(bandwidths, _peak_flops(threads, folder))


def _bandwidth(size: int) -> Bandwidth:
    import torch

    values = torch.ones(size // 4)
    half, other = torch.ones(size // 8), torch.empty(size // 8)
    reads: tuple[Callable[[], object], ...] = (values.sum, values.max, lambda: torch.dot(values, values))
    writes: tuple[Callable[[], object], ...] = (
        lambda: torch.add(half, 1.0, out=other),
        lambda: torch.mul(half, 2.0, out=other),
        lambda: other.copy_(half),
    )
    return Bandwidth(size, size / min(map(_best_s, reads)), size / min(map(_best_s, writes)))


def _peak_flops(threads: int, folder: Path) -> float:
    import numpy as np

    product = Product((_ROWS,), _INNER, _COLUMNS)
    path = folder / "peak.onnx"
    write_floor([product], path, seed=0)
    contestant = OnnxContestant(path, threads)
    contestant.bind({"left_0": np.ones((_ROWS, _INNER), np.float32)})
    contestant.first()
    return product.flops({}) / _best_s(contestant.run)


def _best_s(function: Callable[[], object]) -> float:
    function()
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < _FEWEST or time.perf_counter() - started < _SECONDS:
        before = time.perf_counter()
        function()
        times.append(time.perf_counter() - before)
    # A limit: what others take from the machine meanwhile does not belong to it.
    return min(times)
