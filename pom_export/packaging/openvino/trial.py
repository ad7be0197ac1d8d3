"""Inputs with the outputs of ONNX Runtime, on which a converted model is compared here and where it is used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pom_export.errors import ParityError
from pom_export.graph.exported_model import ExportedModel
from pom_export.parity.comparison import difference
from pom_export.parity.tolerances import MODELS
from pom_export.parity.trials import trial_cases
from pom_export.runtime.openvino import GROUP, HINT, SINGLE, in_one_line
from pom_export.runtime.session import inference_session
from pom_export.runtime.streaming.interface import MASK, StatefulModel
from pom_export.runtime.streaming.session import StreamingSession

Array = npt.NDArray[Any]
# Lengths of the calls of a stream.
_PIECES: Final = (9, 1, 1, 5, 1)
_ROWS: Final = (1, 3)


@dataclass(frozen=True)
class Trial:
    """Calls of one request, one after the other.

    Attributes:
        name: what they are.
        calls: the inputs and outputs of each, by name.
    """

    name: str
    calls: Sequence[tuple[Mapping[str, Array], Mapping[str, Array]]]


def trials_of(file: ExportedModel, stateful: StatefulModel | None) -> list[Trial]:
    """Return trials with the outputs of the original in ONNX Runtime."""
    if stateful is not None:
        rows = [stateful.tokens.axes[0]] if isinstance(stateful.tokens.axes[0], int) else _ROWS
        return [_stream(stateful, count) for count in rows]
    session = inference_session(file.path)
    names = [spec.name for spec in file.outputs]
    return [
        Trial(case.name, [(case.feed, dict(zip(names, session.run(None, dict(case.feed)), strict=True)))])
        for case in trial_cases(file)
    ]


def _stream(model: StatefulModel, rows: int) -> Trial:
    """Return a stream in uneven pieces, of which a model with a mask does not count all tokens in every row."""
    random = np.random.default_rng(rows)
    session = StreamingSession(model.file.path, batch=rows)
    calls, total = [], 0
    fixed = model.tokens.axes[1]
    for piece in _PIECES:
        count = fixed if isinstance(fixed, int) else piece
        total += count
        if total > model.positions:
            break
        feed = {model.tokens.name: _tokens(model, rows, count, random)}
        lengths = None
        if model.mask is not None:
            lengths = np.maximum(1, count - np.arange(rows))
            feed[MASK] = np.arange(count) < lengths[:, None]
        calls.append((feed, {model.output.name: session.prefill(feed[model.tokens.name], lengths=lengths)}))
    return Trial(f"{rows} row{'s' if rows > 1 else ''} in {len(calls)} calls", calls)


def _tokens(model: StatefulModel, rows: int, count: int, random: np.random.Generator) -> Array:
    """Return random tokens, (rows, count) ids or (rows, count, d) vectors."""
    spec = model.tokens
    if model.takes_ids:
        most = model.limits.values.get(spec.name, [2])[0]
        return random.integers(0, most, (rows, count)).astype(spec.dtype)
    return random.standard_normal((rows, count, *spec.token_shape)).astype(spec.dtype)


def check(path: Path, precision: str, trials: Sequence[Trial]) -> list[str]:
    """Run a package's model in OpenVINO in float32, with a request for each trial, and compare the outputs.

    The calls of the requests take turns.

    Args:
        path: the model's .xml file.
        precision: the type of the original.
        trials: what to compare on.

    Returns:
        What was compared, one line each.

    Raises:
        InputError: OpenVINO cannot run it.
        ParityError: an output differs.
    """
    import openvino

    worst = [0.0] * len(trials)
    with in_one_line("OpenVINO"):
        compiled = openvino.Core().compile_model(path, "CPU", {HINT: SINGLE, GROUP: 0})
        requests = [compiled.create_infer_request() for _ in trials]
        for turn in range(max(len(trial.calls) for trial in trials)):
            for place, (trial, request) in enumerate(zip(trials, requests, strict=True)):
                if turn < len(trial.calls):
                    worst[place] = max(worst[place], _compare(trial, turn, request, precision))
    return [f"{trial.name}: {most:.0e} from ONNX Runtime" for trial, most in zip(trials, worst, strict=True)]


def _compare(trial: Trial, turn: int, request: Any, precision: str) -> float:
    feed, expected = trial.calls[turn]
    results = request.infer(dict(feed))
    worst = 0.0
    for name, reference in expected.items():
        found = difference(np.array(results[name]), reference, MODELS[precision])
        if not found:
            raise ParityError(
                f"{name} differs in OpenVINO on {trial.name}: {found.broken}",
                "No folder was written. Verify the original, and report this if it is right",
            )
        worst = max(worst, found.max_rel)
    return worst


def as_arrays(trials: Sequence[Trial]) -> dict[str, Array]:
    """Return trials as arrays by name, for an .npz: trial/call/in/input and trial/call/out/output."""
    arrays: dict[str, Array] = {}
    for place, trial in enumerate(trials):
        for turn, (feed, outputs) in enumerate(trial.calls):
            arrays |= {f"{place}/{turn}/in/{name}": array for name, array in feed.items()}
            arrays |= {f"{place}/{turn}/out/{name}": array for name, array in outputs.items()}
    return arrays
