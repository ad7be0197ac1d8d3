"""Verify tells a wrong quantized file from a coarse one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import pom_export
from pom_export.cli.main import run
from pom_export.errors import InputError
from pom_export.graph.quantized.block_weights import QuantizedWeight
from pom_export.graph.quantized.products import FloatProduct
from pom_export.graph.quantized.reading import dequantize
from pom_export.graph.saving import save_model
from pom_export.mixer import MixerConfig, PolynomialMixer
from pom_export.models import LanguageModel, LanguageModelConfig
from pom_export.parity.quantized.fused import compare_fused
from pom_export.parity.report import ParityReport
from pom_export.runtime.fusing import program
from tests.debugging.faulty_files import examples_of, model_named
from tests.quantized_files import FAULTS, FORMS, one_more, quantize, rounded, zeros
from tests.slow_cases import slow_cases

PRODUCT, HEAD = "blocks.1.mlp_up/MatMul", "MatMul"
IDS = {"input_ids": np.random.default_rng(0).integers(0, 48, (3, 17))}
QUICK = ("int4 blocks twice_the_scales", "int8 blocks swapped_columns", "int8 columns zeros")
# One scale a column has no blocks whose scales could be in another order.
EXACT = ("int4 blocks, float32 activations", "int4 pairs")
OF_BLOCKS, COLUMNS = ("reversed_blocks", "scales_of_other_axis"), ("int8 columns", "int8 pairs")
PLACES = [(form, fault) for form in FORMS for fault in FAULTS if form not in COLUMNS or fault not in OF_BLOCKS]


def spread(module: nn.Module) -> nn.Module:
    """Give a model's matrices rows and columns of different sizes, as training does."""
    random = torch.Generator().manual_seed(3)
    for parameter in module.parameters():
        if parameter.dim() == 2:
            for axis in (0, 1):
                shape = [1, 1]
                shape[axis] = parameter.shape[axis]
                parameter.mul_(torch.randn(shape, generator=random).mul(0.5).exp())
    return module


