"""Where the kernels run: compiled by g++ on the CPU, or in the plugin library on a GPU."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from pom_export import contract
from pom_export.runtime.cuda import CudaCall
from tests.op_calls import Array, Call
from tests.plugins.cuda.compiling import Compiler
from tests.plugins.cuda.serving import Server
from tools.fetch_headers import HEADER_SETS

ROOT = Path(__file__).resolve().parents[3]
PLUGINS = ROOT / "plugins"
CUDA, TENSORRT, ONNXRUNTIME = (PLUGINS / name for name in ("cuda", "tensorrt", "onnxruntime"))
DOUBLE = Path(__file__).parent / "emulation"
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-attributes", "-Wno-unknown-pragmas"]
FLAGS = ["-std=c++17", "-Og", "-fPIC", "-DORT_API_MANUAL_INIT", *WARNINGS]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
BUILT = ROOT / "build" / "cuda-emulation"
GUARD_BYTES = 64 * 1024
GUARD = 0x5A
POISON = 0xFF  # a NaN in every float type


# The numbers of pom::DataType.
TYPES = {"float32": 0, "float16": 1, "bfloat16": 2, "bool": 3}


class Executor(ABC):
    @abstractmethod
    def outputs(self, *calls: Call) -> list[list[Array]]:
        """Return each call's outputs, the same bit for bit however often and in whatever order they are computed."""

    def run(self, *calls: Call) -> list[Array]:
        """Return each call's first output, y or z."""
        return [first for first, *_ in self.outputs(*calls)]


def assert_matches(kernels: Executor, *calls: Call) -> None:
    """Compare every element of the calls' outputs with float64."""
    for call, outputs in zip(calls, kernels.outputs(*calls), strict=True):
        call.check(outputs)


def message_of(call: Call) -> bytes:
    """Return a call in the form that run_aggregate and run_plugin read, see emulation/call.h."""
    case = call.case
    mask_rows = -1 if call.mask is None else call.mask.shape[0]
    rotation_rows = call.tables[0].shape[0] if call.tables else -1
    tables_type = "float32" if case.rotation == "none" else case.table_type
    types = [TYPES[name] for name in (case.dtype, case.coefficients, case.mask_type, tables_type)]
    words = [case.form, case.mode, case.rotary_blocks, case.epsilon, *case.shape, case.degree]
    words += [mask_rows, rotation_rows, *types, case.shift, case.table_shift, case.skipped_barrier]
    if call.gate is None:
        words += [contract.GATE_ACTIVATIONS[0], -1, 0, 0]
    else:
        words += [case.gate, *call.gate.shape[1:], TYPES[case.bias]]
    words.append(int(call.past is not None))
    tensors = (call.x, call.gate, call.gate_bias, call.coefficients, call.mask, *call.tables, *(call.past or ()))
    given = [tensor.tobytes() for tensor in tensors if tensor is not None]
    return " ".join(map(str, words)).encode() + b"\n" + b"".join(given)


def cuda_headers() -> Path | None:
    """Return the folder that holds cuda_fp16.h, or None."""
    homes = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    nvcc = shutil.which("nvcc")
    homes += [Path(nvcc).resolve().parents[1]] if nvcc else []
    folders = [home / "include" for home in (*homes, Path("/usr/local/cuda"))]
    return next((folder for folder in folders if (folder / "cuda_fp16.h").is_file()), None)


@dataclass(frozen=True)
class Headers:
    """Folders of the headers that the plugin and the ONNX Runtime op need."""

    cuda: Path
    tensorrt: Path
    onnxruntime: Path

    @classmethod
    def find(cls) -> Headers | None:
        """Return the folders if all headers are available, else None."""
        fetched = {headers.name: headers.locate() for headers in HEADER_SETS}
        cuda, tensorrt, onnxruntime = cuda_headers(), fetched["tensorrt"], fetched["onnxruntime"]
        return cls(cuda, tensorrt, onnxruntime) if cuda and tensorrt and onnxruntime else None


