"""What was found about a file's quantized products, as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pom_export.parity.comparison import finite
from pom_export.parity.quantized.fused import FusedResult
from pom_export.parity.quantized.weights import WeightDistance


@dataclass(frozen=True)
class ProductResult:
    """A quantized product of a file; truthy if nothing about it is wrong.

    Attributes:
        name: of its node.
        bits: of its weight, 4 or 8.
        block: how many of the weight's rows share a scale.
        activations: how activations are rounded: "float32" (not at all), "int8, a scale per block" or "uint8, a scale
            per call".
        parameter: the parameter that its weight stands for, or a part of; empty if only outputs are known.
        weight: how far its weight is from that; None if it was not compared.
        error: the largest difference of what it computes from the same rounding in float64, relative to the largest
            value; None if it rounds no activations, and the whole file was compared instead.
        tolerance: the bound on `error`.
        case: the inputs on which `error` uses the largest share of its bound.
        reason: why it is wrong, where numbers don't say so; empty otherwise.
    """

    name: str
    bits: int
    block: int
    activations: str
    parameter: str = ""
    weight: WeightDistance | None = None
    error: float | None = None
    tolerance: float | None = None
    case: str = ""
    reason: str = ""

    def __bool__(self) -> bool:
        return not self.reason and self.computes and (self.weight is None or bool(self.weight))

    @property
    def computes(self) -> bool:
        """Whether what it makes of its rounded activations is within tolerance, if that was compared."""
        return self.error is None or self.tolerance is None or self.error <= self.tolerance

    @property
    def fault(self) -> str:
        """What is wrong with it, in words; empty if nothing is."""
        if self.reason:
            return self.reason
        if self.weight is not None and not self.weight:
            return self._of_weight(self.weight)
        if self:
            return ""
        return (
            f"it computes something else than its rounded activations by its weight: off by {self.error:.2e} of the "
            f"largest value, tolerance {self.tolerance:.2e}, on {self.case}. A sum may overflow on this processor, or "
            "its kernel may round otherwise than x86-64's"
        )

    def _of_weight(self, found: WeightDistance) -> str:
        where = f"block {found.block} of column {found.column}"
        return (
            f"its weight is not {self.parameter or 'the original'} in {self.bits} bits: off by {found.error:.0%} of "
            f"its root mean square, and {where} by {found.block_error:.0%}, where {found.bound:.0%} and "
            f"{found.block_bound:.0%} can be rounding. Look for other weights, or wrong scales, order or axes"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-serialisable values."""
        weight = None if self.weight is None else finite(asdict(self.weight))
        return {**finite(asdict(self)), "weight": weight, "passed": bool(self), "fault": self.fault}


@dataclass(frozen=True)
class Distance:
    """How far an output is from that of the original model, whose weights are not quantized; no bound applies.

    Attributes:
        output: its name.
        case: the inputs, of the few that were tried, on which it is furthest off.
        max_abs: the largest difference.
        max_rel: the same over the largest magnitude of the original's output.
        cosine: cosine similarity of the two.
    """

    output: str
    case: str
    max_abs: float
    max_rel: float
    cosine: float


@dataclass(frozen=True)
class QuantizedReport:
    """What was found about a file's quantized products; truthy if nothing about any of them is wrong.

    Attributes:
        weights: the type that the file claims for most of its weights, "int4" or "int8"; empty if it claims none.
        kept: the products that it claims to have given others, each with its type.
        products: the products.
        distances: how far the outputs are from the original's; empty if the original is not known.
        fused: the worst of what fused layers make of inputs; None if nothing is fused.
    """

    weights: str
    kept: Mapping[str, str]
    products: Sequence[ProductResult]
    distances: Sequence[Distance] = field(default_factory=tuple)
    fused: FusedResult | None = None

    def __bool__(self) -> bool:
        return bool(self.products) and all(self.products) and (self.fused is None or bool(self.fused))

    @property
    def lines(self) -> list[tuple[str, str]]:
        """What to print: a name and a text for each line."""
        wrong = [each for each in self.products if not each]
        return [
            *([("weights", text)] if (text := self._weights()) else []),
            *([("products", text)] if (text := self._rounded()) else []),
            *(("product", f"FAIL  {each.name}: {each.fault}") for each in wrong),
            *([] if self.fused is None else [("fused layers", self.fused.text)]),
            *(("distance", _distance(each)) for each in self.distances),
        ]

    def _weights(self) -> str:
        compared = [each for each in self.products if each.weight is not None]
        if not compared:
            return ""
        parts = []
        for bits in sorted({each.bits for each in compared}):
            found = [each.weight for each in compared if each.bits == bits and each.weight is not None]
            worst = max(found, key=lambda weight: weight.error)
            parts.append(
                f"{len(found)} in {bits} bits, off by at most {worst.error:.1%} of their root mean square, where "
                f"{worst.bound:.0%} can be rounding"
            )
        verdict = "pass" if all(each.weight for each in compared) else "FAIL"
        return f"{verdict}  {'; '.join(parts)}"

    def _rounded(self) -> str:
        rounded = [each for each in self.products if each.error is not None]
        if not rounded:
            return ""
        worst = max(rounded, key=lambda each: (each.error or 0.0) / (each.tolerance or 1.0))
        verdict = (
            "pass"
            if all(not each.fault or (each.weight is not None and not each.weight) for each in rounded)
            else "FAIL"
        )
        return (
            f"{verdict}  {len(rounded)} round activations as expected: max_rel {worst.error:.2e}, tolerance "
            f"{worst.tolerance:.2e}, worst: {worst.name} on {worst.case}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-serialisable values."""
        return {
            "weights": self.weights or None,
            "kept": dict(self.kept),
            "products": [each.to_dict() for each in self.products],
            "distances": [finite(asdict(each)) for each in self.distances],
            "fused": None if self.fused is None else self.fused.to_dict(),
        }


def _distance(found: Distance) -> str:
    return (
        f"{found.output}: max_abs {found.max_abs:.2e}, {found.max_rel:.1%} of the largest value, cosine "
        f"{found.cosine:.6f} from the original model's, on {found.case}; no bound applies"
    )
