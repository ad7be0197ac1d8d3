"""The frame of an HTML report: one self-contained page without scripts."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape
from typing import Final

from pom_export.parity import depth_plot

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


def document(title: str, heading: str, passed: bool, facts: Iterable[tuple[str, str]], sections: Iterable[str]) -> str:
    """Return a page.

    Args:
        title: its title.
        heading: its heading.
        passed: whether to say that it passed or failed.
        facts: names and values to begin with.
        sections: the rest, as HTML.
    """
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{_STYLE}{depth_plot.STYLE}</style></head><body>",
            f"<h1>{escape(heading)}</h1><p>{verdict(passed)}</p>",
            "<dl>",
            *(f"<dt>{escape(name)}</dt><dd>{sentence(value)}</dd>" for name, value in facts),
            "</dl>",
            *sections,
            "</body></html>",
            "",
        ]
    )


def verdict(passed: bool) -> str:
    """Return a coloured "passed" or "FAILED"."""
    kind, text = ("ok", "passed") if passed else ("bad", "FAILED")
    return f'<span class="verdict {kind}">{text}</span>'


def sentence(text: str) -> str:
    """Return one of the library's sentences as HTML, with names as code."""
    return _CODE.sub(r"<code>\1</code>", escape(text))
