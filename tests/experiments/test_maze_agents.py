"""Networks that read mazes and how they are taught: against formulas, plain loops and the textbook's recursions."""

import base64
import json
import struct

import numpy as np
import pytest
import torch
from small_mazes import drawn, seeded, small
from torch.nn.functional import conv2d

from descent.experiments.maze import Exam, Mazes, at_states, picture, state_values
from descent.experiments.maze_agents import (
    TASKS,
    DensePolicy,
    Lesson,
    PolicyMap,
    TeachingPlan,
    TwoHeads,
    draw_things,
    pack_int16,
    policy_loss,
    sample_walks,
    teach,
    teach_by_sampling,
    unpack_int16,
)

IN_BLOCK = Lesson(("cheese in the block",), 12)


# networks


def test_a_policy_map_is_its_convolutions() -> None:
    network, seen = small(), picture(drawn(), torch.tensor([0, 5, 9, 16, 3]))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=seeded()))
    x = conv2d(seen, network.stem.weight, network.stem.bias, padding=1).clamp(min=0)
    states = [x]
    for block in network.blocks:
        x = x + conv2d(x, block.weight, block.bias, padding=1).clamp(min=0)
        states.append(x)
    for ours, expected in zip(network.stream(seen), states, strict=True):
        torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(network(seen), conv2d(x, network.head.weight, network.head.bias))


@pytest.mark.parametrize("after", [0, 1, 2])
def test_what_is_added_to_the_stream_goes_on_from_there(after: int) -> None:
    network, seen = small(), picture(drawn(), torch.tensor([0, 5, 9, 16, 3]))
    more = torch.randn(6, 5, 5, generator=seeded())
    plain, added = network.stream(seen), network.stream(seen, {after: more})
    for number, (before, now) in enumerate(zip(plain, added, strict=True)):
        if number < after:
            assert torch.equal(now, before)
        if number == after:
            torch.testing.assert_close(now, before + more)
        if number > after:
            torch.testing.assert_close(now, added[number - 1] + network.blocks[number - 1](added[number - 1]).relu())
    torch.testing.assert_close(network(seen, add={after: more}), network.head(added[-1]))
    assert not torch.allclose(network(seen, add={after: more}), network(seen))


def test_only_shared_weights_follow_a_shift() -> None:
    free = torch.zeros(2, 1, 13, 13)
    pattern = (torch.rand(3, 3, generator=seeded()) > 0.4).float()
    free[0, 0, 4:7, 4:7] = pattern
    free[1, 0, 6:9, 5:8] = pattern
    for network, follows in (
        (small(lambda _: PolicyMap(13, 0, (6, 2))), True),
        (small(lambda _: PolicyMap(13, 0, (6, 2), head="dense")), False),
        (small(lambda _: DensePolicy(13, 0, 32)), False),
    ):
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=seeded()) * name.endswith("bias"))
            first, second = network(free)
        same = torch.allclose(first[:, 3:8, 3:9], second[:, 5:10, 4:10], atol=1e-6)  # three cells from the border
        assert same is follows
        assert first.std() > 1e-3


def test_shapes_of_answers() -> None:
    for side, things in ((5, 0), (7, 2)):
        seen = torch.ones(3, 1 + things, side, side)
        for network, outputs in (
            (PolicyMap(side, things, (4, 1)), 4),
            (PolicyMap(side, things, (4, 1), "dense"), 4),
            (PolicyMap(side, things, (4, 1), outputs=5), 5),
            (PolicyMap(side, things, (4, 1), "dense", 5), 5),
            (DensePolicy(side, things, 8), 4),
        ):
            assert network(seen).shape == (3, outputs, side, side)
            assert network.things == things
            assert network.shape == (outputs, side, side)
    assert sum(p.numel() for p in PolicyMap(7).parameters()) == 23_572
    layers = DensePolicy(5, 1, 8)
    x = torch.rand(3, 2, 5, 5)
    hidden = x.reshape(3, -1)
    for layer in layers.layers[:2]:
        hidden = (hidden @ layer.weight.T + layer.bias).clamp(min=0)
    expected = hidden @ layers.layers[2].weight.T + layers.layers[2].bias
    torch.testing.assert_close(layers(x), expected.reshape(3, 4, 5, 5))
    stream = small(PolicyMap, 1, (4, 1), head="dense")
    torch.testing.assert_close(stream(x), stream.head[1](stream.stream(x)[-1].flatten(1)).view(3, 4, 5, 5))


