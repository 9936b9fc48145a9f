import bz2
import gzip
import lzma
import math
import os
import random
import re
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest
import torch
from cifar_samples import (
    ARCHIVE,
    CONTENT,
    EACH,
    FILES,
    FOLDER,
    LOCAL,
    PACKED,
    SPLITS,
    TEST,
    TRAIN,
    WHOLE,
    Member,
    digest_of,
    published,
    tar,
)
from mirrors import Reply, Server, flipped, left_in, send, silent

from descent import checkout
from descent.data import cifar, datasets, fetching
from descent.data.cifar import CIFAR10, RECORD, CifarArchive
from descent.data.datasets import Dataset, load_dataset, standardise
from descent.data.fetching import DamagedDataError, MissingDataError, read_cifar


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data folder, which is absent until something is put there; its parent is empty but for it."""
    monkeypatch.setenv("DESCENT_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def folder(root: Path) -> Path:
    """The folder with the tiny source's six files."""
    (root / FOLDER).mkdir(parents=True)
    for name, content in CONTENT.items():
        (root / FOLDER / name).write_bytes(content)
    return root / FOLDER


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def real() -> Path:
    """The folder of the six real files; without them the test is skipped, never downloaded for."""
    place = checkout.data_folder() / FOLDER
    if not all((place / name).is_file() for name in FILES):
        pytest.skip(f"real CIFAR-10 is not in {place}")
    return place


# ---------------------------------------------------------------------------------------------------- what is loaded


def test_cifar10_is_the_real_one() -> None:
    names = real() / "batches.meta.txt"
    if names.is_file():
        assert tuple(names.read_text().split()) == cifar.CLASSES
    train, test = load_dataset("cifar10"), load_dataset("cifar10", "test")
    assert train.inputs.shape == (50_000, 3, 32, 32)
    assert test.inputs.shape == (10_000, 3, 32, 32)
    for part, each in ((train, 5_000), (test, 1_000)):
        assert (part.inputs.dtype, part.targets.dtype) == (torch.float32, torch.int64)
        assert (part.inputs.min(), part.inputs.max(), part.classes) == (0, 1, 10)
        assert torch.bincount(part.targets).tolist() == [each] * 10
    assert train.inputs.mean(dim=(2, 3)).double().mean(dim=0).tolist() == pytest.approx(
        [0.4914, 0.4822, 0.4465], abs=5e-5
    )
    scaled = standardise(test, reference=train)
    mean, deviation = torch.tensor([0.49140, 0.48216, 0.44653]), torch.tensor([0.24703, 0.24349, 0.26159])
    expected = (test.inputs - mean[:, None, None]) / deviation[:, None, None]
    assert torch.allclose(scaled, expected, atol=2e-4)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_record_is_a_label_and_three_planes(folder: Path, split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "CIFAR10", LOCAL)
    part = load_dataset("cifar10", split)
    assert (part.name, part.split, part.classes, len(part)) == ("cifar10", split, 10, len(WHOLE[split]))
    assert (part.inputs.dtype, part.targets.dtype) == (torch.float32, torch.int64)
    assert part.targets.tolist() == WHOLE[split][:, 0].tolist()
    for image, channel, row, column in [(0, 0, 0, 0), (3, 1, 0, 31), (2, 2, 31, 30), (1, 1, 7, 9)]:
        level = WHOLE[split][image, 1 + 1024 * channel + 32 * row + column]
        assert part.inputs[image, channel, row, column].item() == np.float32(level) / np.float32(255)


