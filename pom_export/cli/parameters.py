"""Option types: reject bad values before any work begins, and provide shell completion."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import click
from click.shell_completion import CompletionItem

from pom_export.errors import InputError
from pom_export.suggestions import did_you_mean

if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType

# The export runs the model on inputs of the fixed size; no machine can hold more than this.
_MOST_TOKENS: Final = 2**31 - 1


class Choice(_ParamType):
    """One of a fixed set of values.

    Args:
        values: the values.
        canonical: maps other spellings to a value.
    """

    name = "choice"

    def __init__(self, values: Iterable[Any], canonical: Callable[[str], str] = str) -> None:
        self._values = {str(value): value for value in values}
        self._canonical = canonical

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:  # noqa: ARG002, D102
        return f"[{'|'.join(self._values)}]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: D102
        name = self._canonical(str(value))
        if name not in self._values:
            texts = [each for each in self._values.values() if isinstance(each, str)]  # numbers are all similar
            message = f"{value!r} is not one of {', '.join(self._values)}. {did_you_mean(name, texts)}"
            self.fail(message.rstrip(), param, ctx)
        return self._values[name]

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002, D102
        return [CompletionItem(name) for name in self._values if name.startswith(incomplete)]


class Listed(_ParamType):
    """A comma-separated list of values of another type, each given once.

    Args:
        item: the type of the values.
    """

    name = "list"

    def __init__(self, item: _ParamType) -> None:
        self._item = item

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:  # noqa: D102
        return f"{self._item.get_metavar(param, ctx) if isinstance(self._item, Choice) else 'INTEGER'},..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: D102
        if not isinstance(value, str):
            return value
        items = [self._item.convert(part.strip(), param, ctx) for part in value.split(",")]
        if len(set(items)) < len(items):
            self.fail(f"{value!r} names one twice. Name each once", param, ctx)
        return tuple(items)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: D102
        return _complete_last(incomplete, [item.value for item in self._item.shell_complete(ctx, param, "")])


class Parsed(_ParamType):
    """A value parsed by a function, whose InputError ends the command.

    Args:
        parse: the function.
        complete: completions for the last item of a comma-separated list.
    """

    name = "text"

    def __init__(self, parse: Callable[[str], Any], complete: Sequence[str] = ()) -> None:
        self._parse = parse
        self._complete = complete

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ARG002, D102
        return self._parse(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002, D102
        return _complete_last(incomplete, self._complete)


def _complete_last(incomplete: str, values: Iterable[str]) -> list[CompletionItem]:
    """Return completions for the last item of a comma-separated list: the values that are not in it yet."""
    before, comma, item = incomplete.rpartition(",")
    given = before.split(",")
    return [CompletionItem(f"{before}{comma}{each}") for each in values if each.startswith(item) and each not in given]


class File(_ParamType):
    """A path, completed by the shell. Whether it is usable is found out when it is read.

    Args:
        names: special values besides paths.
        folder: whether it is the path of a folder.
    """

    def __init__(self, names: Sequence[str] = (), *, folder: bool = False) -> None:
        self.name = "folder" if folder else "file"
        self._names = names
        self._kind = "dir" if folder else "file"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002, D102
        names = [CompletionItem(name) for name in self._names if name.startswith(incomplete)]
        return [*names, CompletionItem(incomplete, type=self._kind)]


class Whole(click.IntRange):
    """A whole number in a range, which messages call an integer."""

    name = "integer"


SIZES: Final = Listed(Whole(1, 2**31 - 1))  # beyond it no machine holds one row of anything
FILE: Final = File()
FOLDER: Final = File(folder=True)


def parse_static(text: str) -> tuple[int, int]:
    """Parse `1x256`: batch and tokens.

    Raises:
        InputError: the text has another form, or the product exceeds what a machine can hold.
    """
    match = re.fullmatch(r"(\d{1,19})x(\d{1,19})", text)
    if match is None:
        raise InputError(f"--static {text!r} is not BATCHxTOKENS", "Example: --static 1x256")
    batch, tokens = int(match[1]), int(match[2])
    if batch * tokens > _MOST_TOKENS:
        raise InputError(
            f"--static {text} is {batch * tokens} tokens", f"The model is run on them: at most {_MOST_TOKENS}"
        )
    return batch, tokens


def parse_share(text: str) -> float:
    """Parse `0.5%` or `0.005`.

    Raises:
        InputError: the text is no number above 0.
    """
    number = text.strip()
    percent = number.endswith("%")
    try:
        value = float(number.removesuffix("%"))
    except ValueError:
        value = 0.0
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{text!r} is no share above 0", "Example: 0.5% or 0.005")
    return value / 100 if percent else value
