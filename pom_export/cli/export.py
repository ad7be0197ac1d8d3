"""`pom-export export`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from pom_export.cli.models import check_is_checkpoint, model_from, names_module
from pom_export.cli.options import common_options, recognition_options
from pom_export.cli.output import aggregations_line, human_bytes, print_result
from pom_export.cli.outputs import writes
from pom_export.cli.parameters import FILE, Choice, Parsed, Whole, parse_static
from pom_export.cli.progress import stages
from pom_export.errors import InputError
from pom_export.files import check_replaceable, readable_file
from pom_export.graph.claims import MASKS
from pom_export.graph.opsets import OPSETS
from pom_export.graph.precisions import PRECISIONS, canonical_precision

if TYPE_CHECKING:
    from pom_export.api import ExportResult

# The suffix of torch.export programs, which have inputs of their own.
_PROGRAM: Final = ".pt2"
# What messages call the file that --example-inputs names.
_EXAMPLES: Final = "file of example inputs"


@click.command("export")
@click.argument("checkpoint", type=FILE, metavar="CHECKPOINT|MODULE:FACTORY")
@click.option("-o", "--output", required=True, type=FILE, help="Where the ONNX file goes.")
@click.option(
    "--mask", type=Choice(MASKS), help="padding is a (B, N) input, full a (B, T, N) input; default: the model's own."
)
@click.option("--cross", is_flag=True, help="Give the mixer a separate context input.")
@click.option("--positions", is_flag=True, help="Make a rotary mixer's positions an input; 2-D mixers need it.")
@click.option("--stateful", is_flag=True, help="Take and return the state between calls, for streaming.")
@click.option("--block-causal", is_flag=True, help="With --stateful: every token sees its whole call.")
@click.option(
    "--static", type=Parsed(parse_static), metavar="BATCHxTOKENS", help="Fix batch and tokens; default: dynamic."
)
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
@click.option("--opset", type=Choice(OPSETS), help="Version of the standard ops; default: 20, or 22 for bfloat16.")
@click.option(
    "--optimize/--no-optimize", default=True, show_default=True,
    help="Rewrite products and gates around the aggregations.",
)  # fmt: skip
@click.option("--inline", is_flag=True, help="Write standard operators only, for runtimes that expand no functions.")
@recognition_options
@click.option("--example-inputs", type=FILE, help="For a module: a .npz of inputs to trace it with, by name.")
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
    _check(checkpoint, example_inputs, options)
    with stages(f"reading {checkpoint}", shown=verbose or not as_json, moving=not as_json) as progress:
        from pom_export.api import export

        model, examples = _source(checkpoint, example_inputs, output)
        result = export(model, output, example_inputs=examples, **options, progress=progress)
    print_result(result.to_dict(), as_json, _lines(result))


def _check(reference: str, example_inputs: str | None, options: Mapping[str, Any]) -> None:
    """Refuse arguments that do not fit together, before torch is imported, which takes seconds."""
    from pom_export.api import arguments
    from pom_export.graph.options import GraphOptions

    arguments.check_keep(options["keep_float32"], options["dtype"])
    graph = GraphOptions(**{each.name: options[each.name] for each in fields(GraphOptions)})
    hints = {name: options[name] for name in arguments.HINTS}
    if names_module(reference):
        arguments.check_for_module(hints)
        if example_inputs is not None:
            arguments.check_for_own_inputs(graph, hints)
            readable_file(example_inputs, _EXAMPLES)
        return
    if example_inputs is not None:
        raise InputError(f"--example-inputs is for a module, and {reference} is a path", "Leave it out")
    check_is_checkpoint(reference)
    if Path(reference).suffix != _PROGRAM:
        arguments.check_for_checkpoint(graph, hints)


def _source(reference: str, example_inputs: str | None, output: str) -> tuple[Any, Any]:
    """Return a checkpoint's path unchanged, or the module that is named, and its example inputs."""
    from pom_export.arrays import read_npz

    if not names_module(reference):
        return reference, None
    named = model_from(reference)
    check_replaceable(Path(output), [named.file, example_inputs])
    if example_inputs is not None:
        return named.module, read_npz(example_inputs, _EXAMPLES)
    named.check_has_examples(reference, "--example-inputs")
    return named.module, named.example_inputs


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
