"""The contract in Python and the contract in the compiled libraries are the same."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import pytest

from pom_export import contract
from pom_export.runtime.library import custom_ops_library, plugin_library


@pytest.mark.parametrize("library", [custom_ops_library, plugin_library])
def test_the_libraries_agree_with_python(library: Callable[[], Path]) -> None:
    loaded = ctypes.CDLL(str(library()))
    loaded.pom_contract.restype = ctypes.c_char_p
    loaded.pom_gated_contract.restype = ctypes.c_char_p
    assert loaded.pom_contract().decode() == contract.signature()
    assert loaded.pom_gated_contract().decode() == contract.gated_signature()
