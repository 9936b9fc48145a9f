"""The book builds, loads nothing from elsewhere, shows every output, and stops at anything it would lose."""

import json
import re
from html.parser import HTMLParser

import pytest
import yaml
from book_samples import (
    PNG64,
    ROOT,
    Build,
    Change,
    add_cell,
    build,
    build_all,
    judged_nowhere,
    not_executed,
    output,
    plotly,
    promised,
    real_book,
    small_book,
    undocumented,
    write_page,
)
from nbformat import v4

from descent_book.pages import claims
from descent_book.run.chapter import Chapter

RAISED = v4.new_output("error", ename="ValueError", evalue="lost", traceback=["Traceback", "ValueError: lost"])
WARNED = v4.new_output("stream", name="stderr", text="UserWarning: overflow\n")
FAULTS: dict[str, tuple[Change, str]] = {
    "raising cell": (add_cell(RAISED), "a cell raised: ValueError: lost"),
    "missing citation": (write_page("{cite:p}`nobody1900`"), "nobody1900"),
    "unknown claim": (
        write_page("{claim}`gradient_svd.cuont`"),
        "claim 'gradient_svd.cuont': expected one of gradient_",
    ),
    "unknown field": (write_page("{claim}`gradient_svd.count:vredict`"), "field 'vredict': expected one of accepted, "),
    "dropped output": (add_cell(output(**{"application__vnd.lost+json": {}})), "application/vnd.lost+json"),
    "dropped figure": (write_page("![A picture](images/lost.png)"), "images/lost.png"),
    "figure without text": (add_cell(plotly("")), "an interactive figure has no description"),
    "picture without text": (add_cell(output(image__png=PNG64, text__plain="<Figure size 1x1>")), "has no alt text"),
    "claim without a cell": (judged_nowhere, "no cell of gradient_svd judges lost"),
    "undocumented parameter": (undocumented, "gradient_svd: parameter 'rate' is not in the chapter's table"),
    "promise without a test": (promised(test_twice=["R1"]), "R2: no test holds it"),
    "test of no promise": (promised(test_twice=["R1", "R2", "R3"]), "R3: no such promise"),
    "cell not executed": (not_executed, "code cell 1 was not executed"),
    "warning in a cell": (add_cell(WARNED), "stderr was found in the cell outputs"),
}


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Build]:
    """All builds of this module: the real book by the command itself, a clean small one, and one per fault."""
    folder = tmp_path_factory.mktemp("books")
    sources = {"clean": small_book(folder / "clean", promised(test_twice=["R1", "R2"], test_thrice=["R2"]))}
    for name, (change, _) in FAULTS.items():
        sources[name] = small_book(folder / name.replace(" ", "_"), change)
    return {"real": build(real_book(folder / "real")), **build_all(sources)}


@pytest.fixture(scope="module")
def pages(builds: dict[str, Build]) -> dict[str, str]:
    """Name -> HTML of the real book."""
    assert builds["real"].code == 0, builds["real"].log
    return {path.stem: path.read_text() for path in builds["real"].html.glob("*.html")}


