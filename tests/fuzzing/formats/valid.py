"""The seeds themselves, which every command takes: nothing that it does with them may look like a fault."""

from __future__ import annotations

from random import Random

from tests.fuzzing.cases import Case, Place
from tests.fuzzing.seeds import ENGINE, Seeds

# Seeds that are enough for each command to come.
COUNT = 30


def make(random: Random, seeds: Seeds, place: Place) -> Case:
    """Return one of the commands."""
    return Case(random.choice(commands(seeds, place)), "nothing")


def commands(seeds: Seeds, place: Place) -> list[tuple[str, ...]]:
    """Return a command for each way to read a seed."""
    at = {file.name: str(file) for file in seeds.folder.iterdir()}
    out = str(place.outputs / "out")
    mixer, stream = at["mixer.onnx"], at["stream.onnx"]
    checkpoint = ("--checkpoint", at["mixer.pt"])
    return [
        ("inspect", at["mixer.pt"]),
        ("inspect", at["legacy.pt"]),
        ("inspect", at["language.safetensors"], "--json"),
        ("export", at["trainer.pt"], "-o", f"{out}.onnx"),
        ("export", at["fixed.pt2"], "-o", f"{out}.onnx"),
        ("export", at["dynamic.pt2"], "-o", f"{out}.onnx"),
        ("verify", mixer),
        ("verify", mixer, *checkpoint),
        ("verify", at["state.onnx"], *checkpoint),
        ("verify", mixer, *checkpoint, "--inputs", at["inputs.npz"]),
        ("verify", mixer, "--engine", at[ENGINE]),
        ("build", mixer, "-o", f"{out}.engine", "--targets", "sm86", "--no-embed-plugin"),
        ("generate", stream, "--load-state", at["saved.npz"], "--max-tokens", "2", "--json"),
    ]
