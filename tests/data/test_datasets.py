import gzip
import hashlib
import os
import random
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest
import torch
from idx_samples import ARRAYS, CONTENT, FILES, IMAGES, LABELS, LOCAL, PACKED, encode
from mirrors import Reply, Server, flipped, left_in, send, silent

from descent import checkout
from descent.data import datasets, fetching, mnist
from descent.data.datasets import Dataset, load_dataset, standardise
from descent.data.fetching import DamagedDataError, MissingDataError, read_idx
from descent.data.mnist import MNIST, IdxFile, IdxSource

GARBAGE = b"not what was asked for"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where the tiny source's files are looked for."""
    monkeypatch.setenv("DESCENT_DATA", str(tmp_path))
    (tmp_path / "tiny").mkdir()
    return tmp_path / "tiny"


def real_mnist() -> Path:
    """The folder of the four real files; without them the test is skipped, never downloaded for."""
    place = checkout.data_folder() / "mnist"
    if not all((place / f"{name}.gz").is_file() or (place / name).is_file() for name in MNIST.files):
        pytest.skip(f"real MNIST is not in {place}")
    return place


# ---------------------------------------------------------------------------------------------------- what is loaded


def test_digits_are_scikit_learns_in_a_fixed_stratified_split() -> None:
    train, test = load_dataset("digits"), load_dataset("digits", "test")
    assert train.inputs.shape == (1437, 1, 8, 8)
    assert test.inputs.shape == (360, 1, 8, 8)
    for part in (train, test):
        assert part.inputs.dtype == torch.float32
        assert part.targets.dtype == torch.int64
        assert (part.inputs.min(), part.inputs.max(), part.classes) == (0, 1, 10)
        assert torch.equal(part.inputs * 16, (part.inputs * 16).round())
    assert torch.bincount(train.targets).tolist() == [142, 146, 142, 146, 145, 145, 145, 143, 139, 144]
    assert torch.bincount(test.targets).tolist() == [36, 36, 35, 37, 36, 37, 36, 36, 35, 36]
    whole = datasets.load_digits().images / 16
    both = torch.cat([train.inputs, test.inputs]).flatten(1).numpy()
    assert sorted(map(tuple, both)) == sorted(map(tuple, whole.reshape(-1, 64)))
    # which images these are, so that another scikit-learn cannot shuffle the split unseen
    assert hashlib.sha256(test.inputs.numpy().tobytes()).hexdigest()[:16] == "7ccd56919e300165"


def test_mnist_is_the_real_one() -> None:
    real_mnist()
    train, test = load_dataset("mnist"), load_dataset("mnist", "test")
    assert train.inputs.shape == (60_000, 1, 28, 28)
    assert test.inputs.shape == (10_000, 1, 28, 28)
    assert (train.inputs.dtype, train.targets.dtype) == (torch.float32, torch.int64)
    assert (train.inputs.min(), train.inputs.max()) == (0, 1)
    assert torch.bincount(train.targets).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert torch.bincount(test.targets).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert train.targets[:5].tolist() == [5, 0, 4, 1, 9]
    assert train.inputs.double().mean().item() == pytest.approx(0.1307, abs=5e-5)
    assert train.inputs.double().std().item() == pytest.approx(0.3081, abs=5e-5)
    scaled = standardise(test)  # by the train split's figures, which it loads by itself
    assert torch.allclose(scaled, (test.inputs - 0.13066) / 0.30811, atol=1e-4)


def test_standardised_uses_the_train_split() -> None:
    train, test = load_dataset("digits"), load_dataset("digits", "test")
    scaled = standardise(train)
    assert scaled.shape == train.inputs.shape
    assert scaled.dtype == torch.float32
    assert scaled.double().mean().item() == pytest.approx(0, abs=1e-6)
    assert scaled.double().std(correction=0).item() == pytest.approx(1, abs=1e-6)
    mean, std = train.inputs.double().mean(), train.inputs.double().std(correction=0)
    expected = ((test.inputs.double() - mean) / std).float()
    assert torch.allclose(standardise(test), expected, atol=1e-6)
    assert torch.equal(standardise(test), standardise(test, reference=train))
    assert not torch.allclose(standardise(test, reference=test), expected, atol=1e-4)


def test_standardised_refuses_equal_pixels() -> None:
    flat = Dataset("flat", "train", torch.full((3, 1, 2, 2), 0.1), torch.zeros(3, dtype=torch.int64), 10)
    with pytest.raises(ValueError, match="flat: all 12 pixels are equal"):
        standardise(flat)


