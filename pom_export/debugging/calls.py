"""Watch the calls of a PyTorch model's modules, by the names that the user gave them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pom_export.graph.program import Program

    Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Call:
    """A call of a module.

    Attributes:
        module: its name; "" for the model itself.
        index: how many calls of the same module came before.
    """

    module: str
    index: int


@dataclass(frozen=True)
class Repeat:
    """A call of a module that was made once more.

    Attributes:
        made: the floating-point tensors in its result.
        passed: what it passed to the modules called directly in it, each tensor with the one in the file.
    """

    made: list[Tensor]
    passed: list[tuple[Tensor, Tensor]]


class Again(Protocol):
    """Calls a module once more."""

    @property
    def complete(self) -> bool:
        """Whether the outputs of all modules inside it are the file's, so that only what it does itself is computed."""

    def __call__(self, given: list[Tensor], change: Change | None = None) -> Repeat:
        """Call the module.

        Args:
            given: takes the place of the floating-point tensors in the arguments.
            change: applied to the outputs of the modules inside.
        """


class Watcher(Protocol):
    """Is told of every call of a module in a model."""

    def enter(self, call: Call, given: list[Tensor]) -> list[Tensor | None]:
        """Take notice of a call that begins, with the floating-point tensors among its arguments.

        Returns:
            What those tensors are in the file; a tensor is None if that is not known.
        """

    def leave(self, call: Call, again: Again, made: list[Tensor]) -> list[Tensor | None] | None:
        """Take notice of a call that ends.

        Args:
            call: the call.
            again: calls the module once more.
            made: the floating-point tensors in its result.

        Returns:
            What those tensors are in the file, to be used when a module around this one is called again; a tensor is
            None if that is not known. None: the file has nothing of this call.
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


@dataclass
class _Ended:
    """A call that has ended, with its inputs and outputs in the file."""

    name: str
    given: list[Tensor | None]
    made: list[Tensor | None] | None


@dataclass
class _Open:
    """A call that has begun, and the calls made directly in it."""

    call: Call
    given: list[Tensor | None]
    inside: list[_Ended] = field(default_factory=list)


# The depth of the modules called directly in one that is called again.
_DIRECTLY: Final = 2


class _Hooks:
    """Hooks of a model's modules. They stay in place when the model is copied."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._seen: Counter[str] = Counter()
        self._open: list[_Open] = []
        self.repeated: _Repeated | None = None

    def add(self, module: nn.Module, name: str) -> None:
        def enter(_: nn.Module, args: Any, kwargs: Any) -> None:
            self._enter(name, args, kwargs)

        def leave(called: nn.Module, args: Any, kwargs: Any, result: Any) -> Any:
            return self._leave(name, called, args, kwargs, result)

        module.register_forward_pre_hook(enter, with_kwargs=True)
        module.register_forward_hook(leave, with_kwargs=True)

    def _enter(self, name: str, args: Any, kwargs: Any) -> None:
        if self.repeated is not None:
            self.repeated.enter(name, _floats((args, kwargs)))
            return
        if not name:  # a run may begin again in another type
            self._seen.clear()
            self._open.clear()
        call = Call(name, self._seen[name])
        self._seen[name] += 1
        self._open.append(_Open(call, self._watcher.enter(call, _floats((args, kwargs)))))

    def _leave(self, name: str, module: nn.Module, args: Any, kwargs: Any, result: Any) -> Any:
        if self.repeated is not None:
            return self.repeated.leave(result)
        ended = self._open.pop()
        again = _CalledAgain(self, module, args, kwargs, ended.inside)
        made = self._watcher.leave(ended.call, again, _floats(result))
        if self._open:
            self._open[-1].inside.append(_Ended(name, ended.given, made))
        return None


@dataclass
class _Repeated:
    """A module that is being called again, with known inputs and outputs of the modules called directly in it."""

    inside: Iterator[_Ended]
    change: Change | None
    depth: int = 0
    current: _Ended | None = None
    passed: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def enter(self, name: str, given: list[Tensor]) -> None:
        """Note what is passed to a module called directly."""
        self.depth += 1
        if self.depth != _DIRECTLY:
            return
        self.current = next(self.inside, None)
        if self.current is None or self.current.name != name:
            self.current, self.inside = None, iter(())  # it takes another path on these inputs
            return
        pairs = zip(given, self.current.given, strict=True)
        self.passed += [(tensor.clone(), known) for tensor, known in pairs if known is not None]

    def leave(self, result: Any) -> Any:
        """Return the result of a module to use instead of the given one; None: the given one."""
        self.depth -= 1
        if self.depth != _DIRECTLY - 1 or self.current is None or self.current.made is None:
            return None
        pairs = zip(_floats(result), self.current.made, strict=True)
        used = [one if other is None else other.clone() for one, other in pairs]
        return _with_floats(result, used if self.change is None else [self.change(each) for each in used])


@dataclass(frozen=True)
class _CalledAgain:
    """Calls a module again, with the outputs that the modules in it have in the file."""

    hooks: _Hooks
    module: nn.Module
    args: Any
    kwargs: Any
    inside: list[_Ended]

    @property
    def complete(self) -> bool:
        return all(each.made is None or all(one is not None for one in each.made) for each in self.inside)

    def __call__(self, given: list[Tensor], change: Change | None = None) -> Repeat:
        args, kwargs = _with_floats((self.args, self.kwargs), [tensor.clone() for tensor in given])
        self.hooks.repeated = repeated = _Repeated(iter(self.inside), change)
        try:
            return Repeat(_floats(self.module(*args, **kwargs)), repeated.passed)
        finally:
            self.hooks.repeated = None


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
