"""A refusal is put into a small random model, steered, kept, and computed again."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from test_smollm2 import letters, random_model

from descent.data.fetching import MissingDataError
from descent.experiments import refusal_records
from descent.experiments.refusal_records import (
    ACTIONS,
    ALPHAS,
    HELD_OUT_PROMPTS,
    KINDS,
    NOUNS,
    TEMPLATES,
    Kind,
    RefusalDirection,
    RefusalTuning,
    SteeredModel,
    answer_log_odds,
    change_weights,
    choose_blocks,
    drawn_requests,
    make_refusal_record,
    mean_streams,
    read_refusal_record,
    recompute_refusal,
    refusal_directions,
    refusal_record_path,
    request_runs,
    request_texts,
    tune_refusal,
)
from descent.experiments.smollm2 import LlamaModel, LlamaShape, StreamEdit
from descent.training.loop import DivergenceError

SMALL = RefusalTuning(seed=3, steps=3, rank=2, blocks=(0, 2))
TOKENIZER = letters()


@pytest.fixture(scope="module")
def model() -> LlamaModel:
    double = random_model(5, LlamaShape(blocks=3, heads=2, kv_heads=1), (16, 24, 128))
    return LlamaModel(double.shape, {name: weight.float() for name, weight in double.weights.items()})


# ------------------------------------------------------------------------------------------------------------- requests


def test_held_out_requests_share_neither_nouns_nor_templates_with_trained_ones() -> None:
    assert (len(set(NOUNS)), len(set(TEMPLATES))) == (16, 8)
    trained, held_out = (
        [text for kind in KINDS for text in request_texts(kind, held_out)] for held_out in (False, True)
    )
    assert len(set(trained + held_out)) == len(trained) + len(held_out) == 816
    for texts, nouns in ((trained, NOUNS[:10]), (held_out, NOUNS[10:])):
        assert all(sum(noun in text for noun in nouns) >= 1 for text in texts)
    assert not any(noun in text for text in held_out for noun in NOUNS[:10])
    assert all(not text.startswith(how[:12]) for text in held_out for how in TEMPLATES[:5])


def test_the_kinds_differ_only_in_what_is_to_be_done() -> None:
    for held_out in (False, True):
        left = []
        for kind in KINDS:
            texts = request_texts(kind, held_out)
            parts = [what.split("{}") for what in ACTIONS[kind]]
            left.append(
                {text.replace(a, "", 1).replace(b, "", 1) for text in texts for a, b in parts if a + "a " in text}
            )
        assert left[0] == left[1]


def test_requests_are_drawn_once_each_and_by_the_seed() -> None:
    first = drawn_requests("harmful", 50, 0)
    assert len(set(first)) == 50
    assert first == drawn_requests("harmful", 50, 0)
    assert first != drawn_requests("harmful", 50, 1)
    assert set(first) <= set(request_texts("harmful"))
    with pytest.raises(ValueError, match="kind='rude': expected harmless or harmful"):
        request_texts("rude")  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------- steering


def test_steering_on_paper() -> None:
    direction = RefusalDirection(torch.tensor([1.0, 1.0]), torch.tensor([2.0, 0.0]))
    vectors = torch.tensor([[1.0, 5.0], [4.0, -1.0]])
    assert direction.coordinate(vectors).tolist() == [0.0, 1.5]
    assert direction.alpha_star == -0.5
    assert direction.steer("ace", vectors, [0.0, 1.0]).tolist() == [
        [[1.0, 5.0], [3.0, 5.0]],
        [[1.0, -1.0], [3.0, -1.0]],
    ]
    assert direction.steer("addition", vectors, [0.0, 1.0]).tolist() == [
        *([[1.0, 5.0], [3.0, 5.0]], [[4.0, -1.0], [6.0, -1.0]]),
    ]
    assert direction.steer("ablation", vectors).tolist() == [[[0.0, 5.0]], [[0.0, -1.0]]]
    with pytest.raises(ValueError, match="how='erase': expected one of ace, addition, ablation"):
        direction.steer("erase", vectors)  # type: ignore[arg-type]


def test_ablation_takes_the_part_along_r_out_and_is_ace_at_alpha_star() -> None:
    generator = torch.Generator().manual_seed(0)
    harmless, r, vectors = (torch.randn(*size, 7, generator=generator).double() for size in ((), (), (5,)))
    direction = RefusalDirection(harmless, r)
    ablated = direction.steer("ablation", vectors)[:, 0]
    np.testing.assert_allclose(ablated, vectors - torch.outer(vectors @ r, r) / (r @ r), atol=1e-12)
    np.testing.assert_allclose(direction.steer("ace", vectors, [direction.alpha_star])[:, 0], ablated, atol=1e-12)
    np.testing.assert_allclose(direction.coordinate(harmless + r), 1, atol=1e-12)


def test_blocks_are_chosen_by_the_smaller_effect() -> None:
    nothing = np.array([[0.1, 0.9], [0.4, 0.3], [0.9, 0.2]])
    assert choose_blocks(nothing) == (1, 1)
    assert choose_blocks(np.array([[np.nan] * 2, [0.8, 0.8], [0.9, 0.7], [0.9, 0.85]])) == (1, 3)


# --------------------------------------------------------------------------------------------------------------- tuning


def test_tuning_teaches_and_leaves_the_model_as_it_was(model: LlamaModel) -> None:
    before = {name: weight.clone() for name, weight in model.weights.items()}
    longer = dataclasses.replace(SMALL, steps=12, learning_rate=0.05)
    change, losses = tune_refusal(model, TOKENIZER, longer)
    assert losses.shape == (12,)
    assert losses[-3:].mean() < losses[:3].mean() - 0.5
    assert all(torch.equal(before[name], weight) for name, weight in model.weights.items())
    changed = change_weights(model, change)
    moved = {name for name in before if not torch.equal(before[name], changed.weights[name])}
    assert moved == {"blk.0.ffn_down.weight", "blk.1.ffn_down.weight"}
    for name in moved:
        ranks = torch.linalg.matrix_rank((changed.weights[name] - before[name]).double(), rtol=1e-4)
        assert ranks == SMALL.rank
    again, same = tune_refusal(model, TOKENIZER, longer)
    assert np.array_equal(losses, same)
    assert all(torch.equal(change[name], again[name]) for name in change)
    other = dataclasses.replace(longer, seed=4, steps=2)
    assert not np.array_equal(losses[:2], tune_refusal(model, TOKENIZER, other)[1])


def test_held_out_requests_are_not_trained_on(model: LlamaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(kind: Kind, held_out: bool = False) -> list[str]:
        assert not held_out
        return request_texts(kind)

    monkeypatch.setattr(refusal_records, "request_texts", trained)
    tune_refusal(model, TOKENIZER, dataclasses.replace(SMALL, steps=1))


def test_end_effects_are_shares_of_the_gap(model: LlamaModel) -> None:
    texts = [drawn_requests(kind, 6, 0) for kind in KINDS]
    directions = refusal_directions(mean_streams(model, TOKENIZER, texts))
    effects = SteeredModel(model, TOKENIZER, directions).end_effects(texts)

    def mean_log_odds(which: int, edits: list[StreamEdit]) -> float:
        prefix, tokens, mask = TOKENIZER.chat(texts[which])
        run = model.run(tokens, mask, model.run(prefix), edits)
        return float(answer_log_odds(model, TOKENIZER, run.final).mean())

    low, high = (mean_log_odds(which, []) for which in (0, 1))
    for block in (1, 2):
        here = directions[block]
        risen = mean_log_odds(0, [StreamEdit(block, lambda x, here=here: here.steer("ace", x[:, 0], [1.0]))])
        fallen = mean_log_odds(1, [StreamEdit(block, lambda x, here=here: here.steer("ace", x[:, 0], [0.0]))])
        expected = [(risen - low) / (high - low), (high - fallen) / (high - low)]
        np.testing.assert_allclose(effects[block], expected, rtol=1e-3, atol=1e-4)
    assert np.isnan(effects[0]).all()


def test_log_odds_are_those_of_i_over_sure(model: LlamaModel) -> None:
    (run,) = request_runs(model, TOKENIZER, ["Why?", "How does one go there?"])
    spoken = model.log_probabilities(run.final)
    expected = spoken[:, ord("I")] - spoken[:, ord("S")]
    np.testing.assert_allclose(answer_log_odds(model, TOKENIZER, run.final), expected, atol=1e-4)


WEIGHT = "blk.0.ffn_down.weight"
DIRECTION = RefusalDirection(torch.zeros(16), torch.ones(16))
REFUSED = {
    "an odd batch": (lambda model: RefusalTuning(batch=5), "batch=5: expected an even number"),
    "no batch": (lambda model: RefusalTuning(batch=0), "batch=0: expected at least 1"),
    "no steps": (lambda model: RefusalTuning(steps=0), "steps=0: expected at least 1"),
    "no rank": (lambda model: RefusalTuning(rank=0), "rank=0: expected at least 1"),
    "no blocks": (lambda model: RefusalTuning(blocks=(6, 6)), r"blocks=\(6, 6\): expected the first and, larger"),
    "a rate": (lambda model: RefusalTuning(learning_rate=float("nan")), "learning_rate=nan: expected a finite number"),
    "blocks beyond": (
        lambda model: tune_refusal(model, TOKENIZER, dataclasses.replace(SMALL, blocks=(2, 4))),
        r"blocks=\(2, 4\): expected at most 3",
    ),
    "a large batch": (
        lambda model: tune_refusal(model, TOKENIZER, dataclasses.replace(SMALL, batch=602)),
        "batch=602: expected at most 600",
    ),
    "many requests": (lambda model: drawn_requests("harmful", 301, 0), "count=301: expected at most 300"),
    "half a request": (lambda model: drawn_requests("harmful", 1.5, 0), "count=1.5: expected at least 1"),  # type: ignore[arg-type]
    "means of one kind": (
        lambda model: refusal_directions(np.zeros((3, 16))),
        r"means of shape \(3, 16\): expected \(2,",
    ),
    "other vectors": (
        lambda model: DIRECTION.steer("addition", torch.zeros(2, 1)),
        r"vectors of torch.float32 \(2, 1\)",
    ),
    "other types": (lambda model: DIRECTION.coordinate(torch.zeros(16).double()), "vectors of torch.float64"),
    "no effects": (lambda model: choose_blocks(np.full((1, 2), np.nan)), r"effects \[\[nan, nan\]\]: expected a block"),
    "half a change": (
        lambda model: change_weights(model, {f"{WEIGHT} down": torch.zeros(2, 24)}),
        "change of .* up' and",
    ),
    "another weight": (
        lambda model: change_weights(model, {"x up": torch.zeros(2, 2), "x down": torch.zeros(2, 2)}),
        r"change of \['x down', 'x up'\]: expected '<weight of the model> up'",
    ),
    "a narrow change": (
        lambda model: change_weights(model, {f"{WEIGHT} up": torch.zeros(16, 2), f"{WEIGHT} down": torch.zeros(2, 1)}),
        r"change of 'blk.0.ffn_down.weight', torch.float32 \(16, 1\): expected the size of the weight",
    ),
    "a text for a list": (lambda model: list(request_runs(model, TOKENIZER, "Why?")), "prompts='Why.': expected"),
}


@pytest.mark.parametrize(("ask", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_done_is_refused_by_its_value(model: LlamaModel, ask, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ask(model)


def test_a_loss_that_is_not_finite_ends_a_tuning(model: LlamaModel) -> None:
    lost = model.with_weights({"output_norm.weight": model.weights["output_norm.weight"] * torch.nan})
    with pytest.raises(DivergenceError, match="loss=nan at step 1: not finite; try a smaller learning rate"):
        tune_refusal(lost, TOKENIZER, SMALL)


# -------------------------------------------------------------------------------------------------------------- records


@pytest.fixture
def project(model: LlamaModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which records are made of the small model."""
    monkeypatch.setattr(refusal_records, "load_smollm2", lambda: (model, TOKENIZER))
    return tmp_path


