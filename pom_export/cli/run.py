"""`pom-export run`."""

from __future__ import annotations

from typing import Any

import click

from pom_export.batches.budget import MOST_ROWS, MOST_TOKENS
from pom_export.cli.options import common_options
from pom_export.cli.output import print_result
from pom_export.cli.parameters import FILE, Whole
from pom_export.cli.progress import stages


@click.command("run")
@click.argument("model", type=FILE)
@click.option("--inputs", type=FILE, required=True, help="Sequences: an .npz, an .npy, or a folder of such files.")
@click.option("-o", "--output", type=FILE, required=True, help="Where their outputs go: an .npz, an .npy or a folder.")
@click.option(
    "--batch", type=Whole(1), default=MOST_ROWS, show_default=True, help="Most sequences in a call."
)  # fmt: skip
@click.option(
    "--max-tokens", type=Whole(1), help=f"Most tokens in a call, padding included; default: {MOST_TOKENS} on the CPU."
)
@click.option("--ray", is_flag=True, help="Spread the calls over a Ray cluster, or over this machine's processors.")
@common_options
def command(model: str, inputs: str, output: str, as_json: bool, verbose: bool, **options: Any) -> None:
    """Run many sequences through MODEL, an ONNX file, in batches, with the numbers that each gives by itself.

    An .npz holds arrays named after the file's inputs, with a leading axis of sequences (and lengths, if they were
    padded), or arrays named INPUT/SEQUENCE. In a folder, each file is a sequence. The outputs have the same form.
    Sequences of different lengths share a call only if padding does not change the outputs.
    """
    with stages(f"loading {model}", shown=verbose or not as_json, moving=not as_json) as progress:
        from pom_export.batches.running import run_files

        result = run_files(model, inputs, output, progress=progress, **options)
    rates = [f"{result.sequences_per_second:,.1f} sequences/s"]
    if result.tokens_per_second is not None:
        rates.append(f"{result.tokens_per_second:,.0f} tokens/s")
    lines = [
        ("output", result.output),
        ("sequences", f"{result.sequences:,} in {result.calls:,} {'call' if result.calls == 1 else 'calls'}"),
        *([("tokens", f"{result.tokens:,}")] if result.tokens is not None else []),
        ("seconds", f"{result.seconds:.2f}: {', '.join(rates)}"),
        *(("note", note) for note in result.notes),
    ]
    print_result(result.to_dict(), as_json, lines)
