import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from descent.experiments.saddle_race import (
    NEWTON,
    OPTIMISERS,
    STABLE,
    TUNING_RUNS,
    EscapeCourse,
    escape_times,
    race_optimiser,
    saddle_free_path,
    step_sizes,
)
from descent.saddles.functions import classic_saddle

course = EscapeCourse(dimension=3, condition=20.0, distances=(1e-2, 1e-4), runs=4, budget=3000, seed=0)


@pytest.mark.parametrize(("dimension", "condition"), [(2, 49.0), (10, 100.0), (10, 1.0), (5, 8.0)])
def test_a_saddle_has_one_unstable_direction_and_its_condition_number(dimension, condition):
    h = replace(course, dimension=dimension, condition=condition).curvatures()
    assert h.shape == (dimension,)
    assert (h < 0).tolist() == [False] * (dimension - 1) + [True]
    assert np.abs(h).max() / np.abs(h).min() == pytest.approx(condition, rel=1e-14)
    ratios = h[1:-1] / h[:-2]
    np.testing.assert_allclose(ratios, ratios[:1].repeat(len(ratios)))


@pytest.mark.parametrize("wrong", [{"dimension": 1}, {"condition": 0.5}, {"condition": math.inf}])
def test_what_is_no_saddle_is_refused(wrong):
    with pytest.raises(ValueError, match="expected at least 2 dimensions, and a finite condition of at least 1"):
        replace(course, **wrong)


def test_plain_gradient_descent_takes_the_time_of_its_exact_solution():
    rate = 0.5
    _, starts, turns = course.lay_out()
    times = escape_times(course, "SGD", [rate])[0]
    curvatures = np.array([1.0, 1 / 20, -1 / 20])
    coordinates = torch.einsum("mij,dmj->dmi", turns, starts).numpy()
    for place in np.ndindex(*times.shape):
        t = np.arange(course.budget)[:, None]
        along = coordinates[place] * (1 - rate * curvatures) ** t
        values = (curvatures * along**2).sum(1) / 2
        assert times[place] == (values <= -1 / 40).argmax()


def test_the_same_saddle_unrotated_takes_gradient_descent_as_long():
    aligned = replace(course, rotated=False)
    surface, _, _ = aligned.lay_out()
    assert torch.equal(
        surface.hessian(torch.zeros(4, 3))[0], torch.diag(torch.tensor([1, 1 / 20, -1 / 20], dtype=torch.float64))
    )
    medians = [np.median(escape_times(one, "SGD", [0.5])[0], -1) for one in (course, aligned)]
    assert medians[0] == pytest.approx(medians[1], rel=0.5)


def test_a_step_size_that_leaps_out_of_the_picture_is_lost_and_one_that_is_too_short_is_late():
    times = escape_times(replace(course, budget=200), "Adam", [30.0, 1e-6])
    assert np.isinf(times).all()
    assert np.isfinite(escape_times(course, "Adam", [0.1])).all()


def test_saddle_free_newton_doubles_the_unstable_coordinate_and_clears_the_stable_one():
    path = saddle_free_path(classic_saddle(), torch.tensor([1.0, 1e-3], dtype=torch.float64), 6)
    np.testing.assert_allclose(path[1:, 0], 0, atol=1e-15)
    np.testing.assert_allclose(path[:, 1], 1e-3 * 2.0 ** np.arange(7), rtol=1e-12)


@pytest.mark.parametrize("condition", [1.0, 1e4])
def test_saddle_free_newton_takes_a_logarithm_whatever_the_condition_number(condition):
    rate, times = race_optimiser(replace(course, condition=condition), NEWTON)
    _, starts, turns = replace(course, condition=condition).lay_out()
    unstable = np.abs(torch.einsum("mij,dmj->dmi", turns, starts)[..., -1].numpy())
    assert rate == 1
    np.testing.assert_array_equal(times, np.ceil(np.log2(1 / unstable) - 1e-9))


