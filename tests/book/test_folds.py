"""Cells that show folded code alone, one after another, are one fold; small shares keep a digit."""

from docutils import nodes
from docutils.utils import new_document

from descent_book.pages.claims import _percent
from descent_book.pages.stills import join_folds


def cell(*tags: str, prompt: str = "", output: str = "") -> nodes.container:
    """A cell of a notebook as the page has it: its code, and its output where it has one."""
    classes = ["cell", *(f"tag_{tag}" for tag in tags)]
    node = nodes.container("", nodes.container("", nodes.paragraph("", "code")), classes=classes)
    if output:
        node += nodes.container("", nodes.paragraph("", output))
    if "hide-input" in tags:
        node.attributes |= {"hide_mode": "input", "prompt_show": prompt or "Show code cell {type}", "prompt_hide": "-"}
    return node


def page(*cells: nodes.Node) -> nodes.section:
    document = new_document("page")
    document += nodes.section("", *cells, ids=["page"])
    join_folds(None, document)
    return document[0]


def words(section: nodes.section) -> list[str]:
    return [part.astext() if isinstance(part, nodes.raw) else "cell" for part in section.children]


def test_cells_in_a_row_are_one_fold_by_the_name_of_the_first() -> None:
    section = page(cell("hide-input", prompt="Set-up & more"), cell("hide-input"), nodes.paragraph("", "text"))
    opened, *cells, closed, _ = words(section)
    assert opened.startswith('<div class="cell container"><details class="admonition hide above-input"><summary>')
    assert '<p class="collapsed admonition-title">Set-up &amp; more</p>' in opened
    assert '<p class="expanded admonition-title">Hide these cells</p>' in opened
    assert (cells, closed) == (["cell", "cell"], "</details></div>")
    assert not any("hide_mode" in part for part in section.findall(nodes.container))


def test_the_parameters_of_a_run_lie_in_the_fold_of_the_parameters() -> None:
    run = cell("injected-parameters")
    section = page(cell("hide-input", prompt="Set-up"), run, cell("hide-input"), cell())
    assert [each.startswith("<") for each in words(section)] == [True, False, False, False, True, False]
    alone = page(cell(), cell("injected-parameters"), cell())
    assert words(alone) == ["cell"] * 3


def test_a_cell_with_an_output_is_a_fold_of_its_own() -> None:
    section = page(cell("hide-input", output="a picture"), cell("hide-input"))
    assert words(section) == ["cell", "cell"]
    assert [part["hide_mode"] for part in section.children] == ["input", "input"]


def test_small_shares_keep_a_digit() -> None:
    texts = {0.0: "0 %", 0.002: "0.2 %", -0.0022: "-0.2 %", 0.094: "9.4 %", 0.096: "10 %", 0.68: "68 %", 1.0: "100 %"}
    assert {share: _percent(share) for share in texts} == texts
