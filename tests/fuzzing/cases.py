"""What a fuzzer makes: files in folders of their own, and the command that is to read them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.fuzzing.seeds import Seeds

# Text that files carry where text may be run, imported or opened: whoever does is seen by `watching`.
CANARY = "pom_canary"
CALL = f"__import__('{CANARY}')"
# Modules that no run of ours imports by itself; the first lies in the current folder.
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
        """Where the hostile files lie."""
        return self.root / "inputs"

    @property
    def outputs(self) -> Path:
        """Where the command may write."""
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
        """A user's other files, which hostile files name, and no command has a reason to open."""
        return self.root / "precious"

    def make(self) -> None:
        """Make the folders, and what is always in them."""
        for folder in (self.inputs, self.outputs, self.temporary, self.current, self.precious):
            folder.mkdir(parents=True)
        (self.current / f"{CANARY}.py").write_text("open('imported', 'w').close()\n\ndef f(*_): return f\n")
        (self.precious / "file").write_text("not to be touched\n")


@dataclass(frozen=True)
class Case:
    """One hostile input.

    Attributes:
        arguments: of the command line.
        what: what was done to a good file, for a person.
        refuse: whether a command that ends with exit code 0 is wrong.
        checkpoint: what `comparing` looks at, where the command ends with exit code 0.
    """

    arguments: tuple[str, ...]
    what: str
    refuse: bool = False
    checkpoint: Path | None = None


Make = Callable[[Random, Seeds, Place], Case]


@dataclass
class Told:
    """What a mutator did: collected while it goes along.

    Attributes:
        done: in a few words each.
        refuse: whether some of it makes the file one that no reader may accept.
    """

    done: list[str] = field(default_factory=list)
    refuse: bool = False

    def note(self, what: str, *, refuse: bool = False) -> None:
        """Add one."""
        self.done.append(what)
        self.refuse |= refuse

    def __str__(self) -> str:
        return "; ".join(self.done)
