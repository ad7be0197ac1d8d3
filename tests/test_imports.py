"""Which modules may import which, and what an import may cost."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Mapping, Set
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import pom_export

PACKAGE = Path(pom_export.__file__).parent
# From the bottom up: each layer imports only from itself and from those before it.
LAYERS = (
    "version", "contract", "errors", "suggestions", "values", "stages", "json_text", "interrupts", "process_wide",
    "quiet", "files", "archives", "arrays", "torch_patches", "torch_modes", "function_mode", "mixer", "attention",
    "models", "checkpoint", "graph", "runtime", "text", "images", "engine", "parity", "batches", "debugging",
    "quantization", "api", "bench", "checkup", "packaging", "serving", "cli", "__main__",
)  # fmt: skip


Graph = Mapping[str, Set[str]]


def imported_layers(file: Path) -> set[str]:
    """Return the layers that a file imports from, at the top or lazily."""
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


@functools.cache
def module_graph() -> Graph:
    """Return which modules of the package each module imports, including lazy imports and those for type checkers."""
    files = {".".join((PACKAGE.name, *file.relative_to(PACKAGE).with_suffix("").parts)): file
             for file in PACKAGE.rglob("*.py")}  # fmt: skip
    files = {name.removesuffix(".__init__"): file for name, file in files.items()}
    graph: dict[str, set[str]] = {name: set() for name in files}
    for name, file in files.items():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                graph[name] |= {alias.name for alias in node.names} & files.keys()
            elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == PACKAGE.name:
                named = {f"{node.module}.{alias.name}": node.module for alias in node.names}
                graph[name] |= {inner if inner in files else module for inner, module in named.items()}
    return graph


def folder_graph(modules: Graph) -> Graph:
    """Return which folders import from which, except from folders inside each other."""
    graph: dict[str, set[str]] = {}
    for module, imported in modules.items():
        one = folder_of(module)
        others = {folder_of(other) for other in imported}
        graph.setdefault(one, set()).update(
            o for o in others if not f"{o}.".startswith(f"{one}.") and not f"{one}.".startswith(f"{o}.")
        )
    return graph


def folder_of(module: str) -> str:
    path = PACKAGE.parent.joinpath(*module.split("."))
    return module if path.is_dir() else module.rpartition(".")[0]


def cycle_in(graph: Graph) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_two_files_import_each_other() -> None:
    """Nor do several in a circle."""
    assert cycle_in({"a": {"b"}, "b": {"a"}})
    assert "pom_export.api.exporting" in module_graph()["pom_export.api"]
    assert not cycle_in(module_graph())


def test_no_two_folders_import_each_other() -> None:
    folders = folder_graph(module_graph())
    assert "pom_export.graph.masks" in folders["pom_export.graph.passes"]
    assert not cycle_in(folders)


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
