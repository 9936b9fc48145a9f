"""Surfaces whose values are known on paper, at the edges of what is accepted; what a refusal names."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from descent.landscape import (
    Evaluator,
    HessianExtremes,
    LossSurface,
    descent_centre_cosine,
    export_surface,
    nonconvexity_ratio,
    plane_grid,
    plane_nonconvexity,
    random_direction,
    recompute_points,
    star_shaped_share,
)
from descent.landscape.class_losses import class_losses
from descent.repro import Record

AXIS = np.linspace(-1, 1, 5)


def surface(loss: np.ndarray, alpha: np.ndarray = AXIS, beta: np.ndarray = AXIS) -> LossSurface:
    return LossSurface(alpha, beta, {"loss": loss}, images=1, precision="float32")


def linear(loss: str | None = None, metric: str | None = None, seed: int = 0) -> Evaluator:
    """The evaluator of one layer on the rows of the identity; `loss` and `metric` choose functions that fail later."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    directions = [random_direction(model, seed, name) for name in ("alpha", "beta")]
    functions = {name: BROKEN for name, asked in (("loss", loss), ("metric", metric)) if asked}
    return Evaluator(model, torch.eye(3), torch.tensor([0, 1, 1]), directions, precision="float32", **functions)


class Broken:
    """One number per example until `whole` is set, then their mean."""

    whole = False

    def __call__(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        each = model(batch[0]).square().sum(1)
        return each.mean() if self.whole else each


class Unbroken(Broken):
    """The same by another name."""


BROKEN = Broken()


@pytest.mark.parametrize("name", ["loss", "metric"])
def test_a_function_that_changes_its_shape_is_named_where_a_point_is_computed(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = linear(**{name: "broken"})
    monkeypatch.setattr(Broken, "whole", True)
    with pytest.raises(ValueError, match=rf"^{name} returned shape \(\), torch.float32: expected \(3,\)"):
        task([[0.0, 0.0]])


def test_logits_of_too_few_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 3\) for a batch of 4"):
        class_losses(torch.zeros(2, 3), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"shape \(4,\) for a batch of 4"):
        class_losses(torch.zeros(4), torch.zeros(4, dtype=torch.int64))


def square(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return model(batch[0]).square().sum(1)


def same_square(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return model(batch[0]).square().sum(1)


def test_keys_tell_losses_of_equal_values_apart_by_name_and_not_the_order_of_a_dictionary() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    examples, direction = (torch.eye(3), torch.tensor([0, 1, 1])), random_direction(model, 0, "alpha")
    backwards = dict(reversed(direction.items()))
    assert list(backwards) != list(direction)
    keys = {
        loss: Evaluator(model, *examples, [way], loss=loss).key()
        for loss, way in ((square, direction), (same_square, direction))
    }
    assert keys[square] == Evaluator(model, *examples, [backwards], loss=square).key()
    assert keys[square] != keys[same_square]
    assert keys[square] != Evaluator(model, *examples, [direction], loss=square, metric=square).key()
    objects = [Evaluator(model, *examples, [direction], loss=each).key() for each in (Broken(), Unbroken(), Broken())]
    assert objects[0] == objects[2] != objects[1]


def test_each_coordinate_of_a_centre_is_its_own() -> None:
    a, b = np.meshgrid(AXIS, AXIS, indexing="ij")
    off = surface(1 + (a - 0.5) ** 2 + (b + 0.5) ** 2)
    assert star_shaped_share(off, (0.5, -0.5)) == 1.0
    cosine = descent_centre_cosine(off, (0.5, -0.5))
    assert cosine[1, 3] > 0.9  # from the other side
    assert np.isnan(cosine[3, 1])  # the centre
    assert star_shaped_share(off, (-0.5, 0.5)) < 1.0


@pytest.mark.filterwarnings("error")
def test_a_surface_with_holes_gives_no_warning_and_nan_there() -> None:
    a, b = np.meshgrid(AXIS, AXIS, indexing="ij")
    loss = 1 + a**2 + b**2
    loss[0, 0], loss[4, 4], loss[0, 4] = np.inf, np.nan, 0.0
    assert np.isnan(descent_centre_cosine(surface(loss))[[0, 4, 0], [0, 4, 4]]).all()


def test_a_ratio_below_an_eigenvalue_of_one() -> None:
    assert nonconvexity_ratio(-0.25, 0.5) == 0.5
    assert nonconvexity_ratio(-3e-9, 1e-9) == pytest.approx(3)


@pytest.mark.parametrize(("one", "other", "name"), [(1j, 1.0, "smallest"), (0.0, 1j, "largest")])
def test_the_eigenvalues_that_are_no_numbers_are_named(one: complex, other: complex, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        nonconvexity_ratio([one], [other])  # type: ignore[list-item]


def test_the_points_that_are_no_numbers_are_named() -> None:
    task = HessianExtremes(nn.Linear(3, 2), torch.eye(3), torch.tensor([0, 1, 1]), [])
    with pytest.raises(ValueError, match="points"):
        task([[1j]])  # type: ignore[list-item]


@pytest.mark.parametrize("name", ["alpha", "beta"])
def test_the_axis_that_is_no_axis_is_named(name: str) -> None:
    axes = {"alpha": AXIS, "beta": AXIS, name: np.ones((2, 2))}
    for make in (plane_grid, lambda alpha, beta: surface(np.ones((5, 5)), alpha, beta)):
        with pytest.raises(ValueError, match=rf"{name} of shape \(2, 2\)"):
            make(**axes)


def test_eigenvalues_that_are_not_found_are_nan_and_of_one_kind() -> None:
    class Broken(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(inputs) * torch.inf

    model = Broken(3, 2)
    task = HessianExtremes(model, torch.eye(3), torch.tensor([0, 1, 1]), [random_direction(model, 0, "alpha")])
    found = task([[0.0]])
    assert {name: (values.dtype, values.shape) for name, values in found.items()} == dict.fromkeys(
        ("smallest", "largest", "residual", "converged"), (np.dtype(float), (1,))
    )
    assert all(np.isnan(found[name]).all() for name in ("smallest", "largest", "residual"))
    assert found["converged"] == 0


def test_rounding_is_that_of_the_losses_around_a_point() -> None:
    """A small saddle beside a large loss is no rounding: second differences are compared with their own nine losses."""
    alpha = np.arange(8.0)
    a, b = np.meshgrid(alpha, alpha, indexing="ij")
    loss = 1e-3 * ((a - 2) ** 2 - (b - 2) ** 2)
    loss[7, 7] = 1e14
    ratio = plane_nonconvexity(surface(loss, alpha, alpha))
    assert ratio[1, 1] == pytest.approx(1.0)


@pytest.mark.parametrize("axis", [[0.0, 0.0, 1.0], [0.0, 1.0, 1.0], [0.0, 1.0, 2.0, 2.5]])
def test_steps_are_equal_and_not_zero(axis: list[float]) -> None:
    side = len(axis)
    for one, other in ((np.array(axis), np.arange(float(side))), (np.arange(float(side)), np.array(axis))):
        with pytest.raises(ValueError, match="unequal steps, or steps of zero"):
            plane_nonconvexity(surface(np.ones((side, side)), one, other))


def test_second_differences_are_of_the_step_in_each_direction() -> None:
    a, b = np.meshgrid(2 * AXIS, 4 * AXIS, indexing="ij")
    assert plane_nonconvexity(surface(3 * a**2 - b**2, 2 * AXIS, 4 * AXIS)) == pytest.approx(np.full((3, 3), 1 / 3))


def test_a_record_of_a_loss_alone_is_a_surface(tmp_path: Path) -> None:
    surface(np.ones((5, 5))).record("bare", {}, {}).save(tmp_path / "bare.npz")
    assert LossSurface.of(Record.load(tmp_path / "bare.npz")).loss.shape == (5, 5)


def test_points_to_recompute_may_be_none_and_come_once() -> None:
    task = linear()
    grid = LossSurface(AXIS, AXIS, {"loss": task(plane_grid(AXIS, AXIS))["loss"].reshape(5, 5)}, 3, "float32")
    assert recompute_points(task, grid, 0, share=0).shape == (0,)
    differences = recompute_points(task, surface(grid.loss + 1), 0, share=1)
    assert sorted(differences) == pytest.approx(sorted((1 / grid.loss).ravel()))  # each point once


@pytest.mark.parametrize("axis", [[0.0, 1.0], [0.0, 1.0, 2.0 + 1e-7]])
def test_a_flat_grid_of_nearly_equal_steps_is_written(tmp_path: Path, axis: list[float]) -> None:
    side = len(axis)
    path = export_surface(surface(np.ones((side, side)), np.array(axis), np.array(axis)), tmp_path / "grid.vti")
    assert b'Spacing="1.0 1.0 1.0 "' in path.read_bytes()


@pytest.mark.parametrize("axis", [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0, 2 + 5e-6], [0.0], [0.0, 1.0, 0.5]])
def test_a_flat_grid_of_other_steps_is_not(tmp_path: Path, axis: list[float]) -> None:
    side = len(axis)
    with pytest.raises(ValueError, match="alpha does not rise in equal steps"):
        export_surface(surface(np.ones((side, side)), np.array(axis), np.array(axis)), tmp_path / "grid.vti")


def test_whole_numbers_and_losses_between_minus_one_and_one_are_written(tmp_path: Path) -> None:
    whole = LossSurface(AXIS, AXIS, {"loss": np.full((5, 5), -0.5), "count": np.ones((5, 5), int)}, 1, "float32")
    for suffix in (".vti", ".vts"):
        path = export_surface(whole, tmp_path / f"grid{suffix}")
        text = path.read_bytes()
        assert b'Name="count"' in text
        assert text.count(b'type="Float64"') >= 2
        assert b'type="Int64"' not in text
