"""Steps a second in mazes, and agents a minute: ours beside stable-baselines3 on minigrid and a plain loop, in one run.

The task: mazes of 7 x 7 cells, each episode in another; cheese, worth 1, in the 3 x 3 cells at the top right; a start
on any free cell; four moves; an end at the cheese or after 40 steps. An agent is trained by 800 updates of 32 mazes x
16 walkers x 40 steps, or by 400 steps of the exact gradient in 128 mazes, which walks nowhere.

Ours sees a maze once, without the agent, and has all cells' answers from that pass. The textbook's loop has one maze
and one agent, which is a channel of the picture: a pass of the same network for each step, read where the agent is, and
an update after each episode. All have one thread and take turns; figures are medians over the turns. Ours trains whole
agents; seconds for an agent of the others are extrapolated from their steps a second to as many steps.

stable-baselines3 and minigrid take part when PEERS names a folder that they are installed in, apart from the book's
own packages, which they use as they are:
    pip install --no-deps --target peers stable-baselines3==2.9.2 minigrid==3.2.0 gymnasium==1.4.0 pygame==2.6.1
and then: PEERS=peers make bench.
The environment on minigrid's grid turns the agent and has minigrid's own step go forward; what is seen is minigrid's
encoding of the whole grid. A second one, in plain Python, has no more to compute than the textbook's loop. Before that,
the same moves are made in both, and the steps counted at which places, rewards or ends differ. PPO has 8 environments
and 128 steps, as RL Baselines3 Zoo has for minigrid, A2C 16 and 5, as for Atari; no monitor, no running normalisation.
Their usual policy for small pictures, two hidden layers of 64, needs much fewer operations than our network; a variant
has our network, read where the agent is. Without PEERS only the textbook's loop is compared with.

The limit is that of the multiply-adds of the passes, forward and twice that backward, at the rate of one large product.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from descent.experiments.maze import MOVES, Exam, Mazes, kruskal_mazes, picture
from descent.experiments.maze_agents import (
    Lesson,
    PolicyMap,
    TeachingPlan,
    draw_things,
    sample_walks,
    teach,
    teach_by_sampling,
)
from descent.repro.seeding import deterministic
from measure import Result, gemm, importable, interleaved, operations

ROOMS, BLOCK, EPISODE, DRAWN = 4, 3, 40, 4000
SIDE = 2 * ROOMS - 1
TASK = "cheese in the block"
EXACT = TeachingPlan((Lesson((TASK,), 400),), mazes=128, block=BLOCK)
SAMPLED = TeachingPlan((Lesson((TASK,), 800),), mazes=32, block=BLOCK, learning_rate=1e-3, entropy=0.05, warmup=20)
WALKERS = 16
STEPS = SAMPLED.steps * SAMPLED.mazes * WALKERS * EPISODE  # of an agent that is taught by walking
ROUNDS, SLOW, WALKED = 3, 2560, 20_000  # turns; steps of a turn in which the others train, and in which they only walk
TURN = (3, 1, 2, 0)  # minigrid's number of the direction of each of MOVES
ALGORITHMS: dict[str, tuple[int, dict[str, Any]]] = {  # environments and arguments
    "A2C": (16, {"n_steps": 5}),
    "PPO": (8, {"n_steps": 128, "batch_size": 64, "n_epochs": 10}),
}


def mazes() -> Mazes:
    """Those to be trained in."""
    return Mazes.from_free(kruskal_mazes(DRAWN, ROOMS, np.random.default_rng(1)), False)


class OneMaze:
    """One agent in one maze at a time, in plain Python."""

    def __init__(self, free: NDArray[np.bool_], seed: int) -> None:
        self.free = [each.tolist() for each in free]
        self.walls = np.zeros((len(free), 3, SIDE, SIDE), np.float32)
        self.walls[:, 0] = free
        self.cells = [[(r, c) for r, c in np.argwhere(each).tolist()] for each in free]
        self.block = [[(r, c) for r, c in each if r < BLOCK and c >= SIDE - BLOCK] for each in self.cells]
        self.generator = np.random.default_rng(seed)

    def draw(self) -> None:
        """Another maze, cheese in its block, the agent elsewhere."""
        self.number = int(self.generator.integers(len(self.free)))
        block, cells = self.block[self.number], self.cells[self.number]
        self.cheese = self.place = block[int(self.generator.integers(len(block)))]
        while self.place == self.cheese:
            self.place = cells[int(self.generator.integers(len(cells)))]
        self.left = EPISODE

    def seen(self) -> NDArray[np.float32]:
        """The picture: free cells, the cheese, the agent."""
        out: NDArray[np.float32] = self.walls[self.number].copy()
        out[(1, *self.cheese)] = out[(2, *self.place)] = 1
        return out

    def move(self, number: int) -> tuple[float, bool, bool]:
        """Make one of `MOVES`; the reward, whether the cheese is reached, and whether the steps are used up."""
        row, column = self.place[0] + MOVES[number][0], self.place[1] + MOVES[number][1]
        if 0 <= row < SIDE and 0 <= column < SIDE and self.free[self.number][row][column]:
            self.place = (row, column)
        self.left -= 1
        reached = self.place == self.cheese
        return float(reached), reached, self.left == 0


class AtTheAgent(nn.Module):
    """A policy map whose picture has the agent, read where it is: logits of the moves and a value, `(pictures, 5)`."""

    def __init__(self) -> None:
        super().__init__()
        self.map = PolicyMap(SIDE, things=2, outputs=5)

    def forward(self, seen: Tensor) -> Tensor:
        """Of pictures `(pictures, 3, side, side)`."""
        out: Tensor = (self.map(seen) * seen[:, 2:]).sum((2, 3))
        return out


def textbook_walk(env: OneMaze, steps: int) -> None:
    """Random moves."""
    moves = env.generator.integers(len(MOVES), size=steps).tolist()
    env.draw()
    for move in moves:
        _, ended, cut = env.move(move)
        env.seen()
        if ended or cut:
            env.draw()


def textbook_training(env: OneMaze, network: AtTheAgent, steps: int) -> int:
    """Advantage actor-critic, an update after each episode, until at least so many steps are walked; their number."""
    optimizer = torch.optim.Adam(network.parameters(), SAMPLED.learning_rate)
    walked = 0
    while walked < steps:
        env.draw()
        rewards, values, chances, entropies = [], [], [], []
        over = False
        while not over:
            out = network(torch.from_numpy(env.seen())[None])[0]
            policy: Any = torch.distributions.Categorical(logits=out[:4], validate_args=False)
            move = policy.sample()
            reward, ended, cut = env.move(int(move))
            rewards.append(reward)
            values.append(out[4])
            chances.append(policy.log_prob(move))
            entropies.append(policy.entropy())
            over = ended or cut
        walked += len(rewards)
        value = torch.stack(values)
        with torch.no_grad():
            later = 0.0 if ended else float(network(torch.from_numpy(env.seen())[None])[0, 4])
        returns = []
        for reward in reversed(rewards):
            later = reward + SAMPLED.discount * later
            returns.append(later)
        advantage = torch.tensor(returns[::-1]) - value
        gain = (advantage.detach() * torch.stack(chances)).mean() + SAMPLED.entropy * torch.stack(entropies).mean()
        optimizer.zero_grad()
        loss: Any = 0.5 * advantage.square().mean() - gain
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), SAMPLED.clip)
        optimizer.step()
    return walked


@dataclass(frozen=True)
class Peers:
    """The packages, and environments of the task."""

    algorithms: Any
    vectors: Any
    on_minigrid: Callable[[NDArray[np.bool_], int], Any]
    in_python: Callable[[NDArray[np.bool_], int], Any]
    extractor: Any


def environments() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Of the task: on minigrid's grid, and in plain Python."""
    gymnasium = importlib.import_module("gymnasium")
    base = importlib.import_module("minigrid.minigrid_env").MiniGridEnv
    grids, things = importlib.import_module("minigrid.core.grid"), importlib.import_module("minigrid.core.world_object")
    missions, wrappers = importlib.import_module("minigrid.core.mission"), importlib.import_module("minigrid.wrappers")

    class OnMinigrid(base):  # type: ignore[misc, valid-type]
        """The task on minigrid's grid, which has a wall around."""

        def __init__(self, free: NDArray[np.bool_], seed: int) -> None:
            self.one = OneMaze(free, seed)
            mission = missions.MissionSpace(mission_func=lambda: "reach the cheese")
            super().__init__(mission, grid_size=SIDE + 2, max_steps=EPISODE, see_through_walls=True)
            self.action_space = gymnasium.spaces.Discrete(len(MOVES))

        def _gen_grid(self, width: int, height: int) -> None:
            self.one.draw()
            self.grid = grids.Grid(width, height)
            self.grid.wall_rect(0, 0, width, height)
            for row, cells in enumerate(self.one.free[self.one.number], 1):
                for column, free in enumerate(cells, 1):
                    if not free:
                        self.grid.set(column, row, things.Wall())
            self.put_obj(things.Goal(), self.one.cheese[1] + 1, self.one.cheese[0] + 1)
            self.agent_pos, self.agent_dir = (self.one.place[1] + 1, self.one.place[0] + 1), 0

        def _reward(self) -> float:
            return 1.0

        def step(self, action: int) -> Any:
            self.agent_dir = TURN[action]
            return super().step(self.actions.forward)

        @property
        def place(self) -> tuple[int, int]:
            return int(self.agent_pos[1]) - 1, int(self.agent_pos[0]) - 1

    class InPython(gymnasium.Env):  # type: ignore[misc, name-defined]
        """The task as the textbook's loop has it."""

        def __init__(self, free: NDArray[np.bool_], seed: int) -> None:
            self.one = OneMaze(free, seed)
            self.observation_space = gymnasium.spaces.Box(0, 1, (3, SIDE, SIDE), np.float32)
            self.action_space = gymnasium.spaces.Discrete(len(MOVES))

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            super().reset(seed=seed)
            self.one.draw()
            return self.one.seen(), {}

        def step(self, action: int) -> Any:
            reward, ended, cut = self.one.move(action)
            return self.one.seen(), reward, ended, cut, {}

        @property
        def place(self) -> tuple[int, int]:
            return self.one.place

    return lambda free, seed: wrappers.ImgObsWrapper(wrappers.FullyObsWrapper(OnMinigrid(free, seed))), InPython


