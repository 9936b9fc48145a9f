"""Matrices of operators."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.sparse.linalg import LinearOperator
from torch import Tensor, nn


def dense_matrix(operator: LinearOperator | np.ndarray) -> np.ndarray:
    """All entries, the mean of the matrix and its transpose."""
    matrix = operator @ np.eye(operator.shape[0])
    return (matrix + matrix.T) / 2


def differenced_hessian(model: nn.Module, loss: Callable[[nn.Module, Any], Tensor], batch: Any) -> np.ndarray:
    """The Hessian by the trained parameters, `(P, P)`, of central differences of a plain loop's gradients."""
    model = copy.deepcopy(model)
    weights = [p for p in model.parameters() if p.requires_grad]

    def gradient() -> np.ndarray:
        model.zero_grad()
        loss(model, batch).backward()
        return np.concatenate(
            [np.zeros(p.numel()) if p.grad is None else p.grad.to_dense().flatten().numpy() for p in weights]
        )

    rows = []
    for weight in weights:
        for place in np.ndindex(*weight.shape):
            ends = []
            for step in (1e-5, -1e-5):
                before = weight.detach().clone()
                weight.data[place] += step
                ends.append(gradient())
                weight.data.copy_(before)
            rows.append((ends[0] - ends[1]) / 2e-5)
    return np.stack(rows)
