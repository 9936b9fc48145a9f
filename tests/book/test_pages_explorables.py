"""Explorables on their way from an output to a page, and the figure that opens one."""

from types import SimpleNamespace

import pytest
from docutils import nodes
from docutils.utils import new_document

from descent.plots import EXPLORABLE
from descent_book.pages import explorables
from descent_book.pages.explorables import Explorable, ExplorableRenderer, add_still_pictures, move_to_the_opening

APP = SimpleNamespace(env=SimpleNamespace(docname="page"))


def test_the_library_and_the_pages_mean_the_same_output() -> None:
    assert explorables.EXPLORABLE == EXPLORABLE


@pytest.mark.parametrize(("mime", "inline"), [("image/png", False), (EXPLORABLE, True)])
def test_other_outputs_are_left_to_other_renderers(mime: str, inline: bool) -> None:
    assert ExplorableRenderer.handle_mime(None, SimpleNamespace(mime_type=mime, content={}), inline) is None


@pytest.mark.parametrize("content", [{"kind": "threshold"}, '{"kind": "threshold"}'])
def test_an_output_becomes_a_node_with_its_data(content: object) -> None:
    (node,) = ExplorableRenderer.handle_mime(None, SimpleNamespace(mime_type=EXPLORABLE, content=content), False)
    assert node["data"] == '{"kind":"threshold"}'


def bundle(alt: str) -> tuple[nodes.document, Explorable]:
    document, explorable = new_document("page"), Explorable("", data="{}", alt="")
    holder = nodes.container(nb_element="mime_bundle")
    holder += [nodes.container("", explorable), nodes.container("", nodes.image(uri="a.png", alt=alt))]
    document += holder
    return document, explorable


def test_an_explorable_has_the_picture_of_its_output_and_its_description() -> None:
    document, explorable = bundle("Curves that fall.")
    add_still_pictures(APP, document)
    assert explorable["alt"] == "Curves that fall."
    assert [image["uri"] for image in explorable.findall(nodes.image)] == ["a.png"]


def test_an_explorable_without_a_described_picture_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    said = []
    monkeypatch.setattr(explorables, "_LOG", SimpleNamespace(warning=lambda text, **_: said.append(text)))
    add_still_pictures(APP, bundle("")[0])
    assert said == ["an explorable has no picture with a description beside it"]


def test_the_figure_of_the_tagged_cell_opens_the_page_and_leaves_its_cell() -> None:
    document, section = new_document("page"), nodes.section(ids=["page"])
    document += section
    figure = nodes.figure("", nodes.image(uri="a.png"))
    tagged = nodes.container("", nodes.container("", figure), classes=["cell", "tag_opening"])
    other = nodes.container("", nodes.figure("", nodes.image(uri="b.png")), classes=["cell"])
    paragraphs = [nodes.paragraph(text=text) for text in ("question", "source", "answer")]
    section += [nodes.title(text="Title"), *paragraphs, nodes.section("", other, tagged)]
    move_to_the_opening(APP, document)
    assert [type(node).__name__ for node in section.children[:5]] == [
        "title",
        "paragraph",
        "paragraph",
        "figure",
        "paragraph",
    ]
    assert section.children[3] is figure
    assert list(tagged.findall(nodes.figure)) == []
    assert len(list(other.findall(nodes.figure))) == 1


def test_a_page_without_such_a_cell_stays_as_it_is() -> None:
    document = new_document("page")
    document += nodes.section("", nodes.title(text="Title"), nodes.paragraph(text="question"))
    before = document.pformat()
    move_to_the_opening(APP, document)
    assert document.pformat() == before