@contextmanager
def installed() -> Iterator[Peers | None]:
    """The packages in PEERS, where they are there, inside the block."""
    folder = Path(os.environ.get("PEERS", ""))
    if not folder.name or not (folder / "stable_baselines3").is_dir():
        print("PEERS names no folder with stable-baselines3 and minigrid: they are left out", file=sys.stderr)
        yield None
        return
    with importable(folder.resolve(), ()):
        base = importlib.import_module("stable_baselines3.common.torch_layers").BaseFeaturesExtractor

        class OurNetwork(base):  # type: ignore[misc, valid-type]
            """The residual stream of our network where the agent is, which linear heads of theirs read."""

            def __init__(self, space: Any) -> None:
                width = 16
                super().__init__(space, width)
                self.map = PolicyMap(SIDE, 2, (width, 10))
                del self.map.head

            def forward(self, seen: Tensor) -> Tensor:
                out: Tensor = (self.map.stream(seen)[-1] * seen[:, 2:]).sum((2, 3))
                return out

        yield Peers(
            importlib.import_module("stable_baselines3"),
            importlib.import_module("stable_baselines3.common.vec_env"),
            *environments(),
            OurNetwork,
        )


def steps_apart(peers: Peers, free: NDArray[np.bool_], steps: int = 2000) -> int:
    """At how many steps of a random walk place, reward or end differ between the two environments."""
    pair = [peers.on_minigrid(free, 0), peers.in_python(free, 0)]
    for env in pair:
        env.reset()
    apart = 0
    for move in np.random.default_rng(0).integers(len(MOVES), size=steps).tolist():
        found = [(env.step(move)[1:4], env.unwrapped.place) for env in pair]
        apart += found[0] != found[1]
        if any(found[0][0][1:]):
            for env in pair:
                env.reset()
    return apart


