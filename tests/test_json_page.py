"""docs/json.md lists exactly the keys that results have."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from pom_export import (
    CheckpointInspection,
    EngineInfo,
    ExportResult,
    FuseResult,
    InlineResult,
    ModelInspection,
    PrecisionReport,
    PrecisionTrial,
    QuantizeResult,
    RunResult,
)
from pom_export.checkup.findings import DoctorReport, Finding
from pom_export.parity.comparison import Difference
from pom_export.parity.modules import DebugReport, ModuleResult, ModuleRun
from pom_export.parity.quantized.report import ProductResult, QuantizedReport
from pom_export.parity.report import CaseResult, Comparison, ParityReport
from pom_export.quantization.quality import Quality
from pom_export.quantization.report import QuantizedModule
from pom_export.quantization.speed import Speed

PAGE = (Path(__file__).parents[1] / "docs" / "json.md").read_text()


def keys_of(section: str) -> list[set[str]]:
    """Return the keys in each table of a section."""
    text = re.search(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert text is not None
    tables = re.findall(r"(?:^\|.*\n)+", text.group(1), re.MULTILINE)
    return [set(re.findall(r"`(\w+)`", "".join(row.split("|")[1] for row in table.splitlines()))) for table in tables]


def test_an_export() -> None:
    assert keys_of("`export`") == [{field.name for field in fields(ExportResult)}]


def test_a_search_for_precision() -> None:
    trial = PrecisionTrial([], passed=True)
    report = PrecisionReport("float16", 1.0, 0.0, [], [], [trial])
    assert keys_of("`debug precision`") == [{*report.to_dict(), "command"}, set(trial.to_dict())]


def test_an_inlining() -> None:
    assert keys_of("`inline`") == [{field.name for field in fields(InlineResult)}]


def test_a_quantization() -> None:
    result = {field.name for field in fields(QuantizeResult)}
    parts = [{field.name for field in fields(kind)} for kind in (Quality, Speed, QuantizedModule)]
    assert keys_of("`quantize`") == [result, parts[0], parts[1] | {"ratio"}, parts[2]]


def test_a_fusion() -> None:
    assert keys_of("`fuse`") == [{field.name for field in fields(FuseResult)}]


def test_inspections() -> None:
    kinds = (ModelInspection, CheckpointInspection)
    assert keys_of("`inspect`") == [{field.name for field in fields(kind)} for kind in kinds]


def test_a_checkup() -> None:
    report = DoctorReport([Finding("op", "ok", "1.0")]).to_dict()
    assert keys_of("`doctor`") == [set(report), set(report["findings"][0])]


def test_a_run() -> None:
    result = RunResult("m.onnx", "in.npz", "out.npz", 1, 1, 1, [], 1.0)
    assert keys_of("`run`") == [set(result.to_dict())]


def test_the_manifest() -> None:
    assert keys_of("The manifest of an engine") == [{field.name for field in fields(EngineInfo)} | {"manifest_sha256"}]


def test_a_report() -> None:
    difference = Difference(max_abs=0.0, max_rel=0.0, cosine=1.0, tolerance=1.0, reason="")
    comparison = Comparison("onnxruntime", "kernel", "y", (CaseResult("typical", "x 1x1", difference),))
    report = ParityReport("m.onnx", "PyTorch", "float32", [comparison], []).to_dict()
    of_report, of_comparison, of_quantized, of_product = keys_of("`verify`")
    assert of_report == set(report)
    assert of_comparison == set(report["comparisons"][0])
    product = ProductResult("MatMul", 4, 32, "float32")
    quantized = QuantizedReport("int4", {}, [product]).to_dict()
    assert of_quantized == set(quantized)
    assert of_product == set(quantized["products"][0])


def test_a_report_of_modules() -> None:
    module = ModuleResult("blocks.0", "Block", 0, None, 0.0, 0.0, 1.0)
    run = ModuleRun("onnxruntime", "kernel", [module])
    report = DebugReport("m.onnx", "PyTorch", None, "", [run]).to_dict()
    of_report, of_module = keys_of("`debug`")
    assert of_report == set(report)
    assert of_module == set(report["modules"][0])
