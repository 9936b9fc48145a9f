"""Toy models are their seeds' whatever the surroundings, and settings in any form are read or refused."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from descent.experiments.toy_models import ToyInputs, ToyModels, ToyTraining, fresh_losses, train_toy_models

TOYS = ToyModels(4, 2, [0, 1], density=0.5, noise=0.1)
RECIPE = ToyTraining(steps=3, batch=8)


@pytest.fixture
def trained() -> tuple[Any, torch.Tensor]:
    """What a seed gives with the usual default type; asked for first, so that it is made before that changes."""
    done = train_toy_models(TOYS, RECIPE)
    return done, fresh_losses(TOYS, done.W, done.b, 2, 64)


@pytest.fixture
def double(trained: Any) -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_a_seed_decides_every_number_whatever_the_default(trained: Any, double: None) -> None:
    toys = ToyModels(4, 2, [0, 1], density=0.5, noise=0.1)
    again, losses = train_toy_models(toys, RECIPE), fresh_losses(toys, trained[0].W, trained[0].b, 2, 64)
    for name in ("W", "b", "kept", "losses"):
        found = getattr(again, name)
        assert found.dtype == torch.float32
        assert torch.equal(found, getattr(trained[0], name))
    assert torch.equal(losses, trained[1])


def test_weights_in_any_form_have_the_same_losses(trained: Any) -> None:
    done, losses = trained
    for form in (lambda w: w.double(), lambda w: w.numpy(), lambda w: w.tolist(), lambda w: w.clone().requires_grad_()):
        assert torch.equal(fresh_losses(TOYS, form(done.W), form(done.b), 2, 64), losses)


@pytest.mark.parametrize("form", [lambda w: w.numpy(), lambda w: w.tolist(), lambda w: w.clone().requires_grad_()])
def test_a_start_in_any_form(form: Callable[[Any], Any]) -> None:
    start = TOYS.start()
    assert torch.equal(train_toy_models(TOYS, RECIPE, start=form(start)).W, train_toy_models(TOYS, RECIPE).W)


FORMS = [lambda v: np.array(v, ">f8"), lambda v: np.array(v, np.longdouble), lambda v: np.array(v)[::-1][::-1]]


@pytest.mark.parametrize("form", [np.array, torch.tensor, list, lambda v: torch.tensor(v).bfloat16(), *FORMS])
def test_settings_in_any_form(form: Callable[[Any], Any]) -> None:
    toys = ToyModels(4, 2, [0, 1], importance=form([[1.0, 0.5, 0.25, 0.125]]), density=form([0.5, 0.25]))
    assert toys.importance.tolist() == [[1.0, 0.5, 0.25, 0.125]] * 2
    assert toys.density.tolist() == [[0.5] * 4, [0.25] * 4]
    inputs = ToyInputs(toys, 50_000)
    inputs.draw()
    share = (inputs.block(slice(0, 2))[0] > 0).float().mean((1, 2))
    np.testing.assert_allclose(share, [0.5, 0.25], atol=0.01)


@pytest.mark.parametrize(
    ("use", "said"),
    [
        (lambda: ToyModels(2, 2, [0], importance=torch.tensor(1 + 1j)), "importance is of type complex64"),
        (lambda: ToyModels(2, 2, [0], density=np.array([0.5 + 0j])), "density is of type complex128"),
        (lambda: ToyModels(2, 2, [0], noise=np.ma.masked_greater([0.1], 0)), "noise is a masked array"),
        (lambda: ToyModels(4.0, 2, [0]), r"n=4\.0: expected at least 1, a whole number"),  # type: ignore[arg-type]
        (lambda: ToyModels(4, 2, [True]), "seed=True: expected at least 0, a whole number"),
        (lambda: ToyTraining(steps=2.5), r"steps=2\.5: expected at least 1, a whole number"),  # type: ignore[arg-type]
        (lambda: ToyTraining(steps=float("nan")), "steps=nan"),  # type: ignore[arg-type]
        (lambda: ToyTraining(batch=2.0), r"batch=2\.0"),  # type: ignore[arg-type]
        (lambda: ToyTraining(every=0), "every=0: expected at least 1"),
        (lambda: train_toy_models(TOYS, RECIPE, start=TOYS.start() * np.nan), "start of shape .* finite numbers"),
        (lambda: train_toy_models(TOYS, RECIPE, start=TOYS.start() + 1j), "start is of type complex64"),
        (lambda: train_toy_models(TOYS, RECIPE, start=TOYS.start() > 0), "start is of type bool"),
        (lambda: ToyInputs(TOYS, 0), "batch=0: expected at least 1"),
        (lambda: TOYS.part([-1]), "expected their numbers, 0 to 1"),
        (lambda: TOYS.part([5]), "expected their numbers, 0 to 1"),
        (lambda: TOYS.part([[0]]), "expected their numbers, 0 to 1"),  # type: ignore[list-item]
        (lambda: fresh_losses(TOYS, torch.zeros(2, 2, 4) + 1j, torch.zeros(2, 4)), "W is of type complex64"),
        (lambda: fresh_losses(TOYS, torch.zeros(2, 2, 4), torch.zeros(2, 4), 1.5), r"batches=1\.5"),  # type: ignore[arg-type]
    ],
)
def test_settings_that_are_none_are_refused(use: Callable[[], Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        use()