class Tags(HTMLParser):
    """All start tags of a page, as (tag, attributes)."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))

    def of(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.found if tag in tags]


def external_loads(text: str) -> list[str]:
    """Addresses on other hosts that a browser would load for a page or a stylesheet; links for a reader are not."""
    loading = ("script", "link", "img", "iframe", "source", "video", "audio", "embed", "object")
    values = [tag.get(key) or "" for tag in Tags(text).of(*loading) for key in ("src", "href", "data", "srcset")]
    inside = re.findall(r"(?:@import\s+|\bimport\s+|\bfrom\s+|url\()[\"']?((?:https?:)?//[^\"')\s]+)", text)
    cdn = re.findall(r"https?://(?:[\w.-]*\bcdn\b|unpkg|cdnjs)[^\"'\s<)]*", text)
    return [value for value in values if re.match(r"(https?:)?//", value)] + inside + cdn


@pytest.mark.promise("R7")
def test_clean_build_exits_zero(builds: dict[str, Build]) -> None:
    assert builds["clean"].code == 0, builds["clean"].log
    assert builds["real"].code == 0, builds["real"].log


@pytest.mark.promise("R7")
@pytest.mark.parametrize("fault", FAULTS)
def test_fault_stops_the_build(builds: dict[str, Build], fault: str) -> None:
    assert builds[fault].code != 0
    warnings = [line for line in builds[fault].log.splitlines() if "WARNING" in line or "ERROR" in line]
    assert [line for line in warnings if FAULTS[fault][1] in line], builds[fault].log


@pytest.mark.promise("R6")
def test_every_page_is_there(pages: dict[str, str]) -> None:
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    entries = [entry for part in toc["parts"] for entry in part["chapters"]]
    named = {toc["root"], *(each["file"] for entry in entries for each in (entry, *entry.get("sections", [])))}
    assert set(pages) == named | {"index", "genindex", "search"}
    assert len(named) == 32


@pytest.mark.promise("R6")
def test_nothing_is_loaded_from_another_host(builds: dict[str, Build], pages: dict[str, str]) -> None:
    files = [path for path in builds["real"].html.rglob("*") if path.suffix in (".html", ".css")]
    assert len(files) > len(pages)
    texts = {path: path.read_text() for path in files}
    for path in [path for path in files if path.suffix == ".css"]:
        texts[path] = re.sub(r"/\*.*?\*/", "", texts[path], flags=re.DOTALL)  # comments may name other hosts
    found = {path.name: loads for path, text in texts.items() if (loads := external_loads(text))}
    assert found == {}


@pytest.mark.parametrize(
    "text",
    [
        '<script src="https://a.org/b.js"></script>',
        '<link href="//a.org/b.css">',
        "@import url(https://a.org/b.css);",
        '<script>import "https://a.org/b.js"</script>',
        'const URL = "https://unpkg.com/thebe"',
        '<img src="http://a.org/b.png">',
    ],
)
def test_scan_finds_a_load(text: str) -> None:
    assert external_loads(text)


def test_scan_lets_links_pass() -> None:
    assert external_loads('<a href="https://a.org">a</a><img src="b.png">') == []


def test_heavy_scripts_only_where_needed(pages: dict[str, str]) -> None:
    plotly = re.compile(r"_static/plotly(-gl3d)?\.min\.js")
    assert {name for name, text in pages.items() if plotly.search(text)} == {"gradient_svd"}
    assert {name for name, text in pages.items() if "tex-chtml.js" in text} >= {"gradient_svd", "notation"}
    assert "tex-chtml.js" not in pages["references"]
    assert not [name for name, text in pages.items() if "fontawesome.js" in text]


@pytest.mark.promise("R6")
def test_every_script_and_style_exists(builds: dict[str, Build], pages: dict[str, str]) -> None:
    for text in pages.values():
        wanted = [tag.get("src") or tag.get("href") for tag in Tags(text).of("script", "link")]
        for name in filter(None, wanted):
            assert (builds["real"].html / name.partition("?")[0]).is_file() or name.startswith("#"), name


def test_marks_left_out_of_code_have_no_colour_of_their_own(builds: dict[str, Build], pages: dict[str, str]) -> None:
    style = (builds["real"].html / "_static/pygments.css").read_text()
    for mode in ("light", "dark"):
        start = rf'html\[data-theme="{mode}"\] \.highlight '
        ground = re.search(start + r"\{[^}]*[^-]color: (#\w+)", style)
        assert ground, "the style gives code a colour"
        for mark in "npw":
            (colour,) = re.findall(start + rf"\.{mark} \{{ color: (#\w+)", style)
            assert colour == ground[1]
    assert not re.search(r'<span class="[npw]">[^<]*</span>', pages["gradient_svd"])
    assert '<span class="s2">' in pages["gradient_svd"]


def test_thebe_is_gone(pages: dict[str, str]) -> None:
    assert not [name for name, text in pages.items() if "thebe.js" in text or "THEBE_JS_URL" in text]


def test_every_image_has_a_text(pages: dict[str, str]) -> None:
    images = [tag for text in pages.values() for tag in Tags(text).of("img")]
    assert len(images) >= 4
    for image in images:
        assert image.get("alt")
        assert image["alt"] != image["src"]


def test_alt_text_from_the_output_or_the_cell(pages: dict[str, str]) -> None:
    """The cell's own wins; `<Figure ...>` is not a description."""
    texts = [tag["alt"] for tag in Tags(pages["gradient_svd"]).of("img") if "logo" not in (tag["src"] or "")]
    quoted = 'Quotes "here" & <there>'
    assert texts == ["One dot", "A falling curve", "A path that winds upwards", quoted]


