"""`pom-export verify`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from pom_export.cli.models import check_is_checkpoint, names_module, reference_of
from pom_export.cli.options import common_options, recognition_options
from pom_export.cli.output import print_result
from pom_export.cli.outputs import writes
from pom_export.cli.parameters import FILE, Choice, Listed, Whole
from pom_export.cli.progress import stages
from pom_export.errors import InputError
from pom_export.files import readable_file
from pom_export.runtime.backend_names import BACKENDS

if TYPE_CHECKING:
    from pom_export.parity.report import Comparison, ParityReport


@click.command("verify")
@click.argument("model", type=FILE)
@click.option(
    "--checkpoint", type=FILE, metavar="FILE|MODULE:FACTORY",
    help="The exported checkpoint; default: the parity data saved by `export --samples`.",
)  # fmt: skip
@recognition_options
@click.option("--engine", type=FILE, help="Compare this engine of the model too, on a GPU.")
@click.option(
    "--inputs",
    type=FILE,
    help="A .npz of inputs to compare on; default: random ones. If it has the outputs too, by name, no checkpoint is "
    "needed.",
)
@click.option(
    "--rtol", type=float,
    help="Bound relative to the largest magnitude of the reference output; default: by dtype, 1e-5 for float32.",
)  # fmt: skip
@click.option("--atol", type=float, help="Absolute bound; default: by dtype, 1e-7 for float32.")
@click.option(
    "--backends", type=Listed(Choice(BACKENDS)),
    help="Compare on these, separated by commas, besides the engine; default: all that are installed.",
)  # fmt: skip
@click.option("--seed", type=Whole(0), default=0, show_default=True, help="Seed of the random inputs.")
@click.option("--report", type=FILE, help="Write the comparison as one HTML page.")
@click.option("--locate", is_flag=True, help="Compare every module too, and name the first that is out of tolerance.")
@common_options
@writes("report")
def command(
    model: str, checkpoint: str | None, report: str | None, as_json: bool, verbose: bool, **options: Any
) -> int:
    """Compare MODEL with PyTorch on every backend that runs here; the exit code is 1 if any output differs."""
    _check(checkpoint, options)
    with stages(f"reading {model}", shown=verbose or not as_json, moving=not as_json) as progress:
        from pom_export.api import verify

        reference = reference_of(checkpoint, options["inputs"])
        outcome = verify(model, **reference, report=report, **options, progress=progress)
    print_result(outcome.to_dict(), as_json, _lines(outcome, report))
    return 0 if outcome else 1


def _check(checkpoint: str | None, options: Mapping[str, Any]) -> None:
    """Refuse arguments that do not fit together, before anything that takes seconds to import."""
    from pom_export.api import arguments

    hints = {name: options[name] for name in arguments.HINTS}
    has_module = checkpoint is not None and names_module(checkpoint)
    path = None if has_module else checkpoint
    arguments.check_bounds(options["rtol"], options["atol"])
    if options["locate"] and checkpoint is None:
        raise InputError("--locate compares modules, and only outputs are known", "Give --checkpoint")
    arguments.check_reference(path, has_module=has_module, has_examples=False, hints=hints)
    if path is not None:
        check_is_checkpoint(path)
    if options["inputs"] is not None:
        readable_file(options["inputs"], "file of inputs")


def _lines(outcome: ParityReport, report: str | None) -> list[tuple[str, str]]:
    return [
        ("reference", outcome.reference),
        *((f"{each.backend} ({each.path})", _line(each)) for each in outcome.comparisons),
        *(outcome.quantized.lines if outcome.quantized is not None else ()),
        *(("failed to run", reason) for reason in outcome.failed),
        *(("not run", reason) for reason in outcome.not_run),
        *(("note", note) for note in outcome.notes),
        *([("report", report)] if report is not None else []),
        *_located(outcome),
        ("result", "passed" if outcome else "FAILED"),
    ]


def _located(outcome: ParityReport) -> list[tuple[str, str]]:
    if outcome.located is None:
        return []
    cause = outcome.located.cause
    return [
        ("first module", outcome.located.first or "none is out of tolerance"),
        *([("cause", cause)] if cause else []),
    ]


def _line(comparison: Comparison) -> str:
    worst = comparison.worst
    found = worst.difference
    numbers = found.broken or f"max_abs {found.max_abs:.2e}, tolerance {found.tolerance:.2e}"
    count = len(comparison.cases)
    which = f"worst of {count} cases" if count > 1 else "one case"
    return f"{'pass' if comparison else 'FAIL'}  {comparison.output}: {numbers}, {which}: {worst.case}"