def test_standardised_scales_each_channel_by_itself(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "CIFAR10", LOCAL)
    train, test = load_dataset("cifar10"), load_dataset("cifar10", "test")
    before = train.inputs.clone()
    scaled = standardise(train)
    assert torch.equal(train.inputs, before)
    assert (scaled.shape, scaled.dtype) == (train.inputs.shape, torch.float32)
    assert scaled.double().mean(dim=(0, 2, 3)).tolist() == pytest.approx([0] * 3, abs=1e-6)
    assert scaled.double().std(dim=(0, 2, 3), correction=0).tolist() == pytest.approx([1] * 3, abs=1e-6)
    mean = train.inputs.double().mean(dim=(0, 2, 3), keepdim=True)
    deviation = train.inputs.double().std(dim=(0, 2, 3), keepdim=True, correction=0)
    assert torch.allclose(standardise(test), ((test.inputs.double() - mean) / deviation).float(), atol=1e-6)


def test_one_channel_is_scaled_to_the_same_bits_as_ever() -> None:
    train, test = load_dataset("digits"), load_dataset("digits", "test")
    pixels = train.inputs.flatten(1)
    mean, square = (rows.mean(dim=1).double().mean().item() for rows in (pixels, pixels.square()))
    for part in (train, test):
        assert torch.equal(standardise(part), (part.inputs - mean) / math.sqrt(square - mean**2))


def test_standardised_names_the_channel_of_equal_pixels() -> None:
    inputs = torch.rand(5, 3, 2, 2)
    inputs[:, 1] = 0.5
    with pytest.raises(ValueError, match="flat: all 20 pixels of channel 1 are equal; expected some that differ"):
        standardise(Dataset("flat", "train", inputs, torch.zeros(5, dtype=torch.int64), 10))


# --------------------------------------------------------------------------------------------- files that are present


@pytest.mark.parametrize("seed", range(5))
def test_records_may_be_in_any_order_and_any_of_the_files_and_come_in_one(folder: Path, seed: int) -> None:
    shuffled = np.random.default_rng(seed).permutation(WHOLE["train"])
    for k, name in enumerate(TRAIN):
        (folder / name).write_bytes(shuffled[EACH * k : EACH * (k + 1)].tobytes())
    (folder / TEST[0]).write_bytes(WHOLE["test"][::-1].tobytes())
    assert np.array_equal(read_cifar(LOCAL, "train"), WHOLE["train"])
    assert np.array_equal(read_cifar(LOCAL, "test"), WHOLE["test"])


def refusal(root: Path, split: str) -> list[str]:
    """The lines of the message with which a split is refused, after the checks that hold for all refusals."""
    before = contents(root / FOLDER)
    with pytest.raises(DamagedDataError) as caught:
        read_cifar(LOCAL, split)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert lines[0].endswith(" is damaged")
    assert re.fullmatch(r"expected .+, found .+", lines[1])
    assert re.fullmatch(rf"to mend it: rm .+ && DESCENT_DATA={root} \S+ -m descent.data.datasets tiny", lines[2])
    assert contents(root / FOLDER) == before  # the user's files: refused, neither mended nor removed
    assert left_in(root) == [FOLDER]
    return lines


def refused_file(root: Path, name: str) -> str:
    """What is expected and found, of a file that is refused by name."""
    lines = refusal(root, "test" if name in TEST else "train")
    assert lines[0] == f"{root / FOLDER / name} is damaged"
    assert f"rm {root / FOLDER / name} && " in lines[2]
    return lines[1]


def refused_digest(root: Path, name: str) -> None:
    """A file that only the digest gives away: the train split is named as a whole, for no file of it can be blamed."""
    split = "test" if name in TEST else "train"
    files = [root / FOLDER / file for file in SPLITS[split].files]
    found = digest_of(np.concatenate([np.fromfile(file, np.uint8) for file in files]).reshape(-1, RECORD))
    what = root / FOLDER / name if split == "test" else f"the train split of tiny in {root / FOLDER}"
    lines = refusal(root, split)
    assert lines[0] == f"{what} is damaged"
    assert lines[1].startswith(f"expected SHA-256 {SPLITS[split].sha256}, found {found} ")
    assert f"rm {' '.join(map(str, files))} && " in lines[2]


