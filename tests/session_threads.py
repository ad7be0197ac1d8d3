"""Have sessions of ONNX Runtime that nobody gave options use one thread: the models of tests are small."""

from __future__ import annotations

from typing import Any

from pom_export.runtime import session


def keep_to_one() -> None:
    """Leave out a second thread, which spins after each of a session's runs."""
    default = session.default_session_options

    def of_one_thread() -> Any:
        options = default()
        options.intra_op_num_threads = 1
        return options

    session.default_session_options = of_one_thread
