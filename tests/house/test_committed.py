"""What `data/` holds of weights and records belongs together and is what the library would make."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from descent.data.datasets import Dataset
from descent.experiments.cifar_resnets import (
    CURVATURE_IMAGES,
    IMAGES,
    NETWORKS,
    PLANE_LIMIT,
    SIDES,
    ResNetSchedule,
    plane_record_path,
    plane_sources,
)
from descent.experiments.grokking import ModularExperiment
from descent.experiments.grokking_records import STEPS, read_record
from descent.experiments.grokking_removal import read_removal, removal_experiments
from descent.experiments.induction_heads import InductionExperiment
from descent.landscape.directions import weight_matrices
from descent.models.published_weights import ResNetDescription, load_checkpoint, load_training_path
from descent.repro.records import Record, record_path
from descent.spectra.trajectory import principal_path

ROOT = Path(__file__).parents[2]
CHECKPOINTS = ROOT / "data" / "checkpoints"
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
    checkpoint = load_checkpoint(CHECKPOINTS, network)
    record = load_training_path(CHECKPOINTS, checkpoint)
    assert record.provenance == checkpoint.about["provenance"]
    size = sum(part.numel() for part in weight_matrices(checkpoint.model).values())
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


@pytest.mark.parametrize("network", THERE, ids=lambda network: network.name)
def test_records_of_planes_are_of_these_weights_and_todays_directions(network: ResNetDescription) -> None:
    checkpoint = load_checkpoint(CHECKPOINTS, network)
    nothing = Dataset("cifar10", "train", torch.zeros(IMAGES, 1), torch.zeros(IMAGES), 10)
    planes = [("curvature", 0, CURVATURE_IMAGES), *(("surface", seed, IMAGES) for seed in SIDES if network.depth > 20)]
    for kind, seed, count in planes:
        sources = plane_sources(checkpoint, nothing, count, seed)
        del sources["images_sha256"]  # the images are no part of the repository
        record = Record.load(plane_record_path(ROOT, network, kind, seed), **sources)
        assert len(record.settings["images_sha256"]) == 64


def test_records_of_runs_are_of_the_experiments_that_would_be_trained_today() -> None:
    for chapter, names in {"grokking": ["others", "times"], "grokking_basins": ["undecayed"]}.items():
        for name in [*names, *(f"seed-{seed}" for seed in STEPS)]:
            assert read_record(ROOT, chapter, name, ModularExperiment()).name == name
    Record.load(record_path(ROOT, "grokking_basins", "induction"), **dataclasses.asdict(InductionExperiment()))


def test_records_of_removals_are_of_the_experiments_that_would_be_trained_today() -> None:
    base = ModularExperiment()
    paths = {name: record_path(ROOT, "grokking_basins", name) for name in removal_experiments(base)}
    found = [read_removal(ROOT, name, base) for name, path in paths.items() if path.is_file()]
    assert len(found) in (0, len(paths))  # all of them, once they are made
    for record in found:
        assert len(record.values["looks"]) == len(record.values["test_loss mean"]) == 75
        assert np.isfinite(record.values["test_loss mean"]).all()


def test_both_chapters_records_of_a_seed_are_of_one_run() -> None:
    for seed in STEPS:
        curves, grams = (
            read_record(ROOT, chapter, f"seed-{seed}", ModularExperiment())
            for chapter in ("grokking", "grokking_basins")
        )
        np.testing.assert_allclose(np.diag(grams.values["weights"]), curves.values["squares"], rtol=1e-6)
