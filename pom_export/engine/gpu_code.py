"""Find out which GPUs a library has kernels for, from the fat binaries that nvcc wrote into it.

NVIDIA does not document their format. The tests compare the result with cuobjdump's and with nvcc's options; users need
neither of these tools.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pom_export.errors import InputError

_PTX: Final = 1
# The header of a fat binary: a magic number, a version, and the sizes of the header and of the rest.
_FAT_BINARY: Final = struct.Struct("<IHHQ")
_MAGIC: Final = 0xBA55ED50
# The header of each part in it: the kind, the sizes of the header and of the part, the chip, and flags.
_PART: Final = struct.Struct("<H2xIQ12xI8xQ")
_THIS_CHIP: Final = 0x100000
_THIS_FAMILY: Final = 0x200000
# The header of a 64-bit ELF file: the offset of the section table, the size and number of its entries, and the number
# of the section that contains the names.
_ELF: Final = struct.Struct("<4sBB34xQ10xHHH")
# An entry of that table: the offset of the section's name, and the offset and size of the section.
_SECTION: Final = struct.Struct("<I20xQQ24x")
# Chips on Jetson and DRIVE boards. They do not run the machine code of other chips of their generation, or vice versa.
_EMBEDDED: Final = (72, 87, 101, 110)
_HINT: Final = (
    "Compile it for all: python tools/build_libraries.py -UCMAKE_CUDA_ARCHITECTURES -DPOM_CUDA_ARCHITECTURES=release; "
    "or build with `use_plugin=False`"
)


@dataclass(frozen=True, order=True)
class GpuCode:
    """One form in which a library contains its kernels: machine code, or PTX, which the driver compiles.

    Attributes:
        chip: the compute capability that it was compiled for, such as 86.
        is_ptx: whether it is PTX, which newer chips can use too.
        specific: "" usually; "a": it is for this chip only; "f": it is for this chip's family only.
    """

    chip: int
    is_ptx: bool
    specific: str = ""

    def __str__(self) -> str:
        return f"{'PTX of compute' if self.is_ptx else 'sm'}_{self.chip}{self.specific}"

    def runs_on(self, chip: int) -> bool:
        """Return whether a chip can run it, after compilation by the driver if it is PTX."""
        if self.specific == "a" or chip < self.chip:
            return chip == self.chip
        if self.is_ptx and not self.specific:
            return True
        same_generation = chip // 10 == self.chip // 10
        return chip == self.chip or (same_generation and not {chip, self.chip} & set(_EMBEDDED))


def check_gpu_code(library: Path, chips: Collection[int], progress: Callable[[str], None]) -> None:
    """Raise InputError if a library has no code for a chip. Otherwise, it would only fail later, on such a GPU.

    Args:
        library: the plugin library.
        chips: compute capabilities, such as 86.
        progress: called with a line about the chips for which the driver has to compile the kernels, if any.
    """
    held = read_gpu_code(library)
    if not held:
        raise InputError(f"{library} contains no GPU code", "Build it again with `make setup`")
    usable = {chip: [code for code in held if code.runs_on(chip)] for chip in chips}
    if lacking := [f"sm{chip}" for chip, codes in usable.items() if not codes]:
        raise InputError(
            f"the plugin library {library} has no code for {', '.join(lacking)}, only {', '.join(map(str, held))}",
            _HINT,
        )
    if compiled_late := [f"sm{chip}" for chip, codes in usable.items() if all(code.is_ptx for code in codes)]:
        progress(f"on {', '.join(compiled_late)} the driver compiles the plugin's PTX at the first use")


def read_gpu_code(library: Path) -> list[GpuCode]:
    """Return the forms in which a library contains all of its kernels, by chip; empty if it has no kernels.

    Raises:
        InputError: it cannot be read.
    """
    try:
        content = library.read_bytes()
        binaries = [set(binary) for binary in _fat_binaries(_section(content, b".nv_fatbin"))]
    except (OSError, ValueError, struct.error) as error:
        raise InputError(
            f"the GPU code in {library} cannot be read: {error}", "Build it again with `make setup`"
        ) from error
    return sorted(set.intersection(*binaries)) if binaries else []


def _section(content: bytes, name: bytes) -> bytes:
    """Return the content of an ELF file's section; empty if there is no section of that name."""
    magic, is_64_bit, is_little_endian, table, size, count, of_names = _ELF.unpack_from(content)
    if (magic, is_64_bit, is_little_endian) != (b"\x7fELF", 2, 1):
        raise ValueError("it is not a shared library for 64-bit Linux")
    sections = [_SECTION.unpack_from(content, table + i * size) for i in range(count)]
    names = sections[of_names][1]
    for at, offset, length in sections:
        if content.startswith(name + b"\0", names + at):
            return content[offset : offset + length]
    return b""


def _fat_binaries(section: bytes) -> Iterator[Sequence[GpuCode]]:
    """Yield the contents of each fat binary. There is one per compiled file, aligned to eight bytes."""
    at = 0
    while at < len(section):
        magic, _, header, length = _FAT_BINARY.unpack_from(section, at)
        if magic != _MAGIC:
            at += 8
            continue
        _check_header(header, _FAT_BINARY)
        yield list(_parts(section[at + header : at + header + length]))
        at += -(-(header + length) // 8) * 8


def _parts(binary: bytes) -> Iterator[GpuCode]:
    at = 0
    while at < len(binary):
        kind, header, length, chip, flags = _PART.unpack_from(binary, at)
        _check_header(header, _PART)
        specific = "a" if flags & _THIS_CHIP else "f" if flags & _THIS_FAMILY else ""
        yield GpuCode(chip, kind == _PTX, specific)
        at += header + length


def _check_header(size: int, least: struct.Struct) -> None:
    """Refuse a header that is smaller than what was read of it: with size 0, the search would never end."""
    if size < least.size:
        raise ValueError(f"a header has a size of {size} bytes")