@pytest.mark.parametrize("racer", ["momentum", "Adam"])
def test_the_best_step_size_has_the_least_geometric_mean_of_those_that_lose_no_run(racer):
    rate, times = race_optimiser(course, racer)
    tuning = replace(course, seed=course.seed + 10_000, runs=TUNING_RUNS)
    alone = [np.log(np.maximum(escape_times(tuning, racer, [one])[0], 1)).mean() for one in step_sizes(racer)]
    assert rate == step_sizes(racer)[int(np.argmin(alone))]
    assert np.isfinite(escape_times(tuning, racer, [rate])).all()
    assert np.array_equal(times, race_optimiser(course, racer)[1])
    assert not np.array_equal(times, race_optimiser(replace(course, seed=1), racer)[1])


def test_where_every_step_size_loses_runs_that_which_loses_the_fewest_is_taken():
    tuning = replace(course, seed=course.seed + 10_000, runs=TUNING_RUNS)
    logs = np.array([escape_times(tuning, "momentum", [one])[0].ravel() for one in step_sizes("momentum")])
    budget = int(np.sort(logs, 1)[:, -1].min()) - 1  # one step too few for the best of the slowest runs
    short = replace(course, budget=budget)
    rate, times = race_optimiser(short, "momentum")
    kept = [
        np.isfinite(escape_times(replace(tuning, budget=budget), "momentum", [one])).sum()
        for one in step_sizes("momentum")
    ]
    assert max(kept) < len(logs[0])
    assert kept[step_sizes("momentum").index(rate)] == max(kept)
    assert np.isfinite(times).any()


def test_without_its_epsilon_adam_needs_more_steps_from_nearer_starts_in_two_dimensions():
    plane = replace(course, dimension=2, condition=100.0, distances=(1e-2, 1e-4, 1e-6), runs=20)
    tiny, usual = (np.median(escape_times(plane, name, [0.03])[0], -1) for name in ("Adam, ε = 1e-16", "Adam"))
    assert tiny[2] - tiny[1] == pytest.approx(tiny[1] - tiny[0], rel=0.25)  # a logarithm
    assert usual[2] < usual[1]


def test_noise_does_without_an_offset():
    none = replace(course, distances=(1e-300,))
    assert np.isfinite(escape_times(none, "SGD + noise", [1.0])).all()
    assert np.isinf(escape_times(replace(none, budget=300), "SGD", [1.0])).all()


def test_unknown_names_are_refused_with_the_choices():
    with pytest.raises(ValueError, match="optimiser='Adm': expected one of SGD, momentum"):
        escape_times(course, "Adm", [0.1])
    with pytest.raises(ValueError, match=r"racer='Newton': expected one of SGD, .*, saddle-free Newton"):
        race_optimiser(course, "Newton")


@pytest.mark.parametrize("name", STABLE)
def test_step_sizes_end_at_the_same_share_of_what_is_stable(name):
    """On x^2 / 2 a run shrinks a hair below the limit and grows a hair above it."""
    ends = []
    for share in (0.999, 1.001):
        point = torch.ones(1, dtype=torch.float64)
        optimizer = OPTIMISERS[name]([point], lr=share * STABLE[name])
        for _ in range(20_000):
            point.grad = point.clone()
            optimizer.step()
        ends.append(abs(float(point)))
    assert ends[0] < 1 < ends[1] or math.isinf(ends[1])
    assert max(step_sizes(name)) == pytest.approx(0.95 * STABLE[name])


def test_a_course_is_the_saddle_that_it_says():
    surface, starts, _ = course.lay_out()
    spectrum = torch.linalg.eigvalsh(surface.hessian(starts[0]))
    np.testing.assert_allclose(spectrum, np.tile([-1 / 20, 1 / 20, 1], (4, 1)), atol=1e-14)
    np.testing.assert_allclose(starts.norm(dim=-1), np.tile([[1e-2], [1e-4]], (1, 4)))
