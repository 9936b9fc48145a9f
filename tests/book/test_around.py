"""The pages around the chapters: cards, gallery, glossary links, figures alone and at full size, heads and footers."""

import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from book_samples import PNG64, ROOT, Build, build_all, cell, output, plotly
from bs4 import BeautifulSoup
from docutils import nodes
from docutils.utils import new_document
from nbformat import NotebookNode, v4, write
from PIL import Image

from descent_book.pages.home import read_cards
from descent_book.pages.meta import citation_line, summary
from descent_book.pages.pictures import Picture, thumbnail
from descent_book.pages.terms import plurals
from descent_book.run.project import chapters

CITATION = (
    "title: A book\nversion: 1.2\nlicense: MIT\nauthors:\n  - name: A. Writer\nrepository-code: https://host.org/book\n"
)
CARDS = """\
second:
  question: What is found in the second chapter?
  answer: It is found that a *word* is there.
  figures: [fig-live]
first:
  question: What is found in the first chapter?
  answer: Nothing much is found there.
  figures: [fig-drawn]
"""
GLOSSARY = """\
# Glossary

```{glossary}
saddle
  A point.

monkey saddle
  Another point.

index
  Of a point, in {doc}`second`.

key frequency
  A number.

unused
  A word.
```
"""
HOME = "# Start\n\n```{cards}\n```\n"
WORDS = """\
# Saddles and an index

A first paragraph speaks of a monkey saddle, of saddles, of $\\sigma_i$, of a saddle and of `saddle`, and of a saddlery;
and it is so long that a description of the page has to end before it ends, somewhere among these many words that
are of no further use.

## A saddle

Key
frequencies, [a saddle](https://host.org) and the index.
"""


def chapter(name: str, *outputs: NotebookNode) -> NotebookNode:
    code = 'save_figure(figure, settings.figures_dir, "dot")'
    about = {"figure": {"caption": f"A {name} caption of $x$. Its second sentence.", "name": f"fig-{name}"}}
    cells = [v4.new_markdown_cell(WORDS), *(cell(each, code=code, mystnb=about) for each in outputs)]
    return v4.new_notebook(cells=cells, metadata={"language_info": {"name": "python"}})


def book(folder: Path, change: Callable[[Path], None] = lambda source: None) -> Path:
    """A book of two chapters, each with one figure, and the pages around them."""
    source = folder / "source"
    source.mkdir(parents=True)
    for path in (ROOT / "_config.yml", ROOT / "book/references.bib"):
        shutil.copy(path, source)
    files = ("second", "first", "gallery", "glossary")
    (source / "_toc.yml").write_text(
        "format: jb-book\nroot: intro\nchapters:\n" + "".join(f"  - file: {name}\n" for name in files)
    )
    for name, text in {"intro.md": HOME, "cards.yml": CARDS, "glossary.md": GLOSSARY, "CITATION.cff": CITATION}.items():
        (source / name).write_text(text)
    (source / "gallery.md").write_text("# Gallery\n\n```{gallery}\n```\n")
    (source / "scorecard.json").write_text(json.dumps({"preset": "quick", "chapters": {}}))
    write(chapter("drawn", output(image__png=PNG64, text__plain="One dot")), source / "first.ipynb")
    write(chapter("live", plotly()), source / "second.ipynb")
    change(source)
    return source


def changed(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(source: Path) -> None:
        text = (source / name).read_text()
        assert old in text
        (source / name).write_text(text.replace(old, new))

    return change


FAULTS = {
    "a figure that is not there": (changed("cards.yml", "fig-drawn", "fig-other"), "expected one of fig-drawn"),
    "a chapter without a card": (changed("cards.yml", CARDS[CARDS.index("first:") :], ""), "differ in 'first'"),
    "a card of another form": (changed("cards.yml", "first chapter?", "first chapter"), "cards.yml: first: question"),
}


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Build]:
    folder = tmp_path_factory.mktemp("around")
    address = changed("_config.yml", "html:\n", "html:\n  baseurl: https://host.org/site/\n")
    sources = {"plain": book(folder / "plain"), "with an address": book(folder / "address", address)}
    sources |= {name: book(folder / name.replace(" ", "_"), change) for name, (change, _) in FAULTS.items()}
    return build_all(sources)


