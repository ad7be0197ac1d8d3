"""Requests of a model without a state: those of equal shapes share a call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pom_export.errors import InputError, explained
from pom_export.graph.exported_model import BATCH, ExportedModel
from pom_export.runtime.streaming.inputs import checked

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]


def has_batch_axis(model: ExportedModel) -> bool:
    """Return whether every input and output of a model begins with the batch, whose size may vary."""
    return all(spec.axes[:1] == (BATCH,) for spec in (*model.inputs, *model.outputs))


class Batches:
    """Runs requests through a session.

    Args:
        session: an onnxruntime.InferenceSession, from `inference_session`.
        model: the file's interface.
    """

    def __init__(self, session: Any, model: ExportedModel) -> None:
        self._session = session
        self._model = model
        self._joined = has_batch_axis(model)

    def run(self, requests: Sequence[Arrays], outputs: Sequence[str]) -> list[dict[str, Array] | InputError]:
        """Run requests, each a mapping of all inputs, and return the outputs of each by name, or its error.

        Args:
            requests: arrays by input, with the batch.
            outputs: the names of the outputs that any of them needs.
        """
        answers: dict[int, dict[str, Array] | InputError] = {}
        groups: dict[Any, dict[int, Arrays]] = {}
        for place, request in enumerate(requests):
            try:
                feed = {
                    spec.name: checked(spec, request[spec.name], {}, self._model.limits) for spec in self._model.inputs
                }
            except InputError as error:
                answers[place] = error
                continue
            shapes = tuple(array.shape[1:] for array in feed.values()) if self._joined else place
            groups.setdefault(shapes, {})[place] = feed
        for group in groups.values():
            answers |= self._run(group, outputs)
        return [answers[place] for place in range(len(requests))]

    def _run(self, group: Mapping[int, Arrays], outputs: Sequence[str]) -> dict[int, dict[str, Array] | InputError]:
        """Run requests of equal shapes in one call; if it fails, one by one, so that only one has the error."""
        feeds = list(group.values())
        feed = feeds[0] if len(feeds) == 1 else {name: np.concatenate([f[name] for f in feeds]) for name in feeds[0]}
        try:
            values = self._session.run(list(outputs), feed)
        except Exception as error:  # noqa: BLE001 (onnxruntime's exceptions have no common base class)
            if len(group) == 1:
                what = explained(error)
                return dict.fromkeys(group, InputError(what.what, what.hint))
            return {place: self._run({place: f}, outputs)[place] for place, f in group.items()}
        if len(group) == 1:
            return {place: dict(zip(outputs, values, strict=True)) for place in group}
        ends = np.cumsum([len(next(iter(f.values()))) for f in feeds])[:-1]
        parts = [np.split(value, ends) for value in values]
        return {place: dict(zip(outputs, (part[i] for part in parts), strict=True)) for i, place in enumerate(group)}
