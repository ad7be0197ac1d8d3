"""Say in one line what `make gpu` lacks here, and how to install it; exit code 1 then.

python tools/check_gpu.py
"""

from __future__ import annotations

import shutil
import sys

import torch


def missing() -> list[str]:
    """Return what is missing here, each with its remedy."""
    found = []
    if torch.version.cuda is None:
        found.append(f"torch {torch.__version__} is not built for CUDA (install a build that is, into .venv)")
    elif not torch.cuda.is_available():
        found.append("torch sees no CUDA device (install NVIDIA's driver; nvidia-smi must list a GPU)")
    if shutil.which("compute-sanitizer") is None:
        found.append(
            "compute-sanitizer is not on the PATH (it is in the CUDA toolkit's bin, or after `pip install "
            "nvidia-cuda-sanitizer-api` in site-packages/nvidia/cu13/bin)"
        )
    return found


if __name__ == "__main__":
    lacking = missing()
    sys.exit(f"`make gpu` cannot run: {'; '.join(lacking)}" if lacking else 0)
