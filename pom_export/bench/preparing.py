"""Turn a target into the files that the backends load, and say which backends there are for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pom_export.api.exporting import export
from pom_export.api.progress import Progress
from pom_export.bench.attention import head_count, write_attention
from pom_export.bench.options import (
    ATTENTION,
    ATTENTION_SHARED,
    BACKENDS,
    DEFAULT_BATCH,
    DEFAULT_TOKENS,
    FUNCTION,
    KERNEL,
    MATMUL,
    PLAIN,
    TENSORRT,
    TORCH,
    TORCH_COMPILE,
    BenchOptions,
)
from pom_export.bench.products import Product, find_products, write_floor
from pom_export.bench.sources import load_target
from pom_export.bench.targets import Target
from pom_export.engine.backend import gpu_present
from pom_export.errors import InputError, PomExportError
from pom_export.graph.exported import BATCH, CONTEXT_TOKENS, TOKENS, ExportedModel, read_model
from pom_export.runtime.library import custom_ops_library

if TYPE_CHECKING:
    from torch import nn

    from pom_export.graph.program import Program

_RANK_OF_TOKENS: Final = 3
DIMENSIONS: Final = (BATCH, TOKENS, CONTEXT_TOKENS)
_OPSET = 20
# What a worker finds in its folder.
MODEL_FILE, PLAIN_FILE, MODULE_FILE = "model.onnx", "plain.onnx", "official.pt"
FLOOR_FILE, ATTENTION_FILE, ENGINE_FILE = "matmul.onnx", "attention.onnx", "model.engine"


@dataclass(frozen=True)
class Work:
    """What the estimates of `pom_export.bench.guards` are made of.

    Attributes:
        products: the model's matrix products with constant weights.
        mixers: channels and degree of each mixer of a model that PyTorch runs.
        causal: whether the mixers' masks are causal.
        dim: width of the layer, where attention is timed beside it.
        attention_layers: how many layers of it there are.
    """

    products: Sequence[Product]
    mixers: Sequence[tuple[int, int]] = ()
    causal: bool = False
    dim: int = 0
    attention_layers: int = 1

    @property
    def attention_heads(self) -> int:
        """Heads of the attention beside the layer."""
        return head_count(self.dim) if self.dim else 0


@dataclass
class Prepared:
    """What there is to run.

    Attributes:
        folder: holds the files.
        model: the exported file, which may lie elsewhere.
        summary: one line about the target.
        points: (batch, tokens) to run at.
        work: for estimates.
        backends: those that run, in the order of `BACKENDS`.
        not_run: why the others don't.
    """

    folder: Path
    model: ExportedModel
    summary: str
    points: Sequence[tuple[int, int]]
    work: Work
    backends: list[str] = field(default_factory=list)
    not_run: dict[str, str] = field(default_factory=dict)

    def offer(self, name: str, options: BenchOptions, make: Callable[[], object]) -> None:
        """Have a backend run, if it was asked for and its files can be made."""
        if options.backends is not None and name not in options.backends:
            return
        try:
            make()
        except PomExportError as error:
            self.not_run[name] = error.what
        else:
            self.backends.append(name)


def prepare(target: Target, options: BenchOptions, folder: Path, progress: Progress) -> Prepared:
    """Write into `folder` whatever the backends load.

    Raises:
        InputError: the target cannot be read, a size does not fit it, or no backend is there.
    """
    prepared = _prepare_file(target, options, folder) if target.is_exported else _prepare_module(
        target, options, folder, progress
    )  # fmt: skip
    prepared.offer(FUNCTION, options, lambda: None)
    prepared.offer(KERNEL, options, custom_ops_library)
    prepared.offer(ATTENTION, options, lambda: _write_attention(prepared, options.seed))
    prepared.offer(MATMUL, options, lambda: write_floor(prepared.work.products, folder / FLOOR_FILE, options.seed))
    prepared.offer(TENSORRT, options, lambda: _build_engine(prepared, progress))
    if ATTENTION_SHARED in (options.backends or ()):
        prepared.offer(ATTENTION_SHARED, options, refuse("it is a stream's: give the target stream"))
    prepared.backends.sort(key=list(BACKENDS).index)
    if not prepared.backends:
        reasons = "; ".join(f"{name}: {why}" for name, why in prepared.not_run.items())
        raise InputError(f"no backend can run {target.name}: {reasons}", "Choose others")
    return prepared


def _prepare_file(target: Target, options: BenchOptions, folder: Path) -> Prepared:
    assert target.path is not None
    model = read_model(target.path)
    if not model.aggregations:
        raise InputError(f"model {target.path} holds no PoM aggregation", "Export it with `pom-export export`")
    if model.precision == "bfloat16":
        raise InputError("ONNX Runtime's CPU provider has no bfloat16 matrix product", "Export in float32 or float16")
    causal = model.properties.get("mask") == "causal"
    work = Work(find_products(target.path, DIMENSIONS), causal=causal, dim=_layer_width(model))
    prepared = Prepared(folder, model, f"{target.name}: {_interface(model)}", _points(model, options), work)
    for name in (TORCH, TORCH_COMPILE, PLAIN):
        prepared.offer(name, options, refuse("an exported file holds no PyTorch model; give its checkpoint"))
    return prepared


def _prepare_module(target: Target, options: BenchOptions, folder: Path, progress: Progress) -> Prepared:
    loaded = load_target(target, options.seed, progress)
    progress("exporting with and without the op")
    graph_options = {"mask": target.mask, "positions": loaded.positions}
    export(loaded.model, folder / MODEL_FILE, **graph_options, **target.hints)  # type: ignore[arg-type]
    model = read_model(folder / MODEL_FILE)
    mask = model.properties.get("mask") or "its own"
    summary, points = f"{loaded.summary}, mask {mask}", _points(model, options)
    program = loaded.source.program()
    module, mixers = _official(program.module)
    if mixers:
        floor, failure = _write_plain(dataclasses.replace(program, module=module), folder / PLAIN_FILE, model.path)
    else:
        floor, failure = model.path, "the program holds no mixer that could compute the published way"
    work = Work(find_products(floor, DIMENSIONS), mixers, mask == "causal", _layer_width(model))
    prepared = Prepared(folder, model, summary, points, work)
    for name in (TORCH, TORCH_COMPILE):
        make = (lambda: _save_module(module, folder)) if mixers else refuse(failure)
        prepared.offer(name, options, make)
    prepared.offer(PLAIN, options, refuse(failure) if failure else lambda: None)
    return prepared


def _write_plain(program: Program, path: Path, instead: Path) -> tuple[Path, str]:
    """Export the published way; return the file whose products make the floor, and why there is no plain export."""
    from pom_export.graph.exporter import trace
    from pom_export.graph.saving import save_model

    try:
        save_model(trace(program, _OPSET).graph, path)
    except InputError as error:
        return instead, error.what
    return path, ""


def _official(module: nn.Module) -> tuple[nn.Module, list[tuple[int, int]]]:
    """Return a program's module computing the published way, and channels and degree of each of its mixers."""
    from pom_export.bench.official import OfficialMixer, with_official_mixers
    from pom_export.mixer import PolynomialMixer, ProductMixer

    copied = with_official_mixers(module)
    configs = [part.mixer.config for part in copied.modules() if isinstance(part, OfficialMixer)
               and isinstance(part.mixer, (PolynomialMixer, ProductMixer))]  # fmt: skip
    return copied, [(config.channels, config.degree) for config in configs]


