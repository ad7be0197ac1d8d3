"""Quantized weights whose parts are missing, damaged, or not as their library writes them are refused by name."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.checkpoint.quantized_samples import DATA, also, refusal, stored, with_config

Change = Callable[[dict[str, Any]], None]


def put(**values: Any) -> Change:
    """Return a change that sets entries of the layer ag_proj, or removes those that are None."""

    def change(tensors: dict[str, Any]) -> None:
        for name, value in values.items():
            key = f"ag_proj.{name.replace('__', '.', 2)}"
            if value is None:
                del tensors[key]
            else:
                tensors[key] = value(tensors[key]) if callable(value) else value

    return change


def first(value: float) -> Callable[[Tensor], Tensor]:
    """Return a change of a tensor's first value."""

    def change(tensor: Tensor) -> Tensor:
        changed = tensor.clone()
        changed.flatten()[0] = value
        return changed

    return change


def said(**changed: Any) -> Callable[[Tensor], Tensor]:
    """Return a change of the JSON in bitsandbytes' quant_state; None removes an entry."""

    def change(tensor: Tensor) -> Tensor:
        state = {**json.loads(bytes(tensor.tolist())), **changed}
        text = json.dumps({key: value for key, value in state.items() if value is not None})
        return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)

    return change


def cut(tensor: Tensor) -> Tensor:
    return tensor[:-1].contiguous()


STATE = "weight__quant_state__bitsandbytes__nf4"


