"""One address: `_config.yml` states it, and every badge, link and setup cell agrees."""

import json
import re
import shutil
from pathlib import Path

import pytest

from descent_book.run import address

ROOT = Path(__file__).parents[2]
ADDRESS = address.configured_address(ROOT)
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
OTHER = "https://github.com/someone/another.book"
SLUG = re.compile(r"(?:colab\.research\.google\.com/github|github\.com)/([\w-]+/[\w.-]+?)(?:\.git)?(?=[/)@\"'\s]|$)")


def cells(path: Path) -> list[dict]:
    return json.loads(path.read_text())["cells"]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The stamped files alone, with a README that has a link of each form."""
    shutil.copy(ROOT / "_config.yml", tmp_path)
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    badge = address.colab_badge(ADDRESS, "gradient_svd")
    kept = f"{ADDRESS}-fork and https://github.com/torch/torch"
    (tmp_path / "README.md").write_text(f"{badge}\n[code]({ADDRESS})\ngit clone {ADDRESS}.git\n{kept}\n")
    return tmp_path


def test_there_is_a_chapter_to_check() -> None:
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_chapter_agrees_with_config(path: Path) -> None:
    setup = [cell for cell in cells(path) if "setup" in cell["metadata"].get("tags", [])]
    assert ["".join(cell["source"]) for cell in setup] == [address.setup_source(ADDRESS)]
    assert address.colab_link(ADDRESS, path.stem) in "".join(cells(path)[0]["source"])


def test_repository_is_stamped(copy: Path) -> None:
    """Nothing to change: every place agrees."""
    assert address.stamp(copy) == []


@pytest.mark.parametrize("page", [page for page in address.PAGES if (ROOT / page).is_file()])
def test_page_names_no_other_address_of_the_book(page: str) -> None:
    name = ADDRESS.rsplit("/", 1)[1]
    slugs = {slug for slug in SLUG.findall((ROOT / page).read_text()) if slug.endswith("/" + name) or "OWNER" in slug}
    assert slugs <= {ADDRESS.removeprefix("https://github.com/")}


def test_new_address_reaches_every_place(copy: Path) -> None:
    changed = address.stamp(copy, OTHER + ".git")
    assert set(changed) == {Path("README.md"), Path("_config.yml"), *(path.relative_to(ROOT) for path in NOTEBOOKS)}
    assert address.configured_address(copy) == OTHER
    for path in (copy / "notebooks").glob("*.ipynb"):
        assert "someone/another.book" in path.read_text()
        assert ADDRESS not in path.read_text()
    readme = (copy / "README.md").read_text()
    assert address.colab_badge(OTHER, "gradient_svd") in readme
    assert f"git clone {OTHER}.git" in readme
    assert f"{ADDRESS}-fork and https://github.com/torch/torch" in readme
    assert address.stamp(copy) == []


def test_there_and_back_restores_every_byte(copy: Path) -> None:
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    address.stamp(copy, OTHER)
    address.stamp(copy, ADDRESS)
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_mends_a_setup_cell_and_adds_the_link(copy: Path) -> None:
    path = next((copy / "notebooks").glob("*.ipynb"))
    notebook = json.loads(path.read_text())
    notebook["cells"][0]["source"] = "# A title"
    next(cell for cell in notebook["cells"] if "setup" in cell["metadata"].get("tags", []))["source"] = ["import os"]
    path.write_text(json.dumps(notebook))
    assert address.stamp(copy) == [path.relative_to(copy)]
    assert "".join(cells(path)[0]["source"]) == "# A title\n\n" + address.colab_link(ADDRESS, path.stem)
    assert address.stamp(copy) == []


@pytest.mark.parametrize(
    "url", ["github.com/a/b", "https://gitlab.com/a/b", "https://github.com/a", "https://github.com/a/b c"]
)
def test_bad_address_is_refused_before_any_change(
    url: str, copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    monkeypatch.chdir(copy)
    assert address.main([url]) == 2
    assert capsys.readouterr().err == f"descent_book.run.address: url={url!r}: expected https://github.com/OWNER/REPO\n"
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_notebook_without_setup_cell_is_refused(copy: Path) -> None:
    path = next((copy / "notebooks").glob("*.ipynb"))
    notebook = json.loads(path.read_text())
    notebook["cells"] = [cell for cell in notebook["cells"] if "setup" not in cell["metadata"].get("tags", [])]
    path.write_text(json.dumps(notebook))
    with pytest.raises(ValueError, match=f"{path.stem}: 0 cells are tagged `setup`; expected one"):
        address.stamp(copy, OTHER)
    assert address.configured_address(copy) == ADDRESS


def test_setup_cell_does_nothing_outside_colab() -> None:
    """Executed as IPython would: its one branch is not taken."""
    from IPython.core.inputtransformer2 import TransformerManager

    python = TransformerManager().transform_cell(address.setup_source(ADDRESS))
    exec(compile(python, "setup", "exec"), {})  # `get_ipython` is not defined, so a taken branch would raise


def test_setup_cell_asks_for_nothing_more() -> None:
    source = address.setup_source(ADDRESS)
    assert "--no-deps" in source
    for word in ("drive", "chdir", "sys.path", "torch==", "git clone"):
        assert word not in source
