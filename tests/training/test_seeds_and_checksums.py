"""The seed of mini-batches decides every permutation, and a stored row is checked together with its step."""

from pathlib import Path

import numpy as np
import pytest
import torch
from small_runs import record

from descent.repro.seeding import torch_generator
from descent.training.gradient_store import read_layout, read_rows
from descent.training.loop import MiniBatches

NUMBERS = torch.arange(40)


def order(seed: int, epoch: int) -> list[int]:
    batches = MiniBatches((NUMBERS,), 8, seed)
    return torch.cat([batches(epoch * batches.per_epoch + part)[0] for part in range(batches.per_epoch)]).tolist()


def test_the_seed_decides_the_order_of_each_epoch() -> None:
    orders = {(seed, epoch): order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)}
    assert len({tuple(each) for each in orders.values()}) == 4
    for (seed, epoch), found in orders.items():
        assert sorted(found) == NUMBERS.tolist()
        drawn = torch.randperm(40, generator=torch_generator(seed, f"batches of epoch {epoch}"))
        assert found == drawn.tolist() == order(seed, epoch)


def test_a_row_under_another_steps_number_is_refused(tmp_path: Path) -> None:
    record(tmp_path, 6)
    layout = read_layout(tmp_path)
    rows, steps = read_rows(tmp_path, layout)
    assert (len(rows), steps.tolist()) == (6, list(range(6)))
    (kept,) = (path for path in tmp_path.iterdir() if path.stat().st_size == steps.nbytes)
    changed = steps.copy()
    changed[4] = 9
    changed.tofile(kept)
    with pytest.raises(ValueError, match="row 4 is not what was written"):
        read_rows(tmp_path, layout)
    np.arange(6).tofile(kept)
    assert read_rows(tmp_path, layout)[1].tolist() == list(range(6))
