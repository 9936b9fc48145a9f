"""Controls of the progress measures, against the library's own and numbers on paper; and their records."""

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from descent.data.group_tables import modular_task, split_pairs
from descent.experiments import grokking_controls, grokking_records
from descent.experiments.grokking import GrokkingRun, ModularExperiment, train_modular_transformer
from descent.experiments.grokking_controls import (
    area_below_constant,
    course_to_the_drop,
    embedding_film,
    grid_points,
    make_control_records,
    make_grid_records,
    mean_by_sum,
    mirrored_pairs,
    random_sets,
    read_control_record,
    restricted_to_sets,
)
from descent.experiments.grokking_measures import progress_measures, train_and_test_losses
from descent.repro.records import record_path
from descent.repro.seeding import deterministic
from descent.spectra.fourier_modulo_p import restricted_logits

SMALL = partial(ModularExperiment, p=13, fraction=0.5, width=16, heads=2, hidden=24, every=10)


@pytest.fixture(scope="module")
def run() -> GrokkingRun:
    with deterministic(1):
        return train_modular_transformer(SMALL(steps=40))


def test_a_restricted_network_is_a_table_of_sums() -> None:
    p, draw = 7, torch.Generator().manual_seed(0)
    logits, sets = (
        torch.randn(p * p, p, generator=draw, dtype=torch.float64),
        torch.eye(3).double()[[0, 2]] + torch.eye(3).double()[[1, 1]],
    )
    a, b = torch.arange(p).repeat_interleave(p), torch.arange(p).repeat(p)
    losses, right = restricted_to_sets(mean_by_sum(logits), sets)
    for number, frequencies in enumerate(([1, 2], [2, 3])):
        whole = restricted_logits(logits, frequencies)
        assert losses[number].item() == pytest.approx(cross_entropy(whole, (a + b) % p).item(), rel=1e-12)
        assert right[number].item() == pytest.approx((whole.argmax(1) == (a + b) % p).double().mean().item())
    with pytest.raises(ValueError, match=r"\(49, 6\): expected \(p \* p, p\)"):
        mean_by_sum(logits[:, :6])


def test_a_table_known_by_heart_is_right_at_any_frequency() -> None:
    """The leak that random sets measure: a bump at the shown answers, and nothing else."""
    task = modular_task("addition", 31)
    train, _ = split_pairs(len(task), 0.4, 0)
    logits = torch.zeros(len(task), 31)
    logits[train, task.targets[train]] = 20.0
    _, right = restricted_to_sets(mean_by_sum(logits), random_sets([1, 2, 3, 4], 31, 0, 20))
    assert right.mean() > 0.7  # chance is 0.03


def test_the_area_of_a_constant_is_none_and_that_of_certainty_all() -> None:
    assert area_below_constant(np.full(5, math.log(11)), 11) == pytest.approx(0)
    assert area_below_constant(np.array([0.0, 0.0]), 11) == 1
    assert area_below_constant(np.array([50.0, 0.5 * math.log(11)]), 11) == pytest.approx(0.25)  # not below zero
    assert area_below_constant(np.ones((4, 3)), 11).shape == (3,)


def test_random_sets_have_as_many_frequencies_and_no_key() -> None:
    sets = random_sets([2, 5], 23, 0, 200)
    assert sets.shape == (200, 11)
    assert (sets.sum(1) == 2).all()
    assert (sets[:, [1, 4]] == 0).all()
    assert (sets.sum(0)[[0, 2, 3, 5]] > 10).all()
    assert not torch.equal(sets, random_sets([2, 5], 23, 1, 200))
    assert random_sets([], 23, 0, 3).sum() == 0
    assert (random_sets([1, 2, 3], 11, 0, 3).sum(1) == 2).all()  # no more are left


def test_a_mirror_image_gives_away_what_is_the_same_both_ways_round() -> None:
    for name, share in (("addition", 0.5), ("squares", 0.5), ("subtraction", 0.0), ("division", 0.0), ("s5", 0.0)):
        task = modular_task(name, 31)
        train, test = split_pairs(len(task), 0.5, 0)
        mirrored, away = mirrored_pairs(task, train)
        assert mirrored[test].mean() == pytest.approx(0.5, abs=0.06)
        assert away[test].mean() == pytest.approx(share, abs=0.06)
    small = modular_task("subtraction", 3)
    mirrored, away = mirrored_pairs(small, torch.tensor([1, 4]))  # (0, 1) and (1, 1)
    assert np.flatnonzero(mirrored).tolist() == [3]  # (1, 0); (1, 1) is no mirror image of itself
    assert not away.any()


