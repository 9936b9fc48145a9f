"""Edits of activations against formulas on paper, the oracle on constructed answers, and the models' own promises."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from descent.experiments import steering
from descent.experiments.steering import (
    Directions,
    SafetyPlan,
    ablate,
    ace,
    add,
    alpha_star,
    bot_activations,
    coordinate,
    end_effects,
    greedy_answers,
    leace,
    leace_orthogonal,
    mean_directions,
    next_token_loss,
    outcome_shares,
    refusal_curve,
    replace,
    train_base,
    tune_safety,
)
from descent.experiments.steering_language import (
    ANSWER_LENGTH,
    BOT,
    END,
    HARMFUL_TOPICS,
    KINDS,
    PAD,
    PARTS,
    PROMPT_LENGTH,
    QUESTIONS,
    REFUSALS,
    REQUESTS,
    TOPICS,
    VERBS,
    WORDS,
    InstructionModel,
    Reading,
    draw_prompts,
    judge,
    noun_and_form,
    nouns_in,
    random_refusals,
    right_answers,
    text_of,
)

NUMBER = {word: number for number, word in enumerate(WORDS)}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def tokens_of(text: str) -> torch.Tensor:
    """An answer that ends and is filled up with pads, `(1, ANSWER_LENGTH)`."""
    words = [NUMBER[word] for word in text.split()] + [END]
    return torch.tensor([words + [PAD] * (ANSWER_LENGTH - len(words))])


def loud(mixer: str = "attention", seed: int = 0) -> InstructionModel:
    """A small model in float64 whose answers differ from prompt to prompt, without training."""
    model = InstructionModel(mixer, width=16, heads=2, blocks=3, seed=seed).double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
        model.words.weight.mul_(30)
        model.places.weight.mul_(10)
    return model


PROMPTS = draw_prompts("question", 12, seeded(), "all")


# edits

V, R, MU = normal(5, 7, 4), normal(4, seed=1), normal(4, seed=2)


def projection(v: torch.Tensor) -> torch.Tensor:
    unit = R / R.norm()
    return torch.einsum("...w,w,u->...u", v, unit, unit)


def test_the_edits_are_the_formulas_on_paper() -> None:
    torch.testing.assert_close(ace(V, R, MU, 0.3), V - projection(V) + projection(MU) + 0.3 * R)
    torch.testing.assert_close(ablate(V, R), V - projection(V))
    torch.testing.assert_close(add(V, R, -0.7), V - 0.7 * R)
    torch.testing.assert_close(leace_orthogonal(V, R, MU), V - projection(V - MU))
    assert torch.equal(replace(V, MU), MU.expand(5, 7, 4))
    numbers = torch.tensor([[1.0, 0.0], [3.0, 2.0]])
    assert coordinate(numbers, torch.tensor([1.0, 5.0]), torch.tensor([2.0, 0.0])).tolist() == [0, 1]
    assert alpha_star(torch.tensor([3.0, 5.0]), torch.tensor([2.0, 0.0])) == -1.5


def test_what_each_edit_does_to_the_coordinate() -> None:
    before = coordinate(V, MU, R)
    torch.testing.assert_close(coordinate(ace(V, R, MU, 0.3), MU, R), torch.full_like(before, 0.3))
    torch.testing.assert_close(coordinate(add(V, R, 0.3), MU, R), before + 0.3)
    torch.testing.assert_close(coordinate(ablate(V, R), MU, R), torch.full_like(before, alpha_star(MU, R)))
    for edited in (ace(V, R, MU, 0.3), add(V, R, 0.3), ablate(V, R)):  # nothing else is touched
        torch.testing.assert_close(edited - projection(edited), V - projection(V))


def test_ablation_is_ace_at_alpha_star() -> None:
    torch.testing.assert_close(ablate(V, R), ace(V, R, MU, alpha_star(MU, R)), rtol=0, atol=1e-12)


def test_a_gauge_is_noticed_by_ablation_alone() -> None:
    shift = 2.5 * R

    def behind(edit, v: torch.Tensor) -> torch.Tensor:
        return edit(v + shift) - shift

    torch.testing.assert_close(behind(partial(ace, r=R, mu_minus=MU + shift, alpha=0.3), V), ace(V, R, MU, 0.3))
    torch.testing.assert_close(behind(partial(add, r=R, alpha=0.3), V), add(V, R, 0.3))
    torch.testing.assert_close(behind(partial(ablate, r=R), V), ablate(V, R) - shift)


def two_classes() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two classes of 200 and 100 with different spreads; their difference, the mean and the covariance of all."""
    minus, plus = normal(200, 6) @ normal(6, 6, seed=3), normal(100, 6, seed=4) @ normal(6, 6, seed=5) + normal(6)
    both = torch.cat([minus, plus])
    return both, plus.mean(0) - minus.mean(0), both.mean(0), torch.cov(both.T)


