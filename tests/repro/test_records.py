import contextlib
import hashlib
import json
import os
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from descent.repro import records
from descent.repro.files import atomic_path, sha256_of, sha256_of_arrays, write_atomic, write_json
from descent.repro.records import (
    Record,
    find_record,
    open_chapter,
    provenance,
    record_path,
    relative_difference,
    save_figure,
)

RECORD = Record("spectrum", {"values": np.arange(5.0), "steps": np.array([3, 1])}, {"seed": 1}, {"torch": "2"})


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_sha256_of_is_the_published_digest_of_abc(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_digest_of_arrays_sees_names_types_shapes_and_every_bit():
    arrays = {"a": np.arange(6.0), "b": np.zeros(2, bool)}
    same = {"b": np.zeros(2, bool), "a": np.arange(12.0)[:6]}
    assert sha256_of_arrays(arrays) == sha256_of_arrays(same)
    others = [{**arrays, "a": np.arange(6)}, {**arrays, "a": np.arange(6.0).reshape(2, 3)}, {"a": arrays["a"]}]
    others += [{**arrays, "a": np.nextafter(arrays["a"], 9)}, {"b": arrays["b"], "c": arrays["a"]}]
    assert len({sha256_of_arrays(each) for each in [arrays, *others]}) == 6


def test_a_whole_file_takes_the_place_of_the_old_one(tmp_path):
    path = tmp_path / "new folder" / "a.txt"
    write_atomic(path, "old")
    write_atomic(path, "größer")
    assert path.read_bytes() == "größer".encode()
    assert names(path.parent) == ["a.txt"]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.promise("R3")
def test_a_failure_while_writing_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("power")

    with pytest.raises(RuntimeError, match="power"):
        fail()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.promise("R3")
def test_a_crash_before_the_rename_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def crash(*_):
        raise OSError("crash")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="crash"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_the_data_is_on_the_disk_before_the_rename(tmp_path, monkeypatch):
    order = []
    flush, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append("flush"), flush(handle)))
    monkeypatch.setattr(os, "replace", lambda old, new: (order.append("rename"), rename(old, new)))
    write_atomic(tmp_path / "a.txt", b"x")
    assert order == ["flush", "rename"]


def test_json_is_indented_ends_with_a_newline_and_refuses_what_json_cannot_say(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"σ": [1, None]})
    assert path.read_text(encoding="utf-8") == '{\n "σ": [\n  1,\n  null\n ]\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"x": float("nan")})
    assert json.loads(path.read_text(encoding="utf-8")) == {"σ": [1, None]}


def test_a_record_comes_back_as_it_was(tmp_path):
    RECORD.save(tmp_path / "r.npz")
    back = Record.load(tmp_path / "r.npz")
    assert (back.name, back.settings, back.provenance) == ("spectrum", {"seed": 1}, {"torch": "2"})
    assert set(back.values) == {"values", "steps"}
    for name, value in RECORD.values.items():
        np.testing.assert_array_equal(back.values[name], value)
        assert back.values[name].dtype == value.dtype


def test_equal_records_give_equal_bytes_and_other_records_do_not(tmp_path):
    RECORD.save(tmp_path / "a.npz")
    Record(RECORD.name, dict(RECORD.values), {"seed": 1}, {"torch": "2"}).save(tmp_path / "b.npz")
    Record(RECORD.name, dict(RECORD.values), {"seed": 2}, {"torch": "2"}).save(tmp_path / "c.npz")
    digests = [hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("a.npz", "b.npz", "c.npz")]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.promise("R4")
def test_a_damaged_record_is_refused(tmp_path):
    Record("noise", {"values": np.random.default_rng(0).normal(size=4000)}).save(tmp_path / "r.npz")
    whole, generator = (tmp_path / "r.npz").read_bytes(), np.random.default_rng(1)
    for cut in generator.integers(1, len(whole), 10):
        (tmp_path / "cut.npz").write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"cut\.npz: damaged, or no record"):
            Record.load(tmp_path / "cut.npz")
    for byte in generator.integers(500, len(whole) - 2000, 10):  # inside the numbers, where no format would notice
        flipped = bytearray(whole)
        flipped[byte] ^= 1 << generator.integers(8)
        (tmp_path / "flipped.npz").write_bytes(flipped)
        with pytest.raises(ValueError, match=r"flipped\.npz: damaged, or no record .*CRC"):
            Record.load(tmp_path / "flipped.npz")


