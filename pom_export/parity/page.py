"""A parity report as one self-contained HTML page: no scripts, no files beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path

from pom_export.parity.comparison import share_of_tolerance
from pom_export.parity.html import document, sentence, verdict
from pom_export.parity.modules_page import module_sections
from pom_export.parity.report import CaseResult, Comparison, ParityReport


def render_page(report: ParityReport) -> str:
    """Render a report as an HTML page."""
    origin = report.origin
    facts = [
        ("model", report.model),
        ("reference", report.reference),
        ("tolerance for", report.precision),
        *(report.quantized.lines if report.quantized is not None else ()),
        *(("failed", reason) for reason in report.failed),
        *(("not run", reason) for reason in report.not_run),
        *(("note", note) for note in report.notes),
        *([("date", origin.date)] if origin.date else []),
        *([("versions", _versions(origin.versions))] if origin.versions else []),
        *_located_facts(report),
        *((f"sha256 of {Path(file).name}", sha256) for file, sha256 in origin.sha256.items()),
    ]
    note = (
        '<p class="note">max abs: largest absolute difference from the reference. max rel: the same over the '
        "reference's largest magnitude. Used: max abs as a share of the tolerance; a full bar is the limit.</p>"
    )
    sections = [*(_section(comparison) for comparison in report.comparisons), note]
    if report.located is not None:
        sections += module_sections(report.located)
    return document(f"Parity of {report.model}", "Parity with PyTorch", bool(report), facts, sections)


def _located_facts(report: ParityReport) -> list[tuple[str, str]]:
    located = report.located
    if located is None:
        return []
    return [
        ("first module", located.first or "none is out of tolerance"),
        *([("cause", located.cause)] if located.cause else []),
    ]


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())


def _section(comparison: Comparison) -> str:
    title = f"{comparison.backend}, {comparison.path}: output {comparison.output}"
    head = "".join(
        f"<th>{name}</th>" for name in ("case", "inputs", "max abs", "max rel", "cosine", "tolerance", "used")
    )
    return (
        f"<h2>{escape(title)} {verdict(bool(comparison))}</h2>"
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{_rows(comparison.cases)}</tbody></table></div>'
    )


def _rows(cases: Iterable[CaseResult]) -> str:
    return "".join(
        f"<tr><td>{escape(case.case)}</td><td>{escape(case.shapes)}</td>"
        f'<td class="number">{case.difference.max_abs:.2e}</td><td class="number">{case.difference.max_rel:.2e}</td>'
        f'<td class="number">{case.difference.cosine:.9f}</td><td class="number">{case.difference.tolerance:.2e}</td>'
        f"<td>{_bar(case)}</td></tr>"
        for case in cases
    )


def _bar(case: CaseResult) -> str:
    share = share_of_tolerance(case.difference)
    colour = "ok" if case.difference else "bad"
    label = f"{share:.1%}" if share < math.inf else sentence(case.difference.reason) or "beyond any bound"
    return f'<div class="bar"><i class="{colour}" style="width:{min(1.0, share):.1%}"></i></div>{label}'
