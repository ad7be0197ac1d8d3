"""The workload of an image model, with a separate file for each size of image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

from benchmarks.attention import attention_bytes, attention_flops, heads_in_words
from benchmarks.image.shape import ImageShape, image_config
from benchmarks.names import ATTENTION, FUNCTION, IMAGE_BACKENDS, KERNEL
from benchmarks.time_limit import too_long
from pom_export.api.exporting import export
from pom_export.api.progress import Progress
from pom_export.bench.model_file import DEFAULT_BATCH, DEFAULT_TOKENS
from pom_export.bench.options import BenchOptions, Size
from pom_export.bench.results import Labels
from pom_export.bench.workload import Workload
from pom_export.graph.exported_model import ExportedModel, read_model
from pom_export.runtime.library import custom_ops_library

if TYPE_CHECKING:
    from torch import nn

    from pom_export.models import JiTConfig

_MODEL_FILE: Final = "model.onnx"
_ATTENTION_FILE: Final = "attention.onnx"


class ImageWorkload(Workload):
    """An image model with random weights; N tokens are the patches of an image."""

    known: ClassVar[Sequence[str]] = IMAGE_BACKENDS
    alike: ClassVar[Sequence[Sequence[str]]] = ((FUNCTION, KERNEL),)
    labels: ClassVar[Labels] = Labels(ratios=((ATTENTION, KERNEL),))

    def __init__(self, shape: ImageShape) -> None:
        super().__init__()
        self.shape = shape
        self._exports: dict[int, ExportedModel] = {}

    def prepare(self, options: BenchOptions, folder: Path, progress: Progress) -> None:
        """Write the files that backends load, for each number of tokens into a separate folder.

        Raises:
            InputError: a number of tokens is not a square, or the shape is not possible.
        """
        from benchmarks.image.attention import random_model

        tokens = options.tokens or DEFAULT_TOKENS
        configs = {count: image_config(self.shape, count) for count in tokens}
        for count, config in configs.items():
            progress(f"exporting the model for images of {config.input_size} pixels, {count} tokens")
            place = folder / str(count)
            place.mkdir()
            model = random_model(config, options.seed)
            export(model, place / _MODEL_FILE)
            self._exports[count] = self.take(place / _MODEL_FILE, folder)
            self.summary = _summary(self.shape, model)
        self.sizes = [Size(batch, count) for count in tokens for batch in options.batch or DEFAULT_BATCH]
        self.offer(FUNCTION, options, lambda: None)
        self.offer(KERNEL, options, custom_ops_library)
        self.offer(ATTENTION, options, lambda: self._write_attention(configs, options.seed))

    def _write_attention(self, configs: Mapping[int, JiTConfig], seed: int) -> None:
        from benchmarks.image.attention import write_attention

        for count, config in configs.items():
            write_attention(config, self.folder / str(count) / _ATTENTION_FILE, seed)

    def model_of(self, backend: str, size: Size) -> ExportedModel:  # noqa: D102
        exported = self._exports[size.tokens]
        return read_model(exported.path.with_name(_ATTENTION_FILE)) if backend == ATTENTION else exported

    def bytes_needed(self, backend: str, size: Size) -> int:  # noqa: D102
        scores = attention_bytes(self.shape.dim, *size) if backend == ATTENTION else 0
        return super().bytes_needed(KERNEL, size) + scores

    def excluded(self, backend: str, size: Size) -> str | None:  # noqa: D102
        if backend != ATTENTION:
            return None
        return too_long(self.shape.layers * attention_flops(self.shape.dim, *size))


def _summary(shape: ImageShape, model: nn.Module) -> str:
    weights = sum(parameter.numel() for parameter in model.parameters())
    return (
        f"one call of an image model (JiT): {shape.layers} blocks of dim {shape.dim}, degree {shape.degree}, expand "
        f"{shape.expand}, {shape.heads} heads, patches of {shape.patch}, {weights / 1e6:.1f} million weights; "
        f"attention has {heads_in_words(shape.dim)}"
    )
