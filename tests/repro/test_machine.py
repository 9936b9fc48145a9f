"""Where the heavy parts are computed.

A GPU is stood in for by PyTorch's `meta` device, which has shapes and no numbers: an operation between one of its
tensors and one that was left on the CPU is an error, as it is on a GPU.
"""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from descent.experiments import grokking, toy_models
from descent.experiments.grokking import ModularExperiment, cross_entropy_in_double, prepare_experiment
from descent.experiments.toy_models import ToyInputs, ToyModels, batch_losses, toy_gradients
from descent.landscape.evaluator import Evaluator
from descent.models.folding import fold_batch_norm
from descent.repro import machine
from descent.repro.machine import DEVICE_VARIABLE, compute_device

META = torch.device("meta")


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DEVICE_VARIABLE, raising=False)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # put back as it was after the test
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")


@pytest.mark.parametrize(("there", "wanted", "expected"), [
    (False, None, "cpu"), (True, None, "cuda"), (True, "cpu", "cpu"), (True, "", "cuda"), (False, "cpu", "cpu"),
])  # fmt: skip
def test_a_gpu_is_taken_where_there_is_one_and_the_variable_decides(
    there: bool, wanted: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    if wanted is not None:
        monkeypatch.setenv(DEVICE_VARIABLE, wanted)
    assert compute_device().type == expected
    assert ("CUBLAS_WORKSPACE_CONFIG" in machine.os.environ) == (expected == "cuda")


@pytest.mark.parametrize(("wanted", "message"), [
    ("gpu", "DESCENT_DEVICE='gpu': expected one of cpu, cuda"),
    ("cuda", "DESCENT_DEVICE='cuda': PyTorch finds no GPU here"),
])  # fmt: skip
def test_a_device_that_is_not_there_is_refused(wanted: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv(DEVICE_VARIABLE, wanted)
    with pytest.raises(ValueError, match=message):
        compute_device()


def test_the_stand_in_notices_what_is_left_on_the_cpu() -> None:
    with pytest.raises(RuntimeError, match="device"):
        torch.ones(2, device=META) * torch.ones(2)


@pytest.mark.parametrize("kind", ["relu", "linear", "layernorm"])
def test_a_step_of_the_toy_models_is_on_the_device_as_a_whole(kind: str) -> None:
    toys = ToyModels(6, 2, [0, 1, 1], density=[0.5, 0.3, 0.2], noise=0.1, kind=kind)
    W, b = toys.start().to(META), torch.zeros(3, 6, device=META)
    W.grad, b.grad = torch.zeros_like(W), torch.zeros_like(b)
    inputs = ToyInputs(toys, 8, device=META)
    inputs.draw()
    found = toy_gradients(W, b, inputs, toys, True)
    assert found is not None
    assert {found.device, W.grad.device, batch_losses(W, b, inputs, toys).device} == {META}


def test_what_a_device_is_given_are_the_numbers_drawn_on_the_cpu() -> None:
    toys = ToyModels(4, 2, [0, 1], density=0.5, noise=0.1)
    here, there = ToyInputs(toys, 8), ToyInputs(toys, 8, device=META)
    for inputs in (here, there):
        inputs.draw()
    assert torch.equal(here._drawn, there._drawn)
    assert here.uniform.data_ptr() == here._drawn.data_ptr()  # on the CPU nothing is copied
    assert there.gaussian is not None
    assert {there.uniform.device, there.gaussian.device} == {META}


def test_a_step_of_the_transformer_is_on_the_device_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grokking, "compute_device", lambda: META)
    small = ModularExperiment(p=7, width=8, heads=2, hidden=16, fraction=0.5, steps=10)
    for experiment in (small, replace(small, batch_size=5)):
        start = prepare_experiment(experiment)
        value = cross_entropy_in_double(start.model, start.batches(0))
        value.backward()  # type: ignore[no-untyped-call]
        grads = [parameter.grad for parameter in start.model.parameters()]
        assert value.device == META
        assert {grad.device for grad in grads if grad is not None} == {META}
        assert start.task.pairs.device.type == "cpu"  # what the analysis reads


def test_a_point_of_a_surface_is_on_the_device_as_a_whole() -> None:
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(144, 5)
    )
    direction = {name: torch.ones_like(p) for name, p in model.named_parameters() if p.ndim > 1}
    inputs, targets = torch.zeros(6, 3, 8, 8), torch.zeros(6, dtype=torch.long)
    task = Evaluator(model, inputs, targets, [direction], precision="float32", batch=4)
    task._device, task._targets = META, targets.to(META)
    for folded in (None, fold_batch_norm(model)):  # whose values cannot be compared on the stand-in
        task._form = task._form_of(folded, "bfloat16", torch.channels_last)
        with pytest.raises(
            RuntimeError, match=r"item\(\) cannot be called on meta tensors"
        ):  # all but reading the numbers
            task([[0.5]])
        assert task._form.model[0].weight.device == META
    assert model[0].weight.device.type == "cpu"


def test_trained_toy_models_come_back_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    moved = []
    monkeypatch.setattr(toy_models, "compute_device", lambda: moved.append(1) or torch.device("cpu"))
    run = toy_models.train_toy_models(ToyModels(4, 2, [0]), toy_models.ToyTraining(steps=3, batch=4, every=1))
    assert moved
    assert {part.device.type for part in (run.W, run.b, run.kept, run.losses)} == {"cpu"}


@pytest.mark.parametrize("statement", [
    "import descent",
    "from descent.repro import cores",
    "from descent.repro import Claim, Record, Scorecard",
    "import descent.repro.files",
    "import descent.repro.claims",
    "import descent.data.fetching",
])  # fmt: skip
def test_what_needs_no_torch_does_not_import_it(statement: str) -> None:
    code = f"import sys\n{statement}\nassert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", code], check=True)
