"""Time the CUDA kernels on this machine's GPU, side by side with a copy, torch and PoM's own Triton algorithm.

    python -m benchmarks.cuda_kernels [--quick] [--output FILE.json] [--page docs/gpu.md]

Every time is a median over replays of a CUDA graph. Its calls cycle through inputs that together are several times the
size of the L2 cache, so that each call reads its input from device memory. "of copy" is the bandwidth (inputs read
once, outputs written once) divided by that of a device-to-device copy that moves as many bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import logging
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pom_export.runtime.cuda import CudaCall
from tools.pages import write_part

DEGREE = 3
REPLAYS = 15
CACHES = 4  # times the L2 that inputs and outputs together are at least, but for calls of a few KB
MAX_SETS = 1024
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """A call to time. `kind`: "plain", "masked", "gated", "rotary" or "product"."""

    mode: str
    dtype: str
    batch: int
    tokens: int
    channels: int
    kind: str = "plain"

    @property
    def size(self) -> tuple[int, int, int]:
        """Return (B, N, C)."""
        return self.batch, self.tokens, self.channels

    @property
    def is_compared(self) -> bool:
        """Whether other implementations are timed too, which takes minutes."""
        return self.kind == "plain" and self.dtype != "bfloat16" and self.size in SIZES[:2]


SIZES = ((1, 4096, 1024), (1, 16384, 2048), (1, 65536, 2048), (8, 4096, 1024), (1, 131072, 256), (1, 1024, 512))
LARGE = SIZES[1]
CASES = [Case(mode, dtype, *size) for mode in ("mean", "causal", "features") for dtype in DTYPES for size in SIZES]
CASES += [
    Case(mode, dtype, *LARGE, kind)
    for mode in ("mean", "causal")
    for dtype in ("float16", "float32")
    for kind in ("masked", "gated", "rotary", "product")
]
CASES += [Case(mode, "float16", 1, 1, 2048) for mode in ("mean", "causal")]


def tensors_of(case: Case) -> dict[str, Any]:
    """Return random inputs of a case, as the arguments of a CudaCall."""
    dtype = DTYPES[case.dtype]
    shape = (case.batch, case.tokens, case.channels)

    def random(*sizes: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.randn(*sizes, device="cuda", dtype=torch.float32).to(dtype)

    given: dict[str, Any] = {"x": random(*shape), "mode": case.mode}
    if case.kind == "product":
        given |= {"form": "product", "degree": 2}
    else:
        given["coefficients"] = random(case.channels, DEGREE, dtype=torch.float32)
    if case.kind == "gated":
        given |= {"gate": random(*shape), "gate_bias": random(case.channels), "gate_activation": "hardsigmoid"}
    if case.kind == "rotary":
        angles = random(1, case.tokens, case.channels // 2, dtype=torch.float32)
        given |= {"cos": angles.cos().to(dtype), "sin": angles.sin().to(dtype)}
    if case.kind == "masked":
        given["mask"] = torch.rand(case.batch, case.tokens, device="cuda") < 0.9
    return given


def seconds_a_call(calls: Sequence[Callable[[], Any]]) -> float:
    """Return the median time per call; the calls are captured into one graph."""
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    times = []
    for _ in range(REPLAYS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / len(calls))
    return statistics.median(times)


def eager(given: dict[str, Any]) -> torch.Tensor:
    """Return a plain case's aggregate as torch users write it, with cumsum for "causal"."""
    h = torch.nn.functional.leaky_relu(given["x"], 0.01).clamp(-0.1, 6.0)
    coefficients = given["coefficients"].to(h.dtype)
    p = sum(h**power * coefficients[:, power - 1] for power in range(1, DEGREE + 1))
    if given["mode"] == "features":
        return p
    if given["mode"] == "mean":
        return p.mean(1, keepdim=True)
    counts = torch.arange(1, p.shape[1] + 1, device=p.device, dtype=torch.float32)
    return (p.cumsum(1, dtype=torch.float32) / counts[:, None]).to(p.dtype)


def cache_bytes() -> int:
    """Return the size of the L2 cache."""
    return int(torch.cuda.get_device_properties(0).L2_cache_size)


