"""The figures of executed chapters: their captions, texts and pictures, and thumbnails of them beside the pages."""

from __future__ import annotations

import base64
import io
import json
import re
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from docutils import nodes
from PIL import Image
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

from descent_book.pages.figures import FIGURES
from descent_book.run.project import pages

THUMBNAIL, CARD = 480, 960  # pixels of width, of the gallery's pictures and of the cards'
_SENTENCE_END = re.compile(r"(?<=[.?!])\s+(?=[A-Z`$\[])")


class Picture(NamedTuple):
    """A figure of a chapter: its label, its caption in MyST, its description for who cannot see it, and its PNG."""

    chapter: str
    name: str
    caption: str
    alt: str
    png: bytes

    @property
    def title(self) -> str:
        """The caption's first sentence, in MyST, without its full stop."""
        return _SENTENCE_END.split(self.caption, maxsplit=1)[0].strip().removesuffix(".")

    @property
    def anchor(self) -> str:
        """The figure's id on its chapter's page."""
        return str(nodes.make_id(self.name))


def pictures(source: Path, chapter: str) -> list[Picture]:
    """The figures of an executed chapter in the book's source folder that have a name and a PNG, in their order.

    Raises:
        OSError: there is no such notebook.
    """
    path = source / f"{chapter}.ipynb"
    return _read(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=32)
def _read(path: Path, changed: int) -> list[Picture]:
    found = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        about = cell["metadata"].get("mystnb", {})
        figure = about.get("figure", {})
        data = next((out["data"] for out in cell.get("outputs", []) if "image/png" in out.get("data", {})), None)
        if not figure.get("name") or data is None:
            continue
        text = "".join(data.get("text/plain", ""))
        alt = about.get("image", {}).get("alt") or ("" if text.startswith(("<", "Figure(")) else text)
        png = base64.b64decode("".join(data["image/png"]))
        found.append(Picture(path.stem, figure["name"], figure.get("caption", ""), alt, png))
    return found


def chapters_of(env: BuildEnvironment) -> list[str]:
    """The pages that are executed notebooks, in the order of `_toc.yml`, where there is one."""
    source = Path(env.srcdir)
    known = sorted(page for page in env.found_docs if str(env.doc2path(page)).endswith(".ipynb"))
    order = pages(source) if (source / "_toc.yml").is_file() else known
    return [page for page in order if page in known]


class Thumbnail(nodes.General, nodes.Element):  # type: ignore[misc]
    """A small picture that leads to its figure. Attributes: `chapter`, `name`, and `width` in pixels."""


def thumbnail(png: bytes, width: int) -> bytes:
    """A PNG as WebP, at most this many pixels wide, on white."""
    with Image.open(io.BytesIO(png)) as image:
        small = Image.new("RGB", image.size, "white")
        small.paste(image, mask=image.getchannel("A") if image.mode == "RGBA" else None)
    if small.width > width:
        small = small.resize((width, round(small.height * width / small.width)), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, "WEBP", quality=85, method=4)
    return stream.getvalue()


def _visit_thumbnail(writer: Any, node: Thumbnail) -> None:
    builder = writer.builder
    picture = next(each for each in pictures(Path(builder.srcdir), node["chapter"]) if each.name == node["name"])
    file = Path(builder.outdir) / FIGURES / f"{picture.chapter}-{picture.name}-{node['width']}.webp"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(small := thumbnail(picture.png, node["width"]))
    with Image.open(io.BytesIO(small)) as image:
        size = 'width="{}" height="{}"'.format(*image.size)
    up = "../" * builder.current_docname.count("/")
    to = f"{builder.get_relative_uri(builder.current_docname, picture.chapter)}#{picture.anchor}"
    writer.body.append(
        f'<a class="thumbnail" href="{to}"><img src="{up}{FIGURES}/{file.name}" alt="{escape(picture.alt)}" '
        f'{size} loading="lazy"></a>'
    )
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Register this module with Sphinx."""
    app.add_node(Thumbnail, html=(_visit_thumbnail, None))
    app.add_css_file("home.css")
