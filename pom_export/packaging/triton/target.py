"""Packages for Triton: a model repository, with the backend that was asked for."""

from __future__ import annotations

import importlib
import re
from typing import Final

from pom_export.errors import InputError
from pom_export.graph.exported_model import ExportedModel
from pom_export.packaging.folder import PackageFolder
from pom_export.packaging.names import TENSORRT, TRITON_BACKENDS
from pom_export.packaging.targets import Contents, PackageOptions, Progress, Target
from pom_export.packaging.triton.states import carried_states

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


def _write(folder: PackageFolder, model: ExportedModel, options: PackageOptions, progress: Progress) -> Contents:
    backend = options.backend or next(iter(TRITON_BACKENDS))
    if backend not in TRITON_BACKENDS:
        raise InputError(f"`backend` is {backend!r}", f"Choose one of {', '.join(TRITON_BACKENDS)}")
    if options.engine is not None and backend != TENSORRT:
        raise InputError(
            f"`engine` does not apply to `backend={backend}`", f"Leave it out, or give `backend={TENSORRT}`"
        )
    if options.bench is not None and (model.stateful or carried_states(model)):
        raise InputError(f"`bench` does not apply: {model.path.name} keeps a state", "Leave it out")
    module = importlib.import_module(TRITON_BACKENDS[backend])
    contents: Contents = module.write(folder, model, _name_of(model, options), options, progress)
    return contents


def _name_of(model: ExportedModel, options: PackageOptions) -> str:
    """Return the model's name in the server, which is that of a folder and a part of addresses."""
    if options.name is None:
        return re.sub(r"[^A-Za-z0-9_.-]", "_", model.path.stem).lstrip("_.-")[:100] or "model"
    if not _NAME.fullmatch(options.name):
        raise InputError(f"`name` is {options.name!r}", "Take letters, digits, dots, dashes and underscores")
    return options.name


TARGET: Final = Target(takes=frozenset({"name", "backend", "bench", "engine"}), write=_write)
