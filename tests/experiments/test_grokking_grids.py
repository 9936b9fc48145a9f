"""Records of controls and of short runs: made once, each run kept, rechecked by what their rows say."""

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from descent.data.group_tables import modular_task, split_mirrors, split_pairs
from descent.experiments import grokking_grids
from descent.experiments.grokking import ModularExperiment, prepare_experiment, train_modular_transformer
from descent.experiments.grokking_controls import mirrored_pairs
from descent.experiments.grokking_grids import (
    LookedAtRuns,
    control_and_grid_names,
    course_of_looks,
    grid_points,
    look_steps,
    looks_of,
    make_some,
    read_control_record,
    recompute_looks,
)
from descent.experiments.grokking_measures import train_and_test_losses
from descent.repro.records import Record, record_path
from descent.repro.seeding import deterministic

SMALL = partial(ModularExperiment, p=13, fraction=0.5, width=16, heads=2, hidden=24, every=10)
ADD, TAKE = ("addition",), ("subtraction",)


def test_mirror_images_stay_together() -> None:
    for name in ("addition", "division"):
        task = modular_task(name, 31)
        train, test = split_mirrors(task, 0.5, 3)
        assert sorted([*train.tolist(), *test.tolist()]) == list(range(len(task)))
        assert len(train) == len(split_pairs(len(task), 0.5, 3)[0])
        mirrored, _ = mirrored_pairs(task, train)
        assert not mirrored[test].any()
        alone = {(a, b) for a, b in task.pairs.tolist()}
        both = np.array([a != b and (b, a) in alone for a, b in task.pairs[train].tolist()])
        assert (mirrored[train] == both).all()
        assert not np.array_equal(split_mirrors(task, 0.5, 4)[0], train)
    usual, together = SMALL(), SMALL(mirrors=True)
    assert usual.digest() != together.digest()
    assert not mirrored_pairs(modular_task("addition", 13), prepare_experiment(together).train)[0][
        prepare_experiment(together).test
    ].any()


def test_the_field_of_mirrors_renames_no_run_that_was_trained_before() -> None:
    assert ModularExperiment(steps=15_000, seed=1).digest() == "117a6159fce1"


def test_a_run_is_looked_at_often_and_later_seldom() -> None:
    steps = look_steps(6000, 10)
    assert steps[:2] == [10, 20]
    assert steps[99:102] == [1000, 1050, 1100]
    assert len(steps) == 200


def test_looks_are_those_of_a_run_that_keeps_its_weights() -> None:
    experiment = SMALL(steps=30)
    with deterministic(1):
        looks = looks_of(experiment)
        run = train_modular_transformer(replace(experiment, steps=31))
        losses = train_and_test_losses(run, run.stack.rows)
    assert looks[:, 0].tolist() == [10, 20, 30]
    for column, name in enumerate(("train_loss", "test_loss", "train_accuracy", "test_accuracy"), 1):
        np.testing.assert_allclose(looks[:, column], losses[name][1:], rtol=0.02)  # that of "=" is among the logits


def test_a_run_ends_some_looks_after_it_has_generalised(monkeypatch: pytest.MonkeyPatch) -> None:
    found = iter([1.0, 3.0, 0.02, 0.05, 0.02, 0.05, 0.005, 0.05, 0.005, 0.05, 0.005, 0.2] * 9)  # train, test
    monkeypatch.setattr(grokking_grids, "mean_loss", lambda *_: next(found))
    monkeypatch.setattr(grokking_grids, "SETTLED", 3)
    with deterministic(1):
        assert len(looks_of(SMALL(steps=90))) == 4  # not the third, as it had not memorised before
        rows = LookedAtRuns((SMALL(steps=90), SMALL(steps=20)))(np.array([[1.0]]))["looks"]
    assert rows.shape == (1, 9, 5)
    assert np.isfinite(rows[0, :, 0]).sum() == 2


