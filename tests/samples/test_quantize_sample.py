"""The sample that quantizes the demo's model, run as people run it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import pom_export

SAMPLE = Path(__file__).parents[2] / "samples" / "09_quantize.py"
PROMPT = 'The "if" statement is used for '


@pytest.mark.slow
def test_files_become_smaller_and_still_write(tmp_path: Path) -> None:
    command = [sys.executable, str(SAMPLE), "-o", str(tmp_path), "--tokens", "40"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    header, *lines = done.stdout.splitlines()[:4]
    assert header.split("  ")[-1].strip() == "prefill time"
    rows = {name: [float(cell.replace(",", "")) for cell in cells] for name, *cells in map(str.split, lines)}
    assert list(rows) == ["float32", "int8", "int4"]
    for name, (size, bits, same, decode, prefill) in rows.items():
        file = tmp_path / ("stateful.onnx" if name == "float32" else f"{name}.onnx")
        assert size == file.stat().st_size
        assert (pom_export.inspect(file).to_dict()["quantized"] is None) == (name == "float32")
        # What training held out is a text in English, and a file loses at most the default budget of 1 %.
        assert 1 < rows["float32"][1] < 3
        assert bits <= rows["float32"][1] * 1.01
        assert 0.9 < same <= 1
        assert min(decode, prefill) > 0
    assert rows["int4"][0] < rows["int8"][0] < rows["float32"][0] / 2
    texts = done.stdout.split(PROMPT)[1:]
    assert len(texts) == len(rows)
    assert all(len(text) >= 40 for text in texts)


def test_a_bad_file_ends_the_sample(tmp_path: Path) -> None:
    (tmp_path / "stateful.onnx").write_bytes(b"no model")
    done = subprocess.run([sys.executable, SAMPLE, "-o", tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "stateful.onnx" in done.stderr
    assert not (tmp_path / "int8.onnx").exists()
