import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from descent.data.datasets import Dataset, standardise
from descent.experiments import cifar_resnets
from descent.experiments.cifar_resnets import (
    AugmentedBatches,
    PublishedNetwork,
    ResNetSchedule,
    augment_images,
    error_rate,
    faded_cross_entropy,
    first_images,
    loss_now,
    main,
    memory_format,
    train_resnet,
    train_to_loss,
    training_path_record,
)
from descent.landscape.directions import weight_matrices
from descent.models.flat_weights import flatten
from descent.models.image_networks import Residual, cifar_resnet
from descent.models.published_weights import DIGESTS, ResNetDescription, load_checkpoint, load_training_path
from descent.repro.files import sha256_of, write_json
from descent.repro.machine import autocast
from descent.repro.seeding import torch_generator
from descent.spectra.trajectory import trajectory_plane
from descent.training.checkpoints import DamagedCheckpointError
from descent.training.loop import TrainingPlan, fit

CPU = torch.device("cpu")
TINY = ResNetSchedule(epochs=2, small_epochs=1, batch_size=16, snapshots=5)  # eight steps on 64 images
SHORT = dataclasses.replace(TINY, epochs=3)  # twelve: trainings of fewer than ten are refused
SMALL, SHORTLESS = ResNetDescription(8, "projection"), ResNetDescription(8, "none")


def read(name: str, split: str) -> Dataset:
    assert name == "cifar10"
    generator = torch_generator(0, split)
    targets = torch.arange(64) % 10
    images = torch.rand(64, 3, 8, 8, generator=generator) / 2 + targets[:, None, None, None] / 20
    return Dataset(name, split, images, targets, 10)


def gates(model: nn.Module) -> set[float]:
    return {module.gate for module in model.modules() if isinstance(module, Residual)}


def test_an_augmented_image_is_shifted_by_up_to_four_and_mirrored_half_the_time() -> None:
    image = torch.arange(1.0, 1 + 2 * 6 * 5).reshape(2, 6, 5)
    padded = torch.nn.functional.pad(image, (4, 4, 4, 4))
    possible = {}
    for down in range(9):
        for right in range(9):
            part = padded[:, down : down + 6, right : right + 5]
            for mirrored, shown in ((False, part), (True, part.flip(2))):
                possible[shown.numpy().tobytes()] = (down, right, mirrored)
    augmented = augment_images(image.expand(4000, 2, 6, 5), torch_generator(0, "test"))
    assert augmented.shape == (4000, 2, 6, 5)
    seen = np.array([possible[shown.numpy().tobytes()] for shown in augmented])  # a KeyError: neither shift nor mirror
    for axis in (0, 1):
        counts = np.bincount(seen[:, axis], minlength=9)
        assert ((counts > 350) & (counts < 540)).all()  # 444 expected, standard deviation 20
    assert abs(seen[:, 2].mean() - 0.5) < 0.04


def test_augmentation_is_its_generators() -> None:
    images = read("cifar10", "train").inputs
    first, again, other = (augment_images(images, torch_generator(0, name)) for name in ("a", "a", "b"))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_batch_is_a_function_of_its_step() -> None:
    data = read("cifar10", "train")
    batches, others = (AugmentedBatches(data, TINY, False, CPU) for _ in range(2))
    assert batches.steps == 8
    forwards = [batches(step) for step in range(8)]
    for step in reversed(range(8)):
        assert all(torch.equal(*pair) for pair in zip(others(step), forwards[step], strict=True))
    assert [images.shape for images, _, _ in forwards] == [(16, 3, 4, 4)] * 4 + [(16, 3, 8, 8)] * 4
    for epoch in (forwards[:4], forwards[4:]):
        assert torch.cat([targets for _, targets, _ in epoch]).sort().values.equal(data.targets.sort().values)
    assert not torch.equal(forwards[4][1], forwards[0][1])
    assert not torch.equal(AugmentedBatches(data, dataclasses.replace(TINY, seed=1), False, CPU)(0)[0], forwards[0][0])


