"""The contract of the custom op `pom::PolynomialAggregation`: the single definition of its names and limits.

Every executor (torch op, ONNX function, ONNX Runtime kernel, TensorRT plugin) reads the op from here or, in
C++, from `plugins/include/pom/contract.h`; a test compares `signature()` with that of the compiled libraries.

    form "power" (v2), coefficients (C, K):
    h = clamp(leaky_relu(x, LEAKY_SLOPE), CLAMP_LOW, CLAMP_HIGH)      (B, N, C)
    p = sum_{j=1..K} coefficients[:, j-1] * h^j                       (B, N, C)
    form "product" (v1), degree K, x in K chunks x_1..x_K of C / K channels:
    p = concat(q_1..q_K), q_1 = gelu(x_1), q_j = gelu(x_j) * q_{j-1}  (B, N, C), gelu with erf

    p is rotated by cos and sin, if given (form "power" only): the channels are `rotary_blocks` blocks of width W,
    channel i of a block is paired with i + W/2, and block r reads columns r * W/2 + i of both tables:
    p_i' = p_i cos - p_{i+W/2} sin,  p_{i+W/2}' = p_{i+W/2} cos + p_i sin

    y = sum_n m_n p_n / (epsilon + sum_n m_n)                         (B, 1, C)  mode "mean"
        the same over the tokens 0..i, for every token i              (B, N, C)  mode "causal"
        p                                                             (B, N, C)  mode "features", without mask

Without a mask every m_n is 1 and epsilon is not added. A row whose weights sum to 0 gives 0, and a token of
weight 0 counts as absent, whatever it contains. Sums are float32 or better, whatever the type of x.
Sources: arXiv 2604.06129 (power, rotation), arXiv 2411.12663 (product).

`pom::GatedPolynomialAggregation` is the same op with the gate applied, for the modes "mean" and "causal":
    s = activation(gate + gate_bias), gate (B, T, S), gate_bias (S)   T = N in mode "causal"
    z[:, t, c] = s[:, t, c // (C / S)] * y[:, t, c]                   (B, T, C), of x's type; y's one token serves all T
Optimised exports use it, because one kernel for both makes a single pass over memory. Kernels do not round between
the aggregate and z.

For either op, with `stateful` 1 and in the modes "mean" and "causal", a call continues where earlier ones ended:
    y = (S + sum_n m_n p_n) / (epsilon + L + sum_n m_n)               (past_state, past_length) = (S, L)
past_state (B, 2, C) is S as a sum of two floats, S rounded and its rounding error, so that S keeps twice the digits of
float32 however long the sequence grows. past_length (B) is the number of tokens in it. present_state and present_length
are the same including this call's tokens; zeros are the state of no tokens. The states of disjoint sets of tokens can
be added. Mode "mean" with a state is block-causal: all tokens of a call see the whole call and everything before it. A
mask must then be bool, and masked tokens do not enter the state.

Either op is also registered under numbered names, `PolynomialAggregation_2` to `PolynomialAggregation_16`. It is the
same op under each: a node's attributes define what it computes. Nodes of one file that need different functions have
different names, since most runtimes and tools identify functions by domain and name alone.

No node leaves an input empty before one that is present (TensorRT's parser refuses that). The position of an absent
input is filled by a placeholder: a tensor of rank 1 and size 1 that is never read. Every real input has rank 2 or 3,
except `gate_bias` and `past_length`, which are always real where the op and `stateful` require them. With `stateful` 1
all inputs and outputs are present; with 0, those of the past and the present state are not.
"""

from __future__ import annotations

import json
from typing import Final

DOMAIN: Final = "pom"
OP_NAME: Final = "PolynomialAggregation"
OP_VERSION: Final = 1
# The number of an op's names, and therefore the most functions of it in a file.
NAME_COUNT: Final = 16
# The first is the op's own; the others are for further functions in the same file.
OP_NAMES: Final = (OP_NAME, *(f"{OP_NAME}_{number}" for number in range(2, NAME_COUNT + 1)))

# TensorRT's parser uses these to find a plugin; ONNX Runtime ignores both.
PLUGIN_VERSION: Final = "1"
PLUGIN_NAMESPACE: Final = ""

INPUTS: Final = ("x", "coefficients", "mask", "cos", "sin", "past_state", "past_length")
REQUIRED_INPUTS: Final = 2
# Inputs of both ops, present if `stateful` is 1.
STATE_INPUTS: Final = ("past_state", "past_length")
STATE_OUTPUTS: Final = ("present_state", "present_length")
OUTPUTS: Final = ("y", *STATE_OUTPUTS)
# In the order in which they are written to every node.
ATTRIBUTES: Final = (
    "form",
    "degree",
    "mode",
    "rotary_blocks",
    "epsilon",
    "stateful",
    "plugin_version",
    "plugin_namespace",
)

