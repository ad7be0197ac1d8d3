"""Arrays are read from .npz archives within bounds that are checked before anything is allocated."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from pom_export.arrays import read_npz
from pom_export.errors import InputError


def npy(header: str, content: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H" if version == b"\x01\x00" else "<I", len(text)) + text + content


def header(descr: Any = "<f4", shape: Any = (2,), *, fortran: bool = False) -> str:
    return f"{{'descr': {descr!r}, 'fortran_order': {fortran!r}, 'shape': {shape!r}}}"


def archive(file: Path, content: bytes, name: str = "a.npy", method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(file, "w", method) as written:
        written.writestr(name, content)
    return file


def refusal(file: Path, **options: Any) -> str:
    with pytest.raises(InputError) as error:
        read_npz(file, "file", **options)
    return str(error.value)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_reads_what_numpy_writes(tmp_path: Path, save: Any) -> None:
    expected = {
        "float": np.arange(6, dtype=np.float32).reshape(2, 3),
        "half": np.ones(2, np.float16),
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "mask": np.array([[True], [False]]),
        "text": np.array("text"),
        "empty": np.zeros((0, 3)),
        "scalar": np.array(7),
        "foreign": np.ones(3, ml_dtypes.bfloat16),
    }
    save(tmp_path / "a.npz", **expected)
    found = read_npz(tmp_path / "a.npz", "file")
    assert found.keys() == expected.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name].view(array.dtype))
        assert array.flags.writeable
    assert read_npz(tmp_path / "a.npz", "file", only={"mask", "none"}).keys() == {"mask"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "damaged"),
        (b"not an array", "damaged"),
        (npy(header(shape=(3,)), bytes(8)), "holds 8 bytes, not float32[3]"),
        (npy(header(shape=(1,)), bytes(8)), "holds 8 bytes, not float32[1]"),
        (npy(header(shape=(-2,)), bytes(8)), "not float32[-2]"),
        (npy(header(shape=(-1, -2)), bytes(8)), "not float32[-1, -2]"),
        (npy(header(shape=(2**62, 2**62)), bytes(8)), "holds 8 bytes"),
        (npy(header(shape=(True,)), bytes(4)), "damaged"),
        (npy(header("|O", (1,)), b"\x80\x02N."), "its type is object"),
        (npy(header("<U0", (10**12,))), "only plain types are supported"),
        (npy(header("|V0", (10**12,))), "only plain types are supported"),
        (npy(header([("a", "<f4")], (2,)), bytes(8)), "only plain types are supported"),
        (npy(header([("a", "|O")], (1,)), bytes(8)), "only plain types are supported"),
        (npy("[" * 9000), "damaged"),
        (npy("__import__('os').system('false')"), "damaged"),
        (npy(header(), bytes(8), version=b"\x03\x00"), "version (3, 0)"),
        (npy(header() + " " * 20_000, bytes(8), version=b"\x02\x00"), "damaged"),
    ],
)  # fmt: skip
def test_refuses_arrays_that_are_not_what_they_declare(tmp_path: Path, content: bytes, reason: str) -> None:
    message = refusal(archive(tmp_path / "a.npz", content))
    assert reason in message
    assert "\n" not in message


def test_an_empty_array_may_declare_any_size(tmp_path: Path) -> None:
    (array,) = read_npz(archive(tmp_path / "a.npz", npy(header(shape=(10**12, 0)))), "file").values()
    assert array.shape == (10**12, 0)


def test_refuses_what_is_no_archive_of_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones(2))
    assert "not a complete archive" in refusal(tmp_path / "a.npy")
    assert "does not exist" in refusal(tmp_path / "b.npz")
    assert "not a NumPy array" in refusal(archive(tmp_path / "c.npz", b"", name="c.pkl"))


def test_refuses_to_inflate_far_beyond_the_file(tmp_path: Path) -> None:
    """300 MB of zeros in 300 KB: refused by the size that the directory declares, before a byte is inflated."""
    stream = io.BytesIO()
    deflated = zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
    with deflated as written, written.open("a.npy", "w") as member:
        member.write(npy(header(shape=(75 << 20,))))
        for _ in range(300):
            member.write(bytes(1 << 20))
    file = tmp_path / "a.npz"
    file.write_bytes(stream.getvalue())
    assert "would take 314,572,8" in refusal(file)


def test_refuses_compression_where_there_is_none(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", a=np.ones(2))
    assert "is compressed" in refusal(tmp_path / "a.npz", stored=True)
