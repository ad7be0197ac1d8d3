"""Packages for Triton's onnxruntime backend: the state that the server carries, and its numbers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import pom_export
from pom_export import contract
from pom_export.errors import InputError, ParityError
from pom_export.files import sha256_of
from pom_export.graph.exported_model import read_model
from pom_export.packaging.triton.states import carried_states, check_carried, write_carried
from pom_export.runtime.streaming.interface import StatefulModel, read_stateful
from tests import op_calls
from tests.streaming_graphs import running_sum_model

ATTRIBUTES = {
    "form": contract.POWER,
    "degree": 0,
    "mode": "causal",
    "rotary_blocks": 1,
    "epsilon": 0.0,
    "stateful": 0,
    "plugin_version": contract.PLUGIN_VERSION,
    "plugin_namespace": contract.PLUGIN_NAMESPACE,
}


@pytest.fixture
def original(tmp_path: Path) -> StatefulModel:
    return read_stateful(running_sum_model(tmp_path / "sums.onnx"))


@pytest.mark.parametrize("options", [{}, {"mask": True}, {"ids": False}])
def test_a_package_has_the_state_in_its_configuration(options: dict[str, bool], tmp_path: Path) -> None:
    model = running_sum_model(tmp_path / "sums.onnx", **options)
    result = pom_export.package(model, tmp_path / "served", target="triton", backend="onnxruntime")
    assert "gives the numbers of sums.onnx in ONNX Runtime, in 7 calls" in result.checked[0]
    inside = tmp_path / "served" / "models" / "sums"
    config = (inside / "config.pbtxt").read_text()
    assert re.findall(r'input_name: "(.*)"\n +output_name: "(.*)"\n +data_type: (\w+)\n +dims: (.*)', config) == [
        (f"past.{place}.{name}", f"present.{place}.{name}", *kind)
        for place, (name, kind) in enumerate(_states(read_stateful(model)))
    ]
    served = read_model(inside / "1" / "model.onnx")
    assert not served.stateful
    assert [part.spec.axes[0] for part in carried_states(served)] == ["batch"] * len(carried_states(served))


def _states(model: StatefulModel) -> list[tuple[str, tuple[str, str]]]:
    kinds = {"past_length": ("TYPE_INT64", "[ 1 ]"), "past_state": ("TYPE_FP32", "[ 1, 2, 8 ]")}
    return [(part.spec.name.removeprefix("past_"), kinds[part.spec.name]) for part in model.past]


def test_a_package_has_our_library_if_the_file_has_our_ops(tmp_path: Path) -> None:
    feeds = {"x": np.zeros((1, 1, 8), np.float32), "coefficients": np.zeros((8, 2), np.float32)}
    model = op_calls.model(feeds, ATTRIBUTES)
    model.graph.output[0].type.CopyFrom(model.graph.input[0].type)
    onnx.save(model, tmp_path / "mixer.onnx")
    served = tmp_path / "served"
    result = pom_export.package(tmp_path / "mixer.onnx", served, target="triton", backend="onnxruntime")
    library = "models/mixer/1/libpom_onnxruntime.so"
    assert library in result.files
    config = (served / "models" / "mixer" / "config.pbtxt").read_text()
    assert f'op_library_filename: [ "{library}" ]' in config
    assert "1.21 or newer" in (served / "README.md").read_text()
    done = subprocess.run([sys.executable, served / "preflight.py"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    (served / library).write_bytes(b"not a library")
    edited = json.loads((served / "manifest.json").read_text())
    edited["files"][library]["sha256"] = sha256_of(served / library)
    (served / "manifest.json").write_text(json.dumps(edited))
    done = subprocess.run([sys.executable, served / "preflight.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "libpom_onnxruntime.so cannot be loaded" in done.stderr


def test_a_file_without_a_state_is_batched(tmp_path: Path) -> None:
    model = running_sum_model(tmp_path / "sums.onnx", kind=None)
    result = pom_export.package(model, tmp_path / "served", target="triton", backend="onnxruntime")
    config = (tmp_path / "served" / "models" / "sums" / "config.pbtxt").read_text()
    assert "dynamic_batching {" in config
    assert "sequence_batching" not in config
    assert "model_operations" not in config
    assert not [name for name in result.files if name.endswith(".so")]


def test_the_python_backend_refuses_a_state_that_servers_carry(original: StatefulModel, tmp_path: Path) -> None:
    write_carried(original, tmp_path / "n.onnx")
    with pytest.raises(InputError, match="this backend carries none"):
        pom_export.package(tmp_path / "n.onnx", tmp_path / "served", target="triton")
    again = pom_export.package(tmp_path / "n.onnx", tmp_path / "served", target="triton", backend="onnxruntime")
    assert again.target == "triton"
    assert "state {" in (tmp_path / "served" / "models" / "n" / "config.pbtxt").read_text()


def test_other_numbers_are_found(original: StatefulModel, tmp_path: Path) -> None:
    rewritten = write_carried(original, tmp_path / "n.onnx")
    assert "in 7 calls" in check_carried(original, rewritten)
    loaded = onnx.load(rewritten.path)
    weight = next(each for each in loaded.graph.initializer if each.name == "W")
    weight.raw_data = onnx.numpy_helper.to_array(weight)[::-1].tobytes()
    onnx.save(loaded, rewritten.path)
    with pytest.raises(ParityError, match=r"with its state's new interface, logits of sums.onnx differs"):
        check_carried(original, read_model(rewritten.path))


def test_a_state_that_was_renamed_since_is_refused(original: StatefulModel, tmp_path: Path) -> None:
    rewritten = write_carried(original, tmp_path / "n.onnx")
    loaded = onnx.load(rewritten.path)
    for prop in loaded.metadata_props:
        if prop.key == "pom_export.server_states":
            prop.value = prop.value.replace("present.0", "present.9")
    onnx.save(loaded, rewritten.path)
    with pytest.raises(InputError, match="lacks inputs or outputs of its state"):
        carried_states(read_model(rewritten.path))


def test_pairs_that_do_not_sort_alike_are_refused(original: StatefulModel, tmp_path: Path) -> None:
    rewritten = write_carried(original, tmp_path / "n.onnx")
    loaded = onnx.load(rewritten.path)
    (prop,) = [each for each in loaded.metadata_props if each.key == "pom_export.server_states"]
    prop.value = re.sub(r"present\.(\d)\.(\w+)(.*)present\.(\d)\.(\w+)", r"present.\4.\5\3present.\1.\2", prop.value)
    onnx.save(loaded, rewritten.path)
    with pytest.raises(InputError, match="not in the form that a server carries"):
        carried_states(read_model(rewritten.path))
