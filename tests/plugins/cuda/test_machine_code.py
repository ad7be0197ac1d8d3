"""What nvcc made of the kernels, read from the plugin library: registers, spills and the width of accesses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tools import cuobjdump

ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_120")
# Two blocks of 256 threads a multiprocessor, see plugins/cuda/plan.h.
MAX_REGISTERS = 128
# Of the kernels with two packs of halves or a gate: a few values that live across the loop, not the loads.
MAX_SPILLED_BYTES = 64
USAGE = re.compile(r"Function (\S+):\s*REG:(\d+) STACK:(\d+)")
# The element types and widths that read 16 bytes at once.
PACKED = ("6__halfLi8", "13__nv_bfloat16Li8", "IfLi4")


@pytest.fixture(autouse=True)
def tool() -> None:
    if cuobjdump.find() is None:
        pytest.skip("cuobjdump is not installed")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_registers_and_spills(architecture: str, library: Path) -> None:
    kernels = USAGE.findall(cuobjdump.dump(library, "--dump-resource-usage", "--gpu-architecture", architecture))

    assert len(kernels) > 60
    for name, registers, stack in kernels:
        assert int(registers) <= MAX_REGISTERS, name
        assert int(stack) <= (0 if is_plain(name) else MAX_SPILLED_BYTES), name


def is_plain(name: str) -> bool:
    return "PowerTile" in name and "GateOver" not in name


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_packs_move_as_16_bytes(architecture: str, library: Path) -> None:
    code = cuobjdump.dump(library, "--dump-sass", "--gpu-architecture", architecture)
    kernels = [part.split("\n", 1) for part in code.split("Function : ")[1:]]

    tiled = [(name, text) for name, text in kernels if "Tile" in name and any(packed in name for packed in PACKED)]
    # 3 forms of 3 types: sums, features, causal with a gate and without.
    assert len(tiled) == 3 * 3 * 4
    for name, text in tiled:
        assert text.count("LDG.E.128") >= 4, name
        if "chunk_sums" not in name:
            assert "STG.E.128" in text, name
