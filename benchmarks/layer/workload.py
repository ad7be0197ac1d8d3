"""The workload of a layer or of a checkpoint's model: our exports beside what they replace."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from benchmarks.attention import write_attention
from benchmarks.layer.estimates import Work
from benchmarks.layer.source import load_target
from benchmarks.layer.target import Target
from benchmarks.names import (
    ATTENTION,
    FUNCTION,
    KERNEL,
    LAYER_BACKENDS,
    MATMUL,
    PLAIN,
    TENSORRT,
    TORCH,
    TORCH_COMPILE,
)
from benchmarks.products import find_products, write_floor
from benchmarks.roofline import Roofline, measure_roofline
from benchmarks.time_limit import DEFAULT_FLOPS_PER_S, too_long
from pom_export.api.exporting import export
from pom_export.api.progress import Progress
from pom_export.bench.model_file import open_sizes
from pom_export.bench.options import DIMENSIONS, BenchOptions, Size
from pom_export.bench.results import BenchResult, Labels, ratios
from pom_export.bench.runners import Runner
from pom_export.bench.worker import call_in_worker
from pom_export.bench.workload import Workload
from pom_export.errors import InputError
from pom_export.graph.exported_model import ExportedModel, read_model

if TYPE_CHECKING:
    from torch import nn

    from pom_export.graph.program import Program

_OPSET: Final = 20
# Files in a worker's folder.
MODEL_FILE: Final = "model.onnx"
MODULE_FILE: Final = "official.pt"
FILES: Final = {PLAIN: "plain.onnx", ATTENTION: "attention.onnx", MATMUL: "matmul.onnx"}
# Idle threads of torch's OpenMP sleep, so that they take no processor time from the backend that is timed next. The
# compiler starts no processes that could outlive the worker.
TORCH_ENVIRONMENT: Final = {
    "OMP_WAIT_POLICY": "passive",
    "GOMP_SPINCOUNT": "0",
    "KMP_BLOCKTIME": "0",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
}
_GIGA: Final = 1e9
_MIB: Final = 1 << 20


class LayerWorkload(Workload):
    """A mixer with random weights, or the model of a checkpoint.

    Args:
        target: see `benchmarks.layer.target.find_target`.
        measures_roofline: whether to measure the machine's limits.
    """

    known: ClassVar[Sequence[str]] = LAYER_BACKENDS
    alike: ClassVar[Sequence[Sequence[str]]] = ((TORCH, TORCH_COMPILE, PLAIN, FUNCTION, KERNEL, TENSORRT),)
    labels: ClassVar[Labels] = Labels(ratios=((KERNEL, MATMUL), (PLAIN, KERNEL), (ATTENTION, KERNEL)))
    environment: ClassVar[Mapping[str, str]] = TORCH_ENVIRONMENT
    work: Work

    def __init__(self, target: Target, *, measures_roofline: bool = True) -> None:
        super().__init__()
        self.target = target
        self.roofline: Roofline | None = None
        self._measures_roofline = measures_roofline

    def prepare(self, options: BenchOptions, folder: Path, progress: Progress) -> None:  # noqa: D102
        loaded = load_target(self.target, options.seed, progress)
        progress("exporting with and without the op")
        hints: dict[str, Any] = dict(self.target.hints)
        export(loaded.model, folder / MODEL_FILE, mask=self.target.mask, positions=loaded.positions, **hints)
        self.take(folder / MODEL_FILE, folder)
        self.sizes = open_sizes(self.model, options)
        mask = self.model.properties.get("mask")
        self.summary = f"{loaded.summary}, mask {mask or 'its own'}"
        self._prepare_published(loaded.source.program(), mask == "causal", options)
        self.offer_exports(options, progress)
        self.offer(ATTENTION, options, lambda: self._write_attention(options.seed))
        floor = folder / FILES[MATMUL]
        self.offer(MATMUL, options, lambda: write_floor(self.work.products, floor, options.seed))
        if self._measures_roofline:
            progress("measuring the machine: bandwidth and matrix products")
            threads = options.threads
            self.roofline = call_in_worker(measure_roofline, threads, folder, folder=folder, threads=threads)

    def _prepare_published(self, program: Program, causal: bool, options: BenchOptions) -> None:
        """Add the backends of the published algorithm; the products of its export are the lower bound."""
        module, mixers = _official(program.module)
        floor, failure = self.model.path, "the model has no mixer for which there is published code"
        if mixers:
            floor, failure = _write_plain(
                dataclasses.replace(program, module=module), self.folder / FILES[PLAIN], self.model.path
            )
        self.work = Work(find_products(floor, DIMENSIONS), mixers, causal, _layer_width(self.model))
        for name in (TORCH, TORCH_COMPILE):
            self.offer(name, options, lambda: self._save(module, "" if mixers else failure))
        self.offer(PLAIN, options, lambda: _refuse(failure))

    def _save(self, module: nn.Module, failure: str) -> None:
        import torch

        _refuse(failure)
        torch.save(module, self.folder / MODULE_FILE)

    def _write_attention(self, seed: int) -> None:
        if not self.work.dim:
            raise InputError("it is only timed beside a single layer whose mask is none or causal")
        write_attention(self.work.dim, self.work.causal, self.folder / FILES[ATTENTION], seed)

    def model_of(self, backend: str, size: Size) -> ExportedModel:  # noqa: D102
        exported = super().model_of(backend, size)
        if backend not in FILES:
            return exported
        path = self.folder / FILES[backend]
        # The plain export has the inputs of ours, and only ours knows their limits.
        return dataclasses.replace(exported, path=path) if backend == PLAIN else read_model(path)

    def load(self, backend: str, size: Size, threads: int) -> Runner:  # noqa: D102
        if backend in {TORCH, TORCH_COMPILE}:
            from benchmarks.layer.runner import TorchRunner

            return TorchRunner(self.folder / MODULE_FILE, threads, compiled=backend == TORCH_COMPILE)
        return super().load(backend, size, threads)

    def warm_up(self, runner: Runner, backend: str, size: Size, seed: int) -> None:
        """Run on a few tokens, but at the actual size what is compiled for a size."""
        if backend == TORCH_COMPILE:
            runner.bind(self.inputs(backend, size, seed))
        else:
            super().warm_up(runner, backend, size, seed)

    def bytes_needed(self, backend: str, size: Size) -> int:  # noqa: D102
        return self.work.bytes_needed(backend, size, super().bytes_needed(KERNEL, size))

    def excluded(self, backend: str, size: Size) -> str | None:  # noqa: D102
        rate = DEFAULT_FLOPS_PER_S if self.roofline is None else self.roofline.flops_per_s
        return too_long(self.work.flops(backend, size), rate)

    def complete(self, result: BenchResult) -> None:  # noqa: D102
        result.facts["roofline"] = None if self.roofline is None else self.roofline.to_dict()
        for point in result.points:
            point.facts[f"to_{MATMUL}"] = ratios(point.timings, MATMUL)
            traffic = self.work.traffic_bytes(Size(point.batch, point.tokens))
            least = self.roofline.memory_ms(traffic) if self.roofline is not None and traffic else None
            point.facts["memory_roofline_ms"] = least
        if self.roofline is not None:
            result.notes.append(_machine_note(self.roofline))


def _refuse(reason: str) -> None:
    """Raise InputError if there is a reason."""
    if reason:
        raise InputError(reason)


def _machine_note(roofline: Roofline) -> str:
    first, last = roofline.bandwidths[0], roofline.bandwidths[-1]
    return (
        f"the machine: {roofline.flops_per_s / _GIGA:.0f} GFLOP/s in matrix products; copies "
        f"{first.copy / _GIGA:.0f} GB/s at {first.bytes // _MIB} MiB, "
        f"{last.copy / _GIGA:.0f} GB/s at {last.bytes // _MIB} MiB"
    )


def _write_plain(program: Program, path: Path, instead: Path) -> tuple[Path, str]:
    """Export the published algorithm; return the file whose products are the lower bound, and why the export failed."""
    from pom_export.graph.saving import save_model
    from pom_export.graph.tracing import trace

    try:
        save_model(trace(program, _OPSET).graph, path)
    except InputError as error:
        return instead, error.what
    return path, ""


def _official(module: nn.Module) -> tuple[nn.Module, list[tuple[int, int]]]:
    """Return a program's module with the published algorithm, and the channels and degree of each of its mixers."""
    from benchmarks.layer.official import OfficialMixer, with_official_mixers
    from pom_export.mixer import PolynomialMixer, ProductMixer

    copied = with_official_mixers(module)
    mixers = [part.mixer for part in copied.modules() if isinstance(part, OfficialMixer)]
    configs = [mixer.config for mixer in mixers if isinstance(mixer, (PolynomialMixer, ProductMixer))]
    return copied, [(config.channels, config.degree) for config in configs]


def _layer_width(model: ExportedModel) -> int:
    """Return the width of a single layer whose only input is x, or 0."""
    mask = model.properties.get("mask")
    if len(model.inputs) != 1 or len(model.aggregations) != 1 or mask not in {"none", "causal"}:
        return 0
    (spec,) = model.inputs
    width = spec.axes[-1]
    return width if len(spec.axes) == 3 and isinstance(width, int) and spec.dtype == "float32" else 0
