"""The seeds themselves, which every command accepts: nothing that it does with them may look like a fault."""

from __future__ import annotations

from random import Random

from tests.fuzzing.cases import Case, Place
from tests.fuzzing.seeds import ENGINE, Seeds

# Each of these seeds gives another command, and together they give all.
SEEDS = (0, 1, 2, 3, 6, 8, 10, 12, 13, 17, 18, 20, 21)


def make(random: Random, seeds: Seeds, place: Place) -> Case:
    """Return one of the commands of a seed."""
    known = commands(seeds, place)
    if len(known) != len(SEEDS):
        raise AssertionError(f"{len(SEEDS)} seeds for {len(known)} commands")
    return Case(random.choice(known), "nothing")


def commands(seeds: Seeds, place: Place) -> list[tuple[str, ...]]:
    """Return a command for each way to read a seed file."""
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
