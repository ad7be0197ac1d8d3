"""`pom-export inspect`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from pom_export import contract
from pom_export.cli.build import engine_lines
from pom_export.cli.options import common_options, recognition_options
from pom_export.cli.output import aggregations_line, human_bytes, print_result
from pom_export.cli.parameters import FILE
from pom_export.cli.progress import stages

if TYPE_CHECKING:
    from pom_export.api import CheckpointInspection, EngineInspection, ModelInspection

_Lines = list[tuple[str, str]]


@click.command("inspect")
@click.argument("file", type=FILE)
@recognition_options
@common_options
def command(file: str, as_json: bool, verbose: bool, **options: Any) -> None:
    """Describe FILE: a checkpoint, an ONNX model, or an engine with its manifest beside it.

    For a checkpoint: family, architecture and hyper-parameters, or why it is not recognised; the options apply to
    checkpoints. For a model: its aggregations, inputs, outputs, state, types and metadata. For an engine: what it was
    built from and for.
    """
    with stages(f"reading {file}", shown=verbose, moving=not as_json):
        from pom_export import api

        result = api.inspect(file, **options)
    if isinstance(result, api.ModelInspection):
        lines = _model_lines(result)
    elif isinstance(result, api.EngineInspection):
        lines = _engine_lines(result)
    else:
        assert isinstance(result, api.CheckpointInspection)
        lines = _checkpoint_lines(result)
    print_result(result.to_dict(), as_json, lines)


def _checkpoint_lines(found: CheckpointInspection) -> _Lines:
    return [
        ("checkpoint", found.checkpoint),
        ("recognised as", found.summary),
        *_settings(found.config),
        ("parameters", f"{found.parameters:,}"),
        ("types", ", ".join(f"{count} tensors of {name}" for name, count in found.dtypes.items())),
        ("weights", found.weights),
        *([("other weights", ", ".join(found.other_weights))] if found.other_weights else []),
        ("sha256", found.sha256),
        *[("note", note) for note in found.notes],
    ]


def _model_lines(found: ModelInspection) -> _Lines:
    lines = [
        ("model", f"{found.model} ({human_bytes(found.bytes)})"),
        *([("exported from", f"{found.architecture} ({found.family})")] if found.architecture else []),
        # The file determines these names. With a prefix, none of them can be mistaken for a line of ours.
        *_settings(found.config, "config."),
        ("aggregations", aggregations_line(found.aggregations, found.inlined)),
        *(("aggregation kind", f"{kind['count']} x {_kind(kind)}") for kind in found.aggregation_kinds),
        ("inputs", "; ".join(found.inputs)),
        ("outputs", "; ".join(found.outputs)),
        ("state", found.state or "none"),
        ("dtype", found.dtype),
        *((f"float32: {name}", reason) for name, reason in found.kept_in_float32.items()),
        *_quantized(found.quantized or {}),
        ("opset", str(found.opset)),
        *_settings(found.limits, "limits."),
        *((f"metadata.{name}", value) for name, value in found.metadata.items()),
        *(("weights", file) for file in found.weights),
        ("sha256", found.sha256),
    ]
    if found.without_function:
        names = ", ".join(found.without_function)
        lines.append(("note", f"the file has no function for {names}: only our kernels can run it"))
    return lines


def _quantized(found: Mapping[str, Any]) -> _Lines:
    return [
        *(
            (
                "quantized",
                f"{each['count']} products with weights in {each['weights']}, activations {each['activations']}",
            )
            for each in found.get("products", ())
        ),
        *((f"kept in {kind}", name) for name, kind in found.get("kept", {}).items()),
    ]


def _kind(kind: Mapping[str, Any]) -> str:
    # The form "power" takes its degree from the coefficients; the attribute only applies to the other form.
    hidden = {"op", "count", *(["degree"] if kind.get("form") == contract.POWER else [])}
    settings = (f"{name} {value}" for name, value in kind.items() if name not in hidden)
    return f"{kind['op']}: {', '.join(settings)}"


def _engine_lines(found: EngineInspection) -> _Lines:
    manifest = found.to_dict()
    packages = {"pom-export": manifest.get("toolkit_version"), **manifest.get("packages", {})}
    return [
        *engine_lines(manifest),
        ("inputs", "; ".join(manifest.get("inputs", []))),
        ("outputs", "; ".join(manifest.get("outputs", []))),
        ("built with", ", ".join(f"{name} {version}" for name, version in packages.items())),
        *_settings(manifest.get("inspected") or {}, "inspector."),
        ("sha256", str(manifest.get("sha256"))),
        ("sha256 of the model", str(manifest.get("model_sha256"))),
        *((f"sha256 of {name}", sha256) for name, sha256 in manifest.get("weights_sha256", {}).items()),
    ]


def _settings(config: Mapping[str, Any], prefix: str = "") -> _Lines:
    """Return settings as lines for a person, without those that are None."""
    lines: _Lines = []
    for name, value in config.items():
        if isinstance(value, Mapping):
            lines += _settings(value, f"{prefix}{name}.")
        elif isinstance(value, (list, tuple)):
            lines += [(f"{prefix}{name}", ", ".join(map(str, value)) or "none")]
        elif value is not None:
            lines.append((f"{prefix}{name}", str(value)))
    return lines
