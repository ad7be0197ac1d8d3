"""From attention to PoM: train a small vision transformer, replace its attention, fine-tune, compare, export.

    python samples/04_attention_to_pom.py                       # about half a minute on one core
    pom-export scan samples.04_attention_to_pom:build_model     # what the swap would cost and save

The data are the 1,797 handwritten digits that come with scikit-learn, 8 x 8 pixels, read as 16 patches of 2 x 2.
Times are medians of interleaved runs of one layer: trust the ratios, not the milliseconds.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import click
import torch
from torch import Tensor, nn
from torch.nn import functional

import pom_export

DIM, HEADS, LAYERS, PATCH, CLASSES = 64, 4, 2, 2, 10
BATCH, LEARNING_RATE = 64, 2e-3
TIMED_DIM = 256


class DigitClassifier(nn.Module):
    """A transformer encoder over patches, averaged and classified."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(PATCH * PATCH, DIM)
        self.positions = nn.Parameter(0.1 * torch.randn(1, (8 // PATCH) ** 2, DIM))
        layer = nn.TransformerEncoderLayer(DIM, HEADS, 2 * DIM, dropout=0.1, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.head = nn.Linear(DIM, CLASSES)

    def forward(self, patches: Tensor) -> Tensor:
        """Return the logits (B, 10) of patches (B, 16, 4)."""
        return self.head(self.encoder(self.embed(patches) + self.positions).mean(1))


def build_model() -> nn.Module:
    return DigitClassifier()


def load_digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return patches and labels to train on, and those of a held-out quarter."""
    from sklearn.datasets import load_digits as load
    from sklearn.model_selection import train_test_split

    images, labels = load(return_X_y=True)
    pixels = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    patches = functional.unfold(pixels, PATCH, stride=PATCH).transpose(1, 2)
    split = train_test_split(patches, torch.tensor(labels), test_size=0.25, random_state=0, stratify=labels)
    return split[0], split[2], split[1], split[3]


def train(model: nn.Module, patches: Tensor, labels: Tensor, epochs: int) -> float:
    """Train a model and return how long it took, in seconds."""
    started = time.perf_counter()
    steps = epochs * -(-len(labels) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(labels)).split(BATCH):
            loss = functional.cross_entropy(model(patches[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return time.perf_counter() - started


@torch.no_grad()
def accuracy(model: nn.Module, patches: Tensor, labels: Tensor) -> float:
    return float((model.eval()(patches).argmax(1) == labels).float().mean())


@torch.no_grad()
def time_layers(tokens: list[int], repeats: int) -> dict[str, list[float]]:
    """Return the time in milliseconds of one attention layer and one PoM layer at each sequence length."""
    layers = {
        "attention": nn.MultiheadAttention(TIMED_DIM, HEADS, batch_first=True).eval(),
        "PoM": pom_export.MultiheadPolynomialMixer(TIMED_DIM, HEADS, batch_first=True).eval(),
    }
    medians: dict[str, list[float]] = {name: [] for name in layers}
    for count in tokens:
        x = torch.randn(1, count, TIMED_DIM)
        times: dict[str, list[float]] = {name: [] for name in layers}
        for repeat in range(repeats + 1):
            for name, layer in layers.items():
                started = time.perf_counter()
                layer(x, x, x, need_weights=False)
                if repeat:
                    times[name].append(1e3 * (time.perf_counter() - started))
        for name, values in times.items():
            medians[name].append(statistics.median(values))
    return medians


def plot(path: Path, tokens: list[int], times: dict[str, list[float]], scores: dict[str, float]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    bars = left.bar(
        [name.replace(", ", ",\n") for name in scores],
        [100 * score for score in scores.values()],
        color=["C0", "C0", "C7", "C1"],
    )
    left.bar_label(bars, fmt="%.1f")
    left.set(title="Digits: accuracy on the held-out quarter", ylabel="percent", ylim=(0, 108))
    for name, values in times.items():
        right.plot(tokens, values, "o-", label=name)
    right.set(title=f"One layer, width {TIMED_DIM}, on one CPU core", xlabel="tokens", ylabel="milliseconds")
    right.set_xscale("log", base=2)
    right.set_yscale("log")
    right.set_xticks(tokens, [str(count) for count in tokens])
    right.grid(alpha=0.3)
    right.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def compare_speed(lengths: list[int], repeats: int) -> dict[str, list[float]]:
    times = time_layers(lengths, repeats)
    click.echo(f"\none layer of width {TIMED_DIM}, batch 1, one thread; ms")
    click.echo(f"{'tokens':>8}{'attention':>12}{'PoM':>10}{'ratio':>9}")
    for count, attention, pom in zip(lengths, times["attention"], times["PoM"], strict=True):
        click.echo(f"{count:8d}{attention:12.2f}{pom:10.2f}{attention / pom:8.2f}x")
    return times


def retrain(report: Callable[[str, float, float], None], epochs: int, start: str) -> nn.Module:
    """Train with attention, swap, and fine-tune; report the accuracy of each, and of attention trained for as long."""
    patches, labels, test_patches, test_labels = load_digits()
    model = build_model()
    seconds = train(model, patches, labels, epochs)
    report("attention", accuracy(model, test_patches, test_labels), seconds)
    control = copy.deepcopy(model)
    seconds = train(control, patches, labels, epochs)
    report("attention, longer", accuracy(control, test_patches, test_labels), seconds)
    click.echo(str(pom_export.replace_attention(model, start=start)))
    report("just swapped", accuracy(model, test_patches, test_labels), 0.0)
    seconds = train(model, patches, labels, epochs)
    report("PoM, tuned", accuracy(model, test_patches, test_labels), seconds)
    return model


def export(model: nn.Module, path: Path) -> None:
    """Export the model, and run the exported file on the held-out digits."""
    _, _, patches, _ = load_digits()
    result = pom_export.export(model, path, example_inputs=(patches[:2],))
    (logits,) = pom_export.inference_session(path).run(None, {"patches": patches.numpy()})
    with torch.no_grad():
        difference = (torch.from_numpy(logits) - model(patches)).abs().max()
    click.echo(f"\nexported {result.model}: {result.aggregations} aggregations")
    click.echo(f"agrees with PyTorch on {', '.join(result.checked)}")
    click.echo(f"{len(patches)} held-out digits in ONNX Runtime: logits differ by at most {float(difference):.1e}")


@click.command(help=__doc__)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("out"), show_default=True)
@click.option("--epochs", default=15, show_default=True, help="Epochs of training, and of fine-tuning.")
@click.option("--start", default="values", show_default=True, help="New layers' weights: values or fresh.")
@click.option("--tokens", default="64,256,1024,4096", show_default=True, help="Sequence lengths to time.")
@click.option("--quick", is_flag=True, help="One epoch and short sequences: shows that it runs, not how well.")
def main(output: Path, epochs: int, start: str, tokens: str, quick: bool) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # layers this small lose more to a second thread than they gain
    output.mkdir(parents=True, exist_ok=True)
    lengths, repeats = ([16, 64], 1) if quick else (list(map(int, tokens.split(","))), 9)
    scores: dict[str, float] = {}

    def report(name: str, score: float, seconds: float) -> None:
        scores[name] = score
        click.echo(f"{name:18}accuracy {100 * score:.1f} % on held-out digits ({seconds:.1f} s of training)")

    model = retrain(report, 1 if quick else epochs, start)
    times = compare_speed(lengths, repeats)
    plot(output / "attention_to_pom.png", lengths, times, scores)

    export(model, output / "digits_pom.onnx")
    click.echo(f"plot: {output / 'attention_to_pom.png'}")


if __name__ == "__main__":
    main()
