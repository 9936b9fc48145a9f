"""What a chapter's results depend on is found by its imports."""

import json
from pathlib import Path

import pytest

import descent
from descent.dependencies import files_behind, modules_imported

LIBRARY = Path(descent.__file__).parent
ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from descent.capture import x\nimport torch", {"capture"}),
        ("from descent import plots, scenes", {"plots", "scenes"}),
        ("import descent.style as s, numpy", {"style"}),
        ("%pip install descent.x\nif True:\n    !ls\n    from descent.a.b import c", {"a"}),
        ("def f():\n    from descent.late import g", {"late"}),
        ("from . import x\nfrom descents.y import z\nimport descent", set()),
    ],
)
def test_imports_are_found_wherever_they_stand(source: str, found: set[str]) -> None:
    assert modules_imported(source) == found


def test_what_is_reached_through_others_counts_and_nothing_else(tmp_path: Path) -> None:
    sources = {"__init__": "", "a": "from descent import b", "b": "import descent.c", "c": "import descent.a", "d": ""}
    for name, source in sources.items():
        (tmp_path / f"{name}.py").write_text(source)
    names = [path.stem for path in files_behind(["from descent.a import x", "1"], tmp_path)]
    assert names == ["__init__", "a", "b", "c"]
    assert [path.stem for path in files_behind(["from descent import __version__"], tmp_path)] == ["__init__"]
    assert [path.stem for path in files_behind([], tmp_path)] == ["__init__"]


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_chapter_depends_on_some_modules_and_never_on_the_runner(path: Path) -> None:
    cells = json.loads(path.read_text())["cells"]
    behind = files_behind(["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"], LIBRARY)
    names = {file.stem for file in behind}
    assert {"records", "scorecard", "style", "seeding"} <= names
    assert not {"edition", "execution", "pool", "book", "assembly"} & names
