"""The table of tolerances: how far outputs may be from PyTorch's in float64, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Tolerance:
    """A bound: max |a - b| <= absolute + relative * max |b|, b being the reference.

    Attributes:
        relative: to the largest magnitude of the reference output, not element by element: an element near 0 is
            the difference of large ones and has no digits of its own.
        absolute: in the output's own unit.
        reason: why this number.
    """

    relative: float
    absolute: float
    reason: str


@dataclass(frozen=True)
class Bounds:
    """Bounds in terms of how far rounding takes the reference on the same inputs, its root mean square and its largest.

    Each is so many times the reference's, and `least` of the output's root mean square or largest magnitude.

    Attributes:
        rms: of the root mean square difference.
        largest: of the largest difference.
        least: where the reference happens to lose next to nothing.
        most: of the largest difference, in terms of the type's own tolerance.
        reason: why these numbers.
    """

    rms: float
    largest: float
    least: float
    most: float
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
"""For a whole model's outputs, by the type that its weights and activations have."""

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
"""For a half-precision model as it runs, by its type. UNROUNDED tells what hides behind them."""

UNROUNDED: Final = Bounds(
    0.05,
    0.05,
    1e-5,
    1.0,
    "weights and constants are rounded alike on both sides, so only float32's errors are left: at most 0.03 of this "
    "bound was used, over sixteen golden models with one mask each, one or two seeds and both types. One per cent of a "
    "gate's bias makes 0.16 of what rounding the weights does, in bfloat16",
)
"""For the graph of a half-precision model computed in float32: in terms of what rounding the weights does."""

UNROUNDED_OWN: Final = Bounds(
    4.0,
    6.0,
    1e-5,
    1.0,
    "a user's weights may be computed of others, and are rounded before in PyTorch and after in the file; and which "
    "numbers of a forward are constants in half is not known for each operator: as ROUNDING, of smaller errors",
)
"""For the same of a user's own module."""

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
"""For what a call carries on of a state: relative to each mixer's own largest sum."""

STATE_FEATURES: Final = 3.0
"""How much larger the relative error of what a call adds to a state may be than an output's.

Features are powers and products of up to K activations, each off by its own rounding, and of one token where nothing
averages: 1.1 of an output's bound was the most seen, in float16 on one token of the hybrid language model.
"""

EXACT: Final = Tolerance(0.0, 0.0, "integers and truth values count or choose something: one more is another")
"""For outputs of integers."""

GOLDEN: Final = Tolerance(1e-5, 0.0, "the official code's float64 outputs against one float32 layer of ours")

OPS: Final = {
    "float32": Tolerance(2e-6, 1e-9, "one op: float32 rounds at 6e-8; Horner and sums of up to 131072 tokens"),
    "float16": Tolerance(6e-4, 1e-7, "computed in float32, rounded once to float16 (5e-4)"),
    "bfloat16": Tolerance(8e-3, 1e-6, "computed in float32, rounded once to bfloat16 (4e-3)"),
}
"""For one aggregation, whatever executes it, by the type of its output."""

LONG_CAUSAL: Final = Tolerance(
    1e-6, 0.0, "131072 tokens: what the compensated sums are for; a plain float32 sum of this length errs by 1e-4"
)
"""For long prefix sums in float32."""

BENCHMARK: Final = {
    "float32": Tolerance(
        1e-3, 1e-7, "only that all backends do the same work: a plain float32 sum over 100,000 tokens is off by 1e-4"
    ),
    "float16": Tolerance(3e-2, 1e-5, "the same; five times what a whole model's outputs may be off by"),
    "bfloat16": Tolerance(2e-1, 1e-4, "the same, with an eighth of float16's precision"),
}
"""For the outputs of backends that are timed side by side, by the model's type."""
