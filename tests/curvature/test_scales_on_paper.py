"""What is asked for at every scale: lengths of columns, means of small losses, batches of several shapes."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from descent.curvature import hessian
from descent.curvature.eigen import length


def test_columns_of_very_different_lengths_have_each_their_own() -> None:
    columns = np.array([[3e-200, 3e200], [4e-200, 4e200]])
    np.testing.assert_allclose(length(columns), [5e-200, 5e200])
    np.testing.assert_allclose(length(columns[:, 0]), 5e-200)
    assert length(np.zeros((0, 2))).tolist() == [0, 0]


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_sum_in_place_of_a_mean_is_refused_at_every_scale_of_the_loss(scale: float) -> None:
    torch.manual_seed(0)
    model, batch = nn.Linear(3, 2).double(), (torch.randn(6, 3).double(), torch.randn(6, 2).double())

    def summed(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return scale * (model(batch[0]) - batch[1]).square().sum()

    with pytest.raises(ValueError, match="expected a mean per example"):
        hessian(model, summed, [batch])


def test_batches_of_different_lengths_of_text_are_compared_with_their_own_kind() -> None:
    """Rows of two lengths cannot be put together; those of one length still must agree on the mean."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()

    def loss(model: nn.Module, batch: tuple[Tensor]) -> Tensor:
        return model(batch[0]).square().mean()

    texts = [(torch.randn(4, words, 3).double(),) for words in (5, 7, 5, 7)]
    operator = hessian(model, loss, texts)
    vector = np.random.default_rng(0).standard_normal(operator.shape[0])
    each = np.mean([hessian(model, loss, [text]) @ vector for text in texts], axis=0)
    np.testing.assert_allclose(operator @ vector, each)