def _save_module(module: nn.Module, folder: Path) -> None:
    import torch

    if not (folder / MODULE_FILE).exists():
        torch.save(module, folder / MODULE_FILE)


def refuse(reason: str) -> Callable[[], None]:
    """Return what says why a backend cannot run."""

    def say() -> None:
        raise InputError(reason)

    return say


def _write_attention(prepared: Prepared, seed: int) -> None:
    if not prepared.work.dim:
        raise InputError("it stands beside a single layer whose mask is none or causal")
    write_attention(prepared.work.dim, prepared.work.causal, prepared.folder / ATTENTION_FILE, seed)


def _build_engine(prepared: Prepared, progress: Progress) -> None:
    if not gpu_present():
        raise InputError("it needs a GPU, and none is here")
    from pom_export.engine import build_engine

    most = {BATCH: max(batch for batch, _ in prepared.points), TOKENS: max(tokens for _, tokens in prepared.points)}
    shapes = {spec.name: resolve_axes(spec.axes, most) for spec in prepared.model.inputs}
    engine = prepared.folder / ENGINE_FILE
    build_engine(prepared.model.path, engine, opt_shapes=shapes, max_shapes=shapes, progress=progress)


def resolve_axes(axes: Sequence[str | int], sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Return a shape at given sizes of the dynamic dimensions; a context is as long as the query."""
    known = {CONTEXT_TOKENS: sizes[TOKENS], **sizes}
    return tuple(known[axis] if isinstance(axis, str) else axis for axis in axes)


def _layer_width(model: ExportedModel) -> int:
    """Return the width of a single layer of x alone, or 0."""
    mask = model.properties.get("mask")
    if len(model.inputs) != 1 or len(model.aggregations) != 1 or mask not in {"none", "causal"}:
        return 0
    (spec,) = model.inputs
    width = spec.axes[-1]
    return width if len(spec.axes) == 3 and isinstance(width, int) and spec.dtype == "float32" else 0


def _interface(model: ExportedModel) -> str:
    return f"{', '.join(map(str, model.inputs))}, {len(model.aggregations)} aggregations"


def _points(model: ExportedModel, options: BenchOptions) -> list[tuple[int, int]]:
    """Return the sizes to run at: what was asked for, as far as the model leaves it open."""
    axes = [axis for spec in model.inputs for axis in spec.axes]
    if unknown := [axis for axis in axes if isinstance(axis, str) and axis not in DIMENSIONS]:
        raise InputError(
            f"the model has a dimension {unknown[0]!r}, whose size nobody says", "Export it with that fixed"
        )
    first = model.inputs[0].axes
    batch = _sizes("batch", options.batch, DEFAULT_BATCH, first[0] if first else BATCH)
    tokens = _sizes("tokens", options.tokens, DEFAULT_TOKENS, _tokens_axis(model))
    most = model.limits.tokens
    if most is not None and options.tokens is None:
        tokens = [size for size in tokens if size <= most] or [most]
    if most is not None and max(tokens) > most:
        raise InputError(f"{max(tokens)} tokens are more than the model has positions for, {most}", "Choose fewer")
    return [(b, n) for b in batch for n in tokens]


def _tokens_axis(model: ExportedModel) -> str | int:
    """Return the tokens of a row: a dimension's name, a fixed size, or the patches of an image."""
    first = model.inputs[0].axes
    if len(first) <= _RANK_OF_TOKENS:
        return first[1] if len(first) > 1 else TOKENS
    config = model.spec.get("config", {})
    size, patch = config.get("input_size"), config.get("patch_size")
    if type(size) is not int or type(patch) is not int or not 0 < patch <= size:
        return 1  # nobody says what a token of it is
    return (size // patch) ** 2


def _sizes(name: str, asked: Sequence[int] | None, default: Sequence[int], axis: str | int) -> list[int]:
    if isinstance(axis, str):
        return list(default if asked is None else asked)
    if asked is not None and list(asked) != [axis]:
        raise InputError(f"the model is fixed to {name} {axis}", f"Leave --{name} out, or export without --static")
    return [axis]
