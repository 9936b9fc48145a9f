"""Networks that read a maze as a picture, and how they are taught.

A network is a policy map: it sees the whole maze once, without the agent, and answers with the logits of the four moves
at every cell. The agent's place selects the cell.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import relu
from torch.optim import SGD, Adam, Optimizer

from descent.experiments.maze import MazePolicy, Mazes, at_states, check_shape, state_values
from descent.repro.numbers import as_real, check_whole

TASKS = ("cheese in the block", "cheese anywhere", "no cheese", "ignore the cheese", "star anywhere", "ignore the star")


class PolicyMap(MazePolicy):
    """Logits of the four moves at each cell of a maze, by 3 x 3 convolutions with zero padding in residual blocks.

    Args:
        side: of the mazes; a dense head needs it.
        things: channels beside the free cells, one for each kind of thing.
        sizes: channels of the residual stream, and residual blocks, x + relu(conv(x)).
        head: "convolutional", the same map from the stream to logits at each cell, or "dense", one from all cells at
            once to all logits.
        outputs: 4, or 5 with a value of the cell.

    Raises:
        ValueError: another head, or too few of anything.
    """

    def __init__(
        self,
        side: int,
        things: int = 1,
        sizes: tuple[int, int] = (16, 10),
        head: str = "convolutional",
        outputs: int = 4,
    ) -> None:
        super().__init__()
        width, blocks = sizes
        check_whole(side=side, width=width, blocks=blocks)
        check_whole(0, things=things)
        check_whole(4, outputs=outputs)
        if head not in ("convolutional", "dense"):
            raise ValueError(f"head={head!r}: expected 'convolutional' or 'dense'")
        self.stem = nn.Conv2d(1 + things, width, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(blocks))
        everywhere = nn.Sequential(nn.Flatten(), nn.Linear(width * side**2, outputs * side**2))
        self.head = nn.Conv2d(width, outputs, 1) if head == "convolutional" else everywhere
        self.things, self.shape = things, (outputs, side, side)
        _orthogonal(self, blocks)

    def stream(self, seen: Tensor, add: Mapping[int, Tensor] | None = None) -> list[Tensor]:
        """The residual stream after the stem and after each block, `(mazes, width, side, side)` each.

        Args:
            seen: pictures `(mazes, 1 + things, side, side)`.
            add: block, from 1, -> what is added to the stream after it; 0 is the stem.
        """
        add = add or {}
        states = [relu(self.stem(seen)) + add.get(0, 0)]
        for number, block in enumerate(self.blocks, 1):
            states.append(states[-1] + relu(block(states[-1])) + add.get(number, 0))
        return states

    def forward(self, seen: Tensor, add: Mapping[int, Tensor] | None = None) -> Tensor:
        """Logits `(mazes, outputs, side, side)` of pictures; see `stream` for `add`."""
        logits: Tensor = self.head(self.stream(seen, add)[-1]).view(len(seen), -1, *seen.shape[2:])
        return logits


class DensePolicy(MazePolicy):
    """The same map by two hidden layers that see all cells at once: no weight is shared between places."""

    def __init__(self, side: int, things: int = 1, hidden: int = 256) -> None:
        super().__init__()
        sizes = [(1 + things) * side**2, hidden, hidden, 4 * side**2]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.things, self.shape = things, (4, side, side)
        _orthogonal(self)

    def forward(self, seen: Tensor) -> Tensor:
        """Logits `(mazes, 4, side, side)` of pictures."""
        x = seen.flatten(1)
        for layer in list(self.layers)[:-1]:
            x = relu(layer(x))
        logits: Tensor = self.layers[-1](x).view(-1, 4, *seen.shape[2:])
        return logits


class TwoHeads(MazePolicy):
    """Two policy maps that share no weight: `cheese` answers where cheese is seen, `corner` where none is."""

    def __init__(self, side: int, sizes: tuple[int, int] = (8, 6)) -> None:
        super().__init__()
        self.corner = PolicyMap(side, 0, sizes)
        self.cheese = PolicyMap(side, 1, sizes)
        self.things, self.shape = 1, self.cheese.shape

    def forward(self, seen: Tensor) -> Tensor:
        """Logits `(mazes, 4, side, side)` of pictures."""
        with_cheese = seen[:, 1:].amax((1, 2, 3), keepdim=True)
        logits: Tensor = (1 - with_cheese) * self.corner(seen[:, :1]) + with_cheese * self.cheese(seen)
        return logits


def _orthogonal(network: nn.Module, blocks: int = 1) -> None:
    """Orthogonal weights that keep a relu's scale, and that of a sum of `blocks` branches; small ones of the head."""
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        else:
            last, branch = name.startswith(("head", "layers.2")), name.startswith("blocks")
            nn.init.orthogonal_(parameter, 0.1 if last else (2 / blocks) ** 0.5 if branch else 2**0.5)


