"""The reference of the library: what it says comes from docstrings and doors, its links from the notebooks' code."""

import doctest
import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import unescape
from importlib import import_module
from pathlib import Path

import pytest
from book_samples import build, cell, notebook, small_book
from bs4 import BeautifulSoup
from nbformat import NotebookNode, v4

from descent_book.pages import api
from descent_book.run.project import pages

ROOT = Path(__file__).parents[2]
GRAM = "descent.spectra.gram_matrix"


def test_every_room_has_a_page_in_the_contents() -> None:
    described = {f"api_{room}" for room in api.rooms()}
    assert len(described) >= 10
    assert described == {page for page in pages(ROOT) if page.startswith("api_")}
    for room in api.rooms():
        text = (ROOT / "book" / f"api_{room}.md").read_text()
        assert text == f"# descent.{room}\n\n```{{room}} {room}\n```\n"


def test_a_name_stands_at_one_door_only() -> None:
    assert len(api.public_names()) == sum(len(names) for names in api.rooms().values())


KNOWN = {"gram_matrix": GRAM, "gram": GRAM, "spectra": "descent.spectra"}


@pytest.mark.parametrize(
    ("source", "places"),
    [
        ("G = gram_matrix(rows)", [(1, 4)]),
        ("gram(rows)", [(1, 0)]),
        ("spectra.gram_matrix(rows)", [(1, 8)]),
        ("x = 1\nmap(gram_matrix, many)", [(2, 4)]),
        ('"Größe", gram_matrix', [(1, 11)]),  # bytes, not characters
        ("%time\ngram_matrix", [(2, 0)]),
        ("def f(gram_matrix):\n    return gram_matrix\n", []),
        ("[gram_matrix for gram_matrix in many]", []),
        ("lambda gram_matrix: gram_matrix(1)", []),
        ("def f(rows):\n    return gram_matrix(rows)\n", [(2, 11)]),
        ("f(gram_matrix=1)", []),
        ("other.gram_matrix(1)", []),
        ("gram_matrix = 2", []),
        ("not python at all", []),
    ],
)
def test_uses_are_found_where_they_are(source: str, places: Sequence[tuple[int, int]]) -> None:
    found = api.uses(source, KNOWN)
    assert [(use.line, use.column) for use in found] == list(places)
    assert all(use.path == GRAM and not use.imported for use in found)


@pytest.mark.parametrize(
    ("source", "known"),
    [
        ("from descent.spectra import gram_matrix", {"gram_matrix": GRAM}),
        ("from descent.spectra import gram_matrix as g", {"g": GRAM}),
        ("from descent import spectra", {"spectra": "descent.spectra"}),
        ("import descent.spectra as s", {"s": "descent.spectra"}),
        ("import descent.spectra", {"descent": "descent"}),
        ("from numpy import linalg\nimport torch.nn as nn", {}),
    ],
)
def test_imports_give_local_names(source: str, known: dict[str, str]) -> None:
    assert api.imported_names([source]) == known


def test_an_import_is_a_link_and_no_use() -> None:
    (use,) = api.uses("from descent.spectra import gram_matrix", KNOWN)
    assert (use.imported, use.line, use.column) == (True, 1, 28)


def test_only_the_word_at_the_place_becomes_a_link_and_no_character_is_lost() -> None:
    code = '<span class="s">&quot;Größe&quot;</span>, gram_matrix &lt; <b>gram_matrix</b>\ngram_matrix'
    before = unescape(re.sub(r"<[^>]*>", "", code))
    linked = api.with_links(code, {(1, 11): "first", (2, 0): "second", (1, 0): None})
    assert re.findall(r'<a class="api" href="(\w+)">gram_matrix</a>', linked) == ["first", "second"]
    assert unescape(re.sub(r"<[^>]*>", "", linked)) == before


def sample(rows: "Matrix", how: "Callable[[int], str]" = inspect.getdoc, size: int = 3) -> "Matrix | None":  # noqa: F821
    """A function whose module gives a type a name."""
    return None


def test_a_signature_has_the_types_that_the_source_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspect, "getsource", lambda module: "Matrix = NDArray[np.float64]\nLIMIT = 2\n")
    arguments = "(rows: NDArray[np.float64], how: Callable[[int], str] = getdoc, size: int = 3)"
    written = api.write_signature(None, "function", "sample", sample, None, "", "")  # type: ignore[arg-type]
    assert written == (arguments, "NDArray[np.float64] | None")


@dataclass
class Sample:
    """Fields whose defaults `repr` does not show as they are typed."""

    folder: Path = Path("records")
    kind: type = Path
    names: list[str] = field(default_factory=list)
    values: dict[str, int] = field(default_factory=dict)
    made: str = field(default_factory=sample)  # type: ignore[arg-type]
    none: int | None = None


def test_a_default_is_shown_as_a_reader_types_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspect, "getsource", lambda module: "")
    signature, _ = api.write_signature(None, "class", "Sample", Sample, None, "", "")  # type: ignore[arg-type, misc]
    defaults = re.findall(r" = ([^,)]+\)?)(?:, |\)$)", signature)
    assert defaults == ["'records'", "Path", "[]", "{}", "sample()", "None"], signature


