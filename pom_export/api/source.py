"""The source of an export: a checkpoint's model, one of our models, or a user's own class."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pom_export.api.arguments import check_for_checkpoint, check_for_module, check_for_own_inputs
from pom_export.checkpoint import load_model
from pom_export.checkpoint.exported_program import is_exported_program, read_exported_program
from pom_export.checkpoint.spec import spec_of
from pom_export.errors import CheckpointError, InputError, kind_of
from pom_export.files import sha256_of
from pom_export.graph.claims import WEIGHTS
from pom_export.graph.copying import copy_module
from pom_export.graph.dynamic_shapes import Shapes, named_shapes
from pom_export.graph.options import GraphOptions
from pom_export.graph.own_program import FailsOnExamplesError, module_program, named_examples, program_module
from pom_export.graph.precisions import PRECISIONS
from pom_export.graph.program import Program
from pom_export.graph.programs import program_of
from pom_export.graph.programs.own_stateful import one_pass_program, stateful_program
from pom_export.graph.reference import Float64Module
from pom_export.graph.repeating import check_repeats
from pom_export.graph.replacing import Adapters, has_mixers, replace_mixers
from pom_export.graph.weight_kinds import check_weights
from pom_export.graph.wrappers import unwrapped

Examples = Tensor | Sequence[Any] | Mapping[str, Any]


@dataclass(frozen=True)
class SubstitutedCopy:
    """A copy of a model for tracing, with our mixers in place of the user's.

    Attributes:
        module: the copy.
        replaced: names of the mixers that were replaced.
        near_misses: modules that look like a mixer but were not replaced, by name, with the reason.
        folded: for each replaced mixer, by name, the weights that are computed from others.
    """

    module: nn.Module
    replaced: Sequence[str] = ()
    near_misses: Mapping[str, CheckpointError] = field(default_factory=dict)
    folded: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def hint(self) -> str:
        """The likely reason why the copy can't be exported: a module that was not replaced; empty if there is none."""
        return next((f"{part} looks like a mixer, but {why}" for part, why in self.near_misses.items()), "")

    @property
    def notes(self) -> list[str]:
        """Remarks about the copy, one line each."""
        return [
            *(f"{part} is exported as it is, as a plain graph: {why}" for part, why in self.near_misses.items()),
            *(f"{part}: {_folded(weights)}" for part, weights in self.folded.items()),
        ]


@dataclass(frozen=True)
class Source:
    """A model that can be traced in any floating-point type, and run in float64 as a reference.

    Attributes:
        module: the model; it is never changed.
        make_program: makes a program from a copy of the model.
        make_reference: makes the program that a file is compared with; None: the same one. That of a user's stateful
            model takes all tokens at once.
        substitute: turns a copy into what is traced. The reference is the model as it was given.
        calls_op: for a user's model: refuses one whose outputs change from call to call, and returns whether it calls
            our op by itself.
        properties: metadata for the file.
        own_inputs: whether the inputs come from the user instead of being generated.
        may_lack_mixers: whether the model is of a user's class, which may contain none of our mixers.
        is_program: whether it is a torch.export program, whose mixers may be plain operators.
        weights: name of the chosen set of weights, for a checkpoint.
        other_weights: names of the checkpoint's other sets.
        notes: further remarks about the weights, one line each.
    """

    module: nn.Module
    make_program: Callable[[nn.Module], Program]
    make_reference: Callable[[nn.Module], Program] | None = None
    substitute: Callable[[nn.Module], SubstitutedCopy] = SubstitutedCopy
    calls_op: Callable[[], bool] = lambda: False
    properties: Mapping[str, str] = field(default_factory=dict)
    own_inputs: bool = False
    may_lack_mixers: bool = False
    is_program: bool = False
    weights: str | None = None
    other_weights: Sequence[str] = ()
    notes: Sequence[str] = ()

    def program(self, copied: SubstitutedCopy | None = None) -> Program:
        """Return the program to trace, in float32.

        Args:
            copied: what `substituted_copy` returned for float32; None: a new copy.

        Raises:
            InputError: the model contains none of our mixers, or it fails on its example inputs, either by itself or as
                it is traced.
        """
        copied = self.substituted_copy(torch.float32) if copied is None else copied
        self._check_uses_op(copied)
        try:
            return self.make_program(copied.module)
        except FailsOnExamplesError as error:
            self.calls_op()  # fails too if the model itself is to blame
            raise InputError(
                f"with weights in float32 and our mixers in place of yours, {error.what}; the model as you gave it "
                "does not",
                "Look for casts to a fixed type, such as x.half() for x.to(self.layer.weight.dtype), and for code that "
                "accesses a mixer's parameters",
            ) from error

    def plain(self) -> Program:
        """Return the program of the unchanged model in float32, for finding out which sizes it takes."""
        return self.reference_program(copy_module(self.module, torch.float32))

    def traced_reference(self) -> nn.Module:
        """Return the module that is traced, including the replacements of the user's mixers, in float64."""
        return Float64Module(self.reference_program(self.substituted_copy().module).module)

    def reference_program(self, module: nn.Module) -> Program:
        """Return the program of a copy of the model that a file is compared with."""
        return (self.make_reference or self.make_program)(module)

    @property
    def own_state(self) -> bool:
        """Whether it is a user's model that was given a state, and is compared with one pass over all tokens."""
        return self.make_reference is not None

    def substituted_copy(self, dtype: torch.dtype | None = None) -> SubstitutedCopy:
        """Return a copy of the model with our mixers in place of the user's, converted to `dtype` if given."""
        return self.substitute(copy_module(self.module, dtype))

    def reference(self) -> nn.Module:
        """Return the model that outputs are compared with, in float64."""
        return Float64Module(self.reference_program(copy_module(self.module)).module)

    def _check_uses_op(self, copied: SubstitutedCopy) -> None:
        """Raise InputError if a user's model contains none of our mixers and does not call the op by itself."""
        if not self.may_lack_mixers or has_mixers(copied.module):
            return
        if copied.near_misses or not self.calls_op():
            raise InputError(
                f"{type(self.module).__name__} contains none of our mixers, and none that looks like an official one",
                copied.hint or "Nothing in it would use the op; mixers={MyClass: adapter} declares your own",
            )


