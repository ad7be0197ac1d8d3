"""Archives of arrays: inputs for `verify --inputs`, parity data beside a model, and saved states."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import numpy as np

from tests.fuzzing.cases import Case, Changes, Place
from tests.fuzzing.mutations import arrays, jsons, values, zips
from tests.fuzzing.seeds import Seeds

_JSON = ("header", "names")


def make_inputs(random: Random, seeds: Seeds, place: Place) -> Case:
    """Return `verify --inputs` of a spoilt archive."""
    changes = Changes()
    file = place.inputs / "inputs.npz"
    file.write_bytes(arrays.spoil_archive(random, _arrays(seeds, "inputs.npz"), changes))
    arguments = ("verify", str(seeds["mixer.onnx"]), "--checkpoint", str(seeds["mixer.pt"]), "--inputs", str(file))
    return Case(arguments, str(changes), changes.refuse)


def make_parity(random: Random, seeds: Seeds, place: Place) -> Case:
    """Return `verify` of a model with spoilt parity data beside it."""
    changes = Changes()
    model = seeds.copy("mixer.onnx", place.inputs)
    content = _archive(random, _arrays(seeds, "mixer.parity.npz"), changes)
    (place.inputs / "mixer.parity.npz").write_bytes(content)
    return Case(("verify", str(model)), str(changes), changes.refuse)


def make_state(random: Random, seeds: Seeds, place: Place) -> Case:
    """Return `generate --load-state` of a spoilt state."""
    changes = Changes()
    file = place.inputs / "state.npz"
    good = _arrays(seeds, "saved.npz")
    if random.random() < 0.2:
        content = _with_another_tokenizer(random, good, place, changes)
    else:
        content = _archive(random, good, changes)
    file.write_bytes(content)
    arguments = ("generate", str(seeds["stream.onnx"]), "--load-state", str(file), "--max-tokens", "2", "--json")
    return Case(arguments, str(changes), changes.refuse)


def _with_another_tokenizer(random: Random, good: dict[str, Any], place: Place, changes: Changes) -> bytes:
    """Let a state's notes name something else as the tokenizer's file. A regular file may be read, as a tokenizer."""
    header = json.loads(_text(good["header"]))
    name = values.path(random, place)
    name = str(place.precious) if name.endswith("/file") else name
    changes.note(f"tokenizer {name[:40]!r}", refuse=True)
    header["notes"]["generate"]["settings"]["tokenizer"] = name
    good["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    return zips.honest([(f"{key}.npy", arrays.written(value)) for key, value in good.items()])


def _arrays(seeds: Seeds, name: str) -> dict[str, Any]:
    with np.load(seeds[name]) as archive:
        return dict(archive)


def _archive(random: Random, good: dict[str, Any], changes: Changes) -> bytes:
    """Return an archive that is spoilt like any other, or in its JSON."""
    if random.random() < 0.5:
        return arrays.spoil_archive(random, good, changes)
    name = next(name for name in _JSON if name in good)
    content, what = jsons.spoil(random, json.loads(_text(good[name])))
    changes.note(f"{name}: {what}")
    if good[name].dtype.kind == "U":
        packed = np.array(content.decode("utf-8", "replace").rstrip("\0") or " ")
    else:
        packed = np.frombuffer(content, np.uint8)
    return zips.honest(
        [(f"{key}.npy", arrays.written(packed if key == name else value)) for key, value in good.items()]
    )


def _text(array: Any) -> str:
    return str(array) if array.dtype.kind == "U" else array.tobytes().decode()
