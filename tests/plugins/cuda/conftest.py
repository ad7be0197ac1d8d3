"""The kernels' executors, and the comparison with float64."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable

import pytest
import torch

from tests.plugins.cuda.cases import Call
from tests.plugins.cuda.comparison import assert_matches
from tests.plugins.cuda.executors import Device, Emulation, Executor, Headers


@pytest.fixture(scope="session")
def emulation(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Emulation:
    """Built once for all processes of a test run."""
    headers = Headers.find()
    if headers is None or shutil.which("g++") is None:
        pytest.skip("needs g++ and the headers of CUDA, TensorRT and ONNX Runtime: set CUDA_HOME, run `make setup`")
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "cuda_emulation"
    folder.mkdir(exist_ok=True)
    emulation = Emulation(folder)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not emulation.is_built:
            emulation.build(headers)
    return emulation


@pytest.fixture(params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def kernels(request: pytest.FixtureRequest) -> Executor:
    """Both executors in turn."""
    if request.param == "emulated":
        return request.getfixturevalue("emulation")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device is here")
    return Device()


@pytest.fixture
def check(kernels: Executor) -> Callable[..., None]:
    """Compare cases with float64."""
    return lambda *cases: assert_matches(kernels, *map(Call, cases))
