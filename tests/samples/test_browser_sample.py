"""The demo's stream in a browser: its numbers are PyTorch's."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pom_export.errors import InputError
from tests.other_runtimes import javascript_folder

SAMPLE = Path(__file__).parents[2] / "samples" / "10_browser" / "serve.py"


@pytest.fixture(scope="module")
def sample() -> ModuleType:
    spec = importlib.util.spec_from_file_location("browser_sample", SAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.machine
def test_a_stream_in_a_headless_browser_gives_pytorchs_numbers(sample: Any, tmp_path: Path) -> None:
    try:
        browser = sample.find_browser()
    except InputError as error:
        pytest.skip(error.what)
    server = sample.start(javascript_folder(), tmp_path / "model.onnx")
    try:
        result = sample.result_of_page(server, browser)
    finally:
        server.shutdown()
        server.server_close()

    assert "Chrome" in result["versions"]["browser"]
    assert result["versions"]["onnxruntime-web"].startswith("1.")
    assert len(result["ids"]) == 34 + 24
    assert len(result["logits"]) == len(result["ids"])
    assert bytes(result["ids"]).startswith(b"The with statement is used to wrap")
    found = sample.compare(result)
    assert found, found.broken
    assert found.max_abs > 0  # it is another implementation
    result["logits"][40][7] += 0.01
    assert not sample.compare(result)


def test_only_files_of_the_page_are_served(sample: Any, tmp_path: Path) -> None:
    (tmp_path / "node_modules").mkdir()
    server = sample.Server({"/ort/": tmp_path / "node_modules", "/": SAMPLE.parent})
    try:
        assert server.find("/index.html") == SAMPLE.parent / "index.html"
        assert server.find("/../01_demo.py") is None
        assert server.find("/ort/../../secret") is None
        assert server.find("/none.html") is None
    finally:
        server.server_close()


def test_a_missing_package_is_named(sample: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"onnxruntime-web is not in {tmp_path}"):
        sample.start(tmp_path, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()
