"""Join the projections of a version 1 mixer's factors, where each factor has one of its own."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir

from pom_export import contract
from pom_export.graph.fusing.activations import GELUS, projected
from pom_export.graph.fusing.contributed import gelu
from pom_export.graph.fusing.evaluation import Array, Evaluator
from pom_export.graph.fusing.features import tolerance_of
from pom_export.graph.fusing.tokens import after, layout_of, named, run_tokens

_LONGEST: Final = 60
_AGREES: Final = 1e-9
_POINTS: Final = 7
_PAIR: Final = 2
_RANK: Final = 3
# Split has an attribute for the number of parts since.
_SPLIT_OPSET: Final = 18


@dataclass(frozen=True)
class _Factor:
    """A factor of running products.

    Attributes:
        x: the projected tokens.
        value: their activation.
        is_gelu: whether that is the GELU.
    """

    x: ir.Value
    value: ir.Value
    is_gelu: bool


@dataclass(frozen=True)
class _Join:
    concat: ir.Node
    split: ir.Node


class JoinedFactors:
    """The projections of factors that are multiplied one by one, side by side in one value, and split again.

    The op takes them so.

    Args:
        evaluator: of the graph; nodes are added to it.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        self._graph = evaluator.graph
        self._opset = evaluator.root.opset_imports[""]
        chains = list(_chains(evaluator, list(_factors(evaluator))))
        self._joins = [self._joined([factor.x for factor in chain]) for chain in chains]
        if chains:
            self._graph.sort()

    def put_back(self) -> None:
        """Take away what is not needed: parts that are still in use, and sums of parts that are not."""
        for join in self._joins:
            if join.split.graph is not self._graph:
                continue
            for part, x in zip(join.split.outputs, join.concat.inputs, strict=True):
                assert x is not None
                ir.convenience.replace_all_uses_with(part, x)
            self._graph.remove(join.split, safe=True)
            if not list(join.concat.outputs[0].uses()):
                self._graph.remove(join.concat, safe=True)

    def _joined(self, parts: Sequence[ir.Value]) -> _Join:
        axis, shape = _channel_axis(parts[0]), list(parts[0].shape or ())
        assert axis is not None
        name = parts[0].name
        uses = [[use for use in part.uses() if use.node.graph is self._graph] for part in parts]
        concat = ir.node("Concat", list(parts), {"axis": axis}, name=f"{name}/joined")
        whole = concat.outputs[0]
        whole.name, whole.type = f"{name}/joined", parts[0].type
        shape[axis] = int(str(shape[axis])) * len(parts)
        whole.shape = ir.Shape(shape)
        split = ir.node("Split", [whole], {"axis": axis}, num_outputs=len(parts), name=f"{name}/parts")
        if self._opset >= _SPLIT_OPSET:
            split.attributes["num_outputs"] = ir.AttrInt64("num_outputs", len(parts))
        for index, (part, old) in enumerate(zip(split.outputs, parts, strict=True)):
            part.shape, part.type, part.name = old.shape, old.type, f"{name}/parts.{index}"
            for user, position in uses[index]:
                user.replace_input_with(position, part)
        self._graph.extend([concat, split])
        return _Join(concat, split)


def _factors(evaluator: Evaluator) -> Iterator[_Factor]:
    """Yield the activations of projections of their own: of each channel alone, and the same for all."""
    seen: set[ir.Value] = set()
    for node in evaluator.graph:
        if node.op_type not in GELUS:
            continue
        inputs = [x for x in projected(evaluator, node) if x not in seen and _channel_axis(x) is not None]
        found = [factor for x in inputs if (factor := _factor(evaluator, x)) is not None]
        # Rounding before a GELU, as in quantized files, is a function of each channel too, and no part of it.
        factor = next((each for each in found if each.is_gelu), found[-1] if found else None)
        if factor is not None:
            seen.add(factor.x)
            yield factor


