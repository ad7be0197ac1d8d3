"""Packages for Triton's Python backend: our pool and sessions inside the server."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

from pom_export.errors import InputError
from pom_export.files import AnyPath
from pom_export.graph.exported_model import ExportedModel, TensorSpec
from pom_export.packaging.folder import PackageFolder
from pom_export.packaging.readme import interface_table, readme
from pom_export.packaging.targets import Contents, PackageOptions, Progress
from pom_export.packaging.triton.batch_sizes import preferred_sizes
from pom_export.packaging.triton.batches import has_batch_axis
from pom_export.packaging.triton.config import Word, as_text, controls, parameter, tensor
from pom_export.runtime.pool.pool import check_poolable
from pom_export.runtime.streaming.interface import StatefulModel, stateful_interface

_SERVED: Final = Path(__file__).parent / "served"
# The environment, as seen from the model's folder in the repository.
_ENVIRONMENT: Final = "$$TRITON_MODEL_DIRECTORY/../../env"
# As many sequences as fit into this memory, whose pool is allocated at once, up to a number.
_STATE_BYTES: Final = 256 << 20
_MOST_SEQUENCES: Final = 1024
_MOST_TOGETHER: Final = 64
_IDLE_SECONDS: Final = 600
_COMMAND: Final = "tritonserver --model-repository=models"
_SERVE: Final = f"""
    The server's Python backend needs an environment with pom-export, of the Python version that its stub is built for,
    and **with NumPy 1**: with NumPy 2 the Python backend of many versions exchanges wrong numbers without an error.
    model.py tries that when it is loaded, and refuses. Make the environment in this folder, on the machine or in the
    image that serves:

        python3 -m venv env
        env/bin/pip install 'pom-export[onnxruntime]' 'numpy<2'
        env/bin/python preflight.py

    and serve the package:

        {_COMMAND}

    To keep the environment elsewhere, write its path as EXECUTION_ENV_PATH into config.pbtxt.
    """
_CLIENT: Final = "`client.py` is a client, and an example: `pip install 'tritonclient[grpc]'`, then `python client.py`."
_SEQUENCES: Final = f"""\
The tokens of a sequence come in any number of requests, of any number of tokens each, with a batch axis of 1. The
client gives each request the sequence's id (a whole number, not 0), the first one `sequence_start` and the last one
`sequence_end`. A start with an id in use begins anew. Requests of several sequences that wait share calls of the model.
Ask for the last output alone where a prompt is long: the server then computes and sends nothing else.

A request with an error ends its sequence, since those sent after it would continue without its tokens. A sequence that
has been idle for {_IDLE_SECONDS // 60} minutes ends too (max_sequence_idle_microseconds in config.pbtxt)."""


def write(
    folder: PackageFolder, model: ExportedModel, name: str, options: PackageOptions, progress: Progress
) -> Contents:
    """Write the package; see `Target`."""
    stateful = stateful_interface(model) if model.stateful else None
    if stateful is not None:
        check_poolable(stateful)
        if options.bench is not None:
            raise InputError(f"`bench` does not apply: {model.path.name} keeps a state", "Leave it out")
    config = _batched(model, options.bench) if stateful is None else _of_sequences(stateful)
    progress("writing the package")
    folder.write(f"models/{name}/config.pbtxt", as_text({"name": name, "backend": "python", **config}))
    folder.copy_model(model, f"models/{name}/1/model.onnx")
    folder.copy(_SERVED / "model.py", f"models/{name}/1/model.py")
    for program in ("preflight.py", "client.py"):
        folder.copy(_SERVED / program, program)
    folder.write("README.md", _readme(model, stateful, name))
    return Contents(command=_COMMAND, serving={"name": name, "backend": "python"})


def last_output(model: StatefulModel) -> TensorSpec:
    """Return the output that has the last token's only: of the name of the output of all tokens, and `_last`."""
    spec = model.output
    return TensorSpec(f"{spec.name}_last", spec.dtype, (spec.axes[0], *spec.axes[2:]))


def _of_sequences(model: StatefulModel) -> dict[str, Any]:
    """Return the configuration of a model whose sequences come in pieces."""
    row = sum(math.prod(part.empty_shape(1)) * part.spec.dtype.itemsize for part in model.past)
    return {
        "max_batch_size": _MOST_TOGETHER,
        # Pieces of different lengths may come together; each is answered by itself.
        "input": [tensor(model.tokens, batched=True, allow_ragged_batch=True)],
        "output": [tensor(spec, batched=True) for spec in (model.output, last_output(model))],
        "sequence_batching": {
            "max_sequence_idle_microseconds": _IDLE_SECONDS * 1_000_000,
            "control_input": controls(),
            "oldest": {"max_candidate_sequences": max(1, min(_MOST_SEQUENCES, _STATE_BYTES // row))},
        },
        **_placed(),
    }


def _batched(model: ExportedModel, bench: AnyPath | None) -> dict[str, Any]:
    """Return the configuration of a model without a state."""
    batched = has_batch_axis(model)
    if bench is not None and not batched:
        raise InputError(f"`bench` does not apply: {model.path.name} has no batch axis of any size", "Leave it out")
    return {
        "input": [tensor(spec, batched=batched) for spec in model.inputs],
        "output": [tensor(spec, batched=batched) for spec in model.outputs],
        **(_batching(bench) if batched else {"max_batch_size": 0}),
        **_placed(),
    }


def _batching(bench: AnyPath | None) -> dict[str, Any]:
    """Return how requests are batched.

    Without measurements, all that waits is, up to a number: a size that is preferred for no reason would only delay
    requests.
    """
    if bench is None:
        return {"max_batch_size": _MOST_TOGETHER, "dynamic_batching": {}}
    sizes = preferred_sizes(bench)
    return {"max_batch_size": sizes[-1], "dynamic_batching": {"preferred_batch_size": sizes}}


def _placed() -> dict[str, Any]:
    return {
        "instance_group": [{"count": 1, "kind": Word("KIND_CPU")}],
        "parameters": [parameter("EXECUTION_ENV_PATH", _ENVIRONMENT)],
    }


def _readme(model: ExportedModel, stateful: StatefulModel | None, name: str) -> str:
    """Return the package's README.md."""
    return readme(
        f"{name} for Triton's Python backend",
        model,
        {"Serve it": _SERVE, "Send arrays to it": _client_text(model, stateful)},
    )


def _client_text(model: ExportedModel, stateful: StatefulModel | None) -> str:
    if stateful is None:
        names = {spec.name: "input" for spec in model.inputs} | {spec.name: "output" for spec in model.outputs}
        return f"{interface_table(model, names)}\n\nRequests of equal shapes share a call.\n\n{_CLIENT}"
    last = last_output(stateful)
    names = {stateful.tokens.name: "the next tokens of a sequence", stateful.output.name: "for each of them"}
    shape = ", ".join(map(str, last.axes))
    table = f"{interface_table(model, names)}\n| `{last.name}` | {last.dtype} ({shape}) | for the last of them |"
    return f"{table}\n\n{_SEQUENCES}\n\n{_CLIENT}"
