"""Mixers whose weights are computed from others: parametrized, pruned, normalised, adapted, hooked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import pom_export
from pom_export.errors import CheckpointError
from pom_export.graph.copying import copy_module
from pom_export.graph.effective_weights import fold_weights
from pom_export.graph.replacing import MixerStandIn, replace_mixers
from tests.official_style import PoM, ProductPoM

Change = Callable[[nn.Module], object]


class Adapted(nn.Module):
    """Like peft's low-rank adapters."""

    def __init__(self, base: nn.Module, inputs: int, outputs: int) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A, self.lora_B = nn.Linear(inputs, 2, bias=False), nn.Linear(2, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + 2 * self.lora_B(self.lora_A(x))


class Scaled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 1.5 * weight


def adapt(name: str, inputs: int, outputs: int) -> Change:
    return lambda mixer: setattr(mixer, name, Adapted(getattr(mixer, name), inputs, outputs))


def v2() -> nn.Module:
    return PoM(8, 2, 2, 1, 1, bias=True)


def grouped() -> nn.Module:
    return PoM(8, 2, 2, 2, 1, bias=True)


def v1() -> nn.Module:
    return ProductPoM(8, 2, 2)


CASES: dict[str, tuple[Callable[[], nn.Module], Change]] = {
    "weight_norm": (v2, lambda m: parametrizations.weight_norm(m.ag_proj)),
    "weight_norm, the older": (v2, lambda m: nn.utils.weight_norm(m.ag_proj)),
    "weight_norm of groups": (grouped, lambda m: parametrizations.weight_norm(m.po_proj)),
    "spectral_norm": (v2, lambda m: parametrizations.spectral_norm(m.ag_proj)),
    "spectral_norm, the older": (v1, lambda m: nn.utils.spectral_norm(m.se_proj)),
    "orthogonal": (v2, lambda m: parametrizations.orthogonal(m.ag_proj)),
    "coefficients parametrized": (v2, lambda m: parametrize.register_parametrization(m, "po_coeff", Scaled())),
    "coefficients pruned": (v2, lambda m: prune.random_unstructured(m, "po_coeff", 0.5)),
    "pruned": (v2, lambda m: prune.l1_unstructured(m.qc_proj, "weight", 0.5)),
    "pruned groups": (grouped, lambda m: prune.random_unstructured(m.po_proj, "weight", 0.5)),
    "low rank": (v2, adapt("ag_proj", 16, 8)),
    "low rank, v1": (v1, adapt("se_proj", 8, 32)),
    "a hook on a layer": (v2, lambda m: m.ag_proj.register_forward_hook(lambda _, args, y: 2 * y)),  # noqa: ARG005
}


def replaced_in(model: nn.Module) -> nn.Module:
    return replace_mixers(copy_module(model, torch.float64)).module


def check_same(model: nn.Module) -> None:
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    replaced = replaced_in(model)
    assert any(isinstance(part, MixerStandIn) for part in replaced.modules())
    with torch.no_grad():
        torch.testing.assert_close(copy_module(replaced)(x), copy_module(model, torch.float64)(x))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
@pytest.mark.parametrize("case", CASES)
def test_what_a_layer_computes_is_what_counts(case: str) -> None:
    torch.manual_seed(0)
    make, change = CASES[case]
    mixer = make().double().eval()
    change(mixer)
    check_same(nn.Sequential(mixer))


def test_a_pruned_weight_is_brought_up_to_date() -> None:
    torch.manual_seed(0)
    mixer = PoM(8, 2, 2, 1, 1)
    prune.random_unstructured(mixer, "po_coeff", 0.5)
    with torch.no_grad():
        mixer.po_coeff_orig.mul_(3)  # as a step of training does; po_coeff itself is computed by the next call
    check_same(nn.Sequential(mixer.eval()))


def test_plain_layers_keep_their_tensors() -> None:
    mixer = PoM(8, 2, 2, 1, 1)
    parametrizations.weight_norm(mixer.ag_proj)
    replaced = replace_mixers(copy_module(nn.Sequential(mixer)))
    assert replaced.module[0].mixer.qc_proj.weight is mixer.qc_proj.weight
    assert replaced.folded == {"0": ["ag_proj"]}


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            nn.Sequential(nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 8)),
            "ag_proj is a Sequential, which does not compute a lin",
        ),
        (nn.Identity(), "ag_proj is an Identity, whose width"),
        (nn.Linear(5, 8).requires_grad_(False), "ag_proj"),
    ],
)
def test_what_is_no_linear_map_stays_as_it_is(layer: nn.Module, message: str) -> None:
    mixer = PoM(8, 2, 2, 1, 1)
    mixer.ag_proj = layer
    replaced = replace_mixers(nn.Sequential(mixer))
    assert replaced.replaced == []
    assert message in str(replaced.near_misses["0"])


