"""A sweep gives the same bits on one process, on several and on a cluster, whatever dies on the way."""

import logging
import os
import platform
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from dataclasses import replace

import dask
import distributed
import numpy as np
import pytest
import sweep_tasks
import torch
from sweep_tasks import POINTS, Losses

from descent.repro import sweeps
from descent.repro.records import Record
from descent.repro.seeding import deterministic
from descent.repro.sweeps import Sweep, SweepError, sweep

ALONE = Sweep(shard_size=4, workers=1)
SHARDS = 8


def local_cluster(**settings):
    usual = {"threads_per_worker": 1, "dashboard_address": ":0", "silence_logs": logging.CRITICAL + 1}
    return distributed.LocalCluster(**usual | {"protocol": "tcp://"} | settings)


@pytest.fixture(scope="module")
def cluster():
    with local_cluster(n_workers=2) as running:
        yield running.scheduler_address


@pytest.fixture(params=["alone", "processes", "cluster"])
def how(request):
    if request.param == "cluster":
        return Sweep(request.getfixturevalue("cluster"), shard_size=4)
    return replace(ALONE, workers=1 if request.param == "alone" else 2)


@pytest.fixture(scope="module")
def expected():
    """Without the module under test: the task itself, shard by shard."""
    with deterministic(1):
        parts = [Losses()(POINTS[start : start + 4].copy()) for start in range(0, len(POINTS), 4)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


def same(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert found[name].shape == value.shape
        assert found[name].tobytes() == value.tobytes()


@pytest.mark.promise("R15")
def test_the_same_bits_everywhere_and_shards_of_the_same_points(how, expected, tmp_path):
    found = sweep(Losses(), POINTS, replace(how, folder=tmp_path / "shards"), "k")
    same(found, expected)
    files = sorted((tmp_path / "shards").iterdir())
    assert [path.name for path in files] == [f"shard-{number:05d}.npz" for number in range(SHARDS)]
    lengths = [len(Record.load(path).values["loss"]) for path in files]
    assert lengths == [4] * 7 + [2]
    assert Record.load(files[0]).provenance["threads"] == 1


@pytest.mark.promise("R15")
@pytest.mark.parametrize("how", ["processes", "cluster"], indirect=True)
def test_the_order_of_completion_changes_nothing(how, expected, tmp_path):
    same(sweep(Losses(tmp_path, late=True), POINTS, how, "k"), expected)
    first = str(POINTS[0].tolist())
    assert first in lines(tmp_path / "computed")[1:]


def test_the_task_travels_once_to_each_worker(how, tmp_path):
    model = np.zeros(2_000_000)  # of a size at which Dask warns of a task that travels with each call
    sweep(Losses(tmp_path, model=model), POINTS, replace(how, shard_size=1), "k")
    assert len(lines(tmp_path / "computed")) == len(POINTS)
    processes = lines(tmp_path / "unpickled")
    assert len(processes) == len(set(processes)) <= (0 if how.workers == 1 else 2)


@pytest.mark.promise("R3")
def test_a_sweep_killed_and_started_again_computes_only_what_is_missing(cluster, expected, tmp_path):
    command = [sys.executable, sweep_tasks.__file__, str(tmp_path)]
    run = subprocess.run(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, check=False)
    assert run.returncode == -signal.SIGKILL
    assert len(list((tmp_path / "shards").glob("shard-*.npz"))) == 3
    (tmp_path / "shards" / ".shard-00007.npz.x.tmp.npz").write_bytes(b"half")
    for name, how in {"alone": ALONE, "cluster": Sweep(cluster, shard_size=4)}.items():
        again = shutil.copytree(tmp_path / "shards", tmp_path / name / "shards")
        same(sweep(Losses(tmp_path / name), POINTS, replace(how, folder=again), "resumed"), expected)
        first, _, _, *others = lines(tmp_path / name / "computed")
        assert first == str(POINTS[0].tolist()), "three kept points are compared"
        assert len(others) == SHARDS - 3
        assert len(list(again.iterdir())) == SHARDS


def test_nothing_is_computed_or_connected_to_when_all_is_there(expected, tmp_path):
    sweep(Losses(), POINTS, replace(ALONE, folder=tmp_path), "k")
    same(sweep(None, POINTS, Sweep("tcp://127.0.0.1:1", tmp_path, 4, recompute=False), "k"), expected)


def test_shards_of_something_else_are_refused(tmp_path):
    here = replace(ALONE, folder=tmp_path)
    sweep(Losses(), POINTS, here, "model a")
    with pytest.raises(
        ValueError, match=rf"{tmp_path}: shard-00000\.npz is of key 'model a', expected 'model b'; name"
    ):
        sweep(Losses(), POINTS, here, "model b")
    for points, how in ((POINTS + 1, here), (POINTS, replace(here, shard_size=5)), (POINTS.astype("f4"), here)):
        with pytest.raises(
            ValueError, match=r"shard-00000\.npz holds other points or another shard_size; name another"
        ):
            sweep(Losses(), points, how, "model a")


@pytest.mark.promise("R4")
def test_damaged_shards_are_computed_again_and_named(expected, tmp_path, capsys):
    here = replace(ALONE, folder=tmp_path / "shards", progress="losses")
    sweep(Losses(), POINTS, here, "k")
    assert "damaged" not in capsys.readouterr().err
    cut, hiding = sorted((tmp_path / "shards").iterdir())[1:3]
    cut.write_bytes(cut.read_bytes()[:-30])
    record = Record.load(hiding)
    Record("sweep", {"loss": record.values["loss"]}, record.settings).save(hiding)
    same(sweep(Losses(tmp_path), POINTS, here, "k"), expected)
    assert len(lines(tmp_path / "computed")) == 3 + 2, "three are compared, two are made anew"
    said = capsys.readouterr().err
    assert "damaged and computed again: shard-00001.npz, shard-00002.npz" in said
    assert "30/30" in said


def not_finite(points):
    return {"value": np.array([np.nan, np.inf, -np.inf, 1.0])[points[:, 0].astype(int)]}


def test_nan_and_infinities_are_results(how, tmp_path):
    points = np.arange(4)[:, None]
    for _ in range(2):  # computed, then read
        found = sweep(not_finite, points, replace(how, shard_size=2, folder=tmp_path), "k")["value"]
        assert np.array_equal(found, [np.nan, np.inf, -np.inf, 1.0], equal_nan=True)


def test_a_task_of_this_session_travels_too(how):
    """As one from a notebook does: it has no module that a worker could import."""
    scope = {"__name__": "__main__"}
    exec("def square(points):\n    points *= points\n    return {'square': points.sum(1)}", scope)
    points = np.arange(10.0).reshape(5, 2)
    assert sweep(scope["square"], points, replace(how, shard_size=2), "k")["square"].tolist() == [1, 13, 41, 85, 145]
    assert points[1].tolist() == [2, 3]


def test_a_worker_that_lacks_a_package_is_named(cluster, monkeypatch):
    monkeypatch.setitem(sys.modules, "only_here", module := types.ModuleType("only_here"))
    exec("def task(points):\n    return {'points': points}", module.__dict__)
    with pytest.raises(
        SweepError, match=r"whose first point is \[.*\]: ModuleNotFoundError: No module named 'only_here'"
    ):
        sweep(module.task, POINTS, Sweep(cluster), "k")


def test_a_task_that_raises_is_named_by_its_point_and_the_others_are_kept(how, tmp_path):
    with pytest.raises(SweepError) as caught:
        sweep(Losses(raises=tmp_path), POINTS, replace(how, folder=tmp_path), "k")
    assert str(caught.value) == "shard 3, whose first point is [-1.0, 1.0]: ZeroDivisionError: no loss here"
    assert any("in act" in note for note in caught.value.__notes__)
    assert 1 <= len(list(tmp_path.iterdir())) < SHARDS


def fails_at_the_last(points):
    if points[0, 0] == 5:
        raise ZeroDivisionError("no loss here")
    return {"value": points[:, 0]}


def test_shards_finished_in_the_same_moment_as_a_failure_are_kept(tmp_path):
    """Five shards end within the time that joblib takes to look once, the last of them in an error."""
    points = np.arange(6.0)[:, None]
    for turn in range(5):  # each starts its processes: a failure ends them
        how = Sweep(folder=tmp_path / str(turn), shard_size=1, workers=2)
        with pytest.raises(SweepError, match="shard 5, whose first point is"):
            sweep(fails_at_the_last, points, how, "k")
        assert len(list((tmp_path / str(turn)).iterdir())) >= 4  # one may be in act


def large_and_freed(points):
    """Page faults of six blocks of 16 MB, asked for and freed ten times over: the median of the ten."""
    faults = []
    for _ in range(10):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        blocks = [torch.ones(4_000_000) for _ in range(6)]
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        del blocks
    return {"faults": np.full(len(points), np.median(faults))}


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
@pytest.mark.parametrize("where", ["processes", "cluster"])
def test_a_worker_keeps_what_a_task_frees(where, cluster):
    how = Sweep(cluster if where == "cluster" else "", shard_size=1, workers=2)
    found = sweep(large_and_freed, np.zeros((2, 1)), how, "k")["faults"]
    assert found.max() < 2_000, "six times 16 MB are 23,400 pages"


@pytest.mark.promise("R15")
def test_a_worker_killed_on_the_way_changes_nothing(cluster, expected, tmp_path):
    same(sweep(Losses(tmp_path, dies=True), POINTS, Sweep(cluster, shard_size=4), "k"), expected)
    assert (tmp_path / "died").exists()


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        (lambda points: {"a": np.ones(3)}, r"ValueError: 'a' of shape \(3,\): expected \(4, \.\.\.\), a row per point"),
        (lambda points: {"a": np.float64(1)}, r"'a' of shape \(\): expected \(4, \.\.\.\)"),
        (
            lambda points: {"a" if points[0, 1] == 0 else "b": points},
            r"shard 2 gave \[\('b', .*\)\], shard 0 \[\('a', .*\)\]: expected",
        ),
    ],
)
def test_a_result_of_another_form_is_named(task, sentence):
    with pytest.raises((SweepError, ValueError), match=sentence):
        sweep(task, POINTS, ALONE, "k")


