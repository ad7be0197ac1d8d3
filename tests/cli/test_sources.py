"""What describes a model to export is checked before torch is imported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pom_export.cli.sources import check_source
from pom_export.errors import InputError

OPTIONS = {
    **dict.fromkeys(("mask", "static", "family", "degree", "heads", "in_context_start", "weights")),
    **dict.fromkeys(("cross", "positions", "stateful", "block_causal"), False),
}


def test_a_module_with_a_file_of_inputs_may_have_a_state(tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", x=np.ones(1))
    check_source("zoo:Net", str(tmp_path / "in.npz"), {**OPTIONS, "stateful": True})
    with pytest.raises(InputError, match="`cross` is for our own models"):
        check_source("zoo:Net", str(tmp_path / "in.npz"), {**OPTIONS, "cross": True})
