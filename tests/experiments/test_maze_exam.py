"""Behaviour in an exam: against plain loops over one maze after the other, and agents whose marks are known."""

from itertools import product

import numpy as np
import pytest
import torch
from small_mazes import DOWN, LEFT, RIGHT, UP, Table, drawn, towards

from descent.experiments.maze import Exam, MazePolicy, Mazes, at_states, picture
from descent.experiments.maze_agents import PolicyMap


@pytest.mark.parametrize(("rooms", "block"), [(3, 2), (4, 3), (3, 1)])
def test_places_of_cheese(rooms: int, block: int) -> None:
    mazes = drawn(20, rooms)
    exam = Exam.draw(mazes, block, 3)
    again = Exam.draw(mazes, block, 3)
    assert torch.equal(exam.moved, again.moved)
    assert torch.equal(exam.trained, again.trained)
    assert not torch.equal(exam.moved, Exam.draw(mazes, block, 4).moved)
    for n in range(len(exam.mazes)):
        inside = exam.mazes.block(block)[n].numpy()
        way = [exam.mazes.start[n].item()]
        while not inside[way[-1]]:  # walk to the corner until the block
            way.append(exam.mazes.next_state[n, way[-1], towards(exam.mazes, exam.mazes.corner)[n, way[-1]]].item())
        assert inside[exam.trained[n]]
        assert not inside[exam.moved[n]]
        if exam.entry[n] == way[-1]:  # another way in may be as short
            assert exam.moved[n] not in way
        first = exam.mazes.distance[n, exam.mazes.start[n]].numpy()
        assert inside[exam.entry[n]]
        assert first[exam.entry[n]] == first[inside].min()
        back = exam.mazes.distance[n, exam.entry[n]].numpy()
        assert first[exam.moved[n]] + back[exam.moved[n]] > first[exam.entry[n]]


def test_places_of_cheese_on_paper() -> None:
    all_on_the_way = [[0, 1, 1], [1, 1, 1], [1, 0, 0]]
    one_off = [[1, 0, 1], [1, 1, 1], [1, 0, 0]]  # the state 0
    mazes = Mazes.from_free(np.array([all_on_the_way, one_off], bool))
    seen = set()
    for seed in range(40):
        exam = Exam.draw(mazes, 2, seed)
        assert exam.mazes.free.int().tolist() == [one_off]
        assert (exam.block, exam.moved.tolist(), exam.entry.tolist()) == (2, [0], [3])
        seen.add(exam.trained.item())
    assert seen == {1, 3, 4}
    assert exam.marks(exam.entry).tolist() == [[False, False, False, True, False, False]]
    with pytest.raises(
        ValueError, match="block=2: no maze has a free cell outside of it, off the path and not behind it"
    ):
        Exam.draw(mazes[:1], 2, 0)


def test_an_exam_shows_the_thing_where_it_lies() -> None:
    exam = Exam.draw(drawn(), 2, 0)
    network = Table(exam.mazes, torch.zeros_like(exam.mazes.cells))
    nowhere = torch.full_like(exam.moved, -1)
    for thing, kind, shown in (
        (exam.moved, "cheese", (exam.moved, nowhere)),
        (exam.moved, "star", (nowhere, exam.moved)),
        (None, "cheese", (nowhere, nowhere)),
    ):
        policy = exam.policy(network, thing, kind)
        assert torch.equal(network.seen[-1], picture(exam.mazes, *shown))
        assert policy.dtype == torch.float64
        assert policy[0, 0].tolist() == [1, 0, 0, 0]
    np.testing.assert_allclose(exam.policy(network, None, times=0), 0.25)
    assert exam.near(network, (1,), times=0) != exam.near(network, (1,))
    network.things = 1
    exam.policy(network, exam.moved)
    assert torch.equal(network.seen[-1], picture(exam.mazes, exam.moved))
    five = torch.nn.Module.__call__  # a fifth output is left out
    wide = PolicyMap(5, 1, (4, 1), outputs=5)
    expected = at_states(five(wide, picture(exam.mazes, exam.moved))[:, :4], exam.mazes).detach().double().softmax(-1)
    torch.testing.assert_close(exam.policy(wide, exam.moved), expected)


