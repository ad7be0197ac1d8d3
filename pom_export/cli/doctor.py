"""`pom-export doctor`."""

from __future__ import annotations

from collections.abc import Sequence

import click

from pom_export.checkup.parts import PARTS
from pom_export.cli.options import common_options
from pom_export.cli.output import print_result
from pom_export.cli.parameters import FILE, FOLDER, Choice, Listed
from pom_export.cli.progress import stages


@click.command("doctor")
@click.argument("files", type=FILE, nargs=-1)
@click.option("--need", type=Listed(Choice(PARTS)), default=(), help="Parts that must be there; others may be missing.")
@click.option("--triton", type=FOLDER, help="An environment for Triton's Python backend, to check its NumPy.")
@common_options
def command(files: Sequence[str], need: Sequence[str], triton: str | None, as_json: bool, verbose: bool) -> int:
    """Find out what is installed here and what works, by trying it; and whether FILES, models and engines, work here.

    What is broken gets a line with its remedy. The exit code is 1 if something is broken, or if something is missing
    that --need names.
    """
    with stages("trying what is installed", shown=verbose, moving=not as_json) as progress:
        from pom_export.checkup.doctor import doctor

        report = doctor(files, need=need, triton_environment=triton, progress=progress)
    lines = []
    for finding in report.findings:
        lines.append((finding.name, f"{finding.state}: {finding.detail}"))
        if finding.is_fault and finding.remedy:
            lines.append(("", f"remedy: {finding.remedy}"))
    faults = ", ".join(finding.name for finding in report.faults)
    lines.append(("result", f"faults: {faults}" if faults else "healthy" if report else "nothing works"))
    print_result(report.to_dict(), as_json, lines)
    return 0 if report else 1