def test_weights_begin_orthogonal_and_small_in_the_head() -> None:
    scales = {
        "stem": 2**0.5,
        "blocks": (2 / 3) ** 0.5,
        "head": 0.1,
        "layers.0": 2**0.5,
        "layers.1": 2**0.5,
        "layers.2": 0.1,
    }
    for network in (PolicyMap(5, 1, (6, 3)), PolicyMap(5, 1, (6, 3), "dense"), DensePolicy(5, 1, 8)):
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):
                assert (parameter == 0).all()
            else:
                (scale,) = (value for begin, value in scales.items() if name.startswith(begin))
                np.testing.assert_allclose(torch.linalg.svdvals(parameter.detach().flatten(1)), scale, rtol=1e-4)


def test_two_heads_answer_with_cheese_and_without() -> None:
    heads, mazes = small(TwoHeads, (4, 1)), drawn(4)
    cheese = torch.tensor([3, -1, 0, -1])
    seen = picture(mazes, cheese)
    logits = heads(seen)
    for n, place in enumerate(cheese):
        head = heads.cheese(seen[n : n + 1]) if place >= 0 else heads.corner(seen[n : n + 1, :1])
        torch.testing.assert_close(logits[n], head[0])
    assert not torch.allclose(heads.cheese(seen)[1], logits[1])


# tasks


@pytest.mark.parametrize("task", TASKS)
def test_a_task_puts_things_where_it_says(task: str) -> None:
    mazes = drawn(2)[torch.arange(2).repeat_interleave(1500)]
    cheese, star, reward = draw_things(mazes, task, 2, seeded())
    inside, rows = mazes.block(2), torch.arange(3000)
    thing, other = (star, cheese) if "star" in task else (cheese, star)
    assert (other == -1).all()
    if task == "no cheese":
        assert (thing == -1).all()
        assert torch.equal(reward, inside.float())
        return
    allowed = {"cheese in the block": inside, "ignore the cheese": ~inside, "ignore the star": ~inside}
    allowed = allowed.get(task, torch.ones_like(inside))
    assert allowed[rows, thing].all()
    if task.startswith("ignore"):
        assert torch.equal(reward, inside.float())
    else:
        assert (reward[rows, thing] == 1).all()
        assert (reward.sum(1) == 1).all()
    for n in (0, 1):
        places = allowed[1500 * n].sum().item()
        counts = thing[1500 * n : 1500 * (n + 1)].bincount(minlength=17)[allowed[1500 * n]]
        assert (counts - 1500 / places).abs().max() < 4 * np.sqrt(1500 / places)


# the exact loss


def formula(logits: np.ndarray, mazes: Mazes, reward: np.ndarray, discount: float, entropy: float):
    """Value and gradient of the loss at the states' logits, from sums over moves alone."""
    policy = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    after, goes_on = mazes.next_state.numpy(), reward == 0
    rows = np.arange(len(after))[:, None, None]
    value = np.zeros(reward.shape)
    for _ in range(700):
        of_move = (reward + discount * value)[rows, after]
        value = np.where(goes_on, (policy * of_move).sum(-1), 0)
    advantage = (of_move - value[..., None]) * goes_on[..., None]
    advantage = advantage / (advantage[goes_on].std(ddof=1) + 1e-6)
    surprise = -(policy * np.log(policy)).sum(-1, keepdims=True)
    gain = (policy * advantage).sum(-1, keepdims=True)
    slope = policy * (advantage - gain) + entropy * policy * (-np.log(policy) - surprise)
    count = goes_on.sum()
    return -(gain + entropy * surprise)[goes_on].sum() / count, -slope * goes_on[..., None] / count


