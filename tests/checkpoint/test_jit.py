"""The public image model's checkpoints: what shapes show, what they don't, and what is refused."""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pom_export.checkpoint import load_model
from pom_export.checkpoint.families import JIT
from pom_export.checkpoint.hints import Hints
from pom_export.checkpoint.recognition import recognise
from pom_export.checkpoint.spec import spec_of
from pom_export.errors import CheckpointError, InputError
from pom_export.models import JiT, JiTConfig
from pom_export.models.jit import IN_CONTEXT_STARTS
from tests.slow_cases import slow_cases
from tests.small_models import TINY_JIT


def weights(config: JiTConfig = TINY_JIT) -> dict[str, Tensor]:
    return JiT(config).state_dict()


def refusal(tensors: dict[str, Tensor], hints: Hints = Hints(in_context_start=1)) -> str:  # noqa: B008 (frozen)
    with pytest.raises(CheckpointError) as caught:
        recognise(tensors, hints)
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    return f"{caught.value} {caught.value.hint}"


def test_the_trainers_file_is_recognised(golden_jit: Any, tmp_path: Path) -> None:
    shutil.copy(golden_jit.checkpoint, tmp_path / "last.ckpt")  # without the configuration file beside it
    loaded = load_model(tmp_path / "last.ckpt")
    assert loaded.spec.architecture == JIT
    config = asdict(loaded.spec.config)
    assert config == config | {name: value for name, value in golden_jit.config.items() if name != "family"}
    assert "4 in-context tokens from layer 4 on" in loaded.spec.summary()


@pytest.mark.parametrize(
    "changed",
    [
        {"input_size": 12, "patch_size": 3, "channels": 1},
        {"max_h": 7, "max_w": 5},
        {"num_heads": 1, "mlp_width": 3},
        {"pom_n_groups": 2},
        {"in_context_len": 0, "in_context_start": 0},
    ],
    ids=lambda changed: "-".join(changed),
)
def test_shapes_show_everything_but_where_the_tokens_are_inserted(changed: dict[str, int]) -> None:
    config = replace(TINY_JIT, **{"max_h": 0, "max_w": 0, **changed})
    hints = Hints(in_context_start=1) if config.in_context_len else Hints()
    model = JiT(config)
    assert recognise(model.state_dict(), hints).spec == spec_of(model)


@pytest.mark.parametrize("depth", slow_cases(IN_CONTEXT_STARTS, lambda name: name != "12"))
def test_the_published_depths_imply_it(depth: int) -> None:
    tensors = weights(replace(TINY_JIT, depth=depth, in_context_start=0))
    assert recognise(tensors).spec.config.in_context_start == IN_CONTEXT_STARTS[depth]
    assert recognise(tensors, Hints(in_context_start=0)).spec.config.in_context_start == 0


@pytest.mark.slow
def test_what_the_published_depth_implies_is_reported(golden_jit: Any, tmp_path: Path) -> None:
    shutil.copy(golden_jit.checkpoint, tmp_path / "last.ckpt")
    said = "in_context_start 4 is the published model's for 12 blocks"
    assert any(said in note for note in load_model(tmp_path / "last.ckpt").notes)
    assert not any(said in note for note in load_model(tmp_path / "last.ckpt", in_context_start=4).notes)


@pytest.mark.parametrize("value", [True, 2.0, "1", -1])
def test_a_hint_is_a_number(golden_jit: Any, value: Any) -> None:
    for name in ("in_context_start", "degree", "heads"):
        with pytest.raises(InputError, match=f"{name} must be a whole number from [01] to"):
            load_model(golden_jit.checkpoint, **{name: value})


def test_another_depth_asks_for_it() -> None:
    assert "`in_context_start`, 0 to 1" in refusal(weights(), Hints())
    assert "in_context_start 2 does not fit: it has 2 blocks" in refusal(weights(), Hints(in_context_start=2))


