"""FusedLayers, by programs written by hand, against float64, with every kernel that this machine can run."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pom_export import contract
from pom_export.parity.quantized.rounding import in_blocks
from pom_export.parity.tolerances import OPS, PRODUCTS_QUANTIZED
from pom_export.runtime.library import custom_ops_library
from tests.op_reference import exact
from tests.plugins.cpu_kernels import every_kernel
from tests.plugins.fused_programs import (
    AGGREGATE,
    ELEMENTWISE,
    GELU,
    GROUPS,
    LAYER_NORM,
    LINEAR,
    NONE,
    PRODUCT,
    PRODUCT8,
    RELU,
    RMS_NORM,
    SILU,
    Array,
    Node,
    Weights,
)
from tests.plugins.product_kernels import pack_groups

CAUSAL = contract.MODES.index("causal")
ACTIVATIONS = {
    LINEAR: lambda x: x,
    GELU: lambda x: x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2,
    RELU: lambda x: np.maximum(x, 0),
    SILU: lambda x: x / (1 + np.exp(-x)),
}


def drawn(*shape: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def run(node: Node, threads: int = 1) -> list[Array]:
    return node.run(custom_ops_library(), threads)


def expected_product(x: Array, weights: Weights) -> tuple[Array, Array]:
    """Return x times weights with the activations rounded, and a bound on each number's error."""
    rounded = in_blocks(x.reshape(-1, x.shape[-1]), weights.block)
    value = weights.dequantized
    # The kernels multiply numbers without a sign and correct the sum, like ONNX Runtime.
    terms = (
        np.abs(value)
        + (1 << (weights.bits - 1)) * np.repeat(weights.scales.astype(np.float64), weights.block, axis=0)[: len(value)]
    )
    bound = PRODUCTS_QUANTIZED.relative * (np.abs(rounded.values) @ terms) + rounded.either @ np.abs(value)
    return tuple(each.reshape(*x.shape[:-1], -1) for each in (rounded.values @ value, bound))


def product_node(x: Array, weights: Weights, **changes: Any) -> Node:
    inputs, outputs = weights.integers.shape
    operation = PRODUCT if weights.bits == 4 else PRODUCT8
    code = [operation, 0, 1, NONE, NONE, 2, inputs, outputs, weights.block, LINEAR, NONE]
    given = {"x": x, "weights": weights.packed()}
    return Node(given, ["weights"], [outputs], [((None, None, outputs), 0)], [code], **changes)


@every_kernel
@pytest.mark.parametrize("rows", [(1, 1), (1, 2), (2, 2), (1, 7), (1, 13), (2, 70), (1, 300)], ids=str)
@pytest.mark.parametrize("block", [16, 32, 128, 256])
@pytest.mark.parametrize("bits", [4, 8])
def test_products(rows: tuple[int, int], block: int, bits: int) -> None:
    for inputs, outputs in ((256, 16), (200, 33), (384, 130)):
        weights = Weights.random(inputs, outputs, block, bits=bits)
        x = drawn(*rows, inputs)
        (y,) = run(product_node(x, weights))
        expected, bound = expected_product(x, weights)
        assert y.shape == expected.shape
        assert (np.abs(y - expected) <= bound).all()


@every_kernel
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("tokens", [1, 5, 40])
def test_what_follows_a_product(activation: int, tokens: int) -> None:
    weights = Weights.random(96, 40, 32)
    x, bias, added = drawn(2, tokens, 96), drawn(40, seed=2), drawn(2, tokens, 40, seed=3)
    code = [PRODUCT, 0, 1, 2, 3, 4, 96, 40, 32, activation, 0]
    given = {"x": x, "weights": weights.packed(), "bias": bias, "added": added}
    (y,) = run(Node(given, ["weights", "bias"], [40], [((None, None, 40), 0)], [code], [0.75]))
    product, bound = expected_product(x, weights)
    expected = ACTIVATIONS[activation](product + bias) * 0.75 + added
    # No activation is steeper than 1.13, and the sums are rounded too.
    assert (np.abs(y - expected) <= 1.13 * bound + OPS["float32"].relative * (np.abs(expected) + 1)).all()


@every_kernel
@pytest.mark.parametrize("tokens", [1, 3, 50, 140])
def test_groups(tokens: int) -> None:
    for groups, inputs, outputs in ((3, 8, 16), (2, 5, 21), (12, 64, 48)):
        x, weights = drawn(2, tokens, groups * inputs), drawn(groups, outputs, inputs, seed=2)
        bias, added = drawn(groups * outputs, seed=3), drawn(2, tokens, groups * outputs, seed=4)
        code = [GROUPS, 0, 1, 2, 3, 4, groups, inputs, outputs, GELU, 0]
        given = {"x": x, "weights": pack_groups(weights), "bias": bias, "added": added}
        width = groups * outputs
        (y,) = run(Node(given, ["weights", "bias"], [width], [((None, None, width), 0)], [code], [0.5]))
        split = x.reshape(2, tokens, groups, inputs).astype(np.float64)
        product = np.einsum("btgi,goi->btgo", split, weights.astype(np.float64)).reshape(2, tokens, width)
        size = np.einsum("btgi,goi->btgo", np.abs(split), np.abs(weights)).reshape(2, tokens, width)
        expected = ACTIVATIONS[GELU](product + bias) * 0.5 + added
        bound = OPS["float32"].relative * (size + np.abs(bias) + np.abs(added))
        assert (np.abs(y - expected) <= bound).all()


