"""NVIDIA's cuobjdump, from its wheel or the CUDA toolkit."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path


def find() -> str | None:
    """Return the program's path, or None if it is not installed."""
    folder = Path(sysconfig.get_path("purelib")) / "nvidia" / "cu13" / "bin"
    return shutil.which("cuobjdump", path=str(folder)) or shutil.which("cuobjdump")


def dump(library: Path, *options: str) -> str:
    """Return what cuobjdump prints about a library.

    Raises:
        FileNotFoundError: cuobjdump is not installed.
        subprocess.CalledProcessError: cuobjdump rejected the library or the options.
    """
    tool = find()
    if tool is None:
        raise FileNotFoundError("cuobjdump is not installed: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")
    return subprocess.run([tool, *options, library], capture_output=True, text=True, check=True).stdout


def chips(library: Path) -> set[str]:
    """Return the GPU architectures that a library has machine code for, such as sm_86."""
    return set(re.findall(r"\.(sm_\d+)\.cubin", dump(library, "--list-elf")))


def ptx(library: Path) -> set[str]:
    """Return the oldest GPU architectures that a library has PTX for, such as sm_75; newer GPUs can run it too."""
    return set(re.findall(r"\.(sm_\d+)\.ptx", dump(library, "--list-ptx")))
