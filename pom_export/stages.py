"""The stages of a job, reported to the caller and logged by the package's loggers."""

from __future__ import annotations

import logging
from collections.abc import Callable

STAGE = "pom_export_stage"
"""What a record of a stage has, for those who are told stages another way."""


def logged(progress: Callable[[str], None], log: logging.Logger) -> Callable[[str], None]:
    """Return what tells a stage and logs it too, at INFO."""

    def tell(stage: str) -> None:
        log.info("%s", stage, extra={STAGE: True})
        progress(stage)

    return tell
