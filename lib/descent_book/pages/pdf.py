"""Print the built book as one PDF, `_build/anatomy_of_descent.pdf`, by a Chromium without a window.

python -m descent_book.pages.pdf    prints what `make html` or `make book` has built
"""

from __future__ import annotations

import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from descent.checkout import ProjectError, project_root
from descent_book.pages.browser import ARGUMENTS, NAMES, find_chromium
from descent_book.pages.printable import KEY, PDF, key_beside
from descent_book.pages.printed import PrintError, combined, read_book

WIDTH, SIDE = 210, 20  # mm, of A4 and of each margin at its sides
TIMEOUT = 300_000  # ms; some minutes of mathematics on one slow core
FOOT = (
    '<div style="width: 100%; text-align: center; font: 8px serif; color: #555">'
    '<span class="title"></span> · <span class="pageNumber"></span></div>'
)
READY = """async () => {
  await MathJax.startup.promise;
  await Promise.all([...document.images].map(image => image.decode()));
  return [...document.querySelectorAll("mjx-merror, [data-mjx-error]")].map(error => error.textContent);
}"""
# Chromium shrinks the whole book to its widest element, so none may be wider than the paper.
TOO_WIDE = """() => [...document.body.querySelectorAll("*")]
  .filter(node => !node.closest("mjx-container") && node.getBoundingClientRect().right > window.innerWidth + 1)
  .map(node => `${node.closest("section.page")?.id}: <${node.localName}> ${node.textContent.trim().slice(0, 60)}`)"""


def print_book(html: Path, source: Path, target: Path, chromium: str | None = None) -> Path:
    """Print the pages in `html`, which were made from `source`, to `target`; a whole file or none.

    Args:
        html: a built book.
        source: the folder it was built from, for the contents and the title page.
        target: the file to write.
        chromium: the browser's program; by default the first on the PATH.

    Raises:
        PrintError: there is no browser or no book, or the print would lack something.
    """
    from descent.repro.files import atomic_path

    book = read_book(source)
    program = chromium or find_chromium()
    if program is None:
        names = ", ".join(NAMES)
        raise PrintError(f"no Chromium on the PATH: expected one of {names}; install one, or name it with --browser")
    if not Path(program).is_file():
        raise PrintError(f"--browser {program}: no such file; expected the program of a Chromium")
    if find_spec("playwright") is None:
        raise PrintError("playwright is not installed; it comes with: pip install -e '.[dev]'")
    with tempfile.TemporaryDirectory() as folder, atomic_path(target) as temporary:
        page = Path(folder) / "book.html"
        page.write_text(combined(html, book), encoding="utf-8")
        _print(page, temporary, program)
    return target


def _print(page: Path, target: Path, program: str) -> None:
    from playwright.sync_api import Error, sync_playwright

    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=program, args=list(ARGUMENTS))
        except Error as error:
            raise PrintError(f"{program} does not start: {error.message.splitlines()[0]}") from error
        try:
            sheet = browser.new_page(viewport={"width": round((WIDTH - 2 * SIDE) / 25.4 * 96), "height": 900})
            sheet.set_default_timeout(TIMEOUT)
            faults: list[str] = []
            sheet.on("pageerror", lambda error: faults.append(f"exception: {error}"))
            sheet.on("requestfailed", lambda request: faults.append(f"not loaded: {request.url}"))
            sheet.emulate_media(media="print")
            sheet.goto(page.as_uri())
            faults += [f"not typeset: {text}" for text in sheet.evaluate(READY)]
            faults += [f"wider than the paper: {text}" for text in sheet.evaluate(TOO_WIDE)]
            if faults:
                raise PrintError("not printed:\n" + "\n".join(faults[:20]))
            target.write_bytes(sheet.pdf(**_paper()))
        except Error as error:
            raise PrintError(f"the browser could not print: {error.message.splitlines()[0]}") from error
        finally:
            browser.close()


def _paper() -> dict[str, Any]:
    side = f"{SIDE}mm"
    return {
        "format": "A4",
        "margin": {"top": "18mm", "bottom": "20mm", "left": side, "right": side},
        "display_header_footer": True,
        "header_template": "<span></span>",
        "footer_template": FOOT,
        "print_background": True,
        "outline": True,  # bookmarks, from the headings
        "tagged": True,  # the structure and the descriptions of figures, for a screen reader
    }


def make(root: Path, chromium: str | None = None) -> Path:
    """Print the book in `_build/html`, and note beside it which pages it belongs to.

    Raises:
        PrintError: see `print_book`.
    """
    build = root / "_build"
    key = build / "html" / KEY
    if not key.is_file():
        raise PrintError(f"there is no book in {build / 'html'}; build one first: make html, or make book")
    noted = build / "source" / KEY
    if not noted.is_file() or key.read_text(encoding="utf-8") != noted.read_text(encoding="utf-8"):
        raise PrintError("_build/html is older than _build/source; build it again: make html, or make book")
    key_beside(build).unlink(missing_ok=True)  # the old file's, which is about to go
    print_book(build / "html", build / "source", build / PDF, chromium)
    key_beside(build).write_text(key.read_text(encoding="utf-8"), encoding="utf-8")
    return build / PDF


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--browser", default=None, help="The program of a Chromium, where it is not on the PATH.")
@click.option("--root", default=None, help="The project's folder, where it is not this package's checkout.")
def main(browser: str | None, root: str | None) -> None:
    """Print the built book as one PDF."""
    try:
        printed = make(project_root(root), browser)
    except (PrintError, ProjectError) as error:
        click.echo(f"not printed: {error}", err=True)
        sys.exit(1)
    click.echo(f"open {printed} ({printed.stat().st_size / 1e6:.1f} MB); the next make html or make book links to it")


if __name__ == "__main__":
    main()