def test_a_course_has_first_and_lasting_crossings() -> None:
    looks = np.array([[10, 1, 3, 0, 0], [20, 0.005, 0.5, 1, 0.5], [30, 0.02, 2, 1, 0.6], [40, 0.005, 0.5, 1, 0.9]])
    course = course_of_looks(np.concatenate([looks, np.full((2, 5), np.nan)]))
    assert course == {
        "memorised": 20, "memorised for good": 40, "generalised": 20, "generalised for good": 40,
        "peak": 3, "accuracy": 0.9, "end": 40,
    }  # fmt: skip
    never = course_of_looks(looks[:1])
    assert np.isnan([never["memorised"], never["generalised"], never["generalised for good"]]).all()


def test_the_grids_have_the_runs_that_are_judged() -> None:
    base = ModularExperiment()
    sizes = {name: len(grid_points(name, base)) for name in grokking_grids.GRIDS}
    assert sizes == {"decays": 40, "mirror": 5, "operations": 19, "s5": 5}
    digests = [each.digest() for name in sizes for each in grid_points(name, base)]
    assert len(set(digests)) == len(digests)
    usual = [e for e in grid_points("operations", base) if (e.task, e.fraction) == ("addition", 0.5)]
    limit = grid_points("mirror", base)[0].steps
    assert [replace(e, mirrors=True, steps=limit) for e in usual] == grid_points("mirror", base)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DESCENT_CORES", "1")
    monkeypatch.setattr(grokking_grids, "ModularExperiment", SMALL)
    grids = {
        "decays": (40, [(ADD, (0.5,), (1.0, 0.5), (0,), (False,))]),
        "operations": (40, [(ADD + TAKE, (0.6,), (1.0,), (0,), (False,)), (ADD, (0.6,), (1.0,), (0,), (True,))]),
    }
    for name, value in {"CONTROL_SEEDS": (0, 1), "CONTROL_STEPS": 30, "FRAMES": 3, "GRIDS": grids}.items():
        monkeypatch.setattr(grokking_grids, name, value)
    return tmp_path


@pytest.mark.promise("R4")
def test_records_are_made_once_and_those_of_another_experiment_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = control_and_grid_names()
    assert names == ["controls-0", "controls-1", "controls-undecayed", "decays", "operations"]
    make_some(project, names)
    record = read_control_record(project, "controls-1", SMALL())
    assert record.values["steps"].tolist() == [0, 10, 20]
    assert record.values["rings"].shape[1] == len(record.settings["keys"])
    assert record.values["dissected foreseen"].shape == (4, 6)
    assert {each.dtype for each in record.values.values()} == {np.dtype(np.float32)}
    undecayed = read_control_record(project, "controls-undecayed", SMALL())
    assert undecayed.settings["keys"] == read_control_record(project, "controls-0", SMALL()).settings["keys"]
    assert "test loss foreseen decayed" in undecayed.values
    assert read_control_record(project, "decays", SMALL()).values["looks"].shape == (2, 4, 5)
    tables = read_control_record(project, "operations", SMALL())
    assert [(each["task"], each["mirrors"]) for each in tables.settings["runs"]] == [
        ("addition", False), ("subtraction", False), ("addition", True)
    ]  # fmt: skip

    def refuse(*_: object, **__: object) -> None:
        raise ZeroDivisionError("nothing is to be trained")

    monkeypatch.setattr("torch.optim.AdamW.step", refuse)
    make_some(project, names)  # all there
    for name in names:
        with pytest.raises(ValueError, match=rf"{name}\.npz: made from .*make records CHAPTER=grokking$"):
            read_control_record(project, name, SMALL(learning_rate=2e-3))
        path = record_path(project, "grokking", name)
        kept = path.read_bytes()
        path.unlink()
        make_some(project, [name])  # from the runs and looks that were kept, as after a kill
        assert path.read_bytes() == kept
    with pytest.raises(ValueError, match="record 'decay': expected one of controls-0"):
        make_some(project, ["decay"])


def test_a_recheck_trains_what_the_row_says(project: Path) -> None:
    make_some(project, ["operations"])
    record = read_control_record(project, "operations", SMALL())
    assert max(recompute_looks(record, seed) for seed in range(6)) < 1e-6
    runs = [dict(asdict(each), task="subtraction", mirrors=False) for each in grid_points("operations", SMALL())]
    wrong = Record(record.name, record.values, {**record.settings, "runs": runs})
    assert max(recompute_looks(wrong, seed) for seed in range(6)) > 0.001
