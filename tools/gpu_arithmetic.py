"""How the CUDA kernels should fill a GPU: blocks, registers, occupancy and bytes in flight, for several cards.

    POM_PLUGIN_LIBRARY=... python tools/gpu_arithmetic.py [--page docs/gpu.md]

Needs no GPU: registers come from the plugin library of a release (cuobjdump), which has code for all of these cards,
blocks come from the launcher's own plan. The cards' limits come from NVIDIA's data sheets and the CUDA programming
guide's table of compute capabilities.
"""

from __future__ import annotations

import argparse
import functools
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cuobjdump import dump
from pages import write_part

from pom_export.runtime.library import plugin_library

ROOT = Path(__file__).resolve().parents[1]
TOKENS, CHANNELS = 16384, 2048
THREADS = 256
REGISTERS = 65536  # per multiprocessor
REGISTERS_AT_ONCE = 256  # a warp's registers are allocated in units of this many
SHARED_OF_A_BLOCK = 1024  # bytes of each block that CUDA reserves
LOADS, LOAD_BYTES = 4, 16  # per thread, all in flight
LATENCY = 700e-9  # of device memory, in seconds: a safe upper bound for all of these cards


@dataclass(frozen=True)
class Card:
    """A GPU's limits: `bandwidth` in bytes per second, `threads` and `shared` (bytes) per multiprocessor."""

    name: str
    architecture: str
    multiprocessors: int
    bandwidth: float
    threads: int
    shared: int


CARDS = (
    Card("H100 SXM", "sm_90", 132, 3.35e12, 2048, 228 << 10),
    Card("A100 80 GB SXM", "sm_80", 108, 2.04e12, 2048, 164 << 10),
    Card("L4", "sm_89", 58, 0.30e12, 1536, 100 << 10),
    Card("RTX 4090", "sm_89", 128, 1.01e12, 1536, 100 << 10),
    Card("RTX 5090", "sm_120", 170, 1.79e12, 1536, 100 << 10),
)


@dataclass(frozen=True)
class Kernel:
    """A kernel, which `pattern` finds in the library. With one pack per thread, the next loads are in flight too."""

    name: str
    mode: str
    pattern: str
    packs: int
    width: int


def kernels() -> list[Kernel]:
    """Return a kernel of each mode for float16 and float32, and a rotated one, whose threads have two packs."""
    functions = {"mean": "chunk_sums", "causal": "causal", "features": "features"}
    kinds = (("float16", "6__half", 8, 1), ("float32", "f", 4, 1), ("float16", "6__half", 8, 2))
    return [
        Kernel(
            name=f"{mode}, {dtype}" + (", rotary" if packs == 2 else ""),
            mode=mode,
            pattern=rf"{function}_kernelINS0_\d+{'Rotated' if packs == 2 else 'Power'}TileI{mangled}Li{width}E",
            packs=packs,
            width=width,
        )
        for mode, function in functions.items()
        for dtype, mangled, width, packs in kinds
    ]


@functools.cache
def usage(architecture: str) -> dict[str, int]:
    """Return the registers per thread of each kernel in the library, by its mangled name."""
    listing = dump(plugin_library(), "--dump-resource-usage", "--gpu-architecture", architecture)
    return {name: int(registers) for name, registers in re.findall(r"Function (\S+):\s*REG:(\d+)", listing)}


def registers_of(kernel: Kernel, architecture: str) -> int:
    """Return the most registers per thread that an instance of a kernel has, not counting gated instances."""
    found = [
        registers
        for name, registers in usage(architecture).items()
        if re.search(kernel.pattern, name) and "GateOver" not in name
    ]
    if not found:
        sys.exit(f"{plugin_library()} has no kernel for {kernel.name} on {architecture}: none matches {kernel.pattern}")
    return max(found)


def compile_planner(folder: Path) -> Path:
    """Compile print_plan.cpp together with the launcher's own plan."""
    program = folder / "print_plan"
    plugins = ROOT / "plugins"
    sources = [ROOT / "tools" / "print_plan.cpp", plugins / "cuda" / "plan.cpp", plugins / "aggregate.cpp"]
    includes = [f"-I{plugins / 'cuda'}", f"-I{plugins / 'include'}"]
    subprocess.run(["g++", "-std=c++17", *includes, *sources, "-o", program], check=True)
    return program


def row(card: Card, kernel: Kernel, planner: Path) -> str:
    """Return a line of the table."""
    sizes = [kernel.mode, kernel.packs, kernel.width, TOKENS, CHANNELS]
    plan = subprocess.run([planner, *map(str, sizes)], capture_output=True, text=True, check=True).stdout
    blocks, chunk_tokens, shared = map(int, plan.split())
    registers = registers_of(kernel, card.architecture)
    warp = -(-registers * 32 // REGISTERS_AT_ONCE) * REGISTERS_AT_ONCE
    resident = min(
        REGISTERS // (warp * THREADS // 32), card.threads // THREADS, card.shared // (shared + SHARED_OF_A_BLOCK)
    )
    rounds = blocks / (resident * card.multiprocessors)
    flight = resident * THREADS * LOADS * LOAD_BYTES * (2 if kernel.packs == 1 else 1)
    needed = card.bandwidth / card.multiprocessors * LATENCY
    cells = [
        card.name,
        kernel.name,
        f"{blocks} x {chunk_tokens}",
        str(registers),
        f"{shared / 1024:.1f}",
        str(resident),
        f"{resident * THREADS / card.threads:.0%}",
        f"{rounds:.1f}",
        f"{flight >> 10}",
        f"{needed / 1024:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def table() -> str:
    """Return the whole table as Markdown."""
    heads = ["card", "kernel", "blocks x tokens", "registers", "shared KiB", "blocks per multiprocessor", "occupancy"]
    heads += ["rounds", "KiB in flight", "KiB needed"]
    lines = [f"| {' | '.join(heads)} |", f"| {' | '.join('---' for _ in heads)} |"]
    with tempfile.TemporaryDirectory() as folder:
        planner = compile_planner(Path(folder))
        return "\n".join([*lines, *(row(card, kernel, planner) for card in CARDS for kernel in kernels())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, help="write the table into this page, between its markers")
    page = parser.parse_args().page
    text = table()
    print(text)
    if page:
        write_part(page, "arithmetic", text)


if __name__ == "__main__":
    main()
