"""Logits that are no numbers are never right."""

import math

import pytest
import torch
from torch import nn

from descent.data import Dataset
from descent.experiments.cifar_resnets import error_rate
from descent.experiments.grokking_measures import accuracy, mean_loss

LOGITS = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0]])


@pytest.mark.parametrize("place", [(0, 0), (0, 2), (1, 0)])
def test_a_nan_logit_makes_accuracy_and_loss_nan(place: tuple[int, int]) -> None:
    targets = torch.tensor([0, 1])
    assert accuracy(LOGITS, targets) == 1
    logits = LOGITS.clone()
    logits[place] = math.nan
    assert math.isnan(accuracy(logits, targets))
    assert math.isnan(mean_loss(logits, targets))
    assert math.isnan(accuracy(torch.full((5, 3), math.nan), torch.zeros(5, dtype=torch.long)))


class NanFor(nn.Module):
    """Logits for class 0, or NaN for images with a large first pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = torch.tensor([1.0, 0.0]).repeat(len(images), 1)
        return torch.where((images[:, 0, 0, 0] > 2)[:, None], math.nan, logits)


def test_an_image_with_a_nan_logit_is_misclassified() -> None:
    pixels = torch.rand(10, 3, 4, 4, generator=torch.Generator().manual_seed(0)) / 10
    pixels[:3, 0, 0, 0] = 1.0
    data = Dataset("small", "train", pixels, torch.zeros(10, dtype=torch.long), 2)
    assert error_rate(NanFor(), data, data, "float32") == pytest.approx(0.3)
