"""Engines by the real TensorRT for RTX, whose builder needs no GPU."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import pom_export
from pom_export.engine import parse_targets
from pom_export.engine.backend import TENSORRT_RTX, load_backend, polygraphy_trt
from pom_export.engine.functions import inlined
from pom_export.errors import EngineError, InputError, MissingDependencyError
from pom_export.files import sha256_of
from pom_export.graph import saving
from pom_export.graph.nodes import is_aggregation
from pom_export.mixer import PolynomialMixer
from tests.exports import Edit, into_function, into_loop

GOLDEN_FOLDER = Path(__file__).parents[1] / "data" / "golden"
CHECKPOINT = GOLDEN_FOLDER / "v2_heads" / "checkpoint.pt"

pytestmark = pytest.mark.usefixtures("tensorrt_rtx")


class CausalAndMean(nn.Module):
    """Two kinds of aggregation."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = (PolynomialMixer(dim=8, degree=2, expand=2) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.first(x, mask="causal")
        return x + self.second(x)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tmp_path_factory.mktemp("model") / "m.onnx"
    pom_export.export(CHECKPOINT, model, mask="padding")
    return model


@pytest.fixture(scope="module")
def causal_and_mean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tmp_path_factory.mktemp("model") / "m.onnx"
    pom_export.export(CausalAndMean(), model, example_inputs=(torch.ones(2, 5, 8),))
    return model


def test_the_manifest_describes_the_engine(exported: Path, tmp_path: Path) -> None:
    info = pom_export.build_engine(exported, tmp_path / "m.engine", backend=TENSORRT_RTX, targets=["sm86"])

    assert (info.path, info.plugin_layers, info.aggregations, info.plugin_embedded) == ("plugin", 1, 1, True)
    assert info.bytes == (tmp_path / "m.engine").stat().st_size > pom_export.plugin_library().stat().st_size
    assert json.loads((tmp_path / "m.engine.json").read_text()) == info.to_dict()
    assert info.sha256 == sha256_of(tmp_path / "m.engine")
    assert info.matrix_products.keys() == info.precisions.keys() == {"float32"}


def test_an_inlined_model_has_no_plugin_layers(exported: Path, tmp_path: Path) -> None:
    pom_export.inline(exported, tmp_path / "in.onnx")
    stages: list[str] = []
    info = pom_export.build_engine(
        tmp_path / "in.onnx", tmp_path / "m.engine", backend=TENSORRT_RTX, targets=["sm86"], progress=stages.append
    )
    assert (info.path, info.plugin_layers, info.aggregations, info.plugin_embedded) == ("function", 0, 0, False)
    assert info.plugin_sha256 is None
    assert stages[0] == "the model is inlined: standard operators compute its aggregations, not the plugin"


