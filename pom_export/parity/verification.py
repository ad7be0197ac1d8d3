"""Compare an exported model with PyTorch, on every backend that runs here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from polygraphy.common import TensorMetadata

from pom_export.engine.recipe import FUNCTION
from pom_export.errors import InputError, MissingDependencyError, printable, reason_of
from pom_export.graph.exported import ExportedModel, TensorSpec
from pom_export.parity.case import Arrays, Case, run_case
from pom_export.parity.comparison import compare_outputs
from pom_export.parity.emulation import EmulatedRunner
from pom_export.parity.report import CaseResult, Comparison
from pom_export.parity.tolerances import Tolerance
from pom_export.runtime.library import custom_ops_library
from pom_export.runtime.quiet import quiet_polygraphy
from pom_export.runtime.runners import onnxruntime_runner, run_module

if TYPE_CHECKING:
    from polygraphy.backend.base import BaseRunner
    from torch import nn

ONNXRUNTIME = "onnxruntime"
EMULATION = "onnxruntime emulating"
KERNEL = "kernel"
_LONGEST_NAME = 100


@dataclass(frozen=True)
class Candidate:
    """A backend to compare: its name, which path the op takes in it, and its runner."""

    backend: str
    path: str
    runner: BaseRunner


def tensor_metadata(specs: Sequence[TensorSpec]) -> TensorMetadata:
    """Return Polygraphy's description of tensors."""
    metadata = TensorMetadata()
    with quiet_polygraphy():
        for spec in specs:
            metadata.add(spec.name, spec.dtype, spec.axes)
    return metadata


def onnxruntime_candidates(model: ExportedModel) -> tuple[list[Candidate], list[str]]:
    """Return the candidates that ONNX Runtime offers for a model here, and why others are missing."""
    paths, missing = [FUNCTION], []
    try:
        custom_ops_library()
        paths.insert(0, KERNEL)
    except MissingDependencyError as error:
        missing.append(f"{ONNXRUNTIME} {KERNEL}: {error.what}")
    if model.precision == "bfloat16":
        return [_emulated(model, path) for path in paths], missing
    candidates = [
        Candidate(ONNXRUNTIME, path, onnxruntime_runner(model.path, f"{ONNXRUNTIME} {path}", kernels=path == KERNEL))
        for path in paths
    ]
    return candidates + ([_emulated(model, paths[0])] if model.precision == "float16" else []), missing


def _emulated(model: ExportedModel, path: str) -> Candidate:
    name = f"{EMULATION} {model.precision}"
    runner = EmulatedRunner(model.path, tensor_metadata(model.inputs), f"{name} {path}", kernels=path == KERNEL)
    return Candidate(name, path, runner)


def compare(
    cases: Sequence[Case], expected: Sequence[Arrays], candidate: Candidate, tolerance: Tolerance
) -> list[Comparison]:
    """Run a candidate over the cases and compare every output, one case at a time: no two cases' outputs are held.

    Args:
        cases: the inputs.
        expected: the reference's outputs, case by case.
        candidate: the backend.
        tolerance: the bound on every output of floats.

    Raises:
        InputError: the candidate cannot load or run the model.
    """
    found: dict[str, list[CaseResult]] = {}
    with quiet_polygraphy():
        try:
            with candidate.runner as runner:
                for case, outputs in zip(cases, expected, strict=True):
                    actual = run_case(lambda feed: runner.infer(dict(feed)), case)
                    for name, result in compare_outputs(case.feed, outputs, actual, tolerance).items():
                        found.setdefault(name, []).append(CaseResult(_shown(case.name), _shapes(case.feed), result))
        except InputError:
            raise
        except Exception as error:
            reason = reason_of(error)
            raise InputError(f"{candidate.runner.name} failed: {reason}", "Run with --debug for the trace") from error
    return [
        Comparison(candidate.backend, candidate.path, _shown(name), tuple(results)) for name, results in found.items()
    ]


def record(module: nn.Module, names: Sequence[str], cases: Sequence[Case]) -> list[dict[str, np.ndarray[Any, Any]]]:
    """Return what a module in float64 computes of the cases, its outputs by the names given in their order.

    Raises:
        InputError: the module fails on a case.
    """

    def infer(feed: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        return dict(zip(names, run_module(module, feed), strict=True))

    outputs = []
    with quiet_polygraphy():  # torch warns of products of mixed types too
        for case in cases:
            try:
                outputs.append(infer(case.feed) if case.one_pass else run_case(infer, case))
            except Exception as error:
                raise InputError(
                    f"PyTorch fails on the case {_shown(case.name)} ({_shapes(case.feed)}): {reason_of(error)}",
                    "Run with --debug for the trace",
                ) from error
    return outputs


def _shapes(feed: Mapping[str, np.ndarray[Any, Any]]) -> str:
    return ", ".join(f"{_shown(name)} {'x'.join(map(str, array.shape))}" for name, array in feed.items())


def _shown(name: str) -> str:
    """Return a name as a report has it: it may come from a file."""
    return printable(name, _LONGEST_NAME)
