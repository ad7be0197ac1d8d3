"""Layers of the user's own that keep a state: the protocol, and how a trace records what they keep."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, fx, nn

from pom_export.errors import InputError, kind_of
from pom_export.graph.exported_model import PAST_LAYER
from pom_export.graph.refusals import refusal
from pom_export.graph.stateful.run import Run, StatePart
from pom_export.values import is_whole


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
def _past(like: Tensor, name: str, call: int, shape: Sequence[int]) -> Tensor:  # noqa: ARG001 (read from the trace)
    """Return a part of a layer's state before the first token; in a trace, name and number of the call identify it."""
    return like.new_zeros([like.shape[0], *shape])


@_past.register_fake
def _(like: Tensor, name: str, call: int, shape: Sequence[int]) -> Tensor:  # noqa: ARG001 (the operator's signature)
    return like.new_empty([like.shape[0], *shape])


@torch.library.custom_op("pom::layer_present", mutates_args=())
def _present(y: Tensor, state: Tensor, name: str, call: int) -> Tensor:  # noqa: ARG001
    """Return a copy of y; in a trace, this says what a part of a layer's state becomes."""
    return y.clone()


@_present.register_fake
def _(y: Tensor, state: Tensor, name: str, call: int) -> Tensor:  # noqa: ARG001
    return torch.empty_like(y)


_A_MAPPING: Final = 'Return a mapping, such as {"last": (1, 64)}'

PAST: Final = torch.ops.pom.layer_past.default
PRESENT: Final = torch.ops.pom.layer_present.default


def is_stateful_layer(module: nn.Module) -> bool:
    """Return whether a module follows the protocol."""
    return all(inspect.ismethod(getattr(module, name, None)) for name in ("state_shapes", "stream"))