def test_a_bit_flipped_anywhere_in_the_format_is_no_other_error(tmp_path):
    Record("r", {"a": np.arange(3.0), "b": np.arange(2)}).save(tmp_path / "r.npz")
    whole = (tmp_path / "r.npz").read_bytes()
    for byte in range(len(whole)):
        flipped = bytearray(whole)
        flipped[byte] ^= 1 << byte % 8
        (tmp_path / "r.npz").write_bytes(flipped)
        with contextlib.suppress(ValueError):
            Record.load(tmp_path / "r.npz")


def test_a_record_is_found_by_its_settings(tmp_path):
    path = record_path(tmp_path, "tunnels", "seed-0")
    assert path == tmp_path / "data" / "records" / "tunnels" / "seed-0.npz"
    assert find_record(path, key="a") is None
    Record("r", {"loss": np.array([1.0, 2.0])}, {"key": "a", "sizes": [1, 2]}).save(path)
    for settings in ({}, {"key": "a"}, {"sizes": [1, 2]}, {"key": "a", "sizes": [1, 2]}):
        found = find_record(path, **settings)
        assert found is not None
        np.testing.assert_array_equal(found.values["loss"], [1, 2])
    for settings in ({"key": "b"}, {"key": "a", "sizes": [2, 1]}, {"key": "a", "seed": 0}):
        assert find_record(path, **settings) is None


@pytest.mark.promise("R4")
def test_a_record_made_from_something_else_is_refused_by_name(tmp_path):
    path = tmp_path / "r.npz"
    Record("r", {}, {"weights_sha256": "0713", "sizes": [1, 2]}).save(path)
    assert Record.load(path, "make r", weights_sha256="0713", sizes=[1, 2]).name == "r"
    refused = [
        ("weights_sha256", "9b0f", "weights_sha256='0713', expected '9b0f'"),
        ("sizes", [2, 1], r"sizes=\[1, 2\], expected \[2, 1\]"),
        ("experiment", "a", "experiment=nothing, expected 'a'"),
        ("experiment", None, "experiment=nothing, expected None"),
    ]
    for name, value, said in refused:
        with pytest.raises(ValueError, match=rf"r\.npz: made from {said}; make it again: make r$"):
            Record.load(path, "make r", **{name: value})
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"r\.npz: no such record; to make it: make r$"):
        Record.load(path, "make r")


def test_relative_differences_make_no_number_of_nan():
    kept, anew = [3.0, np.nan, np.nan, np.inf, np.inf, 1.0, 0.0], [2.0, np.nan, 1.0, np.inf, 5.0, 0.0, 0.0]
    np.testing.assert_array_equal(relative_difference(kept, anew), [0.5, 0, np.inf, 0, np.inf, np.inf, 0])
    np.testing.assert_array_equal(relative_difference([3.0, -1.0], [2.0, 1.0], scale=4.0), [0.25, 0.5])


def test_a_damaged_record_is_refused_whatever_is_looked_for(tmp_path):
    path = record_path(tmp_path, "tunnels", "seed-0")
    Record("r", {"loss": np.arange(100.0)}, {"key": "a"}).save(path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(np.arange(100.0).tobytes()) + 400] ^= 1
    for data in (bytes(flipped), whole[:-30], b""):
        path.write_bytes(data)
        for key in ("a", "b"):
            with pytest.raises(ValueError, match=r"seed-0.npz: damaged, or no record .*; make it again"):
                find_record(path, key=key)


def test_python_objects_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"r: 'odd' holds Python objects; expected numbers or text"):
        Record("r", {"fine": np.ones(2), "odd": np.array([{}])}).save(tmp_path / "r.npz")
    assert names(tmp_path) == []


def test_provenance_says_versions_seed_and_threads_but_no_time_and_no_place():
    found = provenance(7)
    assert found["seed"] == 7
    assert {"python", "torch", "numpy", "commit", "threads", "device"} <= set(found)
    assert found == provenance(7)
    assert not any(str(value).startswith("/") for value in found.values())