@pytest.mark.parametrize("text", ["localhost", "localhost:8786", "tcp://a", "tcp://a:0", "tcp://a:99999", "http://a:1"])
def test_an_address_of_another_form_is_refused_at_once(text):
    with pytest.raises(
        ValueError, match=rf"scheduler='{text}': expected 'tcp://host:port', such as 'tcp://10\.0\.0\.1"
    ):
        Sweep(text)


@pytest.mark.parametrize("address", ["tcp://a-b.c_d:1", "tcp://10.0.0.1:8786", "tcp://[fe80::1]:65535"])
def test_an_address_of_the_expected_form(address):
    assert Sweep(address).scheduler == address


@pytest.mark.parametrize("wrong", [{"shard_size": 0}, {"workers": 0}])
def test_sizes_below_one_are_refused(wrong):
    with pytest.raises(ValueError, match=r"=0\b.*: expected at least 1 each"):
        Sweep(**wrong)


@pytest.mark.parametrize("points", [np.empty((0, 2)), np.arange(3)])
def test_points_are_rows(points):
    with pytest.raises(ValueError, match=r"points of shape \(\d,.*\): expected \(n, k\), at least one point"):
        sweep(Losses(), points, ALONE, "k")


@pytest.fixture
def server():
    """Something that is no scheduler: it takes connections and says what it is told to, or nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        said, taken = [b""], []

        def serve():
            while True:
                try:
                    taken.append(listening.accept()[0])
                except OSError:
                    return
                taken[-1].sendall(said[0])

        threading.Thread(target=serve, daemon=True).start()
        yield f"tcp://127.0.0.1:{listening.getsockname()[1]}", said
        listening.shutdown(socket.SHUT_RDWR)
        for connection in taken:
            connection.close()


def unreachable(address, tmp_path, capfd, caplog):
    """The sentence, which comes before any compute and is all that is said; waiting for ever, it would not come."""
    with pytest.raises(ConnectionError) as caught:
        sweep(Losses(tmp_path), POINTS, Sweep(address), "k")
    warned = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert (capfd.readouterr(), warned, lines(tmp_path / "computed")) == (("", ""), [], [])
    return str(caught.value)


def test_a_closed_port_is_named(tmp_path, capfd, caplog):
    assert unreachable("tcp://127.0.0.1:1", tmp_path, capfd, caplog) == (
        "tcp://127.0.0.1:1: no Dask scheduler can be reached ([Errno 111] Connection refused); check that"
        " `dask scheduler` runs there, that host and port are right and that no firewall is between"
    )


@pytest.mark.parametrize(("says", "why"), [(b"", "timed out"), (b"SSH-2.0-x\r\n", "answers there does not speak as")])
def test_a_port_where_something_else_listens_is_named(server, says, why, tmp_path, capfd, caplog):
    address, said = server
    said[0] = says
    assert f"{address}: no Dask scheduler can be reached (" in (
        sentence := unreachable(address, tmp_path, capfd, caplog)
    )
    assert why in sentence


def test_a_cluster_without_workers_is_named(tmp_path, capfd, caplog, monkeypatch):
    patient = distributed.Client.wait_for_workers
    monkeypatch.setattr(sweeps, "PATIENCE", 600)  # for the greeting, which a busy machine may delay
    monkeypatch.setattr(distributed.Client, "wait_for_workers", lambda self, n, timeout: patient(self, n, 0.1))
    with local_cluster(n_workers=0) as empty:
        address = empty.scheduler_address
        assert unreachable(address, tmp_path, capfd, caplog) == (
            f"{address}: the scheduler has no worker; start one: dask worker {address} --nthreads 1"
        )


def test_a_worker_of_several_threads_is_refused():
    with (
        local_cluster(n_workers=1, threads_per_worker=3, processes=False) as several,
        pytest.raises(ValueError, match=r"worker tcp://.* has 3 threads, expected 1: dask worker \.\.\. --nthreads 1"),
    ):
        sweep(Losses(), POINTS, Sweep(several.scheduler_address), "k")


RUNNING = []


def loses_the_scheduler(points):
    RUNNING[0].loop.add_callback(RUNNING[0].scheduler.close)
    while RUNNING[0].scheduler.status is not distributed.core.Status.closed:
        time.sleep(0.01)
    return {"points": points}


def test_a_scheduler_lost_on_the_way_is_named(capfd):
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "500ms"}),  # the worker's, which it spends at its end
        local_cluster(n_workers=1, processes=False) as running,
    ):
        RUNNING.append(running)
        with pytest.raises(
            ConnectionError, match=rf"{running.scheduler_address}: the scheduler was lost; run again to"
        ):
            sweep(loses_the_scheduler, POINTS, Sweep(running.scheduler_address), "k")
    assert capfd.readouterr() == ("", "")


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ImportError, match=r"scheduler='tcp://a:1' needs the package distributed: pip install distr"):
        sweep(Losses(), POINTS, Sweep("tcp://a:1"), "k")
