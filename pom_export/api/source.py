"""What is exported: a checkpoint's model, one of ours, or a user's own class."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pom_export.checkpoint import load_model
from pom_export.checkpoint.exported_program import is_exported_program, read_exported_program
from pom_export.checkpoint.spec import spec_of
from pom_export.errors import InputError
from pom_export.files import sha256_of
from pom_export.graph.copying import copy_module
from pom_export.graph.lowering import has_mixers, lower_mixers
from pom_export.graph.own_program import module_program, named_examples, program_module
from pom_export.graph.program import GraphOptions, Program
from pom_export.graph.programs import program_of
from pom_export.graph.reference import Float64Module

Examples = Tensor | Sequence[Any] | Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """A model that can be traced in any floating-point type, and run in float64 to compare with.

    Attributes:
        module: the model; it is never changed.
        make_program: returns the program of a copy of the model.
        lower: what to do with a copy before it is traced: the reference is the model as it was given.
        properties: metadata for the file.
        own_inputs: whether inputs are the user's, not drawn by us.
        replaced: names of the mixers that the last program has in place of official-style ones.
        near_misses: what looked like a mixer and stayed as it was, with the reason.
    """

    module: nn.Module
    make_program: Callable[[nn.Module], Program]
    lower: Callable[[nn.Module], nn.Module] = lambda module: module
    properties: Mapping[str, str] = field(default_factory=dict)
    own_inputs: bool = False
    replaced: list[str] = field(default_factory=list)
    near_misses: list[str] = field(default_factory=list)

    def program(self) -> Program:
        """Return what to trace, in float32."""
        return self.make_program(self.lower(copy_module(self.module, torch.float32)))

    def reference(self) -> nn.Module:
        """Return what the outputs are compared with, in float64."""
        return Float64Module(self.make_program(copy_module(self.module)).module)


def load_source(
    model: str | os.PathLike[str] | nn.Module,
    options: GraphOptions,
    *,
    example_inputs: Examples | None = None,
    dynamic_shapes: Mapping[str, Any] | None = None,
    hints: Mapping[str, Any],
    progress: Callable[[str], None],
) -> Source:
    """Return the source that a path or a module stands for.

    Args:
        model: path of a checkpoint or of a program of torch.export, one of our models, or a user's module.
        options: how a model of ours becomes a graph.
        example_inputs: for a user's module: what to trace it with, see `named_examples`.
        dynamic_shapes: for a user's module: as torch.export takes them, by input.
        hints: arguments of `load_model` besides the path.
        progress: called with one line a stage.

    Raises:
        InputError: the path is of no known model, or the module has no mixer or lacks example inputs.
    """
    if isinstance(model, (str, os.PathLike)) and is_exported_program(model):
        _refuse_options(options, hints)
        progress("recognised a program of torch.export")
        module, examples, shapes = program_module(read_exported_program(model))
        properties = {"source_sha256": sha256_of(Path(model))}
        return Source(module, _program_maker(examples, shapes), properties=properties, own_inputs=True)
    if isinstance(model, (str, os.PathLike)):
        loaded = load_model(model, **hints)
        progress(f"recognised a {loaded.spec.summary()}")
        properties = {"spec": loaded.spec.to_json(), "source_sha256": loaded.sha256}
        return Source(loaded.module, lambda module: program_of(module, options), properties=properties)
    if not isinstance(model, nn.Module):
        raise InputError(f"the model is a {type(model).__name__}", "Give a path or an nn.Module")
    if example_inputs is None:
        spec = spec_of(model)
        properties = {"spec": spec.to_json()} if spec else {}
        return Source(model, lambda module: program_of(module, options), properties=properties)
    _refuse_options(options, hints)
    model = _unwrapped(model)
    make_program = _program_maker(named_examples(model, example_inputs), dynamic_shapes)
    source = Source(model, make_program, own_inputs=True)
    return replace(source, lower=_lowering(source.replaced, source.near_misses, progress))


def _unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside the wrappers of torch.compile and of data parallelism."""
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def _refuse_options(options: GraphOptions, hints: Mapping[str, Any]) -> None:
    """Refuse what has no meaning for a module or program with inputs of its own."""
    for name, value in [*asdict(options).items(), *hints.items()]:
        if value is not None and value is not False:
            raise InputError(f"{name} is for our own models; this one has its own inputs", "Leave it out")


def _lowering(
    replaced: list[str], near_misses: list[str], progress: Callable[[str], None]
) -> Callable[[nn.Module], nn.Module]:
    """Return what replaces official-style mixers in a copy, and notes their names and those of near misses."""

    def lower(copied: nn.Module) -> nn.Module:
        name = type(copied).__name__
        result = lower_mixers(copied)
        replaced[:] = [part or name for part in result.replaced]
        near_misses[:] = [f"{part or name} looks like a mixer, but {why}" for part, why in result.near_misses.items()]
        for line in near_misses:
            progress(f"{line}; it stays as it is")
        if not has_mixers(result.module):
            raise InputError(
                f"{name} contains no mixer of ours, and none that looks like an official one",
                near_misses[0] if near_misses else "Nothing of it would use the op",
            )
        return result.module

    return lower


def _program_maker(
    examples: Mapping[str, Tensor], dynamic_shapes: Mapping[str, Any] | None
) -> Callable[[nn.Module], Program]:
    def make_program(module: nn.Module) -> Program:
        dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
        converted = {name: t.to(dtype) if t.is_floating_point() else t for name, t in examples.items()}
        return module_program(module, converted, dynamic_shapes)

    return make_program
