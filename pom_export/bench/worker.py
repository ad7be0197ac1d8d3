"""Call one function in a process of its own: python -m pom_export.bench.worker CALL RESULT THREADS PARENT.

Each measurement has a separate process, so that it does not share threads, allocators or peak memory.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

from pom_export.bench.machine import end_with_parent, pin
from pom_export.errors import PomExportError, reason_of


def main(arguments: list[str]) -> int:
    """Make the call in the first file, write what it returned, or the error that ended it, to the second."""
    call_file, result_file, threads, parent = arguments
    end_with_parent(int(parent))
    pin(int(threads))
    try:
        # Both files are this benchmark's own, in a folder that nobody else may write to.
        with Path(call_file).open("rb") as file:
            sys.path[:] = pickle.load(file)  # noqa: S301
            function, given = pickle.load(file)  # noqa: S301
        result = function(*given)
    except PomExportError as error:
        result = error
    except Exception as error:  # noqa: BLE001 (the parent says it)
        result = PomExportError(f"{type(error).__name__}: {reason_of(error)}")
    Path(result_file).write_bytes(pickle.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
