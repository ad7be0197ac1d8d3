"""Check this package where it will be used: its files, and the model's outputs on inputs that came with it.

    python preflight.py

The exit code is 1 if something is wrong.
"""

from __future__ import annotations

import sys

from package_files import HERE, faults_of_files, read_manifest


def trials(arrays):
    """Yield for each request its calls: the inputs and outputs by name."""
    places = sorted({tuple(map(int, name.split("/")[:2])) for name in arrays})
    for trial in sorted({place[0] for place in places}):
        calls = []
        for place in (place for place in places if place[0] == trial):
            sides = [f"{place[0]}/{place[1]}/{side}/" for side in ("in", "out")]
            calls.append([{k.removeprefix(side): v for k, v in arrays.items() if k.startswith(side)} for side in sides])
        yield calls


def faults_of_outputs(serving):
    """Return how outputs differ from those of ONNX Runtime, with which the package came."""
    try:
        import numpy as np
        from loading import load
    except ImportError as error:
        return [f"OpenVINO cannot be imported ({error}): pip install 'openvino>=2026.4'"], 0.0
    with np.load(HERE / "trial.npz") as archive:
        arrays = dict(archive)
    bound = serving["tolerance"]
    faults, worst = [], 0.0
    try:
        compiled = load()
        for calls in trials(arrays):
            request = compiled.create_infer_request()
            for feed, outputs in calls:
                results = request.infer(feed)
                for name, expected in outputs.items():
                    away = float(np.abs(results[name].astype(np.float64) - expected).max())
                    largest = float(np.abs(expected.astype(np.float64)).max())
                    worst = max(worst, away / largest if largest else away)
                    if not away <= bound["absolute"] + bound["relative"] * largest:
                        faults.append(f"{name} differs by {away:.1e}, where its largest value is {largest:.1e}")
    except Exception as error:  # noqa: BLE001 (whatever OpenVINO raises)
        faults.append(f"OpenVINO cannot run the model: {str(error).strip().splitlines()[-1]}")
    return faults, worst


def main():
    """Print what was found, and return the exit code."""
    manifest = read_manifest()
    faults, worst = faults_of_files(manifest), 0.0
    if not faults:
        faults, worst = faults_of_outputs(manifest["serving"])
    for fault in faults:
        print(f"preflight: {fault}", file=sys.stderr)
    if not faults:
        print(f"preflight: {len(manifest['files'])} files as packaged; the outputs are {worst:.0e} from ONNX Runtime's")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
