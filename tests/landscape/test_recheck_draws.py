"""The points of a surface that are computed again: their number, and that the seed draws them."""

import numpy as np

from descent.landscape.surface import LossSurface, recompute_points


class Asked:
    """Stands for an evaluator; keeps the points that it is asked for."""

    def __init__(self) -> None:
        self.points: list[list[float]] = []

    def in_float32(self) -> "Asked":
        return self

    def __call__(self, points: np.ndarray) -> dict[str, np.ndarray]:
        self.points = np.asarray(points).tolist()
        return {"loss": np.full(len(points), 2.0)}


def drawn(seed: int, **share: float) -> tuple[list[list[float]], np.ndarray]:
    alpha, beta = np.linspace(-1, 1, 15), np.linspace(0, 2, 7)
    loss = 1 + np.arange(105.0).reshape(15, 7)
    evaluator = Asked()
    off = recompute_points(evaluator, LossSurface(alpha, beta, {"loss": loss}, 1, "float32"), seed, **share)
    values = dict(zip([(a, b) for a in alpha for b in beta], loss.ravel(), strict=True))
    np.testing.assert_allclose(off, [abs(values[a, b] - 2) / 2 for a, b in evaluator.points])
    return evaluator.points, off


def test_the_seed_draws_a_fiftieth_of_the_points_without_repeats() -> None:
    points, off = drawn(0)
    assert len(points) == len(off) == 3  # the fiftieth part of 105, rounded up
    assert drawn(0)[0] == points
    assert len({str(drawn(seed)[0]) for seed in range(5)}) == 5
    every = drawn(1, share=1.0)[0]
    assert len({tuple(point) for point in every}) == len(every) == 105
