"""Emulate half precision: run a module in float64 with the roundings of a half-precision graph.

All it knows about an exported file is which of its weights are float32, so it cannot share a fault of the file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from pom_export.contract import DOMAIN
from pom_export.graph.control_flow import without_compiler
from pom_export.graph.copying import copy_module
from pom_export.graph.exported_model import PAST_STATE
from pom_export.graph.module_names import is_inside
from pom_export.graph.reference import PICKING, Widen, with_wide_buffers

_HALVES: Final = {"float16": torch.float16, "bfloat16": torch.bfloat16}
# The operators that a half-precision graph computes in float32, corresponding to `graph.precision.rules`: their results
# exceed a half type's range, or lose their meaning in it.
_SINGLE: Final = frozenset((
    "_log_softmax", "_softmax", "cos", "cumsum", "exp", "log", "mean", "pow", "prod", "reciprocal", "rsqrt", "sin",
    "softplus", "sqrt", "sum", "var", "var_mean",
))  # fmt: skip
# Operators that compute in float32 as soon as one operand is float32; others do if all are.
_PROMOTING: Final = frozenset(("div", "mul", "sub"))
# Products, which a graph computes in half precision whatever the types of their operands; other operators follow their
# operands' types.
_PRODUCTS: Final = frozenset(("addmm", "baddbmm", "bmm", "convolution", "dot", "embedding", "linear", "mm", "mv"))
# A number among these operators' arguments is a constant in the graph, with the type of the tensor that it is combined
# with.
_WITH_NUMBERS: Final = frozenset(("add", "div", "mul", "sub"))


@dataclass(frozen=True)
class Rounding:
    """What a half-precision graph rounds of a module.

    Attributes:
        precision: "float16" or "bfloat16".
        exact: names of the parameters and buffers that are not rounded; inputs of our op never are.
        single: names of modules in which nothing is rounded, nor in what is inside them.
        sizes_folded: whether the graph has fixed sizes, and stores what is computed from sizes alone, such as the
            angles of positions, as weights, which are rounded when combined with an activation.
    """

    precision: str
    exact: Collection[str] = ()
    single: Collection[str] = ()
    sizes_folded: bool = False


class RoundedModule(nn.Module):
    """Computes a module in float64, with weights and optionally values rounded to a half type.

    Args:
        module: the module; it is not changed.
        rounding: what is rounded.
        values: whether to round results too, as a device does that computes in half precision and sums in float32.
            Numbers that are computed from integers only, such as positions, are not rounded.
    """

    def __init__(self, module: nn.Module, rounding: Rounding, *, values: bool) -> None:
        super().__init__()
        self.module = copy_module(module)
        self.rounding = rounding
        self.values = values

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module on inputs in float64."""
        # Layers that require inputs of their weights' type, such as convolutions with a bias, are widened as a whole.
        try:
            return self._run(with_wide_buffers(copy_module(self.module)), args, kwargs)
        except (RuntimeError, ValueError):
            return self._run(copy_module(self.module, torch.float64), args, kwargs)

    def _run(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        exact = {parameter.data_ptr() for name, parameter in module.named_parameters() if name in self.rounding.exact}
        rounding = _Round(_HALVES[self.rounding.precision], exact, self.values, self.rounding.sizes_folded)
        buffers = (buffer for name, buffer in module.named_buffers() if name not in self.rounding.exact)
        remember(rounding.constants, buffers)
        # A state's inputs and outputs are float32.
        inputs = {name: value for name, value in kwargs.items() if name != PAST_STATE}
        remember(rounding.activations, tree_leaves((args, inputs)))
        rounding.remember_given(tree_leaves((args, inputs)))
        for name, part in module.named_modules(remove_duplicate=False):
            if is_inside(name, self.rounding.single) and not isinstance(part, torch.jit.ScriptModule):
                rounding.pause_in(part)
        # Attention is computed step by step, since a graph rounds each step.
        with sdpa_kernel(SDPBackend.MATH), without_compiler(), rounding:
            return module(*args, **kwargs)


def remember(known: WeakTensorKeyDictionary, values: Iterable[Any]) -> None:
    """Add the floating-point tensors among `values` to `known`."""
    for value in values:
        if isinstance(value, Tensor) and value.is_floating_point():
            known[value] = True


def _is_of_integers(name: str, args: Any, kwargs: Any) -> bool:
    """Return whether an operator creates or converts integers, not booleans, which are exact in a half type."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    counts = [tensor for tensor in tensors if not tensor.is_floating_point() and tensor.dtype != torch.bool]
    return name == "arange" or (bool(counts) and len(counts) == len(tensors))


class _Round(Widen):
    """Computes every operator in float64 with rounded weights, and rounds results that depend on activations.

    Attributes:
        activations: tensors that depend on inputs or weights.
        single: those of them that are float32 in a graph.
        constants: tensors that depend on buffers only: a graph stores them as weights, rounded when combined with an
            activation.
        numbers: tensors computed from integers, such as positions and their angles, which are float32 in a graph.
        given: integer and boolean inputs, and tensors of such types that depend on inputs.
    """

    def __init__(self, half: torch.dtype, exact: Collection[int], values: bool, sizes_folded: bool) -> None:
        super().__init__()
        self.half = half
        self.exact = exact
        self.values = values
        self.sizes_folded = sizes_folded
        self.activations: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self.single: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self.constants: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self.numbers: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self.given: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self.paused = 0

    def pause_in(self, module: nn.Module) -> None:
        """Round nothing during the calls of a module."""

        def enter(*_: Any) -> None:
            self.paused += 1

        def leave(*_: Any) -> None:
            self.paused -= 1

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave, always_call=True)

    def remember_given(self, values: Iterable[Any]) -> None:
        """Add the tensors among `values` that are not floating-point."""
        for value in values:
            if isinstance(value, Tensor) and not value.is_floating_point():
                self.given[value] = True

    def operate(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Call an operator with the operands that it has in a half-precision graph, and round its result."""
        if self.paused:
            return self._exactly(func, args, kwargs)
        name = func._schema.name.partition("::")[2]
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        active = [leaf for leaf in given if isinstance(leaf, nn.Parameter) or leaf in self.activations]
        single = bool(active) and self._is_single(name, given)
        if func.namespace == DOMAIN:
            return self._aggregate(super().operate(func, args, kwargs))
        if not func._schema.is_mutable and func not in PICKING:
            number = self._rounded_number if active and not single and name in _WITH_NUMBERS else None
            args, kwargs = tree_map(
                lambda value: self._operand(value, bool(active), single, number), (args, dict(kwargs))
            )
        result = super().operate(func, args, kwargs)
        if func in PICKING and isinstance(given[0], nn.Parameter) and not self._is_exact(given[0]):
            result = self._rounded(result)
        if active:
            result = result if single or func._schema.is_mutable else tree_map(self._value, result)
            remember(self.activations, tree_leaves(result))
            if single:
                remember(self.single, tree_leaves(result))
        elif given and all(leaf in self.constants for leaf in given):
            remember(self.constants, tree_leaves(result))
        elif _is_of_integers(name, args, kwargs) or any(leaf in self.numbers for leaf in given):
            is_folded = self.sizes_folded and not self._is_of_inputs(args, kwargs)
            remember(self.constants if is_folded else self.numbers, tree_leaves(result))
        if active or self._is_of_inputs(args, kwargs):
            self.remember_given(tree_leaves(result))
        return result

    def _exactly(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Call an operator of a module that a graph computes in float32."""
        result = super().operate(func, args, kwargs)
        for known in (self.activations, self.single):
            remember(known, tree_leaves(result))
        self.remember_given(tree_leaves(result))
        return result

    def _is_of_inputs(self, args: Any, kwargs: Any) -> bool:
        """Return whether a result that is not an activation depends on inputs, and not just on their sizes."""
        leaves = (leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        return any(leaf in self.given or leaf in self.numbers for leaf in leaves)

    def _is_single(self, name: str, given: Sequence[Tensor]) -> bool:
        """Return whether a graph computes an operator with these operands in float32."""
        if name in _SINGLE or name in _PRODUCTS:
            return name in _SINGLE
        wide = [leaf in self.single or leaf in self.numbers for leaf in given if self._has_type(leaf)]
        return any(wide) if name in _PROMOTING else bool(wide) and all(wide)

    def _has_type(self, value: Tensor) -> bool:
        return value in self.activations or value in self.numbers

    def _aggregate(self, result: Any) -> Any:
        """Process our op's result: an activation and, if stateful, a state, which is not rounded."""
        if not isinstance(result, tuple):
            result = self._value(result)
            remember(self.activations, [result])
            return result
        y, *state = result
        return (self._aggregate(y), *state)

    def _operand(self, value: Any, active: bool, single: bool, number: Any) -> Any:
        """Return an operand as it is in a half-precision graph."""
        if isinstance(value, float) and number is not None:
            return number(value)
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        if isinstance(value, nn.Parameter):
            return value if self._is_exact(value) else self._rounded(value.detach().double())
        if active and not single and value in self.constants:
            return self._rounded(value)
        wide = value in self.single or value in self.numbers
        return self._value(value) if active and not single and wide else value

    def _is_exact(self, parameter: Tensor) -> bool:
        return parameter.data_ptr() in self.exact

    def _value(self, value: Any) -> Any:
        is_value = self.values and isinstance(value, Tensor) and value.dtype == torch.float64
        return self._rounded(value) if is_value else value

    def _rounded_number(self, number: float) -> float:
        return float(self._rounded(torch.tensor(number, dtype=torch.float64)))

    def _rounded(self, tensor: Tensor) -> Tensor:
        """Round to the half type's precision; values beyond its range, which a graph keeps in float32, stay finite."""
        rounded = tensor.to(self.half).double()
        finite = torch.isfinite(rounded)
        return rounded if bool(finite.all()) else torch.where(finite, rounded, tensor)
