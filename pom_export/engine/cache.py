"""Keep engines for later builds with the same configuration, in a folder that several builds may share."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pom_export.engine.build_config import BuiltEngine
from pom_export.errors import InputError, reason_of
from pom_export.files import check_writable, staged_output
from pom_export.json_text import parse_json

_SUFFIX = ".pom-engine"


@dataclass(frozen=True)
class EngineCache:
    """A folder of engines: files with the SHA-256 of the rest, the build's other results as JSON, and the engine.

    A file appears by a single rename, so that concurrent builds only see complete entries.

    Attributes:
        folder: the folder, which is created when the first engine is stored.
        progress: called with a line about an entry that cannot be used or stored.
    """

    folder: Path
    progress: Callable[[str], None]

    def get(self, key: str) -> BuiltEngine | None:
        """Return the engine stored under a key; None if there is none or the entry is damaged."""
        file = self._file(key)
        try:
            return _unpacked(file.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            self.progress(f"{file} is damaged ({reason_of(error)}); building again")
            return None

    def put(self, key: str, built: BuiltEngine) -> None:
        """Store an engine. A build does not fail if its engine cannot be stored."""
        try:
            self.folder.mkdir(exist_ok=True)
            with staged_output(self._file(key)) as staged:
                staged.write_bytes(_packed(built))
        except (InputError, OSError) as error:
            self.progress(f"the engine is not kept in {self.folder}: {reason_of(error)}")

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"


def open_cache(
    folder: str | os.PathLike[str], outputs: Iterable[str | os.PathLike[str]], progress: Callable[[str], None]
) -> EngineCache:
    """Return the cache in a folder.

    Args:
        folder: the folder, which need not exist yet.
        outputs: files that the build is going to write.
        progress: called with a line about an entry that cannot be used or stored.

    Raises:
        InputError: it cannot be a cache: it is a file, its parent is missing, or it is not writable.
    """
    place = Path(folder)
    if not os.fspath(folder):
        raise InputError("the cache has an empty name", "Name a folder")
    try:
        # These raise for names that no file can have.
        if os.path.realpath(place) in map(os.path.realpath, outputs):
            raise InputError(f"cache {place} is the output itself", "Choose another folder")
        if place.exists() and not place.is_dir():
            raise InputError(f"cache {place} is not a folder", "Name a folder")
        parent = place if place.is_dir() else place.parent
        if not parent.is_dir():
            raise InputError(f"folder {parent} does not exist", f"Create it: mkdir -p {parent}")
    except (OSError, ValueError) as error:
        raise InputError(f"cache {place} cannot be used: {reason_of(error)}", "Choose another folder") from error
    check_writable(parent / _SUFFIX, [], "cache")
    return EngineCache(place, progress)


def _packed(built: BuiltEngine) -> bytes:
    content = json.dumps(built.facts()).encode() + b"\n" + built.engine
    return hashlib.sha256(content).hexdigest().encode() + b"\n" + content


def _unpacked(entry: bytes) -> BuiltEngine:
    """Return the engine in an entry.

    Raises:
        ValueError: the entry is damaged.
    """
    digest, _, content = entry.partition(b"\n")
    if hashlib.sha256(content).hexdigest().encode() != digest:
        raise ValueError("its checksum differs")
    facts, _, engine = content.partition(b"\n")
    values: dict[str, Any] = parse_json(facts)
    return BuiltEngine(engine, **values)
