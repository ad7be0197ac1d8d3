"""Reads and writes files of exported programs, with edits."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Edit = Callable[[dict[str, Any]], None]

MODEL, WEIGHTS = "models/model.json", "data/weights/model_weights_config.json"


def members(path: Path) -> dict[str, bytes]:
    """Return an archive's members by name, without the archive's folder."""
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def write(path: Path, content: Mapping[str, bytes]) -> Path:
    """Write members into an archive, in a folder as torch does."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(f"model/{name}", data)
    return path


def edited(source: Path, target: Path, edit: Edit, member: str = MODEL) -> Path:
    """Copy a program with one of its descriptions edited."""
    content = members(source)
    description = json.loads(content[member])
    edit(description)
    return write(target, {**content, member: json.dumps(description).encode()})


def argument(name: str, **value: Any) -> dict[str, Any]:
    """Return a named argument, such as `as_int=3`."""
    return {"name": name, "arg": value, "kind": 1}


def tensor(name: str) -> dict[str, Any]:
    """Return an argument that is the value of another node."""
    return {"name": name}


def with_node(target: str, *arguments: dict[str, Any], name: str = "first") -> Edit:
    """Return an edit that inserts a call before everything else."""

    def edit(description: dict[str, Any]) -> None:
        graph = description["graph_module"]["graph"]
        output = {"as_tensor": {"name": name}}
        graph["nodes"].insert(
            0, {"target": target, "inputs": list(arguments), "outputs": [output], "metadata": {}, "name": name}
        )
        graph["tensor_values"][name] = {
            "dtype": 7,
            "sizes": [{"as_int": 4}],
            "strides": [{"as_int": 1}],
            "storage_offset": {"as_int": 0},
            "requires_grad": False,
            "device": {"type": "cpu", "index": None},
            "layout": 7,
        }

    return edit


def own_input(description: dict[str, Any]) -> str:
    """Return the name of the value of the first weight."""
    return description["graph_module"]["graph"]["inputs"][0]["as_tensor"]["name"]


def replaced(old: str, new: str) -> Edit:
    """Replace text wherever it occurs."""

    def edit(description: dict[str, Any]) -> None:
        changed = json.dumps(description).replace(old, new)
        description.clear()
        description.update(json.loads(changed))

    return edit
