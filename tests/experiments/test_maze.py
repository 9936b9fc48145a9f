"""Mazes and what an agent does in them: against corridors worked out on paper, plain loops, and scipy's graphs."""

from itertools import product

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import minimum_spanning_tree, shortest_path
from small_mazes import BACK, CORRIDOR, FORWARD, LEFT, STAY, drawn, mark, mixed, random_policy

from descent.experiments.maze import (
    MOVES,
    Exam,
    Mazes,
    at_states,
    kruskal_mazes,
    picture,
    reach_probability,
    state_values,
    transition_matrix,
)
from descent.experiments.maze_agents import DensePolicy, PolicyMap

# mazes


@pytest.mark.parametrize("rooms", [2, 3, 5])
def test_a_maze_is_the_minimum_spanning_tree_of_its_weights(rooms: int) -> None:
    free = kruskal_mazes(6, rooms, np.random.default_rng(rooms))
    weights = np.random.default_rng(rooms).random((6, 2 * rooms * (rooms - 1)))
    number = np.arange(rooms**2).reshape(rooms, rooms)
    left, right = (np.concatenate(each) for each in ([number[:, :-1].ravel(), number[:-1].ravel()],
                                                     [number[:, 1:].ravel(), number[1:].ravel()]))  # fmt: skip
    for maze, weight in zip(free, weights, strict=True):
        expected = np.zeros((2 * rooms - 1, 2 * rooms - 1), bool)
        expected[::2, ::2] = True
        tree = minimum_spanning_tree(csr_array((weight, (left, right)), shape=(rooms**2, rooms**2))).tocoo()
        for a, b in zip(*tree.coords, strict=True):
            (row_a, column_a), (row_b, column_b) = divmod(a, rooms), divmod(b, rooms)
            expected[row_a + row_b, column_a + column_b] = True
        np.testing.assert_array_equal(maze, expected)
    assert (free.sum((1, 2)) == 2 * rooms**2 - 1).all()
    assert len(np.unique(free, axis=0)) > 1


@pytest.mark.parametrize("free", [kruskal_mazes(4, 4, np.random.default_rng(1)), np.ones((2, 4, 4), bool), CORRIDOR])
def test_states_moves_and_distances_are_those_of_a_plain_loop(free) -> None:
    mazes = Mazes.from_free(free)
    side = free.shape[1]
    assert (len(mazes), mazes.side) == (len(free), side)
    for number, maze in enumerate(free):
        states = [(r, c) for r, c in product(range(side), repeat=2) if maze[r, c]]
        assert mazes.cells[number].tolist() == [r * side + c for r, c in states]
        joined = np.zeros((len(states), len(states)))
        for state, (r, c) in enumerate(states):
            for move, (down, right) in enumerate(MOVES):
                there = (r + down, c + right)
                after = states.index(there) if there in states else state
                assert mazes.next_state[number, state, move] == after
                joined[state, after] = after != state
        np.testing.assert_array_equal(mazes.distance[number], shortest_path(joined, unweighted=True))
        assert states[mazes.corner[number]] == (0, side - 1)
        assert states[mazes.start[number]] == (side - 1, 0)
        inside = [r < 2 and c >= side - 2 for r, c in states]
        assert mazes.block(2)[number].tolist() == inside


def test_a_corridor_on_paper() -> None:
    mazes = Mazes.from_free(CORRIDOR)
    moves = [[0, 3, 0, 1], [1, 1, 0, 1], [2, 4, 2, 3], [0, 3, 2, 3], [2, 4, 4, 4]]
    assert mazes.next_state[0].tolist() == moves
    place = torch.tensor([3, 4, 1, 2, 0])  # of each state along the corridor
    assert torch.equal(mazes.distance[0], (place[:, None] - place).abs())
    assert (mazes.start.item(), mazes.corner.item()) == (4, 1)
    assert mazes.on_path(torch.tensor([2]), torch.tensor([0])).tolist() == [[True, False, True, True, False]]
    assert mazes.first_step(torch.tensor([3])).tolist() == [[3, 0, 3, 3, 2]]
    assert mazes.block(2).tolist() == [[True, True, False, True, False]]
    assert mazes.block(1).tolist() == [[False, True, False, False, False]]


