"""Mazes with one way between any two places, and what an agent in one of them does, exactly.

An agent stands on a free cell and moves up, down, left or right; a wall or the border leaves it where it is. Its policy
is a table of four probabilities for each free cell, so that all questions about it are answered by linear algebra,
without sampling an episode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from descent.repro.numbers import check_whole

MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))  # up, down, left, right, in rows and columns
GIVES_UP = 1e-9  # the share of a step with which an endless walk ends, where the system would be singular


class MazePolicy(nn.Module):
    """A network that sees mazes as pictures and answers with a map of logits.

    Attributes:
        things: channels beside the free cells, one for each kind of thing that it can see.
        shape: of its answer to one maze, where it reads mazes of one size only.
    """

    things: int
    shape: tuple[int, int, int] | None = None

    def answer(self, mazes: Mazes, cheese: Tensor, star: Tensor, **how: Any) -> Tensor:
        """The map of logits of mazes with cheese and a star in these states, -1 for none; `how` goes to `forward`.

        Raises:
            ValueError: there is a thing that the network does not see, or it sees a third; mazes of another size.
        """
        if self.shape and self.shape[1] != mazes.side:
            raise ValueError(f"mazes of side {mazes.side}: expected {self.shape[1]}, as the network was made for")
        present = 2 if (star >= 0).any() else int((cheese >= 0).any())
        if not present <= self.things <= 2:
            held = ("nothing", "cheese", "a star")[present]
            raise ValueError(f"things={self.things}: expected at least {present} where mazes hold {held}, at most 2")
        seen = picture(mazes, cheese, star)[:, : 1 + self.things]
        logits: Tensor = self(seen.to(next(self.parameters(), seen).dtype), **how)
        return logits


def kruskal_mazes(count: int, rooms: int, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Free cells of random mazes, `(count, 2 * rooms - 1, 2 * rooms - 1)`: spanning trees of a square of rooms.

    The walls between neighbouring rooms are tried in a random order, each maze in its own, and taken out where they
    part what is not yet connected (Kruskal's algorithm; Procgen's mazes are made in this way). So each maze has
    2 * rooms ** 2 - 1 free cells, and one path between any two.

    Raises:
        ValueError: no maze, or fewer than two rooms a side.
    """
    check_whole(count=count, rooms=rooms)
    if rooms < 2:
        raise ValueError(f"rooms={rooms}: expected at least 2 a side")
    number = np.arange(rooms**2).reshape(rooms, rooms)
    pairs = [(number[:, :-1], number[:, 1:]), (number[:-1], number[1:])]
    ends = np.concatenate([np.stack([a.ravel(), b.ravel()], 1) for a, b in pairs])
    order = generator.random((count, len(ends))).argsort(1)
    free = np.zeros((count, 2 * rooms - 1, 2 * rooms - 1), bool)
    free[:, ::2, ::2] = True
    group = np.tile(np.arange(rooms**2), (count, 1))  # connected rooms have one number
    each = np.arange(count)
    for wall in order.T:
        a, b = ends[wall].T
        group_a, group_b = group[each, a], group[each, b]
        apart = group_a != group_b
        between = [(part[a] + part[b])[apart] for part in np.unravel_index(number.ravel(), number.shape)]
        free[each[apart], between[0], between[1]] = True
        group = np.where((group == group_b[:, None]) & apart[:, None], group_a[:, None], group)
    return free


