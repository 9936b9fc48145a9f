"""Controls of the progress measures, against the library's own and numbers on paper."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from descent.data.group_tables import modular_task, split_pairs
from descent.experiments import grokking_controls
from descent.experiments.grokking import GrokkingRun, ModularExperiment, train_modular_transformer
from descent.experiments.grokking_controls import (
    area_below_constant,
    dissections,
    embedding_film,
    foreseen_sets,
    indicator,
    marked_rows,
    mean_by_sum,
    measure_controls,
    mirror_gaps,
    mirrored_pairs,
    random_sets,
    random_subspace,
    restricted_to_sets,
)
from descent.experiments.grokking_measures import embedding_frequencies, progress_measures, train_and_test_losses
from descent.experiments.grokking_records import key_frequencies_of_run
from descent.repro.seeding import deterministic
from descent.spectra.fourier_modulo_p import excluded_logits, restricted_logits

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


def test_the_mean_over_test_pairs_has_nothing_of_the_shown_ones() -> None:
    """The same table: by the mean over all pairs nearly all answers are right, by that over test pairs none is."""
    task = modular_task("addition", 31)
    train, test = split_pairs(len(task), 0.4, 0)
    logits = torch.zeros(len(task), 31)
    logits[train, task.targets[train]] = 20.0
    table = mean_by_sum(logits, test)
    assert table.abs().max() == 0
    changed = logits.clone()
    changed[train] = torch.randn(len(train), 31)
    assert torch.equal(mean_by_sum(changed, test), table)
    losses, _ = restricted_to_sets(table, random_sets([1, 2], 31, 0, 5))
    np.testing.assert_allclose(losses, math.log(31), rtol=1e-6)
    every = torch.arange(len(task))
    torch.testing.assert_close(mean_by_sum(changed, every), mean_by_sum(changed))


def test_a_sum_without_a_test_pair_is_answered_as_by_a_constant() -> None:
    logits = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    pairs = torch.tensor([0, 1, 5])  # 0 + 0, 0 + 1, 1 + 2: none has the sum 2
    table = mean_by_sum(logits, pairs)
    torch.testing.assert_close(table[0], logits[[0, 5]].double().mean(0))
    torch.testing.assert_close(table[2], (table[0] + table[1]) / 2)
    with pytest.raises(ValueError, match="no pair counts"):
        mean_by_sum(logits, torch.tensor([], dtype=torch.int64))


def test_controls_agree_with_the_progress_measures(run: GrokkingRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grokking_controls, "AT_ONCE", 7)
    keys = [1, 3]
    with deterministic(1):
        found = measure_controls(run, {"key": keys, "other seed": [2]})
        measures = progress_measures(run, {"key": keys, "other seed": [2], "all": range(1, 7)})
        losses = train_and_test_losses(run, run.stack.rows)
    for which in ("key", "other seed"):
        for kind in ("loss", "accuracy"):
            np.testing.assert_allclose(found[f"all {kind} {which}"], measures[f"restricted_{kind} {which}"], rtol=1e-9)
        np.testing.assert_allclose(found[f"excluded loss {which}"], measures[f"excluded_loss {which}"], rtol=1e-9)
    np.testing.assert_allclose(found["coefficients"], measures["coefficients all"], atol=1e-9)
    np.testing.assert_allclose(
        found["all loss single"][:, 1], progress_measures(run, {"two": [2]})["restricted_loss two"]
    )
    np.testing.assert_array_equal(found["test_loss"], losses["test_loss"])
    assert found["test loss random"].shape == (4, 3)
    assert (np.diff(found["test loss random"], axis=1) >= 0).all()
    logits = run.logits(run.stack.rows[3])
    by_hand = excluded_logits(logits, keys)
    np.testing.assert_allclose(found["memory loss"][3], cross_entropy(by_hand[run.test], run.task.targets[run.test]))
    right = (by_hand[run.train].argmax(1) == run.task.targets[run.train]).double().mean()
    assert found["excluded accuracy key"][3] == pytest.approx(float(right))
    np.testing.assert_array_equal(found["norms"], embedding_frequencies(run, run.stack.rows))
    shown = {tuple(pair) for pair in run.task.pairs[run.train].tolist()}
    unknown = [i for i, (a, b) in enumerate(run.task.pairs.tolist()) if not {(a, b), (b, a)} & shown]
    assert 0 < len(unknown) < len(run.test)  # neither order was shown
    losses_of, right_of = restricted_to_sets(mean_by_sum(logits, torch.tensor(unknown)), indicator([keys], 13))
    assert found["test loss key"][3] == float(losses_of[0])
    assert found["test accuracy key"][3] == float(right_of[0])


def test_a_run_that_does_not_generalise_has_no_span_but_that_of_another_run(run: GrokkingRun) -> None:
    with deterministic(1):
        own = measure_controls(run, {"key": [1, 3]})
        given = measure_controls(run, {"key": [1, 3]}, (1, 3))
    assert np.isnan(own["marks"]).all()
    assert np.isnan(own["span"]).all()
    assert np.isnan(own["test areas"]).all()
    assert given["span"].tolist() == [1, 3]
    assert np.isnan(given["marks"]).all()
    assert np.isfinite(given["all areas"]).all()
    assert ((given["test areas"] >= 0) & (given["test areas"] < 1)).all()
    assert given["test means"].shape == (1000,)
    with deterministic(1):
        few = measure_controls(run, {"key": [1, 3]}, (1, 3), draws=40)
    np.testing.assert_array_equal(few["test loss key"], given["test loss key"])
    np.testing.assert_array_equal(few["excluded loss random"], given["excluded loss random"])
    assert few["test means"].shape == (40,)
    assert [row is None for row in marked_rows(run, own["span"])] == [True, True, True, False]
    np.testing.assert_array_equal(marked_rows(run, given["span"])[1], run.stack.rows[2])


def test_what_is_taken_away_instead_is_as_large(run: GrokkingRun) -> None:
    logits, subspace = run.logits(run.stack.rows[3]).double(), random_subspace(13, 4, 0)
    torch.testing.assert_close(subspace.T @ subspace, torch.eye(4).double())
    assert subspace.sum(0).abs().max() < 1e-12
    with deterministic(1):
        found = measure_controls(run, {"key": [1, 3]}, (1, 3))
    centred = logits - logits.mean(0)
    centred = centred - centred.mean(1, keepdim=True)
    along = restricted_logits(logits, [1, 3]) - logits.mean(0)
    along = along - along.mean(1, keepdim=True)
    share = float(along.square().sum() / centred.square().sum())
    assert found["share"][3] == pytest.approx(share)
    part = subspace @ (subspace.T @ centred)
    part = part * (along.square().sum() / part.square().sum()).sqrt()
    targets = run.task.targets[run.train]
    assert found["excluded loss subspace"][3] == pytest.approx(
        float(cross_entropy((logits - part)[run.train], targets))
    )
    shrunk = math.sqrt(1 - share) * logits[run.train]
    assert found["excluded loss shrunk"][3] == pytest.approx(float(cross_entropy(shrunk, targets)))
    assert found["excluded accuracy shrunk"].tolist() == pytest.approx(found["train_accuracy"].tolist())


def test_frequencies_are_foreseen_by_the_embedding_alone() -> None:
    norms = np.array([[1.0, 5, 2, 4, 3, 0], [9, 0, 0, 8, 7, 0], [0, 0, 0, 0, 1, 2]])
    sets = foreseen_sets(np.array([0, 100, 250]), norms, 2, 2)
    assert sets == {
        "foreseen 0": [2, 4],
        "foreseen 100": [1, 4],
        "foreseen 300": [],  # not kept
        "foreseen memorised": [5, 6],
        "foreseen four": [1, 2, 5, 6],
    }
    assert foreseen_sets(np.array([0]), norms[:1], None, 2)["foreseen memorised"] == []


def test_mirrored_pairs_are_compared_with_as_many_drawn_at_random(run: GrokkingRun) -> None:
    logits = run.logits(run.stack.rows[3])
    found, (mirrored, _) = mirror_gaps(run, logits), mirrored_pairs(run.task, run.train)
    again = mirror_gaps(run, logits, mirrored)
    assert {name: np.array_equal(value, again[name]) for name, value in found.items()} == dict.fromkeys(found, True)
    test = run.test.numpy()
    right = (logits.argmax(1) == run.task.targets).numpy()
    assert found["mirrored"] == right[test[mirrored[test]]].mean()
    assert found["alone"] == right[test[~mirrored[test]]].mean()
    assert len(found["shuffled gaps"]) == 100
    known = torch.nn.functional.one_hot(run.task.targets, 13).double()
    known[test[~mirrored[test]]] = 0.0  # the answer 0
    seen = mirror_gaps(run, known)
    assert seen["mirrored"] - seen["alone"] > 0.8 > seen["shuffled gaps"].max()
    together = train_modular_transformer(SMALL(steps=1, mirrors=True))
    none = mirror_gaps(together, known)
    assert np.isnan([none["mirrored"], none["alone"], *none["shuffled gaps"]]).all()


def test_weights_are_dissected_for_several_sets(run: GrokkingRun) -> None:
    with deterministic(1):
        found = dissections(run, [None, run.stack.rows[2], run.final()], {"key": [1, 3], "other": [2]})
        explained = progress_measures(run, {"key": [1, 3]}, run.stack.rows[2:3])["explained key"]
    assert np.isnan(found["dissected key"][0]).all()
    assert found["dissected key"][1, 1] == pytest.approx(explained[0])
    same = found["dissected key"] == found["dissected other"]
    assert same[1:, [0, 2, 5]].all()
    assert not same[1:, [1, 3, 4]].any()
    assert found["dissected key"][2, 0] == len(key_frequencies_of_run(run))
    table = run.model.neuron_logit_map().detach().double()
    centred = np.abs(np.fft.fft(table.numpy(), axis=1)) ** 2
    off = 1 - 2 * centred[:, [1, 3]].sum() / centred[:, 1:].sum()
    assert found["dissected key"][2, 4] == pytest.approx(off)


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