@contextmanager
def watch_layers(module: nn.Module) -> Iterator[list[str]]:
    """Note the names of the stateful layers that are called in the block, and try each one's `stream` on what it gets.

    A trace would show only that something in it fails.
    """
    called: list[str] = []

    def note(layer: nn.Module, args: Any, kwargs: Any, *, name: str) -> None:
        shapes = _shapes(layer, name)
        x, *others = args or [next(iter(kwargs.values()))]
        named = kwargs if args else dict(list(kwargs.items())[1:])
        try:
            state = {key: x.new_zeros([x.shape[0], *shape]) for key, shape in shapes.items()}
            result = cast("StatefulLayer", layer).stream(x, state, *others, **named)
        except (Exception, SystemExit) as error:
            said = ", ".join(f"{key} {_per_row(shape)}" for key, shape in shapes.items())
            what = f"stream() of {_called(layer, name)} fails on a state of {said}, as state_shapes() says"
            raise refusal(what, error, layer, "Let it take that state, (batch, ...) each") from error
        _check_result(layer, name, result, state)
        if name not in called:
            called.append(name)

    with ExitStack() as stack:
        for name, part in module.named_modules():
            if is_stateful_layer(part):
                hook = functools.partial(note, name=name)
                stack.callback(part.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield called


def record_layers(module: nn.Module, names: Sequence[str]) -> None:
    """Make stateful layers run their `stream`, so that a trace shows what they keep.

    Args:
        module: a copy that may be changed.
        names: the names of the layers.
    """
    for name in names:
        layer = module.get_submodule(name)
        layer.forward = functools.partial(_forward, layer, name, _shapes(layer, name), itertools.count())


def _shapes(layer: Any, name: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a layer's state.

    Raises:
        InputError: it does not describe them as the protocol says.
    """
    where = f"state_shapes() of {_called(layer, name)}"
    try:
        given = layer.state_shapes()
    except (Exception, SystemExit) as error:
        raise refusal(f"{where} fails", error, layer, _A_MAPPING) from error
    if not isinstance(given, Mapping) or not given:
        what = kind_of(given) if not isinstance(given, Mapping) else "an empty mapping"
        raise InputError(f"{where} returns {what}", _A_MAPPING)
    shapes: dict[str, tuple[int, ...]] = {}
    for key, shape in given.items():
        if not isinstance(key, str) or not key.isidentifier():
            raise InputError(f"{where} names a part {key!r}", "Name it as a variable could be, such as 'last'")
        sizes = isinstance(shape, Sequence) and not isinstance(shape, str)
        if not sizes or not all(is_whole(size) and size > 0 for size in shape):
            raise InputError(
                f"{where} says {key!r}: {shape!r}", "Give the sizes for one row, without the batch, such as (64,)"
            )
        shapes[key] = tuple(map(int, shape))
    return shapes


def _forward(
    layer: Any,
    name: str,
    shapes: Mapping[str, Sequence[int]],
    calls: Iterator[int],
    x: Tensor,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    call = next(calls)
    state = {key: _past(x, f"{name}.{key}", call, list(shape)) for key, shape in shapes.items()}
    result = layer.stream(x, state, *args, **kwargs)
    y, present = _check_result(layer, name, result, state)
    for key in shapes:
        y = _present(y, present[key], f"{name}.{key}", call)
    return y


def _check_result(
    layer: Any, name: str, result: Any, state: Mapping[str, Tensor]
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Return what `stream` returned.

    Raises:
        InputError: it is no output with the next state.
    """
    where = f"stream() of {_called(layer, name)}"
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], Mapping):
        raise InputError(f"{where} returns {kind_of(result)}", "Return the output and the next state")
    y, present = result
    if not isinstance(y, Tensor):
        raise InputError(f"{where} returns {kind_of(y)} as its output", "Return one tensor")
    if set(present) != set(state):
        raise InputError(
            f"{where} returns a state of {', '.join(sorted(map(str, present)))}, but state_shapes() says "
            f"{', '.join(sorted(state))}",
            "Return the same parts",
        )
    for key, past in state.items():
        new = present[key]
        what = f"{new.dtype} {tuple(new.shape)}" if isinstance(new, Tensor) else kind_of(new)
        if not isinstance(new, Tensor) or new.shape[1:] != past.shape[1:] or new.dtype != past.dtype:
            raise InputError(
                f"{where} returns {what} as the state {key!r}, but state_shapes() says {_per_row(past.shape[1:])} of "
                f"{past.dtype}",
                "Return the shape and the type that it was given",
            )
    return y, present


def _per_row(shape: Sequence[int]) -> str:
    return f"({', '.join(map(str, ['batch', *shape]))})"


def _called(layer: Any, name: str) -> str:
    return f"{name} ({type(layer).__name__})" if name else type(layer).__name__


def part_name(node: fx.Node) -> str:
    """Return the name in the file of the part of a state that a node of a layer reads or leaves."""
    name, call = node.args[1:3] if node.target is PAST else node.args[2:4]
    return f"{PAST_LAYER}.{name}" + (f".{call}" if call else "")


@dataclass(frozen=True)
class LayerPast:
    """A part of a layer's state as the layer reads it."""

    node: fx.Node

    def parts(self) -> Sequence[StatePart]:
        """Return the part."""
        shape = tuple(int(size) for size in self.node.meta["val"].shape[1:])
        return [StatePart(part_name(self.node), shape, self.node.meta["val"].dtype)]

    def run(self, run: Run) -> Tensor:
        """Return the state after the tokens of earlier calls."""
        return run.past[part_name(self.node)]


@dataclass(frozen=True)
class LayerPresent:
    """A part of a layer's state as the layer leaves it."""

    node: fx.Node

    def parts(self) -> Sequence[StatePart]:
        """Return nothing: `LayerPast` names the part."""
        return []

    def run(self, run: Run) -> Tensor:
        """Keep the state, and return the layer's output."""
        y, state = self.node.args[:2]
        assert isinstance(y, fx.Node)
        assert isinstance(state, fx.Node)
        run.present[part_name(self.node)] = run.values[state]
        return run.values[y]
