"""Write the command with which NVIDIA's own tool builds the same engine."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence

from pom_export.engine.build_plan import BuildPlan
from pom_export.engine.targets import CURRENT


def command_line(plan: BuildPlan, output: str | os.PathLike[str]) -> str:
    """Return the command as a line for a shell.

    The tools are trtexec and, for TensorRT for RTX, tensorrt_rtx.
    """
    model, backend = plan.model, plan.backend
    words = [f"--onnx={model.path}", f"--saveEngine={os.fspath(output)}"]
    words += _shapes([spec.name for spec in model.inputs if any(isinstance(axis, str) for axis in spec.axes)], plan)
    if plan.library is not None:
        # --staticPlugins would expect the library to register itself, but ours has to be asked for its creators. No
        # option is needed to make TensorRT use the plugin for the op instead of the function, because the nodes name
        # its namespace. NVIDIA does not document plugins for TensorRT for RTX, but its library supports them, so
        # tensorrt_rtx may too.
        words.append(f"--dynamicPlugins={plan.library}")
        words += [f"--setPluginsToSerialize={plan.library}"] if plan.embedded else []
    if backend.is_rtx:
        words.append("--useGpu" if CURRENT in plan.targets else f"--computeCapabilities={_capabilities(plan)}")
    else:
        # TensorRT 11 accepts the option too, and all of its networks are strongly typed. For tensorrt_rtx it is not
        # documented.
        words.append("--stronglyTyped")
        words += [] if plan.timing_cache is None else [f"--timingCacheFile={os.fspath(plan.timing_cache)}"]
    words += ["--profilingVerbosity=detailed", "--skipInference"]
    return shlex.join(["tensorrt_rtx" if backend.is_rtx else "trtexec", *words])


def _shapes(names: Sequence[str], plan: BuildPlan) -> list[str]:
    """Return the options for inputs with dynamic shapes; the tools take no shapes for static models."""
    options = []
    for option, field in (("--minShapes", "minimum"), ("--optShapes", "optimum"), ("--maxShapes", "maximum")):
        shapes = ",".join(f"{name}:{'x'.join(map(str, getattr(plan.profiles[name], field)))}" for name in names)
        options += [f"{option}={shapes}"] if shapes else []
    return options


def _capabilities(plan: BuildPlan) -> str:
    return ",".join(target.removeprefix("sm") for target in plan.targets)
