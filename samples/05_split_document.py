"""Read a document that no single machine holds: split it, and exchange states of a few hundred bytes.

    python samples/05_split_document.py           # a million tokens over two processes, some fifteen seconds
    python samples/05_split_document.py --ray     # the same over Ray workers: pip install 'ray[data]>=2.40'

What a mixer keeps of its tokens is a sum, so the states of parts add up to that of the whole.

Mean: each part is read from the empty state, and the states are merged. A question that follows the document then sees
all of it.

Causal: each token sees all those before it, in other parts too. A part is read twice: from the empty state, for what
it adds, then from the merged states of the parts before it, for its outputs. There are two such layers, which go one
after the other, each with a merge of its own: a deeper layer's inputs depend on all earlier tokens, so states of a deep
model that each began from nothing do not add up.

A worker reads the bytes of its own part only. At the end everything is compared with one process that has read the
whole document in one pass. The document is CPython's help topics over and over, a token a byte, and the weights are
random: what counts here is that the numbers are the same.
"""

from __future__ import annotations

import importlib.util
import itertools
import logging
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from pydoc_data import topics
from typing import Any

import click
import numpy as np
import numpy.typing as npt

import pom_export

DIM, DEGREE, EXPAND, LAYERS = 32, 3, 2, 2
CHUNK = 4096
QUESTION = b"What does a generator do?"
MOST = 1e-6

Array = npt.NDArray[Any]
# Calls a function on the workers, once per tuple of arguments, and returns the results in order.
Run = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], list[Any]]


def export_layers(folder: Path) -> tuple[Path, list[Path]]:
    """Export a mixer whose calls see all of their own tokens and all earlier ones, and the causal layers."""
    import torch

    torch.manual_seed(0)
    mixers = [pom_export.PolynomialMixer(DIM, DEGREE, EXPAND) for _ in range(LAYERS)]
    mean, layers = folder / "mean.onnx", [folder / f"layer-{number}.onnx" for number in range(LAYERS)]
    pom_export.export(mixers[0], mean, stateful=True, block_causal=True)
    for mixer, layer in zip(mixers, layers, strict=True):
        pom_export.export(mixer, layer, stateful=True)
    return mean, layers


def embed(text: bytes) -> Array:
    """Return a vector for each byte, (tokens, DIM)."""
    table = np.random.default_rng(0).standard_normal((256, DIM), np.float32)
    return table[np.frombuffer(text, np.uint8)]


def open_session(model: Path) -> pom_export.StreamingSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # the workers share the cores
    return pom_export.StreamingSession(model, session_options=options)


def take_part(document: Path, start: int, end: int, vectors: Path) -> None:
    """Embed the bytes from `start` to `end` and write the vectors to a file, which the layers then update in place."""
    with document.open("rb") as file:
        file.seek(start)
        np.save(vectors, embed(file.read(end - start)))


def read(model: Path, vectors: Path, past: pom_export.State | None, write: bool) -> pom_export.State:
    """Run a layer over a file of vectors and return the state after them.

    Args:
        model: the layer's ONNX file.
        vectors: the file of vectors, (tokens, DIM).
        past: the state before these tokens; None for the empty state.
        write: add the layer's outputs to the vectors in the file.
    """
    session = open_session(model)
    if past is not None:
        session.restore(past)
    tokens = np.load(vectors, mmap_mode="r+" if write else "r")
    for start in range(0, len(tokens), CHUNK):
        chunk = tokens[start : start + CHUNK]
        outputs = session.prefill(chunk)
        if write:
            chunk += outputs[0]
    return session.snapshot()


def ask(model: Path, past: pom_export.State) -> Array:
    """Return the outputs for the question's tokens after a state, which is left unchanged."""
    session = open_session(model)
    session.restore(past)
    return session.prefill(embed(QUESTION))


def read_causally(run: Run, layers: list[Path], parts: list[Path]) -> int:
    """Run all layers over all parts; return how many bytes of states were exchanged."""
    exchanged = 0
    for layer in layers:
        added = run(read, [(layer, part, None, False) for part in parts])
        before = list(itertools.accumulate(added[:-1], pom_export.merge_states))
        run(read, [(layer, part, past, True) for part, past in zip(parts, [None, *before], strict=True)])
        exchanged += sum(state.nbytes for state in added + before)
    return exchanged


def difference(actual: Array, expected: Array) -> float:
    """Return the largest difference, relative to the largest value."""
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def sums(state: pom_export.State) -> Array:
    """Return a state's sums in float64; the state stores each as a pair of float32 values."""
    pairs = state.arrays["past_state"].astype(np.float64)
    return pairs[..., 0, :] + pairs[..., 1, :]


