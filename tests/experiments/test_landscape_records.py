import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_networks import settle

from descent.data.datasets import Dataset, standardise
from descent.experiments import landscape_records
from descent.experiments.cifar_resnets import PUBLISHED, PublishedNetwork, first_images
from descent.experiments.landscape_records import (
    make_curvature_record,
    make_resnet_landscape,
    make_surface_record,
    plane_evaluator,
    plane_hessian_extremes,
    plane_record_path,
    plane_sources,
    read_plane_record,
)
from descent.landscape.directions import random_direction
from descent.landscape.evaluator import Evaluator
from descent.landscape.shape import EIGENVALUES, HessianExtremes
from descent.landscape.surface import LossSurface, loss_surface, plane_grid
from descent.models.published_weights import (
    Checkpoint,
    ResNetDescription,
    round_to_float16,
    save_checkpoint,
)
from descent.repro.files import sha256_of
from descent.repro.records import provenance
from descent.repro.seeding import torch_generator
from descent.repro.sweeps import SweepError

TINY = PublishedNetwork(ResNetDescription(8, "projection", width=2))
SIDE, IMAGES = 4, 6  # of a surface: 16 points, a shard of 13 and one of 3
COARSE, FEW = 2, 4  # of a curvature


def read(name: str) -> Dataset:
    assert name == "cifar10"
    generator = torch_generator(0, "images")
    targets = torch.randint(10, (40,), generator=generator)
    return Dataset(name, "train", torch.rand(40, 3, 8, 8, generator=generator), targets, 10)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one small network."""
    monkeypatch.setenv("DESCENT_CORES", "1")
    for name, value in {
        "load_dataset": read,
        "IMAGES": IMAGES,
        "SIDES": dict.fromkeys(range(4), SIDE),
        "CURVATURE_IMAGES": FEW,
        "CURVATURE_SIDE": COARSE,
    }.items():
        monkeypatch.setattr(landscape_records, name, value)
    save_checkpoint(TINY.folder(tmp_path), TINY.network, round_to_float16(settle(TINY.network.build())), {})
    return tmp_path


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many points each call of an evaluator had."""
    calls: list[int] = []
    for kind in (Evaluator, HessianExtremes):
        whole = kind.__call__

        def counting(self: Any, points: Any, whole: Any = whole) -> Any:
            calls.append(len(points))
            return whole(self, points)

        monkeypatch.setattr(kind, "__call__", counting)
    return calls


def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (Evaluator, HessianExtremes):
        whole = kind.__call__

        def refuse(self: Any, points: Any, whole: Any = whole) -> Any:
            if len(points) > 1:  # one point is computed anew, to see whether what is kept is of the same task
                raise ZeroDivisionError("nothing is to be computed")
            return whole(self, points)

        monkeypatch.setattr(kind, "__call__", refuse)


def trained(root: Path) -> Checkpoint:
    return TINY.load(root)


def directions(checkpoint: Checkpoint, seed: int, scaling: Any = "filter") -> list[Any]:
    return [random_direction(checkpoint.model, seed, name, scaling) for name in ("alpha", "beta")]


def test_the_images_are_the_first_of_the_standardised_training_set(root: Path) -> None:
    inputs, targets = first_images(read("cifar10"), 5)
    assert torch.equal(inputs, standardise(read("cifar10"))[:5])
    assert torch.equal(targets, read("cifar10").targets[:5])
    assert inputs.untyped_storage().nbytes() == 5 * 3 * 8 * 8 * 4  # it travels without the other images


def test_a_plane_is_that_of_its_seed_and_scaling(root: Path) -> None:
    checkpoint, images = trained(root), first_images(read("cifar10"), IMAGES)
    points, keys = [[0.5, -0.25], [-1, 1]], set()
    for seed, scaling in ((0, "filter"), (1, "filter"), (0, "layer")):
        evaluator = plane_evaluator(checkpoint, images, seed, scaling, "float32")
        expected = Evaluator(checkpoint.model, *images, directions(checkpoint, seed, scaling), precision="float32")
        np.testing.assert_array_equal(evaluator(points)["loss"], expected(points)["loss"])
        assert evaluator.precision == "float32"
        keys |= {evaluator.key(), plane_evaluator(checkpoint, images, seed, scaling, "bfloat16").key()}
    assert len(keys) == 6
    assert plane_evaluator(checkpoint, images, 0).key() in keys


