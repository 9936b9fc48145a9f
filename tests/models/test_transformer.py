import pytest
import torch

from descent.data.group_tables import modular_task
from descent.models.flat_weights import flatten
from descent.models.transformer import OneLayerTransformer, TransformerSizes, every_position

SMALL = TransformerSizes(11, width=12, heads=3, hidden=20)


def test_the_published_network_has_226816_weights() -> None:
    model = OneLayerTransformer(TransformerSizes(113), 0)
    shapes = {name: tuple(part.shape) for name, part in model.named_parameters()}
    assert sum(part.numel() for part in model.parameters()) == 226_816
    assert shapes == {
        "W_E": (128, 114),
        "W_pos": (3, 128),
        "W_K": (4, 32, 128),
        "W_Q": (4, 32, 128),
        "W_V": (4, 32, 128),
        "W_O": (128, 128),
        "W_in": (512, 128),
        "b_in": (512,),
        "W_out": (128, 512),
        "b_out": (128,),
        "W_U": (128, 114),
    }
    for name, part in model.named_parameters():
        variance = 0 if name.startswith("b_") else 1 / 114 if name == "W_U" else 1 / 128
        assert float(part.detach().var()) == pytest.approx(variance, rel=0.2)


@pytest.mark.parametrize("sizes", [SMALL, TransformerSizes(5, 8, 1, 3), TransformerSizes(113)])
def test_the_short_way_gives_the_textbooks_logits_and_gradients(sizes: TransformerSizes) -> None:
    model = OneLayerTransformer(sizes, 1).double()
    with torch.no_grad():
        for part in model.parameters():
            part.add_(0.3 * torch.randn(part.shape, generator=torch.Generator().manual_seed(3), dtype=part.dtype))
    task = modular_task("addition", sizes.symbols)
    pairs, targets = task.pairs[::7], task.targets[::7]
    gradients = []
    for way in (model, lambda x: every_position(model, x)):
        model.zero_grad()
        logits = way(pairs)
        torch.nn.functional.cross_entropy(logits, targets).backward()
        gradients.append((logits.detach(), flatten({n: p.grad for n, p in model.named_parameters()})))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_activations_are_those_of_the_pass() -> None:
    model, pairs = OneLayerTransformer(SMALL, 0), modular_task("addition", 11).pairs
    found = model.activations(pairs)
    assert (found.attention.shape, found.neurons.shape, found.logits.shape) == ((121, 3, 3), (121, 20), (121, 12))
    torch.testing.assert_close(found.attention.sum(-1), torch.ones(121, 3))
    assert bool((found.neurons >= 0).all())
    assert torch.equal(found.logits, model(pairs))
    mapped = model.neuron_logit_map()
    assert mapped.shape == (20, 11)
    with torch.no_grad():
        before = model(pairs)
        model.W_in.zero_()
        model.b_in.zero_()
        torch.testing.assert_close((before - model(pairs))[:, :-1], found.neurons @ mapped)


def test_a_seed_gives_the_same_weights() -> None:
    weights = [torch.cat([p.flatten() for p in OneLayerTransformer(SMALL, seed).parameters()]) for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"width": 10, "heads": 4}, "width=10, heads=4: expected heads that divide"), ({"hidden": 0}, "at least 1")],
)
def test_sizes_that_do_not_fit_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TransformerSizes(7, **options)
