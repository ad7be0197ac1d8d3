"""Stop a text halfway, keep its state in a file, and continue it in another process: nothing changes.

    python samples/06_resume.py

Uses the stateful model that the demo leaves in out/, and exports it if it is missing. A state has the same size however
long the text was. In Python: `session.snapshot().save(path)`, then `session.restore(pom_export.State.load(path))`.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import click
import numpy as np

import pom_export

CHECKPOINT = Path(__file__).resolve().parent / "checkpoints" / "byte_lm.safetensors"
PROMPT = 'The "if" statement is used for '


def run(*arguments: str) -> str:
    """Show a command, run it in a separate process, and return what it writes to stdout; exit if it fails."""
    click.secho(f"\n$ pom-export {shlex.join(arguments)}", bold=True)
    done = subprocess.run([sys.executable, "-m", "pom_export", *arguments], capture_output=True, check=False)
    if done.returncode:
        click.echo(done.stderr.decode(), err=True, nl=False)
        sys.exit(done.returncode)
    return done.stdout.decode()


def same(one: pom_export.State, other: pom_export.State) -> bool:
    """Return whether two states are equal to the last bit, including the unprocessed input that they carry."""
    return (
        one.notes == other.notes
        and one.arrays.keys() == other.arrays.keys()
        and all(np.array_equal(array, other.arrays[name]) for name, array in one.arrays.items())
    )


@click.command(help=__doc__)
@click.option("-o", "--output", default="out", type=click.Path(path_type=Path), show_default=True)
@click.option("--tokens", type=click.IntRange(2), default=240, show_default=True)
def main(output: Path, tokens: int) -> None:
    output.mkdir(parents=True, exist_ok=True)
    model = output / "stateful.onnx"
    whole, half, resumed = (output / f"{name}.npz" for name in ("whole", "half", "resumed"))
    if not model.exists():
        run("export", str(CHECKPOINT), "-o", str(model), "--stateful")

    def generate(count: int, state: Path, *start: str) -> str:
        text = run("generate", str(model), *start, "--max-tokens", str(count), "--save-state", str(state))
        click.echo(text)
        return text

    begin = ("--prompt", PROMPT, "--temperature", "0.6", "--seed", "0")
    expected = generate(tokens, whole, *begin)
    first = generate(tokens // 2, half, *begin)
    click.echo(f"\nstopped after {tokens // 2} tokens: {half} is {half.stat().st_size:,} bytes")
    rest = generate(tokens - tokens // 2, resumed, "--load-state", str(half))

    equal = first + rest == expected and same(pom_export.State.load(resumed), pom_export.State.load(whole))
    click.echo(f"\nthe text and the state after it {'are the same to the last bit' if equal else 'DIFFER'}")
    sys.exit(0 if equal else 1)


if __name__ == "__main__":
    main()