@pytest.fixture
def figure():
    drawn, axis = plt.subplots()
    axis.plot([1, 2])
    yield drawn
    plt.close(drawn)


def test_a_figure_is_kept_in_three_formats_twice_alike_and_only_where_asked(tmp_path, figure):
    assert save_figure(figure, "", "line") == []
    paths = save_figure(figure, tmp_path / "figures", "line")
    assert [path.name for path in paths] == ["line.png", "line.svg", "line.pdf"]
    starts = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    for path in paths:
        assert path.read_bytes().startswith(starts[path.suffix[1:]])
    before = [path.read_bytes() for path in paths]
    save_figure(figure, tmp_path / "figures", "line")
    assert [path.read_bytes() for path in paths] == before


def test_the_files_of_a_figure_say_what_they_are_and_not_when_they_were_made(tmp_path, figure):
    png, svg, pdf = save_figure(figure, tmp_path, "line", chapter="saddles")
    made_by = " ".join(filter(None, ["anatomy-of-descent", provenance()["anatomy-of-descent"]]))
    source = "Anatomy of Descent, chapter saddles"
    with Image.open(png) as image:
        assert image.text == {
            "Title": "saddles: line",
            "Source": source,
            "Copyright": "MIT licence",
            "Software": made_by,
        }
    said: dict[str, str] = {}
    for element in ElementTree.parse(svg).iter():
        said.setdefault(element.tag.rpartition("}")[2], "".join(element.itertext()).strip())
    assert [said[name] for name in ("title", "source", "rights", "creator")] == [
        "saddles: line",
        source,
        "MIT licence",
        made_by,
    ]
    assert "date" not in said
    for name, text in {
        "Title": "saddles: line",
        "Subject": source,
        "Keywords": "MIT licence",
        "Creator": made_by,
    }.items():
        assert f"/{name} ({text})".encode() in pdf.read_bytes()
    assert b"CreationDate" not in pdf.read_bytes()


def test_a_figure_is_of_the_chapter_whose_scorecard_was_opened(tmp_path, figure, monkeypatch):
    monkeypatch.setitem(records._OPEN, "chapter", "")
    open_chapter("superposition")
    with Image.open(save_figure(figure, tmp_path, "bars")[0]) as image:
        assert image.text["Title"] == "superposition: bars"
    with Image.open(save_figure(figure, tmp_path, "bars", chapter="")[0]) as image:
        assert image.text["Title"] == "bars"
        assert image.text["Source"] == "Anatomy of Descent"


def test_what_a_file_would_lose_is_refused(tmp_path):
    for name in ("file", "allow_pickle", "__record__", "a.npy"):
        with pytest.raises(ValueError, match=f"an entry may not be called '{name}': the file format uses that name"):
            Record("r", {name: np.zeros(2)}).save(tmp_path / "r.npz")
    with pytest.raises(ValueError, match="r: 'a' is a masked array: expected the numbers that count"):
        Record("r", {"a": np.ma.masked_invalid([1.0, np.nan])}).save(tmp_path / "r.npz")
    assert not (tmp_path / "r.npz").exists()


def test_settings_are_compared_as_the_file_keeps_them(tmp_path):
    path = tmp_path / "r.npz"
    Record("r", {}, {"sizes": (1, 2), "rate": float("nan")}).save(path)
    assert Record.load(path, sizes=(1, 2), rate=float("nan")).name == "r"
    assert find_record(path, sizes=(1, 2)) is not None
    assert find_record(path, sizes=(1, 3)) is None


@pytest.mark.parametrize("meta", ["1", "[]", "{}", '{"name": "r"}', '{"name": "r", "settings": 1, "provenance": {}}'])
def test_a_record_without_its_parts_is_refused_by_path(tmp_path, meta):
    np.savez(tmp_path / "r.npz", __record__=np.array(meta))
    with pytest.raises(ValueError, match=r"r\.npz: damaged, or no record .*; make it again: make r"):
        Record.load(tmp_path / "r.npz", "make r")
