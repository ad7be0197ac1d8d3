"""Draw handwritten digits with an image model of PoM in ONNX Runtime: export, sample with guidance, save a picture.

    python samples/08_draw_digits.py                      # some ten seconds on 2 cores
    python samples/08_draw_digits.py --steps 50 --guidance 4 --seed 7

Takes the tiny JiT that samples/07_train_digits.py has trained and puts model and picture into out/.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt

import pom_export
from pom_export.images import sample_images

CHECKPOINT = Path(__file__).resolve().parent / "checkpoints" / "digits_jit.safetensors"
CLASSES, ROWS = 10, 6
GAP, ENLARGED = 2, 2


def picture_of(images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return images (ROWS * CLASSES, 3, H, H) in [-1, 1] as one picture (height, width, 3) in [0, 1], row by row."""
    framed = np.pad(images, ((0, 0), (0, 0), (GAP, GAP), (GAP, GAP)), constant_values=-1)
    side = framed.shape[-1]
    grid = framed.reshape(ROWS, CLASSES, 3, side, side).transpose(0, 3, 1, 4, 2).reshape(ROWS * side, CLASSES * side, 3)
    return np.clip(grid / 2 + 0.5, 0, 1).repeat(ENLARGED, 0).repeat(ENLARGED, 1)


@click.command(help=__doc__)
@click.option("--steps", default=20, show_default=True, help="Of Heun's method; each calls the model twice.")
@click.option("--guidance", default=2.5, show_default=True, help="How far to go beyond the unconditional prediction.")
@click.option("--seed", default=0, show_default=True, help="Of the noise.")
@click.option("-o", "--output", default="out", type=click.Path(path_type=Path), show_default=True)
def main(steps: int, guidance: float, seed: int, output: Path) -> None:
    from matplotlib.image import imsave

    output.mkdir(parents=True, exist_ok=True)
    result = pom_export.export(CHECKPOINT, output / "digits.onnx")
    session = pom_export.inference_session(result.model)
    print(f"{result.model}: {result.aggregations} aggregations, agrees with PyTorch on {', '.join(result.checked)}")

    labels = np.tile(np.arange(CLASSES), ROWS)
    side = session.get_inputs()[0].shape[-1]
    noise = np.random.default_rng(seed).standard_normal((len(labels), 3, side, side)).astype(np.float32)
    calls: list[float] = []

    def predict(
        noisy: npt.NDArray[np.float32], t: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        started = time.perf_counter()
        (image,) = session.run(None, {"x": noisy, "t": t, "y": labels})
        calls.append(time.perf_counter() - started)
        return image

    images = sample_images(predict, noise, labels, num_classes=CLASSES, steps=steps, guidance=guidance)
    print(f"{len(labels)} images in {sum(calls):.1f} s, {len(calls)} calls of the model")
    imsave(output / "digits.png", picture_of(images))
    print(f"picture: {output / 'digits.png'}")


if __name__ == "__main__":
    try:
        main()
    except pom_export.PomExportError as error:
        sys.exit(f"error: {error}")