def test_interactive_figures(pages: dict[str, str]) -> None:
    figures = [tag for tag in Tags(pages["gradient_svd"]).of("div") if tag.get("class") == "interactive"]
    assert [figure["aria-label"] for figure in figures] == ["A path that winds upwards", 'Quotes "here" & <there>']
    assert [figure["data-height"] for figure in figures] == ["320", "320"]
    assert "A live caption." in pages["gradient_svd"]
    assert "A drawn caption." in pages["gradient_svd"]


def test_data_of_a_figure_lies_beside_the_page(builds: dict[str, Build], pages: dict[str, str]) -> None:
    """In a script, which a page opened from disk can load; with no address of another host in it."""
    figures = [tag for tag in Tags(pages["gradient_svd"]).of("div") if tag.get("class") == "interactive"]
    assert len(figures) == 2
    for figure in figures:
        key = figure["data-figure"]
        assert f'src="_figures/{key}.js"' in pages["gradient_svd"]
        script = (builds["real"].html / f"_figures/{key}.js").read_text()
        start = f'(window.figures ??= {{}})["{key}"] = '
        assert script.startswith(start)
        assert json.loads(script.removeprefix(start).removesuffix(";\n"))["data"][0]["name"] == "</script>"
        assert "plotlyServerURL" not in script
        assert "</script>" not in pages["gradient_svd"].partition(f'data-figure="{key}">')[2].split("</script>")[0]


def test_claim_table_of_a_chapter_is_a_table(pages: dict[str, str]) -> None:
    assert re.search(r"<td[^>]*><p>reproduced</p></td>", pages["gradient_svd"])


def test_scorecard_page(pages: dict[str, str]) -> None:
    text = pages["scorecard"]
    for expected in (
        "measured 113.2 (108.6 to 117.8); accepted 80.9 to 104.1; Gaussian: 400.0 (399.0 to 401.0)",
        "registration, amended",
        "the 95% interval lies outside of what is accepted; 10 units",
        "not reproduced",
        "1 check: 1 holds",
    ):
        assert f">{expected}<" in text.replace("'", "’"), expected
    assert re.search(r'href="references\.html#[\w-]+"', text)
    assert re.search(r">\d+ replications: \d+ not reproduced<", text)
    cards = re.findall(r'<div class="[^"]*\bscore\b[^"]*verdict-([a-z-]+)', text)
    assert cards == sorted(cards, key=["not-reproduced", "holds"].index)


def test_registrations_page(pages: dict[str, str]) -> None:
    text = pages["registrations"].replace("'", "’")
    for expected in (
        "92.5 ± 11.6",
        "the source’s deviation",
        "training run; 10 measured; mean",
        "Gaussian rows of the same norms",
        "Amended 2026-11-26",
    ):
        assert f">{expected}<" in text, expected
    claims = set(re.findall(r'id="registration-of-([\w-]+)"', text))
    assert claims == set(re.findall(r'id="score-([\w-]+)"', pages["scorecard"]))
    assert all(f'href="registrations.html#registration-of-{name}"' in pages["scorecard"] for name in claims)
    assert all(f'href="scorecard.html#score-{name}"' in text for name in claims)
    assert text.count("/notebooks/claims/gradient_svd.yml") == 1


def test_a_card_shows_its_row_of_the_forest_plot(pages: dict[str, str]) -> None:
    rows = re.findall(r'<svg class="forest".*?</svg>', pages["scorecard"])
    assert len(rows) == pages["scorecard"].count('id="score-')
    assert all('aria-hidden="true"' in row for row in rows)  # the numbers stand below, in words
    assert all(row.count('class="region"') == row.count('class="measured"') == 1 for row in rows)


def test_a_card_repeats_nothing_that_is_long(pages: dict[str, str]) -> None:
    text = pages["scorecard"]
    cards = text[text.index('<div class="scores') : text.index("</article>")]
    for repeated in ('title="', "docutils container", "std-ref", "/notebooks/claims/", "aria-label"):
        assert repeated not in cards.partition(">")[2], repeated


