"""Sessions that run a file's layers in fused nodes, against sessions that run each node."""

from __future__ import annotations

import _ctypes
import gc
import shutil
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
from pom_export.errors import InputError
from pom_export.mixer import PolynomialMixer
from pom_export.runtime import StreamPool
from pom_export.runtime.fusing import handing_over
from pom_export.runtime.library import cpu_kernel, product_kernel
from tests.oldest_onnxruntime import run_python
from tests.quantized_files import quantize
from tests.runtime.fusing.files import (
    GOLDEN,
    LANGUAGE_MODELS,
    MOST,
    agreement,
    fills,
    golden_file,
    layers_file,
    named,
)

pytestmark = pytest.mark.usefixtures("fusing")


def both(file: Path, **options: Any) -> tuple[Any, Any]:
    """Return a session with fused nodes and one without."""
    fused = pom_export.inference_session(file, **options)
    assert fused.fused
    plain = pom_export.inference_session(file, fused=False)
    assert not plain.fused
    return fused, plain


def check(file: Path, rows: int = 2, tokens: int = 5, **options: Any) -> Any:
    """Compare the two on some inputs, and return the fused one."""
    fused, plain = both(file, **options)
    feed = fills(file, rows, tokens)
    assert agreement(named(fused, feed), named(plain, feed)) > MOST
    return fused


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return layers_file(tmp_path_factory.mktemp("layers"))


