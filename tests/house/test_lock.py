"""The environment is locked: every package by its version, every file by its hash, from whichever index it comes."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from descent.checkout import project_root

ROOT = project_root()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NOT_HASHED = {"torch"}  # its CPU and CUDA builds have one version and different files: pinned in requirements.txt alone
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")
ADDRESS = re.compile(r"https?://[\w./-]+/(?:simple|whl)|--(?:extra-)?index-url|--find-links|--trusted-host|file://")


def locked(name: str) -> dict[str, list[tuple[Requirement, int]]]:
    """Package -> its requirements, one for each marker, with the count of their hashes."""
    found: dict[str, list[tuple[Requirement, int]]] = {}
    for line in (ROOT / name).read_text().replace("\\\n", " ").splitlines():
        stated = HASH.sub("", line.split("#")[0]).strip()
        if stated:
            requirement = Requirement(stated)
            found.setdefault(canonicalize_name(requirement.name), []).append((requirement, len(HASH.findall(line))))
    return found


LOCK, PINS = locked("requirements.lock"), locked("requirements.txt")
DIRECT = [
    *map(Requirement, PROJECT["dependencies"]),
    *(Requirement(each) for group in PROJECT["optional-dependencies"].values() for each in group),
]


def pin(requirement: Requirement) -> Version:
    (specifier,) = requirement.specifier
    assert specifier.operator == "==", requirement
    return Version(specifier.version)


@pytest.mark.promise("R9")
def test_every_file_that_is_installed_is_known_by_its_hash(record_property):
    counts = [count for rows in LOCK.values() for _, count in rows]
    assert min(counts) >= 1
    assert set(PINS) - set(LOCK) == NOT_HASHED
    record_property("packages locked by the hashes of their files", len(LOCK))
    record_property("packages pinned by version alone (torch, whose builds differ from index to index)", 1)


def test_every_requirement_is_pinned_to_one_version_for_one_machine():
    for known in (LOCK, PINS):
        for rows in known.values():
            assert all(pin(requirement) for requirement, _ in rows)
            for python in ("3.11.7", "3.12.3", "3.13.1"):
                machine = {**default_environment(), "python_version": python[:4], "python_full_version": python}
                assert sum(not each.marker or each.marker.evaluate(machine) for each, _ in rows) <= 1


def test_the_lock_has_the_versions_of_the_published_edition():
    both = set(LOCK) & set(PINS)
    assert {name: sorted(map(str, (each for each, _ in LOCK[name]))) for name in both} == {
        name: sorted(map(str, (each for each, _ in PINS[name]))) for name in both
    }


@pytest.mark.parametrize("requirement", DIRECT, ids=lambda requirement: requirement.name)
def test_what_pyproject_asks_for_is_in_the_lock_and_satisfies_it(requirement):
    name = canonicalize_name(requirement.name)
    versions = [pin(each) for each, _ in (LOCK | {"torch": PINS["torch"]})[name]]
    assert versions
    assert all(version in requirement.specifier for version in versions)
    assert [each.operator for each in requirement.specifier if each.operator == ">="] == [">="], "a lower bound"


def requirements(*groups: str) -> set[str]:
    """What a plain install asks for, or these extras, by name."""
    stated = [each for group in groups for each in PROJECT["optional-dependencies"][group]]
    return {canonicalize_name(Requirement(each).name) for each in stated or PROJECT["dependencies"]}


def is_for_later(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef) or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")


def imports(tree: ast.AST, when_imported: bool) -> Iterator[str]:
    """The first names of what the code imports: anywhere, or only as it is imported itself."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (each.name.partition(".")[0] for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0]
        elif not (when_imported and is_for_later(node)):
            yield from imports(node, when_imported)


def distributions(package: str, when_imported: bool = False) -> set[str]:
    """The packages of others that a package of ours imports, by the names under which they are installed."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "lib" / package).rglob("*.py")]
    found = {name for tree in trees for name in imports(tree, when_imported)} - sys.stdlib_module_names
    known = packages_distributions()
    return {canonicalize_name(known.get(name, [name])[0]) for name in found - {"descent", "descent_book"}}


def test_the_library_needs_what_it_imports_and_nothing_else():
    assert distributions("descent", when_imported=True) <= requirements()
    compared = {"concept-erasure"}  # by the chapter `steering`, with what the library computes
    assert distributions("descent") | compared == requirements() | requirements("cluster", "steering")


def test_the_machine_needs_what_it_imports_and_nothing_else():
    started = {"ipykernel": "ipykernel_launcher", "jupyter-book": "jupyter_book", "sphinx-mathjax-offline": None}
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "lib" / "descent_book").rglob("*.py"))
    assert all((word or name) in source for name, word in started.items()), "started or read, never imported"
    assert distributions("descent_book", when_imported=True) <= requirements() | requirements("book")
    assert requirements("book") <= distributions("descent_book") | set(started)
    assert distributions("descent_book") - requirements() - requirements("book") <= requirements("dev")


@pytest.mark.parametrize("name", ["requirements.lock", "requirements.txt", "pyproject.toml", "Makefile"])
def test_no_index_is_named(name):
    assert ADDRESS.findall((ROOT / name).read_text()) == []


def test_the_checks_find_what_they_look_for(tmp_path, monkeypatch):
    code = ast.parse("import a.b\nif TYPE_CHECKING:\n    import c\nclass K:\n    def f():\n        from d.e import f")
    assert list(imports(code, when_imported=True)) == ["a"]
    assert list(imports(code, when_imported=False)) == ["a", "c", "d"]
    assert ADDRESS.search("pip install --extra-index-url x")
    assert ADDRESS.search("at https://example.org/simple")
    with pytest.raises(AssertionError):
        pin(Requirement("numpy>=2"))
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "lock").write_text(
        "# words\na==1 \\\n    --hash=sha256:" + "0" * 64 + "\nb==2 ; python_version < '3.12'\n"
    )
    assert {name: [count for _, count in rows] for name, rows in locked("lock").items()} == {"a": [1], "b": [0]}
