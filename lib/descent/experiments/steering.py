"""Small language models that learn to comply and then to refuse, and affine edits of what they compute.

Affine concept editing sets the coordinate of an activation along a direction to a value; addition moves it by one, and
directional ablation takes it to where the origin happens to be (Marshall, Scherlis and Belrose 2024, Refusal in LLMs is
an Affine Function). All edits act on tensors `(..., width)` and change nothing in place; directions and means are
`(width,)` tensors of the same type. Shorter types are computed in float32, and edits give back their own.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam
from torch.optim.lr_scheduler import LambdaLR

from descent.experiments.steering_language import (
    ANSWER_LENGTH,
    BOT,
    END,
    OUTCOMES,
    PAD,
    PROMPT_LENGTH,
    Edit,
    Edits,
    InstructionModel,
    Past,
    check_tokens,
    draw_prompts,
    judge,
    random_refusals,
    right_answers,
)
from descent.repro.numbers import as_real, check_whole, described
from descent.repro.seeding import deterministic, torch_generator
from descent.training.loop import Batch, TrainingPlan, fit

PLACES = ("bot", "answer", "all")


# edits


def coordinate(v: Tensor, mu_minus: Tensor, r: Tensor) -> Tensor:
    """Where activations stand along r, `(..., width) -> (...)`: 0 at `mu_minus`, 1 at `mu_minus + r`."""
    v, r, mu_minus = _as_one(v, r=_direction(r), mu_minus=mu_minus)
    return (v - mu_minus) @ r / (r @ r)


def ace(v: Tensor, r: Tensor, mu_minus: Tensor, alpha: float) -> Tensor:
    """Affine concept editing: set the coordinate to `alpha`, `v - proj_r(v) + proj_r(mu_minus) + alpha r`."""
    _check_alpha(alpha)
    wide, along = _as_one(v, r=_direction(r))
    return (wide + (alpha - coordinate(v, mu_minus, r))[..., None] * along).to(v.dtype)


def add(v: Tensor, r: Tensor, alpha: float) -> Tensor:
    """Activation addition: move the coordinate by `alpha`, `v + alpha r`."""
    _check_alpha(alpha)
    wide, along = _as_one(v, r=_direction(r))
    return (wide + alpha * along).to(v.dtype)


def ablate(v: Tensor, r: Tensor) -> Tensor:
    """Directional ablation: take off the projection on r from the origin, `v - proj_r(v)`."""
    wide, along = _as_one(v, r=_direction(r))
    return (wide - (wide @ along / (along @ along))[..., None] * along).to(v.dtype)


def alpha_star(mu_minus: Tensor, r: Tensor) -> float:
    """The coordinate to which ablation sets every activation, that of the origin: `-<mu_minus, r> / |r|^2`."""
    along, mean = _as_one(_direction(r), mu_minus=mu_minus)
    return -float((mean @ along / (along @ along)).detach())


def leace(v: Tensor, r: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """Least-squares erasure of a concept of two classes (Belrose et al. 2023): move along r to where no class shows.

    With S the covariance it is `v - r <v - mean, S^-1 r> / <r, S^-1 r>`, without shrinkage. Among the affine maps after
    which the classes have one mean, it moves activations least.

    Args:
        v: activations `(..., width)`.
        r: difference of the means of the two classes, `(width,)`.
        mean: of all activations, `(width,)`.
        covariance: of all activations, or of those within the classes, `(width, width)`; the result is the same.

    Raises:
        ValueError: a direction without length, or a covariance that has no inverse, such as that of fewer activations
            than the width.
    """
    wide, along, middle = _as_one(v, r=_direction(r), mean=mean)
    dual: Tensor = torch.linalg.solve(_full_rank(covariance, r).to(along.dtype), along)
    return (wide - ((wide - middle) @ dual / (along @ dual))[..., None] * along).to(v.dtype)


def leace_orthogonal(v: Tensor, r: Tensor, mean: Tensor) -> Tensor:
    """The orthogonal case of `leace`, which projects r out around the mean of all activations."""
    wide, along = _as_one(v, r=_direction(r))
    return (wide - coordinate(v, mean, r)[..., None] * along).to(v.dtype)


def replace(v: Tensor, mean: Tensor) -> Tensor:
    """Replace the whole activation by a mean, `(width,)`: a control for what a projection keeps."""
    _as_one(v, mean=mean)
    return mean.expand_as(v)


def _check_floats(name: str, value: object) -> None:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise ValueError(f"{name} of {described(value)}: expected a tensor of floating-point numbers")


def _check_alpha(alpha: object) -> None:
    if not isinstance(alpha, Real) and not (isinstance(alpha, Tensor) and not alpha.ndim):
        raise ValueError(f"alpha={alpha!r}: expected one number; for several, one call for each")


def _direction(r: Tensor) -> Tensor:
    _check_floats("r", r)
    length = float(r.detach().norm())
    if r.ndim != 1 or not 0 < length < math.inf:
        raise ValueError(f"r of shape {tuple(r.shape)} and length {length}: expected (width,), of some length")
    return r


def _as_one(v: Tensor, **vectors: Tensor) -> list[Tensor]:
    """Activations and vectors, which are refused by name unless they have their width and type, in float32 at least."""
    _check_floats("activations", v)
    for name, each in vectors.items():
        _check_floats(name, each)
        if each.shape != v.shape[-1:] or each.dtype != v.dtype:
            expected = f"{v.dtype} {tuple(v.shape[-1:])}, to fit activations {tuple(v.shape)}"
            raise ValueError(f"{name} of {described(each)}: expected {expected}")
    return [each if each.dtype == torch.float64 else each.float() for each in (v, *vectors.values())]


def _full_rank(covariance: Tensor, r: Tensor) -> Tensor:
    width = len(r)
    if (found := described(covariance)) != (expected := f"{r.dtype} {(width, width)}"):
        raise ValueError(f"covariance of {found}: expected {expected}")
    double = covariance.detach().double()
    if not float((double - double.T).abs().max()) <= 1e-3 * float(double.abs().max()):
        raise ValueError("covariance: expected finite numbers, the same above and below its diagonal")
    spread = torch.linalg.eigvalsh(double)
    rounding = max(torch.finfo(r.dtype).eps / 4, width * torch.finfo(torch.double).eps)  # of a covariance without rank
    rank = int((spread > rounding * spread[-1].abs()).sum())
    if rank < width:
        remedy = f"many more than {width} activations that vary in all directions, or leace_orthogonal, which asks none"
        raise ValueError(f"covariance of rank {rank}: expected {width}; take {remedy}")
    return covariance


# training


@dataclass(frozen=True)
class SafetyPlan:
    """How a model is taught to answer everything, and then to refuse.

    Attributes:
        seed: of weights and examples.
        mixer: see `InstructionModel`.
        base_steps, base_rate: steps of Adam and its learning rate in the first phase, in which all prompts of the
            language are answered.
        safety_steps, safety_rate: those of the second, in which harmful requests are refused.
        batch_size: examples in a step, new ones at each; a multiple of 8.
        trained_blocks: the first blocks, which alone the second phase trains, so that the decision is made before they
            end. Trained embeddings would learn what to refuse word by word.

    Raises:
        ValueError: a count below 1, a rate that is not above 0, or a batch that cannot be divided by 8.
    """

    seed: int = 0
    mixer: str = "attention"
    base_steps: int = 700
    base_rate: float = 3e-3
    safety_steps: int = 400
    safety_rate: float = 1e-3
    batch_size: int = 64
    trained_blocks: int = 2

    def __post_init__(self) -> None:
        check_whole(base_steps=self.base_steps, safety_steps=self.safety_steps)
        check_whole(batch_size=self.batch_size, trained_blocks=self.trained_blocks)
        for name in ("base_rate", "safety_rate"):
            if not isinstance(rate := getattr(self, name), int | float) or not 0 < rate < math.inf:
                raise ValueError(f"{name}={rate!r}: expected a finite number above 0")
        if self.batch_size % 8:
            raise ValueError(f"batch_size={self.batch_size}: expected a multiple of 8, for the shares of the kinds")


# kind, part, eighths of a batch, whether it is refused
_BASE_MIX = (("harmful", "all", 3, False), ("harmless", "all", 3, False), ("question", "all", 2, False))
_SAFETY_MIX = (
    ("harmful", "training", 4, True),
    ("harmless", "training", 2, False),
    ("mention", "training", 1, False),
    ("question", "all", 1, False),
)


def _examples(plan: SafetyPlan, phase: str, step: int) -> Batch:
    """Prompts with their answers, `(batch_size, PROMPT_LENGTH + ANSWER_LENGTH)`, of a step of "base" or "safety"."""
    generator = torch_generator(plan.seed, f"{phase} step {step}")
    rows = []
    for kind, part, eighths, refused in _BASE_MIX if phase == "base" else _SAFETY_MIX:
        prompts = draw_prompts(kind, plan.batch_size * eighths // 8, generator, part)
        answers = random_refusals(len(prompts), generator) if refused else right_answers(prompts)
        rows.append(torch.cat([prompts, answers], 1))
    return (torch.cat(rows),)


def next_token_loss(model: nn.Module, batch: Batch, first: int = 1) -> Tensor:
    """Cross-entropy of the tokens from position `first` on but pads, in nats, mean per token."""
    (tokens,) = batch
    logits = model(tokens[:, :-1])[:, first - 1 :]
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, first:].flatten(), ignore_index=PAD)


def _train(model: InstructionModel, plan: SafetyPlan, phase: str, progress: str | None) -> None:
    """Train those weights that want gradients; the rate rises over a twentieth of the steps and falls to 0 (cosine)."""
    steps, rate = (plan.base_steps, plan.base_rate) if phase == "base" else (plan.safety_steps, plan.safety_rate)
    optimizer = Adam([each for each in model.parameters() if each.requires_grad], rate, (0.9, 0.98))

    def factor(step: int) -> float:
        return min(1.0, 20 * (step + 1) / steps) * 0.5 * (1 + math.cos(math.pi * step / steps))

    how = TrainingPlan(steps, scheduler=LambdaLR(optimizer, factor), progress=progress)
    loss = partial(next_token_loss, first=1 if phase == "base" else PROMPT_LENGTH)
    with deterministic(1):
        fit(model, loss, partial(_examples, plan, phase), optimizer, how)


def train_base(plan: SafetyPlan, progress: str | None = None) -> InstructionModel:
    """A model that complies with all prompts of the language, those about harmful topics too.

    Args:
        plan: see `SafetyPlan`.
        progress: text before a progress bar; None shows none.

    Raises:
        ValueError: another mixer than `MIXERS`.
        DivergenceError: a loss that is not finite.
    """
    model = InstructionModel(plan.mixer, seed=plan.seed)
    _train(model, plan, "base", progress)
    return model


def tune_safety(base: InstructionModel, plan: SafetyPlan, progress: str | None = None) -> InstructionModel:
    """A copy of a model that has learnt to refuse harmful requests, from training nouns and forms alone.

    Half of the examples are harmful requests, which are refused in one of five phrasings; a quarter are harmless
    requests, an eighth questions about harmful things, and an eighth questions about any thing, held-out ones too; they
    are answered. The loss is that of the answers' tokens.

    Args:
        base: the model, which is left as it is.
        plan: see `SafetyPlan`; its `trained_blocks` are at most those of the model.
        progress: text before a progress bar; None shows none.

    Raises:
        ValueError: more trained blocks than there are.
        DivergenceError: a loss that is not finite.
    """
    if plan.trained_blocks > len(base.blocks):
        raise ValueError(f"trained_blocks={plan.trained_blocks}: expected 1 to {len(base.blocks)}")
    model = copy.deepcopy(base).requires_grad_(False)
    model.blocks[: plan.trained_blocks].requires_grad_(True)
    _train(model, plan, "safety", progress)
    return model.requires_grad_(True)


# answers


@torch.no_grad()
def greedy_answers(
    model: InstructionModel, prompts: Tensor, edits: Edits | None = None, where: str = "bot", before: Past | None = None
) -> Tensor:
    """The most probable next token, again and again: answers int64 `(n, ANSWER_LENGTH)`, with pads after `<end>`.

    Args:
        model: is left as it is.
        prompts: int64 `(n, PROMPT_LENGTH)`, as of `draw_prompts`.
        edits: block -> edit of the block's input, see `InstructionModel.read`.
        where: positions that are edited: "bot", the last one of the prompt alone; "answer", that and the generated
            ones; "all", the whole prompt but its pads and what is generated.
        before: the past of the prompts' tokens before `<bot>`, unedited, if it has been read already; not for "all".

    Raises:
        ValueError: another place, prompts that are none, a past of another length, what the model computes is not
            finite, or as `InstructionModel.read`.
    """
    _check_places(prompts, where)
    if before is not None and (where == "all" or before[0] != PROMPT_LENGTH - 1):
        raise ValueError(f"before of {before[0]} positions, {where=}: expected {PROMPT_LENGTH - 1}, and None for 'all'")
    begin = prompts[:, :-1]
    if where == "all":
        kept = (begin != PAD)[..., None]
        shown = {block: partial(_where, kept, edit) for block, edit in (edits or {}).items()}
        before = model.read(begin, edits=shown).past
    elif before is None:
        before = model.read(begin).past
    token, past, now = prompts[:, -1:], before, edits
    ended = torch.zeros_like(token, dtype=torch.bool)
    answer = []
    for _ in range(ANSWER_LENGTH):
        reading = model.read(token, past, now)
        if not reading.logits.isfinite().all():  # of NaN the largest would be a pad
            raise ValueError("the logits of an answer are not finite: expected weights and edits that keep them so")
        token = reading.logits.argmax(-1).masked_fill(ended, PAD)
        answer.append(token)
        ended |= token == END
        past, now = reading.past, None if where == "bot" else edits
        if ended.all():
            break
    return F.pad(torch.cat(answer, 1), (0, ANSWER_LENGTH - len(answer)), value=PAD)


def _where(chosen: Tensor, edit: Edit, x: Tensor) -> Tensor:
    return torch.where(chosen, edit(x.clone()), x)


def _check_places(prompts: Tensor, where: str) -> None:
    if where not in PLACES:
        raise ValueError(f"where={where!r}: expected one of {', '.join(PLACES)}")
    check_tokens(prompts, "prompts", PROMPT_LENGTH)
    if not len(prompts):
        raise ValueError(f"prompts of shape {tuple(prompts.shape)}: expected (n, {PROMPT_LENGTH}), n from 1")
    if (prompts[:, -1] != BOT).any() or ((prompts == PAD).int().diff(dim=1) > 0).any():
        raise ValueError("prompts: expected <bot> at the end of each, and pads before its words only")


def outcome_shares(answers: Tensor, prompts: Tensor) -> NDArray[np.float64]:
    """Shares of answers that refuse, comply and do neither, `(3,)`; see `judge`."""
    counts = torch.bincount(judge(answers, prompts), minlength=len(OUTCOMES))
    shares: NDArray[np.float64] = counts.numpy() / len(prompts)
    return shares


def refusal_curve(
    model: InstructionModel,
    prompts: Tensor,
    edits_of: Callable[[float], Edits],
    alphas: Sequence[float],
    where: str = "bot",
) -> NDArray[np.float64]:
    """Shares of answers that refuse, comply and do neither for each alpha, `(alphas, 3)`.

    Args:
        model: is left as it is.
        prompts: int64 `(n, PROMPT_LENGTH)`.
        edits_of: alpha -> the edits, as `lambda alpha: {block: lambda v: ace(v, r, mu_minus, alpha)}`.
        alphas: at which to look.
        where: see `greedy_answers`.

    Raises:
        ValueError: no alpha, one that is no finite number, and as `greedy_answers`.
    """
    found = as_real(alphas, "alphas")
    if found.ndim != 1 or not found.size or not np.isfinite(found).all():
        raise ValueError(f"alphas: expected one or more finite numbers, found {found.tolist()}")
    _check_places(prompts, where)
    with torch.no_grad():
        before = None if where == "all" else model.read(prompts[:, :-1]).past
    rows = [greedy_answers(model, prompts, edits_of(alpha), where, before) for alpha in alphas]
    return np.stack([outcome_shares(answers, prompts) for answers in rows])


# directions


@dataclass(frozen=True, eq=False)
class Directions:
    """The means of two classes of activations at each block's input.

    Attributes:
        plus, minus: `(blocks, width)` each, of the class that has the concept and of the one that has it not.
    """

    plus: Tensor
    minus: Tensor

    @property
    def r(self) -> Tensor:
        """The difference of the means, `(blocks, width)`."""
        return self.plus - self.minus


@torch.no_grad()
def bot_activations(model: InstructionModel, prompts: Tensor) -> Tensor:
    """The residual stream at `<bot>` at the input of each block, `(blocks, n, width)`."""
    _check_places(prompts, "bot")
    return model.read(prompts).stream[:, :, -1].clone()


def mean_directions(model: InstructionModel, with_concept: Tensor, without: Tensor) -> Directions:
    """The class means of two sets of prompts, such as harmful and harmless requests, at each block's input."""
    plus, minus = (bot_activations(model, prompts).mean(1) for prompts in (with_concept, without))
    return Directions(plus, minus)


def end_effects(
    model: InstructionModel, directions: Directions, harmful: Tensor, harmless: Tensor
) -> NDArray[np.float64]:
    """What ACE reaches at each block at its two ends, `(blocks, 2)`: by it a block is chosen, on training prompts.

    The first is the share of harmless prompts that are refused at alpha = 1, the second that of harmful ones that are
    complied with at alpha = 0. The block whose smaller share is largest does both. Where the means do not differ, as at
    the first block, whose input at `<bot>` is the same for all prompts, nothing is edited.

    Raises:
        ValueError: directions of another number of blocks than the model has, or as `greedy_answers`.
    """
    if len(directions.plus) != len(model.blocks):
        raise ValueError(f"directions at {len(directions.plus)} blocks: expected {len(model.blocks)}, as the model")
    effects = []
    for block, (r, minus) in enumerate(zip(directions.r, directions.minus, strict=True)):
        pair = []
        for prompts, alpha, outcome in ((harmless, 1.0, 0), (harmful, 0.0, 1)):
            edits = {block: partial(ace, r=r, mu_minus=minus, alpha=alpha)} if r.any() else {}
            pair.append(outcome_shares(greedy_answers(model, prompts, edits), prompts)[outcome])
        effects.append(pair)
    return np.array(effects)
