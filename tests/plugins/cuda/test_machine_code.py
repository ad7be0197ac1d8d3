"""The kernels' machine code in the plugin library: registers, spills and the width of accesses.

The code for a chip is the same in every library that holds it (plugins/cuda/architectures.cmake). A library for this
machine is therefore checked for its chips, and a release library, which POM_RELEASE_PLUGIN_LIBRARY names, for all.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tools import cuobjdump

RELEASE = {"sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"}
# Two blocks of 256 threads per multiprocessor, see plugins/cuda/plan.h.
MAX_REGISTERS = 128
# For kernels with two half-precision packs or a gate: a few values that live across the loop, not the loads.
MAX_SPILLED_BYTES = 64
USAGE = re.compile(r"Function (\S+):\s*REG:(\d+) STACK:(\d+)")
# For packs of three types, and for single values of any: sums, features and causal of three forms, causal with a gate
# and without (one kernel for both where values are single), and the gate over means. The last mean is one for all.
KERNELS = 3 * (3 * 4 + 1) + (3 * 3 + 1) + 1
# The element types and widths that read 16 bytes at once.
PACKED = ("6__halfLi8", "13__nv_bfloat16Li8", "IfLi4")


@pytest.fixture(params=["here", pytest.param("release", marks=pytest.mark.machine)])
def compiled(request: pytest.FixtureRequest) -> Path:
    """The library of this machine, and the library of a release if one is named."""
    if cuobjdump.find() is None:
        pytest.skip("cuobjdump is not installed")
    if request.param == "here":
        library: Path = request.getfixturevalue("library")
        return library
    if "POM_RELEASE_PLUGIN_LIBRARY" not in os.environ:
        pytest.skip("POM_RELEASE_PLUGIN_LIBRARY names no library")
    library = Path(os.environ["POM_RELEASE_PLUGIN_LIBRARY"])
    assert cuobjdump.chips(library) == RELEASE
    return library


def test_every_chip_has_machine_code_or_ptx(compiled: Path) -> None:
    oldest = min(map(number, cuobjdump.chips(compiled) | cuobjdump.ptx(compiled)))

    assert oldest == number("sm_75")
    assert cuobjdump.ptx(compiled)


def number(architecture: str) -> int:
    return int(architecture.removeprefix("sm_"))


def test_registers_and_spills(compiled: Path) -> None:
    for chip in cuobjdump.chips(compiled):
        kernels = USAGE.findall(cuobjdump.dump(compiled, "--dump-resource-usage", "--gpu-architecture", chip))

        assert len(kernels) == KERNELS
        for name, registers, stack in kernels:
            assert int(registers) <= MAX_REGISTERS, (chip, name)
            assert int(stack) <= (0 if is_plain(name) else MAX_SPILLED_BYTES), (chip, name)


def is_plain(name: str) -> bool:
    return "PowerTile" in name and "GateOver" not in name


@pytest.mark.slow
def test_packs_move_as_16_bytes(compiled: Path) -> None:
    for chip in cuobjdump.chips(compiled):
        code = cuobjdump.dump(compiled, "--dump-sass", "--gpu-architecture", chip)
        kernels = [part.split("\n", 1) for part in code.split("Function : ")[1:]]

        tiled = [(name, text) for name, text in kernels if "Tile" in name and any(packed in name for packed in PACKED)]
        # 3 forms of 3 types: sums, features, causal with a gate and without.
        assert len(tiled) == 3 * 3 * 4
        for name, text in tiled:
            assert text.count("LDG.E.128") >= 4, (chip, name)
            if "chunk_sums" not in name:
                assert "STG.E.128" in text, (chip, name)