def test_a_maze_of_one_cell_and_a_choice_of_mazes() -> None:
    one = Mazes.from_free(np.ones((2, 1, 1), bool))
    assert one.next_state.tolist() == [[[0, 0, 0, 0]]] * 2
    assert one.distance.tolist() == [[[0]]] * 2
    mazes = drawn(6)
    some = mazes[torch.tensor([4, 1])]
    for name in ("free", "cells", "next_state", "distance"):
        assert torch.equal(getattr(some, name), getattr(mazes, name)[[4, 1]])
    assert len(mazes[torch.arange(6) > 3]) == len(mazes[:2]) == 2
    without = Mazes.from_free(mazes.free, with_distances=False)
    assert torch.equal(without[1:].next_state, mazes.next_state[1:])


def test_the_mazes_keep_a_copy() -> None:
    free = CORRIDOR.copy()
    mazes = Mazes.from_free(free)
    free[:] = False
    assert mazes.free.sum() == 5


# pictures


def test_a_picture_and_its_values_on_paper() -> None:
    mazes = Mazes.from_free(np.concatenate([CORRIDOR, CORRIDOR.transpose(0, 2, 1)[:, ::-1, ::-1]]))
    seen = picture(mazes, torch.tensor([3, -1]), torch.tensor([1, 0]))
    assert seen.shape == (2, 3, 3, 3)
    assert seen.dtype == torch.float32
    assert seen[0].tolist() == [
        [[0, 1, 1], [1, 1, 0], [1, 0, 0]],
        [[0, 0, 0], [0, 1, 0], [0, 0, 0]],
        [[0, 0, 1], [0, 0, 0], [0, 0, 0]],
    ]
    assert seen[1].tolist() == [
        [[0, 0, 1], [0, 1, 1], [1, 1, 0]],
        [[0, 0, 0], [0, 0, 0], [0, 0, 0]],
        [[0, 0, 1], [0, 0, 0], [0, 0, 0]],
    ]
    ramp = torch.arange(36.0).view(2, 2, 3, 3)
    values = at_states(ramp, mazes)
    assert values.shape == (2, 5, 2)
    assert values[0].tolist() == [[1, 10], [2, 11], [3, 12], [4, 13], [6, 15]]
    assert values[1].tolist() == [[20, 29], [22, 31], [23, 32], [24, 33], [25, 34]]


# values


def test_transitions_add_up_what_leads_to_one_place() -> None:
    policy = torch.zeros(1, 5, 4)
    policy[0] = torch.tensor([0.1, 0.2, 0.3, 0.4])
    matrix = transition_matrix(policy, Mazes.from_free(CORRIDOR))[0]
    torch.testing.assert_close(matrix[0], torch.tensor([0.4, 0.4, 0, 0.2, 0]))
    torch.testing.assert_close(matrix[4], torch.tensor([0, 0, 0.1, 0, 0.9]))


def test_values_in_a_corridor_on_paper() -> None:
    mazes, reward = Mazes.from_free(CORRIDOR), mark(1).float()
    value, of_move = state_values(mixed((FORWARD, 1.0)), mazes, reward, 0.9)
    np.testing.assert_allclose(value, [[1, 0, 0.81, 0.9, 0.729]])
    np.testing.assert_allclose(of_move[0, 4], [0.729, 0.6561, 0.6561, 0.6561])
    np.testing.assert_allclose(of_move[0, 0], [0.9, 0.81, 0.9, 1])
    # half of the time a step: V = V' / 3 with V' the next one's, 2 / 3 at the cheese
    value, _ = state_values(mixed((FORWARD, 0.5), (STAY, 0.5)), mazes, reward, 0.5)
    np.testing.assert_allclose(value, [[2 / 3, 0, 2 / 27, 2 / 9, 2 / 81]])
    myopic, _ = state_values(mixed((FORWARD, 0.5), (STAY, 0.5)), mazes, reward, 0)
    np.testing.assert_allclose(myopic, [[0.5, 0, 0, 0, 0]])


