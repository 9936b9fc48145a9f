"""Stamps the repository's address, which `_config.yml` alone states, into the places that need it.

Run as `python -m descent_book.run.address [URL]`: with an address it is written to `_config.yml` first.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from descent.repro.files import write_atomic

BRANCH = "main"
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", "pyproject.toml")
_ADDRESS = re.compile(r"https://github\.com/(?P<slug>[A-Za-z0-9-]+/[A-Za-z0-9._-]+?)(?:\.git)?/?")
_CONFIG_LINE = re.compile(r"(?m)^(repository:\n(?:[ #].*\n)*?  url: *)\S+")
_COLAB_LINK = re.compile(r"\[Run this chapter in Colab\]\([^)]*\)")
_COLAB = "https://colab.research.google.com/"
_SETUP = """\
import importlib
import importlib.util
import sys

if "google.colab" in sys.modules and importlib.util.find_spec("descent") is None:
    # Colab owns torch, numpy and the rest: install this library alone, and what Colab lacks.
    %pip install -q --no-deps "anatomy-of-descent @ git+{url}@{branch}"
    %pip install -q --no-deps curvlinops-for-pytorch einconv linear_operator
    %pip install -q lazy-loader pooch pyevtk safetensors
    importlib.invalidate_caches()
if "google.colab" in sys.modules:
    from descent.repro import colab_report

    print(colab_report())"""


def check_address(url: str) -> str:
    """The address in its plain form, `https://github.com/OWNER/REPO`.

    Raises:
        ValueError: not an address on github.com, the one host from which Colab opens notebooks.
    """
    if not (match := _ADDRESS.fullmatch(url)):
        raise ValueError(f"url={url!r}: expected https://github.com/OWNER/REPO")
    return f"https://github.com/{match['slug']}"


def configured_address(root: Path) -> str:
    """The address that `root/_config.yml` states."""
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    return check_address(config["repository"]["url"])


def colab_address(url: str, chapter: str) -> str:
    """Where Colab opens a chapter's source."""
    return f"{_COLAB}github/{_slug(url)}/blob/{BRANCH}/notebooks/{chapter}.ipynb"


def colab_link(url: str, chapter: str) -> str:
    """The Markdown line below a chapter's title. Text, no badge: a badge would be loaded from another host."""
    return f"[Run this chapter in Colab]({colab_address(url, chapter)})"


def colab_badge(url: str, chapter: str) -> str:
    """The Markdown badge of a chapter, for the README."""
    return f"[![Open in Colab]({_COLAB}assets/colab-badge.svg)]({colab_address(url, chapter)})"


def setup_source(url: str) -> str:
    """The text of every chapter's `setup` cell: in Colab it installs the library, elsewhere it does nothing."""
    return _SETUP.format(url=url, branch=BRANCH)


def _slug(url: str) -> str:
    return url.removeprefix("https://github.com/")


def _stamped_page(text: str, old: str, new: str) -> str:
    """A text file with its links to the old address, in GitHub's form and in Colab's, turned to the new."""
    longer_name = r"(?![\w-]|\.(?!git\b)\w)"
    link = rf"(github\.com/|colab\.research\.google\.com/github/){re.escape(_slug(old))}{longer_name}"
    return re.sub(link, lambda match: match[1] + _slug(new), text)


def _source(cell: dict[str, Any]) -> str:
    source = cell["source"]
    return source if isinstance(source, str) else "".join(source)


def _stamped_notebook(text: str, url: str, chapter: str) -> str:
    """A notebook with the canonical setup cell, and the link to Colab under its title, where it is missing."""
    notebook = json.loads(text)
    setup = [cell for cell in notebook["cells"] if "setup" in cell["metadata"].get("tags", [])]
    if len(setup) != 1:
        raise ValueError(f"{chapter}: {len(setup)} cells are tagged `setup`; expected one")
    title, link = notebook["cells"][0], colab_link(url, chapter)
    prose, found = _COLAB_LINK.subn(link, _source(title))
    heading, _, rest = prose.partition("\n")
    wanted = {id(setup[0]): setup_source(url), id(title): prose if found else f"{heading}\n\n{link}\n{rest}".rstrip()}
    for cell in (setup[0], title):
        if _source(cell) != wanted[id(cell)]:
            cell["source"] = wanted[id(cell)].splitlines(keepends=True)
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def _rewrite(path: Path, change: Callable[[str], str]) -> bool:
    """Change a text file in place; False where there is no file, or nothing to change."""
    if not path.is_file():
        return False
    old = path.read_text(encoding="utf-8")
    new = change(old)
    if new != old:
        write_atomic(path, new)
    return new != old


def stamp(root: Path, url: str | None = None) -> list[Path]:
    """Make every place under `root` agree with the address, or with `_config.yml` where none is given.

    Returns:
        The files that changed, relative to `root`.

    Raises:
        ValueError: a bad address, before any file changes; a notebook without exactly one `setup` cell.
    """
    old = configured_address(root)
    new = check_address(url) if url else old
    changes: dict[Path, Callable[[str], str]] = {}
    for page in PAGES:
        changes[root / page] = lambda text: _stamped_page(text, old, new)
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        changes[path] = lambda text, chapter=path.stem: _stamped_notebook(text, new, chapter)  # type: ignore[misc]
    # The statement itself comes last: a run that fails before leaves the old address, so it can be repeated.
    changes[root / "_config.yml"] = lambda text: _CONFIG_LINE.sub(lambda match: match[1] + new, text)
    return [path.relative_to(root) for path, change in changes.items() if _rewrite(path, change)]


def main(arguments: list[str]) -> int:
    """Command line: at most one address; 2 when it is refused."""
    try:
        if len(arguments) > 1:
            raise ValueError(f"{len(arguments)} arguments; expected one address or none")
        changed = stamp(Path.cwd(), *arguments)
    except (ValueError, FileNotFoundError) as error:
        print(f"descent_book.run.address: {error}", file=sys.stderr)
        return 2
    print("\n".join(f"stamped {path}" for path in changed) or "every place agrees with _config.yml")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
