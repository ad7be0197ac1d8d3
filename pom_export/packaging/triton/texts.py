"""What the READMEs of packages for Triton have in common."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Final

from pom_export.graph.exported_model import ExportedModel, TensorSpec
from pom_export.packaging.readme import interface_table
from pom_export.packaging.triton.batches import has_batch_axis
from pom_export.packaging.triton.config import type_word
from pom_export.packaging.triton.repository import IDLE_SECONDS

_CLIENT: Final = "`client.py` is a client, and an example: `pip install 'tritonclient[grpc]'`, then `python client.py`."
_SEQUENCES: Final = f"""\
The tokens of a sequence come in any number of requests, of any number of tokens each, with a batch axis of 1. The
client gives each request the sequence's id (a whole number, not 0), the first one `sequence_start` and the last one
`sequence_end`. A start with an id in use begins anew. A sequence that has been idle for {IDLE_SECONDS // 60} minutes
ends (max_sequence_idle_microseconds in config.pbtxt)."""


def sequences_text(name: str, inputs: Sequence[TensorSpec], table: str, *more: str) -> str:
    """Return the section for clients of a model with a state.

    Args:
        name: the model's name in the server.
        inputs: the inputs of requests, each with an entry for each token.
        table: its table of tensors.
        more: further remarks.
    """
    return "\n\n".join([table, _SEQUENCES, *more, _CLIENT, _without_client(name, inputs)])


def _without_client(name: str, inputs: Sequence[TensorSpec]) -> str:
    """Return an example of a sequence's first request, of two tokens, in HTTP."""
    given = []
    for spec in inputs:
        shape = [1, 2, *spec.token_shape]
        kind = type_word(spec.dtype).text.removeprefix("TYPE_")
        given.append({"name": spec.name, "shape": shape, "datatype": kind, "data": [1] * math.prod(shape)})
    body = json.dumps({"parameters": {"sequence_id": 1, "sequence_start": True}, "inputs": given})
    return f"Without a client:\n\n    curl localhost:8000/v2/models/{name}/infer -d '{body}'"


def requests_text(model: ExportedModel) -> str:
    """Return the section for clients of a model without a state."""
    batched = has_batch_axis(model)
    names = {spec.name: "input" for spec in model.inputs} | {spec.name: "output" for spec in model.outputs}
    # The server takes and gives no tensor of the batch alone.
    names |= {spec.name: f"{names[spec.name]}; (batch, 1) in requests" for spec in _narrow(model) if batched}
    calls = "Requests of equal shapes share a call." if batched else "Each request is a call of its own."
    return f"{interface_table(model, names)}\n\n{calls}\n\n{_CLIENT}"


def _narrow(model: ExportedModel) -> list[TensorSpec]:
    return [spec for spec in (*model.inputs, *model.outputs) if len(spec.axes) == 1]
