"""Run a graph in ONNX Runtime, and see what its values are."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx

from pom_export.errors import InputError, MissingDependencyError, reason_of
from pom_export.graph.fusing.shapes import SeenValue
from pom_export.parity.case import Array
from pom_export.runtime.library import custom_ops_library
from pom_export.runtime.session import default_session_options, import_onnxruntime

_FOLDER: Final = "session.model_external_initializers_file_folder_path"


class Observer:
    """Runs a graph whose every value is an output.

    Args:
        model: the graph; its large weights may be in other files.
        folder: the folder of these.
        kernels: whether to register our library, if there is one, for a graph that has nodes of our ops.

    Attributes:
        names: the values.
        kernels: whether our library is registered.

    Raises:
        InputError: ONNX Runtime cannot load the graph.
    """

    def __init__(self, model: onnx.ModelProto, folder: Path, *, kernels: bool) -> None:
        runtime = import_onnxruntime()
        whole = onnx.ModelProto()
        whole.CopyFrom(model)
        del whole.graph.value_info[:]
        known = {value.name for value in whole.graph.output}
        made = [name for node in whole.graph.node for name in node.output if name and name not in known]
        whole.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
        options = default_session_options()
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry(_FOLDER, str(folder))
        self.kernels = False
        if kernels:
            with contextlib.suppress(MissingDependencyError):  # the file's functions do it too
                options.register_custom_ops_library(str(custom_ops_library()))
                self.kernels = True
        try:
            self._session: Any = runtime.InferenceSession(
                whole.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's exceptions have no common base class
            raise InputError(
                f"ONNX Runtime cannot load the file, and nothing else runs it here: {reason_of(error)}",
                "Export it in float32, if its CPU provider lacks an operator in the file's type",
            ) from error
        self.names = [output.name for output in self._session.get_outputs()]

    def values(self, feed: Mapping[str, Array]) -> dict[str, SeenValue]:
        """Return the shapes and types of all values."""
        made = self.arrays(feed, self.names)
        return {name: SeenValue(array.shape, array.dtype) for name, array in made.items()}

    def arrays(self, feed: Mapping[str, Array], names: Sequence[str]) -> dict[str, Array]:
        """Return the named values, as far as they are arrays."""
        made = zip(names, self._session.run(names, dict(feed)), strict=True)
        return {name: array for name, array in made if isinstance(array, np.ndarray)}
