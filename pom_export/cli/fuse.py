"""`pom-export fuse`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pom_export.cli.options import common_options
from pom_export.cli.output import human_bytes, print_result
from pom_export.cli.outputs import writes
from pom_export.cli.parameters import FILE
from pom_export.cli.progress import stages

if TYPE_CHECKING:
    from pom_export.api import FuseResult


@click.command("fuse")
@click.argument("model", type=FILE)
@click.option("-o", "--output", required=True, type=FILE, help="Where the new ONNX file goes.")
@click.option(
    "--optimize/--no-optimize", default=True, show_default=True,
    help="Rewrite products and gates around the aggregations.",
)  # fmt: skip
@common_options
@writes("output")
def command(model: str, output: str, optimize: bool, as_json: bool, verbose: bool) -> int:
    """Put the custom op into MODEL, a file that another exporter made of standard operators.

    The new file is compared with MODEL in ONNX Runtime before it appears. What is almost an aggregation is listed with
    the reason why it stays as it is. The exit code is 1, and nothing is written, if there is nothing to fuse or the
    outputs differ.
    """
    with stages(f"reading {model}", shown=verbose or not as_json, moving=not as_json) as progress:
        from pom_export.api import fuse

        result = fuse(model, output, optimize=optimize, progress=progress)
    print_result(result.to_dict(), as_json, _lines(result))
    return 0 if result else 1


def _lines(result: FuseResult) -> list[tuple[str, str]]:
    written = [
        ("model", f"{result.model} ({human_bytes(result.bytes or 0)})"),
        ("agrees with the original on", f"{', '.join(result.checked)}: {len(result.cases)} cases"),
    ]
    return [
        ("fused", str(result.fused)),
        *([("had the op before", str(result.kept))] if result.kept else []),
        *(("left as it is", f"{each['node']}: {each['reason']}") for each in result.left),
        *(("note", line) for line in result.notes),
        *(written if result else [("result", "nothing was fused, and no file was written")]),
    ]
