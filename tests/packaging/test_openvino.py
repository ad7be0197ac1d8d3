"""`package --for openvino`: what is in the package, run in OpenVINO, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import pom_export
from pom_export.errors import InputError, MissingDependencyError
from tests.exports import claim
from tests.other_runtimes import ROOT, run_with_openvino
from tests.streaming_graphs import running_sum_model

WORDS = 11


def packaged(model: Path) -> Path:
    """Package a model with OpenVINO, run the package's check, and return the folder."""
    folder = model.with_suffix(".package")
    done = run_with_openvino("-m", "pom_export", "package", str(model), "-o", str(folder), "--for", "openvino")
    assert done.returncode == 0, done.stderr
    done = run_with_openvino(str(folder / "preflight.py"))
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return folder


def test_without_openvino_it_says_what_to_install(tmp_path: Path) -> None:
    model = running_sum_model(tmp_path / "m.onnx")
    with pytest.raises(MissingDependencyError, match="OpenVINO is not installed") as caught:
        pom_export.package(model, tmp_path / "package", target="openvino")
    assert "pip install 'openvino" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_a_stream_with_another_input_is_refused(tmp_path: Path) -> None:
    model = running_sum_model(tmp_path / "m.onnx", positions=True)
    with pytest.raises(InputError, match="has the input positions, which cannot be checked"):
        pom_export.package(model, tmp_path / "package", target="openvino")


def test_options_of_other_targets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`tokenizer` does not apply to `target=openvino`"):
        pom_export.package("m.onnx", tmp_path / "package", target="openvino", tokenizer="bytes")


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"mask": True}, {"ids": False}, {"attention": True}, {"tokens": 10}],
    ids=["ids", "mask", "vectors", "cache", "positions"],
)
def test_streams(options: dict[str, Any], tmp_path: Path) -> None:
    folder = packaged(running_sum_model(tmp_path / "m.onnx", vocabulary=WORDS, **options))
    files = {file.name for file in folder.iterdir() if file.is_file()}
    assert files == {
        *("README.md", "client.py", "config.json", "loading.py", "manifest.json", "model.bin", "model.xml"),
        *("package_files.py", "preflight.py", "trial.npz"),
    }
    np.savez(tmp_path / "in.npz", input_ids=np.array([[3, WORDS]]))
    if options.get("ids", True):
        done = run_with_openvino(str(folder / "client.py"), str(tmp_path / "in.npz"))
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("input_ids has values from 3 to 11, but must be")
    assert json.loads((folder / "config.json").read_text())["CPU"] == {"INFERENCE_PRECISION_HINT": "f32"}


@pytest.mark.slow
def test_requests_keep_the_state_of_their_rows(tmp_path: Path) -> None:
    """Two requests take turns, one begins anew with other rows, and a call with other rows than the state's fails."""
    model = running_sum_model(tmp_path / "m.onnx", vocabulary=WORDS)
    folder = packaged(model)
    script = tmp_path / "turns.py"
    script.write_text(
        f"""
import json, sys
sys.path.insert(0, {str(folder)!r})
from loading import load
import numpy as np
compiled = load()
one, two = compiled.create_infer_request(), compiled.create_infer_request()
def sums(request, ids):
    return request.infer({{"input_ids": np.array(ids)}})["logits"][:, -1].tolist()
found = [sums(one, [[3, 1]]), sums(two, [[2], [7]]), sums(one, [[4]]), sums(two, [[7, 1], [8, 2]])]
try:
    found.append(sums(two, [[1]]))
except RuntimeError:
    found.append("refused")
two.reset_state()
found.append(sums(two, [[5, 9], [2, 6], [5, 3]]))
print(json.dumps(found))
"""
    )
    done = run_with_openvino(str(script))
    assert done.returncode == 0, done.stderr

    def sums(*rows: list[int]) -> list[list[float]]:
        weights = {weight.name: onnx.numpy_helper.to_array(weight) for weight in onnx.load(model).graph.initializer}
        return [(weights["table"][row].sum(0) @ weights["W"]).tolist() for row in rows]

    expected = [sums([3, 1]), sums([2], [7]), sums([3, 1, 4]), sums([2, 7, 1], [7, 8, 2]), "refused"]
    assert json.loads(done.stdout) == [*expected, sums([5, 9], [2, 6], [5, 3])]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_language_model(dtype: str, tmp_path: Path) -> None:
    """The client sends a text in uneven pieces."""
    model = tmp_path / "stream.onnx"
    pom_export.export(ROOT / "samples" / "checkpoints" / "byte_lm.safetensors", model, stateful=True, dtype=dtype)
    folder = packaged(model)
    ids = np.array([list((ROOT / "README.md").read_bytes()[:300])])
    np.savez(tmp_path / "in.npz", input_ids=ids)
    made = tmp_path / "out.npz"
    done = run_with_openvino(str(folder / "client.py"), str(tmp_path / "in.npz"), "-o", str(made), "--tokens", "7")
    assert done.returncode == 0, done.stderr
    expected = pom_export.StreamingSession(model).prefill(ids).astype(np.float64)
    with np.load(made) as arrays:
        away = np.abs(arrays["logits"] - expected).max() / np.abs(expected).max()
    assert away <= {"float32": 1e-5, "float16": 6e-3}[dtype]


@pytest.mark.slow
def test_a_model_without_a_state(tmp_path: Path) -> None:
    pom_export.export(ROOT / "tests" / "data" / "golden" / "v2_heads", tmp_path / "mixer.onnx", mask="padding")
    folder = packaged(tmp_path / "mixer.onnx")
    done = run_with_openvino(str(folder / "client.py"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("y: float32 [")


@pytest.mark.slow
def test_another_model_is_not_written(tmp_path: Path) -> None:
    """One that refuses OpenVINO's reading leaves nothing."""
    model = running_sum_model(tmp_path / "m.onnx", vocabulary=WORDS)
    graph = onnx.load(model)
    graph.graph.node.append(onnx.helper.make_node("Mystery", ["sums"], ["mystery"], domain="some.where"))
    graph.opset_import.append(onnx.helper.make_opsetid("some.where", 1))
    claim("limits", "{}")(graph)
    onnx.save(graph, model)
    folder = tmp_path / "package"
    done = run_with_openvino("-m", "pom_export", "package", str(model), "-o", str(folder), "--for", "openvino")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) <= 4
    assert "Traceback" not in done.stderr
    assert not folder.exists()
