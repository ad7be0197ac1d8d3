"""Run a copy of a file whose inner values are outputs too."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Protocol

import ml_dtypes
import numpy as np

from pom_export.errors import SEE_CAUSE, InputError, PomExportError, reason_of
from pom_export.files import scratch_folder
from pom_export.graph.saving import save_graph
from pom_export.parity.candidates import KERNEL, Candidate
from pom_export.parity.case import Array, Arrays
from pom_export.parity.emulation import loaded_whole, save_emulation, save_unrounded
from pom_export.runtime.session import inference_session

_HALVES: Final = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))


class Tapped(Protocol):
    """Something that runs a model and returns its inner values."""

    def run(self, names: Iterable[str], feed: Arrays) -> dict[str, Array]:
        """Return the named values for some inputs; those that are inputs themselves as they are given."""


class TappedModel:
    """A file in ONNX Runtime with the given inner values as further outputs, while it is entered as a context.

    Args:
        model: the file; it is copied, not changed.
        values: names of the inner values.
        candidate: how the file is run: with our kernels or its function, rounded as on a device or not at all.
    """

    def __init__(self, model: Path, values: Collection[str], candidate: Candidate) -> None:
        self._model = model
        self._values = values
        self._candidate = candidate
        self._session: Any = None
        self._stack = ExitStack()

    def __enter__(self) -> TappedModel:
        """Write the copy and load it."""
        with ExitStack() as stack:
            folder = stack.enter_context(scratch_folder())
            tapped = folder / "tapped.onnx"
            save_tapped(self._model, self._values, tapped)
            if self._candidate.emulates:
                emulated = folder / "emulated.onnx"
                (save_emulation if self._candidate.rounds else save_unrounded)(tapped, emulated)
                tapped = emulated
            self._session = inference_session(tapped, kernels=self._candidate.path == KERNEL)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        """Unload the copy and remove it."""
        self._session = None
        self._stack.close()

    def run(self, names: Iterable[str], feed: Arrays) -> dict[str, Array]:
        """Return the named values for some inputs; those that are inputs themselves as they are given.

        Args:
            names: names of inner values, outputs or inputs.
            feed: the inputs by name.

        Raises:
            InputError: ONNX Runtime fails on them.
        """
        wanted = [name for name in dict.fromkeys(names) if name not in feed]
        given = {
            name: array.astype(np.float32) if self._candidate.emulates and array.dtype in _HALVES else array
            for name, array in feed.items()
        }
        try:
            made = self._session.run(wanted, given) if wanted else []
        except PomExportError:
            raise
        except Exception as error:  # onnxruntime's exceptions have no common base class
            raise InputError(f"ONNX Runtime fails on the model: {reason_of(error)}", SEE_CAUSE) from error
        return {**given, **dict(zip(wanted, made, strict=True))}


def save_tapped(model: Path, values: Collection[str], path: Path) -> None:
    """Save a copy of a file that has inner values as further outputs.

    Args:
        model: the file.
        values: their names.
        path: where the copy goes.
    """
    whole = loaded_whole(model)
    taken = {value.name for value in (*whole.graph.outputs, *whole.graph.inputs)}
    for node in whole.graph:
        whole.graph.outputs.extend(value for value in node.outputs if value.name in values and value.name not in taken)
    save_graph(whole, path)
