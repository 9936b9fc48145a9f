"""The checkpoints of a training run in a folder, and that by which they know their run."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from descent.repro.files import sha256_of, write_atomic
from descent.training.capture import GradientRecorder

Losses = NDArray[np.float64]
SAME, TINY = (1e-4, 1e-2), 1e-7  # relative, loss and gradient: in bfloat16 other processors give other digits
FACTORS = 10_000  # at most, that are compared of what a function of a scheduler has given


class DamagedCheckpointError(RuntimeError):
    """A checkpoint is damaged, or belongs to another run."""


def number(value: Tensor) -> float:
    """The number that a loss is; raises ValueError where it is no real scalar with a gradient."""
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad or value.is_complex():
        found = f"shape {tuple(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"loss returned {found}: expected a scalar tensor that has a gradient, mean per example")
    return value.item()


def gradient_norm(optimizer: Optimizer) -> float:
    """The norm of the gradient in all parameters that the optimiser holds."""
    grads = [each.grad for group in optimizer.param_groups for each in group["params"] if each.grad is not None]
    return math.hypot(*(float(grad.to_dense().double().norm()) for grad in grads))


class Checkpoints:
    """The checkpoints of one run in a folder, and that by which they know the run."""

    def __init__(self, folder: Path, model: nn.Module, optimizer: Optimizer, plan: Any, data: str) -> None:
        self._folder, self._model, self._optimizer, self._plan = folder, model, optimizer, plan
        self._origin = {"run": repr(plan.run), **_describe(self._state()), "data": data}
        self._first_rng, self._plain = torch.get_rng_state(), _plain(model)
        self._recorders: Sequence[GradientRecorder] = ()
        self.norms: list[float] = []  # that of the first gradient, once it is known

    def _state(self) -> dict[str, Any]:
        def plain(leaf: Any) -> Any:  # a number of NumPy would not be read back from a checkpoint
            return leaf.item() if isinstance(leaf, np.generic) else leaf

        scheduler = self._plan.scheduler
        moving = {"optimizer": self._optimizer.state_dict(), "scheduler": scheduler and scheduler.state_dict()}
        kinds = {"optimizer": type(self._optimizer).__name__, "scheduler": type(scheduler).__name__}
        kinds["trained parameters"] = ", ".join(n for n, each in self._model.named_parameters() if each.requires_grad)
        names = {id(each): name for name, each in self._model.named_parameters()}
        for number, group in enumerate(self._optimizer.param_groups):
            listed = [names.get(id(each), f"{tuple(each.shape)} not of the model") for each in group["params"]]
            kinds[f"params of parameter group {number}"] = ", ".join(listed)
        return {"model": self._model.state_dict(), "kinds": kinds, **tree_map(plain, moving)}

    def save(self, losses: Losses) -> None:
        """Write step-N.pt and its SHA-256 beside it; the digest is written first, so that no checkpoint lacks one."""
        about = {"origin": self._origin, "first_rng": self._first_rng, "rng": torch.get_rng_state()}
        state, buffer = self._state(), io.BytesIO()
        about["rows"] = [recorder.last_sum() for recorder in self._recorders]
        about |= {"norms": self.norms, "factors": _factors(self._plan.scheduler, state["scheduler"])}
        about |= {"buffers": _unsaved(self._model), "plain": dict(_plain(self._model).items() - self._plain.items())}
        try:
            torch.save({**state, **about, "losses": torch.from_numpy(losses.copy())}, buffer)
            torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
        except Exception as error:  # such as an object of a class of one's own, which is not read back from a file
            why = f"model, optimizer or scheduler hold more than tensors and plain values: {str(error).splitlines()[0]}"
            raise ValueError(f"{why}; train without checkpoints") from error
        path = self._folder / f"step-{len(losses):09d}.pt"
        write_atomic(_digest_path(path), hashlib.sha256(buffer.getvalue()).hexdigest() + "\n")
        write_atomic(path, buffer.getvalue())
        for old in sorted(self._folder.glob("step-*.pt"))[:-1]:
            old.unlink()
            _digest_path(old).unlink(missing_ok=True)

    def begin(self, probe: Callable[[], Tensor], losses: Losses, recorders: Sequence[GradientRecorder]) -> int:
        """Restore all that `save` kept from the newest checkpoint, or write the one before the first step; its step."""
        self._recorders = recorders
        for unfinished in self._folder.glob(".step-*.tmp*"):  # left half written by a kill
            unfinished.unlink()
        path = max(self._folder.glob("step-*.pt"), default=None)  # names have leading zeros
        if path is None:
            for recorder in recorders:
                recorder.start()
            self.save(losses[:0])
            return 0
        state = _load(path)
        self._check(path, state, probe)
        trained = state["kinds"]["trained parameters"].split(", ")  # a callback may have frozen some
        for name, parameter in self._model.named_parameters():
            parameter.requires_grad_(name in trained)
        _restore(self._model, state["model"], state["buffers"], state["plain"])
        for key in state["plain"]:  # from now on it is kept whatever becomes of it
            self._plain.pop(key, None)
        self.norms = state["norms"]
        self._optimizer.load_state_dict(state["optimizer"])
        if self._plan.scheduler is not None:
            self._plan.scheduler.load_state_dict(state["scheduler"])
        torch.set_rng_state(state["rng"])
        self._first_rng, self._origin = state["first_rng"], state["origin"]
        step = len(state["losses"])
        losses[:step] = state["losses"].numpy()
        for recorder in recorders:
            recorder.resume(step, state["rows"])
        return step

    def _check(self, path: Path, state: dict[str, Any], probe: Callable[[], Tensor]) -> None:
        """Refuse the checkpoint of another run; what changes along a run is as at its beginning, or as it was saved."""
        begun, saved, step = state["origin"], _describe(state), len(state["losses"])
        for key in dict.fromkeys((*self._origin, *begun)):
            now, then = self._origin.get(key), begun.get(key)
            if now not in (then, saved.get(key, then)):
                raise _other_run(path, f"{key} {then} at step {step}", f"{key} {now}")
        if len(state["optimizer"]["param_groups"]) != len(self._optimizer.param_groups):
            raise _other_run(path, "parameter groups that were added on the way", "as many as at the beginning")
        if step > self._plan.steps:
            raise _other_run(path, f"step {step}", f"at most {self._plan.steps} steps")
        if _factors(self._plan.scheduler, state["scheduler"]) != state["factors"]:
            raise _other_run(path, f"a function of the scheduler of other values before step {step}", "the same values")
        if step and self._origin["weights"] == begun["weights"]:
            found, again = self._first(state, probe), self._first(state, probe)
            known = {"loss": float(state["losses"][0]), "gradient norm": state["norms"][0]}
            for (name, then), now, near in zip(known.items(), found, SAME, strict=True):
                if found == again and not math.isclose(now, then, rel_tol=near, abs_tol=TINY):
                    raise _other_run(path, f"{name} {then:.9g} at step 0", f"{name} {now:.9g}, as it is now")

    def _first(self, state: dict[str, Any], probe: Callable[[], Tensor]) -> tuple[float, float]:
        """The loss of the first batch and the norm of its gradient; a pass that draws from elsewhere gives others."""
        before = copy.deepcopy((self._model.state_dict(), _unsaved(self._model), _plain(self._model)))
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(state["first_rng"])
            self._optimizer.zero_grad()
            value = probe()
            first = number(value), value.backward() or gradient_norm(self._optimizer)  # type: ignore[no-untyped-call]
        self._optimizer.zero_grad()
        _restore(self._model, *before)
        return first


def _plain(model: nn.Module) -> dict[tuple[str, str], Any]:
    """Plain values that modules hold beside parameters and buffers, such as counts, by module and attribute."""
    own = vars(nn.Module())
    held = [(name, *item) for name, each in model.named_modules() for item in vars(each).items()]
    return {(name, key): v for name, key, v in held if type(v) in (int, float, bool, str) and key not in own}


def _unsaved(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that `state_dict` leaves out."""
    saved = model.state_dict()
    return {name: buffer for name, buffer in model.named_buffers() if name not in saved}


