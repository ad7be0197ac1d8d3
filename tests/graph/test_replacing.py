"""Official-style mixers in a user's model are found, replaced and exported; the model itself is left unchanged."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pom_export
from pom_export.api import checking
from pom_export.errors import InputError
from pom_export.graph.copying import copy_module
from pom_export.graph.own_program import module_program, named_examples
from pom_export.graph.replacing import MixerStandIn, replace_mixers
from pom_export.parity.comparison import difference
from pom_export.parity.tolerances import GOLDEN, MODELS

sys.path.insert(0, str(Path(__file__).parents[1]))
from official_style import PoM, ProductPoM, RotaryPoM, SeparatePoM

MASKS = {"none": None, "causal": "causal", "2d": "mask2d", "3d": "mask3d"}


def official_module(config: dict[str, Any]) -> nn.Module:
    """Return the official-style module of a golden case."""
    if config["family"] != "pom-v2":
        return ProductPoM(config["dim"], config["degree"], config["expand"], config.get("n_head"), config["bias"])
    if "rope" in config:
        return RotaryPoM(config["dim"], config["degree"], config["expand"], config["rope"]["max_seq_len"])
    names = ("dim", "degree", "expand", "n_groups", "n_sel_heads", "bias")
    return (SeparatePoM if "layout" in config else PoM)(*(config[name] for name in names))


def test_the_style_is_the_official_one_and_replacing_keeps_its_outputs(golden: Any) -> None:
    rope = golden.config.get("rope", {})
    if rope.get("rope_2d") or (rope and golden.config["n_sel_heads"] > 1):
        return  # the plain module has neither
    original = official_module(golden.config)
    original.load_state_dict(torch.load(golden.checkpoint, weights_only=True))
    replaced = replace_mixers(copy_module(original, torch.float64)).module
    assert isinstance(replaced, MixerStandIn)
    arrays = {name: torch.from_numpy(array) for name, array in golden.arrays.items()}
    keywords = {"positions": arrays["positions"]} if rope else {}
    context = arrays["xc"].double() if "xc" in arrays else None
    for kind in golden.config["masks"]:
        mask = arrays.get(MASKS[kind], MASKS[kind])
        for module in (copy_module(original, torch.float64), replaced):
            y = module(arrays["xq"].double(), context, mask=mask, **keywords)
            assert difference(y.detach().numpy(), golden.arrays[f"y_{kind}"], GOLDEN), (kind, type(module))


class Block(nn.Module):
    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.pom = mixer

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        return x + self.pom(self.norm(x), mask=keep)


class Foreign(nn.Module):
    """Nested, repeated and shared mixers of several families, with some names read from a mixer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        shared = PoM(16, 2, 2, n_groups=1, n_sel_heads=4)
        self.stages = nn.ModuleList([nn.ModuleList([Block(shared), Block(PoM(16, 3, 1, 4, 1, bias=True))])])
        self.again = Block(shared)
        self.cross = ProductPoM(16, 3, 1)
        self.causal = ProductPoM(16, 2, 1, n_head=4, bias=False)
        self.rotary = RotaryPoM(16, 2, 1, max_seq_len=50)
        self.head = nn.Linear(16, 5)

    def forward(self, tokens: Tensor, keep: Tensor) -> dict[str, Any]:
        x = tokens
        for stage in self.stages:
            for block in stage:
                x = block(x, keep)
        x = self.again(x, keep)
        triangle = torch.tril(torch.ones(x.shape[1], x.shape[1])).unsqueeze(0)
        x = x + self.causal(x, x, triangle)
        x = x + self.rotary(x)
        pooled = self.cross(x[:, :1], x, keep)
        return {"logits": self.head(pooled) * self.cross.dim, "features": (x, None)}


def test_a_foreign_model_is_exported_with_every_mixer_as_the_op(tmp_path: Path) -> None:
    model = Foreign().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modules = dict(model.named_modules())
    tokens, keep = torch.randn(2, 7, 16), torch.ones(2, 7)
    keep[0, 5:] = 0

    result = pom_export.export(model, tmp_path / "m.onnx", example_inputs=(tokens, keep))

    assert result.aggregations == 6  # the shared one runs twice
    assert [output.split()[0] for output in result.outputs] == ["logits", "features"]
    assert model.training
    assert dict(model.named_modules()) == modules
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    model.eval()
    more, kept = torch.randn(3, 31, 16), (torch.rand(3, 31) < 0.5).float()
    expected = model(more, kept)
    for kernels in (True, False):
        session = pom_export.inference_session(tmp_path / "m.onnx", kernels=kernels)
        logits, features = session.run(None, {"tokens": more.numpy(), "keep": kept.numpy()})
        for found, wanted in ((logits, expected["logits"]), (features, expected["features"][0])):
            assert difference(found, wanted.detach().double().numpy(), MODELS["float32"])


