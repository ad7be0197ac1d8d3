"""Load a model named on the command line: `module:factory`, found from the current folder, or a saved module."""

from __future__ import annotations

import contextlib
import importlib
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from pom_export.errors import InputError, kind_of, reason_of
from pom_export.files import readable_file
from pom_export.suggestions import did_you_mean

if TYPE_CHECKING:
    from torch import nn

_EXAMPLE: Final = "Example: my_package.models:make_model"
_REFERENCE: Final = re.compile(r"[\w.]+:[\w.]+")
_MODULE: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


@dataclass(frozen=True)
class NamedModel:
    """A model named on the command line.

    Attributes:
        module: the model.
        example_inputs: the inputs that came with it, as `pom_export.export` takes them; None if there were none.
        file: the file that it was read from, or the source of the Python module that makes it; None if there is none.
    """

    module: nn.Module
    example_inputs: Any = None
    file: str | None = None

    def check_has_examples(self, reference: str, option: str) -> None:
        """Raise InputError if the model is not one of ours and came without example inputs.

        Args:
            reference: its name for the message.
            option: the option that provides the inputs instead.
        """
        from pom_export.checkpoint.spec import spec_of

        if self.example_inputs is None and spec_of(self.module) is None:
            kind = type(self.module).__name__
            raise InputError(
                f"{reference} comes without example inputs, and {kind} is not one of our models",
                f"Make it (module, example_inputs), or give {option} FILE.npz",
            )


def names_module(reference: str) -> bool:
    """Return whether a text is `module:factory`, as opposed to the path of a file or folder."""
    return _REFERENCE.fullmatch(reference) is not None and not Path(reference).exists()


def check_is_checkpoint(path: str) -> None:
    """Raise InputError if a path leads nowhere or to Python code. The file itself is not read."""
    file = Path(path)
    if file.suffix == ".py":
        hint = f"Name the function in it that returns the model, as in {file.stem}:make_model"
        raise InputError(f"{path} is Python code, not a checkpoint", hint)
    if os.path.isdir(path):  # noqa: PTH112 (Path.is_dir raises for what is too long)
        return
    package, dot, _ = path.partition(".")
    is_module = _MODULE.fullmatch(path) and (not dot or Path(package).is_dir())
    as_module = f", or name what makes the model as MODULE:FACTORY, as in {path}:make_model" if is_module else ""
    readable_file(path, "checkpoint", f"Check the path{as_module}")


def check_names_model(reference: str, *, trusted: bool) -> None:
    """Raise InputError for a text that is neither `module:name` nor a file that may run code. Does not need torch."""
    if Path(reference).is_file():
        if trusted:
            return
        raise InputError(
            f"{reference} is a file: loading a saved module executes code, and a state dict does not describe layers",
            f"Give what builds the model, as MODULE:FACTORY, or --trust if you know who wrote the file. {_EXAMPLE}",
        )
    module_name, colon, path = reference.partition(":")
    if trusted and not colon:
        readable_file(reference, "saved module")
    if not colon or not module_name or not path:
        raise InputError(f"{reference!r} is not MODULE:FACTORY", _EXAMPLE)


def model_from(reference: str, *, trusted: bool = False) -> NamedModel:
    """Return the model that a reference names.

    Args:
        reference: `module:name`, where the name (dots allowed) is an `nn.Module`, a pair of one and its example inputs,
            or a callable without arguments that returns either; or a file in which torch.save stored a whole module.
            What the code prints goes to stderr.
        trusted: whether a file may run code, which loading a saved module does.

    Raises:
        InputError: there is no such module or name, it raises, it does not return an `nn.Module`, or a file is not
            trusted.
    """
    check_names_model(reference, trusted=trusted)
    from torch import nn

    if Path(reference).is_file():
        return _saved(reference)
    module_name, _, path = reference.partition(":")
    with _current_folder_importable(), contextlib.redirect_stdout(sys.stderr):
        module = _imported(module_name)
        target = _attribute(module, path, reference)
        if isinstance(target, (nn.Module, tuple)):
            return _named(target, f"{reference} is", module)
        if not callable(target):
            raise InputError(f"{reference} is {kind_of(target)}, not an nn.Module or a callable", _EXAMPLE)
        return _named(_guarded(target, f"{reference}()"), f"{reference}() returned", module)


def reference_of(checkpoint: str | None, inputs: str | None) -> dict[str, Any]:
    """Return the arguments of `verify` and `debug` that name the reference: a checkpoint, or a module with examples.

    Args:
        checkpoint: what the user gave: a file, or MODULE:FACTORY.
        inputs: the file of inputs, without which a module needs examples of its own.

    Raises:
        InputError: the factory can't be used, or gives no example inputs.
    """
    if checkpoint is None or not names_module(checkpoint):
        return {"checkpoint": checkpoint}
    named = model_from(checkpoint)
    if inputs is None:
        named.check_has_examples(checkpoint, "--inputs")
    return {"module": named.module, "example_inputs": named.example_inputs}


def _named(value: object, what: str, source: ModuleType) -> NamedModel:
    from torch import nn

    file = getattr(source, "__file__", None)
    if isinstance(value, nn.Module):
        return NamedModel(value, file=file)
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], nn.Module):
        return NamedModel(*value, file=file)
    raise InputError(f"{what} {kind_of(value)}, not an nn.Module, alone or with example inputs", _EXAMPLE)


def _saved(file: str) -> NamedModel:
    import torch

    with _current_folder_importable(), contextlib.redirect_stdout(sys.stderr):
        # The user trusts the file.
        model = _guarded(lambda: torch.load(file, map_location="cpu", weights_only=False), f"reading {file}")
    if not isinstance(model, torch.nn.Module):
        raise InputError(f"{file} holds {kind_of(model)}, not an nn.Module", "Save the module itself")
    return NamedModel(model, file=file)


@contextlib.contextmanager
def _current_folder_importable() -> Iterator[None]:
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
        hint = did_you_mean(error.name, _beside(error.name)) or "It must be on Python's path or here"
        hint = f"Write {name[:-3]}, not {name}" if name.endswith(".py") else hint
        raise InputError(f"no module {name}", hint) from error
    except (Exception, SystemExit) as error:
        raise _raised(f"importing {name}", error) from error


def _beside(name: str) -> Iterable[str]:
    """Return the names of the public modules found in the place where one is missing."""
    parent, dot, _ = name.rpartition(".")
    folders = list(getattr(sys.modules.get(parent), "__path__", [])) if dot else None
    found = (each.name for each in pkgutil.iter_modules(folders))
    return (f"{parent}{dot}{each}" for each in found if not each.startswith("_"))


def _attribute(module: ModuleType, path: str, reference: str) -> Any:
    target: Any = module
    for name in path.split("."):
        if not hasattr(target, name):
            known = (each for each in dir(target) if not each.startswith("_"))
            where = getattr(target, "__name__", target)
            raise InputError(f"{reference}: {where} has no {name!r}", did_you_mean(name, known) or _EXAMPLE)
        target = getattr(target, name)
    return target


def _guarded(factory: Callable[[], Any], what: str) -> Any:
    try:
        return factory()
    except (Exception, SystemExit) as error:
        raise _raised(what, error) from error


def _raised(what: str, error: BaseException) -> InputError:
    return InputError(f"{what} raised {type(error).__name__}: {reason_of(error)}", "Run with --debug for the trace")
