"""Golden cases of the official code, from checkpoint file to ONNX Runtime, with our library and without it."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import pom_export
from pom_export.errors import InputError, ParityError
from pom_export.graph.exported_model import read_model
from pom_export.graph.gated_function import build_gated_function
from pom_export.parity.comparison import difference
from pom_export.parity.tolerances import GOLDEN

GOLDEN_FOLDER = Path(__file__).parent / "data" / "golden"
# By the export's mask option: the name of the expected output, and of the mask among the inputs.
MASKS = {
    "none": ("y_none", None),
    "causal": ("y_causal", None),
    "padding": ("y_2d", "mask2d"),
    "full": ("y_3d", "mask3d"),
}


def mixers_by_family() -> dict[str, dict[str, list[str]]]:
    """Return the masks of every golden mixer, by family."""
    families: dict[str, dict[str, list[str]]] = {}
    for folder in sorted(GOLDEN_FOLDER.iterdir()):
        with np.load(folder / "io.npz") as arrays:
            masks = [mask for mask, (expected, _) in MASKS.items() if expected in arrays.files]
        if masks:
            version, *kinds = folder.name.split("_")
            families.setdefault(f"{version} {'cross' in kinds}", {})[folder.name] = masks
    return families


def mixers_and_masks() -> Iterator[Any]:
    """Yield every mixer with each of its masks; for a family, those of `_always` once, the others marked slow."""
    for family, mixers in mixers_by_family().items():
        masks = _always(family, mixers)
        few = {(_spread(mixers, masks, mask), mask) for mask in masks}
        for name, its in mixers.items():
            for mask in its:
                marks = [] if (name, mask) in few else [pytest.mark.slow]
                yield pytest.param(GOLDEN_FOLDER / name, mask, id=f"{name}-{mask}", marks=marks)


def _always(family: str, mixers: dict[str, list[str]]) -> list[str]:
    """Return the masks that a family is always run with: one for rotary mixers, whose traces take long, else all."""
    masks = [mask for mask in MASKS if any(mask in its for its in mixers.values())]
    return masks[-1:] if family.startswith("rope") else masks


def _spread(mixers: dict[str, list[str]], masks: list[str], mask: str) -> str:
    """Return a mixer that has a mask; different masks of a family take different mixers as far as they can."""
    able = [name for name, its in mixers.items() if mask in its]
    return able[len(able) * masks.index(mask) // len(masks)]


def test_some_case_of_each_family_and_mask_is_always_run() -> None:
    cases = {case.id for case in mixers_and_masks() if not case.marks}
    for family, mixers in mixers_by_family().items():
        for mask in _always(family, mixers):
            assert any(f"{name}-{mask}" in cases for name in mixers)


@pytest.mark.parametrize(("golden", "mask"), list(mixers_and_masks()), indirect=["golden"])
def test_official_outputs_are_reproduced(golden: Any, mask: str, tmp_path: Path) -> None:
    io, positions = golden.arrays, golden.positions
    expected, mask_name = MASKS[mask]
    model = tmp_path / "m.onnx"
    pom_export.export(golden.checkpoint, model, mask=mask, cross="xc" in io, positions=positions is not None)
    feed = {"x": io["xq"]}
    feed |= {"context": io["xc"]} if "xc" in io else {}
    feed |= {"mask": io[mask_name]} if mask_name else {}
    feed |= {"positions": positions} if positions is not None else {}
    for kernels in (True, False):
        (y,) = pom_export.inference_session(model, kernels=kernels).run(None, feed)
        assert difference(y, io[expected], GOLDEN), kernels


@pytest.mark.slow
def test_the_public_language_models_are_reproduced(golden_gpt: Any, tmp_path: Path) -> None:
    io = golden_gpt.arrays
    result = pom_export.export(golden_gpt.checkpoint, tmp_path / "m.onnx")
    ratio = golden_gpt.config.get("pom_to_sa_ratio")
    attention = sum(ratio is not None and i % (ratio + 1) == ratio for i in range(golden_gpt.config["n_layer"]))
    assert result.aggregations == golden_gpt.config["n_layer"] - attention
    for kernels in (True, False):
        session = pom_export.inference_session(tmp_path / "m.onnx", kernels=kernels)
        (logits,) = session.run(None, {"input_ids": io["input_ids"]})
        assert difference(logits, io["logits"], GOLDEN), kernels


@pytest.mark.slow
def test_default_positions_are_those_of_the_tokens(tmp_path: Path) -> None:
    checkpoint = GOLDEN_FOLDER / "rope1d_heads" / "checkpoint.pt"
    pom_export.export(checkpoint, tmp_path / "plain.onnx", mask="causal")
    pom_export.export(checkpoint, tmp_path / "given.onnx", mask="causal", positions=True)
    x = np.load(checkpoint.parent / "io.npz")["xq"]
    for kernels in (True, False):
        plain = pom_export.inference_session(tmp_path / "plain.onnx", kernels=kernels).run(None, {"x": x})
        given = pom_export.inference_session(tmp_path / "given.onnx", kernels=kernels).run(
            None, {"x": x, "positions": np.arange(x.shape[1])}
        )
        np.testing.assert_allclose(plain[0], given[0], rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The demo's checkpoint and its export with parity data."""
    checkpoint = Path(__file__).parents[1] / "samples" / "checkpoints" / "byte_lm.safetensors"
    model = tmp_path_factory.mktemp("lm") / "lm.onnx"
    pom_export.export(checkpoint, model, samples=3)
    return checkpoint, model


@pytest.mark.slow
def test_the_demo_model_is_what_its_record_says(language_model: tuple[Path, Path]) -> None:
    checkpoint, model = language_model
    record = json.loads(checkpoint.with_suffix(".json").read_text())
    parameters = sum(p.numel() for p in pom_export.load_checkpoint(checkpoint).parameters())
    assert record["parameters"] == parameters
    assert len(read_model(model).aggregations) == 4


