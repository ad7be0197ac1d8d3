"""The reference for a file with quantized weights: the module that it stands for, in float64, with those weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pom_export.graph.control_flow import without_compiler
from pom_export.graph.copying import copy_module
from pom_export.graph.effective_weights import fold_weights
from pom_export.graph.reference import PICKING, Widen, with_wide_buffers
from pom_export.torch_modes import default_dtype

# Lookups of rows. A file quantizes products only: a table that is also a product's weight keeps its own numbers there.
_LOOKUPS: Final = (*PICKING, torch.ops.aten.index.Tensor)


class QuantizedModule(nn.Module):
    """Computes a module in float64, with other values for some of its parameters in everything but lookups of rows.

    Args:
        module: the module; it is not changed.
        weights: the values by parameter, in the parameters' shapes; see `named_weights`.
    """

    def __init__(self, module: nn.Module, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.module = _folded(module)
        self.weights = dict(weights)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module on inputs in float64."""
        module = with_wide_buffers(copy_module(self.module))
        known = dict(module.named_parameters(remove_duplicate=False))
        mode = _Replace({known[name].data_ptr(): value for name, value in self.weights.items()})
        with without_compiler(), default_dtype(torch.float64):
            try:
                with mode:
                    return module(*args, **kwargs)
            except (RuntimeError, ValueError):  # layers that require inputs of their weights' type, such as nn.LSTM
                wide = copy_module(self.module, torch.float64)
                given = dict(wide.named_parameters(remove_duplicate=False))
                for name, value in self.weights.items():
                    given[name].data.copy_(value)
                return wide(*args, **kwargs)


def named_weights(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return a module's parameters by name, as a file holds them: what is computed of others under its own name."""
    return dict(_folded(module).named_parameters(remove_duplicate=False))


def _folded(module: nn.Module) -> nn.Module:
    copied = copy_module(module)
    fold_weights(copied)
    return copied


class _Replace(Widen):
    """Computes every operator in float64, with other values for some parameters.

    Args:
        values: the values, by the address of the parameter's own.
    """

    def __init__(self, values: Mapping[int, Tensor]) -> None:
        super().__init__()
        self.values = values

    def operate(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Call an operator with the replaced parameters."""
        if func not in _LOOKUPS and not func._schema.is_mutable:
            args, kwargs = tree_map(self._replaced, (args, dict(kwargs)))
        return super().operate(func, args, kwargs)

    def _replaced(self, value: Any) -> Any:
        if isinstance(value, nn.Parameter):
            return self.values.get(value.data_ptr(), value)
        return value