def page(builds: dict[str, Build], name: str, which: str = "plain") -> BeautifulSoup:
    assert builds[which].code == 0, builds[which].log
    return BeautifulSoup((builds[which].html / f"{name}.html").read_text(), "html.parser")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_card_that_does_not_fit_stops_the_build(builds: dict[str, Build], fault: str) -> None:
    assert builds[fault].code != 0
    assert FAULTS[fault][1] in builds[fault].log


def test_a_card_has_picture_question_and_answer_and_leads_to_its_chapter(builds: dict[str, Build]) -> None:
    cards = page(builds, "intro").select(".card-of-chapter")
    assert [card.select_one(".question a")["href"] for card in cards] == ["second.html", "first.html"]
    first = cards[1]
    assert first.select_one(".question").get_text(strip=True) == "What is found in the first chapter?"
    assert first.select_one(".answer").get_text(strip=True) == "Nothing much is found there."
    assert cards[0].select_one(".answer em").get_text() == "word"
    assert first.select_one("a.thumbnail")["href"] == "first.html#fig-drawn"
    image = first.select_one("img")
    assert (image["alt"], image["loading"]) == ("One dot", "lazy")
    assert (builds["plain"].html / image["src"]).is_file()


def test_the_gallery_holds_every_figure_in_the_books_order(builds: dict[str, Build]) -> None:
    figures = page(builds, "gallery").select(".gallery-figure")
    assert [figure.select_one("a")["href"] for figure in figures] == ["second.html#fig-live", "first.html#fig-drawn"]
    assert [figure.select_one("img")["alt"] for figure in figures] == ["A path that winds upwards", "One dot"]
    assert [" ".join(figure.select_one(".gallery-title").get_text().split()) for figure in figures] == [
        r"A live caption of \(x\)",
        r"A drawn caption of \(x\)",
    ]
    assert all("MIT licence" in figure.get_text() for figure in figures)
    for name in ("first", "second"):
        anchors = {tag["id"] for tag in page(builds, name).select("[id]")}
        assert anchors & {"fig-live", "fig-drawn"}


def test_the_first_use_of_a_term_leads_to_the_glossary(builds: dict[str, Build]) -> None:
    """Whole words, in the plural too, outside of headings, code, formulas and links; an index in one chapter only."""
    terms = {
        name: [(" ".join(a.get_text().split()), a["href"]) for a in page(builds, name).select("a:has(> span.term)")]
        for name in ("first", "second", "glossary", "intro")
    }
    common = [
        ("monkey saddle", "glossary.html#term-monkey-saddle"),
        ("saddles", "glossary.html#term-saddle"),
        ("Key frequencies", "glossary.html#term-key-frequency"),
    ]
    assert terms["first"] == common
    assert terms["second"] == [*common, ("index", "glossary.html#term-index")]
    assert terms["glossary"] == terms["intro"] == []
    anchors = {tag["id"] for tag in page(builds, "glossary").select("[id]")}
    assert {href.partition("#")[2] for _, href in terms["second"]} <= anchors


@pytest.mark.parametrize(
    ("name", "plural"),
    [("digon", "digons"), ("Gram matrix", "Gram matrices"), ("index", "indices"), ("key frequency", "key frequencies"),
     ("excluded loss", "excluded losses")],
)  # fmt: skip
def test_plurals(name: str, plural: str) -> None:
    assert list(plurals(name)) == [name, plural]


def test_a_picture_opens_at_full_size_and_says_what_draws_it(builds: dict[str, Build]) -> None:
    text = page(builds, "first")
    link = text.select_one("a.full-size:has(> img)")
    assert link["href"] == link.img["src"]
    assert (builds["plain"].html / link["href"]).is_file()
    live = page(builds, "second").select_one("div.interactive")
    for node, file in ((link, "first"), (live, "second")):
        assert (node["data-source"], node["data-kept-as"]) == (f"notebooks/{file}.ipynb", "dot.png")
    assert "Drawn by" not in text.get_text()


