"""What lies in a folder of checkpoints and was not written by this run is refused, and never executed."""

import hashlib
import os
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import SGD

from descent.training import (
    DamagedCheckpointError,
    MiniBatches,
    TrainingPlan,
    batch_cross_entropy,
    fit,
)

BATCHES = MiniBatches((torch.eye(4), torch.arange(4) % 2), 2, 0)


class Harmful:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


def train(folder: Path, steps: int = 4) -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    fit(model, batch_cross_entropy, BATCHES, SGD(model.parameters(), 0.1), TrainingPlan(steps, checkpoints=folder))


def test_a_checkpoint_that_would_run_code_is_refused_and_runs_none(tmp_path: Path) -> None:
    folder, mark = tmp_path / "run", tmp_path / "harm"
    train(folder)
    newest = max(folder.glob("step-*.pt"))
    state = torch.load(newest, weights_only=True)
    torch.save({**state, "losses": Harmful(mark)}, newest)
    newest.with_suffix(".pt.sha256").write_text(hashlib.sha256(newest.read_bytes()).hexdigest() + "\n")
    with pytest.raises(DamagedCheckpointError, match="no training state"):
        train(folder, 6)
    assert not mark.exists()


def test_a_hook_that_is_a_plain_function_is_no_recorder() -> None:
    torch.manual_seed(0)
    model, seen = nn.Linear(4, 2), list[int]()
    optimizer = SGD(model.parameters(), 0.1)
    optimizer.register_step_pre_hook(lambda *_: seen.append(1))
    fit(model, batch_cross_entropy, BATCHES, optimizer, TrainingPlan(3))
    assert len(seen) == 3


def test_what_a_checkpoint_cannot_hold_is_named(tmp_path: Path) -> None:
    model = nn.Linear(4, 2)
    optimizer = SGD(model.parameters(), 0.1)
    optimizer.param_groups[0]["note"] = Harmful(tmp_path / "harm")
    with pytest.raises(ValueError, match=r"more than tensors and plain values: .*(mkdir|[Uu]nsupported|weights_only)"):
        fit(model, batch_cross_entropy, BATCHES, optimizer, TrainingPlan(3, checkpoints=tmp_path / "run"))
    assert not (tmp_path / "harm").exists()
