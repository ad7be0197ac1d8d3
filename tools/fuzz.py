"""Feed hostile files to every reader, for as long as you like; see tests/fuzzing.

`make fuzz SECONDS=3600`, or `python tools/fuzz.py --format pt2 --seconds 600 --start 1000`. A finding is printed with
the line that reproduces it, and its files are kept.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_REPORT_EVERY = 60  # seconds between two lines of progress
sys.path.insert(0, str(_ROOT))

from tests.fuzzing.client import Client, Outcome  # noqa: E402
from tests.fuzzing.formats import FORMATS  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--format", action="append", choices=sorted(FORMATS), help="default: all, in turn")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--start", type=int, default=100_000, help="first seed; the tests run the seeds from 0 on")
    parser.add_argument("--seed", type=int, help="run only this seed, and print the outcome")
    parser.add_argument("--findings", type=Path, default=_ROOT / "out" / "fuzz", help="where findings' files are kept")
    given = parser.parse_args()
    with Client(given.findings) as client:
        if given.seed is not None:
            outcomes = [client.run(name, given.seed) for name in given.format or sorted(FORMATS)]
            print(*outcomes, sep="\n")
        else:
            outcomes = _run(client, given.format or sorted(FORMATS), given.seconds, given.start)
    return int(any(outcome.faults for outcome in outcomes))


def _run(client: Client, formats: list[str], seconds: float, seed: int) -> list[Outcome]:
    """Run the formats in turn until the time is up; return the findings."""
    start = reported = time.monotonic()
    findings, first = [], seed
    while time.monotonic() < start + seconds:
        for name in formats:
            outcome = client.run(name, seed)
            if outcome.faults:
                findings.append(outcome)
                print(outcome, flush=True)
        seed += 1
        if time.monotonic() > min(reported + _REPORT_EVERY, start + seconds):
            reported = time.monotonic()
            cases = len(formats) * (seed - first)
            print(f"[{reported - start:6.0f}s] {cases} cases, before seed {seed}: {len(findings)} findings", flush=True)
    return findings


if __name__ == "__main__":
    sys.exit(main())
