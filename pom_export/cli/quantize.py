"""`pom-export quantize`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from pom_export.cli.options import common_options
from pom_export.cli.output import human_bytes, print_result
from pom_export.cli.outputs import writes
from pom_export.cli.parameters import FILE, Choice, File, Parsed, Whole, parse_share
from pom_export.cli.progress import stages
from pom_export.files import readable_file
from pom_export.graph.claims import WEIGHT_TYPES
from pom_export.quantization.names import ACTIVATION_TYPES, PURPOSES, RUNTIMES
from pom_export.text.tokenizers import AUTO, NAMES, is_file

if TYPE_CHECKING:
    from pom_export.quantization.quality import Quality
    from pom_export.quantization.report import QuantizedModule, QuantizeResult

_MOST_KEPT = 8


@click.command("quantize")
@click.argument("model", type=FILE)
@click.option("-o", "--output", required=True, type=FILE, help="Where the new ONNX file goes.")
@click.option(
    "--weights", type=Choice(WEIGHT_TYPES),
    help="The type of most weights; where it costs too much, products get the next wider one. Default: int8, or that "
    "of --activations.",
)  # fmt: skip
@click.option(
    "--activations", type=Choice(ACTIVATION_TYPES),
    help="For TensorRT: round what the products multiply too, with scales that are fixed in the file.",
)  # fmt: skip
@click.option(
    "--runtime", type=Choice(RUNTIMES), help="What runs the file; default: onnxruntime, or tensorrt if needed."
)
@click.option(
    "--calibrate", type=FILE,
    help="Text, or a .npz of the model's inputs and maybe labels; a quarter is held out to measure on. Default: text "
    "that the model writes, or random inputs.",
)  # fmt: skip
@click.option("--tokenizer", type=File(NAMES), default=AUTO, help="auto, bytes, gpt2, or a tokenizer.json.")
@click.option(
    "--max-loss", type=Parsed(parse_share), metavar="SHARE",
    help="The most that bits a byte or accuracy may get worse, such as 0.5%; default: 1%, if --max-error is not given.",
)  # fmt: skip
@click.option(
    "--max-error", type=Parsed(parse_share), metavar="SHARE",
    help="The largest error of an output, as a share of its largest magnitude.",
)  # fmt: skip
@click.option(
    "--keep-float32", multiple=True, metavar="NAME",
    help="Leave this module's products in float32; several times, or a pattern such as 'blocks.0.*'.",
)  # fmt: skip
@click.option(
    "--for", "target", type=Choice(PURPOSES), default=PURPOSES[0], show_default=True,
    help="What has to be fast: one token a call (decode), prompts (prefill), or both.",
)  # fmt: skip
@click.option("--seed", type=Whole(0), default=0, show_default=True, help="Seed of random inputs.")
@common_options
@writes("output")
def command(
    model: str, output: str, calibrate: str | None, tokenizer: str, as_json: bool, verbose: bool, **options: Any
) -> None:
    """Write MODEL with weights of 8 or 4 bits, as far as its quality allows.

    The new file is compared with MODEL with the same rounded weights before it appears, and measured on inputs that
    were held out; the exit code is 1 if they differ, or if no file is within the budget.
    """
    if calibrate is not None:
        readable_file(calibrate, "file to calibrate on")
    if is_file(tokenizer):
        readable_file(tokenizer, "tokenizer's file")
    with stages(f"reading {model}", shown=verbose or not as_json, moving=not as_json) as progress:
        from pom_export.api import quantize

        result = quantize(model, output, calibrate=calibrate, tokenizer=tokenizer, **options, progress=progress)
    print_result(result.to_dict(), as_json, lines_of(result, verbose=verbose))


def lines_of(result: QuantizeResult, *, verbose: bool) -> list[tuple[str, str]]:
    """Return what people read of a result."""
    share = result.bytes / result.original_bytes
    counts = ", ".join(f"{count} in {kind}" for kind, count in result.products.items())
    return [
        ("model", f"{result.model} ({human_bytes(result.bytes)}, {share:.0%} of the original's)"),
        ("products", f"{sum(result.products.values())}: {counts}"),
        *_kept(result, verbose=verbose),
        ("form", result.form),
        *((each.name or "the model itself", _module(each)) for each in result.modules),
        *_quality(result.quality),
        ("measured on", result.measured_on),
        *(
            (f"{each.what} here", f"{each.ratio:.2f} of the original's time ({each.quantized_ms:.2f} ms)")
            for each in result.speed
        ),
        *(("note", line) for line in result.notes),
        ("agrees with its rounded weights on", f"{', '.join(result.checked)}: {len(result.cases)} cases"),
    ]


def _kept(result: QuantizeResult, *, verbose: bool) -> Iterator[tuple[str, str]]:
    items = list(result.kept.items())
    shown = items if verbose else items[:_MOST_KEPT]
    yield from ((f"kept in {kind}", name) for name, kind in shown)
    if len(items) > len(shown):
        yield "kept wider", f"{len(items) - len(shown)} more (-v lists them)"


def _module(each: QuantizedModule) -> str:
    after = "" if each.error_out is None else f"; its outputs are off by {each.error_out:.2e}"
    return f"{each.weights}, error of its weights {each.error:.2e}{after}"


def _change(loss: float) -> str:
    return f"{abs(loss):.2%} {'better' if loss < 0 else 'worse'}"


def _quality(quality: Quality) -> Iterator[tuple[str, str]]:
    if quality.measure and quality.original is not None and quality.quantized is not None:
        loss = "" if quality.loss is None else f" ({_change(quality.loss)})"
        yield quality.measure, f"{quality.original:.4f} before, {quality.quantized:.4f} now{loss}"
    if quality.agreement is not None:
        yield "agreement", f"{quality.agreement:.2%} of the likeliest outputs are the same"
    if quality.psnr is not None:
        yield "PSNR", f"{quality.psnr:.1f} dB"
    yield "largest error", f"{quality.error:.2e} of the largest output (root mean square: {quality.rms_error:.2e})"
