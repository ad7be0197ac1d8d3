"""Write the command with which NVIDIA's own tool builds the same engine."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence

from pom_export.engine.build_plan import BuildPlan
from pom_export.engine.targets import CURRENT


def command_line(plan: BuildPlan, output: str | os.PathLike[str]) -> str:
    """Return the line for a shell.

    The tools are trtexec, and tensorrt_rtx for TensorRT for RTX.
    """
    model, backend = plan.model, plan.backend
    words = [f"--onnx={model.path}", f"--saveEngine={os.fspath(output)}"]
    words += _shapes([spec.name for spec in model.inputs if any(isinstance(axis, str) for axis in spec.axes)], plan)
    if plan.library is not None:
        # Not --staticPlugins, which waits for the library to register itself; ours is asked for its creators. That the
        # plugin is taken for the op, and not the function, needs no option: the nodes name its namespace. For
        # TensorRT for RTX NVIDIA documents no plugins, though its library takes them: tensorrt_rtx may too.
        words.append(f"--dynamicPlugins={plan.library}")
        words += [f"--setPluginsToSerialize={plan.library}"] if plan.embedded else []
    if backend.is_rtx:
        words.append("--useGpu" if CURRENT in plan.targets else f"--computeCapabilities={_capabilities(plan)}")
    else:
        # TensorRT 11 takes the option too, and knows no other networks. tensorrt_rtx is not documented to.
        words.append("--stronglyTyped")
        words += [] if plan.timing_cache is None else [f"--timingCacheFile={os.fspath(plan.timing_cache)}"]
    words += ["--profilingVerbosity=detailed", "--skipInference"]
    return shlex.join(["tensorrt_rtx" if backend.is_rtx else "trtexec", *words])


def _shapes(names: Sequence[str], plan: BuildPlan) -> list[str]:
    """Return the options for the inputs of dynamic shape; the tools take no shapes of static models."""
    options = []
    for option, field in (("--minShapes", "minimum"), ("--optShapes", "optimum"), ("--maxShapes", "maximum")):
        shapes = ",".join(f"{name}:{'x'.join(map(str, getattr(plan.profiles[name], field)))}" for name in names)
        options += [f"{option}={shapes}"] if shapes else []
    return options


def _capabilities(plan: BuildPlan) -> str:
    return ",".join(target.removeprefix("sm") for target in plan.targets)