@pytest.mark.parametrize("discount", [0.5, 0.95])
def test_values_are_those_of_value_iteration(discount: float) -> None:
    mazes = drawn()
    policy = random_policy(mazes)
    reward = torch.zeros(mazes.cells.shape)
    reward[:, 3], reward[:, 11] = 1, -0.5  # either ends the episode
    value, of_move = state_values(policy, mazes, reward, discount)
    assert value.dtype == torch.float64
    for n in range(2):
        gain, after, moves = reward[n].double().numpy(), mazes.next_state[n].numpy(), policy[n].numpy()
        expected = np.zeros(17)
        for _ in range(600):
            expected = np.where(gain == 0, (moves * (gain + discount * expected)[after]).sum(1), 0)
        np.testing.assert_allclose(value[n], expected, atol=1e-10)
        np.testing.assert_allclose(of_move[n], (gain + discount * expected)[after], atol=1e-10)
    single, _ = state_values(policy[3:4], mazes[3:4], reward[3:4], discount)
    np.testing.assert_allclose(single, value[3:4], rtol=1e-12)
    single, _ = state_values(policy.float(), mazes, reward, discount)
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single, value, rtol=1e-3, atol=1e-5)


# probabilities


def test_reaching_in_a_corridor_on_paper() -> None:
    mazes = Mazes.from_free(CORRIDOR)
    lazy = mixed((FORWARD, 0.5), (STAY, 0.5))
    reached = reach_probability(lazy, mazes, mark(1), 3)
    assert reached.dtype == torch.float64
    np.testing.assert_allclose(reached, [[7 / 8, 1, 1 / 8, 1 / 2, 0]])
    np.testing.assert_allclose(reach_probability(lazy, mazes, mark(1), 0), mark(1).double())
    each = torch.tensor([[1, 0, 4, 2, 4]])
    np.testing.assert_allclose(reach_probability(lazy, mazes, mark(1), each), [[1 / 2, 1, 5 / 16, 1 / 4, 1 / 16]])
    np.testing.assert_allclose(reach_probability(lazy, mazes, mark(1)), np.ones((1, 5)), atol=1e-7)
    ruin = reach_probability(mixed((FORWARD, 0.5), (BACK, 0.5)), mazes, mark(1), avoid=mark(4))
    np.testing.assert_allclose(ruin, [[3 / 4, 1, 1 / 4, 1 / 2, 0]], atol=1e-7)
    both = reach_probability(lazy, mazes, mark(1, 3), 1, avoid=mark(3, 2))
    np.testing.assert_allclose(both, [[1 / 2, 1, 0, 1, 0]])


def test_a_walk_in_circles_reaches_nothing_and_is_no_error() -> None:
    circle = mixed(({**FORWARD, 3: LEFT}, 1.0))
    reached = reach_probability(circle, Mazes.from_free(CORRIDOR), mark(1))
    np.testing.assert_allclose(reached, [[1, 1, 0, 0, 0]], atol=1e-8)
    assert (reached[0, 2:] == 0).all()
    np.testing.assert_array_equal(reach_probability(circle, Mazes.from_free(CORRIDOR), mark(1), 50)[0, 2:], 0)


def test_single_precision_neither_loses_nor_adds_to_a_long_walk() -> None:
    place = np.array([1, 0, 3, 2, 4])  # steps to the end
    for seldom in (1e-5, 3e-6, 1e-6):
        policy = mixed((FORWARD, seldom), (STAY, 1 - seldom)).float()
        assert ((policy.double().sum(-1) - 1).abs() > 1e-9).any()
        reached = reach_probability(policy, Mazes.from_free(CORRIDOR), mark(1))
        np.testing.assert_allclose(reached[0], (seldom / (seldom + 1e-9)) ** place, rtol=1e-6)


