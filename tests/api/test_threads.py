"""Calls from several threads of a process: each gives the right result, and the process is left as it was."""

from __future__ import annotations

import gc
import logging
import random
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.modules import transformer

import pom_export
from pom_export import PolynomialMixer


def process() -> dict[str, Any]:
    """Return the process-wide state that an export changes while it runs."""
    return {
        "stderr": sys.stderr,
        "filters": list(warnings.filters),
        "collector": gc.isenabled(),
        "logs": (logging.root.manager.disable, [handler.filters for handler in logging.root.handlers]),
        "levels": {name: logging.getLogger(name).level for name in ("torch", "onnxscript", "onnx_ir")},
        "default type": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "autocast": (torch.autocast.__enter__, torch.autocast.__exit__),
        "transformer": transformer._detect_is_causal_mask,
        "flag": torch.onnx._flags.PREFER_DEFERRED_RUNTIME_ASSERTS_OVER_GUARDS,
        "random": (random.getstate(), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()),
    }


def test_two_threads_export_and_run(tmp_path: Path) -> None:
    torch.manual_seed(0)
    models = [PolynomialMixer(8, 2, 1).eval(), PolynomialMixer(12, 3, 2).eval()]
    both = threading.Barrier(2)

    def export_and_run(number: int) -> tuple[Any, Any]:
        model, file = models[number], tmp_path / f"{number}.onnx"
        both.wait(60)
        pom_export.export(model, file, mask="causal")
        x = np.random.default_rng(number).normal(size=(2, 5, model.config.dim)).astype(np.float32)
        (y,) = pom_export.inference_session(file).run(None, {"x": x})
        with torch.no_grad():
            return y, model(torch.from_numpy(x), causal=True).numpy()

    pom_export.export(models[0], tmp_path / "first.onnx")  # what torch creates once per process
    before = process()
    with ThreadPoolExecutor(2) as pool:
        for actual, expected in pool.map(export_and_run, range(2)):
            np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    assert process() == before


def test_sessions_of_two_threads_agree(tmp_path: Path) -> None:
    torch.manual_seed(0)
    pom_export.export(PolynomialMixer(8, 2, 1), tmp_path / "m.onnx")
    x = np.random.default_rng(0).normal(size=(1, 7, 8)).astype(np.float32)
    both = threading.Barrier(2)

    def run(_: int) -> Any:
        both.wait(60)
        return pom_export.inference_session(tmp_path / "m.onnx").run(None, {"x": x})[0]

    before = process()
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(run, range(2))
    np.testing.assert_array_equal(one, other)
    assert process() == before
