"""Image models side by side, on ones small enough for a test; nothing here asks how long it took."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pom_export.bench.image import RotaryAttention, image_config, prepare_image, write_attention
from pom_export.bench.options import ATTENTION, KERNEL, PLAIN, BenchOptions
from pom_export.bench.running import bench
from pom_export.bench.targets import ImageShape, find_target
from pom_export.bench.timing import Effort
from pom_export.errors import InputError
from pom_export.models import JiT
from pom_export.runtime.session import inference_session

SHAPE = ImageShape(dim=64, degree=2, expand=1, heads=4, layers=3, patch=2)
SEED = 3


def silent(_: str) -> None:
    pass


def test_attention_in_the_file_is_that_of_pytorch(tmp_path: Path) -> None:
    config = image_config(SHAPE, 16)
    write_attention(config, tmp_path / "attention.onnx", SEED)
    session = inference_session(tmp_path / "attention.onnx")
    torch.manual_seed(SEED)
    model = JiT(config, lambda config: RotaryAttention(config, fused=False)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
        feed = {"x": torch.randn(2, 3, 8, 8), "t": torch.tensor([0.0, 0.7]), "y": torch.tensor([4, 1000])}
        wanted = model(**feed).numpy()
    (image,) = session.run(None, {name: value.numpy() for name, value in feed.items()})
    assert np.abs(wanted).max() > 0.01
    assert np.abs(image - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_sizes_are_timed_each_with_a_file_of_its_own() -> None:
    target = find_target("image", dim=64, degree=2, expand=1, heads=4)
    assert target.image is not None
    options = BenchOptions(
        backends=(KERNEL, ATTENTION, PLAIN), tokens=(4, 16), effort=Effort(0, 1), memory=False, roofline=False
    )
    result = bench(target, options)
    assert result.backends == [KERNEL, ATTENTION]
    assert result.not_run == {PLAIN: "it does not run image models"}
    assert [(point.batch, point.tokens) for point in result.points] == [(1, 4), (1, 16)]
    assert all(point.timings.keys() == {KERNEL, ATTENTION} for point in result.points)


def test_refuses_what_is_no_square_of_patches(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="250 tokens are no square"):
        prepare_image(SHAPE, BenchOptions(tokens=(250,)), tmp_path, silent)
    with pytest.raises(InputError, match="--mask does not go with an image model"):
        find_target("image", mask="none")
    with pytest.raises(InputError, match="--weights does not go with an image model"):
        find_target("image", weights="ema1")
    with pytest.raises(InputError, match="--in-context-start does not go with an image model"):
        find_target("image", in_context_start=1)