def test_weights_are_shared_not_copied() -> None:
    model = Foreign()
    replaced = replace_mixers(copy_module(model)).module
    assert replaced.again.pom is replaced.stages[0][0].pom
    assert replaced.again.pom.mixer.po_coeff is model.again.pom.po_coeff


def test_a_mixer_alone_is_exported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    pom = PoM(8, 2, 2, 1, 1).eval()
    result = pom_export.export(pom, tmp_path / "m.onnx", example_inputs=(torch.randn(2, 5, 8),))
    assert result.aggregations == 1
    (y,) = pom_export.inference_session(tmp_path / "m.onnx").run(None, {"xq": np.ones((1, 3, 8), np.float32)})
    np.testing.assert_allclose(y, pom(torch.ones(1, 3, 8)).detach().numpy(), rtol=1e-4, atol=1e-5)


class NotQuite(PoM):
    """A mixer's parameters with another computation."""

    def forward(self, xq: Tensor, xc: Tensor | None = None, mask: Any = None) -> Tensor:
        return super().forward(xq, xc, mask) + 0.1


def test_a_module_that_only_looks_like_a_mixer_is_found_out(tmp_path: Path) -> None:
    torch.manual_seed(0)
    with pytest.raises(pom_export.PomExportError, match="differs from PyTorch") as caught:
        pom_export.export(NotQuite(8, 2, 2, 1, 1), tmp_path / "m.onnx", example_inputs=(torch.randn(2, 5, 8),))
    assert caught.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("model", "inputs", "options", "message"),
    [
        (nn.Linear(4, 4), (torch.ones(1, 4),), {}, "contains none of our mixers"),
        (PoM(8, 2, 2, 1, 1), (torch.ones(1, 5, 7),), {}, "fails on the example inputs"),
        (nn.Sequential(PoM(8, 2, 2, 1, 1)), (torch.ones(1, 5, 8),) * 2, {}, "takes 1 inputs, got 2"),
        (PoM(8, 2, 2, 1, 1), (torch.ones(1, 5, 8),), {"mask": "causal"}, "`mask` is for our own models"),
        (PoM(8, 2, 2, 1, 1), (torch.ones(1, 5, 8),), {"degree": 2}, "`degree` is for our own models"),
        (PoM(8, 2, 2, 1, 1), None, {}, "example_inputs"),
    ],
)
def test_what_cannot_be_exported_is_reported(
    model: nn.Module, inputs: Any, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        pom_export.export(model, tmp_path / "m.onnx", example_inputs=inputs, **options)
    assert list(tmp_path.iterdir()) == []


def test_sizes_other_than_the_examples_are_compared_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    compared: list[str] = []
    whole = checking.judge

    def spy(model: Any, candidates: Any, cases: Any, *others: Any, **options: Any) -> Any:
        compared.extend(case.name for case in cases)
        return whole(model, candidates, cases, *others, **options)

    monkeypatch.setattr(checking, "judge", spy)
    model = nn.Sequential(PoM(8, 2, 2, 1, 1))
    pom_export.export(model, tmp_path / "m.onnx", example_inputs=(torch.randn(2, 5, 8),))
    assert {"example inputs", "other sizes"} < set(compared)


class Twice(nn.Module):
    """One mixer under two names, in a list and in a Sequential."""

    def __init__(self) -> None:
        super().__init__()
        mixer = PoM(8, 2, 2, 1, 1)
        self.first = self.second = mixer
        self.listed = nn.ModuleList([mixer, mixer])
        self.chain = nn.Sequential(mixer, nn.LayerNorm(8), mixer)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x))
        for mixer in self.listed:
            x = mixer(x)
        return self.chain(x)


@pytest.mark.slow
def test_a_mixer_with_several_names_is_replaced_under_each(tmp_path: Path) -> None:
    torch.manual_seed(0)
    result = pom_export.export(Twice(), tmp_path / "m.onnx", example_inputs=(torch.randn(2, 5, 8),))
    assert result.aggregations == 6


