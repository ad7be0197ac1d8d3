"""`pom-export debug`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from pom_export.cli.models import check_is_checkpoint, names_module, reference_of
from pom_export.cli.options import common_options, recognition_options
from pom_export.cli.output import print_result
from pom_export.cli.outputs import writes
from pom_export.cli.parameters import FILE, Whole
from pom_export.cli.progress import stages
from pom_export.files import readable_file

if TYPE_CHECKING:
    from pom_export.parity.modules import DebugReport, ModuleResult

_MOST_LINES = 40


class _Debug(click.Command):
    """The command, whose first argument may also be the name of another: `debug precision`."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        if args[:1] == ["precision"]:
            from pom_export.cli.debug_precision import command as precision

            return precision.make_context(f"{info_name} precision", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


@click.command("debug", cls=_Debug)
@click.argument("model", type=FILE)
@click.option("--checkpoint", type=FILE, metavar="FILE|MODULE:FACTORY", help="The exported checkpoint.")
@click.option("--against", type=FILE, help="Another ONNX file of the same model to compare with, instead.")
@click.option("--engine", type=FILE, help="Compare this engine's modules too, if there is a GPU.")
@recognition_options
@click.option("--inputs", type=FILE, help="A .npz of inputs to compare on; default: random ones.")
@click.option(
    "--rtol", type=float,
    help="Bound on each module's own error, relative to the largest magnitude of its outputs; default: by dtype.",
)  # fmt: skip
@click.option("--seed", type=Whole(0), default=0, show_default=True, help="Seed of the random inputs.")
@click.option("--report", type=FILE, help="Write the errors of all modules, and a plot of them, as one HTML page.")
@common_options
@writes("report")
def command(
    model: str, checkpoint: str | None, report: str | None, as_json: bool, verbose: bool, **options: Any
) -> int:
    """Name the first module of MODEL whose outputs differ from PyTorch's; the exit code is 1 if there is one.

    `pom-export debug precision CHECKPOINT` finds the modules that must stay in float32 in a half-precision file.
    """
    _check(checkpoint, options)
    with stages(f"reading {model}", shown=verbose or not as_json, moving=not as_json) as progress:
        from pom_export.api import debug

        reference = reference_of(checkpoint, options["inputs"])
        outcome = debug(model, **reference, report=report, **options, progress=progress)
    print_result(outcome.to_dict(), as_json, _lines(outcome, report, verbose=verbose))
    return 0 if outcome else 1


def _check(checkpoint: str | None, options: dict[str, Any]) -> None:
    """Refuse arguments that do not fit together, before anything that takes seconds to import."""
    from pom_export.api import arguments

    hints = {name: options[name] for name in arguments.HINTS}
    has_module = checkpoint is not None and names_module(checkpoint)
    path = None if has_module else checkpoint
    arguments.check_bounds(options["rtol"], None)
    arguments.check_reference(path, has_module=has_module, has_examples=False, hints=hints)
    if path is not None:
        check_is_checkpoint(path)
    for name, what in (("inputs", "file of inputs"), ("against", "model"), ("engine", "engine")):
        if options[name] is not None:
            readable_file(options[name], what)


def _lines(outcome: DebugReport, report: str | None, *, verbose: bool) -> list[tuple[str, str]]:
    compared = [each for each in outcome.modules if each.compared]
    left_out = [each.name for each in outcome.modules if not each.compared]
    shown = compared if verbose else [each for each in compared if not each.passed][:_MOST_LINES]
    return [
        ("reference", outcome.reference),
        *((f"{run.backend} ({run.path})", _summary(run.modules)) for run in outcome.runs),
        *((_name(each), _errors(each)) for each in shown),
        *([("not in the graph", ", ".join(left_out))] if left_out else []),
        *(
            ("differs", f"{each.module or 'the model itself'}: {each.what}")
            for each in outcome.differences[:_MOST_LINES]
        ),
        *(("failed to run", reason) for reason in outcome.failed),
        *(("not run", reason) for reason in outcome.not_run),
        *(("note", note) for note in outcome.notes),
        *([("report", report)] if report is not None else []),
        ("first", outcome.first or "no module is out of tolerance"),
        *([("cause", outcome.cause)] if outcome.cause else []),
        ("result", "passed" if outcome else "FAILED"),
    ]


def _summary(modules: Any) -> str:
    compared = [each for each in modules if each.compared]
    wrong = sum(not each.passed for each in compared)
    return f"{len(compared)} modules compared, {wrong} out of tolerance"


def _name(each: ModuleResult) -> str:
    return each.name if not each.call else f"{each.name} (call {each.call + 1})"


def _errors(each: ModuleResult) -> str:
    before = "none" if each.error_in is None else f"{each.error_in:.2e}"
    return (
        f"{'pass' if each.passed else 'FAIL'}  error in {before}, error out {each.error_out:.2e}; "
        f"own error {each.error:.2e}, bound {each.tolerance:.2e}"
    )
