"""The main job on a real checkpoint: export, verify, build, and run what was made.

    python samples/01_demo.py          # or: make demo

Takes the byte-level language model in samples/checkpoints and puts everything into out/.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import click
import numpy as np

import pom_export

HERE = Path(__file__).resolve().parent
CHECKPOINT = HERE / "checkpoints" / "byte_lm.safetensors"
PROMPT = 'The "if" statement is used for '
NEW_BYTES = 240
TEMPERATURE = 0.6


def run(*arguments: str) -> None:
    """Show a command, run it, and stop the demo when it fails."""
    click.secho(f"\n$ pom-export {shlex.join(arguments)}", bold=True)
    code = subprocess.run([sys.executable, "-m", "pom_export", *arguments], check=False).returncode
    if code:
        sys.exit(code)


def build(model: Path, engine: Path) -> list[str]:
    """Build an engine and return the options that name it; none where this installation has no TensorRT plugin."""
    try:
        pom_export.plugin_library()
    except pom_export.PomExportError as error:
        click.secho(f"\nNo TensorRT engine is built: {error}", bold=True)
        return []
    run("build", str(model), "-o", str(engine), "--optShapes", "input_ids:1x256", "--maxShapes", "input_ids:4x1024")
    return ["--engine", str(engine)]


def continue_text(model: Path, prompt: str, count: int) -> str:
    """Return the prompt and `count` bytes sampled after it, the same ones in every run."""
    session = pom_export.inference_session(model)
    generator = np.random.default_rng(0)
    ids = list(prompt.encode())
    for _ in range(count):
        (logits,) = session.run(["logits"], {"input_ids": np.array([ids], dtype=np.int64)})
        scores = logits[0, -1].astype(np.float64) / TEMPERATURE
        weights = np.exp(scores - scores.max())
        ids.append(int(generator.choice(len(weights), p=weights / weights.sum())))
    return bytes(ids).decode(errors="replace")


@click.command(help=__doc__)
@click.option("-o", "--output", default="out", type=click.Path(path_type=Path), show_default=True)
def main(output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    checkpoint = str(CHECKPOINT.relative_to(Path.cwd()) if CHECKPOINT.is_relative_to(Path.cwd()) else CHECKPOINT)
    model, engine, report = output / "model.onnx", output / "model.engine", output / "report.html"
    run("export", checkpoint, "-o", str(model))
    engine_options = build(model, engine)
    run("verify", str(model), "--checkpoint", checkpoint, *engine_options, "--report", str(report))
    click.secho("\nThe model in ONNX Runtime, with our kernels, continues a prompt:", bold=True)
    click.echo(continue_text(model, PROMPT, NEW_BYTES))
    click.secho("\nFiles", bold=True)
    for file in (model, report, engine, Path(f"{engine}.json")):
        if file.exists():
            click.echo(f"  {file}  {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
