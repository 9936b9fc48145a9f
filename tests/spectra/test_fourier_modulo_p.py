"""The analysis of modular addition on weights that implement it, and on random ones."""

import math

import pytest
import torch
from torch import Tensor

from descent.data.group_tables import modular_task
from descent.models.transformer import OneLayerTransformer, TransformerSizes
from descent.spectra.fourier_modulo_p import (
    answer_coefficients,
    answer_share,
    excluded_logits,
    fourier_basis,
    frequency_norms,
    gini,
    key_frequencies,
    neuron_frequencies,
    restricted_logits,
    sum_waves,
    transform_pairs,
)

P, KEYS = 13, [2, 5]
PHASES = 32


def adder(p: int = P, keys: list[int] | None = None) -> OneLayerTransformer:
    """Adds modulo p by the waves of `keys`.

    Neurons are relu(cos(w a - phase) + cos(w b - phase)), read into answer c by cos(2 phase - w c). Summed over
    evenly spaced phases this is cos(w (a + b - c)) by a factor that depends on a - b alone.
    """
    keys = keys or KEYS
    width, hidden = 2 * len(keys), PHASES * len(keys)
    model = OneLayerTransformer(TransformerSizes(p, width, 1, hidden), 0)
    x = torch.arange(p + 1)
    with torch.no_grad():
        for part in model.parameters():
            part.zero_()
        model.W_V.copy_(torch.eye(width)[None])
        model.W_O.copy_(3 * torch.eye(width))  # attention is uniform over three places
        for i, k in enumerate(keys):
            turn = 2 * math.pi * k / p
            model.W_E[2 * i], model.W_E[2 * i + 1] = torch.cos(turn * x), torch.sin(turn * x)
            model.W_E[:, p] = 0
            for j in range(PHASES):
                neuron, phase = PHASES * i + j, 2 * math.pi * j / PHASES
                model.W_in[neuron, 2 * i], model.W_in[neuron, 2 * i + 1] = math.cos(phase), math.sin(phase)
                model.W_out[2 * i, neuron], model.W_out[2 * i + 1, neuron] = math.cos(2 * phase), math.sin(2 * phase)
            model.W_U[2 * i, :p], model.W_U[2 * i + 1, :p] = torch.cos(turn * x[:p]), torch.sin(turn * x[:p])
    return model


@pytest.fixture(scope="module")
def exact() -> tuple[OneLayerTransformer, Tensor, Tensor]:
    """The adder, its logits without that of '=', its neurons."""
    model = adder()
    with torch.no_grad():
        found = model.activations(modular_task("addition", P).pairs)
    return model, found.logits[:, :P], found.neurons


def cosines(p: int, weights: dict[int, float]) -> Tensor:
    x = torch.arange(p, dtype=torch.float64)
    turns = (x[:, None, None] + x[None, :, None] - x).reshape(p * p, p)
    return sum(weight * torch.cos(2 * math.pi * k * turns / p) for k, weight in weights.items())


