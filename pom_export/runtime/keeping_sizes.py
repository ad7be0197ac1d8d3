"""ONNX Runtime sessions that check input sizes against what the file declares."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any

from pom_export.errors import InputError
from pom_export.graph.claims import METADATA_PREFIX, ClaimError, InputLimits, read_claims
from pom_export.graph.dimensions import BATCH
from pom_export.graph.size_expressions import size_of

Axes = Mapping[str, Sequence[int | str]]


def keeps_sizes(session: Any) -> bool:
    """Make one of our sessions check the sizes of the inputs to `run`; return whether there is anything to check.

    Args:
        session: an instance of `session_class()`.
    """
    metadata = session.get_modelmeta().custom_metadata_map
    if not any(key.startswith(METADATA_PREFIX) for key in metadata):
        return False
    axes = {value.name: tuple(value.shape) for value in session.get_inputs()}
    names = [axis for shape in axes.values() for axis in set(shape) if isinstance(axis, str)]
    try:
        limits = read_claims(metadata.items()).limits or InputLimits()
    except ClaimError as error:
        raise InputError(f"the model's metadata was not written by pom-export: {error}", "Export it again") from error
    if len(names) == len(set(names)) and not any(limits.bounds(name) != (0, None) for name in names):
        return False
    session.keep(axes, limits)
    return True


@cache
def session_class() -> Any:
    """Return a subclass of onnxruntime.InferenceSession whose `run` checks sizes first.

    Inconsistent sizes are refused. Sizes beyond the file's limits only cause a warning, and ONNX Runtime computes
    whatever it computes: some callers know better, and other runtimes would not refuse them either.
    """
    import onnxruntime

    class InferenceSession(onnxruntime.InferenceSession):  # type: ignore[misc]
        """ONNX Runtime's session, with a check of the inputs' sizes before each run.

        Attributes:
            fused: how many nodes of each operator it runs inside of fused nodes.
        """

        fused: Mapping[str, int] = MappingProxyType({})
        _kept: tuple[Axes, InputLimits] | None = None
        _weights: Sequence[Any] = ()

        def hold(self, weights: Sequence[Any], fused: Mapping[str, int]) -> None:
            """Keep weights that the session reads for as long as it lives, and what its fused nodes replace."""
            self._weights = weights
            self.fused = fused

        def keep(self, axes: Axes, limits: InputLimits) -> None:
            self._kept = axes, limits

        def run(self, output_names: Any, input_feed: Mapping[str, Any], run_options: Any = None) -> Any:
            if self._kept is not None:
                axes, limits = self._kept
                check_sizes(input_feed, axes)
                if outside := outside_limits(input_feed, axes, limits):
                    warnings.warn(outside, stacklevel=2)
            return super().run(output_names, input_feed, run_options)

    return InferenceSession


def outside_limits(feed: Mapping[str, Any], axes: Axes, limits: InputLimits) -> str:
    """Return a line that names a size beyond the limits; empty if there is none.

    Args:
        feed: arrays by name.
        axes: sizes and names of dimensions of each input.
        limits: the smallest and largest sizes.
    """
    for name, axis, size in _sizes(feed, axes):
        if wanted := limits.outside(axis, size):
            return f"{axis} is {size} in {name}, but the model takes {wanted}: what it gives may be wrong"
    return ""


def check_sizes(feed: Mapping[str, Any], axes: Axes) -> None:
    """Check that the sizes of inputs are consistent.

    Args:
        feed: arrays by name.
        axes: sizes and names of dimensions of each input.

    Raises:
        InputError: a dimension has two different sizes. A single row may stand for all rows.
    """
    known: dict[str, tuple[int, str]] = {}
    for name, axis, size in _sizes(feed, axes):
        before, other = known.get(axis, (size, name))
        if axis == BATCH and 1 in (before, size):
            known[axis] = (size, name) if before == 1 else (before, other)
            continue
        known[axis] = before, other
        if size != before:
            raise InputError(f"{axis} is {before} in {other}, but {size} in {name}", "Give inputs of consistent sizes")
    sizes = {axis: size for axis, (size, _) in known.items()}
    for axis, (size, name) in known.items():
        expected = size_of(axis, {other: n for other, n in sizes.items() if other != axis})
        if expected is not None and expected != size:
            raise InputError(f"{axis} is {size} in {name}, and should be {expected}", "Give inputs of consistent sizes")


def _sizes(feed: Mapping[str, Any], axes: Axes) -> Iterator[tuple[str, str, int]]:
    """Yield input, dimension and size; fixed sizes and inputs of another rank are left to ONNX Runtime."""
    for name, value in feed.items():
        named = axes.get(name, ())
        shape = _shape(value) if named else ()
        if len(shape) == len(named):
            yield from ((name, a, size) for a, size in zip(named, shape, strict=True) if isinstance(a, str))


def _shape(value: Any) -> Sequence[int]:
    shape = getattr(value, "shape", None)
    if callable(shape):  # an OrtValue
        shape = shape()
    if shape is None:
        import numpy as np

        shape = np.shape(value)
    return tuple(shape)
