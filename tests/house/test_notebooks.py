"""The structure that every chapter has, and what no chapter may hold."""

import ast
import json
import re
import statistics
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from audit_settings import audit_settings

from descent.repro.claims import registered_claims
from descent_book.run import project
from descent_book.run.chapter import Chapter

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"), key=lambda path: path.stem)
PRESETS = sorted((ROOT / "notebooks" / "presets").glob("*/*.yml"))
EVERY = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
BIBLIOGRAPHY = set(re.findall(r"^@\w+\{([^,\s]+)", (ROOT / "book" / "references.bib").read_text(), re.MULTILINE))
DRAWS = re.compile(r"\b(plt\.show|savefig|save_figure|show|show_figure)\(")
LITERAL = re.compile(r"^[a-z_][a-z0-9_]* = .+  # ?@param (\{type:\s*\"\w+\"\}|\[.+\])(  # .+)?$")
MYST_ONLY = re.compile(r"^:{3,}|^`{3,}\{|\{(cite:t|glue|ref|numref|eq|doc)[:\w]*\}`", re.MULTILINE)
CITED = re.compile(r"\{cite:p\}`([^`]+)`")  # after the author's name or work, so that the text reads without it
OF_A_MACHINE = re.compile(r"(?<![\w.:/])/(home|Users|root|tmp|work|mnt|var|opt)/|[A-Z]:\\\\|/site-packages/")
SECRET = re.compile(
    r"(?i)(api[_-]?key|password|secret|token)\s*[=:]\s*['\"]\w{8,}|gh[pousr]_\w{20,}|hf_\w{20,}|AKIA\w{16}"
)


@cache
def chapter(path: Path) -> Chapter:
    return Chapter.read(ROOT, path.stem)


def cells(path: Path, kind: str = "") -> list[dict[str, Any]]:
    return [cell for cell in chapter(path).cells if kind in ("", cell["cell_type"])]


def tags(cell: dict[str, Any]) -> list[str]:
    return cell["metadata"].get("tags", [])


def code_lines(cell: dict[str, Any]) -> int:
    return sum(bool(line.strip()) for line in cell["source"].splitlines())


def python(cell: dict[str, Any]) -> ast.Module:
    """The syntax tree of a cell; a line of IPython magic becomes `pass`."""
    return ast.parse(re.sub(r"^(\s*)[%!].*$", r"\1pass", cell["source"], flags=re.MULTILINE))


def test_there_are_notebooks_and_the_contents_name_exactly_these():
    assert project.chapters(ROOT) != []
    assert sorted(project.chapters(ROOT)) == [path.stem for path in NOTEBOOKS]


@EVERY
def test_the_parts_of_a_chapter_are_there_once_and_in_order(path):
    order = [tag for cell in cells(path, "code") for tag in tags(cell) if tag in PARTS]
    assert order == PARTS
    assert cells(path)[0]["cell_type"] == "markdown"
    assert cells(path)[0]["source"].startswith("# ")


PARTS = ["setup", "imports", "parameters", "settings"]


@EVERY
def test_parameters_are_flat_literals_with_a_form_field(path):
    cell = next(cell for cell in cells(path, "code") if "parameters" in tags(cell))
    for line in cell["source"].splitlines():
        assert LITERAL.match(line), f"{line!r}: expected `name = literal  #@param ...`, then perhaps a comment"
    values = chapter(path).defaults
    for value in values.values():
        flat = value if isinstance(value, list) else [value]
        assert all(isinstance(item, (bool, int, float, str)) for item in flat)
    assert next(iter(values)) == "preset"
    assert {"preset", "seed", "figures_dir", "results_dir"} <= set(values)
    assert (values["preset"], values["results_dir"], values["figures_dir"]) == ("quick", "", "")


@EVERY
def test_settings_refuse_what_they_do_not_know_and_take_every_parameter(path):
    settings = chapter(path).settings
    assert (settings.model_config.get("extra"), settings.model_config.get("frozen")) == ("forbid", True)
    assert list(settings.model_fields) == list(chapter(path).defaults)
    settings(**chapter(path).defaults)


@EVERY
def test_a_chapter_has_a_paper_preset(path):
    assert "paper" in chapter(path).presets


@pytest.mark.parametrize("file", PRESETS, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_presets_name_existing_parameters_and_validate(file):
    assert file.stem in project.chapters(ROOT)
    values, resolved = yaml.safe_load(file.read_text()), Chapter.read(ROOT, file.stem).resolve(file.parent.name, {})
    assert {name: resolved[name] for name in values} == values


@EVERY
def test_a_chapter_has_audit_settings_that_it_takes(path):
    audit = audit_settings(chapter(path))
    for values in (audit.small, *(changed for parameter in audit.other for changed in audit.with_parameter(parameter))):
        chapter(path).settings(**{**chapter(path).defaults, **values})


@EVERY
def test_imports_stand_in_one_cell_and_are_used(path):
    code = cells(path, "code")
    for cell in code:
        if not {"imports", "setup", "idea"} & set(tags(cell)):  # the idea can be retyped as it stands
            found = [node for node in ast.walk(python(cell)) if isinstance(node, (ast.Import, ast.ImportFrom))]
            assert found == [], f"an import in {cell['source'][:60]!r}"
    imported = next(cell for cell in code if "imports" in tags(cell))
    assert all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in python(imported).body)
    used = {leaf.id for cell in code for leaf in ast.walk(python(cell)) if isinstance(leaf, ast.Name)}
    for node in python(imported).body:
        for alias in node.names:
            assert alias.name != "*"
            assert (alias.asname or alias.name).split(".")[0] in used, f"{alias.name} is imported and not used"