@pytest.mark.parametrize(("entropy", "discount"), [(0.0, 0.9), (0.3, 0.5)])
def test_the_loss_and_its_gradient_are_those_of_the_formula(entropy: float, discount: float) -> None:
    mazes = drawn()
    reward = draw_things(mazes, "no cheese", 2, seeded())[2]
    logits = torch.randn(5, 4, 5, 5, generator=seeded(), dtype=torch.float64, requires_grad=True)
    loss = policy_loss(logits, mazes, reward, discount, entropy)
    loss.backward()
    expected, slope = formula(at_states(logits, mazes).detach().numpy(), mazes, reward.numpy(), discount, entropy)
    assert loss.item() == pytest.approx(expected, rel=1e-6, abs=1e-9)
    np.testing.assert_allclose(at_states(logits.grad, mazes), slope, atol=1e-9)
    assert (logits.grad[~mazes.free[:, None].expand(-1, 4, -1, -1)] == 0).all()


def test_the_gradient_at_a_state_is_along_that_of_the_return() -> None:
    """The value of the start, by finite differences: at each state it differs by how often the state is visited."""
    mazes, reward = drawn(1), drawn(1).block(2).float()
    logits = torch.randn(1, 4, 5, 5, generator=seeded(), dtype=torch.float64, requires_grad=True)
    policy_loss(logits, mazes, reward, 0.9, 0.0).backward()

    def value(moved: torch.Tensor) -> float:
        values = state_values(at_states(moved, mazes).softmax(-1), mazes, reward, 0.9)[0]
        return values[0, mazes.start[0]].item()

    ratios = []
    for state in range(17):
        cell, by_hand = divmod(mazes.cells[0, state].item(), 5), []
        for move in range(4):
            step = torch.zeros_like(logits)
            step[0, move, cell[0], cell[1]] = 1e-4
            by_hand.append((value(logits.detach() + step) - value(logits.detach() - step)) / 2e-4)
        ours = -logits.grad[0, :, cell[0], cell[1]].numpy()
        if reward[0, state] != 0:
            assert (ours == 0).all()
        else:
            ratio = ours @ by_hand / (ours @ ours)
            np.testing.assert_allclose(by_hand, ratio * ours, atol=1e-8)
            ratios.append(ratio)
    assert min(ratios) > -1e-9  # 0 behind the reward
    assert np.mean(np.array(ratios) > 1e-3) > 0.5


# teaching


def test_the_schedule() -> None:
    one, two = Lesson(("no cheese",), 4), Lesson(("cheese anywhere", "no cheese"), 2)
    plan = TeachingPlan((one, two, one), learning_rate=0.6, warmup=2, entropy=0.5)
    rates = [0.2, 0.4 * 3 / 4, 0.6 * 2 / 4, 0.6 / 4]
    entropies = [0.5] * 6 + [0.5, 0.375, 0.25, 0.125]
    lessons, rate, entropy = zip(*plan.schedule(), strict=True)
    assert lessons == (one,) * 4 + (two,) * 2 + (one,) * 4
    assert rate == pytest.approx([*rates, 0.2, 0.4 / 2, *rates])
    assert entropy == pytest.approx(entropies)
    assert plan.steps == 10
    constant = TeachingPlan((one,), learning_rate=0.6, warmup=0, decay=False)
    assert [rate for _, rate, _ in constant.schedule()] == [0.6] * 4


def test_teaching_is_the_recursion_of_the_textbook() -> None:
    mazes, plan = drawn(50), TeachingPlan((IN_BLOCK,), mazes=16, block=2, warmup=3, momentum=0.8, learning_rate=0.2)
    taught, again, bare = (
        teach(small(), mazes, plan, True),
        teach(small(), mazes, plan, True),
        teach(small(), mazes, plan),
    )
    for name in ("first", "last", "gradients", "updates"):
        assert getattr(taught, name).tobytes() == getattr(again, name).tobytes()
        assert getattr(taught, name).dtype == np.float32
    assert bare.last.tobytes() == taught.last.tobytes()
    assert bare.gradients.shape == bare.updates.shape == (0, len(taught.first))
    now = np.concatenate([each.detach().numpy().ravel() for each in taught.network.parameters()])
    np.testing.assert_array_equal(taught.last, now)
    np.testing.assert_array_equal(
        taught.first, np.concatenate([p.detach().numpy().ravel() for p in small().parameters()])
    )
    np.testing.assert_allclose(taught.first + taught.updates.sum(0, dtype=np.float64), taught.last, atol=1e-6)
    weights, velocity = taught.first.astype(float), 0.0
    for step, gradient in enumerate(taught.gradients):
        velocity = 0.8 * velocity + gradient
        weights = weights - 0.2 * min(1, (step + 1) / 4) * (1 - step / 12) * velocity
    np.testing.assert_allclose(taught.last, weights, atol=1e-6)
    assert len(taught.gradients) == 12
    assert not np.array_equal(
        teach(small(), mazes, TeachingPlan((IN_BLOCK,), mazes=16, block=2, seed=1)).last, bare.last
    )


