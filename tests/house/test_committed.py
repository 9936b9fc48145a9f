"""What `data/` holds of weights and records belongs together and is what the library would make."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from descent.experiments.cifar_resnets import NETWORKS, PLANE_LIMIT, ResNetSchedule
from descent.landscape.directions import weight_matrices
from descent.models.published_weights import ResNetDescription, load_checkpoint
from descent.repro.records import Record
from descent.spectra.trajectory import principal_path

CHECKPOINTS = Path(__file__).parents[2] / "data" / "checkpoints"
THERE = [network for network in NETWORKS if (CHECKPOINTS / f"{network.name}.safetensors").is_file()]


def test_the_deep_networks_are_there() -> None:
    assert {network for network in NETWORKS if network.depth > 20} <= set(THERE)
    assert {path.stem for path in CHECKPOINTS.glob("*.safetensors")} == {network.name for network in THERE}


@pytest.mark.parametrize("network", THERE, ids=lambda network: network.name)
def test_weights_are_whole_and_say_how_they_were_made(network: ResNetDescription) -> None:
    found = load_checkpoint(CHECKPOINTS, network)
    kept = found.about["schedule"]  # of an earlier library some lack options that have come since
    assert {"epochs", "small_epochs", "fade", "peak", "seed"} <= set(kept)
    assert kept.items() <= dataclasses.asdict(ResNetSchedule.of(network)).items()
    assert 0.05 < found.about["test_error"] < 0.6  # learnt, and not better than the source
    assert found.about["loss_every_50_steps"][0] > found.about["loss_every_50_steps"][-1]
    assert found.about["provenance"]["torch"]
    for weight in found.model.parameters():
        assert torch.equal(weight, weight.half().float())  # as rounded before its error was measured
    assert found.model(torch.zeros(1, 3, 32, 32)).isfinite().all()


@pytest.mark.parametrize("network", THERE, ids=lambda network: network.name)
def test_paths_end_at_the_weights(network: ResNetDescription) -> None:
    record = Record.load(CHECKPOINTS / f"{network.name}-path.npz")
    size = sum(part.numel() for part in weight_matrices(load_checkpoint(CHECKPOINTS, network).model).values())
    gram, steps = record.values["gram"], record.values["steps"]
    assert gram.shape == (41, 41) == (len(steps), len(steps))
    assert np.all(np.diff(steps) > 0)
    assert np.all(gram[-1] == 0)  # products are of the points less the last
    assert 0.5 < principal_path(gram, 1)[1][0] < 1
    if size <= PLANE_LIMIT:
        plane = record.values["plane"].astype(float)
        assert plane.shape == (2, size)
        np.testing.assert_allclose(plane @ plane.T, np.eye(2), atol=1e-3)
    else:
        assert "plane" not in record.values
