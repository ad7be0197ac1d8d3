"""Where the kernels run: g++'s build of them on the CPU, or the plugin library's on a GPU."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from pom_export.runtime.cuda import CudaCall
from tests.plugins.cuda.cases import Array, Call

ROOT = Path(__file__).resolve().parents[3]
CUDA = ROOT / "plugins" / "cuda"
DOUBLE = Path(__file__).parent / "emulation"
FLAGS = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-attributes", "-Wno-unknown-pragmas"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
GUARD_BYTES = 64 * 1024
GUARD = 0x5A
POISON = 0xFF  # a NaN in every float type


class Executor(Protocol):
    def run(self, *calls: Call) -> list[Array]:
        """Return each call's output, which is the same bit by bit however often and in whatever order it is made."""


def cuda_headers() -> Path | None:
    """Return the folder of cuda_fp16.h, or None."""
    homes = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    nvcc = shutil.which("nvcc")
    homes += [Path(nvcc).resolve().parents[1]] if nvcc else []
    folders = [home / "include" for home in (*homes, Path("/usr/local/cuda"))]
    return next((folder for folder in folders if (folder / "cuda_fp16.h").is_file()), None)


@dataclass(frozen=True)
class Emulation:
    """The kernels and their test double, built with g++ under the address and undefined-behaviour sanitizers."""

    program: Path

    @classmethod
    def build(cls, folder: Path, headers: Path) -> Emulation:
        folders = [f"-I{CUDA}", f"-I{CUDA.parent / 'include'}", f"-I{DOUBLE}", "-isystem", str(headers)]

        def compiled(source: Path) -> Path:
            made = folder / f"{source.name}.o"
            subprocess.run(["g++", *FLAGS, *SANITIZERS, *folders, "-x", "c++", "-c", source, "-o", made], check=True)
            return made

        sources = [source for source in (*CUDA.glob("*.cu"), *CUDA.glob("*.cpp")) if source.name != "c_api.cpp"]
        sources += [ROOT / "plugins" / "aggregate.cpp", *DOUBLE.glob("*.cpp")]
        with ThreadPoolExecutor(2) as pool:
            objects = list(pool.map(compiled, sources))
        program = folder / "run_aggregate"
        subprocess.run(["g++", *SANITIZERS, *objects, "-o", program], check=True)
        return cls(program)

    def run(self, *calls: Call) -> list[Array]:
        """Run each call in both orders of blocks and threads, which must agree bit by bit."""
        environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=0"}  # leaks need ptrace, and kernels allocate nothing
        sent = b"".join(call.message() for call in calls)
        done = subprocess.run([self.program], input=sent, capture_output=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr.decode()
        outputs, offset = [], 0
        for call in calls:
            shape = call.output_shape
            y = np.frombuffer(done.stdout, call.x.dtype, int(np.prod(shape)), offset).reshape(shape)
            outputs.append(y)
            offset += y.nbytes
        assert offset == len(done.stdout)
        return outputs


class Device:
    """The kernels that the plugin library has, on the CUDA device."""

    def run(self, *calls: Call) -> list[Array]:
        """Run each call twice, into poisoned memory between guards; both must agree bit by bit."""
        return [self._run(call) for call in calls]

    def _run(self, call: Call) -> Array:
        case = call.case
        tensors = {
            name: None if array is None else _on_device(array, shift)
            for name, array, shift in (
                ("x", call.x, case.shift),
                ("coefficients", call.coefficients, 0),
                ("mask", call.mask, 0),
                ("gate", call.gate, case.shift),
                ("gate_bias", call.gate_bias, 0),
                *((name, table, case.table_shift) for name, table in zip(("cos", "sin"), call.tables, strict=False)),
            )
        }
        attributes = {
            "mode": case.mode,
            "form": case.form,
            "degree": case.degree if call.coefficients is None else 0,
            "rotary_blocks": case.rotary_blocks,
            "epsilon": case.epsilon,
            "gate_activation": None if call.gate is None else case.gate,
        }
        outputs = [_made(tensors, attributes, call) for _ in range(2)]
        assert outputs[0].tobytes() == outputs[1].tobytes()
        return outputs[0]


def _made(tensors: dict[str, torch.Tensor | None], attributes: dict[str, object], call: Call) -> Array:
    output = GuardedBytes(call.output_bytes, call.case.shift)
    planned = CudaCall(**tensors, **attributes)
    workspace = GuardedBytes(planned.workspace_bytes, 0)
    CudaCall(**tensors, **attributes, output=output.data, workspace=workspace.data).enqueue()
    torch.cuda.synchronize()
    for buffer in (output, workspace):
        assert buffer.guards_hold(), f"a write outside a buffer: {call.case}"
    return np.frombuffer(output.data.cpu().numpy().tobytes(), call.x.dtype).reshape(call.output_shape)


class GuardedBytes:
    """Device memory that is NaN in every type, between bytes that nothing may change."""

    def __init__(self, size: int, shift: int) -> None:
        self._all = torch.full((2 * GUARD_BYTES + shift + size,), GUARD, dtype=torch.uint8, device="cuda")
        self._bounds = GUARD_BYTES + shift, GUARD_BYTES + shift + size
        self.data = self._all[slice(*self._bounds)]
        self.data.fill_(POISON)

    def guards_hold(self) -> bool:
        first, last = self._bounds
        outside: Iterable[torch.Tensor] = (self._all[:first], self._all[last:])
        return all(bool((part == GUARD).all()) for part in outside)


def _on_device(array: Array, shift: int) -> torch.Tensor:
    """Copy a tensor to the device, `shift` bytes off alignment."""
    types = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "bool": torch.bool}
    raw = torch.zeros(shift + array.nbytes, dtype=torch.uint8, device="cuda")
    raw[shift:] = torch.frombuffer(bytearray(array.tobytes()), dtype=torch.uint8) if array.nbytes else 0
    dtype = types[array.dtype.name]
    whole = torch.empty(0, dtype=dtype, device="cuda")
    whole.set_(raw.untyped_storage(), shift // array.itemsize, array.shape)
    return whole