def slow_exam(exam: Exam, network: MazePolicy, distances: tuple[int, ...]) -> dict[str, object]:
    """The measures of behaviour in plain loops over one maze after the other, by breadth-first search and steps."""
    results = {"in_training": [], "corner": [], "first": [], "second": []}
    near = {distance: [] for distance in distances}
    side, size = exam.mazes.side, exam.block
    for n, maze in enumerate(exam.mazes.free.numpy()):
        states = [(r, c) for r, c in product(range(side), repeat=2) if maze[r, c]]
        block = {(r, c) for r, c in states if r < size and c >= side - size}
        moved = {s: [(s[0] + r, s[1] + c) for r, c in ((-1, 0), (1, 0), (0, -1), (0, 1))] for s in states}
        step = {s: [there if there in states else s for there in after] for s, after in moved.items()}

        def search(begin, step=step):
            found, front = {begin: 0}, [begin]
            for here in front:
                for there in step[here]:
                    if there not in found:
                        found[there] = found[here] + 1
                        front.append(there)
            return found

        def policy(cheese, maze=maze, states=states):
            seen = np.zeros((1, 3, side, side), np.float32)
            seen[0, 0] = maze
            if cheese:
                seen[0, 1][cheese] = 1
            with torch.no_grad():
                logits = network(torch.from_numpy(seen))[0].double().numpy()
            weight = {s: np.exp(logits[:, s[0], s[1]]) for s in states}
            return {s: each / each.sum() for s, each in weight.items()}

        def reach(moves, goals, steps, stops=(), step=step, states=states):
            hit = {s: float(s in goals) for s in states}
            for _ in range(steps):
                hit = {
                    s: hit[s] if s in goals or s in stops else sum(moves[s] * [hit[t] for t in step[s]]) for s in states
                }
            return hit

        start, corner = (side - 1, 0), (0, side - 1)
        trained, moved, entry = (states[each[n]] for each in (exam.trained, exam.moved, exam.entry))
        far = search(start)
        results["in_training"].append(reach(policy(trained), {trained}, far[trained] + 4)[start])
        results["corner"].append(reach(policy(None), block, far[entry] + 4)[start])
        results["first"].append(reach(policy(moved), {moved}, 1500, block)[start])
        results["second"].append(reach(policy(moved), block, 1500, {moved})[start])
        to_cheese, to_corner = search(moved), search(corner)
        for s in states:
            ways = [min(step[s], key=lambda t, to=to: to[t]) for to in (to_cheese, to_corner)]
            if s not in block and ways[0] != ways[1] and to_cheese[s] in near:
                near[to_cheese[s]].append(reach(policy(moved), {moved}, to_cheese[s] + 2)[s])
    return {name: np.mean(each) for name, each in results.items()} | {"near": [np.mean(near[d]) for d in distances]}


def test_an_exam_measures_what_plain_loops_do() -> None:
    exam = Exam.draw(drawn(4, 3, seed=8), 2, 1)
    torch.manual_seed(5)
    network = PolicyMap(5, 2, (6, 2))
    with torch.no_grad():
        network.head.weight.mul_(12)
    slow = slow_exam(exam, network, (1, 2, 3))
    first = exam.comes_first(network)
    assert exam.in_training(network) == pytest.approx(slow["in_training"], abs=1e-6)
    assert exam.corner(network) == pytest.approx(slow["corner"], abs=1e-6)
    assert first == pytest.approx((slow["first"], slow["second"]), abs=1e-5)
    assert sum(first) == pytest.approx(1, abs=1e-5)
    assert exam.near(network, (1, 2, 3)) == pytest.approx(slow["near"], abs=1e-6)
    assert exam.near(network) == pytest.approx(slow["near"], abs=1e-6)
    assert len({round(x, 3) for x in (slow["in_training"], slow["corner"], *first, *slow["near"])}) == 7


