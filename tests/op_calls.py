"""One call of the op as the tests make it: a case, its tensors, its node, and the check of its outputs."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from pom_export import contract
from pom_export.parity.tolerances import OPS, Tolerance
from tests.op_reference import Exact, exact

Array = npt.NDArray[Any]
Arrays = dict[str, Array]

BFLOAT16 = ml_dtypes.bfloat16
DTYPES: dict[str, Any] = {"float32": np.float32, "float16": np.float16, "bfloat16": BFLOAT16, "bool": np.bool_}
FLOATS = ("float32", "float16", "bfloat16")
MASKS = ("none", "bool", "same")  # "same": of x's type
MASKED_MODES = [(mode, mask) for mode in ("mean", "causal") for mask in MASKS] + [("features", "none")]
TOKEN_AXES = {"x": 1, "gate": 1, "mask": 1, "cos": -2, "sin": -2}
"""Where the tokens are among an input's axes."""
_REMEMBERED = 8


@dataclass(frozen=True)
class Case:
    """One call.

    `shift` and `table_shift` are how many bytes x, gate and output, or cos and sin, are off alignment. The mask
    "ragged" is that of rows padded on the right; the last of several rows is padded from its first token on.
    """

    mode: str
    dtype: str = "float32"
    shape: tuple[int, int, int] = (2, 37, 5)
    degree: int = 3
    mask: str = "none"
    mask_rows: int | None = None  # None: one per row of the batch
    coefficients: str = "float32"
    epsilon: float = 0.5
    form: str = contract.POWER
    rotation: str = "none"  # else the tables' type; "same" is x's type
    rotation_rows: int | None = None  # like mask_rows
    rotary_blocks: int = 1
    shift: int = 0
    table_shift: int = 0
    skipped_barrier: int = -1  # see cuda_emulation.h
    gate: str = "none"  # else the gate's activation
    gate_tokens: int | None = None  # None: as many as x has
    gates: int | None = None  # None: one per channel
    bias: str = "float32"
    past: int | None = None  # tokens in the state of a stateful call's first row; each further row has one more
    seed: int = 7

    @property
    def mask_type(self) -> str:
        return self.dtype if self.mask == "same" else "bool"

    @property
    def table_type(self) -> str:
        return self.dtype if self.rotation == "same" else self.rotation

    @property
    def unit(self) -> int:
        """Return how many channels are computed together."""
        if self.form == contract.PRODUCT:
            return self.degree
        return 1 if self.rotation == "none" else 2 * self.rotary_blocks

    def attributes(self) -> dict[str, Any]:
        """Return the node's attributes, except those that follow from its inputs."""
        values = {"mode": self.mode, "form": self.form, "epsilon": self.epsilon, "rotary_blocks": self.rotary_blocks}
        values |= {
            "degree": self.degree if self.form == contract.PRODUCT else 0,
            "stateful": int(self.past is not None),
        }
        return values if self.gate == "none" else values | {"gate_activation": self.gate}


@dataclass
class Call:
    """A case and its tensors: x exceeds both clamps, and the first tokens are masked, so causal sums start empty."""

    case: Case

    def __post_init__(self) -> None:
        case, rng = self.case, np.random.default_rng(self.case.seed)
        batch, tokens, channels = case.shape
        self.x: Array = _draw_x(case, rng).astype(DTYPES[case.dtype])
        self.coefficients: Array | None = None
        if case.form == contract.POWER:
            # Scaled so that every power contributes about as much at the upper clamp.
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
            self.tables = [table.astype(DTYPES[case.table_type]) for table in (np.cos(angles), np.sin(angles))]
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

    def feeds(self) -> Arrays:
        """Return a node's inputs, with placeholders for absent ones; tables of a single row have no batch axis."""
        placeholder = np.full(1, np.nan, np.float32)
        given = {"x": self.x, "gate": self.gate, "gate_bias": self.gate_bias, "mask": self.mask}
        given["coefficients"] = placeholder if self.coefficients is None else self.coefficients
        tables = [table[0] if table.shape[0] == 1 else table for table in self.tables]
        given |= dict(zip(("cos", "sin"), tables, strict=False))
        if self.past is not None:
            absent = {"mask": np.ones(1, np.bool_), "cos": placeholder, "sin": placeholder}
            given |= {name: array for name, array in absent.items() if given.get(name) is None}
            given |= dict(zip(contract.STATE_INPUTS, self.past, strict=True))
        elif self.tables and self.mask is None:
            given["mask"] = placeholder
        return {name: array for name, array in given.items() if array is not None}

    @property
    def output_shape(self) -> tuple[int, int, int]:
        batch, tokens, channels = self.x.shape
        if self.gate is not None:
            return batch, self.gate.shape[1], channels
        return batch, 1 if self.case.mode == "mean" else tokens, channels

    @property
    def outputs(self) -> list[Array]:
        """Empty arrays of the outputs' shapes and types."""
        return [np.empty(self.output_shape, self.x.dtype), *map(np.empty_like, self.past or ())]

    def exact(self) -> Exact:
        """Return the outputs in float64."""
        return exact(self.feeds(), self.case.attributes())

    def check(self, outputs: Sequence[Array], tolerance: Tolerance | None = None, by: str = "") -> None:
        """Compare every element of the outputs, which `by` computed, with float64."""
        what = f"{by} {self.case}".lstrip()
        check(outputs, self.feeds(), self.case.attributes(), tolerance or OPS[self.case.dtype], what)


