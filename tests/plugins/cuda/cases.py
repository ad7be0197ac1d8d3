"""One call of the op as tests make it: a case, its tensors, and the float64 reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch

from pom_export import contract

# Numbers of pom::DataType.
TYPES = {"float32": 0, "float16": 1, "bfloat16": 2, "bool": 3}
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "bool": np.bool_}
FLOATS = ("float32", "float16", "bfloat16")
MASKS = ("none", "bool", "same")  # "same": of x's type
MASKED_MODES = [(mode, mask) for mode in ("mean", "causal") for mask in MASKS] + [("features", "none")]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Case:
    """One call. `shift`, `table_shift`: the bytes that x, gate and output, cos and sin lie off alignment.

    The mask "ragged" is that of rows padded on the right, the last one of several from its first token on.
    """

    mode: str
    dtype: str = "float32"
    shape: tuple[int, int, int] = (2, 37, 5)
    degree: int = 3
    mask: str = "none"
    mask_rows: int | None = None  # None: one a row of the batch
    coefficients: str = "float32"
    epsilon: float = 0.5
    form: str = contract.POWER
    rotation: str = "none"  # else the tables' type
    rotation_rows: int | None = None  # as mask_rows
    rotary_blocks: int = 1
    shift: int = 0
    table_shift: int = 0
    skipped_barrier: int = -1  # see cuda_emulation.h
    gate: str = "none"  # else its activation
    gate_tokens: int | None = None  # None: x's
    gates: int | None = None  # None: one a channel
    bias: str = "float32"
    past: int | None = None  # tokens that the state of a stateful call has, and one more each row

    @property
    def mask_type(self) -> str:
        return self.dtype if self.mask == "same" else "bool"


@dataclass
class Call:
    """A case and its tensors: x beyond both clamps, absent tokens in front, a causal row starts with an empty sum."""

    case: Case

    def __post_init__(self) -> None:
        case, rng = self.case, np.random.default_rng(7)
        batch, tokens, channels = case.shape
        # Of form product's 16 factors, those of a half type must not overflow.
        centre, spread = (0.5, 3.0) if case.form == contract.POWER else (1.0, 0.7)
        self.x: Array = rng.normal(centre, spread, case.shape).astype(DTYPES[case.dtype])
        self.coefficients: Array | None = None
        if case.form == contract.POWER:
            # Every power contributes about as much at the upper clamp.
            scale = contract.CLAMP_HIGH ** -np.arange(1.0, case.degree + 1)
            coefficients = rng.normal(0.3, 1.0, (channels, case.degree)) * scale
            self.coefficients = coefficients.astype(DTYPES[case.coefficients])
        self.mask: Array | None = None
        if case.mask != "none":
            shape = (batch if case.mask_rows is None else case.mask_rows, tokens)
            weights = rng.uniform(0.1, 2.0, shape) * (rng.uniform(size=shape) < 0.7)
            weights[:1, : tokens // 4] = 0.0
            if case.mask == "ragged":
                weights = np.arange(tokens) < np.linspace(0.8, 0.0, shape[0])[:, None] * tokens
            self.mask = weights.astype(DTYPES[case.mask_type])
        self.tables: list[Array] = []  # cos and sin
        if case.rotation != "none":
            rows = batch if case.rotation_rows is None else case.rotation_rows
            angles = rng.uniform(-4.0, 4.0, (rows, tokens, channels // 2))
            self.tables = [table.astype(DTYPES[case.rotation]) for table in (np.cos(angles), np.sin(angles))]
        self.gate: Array | None = None
        self.gate_bias: Array | None = None
        if case.gate != "none":
            gates = case.gates or channels
            gate_shape = (batch, tokens if case.gate_tokens is None else case.gate_tokens, gates)
            self.gate = rng.normal(0.5, 3.0, gate_shape).astype(DTYPES[case.dtype])
            self.gate_bias = rng.normal(0.0, 1.0, gates).astype(DTYPES[case.bias])
        self.past: tuple[Array, Array] | None = None  # state and length
        if case.past is not None:
            length = case.past + np.arange(batch, dtype=np.int64) * (case.past > 0)
            total = rng.normal(0.3, 1.0, (batch, channels)) * length[:, None]
            first = total.astype(np.float32)
            self.past = np.stack([first, (total - first).astype(np.float32)], axis=1), length

    def message(self) -> bytes:
        """Return what run_aggregate reads."""
        case = self.case
        mask_rows = -1 if self.mask is None else self.mask.shape[0]
        rotation_rows = self.tables[0].shape[0] if self.tables else -1
        tables_type = "float32" if case.rotation == "none" else case.rotation
        types = [TYPES[name] for name in (case.dtype, case.coefficients, case.mask_type, tables_type)]
        words = [case.form, case.mode, case.rotary_blocks, case.epsilon, *case.shape, case.degree]
        words += [mask_rows, rotation_rows, *types, case.shift, case.table_shift, case.skipped_barrier]
        if self.gate is None:
            words += [contract.GATE_ACTIVATIONS[0], -1, 0, 0]
        else:
            words += [case.gate, *self.gate.shape[1:], TYPES[case.bias]]
        words.append(int(self.past is not None))
        tensors = (self.x, self.gate, self.gate_bias, self.coefficients, self.mask, *self.tables, *(self.past or ()))
        given = [tensor.tobytes() for tensor in tensors if tensor is not None]
        return " ".join(map(str, words)).encode() + b"\n" + b"".join(given)

    @property
    def output_shape(self) -> tuple[int, int, int]:
        batch, tokens, channels = self.x.shape
        if self.gate is not None:
            return batch, self.gate.shape[1], channels
        return batch, 1 if self.case.mode == "mean" else tokens, channels

    @property
    def outputs(self) -> list[Array]:
        """Arrays of the outputs' shapes and types."""
        return [np.empty(self.output_shape, self.x.dtype), *map(np.empty_like, self.past or ())]

    def features(self) -> Array:
        """Return p in float64, and the same of absolute values."""
        x = self.x.astype(np.float64)
        if self.coefficients is None:
            chunks = np.stack(np.split(x, self.case.degree, axis=-1))
            erf = torch.erf(torch.from_numpy(chunks) / 2**0.5).numpy()
            factors = np.stack([0.5 * chunks * (1 + erf), 0.5 * abs(chunks) * (1 + abs(erf))])
            return np.concatenate(list(factors.cumprod(1).swapaxes(0, 1)), axis=-1)
        h = np.clip(np.where(x < 0, contract.LEAKY_SLOPE * x, x), contract.CLAMP_LOW, contract.CLAMP_HIGH)
        powers = h[..., None] ** np.arange(1, self.case.degree + 1) * self.coefficients.astype(np.float64)
        return self.rotated(np.stack([powers.sum(-1), abs(powers).sum(-1)]))

    def rotated(self, terms: Array) -> Array:
        """Rotate features, and bound the absolute values of the rotated."""
        if not self.tables:
            return terms
        blocks = self.case.rotary_blocks
        cos, sin = (
            np.split(np.stack([table, abs(table)]).astype(np.float64), blocks, axis=-1) for table in self.tables
        )
        halves, sign = np.split(terms, 2 * blocks, axis=-1), np.array([-1.0, 1.0]).reshape(2, 1, 1, 1)
        turned = []
        for block in range(blocks):
            first, second = halves[2 * block : 2 * block + 2]
            turned.append(first * cos[block] + sign * second * sin[block])
            turned.append(second * cos[block] + first * sin[block])
        return np.concatenate(turned, axis=-1)

    def reference(self) -> tuple[Array, Array]:
        """Return y or z in float64, and the same of absolute values: what its rounding errors are measured by."""
        y, magnitude = self.aggregate()
        if self.gate is None or self.gate_bias is None:
            return y, magnitude
        repeats = self.x.shape[2] // self.gate.shape[2]
        terms = np.stack([self.gate, np.broadcast_to(self.gate_bias, self.gate.shape)]).astype(np.float64)
        total = terms.sum(0)
        s = {"identity": total, "sigmoid": 1 / (1 + np.exp(-total)), "hardsigmoid": np.clip(total / 6 + 0.5, 0, 1)}
        error = abs(s[self.case.gate]) + abs(terms).sum(0)
        return s[self.case.gate].repeat(repeats, -1) * y, error.repeat(repeats, -1) * magnitude

    def aggregate(self) -> tuple[Array, Array]:
        """Return y, and what its rounding errors are measured by."""
        if self.case.mode == "features":
            terms = self.features()
            return terms[0], terms[1]
        terms, weights = self.weighted()
        sums, totals = terms.cumsum(2), weights.cumsum(1)
        if self.case.mode == "mean":
            sums, totals = terms.sum(2, keepdims=True), weights.sum(1, keepdims=True)
        if self.past is not None:
            total = self.past[0].astype(np.float64).sum(1, keepdims=True)
            sums, totals = sums + np.stack([total, abs(total)]), totals + self.past[1][:, None, None]
        epsilon = 0.0 if self.mask is None else self.case.epsilon
        means = np.where(totals == 0, 0.0, sums / np.where(totals == 0, 1.0, totals + epsilon))
        return means[0], means[1]

    def weighted(self) -> tuple[Array, Array]:
        """Return the weighted features and the same of absolute values, and the weights, which are (B, N, 1)."""
        terms, rows = self.features(), self.x.shape[:2]
        weights = np.ones(rows) if self.mask is None else np.broadcast_to(self.mask.astype(np.float64), rows)
        weights = weights[..., None]
        return np.where(weights == 0, 0.0, weights * terms), weights

    def present(self) -> tuple[Array, Array, Array]:
        """Return what a stateful call leaves: a sum in float64, what its errors are measured by, and a length."""
        assert self.past is not None
        state, length = self.past
        terms, weights = self.weighted()
        sums, magnitude = terms.sum(2)
        return state.astype(np.float64).sum(1) + sums, magnitude, length + weights.sum((1, 2)).astype(np.int64)
