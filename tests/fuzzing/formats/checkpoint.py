"""Checkpoints in torch's archives (.pt), and in its older format of consecutive pickles."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from random import Random

from tests.fuzzing.cases import Case, Changes, Place
from tests.fuzzing.mutations import pickles, raw, values, zips
from tests.fuzzing.seeds import WIDTH, Seeds

_FLOAT = 4
# A mixer's state dict, the same as in the seeds.
_SHAPES = {
    "po_coeff": (2 * WIDTH, 2),
    "ag_proj.weight": (WIDTH, 2 * WIDTH),
    "qc_proj.weight": (4 * WIDTH, WIDTH),
    "se_bias": (2 * WIDTH,),
}
_Items = list[tuple[bytes, bytes]]


def make(random: Random, seeds: Seeds, place: Place) -> Case:
    """Return `inspect`, or sometimes `export`, which reads the same way, of an archive."""
    changes = Changes()
    way = random.choice((_archive, _archive, _entries, _entries, _entries, _tensors, _tensors, _opcodes, _bytes))
    content = way(random, seeds, place, changes)
    return written(random, place, content, changes, ".pt")


def make_legacy(random: Random, seeds: Seeds, place: Place) -> Case:
    """Return `inspect` of a file in the older format."""
    changes = Changes()
    content = random.choice((_legacy_bytes, _legacy_opcodes, _legacy_entries))(random, seeds, place, changes)
    return written(random, place, content, changes, random.choice((".pt", ".bin", ".ckpt")))


def written(random: Random, place: Place, content: bytes, changes: Changes, suffix: str) -> Case:
    """Write a checkpoint, and return the command that reads it."""
    file = place.inputs / f"checkpoint{suffix}"
    file.write_bytes(content)
    if random.random() < 0.05:
        arguments = ("export", str(file), "-o", str(place.outputs / "model.onnx"))
    else:
        arguments = ("inspect", str(file), *(("--json",) if random.random() < 0.2 else ()))
    return Case(arguments, str(changes), changes.refuse, checkpoint=file)


def _archive(random: Random, seeds: Seeds, _: Place, changes: Changes) -> bytes:
    return zips.spoil(random, zips.members_of(seeds["mixer.pt"]), changes)


def _bytes(random: Random, seeds: Seeds, _: Place, changes: Changes) -> bytes:
    content, what = raw.spoil(random, seeds[random.choice(("mixer.pt", "trainer.pt"))].read_bytes())
    changes.note(what)
    return content


def _opcodes(random: Random, seeds: Seeds, place: Place, changes: Changes) -> bytes:
    members = dict(zips.members_of(seeds["mixer.pt"]))
    name = next(name for name in members if name.endswith("data.pkl"))
    members[name], what = pickles.spoil(random, members[name], place)
    changes.note(what)
    return zips.honest(list(members.items()))


def good() -> tuple[_Items, list[bytes]]:
    """Return the items of a mixer's state dict, and its storages' bytes."""
    items, storages = [], []
    for i, (name, shape) in enumerate(_SHAPES.items()):
        elements = 1
        for size in shape:
            elements *= size
        items.append((pickles.text(name), pickles.tensor(pickles.storage(str(i), elements), shape)))
        storages.append(struct.pack(f"<{elements}f", *[0.01 * j for j in range(elements)]))
    return items, storages


def packed(pickle: bytes, storages: list[bytes]) -> bytes:
    """Return an archive as torch.save writes it, with a pickle and its storages' bytes."""
    members = [("archive/data.pkl", pickle), ("archive/byteorder", b"little")]
    members += [(f"archive/data/{i}", data) for i, data in enumerate(storages)]
    return zips.honest([*members, ("archive/version", b"3\n")])


def _whole(random: Random, items: _Items) -> bytes:
    """Return a pickle of a state dict, bare or in a trainer's dict."""
    inner = pickles.dict_(*items)
    if random.random() < 0.3:
        inner = pickles.dict_((pickles.text(random.choice(("model", "state_dict", "odd"))), inner))
    return pickles.START + inner + pickles.END


def _entries(random: Random, _: Seeds, place: Place, changes: Changes) -> bytes:
    """Put something other than a weight among the weights, beside them, or in the place of a name."""
    items, storages = good()
    value, what = pickles.hostile(random, place)
    where = random.choice(("entry", "entry", "beside", "beside", "name", "all"))
    changes.note(f"{what} as {where}")
    if where == "entry":
        items.insert(random.randrange(5), (pickles.text(random.choice(("x", "po_coeff", values.name(random)))), value))
    elif where == "name":
        items.insert(random.randrange(5), (value, pickles.number(1)))
    elif where == "beside":
        outer = [(pickles.text("model"), pickles.dict_(*items)), (pickles.text(values.name(random)), value)]
        random.shuffle(outer)
        return packed(pickles.START + pickles.dict_(*outer) + pickles.END, storages)
    else:
        return packed(pickles.START + value + pickles.END, storages)
    return packed(_whole(random, items), storages)


def _tensors(random: Random, _: Seeds, __: Place, changes: Changes) -> bytes:
    """Describe weights that differ from what the archive holds, or too many of them."""
    items, storages = good()
    _TENSOR_WAYS[random.randrange(len(_TENSOR_WAYS))](random, items, storages, changes)
    return packed(_whole(random, items), storages)