def test_wrong_names_are_answered_with_the_right_ones() -> None:
    names = r"digits, mnist, cifar10 \(did you mean mnist\?\)"
    with pytest.raises(ValueError, match=rf"^name='minst': expected one of {names}$"):
        load_dataset("minst")
    with pytest.raises(ValueError, match=r"^split='tset': expected one of train, test \(did you mean test\?\)$"):
        load_dataset("digits", "tset")


def test_where_data_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DESCENT_DATA", str(tmp_path / "elsewhere"))
    assert checkout.data_folder() == tmp_path / "elsewhere"
    monkeypatch.delenv("DESCENT_DATA")
    assert checkout.data_folder() == Path(__file__).resolve().parents[2] / "data"
    monkeypatch.setattr(checkout, "__file__", str(tmp_path / "site-packages" / "descent" / "checkout.py"))
    monkeypatch.setattr("pooch.os_cache", lambda project: tmp_path / "cache" / project)
    assert checkout.data_folder() == tmp_path / "cache" / "anatomy-of-descent"


# --------------------------------------------------------------------------------------------- files that are present


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [("", bytes), (".gz", gzip.compress), (".gz", lambda raw: gzip.compress(raw, 1)), (".gz", bytes)],
    ids=["plain", "gzip", "another level", "plain named .gz"],
)
def test_a_file_counts_by_its_content(folder: Path, suffix: str, pack: Callable[[bytes], bytes]) -> None:
    (folder / (IMAGES + suffix)).write_bytes(pack(CONTENT[IMAGES]))
    assert np.array_equal(read_idx(LOCAL, IMAGES), ARRAYS[IMAGES])


def refusal(path: Path, name: str) -> str:
    """The message with which a damaged file is refused, after the checks that hold for all of them."""
    before = path.read_bytes()
    with pytest.raises(DamagedDataError) as caught:
        read_idx(LOCAL, name)
    message = str(caught.value)
    assert len(message.splitlines()) <= 3
    assert str(path) in message.splitlines()[0]
    assert [FILES[name].sha256] == re.findall("expected SHA-256 ([0-9a-f]{64}),", message)
    assert re.search("found [0-9a-f]{64}", message)
    assert f"rm {path} && " in message.splitlines()[2]
    assert path.read_bytes() == before  # the user's file: refused, neither mended nor removed
    assert list(path.parent.iterdir()) == [path]
    return message


@pytest.mark.promise("R4")
@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("seed", range(25))
def test_truncated_files_are_refused(folder: Path, suffix: str, seed: int) -> None:
    whole = PACKED[IMAGES] if suffix else CONTENT[IMAGES]
    path = folder / (IMAGES + suffix)
    path.write_bytes(whole[: random.Random(seed).randrange(len(whole)) if seed else 0])
    refusal(path, IMAGES)


@pytest.mark.promise("R4")
@pytest.mark.parametrize("seed", range(25))
def test_a_flipped_bit_in_a_plain_file_is_refused(folder: Path, seed: int) -> None:
    path = folder / IMAGES
    path.write_bytes(flipped(CONTENT[IMAGES], random.Random(seed).randrange(8 * len(CONTENT[IMAGES]))))
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    assert f"found {found}" in refusal(path, IMAGES)


@pytest.mark.promise("R4")
@pytest.mark.parametrize("seed", range(25))
def test_a_flipped_bit_in_a_gzip_file_is_refused(folder: Path, seed: int) -> None:
    path = folder / f"{IMAGES}.gz"
    body = random.Random(seed).randrange(8 * 10, 8 * len(PACKED[IMAGES]))  # behind the ten bytes of the header
    path.write_bytes(flipped(PACKED[IMAGES], body))
    refusal(path, IMAGES)


@pytest.mark.promise("R4")
@pytest.mark.parametrize("bit", range(8 * 10))
def test_a_flipped_bit_in_a_gzip_header_is_refused_or_harmless(folder: Path, bit: int) -> None:
    """The header's time stamp, level and system do not touch the content; its magic, method and flags do."""
    path = folder / f"{IMAGES}.gz"
    path.write_bytes(flipped(PACKED[IMAGES], bit))
    if bit // 8 in (4, 5, 6, 7, 8, 9) or bit == 8 * 3:  # bit 0 of the flags only says "probably text"
        assert encode(read_idx(LOCAL, IMAGES)) == CONTENT[IMAGES]
    else:
        try:
            assert encode(read_idx(LOCAL, IMAGES)) == CONTENT[IMAGES]
        except DamagedDataError:
            refusal(path, IMAGES)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_bytes_after_the_end_are_refused(folder: Path, suffix: str) -> None:
    path = folder / (LABELS + suffix)
    path.write_bytes((PACKED[LABELS] if suffix else CONTENT[LABELS]) + b"more")
    refusal(path, LABELS)


