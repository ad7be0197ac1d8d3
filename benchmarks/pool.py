"""Time a StreamPool with streams that come and go, side by side with one fixed batch, and what long prompts delay.

    python -m benchmarks.pool [--model demo|wide] [--streams 1,8,64,256] [--rounds N] [--output FILE.json]

Throughput: in each round, a StreamingSession of as many rows takes steps, and then the pool's streams read a short
prompt, are continued by a random number of tokens, end, and make room for the next. Both choose the likeliest tokens.
The ratio is of tokens a second, medians over the rounds, where the pool's prompts count as well.

Latency: as many streams are continued while prompts of 8,192 tokens arrive one after the other, as many as the pool
can read. Given are the times between two tokens of a stream.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import pom_export
from benchmarks.batches import VOCABULARY, language_model
from pom_export.runtime import StreamPool
from pom_export.runtime.pool.stream import PoolStream

DEMO = Path(__file__).parents[1] / "samples" / "checkpoints" / "byte_lm.safetensors"
WIDE = (12, 768)
PROMPT, LONG_PROMPT = 8, 8192
# How many tokens a stream is continued by.
FEWEST, MOST = 32, 96
STEPS = 100


def fixed_batch(session: pom_export.StreamingSession, steps: int) -> float:
    """Return the tokens a second of a batch whose rows never change."""
    tokens = np.zeros(session.batch, np.int64)
    started = time.perf_counter()
    for _ in range(steps):
        tokens = session.step(tokens).argmax(-1)
    return session.batch * steps / (time.perf_counter() - started)


class Load:
    """Streams that come and go.

    Args:
        pool: where they run.
        count: how many there are at any time.
        seed: seed of prompts and of how long the streams last.
    """

    def __init__(self, pool: StreamPool, count: int, seed: int) -> None:
        self._pool = pool
        self._random = np.random.default_rng(seed)
        self._left: dict[PoolStream, int] = {}
        for _ in range(count):
            # The first ones end at different times too.
            self._open(int(self._random.integers(1, MOST)))

    def _open(self, tokens: int) -> None:
        stream = self._pool.open()
        stream.give(self._random.integers(0, VOCABULARY, PROMPT))
        self._left[stream] = tokens

    def tick(self) -> list[PoolStream]:
        """Tick, and return the streams that got a token."""
        answers = self._pool.tick()
        going, tokens = [], []
        for stream, token in zip(answers.streams, answers.outputs.argmax(-1), strict=True):
            if stream not in self._left:  # a long prompt
                stream.close()
                continue
            self._left[stream] -= 1
            if self._left[stream]:
                going.append(stream)
                tokens.append(token)
            else:
                del self._left[stream]
                stream.close()
                self._open(int(self._random.integers(FEWEST, MOST)))
        self._pool.step(going, tokens)
        return going

    def end(self) -> None:
        """Close all streams."""
        for stream in self._left:
            stream.close()


def pooled(pool: StreamPool, count: int, ticks: int, seed: int) -> float:
    """Return the tokens a second of streams that come and go, prompts included."""
    load = Load(pool, count, seed)
    load.tick()
    before, started = pool.metrics().tokens, time.perf_counter()
    for _ in range(ticks):
        load.tick()
    speed = (pool.metrics().tokens - before) / (time.perf_counter() - started)
    load.end()
    return speed


def intervals(pool: StreamPool, count: int, ticks: int, seed: int, *, prompts: bool) -> npt.NDArray[np.float64]:
    """Return the seconds between two tokens of each stream, while long prompts arrive or without any."""
    load, random = Load(pool, count, seed), np.random.default_rng(seed)
    last: dict[PoolStream, float] = {}
    found: list[float] = []
    long: PoolStream | None = None
    for _ in range(ticks):
        if prompts and (long is None or long.closed):
            long = pool.open()
            long.give(random.integers(0, VOCABULARY, LONG_PROMPT))
        streams = load.tick()
        now = time.perf_counter()
        found += [now - last[stream] for stream in streams if stream in last]
        last = dict.fromkeys(streams, now)
    load.end()
    if long is not None:
        long.close()
    return np.array(found)


def measure(model: Path, count: int, rounds: int) -> dict[str, Any]:
    """Measure one number of streams."""
    session = pom_export.StreamingSession(model, batch=count)
    pool = StreamPool(model, streams=count + 1)
    fixed_batch(session, 5)
    pooled(pool, count, 5, 0)
    speeds = [(fixed_batch(session, STEPS), pooled(pool, count, STEPS, seed)) for seed in range(rounds)]
    fixed, pool_s = (statistics.median(column) for column in zip(*speeds, strict=True))
    result = {"streams": count, "fixed": fixed, "pool": pool_s, "ratio": pool_s / fixed}
    for name, prompts in (("quiet", False), ("prompts", True)):
        waits = 1e3 * intervals(pool, count, 4 * STEPS, 0, prompts=prompts)
        result |= {f"{name}_p50_ms": np.percentile(waits, 50), f"{name}_p99_ms": np.percentile(waits, 99)}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("demo", "wide"), default="demo")
    parser.add_argument("--streams", default="1,8,64,256")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.onnx"
        torch.manual_seed(0)
        pom_export.export(DEMO if given.model == "demo" else language_model(*WIDE), path, stateful=True)
        print("         tokens a second         ms between two tokens, with 8k prompts")
        print("streams  fixed     pool   ratio     p50     p99   p99/p50   without")
        for count in map(int, given.streams.split(",")):
            result = measure(path, count, given.rounds)
            results.append(result)
            p50, p99 = result["prompts_p50_ms"], result["prompts_p99_ms"]
            print(
                f"{count:7}  {result['fixed']:6.0f}  {result['pool']:6.0f}  {result['ratio']:5.2f}  "
                f"{p50:6.1f}  {p99:6.1f}  {p99 / p50:6.1f}  {result['quiet_p50_ms']:6.1f}"
            )
    if given.output is not None:
        given.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