@pytest.mark.parametrize("clip", [1e-3, 1e3])
def test_a_gradient_is_that_of_the_tasks_mean_loss_and_clipped(clip: float) -> None:
    mazes, tasks = drawn(50), ("cheese anywhere", "no cheese")
    plan = TeachingPlan((Lesson(tasks, 1),), mazes=9, block=2, clip=clip, entropy=0.1, discount=0.8, seed=4)
    kept = teach(small(), mazes, plan, keep=True).gradients[0]
    network, generator, losses = small(), seeded(4), []
    for task in tasks:
        batch = mazes[torch.randint(50, (4,), generator=generator)]
        cheese, _, reward = draw_things(batch, task, 2, generator)
        losses.append(policy_loss(network(picture(batch, cheese)), batch, reward, 0.8, 0.1))
    (sum(losses) / 2).backward()
    gradient = np.concatenate([each.grad.numpy().ravel() for each in network.parameters()])
    norm = np.linalg.norm(gradient)
    assert 1e-3 < norm < 1e3
    np.testing.assert_allclose(kept, gradient * min(1, clip / norm), rtol=1e-4, atol=1e-9 * min(1, clip))


def test_adam_makes_its_first_step_by_signs() -> None:
    plan = TeachingPlan((IN_BLOCK,), mazes=16, block=2, warmup=0, adam=True, learning_rate=0.01)
    taught = teach(small(), drawn(50), plan, keep=True)
    large = np.abs(taught.gradients[0]) > 1e-4
    np.testing.assert_allclose(taught.updates[0][large], -0.01 * np.sign(taught.gradients[0][large]), rtol=1e-2)


def test_a_lesson_leaves_the_other_parameters_as_they_are() -> None:
    heads = small(TwoHeads, (4, 1))
    corner = np.concatenate(
        [np.full(each.numel(), name.startswith("corner")) for name, each in heads.named_parameters()]
    )
    plan = TeachingPlan(
        (Lesson(("no cheese",), 3, "corner"), Lesson(("no cheese", "cheese anywhere"), 3, "cheese")), mazes=8, block=2
    )
    taught = teach(heads, drawn(50), plan, keep=True)
    for kept in (taught.gradients, taught.updates):
        assert (kept[:3][:, ~corner] == 0).all()
        assert (kept[3:][:, corner] == 0).all()
        assert (np.abs(kept[:3][:, corner]).max(1) > 0).all()
        assert (np.abs(kept[3:][:, ~corner]).max(1) > 0).all()
    norms = np.linalg.norm(taught.gradients, axis=1)
    clipped = teach(
        small(TwoHeads, (4, 1)), drawn(50), TeachingPlan(plan.lessons, 8, 2, clip=1e-3), keep=True
    ).gradients
    assert (norms > 1e-3).all()
    np.testing.assert_allclose(np.linalg.norm(clipped, axis=1), 1e-3, rtol=2e-3)  # the frozen part has no share in it


def test_watching_sees_the_network_after_so_many_steps() -> None:
    plan = TeachingPlan((IN_BLOCK,), mazes=8, block=2, watch_at=(0, 5, 12))
    flat = lambda network: torch.cat([p.detach().flatten() for p in network.parameters()]).numpy()  # noqa: E731
    taught = teach(small(), drawn(50), plan, True, flat)
    assert [step for step, _ in taught.seen] == [0, 5, 12]
    for step, weights in taught.seen:
        np.testing.assert_allclose(weights, taught.first + taught.updates[:step].sum(0), atol=1e-6)
    assert teach(small(), drawn(50), TeachingPlan((IN_BLOCK,), mazes=8, block=2), watch=flat).seen == []