@pytest.mark.parametrize("avoided", [False, True])
def test_reaching_is_that_of_a_plain_loop_over_steps(avoided: bool) -> None:
    mazes = drawn(3, seed=4)
    policy, target, avoid = random_policy(mazes, 1, 0.7), mazes.block(2), None
    if avoided:
        avoid = torch.zeros_like(target)
        avoid[:, 12] = True
    limits = torch.randint(0, 12, target.shape, generator=torch.Generator().manual_seed(0))
    whole, own = (
        reach_probability(policy, mazes, target, 7, avoid),
        reach_probability(policy, mazes, target, limits, avoid),
    )
    forever = reach_probability(policy, mazes, target, avoid=avoid)
    for n in range(3):
        p, after = policy[n].numpy(), mazes.next_state[n].numpy()
        hit = target[n].double().numpy()
        stop = target[n].numpy() | (avoid[n].numpy() if avoided else False)
        by_step = [hit]
        for _ in range(6000):
            by_step.append(np.where(stop, hit, (p * by_step[-1][after]).sum(1)))
        np.testing.assert_allclose(whole[n], by_step[7], atol=1e-12)
        np.testing.assert_allclose(own[n], [by_step[limit][s] for s, limit in enumerate(limits[n])], atol=1e-12)
        np.testing.assert_allclose(forever[n], by_step[-1], atol=1e-5)


def test_reaching_is_what_walks_do() -> None:
    mazes = drawn(1, seed=2)
    policy, draw, count = random_policy(mazes, 3, 0.3), np.random.default_rng(0), 4000
    exam = Exam.draw(mazes, 2, 0)
    target, avoid = mazes.block(2), exam.marks(exam.moved)
    here, start = np.full(count, mazes.start[0]), mazes.start[0]
    for step in range(1, 61):
        stopped = (target | avoid)[0].numpy()[here]
        move = (draw.random((count, 1)) > policy[0].numpy().cumsum(1)[here]).sum(1).clip(max=3)
        here = np.where(stopped, here, mazes.next_state[0].numpy()[here, move])
        if step in (15, 30, 60):
            exact = reach_probability(policy, mazes, target, step, avoid)[0, start].item()
            share = target[0].numpy()[here].mean()
            assert abs(share - exact) < 4 * np.sqrt(max(exact * (1 - exact), 1e-4) / count)
    assert 0.02 < exact < 0.98


# refusals

