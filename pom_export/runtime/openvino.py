"""Run a model in OpenVINO, in a precision that is known."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pom_export.errors import SEE_CAUSE, InputError, MissingDependencyError
from pom_export.files import scratch_folder
from pom_export.graph.exported_model import ExportedModel
from pom_export.runtime.backend_names import OPENVINO
from pom_export.version import version_of

HINT: Final = "INFERENCE_PRECISION_HINT"
"""OpenVINO's property for the type that a model computes in, whatever the types in its graph are."""

SINGLE: Final = "f32"
GROUP: Final = "DYNAMIC_QUANTIZATION_GROUP_SIZE"
"""OpenVINO's property for how many activations it rounds to 8 bits together before a quantized product; 0: none at all.

Where the processor is fast at that, it does so by its own choice, whatever `HINT` and the file say.
"""

_DEVICE: Final = "CPU"


def check_openvino() -> None:
    """Raise MissingDependencyError if OpenVINO is not installed."""
    if importlib.util.find_spec(OPENVINO) is None:
        raise MissingDependencyError("OpenVINO is not installed", "Install it: pip install 'openvino>=2026.4'")


def openvino_version() -> str:
    """Return OpenVINO's version; empty if it is not installed."""
    return version_of(OPENVINO) or ""


class OpenVinoRunner:
    """A model in OpenVINO on the CPU.

    OpenVINO does not expand functions, so it gets an inlined copy of a file that has some.

    Args:
        model: the file.
        precision: what to compute in, as OpenVINO calls it, such as "f32"; None: OpenVINO's own choice.

    Attributes:
        name: name of the runner in messages.
        computes_in: what it computes in, as OpenVINO calls it; empty until the model is loaded.
    """

    def __init__(self, model: ExportedModel, precision: str | None = SINGLE) -> None:
        self.name = f"{OPENVINO} ({precision or 'its own precision'})"
        self.computes_in = ""
        self._model = model
        self._settings: dict[str, str | int] = {} if precision is None else {HINT: precision, GROUP: 0}
        self._request: Any = None

    def __enter__(self) -> OpenVinoRunner:
        """Load the model.

        Raises:
            InputError: OpenVINO cannot load it.
            MissingDependencyError: OpenVINO is not installed.
        """
        check_openvino()
        import openvino

        with ExitStack() as until_compiled, in_one_line(self.name):
            core = openvino.Core()
            file = expanded(self._model, until_compiled.enter_context(scratch_folder()))
            graph = _with_numpy_types(core.read_model(file))
            compiled = core.compile_model(graph, _DEVICE, self._settings)
            self.computes_in = _type_name(compiled.get_property(HINT))
            self._request = compiled.create_infer_request()
        return self

    def __exit__(self, *exception: object) -> None:
        """Unload the model."""
        self._request = None

    def infer(self, feed: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Return the outputs by name; bfloat16 ones in float32.

        Raises:
            InputError: OpenVINO cannot run the model on these inputs.
        """
        wide = {name: array.astype(np.float32) if _is_bfloat16(array) else array for name, array in feed.items()}
        with in_one_line(self.name):
            results = self._request.infer({name: np.ascontiguousarray(array) for name, array in wide.items()})
            return {spec.name: np.array(results[spec.name]) for spec in self._model.outputs}


@contextmanager
def in_one_line(name: str) -> Iterator[None]:
    """Raise InputError with the reason for OpenVINO's error, which is in the last of its lines."""
    try:
        yield
    except RuntimeError as error:
        lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise InputError(f"{name} failed: {lines[-1]}", SEE_CAUSE) from error


def expanded(model: ExportedModel, folder: Path) -> Path:
    """Return a file in the form that OpenVINO reads: itself, or an inlined copy in a folder if it has functions.

    Raises:
        InputError: it cannot be inlined.
    """
    if not _has_functions(model):
        return model.path
    file = folder / "inlined.onnx"
    _save_inlined(model, file)
    return file


def _has_functions(model: ExportedModel) -> bool:
    import onnx

    return bool(onnx.load(model.path, format="protobuf", load_external_data=False).functions)


def _save_inlined(model: ExportedModel, path: Path) -> None:
    from pom_export.graph.inlining import inlined_graph
    from pom_export.graph.quantized.products import MICROSOFT
    from pom_export.graph.saving import save_graph

    # OpenVINO reads ONNX Runtime's products with quantized weights.
    save_graph(inlined_graph(model, kept=(MICROSOFT,))[0], path)


def _with_numpy_types(graph: Any) -> Any:
    """Give bfloat16 inputs and outputs, which NumPy does not have, the type float32."""
    from openvino import Type
    from openvino.preprocess import PrePostProcessor

    steps = PrePostProcessor(graph)
    for index, port in enumerate(graph.inputs):
        if port.element_type == Type.bf16:
            steps.input(index).tensor().set_element_type(Type.f32)
    for index, port in enumerate(graph.outputs):
        if port.element_type == Type.bf16:
            steps.output(index).tensor().set_element_type(Type.f32)
    return steps.build()


def _is_bfloat16(array: npt.NDArray[Any]) -> bool:
    return array.dtype.name == "bfloat16"


def _type_name(kind: Any) -> str:
    return str(kind.to_string() if hasattr(kind, "to_string") else kind)
