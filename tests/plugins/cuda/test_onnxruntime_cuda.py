"""ONNX Runtime's CUDA kernels.

The real ONNX Runtime runs the same adapter, as a kernel of its CPU provider, over emulated CUDA kernels.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from pom_export import contract
from pom_export.runtime.library import custom_ops_library
from tests import op_calls
from tests.op_calls import FLOATS, Array, Call, Case
from tests.plugins.cuda.executors import DOUBLE, Emulation, Executor, assert_matches

SHAPES = [(2, 37, 6), (3, 130, 64), (1, 2500, 24), (0, 5, 8), (3, 0, 8)]
CUDA_PROVIDER = "CUDAExecutionProvider"


class EmulatedSessions(Executor):
    """One session per call, in a process that has the address sanitizer from its start."""

    def __init__(self, library: Path, folder: Path) -> None:
        self.library, self.folder = library, folder

    def outputs(self, *calls: Call) -> list[list[Array]]:
        for number, call in enumerate(calls):
            feeds = call.feeds()
            stem = self.folder / f"{number:04}"
            stem.with_suffix(".onnx").write_bytes(op_calls.model(feeds, call.case.attributes()).SerializeToString())
            np.savez(stem, **{name: a.astype(np.float32) if a.dtype.kind == "V" else a for name, a in feeds.items()})
        sanitizers = [
            subprocess.run(["g++", f"-print-file-name=lib{name}.so"], capture_output=True, text=True, check=True).stdout
            for name in ("asan", "ubsan")
        ]
        environment = os.environ | {"LD_PRELOAD": " ".join(sanitizers).replace("\n", " ")}
        environment |= {"ASAN_OPTIONS": "detect_leaks=0"}
        command = [sys.executable, DOUBLE / "run_sessions.py", self.library, self.folder]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return [list(np.load(self.folder / f"{number:04}.made.npz").values()) for number in range(len(calls))]


@pytest.fixture
def sessions(emulation: Emulation, tmp_path: Path) -> EmulatedSessions:
    return EmulatedSessions(emulation.op_library, tmp_path)


def test_every_mode_form_and_type(sessions: EmulatedSessions) -> None:
    cases = [
        Case(mode, dtype, shape, mask="none" if mode == "features" else "same", rotation="float32")
        for mode in contract.MODES
        for dtype in FLOATS
        for shape in SHAPES
    ]
    cases += [Case(mode, "float16", (2, 66, 48), form=contract.PRODUCT) for mode in contract.MODES]
    assert_matches(sessions, *map(Call, cases))


def test_gates(sessions: EmulatedSessions) -> None:
    cases = [
        Case(mode, dtype, (2, 70, 24), mask="bool", gate=activation, gates=gates, rotation_rows=1)
        for mode in ("mean", "causal")
        for dtype in FLOATS
        for activation in contract.GATE_ACTIVATIONS
        for gates in (24, 3)
    ]
    assert_matches(sessions, *map(Call, cases))


def test_states(sessions: EmulatedSessions) -> None:
    cases = [
        Case(mode, dtype, shape, mask=mask, gate=gate, past=3)
        for mode in ("mean", "causal")
        for dtype, mask, gate in (("float32", "none", "none"), ("float16", "ragged", "sigmoid"))
        for shape in ((1, 1, 8), (2, 300, 24), (2, 0, 8), (0, 5, 8))
    ]
    cases += [Case("causal", "float16", (2, 70, 24), rotation="float32", past=3)]
    assert_matches(sessions, *map(Call, cases))


@pytest.mark.gpu
@pytest.mark.skipif(CUDA_PROVIDER not in onnxruntime.get_available_providers(), reason="no onnxruntime-gpu is here")
@pytest.mark.parametrize("past", [None, 3])
@pytest.mark.parametrize("gate", ["none", "sigmoid"])
@pytest.mark.parametrize("mode", ["mean", "causal"])
def test_on_the_device(mode: str, gate: str, past: int | None) -> None:
    case = Case(mode, "float16", (2, 700, 64), mask="bool", gate=gate, past=past)
    call = Call(case)
    feeds = call.feeds()
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(custom_ops_library()))
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    model = op_calls.model(feeds, case.attributes()).SerializeToString()
    made = onnxruntime.InferenceSession(model, options, providers=[CUDA_PROVIDER]).run(None, feeds)

    class Done(Executor):
        def outputs(self, *_: Call) -> list[list[Array]]:
            return [made]

    assert_matches(Done(), call)