def _factor(evaluator: Evaluator, x: ir.Value) -> _Factor | None:
    """Return the last value that is one function of each of a value's channels; None if there is none."""
    layout = layout_of(x, evaluator.axes)
    if layout is None:
        return None
    generator = np.random.default_rng(0)
    tokens, order = generator.normal(0, 2, (_POINTS, layout.width)), generator.permutation(layout.width)
    values = [value for value in after(evaluator, x, _LONGEST) if _same_shape(value, x)]
    made = run_tokens(evaluator, x, layout, tokens, values)
    turned = run_tokens(evaluator, x, layout, tokens[:, order], values)
    alike = [value for value in values if value in made and value in turned]
    alike = [value for value in alike if np.allclose(made[value][:, order], turned[value], rtol=_AGREES, atol=_AGREES)]
    if not alike:
        return None
    close = tolerance_of(x)
    return _Factor(x, alike[-1], np.allclose(made[alike[-1]], gelu(tokens), rtol=close, atol=close))


def _chains(evaluator: Evaluator, factors: Sequence[_Factor]) -> Iterator[Sequence[_Factor]]:
    """Yield factors in the order in which their running products are taken, the longest chains first."""
    products, nodes = _products(evaluator, factors)
    by_value = {factor.value: factor for factor in factors}
    joined: set[ir.Value] = set()
    for group in sorted(products, key=len, reverse=True):
        order: list[_Factor] = []
        rest = group
        while len(rest) > _PAIR:
            less = next((each for each in products if len(each) == len(rest) - 1 and each < rest), None)
            if less is None:
                break
            order.insert(0, by_value[next(iter(rest - less))])
            rest = less
        if len(rest) > _PAIR or group & joined or len(group) > contract.MAX_DEGREE:
            continue
        first = _first(rest, nodes)
        if first is not None:
            joined |= group
            yield [by_value[first], by_value[next(iter(rest - {first}))], *order]


def _first(pair: Collection[ir.Value], products: Collection[ir.Node]) -> ir.Value | None:
    """Return the factor that is a product by itself: the one of two that is used otherwise than in products."""
    own = [value for value in pair if any(user not in products for user, _ in value.uses())]
    return own[0] if len(own) == 1 else None


def _products(evaluator: Evaluator, factors: Sequence[_Factor]) -> tuple[set[frozenset[ir.Value]], set[ir.Node]]:
    """Return the sets of factors that are multiplied, and the nodes that do it."""
    known = {factor.value: frozenset((factor.value,)) for factor in factors}
    groups: set[frozenset[ir.Value]] = set()
    nodes: set[ir.Node] = set()
    for node in evaluator.graph:
        data = evaluator.data_inputs(node)
        if not data or any(value not in known for value in data) or node.outputs[0] in known:
            continue
        group = frozenset(factor for value in data for factor in known[value])
        known |= dict.fromkeys(node.outputs, group)
        if len(group) > 1 and node.op_type == "Mul" and _is_product(evaluator, node.outputs[0], group):
            groups.add(group)
            nodes.add(node)
    return groups, nodes


def _is_product(evaluator: Evaluator, value: ir.Value, group: Collection[ir.Value]) -> bool:
    first = next(iter(group))
    if any(not _same_shape(value, factor) for factor in group):
        return False
    shape = [size if isinstance(size, int) else 2 for size in first.shape or ()]
    generator = np.random.default_rng(0)
    given: dict[ir.Value, Array] = {factor: generator.normal(0, 2, shape) for factor in group}
    made = evaluator.run([value], given, named({}, evaluator.root)).get(value)
    wanted = np.prod(list(given.values()), axis=0)
    return made is not None and made.shape == wanted.shape and np.allclose(made, wanted, rtol=_AGREES, atol=_AGREES)


def _same_shape(one: ir.Value, other: ir.Value) -> bool:
    return one.shape is not None and other.shape is not None and list(one.shape) == list(other.shape)


def _channel_axis(x: ir.Value) -> int | None:
    """Return the axis of a projection's channels: where its size is fixed, the last or, after a Conv, the second."""
    node, shape = x.producer(), x.shape
    if node is None or shape is None or len(shape) != _RANK:
        return None
    axis = 1 if node.op_type == "Conv" else len(shape) - 1
    return axis if isinstance(shape[axis], int) else None