@every_kernel
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_norms(offset: float) -> None:
    for tokens, width in ((1, 768), (5, 33), (100, 130)):
        x, gain, bias = drawn(2, tokens, width) + np.float32(offset), drawn(width, seed=2), drawn(width, seed=3)
        codes = [
            [RMS_NORM, 0, 1, 3, width, 0],
            [RMS_NORM, 0, NONE, 4, width, 0],
            [LAYER_NORM, 0, 1, 2, 5, width, 0],
            [LAYER_NORM, 0, NONE, NONE, 6, width, 0],
        ]
        outputs = [((None, None, width), slot) for slot in range(4)]
        given = {"x": x, "gain": gain, "bias": bias}
        found = run(Node(given, ["gain", "bias"], [width] * 4, outputs, codes, [1e-5]))
        wide = x.astype(np.float64)
        by_root = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-5)
        centred = wide - wide.mean(-1, keepdims=True)
        by_deviation = centred / np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
        wanted = [by_root * gain, by_root, by_deviation * gain + bias, by_deviation]
        for y, expected in zip(found, wanted, strict=True):
            # The offset's last digits are lost in the difference from the mean.
            bound = OPS["float32"].relative * (np.abs(expected) + 1) * (1 + offset)
            assert (np.abs(y - expected) <= bound).all()


@every_kernel
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_elementwise(activation: int) -> None:
    x, multiplied, added = (4 * drawn(2, 9, 37, seed=seed) for seed in (1, 2, 3))
    codes = [
        [ELEMENTWISE, 0, 1, 2, 3, 37, activation, 0],
        [ELEMENTWISE, 0, NONE, NONE, 4, 37, activation, NONE],
    ]
    outputs = [((None, None, 37), slot) for slot in range(2)]
    node = Node({"x": x, "multiplied": multiplied, "added": added}, [], [37, 37], outputs, codes, [-0.5])
    both, alone = run(node)
    activated = ACTIVATIONS[activation](x.astype(np.float64))
    bound = OPS["float32"].relative
    assert (np.abs(alone - activated) <= bound * (np.abs(activated) + 1)).all()
    expected = activated * multiplied * -0.5 + added
    size = np.abs(activated * multiplied) + np.abs(added) + np.abs(multiplied)
    assert (np.abs(both - expected) <= bound * size).all()


