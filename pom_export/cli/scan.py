"""`pom-export scan`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from pom_export.cli.models import check_names_model, model_from
from pom_export.cli.options import common_options
from pom_export.cli.output import human_bytes, print_result, say
from pom_export.cli.parameters import SIZES, Whole
from pom_export.cli.progress import stages
from pom_export.contract import MAX_DEGREE, MIN_DEGREE

if TYPE_CHECKING:
    from pom_export.attention import Finding


@click.command("scan")
@click.argument("model", metavar="MODULE:FACTORY")
@click.option("--tokens", type=SIZES, default="1024,4096", show_default=True, help="Sequence lengths to cost.")
@click.option(
    "--degree", type=Whole(MIN_DEGREE, MAX_DEGREE), default=3, show_default=True,
    help="Degree of the PoM mixers that would replace attention.",
)  # fmt: skip
@click.option("--expand", type=Whole(1), default=2, show_default=True, help="Their channels per model dimension.")
@click.option(
    "--groups", "n_groups", type=Whole(1), default=1, show_default=True, help="Groups in their context projection."
)
@click.option("--trust", is_flag=True, help="Load a module saved by torch.save, which runs code in the file.")
@common_options
def command(
    model: str,
    tokens: Sequence[int],
    degree: int,
    expand: int,
    n_groups: int,
    trust: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """List the attention layers of a model, and what replacing them with PoM would cost and save.

    MODULE:FACTORY names an nn.Module, or a callable without arguments that returns one, in a module that Python can
    import from here. With --trust, it can also be the file of a saved module. Costs are multiply-adds per sequence, and
    the bytes that a sequence keeps while generating: a KV cache, or PoM's state. Nothing is changed:
    pom_export.replace_attention(model) replaces the layers.
    """
    check_names_model(model, trusted=trust)
    with stages(f"building {model}", shown=verbose or not as_json, moving=not as_json):
        from pom_export.attention import scan

        named = model_from(model, trusted=trust)
        findings = scan(named.module, tokens=tokens, degree=degree, expand=expand, n_groups=n_groups)
    if as_json:
        settings = {"model": model, "tokens": tokens, "degree": degree, "expand": expand, "groups": n_groups}
        print_result({**settings, "attention": [finding.to_dict() for finding in findings]}, as_json, [])
        return
    if not findings:
        say("no attention found")
        return
    _print_table(_layer_rows(findings))
    for note in dict.fromkeys(finding.note for finding in findings if finding.note):
        names = [finding.name or "the model" for finding in findings if finding.note == note]
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        say(f"{names[0]}{more}: {note}")
    if any(finding.costs for finding in findings):
        say("")
        _print_table(_cost_rows(findings))


def _layer_rows(findings: Sequence[Finding]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("attention", "class", "in", "dim", "heads", "parameters", "as PoM", "swap")]
    rows += [
        (
            finding.name or ".",
            finding.type,
            finding.layer or "-",
            _count(finding.embed_dim),
            _count(finding.heads),
            _count(finding.parameters),
            _count(finding.parameters_after),
            "automatic" if finding.replaceable else "by hand",
        )
        for finding in findings
    ]
    return rows


def _cost_rows(findings: Sequence[Finding]) -> list[tuple[str, ...]]:
    """Return one row per sequence length, summed over the layers of known size."""
    rows: list[tuple[str, ...]] = [("tokens", "attention MACs", "PoM MACs", "ratio", "KV cache", "PoM state")]
    for costs in zip(*(finding.costs for finding in findings if finding.costs), strict=True):
        attention, pom = sum(cost.attention_macs for cost in costs), sum(cost.pom_macs for cost in costs)
        cache, state = sum(cost.cache_bytes for cost in costs), sum(cost.state_bytes for cost in costs)
        macs = f"{attention / 1e6:,.1f} M", f"{pom / 1e6:,.1f} M", f"{attention / pom:.2f}x"
        rows.append((f"{costs[0].tokens:,}", *macs, human_bytes(cache), human_bytes(state)))
    return rows


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