def test_a_swapped_file_is_refused_and_recognised(folder: Path) -> None:
    path = folder / f"{IMAGES}.gz"
    path.write_bytes(PACKED[LABELS])
    assert f"which is {LABELS}" in refusal(path, IMAGES)


def test_a_small_file_that_unpacks_to_a_large_one_is_refused_early(folder: Path) -> None:
    path = folder / f"{LABELS}.gz"
    path.write_bytes(gzip.compress(bytes(64 << 20)))
    with path.open("rb") as stream:
        assert len(mnist.decompress(stream, limit=FILES[IMAGES].size)[0]) <= 1 << 20
    refusal(path, LABELS)


@pytest.mark.parametrize("shape", [(9, 7, 6), (9, 35)], ids=["other size", "other dimensions"])
def test_a_header_of_another_shape_is_refused(folder: Path, shape: tuple[int, ...]) -> None:
    (folder / IMAGES).write_bytes(CONTENT[IMAGES])  # right digest, wrong shape: an error in the table of sources
    source = IdxSource("tiny", {IMAGES: IdxFile(FILES[IMAGES].sha256, shape)}, ())
    with pytest.raises(ValueError, match=r"header 00000803 00000009 .*: expected unsigned bytes of shape"):
        read_idx(source, IMAGES)


# ---------------------------------------------------------------------------------------------------- files to fetch


def fetch(*mirrors: str) -> np.ndarray:
    return read_idx(IdxSource("tiny", FILES, mirrors), IMAGES)


