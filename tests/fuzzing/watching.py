"""Reports at once, one line each, what a command must not do: run programs, import modules, write elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType
from typing import Any

from tests.fuzzing.cases import CANARY, HOSTILE_MODULES, Place

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_STARTS = {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn"}
_STARTS |= {"subprocess.Popen", "os.startfile", "webbrowser.open", "pickle.find_class"}
_NETWORK = ("socket.connect", "socket.bind", "socket.send", "socket.getaddrinfo", "urllib.", "http.", "ftplib.")
# How many of an event's first arguments are paths that it changes.
_CHANGES = {
    **{f"os.{name}": 1 for name in ("remove", "mkdir", "rmdir", "chmod", "chown", "truncate", "utime", "setxattr")},
    "os.rename": 2,
    "os.link": 2,
    "os.symlink": 2,
    "shutil.move": 2,
    "shutil.rmtree": 1,
}
_DEVICES = ("/dev/null/", "/dev/shm/")


class Watch:
    """An audit hook and import finder, which stay active as long as the process lives.

    Args:
        place: the case's folders; only its outputs and its temporary folder may be written to.
        report: a file descriptor, to which each thing that must not happen is written as a line.
    """

    def __init__(self, place: Place, report: int) -> None:
        self._allowed = tuple(f"{os.path.realpath(folder)}/" for folder in (place.outputs, place.temporary))
        self._case = f"{os.path.realpath(place.root)}/"
        self._precious = f"{os.path.realpath(place.precious)}/"
        self._report = report
        self._busy = False

    def start(self) -> None:
        """Start watching, which cannot be undone."""
        sys.meta_path.insert(0, self)  # type: ignore[arg-type]  # as much of a finder as is asked for
        sys.addaudithook(self._hook)

    def find_spec(self, name: str, *_: Any) -> ModuleSpec | ModuleType | None:
        """Report the import of a module that only hostile files name; never find a module."""
        if any(name == hostile or name.startswith(f"{hostile}.") for hostile in HOSTILE_MODULES):
            self._say(f"imports {name}")
        return None

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._busy:
            return
        self._busy = True
        try:
            self._see(event, arguments)
        finally:
            self._busy = False

    def _see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            self._opened(*arguments)
        elif event in _CHANGES:
            self._changed(event, arguments[: _CHANGES[event]], arguments[_CHANGES[event] :])
        elif event in _STARTS or event.startswith(_NETWORK):
            self._say(f"{event} {arguments!r}")
        elif event == "exec" and _holds_canary(arguments[0]):
            self._say("runs text of the file")
        elif event == "ctypes.dlopen" and "/" in str(arguments[0]) and _real(arguments[0]).startswith(self._case):
            self._say(f"loads the library {arguments[0]}")

    def _opened(self, path: Any, _: Any, flags: int) -> None:
        if not isinstance(path, (str, bytes)):
            return  # a file descriptor
        real = _real(path)
        # The path of a nameless temporary file is its folder.
        if flags & _WRITING and not f"{real}/".startswith((*self._allowed, *_DEVICES)):
            self._say(f"writes {real}")
        elif real.startswith(self._precious):
            self._say(f"opens {real}")

    def _changed(self, event: str, paths: Sequence[Any], rest: Sequence[Any]) -> None:
        # Paths may be relative to open folders, whose descriptors follow as arguments, in reverse order.
        folders = [number for number in rest if isinstance(number, int) and number >= 0]
        base = f"/proc/self/fd/{folders[-1]}/" if folders else ""
        for path in map(os.fsdecode, paths):
            real = _real(path if path.startswith("/") else base + path)
            if not real.startswith(self._allowed):
                self._say(f"{event} {real}")

    def _say(self, what: str) -> None:
        os.write(self._report, what[:400].replace("\n", " ").encode(errors="replace") + b"\n")


def _real(path: Any) -> str:
    return os.path.realpath(os.fsdecode(path)) if isinstance(path, (str, bytes)) else ""


def _holds_canary(code: Any) -> bool:
    """Return whether code contains the name that hostile files carry."""
    if not isinstance(code, CodeType):
        return False
    texts = [*code.co_names, *(constant for constant in code.co_consts if isinstance(constant, str))]
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return CANARY in texts or any(map(_holds_canary, inner))
