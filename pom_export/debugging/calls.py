"""Watch the calls of a PyTorch model's modules, by the names that the user gave them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pom_export.graph.program import Program


@dataclass(frozen=True)
class Call:
    """A call of a module.

    Attributes:
        module: its name; "" for the model itself.
        index: how many calls of the same module came before.
    """

    module: str
    index: int


class Watcher(Protocol):
    """Is told of every call of a module in a model."""

    def enter(self, call: Call, given: list[Tensor]) -> None:
        """Take notice of a call that begins, with the floating-point tensors among its arguments."""

    def leave(self, call: Call, run: Callable[[list[Tensor]], list[Tensor]], made: list[Tensor]) -> None:
        """Take notice of a call that ends.

        Args:
            call: the call.
            run: calls the module again, with other floating-point tensors in place of those in its arguments, and
                returns those in its result.
            made: the floating-point tensors in its result.
        """


@dataclass(frozen=True)
class WatchedProgram:
    """A program whose module reports its calls; it may be copied, and run in float64.

    Attributes:
        module: the module.
        kinds: the class of each module in the model, by name.
        names: each name of a module, and the first of them, by which its calls are reported.
    """

    module: nn.Module
    kinds: Mapping[str, str]
    names: Mapping[str, str]


def watched(program: Program, watcher: Watcher) -> WatchedProgram:
    """Return a copy of a program, which shares its weights, that reports calls to a watcher.

    Args:
        program: the program.
        watcher: called for each call of each module.
    """
    import torch

    from pom_export.graph.copying import copy_module

    copied = copy_module(program.module)
    first: dict[int, str] = {}
    names: dict[str, str] = {}
    kinds: dict[str, str] = {}
    hooks = _Hooks(watcher)
    for path, module in copied.named_modules(remove_duplicate=False):
        if path == program.prefix:
            kinds[""] = type(module).__name__
            continue
        name = path.removeprefix(f"{program.prefix}.")
        names[name] = first.setdefault(id(module), name)
        if names[name] == name and not isinstance(module, torch.jit.ScriptModule):
            kinds.setdefault(name, type(module).__name__)
            hooks.add(module, name)
    return WatchedProgram(copied, kinds, names)


class _Hooks:
    """Hooks of a model's modules. They stay in place when the model is copied."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._seen: Counter[str] = Counter()
        self._open: list[Call] = []
        self._repeating = False

    def add(self, module: nn.Module, name: str) -> None:
        def enter(_: nn.Module, args: Any, kwargs: Any) -> None:
            self._enter(name, args, kwargs)

        def leave(called: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
            self._leave(called, args, kwargs, result)

        module.register_forward_pre_hook(enter, with_kwargs=True)
        module.register_forward_hook(leave, with_kwargs=True)

    def _enter(self, name: str, args: Any, kwargs: Any) -> None:
        if self._repeating:
            return
        if not name:  # a run may begin again in another type
            self._seen.clear()
            self._open.clear()
        call = Call(name, self._seen[name])
        self._seen[name] += 1
        self._open.append(call)
        self._watcher.enter(call, _floats((args, kwargs)))

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        if self._repeating:
            return

        def run(tensors: list[Tensor]) -> list[Tensor]:
            self._repeating = True
            try:
                given = _with_floats((args, kwargs), tensors)
                return _floats(module(*given[0], **given[1]))
            finally:
                self._repeating = False

        self._watcher.leave(self._open.pop(), run, _floats(result))


def _floats(value: Any) -> list[Tensor]:
    from torch import Tensor
    from torch.utils._pytree import tree_leaves

    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _with_floats(value: Any, tensors: list[Tensor]) -> Any:
    """Return a copy of nested arguments in which the floating-point tensors are replaced, in order."""
    from torch import Tensor
    from torch.utils._pytree import tree_map

    others = iter(tensors)
    return tree_map(lambda leaf: next(others) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf, value)
