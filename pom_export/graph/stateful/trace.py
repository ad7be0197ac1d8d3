"""Trace a user's causal model over all tokens, as the starting point of its stateful form."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from pom_export.errors import SEE_CAUSE, InputError
from pom_export.graph.copying import copy_module
from pom_export.graph.outputs import TensorsOnly
from pom_export.graph.own_program import repeated
from pom_export.graph.refusals import refusal
from pom_export.graph.stand_in import stand_in_paths
from pom_export.graph.stateful.last_token import keep_every_token
from pom_export.graph.stateful.roles import CONTEXT, CONTEXT_TOKENS, FIXED, TRIANGLE, VALID, Roles
from pom_export.graph.stateful.shapes import Symbols, expression
from pom_export.graph.stateful.straight_lines import simplify
from pom_export.graph.tracing import tracing_modes

# Sizes to trace with: distinct, so that torch takes none for another, and small, since every value is kept. Sizes of 1
# would be constants to torch.
_ROWS, _TOKENS = 3, 8
# With how many tokens a model is tried to see whether torch's limit is one too low.
_LONGEST_TRIED = 5000
# Where the user's model is in the module that is traced.
_WRAPPER = "model."


@dataclass(frozen=True)
class CausalTrace:
    """The operators of a model in order, each with the symbolic shapes of its results.

    Attributes:
        nodes: the operators, functional: none writes to its inputs.
        weights: the tensors that `get_attr` nodes name.
        symbols: the symbols for rows and tokens.
        roles: what each input is, as far as torch traced it.
        inputs: the inputs that it was traced with, by name.
        most_tokens: the largest number of tokens that torch found the model to take; None: no limit.
        stand_ins: the user's names of replaced mixers, by their paths.
    """

    nodes: Sequence[fx.Node]
    weights: nn.Module
    symbols: Symbols
    roles: Roles
    inputs: Mapping[str, Tensor]
    most_tokens: int | None
    stand_ins: Mapping[str, str]

    @property
    def outputs(self) -> list[Any]:
        """The nodes of the outputs."""
        (node,) = (each for each in self.nodes if each.op == "output")
        return list(node.args[0])  # type: ignore[arg-type]

    def weight(self, name: str) -> Tensor:
        """Return the tensor that a `get_attr` node names."""
        part, _, leaf = name.removeprefix(_WRAPPER).rpartition(".")
        return getattr(self.weights.get_submodule(part), leaf)


class _Tied(TensorsOnly):
    """A model whose inputs are known to agree in rows and tokens, which torch does not find out by itself.

    It makes causal masks by itself, so that a trace shows what they are.
    """

    def __init__(self, model: nn.Module, examples: Mapping[str, Tensor], roles: Roles) -> None:
        super().__init__(model, roles.aside)
        self._main = roles.main
        self._same = roles.same_lengths(examples)
        self._masks = {name: tensor for name, tensor in examples.items() if roles[name] == TRIANGLE}
        self._sizes = {name: roles.sizes(name, examples[name]) for name in examples if name not in self._masks}
        self._roles = roles

    @property
    def forward(self) -> Callable[..., tuple[Tensor, ...]]:  # type: ignore[override]
        """Run the model."""
        run = super().forward

        def forward(**inputs: Any) -> tuple[Tensor, ...]:
            main = inputs[self._main]
            for name, sizes in self._sizes.items():
                for size, axis in sizes if name != self._main else ():
                    torch._check(inputs[name].shape[axis] == main.shape[size])
            for one, other in self._same:
                torch._check(inputs[other].shape[1] == inputs[one].shape[1])
            rows, tokens = main.shape[:2]
            masks = {name: self._roles.triangle(name, like, rows, tokens) for name, like in self._masks.items()}
            return run(**inputs, **masks)

        given = inspect.signature(run)
        parameters = [each for each in given.parameters.values() if each.name not in self._masks]
        forward.__signature__ = given.replace(parameters=parameters)  # type: ignore[attr-defined]
        return forward


def trace_causal(module: nn.Module, examples: Mapping[str, Tensor], roles: Roles) -> CausalTrace:
    """Trace a module over all tokens.

    Args:
        module: the module.
        examples: its inputs by name.
        roles: what each input is.

    Raises:
        InputError: torch can't trace it, or the model fixes the number of rows or tokens.
    """
    inputs = _resized_all(examples, roles, _TOKENS)
    dynamic = {
        name: dict.fromkeys(range(1 if roles[name] == FIXED else min(tensor.dim(), 2)), Dim.AUTO)
        for name, tensor in inputs.items()
    }
    tied = _Tied(module, examples, roles)
    exported = _exported(tied, inputs, dynamic)
    graph = exported.module(check_guards=False)
    if roles.last:
        every = keep_every_token(graph, _symbols(list(graph.graph.nodes), roles).tokens)
        exported = _exported(every, inputs, dynamic)
        graph = exported.module(check_guards=False)
    fills = {name: fill for name, fill in roles.fills.items() if roles[name] == VALID}
    simplify(graph.graph, [name for name in examples if roles.is_positions(name)], fills)
    nodes = list(graph.graph.nodes)
    if fixed := _fixed_by_trace(nodes, roles):
        return trace_causal(module, examples, roles.with_fixed(fixed))
    for node in nodes:
        _take_type_alone(node)
    symbols = _symbols(nodes, roles)
    bounds = exported.range_constraints.get(symbols.tokens)
    most = None if bounds is None or not bounds.upper.is_finite or bounds.upper > 2**40 else int(bounds.upper)
    if most is not None and most < _LONGEST_TRIED and not roles.last:
        # Torch leaves out the size at which x[:, -40:] just keeps everything.
        longer = _resized_all(examples, roles, most + 1)
        most += _gives_the_same(graph, _Tied(copy_module(module), examples, roles), longer)
    return CausalTrace(nodes, _weights(graph, nodes), symbols, roles, inputs, most, stand_in_paths(tied))


def _gives_the_same(graph: nn.Module, module: nn.Module, inputs: Mapping[str, Tensor]) -> bool:
    """Return whether a trace gives what its module does."""
    try:
        with torch.no_grad():
            # Calling the graph would run hooks that check the sizes.
            found, expected = graph.forward(**inputs), module(**inputs)
    except Exception:  # noqa: BLE001 (whatever either raises at this size)
        return False
    return all(
        one.shape == other.shape and torch.allclose(one, other) for one, other in zip(found, expected, strict=True)
    )


def _fixed_by_trace(nodes: Sequence[fx.Node], roles: Roles) -> list[str]:
    """Return the contexts whose number of tokens torch fixed in the trace, as it does for recurrent layers."""
    placeholders = [node for node in nodes if node.op == "placeholder" and roles[str(node.target)] == CONTEXT]
    return [str(node.target) for node in placeholders if expression(node.meta["val"].shape[1]).is_number]


def _take_type_alone(node: fx.Node) -> None:
    """Make an operator that takes another tensor's type independent of that tensor's values."""
    if node.target in {torch.ops.aten.type_as.default, torch.ops.aten.to.other}:
        node.target = torch.ops.aten._to_copy.default
        node.args, node.kwargs = node.args[:1], {"dtype": node.meta["val"].dtype}


def _exported(module: nn.Module, inputs: Mapping[str, Tensor], dynamic: Mapping[str, Any]) -> ExportedProgram:
    with tracing_modes():
        try:
            exported = torch.export.export(module, (), dict(inputs), dynamic_shapes=dict(dynamic))
            return exported.run_decompositions({})
        except InputError:
            raise
        except (Exception, SystemExit) as error:
            raise refusal("torch could not trace the model", error, module, SEE_CAUSE) from error


def _resized_all(examples: Mapping[str, Tensor], roles: Roles, tokens: int) -> dict[str, Tensor]:
    """Return the inputs to trace with; causal masks are made in the trace."""
    return {name: _resized(tensor, roles, name, tokens) for name, tensor in examples.items() if roles[name] != TRIANGLE}


def _resized(tensor: Tensor, roles: Roles, name: str, tokens: int) -> Tensor:
    """Return an example at the sizes to trace with, repeating or cutting its rows and tokens."""
    if not roles.is_flat(name) and tensor.dim() and tensor.shape[0] == roles.rows:
        tensor = repeated(tensor, 0, _ROWS)
    if roles[name] == FIXED:
        return tensor
    axis = 0 if roles.is_flat(name) else 1
    if roles.is_positions(name):
        shape = [*tensor.shape]
        shape[axis] = tokens
        return torch.arange(tokens, dtype=tensor.dtype).expand(shape).contiguous()
    return repeated(tensor, axis, CONTEXT_TOKENS if roles[name] == CONTEXT else tokens)


def _symbols(nodes: Sequence[fx.Node], roles: Roles) -> Symbols:
    (node,) = (each for each in nodes if each.op == "placeholder" and each.target == roles.main)
    sizes = [expression(size) for size in node.meta["val"].shape[:2]]
    for size, kind in zip(sizes, ("rows", "tokens"), strict=True):
        if not isinstance(size, sympy.Symbol):
            raise InputError(
                f"with `stateful`, the number of {kind} must be dynamic, but the model fixes it to {size}",
                "Look for code that uses a size as a number, such as int(x.shape[1]), and for layers that torch.export "
                "fixes it in, such as nn.GRU",
            )
    return Symbols(*sizes)


def _weights(graph: fx.GraphModule, nodes: Sequence[fx.Node]) -> nn.Module:
    """Return a module of plain modules with the tensors of a graph, which share their storage."""
    root = nn.Module()
    for name in dict.fromkeys(str(node.target) for node in nodes if node.op == "get_attr"):
        value: Any
        holder = root
        # The wrapper is no part of the user's names.
        *path, leaf = name.removeprefix(_WRAPPER).split(".")
        value = graph.get_submodule(_WRAPPER.rstrip(".")) if name.startswith(_WRAPPER) else graph
        for step in path:
            value = getattr(value, step)
            if step not in holder._modules:
                holder.add_module(step, nn.Module())
            holder = holder.get_submodule(step)
        value = getattr(value, leaf)
        if isinstance(value, nn.Parameter):
            holder.register_parameter(leaf, value)
        elif isinstance(value, Tensor):
            holder.register_buffer(leaf, value)
        else:
            setattr(holder, leaf, value)
    return root