@dataclass(frozen=True)
class Emulation(Executor):
    """The kernels and the plugin over a double of the CUDA runtime, with address and undefined-behaviour sanitizers.

    Attributes:
        folder: the build's folder.
        program: "run_aggregate", which calls the kernels' launcher, or "run_plugin", which runs a plugin's whole life.
    """

    folder: Path
    program: str = "run_aggregate"
    _servers: dict[str, Server] = field(default_factory=dict)

    @property
    def plugin(self) -> Emulation:
        """The other program of the same build."""
        return replace(self, program="run_plugin")

    @property
    def op_library(self) -> Path:
        """The library for ONNX Runtime of the same build."""
        return self.folder / "libpom_emulated.so"

    def build(self, headers: Headers) -> None:
        """Build with g++ whatever is missing or older than its sources; one process at a time."""
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._build(headers)

    def _build(self, headers: Headers) -> None:
        launcher = [source for source in sorted(CUDA.glob("*.cpp")) if source.name != "c_api.cpp"]
        units = {
            "kernels": sorted(CUDA.glob("*.cu")),
            "plugin": [
                *sorted(TENSORRT.glob("*.cpp")),
                *(DOUBLE / f"{name}.cpp" for name in ("faults", "misuse", "run_plugin", "tensorrt_double")),
            ],
            "op": [
                DOUBLE / "onnxruntime_double.cpp",
                *(
                    ONNXRUNTIME / f"{name}.cpp"
                    for name in ("attributes", "cuda_kernel", "inputs", "node", "op", "sizes")
                ),
            ],
            "launcher": [*launcher, PLUGINS / "aggregate.cpp", DOUBLE / "cuda_emulation.cpp", DOUBLE / "call.cpp"],
            "aggregate": [DOUBLE / "run_aggregate.cpp"],
        }
        own = {"run_aggregate": "aggregate", "run_plugin": "plugin", self.op_library.name: "op"}
        includes = [f"-I{folder}" for folder in (CUDA, TENSORRT, PLUGINS, PLUGINS / "include", DOUBLE)]
        includes += [option for folder in astuple(headers) for option in ("-isystem", str(folder))]

        compiler = Compiler(self.folder, tuple(SANITIZERS), (*FLAGS, *includes))
        made = compiler.compile(units)
        for product, unit in own.items():
            kind = ["-shared"] if product == self.op_library.name else []
            compiler.link([made[name] for name in ("kernels", "launcher", unit)], self.folder / product, *kind)

    def outputs(self, *calls: Call) -> list[list[Array]]:
        """Run each call with both orders of blocks and threads, which must agree bit for bit."""
        server = self._servers.setdefault(self.program, Server(self.folder / self.program, self._environment()))
        made = [call.outputs for call in calls]
        for call, outputs in zip(calls, made, strict=True):
            sent, offset = server.run(message_of(call), sum(output.nbytes for output in outputs)), 0
            for output in outputs:
                output[...] = np.frombuffer(sent, output.dtype, output.size, offset).reshape(output.shape)
                offset += output.nbytes
        return made

    @staticmethod
    def _environment() -> dict[str, str]:
        # Leak detection would need ptrace; run_plugin counts allocations itself.
        return os.environ | {"ASAN_OPTIONS": "detect_leaks=0"}

    def close(self) -> None:
        """End the programs that run calls."""
        for server in self._servers.values():
            server.close()

    def send(self, *calls: Call, option: str) -> bytes:
        """Send calls to a process of its own, with an option of the program's, and return its output."""
        command, message = [self.folder / self.program, option], b"".join(map(message_of, calls))
        done = subprocess.run(command, input=message, capture_output=True, check=False, env=self._environment())
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout


class Device(Executor):
    """The kernels of the plugin library, on the CUDA device."""

    def outputs(self, *calls: Call) -> list[list[Array]]:
        """Run each call twice, in poisoned memory between guards; both runs must agree bit for bit."""
        return [self._run(call) for call in calls]

    def _run(self, call: Call) -> list[Array]:
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
                *((name, past, 0) for name, past in zip(contract.STATE_INPUTS, call.past or (), strict=False)),
            )
        }
        attributes = {name: value for name, value in case.attributes().items() if name != "stateful"}
        made = [_made(tensors, attributes, call) for _ in range(2)]
        for first, second in zip(*made, strict=True):
            assert first.tobytes() == second.tobytes()
        return made[0]


def _made(tensors: dict[str, torch.Tensor | None], attributes: dict[str, object], call: Call) -> list[Array]:
    made = call.outputs
    shifts = (call.case.shift, 0, 0)
    outputs = [GuardedBytes(output.nbytes, shift) for output, shift in zip(made, shifts, strict=False)]
    planned = CudaCall(**tensors, **attributes)
    workspace = GuardedBytes(planned.workspace_bytes, 0)
    names = ("output", *contract.STATE_OUTPUTS)
    given = {name: output.data for name, output in zip(names, outputs, strict=False)}
    CudaCall(**tensors, **attributes, **given, workspace=workspace.data).enqueue()
    torch.cuda.synchronize()
    for buffer in (*outputs, workspace):
        assert buffer.guards_hold(), f"a write outside a buffer: {call.case}"
    for output, buffer in zip(made, outputs, strict=True):
        output[...] = np.frombuffer(buffer.data.cpu().numpy().tobytes(), output.dtype).reshape(output.shape)
    return made


class GuardedBytes:
    """Device memory that is NaN in every type, between guard bytes that nothing may change."""

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
    dtype = getattr(torch, array.dtype.name)
    raw = torch.zeros(shift + array.nbytes, dtype=torch.uint8, device="cuda")
    raw[shift:] = torch.frombuffer(bytearray(array.tobytes()), dtype=torch.uint8) if array.nbytes else 0
    whole = torch.empty(0, dtype=dtype, device="cuda")
    whole.set_(raw.untyped_storage(), shift // array.itemsize, array.shape)
    return whole