def test_a_small_image_is_the_mean_of_four_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar_resnets, "augment_images", lambda images, *_: images)
    data = read("cifar10", "train")
    index = AugmentedBatches(dataclasses.replace(data, targets=torch.arange(64)), TINY, False, CPU)
    for step, half in ((0, True), (7, False)):
        images, numbers, _ = index(step)
        expected = standardise(data)[numbers]
        if half:
            expected = expected.reshape(-1, 3, 4, 2, 4, 2).mean((3, 5))
        torch.testing.assert_close(images, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("fade", "expected"),
    [(0.5, [1, 0.75, 0.5, 0.25, 0, 0, 0, 0]), (1.0, [1 - t / 8 for t in range(8)]), (0.0, [0] * 8)],
)
def test_shortcuts_fade_linearly(fade: float, expected: list[float]) -> None:
    data, schedule = read("cifar10", "train"), dataclasses.replace(TINY, fade=fade)
    fading, lasting = (AugmentedBatches(data, schedule, fades, CPU) for fades in (True, False))
    assert [fading(step)[2].item() for step in range(8)] == expected
    assert [lasting(step)[2].item() for step in range(8)] == [1] * 8
    assert fading(0)[2].shape == (1,)


def test_the_loss_is_cross_entropy_through_weighted_shortcuts() -> None:
    model = cifar_resnet(8, 10, 0, shortcuts="padding").eval()
    images, targets, _ = AugmentedBatches(read("cifar10", "train"), TINY, True, CPU)(0)
    bare = cifar_resnet(8, 10, 0, shortcuts="none").eval()
    for gate, reference in ((0.0, bare), (1.0, cifar_resnet(8, 10, 0, shortcuts="padding").eval())):
        loss = faded_cross_entropy(model, (images, targets, torch.tensor([gate])))
        with autocast(CPU):
            expected = nn.functional.cross_entropy(reference(images).float(), targets)
        assert torch.equal(loss, expected)
    losses = [faded_cross_entropy(model, (images, targets, torch.tensor([gate]))).item() for gate in (0, 0.5, 1)]
    assert len(set(losses)) == 3
    assert gates(model) == {1.0}


def test_the_error_is_that_of_the_standardised_images_and_the_mode_stays() -> None:
    data, reference = read("cifar10", "test"), read("cifar10", "train")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 10)).train()
    predicted = model[1](standardise(data, reference).flatten(1)).argmax(1)
    data = dataclasses.replace(data, targets=torch.where(torch.arange(64) < 40, predicted, (predicted + 5) % 10))
    error = cifar_resnets.error_rate(model, data, reference)
    assert error == pytest.approx(24 / 64, abs=2.5 / 64)  # bfloat16 may turn a close call
    assert model.training


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    for network in (SMALL, SHORTLESS):
        assert train_resnet(network, folder, SHORT, read) == folder / f"{network.name}.safetensors"
    return folder


class StopError(Exception):
    """What stands for a kill."""


