"""Run a rewritten model as onnxruntime-genai does, and compare it with the original."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pom_export.errors import InputError, ParityError, reason_of
from pom_export.packaging.genai.layout import UNUSED_CACHE, Layout
from pom_export.packaging.genai.rewriting import LOGITS, POSITIONS
from pom_export.parity.comparison import difference
from pom_export.parity.tolerances import MODELS
from pom_export.runtime.session import inference_session
from pom_export.runtime.streaming.session import StreamingSession

Array = npt.NDArray[Any]
# The lengths of the calls: a prompt, tokens that follow it, appended ones.
_CALLS: Final = (9, 1, 1, 5, 1)
_ROWS: Final = 3


class Emulation:
    """A rewritten model in ONNX Runtime, called as onnxruntime-genai calls it.

    The memory of the state is that of the inputs and of the outputs at once. Keys and values are allocated anew.

    Args:
        path: the rewritten file.
        layout: its layout.
        rows: the number of sequences.
    """

    def __init__(self, path: Path, layout: Layout, rows: int) -> None:
        self._session = inference_session(path)
        self._layout = layout
        self._held = {slot.name: np.zeros((rows, *slot.shape), slot.dtype) for slot in layout.slots}
        self._caches = [np.zeros(part.empty_shape(rows), part.spec.dtype) for part in layout.caches]

    def infer(self, ids: Array, positions: Array) -> Array:
        """Return the logits (rows, vocabulary + 1) after ids (rows, tokens) at the given positions.

        Raises:
            InputError: ONNX Runtime cannot run it on them.
        """
        binding = self._session.io_binding()
        tokens = self._layout.model.tokens
        binding.bind_cpu_input(tokens.name, np.ascontiguousarray(ids, tokens.dtype))
        binding.bind_cpu_input(POSITIONS, np.ascontiguousarray(positions, np.int64))
        binding.bind_output(LOGITS)
        for part, array in zip(self._layout.caches, self._caches, strict=True):
            binding.bind_cpu_input(part.spec.name, array)
            binding.bind_output(part.present)
        for name in self._layout.unused_caches:
            binding.bind_cpu_input(name, np.zeros((len(ids), *UNUSED_CACHE), np.float32))
        for slot in self._layout.slots:
            held = self._held[slot.name]
            where = ("cpu", 0, held.dtype.type, held.shape, held.ctypes.data)
            binding.bind_input(self._layout.past(slot), *where)
            binding.bind_output(self._layout.present(slot), *where)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # ONNX Runtime has no narrower class
            raise InputError(f"the package's model failed: {reason_of(error)}", "Report it") from error
        logits, *caches = (output.numpy() for output in binding.get_outputs()[: 1 + len(self._caches)])
        self._caches = caches
        return np.asarray(logits[:, 0])


def check(rewritten: Path, layout: Layout) -> list[str]:
    """Compare a rewritten file with its original, on sequences in several calls.

    Returns:
        What was compared, one line each.

    Raises:
        ParityError: they differ.
    """
    single = _calls(layout)
    lines = [_compared(rewritten, layout, np.array(single)[:, None], "one sequence")]
    if isinstance(layout.model.tokens.axes[0], int):
        return lines
    # Several sequences have no tokens appended.
    steps = [single[0], *(1 for count in single[1:] if count == 1)]
    together = np.repeat(np.array(steps)[:, None], _ROWS, 1)
    lines.append(_compared(rewritten, layout, together, f"{_ROWS} sequences of one length"))
    if layout.model.mask is not None:
        together[0] = np.maximum(1, together[0] - np.arange(_ROWS) * 3)
        lines.append(_compared(rewritten, layout, together, f"{_ROWS} sequences of different lengths"))
    return lines


def _calls(layout: Layout) -> list[int]:
    """Return the lengths of the calls, as far as the model has positions."""
    kept = [count for count, total in zip(_CALLS, np.cumsum(_CALLS), strict=True) if total <= layout.positions]
    return kept or [layout.positions]


def _compared(rewritten: Path, layout: Layout, counts: Array, what: str) -> str:
    """Compare the logits after each of several calls, of `counts` (calls, rows) tokens, and say what was compared."""
    rows = counts.shape[1]
    bound = MODELS[layout.model.file.precision]
    session = StreamingSession(layout.model.file.path, batch=rows)
    emulation = Emulation(rewritten, layout, rows)
    worst = 0.0
    for ids, positions, lengths in _feeds(layout, counts):
        masked = layout.model.mask is not None
        known = np.where(ids == layout.padding, 0, ids)
        expected = session.prefill_last(known, lengths=lengths if masked else None)
        made = emulation.infer(ids, positions)
        found = difference(made[:, :-1], expected, bound)
        if not found:
            raise ParityError(
                f"rewritten for onnxruntime-genai, {layout.model.name} gives other logits on {what}: {found.broken}",
                "No folder was written. Verify the original, and report this if it is right",
            )
        worst = max(worst, found.max_rel)
    return f"{what} in {len(counts)} calls: {worst:.0e} from {layout.model.name}"


def _feeds(layout: Layout, counts: Array) -> Iterator[tuple[Array, Array, Array]]:
    """Yield ids, positions and the number of tokens in each row, for every call; padding comes last."""
    random = np.random.default_rng(0)
    before = np.zeros(counts.shape[1], np.int64)
    for lengths in counts:
        places = np.arange(lengths.max())
        real = places < lengths[:, None]
        ids = np.where(real, random.integers(0, layout.vocabulary, real.shape), layout.padding)
        yield ids, np.where(real, before[:, None] + places, 0), lengths
        before = before + lengths
