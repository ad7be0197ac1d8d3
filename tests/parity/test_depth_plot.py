"""The plot of errors over depth."""

from __future__ import annotations

import math
import re

from pom_export.parity.depth_plot import depth_plot
from pom_export.parity.modules import DebugReport, ModuleResult, ModuleRun
from pom_export.parity.modules_page import render_debug

GOOD = ModuleResult("a", "Linear", 0, 0.0, 1e-7, 1e-7, 4e-6, "typical")
WRONG = ModuleResult("<b>", "Linear", 0, 1e-7, 1e-2, 1e-2, 4e-6, "typical", passed=False)
INFINITE = ModuleResult("c", "Norm", 1, 1e-2, math.inf, math.inf, 4e-6, "typical", passed=False)
MISSING = ModuleResult("d", "Dropout", 0, None, None, None, None, reason="not in the graph")


def test_each_compared_call_is_a_dot() -> None:
    plot = depth_plot([GOOD, WRONG, INFINITE, MISSING])
    assert plot.count('class="own"') == 1
    assert plot.count('class="wrong"') == 2
    assert "&lt;b&gt;" in plot
    assert "<b>" not in plot
    heights = [float(y) for y in re.findall(r'cy="([\d.]+)"', plot)]
    assert heights[0] > heights[1] > heights[2]


def test_nothing_to_plot() -> None:
    assert not depth_plot([MISSING])
    assert not ModuleRun("onnxruntime", "kernel", [MISSING])


def test_the_page_names_the_first_module() -> None:
    run = ModuleRun("onnxruntime", "kernel", [GOOD, WRONG, INFINITE, MISSING], 1)
    report = DebugReport("m.onnx", "PyTorch", "<b>", "the weight w differs", [run])
    page = render_debug(report)
    assert "<dt>first</dt><dd>&lt;b&gt;</dd>" in page
    assert "c, call 2" in page
    assert "FAILED" in page
    assert report.to_dict()["modules"][2]["error"] is None