MAZES = drawn()
EVEN = torch.full((5, 17, 4), 0.25)
BARE = Mazes.from_free(MAZES.free, with_distances=False)
EXAM = Exam.draw(MAZES, 2, 0)
TARGET = MAZES.block(2)
NO_CORNER = Mazes.from_free(np.array([[[1, 1, 0], [1, 1, 1], [1, 1, 1]]], bool))
NO_START = Mazes.from_free(np.array([[[1, 1, 1], [1, 1, 1], [0, 1, 1]]], bool))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: drawn(2, 1), "rooms=1: expected at least 2 a side"),
        (lambda: drawn(0), "count=0: expected at least 1"),
        (lambda: drawn(1, 2.5), "rooms=2.5: expected at least 1, a whole number"),
        (lambda: Mazes.from_free(np.ones((2, 3, 5), bool)), r"free of shape \(2, 3, 5\), torch.bool: expected bool"),
        (lambda: Mazes.from_free(np.ones((3, 3), bool)), r"free of shape \(3, 3\)"),
        (lambda: Mazes.from_free(np.ones((2, 3, 3), int)), r"torch.int64: expected bool"),
        (lambda: Mazes.from_free(np.ones((0, 3, 3), bool)), r"free of shape \(0, 3, 3\)"),
        (lambda: Mazes.from_free(np.zeros((1, 3, 3), bool)), "free: from 0 to 0 free cells; expected one number"),
        (lambda: Mazes.from_free(np.stack([np.eye(3), np.ones((3, 3))]) > 0), "free: from 3 to 9 free cells"),
        (lambda: Mazes.from_free(np.stack([CORRIDOR[0], CORRIDOR[0, :, ::-1] ^ np.eye(3, dtype=bool)[[0, 2, 1]]])),
         "free: "),
        (lambda: Mazes.from_free(np.eye(3)[None] > 0), "free: maze 0 has a free cell out of reach"),
        (lambda: MAZES.state_at(6), "cell=6: a wall in some of the mazes"),
        (lambda: NO_START.start, "cell=6: a wall in some"),
        (lambda: MAZES[1], "chosen=1: expected a slice, a mask, or a tensor of numbers"),
        (lambda: MAZES[5:], r"chosen=slice\(5, None, None\): expected a slice, .* of one maze or more"),
        (lambda: MAZES.block(0), "block=0: expected at least 1"),
        (lambda: MAZES.block(1.5), "block=1.5: expected at least 1, a whole number"),
        (lambda: BARE.first_step(BARE.corner), "distance: left out; expected those of Mazes.from_free"),
        (lambda: BARE.on_path(BARE.start, BARE.corner), "distance: left out"),
        (lambda: BARE[:2].on_path(BARE.start[:2], BARE.corner[:2]), "distance: left out"),
        (lambda: Exam.draw(BARE, 2, 0), "distance: left out"),
        (lambda: picture(MAZES, torch.tensor([3])), r"thing of shape \(1,\): expected \(5,\)"),
        (lambda: at_states(torch.zeros(5, 4, 7, 7), MAZES), r"maps of shape .*: expected \(5, 4, 5, 5\)"),
        (lambda: at_states(torch.zeros(6, 4, 5, 5), MAZES), r"maps of shape .*: expected \(5, 4, 5, 5\)"),
        (lambda: transition_matrix(EVEN[:, :, :3], MAZES), r"policy of shape \(5, 17, 3\): expected \(5, 17, 4\)"),
        (lambda: transition_matrix(EVEN * 4, MAZES), "policy: expected probabilities of the four moves, which add up"),
        (lambda: transition_matrix(EVEN + torch.tensor([1, -1, 0, 0]), MAZES), "policy: expected probabilities"),
        (lambda: state_values(EVEN, MAZES, TARGET.float(), 1), "discount=1: expected 0 to below 1"),
        (lambda: state_values(EVEN, MAZES, TARGET.float(), -0.1), "discount=-0.1: expected 0 to below 1"),
        (lambda: state_values(EVEN, MAZES, TARGET.float(), float("nan")), "discount=nan"),
        (lambda: state_values(EVEN, MAZES, TARGET[:, :1].float(), 0), r"reward of shape \(5, 1\): expected \(5, 17\)"),
        (lambda: reach_probability(EVEN, MAZES, TARGET.int()), "target of torch.int32: expected torch.bool"),
        (lambda: reach_probability(EVEN, MAZES, TARGET[:1]), r"target of shape \(1, 17\): expected \(5, 17\)"),
        (lambda: reach_probability(EVEN, MAZES, TARGET, avoid=TARGET.int()), "avoid of torch.int32"),
        (lambda: reach_probability(EVEN, MAZES, TARGET, avoid=TARGET[0]), r"avoid of shape \(17,\)"),
        (lambda: reach_probability(EVEN, MAZES, TARGET, torch.arange(17)), r"within of shape \(17,\): expected one"),
        (lambda: reach_probability(torch.randn(5, 17, 4), MAZES, TARGET), "policy: expected probabilities"),
        (lambda: Exam.draw(MAZES, 5, 0), "block=5: no maze has a free cell outside of it, off"),
        (lambda: Exam.draw(MAZES, 9, 0), "block=9: no maze has a free cell outside of it, off"),
        (lambda: Exam.draw(MAZES, 0, 0), "block=0: expected at least 1"),
        (lambda: Exam.draw(NO_CORNER, 1, 0), "block=1: without a free cell in some of the mazes"),
        (lambda: EXAM.near(PolicyMap(5, 2, (4, 1)), kind="chese"), "kind='chese': expected 'cheese' or 'star'"),
        (lambda: EXAM.near(PolicyMap(5, 1, (4, 1)), kind="star"), "things=1: expected at least 2 where mazes hold a"),
        (lambda: EXAM.in_training(PolicyMap(5, 0, (4, 1))), "things=0: expected at least 1 where mazes hold cheese"),
        (lambda: EXAM.corner(PolicyMap(5, 3, (4, 1))), "things=3: expected at least 0 .*, at most 2"),
        (lambda: EXAM.corner(PolicyMap(7, 1, (4, 1))), "mazes of side 5: expected 7, as the network was made for"),
        (lambda: EXAM.corner(DensePolicy(7)), "mazes of side 5: expected 7"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_refused(call, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()


def test_a_network_that_sees_nothing_can_be_asked_where_nothing_lies() -> None:
    torch.manual_seed(0)
    assert 0 <= EXAM.corner(PolicyMap(5, 0, (4, 1))) <= 1
