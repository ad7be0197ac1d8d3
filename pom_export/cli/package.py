"""`pom-export package`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pom_export.cli.options import common_options
from pom_export.cli.output import human_bytes, print_result
from pom_export.cli.parameters import FILE, FOLDER, Choice
from pom_export.cli.progress import stages
from pom_export.files import made_folder
from pom_export.packaging.names import TARGETS, TRITON_BACKENDS

if TYPE_CHECKING:
    from pom_export.packaging.package import PackageResult


@click.command("package")
@click.argument("model", type=FILE)
@click.option("-o", "--output", required=True, type=FOLDER, help="The folder to write.")
@click.option("--for", "target", required=True, type=Choice(TARGETS), help="The server.")
@click.option("--name", help="The model's name in the server; default: the file's.")
@click.option("--backend", type=Choice(TRITON_BACKENDS), help="What runs the model in Triton; default: python.")
@click.option("--bench", type=FILE, help="results.json of `bench`, to choose the sizes of Triton's batches from.")
@click.option("--engine", type=FILE, help="The engine of the model, for Triton's tensorrt backend.")
@click.option("--tokenizer", type=FILE, help="For genai: a tokenizer.json; default: bytes, for a model of 256 tokens.")
@click.option("--force", is_flag=True, help="Replace an existing package.")
@common_options
def command(model: str, output: str, target: str, force: bool, as_json: bool, verbose: bool, **options: Any) -> None:
    """Put MODEL.onnx into a folder that a server loads, with its configuration, a client, a check and a manifest.

    The folder's README.md has the command that serves it. A file that is rewritten for the server is compared with the
    original first; the exit code is 1 if they differ.
    """
    shown = verbose or not as_json
    with made_folder(Path(output).parent), stages(f"reading {model}", shown=shown, moving=not as_json) as progress:
        from pom_export.packaging.package import package

        result = package(model, output, target=target, force=force, progress=progress, **options)
    print_result(result.to_dict(), as_json, _lines(result))


def _lines(result: PackageResult) -> list[tuple[str, str]]:
    return [
        ("package", f"{result.folder} ({len(result.files)} files, {human_bytes(result.bytes)})"),
        *(("checked", line) for line in result.checked),
        *(("note", line) for line in result.notes),
        ("serve it", f"cd {shlex.quote(result.folder)} && {result.command}"),
    ]
