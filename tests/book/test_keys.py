"""Keys of the real chapters under changes of the library, and what else than definitions a key is made of."""

import ast
import copy
import dataclasses
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from small_project import read

from descent.checkout import project_root
from descent_book.run.definitions import Library
from descent_book.run.keys import Key, counted_sources, differences, key_of
from descent_book.run.meaning import Definition
from descent_book.run.project import chapters
from descent_book.run.syntax import Module

ROOT = project_root()
CHAPTERS = chapters(ROOT)
LIBRARY = Library(ROOT / "lib" / "descent")


SOURCES = {chapter: counted_sources(read(ROOT / "notebooks" / f"{chapter}.ipynb")) for chapter in CHAPTERS}


def key(chapter: str, library: Library = LIBRARY, cells: Sequence[str] | None = None) -> Key:
    """The key less data and pins, which are hashed anew at each call: `tmp` has none."""
    return key_of(Path("nowhere"), library, chapter, cells or SOURCES[chapter], {})


KEYS = {chapter: key(chapter) for chapter in CHAPTERS}


def numbers_in(node: ast.AST) -> Iterator[ast.Constant]:
    """The numbers that a statement computes with: not those of annotations."""
    for name, value in ast.iter_fields(node):
        if name not in ("annotation", "returns"):
            for each in value if isinstance(value, list) else [value]:
                if isinstance(each, ast.AST):
                    yield from numbers_in(each)
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        yield node


def with_another_number(definitions: Sequence[Definition]) -> Library:
    """The library with one more in the innermost number of each definition; the others stay parsed."""
    changed = Library(LIBRARY.folder)
    changed._modules = {name: module for name, module in LIBRARY._modules.items() if "notebooks" not in name}
    for definition in definitions:
        module = changed._modules[definition.module]
        assert module is not None
        old = next(each for each in module.bindings[definition.name] if any(numbers_in(each)))
        new = copy.deepcopy(old)
        *_, number = numbers_in(new)
        number.value += 1
        statements = [new if each is old else each for each in module.statements]
        bindings = {n: [new if each is old else each for each in bound] for n, bound in module.bindings.items()}
        changed._modules[module.name] = dataclasses.replace(module, bindings=bindings, statements=statements)
    touched = {definition.module for definition in definitions}
    changed._meanings = {
        d: m for d, m in LIBRARY._meanings.items() if d.module not in touched and "note" not in d.module
    }
    return changed


def all_with_numbers() -> list[Definition]:
    """Every definition of the library that has a number."""
    files = sorted(LIBRARY.folder.rglob("*.py"))
    names = [".".join(f.relative_to(LIBRARY.folder.parent).with_suffix("").parts) for f in files]
    modules = [module for name in names if (module := LIBRARY.module(name.removesuffix(".__init__")))]
    return [
        Definition(module.name, name)
        for module in modules
        for name, bound in module.bindings.items()
        if any(any(numbers_in(statement)) for statement in bound)
    ]


WITH_NUMBERS = all_with_numbers()


def reached(chapter: str) -> list[Definition]:
    return [each for each in WITH_NUMBERS if str(each) in KEYS[chapter].definitions]


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_another_number_in_each_definition_that_is_reached_is_named(chapter: str) -> None:
    known = reached(chapter)
    assert len(known) > 20
    found = differences(KEYS[chapter].noted(), key(chapter, with_another_number(known)).noted())
    assert {f"{definition.name} differs" for definition in known} <= set(found)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_another_number_in_one_definition_that_is_reached_makes_the_chapter_stale(chapter: str) -> None:
    for definition in reached(chapter)[::10]:  # a sample: each takes a key of its own
        changed = key(chapter, with_another_number([definition]))
        assert changed.digest != KEYS[chapter].digest, definition
        assert f"{definition.name} differs" in differences(KEYS[chapter].noted(), changed.noted()), definition


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_other_numbers_in_all_that_is_not_reached_change_nothing(chapter: str) -> None:
    known = {*KEYS[chapter].definitions, *KEYS[chapter].effects}
    counted = {id(each) for name in known for each in LIBRARY.statements(Definition(*name.rsplit(".", 1)))}
    others = [d for d in WITH_NUMBERS if not any(id(each) in counted for each in LIBRARY.statements(d))]
    assert len(others) > 20
    assert key(chapter, with_another_number(others)).digest == KEYS[chapter].digest


