"""Repeated blocks: what is predictable, the network against the textbook's attention, a short training."""

import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from descent.experiments import grokking_records
from descent.experiments.induction_heads import (
    AttentionOnly,
    InductionExperiment,
    predictable_loss,
    repeated_blocks,
    token_losses,
    train_induction,
)
from descent.repro.records import Record, record_path
from descent.repro.seeding import deterministic, torch_generator

TINY = InductionExperiment(11, 13, 3, 3, width=8, heads=2, batch_size=4, steps=5, every=2)


def batch(count: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    tokens, known = repeated_blocks(TINY, count, torch_generator(0, "test"))
    return tokens, known


def test_a_block_stands_as_often_as_it_should_and_only_its_repetition_is_predictable():
    tokens, known = batch()
    assert tokens.shape == (200, 13)
    assert known.shape == (200, 12)
    assert (known.sum(1) == 2 * 2).all()
    for row, can in zip(tokens.tolist(), known.tolist(), strict=True):
        for place in np.flatnonzero(can):  # such a token and the one before it stand earlier too
            pair = row[place : place + 2]
            assert any(row[i : i + 2] == pair for i in range(place))


def test_blocks_stand_at_other_places_in_other_sequences():
    _, known = batch()
    assert len({tuple(row) for row in known.tolist()}) == 15  # 4 free tokens: (4 + 2 over 2) places of the last two


def test_sequences_that_are_blocks_alone_fill_their_length():
    full = replace(TINY, length=9)
    tokens, _ = repeated_blocks(full, 5, torch_generator(0, "test"))
    assert (tokens[:, :3] == tokens[:, 3:6]).all()
    assert (tokens[:, :3] == tokens[:, 6:]).all()


def test_the_network_is_the_textbooks():
    model = AttentionOnly(TINY).double()
    tokens, _ = batch(3)
    residual = model.W_E[tokens] + model.W_pos
    mask = torch.full((13, 13), -math.inf, dtype=torch.float64).triu(1)
    for inward, outward in zip(model.W_QKV, model.W_O, strict=True):
        written = []
        for head in range(2):
            q, k, v = (residual @ inward[part * 8 + head * 4 : part * 8 + head * 4 + 4].T for part in range(3))
            weights = (q @ k.transpose(1, 2) / 2 + mask).softmax(-1)
            written.append(weights @ v)
        residual = residual + torch.cat(written, -1) @ outward.T
    torch.testing.assert_close(model(tokens), residual @ model.W_U)


def test_no_token_sees_what_comes_after_it():
    model = AttentionOnly(TINY)
    tokens, _ = batch(2)
    other = tokens.clone()
    other[:, 7:] = (other[:, 7:] + 1) % 11
    torch.testing.assert_close(model(tokens)[:, :7], model(other)[:, :7])


def test_the_loss_is_the_mean_over_the_predictable_tokens():
    model = AttentionOnly(TINY)
    tokens, known = batch(6)
    every = token_losses(model, tokens)
    assert every.shape == (6, 12)
    logits = model(tokens).log_softmax(-1)
    torch.testing.assert_close(every[2, 5], -logits[2, 5, tokens[2, 6]])
    torch.testing.assert_close(predictable_loss(model, (tokens, known)), every[known].mean())
    torch.testing.assert_close(  # twice the data, the same mean
        predictable_loss(model, (torch.cat([tokens] * 2), torch.cat([known] * 2))), every[known].mean()
    )


def test_a_run_looks_at_the_same_sequences_and_repeats_itself():
    run, again = train_induction(TINY, 6), train_induction(TINY, 6)
    np.testing.assert_array_equal(run.looks, [0, 2, 4])
    assert run.token_losses.shape == (3, 6 * 12)
    assert run.predictable.sum() == 6 * 4
    assert run.losses.shape == (5,)
    np.testing.assert_array_equal(run.token_losses, again.token_losses)
    assert not np.array_equal(run.token_losses[0], run.token_losses[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"block": 5}, "do not fit in 13"), ({"heads": 3}, "heads that divide"), ({"repeats": 1}, "two occurrences")],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **changes)


def test_the_record_of_the_companion_names_its_set_up(tmp_path, monkeypatch):
    monkeypatch.setattr(grokking_records, "InductionExperiment", lambda: TINY)
    grokking_records.make_induction_record(tmp_path)
    record = Record.load(record_path(tmp_path, "grokking_basins", "induction"))
    assert dict(record.settings) == asdict(TINY)
    with deterministic(1):
        run = train_induction(TINY)
    known = run.token_losses[:, run.predictable].astype(float)
    np.testing.assert_array_equal(record.values["looks"], run.looks)
    np.testing.assert_allclose(record.values["repeated"], known.mean(1), rtol=1e-4)
    np.testing.assert_allclose(record.values["gram"], known @ known.T, rtol=1e-4)
