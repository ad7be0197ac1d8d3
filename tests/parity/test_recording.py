"""Parity data: what is written is read, and damage is reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from pom_export.errors import InputError
from pom_export.graph.exported_model import TensorSpec
from pom_export.parity.case import Case
from pom_export.parity.recording import load_recording, recorded_model, save_recording
from pom_export.parity.targets import Spread, Target

INPUTS = [TensorSpec("x", np.dtype("float32"), ("batch", "tokens", 4))]
OUTPUTS = [TensorSpec("y", np.dtype("float32"), ("batch", "tokens", 4))]
X, Y = np.ones((1, 2, 4), np.float32), np.ones((1, 2, 4))
DEEP = np.array("[" * 200_000)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "m.parity.npz"
    save_recording(path, [Case("typical", {"x": X})], [Target({"y": Y})], "sha")
    return path


def test_what_is_written_is_read(path: Path) -> None:
    recorded = load_recording(path, "sha", INPUTS, OUTPUTS)
    (case,), (target,) = recorded.cases, recorded.targets
    assert not recorded.own
    assert case.name == "typical"
    np.testing.assert_array_equal(case.feed["x"], X)
    np.testing.assert_array_equal(target.outputs["y"], Y)
    assert recorded_model(path) == "sha"


def test_bfloat16_is_read_as_such(tmp_path: Path) -> None:
    spec = TensorSpec("x", np.dtype(ml_dtypes.bfloat16), ("batch", "tokens", 4))
    save_recording(
        tmp_path / "r.npz", [Case("typical", {"x": X.astype(ml_dtypes.bfloat16)})], [Target({"y": Y})], "sha"
    )
    (case,) = load_recording(tmp_path / "r.npz", "sha", [spec], OUTPUTS).cases
    assert case.feed["x"].dtype == spec.dtype
    np.testing.assert_array_equal(case.feed["x"].astype(np.float32), X)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(({"names": np.array(json.dumps(n))}, "names no cases") for n in (3, None, [], {}, {"a": 1}, "abc")),
        ({"names": np.array('["a", "b"]')}, "lacks '1/in/x'"),
        ({"names": DEEP}, "nested too deeply"),
        ({"names": np.array(json.dumps(["a"] * 300_000))}, "holds 300,000 values"),
        ({"names": np.array([1, 2])}, "not parity data"),
        ({"names": None}, "lacks 'names'"),
        ({"model_sha256": None}, "lacks 'model_sha256'"),
        ({"model_sha256": np.array("other")}, "another file of this name"),
        ({"0/in/x": None}, "lacks '0/in/x'"),
        ({"0/in/x": X[0]}, r"x is float32\[2, 4\]"),
        ({"0/in/x": X[..., :3]}, r"x is float32\[1, 2, 3\]"),
        ({"0/in/x": X[:, :0]}, r"x is float32\[1, 0, 4\]"),
        ({"0/in/x": X.astype(np.float64)}, "x is float64"),
        ({"0/in/x": np.array("text")}, "x is <U4"),
        ({"0/out/y": None}, "lacks '0/out/y'"),
        ({"0/out/y": np.array("text")}, "y is <U4, not numbers"),
        ({"0/out/y": Y + 1j}, "y is complex128, not numbers"),
    ],
)
def test_damage_is_one_line(changes: dict[str, Any], message: str, path: Path) -> None:
    with np.load(path) as archive:
        arrays = {**archive, **changes}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(InputError, match=message) as raised:
        load_recording(path, "sha", INPUTS, OUTPUTS)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04", b"\x80\x04N."])
def test_files_of_other_kinds_are_named(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    with pytest.raises(InputError, match="is not parity data"):
        load_recording(path, "sha", INPUTS, OUTPUTS)
    assert recorded_model(path) is None


def test_what_rounding_does_is_recorded(tmp_path: Path) -> None:
    path, unrounded = tmp_path / "r.npz", Target({"y": 1.01 * Y})
    save_recording(path, [Case("typical", {"x": X})], [Target({"y": Y}, {"y": (Spread(0.1, 0.2),)}, unrounded)], "sha")
    (target,) = load_recording(path, "sha", INPUTS, OUTPUTS).targets
    assert target.spreads == {"y": (Spread(0.1, 0.2),)}
    assert target.unrounded is not None
    np.testing.assert_array_equal(target.unrounded.outputs["y"], 1.01 * Y)
    assert target.unrounded.spreads["y"][0].largest == pytest.approx(0.01)
    with np.load(path) as archive:
        arrays = {**archive}
    for name, array in (("0/spread/y", np.ones(3)), ("0/spread/y", -np.ones((1, 2))), ("0/unrounded/y", Y[:, :1])):
        np.savez(path, **{**arrays, name: array})
        with pytest.raises(InputError, match="is not parity data"):
            load_recording(path, "sha", INPUTS, OUTPUTS)
