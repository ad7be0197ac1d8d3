"""What quantizing a file did, cost and gained."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from pom_export.parity.comparison import finite
from pom_export.quantization.quality import Quality
from pom_export.quantization.speed import Speed


@dataclass(frozen=True)
class QuantizedModule:
    """A module with quantized products.

    Attributes:
        name: the module's name; empty for the model itself.
        weights: the type that its products' weights have: "int8", "int4", "float32", or several with a + between.
        error: error of its products from the rounding of their weights alone: the root mean square on the inputs that
            they were chosen on, relative to that of the products; of the worst of them.
        error_out: how far its outputs are from the original's, relative to their largest magnitude, on inputs that were
            held out: with the errors of the modules before it, and of rounded activations. None if it is not known.
    """

    name: str
    weights: str
    error: float
    error_out: float | None


@dataclass(frozen=True)
class QuantizeResult:
    """The outcome of `quantize`.

    Attributes:
        model: path of the ONNX file.
        weights: the type that was asked for.
        form: how the products compute, in words.
        bytes: size of the file (and of its external weights, if any).
        original_bytes: the same of the original.
        sha256: the file's hash.
        products: how many products have weights of each type.
        kept: the products that have a wider type than asked for, with that type.
        quality: how it compares with the original on inputs that were held out.
        measured_on: where these come from.
        speed: how long its calls take here, and the original's.
        modules: the errors of the modules with quantized products, in order.
        checked: the backends on which it was compared with the original with the same rounded weights.
        cases: the inputs of that comparison, by name.
        opset: version of the standard ops.
        inputs: name, dtype and axes of each input.
        outputs: the same for each output.
        notes: further remarks, one line each.
    """

    model: str
    weights: str
    form: str
    bytes: int
    original_bytes: int
    sha256: str
    products: dict[str, int]
    kept: dict[str, str]
    quality: Quality
    measured_on: str
    speed: list[Speed]
    modules: list[QuantizedModule]
    checked: list[str]
    cases: list[str]
    opset: int
    inputs: list[str]
    outputs: list[str]
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON-serialisable values."""
        return {
            **asdict(self),
            "quality": finite(asdict(self.quality)),
            "speed": [{**asdict(each), "ratio": each.ratio} for each in self.speed],
            "modules": [finite(asdict(each)) for each in self.modules],
        }