def _restore(model: nn.Module, weights: dict[str, Any], buffers: dict[str, Tensor], plain: dict[Any, Any]) -> None:
    model.load_state_dict(weights)
    for name, saved in buffers.items():
        buffer = model.get_buffer(name)
        buffer.data = saved.to(buffer.device, copy=True)
    for (name, key), value in plain.items():
        setattr(model.get_submodule(name), key, value)


def _factors(scheduler: Any, state: Any) -> list[float]:
    """What the functions of a scheduler, of which `state_dict` knows nothing, have given until now."""
    last = max(0, (state or {}).get("last_epoch", 0))
    places = np.unique(np.linspace(1, last, min(last, FACTORS)).round().astype(int)).tolist()
    own = [float(function(place)) for function in getattr(scheduler, "lr_lambdas", ()) for place in places]
    inner = zip(getattr(scheduler, "_schedulers", ()), (state or {}).get("_schedulers", ()), strict=False)
    return own + [value for pair in inner for value in _factors(*pair)]


def _other_run(path: Path, known: str, expected: str) -> DamagedCheckpointError:
    return DamagedCheckpointError(
        f"{path}: a checkpoint of another run, with {known}\nexpected {expected}\nstart in another folder, or go on"
        f" from its weights by loading them into the model first, or start again: rm -r '{path.parent}'"
    )


def _describe(state: dict[str, Any]) -> dict[str, Any]:
    """What a run is known by: kinds, shapes, settings and weights, as texts by name."""
    weights = {name: each for name, each in state["model"].items() if isinstance(each, Tensor)}
    groups = [group.items() for group in state["optimizer"]["param_groups"]]  # parameters are of kinds, by their names
    settings = {f"{k} of parameter group {n}": v for n, each in enumerate(groups) for k, v in each if k != "params"}
    settings |= {f"{key} of the scheduler": value for key, value in (state["scheduler"] or {}).items()}
    said = {f"shape of parameter {name}": f"{tuple(each.shape)}, {each.dtype}" for name, each in weights.items()}
    said |= {name: _text(value) for name, value in settings.items()}
    return {**state["kinds"], **said, "weights": digest(weights.values())}


def _text(value: object) -> str:
    def plain(leaf: Any) -> Any:
        return leaf.tolist() if hasattr(leaf, "tolist") else type(leaf).__name__

    return json.dumps(value, default=plain, skipkeys=True)


def digest(tensors: Iterable[Tensor]) -> str:
    """The SHA-256 of the tensors, of their shapes and types."""
    found = hashlib.sha256()
    for each in tensors:
        found.update(f"{each.dtype} {tuple(each.shape)} ".encode())
        found.update(each.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _digest_path(path: Path) -> Path:
    return path.with_suffix(".pt.sha256")


def _load(path: Path) -> dict[str, Any]:
    digest = _digest_path(path)
    expected = digest.read_bytes().decode(errors="replace").strip() if digest.exists() else "a digest file beside it"
    if (actual := sha256_of(path)) != expected:
        raise DamagedCheckpointError(
            f"{path} is damaged: SHA-256 {actual}\nexpected {expected}\nto start again from step 0: rm '{path}'"
        )
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        state["origin"]["weights"]
    except Exception as error:  # a pickle that holds more than weights, no pickle, or one of another loop
        raise DamagedCheckpointError(f"{path}: no training state\nto start again from step 0: rm '{path}'") from error
    return state
