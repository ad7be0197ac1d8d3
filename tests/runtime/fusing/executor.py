"""The programs of fused nodes, run in NumPy, with which the graph's rewriting is checked without our library.

It is written from the encoding's description, reads nothing of the package's that writes programs, and unpacks weights
number by number.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from tests.op_reference import exact

Array = npt.NDArray[Any]
ACTIVATIONS: Sequence[Callable[[Array], Array]] = (
    lambda x: x,
    lambda x: 0.5 * x * (1 + torch.special.erf(torch.from_numpy(x) / 2**0.5).numpy()),
    lambda x: np.maximum(x, 0),
    lambda x: x / (1 + np.exp(-x)),
)
FORMS, MODES = ("power", "product"), ("mean", "causal", "features")
GATES = ("identity", "sigmoid", "hardsigmoid")
NAMES = ("coefficients", "mask", "cos", "sin", "past_state", "past_length")
TILE = 16


def run_program(numbers: Sequence[int], constants: Sequence[float], inputs: Sequence[Array]) -> list[Array]:
    """Return the outputs of a fused node."""
    program = _Program(list(numbers), list(constants), list(inputs))
    program.run()
    return program.outputs()


class _Program:
    def __init__(self, numbers: list[int], constants: list[float], inputs: list[Array]) -> None:
        version, slots, outputs = numbers[:3]
        assert version == 2
        self.widths = numbers[3 : 3 + slots]
        self.written = numbers[3 + slots : 3 + slots + outputs]
        self.code = numbers[3 + slots + outputs :]
        self.constants = constants
        self.inputs = inputs
        self.values: list[Array | None] = [*inputs, *(None for _ in range(slots))]
        self.states: dict[int, Array] = {}

    def outputs(self) -> list[Array]:
        return [self.states[i] if value < 0 else self._value(value) for i, value in enumerate(self.written)]

    def run(self) -> None:
        products = [functools.partial(self._product, bits) for bits in (4, 8)]
        others = self._grouped, self._rms, self._layer_norm, self._elementwise, self._aggregate
        kinds = (None, products[0], *others, products[1])
        at = 0
        while at < len(self.code):
            opcode, length = self.code[at : at + 2]
            kind = kinds[opcode]
            assert kind is not None
            kind(self.code[at + 2 : at + 2 + length])
            at += 2 + length

    def _value(self, number: int) -> Array:
        value = self.values[number]
        assert value is not None, f"value {number} is read before it is written"
        return value

    def _maybe(self, number: int) -> Array | None:
        return None if number < 0 else self._value(number)

    def _activation(self, number: int, width: int) -> Array:
        value = self._value(number)
        assert value.ndim == 3
        assert (value.shape[-1], value.dtype) == (width, np.float32)
        return value

    def _write(self, slot: int, array: Array, reads: Sequence[int] = ()) -> None:
        assert slot not in reads, "it overwrites what it reads"
        assert array.shape[-1] == self.widths[slot - len(self.inputs)]
        self.values[slot] = array.astype(np.float32)

    def _factor(self, index: int) -> float:
        return 1.0 if index < 0 else self.constants[index]

    def _end(self, total: Array, bias: int, activation: int, factor: int, added: int) -> Array:
        if bias >= 0:
            assert self._value(bias).shape == total.shape[-1:]
            total = total + self._value(bias)
        total = ACTIVATIONS[activation](total) * self._factor(factor)
        return total if added < 0 else total + self._activation(added, total.shape[-1])

    def _product(self, bits: int, given: list[int]) -> None:
        x, weights, bias, added, y, inner, width, block, activation, factor = given
        matrix = unpack_product(self._value(weights), inner, width, block, bits)
        rows = rounded(self._activation(x, inner), block)
        self._write(y, self._end(rows @ matrix, bias, activation, factor, added), [x])

    def _grouped(self, given: list[int]) -> None:
        x, weights, bias, added, y, groups, inner, width, activation, factor = given
        tiles = self._value(weights)
        assert tiles.shape == (groups, -(-width // TILE), inner, TILE)
        matrix = tiles.transpose(0, 2, 1, 3).reshape(groups, inner, -1).astype(np.float64)
        assert not matrix[..., width:].any()
        rows = self._activation(x, groups * inner).astype(np.float64)
        parts = [part @ matrix[g, :, :width] for g, part in enumerate(np.split(rows, groups, axis=-1))]
        self._write(y, self._end(np.concatenate(parts, axis=-1), bias, activation, factor, added), [x])

    def _rms(self, given: list[int]) -> None:
        x, gain, y, width, epsilon = given
        rows = self._activation(x, width).astype(np.float64)
        scale = np.sqrt((rows**2).mean(-1, keepdims=True) + self.constants[epsilon])
        self._write(y, rows / scale * (1 if gain < 0 else self._value(gain)), [x])

    def _layer_norm(self, given: list[int]) -> None:
        x, gain, bias, y, width, epsilon = given
        rows = self._activation(x, width).astype(np.float64)
        rows = rows - rows.mean(-1, keepdims=True)
        scale = np.sqrt((rows**2).mean(-1, keepdims=True) + self.constants[epsilon])
        rows = rows / scale * (1 if gain < 0 else self._value(gain))
        self._write(y, rows + (0 if bias < 0 else self._value(bias)), [x])

    def _elementwise(self, given: list[int]) -> None:
        x, multiplied, added, y, width, activation, factor = given
        total = ACTIVATIONS[activation](self._activation(x, width).astype(np.float64))
        if multiplied >= 0:
            total = total * self._activation(multiplied, width)
        self._write(y, self._end(total, -1, 0, factor, added), [x, multiplied])

    def _aggregate(self, given: list[int]) -> None:
        y, state, length, gated, degree, form, mode, blocks, stateful, activation, epsilon, *rest = given
        layers, layer, *values = rest
        names = ("x", *(("gate", "gate_bias") if gated else ()), *NAMES)
        assert len(values) == len(names)
        inputs = {name: self._value(value) for name, value in zip(names, values, strict=True) if value >= 0}
        if layers:
            assert inputs["past_state"].shape[1] == layers
            inputs["past_state"] = inputs["past_state"][:, layer]
        attributes = {
            "degree": degree, "form": FORMS[form], "mode": MODES[mode], "rotary_blocks": blocks, "stateful": stateful,
            "gate_activation": GATES[activation], "epsilon": self.constants[epsilon],
        }  # fmt: skip
        found = exact(inputs, attributes)
        self._write(y, found.y, values)
        assert (state >= 0) == (length >= 0) == bool(stateful)
        if stateful:
            high = found.state.astype(np.float32)
            written = np.stack([high, (found.state - high).astype(np.float32)], axis=1)
            if layers:
                batch, *one = written.shape
                self.states.setdefault(state, np.full((batch, layers, *one), np.nan, np.float32))[:, layer] = written
            else:
                self.states[state] = written
            self.states[length] = found.length


def unpack_product(packed: Array, inner: int, width: int, block: int, bits: int) -> Array:
    """Return packed weights as a matrix of float64, (inner, width)."""
    blocks, tiles = -(-inner // block), -(-width // TILE)
    assert (packed.dtype, packed.shape) == (np.uint8, (tiles * blocks * (64 + block * 2 * bits),))
    matrix = np.zeros((blocks * block, tiles * TILE))
    parts = packed.reshape(tiles, blocks, -1)
    count = 8 // bits  # weights of a byte
    for tile in range(tiles):
        for b in range(blocks):
            scales = parts[tile, b, :64].view(np.float32)
            chunks = parts[tile, b, 64:].reshape(block // (4 * count), TILE, 4)
            for c, chunk in enumerate(chunks):
                for i in range(4):
                    for high in range(count):
                        numbers = (chunk[:, i] >> (4 * high)) & ((1 << bits) - 1)
                        row = b * block + 4 * count * c + 4 * high + i
                        value = (numbers.astype(np.float64) - (1 << (bits - 1))) * scales
                        matrix[row, tile * TILE : (tile + 1) * TILE] = value
    assert not matrix[:, width:].any()
    return matrix[:inner, :width]


def rounded(x: Array, block: int) -> Array:
    """Return activations rounded to -127 to 127 times a scale for each row's block, in float64."""
    inner = x.shape[-1]
    blocks = -(-inner // block)
    parts = np.zeros((*x.shape[:-1], blocks * block), np.float32)
    parts[..., :inner] = x
    parts = parts.reshape(*x.shape[:-1], blocks, block)
    peaks = np.abs(parts).max(-1, keepdims=True)
    inverse = np.divide(np.float32(127), peaks, out=np.zeros_like(peaks), where=peaks > 0)
    whole = np.rint(parts * inverse).astype(np.float64) * (peaks / np.float32(127))
    return whole.reshape(*x.shape[:-1], -1)[..., :inner]


class FusedLayers(OpRun):  # type: ignore[misc]
    """The fused node, for onnx's evaluator of graphs."""

    op_domain = "pom.runtime"

    def _run(self, *inputs: Array, program: Sequence[int] = (), constants: Sequence[float] = ()) -> tuple[Array, ...]:
        return tuple(run_program(program, constants, inputs))


def run_graph(model: onnx.ModelProto, feed: dict[str, Array]) -> dict[str, Array]:
    """Return the outputs of a rewritten graph by name: the program in NumPy, the rest in onnx's evaluator."""
    evaluator = ReferenceEvaluator(model, new_ops=[FusedLayers])
    return dict(zip(evaluator.output_names, evaluator.run(None, feed), strict=True))
