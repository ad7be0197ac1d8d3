"""Checkpoints that claim more than they hold, or hold more than data, are refused quickly with one line."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pom_export.checkpoint import load_model, values
from pom_export.checkpoint.hints import Hints
from pom_export.checkpoint.pickles import read_archive, read_legacy
from pom_export.checkpoint.settings import settings_in
from pom_export.checkpoint.unpickling import Inert
from pom_export.errors import CheckpointError, InputError
from pom_export.mixer import PolynomialMixer
from tests.checkpoint.test_reader import save_legacy

STOP = b"."


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def tensor(size: tuple[int, ...], stride: tuple[int, ...], numel: int = 4, offset: int = 0) -> bytes:
    """Return opcodes that push a tensor over storage 0."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(numel) + b"tQ"
    shape = b"".join(b"(" + b"".join(map(number, values)) + b"t" for values in (size, stride))
    hooks = b"ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset) + shape + b"\x89" + hooks + b"tR"


def state_dict(entry: bytes, name: str = "po_coeff") -> bytes:
    return b"\x80\x02}" + text(name) + entry + b"s" + STOP


def save(file: Path, pickled: bytes, storage: bytes = bytes(16), **members: bytes) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in {"data.pkl": pickled, "version": b"3\n", "data/0": storage, **members}.items():
            archive.writestr(f"archive/{name}", content)
    return file


def refusal(file: Path) -> str:
    with pytest.raises(InputError) as error:
        load_model(file)
    return str(error.value)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (tensor((10**9,), (0,)), "claims 4,000,000,000 bytes of weights"),
        (tensor((10**12, 0), (1, 1)), "holds no values"),
        (tensor((5,), (1,)), "reaches value 4 of a storage that has 4"),
        (tensor((2, 2), (3, 1)), "reaches value 4"),
        (tensor((4,), (1,), offset=1), "reaches value 4"),
        (tensor((2,), (2**62,)), "reaches value 4,611,686,018,427,387,904"),
        (tensor((4,), (-1,)), "sizes of a tensor in it are not numbers"),
        (tensor((4,), (1,), offset=-1), "sizes of a tensor in it are not numbers"),
        (tensor((4,), (1,), numel=5), "holds 16 bytes, not 5 values"),
        (tensor((4,), (1,), numel=10**15), "holds 16 bytes"),
        (tensor((4,), (1, 1)), "1 sizes and 2 strides"),
        (tensor((1,) * 65, (1,) * 65), "65 sizes"),
        (b"ctorch\nTensor\n" + number(10**11) + b"\x85R", "pickled torch.Tensor"),
        (b"c__builtin__\nbytearray\n" + number(10**11) + b"\x85R", "pickled __builtin__.bytearray"),
        (b"cposix\nsystem\n" + text("false") + b"\x85R", "pickled objects are never executed"),
        (b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n)R", "po_coeff is without data"),
        (b"\x8e" + struct.pack("<Q", 2**62), "truncated or damaged"),
        (b"\x96" + struct.pack("<Q", 2**40), "truncated or damaged"),
        (b"Nr\xff\xff\xff\xff0j\xff\xff\xff\x7f", "truncated or damaged"),
        (b"I" + b"9" * 5000 + b"\n", "truncated or damaged"),
        (b"\x82\x01", "refers to EXT1"),
        (b"P0\n", "refers to PERSID"),
        (b"N" + text("k") + b"Ns", "sets items of None"),
        (b"Nat", "truncated or damaged"),
        (text("call me") + b")R", "calls a str"),
    ],
)  # fmt: skip
def test_pickles(tmp_path: Path, entry: bytes, reason: str) -> None:
    message = refusal(save(tmp_path / "a.pt", state_dict(entry)))
    assert reason in message
    assert "\n" not in message


def test_a_pickled_mapping_names_an_entry_once(tmp_path: Path) -> None:
    twice = b"\x80\x02}(" + 2 * (text("po_coeff") + tensor((4,), (1,))) + b"u" + STOP
    assert "names an entry of a mapping twice" in refusal(save(tmp_path / "a.pt", twice))


@pytest.mark.slow
def test_pickles_without_an_end(tmp_path: Path) -> None:
    assert "truncated or damaged" in refusal(save(tmp_path / "a.pt", b"\x80\x02}"))
    assert "more than 2,000,000 pickled objects" in refusal(save(tmp_path / "a.pt", b"\x80\x02" + b"]0" * 1_100_000))


def test_one_tuple_is_not_handed_out_without_end(tmp_path: Path) -> None:
    """A thousand calls with the same tuple of 20,000, which each call would copy in memory."""
    arguments = b"(" + b"N" * 20_000 + b"t" + b"q\x00" + b"0"
    calls = b"cmodule\nname\nh\x00R0" * 1000
    assert "more than 10,000,000 arguments" in refusal(save(tmp_path / "a.pt", b"\x80\x02" + arguments + calls + b"N."))