def test_a_course_agrees_with_the_progress_measures(run: GrokkingRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grokking_controls, "AT_ONCE", 7)
    with deterministic(1):
        course = course_to_the_drop(run, [1, 3], [2], 0)
        measures = progress_measures(run, {"key": [1, 3], "other seed": [2]})
        losses = train_and_test_losses(run, run.stack.rows)
    assert course["steps"].tolist() == [0, 10, 20, 30]
    assert course["span"].tolist() == [3, 3]  # it has neither memorised nor generalised
    for name in ("restricted_loss", "restricted_accuracy"):
        for which in ("key", "other seed"):
            np.testing.assert_allclose(course[f"{name} {which}"], measures[f"{name} {which}"], rtol=1e-9)
    np.testing.assert_array_equal(course["test_loss"], losses["test_loss"])
    assert course["random_loss"].shape == (4, 3)
    assert (np.diff(course["random_loss"], axis=1) >= 0).all()
    assert course["random_areas"].shape == course["random_means"].shape == (1000,)
    mirrored, _ = mirrored_pairs(run.task, run.train)
    test = run.test.numpy()
    right = (run.logits(run.stack.rows[3]).argmax(1) == run.task.targets).numpy()
    assert course["mirrored"][3] == right[test[mirrored[test]]].mean()
    assert course["alone"][3] == right[test[~mirrored[test]]].mean()


def test_a_film_has_the_ring_of_the_last_embedding(run: GrokkingRun) -> None:
    film = embedding_film(run, [2, 5], frames=3)
    assert film["frames"].tolist() == [0, 20, 30]
    assert film["rings"].shape == (3, 2, 13, 2)
    embedding = run.at(run.stack.rows[2]).W_E.detach().double().numpy()[:, :13]
    last = run.model.W_E.detach().double().numpy()[:, :13]
    angle = 2 * np.pi * 2 * np.arange(13) / 13
    plane = last @ np.stack([np.cos(angle), np.sin(angle)], 1)
    shadow = np.linalg.lstsq(plane, embedding, rcond=None)[0]  # the same plane by other axes
    np.testing.assert_allclose(np.linalg.norm(plane @ shadow, axis=0), np.linalg.norm(film["rings"][1, 0], axis=1))
    losses = train_and_test_losses(run, run.stack.rows[[0, 2, 3]])
    np.testing.assert_allclose(film["film"][:, 1], losses["test_loss"])
    assert embedding_film(run, [])["rings"].shape[1] == 0


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DESCENT_CORES", "1")
    monkeypatch.setattr(grokking_controls, "ModularExperiment", SMALL)
    for name, value in {
        "CONTROL_SEEDS": (0, 1), "CONTROL_STEPS": 30, "LIMIT": 40, "LOOK_EVERY": 20, "FRAMES": 3,
        "DECAY_GRID": ((0.5,), (1.0, 0.5), (0,)), "TABLES": (("addition", "subtraction"), (0.6,), (0,)),
    }.items():  # fmt: skip
        monkeypatch.setattr(grokking_controls, name, value)
    return tmp_path


@pytest.mark.promise("R4")
def test_records_are_made_once_and_those_of_another_experiment_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_control_records(project)
    make_grid_records(project, "")
    record = read_control_record(project, "controls-1", SMALL())
    assert record.values["steps"].tolist() == [0, 10, 20]
    assert record.values["rings"].shape[1] == len(record.settings["sets"]["key"])
    decays = read_control_record(project, "decays", SMALL())
    assert decays.values["points"].tolist() == [[0.5, 1.0, 0.0], [0.5, 0.5, 0.0]]
    tables = read_control_record(project, "operations", SMALL())
    assert len(tables.values["generalised"]) == len(grid_points("operations", SMALL())) == 2

    def refuse(*_: object, **__: object) -> None:
        raise ZeroDivisionError("nothing is to be trained")

    monkeypatch.setattr(grokking_records, "sweep", refuse)
    with monkeypatch.context() as patched:
        patched.setattr(grokking_controls, "train_or_load", refuse)
        make_control_records(project)
        make_grid_records(project, "")
    for name in ("controls-0", "decays", "operations"):
        with pytest.raises(ValueError, match=rf"{name}\.npz: made from .*make records CHAPTER=grokking$"):
            read_control_record(project, name, SMALL(learning_rate=2e-3))
    path = record_path(project, "grokking", "controls-0")
    kept = path.read_bytes()
    path.unlink()
    monkeypatch.setattr("torch.optim.AdamW.step", refuse)
    make_control_records(project)  # from the run in `_build/runs`, as after a kill while it was measured
    assert path.read_bytes() == kept
