"""Jupyter Book 1 is a shell around Sphinx that the book can leave: Sphinx alone builds the same pages."""

import subprocess
import sys
from pathlib import Path

import pytest
from book_samples import Build, build, environment, small_book


def sphinx(source: Path, *, without: str = "") -> Build:
    """`jupyter-book config sphinx`, the extension `without` taken out, then `sphinx-build` with warnings as errors."""
    config = [Path(sys.executable).parent / "jupyter-book", "config", "sphinx", source]
    subprocess.run(config, check=True, capture_output=True, env=environment())
    settings = source / "conf.py"
    text = settings.read_text()
    assert f"'{without}', " in text
    settings.write_text(text.replace(f"'{without}', ", ""))
    html = source.parent / "plain"
    command = [sys.executable, "-m", "sphinx", "-W", "-n", "--keep-going", "-b", "html", source, html]
    run = subprocess.run(command, capture_output=True, text=True, env=environment())
    return Build(run.returncode, run.stdout + run.stderr, html)


@pytest.mark.promise("R7")
def test_plain_sphinx_without_jupyter_book_builds_the_same_pages(tmp_path, record_property):
    book = build(small_book(tmp_path / "book", lambda source, chapter: None))
    plain = sphinx(small_book(tmp_path / "plain", lambda source, chapter: None), without="jupyter_book")
    assert (book.code, plain.code) == (0, 0), book.log + plain.log
    pages = sorted(path.name for path in book.html.glob("*.html"))
    assert {"gradient_svd.html", "intro.html"} <= set(pages)
    assert sorted(path.name for path in plain.html.glob("*.html")) == pages
    for name in ("gradient_svd.html", "intro.html"):
        assert (plain.html / name).read_text() == (book.html / name).read_text()
    record_property("pages of a small book that are equal to the byte without Jupyter Book", 2)