def _extents(random: Random, items: _Items, _: list[bytes], changes: Changes) -> None:
    at = random.randrange(len(items))
    size = values.shape(random) if random.random() < 0.7 else list(_SHAPES.values())[at]
    stride = tuple(random.choice((0, 0, 1, -1, 2, 2**31, 2**62, values.integer(random))) for _ in size)
    strides: tuple[tuple[int, ...] | None, ...] = (stride, stride, (0,) * len(size), None, stride[:-1])
    offset = random.choice((0, 0, 0, 1, -1, 10**9, 2**63 - 1, values.integer(random)))
    elements = random.choice((1, 32, 0, values.integer(random)))
    stored = pickles.storage(str(at), elements, random.choice(pickles.STORAGES))
    items[at] = (items[at][0], pickles.tensor(stored, size, random.choice(strides), offset))
    changes.note(f"size {size}, stride {stride}, offset {offset}, {elements} elements"[:300])


def _broadcast(random: Random, items: _Items, storages: list[bytes], changes: Changes) -> None:
    """Claim far more values than the storage has, by repeating the first one."""
    factor = random.choice((2**20, 2**26, 2**30, 2**36))
    storages[0] = storages[0][:_FLOAT]
    items[0] = (items[0][0], pickles.tensor(pickles.storage("0", 1), (factor, 2), (0, 0)))
    changes.note(f"{2 * factor} values of stride 0", refuse=True)


def _views(random: Random, items: _Items, _: list[bytes], changes: Changes) -> None:
    count = random.choice((1000, 20_000))
    view = pickles.tensor(pickles.storage("0", 32), (16, 2))
    items += [(pickles.text(f"blocks.{i}.x"), view) for i in range(count)]
    changes.note(f"{count} views of one storage", refuse=True)


def _names(random: Random, items: _Items, _: list[bytes], changes: Changes) -> None:
    new = values.name(random)
    at = random.randrange(len(items))
    key = random.choice(
        (pickles.text(new), pickles.number(7), pickles.NONE, pickles.numbers(1, 2), pickles.text(f"module.{new}"))
    )
    items[at] = (key, items[at][1])
    changes.note(f"a weight is named {new[:40]!r}", refuse=True)


def _collision(random: Random, items: _Items, _: list[bytes], changes: Changes) -> None:
    """Give two weights names that become the same once a trainer's prefixes are removed."""
    name = random.choice(list(_SHAPES))
    alias = random.choice((f"_orig_mod.{name}", name.replace(".", "._orig_mod."), f"_orig_mod._orig_mod.{name}"))
    shape = _SHAPES[name]
    items.append((pickles.text(alias), pickles.tensor(pickles.storage("0", 1), shape, (0,) * len(shape))))
    changes.note(f"{name} and {alias}", refuse=alias != name)


def _storages(random: Random, items: _Items, storages: list[bytes], changes: Changes) -> None:
    at = random.randrange(len(storages))
    storages[at] = random.choice((b"", storages[at][:-1], storages[at] * 2, b"\xff" * len(storages[at]), b"\0" * 10**7))
    changes.note(f"storage {at} is of {len(storages[at])} bytes")
    del items  # unchanged


def _huge_model(random: Random, items: _Items, _: list[bytes], changes: Changes) -> None:
    """Describe a model of any size, whose weights hold nothing."""
    size = random.choice((10**6, 10**9, 2**31, 2**62))
    shapes = {"po_coeff": (2 * size, 2, 0), "ag_proj.weight": (size, 0), "qc_proj.weight": (0,), "se_bias": (2 * size,)}
    items.clear()
    for name, shape in shapes.items():
        given = random.choice((shape, (*shape, 0)))
        items.append((pickles.text(name), pickles.tensor(pickles.storage("0", 0), given)))
    changes.note(f"a model of width {size}", refuse=True)


_TENSOR_WAYS: tuple[Callable[[Random, _Items, list[bytes], Changes], None], ...] = (
    *(_extents, _extents, _extents, _broadcast, _views, _names, _collision, _storages, _huge_model),
)


def _legacy_bytes(random: Random, seeds: Seeds, _: Place, changes: Changes) -> bytes:
    content, what = raw.spoil(random, seeds["legacy.pt"].read_bytes())
    changes.note(what)
    return content


def _legacy_pickles(file: Path) -> tuple[list[bytes], bytes]:
    """Return the five pickles at the start of a file, and the storages that follow."""
    import pickletools

    content, parts, start = file.read_bytes(), [], 0
    for _ in range(5):
        for opcode, _, position in pickletools.genops(content[start:]):
            if opcode.name == "STOP":
                parts.append(content[start : start + (position or 0) + 1])
        start += len(parts[-1])
    return parts, content[start:]


def _legacy_opcodes(random: Random, seeds: Seeds, place: Place, changes: Changes) -> bytes:
    parts, storages = _legacy_pickles(seeds["legacy.pt"])
    at = random.choice((0, 1, 2, 3, 3, 3, 4))
    parts[at], what = pickles.spoil(random, parts[at], place)
    changes.note(f"pickle {at}: {what}")
    return b"".join(parts) + storages


def _legacy_entries(random: Random, seeds: Seeds, place: Place, changes: Changes) -> bytes:
    """Put a hostile value in the place of one of the pickles, or beside the state dict."""
    parts, storages = _legacy_pickles(seeds["legacy.pt"])
    at = random.choice((0, 1, 2, 3, 3, 3, 4))
    value, what = pickles.hostile(random, place)
    changes.note(f"pickle {at} is {what}")
    if at == 3 and random.random() < 0.7:
        value = pickles.dict_((pickles.text("model"), parts[3][2:-1]), (pickles.text("x"), value))
    parts[at] = pickles.START + value + pickles.END
    return b"".join(parts) + storages
