"""One address and one tag: `_config.yml` states them, and every badge, link and setup cell agrees."""

import importlib.util
import json
import re
import shutil
import tomllib
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from IPython.core.inputtransformer2 import TransformerManager
from packaging.requirements import Requirement

import descent
from descent_book.run import address

ROOT = Path(__file__).parents[2]
HERE = address.configured_repository(ROOT)
ADDRESS, TAG = HERE.url, HERE.tag
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
OTHER = "https://github.com/someone/another.book"
SLUG = re.compile(r"(?:colab\.research\.google\.com/github|github\.com)/([\w-]+/[\w.-]+?)(?:\.git)?(?=[/)@\"'\s]|$)")


def cells(path: Path) -> list[dict]:
    return json.loads(path.read_text())["cells"]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The stamped files alone, with a README that has a link of each form."""
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    (tmp_path / address.TEMPLATE).parent.mkdir(parents=True)
    shutil.copy(ROOT / address.TEMPLATE, tmp_path / address.TEMPLATE)
    (tmp_path / "README.md").write_text(readme(HERE) + f"{ADDRESS}-fork and https://github.com/torch/torch {TAG}\n")
    return tmp_path


def readme(there: address.Repository) -> str:
    badge = f"[![Open in Colab](https://colab.research.google.com/x.svg)]({there.colab_address('gradient_svd')})"
    links = f"{badge}\n[code]({there.url})\ngit clone {there.url}.git\n"
    binder = f"https://mybinder.org/v2/gh/{there.slug}/{there.tag}?labpath=notebooks\n"
    return f"{links}{binder}pip install git+{there.url}@{there.tag}\n"


def test_there_is_a_chapter_to_check() -> None:
    assert NOTEBOOKS


@pytest.mark.parametrize("path", [*NOTEBOOKS, ROOT / address.TEMPLATE], ids=lambda path: path.stem)
def test_chapter_agrees_with_config(path: Path) -> None:
    setup = [cell for cell in cells(path) if "setup" in cell["metadata"].get("tags", [])]
    assert ["".join(cell["source"]) for cell in setup] == [HERE.setup_source()]
    assert HERE.colab_link(path.stem) in "".join(cells(path)[0]["source"])


def test_repository_is_stamped(copy: Path) -> None:
    """Nothing to change: every place agrees."""
    assert address.stamp(copy) == []


@pytest.mark.parametrize("page", [page for page in address.PAGES if (ROOT / page).is_file()])
def test_page_names_no_other_address_of_the_book(page: str) -> None:
    name = ADDRESS.rsplit("/", 1)[1]
    slugs = {slug for slug in SLUG.findall((ROOT / page).read_text()) if slug.endswith("/" + name) or "OWNER" in slug}
    assert slugs <= {HERE.slug}


def test_links_of_the_readme_that_run_something_name_the_edition() -> None:
    tags = re.findall(rf"{HERE.slug}(?:/blob/|/|@)([^/?)\s]+)", (ROOT / "README.md").read_text())
    assert len(tags) >= 2
    assert set(tags) == {TAG}


STAMPED = {Path("README.md"), Path("_config.yml"), address.TEMPLATE, *(path.relative_to(ROOT) for path in NOTEBOOKS)}


@pytest.mark.parametrize(("url", "tag"), [(OTHER + ".git", None), (None, "v9.1"), (OTHER, "v9.1")])
def test_new_address_and_tag_reach_every_place(url: str | None, tag: str | None, copy: Path) -> None:
    new = address.Repository(OTHER if url else ADDRESS, tag or TAG)
    assert set(address.stamp(copy, url, tag)) == STAMPED
    assert address.configured_repository(copy) == new
    for path in [*(copy / "notebooks").glob("*.ipynb"), copy / address.TEMPLATE]:
        assert f"git+{new.url}@{new.tag}" in path.read_text()
        assert f"{new.slug}/blob/{new.tag}/notebooks/{path.name}" in path.read_text()
        assert not (url and ADDRESS in path.read_text())
    assert (copy / "README.md").read_text() == (
        readme(new) + f"{ADDRESS}-fork and https://github.com/torch/torch {TAG}\n"
    )
    assert address.stamp(copy) == []


def test_the_tag_is_that_of_the_packages_version() -> None:
    """So a kept copy of a notebook installs the library that it was made for, and not what names have become since."""
    assert f"v{descent.__version__}" == TAG
    assert f"\nversion: {descent.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_there_and_back_restores_every_byte(copy: Path) -> None:
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    address.stamp(copy, OTHER, "main")
    address.stamp(copy, ADDRESS, TAG)
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_mends_a_setup_cell_and_adds_the_link(copy: Path) -> None:
    path = next((copy / "notebooks").glob("*.ipynb"))
    notebook = json.loads(path.read_text())
    notebook["cells"][0]["source"] = "# A title"
    next(cell for cell in notebook["cells"] if "setup" in cell["metadata"].get("tags", []))["source"] = ["import os"]
    path.write_text(json.dumps(notebook))
    assert address.stamp(copy) == [path.relative_to(copy)]
    assert "".join(cells(path)[0]["source"]) == "# A title\n\n" + HERE.colab_link(path.stem)
    assert address.stamp(copy) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        *(
            ([url], f"url={url!r}: expected https://github.com/OWNER/REPO")
            for url in ("github.com/a/b", "https://gitlab.com/a/b", "https://github.com/a", "https://github.com/a/b c")
        ),
        *(([OTHER, "--tag", tag], f"tag={tag!r}: expected a tag such as v0.2.0") for tag in ("a b", "x/y", ".x")),
    ],
)
def test_bad_address_or_tag_is_refused_before_any_change(
    arguments: list[str], said: str, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    monkeypatch.chdir(copy)
    done = CliRunner().invoke(address.main, arguments)
    assert (done.exit_code, done.output) == (2, f"refused: {said}\n")
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("text", ["title: [", "title: x", "repository: {url: https://github.com/a/b}", "- repository"])
def test_settings_without_address_or_tag_are_refused(text: str, copy: Path) -> None:
    (copy / "_config.yml").write_text(text)
    with pytest.raises(ValueError, match=r"_config\.yml: expected `repository`"):
        address.stamp(copy, OTHER)


def test_notebook_without_setup_cell_is_refused(copy: Path) -> None:
    path = next((copy / "notebooks").glob("*.ipynb"))
    notebook = json.loads(path.read_text())
    notebook["cells"] = [cell for cell in notebook["cells"] if "setup" not in cell["metadata"].get("tags", [])]
    path.write_text(json.dumps(notebook))
    with pytest.raises(ValueError, match=f"{path.stem}: 0 cells are tagged `setup`; expected one"):
        address.stamp(copy, OTHER)
    assert address.configured_repository(copy) == HERE


PLACES = {"colab": {"COLAB_RELEASE_TAG": "x"}, "kaggle": {"KAGGLE_KERNEL_RUN_TYPE": "Interactive"},
          "binder": {"BINDER_SERVICE_HOST": "10.0.0.1"}, "vscode": {"VSCODE_PID": "1"}, "jupyter": {}}  # fmt: skip
HOSTED = ("colab", "kaggle")


@pytest.fixture
def run_setup(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Execute the set-up cell as IPython would, in a place with or without the library, by a pip that may fail."""
    real = importlib.util.find_spec

    def run(place: str, installed: bool, pip_works: bool = True) -> list[str]:
        names: dict[str, Any] = {}
        commands: list[str] = []

        def magic(name: str, line: str) -> None:
            commands.append(f"{name} {line.format_map(names)}")

        def find_spec(name: str) -> Any:
            return None if name == "descent" and not (installed or (commands and pip_works)) else real(name)

        monkeypatch.setattr(importlib.util, "find_spec", find_spec)
        for variable in {name for variables in PLACES.values() for name in variables}:
            monkeypatch.delenv(variable, raising=False)
        for variable, value in PLACES[place].items():
            monkeypatch.setenv(variable, value)
        names["get_ipython"] = lambda: types.SimpleNamespace(run_line_magic=magic)
        exec(compile(TransformerManager().transform_cell(HERE.setup_source()), "setup", "exec"), names)
        return commands

    return run


