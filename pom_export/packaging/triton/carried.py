"""The configuration and the README of models whose state the server carries."""

from __future__ import annotations

from typing import Any, Final

from pom_export.graph.exported_model import ExportedModel
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


def carried_config(model: ExportedModel, states: list[StateTensor], together: int = MOST_TOGETHER) -> dict[str, Any]:
    """Return the configuration of a file whose state the server carries.

    Args:
        model: the file, in the form that `write_carried` writes.
        states: the parts of its state.
        together: the most sequences in a call.
    """
    inner = {part.spec.name for part in states} | {part.present for part in states}
    return {
        "input": [tensor(spec, batched=True) for spec in model.inputs if spec.name not in inner],
        "output": [tensor(spec, batched=True) for spec in model.outputs if spec.name not in inner],
        **sequences_config(together=together, state=state_entries(states)),
    }


def carried_text(model: ExportedModel, states: list[StateTensor]) -> str:
    """Return the section for clients of a file whose state the server carries."""
    inner = {part.spec.name for part in states} | {part.present for part in states}
    names = {spec.name: "the next tokens of a sequence" for spec in model.inputs if spec.name not in inner}
    if MASK in names:
        names[MASK] = "which of them count; true for all unless rows are padded at their end"
    names |= {spec.name: "for each of them" for spec in model.outputs if spec.name not in inner}
    return sequences_text(interface_table(model, names), _STATE)
