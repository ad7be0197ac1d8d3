"""The toolkit's exceptions: each says what failed, the value seen and what to do, and carries an exit code."""

from __future__ import annotations


class PomExportError(Exception):
    """Base of every error that the toolkit raises on purpose.

    Args:
        what: one line: what failed, and the value that was seen.
        hint: one line: what the user can do about it.
    """

    exit_code = 2

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what}. {self.hint}" if self.hint else self.what


class InputError(PomExportError):
    """The user's file, option or environment is not usable."""


class CheckpointError(InputError):
    """A checkpoint could not be read or is of no known model."""


class MissingDependencyError(InputError):
    """An optional package or one of our compiled libraries is not there."""


class EngineError(InputError):
    """TensorRT refused the model or the build."""


class ParityError(PomExportError):
    """Outputs differ from PyTorch by more than the tolerance."""

    exit_code = 1


def reason_of(error: BaseException) -> str:
    """Return the first line of an exception's text, or its class where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
