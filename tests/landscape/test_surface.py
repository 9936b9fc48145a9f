from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from descent.landscape import surface
from descent.landscape.surface import LossSurface, export_surface
from descent.repro.records import Record

ALPHA, BETA = np.linspace(-1, 1, 5), np.linspace(0, 3, 7)


def planes(alpha: np.ndarray = ALPHA, beta: np.ndarray = BETA) -> LossSurface:
    a, b = np.meshgrid(alpha, beta, indexing="ij")
    loss = 100 + 10 * a + b  # every value another: a wrong order shows
    loss[1, 2], loss[3, 4], loss[0, 0] = np.nan, np.inf, 2.5
    return LossSurface(alpha, beta, {"loss": loss, "error": a - 7 * b}, 20, "bfloat16")


def read_vtk(path: Path) -> tuple[ElementTree.Element, dict[str, np.ndarray]]:
    """The XML of a VTK file with raw appended data, and each of its arrays, flat, first axis fastest as VTK has it."""
    head, _, tail = path.read_bytes().partition(b'encoding="raw">\n_')
    root = ElementTree.fromstring(head + b'encoding="raw"/></VTKFile>')
    assert (root.get("byte_order"), root.get("header_type")) == ("LittleEndian", "UInt64")
    arrays = {}
    for array in root.iter("DataArray"):
        assert array.get("type") == "Float64"
        offset = int(array.get("offset", ""))
        size = int(np.frombuffer(tail, "<u8", 1, offset)[0])
        found = np.frombuffer(tail, "<f8", size // 8, offset + 8)
        components = int(array.get("NumberOfComponents", ""))
        arrays[array.get("Name", "")] = found if components == 1 else found.reshape(-1, components)
    return root, arrays


def on_grid(flat: np.ndarray) -> np.ndarray:
    return flat.reshape(7, 5).T  # alpha is VTK's x, which runs fastest


def test_a_surface_comes_back_from_an_npz(tmp_path: Path) -> None:
    written, found = export_surface(planes(), tmp_path / "plane.npz"), planes()
    assert written == tmp_path / "plane.npz"
    record = Record.load(written)
    assert record.name == "plane"
    assert "torch" in record.provenance
    back = LossSurface.of(record)
    assert (back.images, back.precision) == (20, "bfloat16")
    for name in ("loss", "error"):
        np.testing.assert_array_equal(back.values[name], found.values[name])
    np.testing.assert_array_equal(back.alpha, ALPHA)
    np.testing.assert_array_equal(back.beta, BETA)


def test_an_image_says_where_its_values_are(tmp_path: Path) -> None:
    root, arrays = read_vtk(export_surface(planes(), str(tmp_path / "plane.vti")))
    (image,) = root.iter("ImageData")
    assert root.get("type") == "ImageData"
    assert image.get("WholeExtent") == "0 4 0 6 0 0"
    assert [float(x) for x in image.get("Origin", "").split()] == [-1, 0, 0]
    assert [float(x) for x in image.get("Spacing", "").split()] == [0.5, 0.5, 1]
    (points,) = root.iter("PointData")
    assert {array.get("Name") for array in points} == {"loss", "error"}
    for name, values in planes().values.items():
        np.testing.assert_array_equal(on_grid(arrays[name]), values)  # NaN and infinity are kept


@pytest.mark.parametrize("clip", [10.0, 105.0])
def test_a_structured_grid_stands_on_its_heights(clip: float, tmp_path: Path) -> None:
    alpha = np.array([-1.0, -0.5, 0.0, 2.0, 5.0])  # unequal steps
    found = planes(alpha)
    root, arrays = read_vtk(export_surface(found, tmp_path / "plane.vts", clip))
    (mesh,) = root.iter("StructuredGrid")
    assert mesh.get("WholeExtent") == "0 4 0 6 0 0"
    (points,) = root.iter("Points")
    x, y, z = arrays[points[0].get("Name", "")].T
    a, b = np.meshgrid(alpha, BETA, indexing="ij")
    np.testing.assert_array_equal(on_grid(x), a)
    np.testing.assert_array_equal(on_grid(y), b)
    height = np.log1p(np.where(np.isnan(found.loss), clip, np.minimum(found.loss, clip)))
    np.testing.assert_array_equal(on_grid(z), height)
    assert on_grid(z)[0, 0] == np.log(3.5)
    assert on_grid(z)[1, 2] == on_grid(z)[3, 4] == np.log1p(clip)
    for name, values in found.values.items():
        np.testing.assert_array_equal(on_grid(arrays[name]), values)


@pytest.mark.parametrize("name", ["plane.vtk", "plane", "plane.npz.gz"])
def test_other_formats_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{name}: expected a name that ends in .npz, .vti, .vts"):
        export_surface(planes(), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_unequal_steps_are_no_image_and_the_old_file_stays(tmp_path: Path) -> None:
    path = export_surface(planes(), tmp_path / "plane.vti")
    before = path.read_bytes()
    uneven = np.array([0.0, 1.0, 2.0, 3.0, 4.5, 5.0, 6.0])
    for axes, name in (((ALPHA, uneven), "beta"), ((uneven[:5] * 1e-9, BETA), "alpha"), ((-ALPHA, BETA), "alpha")):
        with pytest.raises(ValueError, match=f"{name} does not rise in equal steps.*expected a .vts or .npz"):
            export_surface(planes(*axes), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", [".vti", ".vts"])
def test_an_error_while_writing_leaves_the_old_file(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = export_surface(planes(), tmp_path / f"plane{suffix}")
    before = path.read_bytes()

    def full(stem: str, *_: object, **__: object) -> None:
        Path(stem + suffix).write_bytes(b"half")
        raise OSError("no space left")

    for name in ("imageToVTK", "gridToVTK"):
        monkeypatch.setattr(surface, name, full)
    with pytest.raises(OSError, match="no space left"):
        export_surface(planes(), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
