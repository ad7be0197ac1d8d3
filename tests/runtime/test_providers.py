"""The execution providers of a session are those that were asked for, or none is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnxruntime
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import EPFail

import pom_export
from pom_export.errors import InputError, MissingDependencyError
from tests.streaming_graphs import running_sum_model

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
# ONNX Runtime knows it, but this one was built without it.
ABSENT = next(name for name in onnxruntime.get_all_providers() if name not in onnxruntime.get_available_providers())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return running_sum_model(tmp_path_factory.mktemp("providers") / "m.onnx")


@pytest.mark.parametrize("providers", [CPU, [CPU], (CPU,), [(CPU, {})], None, []])
def test_what_is_there_is_used(model: Path, providers: Any) -> None:
    session = pom_export.inference_session(model, providers)
    asked = [providers] if isinstance(providers, str) else [p if isinstance(p, str) else p[0] for p in providers or ()]
    assert {*asked, CPU} == {*session.get_providers()}


@pytest.mark.parametrize("name", [ABSENT, "NoSuchExecutionProvider"])
@pytest.mark.parametrize("kernels", [True, False])
def test_what_is_not_there_is_refused_though_another_is(
    model: Path, name: str, kernels: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    for providers in (name, [name], [name, CPU], [CPU, name], [(name, {"device_id": 0}), CPU]):
        with pytest.raises(InputError) as error:
            pom_export.inference_session(model, providers, kernels=kernels)
        assert error.value.what == (
            f"the execution provider {name} is not in ONNX Runtime {onnxruntime.__version__}, "
            f"which has {', '.join(onnxruntime.get_available_providers())}"
        )
    assert capfd.readouterr() == ("", "")


@pytest.mark.filterwarnings("ignore:Specified provider:UserWarning")
def test_what_could_not_be_loaded_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said to be there, but it is not: ONNX Runtime goes on without it, as where a library of CUDA's is missing."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [ABSENT, CPU])
    with pytest.raises(
        MissingDependencyError, match=f"could not load the execution provider {ABSENT}, and would use only {CPU}"
    ):
        pom_export.inference_session(model, [ABSENT, CPU], kernels=False)


@pytest.mark.filterwarnings("ignore:Specified provider:UserWarning")
def test_a_name_that_onnxruntime_does_not_know_runs_nowhere(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime 1.22 prints that and runs the model on the CPU."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["NoSuchExecutionProvider", CPU])
    with pytest.raises(InputError, match=r"cannot load m\.onnx|could not load the execution provider NoSuch"):
        pom_export.inference_session(model, "NoSuchExecutionProvider")


def test_a_provider_that_fails_later_is_not_replaced(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = pom_export.inference_session(model)

    of_session = session._sess

    class Failing:
        def __getattr__(self, name: str) -> Any:
            return getattr(of_session, name)

        def run(self, *_: Any) -> NoReturn:
            raise EPFail("the device is lost")

    monkeypatch.setattr(session, "_sess", Failing())
    feed = {value.name: np.zeros([1] * len(value.shape)) for value in session.get_inputs()}
    with pytest.raises(EPFail, match="the device is lost"):
        session.run(None, feed)


@pytest.mark.parametrize(
    ("providers", "message"),
    [
        ({CPU}, "providers is a set"),
        (5, "providers is an int"),
        ([None], "an execution provider is None"),
        ((CUDA, {"device_id": 0}), r"an execution provider is \{'device_id': 0\}"),
        ([(CPU, 3)], r"an execution provider is \('CPUExecutionProvider', 3\)"),
    ],
)
def test_another_form_is_refused(model: Path, providers: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pom_export.inference_session(model, providers)
