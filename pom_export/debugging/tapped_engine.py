"""Run an engine whose inner values are outputs too: it is built again from a copy of the file that has them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from contextlib import ExitStack

import numpy as np

from pom_export.debugging.tapping import save_tapped
from pom_export.engine.backend import load_plugin
from pom_export.engine.build_config import PLUGIN
from pom_export.engine.build_plan import BuildPlan
from pom_export.engine.given import GivenEngine
from pom_export.engine.job import BuildJob
from pom_export.engine.profiles import make_profiles
from pom_export.errors import SEE_CAUSE, InputError, PomExportError, reason_of
from pom_export.files import scratch_folder
from pom_export.graph.exported_model import read_model
from pom_export.parity.case import Array, Arrays
from pom_export.runtime.runners import Runner


class TappedEngine:
    """An engine with the given inner values of its model as further outputs, while it is entered as a context.

    TensorRT fuses no layers across a value that is an output, so what runs is not the engine itself, but one built from
    the same layers with the same settings.

    Args:
        engine: the engine; it needs a GPU.
        values: names of the inner values.
        progress: called with one line per stage of the build.
    """

    def __init__(self, engine: GivenEngine, values: Collection[str], progress: Callable[[str], None]) -> None:
        self._engine = engine
        self._values = values
        self._progress = progress
        self._stack = ExitStack()
        self._runner: Runner | None = None

    def __enter__(self) -> TappedEngine:
        """Build and load it."""
        self._runner = self._stack.enter_context(self._engine.runner(self.build()))
        return self

    def __exit__(self, *exception: object) -> None:
        """Unload it."""
        self._runner = None
        self._stack.close()

    def build(self) -> bytes:
        """Build it with the engine's TensorRT, targets, shapes and implementation of the op, and return its bytes.

        Raises:
            EngineError: TensorRT refuses it.
        """
        given = self._engine
        shapes = given.manifest["profiles"]
        least, usual, most = ({name: each[kind] for name, each in shapes.items()} for kind in ("min", "opt", "max"))
        with scratch_folder() as folder:
            file = folder / "tapped.onnx"
            save_tapped(given.model.path, self._values, file)
            model = read_model(file)
            library = load_plugin(given.backend) if given.path == PLUGIN else None
            profiles = make_profiles(model.inputs, least, usual, most, model.limits)
            targets = given.manifest["targets"]
            plan = BuildPlan(model, given.backend, targets, profiles, library, False, None, self._progress)
            return BuildJob(plan).run().engine

    def run(self, names: Iterable[str], feed: Arrays) -> dict[str, Array]:
        """Return the named values for some inputs; those that are inputs themselves as they are given.

        Raises:
            InputError: TensorRT fails on them.
        """
        assert self._runner is not None, "it is not entered"
        try:
            made = self._runner.infer(dict(feed))
        except PomExportError:
            raise
        except Exception as error:  # Polygraphy's and TensorRT's exceptions have no common base class
            name = self._engine.backend.name
            raise InputError(f"{name} fails on the model: {reason_of(error)}", SEE_CAUSE) from error
        # The next run may write to the same memory.
        return {**feed, **{name: np.array(made[name]) for name in dict.fromkeys(names) if name not in feed}}
