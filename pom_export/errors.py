"""The package's exceptions: each has what failed, the value seen, what to do, and an exit code.

Messages and notes name the parameters of functions, in backticks: `stateful=True`. The command line shows its options
in their place, see `pom_export.cli.flags`.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from typing import Final, ParamSpec, TypeVar

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

SEE_CAUSE: Final = "See the trace of the exception that caused this one"
"""The hint if only the cause tells what to do."""
REPORT: Final = "Report it, with the trace of the exception that caused this one"
"""The hint for a bug of ours."""

# The most characters in a message; a longer one, for example with a name of a million letters, is cut in the middle.
_LONGEST: Final = 1000
_CUT: Final = " [...] "


def printable(text: str, limit: int = _LONGEST) -> str:
    """Return text as a single line that has no effect on a terminal except being shown.

    Names and reasons come from files. A newline in one could forge a line of ours, and an escape could move the cursor.

    Args:
        text: any text.
        limit: the most characters; a longer text is cut in the middle.
    """
    if len(text) > limit:
        end = (limit - len(_CUT)) // 3
        text = text[: limit - len(_CUT) - end] + _CUT + text[len(text) - end :]
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class PomExportError(Exception):
    """Base of every error that the toolkit raises on purpose.

    Args:
        what: one line: what failed, and the value seen. It is made `printable`, since it may quote a file.
        hint: one line: what the user can do about it. It is made `printable` too.
    """

    exit_code = 2

    def __init__(self, what: str, hint: str = "") -> None:
        self.what = printable(what)
        self.hint = printable(hint)
        super().__init__(self.what)

    def __str__(self) -> str:
        # torch's own messages end in a full stop.
        return f"{self.what.removesuffix('.')}. {self.hint}" if self.hint else self.what


class InputError(PomExportError):
    """The user's file, option or environment is unusable."""


class CheckpointError(InputError):
    """A checkpoint could not be read, or its model is unknown."""


class MissingDependencyError(InputError):
    """An optional package or one of our compiled libraries is missing."""


class PoolFullError(InputError):
    """A pool of streams takes nothing more for now; it will once streams have ended, or their tokens have been read."""


class EngineError(InputError):
    """TensorRT refused the model or the build."""


class ParityError(PomExportError):
    """Outputs differ from PyTorch by more than the tolerance."""

    exit_code = 1


# Letters whose names begin with a vowel sound, and words that begin with a consonant sound despite their first letter.
_VOWEL_NAMES: Final = "AEFHILMNORSX"
_YOU_OR_WON: Final = re.compile(r"u(int|se|ni(?!n))|one", re.IGNORECASE)


def with_article(word: str) -> str:
    """Return a noun, such as the name of a class, with the article that fits its sound: an int, an MLP, a UNet."""
    said_by_letters = word[:2].isupper()
    vowel = word[:1] in _VOWEL_NAMES if said_by_letters else word[:1].lower() in {*"aeiou"}
    return f"an {word}" if vowel and not _YOU_OR_WON.match(word) else f"a {word}"


def kind_of(value: object) -> str:
    """Return the type of a value, worded for a message: an int, a list, None."""
    return "None" if value is None else with_article(type(value).__name__)


def reason_of(error: BaseException) -> str:
    """Return the first line of an exception's text, or its class if it has no text."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# torch's allocator raises a RuntimeError.
_TORCH_OUT_OF_MEMORY: Final = "can't allocate memory"


def explained(error: BaseException) -> PomExportError:
    """Return the error that explains an unexpected exception to a user."""
    if isinstance(error, PomExportError):
        return error
    reason = reason_of(error)
    if isinstance(error, OSError):
        return PomExportError(f"the system refused: {reason}", "Check space, permissions and paths")
    if isinstance(error, MemoryError) or _TORCH_OUT_OF_MEMORY in reason:
        return PomExportError(f"not enough memory: {reason}", "Choose smaller sizes, or a machine with more memory")
    return PomExportError(f"internal error: {type(error).__name__}: {reason}", REPORT)


def only_ours(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Wrap a public function so that it raises nothing but the toolkit's exceptions.

    Calls that don't fit its signature still raise TypeError. The original exception is chained as the cause.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def called(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        signature.bind(*args, **kwargs)
        try:
            return function(*args, **kwargs)
        except PomExportError:
            raise
        except Exception as error:
            raise explained(error) from error

    return called
