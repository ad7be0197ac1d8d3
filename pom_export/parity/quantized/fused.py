"""What fused layers make of inputs, against the nodes that they replace.

Both round activations to 8 bits. Where a number is almost in the middle of two, the last digit before it decides, so
two right computations differ by some roundings; all of them together are what rounding activations changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pom_export.parity.case import Array, Arrays
from pom_export.parity.comparison import finite
from pom_export.parity.tolerances import MODELS


@dataclass(frozen=True)
class FusedResult:
    """How far an output of fused layers is from that of the nodes; truthy if it is within the bound.

    Attributes:
        output: its name; empty if no output has a finite number, which proves nothing.
        case: the inputs.
        difference: root mean square of the difference, relative to that of the output.
        bound: what rounding activations changes, in the same measure, or float32's tolerance if that is larger.
    """

    output: str
    case: str
    difference: float
    bound: float

    def __bool__(self) -> bool:
        return self.difference <= self.bound

    @property
    def share(self) -> float:
        """The share of the bound that is used."""
        return self.difference / self.bound

    @property
    def text(self) -> str:
        """What to print."""
        if not self.output:
            return "FAIL  no output of single nodes is finite on the cases that were compared, which proves nothing"
        return (
            f"{'pass' if self else 'FAIL'}  {self.output} differs from that of single nodes by {self.difference:.2e} "
            f"(root mean square), where rounding activations changes {self.bound:.2e}, on {self.case}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-serialisable values."""
        return {**finite(asdict(self)), "passed": bool(self)}


def compare_fused(found: Arrays, plain: Arrays, unrounded: Arrays, case: str) -> Iterator[FusedResult]:
    """Compare the floating-point outputs of fused layers.

    Args:
        found: their outputs, by name.
        plain: the outputs of the same file, each node by itself.
        unrounded: the outputs of a copy that does not round activations.
        case: the inputs, in words.

    Yields:
        A result for each output that has a number; one that is finite in `plain` alone makes it false.
    """
    for name, expected in plain.items():
        numbers = np.isfinite(expected) & np.isfinite(unrounded[name]) if expected.dtype.kind == "f" else np.zeros(1)
        if not numbers.any():
            continue
        size = _rms(expected[numbers])
        scale = 1 / size if size else 1.0
        difference = _rms(found[name][numbers].astype(np.float64) - expected[numbers]) * scale
        rounding = _rms(unrounded[name][numbers].astype(np.float64) - expected[numbers]) * scale
        bound = max(rounding, MODELS["float32"].relative)
        yield FusedResult(name, case, difference if np.isfinite(difference) else np.inf, bound)


def _rms(array: Array) -> float:
    return float(np.sqrt(np.mean(np.square(array, dtype=np.float64))))
