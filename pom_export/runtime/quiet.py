"""Keep third parties' own logs out of ours."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_polygraphy() -> Iterator[None]:
    """Silence Polygraphy, whose log goes to stdout, and Python warnings of what it calls; errors still raise."""
    from polygraphy.logger import G_LOGGER

    with G_LOGGER.verbosity(G_LOGGER.CRITICAL + 1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