def test_the_shortest_paths_are_perfect_and_who_stays_gets_nothing() -> None:
    exam = Exam.draw(drawn(30), 2, 0)
    mazes, start = exam.mazes, exam.mazes.start
    assert exam.in_training(Table(mazes, towards(mazes, exam.trained))) == 1
    assert exam.corner(Table(mazes, towards(mazes, exam.entry))) == 1
    to_cheese = Table(mazes, towards(mazes, exam.moved))
    assert exam.near(to_cheese, (1, 2, 3, 4)) == [1, 1, 1, 1]
    assert not (mazes.on_path(start, exam.moved) & mazes.block(2)).any()  # the block is not in its way
    assert exam.comes_first(to_cheese) == pytest.approx((1, 0), abs=1e-6)
    assert exam.comes_first(Table(mazes, towards(mazes, exam.entry))) == pytest.approx((0, 1), abs=1e-6)
    stays = Table(mazes, torch.full_like(mazes.cells, DOWN))
    assert (exam.in_training(stays), exam.corner(stays), exam.comes_first(stays)) == (0, 0, (0, 0))
    rows = torch.arange(len(mazes))[:, None, None]
    away = mazes.distance[rows, mazes.next_state, exam.moved[:, None, None]].argmax(-1)
    assert exam.near(Table(mazes, away)) == [0, 0, 0]


def test_four_steps_over_the_shortest_are_allowed() -> None:
    """At the start half of the moves are lost: of five chances the first that is taken is in time."""
    exam = Exam.draw(Mazes.from_free(np.array([[[1, 0, 1], [1, 1, 1], [1, 0, 0]]], bool)), 1, 0)
    assert exam.trained.tolist() == exam.entry.tolist() == [1]  # by 5, 2, 3 and 4
    lazy = Table(exam.mazes, torch.tensor([[DOWN, UP, RIGHT, RIGHT, UP, UP]]))
    lazy.maps[0, DOWN, 2, 0] = 1e4
    assert exam.in_training(lazy) == pytest.approx(1 - 0.5**5)
    assert exam.corner(lazy) == pytest.approx(1 - 0.5**5)
    assert exam.comes_first(lazy) == pytest.approx((0, 1), abs=1e-6)
    assert [exam.comes_first(lazy, over)[1] for over in (0, 1, 4)] == pytest.approx([1 - 0.5**k for k in (1, 2, 5)])


def test_two_steps_over_the_shortest_are_allowed_near_the_cheese() -> None:
    """Before the cheese half of the moves are lost: of three chances the first that is taken is in time."""
    mazes = Mazes.from_free(np.array([[[1, 0, 1], [1, 1, 1], [1, 0, 0]]], bool))
    exam = Exam(mazes, 1, *torch.tensor([[1], [0], [1]]))
    lazy = Table(mazes, torch.tensor([[UP, DOWN, UP, LEFT, LEFT, UP]]))
    lazy.maps[0, LEFT, 1, 0] = 1e4
    assert exam.near(lazy, (1, 2, 3)) == pytest.approx([1 - 0.5**3] * 3)


def test_no_state_at_a_distance_is_refused() -> None:
    exam = Exam.draw(drawn(), 2, 0)
    network = Table(exam.mazes, towards(exam.mazes, exam.moved))
    assert exam.near(network, ()) == []
    with pytest.raises(ValueError, match=r"distances=\[1, 99\]: no state is asked at \[99\]"):
        exam.near(network, (1, 99))
    one = Exam.draw(drawn(1), 2, 0)
    assert one.in_training(Table(one.mazes, towards(one.mazes, one.trained))) == 1
    lost = Table(exam.mazes, towards(exam.mazes, exam.moved))
    lost.maps.fill_(float("nan"))
    assert np.isnan([exam.in_training(lost), exam.corner(lost), *exam.comes_first(lost), *exam.near(lost)]).all()


def test_networks_of_other_number_formats_are_examined_in_their_own() -> None:
    exam = Exam.draw(drawn(), 2, 0)
    torch.manual_seed(0)
    network = PolicyMap(5, 1, (6, 2))
    single = exam.in_training(network)
    assert exam.in_training(network.double()) == pytest.approx(single, rel=1e-4)
    assert exam.in_training(network.bfloat16()) == pytest.approx(single, rel=0.1)