@EVERY
def test_outputs_are_kept_for_checked_cells_only(path):
    checked = [cell for cell in cells(path, "code") if "nbval-check-output" in tags(cell)]
    assert checked, "without a checked cell nbval compares nothing"
    for cell in cells(path, "code"):
        if cell in checked:
            assert isinstance(cell["execution_count"], int), "nbval passes over a cell without an execution count"
            assert cell["outputs"] != []
            assert all(output["output_type"] != "error" for output in cell["outputs"])
        else:
            assert (cell["execution_count"], cell["outputs"]) == (None, []), cell["source"][:60]


@EVERY
def test_a_chapter_is_short_enough_to_read(path):
    lists = {"imports", "settings"}  # hidden: names, and what each parameter may be; they grow with the chapter
    lengths = [code_lines(cell) for cell in cells(path, "code") if not lists & set(tags(cell))]
    assert max(lengths) <= 25
    assert 12 <= len(lengths) <= audit_settings(chapter(path)).code_cells
    assert statistics.median(lengths) <= 12
    words = sum(len(cell["source"].split()) for cell in cells(path, "markdown"))
    assert words > sum(lengths)


@EVERY
def test_every_figure_has_caption_label_and_alternative_text(path):
    drawing = [cell for cell in cells(path, "code") if DRAWS.search(cell["source"])]
    assert drawing != []
    names = []
    for cell in drawing:
        mystnb = cell["metadata"].get("mystnb", {})
        figure, alt = mystnb.get("figure", {}), mystnb.get("image", {}).get("alt", "")
        assert len(figure.get("caption", "").split()) >= 5, cell["source"][:60]
        assert len(alt.split()) >= 5, cell["source"][:60]
        names.append(figure["name"])
    assert all(re.fullmatch(r"fig-[a-z0-9-]+", name) for name in names)
    assert len(names) == len(set(names))


@EVERY
def test_prose_reads_the_same_in_colab_and_in_the_book(path):
    for cell in cells(path, "markdown"):
        assert not MYST_ONLY.search(cell["source"]), cell["source"][:200]


@EVERY
def test_sources_that_claims_and_prose_name_are_in_the_bibliography(path):
    keys = {claim.cite for claim in registered_claims(path.stem, path.parent / "claims").values()} - {""}
    assert keys != set()
    for cell in cells(path, "markdown"):
        keys |= {key.strip() for cited in CITED.findall(cell["source"]) for key in cited.split(",")}
    assert keys - BIBLIOGRAPHY == set()


@EVERY
def test_no_trace_of_a_machine_and_no_secret(path):
    text = path.read_text()
    assert not OF_A_MACHINE.search(text)
    assert not SECRET.search(text)
    assert set(json.loads(text)["metadata"]) <= {"kernelspec", "language_info", "colab", "checked_on"}


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (OF_A_MACHINE, '"/home/me/data"'),
        (OF_A_MACHINE, "lib/python3.11/site-packages/x.py"),
        (SECRET, "token = 'abcdefgh12'"),
        (MYST_ONLY, "as {cite:t}`baker2022gradientsvd` says"),
        (MYST_ONLY, "```{note}"),
        (MYST_ONLY, "text\n:::{tip}"),
        (LITERAL, 'rate = 0.1  #@param {type:"number"}  # per step'),
        (LITERAL, 'rate = 0.1  # @param {type:"number"}'),  # ruff's form of it
        (DRAWS, 'save_figure(fig, settings.figures_dir, "x")'),
    ],
)
def test_the_patterns_find_what_they_look_for(pattern, text):
    assert pattern.search(text)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (OF_A_MACHINE, "https://example.org/home/page"),
        (OF_A_MACHINE, "Path(settings.results_dir) / 'tmp/x'"),
        (MYST_ONLY, "$\\mathbb{R}$ and `code`"),
        (MYST_ONLY, "a post of 2022 {cite:p}`baker2022gradientsvd`"),
        (LITERAL, "rate = 0.1"),
        (DRAWS, "showing = 3"),
    ],
)
def test_the_patterns_pass_what_is_allowed(pattern, text):
    assert not pattern.search(text)


@EVERY
def test_the_text_of_a_figure_is_the_same_in_its_output_and_in_the_book(path):
    shown = {}
    for cell in cells(path, "code"):
        for node in ast.walk(python(cell)):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "show":
                shown[ast.literal_eval(node.args[1])] = cell["metadata"]["mystnb"]["image"]["alt"]
    alone = any("show_figure(" in cell["source"] for cell in cells(path, "code"))  # the text stands in metadata alone
    assert bool(shown) != alone
    assert all(output == book for output, book in shown.items())