def load_source(
    model: str | os.PathLike[str] | nn.Module,
    options: GraphOptions,
    *,
    example_inputs: Examples | None = None,
    dynamic_shapes: Any = None,
    hints: Mapping[str, Any],
    mixers: Adapters | None = None,
    progress: Callable[[str], None],
) -> Source:
    """Load the model that a path or a module stands for.

    Args:
        model: path of a checkpoint or a torch.export program, one of our models, or a user's module.
        options: how one of our models becomes a graph.
        example_inputs: inputs to trace a user's module with; see `named_examples`.
        dynamic_shapes: dynamic dimensions of a user's module, as torch.export takes them; see `named_shapes`.
        hints: arguments of `load_model` other than the path.
        mixers: adapters that make our mixers from a user's own classes; see `replace_mixers`.
        progress: called with one line per stage.

    Raises:
        InputError: the path is not a known model, or the module has no mixer or lacks example inputs.
    """
    _check_module_arguments(model, example_inputs, dynamic_shapes, mixers)
    if isinstance(model, (str, os.PathLike)):
        load = _load_program if is_exported_program(model) else _load_checkpoint
        return load(model, options, hints, progress)
    if not isinstance(model, nn.Module):
        raise InputError(f"the model is {kind_of(model)}", "Give a path or an nn.Module")
    if example_inputs is None:
        return _source_of_ours(model, options, hints)
    check_for_own_inputs(options, hints, module=True)
    return _source_of_own(model, options, example_inputs, dynamic_shapes, mixers)


def _load_program(
    path: str | os.PathLike[str], options: GraphOptions, hints: Mapping[str, Any], progress: Callable[[str], None]
) -> Source:
    check_for_own_inputs(options, hints)
    progress("recognised a torch.export program")
    module, traced_with, traced_sizes = program_module(read_exported_program(path))
    properties = {"source_sha256": sha256_of(Path(path))}
    make_program = _program_maker(traced_with, traced_sizes)
    return Source(module, make_program, properties=properties, own_inputs=True, is_program=True)


def _load_checkpoint(
    path: str | os.PathLike[str], options: GraphOptions, hints: Mapping[str, Any], progress: Callable[[str], None]
) -> Source:
    check_for_checkpoint(options, hints)
    loaded = load_model(path, **hints)
    progress(f"recognised a {loaded.spec.summary()}")
    for note in loaded.notes:
        progress(note)
    properties = {"spec": loaded.spec.to_json(), "source_sha256": loaded.sha256}
    if loaded.other_weights or hints.get("weights") is not None:
        properties[WEIGHTS] = loaded.weights
    return Source(
        loaded.module,
        lambda module: program_of(module, options),
        properties=properties,
        weights=loaded.weights,
        other_weights=loaded.other_weights,
        notes=tuple(loaded.notes),
    )


