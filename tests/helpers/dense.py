"""Matrices of operators."""

import numpy as np
from scipy.sparse.linalg import LinearOperator


def dense_matrix(operator: LinearOperator | np.ndarray) -> np.ndarray:
    """All entries, the mean of the matrix and its transpose."""
    matrix = operator @ np.eye(operator.shape[0])
    return (matrix + matrix.T) / 2
