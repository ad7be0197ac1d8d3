"""A package while it is written: its files, and the manifest with the hash of each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pom_export.files import readable_file, sha256_of
from pom_export.graph.exported_model import ExportedModel
from pom_export.json_text import parse_json
from pom_export.version import __version__

MANIFEST: Final = "manifest.json"
_FORMAT: Final = 1
_KEYS: Final = frozenset({"format", "toolkit", "target", "model", "files"})
_COMMON: Final = Path(__file__).parent / "served" / "package_files.py"
_LARGEST: Final = 16 << 20


class PackageFolder:
    """A package's files, in the folder in which they are staged.

    Args:
        path: the folder, which is empty.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def place(self, name: str) -> Path:
        """Return the path of a file to be written, by its name in the package; its folder is made."""
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        return file

    def write(self, name: str, text: str) -> None:
        """Write a text file."""
        self.place(name).write_text(text, encoding="utf-8")

    def copy(self, source: Path, name: str) -> None:
        """Copy a file.

        Raises:
            InputError: it cannot be read.
        """
        shutil.copyfile(readable_file(source, "file"), self.place(name))

    def copy_programs(self, folder: Path, *names: str) -> None:
        """Copy programs for the package's users, and the module that those of all packages import."""
        for source in (*(folder / name for name in names), _COMMON):
            self.copy(source, source.name)

    def copy_model(self, model: ExportedModel, name: str) -> None:
        """Copy an ONNX file to `name`, and its external weights beside it, under the names that the file refers to."""
        self.copy(model.path, name)
        for file in model.weights:
            self.copy(file, (Path(name).parent / file.relative_to(model.path.parent)).as_posix())

    def files(self) -> dict[str, Path]:
        """Return the files by their names in the package, sorted, without the manifest."""
        found = {file.relative_to(self.path).as_posix(): file for file in self.path.rglob("*") if file.is_file()}
        return {name: found[name] for name in sorted(found) if name != MANIFEST}

    def seal(self, target: str, model: ExportedModel, serving: Mapping[str, Any]) -> None:
        """Write the manifest: what the package is, what it was made from, and the size and hash of every other file.

        Args:
            target: what it is for.
            model: the file that it was made from.
            serving: what the package's own programs need to know, JSON-able.
        """
        files = {name: {"bytes": file.stat().st_size, "sha256": sha256_of(file)} for name, file in self.files().items()}
        values = {
            "format": _FORMAT,
            "toolkit": __version__,
            "target": target,
            "model": {"name": model.path.name, "sha256": sha256_of(model.path)},
            "serving": dict(serving),
            "files": files,
        }
        self.write(MANIFEST, json.dumps(values, indent=2) + "\n")


def is_package(folder: Path) -> bool:
    """Return whether a folder is one of our packages, by its manifest."""
    file = folder / MANIFEST
    try:
        values = parse_json(file.read_bytes()) if file.stat().st_size <= _LARGEST else None
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and values.keys() >= _KEYS
