"""`pom-export debug precision`."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from pom_export.api.arguments import check_bounds
from pom_export.cli.flags import as_typed
from pom_export.cli.options import (
    common_options,
    example_inputs_option,
    graph_options,
    opset_option,
    optimize_option,
    recognition_options,
)
from pom_export.cli.output import human_bytes, print_result
from pom_export.cli.parameters import FILE, Choice, Whole
from pom_export.cli.progress import stages
from pom_export.cli.sources import check_source, source_of
from pom_export.files import readable_file
from pom_export.graph.precisions import PRECISIONS, canonical_precision

if TYPE_CHECKING:
    from pom_export.debugging.precision import PrecisionReport


@click.command("precision")
@click.argument("checkpoint", type=FILE, metavar="CHECKPOINT|MODULE:FACTORY")
@click.option(
    "--dtype",
    type=Choice(PRECISIONS[1:], canonical_precision),
    default=PRECISIONS[1],
    show_default=True,
    help="The half-precision type of the file.",
)
@click.option(
    "--rtol", type=float,
    help="Bound on errors, relative to the largest magnitude of an output; default: what `verify` allows.",
)  # fmt: skip
@click.option("--atol", type=float, help="Absolute part of the bound; default: what `verify` allows.")
@graph_options
@opset_option
@optimize_option
@recognition_options
@example_inputs_option
@click.option("--inputs", type=FILE, help="A .npz of inputs to compare on; default: those of an export.")
@click.option("--seed", type=Whole(0), default=0, show_default=True, help="Seed of the random inputs.")
@common_options
def command(checkpoint: str, example_inputs: str | None, as_json: bool, verbose: bool, **options: Any) -> int:
    """Find the modules that must stay in float32 so that a half-precision file meets a tolerance.

    CHECKPOINT and the options are those of `export`. A few files are made, each with some modules in float32, run as a
    device would run them, and compared with PyTorch. The result is the command that exports such a file; the exit code
    is 1 if the tolerance is not met even with all modules in float32.
    """
    check_bounds(options["rtol"], options["atol"])
    check_source(checkpoint, example_inputs, options)
    if options["inputs"] is not None:
        readable_file(options["inputs"], "file of inputs")
    with stages(f"reading {checkpoint}", shown=verbose or not as_json, moving=not as_json) as progress:
        from pom_export.api import debug_precision

        model, examples = source_of(checkpoint, example_inputs, [])
        report = debug_precision(model, example_inputs=examples, **options, progress=progress)
    given = {"example_inputs": example_inputs, **options}
    export = None if report.keep is None else _export_command(checkpoint, given, report.keep)
    print_result({**report.to_dict(), "command": export}, as_json, _lines(report, export))
    return 0 if report else 1


def _export_command(checkpoint: str, given: Mapping[str, Any], keep: Sequence[str]) -> str:
    """Return the command that exports a file with these modules in float32."""
    from pom_export.cli.export import command as export

    words = ["pom-export", "export", checkpoint, "-o", "model.onnx"]
    for option in export.params:
        if isinstance(option, click.Option):
            words += _words(option, {**given, "keep_float32": keep}.get(option.name or ""))
    return shlex.join(words)


def _words(option: click.Option, value: Any) -> Iterator[str]:
    """Yield the words by which an option gets a value, none if that is its default."""
    if value is None or value == option.default:
        return
    if isinstance(value, bool):
        if value or option.secondary_opts:
            yield (option.opts if value else option.secondary_opts)[-1]
        return
    for each in value if option.multiple else [value]:
        yield from (option.opts[-1], as_typed(each))


def _lines(report: PrecisionReport, export: str | None) -> list[tuple[str, str]]:
    trial = report.trial
    lines = [(f"trial {number}", str(each)) for number, each in enumerate(report.trials, 1)]
    lines.append(("tolerance", f"{report.rtol:g} of the largest magnitude, and {report.atol:g}"))
    if report.keep is None:
        lines.append(("keep in float32", "not even all modules are enough: use another dtype, or a wider tolerance"))
    else:
        lines.append(("keep in float32", ", ".join(report.keep) or "nothing: all of it may be in half precision"))
    if trial.error is not None:
        lines.append(("error", f"{trial.error:.2e}"))
    if trial.bytes is not None:
        lines.append(("size", _size(report, trial.bytes)))
    return [
        *lines,
        *([("command", export)] if export is not None else []),
        ("result", "passed" if report else "FAILED"),
    ]


def _size(report: PrecisionReport, size: int) -> str:
    half = report.trials[0].bytes
    besides = "" if half is None or half == size else f"; {human_bytes(half)} with all of it in half precision"
    return human_bytes(size) + besides
