"""The inputs on which a file is quantized, and those that are held out to measure what it cost."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from pom_export.errors import InputError
from pom_export.files import readable_file
from pom_export.graph.exported_model import CAUSAL, ExportedModel, TensorSpec, is_past
from pom_export.parity.case import Array, Arrays
from pom_export.parity.inputs import Inputs, case_of, read_arrays
from pom_export.parity.trials import trial_cases
from pom_export.quantization.own_text import written_by
from pom_export.runtime.streaming.interface import stateful_interface
from pom_export.text.tokenizers import AUTO, choose_tokenizer

LABELS: Final = "labels"
"""The array of a .npz with the right class of each row."""
IDS: Final = "input_ids"

# Tokens of one row of a text, at most; and rows of one call.
_LENGTH: Final = 512
_ROWS: Final = 8
# Of a large model, whose activations would take more memory than its weights.
_LARGE_BYTES: Final = 2**26
_ROWS_OF_LARGE: Final = 2
# Rows of a text at most, of which a quarter is held out; fewer for models so large that more multiplications than this
# would be needed to read them once; and rows of arrays at most.
_MOST_ROWS: Final = 48
_FEWEST_ROWS: Final = 8
_MULTIPLICATIONS: Final = 8e11
_MOST_ARRAY_ROWS: Final = 2000
_FLOAT32_BYTES: Final = 4
_HELD_OUT: Final = 4
_BATCHED: Final = 2


@dataclass(frozen=True)
class Data:
    """Inputs of a model, in calls.

    Attributes:
        calibration: the calls on which scales and products are chosen.
        held_out: the calls on which the result is measured.
        source: where they come from, in words.
        is_text: whether they are tokens of a text, each of which predicts the next.
        bytes_per_token: of a text.
        labels: for each held-out call, the right class of each row, (B,); empty if they are not known.
        calibration_labels: the same for each of the other calls.
        drawn: whether the inputs are random, so that they say nothing about the model's purpose.
    """

    calibration: Sequence[Arrays]
    held_out: Sequence[Arrays]
    source: str
    is_text: bool = False
    bytes_per_token: float = 1.0
    labels: Sequence[Array] = field(default_factory=tuple)
    calibration_labels: Sequence[Array] = field(default_factory=tuple)
    drawn: bool = False


def is_language_model(model: ExportedModel) -> bool:
    """Return whether a file takes token ids alone, and predicts each token from those before it."""
    given = [spec for spec in model.inputs if not is_past(spec.name)]
    sees_past = model.stateful == CAUSAL or (not model.stateful and model.properties.get("mask") == CAUSAL)
    takes_ids = [spec.name for spec in given] == [IDS] and len(given[0].axes) == _BATCHED
    return takes_ids and sees_past and len(model.outputs[0].axes) == _BATCHED + 1


def data_for(
    model: ExportedModel, calibrate: Inputs | None, tokenizer: str, seed: int, progress: Callable[[str], None]
) -> Data:
    """Return the inputs to quantize a file on.

    Args:
        model: the file.
        calibrate: a file of text for a language model; a .npz, or arrays by name, of the model's inputs, whose first
            dimension is the batch, and optionally of "labels"; None: text that the model writes, or random inputs.
        tokenizer: how text becomes tokens; see `choose_tokenizer`.
        seed: of what is random.
        progress: called with one line per stage.

    Raises:
        InputError: the file is unusable or too short.
    """
    if calibrate is None:
        return _own_data(model, seed, progress)
    if not isinstance(calibrate, Mapping) and Path(calibrate).suffix != ".npz":
        return _text_data(model, os.fspath(calibrate), tokenizer)
    if tokenizer != AUTO:
        raise InputError("`tokenizer` is for a file of text", "Leave it out")
    name, arrays = read_arrays(calibrate)
    return _array_data(model, name, arrays)


def _own_data(model: ExportedModel, seed: int, progress: Callable[[str], None]) -> Data:
    tokens = model.inputs[0].axes[1] if is_language_model(model) and model.stateful else None
    if tokens == 1 or isinstance(tokens, str):
        progress("the model writes text to measure on")
        ids = written_by(model, seed)
        ids = ids.reshape(-1, 1) if tokens == 1 else ids
        return _of_text(model, ids, "text that the model wrote itself", 1.0)
    cases = trial_cases(model, seed)
    held_out = trial_cases(model, seed + 1)
    return Data([case.feed for case in cases], [case.feed for case in held_out], "random inputs", drawn=True)


def _text_data(model: ExportedModel, path: str, tokenizer: str) -> Data:
    if not is_language_model(model):
        raise InputError(
            f"{path} is taken for text, and {model.path.name} is no language model that takes tokens alone",
            "Give `calibrate` a .npz of the model's inputs",
        )
    text = readable_file(path, "file of text").read_bytes()
    vocabulary = model.outputs[0].axes[-1]
    if not isinstance(vocabulary, int):
        raise InputError(f"{model.path.name} does not say how many tokens it knows", "Give `calibrate` a .npz")
    try:
        written = text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: {error.reason} at byte {error.start}", "Give a file of text") from error
    ids = choose_tokenizer(tokenizer, vocabulary).encode(written)
    if ids and max(ids) >= vocabulary:
        raise InputError(
            f"the tokenizer gives token {max(ids)}, but the model has {vocabulary}",
            "Choose the tokenizer that the model was trained with: `tokenizer`",
        )
    length = _length(model)
    rows, fewest = len(ids) // length, max(_HELD_OUT, _BATCHED * (fixed_rows(model) or 1))
    if rows < fewest:
        raise InputError(
            f"{path} has {len(ids)} tokens, and {fewest * length} are needed: {fewest} rows of {length}",
            "Give more text",
        )
    affordable = int(_MULTIPLICATIONS * _FLOAT32_BYTES / model.bytes / length)
    # Rows from all over the file, if it is longer than needed.
    chosen = np.linspace(0, rows - 1, min(rows, max(min(_MOST_ROWS, affordable), _FEWEST_ROWS, fewest))).astype(int)
    table = np.array(ids[: rows * length], np.int64).reshape(rows, length)[chosen]
    return _of_text(model, table, path, len(text) / len(ids))


def _length(model: ExportedModel) -> int:
    """Return how many tokens a row of text has for a model."""
    axis = model.inputs[0].axes[1]
    if isinstance(axis, int):
        return axis
    _, most = model.limits.bounds(axis)
    return _LENGTH if most is None else min(most, _LENGTH)


def _of_text(model: ExportedModel, ids: Array, source: str, bytes_per_token: float) -> Data:
    """Return data of tokens, (rows, tokens), the last quarter of it held out."""
    spans = _spans(model, len(ids))
    calls = [[_call(model, ids[part.start : part.stop]) for part in parts] for parts in spans]
    # A single token predicts nothing that is known.
    return Data(calls[0], calls[1], source, is_text=ids.shape[1] > 1, bytes_per_token=bytes_per_token)


def _call(model: ExportedModel, ids: Array) -> dict[str, Array]:
    empty = stateful_interface(model).empty(len(ids)) if model.stateful else {}
    return {IDS: ids, **empty}


def _array_data(model: ExportedModel, name: str, arrays: Mapping[str, Array]) -> Data:
    labels = arrays.get(LABELS)
    given = [spec for spec in model.inputs if not is_past(spec.name)]
    rows = _rows(name, given, arrays, _BATCHED * (fixed_rows(model) or 1))
    if labels is not None and (labels.dtype.kind not in "iu" or labels.shape != (rows,)):
        raise InputError(
            f"{LABELS} in {name} are {labels.dtype}{list(labels.shape)}, not one whole number for each of {rows} rows",
            "Give the class of each row, or leave them out",
        )
    if rows > _MOST_ARRAY_ROWS:
        chosen = np.linspace(0, rows - 1, _MOST_ARRAY_ROWS).astype(int)
        taken = {key: array[chosen] if array.ndim else array for key, array in arrays.items()}
        return _array_data(model, f"{_MOST_ARRAY_ROWS} of the {rows} rows of {name}", taken)
    spans = _spans(model, rows)
    calls = [[_checked_call(model, arrays, part) for part in parts] for parts in spans]
    known = [[] if labels is None else [labels[part.start : part.stop] for part in parts] for parts in spans]
    is_text = is_language_model(model) and labels is None and arrays[IDS].shape[1] > 1
    return Data(calls[0], calls[1], name, is_text=is_text, labels=known[1], calibration_labels=known[0])


def fixed_rows(model: ExportedModel) -> int | None:
    """Return how many rows each call of a file has to have; None: any number."""
    given = [spec for spec in model.inputs if not is_past(spec.name) and spec.axes]
    return next((axis for spec in given if isinstance(axis := spec.axes[0], int)), None)


def _spans(model: ExportedModel, rows: int) -> tuple[list[range], list[range]]:
    """Return the rows of each call, and of each that is held out; with a fixed number of rows, some may be left."""
    fixed = fixed_rows(model)
    size, unit = fixed or (_ROWS if model.bytes < _LARGE_BYTES else _ROWS_OF_LARGE), fixed or 1
    count = rows // unit
    kept, stop = unit * (count - max(1, count // _HELD_OUT)), unit * count
    first, held_out = (
        [range(start, min(start + size, end)) for start in range(begin, end, size)]
        for begin, end in ((0, kept), (kept, stop))
    )
    return first, held_out


def _rows(name: str, given: Sequence[TensorSpec], arrays: Mapping[str, Array], fewest: int) -> int:
    """Return how many rows the arrays have in their first dimension."""
    counts = {spec.name: len(arrays[spec.name]) for spec in given if spec.name in arrays and arrays[spec.name].ndim}
    rows = min(counts.values(), default=0)
    if len(set(counts.values())) > 1:
        raise InputError(f"the inputs in {name} have different numbers of rows: {counts}", "Give each as many")
    if rows < fewest:
        raise InputError(
            f"{name} has {rows} row{'s' if rows != 1 else ''} of the model's inputs, and some have to be held out",
            f"Give at least {fewest}, named after the inputs: {', '.join(spec.name for spec in given)}",
        )
    return rows


def _checked_call(model: ExportedModel, arrays: Mapping[str, Array], rows: range) -> Arrays:
    part = {key: array[rows.start : rows.stop] for key, array in arrays.items() if key != LABELS and array.ndim}
    specs = [spec for spec in model.inputs if not is_past(spec.name) or spec.name in part]
    past: Mapping[str, Any] = stateful_interface(model).empty(len(rows)) if model.stateful else {}
    return {**past, **case_of(part, specs, model.limits).feed}
