"""A race out of a saddle: how many steps an optimiser needs, at its best step size, from each distance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from descent.curvature.eigen import saddle_free_step
from descent.repro.numbers import check_whole
from descent.repro.seeding import deterministic, torch_generator
from descent.saddles.functions import SmoothFunction, quadratic

Array = NDArray[np.float64]
RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.6, 1.0, 1.9, 3.5, 10.0)  # of methods that divide by the gradient's size
SHARES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.95)  # of the largest stable step size of the others
REACH = 10.0  # a run that is further from the saddle than this without having escaped is lost
NOISE = 1e-3  # standard deviation per coordinate of each gradient of "SGD + noise"
TUNING_RUNS = 20
OPTIMISERS: dict[str, Callable[..., Optimizer]] = {
    "SGD": SGD,
    "momentum": partial(SGD, momentum=0.9),
    "Nesterov": partial(SGD, momentum=0.9, nesterov=True),
    "RMSprop": RMSprop,
    "Adam": Adam,
    "AdamW": AdamW,
    "SGD + noise": SGD,
}
EPSILON = {"Adam, ε = 1e-16": partial(Adam, eps=1e-16)}  # a variant that does not race: it takes the step of Adam
STABLE = {"SGD": 2.0, "momentum": 3.8, "Nesterov": 3.8 / 2.8, "SGD + noise": 2.0}  # below it, where h is at most 1
NEWTON = "saddle-free Newton"
RACERS = (*OPTIMISERS, NEWTON)


@dataclass(frozen=True)
class EscapeCourse:
    """One kind of saddle and the points from which the runs start.

    The saddle is a quadratic with one unstable direction of curvature -1 / condition; its other curvatures go from 1 to
    1 / condition. A run has escaped when its loss is as low as a unit move along the unstable direction would make it,
    -1 / (2 condition).

    Attributes:
        dimension: number of coordinates, at least 2.
        condition: largest over smallest curvature, in absolute value.
        distances: distances from the saddle to the starts, which lie in random directions.
        runs: number of starts at each distance, each with its own rotation.
        budget: number of steps after which a run counts as not escaped.
        seed: decides rotations, directions and noise.
        rotated: False leaves the saddle's axes along the coordinates.

    Raises:
        ValueError: fewer than two dimensions, a condition below 1 or infinite, a distance that is not positive and
            finite, no run or no step.
    """

    dimension: int
    condition: float
    distances: Sequence[float]
    runs: int
    budget: int
    seed: int
    rotated: bool = True

    def __post_init__(self) -> None:
        if self.dimension < 2 or not 1 <= self.condition < math.inf:
            raise ValueError(f"{self}: expected at least 2 dimensions, and a finite condition of at least 1")
        if not (len(self.distances) and all(0 < distance < math.inf for distance in self.distances)):
            raise ValueError(f"distances={self.distances}: expected at least one, all positive and finite")
        check_whole(runs=self.runs, budget=self.budget)

    def curvatures(self) -> Array:
        """Those of the saddle, `(n,)`: positive ones evenly spaced in logarithm, then the unstable direction's."""
        return np.append(np.geomspace(1, 1 / self.condition, self.dimension - 1), -1 / self.condition)

    def lay_out(self) -> tuple[SmoothFunction, Tensor, Tensor]:
        """Make the surface, the starts `(distances, runs, n)` and the rotations `(runs, n, n)`."""
        n, generator = self.dimension, torch_generator(self.seed, f"course {self.dimension} {self.condition}")
        turns = torch.linalg.qr(torch.randn(self.runs, n, n, dtype=torch.float64, generator=generator))[0]
        turns = turns if self.rotated else torch.eye(n, dtype=torch.float64).repeat(self.runs, 1, 1)
        surface = quadratic(self.curvatures(), turns)
        shape = (len(self.distances), self.runs, n)
        directions = torch.randn(shape, dtype=torch.float64, generator=generator)
        directions /= directions.norm(dim=-1, keepdim=True)
        return surface, torch.tensor(self.distances, dtype=torch.float64)[:, None, None] * directions, turns


