"""Manifests of engines, which `verify --engine` compares with the engine and the model."""

from __future__ import annotations

import json
from random import Random

from pom_export.engine.manifest import sealed
from tests.fuzzing.cases import Case, Changes, Place
from tests.fuzzing.mutations import jsons, raw, values
from tests.fuzzing.seeds import ENGINE, Seeds


def make(random: Random, seeds: Seeds, place: Place) -> Case:
    """Return `verify --engine` of a spoilt manifest, or of a spoilt engine."""
    changes = Changes()
    manifest = place.inputs / f"{ENGINE}.json"
    good = json.loads(seeds[manifest.name].read_bytes())
    engine = seeds.copy(ENGINE, place.inputs)
    action = random.randrange(8)
    if action == 0:
        content, what = raw.spoil(random, engine.read_bytes())
        engine.write_bytes(content)
        seeds.copy(manifest.name, place.inputs)
        changes.note(f"engine: {what}", refuse=content != seeds[ENGINE].read_bytes())
    elif action == 1:
        key = random.choice(("sha256", "model_sha256", "weights_sha256", "backend", "path"))
        good[key] = random.choice((values.name(random), 0, None, [], {}, True, "tensorrt"))
        manifest.write_text(json.dumps(sealed(good)))
        changes.note(f"{key} is {str(good[key])[:40]!r}", refuse=key in {"sha256", "model_sha256", "backend"})
    else:
        content, what = jsons.spoil(random, good)
        manifest.write_bytes(content)
        changes.note(what)
    command = ("verify", str(seeds["mixer.onnx"]), "--engine", str(engine))
    return Case(command, str(changes), changes.refuse)
