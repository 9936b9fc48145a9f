"""Networks whose shape, scale and outputs are known on paper, what a seed gives, and the files of their trainings."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_networks import examples, settle
from torch import Tensor, nn

from descent.models import OneLayerTransformer, TransformerSizes, cifar_resnet, mlp, small_convnet
from descent.models.folding import copy_module, fold_batch_norm
from descent.models.image_networks import Residual, set_gates
from descent.models.published_weights import (
    DIGESTS,
    ResNetDescription,
    load_checkpoint,
    load_training_path,
    path_file,
    save_checkpoint,
)
from descent.models.transformer import every_position
from descent.repro.files import sha256_of
from descent.repro.records import Record

# --- what a seed gives: the book's numbers rest on it


@pytest.mark.parametrize(
    ("weights", "first"),
    [
        (lambda: mlp((4,), [3], 2, 0)[1].weight, [-0.232949, 0.344639, -0.245666]),
        (lambda: small_convnet((1, 8, 8), 3, 0)[0].weight, [-0.093180, 0.137856, -0.098266]),
        (lambda: cifar_resnet(8, 5, 0, width=2)[0].weight, [0.164512, 0.180062, -0.859012]),
        (lambda: OneLayerTransformer(TransformerSizes(7, 8, 2, 4), 0).W_E, [0.055723, 0.078912, -0.111030]),
    ],
)
def test_a_seed_gives_these_weights_in_every_version(weights: Any, first: list[float]) -> None:
    torch.testing.assert_close(weights().detach().flatten()[:3], torch.tensor(first), rtol=0, atol=1e-6)


def test_initial_weights_have_their_scale_where_fans_differ() -> None:
    """He's deviation is sqrt(2 / fan out): 3 x 3 pixels and 32 channels out, of 16 in."""
    widening = next(m for m in cifar_resnet(8, 10, 0).modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2))
    assert widening.weight.shape[:2] == (32, 16)
    assert widening.weight.std().item() == pytest.approx((2 / (9 * 32)) ** 0.5, rel=0.05)
    model = OneLayerTransformer(TransformerSizes(symbols=7, width=512, heads=1, hidden=1), 0)
    assert model.W_U.var().item() == pytest.approx(1 / 8, rel=0.1)
    assert model.W_E.var().item() == pytest.approx(1 / 512, rel=0.1)


# --- networks for images


def test_networks_of_width_one() -> None:
    assert mlp((1,), [1], 1, 0)(torch.zeros(2, 1)).shape == (2, 1)
    assert cifar_resnet(8, 1, 0, width=1, channels=1).eval()(torch.zeros(2, 1, 4, 4)).shape == (2, 1)
    assert small_convnet((1, 1, 1), 1, 0)(torch.zeros(2, 1, 1, 1)).shape == (2, 1)
    assert TransformerSizes(1, 1, 1, 1).width == 1


@pytest.mark.parametrize("name", ["symbols", "width", "heads", "hidden"])
def test_each_size_of_a_transformer_is_at_least_one(name: str) -> None:
    with pytest.raises(ValueError, match="expected sizes of at least 1, whole numbers"):
        TransformerSizes(**{"symbols": 7, "width": 8, "heads": 2, "hidden": 4, name: 0})


def test_the_stages_halve_the_image_from_its_full_size() -> None:
    model, seen = cifar_resnet(14, 10, 0, width=2).eval(), list[tuple[int, ...]]()
    for layer in (model[0], *(block for block in model if isinstance(block, Residual))):
        layer.register_forward_hook(lambda _, __, out: seen.append(tuple(out.shape[1:])))
    model(torch.zeros(1, 3, 32, 32))
    assert seen == [(2, 32, 32)] * 3 + [(4, 16, 16)] * 2 + [(8, 8, 8)] * 2


def test_the_convolutional_network_is_two_convolutions_with_relu_and_a_linear_map() -> None:
    model, images = small_convnet((2, 8, 8), 3, 0), torch.randn(4, 2, 8, 8)
    one, two, last = (layer for layer in model if not isinstance(layer, nn.ReLU | nn.Flatten))
    hidden = nn.functional.conv2d(images, one.weight, one.bias, stride=2, padding=2).clamp(min=0)
    hidden = nn.functional.conv2d(hidden, two.weight, two.bias, stride=2, padding=2).clamp(min=0)
    torch.testing.assert_close(model(images), hidden.reshape(4, -1) @ last.weight.T + last.bias)


@pytest.mark.parametrize("gate", [1.0, 0.5, 0.0, 2.0])
@pytest.mark.parametrize("wider", [3, 6])
def test_a_gate_is_a_factor_of_the_shortcut(gate: float, wider: int) -> None:
    block, image = settle(Residual(3, wider, "padding")).double(), torch.rand(2, 3, 6, 6, dtype=torch.float64)
    inner = nn.Sequential(block.conv1, block.norm1, nn.ReLU(), block.conv2, block.norm2)
    shortcut = image if wider == 3 else torch.cat([image[:, :, ::2, ::2], torch.zeros(2, 3, 3, 3)], 1)
    set_gates(nn.Sequential(nn.Identity(), block), gate)
    torch.testing.assert_close(block(image), (inner(image) + gate * shortcut).clamp(min=0))


