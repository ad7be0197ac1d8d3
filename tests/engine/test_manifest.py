"""The record beside an engine, as a user may have damaged it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pom_export.engine.manifest import check_manifest_place, engine_path, manifest_path
from pom_export.engine.runner import engine_backend
from pom_export.errors import InputError

OURS = {"engine": "e", "backend": "tensorrt-rtx", "plugin_layers": 1, "model_sha256": ""}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("no JSON", "not one of ours"),
        ("[" * 200_000, "not one of ours"),
        ("3", "not one of ours"),
        ("{}", "not one of ours"),
        (json.dumps({**OURS, "backend": "tensorflow"}), "names no TensorRT, but 'tensorflow'"),
        (json.dumps({**OURS, "backend": ["tensorrt"]}), "names no TensorRT"),
    ],
)
def test_a_manifest_that_is_none_is_named(text: str, message: str, tmp_path: Path) -> None:
    engine = tmp_path / "e"
    engine.write_bytes(b"engine")
    manifest_path(engine).write_text(text)
    with pytest.raises(InputError, match=message):
        engine_backend(engine)


def test_only_a_manifest_of_ours_may_be_replaced(tmp_path: Path) -> None:
    engine = tmp_path / "e"
    check_manifest_place(engine)
    manifest_path(engine).write_text(json.dumps(OURS))
    check_manifest_place(engine)
    manifest_path(engine).write_text("{}")
    with pytest.raises(InputError, match="where the manifest would go"):
        check_manifest_place(engine)


def test_an_engine_without_a_word_about_it_holds_the_plugin(tmp_path: Path) -> None:
    for path, values in (("plugin", OURS), ("function", {**OURS, "path": "function"})):
        manifest_path(tmp_path / "e").write_text(json.dumps(values))
        assert engine_path(tmp_path / "e") == path
