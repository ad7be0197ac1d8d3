"""The benchmark of quantized weights, on a small model; no test depends on how long anything takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.quantized.timing import FLOAT32, FORMS, measure, table_of, write_files
from benchmarks.stream.models import StreamShape

pytestmark = pytest.mark.slow


def test_every_form_is_timed_beside_its_floor(tmp_path: Path) -> None:
    files = write_files(StreamShape(dim=64, degree=2, expand=1, heads=2, layers=1), tmp_path)
    assert list(files) == [FLOAT32, *FORMS]

    found = measure(files, [1, 3], 1, 1, tmp_path)

    assert {name: [*timed.seconds] for name, timed in found.items()} == {name: [1, 3] for name in files}
    plain = found[FLOAT32].weights_bytes
    assert plain > 4 * 2 * 64 * 256  # those of the MLP alone, among others
    for name, (weights, *_) in FORMS.items():
        # The embedding, which is the head too, and scales keep their floats: a large part of so small a model.
        assert found[name].weights_bytes < plain * (0.65 if weights == "int4" else 0.75), name
    rows = table_of(found, [1, 3])
    assert [row[0] for row in rows] == ["file", *files]
    assert {row[4].split()[1] for row in rows[1:2]} == {"(1.00)"}
    assert all(timed.floor > 0 for timed in found.values())
