"""Finds faults in how a command ended: what must hold for every command and input, however hostile."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.fuzzing.cases import Case, Place
from tests.fuzzing.forking import MEMORY, SECONDS, Ended

# The longest line of an error: message and hint, each cut at 1,000 characters, and what surrounds them.
_LONGEST = 2100
_LONGEST_RESULT = 5000
_PROGRESS = re.compile(r"\[ *\d+\.\ds\] ")
# Patterns of the names of results. A forged line that matches them would repeat a name of `_ONCE`.
_RESULTS = {
    "inspect": "checkpoint|recognised as|parameters|types|sha256|[a-z_0-9]+(\\.[a-z_0-9]+)?|[a-z ]+"
    "|(config|limits|metadata)\\..*|float32: .*",
    "export": "agrees with PyTorch on|kept in float32|[a-z ]+",
    "verify": "[a-z-]+( emulating [a-z0-9]+| without rounding)? \\((kernel|function|plugin|standard operators)\\)"
    "|[a-z ]+",
    "build": "shapes \\(min / opt / max\\)|[a-z ]+",
}
_ONCE = ("result", "sha256", "checkpoint", "recognised as", "model", "engine", "reference")


def faults(case: Case, place: Place, ended: Ended, before: Mapping[str, str]) -> list[str]:
    """Return what is wrong with how a command ended; empty if nothing is.

    Args:
        case: the case that was run.
        place: the case's folders.
        ended: how the command ended.
        before: the `contents` of the case's folders before the run.
    """
    return [
        *_ending(case, ended),
        *_said(ended),
        *_results(case, ended),
        *dict.fromkeys(ended.report),
        *_left(place, ended, before),
    ]


def _ending(case: Case, ended: Ended) -> Iterator[str]:
    if ended.late:
        yield f"takes no end: killed after {ended.seconds:.1f} s of a processor"
    elif ended.signal is not None:
        yield f"crashes by signal {ended.signal}"
    elif ended.code not in {0, 1, 2}:
        yield f"exit code {ended.code}"
    if not ended.late and ended.seconds > SECONDS:
        yield f"takes {ended.seconds:.1f} s"
    if ended.memory > MEMORY:
        yield f"takes {ended.memory / 1e6:.0f} MB"
    if case.refuse and ended.code == 0:
        yield "is accepted"


def _said(ended: Ended) -> Iterator[str]:
    lines = [line for line in ended.stderr.split("\n") if line and not _PROGRESS.match(line)]
    if len(lines) > 1:
        yield f"says {len(lines)} lines on stderr: {lines[:2]!r}"
    if ended.code == 2 and not lines:
        yield "is refused without a word"
    if bad := next((line for line in ended.stderr.split("\n") if not line.isprintable()), None):
        yield f"prints control characters on stderr: {bad[:80]!r}"
    if (longest := max(map(len, ended.stderr.split("\n")))) > _LONGEST:
        yield f"says a line of {longest} characters"
    for sign in ("internal error", "Traceback (most recent", "not enough memory"):
        if sign in ended.stderr:
            yield f"{sign}: {next(line for line in ended.stderr.split(chr(10)) if sign in line)[:300]!r}"


def _results(case: Case, ended: Ended) -> Iterator[str]:
    """Find lines on stdout that are not results, or that occur twice: a file's text forged them."""
    if not ended.stdout:
        return
    lines = ended.stdout.rstrip("\n").split("\n")
    if "--json" in case.arguments:
        try:
            json.loads(ended.stdout)
        except ValueError:
            yield f"prints no JSON: {ended.stdout[:80]!r}"
        return
    known = re.compile(f"({_RESULTS[case.arguments[0]]})(  |$)")
    for line in lines:
        if not line.isprintable() or len(line) > _LONGEST_RESULT or not known.match(line):
            yield f"prints a line that is no result: {line[:80]!r}"
            return
    for name in _ONCE:
        if sum(re.match(f"{name} +", line) is not None for line in lines) > 1:
            yield f"prints {name!r} twice"


def contents(place: Place) -> dict[str, str]:
    """Return the contents of a case's folders: a hash of each file, or the size if it is large."""
    found = {}
    for folder, folders, files in os.walk(place.root):
        for name in (*folders, *files):
            path = Path(folder) / name
            found[os.fspath(path.relative_to(place.root))] = _content(path)
    return found


def _content(path: Path) -> str:
    if path.is_symlink():
        return os.fspath(path.readlink())
    if not path.is_file():
        return "no file"
    size = path.stat().st_size
    return str(size) if size > MEMORY // 10 else hashlib.sha256(path.read_bytes()).hexdigest()


def _left(place: Place, ended: Ended, before: Mapping[str, str]) -> Iterator[str]:
    """Find files that were changed, or that were left behind by a command that failed."""
    after = contents(place)
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) == after.get(name):
            continue
        own = name.split("/")[0] in {place.outputs.name, place.temporary.name}
        if own and ended.late:
            continue  # a killed command cannot clean up
        if not own or ended.code != 0 or ".pom-export-" in name:
            yield f"{'changes' if name in before else 'leaves'} {name}"