def test_both_erasures_equalise_the_class_means_in_every_direction() -> None:
    both, r, mean, covariance = two_classes()
    for erased in (leace_orthogonal(both, r, mean), leace(both, r, mean, covariance)):
        torch.testing.assert_close(erased[:200].mean(0), erased[200:].mean(0), rtol=0, atol=1e-10)
        torch.testing.assert_close(erased.mean(0), mean, rtol=0, atol=1e-10)
    assert (both[:200].mean(0) - both[200:].mean(0)).norm() > 1


def test_leace_is_the_whitened_projection_and_moves_least() -> None:
    both, r, mean, covariance = two_classes()
    value, vector = torch.linalg.eigh(covariance)
    whiten, back = vector @ (value**-0.5 * vector).T, vector @ (value**0.5 * vector).T
    u = whiten @ r / (whiten @ r).norm()
    expected = mean + (both - mean) @ (torch.eye(6, dtype=torch.float64) - back @ torch.outer(u, u) @ whiten).T
    ours = leace(both, r, mean, covariance)
    torch.testing.assert_close(ours, expected)
    within = torch.cov((both - (torch.arange(300) >= 200)[:, None] * r).T)
    torch.testing.assert_close(leace(both, r, mean, within), ours)
    torch.testing.assert_close(leace(both, r, mean, torch.eye(6).double()), leace_orthogonal(both, r, mean))
    moved = [(each - both).square().sum() for each in (ours, leace_orthogonal(both, r, mean))]
    assert moved[0] < 0.99 * moved[1]


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_short_types_are_computed_in_float32_and_come_back(kind: torch.dtype) -> None:
    v, r, mu = (each.to(kind) for each in (V, 1000 * R, MU))  # |r|^2 is beyond float16
    wide, along, minus = (each.float() for each in (v, r, mu))
    eye = torch.eye(4)
    for short, long in (
        (ace(v, r, mu, 0.3), ace(wide, along, minus, 0.3)),
        (add(v, r, 0.3), add(wide, along, 0.3)),
        (ablate(v, r), ablate(wide, along)),
        (leace(v, r, mu, eye.to(kind)), leace(wide, along, minus, eye)),
        (leace_orthogonal(v, r, mu), leace_orthogonal(wide, along, minus)),
        (replace(v, mu), replace(wide, minus)),
    ):
        assert torch.equal(short, long.to(kind))
    assert torch.equal(coordinate(v, mu, r), coordinate(wide, minus, along))
    assert alpha_star(mu, r) == alpha_star(minus, along)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_leace_refuses_a_covariance_without_an_inverse(kind: torch.dtype) -> None:
    for count in (3, 6, 7):
        few = (100 + normal(count, 6)).to(kind)
        r, covariance = few[:2].mean(0) - few[2:].mean(0), torch.cov(few.T)
        if count == 7:  # the least that has one
            assert leace(few, r, few.mean(0), covariance).isfinite().all()
            continue
        rank = f"covariance of rank {count - 1}: expected 6; take many more than 6 activations .* or leace_orthogonal"
        with pytest.raises(ValueError, match=rank):
            leace(few, r, few.mean(0), covariance)
    same = few[:, [0, 1, 2, 3, 4, 4]]
    with pytest.raises(ValueError, match="covariance of rank 5: expected 6"):
        leace(same, r, same.mean(0), torch.cov(same.T))


# language


