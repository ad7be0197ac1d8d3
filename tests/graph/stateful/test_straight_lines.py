"""What is rewritten of the arithmetic of positions, and that it gives the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.export import Dim

from pom_export.graph.stateful.straight_lines import simplify

_ATEN = torch.ops.aten
_IN_QUESTION = (_ATEN.index.Tensor, _ATEN.diff.default, _ATEN.cumsum.default)


class _Module(nn.Module):
    def __init__(self, compute: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.compute = compute

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x)


def simplified(
    compute: Callable[[Tensor], Tensor], x: Tensor, positions: list[str], fills: dict[str, Any] | None = None
) -> tuple[int, fx.GraphModule]:
    """Return how many of the operators in question are left, and the graph."""
    sizes = {0: Dim.AUTO, 1: Dim.AUTO}
    program = torch.export.export(_Module(compute), (x,), dynamic_shapes=(sizes,)).run_decompositions({})
    graph = program.module(check_guards=False)
    assert isinstance(graph, fx.GraphModule)
    simplify(graph.graph, positions, fills or {})
    graph.graph.lint()
    graph.recompile()
    return sum(node.target in _IN_QUESTION for node in graph.graph.nodes), graph


def _rows(x: Tensor) -> Tensor:
    return torch.arange(x.shape[0])


def _places(x: Tensor) -> Tensor:
    return torch.arange(x.shape[1])


def _gaps(places: Tensor, before: Any) -> Tensor:
    return torch.diff(places, prepend=places[:, :1] - before, dim=-1) != 1


SIMPLER: dict[str, Callable[[Tensor], Tensor]] = {
    "every place": lambda x: x[_rows(x)[:, None], _places(x)],
    "new axes": lambda x: x[_rows(x)[:, None, None, None], _places(x)[None, None, :, None]],
    "keys": lambda x: x[_rows(x)[:, None, None, None], _places(x)[None, None, None]],
    "other order": lambda x: x[_rows(x)[None, :], _places(x)[:, None]],
    "first axis": lambda x: x[_rows(x)],
    "no gaps": lambda x: _gaps(_places(x)[None].expand(x.shape[0], -1), 1).cumsum(-1) + x,
    "shifted": lambda x: _gaps(_places(x)[None] + 7, 1).cumsum(-1) + x,
    "counted": lambda x: torch.ones(x.shape[0], x.shape[1]).long().cumsum(-1) - 1 + x,
    "counted rows": lambda x: 3 * torch.full_like(x, 2, dtype=torch.int64).cumsum(0) + x,
    "ones of another shape": lambda x: x.new_ones(x.shape[1], dtype=torch.int64).cumsum(0) + x,
    "part of a range": lambda x: x[_rows(x)[:, None], torch.arange(2, x.shape[1] + 2)[None] - 2],
}
AS_THEY_ARE: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
    "backwards": (1, lambda x: x[_rows(x)[:, None], x.shape[1] - 1 - _places(x)[None]]),
    "from the second": (1, lambda x: x[_rows(x)[:, None], 1 + _places(x)[None, :-1]]),
    "without the last": (1, lambda x: x[_rows(x)[:, None], _places(x)[None, :-1]]),
    "one axis twice": (1, lambda x: x[_places(x)[: x.shape[0]], _places(x)[: x.shape[0]]]),
    "values": (1, lambda x: _gaps(x.long(), 1).cumsum(-1)[:, :1] + x),
    "every second": (2, lambda x: _gaps(2 * _places(x)[None], 1).cumsum(-1) + x),
    "a gap at the start": (2, lambda x: _gaps(_places(x)[None], 3).cumsum(-1) + x),
    "sums of values": (1, lambda x: (x > 0).cumsum(-1) + x),
    "sums in float": (1, lambda x: torch.ones_like(x).cumsum(-1) + x),
}


@pytest.mark.parametrize("name", SIMPLER)
def test_what_is_known_is_rewritten(name: str) -> None:
    left, graph = simplified(SIMPLER[name], torch.randn(2, 6), [])
    assert left == 0
    for rows, tokens in ((2, 6), (3, 9), (1, 1)):
        x = torch.randn(rows, tokens)
        torch.testing.assert_close(graph(x), SIMPLER[name](x), rtol=0, atol=0)


@pytest.mark.parametrize("name", AS_THEY_ARE)
def test_what_is_not_stays(name: str) -> None:
    least, compute = AS_THEY_ARE[name]
    left, graph = simplified(compute, torch.randn(2, 6), [])
    assert left >= least
    x = torch.randn(3, 9)
    torch.testing.assert_close(graph(x), compute(x), rtol=0, atol=0)


def test_an_input_of_positions_counts() -> None:
    positions = torch.arange(6).repeat(2, 1)
    assert simplified(lambda x: _gaps(x, 1).cumsum(-1), positions, ["x"])[0] == 0
    assert simplified(lambda x: _gaps(x, 1).cumsum(-1), positions, [])[0] == 2


@pytest.mark.parametrize(("ones", "fill"), [(torch.ones(2, 6, dtype=torch.int64), 1), (torch.ones(2, 6).bool(), True)])
def test_a_mask_that_leaves_nothing_out_counts_positions(ones: Tensor, fill: Any) -> None:
    left, graph = simplified(lambda x: x.long().cumsum(-1) - 1, ones, [], {"x": fill})
    assert left == 0
    assert torch.equal(graph(ones), torch.arange(6).expand(2, 6))