@pytest.mark.parametrize(
    ("name", "change", "seen"),
    [
        ("bitsandbytes-int8.pt", put(SCB=first(float("nan"))), "SCB holds nan; 1 of 12"),
        ("bitsandbytes-int8.pt", put(SCB=first(-1)), "SCB holds -1"),
        ("bitsandbytes-int8.pt", put(SCB=first(0)), "SCB is 0 for 1 blocks of values that are not"),
        ("bitsandbytes-int8.pt", put(SCB=cut), "SCB is of shape (11,), and its weight of shape (12, 24)"),
        ("bitsandbytes-int8.pt", put(SCB=lambda scb: scb.half()), "SCB is torch.float16, not torch.float32"),
        ("bitsandbytes-int8.pt", put(SCB=None, weight_format=None), "ag_proj.weight is torch.int8. Its scales are not"),
        ("bitsandbytes-int8.pt", put(SCB=None), "bitsandbytes, and parts of them are missing: ag_proj.weight_format"),
        ("bitsandbytes-int8.pt", put(weight=None), "its weight is missing"),
        ("bitsandbytes-int8.pt", put(weight=lambda w: w.view(-1)), "of shape (288,), and only matrices are read"),
        ("bitsandbytes-int8.pt", put(weight_format=first(2)), "weight_format is 2, an order of values"),
        ("bitsandbytes-nf4.pt", put(weight=cut), "weight holds 143 bytes, for half as many values as in (12, 24)"),
        ("bitsandbytes-nf4.pt", put(weight__absmax=cut), "absmax is of shape (4,), and it has 5 blocks of 64"),
        ("bitsandbytes-nf4.pt", put(weight__absmax=first(float("inf"))), "absmax holds inf"),
        ("bitsandbytes-nf4.pt", put(weight__absmax=first(0)), "absmax is 0 for 1 blocks"),
        ("bitsandbytes-nf4.pt", put(weight__absmax=None), "absmax is missing"),
        ("bitsandbytes-nf4.pt", put(weight__quant_map=first(-0.9)), "quant_map is not that of nf4: [-0.9, "),
        ("bitsandbytes-nf4.pt", put(weight__quant_map=lambda codes: codes.view(4, 4)), "quant_map is not that of nf4"),
        ("bitsandbytes-nf4.pt", put(**{STATE: said(blocksize=63)}), "blocksize 63"),
        ("bitsandbytes-nf4.pt", put(**{STATE: said(blocksize=128)}), "it has 3 blocks of 128"),
        ("bitsandbytes-nf4.pt", put(**{STATE: said(blocksize=[64])}), "blocksize [64]"),
        ("bitsandbytes-nf4.pt", put(**{STATE: said(dtype="float8")}), "dtype float8"),
        ("bitsandbytes-nf4.pt", put(**{STATE: said(quant_type="fp4")}), "quant_type is 'fp4'"),
        ("bitsandbytes-nf4.pt", put(**{STATE: said(quant_type=["nf4"])}), "quant_type is ['nf4']"),
        ("bitsandbytes-nf4.pt", put(**{STATE: said(shape=[12, 23])}), "for half as many values as in (12, 23)"),
        ("bitsandbytes-nf4.pt", put(**{STATE: said(shape=[10**9, 10**9])}), "as in (1000000000, 1000000000)"),
        ("bitsandbytes-nf4.pt", put(**{STATE: said(shape=[288])}), "only matrices are read"),
        ("bitsandbytes-nf4.pt", put(**{STATE: said(version=2)}), "quant_state holds blocksize, dtype, quant_type, sh"),
        ("bitsandbytes-nf4.pt", put(**{STATE: lambda state: state[:-1]}), "quant_state is not readable JSON"),
        ("bitsandbytes-nf4.pt", put(**{STATE: None}), "parts of them are missing: ag_proj.weight.absmax"),
        ("bitsandbytes-nf4-nested.safetensors", put(weight__nested_absmax=first(-1)), "nested_absmax holds -1"),
        ("bitsandbytes-nf4-nested.safetensors", put(weight__nested_quant_map=first(float("nan"))), "is not finite"),
        ("bitsandbytes-nf4-nested.safetensors", put(weight__nested_absmax=None), "nested_absmax is missing"),
        ("bitsandbytes-nf4-nested.safetensors", put(**{STATE: said(nested_offset=-0.5)}), "offset -0.5"),
        ("bitsandbytes-nf4-nested.safetensors", put(**{STATE: said(nested_blocksize=0)}), "blocks of 0"),
        ("bitsandbytes-nf4-nested.safetensors", put(**{STATE: said(nested_blocksize=2)}), "nested_absmax is of shape"),
        ("torchao-int8-groups.safetensors", put(_weight_scale=first(0)), "scale holds 0; 1 of 72"),
        ("torchao-int8-groups.safetensors", put(_weight_scale=cut), "scale is of shape (11, 6), and it has (12, 6)"),
        ("torchao-int8-groups.safetensors", put(_weight_zero_point=cut), "zero_point is of shape (11, 6)"),
        ("torchao-int8-groups.safetensors", put(_weight_scale=None), "its parts are qdata, zero_point"),
        ("torchao-int8-groups.safetensors", put(_weight_qdata=lambda q: q.short()), "qdata is torch.int16"),
        (
            "torchao-int4-dynamic.safetensors",
            put(_weight_qdata=first(8)),
            "reach from -8 to 8, and its type from -8 to 7",
        ),
        ("torchao-float8.safetensors", put(_weight_scale=first(float("nan"))), "scale holds nan"),
        ("compressed-int4", put(weight_packed=cut), "weight_packed of shape (11, 3) holds values of no number of bits"),
        ("compressed-int4", put(weight_packed=lambda p: p[:, :2].contiguous()), "of shape (12, 2) holds values of no"),
        ("compressed-int4", put(weight_packed=lambda p: p.long()), "weight_packed is torch.int64"),
        ("compressed-int4", put(weight_shape=first(-12)), "of shape (-12, 24), and only matrices"),
        ("compressed-int4", put(weight_shape=None), "weight_shape is missing"),
        ("compressed-int4", put(weight_scale=None), "weight_scale is missing"),
        ("compressed-int4", put(weight_scale=first(-1)), "weight_scale holds -1"),
        ("compressed-int4", put(weight_scale=cut), "weight_scale of shape (11, 6) fits its shape (12, 24) in 0 ways"),
        ("compressed-int4", put(weight_scale=lambda s: s[:, :3].contiguous()), "of shape (12, 3) fits"),
        ("compressed-int4-asymmetric", put(weight_zero_point=None), "weight_zero_point is missing"),
        ("compressed-int4-asymmetric", put(weight_zero_point=cut), "weight_zero_point is of shape (1, 6)"),
        ("compressed-int4-ordered", put(weight_g_idx=None), "weight_g_idx is missing"),
        ("compressed-int4-ordered", put(weight_g_idx=first(6)), "does not put 4 columns into each of 6 groups"),
        ("compressed-int4-ordered", put(weight_g_idx=cut), "weight_g_idx is of shape (23,)"),
        ("compressed-int8", put(weight_scale=first(0)), "weight_scale holds 0"),
        ("compressed-int8", put(weight_scale=cut), "fits its shape (12, 24) in 0 ways"),
        ("compressed-float8", put(weight_scale=first(float("nan"))), "weight_scale holds nan"),
    ],
)
def test_what_is_not_exactly_the_layout_is_refused(name: str, change: Change, seen: str, tmp_path: Path) -> None:
    tensors, metadata = stored(name)
    change(tensors)
    if (DATA / name).is_dir():
        shutil.copytree(DATA / name, tmp_path / "m")
        save_file(tensors, tmp_path / "m" / "model.safetensors")
        message = refusal(tmp_path / "m")
    elif name.endswith(".pt"):
        torch.save(tensors, tmp_path / "m.pt")
        message = refusal(tmp_path / "m.pt")
    else:
        save_file(tensors, tmp_path / "m.safetensors", metadata)
        message = refusal(tmp_path / "m.safetensors")
    assert seen in message
    assert "ag_proj" in message


