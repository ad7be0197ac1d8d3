"""A parity report as one self-contained HTML page: no scripts, no files beside it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Final

from pom_export.parity.comparison import share_of_tolerance
from pom_export.parity.report import CaseResult, Comparison, ParityReport

_STYLE = """
:root { color-scheme: light dark; --ok: #1a7f37; --bad: #c62828; --line: #8884; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .4rem; }
h2 .verdict { font-size: .85rem; }
.verdict { display: inline-block; padding: .15rem .7rem; border-radius: 1rem; color: #fff; font-weight: 600; }
.ok { background: var(--ok); } .bad { background: var(--bad); }
dl { display: grid; grid-template-columns: minmax(6rem, max-content) 1fr; gap: .15rem 1rem; }
dt { opacity: .7; } dd { margin: 0; } dt, dd, h2 { overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line); }
th { font-weight: 600; } td.number { text-align: right; white-space: nowrap; }
.bar { position: relative; display: inline-block; width: 7rem; height: .7rem; margin-right: .6rem;
  background: var(--line); border-radius: .35rem; overflow: hidden; }
.bar i { position: absolute; inset: 0 auto 0 0; border-radius: .35rem; }
.note { opacity: .75; font-size: .9rem; }
@media (max-width: 40rem) {
  body { margin: 1rem auto; } dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .5rem; }
  td:first-child, th:first-child { min-width: 9rem; } .bar { width: 4rem; }
}
"""
# The names of parameters, as the library's messages write them.
_CODE: Final = re.compile("`([^`]+)`")


def render_page(report: ParityReport) -> str:
    """Render a report as an HTML page."""
    verdict = ("ok", "passed") if report else ("bad", "FAILED")
    origin = report.origin
    facts = [
        ("model", report.model),
        ("reference", report.reference),
        ("tolerance for", report.precision),
        *(("failed", reason) for reason in report.failed),
        *(("not run", reason) for reason in report.not_run),
        *(("note", note) for note in report.notes),
        *([("date", origin.date)] if origin.date else []),
        *([("versions", _versions(origin.versions))] if origin.versions else []),
        *((f"sha256 of {Path(file).name}", sha256) for file, sha256 in origin.sha256.items()),
    ]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>Parity of {escape(report.model)}</title><style>{_STYLE}</style></head><body>",
            f'<h1>Parity with PyTorch</h1><p><span class="verdict {verdict[0]}">{verdict[1]}</span></p>',
            "<dl>",
            *(f"<dt>{escape(name)}</dt><dd>{_sentence(value)}</dd>" for name, value in facts),
            "</dl>",
            *(_section(comparison) for comparison in report.comparisons),
            '<p class="note">max abs: largest absolute difference from the reference. max rel: the same over the '
            "reference's largest magnitude. Used: max abs as a share of the tolerance; a full bar is the limit.</p>",
            "</body></html>",
            "",
        ]
    )


def _sentence(text: str) -> str:
    """Return one of the library's sentences as HTML, with names as code."""
    return _CODE.sub(r"<code>\1</code>", escape(text))


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())


def _section(comparison: Comparison) -> str:
    verdict = ("ok", "passed") if comparison else ("bad", "FAILED")
    title = f"{comparison.backend}, {comparison.path}: output {comparison.output}"
    head = "".join(
        f"<th>{name}</th>" for name in ("case", "inputs", "max abs", "max rel", "cosine", "tolerance", "used")
    )
    return (
        f'<h2>{escape(title)} <span class="verdict {verdict[0]}">{verdict[1]}</span></h2>'
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
    label = f"{share:.1%}" if share < math.inf else _sentence(case.difference.reason) or "beyond any bound"
    return f'<div class="bar"><i class="{colour}" style="width:{min(1.0, share):.1%}"></i></div>{label}'