@pytest.mark.promise("R16")
def test_an_absent_file_is_fetched_once_with_a_progress_bar(
    server: Server, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mirrors = server.mirrors(f"{IMAGES}.gz", PACKED[IMAGES], PACKED[IMAGES])
    assert np.array_equal(fetch(*mirrors), ARRAYS[IMAGES])
    assert re.search(rf"{IMAGES}.gz: +\d+%", capsys.readouterr().err)
    assert left_in(folder) == [f"{IMAGES}.gz"]
    assert (folder / f"{IMAGES}.gz").read_bytes() == PACKED[IMAGES]
    assert np.array_equal(fetch(*mirrors), ARRAYS[IMAGES])  # from disk
    assert server.asked == [f"/0/{IMAGES}.gz"]


def broken_off(handler: BaseHTTPRequestHandler) -> None:
    send(handler, PACKED[IMAGES][:100], promised=len(PACKED[IMAGES]))
    handler.wfile.flush()
    handler.connection.close()


BAD = {
    "404": (None, "404"),
    "damaged": (flipped(PACKED[IMAGES], 999), "expected SHA-256"),
    "another compressed file": (PACKED[LABELS], f"which is {LABELS}"),
    "a page instead of the file": (b"<html>sign in</html>", "expected SHA-256"),
    "empty": (b"", "expected SHA-256"),
    "broken off": (broken_off, "ChunkedEncodingError"),
    "silent": (silent, "timed out"),
}


@pytest.mark.promise("R4")
@pytest.mark.parametrize(("reply", "reason"), BAD.values(), ids=BAD)
def test_the_next_mirror_is_asked_and_nothing_damaged_stays(
    server: Server, folder: Path, reply: Reply | None, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "TIMEOUT_S", (0.3, 0.3))
    bad, good = server.mirrors(f"{IMAGES}.gz", reply, PACKED[IMAGES])
    with pytest.raises(MissingDataError) as caught:
        fetch(bad, bad)
    message = str(caught.value)
    assert left_in(folder) == []
    assert message.count(f"  {bad}: ") == 2
    assert message.count(reason) == 2
    assert len(message.splitlines()) == 4
    assert message.splitlines()[-1].endswith(f"put {IMAGES}.gz, {LABELS}.gz (or them unpacked) in {folder}")
    assert server.asked == [f"/0/{IMAGES}.gz"] * 2  # once each: no mirror is asked for ever

    assert np.array_equal(fetch(bad, good), ARRAYS[IMAGES])
    assert left_in(folder) == [f"{IMAGES}.gz"]


def test_without_network_the_files_and_the_folder_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as bound:  # bound and not listening: whoever connects is refused
        bound.bind(("127.0.0.1", 0))
        base = f"http://127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(MissingDataError, match=r"Connection refused[^\n]*\n.*Connection refused") as caught:
            fetch(f"{base}/0/", f"{base}/1/")
    assert str(caught.value).endswith(f"put {IMAGES}.gz, {LABELS}.gz (or them unpacked) in {folder}")
    assert left_in(folder) == []


def test_mirrors_of_ones_own(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad, good = server.mirrors(f"{IMAGES}.gz", None, PACKED[IMAGES])
    monkeypatch.setenv("DESCENT_TINY_MIRRORS", f"{bad}, {good.rstrip('/')}")
    assert np.array_equal(fetch("http://127.0.0.1:9/never-asked/"), ARRAYS[IMAGES])


@pytest.mark.promise("R4")
def test_a_damaged_file_is_not_silently_fetched_again(server: Server, folder: Path) -> None:
    mirrors = server.mirrors(f"{IMAGES}.gz", PACKED[IMAGES])
    (folder / f"{IMAGES}.gz").write_bytes(b"")
    with pytest.raises(DamagedDataError):
        fetch(*mirrors)
    assert server.asked == []
    assert (folder / f"{IMAGES}.gz").read_bytes() == b""


@pytest.mark.promise("R3")
def test_two_processes_may_fetch_the_same_file_at_once(server: Server, folder: Path) -> None:
    both = threading.Barrier(2, timeout=3600)

    def when_both_have_asked(handler: BaseHTTPRequestHandler) -> None:
        both.wait()
        send(handler, PACKED[IMAGES])

    source = IdxSource("tiny", FILES, server.mirrors(f"{IMAGES}.gz", when_both_have_asked))
    imports = "from descent.data.fetching import read_idx; from descent.data.mnist import *"
    code = f"{imports}; print(read_idx({source!r}, {IMAGES!r}).sum())"
    runs = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [run.communicate()[0].strip() for run in runs] == [str(ARRAYS[IMAGES].sum())] * 2
    assert left_in(folder) == [f"{IMAGES}.gz"]


@pytest.mark.promise("R4")
def test_the_command_in_the_message_mends(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = real_mnist()
    for name in MNIST.files:
        path = real / f"{name}.gz"
        packed = path.read_bytes() if path.is_file() else gzip.compress((real / name).read_bytes(), 1)
        server.replies[f"/{name}.gz"] = packed
    spaced = tmp_path / "my data"
    (spaced / "mnist").mkdir(parents=True)
    damaged = spaced / "mnist" / "t10k-labels-idx1-ubyte.gz"
    damaged.write_bytes(GARBAGE)
    monkeypatch.setenv("DESCENT_DATA", str(spaced))
    monkeypatch.setenv("DESCENT_MNIST_MIRRORS", server.base)
    with pytest.raises(DamagedDataError, match="to mend it: ") as caught:
        load_dataset("mnist", "test")
    command = str(caught.value).split("to mend it: ")[1]

    shell = {name: value for name, value in os.environ.items() if name != "DESCENT_DATA"}
    done = subprocess.run(command, shell=True, env=shell, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("mnist: 60,000 train, 10,000 test")
    assert len(load_dataset("mnist", "test")) == 10_000
    assert sorted(left_in(spaced / "mnist")) == sorted(f"{name}.gz" for name in MNIST.files)


def test_the_command_line_says_what_is_wrong_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "train-labels-idx1-ubyte.gz").write_bytes(GARBAGE)
    command = [sys.executable, "-m", "descent.data.datasets", "mnist"]
    environment = {**os.environ, "DESCENT_DATA": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 3
    assert "is damaged" in done.stderr


def test_the_readme_gives_the_size_and_digest_of_every_file() -> None:
    readme = (Path(__file__).resolve().parents[2] / "data" / "README.md").read_text()
    rows = re.findall(r"^\| `([\w-]+)` \| ([\d,]+) \| `([0-9a-f]{64})` \|$", readme, re.MULTILINE)
    assert rows == [(name, f"{file.size:,}", file.sha256) for name, file in MNIST.files.items()]
    assert all(mirror in readme for mirror in MNIST.mirrors)
