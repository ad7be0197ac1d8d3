"""What shapes don't show, and how the families' checkpoints are distinguished."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pom_export.checkpoint import load_model
from pom_export.checkpoint.families import FAMILIES, NANOGPT
from pom_export.checkpoint.hints import Hints
from pom_export.checkpoint.recognition import ARCHITECTURES, recognise
from pom_export.checkpoint.spec import build_model, spec_of
from pom_export.errors import CheckpointError, InputError
from pom_export.mixer import PolynomialMixer, ProductMixer, RotaryPolynomialMixer
from pom_export.models import GPT, GPTConfig

MIXERS = [
    ProductMixer(6, 3, 2),
    ProductMixer(6, 4, 1, n_head=3, bias=True),
    ProductMixer(6, 1, 1, n_head=1, bias=False),
    RotaryPolynomialMixer(8, 2, 3, n_groups=2, n_sel_heads=4, bias=True, max_seq_len=9),
    RotaryPolynomialMixer(8, 2, 1, max_h=3, max_w=5, rope_2d=True),
]
ONE_NUMBER_OF_HEADS = GPTConfig(19, 4, 2, 8, 4, 2, 2, 3, mlp_width=20, attention_layers=(1, 3))
GPT_CONFIG = GPTConfig(19, 4, 2, 8, 4, 1, 2, 3, mlp_width=20, attention_layers=(1, 3))


def refusal(tensors: dict[str, Tensor], hints: Hints = Hints()) -> str:  # noqa: B008 (it is frozen)
    with pytest.raises(CheckpointError) as caught:
        recognise(tensors, hints)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.hint
    return message


def test_the_families_of_hints_are_those_of_the_architectures() -> None:
    assert [architecture.label for architecture in ARCHITECTURES] == list(FAMILIES)


@pytest.mark.parametrize("mixer", MIXERS, ids=lambda mixer: f"{type(mixer).__name__}-{mixer.config.degree}")
def test_recognises_what_it_builds(mixer: Any) -> None:
    spec = recognise(mixer.state_dict(), Hints(degree=mixer.config.degree)).spec
    assert spec == spec_of(mixer)
    assert build_model(spec).load_state_dict(mixer.state_dict(), strict=True)
    assert str(mixer.config.dim) in spec.summary()


def test_recognises_a_hybrid_whose_three_numbers_of_heads_differ() -> None:
    model = GPT(GPT_CONFIG)
    assert recognise(model.state_dict(), Hints(degree=2)).spec.config == GPT_CONFIG


def test_the_degree_of_v1_must_be_given_and_fit() -> None:
    tensors = ProductMixer(6, 3, 2).state_dict()
    assert "`degree` 1, 2, 3 or 6" in refusal(tensors)
    assert "degree 4 does not fit" in refusal(tensors, Hints(degree=4))
    assert recognise(ProductMixer(6, 1, 1).state_dict()).spec.degree == 1


def test_heads_must_be_given_where_no_buffer_shows_them() -> None:
    tensors = GPT(ONE_NUMBER_OF_HEADS).state_dict()
    tensors = {name: tensor for name, tensor in tensors.items() if "inv_freq" not in name}
    assert "`heads`" in refusal(tensors, Hints(degree=2))
    assert recognise(tensors, Hints(degree=2, heads=2)).spec.config == ONE_NUMBER_OF_HEADS
    assert "heads of even width" in refusal(tensors, Hints(degree=2, heads=3))


def test_a_bias_that_is_missing_is_named_as_missing() -> None:
    for mixer in (ProductMixer(6, 3, 2), PolynomialMixer(8, 2, 2, n_groups=2, bias=True)):
        tensors = mixer.state_dict()
        del tensors["ag_proj.bias"]
        message = refusal(tensors, Hints(degree=mixer.config.degree))
        assert "missing keys" in message
        assert message.count("bias") == 1


def test_local_attention_is_refused_where_the_file_speaks_of_it(tmp_path: Path) -> None:
    config = {"model": {"mixing_layer_alternate": {"_target_": "models.alternate_gpt.CausalLocalSelfAttention"}}}
    torch.save({"model": GPT(GPT_CONFIG).state_dict(), "config": config}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="local windows"):
        load_model(tmp_path / "m.pt", degree=2)


def test_a_model_of_attention_alone_is_pointed_to_the_guide() -> None:
    tensors = {name: t for name, t in GPT(GPT_CONFIG).state_dict().items() if ".0." not in name and ".2." not in name}
    assert "no mixer" in refusal(tensors)


def test_missing_frequencies_are_computed(tmp_path: Path) -> None:
    model = GPT(ONE_NUMBER_OF_HEADS).eval()
    tensors = {name: tensor for name, tensor in model.state_dict().items() if "inv_freq" not in name}
    torch.save(tensors, tmp_path / "m.pt")
    loaded = load_model(tmp_path / "m.pt", degree=2, heads=2)
    ids = torch.arange(10).reshape(2, 5)
    assert torch.equal(loaded.module(ids), model(ids))


def test_tied_weights_are_one_whether_the_file_holds_one_or_both(tmp_path: Path) -> None:
    tensors = GPT(GPT_CONFIG).state_dict()
    for left_out in ("", "lm_head.weight", "transformer.wte.weight"):
        file = tmp_path / "m.safetensors"
        save_file({name: tensor.clone() for name, tensor in tensors.items() if name != left_out}, file)
        module = load_model(file, degree=2).module
        assert module.get_parameter("lm_head.weight") is module.get_parameter("transformer.wte.weight")
    different = {name: tensor.clone() for name, tensor in tensors.items()}
    different["lm_head.weight"][0, 0] += 1
    save_file(different, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
        load_model(tmp_path / "m.safetensors", degree=2)


@pytest.mark.parametrize("prefix", ["pom.", "encoder.layers.3.mixer."])
def test_a_prefix_that_all_names_share_says_nothing(prefix: str, tmp_path: Path) -> None:
    tensors = PolynomialMixer(8, 3, 2).state_dict()
    torch.save({prefix + name: tensor for name, tensor in tensors.items()}, tmp_path / "m.pt")
    module = load_model(tmp_path / "m.pt").module
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in module.state_dict().items())


def test_compiled_parts_are_named_as_if_they_were_not(tmp_path: Path) -> None:
    tensors = GPT(GPT_CONFIG).state_dict()
    renamed = {name.replace("h.0.", "h.0._orig_mod."): tensor for name, tensor in tensors.items()}
    torch.save({"model": {f"module.{name}": tensor for name, tensor in renamed.items()}, "step": 3}, tmp_path / "m.pt")
    assert load_model(tmp_path / "m.pt", degree=2).spec.architecture == NANOGPT


def test_mixers_in_an_unknown_architecture_are_listed() -> None:
    model = nn.ModuleDict({f"stage{i}": PolynomialMixer(8, 2, 2) for i in range(5)})
    model["head"] = nn.Linear(8, 3)
    message = refusal(model.state_dict())
    assert "5 mixers (stage0, stage1, stage2, stage3 and 1 more)" in message
    assert "example_inputs" in message


def test_another_model_is_reported_as_not_ours() -> None:
    message = refusal(nn.TransformerEncoderLayer(8, 2).state_dict())
    assert "no known model" in message
    assert all(family in message for family in FAMILIES)


@pytest.mark.parametrize("left_out", ["transformer.h.2.mlp.c_fc.weight", "transformer.h.0.attn.pom.ag_proj.weight"])
def test_a_language_model_with_a_gap_names_it(left_out: str) -> None:
    tensors = GPT(GPT_CONFIG).state_dict()
    del tensors[left_out]
    assert left_out.removeprefix("transformer.h.0.attn.pom.") in refusal(tensors, Hints(degree=2))


def test_rotary_positions_in_the_configuration_need_tables_in_the_file(tmp_path: Path) -> None:
    torch.save(PolynomialMixer(8, 3, 2).state_dict(), tmp_path / "m.pt")
    (tmp_path / "config.json").write_text('{"module": "PoMRoPE"}')
    with pytest.raises(CheckpointError, match="freqs_cos"):
        load_model(tmp_path / "m.pt")


def test_what_the_user_says_must_be_what_the_shapes_say(tmp_path: Path) -> None:
    torch.save(PolynomialMixer(8, 3, 2).state_dict(), tmp_path / "m.pt")
    assert load_model(tmp_path / "m.pt", degree=3, family="pom-v2").spec.degree == 3
    for hints, message in (
        ({"degree": 4}, "shapes say 3"),
        ({"heads": 2}, "no attention"),
        ({"family": "pom-v1"}, "nearest is pom-v1; missing: po_proj.weight"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_model(tmp_path / "m.pt", **hints)
    with pytest.raises(InputError, match=r"unknown family 'pom-v9'. Did you mean 'pom-v2' or 'pom-v1'"):
        load_model(tmp_path / "m.pt", family="pom-v9")


class Setting:
    """A double of a configuration library's object."""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)