@pytest.mark.parametrize(
    ("docstring", "heading"),
    [
        ("Loss surfaces: the values on a grid.", "Loss surfaces"),
        ("Paths that optimisers of `torch.optim` take.\n\nMore: words.", "Paths that optimisers of `torch.optim` take"),
        ("The networks of He et al. 2016, with\nshortcuts.", "The networks of He et al. 2016"),
        ("One sentence. Another", "One sentence"),
    ],
)
def test_a_modules_heading_is_how_its_docstring_begins(docstring: str, heading: str) -> None:
    assert api.heading_of(docstring) == heading


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("of `rows`", "of ``rows``"),
        ("see `gram_matrix`", f"see :py:obj:`gram_matrix <{GRAM}>`"),
        ("see `gram_matrix()`", f"see :py:obj:`gram_matrix <{GRAM}>`"),
        (f"see `{GRAM}`", f"see :py:obj:`gram_matrix <{GRAM}>`"),
        ("see `descent.spectra.singular_values.gram_matrix`", f"see :py:obj:`gram_matrix <{GRAM}>`"),
        ("``kept`` and :py:obj:`kept`", "``kept`` and :py:obj:`kept`"),
        ("the norm |x| of `|x|`", r"the norm \|x\| of ``|x|``"),
        ("`(n,\n    P)`", "``(n, P)``"),
    ],
)
def test_backticks_become_code_or_links(text: str, written: str) -> None:
    assert api._literal(text) == written


IMPORT = "from descent.spectra import gram_matrix, stable_rank"


def calling(*sources: str) -> NotebookNode:
    chapter = notebook("count")
    chapter.cells += [cell(code=IMPORT, tags=["imports"]), *(cell(code=source) for source in sources)]
    chapter.cells.append(cell(code="gram_matrix(hidden)", tags=["remove-input"]))
    chapter.cells.append(v4.new_markdown_cell("`stable_rank` in words is no use."))
    return chapter


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BeautifulSoup]:
    def change(source: Path, chapter: NotebookNode) -> None:
        chapter.cells = calling("first = 1", "G = gram_matrix(rows)", "gram_matrix(other)").cells
        (source / "api_spectra.md").write_text("# descent.spectra\n\n```{room} spectra\n```\n")
        contents = source / "_toc.yml"
        contents.write_text(f"{contents.read_text()}  - file: api_spectra\n")

    built = build(small_book(tmp_path_factory.mktemp("api"), change))
    assert built.code == 0, built.log
    return {path.stem: BeautifulSoup(path.read_text(), "html.parser") for path in built.html.glob("*.html")}


def test_every_name_of_a_room_is_described_with_its_file(book: dict[str, BeautifulSoup]) -> None:
    page = book["api_spectra"]
    headings = [heading.get_text() for heading in page.select("article h2")]
    for module in set(api.rooms()["spectra"].values()):
        docstring = inspect.getdoc(import_module(f"descent.spectra.{module}")) or ""
        assert any(heading.startswith(api.heading_of(docstring)) for heading in headings), (module, headings)
    for name, module in api.rooms()["spectra"].items():
        entry = page.find("dt", id=f"descent.spectra.{name}")
        assert entry is not None, name
        said = entry.find_parent("dl").select_one("p.used-in").get_text()
        assert said.startswith(f"Defined in lib/descent/spectra/{module}.py")
        summary = [link["href"] for link in page.select("table.autosummary a")]
        assert f"#descent.spectra.{name}" in summary
    entry = page.find("dt", id=GRAM)
    assert "rows: ArrayLike" in entry.get_text()
    assert "Raises" in entry.find_parent("dl").get_text()


def test_code_leads_to_the_reference_and_that_to_the_first_cell(book: dict[str, BeautifulSoup]) -> None:
    chapter, page = book["gradient_svd"], book["api_spectra"]
    links = [(link["href"], link.get_text()) for link in chapter.select("div.cell_input a.api")]
    assert links == [(f"api_spectra.html#{path}", path.split(".")[-1]) for path in
                     (GRAM, "descent.spectra.stable_rank", GRAM, GRAM)]  # fmt: skip
    (user,) = page.find("dt", id=GRAM).find_parent("dl").select("p.used-in a")[1:]
    file, _, anchor = user["href"].partition("#")
    assert (file, user.get_text()) == ("gradient_svd.html", "A chapter")
    assert "G = gram_matrix(rows)" in chapter.find(id=anchor).get_text()
    unused = page.find("dt", id="descent.spectra.stable_rank").find_parent("dl").select_one("p.used-in")
    assert "Used in" not in unused.get_text()


def test_a_room_that_is_not_there_fails_the_build(tmp_path: Path) -> None:
    def change(source: Path, chapter: NotebookNode) -> None:
        (source / "intro.md").write_text("# Start\n\n```{room} cellar\n```\n")

    built = build(small_book(tmp_path, change))
    assert built.code != 0
    assert "room 'cellar': expected one of curvature, data" in built.log


def examples() -> list[tuple[str, object]]:
    """The public names whose docstrings have an example, with what they stand for."""
    parts = [path.rpartition(".") for path in api.public_names().values()]
    named = {f"{room}.{name}": getattr(import_module(room), name) for room, _, name in parts}
    return [(path, thing) for path, thing in named.items() if ">>>" in (inspect.getdoc(thing) or "")]


@pytest.mark.parametrize(("path", "thing"), examples(), ids=lambda each: each if isinstance(each, str) else "")
def test_an_example_runs_as_the_page_shows_it(path: str, thing: object) -> None:
    """In an empty namespace: the imports that it needs stand above it."""
    lines = (inspect.getdoc(thing) or "").splitlines()
    api.write_docstring(None, "function", path, thing, None, lines)  # type: ignore[arg-type]
    shown = doctest.DocTestParser().get_doctest("\n".join(lines), {}, path, None, 0)
    said: list[str] = []
    assert doctest.DocTestRunner(verbose=False).run(shown, out=said.append).failed == 0, "".join(said)
