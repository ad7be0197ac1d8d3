"""Time `pom_export.run` on many sequences, side by side with a loop that calls the session for each of them.

    python -m benchmarks.batches [--sequences N] [--rounds N] [--output FILE.json]

The models have random weights. In each round, both run all sequences once; the times are medians over the rounds, and
the outputs of both are compared first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pom_export
from pom_export.models import GPT, GPTConfig

VOCABULARY = 256
# Layers and width of a causal language model, and the range of its sequences' lengths.
CASES = ((2, 32, (1, 16)), (4, 128, (1, 16)), (4, 128, (50, 300)), (6, 768, (1, 16)), (6, 768, (1, 2)))
# Outputs of a batch and of one sequence are rounded differently.
TOLERANCE = 1e-4


def language_model(layers: int, width: int) -> GPT:
    """Return a language model with random weights."""
    torch.manual_seed(0)
    sizes = {"n_layer": layers, "n_embd": width, "mlp_width": 4 * width}
    heads = {"n_head": 4, "mixer_heads": 4, "attention_heads": 4}
    config = GPTConfig(vocab_size=VOCABULARY, degree=2, expand=2, attention_layers=(), **sizes, **heads)
    return GPT(config).eval().requires_grad_(requires_grad=False)


def one_by_one(session: Any, sequences: Sequence[Any]) -> list[Any]:
    """Return the outputs of a loop over the sequences."""
    return [session.run(None, {"input_ids": ids[np.newaxis]})[0][0] for ids in sequences]


def seconds(job: Callable[[], Any]) -> float:
    """Return how long a job takes."""
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def measure(layers: int, width: int, lengths: tuple[int, int], count: int, rounds: int) -> dict[str, Any]:
    """Time one case."""
    random = np.random.default_rng(0)
    sequences = [random.integers(0, VOCABULARY, length) for length in random.integers(*lengths, count)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.onnx"
        pom_export.export(language_model(layers, width), path)
        session = pom_export.inference_session(path)
    expected, found = one_by_one(session, sequences), pom_export.run(session, sequences)
    for logits, outputs in zip(expected, found, strict=True):
        np.testing.assert_allclose(outputs["logits"], logits, rtol=0, atol=TOLERANCE * np.abs(logits).max())
    times = [
        (seconds(lambda: one_by_one(session, sequences)), seconds(lambda: pom_export.run(session, sequences)))
        for _ in range(rounds)
    ]
    loop, batches = (statistics.median(column) for column in zip(*times, strict=True))
    return {
        "layers": layers, "width": width, "lengths": lengths, "sequences": count, "loop": loop, "run": batches,
        "ratio": loop / batches,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    results = []
    print("layers  width  lengths      loop   run    ratio")
    for layers, width, lengths in CASES:
        result = measure(layers, width, lengths, given.sequences, given.rounds)
        results.append(result)
        span = f"{lengths[0]}-{lengths[1] - 1}"
        print(f"{layers:6}  {width:5}  {span:10}  {result['loop']:5.2f}  {result['run']:5.2f}  {result['ratio']:5.1f}x")
    if given.output is not None:
        given.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
