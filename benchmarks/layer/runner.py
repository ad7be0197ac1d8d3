"""Run a PyTorch module."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pom_export.bench.runners import Array, Bound, Runner


class TorchRunner(Runner):
    """A module in eager mode, or compiled for the size of its first call."""

    def __init__(self, path: Path, threads: int, *, compiled: bool) -> None:
        torch.set_num_threads(threads)
        # Written by this benchmark, into a folder of its own.
        module = torch.load(path, weights_only=False)
        self._module = torch.compile(module, dynamic=False) if compiled else module

    def bind(self, feed: Mapping[str, Array]) -> Bound:  # noqa: D102
        inputs = {name: torch.from_numpy(array) for name, array in feed.items()}

        def run() -> Any:
            with torch.inference_mode():
                return self._module(**inputs)

        return Bound([run().numpy()], run, inputs)
