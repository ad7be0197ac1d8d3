"""Models that return only the last token's output: their trace is changed to give every token's."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import sympy
import torch
from torch import Tensor, fx, nn
from torch.fx import traceback

from pom_export.errors import InputError
from pom_export.graph.stateful.shapes import shapes_of

_ATEN = torch.ops.aten
_COPIES = (_ATEN.lift_fresh_copy.default, _ATEN.clone.default, _ATEN.detach.default, _ATEN.alias.default)


def keep_every_token(graph: fx.GraphModule, tokens: sympy.Symbol) -> nn.Module:
    """Return a traced model without the selection of the last token: what follows is done for every token.

    Args:
        graph: the traced model, which is changed.
        tokens: the symbol of the number of tokens.

    Raises:
        InputError: it selects no last token.
    """
    selections = [node for node in graph.graph.nodes if _selects_last(graph, node, tokens)]
    if not selections:
        raise InputError(
            "with `stateful`, the first output must have an entry for each token, (batch, tokens, ...), or be that of "
            "the last token, x[:, -1]",
            "Return the logits of every token",
        )
    for node in selections:
        node.replace_all_uses_with(node.args[0])
    graph.graph.eliminate_dead_code()
    return _Replayed(graph)


def _selects_last(graph: fx.GraphModule, node: fx.Node, tokens: sympy.Symbol) -> bool:
    """Return whether a node is the last token of another."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
        return False
    (shape, *others) = (*shapes_of(node.args[0]), None)
    if shape is None or others != [None]:
        return False
    axis: Any = None
    if node.target in {_ATEN.select.int, _ATEN.slice.Tensor}:
        dimension, start = (*node.args[1:], None, None)[:2]
        axis = dimension if start == -1 else None
    elif node.target is _ATEN.index.Tensor:
        indices = list(node.args[1])  # type: ignore[arg-type]
        given = [place for place, index in enumerate(indices) if index is not None]
        if len(given) == 1 and _is_minus_one(graph, indices[given[0]]):
            axis = given[0]
    return isinstance(axis, int) and bool(shape[axis] == tokens)


def _is_minus_one(graph: fx.GraphModule, node: Any) -> bool:
    """Return whether a node is the constant [-1]."""
    while isinstance(node, fx.Node) and node.target in _COPIES:
        node = node.args[0]
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return False
    value = _attribute(graph, str(node.target))
    return isinstance(value, Tensor) and value.tolist() == [-1]


def _attribute(module: nn.Module, name: str) -> Any:
    part, _, leaf = name.rpartition(".")
    return getattr(module.get_submodule(part), leaf)


class _Replayed(nn.Module):
    """Runs a traced model operator by operator, so that another trace has the modules' names too."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__()
        self._nodes = list(graph.graph.nodes)
        for name, part in graph.named_children():
            self.add_module(name, part)
        for node in self._nodes:
            name = str(node.target)
            if node.op == "get_attr" and "." not in name:
                setattr(self, name, getattr(graph, name))

    @property
    def forward(self) -> Callable[..., Any]:  # type: ignore[override]
        """Run it; its inputs are those of the trace."""

        def forward(**inputs: Any) -> Any:
            with traceback.preserve_node_meta():
                return self._run(inputs)

        names = [str(node.target) for node in self._nodes if node.op == "placeholder"]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        forward.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [inspect.Parameter(name, kind) for name in names]
        )
        return forward

    def _run(self, inputs: dict[str, Any]) -> Any:
        values: dict[fx.Node, Any] = {}
        for node in self._nodes:
            if node.op == "placeholder":
                values[node] = inputs[str(node.target)]
            elif node.op == "get_attr":
                values[node] = _attribute(self, str(node.target))
            elif node.op == "output":
                return fx.node.map_arg(node.args[0], values.__getitem__)
            else:
                with traceback.set_current_meta(node):
                    args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
                    values[node] = node.target(*args, **kwargs)
        raise AssertionError("a graph has an output")


def each_prefix(lengths: Iterator[int], run: Callable[[int], tuple[Tensor, ...]], count: int) -> tuple[Tensor, ...]:
    """Return the last token's outputs of prefixes of several lengths as if of one pass; NaN for other tokens.

    Args:
        lengths: the lengths.
        run: returns a model's outputs for a prefix, (B, ...) or (B, 1, ...) each.
        count: number of tokens.
    """
    whole: list[Tensor] = []
    for length in lengths:
        outputs = [output if _has_token_axis(output) else output[:, None] for output in run(length)]
        if not whole:
            whole = [output.new_full((output.shape[0], count, *output.shape[2:]), torch.nan) for output in outputs]
        for place, output in zip(whole, outputs, strict=True):
            place[:, length - 1] = output[:, 0]
    return tuple(whole)


def _has_token_axis(output: Tensor) -> bool:
    return output.dim() > 2 and output.shape[1] == 1
