"""Checkpoints of other kinds are named as what they are, with the remedy; none is called damaged."""

from __future__ import annotations

import gzip
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import nn

from pom_export.checkpoint import load_model
from pom_export.errors import CheckpointError
from pom_export.mixer import PolynomialMixer


@pytest.fixture
def mixer() -> dict[str, torch.Tensor]:
    return PolynomialMixer(8, 3, 2).state_dict()


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_model(path)
    message = str(caught.value)
    assert caught.value.hint
    assert "\n" not in message
    assert "damaged" not in message
    return message


def test_a_distributed_checkpoint_is_named_with_the_command_that_joins_it(mixer: Any, tmp_path: Path) -> None:
    folder = tmp_path / "step-100"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"model": mixer}, checkpoint_id=folder, no_dist=True)
    (folder / "meta.pt").write_bytes(b"")  # Lightning's metadata, beside the shards
    for path in (folder, tmp_path, folder / "__0_0.distcp", folder / ".metadata"):
        message = refusal(path)
        assert "torch.distributed checkpoint" in message
        assert f"torch.distributed.checkpoint.format_utils dcp_to_torch {folder} " in message


@pytest.mark.parametrize(
    ("files", "seen"),
    [
        (["latest", "zero_to_fp32.py", "global_step5/x_model_states.pt"], "DeepSpeed"),
        (["zero_pp_rank_0_mp_rank_00_optim_states.pt", "mp_rank_00_model_states.pt"], "zero_to_fp32.py"),
        (["latest_checkpointed_iteration.txt", "iter_0000100/mp_rank_00/model_optim_rng.pt"], "Megatron"),
        (["_CHECKPOINT_METADATA", "d/0"], "Orbax"),
        (["default/manifest.ocdbt"], "Orbax"),
        (["saved_model.pb"], "TensorFlow"),
        (["flax_model.msgpack", "config.json"], "Flax"),
        (["adapter_config.json", "adapter_model.safetensors"], "merge_and_unload"),
        (["model_index.json", "unet/config.json"], "diffusers"),
        (["model-q4.gguf"], "GGUF"),
    ],
)
def test_folders(files: list[str], seen: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert seen in refusal(tmp_path)


def test_a_folder_of_weights_is_read_whatever_lies_beside_them(mixer: Any, tmp_path: Path) -> None:
    save_file(mixer, tmp_path / "model.safetensors")
    for name in ("zero_to_fp32.py", "adapter_config.json", "flax_model.msgpack"):
        (tmp_path / name).write_bytes(b"x")
    assert load_model(tmp_path).spec.degree == 3


@pytest.mark.parametrize(
    ("name", "content", "seen"),
    [
        ("m.gguf", b"GGUF\x03\0\0\0", "GGUF"),
        ("m.h5", b"\x89HDF\r\n\x1a\n", "HDF5"),
        ("m.pt", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("m.pt", b"\n<!DOCTYPE html><html>", "a web page"),
        ("m.pt", gzip.compress(b"x", mtime=0), "compressed (gzip)"),
        ("m.nemo", b"m.ckpt".ljust(257, b"\0") + b"ustar\0" + bytes(300), "tar archive"),
        ("m.npy", b"\x93NUMPY\x01\0", "NumPy"),
        ("m.msgpack", b"\x81\xa1a\xc0", "Flax"),
        ("m.tflite", b"\x1c\0\0\0TFL3", "TensorFlow Lite"),
    ],
)
def test_files(name: str, content: bytes, seen: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert seen in refusal(tmp_path / name)


def test_archives_of_others(mixer: Any, tmp_path: Path) -> None:
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "m.npz", **{name: tensor.numpy() for name, tensor in mixer.items()})
        (tmp_path / "m.npz").rename(tmp_path / "m.bin")
        assert "NumPy" in refusal(tmp_path / "m.bin")
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        archive.writestr("model.weights.h5", b"")
    assert "Keras" in refusal(tmp_path / "m.keras")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e8m0fnu])
