"""What a package can be for, and what each of these targets has to provide."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from pom_export.errors import InputError
from pom_export.files import AnyPath
from pom_export.graph.exported_model import ExportedModel
from pom_export.packaging.folder import PackageFolder
from pom_export.packaging.names import TARGETS

Progress = Callable[[str], None]


@dataclass(frozen=True)
class PackageOptions:
    """Options of packages. None: not given; which of them a target takes is in its `takes`.

    Attributes:
        name: the model's name in the server.
        backend: which of the server's backends runs the model.
        bench: results of `pom-export bench`, from which batch sizes are chosen.
        engine: an engine of the model.
        tokenizer: a language model's tokenizer: "bytes", "auto", or the path of a tokenizer.json.
    """

    name: str | None = None
    backend: str | None = None
    bench: AnyPath | None = None
    engine: AnyPath | None = None
    tokenizer: str | None = None

    def given(self) -> set[str]:
        """Return the names of the options that were given."""
        return {option.name for option in fields(self) if getattr(self, option.name) is not None}


@dataclass(frozen=True)
class Contents:
    """What a target has written.

    Attributes:
        command: the command that serves the package, to be run in its folder.
        checked: what was run to check it, one line each.
        serving: what the package's own programs need to know, for the manifest.
        notes: further remarks, one line each.
    """

    command: str
    checked: Sequence[str] = ()
    serving: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Target:
    """A kind of package: TARGET in each of the modules of `TARGETS`.

    Attributes:
        takes: the options that apply to it.
        write: writes the files into a folder, a README.md among them. It raises InputError for a model that the target
            cannot run, before it does anything that takes long.
    """

    takes: frozenset[str]
    write: Callable[[PackageFolder, ExportedModel, PackageOptions, Progress], Contents]


def load_target(name: str, options: PackageOptions) -> Target:
    """Return a target.

    Raises:
        InputError: there is none of that name, or an option does not apply to it.
    """
    if name not in TARGETS:
        raise InputError(f"`target` is {name!r}", f"Choose one of {', '.join(TARGETS)}")
    target: Target = importlib.import_module(TARGETS[name]).TARGET
    if others := sorted(options.given() - target.takes):
        raise InputError(f"`{others[0]}` does not apply to `target={name}`", "Leave it out")
    return target