def escape_times(course: EscapeCourse, optimiser: str, rates: Sequence[float]) -> Array:
    """The number of steps to escape at several step sizes, `(rates, distances, runs)`; infinite where a run did not.

    The optimisers are those of torch.optim, with a parameter group for each step size. The race ends as soon as one
    step size has brought out every run and no other can have a smaller geometric mean, or no run can escape any more;
    other times may then be infinite for want of steps.

    Raises:
        ValueError: an unknown optimiser.
    """
    choices = OPTIMISERS | EPSILON
    if optimiser not in choices:
        raise ValueError(f"optimiser={optimiser!r}: expected one of {', '.join(choices)}")
    surface, starts, _ = course.lay_out()
    goal, generator = -1 / course.condition / 2, torch_generator(course.seed, f"noise {optimiser}")
    points = torch.stack([starts] * len(rates))
    optimizer = choices[optimiser]([{"params": [p], "lr": rate} for p, rate in zip(points, rates, strict=True)])
    times = torch.full(points.shape[:-1], math.inf, dtype=torch.float64)
    lost = torch.zeros(times.shape, dtype=torch.bool)
    for step in range(course.budget + 1):
        gradients = surface.gradient(points)
        low = (points * gradients).sum(-1) / 2 <= goal  # a quadratic's value from its gradient
        lost |= times.isinf() & ~(points.norm(dim=-1) < REACH)
        times[low & ~lost & times.isinf()] = step
        if (lost | times.isfinite()).all() or _decided(times, lost, step):
            break
        if "noise" in optimiser:
            gradients += NOISE * torch.randn(points.shape, dtype=torch.float64, generator=generator)
        for group, gradient in zip(optimizer.param_groups, gradients, strict=True):
            group["params"][0].grad = gradient
        optimizer.step()
    return times.numpy()


def _decided(times: Tensor, lost: Tensor, step: int) -> bool:
    """Whether the step size of the least geometric mean is known: what is on its way takes longer than `step`."""
    out = times.isfinite().flatten(1).all(1)
    if not out.any():
        return False
    at_least = times.clamp(1, max(step, 1)).log().flatten(1).mean(1)
    at_least[lost.flatten(1).any(1)] = math.inf
    return bool(at_least[out].min() <= at_least.min())


def saddle_free_path(surface: SmoothFunction, start: Tensor, steps: int, goal: float = -math.inf) -> Array:
    """The points of saddle-free Newton with step size one, `(T + 1, n)`, until the value is at most `goal`.

    Each step is -|H|^-1 g in the full Krylov space of the gradient (Dauphin et al. 2014).
    """
    points = [start]
    while len(points) <= steps and float(surface.value(points[-1])) > goal:
        hessian, gradient = surface.hessian(points[-1]).numpy(), surface.gradient(points[-1]).numpy()
        step = saddle_free_step(hessian, gradient, vectors=len(start))
        points.append(points[-1] + torch.from_numpy(step))
    return torch.stack(points).numpy()


def step_sizes(optimiser: str) -> tuple[float, ...]:
    """Those that an optimiser may choose from: the same shares of its stability limit, or `RATES` where it has none."""
    return tuple(STABLE[optimiser] * share for share in SHARES) if optimiser in STABLE else RATES


def race_optimiser(course: EscapeCourse, racer: str) -> tuple[float, Array]:
    """The best step size of an optimiser and its numbers of steps to escape, `(distances, runs)`, on one thread.

    Twenty tuning runs from each distance choose the step size from `step_sizes(racer)`: that which loses the fewest
    runs, and of several such the one with the fewest steps, in the geometric mean over the runs that escape. Fresh
    seeds then race at it. Saddle-free Newton has step size one.

    Raises:
        ValueError: an unknown racer.
    """
    if racer not in RACERS:
        raise ValueError(f"racer={racer!r}: expected one of {', '.join(RACERS)}")
    with deterministic():
        if racer == NEWTON:
            return 1.0, _newton_steps(course)
        tuning = replace(course, seed=course.seed + 10_000, runs=TUNING_RUNS)
        rates = step_sizes(racer)
        logs = np.log(np.maximum(escape_times(tuning, racer, rates), 1)).reshape(len(rates), -1)
        lost = np.isinf(logs)
        means = np.where(lost, 0, logs).sum(1) / np.maximum((~lost).sum(1), 1)
        rate = rates[int(np.lexsort((means, lost.sum(1)))[0])]
        return rate, escape_times(course, racer, [rate])[0]


def _newton_steps(course: EscapeCourse) -> Array:
    _, starts, turns = course.lay_out()
    surfaces, goal = [quadratic(course.curvatures(), turn) for turn in turns], -1 / course.condition / 2
    steps = np.full(starts.shape[:-1], np.inf)
    for distance, run in np.ndindex(*steps.shape):
        path = saddle_free_path(surfaces[run], starts[distance, run], min(course.budget, 200), goal)
        if float(surfaces[run].value(torch.from_numpy(path[-1]))) <= goal:
            steps[distance, run] = len(path) - 1
    return steps
