"""States that the server carries from call to call (implicit state): the file's interface for it, and its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from pom_export.errors import InputError, ParityError
from pom_export.graph.claims import SERVER_STATES
from pom_export.graph.exported_model import BATCH, ExportedModel, TensorSpec, read_model
from pom_export.graph.loading import load_graph
from pom_export.graph.passes import NumberStatesPass
from pom_export.graph.saving import save_model
from pom_export.json_text import parse_json
from pom_export.packaging.triton.config import tensor, type_word
from pom_export.parity.comparison import difference
from pom_export.parity.tolerances import MODELS
from pom_export.runtime.session import inference_session
from pom_export.runtime.streaming.interface import MASK, StatefulModel, StateTensor
from pom_export.runtime.streaming.session import StreamingSession

# Rows, and the tokens of each call.
_TRIALS: Final = ((1, (5, 1, 1, 9)), (3, (1, 17, 2)))


def write_carried(model: StatefulModel, path: Path) -> ExportedModel:
    """Write a stateful file in the form whose state a server carries, and return it; see `NumberStatesPass`.

    Raises:
        InputError: it cannot be written.
    """
    graph = load_graph(model.file.path)
    NumberStatesPass([(part.spec.name, part.present) for part in model.past])(graph)
    save_model(graph, path)
    return read_model(path)


def carried_states(model: ExportedModel) -> list[StateTensor]:
    """Return the parts of the state of a file that `write_carried` wrote; none for other files.

    Raises:
        InputError: its inputs and outputs have been renamed or changed since.
    """
    inputs, outputs = ({spec.name: spec for spec in specs} for specs in (model.inputs, model.outputs))
    try:
        pairs = dict(parse_json(model.properties.get(SERVER_STATES, "{}")))
        states = [StateTensor(inputs[past], outputs[present].name) for past, present in pairs.items()]
    except (ValueError, TypeError, LookupError) as error:
        raise InputError(f"{model.path} lacks inputs or outputs of its state", "Package the export anew") from error
    alike = list(zip(sorted(pairs), sorted(pairs.values()), strict=True)) == sorted(pairs.items())
    shapes = all(_is_carried(part.spec) and outputs[part.present].axes == part.spec.axes for part in states)
    if not (alike and shapes):
        raise InputError(
            f"the state of {model.path} is not in the form that a server carries", "Package the export anew"
        )
    return states


def _is_carried(spec: TensorSpec) -> bool:
    return len(spec.axes) > 1 and spec.axes[0] == BATCH and all(isinstance(axis, int) for axis in spec.axes[1:])


def state_entries(states: Sequence[StateTensor]) -> list[dict[str, Any]]:
    """Return the configuration of a state: its tensors, all zero at the start of a sequence."""
    entries = []
    for part in states:
        kind = {"data_type": type_word(part.spec.dtype), "dims": tensor(part.spec, batched=True)["dims"]}
        first = {"name": f"{part.spec.name}.zero", **kind, "zero_data": True}
        entries.append({"input_name": part.spec.name, "output_name": part.present, **kind, "initial_state": first})
    return entries


def check_carried(original: StatefulModel, rewritten: ExportedModel) -> str:
    """Run both files, the rewritten one as a server does, and return a line about it.

    The server pairs the sorted names of the state's inputs with the sorted names of its outputs.

    Raises:
        InputError: one of them cannot be run.
        ParityError: outputs differ.
    """
    session = inference_session(rewritten.path)
    states = carried_states(rewritten)
    pairs = list(zip(sorted(p.spec.name for p in states), sorted(p.present for p in states), strict=True))
    random = np.random.default_rng(0)
    calls = 0
    for rows, counts in _TRIALS:
        stream = StreamingSession(original.file.path, batch=rows)
        state = {part.spec.name: np.zeros(part.empty_shape(rows), part.spec.dtype) for part in states}
        for count in counts:
            tokens = _tokens(original, rows, count, random)
            feed = {original.tokens.name: tokens, **state}
            if original.mask is not None:
                feed[MASK] = np.ones((rows, count), np.bool_)
            got = dict(zip([o.name for o in session.get_outputs()], session.run(None, feed), strict=True))
            state = {past: got[present] for past, present in pairs}
            _check_same(got[original.output.name], stream.prefill(tokens), original, rewritten)
            calls += 1
    return f"the state's new interface gives the numbers of {original.name} in ONNX Runtime, in {calls} calls"


def _tokens(model: StatefulModel, rows: int, count: int, random: np.random.Generator) -> np.ndarray[Any, Any]:
    """Return random tokens, (rows, count) ids or (rows, count, d) vectors."""
    spec = model.tokens
    if model.takes_ids:
        most = model.limits.values.get(spec.name, [2])[0]
        return random.integers(0, most, (rows, count)).astype(spec.dtype)
    return random.standard_normal((rows, count, *spec.token_shape)).astype(spec.dtype)


def _check_same(got: Any, expected: Any, original: StatefulModel, rewritten: ExportedModel) -> None:
    found = difference(got, expected, MODELS[rewritten.precision])
    if not found:
        raise ParityError(
            f"with its state's new interface, {original.output.name} of {original.name} differs: {found.broken}",
            "No folder was written. Verify the original, and report this if it is right",
        )