POWER: Final = "power"
PRODUCT: Final = "product"
FORMS: Final = (POWER, PRODUCT)
MODES: Final = ("mean", "causal", "features")
# The degree of form "product"; 0 in form "power", whose degree follows from the coefficients.
DEFAULT_DEGREE: Final = 0
DEFAULT_ROTARY_BLOCKS: Final = 1
MAX_ROTARY_BLOCKS: Final = 2
DEFAULT_EPSILON: Final = 0.0
DEFAULT_STATEFUL: Final = 0

GATED_OP_NAME: Final = "GatedPolynomialAggregation"
GATED_OP_NAMES: Final = (GATED_OP_NAME, *(f"{GATED_OP_NAME}_{number}" for number in range(2, NAME_COUNT + 1)))
GATED_INPUTS: Final = ("x", "gate", "gate_bias", *INPUTS[1:])
GATED_REQUIRED_INPUTS: Final = 4
GATED_OUTPUTS: Final = ("z", *STATE_OUTPUTS)
GATED_ATTRIBUTES: Final = (
    "form",
    "degree",
    "mode",
    "rotary_blocks",
    "epsilon",
    "stateful",
    "gate_activation",
    "plugin_version",
    "plugin_namespace",
)
# "hardsigmoid" is clamp(z / 6 + 1/2, 0, 1).
GATE_ACTIVATIONS: Final = ("identity", "sigmoid", "hardsigmoid")

MIN_DEGREE: Final = 1
MAX_DEGREE: Final = 16
# Without tokens, x may declare any other sizes, and its means have as many values.
MAX_MEANS_OF_NOTHING: Final = 2**27

LEAKY_SLOPE: Final = 0.01
CLAMP_LOW: Final = -0.1
CLAMP_HIGH: Final = 6.0

# Floating-point weights, and epsilon with them, are multiplied by this. It does not affect any mean, but keeps products
# with small weights, even subnormal ones, precise. If this puts a divisor beyond the limit, the mean is NaN.
WEIGHT_SCALE: Final = 2.0**24
DIVISOR_LIMIT: Final = 2.0**126
# The largest sum of a past_length and the tokens that a call adds to it.
MAX_LENGTH: Final = 2**63 - 1
_MAX_EPSILON: Final = (2 - 2.0**-23) * 2.0**127  # float32's largest


def check_attributes(
    mode: str,
    epsilon: float,
    degree: int,
    rotary_blocks: int = DEFAULT_ROTARY_BLOCKS,
    form: str = POWER,
    stateful: int = DEFAULT_STATEFUL,
) -> None:
    """Check a node's attributes as the kernels do.

    Raises:
        ValueError: one is out of range; the message names the value.
    """
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, got {form!r:.60}")
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r:.60}")
    if form == PRODUCT and not MIN_DEGREE <= degree <= MAX_DEGREE:
        raise ValueError(f'form "product" needs a degree of {MIN_DEGREE} to {MAX_DEGREE}, got {degree}')
    if form == POWER and degree != DEFAULT_DEGREE:
        raise ValueError(f'degree belongs to form "product" and must be 0 in form "power", got {degree}')
    if not 1 <= rotary_blocks <= MAX_ROTARY_BLOCKS:
        raise ValueError(f"rotary_blocks must be 1 or {MAX_ROTARY_BLOCKS}, got {rotary_blocks}")
    if not 0 <= epsilon <= _MAX_EPSILON:
        raise ValueError(f"epsilon must be finite and not negative, got {epsilon:g}")
    if stateful not in {0, 1}:
        raise ValueError(f"stateful must be 0 or 1, got {stateful}")
    if stateful and mode == "features":
        raise ValueError('mode "features" sums nothing and has no state: stateful must be 0')


def signature() -> str:
    """Return the contract as one canonical JSON line, equal to `pom_contract()` of the compiled libraries."""
    return json.dumps(
        {
            "domain": DOMAIN,
            "op": OP_NAME,
            "names": OP_NAMES,
            "version": OP_VERSION,
            "plugin_version": PLUGIN_VERSION,
            "plugin_namespace": PLUGIN_NAMESPACE,
            "inputs": INPUTS,
            "outputs": OUTPUTS,
            "attributes": ATTRIBUTES,
            "forms": FORMS,
            "modes": MODES,
            "min_degree": MIN_DEGREE,
            "max_degree": MAX_DEGREE,
            "max_rotary_blocks": MAX_ROTARY_BLOCKS,
            "leaky_slope": format(LEAKY_SLOPE, "g"),
            "clamp_low": format(CLAMP_LOW, "g"),
            "clamp_high": format(CLAMP_HIGH, "g"),
            "weight_scale": format(WEIGHT_SCALE, "g"),
            "divisor_limit": format(DIVISOR_LIMIT, "g"),
        },
        separators=(",", ":"),
    )


def gated_signature() -> str:
    """Return the contract's additions for the gated op, equal to `pom_gated_contract()` of the compiled libraries."""
    return json.dumps(
        {
            "op": GATED_OP_NAME,
            "names": GATED_OP_NAMES,
            "inputs": GATED_INPUTS,
            "outputs": GATED_OUTPUTS,
            "attributes": GATED_ATTRIBUTES,
            "gate_activations": GATE_ACTIVATIONS,
        },
        separators=(",", ":"),
    )
