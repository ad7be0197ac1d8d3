"""Imports once what commands import, then runs hostile inputs one after another, each in its own child process.

Reads one line per case from stdin, `{"format": ..., "seed": ...}`, and answers each with a line, an `Outcome` as JSON.
An optional argument names the folder that keeps the files of cases with faults.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import pkgutil
import shutil
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from random import Random

import pom_export.cli
from pom_export.engine.backend import load_backend, polygraphy_trt
from pom_export.errors import MissingDependencyError
from tests import session_threads
from tests.fuzzing import forking
from tests.fuzzing.cases import Case, Place
from tests.fuzzing.client import Outcome
from tests.fuzzing.comparing import difference
from tests.fuzzing.formats import FORMATS
from tests.fuzzing.judging import contents, faults
from tests.fuzzing.seeds import WIDTH, Seeds, make_seeds
from tests.fuzzing.watching import Watch

_KEPT_WORDS = 400


class Server:
    """Runs cases.

    Args:
        folder: holds the seeds and, one after another, the cases.
        findings: where the files of cases with faults go; None to keep none.
    """

    def __init__(self, folder: Path, findings: Path | None = None) -> None:
        self._folder = folder
        self._findings = findings
        self._seeds = Seeds(folder / "seeds")
        self._seeds.folder.mkdir()
        _import_what_it_imports(self._seeds)
        self._memory = forking.idle_memory()

    def run(self, name: str, seed: int) -> Outcome:
        """Create a case, run it and judge it."""
        place = Place(self._folder / f"{name}-{seed}")
        place.make()
        try:
            case = FORMATS[name](Random(f"{name} {seed}"), self._seeds, place)
        except Exception as error:  # noqa: BLE001 (the rest is still worth running)
            self._put_away(place, keep=False)
            fault = f"is not made, which is the mutator's fault: {error!r}"[:_KEPT_WORDS]
            return Outcome(name, seed, "", (), [fault], None, 0, 0, "", "")
        before = contents(place)
        ended = forking.fork(lambda report: _run(case, place, report), self._memory)
        found = faults(case, place, ended, before)
        if ended.code == 0 and case.checkpoint is not None:
            compared = forking.fork(partial(_compare, case.checkpoint), self._memory)
            found += compared.report or ([f"cannot be compared: {compared}"] if compared.code else [])
        return Outcome(
            format=name,
            seed=seed,
            what=case.what,
            arguments=case.arguments,
            faults=found,
            code=ended.code,
            seconds=round(ended.seconds, 2),
            megabytes=ended.memory // 10**6,
            said=(ended.stderr.strip().split("\n") or [""])[-1][:_KEPT_WORDS],
            folder=self._put_away(place, keep=bool(found)),
        )

    def _put_away(self, place: Place, *, keep: bool) -> str:
        """Remove a case's files, or move them to the findings; return where they are kept."""
        if not keep or self._findings is None:
            shutil.rmtree(place.root)
            return ""
        kept = self._findings / place.root.name
        shutil.rmtree(kept, ignore_errors=True)
        self._findings.mkdir(parents=True, exist_ok=True)
        return os.fspath(shutil.move(place.root, kept))


def _run(case: Case, place: Place, report: int) -> int:
    """Run a case's command in this process, a child of the server."""
    import torch

    from pom_export.cli.main import run

    torch.set_num_threads(1)
    os.chdir(place.current)
    sys.path.insert(0, "")
    os.environ["TMPDIR"] = tempfile.tempdir = os.fspath(place.temporary)
    Watch(place, report).start()
    return run(list(case.arguments))


def _compare(checkpoint: Path, report: int) -> int:
    """Report how other readers' reading of a checkpoint differs from ours."""
    os.write(report, difference(checkpoint).encode(errors="replace"))
    return 0


def _import_what_it_imports(seeds: Seeds) -> None:
    """Make the seeds in a child and import its modules here, so that the threads of ONNX Runtime stay in the child."""
    import torch

    torch.set_num_threads(1)
    session_threads.keep_to_one()
    names = seeds.folder.parent / "modules.json"

    def work(_: int) -> int:
        make_seeds(seeds.folder)
        names.write_text(json.dumps(list(sys.modules)))
        return 0

    with contextlib.suppress(MissingDependencyError):
        polygraphy_trt(load_backend())
    # Import what is known beforehand, so that the child need not import it too.
    _export_something()
    own = (module.name for module in pkgutil.iter_modules(pom_export.cli.__path__, "pom_export.cli."))
    _import(["onnxruntime", "pom_export.engine.builder", *own])
    ended = forking.fork(work, 0, seconds=600)
    if ended.code != 0:
        raise RuntimeError(f"the seeds were not made: {ended}")
    _import(json.loads(names.read_text()))
    gc.collect()
    gc.freeze()


def _import(names: Iterable[str]) -> None:
    for name in names:
        with contextlib.suppress(Exception):  # created by its parent module, not by an import
            importlib.import_module(name)


def _export_something() -> None:
    """Have torch prepare here, once, what a process prepares for its first export: half a second in each child."""
    import torch
    import tqdm

    from pom_export import PolynomialMixer
    from pom_export.graph.exported_model import BATCH, TOKENS, InputLimits
    from pom_export.graph.opsets import default_opset
    from pom_export.graph.options import GraphOptions
    from pom_export.graph.program import build_program
    from pom_export.graph.tracing import trace
    from tests import torch_tables

    torch_tables.keep()
    tqdm.tqdm.monitor_interval = 0  # no thread that monitors torch's progress bars
    axes = {"query": ((BATCH, TOKENS, WIDTH), torch.float32)}
    program = build_program(PolynomialMixer(WIDTH, 2, 2), axes, ("y",), GraphOptions(), InputLimits())
    # Not through `export`, whose check starts threads of ONNX Runtime: a forked child would lack them.
    trace(program, default_opset("float32"))


def main() -> None:
    """Answer until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    findings = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    with tempfile.TemporaryDirectory(prefix="pom-fuzzing-", ignore_cleanup_errors=True) as folder:
        server = Server(Path(folder), findings)
        for line in sys.stdin:
            asked = json.loads(line)
            outcome = server.run(asked["format"], asked["seed"])
            print(json.dumps(asdict(outcome)), file=answers, flush=True)


if __name__ == "__main__":
    main()
