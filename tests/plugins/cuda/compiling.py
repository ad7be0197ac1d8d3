"""Compiles with g++, and keeps objects and programs for later runs until something that they are made from changes."""

from __future__ import annotations

import functools
import hashlib
import json
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

AT_ONCE = 2


@dataclass(frozen=True)
class Compiler:
    """g++, and a folder for its products, which one process at a time may use.

    Attributes:
        folder: holds the objects and programs, each with a record of what it was made from.
        flags: of every compilation and every link.
        compile_flags: of every compilation.
    """

    folder: Path
    flags: tuple[str, ...]
    compile_flags: tuple[str, ...]

    def compile(self, units: Mapping[str, Sequence[Path]]) -> dict[str, Path]:
        """Return an object of each unit, whose files are compiled as one: what they all include, and what several make
        of the same templates, takes more time than they do.

        Args:
            units: by name, those that take longest first.
        """
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return dict(zip(units, pool.map(self._compiled, units, units.values()), strict=True))

    def link(self, objects: Sequence[Path], made: Path, *flags: str) -> None:
        """Link objects into a program, or into another product with additional flags; it appears only when complete."""
        command = ["g++", *self.flags, *flags, *map(str, objects)]
        record = _Record(made.with_name(f"{made.name}.json"), command)
        if made.is_file() and record.holds():
            return
        part = made.with_name(f"{made.name}.part")
        subprocess.run([*command, "-o", part], check=True)
        part.replace(made)
        record.write(objects)

    def _compiled(self, unit: str, files: Sequence[Path]) -> Path:
        source, made = (self.folder / f"{unit}.{suffix}" for suffix in ("cpp", "o"))
        source.write_text("".join(f'#include "{file}"\n' for file in files))
        command = ["g++", *self.flags, *self.compile_flags, "-c", str(source)]
        record = _Record(made.with_suffix(".json"), command)
        if not (made.is_file() and record.holds()):
            record.path.unlink(missing_ok=True)
            rule = made.with_suffix(".d")
            subprocess.run([*command, "-MD", "-MF", rule, "-o", made], check=True)
            record.write(_prerequisites(rule))
        return made


@dataclass(frozen=True)
class _Record:
    """The files that a product was made from, and a hash of them, the command and the compiler."""

    path: Path
    command: list[str]

    def holds(self) -> bool:
        """Return whether making the product again would give the same."""
        if not self.path.is_file():
            return False
        record = json.loads(self.path.read_text())
        return record["sha256"] == self._hash(record["files"])

    def write(self, files: Sequence[Path]) -> None:
        names = [str(file) for file in files]
        self.path.write_text(json.dumps({"sha256": self._hash(names), "files": names}))

    def _hash(self, files: list[str]) -> str:
        made_of = [_version(), self.command, [(name, _content(name)) for name in files]]
        return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()


@functools.cache
def _version() -> str:
    return subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True).stdout


@functools.cache
def _content(name: str) -> str:
    """Return the hash of a file, "" if there is none."""
    path = Path(name)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _prerequisites(rule: Path) -> list[Path]:
    """Return the files that an object depends on, from a make rule as g++ writes it."""
    text = rule.read_text().replace("\\\n", " ").replace("\\ ", "\0")
    return [Path(name.replace("\0", " ")) for name in text.partition(": ")[2].split()]
