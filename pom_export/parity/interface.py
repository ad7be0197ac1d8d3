"""Compare a file's interface with the reference's: report what is missing, added or fixed before comparing outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pom_export.errors import InputError
from pom_export.graph.exported_model import (
    BATCH,
    CONTEXT_TOKENS,
    TOKENS,
    ExportedModel,
    InputLimits,
    TensorSpec,
)
from pom_export.parity.names import match_names, same_kind
from pom_export.runtime.runners import to_numpy

if TYPE_CHECKING:
    import numpy.typing as npt

    from pom_export.graph.program import Program

_HINT = "Export the checkpoint again"
# The most values in one output: 512 MiB of float64.
_MOST_VALUES = 2**26
_KINDS = {"i": "integers", "u": "integers", "b": "truth values"}


@dataclass(frozen=True)
class Interface:
    """A model's inputs, named as in its reference and typed as in the file.

    Attributes:
        specs: the inputs; their names and those of their dynamic dimensions are the reference's.
        pinned: sizes of the dimensions that the file fixes, by name.
        names: the file's names of inputs that it names differently.
    """

    specs: Sequence[TensorSpec]
    pinned: Mapping[str, int]
    names: Mapping[str, str] = field(default_factory=dict)

    def pinned_specs(self, but: str = "") -> list[TensorSpec]:
        """Return the inputs with the sizes that the file fixes, except for one dimension."""
        sizes: dict[str | int, int] = {name: size for name, size in self.pinned.items() if name != but}
        return [replace(spec, axes=tuple(sizes.get(axis, axis) for axis in spec.axes)) for spec in self.specs]


def program_spec(program: Program, name: str) -> TensorSpec:
    """Describe an input of one of our programs, with names for its dynamic dimensions."""
    tensor, dynamic = program.inputs[name], (program.dynamic_shapes or {}).get(name, {})
    axes = (dynamic[i].__name__ if i in dynamic else size for i, size in enumerate(tensor.shape))
    return TensorSpec(name, to_numpy(tensor).dtype, tuple(axes))


def match_inputs(model: ExportedModel, reference: Sequence[TensorSpec]) -> Interface:
    """Match a file's inputs with the reference's.

    Raises:
        InputError: an input is missing or unexpected, or has another type, rank or size.
    """
    given = {spec.name: spec for spec in model.inputs}
    names = match_names(model, "input", model.inputs, reference)
    pinned: dict[str, int] = {}
    types = {}
    for spec in reference:
        found = given[names.get(spec.name, spec.name)]
        if not same_kind(found, spec) or len(found.axes) != len(spec.axes):
            raise InputError(f"model {model.path} takes {found}, where the reference takes {spec}", _HINT)
        for axis, (size, expected) in enumerate(zip(found.axes, spec.axes, strict=True)):
            if not isinstance(size, int):
                continue
            if size != (pinned.setdefault(expected, size) if isinstance(expected, str) else expected):
                raise InputError(
                    f"model {model.path} takes {found}, where the reference takes {spec}: dimension {axis} differs",
                    _HINT,
                )
        types[spec.name] = found.dtype
    return Interface([replace(spec, dtype=types[spec.name]) for spec in reference], pinned, names)


def check_limits(model: ExportedModel, limits: InputLimits, names: Mapping[str, str]) -> list[str]:
    """Compare a file's limits on its inputs with the reference's, and return notes.

    Args:
        model: the file.
        limits: the reference's limits.
        names: the file's names of inputs that it names differently; its limits may use either name.

    Raises:
        InputError: the limits differ.
    """
    if model.claims.limits is None:
        return [] if limits == InputLimits() else ["the file does not say what its inputs may hold"]
    claimed, known = _plain(model.claims.limits), _plain(limits)
    ours = {name: reference for reference, name in names.items()}
    for kind in ("values", "ranges"):
        claimed[kind] = {ours.get(name, name): said for name, said in claimed[kind].items()}
    for name in claimed:
        if claimed[name] != known[name]:
            raise InputError(
                f"model {model.path} says that its inputs' {name} are limited to {claimed[name]}; "
                f"the reference limits them to {known[name]}",
                _HINT,
            )
    return []


def _plain(limits: InputLimits) -> dict[str, Any]:
    values = {name: list(counts) for name, counts in limits.values.items()}
    ranges = {name: list(ends) for name, ends in limits.ranges.items()}
    sizes = {name: list(bounds) for name, bounds in limits.sizes.items()}
    return {"values": values, "tokens": limits.tokens, "scale": limits.scale, "ranges": ranges, "sizes": sizes}


def check_outputs(model: ExportedModel, expected: Mapping[str, npt.NDArray[Any]]) -> dict[str, str]:
    """Compare a file's outputs with the reference's, and return the file's names of those that it names differently.

    Args:
        model: the file.
        expected: the reference's outputs for one case.

    Raises:
        InputError: an output is missing or unexpected, or has another type, rank or fixed size.
    """
    given = {spec.name: spec for spec in model.outputs}
    reference = [TensorSpec(name, array.dtype, array.shape) for name, array in expected.items()]
    names = match_names(model, "output", model.outputs, reference)
    for wanted in reference:
        spec = given[names.get(wanted.name, wanted.name)]
        if not same_kind(spec, wanted) or len(spec.axes) != len(wanted.axes):
            kind = _KINDS.get(wanted.dtype.kind, "floats")
            raise InputError(
                f"model {model.path} gives {spec}, where the reference gives {kind} in {len(wanted.axes)} dimensions",
                _HINT,
            )
        if any(isinstance(axis, int) and axis != size for axis, size in zip(spec.axes, wanted.axes, strict=True)):
            raise InputError(
                f"model {model.path} gives {spec}, where the reference gives one of shape {wanted.axes}", _HINT
            )
    return names


def check_pinned(model: ExportedModel, interface: Interface, limits: InputLimits, width: int) -> None:
    """Check that the sizes that a file fixes are not too large for the reference, or to be compared.

    Args:
        model: the file.
        interface: its inputs.
        limits: the reference's limits on them.
        width: the largest number of values per token in any input or output.

    Raises:
        InputError: they are too large.
    """
    tokens = max(interface.pinned.get(name, 1) for name in (TOKENS, CONTEXT_TOKENS))
    if limits.tokens is not None and tokens > limits.tokens:
        raise InputError(
            f"model {model.path} fixes {tokens} tokens; the reference has positions for {limits.tokens}", _HINT
        )
    if tokens * interface.pinned.get(BATCH, 1) * width > _MOST_VALUES:
        raise InputError(
            f"model {model.path} fixes its sizes at {tokens * interface.pinned.get(BATCH, 1)} tokens, too many "
            "to compare",
            "Export it with dynamic sizes, or with smaller ones",
        )


def pinned_note(interface: Interface) -> list[str]:
    """Return a note about the sizes that a file fixes."""
    if not interface.pinned:
        return []
    fixed = " and ".join(f"{name} at {size}" for name, size in sorted(interface.pinned.items()))
    return [f"the file fixes {fixed}, which the reference leaves open: no other sizes were compared"]