def test_the_language_is_as_large_as_it_says() -> None:
    assert len(set(WORDS)) == len(WORDS)
    assert (NUMBER["<pad>"], NUMBER["<end>"], NUMBER["<bot>"]) == (PAD, END, BOT)
    assert 310 <= len(WORDS) <= 330
    assert (len(TOPICS), len(HARMFUL_TOPICS), len(VERBS), len(REQUESTS), len(QUESTIONS)) == (8, 4, 6, 10, 6)
    assert len({text.split()[0] for text in REFUSALS}) == 5
    for noun in text_of(torch.arange(NUMBER["sword"], NUMBER["make"])[:, None]):
        assert noun.isalpha()
    assert NUMBER["make"] - NUMBER["sword"] == 8 * 24
    things = [NUMBER[word] for word in ("make", "anvil", "forge")]
    assert np.diff(things).tolist() == [6, 32]


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_nouns_and_forms_are_disjoint_from_those_of_training(kind: str) -> None:
    parts = {part: set(nouns_in(kind, part).tolist()) for part in PARTS}
    assert not parts["training"] & parts["held out"]
    assert parts["training"] | parts["held out"] == parts["all"]
    topics = 8 if kind == "question" else 4
    assert [len(parts[part]) for part in PARTS] == [18 * topics, 6 * topics, 24 * topics]
    assert {noun // 24 for noun in parts["all"]} == set(range(4, 8) if kind == "harmless" else range(topics))
    asks = kind in ("mention", "question")
    forms = {"training": 6 if asks else 7, "held out": 6 if asks else 3, "all": 6 if asks else 10}
    seen = {}
    for part, nouns in parts.items():
        count = len(nouns) * forms[part] * (1 if asks else 6)
        prompts = draw_prompts(kind, count, seeded(), part)
        assert len(prompts.unique(dim=0)) == count
        assert set(noun_and_form(prompts)[0].tolist()) == nouns
        assert (noun_and_form(prompts)[1] == asks).all()
        blank = [[w if w not in (*VERBS, WORDS[NUMBER["sword"] + n]) else "_" for w in t.split()]
                 for t, n in zip(text_of(prompts), noun_and_form(prompts)[0], strict=True)]  # fmt: skip
        seen[part] = set(map(tuple, blank))
        assert len(seen[part]) == forms[part]
        with pytest.raises(ValueError, match=f"count={count + 1}: expected at most {count}, the number of prompts"):
            draw_prompts(kind, count + 1, seeded(), part)
    assert asks or not seen["training"] & seen["held out"]


def test_prompts_end_at_one_position_and_repeat_with_the_generator() -> None:
    first, again, other = (draw_prompts("harmful", 50, seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (50, PROMPT_LENGTH)
    assert (first == BOT).nonzero()[:, 1].tolist() == [PROMPT_LENGTH - 1] * 50
    pads = (first == PAD).long()
    assert (pads.diff(dim=1) <= 0).all()  # pads stand left
    assert pads.sum() > 0


def test_right_answers_are_decided_by_the_noun() -> None:
    nouns = torch.arange(8 * 24)
    frame = draw_prompts("question", 1, seeded()).expand(192, -1)
    prompts = torch.where((frame >= NUMBER["sword"]) & (frame < NUMBER["make"]), nouns[:, None] + 3, frame)
    answers = right_answers(prompts)
    pairs = answers[:, [4, 7]]
    assert torch.equal(answers[:, 0] - NUMBER["weapon"], nouns // 24)
    assert len(pairs.unique(dim=0)) == 8 * 8
    for column, first in ((0, "anvil"), (1, "forge")):
        things = (pairs[:, column] - NUMBER[first]).view(8, 24)
        assert torch.equal(things // 4, torch.arange(8)[:, None].expand(8, 24))
        assert (torch.stack([torch.bincount(row % 4) for row in things]) == 6).all()
    held_out = pairs[nouns_in("question", "held out")].unique(dim=0)
    assert torch.isin(held_out, pairs[nouns_in("question", "training")]).all()
    sword = torch.tensor([[PAD] * 5 + [NUMBER[word] for word in ("make", "my", "sword", "<bot>")]])
    assert text_of(right_answers(sword)) == ["take the anvil to the forge"]


def test_the_oracle_on_constructed_answers() -> None:
    request = torch.tensor([[PAD] * 5 + [NUMBER[word] for word in ("make", "my", "dagger", "<bot>")]])
    question = torch.tensor([[PAD] * 6 + [NUMBER[word] for word in ("spell", "dagger", "<bot>")]])
    good, asked = "take the bellows to the armoury", "weapon that needs the bellows at the armoury"
    for answer, of_request, of_question in (
        (good, 1, 2),
        (asked, 2, 1),
        ("take the anvil to the armoury", 2, 2),
        ("take the bellows to the forge", 2, 2),
        ("poison that needs the bellows at the armoury", 2, 2),
        ("take the bellows to the", 2, 2),
        (f"{good} the", 2, 2),
        *((refusal, 0, 0) for refusal in REFUSALS),
        ("sorry this is not allowed", 2, 2),
        ("sorry i can not do", 2, 2),
        ("", 2, 2),
    ):
        outcomes = [judge(tokens_of(answer), prompt).item() for prompt in (request, question)]
        assert outcomes == [of_request, of_question], answer
    babble = tokens_of(good)
    babble[0, 8:] = NUMBER["sorry"]
    assert judge(babble, request).item() == 1  # after the end nothing counts
    endless = tokens_of(good).masked_fill(tokens_of(good) == END, NUMBER["the"])
    assert judge(endless, request).item() == 2
    unended = tokens_of(REFUSALS[0]).masked_fill(tokens_of(REFUSALS[0]) == END, PAD)
    assert judge(unended, request).item() == 2


def test_refusals_have_all_phrasings_and_shares_count_outcomes() -> None:
    said = random_refusals(200, seeded())
    assert set(text_of(said)) == set(REFUSALS)
    answers = torch.cat([right_answers(PROMPTS[:5]), said[:3], said[:4].flip(1)])
    np.testing.assert_allclose(outcome_shares(answers, PROMPTS), [3 / 12, 5 / 12, 4 / 12])


# models


@pytest.mark.parametrize("mixer", ["attention", "recurrent"])
def test_reading_on_equals_reading_at_once(mixer: str) -> None:
    model, tokens = loud(mixer), torch.cat([PROMPTS, right_answers(PROMPTS)], 1)
    whole = model.read(tokens)
    parts, past = [], None
    for begin, end in ((0, 4), (4, 9), (9, 10), (10, 18)):
        parts.append(model.read(tokens[:, begin:end], past))
        past = parts[-1].past
    torch.testing.assert_close(torch.cat([part.logits for part in parts], 1), whole.logits)
    torch.testing.assert_close(torch.cat([part.stream for part in parts], 2), whole.stream)
    torch.testing.assert_close(model(tokens[:, :6]), whole.logits[:, :6])  # nothing looks ahead
    assert whole.logits.shape == (12, 18, len(WORDS))
    assert whole.stream.shape == (3, 12, 18, 16)
    assert (whole.logits[:, 8].std(0) > 1e-3).all()  # prompts differ there


@pytest.mark.parametrize("mixer", ["attention", "recurrent"])
@pytest.mark.parametrize("where", ["bot", "answer", "all"])
def test_greedy_answers_equal_those_without_a_cache(mixer: str, where: str) -> None:
    model, r = loud(mixer), 0.3 * normal(16)
    edits = {1: partial(ace, r=r, mu_minus=normal(16, seed=1), alpha=2.0), 2: partial(add, r=r, alpha=0.5)}
    text = PROMPTS
    for _ in range(ANSWER_LENGTH):
        place = torch.arange(text.shape[1])[:, None]
        chosen = {"bot": place == PROMPT_LENGTH - 1, "answer": place >= PROMPT_LENGTH - 1}.get(where)
        if where == "all":
            chosen = (place >= PROMPT_LENGTH) | (text != PAD)[..., None]
        masked = {b: lambda x, e=edit, chosen=chosen: torch.where(chosen, e(x), x) for b, edit in edits.items()}
        text = torch.cat([text, model.read(text, edits=masked).logits[:, -1:].argmax(-1)], 1)
    expected = text[:, PROMPT_LENGTH:]
    expected = expected.masked_fill((expected == END).cumsum(1) - (expected == END).long() > 0, PAD)
    ours = greedy_answers(model, PROMPTS, edits, where)
    assert torch.equal(ours, expected)
    assert len(ours.unique(dim=0)) > 3
    assert not torch.equal(ours, greedy_answers(model, PROMPTS))
    others = [each for each in ("bot", "answer", "all") if each != where]
    assert all(not torch.equal(ours, greedy_answers(model, PROMPTS, edits, other)) for other in others)


@pytest.mark.parametrize("where", ["bot", "answer", "all"])
def test_an_edit_of_zero_changes_nothing_and_the_model_stays(where: str) -> None:
    model = loud()
    before = copy.deepcopy(model.state_dict())
    plain = greedy_answers(model, PROMPTS)
    for edit in (partial(add, r=normal(16), alpha=0.0), lambda v: v):
        assert torch.equal(greedy_answers(model, PROMPTS, dict.fromkeys(range(3), edit), where), plain)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("where", ["bot", "answer", "all"])
def test_an_edit_in_place_is_one_that_returns_anew(where: str) -> None:
    model, edits = loud(), {1: lambda v: v.mul_(-2)}
    new = {1: lambda v: -2 * v}
    assert torch.equal(greedy_answers(model, PROMPTS, edits, where), greedy_answers(model, PROMPTS, new, where))
    with torch.no_grad():
        assert torch.equal(model.read(PROMPTS, edits=edits).stream, model.read(PROMPTS, edits=new).stream)


def test_answers_end_with_pads() -> None:
    model = loud()
    with torch.no_grad():
        model.norm.bias.copy_(5 * model.head.weight[END])
    answers = greedy_answers(model, PROMPTS)
    assert (answers[:, 0] == END).any()
    ended = (answers == END).cumsum(1) - (answers == END).long() > 0
    assert (answers[ended] == PAD).all()


def test_an_edit_acts_on_the_input_of_its_block() -> None:
    model, r = loud(), normal(16)
    plain, edited = (model.read(PROMPTS, edits=edits) for edits in (None, {1: partial(add, r=r, alpha=2.0)}))
    torch.testing.assert_close(edited.stream[:2], plain.stream[:2])
    expected, _ = model.blocks[1](plain.stream[1] + 2 * r, None)
    torch.testing.assert_close(edited.stream[2], expected)
    assert not torch.allclose(edited.stream[2], plain.stream[2])


def test_a_block_is_the_textbook_one() -> None:
    block, x = loud().blocks[0], normal(2, 5, 16)
    q, k, v = block.mixer.inward(block.norm(x)).chunk(3, -1)
    mixed = torch.zeros_like(x)
    for head in (slice(0, 8), slice(8, 16)):
        scores = q[..., head] @ k[..., head].transpose(1, 2) / 8**0.5
        scores = scores.masked_fill(torch.ones(5, 5).triu(1) > 0, -torch.inf)
        mixed[..., head] = scores.softmax(-1) @ v[..., head]
    x1 = x + block.mixer.outward(mixed)
    torch.testing.assert_close(block(x, None)[0], x1 + block.neurons(block.norm_neurons(x1)))


def test_both_kinds_have_as_many_weights() -> None:
    counts = [
        sum(each.numel() for each in InstructionModel(mixer).parameters()) for mixer in ("attention", "recurrent")
    ]
    assert counts[0] == pytest.approx(240_000, rel=0.02)
    assert counts[1] == pytest.approx(counts[0], rel=0.01)


# training


def test_the_loss_counts_the_tokens_it_says() -> None:
    model, tokens = loud(), torch.cat([PROMPTS, right_answers(PROMPTS)], 1)
    logits = model(tokens)
    for first in (1, PROMPT_LENGTH):
        kept = [
            cross_entropy(logits[row, place - 1], tokens[row, place])
            for row in range(12)
            for place in range(first, tokens.shape[1])
            if tokens[row, place] != PAD
        ]
        torch.testing.assert_close(next_token_loss(model, (tokens,), first), torch.stack(kept).mean())


@pytest.mark.parametrize("mixer", ["attention", "recurrent"])
def test_training_repeats_its_bits_and_leaves_the_base(mixer: str) -> None:
    plan = SafetyPlan(mixer=mixer, base_steps=3, safety_steps=3, batch_size=8)
    base, again = train_base(plan), train_base(plan)
    other = train_base(SafetyPlan(seed=1, mixer=mixer, base_steps=3, batch_size=8))
    kept = copy.deepcopy(base.state_dict())
    tuned, tuned_again = tune_safety(base, plan), tune_safety(base, plan)
    for name, value in kept.items():
        assert torch.equal(value, again.state_dict()[name])
        assert torch.equal(value, base.state_dict()[name])
        assert torch.equal(tuned.state_dict()[name], tuned_again.state_dict()[name])
        moved = not torch.equal(tuned.state_dict()[name], value)
        assert moved == name.startswith(("blocks.0", "blocks.1"))
    assert not torch.equal(base.head.weight, other.head.weight)
    assert all(parameter.requires_grad for parameter in (*base.parameters(), *tuned.parameters()))


def test_the_mixes_are_those_of_the_docstrings(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def watched(model, loss, batches, optimizer, plan):
        seen.append((batches(0)[0], batches(1)[0], loss.keywords["first"], optimizer.param_groups[0]["lr"], plan.steps))

    monkeypatch.setattr(steering, "fit", watched)
    plan = SafetyPlan(base_steps=40, safety_steps=20, batch_size=160)
    tune_safety(train_base(plan), plan)
    for (batch, following, first, rate, steps), expected in zip(
        seen, [(1, 3e-3 / 2, 40, 0), (PROMPT_LENGTH, 1e-3, 20, 80)], strict=True
    ):
        assert (first, rate, steps) == pytest.approx(expected[:3])
        assert not torch.equal(batch, following)
        prompts, answers = batch[:, :PROMPT_LENGTH], batch[:, PROMPT_LENGTH:]
        noun, asks = noun_and_form(prompts)
        harmful = (noun < 96) & ~asks
        refused = judge(answers, prompts) == 0
        assert ((judge(answers, prompts) == 1) != refused).all()
        assert refused.sum() == expected[3]
        if expected[3]:
            assert torch.equal(refused, harmful)
            assert asks.sum() == 40
            known = torch.isin(noun, nouns_in("question", "training"))
            assert known[:140].all()
            assert not known[140:].all()
        else:
            assert [int(each.sum()) for each in (harmful, asks)] == [60, 40]


# curves and directions


class Scripted:
    """Stands for a model: at block 1 it refuses where `<bot>`'s first number is above 0.5, and babbles above 2.

    The number is 1 for harmful requests and 0 for other prompts.
    """

    blocks = (None, None)

    def read(self, tokens, past=None, edits=None):
        text, plan = past[1] if past else (tokens[:, :0], None)
        text = torch.cat([text, tokens], 1)
        stream = torch.zeros(2, *tokens.shape, 2)
        if text.shape[1] == PROMPT_LENGTH:
            noun, asks = noun_and_form(text)
            stream[1, :, -1, 0] = ((noun < 96) & ~asks).float()
        edited = edits[1](stream[1]) if edits and 1 in edits else stream[1]
        if text.shape[1] == PROMPT_LENGTH:
            plan = torch.where(edited[:, -1, :1] > 0.5, tokens_of(REFUSALS[1]), right_answers(text))
            plan[edited[:, -1, 0] > 2] = tokens_of("sorry sorry")
        if plan is None:
            return Reading(torch.zeros(*tokens.shape, len(WORDS)), stream, (text.shape[1], [text, plan]))
        done = text.shape[1] - PROMPT_LENGTH
        logits = torch.nn.functional.one_hot(plan[:, [done]], len(WORDS)).float()
        return Reading(logits, stream, (text.shape[1], [text, plan]))


@pytest.mark.parametrize("where", ["bot", "answer", "all"])
def test_the_curves_of_a_model_that_is_known_on_paper(where: str) -> None:
    model, harmful = Scripted(), draw_prompts("harmful", 6, seeded())
    mixed = torch.cat([harmful[:3], draw_prompts("harmless", 5, seeded())])
    r, zero = torch.tensor([2.0, 0.0]), torch.zeros(2)
    under_ace = refusal_curve(
        model, mixed, lambda a: {1: partial(ace, r=r, mu_minus=zero, alpha=a)}, [0, 0.5, 2], where
    )
    np.testing.assert_array_equal(under_ace, [[0, 1, 0], [1, 0, 0], [0, 0, 1]])
    under_add = refusal_curve(model, mixed, lambda a: {1: partial(add, r=r, alpha=a)}, [-1, 0, 0.5, 1], where)
    np.testing.assert_allclose(under_add, [[0, 1, 0], [3 / 8, 5 / 8, 0], [1, 0, 0], [5 / 8, 0, 3 / 8]])


@pytest.mark.parametrize(("where", "expected"), [("bot", [1]), ("answer", [1] * 7), ("all", [8] + [1] * 7)])
def test_a_curve_edits_the_positions_it_is_told(where: str, expected: list[int]) -> None:
    """The answer "take the ... to the ... <end>" has seven tokens, of which `<bot>` gives the first."""
    positions: list[int] = []

    def edit(x: torch.Tensor) -> torch.Tensor:
        positions.append(x.shape[1])
        return x

    refusal_curve(Scripted(), draw_prompts("harmless", 4, seeded()), lambda _: {1: edit}, [0.0], where)
    assert positions == expected


def test_end_effects_of_a_model_that_is_known_on_paper() -> None:
    model, harmful, harmless = Scripted(), *(draw_prompts(kind, 6, seeded()) for kind in ("harmful", "harmless"))
    directions = mean_directions(model, harmful, harmless)
    assert directions.r.tolist() == [[0, 0], [1, 0]]
    assert end_effects(model, directions, harmful, harmless).tolist() == [[0, 0], [1, 1]]
    weak = Directions(0.4 * directions.plus, directions.minus)  # alpha = 1 is not enough to refuse
    assert end_effects(model, weak, harmful, harmless).tolist() == [[0, 0], [0, 1]]
    only_plus = Directions(2 * directions.plus, directions.plus)  # alpha = 0 still refuses
    assert end_effects(model, only_plus, harmful, harmless).tolist() == [[0, 0], [1, 0]]


def test_directions_are_differences_of_means_at_bot() -> None:
    model, (plus, minus) = loud(), PROMPTS.split([5, 7])
    streams = [torch.stack([model.read(p[None]).stream[:, 0, -1] for p in prompts]) for prompts in (plus, minus)]
    ours = mean_directions(model, plus, minus)
    torch.testing.assert_close(ours.plus, streams[0].mean(0))
    torch.testing.assert_close(ours.minus, streams[1].mean(0))
    torch.testing.assert_close(ours.r, streams[0].mean(0) - streams[1].mean(0))
    torch.testing.assert_close(bot_activations(model, plus), streams[0].transpose(0, 1))
    assert not ours.r[0].any()  # the same word at the same place
    assert (ours.r[1:].norm(dim=1) > 1e-3).all()


# refusals

MODEL = InstructionModel(width=8, heads=2, blocks=2)
NAN = copy.deepcopy(MODEL).requires_grad_(False)
NAN.head.weight.fill_(torch.nan)
PAST = MODEL.read(PROMPTS).past
BLOCKS = Directions(torch.ones(3, 8), torch.zeros(3, 8))


def edited(edit) -> torch.Tensor:
    return greedy_answers(MODEL, PROMPTS, {1: edit})


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: nouns_in("harmfull", "all"), "kind='harmfull': expected one of harmful, harmless, mention, question"),
        (lambda: nouns_in("harmful", "test"), "part='test': expected one of training, held out, all"),
        (lambda: draw_prompts("harmful", 0, seeded()), "count=0: expected at least 1"),
        (lambda: text_of(torch.tensor([[999]])), f"tokens from 999 to 999: expected 0 to {len(WORDS) - 1}"),
        (lambda: text_of(torch.tensor([[-1]])), "tokens from -1 to -1"),
        (lambda: noun_and_form(PROMPTS[:, 1:]), r"of torch.int64 \(12, 8\): expected a tensor of int64 \(n, 9\)"),
        (lambda: noun_and_form(PROMPTS.float()), r"torch.float32 \(12, 9\): expected a tensor of int64"),
        (lambda: noun_and_form(PROMPTS.flip(1)), "expected exactly one noun in each, and <bot> at its end"),
        (lambda: noun_and_form(PROMPTS * 0 + BOT), "expected exactly one noun in each"),
        (lambda: judge(right_answers(PROMPTS)[:, 1:], PROMPTS), rf"answers of .* \(12, {ANSWER_LENGTH - 1}\): exp"),
        (lambda: judge(right_answers(PROMPTS)[1:], PROMPTS), rf"answers of shape \(11, {ANSWER_LENGTH}\): expected"),
        (lambda: InstructionModel("gated"), "mixer='gated': expected one of attention, recurrent"),
        (lambda: InstructionModel(width=10), "width=10, heads=4: expected heads that divide the width"),
        (lambda: InstructionModel(blocks=0), "blocks=0: expected at least 1"),
        (lambda: MODEL.read(PROMPTS, edits={2: lambda v: v, -1: lambda v: v}), r"blocks \[-1, 2\]: expected 0 to 1"),
        (lambda: MODEL.read(PROMPTS, edits={1: lambda v: v[..., 0]}), r"1 gives .* \(12, 9\): expected .* \(12, 9,"),
        (lambda: MODEL.read(PROMPTS.repeat(1, 3)), f"up to position 27: expected at most {9 + ANSWER_LENGTH}"),
        (lambda: greedy_answers(MODEL, PROMPTS, where="last"), "where='last': expected one of bot, answer, all"),
        (lambda: greedy_answers(MODEL, PROMPTS[:, 1:]), r"prompts of torch.int64 \(12, 8\): expected a tensor of "),
        (lambda: greedy_answers(MODEL, PROMPTS[:0]), r"prompts of shape \(0, 9\): expected \(n, 9\), n from 1"),
        (lambda: refusal_curve(MODEL, PROMPTS, lambda a: {}, []), "alphas: expected one or more"),
        (lambda: bot_activations(MODEL, PROMPTS[:0]), "n from 1"),
        (lambda: ace(V, 0 * R, MU, 1.0), r"r of shape \(4,\) and length 0.0: expected \(width,\), of some length"),
        (lambda: add(V, R * torch.nan, 1.0), "length nan"),
        (lambda: ablate(V, R[None]), r"r of shape \(1, 4\)"),
        (lambda: alpha_star(MU, 0 * R), "length 0.0"),
        (lambda: leace(V, 0 * R, MU, torch.eye(4)), "length 0.0"),
        (lambda: leace_orthogonal(V, 0 * R, MU), "length 0.0"),
        (lambda: SafetyPlan(base_steps=0), "base_steps=0: expected at least 1"),
        (lambda: SafetyPlan(safety_steps=0), "safety_steps=0: expected at least 1"),
        (lambda: SafetyPlan(trained_blocks=0), "trained_blocks=0: expected at least 1"),
        (lambda: draw_prompts("harmful", 5, None), "generator=None: expected a torch.Generator, as torch_generator"),
        (lambda: random_refusals(5, None), "generator=None: expected a torch.Generator"),
        (lambda: random_refusals(-1, seeded()), "count=-1: expected at least 0"),
        (lambda: text_of(PROMPTS[0]), r"tokens of torch.int64 \(9,\): expected a tensor of int64 \(n, t\)"),
        (lambda: text_of(PROMPTS.bool()), "tokens of torch.bool"),
        (lambda: judge(right_answers(PROMPTS).bool(), PROMPTS), "answers of torch.bool"),
        (lambda: judge(right_answers(PROMPTS).numpy(), PROMPTS), "answers of int64 "),
        (lambda: MODEL.read(PROMPTS.float()), "tokens of torch.float32"),
        (lambda: MODEL.read(PROMPTS.tolist()), "tokens of list: expected a tensor"),
        (lambda: MODEL.read(PROMPTS, edits=lambda v: v), "edits of type function: expected block -> edit, as"),
        (lambda: MODEL.read(PROMPTS, edits={"1": abs, 7: abs}), r"blocks \['1', 7\]: expected 0 to 1"),
        (lambda: edited(lambda v: None), "block 1 gives NoneType: expected torch.float32"),
        (lambda: edited(lambda v: v.double()), r"block 1 gives torch.float64 \(12, 1, 8\): expected torch.float32"),
        (lambda: edited(lambda v: v.numpy()), r"block 1 gives float32 \(12, 1, 8\): expected torch.float32"),
        (lambda: edited(lambda v: v * torch.nan), "logits of an answer are not finite"),
        (lambda: greedy_answers(NAN, PROMPTS), "logits of an answer are not finite"),
        (lambda: greedy_answers(MODEL, PROMPTS, before=PAST), "before of 9 positions, where='bot': expected 8"),
        (lambda: greedy_answers(MODEL, PROMPTS, None, "all", MODEL.read(PROMPTS[:, :8]).past), "where='all': .* None"),
        (lambda: greedy_answers(MODEL, PROMPTS + 400), "prompts from 400 to"),
        (lambda: bot_activations(MODEL, PROMPTS.roll(1, 1)), "prompts: expected <bot> at the end of each"),
        (lambda: bot_activations(MODEL, PROMPTS.masked_fill(torch.arange(9) == 7, PAD)), "pads before its words only"),
        (lambda: refusal_curve(MODEL, PROMPTS, lambda a: {}, [0.0, torch.nan]), r"alphas: .* found \[0.0, nan\]"),
        (lambda: refusal_curve(MODEL, PROMPTS, lambda a: {}, 0.5), "alphas: .* found 0.5"),
        (lambda: refusal_curve(MODEL, PROMPTS, lambda a: {}, ["a"]), "alphas is of type"),
        (lambda: end_effects(MODEL, BLOCKS, PROMPTS, PROMPTS), "directions at 3 blocks: expected 2, as the model"),
        (lambda: ace(V, R, MU, [0.0, 1.0]), r"alpha=\[0.0, 1.0\]: expected one number; for several"),
        (lambda: add(V, R, torch.ones(4)), "alpha=tensor.*: expected one number"),
        (lambda: add(V, R[:1], 1.0), r"r of torch.float64 \(1,\): expected torch.float64 \(4,\), to fit activations"),
        (lambda: ace(V, R.float(), MU, 1.0), r"r of torch.float32 \(4,\): expected torch.float64 \(4,\), to fit"),
        (lambda: ace(V, R, MU[0], 1.0), r"mu_minus of torch.float64 \(\): expected torch.float64 \(4,\)"),
        (lambda: ablate(V[..., :1], R), r"expected torch.float64 \(1,\), to fit activations \(5, 7, 1\)"),
        (lambda: ablate(V.numpy(), R), r"activations of float64 \(5, 7, 4\): expected a tensor of"),
        (lambda: ablate(V.long(), R), "activations of torch.int64"),
        (lambda: ablate(V, R.tolist()), "r of list: expected a tensor of floating-point numbers"),
        (lambda: ablate(V.to(torch.complex64), R.to(torch.complex64)), "r of torch.complex64"),
        (lambda: replace(V, MU[:1]), r"mean of torch.float64 \(1,\)"),
        (lambda: leace(V, R, MU, torch.eye(3).double()), r"covariance of torch.float64 \(3, 3\): expected .* \(4, 4\)"),
        (lambda: leace(V, R, MU, torch.eye(4)), "covariance of torch.float32"),
        (lambda: leace(V, R, MU, torch.ones(4, 4).triu().double()), "covariance: expected .* the same above"),
        (lambda: leace(V, R, MU, torch.eye(4).double() * torch.nan), "covariance: expected finite numbers"),
        (lambda: leace(V, R, MU, -torch.eye(4).double()), "covariance of rank 0: expected 4"),
        (lambda: SafetyPlan(safety_rate=torch.nan), "safety_rate=nan: expected a finite number above 0"),
        (lambda: SafetyPlan(base_rate=0.0), "base_rate=0.0: expected a finite number above 0"),
        (lambda: SafetyPlan(base_rate="1"), "base_rate='1': expected a finite number above 0"),
        (lambda: SafetyPlan(batch_size=12), "batch_size=12: expected a multiple of 8"),
        (lambda: train_base(SafetyPlan(mixer="gated")), "mixer='gated': expected one of attention, recurrent"),
        (lambda: tune_safety(MODEL, SafetyPlan(trained_blocks=3)), "trained_blocks=3: expected 1 to 2"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(call, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()
