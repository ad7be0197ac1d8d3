"""Wrappers anywhere in a model are seen through, and mixers that torch does not register are reported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

import pom_export
from pom_export.errors import InputError
from pom_export.graph.copying import copy_module
from pom_export.graph.replacing import replace_mixers
from pom_export.graph.wrappers import unwrapped
from tests.official_style import PoM

WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "compiled": torch.compile,
    "averaged": AveragedModel,
    "checkpointed": checkpoint_wrapper,
    "parallel": nn.DataParallel,
    "all": lambda m: AveragedModel(nn.DataParallel(checkpoint_wrapper(torch.compile(m)))),
}


def mixer() -> PoM:
    return PoM(8, 2, 2, 1, 1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, on the way to its compiler
@pytest.mark.parametrize("wrap", WRAPPERS)
def test_names_are_those_without_wrappers(wrap: str) -> None:
    model = nn.Sequential(nn.Linear(8, 8), WRAPPERS[wrap](nn.Sequential(WRAPPERS[wrap](mixer()))))
    before = [name for name, _ in model.named_modules()]
    copied = copy_module(model)
    assert list(copied.state_dict()) == list(nn.Sequential(nn.Linear(8, 8), nn.Sequential(mixer())).state_dict())
    assert replace_mixers(copied).replaced == ["1.0"]
    assert [name for name, _ in model.named_modules()] == before
    assert unwrapped(WRAPPERS[wrap](model)) is model or wrap in {"averaged", "all"}  # these copy


def test_what_is_shared_inside_and_outside_a_wrapper_stays_shared() -> None:
    shared = mixer()
    model = nn.ModuleDict({"a": shared, "b": nn.DataParallel(shared), "c": nn.Sequential(nn.DataParallel(shared))})
    copied = copy_module(model)
    assert copied["a"] is copied["b"]
    assert copied["a"] is copied["c"][0]
    assert copied["a"] is not shared
    assert copied["a"].po_coeff is shared.po_coeff


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_wrapped_part_is_exported_under_the_users_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"net": WRAPPERS["all"](nn.Sequential(mixer()))})
    model.forward = lambda x: model["net"](x)  # type: ignore[method-assign]
    outer = nn.Sequential(WRAPPERS["averaged"](nn.Sequential(WRAPPERS["compiled"](mixer()))))
    pom_export.export(outer, tmp_path / "m.onnx", example_inputs=(torch.randn(2, 5, 8),))
    graph = onnx.load(tmp_path / "m.onnx").graph
    assert {node.name.partition("/")[0] for node in graph.node} == {"0.0", "0.0.qc_proj", "0.0.ag_proj"}
    assert "0.0.po_coeff" in {tensor.name for tensor in graph.initializer}


class Listed(nn.Module):
    def __init__(self, hold: Callable[[nn.Module], Any], seen: nn.Module) -> None:
        super().__init__()
        self.held = hold(mixer())
        self.seen = seen

    def forward(self, x: Tensor) -> Tensor:
        held = next(iter(self.held.values())) if isinstance(self.held, dict) else self.held
        return self.seen((held[0] if isinstance(held, (list, tuple)) else held)(x))


@pytest.mark.parametrize(
    ("hold", "message"),
    [
        (lambda m: [m], r"held\[0\] looks like a mixer, but it is stored in a plain list.*nn\.ModuleList"),
        (lambda m: {"a": (m,)}, r"held\['a'\]\[0\] looks like a mixer, but it is stored in a plain tuple"),
        (lambda m: lambda x: m(x), r"held\.m looks like a mixer, but it is stored in a function"),
    ],
)
def test_a_mixer_that_torch_does_not_see_is_reported(hold: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        pom_export.export(Listed(hold, nn.Identity()), tmp_path / "m.onnx", example_inputs=(torch.randn(2, 5, 8),))


def test_the_mixers_that_torch_sees_are_exported_all_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Listed(lambda m: [m], mixer())
    result = pom_export.export(model, tmp_path / "m.onnx", example_inputs=(torch.randn(2, 5, 8),))
    assert result.aggregations == 1
    assert any(line.startswith("held[0] is exported as it is, as a plain graph") for line in result.notes)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_traced_mixer_is_reported() -> None:
    traced = torch.jit.trace(mixer().eval(), torch.randn(2, 5, 8))
    assert "TorchScript" in str(replace_mixers(nn.Sequential(traced)).near_misses["0"])


class PassedOn(nn.Module):
    """Like peft's models: passes its arguments on to the one module inside."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base, self.unused = base, nn.ModuleDict()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.base(*args, **kwargs)


def test_inputs_are_named_as_the_module_inside_names_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    result = pom_export.export(PassedOn(PassedOn(mixer())), tmp_path / "m.onnx", example_inputs=(torch.randn(2, 5, 8),))
    assert result.inputs == ["xq float32[batch, tokens, 8]"]
    two = PassedOn(mixer())
    two.other = mixer()
    with pytest.raises(InputError, match="has inputs without names"):
        pom_export.export(two, tmp_path / "n.onnx", example_inputs=(torch.randn(2, 5, 8),))


def test_weights_in_one_flat_piece_are_reported(tmp_path: Path) -> None:
    sharded = nn.Module()
    sharded._fsdp_wrapped_module = mixer()
    sharded.register_parameter("_flat_param", nn.Parameter(torch.zeros(3)))
    message = r"^0 \(Module\) holds its weights in pieces \(FullyShardedDataParallel\).*get_model_state_dict"
    with pytest.raises(InputError, match=message):
        pom_export.export(nn.Sequential(sharded), tmp_path / "m.onnx", example_inputs=(torch.randn(2, 5, 8),))