@dataclass(frozen=True)
class Lesson:
    """A task for a number of steps.

    Attributes:
        tasks: of `TASKS`; each step's mazes are divided between them.
        steps: of the optimiser.
        only: the names of the parameters that are trained begin with this; empty for all.
    """

    tasks: tuple[str, ...]
    steps: int
    only: str = ""


@dataclass(frozen=True)
class TeachingPlan:
    """How an agent is taught.

    Attributes:
        lessons: one after the other.
        mazes: in a step.
        block: side of the square at the top right where cheese lies.
        learning_rate: before warm-up and decay; of Adam where `adam`.
        momentum: of SGD.
        warmup: steps over which a factor of the learning rate rises linearly to 1.
        decay: whether another falls linearly from 1 to 0 over the lesson.
        entropy: weight of the policy's entropy at first; falls linearly to 0 over the last lesson.
        discount: of a step of an episode.
        clip: largest norm of a gradient.
        adam: Adam in place of SGD.
        seed: of batches; weights are drawn where a network is made.
        watch_at: numbers of steps after which a training is looked at, 0 for untrained.
    """

    lessons: tuple[Lesson, ...]
    mazes: int = 128
    block: int = 3
    learning_rate: float = 0.07
    momentum: float = 0.9
    warmup: int = 60
    decay: bool = True
    entropy: float = 0.2
    discount: float = 0.95
    clip: float = 1.0
    adam: bool = False
    seed: int = 0
    watch_at: Sequence[int] = ()

    def __post_init__(self) -> None:
        check_whole(mazes=self.mazes, block=self.block)
        check_whole(0, warmup=self.warmup)
        for lesson in self.lessons:
            if not 0 < len(lesson.tasks) <= self.mazes:
                raise ValueError(f"mazes={self.mazes}: expected 1 or more for each of {len(lesson.tasks)} tasks")

    @property
    def steps(self) -> int:
        """Of all lessons."""
        return sum(lesson.steps for lesson in self.lessons)

    def schedule(self) -> Iterator[tuple[Lesson, float, float]]:
        """Lesson, learning rate and weight of the entropy of each step; each lesson begins anew."""
        for number, lesson in enumerate(self.lessons, 1):
            for step in range(lesson.steps):
                left = 1 - step / lesson.steps
                rise = min(1.0, (step + 1) / (self.warmup + 1))
                rate = self.learning_rate * rise * (left if self.decay else 1.0)
                yield lesson, rate, self.entropy * (left if number == len(self.lessons) else 1.0)


@dataclass(frozen=True, eq=False)
class TaughtAgent:
    """What a training left.

    Attributes:
        network: as trained.
        first, last: flat weights before and after, float32 `(parameters,)`.
        gradients: of each step after clipping, float32 `(steps, parameters)`; empty where not kept.
        updates: what each step added to the weights, likewise.
        seen: what `watch` returned, with its step, in order.
    """

    network: MazePolicy
    first: NDArray[np.float32]
    last: NDArray[np.float32]
    gradients: NDArray[np.float32]
    updates: NDArray[np.float32]
    seen: list[tuple[int, object]] = field(default_factory=list)


