from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from resumable_run import killed_and_resumed
from small_runs import newest_checkpoint
from torch import nn

from descent.repro.files import sha256_of
from descent.training import (
    DamagedCheckpointError,
    DivergenceError,
    MiniBatches,
    TrainingPlan,
    batch_cross_entropy,
    fit,
)


def setup(seed: int = 0) -> tuple[nn.Module, MiniBatches, torch.optim.Optimizer]:
    generator = torch.Generator().manual_seed(seed)
    inputs, targets = torch.randn(50, 6, generator=generator), torch.arange(50) % 3
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    return model, MiniBatches((inputs, targets), 8, seed), torch.optim.Adam(model.parameters(), lr=0.05)


def test_batches_cover_each_epoch_once_in_a_new_order() -> None:
    index = torch.arange(50)
    batches = MiniBatches((index,), 8, 0)
    assert batches.per_epoch == 7
    epochs = [torch.cat([batches(7 * epoch + part)[0] for part in range(7)]) for epoch in range(2)]
    assert all(torch.equal(epoch.sort().values, index) for epoch in epochs)
    assert not torch.equal(*epochs)
    assert torch.equal(batches(3)[0], MiniBatches((index,), 8, 0)(3)[0])  # a function of the step alone


@pytest.mark.parametrize("size", [0, 51])
def test_batch_size_out_of_range_is_named(size: int) -> None:
    with pytest.raises(ValueError, match=f"batch_size={size}: expected (1 to 50|at least 1, a whole number)"):
        MiniBatches((torch.arange(50),), size, 0)


def test_fit_equals_a_plain_loop() -> None:
    model, batches, optimizer = setup()
    found = fit(model, batch_cross_entropy, batches, optimizer, TrainingPlan(20))
    plain, _, other = setup()
    losses = []
    for step in range(20):
        other.zero_grad()
        loss = batch_cross_entropy(plain, batches(step))
        loss.backward()
        other.step()
        losses.append(loss.item())
    assert found.tolist() == losses
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


def test_schedule_callbacks_and_progress(capsys: pytest.CaptureFixture[str]) -> None:
    model, batches, _ = setup()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.1)
    seen: list[tuple[int, float]] = []
    found = fit(
        model,
        batch_cross_entropy,
        batches,
        optimizer,
        TrainingPlan(4, scheduler=schedule, callbacks=[lambda step, loss: seen.append((step, loss))], progress="toy"),
    )
    assert schedule.get_last_lr() == [pytest.approx(0.01)]
    assert [step for step, _ in seen] == [0, 1, 2, 3]
    assert [loss for _, loss in seen] == found.tolist()
    assert "toy" in capsys.readouterr().err


def test_loss_that_is_not_finite_stops_naming_the_step() -> None:
    model, batches, optimizer = setup()

    def diverging(model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        diverging.calls += 1  # type: ignore[attr-defined]
        return batch_cross_entropy(model, batch) * (float("inf") if diverging.calls == 4 else 1)  # type: ignore[attr-defined]

    diverging.calls = 0  # type: ignore[attr-defined]
    with pytest.raises(DivergenceError, match="loss=inf at step 3"):
        fit(model, diverging, batches, optimizer, TrainingPlan(10))
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_no_step_is_refused() -> None:
    model, batches, optimizer = setup()
    with pytest.raises(ValueError, match="steps=0"):
        fit(model, batch_cross_entropy, batches, optimizer, TrainingPlan(0))


def checkpointed(folder: Path, steps: int, run: str = "a") -> nn.Module:
    model, batches, optimizer = setup()
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
    fit(model, batch_cross_entropy, batches, optimizer, TrainingPlan(steps, schedule, (), folder, 7, run))
    return model


@pytest.mark.promise("R3")
def test_resumed_run_is_bit_identical_and_says_where_it_took_over(tmp_path: Path) -> None:
    whole = checkpointed(tmp_path / "whole", 40)
    checkpointed(tmp_path / "parts", 15)
    assert newest_checkpoint(tmp_path / "parts")[0] == 15
    parts = checkpointed(tmp_path / "parts", 40)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))
    names = sorted(path.name for path in (tmp_path / "parts").iterdir())
    assert names == ["step-000000040.pt", "step-000000040.pt.sha256"]


@pytest.mark.promise("R3")
def test_half_written_file_is_not_a_checkpoint(tmp_path: Path) -> None:
    checkpointed(tmp_path, 14)
    (tmp_path / ".step-000000021.pt.abc.tmp.pt").write_bytes(b"half")
    checkpointed(tmp_path, 20)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.promise("R4")
@pytest.mark.parametrize("damage", ["flip", "truncate", "no digest"])
def test_damaged_checkpoint_is_refused_with_the_command_that_mends_it(tmp_path: Path, damage: str) -> None:
    checkpointed(tmp_path, 14)
    _, path = newest_checkpoint(tmp_path)
    assert path is not None
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    path.write_bytes(data[:-3] if damage == "truncate" else data)
    if damage == "no digest":
        path.with_suffix(".pt.sha256").unlink()
    with pytest.raises(DamagedCheckpointError) as caught:
        checkpointed(tmp_path, 20)
    message = str(caught.value)
    assert len(message.splitlines()) <= 3
    assert str(path) in message
    assert sha256_of(path) in message
    assert f"rm '{path}'" in message


def test_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    checkpointed(tmp_path, 14, run="seed 0")
    with pytest.raises(DamagedCheckpointError, match="run 'seed 0' at step 14\nexpected run 'seed 1'"):
        checkpointed(tmp_path, 20, run="seed 1")


@pytest.mark.promise("R3")
def test_kills_at_random_moments_resume_to_the_same_sha(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    killed_and_resumed(tmp_path, 6, record_property)