@pytest.mark.parametrize("place", PLACES)
def test_the_setup_cell_installs_nothing_where_the_library_is_there(place: str, run_setup: Any, capsys: Any) -> None:
    assert run_setup(place, installed=True) == []
    assert ("This chapter computes on the CPU" in capsys.readouterr().out) == (place in HOSTED)


@pytest.mark.parametrize("place", HOSTED)
def test_the_setup_cell_installs_the_edition_in_colab_and_on_kaggle(place: str, run_setup: Any, capsys: Any) -> None:
    own, others = run_setup(place, installed=False)
    assert own == f"pip install -q --no-deps git+{ADDRESS}@{TAG}"
    assert others.startswith('pip install -q "filelock>=')
    assert "How many minutes it takes" in capsys.readouterr().out


@pytest.mark.parametrize("place", PLACES)
def test_the_setup_cell_says_what_to_do_where_the_library_stays_missing(place: str, run_setup: Any) -> None:
    with pytest.raises(AssertionError) as caught:
        run_setup(place, installed=False, pip_works=False)
    assert str(caught.value) == (
        f"Install the book's library: `make book` in a clone and its kernel .venv, or %pip install git+{ADDRESS}@{TAG}"
    )


def test_what_the_library_needs_is_colabs_own_or_installed_by_the_setup_cell() -> None:
    """`colab-image.txt` is checked against Colab by the nightly run in Google's image, on which Kaggle's is built."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    image = (ROOT / "tests" / "audits" / "colab-image.txt").read_text().splitlines()
    theirs = {Requirement(line).name for line in image if not line.startswith("#")}
    (line,) = re.findall(r"%pip install -q ((?:\"\S+\" ?)+)$", HERE.setup_source(), re.MULTILINE)
    added = {Requirement(each).name: each for each in line.replace('"', "").split()}
    needed = {Requirement(each).name: each for each in project["dependencies"]}
    assert set(needed) - theirs <= set(added)
    assert added == {name: needed[name] for name in added}, "with the bounds of pyproject.toml"
    assert f"pip install --quiet {line}\n" in (ROOT / "Makefile").read_text(), "make colab installs the same"


def test_setup_cell_asks_for_nothing_more() -> None:
    source = HERE.setup_source()
    assert "--no-deps" in source
    assert max(map(len, source.splitlines())) <= 120
    assert sum(map(bool, source.splitlines())) <= 12, "half of a chapter's cells are no longer"
    for word in ("drive", "chdir", "sys.path", "torch==", "git clone"):
        assert word not in source


def test_binder_installs_this_checkout_at_the_editions_versions() -> None:
    lines = (ROOT / ".binder" / "requirements.txt").read_text().splitlines()
    assert lines[1:] == [
        "--extra-index-url https://download.pytorch.org/whl/cpu",  # torch's own, which its documentation names
        "--constraint ../requirements.txt",
        "--editable .",
    ]
    assert (
        ROOT / ".binder" / "runtime.txt"
    ).read_text() == "python-3.11\n"  # the oldest that is tested, and the lock's
    assert 'requires-python = ">=3.11"' in (ROOT / "pyproject.toml").read_text()
