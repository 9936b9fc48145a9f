"""Controls of the data: what each keeps and what it takes, and trainings of a group against single ones."""

import numpy as np
import pytest
import torch

from descent.data import load_dataset
from descent.experiments.gradient_controls import (
    NOISES,
    SHUFFLES,
    GroupPlan,
    Trial,
    group_grams,
    mix_noise,
    random_bottleneck,
    sampled_gradients,
    shrink_images,
    shuffle_labels,
    shuffle_pixels,
    stacked_batches,
    trial_stack,
)
from descent.models import mlp
from descent.repro import numpy_generator
from descent.spectra import gram_matrix
from descent.training import CapturePlan, GradientRecorder, MiniBatches, TrainingPlan, batch_cross_entropy, fit
from descent.training.capture import random_steps

DIGITS = load_dataset("digits")
IMAGES, LABELS = DIGITS.inputs.numpy()[:300], DIGITS.targets.numpy()[:300]
COLOURED = np.random.default_rng(5).random((50, 3, 5, 7), np.float32)


def draw(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("images", [IMAGES, COLOURED], ids=["digits", "coloured"])
@pytest.mark.parametrize("noise", NOISES)
def test_noise_is_mixed_in_a_straight_line(images, noise: str) -> None:
    none, half, all_of_it = (mix_noise(images, noise, amount, draw()) for amount in (0, 0.5, 1))
    np.testing.assert_array_equal(none, images)
    np.testing.assert_allclose(half, (images + all_of_it) / 2, atol=1e-6)
    assert all_of_it.dtype == np.float32
    assert all_of_it.mean() == pytest.approx(images.mean(), abs=0.02)
    assert all_of_it.std() == pytest.approx(images.std(), rel=0.02)


def test_each_noise_keeps_what_it_says() -> None:
    pixels = mix_noise(IMAGES, "pixels' own values", 1, draw())
    np.testing.assert_array_equal(np.sort(pixels, 0), np.sort(IMAGES, 0))
    neighbours = [np.corrcoef(x[:, 0, 3, 3], x[:, 0, 4, 3])[0, 1] for x in (IMAGES, pixels)]
    assert abs(neighbours[0]) > 0.2 > abs(neighbours[1])
    phases = mix_noise(IMAGES, "random phases", 1, draw())
    spectra = [np.abs(np.fft.fft2(x)) for x in (IMAGES, phases)]
    np.testing.assert_allclose(spectra[1], spectra[0], atol=1e-4)
    np.testing.assert_allclose(phases.mean((1, 2, 3)), IMAGES.mean((1, 2, 3)), atol=1e-6)
    assert np.abs(phases - IMAGES).max() > 0.5


@pytest.mark.parametrize("images", [IMAGES, COLOURED], ids=["digits", "coloured"])
@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_a_shuffle_keeps_all_values_and_moves_the_share_that_takes_part(images, shuffle: str) -> None:
    none, some, every = (shuffle_pixels(images, shuffle, amount, draw()) for amount in (0, 0.4, 1))
    np.testing.assert_array_equal(none, images)
    for each in (some, every):
        assert each.shape == images.shape
        within = 0 if shuffle == "across images" else slice(None)
        np.testing.assert_array_equal(np.sort(each.reshape(len(images), -1), within if within == 0 else 1),
                                      np.sort(images.reshape(len(images), -1), 0 if within == 0 else 1))  # fmt: skip
    moved = (some != images).any(0)  # places at which any image differs
    if shuffle.startswith(("rows", "columns")):
        lines = moved.any((0, 2) if shuffle.startswith("rows") else (0, 1))
        assert lines.sum() <= round(0.4 * len(lines))
    else:
        assert moved.sum() <= round(0.4 * moved.size)
    assert 0 < (some != images).mean() < (every != images).mean()


def test_rows_and_columns_move_as_wholes() -> None:
    by_row = shuffle_pixels(COLOURED, "rows of each image", 1, draw())
    by_column = shuffle_pixels(COLOURED, "columns of each image", 1, draw())
    for before, row, column in zip(COLOURED, by_row, by_column, strict=True):
        assert {each.tobytes() for each in before.transpose(1, 0, 2).copy()} == {
            each.tobytes() for each in row.transpose(1, 0, 2).copy()
        }
        assert {each.tobytes() for each in before.transpose(2, 0, 1).copy()} == {
            each.tobytes() for each in column.transpose(2, 0, 1).copy()
        }


def test_one_permutation_is_the_same_for_all_images_and_others_are_not() -> None:
    ramp = np.broadcast_to(np.arange(35, dtype=np.float32).reshape(1, 1, 5, 7), (9, 1, 5, 7)).copy()
    one = shuffle_pixels(ramp, "one permutation", 1, draw())
    assert (one == one[0]).all()
    assert (one != ramp).any()
    own = shuffle_pixels(ramp, "pixels of each image", 1, draw())
    assert len({image.tobytes() for image in own}) == 9


def test_labels_change_places_in_the_share_that_is_asked_for() -> None:
    np.testing.assert_array_equal(shuffle_labels(LABELS, 0, draw()), LABELS)
    half, every = (shuffle_labels(LABELS, amount, draw()) for amount in (0.5, 1))
    np.testing.assert_array_equal(np.bincount(half), np.bincount(LABELS))
    assert (half != LABELS).mean() == pytest.approx(0.45, abs=0.06)
    assert (every != LABELS).mean() == pytest.approx(0.9, abs=0.05)


def test_smaller_images_are_means_and_a_bottleneck_of_all_directions_turns() -> None:
    small = shrink_images(IMAGES, 4)
    np.testing.assert_allclose(small[7, 0, 1, 2], IMAGES[7, 0, 2:4, 4:6].mean(), rtol=1e-6)
    np.testing.assert_array_equal(shrink_images(IMAGES, 8), IMAGES)
    flat = IMAGES.reshape(300, -1)
    whole = random_bottleneck(IMAGES, 64, draw()).reshape(300, -1)
    np.testing.assert_allclose(whole @ whole.T, flat @ flat.T, atol=1e-4)
    few = random_bottleneck(IMAGES, 32, draw())
    assert few.shape == (300, 1, 1, 32)
    assert np.square(few).sum() == pytest.approx(np.square(flat).sum(), rel=0.3)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: mix_noise(IMAGES, "salt", 0.5, draw()), "noise='salt': expected one of Gaussian noise, pixels' own"),
        (lambda: mix_noise(IMAGES, NOISES[0], 1.5, draw()), "amount=1.5: expected 0 to 1"),
        (lambda: mix_noise(IMAGES[:, 0], NOISES[0], 0.5, draw()), r"type \(300, 8, 8\), float32: expected"),
        (lambda: shuffle_pixels(IMAGES, "all", 0.5, draw()), "shuffle='all': expected one of pixels of each image"),
        (lambda: shuffle_pixels(IMAGES, SHUFFLES[0], float("nan"), draw()), "amount=nan"),
        (lambda: shuffle_labels(LABELS, -0.1, draw()), "amount=-0.1"),
        (lambda: shrink_images(IMAGES, 9), "side=9: expected at most 8"),
        (lambda: random_bottleneck(IMAGES, 65, draw()), "dimensions=65: expected at most 64"),
        (lambda: trial_stack([], GroupPlan(1, 1, 1, 0)), "0 trials"),
        (
            lambda: trial_stack(
                [Trial(IMAGES, LABELS), Trial(shrink_images(IMAGES, 4), LABELS)], GroupPlan(1, 1, 1, 0)
            ),
            "2 trials with images of shapes",
        ),
    ],
)
def test_what_cannot_be_done_is_refused(call, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()


def test_a_group_gives_what_the_recorder_of_single_trainings_gives() -> None:
    noisy = mix_noise(IMAGES, NOISES[0], 1, draw())
    trials = [Trial(IMAGES, LABELS), Trial(noisy, LABELS, gain=2, learning_rate=0.05, momentum=0.5)]
    plan = GroupPlan(steps=25, batch_size=15, samples=9, seed=3, hidden=5)
    rows, grams = sampled_gradients(trials, plan), group_grams(trials, plan)
    steps = random_steps(25, 9, numpy_generator(3, "sample"))
    for number, trial in enumerate(trials):
        model = mlp((1, 8, 8), [5], 10, 3)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(trial.gain)
        optimizer = torch.optim.SGD(model.parameters(), trial.learning_rate, trial.momentum)
        batches = MiniBatches((torch.from_numpy(trial.images), torch.from_numpy(LABELS)), 15, 3)
        with GradientRecorder(model, optimizer, CapturePlan(steps)) as recorder:
            fit(model, batch_cross_entropy, batches, optimizer, TrainingPlan(25))
        own = recorder.stack().rows
        np.testing.assert_allclose(rows[number], own, rtol=1e-4, atol=1e-5 * np.abs(own).max())
        np.testing.assert_allclose(grams[number], gram_matrix(rows[number]))


def test_no_hidden_layer_is_logistic_regression() -> None:
    plan = GroupPlan(steps=3, batch_size=8, samples=2, seed=0, hidden=0)
    assert sampled_gradients([Trial(IMAGES, LABELS)], plan).shape == (1, 2, 650)


def test_trials_of_other_sizes_are_stacked_by_whole_batches() -> None:
    trials = [Trial(IMAGES, LABELS), Trial(IMAGES[:50], LABELS[:50])]
    batches = stacked_batches(trials, GroupPlan(steps=1, batch_size=16, samples=1, seed=0))
    seen = [
        torch.cat([batches(step)[0][which] for step in range(3 * epoch, 3 * epoch + 3)])
        for which in (0, 1)
        for epoch in (0, 1)
    ]
    assert all(len(each) == 48 for each in seen)
    assert len(torch.unique(seen[2], dim=0)) == len(torch.unique(seen[3], dim=0)) == 48  # each example once an epoch
    assert not torch.equal(seen[2], seen[3])
    own = MiniBatches((torch.from_numpy(IMAGES), torch.from_numpy(LABELS)), 16, 0)
    assert torch.equal(batches(5)[0][0], own(5)[0])
    assert torch.equal(batches(18)[0][0], own(19)[0])  # the short one is left out


def test_images_that_are_no_finite_floats_are_refused() -> None:
    broken = IMAGES.copy()
    broken[3, 0, 2, 2] = np.nan
    for control in (
        lambda images: mix_noise(images, NOISES[0], 0.5, draw()),
        lambda images: shuffle_pixels(images, SHUFFLES[0], 0.5, draw()),
        lambda images: shrink_images(images, 4),
        lambda images: random_bottleneck(images, 4, draw()),
    ):
        with pytest.raises(ValueError, match="some pixels are not finite"):
            control(broken)
        for wrong in (IMAGES[:, 0], (255 * IMAGES).astype(np.uint8), torch.from_numpy(IMAGES), IMAGES[:0]):
            with pytest.raises(ValueError, match="expected floats"):
                control(wrong)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"gain": float("nan")}, "gain=nan: expected a positive number"),
        ({"labels": LABELS[:5]}, "labels int64 of shape .5,. for 300 images"),
        ({"labels": LABELS - 1}, "expected int64, one for each, from 0"),
        ({"labels": LABELS.astype(np.uint8)}, "labels uint8"),
        ({"images": IMAGES * np.nan}, "some pixels are not finite"),
    ],
)
def test_a_trial_that_cannot_be_trained_is_refused(changes, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Trial(**{"images": IMAGES, "labels": LABELS, **changes})


def test_a_label_that_is_no_class_is_refused() -> None:
    with pytest.raises(ValueError, match="label 9: expected at most 4, of 5 classes"):
        trial_stack([Trial(IMAGES, LABELS)], GroupPlan(10, 20, 5, seed=0, classes=5))


def test_a_network_made_once_is_copied_for_each_trial() -> None:
    shared = mlp(IMAGES.shape[1:], [4], 10, 0)
    before = [each.clone() for each in shared.parameters()]
    plan = GroupPlan(10, 20, 5, seed=0, network=lambda shape, classes, seed: shared)
    stack = trial_stack([Trial(IMAGES, LABELS, gain=gain) for gain in (1.0, 3.0)], plan)
    torch.testing.assert_close(stack.weights[1], 3 * stack.weights[0])
    assert all(torch.equal(old, new) for old, new in zip(before, shared.parameters(), strict=True))