def test_the_trainers_settings_give_it_and_the_user_overrides_them(tmp_path: Path) -> None:
    tensors = {f"denoiser.net.{name}": tensor for name, tensor in weights().items()}
    settings = {"cfg": {"model": {"in_context_start": 0}}}
    torch.save({"epoch": 1, "state_dict": tensors, "hyper_parameters": settings}, tmp_path / "last.ckpt")
    assert load_model(tmp_path / "last.ckpt").spec.config.in_context_start == 0
    assert load_model(tmp_path / "last.ckpt", in_context_start=1).spec.config.in_context_start == 1


def test_the_option_is_refused_where_there_are_no_such_tokens(tmp_path: Path) -> None:
    torch.save(weights(replace(TINY_JIT, in_context_len=0, in_context_start=0)), tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="no in-context tokens"):
        load_model(tmp_path / "m.pt", in_context_start=1)


def test_what_is_no_such_model_is_refused_in_its_own_terms() -> None:
    tensors = weights()
    mixers = [name for name in tensors if ".attn." in name]
    attention = {name: tensor for name, tensor in tensors.items() if name not in mixers}
    attention |= {f"blocks.{i}.attn.qkv.weight": torch.zeros(24, 8) for i in range(2)}
    assert "self-attention in every block: it has no mixer" in refusal(attention)
    earlier = {name.replace(".attn.", ".attn.pom."): tensor for name, tensor in tensors.items()}
    assert "earlier version" in refusal(earlier)
    assert "square" in refusal({**tensors, "pos_embed": torch.zeros(1, 15, 8)})
    assert "row_cos" in refusal({name: tensor for name, tensor in tensors.items() if "row_" not in name})
    without_block = {name: tensor for name, tensor in tensors.items() if not name.startswith("blocks.0.")}
    assert "blocks.0.attn." in refusal(without_block)
    assert "too few dimensions" in refusal({**tensors, "pos_embed": torch.zeros(16)})
    assert "missing keys" in refusal({n: tensor for n, tensor in tensors.items() if n != "blocks.1.norm2.weight"})


@pytest.mark.slow
def test_the_first_average_is_taken_and_the_others_can_be(golden_jit: Any) -> None:
    arrays = {name: torch.from_numpy(array) for name, array in golden_jit.arrays.items()}
    inputs = arrays["x"].float(), arrays["t"].float(), arrays["y"]
    for asked, taken, expected in (
        (None, "ema1", "out_ema1"),
        ("ema2", "ema2", "out_ema2"),
        ("ema_params1", "ema1", "out_ema1"),
        ("model", "model", "out"),
    ):
        loaded = load_model(golden_jit.checkpoint, weights=asked)
        assert loaded.weights == taken
        assert loaded.notes[0].startswith(f"the weights are {taken} (")
        assert len(loaded.other_weights) == 2
        with torch.no_grad():
            difference = (loaded.module(*inputs) - arrays[expected]).abs().max()
        assert difference < 1e-5 * arrays[expected].abs().max()


def test_averages_in_the_older_order_are_left_out_with_a_note(tmp_path: Path) -> None:
    tensors: dict[str, Tensor] = {}
    for name, tensor in weights().items():
        if name.endswith("qc_proj.weight"):
            gates = TINY_JIT.num_heads if TINY_JIT.num_heads > 1 else len(tensor) // 2
            tensors[name.replace("qc_proj", "po_proj")] = tensor[:-gates]
            tensors[name.replace("qc_proj", "se_proj")] = tensor[-gates:]
        else:
            tensors[name.replace("se_bias", "se_proj.bias")] = tensor
    parameters = [tensor for name, tensor in tensors.items() if "row_" not in name and "col_" not in name]
    prefixed = {f"denoiser.net.{name}": tensor for name, tensor in tensors.items()}
    torch.save({"state_dict": prefixed, "ema_params1": parameters}, tmp_path / "last.ckpt")
    loaded = load_model(tmp_path / "last.ckpt", in_context_start=1)
    assert (loaded.weights, loaded.other_weights) == ("model", ["ema1 (ema_params1)"])
    assert any("ema1 (ema_params1) is not used" in note for note in loaded.notes)
    assert any("older layout" in note for note in loaded.notes)
    state = loaded.module.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in tensors.items() if name in state)