def peer_walk(env: Any, steps: int) -> None:
    """Random moves."""
    moves = np.random.default_rng(0).integers(len(MOVES), size=steps).tolist()
    env.reset()
    for move in moves:
        _, _, ended, cut, _ = env.step(move)
        if ended or cut:
            env.reset()


def peer_training(
    peers: Peers, name: str, make: Callable[[NDArray[np.bool_], int], Any], free: NDArray[np.bool_], ours: bool
) -> Callable[[int], int]:
    """A turn of training by an algorithm of theirs: it returns the number of steps."""
    count, arguments = ALGORITHMS[name]
    vector = peers.vectors.DummyVecEnv([lambda seed=seed: make(free, seed) for seed in range(count)])
    network = {"features_extractor_class": peers.extractor, "net_arch": []} if ours else {}
    model = getattr(peers.algorithms, name)(
        "MlpPolicy", vector, policy_kwargs=network, seed=0, device="cpu", **arguments
    )

    def turn(_: int) -> int:
        model.learn(SLOW)
        return int(model.num_timesteps)

    return turn


def limits() -> tuple[float, float]:
    """Seconds of the products of an agent that is taught exactly, and by walking."""
    rate = gemm("float32", 1024, 7)
    seen = torch.zeros(1, 2, SIDE, SIDE)
    exact, sampled = (3 * operations(PolicyMap(SIDE, outputs=outputs), seen) for outputs in (4, 5))
    return exact * EXACT.mazes * EXACT.steps / rate, sampled * SAMPLED.mazes * SAMPLED.steps / rate


