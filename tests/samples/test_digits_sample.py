"""The samples that train an image model and draw with it, run as a user would."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest

import pom_export
from pom_export.images import sample_images

pytestmark = pytest.mark.slow

SAMPLES = Path(__file__).parents[2] / "samples"
CHECKPOINT = SAMPLES / "checkpoints" / "digits_jit.safetensors"


def run(*arguments: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments], capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("drawn")
    return folder, run(SAMPLES / "08_draw_digits.py", "--steps", "2", "-o", folder)


def test_draws_a_picture_with_a_checked_file(drawn: tuple[Path, str]) -> None:
    folder, said = drawn
    assert "4 aggregations, agrees with PyTorch on onnxruntime kernel, onnxruntime function" in said
    assert "60 images" in said
    assert (folder / "digits.png").read_bytes().startswith(b"\x89PNG")
    nodes = onnx.load(folder / "digits.onnx").graph.node
    assert sum(node.domain == "pom" for node in nodes) == 4


def test_what_it_draws_are_the_digits_asked_for(drawn: tuple[Path, str]) -> None:
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    session = pom_export.inference_session(drawn[0] / "digits.onnx")
    labels = np.tile(np.arange(10), 3)
    noise = np.random.default_rng(5).standard_normal((30, 3, 32, 32)).astype(np.float32)
    images = sample_images(
        lambda x, t, y: session.run(None, {"x": x, "t": t, "y": y})[0], noise, labels,
        num_classes=10, steps=10, guidance=2.5,
    )  # fmt: skip
    assert np.abs(images).max() < 2
    # Downsampled to the data's 8 x 8 pixels, without the margin.
    inner = images.mean(1)[:, 3:29, 3:29]
    edges = np.linspace(0, 26, 9).round().astype(int)
    small = np.stack([
        inner[:, a:b, c:d].mean((1, 2)) for a, b in pairwise(edges)
        for c, d in pairwise(edges)
    ], axis=1)  # fmt: skip
    pixels, digits = load_digits(return_X_y=True)
    classifier = LogisticRegression(max_iter=2000).fit(pixels / 8 - 1, digits)
    assert (classifier.predict(small) == labels).mean() > 0.8


def test_trains_what_is_recognised(tmp_path: Path) -> None:
    file = tmp_path / "little.safetensors"
    said = run(SAMPLES / "07_train_digits.py", "--steps", "1", "-o", file)
    assert '"steps": 1' in said
    trained, committed = pom_export.inspect(file), pom_export.inspect(CHECKPOINT)
    assert trained.architecture == committed.architecture == "jit-pom"
    assert trained.config == committed.config