@pytest.mark.promise("R3")
@pytest.mark.parametrize("network", [SMALL, SHORTLESS])
def test_an_interrupted_training_goes_on_to_the_same_bits(
    network: ResNetDescription, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def every_third(*settings: Any) -> TrainingPlan:
        return TrainingPlan(*settings[:4], 3, *settings[5:])

    monkeypatch.setattr(cifar_resnets, "TrainingPlan", every_third)
    whole, seen = AugmentedBatches.__call__, []

    def stopping(self: AugmentedBatches, step: int) -> Any:
        seen.append(step)
        if step == 5 and seen.count(5) == 1:
            raise StopError
        return whole(self, step)

    monkeypatch.setattr(AugmentedBatches, "__call__", stopping)
    with pytest.raises(StopError):
        train_resnet(network, tmp_path, SHORT, read)
    assert not (tmp_path / f"{network.name}.safetensors").exists()
    train_resnet(network, tmp_path, SHORT, read)
    again = [0, 0]  # the loss of the first batch tells whether it is the same run
    assert seen == [0, 1, 2, 3, 4, 5, *again, *range(3, 12)]
    (tmp_path / f"{network.name}.safetensors").rename(tmp_path / "first")
    train_resnet(
        network, tmp_path, SHORT, read
    )  # a kill between the last step and the checkpoint: nothing is left to train
    assert seen[-3:] == [11, *again]
    for path in (tmp_path / "first", tmp_path / f"{network.name}.safetensors"):
        assert sha256_of(path) == sha256_of(uninterrupted / f"{network.name}.safetensors")
    record = f"{network.name}-path.npz"
    assert sha256_of(tmp_path / record) == sha256_of(uninterrupted / record)


@pytest.mark.parametrize("fade", [0.5, 1.0, 0.0])
def test_a_network_without_shortcuts_is_measured_without_them(
    fade: float, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []
    monkeypatch.setattr(cifar_resnets, "error_rate", lambda model, *_: measured.append(gates(model)) or 0.5)
    for _ in range(2):  # the second time without a step
        train_resnet(SHORTLESS, tmp_path, dataclasses.replace(SHORT, fade=fade), read)
    train_resnet(SMALL, tmp_path, SHORT, read)
    assert measured == [{0.0}, {0.0}, {1.0}]
    assert {m.shortcuts for m in load_checkpoint(tmp_path, SHORTLESS).model if isinstance(m, Residual)} == {"none"}


def test_a_checkpoint_says_how_it_was_trained(uninterrupted: Path) -> None:
    for network in (SMALL, SHORTLESS):
        checkpoint = load_checkpoint(uninterrupted, network)
        assert checkpoint.about["schedule"] == dataclasses.asdict(SHORT)
        assert len(checkpoint.about["loss_every_50_steps"]) == 1
        assert checkpoint.about["provenance"]["seed"] == 0
        error = cifar_resnets.error_rate(checkpoint.model, read("cifar10", "test"), read("cifar10", "train"))
        assert checkpoint.about["test_error"] == error  # of the very weights in the file
        projected = any("projection" in name for name in checkpoint.model.state_dict())
        assert projected == (network == SMALL)


@pytest.mark.parametrize("network", [SMALL, SHORTLESS])
def test_the_record_of_a_path_is_that_of_its_weights(network: ResNetDescription, uninterrupted: Path) -> None:
    checkpoint = load_checkpoint(uninterrupted, network)
    record = load_training_path(uninterrupted, checkpoint)
    assert record.settings == {"weights_sha256": sha256_of(uninterrupted / f"{network.name}.safetensors")}
    assert record.provenance == checkpoint.about["provenance"]
    start, end = (flatten(weight_matrices(m)) for m in (network.build(0), checkpoint.model))
    gram, steps, plane = (record.values[name] for name in ("gram", "steps", "plane"))
    assert steps.tolist() == [0, 2, 4, 7, 9, 12]
    assert gram.shape == (6, 6)
    assert plane.shape == (2, len(start))
    assert (gram.dtype, plane.dtype) == (np.float64, np.float16)
    assert not gram[-1].any()
    assert not gram[:, -1].any()
    assert gram[0, 0] == pytest.approx(((start - end).double() ** 2).sum().item(), rel=1e-6)
    np.testing.assert_allclose(plane.astype(float) @ plane.T.astype(float), np.eye(2), atol=1e-3)


def swapped(folder: Path) -> None:
    """The path of one network in the place of another's, and its digest along with it."""
    paths = [folder / f"{network.name}-path.npz" for network in (SMALL, SHORTLESS)]
    shutil.copy(paths[1], paths[0])
    digests = json.loads((folder / DIGESTS).read_text())
    write_json(folder / DIGESTS, {**digests, paths[0].name: sha256_of(paths[0])})


@pytest.mark.promise("R4")
def test_a_path_of_another_network_is_refused_by_name(uninterrupted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(uninterrupted, folder)
    path, (own, other) = folder / "resnet8-path.npz", (load_checkpoint(folder, n) for n in (SMALL, SHORTLESS))
    swapped(folder)
    made = f"{path}: made from weights_sha256='{other.sha256}', expected '{own.sha256}'"
    message = f"{made}; make it again: rm -f '{path}'; make checkpoints"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        load_training_path(folder, own)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"resnet8-path\.npz: no such record; to make it: rm -f '.*make check"):
        load_training_path(folder, own)


@pytest.mark.promise("R4")
def test_one_flipped_byte_of_a_path_is_refused_by_name(uninterrupted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(uninterrupted, folder)
    path, checkpoint = folder / "resnet8-path.npz", load_checkpoint(folder, SMALL)
    whole = path.read_bytes()
    for byte in np.linspace(0, len(whole) - 1, 40).astype(int):
        path.write_bytes(whole[:byte] + bytes([whole[byte] ^ 1]) + whole[byte + 1 :])
        with pytest.raises(ValueError, match=r"resnet8-path\.npz is damaged: SHA-256 .*; restore it: git checkout '"):
            load_training_path(folder, checkpoint)


def test_a_path_record_holds_its_plane() -> None:
    rows = np.random.default_rng(0).standard_normal((4, 50)).astype(np.float32)
    record, plane = training_path_record(SMALL, rows, [0, 2, 4, 6]), trajectory_plane(rows)
    assert record.name == "resnet8-path"
    np.testing.assert_array_equal(record.values["gram"], plane.gram)
    np.testing.assert_array_equal(record.values["plane"], plane.directions.astype(np.float16))
    np.testing.assert_array_equal(record.values["steps"], [0, 2, 4, 6])


def test_the_learning_rate_follows_one_cycle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def watched(model: nn.Module, loss: Any, batches: Any, optimizer: Any, plan: TrainingPlan, **recorders: Any) -> Any:
        def batch(step: int) -> Any:
            seen.append({key: optimizer.param_groups[0][key] for key in ("lr", "momentum", "weight_decay", "nesterov")})
            return batches(step)

        return fit(model, loss, batch, optimizer, plan, **recorders)

    monkeypatch.setattr(cifar_resnets, "fit", watched)
    train_resnet(SMALL, tmp_path, dataclasses.replace(SHORT, peak=0.2), read)
    top = 0.2 * 12 - 1  # the step of the peak, between the second and the third
    up = (1 - np.cos(np.pi / top)) / 2
    down = [(1 + np.cos(np.pi * (step - top) / (11 - top))) / 2 for step in range(2, 12)]
    expected = [0.2 / 25, 0.2 / 25 + (0.2 - 0.2 / 25) * up, *(0.2 / 25e4 + (0.2 - 0.2 / 25e4) * s for s in down)]
    np.testing.assert_allclose([group["lr"] for group in seen], expected, rtol=1e-9)
    assert all((group["momentum"], group["weight_decay"], group["nesterov"]) == (0.9, 5e-4, True) for group in seen)


@pytest.mark.parametrize(("epochs", "size", "steps"), [(1, 13, 5), (3, 22, 9)])
def test_a_schedule_too_short_for_a_cycle_is_refused_before_any_compute(
    epochs: int, size: int, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ResNetDescription, "build", lambda *_: pytest.fail("a network was built"))
    sentence = f"epochs={epochs}, batch_size={size}: {steps} steps; expected at least 10, for the learning rate to rise"
    with pytest.raises(ValueError, match=sentence):
        train_resnet(SMALL, tmp_path, dataclasses.replace(SHORT, epochs=epochs, batch_size=size), read)
    assert not list(tmp_path.iterdir())


def test_ten_steps_are_enough(tmp_path: Path) -> None:
    train_resnet(
        SMALL, tmp_path, dataclasses.replace(SHORT, epochs=2, small_epochs=2, batch_size=13), read, progress=False
    )
    assert load_checkpoint(tmp_path, SMALL).about["schedule"]["epochs"] == 2


def test_a_training_stops_at_the_first_look_with_a_loss_low_enough(tmp_path: Path) -> None:
    schedule = dataclasses.replace(SHORT, peak=0.02, precision="float32")
    images = first_images(read("cifar10", "train"), 32)
    looks = {}
    for target in (0.0, 1e9):  # the end, and the first look
        train_to_loss(SMALL, tmp_path / str(target), schedule, target, 32, read=read, every=3, progress=False)
        looks[target] = load_checkpoint(tmp_path / str(target), SMALL)
    assert [looks[target].about["stopped"]["step"] for target in (0.0, 1e9)] == [12, 3]
    for target, found in looks.items():
        kept = found.about["stopped"]
        assert kept["loss"] == pytest.approx(loss_now(found.model, images), rel=1e-5)
        assert (kept["target"], kept["images"]) == (target, 32)
        assert found.about["test_error"] == error_rate(
            found.model, read("cifar10", "test"), read("cifar10", "train"), "float32"
        )
    train_resnet(SMALL, tmp_path / "whole", schedule, read)
    whole = load_checkpoint(tmp_path / "whole", SMALL).model
    assert all(map(torch.equal, whole.state_dict().values(), looks[0.0].model.state_dict().values()))
    first, last = (looks[target].about["stopped"]["loss"] for target in (1e9, 0.0))
    between = (first + last) / 2
    train_to_loss(SMALL, tmp_path / "between", schedule, between, 32, read=read, every=1, progress=False)
    step = load_checkpoint(tmp_path / "between", SMALL).about["stopped"]["step"]
    assert 3 < step <= 12
    assert not (tmp_path / "between" / "resnet8-path.npz").exists()


def test_a_network_whose_shortcuts_fade_is_not_stopped(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="resnet8-noshort: its shortcuts would still be fading"):
        train_to_loss(SHORTLESS, tmp_path, SHORT, 1.0, 32, read=read)
    assert not list(tmp_path.iterdir())


def test_a_killed_run_goes_on_to_its_own_target_alone(tmp_path: Path) -> None:
    schedule = dataclasses.replace(SHORT, precision="float32")
    stop = partial(train_to_loss, SMALL, tmp_path, schedule, read=read, every=3, progress=False)
    stop(0.0, 32)
    first = load_checkpoint(tmp_path, SMALL)
    stop(0.0, 32)  # as if it had been killed after its last step: no look is left
    again = load_checkpoint(tmp_path, SMALL)
    assert (again.sha256, again.about["stopped"]) == (first.sha256, first.about["stopped"])
    for other in ((1e9, 32), (0.0, 64)):
        with pytest.raises(DamagedCheckpointError, match=r"to 0\.0 on 32 images, every 3 steps"):
            stop(*other)


@pytest.mark.parametrize(("given", "said"), [
    ({"images": 0}, "images=0: expected at least 1"), ({"images": 65}, "images=65: expected at most the 64 of cifar10"),
    ({"every": 0}, "every=0: expected at least 1"), ({"target": float("nan")}, "target=nan: expected a loss in nats"),
])  # fmt: skip
def test_where_to_stop_is_refused_by_name(given: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        train_to_loss(SMALL, tmp_path, SHORT, **{"target": 1.0, "images": 32, "every": 3, **given}, read=read)
    assert not list(tmp_path.iterdir())


def test_the_loss_now_is_in_evaluation_mode_and_leaves_the_mode() -> None:
    model, (inputs, targets) = cifar_resnet(8, 10, 0), first_images(read("cifar10", "train"), 64)
    model.train()
    loss = loss_now(model, (inputs.repeat(5, 1, 1, 1), targets.repeat(5)))  # 320: a part of 250 and one of 70
    assert model.training
    assert loss == pytest.approx(nn.functional.cross_entropy(model.eval()(inputs), targets).item(), rel=1e-5)


def test_published_networks_have_folders_and_names_of_their_own(tmp_path: Path) -> None:
    stopped, whole = PublishedNetwork(SMALL, "stopped"), PublishedNetwork(SMALL)
    assert [each.name for each in (whole, stopped)] == ["resnet8", "resnet8-stopped"]
    folder = tmp_path / "data" / "checkpoints"
    assert [each.folder(tmp_path) for each in (whole, stopped)] == [folder, folder / "stopped"]


def test_networks_without_shortcuts_have_half_the_peak() -> None:
    assert [ResNetSchedule.of(ResNetDescription(20, shortcuts)).peak for shortcuts in ("projection", "none")] == [
        0.1,
        0.05,
    ]
    assert ResNetSchedule.of(ResNetDescription(20, "none"), peak=0.3, epochs=3) == ResNetSchedule(peak=0.3, epochs=3)


Trained = list[tuple[str, Path, int]]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Trained:
    """What `main` has trained: name, folder and seed, or for a stopped network its target in hundredths."""
    calls: Trained = []

    def whole(network: ResNetDescription, folder: Path, schedule: ResNetSchedule) -> Path:
        assert schedule == ResNetSchedule.of(network, seed=schedule.seed)
        calls.append((network.name, folder, schedule.seed))
        return folder

    def part(network: ResNetDescription, folder: Path, schedule: ResNetSchedule, target: float, images: int) -> Path:
        assert (schedule, images) == (PublishedNetwork(network, "stopped").schedule(), 500)
        calls.append((network.name, folder, round(100 * target)))
        return folder

    def load(folder: Path, network: ResNetDescription) -> Any:
        assert (folder, network.shortcuts) == (folder.parent / "checkpoints", "none")
        return SimpleNamespace(model=network.depth)

    monkeypatch.setattr(cifar_resnets, "train_resnet", whole)
    monkeypatch.setattr(cifar_resnets, "train_to_loss", part)
    monkeypatch.setattr(cifar_resnets, "load_checkpoint", load)
    monkeypatch.setattr(cifar_resnets, "load_dataset", lambda name: read(name, "train"))
    monkeypatch.setattr(cifar_resnets, "loss_now", lambda depth, images: depth / 100)
    monkeypatch.setattr(cifar_resnets, "first_images", lambda data, count: first_images(data, min(count, len(data))))
    return calls


def test_main_trains_what_is_not_there(trained: Trained, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "checkpoints"
    (folder / "stopped").mkdir(parents=True)
    for name in ("resnet110", "resnet20-noshort"):
        (folder / f"{name}.safetensors").touch()
        (folder / f"{name}-path.npz").touch()
    (folder / "resnet56.safetensors").touch()  # without the path of its training
    (folder / "stopped" / "resnet56.safetensors").touch()  # which has none
    main(["--root", str(tmp_path)])
    names = ["resnet110-noshort", "resnet56", "resnet56-noshort", "resnet20"]
    expected = [(name, folder, 0) for name in names] + [("resnet110", folder / "stopped", 110)]
    assert trained == expected + [(name, folder / "second", 1) for name in ("resnet20", "resnet20-noshort")]
    trained.clear()
    main(["resnet20", "resnet20-noshort", "resnet110-stopped", "--root", str(tmp_path)])
    assert trained == [("resnet20", folder, 0), ("resnet110", folder / "stopped", 110)]


def test_main_refuses_an_unknown_network(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["resnet9"])
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert "invalid choice: 'resnet9'" in message
    assert "resnet110-noshort" in message
    assert not trained


@pytest.mark.parametrize(
    ("width", "shortcuts", "expected"),
    [
        (16, "projection", torch.channels_last),
        (8, "projection", torch.contiguous_format),
        (4, "projection", torch.contiguous_format),
        (4, "none", torch.channels_last),
        (4, "padding", torch.channels_last),
    ],
)
def test_narrow_projections_are_not_trained_channels_last(width: int, shortcuts: Any, expected: object) -> None:
    assert memory_format(cifar_resnet(8, 10, 0, shortcuts=shortcuts, width=width)) == expected


NARROW = """
import sys
from pathlib import Path
from descent.models.published_weights import ResNetDescription
from descent.experiments.cifar_resnets import ResNetSchedule, train_resnet
from descent.repro.seeding import deterministic
options = {"dataset": "digits", "small_epochs": 0, "shift": 1, "mirror": False, "precision": "float32", "epochs": 7}
with deterministic():
    network = ResNetDescription(20, "projection", 4, 1)
    train_resnet(network, Path(sys.argv[1]), ResNetSchedule(**options, batch_size=64), progress=False)
"""


def test_a_narrow_network_trains_without_damage_to_memory(tmp_path: Path) -> None:
    """Channels last, a process that takes these 160 steps ends by a signal where the processor has AVX2 only."""
    done = subprocess.run([sys.executable, "-c", NARROW, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "resnet20.safetensors").is_file()
