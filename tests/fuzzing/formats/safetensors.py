"""Checkpoints in the safetensors format: a length, a header of JSON, and bytes."""

from __future__ import annotations

import json
import struct
from random import Random
from typing import Any

from tests.fuzzing.cases import Case, Changes, Place
from tests.fuzzing.formats.checkpoint import written
from tests.fuzzing.mutations import jsons, raw, values
from tests.fuzzing.seeds import Seeds

_SEEDS = ("mixer.safetensors", "product.safetensors", "language.safetensors")
_TYPES = (
    *("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL", "U16", "U32", "U64", "C64"),
    *("F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "F6_E3M2", "X", "", "f32", "F32\n"),
)


def make(random: Random, seeds: Seeds, place: Place) -> Case:
    """Return `inspect` of a spoilt file."""
    changes = Changes()
    content = seeds[random.choice(_SEEDS)].read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    action = random.randrange(10)
    if action == 0:
        content, what = raw.spoil(random, content)
        changes.note(what)
    elif action < 4:
        text, what = jsons.spoil(random, header)
        changes.note(what)
        content = _joined(text, data)
    elif action == 4:
        lie = random.choice((0, 1, 2, length - 1, length + 1, len(content), 2**31, 10**8, 10**8 + 1, 2**63, 2**64 - 1))
        changes.note(f"a header of {lie} bytes")
        content = struct.pack("<Q", lie) + content[8:]
    elif action == 5:
        header["__metadata__"] = _metadata(random, changes)
        content = _joined(jsons.written(header).encode("utf-8", "surrogatepass"), data)
    else:
        data = _entry(random, header, data, changes)
        content = _joined(jsons.written(header).encode("utf-8", "surrogatepass"), data)
    return written(random, place, content, changes, random.choice((".safetensors", ".safetensors", ".pt", "")))


def _joined(header: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def _metadata(random: Random, changes: Changes) -> dict[str, Any]:
    key = random.choice(("degree", "order", "heads", "family", "n_head", "rotary", "config", values.name(random)))
    value: Any = random.choice(
        ("3", "2", "-1", "1e9", "9" * 5000, "NaN", "pom-v1", "٣", "0x10", values.name(random), 3, None, {}, ["a"])
    )
    changes.note(f"metadata {key[:30]!r}: {str(value)[:30]!r}")
    return {key: value}


def _entry(random: Random, header: dict[str, Any], data: bytes, changes: Changes) -> bytes:
    """Spoil the description of one tensor; return the data, which may have grown."""
    name = random.choice([name for name in header if name != "__metadata__"])
    entry = header[name]
    action = random.randrange(6)
    if action == 0:
        entry["dtype"] = random.choice(_TYPES)
    elif action == 1:
        entry["shape"] = list(values.shape(random))
    elif action == 2:
        other = random.choice(list(header.values()))
        entry["data_offsets"] = random.choice(
            ([0, 0], [4, 0], [0, 2**64 - 1], other.get("data_offsets", [0]), [values.integer(random), 8], [0], [])
        )
    elif action == 3:
        entry |= {
            "shape": list(random.choice(((10**12, 0), (0, 10**9), (10**9, 10**9, 0)))),
            "data_offsets": [len(data)] * 2,
        }
    elif action == 4:
        new = values.name(random)
        header[new] = header.pop(name)
        changes.note(f"{name} is named {new[:40]!r}", refuse=True)
        return data
    else:
        extent = random.choice((1000, 2**20))
        entry |= {"shape": [extent], "data_offsets": [len(data), len(data) + 4 * extent]}
        data += b"\0" * 4 * extent
    changes.note(f"{name}: {str(entry)[:150]}")
    return data
