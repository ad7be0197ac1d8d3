"""Objects and programs that g++ made once, kept for the runs that follow until something they were made of changes."""

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
    """g++ and a folder for what it makes, which one process at a time may use.

    Attributes:
        folder: holds an object or a program, and beside each a record of what it was made of.
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
        """Make a program of objects, or another product with flags of its own; it appears whole."""
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
    """The files that something was made of, and a hash of them, of the command and of the compiler."""

    path: Path
    command: list[str]

    def holds(self) -> bool:
        """Whether making it again would make the same."""
        if not self.path.is_file():
            return False
        told = json.loads(self.path.read_text())
        return told["sha256"] == self._hash(told["files"])

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
    """Return a hash of a file, "" where there is none."""
    path = Path(name)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def _prerequisites(rule: Path) -> list[Path]:
    """Return the files that a rule for make, as g++ writes it, says an object depends on."""
    text = rule.read_text().replace("\\\n", " ").replace("\\ ", "\0")
    return [Path(name.replace("\0", " ")) for name in text.partition(": ")[2].split()]
