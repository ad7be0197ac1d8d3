"""The stateful form of causal self-attention, by torch's function or written out as products around a softmax."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sympy
import torch
from torch import Tensor, fx
from torch.nn import functional

from pom_export.errors import InputError
from pom_export.graph.exported_model import PAST_KEY_VALUES
from pom_export.graph.refusals import place_of
from pom_export.graph.stateful.caches import Cache, make_cache
from pom_export.graph.stateful.kinds import Kind
from pom_export.graph.stateful.locality import axis_of
from pom_export.graph.stateful.positions import Positions, is_pointwise
from pom_export.graph.stateful.run import Run, StatePart
from pom_export.graph.stateful.shapes import Symbols, shape_at, shapes_of, size_at
from pom_export.graph.stateful.values import Values, call

_ATEN = torch.ops.aten
SDPA: Final = _ATEN.scaled_dot_product_attention.default
_SDPA_NAMES: Final = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
# For each product of matrices, the place of the second one.
_PRODUCTS: Final = {_ATEN.matmul.default: 1, _ATEN.bmm.default: 1, _ATEN.baddbmm.default: 2}
_SOFTMAX: Final = (_ATEN.softmax.int, _ATEN._softmax.default, _ATEN._safe_softmax.default)
_COPIES: Final = (
    *(_ATEN.clone.default, _ATEN.alias.default, _ATEN.detach.default),
    *(_ATEN._to_copy.default, _ATEN.to.dtype, _ATEN.type_as.default),
)
_MOST_NODES: Final = 16
# For how many tokens a mask is looked at, and at which positions.
_MANY_TOKENS: Final = (40, 700, 5000)
_FAR: Final = (0, 1, 7, 100, 1000, 5000, 20_000, 100_000, 1_000_000)
# A score that is lower than others by this much has no weight in float32.
_MASKING: Final = 1e3


@dataclass(frozen=True)
class Triangle:
    """A causal mask: one value where a token sees another, and another where it does not."""

    seen: Any
    hidden: Any

    @property
    def masks(self) -> bool:
        """Whether adding the mask to scores, or selecting by it, hides what is not to be seen."""
        if isinstance(self.seen, bool):
            return self.seen
        return bool(self.seen - self.hidden > _MASKING)


def triangle(value: Tensor) -> Triangle | None:
    """Return a matrix of positions as a causal mask; None if it is another."""
    if value.dim() < 2 or value.shape[-1] != value.shape[-2]:
        return None
    lower = torch.ones(value.shape[-2:], dtype=torch.bool).tril()
    seen, hidden = value[..., lower], value[..., ~lower]
    if bool((seen != seen.flatten()[0]).any()) or bool((hidden != hidden.flatten()[0]).any()):
        return None
    return Triangle(seen.flatten()[0].item(), hidden.flatten()[0].item())


def far_triangle(mask: fx.Node, positions: Positions, values: Values) -> Triangle | None:
    """Return a mask as a causal one if it is that for far tokens too; None if it is another.

    A window is a triangle as long as there are fewer tokens. The mask is computed for many tokens, as it is for a long
    sequence, and for tokens at far positions, which is what comparisons of positions see.
    """
    found = triangle(values[mask])
    if found is None:
        return None
    for tokens in _MANY_TOKENS:
        try:
            many = positions.among(tokens)[mask]
        except Exception:  # noqa: BLE001 (a table that ends before)
            break
        if many.shape[-1] != tokens or triangle(many[:1]) != found:
            return None if many.shape[-1] == tokens else found
    try:
        far = positions.at(mask, torch.tensor(_FAR))
    except Exception:  # noqa: BLE001 (a table that ends before, or a matrix that was made for its size)
        return found
    return found if far.shape[-1] != len(_FAR) or triangle(far) == found else None


def seen_tokens(run: Run, total: int) -> Tensor:
    """Return which tokens each token of a call sees, (B, N, total) bool."""
    positions = run.length[:, None] + torch.arange(run.tokens, device=run.length.device)
    return torch.arange(total, device=run.length.device) <= positions[..., None]


def _caches(index: int, key: fx.Node, value: fx.Node, symbols: Symbols) -> tuple[Cache, Cache] | None:
    made = [
        make_cache(f"{PAST_KEY_VALUES}.{index}.{kind}", node, symbols)
        for kind, node in (("key", key), ("value", value))
    ]
    return None if made[0] is None or made[1] is None else (made[0], made[1])


@dataclass(frozen=True)
class ScaledDotProduct:
    """torch's attention, from a call's tokens to all tokens so far."""

    node: fx.Node
    key: Cache
    value: Cache

    @property
    def nodes(self) -> Sequence[fx.Node]:
        """Its operator."""
        return (self.node,)

    def parts(self) -> Sequence[StatePart]:
        """Return the keys and values of earlier tokens."""
        return [self.key.part(), self.value.part()]

    def run(self, run: Run) -> Tensor:
        """Attend to the tokens so far."""
        args = _sdpa_arguments(self.node)
        key, value = self.key.appended(run), self.value.appended(run)
        return functional.scaled_dot_product_attention(
            run.values[args["query"]],
            key,
            value,
            attn_mask=seen_tokens(run, key.shape[-2])[:, None],
            scale=args["scale"],
            enable_gqa=args["enable_gqa"],
        )


def _sdpa_arguments(node: fx.Node) -> dict[str, Any]:
    defaults = {"attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": None, "enable_gqa": False}
    return {**defaults, **dict(zip(_SDPA_NAMES, node.args, strict=False)), **node.kwargs}


@dataclass(frozen=True)
class WrittenOut:
    """Scores, a softmax and a product with the values, from a call's tokens to all tokens so far.

    Attributes:
        nodes: the operators, in order: the first computes scores, the last the sum of values.
        key: the keys, as the first takes them.
        value: the values, as the last takes them.
        masks: causal masks among the operators' arguments.
    """

    nodes: Sequence[fx.Node]
    key: Cache
    value: Cache
    masks: Mapping[fx.Node, Triangle]

    def parts(self) -> Sequence[StatePart]:
        """Return the keys and values of earlier tokens."""
        return [self.key.part(), self.value.part()]

    def run(self, run: Run) -> Tensor:
        """Attend to the tokens so far."""
        keys, values = self.key.appended(run), self.value.appended(run)
        seen = seen_tokens(run, run.present[self.key.name].shape[2])
        known: dict[fx.Node, Any] = {}
        for node in self.nodes:

            def value_of(each: fx.Node, node: fx.Node = node) -> Any:
                if each in known:
                    return known[each]
                if each is self.key.node and node is self.nodes[0]:
                    return keys
                if each is self.value.node and node is self.nodes[-1]:
                    return values
                if each in self.masks:
                    return _as_mask(seen, self.masks[each], each, node, run.symbols)
                if run.kinds[each] is Kind.SIZE:
                    return size_at(each.meta["val"], run.sizes)
                return run.values[each]

            known[node] = call(node, value_of)
        return known[self.nodes[-1]]


def _as_mask(seen: Tensor, mask: Triangle, node: fx.Node, consumer: fx.Node, symbols: Symbols) -> Tensor:
    """Return a causal mask (..., N, P + N) for scores whose first axis is that of the rows."""
    shape = next(shapes_of(consumer))
    dtype = node.meta["val"].dtype
    if dtype == torch.bool:
        values = seen if mask.seen else ~seen
    else:
        values = torch.where(seen, torch.tensor(mask.seen, dtype=dtype), torch.tensor(mask.hidden, dtype=dtype))
    merged = int(sympy.cancel(shape[0] / symbols.batch))
    if merged > 1:
        values = values.repeat_interleave(merged, 0)
    for _ in range(len(shape) - 3):
        values = values[:, None]
    return values


class AttentionFinder:
    """Finds causal self-attention.

    Args:
        kinds: what each value depends on.
        symbols: torch's symbols for the sizes.
        values: values of the nodes on the example.
        positions: computes functions of the position.
    """

    def __init__(
        self,
        kinds: Mapping[fx.Node, Kind],
        symbols: Symbols,
        values: Values,
        positions: Positions,
    ) -> None:
        self._positions = positions
        self._kinds, self._symbols, self._values = kinds, symbols, values
        self._generator = torch.Generator().manual_seed(2)

    def find(self, node: fx.Node, index: int) -> ScaledDotProduct | WrittenOut | None:
        """Return the stateful form of the attention that begins with a node; None if there is none.

        Raises:
            InputError: it is attention that is not causal.
        """
        if node.target is SDPA:
            return self._torch_function(node, index)
        return self._written_out(node, index) if node.target in _PRODUCTS else None

    def _torch_function(self, node: fx.Node, index: int) -> ScaledDotProduct:
        args = _sdpa_arguments(node)
        mask = args["attn_mask"]
        if mask is not None:
            self._check_mask(mask, node)
        elif not args["is_causal"]:
            raise _not_causal(node)
        caches = _caches(index, args["key"], args["value"], self._symbols)
        if caches is None or len(next(shapes_of(node))) != 4:
            raise _unknown_layout(node)
        return ScaledDotProduct(node, *caches)

    def _check_mask(self, mask: fx.Node, node: fx.Node) -> Triangle:
        if self._kinds[mask] is not Kind.POSITION:
            if self._kinds[mask] is Kind.TOKENS:
                raise InputError(
                    f"with `stateful`, which tokens attention sees may not depend on their values{place_of(node)}",
                    "Leave padding out of the examples",
                )
            raise _not_causal(node)
        found = far_triangle(mask, self._positions, self._values)
        if found is None:
            raise InputError(
                f"with `stateful`, attention must see all earlier tokens alike, but its mask is not causal"
                f"{place_of(node)}",
                "A bias by distance, or a window, is not supported",
            )
        return found

    def _written_out(self, node: fx.Node, index: int) -> WrittenOut | None:
        second = _PRODUCTS[node.target]  # type: ignore[index]
        key = node.args[second]
        shape = next(shapes_of(node))
        tokens = self._symbols.tokens
        if not isinstance(key, fx.Node) or self._kinds[key] is not Kind.TOKENS or list(shape[-2:]) != [tokens, tokens]:
            return None
        nodes = [node]
        masks: dict[fx.Node, Triangle] = {}
        while len(nodes) < _MOST_NODES:
            masks.update(self._masks_of(nodes[-1]))
            # torch's own checks of a type use a value too, and compute nothing.
            users = [user for user in nodes[-1].users if user in self._kinds]
            if len(users) != 1:
                return None
            (following,) = users
            nodes.append(following)
            if following.target in _PRODUCTS and any(each.target in _SOFTMAX for each in nodes):
                break
            if not self._is_step(following):
                return None
        value = nodes[-1].args[_PRODUCTS[nodes[-1].target]]  # type: ignore[index]
        if not isinstance(value, fx.Node) or self._kinds.get(value) is not Kind.TOKENS or value in nodes:
            return None
        caches = _caches(index, key, value, self._symbols)
        if caches is None:
            raise _unknown_layout(node)
        if self._sees_later(nodes, key, value):
            raise _not_causal(node)
        return WrittenOut(nodes, *caches, masks)

    def _masks_of(self, node: fx.Node) -> Iterator[tuple[fx.Node, Triangle]]:
        for each in node.all_input_nodes:
            if self._kinds[each] is Kind.POSITION:
                yield each, self._check_mask(each, node)

    def _is_step(self, node: fx.Node) -> bool:
        if node.target in _SOFTMAX:
            return node.args[1] in {-1, len(next(shapes_of(node))) - 1}
        sizes = [each for each in node.all_input_nodes if self._kinds.get(each) is Kind.SIZE]
        return not sizes and (is_pointwise(node) or node.target in _COPIES)

    def _sees_later(self, nodes: Sequence[fx.Node], key: fx.Node, value: fx.Node) -> bool:
        """Return whether a token's result changes with later tokens."""
        half = self._values.tokens // 2
        given = {
            each: torch.randn(shape_at(next(shapes_of(each)), self._values.sizes), generator=self._generator)
            .double()
            .to(each.meta["val"].dtype)
            for each in dict.fromkeys(
                each for node in nodes for each in node.all_input_nodes if self._kinds[each] is Kind.TOKENS
            )
            if each not in nodes
        }
        changed = dict(given)
        for each in (key, value):
            axis = axis_of(each, self._symbols)
            other = given[each].clone()
            other.narrow(axis, half + 1, self._values.tokens - half - 1).add_(1.5)
            changed[each] = other
        axis = axis_of(nodes[-1], self._symbols)
        first, second = (self._compute(nodes, each).narrow(axis, 0, half + 1) for each in (given, changed))
        return not torch.allclose(first, second, rtol=1e-5, atol=1e-6)

    def _compute(self, nodes: Sequence[fx.Node], given: Mapping[fx.Node, Tensor]) -> Tensor:
        known: dict[fx.Node, Any] = dict(given)
        with torch.no_grad():
            for node in nodes:
                known[node] = call(node, lambda each: known[each] if each in known else self._values[each])
        return known[nodes[-1]]


def _not_causal(node: fx.Node) -> InputError:
    return InputError(
        f"with `stateful`, a token may only depend on earlier ones, but this attention is not causal{place_of(node)}",
        "Give it a causal mask",
    )


def _unknown_layout(node: fx.Node) -> InputError:
    shape = "x".join(map(str, node.meta["val"].shape))
    return InputError(
        f"with `stateful`, attention must have the axes (batch, heads, tokens, width), and this has {shape}"
        f"{place_of(node)}",
        "Move its axes",
    )
