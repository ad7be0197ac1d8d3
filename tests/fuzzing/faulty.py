"""Commands that each misbehave in one way, to show that `judging` notices. Prints the faults found as JSON."""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.fuzzing import forking
from tests.fuzzing.cases import CALL, CANARY, Case, Place
from tests.fuzzing.judging import contents, faults
from tests.fuzzing.watching import Watch

_INSPECT = ("inspect", "x")


def _says(out: str = "", err: str = "", code: int = 0) -> Callable[[Place], int]:
    def work(_: Place) -> int:
        sys.stdout.write(out)
        sys.stderr.write(err)
        return code

    return work


def _does(action: Callable[[Place], object], code: int = 0) -> Callable[[Place], int]:
    def work(place: Place) -> int:
        action(place)
        return code

    return work


def _spin(_: Place) -> int:
    while True:
        pass


def _take(_: Place) -> int:
    return 0 * len(os.urandom(1) * 1_200_000_000)


def _write_past_python(place: Place) -> None:
    """Write as a C library does, unseen by audit hooks."""
    c = ctypes.CDLL(None)
    file = c.open(os.fsencode(place.precious / "file"), os.O_WRONLY)
    c.write(file, b"gone", 4)


FAULTY: dict[str, Callable[[Place], int]] = {
    "nothing": _says("checkpoint  x\nresult  passed\n", "[   0.1s] reading\n"),
    "refusal": _says(err="pom-export: error: no\n", code=2),
    "no word": _says(code=2),
    "two lines": _says(err="one\ntwo\n", code=2),
    "long line": _says(err="x" * 3000 + "\n", code=2),
    "escape": _says(err="pom-export: error: \x1b[2J\n", code=2),
    "internal": _says(err="pom-export: error: internal error: KeyError: 'x'\n", code=2),
    "code": _says(code=3),
    "forged": _says("checkpoint  x\nsha256  0\nsha256  1\n"),
    "odd line": _says("checkpoint  x\nI'm in\n"),
    "crash": _does(lambda _: os.kill(os.getpid(), signal.SIGSEGV)),
    "time": _spin,
    "memory": _take,
    "raises": _does(lambda _: 1 // 0),
    "system": _does(lambda _: os.system("true")),
    "import": _does(lambda _: importlib.import_module(CANARY)),
    "eval": _does(lambda _: eval(f"lambda: {CALL}")),
    "writes": _does(lambda place: (place.current / "new").write_text("x")),
    "removes": _does(lambda place: (place.precious / "file").unlink()),
    "reads": _does(lambda place: (place.precious / "file").read_text()),
    "writes past Python": _does(_write_past_python),
    "leaves": _does(lambda place: (place.outputs / "half").write_text("x"), code=1),
    "leaves staging": _does(lambda place: (place.outputs / ".pom-export-x").mkdir()),
    "accepts": lambda _: 0,
}

# CPU seconds after which these are killed: few where that is the fault, and enough elsewhere for a slow machine's
# memory.
_SECONDS = {"time": 1, "memory": 60}


def judged(name: str, folder: Path) -> list[str]:
    """Return the faults found in one of these commands."""
    place = Place(folder / name)
    place.make()
    before = contents(place)

    def work(report: int) -> int:
        sys.path.insert(0, os.fspath(place.current))
        os.chdir(place.current)
        Watch(place, report).start()
        return FAULTY[name](place)

    ended = forking.fork(work, forking.idle_memory(), _SECONDS.get(name, forking.SECONDS + 1))
    return faults(Case(_INSPECT, name, refuse=name == "accepts"), place, ended, before)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as root:
        print(json.dumps({name: judged(name, Path(root)) for name in FAULTY}))