def test_a_star_is_shown_to_those_that_see_stars() -> None:
    mazes, seen = drawn(6), []
    network = small(PolicyMap, 2, (4, 1))
    network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    lesson = Lesson(("star anywhere", "cheese anywhere", "ignore the star"), 1)
    teach(network, mazes, TeachingPlan((lesson,), mazes=20, block=2))
    assert [each.shape for each in seen] == [(6, 3, 5, 5)] * 3
    assert [each[:, 1:].sum((0, 2, 3)).tolist() for each in seen] == [[0, 6], [6, 0], [0, 6]]


def test_a_short_teaching_finds_the_cheese() -> None:
    mazes = drawn(400)
    exam = Exam.draw(drawn(40, seed=9), 2, 0)
    network = small()
    before = exam.in_training(network)
    teach(
        network, mazes, TeachingPlan((Lesson(("cheese in the block",), 60),), mazes=48, block=2, warmup=5, entropy=0.1)
    )
    assert before < 0.1
    assert exam.in_training(network) > 0.3


def test_double_precision_is_kept() -> None:
    taught = teach(small().double(), drawn(9), TeachingPlan((Lesson(("no cheese",), 2),), mazes=4, block=2), True)
    assert taught.last.dtype == taught.gradients.dtype == np.float64


@pytest.mark.parametrize("rate", [1e30, float("inf")])
def test_a_loss_that_is_no_number_stops_the_teaching(rate: float) -> None:
    plan = TeachingPlan((IN_BLOCK,), mazes=8, block=2, learning_rate=rate, warmup=0)
    with pytest.raises(FloatingPointError, match="step 1: the loss is nan; a smaller learning_rate may help"):
        teach(small(), drawn(9), plan)
    with pytest.raises(FloatingPointError, match=r"the loss is .*; a smaller learning_rate may help"):
        teach_by_sampling(small(PolicyMap, 1, (6, 2), outputs=5), drawn(9), plan, (2, 5))


# packing


def test_packed_numbers_on_paper_and_back() -> None:
    shape, scale, text = pack_int16(np.array([[1.0, -1.0, 0.25]]))
    assert (shape, scale) == ([1, 3], 1 / 32767)
    assert base64.b64decode(text) == struct.pack("<3h", 32767, -32767, 8192)
    values = np.random.default_rng(0).normal(size=(3, 5, 7)) * 1e-3
    packed = json.loads(json.dumps(pack_int16(values)))
    back = unpack_int16(packed)
    assert back.shape == values.shape
    assert np.abs(back - values).max() <= np.abs(values).max() / 32767 / 2 * (1 + 1e-9)
    np.testing.assert_array_equal(unpack_int16(pack_int16(back)), back)
    tensor = torch.tensor([2.0, -4.0], requires_grad=True)
    np.testing.assert_allclose(unpack_int16(pack_int16(tensor)), [2, -4], rtol=1e-4)
    np.testing.assert_array_equal(unpack_int16(pack_int16(np.zeros((2, 3)))), np.zeros((2, 3)))
    assert unpack_int16(pack_int16(np.zeros((0, 3)))).shape == (0, 3)


# refusals

MAZES = drawn()
EVEN = torch.full((5, 17, 4), 0.25)
REWARD = MAZES.block(2).float()
NO_CORNER = Mazes.from_free(np.array([[[1, 1, 0], [1, 1, 1], [1, 1, 1]]], bool))


