"""The benchmark of quantized weights, on a small model; no test depends on how long anything takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.quantized.products import FORMS as PRODUCT_FORMS
from benchmarks.quantized.products import rows_of, time_products
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
    for name, (bits, *_) in FORMS.items():
        # The embedding, which is the head too, and scales keep their floats: a large part of so small a model.
        assert found[name].weights_bytes < plain * (0.65 if bits == 4 else 0.75), name
    rows = table_of(found, [1, 3])
    assert [row[0] for row in rows] == ["file", *files]
    assert {row[4].split()[1] for row in rows[1:2]} == {"(1.00)"}
    assert all(timed.floor > 0 for timed in found.values())


def test_products_alone_are_timed_beside_reading_their_weights(tmp_path: Path) -> None:
    found = list(time_products(64, 2, [1, 3], [1], tmp_path))
    assert len(found) == 2 * (1 + len(PRODUCT_FORMS)) * 2
    assert all(each.seconds > 0 and each.floor > 0 for each in found)
    rows = rows_of(found)
    assert [row[0] for row in rows[1:4]] == ["float32", "float32", "int4, blocks of 32"]
    assert {row[-1] for row in rows if row[0] == "float32"} == {"1.00"}