class MaskedThrice(nn.Module):
    """Blocks side by side, each with a mask of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(PoM(16, 2, 2, 1, 4)) for _ in range(3))

    def forward(self, x: Tensor, long: Tensor, byte: Tensor, flag: Tensor) -> tuple[Tensor, ...]:
        return tuple(block(x, keep) for block, keep in zip(self.blocks, (long, byte, flag), strict=True))


@pytest.mark.slow
def test_masks_of_integers_are_taken_as_the_official_code_takes_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = MaskedThrice().eval()
    x, keep = torch.randn(2, 5, 16), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    masks = {"long": keep.long(), "byte": keep.byte(), "flag": keep.bool()}
    pom_export.export(model, tmp_path / "m.onnx", example_inputs={"x": x, **masks})
    feed = {"x": x.numpy(), **{name: mask.numpy() for name, mask in masks.items()}}
    found = pom_export.inference_session(tmp_path / "m.onnx").run(None, feed)
    for name, y, wanted in zip(masks, found, model(x, **masks), strict=True):
        assert difference(y, wanted.detach().double().numpy(), MODELS["float32"]), name


class Caching(nn.Module):
    """Keeps tables for the last length, as the public language model does."""

    def __init__(self) -> None:
        super().__init__()
        self.pom = PoM(8, 2, 2, 1, 1)
        self.length = 0
        self.tables: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> dict[str, Any]:
        if x.shape[1] != self.length:
            self.length = x.shape[1]
            self.tables["ramp"] = torch.arange(x.shape[1]).to(x.dtype)
        return {"x": self.pom(x + self.tables["ramp"][:, None]), "loss": None}


@pytest.mark.parametrize("used", [pytest.param(False, marks=pytest.mark.slow), True])
def test_what_a_module_keeps_from_a_call_does_not_become_a_constant(used: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Caching().eval()
    if used:
        model(torch.randn(2, 5, 8))
    result = pom_export.export(model, tmp_path / "m.onnx", example_inputs=(torch.randn(2, 5, 8),))
    assert result.outputs == ["x_out float32[batch, tokens, 8]"]
    x = torch.randn(1, 9, 8)
    (y,) = pom_export.inference_session(tmp_path / "m.onnx").run(None, {"x": x.numpy()})
    assert difference(y, model(x)["x"].detach().double().numpy(), MODELS["float32"])


def test_inputs_may_be_named_left_out_or_arrays(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = PoM(8, 2, 2, 1, 1).eval()
    x, mask = torch.randn(2, 5, 8, requires_grad=True), torch.ones(2, 5, dtype=torch.bool)
    for examples in ({"xq": x, "mask": mask}, (x, None, mask), (x.detach().numpy(), None, mask.numpy())):
        named = named_examples(model, examples)
        assert list(named) == ["xq", "mask"]
        assert torch.equal(named["xq"], x)
        assert torch.equal(named["mask"], mask)
    result = pom_export.export(model, tmp_path / "m.onnx", example_inputs=(x, None, mask))
    assert [text.split()[0] for text in result.inputs] == ["xq", "mask"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, on the way to its compiler
@pytest.mark.parametrize("wrap", [pytest.param(torch.compile, marks=pytest.mark.slow), nn.DataParallel])
def test_wrappers_are_looked_through(wrap: Any, tmp_path: Path) -> None:
    model = nn.Sequential(PoM(8, 2, 2, 1, 1))
    result = pom_export.export(wrap(model), tmp_path / "m.onnx", example_inputs=(torch.randn(2, 5, 8),))
    assert result.aggregations == 1


@pytest.mark.parametrize("dtype", ["float16", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_a_foreign_module_is_exported_in_half_precision(dtype: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(PoM(8, 2, 2, 1, 1))
    inputs = (torch.randn(2, 5, 8),)
    result = pom_export.export(model, tmp_path / "m.onnx", example_inputs=inputs, dtype=dtype, samples=1)
    assert result.inputs == [f"input {dtype}[batch, tokens, 8]"]


def test_a_dimension_that_the_model_fixes_is_no_dynamic_one(tmp_path: Path) -> None:
    model = nn.Sequential(PoM(8, 2, 2, 1, 1))
    shapes = {"input": {0: torch.export.Dim("b"), 2: torch.export.Dim("width")}}
    with pytest.raises(InputError, match=r"dimension 2 of input|could not export"):
        pom_export.export(model, tmp_path / "m.onnx", example_inputs=(torch.randn(2, 5, 8),), dynamic_shapes=shapes)


def test_a_near_miss_says_what_is_missing(tmp_path: Path) -> None:
    model = nn.Sequential(ProductPoM(8, 2, 2))
    del model[0].order
    with pytest.raises(
        InputError, match=r"0 looks like a mixer, but the shapes of a v1 mixer do not determine its degree"
    ):
        pom_export.export(model, tmp_path / "m.onnx", example_inputs=(torch.randn(2, 5, 8),))


class Encoders(nn.Module):
    """Layers of torch's encoder, one after the other."""

    def __init__(self, norm_first: Sequence[bool]) -> None:
        super().__init__()
        layers = (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=first) for first in norm_first)
        self.encoders = nn.ModuleList(nn.TransformerEncoder(layer, 1, enable_nested_tensor=False) for layer in layers)

    def forward(self, src: Tensor, mask: Tensor) -> Tensor:
        for encoder in self.encoders:
            src = encoder(src, mask)
        return src


