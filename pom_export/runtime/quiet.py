"""Keep third parties' own logs out of ours."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext


@contextmanager
def quiet_polygraphy() -> Iterator[None]:
    """Silence Polygraphy, where it is in use: its log goes to stdout; and Python's warnings. Errors still raise."""
    logger = getattr(sys.modules.get("polygraphy.logger"), "G_LOGGER", None)
    silence = nullcontext() if logger is None else logger.verbosity(logger.CRITICAL + 1)
    with silence, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
