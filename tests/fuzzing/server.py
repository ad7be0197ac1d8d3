"""Imports once what commands import, then runs one hostile input after another, each in a child of its own.

Reads one line a case from stdin, `{"format": ..., "seed": ...}`, and answers with one, `Outcome` as JSON.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

from pom_export.engine.backend import load_backend
from pom_export.errors import MissingDependencyError
from tests.fuzzing import forking
from tests.fuzzing.cases import Case, Place
from tests.fuzzing.formats import FORMATS
from tests.fuzzing.judging import contents, faults
from tests.fuzzing.seeds import Seeds, make_seeds
from tests.fuzzing.watching import Watch


@dataclass(frozen=True)
class Outcome:
    """What one case gave.

    Attributes:
        format: of the case.
        seed: of the case; both make it again.
        what: what was done to a good file.
        arguments: of the command.
        faults: what is wrong; empty: all is right.
        code: the exit code; None: a signal ended the command.
        seconds: of a processor.
        megabytes: beyond the import.
        said: the last line of stderr.
        folder: where its files are kept; empty where they are not.
    """

    format: str
    seed: int
    what: str
    arguments: tuple[str, ...]
    faults: list[str]
    code: int | None
    seconds: float
    megabytes: int
    said: str
    folder: str


class Server:
    """Runs cases.

    Args:
        folder: for the seeds and, one after another, the cases.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        seeds = folder / "seeds"
        seeds.mkdir()
        self._seeds = Seeds(seeds)
        _import_what_it_imports(self._seeds)
        self._memory = forking.idle_memory()

    def run(self, name: str, seed: int, keep: bool = False) -> Outcome:
        """Make a case, run it and judge it."""
        place = Place(self._folder / f"{name}-{seed}")
        place.make()
        case = FORMATS[name](Random(f"{name} {seed}"), self._seeds, place)
        before = contents(place)
        ended = forking.fork(lambda report: _run(case, place, report), self._memory)
        found = faults(case, place, ended, before)
        kept = keep or bool(found)
        if not kept:
            shutil.rmtree(place.root)
        return Outcome(
            name,
            seed,
            case.what,
            case.arguments,
            found,
            ended.code,
            round(ended.seconds, 2),
            ended.memory // 10**6,
            (ended.stderr.strip().split("\n") or [""])[-1][:300],
            os.fspath(place.root) if kept else "",
        )


def _run(case: Case, place: Place, report: int) -> int:
    """Run a case's command in this process, which is a child's."""
    import torch

    from pom_export.cli.main import run

    torch.set_num_threads(1)
    os.chdir(place.current)
    sys.path.insert(0, "")
    os.environ["TMPDIR"] = tempfile.tempdir = os.fspath(place.temporary)
    Watch(place, report).start()
    return run(list(case.arguments))


def _import_what_it_imports(seeds: Seeds) -> None:
    """Make the seeds in a child, and import here what it has imported: threads of ONNX Runtime stay there."""
    names = seeds.folder.parent / "modules.json"

    def work(_: int) -> int:
        make_seeds(seeds.folder)
        names.write_text(json.dumps(list(sys.modules)))
        return 0

    import torch

    torch.set_num_threads(1)
    ended = forking.fork(work, 0)
    if ended.code != 0:
        raise RuntimeError(f"the seeds were not made: {ended}")
    with contextlib.suppress(MissingDependencyError):
        load_backend()  # says which TensorRT Polygraphy's modules are to import
    for name in json.loads(names.read_text()):
        try:
            importlib.import_module(name)
        except Exception:  # noqa: BLE001 (made by its parent, not by an import)
            continue
    gc.collect()
    gc.freeze()


def main() -> None:
    """Answer until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory(prefix="pom-fuzzing-", ignore_cleanup_errors=True) as folder:
        server = Server(Path(folder))
        print(json.dumps({"formats": sorted(FORMATS)}), file=answers, flush=True)
        for line in sys.stdin:
            print(json.dumps(asdict(server.run(**json.loads(line)))), file=answers, flush=True)


if __name__ == "__main__":
    main()
