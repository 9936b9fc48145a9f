"""A direction is taken out of weights: against plain singular vectors, and steps whose lengths are known on paper."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from descent.experiments.grokking import GrokkingRun, ModularExperiment, train_modular_transformer
from descent.experiments.grokking_measures import highest_between, mean_loss, reaches_as_long, train_and_test_losses
from descent.experiments.grokking_removal import (
    KeptPath,
    losses_of_halves,
    measure_removal,
    principal_direction,
    recompute_removal,
    removal_steps,
    run_direction,
)
from descent.repro.records import Record, provenance
from descent.repro.seeding import deterministic
from descent.spectra.fourier_modulo_p import restricted_logits
from descent.spectra.singular_values import gram_matrix

SMALL = ModularExperiment(p=13, fraction=0.5, width=16, heads=2, hidden=24, steps=80, every=10, learning_rate=0.01)


@pytest.fixture(scope="module")
def small() -> GrokkingRun:
    with deterministic(1):
        return train_modular_transformer(SMALL)


@pytest.fixture(scope="module")
def path(small: GrokkingRun) -> KeptPath:
    return KeptPath.of(small, np.ones(small.stack.layout.size))


@pytest.fixture(scope="module")
def steps(path: KeptPath) -> dict[str, np.ndarray]:
    return removal_steps(path, 3, np.random.default_rng(0), 6)


@pytest.mark.parametrize("number", [0, 1])
def test_a_component_is_the_singular_vector_of_rows_less_their_mean(number: int) -> None:
    rows = np.random.default_rng(1).standard_normal((6, 40)).cumsum(0) + 5
    found = principal_direction(rows, gram_matrix(rows), number)
    right = np.linalg.svd(rows - rows.mean(0), full_matrices=False)[2][number]
    assert abs(found.vector @ right) == pytest.approx(1, abs=1e-9)
    np.testing.assert_allclose(found.mean, rows.mean(0))
    after = rows[2] + found.to_mean(rows[2])
    assert found.vector @ (after - rows.mean(0)) == pytest.approx(0, abs=1e-9)
    assert found.vector @ (rows[2] + found.to_zero(rows[2])) == pytest.approx(0, abs=1e-9)
    across = np.eye(40) - np.outer(right, right)  # nothing else is moved
    np.testing.assert_allclose(across @ after, across @ rows[2], atol=1e-9)


def test_the_past_ends_at_the_checkpoint(path: KeptPath) -> None:
    found = path.past(3)
    rows = path.rows[:4].astype(float)
    right = np.linalg.svd(rows - rows.mean(0), full_matrices=False)[2][0]
    assert abs(found.vector @ right) == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(found.mean, rows.mean(0), atol=1e-7)
    assert abs(path.first.vector @ right) < 0.999


def test_controls_are_as_long_as_their_removals(path: KeptPath, steps: dict[str, np.ndarray]) -> None:
    size = np.linalg.norm(steps["mean"])
    for name in ("shrink", "random", "span", "other", "end", "swapped"):
        assert np.linalg.norm(steps[name]) == pytest.approx(size, rel=1e-9), name
    distance = np.linalg.norm(path.end - path.rows[3].astype(float))
    for name in ("shrink", "random", "span", "end"):
        length = np.linalg.norm(steps["zero"])
        length = min(length, distance) if name == "end" else length
        assert np.linalg.norm(steps[f"{name} of zero"]) == pytest.approx(length, rel=1e-9), name
    for removal in ("past mean", "past zero"):
        for name in ("shrink", "random"):
            length = np.linalg.norm(steps[removal])
            assert np.linalg.norm(steps[f"{name} of {removal}"]) == pytest.approx(length, rel=1e-9), (name, removal)
    early = path.rows[:6].astype(float)
    v = np.linalg.svd(early - early.mean(0), full_matrices=False)[2][0]
    np.testing.assert_allclose(steps["early mean"], -(v @ (path.rows[3] - early.mean(0))) * v, atol=1e-6)
    weights = path.rows[3].astype(float)
    np.testing.assert_allclose(steps["shrink"] / size, -weights / np.linalg.norm(weights))
    np.testing.assert_allclose(steps["end"] / size, (path.end - weights) / np.linalg.norm(path.end - weights))
    other = path.other @ (path.first.mean - weights)  # towards the run's mean
    assert path.other @ steps["other"] * np.sign(other) == pytest.approx(size)
    np.testing.assert_allclose(steps["zero"], -(path.first.vector @ weights) * path.first.vector)
    np.testing.assert_allclose(steps["past zero"], path.past(3).to_zero(weights))
    np.testing.assert_allclose(steps["second mean"], path.second.to_mean(weights))


def test_a_step_to_the_end_does_not_pass_it(path: KeptPath) -> None:
    last = len(path.rows) - 1
    near = KeptPath(path.rows, path.gram, path.first, path.second, path.rows[last].astype(float) + 1e-6, path.other)
    found = removal_steps(near, last, np.random.default_rng(0), 6)["end"]
    np.testing.assert_allclose(found, near.end - near.rows[last], rtol=1e-6)


def test_the_two_parts_make_the_removal_and_are_at_right_angles(path: KeptPath, steps: dict[str, np.ndarray]) -> None:
    np.testing.assert_allclose(steps["along"] + steps["across"], steps["mean"])
    assert steps["along"] @ steps["across"] == pytest.approx(0, abs=1e-9)
    way = path.end - path.rows[3]
    assert abs(steps["along"] @ way) == pytest.approx(np.linalg.norm(steps["along"]) * np.linalg.norm(way))
    np.testing.assert_allclose(steps["along"] + steps["across swapped"], steps["swapped"])
    assert steps["across swapped"] @ way == pytest.approx(0, abs=1e-9)
    assert np.linalg.norm(steps["across swapped"]) == pytest.approx(np.linalg.norm(steps["across"]))


def test_the_part_towards_zero_and_the_rest_make_the_removal(path: KeptPath, steps: dict[str, np.ndarray]) -> None:
    np.testing.assert_allclose(steps["inward"] + steps["beside"], steps["mean"])
    weights = path.rows[3].astype(float)
    assert steps["beside"] @ weights == pytest.approx(0, abs=1e-9)
    assert abs(steps["inward"] @ weights) == pytest.approx(np.linalg.norm(steps["inward"]) * np.linalg.norm(weights))


def test_lines_between_kept_weights_end_inside_the_run(small: GrokkingRun) -> None:
    looks, reaches = np.array([1, 3, 5, 7, 4, 2]), np.array([3, 3, 3, 3, np.nan, 1.5])
    found = highest_between(small, looks, reaches, (0.25, 0.5))
    assert np.isnan(found["train_loss"]).tolist() == [True, False, True, True, True, False]
    kept = small.stack.rows.astype(float)
    for number, (first, last) in {1: (kept[0], kept[6]), 5: ((kept[0] + kept[1]) / 2, (kept[3] + kept[4]) / 2)}.items():
        losses = train_and_test_losses(small, [first + part * (last - first) for part in (0.25, 0.5, 0, 1)])
        assert found["test_loss"][number] == pytest.approx(losses["test_loss"][:2].max())
        assert found["ends"][number] == pytest.approx(losses["train_loss"][2:].max())


def test_lines_are_refused_where_none_can_be(small: GrokkingRun) -> None:
    for looks, places, said in (
        ([8], (0.5,), r"looks \[8\]"),
        ([-2], (0.5,), r"looks \[-2\]"),
        ([2], (), r"places=\[\]"),
    ):
        with pytest.raises(ValueError, match=said):
            highest_between(small, np.array(looks), np.ones(1), places)
    with pytest.raises(ValueError, match=r"places=\[1.5\]"):
        highest_between(small, np.array([2]), np.ones(1), (1.5,))
    assert not len(reaches_as_long(np.eye(8), np.array([], int), 3, 2))


def test_lines_reach_until_they_are_as_long_as_that_across_the_switch() -> None:
    angles = np.linspace(0, 3, 15) ** 1.5
    rows = np.column_stack([np.cos(angles), np.sin(angles), angles]) * np.linspace(5, 1, 15)[:, None]
    looks = np.array([1, 4, 6, 8, 10, 13])
    found = reaches_as_long(rows @ rows.T, looks, 10, 4)
    wanted = np.linalg.norm(rows[14] - rows[6])
    for look, reach in zip(looks, found, strict=True):
        ends = [np.array([np.interp(look + way * reach, range(15), axis) for axis in rows.T]) for way in (-1, 1)]
        assert np.isnan(reach) or np.linalg.norm(ends[1] - ends[0]) == pytest.approx(wanted)
    assert found[4] == pytest.approx(4)
    assert 0 < np.isfinite(found).sum() < len(looks)
    assert np.isnan(reaches_as_long(rows @ rows.T, looks, None, 4)).all()
    assert np.isnan(reaches_as_long(rows @ rows.T, looks, 1, 4)).all()  # that line would begin before the run


def test_the_past_of_a_record_is_computed_again(small: GrokkingRun) -> None:
    with deterministic(1):
        values = measure_removal(small, run_direction(small), [4], 2)
        assert recompute_removal(Record("removal", values, {}, provenance(0)), SMALL) < 1e-6
        values["test_loss past zero"] = values["test_loss past zero"] * 1.1
        assert 0.05 < recompute_removal(Record("removal", values, {}, provenance(0)), SMALL) < 0.2


def test_a_direction_in_the_span_is_one_and_evenly_drawn(path: KeptPath) -> None:
    rows = path.rows.astype(float)
    right = np.linalg.svd(rows - rows.mean(0), full_matrices=False)[2][: len(rows) - 1]
    drawn = np.array([path.in_span(np.random.default_rng(seed)) for seed in range(300)])
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), 1)
    shares = (drawn @ right.T) ** 2
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(shares.mean(0), 1 / len(right), rtol=0.35)


def test_waves_and_memory_swap_what_they_say(small: GrokkingRun) -> None:
    before, after = (small.stack.rows[index].astype(float) for index in (2, 6))
    targets = small.task.targets[small.test]

    def split(weights: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        logits = small.logits(weights).double().view(13, 13, 13)
        total = torch.zeros(13, 13, 13, dtype=torch.float64) + logits.mean((0, 1))
        for kind in (torch.cos, torch.sin):
            a = torch.arange(13.0, dtype=torch.float64)
            wave = kind(2 * np.pi * 4 * (a[:, None] + a[None]) / 13) * np.sqrt(2) / 13
            total = total + wave[:, :, None] * torch.einsum("ab,abc->c", wave, logits)
        return total.view(169, 13), logits.view(169, 13) - total.view(169, 13)

    (waves, memory), (later_waves, later_memory) = split(before), split(after)
    swapped = losses_of_halves(small, small.logits(before), small.logits(after), [4])
    assert swapped[0] == pytest.approx(mean_loss((later_waves + memory)[small.test], targets), rel=1e-9)
    assert swapped[1] == pytest.approx(mean_loss((waves + later_memory)[small.test], targets), rel=1e-9)


def test_losses_are_those_of_the_changed_weights(small: GrokkingRun) -> None:
    with deterministic(1):
        found = measure_removal(small, run_direction(small), [4], 2)
        again = measure_removal(small, run_direction(small), [4], 2)
    assert found["looks"].tolist() == [1, 3, 5, 7]
    whole = train_and_test_losses(small, small.stack.rows)
    np.testing.assert_allclose(found["test_loss"], whole["test_loss"], rtol=1e-6)
    rows = small.stack.rows.astype(float)
    v = np.linalg.svd(rows - rows.mean(0), full_matrices=False)[2][0]
    removed = rows[5] - v @ (rows[5] - rows.mean(0)) * v
    expected = train_and_test_losses(small, [removed])["test_loss"][0]
    assert found["test_loss mean"][2] == pytest.approx(expected, rel=1e-5)
    assert found["length mean"][2] == pytest.approx(abs(v @ (rows[5] - rows.mean(0))), rel=1e-5)
    assert found["length other"][2] == pytest.approx(found["length mean"][2])
    assert found["test_loss other"][2] == pytest.approx(expected, rel=1e-5)  # its own direction, towards the mean
    assert {name for name in found if name.startswith(("waves", "memory"))} == {
        f"{part} {name}" for part in ("waves", "memory") for name in ("mean", "zero", "end", "shrink", "random")
    }
    right = small.logits(removed)[small.test].argmax(1) == small.task.targets[small.test]
    assert found["test_accuracy mean"][2] == pytest.approx(float(right.double().mean()), abs=1e-9)
    waves = restricted_logits(small.logits(rows[5]).double(), [4])[small.test]
    assert found["restricted"][2] == pytest.approx(mean_loss(waves, small.task.targets[small.test]), rel=1e-6)
    for name in found:
        np.testing.assert_array_equal(found[name], again[name])


@pytest.mark.parametrize("stride", [0, -1, 1.5, True])
def test_a_stride_that_is_no_count_is_refused(small: GrokkingRun, stride: Any) -> None:
    with pytest.raises(ValueError, match=f"stride={stride}: expected at least 1"):
        measure_removal(small, np.ones(small.stack.layout.size), [4], stride)


def test_a_run_of_another_task_and_one_that_kept_too_little_are_refused(small: GrokkingRun) -> None:
    other = np.ones(small.stack.layout.size)
    subtraction = replace(small, experiment=replace(SMALL, task="subtraction"))
    with pytest.raises(ValueError, match="a run on subtraction: expected one on addition"):
        measure_removal(subtraction, other, [4], 2)
    short = replace(small, stack=replace(small.stack, rows=small.stack.rows[:2], steps=small.stack.steps[:2]))
    with pytest.raises(ValueError, match="2 kept weights: expected at least 3"):
        measure_removal(short, other, [4], 2)


def test_what_is_no_direction_of_the_weights_is_refused(small: GrokkingRun, path: KeptPath) -> None:
    size = small.stack.layout.size
    for other in (np.zeros(size), np.full(size, np.nan), np.ones(5), np.ones((1, size))):
        with pytest.raises(ValueError, match="finite numbers, not all zero"):
            KeptPath.of(small, other)
    for scale in (1e-300, 1e300):  # of the same direction
        np.testing.assert_allclose(KeptPath.of(small, np.full(size, scale)).other, path.other)