@pytest.mark.parametrize("p", [3, 7, 113])
def test_the_basis_is_orthonormal_and_in_order(p: int) -> None:
    basis = fourier_basis(p)
    torch.testing.assert_close(basis @ basis.T, torch.eye(p, dtype=torch.float64), atol=1e-12, rtol=0)
    x = torch.arange(p, dtype=torch.float64)
    torch.testing.assert_close(basis[1], math.sqrt(2 / p) * torch.cos(2 * math.pi * x / p))
    torch.testing.assert_close(basis[p - 1], math.sqrt(2 / p) * torch.sin(2 * math.pi * (p // 2) * x / p))


@pytest.mark.parametrize("p", [1, 2, 12])
def test_even_moduli_are_refused(p: int) -> None:
    with pytest.raises(ValueError, match=f"p={p}: expected (an odd number of )?at least 3"):
        fourier_basis(p)


def test_norms_of_frequencies_are_those_of_their_waves() -> None:
    x = torch.arange(P, dtype=torch.float64)
    table = torch.stack([3 * torch.cos(2 * math.pi * 4 * x / P + 0.3), torch.full((P,), 9.0, dtype=x.dtype)], dim=1)
    norms = frequency_norms(table)
    assert norms.shape == (6,)
    assert float(norms[3]) == pytest.approx(3 * math.sqrt(P / 2))
    assert float(norms[[0, 1, 2, 4, 5]].max()) < 1e-12


def test_the_transform_of_pairs_keeps_lengths_and_places() -> None:
    values = torch.randn(P * P, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = transform_pairs(values)
    assert float(found.square().sum()) == pytest.approx(float(values.square().sum()))
    basis = fourier_basis(P)
    one = torch.outer(basis[3], basis[6]).reshape(-1, 1)  # cos 2 of a, sin 3 of b
    assert float(transform_pairs(one)[3, 6, 0]) == pytest.approx(1)
    with pytest.raises(ValueError, match=r"shape \(10, 2\): expected \(p \* p, c\)"):
        transform_pairs(torch.zeros(10, 2))


def test_waves_of_the_sum_are_orthonormal_functions_of_it() -> None:
    waves = sum_waves(P, [1, 4])
    torch.testing.assert_close(waves @ waves.T, torch.eye(4, dtype=torch.float64), atol=1e-12, rtol=0)
    sums = modular_task("addition", P).targets
    for wave in waves:
        for s in range(P):
            assert float(wave[sums == s].std()) < 1e-12
    assert sum_waves(P, []).shape == (0, P * P)
    for bad in (0, 7):
        with pytest.raises(ValueError, match=f"frequency {bad}: expected 1 to 6 for p=13"):
            sum_waves(P, [1, bad])


def test_the_adder_adds_and_its_frequencies_are_found(exact: tuple[OneLayerTransformer, Tensor, Tensor]) -> None:
    model, logits, neurons = exact
    assert torch.equal(logits.argmax(1), modular_task("addition", P).targets)
    frequency, share = neuron_frequencies(neurons)
    assert frequency.tolist() == [KEYS[0]] * PHASES + [KEYS[1]] * PHASES
    assert float(share.min()) > 0.85
    assert key_frequencies(neurons) == KEYS
    assert key_frequencies(neurons, fewest=PHASES + 1) == []
    for table in (model.W_E[:, :P].T, model.neuron_logit_map().T):
        norms = frequency_norms(table.detach())
        assert sorted((norms.topk(2).indices + 1).tolist()) == KEYS
        assert float(norms.sort().values[-3]) < 1e-4 * float(norms.max())


def test_restricted_and_excluded_parts_of_the_adder(exact: tuple[OneLayerTransformer, Tensor, Tensor]) -> None:
    _, logits, _ = exact
    answers = modular_task("addition", P).targets
    assert torch.equal(restricted_logits(logits, KEYS).argmax(1), answers)
    torch.testing.assert_close(
        restricted_logits(logits, KEYS) + excluded_logits(logits, KEYS), logits.double() + logits.double().mean(0)
    )
    others = restricted_logits(logits, [1, 3, 4, 6])
    assert float((others.argmax(1) == answers).double().mean()) < 0.3


def test_pure_cosines_are_all_answer() -> None:
    logits = cosines(P, {2: 3.0, 5: -1.0})
    assert answer_share(logits, KEYS) == pytest.approx(1)
    assert answer_share(logits, [2]) == pytest.approx(0.9)
    assert answer_share(logits + 7 * torch.rand(P * P, 1), KEYS) == pytest.approx(1), "a pair's mean does not count"
    torch.testing.assert_close(
        answer_coefficients(logits, KEYS), torch.tensor([3.0, -1.0], dtype=torch.float64) * math.sqrt(P**3 / 2)
    )
    torch.testing.assert_close(restricted_logits(logits, KEYS), logits)
    assert float(excluded_logits(logits, KEYS).abs().max()) < 1e-12
    assert answer_share(torch.zeros(P * P, P), KEYS) == 0
    with pytest.raises(ValueError, match="drop the logit of '='"):
        answer_share(torch.zeros(P * P, P + 1), KEYS)


def test_random_weights_have_no_key_frequencies() -> None:
    model = OneLayerTransformer(TransformerSizes(P), 0)
    with torch.no_grad():
        found = model.activations(modular_task("addition", P).pairs)
    _, share = neuron_frequencies(found.neurons)
    assert key_frequencies(found.neurons) == []
    assert float(share.max()) < 0.85
    assert answer_share(found.logits[:, :P], [1, 2, 3, 4, 5, 6]) < 0.1


def test_a_silent_neuron_has_no_frequency() -> None:
    neurons = torch.zeros(P * P, 2)
    neurons[:, 1] = 5
    assert float(neuron_frequencies(neurons)[1].max()) < 1e-12
    assert key_frequencies(neurons) == []


def test_gini_of_known_values() -> None:
    assert gini(torch.ones(8)) == pytest.approx(0)
    assert gini(torch.eye(8)[0]) == pytest.approx(1 - 1 / 8)
    assert gini(torch.tensor([1.0, 3.0])) == pytest.approx(0.25)
    assert gini(torch.zeros(3)) == 0
    for bad in (torch.tensor([-1.0, 2.0]), torch.zeros(0)):
        with pytest.raises(ValueError, match="none below zero"):
            gini(bad)


def test_answer_coefficients_are_products_with_unit_waves_written_out() -> None:
    logits = torch.randn(P * P, P, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.arange(P)
    turns = (x[:, None, None] + x[None, :, None] - x).reshape(P * P, P).double()
    for k, found in zip([1, 4, 6], answer_coefficients(logits, [1, 4, 6]), strict=True):
        wave = torch.cos(2 * math.pi * k * turns / P)
        assert found.item() == pytest.approx(float((logits * wave).sum() / wave.norm()), rel=1e-10)
    assert answer_coefficients(logits, []).shape == (0,)
    for wrong in (0, 7, 100):
        with pytest.raises(ValueError, match=f"frequency {wrong}: expected 1 to 6 for p=13"):
            answer_coefficients(logits, [1, wrong])