def test_a_surface_record_is_a_direct_evaluation(root: Path) -> None:
    make_surface_record(TINY, 3, root, "")
    checkpoint, images, axis = trained(root), first_images(read("cifar10"), IMAGES), np.linspace(-1, 1, SIDE)
    task = Evaluator(checkpoint.model, *images, directions(checkpoint, 3), precision="float32")
    expected = loss_surface(task, axis, axis)
    sources = plane_sources(checkpoint, read("cifar10"), IMAGES, 3)
    record = read_plane_record(plane_record_path(root, TINY, "surface", 3), sources)
    assert record is not None
    assert record.name == "resnet8-surface"
    recorded = LossSurface.of(record)
    assert set(recorded.values) == {"loss", "standard_error", "error"}
    for name in recorded.values:
        np.testing.assert_allclose(recorded.values[name], expected.values[name], rtol=1e-6)
    np.testing.assert_array_equal([recorded.alpha, recorded.beta], [axis, axis])
    assert np.ptp(recorded.loss) > 0
    assert not np.array_equal(recorded.loss, recorded.loss.T)
    assert record.settings == {**sources, "precision": task.precision}
    assert {**record.provenance, "commit": None} == {**provenance(3), "commit": None}


def altered(data: Dataset, image: int) -> Dataset:
    inputs = data.inputs.clone()
    inputs[image, 0, 0, 0] += 1 / 255
    return replace(data, inputs=inputs)


