"""Weights are mapped from the file and never held twice."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pom_export.models import GPT, GPTConfig

pytestmark = pytest.mark.slow

# Exports a checkpoint as if its weights were too large for one protocol buffer, and prints the peak memory of the
# process in KiB: before the export, with everything imported, and after it. Pages of mapped files do not count.
SCRIPT = """
import sys, threading
import pom_export
from pom_export.graph import saving
import pom_export.api.source

saving.EXTERNAL_DATA_BYTES = 1_000_000
peak = 0

def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))

def watch():
    global peak
    while not done.wait(0.005):
        peak = max(peak, resident())

pom_export.export(sys.argv[1], sys.argv[3], degree=2)
before, done = resident(), threading.Event()
watcher = threading.Thread(target=watch)
watcher.start()
pom_export.export(sys.argv[2], sys.argv[3], degree=2)
done.set()
watcher.join()
print(before, peak)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_an_export_takes_little_more_memory_than_the_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {}
    for name, width, layers in (("small", 32, 1), ("large", 1024, 6)):
        config = GPTConfig(2000, layers, 8, width, 8, 8, 2, 1, mlp_width=4 * width)
        tensors = {key: value for key, value in GPT(config).state_dict().items() if key != "lm_head.weight"}
        save_file(tensors, tmp_path / f"{name}.safetensors")
        sizes[name] = sum(tensor.nbytes for tensor in tensors.values())
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            SCRIPT,
            *(str(tmp_path / f) for f in ("small.safetensors", "large.safetensors", "m.onnx")),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    before, peak = (1024 * int(number) for number in re.findall(r"\d+", done.stdout))
    (weights,) = tmp_path.glob("m.onnx.*.data")
    assert weights.stat().st_size > 0.99 * sizes["large"]
    # One copy, since the matrices are transposed for the graph. Work space takes another 0.3 to 0.4 of it, depending on
    # the machine; a second copy would make it 2 or more.
    assert peak - before < 1.7 * sizes["large"]
