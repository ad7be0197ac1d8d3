"""Train the image sample's model: a tiny JiT with PoM that draws handwritten digits, 32 x 32 pixels.

    python samples/07_train_digits.py                     # about ten minutes on 2 cores
    python samples/07_train_digits.py --steps 20          # a quick look

Writes `digits_jit.safetensors`, a moving average of the weights, and beside it `digits_jit.json` with what was done.
The data are the 1,797 digits that come with scikit-learn, 8 x 8 pixels, enlarged. As in the authors' trainer the model
predicts the clean image, and is judged by the velocity that follows from it.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path

import click
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from pom_export.models import JiT, JiTConfig

CONFIG = JiTConfig(
    input_size=32,
    patch_size=4,
    hidden_size=64,
    depth=4,
    num_heads=4,
    num_classes=10,
    bottleneck_dim=16,
    in_context_len=4,
    in_context_start=1,
    pom_degree=3,
    pom_expand=2,
)
MARGIN = 3
BATCH, PEAK_RATE, WARMUP, DECAY = 64, 2e-3, 100, 0.995
# The authors' values: the distribution of times, how often a label is left out, and the smallest 1 - t that is divided
# by.
TIME_MEAN, TIME_DEVIATION, NO_LABEL, LEAST_LEFT = -0.8, 0.8, 0.1, 0.05
CHECKPOINT = Path(__file__).parent / "checkpoints" / "digits_jit.safetensors"


def load_images() -> tuple[Tensor, Tensor]:
    """Return the digits as images (1797, 3, 32, 32) in [-1, 1], and their labels (1797)."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    small = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
    digits = functional.interpolate(small, size=CONFIG.input_size - 2 * MARGIN, mode="bicubic").clamp(-1, 1)
    images = functional.pad(digits, [MARGIN] * 4, value=-1)
    return images.repeat(1, CONFIG.channels, 1, 1), torch.tensor(labels)


def loss_of(model: JiT, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Return the mean squared error of the velocity, at a random time for each image."""
    noise = torch.randn(images.shape, generator=generator)
    t = torch.sigmoid(TIME_MEAN + TIME_DEVIATION * torch.randn(len(images), generator=generator))
    left_out = torch.rand(len(images), generator=generator) < NO_LABEL
    ratio = t[:, None, None, None]
    noisy = ratio * images + (1 - ratio) * noise
    predicted = model(noisy, t, labels.where(~left_out, CONFIG.num_classes))
    return ((predicted - images) / (1 - ratio).clamp(min=LEAST_LEFT)).square().mean()


def learning_rate(step: int, steps: int) -> float:
    """Return the learning rate of a step: a linear warm-up, then a cosine decay to a hundredth of the peak."""
    if step < WARMUP:
        return PEAK_RATE * (step + 1) / WARMUP
    progress = (step - WARMUP) / max(1, steps - WARMUP)
    return PEAK_RATE * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def train(model: JiT, images: Tensor, labels: Tensor, steps: int) -> tuple[dict[str, Tensor], float]:
    """Train in place; return the averaged weights, and the mean loss over the last hundred steps."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    averaged = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    recent: list[float] = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        chosen = torch.randint(len(images), (BATCH,), generator=generator)
        loss = loss_of(model, images[chosen], labels[chosen], generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        # At first the average is that of all steps: the start is nothing to keep.
        decay = min(DECAY, step / (step + 1))
        for name, tensor in model.state_dict().items():
            averaged[name].lerp_(tensor, 1 - decay)
        recent = [*recent[-99:], loss.item()]
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step:5d}  loss {np.mean(recent):.4f}", file=sys.stderr, flush=True)
    return averaged, float(np.mean(recent))


@click.command(help=__doc__)
@click.option("--steps", default=2500, show_default=True)
@click.option("-o", "--output", default=CHECKPOINT, type=click.Path(path_type=Path), show_default=True)
def main(steps: int, output: Path) -> None:
    torch.manual_seed(0)
    images, labels = load_images()
    model = JiT(CONFIG)
    started = time.monotonic()
    averaged, loss = train(model, images, labels, steps)
    record = {
        "images": f"the {len(images)} digits of scikit-learn, 8 x 8 pixels enlarged to {CONFIG.input_size}",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "steps": steps,
        "loss": round(loss, 4),
        "seconds": round(time.monotonic() - started),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    # The one setting that shapes don't tell.
    save_file(averaged, output, metadata={"in_context_start": str(CONFIG.in_context_start)})
    output.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
