"""Makes ONNX Runtime sessions that get no options use one thread: the models of tests are small."""

from __future__ import annotations

from typing import Any

from pom_export.runtime import session


def keep_to_one() -> None:
    """Do without a second thread, which would spin after each run of a session."""
    default = session.default_session_options

    def of_one_thread() -> Any:
        options = default()
        options.intra_op_num_threads = 1
        return options

    session.default_session_options = of_one_thread
