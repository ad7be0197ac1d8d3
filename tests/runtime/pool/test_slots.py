"""States stay with their rows, whichever rows take steps, are gathered, copied, or begin anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pom_export.runtime.pool.slots import Slots
from pom_export.runtime.pool.step_log import StepLog
from pom_export.runtime.streaming.interface import read_stateful
from tests.streaming_graphs import running_sum_model

ROWS = 7


@pytest.mark.parametrize("seed", range(5))
def test_each_row_keeps_its_own_state(seed: int, tmp_path: Path) -> None:
    model = read_stateful(running_sum_model(tmp_path / "m.onnx"))
    slots, random = Slots(model, ROWS), np.random.default_rng(seed)
    expected = np.zeros(ROWS)  # what every number of a row's state is

    def check() -> None:
        for row in range(ROWS):
            for array in slots.read(row).values():
                assert (array == expected[row]).all()

    for _ in range(200):
        action = random.integers(6)
        row, other = random.choice(ROWS, 2, replace=False)
        if action < 3:
            wanted = random.random(ROWS) < random.choice([0.2, 0.8])
            batch = slots.line_up(wanted)
            assert sorted(batch) == list(np.flatnonzero(wanted))
            past, present = slots.batch()
            for part in model.past:
                assert (expected[batch] == past[part.spec.name].T).all()
                present[part.present][:] = past[part.spec.name] + 1
            if action == 2:  # while the call runs, a stream ends and another begins in its row
                slots.clear(row)
                expected[row], wanted[row] = 0, False
            check()
            slots.step()
            expected[wanted] += 1
        elif action == 3:
            rows = random.permutation(ROWS)[: random.integers(1, ROWS)]
            past, present = slots.gather(rows)
            for part in model.past:
                assert (expected[rows] == past[part.spec.name].T).all()
                present[part.present][:] = past[part.spec.name] + 2
            places = np.arange(0, len(rows), 2)
            slots.scatter(present, places, rows[places])
            expected[rows[places]] += 2
        elif action == 4:
            slots.copy(row, other)
            expected[other] = expected[row]
        else:
            slots.clear(row)
            expected[row] = 0
        check()


def test_a_batch_that_stays_is_not_copied(tmp_path: Path) -> None:
    model = read_stateful(running_sum_model(tmp_path / "m.onnx"))
    slots = Slots(model, 4)
    wanted = np.array([True, True, False, True])
    name = model.past[0].spec.name
    seen = []
    for _ in range(4):
        slots.line_up(wanted)
        seen.append((slots.bank, slots.batch()[0][name].ctypes.data))
        slots.step()
    assert seen[:2] == seen[2:]
    assert list(slots.line_up(np.array([True, False, True, True]))) == [0, 2, 3]


@pytest.mark.parametrize("width", [None, 3, 2000])
def test_a_log_is_taken_before_it_is_full(width: int | None) -> None:
    shape = () if width is None else (width,)
    log, random = StepLog(np.zeros((3, 1, *shape), np.float32)), np.random.default_rng(0)
    given: list[list[Any]] = [[], [], []]
    taken: list[list[Any]] = [[], [], []]
    for _ in range(600):
        rows = np.flatnonzero(random.random(3) < 0.7)
        tokens = random.random((len(rows), 1, *shape)).astype(np.float32)
        for row, token in zip(rows.tolist(), tokens, strict=True):
            given[row].extend(token)
        for row in log.add(rows, tokens).tolist():
            taken[row].extend(log.take(row))
    for row in range(3):
        taken[row].extend(log.take(row))
        np.testing.assert_array_equal(taken[row], given[row])
        assert not len(log.take(row))