def test_many_views_of_one_storage(tmp_path: Path) -> None:
    """A thousand weights, each of which covers all but a few values of the same 1 MB."""
    values = (1 << 18) - 1000
    entries = b"".join(text(f"w{i}") + tensor((values,), (1,), numel=1 << 18, offset=i) + b"s" for i in range(1000))
    file = save(tmp_path / "a.pt", b"\x80\x02}" + entries + STOP, storage=bytes(1 << 20))
    assert "more than it can hold" in refusal(file)


def test_lists_in_lists_are_looked_at_once() -> None:
    nested: Any = [{"degree": 3}]
    for _ in range(11):
        nested = [nested] * 30
    itself: dict[str, Any] = {"model": {}}
    itself |= {f"k{i}": itself for i in range(40)}
    assert settings_in({"config": nested, "args": itself}).degree == 3


def test_settings_of_other_types_say_nothing() -> None:
    """Python does not convert an integer of 5,000 digits to text."""
    assert settings_in({"_target_": 10**5000, "degree": 10**5000, "n_head": [], "order": 3}) == Hints(degree=3)


def test_an_archive_is_as_torch_leaves_it(tmp_path: Path) -> None:
    pickled = state_dict(tensor((4,), (1,)))
    assert "a different byte order" in refusal(save(tmp_path / "a.pt", pickled, byteorder=b"big"))
    with zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", bytes(16))
    assert "is compressed" in refusal(tmp_path / "b.pt")
    with zipfile.ZipFile(tmp_path / "c.pt", "w") as archive:
        archive.writestr("other/file", b"")
    assert "torch.save did not write this archive" in refusal(tmp_path / "c.pt")
    save(tmp_path / "d.pt", pickled)
    content = (tmp_path / "d.pt").read_bytes()
    (tmp_path / "d.pt").write_bytes(content + content)
    assert "does not end where it should" in refusal(tmp_path / "d.pt")


class Config(SimpleNamespace):
    """An object that a trainer may save beside the weights."""


@pytest.mark.parametrize("write", [torch.save, save_legacy])
def test_everything_that_torch_saves_is_read(tmp_path: Path, write: Callable[..., None]) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tagged = nn.Parameter(torch.ones(2))
    tagged.note = "an attribute"  # type: ignore[attr-defined]
    expected = {
        "plain": base,
        "transposed": base.T,
        "slice": base[1:, 2:],
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "parameter": nn.Parameter(torch.ones(2)),
        "tagged": tagged,
        "strange type": torch.ones(3).to(torch.float8_e4m3fn),
        "unsigned": torch.ones(3, dtype=torch.uint16),
        **{str(dtype): torch.ones(3).to(dtype) for dtype in (torch.bfloat16, torch.float64, torch.int8, torch.bool)},
        "complex": torch.ones(2, dtype=torch.complex64),
    }
    trainer = {
        "model": OrderedDict(expected),
        "config": Config(degree=3),
        "history": defaultdict(list, {"loss": [1.0, 2.0]}),
        "folder": tmp_path,
        "set": {1, 2},
        "nothing": None,
        "whole": nn.Linear(2, 2),
    }
    write(trainer, tmp_path / "a.pt")
    content = (read_archive if write is torch.save else read_legacy)(tmp_path / "a.pt")
    assert content.keys() == trainer.keys()
    assert settings_in(content).degree == 3
    assert content["history"]["loss"] == [1.0, 2.0]
    for name, value in expected.items():
        assert content["model"][name].dtype == value.dtype
        assert content["model"][name].shape == value.shape
        assert torch.equal(content["model"][name].to(torch.complex128), value.detach().to(torch.complex128))
    assert isinstance(content["config"], Inert)
    assert content["whole"].name == "torch.nn.modules.linear.Linear"


def test_weights_are_mapped_from_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.pt"
    torch.save({"a": torch.ones(8), "b": torch.ones(8)}, file)
    content = read_archive(file)
    assert content["b"].data_ptr() - content["a"].data_ptr() not in {0, 32}
    content["a"].zero_()
    assert torch.equal(read_archive(file)["a"], torch.ones(8))


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_other_kinds_of_tensors_are_named(tmp_path: Path) -> None:
    mixer = PolynomialMixer(2, 2, 2).state_dict()
    for kind, value in (
        ("sparse", torch.eye(2).to_sparse()),
        ("without data", torch.empty(2, device="meta")),
        ("quantized", torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)),
    ):
        torch.save({**mixer, "po_coeff": value}, tmp_path / "a.pt")
        assert f"po_coeff is {kind}" in refusal(tmp_path / "a.pt")


def test_a_plain_pickle_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(pickle.dumps({"a": 1}))
    assert "was not written by torch.save" in refusal(tmp_path / "a.pt")
    (tmp_path / "a.pt").write_bytes(b"\x80\x02\x8e" + struct.pack("<Q", 2**62))
    assert "damaged pickle" in refusal(tmp_path / "a.pt")


