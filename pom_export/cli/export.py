"""`pom-export export`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pom_export.api.arguments import check_keep
from pom_export.cli.options import (
    common_options,
    example_inputs_option,
    graph_options,
    opset_option,
    optimize_option,
    recognition_options,
)
from pom_export.cli.output import aggregations_line, human_bytes, print_result
from pom_export.cli.outputs import writes
from pom_export.cli.parameters import FILE, Choice, Whole
from pom_export.cli.progress import stages
from pom_export.cli.sources import check_source, source_of
from pom_export.graph.precisions import PRECISIONS, canonical_precision

if TYPE_CHECKING:
    from pom_export.api import ExportResult


@click.command("export")
@click.argument("checkpoint", type=FILE, metavar="CHECKPOINT|MODULE:FACTORY")
@click.option("-o", "--output", required=True, type=FILE, help="Where the ONNX file goes.")
@graph_options
@click.option(
    "--dtype",
    type=Choice(PRECISIONS, canonical_precision),
    default=PRECISIONS[0],
    show_default=True,
    help="Also fp16, half, bf16; values beyond its range stay float32.",
)
@click.option(
    "--keep-float32", multiple=True, metavar="NAME",
    help="In half precision, compute this module in float32; several times, or a pattern such as 'blocks.*.mixer'.",
)  # fmt: skip
@opset_option
@optimize_option
@click.option("--inline", is_flag=True, help="Write standard operators only, for runtimes that expand no functions.")
@recognition_options
@example_inputs_option
@click.option(
    "--samples", type=Whole(0), default=0, show_default=True,
    help="How many inputs to save with their outputs, for `verify`.",
)  # fmt: skip
@common_options
@writes("output")
def command(
    checkpoint: str, output: str, example_inputs: str | None, as_json: bool, verbose: bool, **options: Any
) -> None:
    """Export a checkpoint, or a module of your own, to ONNX with the custom op.

    CHECKPOINT is a .safetensors file, a state dict saved by torch.save (or a trainer's dict around one), a folder in
    Hugging Face's layout, or a torch.export program (.pt2) that contains our mixers, or the plain operators of some.
    What cannot be inferred from its shapes comes from a config.json beside it, its metadata, or options.

    MODULE:FACTORY names an nn.Module, or a callable without arguments that returns one, in a module that Python can
    import from here. A model that is not one of ours needs inputs to trace it with: either the factory returns (module,
    example_inputs), such as (model, (x, mask)) or (model, {"x": x}), or --example-inputs names a file.

    The file is compared with PyTorch before it appears; the exit code is 1 if they differ.
    """
    check_keep(options["keep_float32"], options["dtype"])
    check_source(checkpoint, example_inputs, options)
    with stages(f"reading {checkpoint}", shown=verbose or not as_json, moving=not as_json) as progress:
        from pom_export.api import export

        model, examples = source_of(checkpoint, example_inputs, [output])
        result = export(model, output, example_inputs=examples, **options, progress=progress)
    print_result(result.to_dict(), as_json, _lines(result))


def _lines(result: ExportResult) -> list[tuple[str, str]]:
    return [
        ("model", f"{result.model} ({human_bytes(result.bytes)})"),
        ("opset", str(result.opset)),
        ("aggregations", aggregations_line(result.aggregations, result.inlined)),
        ("inputs", "; ".join(result.inputs)),
        ("outputs", "; ".join(result.outputs)),
        *([("kept in float32", ", ".join(result.kept_in_float32))] if result.kept_in_float32 else []),
        *(("note", line) for line in result.notes),
        ("agrees with PyTorch on", ", ".join(result.checked) or "nothing: see the notes and `pom-export verify`"),
    ]