def rewritten(tmp_path: Path, change: object) -> Library:
    folder = shutil.copytree(LIBRARY.folder, tmp_path / "lib" / "descent", ignore=shutil.ignore_patterns("__pycache__"))
    for file in [*folder.rglob("*.py"), *folder.rglob("*.pyi")]:
        file.write_text(change(file.read_text()))  # type: ignore[operator]
    return Library(folder)


class OtherWords(ast.NodeTransformer):
    """Every docstring reworded, every annotation of a function gone; layout and comments go with `ast.unparse`."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr:
        return ast.Expr(ast.Constant("Other words.")) if isinstance(node.value, ast.Constant) else node

    def visit_arg(self, node: ast.arg) -> ast.arg:
        return ast.arg(node.arg)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)


def test_words_layout_and_annotations_of_the_whole_library_change_no_key(tmp_path: Path) -> None:
    def change(text: str) -> str:
        return ast.unparse(ast.fix_missing_locations(OtherWords().visit(ast.parse(text))))

    library = rewritten(tmp_path, change)
    assert {c: key(c, library).digest for c in CHAPTERS} == {c: k.digest for c, k in KEYS.items()}


def test_a_room_that_moves_changes_no_key(tmp_path: Path) -> None:
    def change(text: str) -> str:
        return re.sub(r"\bdescent\.(repro|spectra|training)\b", r"descent.experiments.\1", text)

    library = rewritten(tmp_path, change)
    for room in ("repro", "spectra", "training"):
        (library.folder / room).rename(library.folder / "experiments" / room)
    moved = {c: key(c, library, [change(cell) for cell in SOURCES[c]]).digest for c in CHAPTERS}
    assert moved == {c: k.digest for c, k in KEYS.items()}


def names_of_definitions_alone() -> set[str]:
    """Names of functions and classes that stand for nothing else anywhere: no attribute, argument, local name, text."""
    trees = [ast.parse(f.read_text()) for f in LIBRARY.folder.rglob("*.py")]
    tops = [node for tree in trees for node in tree.body]
    trees += [ast.parse(re.sub("(?m)^[%!].*", "", cell)) for cells in SOURCES.values() for cell in cells]
    # an empty exception is told from another by its name alone, which then counts
    empty = [node for node in tops if isinstance(node, ast.ClassDef) and len(node.body) == 1]
    names = {n.name for n in tops if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n not in empty}
    other: set[str] = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        other |= {getattr(node, name) or "" for name in ("attr", "arg", "module") if hasattr(node, name)}
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            other.add(node.id)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            other |= set(re.findall(r"\w+", node.value))
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node not in tops:
            other.add(node.name)
    return names - {word for each in other for word in each.split(".")}


def test_every_function_and_class_under_another_name_changes_no_key(tmp_path: Path) -> None:
    names = names_of_definitions_alone()
    assert len(names) > 100

    def change(text: str) -> str:
        return re.sub(rf"\b({'|'.join(sorted(names))})\b", r"\1_renamed", text)

    library = rewritten(tmp_path, change)
    renamed = {c: key(c, library, [change(cell) for cell in SOURCES[c]]) for c in CHAPTERS}
    assert [c for c in CHAPTERS if renamed[c].digest != KEYS[c].digest] == []
    assert any("_renamed" in name for name in renamed["saddles"].definitions)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_nothing_of_a_cell_that_does_not_count_is_used_in_one_that_does(chapter: str) -> None:
    cells = read(ROOT / "notebooks" / f"{chapter}.ipynb")["cells"]
    setup = Module("setup", "")
    for cell in cells:
        if "setup" in cell["metadata"].get("tags", []):
            setup.read(ast.parse(re.sub(r"(?m)^(\s*)[%!].*$", r"\1pass", "".join(cell["source"]))).body)
    assert setup.imports
    notebook = Library(LIBRARY.folder).add(chapter, ast.parse("\n".join(SOURCES[chapter])).body)
    used = {leaf.id for each in notebook.statements for leaf in ast.walk(each) if isinstance(leaf, ast.Name)}
    assert used & {*setup.imports, *setup.bindings} <= {*notebook.imports, *notebook.bindings}


def made(root: Path, cell: str = "1", parameters: dict[str, object] | None = None, **files: str) -> Key:
    """The key of a cell beside a small library and the files given: `{path: text}`."""
    texts = {"lib/descent/__init__.py": "", "lib/descent/a.py": "def f(): return 1", **files}
    for name, text in texts.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return key_of(root, root / "lib" / "descent", "chapter", [cell], parameters or {})


RECORD = "data/records/other/seed-0.npz"
WEIGHT = "data/checkpoints/net.safetensors"
NAMED = {
    "a record of the chapter's own name": ("1", "", "data/records/chapter/a.npz"),
    "a record that the chapter names": ("folder('other')", "", RECORD),
    "a record in a longer path": ("folder('data/records/other')", "", RECORD),
    "a record that a function names": ("from descent.a import f", "def f(): return 'other'", RECORD),
    "a record that a constant names": ("from descent.a import f", "NAME = 'other'\ndef f(): return NAME", RECORD),
    "a record that is read at import": ("from descent.a import f", "open('other')\ndef f(): return 1", RECORD),
    "weights that the chapter names": ("root / 'data' / 'checkpoints'", "", WEIGHT),
    "weights in one path": ("open('data/checkpoints/net')", "", WEIGHT),
    "weights in two statements": ("data = root / 'data'\ndata / 'checkpoints'", "", WEIGHT),
    "weights that a function names": ("from descent.a import f", "def f(r): return r / 'data' / 'checkpoints'", WEIGHT),
    "weights beside a constant": (
        "from descent.a import f",
        "DATA = 'data'\ndef f(r): return r / DATA / 'checkpoints'",
        WEIGHT,
    ),
    "weights in the data folder": (
        "from descent.a import f",
        "def data_folder(): return 1\ndef f(): return data_folder() / 'checkpoints'",
        WEIGHT,
    ),
    "weights whose folder is handed over": (
        "from descent.a import f",
        "def data_folder(): return 1\ndef g(x): return data_folder() / x\ndef f(): return g('checkpoints')",
        WEIGHT,
    ),
    "weights below a folder with a name": (
        "from descent.a import f",
        "def data_folder(): return 1\nBASE = data_folder()\ndef f(): return BASE / 'checkpoints' / 'net'",
        WEIGHT,
    ),
    "weights in a folder of their own": ("root / 'data' / 'checkpoints' / 'early'", "", "data/checkpoints/early/net"),
    "a record by the beginning of its name": ("folder(f'oth-{n}')", "", "data/records/oth-1/a.npz"),
    "a record by a pattern": ("records.glob('oth*')", "", RECORD),
    "a file that stands beside the code": ("from descent.a import f", "def f(): return 't.csv'", "lib/descent/t.csv"),
}


@pytest.mark.parametrize("case", NAMED)
def test_a_file_that_the_code_names_counts(case: str, tmp_path: Path) -> None:
    cell, text, file = NAMED[case]
    library = {"lib/descent/a.py": text or "def f(): return 1"}
    before = made(tmp_path, cell, **library, **{file: "one"})
    after = made(tmp_path, cell, **library, **{file: "other"})
    assert before.digest != after.digest
    assert differences(before.noted(), after.noted()) == [
        f"the data {file.removeprefix('data/').removeprefix('lib/')} differ"
    ]


def test_records_and_weights_that_are_not_named_do_not_count(tmp_path: Path) -> None:
    cell = "print('checkpoints are kept, other records are not')"
    known = [made(tmp_path, cell, **{RECORD: text, WEIGHT: text}) for text in ("one", "other")]
    assert known[0].digest == known[1].digest
    assert known[0].data == {}


def test_weights_in_a_folder_that_is_not_named_do_not_count(tmp_path: Path) -> None:
    cell, early = "root / 'data' / 'checkpoints'", "data/checkpoints/early/net.safetensors"
    known = [made(tmp_path, cell, **{WEIGHT: "one", early: text}) for text in ("one", "other")]
    assert known[0].digest == known[1].digest
    assert list(known[0].data) == ["checkpoints/net.safetensors"]


def test_a_record_that_a_parameter_names_counts(tmp_path: Path) -> None:
    known = [made(tmp_path, "1", {"runs": "other"}, **{RECORD: text}) for text in ("one", "other")]
    assert known[0].digest != known[1].digest


PINS = "numpy==1 ; python_version < '3'  # why\nscikit-learn==1\nscikit_image==1\ntqdm==1\nsphinx==1\nnew-lib==1\n"
PINNED = {
    "numpy": ("1", "numpy", True),
    "of another name": ("from sklearn import svm\nsvm.SVC", "scikit-learn", True),
    "reached in the library": ("from descent.a import g", "scikit-learn", True),
    "imported by its name as text": ("import importlib\nimportlib.import_module('sklearn.svm')", "scikit-learn", True),
    "not known to this code": ("import new_lib\nnew_lib.fit()", "new-lib", True),
    "not used": ("1", "scikit-learn", False),
    "that decides no number": ("from tqdm import tqdm\ntqdm()", "tqdm", False),
    "of the book": ("1", "sphinx", False),
}


@pytest.mark.parametrize("case", PINNED)
def test_the_pin_of_a_package_counts_where_it_may_decide_a_number(case: str, tmp_path: Path) -> None:
    cell, package, counts = PINNED[case]
    library = {"lib/descent/a.py": "import sklearn.svm\ndef g(): return sklearn.svm.SVC()"}
    before = made(tmp_path, cell, **library, **{"requirements.txt": PINS})
    after = made(tmp_path, cell, **library, **{"requirements.txt": PINS.replace(f"{package}==1", f"{package}==2")})
    assert (before.digest != after.digest) == counts
    assert not counts or differences(before.noted(), after.noted())[0].startswith(f"pin {package}==1")


CELLS = {
    "a statement of the imports cell that is no import": ("import os\nSEED = 1", "import os\nSEED = 2", True),
    "an import of another package": ("from torch import sum as f\nf()", "from torch import mean as f\nf()", True),
    "an import that is not used": ("1 + 1", "import os\n1 + 1", False),
    "another name for what is imported": ("from torch import sum\nsum()", "from torch import sum as s\ns()", False),
    "a number that a cell shows": ("1", "2", True),
    "a text that a cell shows": ("'one'", "'other'", True),
    "a comment and the layout": ("f(1,2)  # one", "f(1, 2)", False),
    "a line of IPython": ("%run one.py", "%run other.py", True),
    "a remainder at the start of a line": ("x = (5\n% 3)", "x = (5\n% 2)", True),
    "a line of text that looks like IPython's": ('x = """\n!one\n"""', 'x = """\n!other\n"""', True),
}


@pytest.mark.parametrize("case", CELLS)
def test_which_part_of_a_cell_counts(case: str, tmp_path: Path) -> None:
    one, other, counts = CELLS[case]
    before, after = (made(tmp_path, cell) for cell in (one, other))
    assert (before.digest != after.digest) == counts
    assert not counts or differences(before.noted(), after.noted()) == ["the chapter's own code differs"]


def test_to_which_cell_a_statement_belongs_counts_and_cells_of_imports_do_not(tmp_path: Path) -> None:
    made(tmp_path)

    def digest(*cells: str) -> str:
        return key_of(tmp_path, tmp_path / "lib" / "descent", "chapter", cells, {}).digest

    assert digest("import os", "f()\ng()", "h()") == digest("f()\ng()", "import os\nh()")
    assert digest("f()\ng()", "h()") != digest("f()", "g()\nh()")


def test_a_parameter_counts_by_name_and_value(tmp_path: Path) -> None:
    before, after = made(tmp_path, "1", {"seed": 0, "steps": 5}), made(tmp_path, "1", {"seed": 1, "runs": 2})
    assert before.digest != after.digest
    found = differences(*({**each.noted(), "parameters": each.parameters} for each in (before, after)))
    assert found == ["parameter runs differs", "parameter seed differs", "parameter steps differs"]


def test_a_cell_that_is_no_python_is_refused_by_the_chapters_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"chapter: not Python \(invalid syntax\)"):
        made(tmp_path, "f(:")


def test_keys_are_the_same_on_every_python_of_this_machine() -> None:
    program = "\n".join(
        (
            "import json, sys; from pathlib import Path; from types import ModuleType",
            "for name in ('descent_book', 'descent_book.run'):  # without what the packages themselves ask for",
            "    sys.modules[name] = package = ModuleType(name)",
            "    package.__path__ = [str(Path(sys.argv[1]).parent.joinpath(*name.split('.')))]",
            "from descent_book.run.keys import key_of",
            "cells, library = json.load(sys.stdin), Path(sys.argv[1])",
            "print(json.dumps({c: key_of(Path('nowhere'), library, c, cells[c], {}).digest for c in cells}))",
        )
    )
    names = {shutil.which(f"python3.{minor}") for minor in range(11, 20)} - {None}
    found = sorted(str(n) for n in names if not subprocess.run([str(n), "-c", ""], capture_output=True).returncode)
    if not found:
        pytest.skip("no Python by the name of its version on this machine")
    for python in found:
        arguments = [python, "-c", program, str(LIBRARY.folder)]
        environment = {**os.environ, "PYTHONPATH": str(LIBRARY.folder.parent)}
        done = subprocess.run(arguments, env=environment, input=json.dumps(SOURCES), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == {chapter: known.digest for chapter, known in KEYS.items()}, python


SEEDS = (
    "import torch\ntorch.manual_seed({})\nW = torch.randn(2)\ntorch.manual_seed({})\ndef f(): return torch.randn(1)\n"
)
LISTS = "A = []\nB = []\ndef g(): A.append(1)\ndef f():\n    g()\n    return {}\n"
CAUGHT = "class E1(Exception): 'x'\nclass E2(Exception): 'y'\ndef f():\n    try: raise E1\n    except {}: return 1\n"

JOINED = (
    "from typing import Generic, TypeVar\nT = TypeVar('T')\nclass A(Generic[T]):\n    known = []\n"
    "    def __init_subclass__(cls): A.known.append(cls)\nclass B(A[int]): v = {}\ndef f(): return A.known[0].v\n"
)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (SEEDS.format(0, 1), SEEDS.format(1, 0)),
        ("C = []\nC.append(1)\ndef f(): return C\n", "C = []\nC.append(1)\nC.append(1)\ndef f(): return C\n"),
        (LISTS.format("A"), LISTS.format("B")),
        (CAUGHT.format("E1"), CAUGHT.format("E2")),
        (JOINED.format(1), JOINED.format(2)),
    ],
    ids=["order of effects", "an effect twice", "two lists", "two empty exceptions", "a class that joins a list"],
)
def test_order_number_and_identity_count(tmp_path: Path, one: str, other: str) -> None:
    digests = []
    for number, text in enumerate((one, other)):
        folder = tmp_path / str(number) / "descent"
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("")
        (folder / "m.py").write_text(text)
        digests.append(key_of(tmp_path, folder, "c", ["from descent.m import f\nprint(f())"], {}).digest)
    assert digests[0] != digests[1]


@pytest.mark.parametrize(
    "cell",
    [
        "F = 1\nif F:\n    from descent.{} import g\nelse:\n    from descent.{} import g\nprint(g())",
        "from descent.{} import g\nfrom descent.{} import g\nprint(g())",
        "try:\n    from math import {} as s\nexcept ImportError:\n    from math import {} as s\nprint(s(1))",
    ],
)
def test_where_a_notebooks_name_comes_from_counts_in_order(tmp_path: Path, cell: str) -> None:
    folder = tmp_path / "descent"
    folder.mkdir()
    for name, value in (("__init__", ""), ("a", "def g(): return 1\n"), ("b", "def g(): return 2\n")):
        (folder / f"{name}.py").write_text(value)
    names = ("sin", "cos") if "math" in cell else ("a", "b")
    keys = [key_of(tmp_path, folder, "c", [cell.format(*each)], {}).digest for each in (names, names[::-1])]
    assert keys[0] != keys[1]
