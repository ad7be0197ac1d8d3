"""`quantize` on real models: what the file is, what it costs, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import pom_export
from pom_export.errors import InputError, ParityError
from pom_export.graph.exported_model import read_model
from pom_export.quantization.candidates import Candidate
from pom_export.quantization.job import Job
from pom_export.runtime.streaming.session import StreamingSession
from tests.small_models import hybrid, image_model

CHECKPOINT = Path(__file__).parents[2] / "samples" / "checkpoints" / "byte_lm.safetensors"
GOLDEN = Path(__file__).parents[1] / "data" / "golden"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return some English text that is on every machine: what Python's own modules say of themselves."""
    import pydoc_data.topics

    path = tmp_path_factory.mktemp("text") / "topics.txt"
    topics = pydoc_data.topics.topics
    path.write_text("\n".join(topics[name] for name in sorted(topics))[:4_300])
    return path


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stream") / "m.onnx"
    pom_export.export(CHECKPOINT, path, stateful=True, samples=1)
    return path


@pytest.fixture(scope="module")
def quantized(stream: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    path = tmp_path_factory.mktemp("quantized") / "q.onnx"
    return path, pom_export.quantize(stream, path, weights="int4", calibrate=text, max_loss=0.05)


def test_the_file_is_small_and_loses_little(quantized: tuple[Path, Any], stream: Path) -> None:
    path, result = quantized
    assert result.bytes == path.stat().st_size < 0.45 * stream.stat().st_size
    assert result.quality.measure == "bits a byte"
    assert 0.7 < result.quality.original < 2.5
    assert result.quality.loss <= 0.05
    assert result.quality.agreement > 0.85
    assert sum(result.products.values()) == 21
    assert {each.what for each in result.speed} == {"decode", "prefill"}
    assert all(0 < each.error < 0.25 for each in result.modules)
    assert all(each.error_out is not None for each in result.modules)
    assert "blocks.0.mixer.qc_proj" in {each.name for each in result.modules}


def test_the_op_the_interface_and_the_metadata_are_kept(quantized: tuple[Path, Any], stream: Path) -> None:
    before, after = read_model(stream), read_model(quantized[0])
    assert after.aggregations == before.aggregations
    assert after.without_function == []
    assert [str(spec) for spec in after.inputs] == [str(spec) for spec in before.inputs]
    assert [str(spec) for spec in after.outputs] == [str(spec) for spec in before.outputs]
    assert after.limits == before.limits
    claim = after.claims.quantized
    assert claim is not None
    assert claim.weights == "int4"
    assert {name: text for name, text in after.properties.items() if name != "quantized"} == before.properties


def test_coefficients_biases_norms_and_convolutions_stay(quantized: tuple[Path, Any], stream: Path) -> None:
    before, after = ({w.name: w for w in onnx.load(path).graph.initializer} for path in (stream, quantized[0]))
    kept = [name for name in before if name.endswith(("po_coeff", "se_bias", "norm.weight", "convolution.weight"))]
    assert len(kept) > 16
    for name in kept:
        np.testing.assert_array_equal(numpy_helper.to_array(after[name]), numpy_helper.to_array(before[name]))


def test_calls_and_pieces_of_a_stream_agree(quantized: tuple[Path, Any]) -> None:
    """Rounding of activations must not depend on how tokens are cut into calls, or on other rows."""
    tokens = np.frombuffer(b"The with statement is used to wrap the execution of a block", np.uint8).astype(np.int64)
    whole = StreamingSession(quantized[0]).prefill(tokens[None])[0].copy()
    pieces = StreamingSession(quantized[0])
    steps = [pieces.prefill(tokens[None, :7])[0].copy(), *(pieces.step([token]).copy() for token in tokens[7:])]
    assert np.abs(np.concatenate(steps) - whole).max() <= 2e-2 * np.abs(whole).max()
    assert (np.concatenate(steps).argmax(-1) == whole.argmax(-1)).mean() > 0.95


def test_parity_data_is_that_of_the_rounded_weights(quantized: tuple[Path, Any]) -> None:
    path = quantized[0].with_suffix(".parity.npz")
    with np.load(path) as recorded:
        expected = recorded["0/out/logits"]
        feed = {name.removeprefix("0/in/"): recorded[name] for name in recorded.files if name.startswith("0/in/")}
    found = pom_export.inference_session(quantized[0]).run(["logits"], feed)[0]
    assert np.abs(found - expected).max() <= 0.03 * np.abs(expected).max()


def test_a_tight_budget_gives_products_more_bits(stream: Path, text: Path, tmp_path: Path) -> None:
    result = pom_export.quantize(stream, tmp_path / "q.onnx", weights="int4", calibrate=text, max_error=0.05)
    assert result.quality.error <= 0.05
    assert result.products.keys() > {"int8"}
    assert set(result.kept.values()) <= {"int8", "float32"}
    claim = read_model(tmp_path / "q.onnx").claims.quantized
    assert claim is not None
    assert claim.kept == result.kept


@pytest.mark.parametrize("faster", ["rounded", "in float32"])
def test_a_faster_form_beyond_the_budget_gets_more_bits(
    stream: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faster: str
) -> None:
    candidates = Job._candidates

    def costly(job: Job, at_least: float) -> list[Candidate]:
        """Return files of which those that round their activations lose too much, if all products are in int4."""
        made = candidates(job, at_least)
        return made if at_least else [_doubled(each) if "rounded" in each.recipe.name else each for each in made]

    def times(files: Sequence[Path], calls: Mapping[str, Any]) -> dict[str, list[float]]:
        """Let one kind of products be the fastest."""
        levels = [_accuracy_level(file) for file in files[1:]]
        found = [1.0, *(0.5 if (level == 4) == (faster == "rounded") else 0.7 for level in levels)]
        return dict.fromkeys(calls, found)

    monkeypatch.setattr(Job, "_candidates", costly)
    monkeypatch.setattr("pom_export.quantization.job.time_files", times)
    result = pom_export.quantize(stream, tmp_path / "q.onnx", weights="int4", calibrate=text, max_loss=0.1)
    assert result.form.endswith("rounded to 8 bits in blocks" if faster == "rounded" else "in float32")
    assert set(result.kept.values()) == ({"int8"} if faster == "rounded" else set())


def _doubled(made: Candidate) -> Candidate:
    assert made.quality.original is not None
    return replace(made, quality=replace(made.quality, quantized=2 * made.quality.original, loss=1.0))


def _accuracy_level(file: Path) -> int:
    node = next(node for node in onnx.load(file).graph.node if node.op_type == "MatMulNBits")
    return next(attribute.i for attribute in node.attribute if attribute.name == "accuracy_level")


def test_a_budget_that_nothing_meets_names_the_best(stream: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ParityError,
        match=r"the closest .* has errors of up to .* products in|would have \d+% of the weights in float32",
    ) as raised:
        pom_export.quantize(stream, tmp_path / "q.onnx", weights="int8", calibrate=text, max_error=1e-7)
    assert raised.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_modules_can_be_kept(stream: Path, text: Path, tmp_path: Path) -> None:
    keep = ["blocks.*.mixer"]
    result = pom_export.quantize(stream, tmp_path / "q.onnx", calibrate=text, keep_float32=keep)
    assert len(result.kept) == 12
    assert all(".mixer." in name for name in result.kept)
    names = {weight.name for weight in onnx.load(tmp_path / "q.onnx").graph.initializer}
    assert "blocks.0.mixer.ag_proj.weight_transposed" in names
    assert "blocks.0.mlp_up.weight_transposed.int8" in names


def test_without_data_a_stream_writes_its_own(stream: Path, tmp_path: Path) -> None:
    result = pom_export.quantize(stream, tmp_path / "q.onnx")
    assert result.measured_on == "text that the model wrote itself"
    assert result.quality.loss < 0.01
    assert result.products == {"int8": 21}


@pytest.mark.slow
def test_a_hybrid_with_attention(tmp_path: Path) -> None:
    pom_export.export(hybrid(), tmp_path / "m.onnx", stateful=True)
    result = pom_export.quantize(tmp_path / "m.onnx", tmp_path / "q.onnx")
    assert result.quality.loss is not None
    assert set(result.products) <= {"int8", "float32"}
    # The past, which has no keys before the first call, is not the caller's to give.
    ids = np.random.default_rng(0).integers(0, 61, (8, 16))
    result = pom_export.quantize(tmp_path / "m.onnx", tmp_path / "q.onnx", calibrate={"input_ids": ids})
    assert result.quality.measure == "bits a byte"


def test_an_image_model_has_a_signal_to_noise_ratio(tmp_path: Path) -> None:
    pom_export.export(image_model(), tmp_path / "m.onnx")
    result = pom_export.quantize(tmp_path / "m.onnx", tmp_path / "q.onnx", max_error=0.1)
    assert result.quality.psnr is not None
    assert result.quality.psnr > 25
    assert any("random" in note for note in result.notes)


@pytest.fixture(scope="module")
def layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("layer") / "m.onnx"
    pom_export.export(GOLDEN / "v2_base", path)
    return path


class Classifier(torch.nn.Module):
    """One mixer, and a head on the mean of its outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer = pom_export.PolynomialMixer(16, degree=2, expand=2)
        self.head = torch.nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.mixer(x).mean(1))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("classifier") / "m.onnx"
    torch.manual_seed(0)
    module = Classifier().eval()
    pom_export.export(module, path, example_inputs={"x": torch.randn(2, 5, 16)})
    return path


def test_a_classifier_has_an_accuracy(classifier: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((64, 5, 16)).astype(np.float32)
    logits = pom_export.inference_session(classifier).run(None, {"x": x})[0]
    data = {"x": x, "labels": logits.argmax(-1)}
    result = pom_export.quantize(classifier, tmp_path / "q.onnx", calibrate=data, max_loss=0.3)
    assert (result.quality.measure, result.quality.original) == ("accuracy", 1.0)
    assert result.quality.quantized >= 0.7
    assert result.measured_on == "given"
    for labels, message in ((logits.argmax(-1) + 4, "is no class of"), (logits.argmin(-1), "is wrong about every row")):
        with pytest.raises(InputError, match=message):
            pom_export.quantize(classifier, tmp_path / "q.onnx", calibrate={"x": x, "labels": labels})


@pytest.mark.parametrize(
    ("options", "form", "kept"),
    [
        ({"activations": "int8"}, "activations rounded to int8 with a fixed scale", ["ag_proj/MatMul"]),
        ({"activations": "fp8"}, "activations rounded to fp8 with a fixed scale", []),
        ({"weights": "int4", "runtime": "tensorrt"}, "activations in float", []),
    ],
)
def test_files_for_tensorrt(options: dict[str, Any], form: str, kept: list[str], layer: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((8, 16, 32)).astype(np.float32)
    result = pom_export.quantize(layer, tmp_path / "q.onnx", calibrate={"x": x}, **options)
    assert form in result.form
    assert list(result.kept) == kept
    assert result.quality.error < 0.2
    assert result.speed == []
    model = onnx.load(tmp_path / "q.onnx")
    count = sum(node.op_type == "DequantizeLinear" for node in model.graph.node)
    assert count >= len(result.products) - len(kept)
    claim = read_model(tmp_path / "q.onnx").claims.quantized
    assert claim is not None
    assert claim.weights == options.get("activations", "int4")


def test_shapes_that_do_not_fit_are_the_reason(classifier: Path, tmp_path: Path) -> None:
    message = r"\d of 4 products, with \d+% of the weights, can be int4 in this form, which is not worth a file"
    with pytest.raises(InputError, match=message):
        pom_export.quantize(classifier, tmp_path / "q.onnx", weights="int4", runtime="tensorrt")
    assert list(tmp_path.iterdir()) == []


class PartlyDead(torch.nn.Module):
    """A mixer, and a layer that always gets zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer = pom_export.PolynomialMixer(16, degree=2, expand=2)
        self.dead = torch.nn.Linear(16, 16, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mixer(x) + self.dead(torch.relu(-x.abs()))


def test_products_of_zeros_alone_stay_as_they_are(tmp_path: Path) -> None:
    pom_export.export(PartlyDead().eval(), tmp_path / "m.onnx", example_inputs={"x": torch.randn(2, 5, 16)})
    x = np.random.default_rng(0).standard_normal((8, 5, 16)).astype(np.float32)
    result = pom_export.quantize(tmp_path / "m.onnx", tmp_path / "q.onnx", calibrate={"x": x}, activations="fp8")
    assert result.kept == {"dead/MatMul": "float32"}


def test_files_that_cannot_be_quantized_are_refused(quantized: tuple[Path, Any], layer: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "q.onnx"
    out.parent.mkdir()
    with pytest.raises(InputError, match="is quantized already"):
        pom_export.quantize(quantized[0], out)
    half = tmp_path / "half.onnx"
    pom_export.export(GOLDEN / "v2_base", half, dtype="float16")
    with pytest.raises(InputError, match="is in float16"):
        pom_export.quantize(half, out)
    model = onnx.load(layer)
    weight = next(each for each in model.graph.initializer if len(each.dims) == 2 and each.dims[1] > 8)
    array = numpy_helper.to_array(weight).copy()
    array[3, 2] = np.nan
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    onnx.save(model, tmp_path / "nan.onnx")
    with pytest.raises(InputError, match=r"holds nan in 1 place,"):
        pom_export.quantize(tmp_path / "nan.onnx", out)
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "int3"}, "`weights` 'int3' is not known"),
        ({"weights": "fp8", "runtime": "onnxruntime"}, "are for TensorRT"),
        ({"weights": "int4", "activations": "int8"}, "`activations='int8'` needs weights of the same type, not int4"),
        ({"runtime": "onnxruntime", "activations": "int8"}, "are for TensorRT"),
        ({"target": "decoding"}, "`target` 'decoding' is not known. Did you mean"),
        ({"max_loss": 0.5}, "`max_loss` is 0.5, but nothing measures what the model loses on random inputs"),
        ({"max_loss": 0}, "`max_loss` must be a share above 0, got 0"),
        ({"max_error": float("nan")}, "`max_error` must be a share above 0, got nan"),
        ({"keep_float32": "mixer"}, "`keep_float32` must be a list"),
        ({"keep_float32": ["nothing"]}, "no module in the graph is called 'nothing'"),
        ({"calibrate": "missing.npz"}, "missing.npz"),
        ({"calibrate": {"x": np.ones((1, 3, 32), np.float32)}}, "has 1 row of the model's inputs"),
        ({"calibrate": {"y": np.ones((4, 3, 32), np.float32)}}, "has 0 rows"),
        ({"calibrate": {"x": np.full((4, 3, 32), np.nan, np.float32)}}, "NaN or infinity"),
        ({"calibrate": {"x": np.ones((4, 3, 32), np.float32), "labels": np.zeros(3, int)}}, "not one whole number"),
        ({"calibrate": {"x": np.ones((4, 3, 32), np.float32), "labels": np.zeros(4, int)}}, "a number for each class"),
        ({"tokenizer": "bytes", "calibrate": {"x": np.ones((4, 3, 32))}}, "`tokenizer` is for a file of text"),
    ],
)  # fmt: skip
def test_arguments_that_are_no_good(options: dict[str, Any], message: str, layer: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        pom_export.quantize(layer, tmp_path / "q.onnx", **options)
    assert message in str(raised.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"short", "has 5 tokens, and"), (b"\xff\xfe" * 4000, "is not UTF-8"), (b"", "is empty")],
)
def test_texts_that_are_no_good(content: bytes, message: str, stream: Path, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        pom_export.quantize(stream, tmp_path / "q.onnx", calibrate=tmp_path / "t.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["t.txt"]


def test_text_is_for_language_models(layer: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no language model that takes tokens alone"):
        pom_export.quantize(layer, tmp_path / "q.onnx", calibrate=text)


def test_a_file_is_not_replaced_by_itself(stream: Path, text: Path, tmp_path: Path) -> None:
    shutil.copy(stream, tmp_path / "m.onnx")
    before = (tmp_path / "m.onnx").read_bytes()
    with pytest.raises(InputError):
        pom_export.quantize(tmp_path / "m.onnx", tmp_path / "m.onnx", calibrate=text)
    assert (tmp_path / "m.onnx").read_bytes() == before
