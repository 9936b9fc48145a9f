import json
import shutil
import subprocess
from pathlib import Path

import pytest
from nbformat import write, writes
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from small_project import edition, read, write_project

from descent.repro.files import write_json
from descent_book.pages.build import BuildError, assemble, build, intro_picture
from descent_book.run.notebook import seal
from descent_book.run.project import INTRODUCTION

CONFIG = 'title: A book\nexecute: {execute_notebooks: "off"}\nbibtex_bibfiles: [references.bib]\n'
DATA = {"scorecard": {"preset": "quick", "chapters": {}}, "parameters": {}}


@pytest.fixture
def project(tmp_path) -> Path:
    root = write_project(tmp_path / "p", first="1")
    (root / "_config.yml").write_text(CONFIG)
    (root / "book" / "references.bib").write_text("@misc{known, title={T}, author={A}, year={2022}}\n")
    (root / "book" / "images").mkdir()
    (root / "book" / "images" / "intro.png").write_bytes(b"picture")
    executed = root / "_build/editions/quick/first.ipynb"
    executed.parent.mkdir(parents=True)
    noted = {"claims": [], "seconds": 1.0, "provenance": {}}
    notebook = new_notebook(cells=[new_markdown_cell("# First\n\nWords.")], metadata={"descent": noted})
    write_json(executed, seal(json.loads(writes(notebook))))
    return root


def test_the_source_holds_everything_and_nothing_of_the_edition_before(project):
    stale = project / "_build/source/stale.md"
    stale.parent.mkdir(parents=True)
    stale.write_text("old")
    source = assemble(project, project / "_build/editions/quick", ["first"], DATA)
    assert sorted(str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()) == [
        "_config.yml",
        "_toc.yml",
        "edition.key",
        "first.ipynb",
        "images/intro.png",
        "intro.md",
        "parameters.json",
        "references.bib",
        "scorecard.json",
    ]
    assert {name: read(source / f"{name}.json") for name in DATA} == DATA


def test_a_chapter_that_has_not_been_run_is_named_with_the_command_that_makes_it(project):
    with pytest.raises(BuildError, match=r"^book/first\.ipynb is missing; make it with: make edition CHAPTER=first$"):
        assemble(project, project / "book", ["first"], DATA)
    (project / "_build/editions/quick/first.ipynb").unlink()
    status, said, _ = edition(project, "build", "--edition", "quick")
    assert status == 1
    assert "not built: _build/editions/quick/first.ipynb is missing; make it with: make book" in said
    assert not (project / "_build/html").exists()


def test_the_html_is_replaced_by_a_whole_build_and_kept_when_a_citation_is_missing(project):
    html = project / "_build/html"
    html.mkdir(parents=True)
    (html / "old.html").write_text("old")
    status, said, _ = edition(project, "build", "--edition", "quick")
    assert status == 0, said
    assert said.splitlines()[-1] == f"open {html / 'intro.html'}"
    assert "1 check: 1 not judged at this preset" in said
    assert {"intro.html", "first.html"} <= {path.name for path in html.iterdir()}
    assert not (html / "old.html").exists()
    whole = (html / "intro.html").read_bytes()
    (project / "book/intro.md").write_text("# Introduction\n\nAs {cite}`unknown` says.\n")
    status, said, _ = edition(project, "build", "--edition", "quick")
    assert status == 1
    assert "unknown" in said
    assert "jupyter-book ended with status" in said
    assert (html / "intro.html").read_bytes() == whole


def test_a_build_that_ends_well_but_lacks_a_page_is_not_taken(project, monkeypatch):
    def pretends(command, **options):
        made = project / "_build/site/_build/html"
        made.mkdir(parents=True)
        shutil.copyfile(project / "book/intro.md", made / "intro.html")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", pretends)
    with pytest.raises(BuildError, match="1 of 2 pages have no HTML: first"):
        build(project, project / "_build/editions/quick", ["first"], DATA)
    assert not (project / "_build/html").exists()


def executed_figure(folder: Path, name: str) -> None:
    cell = new_code_cell("show()", metadata={"mystnb": {"figure": {"name": name}}}, execution_count=1)
    cell.outputs = [new_output("display_data", data={"image/png": "cGljdHVyZQ=="})]
    write(new_notebook(cells=[cell]), folder / f"{INTRODUCTION[0]}.ipynb")


def test_the_introductions_picture_is_the_editions_own_figure(tmp_path):
    executed_figure(tmp_path, INTRODUCTION[1])
    assert intro_picture(tmp_path) == b"picture"
    executed_figure(tmp_path, "fig-other")
    with pytest.raises(BuildError, match=f"{INTRODUCTION[0]}.ipynb has no figure '{INTRODUCTION[1]}'"):
        intro_picture(tmp_path)
