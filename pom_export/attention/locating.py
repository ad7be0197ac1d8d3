"""A model named on the command line: `module:factory`, imported from Python's path or the current folder."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from pom_export.errors import InputError

_EXAMPLE = "Example: my_package.models:make_model"


def model_from(reference: str) -> nn.Module:
    """Return the model that a reference names.

    Args:
        reference: `module:name`, where the name (dots allowed) is an `nn.Module` or a callable without arguments that
            returns one. What it prints goes to stderr.

    Raises:
        InputError: there is no such module or name, it raises, or it gives no `nn.Module`.
    """
    module_name, colon, path = reference.partition(":")
    if not colon or not module_name or not path:
        if Path(reference).is_file():
            raise InputError(
                f"{reference} is a file: a saved model would run code when it is read, and weights name no layers",
                f"Name what builds the model, as MODULE:FACTORY. {_EXAMPLE}",
            )
        raise InputError(f"{reference!r} is not MODULE:FACTORY", _EXAMPLE)
    with _current_folder_importable(), contextlib.redirect_stdout(sys.stderr):
        target = _attribute(_imported(module_name), path, reference)
        if isinstance(target, nn.Module):
            return target
        if not callable(target):
            raise InputError(f"{reference} is a {type(target).__name__}, not an nn.Module or a callable", _EXAMPLE)
        model = _guarded(target, f"{reference}()")
    if not isinstance(model, nn.Module):
        raise InputError(f"{reference}() returned a {type(model).__name__}, not an nn.Module", _EXAMPLE)
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
    reason = (str(error).strip() or "no message").splitlines()[0]
    return InputError(f"{what} raised {type(error).__name__}: {reason}", "Run with --debug for the trace")
