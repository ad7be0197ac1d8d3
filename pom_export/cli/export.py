"""`pom-export export`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
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
from pom_export.cli.parameters import FILE, Choice, Parsed, Whole, parse_share
from pom_export.cli.progress import stages
from pom_export.cli.quantize import lines_of
from pom_export.cli.sources import check_source, source_of
from pom_export.errors import InputError
from pom_export.files import check_replaceable, readable_file, scratch_folder
from pom_export.graph.claims import WEIGHT_TYPES
from pom_export.graph.precisions import PRECISIONS, canonical_precision

if TYPE_CHECKING:
    from pom_export.api import ExportResult
    from pom_export.quantization.report import QuantizeResult


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
@click.option(
    "--quantize", "weights_type", type=Choice(WEIGHT_TYPES[:2]), help="Make the file's weights smaller, see `quantize`."
)
@click.option("--calibrate", type=FILE, help="For --quantize: text or a .npz, see `quantize`.")
@click.option(
    "--max-loss", type=Parsed(parse_share), metavar="SHARE", help="For --quantize: what it may cost; default: 1%."
)
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
    checkpoint: str,
    output: str,
    example_inputs: str | None,
    weights_type: str | None,
    calibrate: str | None,
    max_loss: float | None,
    as_json: bool,
    verbose: bool,
    **options: Any,
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
    quantizing = _check_quantizing(weights_type, calibrate, max_loss, options["dtype"])
    with stages(f"reading {checkpoint}", shown=verbose or not as_json, moving=not as_json) as progress:
        from pom_export.api import export

        model, examples = source_of(checkpoint, example_inputs, [output])

        def job(place: str | Path) -> ExportResult:
            return export(model, place, example_inputs=examples, **options, progress=progress)

        if quantizing is None:
            result, small = job(output), None
        else:
            result, small = _export_and_quantize(job, output, quantizing, progress)
    found = result.to_dict() | ({} if small is None else {"quantized": small.to_dict()})
    print_result(found, as_json, [*_lines(result), *([] if small is None else lines_of(small, verbose=verbose))])


def _check_quantizing(
    weights: str | None, calibrate: str | None, max_loss: float | None, dtype: str
) -> dict[str, Any] | None:
    """Return the arguments of `quantize`; None if the file is not to be quantized."""
    if weights is None:
        for name, value in (("calibrate", calibrate), ("max_loss", max_loss)):
            if value is not None:
                raise InputError(f"`{name}` is for a file that is quantized", "Give --quantize int8 or int4 too")
        return None
    if dtype != PRECISIONS[0]:
        raise InputError(f"--quantize rounds float32 weights, and `dtype` is {dtype}", "Leave out `dtype`")
    if calibrate is not None:
        readable_file(calibrate, "file to calibrate on")
    return {"weights": weights, "calibrate": calibrate, "max_loss": max_loss}


def _export_and_quantize(
    job: Callable[[Path], ExportResult], output: str, options: dict[str, Any], progress: Callable[[str], None]
) -> tuple[ExportResult, QuantizeResult]:
    """Export into a folder that goes away, and quantize that file."""
    from pom_export.api import quantize

    check_replaceable(Path(output), [options["calibrate"]])
    with scratch_folder() as folder:
        exported = job(folder / Path(output).name)
        small = quantize(exported.model, output, **options, progress=progress)
    return replace(exported, model=small.model, bytes=small.bytes, sha256=small.sha256), small


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
