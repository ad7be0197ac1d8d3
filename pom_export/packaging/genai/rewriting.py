"""Give a stateful language model the inputs and outputs that onnxruntime-genai looks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from pom_export.graph.exported_model import METADATA_PREFIX, PAST_LENGTH, STATEFUL, present_name
from pom_export.graph.nodes import add_constant
from pom_export.packaging.genai.layout import UNUSED_CACHE, Layout, Slot
from pom_export.runtime.streaming.interface import MASK

POSITIONS: Final = "position_ids"
LOGITS: Final = "logits"
_PREFIX: Final = "genai"
# Names of nodes that fail. ONNX Runtime's message begins with them.
SKIPPED: Final = "a_token_was_left_out__call_get_logits_before_append_tokens"
UNKNOWN: Final = "an_id_is_not_in_the_vocabulary__prompts_of_different_lengths_need_a_model_with_a_padding_mask"
_COUNT: Final = np.dtype(np.int64)
# Its weights are a matrix too, stored as blocks.
_QUANTIZED: Final = "MatMulNBits"
_PRODUCTS: Final = ("MatMul", _QUANTIZED)
_MATRIX: Final = 2
# Claims about inputs and outputs, which are not the original's.
_CLAIMS: Final = (STATEFUL, "limits")


def rewrite(model: ir.Model, layout: Layout) -> None:
    """Give a model the interface of a layout.

    - The state is in two tensors. onnxruntime-genai has an output written to the memory of its input, so nothing may
      be written before all is read: one node reads the input, and what writes the output depends on that node.
    - The position of a call's first token must be the number of tokens that the state has seen. It is not if a
      generated token was skipped, which onnxruntime-genai does when tokens are appended: then the call fails.
    - The first id after the vocabulary is padding, which is masked if the model has a mask; with it otherwise, and with
      other ids that the model does not have, the call fails.
    - A model without caches gets one of a fixed size, since onnxruntime-genai refuses beam search for these: it would
      not move the state with the beams, and go on with wrong numbers.
    - Only the logits of each sequence's last token come out, with a value for padding, which is never the best.
    """
    _Rewriting(model, layout).apply()


class _Rewriting:
    """The edits of one graph, in which `_new` collects nodes until they are inserted."""

    def __init__(self, model: ir.Model, layout: Layout) -> None:
        self._model = model
        self._graph = model.graph
        self._layout = layout
        self._inputs = {str(value.name): value for value in model.graph.inputs}
        self._outputs = {str(value.name): value for value in model.graph.outputs}
        self._new: list[ir.Node] = []

    def apply(self) -> None:
        first = self._graph[0]
        batch, tokens = self._layout.model.tokens.axes[:2]
        ids = self._inputs[self._layout.model.tokens.name]
        positions = _value(POSITIONS, ir.DataType.INT64, [batch, tokens])
        valid = self._check_ids(ids)
        position = self._node("Gather", [positions, self._number(0)], "position", axis=1)
        pasts = {slot.name: self._read(slot, position, batch) for slot in self._layout.slots}
        self._place_length(pasts, position, valid)
        self._graph.insert_before(first, self._take_new())
        presents = [self._write(slot, pasts[slot.name][1], batch) for slot in self._layout.slots]
        logits = self._last_logits(valid, batch)
        unused = [self._unused_cache(name, batch) for name in self._layout.unused_caches]
        self._graph.extend(self._take_new())
        caches = [part.spec.name for part in self._layout.caches]
        self._graph.inputs[:] = [
            ids,
            positions,
            *(pasts[slot.name][0] for slot in self._layout.slots),
            *(self._inputs[name] for name in caches),
            *(given for given, _ in unused),
        ]
        kept = [self._outputs[part.present] for part in self._layout.caches]
        self._graph.outputs[:] = [logits, *presents, *kept, *(written for _, written in unused)]
        for claim in _CLAIMS:
            self._model.metadata_props.pop(f"{METADATA_PREFIX}{claim}", None)

    def _check_ids(self, ids: ir.Value) -> ir.Value:
        """Make (batch, tokens) bool, false for padding, which is hidden from the model, or an error without a mask."""
        users = list(ids.uses())
        kind = self._layout.model.tokens.dtype
        masked = MASK in self._inputs
        valid = self._node("Less", [ids, self._number(self._layout.vocabulary, kind)], "valid")
        most = self._layout.padding if masked else self._layout.vocabulary - 1
        above = self._node("Greater", [ids, self._number(most, kind)], "above")
        below = self._node("Less", [ids, self._number(0, kind)], "below")
        fault = self._fault(self._node("Or", [above, below], "unknown"), UNKNOWN)
        known = self._node("Add", [ids, self._cast(fault, ir.DataType.from_numpy(kind), "fault_of_ids")], "ids")
        if masked:
            known = self._node("Where", [valid, known, self._number(0, kind)], "ids_without_padding")
            ir.convenience.replace_all_uses_with(self._inputs[MASK], valid)
        for node, index in users:
            node.replace_input_with(index, known)
        return valid

    def _read(self, slot: Slot, position: ir.Value, batch: int | str) -> tuple[ir.Value, ir.Value]:
        """Make a slot's input, and what it holds: zeros at the beginning of a sequence. Hand its parts to the model."""
        kind = ir.DataType.from_numpy(slot.dtype)
        given = _value(self._layout.past(slot), kind, [batch, *slot.shape])
        begins = self._node("Equal", [position, self._number(0)], f"{slot.name}/begins")
        begins = self._reshape(begins, (-1, *slot.ones, 1), f"{slot.name}/begins_of_rows")
        nothing = add_constant(self._graph, f"{_PREFIX}/{slot.name}/nothing", np.zeros((), slot.dtype))
        held = self._node("Where", [begins, nothing, given], f"{slot.name}/held")
        start = 0
        for part, size in zip(slot.parts, slot.sizes, strict=True):
            name = part.spec.name
            piece = self._slice(held, start, start + size, f"{slot.name}/{name}")
            shaped = self._reshape(piece, (0, *part.empty_shape(1)[1:]), name.replace("past", f"{_PREFIX}/past", 1))
            ir.convenience.replace_all_uses_with(self._inputs[name], shaped)
            start += size
        return given, held

    def _place_length(self, pasts: dict[str, tuple[ir.Value, ir.Value]], position: ir.Value, valid: ir.Value) -> None:
        """Take the number of earlier tokens from the state, and compare it with the position."""
        slot = self._layout.slots[1]
        end = slot.shape[-1]
        count = self._slice(pasts[slot.name][1], end - 1, end, f"{slot.name}/count")
        seen = self._cast(self._reshape(count, (-1,), "count_of_rows"), ir.DataType.INT64, "seen")
        differs = self._node("Not", [self._node("Equal", [seen, position], "agrees")], "differs")
        # A sequence that has ended goes on with padding, which the state does not count.
        goes_on = self._node("Gather", [valid, self._number(0)], "goes_on", axis=1)
        fault = self._fault(self._node("And", [differs, goes_on], "skipped"), SKIPPED)
        length = self._node("Add", [seen, fault], "past_length")
        ir.convenience.replace_all_uses_with(self._inputs[PAST_LENGTH], length)

    def _write(self, slot: Slot, held: ir.Value, batch: int | str) -> ir.Value:
        """Make a slot's output. An empty piece of what was read makes it wait for the reading."""
        rows = (0, *slot.ones)
        pieces = [self._slice(held, 0, 0, f"{slot.name}/after_reading")]
        for part, size in zip(slot.parts, slot.sizes, strict=True):
            name = f"{slot.name}/{part.present}"
            pieces.append(self._reshape(self._outputs[part.present], (*rows, size), name))
        if slot is self._layout.slots[1]:
            length = self._outputs[
                next(part.present for part in self._layout.model.past if part.spec.name == PAST_LENGTH)
            ]
            count = self._cast(length, ir.DataType.from_numpy(slot.dtype), "present_count")
            pieces.append(self._reshape(count, (*rows, 1), "present_count_of_rows"))
        elif slot.extra:
            pieces.append(self._slice(held, 0, slot.extra, f"{slot.name}/unused"))
        written = self._node("Concat", pieces, self._layout.present(slot), axis=-1)
        return _declared(written, self._layout.present(slot), slot.dtype, [batch, *slot.shape])

    def _last_logits(self, valid: ir.Value, batch: int | str) -> ir.Value:
        """Make (batch, 1, vocabulary + 1): the logits of each row's last token that is not padding, and -inf."""
        output = self._layout.model.output
        every = self._outputs[output.name]
        every.name = f"{_PREFIX}/every_{output.name}"
        one = add_constant(self._graph, f"{_PREFIX}/token_axis", np.array([1]))
        counted = self._cast(valid, ir.DataType.INT64, "counted")
        count = self._node("ReduceSum", [counted, one], "count", keepdims=1)
        last = self._node("Sub", [count, self._number(1)], "last")
        last = self._node("Max", [last, self._number(0)], "last_or_first")
        head = _head(every)
        source = every if head is None else head.inputs[0]
        assert source is not None
        row = self._node("GatherND", [source, last], "last_vectors", batch_dims=1)
        row = self._node("Unsqueeze", [row, one], "last_vectors_of_rows")
        if head is not None:
            self._graph.remove(head)
            head.replace_input_with(0, row)
            self._new.append(head)
            every.shape = ir.Shape([batch, 1, self._layout.vocabulary])
            row = every
        pads = add_constant(self._graph, f"{_PREFIX}/pads", np.array([0, 0, 0, 0, 0, 1]))
        never = add_constant(self._graph, f"{_PREFIX}/never", np.array(-np.inf, output.dtype))
        padded = self._node("Pad", [row, pads, never], LOGITS)
        return _declared(padded, LOGITS, output.dtype, [batch, 1, self._layout.vocabulary + 1])

    def _unused_cache(self, name: str, batch: int | str) -> tuple[ir.Value, ir.Value]:
        """Make the input and output of a cache of one value, which nobody reads."""
        kind = np.dtype(np.float32)
        axes = [batch, *UNUSED_CACHE]
        given = _value(name, ir.DataType.from_numpy(kind), axes)
        written = self._node("Mul", [given, self._number(0, kind)], name)
        return given, _declared(written, present_name(name), kind, axes)

    def _fault(self, wrong: ir.Value, name: str) -> ir.Value:
        """Make a scalar 0 that cannot be computed if any value of a tensor is true."""
        anywhere = self._node(
            "ReduceMax", [self._cast(wrong, ir.DataType.INT64, f"{name}/each")], f"{name}/any", keepdims=0
        )
        table = add_constant(self._graph, f"{_PREFIX}/right", np.zeros(1, np.int64))
        node = ir.node("Gather", [table, anywhere], name=name)
        self._new.append(node)
        return node.outputs[0]

    def _slice(self, value: ir.Value, start: int, stop: int, name: str) -> ir.Value:
        """Make a part along the last axis."""
        ends = [add_constant(self._graph, f"{_PREFIX}/place", np.array([place])) for place in (start, stop, -1)]
        return self._node("Slice", [value, *ends], name)

    def _reshape(self, value: ir.Value, shape: Sequence[int], name: str) -> ir.Value:
        return self._node("Reshape", [value, add_constant(self._graph, f"{_PREFIX}/shape", np.array(shape))], name)

    def _cast(self, value: ir.Value, kind: ir.DataType, name: str) -> ir.Value:
        return self._node("Cast", [value], name, to=int(kind))

    def _number(self, number: int, dtype: np.dtype[Any] = _COUNT) -> ir.Value:
        return add_constant(self._graph, f"{_PREFIX}/number", np.array(number, dtype))

    def _node(self, op_type: str, inputs: Sequence[ir.Value], name: str, **attributes: int) -> ir.Value:
        node = ir.node(op_type, inputs, attributes, name=f"{_PREFIX}/{name}")
        self._new.append(node)
        return node.outputs[0]

    def _take_new(self) -> list[ir.Node]:
        taken, self._new = self._new, []
        return taken


def _value(name: str, kind: ir.DataType, axes: Sequence[int | str]) -> ir.Value:
    return ir.val(name, kind, ir.Shape(axes))


def _head(logits: ir.Value) -> ir.Node | None:
    """Return the product of a vector for each token that makes its logits; None if something else does.

    Then it need not be computed for all tokens of a prompt, which takes gigabytes with a large vocabulary.
    """
    node = logits.producer()
    if node is None or node.op_type not in _PRODUCTS or logits.uses():
        return None
    weight = node.inputs[1]
    is_matrix = weight is not None and weight.shape is not None and len(weight.shape) == _MATRIX
    return node if is_matrix or node.op_type == _QUANTIZED else None


def _declared(value: ir.Value, name: str, dtype: np.dtype[Any], axes: Sequence[int | str]) -> ir.Value:
    """Give a value the name, type and shape of an output."""
    value.name, value.type, value.shape = name, ir.TensorType(ir.DataType.from_numpy(dtype)), ir.Shape(axes)
    return value
