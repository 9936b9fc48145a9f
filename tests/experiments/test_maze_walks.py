"""Sampled walks in mazes, what they say of each move, and networks taught by them."""

from itertools import product

import numpy as np
import pytest
import torch
from small_mazes import CORRIDOR, LEFT, RIGHT, UP, drawn, mark, random_policy, seeded, small

from descent.experiments.maze import Exam, Mazes, at_states, state_values
from descent.experiments.maze_agents import (
    Lesson,
    PolicyMap,
    TeachingPlan,
    Walks,
    advantages,
    draw_things,
    sample_walks,
    teach_by_sampling,
)


def test_walks_follow_the_moves_and_begin_anew() -> None:
    mazes, policy = drawn(3), random_policy(drawn(3), 2, 1.0)
    reward = draw_things(mazes, "no cheese", 2, seeded())[2]
    reward[:, 8] = -0.5
    walks = sample_walks(policy.float(), mazes, reward, (40, 150), seeded())
    assert walks.state.shape == (151, 3, 40)
    assert walks.move.shape == walks.reward.shape == walks.ended.shape == (150, 3, 40)
    n = torch.arange(3)[:, None]
    there = mazes.next_state[n, walks.state[:-1], walks.move]
    assert torch.equal(walks.reward, reward[n, there])
    assert torch.equal(walks.ended, walks.reward != 0)
    assert torch.equal(walks.state[1:][~walks.ended], there[~walks.ended])
    assert (reward[n, walks.state] == 0).all()
    for maze in range(3):
        begins = torch.cat([walks.state[0, maze], walks.state[1:, maze][walks.ended[:, maze]]])
        share = begins.bincount(minlength=17)[reward[maze] == 0] / len(begins)
        even = 1 / len(share)
        assert (share - even).abs().max() < 4 * np.sqrt(even / len(begins))
        for state in (reward[maze] == 0).nonzero()[:, 0]:
            moves = walks.move[:, maze][walks.state[:-1, maze] == state]
            p = policy[maze, state]
            error = (moves.bincount(minlength=4) / len(moves) - p).abs()
            assert (error < 4 * (p * (1 - p) / len(moves)).sqrt() + 1e-9).all()
    again = sample_walks(policy.float(), mazes, reward, (40, 150), seeded())
    assert torch.equal(again.move, walks.move)


@pytest.mark.parametrize(("draw", "move"), [(0.0, LEFT), (0.5, RIGHT), (1 - 2**-24, RIGHT)])
def test_a_move_of_no_probability_is_never_made(monkeypatch, draw: float, move: int) -> None:
    policy = torch.zeros(1, 5, 4)
    policy[..., LEFT], policy[..., RIGHT] = 0.5, 0.4999999
    monkeypatch.setattr(torch, "rand", lambda *shape, generator: torch.full(shape, draw))
    walks = sample_walks(policy, Mazes.from_free(CORRIDOR), mark(1).float(), (3, 4), seeded())
    assert (walks.move == move).all()


def corridor_walk() -> Walks:
    """From 2 by 3 and 0 to the reward at 1, then anew from 4 to 2."""
    states, moves, gains = [2, 3, 0, 4, 2], [RIGHT, UP, RIGHT, UP], [0.0, 0, 1, 0]
    walk = (torch.tensor(each)[:, None, None] for each in (states, moves, gains))
    return Walks(*walk, torch.tensor(gains)[:, None, None] != 0)


def test_advantages_in_a_corridor_on_paper() -> None:
    value = torch.tensor([[0.5, 0.0, 0.25, 0.75, 0.125]])  # of the states 0 to 4
    ahead = advantages(corridor_walk(), value, 0.5, 0)[:, 0, 0]
    assert ahead.tolist() == [0.375 - 0.25, 0.25 - 0.75, 1 - 0.5, 0.125 - 0.125]
    to_end = advantages(corridor_walk(), value, 0.5, 1)[:, 0, 0]
    assert to_end.tolist() == [0.25 - 0.25, 0.5 - 0.75, 1 - 0.5, 0.125 - 0.125]


def test_advantages_are_the_sum_of_errors_to_the_end() -> None:
    mazes = drawn(2)
    reward = draw_things(mazes, "cheese anywhere", 2, seeded())[2]
    walks = sample_walks(random_policy(mazes, 1, 0.3).float(), mazes, reward, (3, 30), seeded())
    value = torch.randn(2, 17, generator=seeded())
    ours = advantages(walks, value, 0.9, 0.7)
    assert 1 < walks.ended.sum() < 40
    for maze, walker in product(range(2), range(3)):
        v = [value[maze, s].item() for s in walks.state[:, maze, walker]]
        ended, gain = walks.ended[:, maze, walker].tolist(), walks.reward[:, maze, walker].tolist()
        for step in range(30):
            total = 0.0
            for later in range(step, 30):
                error = gain[later] + (0 if ended[later] else 0.9 * v[later + 1]) - v[later]
                total += (0.9 * 0.7) ** (later - step) * error
                if ended[later]:
                    break
            assert ours[step, maze, walker].item() == pytest.approx(total, abs=1e-4)


def test_a_short_teaching_by_walks_finds_the_cheese_and_knows_values() -> None:
    mazes, exam = drawn(400), Exam.draw(drawn(40, seed=9), 2, 0)
    network = small(PolicyMap, 1, (8, 3), outputs=5)
    before = exam.in_training(network)
    plan = TeachingPlan(
        (Lesson(("cheese in the block",), 80),), mazes=32, block=2, warmup=5, learning_rate=0.004, entropy=0.03
    )
    steps = teach_by_sampling(network, mazes, plan, (8, 20))
    assert steps == 80 * 32 * 8 * 20
    assert before < 0.1
    assert exam.in_training(network) > 2 * before + 0.1
    policy = exam.policy(network, exam.trained)
    exact = state_values(policy, exam.mazes, exam.marks(exam.trained).float(), 0.95)[0]
    guess = at_states(network.answer(exam.mazes, exam.trained, torch.full_like(exam.trained, -1)), exam.mazes)[..., 4]
    others = ~exam.marks(exam.trained)
    assert np.corrcoef(exact[others], guess.detach()[others])[0, 1] > 0.5


def test_teaching_by_walks_is_the_same_each_time() -> None:
    plan = TeachingPlan((Lesson(("star anywhere",), 3),), mazes=6, block=2, learning_rate=0.01)
    weights = []
    for _ in range(2):
        network = small(PolicyMap, 2, (4, 1), outputs=5)
        teach_by_sampling(network, drawn(20), plan, (2, 5))
        weights.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
    assert torch.equal(*weights)


def test_entropy_that_weighs_much_makes_the_moves_even() -> None:
    network, mazes = small(PolicyMap, 1, (6, 2), outputs=5), drawn(20)
    with torch.no_grad():
        network.head.weight.mul_(20)
    exam = Exam.draw(mazes, 2, 0)
    before, lesson = exam.policy(network, exam.trained), Lesson(("cheese in the block",), 15)
    plan = TeachingPlan((lesson,), mazes=8, block=2, learning_rate=0.02, warmup=0, entropy=10)
    teach_by_sampling(network, mazes, plan, (2, 5))
    surprise = [-torch.xlogy(each, each).sum(-1).mean().item() for each in (before, exam.policy(network, exam.trained))]
    assert surprise[0] + 0.2 < surprise[1] <= np.log(4)
