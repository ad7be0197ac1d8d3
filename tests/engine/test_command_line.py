"""The line for NVIDIA's own tool describes the build that was done."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pom_export.engine.backend import TENSORRT, TENSORRT_RTX, Backend
from pom_export.engine.build_plan import BuildPlan
from pom_export.engine.command_line import command_line
from pom_export.engine.profiles import make_profiles
from pom_export.engine.targets import CURRENT
from pom_export.graph.exported_model import ExportedModel, TensorSpec

FLOAT, BOOL = np.dtype("float32"), np.dtype("bool")
DYNAMIC = [TensorSpec("x", FLOAT, ("batch", "tokens", 8)), TensorSpec("mask", BOOL, ("batch", "tokens"))]
SHAPES = [
    "--minShapes=x:1x1x8,mask:1x1",
    "--optShapes=x:1x256x8,mask:1x256",
    "--maxShapes=x:8x4096x8,mask:8x4096",
]
PLUGIN = ["--dynamicPlugins=/a b/p.so", "--setPluginsToSerialize=/a b/p.so"]
ENDING = ["--profilingVerbosity=detailed", "--skipInference"]


def plan(model: Path = Path("m.onnx"), inputs: Sequence[TensorSpec] = DYNAMIC, **changes: Any) -> BuildPlan:
    options = {
        "backend": Backend(TENSORRT_RTX, "1.7", None),
        "targets": ["sm86", "sm120"],
        "library": Path("/a b/p.so"),
        "embed_plugin": True,
        "timing_cache": None,
        "progress": print,
        **changes,
    }
    return BuildPlan(
        ExportedModel(model, inputs, [], {}, 20, ["a"]), profiles=make_profiles(inputs, {}, {}, {}), **options
    )


def words(planned: BuildPlan, output: str = "e") -> list[str]:
    return shlex.split(command_line(planned, output))


def test_of_tensorrt_for_rtx() -> None:
    expected = ["tensorrt_rtx", "--onnx=m.onnx", "--saveEngine=my e", *SHAPES, *PLUGIN, "--computeCapabilities=86,120"]
    assert words(plan(), "my e") == [*expected, *ENDING]


def test_of_the_gpu_at_hand() -> None:
    assert "--useGpu" in words(plan(targets=[CURRENT]))


def test_of_the_full_tensorrt() -> None:
    full = plan(backend=Backend(TENSORRT, "10.14", None), targets=[CURRENT], embed_plugin=False, timing_cache="t")
    options = ["--onnx=m.onnx", "--saveEngine=e", *SHAPES, PLUGIN[0], "--stronglyTyped", "--timingCacheFile=t"]
    assert words(full) == ["trtexec", *options, *ENDING]


def test_static_inputs_take_no_shapes() -> None:
    static = TensorSpec("positions", np.dtype("int64"), (16,))
    assert not [word for word in words(plan(inputs=[static])) if "Shapes" in word]
    assert SHAPES[0] in words(plan(inputs=[*DYNAMIC, static]))


def test_functions_need_no_library() -> None:
    line = words(plan(Path("my model.onnx"), library=None))
    assert line[1] == "--onnx=my model.onnx"
    assert not [word for word in line if "lugin" in word]