def copy_seconds(moved: int, count: int) -> float:
    """Return the time of a copy that reads and writes `moved` bytes together."""
    half = [torch.empty(moved // 2, dtype=torch.uint8, device="cuda") for _ in range(2 * count)]
    pairs = zip(half[:count], half[count:], strict=True)
    return seconds_a_call([functools.partial(to.copy_, source) for to, source in pairs])


def measure_others(case: Case, sets: list[dict[str, Any]]) -> dict[str, float]:
    """Return the times in seconds of torch, torch.compile and the official algorithm."""
    from benchmarks import official_triton  # needs Triton, which comes with torch for CUDA

    result = {"eager_s": seconds_a_call([functools.partial(eager, given) for given in sets])}
    compiled = torch.compile(eager, dynamic=False)
    with contextlib.suppress(torch._inductor.exc.InductorError):  # of a float32 scan, in torch 2.11
        result["compiled_s"] = seconds_a_call([functools.partial(compiled, given) for given in sets])
    if case.mode != "features":
        few = sets[: max(4, 2 * cache_bytes() // sets[0]["x"].nbytes)]  # it is slow
        calls = [
            functools.partial(official_triton.aggregate, given["x"], given["coefficients"], case.mode) for given in few
        ]
        result["official_s"] = seconds_a_call(calls)
    return result


def measure(case: Case, compare: bool) -> dict[str, Any]:
    """Return a case's times in seconds and its ratios."""
    first = tensors_of(case)
    call = CudaCall(**first)
    moved = sum(tensor.nbytes for tensor in (*first.values(), call.output) if isinstance(tensor, torch.Tensor))
    count = max(4, min(MAX_SETS, CACHES * cache_bytes() // moved + 1))
    sets = [first] + [tensors_of(case) for _ in range(count - 1)]
    # The calls cycle through outputs too; they share a workspace, as in an engine.
    workspace = torch.empty(call.workspace_bytes, dtype=torch.uint8, device="cuda")
    result: dict[str, Any] = {"case": vars(case), "bytes": moved, "copy_s": copy_seconds(moved, count)}
    result["kernel_s"] = seconds_a_call([CudaCall(**given, workspace=workspace).enqueue for given in sets])
    result["of_copy"] = result["copy_s"] / result["kernel_s"]
    return result | (measure_others(case, sets) if compare and case.is_compared else {})


def table(results: list[dict[str, Any]]) -> str:
    """Return the results as a Markdown table."""
    others = {"Triton, official algorithm": "official_s", "torch.compile": "compiled_s", "torch": "eager_s"}
    titles = ["mode", "B x N x C", "type", "MB", "us", "TB/s", "of copy", *others]
    rows = [titles, ["---"] * len(titles)]
    for result in results:
        case, seconds, moved = result["case"], result["kernel_s"], result["bytes"]
        row = [case["mode"] if case["kind"] == "plain" else f"{case['mode']}, {case['kind']}"]
        row += [f"{case['batch']} x {case['tokens']} x {case['channels']}", case["dtype"], f"{moved / 1e6:.1f}"]
        row += [f"{seconds * 1e6:.1f}", f"{moved / seconds / 1e12:.2f}", f"{result['of_copy']:.2f}"]
        row += [f"{result[name] / seconds:.1f}x" if name in result else "" for name in others.values()]
        rows.append(row)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def description() -> str:
    """Return one line that describes the device and the method."""
    return f"{torch.cuda.get_device_name(0)}, torch {torch.__version__}: medians of {REPLAYS} replays."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the kernels and the copy alone")
    parser.add_argument("--output", type=Path, help="write all numbers to this JSON file")
    parser.add_argument("--page", type=Path, help="write the table into this page, between its marks")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no CUDA device is here: run this where torch.cuda.is_available() is true")
    logging.getLogger("torch._inductor").setLevel(logging.CRITICAL + 1)  # what fails there shows as an empty cell
    results = []
    for case in CASES:
        results.append(measure(case, not arguments.quick))
        torch.cuda.empty_cache()
    if arguments.output:
        report = {"device": description(), "results": results}
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    text = f"{description()}\n\n{table(results)}"
    if arguments.page:
        write_part(arguments.page, "measured", text)
    print(text)


if __name__ == "__main__":
    main()
