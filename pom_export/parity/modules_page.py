"""A report on a model's modules, as a page of its own or as a section of the parity report."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from pom_export.parity.depth_plot import depth_plot
from pom_export.parity.html import document, sentence, verdict
from pom_export.parity.modules import DebugReport, ModuleResult, ModuleRun

_HEADS = ("module", "type", "error in", "error out", "own error", "bound", "case")


def render_debug(report: DebugReport) -> str:
    """Render a report as an HTML page."""
    facts = [
        ("model", report.model),
        ("reference", report.reference),
        ("first", report.first or "none"),
        *([("cause", report.cause)] if report.cause else []),
        *(("differs", f"{each.module or 'the model itself'}: {each.what}") for each in report.differences),
        *(("failed", reason) for reason in report.failed),
        *(("not run", reason) for reason in report.not_run),
        *(("note", note) for note in report.notes),
    ]
    return document(
        f"Modules of {report.model}", "Modules against the reference", bool(report), facts, module_sections(report)
    )


def module_sections(report: DebugReport) -> list[str]:
    """Return a section for each run: the plot of errors over depth, and the table."""
    note = (
        '<p class="note">Errors are relative to the largest magnitude in the reference\'s tensor. Error in and error '
        "out (line): how far the inputs and outputs in the file are from the reference's. Own error (dots): how far "
        "what it computes is from what the reference's module gives for the file's own values; the dashed line is "
        "its bound.</p>"
    )
    return [*(_section(run) for run in report.runs), note]


def _section(run: ModuleRun) -> str:
    head = "".join(f"<th>{name}</th>" for name in _HEADS)
    title = escape(f"{run.backend}, {run.path}: modules")
    return (
        f"<h2>{title} {verdict(bool(run))}</h2>{depth_plot(run.modules)}"
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{_rows(run.modules)}</tbody></table></div>'
    )


def _rows(modules: Iterable[ModuleResult]) -> str:
    return "".join(_row(each) for each in modules)


def _row(each: ModuleResult) -> str:
    name = each.name if not each.call else f"{each.name}, call {each.call + 1}"
    numbers = "".join(
        f'<td class="number">{_number(number)}</td>'
        for number in (each.error_in, each.error_out, each.error, each.tolerance)
    )
    last = sentence(each.reason or each.case)
    mark = "" if each.passed else f" {verdict(False)}"
    return f"<tr><td>{escape(name)}{mark}</td><td>{escape(each.type)}</td>{numbers}<td>{last}</td></tr>"


def _number(number: float | None) -> str:
    return "" if number is None else f"{number:.2e}"
