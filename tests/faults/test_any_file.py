"""Readers given any content: what was written comes back, and any other bytes meet the documented error or none."""

import contextlib
import gzip
import hashlib
import io
import json
import re
from pathlib import Path

import cifar_samples
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from descent.data import cifar, mnist
from descent.data.cifar import RECORD, CifarArchive, CifarSplit
from descent.data.mnist import IdxFile, IdxSource
from descent.models.published_weights import DIGESTS, ResNetDescription, load_checkpoint
from descent.repro.files import sha256_of, write_json
from descent.repro.records import Record
from descent_book.run.notebook import read_executed, seal

# the same examples on every run, few enough for the ordinary tests, and no limit on the time of one
quick = settings(
    derandomize=True,
    deadline=None,
    max_examples=25,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
    ],  # a folder that every example may write anew
)
JUNK = st.one_of(
    st.binary(max_size=400),
    st.builds(lambda head, tail: head + tail, st.sampled_from([b"\x1f\x8b\x08", b"PK\x03\x04", b"BZh9", b"\xfd7zXZ\0",
              b"\0\0\x08\x03", b"{", b"\x80\x04", b'{"cells": ', b"\x08\0\0\0\0\0\0\0{"]), st.binary(max_size=400)),
)  # fmt: skip
NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)
VALUES = st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.floats(allow_nan=False), st.text())
IMAGE = arrays.arrays(np.uint8, arrays.array_shapes(min_dims=1, max_dims=4, max_side=6))


@pytest.mark.promise("R4")
@quick
@given(array=IMAGE, level=st.integers(0, 9), packed=st.booleans())
def test_an_idx_array_of_any_shape_comes_back(array: np.ndarray, level: int, packed: bool) -> None:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    content = header + array.tobytes()
    file = IdxFile(hashlib.sha256(content).hexdigest(), array.shape)
    source = IdxSource("any", {"images": file}, ())
    stream = io.BytesIO(gzip.compress(content, level) if packed else content)
    found, problem = mnist.check_content(stream, source, "images")
    assert problem == ""
    assert np.array_equal(mnist.parse_idx(found, file), array)
    assert mnist.parse_idx(found, file).shape == array.shape


@pytest.mark.promise("R4")
@quick
@given(junk=JUNK)
def test_any_bytes_are_no_idx_file(junk: bytes) -> None:
    file = IdxFile(hashlib.sha256(b"the right ones").hexdigest(), (3, 2))
    content, problem = mnist.check_content(io.BytesIO(junk), IdxSource("any", {"images": file}, ()), "images")
    assert problem.startswith(f"expected SHA-256 {file.sha256}, found ")
    with pytest.raises(ValueError, match=r"expected unsigned bytes of shape \(3, 2\)"):
        mnist.parse_idx(content, file)


@pytest.mark.promise("R4")
@quick
@given(images=arrays.arrays(np.uint8, st.tuples(st.integers(1, 4), st.just(RECORD))), cut=st.integers(0, 4))
def test_cifar_records_come_back_in_any_packing(images: np.ndarray, cut: int) -> None:
    images[:, 0] %= 10
    source = CifarArchive("any", "folder", "archive", len(images), {}, ())
    records = cifar.read_records(io.BytesIO(images.tobytes()), images.nbytes, source)
    assert np.array_equal(records, images)
    parts = [part for part in (records[:cut], records[cut:]) if len(part)]
    whole = cifar.join_records(parts[::-1], CifarSplit((), cifar_samples.digest_of(images)))
    assert sorted(map(bytes, whole)) == sorted(map(bytes, images))


@pytest.mark.promise("R4")
@quick
@given(junk=JUNK)
def test_any_bytes_are_no_cifar_file_or_archive(junk: bytes) -> None:
    with pytest.raises(ValueError, match=r"^expected "):
        cifar.read_records(io.BytesIO(junk), len(junk), cifar_samples.LOCAL)
    with pytest.raises(ValueError, match="expected "):
        cifar.read_archive(io.BytesIO(junk), cifar_samples.LOCAL)


KINDS = st.one_of(
    arrays.integer_dtypes(endianness="="), arrays.floating_dtypes(endianness="="), arrays.boolean_dtypes(),
    arrays.unicode_string_dtypes(endianness="=", min_len=1, max_len=5),
)  # fmt: skip
SHAPES = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
FIELDS = st.from_regex(r"[a-z][a-z0-9_. ]{0,12}", fullmatch=True)


