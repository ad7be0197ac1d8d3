"""What a fuzzer makes: files in folders of their own, and the command that is to read them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.fuzzing.seeds import Seeds

# Text that hostile files carry in places where text may be run, imported or opened; `watching` sees it if that happens.
CANARY = "pom_canary"
CALL = f"__import__('{CANARY}')"
# Modules that our code never imports by itself; the first one lies in the current folder.
HOSTILE_MODULES = (CANARY, "lib2to3.__main__", "antigravity", "this", "idlelib.idle", "turtledemo.__main__")


@dataclass(frozen=True)
class Place:
    """The folders of one case.

    Attributes:
        root: holds the others, and nothing else.
    """

    root: Path

    @property
    def inputs(self) -> Path:
        """The folder of the hostile files."""
        return self.root / "inputs"

    @property
    def outputs(self) -> Path:
        """The folder that the command may write to."""
        return self.root / "outputs"

    @property
    def temporary(self) -> Path:
        """The command's folder for temporary files."""
        return self.root / "temporary"

    @property
    def current(self) -> Path:
        """The current folder, where a module named `CANARY` lies."""
        return self.root / "current"

    @property
    def precious(self) -> Path:
        """A user's other files: hostile files name them, and no command has a reason to open them."""
        return self.root / "precious"

    def make(self) -> None:
        """Create the folders and their fixed contents."""
        for folder in (self.inputs, self.outputs, self.temporary, self.current, self.precious):
            folder.mkdir(parents=True)
        (self.current / f"{CANARY}.py").write_text("open('imported', 'w').close()\n\ndef f(*_): return f\n")
        (self.precious / "file").write_text("not to be touched\n")


@dataclass(frozen=True)
class Case:
    """One hostile input.

    Attributes:
        arguments: the command line's arguments.
        what: what was changed in a valid file, for a person to read.
        refuse: whether it is a fault if the command ends with exit code 0.
        checkpoint: the file that `comparing` reads if the command ends with exit code 0.
    """

    arguments: tuple[str, ...]
    what: str
    refuse: bool = False
    checkpoint: Path | None = None


Make = Callable[[Random, Seeds, Place], Case]


@dataclass
class Changes:
    """The changes that a mutator makes to a valid file, noted as they are made.

    Attributes:
        done: a few words about each change.
        refuse: whether a change makes the file one that no reader may accept.
    """

    done: list[str] = field(default_factory=list)
    refuse: bool = False

    def note(self, what: str, *, refuse: bool = False) -> None:
        """Add a change."""
        self.done.append(what)
        self.refuse |= refuse

    def __str__(self) -> str:
        return "; ".join(self.done)
