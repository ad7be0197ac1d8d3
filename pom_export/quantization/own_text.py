"""Text that a language model writes itself, to calibrate it on where nothing else is given."""

from __future__ import annotations

from typing import Final

import numpy as np

from pom_export.graph.exported_model import ExportedModel
from pom_export.parity.case import Array
from pom_export.runtime.streaming.session import StreamingSession

_ROWS: Final = 16
_TOKENS: Final = 256


def written_by(model: ExportedModel, seed: int) -> Array:
    """Return what a model writes after random first tokens, each token drawn from its own distribution.

    Args:
        model: a stateful language model.
        seed: of what is random.

    Returns:
        int64, (16, 256), or fewer tokens if the model has fewer positions, or more rows if it takes so many at once.
    """
    random = np.random.default_rng(seed)
    rows = model.inputs[0].axes[0]
    if not isinstance(rows, int):
        return _written(model, _ROWS, random)
    return np.concatenate([_written(model, rows, random) for _ in range(max(2, -(-_ROWS // rows)))])


def _written(model: ExportedModel, rows: int, random: np.random.Generator) -> Array:
    session = StreamingSession(model.path, batch=rows)
    count = _TOKENS if session.most_tokens is None else min(_TOKENS, session.most_tokens)
    vocabulary = int(model.outputs[0].axes[-1])
    ids = np.empty((rows, count), np.int64)
    ids[:, 0] = random.integers(0, vocabulary, rows)
    for position in range(1, count):
        logits = session.step(ids[:, position - 1]).astype(np.float64)
        # The largest of logits with Gumbel noise is a draw from their distribution.
        ids[:, position] = (logits + random.gumbel(size=logits.shape)).argmax(-1)
    return ids
