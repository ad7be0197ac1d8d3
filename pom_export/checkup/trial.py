"""The main program of a process that tries one part."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from pom_export.checkup import file_probes, probes
from pom_export.checkup.findings import BROKEN, MARK, NOT_INSTALLED, OK, BrokenError, NotInstalledError
from pom_export.errors import PomExportError, reason_of


def main(probe: str, arguments: Sequence[Any]) -> None:
    """Run a probe and print its result, in the child."""
    run = getattr(probes, probe, None) or getattr(file_probes, probe)
    try:
        result = OK, run(*arguments), ""
    except NotInstalledError as error:
        result = NOT_INSTALLED, str(error), error.remedy
    except BrokenError as error:
        result = BROKEN, str(error), error.remedy
    except PomExportError as error:
        result = BROKEN, error.what, error.hint
    except Exception as error:  # noqa: BLE001 (whatever a broken library raises)
        result = BROKEN, f"{type(error).__name__}: {reason_of(error)}", ""
    sys.stdout.flush()
    # A library may have left something in a line of its own.
    os.write(1, f"\n{MARK}{json.dumps(result)}\n".encode())
    os._exit(0)  # what a library does at the end says nothing about the part
