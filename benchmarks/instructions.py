"""Check that the native kernels need no more instructions than recorded in docs/benchmarks.

    python -m benchmarks.instructions            # compare with docs/benchmarks/instructions.json
    python -m benchmarks.instructions --update   # record the numbers of this tree

callgrind counts only the kernels' calls, not the program's start. Unlike times, the counts are the same on every
machine with AVX2 and valgrind.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
NUMBERS = ROOT / "docs" / "benchmarks" / "instructions.json"
SOURCE = ROOT / "plugins" / "cpu" / "benchmark.cpp"
BUILD = ROOT / "build" / "benchmark"
PROGRAM = "pom_cpu_benchmark"
KERNEL = "avx2"
CASES = tuple(f"{mode}-{dtype}" for mode in ("mean", "causal", "gated-mean", "gated-causal")
              for dtype in ("float32", "float16", "bfloat16"))  # fmt: skip
TOKENS = 2048
MARGIN = 1.10


class NotRun(Exception):  # noqa: N818 (it is no error)
    """Nothing was counted; the message says why."""


def build() -> Path:
    """Compile the program and return its path."""
    if not SOURCE.exists():
        raise NotRun(f"{SOURCE.relative_to(ROOT)} is missing")
    for tool in ("valgrind", "cmake"):
        if shutil.which(tool) is None:
            raise NotRun(f"{tool} is not installed")
    options = ["-DCMAKE_BUILD_TYPE=Release", "-DPOM_BUILD_BENCHMARK=ON", "-DPOM_BUILD_TENSORRT=OFF"]
    quietly("cmake", "-S", str(ROOT / "plugins"), "-B", str(BUILD), *options)
    quietly("cmake", "--build", str(BUILD), "--target", PROGRAM)
    found = [file for file in BUILD.rglob(PROGRAM) if file.is_file() and os.access(file, os.X_OK)]
    if not found:
        raise NotRun(f"the build made no {PROGRAM}")
    return found[0]


def quietly(*command: str) -> tuple[str, str]:
    """Run a command and return its stdout and stderr; raise NotRun with its last line if it fails."""
    environment = {**os.environ, "POM_CPU_KERNEL": KERNEL}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
        raise NotRun(f"{Path(command[0]).name} failed: {lines[-1]}")
    return done.stdout, done.stderr


def count(program: Path) -> dict[str, float]:
    """Return each case's number of instructions per element."""
    return {case: _instructions(program, case) for case in CASES}


def _instructions(program: Path, case: str) -> float:
    printed, log = quietly(
        "valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=measured_call",
        str(program), "--case", case, "--tokens", str(TOKENS), "--once",
    )  # fmt: skip
    run = json.loads(printed)
    found = re.search(r"Collected\s*:\s*(\d+)", log)
    if found is None or not int(found[1]):
        raise NotRun("callgrind reported no number")
    if run["kernel"] != KERNEL:
        raise NotRun(f"kernel {run['kernel']} ran, not {KERNEL}")
    return int(found[1]) / run["elements"]


def check_instructions() -> list[tuple[str, bool]]:
    """Return one line per case and whether it passed; a case that cannot be counted here passes, with the reason."""
    try:
        if not NUMBERS.exists():
            raise NotRun(f"{NUMBERS.relative_to(ROOT)} is missing; record it with --update")
        expected: dict[str, float] = json.loads(NUMBERS.read_text())["instructions_per_element"]
        seen = count(build())
    except NotRun as reason:
        return [(f"not run: instruction counts: {reason}", True)]
    lines = []
    for case, number in seen.items():
        if case not in expected:
            lines.append((f"not run: {case} has no number; record it with --update", True))
            continue
        limit = MARGIN * expected[case]
        passed = number <= limit
        verdict = f"{'pass' if passed else 'FAIL':<5} {number:>12.3f}  at most {limit:.3f}"
        lines.append((f"{verdict} instructions per element, {case}, {KERNEL}", passed))
    return lines


def update() -> None:
    """Record the numbers of this tree."""
    counted = {case: round(number, 4) for case, number in count(build()).items()}
    numbers = {"kernel": KERNEL, "tokens": TOKENS, "instructions_per_element": counted}
    NUMBERS.write_text(json.dumps(numbers, indent=1) + "\n")


def main() -> int:
    if sys.argv[1:] == ["--update"]:
        try:
            update()
        except NotRun as reason:
            print(f"not run: {reason}", file=sys.stderr)
            return 2
        return 0
    results = check_instructions()
    print("\n".join(line for line, _ in results))
    return 0 if all(passed for _, passed in results) else 1


if __name__ == "__main__":
    sys.exit(main())
