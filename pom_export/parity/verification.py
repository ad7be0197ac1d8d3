"""Compare an exported model with PyTorch, on every backend that runs here."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from polygraphy.common import TensorMetadata
from polygraphy.comparator import Comparator

from pom_export.engine.recipe import FUNCTION
from pom_export.errors import InputError, MissingDependencyError, reason_of
from pom_export.graph.exported import ExportedModel, TensorSpec
from pom_export.parity.comparison import CompareToReference
from pom_export.parity.emulation import EmulatedRunner
from pom_export.parity.inputs import Case
from pom_export.parity.report import CaseResult, Comparison
from pom_export.parity.tolerances import Tolerance
from pom_export.runtime.library import custom_ops_library
from pom_export.runtime.quiet import quiet_polygraphy
from pom_export.runtime.runners import onnxruntime_runner

if TYPE_CHECKING:
    from polygraphy.backend.base import BaseRunner

ONNXRUNTIME = "onnxruntime"
EMULATION = "onnxruntime emulating"
KERNEL = "kernel"


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
    reference: BaseRunner, candidate: Candidate, cases: Sequence[Case], tolerance: Tolerance
) -> list[Comparison]:
    """Run the reference and a candidate over the cases and compare every output.

    Raises:
        InputError: the candidate cannot load or run the model.
    """
    feeds = [OrderedDict(case.feed) for case in cases]
    with quiet_polygraphy():
        try:
            results = Comparator.run([reference, candidate.runner], data_loader=feeds)
        except InputError:
            raise
        except Exception as error:
            reason = reason_of(error)
            raise InputError(f"{candidate.runner.name} failed: {reason}", "Run with --debug for the trace") from error
        accuracy = Comparator.compare_accuracy(results, compare_func=CompareToReference(tolerance))
    (differences,) = accuracy[0].values()
    return [
        Comparison(
            candidate.backend,
            candidate.path,
            output,
            tuple(
                CaseResult(case.name, _shapes(case.feed), by_output[output])
                for case, by_output in zip(cases, differences, strict=True)
            ),
        )
        for output in differences[0]
    ]


def record(runner: BaseRunner, cases: Sequence[Case]) -> list[dict[str, np.ndarray[Any, Any]]]:
    """Return a runner's outputs on the cases."""
    with quiet_polygraphy():
        results = Comparator.run([runner], data_loader=[OrderedDict(case.feed) for case in cases])
    return [dict(result) for result in results[0][1]]


def _shapes(feed: Mapping[str, np.ndarray[Any, Any]]) -> str:
    return ", ".join(f"{name} {'x'.join(map(str, array.shape))}" for name, array in feed.items())
