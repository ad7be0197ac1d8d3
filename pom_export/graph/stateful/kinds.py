"""What each traced value depends on: nothing that grows with the tokens, their positions alone, or the tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum

import sympy
import torch
from torch import fx

from pom_export.graph.stateful.roles import POSITIONS, STREAM, VALID, Roles
from pom_export.graph.stateful.shapes import depends_on, shapes_of, token_axis
from pom_export.graph.stateful.trace import CausalTrace


class Kind(Enum):
    """What a value depends on.

    SIZE: a number computed from sizes. CONSTANT: weights, inputs without tokens, and what is computed from them.
    POSITION: the number of tokens and where each is, but none of their values. TOKENS: the tokens' values.
    """

    SIZE = "size"
    CONSTANT = "constant"
    POSITION = "position"
    TOKENS = "tokens"


def belongs_to(node: fx.Node, modules: Sequence[str]) -> bool:
    """Return whether a node was traced inside one of some modules, given their names."""
    if not modules:
        return False
    paths = [str(path) for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    plain = [path.removeprefix("model").removeprefix(".") for path in paths]
    return any(path == name or path.startswith(f"{name}.") for path in plain for name in modules)


_ATEN = torch.ops.aten
# Tensors of one value, with the shape of another.
FILLED = frozenset(
    getattr(_ATEN, name).default
    for name in ("ones_like", "zeros_like", "full_like", "new_ones", "new_zeros", "new_full")
)


def _has_all_tokens(node: fx.Node, tokens: sympy.Symbol) -> bool:
    return all(token_axis(shape, tokens) is not None for shape in shapes_of(node))


_OF_ROLE = {STREAM: Kind.TOKENS, POSITIONS: Kind.POSITION, VALID: Kind.POSITION}


def find_kinds(trace: CausalTrace, roles: Roles, layers: Sequence[str] = ()) -> Mapping[fx.Node, Kind]:
    """Return what each value depends on; nodes without a result, such as torch's own checks, are left out.

    Args:
        trace: the traced model.
        roles: what each input is.
        layers: names of the user's own stateful layers, in which positions are those in a call.
    """
    tokens, batch = trace.symbols.tokens, trace.symbols.batch
    kinds: dict[fx.Node, Kind] = {}
    for node in trace.nodes:
        value = node.meta.get("val")
        if node.op == "output" or (node.op == "call_function" and value is None):
            continue
        if node.op == "placeholder":
            kinds[node] = _OF_ROLE.get(roles[str(node.target)], Kind.CONSTANT)
        elif node.op == "get_attr":
            kinds[node] = Kind.CONSTANT
        elif isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool, int, float, bool)):
            kinds[node] = Kind.SIZE
        else:
            inputs = [each for each in node.all_input_nodes if each in kinds]
            its = {kinds[each] for each in inputs}
            grows = any(kinds[each] is Kind.SIZE and depends_on(each.meta["val"], tokens) for each in inputs)
            if node.target in FILLED and _has_all_tokens(node, tokens) and not belongs_to(node, layers):
                kinds[node] = Kind.POSITION
            elif Kind.TOKENS in its or ((Kind.POSITION in its or grows) and belongs_to(node, layers)):
                kinds[node] = Kind.TOKENS
            elif Kind.POSITION in its or grows:
                # What differs from row to row is no function of the position alone.
                rows = any(kinds[each] is Kind.CONSTANT and depends_on(each.meta["val"], batch) for each in inputs)
                kinds[node] = Kind.TOKENS if rows else Kind.POSITION
            else:
                kinds[node] = Kind.CONSTANT
    return kinds
