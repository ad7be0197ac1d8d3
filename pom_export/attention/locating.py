"""A model named on the command line: `module:factory`, found from the current folder, or a saved module."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from pom_export.errors import InputError, kind_of, reason_of

_EXAMPLE = "Example: my_package.models:make_model"


def model_from(reference: str, *, trusted: bool = False) -> nn.Module:
    """Return the model that a reference names.

    Args:
        reference: `module:name`, where the name (dots allowed) is an `nn.Module` or a callable without arguments that
            returns one; or the file of a whole module saved by torch.save. What it prints goes to stderr.
        trusted: whether a file may run code, which reading a saved module does.

    Raises:
        InputError: there is no such module or name, it raises, it gives no `nn.Module`, or a file is not trusted.
    """
    if Path(reference).is_file():
        return _saved(reference, trusted)
    module_name, colon, path = reference.partition(":")
    if not colon or not module_name or not path:
        raise InputError(f"{reference!r} is not MODULE:FACTORY", _EXAMPLE)
    with _current_folder_importable(), contextlib.redirect_stdout(sys.stderr):
        target = _attribute(_imported(module_name), path, reference)
        if isinstance(target, nn.Module):
            return target
        if not callable(target):
            raise InputError(f"{reference} is {kind_of(target)}, not an nn.Module or a callable", _EXAMPLE)
        model = _guarded(target, f"{reference}()")
    if not isinstance(model, nn.Module):
        raise InputError(f"{reference}() returned {kind_of(model)}, not an nn.Module", _EXAMPLE)
    return model


def _saved(file: str, trusted: bool) -> nn.Module:
    if not trusted:
        raise InputError(
            f"{file} is a file: reading a saved module runs code, and a state dict names no layers",
            f"Name what builds the model, as MODULE:FACTORY, or give --trust if you know who wrote it. {_EXAMPLE}",
        )
    with _current_folder_importable(), contextlib.redirect_stdout(sys.stderr):
        # The user vouches for the file.
        model = _guarded(lambda: torch.load(file, map_location="cpu", weights_only=False), f"reading {file}")
    if not isinstance(model, nn.Module):
        raise InputError(f"{file} holds {kind_of(model)}, not an nn.Module", "Save the module itself")
    return model


@contextlib.contextmanager
def _current_folder_importable() -> Any:
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise _raised(f"importing {name}", error) from error
        hint = f"Write {name[:-3]}, not {name}" if name.endswith(".py") else "It must be on Python's path or here"
        raise InputError(f"no module {name}", hint) from error
    except (Exception, SystemExit) as error:
        raise _raised(f"importing {name}", error) from error


def _attribute(module: ModuleType, path: str, reference: str) -> Any:
    target: Any = module
    for name in path.split("."):
        if not hasattr(target, name):
            raise InputError(f"{reference}: {getattr(target, '__name__', target)} has no {name!r}", _EXAMPLE)
        target = getattr(target, name)
    return target


def _guarded(factory: Callable[[], Any], what: str) -> Any:
    try:
        return factory()
    except (Exception, SystemExit) as error:
        raise _raised(what, error) from error


def _raised(what: str, error: BaseException) -> InputError:
    return InputError(f"{what} raised {type(error).__name__}: {reason_of(error)}", "Run with --debug for the trace")
