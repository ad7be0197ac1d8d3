"""The backends that `verify` compares a file on, besides engines: which there are, and which run here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from pom_export.engine.build_config import FUNCTION
from pom_export.errors import InputError, MissingDependencyError, printable
from pom_export.graph.exported_model import ExportedModel
from pom_export.parity.candidates import INLINED, STANDARD, Candidate, onnxruntime_candidates
from pom_export.runtime.backend_names import BACKENDS, NODE, ONNXRUNTIME, OPENVINO, WEB
from pom_export.runtime.node import NodeRunner, find_package, package_version
from pom_export.runtime.openvino import HINT, SINGLE, OpenVinoRunner, check_openvino, openvino_version
from pom_export.suggestions import did_you_mean

# Candidates, notes on how they compute, and reasons why others are missing.
_Offer = tuple[list[Candidate], list[str], list[str]]


def check_backends(backends: Sequence[str] | None) -> None:
    """Raise InputError for a backend that there is not, or an empty list."""
    if backends is None:
        return
    if isinstance(backends, str) or not backends:
        raise InputError(f"`backends` must be a list of names, got {backends!r}", f"Choose of {', '.join(BACKENDS)}")
    for name in backends:
        if name not in BACKENDS:
            hint = did_you_mean(str(name), BACKENDS) or f"Choose of {', '.join(BACKENDS)}"
            raise InputError(f"unknown backend {name!r}", hint)


def offered(model: ExportedModel, backends: Sequence[str] | None) -> _Offer:
    """Return the candidates of some backends, notes on how they compute, and why others do not run.

    Args:
        model: the file.
        backends: the backends' names; None: all that are installed. Those that are not are then not mentioned.
    """
    candidates: list[Candidate] = []
    notes: list[str] = []
    missing: list[str] = []
    for name in BACKENDS if backends is None else dict.fromkeys(backends):
        try:
            found, how, lacking = _OFFERS[name](model)
        except MissingDependencyError as error:
            if backends is not None:
                missing.append(f"{name}: {error.what}. {error.hint}")
            continue
        candidates += found
        notes += how
        missing += lacking
    return candidates, notes, missing


def _onnxruntime(model: ExportedModel) -> _Offer:
    candidates, missing = onnxruntime_candidates(model)
    return candidates, [], missing


def _openvino(model: ExportedModel) -> _Offer:
    check_openvino()
    if model.without_function:
        return [], [], [_lost(OPENVINO, model)]
    path = INLINED if model.aggregations else STANDARD
    notes = [f"{OPENVINO} {openvino_version()} computed in float32, by {HINT} {SINGLE}"]
    if model.aggregations:
        notes.append(f"{OPENVINO} does not expand functions: it ran an inlined copy of the file")
    return [Candidate(OPENVINO, path, OpenVinoRunner(model))], notes, []


def _of_node(package: str) -> Callable[[ExportedModel], _Offer]:
    def offer(model: ExportedModel) -> _Offer:
        version = package_version(find_package(package))
        if model.without_function:
            return [], [], [_lost(package, model)]
        if model.precision == "bfloat16":
            return [], [], [f"{package}: JavaScript has no bfloat16"]
        path = FUNCTION if model.aggregations else STANDARD
        how = "in WebAssembly, on one thread" if package == WEB else "on the CPU"
        return [Candidate(package, path, NodeRunner(package, model))], [f"{package} {version} computed {how}"], []

    return offer


def _lost(backend: str, model: ExportedModel) -> str:
    return f"{backend}: the file has lost the functions of {printable(', '.join(model.without_function))}"


_OFFERS: Final[dict[str, Callable[[ExportedModel], _Offer]]] = {
    ONNXRUNTIME: _onnxruntime,
    OPENVINO: _openvino,
    WEB: _of_node(WEB),
    NODE: _of_node(NODE),
}
