"""Who may import whom, and what an import may cost."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pom_export

PACKAGE = Path(pom_export.__file__).parent
# From the bottom up: each imports only from itself and those before it.
LAYERS = (
    "version", "contract", "errors", "suggestions", "json_text", "interrupts", "files", "archives", "arrays",
    "torch_modes", "function_mode", "mixer", "attention", "models", "checkpoint", "graph", "runtime", "text", "images",
    "engine", "parity", "api", "bench", "cli", "__main__",
)  # fmt: skip


def imported_layers(file: Path) -> set[str]:
    """Return the layers that a file imports from, lazily or not."""
    layers = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("pom_export."):
            layers.add(node.module.split(".")[1])
        elif isinstance(node, ast.ImportFrom) and node.module == "pom_export":
            layers |= {alias.name for alias in node.names}
    return layers


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_point_one_way(layer: str) -> None:
    allowed = set(LAYERS[: LAYERS.index(layer) + 1])
    files = (PACKAGE / layer).rglob("*.py") if (PACKAGE / layer).is_dir() else [PACKAGE / f"{layer}.py"]
    for file in files:
        assert imported_layers(file) <= allowed, file


def test_the_package_does_not_know_the_benchmarks() -> None:
    assert not [
        file for file in PACKAGE.rglob("*.py") if re.search(r"^\s*(from|import) benchmarks\b", file.read_text(), re.M)
    ]


def test_every_module_is_in_a_layer() -> None:
    names = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert names - {"__init__"} == set(LAYERS)


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import pom_export", "torch onnx onnxruntime polygraphy numpy"),
        ("import pom_export.cli.main", "torch onnx onnxruntime polygraphy numpy"),
        ("import pom_export.engine.builder", "torch onnxruntime"),
        ("import pom_export.engine.targets, pom_export.checkpoint.families", "torch onnx onnxruntime numpy"),
        ("import pom_export.runtime.session", "torch onnx"),
    ],
)
def test_imports_are_cheap(statement: str, absent: str) -> None:
    check = f"import sys; {statement}; print([m for m in {absent.split()!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_exists() -> None:
    for name in pom_export.__all__:
        assert getattr(pom_export, name) is not None
