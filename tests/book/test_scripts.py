"""Which scripts the pages load: what was fetched is what was published, and it draws what the page shows."""

import hashlib
import io
import json
import tarfile
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest

from descent.data.fetching import DamagedDataError, MissingDataError
from descent_book.pages import figures as figure_pages
from descent_book.pages import scripts

SCRIPT = b"window.Plotly = {}"


def packed(content: bytes = SCRIPT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        member = tarfile.TarInfo(f"package/{scripts.PART}")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data folder, and a published package of a few bytes."""
    published = packed()
    monkeypatch.setenv("DESCENT_DATA", str(tmp_path / "data"))
    monkeypatch.setitem(scripts.DIGESTS, scripts.plotly_version(), hashlib.sha256(published).hexdigest())
    (tmp_path / "published").write_bytes(published)
    return tmp_path


def npm(folder: Path, monkeypatch: pytest.MonkeyPatch, gives: Path | None) -> None:
    """A program of that name alone on the PATH: it packs `gives` as npm does, or fails."""
    program = folder / "bin/npm"
    program.parent.mkdir()
    name = scripts.package(scripts.plotly_version())
    asked = f'[ "$1 $5" = "pack {scripts.NAME}@{scripts.plotly_version()}" ]'
    does = f'{asked} && /bin/cp {gives} "$4/{name}"' if gives else "echo 'npm error 404' >&2; exit 1"
    program.write_text(f"#!/bin/sh\n{does}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))


def test_the_package_is_known_for_the_plotly_that_is_locked() -> None:
    root = Path(__file__).parents[2]
    (locked,) = [line.split()[0] for line in (root / "requirements.txt").read_text().splitlines() if "plotly==" in line]
    if locked != f"plotly=={version('plotly')}":
        pytest.skip(f"{locked} is locked, {version('plotly')} installed")
    assert scripts.plotly_version() in scripts.DIGESTS


def test_npm_gives_it_once(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert scripts.part_of_plotly() is None
    npm(folder, monkeypatch, folder / "published")
    scripts.main()
    path = folder / "data" / scripts.package(scripts.plotly_version())
    assert capsys.readouterr().out == f"{path}: the next make html or make book uses it\n"
    assert scripts.part_of_plotly() == SCRIPT
    monkeypatch.setenv("PATH", "")
    assert scripts.fetch() == path
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.promise("R4")
def test_what_is_not_the_published_file_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "other").write_bytes(packed(b"alert(1)"))
    npm(folder, monkeypatch, folder / "other")
    with pytest.raises(DamagedDataError, match=r"from npm: SHA-256 [0-9a-f]{64}: expected [0-9a-f]{64}\nto do without"):
        scripts.fetch()
    assert list((folder / "data").iterdir()) == []
    path = folder / "data" / scripts.package(scripts.plotly_version())
    path.write_bytes((folder / "published").read_bytes()[:-1])
    for reads in (scripts.fetch, scripts.part_of_plotly, lambda: figure_pages.copy_assets(application(folder))):
        with pytest.raises(
            DamagedDataError, match=r"is damaged\nSHA-256 .*\nto mend it: rm .* -m descent_book\.pages\.scripts"
        ):
            reads()


def test_without_npm_or_the_package_it_says_what_to_do(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingDataError, match=r"no npm on the PATH\nto do without: put plotly\.js-gl3d.* there"):
        scripts.fetch()
    npm(folder, monkeypatch, None)
    with pytest.raises(MissingDataError, match=r"npm did not give it: npm error 404\nto do without"):
        scripts.fetch()
    monkeypatch.setattr(scripts, "DIGESTS", {"1.2.3": ""})
    with pytest.raises(MissingDataError, match=r"^plotly\.js \d+\.\d+\.\d+: expected 1\.2\.3, whose part is known$"):
        scripts.fetch()
    assert scripts.part_of_plotly() is None


def application(folder: Path) -> SimpleNamespace:
    """As much of Sphinx as the extension asks for."""
    added: list[str] = []
    return SimpleNamespace(
        doctreedir=str(folder / "doctrees"),
        outdir=str(folder / "html"),
        config=SimpleNamespace(html_static_path=[], html_favicon=None),
        added=added,
        add_js_file=lambda name, **_: added.append(name),
    )


def figure(*kinds: str, steps: tuple[str, ...] = ()) -> figure_pages.PlotlyFigure:
    frames = [{"data": [{"type": kind}, {"z": [1]}]} for kind in steps]
    data = [{"type": kind} if kind else {} for kind in kinds]
    return figure_pages.PlotlyFigure("", figure=json.dumps({"data": data, "frames": frames}))


@pytest.mark.parametrize(
    ("figures", "fetched", "expected"),
    [
        ([figure("surface", "scatter3d", "")], True, scripts.PART),
        ([figure("surface")], False, scripts.WHOLE),
        ([figure("surface"), figure("heatmap")], True, scripts.WHOLE),
        ([figure("surface", steps=("scatter3d",))], True, scripts.PART),
        ([figure("surface", steps=("heatmap",))], True, scripts.WHOLE),
        ([], True, None),
    ],
)
def test_a_page_loads_what_draws_its_figures(
    folder: Path, figures: list[figure_pages.PlotlyFigure], fetched: bool, expected: str | None
) -> None:
    if fetched:
        (folder / "data").mkdir()
        (folder / "data" / scripts.package(scripts.plotly_version())).write_bytes((folder / "published").read_bytes())
    app = application(folder)
    figure_pages.copy_assets(app)
    doctree = figure_pages.nodes.section("", *figures)
    figure_pages.add_plotly(app, "page", "", {}, doctree)
    assert app.added == ([expected, "interactive.js"] if expected else [])
    (served,) = app.config.html_static_path
    assert all((Path(served) / name).is_file() for name in ("tex-chtml.js", *app.added))
    assert list(Path(served).rglob("output/chtml/fonts/woff-v2/*.woff"))


@pytest.mark.parametrize("font", [True, False])
def test_icons_are_drawn_by_a_font_where_the_theme_has_one(folder: Path, font: bool) -> None:
    html, script = folder / "html", '<script defer src="_static/scripts/fontawesome.js?digest=1"></script>'
    kept = '<script src="_static/scripts/bootstrap.js"></script><script src="_static/plotly.min.js"></script>'
    for name in ("styles/pydata-sphinx-theme.css", "scripts/fontawesome.js", scripts.WHOLE, scripts.PART):
        (html / "_static" / name).parent.mkdir(parents=True, exist_ok=True)
        (html / "_static" / name).write_text("@font-face{font-family:Font Awesome}" if font else "")
    (html / "page.html").write_text(f"<head>{script}{kept}</head>")
    figure_pages.drop_what_no_page_needs(application(folder), None)
    assert (html / "page.html").read_text() == f"<head>{'' if font else script}{kept}</head>"
    assert (html / "_static/scripts/fontawesome.js").is_file() != font
    assert (html / "_static" / scripts.WHOLE).is_file()
    assert not (html / "_static" / scripts.PART).exists(), "no page loads it"
