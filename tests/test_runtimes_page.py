"""docs/runtimes.md holds what tools/runtimes.py wrote, and the script tells right numbers from wrong ones."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import numpy_helper

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tool() -> Any:
    spec = importlib.util.spec_from_file_location("runtimes_tool", ROOT / "tools" / "runtimes.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # a dataclass looks its module up there
    spec.loader.exec_module(module)
    return module


def test_the_page_has_a_row_for_each_runtime_and_a_cell_for_each_file(tool: Any) -> None:
    page = (ROOT / "docs" / "runtimes.md").read_text()
    written = page.partition(tool.BEGIN)[2].partition(tool.END)[0]
    assert re.search(r"^Made on \d{4}-\d\d-\d\d on .+ bfloat16\.$", written, re.MULTILINE)
    exported, inlined = (
        [line for line in part.splitlines() if line.startswith("|")] for part in written.split("## Inlined")
    )
    assert exported[0] == inlined[0] == "| runtime | " + " | ".join(tool.FILES) + " |"
    for table in (exported, inlined):
        for row in table[2:]:
            cells = [cell.strip() for cell in row.strip("|").split("|")]
            assert re.search(r" \d+\.\d+", cells[0]), "each runtime has a version"
            assert len(cells) == 1 + len(tool.FILES)
            assert all(
                re.fullmatch(r"\d+e[-+]\d+|0e\+00|\*\*(\d+e[-+]\d+|inf)\*\*|refused", cell) for cell in cells[1:]
            )
    for name in ("onnxruntime", "onnxruntime-web", "openvino", "onnx"):
        (row,) = (row for row in inlined if re.match(rf"\| {re.escape(tool.RUNTIMES[name].title)} \d", row))
        assert "**" not in row
        assert "refused" not in row


def test_cells_and_reasons(tool: Any) -> None:
    count = len(tool.FILES)
    right, wrong, refused = {"difference": 2.4e-7}, {"difference": 0.11}, {"reason": "no such op: pom"}
    results = {"onnx": {"as exported": [refused] * count, "inlined": [wrong, *[right] * (count - 1)]}}
    text = tool.tables(results, {"onnx": "9.9"})
    assert "| onnx.reference 9.9 | **1e-01** | 2e-07 |" in text
    assert "- onnx.reference 9.9, as exported: no such op: pom (all files)" in text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Exception from a.cpp:84:\nSummary:\n-- No rule for operations: pom.X\n\n", "No rule for operations: pom.X"),
        ("[18:22:05] :220: These Op Not Support: ONNX::PomX", "These Op Not Support: ONNX::PomX"),
        ('Error invoking\n/tmp/a.mlir:1:2: error: failed: %7 = "x"(%5)\nNeed more?', "failed"),
        ("one\ntwo\n", "two"),
        ("", ""),
    ],
)
def test_the_reason_in_a_message(tool: Any, text: str, reason: str) -> None:
    assert tool.reason_in(text) == reason


def test_a_difference_is_that_of_the_outputs(tool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "FILES", {"heads": tool.FILES["heads"]})
    tool.write_files(tmp_path)
    for kind in ("0.onnx", "0.inlined.onnx"):
        for load in (tool.onnxruntime_alone, tool.onnx_reference):
            assert 0 < tool.difference(load, tmp_path / kind, tmp_path / "0.npz") < 1e-5
    model = onnx.load(tmp_path / "0.onnx")
    weight = max(model.graph.initializer, key=lambda each: len(each.raw_data))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.01, weight.name))
    onnx.save(model, tmp_path / "0.onnx")
    assert tool.difference(tool.onnxruntime_alone, tmp_path / "0.onnx", tmp_path / "0.npz") > 1e-3
    with pytest.raises(ValueError, match="y has the shape"):
        tool.difference(lambda _: lambda feed: [feed["x"][:1]], tmp_path / "0.onnx", tmp_path / "0.npz")
