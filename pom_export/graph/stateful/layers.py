"""Layers of the user's own that keep a state: the protocol, and how a trace records what they keep."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

import torch
from torch import Tensor, fx, nn

from pom_export.errors import InputError, kind_of
from pom_export.graph.exported_model import PAST_LAYER
from pom_export.graph.stateful.run import Run, StatePart


@runtime_checkable
class StatefulLayer(Protocol):
    """What a layer needs for `export(..., stateful=True)`, besides its usual `forward` over all tokens.

    Any nn.Module with these two methods is taken as such a layer; it need not inherit from this class. Its `forward`
    remains what training uses and what the file is compared with: for a sequence in any number of calls, `stream` must
    give what `forward` gives for all of it at once.
    """

    def state_shapes(self) -> Mapping[str, Sequence[int]]:
        """Return the shape of each part of the state for one row of the batch, by name. States start as zeros."""

    def stream(
        self, x: Tensor, state: Mapping[str, Tensor], *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the layer's output for a call's tokens, and the state including them.

        Args:
            x: the first argument of `forward`, (B, N, ...): the tokens of this call.
            state: the state after the tokens before them: each part is (B, *shape), of the type of x.
            *args: further arguments of `forward`.
            **kwargs: the same by name.
        """


@torch.library.custom_op("pom::layer_past", mutates_args=())
def _past(like: Tensor, name: str, shape: Sequence[int]) -> Tensor:  # noqa: ARG001 (read from the trace)
    """Return a part of a layer's state before the first token; `name` identifies it in a trace."""
    return like.new_zeros([like.shape[0], *shape])


@_past.register_fake
def _(like: Tensor, name: str, shape: Sequence[int]) -> Tensor:  # noqa: ARG001 (the operator's signature)
    return like.new_empty([like.shape[0], *shape])


@torch.library.custom_op("pom::layer_present", mutates_args=())
def _present(y: Tensor, state: Tensor, name: str) -> Tensor:  # noqa: ARG001
    """Return a copy of y; in a trace, this says what a part of a layer's state becomes."""
    return y.clone()


@_present.register_fake
def _(y: Tensor, state: Tensor, name: str) -> Tensor:  # noqa: ARG001
    return torch.empty_like(y)


PAST: Final = torch.ops.pom.layer_past.default
PRESENT: Final = torch.ops.pom.layer_present.default


def is_stateful_layer(module: nn.Module) -> bool:
    """Return whether a module follows the protocol."""
    return all(inspect.ismethod(getattr(module, name, None)) for name in ("state_shapes", "stream"))


def record_layers(module: nn.Module) -> list[str]:
    """Make a module's stateful layers run their `stream`, so that a trace shows what they keep; return their names.

    Args:
        module: a copy that may be changed.
    """
    names = []
    for name, part in module.named_modules():
        if is_stateful_layer(part):
            shapes = _shapes(part, name)
            part.forward = functools.partial(_forward, part, name, shapes)
            names.append(name)
    return names


def _shapes(layer: Any, name: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a layer's state.

    Raises:
        InputError: it does not describe them as the protocol says.
    """
    where = f"state_shapes() of {_called(layer, name)}"
    given = layer.state_shapes()
    if not isinstance(given, Mapping) or not given:
        what = kind_of(given) if not isinstance(given, Mapping) else "an empty mapping"
        raise InputError(f"{where} returns {what}", 'Return a mapping, such as {"last": (1, 64)}')
    shapes: dict[str, tuple[int, ...]] = {}
    for key, shape in given.items():
        shapes[str(key)] = tuple(shape) if isinstance(shape, Sequence) else ()
        if not isinstance(shape, Sequence):
            raise InputError(f"{where} says {key!r}: {shape!r}", f"Give a tuple of sizes, such as ({shape!r},)")
    for key, shape in shapes.items():
        if not key.isidentifier() or not all(isinstance(size, int) and size > 0 for size in shape):
            raise InputError(
                f"{where} says {key!r}: {shape}", "Give an identifier and the sizes for one row, without the batch"
            )
    return shapes


def _forward(
    layer: Any, name: str, shapes: Mapping[str, Sequence[int]], x: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    state = {key: _past(x, f"{name}.{key}", list(shape)) for key, shape in shapes.items()}
    result = layer.stream(x, state, *args, **kwargs)
    where = f"stream() of {_called(layer, name)}"
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], Mapping):
        raise InputError(f"{where} returns {kind_of(result)}", "Return the output and the next state")
    y, present = result
    if set(present) != set(shapes):
        raise InputError(
            f"{where} returns a state of {', '.join(sorted(map(str, present)))}, but state_shapes() says "
            f"{', '.join(sorted(shapes))}",
            "Return the same parts",
        )
    for key, shape in shapes.items():
        if tuple(present[key].shape[1:]) != tuple(shape) or present[key].dtype != state[key].dtype:
            raise InputError(
                f"{where} returns a state {key!r} of {present[key].dtype} {tuple(present[key].shape)}, but "
                f"state_shapes() says (batch, {', '.join(map(str, shape))}) of {state[key].dtype}",
                "Return the shape and the type that it was given",
            )
        y = _present(y, present[key], f"{name}.{key}")
    return y


def _called(layer: Any, name: str) -> str:
    return f"{name} ({type(layer).__name__})" if name else type(layer).__name__


@dataclass(frozen=True)
class LayerPast:
    """A part of a layer's state as the layer reads it."""

    node: fx.Node

    @property
    def name(self) -> str:
        """The name of the part in the file."""
        return f"{PAST_LAYER}.{self.node.args[1]}"

    def parts(self) -> Sequence[StatePart]:
        """Return the part."""
        shape = tuple(int(size) for size in self.node.meta["val"].shape[1:])
        return [StatePart(self.name, shape, self.node.meta["val"].dtype)]

    def run(self, run: Run) -> Tensor:
        """Return the state after the tokens of earlier calls."""
        return run.past[self.name]


@dataclass(frozen=True)
class LayerPresent:
    """A part of a layer's state as the layer leaves it."""

    node: fx.Node

    def parts(self) -> Sequence[StatePart]:
        """Return nothing: `LayerPast` names the part."""
        return []

    def run(self, run: Run) -> Tensor:
        """Keep the state, and return the layer's output."""
        y, state, name = self.node.args
        assert isinstance(y, fx.Node)
        assert isinstance(state, fx.Node)
        run.present[f"{PAST_LAYER}.{name}"] = run.values[state]
        return run.values[y]
