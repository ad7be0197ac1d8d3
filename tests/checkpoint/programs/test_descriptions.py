"""Descriptions of programs: whatever would be run is refused, and whatever is not needed is left out."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
from torch import nn

from pom_export.checkpoint.exported_program import read_exported_program
from pom_export.errors import CheckpointError
from pom_export.graph.own_program import program_module
from tests import pt2_files
from tests.pt2_files import argument, edited, replaced, with_node


def signature_of(description: dict[str, Any]) -> dict[str, Any]:
    signature: dict[str, Any] = description["graph_module"]["module_call_graph"][0]["signature"]
    return signature


def hostile_edits() -> dict[str, pt2_files.Edit]:
    """Parts of a description that torch would run, look up or write; each contains "evil"."""
    code = "__import__('evil')"
    leaf = {"type": None, "context": None, "children_spec": []}

    def structure(kind: str, context: Any) -> pt2_files.Edit:
        text = json.dumps([1, {"type": kind, "context": json.dumps(context), "children_spec": [leaf]}])
        return lambda description: signature_of(description).update(out_spec=text)

    def parameter(description: dict[str, Any]) -> None:
        spec = description["graph_module"]["signature"]["input_specs"][0]["parameter"]
        spec["parameter_name"] = f'a"), {code}, getattr(self, "b'

    def constant(description: dict[str, Any]) -> None:
        description["graph_module"]["graph"]["custom_obj_values"] = {"x": {"name": "x", "class_fqn": "evil.Type"}}

    def operator(description: dict[str, Any]) -> None:
        call = description["graph_module"]["graph"]["nodes"][0]["inputs"][0]
        call["arg"] = {"as_operator": "torch.ops.evil.op.default"}

    def block(description: dict[str, Any]) -> None:
        graph = {"inputs": [], "outputs": [], "nodes": [], "tensor_values": {}}
        graph |= {"sym_int_values": {}, "sym_bool_values": {}}
        with_node("torch.hub.evil", argument("", as_string="evil"))({"graph_module": {"graph": graph}})
        inside = argument("", as_bool=False), argument("1", as_graph={"name": "inside", "graph": graph})
        with_node("torch.ops.higher_order.wrap_with_set_grad_enabled", *inside)(description)

    return {
        "a size": replaced("Symbol('s", f"{code} or Symbol('s"),
        "the name of a value": replaced('"linear"', f'"x = {code}; y"'),
        "the name of a parameter": parameter,
        "names of arguments": lambda description: signature_of(description).update(forward_arg_names=[f"x={code}"]),
        "an object": constant,
        "an operator as an argument": operator,
        "a module's function": with_node("torch.hub.evil", argument("", as_string="evil")),
        "a function in a block": block,
        "an extension's operator": with_node("#evil:op"),
        "a file": with_node("torch.ops.aten.from_file.default", argument("filename", as_string="evil.txt")),
        "a default factory": structure(
            "collections.defaultdict", {"default_factory_module": "evil", "default_factory_name": "evil"}
        ),
        "an enumeration": structure("builtins.dict", [{"__enum__": True, "fqn": "evil:Type", "name": "X"}]),
        "a named tuple": structure("collections.namedtuple", "evil.Type"),
        "a dialect": lambda description: description.update(verifiers=["EVIL"]),
        "a range": lambda description: description["range_constraints"].update(
            u99999999999={"min_val": 0, "max_val": None}
        ),
    }


@pytest.mark.parametrize("attack", hostile_edits())
def test_what_would_be_run_is_refused(program: tuple[nn.Module, Path], attack: str, tmp_path: Path) -> None:
    edited(program[1], tmp_path / "m.pt2", hostile_edits()[attack])
    with pytest.raises(CheckpointError):
        read_exported_program(tmp_path / "m.pt2")


def harmless_edits() -> dict[str, pt2_files.Edit]:
    """Parts that torch would run too, but that are left out."""
    metadata = {
        "stack_trace": "'''\nimport evil\n",
        "source_fn_stack": "x,torch.hub.evil",
        "nn_module_stack": "a,b,c\nimport evil",
        "custom": "[evil",
        "from_node": "[evil",
    }

    def annotate(description: dict[str, Any]) -> None:
        for node in description["graph_module"]["graph"]["nodes"]:
            node["metadata"] = metadata
        description["graph_module"]["metadata"] = {"custom": "[evil"}

    return {
        "guards": lambda description: description.update(guards_code=["__import__('evil')"]),
        "metadata": annotate,
        "types by name": lambda description: description["graph_module"].update(
            treespec_namedtuple_fields={"evil.Type": {"field_names": ["import evil"]}}
        ),
        "calls of modules": lambda description: description["graph_module"]["module_call_graph"].append(
            {"fqn": "import evil", "signature": {"in_spec": "evil"}}
        ),
    }


@pytest.mark.parametrize("kind", harmless_edits())
def test_what_is_not_needed_is_left_out(program: tuple[nn.Module, Path], kind: str, tmp_path: Path) -> None:
    edited(program[1], tmp_path / "m.pt2", harmless_edits()[kind])
    read, whole = read_exported_program(tmp_path / "m.pt2"), read_exported_program(program[1])
    assert read.graph_module.code == whole.graph_module.code
    assert read._guards_code == []


class Audit:
    """Notes what names "evil" of what Python runs, imports, starts or writes, while active: a hook stays for ever."""

    seen: list[tuple[str, str]]
    active = False

    def __init__(self) -> None:
        self.seen = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active or event not in {"exec", "compile", "import", "os.system", "subprocess.Popen", "open"}:
            return
        code = arguments[0]
        words = (code.co_names, code.co_consts, code.co_varnames) if isinstance(code, CodeType) else arguments
        writes = event == "open" and isinstance(arguments[1], str) and bool(set(arguments[1]) & set("wax+"))
        if "evil" in repr(words).lower() and (event != "open" or writes):
            self.seen.append((event, repr(words)[:200]))


@pytest.fixture(scope="module")
def audit() -> Audit:
    return Audit()


def test_nothing_of_a_file_is_compiled_imported_or_written(
    program: tuple[nn.Module, Path], audit: Audit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('it ran')")
    edits = [*hostile_edits().values(), *harmless_edits().values()]
    files = [edited(program[1], tmp_path / f"{number}.pt2", edit) for number, edit in enumerate(edits)]
    program_module(read_exported_program(program[1]))  # imports what it has to
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    audit.active = True
    try:
        for path in files:
            with contextlib.suppress(CheckpointError):
                program_module(read_exported_program(path))
        exec(compile("evil = 1", "here", "exec"), {})
    finally:
        audit.active = False
    # The last two are the test's own: what it looks for is seen.
    assert [event for event, _ in audit.seen[-2:]] == ["compile", "exec"], audit.seen
    assert audit.seen[:-2] == []
    assert not (tmp_path / "evil.txt").exists()
