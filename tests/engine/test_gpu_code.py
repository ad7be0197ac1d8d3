"""Which GPUs a library has kernels for, and that an engine for any other GPU is refused."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import pom_export
from pom_export.engine import build_plan, targets
from pom_export.engine.backend import TENSORRT_RTX
from pom_export.engine.gpu_code import GpuCode, check_gpu_code, read_gpu_code
from pom_export.errors import InputError
from pom_export.runtime.library import rtx_soname_library
from tools import cuobjdump

CHECKPOINT = Path(__file__).parents[1] / "data" / "golden" / "v2_heads" / "checkpoint.pt"
# The header of machine code or PTX in a fat binary, up to the chip.
PART = re.compile(rb"([\x01\x02]\x00\x01\x01[\x40\x50\x70]\x00{3}.{20})(.\x00{3})", re.DOTALL)


@pytest.mark.parametrize(
    ("code", "chips", "others"),
    [
        (GpuCode(86, is_ptx=False), [86, 89], [75, 80, 87, 90, 120]),
        (GpuCode(87, is_ptx=False), [87], [86, 89]),
        (GpuCode(120, is_ptx=False), [120, 121], [89, 110]),
        (GpuCode(80, is_ptx=True), [80, 86, 87, 90, 121], [75]),
        (GpuCode(90, False, "a"), [90], [89, 100]),
        (GpuCode(90, True, "a"), [90], [89, 100]),
        (GpuCode(100, True, "f"), [100, 103], [90, 120]),
    ],
    ids=str,
)
def test_which_chips_can_use_code(code: GpuCode, chips: list[int], others: list[int]) -> None:
    assert all(map(code.runs_on, chips))
    assert not any(map(code.runs_on, others))


def test_the_plugin_library_holds_what_cuobjdump_lists(library: Path) -> None:
    if cuobjdump.find() is None:
        pytest.skip("cuobjdump is not installed")
    held = read_gpu_code(library)

    assert {f"sm_{code.chip}" for code in held if not code.is_ptx} == cuobjdump.chips(library) != set()
    assert {f"sm_{code.chip}" for code in held if code.is_ptx} == cuobjdump.ptx(library) != set()


@pytest.mark.slow
@pytest.mark.machine
@pytest.mark.parametrize("specific", ["", "a", "f"])
def test_code_for_a_chip_or_a_family_alone_is_distinguished(tmp_path: Path, specific: str) -> None:
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None:
        pytest.skip("nvcc is not installed")
    (tmp_path / "kernel.cu").write_text("__global__ void kernel(float* x) { *x = 1; }")
    made_of = f"arch=compute_100{specific},code=[sm_100{specific},compute_100{specific}]"
    command = [nvcc, f"--generate-code={made_of}", "-c", "-o", "kernel.o", "kernel.cu"]
    subprocess.run(command, cwd=tmp_path, check=True)

    expected = [GpuCode(100, is_ptx, specific) for is_ptx in (False, True)]
    assert read_gpu_code(tmp_path / "kernel.o") == expected


def test_a_file_without_gpu_code_is_refused(tmp_path: Path, library: Path) -> None:
    (tmp_path / "text.so").write_text("text" * 100)
    (tmp_path / "cut.so").write_bytes(library.read_bytes()[: library.stat().st_size // 2])
    for file in ("text.so", "cut.so"):
        with pytest.raises(InputError, match=f"the GPU code in .*{file} cannot be read"):
            read_gpu_code(tmp_path / file)
    with pytest.raises(InputError, match="contains no GPU code"):
        check_gpu_code(rtx_soname_library(), [86], progress=print)


@pytest.mark.parametrize(("at", "length"), [(6, 10), (20, 12)], ids=["binary", "part"])
def test_a_header_without_a_size_does_not_hang(at: int, length: int, tmp_path: Path, library: Path) -> None:
    content = bytearray(library.read_bytes())
    sizes = content.rindex(b"\x50\xed\x55\xba") + at
    content[sizes : sizes + length] = bytes(length)
    (tmp_path / "damaged.so").write_bytes(content)
    with pytest.raises(InputError, match="cannot be read: a header has a size of 0 bytes"):
        read_gpu_code(tmp_path / "damaged.so")


def relabelled(library: Path, chips: Mapping[int, int], copy: Path) -> Path:
    """Write a library whose code for some chips says that it is for others."""

    def changed(match: re.Match[bytes]) -> bytes:
        return match[1] + chips.get(match[2][0], match[2][0]).to_bytes(4, "little")

    copy.write_bytes(PART.sub(changed, library.read_bytes()))
    return copy


@pytest.mark.usefixtures("tensorrt_rtx")
def test_an_engine_for_a_gpu_that_the_plugin_has_no_code_for(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pom_export.export(CHECKPOINT, tmp_path / "m.onnx")
    few = relabelled(library, {code.chip: 120 for code in read_gpu_code(library)}, tmp_path / "few.so")
    monkeypatch.setenv("POM_PLUGIN_LIBRARY", str(few))
    options: dict[str, Any] = {"backend": TENSORRT_RTX, "targets": ["sm80", "sm120", "sm86"]}

    expected = r"few\.so has no code for sm80, sm86, only sm_120, PTX of compute_120\. Compile it"
    with pytest.raises(InputError, match=expected):
        pom_export.build_engine(tmp_path / "m.onnx", tmp_path / "e", **options)
    assert {path.name for path in tmp_path.iterdir()} == {"m.onnx", "few.so"}
    monkeypatch.setattr(targets, "gpu_present", lambda: True)
    monkeypatch.setattr(build_plan, "gpu_capability", lambda: 75)
    with pytest.raises(InputError, match=r"few\.so has no code for sm75, only"):
        pom_export.build_engine(tmp_path / "m.onnx", tmp_path / "e", backend=TENSORRT_RTX)
    info = pom_export.build_engine(tmp_path / "m.onnx", tmp_path / "e", use_plugin=False, **options)
    assert info.plugin_sha256 is None


def test_ptx_is_reported_as_compiled_by_the_driver(library: Path) -> None:
    said: list[str] = []
    check_gpu_code(library, [code.chip for code in read_gpu_code(library) if not code.is_ptx], said.append)
    assert said == []
    check_gpu_code(library, [199], said.append)
    assert said == ["on sm199 the driver compiles the plugin's PTX at the first use"]
