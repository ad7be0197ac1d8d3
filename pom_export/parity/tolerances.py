"""The table of tolerances: how far outputs may be from PyTorch's in float64, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Tolerance:
    """A bound: max |a - b| <= absolute + relative * max |b|, where b is the reference.

    Attributes:
        relative: relative to the largest magnitude of the reference output, not element by element: an element near 0
            is the difference of large ones, and has no significant digits of its own.
        absolute: in the output's unit.
        reason: the reason for these numbers.
    """

    relative: float
    absolute: float
    reason: str


@dataclass(frozen=True)
class Bounds:
    """Bounds relative to the reference's own rounding errors on the same inputs.

    Each bound is a multiple of the reference's error, plus `least` times the output's root mean square or largest
    magnitude.

    Attributes:
        rms: factor for the root mean square error.
        largest: factor for the largest error.
        least: share of the output itself, for outputs on which the reference happens to have almost no rounding error.
        most: upper limit on the largest error, as a multiple of the type's own tolerance.
        reason: the reason for these numbers.
    """

    rms: float
    largest: float
    least: float
    most: float
    reason: str


@dataclass(frozen=True)
class Growth:
    """Bounds that grow with the error of the reference itself in the file's type, on the same inputs.

    Attributes:
        rms: factor for the root mean square error, where the largest error's bound has grown.
        largest: factor for the largest error.
        most: upper limit on the bound, as a multiple of the type's own tolerance.
        reason: the reason for these numbers.
    """

    rms: float
    largest: float
    most: float
    reason: str


@dataclass(frozen=True)
class WeightBounds:
    """Bounds on the root mean square error of quantized weights, relative to that of the original's numbers.

    Attributes:
        whole: for a whole weight.
        block: for each block of numbers with a scale in common.
        reason: the reason for these numbers.
    """

    whole: float
    block: float
    reason: str


MODELS: Final = {
    "float32": Tolerance(
        1e-5, 1e-7, "float32 rounds at 6e-8; sums over channels and a few layers grow it about a hundredfold"
    ),
    "float16": Tolerance(
        6e-3,
        1e-5,
        "float16 rounds at 5e-4, weights once and values after every node, sums and norms not; 3.3e-3 was the most "
        "seen, over all golden cases and the demo's model",
    ),
    "bfloat16": Tolerance(
        5e-2, 1e-4, "bfloat16 rounds at 4e-3, 8 times as coarsely as float16; 3.0e-2 was the most seen, as above"
    ),
}
"""For a whole model's outputs, by the type of its weights and activations."""


def bounded(precision: str, rtol: float | None, atol: float | None) -> Tolerance:
    """Return the tolerance of a whole model's outputs: that of its type, but for the bounds that a user gave."""
    default = MODELS[precision]
    if rtol is None and atol is None:
        return default
    return Tolerance(
        default.relative if rtol is None else rtol, default.absolute if atol is None else atol, "given by the user"
    )


ROUNDING: Final = {
    "float16": Bounds(
        4.0,
        6.0,
        2.0**-11,
        2.0,
        "PyTorch with a rounding after every operator errs as the file does, but for which operators are one node: "
        "with 3 and 5 as the first numbers, right files used up to 0.76 of the first bound and 0.71 of the second, "
        "over eight golden mixers with one mask each and ten seeds; the third number is a unit in the last place. "
        "On inputs beyond both clamps a right file was off by 1.14 times its type's tolerance",
    ),
    "bfloat16": Bounds(4.0, 6.0, 2.0**-8, 2.0, "as float16's; what rounds 8 times as coarsely"),
}
"""For a half-precision model as it runs, by its type. UNROUNDED finds faults that are too small for these."""

STREAMED: Final = Growth(
    6.0,
    8.0,
    100.0,
    "PyTorch's float32 differs from float64 by more than MODELS in deep or unnormalised models with large weights. "
    "Over four such models, calls were off by up to 3.4 times as much (root mean square: 2.8), since they add in "
    "another order. Beyond a hundred times the tolerance a wrong state could hide",
)
"""For calls of a user's own stateful model, compared with one pass in float32."""


def bounds_of(precision: str, *, own: bool) -> Bounds | Growth | None:
    """Return what bounds a model's outputs beside MODELS, given the reference's own error.

    Args:
        precision: the type that the outputs are compared in.
        own: whether the reference is a user's own module.
    """
    return STREAMED if own and precision == "float32" else ROUNDING.get(precision)


UNROUNDED: Final = Bounds(
    0.05,
    0.05,
    1e-5,
    1.0,
    "weights and constants are rounded alike on both sides, so only float32's errors are left: at most 0.03 of this "
    "bound was used, over sixteen golden models with one mask each, one or two seeds and both types. One per cent of a "
    "gate's bias makes 0.16 of what rounding the weights does, in bfloat16",
)
"""For the graph of a half-precision model computed in float32: relative to the effect of rounding the weights."""

UNROUNDED_OWN: Final = Bounds(
    4.0,
    6.0,
    1e-5,
    1.0,
    "a user's weights may be computed of others, and are rounded before in PyTorch and after in the file; and which "
    "numbers of a forward are constants in half is not known for each operator: as ROUNDING, of smaller errors",
)
"""The same for a user's own module."""

UNROUNDED_MOST: Final = Tolerance(
    MODELS["bfloat16"].relative, MODELS["float32"].absolute, "no bound of its own: UNROUNDED is narrower"
)
"""Beside UNROUNDED."""