@pytest.fixture(params=LANGUAGE_MODELS)
def stateful(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A golden language model with a state, quantized."""
    return golden_file(request.param, tmp_path, block=32, stateful=True)


@pytest.mark.parametrize("tokens", [1, 2, 5, 17, 130])
@pytest.mark.parametrize("rows", [1, 3])
def test_calls_of_any_size(layers: Path, rows: int, tokens: int) -> None:
    check(layers, rows, tokens)


def test_the_kernel_without_vector_instructions(layers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is used if it is named; by itself, ONNX Runtime's own products are faster than it."""
    monkeypatch.setenv("POM_CPU_KERNEL", "scalar")
    check(layers)
    monkeypatch.delenv("POM_CPU_KERNEL")
    assert bool(pom_export.inference_session(layers).fused) == (product_kernel() != "scalar")


@pytest.mark.parametrize("block", [16, 32, 64, 128, 256])
@pytest.mark.parametrize(("width", "inner"), [(24, 72), (160, 40)])
@pytest.mark.parametrize("form", ["int4 blocks", "int8 blocks"])
def test_blocks_and_widths(tmp_path: Path, form: str, block: int, width: int, inner: int) -> None:
    check(layers_file(tmp_path, block=block, width=width, inner=inner, form=form))


def test_a_stream_is_as_one_pass(stateful: Path) -> None:
    """However it is cut: whole, token by token, and unevenly."""
    fused, plain = both(stateful)
    ids = np.random.default_rng(0).integers(0, 8, (2, 12))
    for cuts in ([12], [1] * 12, [5, 1, 1, 4, 1]):
        states = [fills(stateful, 2, 1)] * 2
        at, shares = 0, []
        for tokens in cuts:
            outputs = []
            for i, session in enumerate((fused, plain)):
                # Both continue from the same state, so that what one rounded otherwise is not carried on.
                outputs.append(named(session, {**states[1], "input_ids": ids[:, at : at + tokens]}))
                states[i] = _next(states[i], outputs[i])
            shares.append(agreement(*outputs))
            at += tokens
        assert np.mean(shares) > MOST / 2


def _next(state: dict[str, Any], outputs: dict[str, Any]) -> dict[str, Any]:
    return {name: outputs.get(name.replace("past", "present"), array) for name, array in state.items()}


def test_streams_and_pools_run_fused_nodes(tmp_path: Path) -> None:
    stateful = golden_file("gpt_pom", tmp_path, stateful=True)
    stream = pom_export.StreamingSession(stateful)
    ids = np.random.default_rng(0).integers(0, 8, (1, 9))
    parts = [stream.prefill(ids[:, :4]), *(stream.step(ids[:, i : i + 1]).copy() for i in range(4, 9))]
    whole = pom_export.inference_session(stateful, fused=False)
    wanted = named(whole, {**fills(stateful, 1, 1), "input_ids": ids})["logits"]
    found = np.concatenate([part.reshape(1, -1, wanted.shape[-1]) for part in parts], axis=1)
    agreement({"logits": found}, {"logits": wanted})

    pool = StreamPool(stateful, streams=2)
    pool.step([pool.open(), pool.open()], ids[0, [0, 0]])
    outputs = pool.tick().outputs
    agreement({"logits": outputs}, {"logits": np.repeat(wanted[0, :1], 2, axis=0)})


def test_a_file_with_external_weights(layers: Path, tmp_path: Path) -> None:
    onnx.save(onnx.load(layers), tmp_path / "e.onnx", save_as_external_data=True, location="w.bin", size_threshold=64)
    options = onnxruntime.SessionOptions()
    check(tmp_path / "e.onnx", session_options=options)
    # The same options for another file, in the folder and then in another one.
    shutil.copy(tmp_path / "e.onnx", tmp_path / "f.onnx")
    check(tmp_path / "f.onnx", session_options=options)
    check(layers, session_options=options)


def test_options_have_the_weights_of_no_other_folder(layers: Path, tmp_path: Path) -> None:
    """Files of the same names in two folders, in sessions with the same options: each has its own weights."""
    files, feed = [], fills(layers, 1, 3)
    for folder, factor in (("one", 1), ("other", 1.5)):
        model = onnx.load(layers)
        for tensor in model.graph.initializer:
            array = onnx.numpy_helper.to_array(tensor)
            if array.dtype == np.float32 and array.size > 1:
                tensor.CopyFrom(onnx.numpy_helper.from_array(array * np.float32(factor), tensor.name))
        files.append(tmp_path / folder / "e.onnx")
        files[-1].parent.mkdir()
        onnx.save(model, files[-1], save_as_external_data=True, location="w.bin", size_threshold=64)
    wanted = [named(pom_export.inference_session(file, fused=False), feed) for file in files]
    options = onnxruntime.SessionOptions()
    check(layers, session_options=options)
    for i in (0, 1, 0, 1):
        assert agreement(named(check(files[i], session_options=options), feed), wanted[i]) > MOST
    plain = onnxruntime.InferenceSession(files[1], options, providers=["CPUExecutionProvider"])
    assert agreement(named(plain, feed), wanted[1]) > MOST


def test_options_that_name_another_folder(layers: Path, tmp_path: Path) -> None:
    """The file's weights are looked for there by ONNX Runtime, not by us."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(tmp_path))
    assert not pom_export.inference_session(layers, session_options=options).fused


def test_options_serve_any_number_of_sessions(layers: Path) -> None:
    options = pom_export.runtime.session.default_session_options()
    sessions = [check(layers, session_options=options) for _ in range(3)]
    feed = fills(layers, 1, 3)
    wanted = named(sessions[0], feed)
    del sessions[:2]
    gc.collect()
    assert agreement(named(sessions[0], feed), wanted) == 1
    assert options not in handing_over._REFERRED


def test_threads_share_a_session(layers: Path) -> None:
    session = check(layers)
    feeds = [fills(layers, 1, tokens, seed=tokens) for tokens in range(1, 9)]
    wanted = [named(session, feed) for feed in feeds]
    with ThreadPoolExecutor(4) as threads:
        for _ in range(10):
            found = threads.map(lambda feed: named(session, feed), feeds)
            assert all(agreement(one, other) == 1 for one, other in zip(found, wanted, strict=True))


def test_a_session_that_is_made_again_runs_the_file(layers: Path) -> None:
    session = check(layers)
    feed = fills(layers, 1, 3)
    session.set_providers(["CPUExecutionProvider"])
    plain = pom_export.inference_session(layers, fused=False)
    assert agreement(named(session, feed), named(plain, feed)) == 1


def test_the_interface_stays(layers: Path) -> None:
    fused, plain = both(layers)
    assert fused.get_modelmeta().custom_metadata_map == plain.get_modelmeta().custom_metadata_map
    assert Path(fused._model_path) == layers
    for one, other in zip(
        [*fused.get_inputs(), *fused.get_outputs()], [*plain.get_inputs(), *plain.get_outputs()], strict=True
    ):
        assert (one.name, one.shape, one.type) == (other.name, other.shape, other.type)


def test_options_that_are_about_the_files_own_nodes(layers: Path, tmp_path: Path) -> None:
    saving, plain = onnxruntime.SessionOptions(), onnxruntime.SessionOptions()
    saving.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    for options in (saving, plain):
        assert not pom_export.inference_session(layers, session_options=options).fused
    assert not pom_export.inference_session(layers, kernels=False).fused
    saved = {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}
    assert "MatMulNBits" in saved
    assert "FusedLayers" not in saved


def test_a_library_without_fused_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POM_CUSTOM_OPS_LIBRARY", _ctypes.__file__)
    assert product_kernel() is None
    assert cpu_kernel() is None


def test_what_onnxruntime_refuses_runs_as_it_is(
    layers: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(handing_over, "_serialized", lambda *_: b"not a graph")
    with caplog.at_level("INFO", "pom_export"):
        assert not pom_export.inference_session(layers).fused
    assert "is not fused, and runs as it is" in caplog.text


@pytest.mark.parametrize("op_type", ["Relu", "Add", "Mul", "Div", "Transpose", "Conv", "LayerNormalization"])
@pytest.mark.parametrize("change", ["inputs", "attributes"])
def test_damaged_nodes(layers: Path, tmp_path: Path, op_type: str, change: str) -> None:
    """ONNX Runtime says what is wrong, as it does without fused nodes."""
    model = onnx.load(layers)
    node = model.graph.node.add(op_type=op_type, name="damaged", output=["damaged"])
    model.graph.output.add(name="damaged")
    if change == "attributes":
        node.input.extend(["x"] * (1 if op_type in {"Relu", "Transpose"} else 2))
        node.attribute.append(
            onnx.helper.make_attribute({"Transpose": "perm", "Conv": "group"}.get(op_type, "axis"), "no")
        )
    onnx.save(model, tmp_path / "damaged.onnx")
    messages = []
    for fused in (True, False):
        with pytest.raises(InputError) as caught:
            pom_export.inference_session(tmp_path / "damaged.onnx", fused=fused)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_scales_that_are_no_numbers(layers: Path, tmp_path: Path) -> None:
    """They give what they give in ONNX Runtime."""
    model = onnx.load(layers)
    (*_, last) = (node for node in model.graph.node if node.op_type == "MatMulNBits")
    tensor = next(each for each in model.graph.initializer if each.name == last.input[2])
    scales = onnx.numpy_helper.to_array(tensor).copy()
    scales.flat[0] = np.nan
    tensor.CopyFrom(onnx.numpy_helper.from_array(scales, tensor.name))
    onnx.save(model, tmp_path / "nan.onnx")
    fused, plain = both(tmp_path / "nan.onnx")
    feed = fills(layers, 1, 3)
    one, other = named(fused, feed)["y"], named(plain, feed)["y"]
    assert np.isnan(other).any()
    assert np.array_equal(np.isnan(one), np.isnan(other))


class TwoInputs(nn.Module):
    """A mixer of the sum of two inputs, of which one may have a single row."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mixer, self.one, self.other = PolynomialMixer(32, 2, 2), nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return self.mixer(self.one(x) + self.other(z), mask="causal")


def test_a_single_row_stands_for_all(tmp_path: Path) -> None:
    x, z = (np.random.default_rng(seed).standard_normal((3, 5, 32), dtype=np.float32) for seed in range(2))
    examples = torch.from_numpy(x), torch.from_numpy(z)
    pom_export.export(TwoInputs(), tmp_path / "m.onnx", example_inputs=examples)
    quantize(tmp_path / "m.onnx", tmp_path / "q.onnx")
    fused, plain = both(tmp_path / "q.onnx")
    assert fused.fused["MatMulNBits"] == 5
    for feed in ({"x": x, "z": z}, {"x": x[:1], "z": z}, {"x": x, "z": z[:1]}):
        assert agreement(named(fused, feed), named(plain, feed)) > MOST


def test_sizes_are_checked(stateful: Path) -> None:
    session, _ = both(stateful)
    feed = fills(stateful, 2, 3)
    with pytest.raises(InputError, match="batch is"):
        session.run(None, {**feed, "past_length": np.zeros(3, np.int64)})


def test_verify_judges_what_runs(tmp_path: Path) -> None:
    file = golden_file("gpt_pom_heads", tmp_path, stateful=True)
    report = pom_export.verify(file, checkpoint=GOLDEN / "gpt_pom_heads" / "checkpoint.pt")
    assert report, report
    assert any(each.path.startswith("kernel") for each in report.comparisons)
    assert report.quantized is not None
    assert all(each.error is not None for each in report.quantized.products)


SCRIPT = """
import sys
import numpy as np
import onnxruntime
import pom_export

fused, plain = (pom_export.inference_session(sys.argv[1], fused=fused) for fused in (True, False))
x = np.load(sys.argv[2])
one, other = (session.run(None, {"x": x})[0] for session in (fused, plain))
errors = abs(one - other).max(-1) / abs(other).max()
print(onnxruntime.__version__, sum(fused.fused.values()), errors.max(), (errors < 1e-5).mean())
"""


@pytest.mark.slow
def test_the_oldest_onnxruntime(layers: Path, tmp_path: Path) -> None:
    onnx.save(onnx.load(layers), tmp_path / "e.onnx", save_as_external_data=True, location="w.bin", size_threshold=64)
    np.save(tmp_path / "x.npy", fills(layers, 2, 5)["x"])
    for file in (layers, tmp_path / "e.onnx"):
        done = run_python("-c", SCRIPT, str(file), str(tmp_path / "x.npy"))
        assert done.returncode == 0, done.stderr
        _, nodes, largest, share = done.stdout.split()
        assert int(nodes) > 20
        assert float(largest) < 5e-2
        assert float(share) > MOST