def test_an_adapter_that_mixes_groups_is_reported() -> None:
    class Whole(Adapted):
        def forward(self, x: Tensor) -> Tensor:
            return self.base_layer(x) + self.lora_B(self.lora_A(x.mT)).mT

    mixer = PoM(8, 2, 2, 2, 1)
    mixer.po_proj = Whole(mixer.po_proj, 8, 16)
    assert "mixes the 2 groups" in str(replace_mixers(nn.Sequential(mixer)).near_misses["0"])


def test_the_width_is_that_of_the_layer_in_an_adapter() -> None:
    class Named(Adapted):
        in_features = 16  # of the whole mixer, as peft has it of a convolution

        def forward(self, x: Tensor) -> Tensor:
            return 3 * self.base_layer(x)

    torch.manual_seed(0)
    mixer = PoM(8, 2, 2, 2, 1, bias=True).double().eval()
    mixer.po_proj = Named(mixer.po_proj, 8, 16)
    check_same(nn.Sequential(mixer))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
def test_computed_weights_elsewhere_are_held_as_they_come_out() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4))).eval()
    parametrizations.orthogonal(model[0])
    nn.utils.weight_norm(model[1])
    prune.random_unstructured(model[2], "bias", 0.5)
    parametrizations.spectral_norm(model[3])
    before, x = [type(layer) for layer in model], torch.randn(2, 8)
    copied = copy_module(model)
    fold_weights(copied)
    assert {type(layer) for layer in copied} == {nn.Linear}
    assert {name.partition(".")[2] for name in copied.state_dict()} == {"weight", "bias"}
    torch.testing.assert_close(copied(x), model(x))
    assert [type(layer) for layer in model] == before
    assert parametrize.is_parametrized(model[0])
    model(x)


@pytest.mark.parametrize(
    "register",
    [
        lambda m: m.register_forward_hook(lambda _, args, y: 2 * y),  # noqa: ARG005
        lambda m: m.register_forward_hook(lambda _, args, kwargs, y: 2 * y, with_kwargs=True),  # noqa: ARG005
        lambda m: m.register_forward_pre_hook(lambda _, args: (2 * args[0], *args[1:])),
        lambda m: m.register_forward_pre_hook(lambda _, args, kwargs: ((3 * args[0],), kwargs), with_kwargs=True),
    ],
)
def test_hooks_of_a_mixer_run_as_they_did(register: Change) -> None:
    torch.manual_seed(0)
    mixer = PoM(8, 2, 2, 1, 1).eval()
    register(mixer)
    check_same(nn.Sequential(mixer))


def test_the_file_says_what_was_folded_and_holds_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(PoM(8, 2, 2, 1, 1)).eval()
    adapt("ag_proj", 16, 8)(model[0])
    model[0].register_forward_hook(lambda _, args, y: y + args[0])
    result = pom_export.export(model, tmp_path / "m.onnx", example_inputs=(torch.randn(2, 5, 8),))
    assert result.aggregations == 1
    assert any(line.startswith("0: ag_proj is computed from other weights") for line in result.notes)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
@pytest.mark.parametrize("case", ["weight_norm", "weight_norm, the older", "spectral_norm", "pruned", "low rank"])
def test_a_checkpoint_names_the_remedy(case: str, tmp_path: Path) -> None:
    make, change = CASES[case]
    mixer = make()
    change(mixer)
    torch.save(mixer.state_dict(), tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"computed from others: .* Fold them before saving"):
        pom_export.load_checkpoint(tmp_path / "w.pt")
