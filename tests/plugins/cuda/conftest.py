"""Fixtures: the kernels' executors, and the comparison with float64."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

import pytest
import torch

from tests.op_calls import Call
from tests.plugins.cuda.executors import BUILT, Device, Emulation, Executor, Headers, assert_matches


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the emulation to `make test-all`: it has to be compiled first, and sanitizers slow each call down."""
    for item in items:
        if isinstance(item, pytest.Function) and "emulation" in item.fixturenames:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def emulation() -> Iterator[Emulation]:
    """The emulation, built if it is missing or out of date, and kept for later runs."""
    headers = Headers.find()
    if headers is None or shutil.which("g++") is None:
        pytest.skip("needs g++ and the headers of CUDA, TensorRT and ONNX Runtime: set CUDA_HOME, run `make setup`")
    BUILT.mkdir(parents=True, exist_ok=True)
    emulation = Emulation(BUILT)
    emulation.build(headers)
    yield emulation
    emulation.close()


@pytest.fixture(params=[pytest.param("emulated", marks=pytest.mark.slow), pytest.param("gpu", marks=pytest.mark.gpu)])
def kernels(request: pytest.FixtureRequest) -> Executor:
    """Each of the two executors in turn."""
    if request.param == "emulated":
        return request.getfixturevalue("emulation")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device is here")
    return Device()


@pytest.fixture
def check(kernels: Executor) -> Callable[..., None]:
    """Compare cases with float64."""
    return lambda *cases: assert_matches(kernels, *map(Call, cases))