def layer(batch: int, tokens: int, past: int) -> tuple[Node, dict[str, Array]]:
    """Return a layer as models have them, with its constants: norm, projection, aggregation, product, residual sum."""
    width, channels, gates = 32, 96, 12
    weights = {"gate": Weights.random(width, gates, 32, 5), "out": Weights.random(channels, width, 32, 6)}
    stored = {
        "projection": drawn(4, channels // 4, width // 4, seed=7),
        "gate_bias": drawn(gates, seed=8),
        "coefficients": drawn(channels, 3, seed=9),
    }
    state = np.stack([10 * drawn(batch, channels, seed=10), 1e-7 * drawn(batch, channels, seed=11)], 1)
    given = {
        "x": drawn(batch, tokens, width),
        "projection": pack_groups(stored["projection"]),
        "gate": weights["gate"].packed(),
        "gate_bias": stored["gate_bias"],
        "coefficients": stored["coefficients"],
        "none": np.zeros(1, np.float32),
        "past_state": state,
        "past_length": np.arange(past, past + batch),
        "out": weights["out"].packed(),
    }
    constants = ["projection", "gate", "gate_bias", "coefficients", "none", "out"]
    normed, projected, gate, mixed, y = range(len(given), len(given) + 5)
    op_inputs = [projected, gate, 3, 4, 5, 5, 5, 6, 7]
    codes = [
        [RMS_NORM, 0, NONE, normed, width, 0],
        [GROUPS, normed, 1, NONE, NONE, projected, 4, width // 4, channels // 4, LINEAR, NONE],
        [PRODUCT, normed, 2, NONE, NONE, gate, width, gates, 32, LINEAR, NONE],
        [AGGREGATE, mixed, 1, 2, 1, 0, 0, CAUSAL, 1, 1, 1, NONE, 0, 0, *op_inputs],
        [PRODUCT, mixed, 8, NONE, 0, y, channels, width, 32, LINEAR, 1],
    ]
    outputs = [((None, None, width), 4), ((None, 2, channels), NONE), ((None,), NONE)]
    node = Node(given, constants, [width, channels, gates, channels, width], outputs, codes, [1e-5, 0.5])
    return node, {**stored, **{name: each.dequantized for name, each in weights.items()}}


@every_kernel
@pytest.mark.parametrize(("batch", "tokens", "threads"), [(1, 1, 1), (3, 1, 2), (2, 70, 2), (1, 0, 1), (0, 3, 1)])
def test_a_layer(batch: int, tokens: int, threads: int) -> None:
    node, weights = layer(batch, tokens, 5)
    y, state, length = run(node, threads)
    given = node.inputs
    x = given["x"].astype(np.float64)
    normed = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
    projected = np.einsum("btgi,goi->btgo", normed.reshape(batch, tokens, 4, 8), weights["projection"])
    rounded = in_blocks(normed.reshape(-1, 32).astype(np.float32), 32).values.reshape(normed.shape)
    call = {
        "x": projected.reshape(batch, tokens, 96),
        "gate": rounded @ weights["gate"],
        "gate_bias": given["gate_bias"],
        "coefficients": given["coefficients"],
        "past_state": given["past_state"],
        "past_length": given["past_length"],
    }
    attributes = {"mode": "causal", "form": "power", "stateful": 1, "gate_activation": "sigmoid"}
    expected = exact(call, attributes)
    assert y.shape == (batch, tokens, 32)
    assert length.tolist() == (given["past_length"] + tokens).tolist()
    np.testing.assert_allclose(state.astype(np.float64).sum(1), expected.state, rtol=1e-5, atol=1e-4)
    mixed = expected.y.reshape(-1, 96).astype(np.float32)
    product = in_blocks(mixed, 32).values.reshape(batch, tokens, 96) @ weights["out"]
    wanted = product * 0.5 + x
    # What comes before the second rounding differs in its last digits, so some numbers are rounded to a neighbour.
    steps = np.abs(mixed).max(initial=0.0) / 127 * np.abs(weights["out"]).max(initial=0.0) * 4
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=max(steps, 1e-5))


@pytest.mark.parametrize(("batch", "tokens"), [(1, 1), (3, 40)])
def test_the_states_of_all_layers_in_one_tensor(batch: int, tokens: int) -> None:
    node, _ = layer(batch, tokens, 5)
    y, state, _ = run(node)
    past = node.inputs["past_state"]
    whole = np.full((batch, 3, *past.shape[1:]), 1e30, np.float32)
    whole[:, 1] = past
    codes = [list(code) for code in node.instructions]
    codes[3][12:14] = [3, 1]
    outputs = [node.outputs[0], ((None, 3, *past.shape[1:]), NONE), node.outputs[2]]
    stacked = replace(node, inputs={**node.inputs, "past_state": whole}, instructions=codes, outputs=outputs)
    found, states, _ = run(stacked)
    np.testing.assert_array_equal(found, y)
    np.testing.assert_array_equal(states[:, 1], state)
    refused(replace(stacked, inputs={**stacked.inputs, "past_state": whole[:, :2]}), "the states of 3 layers must be")


@pytest.mark.parametrize("threads", [2, 4])
def test_threads_do_not_change_a_bit(threads: int) -> None:
    node, _ = layer(2, 1100, 3)  # several tiles of the aggregation
    for _ in range(3):
        for one, several in zip(run(node, 1), run(node, threads), strict=True):
            np.testing.assert_array_equal(one, several)


@every_kernel
@pytest.mark.parametrize("bits", [4, 8])
def test_a_number_that_is_not_finite_is_not_hidden(bits: int) -> None:
    weights = Weights.random(64, 20, 32, bits=bits)
    for bad in (np.nan, np.inf, -np.inf):
        x = drawn(1, 3, 64)
        x[0, 1, 40] = bad
        (y,) = run(product_node(x, weights))
        assert np.isnan(y[0, 1]).all()
        assert np.isfinite(y[0, [0, 2]]).all()


def refused(node: Node, message: str) -> None:
    with pytest.raises(Exception, match=message):
        run(node)


def test_programs_that_are_wrong() -> None:
    weights = Weights.random(64, 20, 32)
    node = product_node(drawn(1, 3, 64), weights)
    (code,) = node.instructions
    for position, value in ((1, 3), (2, 2), (5, 0), (9, 7), (10, 4)):
        changed = [*code[:position], value, *code[position + 1 :]]
        refused(replace(node, instructions=[changed]), "the program has")
    refused(replace(node, version=9), "the program is of version 9, this library reads 2")
    refused(replace(node, widths=[21]), "uses a slot of 21 columns for 20")
    refused(replace(node, instructions=[code[:-1]]), "the program (has an instruction|ends)")
    refused(replace(node, instructions=[[9, 1]]), "an unknown operation, 9")
    short = {**node.inputs, "weights": weights.packed()[:-1]}
    refused(replace(node, inputs=short), f"input 1 must have {weights.packed().size} elements")
    refused(replace(node, constants=[]), "input 1 must be constant")
    narrow = {**node.inputs, "x": node.inputs["x"][..., :63]}
    refused(replace(node, inputs=narrow), "input 0 must be float32 and .batch, tokens, 64")
