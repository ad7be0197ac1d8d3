"""`package`: what is in a package, and what is refused."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

import pom_export
from pom_export.errors import InputError
from tests.streaming_graphs import running_sum_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return running_sum_model(tmp_path / "sums.onnx")


def packaged(model: Path, **options: object) -> Path:
    output = model.parent / "package"
    result = pom_export.package(model, output, **{"target": "triton", **options})
    assert sorted(result.files) == sorted(p.relative_to(output).as_posix() for p in output.rglob("*") if p.is_file())
    return output


def test_the_manifest_has_every_file(model: Path) -> None:
    folder = packaged(model)
    manifest = json.loads((folder / "manifest.json").read_text())
    found = {
        file.relative_to(folder).as_posix(): {
            "bytes": file.stat().st_size,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        }
        for file in folder.rglob("*")
        if file.is_file() and file.name != "manifest.json"
    }
    assert manifest["files"] == found
    assert {
        "README.md",
        "preflight.py",
        "client.py",
        "models/sums/config.pbtxt",
        "models/sums/1/model.py",
    } < found.keys()
    assert manifest["target"] == "triton"
    assert manifest["model"] == {"name": "sums.onnx", "sha256": found["models/sums/1/model.onnx"]["sha256"]}


def test_weights_in_another_file_come_along(model: Path) -> None:
    loaded = onnx.load(model)
    onnx.save(loaded, model, save_as_external_data=True, location="sums.data", size_threshold=100)
    folder = packaged(model)
    pom_export.inference_session(folder / "models" / "sums" / "1" / "model.onnx")
    assert (folder / "models" / "sums" / "1" / "sums.data").is_file()


def test_an_existing_package_is_replaced_only_when_forced(model: Path) -> None:
    folder = packaged(model)
    with pytest.raises(InputError, match="exists and is not empty") as caught:
        packaged(model)
    assert "`force=True`" in caught.value.hint
    packaged(model, force=True, name="other")
    assert (folder / "models" / "other").is_dir()
    assert not (folder / "models" / "sums").exists()
    (folder / "manifest.json").unlink()
    with pytest.raises(InputError, match="exists and is not empty"):
        packaged(model, force=True)
    with pytest.raises(InputError, match="exists and is not empty"):
        pom_export.package(model, model.parent, target="triton", force=True)


def test_the_model_may_not_be_in_what_is_replaced(model: Path) -> None:
    folder = packaged(model)
    inner = folder / "models" / "sums" / "1" / "model.onnx"
    with pytest.raises(InputError, match="which would be replaced"):
        pom_export.package(inner, folder, target="triton", force=True)
    assert inner.is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "tritn"}, "'tritn'"),
        ({"name": "../up"}, "letters, digits"),
        ({"backend": "pyton"}, "'pyton'"),
        ({"engine": "none.engine"}, "`engine` does not apply to `backend=python`"),
        ({"bench": "none.json"}, "`bench` does not apply: sums.onnx keeps a state"),
    ],
)
def test_options_that_do_not_fit_are_refused_and_leave_nothing(
    options: dict[str, str], message: str, model: Path
) -> None:
    with pytest.raises(InputError) as caught:
        packaged(model, **options)
    assert message in f"{caught.value.what} {caught.value.hint}"
    assert [path.name for path in model.parent.iterdir()] == ["sums.onnx"]


def test_a_model_whose_state_grows_is_refused_where_the_server_carries_it(tmp_path: Path) -> None:
    model = running_sum_model(tmp_path / "m.onnx", attention=True)
    with pytest.raises(InputError, match="grows with every token"):
        packaged(model, backend="onnxruntime")
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
    config = (packaged(model) / "models" / "m" / "config.pbtxt").read_text()
    assert "max_candidate_sequences: 64\n" in config


def preflight(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(folder / "preflight.py")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_preflight_finds_numpy_2_and_what_was_changed(model: Path) -> None:
    """The NumPy of this environment is one that Triton's Python backend exchanges wrong numbers with."""
    folder = packaged(model)
    done = preflight(folder)
    assert done.returncode == 1
    assert "gives wrong numbers without an error" in done.stderr
    (folder / "client.py").write_text("")
    (folder / "README.md").unlink()
    done = preflight(folder)
    assert done.stderr.splitlines() == [
        "preflight: README.md is missing",
        "preflight: client.py was changed: its SHA-256 is not the manifest's",
    ]