@pytest.mark.slow
def test_recognition_is_bounded_by_the_file(tmp_path: Path) -> None:
    """Names and sizes in a small file that would lead to an endless search or an endless model."""
    one = torch.ones(1)
    for name, tensors, reason in (
        ("depth", {"module." * 20_000 + "w": one}, "no known model"),
        ("dots", {"a." * 20_000 + "w": one, "a." * 20_000 + "v": one}, "no known model"),
        ("blocks", {f"blocks.{i}.mixer.x": one for i in range(5000)} | {"embedding.weight": one}, "5,000 blocks"),
        ("index", {"embedding.weight": one, "blocks.0.mixer.x": one, f"blocks.{'9' * 5000}.x": one}, "missing"),
        ("mixers", {f"m{i}.{p}": one for i in range(4000) for p in ("ag_proj.weight", "po_coeff")}, "4000 mixers"),
        ("name", {"a" * 1_000_000: one}, "[...]"),
        ("escape", {"a\nresult  passed\x1b[2J": one}, r"a\nresult  passed\x1b[2J"),
        ("factors", {"po_proj.weight": torch.ones(60_000, 1), "ag_proj.weight": torch.ones(1, 60_000),
                     "se_proj.weight": torch.ones(60_000, 1)}, "1, 2, 3, 4, 5, 6, 8, 10, 12, 15 or 16"),
    ):  # fmt: skip
        save_file({key: value.clone() for key, value in tensors.items()}, tmp_path / name)
        message = refusal(tmp_path / name)
        assert reason in message
        assert message.isprintable()
        assert len(message) < 2100


def test_a_name_that_comes_twice_is_an_error(tmp_path: Path) -> None:
    torch.save({"module.a": torch.ones(1), "module._orig_mod.a": torch.ones(1)}, tmp_path / "a.pt")
    assert "holds a twice" in refusal(tmp_path / "a.pt")
    entry = b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    header = b"{" + entry + b"," + entry + b"}"
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    assert "a duplicate name" in refusal(tmp_path / "a.safetensors")


def test_other_types_of_safetensors_are_named(tmp_path: Path) -> None:
    mixer = PolynomialMixer(2, 2, 2).state_dict()
    save_file({**mixer, "po_coeff": mixer["po_coeff"].to(torch.float8_e4m3fn)}, tmp_path / "a.safetensors")
    assert "po_coeff is torch.float8_e4m3fn" in refusal(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
    assert "declares a header of 1,099,511,627,776 bytes" in refusal(tmp_path / "b.safetensors")


def test_json_beside_the_weights_is_bounded(tmp_path: Path) -> None:
    torch.save(PolynomialMixer(2, 2, 2).state_dict(), tmp_path / "pytorch_model.bin")
    for content, reason in (
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "not readable JSON"),
        (b" " * ((4 << 20) + 1), "larger than 4 MiB"),
        (b'{"degree": ' + b"9" * 5000 + b"}", "not readable JSON"),
        (b'{"degree": ' + b"9" * 4000 + b"}", "not readable JSON"),
        (b'{"degree": [[]]}', "is a list"),
        (b"\xff\xfe", "not readable JSON"),
    ):
        (tmp_path / "config.json").write_bytes(content)
        assert reason in refusal(tmp_path)
    (tmp_path / "config.json").write_text('{"time_step_limit": [0.0, Infinity], "degree": 2}')
    assert load_model(tmp_path).spec.degree == 2


def test_values_are_looked_at_after_names_and_shapes(tmp_path: Path) -> None:
    """A sparse file of 4 GiB, which is recognised by its first bytes."""
    header = b'{"w": {"dtype": "F32", "shape": [1073741824], "data_offsets": [0, 4294967296]}}'
    with (tmp_path / "a.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + 2**32)
    assert "no known model" in refusal(tmp_path / "a.safetensors")


def test_values_are_looked_at_in_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(values, "_VALUES_AT_ONCE", 5)
    bad = torch.ones(7, 3)
    bad[0, 1], bad[6, 2] = torch.nan, torch.inf
    for tensor, seen in (
        (bad, "2 NaN or infinite values out of 21"),
        (bad[0], "1 NaN or infinite values out of 3"),
        (bad[6, 2], "1 out of"),
    ):
        with pytest.raises(CheckpointError, match=seen.replace("1 out of", "1 NaN or infinite values out of 1")):
            values.check_values(tmp_path, {"good": torch.ones(11), "w": tensor})


@pytest.mark.parametrize("place", range(5))
def test_the_older_form_holds_what_it_should(tmp_path: Path, place: int) -> None:
    """Each of its five pickles in turn is a tuple that could not be compared, hashed or shown in a lifetime."""
    nested: Any = ()
    for _ in range(11):
        nested = (nested,) * 30
    parts: list[Any] = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {}, []]
    parts[place] = nested
    (tmp_path / "a.pt").write_bytes(b"".join(pickle.dumps(part, protocol=2) for part in parts))
    refusal(tmp_path / "a.pt")
    parts[4] = [nested]
    (tmp_path / "a.pt").write_bytes(b"".join(pickle.dumps(part, protocol=2) for part in parts))
    refusal(tmp_path / "a.pt")
