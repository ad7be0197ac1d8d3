"""The README.md of a package."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import dedent

from pom_export.graph.exported_model import ExportedModel
from pom_export.packaging.folder import MANIFEST
from pom_export.version import __version__


def readme(title: str, model: ExportedModel, sections: Mapping[str, str]) -> str:
    """Return a README.md: what the package is, its sections, and how to check its files.

    Args:
        title: what it is, in a few words.
        model: the file that it was made from.
        sections: texts in Markdown by heading; their common indentation is removed.
    """
    parts = [f"# {title}", f"Made by pom-export {__version__} from {model.path.name}."]
    for heading, text in sections.items():
        parts += [f"## {heading}", dedent(text).strip()]
    parts += [
        "## Files",
        f"`{MANIFEST}` has the size and the SHA-256 of every other file; `preflight.py` compares them.",
    ]
    return "\n\n".join(parts) + "\n"


def interface_table(model: ExportedModel, names: Mapping[str, str]) -> str:
    """Return a table of inputs and outputs in Markdown.

    Args:
        model: the file.
        names: what each input and output is, by name; others are left out.
    """
    rows = ["| tensor | type and shape | |", "|---|---|---|"]
    for spec in (*model.inputs, *model.outputs):
        if spec.name in names:
            axes = ", ".join(map(str, spec.axes))
            rows.append(f"| `{spec.name}` | {spec.dtype} ({axes}) | {names[spec.name]} |")
    return "\n".join(rows)
