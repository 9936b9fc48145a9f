"""A folder of shards answers for the network, the loss and the precision that filled it, and for nothing else."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from networks_of_others import Batch, Network, flat
from small_networks import CLASSES, examples, settle, small_resnet
from torch import Tensor, nn
from torch.nn import functional as F

from descent.landscape.directions import Direction, Scaling, random_direction
from descent.landscape.evaluator import Evaluator
from descent.landscape.surface import loss_surface
from descent.repro.sweeps import Sweep, sweep

AXIS = np.linspace(-0.5, 0.5, 3)


def plane(model: nn.Module, scaling: Scaling = "filter") -> list[Direction]:
    return [random_direction(model, 0, name, scaling) for name in ("alpha", "beta")]


def kept(task: Evaluator, folder: Path) -> np.ndarray:
    """The loss on a small plane, through a folder of shards."""

    def run(task: Evaluator, points: np.ndarray) -> dict[str, np.ndarray]:
        return sweep(task, points, Sweep(folder=folder, shard_size=4, workers=1), task.key())

    return loss_surface(task, AXIS, AXIS, run).loss


def mlp(activation: Callable[[Tensor], Tensor] = torch.relu) -> nn.Module:
    torch.manual_seed(0)
    layers = {"first": nn.Linear(192, 8), "last": nn.Linear(8, CLASSES)}
    return Network(lambda net, x: net.last(activation(net.first(x.flatten(1)))), **layers)


def squares(model: nn.Module, batch: Batch) -> Tensor:
    return (model(batch[0]) - F.one_hot(batch[1], CLASSES)).square().sum(1)


def residual(gate: float) -> nn.Module:
    """Of branches that a gate shuts where it is, and that count elsewhere."""
    torch.manual_seed(0)
    layers = {"first": nn.Linear(192, CLASSES), "branch": nn.Linear(192, CLASSES)}
    model = Network(lambda net, x: net.first(x.flatten(1)) + gate * net.branch(x.flatten(1)), **layers)
    model.branch.requires_grad_(False).weight.zero_()
    model.branch.bias.data.zero_()
    return model


def attention(heads: int) -> nn.Module:
    torch.manual_seed(0)
    layers = {"body": nn.MultiheadAttention(4, heads, batch_first=True), "head": nn.Linear(4, CLASSES)}

    def forward(net: Network, x: Tensor) -> Tensor:
        parts = x.flatten(1).reshape(len(x), 48, 4)
        return net.head(net.body(parts, parts, parts, need_weights=False)[0].amax(1))

    return Network(forward, **layers)


def normed(eps: float) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(192, CLASSES), nn.LayerNorm(CLASSES, eps=eps), nn.Linear(CLASSES, CLASSES)
    )


def evaluator(model: nn.Module, scaling: Scaling = "filter", **settings: object) -> Evaluator:
    return Evaluator(model, *examples(), plane(model, scaling), **{"precision": "float32", **settings})


PAIRS: dict[str, Callable[[], tuple[Evaluator, Evaluator]]] = {
    "precision": lambda: (evaluator(mlp()), evaluator(mlp(), precision="bfloat16")),
    "shortcuts": lambda: (evaluator(small_resnet(0, "padding")), evaluator(small_resnet(0, "none"))),
    "activation": lambda: (evaluator(mlp()), evaluator(mlp(F.gelu))),
    "a slope": lambda: (evaluator(mlp()), evaluator(mlp(lambda x: F.leaky_relu(x, 1e-3)))),
    "heads of attention": lambda: (evaluator(attention(1)), evaluator(attention(2))),
    "epsilon": lambda: (evaluator(normed(1e-5)), evaluator(normed(1e-3))),
    "a branch that is shut at the centre": lambda: (evaluator(residual(1.0), "none"), evaluator(residual(0.5), "none")),
    "loss": lambda: (evaluator(mlp()), evaluator(mlp(), loss=squares)),
    "a constant of the loss": lambda: (
        evaluator(mlp(), loss=lambda model, batch: squares(model, batch)),
        evaluator(mlp(), loss=lambda model, batch: 2 * squares(model, batch)),
    ),
    "metric": lambda: (evaluator(mlp()), evaluator(mlp(), metric=squares)),
}


@pytest.mark.parametrize("case", PAIRS)
def test_a_folder_refuses_another_surface(case: str, tmp_path: Path) -> None:
    first, second = PAIRS[case]()
    assert first.key() != second.key()
    before = kept(first, tmp_path)
    with pytest.raises(ValueError, match=r"shard-00000\.npz is of key '[0-9a-f]{64}', expected '[0-9a-f]{64}'; "):
        kept(second, tmp_path)
    if case != "metric":
        assert (kept(second, tmp_path / "other") != before).any()
    np.testing.assert_array_equal(kept(first, tmp_path), before)


def test_a_forward_pass_that_changes_under_an_unchanged_state_is_noticed() -> None:
    model = mlp()
    key = evaluator(model).key()
    model.run = lambda net, x: net.last(torch.relu(net.first(x.flatten(1))) + 1e-3)
    assert evaluator(model).key() != key


def test_equal_evaluators_share_a_folder(tmp_path: Path) -> None:
    data, model = examples(), small_resnet()
    tasks = [Evaluator(model, *data, plane(model), precision="float32", batch=batch) for batch in (1, 7, 125)]
    tasks.append(pickle.loads(pickle.dumps(tasks[0])))  # noqa: S301 (our own)
    before = torch.get_num_threads()
    keys = set()
    for threads, task in enumerate(tasks, 1):
        torch.set_num_threads(threads)
        keys.add(task.key())
    torch.set_num_threads(before)
    assert len(keys) == 1
    first, *others = [kept(task, tmp_path) for task in tasks]
    for other in others:
        np.testing.assert_array_equal(other, first)


def test_a_network_that_runs_in_float32_alone_has_a_key_too() -> None:
    def key(shift: float) -> str:
        torch.manual_seed(0)
        model = Network(lambda net, x: net.l(x.float().flatten(1) + shift), l=nn.Linear(192, CLASSES))
        return evaluator(model).key()

    assert key(0.0) == key(0.0) != key(0.1)


def test_a_network_with_a_state_beside_its_tensors_has_a_key() -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"version": 3}

        def set_extra_state(self, state: dict[str, int]) -> None:
            pass

    torch.manual_seed(0)
    model, bare = (nn.Sequential(nn.Flatten(), layer(192, CLASSES)) for layer in (Extra, nn.Linear))
    assert evaluator(model).key() != evaluator(bare).key()  # other weights
    bare.load_state_dict({name: part for name, part in model.state_dict().items() if "extra" not in name})
    assert evaluator(model).key() == evaluator(bare).key()


def test_the_key_reads_no_generator_and_moves_no_point() -> None:
    task = evaluator(settle(flat()))
    before, state = task([[0.3, 0.1]])["loss"], torch.get_rng_state()
    task.key()
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(task([[0.3, 0.1]])["loss"], before)
