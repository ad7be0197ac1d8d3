"""Folders in Hugging Face's layout: an index, shards, a configuration, and whatever else a folder may hold."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzzing.cases import Case, Changes, Place
from tests.fuzzing.mutations import jsons, values
from tests.fuzzing.seeds import Seeds

_INDEX = "model.safetensors.index.json"
_CONFIG: dict[str, Any] = {"degree": 2, "n_head": 2, "family": "pom-v1", "model": {"order": 2, "rope": False}, "x": [1]}
_FAR = 3 * 2**30


def make(random: Random, seeds: Seeds, place: Place) -> Case:
    """Return `inspect` of a folder, or of a file beside a configuration."""
    changes = Changes()
    folder = place.inputs / "folder"
    folder.mkdir()
    random.choice((_index, _index, _config, _config, _special, _files))(random, seeds, folder, changes)
    path = folder / "product.safetensors" if (folder / "product.safetensors").is_file() else folder
    return Case(("inspect", str(path)), str(changes), changes.refuse)


def _index(random: Random, seeds: Seeds, folder: Path, changes: Changes) -> None:
    """Write an index whose shards are elsewhere, missing, repeated, or not even names."""
    good = {
        "metadata": {"total_size": 9},
        "weight_map": {"po_proj.weight": "a.safetensors", "x": "b.safetensors"},
    }
    shutil.copy(seeds["product.safetensors"], folder / "a.safetensors")
    if random.random() < 0.5:
        content, what = jsons.spoil(random, good)
        changes.note(f"index: {what}")
    else:
        name = random.choice(
            (values.path(random, Place(folder.parent.parent)), values.name(random), _INDEX, "config.json")
        )
        count = random.choice((1, 1, 20_000))
        good["weight_map"] = {f"w{i}": name if count == 1 else f"{i}.safetensors" for i in range(count)}
        content = json.dumps(good).encode()
        changes.note(f"{count} shards, one named {name[:40]!r}")
    (folder / random.choice((_INDEX, _INDEX, "pytorch_model.bin.index.json"))).write_bytes(content)


def _config(random: Random, seeds: Seeds, folder: Path, changes: Changes) -> None:
    shutil.copy(seeds["product.safetensors"], folder / "product.safetensors")
    content, what = jsons.spoil(random, _CONFIG)
    (folder / "config.json").write_bytes(content)
    changes.note(f"config.json: {what}")


def _special(random: Random, seeds: Seeds, folder: Path, changes: Changes) -> None:
    """Put something other than a small regular file in the place of one."""
    name = random.choice(("config.json", "model.safetensors", _INDEX, "pytorch_model.bin"))
    shutil.copy(seeds["product.safetensors"], folder / "product.safetensors")
    make = random.choice((_sparse, _pipe, _link, _link, _folder))
    make(random, folder / name)
    changes.note(f"{name} is {make.__name__.strip('_')}")


def _sparse(_: Random, path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(_FAR)


def _pipe(_: Random, path: Path) -> None:
    os.mkfifo(path)


def _link(random: Random, path: Path) -> None:
    path.symlink_to(
        random.choice(("/dev/zero", "/dev/stdin", path.name, "..", "/proc/self/mem", "nowhere", "/proc/kmsg"))
    )


def _folder(_: Random, path: Path) -> None:
    path.mkdir()


def _files(random: Random, seeds: Seeds, folder: Path, changes: Changes) -> None:
    """Add many files, or names that print badly."""
    del seeds
    names = [values.name(random).replace("/", "_").replace("\0", "0")[:60] or "x" for _ in range(3)]
    for name in (*names, *(f"{i}" for i in range(random.choice((0, 2000))))):
        (folder / f"{name}.pt").write_bytes(b"PK\3\4")
    changes.note(f"files {names[0][:40]!r}")
