"""A model's matrix products are found, and put into a graph of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from benchmarks.attention import head_count, write_attention
from benchmarks.products import Product, find_products, write_floor
from pom_export.bench.options import Size
from pom_export.bench.runners import SessionRunner, open_session
from pom_export.errors import InputError

pytestmark = pytest.mark.slow

NAMES = ("batch", "tokens")
LAYER = [Product(("batch", "tokens"), 8, 12, from_input=True), Product(("batch", "tokens"), 6, 8, to_output=True)]
GRAPH = """
<ir_version: 10, opset_import: ["": 20]>
g (float[batch, tokens, 2] x, float[batch, 3, tokens] other) => (float[batch, tokens, 4] y)
<float[2, 3] first, float[4, 3] turned, float[batch, tokens, 3] h, float[batch, tokens, tokens] square>
{
    h = MatMul(x, first)
    square = MatMul(h, other)
    straight = Transpose <perm = [1, 0]> (turned)
    y = MatMul(h, straight)
}
"""


def test_products_with_constant_weights_are_found(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(GRAPH)
    for name, shape in (("first", (2, 3)), ("turned", (4, 3))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(shape, np.float32), name))
    onnx.save(model, tmp_path / "m.onnx")
    assert find_products(tmp_path / "m.onnx", NAMES) == [
        Product(("batch", "tokens"), 2, 3, from_input=True),
        Product(("batch", "tokens"), 3, 4, to_output=True),
    ]
    assert find_products(tmp_path / "m.onnx", ("batch",)) == []


def test_traffic_counts_what_the_layer_reads_and_writes() -> None:
    sizes = Size(1, 10).dimensions
    numbers = 10 * 8 + 8 * 12 + 2 * 10 * 12 + 2 * 10 * 6 + 6 * 8 + 10 * 8
    assert sum(product.traffic_bytes(sizes) for product in LAYER) == 4 * numbers
    assert sum(product.flops(sizes) for product in LAYER) == 2 * 10 * (8 * 12 + 6 * 8)


def test_the_floor_runs_at_any_size(tmp_path: Path) -> None:
    write_floor(LAYER, tmp_path / "f.onnx", seed=0)
    runner = SessionRunner(open_session(tmp_path / "f.onnx", threads=1))
    bound = runner.bind({"left_0": np.ones((2, 5, 8), np.float32), "left_1": np.ones((2, 5, 6), np.float32)})
    assert [output.shape for output in bound.outputs] == [(2, 5, 12), (2, 5, 8)]


def test_a_model_without_products_has_no_floor(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no matrix product"):
        write_floor([], tmp_path / "f.onnx", seed=0)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_attention(causal: bool, tmp_path: Path) -> None:
    write_attention(8, causal, tmp_path / "a.onnx", seed=0)
    weights = {
        tensor.name.removesuffix("_weight"): onnx.numpy_helper.to_array(tensor)
        for tensor in onnx.load(tmp_path / "a.onnx").graph.initializer
    }
    x = np.random.default_rng(1).standard_normal((2, 5, 8), dtype=np.float32)
    (y,) = SessionRunner(open_session(tmp_path / "a.onnx", threads=1)).bind({"x": x}).outputs

    query, key, value = (x @ weights[name] for name in ("query", "key", "value"))
    scores = np.exp(query @ key.transpose(0, 2, 1) / np.sqrt(8)) * (np.tril(np.ones((5, 5))) if causal else 1)
    expected = scores @ value / scores.sum(-1, keepdims=True) @ weights["out"]
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


def test_heads_have_64_channels_where_they_can() -> None:
    assert [head_count(dim) for dim in (512, 64, 96, 8)] == [8, 1, 1, 1]
