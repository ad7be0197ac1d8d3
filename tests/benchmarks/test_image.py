"""The image benchmark, on models small enough for a test; no test depends on how long anything takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.image.attention import RotaryAttention, write_attention
from benchmarks.image.shape import ImageShape, image_config
from benchmarks.image.workload import ImageWorkload
from benchmarks.names import ATTENTION, KERNEL
from pom_export.bench.options import BenchOptions, Size
from pom_export.bench.running import bench
from pom_export.errors import InputError
from pom_export.models import JiT
from pom_export.runtime.session import inference_session

pytestmark = pytest.mark.slow

SHAPE = ImageShape(dim=64, degree=2, expand=1, heads=4, layers=3, patch=2)
SEED = 3


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
    options = BenchOptions((KERNEL, ATTENTION), tokens=(4, 16), threads=1, warmup=0, repeats=1, memory=False)
    result = bench(ImageWorkload(SHAPE), options)
    assert result.backends == [KERNEL, ATTENTION]
    assert [(point.batch, point.tokens) for point in result.points] == [(1, 4), (1, 16)]
    assert all(point.timings.keys() == {KERNEL, ATTENTION} for point in result.points)


def test_memory_is_measured_though_no_file_takes_fewer_tokens(tmp_path: Path) -> None:
    workload = ImageWorkload(SHAPE)
    workload.prepare(BenchOptions((KERNEL,), tokens=(16,)), tmp_path, lambda _: None)
    found = workload.measure_memory(KERNEL, Size(1, 16), BenchOptions(threads=1))
    assert found.tensor_bytes > 2 * 3 * 8 * 8 * 4


def test_refuses_what_is_no_square_of_patches() -> None:
    with pytest.raises(InputError, match="250 tokens are not a square"):
        bench(ImageWorkload(SHAPE), BenchOptions(tokens=(250,)))


def test_attention_that_would_take_too_long_is_left_out() -> None:
    workload = ImageWorkload(ImageShape())
    assert workload.excluded(ATTENTION, Size(1, 4096)) is None
    assert "the limit is 30 s" in (workload.excluded(ATTENTION, Size(1, 1 << 16)) or "")
    assert workload.excluded(KERNEL, Size(1, 1 << 16)) is None
