"""The records of runs: made of what the chapters call live, resumable, made once."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from descent.experiments import grokking_records, grokking_removal
from descent.experiments.grokking import ModularExperiment, train_modular_transformer
from descent.experiments.grokking_measures import GeneralisationTimes, progress_measures, train_and_test_losses
from descent.experiments.grokking_records import (
    frequency_sets,
    key_frequencies_of_run,
    make_grokking,
    measure_curves,
    measure_spectra,
    read_record,
    recompute_memorised,
    recompute_start,
    recorded_experiments,
    train_or_load,
)
from descent.experiments.grokking_removal import make_grokking_basins, read_removal
from descent.experiments.induction_heads import InductionExperiment
from descent.repro.records import Record, record_path
from descent.repro.seeding import deterministic
from descent.spectra.singular_values import gram_matrix, singular_spectrum

SMALL = partial(ModularExperiment, p=13, fraction=0.5, width=16, heads=2, hidden=24, every=10)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DESCENT_CORES", "1")
    for name, value in {
        "ModularExperiment": SMALL,
        "STEPS": {0: 40, 1: 30},
        "COMPONENTS": 2,
        "InductionExperiment": partial(
            InductionExperiment, vocabulary=8, length=12, block=3, width=8, batch_size=4, steps=4, every=2
        ),
        "LIMIT": 40,
        "LOOK_EVERY": 20,
        "OPERATIONS": ("subtraction", "squares"),
    }.items():
        monkeypatch.setattr(grokking_records, name, value)
        if hasattr(grokking_removal, name):
            monkeypatch.setattr(grokking_removal, name, value)
    return tmp_path


def make_all(root: Path) -> None:
    make_grokking(root, "")
    make_grokking_basins(root, "")


def test_sets_are_disjoint_and_drawn_by_the_seed() -> None:
    sets = frequency_sets([3, 5], [5, 9, 1], 23, 0)
    assert sets["key"] == [3, 5]
    assert sets["other seed"] == [1, 9]
    assert len(sets["random"]) == 2
    assert not {3, 5} & set(sets["random"])
    assert sets == frequency_sets([3, 5], [5, 9, 1], 23, 0)
    drawn = {tuple(frequency_sets([3, 5], [], 23, seed)["random"]) for seed in range(20)}
    assert len(drawn) > 5
    assert {number for pair in drawn for number in pair} <= set(range(1, 12)) - {3, 5}
    assert frequency_sets([1, 2], [], 7, 0)["random"] == [3]


def test_what_the_chapters_take_from_a_run() -> None:
    with deterministic(1):
        run = train_modular_transformer(SMALL(steps=40))
        curves = measure_curves(run, {"key": [1, 3]})
        deeper = measure_spectra(run, 2)
    assert curves["steps"].tolist() == [0, 10, 20, 30]
    assert np.array_equal(curves["final"], run.final())
    for name, values in {
        **train_and_test_losses(run, run.stack.rows),
        **progress_measures(run, {"key": [1, 3]}),
    }.items():
        np.testing.assert_array_equal(curves[name], values)
    rows = run.stack.rows
    np.testing.assert_allclose(deeper["weights"], gram_matrix(rows))
    for name in ("weights", "logits", "gradients", "batch gradients"):
        assert deeper[name].shape == (4, 4)
    assert not np.allclose(deeper["gradients"], deeper["batch gradients"])
    assert deeper["gradient frequencies"].shape == (4, 6)
    assert deeper["raw frequencies"].shape == (2, 6)
    assert deeper["centred frequencies"].shape == (2, 6)
    assert not np.allclose(deeper["raw frequencies"], deeper["centred frequencies"])
    vector = singular_spectrum(gram_matrix(rows)).right(rows, 1)[:, 0]
    table = vector[run.stack.layout.slices()["W_E"]].reshape(16, 14)[:, :13]
    whole = np.square(table - table.mean(1, keepdims=True)).sum()
    assert np.square(deeper["raw frequencies"][0]).sum() == pytest.approx(whole, rel=1e-6)


def test_records_are_made_once_and_again_from_the_kept_runs(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_all(project)
    run, next_run = (train_or_load(SMALL(steps=steps, seed=seed), project) for seed, steps in enumerate((40, 30)))
    record = Record.load(record_path(project, "grokking", "seed-0"))
    assert record.settings["experiment"] == SMALL(steps=40, seed=0).digest()
    sets = frequency_sets(key_frequencies_of_run(run), key_frequencies_of_run(next_run), 13, 0)
    assert record.settings["sets"] == sets
    np.testing.assert_array_equal(record.values["test_loss"], train_and_test_losses(run, run.stack.rows)["test_loss"])
    assert Record.load(record_path(project, "grokking_basins", "seed-1")).values["weights"].shape == (3, 3)
    first = {path: path.read_bytes() for path in project.glob("data/records/*/*.npz")}
    assert len(first) == 10
    undecayed, removal = (
        Record.load(record_path(project, "grokking_basins", name)) for name in ("removal-undecayed", "removal-0")
    )
    assert "direction" in removal.values
    assert "direction" not in undecayed.values
    assert removal.settings["key"] == key_frequencies_of_run(train_or_load(SMALL(steps=40, seed=0), project))
    assert removal.values["test_accuracy zero"].shape == removal.values["looks"].shape
    copying = Record.load(record_path(project, "grokking_basins", "induction"))
    assert copying.values["gram"].shape == (3, 3)
    others = Record.load(record_path(project, "grokking", "others"))
    assert others.settings["tasks"] == ["subtraction", "squares"]
    alone = GeneralisationTimes((SMALL(task="squares", steps=40, every=20),))
    with deterministic(1):
        expected = alone(np.array([[0.0]]))
    assert {name: values[1:].tolist() for name, values in others.values.items()} == {
        name: values.tolist() for name, values in expected.items()
    }

    def refuse(*_: object, **__: object) -> None:
        raise ZeroDivisionError("nothing is to be trained")

    monkeypatch.setattr("descent.training.loop.nn.Module.zero_grad", refuse, raising=False)
    monkeypatch.setattr(grokking_records, "sweep", refuse)
    make_all(project)  # all there
    lost = record_path(project, "grokking", "seed-1")
    lost.unlink()
    make_all(project)  # from the kept weights
    assert lost.read_bytes() == first[lost]
    undecayed = Record.load(record_path(project, "grokking_basins", "undecayed"))
    assert undecayed.values["weights"].shape == undecayed.values["logits"].shape == (4, 4)
    assert undecayed.values["train_loss"][0] == record.values["train_loss"][0]
    assert undecayed.values["train_loss"][3] != record.values["train_loss"][3]


def test_a_record_of_another_set_up_is_made_again(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_all(project)
    old = {path.name: path.read_bytes() for path in project.glob("data/records/*/*.npz")}
    monkeypatch.setattr(grokking_records, "STEPS", {0: 40, 1: 50})
    monkeypatch.setattr(grokking_records, "OPERATIONS", ("subtraction", "division"))
    make_all(project)
    new = {path.name: path.read_bytes() for path in project.glob("data/records/*/*.npz")}
    assert {name for name in old if old[name] != new[name]} == {"seed-0.npz", "seed-1.npz", "others.npz"}
    monkeypatch.setattr(grokking_removal, "LIMIT", 50)
    make_grokking_basins(project, "")
    for name in ("removal-0", "removal-1", "removal-undecayed"):
        path = record_path(project, "grokking_basins", name)
        assert path.read_bytes() != old[path.name]
        assert Record.load(path).values["steps"].tolist() == [0, 10, 20, 30, 40]
    assert Record.load(record_path(project, "grokking", "seed-1")).values["steps"].tolist() == [0, 10, 20, 30, 40]


@pytest.mark.promise("R4")
def test_a_record_of_another_experiment_is_refused_by_name(project: Path) -> None:
    make_all(project)
    names = ["seed-0", "seed-1", "others"]
    places = [("grokking", name) for name in names] + [("grokking_basins", "seed-1"), ("grokking_basins", "undecayed")]
    for chapter, name in places:
        assert read_record(project, chapter, name, SMALL()).name == name
        pattern = (
            rf"{name}\.npz: made from experiments?=.*, expected .*; make it again: make records CHAPTER={chapter}$"
        )
        with pytest.raises(ValueError, match=pattern):
            read_record(project, chapter, name, SMALL(learning_rate=2e-3))
    for name in ("removal-0", "removal-undecayed"):
        assert read_removal(project, name, SMALL()).name == name
        with pytest.raises(
            ValueError, match=rf"{name}\.npz: made from experiment=.*: make records CHAPTER=grokking_basins$"
        ):
            read_removal(project, name, SMALL(learning_rate=2e-3))
    path, other = (record_path(project, "grokking", f"seed-{seed}") for seed in (0, 1))
    path.write_bytes(other.read_bytes())
    found, wanted = SMALL(steps=30, seed=1).digest(), SMALL(steps=40, seed=0).digest()
    with pytest.raises(ValueError, match=rf"seed-0\.npz: made from experiment='{found}', expected '{wanted}'"):
        read_record(project, "grokking", "seed-0", SMALL())


def changed(record: Record, name: str, at: tuple[int, ...]) -> Record:
    values = {key: np.array(value) for key, value in record.values.items()}
    values[name][at] *= 1.5
    return replace(record, values=values)


def test_a_recheck_sees_a_wrong_number_in_its_part(project: Path) -> None:
    make_all(project)
    for chapter, name, values in (
        ("grokking", "seed-1", ["train_loss", "test_loss"]),
        ("grokking_basins", "seed-1", ["weights", "logits"]),
        ("grokking_basins", "undecayed", ["train_loss", "test_loss", "weights", "logits"]),
    ):
        record = read_record(project, chapter, name, SMALL())
        (experiment, *_) = recorded_experiments(name, SMALL())
        with deterministic(1):
            assert recompute_start(record, experiment) < 1e-12
            for value in values:
                kept = record.values[value]
                wrong = recompute_start(changed(record, value, (1,) * kept.ndim), experiment)
                assert wrong == pytest.approx(0.5) if kept.ndim == 1 else 0.1 < wrong <= 0.5
                after = changed(record, value, (2,) * kept.ndim)  # the first that is not trained again
                assert recompute_start(after, experiment) < 1e-12


def test_a_step_of_memorising_is_trained_again(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EARLY", "LIMIT"):
        monkeypatch.setattr(grokking_records, name, 300)
    base = SMALL(learning_rate=0.005, width=32, hidden=64)
    runs = recorded_experiments("others", base)
    with deterministic(1):
        record = Record("others", GeneralisationTimes(tuple(runs))(np.arange(2.0)[:, None]))
        assert np.all(record.values["memorised"] <= 240)
        assert len(set(record.values["memorised"])) == 2  # so that the wrong run would be seen
        wrong = replace(record, values={**record.values, "memorised": record.values["memorised"] - 20})
        for seed in range(3):
            assert recompute_memorised(record, base, seed) == 0
            assert 0.05 < recompute_memorised(wrong, base, seed) < 1