def our_walk(drawn: Mazes, updates: int) -> None:
    """As many random moves as so many updates have."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(updates):
        batch = drawn[torch.randint(len(drawn), (SAMPLED.mazes,), generator=generator)]
        cheese, star, reward = draw_things(batch, TASK, BLOCK, generator)
        picture(batch, cheese, star)
        random = torch.full((*batch.cells.shape, len(MOVES)), 1 / len(MOVES))
        sample_walks(random, batch, reward, (WALKERS, EPISODE), generator)


def our_agent(drawn: Mazes, exact: bool) -> PolicyMap:
    """Train one."""
    torch.manual_seed(0)
    network = PolicyMap(SIDE, outputs=4 if exact else 5)
    if exact:
        teach(network, drawn, EXACT)
    else:
        teach_by_sampling(network, drawn, SAMPLED, (WALKERS, EPISODE))
    return network


def walking(drawn: Mazes, peers: Peers | None) -> list[Result]:
    """Steps a second without an agent that learns or looks."""
    free = drawn.free.numpy()
    one = OneMaze(free, 0)
    updates = 10
    works: dict[str, Callable[[int], object]] = {
        "ours": lambda _: our_walk(drawn, updates),
        "textbook: one agent, one step at a time": lambda _: textbook_walk(one, WALKED),
    }
    steps = dict.fromkeys(works, WALKED) | {"ours": updates * SAMPLED.mazes * WALKERS * EPISODE}
    apart = {}
    if peers:
        for name, make in (("minigrid", peers.on_minigrid), ("gymnasium, in plain Python", peers.in_python)):
            env = make(free, 0)
            works[name] = lambda _, env=env: peer_walk(env, WALKED)  # type: ignore[misc]
            steps[name], apart[name] = WALKED, float(steps_apart(peers, free))
    rates = {name: steps[name] / seconds for name, (seconds, _) in interleaved(works, ROUNDS).items()}
    results = []
    for name, rate in rates.items():
        figures = {"steps a second": rate, "times slower": rates["ours"] / rate}
        if name in apart:
            figures["steps apart"] = apart[name]
        results.append(Result(f"random walks in mazes of {SIDE} x {SIDE}", name, figures))
    return results


def training(drawn: Mazes, peers: Peers | None) -> list[Result]:
    """Steps a second of training, seconds for an agent and agents a minute, how well ours find the cheese."""
    free = drawn.free.numpy()
    exam = Exam.draw(Mazes.from_free(kruskal_mazes(300, ROOMS, np.random.default_rng(2))), BLOCK, 0)
    torch.manual_seed(0)
    one, network = OneMaze(free, 0), AtTheAgent()
    ours = {"ours, exact": True, "ours, by walking": False}
    works: dict[str, Callable[[int], Any]] = {
        name: lambda _, exact=exact: our_agent(drawn, exact)  # type: ignore[misc]
        for name, exact in ours.items()
    }
    works["textbook: one agent, a pass a step"] = lambda _: textbook_training(one, network, SLOW)
    if peers:
        for name in ALGORITHMS:
            works[f"{name} on minigrid"] = peer_training(peers, name, peers.on_minigrid, free, False)
        for name in ALGORITHMS:
            works[f"{name} in plain Python"] = peer_training(peers, name, peers.in_python, free, False)
        works["A2C in plain Python, our network"] = peer_training(peers, "A2C", peers.in_python, free, True)
    limit = dict(zip(ours, limits(), strict=True))
    found = interleaved(works, ROUNDS)
    whole = {name: seconds for name, (seconds, _) in found.items() if name in ours}
    for name, (seconds, walked) in found.items():
        if name not in ours:
            whole[name] = STEPS * seconds / float(np.median(walked))
    results = []
    for name, seconds in whole.items():
        figures = {"seconds an agent": seconds, "agents a minute": 60 / seconds}
        if name != "ours, exact":
            figures |= {"steps a second": STEPS / seconds, "times slower": seconds / whole["ours, by walking"]}
        figures["times slower than exact"] = seconds / whole["ours, exact"]
        if name in ours:
            agent = found[name][1][-1]
            figures |= {"times its limit": seconds / limit[name], "finds the cheese": exam.in_training(agent)}
        variant = name if name in ours else f"{name}, extrapolated"
        results.append(Result(f"training of an agent in mazes of {SIDE} x {SIDE}", variant, figures))
    return results


def run() -> list[Result]:
    """See `walking` and `training`."""
    with installed() as peers, deterministic(1):
        drawn = mazes()
        return walking(drawn, peers) + training(drawn, peers)
