"""Read a pickle as data: import nothing, call nothing from the file, and limit what it may build.

A pickle is a program for a stack machine. This one supports containers, numbers and text, and the few functions that
`torch.save` names. Every other name, called or not, becomes an `Inert`, which only records what the file says about it.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from typing import IO, Any, Final

from pom_export.errors import kind_of

# Limit, at about 4 seconds and 300 MB; a checkpoint with 10,000 weights has half a million opcodes.
_MOST_OPCODES: Final = 2_000_000
# The most arguments of all calls together, since a tuple may be passed to many calls.
_MOST_ARGUMENTS: Final = 10_000_000
# The hashes of larger integers equal those of smaller ones, so that keys could be made to collide.
_LARGEST_KEY: Final = 2**61 - 1

# Opcodes that push their argument.
_VALUES: Final = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_CONSTANTS: Final = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_PUTS: Final = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
_GETS: Final = frozenset({"GET", "BINGET", "LONG_BINGET"})
_IGNORED: Final = frozenset({"PROTO", "FRAME"})


class Inert:
    """An inactive stand-in for an object or a name that is neither torch's nor one of Python's plain ones.

    Trainers save configurations and paths beside the weights.

    Attributes:
        name: name of the class or function, with its module.
        contents: arguments of the call that would have created it.
        state: the state that it would have been given after that.
        items: items that would have been appended to it.
        entries: entries that would have been set in it.
    """

    __slots__ = ("contents", "entries", "items", "name", "state")

    def __init__(self, name: str, contents: tuple[Any, ...] = ()) -> None:
        self.name = name
        self.contents = contents
        self.state: Any = None
        self.items: list[Any] = []
        self.entries: dict[Any, Any] = {}


class PickleError(Exception):
    """What is wrong with a pickle, or the limit that it exceeds."""


Calls = Mapping[str, Callable[..., Any]]


def unpickle(stream: IO[bytes], calls: Calls, persistent: Callable[[Any], Any]) -> Any:
    """Return what the pickle at a stream's position describes, leaving the stream positioned after it.

    Args:
        stream: an in-memory stream, since a pickle may declare more data than there is.
        calls: implementations of functions that the file may call, by module and name.
        persistent: returns what a persistent identifier of `torch.save` stands for.

    Raises:
        PickleError: it is damaged, or larger than in any checkpoint.
        Exception: from `calls` or `persistent`, or from the parser for damaged bytes.
    """
    return _Machine(calls, persistent).run(stream)


class _Machine:
    def __init__(self, calls: Calls, persistent: Callable[[Any], Any]) -> None:
        self._calls = calls
        self._persistent = persistent
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[Any, Any] = {}
        self._arguments = 0

    def run(self, stream: IO[bytes]) -> Any:
        steps = {
            name.removeprefix("_do_").upper(): getattr(self, name) for name in dir(self) if name.startswith("_do_")
        }
        push = self._stack.append
        for number, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            name = opcode.name
            if number >= _MOST_OPCODES:
                raise PickleError(f"it holds more than {_MOST_OPCODES:,} pickled objects")
            if name in _VALUES:
                push(argument)
            elif name in _CONSTANTS:
                push(_CONSTANTS[name])
            elif name in _PUTS:
                self._memo[argument] = self._stack[-1]
            elif name in _GETS:
                push(self._memo[argument])
            elif name == "STOP":
                return self._stack.pop()
            elif name in steps:
                steps[name](argument)
            elif name not in _IGNORED:
                raise PickleError(f"it refers to {name}, which torch.save never does")
        raise PickleError("it does not end")

    def _pop_to_mark(self) -> list[Any]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _do_mark(self, _: Any) -> None:
        self._marks.append(len(self._stack))

    def _do_pop(self, _: Any) -> None:
        if self._marks and self._marks[-1] == len(self._stack):
            self._marks.pop()
        else:
            self._stack.pop()

    def _do_pop_mark(self, _: Any) -> None:
        self._pop_to_mark()

    def _do_dup(self, _: Any) -> None:
        self._stack.append(self._stack[-1])

    def _do_memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _do_empty_list(self, _: Any) -> None:
        self._stack.append([])

    # A list is enough for a set, which is only iterated over.
    _do_empty_set = _do_empty_list

    def _do_empty_dict(self, _: Any) -> None:
        self._stack.append({})

    def _do_empty_tuple(self, _: Any) -> None:
        self._stack.append(())

    def _do_list(self, _: Any) -> None:
        self._stack.append(self._pop_to_mark())

    def _do_tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._pop_to_mark()))

    _do_frozenset = _do_tuple

    def _do_tuple1(self, _: Any) -> None:
        self._stack[-1:] = [tuple(self._stack[-1:])]

    def _do_tuple2(self, _: Any) -> None:
        self._stack[-2:] = [tuple(self._stack[-2:])]

    def _do_tuple3(self, _: Any) -> None:
        self._stack[-3:] = [tuple(self._stack[-3:])]

    def _do_dict(self, _: Any) -> None:
        items = self._pop_to_mark()
        self._stack.append({})
        self._set(items)

    def _do_append(self, _: Any) -> None:
        self._extend([self._stack.pop()])

    def _do_appends(self, _: Any) -> None:
        self._extend(self._pop_to_mark())

    _do_additems = _do_appends

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Inert):
            target = target.items
        if not isinstance(target, list):
            raise PickleError(f"it appends to {kind_of(target)}")
        target.extend(items)

    def _do_setitem(self, _: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set([key, value])

    def _do_setitems(self, _: Any) -> None:
        self._set(self._pop_to_mark())

    def _set(self, items: list[Any]) -> None:
        """Set alternating keys and values."""
        target = self._stack[-1]
        if isinstance(target, Inert):
            target = target.entries
        if not isinstance(target, dict) or len(items) % 2:
            raise PickleError(f"it sets items of {kind_of(target)}")
        size = len(target)
        target.update(zip(map(_key, items[::2]), items[1::2], strict=True))
        if len(target) - size != len(items) // 2:
            raise PickleError("it names an entry of a mapping twice")

    def _do_global(self, argument: str) -> None:
        self._stack.append(Inert(argument.replace(" ", ".", 1)))

    def _do_stack_global(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise PickleError("a name in it is not text")
        self._stack.append(Inert(f"{module}.{name}"))

    def _do_reduce(self, _: Any) -> None:
        arguments = self._stack.pop()
        self._stack[-1] = self._called(self._stack[-1], arguments)

    _do_newobj = _do_reduce

    def _do_newobj_ex(self, _: Any) -> None:
        keywords, arguments = self._stack.pop(), self._stack.pop()
        made = self._called(self._stack[-1], arguments)
        if isinstance(made, Inert) and isinstance(keywords, dict):
            made.entries = keywords
        self._stack[-1] = made

    def _do_inst(self, argument: str) -> None:
        arguments = tuple(self._pop_to_mark())
        self._stack.append(self._called(Inert(argument.replace(" ", ".", 1)), arguments))

    def _do_obj(self, _: Any) -> None:
        function, *arguments = self._pop_to_mark()
        self._stack.append(self._called(function, tuple(arguments)))

    def _called(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, Inert) or not isinstance(arguments, tuple):
            raise PickleError(f"it calls {kind_of(function)}")
        self._arguments += len(arguments)
        if self._arguments > _MOST_ARGUMENTS:
            raise PickleError(f"its calls have more than {_MOST_ARGUMENTS:,} arguments")
        known = self._calls.get(function.name)
        return Inert(function.name, arguments) if known is None else known(*arguments)

    def _do_build(self, _: Any) -> None:
        state = self._stack.pop()
        # For other objects, this is what torch's modules and tensors store in addition to their values.
        if isinstance(self._stack[-1], Inert):
            self._stack[-1].state = state

    def _do_binpersid(self, _: Any) -> None:
        self._stack[-1] = self._persistent(self._stack[-1])


def _key(value: Any) -> Any:
    """Return a key as it is, if keys of its kind can't be chosen to collide; otherwise, wrap it in an object."""
    if value is None or isinstance(value, (str, bytes, float, Inert)):
        return value
    if isinstance(value, int) and abs(value) < _LARGEST_KEY:
        return value
    return Inert("key", (value,))
