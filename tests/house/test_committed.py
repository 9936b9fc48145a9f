"""What `data/` holds of weights and records belongs together and is what the library would make."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from descent.data.datasets import Dataset
from descent.experiments.cifar_resnets import PLANE_LIMIT, PUBLISHED, PublishedNetwork
from descent.experiments.grokking import ModularExperiment
from descent.experiments.grokking_grids import control_and_grid_names, read_control_record
from descent.experiments.grokking_records import STEPS, read_record
from descent.experiments.grokking_removal import read_removal, removal_experiments
from descent.experiments.induction_heads import InductionExperiment
from descent.experiments.landscape_records import (
    CURVATURE_IMAGES,
    IMAGES,
    SIDES,
    plane_record_path,
    plane_sources,
)
from descent.landscape.directions import weight_matrices
from descent.models.published_weights import load_training_path
from descent.repro.records import Record, record_path
from descent.spectra.trajectory import principal_path

ROOT = Path(__file__).parents[2]
CHECKPOINTS = ROOT / "data" / "checkpoints"
WHOLE = [each for each in PUBLISHED if each.group != "stopped"]


def test_the_networks_are_there_and_no_others() -> None:
    expected = {each.folder(ROOT) / f"{each.network.name}.safetensors" for each in PUBLISHED}
    assert {path for path in CHECKPOINTS.rglob("*.safetensors") if ".work" not in path.parts} == expected


@pytest.mark.parametrize("each", PUBLISHED, ids=lambda each: each.name)
def test_weights_are_whole_and_say_how_they_were_made(each: PublishedNetwork) -> None:
    found = each.load(ROOT)
    kept = found.about["schedule"]  # of an earlier library some lack options that have come since
    assert {"epochs", "small_epochs", "fade", "peak", "seed"} <= set(kept)
    assert kept.items() <= dataclasses.asdict(each.schedule()).items()
    assert 0.05 < found.about["test_error"] < 0.65  # learnt, and not better than the source
    assert found.about["provenance"]["torch"]
    if each.group == "stopped":
        stopped = found.about["stopped"]
        assert 0 < stopped["step"] < 391 * kept["epochs"]
        assert stopped["loss"] == pytest.approx(stopped["target"], rel=0.1)
    else:
        assert found.about["loss_every_50_steps"][0] > found.about["loss_every_50_steps"][-1]
    for weight in found.model.parameters():
        assert torch.equal(weight, weight.half().float())  # as rounded before its error was measured
    assert found.model(torch.zeros(1, 3, 32, 32)).isfinite().all()


@pytest.mark.parametrize("each", WHOLE, ids=lambda each: each.name)
def test_paths_end_at_the_weights(each: PublishedNetwork) -> None:
    checkpoint = each.load(ROOT)
    record = load_training_path(each.folder(ROOT), checkpoint)
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


@pytest.mark.parametrize("each", PUBLISHED, ids=lambda each: each.name)
def test_records_of_planes_are_of_these_weights_and_todays_directions(each: PublishedNetwork) -> None:
    checkpoint = each.load(ROOT)
    nothing = Dataset("cifar10", "train", torch.zeros(IMAGES, 1), torch.zeros(IMAGES), 10)
    planes = [("curvature", 0, CURVATURE_IMAGES)] * (each.group == "")
    planes += [("surface", seed, IMAGES) for seed in SIDES if each.group != "second"]
    for kind, seed, count in planes:
        sources = plane_sources(checkpoint, nothing, count, seed)
        del sources["images_sha256"]  # the images are no part of the repository
        record = Record.load(plane_record_path(ROOT, each, kind, seed), **sources, precision="float32")
        assert len(record.settings["images_sha256"]) == 64


def test_records_of_runs_are_of_the_experiments_that_would_be_trained_today() -> None:
    for chapter, names in {"grokking": ["others"], "grokking_basins": ["undecayed"]}.items():
        for name in [*names, *(f"seed-{seed}" for seed in STEPS)]:
            assert read_record(ROOT, chapter, name, ModularExperiment()).name == name
    Record.load(record_path(ROOT, "grokking_basins", "induction"), **dataclasses.asdict(InductionExperiment()))


@pytest.mark.parametrize("name", control_and_grid_names())
def test_records_of_controls_and_short_runs_are_of_the_experiments_that_would_be_trained_today(name: str) -> None:
    record = read_control_record(ROOT, name, ModularExperiment())
    if "looks" in record.values:
        assert np.isfinite(record.values["looks"][:, 0]).all()  # each run was looked at
    else:
        assert len(record.values["steps"]) == len(record.values["test loss key"]) == 150


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
