"""ONNX Runtime sessions that keep what a file says of its inputs' sizes, which ONNX Runtime itself does not look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from pom_export.errors import InputError
from pom_export.graph.claims import METADATA_PREFIX, ClaimError, InputLimits, read_claims
from pom_export.graph.dimensions import BATCH
from pom_export.graph.size_expressions import size_of

Axes = Mapping[str, Sequence[int | str]]


def keeps_sizes(session: Any) -> bool:
    """Make a session of our kind check the sizes of what `run` is given; return whether there is anything to check.

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
        raise InputError(f"the model's metadata are not ours: {error}", "Export it again") from error
    if len(names) == len(set(names)) and not any(limits.bounds(name) != (0, None) for name in names):
        return False
    session.keep(axes, limits)
    return True


@cache
def session_class() -> Any:
    """Return a kind of onnxruntime.InferenceSession whose `run` refuses sizes that the file does not take."""
    import onnxruntime

    class InferenceSession(onnxruntime.InferenceSession):  # type: ignore[misc]
        """ONNX Runtime's, with a look at the sizes of inputs before each run."""

        _kept: tuple[Axes, InputLimits] | None = None

        def keep(self, axes: Axes, limits: InputLimits) -> None:
            self._kept = axes, limits

        def run(self, output_names: Any, input_feed: Mapping[str, Any], run_options: Any = None) -> Any:
            if self._kept is not None:
                check_sizes(input_feed, *self._kept)
            return super().run(output_names, input_feed, run_options)

    return InferenceSession


def check_sizes(feed: Mapping[str, Any], axes: Axes, limits: InputLimits) -> None:
    """Check the sizes of inputs; whatever has another rank is left to ONNX Runtime, and so are fixed sizes.

    Args:
        feed: arrays by name.
        axes: sizes and names of dimensions of each input.
        limits: the smallest and largest sizes.

    Raises:
        InputError: a size is beyond the limits, or one dimension has two sizes. A single row may stand for all.
    """
    shapes = {name: _shape(value) for name, value in feed.items() if name in axes}
    known: dict[str, tuple[int, str]] = {}
    for name, shape in shapes.items():
        if len(shape) != len(axes[name]):
            continue
        for axis, size in zip(axes[name], shape, strict=True):
            if not isinstance(axis, str):
                continue
            if wanted := limits.outside(axis, size):
                raise InputError(f"{axis} is {size} in {name}, but the model takes {wanted}", "See the export's notes")
            before, other = known.get(axis, (size, name))
            if axis == BATCH and 1 in (before, size):
                known[axis] = (size, name) if before == 1 else (before, other)
                continue
            known[axis] = before, other
            if size != before:
                raise InputError(f"{axis} is {before} in {other}, but {size} in {name}", "Give inputs that go together")
    sizes = {axis: size for axis, (size, _) in known.items()}
    for axis, (size, name) in known.items():
        expected = size_of(axis, {other: n for other, n in sizes.items() if other != axis})
        if expected is not None and expected != size:
            raise InputError(f"{axis} is {size} in {name}, and should be {expected}", "Give inputs that go together")


def _shape(value: Any) -> Sequence[int]:
    shape = getattr(value, "shape", None)
    if callable(shape):  # an OrtValue
        shape = shape()
    if shape is None:
        import numpy as np

        shape = np.shape(value)
    return tuple(shape)