def test_a_build_leaves_the_process_as_it_was(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    util = polygraphy_trt(load_backend(TENSORRT_RTX)).util
    theirs = util.get_trt_logger()
    monkeypatch.setattr(util, "TRT_LOGGER", theirs)
    environment = dict(os.environ)

    pom_export.build_engine(exported, tmp_path / "e", backend=TENSORRT_RTX, targets=["sm86"])

    assert util.TRT_LOGGER is theirs
    assert dict(os.environ) == environment


def test_a_process_whose_polygraphy_uses_another_tensorrt_gets_an_error(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    polygraphy_trt(load_backend(TENSORRT_RTX))
    monkeypatch.setattr("polygraphy.config.USE_TENSORRT_RTX", False)
    with pytest.raises(EngineError, match="this process already uses another TensorRT"):
        pom_export.build_engine(exported, tmp_path / "e", backend=TENSORRT_RTX, targets=["sm86"])
    assert list(tmp_path.iterdir()) == []


def test_without_embedding_the_engine_is_smaller(exported: Path, tmp_path: Path) -> None:
    sizes = [
        pom_export.build_engine(
            exported, tmp_path / "m.engine", backend=TENSORRT_RTX, targets=["sm120"], embed_plugin=embed
        ).bytes
        for embed in (True, False)
    ]
    assert sizes[0] - sizes[1] >= pom_export.plugin_library().stat().st_size


def test_functions_need_no_plugin_library(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POM_PLUGIN_LIBRARY", str(tmp_path / "none"))
    with pytest.raises(MissingDependencyError, match="POM_PLUGIN_LIBRARY"):
        pom_export.build_engine(exported, tmp_path / "e", backend=TENSORRT_RTX, targets=["sm86"])
    info = pom_export.build_engine(exported, tmp_path / "e", backend=TENSORRT_RTX, targets=["sm86"], use_plugin=False)
    assert (info.path, info.plugin_layers, info.plugin_embedded, info.plugin_sha256) == ("function", 0, False, None)


def test_each_node_is_built_of_its_own_function(causal_and_mean: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((2, 7, 8), dtype=np.float32)
    model = inlined(causal_and_mean, onnx.load(causal_and_mean))
    (y,) = onnxruntime.InferenceSession(model).run(None, {"x": x})
    (expected,) = pom_export.inference_session(causal_and_mean).run(None, {"x": x})
    np.testing.assert_allclose(y, expected, atol=1e-5)
    operators = [node.op_type for node in onnx.load_from_string(model).graph.node]

    info = pom_export.build_engine(
        causal_and_mean, tmp_path / "e", backend=TENSORRT_RTX, targets=["sm86"], use_plugin=False
    )

    # One product more than the layers have, for the mean, which TensorRT by itself would build as a second causal one.
    assert operators.count("CumSum") == 1
    assert info.matrix_products == {"float32": operators.count("MatMul")} == {"float32": 7}
    assert info.command_line.startswith("tensorrt_rtx --onnx=")
    assert "lugin" not in info.command_line


def one_body_for_all(model: onnx.ModelProto) -> None:
    """What a tool leaves if it drops what distinguishes the functions."""
    for node in filter(is_aggregation, model.graph.node):
        node.op_type = model.functions[0].name
    del model.functions[1:]


def one_name_for_all(model: onnx.ModelProto) -> None:
    """As earlier versions wrote it."""
    first, *others = model.functions
    for node in filter(is_aggregation, model.graph.node):
        node.overload, node.op_type = "" if node.op_type == first.name else node.op_type, first.name
    for function in others:
        function.overload, function.name = function.name, first.name
    model.ir_version = 10


@pytest.mark.parametrize(
    ("rewrite", "reason"),
    [
        (one_body_for_all, "node second/GatedPolynomialAggregation and its function .* do not match"),
        (one_name_for_all, "holds 2 functions named pom::GatedPolynomialAggregation.* TensorRT would use one"),
    ],
)
def test_without_the_plugin_a_node_needs_its_own_function(
    causal_and_mean: Path, tmp_path: Path, rewrite: Callable[[onnx.ModelProto], None], reason: str
) -> None:
    model = onnx.load(causal_and_mean)
    rewrite(model)
    onnx.save(model, tmp_path / "m.onnx")
    options = {"backend": TENSORRT_RTX, "targets": ["sm86"]}
    with pytest.raises(InputError, match=reason) as refused:
        pom_export.build_engine(tmp_path / "m.onnx", tmp_path / "e", use_plugin=False, **options)
    assert "Export it again" in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
    assert pom_export.build_engine(tmp_path / "m.onnx", tmp_path / "e", **options).plugin_layers == 2


def test_a_file_without_functions_needs_the_plugin(exported: Path, tmp_path: Path) -> None:
    model = onnx.load(exported)
    del model.functions[:]
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(InputError, match=r"lacks the functions of GatedPolynomialAggregation|PolynomialAggregation"):
        pom_export.build_engine(
            tmp_path / "m.onnx", tmp_path / "e", backend=TENSORRT_RTX, targets=["sm86"], use_plugin=False
        )
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize("edit", [into_function("user", "PolynomialAggregation"), into_loop], ids=["function", "loop"])
def test_nodes_in_functions_of_others_and_in_loops_are_plugin_layers(
    exported: Path, tmp_path: Path, edit: Edit
) -> None:
    model = onnx.load(exported)
    edit(model)
    onnx.save(model, tmp_path / "m.onnx")
    options = {"backend": TENSORRT_RTX, "targets": ["sm86"]}
    assert pom_export.build_engine(tmp_path / "m.onnx", tmp_path / "e", **options).plugin_layers == 1
    model.functions.remove(next(function for function in model.functions if function.domain == "pom"))
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(InputError, match="lacks the functions of"):
        pom_export.build_engine(tmp_path / "m.onnx", tmp_path / "e", use_plugin=False, **options)


def test_unknown_targets_are_refused(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"does not build for sm12\. It knows sm75, sm80, "):
        pom_export.build_engine(exported, tmp_path / "e", backend=TENSORRT_RTX, targets=["sm12"])
    for text in ("6", "sm", "sm90a", "current", "8.66"):
        with pytest.raises(InputError, match=f"'{text}' is not a compute capability"):
            parse_targets(text)
    for text in ("", ","):
        with pytest.raises(InputError, match=f"^`targets` names no GPU architecture, got '{text}'"):
            parse_targets(text)
    with pytest.raises(InputError, match="sm86 is given twice"):
        pom_export.build_engine(exported, tmp_path / "e", backend=TENSORRT_RTX, targets=["8.6", "sm_86"])
    assert list(tmp_path.iterdir()) == []


def test_what_to_do_where_an_architecture_lacks_float32(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="FP32 GEMM is not supported") as caught:
        pom_export.build_engine(exported, tmp_path / "e", backend=TENSORRT_RTX, targets=["sm75", "sm86"])
    assert caught.value.hint == "Leave sm75 out, or export the model with `dtype='float16'`"
    assert list(tmp_path.iterdir()) == []


def test_arguments_of_another_type_are_named(exported: Path, tmp_path: Path) -> None:
    build: Any = pom_export.build_engine
    with pytest.raises(InputError, match=r"^unknown backend 'tensorrt-rtxx'\. Did you mean 'tensorrt-rtx'"):
        build(exported, tmp_path / "e", backend="tensorrt-rtxx")
    with pytest.raises(InputError, match="does not build for sm12"):  # one text, as on the command line
        build(exported, tmp_path / "e", backend=TENSORRT_RTX, targets="sm86,sm_12")
    for shapes in ([1], "x:1x16x8", {"x": "1x16x8"}, {"x": (1, 2.5, 8)}):
        with pytest.raises(InputError, match=r"^`opt_shapes` must have whole numbers by input, got .* Example"):
            build(exported, tmp_path / "e", backend=TENSORRT_RTX, opt_shapes=shapes)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_tensorrt_refuses_leaves_nothing(exported: Path, tmp_path: Path) -> None:
    model = onnx.load(exported)
    node = next(node for node in model.graph.node if node.op_type == "MatMul")
    node.op_type, node.domain = "Unheard", "of"
    model.opset_import.append(onnx.helper.make_opsetid("of", 1))
    onnx.save(model, tmp_path / "bad.onnx")
    for use_plugin in (True, False):
        with pytest.raises(EngineError, match="Unheard"):
            pom_export.build_engine(
                tmp_path / "bad.onnx", tmp_path / "e", backend=TENSORRT_RTX, targets=["sm86"], use_plugin=use_plugin
            )
    assert [path.name for path in tmp_path.iterdir()] == ["bad.onnx"]


def test_builds_in_two_threads_name_their_own_faults(exported: Path, tmp_path: Path) -> None:
    both = threading.Barrier(2)

    def wait_for_the_other(stage: str) -> None:
        if stage.startswith("parsing"):
            both.wait(60)

    def refused(operator: str) -> str:
        model = onnx.load(exported)
        node = next(node for node in model.graph.node if node.op_type == "MatMul")
        node.op_type, node.domain = operator, "of"
        model.opset_import.append(onnx.helper.make_opsetid("of", 1))
        onnx.save(model, tmp_path / f"{operator}.onnx")
        options: Any = {"backend": TENSORRT_RTX, "targets": ["sm86"], "progress": wait_for_the_other}
        with pytest.raises(EngineError) as error:
            pom_export.build_engine(tmp_path / f"{operator}.onnx", tmp_path / f"{operator}.engine", **options)
        return str(error.value)

    operators = ["Unheard", "Unseen"]
    with ThreadPoolExecutor(2) as pool:
        for own, other, said in zip(operators, reversed(operators), pool.map(refused, operators), strict=True):
            assert own in said
            assert other not in said


def test_an_aggregation_that_is_no_plugin_layer_fails_the_build(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the override flag, the parser would use the function, which the builder must notice."""
    from pom_export.engine import builder

    original = builder.read_model

    def with_one_more(path: Path) -> object:
        model = original(path)
        object.__setattr__(model, "aggregations", [*model.aggregations, "another"])
        return model

    monkeypatch.setattr(builder, "read_model", with_one_more)
    with pytest.raises(EngineError, match="1 of 2 aggregations"):
        pom_export.build_engine(exported, tmp_path / "e", backend=TENSORRT_RTX, targets=["sm86"])
    assert list(tmp_path.iterdir()) == []


def test_the_manifest_replaces_no_other_file(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text('{"degree": 2}')
    with pytest.raises(InputError, match="where the manifest would go"):
        pom_export.build_engine(exported, tmp_path / "m", backend=TENSORRT_RTX, targets=["sm86"])
    assert [path.read_text() for path in tmp_path.iterdir()] == ['{"degree": 2}']


def test_external_weights_are_read_and_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "EXTERNAL_DATA_BYTES", 0)
    model = tmp_path / "m.onnx"
    pom_export.export(CHECKPOINT, model)
    (weights,) = tmp_path.glob("m.onnx.*.data")
    for output in (model, weights):
        with pytest.raises(InputError, match="is the input itself"):
            pom_export.build_engine(model, output, backend=TENSORRT_RTX, targets=["sm86"])
    for use_plugin in (True, False):
        info = pom_export.build_engine(
            model, tmp_path / "e", backend=TENSORRT_RTX, targets=["sm86"], use_plugin=use_plugin
        )
        assert info.weights_sha256 == {weights.name: sha256_of(weights)}
        assert info.model_sha256 == sha256_of(model)


@pytest.mark.parametrize("use_plugin", [True, False])
@pytest.mark.parametrize("moment", ["parsing", "building", "Building", "Cloning"])
def test_ctrl_c_stops_the_build_and_leaves_nothing(
    moment: str, use_plugin: bool, exported: Path, tmp_path: Path
) -> None:
    def interrupt(stage: str) -> None:
        if stage.startswith(moment):
            os.kill(os.getpid(), signal.SIGINT)

    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            pom_export.build_engine(
                exported,
                tmp_path / "e",
                backend=TENSORRT_RTX,
                targets=["sm86", "sm89"],
                cache=tmp_path / "cache",
                use_plugin=use_plugin,
                progress=interrupt,
            )
    finally:
        signal.signal(signal.SIGINT, previous)
    assert list(tmp_path.iterdir()) == []
