"""Give the values that a program makes places in scratch memory, which they share over time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence

import onnx_ir as ir

from pom_export.runtime.fusing.steps import Computed, Step


def slots_of(steps: Sequence[Step], outputs: Collection[ir.Value]) -> tuple[dict[ir.Value, int], list[int]]:
    """Return the slot of each step's y, and the slots' widths.

    A slot has one width, and is given to another value once nothing reads the one that it held. A step's y is in none
    of the slots that it reads, except that of the value that it adds, if nothing reads that later.

    Args:
        steps: the steps in order.
        outputs: values that are used outside, whose slots hold nothing else.
    """
    last = {value: i for i, step in enumerate(steps) for value in step.reads}
    slots: dict[ir.Value, int] = {}
    widths: list[int] = []
    free: dict[int, list[int]] = defaultdict(list)
    for i, step in enumerate(steps):
        ends = [value for value in set(step.reads) if last[value] == i and value in slots and value not in outputs]
        added = step.epilogue.added if isinstance(step, Computed) else None
        reads_once = added is not None and sum(value is added for value in step.reads) == 1
        if step.y in outputs:
            slot = _new(widths, step.width)
        elif added in ends and reads_once and widths[slots[added]] == step.width:
            slot = slots[added]
            ends.remove(added)
        else:
            slot = free[step.width].pop() if free[step.width] else _new(widths, step.width)
        slots[step.y] = slot
        for value in ends:
            free[widths[slots[value]]].append(slots[value])
        if step.y not in last and step.y not in outputs:
            free[step.width].append(slot)
    return slots, widths


def _new(widths: list[int], width: int) -> int:
    widths.append(width)
    return len(widths) - 1
