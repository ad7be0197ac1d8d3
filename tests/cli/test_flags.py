"""Messages of the command line name options where the library's messages name parameters."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import click
import pytest

import pom_export
from pom_export.cli.flags import PARAMETERS, in_flags
from pom_export.errors import explained

PACKAGE = Path(pom_export.__file__).parent
COMMANDS = [
    importlib.import_module(f"pom_export.cli.{name}").command
    for name in (
        "export",
        "fuse",
        "inline",
        "inspect",
        "verify",
        "debug",
        "build",
        "generate",
        "scan",
        "bench",
        "run",
        "serve",
        "doctor",
        "package",
        "quantize",
    )
]
# Folders whose texts are about the command line, and files that write other programs' options.
OF_COMMANDS = {"cli"}
OTHER_PROGRAMS = {
    "packaging/genai/served/client.py",
    "packaging/openvino/served/client.py",
    "packaging/triton/python_backend.py",
    "packaging/triton/repository.py",
    "packaging/triton/served/client.py",
    "packaging/triton/served/preflight.py",
    "packaging/triton/tensorrt_backend.py",
    "packaging/triton/texts.py",
    "checkup/probes.py",
    "checkup/programs.py",
    "engine/command_line.py",
    "parity/depth_plot.py",
    "parity/html.py",
    "serving/requests.py",
}
# Names in backticks that are not parameters.
OTHER_WORDS = {"order", "num_classes", "inspect"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Give `stateful=True` too", "Give --stateful too"),
        ("Leave `in_context_start` out", "Leave --in-context-start out"),
        ("Give `degree` 1 or 2", "Give --degree 1 or 2"),
        ("`weights=NAME` chooses", "--weights NAME chooses"),
        ("`mask='full'` does not apply", "--mask full does not apply"),
        ("Give `static=(2, 16)`", "Give --static 2x16"),
        ("build with `use_plugin=False`", "build with --no-plugin"),
        (
            "`max_shapes={'x': (8, 4096, 16), 'mask': (8, 4096)}`",
            "--maxShapes x:8x4096x16,mask:8x4096",
        ),
        ("an attribute `order`, and `make setup`", "an attribute `order`, and `make setup`"),
    ],
)
def test_parameters_become_options(text: str, shown: str) -> None:
    assert in_flags(text) == shown


def test_where_the_trace_is() -> None:
    assert in_flags(explained(ValueError("no")).hint) == "Run with --debug and report it"


def test_options_are_those_of_the_commands() -> None:
    found = {
        parameter.name: parameter.opts[-1]
        for command in COMMANDS
        for parameter in command.params
        if isinstance(parameter, click.Option)
    }
    assert dict(PARAMETERS) == {name: found.get(name) for name in PARAMETERS}


def texts_of(file: Path) -> list[str]:
    """Return the texts in a file, without docstrings."""
    tree = ast.parse(file.read_text())
    nodes = list(ast.walk(tree))
    alone = {node.value for node in nodes if isinstance(node, ast.Expr)}
    texts = (node for node in nodes if isinstance(node, ast.Constant) and node not in alone)
    return [node.value for node in texts if isinstance(node.value, str)]


def test_the_library_names_parameters() -> None:
    """None of its texts names an option, and each parameter that one names has an option."""
    for file in PACKAGE.rglob("*.py"):
        place = file.relative_to(PACKAGE)
        if place.parts[0] in OF_COMMANDS or place.as_posix() in OTHER_PROGRAMS:
            continue
        for text in texts_of(file):
            assert not re.search(r"(?<![-\w])--[a-z]", text), (place, text)
            assert set(re.findall(r"`([a-z]\w*)[`=]", text)) - OTHER_WORDS <= PARAMETERS.keys(), (place, text)
