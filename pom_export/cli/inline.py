"""`pom-export inline`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pom_export.cli.options import common_options
from pom_export.cli.output import human_bytes, print_result
from pom_export.cli.outputs import writes
from pom_export.cli.parameters import FILE
from pom_export.cli.progress import stages
from pom_export.files import readable_file

if TYPE_CHECKING:
    from pom_export.api import InlineResult


@click.command("inline")
@click.argument("model", type=FILE)
@click.option("-o", "--output", required=True, type=FILE, help="Where the new ONNX file goes.")
@click.option("--inputs", type=FILE, help="A .npz of inputs to compare on, besides random ones.")
@common_options
@writes("output")
def command(model: str, output: str, inputs: str | None, as_json: bool, verbose: bool) -> None:
    """Rewrite MODEL in standard operators, for runtimes that do not expand functions, such as OpenVINO.

    The new file has no functions and no custom op. It is compared with MODEL in ONNX Runtime before it appears; the
    exit code is 1 if they differ.
    """
    if inputs is not None:
        readable_file(inputs, "file of inputs")
    with stages(f"reading {model}", shown=verbose or not as_json, moving=not as_json) as progress:
        from pom_export.api import inline

        result = inline(model, output, inputs=inputs, progress=progress)
    print_result(result.to_dict(), as_json, _lines(result))


def _lines(result: InlineResult) -> list[tuple[str, str]]:
    return [
        ("model", f"{result.model} ({human_bytes(result.bytes)})"),
        ("opset", str(result.opset)),
        ("inlined", f"{result.inlined} aggregation{'s' if result.inlined != 1 else ''}"),
        ("inputs", "; ".join(result.inputs)),
        ("outputs", "; ".join(result.outputs)),
        *(("note", line) for line in result.notes),
        ("agrees with the original on", f"{', '.join(result.checked) or 'nothing'}: {len(result.cases)} cases"),
    ]
