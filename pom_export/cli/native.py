"""Separate what native libraries write to stderr from the command's own messages."""

from __future__ import annotations

import faulthandler
import io
import os
import sys
from typing import Final

_STDERR: Final = 2


def occupy_closed_streams() -> None:
    """Lead standard streams that are closed nowhere.

    The next file that is opened, such as an output, would take a closed one's number, and what libraries print there.
    """
    for descriptor in range(_STDERR + 1):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


def mute_libraries() -> None:
    """Have Python's stderr alone lead to where this process's stderr leads; what writes to its descriptor is lost.

    So do C++ libraries that warn of a processor's features, or say why they fail before Python raises what we say in
    one line. A crash still prints where it was.
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
    # Nothing is kept: what a full disk does not take would fail once more at the exit, and change its code.
    raw = os.fdopen(ours, "wb", buffering=0)
    sys.stderr = io.TextIOWrapper(raw, sys.stderr.encoding, sys.stderr.errors, write_through=True)
    os.dup2(nowhere, _STDERR)
    os.close(nowhere)
    faulthandler.enable(sys.stderr)
