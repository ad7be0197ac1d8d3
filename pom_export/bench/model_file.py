"""The workload of an exported file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pom_export.api.progress import Progress
from pom_export.bench.options import BenchOptions, Size
from pom_export.bench.workload import Workload, sizes_at
from pom_export.errors import InputError
from pom_export.files import AnyPath, as_path
from pom_export.graph.exported_model import BATCH, TOKENS, ExportedModel

DEFAULT_TOKENS: Final = (256, 1024, 4096)
DEFAULT_BATCH: Final = (1,)
_RANK_OF_TOKENS: Final = 3


class FileWorkload(Workload):
    """An exported file, with our kernels, without them, and as a TensorRT engine.

    Args:
        path: the ONNX file.
    """

    def __init__(self, path: AnyPath) -> None:
        super().__init__()
        self.path = as_path(path, "model")

    def prepare(self, options: BenchOptions, folder: Path, progress: Progress) -> None:  # noqa: D102
        if self.path.exists() and self.path.suffix != ".onnx":
            raise InputError(
                f"{self.path} is not an .onnx file", f"Export it: pom-export export {self.path} -o model.onnx"
            )
        self.take(self.path, folder)
        self.sizes = open_sizes(self.model, options)
        inlined = 0 if self.model.aggregations else self.model.inlined
        if not self.model.aggregations and not inlined:
            raise InputError(f"model {self.path} holds no PoM aggregation", "Export it with `pom-export export`")
        if self.precision == "bfloat16":
            what = "ONNX Runtime's CPU provider has no bfloat16 matrix product"
            raise InputError(what, "Export in float32 or float16")
        inputs = ", ".join(map(str, self.model.inputs))
        count = inlined or len(self.model.aggregations)
        kind = "inlined aggregation" if inlined else "aggregation"
        first = ", the first call of a stream" if self.model.stateful else ""
        self.summary = f"{self.path.name}: {inputs}, {count} {kind}{'s' if count != 1 else ''}{first}"
        self.offer_exports(options, progress)


def open_sizes(model: ExportedModel, options: BenchOptions) -> list[Size]:
    """Return the sizes to time: those in the options, or the defaults that fit the model.

    Raises:
        InputError: the model is fixed to another size, has fewer positions, or has an unknown dynamic dimension.
    """
    axes = [axis for spec in model.inputs for axis in spec.axes]
    if unknown := [axis for axis in axes if isinstance(axis, str) and axis not in sizes_at(model, Size(1, 1))]:
        raise InputError(
            f"the benchmark has no size for the model's dimension {unknown[0]!r}", "Export it with that dimension fixed"
        )
    first = _axes_of_tokens(model)
    batch = _sizes("batch", options.batch, DEFAULT_BATCH, first[0] if first else BATCH)
    tokens = _sizes("tokens", options.tokens, DEFAULT_TOKENS, _tokens_axis(model))
    most = model.limits.tokens
    if most is not None and options.tokens is None:
        tokens = [size for size in tokens if size <= most] or [most]
    if most is not None and max(tokens) > most:
        raise InputError(f"{max(tokens)} tokens are more than the model's {most} positions", "Choose fewer")
    return [Size(b, n) for b in batch for n in tokens]


def _axes_of_tokens(model: ExportedModel) -> Sequence[str | int]:
    """Return the axes of the input of the tokens, which is the first one except in models of a user's own."""
    return next((spec.axes for spec in model.inputs if spec.axes[:2] == (BATCH, TOKENS)), model.inputs[0].axes)


def _tokens_axis(model: ExportedModel) -> str | int:
    """Return the tokens per row: the name of a dimension, a fixed size, or the number of an image's patches."""
    first = _axes_of_tokens(model)
    if len(first) <= _RANK_OF_TOKENS:
        return first[1] if len(first) > 1 else TOKENS
    config = model.spec.get("config", {})
    size, patch = config.get("input_size"), config.get("patch_size")
    if type(size) is not int or type(patch) is not int or not 0 < patch <= size:
        return 1  # the file does not define its tokens
    return (size // patch) ** 2


def _sizes(name: str, asked: Sequence[int] | None, default: Sequence[int], axis: str | int) -> list[int]:
    if isinstance(axis, str):
        return list(default if asked is None else asked)
    if asked is not None and list(asked) != [axis]:
        raise InputError(f"the model is fixed to {name} {axis}", f"Leave `{name}` out")
    return [axis]