def test_scorecard_and_chapter_link_to_each_other(pages: dict[str, str]) -> None:
    down, up = 'href="gradient_svd.html#claim-toy"', 'href="scorecard.html#score-gradient-svd-toy"'
    assert down in pages["scorecard"]
    assert up in pages["gradient_svd"]
    assert 'id="score-gradient-svd-toy"' in pages["scorecard"]
    assert 'id="claim-toy"' in pages["gradient_svd"]


def test_every_internal_link_leads_somewhere(builds: dict[str, Build], pages: dict[str, str]) -> None:
    anchors = {name: set(re.findall(r'\bid="([^"]+)"', text)) for name, text in pages.items()}
    lost = []
    for name, text in pages.items():
        for target in [tag.get("href") or "" for tag in Tags(text).of("a")]:
            page, _, anchor = target.partition("#")
            if "://" in target or (page and (builds["real"].html / page).is_file() and "/" in page):
                continue  # a file beside the pages, such as a figure alone
            if page and not page.endswith(".html"):
                continue
            known = anchors.get(page.removesuffix(".html") or name)
            if known is None or (anchor and anchor not in known):
                lost.append((name, target))
    assert lost == []


def test_parameters_page(pages: dict[str, str]) -> None:
    text = re.sub(r"<[^>]+>", "", pages["parameters"])
    assert "of plain SGD; momentum 0.9 uses a tenth of it" in text
    assert "number, above 0 and at most 10" in text
    for row in Chapter.read(ROOT, "gradient_svd").parameters():
        assert row.name in text


def test_quoted_numbers(pages: dict[str, str]) -> None:
    assert re.search(
        r'<span class="claim">113\.2 \(108\.6 to 117\.8\)</span>|<span class="claim">113</span>', pages["intro"]
    )
    assert "not reproduced" in pages["intro"]


def test_run_times(pages: dict[str, str]) -> None:
    for expected in ("12 min 34 s", "x86_64, AVX2", "2 threads", "Python 3.11.0, torch 2.9", "commit abc123"):
        assert expected in pages["reproducibility"]


def test_which_published_chapters_are_of_todays_sources(pages: dict[str, str]) -> None:
    table = re.search(r'<table class="[^"]*standing.*?</table>', pages["reproducibility"], re.S)
    assert table
    rows = [" ".join(re.sub(r"<[^>]+>", " ", row).split()) for row in re.findall("<tr.*?</tr>", table[0], re.S)]
    stale, current = rows[1:]
    assert stale.endswith("abc123+ fit differs the data resnet/a.npz differ")
    assert current.endswith("def456 current: nothing that decides a result differs")
    assert 'href="gradient_svd.html"' in table[0]


def test_promises_with_what_was_measured_of_them(builds: dict[str, Build]) -> None:
    page = (builds["clean"].html / "intro.html").read_text()
    first, second = (
        re.sub(r"<[^>]+>|\s+", " ", row) for row in re.findall(r'<tr[^>]* id="promise-r\d".*?</tr>', page, re.S)
    )
    assert re.search(r"Two runs give +equal +bytes.*runs: 2 to 30.*test_runs.py +: 3 passed.*: 1 failed", first)
    assert re.search(r"So do three.*test_runs.py +: 6 passed.*: 2 failed", second)
    assert "skipped" not in first + second


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (754.2, "12 min 34 s"), (7500, "2 h 5 min")]
)
def test_duration(seconds: float, text: str) -> None:
    assert claims.duration(seconds) == text


@pytest.mark.parametrize("file", ["intro.md", "cards.yml"])
def test_no_number_of_ours_is_typed_on_the_front_page(file: str) -> None:
    """A digit is the source's setting, a width, an example's seed or a symbol; `±` comes from a role only."""
    text = re.sub(r"\{[\w:]+\}`[^`]*`|`papermill[^`]*`|^\d\. ", "", (ROOT / "book" / file).read_text(), flags=re.M)
    assert "±" not in text
    assert set(re.findall(r"\d[\d.,]*\d|\d", re.sub(r"\$[^$]*\$|at 56 layers and at 110", "", text))) <= {"90"}


def test_no_static_folder() -> None:
    """Jupyter Book would load every script in it on every page."""
    assert not (ROOT / "_static").exists()
    assert not (ROOT / "book/_static").exists()
