"""How much our kernels save: one causal and one unmasked layer, timed side by side.

    python samples/03_compare_speed.py          # or: make bench

PyTorch eager (this toolkit's layer), the exported file in ONNX Runtime with the op's function, and with our kernel.
Runs are interleaved and medians compared, since machines are noisy: trust the ratios, not the milliseconds.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch

import pom_export

DIM, DEGREE, EXPAND = 512, 3, 2


def time_interleaved(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the median time of each function in milliseconds; one untimed call of each comes first."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(repeats + 1):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            if repeat:
                times[name].append(1e3 * (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in times.items()}


def contestants(
    mixer: pom_export.PolynomialMixer, mask: str, tokens: int, folder: Path
) -> dict[str, Callable[[], object]]:
    """Return what is timed, by name."""
    model = folder / f"{mask}.onnx"
    if not model.exists():
        pom_export.export(mixer, model, mask=mask)
    x = torch.randn(1, tokens, DIM)
    feed = {"x": x.numpy()}
    sessions = [pom_export.inference_session(model, kernels=kernels) for kernels in (False, True)]

    def eager() -> object:
        with torch.no_grad():
            return mixer(x, mask=None if mask == "none" else mask)

    return {
        "torch": eager,
        "function": lambda: sessions[0].run(None, feed),
        "kernel": lambda: sessions[1].run(None, feed),
    }


@click.command(help=__doc__)
@click.option("--tokens", default="256,1024,4096", show_default=True, help="Sequence lengths.")
@click.option("--repeats", default=9, show_default=True, help="Timed runs of each.")
def main(tokens: str, repeats: int) -> None:
    torch.manual_seed(0)
    mixer = pom_export.PolynomialMixer(DIM, DEGREE, EXPAND).eval()
    click.echo(f"dim {DIM}, degree {DEGREE}, expand {EXPAND}, batch 1, float32, {torch.get_num_threads()} threads; ms")
    click.echo(f"{'mask':8}{'tokens':>8}{'torch':>10}{'function':>10}{'kernel':>10}{'function/kernel':>18}")
    with tempfile.TemporaryDirectory() as folder:
        for mask in ("none", "causal"):
            for count in map(int, tokens.split(",")):
                ms = time_interleaved(contestants(mixer, mask, count, Path(folder)), repeats)
                ratio = np.divide(ms["function"], ms["kernel"])
                cells = "".join(f"{ms[name]:10.2f}" for name in ("torch", "function", "kernel"))
                click.echo(f"{mask:8}{count:8d}{cells}{ratio:17.2f}x")


if __name__ == "__main__":
    main()