@pytest.mark.parametrize("norm_first", [[False], pytest.param([True, False], marks=pytest.mark.slow)])
def test_transformer_layers_are_traced_with_a_mask_of_unknown_kind(norm_first: list[bool], tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoders = Encoders(norm_first)
    pom_export.replace_attention(encoders)
    mask = nn.Transformer.generate_square_subsequent_mask(5)
    result = pom_export.export(encoders, tmp_path / "m.onnx", example_inputs=(torch.randn(2, 5, 8), mask))
    assert result.aggregations == len(norm_first)


class Outputs(nn.Module):
    """Returns whatever a function makes of a mixer's result."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.pom = PoM(8, 2, 2, 1, 1)
        self.make = make

    def forward(self, x: Tensor) -> Any:
        return self.make(self.pom(x))


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda y: y, ["y"]),
        (lambda y: (y, None), ["y"]),
        (lambda y: (y, 2 * y), ["y_0", "y_1"]),
        (lambda y: {"h": [y, 2 * y], "z": y.sum()}, ["h_0", "h_1", "z"]),
        (lambda y: (y, {"y_0": 2 * y}), ["y_0", "y_0_"]),
        (lambda y: {"x": y, "x_out": 2 * y}, ["x_out_", "x_out"]),
    ],
)
def test_outputs_are_named_after_the_way_to_them(make: Any, names: list[str]) -> None:
    program = module_program(Outputs(make).eval(), {"x": torch.randn(2, 5, 8)})
    assert list(program.outputs) == names


def test_a_file_has_the_outputs_under_their_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Outputs(lambda y: {"h": [y, 2 * y], "z": (y.sum(), None), "x": 3 * y, "x_out": 4 * y}).eval()
    result = pom_export.export(model, tmp_path / "m.onnx", example_inputs=(torch.randn(2, 5, 8),))
    assert [output.split()[0] for output in result.outputs] == ["h_0", "h_1", "z", "x_out_", "x_out"]
    x = torch.randn(1, 4, 8)
    found = pom_export.inference_session(tmp_path / "m.onnx").run(None, {"x": x.numpy()})
    wanted = [leaf for leaf in torch.utils._pytree.tree_leaves(model(x)) if isinstance(leaf, Tensor)]
    for name, one, other in zip(result.outputs, found, wanted, strict=True):
        assert difference(one, other.detach().double().numpy(), MODELS["float32"]), name


@pytest.mark.slow
def test_the_mask_of_each_query_is_dynamic_in_both_directions(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Block(PoM(16, 2, 2, 1, 4)).eval()
    result = pom_export.export(model, tmp_path / "m.onnx", example_inputs=(torch.randn(2, 9, 16), torch.ones(2, 9, 9)))
    assert result.inputs[1] == "keep float32[batch, tokens, tokens]"


@pytest.mark.parametrize(
    "output",
    [lambda _, x: 2 * x, lambda _, x: x, lambda pom, _: pom.po_coeff, lambda pom, x: (pom(x, x), x)[1]],
    ids=["idle", "input", "weight", "unused"],
)
def test_a_mixer_that_no_output_comes_from_is_reported(output: Callable[..., Tensor], tmp_path: Path) -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pom = PoM(8, 2, 2, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return output(self.pom, x)

    with pytest.raises(InputError, match="no output comes from a mixer"):
        pom_export.export(Idle(), tmp_path / "m.onnx", example_inputs=(torch.randn(2, 5, 8),))
    assert list(tmp_path.iterdir()) == []


class Widened(PoM):
    """An official mixer with an additional parameter."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, 2, 2, 1, 1)
        self.temperature = nn.Parameter(torch.ones(1))

    def forward(self, xq: Tensor, xc: Tensor | None = None, mask: Any = None) -> Tensor:
        return torch.clamp(super().forward(xq, xc, mask), -0.1, 6)  # bounds that torch.onnx does not support


def test_what_stayed_as_it_was_is_named_where_torch_fails(tmp_path: Path) -> None:
    model = nn.Sequential(PoM(8, 2, 2, 1, 1), Widened(8))
    with pytest.raises(InputError, match=r"1 looks like a mixer, but unknown keys .* temperature"):
        pom_export.export(model, tmp_path / "m.onnx", example_inputs=(torch.randn(2, 5, 8),))


def test_a_bias_that_has_no_place_is_reported_in_terms_of_modules() -> None:
    model = nn.Sequential(SeparatePoM(8, 2, 2, 1, 1))
    model[0].po_proj = nn.Linear(8, 16)
    (reason,) = replace_mixers(model).near_misses.values()
    assert "po_proj.bias is a bias of the context projection" in reason.what
    assert reason.hint is not None
    assert "mixers={SeparatePoM: adapter}" in reason.hint