def test_an_interactive_figure_stands_alone_beside_the_pages(builds: dict[str, Build]) -> None:
    link = page(builds, "second").select_one("p.open-alone a")
    assert link["href"] == "_figures/fig-live.html"
    file = builds["plain"].html / link["href"]
    alone = BeautifulSoup(file.read_text(), "html.parser")
    assert alone.title.get_text() == "A live caption of x"
    assert alone.select_one("div.interactive")["aria-label"] == "A path that winds upwards"
    loaded = [tag.get("src") or tag.get("href") for tag in alone.select("script, link")]
    assert len(loaded) == 5
    assert [name for name in loaded if not (file.parent / name).is_file()] == []
    assert page(builds, "first").select("p.open-alone") == []


def test_the_head_describes_each_page(builds: dict[str, Build]) -> None:
    head = page(builds, "first").head
    said = {tag.get("name") or tag["property"]: tag["content"] for tag in head.select("meta[property], meta[name]")}
    assert said["description"] == said["og:description"]
    assert said["description"].startswith("A first paragraph speaks of a monkey saddle, of saddles, of sigma_i, of a")
    assert said["description"].endswith("…")
    assert len(said["description"]) <= 201
    assert said["og:title"] == "Saddles and an index"
    assert (said["og:type"], said["og:site_name"]) == ("article", "Anatomy of Descent")
    assert "og:url" not in said, "no address is made up"
    assert (builds["plain"].html / said["og:image"]).is_file()
    assert page(builds, "intro").select_one('meta[property="og:type"]')["content"] == "website"


def test_addresses_are_absolute_where_the_site_has_one(builds: dict[str, Build]) -> None:
    head = page(builds, "first", "with an address").head
    said = {tag["property"]: tag["content"] for tag in head.select("meta[property]")}
    assert said["og:url"] == "https://host.org/site/first.html"
    assert said["og:image"] == "https://host.org/site/_figures/first-fig-drawn.png"


def test_every_page_states_licence_version_and_how_to_cite(builds: dict[str, Build]) -> None:
    for name in ("intro", "first", "glossary"):
        footer = page(builds, name).select_one("footer p.licence")
        assert " ".join(footer.get_text().split()) == (
            "A book, version 1.2. Text, code and figures: MIT licence. "
            "To cite: A. Writer (2026). A book (version 1.2). https://host.org/book"
        )
        assert re.fullmatch(r"https://host\.org/book/blob/v[\d.]+/LICENSE", footer.a["href"])


def test_names_in_two_parts_are_cited() -> None:
    citation = {"title": "T", "version": 1, "license": "MIT", "authors": [{"given-names": "Ada", "family-names": "L."}]}
    line = citation_line(citation, "2026", "main")
    assert "Ada L. (2026). T (version 1)." in line
    assert "href" not in line


def test_a_page_without_words_has_no_description() -> None:
    document = new_document("empty")
    document += nodes.paragraph(text="Too short.")
    assert summary(document) == ""


@pytest.mark.parametrize(
    ("caption", "title"),
    [
        ("One. Two.", "One"),
        ("By Li et al. (2018), of 0.5 nats. $x$ is left.", "By Li et al. (2018), of 0.5 nats"),
        ("", ""),
    ],
)
def test_the_title_of_a_figure_is_its_captions_first_sentence(caption: str, title: str) -> None:
    assert Picture("chapter", "fig-x", caption, "", b"").title == title


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_a_thumbnail_keeps_its_shape_on_white_and_is_never_larger(mode: str) -> None:
    for size, expected in (((1000, 500), (480, 240)), ((100, 40), (100, 40))):
        stream = io.BytesIO()
        Image.new(mode, size, 0).save(stream, "PNG")
        with Image.open(io.BytesIO(thumbnail(stream.getvalue(), 480))) as image:
            assert image.size == expected
            assert image.convert("RGB").getpixel((5, 5)) == ((255, 255, 255) if mode == "RGBA" else (0, 0, 0))


def test_every_chapter_has_a_card_that_fits_the_published_edition() -> None:
    cards = read_cards(ROOT / "book/cards.yml")
    assert set(cards) == set(chapters(ROOT))
    for name, card in cards.items():
        cells = json.loads((ROOT / "book" / f"{name}.ipynb").read_text())["cells"]
        assert {each["metadata"].get("mystnb", {}).get("figure", {}).get("name") for each in cells} & {*card.figures}
        assert "{claim}`" in card.answer, "an answer has a number of the run"
