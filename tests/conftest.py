"""Fixtures and hooks that all tests share."""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import signal
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before NumPy is loaded: on a busy machine two threads take 500 times as long for the product of two small vectors.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import numpy.typing as npt
import pytest
import torch

from pom_export import interrupts
from pom_export.errors import MissingDependencyError
from pom_export.runtime.library import plugin_library
from tests import kept_traces, session_threads, torch_tables

# Test tensors are small: on a shared machine, several threads would only wait for each other.
torch.set_num_threads(1)
session_threads.keep_to_one()
torch_tables.keep()
kept_traces.keep()

# Reasons to skip in CI too: no GPU, no full TensorRT, and whatever depends on the machine or the user.
MAY_SKIP_IN_CI = {"gpu", "tensorrt", "machine"}


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes by their parameter, for pytest-xdist refuses tests whose names differ between processes.

    The output of a compressor or a pickler may.
    """
    return argname if isinstance(val, bytes) else None


def pytest_collection_finish() -> None:
    """Let the collector leave alone what is imported and collected: it would look at a million objects each time."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Seed the random generators, so that a test's numbers do not depend on the tests before it."""
    torch.manual_seed(0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail in CI instead of skipping: whatever CI lacks is an undeclared install step."""
    report = yield
    if os.environ.get("CI") and report.skipped and not MAY_SKIP_IN_CI & {mark.name for mark in item.iter_markers()}:
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def library() -> Path:
    """The plugin library."""
    try:
        return plugin_library()
    except MissingDependencyError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def tensorrt_rtx(request: pytest.FixtureRequest) -> None:
    """Require TensorRT for RTX and our plugin."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx is not installed")
    request.getfixturevalue("library")


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture
def listening() -> Iterator[None]:
    """Let signals end a command as they do on the command line."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    interrupts.listen()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    interrupts._State.received, interrupts._State.held = None, 0


@dataclass(frozen=True)
class GoldenCase:
    """One case computed by the official code: a checkpoint, its hyper-parameters, inputs and expected outputs."""

    folder: Path
    config: dict[str, Any]
    arrays: dict[str, npt.NDArray[Any]]

    @property
    def checkpoint(self) -> Path:
        return next(self.folder.glob("checkpoint.*"))

    @property
    def positions(self) -> npt.NDArray[Any] | None:
        """Positions (N) of a rotary mixer, or its rows and columns (N, 2)."""
        return self.arrays.get("positions", self.arrays.get("positions_hw"))


GOLDEN_FOLDERS = sorted((Path(__file__).parent / "data" / "golden").iterdir())
_WHOLE_MODELS = ("gpt", "jit")


def _read(folder: Path) -> GoldenCase:
    with np.load(folder / "io.npz") as archive:
        return GoldenCase(folder, json.loads((folder / "config.json").read_text()), dict(archive))


@pytest.fixture(
    params=[f for f in GOLDEN_FOLDERS if not f.name.startswith(_WHOLE_MODELS)], ids=lambda folder: folder.name
)
def golden(request: pytest.FixtureRequest) -> GoldenCase:
    """Every golden case of a bare mixer."""
    return _read(request.param)


@pytest.fixture(params=[f for f in GOLDEN_FOLDERS if f.name.startswith("gpt")], ids=lambda folder: folder.name)
def golden_gpt(request: pytest.FixtureRequest) -> GoldenCase:
    """Every golden case of the public language model."""
    return _read(request.param)


@pytest.fixture(scope="session")
def golden_jit() -> GoldenCase:
    """The golden case of the public image model: a trainer's checkpoint with two averages of the weights."""
    return _read(next(f for f in GOLDEN_FOLDERS if f.name == "jit"))
