"""Reject models whose call changes their weights: copies share them with the caller, and a file cannot change them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pom_export.errors import InputError
from pom_export.graph.control_flow import OperatorMode


@contextlib.contextmanager
def no_weight_changes(module: nn.Module) -> Iterator[None]:
    """Run a block that calls a module, and leave the module's parameters unchanged.

    Tracing a model that changes its weights may crash the process, because a parameter's data is then replaced by
    values that are not real.

    Raises:
        InputError: the block writes to a parameter, or replaces its data.
    """
    # Other classes of parameters may not have an address.
    held = {name: each for name, each in module.named_parameters() if type(each) is nn.Parameter}
    data = {name: parameter.data for name, parameter in held.items()}
    try:
        with _RefuseWrites({_address(value): name for name, value in data.items()}):
            yield
    finally:
        replaced = [name for name, parameter in held.items() if parameter.data_ptr() != data[name].data_ptr()]
        for name in replaced:
            held[name].data = data[name]
    if replaced:
        raise _refusal(replaced[0])


class _RefuseWrites(OperatorMode):
    """Stops an operator before it writes to a parameter, also through `parameter.data` or `parameter.detach()`."""

    def __init__(self, parameters: Mapping[int, str]) -> None:
        super().__init__()
        self.parameters = parameters

    def operate(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if func._schema.is_mutable:
            for written in _written(func, args, kwargs):
                address = _address(written)
                if address and address in self.parameters:
                    raise _refusal(self.parameters[address])
        return func(*args, **kwargs)


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[index] if index < len(args) else kwargs.get(argument.name)
            yield from (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))


def _address(tensor: Tensor) -> int:
    """Return the address of the memory that a tensor shares with its views; 0 if it has none."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # sparse tensors, and those without memory of their own
        return 0


def _refusal(name: str) -> InputError:
    return InputError(
        f"the model changes its {name} when it is called",
        "Change it once, before the export, and not in forward",
    )