def test_what_a_trainer_saves_beside_the_weights_is_read_without_running_it(tmp_path: Path) -> None:
    config = Setting(_content={"degree": Setting(_val=2), "n_head": Setting(_val=2)}, path=tmp_path)
    torch.save({"step": 1, "config": config, "net": GPT(GPT_CONFIG).state_dict()}, tmp_path / "m.pt")
    assert load_model(tmp_path / "m.pt").spec.config == GPT_CONFIG


def test_a_configuration_that_contradicts_the_shapes_is_refused(tmp_path: Path) -> None:
    torch.save(PolynomialMixer(8, 3, 2).state_dict(), tmp_path / "m.pt")
    (tmp_path / "config.json").write_text('{"degree": 7, "n_head": null}')
    with pytest.raises(CheckpointError, match=r"degree 7, .* the shapes say 3"):
        load_model(tmp_path / "m.pt")


def test_a_configuration_of_other_software_is_no_hint(tmp_path: Path) -> None:
    torch.save(PolynomialMixer(8, 3, 2).state_dict(), tmp_path / "m.pt")
    (tmp_path / "config.json").write_text('{"family": "bert", "n_head": 12}')
    assert load_model(tmp_path / "m.pt").spec.degree == 3


def test_a_golden_checkpoint_alone_asks_for_its_degree(golden_gpt: Any, tmp_path: Path) -> None:
    shutil.copy(golden_gpt.checkpoint, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match="`degree`"):
        load_model(tmp_path / "last.ckpt")
    assert load_model(tmp_path / "last.ckpt", degree=2).spec == load_model(golden_gpt.checkpoint).spec


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_keep_their_type(dtype: torch.dtype, tmp_path: Path) -> None:
    mixer = PolynomialMixer(8, 3, 2).to(dtype)
    torch.save(mixer.state_dict(), tmp_path / "m.pt")
    loaded = load_model(tmp_path / "m.pt")
    assert {parameter.dtype for parameter in loaded.module.parameters()} == {dtype}
    assert loaded.dtypes == {str(dtype).removeprefix("torch."): 4}
