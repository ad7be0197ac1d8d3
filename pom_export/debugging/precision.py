"""The outcome of a search for the modules that must stay in float32, as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from pom_export.parity.comparison import finite

# The most names of modules in a line about a trial.
_MOST_NAMES: Final = 6


@dataclass(frozen=True)
class PrecisionTrial:
    """One file of a search; truthy if it meets the tolerance.

    Attributes:
        keep: the modules that it computes in float32.
        passed: whether it meets the tolerance.
        error: how far its outputs are from PyTorch's, relative to the largest magnitude in PyTorch's output; infinite
            if they can't be compared, None if no file was made.
        output: the output for which that uses up the largest share of the tolerance.
        case: the inputs for which it does.
        bytes: the file's size, including external weights.
        refused: why no file was made; empty otherwise.
    """

    keep: Sequence[str]
    passed: bool
    error: float | None = None
    output: str = ""
    case: str = ""
    bytes: int | None = None
    refused: str = ""

    def __bool__(self) -> bool:
        return self.passed

    def __str__(self) -> str:
        """Describe the trial in one line."""
        names = [*self.keep]
        if len(names) > _MOST_NAMES:
            names = [*names[:_MOST_NAMES], f"and {len(names) - _MOST_NAMES} more"]
        keep = f"{', '.join(names)} in float32" if names else "all in half precision"
        if self.refused:
            return f"{keep}: no file, {self.refused}"
        return f"{keep}: error {self.error:.2e} in {self.output} on {self.case}, {'pass' if self else 'FAIL'}"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-serialisable values."""
        return finite(asdict(self))


@dataclass(frozen=True)
class PrecisionReport:
    """The outcome of `debug_precision`; truthy if a file in this type can meet the tolerance.

    Attributes:
        dtype: the file's type, "float16" or "bfloat16".
        rtol: the bound on errors, relative to the largest magnitude in PyTorch's output.
        atol: the part of the bound that does not depend on that, in the output's unit.
        keep: the smallest set of modules found that must stay in float32, for `export`'s `keep_float32`; empty if none
            has to. None: the tolerance is not met even with all of them in float32.
        parts: the blocks and other modules that were chosen among first.
        trials: the files that were made, in order. The first has all modules in half precision.
    """

    dtype: str
    rtol: float
    atol: float
    keep: Sequence[str] | None
    parts: Sequence[str]
    trials: Sequence[PrecisionTrial]

    def __bool__(self) -> bool:
        return self.keep is not None

    @property
    def trial(self) -> PrecisionTrial:
        """The trial with these modules in float32; if none meets the tolerance, the one with all of them."""
        wanted = self.parts if self.keep is None else self.keep
        return next(each for each in self.trials if set(each.keep) == set(wanted))

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-serialisable values."""
        return {
            "passed": bool(self),
            "dtype": self.dtype,
            "rtol": self.rtol,
            "atol": self.atol,
            "keep": None if self.keep is None else list(self.keep),
            "error": self.trial.to_dict()["error"],
            "bytes": self.trial.bytes,
            "parts": list(self.parts),
            "trials": [each.to_dict() for each in self.trials],
        }
