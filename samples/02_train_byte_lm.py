"""Train the demo's model: a PoM language model of bytes, on the English documentation that every CPython carries.

    python samples/02_train_byte_lm.py                    # about ten minutes on 2 cores
    python samples/02_train_byte_lm.py --steps 50         # a quick look

Writes `byte_lm.safetensors` and, beside it, `byte_lm.json` with the losses reached. The text is the language
reference in `pydoc_data.topics` (0.7 MB); its last tenth is never trained on and gives the validation loss.
"""

from __future__ import annotations

import json
import math
import platform
import sys
import time
from pathlib import Path
from pydoc_data import topics

import click
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from pom_export.mixer import MixerConfig
from pom_export.models import LanguageModel, LanguageModelConfig

CONFIG = LanguageModelConfig(
    vocab_size=256, n_layers=4, window=8, mlp_width=384, mixer=MixerConfig(dim=128, degree=3, expand=2)
)
BATCH, CONTEXT, PEAK_RATE, WARMUP = 16, 256, 3e-3, 100
CHECKPOINT = Path(__file__).parent / "checkpoints" / "byte_lm.safetensors"


def load_text() -> Tensor:
    """Return the bytes of every help topic, in a fixed order."""
    text = "\n\n".join(topics.topics[name] for name in sorted(topics.topics))
    return torch.from_numpy(np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64))


def batch_of(data: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return random windows (B, N) and the same windows one byte later."""
    starts = torch.randint(len(data) - CONTEXT - 1, (BATCH,), generator=generator)
    windows = torch.stack([data[start : start + CONTEXT + 1] for start in starts])
    return windows[:, :-1], windows[:, 1:]


def loss_of(model: LanguageModel, inputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy, in nats per byte."""
    return functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


def validation_bits(model: LanguageModel, data: Tensor) -> float:
    """Return the loss in bits per byte over consecutive windows of `data`."""
    count = (len(data) - 1) // CONTEXT
    inputs = data[: count * CONTEXT].view(count, CONTEXT)
    targets = data[1 : count * CONTEXT + 1].view(count, CONTEXT)
    with torch.no_grad():
        losses = [
            loss_of(model, *chunk).item() * len(chunk[0])
            for chunk in zip(inputs.split(32), targets.split(32), strict=True)
        ]
    return sum(losses) / count / math.log(2)


def learning_rate(step: int, steps: int) -> float:
    """Return the learning rate of a step: a linear warm-up, then a cosine decay to a hundredth of the peak."""
    if step < WARMUP:
        return PEAK_RATE * (step + 1) / WARMUP
    progress = (step - WARMUP) / max(1, steps - WARMUP)
    return PEAK_RATE * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def train(model: LanguageModel, data: Tensor, steps: int) -> float:
    """Train in place; return the mean loss in bits per byte over the last hundred steps."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.05)
    recent: list[float] = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        loss = loss_of(model, *batch_of(data, generator))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent = [*recent[-99:], loss.item() / math.log(2)]
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step:5d}  {np.mean(recent):.3f} bits/byte", file=sys.stderr, flush=True)
    return float(np.mean(recent))


@click.command(help=__doc__)
@click.option("--steps", default=2000, show_default=True)
@click.option("-o", "--output", default=CHECKPOINT, type=click.Path(path_type=Path), show_default=True)
def main(steps: int, output: Path) -> None:
    torch.manual_seed(0)
    data = load_text()
    split = len(data) * 9 // 10
    model = LanguageModel(CONFIG)
    started = time.monotonic()
    train_bits = train(model, data[:split], steps)
    record = {
        "text": f"pydoc_data.topics of CPython {platform.python_version()}, {len(data)} bytes, last tenth held out",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "steps": steps,
        "train_bits_per_byte": round(train_bits, 4),
        "validation_bits_per_byte": round(validation_bits(model, data[split:]), 4),
        "seconds": round(time.monotonic() - started),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), output)
    output.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
