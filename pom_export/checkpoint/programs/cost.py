"""Estimate what a program takes to run, from one run on tensors without values."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from pom_export.checkpoint.programs.checks import LARGEST, MalformedError
from pom_export.errors import reason_of

# A base amount, in addition to what the file's size allows.
_MOST_BYTES: Final = 384 << 20
_MOST_OPERATIONS: Final = 500_000_000_000
# Bytes of activations, and operations, per byte of weights and inputs: a convolution uses a weight at every pixel.
_BYTES_EACH: Final = 64
_OPERATIONS_EACH: Final = 10_000
_MOST_PIECES: Final = 4096
_LARGEST_EXPONENT: Final = 64


class CostError(Exception):
    """The limit that was exceeded."""


def check_cost(module: fx.GraphModule, inputs: Sequence[Any], file_bytes: int) -> None:
    """Check the memory and computation of one run.

    Args:
        module: a flat graph that only calls functions on the list.
        inputs: values for every placeholder, in order.
        file_bytes: size of the program's file.

    Raises:
        CostError: it would take far more memory or time than a program of this size needs.
        MalformedError: it fails on the inputs.
    """
    fake = FakeTensorMode()
    with torch.no_grad(), fake, FlopCounterMode(display=False) as counter:
        run = _Run(_MOST_BYTES + _BYTES_EACH * file_bytes, counter, _MOST_OPERATIONS + _OPERATIONS_EACH * file_bytes)
        run.graph(module, [fake.from_tensor(value) if isinstance(value, Tensor) else value for value in inputs])


class _Run:
    """A run on tensors without values.

    Args:
        most_bytes: the most memory for all values at a time.
        counter: counts the multiplications and additions in matrix products.
        most_operations: the most of these.
    """

    def __init__(self, most_bytes: int, counter: FlopCounterMode, most_operations: int) -> None:
        self.most_bytes = most_bytes
        self.counter = counter
        self.most_operations = most_operations
        self._users: Counter[int] = Counter()
        self._bytes = 0
        self._uncounted = 0

    def graph(self, module: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        """Return the outputs of a graph, dropping values after their last use."""
        values: dict[fx.Node, Any] = {}
        last_uses = _last_uses(module.graph)
        given = iter(inputs)
        for node in module.graph.nodes:
            if node.op == "placeholder":
                values[node] = next(given)
            elif node.op == "get_attr":
                values[node] = getattr(module, str(node.target))
            else:
                arguments, keywords = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
                if node.op == "output":
                    return arguments[0]
                values[node] = self._call(node, arguments, keywords)
            self._keep(node, values[node])
            for used in last_uses.get(node, ()):
                self._forget(values.pop(used))
        raise MalformedError("its graph has no output")

    def _call(self, node: fx.Node, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
        target = node.target
        try:
            _check_before(getattr(target, "__name__", ""), arguments, keywords)
            if isinstance(target, torch._ops.HigherOrderOperator):
                return self._block(str(target), arguments)
            assert callable(target)
            result = target(*arguments, **keywords)
            self._uncounted += _uncounted(str(target), arguments, result)
        except (CostError, MalformedError):
            raise
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise CostError(f"the sizes of {node.name} depend on values") from error
        except Exception as error:  # raised by operators for unsuitable arguments
            raise MalformedError(f"{node.name} fails on its example inputs: {reason_of(error)}") from error
        return result

    def _block(self, name: str, arguments: Sequence[Any]) -> Any:
        place = next(i for i, argument in enumerate(arguments) if isinstance(argument, fx.GraphModule))
        mode: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if name == "wrap_with_autocast":
            device, dtype, enabled, cached = arguments[:place]
            mode = torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=cached)
        with mode:
            return self.graph(arguments[place], arguments[place + 1 :])

    def _keep(self, node: fx.Node, value: Any) -> None:
        for identity, size in _memory(value):
            self._users[identity] += 1
            self._bytes += size if self._users[identity] == 1 else 0
        if self._bytes > self.most_bytes:
            raise CostError(f"at {node.name} it holds {self._bytes:,} bytes, at most {self.most_bytes:,}")
        if (operations := self.counter.get_total_flops() + self._uncounted) > self.most_operations:
            raise CostError(f"up to {node.name} it computes {operations:,} products, at most {self.most_operations:,}")

    def _forget(self, value: Any) -> None:
        for identity, size in _memory(value):
            self._users[identity] -= 1
            self._bytes -= 0 if self._users[identity] else size


def _last_uses(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """Return, for each node, the values that are not used after it."""
    last: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        last[node] = node
        for used in node.all_input_nodes:
            last[used] = node
    uses: dict[fx.Node, list[fx.Node]] = {}
    for used, node in last.items():
        uses.setdefault(node, []).append(used)
    return uses


def _memory(value: Any) -> Iterator[tuple[int, int]]:
    """Yield an identity and the size of each block of memory that a value keeps alive; check numbers too."""
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            storage = leaf.untyped_storage()
            yield storage._cdata, storage.nbytes()
            # An expanded tensor counts in full, because most operators materialise it.
            if (repeated := leaf.numel() * leaf.element_size() - storage.nbytes()) > 0:
                yield id(leaf), repeated
        elif isinstance(leaf, int) and not -LARGEST <= leaf <= LARGEST:
            raise CostError("it computes a size beyond 64 bits")


def _check_before(name: str, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> None:
    """Refuse calls that would not end, would create too many values even without memory, or would crash the process."""
    if keywords.get("rounding_mode") == "trunc" and not any(_is_float(value) for value in arguments):
        # Dividing the smallest integer by -1 is a processor exception.
        raise CostError(f"{name} of whole numbers with rounding_mode='trunc' is not supported")
    kind = name.partition(".")[0]
    pieces = 0
    if kind == "pow" and not isinstance(arguments[0], Tensor) and not isinstance(arguments[1], Tensor):
        pieces = _MOST_PIECES + 1 if abs(arguments[1]) > _LARGEST_EXPONENT else 0
    elif kind in {"unbind", "unbind_copy"}:
        pieces = max(arguments[0].shape, default=0) if len(arguments) > 1 else len(arguments[0])
    elif kind in {"split", "split_copy"} and isinstance(arguments[1], int):
        pieces = max(arguments[0].shape, default=0) // max(1, arguments[1])
    elif kind == "chunk":
        pieces = arguments[1]
    if pieces > _MOST_PIECES:
        raise CostError(f"{name} turns one value into more than {_MOST_PIECES:,}")


def _is_float(value: Any) -> bool:
    return value.is_floating_point() if isinstance(value, Tensor) else isinstance(value, float)


def _uncounted(name: str, arguments: Sequence[Any], result: Any) -> int:
    """Count the products in attention and pooling, which torch's counter omits."""
    if "scaled_dot_product" in name:
        query, key, value = arguments[:3]
        return int(query.numel() * key.shape[-2] + query.numel() // query.shape[-1] * key.shape[-2] * value.shape[-1])
    if "pool" in name and "adaptive" not in name:
        output = result[0] if isinstance(result, tuple) else result
        return int(output.numel() * math.prod(arguments[1]))
    return 0