class Files:
    """A model, its file, and quantized copies."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        config = LanguageModelConfig(48, 2, 3, 40, MixerConfig(32, 3, 2))
        self.module = spread(LanguageModel(config).eval().requires_grad_(requires_grad=False))
        self.folder = folder
        self.original = folder / "original.onnx"
        pom_export.export(self.module, self.original, samples=2)

    def quantized(self, form: str = "int4 blocks", **options: Any) -> Path:
        path = self.folder / "quantized.onnx"
        self.products = quantize(self.original, path, form, **options)
        return path

    def verify(self, form: str = "int4 blocks", **options: Any) -> ParityReport:
        return pom_export.verify(self.quantized(form, **options), module=self.module, inputs=IDS)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("files"))


def wrong(report: ParityReport) -> dict[str, str]:
    assert report.quantized is not None
    return {each.name: each.fault for each in report.quantized.products if not each}


@pytest.mark.parametrize("form", FORMS)
def test_a_coarse_file_passes(files: Files, form: str) -> None:
    report = files.verify(form)
    assert report, [report.failed, wrong(report)]
    found = report.quantized
    assert found is not None
    assert [each.name for each in found.products] == files.products
    assert {each.parameter for each in found.products} >= {"embedding.weight", "blocks.0.mixer.qc_proj.weight"}
    for each in found.products:
        assert each.weight is not None
        assert 1e-3 < each.weight.error < each.weight.bound
        assert (each.error is None) == (each.activations == "float32") == (form in EXACT), each.name
    (distance,) = found.distances
    assert distance.output == "logits"
    # Coarser by far than what the outputs were compared at, which is said and is no failure.
    assert distance.max_abs > 100 * report.comparisons[0].worst.difference.tolerance
    assert all(("float32 activations" in each.path) == (form not in EXACT) for each in report.comparisons)


@pytest.mark.parametrize("place", slow_cases(PLACES, lambda name: name not in QUICK, " ".join))
def test_a_wrong_weight_fails_and_is_named(files: Files, place: tuple[str, str]) -> None:
    form, fault = place
    report = files.verify(form, changes={PRODUCT: FAULTS[fault]})
    assert not report
    assert list(wrong(report)) == [PRODUCT]
    assert "is not blocks.1.mlp_up.weight" in wrong(report)[PRODUCT]
    # The outputs are those of the file's own weights: the fault is nowhere else.
    assert all(report.comparisons)


def test_weights_of_another_layer_are_not_coarse(files: Files) -> None:
    taken: dict[str, QuantizedWeight] = {}

    def keep(product: FloatProduct) -> QuantizedWeight:
        taken[product.name] = rounded(product.matrix(), 4, 16)
        return taken[product.name]

    report = files.verify(weights={"blocks.0.mlp_up/MatMul": keep, PRODUCT: lambda _: taken["blocks.0.mlp_up/MatMul"]})
    assert not report
    assert list(wrong(report)) == [PRODUCT]


def test_the_tied_head_is_quantized_and_the_embedding_is_not(files: Files) -> None:
    report = files.verify(changes={HEAD: zeros})
    assert list(wrong(report)) == [HEAD]
    assert "embedding.weight" in wrong(report)[HEAD]


def test_another_fault_in_a_coarse_file_is_found_at_float_tolerances(files: Files) -> None:
    model = onnx.load(files.quantized())
    other = next(tensor for tensor in model.graph.initializer if tensor.name == "convolution.weight")
    other.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(other) * np.float32(1.001), other.name))
    onnx.save(model, files.folder / "other.onnx")
    report = pom_export.verify(files.folder / "other.onnx", module=files.module, inputs=IDS)
    assert not report
    assert not wrong(report)
    assert not any(report.comparisons)


def test_a_product_that_rounds_otherwise_is_named(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel whose sums saturate gives other numbers than its weight and activations: one integer more is enough."""
    from pom_export.debugging import quantized_products as module

    path = files.quantized()
    exact = module.expected_product

    def off(product: Any, given: Any) -> Any:
        return exact(product if product.name != PRODUCT else _with(product, one_more(product.weight)), given)

    monkeypatch.setattr(module, "expected_product", off)
    report = pom_export.verify(path, module=files.module, inputs=IDS)
    assert not report
    assert list(wrong(report)) == [PRODUCT]
    assert "computes something else than its rounded activations" in wrong(report)[PRODUCT]


def _with(product: Any, weight: QuantizedWeight) -> Any:
    from dataclasses import replace

    return replace(product, weight=weight)