STATE_ROUNDING: Final = Tolerance(
    1e-12,
    0.0,
    "a state's sum is two floats, 48 bits, which a call's few additions round at 4e-15 of the sum; without the second "
    "float it would be off by 3e-8. What the call itself adds is as exact as any output, so MODELS bounds that part",
)
"""For the part of a state that a call carries over: relative to each mixer's own largest sum."""

STATE_FEATURES: Final = 3.0
"""How much larger the relative error may be in what a call adds to a state than in an output.

Features are powers and products of up to K activations, each with its own rounding error, and for a single token
nothing averages these out. The largest error seen was 1.1 times an output's bound, in float16 on one token of the
hybrid language model.
"""

MODULES: Final = {
    "float32": Tolerance(
        4e-6, 0.0, "2e-6 was the most seen, on inputs beyond both clamps, over four models of six layers"
    ),
    "float16": Tolerance(6e-3, 0.0, "as MODELS; 3.4e-3 was the most seen. Faults below are found without rounding"),
    "bfloat16": Tolerance(5e-2, 0.0, "as float16's; what rounds 8 times as coarsely"),
}
"""For what one module computes from the values that it has in the file, by the type that it computes in.

For more than `MODULE_NODES` nodes it grows like the square root of their number, up to the bound in MODELS.
"""

MODULE_NODES: Final = 8

MODULE_NOISE: Final = 8.0
"""How many times the effect of rounding a module's inputs its outputs may be off by, where MODULES is narrower."""

MODULES_OWN_UNROUNDED: Final = 2.0
"""For a user's own half-precision module without rounding, in roundings of the half type: see UNROUNDED_OWN."""

MODULES_QUANTIZED: Final = {
    8: Tolerance(1e-1, 0.0, "4.6e-2 was the most seen, with activations of one scale for a whole tensor"),
    4: Tolerance(5e-1, 0.0, "2.8e-1 was the most seen, with blocks of 16 weights and 16 to 32 channels"),
}
"""The same for modules with quantized weights, by the bits of the coarsest."""

WEIGHTS_QUANTIZED: Final = {
    8: WeightBounds(
        0.06,
        0.25,
        "1.9e-2 and 8e-2 were the most seen, of 7 bits with a scale per column, chosen for its effect on few tokens",
    ),
    4: WeightBounds(
        0.3,
        0.7,
        "0.15 and 0.32 were the most seen, in blocks of 32 that were corrected for their effect on few tokens. Of "
        "another column, 1.4 is the rule; zeros, and twice the scale, are off by 1",
    ),
}
"""For quantized weights against the original's, by bits."""

HALF_STEP: Final = 0.5
"""What rounding to the nearest explains whatever the numbers are, in steps; where WEIGHTS_QUANTIZED is narrower.

A step is a block's largest magnitude over the largest integer.
"""

PRODUCTS_QUANTIZED: Final = Tolerance(
    1e-6,
    0.0,
    "integers are multiplied exactly, and what blocks add up to is added in float32: 2.2e-7 was the most seen, over 1 "
    "to 300 rows, 64 to 4096 channels, blocks of 16 to 256, both numbers of bits and activations with outliers",
)
"""For what one quantized product makes of its activations, relative to the sum of its terms' magnitudes.

What is compared with is the same rounding in float64.
"""

FUSED: Final = Tolerance(
    5e-2,
    0.0,
    "what differs in the last digit may be rounded to another of 8 bits, and everything after that differs as much as "
    "two ways of rounding do: 2.0e-2 was the most seen, over all golden cases with int4 weights in blocks of 16, four "
    "sizes of calls and two seeds, where three quarters of the calls differed by less than 3e-6",
)
"""For outputs of fused nodes against those of the nodes that they replace, both in ONNX Runtime."""

EXACT: Final = Tolerance(0.0, 0.0, "integers and truth values count or choose something: one more is another")
"""For integer and boolean outputs."""

GOLDEN: Final = Tolerance(1e-5, 0.0, "the official code's float64 outputs against one float32 layer of ours")

OPS: Final = {
    "float32": Tolerance(2e-6, 1e-9, "one op: float32 rounds at 6e-8; Horner and sums of up to 131072 tokens"),
    "float16": Tolerance(6e-4, 1e-7, "computed in float32, rounded once to float16 (5e-4)"),
    "bfloat16": Tolerance(8e-3, 1e-6, "computed in float32, rounded once to bfloat16 (4e-3)"),
}
"""For a single aggregation, whatever executes it, by the type of its output."""

LONG_CAUSAL: Final = Tolerance(
    1e-6, 0.0, "131072 tokens: what the compensated sums are for; a plain float32 sum of this length errs by 1e-4"
)
"""For long prefix sums in float32."""

ROUNDED: Final = "rounded activations"
BENCHMARK: Final = {
    "float32": Tolerance(
        1e-3, 1e-7, "only that all backends do the same work: a plain float32 sum over 100,000 tokens is off by 1e-4"
    ),
    "float16": Tolerance(3e-2, 1e-5, "the same; five times what a whole model's outputs may be off by"),
    "bfloat16": Tolerance(2e-1, 1e-4, "the same, with an eighth of float16's precision"),
    ROUNDED: Tolerance(
        3e-2,
        1e-5,
        "the same: what is off in the last digits is rounded to another of 8 bits here and there, and grows from layer "
        "to layer; 3.2e-3 was seen on the demo's model",
    ),
}
"""For outputs of backends that are timed side by side, by the model's type."""
