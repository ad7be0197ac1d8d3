"""Quantize the demo's model to int8 and int4: what each file loses, how small it is, how fast, and what it writes.

    python samples/09_quantize.py

Uses the stateful model that the demo leaves in out/, and exports it if it is missing. It is quantized on the text that
it was trained on, CPython's help topics, of which training held out the last tenth. So does this sample: `quantize`
gets the last four tenths, and measures on the last quarter of what it gets. (Where another CPython than 3.11 runs this,
its topics differ a little from those of training.) Products whose int4 weights would cost too much have int8 in the
int4 file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from pydoc_data import topics

import click
import numpy as np

import pom_export

CHECKPOINT = Path(__file__).resolve().parent / "checkpoints" / "byte_lm.safetensors"
PROMPT = 'The "if" statement is used for '
TYPES = ("int8", "int4")


def write_text(path: Path) -> None:
    """Write the last four tenths of the topics: three to calibrate on, and the one that training held out."""
    text = "\n\n".join(topics.topics[name] for name in sorted(topics.topics)).encode()
    path.write_text(text[len(text) * 6 // 10 :].decode(errors="ignore"), encoding="utf-8")


def row(cells: Sequence[str]) -> str:
    return f"{cells[0]:10}" + "".join(f"{cell:>14}" for cell in cells[1:])


def table(results: Sequence[pom_export.QuantizeResult]) -> Iterable[str]:
    """Lay out what `quantize` measured; its times are relative to float32's, measured in turns."""
    calls = [each.what for each in results[0].speed]
    yield row(["", "bytes", "bits a byte", "same choice", *(f"{what} time" for what in calls)])
    first = results[0]
    yield row(["float32", f"{first.original_bytes:,}", f"{first.quality.original:.4f}", *["1.00"] * (1 + len(calls))])
    for each in results:
        quality = each.quality
        measured = [f"{each.bytes:,}", f"{quality.quantized:.4f}", f"{quality.agreement:.4f}"]
        yield row([each.weights, *measured, *(f"{call.ratio:.2f}" for call in each.speed)])


def continue_greedily(model: Path, tokens: int) -> str:
    """Return what a file writes after the prompt, always taking the likeliest byte."""
    session = pom_export.StreamingSession(model)
    logits = session.prefill(np.frombuffer(PROMPT.encode(), np.uint8).astype(np.int64)[None])[:, -1]
    written = bytearray()
    while len(written) < tokens:
        token = logits.argmax(axis=-1)
        written.append(int(token[0]))
        logits = session.step(token)
    return written.decode(errors="replace")


@click.command(help=__doc__)
@click.option("-o", "--output", default="out", type=click.Path(path_type=Path), show_default=True)
@click.option("--tokens", type=click.IntRange(1), default=120, show_default=True)
def main(output: Path, tokens: int) -> None:
    output.mkdir(parents=True, exist_ok=True)
    model, text = output / "stateful.onnx", output / "topics.txt"
    if not model.exists():
        pom_export.export(CHECKPOINT, model, stateful=True)
    write_text(text)
    files, results = {"float32": model}, []
    for kind in TYPES:
        click.echo(f"quantizing to {kind}", err=True)
        files[kind] = output / f"{kind}.onnx"
        results.append(pom_export.quantize(model, files[kind], weights=kind, calibrate=text, tokenizer="bytes"))
    click.echo("\n".join(table(results)))
    for result in results:
        if result.kept:
            click.echo(f"\n{result.weights}: {len(result.kept)} of {sum(result.products.values())} products are wider")
    for kind, file in files.items():
        click.secho(f"\n{kind}:", bold=True)
        click.echo(PROMPT + continue_greedily(file, tokens))


if __name__ == "__main__":
    main()