def draw_things(mazes: Mazes, task: str, block: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Where cheese and star lie in each maze, -1 for nowhere, and the reward of each state, `(mazes, states)`.

    "cheese in the block": it lies anywhere in the block, and is worth 1. "cheese anywhere" and "star anywhere": on any
    free cell. "no cheese": the block is worth 1. "ignore the cheese", "ignore the star": it lies outside of the block,
    which is worth 1; it is worth nothing itself.

    Raises:
        ValueError: another task, or a block without the free cells, in it or outside, that the task needs.
    """
    if task not in TASKS:
        raise ValueError(f"task={task!r}: expected one of {', '.join(TASKS)}")
    in_block = mazes.block(block)
    of_block = task == "no cheese" or task.startswith("ignore")
    if "anywhere" not in task and not (in_block.any(1) & ~(in_block.all(1) & of_block)).all():
        raise ValueError(f"block={block}: {task!r} needs free cells in it{' and outside' * of_block} in each maze")
    everywhere = torch.ones_like(in_block)
    places = in_block if task == "cheese in the block" else ~in_block if task.startswith("ignore") else everywhere
    thing = torch.multinomial(places.float(), 1, generator=generator)[:, 0]
    of_thing = torch.zeros(in_block.shape).scatter_(1, thing[:, None], 1.0)
    nowhere = torch.full_like(thing, -1)
    reward = in_block.float() if of_block else of_thing
    if task == "no cheese":
        return nowhere, nowhere, reward
    return (nowhere, thing, reward) if "star" in task else (thing, nowhere, reward)


def policy_loss(logits: Tensor, mazes: Mazes, reward: Tensor, discount: float, entropy: float) -> Tensor:
    """The policy gradient's loss with advantages that are exact, less the entropy's part; a mean over states.

    Args:
        logits: `(mazes, 4, side, side)`.
        mazes: the mazes.
        reward: of entering each state, `(mazes, states)`; an episode ends where it is not 0.
        discount: of a step.
        entropy: weight of the policy's entropy.
    """
    check_shape("logits", logits, (len(mazes), 4, mazes.side, mazes.side))
    log_policy = at_states(logits, mazes).log_softmax(-1)
    policy = log_policy.exp()
    with torch.no_grad():
        value, of_move = state_values(policy, mazes, reward, discount)
        advantage = of_move - value[..., None]
        goes_on = (reward == 0).float()
        advantage /= advantage[goes_on > 0].std() + 1e-6
    gain = (policy * advantage).sum(-1) - entropy * (policy * log_policy).sum(-1)
    return -(gain * goes_on).sum() / goes_on.sum()


def teach(
    network: MazePolicy,
    mazes: Mazes,
    plan: TeachingPlan,
    keep: bool = False,
    watch: Callable[[Any], object] | None = None,
) -> TaughtAgent:
    """Train a policy map by policy gradients whose advantages are exact.

    At each state the gradient is that of the return from there; states count alike, however often they are visited, and
    advantages are scaled by their deviation.

    Args:
        network: `(mazes, channels, side, side)` -> logits `(mazes, 4, side, side)`; trained in place.
        mazes: to draw from.
        plan: see `TeachingPlan`.
        keep: whether gradients and updates are kept, 8 bytes a step and parameter.
        watch: is called with the network after the numbers of steps in the plan's `watch_at`.

    Raises:
        FloatingPointError: a loss is not finite.
        ValueError: a lesson trains no parameter; see `draw_things`, `policy_loss` and `MazePolicy.answer`.
    """
    generator = torch.Generator().manual_seed(plan.seed)
    parameters = dict(network.named_parameters())
    weights, rate = list(parameters.values()), plan.learning_rate
    for lesson in plan.lessons:
        if not any(name.startswith(lesson.only) for name in parameters):
            raise ValueError(f"only={lesson.only!r}: expected what one of {', '.join(parameters)} begins with")
    optimizer: Optimizer = Adam(weights, rate) if plan.adam else SGD(weights, rate, plan.momentum)
    first = _flat(weights)
    gradients, updates, seen = [], [], []
    for step, (lesson, rate, entropy) in enumerate(plan.schedule()):
        if watch and step in plan.watch_at:
            seen.append((step, watch(network)))
        loss = _lesson_loss(network, mazes, plan, (lesson, entropy), generator)
        if not loss.isfinite():
            raise FloatingPointError(f"step {step}: the loss is {loss.item()}; a smaller learning_rate may help")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for name, parameter in parameters.items():
            if not name.startswith(lesson.only):
                parameter.grad = None
        nn.utils.clip_grad_norm_(weights, plan.clip)
        optimizer.param_groups[0]["lr"] = rate
        if keep:
            before = _flat(weights)
            gradients.append(_flat([torch.zeros_like(each) if each.grad is None else each.grad for each in weights]))
        optimizer.step()
        if keep:
            updates.append(_flat(weights) - before)
    if watch and plan.steps in plan.watch_at:
        seen.append((plan.steps, watch(network)))
    kept = [np.stack(rows) if rows else np.empty((0, len(first)), np.float32) for rows in (gradients, updates)]
    return TaughtAgent(network, first, _flat(weights), kept[0], kept[1], seen)


def _lesson_loss(
    network: MazePolicy, mazes: Mazes, plan: TeachingPlan, at: tuple[Lesson, float], generator: torch.Generator
) -> Tensor:
    """Mean loss of a step's tasks, each in mazes of its own; `at` is the lesson and the entropy's weight."""
    losses = []
    for task in at[0].tasks:
        batch = mazes[torch.randint(len(mazes), (plan.mazes // len(at[0].tasks),), generator=generator)]
        cheese, star, reward = draw_things(batch, task, plan.block, generator)
        logits = network.answer(batch, cheese, star)
        losses.append(policy_loss(logits, batch, reward, plan.discount, at[1]))
    return torch.stack(losses).mean()


def _flat(tensors: Sequence[Tensor]) -> NDArray[np.float32]:
    return torch.cat([each.detach().flatten() for each in tensors]).numpy().copy()


@dataclass(frozen=True, eq=False)
class Walks:
    """Sampled steps of many agents, `(steps, mazes, walkers)` each; an episode that ends begins anew, anywhere.

    Attributes:
        state: before each step, and after the last: one row more.
        move: taken.
        reward: entered.
        ended: whether the episode did.
    """

    state: Tensor
    move: Tensor
    reward: Tensor
    ended: Tensor


def sample_walks(
    policy: Tensor, mazes: Mazes, reward: Tensor, count: tuple[int, int], generator: torch.Generator
) -> Walks:
    """Walk in each maze with so many agents, which begin on random free cells; see `Walks`.

    Args:
        policy: probabilities `(mazes, states, 4)`.
        mazes: the mazes.
        reward: of entering each state, `(mazes, states)`; an episode ends where it is not 0.
        count: agents in each maze, and steps of each.
        generator: draws starts and moves.

    Raises:
        ValueError: fewer than one walker or step; rewards of other mazes, or on every free cell.
    """
    walkers, steps = count
    check_whole(walkers=walkers, steps=steps)
    rows = torch.arange(len(policy))[:, None]
    check_shape("reward", reward, mazes.cells.shape)
    begin = (reward == 0).float()
    if not begin.any(1).all():
        raise ValueError("reward: an episode ends on every free cell of some of the mazes")
    up_to = policy.cumsum(-1)
    up_to[..., -1] = 1  # rounding leaves no gap above the last
    fresh = torch.multinomial(begin, walkers * (steps + 1), True, generator=generator).view(
        len(policy), steps + 1, walkers
    )
    here, state, move, gain = fresh[:, 0], [], [], []
    for step in range(steps):
        state.append(here)
        draw = torch.rand(len(policy), walkers, 1, generator=generator)
        move.append((draw >= up_to[rows, here]).sum(-1))
        there = mazes.next_state[rows, here, move[-1]]
        gain.append(reward[rows, there])
        here = torch.where(gain[-1] != 0, fresh[:, step + 1], there)
    rewards = torch.stack(gain)
    return Walks(torch.stack([*state, here]), torch.stack(move), rewards, rewards != 0)


def advantages(walks: Walks, value: Tensor, discount: float, trace: float) -> Tensor:
    """Generalised advantage estimates (Schulman et al. 2016) of each step, `(steps, mazes, walkers)`.

    Args:
        walks: the steps.
        value: estimated of each state, `(mazes, states)`.
        discount: of a step.
        trace: lambda of the estimate: 0 looks one step ahead, 1 to the end.
    """
    values = value[torch.arange(len(value))[:, None], walks.state]
    goes_on = (~walks.ended).to(value.dtype)
    error = walks.reward + discount * goes_on * values[1:] - values[:-1]
    out, later = torch.empty_like(error), torch.zeros_like(error[0])
    for step in reversed(range(len(error))):
        later = error[step] + discount * trace * goes_on[step] * later
        out[step] = later
    return out


def teach_by_sampling(
    network: MazePolicy, mazes: Mazes, plan: TeachingPlan, count: tuple[int, int] = (16, 40), trace: float = 0.95
) -> int:
    """Train a policy map with five outputs, the fifth a value, by advantage actor-critic on sampled walks, in place.

    No maze's map is used but by walking in it. Adam is the optimiser, in one lesson of one task.

    Args:
        network: `(mazes, channels, side, side)` -> `(mazes, 5, side, side)`.
        mazes: to draw from.
        plan: see `TeachingPlan`.
        count: agents in each maze, and steps of each between two updates.
        trace: see `advantages`.

    Returns:
        The number of steps walked.

    Raises:
        FloatingPointError: a loss is not finite.
        ValueError: more than one lesson or task; another number of outputs than 5.
    """
    if len(plan.lessons) != 1 or len(plan.lessons[0].tasks) != 1:
        raise ValueError(f"lessons={plan.lessons}: expected one, of one task")
    generator = torch.Generator().manual_seed(plan.seed)
    optimizer = Adam(network.parameters(), plan.learning_rate)
    for lesson, rate, entropy in plan.schedule():
        batch = mazes[torch.randint(len(mazes), (plan.mazes,), generator=generator)]
        cheese, star, reward = draw_things(batch, lesson.tasks[0], plan.block, generator)
        out = at_states(network.answer(batch, cheese, star), batch)
        check_shape("logits and value", out, (*batch.cells.shape, 5))
        log_policy, value = out[..., :4].log_softmax(-1), out[..., 4]
        walks = sample_walks(log_policy.detach().exp(), batch, reward, count, generator)
        advantage = advantages(walks, value.detach(), plan.discount, trace)
        rows, here = torch.arange(len(batch))[:, None], walks.state[:-1]
        at, returns = log_policy[rows, here], advantage + value.detach()[rows, here]
        unit = (advantage - advantage.mean()) / (advantage.std() + 1e-6)
        gain = (unit * at.gather(-1, walks.move[..., None])[..., 0]).mean() - entropy * (at.exp() * at).sum(-1).mean()
        loss = 0.5 * (value[rows, here] - returns).square().mean() - gain
        if not loss.isfinite():
            raise FloatingPointError(f"the loss is {loss.item()}; a smaller learning_rate may help")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), plan.clip)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
    return plan.steps * plan.mazes * count[0] * count[1]


def pack_int16(values: NDArray[np.floating] | Tensor) -> list[Any]:
    """Shape, scale and base64 text of an array rounded to 16 bits, as a page's script reads it; little-endian.

    Each value is a whole number times the scale, which is the largest magnitude over 32,767.

    Raises:
        ValueError: a value is not finite, or no real number.
    """
    array = as_real(values, "values").astype(np.float64)
    if not np.isfinite(array).all():
        raise ValueError("values: some are not finite")
    scale = float(np.abs(array).max(initial=0.0) / 32767) or 1.0
    whole = np.round(array / scale).astype("<i2")
    return [list(array.shape), scale, base64.b64encode(whole.tobytes()).decode()]


def unpack_int16(packed: Sequence[Any]) -> NDArray[np.float64]:
    """The array that `pack_int16` rounded, float64."""
    shape, scale, text = packed
    values: NDArray[np.float64] = np.frombuffer(base64.b64decode(text), "<i2").reshape(shape) * scale
    return values
