"""Published weights: one safetensors file for each network, whose header says what it is and how it was trained."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from descent.models.image_networks import Shortcuts, cifar_resnet
from descent.repro.files import sha256_of, write_atomic, write_json
from descent.repro.records import Record

DIGESTS = "sha256.json"


@dataclass(frozen=True)
class ResNetDescription:
    """What decides the shape of a residual network for ten classes.

    Attributes:
        depth: number of layers with weights, 6 n + 2.
        shortcuts: `projection`, `padding` or `none`; see `cifar_resnet`.
        width: channels of the first stage.
        channels: channels of an image.

    Example:
        >>> ResNetDescription(56, "none").name
        'resnet56-noshort'
    """

    depth: int
    shortcuts: Shortcuts
    width: int = 16
    channels: int = 3

    @property
    def name(self) -> str:
        """Such as `resnet56` and `resnet56-noshort`."""
        return f"resnet{self.depth}" + {"projection": "", "none": "-noshort"}.get(self.shortcuts, f"-{self.shortcuts}")

    def build(self, seed: int = 0) -> nn.Sequential:
        """The network with its initial weights."""
        return cifar_resnet(self.depth, 10, seed, shortcuts=self.shortcuts, width=self.width, channels=self.channels)


@dataclass(frozen=True)
class Checkpoint:
    """A trained network.

    Attributes:
        network: the description of the network.
        model: the network with its trained weights, float32, in evaluation mode.
        about: configuration, curve, test error and provenance of the training, as plain JSON values.
        sha256: the SHA-256 of the file.
    """

    network: ResNetDescription
    model: nn.Sequential
    about: Mapping[str, Any]
    sha256: str


def save_checkpoint(
    folder: str | Path,
    network: ResNetDescription,
    model: nn.Module,
    about: Mapping[str, Any],
    training_path: Record | None = None,
) -> Path:
    """Write `folder/<name>.safetensors`, and its SHA-256 into `folder/sha256.json`; returns the path of the file.

    Weights are kept in float16, the buffers of batch normalisation as they are. So that the file holds the network that
    was measured, round `model` by `round_to_float16` before you measure anything on it. A record of the path of the
    training becomes `folder/<name>-path.npz`; it names the file of weights by its SHA-256 and has one itself.
    """
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    state |= {name: parameter.detach().to(torch.float16).contiguous() for name, parameter in model.named_parameters()}
    about = {"network": asdict(network), **about}
    path = Path(folder) / f"{network.name}.safetensors"
    data = safetensors.torch.save(state, {"about": json.dumps(about)})
    own = {path.name: hashlib.sha256(data).hexdigest()}
    if training_path is not None:
        settings = {**training_path.settings, "weights_sha256": own[path.name]}
        file = path_file(folder, network)
        replace(training_path, settings=settings, provenance=about.get("provenance", {})).save(file)
        own[file.name] = sha256_of(file)
    digests = (_digests(Path(folder)) if (Path(folder) / DIGESTS).is_file() else {}) | own
    write_json(Path(folder) / DIGESTS, dict(sorted(digests.items())))  # first, so that no checkpoint lacks its digest
    write_atomic(path, data)
    return path


def round_to_float16(model: nn.Module) -> nn.Module:
    """The same module, with its parameters rounded to float16 in place; their type stays as it was."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.float16))
    return model


def load_checkpoint(folder: str | Path, network: ResNetDescription) -> Checkpoint:
    """The trained network in `folder/<name>.safetensors`, its SHA-256 checked first against `folder/sha256.json`.

    Raises:
        FileNotFoundError: there is no such checkpoint; the message names those that there are.
        ValueError: the file is damaged, or does not fit the network; the message names what differs.
    """
    path = Path(folder) / f"{network.name}.safetensors"
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in Path(folder).glob("*.safetensors"))) or "none"
        raise FileNotFoundError(f"{path}: no such checkpoint; there are: {names}. To train it: make checkpoints")
    digest = _checked_digest(path)
    try:
        with safetensors.safe_open(path, "pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (the file is no mapping)
            about = json.loads((file.metadata() or {})["about"])
            stored = asdict(ResNetDescription(**about["network"]))
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: no checkpoint of this book ({error})") from error
    for name, asked in asdict(network).items():
        if asked != stored[name]:
            raise ValueError(f"{name}={asked!r}: expected {stored[name]!r}, which is what {path} was trained with")
    model = network.build()
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit {network.name}: {error}") from error
    return Checkpoint(network, model.eval(), about, digest)


def path_file(folder: str | Path, network: ResNetDescription) -> Path:
    """Where the record of the path of a training lies: beside the weights, as `<name>-path.npz`."""
    return Path(folder) / f"{network.name}-path.npz"


def load_training_path(folder: str | Path, checkpoint: Checkpoint) -> Record:
    """The record of the path of the training that ended at this network, read from `folder/<name>-path.npz`.

    Its SHA-256 is checked first against `folder/sha256.json`, then that of the weights that it names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or the path ends at other weights; the message says how to get it back.
    """
    path = path_file(folder, checkpoint.network)
    if path.is_file():
        _checked_digest(path)
    return Record.load(path, f"rm -f '{path}'; make checkpoints", weights_sha256=checkpoint.sha256)


def _checked_digest(path: Path) -> str:
    """The SHA-256 of a file, which must be that in `sha256.json` beside it."""
    expected, digest = _digests(path.parent).get(path.name), sha256_of(path)
    if digest != expected:
        raise ValueError(f"{path} is damaged: SHA-256 {digest}, expected {expected}; restore it: git checkout '{path}'")
    return digest


def _digests(folder: Path) -> dict[str, str]:
    path = folder / DIGESTS
    try:
        digests: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); restore it: git checkout '{path}'") from error
    return digests