@pytest.mark.promise("R4")
@pytest.mark.parametrize("seed", range(20))
def test_truncated_files_are_refused(root: Path, folder: Path, seed: int) -> None:
    name, size = FILES[seed % 6], random.Random(seed).randrange(EACH * RECORD) if seed else 0
    (folder / name).write_bytes(CONTENT[name][:size])
    assert refused_file(root, name) == f"expected 12,292 bytes (4 records of 3,073), found {size:,}"


@pytest.mark.promise("R4")
@pytest.mark.parametrize("seed", range(20))
def test_a_flipped_bit_is_refused(root: Path, folder: Path, seed: int) -> None:
    name, bit = FILES[seed % 6], random.Random(seed).randrange(8 * EACH * RECORD)
    assert bit // 8 % RECORD, "a label, which the next test flips"
    (folder / name).write_bytes(flipped(CONTENT[name], bit))
    refused_digest(root, name)


@pytest.mark.promise("R4")
@pytest.mark.parametrize("bit", range(8))
@pytest.mark.parametrize("name", ["data_batch_2.bin", "test_batch.bin"])
def test_a_flipped_bit_in_a_label_is_refused(root: Path, folder: Path, name: str, bit: int) -> None:
    damaged = flipped(CONTENT[name], 8 * 2 * RECORD + bit)
    (folder / name).write_bytes(damaged)
    label = damaged[2 * RECORD]
    if label < 10:
        refused_digest(root, name)
    else:
        assert refused_file(root, name) == f"expected labels from 0 to 9, found {label} in record 2 (from 0)"


@pytest.mark.promise("R4")
@pytest.mark.parametrize("change", [-RECORD, -1, 1, RECORD])
def test_another_number_of_bytes_is_refused(root: Path, folder: Path, change: int) -> None:
    size = EACH * RECORD + change
    (folder / "data_batch_4.bin").write_bytes((2 * CONTENT["data_batch_4.bin"])[:size])
    assert refused_file(root, "data_batch_4.bin").endswith(f"found {size:,}")


def test_a_large_file_is_refused_unread(root: Path, folder: Path) -> None:
    with (folder / TEST[0]).open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DamagedDataError, match=f"found {1 << 40:,}"):
        read_cifar(LOCAL, "test")


def test_a_record_twice_instead_of_another_is_refused(root: Path, folder: Path) -> None:
    (folder / TRAIN[0]).write_bytes(CONTENT[TRAIN[1]])
    refused_digest(root, TRAIN[0])


# ---------------------------------------------------------------------------------------------------- files to fetch


def fetch(*mirrors: str, split: str = "train") -> np.ndarray:
    return read_cifar(CifarArchive("tiny", FOLDER, ARCHIVE, EACH, SPLITS, mirrors), split)


def mirrors(server: Server, *bodies: Reply | None) -> tuple[str, ...]:
    """One mirror per body, each of which answers a request for the archive with that body (None: 404)."""
    server.replies |= {f"/{k}/{ARCHIVE}": body for k, body in enumerate(bodies) if body is not None}
    return tuple(f"{server.base}/{k}/" for k in range(len(bodies)))