@pytest.mark.slow
def test_verify_passes_against_checkpoint_and_against_parity_data(language_model: tuple[Path, Path]) -> None:
    checkpoint, model = language_model
    for report in (pom_export.verify(model, checkpoint=checkpoint), pom_export.verify(model)):
        assert report
        assert {(c.backend, c.path) for c in report.comparisons} == {
            ("onnxruntime", "kernel"),
            ("onnxruntime", "function"),
        }


@pytest.mark.slow
def test_verify_fails_when_any_one_weight_changed_by_a_percent(
    language_model: tuple[Path, Path], tmp_path: Path
) -> None:
    checkpoint, model = language_model
    weights = load_file(checkpoint)
    np.savez(tmp_path / "one.npz", input_ids=np.random.default_rng(0).integers(0, 256, (1, 64)))
    assert pom_export.verify(model, checkpoint=checkpoint, inputs=tmp_path / "one.npz")
    missed = []
    for name in weights:
        changed = {**weights, name: weights[name] * 1.01}
        save_file(changed, tmp_path / "changed.safetensors")
        # All cases together take long, and most weights affect every case.
        if all(
            pom_export.verify(model, checkpoint=tmp_path / "changed.safetensors", inputs=inputs)
            for inputs in (tmp_path / "one.npz", None)
        ):
            missed.append(name)
    assert missed == []


def test_verify_refuses_the_checkpoint_of_another_mixer(tmp_path: Path) -> None:
    pom_export.export(GOLDEN_FOLDER / "v2_heads", tmp_path / "m.onnx")
    with pytest.raises(InputError, match="exported from another"):
        pom_export.verify(tmp_path / "m.onnx", checkpoint=GOLDEN_FOLDER / "v2_base" / "checkpoint.pt")


@pytest.mark.slow
def test_verify_refuses_the_checkpoint_of_another_model(language_model: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match="exported from another"):
        pom_export.verify(language_model[1], checkpoint=GOLDEN_FOLDER / "v2_base" / "checkpoint.pt")


def test_verify_without_a_reference_says_what_to_give(tmp_path: Path) -> None:
    pom_export.export(GOLDEN_FOLDER / "v2_base" / "checkpoint.pt", tmp_path / "m.onnx")
    with pytest.raises(InputError, match="`checkpoint`"):
        pom_export.verify(tmp_path / "m.onnx")


def test_float16_export_agrees(tmp_path: Path) -> None:
    checkpoint = GOLDEN_FOLDER / "v2_heads" / "checkpoint.pt"
    pom_export.export(checkpoint, tmp_path / "m.onnx", dtype="float16", mask="padding")
    assert pom_export.verify(tmp_path / "m.onnx", checkpoint=checkpoint)


class Classifier(nn.Module):
    """A user's own model, with mixers under two masks."""

    def __init__(self) -> None:
        super().__init__()
        self.first = pom_export.PolynomialMixer(16, degree=2, expand=2, n_sel_heads=4)
        self.second = pom_export.PolynomialMixer(16, degree=3, expand=1)
        self.head = nn.Linear(16, 5)

    def forward(self, tokens: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        x = tokens + self.first(tokens, mask="causal")
        return self.head(self.second(x, mask=keep).mean(1))


def test_a_users_own_module_is_exported_and_left_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Classifier().eval()
    before = copy.deepcopy(model.state_dict())
    tokens, keep = torch.randn(2, 6, 16), torch.ones(2, 6, dtype=torch.bool)

    result = pom_export.export(model, tmp_path / "m.onnx", example_inputs=(tokens, keep))

    assert result.aggregations == 2
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    more, kept = torch.randn(3, 11, 16), torch.rand(3, 11) < 0.5
    for kernels in (True, False):
        session = pom_export.inference_session(tmp_path / "m.onnx", kernels=kernels)
        (y,) = session.run(None, {"tokens": more.numpy(), "keep": kept.numpy()})
        np.testing.assert_allclose(y, model(more, kept).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_a_module_without_mixers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="contains none of our mixers"):
        pom_export.export(nn.Linear(4, 4), tmp_path / "m.onnx", example_inputs=(torch.ones(1, 4),))
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_graph_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check at export is real: a function body that computes something else stops the export with exit code 1."""

    def wrong(variant: Any, opset: int, name: str) -> Any:
        body = build_gated_function(variant, opset, name)
        leaky = next(node for node in body if node.op_type == "LeakyRelu")
        leaky.attributes["alpha"] = ir.AttrFloat32("alpha", 0.5)
        return body

    monkeypatch.setattr("pom_export.graph.passes.attach_functions.build_gated_function", wrong)
    with pytest.raises(ParityError, match="function") as caught:
        pom_export.export(GOLDEN_FOLDER / "v2_base" / "checkpoint.pt", tmp_path / "m.onnx")
    assert caught.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_verify_takes_from_the_model_what_the_checkpoint_lacks(tmp_path: Path) -> None:
    tensors = torch.load(GOLDEN_FOLDER / "gpt_hybrid" / "checkpoint.pt", weights_only=True)["model"]
    torch.save({name: t for name, t in tensors.items() if "inv_freq" not in name}, tmp_path / "m.pt")
    pom_export.export(tmp_path / "m.pt", tmp_path / "m.onnx", degree=2, heads=4)
    assert pom_export.verify(tmp_path / "m.onnx", checkpoint=tmp_path / "m.pt")
    with pytest.raises(InputError, match="exported from a nanogpt-pom"):
        pom_export.verify(tmp_path / "m.onnx", checkpoint=GOLDEN_FOLDER / "v2_base" / "checkpoint.pt")
