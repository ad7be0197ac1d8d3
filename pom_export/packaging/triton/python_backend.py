"""Packages for Triton's Python backend: our pool and sessions inside the server."""

from __future__ import annotations

import math
from typing import Any, Final

from pom_export.errors import InputError
from pom_export.graph.exported_model import ExportedModel, TensorSpec
from pom_export.packaging.folder import PackageFolder
from pom_export.packaging.readme import interface_table, readme
from pom_export.packaging.targets import Contents, PackageOptions, Progress
from pom_export.packaging.triton.config import controls, parameter, tensor
from pom_export.packaging.triton.readers import check_sequences, shares_calls
from pom_export.packaging.triton.repository import (
    COMMAND,
    MOST_SEQUENCES,
    SERVED,
    batched_config,
    on_cpu,
    sequences_config,
    write_repository,
)
from pom_export.packaging.triton.states import carried_states
from pom_export.packaging.triton.texts import requests_text, sequences_text
from pom_export.runtime.session import inference_session
from pom_export.runtime.streaming.interface import StatefulModel, stateful_interface

# The environment, as seen from the model's folder in the repository.
_ENVIRONMENT: Final = {"parameters": [parameter("EXECUTION_ENV_PATH", "$$TRITON_MODEL_DIRECTORY/../../env")]}
# As many sequences as fit into this memory, whose pool is allocated at once.
_STATE_BYTES: Final = 256 << 20
# Sequences whose states grow, however long they become.
_MOST_SESSIONS: Final = 64
_SERVE: Final = f"""
    The server's Python backend needs an environment with pom-export, of the Python version that its stub is built for,
    and **with NumPy 1**: with NumPy 2 the Python backend exchanges wrong numbers without an error (that of server 2.51
    does). model.py tries that when it is loaded, and refuses. Make the environment in this folder, on the machine or in
    the image that serves:

        python3 -m venv env
        env/bin/pip install 'numpy<2' click onnx onnx-ir onnxruntime rich
        env/bin/pip install --no-deps pom_export-*.whl
        env/bin/python preflight.py

    (The wheel is what `make wheel` makes of pom-export. That is all that it needs: pom-export's other dependencies,
    torch among them, are for exporting.) Then serve the
    package:

        {COMMAND}

    To keep the environment elsewhere, write its path as EXECUTION_ENV_PATH into config.pbtxt.
    """
_LAST: Final = "Ask for the last output alone where a prompt is long: the server then computes and sends nothing else."
_SHARED: Final = "Requests of several sequences that wait share calls of the model."
_ALONE: Final = "The requests of this model run one after the other: its sequences cannot share calls."
_ERRORS: Final = (
    "A request with an error ends its sequence, since those sent after it would continue without its tokens."
)


def write(
    folder: PackageFolder, model: ExportedModel, name: str, options: PackageOptions, progress: Progress
) -> Contents:
    """Write the package; see `Target`."""
    stateful = stateful_interface(model) if model.stateful else None
    if stateful is not None:
        check_sequences(stateful)
    elif carried_states(model):
        raise InputError(
            f"{model.path.name} has its state in the form that servers carry, and this backend carries none",
            "Give the file that it was made from",
        )
    config = batched_config(model, options.bench) if stateful is None else _sequences_config(stateful)
    progress("loading it into ONNX Runtime")
    inference_session(model.path)
    progress("writing the package")
    write_repository(folder, name, "python", {**config, **on_cpu(), **_ENVIRONMENT})
    folder.copy_model(model, f"models/{name}/1/model.onnx")
    folder.copy(SERVED / "model.py", f"models/{name}/1/model.py")
    clients = requests_text(model) if stateful is None else _sequences_text(stateful, name)
    sections = {"Serve it": _SERVE, "Send arrays to it": clients}
    folder.write("README.md", readme(f"{name} for Triton's Python backend", model, sections))
    serving = {"name": name, "backend": "python"}
    return Contents(command=COMMAND, checked=["ONNX Runtime loads the file here"], serving=serving)


def last_output(model: StatefulModel) -> TensorSpec:
    """Return the output that has the last token's only: of the name of the output of all tokens, and `_last`."""
    spec = model.output
    return TensorSpec(f"{spec.name}_last", spec.dtype, (spec.axes[0], *spec.axes[2:]))


def _sequences_config(model: StatefulModel) -> dict[str, Any]:
    """Return the configuration of a model whose sequences come in pieces."""
    row = sum(math.prod(part.empty_shape(1)) * part.spec.dtype.itemsize for part in model.past)
    most = max(1, min(MOST_SEQUENCES, _STATE_BYTES // row)) if shares_calls(model) else _MOST_SESSIONS
    return {
        # Pieces of different lengths may come together; each is answered by itself.
        "input": [tensor(model.tokens, batched=True, allow_ragged_batch=True)],
        "output": [tensor(spec, batched=True) for spec in (model.output, last_output(model))],
        **sequences_config(most, control_input=controls()),
    }


def _sequences_text(model: StatefulModel, name: str) -> str:
    last = last_output(model)
    names = {model.tokens.name: "the next tokens of a sequence", model.output.name: "for each of them"}
    shape = ", ".join(map(str, last.axes))
    table = f"{interface_table(model.file, names)}\n| `{last.name}` | {last.dtype} ({shape}) | for the last of them |"
    calls = _SHARED if shares_calls(model) else _ALONE
    return sequences_text(name, [model.tokens], table, calls, _LAST, _ERRORS)