def lessons(*tasks: str, only: str = "", **more) -> TeachingPlan:
    return TeachingPlan((Lesson(tasks, 2, only),), **{"mazes": 6, "block": 2, **more})


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: PolicyMap(5, head="wide"), "head='wide': expected 'convolutional' or 'dense'"),
        (lambda: PolicyMap(0), "side=0: expected at least 1"),
        (lambda: PolicyMap(5, sizes=(0, 1)), "width=0: expected at least 1"),
        (lambda: PolicyMap(5, sizes=(1, 0)), "blocks=0: expected at least 1"),
        (lambda: PolicyMap(5, -1), "things=-1: expected at least 0"),
        (lambda: PolicyMap(5, outputs=3), "outputs=3: expected at least 4"),
        (lambda: lessons("no cheese", mazes=0), "mazes=0: expected at least 1"),
        (lambda: lessons("no cheese", block=0), "block=0: expected at least 1"),
        (lambda: lessons("no cheese", warmup=-1), "warmup=-1: expected at least 0"),
        (lambda: lessons(), "mazes=6: expected 1 or more for each of 0 tasks"),
        (lambda: lessons(*TASKS[:3], mazes=2), "mazes=2: expected 1 or more for each of 3 tasks"),
        (lambda: draw_things(MAZES, "no chese", 2, seeded()), "task='no chese': expected one of cheese in the"),
        (lambda: draw_things(MAZES, "no cheese", 0, seeded()), "block=0: expected at least 1"),
        (lambda: draw_things(MAZES, "no cheese", 5, seeded()), "block=5: 'no cheese' needs free cells in it and"),
        (lambda: draw_things(MAZES, "ignore the star", 9, seeded()), "block=9: 'ignore the star' needs free"),
        (lambda: draw_things(NO_CORNER, "no cheese", 1, seeded()), "block=1: 'no cheese' needs free cells in it"),
        (lambda: draw_things(NO_CORNER, "cheese in the block", 1, seeded()), "block' needs free cells in it in each"),
        (lambda: policy_loss(torch.zeros(5, 5, 5, 5), MAZES, REWARD, 0.9, 0), r"logits of shape \(5, 5, 5, 5\): e"),
        (lambda: teach(small(), MAZES, lessons("no cheese", discount=1)), "discount=1: expected 0 to below 1"),
        (lambda: teach(small(), MAZES, lessons("no cheese", only="heads")), "only='heads': expected what one of stem"),
        (lambda: teach(small(), MAZES, lessons("star anywhere")), "things=1: expected at least 2 where mazes hold a"),
        (lambda: teach(PolicyMap(5, 0, (4, 1)), MAZES, lessons("cheese anywhere")), "things=0: expected at least 1"),
        (lambda: teach(PolicyMap(7), MAZES, lessons("no cheese")), "mazes of side 5: expected 7"),
        (lambda: teach(small(TwoHeads, (4, 1)), drawn(2, 2), lessons("no cheese")), "mazes of side 3: expected 5"),
        (lambda: sample_walks(EVEN, MAZES, REWARD, (0, 3), seeded()), "walkers=0: expected at least 1"),
        (lambda: sample_walks(EVEN, MAZES, REWARD, (3, 0), seeded()), "steps=0: expected at least 1"),
        (lambda: sample_walks(EVEN, MAZES, REWARD[:, 1:], (3, 3), seeded()), r"reward of shape \(5, 16\): expected"),
        (lambda: sample_walks(EVEN, MAZES, REWARD + 1, (3, 3), seeded()), "reward: an episode ends on every free cell"),
        (lambda: teach_by_sampling(small(), MAZES, lessons("no cheese")), r"logits and value of shape .*: expected"),
        (lambda: teach_by_sampling(small(), MAZES, lessons(*TASKS[:2])), "lessons=.*: expected one, of one task"),
        (lambda: teach_by_sampling(small(), MAZES, TeachingPlan((IN_BLOCK, IN_BLOCK))), "expected one, of one task"),
        (lambda: pack_int16(np.array([1, np.nan])), "values: some are not finite"),
        (lambda: pack_int16(torch.tensor([1, float("inf")])), "values: some are not finite"),
        (lambda: pack_int16(np.array([1j])), "values is of type complex128: expected real numbers"),
    ],
)  # fmt: skip
def test_what_cannot_be_taught_is_refused(call, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()


def test_the_whole_maze_can_be_the_block_where_cheese_lies() -> None:
    cheese, _, reward = draw_things(MAZES, "cheese in the block", 9, seeded())
    assert (reward.sum(1) == 1).all()
    assert (cheese >= 0).all()