@contextmanager
def processes(count: int) -> Iterator[Run]:
    with ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) as pool:
        yield lambda function, calls: list(pool.map(function, *zip(*calls, strict=True)))


@contextmanager
def ray_workers(count: int) -> Iterator[Run]:
    """Start Ray on this machine. On a cluster, `ray.init()` joins it, and files need a folder that all machines see."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    ray.init(num_cpus=count, include_dashboard=False, logging_level=logging.ERROR)
    try:
        yield lambda function, calls: ray.get([ray.remote(function).remote(*call) for call in calls])
    finally:
        ray.shutdown()


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    started = time.perf_counter()
    return function(*arguments), time.perf_counter() - started


def report(name: str, parts: float, whole: float, differences: dict[str, float]) -> None:
    listed = ", ".join(f"{what} {value:.1e}" for what, value in differences.items())
    click.echo(f"{name:8}{parts:8.1f} s{whole:12.1f} s    {listed}")


def compare(run: Run, folder: Path, document: Path, bounds: list[int]) -> tuple[list[float], int]:
    """Read a document in parts and as a whole; return the differences, and how many bytes of states were exchanged."""
    mean, layers = export_layers(folder)
    parts, whole = [folder / f"part-{number}.npy" for number in range(len(bounds) - 1)], folder / "whole.npy"
    run(take_part, [(document, *ends, part) for ends, part in zip(itertools.pairwise(bounds), parts, strict=True)])
    take_part(document, bounds[0], bounds[-1], whole)
    click.echo(f"\n{'':8}{'in parts':>10}{'one process':>14}    largest relative difference")

    states, in_parts = timed(run, read, [(mean, part, None, False) for part in parts])
    merged = pom_export.merge_states(*states)
    expected, as_whole = timed(read, mean, whole, None, False)
    found = {
        "states": difference(sums(merged), sums(expected)),
        "answers": difference(ask(mean, merged), ask(mean, expected)),
    }
    report("mean", in_parts, as_whole, found)

    exchanged, in_parts = timed(read_causally, run, layers, parts)
    _, as_whole = timed(lambda: [read(layer, whole, None, True) for layer in layers])
    outputs = np.load(whole, mmap_mode="r")
    of_parts = [
        difference(np.load(part, mmap_mode="r"), outputs[start:end])
        for part, (start, end) in zip(parts, itertools.pairwise(bounds), strict=True)
    ]
    report("causal", in_parts, as_whole, {f"outputs of {LAYERS} layers": float(np.max(of_parts))})
    return [*found.values(), *of_parts], exchanged


@click.command(help=__doc__)
@click.option("--tokens", type=click.IntRange(16), default=1_000_000, show_default=True)
@click.option("--parts", type=click.IntRange(1, 16), default=4, show_default=True)
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True)
@click.option("--ray", "on_ray", is_flag=True, help="Use Ray workers instead of processes.")
def main(tokens: int, parts: int, workers: int, on_ray: bool) -> None:
    if on_ray and importlib.util.find_spec("ray") is None:
        click.echo("--ray needs Ray, which is not installed: pip install 'ray[data]>=2.40'", err=True)
        sys.exit(2)
    bounds = [tokens * number // parts for number in range(parts + 1)]
    click.echo(f"{tokens:,} tokens in {parts} parts, on {workers} {'Ray workers' if on_ray else 'processes'}")
    with tempfile.TemporaryDirectory() as name, (ray_workers if on_ray else processes)(workers) as run:
        text = "\n\n".join(topics.topics[topic] for topic in sorted(topics.topics)).encode()
        document = Path(name) / "document.txt"
        document.write_bytes((text * -(-tokens // len(text)))[:tokens])
        differences, exchanged = compare(run, Path(name), document, bounds)

    # With attention, a part would receive a key and a value of each earlier token, per layer, in float32.
    keys_and_values = LAYERS * sum(bounds[:-1]) * 2 * DIM * 4
    click.echo(f"\nsent for the causal layers   {exchanged:,} bytes of states")
    click.echo(f"attention would have sent    {keys_and_values:,} bytes of keys and values")
    agree = all(value <= MOST for value in differences)
    click.echo(f"parts and whole {'agree' if agree else 'DO NOT AGREE'} within {MOST:.0e}")
    sys.exit(0 if agree else 1)


if __name__ == "__main__":
    main()