@pytest.mark.parametrize("side", ["height", "width"])
def test_an_image_has_sides(side: str) -> None:
    with pytest.raises(ValueError, match=f"{side}=0: expected at least 1"):
        small_convnet((1, 0 if side == "height" else 8, 0 if side == "width" else 8), 3, 0)


def test_what_makes_no_layer_is_told_from_what_does() -> None:
    with pytest.raises(ValueError, match=r"such as nn\.Tanh, not nn\.Tanh\(\) or torch\.tanh$"):
        mlp((4,), [3], 2, 0, activation=torch.tanh)  # type: ignore[arg-type]


# --- copies and folding


class TwoNames(nn.Module):
    """Its normalisation has two names, of which the forward pass takes the second."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)
        self.other = self.norm

    def forward(self, inputs: Tensor) -> Tensor:
        return self.other(self.conv(inputs))


class ByItsWeight(nn.Module):
    """The weight of the convolution is used by itself, too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.norm(self.conv(inputs)) + nn.functional.conv2d(inputs, self.conv.weight)


@pytest.mark.parametrize("make", [TwoNames, ByItsWeight, lambda: nn.Sequential(ByItsWeight())])
def test_what_is_used_by_another_name_too_is_not_folded(make: Any) -> None:
    model = settle(make())
    folded = fold_batch_norm(model)
    assert folded.scales == {}
    torch.testing.assert_close(folded.model(examples()[0]), model(examples()[0]))


def test_a_copy_keeps_apart_what_only_looks_alike() -> None:
    model = nn.Module()
    model.one, model.two = nn.Parameter(torch.zeros(0, 3)), nn.Parameter(torch.zeros(0, 3))
    model.weight = nn.Parameter(torch.ones(2))
    model.register_buffer("same", model.weight.data)
    model.register_buffer("sparse", torch.eye(2).to_sparse())
    model.register_buffer("other", torch.eye(2).to_sparse())
    copied = copy_module(model)
    assert copied.one is not copied.two
    assert isinstance(copied.weight, nn.Parameter)
    assert not isinstance(copied.same, nn.Parameter)
    assert copied.sparse.to_dense().tolist() == [[1, 0], [0, 1]]
    assert copied.sparse is not copied.other


# --- published weights

TINY = ResNetDescription(8, "none", width=2, channels=1)


def test_a_description_builds_what_it_says() -> None:
    model = TINY.build()
    assert model[0].weight.shape == (2, 1, 3, 3)
    assert model[-1].weight.shape == (10, 8)
    assert torch.equal(model[0].weight, TINY.build(0)[0].weight)
    assert not torch.equal(model[0].weight, TINY.build(1)[0].weight)


@pytest.mark.parametrize("origin", [{"provenance": {"python": "3.13"}}, {}])
def test_the_path_of_a_training_is_kept_with_the_weights_at_which_it_ends(origin: Any, tmp_path: Path) -> None:
    course = Record("training_path", {"loss": np.array([2.0, 1.0])}, {"seed": 3}, {"python": "another"})
    file = save_checkpoint(tmp_path, TINY, TINY.build(), origin, course)
    checkpoint = load_checkpoint(tmp_path, TINY)
    assert checkpoint.sha256 == sha256_of(file)
    assert path_file(tmp_path, TINY) == tmp_path / "resnet8-noshort-path.npz"
    digests = json.loads((tmp_path / DIGESTS).read_text())
    assert digests == {name: sha256_of(tmp_path / name) for name in (file.name, "resnet8-noshort-path.npz")}
    found = load_training_path(tmp_path, checkpoint)
    assert found.values["loss"].tolist() == [2, 1]
    assert found.settings == {"seed": 3, "weights_sha256": checkpoint.sha256}
    assert found.provenance == origin.get("provenance", {})


def test_a_path_that_is_missing_damaged_or_of_other_weights_is_refused(tmp_path: Path) -> None:
    course = Record("training_path", {"loss": np.array([2.0, 1.0])})
    save_checkpoint(tmp_path, TINY, TINY.build(0), {}, course)
    old = load_checkpoint(tmp_path, TINY)
    save_checkpoint(tmp_path, TINY, TINY.build(1), {}, course)
    file = path_file(tmp_path, TINY)
    with pytest.raises(ValueError, match=f"expected '{old.sha256}'; make it again: rm -f '{file}'; make checkpoints$"):
        load_training_path(tmp_path, old)
    new = load_checkpoint(tmp_path, TINY)
    content = file.read_bytes()
    file.write_bytes(content + b"\0")
    with pytest.raises(ValueError, match=r"resnet8-noshort-path\.npz is damaged: SHA-256"):
        load_training_path(tmp_path, new)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=f"no such record; to make it: rm -f '{file}'; make checkpoints$"):
        load_training_path(tmp_path, new)


# --- the transformer


def test_nothing_of_a_pass_lies_on_another_device_than_the_model() -> None:
    for symbols in (7, 1):
        model = OneLayerTransformer(TransformerSizes(symbols, 8, 2, 4), 0).to("meta")
        pairs = torch.zeros(3, 2, dtype=torch.int64, device="meta")
        assert model(pairs).shape == every_position(model, pairs).shape == (3, symbols + 1)
