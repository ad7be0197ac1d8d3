"""Time the CUDA kernels on this machine's GPU, side by side with a copy, torch and PoM's own Triton algorithm.

    python tools/cuda_benchmark.py [--quick] [--output FILE.json]

Every time is a median over replays of a CUDA graph whose calls go round inputs that together are several times the L2
cache, so that each call finds its input in device memory. "of copy": the bytes that must be moved (inputs read once,
outputs written once) a second, over those of a device-to-device copy that moves as many.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import official_triton
import torch

from pom_export.runtime.cuda import CudaCall

DEGREE = 3
REPLAYS = 15
CACHES = 4  # times the L2 that all inputs together are at least
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    mode: str
    dtype: str
    batch: int
    tokens: int
    channels: int
    kind: str = "plain"  # "gated", "rotary", "product", "masked"

    @property
    def size(self) -> tuple[int, int, int]:
        return self.batch, self.tokens, self.channels

    @property
    def is_compared(self) -> bool:
        """Whether others are timed too: that takes minutes."""
        return self.kind == "plain" and self.dtype != "bfloat16" and self.size in SIZES[:2]


SIZES = ((1, 4096, 1024), (1, 16384, 2048), (1, 65536, 2048), (8, 4096, 1024), (1, 131072, 256), (1, 1024, 512))
CASES = [Case(mode, dtype, *size) for mode in ("mean", "causal", "features") for dtype in DTYPES for size in SIZES]
CASES += [
    Case(mode, "float16", *SIZES[1], kind)
    for mode in ("mean", "causal")
    for kind in ("gated", "rotary", "product", "masked")
]
CASES += [Case("causal", "float32", *SIZES[1], kind) for kind in ("gated", "rotary", "product")]
CASES += [Case(mode, "float16", 1, 1, 2048) for mode in ("mean", "causal")]


def tensors_of(case: Case) -> dict[str, Any]:
    """Return what a CudaCall takes: fresh random inputs of a case."""
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


def seconds_a_call(calls: list[Callable[[], Any]]) -> float:
    """Return the median time of one of the calls, which are captured into one graph."""
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


def measure(case: Case, compare: bool) -> dict[str, Any]:
    """Return a case's times in seconds and its ratios."""
    first = tensors_of(case)
    inputs = [value for value in first.values() if isinstance(value, torch.Tensor)]
    call = CudaCall(**first)
    moved = sum(tensor.nbytes for tensor in (*inputs, call.output))
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    count = max(4, min(64, CACHES * cache // moved + 1))
    sets = [first] + [tensors_of(case) for _ in range(count - 1)]
    # Outputs go round too; the workspace is one, as in an engine.
    workspace = torch.empty(call.workspace_bytes, dtype=torch.uint8, device="cuda")
    ours = [CudaCall(**given, workspace=workspace) for given in sets]
    half = [torch.empty(moved // 2, dtype=torch.uint8, device="cuda") for _ in range(2 * count)]
    result: dict[str, Any] = {"case": vars(case), "bytes": moved}
    result["copy_s"] = seconds_a_call(
        [lambda to=to, of=of: to.copy_(of) for to, of in zip(half[:count], half[count:], strict=True)]
    )
    result["kernel_s"] = seconds_a_call([call.enqueue for call in ours])
    result["of_copy"] = result["copy_s"] / result["kernel_s"]
    if compare and case.is_compared:
        result["eager_s"] = seconds_a_call([lambda given=given: eager(given) for given in sets])
        compiled = torch.compile(eager, dynamic=False)
        result["compiled_s"] = seconds_a_call([lambda given=given: compiled(given) for given in sets])
        if case.mode != "features":
            few = sets[:4]
            result["official_s"] = seconds_a_call(
                [
                    lambda given=given: official_triton.aggregate(given["x"], given["coefficients"], case.mode)
                    for given in few
                ]
            )
    return result


def table(results: list[dict[str, Any]]) -> str:
    """Return the results as a Markdown table."""

    def times(result: dict[str, Any], name: str) -> str:
        return f"{result[name] / result['kernel_s']:.1f}x" if name in result else ""

    lines = [
        "| mode | B x N x C | type | MB moved | us | TB/s | of copy | Triton, official algorithm | torch.compile | torch |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        case = result["case"]
        mode = case["mode"] if case["kind"] == "plain" else f"{case['mode']}, {case['kind']}"
        shape = f"{case['batch']} x {case['tokens']} x {case['channels']}"
        seconds, moved = result["kernel_s"], result["bytes"]
        lines.append(
            f"| {mode} | {shape} | {case['dtype']} | {moved / 1e6:.1f} | {seconds * 1e6:.1f} | {moved / seconds / 1e12:.2f} |"
            f" {result['of_copy']:.2f} | {times(result, 'official_s')} | {times(result, 'compiled_s')} | {times(result, 'eager_s')} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the kernels and the copy alone")
    parser.add_argument("--output", type=Path, default=Path("cuda_benchmark.json"))
    arguments = parser.parse_args()
    device = torch.cuda.get_device_name(0)
    results = []
    for case in CASES:
        results.append(measure(case, not arguments.quick))
        torch.cuda.empty_cache()
    report = {"device": device, "torch": torch.__version__, "results": results}
    arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{device}, torch {torch.__version__}, medians of {REPLAYS} graph replays\n")
    print(table(results))


if __name__ == "__main__":
    main()
