"""The main job on a real checkpoint: export, build, verify, and continue a text with what was made.

    python samples/01_demo.py          # or: make demo

Takes the byte-level language model in samples/checkpoints and puts everything into out/.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click

import pom_export
from pom_export.errors import MissingDependencyError

HERE = Path(__file__).resolve().parent
CHECKPOINT = HERE / "checkpoints" / "byte_lm.safetensors"
PROMPT = 'The "if" statement is used for '
SAMPLING = ["--max-tokens", "240", "--temperature", "0.6", "--seed", "0"]


def run(*arguments: str, writes_text: bool = False) -> None:
    """Show a command, run it, and end the demo if it fails.

    Args:
        *arguments: the arguments of pom-export.
        writes_text: stdout is a text that may end without a newline; what the command prints on stderr is shown below
            it.
    """
    click.secho(f"\n$ pom-export {shlex.join(arguments)}", bold=True)
    stderr = subprocess.PIPE if writes_text else None
    done = subprocess.run([sys.executable, "-m", "pom_export", *arguments], stderr=stderr, text=True, check=False)
    if writes_text:
        click.echo(f"\n\n{done.stderr.strip()}")
    if done.returncode:
        sys.exit(done.returncode)


def build(model: Path, engine: Path) -> list[str]:
    """Build an engine and return the options that name it; no options if this installation has no TensorRT plugin."""
    try:
        pom_export.plugin_library()
    except MissingDependencyError:
        click.secho("\nNo TensorRT engine is built: the plugin was not compiled, as with PLUGIN=OFF", bold=True)
        return []
    run("build", str(model), "-o", str(engine), "--optShapes", "input_ids:1x256", "--maxShapes", "input_ids:4x1024")
    return ["--engine", str(engine)]


def show_next_steps(report: Path, stateful: Path) -> None:
    """Print what to look at and which commands to try next."""
    steps = {
        f"xdg-open {report}": "how far each backend's outputs are from PyTorch's, in a browser",
        f"pom-export generate {stateful} --prompt 'The for statement '": "more text",
        "pom-export export --help": "then your own checkpoint: pom-export export CHECKPOINT -o model.onnx",
    }
    scripts = Path(sys.prefix) / "bin"
    if shutil.which("pom-export") != str(scripts / "pom-export"):
        shown = scripts.relative_to(Path.cwd()) if scripts.is_relative_to(Path.cwd()) else scripts
        steps = {f". {shlex.quote(str(shown / 'activate'))}": "puts pom-export on this shell's PATH", **steps}
    click.secho("\nNext", bold=True)
    for command, effect in steps.items():
        click.echo(f"  {command:<66}  # {effect}")


@click.command(help=__doc__)
@click.option("-o", "--output", default="out", type=click.Path(path_type=Path), show_default=True)
def main(output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    checkpoint = str(CHECKPOINT.relative_to(Path.cwd()) if CHECKPOINT.is_relative_to(Path.cwd()) else CHECKPOINT)
    model, engine, report = output / "model.onnx", output / "model.engine", output / "report.html"
    stateful = output / "stateful.onnx"
    run("export", checkpoint, "-o", str(model))
    engine_options = build(model, engine)
    run("verify", str(model), "--checkpoint", checkpoint, *engine_options, "--report", str(report))
    # The same weights again, as a program that continues from a state: a new byte needs no pass over all previous ones.
    run("export", checkpoint, "-o", str(stateful), "--stateful")
    run("generate", str(stateful), "--prompt", PROMPT, *SAMPLING, writes_text=True)
    click.secho("\nFiles", bold=True)
    for file in (model, report, engine, Path(f"{engine}.json"), stateful):
        if file.exists():
            click.echo(f"  {file}  {file.stat().st_size:,} bytes")
    show_next_steps(report, stateful)


if __name__ == "__main__":
    main()
