"""The contract of the custom op `pom::PolynomialAggregation`: the one place where its names and limits live.

Every executor (torch op, ONNX function, ONNX Runtime kernel, TensorRT plugin) reads the op from here or, in
C++, from `plugins/include/pom/contract.h`; a test compares `signature()` with what the compiled libraries say.

    h = clamp(leaky_relu(x, LEAKY_SLOPE), CLAMP_LOW, CLAMP_HIGH)      (B, N, C)
    p = sum_{j=1..K} coefficients[:, j-1] * h^j                       (B, N, C)
    y = sum_n m_n p_n / (epsilon + sum_n m_n)                         (B, 1, C)  mode "mean"
        the same over the tokens 0..i, for every token i              (B, N, C)  mode "causal"
        p                                                             (B, N, C)  mode "features"

Without a mask every m_n is 1 and epsilon is not added. A row whose weights sum to 0 gives 0, and a token of
weight 0 counts as absent, whatever it holds. Sums are float32 or better whatever x's type. Source: arXiv 2604.06129.
"""

from __future__ import annotations

import json
from typing import Final

DOMAIN: Final = "pom"
OP_NAME: Final = "PolynomialAggregation"
OP_VERSION: Final = 1

# What TensorRT's parser looks a plugin up by; ONNX Runtime ignores both.
PLUGIN_VERSION: Final = "1"
PLUGIN_NAMESPACE: Final = ""

INPUTS: Final = ("x", "coefficients", "mask")
REQUIRED_INPUTS: Final = 2
OUTPUTS: Final = ("y",)
# In the order in which they are written on every node.
ATTRIBUTES: Final = ("form", "mode", "rotary_blocks", "epsilon", "plugin_version", "plugin_namespace")

FORMS: Final = ("power",)
MODES: Final = ("mean", "causal", "features")
ROTARY_BLOCKS: Final = 1
DEFAULT_EPSILON: Final = 0.0

MIN_DEGREE: Final = 1
MAX_DEGREE: Final = 16

LEAKY_SLOPE: Final = 0.01
CLAMP_LOW: Final = -0.1
CLAMP_HIGH: Final = 6.0


def signature() -> str:
    """Return the contract as one canonical JSON line, equal to `pom_contract()` of the compiled libraries."""
    return json.dumps(
        {
            "domain": DOMAIN,
            "op": OP_NAME,
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
            "leaky_slope": format(LEAKY_SLOPE, "g"),
            "clamp_low": format(CLAMP_LOW, "g"),
            "clamp_high": format(CLAMP_HIGH, "g"),
        },
        separators=(",", ":"),
    )
