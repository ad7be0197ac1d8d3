"""`pom-export verify`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pom_export.cli.output import Progress, common_options, print_result, recognition_options
from pom_export.cli.parameters import FILE

if TYPE_CHECKING:
    from pom_export.parity.report import Comparison


@click.command("verify")
@click.argument("model", type=FILE)
@click.option(
    "--checkpoint", type=FILE, help="The checkpoint that was exported; default: parity data saved by --samples."
)
@recognition_options
@click.option("--engine", type=FILE, help="Compare this engine of the model too, where a GPU is.")
@click.option(
    "--inputs",
    type=FILE,
    help="A .npz of inputs to compare on; with their outputs in it, by name, no checkpoint is needed.",
)
@click.option("--rtol", type=float, help="Bound relative to the largest magnitude of the reference output.")
@click.option("--atol", type=float, help="Absolute bound.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the random inputs.")
@click.option("--report", type=FILE, help="Write the comparison as one HTML page.")
@common_options
def command(
    model: str,
    checkpoint: str | None,
    family: str | None,
    degree: int | None,
    heads: int | None,
    in_context_start: int | None,
    weights: str | None,
    engine: str | None,
    inputs: str | None,
    rtol: float | None,
    atol: float | None,
    seed: int,
    report: str | None,
    as_json: bool,
    verbose: bool,
) -> int:
    """Compare MODEL with PyTorch on every backend that runs here; exit code 1 when any output differs."""
    progress = Progress(verbose or not as_json)
    progress(f"reading {model}")
    from pom_export.api import verify

    outcome = verify(
        model,
        checkpoint=checkpoint,
        weights=weights,
        family=family,
        degree=degree,
        heads=heads,
        in_context_start=in_context_start,
        engine=engine,
        inputs=inputs,
        rtol=rtol,
        atol=atol,
        seed=seed,
        report=report,
        progress=progress,
    )
    lines = [("reference", outcome.reference)]
    for comparison in outcome.comparisons:
        lines.append((f"{comparison.backend} ({comparison.path})", _line(comparison)))
    lines += [("failed to run", reason) for reason in outcome.failed]
    lines += [("not run", reason) for reason in outcome.not_run]
    lines += [("note", note) for note in outcome.notes]
    lines += [("report", report)] if report is not None else []
    lines.append(("result", "passed" if outcome else "FAILED"))
    print_result(outcome.to_dict(), as_json, lines)
    return 0 if outcome else 1


def _line(comparison: Comparison) -> str:
    worst = comparison.worst
    found = worst.difference
    numbers = found.broken or f"max_abs {found.max_abs:.2e}, tolerance {found.tolerance:.2e}"
    return (
        f"{'pass' if comparison else 'FAIL'}  {comparison.output}: {numbers}, "
        f"worst of {len(comparison.cases)} cases: {worst.case}"
    )
