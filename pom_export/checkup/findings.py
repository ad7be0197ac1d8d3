"""The results of a checkup."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

OK: Final = "ok"
NOT_INSTALLED: Final = "not installed"
BROKEN: Final = "broken"
MARK: Final = "pom-export checkup: "
"""What begins the line with a trial's result, which tells it from what libraries print."""
STEP: Final = "pom-export checkup, next: "
"""What begins the line that says what a trial does next, in case it does not survive it."""


def about_to(step: str) -> None:
    """Say what a trial does next, such as "load libsome.so"."""
    os.write(1, f"\n{STEP}{step}\n".encode())


class _FaultError(Exception):
    """Something is wrong with a part.

    Args:
        what: what is wrong.
        remedy: what mends it.
    """

    def __init__(self, what: str, remedy: str = "") -> None:
        self.remedy = remedy
        super().__init__(what)


class NotInstalledError(_FaultError):
    """A part is not there, which is a fault only if it is needed."""


class BrokenError(_FaultError):
    """A part does not work."""


@dataclass(frozen=True)
class Finding:
    """What was found out about one part.

    Attributes:
        name: the part.
        state: "ok": it was tried and works; "not installed"; or "broken".
        detail: its version, or what is wrong, in one line.
        remedy: a command or an instruction that mends it; empty if nothing has to be mended.
        needed: whether a part that is not installed counts as a fault.
    """

    name: str
    state: str
    detail: str
    remedy: str = ""
    needed: bool = False

    @property
    def is_fault(self) -> bool:
        """Whether the part is broken, or needed and not installed."""
        return self.state == BROKEN or (self.needed and self.state != OK)


@dataclass(frozen=True)
class DoctorReport:
    """The outcome of `doctor`; truthy if something was tried and nothing that was asked for is broken.

    Attributes:
        findings: what was found out about each part.
    """

    findings: Sequence[Finding]

    def __bool__(self) -> bool:
        return any(each.state == OK for each in self.findings) and not self.faults

    @property
    def faults(self) -> list[Finding]:
        """The parts that are broken, or needed and not installed."""
        return [each for each in self.findings if each.is_fault]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-serialisable values."""
        return {"healthy": bool(self), "findings": [asdict(each) for each in self.findings]}
