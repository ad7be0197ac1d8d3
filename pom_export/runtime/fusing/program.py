"""Write a run as the program of a fused node.

The numbers are read by our library's `FusedLayers`, whose C++ counterpart describes them: a header (version, slots,
outputs), the slots' widths, what each output is, and the instructions, each with its opcode and length. Values are
numbered: the node's inputs, then the slots.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir

from pom_export import contract
from pom_export.runtime.fusing.aggregates import is_gated, text_of, whole_of
from pom_export.runtime.fusing.slots import slots_of
from pom_export.runtime.fusing.steps import (
    Aggregate,
    Computed,
    Elementwise,
    GroupedProduct,
    Norm,
    Product,
    Step,
)

VERSION: Final = 2
PRODUCT, GROUPED, RMS_NORM, LAYER_NORM, ELEMENTWISE, AGGREGATE, PRODUCT8 = range(1, 8)
ABSENT: Final = -1
Tensors = Mapping[Step, Sequence[ir.Value | None]]


@dataclass(frozen=True)
class Program:
    """What a fused node needs.

    Attributes:
        inputs: the values that it reads.
        outputs: the values that it makes: (B, N, width) first, then states.
        numbers: the program.
        constants: the float32 numbers that it refers to.
    """

    inputs: Sequence[ir.Value]
    outputs: Sequence[ir.Value]
    numbers: Sequence[int]
    constants: Sequence[float]


def write_program(steps: Sequence[Step], outputs: Sequence[ir.Value], tensors: Tensors) -> Program:
    """Write the program of a run.

    Args:
        steps: the steps in order.
        outputs: the values (B, N, width) that are used outside of it.
        tensors: each step's weights, bias or gain, as the program refers to them; none for the kinds without.
    """
    slots, widths = slots_of(steps, set(outputs))
    made = {step.y for step in steps}
    read = (value for step in steps for value in (*step.reads, *tensors.get(step, ()), *step.outside))
    inputs = list(dict.fromkeys(value for value in read if value is not None and value not in made))
    numbers = {value: i for i, value in enumerate(inputs)}
    numbers.update((value, len(inputs) + slot) for value, slot in slots.items())
    states = list(dict.fromkeys(value for step in steps if isinstance(step, Aggregate) for value in step.states))
    writer = _Writer(lambda value: ABSENT if value is None else numbers[value], [*outputs, *states], tensors)
    body = [number for step in steps for number in writer.instruction(step)]
    written = [*(numbers[value] for value in outputs), *(ABSENT for _ in states)]
    head = [VERSION, len(widths), len(written), *widths, *written]
    return Program(inputs, [*outputs, *states], [*head, *body], list(writer.constants))


class _Writer:
    """Writes instructions, and collects the constants that they refer to."""

    def __init__(self, number: Callable[[ir.Value | None], int], outputs: Sequence[ir.Value], tensors: Tensors) -> None:
        self.constants: dict[float, int] = {}
        self._number = number
        self._outputs = list(outputs)
        self._tensors = tensors

    def instruction(self, step: Step) -> list[int]:
        """Return a step's opcode, the length of what follows, and that."""
        opcode, given = self._parts(step)
        return [opcode, len(given), *given]

    def _parts(self, step: Step) -> tuple[int, list[int]]:
        number, tensors = self._number, [self._number(value) for value in self._tensors.get(step, ())]
        x, y = number(step.x), number(step.y)
        if isinstance(step, Product):
            sizes = [step.inner, step.width, step.block]
            opcode = PRODUCT if step.bits == 4 else PRODUCT8
            return opcode, [x, *tensors, number(step.epilogue.added), y, *sizes, *self._ending(step)]
        if isinstance(step, GroupedProduct):
            sizes = [step.groups, step.inner // step.groups, step.width // step.groups]
            return GROUPED, [x, *tensors, number(step.epilogue.added), y, *sizes, *self._ending(step)]
        if isinstance(step, Norm):
            opcode = LAYER_NORM if step.centered else RMS_NORM
            return opcode, [x, *tensors, y, step.width, self._constant(step.epsilon)]
        if isinstance(step, Elementwise):
            sides = [number(step.epilogue.multiplied), number(step.epilogue.added)]
            return ELEMENTWISE, [x, *sides, y, step.width, *self._ending(step)]
        assert isinstance(step, Aggregate)
        return AGGREGATE, list(self._aggregate(step))

    def _ending(self, step: Computed) -> list[int]:
        factor = step.epilogue.factor
        return [step.epilogue.activation, ABSENT if factor == 1 else self._constant(factor)]

    def _aggregate(self, step: Aggregate) -> Iterator[int]:
        node = step.nodes[0]
        yield self._number(step.y)
        yield from (self._outputs.index(value) for value in step.states)
        yield from (ABSENT for _ in range(len(contract.STATE_OUTPUTS) - len(step.states)))
        yield int(is_gated(node))
        yield whole_of(node, "degree", contract.DEFAULT_DEGREE)
        yield contract.FORMS.index(text_of(node, "form", contract.POWER))
        yield contract.MODES.index(text_of(node, "mode"))
        yield whole_of(node, "rotary_blocks", contract.DEFAULT_ROTARY_BLOCKS)
        yield whole_of(node, "stateful", contract.DEFAULT_STATEFUL)
        yield contract.GATE_ACTIVATIONS.index(text_of(node, "gate_activation")) if is_gated(node) else 0
        epsilon = node.attributes.get("epsilon")
        yield self._constant(contract.DEFAULT_EPSILON if epsilon is None else epsilon.as_float())
        yield from (step.layers, step.layer)
        yield self._number(step.x)
        if is_gated(node):
            yield self._number(step.gate)
        yield from map(self._number, step.others)

    def _constant(self, number: float) -> int:
        return self.constants.setdefault(float(np.float32(number)), len(self.constants))
