import copy
import json
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from small_networks import settle
from torch import Tensor, nn

from descent.models import published_weights
from descent.models.published_weights import (
    DIGESTS,
    ResNetDescription,
    load_checkpoint,
    round_to_float16,
    save_checkpoint,
)
from descent.repro.files import sha256_of, write_json

SMALL = ResNetDescription(8, "projection")


def trained(network: ResNetDescription = SMALL) -> nn.Module:
    model = settle(network.build(3))
    next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)).num_batches_tracked += 70_000  # beyond float16
    return model


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one
    )


@pytest.mark.parametrize("network", [SMALL, ResNetDescription(8, "none"), ResNetDescription(14, "padding")])
def test_a_checkpoint_comes_back_as_it_was_saved(network: ResNetDescription, tmp_path: Path) -> None:
    model = round_to_float16(trained(network).train()).to(memory_format=torch.channels_last)
    about = {
        "test_error": 0.25,
        "curve": [1.0, 2.5],
        "network": {"depth": network.depth, "shortcuts": network.shortcuts},
    }
    path = save_checkpoint(tmp_path / "new", network, model, about)
    assert path == tmp_path / "new" / f"{network.name}.safetensors"
    found = load_checkpoint(tmp_path / "new", network)
    assert same(dict(found.model.state_dict()), dict(model.state_dict()))
    assert found.about == about
    assert found.network == network
    assert not found.model.training


def test_weights_are_kept_in_float16_and_buffers_as_they_are(tmp_path: Path) -> None:
    model = trained()
    before = copy.deepcopy(model.state_dict())
    path = save_checkpoint(tmp_path, SMALL, model, {})
    assert same(dict(model.state_dict()), dict(before))
    found, parameters = load_checkpoint(tmp_path, SMALL).model, dict(model.named_parameters())
    stored = safetensors.torch.load(path.read_bytes())
    for name, tensor in found.state_dict().items():
        assert stored[name].dtype == (torch.float16 if name in parameters else before[name].dtype)
        assert torch.equal(tensor, before[name].half().float() if name in parameters else before[name])
    assert not torch.equal(found[0].weight, model[0].weight)  # rounding did something
    assert round_to_float16(model) is model
    assert same(dict(model.state_dict()), dict(found.state_dict()))
    assert same(dict(round_to_float16(copy.deepcopy(model)).state_dict()), dict(found.state_dict()))  # once is enough


def test_names_say_depth_and_shortcuts() -> None:
    names = [ResNetDescription(56, shortcuts).name for shortcuts in ("projection", "none", "padding")]
    assert names == ["resnet56", "resnet56-noshort", "resnet56-padding"]
    builds = [SMALL.build(seed)[0].weight for seed in (0, 0, 1)]
    assert torch.equal(*builds[:2])
    assert not torch.equal(*builds[1:])


def test_the_same_checkpoint_has_the_same_bytes_and_others_digests_stay(tmp_path: Path) -> None:
    model, other = trained(), ResNetDescription(8, "none")
    save_checkpoint(tmp_path, other, trained(other), {})
    path = save_checkpoint(tmp_path, SMALL, model, {"a": 1})
    before = path.read_bytes()
    save_checkpoint(tmp_path, SMALL, model, {"a": 1})
    assert path.read_bytes() == before
    digests = json.loads((tmp_path / DIGESTS).read_text())
    assert list(digests) == sorted(digests) == ["resnet8-noshort.safetensors", "resnet8.safetensors"]
    assert all(sha256_of(tmp_path / name) == digest for name, digest in digests.items())
    save_checkpoint(tmp_path, SMALL, model, {"a": 2})
    assert load_checkpoint(tmp_path, SMALL).about["a"] == 2
    load_checkpoint(tmp_path, other)


def test_no_new_checkpoint_is_ever_without_its_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(path: Path, data: bytes) -> None:
        assert json.loads((tmp_path / DIGESTS).read_text()).keys() == {path.name}
        raise KeyboardInterrupt

    monkeypatch.setattr(published_weights, "write_atomic", kill)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, SMALL, trained(), {})
    with pytest.raises(FileNotFoundError, match="there are: none"):
        load_checkpoint(tmp_path, SMALL)


