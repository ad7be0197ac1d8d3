"""Compare a package's files with its manifest."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

HERE = Path(__file__).resolve().parent


def read_manifest():
    """Return the manifest."""
    return json.loads((HERE / "manifest.json").read_text(encoding="utf-8"))


def faults_of_files(manifest):
    """Return which files differ from the manifest, one line each."""
    faults = []
    for name, entry in manifest["files"].items():
        file = HERE / name
        if not file.is_file():
            faults.append(f"{name} is missing")
        elif sha256(file) != entry["sha256"]:
            faults.append(f"{name} was changed: its SHA-256 is not the manifest's")
    return faults


def sha256(file):
    """Return a file's hash, which is read in pieces."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
