"""`pom-export inspect`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from pom_export.cli.options import common_options, recognition_options
from pom_export.cli.output import print_result
from pom_export.cli.parameters import FILE
from pom_export.cli.progress import stages


@click.command("inspect")
@click.argument("checkpoint", type=FILE)
@recognition_options
@common_options
def command(checkpoint: str, as_json: bool, verbose: bool, **options: Any) -> None:
    """Say what CHECKPOINT holds: family, architecture and hyper-parameters, or why it is not recognised."""
    with stages(f"reading {checkpoint}", shown=verbose, moving=not as_json):
        from pom_export.api import inspect

        result = inspect(checkpoint, **options)
    lines = [
        ("checkpoint", result.checkpoint),
        ("recognised as", result.summary),
        *_settings(result.config),
        ("parameters", f"{result.parameters:,}"),
        ("types", ", ".join(f"{count} tensors of {name}" for name, count in result.dtypes.items())),
        ("weights", result.weights),
        *([("other weights", ", ".join(result.other_weights))] if result.other_weights else []),
        ("sha256", result.sha256),
        *[("note", note) for note in result.notes],
    ]
    print_result(result.to_dict(), as_json, lines)


def _settings(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the hyper-parameters as a person writes them; what is not there is left out."""
    lines: list[tuple[str, str]] = []
    for name, value in config.items():
        if isinstance(value, Mapping):
            lines += [(f"{name}.{inner}", text) for inner, text in _settings(value)]
        elif isinstance(value, (list, tuple)):
            lines += [(name, ", ".join(map(str, value)) or "none")]
        elif value is not None:
            lines.append((name, str(value)))
    return lines