@pytest.mark.parametrize("save", [torch.save, save_file])
def test_float8_is_named(mixer: Any, save: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    mixer["ag_proj.weight"] = mixer["ag_proj.weight"].abs().to(dtype)
    save(mixer, tmp_path / "m.pt")
    message = refusal(tmp_path / "m.pt")
    assert f"ag_proj.weight is {dtype}" in message
    assert "bfloat16 or wider" in message


def test_types_that_torch_has_no_tensors_of(tmp_path: Path) -> None:
    header = b'{"ag_proj.weight":{"dtype":"F4","shape":[4],"data_offsets":[0,2]}}'
    (tmp_path / "m.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(2))
    assert "ag_proj.weight is of type F4" in refusal(tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    ("added", "seen"),
    [
        ({"ag_proj.weight.absmax": torch.ones(8)}, "bitsandbytes"),
        ({"ag_proj.qweight": torch.ones(8, dtype=torch.int32), "ag_proj.weight": None}, "GPTQ"),
        ({"ag_proj.weight_scale": torch.ones(1)}, "scales"),
        ({"ag_proj.weight_scale_inv": torch.ones(1)}, "with scales beside them"),
        ({"ag_proj.weight._data": torch.ones(8, 16, dtype=torch.int8), "ag_proj.weight": None}, "optimum-quanto"),
        ({"ag_proj.W_q": torch.ones(8, 16, dtype=torch.uint8), "ag_proj.weight": None}, "HQQ"),
        ({"ag_proj.weight": torch.ones(8, 16, dtype=torch.int8)}, "ag_proj.weight is torch.int8"),
        ({"_flat_param": torch.ones(100)}, "FullyShardedDataParallel"),
        ({"po_coeff": torch.ones(0)}, "zero_to_fp32.py"),
    ],
)
def test_weights_that_are_not_usable_by_themselves(mixer: Any, added: Any, seen: str, tmp_path: Path) -> None:
    mixer |= added
    torch.save({name: tensor for name, tensor in mixer.items() if tensor is not None}, tmp_path / "m.pt")
    assert seen in refusal(tmp_path / "m.pt")


@pytest.mark.filterwarnings("ignore")
def test_dynamically_quantized_modules_are_named(tmp_path: Path) -> None:
    quantized = torch.ao.quantization.quantize_dynamic(PolynomialMixer(8, 3, 2), {nn.Linear})
    for content in (quantized.state_dict(), {"model": quantized.state_dict()}):
        torch.save(content, tmp_path / "m.pt")
        assert "quantize_dynamic" in refusal(tmp_path / "m.pt")


class Piece:
    """A double of a tensor of which this file holds one rank's part."""

    def __reduce__(self) -> Any:
        return nn.Linear, (1, 1)


def test_pieces_of_tensors_and_of_trainers_are_named(mixer: Any, tmp_path: Path) -> None:
    content = pickle.dumps({"ds_version": "0.15", "optimizer_state_dict": {}}, protocol=2)
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        archive.writestr("archive/data.pkl", content)
    assert "DeepSpeed" in refusal(tmp_path / "m.pt")
    torch.save({**mixer, "ag_proj.weight": Piece()}, tmp_path / "m.pt")
    with zipfile.ZipFile(tmp_path / "m.pt") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data.replace(b"ctorch.nn.modules.linear\nLinear\n", b"ctorch.distributed.x\nY\n"))
    assert "piece of a distributed tensor" in refusal(tmp_path / "m.pt")


def test_one_of_several_shards_is_not_a_model(mixer: Any, tmp_path: Path) -> None:
    save_file(mixer, tmp_path / "model-00001-of-00002.safetensors")
    assert "is one of 2 shards" in refusal(tmp_path / "model-00001-of-00002.safetensors")
    save_file(mixer, tmp_path / "model-00001-of-00001.safetensors")
    assert load_model(tmp_path / "model-00001-of-00001.safetensors").spec.degree == 3


def test_a_program_of_torchscript_is_named(tmp_path: Path) -> None:
    """Its code is compressed, unlike members of a checkpoint, but that does not mean damage."""
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        for name in ("data.pkl", "constants.pkl", "version"):
            archive.writestr(f"m/{name}", b"x")
        archive.writestr("m/code/__torch__.py", b"x" * 99, zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match="is a TorchScript program, not a checkpoint"):
        load_model(tmp_path / "m.pt")