def weights(**changed: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda config: config["config_groups"]["group_0"]["weights"].update(changed)


@pytest.mark.parametrize(
    ("name", "change", "seen"),
    [
        ("compressed-int8", lambda config: config.update(quant_method="fp8"), "and no config.json says how"),
        ("compressed-int8", lambda config: config.update(transform_config={"R1": {}}), "has a transform_config"),
        ("compressed-int8", lambda config: config.update(config_groups={}), "has no config_groups with weights"),
        ("compressed-int4", also(symmetric=False), "weight_zero_point is missing"),
        ("compressed-int4", also(actorder="group"), "weight_g_idx is missing"),
        ("compressed-int4", lambda config: config.update(format="marlin-24"), "says that the format is 'marlin-24'"),
        ("compressed-int4", lambda config: config.update(format=["x"]), "says that the format is \"['x']\""),
        (
            "compressed-int8",
            lambda config: config.update(sparsity_config={"format": "sparse-bitmask"}),
            "says that the format is 'sparse-bitmask'",
        ),
        ("compressed-int8", weights(type="float"), "in 0 ways, and quantization_config in config.json describes 0"),
        ("compressed-int8", weights(symmetric=False), "weight_zero_point is missing"),
        ("compressed-int8", weights(num_bits="8"), "describes weights as {'num_bits': '8'"),
        ("compressed-int4", weights(num_bits=8), "holds values of no number of bits"),
        ("compressed-int4", weights(num_bits=3), "holds values of 3 bits"),
        ("compressed-int4", weights(group_size=8), "fits its shape (12, 24) in 0 ways"),
        ("compressed-int4", weights(group_size=5), "fits its shape (12, 24) in 0 ways"),
        ("compressed-float8-blocks", weights(block_structure=None), "fits its shape (12, 24) in 0 ways"),
        ("compressed-float8-blocks", weights(block_structure=[4]), "describes weights as"),
        ("compressed-float8-blocks", weights(block_structure=[3, 6]), "fits its shape (12, 24) in 0 ways"),
    ],
)
def test_configurations_that_do_not_fit(name: str, change: Any, seen: str, tmp_path: Path) -> None:
    assert seen in refusal(with_config(tmp_path, name, change))


@pytest.mark.parametrize("name", ["compressed-int8", "compressed-float8"])
def test_scales_whose_meaning_only_a_configuration_says(name: str, tmp_path: Path) -> None:
    shutil.copy(DATA / name / "model.safetensors", tmp_path / "m.safetensors")
    message = refusal(tmp_path / "m.safetensors")
    assert "ag_proj.weight_scale" in message
    assert "Put the config.json" in message


def test_weights_too_narrow_to_tell_their_bits(tmp_path: Path) -> None:
    """A row of 4 values takes one word with 4 bits, and with 8."""
    tensors, _ = stored("compressed-int8-packed.pt")
    tensors |= {
        "ag_proj.weight_packed": torch.zeros(12, 1, dtype=torch.int32),
        "ag_proj.weight_shape": torch.tensor([12, 4]),
    }
    torch.save(tensors, tmp_path / "m.pt")
    assert "holds values of 4 and 8 bits" in refusal(tmp_path / "m.pt")


@pytest.mark.parametrize(("part", "seen"), [("weight_global_scale", "NVFP4"), ("meta", "as sparse weights have")])
def test_other_layouts_of_packed_weights_are_named(part: str, seen: str, tmp_path: Path) -> None:
    tensors, _ = stored("compressed-int4")
    save_file(tensors | {f"ag_proj.{part}": torch.ones(1)}, tmp_path / "m.safetensors")
    assert seen in refusal(tmp_path / "m.safetensors")


def test_parts_of_two_layouts_are_refused(tmp_path: Path) -> None:
    folder = with_config(tmp_path, "compressed-int8", dict.copy)
    tensors, _ = stored("compressed-int8")
    save_file(tensors | {"ag_proj.SCB": torch.ones(12)}, folder / "model.safetensors")
    assert "it has the parts of two layouts: ag_proj.weight, ag_proj.weight_scale" in refusal(folder)


def pickled(name: str, folder: Path, old: bytes, new: bytes) -> Path:
    """Copy a file of torch.save, with a change to what is pickled in it."""
    with zipfile.ZipFile(DATA / name) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    with zipfile.ZipFile(folder / "m.pt", "w") as archive:
        for member, content in members.items():
            changed = content.replace(old, new) if member.endswith("data.pkl") else content
            assert changed != content or not member.endswith("data.pkl")
            archive.writestr(member, changed)
    return folder / "m.pt"


@pytest.mark.parametrize(
    ("old", "new", "seen"),
    [
        (b"Int8Tensor", b"Int4Tensor", "qc_proj.weight is quantized by torchao (Int4Tensor)"),
        (b"Int8Tensor", b"MintTensor", "quantized by torchao (MintTensor)"),
        (b"torchao.quantization", b"torchxo.quantization", "of a class of its own"),
        (b"scale", b"scael", "it has scael, which is not known"),
        (b"block_size", b"block_sizf", "it has block_sizf, which is not known"),
        (b"reduce_range", b"act_pre_scal", "it has act_pre_scal, which is not known"),
        (b"bfloat16", b"bfloat61", "its dtype is bfloat61"),
        (b"ctorch\nbfloat16\n", b"cbuiltins\neval\n", "its dtype is"),
    ],
)
def test_pickled_tensors_of_torchao(old: bytes, new: bytes, seen: str, tmp_path: Path) -> None:
    assert seen in refusal(pickled("torchao-int8.pt", tmp_path, old, new))


@pytest.mark.parametrize(
    ("old", "new", "seen"),
    [
        (b"PlainAQTTensorImpl", b"TensorCoreTiledAQT", "its tensor_impl is TensorCoreTiledAQT, which is packed for"),
        (b"AffineQuantizedTensor", b"AffineQuantizedTenson", "quantized by torchao (AffineQuantizedTenson)"),
        (b"tensor_impl", b"tensor_xxxx", "it has tensor_xxxx, which is not known"),
        (b"int_data", b"int_dxta", "its tensor_impl has int_dxta, which is not known"),
        (b"Domain\nqUK\x01", b"Domain\nqUK\x02", "its zero_point_domain is (2,), that of a kernel"),
        (b"quant_max", b"quant_min", "names an entry of a mapping twice"),
    ],
)
def test_pickled_tensors_of_older_torchao(old: bytes, new: bytes, seen: str, tmp_path: Path) -> None:
    assert seen in refusal(pickled("torchao-0.16.0-int8.pt", tmp_path, old, new))


@pytest.mark.parametrize(
    ("changed", "seen"),
    [
        ({"_type": "Int4Tensor"}, "of torchao's class Int4Tensor, which is packed for a kernel"),
        ({"_type": ["Int8Tensor"]}, "of torchao's class ['Int8Tensor']"),
        ({"_tensor_data_names": ["qdata"]}, "its metadata lists ['qdata']"),
        ({"_data": {"block_size": [1, 5]}}, "block_size is [1, 5], and its shape is (12, 24)"),
        ({"_data": {"block_size": [1, 0]}}, "block_size is [1, 0]"),
        ({"_data": {"block_size": 4}}, "block_size is 4"),
        ({"_data": {"block_size": [1, 2]}}, "scale is of shape (12, 6), and it has (12, 12) blocks"),
        ({"_data": {"future": 1}}, "it has future, which is not known"),
        ({"_data": {"dtype": {"_type": "torch.dtype", "_data": "int8"}}}, "dtype is int8"),
    ],
)
def test_metadata_of_torchao(changed: dict[str, Any], seen: str, tmp_path: Path) -> None:
    tensors, metadata = stored("torchao-int8-groups.safetensors")
    described = json.loads(metadata["ag_proj.weight"])
    data = {**described["_data"], **changed.pop("_data", {})}
    metadata["ag_proj.weight"] = json.dumps({**described, "_data": data, **changed})
    save_file(tensors, tmp_path / "m.safetensors", metadata)
    assert seen in refusal(tmp_path / "m.safetensors")


def test_parts_without_the_metadata_of_torchao(tmp_path: Path) -> None:
    tensors, _ = stored("torchao-int8-groups.safetensors")
    save_file(tensors, tmp_path / "m.safetensors")
    assert "quantized by torchao, and its metadata is missing" in refusal(tmp_path / "m.safetensors")


def test_an_input_that_is_scaled_too_is_not_lost(tmp_path: Path) -> None:
    tensors, metadata = stored("torchao-int8-groups.safetensors")
    tensors["ag_proj._weight_act_pre_scale"] = torch.ones(24)
    described = json.loads(metadata["ag_proj.weight"])
    described["_tensor_data_names"].append("act_pre_scale")
    save_file(tensors, tmp_path / "m.safetensors", metadata | {"ag_proj.weight": json.dumps(described)})
    assert "also multiplies its input, by an act_pre_scale" in refusal(tmp_path / "m.safetensors")


def test_repeated_values_are_not_multiplied_out(tmp_path: Path) -> None:
    """A weight of 4 GB that is stored as one value."""
    tensors, _ = stored("bitsandbytes-int8.pt")
    tensors["ag_proj.weight"] = torch.ones(1, 1, dtype=torch.int8).expand(1 << 16, 1 << 14)
    tensors["ag_proj.SCB"] = torch.ones(1 << 16)
    torch.save(tensors, tmp_path / "m.pt")
    assert "of shape (65536, 16384) repeats its values" in refusal(tmp_path / "m.pt")


def test_many_views_of_one_storage(tmp_path: Path) -> None:
    """A thousand weights, each of which covers all but a few values of the same 1 MB."""
    values = torch.ones(1 << 20, dtype=torch.int8)
    tensors: dict[str, Tensor] = {}
    for i in range(1000):
        tensors |= {f"{i}.weight": values[i : i + 1_000_000].view(1000, 1000), f"{i}.SCB": torch.ones(1000)}
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    (tmp_path / "m.pt").write_bytes(buffer.getvalue())
    assert "more than it can hold" in refusal(tmp_path / "m.pt")
