"""Make a program to trace from a user's own module or a torch.export program."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import Dim, ExportedProgram

from pom_export.errors import InputError, kind_of
from pom_export.graph.control_flow import without_compiler
from pom_export.graph.copying import copy_module, plain_tensors
from pom_export.graph.outputs import TensorsOnly, free_name, left_out, named_outputs
from pom_export.graph.program import Program
from pom_export.graph.refusals import refusal
from pom_export.graph.size_bounds import symbol_bounds
from pom_export.graph.weight_writes import no_weight_changes
from pom_export.graph.wrappers import forward_signature, has_forward
from pom_export.quiet import quiet_failure

Examples = Mapping[str, Tensor]
_TOKENS_RANK, _IMAGE_RANK = 3, 4
_SMALLEST_TRACED = 2
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def named_examples(module: nn.Module, examples: Tensor | Sequence[Any] | Mapping[str, Any]) -> Examples:
    """Return example inputs by the names of the parameters of a module's `forward`.

    Args:
        module: the module that takes the inputs.
        examples: one tensor, a sequence by position (None omits an optional input), or a mapping by name. NumPy arrays
            become tensors.

    Raises:
        InputError: the forward has other inputs, or an example is not a tensor.
    """
    if not has_forward(module):
        raise InputError(f"{type(module).__name__} has no forward", "Wrap it in a module that calls it")
    parameters = forward_signature(module).parameters.values()
    names = [parameter.name for parameter in parameters if parameter.kind in _NAMED]
    if any(parameter.kind not in (*_NAMED, inspect.Parameter.VAR_KEYWORD) for parameter in parameters):
        raise InputError(
            "the model's forward has inputs without names (*args, or positional-only ones)",
            "Wrap it in a module whose forward names each input",
        )
    if isinstance(examples, (Tensor, np.ndarray)):
        examples = (examples,)
    if not isinstance(examples, (Mapping, Sequence)) or isinstance(examples, (str, bytes)):
        raise InputError(f"example_inputs is {kind_of(examples)}", "Give a tuple of tensors, or a mapping by name")
    if not isinstance(examples, Mapping):
        if len(examples) > len(names):
            raise InputError(f"forward takes {len(names)} inputs, got {len(examples)} examples", "Give one per input")
        examples = dict(zip(names, examples, strict=False))
    if unknown := [name for name in examples if name not in names]:
        raise InputError(f"forward has no input {unknown[0]!r}; it has {', '.join(names)}", "Check the name")
    return {name: _tensor(name, value) for name, value in examples.items() if value is not None}


def _tensor(name: str, value: Any) -> Tensor:
    """Return a contiguous copy of an example on the CPU.

    torch.export would assume that the file depends on other strides, such as those of a slice.
    """
    if isinstance(value, np.ndarray):
        try:
            value = torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("=")))
        except TypeError as error:
            raise InputError(f"example input {name} is an array of {value.dtype}", "Give another type") from error
    if not isinstance(value, Tensor):
        raise InputError(
            f"example input {name} is {kind_of(value)}, not a tensor",
            "Give tensors; fix other arguments in a module that wraps yours",
        )
    if value.layout != torch.strided or value.is_quantized or value.is_nested or value.is_complex():
        kind = f"{value.layout}, {value.dtype}".replace("torch.", "")
        raise InputError(
            f"example input {name} is a kind of tensor that ONNX does not have ({kind})", "Give a plain, dense one"
        )
    if not value.numel():
        shape = "x".join(map(str, value.shape))
        raise InputError(
            f"example input {name} is empty ({shape}): there is nothing to trace or to compare",
            "Give at least one row and one token",
        )
    if value.is_meta or isinstance(value, FakeTensor):
        raise InputError(f"example input {name} has no values ({type(value).__name__}, device meta)", "Give real ones")
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)


def module_program(module: nn.Module, examples: Examples, dynamic_shapes: Mapping[str, Any] | None = None) -> Program:
    """Return the program of a user's module.

    Outputs are named after the keys of the mapping that it returns, or else y, or y_0, y_1 and so on. Unless
    `dynamic_shapes` is given, dimensions are dynamic where the model allows it: the first two of each input, and later
    ones that are as long as the second dimension of an input, such as those of a (B, T, N) mask; only the first one of
    images.

    Raises:
        InputError: the module fails on the examples, or returns no tensor.
    """
    automatic = _automatic_shapes(examples)
    # Run on a copy: whatever a module keeps from a call would become a constant of the graph.
    result = run_on_examples(copy_module(module), examples)
    outputs = named_outputs(result)
    if not outputs:
        raise InputError("the model returns no tensor", "Return at least one")
    notes = left_out(result)
    pinned = list(_axes_that_change_ranks(module, examples, automatic, outputs))
    for name, axis in pinned:
        del automatic[name][axis]
        notes.append(f"dimension {axis} of {name} is fixed: the outputs have fewer axes where it is 1")
    shapes = automatic if dynamic_shapes is None else _checked(dynamic_shapes, pinned)
    _forget_sizes(module, examples, automatic)
    taken = {*examples, *outputs}
    names = tuple(free_name(f"{name}_out", taken) if name in examples else name for name in outputs)
    return Program(TensorsOnly(module), examples, shapes, names, notes=tuple(notes))


def _axes_that_change_ranks(
    module: nn.Module, examples: Examples, dynamic: Mapping[str, Mapping[int, Any]], outputs: Mapping[str, Tensor]
) -> Iterator[tuple[str, int]]:
    """Yield dimensions where the rank of an output depends on whether the size is 1, for example because of `squeeze`.

    All batch dimensions are tried together, and so are all others, since inputs mostly agree in them.
    """
    ranks = [tensor.dim() for tensor in outputs.values()]
    axes = [(name, axis) for name, own in dynamic.items() for axis in own]
    for group in ([one for one in axes if one[1] == 0], [one for one in axes if one[1] > 0]):
        resized = dict(examples)
        for name, axis in group:
            resized[name] = repeated(resized[name], axis, 2 if examples[name].shape[axis] == 1 else 1)
        try:
            others = named_outputs(run_on_examples(copy_module(module), resized)) if group else outputs
        except InputError:  # a size that the model refuses proves nothing
            continue
        if [tensor.dim() for tensor in others.values()] != ranks:
            yield from group


def repeated(tensor: Tensor, axis: int, size: int) -> Tensor:
    """Return a tensor with another size along an axis, repeating its values."""
    return tensor.index_select(axis, torch.arange(size) % tensor.shape[axis])


def _checked(dynamic_shapes: Mapping[str, Any], pinned: Sequence[tuple[str, int]]) -> Mapping[str, Any]:
    """Return the user's dynamic shapes.

    Raises:
        InputError: they include a dimension that can't be dynamic.
    """
    for name, axis in pinned:
        if axis in (dynamic_shapes.get(name) or {}):
            raise InputError(
                f"dimension {axis} of {name} can't be dynamic: the outputs have fewer axes where it is 1",
                "Leave it out of dynamic_shapes, or index the axis instead of squeezing it",
            )
    return dynamic_shapes


class FailsOnExamplesError(InputError):
    """A model raises an exception on its example inputs."""


def run_on_examples(module: nn.Module, examples: Examples) -> Any:
    """Run a module on its example inputs and return the result.

    Raises:
        FailsOnExamplesError: it raises an exception.
        InputError: it changes a parameter, or calls a mixer in a way that our mixers do not support.
    """
    try:
        with torch.no_grad(), without_compiler(), quiet_failure(), no_weight_changes(module):
            # A model may write to its inputs, for example with an in-place activation.
            return module(**{name: tensor.clone() for name, tensor in examples.items()})
    except InputError:
        raise  # explains which call is not supported, and what to do
    except (Exception, SystemExit) as error:
        found = refusal("the model fails on the example inputs", error, module, "Give others")
        raise FailsOnExamplesError(found.what, found.hint) from error


def _automatic_shapes(examples: Examples) -> dict[str, dict[int, Any]]:
    """Return the dimensions that may be dynamic; torch.export fixes those that the model requires to be fixed.

    A size of 1 stays fixed if another input is longer along the same axis, because it is meant to be broadcast.
    """
    longer = _longest_axes(examples)
    lengths = {tensor.shape[1] for tensor in examples.values() if 1 < tensor.dim() < _IMAGE_RANK}
    return {
        name: {
            axis: Dim.AUTO
            for axis in range(tensor.dim())
            if (axis == 0 or (tensor.dim() < _IMAGE_RANK and (axis == 1 or tensor.shape[axis] in lengths)))
            and not (tensor.shape[axis] == 1 and longer.get(axis, 1) > 1)
        }
        for name, tensor in examples.items()
    }


def _longest_axes(examples: Examples) -> dict[int, int]:
    """Return the largest number of rows and of tokens among the inputs; the second axis of (B, width) is not tokens."""
    tokens = [
        t.shape[1] for t in examples.values() if t.dim() == _TOKENS_RANK or (t.dim() == 2 and not t.is_floating_point())
    ]
    return {0: max((t.shape[0] for t in examples.values() if t.dim()), default=1), 1: max(tokens, default=1)}


def _forget_sizes(module: nn.Module, examples: Examples, dynamic: Mapping[str, Mapping[int, Any]]) -> None:
    """Call a module that keeps tensors between calls, such as tables for the last length, with other sizes.

    Otherwise, tensors left by an earlier call with the example's sizes would become constants of the graph.
    """
    if not any(True for _ in plain_tensors(module)):
        return
    others = dict(examples)
    for name, axes in dynamic.items():
        for axis in axes:
            others[name] = repeated(others[name], axis, others[name].shape[axis] + 1)
    # The model may refuse other sizes.
    with torch.no_grad(), without_compiler(), contextlib.suppress(Exception), quiet_failure():
        module(**others)


def program_module(program: ExportedProgram) -> tuple[nn.Module, Examples, dict[str, Any]]:
    """Return the module of a torch.export program, its example inputs, and its dynamic dimensions.

    Raises:
        InputError: it was saved without example inputs or with some that are not tensors.
    """
    arguments, keywords = program.example_inputs or ((), {})
    examples = [*arguments, *keywords.values()]
    if not examples or not all(isinstance(value, Tensor) for value in examples):
        raise InputError("the program's example inputs are missing, or not all tensors", "Trace it with tensors")
    module = program.module(check_guards=False)
    fakes = [program_input.meta["val"] for program_input in _user_inputs(program)]
    names = list(inspect.signature(module.forward).parameters)
    dynamic = {
        name: {axis: _bounded(size, program) for axis, size in enumerate(fake.shape) if isinstance(size, torch.SymInt)}
        for name, fake in zip(names, fakes, strict=True)
    }
    return module, dict(zip(names, examples, strict=True)), dynamic


def _bounded(size: torch.SymInt, program: ExportedProgram) -> Any:
    """Return a dynamic dimension with the bounds that a program was traced for."""
    low, high = symbol_bounds(size.node.expr, program.range_constraints)
    # Unless told otherwise, torch traces for sizes of at least 2, and the trace is valid for 1 all the same.
    return Dim.AUTO(min=low if low > _SMALLEST_TRACED else None, max=high)


def _user_inputs(program: ExportedProgram) -> list[torch.fx.Node]:
    wanted = set(map(str, program.graph_signature.user_inputs))
    return [node for node in program.graph.nodes if node.op == "placeholder" and node.name in wanted]
