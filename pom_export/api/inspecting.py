"""Inspect a checkpoint, a model or an engine. Only checkpoints need torch."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pom_export.api.inspections import CheckpointInspection, EngineInspection, Inspection, ModelInspection
from pom_export.errors import InputError, only_ours, with_article
from pom_export.files import AnyPath, as_path, sha256_of
from pom_export.graph.loading import load_graph
from pom_export.graph.onnx_file import is_ort_format

if TYPE_CHECKING:
    from pom_export.graph.exported_model import ExportedModel

_MODEL_SUFFIXES: Final = (".onnx", ".ort")
_ENGINE_SUFFIXES: Final = (".engine", ".plan")
_HEAD: Final = 12
# The first bytes of engines of TensorRT and of TensorRT for RTX.
_ENGINE_MARKS: Final = (b"ftrt", b"vtrt")
# The tag of an ONNX file's first field, the IR version, and a bound that no IR version has reached.
_IR_VERSION: Final = 8
_NEWEST_IR: Final = 64
# Attributes that do not affect the computation.
_PLUGIN_S: Final = ("plugin_version", "plugin_namespace")


@only_ours
def inspect(
    path: str | os.PathLike[str],
    *,
    family: str | None = None,
    degree: int | None = None,
    heads: int | None = None,
    in_context_start: int | None = None,
    weights: str | None = None,
) -> Inspection:
    """Describe a file as a `CheckpointInspection`, a `ModelInspection` (ONNX) or an `EngineInspection`.

    Args:
        path: the file, or a checkpoint's folder. Its content determines which of the three it is.
        family: the checkpoint's family. This and the following parameters only apply to checkpoints; see
            `load_checkpoint`.
        degree: degree of the polynomials.
        heads: number of attention heads of a hybrid.
        in_context_start: for an image model.
        weights: which of several sets of weights to describe.

    Raises:
        InputError: the file cannot be read or its kind is unknown, or an engine does not match its manifest.
    """
    hints = {"family": family, "degree": degree, "heads": heads}
    hints |= {"in_context_start": in_context_start, "weights": weights}
    kind = _kind_of(as_path(path, "file"))
    if kind == CheckpointInspection.kind:
        return _checkpoint(path, hints)
    for name, value in hints.items():
        if value is not None:
            raise InputError(
                f"`{name}={value!r}` is for a checkpoint, and {os.fspath(path)} is {with_article(kind)}", "Leave it out"
            )
    return _model(path) if kind == ModelInspection.kind else _engine(path)


def _kind_of(file: Path) -> str:
    """Return the kind of inspection for a file, judged by its content, or by its name if that is inconclusive."""
    try:
        with file.open("rb") as stream:
            head = stream.read(_HEAD)
    except OSError:
        head = b""
    if head.startswith(_ENGINE_MARKS) or file.suffix in _ENGINE_SUFFIXES:
        return EngineInspection.kind
    # A safetensors file begins with its header's length, which may look like an IR version, but a bracket follows it.
    versioned = len(head) == _HEAD and head[0] == _IR_VERSION and head[1] < _NEWEST_IR and head[8:9] != b"{"
    if versioned or file.suffix in _MODEL_SUFFIXES or (file.is_file() and is_ort_format(file)):
        return ModelInspection.kind
    return CheckpointInspection.kind


def _checkpoint(path: AnyPath, hints: Mapping[str, Any]) -> CheckpointInspection:
    from pom_export.checkpoint import load_model

    loaded = load_model(path, **hints)
    return CheckpointInspection(
        checkpoint=os.fspath(path),
        architecture=loaded.spec.architecture,
        family=loaded.spec.family,
        summary=loaded.spec.summary(),
        config=asdict(loaded.spec.config),
        parameters=sum(parameter.numel() for parameter in loaded.module.parameters()),
        dtypes=dict(loaded.dtypes),
        weights=loaded.weights,
        other_weights=list(loaded.other_weights),
        sha256=loaded.sha256,
        notes=list(loaded.notes),
    )


def _model(path: AnyPath) -> ModelInspection:
    from pom_export.graph.exported_model import read_model
    from pom_export.runtime.ort_format import as_onnx

    with as_onnx(path) as file:
        model = read_model(file)
        quantized = _quantized(model)
    shown_elsewhere = ("spec", "limits", "stateful", "kept_in_float32", "keep_float32", "inlined", "quantized")
    return ModelInspection(
        model=os.fspath(path),
        architecture=model.spec.get("architecture"),
        family=model.spec.get("family"),
        config=dict(model.spec.get("config", {})),
        aggregations=len(model.aggregations),
        inlined=model.inlined,
        aggregation_kinds=_by_kind(model.attributes),
        without_function=list(model.without_function),
        **model.facts(),
        state=model.stateful or None,
        dtype=model.precision,
        kept_in_float32=dict(model.kept_in_float32),
        quantized=quantized,
        limits=asdict(model.limits),
        metadata={name: value for name, value in model.properties.items() if name not in shown_elsewhere},
        weights=[os.fspath(weights) for weights in model.weights],
        sha256=sha256_of(as_path(path, "model")),
    )


def _quantized(model: ExportedModel) -> dict[str, Any] | None:
    """Return how a file's products are quantized, and what it says of that."""
    from pom_export.graph.quantized.reading import quantized_products

    kinds = Counter(
        (product.weight.type, product.activations) for product in quantized_products(load_graph(model.path))
    )
    claim = model.claims.quantized
    if not kinds and claim is None:
        return None
    products = [
        {"weights": weights, "activations": activations, "count": count}
        for (weights, activations), count in kinds.items()
    ]
    return {
        "products": products,
        "weights": claim.weights if claim is not None else None,
        "kept": dict(claim.kept) if claim is not None else {},
    }


def _by_kind(attributes: Any) -> list[dict[str, Any]]:
    """Return the distinct attributes of the aggregation nodes, each with its op and count."""
    from pom_export import contract

    counts = Counter(
        tuple((name, value) for name, value in each.items() if name not in _PLUGIN_S) for each in attributes
    )
    kinds = []
    for kind, count in counts.items():
        gated = any(name == "gate_activation" for name, _ in kind)
        kinds.append({"op": contract.GATED_OP_NAME if gated else contract.OP_NAME, **dict(kind), "count": count})
    return kinds


def _engine(path: AnyPath) -> EngineInspection:
    from pom_export.engine.manifest import read_engine

    return EngineInspection(os.fspath(path), dict(read_engine(path)[1]))