def _source_of_ours(model: nn.Module, options: GraphOptions, hints: Mapping[str, Any]) -> Source:
    """Return the source of a module of one of our classes."""
    check_for_module(hints)
    check_weights(model)
    spec = spec_of(model)
    properties = {"spec": spec.to_json()} if spec else {}
    return Source(model, lambda module: program_of(module, options), properties=properties)


def _source_of_own(
    model: nn.Module, options: GraphOptions, example_inputs: Examples, dynamic_shapes: Any, mixers: Adapters | None
) -> Source:
    """Return the source of a module of a user's class."""
    check_weights(model)
    model = unwrapped(model)
    examples = named_examples(model, example_inputs)
    shapes = None if dynamic_shapes is None else named_shapes(model, example_inputs, examples, dynamic_shapes)
    calls_op = functools.cache(lambda: check_repeats(model, _in_type_of(model, examples)))
    make_program, make_reference = _program_maker(examples, shapes), None
    if options.stateful:
        if shapes is not None:
            raise InputError("dynamic_shapes does not apply to a model with a state", "Leave it out")
        make_program = _state_maker(examples, masked=options.mask == "padding")
        make_reference = _one_pass_maker(examples)
    return Source(
        model,
        make_program,
        make_reference,
        substitute=functools.partial(_substituted, mixers=mixers),
        calls_op=calls_op,
        own_inputs=True,
        may_lack_mixers=True,
    )


def _check_module_arguments(
    model: object, example_inputs: Examples | None, dynamic_shapes: Any, mixers: Adapters | None
) -> None:
    """Raise InputError for arguments that a model does not use, or for adapters that are not given by class."""
    if example_inputs is not None and isinstance(model, (str, os.PathLike)):
        raise InputError(f"example_inputs is for a module, and {os.fspath(model)} is a path", "Leave it out")
    for name, given in (("mixers", bool(mixers)), ("dynamic_shapes", dynamic_shapes is not None)):
        if given and (not isinstance(model, nn.Module) or example_inputs is None):
            raise InputError(f"{name} is for a module with example_inputs", "Leave it out, or give both")
    for kind, adapter in (mixers or {}).items():
        if not (isinstance(kind, type) and issubclass(kind, nn.Module) and callable(adapter)):
            raise InputError(
                f"mixers holds {kind!r}: {adapter!r}", "Give {MyClass: adapter}, a module's class and a function"
            )


def type_notes(module: nn.Module, dtype: str) -> list[str]:
    """Note the types of weights that were converted, unless they were float32."""
    found = Counter(str(p.dtype).removeprefix("torch.") for p in module.parameters() if p.is_floating_point())
    others = [f"{count} of {name}" for name, count in found.items() if name not in {dtype, "float32"}]
    if not others:
        return []
    keep = [name for name in found if name in PRECISIONS and name != dtype]
    hint = f": `dtype={keep[0]!r}` keeps that type" if len(found) == 1 and keep else ""
    return [f"the file is written in {dtype}; of the weights' tensors {' and '.join(others)} were converted{hint}"]


def _substituted(copied: nn.Module, mixers: Adapters | None) -> SubstitutedCopy:
    """Replace the mixers in a copy. A copy that is itself a mixer is listed under its class's name."""
    name = type(copied).__name__
    result = replace_mixers(copied, mixers)
    return SubstitutedCopy(
        result.module,
        [part or name for part in result.replaced],
        {part or name: why for part, why in result.near_misses.items()},
        {part or name: weights for part, weights in result.folded.items()},
    )


def _folded(weights: Sequence[str]) -> str:
    verb = "is" if len(weights) == 1 else "are"
    return f"{', '.join(weights)} {verb} computed from other weights; the file stores the result"


def _program_maker(examples: Mapping[str, Tensor], dynamic_shapes: Shapes | None) -> Callable[[nn.Module], Program]:
    def make_program(module: nn.Module) -> Program:
        return module_program(module, _in_type_of(module, examples), dynamic_shapes)

    return make_program


def _state_maker(examples: Mapping[str, Tensor], *, masked: bool) -> Callable[[nn.Module], Program]:
    def make_program(module: nn.Module) -> Program:
        return stateful_program(module, _in_type_of(module, examples), masked=masked)

    return make_program


def _one_pass_maker(examples: Mapping[str, Tensor]) -> Callable[[nn.Module], Program]:
    def make_program(module: nn.Module) -> Program:
        return one_pass_program(module, _in_type_of(module, examples))

    return make_program


def _in_type_of(module: nn.Module, examples: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert floating-point examples to the type of a module's weights."""
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    return {name: t.to(dtype) if t.is_floating_point() else t for name, t in examples.items()}