def _draw_x(case: Case, rng: np.random.Generator) -> Array:
    if case.form == contract.POWER:
        x = rng.normal(0.5, 3.0, case.shape)
        x[..., ::3] *= 8
        return x
    # The product of 16 factors must not overflow a half type.
    return rng.normal(1.0, 2.0 if case.degree <= 3 else 0.7, case.shape)


def check(
    outputs: Sequence[Array],
    given: Mapping[str, Array],
    attributes: Mapping[str, Any],
    tolerance: Tolerance | None = None,
    what: object = "",
) -> None:
    """Compare every element with float64, relative to the size of its own terms, not to the largest output.

    A state is as exact as this call's sum, within the digits that two floats hold.
    """
    want = _exact(given, attributes)
    y, *present = outputs
    bound = tolerance or OPS[str(y.dtype)]
    assert y.shape == want.y.shape, what
    errors = abs(y.astype(np.float64) - want.y)  # a NaN is within no bound
    assert (errors <= bound.absolute + bound.relative * want.size).all(), (what, errors.max())
    if present:
        state, length = present
        np.testing.assert_array_equal(length, want.length, str(what))
        made = state.astype(np.float64).sum(1)
        errors = abs(made - want.state)
        allowed = OPS["float32"].relative * want.state_size + 2**-45 * (want.past_size + want.state_size)
        assert (errors <= allowed).all(), (what, errors.max())
        np.testing.assert_array_equal(state[:, 0], made.astype(np.float32), str(what))


_found: OrderedDict[bytes, Exact] = OrderedDict()


def _exact(given: Mapping[str, Array], attributes: Mapping[str, Any]) -> Exact:
    """Return a call's exact outputs, computed once for several kernels in a row."""
    key = hashlib.blake2b(repr(sorted(attributes.items())).encode())
    for name, array in sorted(given.items()):
        key.update(f"{name} {array.dtype} {array.shape}".encode())
        key.update(np.ascontiguousarray(array).view(np.uint8))
    if (found := _found.get(key.digest())) is None:
        found = _found[key.digest()] = exact(given, attributes)
        if len(_found) > _REMEMBERED:
            _found.popitem(last=False)
    return found


def tokens_of(given: Mapping[str, Array], begin: int, end: int) -> Arrays:
    """Return the inputs of a range of tokens."""
    return {
        name: array.take(range(begin, end), axis=TOKEN_AXES[name]) if name in TOKEN_AXES and array.ndim > 1 else array
        for name, array in given.items()
    }


def model(
    feeds: Mapping[str, Array],
    attributes: Mapping[str, Any],
    functions: tuple[onnx.FunctionProto, ...] = (),
    constants: Collection[str] = (),
) -> onnx.ModelProto:
    """Return a model that takes `feeds`; its node has those inputs, and empty names for the ones in between.

    The node is the gated op's if the feeds contain a gate. Bfloat16 goes in and out as float32, since NumPy has no
    bfloat16 of its own.
    """
    gated = "gate" in feeds
    signature = contract.GATED_INPUTS if gated else contract.INPUTS
    last = max(signature.index(name) for name in feeds)
    narrow = [name for name, array in feeds.items() if array.dtype == BFLOAT16]
    node_name = {name: f"{name}_narrow" if name in narrow else name for name in feeds}
    inputs, initializers = [], []
    for name, array in feeds.items():
        kind = TensorProto.FLOAT if name in narrow else helper.np_dtype_to_tensor_dtype(array.dtype)
        if name in constants:
            initializers.append(numpy_helper.from_array(array, node_name[name]))
        else:
            sizes = [f"{name}{axis}" for axis in range(array.ndim)]
            inputs.append(helper.make_tensor_value_info(name, kind, sizes))
    nodes = [
        helper.make_node("Cast", [name], [node_name[name]], to=TensorProto.BFLOAT16)
        for name in narrow
        if name not in constants
    ]
    names = [node_name.get(name, "") for name in signature[: last + 1]]
    op = contract.GATED_OP_NAME if gated else contract.OP_NAME
    y = "y_narrow" if "x" in narrow else "y"
    present = list(contract.STATE_OUTPUTS) if "past_state" in feeds else []
    nodes.append(helper.make_node(op, names, [y, *present], domain=contract.DOMAIN, **attributes))
    if "x" in narrow:
        nodes.append(helper.make_node("Cast", [y], ["y"], to=TensorProto.FLOAT))
    outputs = [helper.make_tensor_value_info("y", inputs[0].type.tensor_type.elem_type, None)]
    for name, kind in zip(present, (TensorProto.FLOAT, TensorProto.INT64), strict=False):
        outputs.append(helper.make_tensor_value_info(name, kind, None))
    return helper.make_model(
        helper.make_graph(nodes, "one_node", inputs, outputs, initializers),
        functions=functions,
        opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid(contract.DOMAIN, contract.OP_VERSION)],
        ir_version=10,
    )
