"""Match a file's input and output names with the reference's, where other tools renamed or prefixed them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from pom_export.errors import InputError, printable
from pom_export.graph.exported_model import PAST_STATE, ExportedModel, TensorSpec, present_name
from pom_export.parity.case import Arrays

_LONGEST_NAME = 80
_STATE = (PAST_STATE, present_name(PAST_STATE))
_HALF_KIND = "V"  # NumPy's kind for types that it does not know
_HINT = "Export the checkpoint again, or give the file's own inputs and outputs in `inputs`"


@dataclass(frozen=True)
class Names:
    """A file's names of inputs and outputs, by the reference's names; missing ones are the same in both.

    Attributes:
        inputs: names of inputs.
        outputs: names of outputs.
    """

    inputs: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)

    def translated(self, infer: Callable[[dict[str, Any]], Arrays]) -> Callable[[Arrays], Arrays]:
        """Wrap a function that runs the file, so that it takes and returns the reference's names."""
        known = {name: ours for ours, name in self.outputs.items()}

        def run(feed: Arrays) -> Arrays:
            outputs = infer({self.inputs.get(name, name): array for name, array in feed.items()})
            return {known.get(name, name): array for name, array in outputs.items()}

        return run

    def notes(self) -> list[str]:
        """Return notes about the names that differ, for the reader of a report."""
        pairs = [("input", self.inputs), ("output", self.outputs)]
        return [
            f"the file calls the {kind} {printable(name, _LONGEST_NAME)} {printable(given, _LONGEST_NAME)}"
            for kind, names in pairs
            for name, given in names.items()
        ]


SAME_NAMES: Final = Names()


def match_names(
    model: ExportedModel, kind: str, given: Sequence[TensorSpec], expected: Sequence[TensorSpec]
) -> dict[str, str]:
    """Return the file's names of those inputs or outputs that its reference names differently.

    Names are only matched if the match is certain: either all of them have the same text before or after the
    reference's names, or exactly one of the file's fits each of the reference's in type and shape.

    Args:
        model: the file.
        kind: "input" or "output".
        given: the file's inputs or outputs.
        expected: the reference's.

    Raises:
        InputError: one is missing or unexpected, or the match is ambiguous.
    """
    unknown = [spec for spec in given if spec.name not in {each.name for each in expected}]
    missing = [spec for spec in expected if spec.name not in {each.name for each in given}]
    if len(unknown) != len(missing):
        relation, odd = ("lacks", missing) if len(missing) > len(unknown) else ("has", unknown)
        others = ", ".join(spec.name for spec in expected)
        raise InputError(
            f"model {model.path} {relation} the {kind} {printable(odd[0].name, _LONGEST_NAME)}; "
            f"the reference has {printable(others)}",
            _HINT,
        )
    names = _by_affix(unknown, missing) or _by_fit(unknown, missing)
    if names is None:
        theirs, ours = (printable(", ".join(spec.name for spec in specs)) for specs in (unknown, missing))
        raise InputError(
            f"model {model.path} has the {kind}s {theirs}, the reference {ours}: unclear which belongs to which",
            _HINT,
        )
    return names


def _by_affix(given: Sequence[TensorSpec], expected: Sequence[TensorSpec]) -> dict[str, str] | None:
    """Match names that all have the same text before or after the reference's names."""
    for first in given[:1]:
        for like in expected:
            before, found, behind = first.name.partition(like.name)
            names = {spec.name: f"{before}{spec.name}{behind}" for spec in expected}
            if found and set(names.values()) == {spec.name for spec in given}:
                return names
    return None


def _by_fit(given: Sequence[TensorSpec], expected: Sequence[TensorSpec]) -> dict[str, str] | None:
    """Match each of the file's with the only one of the reference's that it fits, if there is one, and vice versa."""
    if len(given) == len(expected) == 1:  # the caller compares the two and reports what does not fit
        return {expected[0].name: given[0].name}
    names = {}
    for spec in expected:
        fitting = [other.name for other in given if fits(other, spec)]
        if len(fitting) != 1:
            return None
        names[spec.name] = fitting[0]
    return names if len(set(names.values())) == len(given) else None


def fits(given: TensorSpec, expected: TensorSpec) -> bool:
    """Return whether a file's input or output has the same kind of numbers, rank and sizes as the reference's."""
    return (
        same_kind(given, expected)
        and len(given.axes) == len(expected.axes)
        and all(
            not isinstance(a, int) or not isinstance(b, int) or a == b
            for a, b in zip(given.axes, expected.axes, strict=True)
        )
    )


def same_kind(given: TensorSpec, expected: TensorSpec) -> bool:
    """Return whether a file's input or output is of the reference's kind: both floats of any width, or of one type."""
    if expected.name in _STATE:
        return given.dtype == np.float32
    floats = "f" + _HALF_KIND
    if expected.dtype.kind in floats:
        return given.dtype.kind in floats
    return given.dtype == expected.dtype
