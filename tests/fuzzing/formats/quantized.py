"""Checkpoints that other libraries quantized: parts of other types and shapes, and descriptions that do not fit."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzzing.cases import Case, Changes, Place
from tests.fuzzing.mutations import jsons, pickles, raw, zips
from tests.fuzzing.seeds import Seeds

_DATA = Path(__file__).parents[2] / "data" / "quantized"
_EXPECTED = ".expected.safetensors"
_NAMES = tuple(sorted(file.name.removesuffix(_EXPECTED) for file in _DATA.glob(f"*{_EXPECTED}")))
_TYPES = ("F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "F8_E4M3", "F8_E5M2", "BOOL")
_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2}
_STATE = "bitsandbytes__"
_CONFIG = "config.json"
# The type, the shape and the bytes of each part.
_Parts = dict[str, tuple[str, list[int], bytes]]


def make(random: Random, seeds: Seeds, place: Place) -> Case:
    """Return `inspect` of a spoilt sample."""
    del seeds
    changes = Changes()
    name = random.choice(_NAMES)
    path = place.inputs / name
    if (_DATA / name).is_dir():
        shutil.copytree(_DATA / name, path)
        if random.random() < 0.4:
            _config(random, path / _CONFIG, changes)
        else:
            _safetensors(random, path / "model.safetensors", changes)
    else:
        shutil.copy(_DATA / name, path)
        if path.suffix == ".pt":
            _archive(random, path, changes, place)
        else:
            _safetensors(random, path, changes)
    # What it is compared with elsewhere, the libraries' reading of the parts, says nothing about the weights.
    return Case(("inspect", str(path)), f"{name}: {changes}"[:600], changes.refuse)


def _config(random: Random, file: Path, changes: Changes) -> None:
    content, what = jsons.spoil(random, json.loads(file.read_text()))
    file.write_bytes(content)
    changes.note(f"config.json: {what}")


def _archive(random: Random, file: Path, changes: Changes, place: Place) -> None:
    """Spoil the opcodes of what is pickled, a word in it, or a storage."""
    members = dict(zips.members_of(file))
    name = next(name for name in members if name.endswith("data.pkl"))
    action = random.randrange(3)
    if action == 0:
        members[name], what = pickles.spoil(random, members[name], place)
    elif action == 1:
        word = random.choice((b"scale", b"qdata", b"block_size", b"zero_point", b"int4", b"SCB", b"absmax", b"weight"))
        new = random.choice((b"X" * len(word), word[::-1], b"qdata".ljust(len(word), b"_")[: len(word)]))
        members[name], what = members[name].replace(word, new, random.choice((1, -1))), f"{word!r} is {new!r}"
    else:
        name = random.choice([name for name in members if "/data/" in name])
        members[name], what = raw.spoil(random, members[name])
    changes.note(what)
    file.write_bytes(zips.honest(list(members.items())))


def _safetensors(random: Random, file: Path, changes: Changes) -> None:
    """Spoil one part, or what describes the parts: the metadata of torchao, or the JSON in parts of bitsandbytes."""
    parts, metadata = _parts_of(file)
    described = [name for name in metadata if name.endswith(".weight")]
    states = [name for name in parts if _STATE in name]
    if described and random.random() < 0.5:
        name = random.choice((*described, "tensor_names"))
        text, what = jsons.spoil(random, json.loads(metadata[name]))
        metadata[name] = text.decode(errors="replace")
        changes.note(f"metadata of {name}: {what}")
    elif states and random.random() < 0.5:
        name = random.choice(states)
        text, what = jsons.spoil(random, json.loads(parts[name][2]))
        parts[name] = ("U8", [len(text)], text)
        changes.note(f"{name}: {what}")
    else:
        _part(random, parts, changes)
    file.write_bytes(_written(parts, metadata))


def _part(random: Random, parts: _Parts, changes: Changes) -> None:
    """Change the type, the shape or the values of one part, rename it, or leave it out."""
    name = random.choice(list(parts))
    kind, shape, data = parts.pop(name)
    action = random.randrange(6)
    if action == 0:
        changes.note(f"{name} is left out")
        return
    new = name
    if action == 1:
        new = f"{name.rpartition('.')[0]}.{random.choice(('weight', 'SCB', 'weight_g_idx', 'weight_zero_point', 'x'))}"
    elif action == 2:
        kind = random.choice(_TYPES)
        shape = [len(data) // _BYTES.get(kind, 1)]
        data = data[: shape[0] * _BYTES.get(kind, 1)]
    elif action == 3:
        shape = random.choice(([1, *shape], [*shape, 1], shape[::-1], [0, 2**40], [*shape, 0]))
        data = b"" if 0 in shape else data
    elif action == 4:
        data = bytes(random.choice((0, 0xFF, 0x80, 0x7F)) for _ in data)
    elif shape:
        rows = random.choice((1, shape[0] // 2 or 1))
        data, shape = data[: len(data) // shape[0] * rows], [rows, *shape[1:]]
    parts[new] = (kind, shape, data)
    changes.note(f"{name} is {new}, {kind}, {shape}, {data[:8].hex()}")


def _parts_of(file: Path) -> tuple[_Parts, dict[str, str]]:
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    metadata = header.pop("__metadata__", {})
    return {
        name: (entry["dtype"], entry["shape"], data[slice(*entry["data_offsets"])]) for name, entry in header.items()
    }, metadata


def _written(parts: _Parts, metadata: dict[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    content = b""
    for name, (kind, shape, data) in parts.items():
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [len(content), len(content) + len(data)]}
        content += data
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + content