def flip(data: bytearray) -> None:
    data[len(data) // 2] ^= 1


def cut(data: bytearray) -> None:
    del data[-1]


@pytest.mark.promise("R4")
@pytest.mark.parametrize("damage", [flip, cut])
def test_a_damaged_checkpoint_is_refused(damage: Callable[[bytearray], None], tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, SMALL, trained(), {})
    expected, data = sha256_of(path), bytearray(path.read_bytes())
    damage(data)
    path.write_bytes(data)
    message = f"{path} is damaged: SHA-256 {sha256_of(path)}, expected {expected}; restore it: git checkout '{path}'"
    with pytest.raises(ValueError, match=re.escape(message)):
        load_checkpoint(tmp_path, SMALL)


def test_a_checkpoint_without_a_digest_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, SMALL, trained(), {})
    write_json(tmp_path / DIGESTS, {})
    with pytest.raises(ValueError, match=r"is damaged: SHA-256 .*, expected None"):
        load_checkpoint(tmp_path, SMALL)


def test_an_unknown_network_names_those_that_are_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"resnet8.safetensors: no such checkpoint; there are: none. To train"):
        load_checkpoint(tmp_path, SMALL)
    for network in (SMALL, ResNetDescription(8, "none")):
        save_checkpoint(tmp_path, network, trained(network), {})
    with pytest.raises(
        FileNotFoundError, match=r"no such checkpoint; there are: resnet8, resnet8-noshort. To train it"
    ):
        load_checkpoint(tmp_path, ResNetDescription(14, "projection"))


def digested(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    write_json(path.parent / DIGESTS, {path.name: sha256_of(path)})


@pytest.mark.promise("R4")
def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "resnet8.safetensors"
    state = {"w": torch.zeros(1)}
    for data in (b"", b"junk" * 100, safetensors.torch.save(state), safetensors.torch.save(state, {"about": "{"})):
        digested(path, data)
        with pytest.raises(ValueError, match=re.escape(f"{path}: no checkpoint of this book")):
            load_checkpoint(tmp_path, SMALL)


@pytest.mark.promise("R5")
def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
            return (tmp_path / "opened").touch, ()

    torch.save({"w": Bomb()}, tmp_path / "bomb")
    digested(tmp_path / "resnet8.safetensors", (tmp_path / "bomb").read_bytes())
    with pytest.raises(ValueError, match="no checkpoint of this book"):
        load_checkpoint(tmp_path, SMALL)
    assert not (tmp_path / "opened").exists()


def test_another_networks_checkpoint_does_not_fit(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, SMALL, trained(ResNetDescription(8, "none")), {})
    message = (
        r'(?s)resnet8\.safetensors does not fit resnet8: .*Missing key\(s\) in state_dict: "4.projection.0.weight"'
    )
    with pytest.raises(ValueError, match=message):
        load_checkpoint(tmp_path, SMALL)


def test_a_network_of_another_width_is_refused_by_what_differs(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, SMALL, trained(SMALL), {})
    message = rf"^width=4: expected {SMALL.width}, which is what .*resnet8\.safetensors was trained with$"
    with pytest.raises(ValueError, match=message):
        load_checkpoint(tmp_path, replace(SMALL, width=4))


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    state = trained(SMALL).state_dict()
    about = {"about": json.dumps({"network": asdict(SMALL)})}
    bad: list[tuple[dict[str, Tensor], str]] = [
        ({"8.bias": torch.ones(3)}, r"size mismatch for 8.bias: .*\(\[3\]\) from checkpoint, .*\(\[10\]\)"),
        ({"9.bias": torch.ones(1)}, r'Unexpected key\(s\) in state_dict: "9.bias"'),
    ]
    for wrong, message in bad:
        digested(tmp_path / "resnet8.safetensors", safetensors.torch.save({**state, **wrong}, about))
        with pytest.raises(ValueError, match=rf"(?s)resnet8\.safetensors does not fit resnet8: .*{message}"):
            load_checkpoint(tmp_path, SMALL)