@pytest.mark.promise("R4")
@quick
@given(
    values=st.dictionaries(FIELDS, KINDS.flatmap(lambda kind: arrays.arrays(kind, SHAPES)), max_size=4),
    about=st.dictionaries(NAMES, VALUES, max_size=4),
    name=NAMES,
)
def test_a_record_of_any_arrays_comes_back(tmp_path: Path, values: dict, about: dict, name: str) -> None:
    Record(name, values, about, {"seed": 1}).save(tmp_path / "r.npz")
    found = Record.load(tmp_path / "r.npz")
    assert (found.name, found.settings, found.provenance) == (name, about, {"seed": 1})
    assert set(found.values) == set(values)
    for key, value in values.items():
        assert (found.values[key].dtype, found.values[key].shape) == (value.dtype, value.shape)
        assert found.values[key].tobytes() == value.tobytes()


@pytest.mark.promise("R4")
@quick
@given(junk=JUNK)
def test_any_bytes_are_no_record(tmp_path: Path, junk: bytes) -> None:
    (tmp_path / "r.npz").write_bytes(junk)
    with pytest.raises(ValueError, match=r"r\.npz: damaged, or no record"):
        Record.load(tmp_path / "r.npz")


TENSORS = st.sampled_from([np.float16, np.float32, np.float64, np.int64, np.uint8]).flatmap(
    lambda kind: arrays.arrays(kind, arrays.array_shapes(max_dims=3, max_side=4))
)


@pytest.mark.promise("R4")
@quick
@given(state=st.dictionaries(st.from_regex("[a-z][a-z0-9_]{0,9}", fullmatch=True), TENSORS, min_size=1, max_size=3))
def test_tensors_of_any_shape_come_back(tmp_path: Path, state: dict[str, np.ndarray]) -> None:
    path = tmp_path / "t.safetensors"
    path.write_bytes(safetensors.torch.save({name: torch.from_numpy(value.copy()) for name, value in state.items()}))
    model = torch.nn.Module()
    for name, value in state.items():
        model.register_buffer(f"b_{name}", torch.zeros(value.shape, dtype=torch.from_numpy(value).dtype))
    found = safetensors.torch.load(path.read_bytes())
    model.load_state_dict({f"b_{name}": tensor for name, tensor in found.items()})
    for name, value in state.items():
        assert model.state_dict()[f"b_{name}"].numpy().tobytes() == value.tobytes()


@pytest.mark.promise("R4")
@quick
@given(junk=JUNK)
def test_any_bytes_are_no_weights(tmp_path: Path, junk: bytes) -> None:
    path = tmp_path / "resnet8.safetensors"
    path.write_bytes(junk)
    write_json(tmp_path / DIGESTS, {path.name: sha256_of(path)})
    with pytest.raises(ValueError, match="no checkpoint of this book"):
        load_checkpoint(tmp_path, ResNetDescription(8, "projection"))


@pytest.mark.promise("R4")
@quick
@given(claims=st.lists(st.dictionaries(NAMES, VALUES, max_size=4), max_size=3), indent=st.sampled_from([None, 0, 1, 4]))
def test_an_executed_chapter_comes_back_however_it_is_laid_out(
    tmp_path: Path, claims: list, indent: int | None
) -> None:
    notebook = {"cells": [], "metadata": {"descent": {"claims": claims}}}
    path = tmp_path / "first.ipynb"
    path.write_text(json.dumps(seal(notebook), indent=indent), encoding="utf-8")
    assert read_executed(path)["metadata"]["descent"]["claims"] == claims
    changed = json.loads(path.read_text())
    changed["metadata"]["descent"]["claims"].append({"one": "more"})
    path.write_text(json.dumps(changed))
    with pytest.raises(ValueError, match=r"first\.ipynb is damaged: SHA-256 .*make edition CHAPTER=first"):
        read_executed(path)


@pytest.mark.promise("R4")
@pytest.mark.parametrize("name", ["descent", "sha256"])
def test_an_executed_chapter_without_its_seal_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "first.ipynb"
    whole = json.dumps(seal({"cells": [], "metadata": {"descent": {"claims": []}}}))
    path.write_text(whole.replace(f'"{name}"', '"other"'))
    with pytest.raises(ValueError, match=r"first\.ipynb is damaged: SHA-256 .*, expected None"):
        read_executed(path)


@pytest.mark.promise("R4")
@quick
@given(junk=JUNK | st.recursive(VALUES, lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(
    ["cells", "metadata", "descent", "sha256"]), inner)).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_any_bytes_are_no_executed_chapter(tmp_path: Path, junk: bytes) -> None:
    path = tmp_path / "first.ipynb"
    path.write_bytes(junk)
    with contextlib.suppress(ValueError):
        found = read_executed(path)
        assert isinstance(found["cells"], list)
        assert isinstance(found["metadata"], dict)
        return
    with pytest.raises(ValueError, match=re.escape(f"{path} is damaged")):
        read_executed(path)