def test_sources_name_weights_directions_and_images(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, data = trained(root), read("cifar10")
    sources = plane_sources(checkpoint, data, 6, 0)
    assert sources == plane_sources(checkpoint, altered(data, 6), 6, 0)  # an image that is not measured
    assert sources["weights_sha256"] == sha256_of(root / "data" / "checkpoints" / "resnet8.safetensors")

    def differing(*given: Any) -> set[str]:
        return {name for name, value in plane_sources(*given).items() if value != sources[name]}

    assert differing(checkpoint, altered(data, 5), 6, 0) == {"images_sha256"}
    assert differing(checkpoint, replace(data, targets=data.targets.flip(0)), 6, 0) == {"images_sha256"}
    assert differing(checkpoint, data, 7, 0) == {"images", "images_sha256"}
    assert differing(checkpoint, data, 6, 1) == {"seed", "directions_sha256"}
    assert differing(replace(checkpoint, sha256="another"), data, 6, 0) == {"weights_sha256"}
    monkeypatch.setattr(landscape_records, "random_direction", lambda *given: random_direction(given[0], 0, "alpha"))
    assert differing(checkpoint, data, 6, 0) == {"directions_sha256"}  # the second is the first


def test_the_last_bits_of_directions_do_not_count(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, data = trained(root), read("cifar10")
    sources = plane_sources(checkpoint, data, 6, 0)

    def rounded(*given: Any) -> dict[str, torch.Tensor]:
        return {name: part * (1 + 1e-6) for name, part in random_direction(*given).items()}

    monkeypatch.setattr(landscape_records, "random_direction", rounded)
    assert plane_sources(checkpoint, data, 6, 0) == sources


@pytest.mark.promise("R4")
@pytest.mark.parametrize("kind", ["surface", "curvature"])
def test_a_record_of_other_sources_is_refused_by_name(root: Path, kind: str) -> None:
    make, count = {"surface": (make_surface_record, IMAGES), "curvature": (make_curvature_record, FEW)}[kind]
    make(TINY, 0, root, "")
    checkpoint, data, path = trained(root), read("cifar10"), plane_record_path(root, TINY, kind, 0)
    sources = plane_sources(checkpoint, data, count, 0)
    assert read_plane_record(path, sources) is not None
    others = {
        "weights_sha256": plane_sources(replace(checkpoint, sha256="another"), data, count, 0),
        "images_sha256": plane_sources(checkpoint, altered(data, 0), count, 0),
        "directions_sha256": {**sources, "directions_sha256": "another"},
    }
    for name, expected in others.items():
        made = f"{path}: made from {name}='{sources[name]}', expected '{expected[name]}'"
        message = f"{made}; make it again: make records CHAPTER=resnet_landscape"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            read_plane_record(path, expected)
    for other in ({"seed": 1}, {"images": 99}, {"scaling": "layer"}):  # not asked for: neither used nor refused
        assert read_plane_record(path, {**sources, **other}) is None


def test_a_curvature_record_is_a_direct_evaluation(root: Path) -> None:
    make_curvature_record(TINY, 1, root, "")
    checkpoint, images, axis = trained(root), first_images(read("cifar10"), FEW), np.linspace(-1, 1, COARSE)
    sources = plane_sources(checkpoint, read("cifar10"), FEW, 1)
    record = read_plane_record(plane_record_path(root, TINY, "curvature", 1), sources)
    assert record is not None
    assert record.name == "resnet8-curvature"
    assert set(record.values) == {"alpha", "beta", *EIGENVALUES}
    np.testing.assert_array_equal([record.values["alpha"], record.values["beta"]], [axis, axis])
    direct = HessianExtremes(checkpoint.model, *images, directions(checkpoint, 1))(
        plane_grid(axis, axis)[1:2]  # (-1, 1)
    )
    for name in EIGENVALUES:
        assert record.values[name].shape == (COARSE, COARSE)
        assert record.values[name][0, 1] == pytest.approx(direct[name][0], rel=1e-4)
    assert record.values["largest"][0, 1] != pytest.approx(record.values["largest"][1, 0], rel=1e-2)
    assert record.settings == {**sources, "precision": "float32"}
    assert record.provenance["seed"] == 1


def test_curvature_is_on_the_plane_of_its_arguments(root: Path) -> None:
    checkpoint, images = trained(root), first_images(read("cifar10"), FEW)
    task = plane_hessian_extremes(checkpoint, images, 2, "layer")
    expected = HessianExtremes(checkpoint.model, *images, directions(checkpoint, 2, "layer"))
    other = HessianExtremes(checkpoint.model, *images, directions(checkpoint, 2))
    largest = [each([[0.5, -0.5]])["largest"][0] for each in (task, expected, other)]
    assert largest[0] == largest[1] != largest[2]


def test_records_have_names_of_their_own(tmp_path: Path) -> None:
    paths = [
        plane_record_path(tmp_path, network, kind, seed)
        for network in (*PUBLISHED, TINY)
        for kind in ("surface", "curvature")
        for seed in (0, 1)
    ]
    assert len(set(paths)) == 44
    folder = tmp_path / "data" / "records" / "resnet_landscape"
    assert plane_record_path(tmp_path, PUBLISHED[1], "surface", 4) == folder / "resnet110-noshort-surface-4.npz"


def test_a_run_goes_on_from_its_shards(root: Path, computed: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    make_surface_record(TINY, 0, root, "")
    assert computed == [13, 3]
    record, (shards,) = (
        plane_record_path(root, TINY, "surface", 0),
        (root / "_build" / "sweeps").glob("resnet8-surface-*"),
    )
    before = sha256_of(record)
    record.unlink()
    (shards / "shard-00001.npz").unlink()
    make_surface_record(TINY, 0, root, "")
    assert computed == [13, 3, 1, 1, 1, 3]  # three points again, to see whether what is kept is of the same task
    assert sha256_of(record) == before
    record.unlink()
    poison(monkeypatch)
    make_surface_record(TINY, 0, root, "")
    assert sha256_of(record) == before
    with pytest.raises(SweepError, match="ZeroDivisionError: nothing is to be computed"):
        make_surface_record(TINY, 1, root, "")  # the poison works


def test_other_weights_have_shards_and_a_record_of_their_own(
    root: Path, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(landscape_records, "PUBLISHED", (TINY,))
    monkeypatch.setattr(landscape_records, "SIDES", {})
    make_resnet_landscape(root, "")
    path = plane_record_path(root, TINY, "curvature", 0)
    before = sha256_of(path)
    save_checkpoint(TINY.folder(root), TINY.network, round_to_float16(settle(TINY.network.build(), 1)), {})
    with pytest.raises(ValueError, match="made from weights_sha256="):
        read_plane_record(path, plane_sources(trained(root), read("cifar10"), FEW, 0))
    make_resnet_landscape(root, "")
    assert computed == [1] * 8
    assert sha256_of(path) != before
    assert len(list((root / "_build" / "sweeps").glob("resnet8-curvature-*"))) == 2
    assert read_plane_record(path, plane_sources(trained(root), read("cifar10"), FEW, 0)) is not None


def test_the_chapters_records_are_made_once(root: Path, computed: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landscape_records, "PUBLISHED", (TINY,))
    monkeypatch.setattr(landscape_records, "SIDES", {0: SIDE})
    make_resnet_landscape(root, "")
    assert computed == [13, 3] + [1] * 4
    paths = [plane_record_path(root, TINY, kind, 0) for kind in ("curvature", "surface")]
    assert sorted(root.glob("data/records/*/*")) == paths
    before = [sha256_of(path) for path in paths]
    poison(monkeypatch)
    make_resnet_landscape(root, "")
    for path in paths:
        path.unlink()
    make_resnet_landscape(root, "")  # of the shards alone
    assert [sha256_of(path) for path in paths] == before


def test_drawn_networks_have_five_surfaces_and_trained_ones_their_curvature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, str, int, Path, str]] = []
    for kind in ("surface", "curvature"):

        def make(network: PublishedNetwork, seed: int, root: Path, scheduler: str, kind: str = kind) -> None:
            calls.append((kind, network.name, seed, root, scheduler))

        monkeypatch.setattr(landscape_records, f"make_{kind}_record", make)
    make_resnet_landscape(tmp_path, "tcp://far:8786")
    names = ["resnet110", "resnet110-noshort", "resnet56", "resnet56-noshort", "resnet20", "resnet20-noshort"]
    drawn = [*names, "resnet110-stopped", "resnet56-stopped"]
    wanted = [("surface", name, seed) for seed in range(5) for name in drawn]
    wanted += [("curvature", name, 0) for name in names]
    assert calls == [(*each, tmp_path, "tcp://far:8786") for each in wanted]
