"""Build a torch.export program from the parts of its file that were understood."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from torch import Tensor
from torch.export import ExportedProgram

from pom_export.archives import Archive
from pom_export.checkpoint.programs.checks import MalformedError, UnsafeError, shown
from pom_export.checkpoint.programs.cost import check_cost
from pom_export.checkpoint.programs.schema import ProgramSchema, payloads
from pom_export.checkpoint.programs.structures import Structure
from pom_export.checkpoint.programs.tensors import Payloads
from pom_export.errors import reason_of
from pom_export.json_text import parse_json
from pom_export.quiet import quiet_logs

_VERSION: Final = b"0"
_FORMAT: Final = b"pt2"
_WEIGHTS: Final = "data/weights"
_CONSTANTS: Final = "data/constants"
# The kinds of a program's own tensors.
_OWN: Final = ("parameter", "buffer", "tensor_constant")
# Members in the archive of a single program, named "model"; the user's own files in it are not read.
_MEMBERS: Final = re.compile(
    r"\.data/\w+|\.format_version|\.storage_alignment|archive_format|archive_version|byteorder|models/model\.json"
    r"|data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json)"
    r"|data/sample_inputs/model\.pt|extra/.+"
)
_SHORT: Final = 64
# The description of a program with 10,000 nodes has 2.5 million values in 15 MB.
_MOST_BYTES: Final = 64 << 20
_MOST_VALUES: Final = 4_000_000


def read_program(archive: Archive) -> ExportedProgram:
    """Return the program in an archive.

    Raises:
        MalformedError: it is not what torch would write.
        UnsafeError: it contains something that would have to be executed, or looked up by name.
        CostError: it would take far more memory or time than a program of its size.
        InputError: a member is damaged.
    """
    root = _root(archive)
    description = ProgramSchema().program(_json(archive, f"{root}/models/model.json"))
    call = description["graph_module"]["module_call_graph"][0]["signature"]
    taken: Structure = call["in_spec"]
    given: Structure = call["out_spec"]
    call["in_spec"], call["out_spec"] = taken.to_text(), given.to_text()
    _check_counts(description["graph_module"], taken, given)
    parts = Payloads(archive, root)
    weights, constants = (
        parts.tensors(folder, payloads(prefix)(_json(archive, f"{root}/{folder}/model_{config}.json"))["config"])
        for folder, prefix, config in (
            (_WEIGHTS, "weight_", "weights_config"),
            (_CONSTANTS, "tensor_", "constants_config"),
        )
    )
    examples = parts.examples(f"{root}/data/sample_inputs/model.pt", taken)
    own = list(_own_tensors(description["graph_module"]["signature"], weights, constants))
    # torch logs what is wrong with parts that it refuses, in loggers with their own levels; the error says the same.
    with quiet_logs():
        program = _program(description, weights, constants, examples)
        if examples is not None:
            leaves = iter(taken.flatten(examples))
            inputs = [next(leaves) if tensor is None else tensor for tensor in own]
            check_cost(program.graph_module, inputs, archive.file_bytes)
    return program


def _root(archive: Archive) -> str:
    """Return the folder that contains everything in an archive, after checking its contents."""
    roots = {name.partition("/")[0] for name in archive.members}
    if len(roots) != 1:
        raise MalformedError(f"its members lie in {len(roots)} folders")
    (root,) = roots
    for name in archive.members:
        inner = name.partition("/")[2]
        if re.fullmatch(r"models/[^/]+\.json", inner) and inner != "models/model.json":
            raise MalformedError(f"it holds {inner} beside or in place of one program, models/model.json")
        if not _MEMBERS.fullmatch(inner):
            raise UnsafeError(f"a member {shown(inner)}")
    for name, wanted in (("archive_format", _FORMAT), ("archive_version", _VERSION), ("byteorder", b"little")):
        if f"{root}/{name}" not in archive.members and name == "byteorder":
            continue
        if (found := archive.read(f"{root}/{name}", _SHORT)) != wanted:
            raise MalformedError(f"its {name} is {found!r}, but only {wanted!r} is supported")
    return root


def _json(archive: Archive, member: str) -> Any:
    try:
        return parse_json(archive.read(member, _MOST_BYTES), _MOST_VALUES)
    except ValueError as error:
        raise MalformedError(f"its description is damaged: {reason_of(error)}") from error


def _check_counts(module: Mapping[str, Any], taken: Structure, given: Structure) -> None:
    """Check that a program's graph, signature and call have the same numbers of inputs and outputs."""
    signature, graph = module["signature"], module["graph"]
    inputs = sum(not {*spec} & {*_OWN} for spec in signature["input_specs"])
    outputs = sum("user_output" in spec for spec in signature["output_specs"])
    if inputs != taken.leaves or len(signature["input_specs"]) != len(graph["inputs"]):
        raise MalformedError(f"it has {inputs} inputs in a structure of {taken.leaves}")
    if outputs != given.leaves or len(signature["output_specs"]) != len(graph["outputs"]):
        raise MalformedError(f"it has {outputs} outputs in a structure of {given.leaves}")


def _own_tensors(
    signature: Mapping[str, Any], weights: Mapping[str, Tensor], constants: Mapping[str, Tensor]
) -> Iterator[Tensor | None]:
    """Yield, for each input, the program's own tensor, or None."""
    for spec in signature["input_specs"]:
        ((kind, entry),) = spec.items()
        if kind not in _OWN:
            yield None
            continue
        name = entry[f"{kind}_name"]
        tensors = weights if kind == "parameter" or entry.get("persistent") else constants
        if name not in tensors:
            raise MalformedError(f"it lacks the tensor {name}")
        yield tensors[name]


def _program(
    description: Mapping[str, Any],
    weights: dict[str, Tensor],
    constants: dict[str, Tensor],
    examples: tuple[Any, Any] | None,
) -> ExportedProgram:
    # The second half of torch.export.load, since the first half would read the file again and trust it. Sizes are
    # already sympy expressions, and are kept where torch would evaluate their text.
    from torch._export.serde import schema
    from torch._export.serde.serialize import ExportedProgramDeserializer, _dict_to_dataclass

    try:
        parsed = _dict_to_dataclass(schema.ExportedProgram, description)
        return ExportedProgramDeserializer().deserialize(parsed, weights, constants, examples)
    except Exception as error:  # raised by torch for parts that do not fit together
        raise MalformedError(f"its parts do not fit together: {reason_of(error.__cause__ or error)}") from error
