"""Separate what native libraries write to stderr from the command's own messages."""

from __future__ import annotations

import faulthandler
import io
import os
import sys
from typing import Final

_STDERR: Final = 2


def occupy_closed_streams() -> None:
    """Redirect closed standard streams to the null device.

    Otherwise the next file that is opened, such as an output, would get a closed stream's descriptor, and whatever
    libraries print would go into it.
    """
    for descriptor in range(_STDERR + 1):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free descriptor


def mute_libraries() -> None:
    """Silence native libraries: only Python's stderr still reaches the real stderr.

    Anything written directly to the descriptor is lost. C++ libraries do that to warn about a processor's features, or
    to give the reason for a failure before Python raises it as an error that we report in one line. A crash still
    prints where it happened.
    """
    if not isinstance(sys.stderr, io.TextIOWrapper):
        return  # closed, or not ours
    try:
        sys.stderr.flush()
        if sys.stderr.fileno() != _STDERR:
            return
        ours = os.dup(_STDERR)
        nowhere = os.open(os.devnull, os.O_WRONLY)
    except OSError:
        return
    # Unbuffered: text left in a buffer because the disk is full would fail again at exit and change the exit code.
    raw = os.fdopen(ours, "wb", buffering=0)
    sys.stderr = io.TextIOWrapper(raw, sys.stderr.encoding, sys.stderr.errors, write_through=True)
    os.dup2(nowhere, _STDERR)
    os.close(nowhere)
    faulthandler.enable(sys.stderr)
