"""Names of a model's modules, with dots between a module and those inside it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from typing import Final

from pom_export.errors import InputError
from pom_export.suggestions import did_you_mean

# The most names in a message.
_MOST: Final = 24


def is_inside(name: str, modules: Collection[str]) -> bool:
    """Return whether a name is that of one of the modules, or of something inside one."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def outermost(names: Collection[str]) -> list[str]:
    """Return the names without those of modules that are inside another one, in the same order."""
    return [name for name in names if not is_inside(name.rpartition(".")[0], names)]


def no_modules() -> InputError:
    """Return the error for a graph whose operators are not named after modules."""
    return InputError(
        "no operator in the graph has the name of a module, as in a torch.export program", "Export the module itself"
    )


def matching(patterns: Sequence[str], names: Collection[str], shared: Sequence[Collection[str]] = ()) -> list[str]:
    """Return the modules that patterns choose, without those inside another one, in alphabetical order.

    Args:
        patterns: names, or patterns as in a shell, such as "blocks.*.mixer"; a "*" stands for dots too.
        names: the names of all modules.
        shared: the names of each module that has several. If one is chosen, all are.

    Raises:
        InputError: a pattern matches no name.
    """
    if patterns and not names:
        raise no_modules()
    found: set[str] = set()
    for pattern in patterns:
        matches = {name for name in names if fnmatchcase(name, pattern)}
        if not matches:
            raise InputError(f"no module in the graph is called {pattern!r}", _known(pattern, names))
        found |= matches
    for group in shared:
        if any(is_inside(name, found) for name in group):
            found.update(name for name in group if name in names)
    return outermost(sorted(found))


def _known(pattern: str, names: Collection[str]) -> str:
    outer_first = sorted(names, key=lambda name: (name.count("."), name))
    more = f" and {len(names) - _MOST} inside them" if len(names) > _MOST else ""
    return f"{did_you_mean(pattern, names)} The modules are {', '.join(outer_first[:_MOST])}{more}".strip()
