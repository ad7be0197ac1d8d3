"""The configuration and the README of models whose state the server carries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from pom_export.graph.exported_model import ExportedModel, TensorSpec
from pom_export.packaging.readme import interface_table
from pom_export.packaging.triton.config import tensor
from pom_export.packaging.triton.repository import MOST_TOGETHER, sequences_config
from pom_export.packaging.triton.states import state_entries
from pom_export.packaging.triton.texts import sequences_text
from pom_export.runtime.streaming.interface import MASK, StateTensor

_STATE: Final = """\
The server keeps each sequence's state (implicit state): tensors whose names begin with `past.` and `present.` are no
inputs and outputs of requests. Only requests of equal shapes share a call. After a request with an error, start the
sequence anew: those sent after it may have been read without its tokens."""


def carried_config(
    model: ExportedModel, states: Sequence[StateTensor], together: int = MOST_TOGETHER
) -> dict[str, Any]:
    """Return the configuration of a file whose state the server carries.

    Args:
        model: the file, in the form that `write_carried` writes.
        states: the parts of its state.
        together: the most sequences in a call.
    """
    inputs, outputs = _of_requests(model, states)
    return {
        "input": [tensor(spec, batched=True) for spec in inputs],
        "output": [tensor(spec, batched=True) for spec in outputs],
        **sequences_config(together=together, state=state_entries(states)),
    }


def carried_text(model: ExportedModel, states: Sequence[StateTensor], name: str) -> str:
    """Return the section for clients of a file whose state the server carries; `name` is its name in the server."""
    inputs, outputs = _of_requests(model, states)
    meanings = {spec.name: "the next tokens of a sequence" for spec in inputs}
    if MASK in meanings:
        meanings[MASK] = "which of them count; true for all unless rows are padded at their end"
    meanings |= {spec.name: "for each of them" for spec in outputs}
    return sequences_text(name, inputs, interface_table(model, meanings), _STATE)


def _of_requests(model: ExportedModel, states: Sequence[StateTensor]) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Return the inputs and outputs of requests: those that are no state."""
    inner = {name for part in states for name in (part.spec.name, part.present)}
    inputs, outputs = ([spec for spec in specs if spec.name not in inner] for specs in (model.inputs, model.outputs))
    return inputs, outputs
