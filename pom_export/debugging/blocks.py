"""Split a model into the parts that a search for precision chooses among."""

from __future__ import annotations

from collections.abc import Iterator

from pom_export.graph.module_names import is_inside
from pom_export.graph.module_values import ModuleValues
from pom_export.graph.nodes import is_aggregation


def parts_of(graph: ModuleValues, module: str = "") -> list[str]:
    """Return a model's blocks, and its modules outside of blocks such as an embedding or a head, in their order.

    A module that contains more than one mixer is split into those directly in it, so that a block has one mixer.

    Args:
        graph: the model's graph.
        module: the module to split; "" is the model itself.
    """
    return list(_parts(graph, module))


def _parts(graph: ModuleValues, module: str) -> Iterator[str]:
    for part in modules_in(graph, module):
        if _mixers(graph, part) > 1 and modules_in(graph, part):
            yield from _parts(graph, part)
        else:
            yield part


def modules_in(graph: ModuleValues, module: str) -> list[str]:
    """Return the modules directly in a module that have nodes, in the nodes' order."""
    prefix = f"{module}." if module else ""
    inner = (scope.removeprefix(prefix) for scope in graph.scopes.values() if scope.startswith(prefix) and scope)
    return list(dict.fromkeys(prefix + name.partition(".")[0] for name in inner))


def _mixers(graph: ModuleValues, module: str) -> int:
    return sum(is_aggregation(node) and is_inside(scope, [module]) for node, scope in graph.scopes.items())
