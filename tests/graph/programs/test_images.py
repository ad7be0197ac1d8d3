"""Exports of the image model: what the graph holds, what is dynamic, and which options are refused."""

from __future__ import annotations

import collections
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import pom_export
from pom_export import contract
from pom_export.bench.model_file import FileWorkload
from pom_export.bench.options import BenchOptions, Size
from pom_export.errors import InputError
from pom_export.graph.exported_model import read_model
from pom_export.graph.options import GraphOptions
from pom_export.graph.programs import program_of
from pom_export.models import JiT
from tests.small_models import TINY_JIT, fill, image_model

SIZE = TINY_JIT.input_size


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[JiT, Path]:
    model, path = image_model(), tmp_path_factory.mktemp("jit") / "m.onnx"
    result = pom_export.export(model, path)
    assert len(result.checked) == 2
    return model, path


def test_the_batch_alone_is_dynamic(exported: tuple[JiT, Path]) -> None:
    model = read_model(exported[1])
    assert {spec.name: spec.axes for spec in model.inputs} == {
        "x": ("batch", 3, SIZE, SIZE),
        "t": ("batch",),
        "y": ("batch",),
    }
    assert [(spec.name, spec.axes) for spec in model.outputs] == [("image", ("batch", 3, SIZE, SIZE))]
    assert model.limits.values == {"y": [TINY_JIT.num_classes + 1]}
    assert model.limits.ranges == {"t": [0.0, 1.0]}


def test_the_graph_has_one_aggregation_a_block_and_constant_tables(exported: tuple[JiT, Path]) -> None:
    graph = onnx.load(exported[1]).graph
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    mixers = [node for node in graph.node if node.op_type == contract.OP_NAME]
    assert len(mixers) == TINY_JIT.depth
    patches, width = TINY_JIT.side**2, TINY_JIT.mixer.channels // 2
    tables = [[weights[name] for name in node.input[3:5]] for node in mixers]
    # The second block has the in-context tokens too.
    assert tables == [[(patches, width)] * 2, [(patches + TINY_JIT.in_context_len, width)] * 2]
    counts = collections.Counter(node.op_type for node in graph.node)
    assert counts["Gather"] == 1  # of the label
    assert not counts.keys() & {"Shape", "ConstantOfShape", "Expand", "Range", "Where", "GatherND", "Softmax", "Cast"}
    assert counts["Slice"] == 1  # of the in-context tokens, at the end
    assert patches**2 not in {np.prod(shape, dtype=int) for shape in weights.values()}


@pytest.mark.parametrize("kernels", [True, False], ids=["kernel", "function"])
@pytest.mark.parametrize("batch", [1, 5])
def test_it_gives_what_the_module_gives(exported: tuple[JiT, Path], batch: int, kernels: bool) -> None:
    random = np.random.default_rng(0)
    feed = {
        "x": random.standard_normal((batch, 3, SIZE, SIZE), dtype=np.float32),
        "t": np.linspace(0, 1, batch, dtype=np.float32),
        "y": np.arange(batch) % (TINY_JIT.num_classes + 1),
    }
    (image,) = pom_export.inference_session(exported[1], kernels=kernels).run(None, feed)
    with torch.no_grad():
        expected = exported[0](*(torch.from_numpy(array) for array in feed.values()))
    np.testing.assert_allclose(image, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@pytest.mark.slow
def test_sizes_may_be_pinned_to_those_that_it_has(tmp_path: Path) -> None:
    result = pom_export.export(image_model(), tmp_path / "m.onnx", static=(2, 16))
    assert result.inputs[0] == "x float32[2, 3, 8, 8]"
    with pytest.raises(InputError, match=r"16 tokens.*`static=\(2, 17\)` pins 17"):
        program_of(image_model(), GraphOptions(static=(2, 17)))


@pytest.mark.parametrize(
    "options",
    [{"mask": "none"}, {"cross": True}, {"positions": True}, {"stateful": True}, {"stateful": True, "mask": "causal"}],
    ids=str,
)
def test_options_of_other_models_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(InputError, match="an image model mixes all patches of an image") as caught:
        program_of(image_model(), GraphOptions(**options))
    assert f"`{next(iter(options))}`" in str(caught.value) or "`mask`" in str(caught.value)


@pytest.mark.slow
def test_tables_of_large_images_are_stored_once_for_all_blocks(tmp_path: Path) -> None:
    # The exporter itself folds no more than 512 x 512 values.
    model = JiT(replace(TINY_JIT, input_size=96, max_h=48, max_w=48, pom_expand=32, in_context_len=0)).eval()
    fill(model)
    pom_export.export(model, tmp_path / "m.onnx")
    graph = onnx.load(tmp_path / "m.onnx").graph
    mixers = [node for node in graph.node if node.op_type == contract.OP_NAME]
    assert len({tuple(node.input[3:5]) for node in mixers}) == 1
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    assert weights[mixers[0].input[3]] == (48 * 48, 128)
    assert not [name for name, shape in weights.items() if "row_" in name or "col_" in name]


def test_the_benchmark_counts_patches_as_tokens(exported: tuple[JiT, Path], tmp_path: Path) -> None:
    workload = FileWorkload(exported[1])
    workload.prepare(BenchOptions(batch=[1, 2]), tmp_path, lambda _: None)
    assert workload.sizes == [(1, 16), (2, 16)]
    feed = workload.inputs("kernel", Size(2, 16), seed=0)
    assert feed["x"].shape == (2, 3, SIZE, SIZE)
    assert (feed["t"] >= 0).all()
    assert (feed["t"] <= 1).all()
    with pytest.raises(InputError, match="fixed to tokens 16"):
        workload.prepare(BenchOptions(tokens=[3]), tmp_path, lambda _: None)
