"""The stages of a job, reported to the caller and logged by the package's loggers."""

from __future__ import annotations

import logging
from collections.abc import Callable

STAGE = "pom_export_stage"
"""Attribute of log records of stages, by which handlers can skip them if stages are shown elsewhere."""


def logged(progress: Callable[[str], None], log: logging.Logger) -> Callable[[str], None]:
    """Return a callback that reports a stage and also logs it, at level INFO."""

    def tell(stage: str) -> None:
        log.info("%s", stage, extra={STAGE: True})
        progress(stage)

    return tell