def test_fused_layers_that_compute_something_else_fail(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their products are right one by one, and the file is: only the program between them is not."""
    monkeypatch.setenv("POM_CPU_KERNEL", "scalar")  # which every machine can run, and which is fused if it is named
    right = files.verify()
    assert right
    assert right.quantized is not None
    assert right.quantized.fused
    monkeypatch.setattr(program._Writer, "_ending", lambda *_: [0, program.ABSENT])  # without activations
    report = files.verify()
    assert not report
    assert report.quantized is not None
    assert not report.quantized.fused
    assert all(report.comparisons)
    (line,) = (text for name, text in report.quantized.lines if name == "fused layers")
    assert line.startswith("FAIL  logits differs from that of single nodes by ")


@pytest.mark.parametrize(("found", "passes"), [(1.0, True), (1.09, True), (1.2, False), (np.nan, False)])
def test_fused_layers_may_differ_by_what_rounding_changes(found: float, passes: bool) -> None:
    outputs = ({"y": np.full(3, number, np.float32), "length": np.ones(1, np.int64)} for number in (found, 1.0, 0.9))
    (result,) = compare_fused(*outputs, "typical")
    assert bool(result) == passes
    assert result.to_dict()["passed"] == passes
    nothing = {"y": np.full(3, np.nan, np.float32)}
    assert not list(compare_fused(nothing, nothing, nothing, "typical"))


def test_locate_names_the_module_of_a_wrong_weight(files: Files) -> None:
    path = files.quantized(changes={PRODUCT: FAULTS["swapped_neighbours"]})
    report = pom_export.verify(path, module=files.module, inputs=IDS, locate=True)
    assert not report
    assert report.located is not None
    assert report.located.first == "blocks.1.mlp_up"
    assert "the weight blocks.1.mlp_up.weight differs" in report.located.cause
    assert [each.module for each in report.located.differences] == ["blocks.1.mlp_up"]


def test_a_wrong_weight_of_a_rewritten_graph_is_named(files: Files, tmp_path: Path) -> None:
    """Where nodes can't be compared with a fresh export's, and modules have the same weights on both sides."""
    model = onnx.load(files.quantized(changes={PRODUCT: zeros}))
    for node in model.graph.node:
        if node.op_type != "MatMulNBits":
            node.name += "_rewritten"
    onnx.save(model, tmp_path / "q.onnx")
    report = pom_export.debug(tmp_path / "q.onnx", module=files.module, inputs=IDS)
    assert not report
    assert report.first == "blocks.1.mlp_up"
    assert "is not blocks.1.mlp_up.weight in 4 bits" in report.cause


# Of int8 pairs, only a calibrated scale is good enough for each module by itself.
CALIBRATED = [form for form in FORMS if form != "int8 pairs"]


@pytest.mark.parametrize("form", slow_cases(CALIBRATED, lambda name: name != "int4 blocks"))
def test_no_module_of_a_coarse_file_is_named(files: Files, form: str) -> None:
    path = files.quantized(form)
    report = pom_export.debug(path, module=files.module, inputs=IDS)
    assert report, (report.first, report.cause)
    assert not report.differences
    assert sum(each.compared for each in report.modules) > 10
    if form in EXACT:  # the reference has the file's weights: its modules are as exact as any file's
        assert max(each.error or 0.0 for each in report.modules) < 1e-5
    against = pom_export.debug(path, against=files.original, inputs=IDS)
    assert against, (against.first, against.cause)


def test_debug_against_the_original_names_a_wrong_weight(files: Files) -> None:
    path = files.quantized("int8 blocks", changes={PRODUCT: FAULTS["reversed_blocks"]})
    report = pom_export.debug(path, against=files.original, inputs=IDS)
    assert not report
    assert report.first == "blocks.1.mlp_up"


def _record(files: Files, path: Path, form: str) -> None:
    """Save parity data beside a file: the outputs of its weights in float32."""
    import onnx_ir as ir

    from pom_export.files import sha256_of
    from pom_export.parity.case import Case
    from pom_export.parity.recording import recording_path, save_recording
    from pom_export.parity.targets import Target

    exact = files.folder / "exact.onnx"
    files.products = quantize(files.original, exact, form)
    graph = ir.load(exact)
    dequantize(graph)
    save_model(graph, exact)
    session = pom_export.inference_session(exact)
    outputs = {"logits": session.run(["logits"], IDS)[0].astype(np.float64)}
    save_recording(recording_path(path), [Case("given", IDS)], [Target(outputs)], sha256_of(path))


@pytest.mark.parametrize("form", ["int4 blocks", "int8 columns"])
def test_recorded_outputs_are_compared_too(files: Files, form: str) -> None:
    path = files.quantized(form)
    _record(files, path, form)
    report = pom_export.verify(path)
    assert report, wrong(report)
    assert report.quantized is not None
    assert not report.quantized.distances
    assert all(each.weight is None and each.error is not None for each in report.quantized.products)
    assert any("only outputs are known" in note for note in report.notes)
    path = files.quantized(form, changes={PRODUCT: zeros})
    _record(files, path, form)
    assert not pom_export.verify(path)


def test_outputs_of_the_original_are_not_those_of_a_quantized_file(files: Files) -> None:
    logits = pom_export.inference_session(files.original).run(["logits"], IDS)[0]
    report = pom_export.verify(files.quantized(), inputs={**IDS, "logits": logits})
    assert not report
    assert any("must be those of its quantized weights" in note for note in report.notes)


class Own(nn.Module):
    """A user's model: a mixer, a weight that is computed of others, and one that a function makes."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer = PolynomialMixer(16, 2, 2)
        self.up = parametrizations.weight_norm(nn.Linear(16, 32))
        self.down = nn.Parameter(torch.randn(32, 16) / 6)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(x)
        return x + torch.relu(self.up(x)) @ self.down


class Scaled(Own):
    """The same, with a weight that is no parameter."""

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(x)
        return x + torch.relu(self.up(x)) @ (self.down * 3.0 + 0.25)


@pytest.fixture
def own(tmp_path: Path) -> Callable[[nn.Module], tuple[nn.Module, Path, Tensor]]:
    def exported(module: nn.Module) -> tuple[nn.Module, Path, Tensor]:
        torch.manual_seed(0)
        module = module.eval().requires_grad_(requires_grad=False)
        x = torch.randn(2, 7, 16)
        pom_export.export(module, tmp_path / "own.onnx", example_inputs=x)
        quantize(tmp_path / "own.onnx", tmp_path / "quantized.onnx")
        return module, tmp_path / "quantized.onnx", x

    return exported


def test_a_users_weights_are_found(own: Any) -> None:
    module, path, x = own(Own())
    report = pom_export.verify(path, module=module, example_inputs=x)
    assert report, wrong(report)
    assert report.quantized is not None
    assert {"up.weight", "down", "mixer.ag_proj.weight"} <= {each.parameter for each in report.quantized.products}


@pytest.mark.slow
@pytest.mark.parametrize("form", ["int4 blocks", "int8 columns"])
@pytest.mark.parametrize("name", ["gpt", "image model", "own"])
def test_every_kind_of_model(name: str, form: str, tmp_path: Path) -> None:
    module, examples = model_named(name), examples_of(name)
    pom_export.export(module, tmp_path / "m.onnx", example_inputs=examples)
    quantize(tmp_path / "m.onnx", tmp_path / "q.onnx", form)
    report = pom_export.verify(tmp_path / "q.onnx", module=module, example_inputs=examples)
    assert report, wrong(report)
    assert report.quantized is not None
    assert all(each.weight is not None for each in report.quantized.products)


class Recurrent(nn.Module):
    """A layer that requires inputs of its weights' type, so that the model is widened as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(16, 24)
        self.recurrent = nn.LSTM(24, 16, batch_first=True)
        self.mixer = PolynomialMixer(16, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.mixer(self.recurrent(self.up(x))[0])


@pytest.mark.slow
def test_a_model_that_is_widened_as_a_whole(own: Any) -> None:
    module, path, x = own(Recurrent())
    report = pom_export.verify(path, module=module, example_inputs=x)
    assert report, wrong(report)


class Causal(nn.Module):
    """A user's language model, whose embedding is its head too, and whose state is the export's."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 16)
        self.mixer = PolynomialMixer(16, 2, 2)
        self.down = nn.Linear(16, 16)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        x = x + self.down(self.mixer(x, mask="causal"))
        return x @ self.embedding.weight.T


@pytest.mark.slow
def test_a_users_stateful_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, ids = Causal().eval().requires_grad_(requires_grad=False), torch.randint(0, 30, (2, 9))
    pom_export.export(module, tmp_path / "m.onnx", example_inputs=ids, stateful=True)
    quantize(tmp_path / "m.onnx", tmp_path / "q.onnx")
    report = pom_export.verify(tmp_path / "q.onnx", module=module, example_inputs=ids)
    assert report, wrong(report)
    quantize(tmp_path / "m.onnx", tmp_path / "q.onnx", changes={"down/MatMul": zeros})
    assert list(wrong(pom_export.verify(tmp_path / "q.onnx", module=module, example_inputs=ids))) == ["down/MatMul"]


def test_a_weight_that_is_no_parameter_does_not_pass(own: Any) -> None:
    module, path, x = own(Scaled())
    report = pom_export.verify(path, module=module, example_inputs=x)
    assert not report
    (fault,) = wrong(report).values()
    assert "nothing to compare it with" in fault


def test_half_precision_is_not_judged_without_a_bound(files: Files, tmp_path: Path) -> None:
    import onnx_ir as ir

    from pom_export.graph.quantized.products import float_products
    from pom_export.graph.quantized.scaled import write_scaled_product

    pom_export.export(files.module, tmp_path / "half.onnx", dtype="float16")
    graph = ir.load(tmp_path / "half.onnx")
    for product in float_products(graph, (ir.DataType.FLOAT16,)):
        matrix = product.matrix().astype(np.float32)
        write_scaled_product(graph, product, rounded(matrix, 8, len(matrix)))
    save_model(graph, tmp_path / "quantized.onnx")
    with pytest.raises(InputError, match="quantized products in half precision") as caught:
        pom_export.verify(tmp_path / "quantized.onnx", module=files.module, inputs=IDS)
    assert "`rtol`" in caught.value.hint
    assert pom_export.verify(tmp_path / "quantized.onnx", module=files.module, inputs=IDS, rtol=0.2)


def test_an_engine_of_another_file_is_refused(files: Files, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="missing"):
        pom_export.verify(files.quantized(), module=files.module, inputs=IDS, engine=tmp_path / "missing.engine")


@pytest.mark.slow
@pytest.mark.machine
@pytest.mark.usefixtures("tensorrt_rtx")
def test_an_engine_that_rounds_is_not_compared(files: Files, tmp_path: Path) -> None:
    engine = tmp_path / "m.engine"
    path = files.quantized("int8 pairs")
    pom_export.build_engine(path, engine, backend="tensorrt-rtx", targets=["sm86"])
    report = pom_export.verify(path, module=files.module, inputs=IDS, engine=engine)
    assert report.not_run == [f"tensorrt: the file rounds activations, and {engine} does so in its own way"]


@pytest.mark.parametrize("symmetric", [True, False])
def test_files_of_onnxruntimes_own_quantizer(files: Files, symmetric: bool, tmp_path: Path) -> None:
    """Its weights have other names, and are found by their values; those with zero points are not read."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    made = MatMulNBitsQuantizer(onnx.load(files.original), block_size=16, is_symmetric=symmetric, accuracy_level=4)
    made.process()
    made.model.save_model_to_file(str(tmp_path / "q.onnx"))
    report = pom_export.verify(tmp_path / "q.onnx", module=files.module, inputs=IDS)
    assert bool(report) == symmetric, wrong(report)
    assert any("does not read" in note for note in report.notes) == (not symmetric)
    if symmetric:
        assert report.quantized is not None
        found = {each.name.split("/")[0]: each.parameter for each in report.quantized.products}
        assert found["blocks.1.mlp_up"] == "blocks.1.mlp_up.weight"


def test_unusable_scales_are_refused(files: Files) -> None:
    def broken(weight: QuantizedWeight) -> QuantizedWeight:
        return QuantizedWeight(weight.values, np.full_like(weight.scales, np.nan), weight.bits, weight.block)

    with pytest.raises(InputError, match="no finite numbers"):
        files.verify(changes={PRODUCT: broken})


def test_the_command_and_the_page_say_what_was_found(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(files.module.state_dict(), tmp_path / "model.pt")
    path = files.quantized(changes={PRODUCT: zeros})
    np.savez(tmp_path / "ids.npz", **IDS)
    given = [str(path), "--checkpoint", str(tmp_path / "model.pt"), "--inputs", str(tmp_path / "ids.npz")]
    assert run(["verify", *given, "--report", str(tmp_path / "page.html")]) == 1
    text = capsys.readouterr().out
    page = (tmp_path / "page.html").read_text()
    for shown in (PRODUCT, "original model", "can be rounding"):
        assert shown in text
        assert shown in page
    assert run(["verify", *given, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)["quantized"]
    assert [each["passed"] for each in found["products"]].count(False) == 1
    assert found["distances"][0]["output"] == "logits"