def test_absent_files_are_fetched_once_with_a_progress_bar(
    server: Server, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = mirrors(server, PACKED, PACKED)
    assert np.array_equal(fetch(*both), WHOLE["train"])
    assert re.search(rf"{ARCHIVE}: +\d+%", capsys.readouterr().err)
    assert left_in(root) == [FOLDER]  # what was downloaded has served
    assert contents(root / FOLDER) == CONTENT
    assert np.array_equal(fetch(*both), WHOLE["train"])  # from disk
    assert np.array_equal(fetch(*both, split="test"), WHOLE["test"])
    assert server.asked == [f"/0/{ARCHIVE}"]


PACKINGS = {
    "gzip": gzip.compress,
    "another level": lambda raw: gzip.compress(raw, 1),
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "none": bytes,
}


@pytest.mark.parametrize("pack", PACKINGS.values(), ids=PACKINGS)
@pytest.mark.parametrize("prefix", [f"{FOLDER}/", f"./{FOLDER}/"])
def test_an_archive_counts_by_its_content(
    server: Server, root: Path, pack: Callable[[bytes], bytes], prefix: str
) -> None:
    shuffled = np.random.default_rng(3).permutation(WHOLE["train"]).reshape(5, -1)
    changes = {Path(name).stem: part.tobytes() for name, part in zip(TRAIN, shuffled, strict=True)}
    found = fetch(*mirrors(server, pack(tar(published(prefix, **changes)))))
    assert np.array_equal(found, WHOLE["train"])


def test_only_what_is_absent_is_written(server: Server, root: Path, folder: Path) -> None:
    (folder / TRAIN[2]).unlink()
    (folder / TEST[0]).write_bytes(b"damaged, and the user's")
    assert np.array_equal(fetch(*mirrors(server, PACKED)), WHOLE["train"])
    assert contents(folder) == {**CONTENT, TEST[0]: b"damaged, and the user's"}
    with pytest.raises(DamagedDataError, match="found 23"):  # refused, not fetched again
        fetch(server.base, split="test")
    assert server.asked == [f"/0/{ARCHIVE}"]


@pytest.mark.promise("R16")
def test_a_split_that_is_there_asks_for_nothing(server: Server, folder: Path) -> None:
    for name in TRAIN:
        (folder / name).unlink()
    assert np.array_equal(fetch(server.base, split="test"), WHOLE["test"])
    assert server.asked == []


def test_an_archive_in_the_data_folder_is_used_and_stays(server: Server, root: Path) -> None:
    root.mkdir()
    (root / ARCHIVE).write_bytes(PACKED)
    assert np.array_equal(fetch(server.base), WHOLE["train"])
    assert server.asked == []
    assert sorted(left_in(root)) == [FOLDER, ARCHIVE]
    assert (root / ARCHIVE).read_bytes() == PACKED
    assert contents(root / FOLDER) == CONTENT


@pytest.mark.promise("R4")
def test_a_damaged_archive_in_the_data_folder_is_refused_and_stays(server: Server, root: Path) -> None:
    root.mkdir()
    (root / ARCHIVE).write_bytes(PACKED[: len(PACKED) // 2])
    with pytest.raises(DamagedDataError) as caught:
        fetch(*mirrors(server, PACKED))
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{root / ARCHIVE} is damaged"
    assert lines[1].startswith("expected a tar archive, found a broken one: ")
    assert lines[2].startswith(f"to mend it: rm {root / ARCHIVE} && ")
    assert len(lines) == 3
    assert contents(root) == {ARCHIVE: PACKED[: len(PACKED) // 2]}
    assert server.asked == []


def broken_off(handler: BaseHTTPRequestHandler) -> None:
    send(handler, PACKED[:100], promised=len(PACKED))
    handler.wfile.flush()
    handler.connection.close()


def lacking(name: str) -> dict[str, Member]:
    return {path: member for path, member in published().items() if not path.endswith(name)}


def outside(link: bytes) -> dict[str, Member]:
    """A link to a folder above in the place of a file, and, behind it, a file by that link's path."""
    return {**published(data_batch_3=(link, "../../escaped")), f"{FOLDER}/data_batch_3.bin/escaped": b"escaped"}


BAD: dict[str, tuple[Reply | None, str]] = {
    "404": (None, "404"),
    "a page instead of the archive": (b"<html>sign in</html>", "expected a tar archive, found a broken one"),
    "empty": (b"", "expected a tar archive, found a broken one"),
    "truncated": (PACKED[: len(PACKED) * 2 // 3], "expected a tar archive, found a broken one"),
    "truncated, not compressed": (tar(published())[:50_000], "expected a tar archive, found a broken one"),
    "broken off": (broken_off, "ChunkedEncodingError"),
    "silent": (silent, "timed out"),
    "a bit flipped": (flipped(PACKED, 4 * len(PACKED)), "expected"),
    "a pixel altered": (tar(published(data_batch_1=flipped(CONTENT[TRAIN[0]], 99))), "expected SHA-256"),
    "a test pixel altered": (tar(published(test_batch=flipped(CONTENT[TEST[0]], 99))), "expected SHA-256"),
    "a byte too many": (tar(published(data_batch_1=CONTENT[TRAIN[0]] + b"0")), "data_batch_1.bin: expected 12,292"),
    "a label too high": (tar(published(test_batch=b"\x0a" + CONTENT[TEST[0]][1:])), "found 10 in record 0"),
    "a file absent": (tar(lacking("data_batch_4.bin")), "found no data_batch_4.bin"),
    "other folders": (tar(published("../../")), "found no data_batch_1.bin, data_batch_2.bin"),
    "absolute paths": (tar(published(f"/{FOLDER}/")), "found no data_batch_1.bin, data_batch_2.bin"),
    "a symbolic link": (tar(outside(tarfile.SYMTYPE)), "data_batch_3.bin to be a regular file"),
    "a hard link": (tar(outside(tarfile.LNKTYPE)), "data_batch_3.bin to be a regular file"),
    "a folder": (tar(published(test_batch=(tarfile.DIRTYPE, ""))), "test_batch.bin to be a regular file"),
}


@pytest.mark.promise("R4")
@pytest.mark.parametrize(("reply", "reason"), BAD.values(), ids=BAD)
def test_the_next_mirror_is_asked_and_nothing_damaged_stays(
    server: Server,
    root: Path,
    reply: Reply | None,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fetching, "TIMEOUT_S", (0.3, 0.3))
    bad, good = mirrors(server, reply, PACKED)
    with pytest.raises(MissingDataError) as caught:
        fetch(bad, bad)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{ARCHIVE} is not in {root}, and no mirror gave it:"
    assert [line.startswith(f"  {bad}: ") and reason in line for line in lines[1:-1]] == [True] * 2
    assert lines[-1] == f"to do without: put it there, or {', '.join(FILES)} in {root / FOLDER}"
    assert server.asked == [f"/0/{ARCHIVE}"] * 2  # once each: no mirror is asked for ever
    assert not root.exists() or left_in(root) == []
    assert [path for path in root.parent.rglob("*") if path != root] == []  # nor beside it

    assert np.array_equal(fetch(bad, good), WHOLE["train"])
    assert left_in(root) == [FOLDER]
    assert contents(root / FOLDER) == CONTENT


def test_members_that_are_not_asked_for_are_written_nowhere(server: Server, root: Path) -> None:
    hostile: dict[str, Member] = {
        "../escaped": b"escaped",
        f"{FOLDER}/../../escaped": b"escaped",
        str(root.parent / "escaped"): b"escaped",
        f"{FOLDER}/link": (tarfile.SYMTYPE, str(root.parent)),
        f"{FOLDER}/link/escaped": b"escaped",
        f"{FOLDER}": (tarfile.SYMTYPE, str(root.parent)),
    }
    assert np.array_equal(fetch(*mirrors(server, tar({**hostile, **published()}))), WHOLE["train"])
    assert contents(root / FOLDER) == CONTENT
    assert left_in(root) == [FOLDER]
    assert left_in(root.parent) == ["data"]


@pytest.mark.parametrize("states", [64 << 20, 1 << 62], ids=["has", "only claims"])
def test_an_archive_that_unpacks_to_a_large_one_is_refused_early(server: Server, root: Path, states: int) -> None:
    entry = tarfile.TarInfo("large")
    entry.size = states
    packed = gzip.compress(entry.tobuf(tarfile.GNU_FORMAT) + bytes(64 << 20))
    with pytest.raises(MissingDataError, match="expected members of at most"):
        fetch(*mirrors(server, packed))
    many = b"".join([tarfile.TarInfo(f"{FOLDER}/{k}").tobuf() for k in range(5_000)])
    with pytest.raises(MissingDataError, match="expected an archive of at most 1,196,080 bytes unpacked, found more"):
        fetch(*mirrors(server, gzip.compress(many)))


def test_without_network_the_archive_and_the_folder_are_named_at_once(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as bound:  # bound and not listening: whoever connects is refused
        bound.bind(("127.0.0.1", 0))
        monkeypatch.setenv("DESCENT_CIFAR10_MIRRORS", f"http://127.0.0.1:{bound.getsockname()[1]}")
        with pytest.raises(MissingDataError, match=rf"^{ARCHIVE} is not in .*\n.*Connection refused") as caught:
            load_dataset("cifar10")
    assert str(caught.value).endswith(f"put it there, or {', '.join(FILES)} in {root / FOLDER}")
    assert left_in(root) == []


def test_mirrors_of_ones_own(server: Server, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad, good = mirrors(server, None, PACKED)
    monkeypatch.setenv("DESCENT_TINY_MIRRORS", f"{bad}, {good.rstrip('/')}")
    assert np.array_equal(fetch("http://127.0.0.1:9/never-asked/"), WHOLE["train"])


@pytest.mark.promise("R3")
def test_two_may_fetch_at_once(server: Server, root: Path) -> None:
    both = threading.Barrier(2, timeout=3600)

    def when_both_have_asked(handler: BaseHTTPRequestHandler) -> None:
        both.wait()
        send(handler, PACKED)

    (mirror,) = mirrors(server, when_both_have_asked)
    with ThreadPoolExecutor(2) as pool:
        assert [np.array_equal(found, WHOLE["train"]) for found in pool.map(fetch, [mirror] * 2)] == [True] * 2
    assert left_in(root) == [FOLDER]
    assert contents(root / FOLDER) == CONTENT


@pytest.mark.promise("R4")
def test_the_command_in_the_message_mends(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = real()
    spaced = tmp_path / "my data"
    (spaced / FOLDER).mkdir(parents=True)
    for name in TRAIN:
        (spaced / FOLDER / name).symlink_to(place / name)
    (spaced / FOLDER / TEST[0]).write_bytes(b"damaged")
    server.replies[f"/{ARCHIVE}"] = tar({f"{FOLDER}/{name}": (place / name).read_bytes() for name in FILES})
    monkeypatch.setenv("DESCENT_DATA", str(spaced))
    monkeypatch.setenv("DESCENT_CIFAR10_MIRRORS", server.base)
    with pytest.raises(DamagedDataError, match="to mend it: ") as caught:
        load_dataset("cifar10", "test")
    command = str(caught.value).split("to mend it: ")[1]

    shell = {name: value for name, value in os.environ.items() if name != "DESCENT_DATA"}
    done = subprocess.run(command, shell=True, env=shell, capture_output=True, text=True, check=True)
    assert done.stdout == f"cifar10: 50,000 train, 10,000 test; data folder {spaced}\n"
    assert all((spaced / FOLDER / name).is_symlink() for name in TRAIN)
    assert left_in(spaced) == [FOLDER]


def test_the_command_line_says_what_is_wrong_without_a_traceback(folder: Path) -> None:
    command = [sys.executable, "-m", "descent.data.datasets", "cifar10"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[:2] == [
        f"{folder / TRAIN[0]} is damaged",
        "expected 30,730,000 bytes (10,000 records of 3,073), found 12,292",
    ]
    assert len(done.stderr.splitlines()) == 3


def test_the_readme_gives_the_size_and_digest_of_every_split() -> None:
    readme = (Path(__file__).resolve().parents[2] / "data" / "README.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| .+ \| ([\d,]+) \| ([\d,]+) \| `([0-9a-f]{64})` \|$", readme, re.MULTILINE)
    size = (f"{CIFAR10.size:,}", f"{CIFAR10.records:,}")
    assert rows == [(name, *size, split.sha256) for name, split in CIFAR10.splits.items()]
    assert all(mirror in readme for mirror in CIFAR10.mirrors)
