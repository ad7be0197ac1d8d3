"""Measure how much worse a model is than the one that it was made from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from pom_export.errors import InputError
from pom_export.graph.exported_model import ExportedModel, presents
from pom_export.parity.case import Array, Arrays
from pom_export.quantization.data import IDS, Data

Run = Callable[[Arrays], Mapping[str, Array]]
"""Runs a model: its outputs by name, for inputs by name."""

BITS: Final = "bits a byte"
ACCURACY: Final = "accuracy"
_IMAGE_RANK: Final = 4
_ROW_RANK: Final = 2


@dataclass(frozen=True)
class Quality:
    """How a model compares with its original on the same inputs.

    Attributes:
        measure: the model's own measure: "bits a byte" of a text, or "accuracy"; empty if the inputs have none.
        original: what the original reaches.
        quantized: what the other reaches.
        loss: by what share of the original's the other is worse; negative if it is better.
        error: largest error of an output, relative to its largest magnitude in the original.
        rms_error: root mean square of an output's error, relative to that of the output.
        agreement: share of tokens or rows for which both prefer the same token or class.
        psnr: of images, peak signal-to-noise ratio in dB, the peak being the range of the original's values.
    """

    measure: str
    original: float | None
    quantized: float | None
    loss: float | None
    error: float
    rms_error: float
    agreement: float | None = None
    psnr: float | None = None


class Judge:
    """Compares models with an original on the same calls.

    Args:
        model: the original.
        run: runs it.
        data: what the calls are.
        calls: inputs by name.
        labels: the right class of each row of each call, if known.

    Raises:
        InputError: an output of the original is not finite, or is 0 everywhere.
    """

    def __init__(
        self, model: ExportedModel, run: Run, data: Data, calls: Sequence[Arrays], labels: Sequence[Array] = ()
    ) -> None:
        self.calls = calls
        self._data = data
        self._labels = labels
        state = presents(model.inputs)
        self.names = [spec.name for spec in model.outputs if spec.name not in state and spec.dtype.kind not in "biu"]
        if not self.names:
            raise InputError(f"no output of {model.path} is a floating-point number", "There is nothing to measure")
        self._expected = [self._outputs(run, call) for call in calls]
        for name in self.names:
            every = [outputs[name] for outputs in self._expected]
            if not all(np.isfinite(array).all() for array in every):
                raise InputError(f"{name} of {model.path} has NaN or infinity", "Give other inputs: `calibrate`")
            if not any(array.any() for array in every):
                raise InputError(
                    f"{name} of {model.path} is 0 everywhere, so nothing can be measured",
                    "Give other inputs: `calibrate`",
                )
        if labels:
            self._check_labels(model)
        self._original = self._measured(self._expected)

    def quality(self, run: Run) -> Quality:
        """Return how another model compares: it has the same inputs and outputs."""
        made = [self._outputs(run, call) for call in self.calls]
        errors = [
            _errors([each[name] for each in made], [each[name] for each in self._expected]) for name in self.names
        ]
        quantized = self._measured(made)
        first = self.names[0]
        return Quality(
            self._measure,
            self._original,
            quantized,
            _loss(self._measure, self._original, quantized),
            max(error for error, _ in errors),
            max(rms for _, rms in errors),
            _agreement(made, self._expected, first) if self._has_classes(first) else None,
            _psnr(made, self._expected, first) if self._expected[0][first].ndim == _IMAGE_RANK else None,
        )

    def _check_labels(self, model: ExportedModel) -> None:
        first = self.names[0]
        rows = self._expected[0][first]
        if rows.ndim != _ROW_RANK:
            raise InputError(
                f"labels need an output with a number for each class, (rows, classes), but {first} of {model.path} is "
                f"{list(rows.shape)}",
                "Leave them out, and limit errors: `max_error`",
            )
        classes = rows.shape[1]
        every = np.concatenate(self._labels)
        if (wrong := every[(every < 0) | (every >= classes)]).size:
            raise InputError(
                f"label {wrong[0]} is no class of {model.path}, which has {classes}: 0 to {classes - 1}",
                "Give labels of this model",
            )

    @property
    def _measure(self) -> str:
        if self._data.is_text:
            return BITS
        return ACCURACY if self._labels else ""

    def _has_classes(self, name: str) -> bool:
        rank = self._expected[0][name].ndim
        return self._data.is_text or bool(self._labels) or (rank == _ROW_RANK and not self._data.drawn)

    def _outputs(self, run: Run, call: Arrays) -> dict[str, Array]:
        made = run(call)
        return {name: made[name] for name in self.names}

    def _measured(self, outputs: Sequence[Mapping[str, Array]]) -> float | None:
        first = [each[self.names[0]] for each in outputs]
        if self._data.is_text:
            nats = [_surprise(logits, call[IDS]) for logits, call in zip(first, self.calls, strict=True)]
            total, count = (sum(each) for each in zip(*nats, strict=True))
            return total / count / math.log(2) / self._data.bytes_per_token
        if self._labels:
            right = [logits.argmax(-1) == labels for logits, labels in zip(first, self._labels, strict=True)]
            return float(np.concatenate(right).mean())
        return None


def _surprise(logits: Array, ids: Array) -> tuple[float, int]:
    """Return the sum of -ln p of each token after the first, and their number: logits (B, N, V), ids (B, N)."""
    total = 0.0
    for row, tokens in zip(logits, ids, strict=True):  # one by one, as a vocabulary may be large
        values = row[:-1].astype(np.float64)
        largest = values.max(-1, keepdims=True)
        norms = np.log(np.exp(values - largest).sum(-1)) + largest[:, 0]
        total += float((norms - np.take_along_axis(values, tokens[1:, None], -1)[:, 0]).sum())
    return total, ids[:, 1:].size


def _loss(measure: str, original: float | None, quantized: float | None) -> float | None:
    if original is None or quantized is None:
        return None
    if not math.isfinite(quantized):
        return math.inf
    worse = quantized - original if measure == BITS else original - quantized
    return worse / original if original else math.copysign(math.inf, worse) if worse else 0.0


def _errors(made: Sequence[Array], expected: Sequence[Array]) -> tuple[float, float]:
    """Return the largest error over the largest magnitude, and the root mean square error over that of the values."""
    largest = max(float(np.abs(array).max()) for array in expected)
    most = squares = whole = 0.0
    for each, other in zip(made, expected, strict=True):
        # Row by row: logits in float64 take more memory than most models.
        for row, wanted in zip(np.atleast_1d(each), np.atleast_1d(other), strict=True):
            off = row.astype(np.float64) - wanted
            most = max(most, float(np.abs(off).max()))
            squares += float((off**2).sum())
            whole += float((wanted.astype(np.float64) ** 2).sum())
    if not math.isfinite(squares):
        return math.inf, math.inf
    return most / largest if largest else math.inf, math.sqrt(squares / whole) if whole else math.inf


def _agreement(made: Sequence[Mapping[str, Array]], expected: Sequence[Mapping[str, Array]], name: str) -> float:
    same = [
        (each[name].argmax(-1) == other[name].argmax(-1)).ravel() for each, other in zip(made, expected, strict=True)
    ]
    return float(np.concatenate(same).mean())


def _psnr(made: Sequence[Mapping[str, Array]], expected: Sequence[Mapping[str, Array]], name: str) -> float:
    off = np.concatenate([(each[name] - other[name]).ravel() for each, other in zip(made, expected, strict=True)])
    values = np.concatenate([each[name].ravel() for each in expected])
    rms = math.sqrt(float((off.astype(np.float64) ** 2).mean()))
    peak = float(values.max()) - float(values.min())
    return math.inf if not rms else 20 * math.log10(peak / rms) if peak else 0.0
