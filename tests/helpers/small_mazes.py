"""Small mazes, a corridor among them, with policies and networks that do in them what a test says."""

import numpy as np
import torch

from descent.experiments.maze import MazePolicy, Mazes, kruskal_mazes
from descent.experiments.maze_agents import PolicyMap

UP, DOWN, LEFT, RIGHT = range(4)
# One corridor, from the state 4 at the bottom left by 2, 3 and 0 to 1 at the top right.
CORRIDOR = np.array([[[0, 1, 1], [1, 1, 0], [1, 0, 0]]], bool)
FORWARD = {4: UP, 2: RIGHT, 3: UP, 0: RIGHT, 1: UP}
BACK = {4: DOWN, 2: DOWN, 3: LEFT, 0: DOWN, 1: LEFT}
STAY = {4: DOWN, 2: UP, 3: DOWN, 0: UP, 1: UP}


def drawn(count: int = 5, rooms: int = 3, seed: int = 0) -> Mazes:
    return Mazes.from_free(kruskal_mazes(count, rooms, np.random.default_rng(seed)))


def random_policy(mazes: Mazes, seed: int = 0, sharp: float = 2.0) -> torch.Tensor:
    logits = torch.randn(mazes.next_state.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (sharp * logits).softmax(-1)


def mixed(*parts: tuple[dict[int, int], float]) -> torch.Tensor:
    """A policy in the corridor that makes each state's move of a table with a probability."""
    policy = torch.zeros(1, 5, 4, dtype=torch.float64)
    for moves, probability in parts:
        for state, move in moves.items():
            policy[0, state, move] += probability
    return policy


def mark(*states: int, count: int = 5) -> torch.Tensor:
    return torch.isin(torch.arange(count), torch.tensor(states, dtype=torch.int64))[None]


class Table(MazePolicy):
    """Makes the moves of a table whatever it sees, which it notes."""

    def __init__(self, mazes: Mazes, move: torch.Tensor) -> None:
        super().__init__()
        self.things, self.seen = 2, []
        self.maps = torch.zeros(len(mazes), 4, mazes.side**2)
        where = mazes.cells[:, None, :].expand(-1, 4, -1)
        self.maps.scatter_(2, where, 1e4 * torch.nn.functional.one_hot(move, 4).transpose(1, 2).float())
        self.maps = self.maps.view(len(mazes), 4, mazes.side, mazes.side)

    def forward(self, seen: torch.Tensor, times: float = 1.0) -> torch.Tensor:
        self.seen.append(seen)
        return times * self.maps


def towards(mazes: Mazes, goal: torch.Tensor) -> torch.Tensor:
    """The move of each state that shortens the way to the goal most."""
    rows = torch.arange(len(mazes))[:, None, None]
    return mazes.distance[rows, mazes.next_state, goal[:, None, None]].argmin(-1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(make=PolicyMap, *sizes, **more):
    torch.manual_seed(0)
    return make(5, *sizes, **more) if sizes or more or make is not PolicyMap else PolicyMap(5, 1, (6, 2))
