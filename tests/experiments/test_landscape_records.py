from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_networks import settle

from descent.data.datasets import Dataset, standardise
from descent.experiments import landscape_records
from descent.experiments.cifar_resnets import NETWORKS
from descent.experiments.landscape_records import (
    CHAPTER,
    MAKERS,
    find_record,
    first_images,
    main,
    make_curvature,
    make_surface,
    plane_curvature,
    plane_evaluator,
    plane_record_key,
    record_path,
)
from descent.landscape.directions import random_direction
from descent.landscape.evaluator import Evaluator
from descent.landscape.shape import EIGENVALUES, LineCurvature
from descent.landscape.surface import LossSurface, loss_surface, plane_grid
from descent.models.weights import Checkpoint, ResNetDescription, load_checkpoint, round_to_float16, save_checkpoint
from descent.repro.files import sha256_of
from descent.repro.records import Record, provenance
from descent.repro.seeding import torch_generator
from descent.repro.sweeps import SweepError

TINY = ResNetDescription(8, "projection", width=2)
SIDE, IMAGES = 8, 6  # of a surface: 64 points, a shard of 51 and one of 13
COARSE, FEW = 2, 4  # of a curvature
Folders = tuple[Path, Path, Path]


def read(name: str) -> Dataset:
    assert name == "cifar10"
    generator = torch_generator(0, "images")
    targets = torch.randint(10, (40,), generator=generator)
    return Dataset(name, "train", torch.rand(40, 3, 8, 8, generator=generator), targets, 10)


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folders:
    """Checkpoints, records and shards of a project with one small network."""
    monkeypatch.setenv("DESCENT_CORES", "1")
    for name, value in {
        "load_dataset": read,
        "project_root": lambda: tmp_path,
        "IMAGES": IMAGES,
        "SIDES": dict.fromkeys(range(4), SIDE),
        "CURVATURE_IMAGES": FEW,
        "CURVATURE_SIDE": COARSE,
    }.items():
        monkeypatch.setattr(landscape_records, name, value)
    places = tmp_path / "data" / "checkpoints", tmp_path / "data" / "records" / CHAPTER, tmp_path / "_build" / "sweeps"
    save_checkpoint(places[0], TINY, round_to_float16(settle(TINY.build())), {})
    return places


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many points each call of an evaluator had."""
    calls: list[int] = []
    for kind in (Evaluator, LineCurvature):
        whole = kind.__call__

        def counting(self: Any, points: Any, whole: Any = whole) -> Any:
            calls.append(len(points))
            return whole(self, points)

        monkeypatch.setattr(kind, "__call__", counting)
    return calls


def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object, points: object) -> None:
        raise ZeroDivisionError("nothing is to be computed")

    for kind in (Evaluator, LineCurvature):
        monkeypatch.setattr(kind, "__call__", refuse)


def trained(folders: Folders) -> Checkpoint:
    return load_checkpoint(folders[0], TINY)


def directions(checkpoint: Checkpoint, seed: int, scaling: Any = "filter") -> list[Any]:
    return [random_direction(checkpoint.model, seed, name, scaling) for name in ("alpha", "beta")]


def test_the_images_are_the_first_of_the_standardised_training_set(folders: Folders) -> None:
    inputs, targets = first_images(5)
    assert torch.equal(inputs, standardise(read("cifar10"))[:5])
    assert torch.equal(targets, read("cifar10").targets[:5])
    assert inputs.untyped_storage().nbytes() == 5 * 3 * 8 * 8 * 4  # it travels without the other images


def test_a_plane_is_that_of_its_seed_and_scaling(folders: Folders) -> None:
    checkpoint, images = trained(folders), first_images(IMAGES)
    points, keys = [[0.5, -0.25], [-1, 1]], set()
    for seed, scaling in ((0, "filter"), (1, "filter"), (0, "layer")):
        found = plane_evaluator(checkpoint, images, seed, scaling, "float32")
        expected = Evaluator(checkpoint.model, *images, directions(checkpoint, seed, scaling), precision="float32")
        np.testing.assert_array_equal(found(points)["loss"], expected(points)["loss"])
        assert found.precision == "float32"
        keys.add(found.key())
        assert plane_evaluator(checkpoint, images, seed, scaling, "bfloat16").key() in keys
    assert len(keys) == 3
    assert plane_evaluator(checkpoint, images, 0).key() in keys


def test_a_surface_record_is_a_direct_evaluation(folders: Folders) -> None:
    make_surface(TINY, 3, folders, "")
    checkpoint, images, axis = trained(folders), first_images(IMAGES), np.linspace(-1, 1, SIDE)
    task = Evaluator(checkpoint.model, *images, directions(checkpoint, 3))
    expected = loss_surface(task, axis, axis)
    key = plane_record_key(checkpoint, IMAGES, 3)
    record = find_record(folders[1], TINY, "surface", 3, key)
    assert record is not None
    assert record.name == "resnet8-surface"
    found = LossSurface.of(record)
    assert set(found.values) == {"loss", "standard_error", "error"}
    for name in found.values:
        np.testing.assert_allclose(found.values[name], expected.values[name], rtol=1e-6)
    np.testing.assert_array_equal([found.alpha, found.beta], [axis, axis])
    assert np.ptp(found.loss) > 0
    assert not np.array_equal(found.loss, found.loss.T)
    about = {"key": key, "seed": 3, "scaling": "filter", "images": IMAGES, "precision": task.precision}
    assert record.settings == about
    assert {**record.provenance, "commit": None} == {**provenance(3), "commit": None}


def test_a_records_key_names_weights_plane_and_images(folders: Folders) -> None:
    checkpoint = trained(folders)
    keys = {plane_record_key(checkpoint, 6, 0), plane_record_key(checkpoint, 7, 0), plane_record_key(checkpoint, 6, 1)}
    keys |= {plane_record_key(checkpoint, 6, 0, "layer"), plane_record_key(replace(checkpoint, sha256="another"), 6, 0)}
    assert len(keys) == 5
    assert sha256_of(folders[0] / "resnet8.safetensors") in plane_record_key(checkpoint, 6, 0)


def test_a_curvature_record_is_a_direct_evaluation(folders: Folders) -> None:
    make_curvature(TINY, 1, folders, "")
    checkpoint, images, axis = trained(folders), first_images(FEW), np.linspace(-1, 1, COARSE)
    key = plane_record_key(checkpoint, FEW, 1)
    record = find_record(folders[1], TINY, "curvature", 1, key)
    assert record is not None
    assert record.name == "resnet8-curvature"
    assert set(record.values) == {"alpha", "beta", *EIGENVALUES}
    np.testing.assert_array_equal([record.values["alpha"], record.values["beta"]], [axis, axis])
    direct = LineCurvature(checkpoint.model, *images, directions(checkpoint, 1))(plane_grid(axis, axis)[1:2])  # (-1, 1)
    for name in EIGENVALUES:
        assert record.values[name].shape == (COARSE, COARSE)
        assert record.values[name][0, 1] == pytest.approx(direct[name][0], rel=1e-4)
    assert record.values["largest"][0, 1] != pytest.approx(record.values["largest"][1, 0], rel=1e-2)
    about = {"key": key, "seed": 1, "scaling": "filter", "images": FEW, "precision": "float32"}
    assert record.settings == about
    assert record.provenance["seed"] == 1


def test_curvature_is_on_the_plane_of_its_arguments(folders: Folders) -> None:
    checkpoint, images = trained(folders), first_images(FEW)
    task = plane_curvature(checkpoint, images, 2, "layer")
    expected = LineCurvature(checkpoint.model, *images, directions(checkpoint, 2, "layer"))
    other = LineCurvature(checkpoint.model, *images, directions(checkpoint, 2))
    largest = [each([[0.5, -0.5]])["largest"][0] for each in (task, expected, other)]
    assert largest[0] == largest[1] != largest[2]


def test_only_the_record_of_the_same_key_is_found(tmp_path: Path) -> None:
    values = {"loss": np.array([1.0, 2.0])}
    for kind, key in (("surface", "a"), ("curvature", "b")):
        Record("made", values, {"key": key}).save(record_path(tmp_path, TINY, kind, 0))
    found = find_record(tmp_path, TINY, "surface", 0, "a")
    assert found is not None
    np.testing.assert_array_equal(found.values["loss"], [1, 2])
    assert found.settings == {"key": "a"}
    assert find_record(tmp_path, TINY, "surface", 0, "b") is None
    assert find_record(tmp_path, TINY, "surface", 1, "a") is None
    assert find_record(tmp_path, ResNetDescription(8, "none"), "surface", 0, "a") is None
    assert find_record(tmp_path / "nowhere", TINY, "surface", 0, "a") is None
    Record("made", values, {}).save(record_path(tmp_path, TINY, "surface", 2))
    assert find_record(tmp_path, TINY, "surface", 2, "a") is None


def test_a_damaged_record_is_refused(tmp_path: Path) -> None:
    path = record_path(tmp_path, TINY, "surface", 0)
    Record("made", {"loss": np.arange(100.0)}, {"key": "a"}).save(path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(np.arange(100.0).tobytes()) + 400] ^= 1
    for data in (bytes(flipped), whole[:-30], b""):
        path.write_bytes(data)
        for key in ("a", "b"):
            with pytest.raises(ValueError, match=r"resnet8-surface-0.npz: damaged, or no record .*; make it again"):
                find_record(tmp_path, TINY, "surface", 0, key)


def test_records_have_names_of_their_own(tmp_path: Path) -> None:
    made = [
        record_path(tmp_path, network, kind, seed)
        for network in (*NETWORKS, TINY)
        for kind in ("surface", "curvature")
        for seed in (0, 1)
    ]
    assert len(set(made)) == 28
    assert record_path(tmp_path, NETWORKS[1], "surface", 4) == tmp_path / "resnet110-noshort-surface-4.npz"


def test_a_run_goes_on_from_its_shards(folders: Folders, computed: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    make_surface(TINY, 0, folders, "")
    assert computed == [51, 13]
    record, (shards,) = record_path(folders[1], TINY, "surface", 0), folders[2].glob("resnet8-surface-*")
    before = sha256_of(record)
    record.unlink()
    (shards / "shard-00001.npz").unlink()
    make_surface(TINY, 0, folders, "")
    assert computed == [51, 13, 13]
    assert sha256_of(record) == before
    record.unlink()
    poison(monkeypatch)
    make_surface(TINY, 0, folders, "")
    assert sha256_of(record) == before
    with pytest.raises(SweepError, match="ZeroDivisionError: nothing is to be computed"):
        make_surface(TINY, 1, folders, "")  # the poison works


def test_other_weights_have_shards_and_a_record_of_their_own(
    folders: Folders, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(landscape_records, "NETWORKS", (TINY,))
    main([])
    path = record_path(folders[1], TINY, "curvature", 0)
    before = sha256_of(path)
    save_checkpoint(folders[0], TINY, round_to_float16(settle(TINY.build(), 1)), {})
    assert find_record(folders[1], TINY, "curvature", 0, plane_record_key(trained(folders), FEW, 0)) is None
    main([])
    assert computed == [1] * 8
    assert sha256_of(path) != before
    assert len(list(folders[2].glob("resnet8-curvature-*"))) == 2
    assert find_record(folders[1], TINY, "curvature", 0, plane_record_key(trained(folders), FEW, 0)) is not None


def test_main_makes_a_curvature_and_a_second_call_nothing(
    folders: Folders, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(landscape_records, "NETWORKS", (TINY,))
    main([])
    assert computed == [1] * 4  # the surface of a small network is made by the chapter
    assert [path.name for path in folders[1].iterdir()] == ["resnet8-curvature-0.npz"]
    before = sha256_of(folders[1] / "resnet8-curvature-0.npz")
    poison(monkeypatch)
    main([])
    (folders[1] / "resnet8-curvature-0.npz").unlink()
    main(["--kind", "curvature"])  # of the shards alone
    assert sha256_of(folders[1] / "resnet8-curvature-0.npz") == before


Call = tuple[str, str, int, Folders, str]


@pytest.fixture
def made(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """What main asks its makers for; they leave an empty record."""
    calls: list[Call] = []
    for kind in MAKERS:

        def make(network: ResNetDescription, seed: int, places: Folders, scheduler: str, kind: str = kind) -> None:
            calls.append((kind, network.name, seed, places, scheduler))
            record_path(places[1], network, kind, seed).touch()

        monkeypatch.setitem(MAKERS, kind, make)
    monkeypatch.setattr(
        landscape_records,
        "is_made",
        lambda network, kind, seed, places: record_path(places[1], network, kind, seed).exists(),
    )
    monkeypatch.setattr(landscape_records, "SIDES", {0: 51, 1: 25})
    folders[1].mkdir(parents=True)
    return calls


def test_main_makes_what_is_not_there(folders: Folders, made: list[Call]) -> None:
    names = ["resnet110", "resnet110-noshort", "resnet56", "resnet56-noshort", "resnet20", "resnet20-noshort"]
    main(["--scheduler", "tcp://far:8786"])
    wanted = [("surface", name, seed) for name in names[:4] for seed in (0, 1)]
    wanted += [("curvature", name, 0) for name in names]
    assert made == [(*each, folders, "tcp://far:8786") for each in wanted]
    made.clear()
    main([])
    assert made == []
    (folders[1] / "resnet56-surface-1.npz").unlink()
    (folders[1] / "resnet20-curvature-0.npz").unlink()
    main([])
    assert made == [("surface", "resnet56", 1, folders, ""), ("curvature", "resnet20", 0, folders, "")]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--network", "resnet56"], [("surface", "resnet56"), ("surface", "resnet56"), ("curvature", "resnet56")]),
        (["--network", "resnet20"], [("curvature", "resnet20")]),
        (["--network", "resnet110", "--kind", "surface"], [("surface", "resnet110")] * 2),
    ],
)
def test_main_makes_only_what_is_asked_for(
    arguments: list[str], expected: list[tuple[str, str]], made: list[Call]
) -> None:
    main(arguments)
    assert [call[:2] for call in made] == expected


def test_main_refuses_what_it_does_not_know(made: list[Call], capsys: pytest.CaptureFixture[str]) -> None:
    names = "resnet110, resnet110-noshort, resnet56, resnet56-noshort, resnet20, resnet20-noshort"
    for arguments, sentence in (
        (["--network", "resnet57"], f"network='resnet57': expected one of {names}"),
        (["--kind", "surfaces"], "invalid choice: 'surfaces'"),
        (["--network", "resnet20", "--kind", "surface"], "network='resnet20' has no record of kind='surface'"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
        assert sentence in capsys.readouterr().err
    assert made == []
