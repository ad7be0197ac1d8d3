"""The steps of a fused node: each computes what one or more nodes of a graph compute."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import IntEnum

import onnx_ir as ir


class Activation(IntEnum):
    """What a step applies to each number; the numbers are those of the program's encoding."""

    NONE = 0
    GELU = 1  # with erf
    RELU = 2
    SILU = 3


@dataclass(frozen=True)
class Epilogue:
    """What a step does to what it computed: y = activation(v) * multiplied * factor + added.

    Attributes:
        activation: of v, with the bias added.
        factor: float32.
        multiplied: a value of y's shape; only an elementwise step has one.
        added: a value of y's shape.
    """

    activation: Activation = Activation.NONE
    factor: float = 1.0
    multiplied: ir.Value | None = None
    added: ir.Value | None = None

    def then(self, other: Epilogue) -> Epilogue | None:
        """Return both, one after the other; None if that is not of this form."""
        adds_only = (other.activation, other.factor, other.multiplied) == (Activation.NONE, 1.0, None)
        if self.added is not None or (other.multiplied is not None and self.multiplied is not None):
            return None
        scales = self.factor != 1.0 or self.multiplied is not None
        if other.activation is not Activation.NONE and (scales or self.activation is not Activation.NONE):
            return None
        if adds_only:
            return replace(self, added=other.added)
        activation = other.activation if self.activation is Activation.NONE else self.activation
        if self.factor != 1.0 and other.factor != 1.0:  # what is too large or small between them would be lost
            return None
        factor = self.factor * other.factor
        multiplied = other.multiplied if self.multiplied is None else self.multiplied
        return Epilogue(activation, factor, multiplied, other.added)


@dataclass(frozen=True, eq=False)
class Step:
    """A step.

    Attributes:
        nodes: the graph's nodes that it stands for, the last one making y. Nothing else uses what the others make.
        x: float32, (B, N, inner).
        y: float32, (B, N, width).
        inner: x's last size.
        width: y's last size.
    """

    nodes: tuple[ir.Node, ...]
    x: ir.Value
    y: ir.Value
    inner: int
    width: int

    @property
    def reads(self) -> Iterator[ir.Value]:
        """The activations that it reads, (B, N, ...) with the same B and N as y."""
        yield self.x

    @property
    def outside(self) -> Iterator[ir.Value]:
        """The other values that it reads and that nodes may compute."""
        yield from ()

    @property
    def makes(self) -> Iterator[ir.Value]:
        """The values that it makes."""
        yield self.y


@dataclass(frozen=True, eq=False)
class Computed(Step):
    """A step that ends with an epilogue."""

    epilogue: Epilogue = field(default_factory=Epilogue, kw_only=True)

    @property
    def reads(self) -> Iterator[ir.Value]:
        """The activations that it reads."""
        yield self.x
        yield from (each for each in (self.epilogue.multiplied, self.epilogue.added) if each is not None)


@dataclass(frozen=True, eq=False)
class Product(Computed):
    """A MatMulNBits that rounds its activations to 8 bits.

    Attributes:
        packed: uint8, as MatMulNBits has it.
        scales: float32, width * blocks.
        block: how many inputs share a scale.
        bits: of a weight, 4 or 8.
        bias: a constant of `width` numbers.
    """

    packed: ir.Value
    scales: ir.Value
    block: int
    bits: int
    bias: ir.Value | None = None


@dataclass(frozen=True, eq=False)
class GroupedProduct(Computed):
    """A convolution of kernel size 1 between two transpositions: a product for each group of channels.

    Attributes:
        weight: float32, (width, inner / groups, 1).
        groups: how many groups.
        bias: a constant of `width` numbers.
    """

    weight: ir.Value
    groups: int
    bias: ir.Value | None = None


@dataclass(frozen=True, eq=False)
class Norm(Step):
    """A norm of the last axis: x / sqrt(mean(x^2) + epsilon) * gain, or the same of x - mean(x), plus a bias.

    Attributes:
        epsilon: float32.
        centered: whether the mean is subtracted.
        gain: a constant of `width` numbers.
        bias: another; only a centered norm has one.
    """

    epsilon: float
    centered: bool = False
    gain: ir.Value | None = None
    bias: ir.Value | None = None


@dataclass(frozen=True, eq=False)
class Elementwise(Computed):
    """A step that is nothing but an epilogue."""


@dataclass(frozen=True, eq=False)
class Aggregate(Step):
    """A causal aggregation of ours, gated or not; nodes[0] has the attributes.

    Attributes:
        gate: float32, (B, N, S); None if it is not gated.
        others: its other inputs in the contract's order, None for those that are absent or placeholders.
        states: the values of the present state and length; empty if it is not stateful.
        layer: which of `layers` layers it is, if its past and present states are those of all layers.
        layers: 0: they are its own.
    """

    gate: ir.Value | None
    others: tuple[ir.Value | None, ...]
    states: tuple[ir.Value, ...]
    layer: int = 0
    layers: int = 0

    @property
    def reads(self) -> Iterator[ir.Value]:
        """The activations that it reads."""
        yield self.x
        if self.gate is not None:
            yield self.gate

    @property
    def outside(self) -> Iterator[ir.Value]:
        """Its other inputs."""
        yield from (each for each in self.others if each is not None)

    @property
    def makes(self) -> Iterator[ir.Value]:
        """The values that it makes."""
        yield self.y
        yield from self.states


def merged(first: Step, then: Elementwise) -> Computed | None:
    """Return one step that does both, if the first ends with an epilogue that the other's fits into; else None.

    Args:
        first: a step whose y only `then` uses, once.
        then: the elementwise step.
    """
    if not isinstance(first, Computed):
        return None
    after = then.epilogue
    if then.x is not first.y:
        # Sums and products are the same with their sides exchanged, if nothing else is done to one of them.
        if after.activation is not Activation.NONE:
            return None
        if after.multiplied is first.y:
            after = replace(after, multiplied=then.x)
        elif after.multiplied is None and after.factor == 1.0:
            after = replace(after, added=then.x)
        else:
            return None
    epilogue = first.epilogue.then(after)
    if epilogue is None or (epilogue.multiplied is not None and not isinstance(first, Elementwise)):
        return None
    return replace(first, nodes=(*first.nodes, *then.nodes), y=then.y, epilogue=epilogue)
