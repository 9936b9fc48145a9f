"""The printed book: every page in it, its link shown only where it belongs to the pages, and plain words on a lack."""

import os
import shutil
from pathlib import Path

import pytest
from book_samples import Build, add_cell, build_all, output, small_book, write_page
from click.testing import CliRunner
from nbformat import NotebookNode
from pypdf import PdfReader

from descent_book.pages.build import KEY, PDF, add_printed, key_beside, source_key
from descent_book.pages.figures import PLOTLY
from descent_book.pages.pdf import PrintError, combined, find_chromium, main, print_book, read_book

LINK = f'href="{PDF}"'


def asks(source: Path, chapter: NotebookNode) -> None:
    write_page("```{printed}\n```")(source, chapter)


def has(source: Path, chapter: NotebookNode) -> None:
    asks(source, chapter)
    (source / PDF).write_bytes(b"printed")


def unpictured(source: Path, chapter: NotebookNode) -> None:
    figure = {"data": [{"y": [1, 2]}], "layout": {}}
    add_cell(output(**{PLOTLY.replace("/", "__"): figure, "text__plain": "A bare line"}))(source, chapter)


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Build]]:
    folder = tmp_path_factory.mktemp("printed")
    changes = {"without": asks, "with": has, "unpictured": unpictured}
    sources = {name: small_book(folder / name, change) for name, change in changes.items()}
    return {name: (sources[name], built) for name, built in build_all(sources).items()}


def test_the_link_stands_only_where_there_is_a_printed_book(books: dict[str, tuple[Path, Build]]) -> None:
    for name, shown in (("without", False), ("with", True)):
        built = books[name][1]
        assert built.code == 0, built.log
        assert (LINK in (built.html / "intro.html").read_text()) is shown
        assert (built.html / PDF).is_file() is shown


@pytest.mark.browser
def test_the_print_holds_every_page(books: dict[str, tuple[Path, Build]], tmp_path: Path) -> None:
    if find_chromium() is None:
        if os.environ.get("DESCENT_REQUIRE_BROWSER") == "1":
            pytest.fail("DESCENT_REQUIRE_BROWSER=1, but there is no Chromium on the PATH")
        pytest.skip("there is no Chromium on the PATH")
    source, built = books["without"]
    reader = PdfReader(print_book(built.html, source, tmp_path / PDF))
    texts = [page.extract_text() for page in reader.pages]
    assert len(texts) >= 4  # the title, the contents, two pages
    assert "Anatomy of Descent" in texts[0]
    assert "Published edition" in texts[0]
    assert "Contents" in texts[1]
    whole = "\n".join(texts[2:])
    assert whole.index("Start") < whole.index("A chapter")
    for expected in ("A drawn caption.", "A live caption.", "show()", "save_figure", "reproduced"):
        assert expected in whole
    for number, text in enumerate(texts, 1):
        assert f"· {number}" in text
    assert [mark.title for mark in reader.outline if not isinstance(mark, list)] == ["Contents", "Start", "A chapter"]
    inside = [note.get_object() for page in reader.pages for note in page.get("/Annots", [])]
    assert any("/Dest" in note or note.get("/A", {}).get("/S") == "/GoTo" for note in inside)
    assert [path.name for path in tmp_path.iterdir()] == [PDF]


def test_links_between_pages_stay_within_the_print(books: dict[str, tuple[Path, Build]]) -> None:
    source, built = books["with"]
    text = combined(built.html, read_book(source))
    assert 'href="#gradient_svd--' in text
    assert 'id="gradient_svd--' in text
    assert "<button" not in text
    assert PDF not in text


def test_an_interactive_figure_without_a_picture_is_named(books: dict[str, tuple[Path, Build]]) -> None:
    source, built = books["unpictured"]
    assert built.code == 0, built.log
    with pytest.raises(
        PrintError, match=r"^gradient_svd: no still picture beside the interactive figure: A bare line$"
    ):
        combined(built.html, read_book(source))


def test_a_printed_book_belongs_to_its_pages_alone(tmp_path: Path) -> None:
    source, build = tmp_path / "source", tmp_path / "_build"
    source.mkdir()
    build.mkdir()
    (source / "intro.md").write_text("# One")
    add_printed(build, source)
    assert not (source / PDF).exists()
    assert (source / KEY).read_text() == source_key(source)
    (build / PDF).write_bytes(b"printed")
    key_beside(build).write_text(source_key(source))
    add_printed(build, source)
    assert (source / PDF).read_bytes() == b"printed"
    key = source_key(source)
    assert key == (source / KEY).read_text()  # neither file is part of it
    (source / PDF).unlink()
    (source / "intro.md").write_text("# Two")
    add_printed(build, source)
    assert not (source / PDF).exists()
    assert source_key(source) != key


def project(folder: Path, **keys: str) -> Path:
    folder.joinpath("_toc.yml").write_text("format: jb-book\nroot: intro\n")
    for name, key in keys.items():
        (folder / "_build" / name).mkdir(parents=True)
        (folder / "_build" / name / KEY).write_text(key)
    return folder


@pytest.mark.parametrize(
    ("keys", "options", "said"),
    [
        ({}, [], "there is no book in"),
        ({"html": "a", "source": "b"}, [], "_build/html is older than _build/source"),
        ({"html": "a", "source": "a"}, [], "_config.yml: not found; build the book first"),
    ],
)
def test_what_is_missing_is_said(tmp_path: Path, keys: dict[str, str], options: list[str], said: str) -> None:
    done = CliRunner().invoke(main, ["--root", str(project(tmp_path, **keys)), *options])
    assert done.exit_code == 1
    assert done.output.startswith("not printed: ")
    assert said in done.output


def test_no_browser_is_said_before_anything_is_written(
    books: dict[str, tuple[Path, Build]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, built = books["without"]
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(PrintError, match="no Chromium on the PATH: expected one of chromium, chromium-browser"):
        print_book(built.html, source, tmp_path / PDF)
    with pytest.raises(PrintError, match="--browser /nowhere: no such file"):
        print_book(built.html, source, tmp_path / PDF, "/nowhere")
    assert list(tmp_path.iterdir()) == []