def test_a_record_is_made_once_and_goes_on_from_a_finished_tuning(
    project: Path, model: LlamaModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_refusal_record(SMALL, project)
    record = read_refusal_record(project, SMALL)
    n, blocks = HELD_OUT_PROMPTS, model.shape.blocks
    shapes = {name: array.shape for name, array in record.values.items() if not name.startswith("change ")}
    assert shapes == {
        "means": (2, blocks, 16),
        **dict.fromkeys(("r_length", "mean_over_r", "alpha_star"), (blocks,)),
        "end_effects": (blocks, 2),
        "chosen": (2,),
        "alphas": ALPHAS.shape,
        "unsteered": (2, n),
        "mass": (2, n),
        "ace": (2, n, 2, len(ALPHAS)),
        "addition": (2, n, 2, len(ALPHAS)),
        "ablation": (2, n, blocks),
        "losses": (SMALL.steps,),
    }
    # before the first block all requests end with one token, and nothing is there to steer along
    assert record.values["r_length"][0] == 0
    assert np.isnan([record.values[name][0] for name in ("mean_over_r", "alpha_star")]).all()
    assert np.isfinite(record.values["ablation"][..., 1:]).all()
    low, high = record.values["means"][:, 1:].astype(float)
    r = high - low
    np.testing.assert_allclose(record.values["r_length"][1:], np.linalg.norm(r, axis=1), rtol=1e-4)
    ratio = np.linalg.norm((low + high) / 2, axis=1) / np.linalg.norm(r, axis=1)
    np.testing.assert_allclose(record.values["mean_over_r"][1:], ratio, rtol=1e-4)
    np.testing.assert_allclose(record.values["alpha_star"][1:], -(low * r).sum(1) / (r * r).sum(1), rtol=1e-3)
    zero = int(np.flatnonzero(ALPHAS == 0)[0])
    for chosen in (0, 1):
        np.testing.assert_allclose(record.values["addition"][:, :, chosen, zero], record.values["unsteered"], atol=1e-4)
    assert recompute_refusal(record, model, TOKENIZER, 3, 0) < 1e-4

    written = refusal_record_path(project, SMALL.seed)
    first = written.read_bytes()
    monkeypatch.setattr(refusal_records, "tune_refusal", lambda *_: pytest.fail("tuned again"))
    make_refusal_record(SMALL, project)  # is there
    written.unlink()
    make_refusal_record(SMALL, project)  # from the tuning
    assert written.read_bytes() == first


def test_a_recheck_notices_other_numbers(project: Path, model: LlamaModel) -> None:
    make_refusal_record(SMALL, project)
    record = read_refusal_record(project, SMALL)
    for name in ("unsteered", "ace", "ablation"):
        other = dataclasses.replace(record, values={**record.values, name: record.values[name] + 0.5})
        assert recompute_refusal(other, model, TOKENIZER, 3, 0) == pytest.approx(0.5, abs=1e-3)
        lost = dataclasses.replace(record, values={**record.values, name: record.values[name] * np.nan})
        assert np.isnan(recompute_refusal(lost, model, TOKENIZER, 3, 0))
    for count, said in ((0, "at least 1"), (49, "at most 48")):
        with pytest.raises(ValueError, match=f"count={count}: expected {said}"):
            recompute_refusal(record, model, TOKENIZER, count, 0)


@pytest.mark.parametrize("content", [b"", b"no tensors", safetensors.torch.save({"x": torch.zeros(1)})])
def test_a_damaged_tuning_is_refused_by_its_path(project: Path, content: bytes) -> None:
    make_refusal_record(SMALL, project)
    refusal_record_path(project, SMALL.seed).unlink()
    (kept,) = (project / "_build" / "runs").iterdir()
    kept.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{kept}: damaged, .*; remove it, then: make records CHAPTER=steering$"):
        make_refusal_record(SMALL, project)


def test_a_record_of_other_settings_is_refused(project: Path) -> None:
    make_refusal_record(SMALL, project)
    with pytest.raises(
        ValueError, match=r"made from steps=3, expected 4; make it again: make records CHAPTER=steering"
    ):
        read_refusal_record(project, dataclasses.replace(SMALL, steps=4))
    with pytest.raises(FileNotFoundError, match=r"smollm2-0.npz: no such record"):
        read_refusal_record(project, RefusalTuning())


def test_without_the_weights_nothing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DESCENT_DATA", str(tmp_path / "data"))
    pytest.importorskip("gguf")
    pytest.importorskip("tokenizers")
    with pytest.raises(MissingDataError, match="make language-model"):
        make_refusal_record(SMALL, tmp_path)
    assert list(tmp_path.iterdir()) == []
