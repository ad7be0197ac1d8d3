"""Choices: refused at once with what was likely meant, completed by the shell, and written as people write them."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.shell_completion import BashComplete

from pom_export.bench.options import BACKENDS
from pom_export.cli.main import cli, run
from pom_export.engine.targets import DEFAULT_TARGETS
from pom_export.graph.claims import MASKS
from pom_export.graph.opsets import OPSETS
from pom_export.graph.precisions import PRECISIONS

# Options of `export` that others name as such.
OF_EXPORTS = {"--stateful", "--samples"}


def completed(*words: str) -> list[str]:
    """Return what a shell offers for the last word of a command line."""
    *given, incomplete = words
    complete = BashComplete(cli, {}, "pom-export", "_POM_EXPORT_COMPLETE")
    return [item.value for item in complete.get_completions(list(given), incomplete)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["exprot"], "No such command 'exprot'. Did you mean 'export'?"),
        (["zzz"], "No such command 'zzz'."),
        (["export", "--dtyp", "float16"], "Did you mean '--dtype'?"),
        (["-q", "export", "m.pt"], "No such option '-q'. It goes after the command: pom-export export -q"),
        (["--json"], "No such option '--json'. It goes after the command: pom-export COMMAND --json"),
        (["--no-plugin", "build"], "It goes after the command: pom-export build --no-plugin"),
        (["--versio", "build"], "Did you mean '--version'?"),
        (["--mask", "build"], "No such option '--mask'."),
        (["export", "--mask", "casual"], "'casual' is not one of none, causal, padding, full. Did you mean 'causal'?"),
        (["export", "--dtype", "floet32"], "Did you mean 'float32'?"),
        (["export", "--opset", "25"], "'25' is not one of 18, 19, 20, 21, 22, 23, 24."),
        (["inspect", "--family", "PoM-v3"], "Did you mean 'pom-v2' or 'pom-v1'?"),
        (["bench", "m.onnx", "--backends", "kernel,funtion"], "Did you mean 'function'?"),
        (["scan", "a:b", "--tokens", "many"], "Invalid value for '--tokens': 'many' is not a valid integer."),
        (["export", "m.pt", "--samples", "few"], "Invalid value for '--samples': 'few' is not a valid integer."),
        (["scan", "a:b", "--degree", "17"], "Invalid value for '--degree': 17 is not in the range 1<=x<=16."),
        (["scan", "a:b", "--groups", "0"], "Invalid value for '--groups': 0 is not in the range x>=1."),
        (["scan", "a:b", "--tokens", "0"], "Invalid value for '--tokens': 0 is not in the range 1<=x<=2147483647."),
        (["build", "--backend", "tensorrt-rtxx"], "Did you mean 'tensorrt-rtx' or 'tensorrt'?"),
    ],
)
def test_mistakes_are_refused_with_what_was_meant(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    assert capsys.readouterr().err.rstrip().endswith(message)


def test_a_mistake_is_refused_before_torch_is_imported() -> None:
    check = (
        "import sys; from pom_export.cli.main import run; "
        "codes = [run(['export', 'a', '-o', 'b', '--mask', 'x']), run(['build', 'a', '-o', 'b', '--targets', 'x'])]; "
        "print(codes, [m for m in ('torch', 'onnx', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[2, 2] []"


CHECKPOINT = "tests/data/golden/v2_base/checkpoint.pt"
# What follows `export`, and what is said of it although nothing is read.
EXPORTS = {
    f"{CHECKPOINT} --block-causal": "--block-causal says what the tokens of a stateful call see. Give --stateful too",
    f"{CHECKPOINT} --stateful --mask full": "--mask full cannot be combined with this kind of state",
    f"{CHECKPOINT} --stateful --cross": "--cross cannot be combined with --stateful",
    f"{CHECKPOINT} --cross --mask causal": "--mask causal cannot be combined with --cross",
    f"{CHECKPOINT} --static 0x5": "the sizes of --static must be at least 1, got 0x5",
    f"{CHECKPOINT} --family nanogpt-pom --mask full": "a language model is causal; --mask full does not apply",
    f"{CHECKPOINT} --family language-model --cross": "a language model is causal; --cross does not apply",
    f"{CHECKPOINT} --family jit-pom --stateful": "in one call; --stateful does not apply",
    f"{CHECKPOINT} --family pom-v2 --heads 4": "4 attention heads don't fit: a pom-v2 has no attention",
    f"{CHECKPOINT} --family nanogpt-pom --in-context-start 1": "--in-context-start 1 does not fit: this nanogpt-pom",
    f"{CHECKPOINT} --example-inputs x.npz": "--example-inputs is for a module",
    "models:make --degree 3": "--degree is for checkpoints, and this is a module",
    "models:make --example-inputs x.npz --mask full": "--mask is for our own models; this one has its own inputs",
    "models:make --example-inputs none.npz": "file of example inputs none.npz does not exist. Check the path",
    "models.py": "Name the function in it that returns the model, as in models:make_model",
    "my_model": "Check the path, or name what makes the model as MODULE:FACTORY, as in my_model:make_model",
    "tests.small_models": "as in tests.small_models:make_model",
    "none.pt": "checkpoint none.pt does not exist. Check the path\n",
}
OTHERS = {
    "verify m.onnx --degree 3": "--degree 3 is for a checkpoint, and none was given. Give --checkpoint",
    "verify m.onnx --checkpoint models:make --heads 3": "--heads is for checkpoints, and this is a module",
    "verify m.onnx --checkpoint none.pt": "none.pt does not exist",
    "verify m.onnx --inputs none.npz": "file of inputs none.npz does not exist. Check the path",
    "verify m.onnx --rtol -1": "--rtol must be finite and not negative, got -1.0. Example: --rtol 0.0001",
    "scan none.pt --trust": "saved module none.pt does not exist. Check the path",
    "scan my_model": "'my_model' is not MODULE:FACTORY",
    f"scan {CHECKPOINT}": "--trust if you know who wrote the file",
}
AT_ONCE = {f"export {given} -o {{folder}}/m.onnx": message for given, message in EXPORTS.items()} | OTHERS


def test_options_that_are_wrong_by_themselves_are_refused_before_torch_is_imported(tmp_path: Path) -> None:
    commands = [command.format(folder=tmp_path).split() for command in AT_ONCE]
    check = (
        "import sys; from pom_export.cli.main import run\n"
        f"for command in {commands}: print(run(command), file=sys.stderr)\n"
        "print([m for m in ('torch', 'onnx', 'numpy') if m in sys.modules])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True, cwd=root)
    answers = re.findall(r"pom-export: error: (.*\n)2\n", done.stderr)
    assert len(answers) == len(AT_ONCE), done.stderr
    for command, answer, message in zip(AT_ONCE, answers, AT_ONCE.values(), strict=True):
        assert message in answer, command
    assert done.stdout.strip() == "[]"
    assert not list(tmp_path.iterdir())


def test_a_shell_completes_values() -> None:
    assert completed("ex") == ["export"]
    assert completed("export", "--mask", "") == list(MASKS)
    assert completed("export", "--dtype", "") == list(PRECISIONS)
    assert completed("export", "--opset", "") == [str(opset) for opset in OPSETS]
    assert completed("export", "--opset", "2") == [str(opset) for opset in OPSETS if opset >= 20]
    assert completed("verify", "m.onnx", "--family", "lang") == ["language-model"]
    assert completed("build", "--backend", "tensorrt") == ["tensorrt", "tensorrt-rtx"]
    assert completed("build", "--targets", "") == list(DEFAULT_TARGETS)
    assert completed("build", "--targets", "sm86,sm8") == ["sm86,sm89"]
    assert completed("bench", "m.onnx", "--backends", "") == list(BACKENDS)
    assert completed("bench", "m.onnx", "--backends", "kernel,") == ["kernel,function", "kernel,tensorrt"]
    assert completed("bench", "m.onnx", "--tokens", "25") == []
    assert "--weights" in completed("export", "--we")


def test_a_shell_completes_files() -> None:
    complete = BashComplete(cli, {}, "pom-export", "_POM_EXPORT_COMPLETE")

    def kinds(*given: str, incomplete: str = "x") -> list[tuple[str, str]]:
        return [(item.value, item.type) for item in complete.get_completions(list(given), incomplete)]

    assert kinds("export") == [("x", "file")]
    assert kinds("build", "m.onnx", "--cache") == [("x", "dir")]
    assert kinds("generate", "m.onnx", "--tokenizer", incomplete="g") == [("gpt2", "plain"), ("g", "file")]


@pytest.mark.parametrize(
    ("command", "option", "written", "canonical"),
    [
        *(("export", "dtype", text, "float16") for text in ("fp16", "FP16", "half", "f16", "float16", "torch.float16")),
        *(("export", "dtype", text, "bfloat16") for text in ("bf16", "BFloat16")),
        *(("export", "dtype", text, "float32") for text in ("fp32", "float")),
        *(("build", "targets", text, ("sm86",)) for text in ("sm86", "sm_86", "SM86", "compute_86", "86", "8.6")),
        ("build", "targets", "sm_120, 8.9", ("sm120", "sm89")),
        ("export", "static", "1x256", (1, 256)),
        ("export", "opset", "22", 22),
    ],
)
def test_values_are_taken_as_people_write_them(command: str, option: str, written: str, canonical: object) -> None:
    group = cli.get_command(click.Context(cli), command)
    assert group is not None
    parsed = group.make_context(command, ["model", "-o", "out", f"--{option}", written])
    assert parsed.params[option] == canonical


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_documented_line_gives_a_shells_script(shell: str) -> None:
    line = f"_POM_EXPORT_COMPLETE={shell}_source"
    environment = {**os.environ, "_POM_EXPORT_COMPLETE": f"{shell}_source"}
    command = [sys.executable, "-c", "from pom_export.cli.main import main; main()"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert f"_POM_EXPORT_COMPLETE={shell}_complete" in done.stdout
    assert line in subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout


def test_options_that_a_commands_own_messages_name_are_its_own() -> None:
    """What a command says of itself, its help included, names no option that it has not."""
    for name in cli.list_commands(click.Context(cli)):
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        source = inspect.getsource(importlib.import_module(f"pom_export.cli.{name}"))
        named = set(re.findall(r"(?<![-\w`])--[a-zA-Z][\w-]*", source))
        others = set(re.findall(r"`?export (--[a-z-]+)", source))
        assert named - others - OF_EXPORTS <= known, name