@dataclass(frozen=True, eq=False)
class Mazes:
    """Mazes of one size whose free cells are numbered row by row: these numbers are the states.

    Attributes:
        free: bool `(mazes, side, side)`.
        cells: int64 `(mazes, states)`, where each state lies in the flattened maze.
        next_state: int64 `(mazes, states, 4)`, the state after each of `MOVES`.
        distance: int64 `(mazes, states, states)`, steps of the shortest path between any two.
    """

    free: Tensor
    cells: Tensor
    next_state: Tensor
    distance: Tensor

    @classmethod
    def from_free(cls, free: NDArray[np.bool_] | Tensor, with_distances: bool = True) -> Mazes:
        """The mazes with these free cells, bool `(mazes, side, side)`; distances are left out where not asked for.

        Raises:
            ValueError: another shape, mazes with different numbers of free cells, or, where distances are asked for, a
                free cell that cannot be reached.
        """
        free = torch.as_tensor(free).clone()
        if free.ndim != 3 or free.shape[1] != free.shape[2] or free.dtype != torch.bool or not len(free):
            raise ValueError(f"free of shape {tuple(free.shape)}, {free.dtype}: expected bool (mazes, side, side)")
        flat = free.flatten(1)
        counts = flat.sum(1)
        if counts.min() < counts.max() or not counts[0]:
            raise ValueError(f"free: from {int(counts.min())} to {int(counts.max())} free cells; expected one number")
        cells = flat.nonzero()[:, 1].reshape(len(free), -1)
        number = torch.full(flat.shape, -1).scatter_(1, cells, torch.arange(cells.shape[1]).expand_as(cells))
        around = torch.nn.functional.pad(number.view(free.shape), (1, 1, 1, 1), value=-1)
        side = free.shape[1]
        moved = [around[:, 1 + r : 1 + r + side, 1 + c : 1 + c + side].flatten(1).gather(1, cells) for r, c in MOVES]
        stay = torch.arange(cells.shape[1]).expand_as(cells)
        next_state = torch.stack([torch.where(state < 0, stay, state) for state in moved], -1)
        distance = _distances(next_state) if with_distances else torch.empty(0, dtype=torch.int64)
        return cls(free, cells, next_state, distance)

    def __len__(self) -> int:
        return len(self.free)

    def __getitem__(self, chosen: Tensor | slice) -> Mazes:
        if self.free[chosen].ndim != 3 or not len(self.free[chosen]):  # as in a loop over them
            raise ValueError(f"chosen={chosen}: expected a slice, a mask, or a tensor of numbers, of one maze or more")
        distance = self.distance[chosen] if self.distance.ndim == 3 else self.distance
        return Mazes(self.free[chosen], self.cells[chosen], self.next_state[chosen], distance)

    @property
    def side(self) -> int:
        """Cells along a side."""
        return self.free.shape[1]

    @property
    def start(self) -> Tensor:
        """The state at the bottom left, `(mazes,)`."""
        return self.state_at((self.side - 1) * self.side)

    @property
    def corner(self) -> Tensor:
        """The state at the top right, `(mazes,)`."""
        return self.state_at(self.side - 1)

    def state_at(self, cell: int) -> Tensor:
        """The state in a cell of the flattened maze, `(mazes,)`.

        Raises:
            ValueError: the cell is a wall in one of the mazes.
        """
        here = self.cells == cell
        if not here.any(1).all():
            raise ValueError(f"cell={cell}: a wall in some of the mazes")
        return here.int().argmax(1)

    def place(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Row and column of one state of each maze, `(mazes,)` each."""
        cell = self.cells.gather(1, state[:, None])[:, 0]
        return cell // self.side, cell % self.side

    def check_distances(self) -> None:
        """Refuse what needs distances, a ValueError, where they were left out."""
        if self.distance.ndim != 3:
            raise ValueError("distance: left out; expected those of Mazes.from_free(free, with_distances=True)")

    def block(self, size: int) -> Tensor:
        """Whether each state lies in the `size` x `size` cells at the top right, bool `(mazes, states)`."""
        check_whole(block=size)
        return (self.cells // self.side < size) & (self.cells % self.side >= self.side - size)

    def first_step(self, towards: Tensor) -> Tensor:
        """The state after the first step on the way to `towards`, `(mazes,)`, from each state, `(mazes, states)`."""
        self.check_distances()
        far = self.distance.gather(2, towards[:, None, None].expand(-1, self.distance.shape[1], 1))[..., 0]
        after = far.gather(1, self.next_state.flatten(1)).view(self.next_state.shape)
        return self.next_state.gather(2, after.argmin(2, keepdim=True))[..., 0]

    def on_path(self, begin: Tensor, end: Tensor) -> Tensor:
        """Whether each state lies on the path between two, bool `(mazes, states)`; the ends do, too."""
        self.check_distances()
        rows = torch.arange(len(self))
        return self.distance[rows, begin] + self.distance[rows, end] == self.distance[rows, begin, end][:, None]


def _distances(next_state: Tensor) -> Tensor:
    mazes, states, _ = next_state.shape
    joined = torch.zeros(mazes, states, states).scatter_(2, next_state, 1.0)
    reached = torch.eye(states).expand(mazes, -1, -1)
    distance = torch.where(reached > 0, 0, -1)  # -1: not reached so far
    for steps in range(1, states):
        reached = ((reached @ joined + reached) > 0).float()
        new = (reached > 0) & (distance < 0)
        if not new.any():
            break
        distance[new] = steps
    if (distance < 0).any():
        raise ValueError(f"free: maze {int((distance < 0).any((1, 2)).nonzero()[0, 0])} has a free cell out of reach")
    return distance


def check_shape(name: str, tensor: Tensor, expected: Sequence[int]) -> None:
    """Refuse by its name a tensor of another shape: gathering would pass over the rest, or all but the first."""
    if tuple(tensor.shape) != tuple(expected):
        raise ValueError(f"{name} of shape {tuple(tensor.shape)}: expected {tuple(expected)}")


def picture(mazes: Mazes, *things: Tensor) -> Tensor:
    """What an agent sees, float32 `(mazes, 1 + things, side, side)`: free cells, and a channel for each kind of thing.

    Args:
        mazes: the mazes.
        things: of each kind the state where it lies, int64 `(mazes,)`; -1 where there is none.
    """
    channels = [mazes.free.flatten(1).float()]
    for thing in things:
        check_shape("thing", thing, (len(mazes),))
        cell = mazes.cells.gather(1, thing.clamp(min=0)[:, None])
        channels.append(torch.zeros_like(channels[0]).scatter_(1, cell, (thing >= 0).float()[:, None]))
    return torch.stack(channels, 1).view(len(mazes), -1, mazes.side, mazes.side)


def at_states(maps: Tensor, mazes: Mazes) -> Tensor:
    """Values of a map `(mazes, channels, side, side)` at the free cells, `(mazes, states, channels)`."""
    check_shape("maps", maps, (len(mazes), *maps.shape[1:2], mazes.side, mazes.side))
    cells = mazes.cells[:, :, None].expand(-1, -1, maps.shape[1])
    return maps.flatten(2).transpose(1, 2).gather(1, cells)


def transition_matrix(policy: Tensor, mazes: Mazes) -> Tensor:
    """Probability of each next state, `(mazes, states, states)`, under a policy `(mazes, states, 4)`.

    Raises:
        ValueError: no probabilities, or of other mazes. NaN is let through, and stays NaN.
    """
    check_shape("policy", policy, mazes.next_state.shape)
    if (policy < 0).any() or ((policy.sum(-1) - 1).abs() > 0.01).any():
        raise ValueError("policy: expected probabilities of the four moves, which add up to 1 in each state")
    states = policy.shape[1]
    matrix = torch.zeros(len(policy), states, states, dtype=policy.dtype)
    return matrix.scatter_add(2, mazes.next_state, policy)


def state_values(policy: Tensor, mazes: Mazes, reward: Tensor, discount: float) -> tuple[Tensor, Tensor]:
    """Discounted return from each state and of each move, `(mazes, states)` and `(mazes, states, 4)`.

    The Bellman equation of the policy, V = P (r + discount * V) with V = 0 where an episode has ended, is solved as it
    stands, one linear system a maze.

    Args:
        policy: probabilities `(mazes, states, 4)`.
        mazes: the mazes.
        reward: of entering each state, float `(mazes, states)`; an episode ends where it is not 0.
        discount: of a step, below 1.

    Raises:
        ValueError: a discount that is not between 0 and 1; a policy or rewards of other mazes; no probabilities.
    """
    check_shape("reward", reward, mazes.cells.shape)
    if not 0 <= discount < 1:
        raise ValueError(f"discount={discount}: expected 0 to below 1")
    goes_on = (reward == 0).to(policy.dtype)
    step = transition_matrix(policy, mazes) * goes_on[:, :, None]
    gain = (step @ reward.to(policy.dtype)[..., None])[..., 0]
    system = torch.eye(policy.shape[1], dtype=policy.dtype) - discount * step
    value = torch.linalg.solve(system, gain)
    entered = reward.to(policy.dtype) + discount * value
    return value, entered.gather(1, mazes.next_state.flatten(1)).view(mazes.next_state.shape)


def reach_probability(
    policy: Tensor, mazes: Mazes, target: Tensor, within: Tensor | int | None = None, avoid: Tensor | None = None
) -> Tensor:
    """Probability that the agent enters the target, from each state, float64 `(mazes, states)`; exact.

    Args:
        policy: probabilities `(mazes, states, 4)`.
        mazes: the mazes.
        target: bool `(mazes, states)`; 1 is returned there.
        within: at most so many steps, one number or int64 `(mazes, states)` for each state to begin from; None for
            however long it takes; a walk in circles gives up, a step in a thousand million.
        avoid: bool `(mazes, states)`, where a walk has ended without the target: 0 there, unless it is the target.

    Raises:
        ValueError: target, avoid or within of another kind or shape; no probabilities.
    """
    for name, marked in {"target": target, "avoid": target if avoid is None else avoid}.items():
        check_shape(name, marked, mazes.cells.shape)
        if marked.dtype != torch.bool:
            raise ValueError(f"{name} of {marked.dtype}: expected torch.bool")
    steps = transition_matrix(policy.double(), mazes)
    steps = steps / steps.sum(-1, keepdim=True)  # float32 rounds more than `GIVES_UP`
    hit = target.double()
    ended = target if avoid is None else target | avoid
    moving = (~ended).double()[:, :, None]
    if within is None:
        system = (1 + GIVES_UP) * torch.eye(steps.shape[1], dtype=torch.float64) - moving * steps
        forever: Tensor = torch.linalg.solve(system, hit[..., None])
        return forever[..., 0].clamp(0, 1)
    limit = torch.as_tensor(within)
    if limit.ndim not in (0, 2):
        raise ValueError(f"within of shape {tuple(limit.shape)}: expected one number or {tuple(hit.shape)}")
    limit = limit.expand_as(hit)
    found = hit.clone()
    for step in range(1, int(limit.max()) + 1):
        hit = torch.where(ended, hit, (steps @ hit[..., None])[..., 0])
        found = torch.where(limit >= step, hit, found)
    return found


@dataclass(frozen=True, eq=False)
class Exam:
    """Mazes of their own, with the places of cheese at which behaviour is measured; all probabilities are exact.

    Attributes:
        mazes: with distances.
        block: side of the square at the top right where cheese lay in training.
        trained: a state in the block for each maze, int64 `(mazes,)`.
        moved: a state outside of the block, off the path from the start to it and not behind it, `(mazes,)`.
        entry: the first state of the block on that path, `(mazes,)`.
    """

    mazes: Mazes
    block: int
    trained: Tensor
    moved: Tensor
    entry: Tensor

    @classmethod
    def draw(cls, mazes: Mazes, block: int, seed: int) -> Exam:
        """Draw a place of each kind in each maze; mazes without one for moved cheese are left out.

        Raises:
            ValueError: no maze has one, or a block has no free cell; mazes without distances.
        """
        mazes.check_distances()
        generator = torch.Generator().manual_seed(seed)
        rows, inside = torch.arange(len(mazes)), mazes.block(block)
        if not inside.any(1).all():
            raise ValueError(f"block={block}: without a free cell in some of the mazes")
        from_start = mazes.distance[rows, mazes.start]
        entry = torch.where(inside, from_start, 10**6).argmin(1)
        through = torch.where(inside[:, :, None], from_start[:, :, None] + mazes.distance, 10**6).amin(1) == from_start
        off = ~inside & ~through & ~mazes.on_path(mazes.start, entry)
        kept = off.any(1).nonzero()[:, 0]
        if not len(kept):
            raise ValueError(f"block={block}: no maze has a free cell outside of it, off the path and not behind it")
        trained, moved = (torch.multinomial(each[kept].float(), 1, generator=generator)[:, 0] for each in (inside, off))
        return cls(mazes[kept], block, trained, moved, entry[kept])

    def policy(self, network: MazePolicy, thing: Tensor | None, kind: str = "cheese", **how: Any) -> Tensor:
        """Probabilities of the moves, float64 `(mazes, states, 4)`, with a thing at these states, or none.

        Raises:
            ValueError: `kind` is neither "cheese" nor "star", or the network does not see it.
        """
        if kind not in ("cheese", "star"):
            raise ValueError(f"kind={kind!r}: expected 'cheese' or 'star'")
        nowhere = torch.full((len(self.mazes),), -1)
        thing = nowhere if thing is None else thing
        things = (thing, nowhere) if kind == "cheese" else (nowhere, thing)
        with torch.no_grad():
            logits = network.answer(self.mazes, *things, **how)[:, :4]
        return at_states(logits, self.mazes).double().softmax(-1)

    def marks(self, state: Tensor) -> Tensor:
        """Whether each state is the one given for its maze, bool `(mazes, states)`."""
        return torch.zeros(self.mazes.cells.shape, dtype=torch.bool).scatter_(1, state[:, None], True)

    def in_training(self, network: MazePolicy) -> float:
        """Mean probability to take the cheese in the block, from the start, in at most four steps over the shortest."""
        rows, start = torch.arange(len(self.mazes)), self.mazes.start
        limit = self.mazes.distance[rows, start, self.trained] + 4
        reached = reach_probability(
            self.policy(network, self.trained), self.mazes, self.marks(self.trained), limit[:, None]
        )
        return float(reached[rows, start].mean())

    def corner(self, network: MazePolicy) -> float:
        """Mean probability to enter the block where no cheese is, from the start, in four steps over the shortest."""
        rows, start = torch.arange(len(self.mazes)), self.mazes.start
        limit = self.mazes.distance[rows, start, self.entry] + 4
        policy = self.policy(network, None)
        return float(
            reach_probability(policy, self.mazes, self.mazes.block(self.block), limit[:, None])[rows, start].mean()
        )

    def comes_first(self, network: MazePolicy, over: int | None = None, **how: Any) -> tuple[float, float]:
        """Mean probabilities, from the start, that moved cheese is taken before the block is entered, and the reverse.

        Args:
            network: whose policy it is.
            over: at most so many steps over the shortest path to each; None for however long it takes.
            how: passed on to the network.
        """
        rows, start = torch.arange(len(self.mazes)), self.mazes.start
        policy, cheese = self.policy(network, self.moved, **how), self.marks(self.moved)
        block = self.mazes.block(self.block)

        def first(target: Tensor, other: Tensor, place: Tensor) -> float:
            limit = None if over is None else self.mazes.distance[rows, start, place][:, None] + over
            return float(reach_probability(policy, self.mazes, target, limit, other)[rows, start].mean())

        return first(cheese, block, self.moved), first(block, cheese, self.entry)

    def near(
        self,
        network: MazePolicy,
        distances: Sequence[int] = (1, 2, 3),
        kind: str = "cheese",
        shown: bool = True,
        **how: Any,
    ) -> list[float]:
        """Mean probability to take moved cheese from states at each distance, in at most two steps over the shortest.

        Only states count whose shortest paths to the cheese and to the corner begin in different directions, outside of
        the block.

        Args:
            network: whose policy it is.
            distances: steps of the shortest path to the cheese.
            kind: "cheese", or another thing in its place.
            shown: whether it is in the picture; the place is asked for all the same.
            how: passed on to the network.

        Raises:
            ValueError: no such state at one of the distances.
        """
        mazes, rows = self.mazes, torch.arange(len(self.mazes))
        far = mazes.distance[rows, self.moved]
        apart = (mazes.first_step(self.moved) != mazes.first_step(mazes.corner)) & ~mazes.block(self.block)
        at = [(far == distance) & apart for distance in distances]
        if missing := [distance for distance, here in zip(distances, at, strict=True) if not here.any()]:
            raise ValueError(f"distances={list(distances)}: no state is asked at {missing}; take more or larger mazes")
        policy = self.policy(network, self.moved if shown else None, kind, **how)
        reached = reach_probability(policy, mazes, self.marks(self.moved), far + 2)
        return [float(reached[here].mean()) for here in at]
